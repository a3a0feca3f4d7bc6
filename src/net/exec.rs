//! Runs a graph on libtorch with gradients, for training; [`Inference`] runs it frozen.

use std::collections::HashMap;

use anyhow::{Context, Result};
use tch::Tensor;

pub use super::inference::Inference;

use super::graph::{Activation, BatchNorm, Graph, MovingVariance, Op, VariableId};
use super::operations::{Convolution, act, activate_in_place, apply, scale_and_shift};
use super::plan::Plan;
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
/// * `step`: of the training, for what follows a schedule.
///
/// # Errors
/// If libtorch refuses an operation; the message names the node.
pub fn train(graph: &Graph, variables: &Variables, input: &Tensor, step: u64) -> Result<TrainPass> {
    let pass = Pass { graph, plan: Plan::new(graph, true), variables, ids: resolve(graph, variables)?, step };
    let mut moving = Vec::new();
    let mut values: Vec<Option<Tensor>> = (0..graph.nodes().len()).map(|_| None).collect();
    let mut left = pass.plan.reader_counts();
    let mut done = vec![false; graph.nodes().len()];
    for &i in pass.plan.order() {
        if done[i] {
            continue;
        }
        let inputs = pass.plan.inputs(graph, i);
        let layer = pass.layer(i);
        let value = {
            let x = gather(&values, &inputs)?;
            let value = pass.compute(i, &layer, (&x, input), &mut moving);
            value.with_context(|| format!("running {}", graph.nodes()[i].name))?
        };
        layer.nodes.iter().for_each(|&node| done[node] = true);
        values[*layer.nodes.last().unwrap_or(&i)] = Some(value);
        release(&mut values, &mut left, &inputs);
    }
    Ok(TrainPass { outputs: take_outputs(graph, &pass.plan, &values)?, moving })
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

/// What one training pass needs to know.
struct Pass<'a> {
    graph: &'a Graph,
    plan: Plan,
    variables: &'a Variables,
    /// Positions of the graph's variables.
    ids: Vec<usize>,
    step: u64,
}

impl<'a> Pass<'a> {
    fn var(&self, id: VariableId) -> &'a Tensor {
        self.variables.tensor(self.ids[id.0])
    }

    fn compute(&self, node: usize, layer: &Layer, x: (&[&Tensor], &Tensor), moving: &mut Vec<MovingUpdate>) -> Result<Tensor> {
        let (x, input) = x;
        let node = &self.graph.nodes()[node];
        let var = |id| self.var(id);
        Ok(match &node.op {
            Op::Input => input.shallow_clone(),
            Op::Conv2d { weights, window } | Op::DepthwiseConv2d { weights, window } => {
                let depthwise = matches!(node.op, Op::DepthwiseConv2d { .. });
                let mut folded = var(*weights).shallow_clone();
                let bias = match &layer.norm {
                    // What is kept for the backward pass decides how much memory a step takes. Folded into the weights, by operations that have
                    // gradients themselves, the batch norm does not keep the convolution's result.
                    Some(norm) => {
                        let (scale, shift) = scale_and_shift(norm, &var)?;
                        folded = folded.f_mul(&scale.f_view([-1, 1, 1, 1])?)?;
                        Some(shift)
                    }
                    None => layer.biases.map(|biases| var(biases).shallow_clone()),
                };
                let bias = bias.as_ref();
                Convolution { weights: &folded, bias, window, depthwise, activation: layer.activation }.run(x[0])?
            }
            Op::BatchNorm(norm) => {
                let (y, update) = batch_norm(x[0], norm, layer.activation, &var, &self.ids)?;
                moving.extend(update);
                y
            }
            Op::Add => {
                let sum = apply(&node.op, x, node.channels, &var)?;
                activate_in_place(sum, layer.activation)?
            }
            Op::Dropout { keep } => x[0].f_dropout(1.0 - keep, true)?,
            Op::DropPath { rate, steps } => drop_path(x[0], rate * (self.step as f64 / steps).min(1.0))?,
            op => apply(op, x, node.channels, &var)?,
        })
    }

    /// What is computed together with `node`.
    fn layer(&self, node: usize) -> Layer {
        let nodes = self.graph.nodes();
        let mut layer = Layer { nodes: vec![node], norm: None, biases: None, activation: None };
        let next = |node| self.plan.sole_reader(node).map(|reader| (reader, &nodes[reader].op));
        if matches!(nodes[node].op, Op::Conv2d { .. } | Op::DepthwiseConv2d { .. }) {
            match next(node) {
                Some((reader, Op::BatchNorm(norm))) if !norm.train => {
                    layer.norm = Some(*norm);
                    layer.nodes.push(reader);
                }
                Some((reader, Op::BiasAdd { biases })) => {
                    layer.biases = Some(*biases);
                    layer.nodes.push(reader);
                }
                // Its raw result is read by something else that keeps it.
                _ => return layer,
            }
        } else if !matches!(nodes[node].op, Op::BatchNorm(_) | Op::Add) {
            return layer;
        }
        let last = *layer.nodes.last().unwrap_or(&node);
        if let Some((reader, Op::Activation(activation))) = next(last) {
            layer.activation = Some(*activation);
            layer.nodes.push(reader);
        }
        layer
    }
}

/// A node and what follows it up to its activation, where nothing else reads what lies between.
struct Layer {
    /// In their order; the last has the result.
    nodes: Vec<usize>,
    norm: Option<BatchNorm>,
    biases: Option<VariableId>,
    activation: Option<Activation>,
}

/// Drops each picture of the batch with probability `rate` and scales up the others.
fn drop_path(x: &Tensor, rate: f64) -> Result<Tensor> {
    if rate == 0.0 {
        return Ok(x.shallow_clone());
    }
    let keep = 1.0 - rate;
    let drawn = Tensor::f_rand([x.size()[0], 1, 1, 1], (x.kind(), x.device()))?;
    Ok(x.f_mul(&((drawn + keep).f_floor()? / keep))?)
}

/// Positions in `variables` of the graph's variables.
pub(super) fn resolve(graph: &Graph, variables: &Variables) -> Result<Vec<usize>> {
    graph
        .variables()
        .iter()
        .map(|v| variables.position(&v.name).with_context(|| format!("the network's variable `{}` has no value", v.name)))
        .collect()
}

pub(super) fn gather<'v>(values: &'v [Option<Tensor>], nodes: &[usize]) -> Result<Vec<&'v Tensor>> {
    nodes.iter().map(|&i| values[i].as_ref().context("a value was freed before its last reader")).collect()
}

/// Frees values after their last reader.
fn release(values: &mut [Option<Tensor>], left: &mut [usize], inputs: &[usize]) {
    for &i in inputs {
        left[i] -= 1;
        if left[i] == 0 {
            values[i] = None;
        }
    }
}

pub(super) fn take_outputs(graph: &Graph, plan: &Plan, values: &[Option<Tensor>]) -> Result<Outputs> {
    graph
        .outputs()
        .iter()
        .map(|(name, id)| {
            let value = values[plan.value_of(*id)].as_ref().with_context(|| format!("output `{name}` was not computed"))?;
            Ok((name.clone(), value.shallow_clone()))
        })
        .collect()
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
            zeros = Tensor::f_zeros([x.size()[1]], (x.kind(), x.device()))?;
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
