//! Writes a zoo model's checkpoint with weights that are a function of their names (reference/README.md), for want of the real ones.
//!
//! ```text
//! cargo run --release --example reference_weights -- ssd_mobilenet_v2_coco model_zoo
//! ```
//!
//! `model_zoo/<folder>/` then has what the zoo's archive would have, with the shapes and names of 90 classes, and every `odh` command takes it.

#[allow(dead_code)]
#[path = "../tests/common/reference.rs"]
mod reference;

use std::path::Path;

use anyhow::{Context, Result, bail};
use odh::config::{pipeline, zoo};
use odh::formats::tensor_bundle::{BundleWriter, TensorData};
use odh::models;

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [model, folder] = args.as_slice() else { bail!("usage: reference_weights MODEL FOLDER") };
    let model = zoo::resolve(model)?;
    let (config, _) = model.config(Path::new("."))?;
    let folder = Path::new(folder).join(model.folder);
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    std::fs::write(folder.join("pipeline.config"), pipeline::to_text(&config))?;
    let mut writer = BundleWriter::create(&folder.join("model.ckpt"))?;
    let network = models::from_config(&config)?;
    for variable in network.variables() {
        let values = reference::weight(&variable.name, &variable.shape);
        writer.add(&variable.name, &TensorData::from_f32(&variable.shape, &values))?;
    }
    writer.finish()?;
    println!("{}: {} variables of {} classes", folder.display(), network.variables().len(), network.num_classes());
    Ok(())
}
