//! A Faster R-CNN or R-FCN as an ONNX graph: pictures of any size in, detections out.

use anyhow::Result;

use super::builder::{Attribute, Builder, Value};
use super::network::write_network;
use super::parts::{self, Centred, cast, columns, concat, range, reshape, rows, side};
use super::pictures::{Frame, prepare};
use super::suppression::{Found, Suppression, suppress};
use crate::export::layers::{ReadVariable, input, output};
use crate::models::DetectionModel;
use crate::models::box_classifier::{BoxClassifier, Regions};
use crate::models::faster_rcnn::FasterRcnn;
use crate::models::post_processing::ScoreConverter;
use crate::models::rpn::Rpn;
use crate::net::graph::{Graph, NodeId, Op, Padding, Window};
use crate::proto::onnx::ModelProto;
use crate::proto::onnx::tensor_proto::DataType;

/// A coordinate of GridSample that touches no cell of a map of any size.
const FAR: f32 = -4.0;

/// The model: `image_tensor` ([`parts::image_tensor`]) to the four [`parts::outputs`].
///
/// * `metadata`: what readers may ask the file for.
///
/// # Errors
/// If the parts of `model` do not fit together or a variable cannot be read.
pub fn onnx(model: &FasterRcnn, variables: &ReadVariable, metadata: &[(&str, String)]) -> Result<ModelProto> {
    let mut b = Builder::new();
    let pictures = parts::image_tensor(&mut b);
    let prepared = b.within("Preprocessor", |b| prepare(b, model.resizer(), &model.pixels(), pictures));
    let frame = b.within("Frame", |b| Frame::new(b, &prepared));

    let first = model.first_graph();
    let wanted = [output(first, "map")?, output(first, "box_encodings")?, output(first, "objectness")?];
    let raw = write_network(&mut b, first, &[(input(first)?, prepared.pixels)], None, &wanted, variables)?;
    let map = raw[0]; // [N, C, h, w]
    let regions = b.within("FirstStagePostprocessor", |b| {
        let proposals = propose(b, model.rpn(), &frame, [raw[1], raw[2]]);
        Proposed::new(b, &frame, proposals.boxes, model.rpn().nms.max_total)
    });

    let classifier = model.classifier();
    let graph = &classifier.graph;
    let predictions = [output(graph, "refined_box_encodings")?, output(graph, "class_predictions")?];
    let raw = match classifier.regions {
        Regions::Crops { side } => {
            let cropped = Cropped::of(graph, side)?;
            let depths = predictions.map(|prediction| graph.channels(prediction));
            for_each_part(&mut b, (map, &cropped), &regions, side, depths, |b, crops| {
                write_network(b, graph, crops, Some([side; 2]), &predictions, variables)
            })?
        }
        Regions::PositionSensitive { bins, crop } => {
            let maps = write_network(&mut b, graph, &[(input(graph)?, map)], None, &predictions, variables)?;
            let shares = b.within("PSRoI", |b| bin_shares(b, maps[0], &regions, bins, crop));
            let k = classifier.num_classes as i64;
            let mut average = |name: &str, maps: Value, depth: i64| {
                b.within(name, |b| position_sensitive(b, maps, shares, [bins[0] * bins[1], depth]))
            };
            vec![average("PSRoI_locations", maps[0], k * 4), average("PSRoI_classes", maps[1], k + 1)]
        }
    };
    let found = b.within("SecondStagePostprocessor", |b| classify(b, classifier, &frame, &regions, [raw[0], raw[1]]));
    parts::outputs(&mut b, &found, classifier.nms.max_total);
    Ok(b.finish("faster_rcnn", metadata))
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
}

impl Proposed {
    /// * `boxes_px`: `[N, P, 4]`.
    fn new(b: &mut Builder, frame: &Frame, boxes_px: Value, max: usize) -> Self {
        let normalized = b.op("ToNormalizedCoordinates", "Mul", &[boxes_px, frame.reciprocal], &[]);
        let boxes_px = b.op("ToAbsoluteCoordinates", "Mul", &[normalized, frame.corners], &[]);
        Self { max, boxes: reshape(b, "boxes", normalized, &[-1, 4]), boxes_px }
    }
}

/// Where TensorFlow's `crop_and_resize` samples one side of the map.
struct Samples {
    /// In cells: `[..., count]`.
    places: Value,
    /// Which of them lie on the map: `[..., count]`.
    inside: Value,
}

impl Samples {
    /// * `cells`: the map's side, a row of one float. `low`, `high`: of the regions, normalized, `[..., 1]`.
    fn new(b: &mut Builder, cells: Value, [low, high]: [Value; 2], count: i64) -> Self {
        let one = b.float("one", 1.0);
        let last = b.op("last", "Sub", &[cells, one], &[]); // the last cell's coordinate
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
        let numbers = numbers(b, "numbers", 0..count);
        let places = b.op("mul", "Mul", &[numbers, step], &[]);
        let places = b.op("places", "Add", &[first, places], &[]);
        let zero = b.float("zero", 0.0);
        let not_before = b.op("NotBefore", "GreaterOrEqual", &[places, zero], &[]);
        let not_behind = b.op("NotBehind", "LessOrEqual", &[places, last], &[]);
        Self { places, inside: b.op("Inside", "And", &[not_before, not_behind], &[]) }
    }
}

/// Whole numbers as a row of floats.
fn numbers(b: &mut Builder, name: &str, range: std::ops::Range<i64>) -> Value {
    let values: Vec<f32> = range.map(|n| n as f32).collect();
    b.floats(name, &[values.len() as i64], &values)
}

/// What the second stage's network is given of the crops.
struct Cropped {
    /// The nodes that have the crops' values, of consecutive channels of the map.
    nodes: Vec<NodeId>,
    /// How many channels each of them has.
    channels: i64,
    /// The side of the windows of samples whose maximum they have.
    pool: i64,
}

impl Cropped {
    /// The pooling of the crops, where its windows fill a crop's `side`, or their channels' parts, where these are of one size: the crops
    /// themselves are then never written down. Else the crops.
    ///
    /// # Errors
    /// If `graph` has no input.
    fn of(graph: &Graph, side: i64) -> Result<Self> {
        let crops = input(graph)?;
        let readers: Vec<NodeId> =
            (0..graph.nodes().len()).map(NodeId).filter(|&id| graph.node(id).inputs.contains(&crops)).collect();
        if let [reader] = readers[..]
            && let Op::MaxPool(window) = graph.node(reader).op
            && window == Window::square(window.kernel[0], window.kernel[0], Padding::Valid)
            && side % window.kernel[0] == 0
        {
            return Ok(Self { nodes: vec![reader], channels: graph.channels(crops), pool: window.kernel[0] });
        }
        let channels = readers.first().map_or(0, |&reader| graph.channels(reader));
        let is_part = |(i, &reader): (usize, &NodeId)| {
            let channel = i as i64 * channels;
            graph.channels(reader) == channels && graph.node(reader).op == Op::Slice { row: 0, column: 0, channel }
        };
        let all = readers.len() as i64 * channels == graph.channels(crops);
        let (nodes, channels) = if all && readers.iter().enumerate().all(is_part) {
            (readers, channels)
        } else {
            (vec![crops], graph.channels(crops))
        };
        Ok(Self { nodes, channels, pool: 1 })
    }
}

/// How many samples of a channel are taken at once. onnxruntime goes through its plan of them, 56 bytes each, for every channel.
const SAMPLES_AT_ONCE: i64 = 6000;
/// How many regions at least: the second stage's matrix products need some rows.
const REGIONS_AT_ONCE: i64 = 8;

/// The second stage of every region: `classify` is given the crops of some regions at a time, whose values then stay in the processor's caches,
/// and need a fraction of the memory. Its results `[regions, depth]` become `[N * P, depth]`.
///
/// * `map`: `[N, C, h, w]`. `side`: samples down and across a region, a multiple of the pooling's. `depths`: of the results.
///
/// # Errors
/// Those of `classify`.
fn for_each_part(
    b: &mut Builder,
    (map, cropped): (Value, &Cropped),
    regions: &Proposed,
    side: i64,
    depths: [i64; 2],
    classify: impl FnOnce(&mut Builder, &[(NodeId, Value)]) -> Result<Vec<Value>>,
) -> Result<Vec<Value>> {
    let (of_each, windows) = (regions.max as i64, (side / cropped.pool).pow(2));
    let (parts, at_once) = parts_of(of_each, (SAMPLES_AT_ONCE / (side * side)).max(REGIONS_AT_ONCE));
    let (grids, maps) = b.within("CropAndResize", |b| {
        let mut grid = sampling_grid(b, map, regions, [side / cropped.pool, cropped.pool]);
        if parts * at_once > of_each {
            let pads = b.ints("pads", &[8], &[0, 0, 0, 0, 0, 0, (parts * at_once - of_each) * windows, 0]);
            let far = b.float("far", FAR);
            grid = b.op("Pad", "Pad", &[grid, pads, far], &[]);
        }
        let grid = reshape(b, "parts", grid, &[-1, cropped.pool.pow(2), parts, at_once * windows, 2]);
        let grids = b.op("parts_first", "Transpose", &[grid], &[Attribute::ints("perm", &[2, 0, 1, 3, 4])]);
        let maps = match cropped.nodes.len() {
            1 => vec![map],
            count => {
                let split = b.ints("channels/split", &[count as i64], &vec![cropped.channels; count]);
                b.ops("channels", "Split", &[map, split], &[Attribute::int("axis", 1)], count)
            }
        };
        (grids, maps)
    });
    let mut result = Ok(());
    let found = b.for_each("SecondStage", (grids, parts), &[DataType::Float; 2], |b, grid| {
        let crops: Vec<(NodeId, Value)> = b.within("CropAndResize", |b| {
            let crop = |map| crop_and_resize(b, map, grid, [at_once, cropped.channels, side / cropped.pool, cropped.pool]);
            cropped.nodes.iter().copied().zip(maps.into_iter().map(crop)).collect()
        });
        classify(b, &crops).unwrap_or_else(|error| {
            result = Err(error);
            vec![]
        })
    });
    result?;
    // [parts, N * at_once, depth]
    let of_all = |(found, depth): (Value, i64)| {
        b.within("regions", |b| {
            let found = reshape(b, "parts", found, &[parts, -1, at_once, depth]);
            let found = b.op("pictures_first", "Transpose", &[found], &[Attribute::ints("perm", &[1, 0, 2, 3])]);
            let found = reshape(b, "all", found, &[-1, parts * at_once, depth]);
            let [begin, end, axis] = [("begin", 0), ("end", of_each), ("axis", 1)].map(|(part, v)| b.ints(part, &[1], &[v]));
            let found = b.op("Slice", "Slice", &[found, begin, end, axis], &[]);
            reshape(b, "rows", found, &[-1, depth])
        })
    };
    Ok(found.into_iter().zip(depths).map(of_all).collect())
}

/// Where the samples of all regions lie on the map, as GridSample has it: `[N, pool * pool, P * cells * cells, 2]` as x, y.
///
/// * `[cells, pool]`: windows down and across a region, and samples down and across a window.
fn sampling_grid(b: &mut Builder, map: Value, regions: &Proposed, [cells, pool]: [i64; 2]) -> Value {
    let of_each = regions.max as i64;
    let sides = [(0, "y", [-1, pool, 1, of_each, cells, 1, 1]), (1, "x", [-1, 1, pool, of_each, 1, cells, 1])];
    let [y, x] = sides.map(|(i, name, across)| {
        b.within(name, |b| {
            let cells_of_map = map_side(b, map, i);
            let ends_of = [("low", i), ("high", i + 2)].map(|(name, at)| columns(b, name, regions.boxes, [at, at + 1])); // [R, 1]
            let samples = Samples::new(b, cells_of_map, ends_of, cells * pool);
            // -1 is the edge before the first cell, half a cell from its middle, and 1 the edge behind the last.
            let (half, two, one) = (b.float("half", 0.5), b.float("two", 2.0), b.float("one", 1.0));
            let place = b.op("place/edge", "Add", &[samples.places, half], &[]);
            let width = b.op("cell", "Div", &[two, cells_of_map], &[]);
            let place = b.op("place/mul", "Mul", &[place, width], &[]);
            let place = b.op("place/sub", "Sub", &[place, one], &[]);
            let far = b.float("far", FAR);
            let place = b.op("place", "Where", &[samples.inside, place, far], &[]);
            let place = reshape(b, "place/windows", place, &[-1, of_each, cells, pool]);
            let place = b.op("place/in_window", "Transpose", &[place], &[Attribute::ints("perm", &[0, 3, 1, 2])]);
            let place = reshape(b, "place/across", place, &across);
            let shape = b.ints("shape", &[7], &[1, pool, pool, of_each, cells, cells, 1]);
            b.op("places", "Expand", &[place, shape], &[]) // [N, pool, pool, P, cells, cells, 1]
        })
    });
    let grid = concat(b, "grid", &[x, y], 6);
    reshape(b, "grid/windows", grid, &[0, pool * pool, of_each * cells * cells, 2])
}

/// TensorFlow's `crop_and_resize` of some regions, and the maximum of every square of `pool * pool` samples:
/// `[N, C, h, w] -> [N * regions, C, cells, cells]`.
///
/// GridSample takes the samples of many regions at once. It fades from the map's edge into zeros, where TensorFlow is 0 at once; so what
/// TensorFlow has as outside is sampled far off. (RoiAlign over boxes half a step larger gives the same, in twice the time or more.) The
/// samples come out channel by channel; their maximum is taken before they are turned round, when there are fewer to turn.
///
/// * `grid`: `[N, pool * pool, regions * cells * cells, 2]`.
fn crop_and_resize(b: &mut Builder, map: Value, grid: Value, [regions, channels, cells, pool]: [i64; 4]) -> Value {
    let attributes = [
        Attribute::text("mode", "bilinear"),
        Attribute::text("padding_mode", "zeros"),
        // onnxruntime has a quick way for this alone.
        Attribute::int("align_corners", 0),
    ];
    let mut samples = b.op("GridSample", "GridSample", &[map, grid], &attributes); // [N, C, pool * pool, regions * cells * cells]
    if pool > 1 {
        let attributes = [Attribute::ints("axes", &[2]), Attribute::int("keepdims", 0)];
        samples = b.op("MaxPool", "ReduceMax", &[samples], &attributes);
    }
    let samples = reshape(b, "regions", samples, &[-1, channels, regions, cells * cells]);
    let samples = b.op("regions_first", "Transpose", &[samples], &[Attribute::ints("perm", &[0, 2, 1, 3])]);
    reshape(b, "crops", samples, &[-1, channels, cells, cells])
}

/// In how few parts of `most` at most `count` goes, and how large the parts are then, the last perhaps not full.
fn parts_of(count: i64, most: i64) -> (i64, i64) {
    let parts = (count as u64).div_ceil(most as u64) as i64;
    (parts, (count as u64).div_ceil(parts as u64) as i64)
}

/// Height (0) or width (1) of a map `[N, C, h, w]`, a row of one float.
fn map_side(b: &mut Builder, map: Value, axis: i64) -> Value {
    let cells = side(b, "side", map, 2 + axis);
    cast(b, "side/ToFloat", cells, DataType::Float)
}

/// How much each cell of the map has in the mean of a bin's samples: `[N, bins, h * w, P]`, bins row by row.
///
/// Bilinear samples are sums over cells, and a bin's form a grid, so that a cell's share in their mean is its row's times its column's. One
/// matrix product with these shares then does what `crop_and_resize` and a mean do for each bin, and need not write the samples down.
///
/// * `map`: of the height and width in question. `size`: how many samples a region has down and across, in all bins.
///
/// Source: upstream utils/ops.py, `position_sensitive_crop_regions`.
fn bin_shares(b: &mut Builder, map: Value, regions: &Proposed, bins: [i64; 2], size: [i64; 2]) -> Value {
    let shares = [(0, "y", [2, 4]), (1, "x", [1, 3])].map(|(i, name, other)| {
        b.within(name, |b| {
            let (of, count) = (bins[i as usize], size[i as usize] / bins[i as usize]);
            let [low, high] = [("low", i), ("high", i + 2)].map(|(name, at)| columns(b, name, regions.boxes, [at, at + 1])); // [R, 1]
            let way = b.op("sides", "Sub", &[high, low], &[]);
            let divisor = b.float("bins", of as f32);
            let step = b.op("bin", "Div", &[way, divisor], &[]);
            let ends_of = [("from", 0), ("to", 1)].map(|(name, first)| {
                let steps = numbers(b, &format!("{name}/steps"), first..of + first);
                let by = b.op(&format!("{name}/mul"), "Mul", &[step, steps], &[]);
                let end = b.op(name, "Add", &[low, by], &[]); // [R, bins]
                reshape(b, &format!("{name}/column"), end, &[-1, of, 1])
            });
            let cells = map_side(b, map, i);
            let samples = Samples::new(b, cells, ends_of, count); // [R, bins, count]
            let places = reshape(b, "places/column", samples.places, &[-1, of, count, 1]);
            let inside = reshape(b, "Inside/column", samples.inside, &[-1, of, count, 1]);
            let inside = cast(b, "Inside/ToFloat", inside, DataType::Float);
            let cells = side(b, "cells/count", map, 2 + i);
            let cells = range(b, "cells", cells);
            let cells = cast(b, "cells/ToFloat", cells, DataType::Float);
            let away = b.op("away", "Sub", &[places, cells], &[]); // [R, bins, count, cells]
            let away = b.op("distance", "Abs", &[away], &[]);
            let one = b.float("one", 1.0);
            let near = b.op("near", "Sub", &[one, away], &[]);
            let near = b.op("share", "Relu", &[near], &[]);
            let near = b.op("share/inside", "Mul", &[near, inside], &[]);
            let mean = b.op("Mean", "ReduceMean", &[near], &[Attribute::ints("axes", &[2]), Attribute::int("keepdims", 0)]);
            let mean = b.op("regions_last", "Transpose", &[mean], &[Attribute::ints("perm", &[1, 2, 0])]);
            let mean = reshape(b, "by_picture", mean, &[0, 0, -1, regions.max as i64]);
            let mean = b.op("picture_first", "Transpose", &[mean], &[Attribute::ints("perm", &[2, 0, 1, 3])]); // [N, bins, cells, P]
            let other = b.ints("other", &[2], &other);
            b.op("Unsqueeze", "Unsqueeze", &[mean, other], &[])
        })
    });
    let shares = b.op("shares", "Mul", &shares, &[]); // [N, bins, bins, h, w, P]
    reshape(b, "shares/cells", shares, &[0, bins[0] * bins[1], -1, regions.max as i64])
}

/// Averages each bin of each region over its own group of maps: `[N, bins * C, h, w] -> [N * P, C]`.
///
/// * `shares`: [`bin_shares`].
///
/// Source: upstream utils/ops.py, `position_sensitive_crop_regions` with `global_pool`.
fn position_sensitive(b: &mut Builder, maps: Value, shares: Value, [bins, depth]: [i64; 2]) -> Value {
    let maps = reshape(b, "groups", maps, &[0, bins, depth, -1]); // [N, bins, C, h * w]
    let means = b.op("MatMul", "MatMul", &[maps, shares], &[]); // [N, bins, C, P]
    let mean = b.op("Mean", "ReduceMean", &[means], &[Attribute::ints("axes", &[1]), Attribute::int("keepdims", 0)]);
    let mean = b.op("transpose", "Transpose", &[mean], &[Attribute::ints("perm", &[0, 2, 1])]); // [N, P, C]
    reshape(b, "rows", mean, &[-1, depth])
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
        let boxes = parts::clip(b, boxes, frame.own_corners);
        // Suppression is done on normalized boxes, as upstream does it. What was padded has no area, and is dropped.
        let boxes = b.op("ChangeCoordinateFrame", "Mul", &[boxes, frame.own_reciprocal], &[]);
        suppress(b, &Suppression { boxes_by_class: true, nms: classifier.nms }, boxes, scores)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_few_and_even() {
        assert_eq!(parts_of(300, 30), (10, 30));
        assert_eq!(parts_of(20, 30), (1, 20));
        assert_eq!(parts_of(7, 3), (3, 3));
        assert_eq!(parts_of(31, 30), (2, 16));
    }
}
