//! Chooses the anchors or proposals that count in a loss: a random few, positives and negatives balanced (upstream
//! core/balanced_positive_negative_sampler.py).

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

/// The order in which candidates are taken.
#[derive(Debug, Clone)]
pub enum Shuffle {
    /// By chance.
    Random(Box<ChaCha8Rng>),
    /// The first come first: how the reference's training goldens were made.
    Identity,
}

impl Shuffle {
    /// The choices of one training step, which depend on nothing before it.
    pub fn of_step(seed: u64, step: u64) -> Self {
        // A key of two numbers: no two pairs share a stream.
        let mut key = [0u8; 32];
        key[..8].copy_from_slice(&seed.to_le_bytes());
        key[8..16].copy_from_slice(&step.to_le_bytes());
        Self::Random(Box::new(ChaCha8Rng::from_seed(key)))
    }

    /// At most `count` of the candidates, each as likely as any other.
    fn take(&mut self, mut candidates: Vec<usize>, count: usize) -> Vec<usize> {
        if let Self::Random(rng) = self {
            candidates.shuffle(&mut **rng);
        }
        candidates.truncate(count);
        candidates
    }
}

/// How many, and how many of them may be positive.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BalancedSampler {
    /// Candidates to choose.
    pub size: usize,
    /// At most this share of them is positive; negatives fill up the rest.
    pub positive_fraction: f64,
}

impl BalancedSampler {
    /// The chosen rows, in ascending order.
    ///
    /// * `candidate`, `positive`: of each row; a row that is no candidate is never chosen.
    pub fn sample(&self, candidate: &[bool], positive: &[bool], shuffle: &mut Shuffle) -> Vec<usize> {
        assert!(candidate.len() == positive.len(), "{} candidates, {} labels", candidate.len(), positive.len());
        let rows = |wanted: bool| (0..candidate.len()).filter(|&i| candidate[i] && positive[i] == wanted).collect::<Vec<_>>();
        let max_positives = (self.positive_fraction * self.size as f64) as usize;
        let mut chosen = shuffle.take(rows(true), max_positives);
        let negatives = shuffle.take(rows(false), self.size - chosen.len());
        chosen.extend(negatives);
        chosen.sort_unstable();
        chosen
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLER: BalancedSampler = BalancedSampler { size: 8, positive_fraction: 0.25 };

    #[test]
    fn positives_are_at_most_their_share_and_negatives_fill_up() {
        let candidate = vec![true; 40];
        let positive: Vec<bool> = (0..40).map(|i| i < 10).collect();
        for step in 0..50 {
            let chosen = SAMPLER.sample(&candidate, &positive, &mut Shuffle::of_step(1, step));
            assert_eq!(chosen.len(), 8);
            assert_eq!(chosen.iter().filter(|&&i| positive[i]).count(), 2);
            assert!(chosen.windows(2).all(|w| w[0] < w[1]));
        }
        let none = vec![false; 40];
        assert_eq!(SAMPLER.sample(&candidate, &none, &mut Shuffle::Identity), [0, 1, 2, 3, 4, 5, 6, 7]);
    }

    #[test]
    fn too_few_candidates_are_all_chosen_and_others_never() {
        let candidate: Vec<bool> = (0..20).map(|i| i % 4 == 0).collect();
        let positive: Vec<bool> = (0..20).map(|i| i < 4).collect();
        assert_eq!(SAMPLER.sample(&candidate, &positive, &mut Shuffle::of_step(0, 0)), [0, 4, 8, 12, 16]);
    }

    #[test]
    fn every_candidate_is_as_likely_as_any_other() {
        let candidate = vec![true; 32];
        let positive: Vec<bool> = (0..32).map(|i| i < 8).collect();
        let mut counts = [0f64; 32];
        let draws = 8000;
        for step in 0..draws {
            for i in SAMPLER.sample(&candidate, &positive, &mut Shuffle::of_step(7, step)) {
                counts[i] += 1.0 / draws as f64;
            }
        }
        // 2 of 8 positives and 6 of 24 negatives: a quarter each; the standard deviation is 0.005.
        assert!(counts.iter().all(|c| (c - 0.25).abs() < 0.025), "{counts:?}");
    }

    #[test]
    fn a_step_chooses_the_same_whenever_it_is_run() {
        let candidate = vec![true; 100];
        let positive = vec![false; 100];
        let of = |seed, step| SAMPLER.sample(&candidate, &positive, &mut Shuffle::of_step(seed, step));
        assert_eq!(of(3, 5), of(3, 5));
        assert_ne!(of(3, 5), of(3, 6));
        assert_ne!(of(3, 5), of(4, 5));
    }
}
