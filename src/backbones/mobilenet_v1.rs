//! MobileNet V1 (Howard et al., arXiv:1704.04861, table 1; upstream slim/nets/mobilenet_v1.py), up to its last pointwise convolution.

use super::Depth;
use crate::net::graph::{Activation, Graph, Initializer, MovingVariance, NodeId, Padding, Window};
use crate::net::layers::{BatchNormParams, ConvScope, Scope, conv2d, depthwise_conv2d};

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

/// The layer settings that slim gives this network whatever the pipeline config says.
///
/// Source: upstream `mobilenet_v1_arg_scope`: weight decay 4e-5 (depthwise filters included in the reference's graphs), standard deviation 0.09.
pub fn slim_scope(train_batch_norm: bool) -> ConvScope {
    ConvScope {
        initializer: Initializer::TruncatedNormal { mean: 0.0, stddev: 0.09 },
        l2: 4e-5,
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
/// * `x`: `[N, 3, H, W]` in [-1, 1].
/// * `scope`: of the whole network, `.../MobilenetV1`.
pub fn mobilenet_v1(graph: &mut Graph, x: NodeId, scope: &Scope, depth: &Depth, with: &ConvScope) -> Vec<(String, NodeId)> {
    let window = |kernel, stride| Window::square(kernel, stride, Padding::Same);
    let mut endpoints = Vec::with_capacity(BLOCKS.len());
    let mut y = conv2d(graph, x, &scope.child("Conv2d_0"), depth.of(32), window(3, 2), with);
    for (i, block) in BLOCKS.iter().enumerate() {
        let name = format!("Conv2d_{}", i + 1);
        y = depthwise_conv2d(graph, y, &scope.child(&format!("{name}_depthwise")), window(3, block.stride), with);
        let pointwise = format!("{name}_pointwise");
        y = conv2d(graph, y, &scope.child(&pointwise), depth.of(block.channels), window(1, 1), with);
        endpoints.push((pointwise, y));
    }
    endpoints
}
