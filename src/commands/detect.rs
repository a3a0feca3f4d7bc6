//! `odh detect`: boxes on pictures.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use indicatif::{ProgressBar, ProgressStyle};

use super::chosen::{Chosen, Wanted};
use super::zoo_args::ZooArgs;
use crate::config::label_map::LabelMap;
use crate::data::draw::Annotation;
use crate::data::inputs::{self, Input};
use crate::engine::detect::{DetectOptions, DetectSummary, PictureDetector, detect_all};
use crate::engine::device;
use crate::engine::exported::{ExportedDetector, ExportedOptions};
use crate::engine::loaded::{self, ModelDetector};
use crate::engine::model_files::{self, Search};
use crate::runtime::file_kind::{self, Kind};
use crate::runtime::onnx::LibrarySearch;
use crate::wording::{plural, printable};
use crate::{exit, interrupt, logging, outln};

const EXAMPLE: &str = "\
Examples:
  odh detect photo.jpg                             # with the model in export_dir/ or train_dir/
  odh detect photos/ 'more/*.png' --min_score 0.3
  odh detect photo.jpg -m ssd_mobilenet_v1_coco    # your training of it, or else the zoo's
  odh detect photo.jpg --checkpoint train_dir/MODEL/model.ckpt-2000
  odh detect photo.jpg -m model.torchscript.pt     # an exported file, which needs nothing beside it
  odh detect photo.jpg -m model.onnx               # the same in onnxruntime

onnxruntime's library is looked for beside odh, where the system has its libraries, and in the Python that python3 or $ODH_PYTHON names \
(`pip install onnxruntime`), unless --onnxruntime or $ORT_DYLIB_PATH names it; 1.17 or later will do. ONNX files run on the CPU.

Annotated pictures go into --output_dir under their own names (and the names of the folders below the one given), with detections.json \
and detections.csv, which also have weaker detections, down to a score of 0.2. Pictures are looked at as they are stored: like TensorFlow, \
odh does not turn them as EXIF says. A damaged picture is named and passed over, as is one that the model fails on (if it fails on the \
first three, odh stops), and the exit code is then 1.";

/// What `odh detect` is told.
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLE)]
pub struct Args {
    /// Pictures, folders or globs
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// A model's folder, its name (zoo folder, name in the table, unique prefix), or an exported TorchScript or ONNX file [default: the
    /// only model there is]
    #[arg(short = 'm', long = "model", value_name = "MODEL")]
    model: Option<String>,
    /// Checkpoint to use in place of the latest (PREFIX of PREFIX.index); pipeline.config is beside it
    #[arg(long = "checkpoint", value_name = "PREFIX", conflicts_with = "model")]
    checkpoint: Option<PathBuf>,
    /// Folder of exported models, looked in first [default: ./export_dir, unless --train_dir is given]
    #[arg(long = "export_dir", value_name = "FOLDER")]
    export_dir: Option<PathBuf>,
    /// Folder of trained models, looked in next [default: ./train_dir, unless --export_dir is given]
    #[arg(long = "train_dir", value_name = "FOLDER")]
    train_dir: Option<PathBuf>,
    /// Label map [default: the model's own]
    #[arg(short = 'l', long = "label_file", value_name = "FILE")]
    label_file: Option<PathBuf>,
    /// Least score of a box that is drawn
    #[arg(long = "min_score", value_name = "SCORE", default_value = "0.5", value_parser = score)]
    min_score: f32,
    /// Folder for the annotated pictures, detections.json and detections.csv
    #[arg(long = "output_dir", value_name = "FOLDER", default_value = "./detections")]
    output_dir: PathBuf,
    /// auto, cpu, cuda or cuda:N
    #[arg(long = "device", value_name = "DEVICE", default_value = "auto")]
    device: String,
    /// onnxruntime's library, or the folder that has it, to run an ONNX file with [default: $ORT_DYLIB_PATH, or found]
    #[arg(long = "onnxruntime", value_name = "PATH")]
    onnxruntime: Option<PathBuf>,
    #[command(flatten)]
    zoo: ZooArgs,
}

fn score(typed: &str) -> Result<f32, String> {
    match typed.trim().parse::<f32>() {
        Ok(score) if (0.0..=1.0).contains(&score) => Ok(score),
        _ => Err("it must be a number from 0 to 1".to_string()),
    }
}

/// Runs `odh detect`.
///
/// # Errors
/// If an argument means no picture, the model cannot be loaded or run, results cannot be written, or (after all others were
/// looked at) a picture is damaged.
pub fn run(args: Args) -> Result<()> {
    // Pictures first: a mistyped path should not wait for a model to load.
    let inputs = inputs::find(&args.paths, Some(&args.output_dir))?;
    let mut detector = load(&args)?;
    interrupt::watch();
    let options = DetectOptions { min_score: args.min_score, output: args.output_dir };
    tracing::info!("Detect start [ pictures : {}, min score : {} ]", inputs.len(), options.min_score);
    let bar = progress(inputs.len());
    let summary = detect_all(detector.as_mut(), &inputs, &options, |input, found| {
        if let Some(found) = found {
            outln!("{}", line(input, found));
        }
        bar.inc(1);
    });
    bar.finish_and_clear();
    report(&summary?, &options, inputs.len())
}

/// Finds and loads the model.
fn load(args: &Args) -> Result<Box<dyn PictureDetector>> {
    if let Some(file) = args.model.as_deref().filter(|typed| file_kind::is_file_name(typed)) {
        return Ok(Box::new(load_file(args, Path::new(file))?));
    }
    let device = device::choose(&args.device)?;
    for (flag, folder) in [("--export_dir", &args.export_dir), ("--train_dir", &args.train_dir)] {
        model_files::ensure_folder(flag, folder.as_deref())?;
    }
    let (export, train) = (args.export_dir.clone(), args.train_dir.clone());
    // A folder that is named is meant: the other's default is then not looked in.
    let roots = match (export, train) {
        (None, None) => vec![PathBuf::from("./export_dir"), PathBuf::from("./train_dir")],
        (export, train) => export.into_iter().chain(train).collect(),
    };
    let chosen = Chosen::find(&Wanted {
        search: Search { model: args.model.as_deref(), checkpoint: args.checkpoint.as_deref(), pipeline_config: None, roots },
        best: false,
        label_file: args.label_file.as_deref(),
        zoo: &args.zoo,
    })?;
    let loaded = loaded::load(&chosen.config, &chosen.checkpoint, device)?;
    Ok(Box::new(ModelDetector::new(&loaded, chosen.label_map)?))
}

/// Loads an exported file.
fn load_file(args: &Args, file: &Path) -> Result<ExportedDetector> {
    let label_map = args.label_file.as_deref().map(LabelMap::load).transpose()?;
    let on_cpu = ["auto", "cpu"].iter().any(|name| args.device.eq_ignore_ascii_case(name));
    let onnx = file_kind::of(file)? == Kind::Onnx;
    if onnx && !on_cpu {
        return Err(exit::usage(format!(
            "--device `{}`: odh runs ONNX files on the CPU; model.torchscript.pt runs on a GPU",
            args.device
        )));
    }
    let device = device::choose(if onnx { "cpu" } else { &args.device })?;
    let onnxruntime = LibrarySearch::new(args.onnxruntime.clone(), None);
    ExportedDetector::open(file, ExportedOptions { label_map, device, onnxruntime: &onnxruntime })
}

fn progress(pictures: usize) -> ProgressBar {
    if pictures < 2 {
        return ProgressBar::hidden();
    }
    let bar = logging::progress().add(ProgressBar::new(pictures as u64));
    if let Ok(style) = ProgressStyle::with_template("{pos}/{len} pictures {wide_bar} {per_sec}, {eta} left") {
        bar.set_style(style);
    }
    bar
}

/// `a/b.jpg: raccoon: 97%, raccoon: 61%`.
fn line(input: &Input, found: &[Annotation]) -> String {
    let labels: Vec<String> = found.iter().map(|a| printable(&a.label)).collect();
    format!("{}: {}", printable(&input.name), if labels.is_empty() { "nothing".to_string() } else { labels.join(", ") })
}

/// Says what came of it, on the terminal and in the log.
fn report(summary: &DetectSummary, options: &DetectOptions, asked: usize) -> Result<()> {
    let seconds = summary.elapsed.as_secs_f64();
    let text = format!(
        "{}, {} of at least {} in {seconds:.1} s ({:.1} pictures/s, the model alone {:.1}) -> {}",
        plural(summary.pictures, "picture"),
        plural(summary.boxes, "box"),
        options.min_score,
        summary.pictures as f64 / seconds.max(1e-9),
        summary.pictures as f64 / summary.model.as_secs_f64().max(1e-9),
        options.output.display()
    );
    tracing::info!("Detect Success [ {text} ]");
    outln!("{text}");
    if summary.interrupted {
        return Err(exit::interrupted(format!("stopped after {} of {asked} pictures; what was found is kept", summary.pictures)));
    }
    if summary.faulty > 0 {
        bail!("{} of {asked} pictures could not be looked at or written (each is named above)", summary.faulty);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pictures_name_cannot_break_its_line() {
        let input = Input { path: "a.jpg".into(), place: "a.jpg".into(), name: "new\nline.jpg".into() };
        assert_eq!(line(&input, &[]), "new\\nline.jpg: nothing");
    }

    #[test]
    fn scores_are_from_0_to_1() {
        for (typed, value) in [("0.5", 0.5), ("0", 0.0), ("1", 1.0), (" .25 ", 0.25)] {
            assert_eq!(score(typed), Ok(value), "{typed}");
        }
        for typed in ["50", "-0.1", "nan", "half", ""] {
            assert!(score(typed).is_err(), "{typed}");
        }
    }

    #[test]
    fn damaged_pictures_are_an_error_at_the_end_and_ctrl_c_is_130() {
        let options = DetectOptions { min_score: 0.5, output: "out".into() };
        let mut summary = DetectSummary { pictures: 3, ..Default::default() };
        assert!(report(&summary, &options, 3).is_ok());
        summary.faulty = 1;
        let error = report(&summary, &options, 4).unwrap_err();
        assert!(error.to_string().contains("1 of 4"), "{error}");
        assert_eq!(exit::code(&error), 1);
        summary.interrupted = true;
        assert_eq!(exit::code(&report(&summary, &options, 9).unwrap_err()), 130);
    }
}
