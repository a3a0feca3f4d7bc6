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
    /// The model's own that other roundings move, and that the file has as one of these ([`Difference::settled`]).
    pub moving: usize,
    /// The model's own on pictures of one colour that were not compared ([`Difference::undecided`]).
    pub undecided: usize,
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

    /// Whether a file's detections were held against any of the model's.
    pub fn compared(&self) -> bool {
        self.formats.iter().any(|f| match &f.outcome {
            Outcome::Ran(run) => {
                let Difference { detections, unpaired, moving, undecided, .. } = run.difference;
                detections + unpaired + moving + undecided > 0
            }
            _ => false,
        })
    }

    /// Whether any file was run.
    pub fn ran(&self) -> bool {
        self.formats.iter().any(|f| !matches!(f.outcome, Outcome::NotRun { .. }))
    }
}

/// Whether a detection that has no partner is held against the file: it may be the other side's too, a little below [`MIN_SCORE`].
fn counts_alone(score: f32, tolerance: f32) -> bool {
    score.is_nan() || score >= MIN_SCORE + tolerance
}

impl Difference {
    /// Between what was `expected` and what was `found` in one picture.
    ///
    /// Detections of one class are paired, best score first, with the nearest by box and score. One that stands alone is forgiven where its
    /// score lies within `tolerance` of [`MIN_SCORE`]: either side may have it above.
    pub fn between(expected: &Detections, found: &Detections, tolerance: f32) -> Self {
        let mut free: Vec<usize> = (0..found.scores.len()).collect();
        let mut difference = Self::default();
        for i in (0..expected.scores.len()).filter(|&i| expected.scores[i] >= MIN_SCORE) {
            let Some((k, apart)) = nearest(expected, i, found, &free) else {
                difference.unpaired += usize::from(counts_alone(expected.scores[i], tolerance));
                continue;
            };
            free.swap_remove(k);
            difference.take(apart);
        }
        difference.unpaired += free.iter().filter(|&&j| counts_alone(found.scores[j], tolerance)).count();
        difference
    }

    /// [`Self::between`], where roundings decide: what the model finds otherwise among `others` may be found as it is there.
    ///
    /// One of the model's without an equal in the file is moving if one of the others has no equal of it either; one of the file's without an
    /// equal must have one in the others.
    pub fn settled(expected: &Detections, found: &Detections, others: &[Detections], tolerance: f32) -> Self {
        let mut free: Vec<usize> = (0..found.scores.len()).collect();
        let mut difference = Self::default();
        let equal = |(bbox, score): (f32, f32)| bbox <= tolerance && score <= tolerance;
        let mut alone = Vec::new();
        for i in (0..expected.scores.len()).filter(|&i| expected.scores[i] >= MIN_SCORE) {
            match nearest(expected, i, found, &free) {
                Some((k, apart)) if equal(apart) => {
                    free.swap_remove(k);
                    difference.take(apart);
                }
                nearest => alone.push((i, nearest.map(|(_, apart)| apart))),
            }
        }
        let all = |rows: &Detections| (0..rows.scores.len()).collect::<Vec<usize>>();
        for (i, apart) in alone.into_iter().filter(|(i, _)| counts_alone(expected.scores[*i], tolerance)) {
            let has = |other: &Detections| nearest(expected, i, other, &all(other)).is_some_and(|(_, apart)| equal(apart));
            if !others.iter().all(has) {
                difference.moving += 1;
            } else if let Some(apart) = apart {
                difference.take(apart);
            } else {
                difference.unpaired += 1;
            }
        }
        for j in free.into_iter().filter(|&j| counts_alone(found.scores[j], tolerance)) {
            let apart = others.iter().filter_map(|other| nearest(found, j, other, &all(other))).map(|(_, apart)| apart);
            match apart.min_by(|a, b| (a.0 + a.1).total_cmp(&(b.0 + b.1))) {
                Some(apart) => difference.take(apart),
                None => difference.unpaired += 1,
            }
        }
        difference
    }

    /// Of a picture on which nothing can be compared. On one colour, hundreds of a first stage's anchors are equal but for the last bits of
    /// their scores, and these say which become proposals: in the original graph too, with other processors.
    pub fn undecided(expected: &Detections) -> Self {
        let undecided = expected.scores.iter().filter(|&&score| score >= MIN_SCORE).count();
        Self { undecided, ..Self::default() }
    }

    fn take(&mut self, (bbox, score): (f32, f32)) {
        self.bbox = self.bbox.max(bbox);
        self.score = self.score.max(score);
        self.detections += 1;
    }

    /// Of these pictures and those.
    pub fn and(self, other: Self) -> Self {
        Self {
            score: self.score.max(other.score),
            bbox: self.bbox.max(other.bbox),
            detections: self.detections + other.detections,
            unpaired: self.unpaired + other.unpaired,
            moving: self.moving + other.moving,
            undecided: self.undecided + other.undecided,
        }
    }

    /// Whether it is no drift.
    pub fn within(&self, tolerance: f32) -> bool {
        self.unpaired == 0 && self.score <= tolerance && self.bbox <= tolerance
    }
}

/// Of the rows `among` of `found`, the place in `among` of the one of the class of row `i` of `one` that is nearest by box and score, and how
/// far apart these are.
fn nearest(one: &Detections, i: usize, found: &Detections, among: &[usize]) -> Option<(usize, (f32, f32))> {
    let apart = |j: usize| (largest(&one.boxes[i], &found.boxes[j]), distance(one.scores[i], found.scores[j]));
    let same = (0..among.len()).filter(|&k| found.classes[among[k]] == one.classes[i]).map(|k| (k, apart(among[k])));
    same.min_by(|(_, a), (_, b)| (a.0 + a.1).total_cmp(&(b.0 + b.1)))
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
    fn what_is_undecided_is_counted_and_no_drift() {
        let expected = detections(&[(0, 0.9, 0.1), (0, 0.8, 0.3), (0, 0.01, 0.5)]);
        let difference = Difference::undecided(&expected).and(Difference::between(&expected, &expected, 1e-4));
        assert_eq!((difference.undecided, difference.detections), (2, 2));
        assert!(difference.within(1e-4));
        let one = crate::data::image::RgbImage { width: 2, height: 1, data: vec![1, 2, 3, 1, 2, 3] };
        assert!(one.has_one_colour());
        assert!(!crate::data::image::RgbImage { data: vec![1, 2, 3, 1, 2, 4], ..one }.has_one_colour());
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
    fn what_other_roundings_move_may_be_found_as_it_is_there_and_nothing_else() {
        let expected = detections(&[(0, 0.9, 0.1), (1, 0.8, 0.5)]);
        let others = [expected.clone(), detections(&[(0, 0.9, 0.1), (1, 0.7, 0.52)])];
        let settled = |found: &[(usize, f32, f32)]| Difference::settled(&expected, &detections(found), &others, 1e-4);
        let moved = settled(&[(1, 0.70001, 0.52), (0, 0.9, 0.1)]);
        assert!(moved.within(1e-4) && moved.moving == 1 && moved.detections == 2, "{moved:?}");
        assert!(!settled(&[(0, 0.9, 0.1), (1, 0.75, 0.51)]).within(1e-4), "as none of them has it");
        assert!(!settled(&[(0, 0.85, 0.1), (1, 0.8, 0.5)]).within(1e-4), "what does not move must be equal");
        assert!(!settled(&[(1, 0.8, 0.5)]).within(1e-4), "what does not move must be there");
        assert!(!settled(&[(0, 0.9, 0.1), (1, 0.8, 0.5), (2, 0.3, 0.5)]).within(1e-4), "nothing may come of itself");
        assert!(!settled(&[(0, f32::NAN, 0.1), (1, 0.8, 0.5)]).within(1e-4));
        let without = Difference::settled(&expected, &detections(&[(0, 0.9, 0.1), (1, 0.7, 0.52)]), &[], 1e-4);
        assert!(!without.within(1e-4), "where nothing moves, it is a drift");
        assert_eq!(settled(&[(0, 0.9, 0.1), (1, 0.8, 0.5)]), Difference { detections: 2, ..Difference::default() });
    }

    #[test]
    fn what_is_not_a_number_is_never_equal() {
        let mut found = detections(&[(0, 0.9, 0.1)]);
        found.boxes[0][2] = f32::NAN;
        assert!(!Difference::between(&detections(&[(0, 0.9, 0.1)]), &found, 1.0).within(1.0));
        found = detections(&[(0, f32::NAN, 0.1)]);
        assert!(!Difference::between(&detections(&[(0, 0.9, 0.1)]), &found, 1.0).within(1.0));
        assert!(!Difference::between(&detections(&[]), &found, 1e-4).within(1e-4), "nor forgiven where it stands alone");
    }
}
