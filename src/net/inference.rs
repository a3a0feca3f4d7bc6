//! Runs a graph on libtorch with the variables' values frozen in: batch norms folded into convolutions, memory reused as soon as it can be.

use std::sync::Arc;

use anyhow::{Context, Result};
use tch::Tensor;

use super::exec::{Outputs, gather, resolve, take_outputs};
use super::graph::{Activation, Graph, NodeId, Op, VariableId, Window};
use super::operations::{Convolution, act, activate_in_place, apply, scale_and_shift};
use super::plan::Plan;
use super::shim;
use super::variables::Variables;

/// A graph made ready for inference.
#[derive(Debug)]
pub struct Inference {
    graph: Arc<Graph>,
    plan: Plan,
    steps: Vec<Step>,
}

/// One step of an inference: a node, or a convolution with all that follows it up to its activation.
#[derive(Debug)]
struct Step {
    /// The first of the nodes, which names the step in errors.
    node: usize,
    inputs: Vec<usize>,
    /// Where the result is read.
    result: usize,
    kind: StepKind,
    /// The position in `inputs` of a value that nobody reads any more, and whose memory can take the result.
    reuse: Option<usize>,
    /// Values that nobody reads after this step.
    free: Vec<usize>,
}

#[derive(Debug)]
enum StepKind {
    Input,
    Convolution { weights: Tensor, bias: Option<Tensor>, window: Window, depthwise: bool, activation: Option<Activation> },
    Affine { scale: Tensor, shift: Tensor, activation: Option<Activation> },
    FullyConnected { weights: Tensor, bias: Option<Tensor> },
    Plain(Op),
}

impl Inference {
    /// Folds the variables' present values.
    ///
    /// # Errors
    /// If a variable is missing.
    pub fn new(graph: &Arc<Graph>, variables: &Variables) -> Result<Self> {
        let plan = Plan::new(graph, false);
        let ids = resolve(graph, variables)?;
        let folding = Folding { graph, plan: &plan, var: &|id: VariableId| variables.tensor(ids[id.0]) };
        let mut steps = Vec::new();
        let mut done = vec![false; graph.nodes().len()];
        tch::no_grad(|| -> Result<()> {
            for &node in plan.order() {
                if done[node] {
                    continue;
                }
                let (kind, nodes) = folding.fold(node).with_context(|| format!("freezing {}", graph.nodes()[node].name))?;
                nodes.iter().for_each(|&node| done[node] = true);
                let (inputs, result) = (plan.inputs(graph, node), nodes.last().copied().unwrap_or(node));
                steps.push(Step { node, inputs, result, kind, reuse: None, free: Vec::new() });
            }
            Ok(())
        })?;
        plan_memory(graph, &plan, &mut steps);
        Ok(Self { graph: Arc::clone(graph), plan, steps })
    }

    /// One forward pass without gradients.
    ///
    /// * `input`: `[N, C, H, W]`.
    pub fn run(&self, input: &Tensor) -> Result<Outputs> {
        self.run_observed(input, &mut |_, _| Ok(()))
    }

    /// As [`run`](Self::run), and shows each value as it comes to be. What was folded into something else is not seen.
    pub fn run_observed(&self, input: &Tensor, observe: &mut dyn FnMut(NodeId, &Tensor) -> Result<()>) -> Result<Outputs> {
        tch::no_grad(|| {
            let mut values: Vec<Option<Tensor>> = (0..self.graph.nodes().len()).map(|_| None).collect();
            for step in &self.steps {
                let reused = step.reuse.and_then(|position| values[step.inputs[position]].as_ref().map(Tensor::shallow_clone));
                let value = {
                    let x = gather(&values, &step.inputs)?;
                    let value = compute(step, self.graph.nodes()[step.result].channels, &x, reused, input);
                    value.with_context(|| format!("running {}", self.graph.nodes()[step.node].name))?
                };
                observe(NodeId(step.result), &value)?;
                values[step.result] = Some(value);
                step.free.iter().for_each(|&i| values[i] = None);
            }
            take_outputs(&self.graph, &self.plan, &values)
        })
    }
}

/// * `reused`: the input whose memory takes the result.
fn compute(step: &Step, channels: i64, x: &[&Tensor], reused: Option<Tensor>, input: &Tensor) -> Result<Tensor> {
    Ok(match (&step.kind, reused) {
        (StepKind::Input, _) => input.shallow_clone(),
        (StepKind::Convolution { weights, bias, window, depthwise, activation }, _) => {
            let bias = bias.as_ref();
            Convolution { weights, bias, window, depthwise: *depthwise, activation: *activation }.run(x[0])?
        }
        (StepKind::Affine { scale, shift, activation }, _) => shim::affine_act(x[0], scale, shift, act(*activation))?,
        (StepKind::FullyConnected { weights, bias }, _) => x[0].f_linear(weights, bias.as_ref())?,
        (StepKind::Plain(Op::Activation(activation)), Some(own)) => activate_in_place(own, Some(*activation))?,
        (StepKind::Plain(Op::Scale(factor)), Some(mut own)) => own.f_mul_scalar_(*factor)?,
        (StepKind::Plain(Op::Add), Some(mut own)) => own.f_add_(x[1 - step.reuse.unwrap_or(0)])?,
        (StepKind::Plain(op), _) => {
            apply(op, x, channels, &|_| unreachable!("operations with variables are steps of their own"))?
        }
    })
}

/// Joins nodes to steps.
struct Folding<'a> {
    graph: &'a Graph,
    plan: &'a Plan,
    var: &'a dyn Fn(VariableId) -> &'a Tensor,
}

impl Folding<'_> {
    /// The step that begins with `node`, and the nodes that it stands for.
    fn fold(&self, node: usize) -> Result<(StepKind, Vec<usize>)> {
        let mut nodes = vec![node];
        let kind = match &self.graph.nodes()[node].op {
            Op::Input => StepKind::Input,
            Op::Conv2d { weights, window } | Op::DepthwiseConv2d { weights, window } => {
                let mut weights = (self.var)(*weights).f_detach()?;
                let mut bias = None;
                match self.next(&nodes) {
                    Some((reader, Op::BatchNorm(norm))) => {
                        let (scale, shift) = scale_and_shift(norm, &self.var)?;
                        // A new tensor: `weights` still is the variable's own memory.
                        weights = weights.f_mul(&scale.f_view([-1, 1, 1, 1])?)?;
                        bias = Some(shift);
                        nodes.push(reader);
                    }
                    Some((reader, Op::BiasAdd { biases })) => {
                        bias = Some((self.var)(*biases).f_detach()?);
                        nodes.push(reader);
                    }
                    _ => {}
                }
                if let Some((reader, Op::Scale(factor))) = self.next(&nodes) {
                    weights = &weights * *factor;
                    bias = bias.map(|bias| bias * *factor);
                    nodes.push(reader);
                }
                let activation = self.activation(&mut nodes);
                let depthwise = matches!(self.graph.nodes()[node].op, Op::DepthwiseConv2d { .. });
                if !depthwise {
                    weights = shim::channels_last(&weights)?;
                }
                StepKind::Convolution { weights, bias, window: *window, depthwise, activation }
            }
            Op::BatchNorm(norm) => {
                let (scale, shift) = scale_and_shift(norm, &self.var)?;
                StepKind::Affine { scale, shift, activation: self.activation(&mut nodes) }
            }
            Op::BiasAdd { biases } => {
                let shift = (self.var)(*biases).f_detach()?;
                StepKind::Affine { scale: shift.f_ones_like()?, shift, activation: self.activation(&mut nodes) }
            }
            Op::FullyConnected { weights } => {
                let mut bias = None;
                if let Some((reader, Op::BiasAdd { biases })) = self.next(&nodes) {
                    bias = Some((self.var)(*biases).f_detach()?);
                    nodes.push(reader);
                }
                StepKind::FullyConnected { weights: (self.var)(*weights).f_detach()?, bias }
            }
            op => StepKind::Plain(*op),
        };
        Ok((kind, nodes))
    }

    /// The sole reader of what the nodes give.
    fn next(&self, nodes: &[usize]) -> Option<(usize, &Op)> {
        let reader = self.plan.sole_reader(*nodes.last()?)?;
        Some((reader, &self.graph.nodes()[reader].op))
    }

    /// Takes in the activation that alone reads what the nodes give.
    fn activation(&self, nodes: &mut Vec<usize>) -> Option<Activation> {
        let (reader, Op::Activation(activation)) = self.next(nodes)? else { return None };
        nodes.push(reader);
        Some(*activation)
    }
}

/// Decides when values are freed, and which steps write into an input's memory.
fn plan_memory(graph: &Graph, plan: &Plan, steps: &mut [Step]) {
    let count = graph.nodes().len();
    // A slice lies in its input's memory.
    let mut owner: Vec<usize> = (0..count).collect();
    let mut ours = vec![false; count];
    // The last step that reads a value, and the last that reads anything in a memory.
    let (mut last_read, mut last_use) = (vec![0; count], vec![0; count]);
    for (k, step) in steps.iter().enumerate() {
        match step.kind {
            StepKind::Plain(Op::Slice { .. }) => owner[step.result] = owner[step.inputs[0]],
            _ => ours[step.result] = !matches!(step.kind, StepKind::Input),
        }
        for &i in &step.inputs {
            last_read[i] = k;
            last_use[owner[i]] = k;
        }
    }
    for i in (0..count).filter(|&i| plan.is_output(i)) {
        last_read[i] = usize::MAX;
        last_use[owner[i]] = usize::MAX;
    }
    for (k, step) in steps.iter_mut().enumerate() {
        let free = step.inputs.iter().copied().filter(|&i| last_read[i] == k);
        step.free = free.collect();
        step.free.sort_unstable();
        step.free.dedup();
        if !matches!(step.kind, StepKind::Plain(Op::Activation(_) | Op::Scale(_) | Op::Add)) {
            continue;
        }
        let inputs = &step.inputs;
        step.reuse = (0..inputs.len()).find(|&position| {
            let i = inputs[position];
            let alone = inputs.iter().filter(|&&other| owner[other] == i).count() == 1;
            owner[i] == i && ours[i] && last_use[i] == k && alone
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind};

    fn relu(graph: &mut Graph, x: NodeId) -> NodeId {
        let channels = graph.channels(x);
        graph.push("Relu", Op::Activation(Activation::Relu), &[x], channels)
    }

    fn run(graph: Graph, x: &Tensor) -> Outputs {
        let variables = Variables::new(graph.variables(), 0, Device::Cpu).unwrap();
        Inference::new(&Arc::new(graph), &variables).unwrap().run(x).unwrap()
    }

    #[test]
    fn a_value_with_other_readers_is_not_overwritten() {
        let mut graph = Graph::new();
        let x = graph.input("x", 2);
        // Each of the three operations that can work in place has an input that is read again later.
        let scaled = graph.push("scale", Op::Scale(-1.0), &[x], 2);
        let positive = relu(&mut graph, scaled);
        let twice = graph.push("twice", Op::Scale(2.0), &[positive], 2);
        let sum = graph.push("sum", Op::Add, &[positive, twice], 2);
        let doubled = graph.push("doubled", Op::Add, &[sum, sum], 2);
        let back = graph.push("back", Op::Add, &[doubled, x], 2);
        for (name, node) in [("scaled", scaled), ("sum", sum), ("back", back)] {
            graph.output(name, node);
        }
        let x = Tensor::from_slice(&[-3f32, 5.0]).view([1, 2, 1, 1]);
        let outputs = run(graph, &x);
        let values = |name: &str| Vec::<f32>::try_from(outputs[name].view([-1])).unwrap();
        assert_eq!(values("scaled"), [3.0, -5.0]);
        assert_eq!(values("sum"), [9.0, 0.0]);
        assert_eq!(values("back"), [15.0, 5.0]);
        assert_eq!(Vec::<f32>::try_from(x.view([-1])).unwrap(), [-3.0, 5.0]);
    }

    #[test]
    fn a_slice_keeps_what_lies_under_it_from_being_overwritten() {
        let mut graph = Graph::new();
        let x = graph.input("x", 2);
        let own = graph.push("own", Op::Scale(1.0), &[x], 2);
        let slice = |graph: &mut Graph, channel| graph.push("slice", Op::Slice { row: 0, column: 0, channel }, &[own], 1);
        let (first, second) = (slice(&mut graph, 0), slice(&mut graph, 1));
        let whole = relu(&mut graph, own);
        let first = relu(&mut graph, first);
        let sum = graph.push("sum", Op::Add, &[first, second], 1);
        graph.output("whole", whole);
        graph.output("sum", sum);
        let outputs = run(graph, &Tensor::from_slice(&[4f32, -5.0]).view([1, 2, 1, 1]));
        assert_eq!(outputs["whole"].view([-1]), Tensor::from_slice(&[4f32, 0.0]));
        assert_eq!(outputs["sum"].view([-1]), Tensor::from_slice(&[-1f32]).to_kind(Kind::Float));
    }
}
