//! Non-maximum suppression class by class as part of an ONNX graph (upstream core/post_processing.py).
//!
//! What comes out is what upstream's suppression of every class over all boxes gives. As in the frozen graph it is tried on the best
//! candidates first, and done over on all where too few of them survive.

use super::builder::{Attribute, Builder, Value};
use super::parts::{cast, columns, concat, side};
use crate::detection::nms::NmsOptions;
use crate::proto::onnx::tensor_proto::DataType;

/// Candidates (pairs of box and class) that the suppression starts with, times the detections wanted.
const CANDIDATES_PER_DETECTION: usize = 16;

/// What is found in all pictures; classes 0-based, zeros beyond the last detection.
#[derive(Debug, Clone, Copy)]
pub struct Found {
    /// `[N, D, 4]`.
    pub boxes: Value,
    /// `[N, D]`.
    pub scores: Value,
    /// `[N, D]`, floats.
    pub classes: Value,
    /// `[N]`, floats.
    pub count: Value,
}

/// Of what, and how.
#[derive(Debug, Clone, Copy)]
pub struct Suppression {
    /// Whether each class has boxes of its own.
    pub boxes_by_class: bool,
    /// Thresholds and limits.
    pub nms: NmsOptions,
}

/// Runs the suppression on every picture.
///
/// * `boxes`: `[N, A, 4]`, or `[N, A, K, 4]` where each class has its own; clipped to the picture.
/// * `scores`: `[N, A, K]`.
pub fn suppress(b: &mut Builder, with: &Suppression, boxes: Value, scores: Value) -> Found {
    let d = with.nms.max_total as i64;
    let pictures = side(b, "pictures", scores, 0);
    let rows = side(b, "rows", scores, 1);
    let lowest = b.float("lowest", f32::NEG_INFINITY);

    let (low, high) = (columns(b, "low", boxes, [0, 2]), columns(b, "high", boxes, [2, 4]));
    let sides = b.op("sides", "Sub", &[high, low], &[]);
    let keep = Attribute::int("keepdims", i64::from(!with.boxes_by_class));
    let area = b.op("Area", "ReduceProd", &[sides], &[Attribute::ints("axes", &[-1]), keep]); // [N, A, 1] or [N, A, K]
    let zero = b.float("zero", 0.0);
    let has_area = b.op("HasArea", "Greater", &[area, zero], &[]);
    let threshold = b.floats("score_threshold", &[1], &[with.nms.score_threshold]);
    // Not a number is not greater than anything, so it goes here.
    let high_enough = b.op("HighEnough", "Greater", &[scores, threshold], &[]);
    let valid = b.op("Valid", "And", &[high_enough, has_area], &[]);
    let scores = b.op("Filter", "Where", &[valid, scores, lowest], &[]);
    let scores = b.op("by_class", "Transpose", &[scores], &[Attribute::ints("perm", &[0, 2, 1])]); // [N, K, A]
    let flat = b.ints("flat", &[2], &[0, -1]);
    // A zero stands for the size that the tensor has.
    let flatten = |b: &mut Builder, name: &str, x: Value| b.op(name, "Reshape", &[x, flat], &[]);
    let all = flatten(b, "all", scores); // [N, K * A]

    // Where each class has boxes of its own, each class of each picture is a picture to the operator.
    let (boxes, scores) = if with.boxes_by_class {
        let boxes = b.op("boxes_by_class", "Transpose", &[boxes], &[Attribute::ints("perm", &[0, 2, 1, 3])]); // [N, K, A, 4]
        let minus_one = b.ints("rest", &[1], &[-1]);
        let four = b.ints("four", &[1], &[4]);
        let one = b.ints("one", &[1], &[1]);
        let sizes = concat(b, "boxes/shape", &[minus_one, rows, four], 0);
        let boxes = b.op("boxes", "Reshape", &[boxes, sizes], &[]); // [N * K, A, 4]
        let sizes = concat(b, "scores/shape", &[minus_one, one, rows], 0);
        (boxes, b.op("scores", "Reshape", &[scores, sizes], &[])) // [N * K, 1, A]
    } else {
        (boxes, scores)
    };

    let pairs = side(b, "pairs", all, 1);
    let least = b.ints("candidates", &[1], &[d * CANDIDATES_PER_DETECTION as i64]);
    let limit = b.op("limit", "Min", &[least, pairs], &[]);
    let best = b.ops("TopCandidates", "TopK", &[all, limit], &[Attribute::int("axis", 1)], 2)[0];
    let bar = b.op("bar", "ReduceMin", &[best], &[Attribute::ints("axes", &[1]), Attribute::int("keepdims", 1)]); // [N, 1]
    let reaches = b.op("Reaches", "GreaterOrEqual", &[all, bar], &[]);
    let candidates = b.op("Candidates", "Where", &[reaches, all, lowest], &[]); // [N, K * A]
    let sizes = b.op("sizes", "Shape", &[scores], &[]);
    let candidates = b.op("candidates/like_scores", "Reshape", &[candidates, sizes], &[]);

    let keep = |b: &mut Builder, scores: Value| {
        let kept = survivors(b, with, boxes, scores, (sizes, threshold));
        let sizes = b.op("kept/shape", "Shape", &[all], &[]);
        b.op("kept", "Reshape", &[kept, sizes], &[]) // [N, K * A]
    };
    let first = b.within("first", |b| keep(b, candidates));
    let over = b.within("over", |b| {
        let survived = b.op("survived", "Greater", &[first, lowest], &[]);
        let count = count(b, "count", survived, 1);
        let wanted = b.int("wanted", d);
        let too_few = b.op("TooFew", "Less", &[count, wanted], &[]); // [N, 1]
        let more_below = b.op("MoreBelow", "Greater", &[bar, lowest], &[]); // [N, 1]: nothing that exists scores below minus infinity
        let over = b.op("And", "And", &[too_few, more_below], &[]);
        let over = cast(b, "ToInt", over, DataType::Int64);
        let any = b.op("Any", "ReduceMax", &[over], &[Attribute::int("keepdims", 0)]);
        cast(b, "ToBool", any, DataType::Bool)
    });
    let kept = b.choose("Over", over, &[DataType::Float], |b| vec![keep(b, scores)], |_| vec![first])[0];

    // Room for all that is wanted, also where there are fewer boxes.
    let wanted = b.ints("detections", &[1], &[d]);
    let room = concat(b, "room/shape", &[pictures, wanted], 0);
    let room = b.op("room", "Expand", &[lowest, room], &[]);
    let kept = concat(b, "kept_and_room", &[kept, room], 1);
    let best = b.ops("Best", "TopK", &[kept, wanted], &[Attribute::int("axis", 1)], 2); // [N, D] each
    let exists = b.op("Exists", "Greater", &[best[0], lowest], &[]);
    let none = b.int("none", 0);
    let place = b.op("place", "Where", &[exists, best[1], none], &[]);
    let class = b.op("class", "Div", &[place, rows], &[]);
    let rows_before = b.op("rows_before", "Mul", &[class, rows], &[]);
    let row = if with.boxes_by_class { place } else { b.op("row", "Sub", &[place, rows_before], &[]) };
    let last = b.ints("last", &[1], &[-1]);
    let row = b.op("row/column", "Unsqueeze", &[row, last], &[]); // [N, D, 1]
    let four = b.ints("width", &[1], &[4]);
    let by_picture = concat(b, "by_picture/shape", &[pictures, last, four], 0);
    let boxes = b.op("by_picture", "Reshape", &[boxes, by_picture], &[]); // [N, A, 4] or [N, K * A, 4]
    let boxes = b.op("boxes_of_best", "GatherND", &[boxes, row], &[Attribute::int("batch_dims", 1)]); // [N, D, 4]
    let exists_row = b.op("Exists/column", "Unsqueeze", &[exists, last], &[]);
    let class = cast(b, "class/ToFloat", class, DataType::Float);
    let count = count(b, "num_detections", exists, 0);
    Found {
        boxes: b.op("PadBoxes", "Where", &[exists_row, boxes, zero], &[]),
        scores: b.op("PadScores", "Where", &[exists, best[0], zero], &[]),
        classes: b.op("PadClasses", "Where", &[exists, class, zero], &[]),
        count: cast(b, "num_detections/ToFloat", count, DataType::Float),
    }
}

/// The scores of what survives, minus infinity elsewhere; in the shape of `scores`.
///
/// * `boxes`: `[M, A, 4]`; `scores`: `[M, C, A]`.
fn survivors(b: &mut Builder, with: &Suppression, boxes: Value, scores: Value, (sizes, threshold): (Value, Value)) -> Value {
    let most = b.ints("max_output_size", &[1], &[with.nms.max_per_class as i64]);
    let iou = b.floats("iou_threshold", &[1], &[with.nms.iou_threshold]);
    let selected = b.op("NonMaxSuppression", "NonMaxSuppression", &[boxes, scores, most, iou, threshold], &[]); // [S, 3]
    let values = b.op("values", "GatherND", &[scores, selected], &[]);
    let lowest = b.float("lowest", f32::NEG_INFINITY);
    let nothing = b.op("nothing", "Expand", &[lowest, sizes], &[]);
    b.op("survivors", "ScatterND", &[nothing, selected, values], &[])
}

/// How many of each row hold.
fn count(b: &mut Builder, name: &str, holds: Value, keepdims: i64) -> Value {
    let numbers = cast(b, &format!("{name}/ToInt"), holds, DataType::Int64);
    let axis = b.ints(&format!("{name}/axis"), &[1], &[1]);
    b.op(name, "ReduceSum", &[numbers, axis], &[Attribute::int("keepdims", keepdims)])
}
