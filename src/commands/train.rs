//! `odh train`: choose a model, fine-tune, evaluate, export.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::ArgAction;
use tch::Device;

use super::zoo_args::ZooArgs;
use crate::config::label_map::{self, LabelMap};
use crate::config::pipeline::{self, Overrides};
use crate::config::weights;
use crate::config::zoo::{self, ZooModel};
use crate::data::augment::Augmentation;
use crate::data::loader;
use crate::engine::eval::EvalOptions;
use crate::engine::train::{TrainOptions, Trained, train};
use crate::engine::{checkpoint, device, memory, model_files};
use crate::export::folder::ExportInput;
use crate::formats::atomic_file;
use crate::formats::bundle_index::index_of;
use crate::formats::lock::Lock;
use crate::formats::tensor_bundle::BundleReader;
use crate::logging::old_clock;
use crate::proto::object_detection::protos as pb;
use crate::wording::printable;
use crate::{exit, interrupt, models, outln, prompt};

/// Held in the train folder by the run that works there.
const LOCK: &str = ".odh.lock";

const EXAMPLE: &str = "\
Examples:
  odh train -m ssd_mobilenet_v1_coco -s 6000 -n 3000
  odh train --pipeline_config my.config --fine_tune_checkpoint none -s 1000";

/// What `odh train` is told.
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLE)]
pub struct Args {
    /// Label map [default: the one that --pipeline_config names if it is there, else ./label_map.pbtxt]
    #[arg(short = 'l', long = "label_file", value_name = "FILE")]
    label_file: Option<PathBuf>,
    /// Start anew: empty the train and eval folders of this model once the new training begins
    #[arg(short = 'r', long = "reset", value_name = "BOOL", action = ArgAction::Set, num_args = 0..=1, require_equals = true)]
    #[arg(default_value = "false", default_missing_value = "true", value_parser = crate::flags::boolean)]
    reset: bool,
    /// Evaluate every --evaluate_number steps
    #[arg(short = 'e', long = "evaluate", value_name = "BOOL", action = ArgAction::Set, num_args = 0..=1, require_equals = true)]
    #[arg(default_value = "true", default_missing_value = "true", value_parser = crate::flags::boolean)]
    evaluate: bool,
    /// Steps between evaluations (a checkpoint is saved with each)
    #[arg(short = 'n', long = "evaluate_number", value_name = "STEPS", default_value = "2000")]
    #[arg(value_parser = clap::value_parser!(u64).range(1..))]
    evaluate_number: u64,
    /// Zoo folder, name in the table, unique prefix, or number in the menu
    #[arg(short = 'm', long = "model", value_name = "MODEL")]
    model: Option<String>,
    /// Steps to train, those of earlier runs included
    #[arg(short = 's', long = "num_steps", value_name = "STEPS", value_parser = clap::value_parser!(u32).range(1..))]
    num_steps: Option<u32>,
    /// Pictures in a batch [default: the config's]
    #[arg(long = "batch_size", value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    batch_size: Option<u32>,
    /// Seed of every random choice [default: 0; a training that goes on keeps its own]
    #[arg(long = "seed", value_name = "SEED")]
    seed: Option<u64>,
    /// auto, cpu, cuda or cuda:N
    #[arg(long = "device", value_name = "DEVICE", default_value = "auto")]
    device: String,
    /// Checkpoint of this model's train folder to go on from in place of the latest (PREFIX of PREFIX.index)
    #[arg(long = "checkpoint", value_name = "PREFIX")]
    checkpoint: Option<PathBuf>,
    /// Pipeline config to use in place of the model's own
    #[arg(long = "pipeline_config", value_name = "FILE")]
    pipeline_config: Option<PathBuf>,
    /// Checkpoint to start from (PREFIX of PREFIX.index), or none for random values
    #[arg(long = "fine_tune_checkpoint", value_name = "PATH|none")]
    fine_tune_checkpoint: Option<String>,
    #[command(flatten)]
    zoo: ZooArgs,
    /// Training records, in place of the config's
    #[arg(long = "train_record", value_name = "FILE")]
    train_record: Option<PathBuf>,
    /// Validation records, in place of the config's
    #[arg(long = "validate_record", value_name = "FILE")]
    validate_record: Option<PathBuf>,
    /// Threads that load pictures [default: one less than the machine has cores]
    #[arg(long = "loader_threads", value_name = "N", default_value = "0", hide_default_value = true)]
    loader_threads: usize,
    /// Export when the training is done
    #[arg(long = "export", value_name = "BOOL", action = ArgAction::Set, num_args = 0..=1, require_equals = true)]
    #[arg(default_value = "true", default_missing_value = "true", value_parser = crate::flags::boolean)]
    export: bool,
}

/// Runs `odh train`.
///
/// # Errors
/// If a flag, the config, the data or the weights are not usable, or the training fails; exit code 130 after Ctrl-C.
pub fn run(args: Args) -> Result<()> {
    let (name, zoo_model) = which_model(&args)?;
    let (mut config, source) = match &args.pipeline_config {
        Some(path) => (pipeline::load(path)?, path.display().to_string()),
        None => zoo_model.context("a model was chosen")?.config(Path::new("."))?,
    };
    let num_steps = num_steps(&args, &config)?;
    let label_file = label_file(&args, &config);
    let label_map = LabelMap::load(&label_file).with_context(|| {
        format!("label map {}: name another with --label_file, or let `odh tfgen` write one", label_file.display())
    })?;
    let label_file_shown = label_file.display().to_string();
    pipeline::apply(&mut config, &overrides(&args, label_file, &label_map, num_steps)).with_context(|| source.clone())?;
    let notes = pipeline::check_supported(&config).with_context(|| source.clone())?;
    let train_config = config.train_config.clone().with_context(|| format!("{source}: train_config is not set"))?;
    let model = models::from_config(&config).with_context(|| source.clone())?;
    models::check_training(&config).with_context(|| source.clone())?;
    let augmentations = Augmentation::all_from_config(&train_config).with_context(|| source.clone())?;
    let train_records = pipeline::train_records(&config);
    let eval_records = pipeline::eval_records(&config);
    loader::records_exist(&train_records)?;
    if args.evaluate {
        loader::records_exist(&eval_records).context("there is nothing to evaluate on; `-e False` trains without evaluation")?;
    }

    let device = device::choose(&args.device)?;
    let [train_dir, eval_dir, export_dir] = ["train_dir", "eval_dir", "export_dir"].map(|folder| Path::new(folder).join(&name));
    if args.export {
        crate::export::check_place(&export_dir).context("the export at the end would fail; `--export False` trains without")?;
    }
    if args.evaluate {
        writable_place(&eval_dir).context("the evaluations would fail; `-e False` trains without")?;
    }
    let _lock = Lock::take(&train_dir.join(LOCK), &train_dir)?;
    let resume_from = resume_from(&args, &train_dir)?;
    if resume_from.is_some() {
        same_classes(&label_map, &label_file_shown, &train_dir.join(label_map::FILE_NAME))?;
    }
    let seed = seed(args.seed, resume_from.as_deref());
    tracing::info!("Program start [ model : {name}, num steps : {num_steps} ]");
    tracing::info!(
        "Settings [ config : {source}, device : {}, seed : {}, batch size : {}, classes : {} ]",
        device::name(device),
        seed,
        train_config.batch_size(),
        label_map.items.len()
    );
    for note in notes {
        tracing::info!("{note}");
    }
    let start_from = if resume_from.is_some() { None } else { start_from(&args, &config, &name, zoo_model)? };
    if args.reset {
        if let Some(prefix) = &start_from {
            BundleReader::open(prefix).context("nothing was reset")?;
        }
        // The label map that an earlier training wrote there is written again.
        let label_file = Some(Path::new(&label_file_shown)).filter(|file| **file != train_dir.join(label_map::FILE_NAME));
        let read = train_records.iter().chain(&eval_records).chain(&start_from).chain(&args.pipeline_config);
        ensure_kept(&[&train_dir, &eval_dir], read.map(PathBuf::as_path).chain(label_file))?;
    }
    // The config that is kept says what the training began with, which a resumed one does not look for again.
    let began_with = match &resume_from {
        Some(_) => began_with(&train_dir.join(pipeline::FILE_NAME)),
        None => Some(start_from.clone()),
    };
    pipeline::apply(&mut config, &Overrides { fine_tune_checkpoint: began_with, ..Overrides::default() })?;

    let eval_config = config.eval_config.clone().unwrap_or_default();
    let evaluation = args.evaluate.then(|| EvalOptions {
        model_name: &name,
        label_map: &label_map,
        records: eval_records,
        num_visualizations: eval_config.num_visualizations() as usize,
        min_score: eval_config.min_score_threshold(),
        num_threads: args.loader_threads,
    });
    let options = TrainOptions {
        model_name: &name,
        config: &train_config,
        label_map: &label_map,
        train_records,
        augmentations,
        averages: eval_config.use_moving_averages(),
        shuffle: config.train_input_reader.as_ref().is_none_or(|reader| reader.shuffle()),
        evaluation,
        train_dir,
        eval_dir,
        resume_from,
        start_from,
        num_steps: u64::from(num_steps),
        save_every: args.evaluate_number,
        seed,
        device,
        num_threads: args.loader_threads,
        again: match (args.reset, &args.checkpoint) {
            (true, _) => "the same command without --reset",
            (_, Some(_)) => "the same command without --checkpoint",
            _ => "the same command",
        },
    };
    interrupt::watch();
    tracing::info!("Transfer learning start");
    let begun = Instant::now();
    let begin = || {
        if args.reset {
            empty(&[&options.train_dir, &options.eval_dir])?;
        }
        atomic_file::write(&options.train_dir.join(pipeline::FILE_NAME), pipeline::to_text(&config).as_bytes())?;
        atomic_file::write(&options.train_dir.join(label_map::FILE_NAME), label_map.to_text()?.as_bytes())
    };
    let trained = train(model.as_ref(), &options, begin).inspect_err(|e| {
        if exit::code(e) == 130 {
            tracing::info!("Transfer learning interrupted [ Total learning time : {} ]", old_clock(begun.elapsed()));
        }
    })?;
    report(&trained, begun.elapsed(), &name, device);
    if args.export {
        let input = ExportInput::new(&name, &config, &label_map, &trained.checkpoint, &export_dir);
        super::export::write(&input, None).context("the training is done and its checkpoints are kept, but the export failed")?;
    }
    tracing::info!("Program end");
    Ok(())
}

/// The name of the run's folders, and the zoo's model if it is one.
fn which_model(args: &Args) -> Result<(String, Option<&'static ZooModel>)> {
    let model = match (&args.model, &args.pipeline_config) {
        (Some(typed), _) => zoo::resolve(typed)?,
        (None, Some(path)) => {
            let stem =
                path.file_stem().with_context(|| format!("--pipeline_config `{}` is a folder; name a file", path.display()))?;
            let stem = stem.to_str().context("the pipeline config's name is not UTF-8; rename it")?;
            return Ok((stem.to_string(), zoo::MODELS.iter().find(|m| m.folder == stem)));
        }
        (None, None) => zoo::choose_model()?,
    };
    Ok((model.folder.to_string(), Some(model)))
}

fn num_steps(args: &Args, config: &pb::TrainEvalPipelineConfig) -> Result<u32> {
    if let Some(steps) = args.num_steps {
        return Ok(steps);
    }
    let own = config.train_config.as_ref().map_or(0, pb::TrainConfig::num_steps);
    if args.pipeline_config.is_some() && own > 0 {
        return Ok(own);
    }
    prompt::ask("Input number steps : ", "--num_steps STEPS", |typed| match typed.replace(['_', ','], "").parse::<u32>() {
        Ok(steps) if steps > 0 => Ok(steps),
        _ => bail!("`{typed}` is not a number of steps"),
    })
}

/// The label map: what the flag says, else what a config of the user's own names if it is there, else tfgen's.
fn label_file(args: &Args, config: &pb::TrainEvalPipelineConfig) -> PathBuf {
    if let Some(given) = &args.label_file {
        return given.clone();
    }
    let default = PathBuf::from("./label_map.pbtxt");
    let named = config.train_input_reader.as_ref().map_or("", pb::InputReader::label_map_path);
    if args.pipeline_config.is_none() || named.is_empty() {
        return default;
    }
    if Path::new(named).is_file() {
        return PathBuf::from(named);
    }
    tracing::warn!("train_input_reader.label_map_path: `{named}` is not there; {} is read in its place", default.display());
    default
}

fn overrides(args: &Args, label_file: PathBuf, label_map: &LabelMap, num_steps: u32) -> Overrides {
    Overrides {
        num_classes: Some(label_map.max_id()),
        batch_size: args.batch_size,
        num_steps: Some(num_steps),
        label_map: Some(label_file),
        train_record: args.train_record.clone(),
        validate_record: args.validate_record.clone(),
        fine_tune_checkpoint: None,
    }
}

/// The pretrained weights: what the flag says, else what the config names if it is there, else the zoo's.
fn start_from(
    args: &Args,
    config: &pb::TrainEvalPipelineConfig,
    name: &str,
    zoo_model: Option<&'static ZooModel>,
) -> Result<Option<PathBuf>> {
    match args.fine_tune_checkpoint.as_deref() {
        Some(none) if none.eq_ignore_ascii_case("none") => return Ok(None),
        Some(path) => return Ok(Some(PathBuf::from(path))),
        None => {}
    }
    let named = config.train_config.as_ref().map_or("", pb::TrainConfig::fine_tune_checkpoint);
    if !named.is_empty() && !named.contains("PATH_TO_BE_CONFIGURED") && Path::new(&format!("{named}.index")).is_file() {
        return Ok(Some(PathBuf::from(named)));
    }
    // A copy of a zoo model's config names the zoo's weights, whatever the copy is called.
    let folder = Path::new(named).parent().and_then(Path::file_name);
    let zoo_model = zoo_model.or_else(|| zoo::MODELS.iter().find(|model| folder == Some(model.folder.as_ref())));
    match zoo_model {
        Some(model) => weights::pretrained(model.folder, &args.zoo.options()).map(Some),
        None if named.is_empty() => Err(exit::usage(format!(
            "{name}: the config names no fine_tune_checkpoint; say which with --fine_tune_checkpoint PATH, or start from random values with \
             --fine_tune_checkpoint none"
        ))),
        None => bail!(
            "train_config.fine_tune_checkpoint: `{named}` is not there (no {named}.index); name another with --fine_tune_checkpoint PATH, or \
             start from random values with --fine_tune_checkpoint none"
        ),
    }
}

/// Where an earlier run of this model stands: what the flag says, else the latest checkpoint.
fn resume_from(args: &Args, train_dir: &Path) -> Result<Option<PathBuf>> {
    let Some(typed) = &args.checkpoint else {
        return if args.reset { Ok(None) } else { checkpoint::latest(train_dir) };
    };
    if args.reset {
        return Err(exit::usage("--checkpoint goes on from a checkpoint and --reset starts anew: leave one of them out"));
    }
    let prefix = model_files::existing(typed)?;
    let here = train_dir.join(prefix.file_name().unwrap_or_default());
    let index = |prefix: &Path| index_of(prefix).canonicalize().ok();
    ensure!(
        index(&prefix).is_some() && index(&prefix) == index(&here),
        "--checkpoint `{}` is not in this model's train folder `{}`; to begin with another training's weights, give them to \
         --fine_tune_checkpoint",
        prefix.display(),
        train_dir.display()
    );
    Ok(Some(here))
}

/// The seed of a training: the one that it began with, if it goes on from a checkpoint that tells.
fn seed(typed: Option<u64>, resume_from: Option<&Path>) -> u64 {
    // What cannot be read is told of where the rest of the checkpoint is.
    let kept = resume_from.and_then(|prefix| checkpoint::read_run_state(prefix).ok().flatten()).map(|state| state.seed);
    if let (Some(typed), Some(kept)) = (typed, kept)
        && typed != kept
    {
        tracing::warn!(
            "--seed {typed} is not heeded: the training goes on where it stood, with its own, {kept}; --reset starts anew"
        );
    }
    kept.or(typed).unwrap_or(0)
}

/// Makes sure that a training goes on with the classes that it has learnt. A class that is only called otherwise is noted.
///
/// * `source`: what errors call the label map. `kept`: the training's own, if it is there.
///
/// # Errors
/// If a class has another id now: what was learnt would go under another's name.
fn same_classes(map: &LabelMap, source: &str, kept: &Path) -> Result<()> {
    if !kept.is_file() {
        return Ok(());
    }
    for learnt in &LabelMap::load(kept)?.items {
        match map.id_of(&learnt.name) {
            Some(id) => ensure!(
                id == learnt.id,
                "class `{}` has id {id} in {source}, and this training has learnt it as {} ({}): put the label map back and run \
                 `odh tfgen` with it, or train anew with --reset",
                printable(&learnt.name),
                learnt.id,
                kept.display()
            ),
            None => {
                let now =
                    map.name_of(learnt.id).map_or("not there any more".to_string(), |name| format!("`{}` now", printable(name)));
                tracing::warn!("class {} was `{}` when this training began, and is {now}", learnt.id, printable(&learnt.name));
            }
        }
    }
    Ok(())
}

/// What the config of an earlier run says that it began with, as [`Overrides`] has it; `None` if it cannot be read.
fn began_with(config: &Path) -> Option<Option<PathBuf>> {
    let config = pipeline::load(config).ok()?;
    let named = config.train_config.and_then(|train| train.fine_tune_checkpoint).filter(|named| !named.is_empty());
    Some(named.map(PathBuf::from))
}

/// Makes sure that files can be made in a folder, as far as that can be said while it is not there.
///
/// # Errors
/// If they cannot.
fn writable_place(folder: &Path) -> Result<()> {
    let there = folder.ancestors().find(|path| path.symlink_metadata().is_ok()).unwrap_or(Path::new("."));
    let probe = tempfile::Builder::new().prefix(".odh-").tempfile_in(there);
    probe.map(drop).with_context(|| format!("cannot write in `{}`", there.display()))
}

/// Whether a file is in a folder or below it, by their real paths.
fn is_within(file: &Path, folder: &Path) -> bool {
    let parent = file.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    matches!((parent.canonicalize(), folder.canonicalize()), (Ok(parent), Ok(folder)) if parent.starts_with(&folder))
}

/// Refuses a reset that would delete what the new run reads.
///
/// # Errors
/// If one of the files is in one of the folders.
fn ensure_kept<'a>(folders: &[&Path], read: impl Iterator<Item = &'a Path>) -> Result<()> {
    for file in read {
        for folder in folders {
            ensure!(
                !is_within(file, folder),
                "--reset would delete `{}`, which the training needs: move it out of `{}` first",
                file.display(),
                folder.display()
            );
        }
    }
    Ok(())
}

/// Deletes what a run left in its folders; the folders stay.
///
/// # Errors
/// If something cannot be deleted.
fn empty(folders: &[&Path]) -> Result<()> {
    let mut left = Vec::new();
    // All are read before anything is deleted.
    for folder in folders {
        let entries = match fs::read_dir(folder) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
            entries => entries.and_then(Iterator::collect::<std::io::Result<Vec<_>>>),
        };
        left.extend(entries.with_context(|| format!("--reset: cannot read `{}`", folder.display()))?);
    }
    for entry in left.into_iter().filter(|entry| entry.file_name() != LOCK) {
        let path = entry.path();
        let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
        let removed = if is_folder { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        removed.with_context(|| format!("--reset: cannot delete `{}`", path.display()))?;
    }
    Ok(())
}

/// What came of it, on the terminal and in the log.
fn report(trained: &Trained, total: Duration, name: &str, device: Device) {
    let waited = 100.0 * trained.waited.as_secs_f64() / trained.stepping.as_secs_f64().max(1e-9);
    let map = match trained.map {
        Some(map) if map.is_finite() => format!("{map:.4}"),
        Some(_) => "- (nothing to find in the validation pictures)".to_string(),
        None => "not evaluated".to_string(),
    };
    tracing::info!("Transfer learning Success [ Total learning time : {} ]", old_clock(total));
    tracing::info!(
        "Training [ model : {name}, step : {}, images per second : {:.2}, waiting for data : {waited:.1} %, mAP@0.5 : {map}, peak memory : {} ]",
        trained.step,
        trained.images_per_second,
        memory::peak(device)
    );
    outln!(
        "trained to step {} in {} ({:.1} images/s, {waited:.1} % waiting for data), mAP@0.5 {map}: {}",
        trained.step,
        old_clock(total),
        trained.images_per_second,
        trained.checkpoint.display()
    );
}
