//! PASCAL VOC average precision at IoU 0.5, figure for figure as the TF OD API's evaluator gives it.
//!
//! Upstream: `object_detection/utils/{object_detection_evaluation,per_image_evaluation,metrics}.py` of April 2018. It
//! differs from the VOC development kit: the area under the whole precision curve (VOC 2010, not the 11 points of 2007),
//! boxes without the `+ 1`, difficult groundtruth that is looked at before free groundtruth.
//!
//! Equal scores: upstream sorts with numpy's unstable default sort. Evaluation here takes numpy 1.26's own steps
//! ([`TieOrder::Numpy`]), because that is what makes every figure equal to upstream's; with [`TieOrder::Stable`] the figures
//! differ only where more than 16 detections of a class are sorted together and some of them have equal scores.

use serde::Serialize;

use super::argsort::{TieOrder, argsort_descending};
use super::matching::{PictureDetections, PictureGroundtruth, iou_pascal, rows_by_class};
use crate::detection::boxes::BBox;

/// An overlap from which a detection has found its groundtruth (upstream's `matching_iou_threshold`).
const IOU_THRESHOLD: f64 = 0.5;
/// Detections at or below are dropped (the default score threshold of upstream's numpy NMS).
const SCORE_THRESHOLD: f32 = -10.0;
/// Detections of a class that count in one picture (upstream's `nms_max_output_boxes`).
const MAX_DETECTIONS: usize = 10_000;

/// PASCAL figures over all pictures. A figure that does not exist is NaN, `null` in JSON.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PascalResult {
    /// Mean of the classes' average precision, those that are NaN left out.
    pub map: f64,
    /// Mean of the classes' CorLoc, those that are NaN left out.
    pub mean_corloc: f64,
    /// Average precision by class: item i is label map id i + 1. NaN without groundtruth.
    pub ap: Vec<f64>,
    /// Share of the pictures with the class in which the best detection is right, by class.
    pub corloc: Vec<f64>,
    /// Groundtruth boxes by class, difficult ones left out.
    pub num_gt: Vec<usize>,
    /// Pictures with groundtruth of the class, difficult or not.
    pub num_gt_images: Vec<usize>,
}

/// Gathers pictures, one by one; holds five bytes or so a detection.
#[derive(Debug, Clone)]
pub struct PascalEvaluator {
    ties: TieOrder,
    classes: Vec<ClassTally>,
}

#[derive(Debug, Clone, Default)]
struct ClassTally {
    /// Of each detection that counts, in the order of pictures, best first inside a picture.
    scores: Vec<f32>,
    /// Whether it is a true positive, `[D]`.
    hits: Vec<bool>,
    num_gt: usize,
    num_gt_images: usize,
    num_images_correct: usize,
}

impl PascalEvaluator {
    /// An evaluator for the label map ids 1 to `num_classes`; what has another id is dropped.
    pub fn new(num_classes: usize) -> Self {
        Self::with_ties(num_classes, TieOrder::Numpy)
    }

    /// As [`PascalEvaluator::new`], with another order of equal scores.
    pub fn with_ties(num_classes: usize, ties: TieOrder) -> Self {
        Self { ties, classes: vec![ClassTally::default(); num_classes] }
    }

    /// Takes one picture in. The order of pictures matters where scores of different pictures are equal.
    ///
    /// # Panics
    /// If the rows of `groundtruth` or `detections` do not belong together.
    pub fn add(&mut self, groundtruth: &PictureGroundtruth, detections: &PictureDetections) {
        groundtruth.check();
        detections.check();
        let (gt_rows, mut det_rows) = (rows_by_class(&groundtruth.classes), rows_by_class(&detections.classes));
        for (&class, rows) in &gt_rows {
            if let Some(tally) = tally_of(&mut self.classes, class) {
                tally.num_gt += rows.iter().filter(|&&i| !groundtruth.is_difficult(i)).count();
                tally.num_gt_images += 1;
            }
        }
        for (&class, rows) in &mut det_rows {
            let Some(tally) = tally_of(&mut self.classes, class) else {
                continue;
            };
            // Not-a-number fails both comparisons and goes too.
            rows.retain(|&i| {
                let [ymin, xmin, ymax, xmax] = detections.boxes_px[i];
                ymin < ymax && xmin < xmax
            });
            let gt = gt_rows.get(&class).map(Vec::as_slice).unwrap_or_default();
            if top_detection_is_right(groundtruth, gt, detections, rows) {
                tally.num_images_correct += 1;
            }
            tally.match_picture(groundtruth, gt, detections, rows, self.ties);
        }
    }

    /// The figures over what was taken in so far.
    pub fn result(&self) -> PascalResult {
        let ap: Vec<f64> = self.classes.iter().map(|c| c.average_precision(self.ties)).collect();
        let corloc: Vec<f64> = self
            .classes
            .iter()
            .map(|c| match c.num_gt_images {
                0 => f64::NAN,
                n => c.num_images_correct as f64 / n as f64,
            })
            .collect();
        PascalResult {
            map: mean_of_numbers(&ap),
            mean_corloc: mean_of_numbers(&corloc),
            ap,
            corloc,
            num_gt: self.classes.iter().map(|c| c.num_gt).collect(),
            num_gt_images: self.classes.iter().map(|c| c.num_gt_images).collect(),
        }
    }
}

fn tally_of(classes: &mut [ClassTally], class: u32) -> Option<&mut ClassTally> {
    classes.get_mut((class as usize).checked_sub(1)?)
}

impl ClassTally {
    /// Decides each detection of this class in one picture: true positive, false positive, or (on a difficult object) neither.
    fn match_picture(
        &mut self,
        groundtruth: &PictureGroundtruth,
        gt: &[usize],
        detections: &PictureDetections,
        rows: &[usize],
        ties: TieOrder,
    ) {
        let rows: Vec<usize> = rows.iter().copied().filter(|&i| detections.scores[i] > SCORE_THRESHOLD).collect();
        let scores: Vec<f32> = rows.iter().map(|&i| detections.scores[i]).collect();
        let mut taken = vec![false; gt.len()];
        for place in argsort_descending(&scores, ties).into_iter().take(MAX_DETECTIONS) {
            let hit = match best_groundtruth(&detections.boxes_px[rows[place]], groundtruth, gt) {
                Some((j, iou)) if iou >= IOU_THRESHOLD => {
                    if groundtruth.is_difficult(gt[j]) {
                        continue;
                    }
                    // Taken already: a false positive, even if another groundtruth would have done.
                    !std::mem::replace(&mut taken[j], true)
                }
                _ => false,
            };
            self.scores.push(scores[place]);
            self.hits.push(hit);
        }
    }

    /// Area under the precision curve, precision made to fall with recall. NaN without groundtruth.
    fn average_precision(&self, ties: TieOrder) -> f64 {
        if self.num_gt == 0 {
            return f64::NAN;
        }
        let order = argsort_descending(&self.scores, ties);
        let mut true_positives = 0usize;
        // At each true positive: the precision there. Between two of them recall stands still and adds no area.
        let mut precision_at_hit = Vec::new();
        for (rank, &place) in order.iter().enumerate() {
            if self.hits[place] {
                true_positives += 1;
                precision_at_hit.push((true_positives as f64) / (rank + 1) as f64);
            }
        }
        let (mut area, mut envelope) = (0.0, 0.0f64);
        for (k, &precision) in precision_at_hit.iter().enumerate().rev() {
            envelope = envelope.max(precision);
            let step = (k + 1) as f64 / self.num_gt as f64 - k as f64 / self.num_gt as f64;
            area += step * envelope;
        }
        area
    }
}

/// The groundtruth that overlaps most with a detection, the first of equals, and by how much; `None` without groundtruth.
fn best_groundtruth(detection: &BBox, groundtruth: &PictureGroundtruth, gt: &[usize]) -> Option<(usize, f64)> {
    let mut best: Option<(usize, f64)> = None;
    for (j, &row) in gt.iter().enumerate() {
        let iou = iou_pascal(detection, &groundtruth.boxes_px[row]);
        if best.is_none_or(|(_, most)| iou > most) {
            best = Some((j, iou));
        }
    }
    best
}

/// CorLoc: whether the best-scored detection of a class lies on any groundtruth of it, difficult or not.
fn top_detection_is_right(
    groundtruth: &PictureGroundtruth,
    gt: &[usize],
    detections: &PictureDetections,
    rows: &[usize],
) -> bool {
    let mut top: Option<usize> = None;
    for &row in rows {
        // The first of equals, in the given order.
        if top.is_none_or(|t| detections.scores[row] > detections.scores[t]) {
            top = Some(row);
        }
    }
    top.is_some_and(|row| gt.iter().any(|&g| iou_pascal(&detections.boxes_px[row], &groundtruth.boxes_px[g]) >= IOU_THRESHOLD))
}

/// Mean of what is a number, NaN where nothing is.
fn mean_of_numbers(values: &[f64]) -> f64 {
    let numbers: Vec<f64> = values.iter().copied().filter(|v| !v.is_nan()).collect();
    numbers.iter().sum::<f64>() / numbers.len() as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn groundtruth(boxes: &[BBox]) -> PictureGroundtruth {
        PictureGroundtruth { boxes_px: boxes.to_vec(), classes: vec![1; boxes.len()], ..Default::default() }
    }

    fn detections(boxes: &[BBox], scores: &[f32]) -> PictureDetections {
        PictureDetections { boxes_px: boxes.to_vec(), classes: vec![1; boxes.len()], scores: scores.to_vec() }
    }

    #[test]
    fn a_false_positive_between_two_hits_costs_a_sixth() {
        // Precision 1 at recall 1/2, 2/3 at recall 1: area 1/2 + 1/3.
        let mut evaluator = PascalEvaluator::new(1);
        let (a, b, wrong) = ([0., 0., 10., 10.], [20., 20., 30., 30.], [50., 50., 60., 60.]);
        evaluator.add(&groundtruth(&[a, b]), &detections(&[a, wrong, b], &[0.9, 0.8, 0.7]));
        assert!((evaluator.result().map - 5.0 / 6.0).abs() < 1e-12);
    }

    #[test]
    fn a_class_without_groundtruth_is_left_out_of_the_mean_and_null_in_json() {
        let mut evaluator = PascalEvaluator::new(2);
        let a = [0., 0., 10., 10.];
        evaluator.add(&groundtruth(&[a]), &detections(&[a], &[0.9]));
        let result = evaluator.result();
        assert_eq!(result.map, 1.0);
        assert!(result.ap[1].is_nan());
        let json = serde_json::to_string(&result).unwrap();
        assert!(json.contains("\"ap\":[1.0,null]"), "{json}");
    }

    #[test]
    fn nothing_at_all_has_no_mean() {
        assert!(PascalEvaluator::new(3).result().map.is_nan());
        assert!(PascalEvaluator::new(0).result().map.is_nan());
    }

    #[test]
    fn boxes_and_scores_that_are_not_numbers_do_not_count() {
        let mut evaluator = PascalEvaluator::new(1);
        let a = [0., 0., 10., 10.];
        let odd = [f32::NAN, 0., 10., 10.];
        evaluator.add(&groundtruth(&[a]), &detections(&[odd, a, a], &[0.9, f32::NAN, 0.5]));
        assert_eq!(evaluator.result().map, 1.0);
    }

    #[test]
    fn ids_outside_the_classes_are_dropped() {
        let mut evaluator = PascalEvaluator::new(1);
        let a = [0., 0., 10., 10.];
        for class in [0, 2, u32::MAX] {
            let gt = PictureGroundtruth { classes: vec![class], ..groundtruth(&[a]) };
            let det = PictureDetections { classes: vec![class], ..detections(&[a], &[0.5]) };
            evaluator.add(&gt, &det);
        }
        assert_eq!(evaluator.result().num_gt, [0]);
    }
}
