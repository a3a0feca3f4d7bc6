//! A picture with its groundtruth, and the few moves that every augmentation is made of: crop, pad, flip, new frame.

use crate::data::image::RgbImage;
use crate::detection::boxes::{BBox, Groundtruth};

/// The samples of a picture, `[height, width, 3]`, 0 to 255.
#[derive(Debug, Clone, PartialEq)]
pub enum Pixels {
    /// As decoded; crops and flips keep it, at a quarter of the memory.
    Bytes(Vec<u8>),
    /// After the first step that computes colours.
    Floats(Vec<f32>),
}

/// A picture and what is known of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// Pixels.
    pub width: usize,
    /// Pixels.
    pub height: usize,
    /// `[height, width, 3]`.
    pub pixels: Pixels,
    /// Boxes normalized to this picture.
    pub groundtruth: Groundtruth,
}

/// A part of a picture in whole pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// First row.
    pub top: usize,
    /// First column.
    pub left: usize,
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
}

impl Sample {
    /// A decoded picture and its groundtruth.
    pub fn new(image: RgbImage, groundtruth: Groundtruth) -> Self {
        Self { width: image.width, height: image.height, pixels: Pixels::Bytes(image.data), groundtruth }
    }

    /// The samples as floats, converted on first use.
    pub fn floats(&mut self) -> &mut Vec<f32> {
        if let Pixels::Bytes(bytes) = &self.pixels {
            self.pixels = Pixels::Floats(bytes.iter().map(|&v| f32::from(v)).collect());
        }
        match &mut self.pixels {
            Pixels::Floats(floats) => floats,
            Pixels::Bytes(_) => unreachable!("converted above"),
        }
    }

    /// Cuts the picture down to `window`; boxes are left as they are (see [`Self::reframe`]).
    ///
    /// # Panics
    /// If the window is empty or reaches outside.
    pub fn crop_pixels(&mut self, window: Window) {
        let Window { top, left, height, width } = window;
        assert!(height > 0 && width > 0 && top + height <= self.height && left + width <= self.width, "crop {window:?}");
        let from = self.width;
        match &mut self.pixels {
            Pixels::Bytes(data) => crop(data, from, window),
            Pixels::Floats(data) => crop(data, from, window),
        }
        self.width = width;
        self.height = height;
    }

    /// Puts the picture into a larger one of one colour, its first pixel at `top`, `left`; boxes are left as they are.
    ///
    /// # Panics
    /// If the picture does not fit.
    pub fn pad_pixels(&mut self, top: usize, left: usize, (height, width): (usize, usize), color: [f32; 3]) {
        assert!(top + self.height <= height && left + self.width <= width, "pad to {height} x {width}");
        if (height, width) == (self.height, self.width) {
            return;
        }
        let (from_height, from_width) = (self.height, self.width);
        // A colour between two levels (such as a mean) needs floats.
        let level = color.map(|v| v as u8);
        if level.map(f32::from) != color {
            self.floats();
        }
        let place = (top, left, from_height, from_width);
        match &mut self.pixels {
            Pixels::Bytes(data) => *data = pad(data, place, (height, width), level),
            Pixels::Floats(data) => *data = pad(data, place, (height, width), color),
        }
        self.height = height;
        self.width = width;
    }

    /// Mirrors the picture and its boxes left to right.
    pub fn flip_left_right(&mut self) {
        let width = self.width;
        match &mut self.pixels {
            Pixels::Bytes(data) => data.chunks_exact_mut(width * 3).for_each(|row| row.as_chunks_mut::<3>().0.reverse()),
            Pixels::Floats(data) => data.chunks_exact_mut(width * 3).for_each(|row| row.as_chunks_mut::<3>().0.reverse()),
        }
        for [_, xmin, _, xmax] in &mut self.groundtruth.boxes {
            (*xmin, *xmax) = (1.0 - *xmax, 1.0 - *xmin);
        }
    }

    /// Mirrors the picture and its boxes top to bottom.
    pub fn flip_up_down(&mut self) {
        let row = self.width * 3;
        match &mut self.pixels {
            Pixels::Bytes(data) => flip_rows(data, row),
            Pixels::Floats(data) => flip_rows(data, row),
        }
        for [ymin, _, ymax, _] in &mut self.groundtruth.boxes {
            (*ymin, *ymax) = (1.0 - *ymax, 1.0 - *ymin);
        }
    }

    /// Turns the picture and its boxes by 90 degrees against the clock.
    pub fn rotate_90(&mut self) {
        let (height, width) = (self.height, self.width);
        match &mut self.pixels {
            Pixels::Bytes(data) => *data = rotate_90(data, height, width),
            Pixels::Floats(data) => *data = rotate_90(data, height, width),
        }
        (self.height, self.width) = (width, height);
        for corners in &mut self.groundtruth.boxes {
            let [ymin, xmin, ymax, xmax] = *corners;
            *corners = [1.0 - xmax, ymin, 1.0 - xmin, ymax];
        }
    }

    /// Keeps the boxes that `keep` says, each with its class and flags.
    pub fn retain_boxes(&mut self, keep: impl Fn(&BBox) -> bool) {
        let truth = &mut self.groundtruth;
        let kept: Vec<bool> = truth.boxes.iter().map(keep).collect();
        fn retain<T>(list: &mut Vec<T>, kept: &[bool]) {
            let mut kept = kept.iter();
            list.retain(|_| *kept.next().unwrap_or(&true));
        }
        retain(&mut truth.boxes, &kept);
        retain(&mut truth.classes, &kept);
        retain(&mut truth.difficult, &kept);
        retain(&mut truth.crowd, &kept);
    }

    /// Normalizes the boxes to `window` (given in the present frame) instead of the whole picture.
    pub fn reframe(&mut self, window: BBox) {
        let [top, left, bottom, right] = window;
        // Multiplied by the inverse, not divided, as the OD API does.
        let (per_height, per_width) = (1.0 / (bottom - top), 1.0 / (right - left));
        for [ymin, xmin, ymax, xmax] in &mut self.groundtruth.boxes {
            for y in [ymin, ymax] {
                *y = (*y - top) * per_height;
            }
            for x in [xmin, xmax] {
                *x = (*x - left) * per_width;
            }
        }
    }

    /// Clips the boxes to the picture.
    pub fn clip_boxes(&mut self) {
        for value in self.groundtruth.boxes.as_flattened_mut() {
            *value = value.clamp(0.0, 1.0);
        }
    }

    /// `window` as a box of this picture.
    pub fn normalized(&self, window: Window) -> BBox {
        let (height, width) = (self.height as f32, self.width as f32);
        [
            window.top as f32 / height,
            window.left as f32 / width,
            (window.top + window.height) as f32 / height,
            (window.left + window.width) as f32 / width,
        ]
    }
}

/// The part of `bbox` that lies in `window`, as a share of `bbox`'s area.
pub fn share_inside(bbox: &BBox, window: &BBox) -> f32 {
    let side = |low: usize, high: usize| (bbox[high].min(window[high]) - bbox[low].max(window[low])).max(0.0);
    let area = (bbox[2] - bbox[0]) * (bbox[3] - bbox[1]);
    side(0, 2) * side(1, 3) / area
}

fn crop<T: Copy>(data: &mut Vec<T>, from_width: usize, window: Window) {
    let row = window.width * 3;
    for y in 0..window.height {
        let start = ((window.top + y) * from_width + window.left) * 3;
        data.copy_within(start..start + row, y * row);
    }
    data.truncate(window.height * row);
}

fn pad<T: Copy>(
    data: &[T],
    (top, left, from_height, from_width): (usize, usize, usize, usize),
    (height, width): (usize, usize),
    color: [T; 3],
) -> Vec<T> {
    let mut out: Vec<T> = color.iter().copied().cycle().take(height * width * 3).collect();
    for y in 0..from_height {
        let to = ((top + y) * width + left) * 3;
        out[to..to + from_width * 3].copy_from_slice(&data[y * from_width * 3..(y + 1) * from_width * 3]);
    }
    out
}

fn flip_rows<T>(data: &mut [T], row: usize) {
    let mut rest = data;
    while rest.len() >= 2 * row {
        let (top, others) = rest.split_at_mut(row);
        let (middle, bottom) = others.split_at_mut(others.len() - row);
        top.swap_with_slice(bottom);
        rest = middle;
    }
}

/// `[height, width, 3]` to `[width, height, 3]`; the last column becomes the first row.
fn rotate_90<T: Copy>(data: &[T], height: usize, width: usize) -> Vec<T> {
    let mut out = Vec::with_capacity(data.len());
    for x in (0..width).rev() {
        for y in 0..height {
            out.extend_from_slice(&data[(y * width + x) * 3..][..3]);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A 2 x 3 picture whose pixels are 10 times the row plus the column, and one box.
    fn sample() -> Sample {
        let data = [0, 1, 2, 10, 11, 12].iter().flat_map(|&v| [v; 3]).collect();
        let groundtruth =
            Groundtruth { boxes: vec![[0.0, 0.25, 0.5, 1.0]], classes: vec![4], difficult: vec![true], crowd: vec![false] };
        Sample::new(RgbImage { width: 3, height: 2, data }, groundtruth)
    }

    fn reds(sample: &Sample) -> Vec<u8> {
        match &sample.pixels {
            Pixels::Bytes(data) => data.iter().step_by(3).copied().collect(),
            Pixels::Floats(data) => data.iter().step_by(3).map(|&v| v as u8).collect(),
        }
    }

    #[test]
    fn flips_and_turns_move_pixels_and_boxes_alike_and_come_back() {
        let mut s = sample();
        s.flip_left_right();
        assert_eq!((reds(&s), s.groundtruth.boxes[0]), (vec![2, 1, 0, 12, 11, 10], [0.0, 0.0, 0.5, 0.75]));
        s.flip_left_right();
        assert_eq!(s, sample());
        s.flip_up_down();
        assert_eq!((reds(&s), s.groundtruth.boxes[0]), (vec![10, 11, 12, 0, 1, 2], [0.5, 0.25, 1.0, 1.0]));
        s.flip_up_down();
        assert_eq!(s, sample());
        s.rotate_90();
        assert_eq!((s.height, s.width), (3, 2));
        assert_eq!((reds(&s), s.groundtruth.boxes[0]), (vec![2, 12, 1, 11, 0, 10], [0.0, 0.0, 0.75, 0.5]));
        for _ in 0..3 {
            s.rotate_90();
        }
        assert_eq!(s, sample());
    }

    #[test]
    fn a_crop_of_the_padded_picture_is_the_picture_again() {
        for color in [[7.0, 7.0, 7.0], [7.5, 7.5, 7.5]] {
            let mut s = sample();
            s.pad_pixels(1, 2, (4, 6), color);
            assert_eq!(reds(&s)[..8], [7; 8], "one row and two columns of padding");
            assert_eq!(reds(&s)[8..11], [0, 1, 2]);
            s.crop_pixels(Window { top: 1, left: 2, height: 2, width: 3 });
            assert_eq!(reds(&s), reds(&sample()));
        }
    }

    #[test]
    fn boxes_move_into_the_frame_of_a_window_and_back() {
        let mut s = sample();
        s.reframe([0.0, 0.25, 0.5, 0.75]);
        assert_eq!(s.groundtruth.boxes[0], [0.0, 0.0, 1.0, 1.5]);
        s.reframe([0.0, -0.5, 2.0, 1.5]);
        assert_eq!(s.groundtruth.boxes[0], sample().groundtruth.boxes[0]);
        assert_eq!(share_inside(&[0.0, 0.0, 1.0, 1.0], &[0.5, 0.5, 2.0, 2.0]), 0.25);
    }
}
