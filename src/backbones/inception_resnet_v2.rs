//! Inception-ResNet V2 (Szegedy et al., arXiv:1602.07261, figures 3 and 16 to 19; upstream slim/nets/inception_resnet_v2.py), in the two halves
//! that Faster R-CNN takes (upstream models/faster_rcnn_inception_resnet_v2_feature_extractor.py).

use super::faster_rcnn::{FasterRcnnBackbone, Pixels, SECOND_STAGE_SCOPE, StageOptions};
use crate::net::graph::{Activation, Fan, Graph, Initializer, MovingVariance, NodeId, Op, Padding, Regularizer, Window};
use crate::net::layers::{BatchNormParams, ConvScope, Scope, add, concat, conv2d, relu};

/// One layer of a branch.
struct Layer {
    name: &'static str,
    kind: Kind,
    kernel: [i64; 2],
    size: Size,
    padding: Padding,
}

/// What a layer does to height and width.
#[derive(PartialEq)]
enum Size {
    Keep,
    Halve,
}

enum Kind {
    Conv { channels: i64 },
    MaxPool,
    AvgPool,
}

/// A convolution that keeps the size.
const fn conv(name: &'static str, kernel: [i64; 2], channels: i64) -> Layer {
    Layer { name, kind: Kind::Conv { channels }, kernel, size: Size::Keep, padding: Padding::Same }
}

/// A 3x3 window of any kind.
const fn window(name: &'static str, kind: Kind, size: Size, padding: Padding) -> Layer {
    Layer { name, kind, kernel: [3, 3], size, padding }
}

use Kind::{AvgPool, Conv, MaxPool};
use Padding::{Same, Valid};
use Size::{Halve, Keep};

#[rustfmt::skip]
const STEM: &[Layer] = &[
    window("Conv2d_1a_3x3", Conv { channels: 32 }, Halve, Same),
    conv("Conv2d_2a_3x3", [3, 3], 32),
    conv("Conv2d_2b_3x3", [3, 3], 64),
    window("MaxPool_3a_3x3", MaxPool, Halve, Same),
    conv("Conv2d_3b_1x1", [1, 1], 80),
    conv("Conv2d_4a_3x3", [3, 3], 192),
    window("MaxPool_5a_3x3", MaxPool, Halve, Same),
];

#[rustfmt::skip]
const MIXED_5B: &[&[Layer]] = &[
    &[conv("Conv2d_1x1", [1, 1], 96)],
    &[conv("Conv2d_0a_1x1", [1, 1], 48), conv("Conv2d_0b_5x5", [5, 5], 64)],
    &[conv("Conv2d_0a_1x1", [1, 1], 64), conv("Conv2d_0b_3x3", [3, 3], 96), conv("Conv2d_0c_3x3", [3, 3], 96)],
    &[window("AvgPool_0a_3x3", AvgPool, Keep, Same), conv("Conv2d_0b_1x1", [1, 1], 64)],
];

#[rustfmt::skip]
const BLOCK_35: &[&[Layer]] = &[
    &[conv("Conv2d_1x1", [1, 1], 32)],
    &[conv("Conv2d_0a_1x1", [1, 1], 32), conv("Conv2d_0b_3x3", [3, 3], 32)],
    &[conv("Conv2d_0a_1x1", [1, 1], 32), conv("Conv2d_0b_3x3", [3, 3], 48), conv("Conv2d_0c_3x3", [3, 3], 64)],
];

/// Its layers of stride 2 have stride 1 where the features keep a stride of 8.
#[rustfmt::skip]
const MIXED_6A: &[&[Layer]] = &[
    &[window("Conv2d_1a_3x3", Conv { channels: 384 }, Halve, Same)],
    &[conv("Conv2d_0a_1x1", [1, 1], 256), conv("Conv2d_0b_3x3", [3, 3], 256), window("Conv2d_1a_3x3", Conv { channels: 384 }, Halve, Same)],
    &[window("MaxPool_1a_3x3", MaxPool, Halve, Same)],
];

#[rustfmt::skip]
const BLOCK_17: &[&[Layer]] = &[
    &[conv("Conv2d_1x1", [1, 1], 192)],
    &[conv("Conv2d_0a_1x1", [1, 1], 128), conv("Conv2d_0b_1x7", [1, 7], 160), conv("Conv2d_0c_7x1", [7, 1], 192)],
];

#[rustfmt::skip]
const MIXED_7A: &[&[Layer]] = &[
    &[conv("Conv2d_0a_1x1", [1, 1], 256), window("Conv2d_1a_3x3", Conv { channels: 384 }, Halve, Valid)],
    &[conv("Conv2d_0a_1x1", [1, 1], 256), window("Conv2d_1a_3x3", Conv { channels: 288 }, Halve, Valid)],
    &[conv("Conv2d_0a_1x1", [1, 1], 256), conv("Conv2d_0b_3x3", [3, 3], 288), window("Conv2d_1a_3x3", Conv { channels: 320 }, Halve, Valid)],
    &[window("MaxPool_1a_3x3", MaxPool, Halve, Valid)],
];

#[rustfmt::skip]
const BLOCK_8: &[&[Layer]] = &[
    &[conv("Conv2d_1x1", [1, 1], 192)],
    &[conv("Conv2d_0a_1x1", [1, 1], 192), conv("Conv2d_0b_1x3", [1, 3], 224), conv("Conv2d_0c_3x1", [3, 1], 256)],
];

/// A block whose result, times a factor that keeps training stable (section 3.3), is added to its input.
struct Residual {
    branches: &'static [&'static [Layer]],
    scale: f64,
    relu: bool,
}

const RESIDUAL_35: Residual = Residual { branches: BLOCK_35, scale: 0.17, relu: true };
const RESIDUAL_17: Residual = Residual { branches: BLOCK_17, scale: 0.10, relu: true };
const RESIDUAL_8: Residual = Residual { branches: BLOCK_8, scale: 0.20, relu: true };
const LAST_8: Residual = Residual { branches: BLOCK_8, scale: 1.0, relu: false };

/// In a Faster R-CNN.
pub const FASTER_RCNN: FasterRcnnBackbone =
    FasterRcnnBackbone { pixels: Pixels::MINUS_ONE_TO_ONE, strides: &[8, 16], first_stage, second_stage, classification_name };

/// The second stage's only `Repeat` is the third of the whole network.
///
/// Source: upstream faster_rcnn_inception_resnet_v2_feature_extractor.py, `restore_from_classification_checkpoint_fn`.
fn classification_name(scope: &str, name: &str) -> String {
    match name.strip_prefix("InceptionResnetV2/Repeat/").filter(|_| scope.starts_with(SECOND_STAGE_SCOPE)) {
        Some(rest) => format!("InceptionResnetV2/Repeat_2/{rest}"),
        None => name.to_string(),
    }
}

/// The layer settings that slim gives this network whatever the pipeline config says.
///
/// Source: upstream `inception_resnet_v2_arg_scope`, with the feature extractor's weight decay of 0; slim's default initializer.
fn slim_scope(train_batch_norm: bool) -> ConvScope {
    ConvScope {
        initializer: Initializer::VarianceScaling { factor: 1.0, fan: Fan::Average, uniform: true },
        regularizer: Regularizer::None,
        batch_norm: Some(BatchNormParams {
            decay: 0.9997,
            epsilon: 0.001,
            center: true,
            scale: false,
            train: train_batch_norm,
            trainable: true,
            moving: MovingVariance::Unbiased,
        }),
        activation: Some(Activation::Relu),
        trainable: true,
    }
}

/// What a group of layers shares.
#[derive(Clone, Copy)]
struct Setting<'a> {
    with: &'a ConvScope,
    /// The stride of layers that halve the size.
    halve: i64,
    dilation: i64,
}

/// Up to the auxiliary logits: `[N, 3, H, W]` in [-1, 1] to `[N, 1088, H / stride, W / stride]`.
fn first_stage(graph: &mut Graph, x: NodeId, scope: &Scope, options: &StageOptions) -> NodeId {
    // slim opens the network's own scope inside, which names operations a second time but not variables.
    let scope = scope.child("InceptionResnetV2");
    let scope = &Scope::split(scope.variables.clone(), format!("{}/InceptionResnetV2", scope.ops));
    let dense = Setting { with: &slim_scope(options.train_batch_norm), halve: 2, dilation: 1 };
    // A stride of 8 comes of dilation in place of the last stride ("atrous").
    let (mixed_6a, block_17) =
        if options.stride == 8 { (Setting { halve: 1, ..dense }, Setting { dilation: 2, ..dense }) } else { (dense, dense) };
    let mut y = STEM.iter().fold(x, |y, layer| append(graph, y, scope, layer, dense));
    y = mixed(graph, y, &scope.child("Mixed_5b"), MIXED_5B, dense);
    for i in 1..=10 {
        y = residual(graph, y, &scope.child(&format!("Repeat/block35_{i}")), &RESIDUAL_35, dense);
    }
    y = mixed(graph, y, &scope.child("Mixed_6a"), MIXED_6A, mixed_6a);
    for i in 1..=20 {
        y = residual(graph, y, &scope.child(&format!("Repeat_1/block17_{i}")), &RESIDUAL_17, block_17);
    }
    y
}

/// The rest, on crops: `[R, 1088, 17, 17]` to `[R, 1536, 8, 8]`.
fn second_stage(graph: &mut Graph, crops: NodeId, scope: &Scope, options: &StageOptions) -> NodeId {
    let scope = &scope.child("InceptionResnetV2");
    let dense = Setting { with: &slim_scope(options.train_batch_norm), halve: 2, dilation: 1 };
    let mut y = mixed(graph, crops, &scope.child("Mixed_7a"), MIXED_7A, dense);
    for i in 1..=9 {
        y = residual(graph, y, &scope.child(&format!("Repeat/block8_{i}")), &RESIDUAL_8, dense);
    }
    y = residual(graph, y, &scope.child("Block8"), &LAST_8, dense);
    append(graph, y, scope, &conv("Conv2d_7b_1x1", [1, 1], 1536), dense)
}

fn append(graph: &mut Graph, x: NodeId, scope: &Scope, layer: &Layer, setting: Setting) -> NodeId {
    let scope = scope.child(layer.name);
    let stride = if layer.size == Halve { setting.halve } else { 1 };
    // Dilation means nothing to a single cell.
    let dilation = layer.kernel.map(|side| if side == 1 { 1 } else { setting.dilation });
    let window = Window { kernel: layer.kernel, stride: [stride; 2], dilation, padding: layer.padding };
    let channels = graph.channels(x);
    match layer.kind {
        Conv { channels } => conv2d(graph, x, &scope, channels, window, setting.with),
        MaxPool => graph.push(&format!("{}/MaxPool", scope.ops), Op::MaxPool(window), &[x], channels),
        AvgPool => graph.push(&format!("{}/AvgPool", scope.ops), Op::AvgPool(window), &[x], channels),
    }
}

/// Branches side by side.
fn mixed(graph: &mut Graph, x: NodeId, scope: &Scope, branches: &[&[Layer]], setting: Setting) -> NodeId {
    let ends: Vec<NodeId> = branches
        .iter()
        .enumerate()
        .map(|(i, branch)| {
            let scope = scope.child(&format!("Branch_{i}"));
            branch.iter().fold(x, |y, layer| append(graph, y, &scope, layer, setting))
        })
        .collect();
    concat(graph, &ends, scope)
}

/// `relu(x + scale * up(mixed(x)))`, where `up` is a linear 1x1 convolution to the channels of `x`.
fn residual(graph: &mut Graph, x: NodeId, scope: &Scope, block: &Residual, setting: Setting) -> NodeId {
    let channels = graph.channels(x);
    let y = mixed(graph, x, scope, block.branches, setting);
    let up = Setting { with: &setting.with.linear(), ..setting };
    let y = append(graph, y, scope, &conv("Conv2d_1x1", [1, 1], channels), up);
    let y = graph.push(&format!("{}/mul", scope.ops), Op::Scale(block.scale), &[y], channels);
    let y = add(graph, [x, y], scope);
    if block.relu { relu(graph, y, scope) } else { y }
}
