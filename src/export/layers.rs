//! A network's layers as files hold them: batch norms folded into the convolutions before them.

use anyhow::{Context, Result, bail, ensure};

use crate::net::graph::{BatchNorm, Graph, NodeId, Op, VariableId, VariableKind, Window};

/// Gives a variable's values by its name, in TensorFlow's layout.
pub type ReadVariable<'a> = dyn Fn(&str) -> Result<Vec<f32>> + 'a;

/// One factor and one summand a channel.
#[derive(Debug, Clone, PartialEq)]
pub struct Affine {
    pub scale: Vec<f64>,
    pub shift: Vec<f64>,
}

/// A network and its values, seen from the nodes that are wanted.
pub struct Layers<'a> {
    pub graph: &'a Graph,
    readers: Vec<usize>,
    variables: &'a ReadVariable<'a>,
}

impl<'a> Layers<'a> {
    /// * `variables`: each is asked for once for every operation that reads it.
    pub fn new(graph: &'a Graph, wanted: &[NodeId], variables: &'a ReadVariable<'a>) -> Self {
        Self { graph, readers: count_readers(graph, wanted), variables }
    }

    /// Whether a wanted node depends on it.
    pub fn is_needed(&self, id: NodeId) -> bool {
        self.readers[id.0] > 0
    }

    /// The node that alone reads the output of `id`.
    pub fn sole_reader(&self, id: NodeId) -> Option<NodeId> {
        if self.readers[id.0] != 1 {
            return None;
        }
        self.graph.nodes().iter().enumerate().position(|(i, node)| self.readers[i] > 0 && node.inputs == [id]).map(NodeId)
    }

    /// The batch norm whose factors the layer `id` takes in.
    fn folded_norm(&self, id: NodeId) -> Option<&BatchNorm> {
        match &self.graph.node(self.sole_reader(id)?).op {
            Op::BatchNorm(norm) => Some(norm),
            _ => None,
        }
    }

    /// Whether the layer before the batch norm `id` takes its factors in.
    pub fn is_folded(&self, id: NodeId) -> bool {
        let before = self.graph.node(id).inputs[0];
        matches!(self.graph.node(before).op, Op::Conv2d { .. } | Op::DepthwiseConv2d { .. } | Op::FullyConnected { .. })
            && self.readers[before.0] == 1
    }

    /// The weights of a convolution or fully connected layer in TensorFlow's layout, times the factors of a batch norm that is folded
    /// into it; whether there is one.
    pub fn weights(&self, id: NodeId, weights: VariableId) -> Result<(Vec<f32>, bool)> {
        let mut values = self.read(weights)?;
        let Some(norm) = self.folded_norm(id) else { return Ok((values, false)) };
        let affine = self.affine(norm, self.graph.channels(id))?;
        // In each of TensorFlow's layouts the output channel is the fastest index (depthwise: input channel and multiplier together).
        let channels = affine.scale.len();
        for (i, value) in values.iter_mut().enumerate() {
            *value = (f64::from(*value) * affine.scale[i % channels]) as f32;
        }
        Ok((values, true))
    }

    /// The folded weights of a convolution as `[O, I / groups, H, W]`: the sides, and the values.
    pub fn convolution(&self, id: NodeId, weights: VariableId) -> Result<([i64; 4], Vec<f32>)> {
        let variable = self.graph.variable(weights);
        let (values, _) = self.weights(id, weights)?;
        let [h, w, i, o] = variable.shape[..] else { bail!("{} has shape {:?}, not four sides", variable.name, variable.shape) };
        let (dims, outer, inner) = match variable.kind {
            VariableKind::Convolution => ([o, i, h, w], i, o),
            // The outputs of one input channel stand together in both.
            VariableKind::DepthwiseConvolution => ([i * o, 1, h, w], 1, i * o),
            kind => bail!("{} is {kind:?}, not a convolution's", variable.name),
        };
        let (area, outer, inner) = ((h * w) as usize, outer as usize, inner as usize);
        let mut turned = Vec::with_capacity(values.len());
        for output in 0..inner {
            for channel in 0..outer {
                turned.extend((0..area).map(|cell| values[(cell * outer + channel) * inner + output]));
            }
        }
        Ok((dims, turned))
    }

    /// The depthwise convolution that the convolution `id` takes in, both being linear: one of few channels (a picture's three) with nothing
    /// between. Runtimes have quicker code for the one than for the two, though it is more to compute.
    pub fn taken_in(&self, id: NodeId) -> Option<NodeId> {
        let node = self.graph.node(id);
        let Op::Conv2d { window, .. } = &node.op else { return None };
        let before = node.inputs[0];
        let depthwise = self.graph.node(before);
        let plain = window.kernel == [1, 1] && window.stride == [1, 1] && window.pads(1, 1) == [0; 4];
        let joins = matches!(depthwise.op, Op::DepthwiseConv2d { .. })
            && self.graph.channels(depthwise.inputs[0]) <= 4
            && plain
            && self.sole_reader(before) == Some(id);
        joins.then_some(before)
    }

    /// The window and the weights `[O, I, H, W]` of a convolution and the depthwise one that it [takes in](Self::taken_in), as one.
    pub fn joint_convolution(&self, id: NodeId, depthwise: NodeId) -> Result<(Window, [i64; 4], Vec<f32>)> {
        let parts = |id: NodeId| match &self.graph.node(id).op {
            Op::Conv2d { weights, window } | Op::DepthwiseConv2d { weights, window } => {
                self.convolution(id, *weights).map(|(dims, values)| (*window, dims, values))
            }
            op => bail!("{op:?} is no convolution"),
        };
        let (_, [o, mixed, ..], points) = parts(id)?;
        let (window, [.., h, w], planes) = parts(depthwise)?;
        let i = self.graph.channels(self.graph.node(depthwise).inputs[0]);
        let (area, multiplier) = ((h * w) as usize, (mixed / i) as usize);
        let mut joint = Vec::with_capacity((o * i) as usize * area);
        // Planes of one input channel stand together, and so do the points that weigh them.
        for (points, planes) in points.chunks_exact(multiplier).zip(planes.chunks_exact(multiplier * area).cycle()) {
            let mut sum = vec![0f64; area];
            for (&point, plane) in points.iter().zip(planes.chunks_exact(area)) {
                sum.iter_mut().zip(plane).for_each(|(s, &p)| *s += f64::from(point) * f64::from(p));
            }
            joint.extend(sum.iter().map(|&s| s as f32));
        }
        Ok((window, [o, i, h, w], joint))
    }

    /// What is added behind a layer, and the node whose value that gives: the batch norm or biases that alone read it.
    pub fn bias(&self, id: NodeId) -> Result<(NodeId, Option<Vec<f32>>)> {
        let Some(next) = self.sole_reader(id) else { return Ok((id, None)) };
        Ok(match &self.graph.node(next).op {
            Op::BatchNorm(norm) => {
                let shift = self.affine(norm, self.graph.channels(id))?.shift;
                (next, Some(shift.iter().map(|&v| v as f32).collect()))
            }
            Op::BiasAdd { biases } => (next, Some(self.read(*biases)?)),
            _ => (id, None),
        })
    }

    /// A batch norm with its stored statistics.
    pub fn affine(&self, norm: &BatchNorm, channels: i64) -> Result<Affine> {
        let constant = |value: f32| vec![value; channels as usize];
        let gamma = norm.gamma.map_or_else(|| Ok(constant(1.0)), |id| self.read(id))?;
        let beta = norm.beta.map_or_else(|| Ok(constant(0.0)), |id| self.read(id))?;
        let (mean, variance) = (self.read(norm.moving_mean)?, self.read(norm.moving_variance)?);
        let scale: Vec<f64> =
            gamma.iter().zip(&variance).map(|(&g, &v)| f64::from(g) / (f64::from(v) + norm.epsilon).sqrt()).collect();
        let shift = beta.iter().zip(&mean).zip(&scale).map(|((&b, &m), s)| f64::from(b) - f64::from(m) * s).collect();
        Ok(Affine { scale, shift })
    }

    /// A variable as it is.
    pub fn read(&self, id: VariableId) -> Result<Vec<f32>> {
        let variable = self.graph.variable(id);
        let values = (self.variables)(&variable.name)?;
        let count: i64 = variable.shape.iter().product();
        if values.len() as i64 != count {
            bail!("variable `{}` has {} values, but its shape {:?} needs {count}", variable.name, values.len(), variable.shape);
        }
        Ok(values)
    }
}

/// The one input of a network.
///
/// # Errors
/// If there are more, or none.
pub fn input(graph: &Graph) -> Result<NodeId> {
    let inputs: Vec<usize> = (0..graph.nodes().len()).filter(|&i| matches!(graph.nodes()[i].op, Op::Input)).collect();
    ensure!(inputs.len() == 1, "a network has {} inputs; one that is exported needs exactly one", inputs.len());
    Ok(NodeId(inputs[0]))
}

/// The node that gives an output of a network with one input.
///
/// # Errors
/// If there are more inputs, or no such output.
pub fn output(graph: &Graph, name: &str) -> Result<NodeId> {
    input(graph)?;
    graph
        .outputs()
        .iter()
        .find(|(n, _)| n == name)
        .map(|(_, id)| *id)
        .with_context(|| format!("a network has no output `{name}`"))
}

/// How often each node is read by `wanted` and what leads there; 0 for a node that nothing needs.
fn count_readers(graph: &Graph, wanted: &[NodeId]) -> Vec<usize> {
    let mut readers = vec![0; graph.nodes().len()];
    for id in wanted {
        readers[id.0] += 1;
    }
    for (i, node) in graph.nodes().iter().enumerate().rev() {
        if readers[i] > 0 {
            node.inputs.iter().for_each(|id| readers[id.0] += 1);
        }
    }
    readers
}
