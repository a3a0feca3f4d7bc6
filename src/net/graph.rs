//! A network as data: named operations and variables under TensorFlow's scopes, before any tensor exists.
//!
//! One definition has several readers: the executor (`net::exec`), the variable table, and the writers of other programs' formats (`export`).

use std::collections::HashMap;

/// Points at a node of one graph; its value is the node's single output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct NodeId(pub usize);

/// Points at a variable of one graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct VariableId(pub usize);

/// What a variable is, which decides how TensorFlow's layout maps to libtorch's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VariableKind {
    /// TensorFlow `[H, W, I, O]`, libtorch `[O, I, H, W]`.
    Convolution,
    /// TensorFlow `[H, W, I, M]`, libtorch `[I * M, 1, H, W]`.
    DepthwiseConvolution,
    /// TensorFlow `[I, O]`, libtorch `[O, I]`.
    FullyConnected,
    /// One number a channel, the same in both.
    Vector,
}

/// How a variable starts when no checkpoint gives it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Initializer {
    /// Every element the same.
    Constant(f32),
    /// Normal, redrawn beyond two standard deviations.
    TruncatedNormal { mean: f32, stddev: f32 },
    /// Normal.
    RandomNormal { mean: f32, stddev: f32 },
    /// TensorFlow's variance scaling; the limits depend on the fan.
    VarianceScaling { factor: f32, fan: Fan, uniform: bool },
}

/// What a variable adds to the loss.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Regularizer {
    None,
    /// This times `sum(|w|)`.
    L1(f64),
    /// This times `sum(w * w) / 2`.
    L2(f64),
}

impl Regularizer {
    /// The weight of `sum(|w|)`.
    pub fn l1(self) -> f64 {
        match self {
            Regularizer::L1(weight) => weight,
            Regularizer::None | Regularizer::L2(_) => 0.0,
        }
    }

    /// The weight of `sum(w * w) / 2`.
    pub fn l2(self) -> f64 {
        match self {
            Regularizer::L2(weight) => weight,
            Regularizer::None | Regularizer::L1(_) => 0.0,
        }
    }
}

/// Which side of a layer a variance scaling counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fan {
    In,
    Out,
    Average,
}

/// A variable, in TensorFlow's words.
#[derive(Debug, Clone, PartialEq)]
pub struct Variable {
    /// The name in a TensorFlow checkpoint.
    pub name: String,
    /// The shape in TensorFlow's layout.
    pub shape: Vec<i64>,
    /// Decides the layout.
    pub kind: VariableKind,
    /// Whether an optimizer may change it.
    pub trainable: bool,
    /// Its value without a checkpoint.
    pub initializer: Initializer,
    /// What it adds to the loss.
    pub regularizer: Regularizer,
}

/// How a window that overhangs the map is treated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Padding {
    /// TensorFlow's: `ceil(in / stride)` cells, the odd pixel of padding at the bottom and right.
    Same,
    /// None.
    Valid,
    /// `[top, left, bottom, right]` zeros, then none.
    Explicit([i64; 4]),
}

/// A window that slides over height and width.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// `[height, width]`.
    pub kernel: [i64; 2],
    /// `[vertical, horizontal]`.
    pub stride: [i64; 2],
    /// `[vertical, horizontal]`.
    pub dilation: [i64; 2],
    /// What happens at the edge.
    pub padding: Padding,
}

impl Window {
    /// A square window without dilation.
    pub fn square(kernel: i64, stride: i64, padding: Padding) -> Self {
        Self { kernel: [kernel; 2], stride: [stride; 2], dilation: [1; 2], padding }
    }

    /// `[top, left, bottom, right]` for an input of `height` x `width`.
    pub fn pads(&self, height: i64, width: i64) -> [i64; 4] {
        match self.padding {
            Padding::Valid => [0; 4],
            Padding::Explicit(pads) => pads,
            Padding::Same => {
                let [top, bottom] = same_pads(height, self.kernel[0], self.stride[0], self.dilation[0]);
                let [left, right] = same_pads(width, self.kernel[1], self.stride[1], self.dilation[1]);
                [top, left, bottom, right]
            }
        }
    }

    /// `[height, width]` of the output.
    pub fn output_size(&self, height: i64, width: i64) -> [i64; 2] {
        let [top, left, bottom, right] = self.pads(height, width);
        // Rounded down also below zero: a map that is smaller than the window has no cells.
        let side = |size: i64, i: usize| (size - (self.kernel[i] - 1) * self.dilation[i] - 1).div_euclid(self.stride[i]) + 1;
        [side(height + top + bottom, 0), side(width + left + right, 1)]
    }
}

/// TensorFlow's 'SAME': `[before, after]` along one side.
fn same_pads(size: i64, kernel: i64, stride: i64, dilation: i64) -> [i64; 2] {
    let reach = (kernel - 1) * dilation + 1;
    let output = (size + stride - 1) / stride;
    let total = ((output - 1) * stride + reach - size).max(0);
    [total / 2, total - total / 2]
}

/// Pointwise nonlinearities.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    Relu,
    Relu6,
}

/// Which variance goes into a batch norm's moving average: TensorFlow's fused kernel stores the unbiased one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MovingVariance {
    Biased,
    Unbiased,
}

/// A batch norm's variables and constants.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BatchNorm {
    pub gamma: Option<VariableId>,
    pub beta: Option<VariableId>,
    pub moving_mean: VariableId,
    pub moving_variance: VariableId,
    /// Added to the variance inside the root.
    pub epsilon: f64,
    /// Of the moving averages.
    pub decay: f64,
    /// In training, normalize with the batch's statistics and update the moving averages; else always the stored ones.
    pub train: bool,
    /// What the moving average takes.
    pub moving: MovingVariance,
}

/// One operation. Values are NCHW in the executor, NHWC in TensorFlow's files.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Op {
    /// The picture or map that the caller gives.
    Input,
    Conv2d {
        weights: VariableId,
        window: Window,
    },
    DepthwiseConv2d {
        weights: VariableId,
        window: Window,
    },
    /// `[N, I] -> [N, O]`.
    FullyConnected {
        weights: VariableId,
    },
    BiasAdd {
        biases: VariableId,
    },
    BatchNorm(BatchNorm),
    Activation(Activation),
    MaxPool(Window),
    /// With 'SAME' padding divides by the cells inside the map.
    AvgPool(Window),
    /// Mean over height and width: `[N, C, H, W] -> [N, C]`.
    GlobalMean,
    /// Along the channels.
    Concat,
    /// Of two inputs.
    Add,
    /// Times a constant.
    Scale(f64),
    /// Of each element.
    Sigmoid,
    /// Zeros around the map: `[top, left, bottom, right]`.
    Pad([i64; 4]),
    /// The map from a row, a column and a channel on; of the channels, as many as the node has.
    Slice {
        row: i64,
        column: i64,
        channel: i64,
    },
    /// Keeps each element with this probability in training, scaled up by its inverse.
    Dropout {
        keep: f64,
    },
    /// Drops whole pictures of the batch in training, with a probability that grows with the step from 0 to `rate` at step `steps`; the kept ones
    /// are scaled up by the inverse of their probability.
    DropPath {
        rate: f64,
        steps: f64,
    },
}

/// An operation at its place in the network.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    /// TensorFlow's operation name, unique in the graph.
    pub name: String,
    pub op: Op,
    pub inputs: Vec<NodeId>,
    /// Channels of the output.
    pub channels: i64,
}

/// Operations in an order in which every input comes before its reader.
#[derive(Debug, Clone, Default)]
pub struct Graph {
    nodes: Vec<Node>,
    variables: Vec<Variable>,
    outputs: Vec<(String, NodeId)>,
    variable_ids: HashMap<String, VariableId>,
    names: HashMap<String, usize>,
}

impl Graph {
    /// An empty graph.
    pub fn new() -> Self {
        Self::default()
    }

    /// Operations, inputs before readers.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// Variables in the order of their creation.
    pub fn variables(&self) -> &[Variable] {
        &self.variables
    }

    /// What the caller wants to have, by name.
    pub fn outputs(&self) -> &[(String, NodeId)] {
        &self.outputs
    }

    /// The node behind an id.
    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.0]
    }

    /// The variable behind an id.
    pub fn variable(&self, id: VariableId) -> &Variable {
        &self.variables[id.0]
    }

    /// Channels of a node's output.
    pub fn channels(&self, id: NodeId) -> i64 {
        self.nodes[id.0].channels
    }

    /// The node named so, if there is one.
    pub fn find(&self, name: &str) -> Option<NodeId> {
        self.nodes.iter().position(|n| n.name == name).map(NodeId)
    }

    /// A picture or map of `channels` channels from outside.
    pub fn input(&mut self, name: &str, channels: i64) -> NodeId {
        self.push(name, Op::Input, &[], channels)
    }

    /// Names a node as one of the graph's results.
    pub fn output(&mut self, name: &str, node: NodeId) {
        self.outputs.push((name.to_string(), node));
    }

    /// Appends an operation. A name that is taken gets TensorFlow's `_1`, `_2`, ...
    pub fn push(&mut self, name: &str, op: Op, inputs: &[NodeId], channels: i64) -> NodeId {
        assert!(op != Op::Add || inputs.len() == 2, "{name} adds {} inputs", inputs.len());
        let count = self.names.entry(name.to_string()).or_insert(0);
        let unique = if *count == 0 { name.to_string() } else { format!("{name}_{count}") };
        *count += 1;
        self.nodes.push(Node { name: unique, op, inputs: inputs.to_vec(), channels });
        NodeId(self.nodes.len() - 1)
    }

    /// `[height, width]` of every node's output for an input of that size; `[1, 1]` where a node has no map.
    pub fn sizes(&self, input: [i64; 2]) -> Vec<[i64; 2]> {
        let mut sizes: Vec<[i64; 2]> = Vec::with_capacity(self.nodes.len());
        for node in &self.nodes {
            let before = node.inputs.first().map_or(input, |id| sizes[id.0]);
            sizes.push(match &node.op {
                Op::Conv2d { window, .. } | Op::DepthwiseConv2d { window, .. } | Op::MaxPool(window) | Op::AvgPool(window) => {
                    window.output_size(before[0], before[1])
                }
                Op::Pad([top, left, bottom, right]) => [before[0] + top + bottom, before[1] + left + right],
                Op::Slice { row, column, .. } => [before[0] - row, before[1] - column],
                Op::GlobalMean | Op::FullyConnected { .. } => [1, 1],
                Op::Input
                | Op::BiasAdd { .. }
                | Op::BatchNorm(_)
                | Op::Activation(_)
                | Op::Concat
                | Op::Add
                | Op::Scale(_)
                | Op::Sigmoid
                | Op::Dropout { .. }
                | Op::DropPath { .. } => before,
            });
        }
        sizes
    }

    /// Declares a variable; the same name twice is the same variable (TensorFlow's reuse).
    pub fn declare(&mut self, variable: Variable) -> VariableId {
        if let Some(&id) = self.variable_ids.get(&variable.name) {
            assert!(self.variables[id.0].shape == variable.shape, "variable {} is declared with two shapes", variable.name);
            return id;
        }
        let id = VariableId(self.variables.len());
        self.variable_ids.insert(variable.name.clone(), id);
        self.variables.push(variable);
        id
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn same_padding_puts_the_odd_pixel_at_the_bottom_and_right() {
        let window = Window::square(3, 2, Padding::Same);
        assert_eq!(window.pads(300, 300), [0, 0, 1, 1]);
        assert_eq!(window.pads(75, 75), [1, 1, 1, 1]);
        assert_eq!(window.output_size(300, 300), [150, 150]);
        assert_eq!(window.output_size(75, 19), [38, 10]);
        assert_eq!(Window::square(1, 2, Padding::Same).pads(10, 10), [0; 4]);
    }

    #[test]
    fn a_name_that_is_taken_gets_a_number() {
        let mut graph = Graph::new();
        let x = graph.input("x", 3);
        let a = graph.push("Relu", Op::Activation(Activation::Relu), &[x], 3);
        let b = graph.push("Relu", Op::Activation(Activation::Relu), &[a], 3);
        assert_eq!(graph.node(a).name, "Relu");
        assert_eq!(graph.node(b).name, "Relu_1");
    }
}
