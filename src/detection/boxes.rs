//! Boxes, groundtruth and detections, as plain rows of `[ymin, xmin, ymax, xmax]`.

/// `[ymin, xmin, ymax, xmax]`.
pub type BBox = [f32; 4];

/// What is known of one picture.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Groundtruth {
    /// Normalized boxes, `[M]`.
    pub boxes: Vec<BBox>,
    /// Class of each box, 0-based: the label map's id minus 1. `[M]`.
    pub classes: Vec<usize>,
    /// Boxes that count neither for nor against in PASCAL evaluation. `[M]`.
    pub difficult: Vec<bool>,
    /// Boxes around many objects (COCO's crowds). `[M]`.
    pub crowd: Vec<bool>,
}

/// What a model found in one picture, best score first.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Detections {
    /// Normalized boxes, `[D]`.
    pub boxes: Vec<BBox>,
    /// Scores, highest first, `[D]`.
    pub scores: Vec<f32>,
    /// Classes, 0-based, `[D]`.
    pub classes: Vec<usize>,
}

/// Height times width.
pub fn area(b: &BBox) -> f32 {
    (b[2] - b[0]) * (b[3] - b[1])
}

/// Intersection over union; 0 where they do not meet.
pub fn iou(a: &BBox, b: &BBox) -> f32 {
    let height = (a[2].min(b[2]) - a[0].max(b[0])).max(0.0);
    let width = (a[3].min(b[3]) - a[1].max(b[1])).max(0.0);
    let intersection = height * width;
    if intersection == 0.0 {
        return 0.0;
    }
    intersection / (area(a) + area(b) - intersection)
}

/// A box times `[vertical, horizontal]` factors.
pub fn scale(b: &BBox, [y, x]: [f32; 2]) -> BBox {
    [b[0] * y, b[1] * x, b[2] * y, b[3] * x]
}

/// The part of a box inside `window`.
pub fn clip(b: &BBox, window: &BBox) -> BBox {
    let y = |v: f32| v.min(window[2]).max(window[0]);
    let x = |v: f32| v.min(window[3]).max(window[1]);
    [y(b[0]), x(b[1]), y(b[2]), x(b[3])]
}
