//! ResNet V1 of 50, 101 and 152 layers (He et al., arXiv:1512.03385, table 1; upstream slim/nets/resnet_v1.py and resnet_utils.py), as the two
//! halves of a Faster R-CNN.

use super::faster_rcnn::{FasterRcnnBackbone, Pixels, StageOptions, same_name};
use crate::net::graph::{Activation, Fan, Graph, Initializer, MovingVariance, NodeId, Op, Padding, Regularizer, Window};
use crate::net::layers::{BatchNormParams, ConvScope, Scope, add, conv2d, relu};

/// A stack of bottleneck units.
struct Block {
    name: &'static str,
    /// Of the 3x3 convolutions; four times as many come out.
    channels: i64,
    units: usize,
    /// Of the last unit.
    stride: i64,
}

/// A network's name in its variables, and its blocks.
struct Network {
    name: &'static str,
    blocks: [Block; 4],
}

/// The four blocks, by their numbers of units.
const fn network(name: &'static str, units: [usize; 4]) -> Network {
    Network {
        name,
        blocks: [
            Block { name: "block1", channels: 64, units: units[0], stride: 2 },
            Block { name: "block2", channels: 128, units: units[1], stride: 2 },
            Block { name: "block3", channels: 256, units: units[2], stride: 2 },
            Block { name: "block4", channels: 512, units: units[3], stride: 1 },
        ],
    }
}

const RESNET_50: Network = network("resnet_v1_50", [3, 4, 6, 3]);
const RESNET_101: Network = network("resnet_v1_101", [3, 4, 23, 3]);
const RESNET_152: Network = network("resnet_v1_152", [3, 8, 36, 3]);

/// ResNet-50 in a Faster R-CNN.
pub const FASTER_RCNN_50: FasterRcnnBackbone = FasterRcnnBackbone {
    pixels: Pixels::MINUS_MEAN,
    strides: &[8, 16],
    first_stage: |graph, x, scope, options| first_stage(graph, x, scope, &RESNET_50, options),
    second_stage: |graph, x, scope, options| second_stage(graph, x, scope, &RESNET_50, options),
    classification_name: same_name,
};

/// ResNet-101 in a Faster R-CNN.
pub const FASTER_RCNN_101: FasterRcnnBackbone = FasterRcnnBackbone {
    first_stage: |graph, x, scope, options| first_stage(graph, x, scope, &RESNET_101, options),
    second_stage: |graph, x, scope, options| second_stage(graph, x, scope, &RESNET_101, options),
    ..FASTER_RCNN_50
};

/// ResNet-152 in a Faster R-CNN.
pub const FASTER_RCNN_152: FasterRcnnBackbone = FasterRcnnBackbone {
    first_stage: |graph, x, scope, options| first_stage(graph, x, scope, &RESNET_152, options),
    second_stage: |graph, x, scope, options| second_stage(graph, x, scope, &RESNET_152, options),
    ..FASTER_RCNN_50
};

/// The layer settings that slim gives this network whatever the pipeline config says.
///
/// Source: upstream `resnet_arg_scope`, with the feature extractor's weight decay of 0.
fn slim_scope(train_batch_norm: bool) -> ConvScope {
    ConvScope {
        initializer: Initializer::VarianceScaling { factor: 2.0, fan: Fan::In, uniform: false },
        regularizer: Regularizer::None,
        batch_norm: Some(BatchNormParams {
            decay: 0.997,
            epsilon: 1e-5,
            center: true,
            scale: true,
            train: train_batch_norm,
            trainable: true,
            moving: MovingVariance::Unbiased,
        }),
        activation: Some(Activation::Relu),
        trainable: true,
    }
}

/// The whole network; its map is that of block3. Upstream builds block4 here too, so that checkpoints have its variables, and reads it nowhere.
fn first_stage(graph: &mut Graph, x: NodeId, scope: &Scope, network: &Network, options: &StageOptions) -> NodeId {
    let with = slim_scope(options.train_batch_norm);
    // slim opens the network's own scope inside, which names operations a second time but not variables.
    let outer = scope.child(network.name);
    let scope = Scope::split(outer.variables.clone(), format!("{}/{}", outer.ops, network.name));
    let y = conv2d(graph, x, &scope.child("conv1"), 64, same_window(7, 2, 1), &with);
    let pool = Op::MaxPool(Window::square(3, 2, Padding::Same));
    let mut y = graph.push(&format!("{}/pool1/MaxPool", scope.ops), pool, &[y], 64);
    let mut map = y;
    // Beyond the wanted stride, what would shrink the map dilates the layers after it.
    let (mut stride, mut dilation) = (4, 1);
    for block in &network.blocks {
        for i in 1..=block.units {
            let unit = scope.child(&format!("{}/unit_{i}/bottleneck_v1", block.name));
            let own = if i == block.units { block.stride } else { 1 };
            if stride == options.stride {
                y = bottleneck(graph, y, &unit, (block.channels, 1, dilation), &with);
                dilation *= own;
            } else {
                y = bottleneck(graph, y, &unit, (block.channels, own, 1), &with);
                stride *= own;
            }
        }
        if block.name == "block3" {
            map = y;
        }
    }
    map
}

/// Block4, its stride and dilation always 1.
fn second_stage(graph: &mut Graph, x: NodeId, scope: &Scope, network: &Network, options: &StageOptions) -> NodeId {
    let with = slim_scope(options.train_batch_norm);
    let block = &network.blocks[3];
    (1..=block.units).fold(x, |y, i| {
        let unit = scope.child(&format!("{}/{}/unit_{i}/bottleneck_v1", network.name, block.name));
        bottleneck(graph, y, &unit, (block.channels, 1, 1), &with)
    })
}

/// 1x1 down, 3x3, 1x1 up, and the input or a 1x1 convolution of it added: `[N, C, H, W] -> [N, 4 * channels, H / stride, W / stride]`.
fn bottleneck(
    graph: &mut Graph,
    x: NodeId,
    scope: &Scope,
    (channels, stride, dilation): (i64, i64, i64),
    with: &ConvScope,
) -> NodeId {
    let raw = ConvScope { activation: None, ..*with };
    let wide = 4 * channels;
    let point = |stride| Window::square(1, stride, Padding::Same);
    let shortcut = if graph.channels(x) != wide {
        conv2d(graph, x, &scope.child("shortcut"), wide, point(stride), &raw)
    } else if stride == 1 {
        x
    } else {
        graph.push(&format!("{}/shortcut/MaxPool", scope.ops), Op::MaxPool(point(stride)), &[x], wide)
    };
    let y = conv2d(graph, x, &scope.child("conv1"), channels, point(1), with);
    let y = conv2d(graph, y, &scope.child("conv2"), channels, same_window(3, stride, dilation), with);
    let y = conv2d(graph, y, &scope.child("conv3"), wide, point(1), &raw);
    let y = add(graph, [shortcut, y], scope);
    relu(graph, y, scope)
}

/// Zeros of half a kernel on every side whatever the map's size, where TensorFlow's own 'SAME' would depend on it (upstream `conv2d_same`).
fn same_window(kernel: i64, stride: i64, dilation: i64) -> Window {
    let total = (kernel - 1) * dilation;
    let (before, after) = (total / 2, total - total / 2);
    Window {
        kernel: [kernel; 2],
        stride: [stride; 2],
        dilation: [dilation; 2],
        padding: Padding::Explicit([before, before, after, after]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn at_stride_8_block3_is_dilated_where_it_would_shrink_the_map() {
        for (stride, grid, dilation) in [(16, [7, 10], 1), (8, [13, 19], 2)] {
            let mut graph = Graph::new();
            let x = graph.input("x", 3);
            let options = StageOptions { stride, train_batch_norm: false };
            let map = (FASTER_RCNN_50.first_stage)(&mut graph, x, &Scope::new("F"), &options);
            assert_eq!(graph.channels(map), 1024);
            assert_eq!(graph.sizes([101, 150])[map.0], grid, "stride {stride}");
            let conv = graph.find("F/resnet_v1_50/resnet_v1_50/block3/unit_3/bottleneck_v1/conv2/Conv2D").unwrap();
            let Op::Conv2d { window, .. } = graph.node(conv).op else { panic!() };
            assert_eq!((window.stride, window.dilation), ([1, 1], [dilation; 2]));
            // Block4 has its variables, though nothing reads it.
            assert!(graph.variables().iter().any(|v| v.name.contains("block4/unit_3")));
        }
    }

    #[test]
    fn the_deeper_networks_have_their_papers_units() {
        for (backbone, units) in [(FASTER_RCNN_50, 13), (FASTER_RCNN_101, 30), (FASTER_RCNN_152, 47)] {
            let mut graph = Graph::new();
            let x = graph.input("x", 3);
            let options = StageOptions { stride: 16, train_batch_norm: false };
            let map = (backbone.first_stage)(&mut graph, x, &Scope::new("F"), &options);
            let adds = graph.nodes()[..=map.0].iter().filter(|n| n.op == Op::Add).count();
            assert_eq!(adds, units);
        }
    }
}
