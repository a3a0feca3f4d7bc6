//! Writes a network's operations into an ONNX graph: NCHW, batch norms and biases folded into the convolutions before them.

use std::collections::{HashMap, HashSet};

use anyhow::{Context, Result, bail};

use super::builder::{Attribute, Builder, Value};
use super::winograd::SmallMaps;
use crate::export::layers::{Layers, ReadVariable};
use crate::net::graph::{Activation, Graph, NodeId, Op, Padding, Window};

/// "To the end" of a slice.
const END: i64 = i64::MAX;

/// Appends what `wanted` depends on and returns the values of `wanted`, in its order.
///
/// * `given`: the nodes that all else comes from, the graph's `Op::Input` or some behind it, and their values `[N, C, H, W]`.
/// * `small`: `[H, W]` of the graph's input, if it is many small maps, as crops are.
///
/// # Errors
/// If a variable cannot be read or has another size than the network's, or ONNX has no such operation.
pub fn write_network(
    b: &mut Builder,
    graph: &Graph,
    given: &[(NodeId, Value)],
    small: Option<[i64; 2]>,
    wanted: &[NodeId],
    variables: &ReadVariable,
) -> Result<Vec<Value>> {
    let layers = Layers::new(graph, wanted, variables);
    let sizes = small.map(|input| graph.sizes(input));
    let mut values: HashMap<NodeId, Value> = given.iter().copied().collect();
    let needed = || (0..graph.nodes().len()).map(NodeId).filter(|id| layers.is_needed(*id));
    let taken_in = needed().flat_map(|id| {
        let shift = Shift::before(&layers, id).map_or(Vec::new(), |shift| shift.nodes.to_vec());
        layers.taken_in(id).into_iter().chain(shift)
    });
    let taken_in: HashSet<NodeId> = taken_in.collect();
    for id in needed() {
        let node = graph.node(id);
        if !values.contains_key(&id) && !matches!(node.op, Op::Input) && !taken_in.contains(&id) {
            let size = sizes.as_ref().zip(node.inputs.first()).map(|(sizes, before)| sizes[before.0]);
            let (result, output) = write(b, &layers, id, (&values, size)).with_context(|| format!("writing {}", node.name))?;
            values.insert(result, output);
            values.insert(id, output);
        }
    }
    let value = |id: &NodeId| values.get(id).copied().with_context(|| format!("{} has no value", graph.node(*id).name));
    wanted.iter().map(value).collect()
}

/// Appends a node; with a layer, the biases behind it as well. Returns whose value it is.
///
/// * `size`: of the small maps that it reads.
fn write(
    b: &mut Builder,
    layers: &Layers,
    id: NodeId,
    (values, size): (&HashMap<NodeId, Value>, Option<[i64; 2]>),
) -> Result<(NodeId, Value)> {
    let graph = layers.graph;
    let node = graph.node(id);
    let name = &node.name;
    let read = |id: &NodeId| values.get(id).copied().with_context(|| format!("{} comes after its reader", graph.node(*id).name));
    let taken_in = layers.taken_in(id);
    let shift = Shift::before(layers, id);
    let first = taken_in.or(shift.as_ref().map(|shift| shift.nodes[0])).unwrap_or(id);
    let inputs: Vec<Value> = graph.node(first).inputs.iter().map(read).collect::<Result<_>>()?;
    let x = *inputs.first().context("an operation needs an input")?;
    let plain = |value: Value| (id, value);
    Ok(match &node.op {
        Op::Input => bail!("its value was not given"),
        Op::Conv2d { weights, window } | Op::DepthwiseConv2d { weights, window } => {
            let depthwise = matches!(node.op, Op::DepthwiseConv2d { .. });
            let (result, bias) = layers.bias(id)?;
            let channels = [graph.channels(node.inputs[0]), node.channels];
            if let Some(small) = size.filter(|_| !depthwise).and_then(|size| SmallMaps::of(window, size, channels)) {
                let (values, _) = layers.weights(id, *weights)?;
                let values = b.floats(&graph.variable(*weights).name, &[9, channels[0] * channels[1]], &values);
                return Ok((result, small.convolution(b, name, [x, values], bias.as_deref())));
            }
            let (window, dims, values) = match taken_in {
                Some(before) => layers.joint_convolution(id, before)?,
                None => layers.convolution(id, *weights).map(|(dims, values)| (*window, dims, values))?,
            };
            let mut operands = vec![x, b.floats(&graph.variable(*weights).name, &dims, &values)];
            if let Some(bias) = bias {
                operands.push(b.floats(&format!("{name}/bias"), &[node.channels], &bias));
            }
            let mut attributes = sliding(&window)?;
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
        Op::AvgPool(window) => match shift {
            Some(shift) => plain(shift.write(b, name, (x, node.channels), window)),
            None => plain(b.op(name, "AveragePool", &[x], &pooling(window)?)),
        },
        Op::GlobalMean => {
            let attributes = [Attribute::ints("axes", &[2, 3]), Attribute::int("keepdims", 0)];
            plain(b.op(name, "ReduceMean", &[x], &attributes)) // [N, C]
        }
        Op::Concat => plain(b.op(name, "Concat", &inputs, &[Attribute::int("axis", 1)])),
        Op::Add => plain(b.op(name, "Add", &inputs, &[])),
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

/// A map without its first rows and columns and with zeros behind the last instead, of which a pooling of single cells reads some: NASNet's
/// factorized reductions, whose padded and cut copies of the whole map took onnxruntime a twentieth of the time.
struct Shift {
    rows: i64,
    columns: i64,
    /// The padding and the slice behind it, which nothing else reads.
    nodes: [NodeId; 2],
}

impl Shift {
    /// What stands before the pooling `id`.
    fn before(layers: &Layers, id: NodeId) -> Option<Self> {
        let graph = layers.graph;
        let Op::AvgPool(Window { kernel: [1, 1], padding: Padding::Valid, .. }) = graph.node(id).op else { return None };
        let slice = graph.node(id).inputs[0];
        let Op::Slice { row: rows, column: columns, channel: 0 } = graph.node(slice).op else { return None };
        let pad = graph.node(slice).inputs[0];
        let same = graph.node(pad).op == Op::Pad([0, 0, rows, columns]) && graph.channels(slice) == graph.channels(pad);
        let alone = layers.sole_reader(slice) == Some(id) && layers.sole_reader(pad) == Some(slice);
        (same && alone).then_some(Self { rows, columns, nodes: [pad, slice] })
    }

    /// All three as a convolution of every channel by itself, whose window has a one in its last cell.
    fn write(&self, b: &mut Builder, name: &str, (x, channels): (Value, i64), window: &Window) -> Value {
        let kernel = [self.rows + 1, self.columns + 1];
        let mut one = vec![0.0; (kernel[0] * kernel[1]) as usize];
        *one.last_mut().expect("a window has cells") = 1.0;
        let weights = b.floats(&format!("{name}/last"), &[channels, 1, kernel[0], kernel[1]], &one.repeat(channels as usize));
        let attributes = [
            Attribute::ints("kernel_shape", &kernel),
            Attribute::ints("strides", &window.stride),
            Attribute::ints("pads", &[0, 0, self.rows, self.columns]),
            Attribute::int("group", channels),
        ];
        b.op(name, "Conv", &[x, weights], &attributes)
    }
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
        bail!("a pooling with dilation {:?} is not written", window.dilation);
    }
    sliding(window)
}

#[cfg(test)]
mod tests {
    use tch::Tensor;

    use super::*;
    use crate::net::graph::{Initializer, Regularizer};
    use crate::net::layers::{ConvScope, Scope, separable_conv2d};
    use crate::proto::onnx::{GraphProto, tensor_proto::DataType};

    const PLAIN: ConvScope = ConvScope {
        initializer: Initializer::Constant(0.0),
        regularizer: Regularizer::None,
        batch_norm: None,
        activation: None,
        trainable: true,
    };
    const MULTIPLIER: i64 = 2;
    const OUTPUTS: i64 = 5;

    /// Numbers without a pattern, `[h, w, I, multiplier]` or `[1, 1, I * multiplier, O]`.
    fn weights(name: &str, channels: i64) -> Tensor {
        let dims = match name.rsplit('/').next() {
            Some("depthwise_weights") => [3, 2, channels, MULTIPLIER],
            Some("pointwise_weights") => [1, 1, channels * MULTIPLIER, OUTPUTS],
            _ => return Tensor::arange(OUTPUTS, (tch::Kind::Float, tch::Device::Cpu)),
        };
        let count: i64 = dims.iter().product();
        (Tensor::arange(count, (tch::Kind::Float, tch::Device::Cpu)) * 12.9898 + dims[0]).sin().view(dims)
    }

    fn written(channels: i64) -> GraphProto {
        let mut graph = Graph::new();
        let x = graph.input("x", channels);
        let window = Window { kernel: [3, 2], stride: [2, 1], dilation: [1, 1], padding: Padding::Same };
        let y = separable_conv2d(&mut graph, x, &Scope::new("c"), (MULTIPLIER, OUTPUTS), window, &PLAIN);
        let mut b = Builder::new();
        let input = b.input("x", DataType::Float, &[]);
        let read = |name: &str| Ok(Vec::<f32>::try_from(weights(name, channels).view([-1]))?);
        write_network(&mut b, &graph, &[(x, input)], None, &[y], &read).unwrap();
        b.finish("test", &[]).graph.unwrap()
    }

    #[test]
    fn a_depthwise_convolution_of_a_picture_and_the_pointwise_one_behind_it_are_one() {
        let graph = written(3);
        let kinds: Vec<&str> = graph.node.iter().map(|n| n.op_type()).collect();
        assert_eq!(kinds, ["Conv"]);
        let joint = &graph.initializer[0];
        assert_eq!(joint.dims, [OUTPUTS, 3, 3, 2]);
        let joint: Vec<f32> = joint.raw_data().chunks_exact(4).map(|c| f32::from_le_bytes(c.try_into().unwrap())).collect();
        let joint = Tensor::from_slice(&joint).view([OUTPUTS, 3, 3, 2]);
        let x = (Tensor::arange(3 * 6 * 7, (tch::Kind::Float, tch::Device::Cpu)) * 1.7).sin().view([1, 3, 6, 7]);
        let none = None::<Tensor>;
        let planes = weights("c/depthwise_weights", 3).permute([2, 3, 0, 1]).reshape([3 * MULTIPLIER, 1, 3, 2]);
        let points = weights("c/pointwise_weights", 3).permute([3, 2, 0, 1]);
        let two =
            x.conv2d(&planes, none.as_ref(), [2, 1], [0, 0], [1, 1], 3).conv2d(&points, none.as_ref(), [1, 1], [0, 0], [1, 1], 1);
        let one = x.conv2d(&joint, none.as_ref(), [2, 1], [0, 0], [1, 1], 1);
        assert!((&one - &two).abs().max().double_value(&[]) < 1e-5);
        assert!(two.abs().max().double_value(&[]) > 1.0);
    }

    /// Every second cell of a map without its first row and column, and with zeros around its end; `alone`: nothing else reads the map so cut.
    fn every_second_from_one(alone: bool) -> GraphProto {
        let mut graph = Graph::new();
        let x = graph.input("x", 2);
        let padded = graph.push("pad", Op::Pad([0, 0, 1, 1]), &[x], 2);
        let cut = graph.push("cut", Op::Slice { row: 1, column: 1, channel: 0 }, &[padded], 2);
        let window = Window { kernel: [1, 1], stride: [2, 2], dilation: [1, 1], padding: Padding::Valid };
        let y = graph.push("y", Op::AvgPool(window), &[cut], 2);
        let wanted = if alone { vec![y] } else { vec![y, cut] };
        let mut b = Builder::new();
        let input = b.input("x", DataType::Float, &[]);
        write_network(&mut b, &graph, &[(x, input)], None, &wanted, &|name| bail!("{name} is not there")).unwrap();
        b.finish("test", &[]).graph.unwrap()
    }

    #[test]
    fn every_second_cell_from_the_second_on_is_read_without_a_copy_of_the_map() {
        let graph = every_second_from_one(true);
        let [conv] = &graph.node[..] else { panic!("{:?}", graph.node) };
        assert_eq!(conv.op_type(), "Conv");
        let ints = |name: &str| conv.attribute.iter().find(|a| a.name() == name).unwrap().ints.clone();
        assert_eq!((ints("strides"), ints("pads")), (vec![2, 2], vec![0, 0, 1, 1]));
        let last = &graph.initializer[0];
        let ones: Vec<f32> = last.raw_data().chunks_exact(4).map(|c| f32::from_le_bytes(c.try_into().unwrap())).collect();
        let weights = Tensor::from_slice(&ones).view(&last.dims[..]);
        for (h, w) in [(4, 6), (5, 7), (4, 7), (1, 1)] {
            let x = (Tensor::arange(2 * h * w, (tch::Kind::Float, tch::Device::Cpu)) + 1).view([1, 2, h, w]);
            let found = x.constant_pad_nd([0, 1, 0, 1]).conv2d(&weights, None::<Tensor>, [2, 2], [0, 0], [1, 1], 2);
            for (i, j) in (0..(h + 1) / 2).flat_map(|i| (0..(w + 1) / 2).map(move |j| (i, j))) {
                let (row, column) = (2 * i + 1, 2 * j + 1);
                for c in 0..2 {
                    let expected = if row < h && column < w { x.double_value(&[0, c, row, column]) } else { 0.0 };
                    assert_eq!(found.double_value(&[0, c, i, j]), expected, "{h}x{w} at {i}, {j}");
                }
            }
            assert_eq!(found.size(), [1, 2, (h + 1) / 2, (w + 1) / 2]);
        }
    }

    #[test]
    fn a_cut_map_that_others_read_too_is_written() {
        let kinds: Vec<String> = every_second_from_one(false).node.iter().map(|n| n.op_type().to_string()).collect();
        assert_eq!(kinds, ["Pad", "Slice", "AveragePool"]);
    }

    #[test]
    fn a_depthwise_convolution_of_many_channels_stays_one() {
        let kinds: Vec<String> = written(8).node.iter().map(|n| n.op_type().to_string()).collect();
        assert_eq!(kinds, ["Conv", "Conv"]);
    }
}
