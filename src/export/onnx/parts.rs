//! What every detector's ONNX graph has before and behind its network: the picture, box decoding, scores, the four outputs.

use super::builder::{Attribute, Builder, Side, Value};
use super::suppression::Found;
use crate::detection::box_coder::BoxCoder;
use crate::models::post_processing::ScoreConverter;
use crate::proto::onnx::tensor_proto::DataType;

/// `image_tensor`: uint8 `[N, height, width, 3]`, RGB, of any size.
pub fn image_tensor(b: &mut Builder) -> Value {
    b.input("image_tensor", DataType::Uint8, &[Side::Named("batch"), Side::Named("height"), Side::Named("width"), Side::Known(3)])
}

/// The four outputs under the names that programs fetch, as in the frozen graph.
///
/// * `detections`: the limit of detections in all.
pub fn outputs(b: &mut Builder, found: &Found, detections: usize) {
    let [batch, rows] = [Side::Named("batch"), Side::Known(detections as i64)];
    let one = b.float("one", 1.0);
    let classes = b.op("add", "Add", &[found.classes, one], &[]);
    b.output("detection_boxes", found.boxes, DataType::Float, &[batch, rows, Side::Known(4)]);
    b.output("detection_scores", found.scores, DataType::Float, &[batch, rows]);
    b.output("detection_classes", classes, DataType::Float, &[batch, rows]);
    b.output("num_detections", found.count, DataType::Float, &[batch]);
}

/// `x` as elements of another type.
pub fn cast(b: &mut Builder, name: &str, x: Value, to: DataType) -> Value {
    b.op(name, "Cast", &[x], &[Attribute::int("to", to as i64)])
}

/// `x` with these sizes; one of them may be -1, what is left.
pub fn reshape(b: &mut Builder, name: &str, x: Value, sizes: &[i64]) -> Value {
    let sizes = b.ints(&format!("{name}/shape"), &[sizes.len() as i64], sizes);
    b.op(name, "Reshape", &[x, sizes], &[])
}

/// Columns `begin..end` of the last dimension.
pub fn columns(b: &mut Builder, name: &str, x: Value, [begin, end]: [i64; 2]) -> Value {
    let [begin, end, axis] =
        [("begin", begin), ("end", end), ("axis", -1)].map(|(part, v)| b.ints(&format!("{name}/{part}"), &[1], &[v]));
    b.op(name, "Slice", &[x, begin, end, axis], &[])
}

/// Side `axis` of `x`, as one integer in a row of one.
pub fn side(b: &mut Builder, name: &str, x: Value, axis: i64) -> Value {
    let sizes = b.op(&format!("{name}/Shape"), "Shape", &[x], &[]);
    let axis = b.ints(&format!("{name}/axis"), &[1], &[axis]);
    b.op(name, "Gather", &[sizes, axis], &[])
}

/// `parts` side by side along `axis`.
pub fn concat(b: &mut Builder, name: &str, parts: &[Value], axis: i64) -> Value {
    b.op(name, "Concat", parts, &[Attribute::int("axis", axis)])
}

/// `to / by` as IEEE 754 rounds it, whatever the runtime makes of a division; of whole numbers as floats, `by` up to 2^13 or, with a `to` of at
/// least 100, up to 2^16.
///
/// A size that is rounded from it may hang on its last bit, and OpenVINO multiplies by a reciprocal. What the quotient leaves of `to` is found
/// without rounding, eight bits of the quotient at a time, and divided once more; a quotient that is right already stays as it is.
pub fn exact_div(b: &mut Builder, name: &str, to: Value, by: Value) -> Value {
    b.within(name, |b| {
        let quotient = b.op("Div", "Div", &[to, by], &[]);
        let (mut left, mut rest) = (to, quotient);
        for bits in [8, 16, 24] {
            let (up, down) = (b.float("up", 2f32.powi(bits)), b.float("down", 2f32.powi(-bits)));
            let part = b.op("part/mul", "Mul", &[rest, up], &[]);
            let part = b.op("part/Floor", "Floor", &[part], &[]);
            let part = b.op("part", "Mul", &[part, down], &[]);
            rest = b.op("rest", "Sub", &[rest, part], &[]);
            let taken = b.op("taken", "Mul", &[part, by], &[]);
            left = b.op("left", "Sub", &[left, taken], &[]);
        }
        let taken = b.op("taken", "Mul", &[rest, by], &[]);
        let left = b.op("left", "Sub", &[left, taken], &[]);
        let more = b.op("more", "Div", &[left, by], &[]);
        b.op("quotient", "Add", &[quotient, more], &[])
    })
}

/// 0 to `count - 1`, integers; `count` is a row of one.
pub fn range(b: &mut Builder, name: &str, count: Value) -> Value {
    let axis = b.ints(&format!("{name}/axis"), &[1], &[0]);
    let count = b.op(&format!("{name}/count"), "Squeeze", &[count, axis], &[]);
    let (zero, one) = (b.int(&format!("{name}/start"), 0), b.int(&format!("{name}/delta"), 1));
    b.op(name, "Range", &[zero, count, one], &[])
}

/// Boxes by their centres and sizes, `[..., 2]` each as y, x.
#[derive(Debug, Clone, Copy)]
pub struct Centred {
    pub centres: Value,
    pub sizes: Value,
}

impl Centred {
    /// From boxes `[..., 4]`.
    pub fn of(b: &mut Builder, boxes: Value) -> Self {
        let (low, high) = (columns(b, "low", boxes, [0, 2]), columns(b, "high", boxes, [2, 4]));
        let sizes = b.op("sizes", "Sub", &[high, low], &[]);
        let half = b.float("half", 0.5);
        let reach = b.op("reach", "Mul", &[sizes, half], &[]);
        Self { centres: b.op("centers", "Add", &[low, reach], &[]), sizes }
    }
}

/// From encodings `[..., 4]` to boxes of the same shape, relative to `anchors` of a shape that broadcasts to it.
///
/// Source: Ren et al., Faster R-CNN (arXiv:1506.01497), section 3.1.2.
pub fn decode(b: &mut Builder, coder: &BoxCoder, codes: Value, anchors: Centred) -> Value {
    let scale = b.floats("scale_factors", &[4], &coder.scale);
    let codes = b.op("div", "Div", &[codes, scale], &[]);
    let offset = columns(b, "offset", codes, [0, 2]); // [..., 2] as ty, tx
    let growth = columns(b, "growth", codes, [2, 4]); // [..., 2] as th, tw
    let growth = b.op("exp", "Exp", &[growth], &[]);
    let size = b.op("size", "Mul", &[growth, anchors.sizes], &[]);
    let offset = b.op("mul", "Mul", &[offset, anchors.sizes], &[]);
    let centre = b.op("centre", "Add", &[offset, anchors.centres], &[]);
    let half = b.float("half", 0.5);
    let reach = b.op("reach", "Mul", &[size, half], &[]);
    let low = b.op("low", "Sub", &[centre, reach], &[]);
    let high = b.op("high", "Add", &[centre, reach], &[]);
    concat(b, "boxes", &[low, high], -1)
}

/// Boxes moved to the nearest place between 0 and `high`, a scalar or one number a column.
pub fn clip(b: &mut Builder, boxes: Value, high: Value) -> Value {
    let zero = b.float("zero", 0.0);
    let boxes = b.op("Min", "Min", &[boxes, high], &[]);
    b.op("ClipToWindow", "Max", &[boxes, zero], &[])
}

/// From raw predictions `[N, A, K + 1]` to scores `[N, A, K]`, without background.
pub fn convert_scores(b: &mut Builder, converter: ScoreConverter, num_classes: usize, logits: Value) -> Value {
    let (ScoreConverter::Identity { logit_scale }
    | ScoreConverter::Sigmoid { logit_scale }
    | ScoreConverter::Softmax { logit_scale }) = converter;
    let logits = if logit_scale == 1.0 {
        logits
    } else {
        let scale = b.float("logit_scale", logit_scale as f32);
        b.op("scale_logits", "Div", &[logits, scale], &[])
    };
    let classes = [1, num_classes as i64 + 1];
    match converter {
        ScoreConverter::Identity { .. } => columns(b, "convert_scores", logits, classes),
        ScoreConverter::Sigmoid { .. } => {
            let logits = columns(b, "foreground", logits, classes);
            b.op("convert_scores", "Sigmoid", &[logits], &[])
        }
        // Background takes part in the sum.
        ScoreConverter::Softmax { .. } => {
            let scores = b.op("convert_scores", "Softmax", &[logits], &[Attribute::int("axis", -1)]);
            columns(b, "foreground", scores, classes)
        }
    }
}

/// A predictor's map `[N, a * columns, h, w]` as rows of anchors: `[N, h * w * a, columns]`.
pub fn rows(b: &mut Builder, map: Value, columns: i64) -> Value {
    let cells = b.op("Transpose", "Transpose", &[map], &[Attribute::ints("perm", &[0, 2, 3, 1])]);
    reshape(b, "Reshape", cells, &[0, -1, columns])
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    #[test]
    fn a_division_is_exact_also_where_a_runtime_multiplies_by_the_reciprocal() {
        let mut b = Builder::new();
        let [to, by] = ["to", "by"].map(|name| b.input(name, DataType::Float, &[]));
        let quotient = exact_div(&mut b, "q", to, by);
        b.output("y", quotient, DataType::Float, &[]);
        let graph = b.finish("test", &[]).graph.unwrap();
        let constants = graph.initializer.iter().map(|c| {
            let bytes: [u8; 4] = c.raw_data()[..].try_into().unwrap();
            (c.name(), f32::from_le_bytes(bytes))
        });
        let constants: HashMap<&str, f32> = constants.collect();
        let run = |to: f32, by: f32, divide: fn(f32, f32) -> f32| {
            let mut values = constants.clone();
            values.extend([("to", to), ("by", by)]);
            for node in &graph.node {
                let x = |i: usize| values[node.input[i].as_str()];
                let y = match node.op_type() {
                    "Div" => divide(x(0), x(1)),
                    "Mul" => x(0) * x(1),
                    "Sub" => x(0) - x(1),
                    "Add" => x(0) + x(1),
                    "Floor" => x(0).floor(),
                    "Identity" => x(0),
                    other => panic!("{other}"),
                };
                values.insert(&node.output[0], y);
            }
            values["y"]
        };
        let mut otherwise = 0;
        for to in [100, 200, 300, 321, 600, 640, 1024, 1200] {
            for by in (1..2000).chain((2000..65_536).step_by(97)) {
                let (to, by) = (to as f32, by as f32);
                let by_reciprocal = |a: f32, b: f32| a * (1.0 / b);
                otherwise += usize::from(by_reciprocal(to, by) != to / by);
                assert_eq!(run(to, by, by_reciprocal), to / by, "{to} / {by}");
                assert_eq!(run(to, by, |a, b| a / b), to / by, "{to} / {by}");
            }
        }
        assert!(otherwise > 1000, "{otherwise}");
    }
}
