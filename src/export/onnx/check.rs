//! Looks over an ONNX model before it is handed out: every name is there once, before it is read, and every operator is standard.

use std::collections::HashSet;

use anyhow::{Context, Result, bail, ensure};

use crate::proto::onnx::tensor_proto::DataType;
use crate::proto::onnx::{GraphProto, ModelProto};

/// The operators that odh writes, all of ONNX's default domain at opset 17.
///
/// Source: onnx/docs/Operators.md.
#[rustfmt::skip]
const OPERATORS: &[&str] = &[
    "Abs", "Add", "And", "AveragePool", "Cast", "Clip", "Concat", "Conv", "Div", "Exp", "Expand", "Floor", "Gather", "GatherND", "Gemm",
    "Greater", "GreaterOrEqual", "GridSample", "Identity", "If", "Less", "LessOrEqual", "Loop", "MatMul", "Max", "MaxPool", "Min", "Mul", "NonMaxSuppression",
    "Pad", "Range", "Reciprocal", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum", "Relu", "Reshape", "Round",
    "ScatterND", "Shape", "Sigmoid", "Slice", "Softmax", "Split", "Squeeze", "Sub", "TopK", "Transpose", "Unsqueeze", "Where",
];

const FLOAT: i32 = DataType::Float as i32;
const INT64: i32 = DataType::Int64 as i32;
const BOOL: i32 = DataType::Bool as i32;

/// Checks the whole model.
///
/// # Errors
/// For a name that is given twice or read before it is given, or an operator that is not standard.
pub fn check(model: &ModelProto) -> Result<()> {
    let graph = model.graph.as_ref().context("the model has no graph")?;
    check_graph(graph, &mut HashSet::new())
}

/// * `given`: what stands outside; names must be unique over all branches.
fn check_graph<'a>(graph: &'a GraphProto, given: &mut HashSet<&'a str>) -> Result<()> {
    for input in &graph.input {
        ensure!(given.insert(input.name()), "{} is given twice", input.name());
    }
    for constant in &graph.initializer {
        let elements: i64 = constant.dims.iter().product();
        let (bytes, of) = (constant.raw_data().len() as i64, constant.name());
        let bytes_each = match constant.data_type() {
            FLOAT => 4,
            INT64 => 8,
            BOOL => 1,
            kind => bail!("{of} is of data type {kind}, which odh does not write"),
        };
        ensure!(elements * bytes_each == bytes, "{of} has {bytes} bytes for {elements} elements");
        ensure!(given.insert(of), "{of} is given twice");
    }
    for node in &graph.node {
        if !OPERATORS.contains(&node.op_type()) {
            bail!("{}: {} is not among the operators that odh writes", node.name(), node.op_type());
        }
        for input in &node.input {
            ensure!(given.contains(input.as_str()), "{} reads {input}, which nothing before it gives", node.name());
        }
        for branch in node.attribute.iter().filter_map(|a| a.g.as_ref()) {
            check_graph(branch, given)?;
        }
        for output in &node.output {
            ensure!(given.insert(output), "{output} is given twice");
        }
    }
    for output in &graph.output {
        ensure!(given.contains(output.name()), "nothing gives the output {}", output.name());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::export::onnx::builder::{Builder, Side};

    fn model(change: impl FnOnce(&mut GraphProto)) -> ModelProto {
        let mut b = Builder::new();
        let x = b.input("x", DataType::Float, &[Side::Named("n")]);
        let one = b.float("one", 1.0);
        let y = b.op("y", "Add", &[x, one], &[]);
        b.output("z", y, DataType::Float, &[Side::Named("n")]);
        let mut model = b.finish("test", &[]);
        change(model.graph.as_mut().unwrap());
        model
    }

    #[test]
    fn finds_what_a_runtime_would_refuse() {
        check(&model(|_| {})).unwrap();
        let fault = |change: fn(&mut GraphProto)| check(&model(change)).unwrap_err().to_string();
        assert!(fault(|g| g.node.swap(0, 1)).contains("z reads y, which nothing before it gives"));
        assert!(fault(|g| g.node[0].op_type = Some("CropAndResize".into())).contains("CropAndResize"));
        assert!(fault(|g| g.node[1].output[0] = "y".into()).contains("y is given twice"));
        assert!(fault(|g| g.initializer[0].dims = vec![3]).contains("one has 4 bytes for 3 elements"));
    }
}
