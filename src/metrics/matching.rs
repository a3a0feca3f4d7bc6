//! What the evaluators share: one picture's boxes, grouped by class, and how far two boxes overlap.
//!
//! Boxes are `[ymin, xmin, ymax, xmax]` in absolute pixels and classes are the label map's ids, from 1. Which steps are
//! taken in single precision and which in double is copied from the evaluators of the TF OD API and from pycocotools:
//! overlaps next to a threshold are decided by it.

use std::collections::BTreeMap;

use crate::detection::boxes::{BBox, Detections, Groundtruth};

/// The groundtruth of one picture.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PictureGroundtruth {
    /// Boxes in pixels, `[M]`.
    pub boxes_px: Vec<BBox>,
    /// Label map ids, from 1, `[M]`.
    pub classes: Vec<u32>,
    /// Neither for nor against in PASCAL's figures, `[M]`; empty means that none is.
    pub difficult: Vec<bool>,
    /// Around many objects: COCO's crowds, `[M]`; empty means that none is. PASCAL's figures do not look at it.
    pub crowd: Vec<bool>,
    /// Areas in square pixels that replace the boxes' own in COCO's size classes (those of masks, say), `[M]`.
    pub area_px: Option<Vec<f32>>,
}

/// What a model found in one picture, in the order in which it was given.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PictureDetections {
    /// Boxes in pixels, `[D]`.
    pub boxes_px: Vec<BBox>,
    /// Label map ids, from 1, `[D]`.
    pub classes: Vec<u32>,
    /// Scores, `[D]`.
    pub scores: Vec<f32>,
}

impl PictureGroundtruth {
    /// The same groundtruth in the pixels of a picture of `height` x `width`, classes counted from 1.
    pub fn from_normalized(groundtruth: &Groundtruth, height: usize, width: usize) -> Self {
        Self {
            boxes_px: to_pixels(&groundtruth.boxes, height, width),
            classes: groundtruth.classes.iter().map(|&c| c as u32 + 1).collect(),
            difficult: groundtruth.difficult.clone(),
            crowd: groundtruth.crowd.clone(),
            area_px: None,
        }
    }

    pub(super) fn is_difficult(&self, i: usize) -> bool {
        self.difficult.get(i).copied().unwrap_or(false)
    }

    pub(super) fn is_crowd(&self, i: usize) -> bool {
        self.crowd.get(i).copied().unwrap_or(false)
    }

    /// # Panics
    /// If the rows do not belong together: our own bug.
    pub(super) fn check(&self) {
        let m = self.boxes_px.len();
        assert!(self.classes.len() == m, "{m} boxes, {} classes", self.classes.len());
        for (name, n) in [("difficult", self.difficult.len()), ("crowd", self.crowd.len())] {
            assert!(n == m || n == 0, "{m} boxes, {n} {name} flags");
        }
        let areas = self.area_px.as_ref().map_or(m, Vec::len);
        assert!(areas == m, "{m} boxes, {areas} areas");
    }
}

impl PictureDetections {
    /// The same detections in the pixels of a picture of `height` x `width`, classes counted from 1.
    pub fn from_normalized(detections: &Detections, height: usize, width: usize) -> Self {
        Self {
            boxes_px: to_pixels(&detections.boxes, height, width),
            classes: detections.classes.iter().map(|&c| c as u32 + 1).collect(),
            scores: detections.scores.clone(),
        }
    }

    /// # Panics
    /// If the rows do not belong together: our own bug.
    pub(super) fn check(&self) {
        let d = self.boxes_px.len();
        assert!(
            self.classes.len() == d && self.scores.len() == d,
            "{d} boxes, {} classes, {} scores",
            self.classes.len(),
            self.scores.len()
        );
    }
}

/// Boxes in pixels, multiplied in single precision as the OD API's evaluation does.
fn to_pixels(boxes: &[BBox], height: usize, width: usize) -> Vec<BBox> {
    let (h, w) = (height as f32, width as f32);
    boxes.iter().map(|b| [b[0] * h, b[1] * w, b[2] * h, b[3] * w]).collect()
}

/// The rows of each class, in the given order.
pub(super) fn rows_by_class(classes: &[u32]) -> BTreeMap<u32, Vec<usize>> {
    let mut rows: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
    for (row, &class) in classes.iter().enumerate() {
        rows.entry(class).or_default().push(row);
    }
    rows
}

/// A box's area as the OD API takes it, in single precision; negative where one side is reversed.
pub(super) fn area_f32(b: &BBox) -> f32 {
    (b[2] - b[0]) * (b[3] - b[1])
}

/// Intersection over union as the OD API's numpy code computes it.
///
/// Sides, areas and the sum of the areas are in single precision, the intersection's product, the union and the quotient
/// in double.
pub fn iou_pascal(a: &BBox, b: &BBox) -> f64 {
    let height = f64::from(a[2].min(b[2]) - a[0].max(b[0])).max(0.0);
    let width = f64::from(a[3].min(b[3]) - a[1].max(b[1])).max(0.0);
    let intersection = height * width;
    intersection / (f64::from(area_f32(a) + area_f32(b)) - intersection)
}

/// A box as COCO's tools see it: left, top, width, height, in double precision from single-precision sides.
#[derive(Debug, Clone, Copy)]
pub(super) struct Xywh {
    pub x: f64,
    pub y: f64,
    pub w: f64,
    pub h: f64,
}

impl Xywh {
    pub(super) fn new(b: &BBox) -> Self {
        Self { x: f64::from(b[1]), y: f64::from(b[0]), w: f64::from(b[3] - b[1]), h: f64::from(b[2] - b[0]) }
    }

    pub(super) fn area(&self) -> f64 {
        self.w * self.h
    }
}

/// Intersection over union as pycocotools computes it; with a crowd, intersection over the detection's area.
pub(super) fn iou_coco(detection: &Xywh, groundtruth: &Xywh, crowd: bool) -> f64 {
    let (d, g) = (detection, groundtruth);
    let w = (d.x + d.w).min(g.x + g.w) - d.x.max(g.x);
    let h = (d.y + d.h).min(g.y + g.h) - d.y.max(g.y);
    if w <= 0.0 || h <= 0.0 {
        return 0.0;
    }
    let intersection = w * h;
    let union = if crowd { d.area() } else { d.area() + g.area() - intersection };
    intersection / union
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boxes_of_half_overlap_have_an_iou_of_a_third() {
        let (a, b) = ([0.0, 0.0, 2.0, 2.0], [0.0, 1.0, 2.0, 3.0]);
        assert_eq!(iou_pascal(&a, &b), 2.0 / 6.0);
        assert_eq!(iou_coco(&Xywh::new(&a), &Xywh::new(&b), false), 2.0 / 6.0);
        assert_eq!(iou_coco(&Xywh::new(&a), &Xywh::new(&b), true), 0.5);
    }

    #[test]
    fn boxes_that_only_touch_do_not_overlap() {
        let (a, b) = ([0.0, 0.0, 2.0, 2.0], [0.0, 2.0, 2.0, 4.0]);
        assert_eq!(iou_pascal(&a, &b), 0.0);
        assert_eq!(iou_coco(&Xywh::new(&a), &Xywh::new(&b), false), 0.0);
    }

    #[test]
    fn normalized_boxes_become_pixels_and_classes_ids() {
        let groundtruth =
            Groundtruth { boxes: vec![[0.0, 0.25, 0.5, 1.0]], classes: vec![0], difficult: vec![true], crowd: vec![false] };
        let picture = PictureGroundtruth::from_normalized(&groundtruth, 100, 200);
        assert_eq!(picture.boxes_px, [[0.0, 50.0, 50.0, 200.0]]);
        assert_eq!(picture.classes, [1]);
        assert_eq!(picture.difficult, [true]);
    }
}
