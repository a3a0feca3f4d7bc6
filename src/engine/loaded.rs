//! A trained model in memory: for evaluation, export and detection.

use std::path::Path;

use anyhow::{Context, Result};
use tch::Device;

use super::checkpoint;
use super::detect::PictureDetector;
use super::memory;
use crate::config::label_map::LabelMap;
use crate::config::pipeline;
use crate::data::image::RgbImage;
use crate::data::resizer::Resizer;
use crate::detection::boxes::Detections;
use crate::models::pictures::Pictures;
use crate::models::{self, DetectionModel, Frozen};
use crate::net::shim;
use crate::net::variables::Variables;
use crate::proto::object_detection::protos as pb;

/// A model with a checkpoint's values.
pub struct LoadedModel {
    pub model: Box<dyn DetectionModel>,
    pub variables: Variables,
    /// The training step of the checkpoint, if it says.
    pub step: Option<u64>,
}

/// Builds the model of a config and fills it from a checkpoint.
///
/// # Errors
/// If the config asks for what is not supported, or the checkpoint does not fit it.
pub fn load(config: &pb::TrainEvalPipelineConfig, prefix: &Path, device: Device) -> Result<LoadedModel> {
    shim::tune_process();
    let of = || format!("the pipeline config of {}", prefix.display());
    pipeline::check_supported(config).with_context(of)?;
    let model = models::from_config(config).with_context(of)?;
    memory::ensure_fit(model.variables())?;
    let mut variables = Variables::zeros(model.variables(), device)?;
    let step = checkpoint::load(prefix, &mut variables, pipeline::values_evaluated(config))?;
    Ok(LoadedModel { model, variables, step })
}

/// A model that looks at pictures of any size.
pub struct ModelDetector {
    network: Box<dyn Frozen>,
    resizer: Resizer,
    device: Device,
    label_map: LabelMap,
}

impl ModelDetector {
    /// Freezes the model's values.
    pub fn new(loaded: &LoadedModel, label_map: LabelMap) -> Result<Self> {
        Ok(Self {
            network: loaded.model.freeze(&loaded.variables)?,
            resizer: loaded.model.resizer(),
            device: loaded.variables.device(),
            label_map,
        })
    }

    /// What might be found as well, had sums been rounded otherwise ([`Frozen::rounded_otherwise`]).
    pub fn rounded_otherwise(&self, picture: &RgbImage) -> Result<Vec<Detections>> {
        self.network.rounded_otherwise(&self.resized(picture)?)
    }

    fn resized(&self, picture: &RgbImage) -> Result<Pictures> {
        let resized = self.resizer.resize(&picture.data, (picture.height, picture.width));
        Pictures::new(&resized.pixels, resized.frame, &[resized.size], self.device)
    }
}

impl PictureDetector for ModelDetector {
    fn detect(&mut self, picture: &RgbImage) -> Result<Detections> {
        let mut found = self.network.detect(&self.resized(picture)?)?;
        found.pop().context("the model gave nothing for the picture")
    }

    fn label_map(&self) -> &LabelMap {
        &self.label_map
    }
}
