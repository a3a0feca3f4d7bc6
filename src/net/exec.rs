//! Runs a graph on libtorch: for training with gradients, and for inference with batch norms folded into their convolutions.

use std::collections::HashMap;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use tch::{Kind, Tensor};

use super::graph::{Activation, BatchNorm, Graph, MovingVariance, NodeId, Op, VariableId, Window};
use super::shim;
use super::variables::Variables;

/// Results by the names that the graph gave its outputs.
pub type Outputs = HashMap<String, Tensor>;

/// New statistics for a batch norm's moving averages, to be taken in after the step (`apply_moving_updates`).
#[derive(Debug)]
pub struct MovingUpdate {
    mean: usize,
    variance: usize,
    batch_mean: Tensor,
    batch_variance: Tensor,
    decay: f64,
}

/// What a training pass gives.
#[derive(Debug)]
pub struct TrainPass {
    pub outputs: Outputs,
    pub moving: Vec<MovingUpdate>,
}

/// One forward pass with gradients and batch statistics.
///
/// * `input`: `[N, C, H, W]`.
///
/// # Errors
/// If libtorch refuses an operation; the message names the node.
pub fn train(graph: &Graph, variables: &Variables, input: &Tensor) -> Result<TrainPass> {
    let readers = count_readers(graph);
    let ids = resolve(graph, variables)?;
    let mut moving = Vec::new();
    let mut values: Vec<Option<Tensor>> = (0..graph.nodes().len()).map(|_| None).collect();
    let mut left = readers.clone();
    let mut skip = None;
    for (i, node) in graph.nodes().iter().enumerate() {
        if skip == Some(i) || readers[i] == 0 {
            continue;
        }
        let var = |id: VariableId| variables.tensor(ids[id.0]);
        let value = {
            let inputs = gather(&values, node.inputs.as_slice())?;
            match &node.op {
                Op::Input => input.shallow_clone(),
                Op::BatchNorm(norm) => {
                    let next = fused_activation(graph, &readers, i);
                    let (y, update) = batch_norm(inputs[0], norm, next.map(|(_, a)| a), &var, &ids)
                        .with_context(|| format!("running {}", node.name))?;
                    moving.extend(update);
                    if let Some((reader, _)) = next {
                        skip = Some(reader);
                        values[reader] = Some(y.shallow_clone());
                    }
                    y
                }
                Op::Dropout { keep } => inputs[0].f_dropout(1.0 - keep, true)?,
                op => apply(op, &inputs, &var).with_context(|| format!("running {}", node.name))?,
            }
        };
        if skip.is_none_or(|s| s <= i) {
            values[i] = Some(value);
        }
        release(&mut values, &mut left, &node.inputs);
    }
    Ok(TrainPass { outputs: take_outputs(graph, &values)?, moving })
}

/// Moves each moving average towards its batch's statistics, as TensorFlow's update operations do after a step.
pub fn apply_moving_updates(variables: &Variables, updates: &[MovingUpdate]) -> Result<()> {
    tch::no_grad(|| {
        for update in updates {
            for (i, batch) in [(update.mean, &update.batch_mean), (update.variance, &update.batch_variance)] {
                let mut stored = variables.tensor(i).shallow_clone();
                let _ = stored.f_lerp_(batch, 1.0 - update.decay)?;
            }
        }
        Ok(())
    })
}

/// A graph made ready for inference: frozen values, batch norms folded away.
#[derive(Debug)]
pub struct Inference {
    graph: Arc<Graph>,
    steps: Vec<Step>,
    readers: Vec<usize>,
}

/// One step of an inference: a node, or a convolution with all that follows it up to its activation.
#[derive(Debug)]
struct Step {
    node: usize,
    /// Where the result is read.
    result: usize,
    kind: StepKind,
}

#[derive(Debug)]
enum StepKind {
    Input,
    Convolution { weights: Tensor, bias: Option<Tensor>, window: Window, depthwise: bool, activation: Option<Activation> },
    Affine { scale: Tensor, shift: Tensor, activation: Option<Activation> },
    FullyConnected { weights: Tensor, bias: Option<Tensor> },
    Identity,
    Plain(Op),
}

impl Inference {
    /// Folds the variables' present values.
    pub fn new(graph: &Arc<Graph>, variables: &Variables) -> Result<Self> {
        let readers = count_readers(graph);
        let ids = resolve(graph, variables)?;
        let var = |id: VariableId| variables.tensor(ids[id.0]);
        let mut steps = Vec::new();
        let mut done = vec![false; graph.nodes().len()];
        tch::no_grad(|| -> Result<()> {
            for (i, node) in graph.nodes().iter().enumerate() {
                if done[i] || readers[i] == 0 {
                    continue;
                }
                let mut result = i;
                // The sole reader of the present result, if it is one that can be taken in.
                let follow = |result: usize| (readers[result] == 1).then(|| sole_reader(graph, &readers, result)).flatten();
                let take_activation = |result: &mut usize, done: &mut Vec<bool>| {
                    let next = follow(*result)?;
                    let Op::Activation(activation) = graph.nodes()[next].op else { return None };
                    done[next] = true;
                    *result = next;
                    Some(activation)
                };
                let kind = match &node.op {
                    Op::Input => StepKind::Input,
                    Op::Conv2d { weights, window } | Op::DepthwiseConv2d { weights, window } => {
                        let mut w = var(*weights).f_detach()?;
                        let mut bias = None;
                        if let Some(next) = follow(i) {
                            match &graph.nodes()[next].op {
                                Op::BatchNorm(norm) => {
                                    let (scale, shift) = scale_and_shift(norm, &var)?;
                                    // A new tensor: `w` still is the variable's own memory.
                                    w = w.f_mul(&scale.f_view([-1, 1, 1, 1])?)?;
                                    bias = Some(shift);
                                }
                                Op::BiasAdd { biases } => bias = Some(var(*biases).f_detach()?),
                                _ => {}
                            }
                            if bias.is_some() {
                                done[next] = true;
                                result = next;
                            }
                        }
                        let activation = take_activation(&mut result, &mut done);
                        let depthwise = matches!(node.op, Op::DepthwiseConv2d { .. });
                        if !depthwise {
                            w = shim::channels_last(&w)?;
                        }
                        StepKind::Convolution { weights: w, bias, window: *window, depthwise, activation }
                    }
                    Op::BatchNorm(norm) => {
                        let (scale, shift) = scale_and_shift(norm, &var)?;
                        let activation = take_activation(&mut result, &mut done);
                        StepKind::Affine { scale: scale.f_view([1, -1, 1, 1])?, shift: shift.f_view([1, -1, 1, 1])?, activation }
                    }
                    Op::BiasAdd { biases } => {
                        let shift = var(*biases).f_detach()?.f_view([1, -1, 1, 1])?;
                        StepKind::Affine { scale: shift.f_ones_like()?, shift, activation: None }
                    }
                    Op::FullyConnected { weights } => {
                        let mut bias = None;
                        if let Some(next) = follow(i)
                            && let Op::BiasAdd { biases } = &graph.nodes()[next].op
                        {
                            bias = Some(var(*biases).f_detach()?);
                            done[next] = true;
                            result = next;
                        }
                        StepKind::FullyConnected { weights: var(*weights).f_detach()?, bias }
                    }
                    Op::Dropout { .. } => StepKind::Identity,
                    op => StepKind::Plain(*op),
                };
                steps.push(Step { node: i, result, kind });
            }
            Ok(())
        })?;
        Ok(Self { graph: Arc::clone(graph), steps, readers })
    }

    /// One forward pass without gradients; every tensor is freed after its last reader.
    ///
    /// * `input`: `[N, C, H, W]`.
    pub fn run(&self, input: &Tensor) -> Result<Outputs> {
        tch::no_grad(|| {
            let mut left = self.readers.clone();
            let mut values: Vec<Option<Tensor>> = (0..self.graph.nodes().len()).map(|_| None).collect();
            for step in &self.steps {
                let node = &self.graph.nodes()[step.node];
                let value = {
                    let x = gather(&values, node.inputs.as_slice())?;
                    self.step(step, &x, input).with_context(|| format!("running {}", node.name))?
                };
                values[step.result] = Some(value);
                release(&mut values, &mut left, &node.inputs);
            }
            take_outputs(&self.graph, &values)
        })
    }

    fn step(&self, step: &Step, x: &[&Tensor], input: &Tensor) -> Result<Tensor> {
        Ok(match &step.kind {
            StepKind::Input => input.shallow_clone(),
            StepKind::Identity => x[0].shallow_clone(),
            StepKind::Convolution { weights, bias, window, depthwise, activation } => {
                let y = convolve(x[0], weights, bias.as_ref(), window, *depthwise)?;
                activate_in_place(y, *activation)?
            }
            StepKind::Affine { scale, shift, activation } => activate_in_place(x[0] * scale + shift, *activation)?,
            StepKind::FullyConnected { weights, bias } => x[0].f_linear(weights, bias.as_ref())?,
            StepKind::Plain(op) => apply(op, x, &|_| unreachable!("plain operations have no variables"))?,
        })
    }
}

/// Positions in `variables` of the graph's variables.
fn resolve(graph: &Graph, variables: &Variables) -> Result<Vec<usize>> {
    graph
        .variables()
        .iter()
        .map(|v| variables.position(&v.name).with_context(|| format!("the network's variable `{}` has no value", v.name)))
        .collect()
}

/// How many read each node's value, the caller included; 0 for a node that leads to no output, and that none need run.
fn count_readers(graph: &Graph) -> Vec<usize> {
    let mut readers = vec![0; graph.nodes().len()];
    graph.outputs().iter().for_each(|(_, id)| readers[id.0] += 1);
    for (i, node) in graph.nodes().iter().enumerate().rev() {
        if readers[i] > 0 {
            node.inputs.iter().for_each(|id| readers[id.0] += 1);
        }
    }
    readers
}

/// The node that reads `result`, if a node and not the caller does.
fn sole_reader(graph: &Graph, readers: &[usize], result: usize) -> Option<usize> {
    (0..graph.nodes().len()).find(|&i| readers[i] > 0 && graph.nodes()[i].inputs.contains(&NodeId(result)))
}

fn fused_activation(graph: &Graph, readers: &[usize], node: usize) -> Option<(usize, Activation)> {
    if readers[node] != 1 {
        return None;
    }
    // The activation is the next node wherever slim's layers make one.
    let next = graph.nodes().get(node + 1)?;
    match next.op {
        Op::Activation(a) if next.inputs == [NodeId(node)] => Some((node + 1, a)),
        _ => None,
    }
}

fn gather<'v>(values: &'v [Option<Tensor>], ids: &[NodeId]) -> Result<Vec<&'v Tensor>> {
    ids.iter().map(|id| values[id.0].as_ref().context("a value was freed before its last reader")).collect()
}

fn release(values: &mut [Option<Tensor>], left: &mut [usize], inputs: &[NodeId]) {
    for id in inputs {
        left[id.0] -= 1;
        if left[id.0] == 0 {
            values[id.0] = None;
        }
    }
}

fn take_outputs(graph: &Graph, values: &[Option<Tensor>]) -> Result<Outputs> {
    graph
        .outputs()
        .iter()
        .map(|(name, id)| {
            let value = values[id.0].as_ref().with_context(|| format!("output `{name}` was not computed"))?;
            Ok((name.clone(), value.shallow_clone()))
        })
        .collect()
}

/// Factor and summand of each channel when a batch norm uses its stored statistics, `[C]` each.
fn scale_and_shift<'v>(norm: &BatchNorm, var: &impl Fn(VariableId) -> &'v Tensor) -> Result<(Tensor, Tensor)> {
    let mut scale = (var(norm.moving_variance) + norm.epsilon).f_rsqrt()?;
    if let Some(gamma) = norm.gamma {
        scale *= var(gamma);
    }
    let mut shift = -(var(norm.moving_mean) * &scale);
    if let Some(beta) = norm.beta {
        shift += var(beta);
    }
    Ok((scale, shift))
}

/// A batch norm in training, with the activation that follows it.
fn batch_norm<'v>(
    x: &Tensor,
    norm: &BatchNorm,
    activation: Option<Activation>,
    var: &impl Fn(VariableId) -> &'v Tensor,
    ids: &[usize],
) -> Result<(Tensor, Option<MovingUpdate>)> {
    if !norm.train {
        let (scale, shift) = scale_and_shift(norm, var)?;
        return Ok((shim::affine_act(x, &scale, &shift, act(activation))?, None));
    }
    let zeros;
    let beta = match norm.beta {
        Some(beta) => var(beta),
        None => {
            zeros = Tensor::f_zeros([x.size()[1]], (Kind::Float, x.device()))?;
            &zeros
        }
    };
    // The fused kernel is the one that stores the unbiased variance.
    let form = match norm.moving {
        MovingVariance::Biased => shim::Form::Separate,
        MovingVariance::Unbiased => shim::Form::Fused,
    };
    let normed = shim::batch_norm_train(x, norm.gamma.map(var), beta, norm.epsilon, (form, act(activation)))?;
    let batch_variance = match norm.moving {
        MovingVariance::Biased => normed.variance,
        MovingVariance::Unbiased => {
            let size = x.size();
            let count = (size[0] * size[2] * size[3]) as f64;
            normed.variance * (count / (count - 1.0).max(1.0))
        }
    };
    let update = MovingUpdate {
        mean: ids[norm.moving_mean.0],
        variance: ids[norm.moving_variance.0],
        batch_mean: normed.mean,
        batch_variance,
        decay: norm.decay,
    };
    Ok((normed.y, Some(update)))
}

fn act(activation: Option<Activation>) -> shim::Act {
    match activation {
        None => shim::Act::None,
        Some(Activation::Relu) => shim::Act::Relu,
        Some(Activation::Relu6) => shim::Act::Relu6,
    }
}

fn activate(x: &Tensor, activation: Option<Activation>) -> Result<Tensor> {
    Ok(match activation {
        None => x.shallow_clone(),
        Some(Activation::Relu) => x.f_relu()?,
        Some(Activation::Relu6) => x.f_clamp(0.0, 6.0)?,
    })
}

fn activate_in_place(mut x: Tensor, activation: Option<Activation>) -> Result<Tensor> {
    Ok(match activation {
        None => x,
        Some(Activation::Relu) => x.f_relu_()?,
        Some(Activation::Relu6) => x.f_clamp_(0.0, 6.0)?,
    })
}

fn convolve(x: &Tensor, weights: &Tensor, bias: Option<&Tensor>, window: &Window, depthwise: bool) -> Result<Tensor> {
    let size = x.size();
    let [top, left, bottom, right] = window.pads(size[2], size[3]);
    if depthwise {
        let geometry =
            shim::ConvGeometry { stride: window.stride, padding: [top, left, bottom, right], dilation: window.dilation };
        let y = shim::depthwise_conv2d(x, weights, geometry)?;
        return Ok(match bias {
            Some(bias) => y + bias.f_view([1, -1, 1, 1])?,
            None => y,
        });
    }
    if top == bottom && left == right {
        return Ok(x.f_conv2d(weights, bias, window.stride, [top, left], window.dilation, 1)?);
    }
    let padded = x.f_constant_pad_nd([left, right, top, bottom])?;
    Ok(padded.f_conv2d(weights, bias, window.stride, [0, 0], window.dilation, 1)?)
}

/// Operations that are the same in training and inference.
fn apply<'v>(op: &Op, x: &[&Tensor], var: &impl Fn(VariableId) -> &'v Tensor) -> Result<Tensor> {
    Ok(match op {
        Op::Conv2d { weights, window } => convolve(x[0], var(*weights), None, window, false)?,
        Op::DepthwiseConv2d { weights, window } => convolve(x[0], var(*weights), None, window, true)?,
        Op::FullyConnected { weights } => x[0].f_linear(var(*weights), None::<&Tensor>)?,
        Op::BiasAdd { biases } => {
            let bias = var(*biases);
            if x[0].dim() == 4 { x[0] + bias.f_view([1, -1, 1, 1])? } else { x[0] + bias }
        }
        Op::Activation(activation) => activate(x[0], Some(*activation))?,
        Op::MaxPool(window) => max_pool(x[0], window)?,
        Op::AvgPool(window) => avg_pool(x[0], window)?,
        Op::GlobalMean => x[0].f_mean_dim([2i64, 3].as_slice(), false, Kind::Float)?,
        Op::Concat => Tensor::f_cat(x, 1)?,
        Op::Add => x[0] + x[1],
        Op::Scale(factor) => x[0] * *factor,
        Op::Pad([top, left, bottom, right]) => x[0].f_constant_pad_nd([*left, *right, *top, *bottom])?,
        Op::Input | Op::BatchNorm(_) | Op::Dropout { .. } => bail!("{op:?} is handled by its caller"),
    })
}

fn max_pool(x: &Tensor, window: &Window) -> Result<Tensor> {
    let size = x.size();
    let [top, left, bottom, right] = window.pads(size[2], size[3]);
    if [top, left, bottom, right] == [0; 4] {
        return Ok(x.f_max_pool2d(window.kernel, window.stride, [0, 0], window.dilation, false)?);
    }
    // Cells outside the map never win.
    let padded = x.f_pad([left, right, top, bottom], "constant", f64::NEG_INFINITY)?;
    Ok(padded.f_max_pool2d(window.kernel, window.stride, [0, 0], window.dilation, false)?)
}

fn avg_pool(x: &Tensor, window: &Window) -> Result<Tensor> {
    let size = x.size();
    let [top, left, bottom, right] = window.pads(size[2], size[3]);
    let pool = |x: &Tensor, divisor: Option<i64>| x.f_avg_pool2d(window.kernel, window.stride, [0, 0], false, true, divisor);
    if [top, left, bottom, right] == [0; 4] {
        return Ok(pool(x, None)?);
    }
    // The sum over the window, divided by how many of its cells lie inside the map.
    let pads = [left, right, top, bottom];
    let sum = pool(&x.f_constant_pad_nd(pads)?, Some(1))?;
    let ones = Tensor::f_ones([1, 1, size[2], size[3]], (x.kind(), x.device()))?;
    Ok(sum / pool(&ones.f_constant_pad_nd(pads)?, Some(1))?)
}
