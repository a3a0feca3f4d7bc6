//! How near two runs of a model come to each other on the same pictures, and the report of it in export.json.

use serde::Serialize;

use crate::detection::boxes::{BBox, Detections};

/// Detections below take no part: nobody would look at them.
pub const MIN_SCORE: f32 = 0.05;

/// What the files of an export find beside what odh finds.
#[derive(Debug, Clone, Serialize)]
pub struct Parity {
    /// Where the pictures are from.
    pub source: String,
    pub pictures: usize,
    /// The largest difference in a score, or in a box as a share of the picture's side, that is no drift.
    pub tolerance: f32,
    /// Detections below take no part.
    pub min_score: f32,
    /// Odh's own mAP@0.5 on the pictures; none without groundtruth.
    pub map_at_50: Option<f64>,
    pub formats: Vec<FormatParity>,
}

/// What one file finds.
#[derive(Debug, Clone, Serialize)]
pub struct FormatParity {
    pub format: &'static str,
    pub file: String,
    #[serde(flatten)]
    pub outcome: Outcome,
}

/// Whether a file was run, and what came of it.
#[derive(Debug, Clone, Serialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum Outcome {
    /// Nothing here can run it.
    NotRun { reason: String },
    /// It was to be run, and did not.
    Failed { reason: String },
    /// It was run on every picture.
    Ran(Run),
}

/// A file's run on every picture.
#[derive(Debug, Clone, Serialize)]
pub struct Run {
    /// Name and version.
    pub runtime: String,
    #[serde(flatten)]
    pub difference: Difference,
    pub map_at_50: Option<f64>,
    pub seconds_per_picture: f64,
    /// Whether no difference is over the tolerance and no detection is without partner.
    pub equal: bool,
}

/// How far apart detections are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Difference {
    /// The largest in a score.
    pub score: f32,
    /// The largest in a corner of a box, as a share of the picture's side.
    #[serde(rename = "box")]
    pub bbox: f32,
    /// Detections that were compared.
    pub detections: usize,
    /// Detections that only one side has.
    pub unpaired: usize,
}

impl Parity {
    /// The files that drifted or failed.
    pub fn drifted(&self) -> Vec<&FormatParity> {
        let drifted = |f: &&FormatParity| match &f.outcome {
            Outcome::NotRun { .. } => false,
            Outcome::Failed { .. } => true,
            Outcome::Ran(run) => !run.equal,
        };
        self.formats.iter().filter(drifted).collect()
    }

    /// Whether any file was run.
    pub fn ran(&self) -> bool {
        self.formats.iter().any(|f| !matches!(f.outcome, Outcome::NotRun { .. }))
    }
}

impl Difference {
    /// Between what was `expected` and what was `found` in one picture.
    ///
    /// Detections of one class are paired, best score first, with the nearest by box and score. One that stands alone is forgiven where its
    /// score lies within `tolerance` of [`MIN_SCORE`]: either side may have it above.
    pub fn between(expected: &Detections, found: &Detections, tolerance: f32) -> Self {
        let mut free: Vec<usize> = (0..found.scores.len()).collect();
        let mut difference = Self::default();
        let lone = |score: f32| usize::from(score >= MIN_SCORE + tolerance);
        for i in (0..expected.scores.len()).filter(|&i| expected.scores[i] >= MIN_SCORE) {
            let apart = |j: usize| (largest(&expected.boxes[i], &found.boxes[j]), distance(expected.scores[i], found.scores[j]));
            let nearest = (0..free.len()).filter(|&k| found.classes[free[k]] == expected.classes[i]).min_by(|&a, &b| {
                let sum = |k: usize| apart(free[k]).0 + apart(free[k]).1;
                sum(a).total_cmp(&sum(b))
            });
            let Some(nearest) = nearest else {
                difference.unpaired += lone(expected.scores[i]);
                continue;
            };
            let (bbox, score) = apart(free.swap_remove(nearest));
            difference.bbox = difference.bbox.max(bbox);
            difference.score = difference.score.max(score);
            difference.detections += 1;
        }
        difference.unpaired += free.iter().map(|&j| lone(found.scores[j])).sum::<usize>();
        difference
    }

    /// Of these pictures and those.
    pub fn and(self, other: Self) -> Self {
        Self {
            score: self.score.max(other.score),
            bbox: self.bbox.max(other.bbox),
            detections: self.detections + other.detections,
            unpaired: self.unpaired + other.unpaired,
        }
    }

    /// Whether it is no drift.
    pub fn within(&self, tolerance: f32) -> bool {
        self.unpaired == 0 && self.score <= tolerance && self.bbox <= tolerance
    }
}

/// What is not a number is infinitely far from everything.
fn distance(a: f32, b: f32) -> f32 {
    let distance = (a - b).abs();
    if distance.is_nan() { f32::INFINITY } else { distance }
}

fn largest(a: &BBox, b: &BBox) -> f32 {
    a.iter().zip(b).map(|(a, b)| distance(*a, *b)).fold(0.0, f32::max)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn detections(rows: &[(usize, f32, f32)]) -> Detections {
        Detections {
            boxes: rows.iter().map(|&(_, _, x)| [0.1, x, 0.5, 0.9]).collect(),
            scores: rows.iter().map(|r| r.1).collect(),
            classes: rows.iter().map(|r| r.0).collect(),
        }
    }

    #[test]
    fn detections_are_paired_by_class_box_and_score_in_whatever_order() {
        let expected = detections(&[(0, 0.9, 0.1), (0, 0.8, 0.3), (1, 0.7, 0.2), (0, 0.01, 0.5)]);
        assert_eq!(Difference::between(&expected, &expected, 1e-4), Difference { detections: 3, ..Difference::default() });
        let found = detections(&[(1, 0.7, 0.2), (0, 0.8, 0.3125), (0, 0.875, 0.1)]);
        let difference = Difference::between(&expected, &found, 1e-4);
        assert!((difference.score - 0.025).abs() < 1e-6 && (difference.bbox - 0.0125).abs() < 1e-6, "{difference:?}");
        assert_eq!((difference.detections, difference.unpaired), (3, 0));
        assert!(difference.within(0.03) && !difference.within(0.02));
    }

    #[test]
    fn a_detection_of_one_side_alone_is_a_drift_unless_it_lies_on_the_threshold() {
        let one = detections(&[(0, 0.9, 0.1)]);
        for (other, unpaired) in [
            (detections(&[(1, 0.9, 0.1)]), 2),
            (detections(&[]), 1),
            (detections(&[(0, 0.9, 0.1), (0, 0.3, 0.1)]), 1),
            (detections(&[(0, 0.9, 0.1), (0, 0.05005, 0.1)]), 0),
            (detections(&[(0, 0.9, 0.1), (2, 0.04, 0.1)]), 0),
        ] {
            assert_eq!(Difference::between(&one, &other, 1e-4).unpaired, unpaired, "{other:?}");
            assert_eq!(Difference::between(&other, &one, 1e-4).unpaired, unpaired, "{other:?}");
        }
    }

    #[test]
    fn what_is_not_a_number_is_never_equal() {
        let mut found = detections(&[(0, 0.9, 0.1)]);
        found.boxes[0][2] = f32::NAN;
        assert!(!Difference::between(&detections(&[(0, 0.9, 0.1)]), &found, 1.0).within(1.0));
        found = detections(&[(0, f32::NAN, 0.1)]);
        assert!(!Difference::between(&detections(&[(0, 0.9, 0.1)]), &found, 1.0).within(1.0));
    }
}
