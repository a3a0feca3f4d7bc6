//! An SSD as a frozen graph: pictures of any size in, detections out (upstream exporter.py, meta_architectures/ssd_meta_arch.py).

use anyhow::Result;

use super::builder::{Builder, Op, Value};
use super::network::write_network;
use super::ops::{self, cast, concat, element, filled, height_and_width, pack, range, reshape, shape_of};
use super::parts::{self, Centred};
use super::pictures::{Frame, prepare};
use super::suppression::{Suppression, suppress};
use crate::detection::anchors::SsdAnchors;
use crate::detection::boxes::BBox;
use crate::export::layers::ReadVariable;
use crate::export::ssd::{Head, SsdExport};
use crate::net::graph::NodeId;
use crate::proto::tensorflow::DataType::{DtFloat, DtInt32};
use crate::proto::tensorflow::GraphDef;

/// The frozen graph: `image_tensor` ([`parts::image_tensor`]) to the four [`parts::outputs`].
///
/// # Errors
/// If the parts of `model` do not fit together or a variable cannot be read.
pub fn frozen_graph(model: &SsdExport, variables: &ReadVariable) -> Result<GraphDef> {
    model.check()?;
    let mut b = Builder::new();
    let picture = parts::image_tensor(&mut b);
    let prepared = b.within("Preprocessor", |b| prepare(b, model.resizer, &model.pixels, picture));
    let wanted: Vec<NodeId> = model.heads.iter().flat_map(|head| [head.boxes, head.classes]).collect();
    let raw = write_network(&mut b, model.graph, prepared.pixels, &wanted, variables)?;
    let sizes = model.resizer.fixed_size().map(|size| model.graph.sizes(size.map(|side| side as i64)));
    let rows = |b: &mut Builder, name: &str, head: &Head, map: Value, columns: i32| match &sizes {
        Some(sizes) => {
            let [height, width] = sizes[head.boxes.0];
            let anchors = height * width * model.graph.channels(head.boxes) / 4;
            reshape(b, name, map, &[-1, anchors as i32, columns])
        }
        None => {
            let sides = shape_of(b, map);
            let pictures = element(b, "pictures", sides, 0);
            ops::rows(b, name, (pictures, map), columns)
        }
    };
    let columns = model.num_classes as i32 + 1;
    let (mut codes, mut logits) = (Vec::new(), Vec::new());
    for ((i, head), pair) in model.heads.iter().enumerate().zip(raw.chunks_exact(2)) {
        b.within(&format!("BoxPredictor_{i}"), |b| {
            codes.push(rows(b, "Reshape", head, pair[0], 4)); // [N, a_i, 4]
            logits.push(rows(b, "Reshape_1", head, pair[1], columns)); // [N, a_i, K + 1]
        });
    }
    let codes = concat(&mut b, "concat", &codes, 1); // [N, A, 4]
    let logits = concat(&mut b, "concat_1", &logits, 1); // [N, A, K + 1]
    let with = Suppression { num_classes: model.num_classes, boxes_by_class: false, nms: model.nms };
    let found = b.within("Postprocessor", |b| {
        let boxes = b.within("Decode", |b| {
            let maps = raw.iter().copied().step_by(2);
            let anchors = match model.resizer.fixed_size() {
                Some(_) => centred(b, model.anchors),
                None => grid_anchors(b, model.shapes, maps, prepared.frame),
            };
            parts::decode(b, &model.coder, codes, 3, anchors)
        });
        let scores = parts::convert_scores(b, model.scores, model.num_classes, logits);
        b.within("BatchMultiClassNonMaxSuppression", |b| {
            let zero = b.float("zero", 0.0);
            if prepared.own == prepared.frame {
                let one = b.float("one", 1.0);
                let boxes = parts::clip(b, boxes, zero, one);
                return suppress(b, &with, boxes, scores);
            }
            let frame = b.within("Frame", |b| Frame::new(b, picture, &prepared));
            // The picture's share of the frame, which boxes are clipped to and then measured by.
            let window = b.same("ClipWindow", "RealDiv", &[frame.own_corners, frame.corners]);
            let boxes = parts::clip(b, boxes, zero, window);
            let one = b.float("one", 1.0);
            let scale = b.same("truediv", "RealDiv", &[one, window]);
            let boxes = b.same("ChangeCoordinateFrame", "Mul", &[boxes, scale]);
            suppress(b, &with, boxes, scores)
        })
    });
    parts::outputs(&mut b, &found);
    Ok(b.finish())
}

/// The anchors as constants, `[A, 2]` each.
fn centred(b: &mut Builder, anchors: &[BBox]) -> Centred {
    let count = anchors.len() as i64;
    let (mut centres, mut sizes) = (Vec::with_capacity(anchors.len() * 2), Vec::with_capacity(anchors.len() * 2));
    for [ymin, xmin, ymax, xmax] in anchors {
        let (h, w) = (ymax - ymin, xmax - xmin);
        centres.extend([ymin + h / 2.0, xmin + w / 2.0]);
        sizes.extend([h, w]);
    }
    Centred { centres: b.floats("anchors/centers", &[count, 2], &centres), sizes: b.floats("anchors/sizes", &[count, 2], &sizes) }
}

/// The anchors of maps whose sizes are known when they come, `[A, 2]` each.
///
/// * `maps`: of each layer, `[N, h, w, _]`; `size`: `[height, width]` of the pictures.
///
/// Source: detection/anchors.rs, `SsdAnchors::generate`.
fn grid_anchors(b: &mut Builder, shapes: &SsdAnchors, maps: impl Iterator<Item = Value>, size: Value) -> Centred {
    let size = cast(b, "size/ToFloat", size, DtFloat);
    let axis = b.int("axis", 0);
    let shorter = b.add("shorter", Op::new("Min", &[size, axis]).typed("T").with("Tidx", DtInt32), DtFloat);
    let square = b.same("square", "RealDiv", &[shorter, size]);
    let base = b.floats("base_size", &[2], &shapes.base_size());
    let base = b.same("base", "Mul", &[square, base]); // [2]
    let (mut centres, mut sizes) = (Vec::new(), Vec::new());
    for (layer, map) in maps.enumerate() {
        b.within(&format!("MultipleGridAnchorGenerator_{layer}"), |b| {
            let grid = height_and_width(b, map);
            let share = |b: &mut Builder, name: &str, px: [f32; 2]| {
                let px = b.floats(&format!("{name}/px"), &[2], &px);
                b.same(name, "RealDiv", &[px, size])
            };
            let stride = match shapes.stride_px(layer) {
                Some(px) => share(b, "stride", px),
                None => {
                    let cells = cast(b, "grid/ToFloat", grid, DtFloat);
                    let one = b.float("one", 1.0);
                    b.same("stride", "RealDiv", &[one, cells])
                }
            };
            let offset = match shapes.offset_px(layer) {
                Some(px) => share(b, "offset", px),
                None => {
                    let half = b.float("half", 0.5);
                    b.same("offset", "Mul", &[half, stride])
                }
            };
            let own = shapes.shapes(layer);
            let per_cell = b.int("per_cell", own.len() as i32);
            let sides = [0, 1].map(|i| element(b, ["height", "width"][i as usize], grid, i));
            let cells = pack(b, "shape", &[sides[0], sides[1], per_cell], 0);
            let zero = b.float("zero", 0.0);
            let zeros = filled(b, cells, zero); // [h, w, a]
            let (mut centre, mut extent) = (Vec::new(), Vec::new());
            for (i, places) in [(0usize, [-1, 1, 1]), (1, [1, -1, 1])] {
                b.within(["y", "x"][i], |b| {
                    let [stride, offset, base] = [("stride", stride), ("offset", offset), ("base", base)]
                        .map(|(name, row)| element(b, name, row, i as i32));
                    let numbers = range(b, sides[i]);
                    let numbers = cast(b, "ToFloat", numbers, DtFloat);
                    let at = b.same("mul", "Mul", &[numbers, stride]);
                    let at = b.same("add", "Add", &[at, offset]);
                    let at = reshape(b, "Reshape", at, &places);
                    centre.push(b.same("centres", "Add", &[zeros, at]));
                    let lengths: Vec<f32> = own.iter().map(|shape| shape[i]).collect();
                    let lengths = b.floats("shapes", &[own.len() as i64], &lengths);
                    let lengths = b.same("lengths", "Mul", &[lengths, base]);
                    extent.push(b.same("sizes", "Add", &[zeros, lengths]));
                });
            }
            let mut flat = |name: &str, parts: &[Value]| {
                let pairs = pack(b, &format!("{name}/stack"), parts, 3); // [h, w, a, 2]
                reshape(b, name, pairs, &[-1, 2])
            };
            centres.push(flat("centers", &centre));
            sizes.push(flat("sizes", &extent));
        });
    }
    Centred { centres: concat(b, "anchors/centers", &centres, 0), sizes: concat(b, "anchors/sizes", &sizes, 0) }
}
