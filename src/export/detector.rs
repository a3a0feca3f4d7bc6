//! The model that is exported: its meta-architecture decides how its formats are written.

use anyhow::Result;

use super::layers::ReadVariable;
use super::ssd::SsdExport;
use super::{graph_def, onnx, torchscript};
use crate::models::{DetectionModel, MetaArchitecture};
use crate::net::shim::Script;
use crate::proto::object_detection::protos as pb;
use crate::proto::onnx::ModelProto;
use crate::proto::tensorflow::GraphDef;

/// A model, to be written down.
#[derive(Debug)]
pub struct Detector(MetaArchitecture);

impl Detector {
    /// The model that a pipeline config describes.
    ///
    /// # Errors
    /// If the config sets a part that is not there; the message names the field.
    pub fn from_config(config: &pb::TrainEvalPipelineConfig) -> Result<Self> {
        MetaArchitecture::from_config(config).map(Self)
    }

    /// What every model is.
    pub fn model(&self) -> &dyn DetectionModel {
        self.0.model()
    }

    /// The most detections of a picture: the `D` of the outputs' shapes.
    pub fn max_detections(&self) -> usize {
        match &self.0 {
            MetaArchitecture::Ssd(model) => model.nms().max_total,
            MetaArchitecture::FasterRcnn(model) => model.classifier().nms.max_total,
        }
    }

    /// The model as model.onnx.
    ///
    /// * `metadata`: what readers may ask the file for.
    ///
    /// # Errors
    /// If a variable cannot be read, or ONNX lacks an operation.
    pub fn onnx(&self, variables: &ReadVariable, metadata: &[(&str, String)]) -> Result<ModelProto> {
        match &self.0 {
            MetaArchitecture::Ssd(model) => onnx::ssd::onnx(&SsdExport::new(model), variables, metadata),
            MetaArchitecture::FasterRcnn(model) => onnx::faster_rcnn::onnx(model, variables, metadata),
        }
    }

    /// The model as model.torchscript.pt.
    ///
    /// * `metadata`: what readers may ask the file for.
    ///
    /// # Errors
    /// If a variable cannot be read, or libtorch lacks an operation.
    pub fn torchscript(&self, variables: &ReadVariable, metadata: &str) -> Result<Script> {
        match &self.0 {
            MetaArchitecture::Ssd(model) => torchscript::ssd::torchscript(&SsdExport::new(model), variables, metadata),
            MetaArchitecture::FasterRcnn(model) => torchscript::faster_rcnn::torchscript(model, variables, metadata),
        }
    }

    /// The model as frozen_inference_graph.pb.
    ///
    /// # Errors
    /// If a variable cannot be read, or TensorFlow lacks an operation.
    pub fn frozen_graph(&self, variables: &ReadVariable) -> Result<GraphDef> {
        match &self.0 {
            MetaArchitecture::Ssd(model) => graph_def::ssd::frozen_graph(&SsdExport::new(model), variables),
            MetaArchitecture::FasterRcnn(model) => graph_def::faster_rcnn::frozen_graph(model, variables),
        }
    }
}
