//! `odh train`: choose a model, fine-tune, evaluate, export.

use std::path::PathBuf;

use anyhow::{Result, anyhow};
use clap::ArgAction;

const EXAMPLE: &str = "\
Example:
  odh train -m ssd_mobilenet_v1_coco -s 6000 -n 3000";

/// What `odh train` is told.
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLE)]
pub struct Args {
    /// Label map
    #[arg(short = 'l', long = "label_file", value_name = "FILE", default_value = "./label_map.pbtxt")]
    label_file: PathBuf,
    /// Start anew: empty the train and eval folders of this model first
    #[arg(short = 'r', long = "reset", value_name = "BOOL", action = ArgAction::Set, num_args = 0..=1, require_equals = true)]
    #[arg(default_value = "false", default_missing_value = "true", value_parser = crate::flags::boolean)]
    reset: bool,
    /// Evaluate every --evaluate_number steps
    #[arg(short = 'e', long = "evaluate", value_name = "BOOL", action = ArgAction::Set, num_args = 0..=1, require_equals = true)]
    #[arg(default_value = "true", default_missing_value = "true", value_parser = crate::flags::boolean)]
    evaluate: bool,
    /// Steps between evaluations
    #[arg(short = 'n', long = "evaluate_number", value_name = "STEPS", default_value = "2000")]
    evaluate_number: u64,
    /// Zoo folder, name in the table, unique prefix, or number in the menu
    #[arg(short = 'm', long = "model", value_name = "MODEL")]
    model: Option<String>,
    /// Steps to train
    #[arg(short = 's', long = "num_steps", value_name = "STEPS")]
    num_steps: Option<u64>,
    /// Pictures in a batch [default: the config's]
    #[arg(long = "batch_size", value_name = "N")]
    batch_size: Option<u32>,
    /// Seed of every random choice
    #[arg(long = "seed", value_name = "SEED")]
    seed: Option<u64>,
    /// auto, cpu, cuda or cuda:N
    #[arg(long = "device", value_name = "DEVICE", default_value = "auto")]
    device: String,
    /// Pipeline config to use in place of the model's own
    #[arg(long = "pipeline_config", value_name = "FILE")]
    pipeline_config: Option<PathBuf>,
    /// Checkpoint to start from (PREFIX of PREFIX.index), or none
    #[arg(long = "fine_tune_checkpoint", value_name = "PATH|none")]
    fine_tune_checkpoint: Option<String>,
}

/// Runs `odh train`.
///
/// # Errors
/// Always, until this command is written.
pub fn run(args: Args) -> Result<()> {
    Err(anyhow!("`odh train` is not written yet (it was asked for {args:?})"))
}
