//! Looks over a GraphDef before it is handed out: every input is there, and TensorFlow from 1.12 on knows every operation.

use std::collections::HashMap;

use anyhow::{Result, bail, ensure};

use crate::proto::tensorflow::GraphDef;

/// Operations and the attributes that TensorFlow 1.12 registered for them; one that it lacks makes it refuse the whole graph.
///
/// Source: its op registry (upstream core/ops/*.cc at v1.12.0); the operations and these attributes are still there in 2.15.
#[rustfmt::skip]
const OPERATIONS: &[(&str, &[&str])] = &[
    ("Add", &["T"]),
    ("AvgPool", &["T", "data_format", "ksize", "padding", "strides"]),
    ("BiasAdd", &["T", "data_format"]),
    ("Cast", &["DstT", "SrcT", "Truncate"]),
    ("ConcatV2", &["N", "T", "Tidx"]),
    ("Const", &["dtype", "value"]),
    ("Conv2D", &["T", "data_format", "dilations", "padding", "strides", "use_cudnn_on_gpu"]),
    ("CropAndResize", &["T", "extrapolation_value", "method"]),
    ("DepthwiseConv2dNative", &["T", "data_format", "dilations", "padding", "strides"]),
    ("Enter", &["T", "frame_name", "is_constant", "parallel_iterations"]),
    ("Equal", &["T"]),
    ("Exit", &["T"]),
    ("Exp", &["T"]),
    ("ExpandDims", &["T", "Tdim"]),
    ("Fill", &["T", "index_type"]),
    ("GatherNd", &["Tindices", "Tparams"]),
    ("GatherV2", &["Taxis", "Tindices", "Tparams"]),
    ("Greater", &["T"]),
    ("GreaterEqual", &["T"]),
    ("Identity", &["T"]),
    ("Less", &["T"]),
    ("LogicalAnd", &[]),
    ("LoopCond", &[]),
    ("MatMul", &["T", "transpose_a", "transpose_b"]),
    ("MaxPool", &["T", "data_format", "ksize", "padding", "strides"]),
    ("Max", &["T", "Tidx", "keep_dims"]),
    ("Maximum", &["T"]),
    ("Mean", &["T", "Tidx", "keep_dims"]),
    ("Merge", &["N", "T"]),
    ("Min", &["T", "Tidx", "keep_dims"]),
    ("Minimum", &["T"]),
    ("Mul", &["T"]),
    ("NextIteration", &["T"]),
    ("NonMaxSuppressionV3", &[]),
    ("Pack", &["N", "T", "axis"]),
    ("Pad", &["T", "Tpaddings"]),
    ("PadV2", &["T", "Tpaddings"]),
    ("Placeholder", &["dtype", "shape"]),
    ("Prod", &["T", "Tidx", "keep_dims"]),
    ("Range", &["Tidx"]),
    ("RealDiv", &["T"]),
    ("Relu", &["T"]),
    ("Relu6", &["T"]),
    ("Reshape", &["T", "Tshape"]),
    ("ResizeArea", &["T", "align_corners"]),
    ("ResizeBicubic", &["T", "align_corners"]),
    ("ResizeBilinear", &["T", "align_corners"]),
    ("ResizeNearestNeighbor", &["T", "align_corners"]),
    ("Round", &["T"]),
    ("Select", &["T"]),
    ("Shape", &["T", "out_type"]),
    ("Sigmoid", &["T"]),
    ("Size", &["T", "out_type"]),
    ("Slice", &["Index", "T"]),
    ("Softmax", &["T"]),
    ("Split", &["T", "num_split"]),
    ("Sub", &["T"]),
    ("Sum", &["T", "Tidx", "keep_dims"]),
    ("Switch", &["T"]),
    ("TensorArrayConcatV3", &["dtype", "element_shape_except0"]),
    ("TensorArrayGatherV3", &["dtype", "element_shape"]),
    ("TensorArrayV3", &["clear_after_read", "dtype", "dynamic_size", "element_shape", "identical_element_shapes", "tensor_array_name"]),
    ("TensorArrayWriteV3", &["T"]),
    ("TopKV2", &["T", "sorted"]),
    ("Unpack", &["T", "axis", "num"]),
    ("Where", &["T"]),
];

/// How many outputs an operation has, where it is not one.
fn outputs(op: &str, num: Option<i64>) -> usize {
    match op {
        "Merge" | "Switch" | "TensorArrayConcatV3" | "TensorArrayV3" | "TopKV2" => 2,
        "Split" | "Unpack" => num.unwrap_or(0) as usize,
        _ => 1,
    }
}

/// Checks the whole graph.
///
/// # Errors
/// For a name that is there twice, an input that does not exist or comes after its reader (a loop's way back excepted), an operation
/// or attribute that TensorFlow 1.12 does not know.
pub fn check(graph: &GraphDef) -> Result<()> {
    let mut places: HashMap<&str, usize> = HashMap::with_capacity(graph.node.len());
    for (i, node) in graph.node.iter().enumerate() {
        ensure!(!node.name.is_empty(), "node {i} has no name");
        ensure!(places.insert(&node.name, i).is_none(), "two nodes are named {}", node.name);
    }
    for (i, node) in graph.node.iter().enumerate() {
        let Some((_, attributes)) = OPERATIONS.iter().find(|(op, _)| *op == node.op) else {
            bail!("{}: {} is not among the operations that odh writes", node.name, node.op);
        };
        if let Some(unknown) = node.attr.keys().find(|a| !attributes.contains(&a.as_str())) {
            bail!("{}: {} has no attribute {unknown} in TensorFlow 1.12", node.name, node.op);
        }
        for input in &node.input {
            let (name, output) = match input.strip_prefix('^').unwrap_or(input).split_once(':') {
                Some((name, output)) => (name, output.parse().unwrap_or(usize::MAX)),
                None => (input.strip_prefix('^').unwrap_or(input), 0),
            };
            let Some(&place) = places.get(name) else { bail!("{} reads {input}, which does not exist", node.name) };
            let source = &graph.node[place];
            let num = source.attr.get("num").or_else(|| source.attr.get("num_split")).and_then(|a| match a.value {
                Some(crate::proto::tensorflow::attr_value::Value::I(num)) => Some(num),
                _ => None,
            });
            ensure!(output < outputs(&source.op, num), "{} reads {input}, but {} has no such output", node.name, source.op);
            let back = node.op == "Merge" && source.op == "NextIteration";
            ensure!(place < i || back, "{} reads {input}, which comes after it", node.name);
        }
    }
    Ok(())
}
