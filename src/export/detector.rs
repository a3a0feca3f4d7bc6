//! The model that is exported: its meta-architecture decides how its formats are written.

use anyhow::{Result, bail};

use super::layers::ReadVariable;
use super::ssd::SsdExport;
use super::{graph_def, onnx, torchscript};
use crate::models::DetectionModel;
use crate::models::faster_rcnn::FasterRcnn;
use crate::models::ssd::Ssd;
use crate::net::shim::Script;
use crate::proto::object_detection::protos as pb;
use crate::proto::onnx::ModelProto;
use crate::proto::tensorflow::GraphDef;

/// A model by its meta-architecture.
#[derive(Debug)]
pub enum Detector {
    Ssd(Box<Ssd>),
    FasterRcnn(Box<FasterRcnn>),
}

impl Detector {
    /// The model that a pipeline config describes.
    ///
    /// # Errors
    /// If the config sets a part that is not there; the message names the field.
    pub fn from_config(config: &pb::TrainEvalPipelineConfig) -> Result<Self> {
        use pb::detection_model::Model;
        Ok(match config.model.as_ref().and_then(|m| m.model.as_ref()) {
            Some(Model::Ssd(ssd)) => Self::Ssd(Box::new(Ssd::from_config(ssd)?)),
            Some(Model::FasterRcnn(model)) => Self::FasterRcnn(Box::new(FasterRcnn::from_config(model)?)),
            None => bail!("the pipeline config's `model` is empty: set model.ssd or model.faster_rcnn"),
        })
    }

    /// What every model is.
    pub fn model(&self) -> &dyn DetectionModel {
        match self {
            Self::Ssd(model) => model.as_ref(),
            Self::FasterRcnn(model) => model.as_ref(),
        }
    }

    /// The most detections of a picture: the `D` of the outputs' shapes.
    pub fn max_detections(&self) -> usize {
        match self {
            Self::Ssd(model) => model.nms().max_total,
            Self::FasterRcnn(model) => model.classifier().nms.max_total,
        }
    }

    /// The model as model.onnx.
    ///
    /// * `metadata`: what readers may ask the file for.
    ///
    /// # Errors
    /// If a variable cannot be read, or ONNX lacks an operation.
    pub fn onnx(&self, variables: &ReadVariable, metadata: &[(&str, String)]) -> Result<ModelProto> {
        match self {
            Self::Ssd(model) => onnx::ssd::onnx(&SsdExport::new(model), variables, metadata),
            Self::FasterRcnn(model) => onnx::faster_rcnn::onnx(model, variables, metadata),
        }
    }

    /// The model as model.torchscript.pt.
    ///
    /// * `metadata`: what readers may ask the file for.
    ///
    /// # Errors
    /// If a variable cannot be read, or libtorch lacks an operation.
    pub fn torchscript(&self, variables: &ReadVariable, metadata: &str) -> Result<Script> {
        match self {
            Self::Ssd(model) => torchscript::ssd::torchscript(&SsdExport::new(model), variables, metadata),
            Self::FasterRcnn(model) => torchscript::faster_rcnn::torchscript(model, variables, metadata),
        }
    }

    /// The model as frozen_inference_graph.pb.
    ///
    /// # Errors
    /// If a variable cannot be read, or TensorFlow lacks an operation.
    pub fn frozen_graph(&self, variables: &ReadVariable) -> Result<GraphDef> {
        match self {
            Self::Ssd(model) => graph_def::ssd::frozen_graph(&SsdExport::new(model), variables),
            Self::FasterRcnn(model) => graph_def::faster_rcnn::frozen_graph(model, variables),
        }
    }
}
