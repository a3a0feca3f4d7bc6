//! Flips and quarter turns, each done to half of the pictures.

use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use crate::data::sample::Sample;

/// Which way to turn a picture over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flip {
    /// Left to right.
    Horizontal,
    /// Top to bottom.
    Vertical,
    /// By 90 degrees against the clock.
    Rotation90,
}

impl Flip {
    /// Does it with probability one half.
    pub fn apply(self, sample: &mut Sample, rng: &mut ChaCha8Rng) {
        if rng.random::<f32>() <= 0.5 {
            return;
        }
        match self {
            Flip::Horizontal => sample.flip_left_right(),
            Flip::Vertical => sample.flip_up_down(),
            Flip::Rotation90 => sample.rotate_90(),
        }
    }
}
