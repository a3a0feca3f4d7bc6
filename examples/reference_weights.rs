//! Writes a zoo model's checkpoint with weights that are a function of their names (reference/README.md), for want of the real ones.
//!
//! ```text
//! cargo run --release --example reference_weights -- ssd_mobilenet_v2_coco model_zoo
//! ```
//!
//! Another config, given as a third argument, takes the place of the model's own, and a label map of numbers is beside it. `model_zoo/<folder>/` then has what the zoo's archive would have, with the shapes and names of 90 classes, and every `odh` command takes it.

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
    let (model, folder, config) = match args.as_slice() {
        [model, folder] => (model, folder, None),
        [model, folder, config] => (model, folder, Some(config)),
        _ => bail!("usage: reference_weights MODEL FOLDER [CONFIG]"),
    };
    let model = zoo::resolve(model)?;
    let own = config.is_some();
    let config = match config {
        None => model.config(Path::new("."))?.0,
        Some(path) => pipeline::load(Path::new(path))?,
    };
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
    if own {
        let item = |id: usize| format!("item {{ id: {id} name: 'class {id}' }}\n");
        std::fs::write(folder.join("label_map.pbtxt"), (1..=network.num_classes()).map(item).collect::<String>())?;
    }
    println!("{}: {} variables of {} classes", folder.display(), network.variables().len(), network.num_classes());
    Ok(())
}
