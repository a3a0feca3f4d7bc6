//! `odh detect`: boxes on pictures.

use std::path::PathBuf;

use anyhow::{Result, anyhow};

const EXAMPLE: &str = "\
Example:
  odh detect photo.jpg --min_score 0.5";

/// What `odh detect` is told.
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLE)]
pub struct Args {
    /// Pictures, folders or globs
    #[arg(required = true)]
    paths: Vec<PathBuf>,
    /// Export folder, train folder, or name of a zoo model
    #[arg(short = 'm', long = "model", value_name = "MODEL")]
    model: Option<String>,
    /// Least score of a box that is drawn
    #[arg(long = "min_score", value_name = "SCORE", default_value = "0.5")]
    min_score: f32,
    /// Folder for the annotated pictures
    #[arg(long = "output_dir", value_name = "FOLDER", default_value = "./detections")]
    output_dir: PathBuf,
}

/// Runs `odh detect`.
///
/// # Errors
/// Always, until this command is written.
pub fn run(args: Args) -> Result<()> {
    Err(anyhow!("`odh detect` is not written yet (it was asked for {args:?})"))
}
