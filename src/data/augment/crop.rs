//! Random crops that keep enough of the objects: the sampler, and what becomes of the boxes.
//!
//! Sources: `object_detection/core/preprocessor.py` (April 2018); the sampler is that of
//! `tensorflow/core/kernels/image/sample_distorted_bounding_box_op.cc`; the idea of the SSD crop, W. Liu et al., SSD
//! (arXiv:1512.02325), section 2.2.

use anyhow::{Result, ensure};
use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use crate::data::sample::{Sample, Window, share_inside};
use crate::detection::boxes::BBox;

/// Attempts at a crop before the whole picture is taken (`max_attempts` of every caller upstream).
const MAX_ATTEMPTS: usize = 100;

/// One way to crop.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Crop {
    /// A crop is accepted if it holds at least this share of at least one object.
    pub min_object_covered: f32,
    /// Least and greatest width / height.
    pub aspect_ratio: (f32, f32),
    /// Least and greatest share of the picture's area.
    pub area: (f32, f32),
    /// A box stays if at least this share of it lies in the crop.
    pub overlap_thresh: f32,
    /// The probability of leaving the picture as it is.
    pub random_coef: f32,
}

impl Crop {
    /// Refuses what TensorFlow's sampler refuses; `name` is what errors call the config message.
    ///
    /// # Errors
    /// If a range is out of bounds; the field is named.
    pub fn checked(self, name: &str) -> Result<Self> {
        let (min_ratio, max_ratio) = self.aspect_ratio;
        ensure!(
            min_ratio > 0.0 && max_ratio >= min_ratio,
            "{name}: min_aspect_ratio {min_ratio} and max_aspect_ratio {max_ratio} must be above 0 and in order"
        );
        let (min_area, max_area) = self.area;
        ensure!(
            min_area > 0.0 && max_area >= min_area && max_area <= 1.0,
            "{name}: min_area {min_area} and max_area {max_area} must be above 0, at most 1 and in order"
        );
        for (field, value) in [
            ("min_object_covered", self.min_object_covered),
            ("overlap_thresh", self.overlap_thresh),
            ("random_coef", self.random_coef),
        ] {
            ensure!((0.0..=1.0).contains(&value), "{name}: {field} {value} must be from 0 to 1");
        }
        Ok(self)
    }

    /// Crops the picture, unless chance or the sampler leaves it whole. Boxes that lie outside or whose share inside is
    /// below the threshold go, the others are clipped; a crop may end without any.
    pub fn apply(&self, sample: &mut Sample, rng: &mut ChaCha8Rng) {
        // A coefficient of 0 draws no number, as upstream.
        if self.random_coef >= f32::MIN_POSITIVE && rng.random::<f32>() <= self.random_coef {
            return;
        }
        let window = self.sample_window(sample, rng);
        let frame = sample.normalized(window);
        sample.retain_boxes(|bbox| !completely_outside(bbox, &frame) && share_inside(bbox, &frame) >= self.overlap_thresh);
        sample.reframe(frame);
        sample.clip_boxes();
        sample.crop_pixels(window);
    }

    /// Draws windows until one holds enough of an object; the whole picture if none of 100 does.
    fn sample_window(&self, sample: &Sample, rng: &mut ChaCha8Rng) -> Window {
        let (height, width) = (sample.height, sample.width);
        let whole = Window { top: 0, left: 0, height, width };
        let mut objects: Vec<PixelBox> = sample.groundtruth.boxes.iter().map(|bbox| PixelBox::of(bbox, height, width)).collect();
        if objects.is_empty() {
            objects.push(PixelBox { top: 0, left: 0, bottom: height as i64, right: width as i64 });
        }
        for _ in 0..MAX_ATTEMPTS {
            let (low, high) = self.aspect_ratio;
            let aspect_ratio = rng.random::<f32>() * (high - low) + low;
            let Some(window) = random_window(height, width, self.area, aspect_ratio, rng) else { continue };
            let crop = PixelBox::of_window(window);
            let enough = |object: &PixelBox| {
                // An object smaller than a pixel can vouch for no crop.
                object.area() >= 1.0 && crop.intersection(object) / object.area() >= self.min_object_covered
            };
            if objects.iter().any(enough) {
                return window;
            }
        }
        whole
    }
}

/// Picks one of several crops, each as often as the others, and does it.
pub fn ssd_random_crop(operations: &[Crop], sample: &mut Sample, rng: &mut ChaCha8Rng) {
    operations[rng.random_range(0..operations.len())].apply(sample, rng);
}

/// Cuts the picture to an aspect ratio at a random place; boxes of which less than `overlap_thresh` is left go.
pub fn crop_to_aspect_ratio(aspect_ratio: f32, overlap_thresh: f32, sample: &mut Sample, rng: &mut ChaCha8Rng) {
    let (height, width) = (sample.height as f32, sample.width as f32);
    // `round` here is TensorFlow's, half to even.
    let target_height = match width / height >= aspect_ratio {
        true => sample.height,
        false => ((width / aspect_ratio).round_ties_even() as usize).clamp(1, sample.height),
    };
    let target_width = match width / height <= aspect_ratio {
        true => sample.width,
        false => ((height * aspect_ratio).round_ties_even() as usize).clamp(1, sample.width),
    };
    let window = Window {
        top: rng.random_range(0..=sample.height - target_height),
        left: rng.random_range(0..=sample.width - target_width),
        height: target_height,
        width: target_width,
    };
    let frame = sample.normalized(window);
    sample.retain_boxes(|bbox| share_inside(bbox, &frame) >= overlap_thresh);
    sample.reframe(frame);
    sample.clip_boxes();
    sample.retain_boxes(|bbox| (bbox[2] - bbox[0]) * (bbox[3] - bbox[1]) > 0.0);
    sample.crop_pixels(window);
}

fn completely_outside(bbox: &BBox, window: &BBox) -> bool {
    bbox[0] >= window[2] || bbox[1] >= window[3] || bbox[2] <= window[0] || bbox[3] <= window[1]
}

/// A box in whole pixels, as the sampler sees objects.
#[derive(Debug, Clone, Copy)]
struct PixelBox {
    top: i64,
    left: i64,
    bottom: i64,
    right: i64,
}

impl PixelBox {
    /// Clipped to the picture, corners cut to whole pixels.
    fn of(bbox: &BBox, height: usize, width: usize) -> Self {
        let [top, left, bottom, right] = bbox.map(|v| v.clamp(0.0, 1.0));
        let (height, width) = (height as f32, width as f32);
        Self {
            top: (top * height) as i64,
            left: (left * width) as i64,
            bottom: (bottom * height) as i64,
            right: (right * width) as i64,
        }
    }

    fn of_window(window: Window) -> Self {
        Self {
            top: window.top as i64,
            left: window.left as i64,
            bottom: (window.top + window.height) as i64,
            right: (window.left + window.width) as i64,
        }
    }

    fn area(&self) -> f32 {
        ((self.bottom - self.top) * (self.right - self.left)) as f32
    }

    fn intersection(&self, other: &Self) -> f32 {
        let height = (self.bottom.min(other.bottom) - self.top.max(other.top)).max(0);
        let width = (self.right.min(other.right) - self.left.max(other.left)).max(0);
        (height * width) as f32
    }
}

/// One draw of the sampler: a window of the aspect ratio, its height uniform between those of the least and the greatest
/// area; `None` if the picture leaves no room for one.
fn random_window(
    height: usize,
    width: usize,
    (min_share, max_share): (f32, f32),
    aspect_ratio: f32,
    rng: &mut ChaCha8Rng,
) -> Option<Window> {
    let round = |v: f32| v.round_ties_even() as i64;
    let wide = |rows: i64| round(rows as f32 * aspect_ratio);
    let (full_height, full_width) = (height as i64, width as i64);
    let min_area = min_share * width as f32 * height as f32;
    let max_area = max_share * width as f32 * height as f32;
    let mut rows = round((min_area / aspect_ratio).sqrt());
    let mut max_rows = round((max_area / aspect_ratio).sqrt());
    if wide(max_rows) > full_width {
        max_rows = ((full_width as f64 + 0.5 - 1e-7) / f64::from(aspect_ratio)) as i64;
        if wide(max_rows) > full_width {
            max_rows -= 1;
        }
    }
    max_rows = max_rows.min(full_height);
    rows = rows.min(max_rows);
    if rows < max_rows {
        rows += rng.random_range(0..=max_rows - rows);
    }
    let area = |rows: i64| (wide(rows) * rows) as f32;
    // Rounding may have put the area just outside its bounds.
    if area(rows) < min_area {
        rows += 1;
    }
    if area(rows) > max_area {
        rows -= 1;
    }
    let columns = wide(rows);
    let fits = area(rows) >= min_area && area(rows) <= max_area && rows <= full_height && columns <= full_width;
    if !fits || rows <= 0 || columns <= 0 {
        return None;
    }
    // The last place is never drawn upstream either.
    let mut place = |full: i64, part: i64| if part < full { rng.random_range(0..full - part) } else { 0 };
    let top = place(full_height, rows) as usize;
    let left = place(full_width, columns) as usize;
    Some(Window { top, left, height: rows as usize, width: columns as usize })
}
