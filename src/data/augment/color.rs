//! Colour changes: brightness, contrast, hue, saturation, grey, noise, black patches. Floats, 0 to 255, clipped each time.
//!
//! Sources: `object_detection/core/preprocessor.py` (April 2018) and TensorFlow's `adjust_hue`, `adjust_saturation` and
//! `adjust_contrast` kernels.

use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use crate::data::resizer::GREY;
use crate::data::sample::Sample;

/// One colour change, with the range that its amount is drawn from.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Color {
    /// Adds up to this much (of 1) to every value, or takes it away.
    Brightness(f32),
    /// Multiplies the distance from each channel's mean by a factor between the two.
    Contrast(f32, f32),
    /// Turns the hue by up to this part of the circle, either way.
    Hue(f32),
    /// Multiplies the saturation by a factor between the two.
    Saturation(f32, f32),
    /// Brightness, saturation, hue, contrast; or brightness, contrast, saturation, hue.
    Distort {
        /// Whether contrast comes second (`color_ordering: 1`).
        contrast_second: bool,
    },
    /// Makes the picture grey with this probability.
    Gray(f32),
    /// Multiplies every value by a factor of its own between the two.
    PixelScale(f32, f32),
    /// Blackens squares.
    BlackPatches {
        /// How many times it is tried.
        tries: usize,
        /// Of each try.
        probability: f32,
        /// The square's side, as a share of the picture's shorter one.
        size: f32,
    },
}

fn uniform(low: f32, high: f32, rng: &mut ChaCha8Rng) -> f32 {
    rng.random::<f32>() * (high - low) + low
}

impl Color {
    /// Draws the amount and changes the picture; boxes stay.
    pub fn apply(self, sample: &mut Sample, rng: &mut ChaCha8Rng) {
        match self {
            Color::Brightness(max) => {
                let delta = uniform(-max, max, rng);
                adjust(sample, |pixel| *pixel = pixel.map(|v| v + delta));
            }
            Color::Contrast(low, high) => {
                let factor = uniform(low, high, rng);
                let means = channel_means(sample.floats()).map(|mean| mean / 255.0);
                adjust(sample, |pixel| {
                    for (value, mean) in pixel.iter_mut().zip(means) {
                        *value = (*value - mean) * factor + mean;
                    }
                });
            }
            Color::Hue(max) => {
                let delta = uniform(-max, max, rng);
                adjust(sample, |pixel| *pixel = turn_hue(*pixel, delta));
            }
            Color::Saturation(low, high) => {
                let factor = uniform(low, high, rng);
                adjust(sample, |pixel| *pixel = scale_saturation(*pixel, factor));
            }
            Color::Distort { contrast_second } => {
                // The ranges are upstream's, fixed there too.
                let brightness = Color::Brightness(32.0 / 255.0);
                let (contrast, saturation, hue) = (Color::Contrast(0.5, 1.5), Color::Saturation(0.5, 1.5), Color::Hue(0.2));
                let order = match contrast_second {
                    false => [brightness, saturation, hue, contrast],
                    true => [brightness, contrast, saturation, hue],
                };
                order.into_iter().for_each(|step| step.apply(sample, rng));
            }
            Color::Gray(probability) => {
                if rng.random::<f32>() <= probability {
                    for pixel in sample.floats().as_chunks_mut::<3>().0 {
                        let [r, g, b] = *pixel;
                        *pixel = [GREY[0] * r + GREY[1] * g + GREY[2] * b; 3];
                    }
                }
            }
            Color::PixelScale(low, high) => {
                for value in sample.floats() {
                    *value = (*value * uniform(low, high, rng)).clamp(0.0, 255.0);
                }
            }
            Color::BlackPatches { tries, probability, size } => {
                for _ in 0..tries {
                    if rng.random::<f32>() <= probability {
                        black_patch(size, sample, rng);
                    }
                }
            }
        }
    }
}

/// Changes every pixel as values from 0 to 1, then clips to 0..255.
fn adjust(sample: &mut Sample, change: impl Fn(&mut [f32; 3])) {
    for pixel in sample.floats().as_chunks_mut::<3>().0 {
        let mut unit = pixel.map(|v| v / 255.0);
        change(&mut unit);
        *pixel = unit.map(|v| (v * 255.0).clamp(0.0, 255.0));
    }
}

fn channel_means(data: &[f32]) -> [f32; 3] {
    let mut sums = [0.0f64; 3];
    for pixel in data.as_chunks::<3>().0 {
        for (sum, &value) in sums.iter_mut().zip(pixel) {
            *sum += f64::from(value);
        }
    }
    sums.map(|sum| (sum / (data.len() / 3) as f64) as f32)
}

/// Hue in sixths of the circle from red (0..6), the least and the greatest value.
fn hue([r, g, b]: [f32; 3]) -> (f32, f32, f32) {
    let (min, max) = (r.min(g).min(b), r.max(g).max(b));
    let range = max - min;
    let hue = if range <= 0.0 {
        0.0
    } else if max == r {
        let turn = (g - b) / range;
        if turn < 0.0 { turn + 6.0 } else { turn }
    } else if max == g {
        (b - r) / range + 2.0
    } else {
        (r - g) / range + 4.0
    };
    (hue, min, max)
}

/// The inverse of [`hue`].
fn of_hue(hue: f32, min: f32, max: f32) -> [f32; 3] {
    let sixth = (hue as usize).min(5);
    let part = (hue - sixth as f32) * (max - min);
    let (rising, falling) = (min + part, max - part);
    match sixth {
        0 => [max, rising, min],
        1 => [falling, max, min],
        2 => [min, max, rising],
        3 => [min, falling, max],
        4 => [rising, min, max],
        _ => [max, min, falling],
    }
}

fn turn_hue(pixel: [f32; 3], delta: f32) -> [f32; 3] {
    let (hue, min, max) = hue(pixel);
    of_hue((hue + delta * 6.0).rem_euclid(6.0), min, max)
}

/// The saturation is (max - min) / max, at most 1; hue and max stay.
fn scale_saturation(pixel: [f32; 3], factor: f32) -> [f32; 3] {
    let (hue, min, max) = hue(pixel);
    let saturation = if max > 0.0 { ((max - min) / max * factor).clamp(0.0, 1.0) } else { 0.0 };
    of_hue(hue, max - saturation * max, max)
}

fn black_patch(size: f32, sample: &mut Sample, rng: &mut ChaCha8Rng) {
    let (height, width) = (sample.height, sample.width);
    let side = (height.min(width) as f32 * size) as usize;
    let top = (uniform(0.0, 1.0 - size, rng) * height as f32) as usize;
    let left = (uniform(0.0, 1.0 - size, rng) * width as f32) as usize;
    let (bottom, right) = ((top + side).min(height), (left + side).min(width));
    let data = sample.floats();
    for y in top..bottom {
        data[(y * width + left) * 3..(y * width + right) * 3].fill(0.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hue_turns_a_third_of_the_circle_from_red_to_green_to_blue() {
        assert_eq!(turn_hue([1.0, 0.0, 0.0], 1.0 / 3.0), [0.0, 1.0, 0.0]);
        assert_eq!(turn_hue([1.0, 0.0, 0.0], -1.0 / 3.0), [0.0, 0.0, 1.0]);
        for pixel in [[0.2, 0.9, 0.4], [0.5, 0.5, 0.5], [0.0, 0.0, 0.0], [1.0, 0.0, 0.3]] {
            let back = turn_hue(turn_hue(pixel, 0.3), -0.3);
            assert!(back.iter().zip(pixel).all(|(a, b)| (a - b).abs() < 1e-5), "{pixel:?} {back:?}");
        }
    }

    #[test]
    fn hue_and_saturation_are_tensorflows() {
        // tf.image.adjust_hue(x, 0.13) and adjust_saturation(x, 1.4) and (x, 0.6), TensorFlow 2.15.1.
        let cases = [
            [[0.2, 0.9, 0.4], [0.2, 0.854, 0.9], [0.0, 0.9, 0.257143], [0.48, 0.9, 0.6]],
            [[0.8, 0.1, 0.15], [0.8, 0.596, 0.1], [0.8, 0.0, 0.057143], [0.8, 0.38, 0.41]],
            [[0.3, 0.25, 0.7], [0.651, 0.25, 0.7], [0.14, 0.07, 0.7], [0.46, 0.43, 0.7]],
            [[0.5, 0.5, 0.5], [0.5, 0.5, 0.5], [0.5, 0.5, 0.5], [0.5, 0.5, 0.5]],
            [[0.9, 0.85, 0.1], [0.326, 0.9, 0.1], [0.9, 0.84375, 0.0], [0.9, 0.87, 0.42]],
            [[0.02, 0.6, 0.61], [0.02, 0.1398, 0.61], [0.0, 0.599661, 0.61], [0.256, 0.604, 0.61]],
        ];
        for [pixel, turned, more, less] in cases {
            for (got, want) in
                [(turn_hue(pixel, 0.13), turned), (scale_saturation(pixel, 1.4), more), (scale_saturation(pixel, 0.6), less)]
            {
                assert!(got.iter().zip(want).all(|(a, b)| (a - b).abs() < 1e-5), "{pixel:?}: {got:?}, {want:?}");
            }
        }
    }

    #[test]
    fn no_saturation_is_grey_of_the_greatest_value() {
        assert_eq!(scale_saturation([0.2, 0.9, 0.4], 0.0), [0.9, 0.9, 0.9]);
        assert_eq!(scale_saturation([0.0, 0.0, 0.0], 2.0), [0.0, 0.0, 0.0]);
    }
}
