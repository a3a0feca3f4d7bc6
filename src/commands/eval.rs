//! `odh eval`: how good a trained model is.

use std::path::{Path, PathBuf};

use anyhow::Result;

use super::train::records;
use crate::config::weights::{self, WeightsOptions};
use crate::config::{coco_labels, zoo};
use crate::engine::eval::{EvalOptions, evaluate, write};
use crate::engine::model_files::{self, ModelSource, Search};
use crate::engine::{device, loaded};
use crate::formats::atomic_file::AtomicFile;
use crate::formats::events::EventWriter;
use crate::{interrupt, outln};

const EXAMPLE: &str = "\
Examples:
  odh eval -m ssd_mobilenet_v1_coco
  odh eval --checkpoint train_dir/ssd_mobilenet_v1_coco_2017_11_17/model.ckpt-2000";

/// What `odh eval` is told.
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLE)]
pub struct Args {
    /// Name of a trained model, its folder, or a zoo model [default: the only one there is]
    #[arg(short = 'm', long = "model", value_name = "MODEL")]
    model: Option<String>,
    /// Checkpoint to evaluate [default: the model's latest]
    #[arg(long = "checkpoint", value_name = "PREFIX", conflicts_with = "best")]
    checkpoint: Option<PathBuf>,
    /// The checkpoint of the best evaluation so far, in place of the latest
    #[arg(long = "best")]
    best: bool,
    /// Label map [default: the one beside the checkpoint]
    #[arg(short = 'l', long = "label_file", value_name = "FILE")]
    label_file: Option<PathBuf>,
    /// Validation records [default: the config's]
    #[arg(long = "validate_record", value_name = "FILE")]
    validate_record: Option<PathBuf>,
    /// Where trained models are [default: ./train_dir, then ./export_dir]
    #[arg(long = "train_dir", value_name = "FOLDER")]
    train_dir: Option<PathBuf>,
    /// Where eval-STEP.json and the event files go
    #[arg(long = "eval_dir", value_name = "FOLDER", default_value = "./eval_dir")]
    eval_dir: PathBuf,
    /// auto, cpu, cuda or cuda:N
    #[arg(long = "device", value_name = "DEVICE", default_value = "auto")]
    device: String,
    /// Folder of pretrained models
    #[arg(long = "model_zoo_dir", value_name = "FOLDER", default_value = weights::DEFAULT_ZOO_DIR)]
    model_zoo_dir: PathBuf,
}

/// Runs `odh eval`.
///
/// # Errors
/// If the model or the records are not there or do not fit together.
pub fn run(args: Args) -> Result<()> {
    let device = device::choose(&args.device)?;
    let search = Search {
        model: args.model.as_deref(),
        checkpoint: args.checkpoint.as_deref(),
        roots: model_files::trained_roots(args.train_dir.as_deref()),
    };
    let (config, folder, mut prefix, label_map) =
        match model_files::find(&search, |typed| Ok(zoo::resolve(typed)?.folder.to_string()))? {
            ModelSource::Files(files) => {
                let config = model_files::config(&files)?;
                let label_map = model_files::label_map(args.label_file.as_deref(), &files.folder, &config, false)?;
                (config, files.folder, files.checkpoint, label_map)
            }
            ModelSource::Zoo(name) if args.best => return Err(model_files::no_best(&name)),
            ModelSource::Zoo(name) => {
                let prefix = weights::pretrained(&name, &WeightsOptions::new(&args.model_zoo_dir, None))?;
                let (config, _) = zoo::resolve(&name)?.config(Path::new("."))?;
                let label_map = match &args.label_file {
                    Some(path) => crate::config::label_map::LabelMap::load(path)?,
                    None => coco_labels::coco(),
                };
                (config, PathBuf::from(name), prefix, label_map)
            }
        };
    if args.best {
        prefix = model_files::best(&folder)?;
    }
    let loaded = loaded::load(&config, &prefix, device)?;
    let name = model_files::name(&folder)?.to_string_lossy().into_owned();
    let eval_config = config.eval_config.clone().unwrap_or_default();
    let options = EvalOptions {
        model_name: &name,
        label_map: &label_map,
        records: args
            .validate_record
            .map_or_else(|| records(config.eval_input_reader.as_ref(), "./dataset/validate.record"), |r| vec![r]),
        num_visualizations: eval_config.num_visualizations() as usize,
        min_score: eval_config.min_score_threshold(),
        num_threads: 0,
    };
    let eval_dir = args.eval_dir.join(&name);
    // That nothing can be written there is better found out now than when all is computed.
    drop(AtomicFile::create(&eval_dir.join("eval"))?);
    interrupt::watch();
    tracing::info!("Evaluate start [ model : {name}, checkpoint : {} ]", prefix.display());
    let evaluated = evaluate(loaded.model.as_ref(), &loaded.variables, &options, (&prefix, loaded.step.unwrap_or(0)))?;
    let path = write(&evaluated, &eval_dir, &mut EventWriter::create(&eval_dir)?)?;
    for line in evaluated.report.log_lines() {
        tracing::info!("{line}");
    }
    outln!("{}", evaluated.report.table());
    outln!("{}", path.display());
    Ok(())
}
