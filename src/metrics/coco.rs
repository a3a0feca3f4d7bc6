//! COCO's twelve figures, equal to those of pycocotools on the same boxes and scores.
//!
//! Upstream: pycocotools 2.0.8 `cocoeval.py`, bounding boxes, default parameters, fed as the OD API's
//! `CocoDetectionEvaluator` feeds it. Pictures are matched as they come in; what is kept of a detection is its score and
//! two bits for each of the ten overlaps and four size classes.

use std::collections::BTreeMap;

use serde::Serialize;

use super::matching::{PictureDetections, PictureGroundtruth, Xywh, area_f32, iou_coco, rows_by_class};
use crate::detection::boxes::BBox;

/// Overlap thresholds: 0.5 to 0.95.
const NUM_IOUS: usize = 10;
/// Points of recall at which precision is read: 0 to 1.
const NUM_RECALLS: usize = 101;
/// Detections of a class that count in a picture, for each of the three recalls.
const MAX_DETECTIONS: [usize; 3] = [1, 10, 100];
/// Size classes by area in square pixels, both ends included: all, small, medium, large.
const AREA_RANGES: [[f64; 2]; 4] = [[0.0, 1e10], [0.0, 1024.0], [1024.0, 9216.0], [9216.0, 1e10]];
/// numpy's `spacing(1)`, which keeps 0/0 out of the precision.
const SPACING: f64 = f64::EPSILON;
/// The bits of all thresholds.
const ALL_IOUS: u16 = (1 << NUM_IOUS) - 1;

/// Overlap threshold `t`, as numpy's `linspace(0.5, 0.95, 10)` has it: the ninth is just below 0.9.
fn iou_threshold(t: usize) -> f64 {
    if t + 1 == NUM_IOUS { 0.95 } else { 0.5 + t as f64 * ((0.95 - 0.5) / 9.0) }
}

/// Recall point `k`, as numpy's `linspace(0, 1, 101)` has it.
fn recall_point(k: usize) -> f64 {
    if k + 1 == NUM_RECALLS { 1.0 } else { k as f64 * 0.01 }
}

/// COCO's figures over all pictures; -1 where no groundtruth counts, as pycocotools prints it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CocoResult {
    /// The summary, in the order in which pycocotools prints it.
    pub stats: CocoStats,
    /// By category.
    pub categories: Vec<CocoCategory>,
}

/// The twelve figures: average precision (AP) and average recall (AR).
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct CocoStats {
    /// Mean over IoU 0.50 to 0.95.
    pub ap: f64,
    pub ap_50: f64,
    pub ap_75: f64,
    /// Areas up to 32 x 32 pixels.
    pub ap_small: f64,
    /// Areas of 32 x 32 to 96 x 96 pixels.
    pub ap_medium: f64,
    /// Areas from 96 x 96 pixels.
    pub ap_large: f64,
    /// With one detection a picture and category.
    pub ar_1: f64,
    pub ar_10: f64,
    pub ar_100: f64,
    pub ar_small: f64,
    pub ar_medium: f64,
    pub ar_large: f64,
}

impl CocoStats {
    /// The figures in pycocotools' order (`COCOeval.stats`).
    pub fn to_array(self) -> [f64; 12] {
        [
            self.ap,
            self.ap_50,
            self.ap_75,
            self.ap_small,
            self.ap_medium,
            self.ap_large,
            self.ar_1,
            self.ar_10,
            self.ar_100,
            self.ar_small,
            self.ar_medium,
            self.ar_large,
        ]
    }
}

/// One category's figures; NaN (`null` in JSON) where no groundtruth counts.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct CocoCategory {
    /// Label map id.
    pub id: u32,
    /// Mean over IoU 0.50 to 0.95.
    pub ap: f64,
    pub ap_50: f64,
}

/// Gathers pictures, one by one; holds 24 bytes a detection.
///
/// `Id` orders the pictures: among equal scores the picture of the smaller id comes first, whatever the order in which
/// they came in. pycocotools orders numbers as numbers and text as text.
#[derive(Debug, Clone)]
pub struct CocoEvaluator<Id> {
    categories: BTreeMap<u32, CategoryTally<Id>>,
}

#[derive(Debug, Clone)]
struct CategoryTally<Id> {
    /// Groundtruth that counts, by size class.
    num_gt: [usize; 4],
    pictures: Vec<(Id, Vec<Outcome>)>,
}

/// What became of one detection.
#[derive(Debug, Clone, Copy)]
struct Outcome {
    score: f32,
    /// Its place in the picture, best first.
    rank: u8,
    /// By size class, a bit for each overlap threshold: it matched groundtruth.
    matched: [u16; 4],
    /// Likewise: it counts neither for nor against.
    ignored: [u16; 4],
}

/// One groundtruth box of the category being matched.
struct Target {
    xywh: Xywh,
    crowd: bool,
    /// By size class: crowds, and boxes of another size.
    ignored: [bool; 4],
}

/// What is left of a category for one size class and number of detections.
struct Curve {
    /// Precision at the recall points by threshold, `[10, 101]`.
    precision: Vec<[f64; NUM_RECALLS]>,
    /// Recall after the last detection, `[10]`.
    recall: [f64; NUM_IOUS],
}

impl<Id: Ord> CocoEvaluator<Id> {
    /// An evaluator for these label map ids; what has another id is dropped.
    pub fn new(categories: impl IntoIterator<Item = u32>) -> Self {
        let empty = |id| (id, CategoryTally { num_gt: [0; 4], pictures: Vec::new() });
        Self { categories: categories.into_iter().map(empty).collect() }
    }

    /// Takes one picture in.
    ///
    /// # Panics
    /// If the rows of `groundtruth` or `detections` do not belong together.
    pub fn add(&mut self, id: Id, groundtruth: &PictureGroundtruth, detections: &PictureDetections)
    where
        Id: Clone,
    {
        groundtruth.check();
        detections.check();
        let (gt_rows, det_rows) = (rows_by_class(&groundtruth.classes), rows_by_class(&detections.classes));
        for (category, tally) in &mut self.categories {
            let targets: Vec<Target> = gt_rows
                .get(category)
                .map(|rows| rows.iter().map(|&row| Target::new(groundtruth, row)).collect())
                .unwrap_or_default();
            for (range, count) in tally.num_gt.iter_mut().enumerate() {
                *count += targets.iter().filter(|t| !t.ignored[range]).count();
            }
            if let Some(rows) = det_rows.get(category) {
                tally.pictures.push((id.clone(), match_picture(&targets, detections, rows)));
            }
        }
    }

    /// The figures over what was taken in so far.
    pub fn result(&self) -> CocoResult {
        // One curve a category: [all, all, all, small, medium, large] x [1, 10, 100, 100, 100, 100].
        const WANTED: [(usize, usize); 6] = [(0, 1), (0, 10), (0, 100), (1, 100), (2, 100), (3, 100)];
        let mut curves: [Vec<Curve>; 6] = Default::default();
        let mut categories = Vec::new();
        for (&id, tally) in &self.categories {
            let outcomes = tally.merged();
            for (place, (range, max_detections)) in WANTED.into_iter().enumerate() {
                curves[place].extend(curve(&outcomes, range, max_detections, tally.num_gt[range]));
            }
            let own = curves[2].last().filter(|_| tally.num_gt[0] > 0);
            categories.push(CocoCategory {
                id,
                ap: own.map_or(f64::NAN, |c| mean(c.precision.as_flattened())),
                ap_50: own.map_or(f64::NAN, |c| mean(&c.precision[0])),
            });
        }
        let precision = |place: usize, ious: std::ops::Range<usize>| {
            let parts: Vec<f64> = curves[place].iter().map(|c: &Curve| mean(c.precision[ious.clone()].as_flattened())).collect();
            mean_or_none(&parts)
        };
        let recall = |place: usize| {
            let parts: Vec<f64> = curves[place].iter().map(|c: &Curve| mean(&c.recall)).collect();
            mean_or_none(&parts)
        };
        let all = 0..NUM_IOUS;
        let stats = CocoStats {
            ap: precision(2, all.clone()),
            ap_50: precision(2, 0..1),
            ap_75: precision(2, 5..6),
            ap_small: precision(3, all.clone()),
            ap_medium: precision(4, all.clone()),
            ap_large: precision(5, all),
            ar_1: recall(0),
            ar_10: recall(1),
            ar_100: recall(2),
            ar_small: recall(3),
            ar_medium: recall(4),
            ar_large: recall(5),
        };
        CocoResult { stats, categories }
    }
}

impl<Id: Ord> CategoryTally<Id> {
    /// All detections by falling score; of equals the picture of the smaller id first, then the given order.
    fn merged(&self) -> Vec<Outcome> {
        let mut pictures: Vec<&(Id, Vec<Outcome>)> = self.pictures.iter().collect();
        pictures.sort_by(|a, b| a.0.cmp(&b.0));
        let mut outcomes: Vec<Outcome> = pictures.into_iter().flat_map(|(_, o)| o).copied().collect();
        outcomes.sort_by(|a, b| by_falling_score(a.score, b.score));
        outcomes
    }
}

/// Falling, not-a-number last: numpy's order of the negated scores.
fn by_falling_score(a: f32, b: f32) -> std::cmp::Ordering {
    b.partial_cmp(&a).unwrap_or_else(|| a.is_nan().cmp(&b.is_nan()))
}

impl Target {
    fn new(groundtruth: &PictureGroundtruth, row: usize) -> Self {
        let b: &BBox = &groundtruth.boxes_px[row];
        let area = f64::from(groundtruth.area_px.as_ref().map_or_else(|| area_f32(b), |areas| areas[row]));
        let crowd = groundtruth.is_crowd(row);
        Self { xywh: Xywh::new(b), crowd, ignored: AREA_RANGES.map(|range| crowd || is_outside(area, range)) }
    }
}

fn is_outside(area: f64, [low, high]: [f64; 2]) -> bool {
    area < low || area > high
}

/// Matches one category's detections in one picture under every threshold and size class.
fn match_picture(targets: &[Target], detections: &PictureDetections, rows: &[usize]) -> Vec<Outcome> {
    let mut rows = rows.to_vec();
    rows.sort_by(|&a, &b| by_falling_score(detections.scores[a], detections.scores[b]));
    rows.truncate(MAX_DETECTIONS[2]);
    let boxes: Vec<Xywh> = rows.iter().map(|&row| Xywh::new(&detections.boxes_px[row])).collect();
    // [D, M]
    let ious: Vec<f64> = boxes.iter().flat_map(|d| targets.iter().map(move |g| iou_coco(d, &g.xywh, g.crowd))).collect();
    let mut outcomes: Vec<Outcome> = rows
        .iter()
        .enumerate()
        .map(|(rank, &row)| Outcome {
            score: detections.scores[row],
            rank: rank as u8, // below 100
            matched: [0; 4],
            ignored: [0; 4],
        })
        .collect();
    for (range, &limits) in AREA_RANGES.iter().enumerate() {
        // Groundtruth that counts is tried first.
        let mut order: Vec<usize> = (0..targets.len()).collect();
        order.sort_by_key(|&g| targets[g].ignored[range]);
        // By groundtruth, the thresholds under which it is taken.
        let mut taken = vec![0u16; targets.len()];
        for (d, outcome) in outcomes.iter_mut().enumerate() {
            let overlaps = &ious[d * targets.len()..][..targets.len()];
            for t in 0..NUM_IOUS {
                let bit = 1 << t;
                let found = best_target(targets, &order, range, iou_threshold(t), |g| overlaps[g], |g| taken[g] & bit != 0);
                if let Some(g) = found {
                    taken[g] |= bit;
                    outcome.matched[range] |= bit;
                    if targets[g].ignored[range] {
                        outcome.ignored[range] |= bit;
                    }
                }
            }
            if is_outside(boxes[d].area(), limits) {
                outcome.ignored[range] |= ALL_IOUS & !outcome.matched[range];
            }
        }
    }
    outcomes
}

/// The free groundtruth of the best overlap that reaches `threshold`, the later of equals; one to ignore only if no other does.
fn best_target(
    targets: &[Target],
    order: &[usize],
    range: usize,
    threshold: f64,
    overlap: impl Fn(usize) -> f64,
    is_taken: impl Fn(usize) -> bool,
) -> Option<usize> {
    let mut best = None;
    let mut least = threshold.min(1.0 - 1e-10);
    for &g in order {
        if is_taken(g) && !targets[g].crowd {
            continue;
        }
        if best.is_some_and(|b: usize| !targets[b].ignored[range]) && targets[g].ignored[range] {
            break;
        }
        if overlap(g) < least {
            continue;
        }
        least = overlap(g);
        best = Some(g);
    }
    best
}

/// Precision and recall of one category; `None` without groundtruth that counts.
fn curve(outcomes: &[Outcome], range: usize, max_detections: usize, num_gt: usize) -> Option<Curve> {
    if num_gt == 0 {
        return None;
    }
    let mut curve = Curve { precision: vec![[0.0; NUM_RECALLS]; NUM_IOUS], recall: [0.0; NUM_IOUS] };
    let counted: Vec<&Outcome> = outcomes.iter().filter(|o| usize::from(o.rank) < max_detections).collect();
    let (mut recalls, mut precisions) = (Vec::with_capacity(counted.len()), Vec::with_capacity(counted.len()));
    for t in 0..NUM_IOUS {
        recalls.clear();
        precisions.clear();
        let (mut true_positives, mut false_positives) = (0.0f64, 0.0f64);
        // Ignored detections add nothing, and stay in the list as points.
        for outcome in &counted {
            let bit = 1 << t;
            if outcome.ignored[range] & bit == 0 {
                if outcome.matched[range] & bit != 0 {
                    true_positives += 1.0;
                } else {
                    false_positives += 1.0;
                }
            }
            recalls.push(true_positives / num_gt as f64);
            precisions.push(true_positives / (false_positives + true_positives + SPACING));
        }
        for i in (1..precisions.len()).rev() {
            precisions[i - 1] = f64::max(precisions[i - 1], precisions[i]);
        }
        curve.recall[t] = recalls.last().copied().unwrap_or(0.0);
        for (k, point) in curve.precision[t].iter_mut().enumerate() {
            let first = recalls.partition_point(|&r| r < recall_point(k));
            *point = precisions.get(first).copied().unwrap_or(0.0);
        }
    }
    Some(curve)
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// The mean, or COCO's -1 where there is nothing to take it of.
fn mean_or_none(values: &[f64]) -> f64 {
    if values.is_empty() { -1.0 } else { mean(values) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(b: BBox, class: u32) -> PictureGroundtruth {
        PictureGroundtruth { boxes_px: vec![b], classes: vec![class], ..Default::default() }
    }

    fn found(b: BBox, class: u32, score: f32) -> PictureDetections {
        PictureDetections { boxes_px: vec![b], classes: vec![class], scores: vec![score] }
    }

    #[test]
    fn a_perfect_small_detection_is_all_ones_but_medium_and_large_do_not_exist() {
        let mut evaluator = CocoEvaluator::new([1, 2]);
        let b = [0., 0., 20., 20.];
        evaluator.add(1, &one(b, 1), &found(b, 1, 0.9));
        let result = evaluator.result();
        let stats = result.stats.to_array();
        for (i, expected) in [1., 1., 1., 1., -1., -1., 1., 1., 1., 1., -1., -1.].into_iter().enumerate() {
            assert!((stats[i] - expected).abs() < 1e-9, "{i}: {stats:?}");
        }
        assert!(result.categories[1].ap.is_nan());
        assert!(serde_json::to_string(&result).unwrap().contains("\"ap\":null"));
    }

    #[test]
    fn an_overlap_of_three_quarters_passes_six_of_ten_thresholds() {
        let mut evaluator = CocoEvaluator::new([1]);
        evaluator.add(1, &one([0., 0., 100., 100.], 1), &found([0., 0., 75., 100.], 1, 0.9));
        let stats = evaluator.result().stats;
        assert!((stats.ap - 0.6).abs() < 1e-9 && (stats.ap_75 - 1.0).abs() < 1e-9, "{stats:?}");
    }

    #[test]
    fn the_thresholds_are_numpys() {
        assert_eq!(iou_threshold(8), 0.899_999_999_999_999_9);
        assert_eq!(iou_threshold(9), 0.95);
        assert_eq!(recall_point(35), 0.350_000_000_000_000_03);
    }

    #[test]
    fn boxes_and_scores_that_are_not_numbers_do_not_stop_it() {
        let mut evaluator = CocoEvaluator::new([1]);
        let b = [0., 0., 20., 20.];
        let odd = PictureDetections {
            boxes_px: vec![[f32::NAN; 4], b, [f32::INFINITY, 0., 1., f32::NEG_INFINITY]],
            classes: vec![1; 3],
            scores: vec![0.1, 0.9, f32::NAN],
        };
        evaluator.add(1, &one(b, 1), &odd);
        assert!((evaluator.result().stats.ap - 1.0).abs() < 1e-9);
    }
}
