//! MobileNet V2 (Sandler et al., arXiv:1801.04381, table 2; upstream slim/nets/mobilenet/mobilenet_v2.py), up to its last 1x1 convolution.

use super::depth::{Depth, make_divisible};
use super::mobilenet_v1::slim_scope;
use super::ssd::{Base, Source, SsdBackbone};
use crate::net::graph::{Activation, Graph, MovingVariance, NodeId, Regularizer};
use crate::net::layers::{BatchNormParams, ConvScope, Scope, add, conv2d, depthwise_conv2d};

/// What an SSD builds on.
pub const SSD: SsdBackbone = SsdBackbone {
    scope: "MobilenetV2",
    // Upstream builds these batch norms with fused=False.
    moving: MovingVariance::Biased,
    slim: Some(slim_scope),
    side: None,
    layout: &[
        Source::Layer("layer_15/expansion_output"),
        Source::Layer("layer_19"),
        Source::Extra { kernel: 3, channels: 512 },
        Source::Extra { kernel: 3, channels: 256 },
        Source::Extra { kernel: 3, channels: 256 },
        Source::Extra { kernel: 3, channels: 128 },
    ],
    base: mobilenet_v2,
};

/// One inverted residual: 1x1 to `expansion` times the channels, depthwise 3x3, 1x1 to `channels`; plus its input where the shapes allow.
struct Block {
    expansion: i64,
    channels: i64,
    stride: i64,
}

#[rustfmt::skip]
const BLOCKS: &[Block] = &[
    Block { expansion: 1, channels:  16, stride: 1 },
    Block { expansion: 6, channels:  24, stride: 2 },
    Block { expansion: 6, channels:  24, stride: 1 },
    Block { expansion: 6, channels:  32, stride: 2 },
    Block { expansion: 6, channels:  32, stride: 1 },
    Block { expansion: 6, channels:  32, stride: 1 },
    Block { expansion: 6, channels:  64, stride: 2 },
    Block { expansion: 6, channels:  64, stride: 1 },
    Block { expansion: 6, channels:  64, stride: 1 },
    Block { expansion: 6, channels:  64, stride: 1 },
    Block { expansion: 6, channels:  96, stride: 1 },
    Block { expansion: 6, channels:  96, stride: 1 },
    Block { expansion: 6, channels:  96, stride: 1 },
    Block { expansion: 6, channels: 160, stride: 2 },
    Block { expansion: 6, channels: 160, stride: 1 },
    Block { expansion: 6, channels: 160, stride: 1 },
    Block { expansion: 6, channels: 320, stride: 1 },
];

/// Channels come in multiples of this, as slim has it.
const DIVISOR: i64 = 8;

/// What slim gives each kind of layer. Source: upstream mobilenet.py, `training_scope`: filters are regularized, depthwise ones not.
struct Layers {
    full: ConvScope,
    depthwise: ConvScope,
    /// A projection has no activation.
    project: ConvScope,
}

impl Layers {
    fn new(base: &Base) -> Self {
        // Whatever else a config overrides, slim sets the activation layer by layer, and that there is a batch norm with beta and gamma.
        let batch_norm = match (base.with.batch_norm, slim_scope(base.train_batch_norm).batch_norm) {
            (Some(own), _) => Some(BatchNormParams { center: true, scale: true, ..own }),
            (None, slim) => slim,
        };
        let full = ConvScope { activation: Some(Activation::Relu6), batch_norm, ..base.with };
        let depthwise = if base.overridden { full } else { ConvScope { regularizer: Regularizer::None, ..full } };
        Self { full, depthwise, project: ConvScope { activation: None, ..full } }
    }
}

/// Appends the network to `graph`; returns each layer's output as `layer_<i>`, `i` from 1 to 19, and before each depthwise convolution
/// `layer_<i>/expansion_output`.
fn mobilenet_v2(graph: &mut Graph, x: NodeId, base: &Base) -> Vec<(String, NodeId)> {
    let layers = Layers::new(base);
    let Depth { multiplier, min } = base.depth;
    let depth = |nominal: i64| make_divisible(nominal as f64 * multiplier, DIVISOR, min);
    // One scope for variables and operations: slim enters the one that SSD opened.
    let scope = Scope::new(base.scope.variables.clone());
    let mut y = conv2d(graph, x, &scope.child("Conv"), depth(32), base.window(3, 2), &layers.full);
    let mut endpoints = vec![("layer_1".to_string(), y)];
    for (i, block) in BLOCKS.iter().enumerate() {
        let scope = scope.child(&if i == 0 { "expanded_conv".to_string() } else { format!("expanded_conv_{i}") });
        let (input, channels) = (y, graph.channels(y));
        let inner =
            if block.expansion == 1 { channels } else { make_divisible((channels * block.expansion) as f64, DIVISOR, DIVISOR) };
        if inner > channels {
            y = conv2d(graph, y, &scope.child("expand"), inner, base.window(1, 1), &layers.full);
        }
        endpoints.push((format!("layer_{}/expansion_output", i + 2), y));
        y = depthwise_conv2d(graph, y, &scope.child("depthwise"), base.window(3, block.stride), &layers.depthwise);
        y = conv2d(graph, y, &scope.child("project"), depth(block.channels), base.window(1, 1), &layers.project);
        if block.stride == 1 && graph.channels(y) == channels {
            y = add(graph, [y, input], &scope);
        }
        endpoints.push((format!("layer_{}", i + 2), y));
    }
    y = conv2d(graph, y, &scope.child("Conv_1"), depth(1280), base.window(1, 1), &layers.full);
    endpoints.push((format!("layer_{}", BLOCKS.len() + 2), y));
    endpoints
}
