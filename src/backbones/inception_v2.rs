//! Inception V2 (Ioffe and Szegedy, arXiv:1502.03167, figure 5; upstream slim/nets/inception_v2.py), up to Mixed_5c.

use super::depth::Depth;
use super::faster_rcnn::{FasterRcnnBackbone, Pixels, StageOptions, same_name};
use super::ssd::{Source, SsdBackbone};
use crate::net::graph::{Activation, Fan, Graph, Initializer, MovingVariance, NodeId, Op, Padding, Regularizer, Window};
use crate::net::layers::{BatchNormParams, ConvScope, Scope, concat, conv2d, separable_conv2d};

/// What an SSD builds on.
pub const SSD: SsdBackbone = SsdBackbone {
    scope: "InceptionV2",
    // TensorFlow's fused kernel.
    moving: MovingVariance::Unbiased,
    // Upstream gives this network the config's settings, and insists that the config says so.
    slim: None,
    side: None,
    layout: &[
        Source::Layer("Mixed_4c"),
        Source::Layer("Mixed_5c"),
        Source::Extra { kernel: 3, channels: 512 },
        Source::Extra { kernel: 3, channels: 256 },
        Source::Extra { kernel: 3, channels: 256 },
        Source::Extra { kernel: 3, channels: 128 },
    ],
    base: |graph, x, base| inception_v2(graph, x, &base.scope, base.depth, &base.with),
};

/// What a Faster R-CNN builds on: Mixed_4e, and behind its crops Mixed_5a to Mixed_5c.
pub const FASTER_RCNN: FasterRcnnBackbone = FasterRcnnBackbone {
    pixels: Pixels::MINUS_ONE_TO_ONE,
    // Upstream takes 8 as well, and its map has 16 all the same.
    strides: &[8, 16],
    first_stage: |graph, x, scope, options| {
        let (scope, with) = (scope.child("InceptionV2"), faster_rcnn_scope(options));
        let x = stem(graph, x, &scope, FULL, &with);
        last(modules(graph, x, &scope, FULL, &with, &MODULES[..second_stage_start()]), x)
    },
    second_stage: |graph, x, scope, options| {
        let (scope, with) = (scope.child("InceptionV2"), faster_rcnn_scope(options));
        last(modules(graph, x, &scope, FULL, &with, &MODULES[second_stage_start()..]), x)
    },
    classification_name: same_name,
};

/// All channels.
const FULL: Depth = Depth { multiplier: 1.0, min: 16 };

/// Source: upstream faster_rcnn_inception_v2_feature_extractor.py, `_batch_norm_arg_scope`; the rest are slim's defaults.
fn faster_rcnn_scope(options: &StageOptions) -> ConvScope {
    ConvScope {
        initializer: Initializer::VarianceScaling { factor: 1.0, fan: Fan::Average, uniform: true },
        regularizer: Regularizer::None,
        batch_norm: Some(BatchNormParams {
            decay: 0.9997,
            epsilon: 0.001,
            center: true,
            scale: true,
            train: options.train_batch_norm,
            trainable: true,
            moving: MovingVariance::Unbiased,
        }),
        activation: Some(Activation::Relu),
        trainable: true,
    }
}

/// The branches of a module, side by side, then their channels concatenated.
enum Branches {
    /// 1x1 `a`; 1x1 `b[0]`, 3x3 `b[1]`; 1x1 `c[0]`, 3x3 `c[1]`, 3x3 `c[2]`; pooling 3x3, 1x1 `d`.
    Mixed { a: i64, b: [i64; 2], c: [i64; 3], pool: Pool, d: i64 },
    /// 1x1 `a[0]`, 3x3 of stride 2 `a[1]`; 1x1 `b[0]`, 3x3 `b[1]`, 3x3 of stride 2 `b[2]`; max pooling 3x3 of stride 2.
    Reduction { a: [i64; 2], b: [i64; 3] },
}

#[derive(Clone, Copy)]
enum Pool {
    Average,
    Max,
}

use Branches::{Mixed, Reduction};
use Pool::{Average, Max};

#[rustfmt::skip]
const MODULES: &[(&str, Branches)] = &[
    ("Mixed_3b", Mixed { a:  64, b: [ 64,  64], c: [ 64,  96,  96], pool: Average, d:  32 }),
    ("Mixed_3c", Mixed { a:  64, b: [ 64,  96], c: [ 64,  96,  96], pool: Average, d:  64 }),
    ("Mixed_4a", Reduction { a: [128, 160], b: [ 64,  96,  96] }),
    ("Mixed_4b", Mixed { a: 224, b: [ 64,  96], c: [ 96, 128, 128], pool: Average, d: 128 }),
    ("Mixed_4c", Mixed { a: 192, b: [ 96, 128], c: [ 96, 128, 128], pool: Average, d: 128 }),
    ("Mixed_4d", Mixed { a: 160, b: [128, 160], c: [128, 160, 160], pool: Average, d:  96 }),
    ("Mixed_4e", Mixed { a:  96, b: [128, 192], c: [160, 192, 192], pool: Average, d:  96 }),
    ("Mixed_5a", Reduction { a: [128, 192], b: [192, 256, 256] }),
    ("Mixed_5b", Mixed { a: 352, b: [192, 320], c: [160, 224, 224], pool: Average, d: 128 }),
    ("Mixed_5c", Mixed { a: 352, b: [192, 320], c: [192, 224, 224], pool: Max,     d: 128 }),
];

/// The module that ends a Faster R-CNN's first stage; the second starts behind it.
const FIRST_STAGE_END: &str = "Mixed_4e";

/// Appends the whole network to `graph`; returns each module's output by its name.
///
/// * `x`: `[N, 3, H, W]` in [-1, 1].
/// * `scope`: of the whole network, `.../InceptionV2`.
fn inception_v2(graph: &mut Graph, x: NodeId, scope: &Scope, depth: Depth, with: &ConvScope) -> Vec<(String, NodeId)> {
    let y = stem(graph, x, scope, depth, with);
    modules(graph, y, scope, depth, with, MODULES)
}

fn second_stage_start() -> usize {
    MODULES.iter().position(|(name, _)| *name == FIRST_STAGE_END).map_or(0, |i| i + 1)
}

fn last(endpoints: Vec<(String, NodeId)>, or: NodeId) -> NodeId {
    endpoints.last().map_or(or, |(_, y)| *y)
}

/// The layers before the modules: to an eighth of the picture's sides.
fn stem(graph: &mut Graph, x: NodeId, scope: &Scope, depth: Depth, with: &ConvScope) -> NodeId {
    // Eight filters a channel, fewer where the layer itself has few.
    let multiplier = (depth.of(64) / 3).min(8);
    let y = separable_conv2d(graph, x, &scope.child("Conv2d_1a_7x7"), (multiplier, depth.of(64)), same(7, 2), &start(with, 1.0));
    let y = pool(graph, y, &scope.child("MaxPool_2a_3x3"), Max, 2);
    let y = conv2d(graph, y, &scope.child("Conv2d_2b_1x1"), depth.of(64), same(1, 1), &start(with, 0.1));
    let y = conv2d(graph, y, &scope.child("Conv2d_2c_3x3"), depth.of(192), same(3, 1), with);
    pool(graph, y, &scope.child("MaxPool_3a_3x3"), Max, 2)
}

fn modules(
    graph: &mut Graph,
    x: NodeId,
    scope: &Scope,
    depth: Depth,
    with: &ConvScope,
    rows: &[(&str, Branches)],
) -> Vec<(String, NodeId)> {
    // The 1x1 convolutions before others, and behind the pooling, start smaller than the rest.
    let (before, behind) = (&start(with, 0.09), &start(with, 0.1));
    let mut y = x;
    let mut endpoints = Vec::with_capacity(rows.len());
    for (name, branches) in rows {
        let module = scope.child(name);
        let branch = |i: usize| module.child(&format!("Branch_{i}"));
        let mut conv = |x: NodeId, branch: Scope, name: &str, channels: i64, window: Window, with: &ConvScope| {
            conv2d(graph, x, &branch.child(name), depth.of(channels), window, with)
        };
        let mut parts = Vec::new();
        match branches {
            Mixed { a, b, c, pool: kind, d } => {
                parts.push(conv(y, branch(0), "Conv2d_0a_1x1", *a, same(1, 1), with));
                let z = conv(y, branch(1), "Conv2d_0a_1x1", b[0], same(1, 1), before);
                parts.push(conv(z, branch(1), "Conv2d_0b_3x3", b[1], same(3, 1), with));
                let z = conv(y, branch(2), "Conv2d_0a_1x1", c[0], same(1, 1), before);
                let z = conv(z, branch(2), "Conv2d_0b_3x3", c[1], same(3, 1), with);
                parts.push(conv(z, branch(2), "Conv2d_0c_3x3", c[2], same(3, 1), with));
                let name = match kind {
                    Average => "AvgPool_0a_3x3",
                    Max => "MaxPool_0a_3x3",
                };
                let z = pool(graph, y, &branch(3).child(name), *kind, 1);
                parts.push(conv2d(graph, z, &branch(3).child("Conv2d_0b_1x1"), depth.of(*d), same(1, 1), behind));
            }
            Reduction { a, b } => {
                let z = conv(y, branch(0), "Conv2d_0a_1x1", a[0], same(1, 1), before);
                parts.push(conv(z, branch(0), "Conv2d_1a_3x3", a[1], same(3, 2), with));
                let z = conv(y, branch(1), "Conv2d_0a_1x1", b[0], same(1, 1), before);
                let z = conv(z, branch(1), "Conv2d_0b_3x3", b[1], same(3, 1), with);
                parts.push(conv(z, branch(1), "Conv2d_1a_3x3", b[2], same(3, 2), with));
                parts.push(pool(graph, y, &branch(2).child("MaxPool_1a_3x3"), Max, 2));
            }
        }
        y = concat(graph, &parts, &module);
        endpoints.push(((*name).to_string(), y));
    }
    endpoints
}

fn same(kernel: i64, stride: i64) -> Window {
    Window::square(kernel, stride, Padding::Same)
}

/// The same settings with filters that start from a truncated normal of this deviation, whatever the settings say.
fn start(with: &ConvScope, stddev: f32) -> ConvScope {
    ConvScope { initializer: Initializer::TruncatedNormal { mean: 0.0, stddev }, ..*with }
}

fn pool(graph: &mut Graph, x: NodeId, scope: &Scope, kind: Pool, stride: i64) -> NodeId {
    let (name, op) = match kind {
        Average => ("AvgPool", Op::AvgPool(same(3, stride))),
        Max => ("MaxPool", Op::MaxPool(same(3, stride))),
    };
    let channels = graph.channels(x);
    graph.push(&format!("{}/{name}", scope.ops), op, &[x], channels)
}
