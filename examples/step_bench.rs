//! Times training steps as the reference's `tf/run.py train` does, to be run beside it: the same weights, picture and groundtruth.
//!
//! ```text
//! cargo run --release --example step_bench -- ../shared/reference ssd_mobilenet_v1_coco_2017_11_17 8 [runs 5] [threads 2]
//! ```
//!
//! One step is all that `odh train` does with a decoded batch: resizing, forward and backward pass, losses, update, moving averages. Prints
//! seconds a step, processor seconds a step, and each step's loss with regularization.

#[allow(dead_code)]
#[path = "../tests/common/reference.rs"]
mod reference;

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};
use odh::config::pipeline;
use odh::data::image::decode_accurate;
use odh::detection::boxes::Groundtruth;
use odh::engine::optimizer::Optimizer;
use odh::models::pictures::Pictures;
use odh::models::{self, StepContext};
use odh::net::exec::apply_moving_updates;
use odh::net::shim::{self, Preloaded};
use odh::net::variables::Variables;
use odh::proto::object_detection::protos as pb;
use reference::{Golden, set_regenerated_weights};
use tch::Device;

/// The classes of the reference's training graphs.
const CLASSES: i32 = 5;

fn main() -> Result<()> {
    shim::restart(Preloaded::take())?;
    let args: Vec<String> = std::env::args().skip(1).collect();
    let usage = "usage: step_bench REFERENCE_FOLDER MODEL BATCH [RUNS] [THREADS]";
    let [folder, model_name, batch, rest @ ..] = args.as_slice() else { anyhow::bail!(usage) };
    let batch: usize = batch.parse().context(usage)?;
    let runs: usize = rest.first().map_or(Ok(5), |s| s.parse()).context(usage)?;
    let threads: i32 = rest.get(1).map_or(Ok(2), |s| s.parse()).context(usage)?;
    let folder = Path::new(folder);

    shim::init()?;
    shim::tune_process();
    tch::set_num_threads(threads);
    let config = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("configs/{model_name}.config"));
    let mut config = pipeline::load(&config)?;
    match config.model.as_mut().and_then(|m| m.model.as_mut()).context("the config has no model")? {
        pb::detection_model::Model::Ssd(ssd) => ssd.num_classes = Some(CLASSES),
        pb::detection_model::Model::FasterRcnn(faster_rcnn) => faster_rcnn.num_classes = Some(CLASSES),
    }
    let model = models::from_config(&config)?;
    let mut variables = Variables::new(model.variables(), 0, Device::Cpu)?;
    set_regenerated_weights(&mut variables);
    let train_config = config.train_config.context("the config has no train_config")?;
    let mut optimizer = Optimizer::from_config(&train_config, &mut variables)?;

    // Only the groundtruth is read of it; that of the largest models was made with a smaller picture.
    let golden = |small: &str| folder.join(format!("golden/{model_name}{small}__train.npz"));
    let golden = Golden::open(&if golden("").is_file() { golden("") } else { golden("_min300") });
    let boxes: Vec<_> = golden.f32("gt/image1/boxes").chunks(4).map(|b| [b[0], b[1], b[2], b[3]]).collect();
    let classes: Vec<usize> = golden.get("gt/image1/classes0").iter().map(|&c| c as usize).collect();
    let n = classes.len();
    let groundtruth = vec![Groundtruth { boxes, classes, difficult: vec![false; n], crowd: vec![false; n] }; batch];
    let image = decode_accurate(&std::fs::read(folder.join("images/image1.jpg"))?)?;

    let (mut seconds, mut processor, mut losses) = (Vec::new(), Vec::new(), Vec::new());
    for step in 0..=runs as u64 {
        let (begun, before) = (Instant::now(), processor_seconds()?);
        let (mut pixels, mut frame, mut sizes) = (Vec::new(), (0, 0), Vec::new());
        for _ in 0..batch {
            let resized = model.resizer().resize(&image.data, (image.height, image.width));
            pixels.extend(resized.pixels);
            frame = resized.frame;
            sizes.push(resized.size);
        }
        let pictures = Pictures::new(&pixels, frame, &sizes, variables.device())?;
        let pass = model.losses(&variables, &pictures, &groundtruth, &mut StepContext::new(0, step))?;
        let total = pass.total()?;
        let regularization = f64::try_from(optimizer.regularization(&variables)?)?;
        losses.push(f64::try_from(&total)? + regularization);
        total.f_backward()?;
        optimizer.step(&variables, step)?;
        apply_moving_updates(&variables, &pass.moving)?;
        seconds.push(begun.elapsed().as_secs_f64());
        processor.push(processor_seconds()? - before);
    }
    let first = seconds.remove(0);
    processor.remove(0);
    for times in [&mut seconds, &mut processor] {
        times.sort_by(f64::total_cmp);
    }
    println!(
        "{model_name} train batch {batch} threads {threads} ({}): first {first:.2} s, median {:.4} s, min {:.4} s, processor median {:.4} s, min {:.4} s",
        shim::instruction_set(),
        median(&seconds),
        seconds[0],
        median(&processor),
        processor[0],
    );
    let losses: Vec<String> = losses.iter().map(|l| format!("{l:.5}")).collect();
    println!("  total loss of each step, regularization included: {}", losses.join(" "));
    Ok(())
}

fn median(sorted: &[f64]) -> f64 {
    (sorted[(sorted.len() - 1) / 2] + sorted[sorted.len() / 2]) / 2.0
}

/// Seconds that all threads of this process have computed (Linux, 100 ticks a second).
fn processor_seconds() -> Result<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    // The name in parentheses may hold spaces; after it come the state and, as fields 12 and 13 from there, user and system time.
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    Ok((fields[11].parse::<f64>()? + fields[12].parse::<f64>()?) / 100.0)
}
