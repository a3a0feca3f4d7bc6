//! Seeded randomness and the little mathematics that drawing needs, the same to the last bit on every machine.
//!
//! `f32::sin` and its kin ask the platform's libm, whose last bit differs from one to the next; the pictures are checked byte for
//! byte, so sines come from polynomials here and numbers from the generator's raw words.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// A generator of numbers for one picture.
pub struct Chance(ChaCha8Rng);

impl Chance {
    /// Picture `stream` of the set `seed`: each picture has a stream of its own, so a longer set begins with the shorter one.
    pub fn new(seed: u64, stream: u64) -> Self {
        let mut generator = ChaCha8Rng::seed_from_u64(seed);
        generator.set_stream(stream);
        Self(generator)
    }

    /// From `low` to `high`, evenly.
    pub fn within(&mut self, low: f32, high: f32) -> f32 {
        // 24 bits are what an f32 holds exactly.
        low + (high - low) * ((self.0.next_u32() >> 8) as f32 / (1 << 24) as f32)
    }

    /// From 0 to `count - 1`, evenly.
    pub fn below(&mut self, count: usize) -> usize {
        ((u64::from(self.0.next_u32()) * count as u64) >> 32) as usize
    }

    pub fn happens(&mut self, probability: f32) -> bool {
        self.within(0.0, 1.0) < probability
    }

    pub fn word(&mut self) -> u32 {
        self.0.next_u32()
    }
}

/// Sine of `turns` (1 is a full circle), to 2e-4: a parabola per half turn, sharpened once.
pub fn sine(turns: f32) -> f32 {
    let t = turns - turns.floor();
    let half = if t < 0.5 { 16.0 * t * (0.5 - t) } else { -16.0 * (t - 0.5) * (1.0 - t) };
    0.775 * half + 0.225 * half * half.abs()
}

pub fn cosine(turns: f32) -> f32 {
    sine(turns + 0.25)
}

/// The direction of (x, y) in turns, 0 to 1, growing from x towards y; monotone, and near enough to even for a ragged outline.
pub fn direction(x: f32, y: f32) -> f32 {
    let sum = x.abs() + y.abs();
    if sum == 0.0 {
        return 0.0;
    }
    let quarter = y / sum; // -1 to 1
    let turns = if x >= 0.0 { quarter / 4.0 } else { 0.5 - quarter / 4.0 };
    turns - turns.floor()
}

/// A value from 0 to 1 for each whole-numbered point of a plane.
pub fn speckle(x: i32, y: i32, seed: u32) -> f32 {
    let mut h = seed ^ (x as u32).wrapping_mul(0x9E37_79B1) ^ (y as u32).wrapping_mul(0x85EB_CA77);
    h = (h ^ (h >> 15)).wrapping_mul(0x2C1B_3C6D);
    h = (h ^ (h >> 12)).wrapping_mul(0x297A_2D39);
    ((h ^ (h >> 15)) >> 8) as f32 / (1 << 24) as f32
}

/// Smooth noise from 0 to 1: speckles one unit apart, blended between.
pub fn cloud(x: f32, y: f32, seed: u32) -> f32 {
    let (x0, y0) = (x.floor(), y.floor());
    let ease = |t: f32| t * t * (3.0 - 2.0 * t);
    let (fx, fy) = (ease(x - x0), ease(y - y0));
    let at = |dx: i32, dy: i32| speckle(x0 as i32 + dx, y0 as i32 + dy, seed);
    let top = at(0, 0) + (at(1, 0) - at(0, 0)) * fx;
    let bottom = at(0, 1) + (at(1, 1) - at(0, 1)) * fx;
    top + (bottom - top) * fy
}
