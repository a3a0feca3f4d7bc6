//! How many channels a layer gets under a depth multiplier.

/// A pipeline config's `depth_multiplier` and `min_depth`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Depth {
    /// Times the nominal number, rounded down.
    pub multiplier: f64,
    /// But at least this.
    pub min: i64,
}

impl Depth {
    /// Channels for a nominal number of them.
    pub fn of(&self, nominal: i64) -> i64 {
        ((nominal as f64 * self.multiplier) as i64).max(self.min)
    }
}

/// The multiple of `divisor` nearest to `channels`, at least `min`, and never less than nine tenths of `channels`.
///
/// Source: upstream slim/nets/mobilenet/conv_blocks.py, `_make_divisible`.
pub fn make_divisible(channels: f64, divisor: i64, min: i64) -> i64 {
    let nearest = ((channels + divisor as f64 / 2.0) as i64 / divisor * divisor).max(min);
    if (nearest as f64) < 0.9 * channels { nearest + divisor } else { nearest }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_depth_is_rounded_down_and_has_a_floor() {
        let depth = Depth { multiplier: 0.75, min: 16 };
        assert_eq!([depth.of(64), depth.of(30), depth.of(8)], [48, 22, 16]);
    }

    #[test]
    fn channels_come_in_multiples_that_lose_less_than_a_tenth() {
        let of = |channels: f64| make_divisible(channels, 8, 8);
        // By hand: 44.8 is nearer to 48 than to 40; 33.6 keeps 0.95 of itself as 32, but 11.2 only 0.71 as 8.
        assert_eq!([of(44.8), of(33.6), of(11.2), of(3.0), of(144.0)], [48, 32, 16, 8, 144]);
        assert_eq!(make_divisible(8.0, 8, 16), 16);
    }
}
