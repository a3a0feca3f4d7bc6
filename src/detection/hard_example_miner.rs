//! Chooses the anchors that count in the loss: the worst negatives, at most so many a positive (upstream core/losses.py, `HardExampleMiner`).

use super::boxes::{BBox, area};
use super::matcher::Match;
use super::nms::{nms, overlaps_more, sorted_corners};

/// Which losses rank the anchors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RankBy {
    Both,
    Classification,
    Localization,
}

/// The fields of the message `HardExampleMiner`, resolved.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct HardExampleMiner {
    /// At most so many anchors a picture; none for all.
    pub num_hard_examples: Option<usize>,
    /// Of the suppression among the predicted boxes.
    pub iou_threshold: f32,
    pub rank_by: RankBy,
    /// None for no limit.
    pub max_negatives_per_positive: Option<f32>,
    /// Even in a picture without positives.
    pub min_negatives_per_image: usize,
}

/// What was chosen in one picture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mined {
    /// Anchors, worst first.
    pub selected: Vec<usize>,
    pub num_negatives: usize,
}

impl HardExampleMiner {
    /// The anchors of one picture that count.
    ///
    /// * `boxes`: predicted, decoded, `[A]`.
    /// * `losses`: by `rank_by`, `[A]`.
    pub fn mine(&self, boxes: &[BBox], losses: &[f32], matches: &[Match]) -> Mined {
        let max = self.num_hard_examples.unwrap_or(boxes.len());
        let candidates = suppress_near_copies(boxes, losses, self.iou_threshold, max);
        let positive = |a: usize| matches!(matches[a], Match::Groundtruth(_));
        let negative = |a: usize| matches!(matches[a], Match::Background);
        let Some(ratio) = self.max_negatives_per_positive else {
            let num_negatives = candidates.iter().filter(|&&a| negative(a)).count();
            return Mined { selected: candidates, num_negatives };
        };
        let num_positives = candidates.iter().filter(|&&a| positive(a)).count();
        let max_negatives = self.min_negatives_per_image.max((ratio * num_positives as f32) as usize);
        let mut num_negatives = 0;
        let selected = candidates
            .into_iter()
            .filter(|&a| {
                positive(a)
                    || negative(a) && num_negatives < max_negatives && {
                        num_negatives += 1;
                        true
                    }
            })
            .collect();
        Mined { selected, num_negatives }
    }
}

/// Non-maximum suppression at a threshold near 1, the same result as `nms::nms`, faster: two boxes whose IoU exceeds `t` have areas
/// within a factor `t` of each other, so only kept boxes of like area are looked at.
fn suppress_near_copies(boxes: &[BBox], losses: &[f32], threshold: f32, max: usize) -> Vec<usize> {
    if !(0.5..1.0).contains(&threshold) {
        return nms(boxes, losses, threshold, max);
    }
    let mut order: Vec<usize> = (0..boxes.len()).collect();
    order.sort_by(|&a, &b| losses[b].total_cmp(&losses[a]).then(a.cmp(&b)));
    // Kept boxes by the logarithm of their area, in buckets as wide as the threshold allows areas to differ.
    let width = -threshold.ln() * 1.001 + 1e-6;
    let bucket = |size: f32| (size.ln() / width).floor() as i64;
    let mut kept = Vec::new();
    let mut buckets: std::collections::HashMap<i64, Vec<(BBox, f32)>> = std::collections::HashMap::new();
    for i in order {
        if kept.len() >= max {
            break;
        }
        let b = sorted_corners(&boxes[i]);
        let size = area(&b);
        // A box without a finite area overlaps nothing and suppresses nothing.
        if size > 0.0 && size.is_finite() {
            let home = bucket(size);
            let near = (home - 1..=home + 1).filter_map(|k| buckets.get(&k)).flatten();
            let copy = near.into_iter().any(|(k, k_size)| overlaps_more(&b, size, k, *k_size, threshold));
            if copy {
                continue;
            }
            buckets.entry(home).or_default().push((b, size));
        }
        kept.push(i);
    }
    kept
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng};

    use super::*;

    #[test]
    fn keeps_three_negatives_a_positive() {
        let miner = HardExampleMiner {
            num_hard_examples: None,
            iou_threshold: 0.99,
            rank_by: RankBy::Classification,
            max_negatives_per_positive: Some(3.0),
            min_negatives_per_image: 0,
        };
        let boxes: Vec<BBox> = (0..10).map(|i| [0.0, i as f32, 1.0, i as f32 + 1.0]).collect();
        let losses: Vec<f32> = (0..10).map(|i| i as f32).collect();
        let mut matches = vec![Match::Background; 10];
        matches[0] = Match::Groundtruth(0);
        matches[9] = Match::Ignored;
        let mined = miner.mine(&boxes, &losses, &matches);
        assert_eq!(mined.selected, [8, 7, 6, 0]);
        assert_eq!(mined.num_negatives, 3);
        matches[0] = Match::Background;
        assert!(miner.mine(&boxes, &losses, &matches).selected.is_empty());
    }

    #[test]
    fn the_fast_suppression_equals_the_plain_one() {
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(1);
        for threshold in [0.5, 0.9, 0.99] {
            let mut boxes: Vec<BBox> = Vec::new();
            for _ in 0..300 {
                let (y, x): (f32, f32) = (rng.random(), rng.random());
                let (h, w): (f32, f32) = (rng.random(), rng.random());
                boxes.push([y, x, y + h, x + w]);
                let d: f32 = rng.random::<f32>() * 0.01;
                boxes.push([y + d * h, x, y + h, x + w]);
            }
            boxes.push([0.0; 4]);
            boxes.push([0.3, 0.3, 0.3, 0.3]);
            let losses: Vec<f32> = boxes.iter().map(|_| rng.random()).collect();
            for max in [10, 1000] {
                assert_eq!(suppress_near_copies(&boxes, &losses, threshold, max), super::nms(&boxes, &losses, threshold, max));
            }
        }
    }
}
