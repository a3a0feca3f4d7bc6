//! `odh export`: a trained model becomes files that other programs run, with what belongs to them.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result};

use crate::config::label_map::LabelMap;
use crate::config::weights::{self, WeightsOptions};
use crate::config::{coco_labels, pipeline, zoo};
use crate::engine::checkpoint;
use crate::engine::model_files::{self, ModelFiles, ModelSource, Search};
use crate::export::folder::{self, ExportInput, Exported, Format};
use crate::proto::object_detection::protos as pb;
use crate::{exit, interrupt, outln};

const EXAMPLE: &str = "\
Examples:
  odh export                                              # the model in train_dir/, its latest checkpoint
  odh export -m ssd_mobilenet_v1_coco --best              # the checkpoint with the best mAP
  odh export --checkpoint train_dir/MODEL/model.ckpt-2000 --output_dir my_export

  odh export --format onnx --format frozen_graph          # only these

export_dir/MODEL/ then has frozen_inference_graph.pb, saved_model/, model.onnx, model.ckpt.*, checkpoint, pipeline.config,
label_map.pbtxt and labels.txt (line i names class i). An earlier export there is replaced, but only once the new one is complete.";

/// What `odh export` is told.
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLE)]
pub struct Args {
    /// A model's folder, or its name (zoo folder, name in the table, unique prefix) [default: the only one there is]
    #[arg(short = 'm', long = "model", value_name = "MODEL")]
    model: Option<String>,
    /// Checkpoint to export in place of the latest: PREFIX of PREFIX.index, or a train folder
    #[arg(long = "checkpoint", value_name = "PREFIX", conflicts_with = "model")]
    checkpoint: Option<PathBuf>,
    /// Export the checkpoint that evaluated best in place of the latest
    #[arg(long = "best")]
    best: bool,
    /// Pipeline config of the checkpoint [default: pipeline.config beside it]
    #[arg(long = "pipeline_config", value_name = "FILE")]
    pipeline_config: Option<PathBuf>,
    /// Label map [default: the model's own]
    #[arg(short = 'l', long = "label_file", value_name = "FILE")]
    label_file: Option<PathBuf>,
    /// Folder of trained models
    #[arg(long = "train_dir", value_name = "FOLDER", default_value = "./train_dir")]
    train_dir: PathBuf,
    /// Folder to write [default: ./export_dir/MODEL]
    #[arg(long = "output_dir", value_name = "FOLDER")]
    output_dir: Option<PathBuf>,
    /// What to write: frozen_graph, saved_model or onnx; several with commas [default: all]
    #[arg(long = "format", value_name = "FORMAT", value_delimiter = ',', value_parser = format)]
    formats: Vec<Format>,
    /// Folder of pretrained models
    #[arg(long = "model_zoo_dir", value_name = "FOLDER", default_value = "./model_zoo")]
    model_zoo_dir: PathBuf,
    /// Where `MODEL.tar.gz` is downloaded from: http(s):// or file:// [default: TensorFlow's zoo, or $ODH_MODEL_ZOO_URL]
    #[arg(long = "model_zoo_url", value_name = "URL")]
    model_zoo_url: Option<String>,
}

/// Runs `odh export`.
///
/// # Errors
/// If no model is found or several are, its files do not fit together, or the export cannot be written.
pub fn run(args: Args) -> Result<()> {
    interrupt::watch();
    let chosen = choose(&args)?;
    for note in pipeline::check_supported(&chosen.config).with_context(|| chosen.source.clone())? {
        tracing::info!("{}: {note}", chosen.source);
    }
    let output_dir = args.output_dir.unwrap_or_else(|| Path::new("./export_dir").join(&chosen.name));
    write(&ExportInput {
        config: &chosen.config,
        label_map: &chosen.label_map,
        checkpoint: &chosen.checkpoint,
        output_dir: &output_dir,
        formats: &args.formats,
    })?;
    Ok(())
}

/// A format by its name.
fn format(typed: &str) -> Result<Format, String> {
    Format::ALL
        .iter()
        .find(|(name, ..)| *name == typed)
        .map(|(_, format, _)| *format)
        .ok_or_else(|| format!("it must be {}", Format::ALL.map(|(name, ..)| name).join(", ")))
}

/// Exports, and says so on the terminal and in the log; for the end of a training too.
///
/// # Errors
/// As `folder::run`'s.
pub fn write(input: &ExportInput) -> Result<Exported> {
    let start = Instant::now();
    tracing::info!("Export start [ checkpoint : {}, folder : {} ]", input.checkpoint.display(), input.output_dir.display());
    let exported = folder::run(input)?;
    let step = exported.step.map_or_else(|| "no step".to_string(), |step| format!("step {step}"));
    let models: Vec<String> =
        exported.models.iter().map(|(path, bytes)| format!("{} : {:.1} MB", path.display(), *bytes as f64 / 1e6)).collect();
    tracing::info!("Export Success [ {step}, {}, {:.1} s ]", models.join(", "), start.elapsed().as_secs_f64());
    for (path, _) in &exported.models {
        outln!("exported {} ({step}) -> {}", input.checkpoint.display(), path.display());
    }
    Ok(exported)
}

/// The model that is meant.
struct Chosen {
    /// Of its folder.
    name: PathBuf,
    checkpoint: PathBuf,
    config: pb::TrainEvalPipelineConfig,
    /// Where the config is from, for messages.
    source: String,
    label_map: LabelMap,
}

fn choose(args: &Args) -> Result<Chosen> {
    let files = match (&args.checkpoint, &args.pipeline_config) {
        // A checkpoint from elsewhere need not have its config beside it.
        (Some(typed), Some(config)) => model_files::with_pipeline_config(typed, config)?,
        (checkpoint, _) => {
            let search =
                Search { model: args.model.as_deref(), checkpoint: checkpoint.as_deref(), roots: vec![args.train_dir.clone()] };
            match model_files::find(&search, |typed| Ok(zoo::resolve(typed)?.folder.to_string()))? {
                ModelSource::Files(files) => files,
                ModelSource::Zoo(name) => return pretrained(args, &name),
            }
        }
    };
    let files = ModelFiles {
        checkpoint: if args.best { best(&files.folder)? } else { files.checkpoint },
        pipeline_config: args.pipeline_config.clone().unwrap_or(files.pipeline_config),
        folder: files.folder,
    };
    let config = model_files::config(&files)?;
    Ok(Chosen {
        name: name_of(&files.folder)?,
        source: files.pipeline_config.display().to_string(),
        label_map: model_files::label_map(args.label_file.as_deref(), &files.folder, &config, false)?,
        checkpoint: files.checkpoint,
        config,
    })
}

/// The checkpoint that evaluated best of those in a train folder.
fn best(folder: &Path) -> Result<PathBuf> {
    checkpoint::best(folder).ok_or_else(|| {
        exit::usage(format!("no evaluation marked a best checkpoint in `{}`; leave --best out for the latest", folder.display()))
    })
}

/// The zoo's own weights, where there is no training of the model.
fn pretrained(args: &Args, name: &str) -> Result<Chosen> {
    if args.best {
        return Err(exit::usage(format!(
            "there is no training of `{name}` in `{}`, and so no best checkpoint",
            args.train_dir.display()
        )));
    }
    tracing::info!("there is no training of {name} in {}: exporting the zoo's weights", args.train_dir.display());
    let (config, source) = match &args.pipeline_config {
        Some(path) => (pipeline::load(path)?, path.display().to_string()),
        None => zoo::resolve(name)?.config(Path::new("."))?,
    };
    let label_map = args.label_file.as_deref().map_or_else(|| Ok(coco_labels::coco()), LabelMap::load)?;
    let options = WeightsOptions::new(&args.model_zoo_dir, args.model_zoo_url.as_deref());
    Ok(Chosen { name: name.into(), checkpoint: weights::pretrained(name, &options)?, config, source, label_map })
}

/// The folder's own name, where it was typed as `.` too.
fn name_of(folder: &Path) -> Result<PathBuf> {
    let whole = folder.canonicalize().with_context(|| format!("cannot reach `{}`", folder.display()))?;
    let name = whole
        .file_name()
        .with_context(|| format!("`{}` has no name; name the folder to write with --output_dir", whole.display()))?;
    Ok(name.into())
}
