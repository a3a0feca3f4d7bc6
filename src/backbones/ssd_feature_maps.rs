//! SSD's multi-resolution feature maps: some of a backbone's layers, then stride-2 convolutions on top of the last
//! (Liu et al., arXiv:1512.02325, section 2.1; upstream models/feature_map_generators.py).

use anyhow::{Context, Result};

use super::depth::Depth;
use super::ssd::padding;
use crate::net::graph::{Graph, NodeId, Padding, Window};
use crate::net::layers::{ConvScope, Scope, conv2d, depthwise_conv2d};

/// Where one feature map comes from.
#[derive(Debug, Clone, Copy)]
pub enum Source {
    /// A layer of the backbone.
    Layer(&'static str),
    /// A 1x1 convolution to half the depth, then one of this kernel and stride 2, on the map before.
    Extra { kernel: i64, channels: i64 },
}

/// How the extra maps are made.
#[derive(Debug, Clone, Copy)]
pub struct FeatureMapOptions {
    /// A depthwise and a 1x1 convolution in place of the full one.
    pub use_depthwise: bool,
    /// Zeros of half a kernel on every side in place of TensorFlow's 'SAME'.
    pub explicit_padding: bool,
}

/// Appends the extra layers and returns all maps, finest first.
///
/// # Errors
/// If the layout names a layer that the backbone lacks.
pub fn multi_resolution_feature_maps(
    graph: &mut Graph,
    endpoints: &[(String, NodeId)],
    layout: &[Source],
    scope: &Scope,
    extra: (&Depth, FeatureMapOptions, &ConvScope),
) -> Result<Vec<NodeId>> {
    let (depth, options, with) = extra;
    let mut maps: Vec<NodeId> = Vec::with_capacity(layout.len());
    let mut base = "";
    for (i, source) in layout.iter().enumerate() {
        let map = match *source {
            Source::Layer(name) => {
                base = name;
                endpoints.iter().find(|(n, _)| n == name).map(|(_, id)| *id).with_context(|| {
                    let known: Vec<&str> = endpoints.iter().map(|(n, _)| n.as_str()).collect();
                    format!("the backbone has no layer `{name}`; it has {}", known.join(", "))
                })?
            }
            Source::Extra { kernel, channels } => {
                let before = *maps.last().context("a feature map layout must begin with a layer of the backbone")?;
                let half = depth.of(channels / 2);
                let reduce = scope.child(&format!("{base}_1_Conv2d_{i}_1x1_{half}"));
                let y = conv2d(graph, before, &reduce, half, Window::square(1, 1, Padding::Same), with);
                let full = depth.of(channels);
                let name = format!("{base}_2_Conv2d_{i}_{kernel}x{kernel}_s2_{full}");
                let shrink = Window::square(kernel, 2, padding(kernel, options.explicit_padding));
                if options.use_depthwise {
                    let y = depthwise_conv2d(graph, y, &scope.child(&format!("{name}_depthwise")), shrink, with);
                    conv2d(graph, y, &scope.child(&name), full, Window::square(1, 1, Padding::Same), with)
                } else {
                    conv2d(graph, y, &scope.child(&name), full, shrink, with)
                }
            }
        };
        maps.push(map);
    }
    Ok(maps)
}
