//! An exported file in memory, for detection.

use std::path::Path;

use anyhow::{Context, Result};
use tch::{Device, Tensor};

use super::detect::PictureDetector;
use crate::config::label_map::LabelMap;
use crate::data::image::RgbImage;
use crate::detection::boxes::Detections;
use crate::net::shim;
use crate::runtime::torchscript::TorchScriptModel;

/// A TorchScript file that looks at pictures.
#[derive(Debug)]
pub struct ExportedDetector {
    model: TorchScriptModel,
    label_map: LabelMap,
}

impl ExportedDetector {
    /// Reads the file.
    ///
    /// * `label_map`: what the classes are called, if not as the file says.
    ///
    /// # Errors
    /// As [`TorchScriptModel::open`]'s.
    pub fn open(path: &Path, label_map: Option<LabelMap>, device: Device) -> Result<Self> {
        shim::tune_process()?;
        let model = TorchScriptModel::open(path, device)?;
        let label_map = label_map.unwrap_or_else(|| model.metadata().label_map());
        Ok(Self { model, label_map })
    }
}

impl PictureDetector for ExportedDetector {
    fn detect(&mut self, picture: &RgbImage) -> Result<Detections> {
        let sides = [1, picture.height as i64, picture.width as i64, 3];
        let mut found = self.model.detect(&Tensor::from_slice(&picture.data).f_view(sides)?)?;
        found.pop().context("the file gave nothing for the picture")
    }

    fn label_map(&self) -> &LabelMap {
        &self.label_map
    }
}
