//! Layers as TensorFlow's slim library composes them: convolution, then batch norm or bias, then activation, under one scope.

use super::graph::{
    Activation, BatchNorm, Graph, Initializer, MovingVariance, NodeId, Op, Padding, Regularizer, Variable, VariableId,
    VariableKind, Window,
};

/// A batch norm's settings.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BatchNormParams {
    pub decay: f64,
    pub epsilon: f64,
    /// Whether there is a beta.
    pub center: bool,
    /// Whether there is a gamma.
    pub scale: bool,
    /// Whether training uses and updates statistics of the batch.
    pub train: bool,
    /// Whether gamma and beta are trainable variables.
    pub trainable: bool,
    pub moving: MovingVariance,
}

/// What a convolution takes from its surroundings: slim's arg scope.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ConvScope {
    pub initializer: Initializer,
    /// What its weights add to the loss.
    pub regularizer: Regularizer,
    /// Without it the layer has biases.
    pub batch_norm: Option<BatchNormParams>,
    pub activation: Option<Activation>,
    /// Whether the weights are trainable variables.
    pub trainable: bool,
}

impl ConvScope {
    /// The same without batch norm and activation: a layer whose output is raw.
    pub fn linear(self) -> Self {
        Self { batch_norm: None, activation: None, ..self }
    }
}

/// `[N, I, H, W] -> [N, channels, H', W']`, with its variables and operations under `scope`.
pub fn conv2d(graph: &mut Graph, x: NodeId, scope: &Scope, channels: i64, window: Window, with: &ConvScope) -> NodeId {
    let y = bare_conv2d(graph, x, scope, channels, window, with);
    finish(graph, y, scope, with)
}

/// The convolution of [`conv2d`] alone: no batch norm, no biases, no activation.
pub fn bare_conv2d(graph: &mut Graph, x: NodeId, scope: &Scope, channels: i64, window: Window, with: &ConvScope) -> NodeId {
    let shape = vec![window.kernel[0], window.kernel[1], graph.channels(x), channels];
    let weights = declare_weights(graph, format!("{}/weights", scope.variables), shape, VariableKind::Convolution, with);
    graph.push(&format!("{}/Conv2D", scope.ops), Op::Conv2d { weights, window }, &[x], channels)
}

/// One filter a channel (depth multiplier 1): `[N, C, H, W] -> [N, C, H', W']`.
pub fn depthwise_conv2d(graph: &mut Graph, x: NodeId, scope: &Scope, window: Window, with: &ConvScope) -> NodeId {
    let y = depthwise(graph, x, scope, &format!("{}/depthwise", scope.ops), (1, window, with));
    finish(graph, y, scope, with)
}

/// slim's `separable_conv2d`: `multiplier` filters a channel, then a 1x1 convolution, with nothing between them:
/// `[N, I, H, W] -> [N, channels, H', W']`.
pub fn separable_conv2d(
    graph: &mut Graph,
    x: NodeId,
    scope: &Scope,
    channels: (i64, i64),
    window: Window,
    with: &ConvScope,
) -> NodeId {
    let y = bare_separable_conv2d(graph, x, scope, channels, window, with);
    finish(graph, y, scope, with)
}

/// The two convolutions of [`separable_conv2d`] alone.
pub fn bare_separable_conv2d(
    graph: &mut Graph,
    x: NodeId,
    scope: &Scope,
    (multiplier, channels): (i64, i64),
    window: Window,
    with: &ConvScope,
) -> NodeId {
    let ops = format!("{}/separable_conv2d", scope.ops);
    let y = depthwise(graph, x, scope, &format!("{ops}/depthwise"), (multiplier, window, with));
    let shape = vec![1, 1, graph.channels(y), channels];
    let name = format!("{}/pointwise_weights", scope.variables);
    let weights = declare_weights(graph, name, shape, VariableKind::Convolution, with);
    let op = Op::Conv2d { weights, window: Window::square(1, 1, Padding::Same) };
    graph.push(&ops, op, &[y], channels)
}

/// Maps of one size, one behind the other: `[N, C1, H, W], [N, C2, H, W], ... -> [N, C1 + C2 + ..., H, W]`.
pub fn concat(graph: &mut Graph, parts: &[NodeId], scope: &Scope) -> NodeId {
    let channels = parts.iter().map(|&part| graph.channels(part)).sum();
    graph.push(&format!("{}/concat", scope.ops), Op::Concat, parts, channels)
}

/// The sum of two maps of one shape.
pub fn add(graph: &mut Graph, parts: [NodeId; 2], scope: &Scope) -> NodeId {
    let channels = graph.channels(parts[0]);
    graph.push(&format!("{}/add", scope.ops), Op::Add, &parts, channels)
}

/// `max(x, 0)`.
pub fn relu(graph: &mut Graph, x: NodeId, scope: &Scope) -> NodeId {
    let channels = graph.channels(x);
    graph.push(&format!("{}/Relu", scope.ops), Op::Activation(Activation::Relu), &[x], channels)
}

/// The depthwise convolution alone, as operation `name`.
fn depthwise(
    graph: &mut Graph,
    x: NodeId,
    scope: &Scope,
    name: &str,
    (multiplier, window, with): (i64, Window, &ConvScope),
) -> NodeId {
    let channels = graph.channels(x);
    let shape = vec![window.kernel[0], window.kernel[1], channels, multiplier];
    let variable = format!("{}/depthwise_weights", scope.variables);
    let weights = declare_weights(graph, variable, shape, VariableKind::DepthwiseConvolution, with);
    graph.push(name, Op::DepthwiseConv2d { weights, window }, &[x], channels * multiplier)
}

/// Where a layer's variables and operations are named; TensorFlow lets the two differ.
#[derive(Debug, Clone)]
pub struct Scope {
    pub variables: String,
    pub ops: String,
}

impl Scope {
    /// The same name for both.
    pub fn new(name: impl Into<String>) -> Self {
        let name = name.into();
        Self { ops: name.clone(), variables: name }
    }

    /// Different names.
    pub fn split(variables: impl Into<String>, ops: impl Into<String>) -> Self {
        Self { variables: variables.into(), ops: ops.into() }
    }

    /// A scope inside this one.
    pub fn child(&self, name: &str) -> Self {
        Self { variables: format!("{}/{name}", self.variables), ops: format!("{}/{name}", self.ops) }
    }
}

/// `[N, I] -> [N, channels]`, with biases and without normalization.
pub fn fully_connected(graph: &mut Graph, x: NodeId, scope: &Scope, channels: i64, with: &ConvScope) -> NodeId {
    let shape = vec![graph.channels(x), channels];
    let weights = declare_weights(graph, format!("{}/weights", scope.variables), shape, VariableKind::FullyConnected, with);
    let y = graph.push(&format!("{}/MatMul", scope.ops), Op::FullyConnected { weights }, &[x], channels);
    finish(graph, y, scope, &ConvScope { batch_norm: None, ..*with })
}

/// Declares the weights of a layer.
fn declare_weights(graph: &mut Graph, name: String, shape: Vec<i64>, kind: VariableKind, with: &ConvScope) -> VariableId {
    graph.declare(Variable {
        name,
        shape,
        kind,
        trainable: with.trainable,
        initializer: with.initializer,
        regularizer: if with.trainable { with.regularizer } else { Regularizer::None },
    })
}

/// Batch norm or biases, then the activation.
fn finish(graph: &mut Graph, mut y: NodeId, scope: &Scope, with: &ConvScope) -> NodeId {
    let channels = graph.channels(y);
    match &with.batch_norm {
        Some(params) => y = batch_norm(graph, y, &scope.child("BatchNorm"), params),
        None => {
            let biases = vector(graph, format!("{}/biases", scope.variables), channels, 0.0, with.trainable);
            y = graph.push(&format!("{}/BiasAdd", scope.ops), Op::BiasAdd { biases }, &[y], channels);
        }
    }
    if let Some(activation) = with.activation {
        let name = match activation {
            Activation::Relu => "Relu",
            Activation::Relu6 => "Relu6",
        };
        y = graph.push(&format!("{}/{name}", scope.ops), Op::Activation(activation), &[y], channels);
    }
    y
}

/// Batch norm alone, its variables right under `scope`.
pub fn batch_norm(graph: &mut Graph, x: NodeId, scope: &Scope, params: &BatchNormParams) -> NodeId {
    let channels = graph.channels(x);
    let name = |part: &str| format!("{}/{part}", scope.variables);
    let op = Op::BatchNorm(BatchNorm {
        gamma: params.scale.then(|| vector(graph, name("gamma"), channels, 1.0, params.trainable)),
        beta: params.center.then(|| vector(graph, name("beta"), channels, 0.0, params.trainable)),
        moving_mean: vector(graph, name("moving_mean"), channels, 0.0, false),
        moving_variance: vector(graph, name("moving_variance"), channels, 1.0, false),
        epsilon: params.epsilon,
        decay: params.decay,
        train: params.train,
        moving: params.moving,
    });
    graph.push(&scope.ops, op, &[x], channels)
}

fn vector(graph: &mut Graph, name: String, channels: i64, start: f32, trainable: bool) -> VariableId {
    graph.declare(Variable {
        name,
        shape: vec![channels],
        kind: VariableKind::Vector,
        trainable,
        initializer: Initializer::Constant(start),
        regularizer: Regularizer::None,
    })
}
