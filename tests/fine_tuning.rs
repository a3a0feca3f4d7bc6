//! Fine-tuning on photos, from the reference's regenerated weights: how far the loss falls (minutes on a CPU:
//! `cargo test --release --test fine_tuning -- --ignored`).

mod common;
#[allow(dead_code)]
#[path = "common/reference.rs"]
mod reference;

use std::path::Path;
use std::process::Command;

use odh::config::pipeline::{self, Overrides};
use odh::data::augment::Augmentation;
use odh::data::loader::{Classes, Loader, LoaderOptions};
use odh::engine::checkpoint::{self, FineTune};
use odh::engine::optimizer::Optimizer;
use odh::models::{self, DetectionModel, StepContext};
use odh::net::exec::apply_moving_updates;
use odh::net::variables::Variables;
use odh::proto::object_detection::protos as pb;
use reference::set_regenerated_weights;
use tch::{Device, Tensor};

const STEPS: u64 = 200;

fn config(name: &str, num_classes: u32, batch_size: u32) -> pb::TrainEvalPipelineConfig {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("configs/{name}.config"));
    let mut config = pipeline::load(&path).unwrap();
    let overrides = Overrides { num_classes: Some(num_classes), batch_size: Some(batch_size), ..Overrides::default() };
    pipeline::apply(&mut config, &overrides).unwrap();
    config
}

/// Records of the raccoon photos: one class.
fn records(folder: &Path) -> Option<std::path::PathBuf> {
    let photos = common::shared("datasets/raccoon")?;
    let made = Command::new(assert_cmd::cargo::cargo_bin!("odh"))
        .current_dir(folder)
        .args(["tfgen", "--write_label_map", "-i"])
        .arg(photos)
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    Some(folder.join("dataset/train.record"))
}

/// The mean losses of the first and the last 20 of 200 steps with the config's own optimizer.
///
/// * `what`: of the regenerated weights is taken; the rest starts at random.
fn first_and_last(name: &str, batch_size: u32, what: FineTune) -> Option<[f64; 2]> {
    let folder = tempfile::tempdir().unwrap();
    let records = records(folder.path())?;
    // What the zoo would have: 90 classes, read as `odh train` reads it.
    let zoo = models::from_config(&config(name, 90, batch_size)).unwrap();
    let mut pretrained = Variables::new(zoo.variables(), 0, Device::Cpu).unwrap();
    set_regenerated_weights(&mut pretrained);
    let prefix = folder.path().join("model.ckpt");
    checkpoint::write(&prefix, &pretrained, None, 0).unwrap();

    let config = config(name, 1, batch_size);
    let train_config = config.train_config.as_ref().unwrap();
    let model: Box<dyn DetectionModel> = models::from_config(&config).unwrap();
    let mut variables = Variables::new(model.variables(), 0, Device::Cpu).unwrap();
    let report = checkpoint::fine_tune(&prefix, &mut variables, what).unwrap();
    assert!(report.restored.len() > 100 && report.missing.is_empty(), "{report:?}");
    let mut optimizer = Optimizer::from_config(train_config, &mut variables).unwrap();
    let augmentations =
        train_config.data_augmentation_options.iter().map(|step| Augmentation::from_config(step).unwrap()).collect();
    let classes = Classes { count: 1, ids: [("raccoon".to_string(), 1)].into() };
    let options = LoaderOptions::new(vec![records], batch_size as usize, model.resizer(), classes);
    let mut loader = Loader::new(LoaderOptions { shuffle: true, augmentations, ..options }).unwrap();

    let mut losses = Vec::new();
    for step in 0..STEPS {
        let batch = loader.next().unwrap();
        let shape = [batch.names.len() as i64, batch.height as i64, batch.width as i64, 3];
        let images = Tensor::from_slice(&batch.images).view(shape);
        let pass = model.losses(&variables, &images, &batch.groundtruth, &mut StepContext::new(0, step)).unwrap();
        let total = pass.total().unwrap();
        losses.push(total.double_value(&[]));
        total.backward();
        optimizer.step(&variables, step).unwrap();
        apply_moving_updates(&variables, &pass.moving).unwrap();
    }
    let mean = |losses: &[f64]| losses.iter().sum::<f64>() / losses.len() as f64;
    let both = [mean(&losses[..20]), mean(&losses[losses.len() - 20..])];
    eprintln!("{name}: first 20 steps {:.3}, last 20 {:.3}", both[0], both[1]);
    Some(both)
}

/// Not reached: 1.592 to 1.267 (0.80) with the feature extractor restored, which is the default, and 1.353 to 1.152 (0.85) with all that
/// fits, at the config's own rate of 0.0002 and one picture a step. Single steps equal the reference's (`faster_rcnn_reference`); why 200 of
/// them learn so slowly from these weights is not known.
#[test]
#[ignore = "minutes, and known to fail: 0.85 where 0.7 is wanted"]
fn faster_rcnn_inception_v2_learns_raccoons() {
    let Some([first, last]) = first_and_last("faster_rcnn_inception_v2_coco_2018_01_28", 1, FineTune::All) else { return };
    assert!(last <= 0.7 * first, "{first} {last}");
}

/// 14.641 to 7.772 (0.53), at eight pictures a step.
#[test]
#[ignore = "minutes"]
fn ssd_mobilenet_v2_learns_raccoons() {
    let Some([first, last]) = first_and_last("ssd_mobilenet_v2_coco_2018_03_29", 8, FineTune::All) else { return };
    assert!(last <= 0.7 * first, "{first} {last}");
}
