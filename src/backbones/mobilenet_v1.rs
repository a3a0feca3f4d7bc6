//! MobileNet V1 (Howard et al., arXiv:1704.04861, table 1; upstream slim/nets/mobilenet_v1.py), up to its last pointwise convolution.

use super::ssd::{Base, Source, SsdBackbone};
use crate::net::graph::{Activation, Graph, Initializer, MovingVariance, NodeId, Regularizer};
use crate::net::layers::{BatchNormParams, ConvScope, conv2d, depthwise_conv2d};

/// What an SSD builds on.
pub const SSD: SsdBackbone = SsdBackbone {
    scope: "MobilenetV1",
    // Upstream builds these batch norms with fused=False.
    moving: MovingVariance::Biased,
    slim: Some(slim_scope),
    side: None,
    layout: &[
        Source::Layer("Conv2d_11_pointwise"),
        Source::Layer("Conv2d_13_pointwise"),
        Source::Extra { kernel: 3, channels: 512 },
        Source::Extra { kernel: 3, channels: 256 },
        Source::Extra { kernel: 3, channels: 256 },
        Source::Extra { kernel: 3, channels: 128 },
    ],
    base: |graph, x, base| network(graph, x, base, &base.with),
};

/// The same for small devices: fewer maps, no kernel larger than what it looks at, and slim's own choice not to regularize depthwise filters
/// (upstream models/embedded_ssd_mobilenet_v1_feature_extractor.py).
pub const EMBEDDED_SSD: SsdBackbone = SsdBackbone {
    side: Some(256),
    layout: &[
        Source::Layer("Conv2d_11_pointwise"),
        Source::Layer("Conv2d_13_pointwise"),
        Source::Extra { kernel: 3, channels: 512 },
        Source::Extra { kernel: 3, channels: 256 },
        Source::Extra { kernel: 2, channels: 256 },
    ],
    base: |graph, x, base| {
        let depthwise = if base.overridden { base.with } else { ConvScope { regularizer: Regularizer::None, ..base.with } };
        network(graph, x, base, &depthwise)
    },
    ..SSD
};

/// One depthwise separable block.
struct Block {
    stride: i64,
    channels: i64,
}

#[rustfmt::skip]
const BLOCKS: &[Block] = &[
    Block { stride: 1, channels: 64 },
    Block { stride: 2, channels: 128 },
    Block { stride: 1, channels: 128 },
    Block { stride: 2, channels: 256 },
    Block { stride: 1, channels: 256 },
    Block { stride: 2, channels: 512 },
    Block { stride: 1, channels: 512 },
    Block { stride: 1, channels: 512 },
    Block { stride: 1, channels: 512 },
    Block { stride: 1, channels: 512 },
    Block { stride: 1, channels: 512 },
    Block { stride: 2, channels: 1024 },
    Block { stride: 1, channels: 1024 },
];

/// The layer settings that slim gives the MobileNets unless the pipeline config overrides them.
///
/// Source: upstream `mobilenet_v1_arg_scope`: weight decay 4e-5 (depthwise filters included in the reference's graphs), standard deviation 0.09.
pub fn slim_scope(train_batch_norm: bool) -> ConvScope {
    ConvScope {
        initializer: Initializer::TruncatedNormal { mean: 0.0, stddev: 0.09 },
        regularizer: Regularizer::L2(4e-5),
        batch_norm: Some(BatchNormParams {
            decay: 0.9997,
            epsilon: 0.001,
            center: true,
            scale: true,
            train: train_batch_norm,
            trainable: true,
            moving: MovingVariance::Biased,
        }),
        activation: Some(Activation::Relu6),
        trainable: true,
    }
}

/// Appends the network to `graph`; returns each block's output as `Conv2d_<i>_pointwise`, `i` from 1 to 13.
///
/// * `depthwise`: the settings of its depthwise layers.
fn network(graph: &mut Graph, x: NodeId, base: &Base, depthwise: &ConvScope) -> Vec<(String, NodeId)> {
    let Base { depth, with, scope, .. } = base;
    let mut endpoints = Vec::with_capacity(BLOCKS.len());
    let mut y = conv2d(graph, x, &scope.child("Conv2d_0"), depth.of(32), base.window(3, 2), with);
    for (i, block) in BLOCKS.iter().enumerate() {
        let name = format!("Conv2d_{}", i + 1);
        y = depthwise_conv2d(graph, y, &scope.child(&format!("{name}_depthwise")), base.window(3, block.stride), depthwise);
        let pointwise = format!("{name}_pointwise");
        y = conv2d(graph, y, &scope.child(&pointwise), depth.of(block.channels), base.window(1, 1), with);
        endpoints.push((pointwise, y));
    }
    endpoints
}
