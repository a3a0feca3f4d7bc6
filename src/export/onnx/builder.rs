//! Puts an ONNX model together node by node (onnx.ai/onnx/repo-docs/IR.html).

use crate::export::names::Names;
use crate::proto::onnx::attribute_proto::AttributeType;
use crate::proto::onnx::tensor_proto::DataType;
use crate::proto::onnx::tensor_shape_proto::{Dimension, dimension};
use crate::proto::onnx::{
    AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, StringStringEntryProto, TensorProto, TensorShapeProto,
    TypeProto, ValueInfoProto, type_proto,
};

/// The version of the format; the one that came with opset 17.
const IR_VERSION: i64 = 8;
/// The version of the operators: the first with all that is used here is 16 (GridSample); ONNX 1.12 of 2022 brought 17.
const OPSET: i64 = 17;

/// One output of one node, or a constant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Value(usize);

/// An attribute.
#[derive(Debug, Clone)]
pub struct Attribute(AttributeProto);

impl Attribute {
    fn of_kind(name: &str, kind: AttributeType) -> AttributeProto {
        AttributeProto { name: Some(name.to_string()), r#type: Some(kind as i32), ..AttributeProto::default() }
    }

    /// An integer.
    pub fn int(name: &str, value: i64) -> Self {
        Self(AttributeProto { i: Some(value), ..Self::of_kind(name, AttributeType::Int) })
    }

    /// Integers.
    pub fn ints(name: &str, values: &[i64]) -> Self {
        Self(AttributeProto { ints: values.to_vec(), ..Self::of_kind(name, AttributeType::Ints) })
    }

    /// A number.
    pub fn float(name: &str, value: f32) -> Self {
        Self(AttributeProto { f: Some(value), ..Self::of_kind(name, AttributeType::Float) })
    }

    /// A word.
    pub fn text(name: &str, value: &str) -> Self {
        Self(AttributeProto { s: Some(value.as_bytes().to_vec().into()), ..Self::of_kind(name, AttributeType::String) })
    }

    fn graph(name: &str, value: GraphProto) -> Self {
        Self(AttributeProto { g: Some(value), ..Self::of_kind(name, AttributeType::Graph) })
    }
}

/// A side of an input or output: a number, or a name for one that is not known.
#[derive(Debug, Clone, Copy)]
pub enum Side {
    Known(i64),
    Named(&'static str),
}

/// A model in the making.
#[derive(Debug, Default)]
pub struct Builder {
    graph: GraphProto,
    /// Of each value.
    names: Vec<String>,
    naming: Names,
}

impl Builder {
    /// An empty graph.
    pub fn new() -> Self {
        Self::default()
    }

    /// The finished model.
    ///
    /// * `metadata`: what readers may ask the model for, by key.
    pub fn finish(mut self, name: &str, metadata: &[(&str, String)]) -> ModelProto {
        self.graph.name = Some(name.to_string());
        let entry =
            |(key, value): &(&str, String)| StringStringEntryProto { key: Some(key.to_string()), value: Some(value.clone()) };
        ModelProto {
            ir_version: Some(IR_VERSION),
            producer_name: Some(env!("CARGO_PKG_NAME").to_string()),
            producer_version: Some(env!("CARGO_PKG_VERSION").to_string()),
            graph: Some(self.graph),
            opset_import: vec![OperatorSetIdProto { domain: Some(String::new()), version: Some(OPSET) }],
            metadata_props: metadata.iter().map(entry).collect(),
        }
    }

    /// What `build` adds is named under `scope/`.
    pub fn within<R>(&mut self, scope: &str, build: impl FnOnce(&mut Self) -> R) -> R {
        let outer = self.naming.enter(scope);
        let result = build(self);
        self.naming.leave(outer);
        result
    }

    /// Something that the caller of the model gives.
    pub fn input(&mut self, name: &str, kind: DataType, sides: &[Side]) -> Value {
        let value = self.name(name);
        let info = value_info(&self.names[value.0], kind, Some(sides));
        self.graph.input.push(info);
        value
    }

    /// Hands a value to the caller of the model under a name of its own.
    pub fn output(&mut self, name: &str, value: Value, kind: DataType, sides: &[Side]) {
        let named = self.op(name, "Identity", &[value], &[]);
        let info = value_info(&self.names[named.0], kind, Some(sides));
        self.graph.output.push(info);
    }

    /// Appends a node with one output. A name that is taken gets `_1`, `_2`, ...
    pub fn op(&mut self, name: &str, kind: &str, inputs: &[Value], attributes: &[Attribute]) -> Value {
        self.ops(name, kind, inputs, attributes, 1)[0]
    }

    /// Appends a node with several outputs.
    pub fn ops(&mut self, name: &str, kind: &str, inputs: &[Value], attributes: &[Attribute], outputs: usize) -> Vec<Value> {
        let first = self.name(name);
        let node = self.names[first.0].clone();
        let mut values = vec![first];
        values.extend((1..outputs).map(|i| self.name(&format!("/{node}:{i}"))));
        self.graph.node.push(NodeProto {
            input: inputs.iter().map(|v| self.names[v.0].clone()).collect(),
            output: values.iter().map(|v| self.names[v.0].clone()).collect(),
            name: Some(node),
            op_type: Some(kind.to_string()),
            attribute: attributes.iter().map(|a| a.0.clone()).collect(),
        });
        values
    }

    /// What one of two branches gives, as a truth value decides; both read what stands outside.
    ///
    /// * `kinds`: of the results.
    pub fn choose(
        &mut self,
        name: &str,
        condition: Value,
        kinds: &[DataType],
        then: impl FnOnce(&mut Self) -> Vec<Value>,
        otherwise: impl FnOnce(&mut Self) -> Vec<Value>,
    ) -> Vec<Value> {
        let then = self.within(name, |b| b.branch("then", vec![], kinds, then));
        let otherwise = self.within(name, |b| b.branch("else", vec![], kinds, otherwise));
        let attributes = [Attribute::graph("then_branch", then), Attribute::graph("else_branch", otherwise)];
        self.ops(name, "If", &[condition], &attributes, kinds.len())
    }

    /// What `build` gives for each element of the first dimension of `over`, one below the other; all of one shape.
    ///
    /// A Loop, as OpenVINO knows no Scan that reads what stands outside.
    ///
    /// * `over`: `[elements, ...]`. `build`: is given `[...]`, and may read what stands outside.
    /// * `kinds`: of the results.
    pub fn for_each(
        &mut self,
        name: &str,
        (over, elements): (Value, i64),
        kinds: &[DataType],
        build: impl FnOnce(&mut Self, Value) -> Vec<Value>,
    ) -> Vec<Value> {
        let [count, always] =
            self.within(name, |b| [b.int("count", elements), b.constant("always", DataType::Bool, (&[], 1), vec![1])]);
        let body = self.within(name, |b| {
            let [number, going] = ["number", "going"].map(|part| b.name(part));
            let info = |value: Value, kind| value_info(&b.names[value.0], kind, Some(&[]));
            let inputs = vec![info(number, DataType::Int64), info(going, DataType::Bool)];
            let kinds = [&[DataType::Bool], kinds].concat();
            b.branch("body", inputs, &kinds, |b| {
                let element = b.op("element", "Gather", &[over, number], &[Attribute::int("axis", 0)]);
                [vec![going], build(b, element)].concat()
            })
        });
        self.ops(name, "Loop", &[count, always], &[Attribute::graph("body", body)], kinds.len())
    }

    fn branch(
        &mut self,
        name: &str,
        inputs: Vec<ValueInfoProto>,
        kinds: &[DataType],
        build: impl FnOnce(&mut Self) -> Vec<Value>,
    ) -> GraphProto {
        let outer = std::mem::take(&mut self.graph);
        self.graph.input = inputs;
        let results = self.within(name, |b| {
            // A branch must compute what it gives, also if that stands outside.
            build(b).into_iter().map(|v| b.op("result", "Identity", &[v], &[])).collect::<Vec<_>>()
        });
        let output = results.iter().zip(kinds).map(|(v, &kind)| value_info(&self.names[v.0], kind, None)).collect();
        let mut graph = std::mem::replace(&mut self.graph, outer);
        graph.output = output;
        graph.name = Some(self.naming.full(name));
        graph
    }

    /// A constant of floats.
    pub fn floats(&mut self, name: &str, dims: &[i64], values: &[f32]) -> Value {
        self.constant(name, DataType::Float, (dims, values.len()), values.iter().flat_map(|v| v.to_le_bytes()).collect())
    }

    /// A constant of integers.
    pub fn ints(&mut self, name: &str, dims: &[i64], values: &[i64]) -> Value {
        self.constant(name, DataType::Int64, (dims, values.len()), values.iter().flat_map(|v| v.to_le_bytes()).collect())
    }

    /// One float.
    pub fn float(&mut self, name: &str, value: f32) -> Value {
        self.floats(name, &[], &[value])
    }

    /// One integer.
    pub fn int(&mut self, name: &str, value: i64) -> Value {
        self.ints(name, &[], &[value])
    }

    fn constant(&mut self, name: &str, kind: DataType, (dims, count): (&[i64], usize), bytes: Vec<u8>) -> Value {
        let elements: i64 = dims.iter().product();
        assert!(elements == count as i64, "constant {name} of shape {dims:?} has {count} elements");
        let value = self.name(name);
        self.graph.initializer.push(TensorProto {
            dims: dims.to_vec(),
            data_type: Some(kind as i32),
            name: Some(self.names[value.0].clone()),
            raw_data: Some(bytes.into()),
        });
        value
    }

    fn name(&mut self, name: &str) -> Value {
        self.names.push(self.naming.unique(name));
        Value(self.names.len() - 1)
    }
}

fn value_info(name: &str, kind: DataType, sides: Option<&[Side]>) -> ValueInfoProto {
    let dim = |side: &Side| Dimension {
        value: Some(match side {
            Side::Known(n) => dimension::Value::DimValue(*n),
            Side::Named(name) => dimension::Value::DimParam(name.to_string()),
        }),
    };
    let shape = sides.map(|sides| TensorShapeProto { dim: sides.iter().map(dim).collect() });
    let tensor = type_proto::Tensor { elem_type: Some(kind as i32), shape };
    ValueInfoProto {
        name: Some(name.to_string()),
        r#type: Some(TypeProto { value: Some(type_proto::Value::TensorType(tensor)) }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn branches_have_nodes_of_their_own_and_names_that_nothing_else_has() {
        let mut b = Builder::new();
        let x = b.input("x", DataType::Float, &[Side::Named("n"), Side::Known(4)]);
        let yes = b.op("Greater", "Greater", &[x, x], &[]);
        let y = b.choose("If", yes, &[DataType::Float], |b| vec![b.op("neg", "Neg", &[x], &[])], |_| vec![x]);
        b.output("y", y[0], DataType::Float, &[Side::Named("n"), Side::Known(4)]);
        let graph = b.finish("test", &[]).graph.unwrap();
        assert_eq!(graph.node.iter().map(|n| n.op_type()).collect::<Vec<_>>(), ["Greater", "If", "Identity"]);
        let branch = |i: usize| graph.node[1].attribute[i].g.as_ref().unwrap();
        assert_eq!(branch(0).node.iter().map(|n| n.name()).collect::<Vec<_>>(), ["If/then/neg", "If/then/result"]);
        assert_eq!(branch(1).node[0].input, ["x"]);
        assert_eq!(graph.output[0].name(), "y");
    }

    #[test]
    fn what_is_done_for_each_element_is_a_graph_of_its_own_with_its_constants() {
        let mut b = Builder::new();
        let x = b.input("x", DataType::Float, &[Side::Known(3), Side::Known(4)]);
        let y = b.for_each("Each", (x, 3), &[DataType::Float], |b, element| {
            let two = b.float("two", 2.0);
            vec![b.op("mul", "Mul", &[element, two], &[])]
        });
        b.output("y", y[0], DataType::Float, &[Side::Known(3), Side::Known(4)]);
        let graph = b.finish("test", &[]).graph.unwrap();
        assert_eq!(graph.node.iter().map(|n| n.op_type()).collect::<Vec<_>>(), ["Loop", "Identity"]);
        assert_eq!(graph.node[0].input, ["Each/count", "Each/always"]);
        assert_eq!(graph.initializer.iter().map(|c| c.name()).collect::<Vec<_>>(), ["Each/count", "Each/always"]);
        let body = graph.node[0].attribute[0].g.as_ref().unwrap();
        assert_eq!((body.input.len(), body.output.len()), (2, 2));
        assert_eq!(body.node[0].input, ["x", body.input[0].name()]);
        assert_eq!(body.node[1].input, [body.node[0].output[0].as_str(), "Each/body/two"]);
        assert_eq!(body.node[2].input, [body.input[1].name()]); // goes on to the last element
        assert_eq!(body.initializer[0].name(), "Each/body/two");
    }
}
