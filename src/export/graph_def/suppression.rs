//! Non-maximum suppression class by class as part of a GraphDef (upstream core/post_processing.py).
//!
//! What comes out is what upstream's suppression of every class over all boxes gives, but it is reached on few candidates: the best
//! 100 of all classes depend only on candidates that score at least as high as the hundredth, since no box is dropped for a worse one.
//! So the suppression runs on the best candidates, ties included, and on more of them only where too few survive.

use super::builder::{Builder, Loop, Op, Value, shape};
use super::ops::{cast, columns, concat, flatten, gather, increment, pack, select};
use crate::detection::nms::NmsOptions;
use crate::proto::tensorflow::DataType::{DtBool, DtFloat, DtInt32, DtInt64, DtResource};

/// Candidates (pairs of anchor and class) that the suppression starts with, times the detections wanted; from there it grows in
/// steps of this factor. By trial on photos: fewer starts over often, more costs time in vain.
const CANDIDATES_PER_DETECTION: usize = 16;

/// How many pictures, or classes, TensorFlow may work on at once; its own `while_loop` has 10 and `map_fn` too.
const PARALLEL_ITERATIONS: i64 = 10;

/// What is found in all pictures; classes 0-based, zeros beyond the last detection.
pub struct Found {
    /// `[N, D, 4]`.
    pub boxes: Value,
    /// `[N, D]`.
    pub scores: Value,
    /// `[N, D]`.
    pub classes: Value,
    /// `[N]`.
    pub count: Value,
}

/// Of what, and how.
#[derive(Debug, Clone, Copy)]
pub struct Suppression {
    /// Classes without background: the `K` of the shapes.
    pub num_classes: usize,
    /// Whether each class has boxes of its own.
    pub boxes_by_class: bool,
    /// Thresholds and limits.
    pub nms: NmsOptions,
}

/// Runs the suppression on one picture after another.
///
/// * `boxes`: `[N, A, 4]`, or `[N, A, K, 4]` where each class has its own; clipped to the picture.
/// * `scores`: `[N, A, K]`.
pub fn suppress(b: &mut Builder, with: &Suppression, boxes: Value, scores: Value) -> Found {
    let zero = b.float("zero", 0.0);
    let rank = if with.boxes_by_class { 4 } else { 3 };
    let low = columns(b, "low", boxes, rank, [0, 2]);
    let high = columns(b, "high", boxes, rank, [2, 4]);
    let sides = b.same("sub", "Sub", &[high, low]);
    let axis = b.int("Area/axis", -1);
    let area = Op::new("Prod", &[sides, axis]).typed("T").with("Tidx", DtInt32).with("keep_dims", !with.boxes_by_class);
    let area = b.add("Area", area, DtFloat); // [N, A, 1] or [N, A, K]
    let has_area = b.compare("HasArea", "Greater", [area, zero]);
    let threshold = b.float("score_threshold", with.nms.score_threshold);
    let high_enough = b.compare("FilterGreaterThan", "Greater", [scores, threshold]);
    let valid = b.add("Valid", Op::new("LogicalAnd", &[high_enough, has_area]), DtBool); // [N, A, K]
    // Not a number is not greater than anything, so it goes here.
    let sizes = b.add("Shape", Op::new("Shape", &[scores]).typed("T").with("out_type", DtInt32), DtInt32);
    let lowest = b.float("lowest", f32::NEG_INFINITY);
    let nothing = b.add("Fill", Op::new("Fill", &[sizes, lowest]).with("T", DtFloat), DtFloat);
    let scores = b.add("Select", Op::new("Select", &[valid, scores, nothing]).with("T", DtFloat), DtFloat);

    let first = b.int("batch/index", 0);
    let pictures = gather(b, "batch", sizes, first);
    let detections = with.nms.max_total as i64;
    let arrays = [
        ("boxes", shape(&[detections, 4])),
        ("scores", shape(&[detections])),
        ("classes", shape(&[detections])),
        ("count", shape(&[])),
    ];
    let arrays = arrays.map(|(name, element)| {
        let op = Op::new("TensorArrayV3", &[pictures]).with("dtype", DtFloat).with("element_shape", element);
        b.add_many(&format!("map/{name}"), op, &[DtResource, DtFloat])
    });
    let start = b.int("map/start", 0);
    let initial: Vec<Value> = [start].into_iter().chain(arrays.iter().map(|a| a[1])).collect();
    let spec = Loop { name: "map/while", parallel_iterations: PARALLEL_ITERATIONS, initial: &initial };
    let last = b.while_loop(
        &spec,
        |b, v| b.compare("Less", "Less", [v[0], pictures]),
        |b, v| {
            let picture = v[0];
            let boxes = gather(b, "boxes", boxes, picture); // [A, 4] or [A, K, 4]
            let scores = gather(b, "scores", scores, picture); // [A, K]
            let found = suppress_one(b, with, boxes, scores);
            let count = cast(b, "ToFloat", found.count, DtFloat);
            let results = [found.boxes, found.scores, found.classes, count];
            let mut next = vec![increment(b, picture)];
            for ((array, flow), result) in arrays.iter().zip(&v[1..]).zip(results) {
                let op = Op::new("TensorArrayWriteV3", &[array[0], picture, result, *flow]).with("T", DtFloat);
                next.push(b.add("TensorArrayWriteV3", op, DtFloat));
            }
            next
        },
    );
    let delta = b.int("map/delta", 1);
    let all = b.add("map/range", Op::new("Range", &[start, pictures, delta]).with("Tidx", DtInt32), DtInt32);
    let [boxes, scores, classes, count] = std::array::from_fn(|i| {
        let op = Op::new("TensorArrayGatherV3", &[arrays[i][0], all, last[1 + i]]).with("dtype", DtFloat);
        b.add("map/TensorArrayStack/TensorArrayGatherV3", op, DtFloat)
    });
    Found { boxes, scores, classes, count }
}

/// The detections of one picture, padded with zeros; `count` is an integer.
///
/// Tries the best candidates, then more, until as many survive as are wanted or all were tried.
///
/// * `boxes`: `[A, 4]` or `[A, K, 4]`, clipped.
/// * `scores`: `[A, K]`; minus infinity where there is nothing to find.
fn suppress_one(b: &mut Builder, with: &Suppression, boxes: Value, scores: Value) -> Found {
    let detections = with.nms.max_total;
    let wanted = b.int("wanted", detections as i32);
    let flat = flatten(b, "flat", scores); // [A * K]
    let total = b.add("total", Op::new("Size", &[flat]).typed("T").with("out_type", DtInt32), DtInt32);
    let initial = [
        b.int("tried", 0),
        b.floats("no_boxes", &[detections as i64, 4], &vec![0.0; detections * 4]),
        b.floats("no_scores", &[detections as i64], &vec![0.0; detections]),
        b.floats("no_classes", &[detections as i64], &vec![0.0; detections]),
        b.int("none", 0),
    ];
    let spec = Loop { name: "candidates", parallel_iterations: 1, initial: &initial };
    let last = b.while_loop(
        &spec,
        |b, v| {
            let too_few = b.compare("TooFew", "Less", [v[4], wanted]);
            let more_left = b.compare("MoreLeft", "Less", [v[0], total]);
            b.add("LogicalAnd", Op::new("LogicalAnd", &[too_few, more_left]), DtBool)
        },
        |b, v| {
            let factor = b.int("factor", CANDIDATES_PER_DETECTION as i32);
            let least = b.int("least", (detections * CANDIDATES_PER_DETECTION) as i32);
            let more = b.same("mul", "Mul", &[v[0], factor]);
            let more = b.same("Maximum", "Maximum", &[more, least]);
            let limit = b.same("Minimum", "Minimum", &[more, total]);
            // The last round takes all there is and needs no sorting.
            let limited = b.compare("Limited", "Less", [limit, total]);
            let one = b.int("one", 1);
            let ranks = select(b, "ranks", limited, [limit, one]);
            let best = Op::new("TopKV2", &[flat, ranks]).typed("T").with("sorted", false);
            let best = b.add_many("TopKV2", best, &[DtFloat, DtInt32])[0];
            let axis = b.int("Min/axis", 0);
            let worst = b.add("Min", Op::new("Min", &[best, axis]).typed("T").with("Tidx", DtInt32), DtFloat);
            let lowest = b.float("lowest", f32::NEG_INFINITY);
            let bar = select(b, "bar", limited, [worst, lowest]);
            let found = suppress_candidates(b, with, boxes, scores, bar);
            // Nothing scores below the bar: all were tried.
            let more_below = b.compare("MoreBelow", "Greater", [bar, lowest]);
            let limit = select(b, "tried", more_below, [limit, total]);
            vec![limit, found.boxes, found.scores, found.classes, found.count]
        },
    );
    Found { boxes: last[1], scores: last[2], classes: last[3], count: last[4] }
}

/// The detections among candidates that score at least `bar`, padded with zeros; `count` is an integer.
fn suppress_candidates(b: &mut Builder, with: &Suppression, boxes: Value, scores: Value, bar: Value) -> Found {
    let detections = with.nms.max_total as i32;
    let reaches = b.compare("GreaterEqual", "GreaterEqual", [scores, bar]);
    // Where all are tried, the bar may be minus infinity.
    let lowest = b.float("lowest", f32::NEG_INFINITY);
    let exists = b.compare("Greater", "Greater", [scores, lowest]);
    let chosen = b.add("LogicalAnd", Op::new("LogicalAnd", &[reaches, exists]), DtBool);
    let pairs = b.add("Where", Op::new("Where", &[chosen]), DtInt64); // [C, 2] as anchor, class
    let scores =
        b.add("GatherNd", Op::new("GatherNd", &[scores, pairs]).with("Tparams", DtFloat).with("Tindices", DtInt64), DtFloat); // [C]
    let unstacked =
        b.add_many("Unpack", Op::new("Unpack", &[pairs]).typed("T").with("num", 2).with("axis", 1), &[DtInt64, DtInt64]);
    let boxes = if with.boxes_by_class {
        let op = Op::new("GatherNd", &[boxes, pairs]).with("Tparams", DtFloat).with("Tindices", DtInt64);
        b.add("boxes", op, DtFloat)
    } else {
        gather(b, "boxes", boxes, unstacked[0])
    }; // [C, 4]
    let classes = cast(b, "classes", unstacked[1], DtInt32); // [C]

    let kept = suppress_classes(b, with, boxes, scores, classes); // [S]
    let scores = gather(b, "kept_scores", scores, kept);
    let survivors = b.add("Size", Op::new("Size", &[kept]).typed("T").with("out_type", DtInt32), DtInt32);
    let wanted = b.int("wanted", detections);
    let count = b.same("count", "Minimum", &[survivors, wanted]);
    // Stable: of equal scores the lower class comes first.
    let best =
        b.add_many("Best", Op::new("TopKV2", &[scores, count]).with("T", DtFloat).with("sorted", true), &[DtFloat, DtInt32]);
    let kept = gather(b, "best_candidates", kept, best[1]); // [count]
    let boxes = gather(b, "best_boxes", boxes, kept);
    let classes = gather(b, "best_classes", classes, kept);
    let classes = cast(b, "ToFloat", classes, DtFloat);

    let missing = b.same("missing", "Sub", &[wanted, count]);
    let none = b.int("none", 0);
    let after = pack(b, "after", &[none, missing], 0);
    let dimension = b.int("dimension", 0);
    let row = b.add("row", Op::new("ExpandDims", &[after, dimension]).with("T", DtInt32).with("Tdim", DtInt32), DtInt32); // [1, 2]
    let beside = b.ints("beside", &[1, 2], &[0, 0]);
    let rows = concat(b, "rows", &[row, beside], 0); // [2, 2]
    let pad = |b: &mut Builder, name: &str, x: Value, by: Value| {
        b.add(name, Op::new("Pad", &[x, by]).typed("T").with("Tpaddings", DtInt32), DtFloat)
    };
    Found {
        boxes: pad(b, "PadBoxes", boxes, rows),
        scores: pad(b, "PadScores", best[0], row),
        classes: pad(b, "PadClasses", classes, row),
        count,
    }
}

/// The candidates that survive in their class, class by class, best first in each: `[S]`.
///
/// * `boxes`: `[C, 4]`; `scores`, `classes`: `[C]`.
fn suppress_classes(b: &mut Builder, with: &Suppression, boxes: Value, scores: Value, classes: Value) -> Value {
    let num_classes = b.int("num_classes", with.num_classes as i32);
    let op = Op::new("TensorArrayV3", &[num_classes]).with("dtype", DtInt64).with("element_shape", shape(&[-1]));
    let array = b.add_many("survivors", op, &[DtResource, DtFloat]);
    let initial = [b.int("first_class", 0), array[1]];
    let spec = Loop { name: "classes", parallel_iterations: PARALLEL_ITERATIONS, initial: &initial };
    let last = b.while_loop(
        &spec,
        |b, v| b.compare("Less", "Less", [v[0], num_classes]),
        |b, v| {
            let of_class = b.compare("Equal", "Equal", [classes, v[0]]);
            let members = b.add("Where", Op::new("Where", &[of_class]), DtInt64); // [c, 1]
            let members = flatten(b, "members", members); // [c]
            let boxes = gather(b, "boxes", boxes, members);
            let scores = gather(b, "scores", scores, members);
            let limit = b.int("max_output_size", with.nms.max_per_class as i32);
            let iou = b.float("iou_threshold", with.nms.iou_threshold);
            let threshold = b.float("score_threshold", with.nms.score_threshold);
            let op = Op::new("NonMaxSuppressionV3", &[boxes, scores, limit, iou, threshold]);
            let selected = b.add("NonMaxSuppressionV3", op, DtInt32);
            let survivors = gather(b, "survivors", members, selected);
            let op = Op::new("TensorArrayWriteV3", &[array[0], v[0], survivors, v[1]]).with("T", DtInt64);
            vec![increment(b, v[0]), b.add("TensorArrayWriteV3", op, DtFloat)]
        },
    );
    let op = Op::new("TensorArrayConcatV3", &[array[0], last[1]]).with("dtype", DtInt64);
    b.add_many("TensorArrayConcatV3", op, &[DtInt64, DtInt64])[0]
}
