//! `odh export --verify`: every file that was written is run beside the model that it was made from, and what they find compared.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use tch::Device;

use crate::config::label_map::LabelMap;
use crate::data::image;
use crate::data::loader::{LoaderOptions, OnePass};
use crate::detection::boxes::Detections;
use crate::engine::detect::PictureDetector;
use crate::engine::eval;
use crate::engine::exported::{ExportedDetector, ExportedOptions};
use crate::engine::loaded::{self, LoadedModel, ModelDetector};
use crate::export::folder::{ExportInput, Format};
use crate::export::parity::{Difference, FormatParity, MIN_SCORE, Outcome, Parity, Run};
use crate::export::runtimes::{Attempt, Found, Pictures, run_in_python};
use crate::metrics::matching::{PictureDetections, PictureGroundtruth};
use crate::metrics::pascal::PascalEvaluator;
use crate::runtime::onnx::LibrarySearch;
use crate::runtime::onnxruntime;
use crate::wording::plural;
use crate::{interrupt, outln};

/// What to verify with.
#[derive(Debug, Clone)]
pub struct Options {
    /// Picture files; where there are none, those of the `records`.
    pub pictures: Vec<PathBuf>,
    /// Where they are from, as people are told.
    pub source: String,
    pub records: Vec<PathBuf>,
    /// At most so many; 0 for all.
    pub count: usize,
    pub tolerance: f32,
    /// Where onnxruntime's library is looked for, and the Python that has TensorFlow and onnxruntime, or one, or neither.
    pub runtimes: LibrarySearch,
}

/// Pictures, and what odh finds on them.
struct Reference {
    pictures: Pictures,
    expected: Vec<Detections>,
    /// Of each picture; none where the pictures are no records.
    groundtruth: Option<Vec<PictureGroundtruth>>,
    num_classes: usize,
    source: String,
}

/// Runs what lies in `folder`.
///
/// # Errors
/// If there are no pictures, the model fails, or Ctrl-C was pressed. A drift is none: the report tells it.
pub fn verify(input: &ExportInput, options: &Options, folder: &Path) -> Result<Parity> {
    // The formats run on the CPU: so does what they are compared with.
    let loaded = loaded::load(input.config, input.checkpoint, Device::Cpu)?;
    let reference = Reference::new(&loaded, input.label_map, options)?;
    drop(loaded);
    let mut attempts = Vec::new();
    for (name, format, file) in Format::ALL.into_iter().filter(|&(_, format, _)| input.writes(format)) {
        attempts.push((name, file.to_string(), attempt(format, &folder.join(file), &reference, options)?));
    }
    let mut others = Others { input, detector: None, found: HashMap::new() };
    let mut formats = Vec::new();
    for (format, file, attempt) in attempts {
        let outcome = match attempt {
            Attempt::Unavailable(reason) => Outcome::NotRun { reason },
            Attempt::Failed(reason) => Outcome::Failed { reason },
            Attempt::Ran(found) => Outcome::Ran(reference.compare(&found, options.tolerance, &mut others)?),
        };
        formats.push(FormatParity { format, file, outcome });
    }
    Ok(Parity {
        pictures: reference.pictures.len(),
        map_at_50: reference.map(&reference.expected),
        source: reference.source,
        tolerance: options.tolerance,
        min_score: MIN_SCORE,
        formats,
    })
}

fn attempt(format: Format, file: &Path, reference: &Reference, options: &Options) -> Result<Attempt> {
    let in_python = || run_in_python(&options.runtimes.python, format, file, &reference.pictures);
    let attempt = match format {
        Format::TorchScript => run_here(file, reference, options)?,
        Format::Onnx => match onnxruntime::load(&options.runtimes) {
            Ok(_) => run_here(file, reference, options)?,
            Err(missing) => match in_python()? {
                Attempt::Unavailable(reason) => Attempt::Unavailable(format!("{missing:#}; {reason}")),
                attempt => attempt,
            },
        },
        Format::FrozenGraph | Format::SavedModel => in_python()?,
    };
    // Ctrl-C is no failure of the file's.
    stop_if_asked()?;
    Ok(attempt)
}

/// Runs a TorchScript or an ONNX file in this process, as `odh detect --model FILE` does.
fn run_here(file: &Path, reference: &Reference, options: &Options) -> Result<Attempt> {
    let how = ExportedOptions { label_map: None, device: Device::Cpu, onnxruntime: &options.runtimes };
    let ran = ExportedDetector::open(file, how).and_then(|mut detector| {
        let (detections, seconds) = detect(&mut detector, &reference.pictures)?;
        Ok(Found { runtime: detector.runtime()?, detections, seconds })
    });
    Ok(ran.map_or_else(|error| Attempt::Failed(format!("{error:#}")), Attempt::Ran))
}

impl Reference {
    fn new(loaded: &LoadedModel, label_map: &LabelMap, options: &Options) -> Result<Self> {
        let mut pictures = Pictures::new()?;
        let limit = if options.count == 0 { usize::MAX } else { options.count };
        let source = options.source.clone();
        let groundtruth = if options.pictures.is_empty() {
            Some(from_records(loaded, label_map, &options.records, limit, &mut pictures)?)
        } else {
            for path in options.pictures.iter().take(limit) {
                let bytes = std::fs::read(path).with_context(|| format!("cannot read `{}`", path.display()))?;
                pictures.add(&image::decode(&bytes).with_context(|| format!("`{}`", path.display()))?)?;
            }
            None
        };
        ensure!(!pictures.is_empty(), "there are no pictures in {source} to verify the export on");
        let mut detector = ModelDetector::new(loaded, label_map.clone())?;
        let expected = detect(&mut detector, &pictures)?.0;
        Ok(Self { pictures, expected, groundtruth, num_classes: loaded.model.num_classes(), source })
    }

    /// * `others`: asked where a picture differs, until one differs for no reason of roundings.
    fn compare(&self, found: &Found, tolerance: f32, others: &mut Others) -> Result<Run> {
        let mut difference = Difference::default();
        for (i, (expected, found)) in self.expected.iter().zip(&found.detections).enumerate() {
            let mut of_picture = Difference::between(expected, found, tolerance);
            if difference.within(tolerance) && !of_picture.within(tolerance) {
                let others = others.of(i, &self.pictures)?;
                let settled = Difference::settled(expected, found, others, tolerance);
                if settled.within(tolerance) {
                    of_picture = settled;
                } else if !others.is_empty() && self.pictures.read(i)?.has_one_colour() {
                    of_picture = Difference::undecided(expected);
                }
            }
            difference = difference.and(of_picture);
        }
        Ok(Run {
            runtime: found.runtime.clone(),
            difference,
            map_at_50: self.map(&found.detections),
            seconds_per_picture: median(&found.seconds),
            equal: difference.within(tolerance),
        })
    }

    /// The mAP@0.5 of detections, where there is groundtruth.
    fn map(&self, detections: &[Detections]) -> Option<f64> {
        let mut pascal = PascalEvaluator::new(self.num_classes);
        for ((groundtruth, found), size) in self.groundtruth.as_ref()?.iter().zip(detections).zip(self.pictures.sizes()) {
            pascal.add(groundtruth, &PictureDetections::from_normalized(found, size.0, size.1));
        }
        Some(pascal.result().map).filter(|map| !map.is_nan())
    }
}

/// What the model finds when sums are rounded otherwise, of the pictures for which it was asked.
struct Others<'a> {
    input: &'a ExportInput<'a>,
    detector: Option<ModelDetector>,
    found: HashMap<usize, Vec<Detections>>,
}

impl Others<'_> {
    fn of(&mut self, i: usize, pictures: &Pictures) -> Result<&[Detections]> {
        if !self.found.contains_key(&i) {
            stop_if_asked()?;
            if self.detector.is_none() {
                let loaded = loaded::load(self.input.config, self.input.checkpoint, Device::Cpu)?;
                self.detector = Some(ModelDetector::new(&loaded, self.input.label_map.clone())?);
            }
            let detector = self.detector.as_ref().context("it was just made")?;
            self.found.insert(i, detector.rounded_otherwise(&pictures.read(i)?)?);
        }
        Ok(&self.found[&i])
    }
}

/// The first pictures of the records, with what is on them.
fn from_records(
    loaded: &LoadedModel,
    label_map: &LabelMap,
    records: &[PathBuf],
    limit: usize,
    pictures: &mut Pictures,
) -> Result<Vec<PictureGroundtruth>> {
    let model = loaded.model.as_ref();
    let mut loading = LoaderOptions::new(records.to_vec(), 1, model.resizer(), eval::classes(model, label_map));
    loading.keep_sources = limit;
    let pass = OnePass::new(loading, Some(limit)).context(
        "--verify compares on the validation pictures; make them with `odh tfgen`, or name others with --verify_pictures or \
         --validate_record",
    )?;
    let mut all = Vec::new();
    for batch in pass {
        let batch = batch?;
        stop_if_asked()?;
        for (i, source) in batch.sources.iter().enumerate() {
            let (height, width) = batch.source_sizes[i];
            pictures.add(source.as_ref().context("a picture was not kept; this is a bug in odh")?)?;
            all.push(PictureGroundtruth::from_normalized(&batch.groundtruth[i], height, width));
        }
    }
    Ok(all)
}

/// What a detector finds on every picture, and how long it takes for each.
fn detect(detector: &mut dyn PictureDetector, pictures: &Pictures) -> Result<(Vec<Detections>, Vec<f64>)> {
    let (mut all, mut seconds) = (Vec::new(), Vec::new());
    for i in 0..pictures.len() {
        stop_if_asked()?;
        let picture = pictures.read(i)?;
        let start = Instant::now();
        all.push(detector.detect(&picture)?);
        seconds.push(start.elapsed().as_secs_f64());
    }
    Ok((all, seconds))
}

fn stop_if_asked() -> Result<()> {
    interrupt::check(|| "stopped while the export was verified; an earlier one is as it was".to_string())
}

fn median(seconds: &[f64]) -> f64 {
    let mut sorted = seconds.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Says what was run and what was not, on the terminal and in the log.
pub fn report(parity: &Parity) {
    let map = |map: Option<f64>| map.map_or_else(|| "-".to_string(), |map| format!("{map:.4}"));
    outln!(
        "verified on {} of {}, detections over {}, tolerance {:e}, odh's own mAP@0.5 {}:",
        plural(parity.pictures, "picture"),
        parity.source,
        parity.min_score,
        parity.tolerance,
        map(parity.map_at_50)
    );
    outln!(
        "  {:13} {:27} {:>10} {:>8} {:>9} {:>9} {:>8} {:>10}",
        "format",
        "run by",
        "detections",
        "unpaired",
        "score",
        "box",
        "mAP@0.5",
        "s/picture"
    );
    for FormatParity { format, outcome, .. } in &parity.formats {
        match outcome {
            Outcome::NotRun { reason } => {
                outln!("  {format:13} NOT RUN: {reason}");
                tracing::warn!("Verify [ {format} : not run, {reason} ]");
            }
            Outcome::Failed { reason } => {
                outln!("  {format:13} FAILED: {reason}");
                tracing::error!("Verify [ {format} : failed, {reason} ]");
            }
            Outcome::Ran(run) => {
                let Difference { score, bbox, detections, unpaired, moving, undecided } = run.difference;
                outln!(
                    "  {format:13} {:27} {detections:10} {unpaired:8} {score:9.1e} {bbox:9.1e} {:>8} {:10.3}{}",
                    run.runtime,
                    map(run.map_at_50),
                    run.seconds_per_picture,
                    if run.equal { "" } else { "  DRIFT" }
                );
                if undecided > 0 {
                    outln!(
                        "  {:13} {undecided} detections on pictures of one colour were not compared: of many equal anchors the last bit says \
                         which are found",
                        ""
                    );
                }
                if moving > 0 {
                    outln!(
                        "  {:13} {moving} detections, as on a picture's edge, are as the model has them when its proposals are rounded otherwise",
                        ""
                    );
                }
                tracing::info!(
                    "Verify [ {format} : {}, {detections} detections, {unpaired} unpaired, {moving} moving, {undecided} undecided, score {score:.1e}, box {bbox:.1e}, mAP@0.5 {} ]",
                    run.runtime,
                    map(run.map_at_50)
                );
            }
        }
    }
}
