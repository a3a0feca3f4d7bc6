//! Evaluation: one pass over the validation pictures, PASCAL VOC and COCO figures, and some pictures with what was found.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result};
use tch::Device;

use super::eval_report::{EvalReport, EvalRun};
use crate::config::label_map::LabelMap;
use crate::data::image::RgbImage;
use crate::data::loader::{Classes, LoaderOptions, OnePass};
use crate::data::{draw, encode, image};
use crate::formats::events::EventWriter;
use crate::interrupt;
use crate::metrics::coco::CocoEvaluator;
use crate::metrics::matching::{PictureDetections, PictureGroundtruth};
use crate::metrics::pascal::PascalEvaluator;
use crate::models::DetectionModel;
use crate::models::pictures::Pictures;
use crate::net::variables::Variables;

/// What to evaluate on, and how.
#[derive(Debug, Clone)]
pub struct EvalOptions<'a> {
    /// Named in the report.
    pub model_name: &'a str,
    pub label_map: &'a LabelMap,
    /// Record files, shard sets or globs.
    pub records: Vec<PathBuf>,
    /// So many pictures are drawn on.
    pub num_visualizations: usize,
    /// Least score of a box that is drawn.
    pub min_score: f32,
    /// Loader threads; 0 for one less than the machine has cores.
    pub num_threads: usize,
}

/// What came of it.
#[derive(Debug)]
pub struct Evaluated {
    pub report: EvalReport,
    /// Pictures with boxes drawn on them.
    pub drawn: Vec<RgbImage>,
}

/// Looks at every validation picture with the variables' present values.
///
/// * `checkpoint`, `step`: named in the report.
///
/// # Errors
/// If a record cannot be used or the model fails; exit code 130 after Ctrl-C.
pub fn evaluate(
    model: &dyn DetectionModel,
    variables: &Variables,
    options: &EvalOptions,
    (checkpoint, step): (&Path, u64),
) -> Result<Evaluated> {
    let start = Instant::now();
    let device = variables.device();
    let network = model.freeze(variables)?;
    let batch_size = match (model.resizer().fixed_size(), device) {
        // Pictures of different sizes.
        (None, _) => 1,
        // A CPU gains nothing from larger batches, and its caches lose.
        (Some(_), Device::Cpu) => 4,
        (Some(_), _) => 32,
    };
    let mut loading = LoaderOptions::new(options.records.clone(), batch_size, model.resizer(), classes(model, options.label_map));
    loading.keep_sources = options.num_visualizations;
    loading.num_threads = options.num_threads;
    let pass = OnePass::new(loading, None)?;
    let mut pascal = PascalEvaluator::new(model.num_classes());
    let mut coco = CocoEvaluator::new(1..=model.num_classes() as u32);
    let mut run = EvalRun {
        model: options.model_name.to_string(),
        checkpoint: checkpoint.display().to_string(),
        step,
        device: super::device::name(device),
        ..EvalRun::default()
    };
    let mut drawn = Vec::new();
    for batch in pass {
        interrupt::check(|| format!("stopped while evaluating `{}`", checkpoint.display()))?;
        let batch = batch?;
        let pictures = Pictures::new(&batch.images, (batch.height, batch.width), &batch.sizes, device)?;
        let found = network.detect(&pictures)?;
        for (i, detections) in found.iter().enumerate() {
            let (height, width) = batch.source_sizes[i];
            let groundtruth = PictureGroundtruth::from_normalized(&batch.groundtruth[i], height, width);
            let in_pixels = PictureDetections::from_normalized(detections, height, width);
            run.groundtruth_boxes += groundtruth.boxes_px.len();
            run.detections += in_pixels.boxes_px.len();
            pascal.add(&groundtruth, &in_pixels);
            coco.add(run.pictures, &groundtruth, &in_pixels);
            run.pictures += 1;
            if let Some(mut picture) = batch.sources[i].clone() {
                let label = |class: usize| options.label_map.label(class as u32 + 1);
                draw::draw(&mut picture, &draw::annotations(detections, options.min_score, label));
                drawn.push(picture);
            }
        }
    }
    run.seconds = start.elapsed().as_secs_f64();
    let report = EvalReport::new(run, options.label_map, &pascal.result(), &coco.result());
    Ok(Evaluated { report, drawn })
}

/// Writes an evaluation: scalars and pictures for TensorBoard, figures as JSON; returns the JSON file's path.
///
/// # Errors
/// If writing fails.
pub fn write(evaluated: &Evaluated, folder: &Path, events: &mut EventWriter) -> Result<PathBuf> {
    let step = i64::try_from(evaluated.report.run.step).context("step")?;
    for (tag, value) in evaluated.report.scalars() {
        events.scalar(step, &tag, value as f32)?;
    }
    for (i, picture) in evaluated.drawn.iter().enumerate() {
        let png = encode::encode(picture, image::Format::Png)?;
        events.image(step, &format!("image-{i}"), picture.width, picture.height, png)?;
    }
    events.flush()?;
    evaluated.report.write(folder)
}

/// What the records' classes may be.
pub fn classes(model: &dyn DetectionModel, label_map: &LabelMap) -> Classes {
    // Records may have either; a class's own name comes before another's name for display.
    let shown = label_map.items.iter().filter_map(|item| Some((item.display_name.clone()?, item.id)));
    let ids = shown.chain(label_map.items.iter().map(|item| (item.name.clone(), item.id))).collect();
    Classes { count: model.num_classes(), ids }
}
