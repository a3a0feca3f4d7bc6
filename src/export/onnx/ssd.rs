//! An SSD as an ONNX graph: pictures of any size in, detections out.

use anyhow::Result;

use super::builder::{Builder, Value};
use super::network::write_network;
use super::parts::{self, Centred, cast, concat, range, reshape, rows, side};
use super::pictures::{Frame, prepare};
use super::suppression::{Suppression, suppress};
use crate::detection::anchors::SsdAnchors;
use crate::export::layers::{ReadVariable, input};
use crate::export::ssd::SsdExport;
use crate::net::graph::NodeId;
use crate::proto::onnx::ModelProto;
use crate::proto::onnx::tensor_proto::DataType;

/// The model: `image_tensor` ([`parts::image_tensor`]) to the four [`parts::outputs`].
///
/// * `metadata`: what readers may ask the file for.
///
/// # Errors
/// If the parts of `model` do not fit together or a variable cannot be read.
pub fn onnx(model: &SsdExport, variables: &ReadVariable, metadata: &[(&str, String)]) -> Result<ModelProto> {
    model.check()?;
    let mut b = Builder::new();
    let picture = parts::image_tensor(&mut b);
    let prepared = b.within("Preprocessor", |b| prepare(b, model.resizer, &model.pixels, picture));
    let wanted: Vec<NodeId> = model.heads.iter().flat_map(|head| [head.boxes, head.classes]).collect();
    let given = [(input(model.graph)?, prepared.pixels)];
    let raw = write_network(&mut b, model.graph, &given, None, &wanted, variables)?;
    let (mut codes, mut logits) = (Vec::new(), Vec::new());
    for (i, pair) in raw.chunks_exact(2).enumerate() {
        b.within(&format!("BoxPredictor_{i}"), |b| {
            codes.push(rows(b, pair[0], 4)); // [N, a_i, 4]
            logits.push(rows(b, pair[1], model.num_classes as i64 + 1)); // [N, a_i, K + 1]
        });
    }
    let codes = concat(&mut b, "concat", &codes, 1); // [N, A, 4]
    let logits = concat(&mut b, "concat_1", &logits, 1); // [N, A, K + 1]
    let with = Suppression { boxes_by_class: false, nms: model.nms };
    let found = b.within("Postprocessor", |b| {
        let boxes = b.within("Decode", |b| {
            let anchors = match model.resizer.fixed_size() {
                Some(_) => b.floats("anchors", &[model.anchors.len() as i64, 4], model.anchors.as_flattened()),
                None => grid_anchors(b, model.shapes, raw.iter().copied().step_by(2), prepared.frame),
            };
            let anchors = Centred::of(b, anchors);
            parts::decode(b, &model.coder, codes, anchors)
        });
        let scores = parts::convert_scores(b, model.scores, model.num_classes, logits);
        b.within("BatchMultiClassNonMaxSuppression", |b| {
            let one = b.float("one", 1.0);
            if prepared.own == prepared.frame {
                let boxes = parts::clip(b, boxes, one);
                return suppress(b, &with, boxes, scores);
            }
            // The picture's share of the frame, which boxes are clipped to and then measured by.
            let frame = b.within("Frame", |b| Frame::new(b, &prepared));
            let window = b.op("ClipWindow", "Div", &[frame.own_corners, frame.corners], &[]);
            let boxes = parts::clip(b, boxes, window);
            let scale = b.op("scale", "Div", &[one, window], &[]);
            let boxes = b.op("ChangeCoordinateFrame", "Mul", &[boxes, scale], &[]);
            suppress(b, &with, boxes, scores)
        })
    });
    parts::outputs(&mut b, &found, model.nms.max_total);
    Ok(b.finish("ssd", metadata))
}

/// The anchors of maps whose sizes are known when they come: `[A, 4]`.
///
/// * `maps`: of each layer, `[N, _, h, w]`; `size`: the pictures' height and width, each a row of one integer.
///
/// Source: detection/anchors.rs, `SsdAnchors::generate`.
fn grid_anchors(b: &mut Builder, shapes: &SsdAnchors, maps: impl Iterator<Item = Value>, size: [Value; 2]) -> Value {
    let size = size.map(|side| cast(b, "size/ToFloat", side, DataType::Float)); // [1] each
    let shorter = b.op("shorter", "Min", &size, &[]);
    let base = [0, 1].map(|i| {
        let square = b.op("square", "Div", &[shorter, size[i]], &[]);
        let base = b.float("base_size", shapes.base_size()[i]);
        b.op("base", "Mul", &[square, base], &[])
    });
    let mut layers = Vec::new();
    for (layer, map) in maps.enumerate() {
        b.within(&format!("MultipleGridAnchorGenerator_{layer}"), |b| {
            let own = shapes.shapes(layer);
            let grid = [("height", 2), ("width", 3)].map(|(name, axis)| side(b, name, map, axis));
            let [per_cell, one] = [("per_cell", own.len() as i64), ("one", 1)].map(|(name, v)| b.ints(name, &[1], &[v]));
            let shape = concat(b, "shape", &[grid[0], grid[1], per_cell, one], 0);
            let half = b.float("half", 0.5);
            let (mut low, mut high) = (Vec::new(), Vec::new());
            for (i, places) in [(0, [-1, 1, 1, 1]), (1, [1, -1, 1, 1])] {
                b.within(["y", "x"][i], |b| {
                    let share = |b: &mut Builder, name: &str, px: f32| {
                        let px = b.float(&format!("{name}/px"), px);
                        b.op(name, "Div", &[px, size[i]], &[])
                    };
                    let stride = match shapes.stride_px(layer) {
                        Some(px) => share(b, "stride", px[i]),
                        None => {
                            let cells = cast(b, "grid/ToFloat", grid[i], DataType::Float);
                            let one = b.float("one", 1.0);
                            b.op("stride", "Div", &[one, cells], &[])
                        }
                    };
                    let offset = match shapes.offset_px(layer) {
                        Some(px) => share(b, "offset", px[i]),
                        None => b.op("offset", "Mul", &[half, stride], &[]),
                    };
                    let numbers = range(b, "cells", grid[i]);
                    let numbers = cast(b, "cells/ToFloat", numbers, DataType::Float);
                    let at = b.op("mul", "Mul", &[numbers, stride], &[]);
                    let at = b.op("add", "Add", &[at, offset], &[]);
                    let centres = reshape(b, "centres", at, &places);
                    let lengths: Vec<f32> = own.iter().map(|shape| shape[i]).collect();
                    let lengths = b.floats("shapes", &[1, 1, own.len() as i64, 1], &lengths);
                    let lengths = b.op("lengths", "Mul", &[lengths, base[i]], &[]);
                    let reach = b.op("reach", "Mul", &[half, lengths], &[]);
                    for (name, kind, edges) in [("low", "Sub", &mut low), ("high", "Add", &mut high)] {
                        let edge = b.op(name, kind, &[centres, reach], &[]);
                        edges.push(b.op(&format!("{name}/edges"), "Expand", &[edge, shape], &[])); // [h, w, a, 1]
                    }
                });
            }
            let boxes = concat(b, "stack", &[low[0], low[1], high[0], high[1]], 3); // [h, w, a, 4]
            layers.push(reshape(b, "boxes", boxes, &[-1, 4]));
        });
    }
    concat(b, "anchors", &layers, 0)
}
