//! Writes a network's operations into an ONNX graph: NCHW, batch norms and biases folded into the convolutions before them.

use std::collections::HashMap;

use anyhow::{Context, Result, bail};

use super::builder::{Attribute, Builder, Value};
use crate::export::layers::{Layers, ReadVariable};
use crate::net::graph::{Activation, Graph, NodeId, Op, Padding, Window};

/// "To the end" of a slice.
const END: i64 = i64::MAX;

/// Appends what `wanted` depends on and returns the values of `wanted`, in its order.
///
/// * `given`: the node that all else comes from, the graph's `Op::Input` or one behind it, and its value `[N, C, H, W]`.
///
/// # Errors
/// If a variable cannot be read or has another size than the network's, or ONNX has no such operation.
pub fn write_network(
    b: &mut Builder,
    graph: &Graph,
    given: (NodeId, Value),
    wanted: &[NodeId],
    variables: &ReadVariable,
) -> Result<Vec<Value>> {
    let layers = Layers::new(graph, wanted, variables);
    let mut values = HashMap::from([given]);
    for (i, node) in graph.nodes().iter().enumerate() {
        let id = NodeId(i);
        if layers.is_needed(id) && !values.contains_key(&id) && !matches!(node.op, Op::Input) {
            let (result, output) = write(b, &layers, id, &values).with_context(|| format!("writing {}", node.name))?;
            values.insert(result, output);
            values.insert(id, output);
        }
    }
    let value = |id: &NodeId| values.get(id).copied().with_context(|| format!("{} has no value", graph.node(*id).name));
    wanted.iter().map(value).collect()
}

/// Appends a node; with a layer, the biases behind it as well. Returns whose value it is.
fn write(b: &mut Builder, layers: &Layers, id: NodeId, values: &HashMap<NodeId, Value>) -> Result<(NodeId, Value)> {
    let graph = layers.graph;
    let node = graph.node(id);
    let name = &node.name;
    let read = |id: &NodeId| values.get(id).copied().with_context(|| format!("{} comes after its reader", graph.node(*id).name));
    let inputs: Vec<Value> = node.inputs.iter().map(read).collect::<Result<_>>()?;
    let x = *inputs.first().context("an operation needs an input")?;
    let plain = |value: Value| (id, value);
    Ok(match &node.op {
        Op::Input => bail!("its value was not given"),
        Op::Conv2d { weights, window } | Op::DepthwiseConv2d { weights, window } => {
            let depthwise = matches!(node.op, Op::DepthwiseConv2d { .. });
            let (result, bias) = layers.bias(id)?;
            let (dims, values) = layers.convolution(id, *weights)?;
            let mut operands = vec![x, b.floats(&graph.variable(*weights).name, &dims, &values)];
            if let Some(bias) = bias {
                operands.push(b.floats(&format!("{name}/bias"), &[node.channels], &bias));
            }
            let mut attributes = sliding(window)?;
            attributes.push(Attribute::ints("dilations", &window.dilation));
            attributes.push(Attribute::int("group", if depthwise { graph.channels(node.inputs[0]) } else { 1 }));
            (result, b.op(name, "Conv", &operands, &attributes))
        }
        Op::FullyConnected { weights } => {
            let (result, bias) = layers.bias(id)?;
            let variable = graph.variable(*weights);
            let (values, _) = layers.weights(id, *weights)?;
            let mut operands = vec![x, b.floats(&variable.name, &variable.shape, &values)];
            if let Some(bias) = bias {
                operands.push(b.floats(&format!("{name}/bias"), &[node.channels], &bias));
            }
            (result, b.op(name, "Gemm", &operands, &[]))
        }
        Op::BiasAdd { biases } => {
            let biases = b.floats(&format!("{name}/bias"), &[node.channels, 1, 1], &layers.read(*biases)?);
            plain(b.op(name, "Add", &[x, biases], &[]))
        }
        Op::BatchNorm(norm) => {
            let affine = layers.affine(norm, node.channels)?;
            let constant = |b: &mut Builder, part: &str, values: &[f64]| {
                let values: Vec<f32> = values.iter().map(|&v| v as f32).collect();
                b.floats(&format!("{name}/{part}"), &[node.channels, 1, 1], &values)
            };
            let scale = constant(b, "scale", &affine.scale);
            let scaled = b.op(&format!("{name}/mul"), "Mul", &[x, scale], &[]);
            let shift = constant(b, "shift", &affine.shift);
            plain(b.op(name, "Add", &[scaled, shift], &[]))
        }
        Op::Activation(Activation::Relu) => plain(b.op(name, "Relu", &[x], &[])),
        Op::Activation(Activation::Relu6) => {
            let (low, high) = (b.float(&format!("{name}/min"), 0.0), b.float(&format!("{name}/max"), 6.0));
            plain(b.op(name, "Clip", &[x, low, high], &[]))
        }
        Op::MaxPool(window) => plain(b.op(name, "MaxPool", &[x], &pooling(window)?)),
        Op::AvgPool(window) => plain(b.op(name, "AveragePool", &[x], &pooling(window)?)),
        Op::GlobalMean => {
            let attributes = [Attribute::ints("axes", &[2, 3]), Attribute::int("keepdims", 0)];
            plain(b.op(name, "ReduceMean", &[x], &attributes)) // [N, C]
        }
        Op::Concat => plain(b.op(name, "Concat", &inputs, &[Attribute::int("axis", 1)])),
        Op::Add => plain(inputs[1..].iter().fold(x, |sum, part| b.op(name, "Add", &[sum, *part], &[]))),
        Op::Sigmoid => plain(b.op(name, "Sigmoid", &[x], &[])),
        Op::Scale(factor) => {
            let factor = b.float(&format!("{name}/factor"), *factor as f32);
            plain(b.op(name, "Mul", &[x, factor], &[]))
        }
        Op::Pad([top, left, bottom, right]) => {
            let pads = b.ints(&format!("{name}/pads"), &[8], &[0, 0, *top, *left, 0, 0, *bottom, *right]);
            plain(b.op(name, "Pad", &[x, pads], &[]))
        }
        Op::Slice { row, column, channel } => {
            let starts = b.ints(&format!("{name}/starts"), &[3], &[*channel, *row, *column]);
            let ends = b.ints(&format!("{name}/ends"), &[3], &[channel + node.channels, END, END]);
            let axes = b.ints(&format!("{name}/axes"), &[3], &[1, 2, 3]);
            plain(b.op(name, "Slice", &[x, starts, ends, axes], &[]))
        }
        // Only training drops anything.
        Op::Dropout { .. } | Op::DropPath { .. } => plain(x),
    })
}

/// Kernel, stride and padding.
fn sliding(window: &Window) -> Result<Vec<Attribute>> {
    let mut attributes = vec![Attribute::ints("kernel_shape", &window.kernel), Attribute::ints("strides", &window.stride)];
    match window.padding {
        Padding::Valid => {}
        Padding::Explicit(pads) => attributes.push(Attribute::ints("pads", &pads)),
        // A window of one cell needs no padding; onnxruntime's MaxPool would find a negative one with stride 2, and stop.
        Padding::Same if window.kernel == [1, 1] => {}
        // With stride 1 the padding does not depend on the map's size, which runtimes like better, and dilation need.
        Padding::Same if window.stride == [1, 1] => attributes.push(Attribute::ints("pads", &window.pads(1, 1))),
        Padding::Same if window.dilation == [1, 1] => attributes.push(Attribute::text("auto_pad", "SAME_UPPER")),
        Padding::Same => bail!("ONNX has no window with stride {:?} and dilation {:?}", window.stride, window.dilation),
    }
    Ok(attributes)
}

fn pooling(window: &Window) -> Result<Vec<Attribute>> {
    if window.dilation != [1, 1] {
        bail!("ONNX's average pooling has no dilation, but this one has {:?}", window.dilation);
    }
    sliding(window)
}
