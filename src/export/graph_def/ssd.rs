//! An SSD as a frozen graph: pictures of any size in, detections out (upstream exporter.py, meta_architectures/ssd_meta_arch.py,
//! core/post_processing.py).
//!
//! What comes out is what upstream's suppression of every class over all anchors gives, but it is reached on few candidates: the best
//! 100 of all classes depend only on candidates that score at least as high as the hundredth, since no box is dropped for a worse one.
//! So the suppression runs on the best candidates, ties included, and on more of them only where too few survive.

use anyhow::{Result, ensure};

use super::builder::{Builder, Loop, Op, Value, shape};
use super::network::{ReadVariable, concat, write_network};
use crate::export::ssd::{Head, SsdExport};
use crate::models::ssd::ScoreConverter;
use crate::net::graph::{NodeId, Op as NetworkOp};
use crate::proto::tensorflow::DataType::{self, DtBool, DtFloat, DtInt32, DtInt64, DtResource, DtUint8};
use crate::proto::tensorflow::GraphDef;

/// Candidates (pairs of anchor and class) that the suppression starts with, times the detections wanted; from there it grows in
/// steps of this factor. By trial on photos: fewer starts over often, more costs time in vain.
const CANDIDATES_PER_DETECTION: usize = 16;

/// How many pictures, or classes, TensorFlow may work on at once; its own `while_loop` has 10 and `map_fn` too.
const PARALLEL_ITERATIONS: i64 = 10;

/// The frozen graph: `image_tensor`, uint8 `[N, height, width, 3]` RGB, to
///
/// * `detection_boxes`: `[N, D, 4]`, normalized, where `D` is the limit of detections in all; zeros beyond the last.
/// * `detection_scores`: `[N, D]`, best first.
/// * `detection_classes`: `[N, D]`, the label map's ids as floats; 1 beyond the last, as upstream has it.
/// * `num_detections`: `[N]`, as floats.
///
/// # Errors
/// If the parts of `model` do not fit together or a variable cannot be read.
pub fn frozen_graph(model: &SsdExport, variables: &ReadVariable) -> Result<GraphDef> {
    check(model)?;
    let mut b = Builder::new();
    let any_size = shape(&[-1, -1, -1, 3]);
    let picture = b.add("image_tensor", Op::new("Placeholder", &[]).with("dtype", DtUint8).with("shape", any_size), DtUint8);
    let pixels = b.within("Preprocessor", |b| preprocess(b, model, picture));
    let wanted: Vec<NodeId> = model.heads.iter().flat_map(|head| [head.boxes, head.classes]).collect();
    let raw = write_network(&mut b, model.graph, pixels, &wanted, variables)?;
    let sizes = model.graph.sizes(model.picture.map(|side| side as i64));
    let (mut codes, mut logits, mut count) = (Vec::new(), Vec::new(), 0);
    for ((i, head), pair) in model.heads.iter().enumerate().zip(raw.chunks_exact(2)) {
        let scope = format!("BoxPredictor_{i}");
        let [height, width] = sizes[head.boxes.0];
        let anchors = height * width * model.graph.channels(head.boxes) / 4;
        codes.push(b.within(&scope, |b| rows(b, "Reshape", pair[0], [anchors, 4]))); // [N, a_i, 4]
        let columns = model.num_classes as i64 + 1;
        logits.push(b.within(&scope, |b| rows(b, "Reshape_1", pair[1], [anchors, columns]))); // [N, a_i, K + 1]
        count += anchors;
    }
    ensure!(
        count == model.anchors.len() as i64,
        "the box predictors have {count} anchors, the anchor generator {}",
        model.anchors.len()
    );
    let codes = concat(&mut b, "concat", &codes, 1); // [N, A, 4]
    let logits = concat(&mut b, "concat_1", &logits, 1); // [N, A, K + 1]
    let found = b.within("Postprocessor", |b| {
        let boxes = b.within("Decode", |b| decode(b, model, codes));
        let scores = convert_scores(b, model, logits);
        b.within("BatchMultiClassNonMaxSuppression", |b| suppress(b, model, boxes, scores))
    });
    let one = b.float("add/y", 1.0);
    let classes = b.same("add", "Add", &[found.classes, one]);
    b.same("detection_boxes", "Identity", &[found.boxes]);
    b.same("detection_scores", "Identity", &[found.scores]);
    b.same("detection_classes", "Identity", &[classes]);
    b.same("num_detections", "Identity", &[found.count]);
    Ok(b.finish())
}

fn check(model: &SsdExport) -> Result<()> {
    let inputs = model.graph.nodes().iter().filter(|n| matches!(n.op, NetworkOp::Input)).count();
    ensure!(inputs == 1, "the network has {inputs} inputs; a frozen SSD needs exactly one");
    ensure!(!model.heads.is_empty(), "the model has no box predictors");
    for &Head { boxes, classes } in &model.heads {
        let columns = model.num_classes as i64 + 1;
        let (b, c) = (model.graph.channels(boxes), model.graph.channels(classes));
        ensure!(
            b % 4 == 0 && c == b / 4 * columns,
            "{} has {b} channels and {} has {c}; {} classes need 4 and {columns} an anchor",
            model.graph.node(boxes).name,
            model.graph.node(classes).name,
            model.num_classes
        );
    }
    let pairs = model.anchors.len() * model.num_classes;
    ensure!(
        pairs > 0 && pairs <= i32::MAX as usize / 64,
        "{} anchors of {} classes cannot be exported",
        model.anchors.len(),
        model.num_classes
    );
    ensure!(
        model.nms.max_total > 0 && model.nms.max_per_class > 0,
        "the limits of detections in all and a class must be positive"
    );
    Ok(())
}

/// Resized and scaled: `[N, height, width, 3]` floats.
fn preprocess(b: &mut Builder, model: &SsdExport, picture: Value) -> Value {
    let [height, width] = model.picture.map(|side| side as i32);
    let size = b.ints("ResizeImage/size", &[2], &[height, width]);
    // Legacy corners: neither aligned nor half-pixel centres (an attribute that TensorFlow 1.12 lacks and whose default is false).
    let op = Op::new("ResizeBilinear", &[picture, size]).typed("T").with("align_corners", false);
    let resized = b.add("ResizeImage/ResizeBilinear", op, DtFloat);
    let scale = b.float("mul/x", model.pixels.scale);
    let scaled = b.same("mul", "Mul", &[scale, resized]);
    // Upstream subtracts.
    let shift = model.pixels.shift.map(|s| -s);
    let shift =
        if shift[1..].iter().all(|s| *s == shift[0]) { b.float("sub/y", shift[0]) } else { b.floats("sub/y", &[3], &shift) };
    b.same("sub", "Sub", &[scaled, shift])
}

/// From encodings `[N, A, 4]` to boxes `[N, A, 4]`, normalized.
///
/// Source: Ren et al., Faster R-CNN (arXiv:1506.01497), section 3.1.2.
fn decode(b: &mut Builder, model: &SsdExport, codes: Value) -> Value {
    let count = model.anchors.len() as i64;
    let mut centres = Vec::with_capacity(model.anchors.len() * 2);
    let mut sizes = Vec::with_capacity(model.anchors.len() * 2);
    for [ymin, xmin, ymax, xmax] in model.anchors {
        let (h, w) = (ymax - ymin, xmax - xmin);
        centres.extend([ymin + h / 2.0, xmin + w / 2.0]);
        sizes.extend([h, w]);
    }
    let centres = b.floats("anchors/centers", &[count, 2], &centres);
    let sizes = b.floats("anchors/sizes", &[count, 2], &sizes);
    let scale = b.floats("scale_factors", &[4], &model.coder.scale);
    let codes = b.same("truediv", "RealDiv", &[codes, scale]);
    let offset = columns(b, "offset", codes, 0, 2); // [N, A, 2] as ty, tx
    let growth = columns(b, "growth", codes, 2, 4); // [N, A, 2] as th, tw
    let growth = b.same("Exp", "Exp", &[growth]);
    let size = b.same("mul", "Mul", &[growth, sizes]);
    let offset = b.same("mul_1", "Mul", &[offset, sizes]);
    let centre = b.same("add", "Add", &[offset, centres]);
    let half = b.float("half", 0.5);
    let reach = b.same("mul_2", "Mul", &[size, half]);
    let low = b.same("sub", "Sub", &[centre, reach]);
    let high = b.same("add_1", "Add", &[centre, reach]);
    concat(b, "stack", &[low, high], 2)
}

/// From raw predictions `[N, A, K + 1]` to scores `[N, A, K]`, without background.
fn convert_scores(b: &mut Builder, model: &SsdExport, logits: Value) -> Value {
    let (ScoreConverter::Identity { logit_scale }
    | ScoreConverter::Sigmoid { logit_scale }
    | ScoreConverter::Softmax { logit_scale }) = model.scores;
    let logits = if logit_scale == 1.0 {
        logits
    } else {
        let scale = b.float("scale_logits/y", logit_scale as f32);
        b.same("scale_logits", "RealDiv", &[logits, scale])
    };
    let columns_end = model.num_classes as i32 + 1;
    match model.scores {
        ScoreConverter::Identity { .. } => columns(b, "convert_scores", logits, 1, columns_end),
        ScoreConverter::Sigmoid { .. } => {
            let logits = columns(b, "Slice", logits, 1, columns_end);
            b.same("convert_scores", "Sigmoid", &[logits])
        }
        // Background takes part in the sum.
        ScoreConverter::Softmax { .. } => {
            let scores = b.same("convert_scores", "Softmax", &[logits]);
            columns(b, "Slice", scores, 1, columns_end)
        }
    }
}

/// What is found in all pictures; classes 0-based, zeros beyond the last detection.
struct Found {
    /// `[N, D, 4]`.
    boxes: Value,
    /// `[N, D]`.
    scores: Value,
    /// `[N, D]`.
    classes: Value,
    /// `[N]`.
    count: Value,
}

/// Clips the boxes, then runs the suppression on one picture after another.
///
/// * `boxes`: `[N, A, 4]`.
/// * `scores`: `[N, A, K]`.
fn suppress(b: &mut Builder, model: &SsdExport, boxes: Value, scores: Value) -> Found {
    let (zero, one) = (b.float("zero", 0.0), b.float("one", 1.0));
    let boxes = b.same("Minimum", "Minimum", &[boxes, one]);
    let boxes = b.same("ClipToWindow", "Maximum", &[boxes, zero]);
    let low = columns(b, "low", boxes, 0, 2);
    let high = columns(b, "high", boxes, 2, 4);
    let sides = b.same("sub", "Sub", &[high, low]);
    let axis = b.int("Area/axis", 2);
    let area = Op::new("Prod", &[sides, axis]).typed("T").with("Tidx", DtInt32).with("keep_dims", true);
    let area = b.add("Area", area, DtFloat); // [N, A, 1]
    let has_area = b.compare("HasArea", "Greater", [area, zero]);
    let threshold = b.float("score_threshold", model.nms.score_threshold);
    let high_enough = b.compare("FilterGreaterThan", "Greater", [scores, threshold]);
    let valid = b.add("Valid", Op::new("LogicalAnd", &[high_enough, has_area]), DtBool); // [N, A, K]
    // Not a number is not greater than anything, so it goes here.
    let sizes = b.add("Shape", Op::new("Shape", &[scores]).typed("T").with("out_type", DtInt32), DtInt32);
    let lowest = b.float("lowest", f32::NEG_INFINITY);
    let nothing = b.add("Fill", Op::new("Fill", &[sizes, lowest]).with("T", DtFloat), DtFloat);
    let scores = b.add("Select", Op::new("Select", &[valid, scores, nothing]).with("T", DtFloat), DtFloat);

    let first = b.int("batch/index", 0);
    let pictures = gather(b, "batch", sizes, first);
    let detections = model.nms.max_total as i64;
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
            let boxes = gather(b, "boxes", boxes, picture); // [A, 4]
            let scores = gather(b, "scores", scores, picture); // [A, K]
            let found = suppress_one(b, model, boxes, scores);
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
/// * `boxes`: `[A, 4]`, clipped.
/// * `scores`: `[A, K]`; minus infinity where there is nothing to find.
fn suppress_one(b: &mut Builder, model: &SsdExport, boxes: Value, scores: Value) -> Found {
    let pairs = model.anchors.len() * model.num_classes;
    let detections = model.nms.max_total;
    let wanted = b.int("wanted", detections as i32);
    let total = b.int("total", pairs as i32);
    let flat = flatten(b, "flat", scores); // [A * K]
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
            let least = b.int("least", (detections * CANDIDATES_PER_DETECTION).min(pairs) as i32);
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
            let found = suppress_candidates(b, model, boxes, scores, bar);
            // Nothing scores below the bar: all were tried.
            let more_below = b.compare("MoreBelow", "Greater", [bar, lowest]);
            let limit = select(b, "tried", more_below, [limit, total]);
            vec![limit, found.boxes, found.scores, found.classes, found.count]
        },
    );
    Found { boxes: last[1], scores: last[2], classes: last[3], count: last[4] }
}

/// The detections among candidates that score at least `bar`, padded with zeros; `count` is an integer.
fn suppress_candidates(b: &mut Builder, model: &SsdExport, boxes: Value, scores: Value, bar: Value) -> Found {
    let detections = model.nms.max_total as i32;
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
    let boxes = gather(b, "boxes", boxes, unstacked[0]); // [C, 4]
    let classes = cast(b, "classes", unstacked[1], DtInt32); // [C]

    let kept = suppress_classes(b, model, boxes, scores, classes); // [S]
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
    let after = b.add("after", Op::new("Pack", &[none, missing]).with("T", DtInt32).with("N", 2).with("axis", 0), DtInt32);
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
fn suppress_classes(b: &mut Builder, model: &SsdExport, boxes: Value, scores: Value, classes: Value) -> Value {
    let num_classes = b.int("num_classes", model.num_classes as i32);
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
            let limit = b.int("max_output_size", model.nms.max_per_class as i32);
            let iou = b.float("iou_threshold", model.nms.iou_threshold);
            let threshold = b.float("score_threshold", model.nms.score_threshold);
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

/// Columns `begin..end` of the last of three dimensions.
fn columns(b: &mut Builder, name: &str, x: Value, begin: i32, end: i32) -> Value {
    let first = b.ints(&format!("{name}/begin"), &[3], &[0, 0, begin]);
    let size = b.ints(&format!("{name}/size"), &[3], &[-1, -1, end - begin]);
    b.add(name, Op::new("Slice", &[x, first, size]).typed("T").with("Index", DtInt32), x.dtype())
}

/// `[N, h, w, c]` as `[N, sizes[0], sizes[1]]`.
fn rows(b: &mut Builder, name: &str, x: Value, sizes: [i64; 2]) -> Value {
    let sizes = b.ints(&format!("{name}/shape"), &[3], &[-1, sizes[0] as i32, sizes[1] as i32]);
    b.add(name, Op::new("Reshape", &[x, sizes]).typed("T").with("Tshape", DtInt32), x.dtype())
}

/// The first or the second value, as a scalar condition says.
fn select(b: &mut Builder, name: &str, condition: Value, values: [Value; 2]) -> Value {
    let op = Op::new("Select", &[condition, values[0], values[1]]).with("T", values[0].dtype());
    b.add(name, op, values[0].dtype())
}

/// All elements of `x` in one row.
fn flatten(b: &mut Builder, name: &str, x: Value) -> Value {
    let sizes = b.ints(&format!("{name}/shape"), &[1], &[-1]);
    b.add(name, Op::new("Reshape", &[x, sizes]).typed("T").with("Tshape", DtInt32), x.dtype())
}

/// Elements of `x` along its first dimension.
fn gather(b: &mut Builder, name: &str, x: Value, indices: Value) -> Value {
    let axis = b.int(&format!("{name}/axis"), 0);
    let op = Op::new("GatherV2", &[x, indices, axis]);
    let op = op.with("Tparams", x.dtype()).with("Tindices", indices.dtype()).with("Taxis", DtInt32);
    b.add(name, op, x.dtype())
}

fn cast(b: &mut Builder, name: &str, x: Value, to: DataType) -> Value {
    b.add(name, Op::new("Cast", &[x]).with("SrcT", x.dtype()).with("DstT", to), to)
}

fn increment(b: &mut Builder, x: Value) -> Value {
    let one = b.int("add/y", 1);
    b.same("add", "Add", &[x, one])
}
