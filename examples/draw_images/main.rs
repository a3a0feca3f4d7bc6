//! Draws the sample pictures: pandas, raccoons and pomeranians on busy backgrounds, with labelImg's XML beside each JPEG.
//!
//! `images/` holds the set of the default seed, to the byte; another seed gives pictures that no training has seen:
//!
//! ```text
//! cargo run --release --example draw_images -- --seed 7 --count 40 --output holdout
//! ```

mod animals;
mod canvas;
mod chance;
mod picture;
mod scenery;

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Parser;

/// Draw labelled sample pictures
#[derive(Parser)]
struct Args {
    /// Which set to draw: one seed always gives the same pictures
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How many pictures
    #[arg(long, default_value_t = 60)]
    count: u64,
    /// The folder to write into; files of the same names are replaced
    #[arg(long, default_value = "images")]
    output: PathBuf,
}

fn main() -> Result<()> {
    let Args { seed, count, output } = Args::parse();
    fs::create_dir_all(&output).with_context(|| format!("cannot make the folder {}", output.display()))?;
    let folder = output.file_name().map_or_else(|| "images".into(), |name| name.to_string_lossy().into_owned());
    let (mut objects, mut bytes) = (0, 0);
    for index in 1..=count {
        let picture = picture::draw(seed, index)?;
        let write = |extension: &str, content: &[u8]| {
            let path = output.join(&picture.name).with_extension(extension);
            fs::write(&path, content).with_context(|| format!("cannot write {}", path.display()))
        };
        write("jpg", &picture.jpeg)?;
        write("xml", picture::annotation(&picture, &folder).as_bytes())?;
        objects += picture.labels.len();
        bytes += picture.jpeg.len();
    }
    println!("{count} pictures, {objects} objects, {:.1} MB in {}", bytes as f64 / 1e6, output.display());
    Ok(())
}
