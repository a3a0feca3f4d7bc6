//! Meta-architectures: from pictures to losses in training, to detections in inference.

use anyhow::{Result, bail};

pub use self::detection_model::{DetectionModel, Frozen, Losses, StepContext};
use self::faster_rcnn::FasterRcnn;
use self::ssd::Ssd;
use crate::config::pipeline;
use crate::proto::object_detection::protos as pb;

pub mod box_classifier;
pub mod box_predictor;
mod config_values;
mod detection_model;
pub mod faster_rcnn;
mod faster_rcnn_config;
mod losses_config;
pub mod pictures;
mod position_sensitive;
pub mod post_processing;
pub mod rpn;
pub mod ssd;
mod ssd_config;

/// A model by its meta-architecture.
#[derive(Debug)]
pub enum MetaArchitecture {
    Ssd(Box<Ssd>),
    FasterRcnn(Box<FasterRcnn>),
}

impl MetaArchitecture {
    /// The model that a pipeline config describes.
    ///
    /// # Errors
    /// If the config sets a part that is not there; the message names the field.
    pub fn from_config(config: &pb::TrainEvalPipelineConfig) -> Result<Self> {
        use pb::detection_model::Model;
        let model = match pipeline::model(config)? {
            Model::Ssd(ssd) => Self::Ssd(Box::new(Ssd::from_config(ssd)?)),
            Model::FasterRcnn(faster_rcnn) => Self::FasterRcnn(Box::new(FasterRcnn::from_config(faster_rcnn)?)),
        };
        // A depth multiplier may leave a layer none, and libtorch would not say which.
        if let Some(variable) = model.model().variables().iter().find(|variable| variable.shape.iter().any(|&side| side < 1)) {
            bail!("`{}` would have the shape {:?}: the config's depths or kernels are too small", variable.name, variable.shape);
        }
        Ok(model)
    }

    /// What every model is.
    pub fn model(&self) -> &dyn DetectionModel {
        match self {
            Self::Ssd(model) => model.as_ref(),
            Self::FasterRcnn(model) => model.as_ref(),
        }
    }
}

/// The model that a pipeline config describes, whatever it is.
///
/// # Errors
/// As [`MetaArchitecture::from_config`].
pub fn from_config(config: &pb::TrainEvalPipelineConfig) -> Result<Box<dyn DetectionModel>> {
    Ok(match MetaArchitecture::from_config(config)? {
        MetaArchitecture::Ssd(model) => model,
        MetaArchitecture::FasterRcnn(model) => model,
    })
}

/// What is asked of a config that is trained, and not of one that only detects.
///
/// # Errors
/// If it cannot be trained; the message names the field.
pub fn check_training(config: &pb::TrainEvalPipelineConfig) -> Result<()> {
    match pipeline::model(config)? {
        pb::detection_model::Model::Ssd(_) => Ok(()),
        pb::detection_model::Model::FasterRcnn(faster_rcnn) => faster_rcnn_config::check_training(faster_rcnn),
    }
}
