//! NASNet-A, large (Zoph et al., arXiv:1707.07012, figures 2 and 4; upstream slim/nets/nasnet/{nasnet,nasnet_utils}.py), in the two halves that
//! Faster R-CNN takes (upstream models/faster_rcnn_nas_feature_extractor.py).

use super::faster_rcnn::{FasterRcnnBackbone, Pixels, StageOptions};
use crate::formats::averages;
use crate::net::graph::{Fan, Graph, Initializer, MovingVariance, NodeId, Op, Padding, Regularizer, Window};
use crate::net::layers::{BatchNormParams, ConvScope, Scope, add, bare_conv2d, bare_separable_conv2d, batch_norm, concat, relu};

/// What is done to one of the two inputs of a combination.
#[derive(Clone, Copy)]
enum Operation {
    /// Twice: ReLU, separable convolution of this kernel, batch norm.
    Separable(i64),
    /// 3x3.
    AvgPool,
    /// 3x3.
    MaxPool,
    None,
}

/// Two earlier states, each after an operation, added up. States 0 and 1 are the cell's input and the cell's before; 2 is the first
/// combination's result, and so on.
struct Combination {
    left: (usize, Operation),
    right: (usize, Operation),
}

struct Cell {
    combinations: [Combination; 5],
    /// Which states make the output, side by side: those that no combination reads.
    output: &'static [usize],
    stride: i64,
}

use Operation::{AvgPool, MaxPool, None as Nothing, Separable};

#[rustfmt::skip]
const NORMAL: Cell = Cell {
    combinations: [
        Combination { left: (0, Separable(5)), right: (1, Separable(3)) },
        Combination { left: (1, Separable(5)), right: (1, Separable(3)) },
        Combination { left: (0, AvgPool),      right: (1, Nothing) },
        Combination { left: (1, AvgPool),      right: (1, AvgPool) },
        Combination { left: (0, Separable(3)), right: (0, Nothing) },
    ],
    output: &[1, 2, 3, 4, 5, 6],
    stride: 1,
};

#[rustfmt::skip]
const REDUCTION: Cell = Cell {
    combinations: [
        Combination { left: (0, Separable(5)), right: (1, Separable(7)) },
        Combination { left: (0, MaxPool),      right: (1, Separable(7)) },
        Combination { left: (0, AvgPool),      right: (1, Separable(5)) },
        Combination { left: (3, Nothing),      right: (2, AvgPool) },
        Combination { left: (2, Separable(3)), right: (0, MaxPool) },
    ],
    output: &[3, 4, 5, 6],
    stride: 2,
};

/// The first convolution's channels: 32 times the stem multiplier 3.
const STEM_CHANNELS: i64 = 96;
/// Channels of every operation in a normal cell before the first reduction; each reduction doubles them.
const CELL_CHANNELS: i64 = 168;
/// A path is dropped with this probability in the last cell at the end of the schedule, less in cells before it.
const DROP_PATH: f64 = 0.3;
/// The length of the schedule in steps.
const DROP_PATH_STEPS: f64 = 250_000.0;
/// 18 normal cells, 2 reductions, 2 stem cells.
const CELLS: i64 = 22;

/// In a Faster R-CNN.
pub const FASTER_RCNN: FasterRcnnBackbone = FasterRcnnBackbone {
    pixels: Pixels::MINUS_ONE_TO_ONE,
    strides: &[16],
    first_stage,
    second_stage,
    // Upstream takes the averages of this network's weights: faster_rcnn_nas_feature_extractor.py.
    classification_name: |_, name| averages::name(name),
};

/// The layer settings that slim gives this network whatever the pipeline config says.
///
/// Source: upstream `nasnet_large_arg_scope_for_detection`: weight decay 5e-5, slim's variance scaling by fan out.
fn slim_scope(train_batch_norm: bool) -> ConvScope {
    ConvScope {
        initializer: Initializer::VarianceScaling { factor: 2.0, fan: Fan::Out, uniform: false },
        regularizer: Regularizer::L2(5e-5),
        batch_norm: Some(BatchNormParams {
            decay: 0.9997,
            epsilon: 0.001,
            center: true,
            scale: true,
            train: train_batch_norm,
            trainable: true,
            moving: MovingVariance::Unbiased,
        }),
        activation: None,
        trainable: true,
    }
}

/// The stem and cells 0 to 11: `[N, 3, H, W]` in [-1, 1] to `[N, 4032, H / 16, W / 16]`, cells 10 and 11 side by side.
fn first_stage(graph: &mut Graph, x: NodeId, scope: &Scope, _: &StageOptions) -> NodeId {
    // Upstream hands the network its own flag for training here, which outweighs the config's for batch norms.
    let with = &slim_scope(true);
    let window = Window::square(3, 2, Padding::Valid);
    let y = bare_conv2d(graph, x, &scope.child("conv0"), STEM_CHANNELS, window, with);
    let stem = norm(graph, y, &scope.child("conv0_bn"), with);
    let mut builder = Builder { graph, scope, with, index: 0 };
    let stem_0 = builder.cell("cell_stem_0", &REDUCTION, CELL_CHANNELS / 4, [stem, stem]);
    let stem_1 = builder.cell("cell_stem_1", &REDUCTION, CELL_CHANNELS / 2, [stem_0, stem]);
    let [previous, last] = builder.normal_cells(0..6, CELL_CHANNELS, [stem_1, stem_0]);
    let reduced = builder.cell("reduction_cell_0", &REDUCTION, 2 * CELL_CHANNELS, [last, previous]);
    // The first cell after a reduction looks back past it.
    let first = builder.cell("cell_6", &NORMAL, 2 * CELL_CHANNELS, [reduced, previous]);
    let [previous, last] = builder.normal_cells(7..12, 2 * CELL_CHANNELS, [first, reduced]);
    concat(graph, &[previous, last], scope)
}

/// The second reduction and cells 12 to 17, on crops: `[R, 4032, 17, 17]` to `[R, 4032, 9, 9]`.
fn second_stage(graph: &mut Graph, crops: NodeId, scope: &Scope, options: &StageOptions) -> NodeId {
    let with = &slim_scope(options.train_batch_norm);
    let half = graph.channels(crops) / 2;
    let mut slice =
        |channel| graph.push(&format!("{}/split", scope.ops), Op::Slice { row: 0, column: 0, channel }, &[crops], half);
    let (previous, last) = (slice(0), slice(half));
    // The stem, cells 0 to 11 and a reduction lie before.
    let mut builder = Builder { graph, scope, with, index: 15 };
    let reduced = builder.cell("reduction_cell_1", &REDUCTION, 4 * CELL_CHANNELS, [last, previous]);
    let first = builder.cell("cell_12", &NORMAL, 4 * CELL_CHANNELS, [reduced, previous]);
    let [_, last] = builder.normal_cells(13..18, 4 * CELL_CHANNELS, [first, reduced]);
    relu(graph, last, &scope.child("final_layer"))
}

/// What all cells of one half share.
struct Builder<'a> {
    graph: &'a mut Graph,
    scope: &'a Scope,
    with: &'a ConvScope,
    /// Of the next cell, in the whole network.
    index: i64,
}

impl Builder<'_> {
    /// Consecutive normal cells; gives the last two outputs, `[the one before, the last]`.
    ///
    /// * `inputs`: the last cell's output, and the one's before it.
    fn normal_cells(&mut self, indices: std::ops::Range<i64>, channels: i64, inputs: [NodeId; 2]) -> [NodeId; 2] {
        let [mut last, mut previous] = inputs;
        for i in indices {
            let next = self.cell(&format!("cell_{i}"), &NORMAL, channels, [last, previous]);
            (previous, last) = (last, next);
        }
        [previous, last]
    }

    /// One cell on the last cell's output and the one's before it.
    fn cell(&mut self, name: &str, cell: &Cell, channels: i64, inputs: [NodeId; 2]) -> NodeId {
        let scope = &self.scope.child(name);
        let rate = DROP_PATH * (self.index + 1) as f64 / CELLS as f64;
        self.index += 1;
        let [input, previous] = inputs;
        let previous = self.match_previous(previous, input, scope, channels);
        let y = relu(self.graph, input, scope);
        let y = self.pointwise(y, &scope.child("1x1"), channels);
        let input = norm(self.graph, y, &scope.child("beginning_bn"), self.with);
        let mut states = vec![input, previous];
        for (i, combination) in cell.combinations.iter().enumerate() {
            let scope = scope.child(&format!("comb_iter_{i}"));
            let side = |builder: &mut Self, (state, operation): (usize, Operation), side: &str| {
                // Only the cell's inputs still have the full size.
                let stride = if state < 2 { cell.stride } else { 1 };
                builder.operation(states[state], &scope.child(side), operation, (channels, stride), rate)
            };
            let left = side(self, combination.left, "left");
            let right = side(self, combination.right, "right");
            states.push(add(self.graph, [left, right], &scope.child("combine")));
        }
        let parts: Vec<NodeId> = cell.output.iter().map(|&state| states[state]).collect();
        concat(self.graph, &parts, &scope.child("cell_output"))
    }

    /// The output of the cell before last, with the size and channels that this cell works on.
    fn match_previous(&mut self, previous: NodeId, input: NodeId, scope: &Scope, channels: i64) -> NodeId {
        if previous == input {
            return previous;
        }
        // Any size tells how often each of the two was halved.
        let sizes = self.graph.sizes([512, 512]);
        if sizes[previous.0] != sizes[input.0] {
            let y = relu(self.graph, previous, scope);
            return self.factorized_reduction(y, scope, channels);
        }
        if self.graph.channels(previous) == channels {
            return previous;
        }
        let y = relu(self.graph, previous, scope);
        let y = self.pointwise(y, &scope.child("prev_1x1"), channels);
        norm(self.graph, y, &scope.child("prev_bn"), self.with)
    }

    /// Half the size without losing every second cell: half of the channels from the even cells, half from the odd.
    fn factorized_reduction(&mut self, x: NodeId, scope: &Scope, channels: i64) -> NodeId {
        let name = |part: &str| format!("{}/{part}", scope.ops);
        let before = self.graph.channels(x);
        let every_second = Op::AvgPool(Window::square(1, 2, Padding::Valid));
        let even = self.graph.push(&name("AvgPool"), every_second, &[x], before);
        let even = self.pointwise(even, &scope.child("path1_conv"), channels / 2);
        let shifted = self.graph.push(&name("Pad"), Op::Pad([0, 0, 1, 1]), &[x], before);
        let from_one = Op::Slice { row: 1, column: 1, channel: 0 };
        let shifted = self.graph.push(&name("strided_slice"), from_one, &[shifted], before);
        let odd = self.graph.push(&name("AvgPool"), every_second, &[shifted], before);
        let odd = self.pointwise(odd, &scope.child("path2_conv"), channels - channels / 2);
        let y = concat(self.graph, &[even, odd], scope);
        norm(self.graph, y, &scope.child("final_path_bn"), self.with)
    }

    /// * `to`: channels and stride.
    fn operation(&mut self, x: NodeId, scope: &Scope, operation: Operation, to: (i64, i64), rate: f64) -> NodeId {
        let (channels, stride) = to;
        let y = match operation {
            Separable(kernel) => self.separable_twice(x, scope, kernel, to),
            AvgPool => self.pool(x, &scope.child("AvgPool2D/AvgPool"), Op::AvgPool(Window::square(3, stride, Padding::Same))),
            MaxPool => self.pool(x, &scope.child("MaxPool2D/MaxPool"), Op::MaxPool(Window::square(3, stride, Padding::Same))),
            Nothing => return x,
        };
        self.graph.push(&format!("{}/drop_path", scope.ops), Op::DropPath { rate, steps: DROP_PATH_STEPS }, &[y], channels)
    }

    fn pool(&mut self, x: NodeId, scope: &Scope, op: Op) -> NodeId {
        let channels = self.graph.channels(x);
        self.graph.push(&scope.ops, op, &[x], channels)
    }

    fn separable_twice(&mut self, x: NodeId, scope: &Scope, kernel: i64, to: (i64, i64)) -> NodeId {
        let (channels, stride) = to;
        let mut y = x;
        for (i, stride) in [(1, stride), (2, 1)] {
            y = relu(self.graph, y, scope);
            let name = format!("{kernel}x{kernel}_{i}");
            let window = Window::square(kernel, stride, Padding::Same);
            y = bare_separable_conv2d(
                self.graph,
                y,
                &scope.child(&format!("separable_{name}")),
                (1, channels),
                window,
                self.with,
            );
            y = norm(self.graph, y, &scope.child(&format!("bn_sep_{name}")), self.with);
        }
        y
    }

    fn pointwise(&mut self, x: NodeId, scope: &Scope, channels: i64) -> NodeId {
        bare_conv2d(self.graph, x, scope, channels, Window::square(1, 1, Padding::Same), self.with)
    }
}

fn norm(graph: &mut Graph, x: NodeId, scope: &Scope, with: &ConvScope) -> NodeId {
    match &with.batch_norm {
        Some(params) => batch_norm(graph, x, scope, params),
        None => x,
    }
}
