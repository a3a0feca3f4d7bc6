//! Writes a network's operations as TorchScript, one line each: batch norms and biases folded into the convolutions before them.

use std::collections::{HashMap, HashSet};

use anyhow::{Context, Result, bail};

use super::source::{Source, number, unique};
use crate::export::layers::{Layers, ReadVariable};
use crate::net::graph::{Activation, Graph, NodeId, Op, Padding, Window};
use crate::net::operations::pool_padding;

/// TensorFlow's 'SAME' on a map whose size is known when it comes: `[left, right, top, bottom]`.
///
/// * `reach`: what a window covers, from its first cell to its last.
const SAME_PADS: &str = "\
def same_pads(self, x, reach: List[int], stride: List[int]) -> List[int]:
    height = x.size(2)
    width = x.size(3)
    down = max(((height + stride[0] - 1) // stride[0] - 1) * stride[0] + reach[0] - height, 0)
    across = max(((width + stride[1] - 1) // stride[1] - 1) * stride[1] + reach[1] - width, 0)
    return [across // 2, across - across // 2, down // 2, down - down // 2]
";
/// The mean over those cells of each window that lie inside the map.
const MEAN_INSIDE: &str = "\
def mean_inside(self, x, pads: List[int], kernel: List[int], stride: List[int]):
    ones = torch.ones([1, 1, x.size(2), x.size(3)], dtype=6, device=x.device)
    sum = torch.avg_pool2d(torch.constant_pad_nd(x, pads, 0.0), kernel, stride, [0, 0], False, True, 1)
    inside = torch.avg_pool2d(torch.constant_pad_nd(ones, pads, 0.0), kernel, stride, [0, 0], False, True, 1)
    return sum / inside
";

/// Adds the method `name(self, x)`, which gives a tuple of the values of `wanted`, in its order.
///
/// * `size`: `[height, width]` of the input `[N, C, H, W]`, where all have the same.
///
/// # Errors
/// If a variable cannot be read or has another size than the network's, or libtorch has no such operation.
pub fn write_network(
    source: &mut Source,
    name: &str,
    graph: &Graph,
    size: Option<[i64; 2]>,
    wanted: &[NodeId],
    variables: &ReadVariable,
) -> Result<()> {
    let mut writer = Writer {
        source,
        layers: Layers::new(graph, wanted, variables),
        sizes: size.map(|size| graph.sizes(size)),
        values: HashMap::new(),
        lines: Vec::new(),
        names: ["self", "torch", "x"].map(str::to_string).into(),
        known: HashMap::new(),
    };
    for (i, node) in graph.nodes().iter().enumerate() {
        let id = NodeId(i);
        if writer.layers.is_needed(id) && !writer.values.contains_key(&id) {
            writer.write(id).with_context(|| format!("writing {}", node.name))?;
        }
    }
    let results: Vec<String> = wanted.iter().map(|id| writer.value(*id)).collect::<Result<_>>()?;
    let kinds = vec!["Tensor"; wanted.len()].join(", ");
    let lines = writer.lines.concat();
    source.method(format!("def {name}(self, x) -> Tuple[{kinds}]:\n{lines}    return ({},)\n", results.join(", ")));
    Ok(())
}

struct Writer<'a, 's> {
    source: &'s mut Source,
    layers: Layers<'a>,
    /// `[height, width]` of every node's output, if they are known.
    sizes: Option<Vec<[i64; 2]>>,
    /// The variable that has a node's value.
    values: HashMap<NodeId, String>,
    lines: Vec<String>,
    names: HashSet<String>,
    /// Expressions without weights that have been computed already, and where.
    known: HashMap<String, String>,
}

impl Writer<'_, '_> {
    fn value(&self, id: NodeId) -> Result<String> {
        let value = self.values.get(&id).cloned();
        value.with_context(|| format!("{} comes after its reader", self.layers.graph.node(id).name))
    }

    fn write(&mut self, id: NodeId) -> Result<()> {
        let graph = self.layers.graph;
        let node = graph.node(id);
        let name = &node.name;
        if matches!(node.op, Op::Input) {
            self.values.insert(id, "x".to_string());
            return Ok(());
        }
        let inputs: Vec<String> = node.inputs.iter().map(|id| self.value(*id)).collect::<Result<_>>()?;
        let before = *node.inputs.first().context("an operation needs an input")?;
        let x = &inputs[0];
        match &node.op {
            Op::Input => {}
            Op::Conv2d { weights, window } | Op::DepthwiseConv2d { weights, window } => {
                let depthwise = matches!(node.op, Op::DepthwiseConv2d { .. });
                let (dims, values) = self.layers.convolution(id, *weights)?;
                let weights = self.source.parameter(&graph.variable(*weights).name, &dims, &values)?;
                let (result, bias) = self.bias(id)?;
                let groups = if depthwise { graph.channels(before) } else { 1 };
                let (x, padding) = match self.pads(before, window) {
                    Pads::Known([top, left, bottom, right]) if top == bottom && left == right => (x.clone(), [top, left]),
                    pads => (self.padded(x, &pads, 0.0), [0, 0]),
                };
                let Window { stride, dilation, .. } = window;
                let y = format!("torch.conv2d({x}, {weights}, {bias}, {stride:?}, {padding:?}, {dilation:?}, {groups})");
                self.put(&[id, result], name, y);
            }
            Op::FullyConnected { weights } => {
                let variable = graph.variable(*weights);
                let (values, _) = self.layers.weights(id, *weights)?;
                let [inputs, outputs] = variable.shape[..] else { bail!("{} has shape {:?}", variable.name, variable.shape) };
                // libtorch has the output first.
                let at = |i: i64| values[((i % inputs) * outputs + i / inputs) as usize];
                let turned: Vec<f32> = (0..inputs * outputs).map(at).collect();
                let weights = self.source.parameter(&variable.name, &[outputs, inputs], &turned)?;
                let (result, bias) = self.bias(id)?;
                self.put(&[id, result], name, format!("torch.linear({x}, {weights}, {bias})"));
            }
            Op::BiasAdd { biases } => {
                let values = self.layers.read(*biases)?;
                let biases = self.source.parameter(&graph.variable(*biases).name, &[node.channels, 1, 1], &values)?;
                self.put(&[id], name, format!("{x} + {biases}"));
            }
            Op::BatchNorm(norm) => {
                let affine = self.layers.affine(norm, node.channels)?;
                let mut constant = |part: &str, values: &[f64]| {
                    let values: Vec<f32> = values.iter().map(|&v| v as f32).collect();
                    self.source.parameter(&format!("{name}/{part}"), &[node.channels, 1, 1], &values)
                };
                let (scale, shift) = (constant("scale", &affine.scale)?, constant("shift", &affine.shift)?);
                self.put(&[id], name, format!("torch.addcmul({shift}, {x}, {scale})"));
            }
            Op::Activation(activation) => {
                // What a layer gives to nobody else can be overwritten.
                let own = matches!(
                    graph.node(before).op,
                    Op::Conv2d { .. } | Op::DepthwiseConv2d { .. } | Op::BatchNorm(_) | Op::BiasAdd { .. } | Op::Add
                ) && self.layers.sole_reader(before) == Some(id);
                let end = if own { "_" } else { "" };
                let y = match activation {
                    Activation::Relu => format!("torch.relu{end}({x})"),
                    Activation::Relu6 => format!("torch.clamp{end}({x}, 0.0, 6.0)"),
                };
                if own { self.put(&[id], name, y) } else { self.put_once(id, name, y) }
            }
            Op::MaxPool(window) => {
                let y = self.max_pool(before, x, window);
                self.put_once(id, name, y);
            }
            Op::AvgPool(window) => {
                let y = self.avg_pool(before, x, window)?;
                self.put_once(id, name, y);
            }
            Op::GlobalMean => self.put(&[id], name, format!("torch.mean({x}, [2, 3])")), // [N, C]
            Op::Concat => self.put(&[id], name, format!("torch.cat([{}], 1)", inputs.join(", "))),
            Op::Add => self.put(&[id], name, inputs.join(" + ")),
            Op::Scale(factor) => self.put_once(id, name, format!("{x} * {}", number(*factor))),
            Op::Sigmoid => self.put_once(id, name, format!("torch.sigmoid({x})")),
            Op::Pad([top, left, bottom, right]) => {
                let pads = Pads::Known([*top, *left, *bottom, *right]);
                let y = self.padded(x, &pads, 0.0);
                self.put_once(id, name, y);
            }
            Op::Slice { row, column, channel } => {
                let end = channel + node.channels;
                self.put_once(id, name, format!("{x}[:, {channel}:{end}, {row}:, {column}:]"));
            }
            // Only training drops anything.
            Op::Dropout { .. } | Op::DropPath { .. } => {
                let x = x.clone();
                self.values.insert(id, x);
            }
        }
        Ok(())
    }

    /// Appends a line; its variable has the value of all `nodes`.
    fn put(&mut self, nodes: &[NodeId], name: &str, expression: String) {
        let variable = unique(&mut self.names, name);
        self.lines.push(format!("    {variable} = {expression}\n"));
        for &node in nodes {
            self.values.insert(node, variable.clone());
        }
    }

    /// As [`put`](Self::put), but what has been computed already is not computed again.
    fn put_once(&mut self, node: NodeId, name: &str, expression: String) {
        if let Some(variable) = self.known.get(&expression) {
            self.values.insert(node, variable.clone());
            return;
        }
        self.put(&[node], name, expression.clone());
        self.known.insert(expression, self.values[&node].clone());
    }

    /// What is added behind a layer, as an argument, and the node whose value that gives.
    fn bias(&mut self, id: NodeId) -> Result<(NodeId, String)> {
        let (result, values) = self.layers.bias(id)?;
        let Some(values) = values else { return Ok((result, "None".to_string())) };
        let name = format!("{}/bias", self.layers.graph.node(id).name);
        Ok((result, self.source.parameter(&name, &[values.len() as i64], &values)?))
    }

    fn pads(&self, input: NodeId, window: &Window) -> Pads {
        let reach = [0, 1].map(|i| (window.kernel[i] - 1) * window.dilation[i] + 1);
        match (&self.sizes, window.padding) {
            (Some(sizes), _) => Pads::Known(window.pads(sizes[input.0][0], sizes[input.0][1])),
            // With stride 1, or one cell, padding does not depend on the map's size.
            (None, Padding::Same) if window.stride != [1, 1] && reach != [1, 1] => Pads::Same { reach, stride: window.stride },
            (None, _) => Pads::Known(window.pads(1, 1)),
        }
    }

    /// `[left, right, top, bottom]` as source.
    fn pad_list(&mut self, x: &str, pads: &Pads) -> String {
        match pads {
            Pads::Known([top, left, bottom, right]) => format!("[{left}, {right}, {top}, {bottom}]"),
            Pads::Same { reach, stride } => {
                self.source.method(SAME_PADS);
                format!("self.same_pads({x}, {reach:?}, {stride:?})")
            }
        }
    }

    /// `x` with cells of `value` around it.
    fn padded(&mut self, x: &str, pads: &Pads, value: f64) -> String {
        if matches!(pads, Pads::Known([0, 0, 0, 0])) {
            return x.to_string();
        }
        let list = self.pad_list(x, pads);
        format!("torch.constant_pad_nd({x}, {list}, {})", number(value))
    }

    /// The padding and overhang that libtorch's pooling takes itself.
    fn pooling(&self, input: NodeId, window: &Window) -> Option<([i64; 2], bool)> {
        match &self.sizes {
            Some(sizes) => pool_padding(sizes[input.0], window),
            None => match self.pads(input, window) {
                Pads::Known([top, left, bottom, right]) => {
                    let fits = top == bottom && left == right && 2 * top <= window.kernel[0] && 2 * left <= window.kernel[1];
                    fits.then_some(([top, left], false))
                }
                Pads::Same { .. } => None,
            },
        }
    }

    fn max_pool(&mut self, input: NodeId, x: &str, window: &Window) -> String {
        if let Some(cells) = self.every_nth(input, x, window) {
            return cells;
        }
        let Window { kernel, stride, dilation, .. } = window;
        let (x, padding, overhang) = match self.pooling(input, window) {
            Some((padding, overhang)) => (x.to_string(), padding, overhang),
            None => {
                let pads = self.pads(input, window);
                // Cells outside the map never win.
                (self.padded(x, &pads, f64::NEG_INFINITY), [0, 0], false)
            }
        };
        format!("torch.max_pool2d({x}, {kernel:?}, {stride:?}, {padding:?}, {dilation:?}, {})", truth(overhang))
    }

    fn avg_pool(&mut self, input: NodeId, x: &str, window: &Window) -> Result<String> {
        if window.dilation != [1, 1] {
            bail!("libtorch's average pooling has no dilation, but this one has {:?}", window.dilation);
        }
        if let Some(cells) = self.every_nth(input, x, window) {
            return Ok(cells);
        }
        let Window { kernel, stride, .. } = window;
        Ok(match self.pooling(input, window) {
            // The mean is over the cells inside the map.
            Some((padding, overhang)) => {
                format!("torch.avg_pool2d({x}, {kernel:?}, {stride:?}, {padding:?}, {}, False)", truth(overhang))
            }
            None => {
                self.source.method(MEAN_INSIDE);
                let pads = self.pads(input, window);
                let pads = self.pad_list(x, &pads);
                format!("self.mean_inside({x}, {pads}, {kernel:?}, {stride:?})")
            }
        })
    }

    /// A window of one cell only picks cells.
    fn every_nth(&self, input: NodeId, x: &str, window: &Window) -> Option<String> {
        if window.kernel != [1, 1] || !matches!(self.pads(input, window), Pads::Known([0, 0, 0, 0])) {
            return None;
        }
        let [down, across] = window.stride;
        // NHWC in memory, as all maps are.
        Some(format!("{x}[:, :, ::{down}, ::{across}].contiguous(memory_format=2)"))
    }
}

/// What is around a map.
enum Pads {
    /// `[top, left, bottom, right]`.
    Known([i64; 4]),
    /// TensorFlow's 'SAME', by the map's size.
    Same { reach: [i64; 2], stride: [i64; 2] },
}

fn truth(value: bool) -> &'static str {
    if value { "True" } else { "False" }
}
