//! An exported file in memory, for detection.

use std::path::Path;

use anyhow::{Context, Result};
use tch::{Device, Tensor};

use super::detect::PictureDetector;
use crate::config::label_map::LabelMap;
use crate::data::image::RgbImage;
use crate::detection::boxes::Detections;
use crate::net::shim;
use crate::runtime::file_kind::{self, Kind};
use crate::runtime::onnx::{LibrarySearch, OnnxModel};
use crate::runtime::torchscript::TorchScriptModel;

/// A file that looks at pictures.
#[derive(Debug)]
pub struct ExportedDetector {
    model: Model,
    label_map: LabelMap,
}

#[derive(Debug)]
enum Model {
    TorchScript(TorchScriptModel),
    Onnx(OnnxModel),
}

/// What running a file may need besides the file.
#[derive(Debug)]
pub struct ExportedOptions<'a> {
    /// What the classes are called, if not as the file says.
    pub label_map: Option<LabelMap>,
    /// Where TorchScript runs; ONNX runs on the CPU.
    pub device: Device,
    pub onnxruntime: &'a LibrarySearch,
}

impl ExportedDetector {
    /// Reads the file.
    ///
    /// # Errors
    /// As [`TorchScriptModel::open`]'s and [`OnnxModel::open`]'s, or if it is neither.
    pub fn open(path: &Path, options: ExportedOptions) -> Result<Self> {
        shim::tune_process();
        let (model, own) = match file_kind::of(path)? {
            Kind::TorchScript => {
                let model = TorchScriptModel::open(path, options.device)?;
                let own = model.metadata().label_map();
                (Model::TorchScript(model), Some(own))
            }
            Kind::Onnx => {
                let model = OnnxModel::open(path, options.onnxruntime)?;
                let own = model.metadata().map(|metadata| metadata.label_map());
                (Model::Onnx(model), own)
            }
        };
        // A file that does not say what its classes are called has them by number.
        let label_map = options.label_map.or(own).unwrap_or_else(|| LabelMap { items: Vec::new() });
        Ok(Self { model, label_map })
    }

    /// Name and version of what runs the file.
    ///
    /// # Errors
    /// If libtorch does not know its version.
    pub fn runtime(&self) -> Result<String> {
        match &self.model {
            Model::TorchScript(_) => Ok(format!("libtorch {}", shim::libtorch_version()?)),
            Model::Onnx(model) => Ok(model.runtime().to_string()),
        }
    }
}

impl PictureDetector for ExportedDetector {
    fn detect(&mut self, picture: &RgbImage) -> Result<Detections> {
        match &mut self.model {
            Model::TorchScript(model) => {
                let sides = [1, picture.height as i64, picture.width as i64, 3];
                let mut found = model.detect(&Tensor::from_slice(&picture.data).f_view(sides)?)?;
                found.pop().context("the file gave nothing for the picture")
            }
            Model::Onnx(model) => model.detect(picture),
        }
    }

    fn label_map(&self) -> &LabelMap {
        &self.label_map
    }
}
