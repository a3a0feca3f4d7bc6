//! An SSD as an ONNX graph: pictures of any size in, detections out.

use anyhow::Result;

use super::builder::{Attribute, Builder, Value};
use super::network::write_network;
use super::parts::{self, Centred, concat};
use super::suppression::{Suppression, suppress};
use crate::export::layers::ReadVariable;
use crate::export::ssd::SsdExport;
use crate::net::graph::NodeId;
use crate::proto::onnx::ModelProto;

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
    let pixels = b.within("Preprocessor", |b| {
        let size = model.picture.map(|side| b.ints("size", &[1], &[side as i64]));
        let resized = b.within("ResizeImage", |b| parts::resize(b, picture, size));
        parts::scale_pixels(b, &model.pixels, resized)
    });
    let wanted: Vec<NodeId> = model.heads.iter().flat_map(|head| [head.boxes, head.classes]).collect();
    let raw = write_network(&mut b, model.graph, pixels, &wanted, variables)?;
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
            let values: Vec<f32> = model.anchors.iter().flatten().copied().collect();
            let anchors = b.floats("anchors", &[model.anchors.len() as i64, 4], &values);
            let anchors = Centred::of(b, anchors);
            parts::decode(b, &model.coder, codes, anchors)
        });
        let scores = parts::convert_scores(b, model.scores, model.num_classes, logits);
        b.within("BatchMultiClassNonMaxSuppression", |b| {
            let one = b.float("one", 1.0);
            let boxes = parts::clip(b, boxes, one);
            suppress(b, &with, boxes, scores)
        })
    });
    parts::outputs(&mut b, &found, model.nms.max_total);
    Ok(b.finish("ssd", metadata))
}

/// A predictor's map `[N, a * columns, h, w]` as rows of anchors: `[N, h * w * a, columns]`.
pub fn rows(b: &mut Builder, map: Value, columns: i64) -> Value {
    let cells = b.op("Transpose", "Transpose", &[map], &[Attribute::ints("perm", &[0, 2, 3, 1])]);
    parts::reshape(b, "Reshape", cells, &[0, -1, columns])
}
