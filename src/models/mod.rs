//! Meta-architectures: from pictures to losses in training, to detections in inference.

use anyhow::{Context, Result, bail};

pub use self::detection_model::{DetectionModel, Frozen, Losses, StepContext};
use crate::proto::object_detection::protos as pb;

pub mod box_classifier;
pub mod box_predictor;
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

/// The model that a pipeline config describes.
///
/// # Errors
/// If the config sets a part that is not there; the message names the field.
pub fn from_config(config: &pb::TrainEvalPipelineConfig) -> Result<Box<dyn DetectionModel>> {
    let model = config.model.as_ref().context("the pipeline config has no `model`")?;
    let model: Box<dyn DetectionModel> = match &model.model {
        Some(pb::detection_model::Model::Ssd(ssd)) => Box::new(ssd::Ssd::from_config(ssd)?),
        Some(pb::detection_model::Model::FasterRcnn(faster_rcnn)) => Box::new(faster_rcnn::FasterRcnn::from_config(faster_rcnn)?),
        None => bail!("the pipeline config's `model` is empty: set model.ssd or model.faster_rcnn"),
    };
    // A depth multiplier may leave a layer none, and libtorch would not say which.
    if let Some(variable) = model.variables().iter().find(|variable| variable.shape.iter().any(|&side| side < 1)) {
        bail!("`{}` would have the shape {:?}: the config's depths or kernels are too small", variable.name, variable.shape);
    }
    Ok(model)
}
