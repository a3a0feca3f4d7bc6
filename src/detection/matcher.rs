//! Matches anchors to groundtruth by overlap (upstream matchers/argmax_matcher.py).

use super::boxes::{BBox, iou};

/// What an anchor is matched to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Match {
    /// The groundtruth box of this index.
    Groundtruth(usize),
    /// Background.
    Background,
    /// Neither: it has no part in the loss.
    Ignored,
}

/// The fields of the message `ArgMaxMatcher`, resolved.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ArgMaxMatcher {
    /// An anchor's best IoU must reach this to match.
    pub matched_threshold: f32,
    /// Below this it is background, or with `negatives_lower_than_unmatched` false: from here to the matched threshold.
    pub unmatched_threshold: f32,
    pub negatives_lower_than_unmatched: bool,
    /// Every groundtruth takes its best anchor, however small the overlap.
    pub force_match_for_each_row: bool,
}

impl ArgMaxMatcher {
    /// One match an anchor.
    ///
    /// * `groundtruth`: `[M]`; `anchors`: `[A]`, in the same units.
    pub fn matches(&self, groundtruth: &[BBox], anchors: &[BBox]) -> Vec<Match> {
        if groundtruth.is_empty() {
            return vec![Match::Background; anchors.len()];
        }
        // Best anchor of each groundtruth: (similarity, anchor), the first of equals.
        let mut best_anchor = vec![(f32::NEG_INFINITY, 0usize); groundtruth.len()];
        let mut matches = Vec::with_capacity(anchors.len());
        for (a, anchor) in anchors.iter().enumerate() {
            let mut best = (f32::NEG_INFINITY, 0usize);
            for (g, b) in groundtruth.iter().enumerate() {
                let similarity = iou(b, anchor);
                if similarity > best.0 {
                    best = (similarity, g);
                }
                if similarity > best_anchor[g].0 {
                    best_anchor[g] = (similarity, a);
                }
            }
            let below = best.0 < self.unmatched_threshold;
            let between = !below && best.0 < self.matched_threshold;
            matches.push(match (below, between, self.negatives_lower_than_unmatched) {
                (false, false, _) => Match::Groundtruth(best.1),
                (true, _, true) | (_, true, false) => Match::Background,
                _ => Match::Ignored,
            });
        }
        if self.force_match_for_each_row && !anchors.is_empty() {
            // The first groundtruth that claims an anchor has it.
            for (g, (_, a)) in best_anchor.iter().enumerate().rev() {
                matches[*a] = Match::Groundtruth(g);
            }
        }
        matches
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MATCHER: ArgMaxMatcher = ArgMaxMatcher {
        matched_threshold: 0.5,
        unmatched_threshold: 0.5,
        negatives_lower_than_unmatched: true,
        force_match_for_each_row: true,
    };

    #[test]
    fn every_groundtruth_takes_its_best_anchor() {
        let anchors = [[0.0, 0.0, 0.5, 0.5], [0.5, 0.5, 1.0, 1.0]];
        let groundtruth = [[0.0, 0.0, 0.5, 0.5], [0.9, 0.9, 1.0, 1.0]];
        assert_eq!(MATCHER.matches(&groundtruth, &anchors), [Match::Groundtruth(0), Match::Groundtruth(1)]);
    }

    #[test]
    fn the_first_groundtruth_wins_a_contested_anchor() {
        let anchors = [[0.0, 0.0, 1.0, 1.0]];
        let groundtruth = [[0.0, 0.0, 0.2, 0.2], [0.0, 0.0, 0.3, 0.3]];
        assert_eq!(MATCHER.matches(&groundtruth, &anchors), [Match::Groundtruth(0)]);
    }

    #[test]
    fn between_the_thresholds_an_anchor_is_ignored() {
        let matcher = ArgMaxMatcher { unmatched_threshold: 0.2, force_match_for_each_row: false, ..MATCHER };
        let anchors = [[0.0, 0.0, 1.0, 1.0]];
        assert_eq!(matcher.matches(&[[0.0, 0.0, 0.6, 0.6]], &anchors), [Match::Ignored]);
        assert_eq!(matcher.matches(&[[0.0, 0.0, 0.1, 0.1]], &anchors), [Match::Background]);
        assert_eq!(matcher.matches(&[], &anchors), [Match::Background]);
        assert_eq!(MATCHER.matches(&[[0.0, 0.0, 0.6, 0.6]], &[]), []);
    }
}
