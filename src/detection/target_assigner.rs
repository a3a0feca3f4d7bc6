//! What each anchor should predict (upstream core/target_assigner.py).

use super::box_coder::BoxCoder;
use super::boxes::{BBox, Groundtruth};
use super::matcher::{Match, Matcher};

/// Targets of one picture, a row an anchor.
#[derive(Debug, Clone, PartialEq)]
pub struct Targets {
    /// What each anchor matched. `[A]`.
    pub matches: Vec<Match>,
    /// Column of the target class, 0 for background. `[A]`.
    pub classes: Vec<i64>,
    /// 1, or 0 for an ignored anchor. `[A]`.
    pub class_weights: Vec<f32>,
    /// Encoded boxes, zeros where nothing matched. `[A * 4]`.
    pub codes: Vec<f32>,
    /// 1 where a groundtruth matched. `[A]`.
    pub box_weights: Vec<f32>,
}

impl Targets {
    /// Number of anchors that matched a groundtruth.
    pub fn num_matched(&self) -> usize {
        self.matches.iter().filter(|m| matches!(m, Match::Groundtruth(_))).count()
    }
}

/// Matches the anchors to one picture's groundtruth and encodes what they should say.
pub fn assign(
    matcher: &Matcher,
    coder: &BoxCoder,
    anchors: &[BBox],
    groundtruth: &Groundtruth,
    negative_class_weight: f32,
) -> Targets {
    let matches = matcher.matches(&groundtruth.boxes, anchors);
    let n = anchors.len();
    let mut targets = Targets {
        matches: Vec::new(),
        classes: vec![0; n],
        class_weights: vec![0.0; n],
        codes: vec![0.0; 4 * n],
        box_weights: vec![0.0; n],
    };
    for (a, m) in matches.iter().enumerate() {
        match *m {
            Match::Groundtruth(g) => {
                targets.classes[a] = groundtruth.classes[g] as i64 + 1;
                targets.class_weights[a] = 1.0;
                targets.box_weights[a] = 1.0;
                targets.codes[4 * a..4 * a + 4].copy_from_slice(&coder.encode(&groundtruth.boxes[g], &anchors[a]));
            }
            Match::Background => targets.class_weights[a] = negative_class_weight,
            Match::Ignored => {}
        }
    }
    targets.matches = matches;
    targets
}
