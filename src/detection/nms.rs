//! Non-maximum suppression on plain rows, as TensorFlow's kernel does it: a box goes when its IoU with a better one is strictly greater
//! than the threshold; ties in score keep index order (upstream core/post_processing.py).

use super::boxes::{BBox, Detections, area};

/// How [`multiclass`] selects.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NmsOptions {
    /// A score must be greater.
    pub score_threshold: f32,
    /// Of intersection over union.
    pub iou_threshold: f32,
    pub max_per_class: usize,
    pub max_total: usize,
}

/// Indices of the boxes to keep, best score first.
///
/// * `boxes`: `[A]`, corners in either order.
/// * `scores`: `[A]`.
pub fn nms(boxes: &[BBox], scores: &[f32], iou_threshold: f32, max: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..boxes.len()).collect();
    order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]).then(a.cmp(&b)));
    suppress(|i| &boxes[i], &order, iou_threshold, max)
}

/// As `nms`, with the candidates already in order.
fn suppress<'b>(boxes: impl Fn(usize) -> &'b BBox, order: &[usize], iou_threshold: f32, max: usize) -> Vec<usize> {
    let mut kept: Vec<usize> = Vec::new();
    // Corners and areas of the kept boxes, side by side: the inner loop reads nothing else.
    let mut kept_boxes: Vec<(BBox, f32)> = Vec::new();
    for &i in order {
        if kept.len() >= max {
            break;
        }
        let b = sorted_corners(boxes(i));
        let size = area(&b);
        if !kept_boxes.iter().any(|(k, k_size)| overlaps_more(&b, size, k, *k_size, iou_threshold)) {
            kept.push(i);
            kept_boxes.push((b, size));
        }
    }
    kept
}

/// The same box, its lower corner first.
pub(super) fn sorted_corners(b: &BBox) -> BBox {
    [b[0].min(b[2]), b[1].min(b[3]), b[0].max(b[2]), b[1].max(b[3])]
}

/// Whether the IoU is strictly greater than the threshold; a box without area overlaps nothing.
#[inline]
pub(super) fn overlaps_more(a: &BBox, a_size: f32, b: &BBox, b_size: f32, threshold: f32) -> bool {
    let height = a[2].min(b[2]) - a[0].max(b[0]);
    let width = a[3].min(b[3]) - a[1].max(b[1]);
    if height <= 0.0 || width <= 0.0 || a_size <= 0.0 || b_size <= 0.0 {
        return false;
    }
    let intersection = height * width;
    intersection / (a_size + b_size - intersection) > threshold
}

/// The boxes of every class.
#[derive(Debug, Clone, Copy)]
pub enum ClassBoxes<'a> {
    /// `[A]`, the same for all.
    Shared(&'a [BBox]),
    /// `[A * K]`, row-major.
    Own(&'a [BBox]),
}

/// Per class: score threshold, drop the empty, suppress; then the best of all classes.
///
/// * `boxes`: normalized or in pixels, clipped to the picture already.
/// * `scores`: `[A * K]`, row-major, without background.
pub fn multiclass(boxes: ClassBoxes, scores: &[f32], num_classes: usize, options: &NmsOptions) -> Detections {
    let rows = match boxes {
        ClassBoxes::Shared(boxes) => boxes.len(),
        ClassBoxes::Own(boxes) => boxes.len() / num_classes,
    };
    assert!(scores.len() == rows * num_classes, "{} scores for {rows} boxes of {num_classes} classes", scores.len());
    let clipped = |i: usize, class: usize| match boxes {
        ClassBoxes::Shared(boxes) => &boxes[i],
        ClassBoxes::Own(boxes) => &boxes[i * num_classes + class],
    };
    let mut found: Vec<(f32, usize, usize)> = Vec::new();
    let mut order: Vec<usize> = Vec::new();
    for class in 0..num_classes {
        order.clear();
        order.extend(
            (0..rows).filter(|&i| scores[i * num_classes + class] > options.score_threshold && area(clipped(i, class)) > 0.0),
        );
        let score = |i: usize| scores[i * num_classes + class];
        order.sort_by(|&a, &b| score(b).total_cmp(&score(a)).then(a.cmp(&b)));
        let kept = suppress(|i| clipped(i, class), &order, options.iou_threshold, options.max_per_class);
        found.extend(kept.into_iter().map(|i| (score(i), class, i)));
    }
    // Stable: equal scores stay in the order of their classes, as TensorFlow's top_k keeps the lower index first.
    found.sort_by(|a, b| b.0.total_cmp(&a.0));
    found.truncate(options.max_total);
    Detections {
        boxes: found.iter().map(|&(_, c, i)| *clipped(i, c)).collect(),
        scores: found.iter().map(|&(s, _, _)| s).collect(),
        classes: found.iter().map(|&(_, c, _)| c).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drops_a_box_only_above_the_threshold() {
        // IoU of the first two: 1 / 3 in exact arithmetic of these corners.
        let boxes = [[0.0, 0.0, 1.0, 2.0], [0.0, 1.0, 1.0, 3.0], [5.0, 5.0, 6.0, 6.0]];
        let scores = [0.9, 0.8, 0.7];
        assert_eq!(nms(&boxes, &scores, 0.34, 10), [0, 1, 2]);
        assert_eq!(nms(&boxes, &scores, 0.33, 10), [0, 2]);
        assert_eq!(nms(&boxes, &scores, 0.34, 1), [0]);
    }

    #[test]
    fn ties_keep_index_order() {
        let boxes = [[0.0, 0.0, 1.0, 1.0], [2.0, 2.0, 3.0, 3.0]];
        assert_eq!(nms(&boxes, &[0.5, 0.5], 0.5, 10), [0, 1]);
    }

    #[test]
    fn a_box_that_clipping_left_no_area_is_dropped() {
        let boxes = [[0.0, 0.0, 0.0, 0.0], [0.5, 0.5, 1.0, 1.0]];
        let options = NmsOptions { score_threshold: 1e-8, iou_threshold: 0.6, max_per_class: 100, max_total: 100 };
        let found = multiclass(ClassBoxes::Shared(&boxes), &[0.9, 0.8], 1, &options);
        assert_eq!(found.boxes, [[0.5, 0.5, 1.0, 1.0]]);
    }

    #[test]
    fn classes_do_not_suppress_each_other() {
        let boxes = [[0.0, 0.0, 0.5, 0.5]];
        let options = NmsOptions { score_threshold: 0.0, iou_threshold: 0.6, max_per_class: 100, max_total: 1 };
        let found = multiclass(ClassBoxes::Shared(&boxes), &[0.3, 0.8], 2, &options);
        assert_eq!((found.classes, found.scores), (vec![1], vec![0.8]));
    }
}
