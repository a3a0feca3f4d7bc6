//! What every detector's GraphDef has before and behind its network: the picture, box decoding, scores, the four outputs.

use super::builder::{Builder, Op, Value, shape};
use super::ops::{columns, concat};
use super::suppression::Found;
use crate::backbones::faster_rcnn::Pixels;
use crate::detection::box_coder::BoxCoder;
use crate::models::post_processing::ScoreConverter;
use crate::proto::tensorflow::DataType::DtUint8;

/// `image_tensor`: uint8 `[N, height, width, 3]`, RGB, of any size.
pub fn image_tensor(b: &mut Builder) -> Value {
    let any_size = shape(&[-1, -1, -1, 3]);
    b.add("image_tensor", Op::new("Placeholder", &[]).with("dtype", DtUint8).with("shape", any_size), DtUint8)
}

/// What the network takes in place of resized pixels.
pub fn scale_pixels(b: &mut Builder, pixels: &Pixels, resized: Value) -> Value {
    let scaled = if pixels.scale == 1.0 {
        resized
    } else {
        let scale = b.float("mul/x", pixels.scale as f32);
        b.same("mul", "Mul", &[scale, resized])
    };
    // Upstream subtracts.
    let shift = pixels.shift.map(|s| -s);
    let shift =
        if shift[1..].iter().all(|s| *s == shift[0]) { b.float("sub/y", shift[0]) } else { b.floats("sub/y", &[3], &shift) };
    b.same("sub", "Sub", &[scaled, shift])
}

/// Boxes by their centres and sizes, `[..., 2]` each as y, x.
#[derive(Debug, Clone, Copy)]
pub struct Centred {
    pub centres: Value,
    pub sizes: Value,
}

/// From encodings `[..., 4]` of `rank` dimensions to boxes of the same shape, relative to `anchors` of a shape that broadcasts to it.
///
/// Source: Ren et al., Faster R-CNN (arXiv:1506.01497), section 3.1.2.
pub fn decode(b: &mut Builder, coder: &BoxCoder, codes: Value, rank: usize, anchors: Centred) -> Value {
    let scale = b.floats("scale_factors", &[4], &coder.scale);
    let codes = b.same("truediv", "RealDiv", &[codes, scale]);
    let offset = columns(b, "offset", codes, rank, [0, 2]); // [..., 2] as ty, tx
    let growth = columns(b, "growth", codes, rank, [2, 4]); // [..., 2] as th, tw
    let growth = b.same("Exp", "Exp", &[growth]);
    let size = b.same("mul", "Mul", &[growth, anchors.sizes]);
    let offset = b.same("mul_1", "Mul", &[offset, anchors.sizes]);
    let centre = b.same("add", "Add", &[offset, anchors.centres]);
    let half = b.float("half", 0.5);
    let reach = b.same("mul_2", "Mul", &[size, half]);
    let low = b.same("sub", "Sub", &[centre, reach]);
    let high = b.same("add_1", "Add", &[centre, reach]);
    concat(b, "stack", &[low, high], -1)
}

/// Boxes moved to the nearest place between `low` and `high`, each a scalar or one number a column.
pub fn clip(b: &mut Builder, boxes: Value, low: Value, high: Value) -> Value {
    let boxes = b.same("Minimum", "Minimum", &[boxes, high]);
    b.same("ClipToWindow", "Maximum", &[boxes, low])
}

/// From raw predictions `[N, A, K + 1]` to scores `[N, A, K]`, without background.
pub fn convert_scores(b: &mut Builder, converter: ScoreConverter, num_classes: usize, logits: Value) -> Value {
    let (ScoreConverter::Identity { logit_scale }
    | ScoreConverter::Sigmoid { logit_scale }
    | ScoreConverter::Softmax { logit_scale }) = converter;
    let logits = if logit_scale == 1.0 {
        logits
    } else {
        let scale = b.float("scale_logits/y", logit_scale as f32);
        b.same("scale_logits", "RealDiv", &[logits, scale])
    };
    let classes = [1, num_classes as i32 + 1];
    match converter {
        ScoreConverter::Identity { .. } => columns(b, "convert_scores", logits, 3, classes),
        ScoreConverter::Sigmoid { .. } => {
            let logits = columns(b, "Slice", logits, 3, classes);
            b.same("convert_scores", "Sigmoid", &[logits])
        }
        // Background takes part in the sum.
        ScoreConverter::Softmax { .. } => {
            let scores = b.same("convert_scores", "Softmax", &[logits]);
            columns(b, "Slice", scores, 3, classes)
        }
    }
}

/// The four outputs under the names that programs fetch:
///
/// * `detection_boxes`: `[N, D, 4]`, normalized, where `D` is the limit of detections in all; zeros beyond the last.
/// * `detection_scores`: `[N, D]`, best first.
/// * `detection_classes`: `[N, D]`, the label map's ids as floats; 1 beyond the last, as upstream has it.
/// * `num_detections`: `[N]`, as floats.
pub fn outputs(b: &mut Builder, found: &Found) {
    let one = b.float("add/y", 1.0);
    let classes = b.same("add", "Add", &[found.classes, one]);
    b.same("detection_boxes", "Identity", &[found.boxes]);
    b.same("detection_scores", "Identity", &[found.scores]);
    b.same("detection_classes", "Identity", &[classes]);
    b.same("num_detections", "Identity", &[found.count]);
}
