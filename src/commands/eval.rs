//! `odh eval`: how good a trained model is.

use anyhow::{Result, anyhow};

const EXAMPLE: &str = "\
Example:
  odh eval -m ssd_mobilenet_v1_coco";

/// What `odh eval` is told.
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLE)]
pub struct Args {
    /// Zoo folder, name in the table, unique prefix, or number in the menu
    #[arg(short = 'm', long = "model", value_name = "MODEL")]
    model: Option<String>,
}

/// Runs `odh eval`.
///
/// # Errors
/// Always, until this command is written.
pub fn run(args: Args) -> Result<()> {
    Err(anyhow!("`odh eval` is not written yet (it was asked for {args:?})"))
}
