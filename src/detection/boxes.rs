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
    pub group_of: Vec<bool>,
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
