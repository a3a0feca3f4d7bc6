//! An SSD as a frozen graph: pictures of any size in, detections out (upstream exporter.py, meta_architectures/ssd_meta_arch.py).

use anyhow::{Result, ensure};

use super::builder::Builder;
use super::network::write_network;
use super::ops::{concat, reshape};
use super::parts::{self, Centred};
use super::suppression::{Suppression, suppress};
use crate::detection::boxes::BBox;
use crate::export::layers::ReadVariable;
use crate::export::ssd::SsdExport;
use crate::net::graph::NodeId;
use crate::proto::tensorflow::GraphDef;

/// The frozen graph: `image_tensor` ([`parts::image_tensor`]) to the four [`parts::outputs`].
///
/// # Errors
/// If the parts of `model` do not fit together or a variable cannot be read.
pub fn frozen_graph(model: &SsdExport, variables: &ReadVariable) -> Result<GraphDef> {
    model.check()?;
    let mut b = Builder::new();
    let picture = parts::image_tensor(&mut b);
    let pixels = b.within("Preprocessor", |b| {
        let size = b.ints("ResizeImage/size", &[2], &model.picture.map(|side| side as i32));
        let resized = parts::resize(b, picture, size);
        parts::scale_pixels(b, &model.pixels, resized)
    });
    let wanted: Vec<NodeId> = model.heads.iter().flat_map(|head| [head.boxes, head.classes]).collect();
    let raw = write_network(&mut b, model.graph, pixels, &wanted, variables)?;
    let sizes = model.graph.sizes(model.picture.map(|side| side as i64));
    let (mut codes, mut logits, mut count) = (Vec::new(), Vec::new(), 0);
    for ((i, head), pair) in model.heads.iter().enumerate().zip(raw.chunks_exact(2)) {
        let scope = format!("BoxPredictor_{i}");
        let [height, width] = sizes[head.boxes.0];
        let anchors = height * width * model.graph.channels(head.boxes) / 4;
        codes.push(b.within(&scope, |b| reshape(b, "Reshape", pair[0], &[-1, anchors as i32, 4]))); // [N, a_i, 4]
        let columns = model.num_classes as i32 + 1;
        logits.push(b.within(&scope, |b| reshape(b, "Reshape_1", pair[1], &[-1, anchors as i32, columns]))); // [N, a_i, K + 1]
        count += anchors;
    }
    ensure!(
        count == model.anchors.len() as i64,
        "the box predictors have {count} anchors, the anchor generator {}",
        model.anchors.len()
    );
    let codes = concat(&mut b, "concat", &codes, 1); // [N, A, 4]
    let logits = concat(&mut b, "concat_1", &logits, 1); // [N, A, K + 1]
    let with = Suppression { num_classes: model.num_classes, boxes_by_class: false, nms: model.nms };
    let found = b.within("Postprocessor", |b| {
        let boxes = b.within("Decode", |b| {
            let anchors = centred(b, model.anchors);
            parts::decode(b, &model.coder, codes, 3, anchors)
        });
        let scores = parts::convert_scores(b, model.scores, model.num_classes, logits);
        b.within("BatchMultiClassNonMaxSuppression", |b| {
            let (zero, one) = (b.float("zero", 0.0), b.float("one", 1.0));
            let boxes = parts::clip(b, boxes, zero, one);
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
