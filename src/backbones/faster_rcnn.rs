//! The feature extractors of Faster R-CNN and R-FCN, by their names in a pipeline config (upstream models/faster_rcnn_*_feature_extractor.py).

use anyhow::{Result, anyhow, bail};

use super::names;
use super::{inception_resnet_v2, inception_v2, nasnet, resnet_v1};
use crate::net::graph::{Graph, NodeId};
use crate::net::layers::Scope;

/// Every backbone that a Faster R-CNN can have, by `feature_extractor.type`.
const BACKBONES: [(&str, FasterRcnnBackbone); 6] = [
    ("faster_rcnn_inception_resnet_v2", inception_resnet_v2::FASTER_RCNN),
    ("faster_rcnn_inception_v2", inception_v2::FASTER_RCNN),
    ("faster_rcnn_nas", nasnet::FASTER_RCNN),
    ("faster_rcnn_resnet50", resnet_v1::FASTER_RCNN_50),
    ("faster_rcnn_resnet101", resnet_v1::FASTER_RCNN_101),
    ("faster_rcnn_resnet152", resnet_v1::FASTER_RCNN_152),
];

/// The names.
pub const TYPES: &[&str] = &names::names(&BACKBONES);

/// Where the variables of the first stage are; what is restored from a checkpoint by default, with the second's.
pub const FIRST_STAGE_SCOPE: &str = "FirstStageFeatureExtractor";
/// Where the variables of the second stage are.
pub const SECOND_STAGE_SCOPE: &str = "SecondStageFeatureExtractor";
/// Both, as restoring wants them.
pub const RESTORED_SCOPES: &[&str] = &["FirstStageFeatureExtractor/", "SecondStageFeatureExtractor/"];

/// What makes a backbone a Faster R-CNN's feature extractor.
#[derive(Debug, Clone, Copy)]
pub struct FasterRcnnBackbone {
    /// From pixels to what the network takes.
    pub pixels: Pixels,
    /// The values of `first_stage_features_stride` that it takes.
    pub strides: &'static [i64],
    /// Appends the network from the preprocessed picture `[N, 3, H, W]` to the map that proposals are made and cropped from,
    /// `[N, C, H / stride, W / stride]`; the scope given is [`FIRST_STAGE_SCOPE`].
    pub first_stage: Stage,
    /// Appends the network from crops of that map `[R, C, h, w]` (for R-FCN the map itself) to the box classifier's features; the scope
    /// given is [`SECOND_STAGE_SCOPE`].
    pub second_stage: Stage,
    /// What a classification checkpoint calls the variable `name` of the stage under `scope` (without it).
    pub classification_name: fn(scope: &str, name: &str) -> String,
}

/// The name without its stage's scope, as most backbones have it.
pub fn same_name(_scope: &str, name: &str) -> String {
    name.to_string()
}

/// Half of a backbone: appends it and returns its last node.
pub type Stage = fn(&mut Graph, NodeId, &Scope, &StageOptions) -> NodeId;

/// What a pipeline config says of a backbone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StageOptions {
    /// Of the first stage's map.
    pub stride: i64,
    /// Batch norms use and update statistics of the batch in training (`batch_norm_trainable`).
    pub train_batch_norm: bool,
}

/// `scale * pixel + shift` of values in 0..255, RGB.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pixels {
    pub scale: f64,
    pub shift: [f32; 3],
}

impl Pixels {
    /// To [-1, 1].
    pub const MINUS_ONE_TO_ONE: Self = Self { scale: 2.0 / 255.0, shift: [-1.0; 3] };
    /// The mean colour of ImageNet taken away, as ResNet V1 has it from VGG.
    pub const MINUS_MEAN: Self = Self { scale: 1.0, shift: [-123.68, -116.779, -103.939] };

    /// Of a grey picture, which has no mean colour (upstream models/faster_rcnn_resnet_v1_feature_extractor.py, `preprocess`).
    pub fn of_grey(self) -> Self {
        let [red, green, blue] = self.shift;
        if red == green && green == blue { self } else { Self { shift: [0.0; 3], ..self } }
    }
}

/// The backbone named so, and its options.
///
/// # Errors
/// If there is none, or its map cannot have that stride; `field` names the message `FasterRcnnFeatureExtractor`.
pub fn backbone(name: &str, options: &StageOptions, field: &str) -> Result<FasterRcnnBackbone> {
    let backbone = names::named(&BACKBONES, name).map_err(|error| anyhow!("{field}.type: {error}"))?;
    if !backbone.strides.contains(&options.stride) {
        let strides: Vec<String> = backbone.strides.iter().map(i64::to_string).collect();
        bail!("{field}.first_stage_features_stride: {name} cannot have {}, only {}", options.stride, strides.join(" or "));
    }
    Ok(*backbone)
}
