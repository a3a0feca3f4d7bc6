//! `odh eval`: how good a trained model is.

use std::path::PathBuf;

use anyhow::{Context, Result};

use super::chosen::{Chosen, Wanted};
use super::zoo_args::ZooArgs;
use crate::config::pipeline;
use crate::data::loader;
use crate::engine::eval::{EvalOptions, evaluate, write};
use crate::engine::model_files::{self, Search};
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
    /// Checkpoint to evaluate [default: the model's latest]: PREFIX of PREFIX.index, or a train folder
    #[arg(long = "checkpoint", value_name = "PREFIX", conflicts_with = "model")]
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
    #[command(flatten)]
    zoo: ZooArgs,
}

/// Runs `odh eval`.
///
/// # Errors
/// If the model or the records are not there or do not fit together.
pub fn run(args: Args) -> Result<()> {
    let device = device::choose(&args.device)?;
    model_files::ensure_folder("--train_dir", args.train_dir.as_deref())?;
    let chosen = Chosen::find(&Wanted {
        search: Search {
            model: args.model.as_deref(),
            checkpoint: args.checkpoint.as_deref(),
            pipeline_config: None,
            roots: model_files::trained_roots(args.train_dir.as_deref()),
        },
        best: args.best,
        label_file: args.label_file.as_deref(),
        zoo: &args.zoo,
    })?;
    let Chosen { checkpoint, config, label_map, .. } = chosen;
    let records = args.validate_record.map_or_else(|| pipeline::eval_records(&config), |path| vec![path]);
    // Before the model is loaded, which takes longer.
    loader::records_exist(&records).context("there is nothing to evaluate on; --validate_record names other records")?;
    let loaded = loaded::load(&config, &checkpoint, device)?;
    let name = chosen.name.to_string_lossy().into_owned();
    let eval_config = config.eval_config.clone().unwrap_or_default();
    let options = EvalOptions {
        model_name: &name,
        label_map: &label_map,
        records,
        num_visualizations: eval_config.num_visualizations() as usize,
        min_score: eval_config.min_score_threshold(),
        num_threads: 0,
    };
    let eval_dir = args.eval_dir.join(&name);
    // That nothing can be written there is better found out now than when all is computed.
    drop(AtomicFile::create(&eval_dir.join("eval"))?);
    interrupt::watch();
    tracing::info!("Evaluate start [ model : {name}, checkpoint : {} ]", checkpoint.display());
    let evaluated = evaluate(loaded.model.as_ref(), &loaded.variables, &options, (&checkpoint, loaded.step.unwrap_or(0)))?;
    let path = write(&evaluated, &eval_dir, &mut EventWriter::create(&eval_dir)?)?;
    for line in evaluated.report.log_lines() {
        tracing::info!("{line}");
    }
    outln!("{}", evaluated.report.table());
    outln!("{}", path.display());
    Ok(())
}
