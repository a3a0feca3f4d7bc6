//! Random padding: the picture becomes a part of a larger one.
//!
//! Source: `object_detection/core/preprocessor.py` (April 2018).

use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use crate::data::augment::crop::Crop;
use crate::data::sample::{Pixels, Sample};

/// What to fill the new area with.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Fill {
    /// The mean colour of the picture.
    Mean,
    /// One colour, 0 to 255.
    Color([f32; 3]),
}

impl Fill {
    fn color(self, sample: &Sample) -> [f32; 3] {
        fn mean<T: Copy + Into<f64>>(data: &[T]) -> [f32; 3] {
            let mut sums = [0.0f64; 3];
            for pixel in data.as_chunks::<3>().0 {
                for (sum, &value) in sums.iter_mut().zip(pixel) {
                    *sum += value.into();
                }
            }
            sums.map(|sum| (sum / (data.len() / 3) as f64) as f32)
        }
        match (self, &sample.pixels) {
            (Fill::Color(color), _) => color,
            (Fill::Mean, Pixels::Bytes(data)) => mean(data),
            (Fill::Mean, Pixels::Floats(data)) => mean(data),
        }
    }
}

/// Pads to a random size between two, at a random place.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pad {
    /// Least height and width; the picture's own where not given.
    pub min_size: Option<(usize, usize)>,
    /// Greatest height and width; twice the picture's own where not given.
    pub max_size: Option<(usize, usize)>,
    /// The colour around the picture.
    pub fill: Fill,
}

impl Pad {
    /// Pads the picture and moves its boxes.
    pub fn apply(&self, sample: &mut Sample, rng: &mut ChaCha8Rng) {
        let (height, width) = (sample.height, sample.width);
        let (max_height, max_width) = self.max_size.unwrap_or((height * 2, width * 2));
        let (min_height, min_width) = self.min_size.unwrap_or((height, width));
        // The greatest size is never drawn, except where there is no choice: upstream's ranges are half open.
        let mut draw = |low: usize, high: usize| if high > low { rng.random_range(low..high) } else { high };
        let target_height = draw(min_height.max(height), max_height.max(height));
        let target_width = draw(min_width.max(width), max_width.max(width));
        let mut place = |room: usize| if room > 0 { rng.random_range(0..room) } else { 0 };
        let top = place(target_height - height);
        let left = place(target_width - width);
        let color = self.fill.color(sample);
        sample.reframe([
            -(top as f32) / height as f32,
            -(left as f32) / width as f32,
            (target_height - top) as f32 / height as f32,
            (target_width - left) as f32 / width as f32,
        ]);
        sample.pad_pixels(top, left, (target_height, target_width), color);
    }
}

/// A crop, then a padding whose bounds are ratios of the size before the crop.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CropPad {
    /// The crop.
    pub crop: Crop,
    /// Least height and width as ratios.
    pub min_ratio: (f32, f32),
    /// Greatest height and width as ratios.
    pub max_ratio: (f32, f32),
    /// The colour around the picture.
    pub fill: Fill,
}

impl CropPad {
    /// Crops and pads.
    pub fn apply(&self, sample: &mut Sample, rng: &mut ChaCha8Rng) {
        let (height, width) = (sample.height as f32, sample.width as f32);
        let scaled = |(y, x): (f32, f32)| Some(((height * y) as usize, (width * x) as usize));
        let pad = Pad { min_size: scaled(self.min_ratio), max_size: scaled(self.max_ratio), fill: self.fill };
        self.crop.apply(sample, rng);
        pad.apply(sample, rng);
    }
}

/// Pads with black below and to the right until the picture has the aspect ratio, and by a random factor more.
pub fn pad_to_aspect_ratio(
    aspect_ratio: f32,
    min_ratio: (f32, f32),
    max_ratio: (f32, f32),
    sample: &mut Sample,
    rng: &mut ChaCha8Rng,
) {
    let (height, width) = (sample.height as f32, sample.width as f32);
    let target_height = if width / height <= aspect_ratio { height } else { width / aspect_ratio };
    let target_width = if width / height >= aspect_ratio { width } else { height * aspect_ratio };
    let scale = |ratio: (f32, f32)| ((ratio.0 * height).max(target_height), (ratio.1 * width).max(target_width));
    let ((min_height, min_width), (max_height, max_width)) = (scale(min_ratio), scale(max_ratio));
    let max_scale = (max_height / target_height).min(max_width / target_width);
    let min_scale = max_scale.min((min_height / target_height).max(min_width / target_width));
    let scale = rng.random::<f32>() * (max_scale - min_scale) + min_scale;
    // Rounding must not cut the picture itself.
    let target_height = (scale * target_height).round_ties_even().max(height);
    let target_width = (scale * target_width).round_ties_even().max(width);
    sample.reframe([0.0, 0.0, target_height / height, target_width / width]);
    sample.pad_pixels(0, 0, (target_height as usize, target_width as usize), [0.0; 3]);
}
