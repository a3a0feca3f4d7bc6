//! `odh tfgen`: labelled pictures become a dataset.

use std::path::PathBuf;

use anyhow::{Result, anyhow};
use clap::ArgAction;

const EXAMPLE: &str = "\
Example:
  odh tfgen -i ./images/ -l ./label_map.pbtxt -sr 8";

/// What `odh tfgen` is told.
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLE)]
pub struct Args {
    /// Largest class id that the label map may have
    #[arg(short = 'm', long = "max_num_classes", value_name = "N", default_value = "90")]
    max_num_classes: u32,
    /// Folder of pictures and their labelImg XML, searched with its subfolders
    #[arg(short = 'i', long = "input_folder", value_name = "FOLDER", default_value = "./images/")]
    input_folder: PathBuf,
    /// Label map
    #[arg(short = 'l', long = "label_file", value_name = "FILE", default_value = "./label_map.pbtxt")]
    label_file: PathBuf,
    /// Take boxes and split from the two CSV files instead of the XML
    #[arg(short = 'c', long = "custom_csv", value_name = "BOOL", action = ArgAction::Set, num_args = 0..=1, require_equals = true)]
    #[arg(default_value = "false", default_missing_value = "true", value_parser = crate::flags::boolean)]
    custom_csv: bool,
    /// CSV of the training boxes; short: -tc
    #[arg(long = "train_csv_output", value_name = "FILE", default_value = "./dataset/train.csv")]
    train_csv_output: PathBuf,
    /// CSV of the validation boxes; short: -vc
    #[arg(long = "validate_csv_output", value_name = "FILE", default_value = "./dataset/validate.csv")]
    validate_csv_output: PathBuf,
    /// Tenths of the pictures that train (1 to 9), or a fraction below 1; short: -sr
    #[arg(long = "split_rate", value_name = "RATE", default_value = "8")]
    split_rate: String,
}

/// Runs `odh tfgen`.
///
/// # Errors
/// Always, until this command is written.
pub fn run(args: Args) -> Result<()> {
    Err(anyhow!("`odh tfgen` is not written yet (it was asked for {args:?})"))
}
