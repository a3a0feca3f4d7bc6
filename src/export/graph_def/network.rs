//! Writes a network's operations into a GraphDef: NHWC, batch norms folded into the convolutions before them.

use std::collections::HashMap;

use anyhow::{Context, Result, bail};

use super::builder::{Builder, Op as Node, Value};
use super::ops::concat;
use crate::export::layers::{Layers, ReadVariable};
use crate::net::graph::{Activation, BatchNorm, Graph, NodeId, Op, Padding, VariableId, Window};
use crate::proto::tensorflow::DataType;

/// Appends what `wanted` depends on and returns the values of `wanted`, in its order.
///
/// * `input`: the value of the graph's `Op::Input`, `[N, H, W, C]`.
/// * `variables`: each is asked for once for every operation that reads it.
///
/// # Errors
/// If a variable cannot be read or has another size than the network's, or TensorFlow has no such operation.
pub fn write_network(
    b: &mut Builder,
    graph: &Graph,
    input: Value,
    wanted: &[NodeId],
    variables: &ReadVariable,
) -> Result<Vec<Value>> {
    let mut writer = Writer { layers: Layers::new(graph, wanted, variables), constants: HashMap::new() };
    let mut values: HashMap<NodeId, Value> = HashMap::new();
    for (i, node) in graph.nodes().iter().enumerate() {
        if !writer.layers.is_needed(NodeId(i)) {
            continue;
        }
        let output = writer.write(b, NodeId(i), input, &values).with_context(|| format!("writing {}", node.name))?;
        values.insert(NodeId(i), output);
    }
    let value = |id: &NodeId| values.get(id).copied().with_context(|| format!("{} has no value", graph.node(*id).name));
    wanted.iter().map(value).collect()
}

struct Writer<'a> {
    layers: Layers<'a>,
    /// Constants that several operations share.
    constants: HashMap<VariableId, Value>,
}

impl Writer<'_> {
    fn write(&mut self, b: &mut Builder, id: NodeId, input: Value, values: &HashMap<NodeId, Value>) -> Result<Value> {
        let graph = self.layers.graph;
        let node = graph.node(id);
        let name = &node.name;
        let read =
            |id: &NodeId| values.get(id).copied().with_context(|| format!("{} comes after its reader", graph.node(*id).name));
        let inputs: Vec<Value> = node.inputs.iter().map(read).collect::<Result<_>>()?;
        if matches!(node.op, Op::Input) {
            return Ok(input);
        }
        let x = *inputs.first().context("an operation needs an input")?;
        Ok(match &node.op {
            Op::Input => input,
            Op::Conv2d { weights, window } => {
                let w = self.weights(b, id, *weights)?;
                let (x, padding) = pad(b, name, x, window);
                let mut op = sliding("Conv2D", &[x, w], window, padding);
                if window.dilation != [1, 1] {
                    op = op.with("dilations", [1, window.dilation[0], window.dilation[1], 1].as_slice());
                }
                b.add(name, op, DataType::DtFloat)
            }
            Op::DepthwiseConv2d { weights, window } => {
                if window.dilation != [1, 1] || window.stride[0] != window.stride[1] {
                    bail!(
                        "TensorFlow's depthwise convolution has no dilation and one stride for both directions, not {window:?}"
                    );
                }
                let w = self.weights(b, id, *weights)?;
                let (x, padding) = pad(b, name, x, window);
                b.add(name, sliding("DepthwiseConv2dNative", &[x, w], window, padding), DataType::DtFloat)
            }
            Op::FullyConnected { weights } => {
                let w = self.weights(b, id, *weights)?;
                b.same(name, "MatMul", &[x, w])
            }
            Op::BiasAdd { biases } => {
                let biases = self.constant(b, *biases)?;
                b.same(name, "BiasAdd", &[x, biases])
            }
            Op::BatchNorm(norm) => self.batch_norm(b, id, norm, x)?,
            Op::Activation(Activation::Relu) => b.same(name, "Relu", &[x]),
            Op::Activation(Activation::Relu6) => b.same(name, "Relu6", &[x]),
            Op::MaxPool(window) => pool(b, name, "MaxPool", x, window)?,
            Op::AvgPool(window) => pool(b, name, "AvgPool", x, window)?,
            Op::GlobalMean => {
                let axes = b.ints(&format!("{name}/reduction_indices"), &[2], &[1, 2]);
                let op = Node::new("Mean", &[x, axes]).typed("T").with("Tidx", DataType::DtInt32).with("keep_dims", false);
                b.add(name, op, DataType::DtFloat) // [N, C]
            }
            // Channels come last.
            Op::Concat => concat(b, name, &inputs, -1),
            Op::Add => b.same(name, "Add", &inputs),
            Op::Sigmoid => b.same(name, "Sigmoid", &[x]),
            Op::Scale(factor) => {
                let factor = b.float(&format!("{name}/factor"), *factor as f32);
                b.same(name, "Mul", &[x, factor])
            }
            Op::Pad(pads) => zeros_around(b, name, x, pads),
            Op::Slice { row, column, channel } => {
                let [row, column, channel, channels] = [*row, *column, *channel, node.channels].map(|v| v as i32);
                let begin = b.ints(&format!("{name}/begin"), &[4], &[0, row, column, channel]);
                let size = b.ints(&format!("{name}/size"), &[4], &[-1, -1, -1, channels]);
                b.add(name, Node::new("Slice", &[x, begin, size]).typed("T").with("Index", DataType::DtInt32), DataType::DtFloat)
            }
            // Only training drops anything.
            Op::Dropout { .. } | Op::DropPath { .. } => x,
        })
    }

    /// The weights of a convolution or fully connected layer, times the factors of a batch norm that is folded into it.
    fn weights(&mut self, b: &mut Builder, id: NodeId, weights: VariableId) -> Result<Value> {
        let (values, folded) = self.layers.weights(id, weights)?;
        if !folded {
            return self.constant(b, weights);
        }
        let variable = self.layers.graph.variable(weights);
        Ok(b.floats(&variable.name, &variable.shape, &values))
    }

    /// A batch norm with its stored statistics: a bias behind a layer that took the factors in, else a factor and a bias.
    fn batch_norm(&mut self, b: &mut Builder, id: NodeId, norm: &BatchNorm, x: Value) -> Result<Value> {
        let node = self.layers.graph.node(id);
        let affine = self.layers.affine(norm, node.channels)?;
        let constant = |b: &mut Builder, part: &str, values: &[f64]| {
            let values: Vec<f32> = values.iter().map(|&v| v as f32).collect();
            b.floats(&format!("{}/{part}", node.name), &[node.channels], &values)
        };
        let scaled = if self.layers.is_folded(id) {
            x
        } else {
            let scale = constant(b, "scale", &affine.scale);
            b.same(&format!("{}/mul", node.name), "Mul", &[x, scale])
        };
        let shift = constant(b, "shift", &affine.shift);
        Ok(b.same(&node.name, "BiasAdd", &[scaled, shift]))
    }

    /// A variable as it is.
    fn constant(&mut self, b: &mut Builder, id: VariableId) -> Result<Value> {
        if let Some(&value) = self.constants.get(&id) {
            return Ok(value);
        }
        let variable = self.layers.graph.variable(id);
        let value = b.floats(&variable.name, &variable.shape, &self.layers.read(id)?);
        self.constants.insert(id, value);
        Ok(value)
    }
}

/// A convolution or pooling along height and width.
fn sliding(kind: &'static str, inputs: &[Value], window: &Window, padding: &str) -> Node {
    let strides = [1, window.stride[0], window.stride[1], 1];
    Node::new(kind, inputs).typed("T").with("strides", strides.as_slice()).with("padding", padding).with("data_format", "NHWC")
}

fn pool(b: &mut Builder, name: &str, kind: &'static str, x: Value, window: &Window) -> Result<Value> {
    if window.dilation != [1, 1] {
        bail!("TensorFlow's pooling has no dilation, but this one has {:?}", window.dilation);
    }
    let (x, padding) = pad(b, name, x, window);
    let kernel = [1, window.kernel[0], window.kernel[1], 1];
    Ok(b.add(name, sliding(kind, &[x], window, padding).with("ksize", kernel.as_slice()), DataType::DtFloat))
}

/// The input and TensorFlow's name of the padding; explicit zeros become an operation of their own.
fn pad(b: &mut Builder, name: &str, x: Value, window: &Window) -> (Value, &'static str) {
    match window.padding {
        Padding::Same => (x, "SAME"),
        Padding::Valid => (x, "VALID"),
        Padding::Explicit(pads) => (zeros_around(b, &format!("{name}/Pad"), x, &pads), "VALID"),
    }
}

/// `pads`: `[top, left, bottom, right]`.
fn zeros_around(b: &mut Builder, name: &str, x: Value, pads: &[i64; 4]) -> Value {
    let [top, left, bottom, right] = pads.map(|p| p as i32);
    let paddings = b.ints(&format!("{name}/paddings"), &[4, 2], &[0, 0, top, bottom, left, right, 0, 0]);
    b.add(name, Node::new("Pad", &[x, paddings]).typed("T").with("Tpaddings", DataType::DtInt32), x.dtype())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::graph::MovingVariance;
    use crate::net::layers::{BatchNormParams, ConvScope, Scope, conv2d, depthwise_conv2d};
    use crate::proto::tensorflow::{GraphDef, attr_value};

    /// Values that make the folded ones easy to say: gamma 3 over the root of 0.75 + 0.25, so a factor of 3; beta 1, mean 0.5.
    fn read(name: &str) -> Result<Vec<f32>> {
        Ok(match name.rsplit('/').next() {
            Some("gamma") => vec![3.0, 6.0],
            Some("beta") => vec![1.0, 1.0],
            Some("moving_mean") => vec![0.5, -0.5],
            Some("moving_variance") => vec![0.75, 3.75],
            Some("weights" | "depthwise_weights") => vec![1.0, 2.0, 3.0, 4.0],
            _ => bail!("there is no {name}"),
        })
    }

    const SCOPE: ConvScope = ConvScope {
        initializer: crate::net::graph::Initializer::Constant(0.0),
        regularizer: crate::net::graph::Regularizer::None,
        batch_norm: Some(BatchNormParams {
            decay: 0.9,
            epsilon: 0.25,
            center: true,
            scale: true,
            train: true,
            trainable: true,
            moving: MovingVariance::Biased,
        }),
        activation: Some(Activation::Relu6),
        trainable: true,
    };

    fn write(graph: &Graph, wanted: NodeId) -> GraphDef {
        write_with(graph, wanted, &read)
    }

    fn write_with(graph: &Graph, wanted: NodeId, variables: &ReadVariable) -> GraphDef {
        let mut b = Builder::new();
        let input = b.floats("input", &[1, 1, 1, 2], &[0.0, 0.0]);
        write_network(&mut b, graph, input, &[wanted], variables).unwrap();
        b.finish()
    }

    fn floats(graph: &GraphDef, name: &str) -> Vec<f32> {
        let node = graph.node.iter().find(|n| n.name == name).unwrap();
        let Some(attr_value::Value::Tensor(tensor)) = &node.attr["value"].value else { panic!("{name} is no constant") };
        tensor.tensor_content.chunks_exact(4).map(|c| f32::from_le_bytes(c.try_into().unwrap())).collect()
    }

    #[test]
    fn a_batch_norm_is_folded_into_the_convolution_before_it() {
        let mut graph = Graph::new();
        let x = graph.input("x", 2);
        let y = conv2d(&mut graph, x, &Scope::new("c"), 2, Window::square(1, 1, Padding::Same), &SCOPE);
        let written = write(&graph, y);
        // Factors 3 / sqrt(1) and 6 / sqrt(4): 3 and 3; the output channel is the last index.
        assert_eq!(floats(&written, "c/weights"), [3.0, 6.0, 9.0, 12.0]);
        assert_eq!(floats(&written, "c/BatchNorm/shift"), [-0.5, 2.5]);
        let kinds: Vec<&str> = written.node.iter().map(|n| n.op.as_str()).collect();
        assert_eq!(kinds, ["Const", "Const", "Conv2D", "Const", "BiasAdd", "Relu6"]);
    }

    #[test]
    fn a_convolution_that_others_read_too_keeps_its_weights() {
        let mut graph = Graph::new();
        let x = graph.input("x", 2);
        let y = conv2d(&mut graph, x, &Scope::new("c"), 2, Window::square(1, 1, Padding::Same), &SCOPE);
        let raw = graph.find("c/Conv2D").unwrap();
        let sum = graph.push("sum", Op::Add, &[raw, y], 2);
        let written = write(&graph, sum);
        assert_eq!(floats(&written, "c/weights"), [1.0, 2.0, 3.0, 4.0]);
        assert_eq!(floats(&written, "c/BatchNorm/scale"), [3.0, 3.0]);
        assert_eq!(written.node.last().unwrap().input, ["c/Conv2D", "c/Relu6"]);
    }

    #[test]
    fn explicit_padding_becomes_an_operation_and_what_nothing_reads_is_left_out() {
        let mut graph = Graph::new();
        let x = graph.input("x", 2);
        let window = Window::square(1, 2, Padding::Explicit([1, 2, 3, 4]));
        let y = depthwise_conv2d(&mut graph, x, &Scope::new("d"), window, &ConvScope { batch_norm: None, ..SCOPE });
        graph.push("unread", Op::GlobalMean, &[y], 2);
        let depthwise = graph.find("d/depthwise").unwrap();
        let written = write_with(&graph, depthwise, &|_| Ok(vec![1.0, 2.0]));
        let names: Vec<&str> = written.node.iter().map(|n| n.name.as_str()).collect();
        assert_eq!(names, ["input", "d/depthwise_weights", "d/depthwise/Pad/paddings", "d/depthwise/Pad", "d/depthwise"]);
    }

    #[test]
    fn a_variable_of_another_size_is_named() {
        let mut graph = Graph::new();
        let x = graph.input("x", 2);
        let y = conv2d(&mut graph, x, &Scope::new("c"), 3, Window::square(1, 1, Padding::Same), &SCOPE);
        let mut b = Builder::new();
        let input = b.floats("input", &[1, 1, 1, 2], &[0.0, 0.0]);
        let error = format!("{:#}", write_network(&mut b, &graph, input, &[y], &read).unwrap_err());
        assert!(error.contains("`c/") && error.contains("needs"), "{error}");
    }
}
