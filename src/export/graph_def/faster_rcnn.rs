//! A Faster R-CNN or R-FCN as a frozen graph: pictures of any size in, detections out (upstream exporter.py,
//! meta_architectures/faster_rcnn_meta_arch.py, rfcn_meta_arch.py).

use anyhow::Result;

use super::builder::{Builder, Op, Value};
use super::network::write_network;
use super::ops::{cast, columns, concat, element, filled, height_and_width, pack, range, reshape, rows};
use super::parts::{self, Centred};
use super::pictures::{Frame, prepare};
use super::suppression::{Found, Suppression, suppress};
use crate::export::layers::{ReadVariable, output};
use crate::models::DetectionModel;
use crate::models::box_classifier::{BoxClassifier, Regions};
use crate::models::faster_rcnn::FasterRcnn;
use crate::models::post_processing::ScoreConverter;
use crate::models::rpn::Rpn;
use crate::proto::tensorflow::DataType::{DtFloat, DtInt32};
use crate::proto::tensorflow::GraphDef;

/// The frozen graph: `image_tensor` ([`parts::image_tensor`]) to the four [`parts::outputs`].
///
/// # Errors
/// If the parts of `model` do not fit together or a variable cannot be read.
pub fn frozen_graph(model: &FasterRcnn, variables: &ReadVariable) -> Result<GraphDef> {
    let mut b = Builder::new();
    let pictures = parts::image_tensor(&mut b);
    let prepared = b.within("Preprocessor", |b| prepare(b, model.resizer(), &model.pixels(), pictures));
    let frame = b.within("Frame", |b| Frame::new(b, pictures, &prepared));

    let first = model.first_graph();
    let wanted = [output(first, "map")?, output(first, "box_encodings")?, output(first, "objectness")?];
    let raw = write_network(&mut b, first, prepared.pixels, &wanted, variables)?;
    let map = raw[0]; // [N, h, w, C]
    let regions = b.within("FirstStagePostprocessor", |b| {
        let proposals = propose(b, model.rpn(), &frame, [raw[1], raw[2]]);
        Proposed::new(b, &frame, proposals.boxes, model.rpn().nms.max_total)
    });

    let classifier = model.classifier();
    let graph = &classifier.graph;
    let wanted = [output(graph, "refined_box_encodings")?, output(graph, "class_predictions")?];
    let raw = match classifier.regions {
        Regions::Crops { side } => {
            let crops = crop(&mut b, map, &regions, regions.boxes, [side; 2]); // [N * P, side, side, C]
            write_network(&mut b, graph, crops, &wanted, variables)?
        }
        Regions::PositionSensitive { bins, crop } => {
            let maps = write_network(&mut b, graph, map, &wanted, variables)?;
            let mut average = |name: &str, maps: Value| b.within(name, |b| position_sensitive(b, maps, &regions, bins, crop));
            vec![average("PSRoI_locations", maps[0]), average("PSRoI_classes", maps[1])]
        }
    };
    let found = b.within("SecondStagePostprocessor", |b| classify(b, classifier, &frame, &regions, [raw[0], raw[1]]));
    parts::outputs(&mut b, &found);
    Ok(b.finish())
}

/// Boxes in pixels, moved into a picture of these corners.
fn clip(b: &mut Builder, boxes: Value, corners: Value) -> Value {
    let zero = b.float("zero", 0.0);
    parts::clip(b, boxes, zero, corners)
}

/// The best boxes of each picture, in pixels: `[N, P, 4]`, zeros beyond the last.
///
/// * `raw`: encodings `[N, h, w, a * 4]` and objectness `[N, h, w, a * 2]`.
fn propose(b: &mut Builder, rpn: &Rpn, frame: &Frame, raw: [Value; 2]) -> Found {
    let codes = rows(b, "Reshape", (frame.pictures, raw[0]), 4); // [N, A, 4]
    let logits = rows(b, "Reshape_1", (frame.pictures, raw[1]), 2); // [N, A, 2]
    let anchors = b.within("GridAnchorGenerator", |b| {
        let grid = height_and_width(b, raw[0]);
        let boxes = grid_anchors(b, rpn, grid);
        let boxes = clip(b, boxes, frame.corners);
        centred(b, boxes, 2)
    });
    let boxes = b.within("Decode", |b| parts::decode(b, &rpn.coder, codes, 3, anchors));
    let scores = parts::convert_scores(b, ScoreConverter::Softmax { logit_scale: 1.0 }, 1, logits);
    b.within("BatchMultiClassNonMaxSuppression", |b| {
        let boxes = clip(b, boxes, frame.corners);
        suppress(b, &Suppression { num_classes: 1, boxes_by_class: false, nms: rpn.nms }, boxes, scores)
    })
}

/// Every anchor of a map of `grid` cells, in pixels: `[A, 4]`.
fn grid_anchors(b: &mut Builder, rpn: &Rpn, grid: Value) -> Value {
    let sizes = rpn.anchors.sizes_px();
    let per_cell = b.int("per_cell", sizes.len() as i32);
    let (height, width) = (element(b, "height", grid, 0), element(b, "width", grid, 1));
    let shape = pack(b, "shape", &[height, width, per_cell], 0);
    let zero = b.float("zero", 0.0);
    let zeros = filled(b, shape, zero); // [h, w, a]
    let mut low = Vec::new();
    let mut high = Vec::new();
    for (side, (count, places)) in [(height, [-1, 1, 1]), (width, [1, -1, 1])].into_iter().enumerate() {
        b.within(["y", "x"][side], |b| {
            let cells = range(b, count);
            let cells = cast(b, "ToFloat", cells, DtFloat);
            let stride = b.float("stride", rpn.anchors.stride_px[side]);
            let offset = b.float("offset", rpn.anchors.offset_px[side]);
            let centres = b.same("mul", "Mul", &[cells, stride]);
            let centres = b.same("add", "Add", &[centres, offset]);
            let centres = reshape(b, "Reshape", centres, &places);
            let centres = b.same("centres", "Add", &[zeros, centres]); // [h, w, a]
            let halves: Vec<f32> = sizes.iter().map(|s| 0.5 * s[side]).collect();
            let halves = b.floats("halves", &[sizes.len() as i64], &halves);
            low.push(b.same("low", "Sub", &[centres, halves]));
            high.push(b.same("high", "Add", &[centres, halves]));
        });
    }
    let corners = [low[0], low[1], high[0], high[1]];
    let boxes = pack(b, "stack", &corners, 3); // [h, w, a, 4]
    reshape(b, "boxes", boxes, &[-1, 4])
}

/// Boxes `[..., 4]` of `rank` dimensions by their centres and sizes.
fn centred(b: &mut Builder, boxes: Value, rank: usize) -> Centred {
    let low = columns(b, "low", boxes, rank, [0, 2]);
    let high = columns(b, "high", boxes, rank, [2, 4]);
    let sizes = b.same("sizes", "Sub", &[high, low]);
    let half = b.float("half", 0.5);
    let reach = b.same("reach", "Mul", &[sizes, half]);
    Centred { centres: b.same("centers", "Add", &[low, reach]), sizes }
}

/// The proposals as the second stage sees them; `P` of each picture, zeros beyond the last.
struct Proposed {
    max: usize,
    /// Normalized: `[N * P, 4]`.
    boxes: Value,
    /// In pixels, computed from the normalized ones as upstream does: `[N, P, 4]`.
    boxes_px: Value,
    /// Which picture each is of: `[N * P]`.
    pictures: Value,
}

impl Proposed {
    /// * `boxes_px`: `[N, P, 4]`.
    fn new(b: &mut Builder, frame: &Frame, boxes_px: Value, max: usize) -> Self {
        let normalized = b.same("ToNormalizedCoordinates", "Mul", &[boxes_px, frame.reciprocal]);
        let boxes_px = b.same("ToAbsoluteCoordinates", "Mul", &[normalized, frame.corners]);
        let boxes = reshape(b, "boxes", normalized, &[-1, 4]);
        let of_each = b.int("max_proposals", max as i32);
        let shape = pack(b, "pictures/shape", &[frame.pictures, of_each], 0);
        let zero = b.int("pictures/zero", 0);
        let zeros = filled(b, shape, zero); // [N, P]
        let numbers = range(b, frame.pictures);
        let numbers = reshape(b, "pictures/column", numbers, &[-1, 1]);
        let pictures = b.same("pictures/add", "Add", &[zeros, numbers]);
        Self { max, boxes, boxes_px, pictures: reshape(b, "pictures", pictures, &[-1]) }
    }
}

/// `[N * P, side[0], side[1], C]`.
fn crop(b: &mut Builder, map: Value, regions: &Proposed, boxes: Value, side: [i64; 2]) -> Value {
    let size = b.ints("crop_size", &[2], &side.map(|s| s as i32));
    let op = Op::new("CropAndResize", &[map, boxes, regions.pictures, size]).typed("T");
    b.add("CropAndResize", op.with("method", "bilinear").with("extrapolation_value", 0.0f32), DtFloat)
}

/// Averages each bin of each region over its own group of maps: `[N, h, w, bins * C] -> [N * P, C]`.
///
/// Source: upstream utils/ops.py, `position_sensitive_crop_regions` with `global_pool`.
fn position_sensitive(b: &mut Builder, maps: Value, regions: &Proposed, bins: [i64; 2], side: [i64; 2]) -> Value {
    let axis = b.int("split/axis", 3);
    let count = bins[0] * bins[1];
    let groups = b.add_many(
        "split",
        Op::new("Split", &[axis, maps]).with("T", DtFloat).with("num_split", count),
        &vec![DtFloat; count as usize],
    );
    let low = columns(b, "low", regions.boxes, 2, [0, 2]);
    let high = columns(b, "high", regions.boxes, 2, [2, 4]);
    let sides = b.same("sides", "Sub", &[high, low]);
    let divisor = b.floats("bins", &[2], &bins.map(|n| n as f32));
    let step = b.same("step", "RealDiv", &[sides, divisor]);
    let mut sum = None;
    for (i, group) in (0i64..).zip(groups) {
        let place = [i / bins[1], i % bins[1]].map(|p| p as f32);
        let bin = b.within(&format!("bin_{i}"), |b| {
            let corner = |b: &mut Builder, name: &str, at: [f32; 2]| {
                let at = b.floats(&format!("{name}/steps"), &[2], &at);
                let by = b.same(&format!("{name}/mul"), "Mul", &[step, at]);
                b.same(name, "Add", &[low, by])
            };
            let from = corner(b, "from", place);
            let to = corner(b, "to", place.map(|p| p + 1.0));
            let boxes = concat(b, "boxes", &[from, to], 1);
            crop(b, group, regions, boxes, [side[0] / bins[0], side[1] / bins[1]])
        });
        sum = Some(match sum {
            None => bin,
            Some(sum) => b.same("add", "Add", &[sum, bin]),
        });
    }
    let sum = sum.unwrap_or(maps);
    let count = b.float("count", count as f32);
    let mean = b.same("truediv", "RealDiv", &[sum, count]);
    let axes = b.ints("Mean/axes", &[2], &[1, 2]);
    b.add("Mean", Op::new("Mean", &[mean, axes]).typed("T").with("Tidx", DtInt32).with("keep_dims", false), DtFloat)
}

/// Decodes, scores and selects.
///
/// * `raw`: encodings `[N * P, K * 4]` and logits `[N * P, K + 1]`.
fn classify(b: &mut Builder, classifier: &BoxClassifier, frame: &Frame, regions: &Proposed, raw: [Value; 2]) -> Found {
    let num_classes = classifier.num_classes;
    let (p, k) = (regions.max as i32, num_classes as i32);
    let codes = reshape(b, "Reshape", raw[0], &[-1, p, k, 4]); // [N, P, K, 4]
    let logits = reshape(b, "Reshape_1", raw[1], &[-1, p, k + 1]); // [N, P, K + 1]
    let boxes = b.within("Decode", |b| {
        let proposals = reshape(b, "proposals", regions.boxes_px, &[-1, p, 1, 4]);
        let anchors = centred(b, proposals, 4); // [N, P, 1, 2]
        parts::decode(b, &classifier.coder, codes, 4, anchors)
    });
    let scores = parts::convert_scores(b, classifier.converter, num_classes, logits);
    b.within("BatchMultiClassNonMaxSuppression", |b| {
        let boxes = clip(b, boxes, frame.own_corners);
        // Suppression is done on normalized boxes, as upstream does it. What was padded has no area, and is dropped.
        let boxes = b.same("ChangeCoordinateFrame", "Mul", &[boxes, frame.own_reciprocal]);
        suppress(b, &Suppression { num_classes, boxes_by_class: true, nms: classifier.nms }, boxes, scores)
    })
}
