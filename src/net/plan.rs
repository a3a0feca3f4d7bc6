//! What a pass over a graph computes, and in which order: nothing twice, and nothing that no output needs.

use super::graph::{Graph, NodeId, Op};

/// A graph's operations as one pass runs them.
#[derive(Debug, Clone)]
pub struct Plan {
    /// For each node, the one whose value it has: itself, or an earlier one that computes the same.
    value_of: Vec<usize>,
    /// For each node, who reads its value, once for every time; empty where it has another's.
    readers: Vec<Vec<usize>>,
    /// Whether a node's value is one of the graph's outputs.
    is_output: Vec<bool>,
    /// The nodes to compute.
    order: Vec<usize>,
}

impl Plan {
    /// * `dropping`: whether dropout and drop path do anything, as in training.
    pub fn new(graph: &Graph, dropping: bool) -> Self {
        let nodes = graph.nodes();
        let mut value_of: Vec<usize> = Vec::with_capacity(nodes.len());
        for (i, node) in nodes.iter().enumerate() {
            let inputs: Vec<usize> = node.inputs.iter().map(|id| value_of[id.0]).collect();
            let same = match node.op {
                Op::Dropout { .. } | Op::DropPath { .. } if !dropping => Some(inputs[0]),
                // A duplicate reads what its original reads.
                Op::Activation(_) | Op::MaxPool(_) | Op::AvgPool(_) | Op::Pad(_) | Op::Slice { .. } | Op::Scale(_) => {
                    (inputs[0]..i).find(|&j| {
                        let other = &nodes[j];
                        value_of[j] == j
                            && other.op == node.op
                            && other.channels == node.channels
                            && value_of[other.inputs[0].0] == inputs[0]
                    })
                }
                _ => None,
            };
            value_of.push(same.unwrap_or(i));
        }
        let mut is_output = vec![false; nodes.len()];
        for (_, id) in graph.outputs() {
            is_output[value_of[id.0]] = true;
        }
        let mut needed = is_output.clone();
        for (i, node) in nodes.iter().enumerate().rev() {
            if needed[i] {
                node.inputs.iter().for_each(|id| needed[value_of[id.0]] = true);
            }
        }
        let order: Vec<usize> = (0..nodes.len()).filter(|&i| needed[i]).collect();
        let mut readers = vec![Vec::new(); nodes.len()];
        for &i in &order {
            nodes[i].inputs.iter().for_each(|id| readers[value_of[id.0]].push(i));
        }
        Self { value_of, readers, is_output, order }
    }

    /// The nodes to compute, inputs before readers.
    pub fn order(&self) -> &[usize] {
        &self.order
    }

    /// The nodes whose values `node` reads.
    pub fn inputs(&self, graph: &Graph, node: usize) -> Vec<usize> {
        graph.nodes()[node].inputs.iter().map(|id| self.value_of[id.0]).collect()
    }

    /// The node that has the value of `id`.
    pub fn value_of(&self, id: NodeId) -> usize {
        self.value_of[id.0]
    }

    /// Whether the caller wants the node's value.
    pub fn is_output(&self, node: usize) -> bool {
        self.is_output[node]
    }

    /// The only node that reads the value of `node`, once, where the caller does not: the two can be one operation.
    pub fn sole_reader(&self, node: usize) -> Option<usize> {
        match self.readers[node].as_slice() {
            [reader] if !self.is_output[node] => Some(*reader),
            _ => None,
        }
    }

    /// How often each node's value is read, the caller included.
    pub fn reader_counts(&self) -> Vec<usize> {
        self.readers.iter().zip(&self.is_output).map(|(readers, &output)| readers.len() + usize::from(output)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::graph::Activation;

    #[test]
    fn equal_operations_are_computed_once_and_unread_ones_never() {
        let mut graph = Graph::new();
        let x = graph.input("x", 2);
        let relu = |graph: &mut Graph, x| graph.push("Relu", Op::Activation(Activation::Relu), &[x], 2);
        let (a, b) = (relu(&mut graph, x), relu(&mut graph, x));
        let dropped = graph.push("drop", Op::DropPath { rate: 0.5, steps: 1.0 }, &[b], 2);
        let sum = graph.push("add", Op::Add, &[a, dropped], 2);
        let unread = relu(&mut graph, sum);
        graph.output("sum", sum);
        let plan = Plan::new(&graph, false);
        assert_eq!(plan.order(), [x.0, a.0, sum.0]);
        assert_eq!(plan.inputs(&graph, sum.0), [a.0, a.0]);
        assert_eq!(plan.sole_reader(a.0), None);
        assert_eq!(plan.reader_counts()[unread.0], 0);
        let training = Plan::new(&graph, true);
        assert_eq!(training.order(), [x.0, a.0, dropped.0, sum.0]);
    }
}
