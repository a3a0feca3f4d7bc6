//! Matches anchors to groundtruth by overlap (upstream matchers/).

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

/// How anchors are matched.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Matcher {
    /// Each anchor to the groundtruth that it overlaps most.
    ArgMax(ArgMaxMatcher),
    /// Each groundtruth to one anchor of its own.
    Bipartite,
}

impl Matcher {
    /// One match an anchor.
    ///
    /// * `groundtruth`: `[M]`; `anchors`: `[A]`, in the same units.
    pub fn matches(&self, groundtruth: &[BBox], anchors: &[BBox]) -> Vec<Match> {
        match self {
            Self::ArgMax(matcher) => matcher.matches(groundtruth, anchors),
            Self::Bipartite => bipartite(groundtruth, anchors),
        }
    }
}

/// The pair that overlaps most is matched, then the one that does among the rest, until there is no groundtruth or no anchor left; all other
/// anchors are background. Of equals the first groundtruth and the first anchor: upstream leaves these to the order of a heap.
///
/// Source: upstream matchers/bipartite_matcher.py; TensorFlow's contrib/image/kernels/bipartite_match_op.cc.
fn bipartite(groundtruth: &[BBox], anchors: &[BBox]) -> Vec<Match> {
    let mut matches = vec![Match::Background; anchors.len()];
    let best = |b: &BBox, matches: &[Match]| {
        let free = (0..anchors.len()).filter(|&a| matches[a] == Match::Background).map(|a| (iou(b, &anchors[a]), a));
        free.reduce(|best, other| if other.0 > best.0 { other } else { best })
    };
    // Each groundtruth's best free anchor; looked for again only when another takes it.
    let mut waiting: Vec<_> = groundtruth.iter().enumerate().map(|(g, b)| (g, best(b, &matches))).collect();
    while let Some((at, (g, (_, anchor)))) = waiting
        .iter()
        .enumerate()
        .filter_map(|(at, &(g, best))| Some((at, (g, best?))))
        .reduce(|first, other| if other.1.1.0 > first.1.1.0 { other } else { first })
    {
        matches[anchor] = Match::Groundtruth(g);
        waiting.remove(at);
        for (g, taken) in waiting.iter_mut().filter(|(_, best)| best.is_some_and(|(_, a)| a == anchor)) {
            *taken = best(&groundtruth[*g], &matches);
        }
    }
    matches
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
    fn bipartite_matching_gives_each_groundtruth_one_anchor_best_pairs_first() {
        // The second groundtruth overlaps the first anchor more than the first does, which then has to take its second best.
        let anchors = [[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 0.4, 0.4], [0.6, 0.6, 1.0, 1.0]];
        let groundtruth = [[0.0, 0.0, 0.7, 1.0], [0.0, 0.0, 0.9, 1.0]];
        let matches = Matcher::Bipartite.matches(&groundtruth, &anchors);
        assert_eq!(matches, [Match::Groundtruth(1), Match::Groundtruth(0), Match::Background]);
        // More groundtruth than anchors: the worst go without. None: all is background.
        assert_eq!(Matcher::Bipartite.matches(&groundtruth, &anchors[..1]), [Match::Groundtruth(1)]);
        assert_eq!(Matcher::Bipartite.matches(&[], &anchors), [Match::Background; 3]);
        // Without any overlap it still gets one.
        assert_eq!(Matcher::Bipartite.matches(&[[5.0, 5.0, 6.0, 6.0]], &anchors)[0], Match::Groundtruth(0));
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
