//! A Faster R-CNN or R-FCN as an ONNX graph: pictures of any size in, detections out.

use anyhow::Result;

use super::builder::{Attribute, Builder, Value};
use super::network::write_network;
use super::parts::{self, Centred, cast, columns, concat, range, reshape, side};
use super::ssd::rows;
use super::suppression::{Found, Suppression, suppress};
use crate::data::resize::Resizer;
use crate::export::layers::{ReadVariable, output};
use crate::models::DetectionModel;
use crate::models::box_classifier::{BoxClassifier, Regions};
use crate::models::faster_rcnn::FasterRcnn;
use crate::models::post_processing::ScoreConverter;
use crate::models::rpn::Rpn;
use crate::proto::onnx::ModelProto;
use crate::proto::onnx::tensor_proto::DataType;

/// The model: `image_tensor` ([`parts::image_tensor`]) to the four [`parts::outputs`].
///
/// * `metadata`: what readers may ask the file for.
///
/// # Errors
/// If the parts of `model` do not fit together or a variable cannot be read.
pub fn onnx(model: &FasterRcnn, variables: &ReadVariable, metadata: &[(&str, String)]) -> Result<ModelProto> {
    let mut b = Builder::new();
    let pictures = parts::image_tensor(&mut b);
    let (pixels, size) = b.within("Preprocessor", |b| {
        let size = target_size(b, model.resizer(), pictures);
        let resized = b.within("ResizeImage", |b| parts::resize(b, pictures, size));
        (parts::scale_pixels(b, &model.pixels(), resized), size)
    });
    let frame = b.within("Frame", |b| Frame::new(b, pictures, size));

    let first = model.first_graph();
    let wanted = [output(first, "map")?, output(first, "box_encodings")?, output(first, "objectness")?];
    let raw = write_network(&mut b, first, pixels, &wanted, variables)?;
    let map = raw[0]; // [N, C, h, w]
    let regions = b.within("FirstStagePostprocessor", |b| {
        let proposals = propose(b, model.rpn(), &frame, [raw[1], raw[2]]);
        Proposed::new(b, &frame, proposals.boxes, model.rpn().nms.max_total)
    });

    let classifier = model.classifier();
    let graph = &classifier.graph;
    let wanted = [output(graph, "refined_box_encodings")?, output(graph, "class_predictions")?];
    let raw = match classifier.regions {
        Regions::Crops { side } => {
            let crops = b.within("CropAndResize", |b| {
                let samples = Samples::new(b, map, &regions, regions.boxes, [side; 2]);
                samples.crops(b, map) // [N * P, C, side, side]
            });
            write_network(&mut b, graph, crops, &wanted, variables)?
        }
        Regions::PositionSensitive { bins, crop } => {
            let maps = write_network(&mut b, graph, map, &wanted, variables)?;
            let mut average = |name: &str, maps: Value| b.within(name, |b| position_sensitive(b, maps, &regions, bins, crop));
            vec![average("PSRoI_locations", maps[0]), average("PSRoI_classes", maps[1])]
        }
    };
    let found = b.within("SecondStagePostprocessor", |b| classify(b, classifier, &frame, &regions, [raw[0], raw[1]]));
    parts::outputs(&mut b, &found, classifier.nms.max_total);
    Ok(b.finish("faster_rcnn", metadata))
}

/// The height and width that the pictures are resized to, each a row of one integer.
///
/// Source: upstream core/preprocessor.py, `resize_to_range`: float32, and rounding to even.
fn target_size(b: &mut Builder, resizer: Resizer, pictures: Value) -> [Value; 2] {
    let (min, max) = match resizer {
        Resizer::FixedShape { height, width } => return [height, width].map(|side| b.ints("size", &[1], &[side as i64])),
        Resizer::KeepAspectRatio { min, max } => (min, max),
    };
    b.within("ResizeToRange", |b| {
        let [height, width] = [(1, "height"), (2, "width")].map(|(axis, name)| {
            let side = side(b, name, pictures, axis);
            cast(b, &format!("{name}/ToFloat"), side, DataType::Float)
        });
        let short = b.op("short", "Min", &[height, width], &[]);
        let long = b.op("long", "Max", &[height, width], &[]);
        let one = b.float("one", 1.0);
        let mut scaled = |name: &str, to: usize, by: Value| {
            b.within(name, |b| {
                let to = b.float("to", to as f32);
                let factor = b.op("factor", "Div", &[to, by], &[]);
                [height, width].map(|side| {
                    let side = b.op("mul", "Mul", &[side, factor], &[]);
                    let side = b.op("Round", "Round", &[side], &[]);
                    b.op("Max", "Max", &[side, one], &[])
                })
            })
        };
        let (large, small) = (scaled("large", min, short), scaled("small", max, long));
        let longest = b.op("longest", "Max", &large, &[]);
        let limit = b.float("max_dimension", max as f32);
        let too_long = b.op("TooLong", "Greater", &[longest, limit], &[]);
        [0, 1].map(|i| {
            let side = b.op("Where", "Where", &[too_long, small[i], large[i]], &[]);
            cast(b, "ToInt", side, DataType::Int64)
        })
    })
}

/// The resized pictures.
struct Frame {
    /// How many: the `N` of the shapes, a row of one integer.
    pictures: Value,
    /// Height, width, height, width, as floats: `[4]`.
    corners: Value,
    /// One over each of them.
    reciprocal: Value,
}

impl Frame {
    fn new(b: &mut Builder, pictures: Value, [height, width]: [Value; 2]) -> Self {
        let pictures = side(b, "pictures", pictures, 0);
        let corners = concat(b, "corners", &[height, width, height, width], 0);
        let corners = cast(b, "corners/ToFloat", corners, DataType::Float);
        Self { pictures, corners, reciprocal: b.op("reciprocal", "Reciprocal", &[corners], &[]) }
    }
}

/// The best boxes of each picture, in pixels: `[N, P, 4]`, zeros beyond the last.
///
/// * `raw`: encodings `[N, a * 4, h, w]` and objectness `[N, a * 2, h, w]`.
fn propose(b: &mut Builder, rpn: &Rpn, frame: &Frame, raw: [Value; 2]) -> Found {
    let (codes, logits) = (rows(b, raw[0], 4), rows(b, raw[1], 2)); // [N, A, 4], [N, A, 2]
    let anchors = b.within("GridAnchorGenerator", |b| {
        let boxes = grid_anchors(b, rpn, raw[0]);
        let boxes = parts::clip(b, boxes, frame.corners);
        Centred::of(b, boxes)
    });
    let boxes = b.within("Decode", |b| parts::decode(b, &rpn.coder, codes, anchors));
    let scores = parts::convert_scores(b, ScoreConverter::Softmax { logit_scale: 1.0 }, 1, logits);
    b.within("BatchMultiClassNonMaxSuppression", |b| {
        let boxes = parts::clip(b, boxes, frame.corners);
        suppress(b, &Suppression { boxes_by_class: false, nms: rpn.nms }, boxes, scores)
    })
}

/// Every anchor of the cells of `map`, in pixels: `[A, 4]`.
fn grid_anchors(b: &mut Builder, rpn: &Rpn, map: Value) -> Value {
    let sizes = rpn.anchors.sizes_px();
    let (height, width) = (side(b, "height", map, 2), side(b, "width", map, 3));
    let per_cell = b.ints("per_cell", &[1], &[sizes.len() as i64]);
    let one = b.ints("one", &[1], &[1]);
    let shape = concat(b, "shape", &[height, width, per_cell, one], 0);
    let mut edges = Vec::new();
    for sign in [-0.5, 0.5] {
        for (side, (count, places)) in [(height, [-1, 1, 1, 1]), (width, [1, -1, 1, 1])].into_iter().enumerate() {
            b.within(["y", "x"][side], |b| {
                let cells = range(b, "cells", count);
                let cells = cast(b, "ToFloat", cells, DataType::Float);
                let stride = b.float("stride", rpn.anchors.stride_px[side]);
                let offset = b.float("offset", rpn.anchors.offset_px[side]);
                let centres = b.op("mul", "Mul", &[cells, stride], &[]);
                let centres = b.op("add", "Add", &[centres, offset], &[]);
                let centres = reshape(b, "centres", centres, &places);
                let halves: Vec<f32> = sizes.iter().map(|s| sign * s[side]).collect();
                let halves = b.floats("halves", &[1, 1, sizes.len() as i64, 1], &halves);
                let edge = b.op("edge", "Add", &[centres, halves], &[]);
                edges.push(b.op("edges", "Expand", &[edge, shape], &[])); // [h, w, a, 1]
            });
        }
    }
    let boxes = concat(b, "stack", &edges, 3); // [h, w, a, 4]
    reshape(b, "boxes", boxes, &[-1, 4])
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
        let normalized = b.op("ToNormalizedCoordinates", "Mul", &[boxes_px, frame.reciprocal], &[]);
        let boxes_px = b.op("ToAbsoluteCoordinates", "Mul", &[normalized, frame.corners], &[]);
        let numbers = range(b, "numbers", frame.pictures);
        let numbers = reshape(b, "numbers/column", numbers, &[-1, 1]);
        let of_each = b.ints("max_proposals", &[1], &[max as i64]);
        let shape = concat(b, "pictures/shape", &[frame.pictures, of_each], 0);
        let pictures = b.op("pictures", "Expand", &[numbers, shape], &[]); // [N, P]
        Self {
            max,
            boxes: reshape(b, "boxes", normalized, &[-1, 4]),
            boxes_px,
            pictures: reshape(b, "pictures/row", pictures, &[-1]),
        }
    }
}

/// Where TensorFlow's `crop_and_resize` samples the regions.
///
/// It samples from corner to corner, and is 0 outside of the map; RoiAlign samples the middles of bins, and goes on with the map's edge. So
/// RoiAlign gets boxes half a step larger on every side, and what TensorFlow has as outside is struck out.
struct Samples {
    size: [i64; 2],
    /// What RoiAlign takes: `[R, 4]`, in cells, x first.
    regions: Value,
    /// Which picture each region is of: `[R]`.
    pictures: Value,
    /// 1 for a sample on the map, 0 for one outside: `[R, 1, size[0], size[1]]`.
    share: Value,
}

impl Samples {
    /// * `map`: `[N, C, h, w]`. `boxes`: normalized, `[R, 4]`. `size`: samples down and across.
    fn new(b: &mut Builder, map: Value, regions: &Proposed, boxes: Value, size: [i64; 2]) -> Self {
        let (mut starts, mut ends, mut inside) = (Vec::new(), Vec::new(), Vec::new());
        for (i, name, across) in [(0, "y", [-1, 1, size[0], 1]), (1, "x", [-1, 1, 1, size[1]])] {
            b.within(name, |b| {
                let cells = side(b, "side", map, 2 + i);
                let cells = cast(b, "side/ToFloat", cells, DataType::Float);
                let one = b.float("one", 1.0);
                let last = b.op("last", "Sub", &[cells, one], &[]); // the last cell's coordinate
                let (low, high) = (columns(b, "low", boxes, [i, i + 1]), columns(b, "high", boxes, [i + 2, i + 3])); // [R, 1]
                let count = size[i as usize];
                let (first, step) = if count > 1 {
                    let way = b.op("way", "Sub", &[high, low], &[]);
                    let way = b.op("way_px", "Mul", &[way, last], &[]);
                    let steps = b.float("steps", (count - 1) as f32);
                    (b.op("first", "Mul", &[low, last], &[]), b.op("step", "Div", &[way, steps], &[]))
                } else {
                    // One sample lies in the middle.
                    let sum = b.op("sum", "Add", &[low, high], &[]);
                    let half = b.float("half", 0.5);
                    let middle = b.op("middle", "Mul", &[half, sum], &[]);
                    let none = b.float("none", 0.0);
                    let step = b.op("step", "Mul", &[sum, none], &[]);
                    (b.op("first", "Mul", &[middle, last], &[]), step)
                };
                let numbers: Vec<f32> = (0..count).map(|n| n as f32).collect();
                let numbers = b.floats("numbers", &[1, count], &numbers);
                let places = b.op("mul", "Mul", &[numbers, step], &[]);
                let places = b.op("places", "Add", &[first, places], &[]); // [R, count]
                let zero = b.float("zero", 0.0);
                let not_before = b.op("NotBefore", "GreaterOrEqual", &[places, zero], &[]);
                let not_behind = b.op("NotBehind", "LessOrEqual", &[places, last], &[]);
                let within = b.op("Inside", "And", &[not_before, not_behind], &[]);
                inside.push(reshape(b, "Inside/across", within, &across));

                let half = b.float("half", 0.5);
                let reach = b.op("reach", "Mul", &[step, half], &[]);
                let start = b.op("start", "Sub", &[first, reach], &[]);
                // RoiAlign counts from the edge of the first cell, half a cell before its middle.
                starts.push(b.op("start/edge", "Add", &[start, half], &[]));
                let all = b.float("count", count as f32);
                let way = b.op("all", "Mul", &[step, all], &[]);
                ends.push(b.op("end/edge", "Add", &[starts[i as usize], way], &[]));
            });
        }
        let corners = [starts[1], starts[0], ends[1], ends[0]];
        let inside = b.op("Inside", "And", &inside, &[]);
        let share = cast(b, "Inside/ToFloat", inside, DataType::Float);
        Self { size, regions: concat(b, "regions", &corners, 1), pictures: regions.pictures, share }
    }

    /// `[N, C, h, w] -> [R, C, size[0], size[1]]`.
    fn crops(&self, b: &mut Builder, map: Value) -> Value {
        let crops = align(b, "RoiAlign", map, [self.regions, self.pictures], self.size, 1);
        // A product, since onnxruntime takes four times as long for Where; and of all, since it copies all to replace a few.
        b.op("crops", "Mul", &[crops, self.share], &[])
    }

    /// The mean of each region's samples, as many down as across: `[N, C, h, w] -> [R, C, 1, 1]`.
    ///
    /// RoiAlign sums samples without writing them down. Those few regions that have some outside, boxes at the picture's edge where rounding
    /// takes the last sample past it, are done again one sample at a time.
    fn means(&self, b: &mut Builder, map: Value) -> Value {
        let means = align(b, "RoiAlign", map, [self.regions, self.pictures], [1, 1], self.size[0]);
        let axes = [Attribute::ints("axes", &[1, 2, 3]), Attribute::int("keepdims", 0)];
        let whole = b.op("Whole", "ReduceMin", &[self.share], &axes); // [R]
        let whole = cast(b, "Whole/ToBool", whole, DataType::Bool);
        let cut = b.op("Cut", "Not", &[whole], &[]);
        let edge = b.op("edge/NonZero", "NonZero", &[cut], &[]); // [1, E]
        let edge = reshape(b, "edge", edge, &[-1]);
        let [regions, pictures, share] = [("regions", self.regions), ("pictures", self.pictures), ("share", self.share)]
            .map(|(name, x)| b.op(&format!("edge/{name}"), "Gather", &[x, edge], &[Attribute::int("axis", 0)]));
        let again = Self { size: self.size, regions, pictures, share };
        let crops = b.within("edge", |b| again.crops(b, map)); // [E, C, size[0], size[1]]
        let again = b.op("edge/Mean", "ReduceMean", &[crops], &[Attribute::ints("axes", &[2, 3])]);
        let places = reshape(b, "edge/column", edge, &[-1, 1]);
        b.op("means", "ScatterND", &[means, places, again], &[])
    }
}

/// Bilinear samples, the mean of `sampling` times `sampling` for each of `size`: `[N, C, h, w] -> [R, C, size[0], size[1]]`.
///
/// * `regions`: the boxes in cells, `[R, 4]`, x first; and whose they are, `[R]`.
fn align(b: &mut Builder, name: &str, map: Value, regions: [Value; 2], size: [i64; 2], sampling: i64) -> Value {
    let attributes = [
        Attribute::text("mode", "avg"),
        Attribute::text("coordinate_transformation_mode", "half_pixel"),
        Attribute::int("output_height", size[0]),
        Attribute::int("output_width", size[1]),
        Attribute::int("sampling_ratio", sampling),
        Attribute::float("spatial_scale", 1.0),
    ];
    b.op(name, "RoiAlign", &[map, regions[0], regions[1]], &attributes)
}

/// Averages each bin of each region over its own group of maps: `[N, bins * C, h, w] -> [N * P, C]`.
///
/// Source: upstream utils/ops.py, `position_sensitive_crop_regions` with `global_pool`.
fn position_sensitive(b: &mut Builder, maps: Value, regions: &Proposed, bins: [i64; 2], size: [i64; 2]) -> Value {
    let count = bins[0] * bins[1];
    let groups = b.ops("split", "Split", &[maps], &[Attribute::int("axis", 1)], count as usize);
    let (low, high) = (columns(b, "low", regions.boxes, [0, 2]), columns(b, "high", regions.boxes, [2, 4]));
    let sides = b.op("sides", "Sub", &[high, low], &[]);
    let divisor = b.floats("bins", &[2], &bins.map(|n| n as f32));
    let step = b.op("step", "Div", &[sides, divisor], &[]);
    let size = [size[0] / bins[0], size[1] / bins[1]];
    let bin = |b: &mut Builder, (i, group): (i64, Value)| {
        let place = [i / bins[1], i % bins[1]].map(|p| p as f32);
        b.within(&format!("bin_{i}"), |b| {
            let mut corner = |name: &str, at: [f32; 2]| {
                let at = b.floats(&format!("{name}/steps"), &[2], &at);
                let by = b.op(&format!("{name}/mul"), "Mul", &[step, at], &[]);
                b.op(name, "Add", &[low, by], &[])
            };
            let (from, to) = (corner("from", place), corner("to", place.map(|p| p + 1.0)));
            let boxes = concat(b, "boxes", &[from, to], 1);
            let samples = Samples::new(b, group, regions, boxes, size);
            if size[0] == size[1] {
                return samples.means(b, group);
            }
            // RoiAlign has one number of samples for both ways.
            let crops = samples.crops(b, group);
            b.op("Mean", "ReduceMean", &[crops], &[Attribute::ints("axes", &[2, 3])])
        })
    };
    let parts: Vec<Value> = (0i64..).zip(groups).map(|group| bin(b, group)).collect();
    let sum = b.op("sum", "Sum", &parts, &[]);
    let count = b.float("count", count as f32);
    let mean = b.op("div", "Div", &[sum, count], &[]); // [N * P, C, 1, 1]
    b.op("Mean", "ReduceMean", &[mean], &[Attribute::ints("axes", &[2, 3]), Attribute::int("keepdims", 0)])
}

/// Decodes, scores and selects.
///
/// * `raw`: encodings `[N * P, K * 4]` and logits `[N * P, K + 1]`.
fn classify(b: &mut Builder, classifier: &BoxClassifier, frame: &Frame, regions: &Proposed, raw: [Value; 2]) -> Found {
    let num_classes = classifier.num_classes;
    let (p, k) = (regions.max as i64, num_classes as i64);
    let codes = reshape(b, "codes", raw[0], &[-1, p, k, 4]); // [N, P, K, 4]
    let logits = reshape(b, "logits", raw[1], &[-1, p, k + 1]); // [N, P, K + 1]
    let boxes = b.within("Decode", |b| {
        let proposals = reshape(b, "proposals", regions.boxes_px, &[-1, p, 1, 4]);
        let anchors = Centred::of(b, proposals); // [N, P, 1, 2]
        parts::decode(b, &classifier.coder, codes, anchors)
    });
    let scores = parts::convert_scores(b, classifier.converter, num_classes, logits);
    b.within("BatchMultiClassNonMaxSuppression", |b| {
        let boxes = parts::clip(b, boxes, frame.corners);
        // Suppression is done on normalized boxes, as upstream does it. What was padded has no area, and is dropped.
        let boxes = b.op("ChangeCoordinateFrame", "Mul", &[boxes, frame.reciprocal], &[]);
        suppress(b, &Suppression { boxes_by_class: true, nms: classifier.nms }, boxes, scores)
    })
}
