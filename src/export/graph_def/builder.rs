//! Appends operations to a TensorFlow GraphDef: unique names, element types, scopes, and while loops as TensorFlow 1's control flow has them.

use std::collections::{BTreeMap, HashMap};

use crate::export::names::Names;
use crate::proto::tensorflow::attr_value::{ListValue, Value as Attr};
use crate::proto::tensorflow::tensor_shape_proto::Dim;
use crate::proto::tensorflow::{AttrValue, DataType, GraphDef, NodeDef, TensorProto, TensorShapeProto, VersionDef};

/// The GraphDef version of TensorFlow 1.12, the oldest that the graphs are made for; later ones keep its behaviour for such files.
const PRODUCER: i32 = 27;

/// One output of one node, and its element type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Value {
    node: usize,
    output: usize,
    dtype: DataType,
}

impl Value {
    /// The element type.
    pub fn dtype(self) -> DataType {
        self.dtype
    }
}

/// A node to be: its kind, inputs and attributes.
#[derive(Debug)]
pub struct Op {
    kind: &'static str,
    inputs: Vec<Value>,
    attributes: BTreeMap<String, AttrValue>,
}

impl Op {
    /// A node of this kind on these inputs.
    pub fn new(kind: &'static str, inputs: &[Value]) -> Self {
        Self { kind, inputs: inputs.to_vec(), attributes: BTreeMap::new() }
    }

    /// Sets an attribute.
    pub fn with(mut self, name: &str, value: impl Into<Attr>) -> Self {
        self.attributes.insert(name.to_string(), AttrValue { value: Some(value.into()) });
        self
    }

    /// Sets an attribute to the element type of the first input.
    pub fn typed(self, name: &str) -> Self {
        let dtype = self.inputs[0].dtype;
        self.with(name, dtype)
    }
}

impl From<DataType> for Attr {
    fn from(value: DataType) -> Self {
        Self::Type(value as i32)
    }
}

impl From<i64> for Attr {
    fn from(value: i64) -> Self {
        Self::I(value)
    }
}

impl From<bool> for Attr {
    fn from(value: bool) -> Self {
        Self::B(value)
    }
}

impl From<f32> for Attr {
    fn from(value: f32) -> Self {
        Self::F(value)
    }
}

impl From<&str> for Attr {
    fn from(value: &str) -> Self {
        Self::S(value.as_bytes().to_vec().into())
    }
}

impl From<&[i64]> for Attr {
    fn from(value: &[i64]) -> Self {
        Self::List(ListValue { i: value.to_vec(), ..ListValue::default() })
    }
}

impl From<TensorShapeProto> for Attr {
    fn from(value: TensorShapeProto) -> Self {
        Self::Shape(value)
    }
}

/// A shape; -1 is a size that is not known.
pub fn shape(sizes: &[i64]) -> TensorShapeProto {
    let dim = sizes.iter().map(|&size| Dim { size, name: String::new() }).collect();
    TensorShapeProto { dim, unknown_rank: false }
}

/// A while loop's name, how many of its iterations may run at once, and what its variables start from.
#[derive(Debug)]
pub struct Loop<'a> {
    pub name: &'a str,
    pub parallel_iterations: i64,
    pub initial: &'a [Value],
}

/// Where nodes run: the graph's top, or the body of a while loop.
#[derive(Debug)]
struct Frame {
    parent: Option<usize>,
    name: String,
    parallel_iterations: i64,
    /// Values from outside, as they are seen inside.
    entered: HashMap<Value, Value>,
}

/// The graph's top.
const TOP: usize = 0;

/// A GraphDef in the making.
#[derive(Debug)]
pub struct Builder {
    nodes: Vec<NodeDef>,
    /// The frame of each node.
    frame_of: Vec<usize>,
    frames: Vec<Frame>,
    current: usize,
    names: Names,
}

impl Default for Builder {
    fn default() -> Self {
        Self::new()
    }
}

impl Builder {
    /// An empty graph.
    pub fn new() -> Self {
        let top = Frame { parent: None, name: String::new(), parallel_iterations: 0, entered: HashMap::new() };
        Self { nodes: Vec::new(), frame_of: Vec::new(), frames: vec![top], current: TOP, names: Names::default() }
    }

    /// The finished graph.
    pub fn finish(self) -> GraphDef {
        assert!(self.current == TOP && self.names.scope().is_empty(), "a graph was finished inside a loop or scope");
        let versions = Some(VersionDef { producer: PRODUCER, ..VersionDef::default() });
        GraphDef { node: self.nodes, versions }
    }

    /// What `build` adds is named under `scope/`.
    pub fn within<R>(&mut self, scope: &str, build: impl FnOnce(&mut Self) -> R) -> R {
        let outer = self.names.enter(scope);
        let result = build(self);
        self.names.leave(outer);
        result
    }

    /// Appends a node with one output of type `dtype`. A name that is taken gets TensorFlow's `_1`, `_2`, ...
    pub fn add(&mut self, name: &str, op: Op, dtype: DataType) -> Value {
        self.add_many(name, op, &[dtype])[0]
    }

    /// Appends a node with an output for each of `dtypes`.
    pub fn add_many(&mut self, name: &str, op: Op, dtypes: &[DataType]) -> Vec<Value> {
        let inputs: Vec<Value> = op.inputs.iter().map(|&v| self.bring(v, self.current)).collect();
        let inputs = inputs.into_iter().map(|v| self.reference(v)).collect();
        let node = self.push(self.current, name, op.kind, inputs, op.attributes);
        dtypes.iter().enumerate().map(|(output, &dtype)| Value { node, output, dtype }).collect()
    }

    /// A node of the input's element type, which its attribute `T` names.
    pub fn same(&mut self, name: &str, kind: &'static str, inputs: &[Value]) -> Value {
        self.add(name, Op::new(kind, inputs).typed("T"), inputs[0].dtype)
    }

    /// A comparison: the inputs' type in, truth values out.
    pub fn compare(&mut self, name: &str, kind: &'static str, inputs: [Value; 2]) -> Value {
        self.add(name, Op::new(kind, &inputs).typed("T"), DataType::DtBool)
    }

    /// A constant of floats.
    pub fn floats(&mut self, name: &str, sizes: &[i64], values: &[f32]) -> Value {
        let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.constant(name, DataType::DtFloat, (sizes, values.len()), bytes)
    }

    /// A constant of 32-bit integers.
    pub fn ints(&mut self, name: &str, sizes: &[i64], values: &[i32]) -> Value {
        let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.constant(name, DataType::DtInt32, (sizes, values.len()), bytes)
    }

    /// One float.
    pub fn float(&mut self, name: &str, value: f32) -> Value {
        self.floats(name, &[], &[value])
    }

    /// One 32-bit integer.
    pub fn int(&mut self, name: &str, value: i32) -> Value {
        self.ints(name, &[], &[value])
    }

    /// Constants stand at the graph's top, so that a loop does not make them again.
    fn constant(&mut self, name: &str, dtype: DataType, (sizes, count): (&[i64], usize), bytes: Vec<u8>) -> Value {
        let elements: i64 = sizes.iter().product();
        assert!(elements == count as i64, "constant {name} of shape {sizes:?} has {count} elements");
        let tensor = TensorProto {
            dtype: dtype as i32,
            tensor_shape: Some(shape(sizes)),
            tensor_content: bytes.into(),
            ..TensorProto::default()
        };
        let op = Op::new("Const", &[]).with("dtype", dtype).with("value", Attr::Tensor(tensor));
        let node = self.push(TOP, name, op.kind, Vec::new(), op.attributes);
        Value { node, output: 0, dtype }
    }

    /// Runs `body` as long as `condition` holds; returns the loop's variables as the last iteration left them.
    ///
    /// * `condition`: from the variables to one truth value.
    /// * `body`: from the variables to their next values, of the same types in the same order.
    pub fn while_loop(
        &mut self,
        spec: &Loop,
        condition: impl FnOnce(&mut Self, &[Value]) -> Value,
        body: impl FnOnce(&mut Self, &[Value]) -> Vec<Value>,
    ) -> Vec<Value> {
        let outer = self.current;
        let initial: Vec<Value> = spec.initial.iter().map(|&v| self.bring(v, outer)).collect();
        let outer_scope = self.names.enter(spec.name);
        let name = self.names.scope().to_string();
        let frame = Frame { parent: Some(outer), name, parallel_iterations: spec.parallel_iterations, entered: HashMap::new() };
        self.frames.push(frame);
        self.current = self.frames.len() - 1;

        let entered: Vec<Value> = initial.iter().map(|&v| self.enter(v, self.current, false)).collect();
        // The second input comes once the body is there.
        let merged: Vec<Value> = entered
            .iter()
            .map(|&v| self.add_many("Merge", Op::new("Merge", &[v]).typed("T").with("N", 2), &[v.dtype, DataType::DtInt32])[0])
            .collect();
        let holds = condition(self, &merged);
        let holds = self.add("LoopCond", Op::new("LoopCond", &[holds]), DataType::DtBool);
        let (mut done, mut variables) = (Vec::new(), Vec::new());
        for &v in &merged {
            let [leave, stay] = self.switch(v, holds);
            done.push(leave);
            variables.push(self.same("Identity", "Identity", &[stay]));
        }
        let next = body(self, &variables);
        assert!(
            next.len() == merged.len(),
            "the body of {} gives {} of {} variables",
            self.names.scope(),
            next.len(),
            merged.len()
        );
        for (&v, &merge) in next.iter().zip(&merged) {
            assert!(v.dtype == merge.dtype, "a variable of {} changes its type", self.names.scope());
            let again = self.same("NextIteration", "NextIteration", &[v]);
            let again = self.reference(again);
            self.nodes[merge.node].input.push(again);
        }
        let results = done.iter().map(|&v| self.exit(v, outer)).collect();
        self.names.leave(outer_scope);
        self.current = outer;
        results
    }

    /// `[if false, if true]`.
    fn switch(&mut self, v: Value, condition: Value) -> [Value; 2] {
        let outputs = self.add_many("Switch", Op::new("Switch", &[v, condition]).typed("T"), &[v.dtype, v.dtype]);
        [outputs[0], outputs[1]]
    }

    fn exit(&mut self, v: Value, outer: usize) -> Value {
        let op = Op::new("Exit", &[v]).typed("T");
        let input = self.reference(v);
        let node = self.push(outer, "Exit", op.kind, vec![input], op.attributes);
        Value { node, output: 0, dtype: v.dtype }
    }

    /// The value as seen in `frame`: itself, or through an Enter for each loop between.
    fn bring(&mut self, v: Value, frame: usize) -> Value {
        if self.frame_of[v.node] == frame {
            return v;
        }
        if let Some(&inside) = self.frames[frame].entered.get(&v) {
            return inside;
        }
        let parent = self.frames[frame].parent;
        assert!(parent.is_some(), "{} is used outside of its loop", self.nodes[v.node].name);
        let outside = self.bring(v, parent.unwrap_or(TOP));
        let inside = self.enter(outside, frame, true);
        self.frames[frame].entered.insert(v, inside);
        inside
    }

    fn enter(&mut self, v: Value, frame: usize, constant: bool) -> Value {
        let mut op = Op::new("Enter", &[v])
            .typed("T")
            .with("frame_name", self.frames[frame].name.as_str())
            .with("parallel_iterations", self.frames[frame].parallel_iterations);
        if constant {
            op = op.with("is_constant", true);
        }
        let input = self.reference(v);
        let name = format!("/{}/Enter", self.frames[frame].name);
        let node = self.push(frame, &name, op.kind, vec![input], op.attributes);
        Value { node, output: 0, dtype: v.dtype }
    }

    fn push(&mut self, frame: usize, name: &str, kind: &str, input: Vec<String>, attr: BTreeMap<String, AttrValue>) -> usize {
        let name = self.names.unique(name);
        self.nodes.push(NodeDef { name, op: kind.to_string(), input, device: String::new(), attr });
        self.frame_of.push(frame);
        self.nodes.len() - 1
    }

    /// How an input names the value.
    fn reference(&self, v: Value) -> String {
        let name = &self.nodes[v.node].name;
        if v.output == 0 { name.clone() } else { format!("{name}:{}", v.output) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inputs(graph: &GraphDef, name: &str) -> Vec<String> {
        graph.node.iter().find(|n| n.name == name).unwrap().input.clone()
    }

    #[test]
    fn a_name_that_is_taken_gets_a_number() {
        let mut b = Builder::new();
        b.int("x_1", 1);
        b.int("x", 1);
        b.int("x", 2);
        b.within("scope", |b| b.int("x", 3));
        let graph = b.finish();
        let names: Vec<&str> = graph.node.iter().map(|n| n.name.as_str()).collect();
        assert_eq!(names, ["x_1", "x", "x_2", "scope/x"]);
    }

    #[test]
    fn a_loop_brings_outer_values_in_once_and_closes_over_its_body() {
        let mut b = Builder::new();
        let (zero, end) = (b.int("zero", 0), b.int("end", 5));
        let spec = Loop { name: "while", parallel_iterations: 4, initial: &[zero] };
        let last =
            b.while_loop(&spec, |b, v| b.compare("Less", "Less", [v[0], end]), |b, v| vec![b.same("add", "Add", &[v[0], end])]);
        b.same("result", "Identity", &[last[0]]);
        let graph = b.finish();
        assert_eq!(inputs(&graph, "while/Merge"), ["while/Enter", "while/NextIteration"]);
        assert_eq!(inputs(&graph, "while/Less"), ["while/Merge", "while/Enter_1"]);
        assert_eq!(inputs(&graph, "while/add"), ["while/Identity", "while/Enter_1"]);
        assert_eq!(inputs(&graph, "while/Identity"), ["while/Switch:1"]);
        assert_eq!(inputs(&graph, "while/Exit"), ["while/Switch"]);
        assert_eq!(inputs(&graph, "result"), ["while/Exit"]);
    }

    #[test]
    fn a_value_from_two_loops_out_enters_both() {
        let mut b = Builder::new();
        let (zero, end) = (b.int("zero", 0), b.int("end", 5));
        let outer = Loop { name: "outer", parallel_iterations: 1, initial: &[zero] };
        b.while_loop(
            &outer,
            |b, v| b.compare("Less", "Less", [v[0], end]),
            |b, v| {
                let inner = Loop { name: "inner", parallel_iterations: 1, initial: &[v[0]] };
                b.while_loop(
                    &inner,
                    |b, v| b.compare("Less", "Less", [v[0], end]),
                    |b, v| vec![b.same("add", "Add", &[v[0], end])],
                )
            },
        );
        let graph = b.finish();
        let end_in_inner = inputs(&graph, "outer/inner/add")[1].clone();
        let end_in_outer = inputs(&graph, &end_in_inner)[0].clone();
        assert_eq!(inputs(&graph, &end_in_outer), ["end"]);
    }
}
