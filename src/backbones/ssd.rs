//! The feature extractors of SSD, by their names in a pipeline config (upstream models/ssd_*_feature_extractor.py).

use anyhow::{Result, bail};

use super::depth::Depth;
use super::names;
use super::ssd_feature_maps::{FeatureMapOptions, multi_resolution_feature_maps};
use super::{inception_v2, inception_v3, mobilenet_v1, mobilenet_v2};
use crate::net::graph::{Graph, MovingVariance, NodeId, Op, Padding, Window};
use crate::net::layers::{ConvScope, Scope};

pub use super::ssd_feature_maps::Source;

/// Every backbone that an SSD can have, by `feature_extractor.type`.
const BACKBONES: [(&str, SsdBackbone); 5] = [
    ("ssd_mobilenet_v1", mobilenet_v1::SSD),
    ("ssd_mobilenet_v2", mobilenet_v2::SSD),
    ("ssd_inception_v2", inception_v2::SSD),
    ("ssd_inception_v3", inception_v3::SSD),
    ("embedded_ssd_mobilenet_v1", mobilenet_v1::EMBEDDED_SSD),
];

/// The names.
pub const TYPES: &[&str] = &names::names(&BACKBONES);

/// What makes a backbone an SSD's feature extractor.
#[derive(Debug, Clone, Copy)]
pub struct SsdBackbone {
    /// Its variables, and those of the layers on top, are under `FeatureExtractor/<scope>`.
    pub scope: &'static str,
    /// What its batch norms' moving averages take.
    pub moving: MovingVariance,
    /// The settings that slim gives its layers, from whether batch norms train; without it they are always the config's.
    pub slim: Option<fn(bool) -> ConvScope>,
    /// Height and width that pictures must have, where they are fixed.
    pub side: Option<i64>,
    /// Where the feature maps come from, finest first.
    pub layout: &'static [Source],
    /// Appends the network and returns its layers by name.
    pub base: fn(&mut Graph, NodeId, &Base) -> Vec<(String, NodeId)>,
}

/// What a pipeline config says of a backbone.
#[derive(Debug, Clone)]
pub struct Base {
    pub depth: Depth,
    /// The settings of its layers.
    pub with: ConvScope,
    /// Whether these settings are the config's, in place of the network's own.
    pub overridden: bool,
    /// Whether batch norms that the config says nothing of train (`freeze_batchnorm` aside, they do).
    pub train_batch_norm: bool,
    /// Zeros of half a kernel on every side in place of TensorFlow's 'SAME'.
    pub explicit_padding: bool,
    /// The variables' scope; operations are under the innermost name twice, as slim opens it again.
    pub scope: Scope,
}

impl Base {
    /// A square window, padded as the config says.
    pub fn window(&self, kernel: i64, stride: i64) -> Window {
        Window::square(kernel, stride, padding(kernel, self.explicit_padding))
    }
}

/// `SAME`, or zeros of half a kernel on every side.
pub fn padding(kernel: i64, explicit: bool) -> Padding {
    if explicit && kernel > 1 {
        let (before, after) = ((kernel - 1) / 2, kernel - 1 - (kernel - 1) / 2);
        Padding::Explicit([before, before, after, after])
    } else {
        Padding::Same
    }
}

/// The message `SsdFeatureExtractor`, resolved.
#[derive(Debug, Clone)]
pub struct SsdSettings {
    pub depth: Depth,
    /// From `conv_hyperparams`: of the layers on top, and of the backbone where `override_base`.
    pub hyperparams: ConvScope,
    pub override_base: bool,
    /// Whether batch norms of the backbone use and update statistics of the batch.
    pub train_batch_norm: bool,
    pub use_depthwise: bool,
    pub explicit_padding: bool,
    /// The picture gets zeros below and to the right up to a multiple of this.
    pub pad_to_multiple: i64,
}

/// The backbone of this name.
///
/// # Errors
/// If there is none; the message lists those that there are.
pub fn named(name: &str) -> Result<&'static SsdBackbone> {
    const ALL: &[(&str, SsdBackbone)] = &BACKBONES;
    names::named(ALL, name)
}

/// Appends a feature extractor: the maps, finest first.
///
/// * `image`: `[N, C, H, W]` in [-1, 1]; `size`: its `[H, W]`, where all pictures have the same.
///
/// # Errors
/// If pictures must have another or one size, or the layout names a layer that the backbone lacks.
pub fn append(
    graph: &mut Graph,
    image: NodeId,
    size: Option<[i64; 2]>,
    backbone: &SsdBackbone,
    settings: &SsdSettings,
) -> Result<Vec<NodeId>> {
    if let Some(side) = backbone.side
        && (size != Some([side; 2]) || settings.pad_to_multiple > 1)
    {
        let size = size.map_or("of any size".to_string(), |[height, width]| format!("{height} x {width}"));
        bail!(
            "this feature extractor takes pictures of {side} x {side} with a pad_to_multiple of 1, not {size} with one of {}",
            settings.pad_to_multiple
        );
    }
    let image = match (size, settings.pad_to_multiple.max(1)) {
        (_, 1) => image,
        (Some(size), multiple) => pad_to_multiple(graph, image, size, multiple),
        (None, multiple) => bail!(
            "pad_to_multiple: {multiple} needs pictures of one size: resize with a fixed_shape_resizer, or set pad_to_max_dimension: true"
        ),
    };
    let scope = format!("FeatureExtractor/{}", backbone.scope);
    let own = backbone.slim.filter(|_| !settings.override_base).map(|slim| slim(settings.train_batch_norm));
    let base = Base {
        depth: settings.depth,
        with: own.unwrap_or(settings.hyperparams),
        overridden: own.is_none(),
        train_batch_norm: settings.train_batch_norm,
        explicit_padding: settings.explicit_padding,
        scope: Scope::split(scope.clone(), format!("{scope}/{}", backbone.scope)),
    };
    let endpoints = (backbone.base)(graph, image, &base);
    let options = FeatureMapOptions { use_depthwise: settings.use_depthwise, explicit_padding: settings.explicit_padding };
    let extra = (&settings.depth, options, &settings.hyperparams);
    multi_resolution_feature_maps(graph, &endpoints, backbone.layout, &Scope::new(scope), extra)
}

/// Zeros below and to the right, as upstream's `pad_to_multiple` has them.
fn pad_to_multiple(graph: &mut Graph, image: NodeId, [height, width]: [i64; 2], multiple: i64) -> NodeId {
    let missing = |side: i64| (multiple - side % multiple) % multiple;
    let pads = [0, 0, missing(height), missing(width)];
    if pads == [0; 4] {
        return image;
    }
    let channels = graph.channels(image);
    graph.push("FeatureExtractor/pad_to_multiple", Op::Pad(pads), &[image], channels)
}
