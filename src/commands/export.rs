//! `odh export`: a trained model becomes files that other programs run, with what belongs to them.

mod verify;

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail};

use super::chosen::{Chosen, Wanted};
use super::zoo_args::ZooArgs;
use crate::config::pipeline;
use crate::data::{inputs, loader};
use crate::engine::model_files::{self, Search};
use crate::export::folder::{self, ExportInput, Exported, Format, Verify};
use crate::runtime::onnx::LibrarySearch;
use crate::runtime::onnxruntime;
use crate::{exit, interrupt, outln};

const EXAMPLE: &str = "\
Examples:
  odh export                                       # the model in train_dir/, its latest checkpoint
  odh export -m ssd_mobilenet_v1_coco --best       # the checkpoint with the best mAP
  odh export --checkpoint train_dir/MODEL/model.ckpt-2000 --output_dir my_export
  odh export --format onnx --format frozen_graph   # only these
  odh export --verify                              # and prove that they find what the model finds

export_dir/MODEL/ then has frozen_inference_graph.pb, saved_model/, model.onnx, model.torchscript.pt, model.ckpt.*, checkpoint, \
pipeline.config, label_map.pbtxt, labels.txt (line i names class i) and export.json. An earlier export there is replaced, but only once \
the new one is complete.";

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
    /// Folder of trained models [default: ./train_dir, then ./export_dir]
    #[arg(long = "train_dir", value_name = "FOLDER")]
    train_dir: Option<PathBuf>,
    /// Folder to write [default: ./export_dir/MODEL]
    #[arg(long = "output_dir", value_name = "FOLDER")]
    output_dir: Option<PathBuf>,
    /// What to write: frozen_graph, saved_model, onnx or torchscript; several with commas [default: all]
    #[arg(long = "format", value_name = "FORMAT", value_delimiter = ',', value_parser = format)]
    formats: Vec<Format>,
    /// Run every file that was written, on pictures of the validation split, and compare with the model; a drift is exit code 3
    #[arg(long = "verify")]
    verify: bool,
    /// Pictures, folders or globs to verify on, in place of the validation split
    #[arg(long = "verify_pictures", value_name = "PATH", requires = "verify", conflicts_with = "validate_record")]
    verify_pictures: Vec<PathBuf>,
    /// Validation records to verify on [default: the config's]
    #[arg(long = "validate_record", value_name = "FILE", requires = "verify")]
    validate_record: Option<PathBuf>,
    /// How many pictures to verify on, from the first; 0 for all
    #[arg(long = "verify_count", value_name = "COUNT", default_value = "20", requires = "verify")]
    verify_count: usize,
    /// Largest difference in a score, or in a box as a share of the picture's side, that is no drift
    #[arg(long = "tolerance", value_name = "SHARE", default_value = "1e-4", requires = "verify", value_parser = tolerance)]
    tolerance: f32,
    /// Python that has TensorFlow or onnxruntime, to verify their files with [default: $ODH_PYTHON, or python3]
    #[arg(long = "python", value_name = "PROGRAM", requires = "verify")]
    python: Option<PathBuf>,
    /// onnxruntime's library, or the folder that has it, to verify model.onnx with [default: $ORT_DYLIB_PATH, or found]
    #[arg(long = "onnxruntime", value_name = "PATH", requires = "verify")]
    onnxruntime: Option<PathBuf>,
    #[command(flatten)]
    zoo: ZooArgs,
}

/// Runs `odh export`.
///
/// # Errors
/// If no model is found or several are, its files do not fit together, or the export cannot be written.
pub fn run(args: Args) -> Result<()> {
    let runtimes = LibrarySearch::new(args.onnxruntime.clone(), args.python.clone());
    if runtimes.library.is_some() {
        // What was typed is wrong now, not after minutes.
        onnxruntime::load(&runtimes)?;
    }
    model_files::ensure_folder("--train_dir", args.train_dir.as_deref())?;
    let chosen = Chosen::find(&Wanted {
        search: Search {
            model: args.model.as_deref(),
            checkpoint: args.checkpoint.as_deref(),
            pipeline_config: args.pipeline_config.as_deref(),
            roots: model_files::trained_roots(args.train_dir.as_deref()),
        },
        best: args.best,
        label_file: args.label_file.as_deref(),
        zoo: &args.zoo,
    })?;
    // Not before: a download that Ctrl-C cuts short is gone on with, and needs no saving.
    interrupt::watch();
    for note in pipeline::check_supported(&chosen.config).with_context(|| chosen.source.clone())? {
        tracing::info!("{}: {note}", chosen.source);
    }
    let records = args.validate_record.clone().map_or_else(|| pipeline::eval_records(&chosen.config), |path| vec![path]);
    // What is to be verified on is looked for now too, not after minutes.
    let pictures = match args.verify_pictures.is_empty() {
        true => vec![],
        false => inputs::find(&args.verify_pictures, None)?.into_iter().map(|input| input.path).collect(),
    };
    let verified_on = if pictures.is_empty() { &records } else { &args.verify_pictures };
    let source = verified_on.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ");
    if args.verify && pictures.is_empty() {
        loader::records_exist(&records).context("there is nothing to verify on; --verify_pictures names pictures")?;
    }
    let output_dir = args.output_dir.clone().unwrap_or_else(|| Path::new("./export_dir").join(&chosen.name));
    let name = chosen.name.to_string_lossy();
    let input = ExportInput {
        model: &name,
        config: &chosen.config,
        label_map: &chosen.label_map,
        checkpoint: &chosen.checkpoint,
        output_dir: &output_dir,
        formats: &args.formats,
    };
    if !args.verify {
        write(&input, None)?;
        return Ok(());
    }
    let options = verify::Options { records, pictures, source, count: args.verify_count, tolerance: args.tolerance, runtimes };
    let exported = write(&input, Some(&mut |folder| verify::verify(&input, &options, folder)))?;
    let Some(parity) = exported.parity else { bail!("nothing was verified; this is a bug in odh") };
    verify::report(&parity);
    let drifted: Vec<&str> = parity.drifted().iter().map(|f| f.format).collect();
    if !drifted.is_empty() {
        return Err(exit::drift(format!(
            "the export does not find what the model finds ({}; tolerance {:e}): it is in `{}` to be looked at, and `{}` is as it was",
            drifted.join(", "),
            parity.tolerance,
            exported.folder.display(),
            output_dir.display()
        )));
    }
    if parity.ran() && !parity.compared() {
        tracing::warn!(
            "the model finds nothing on these pictures, so that nothing was compared and the files are not proven equal; \
             --verify_pictures names others"
        );
    }
    if !parity.ran() {
        bail!(
            "the export is in `{}`, but nothing of it could be run here: see above; --python names a Python that has TensorFlow or \
             onnxruntime",
            exported.folder.display()
        );
    }
    Ok(())
}

/// What is to be no drift.
fn tolerance(typed: &str) -> Result<f32, String> {
    match typed.trim().parse::<f32>() {
        Ok(share) if share >= 0.0 && share.is_finite() => Ok(share),
        _ => Err("it must be a number from 0 on, such as 1e-4".to_string()),
    }
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
pub fn write(input: &ExportInput, verify: Option<Verify>) -> Result<Exported> {
    let start = Instant::now();
    tracing::info!("Export start [ checkpoint : {}, folder : {} ]", input.checkpoint.display(), input.output_dir.display());
    let exported = folder::run(input, verify)?;
    let step = exported.step.map_or_else(|| "no step".to_string(), |step| format!("step {step}"));
    let models: Vec<String> =
        exported.models.iter().map(|(path, bytes)| format!("{} : {:.1} MB", path.display(), *bytes as f64 / 1e6)).collect();
    let drifted = exported.parity.as_ref().is_some_and(|parity| !parity.drifted().is_empty());
    let outcome = if drifted { "drifted" } else { "Success" };
    tracing::info!("Export {outcome} [ {step}, {}, {:.1} s ]", models.join(", "), start.elapsed().as_secs_f64());
    for (path, _) in exported.models.iter().filter(|_| !drifted) {
        outln!("exported {} ({step}) -> {}", input.checkpoint.display(), path.display());
    }
    Ok(exported)
}
