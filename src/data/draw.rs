//! Boxes and their labels on pictures.
//!
//! A thick box a detection, one colour a class, and `class: 97%` on a ground of that colour. Thickness and letters grow with
//! the picture. Labels stand above their box, inside it where there is no room above, and out of one another's way
//! where there is another place.

use crate::data::image::RgbImage;
use crate::data::palette::{Rgb, class_color, text_color};
use crate::data::text::{self, Line};
use crate::detection::boxes::{BBox, Detections};

/// One box to draw.
#[derive(Debug, Clone, PartialEq)]
pub struct Annotation {
    /// Normalized.
    pub bbox: BBox,
    /// What stands beside the box; nothing if empty.
    pub label: String,
    /// What the colour follows from: the class, counted from 0.
    pub class: usize,
}

/// The annotations of what was found with a score of at least `min_score`, best first.
///
/// `name` gives a class (counted from 0) its name. Per cents are cut off, not rounded, as the OD API's tutorial has them.
pub fn annotations(detections: &Detections, min_score: f32, name: impl Fn(usize) -> String) -> Vec<Annotation> {
    let rows = detections.boxes.iter().zip(&detections.scores).zip(&detections.classes);
    rows.filter(|((_, score), _)| **score >= min_score)
        .map(|((&bbox, &score), &class)| Annotation {
            bbox,
            label: format!("{}: {}%", name(class), (100.0 * score) as i64),
            class,
        })
        .collect()
}

/// Whole pixels, right and bottom edge not included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Rect {
    left: i64,
    top: i64,
    right: i64,
    bottom: i64,
}

impl Rect {
    fn of(left: i64, top: i64, width: i64, height: i64) -> Self {
        Self { left, top, right: left + width, bottom: top + height }
    }

    /// Pixels in both.
    fn overlap(&self, other: &Rect) -> i64 {
        let w = self.right.min(other.right) - self.left.max(other.left);
        let h = self.bottom.min(other.bottom) - self.top.max(other.top);
        w.max(0) * h.max(0)
    }

    fn clipped(&self, width: i64, height: i64) -> Self {
        Self {
            left: self.left.clamp(0, width),
            top: self.top.clamp(0, height),
            right: self.right.clamp(0, width),
            bottom: self.bottom.clamp(0, height),
        }
    }
}

/// Draws boxes and labels, the first annotation on top.
///
/// Boxes are clipped to the picture; one that lies outside it, has no area or is not a number is left out.
pub fn draw(image: &mut RgbImage, annotations: &[Annotation]) {
    let (width, height) = (image.width as i64, image.height as i64);
    let side = (image.width as f64 * image.height as f64).sqrt();
    let thickness = ((side * 0.006).round() as i64).max(1);
    let drawn: Vec<(&Annotation, Rect)> = annotations
        .iter()
        .filter_map(|a| {
            let rect = pixel_rect(&a.bbox, width, height)?;
            Some((a, frame(&rect, thickness, width, height)))
        })
        .collect();
    for (annotation, frame) in drawn.iter().rev() {
        outline(image, frame, thickness, class_color(annotation.class));
    }
    let labels = place_labels(&drawn, side as f32, width, height);
    for label in labels.iter().rev() {
        draw_label(image, label);
    }
}

/// The part of a box that lies in the picture, in pixels.
fn pixel_rect(bbox: &BBox, width: i64, height: i64) -> Option<Rect> {
    if bbox.iter().any(|v| v.is_nan()) {
        return None;
    }
    let [ymin, xmin, ymax, xmax] = bbox.map(|v| f64::from(v.clamp(0.0, 1.0)));
    if ymin >= ymax || xmin >= xmax {
        return None;
    }
    Some(Rect {
        left: (xmin * width as f64).round() as i64,
        top: (ymin * height as f64).round() as i64,
        right: (xmax * width as f64).round() as i64,
        bottom: (ymax * height as f64).round() as i64,
    })
}

/// The outer edge of a box's frame: half its thickness beyond the box, all of it beyond a small one, so as not to hide what
/// is in it; wholly inside the picture.
fn frame(rect: &Rect, thickness: i64, width: i64, height: i64) -> Rect {
    let small = (rect.right - rect.left).min(rect.bottom - rect.top) < 4 * thickness;
    let beyond = if small { thickness } else { thickness / 2 };
    Rect { left: rect.left - beyond, top: rect.top - beyond, right: rect.right + beyond, bottom: rect.bottom + beyond }
        .clipped(width, height)
}

/// The four sides of a frame.
fn outline(image: &mut RgbImage, frame: &Rect, thickness: i64, color: Rgb) {
    let (w, h) = (frame.right - frame.left, frame.bottom - frame.top);
    let t = thickness.min(w).min(h);
    for side in [
        Rect::of(frame.left, frame.top, w, t),
        Rect::of(frame.left, frame.bottom - t, w, t),
        Rect::of(frame.left, frame.top, t, h),
        Rect::of(frame.right - t, frame.top, t, h),
    ] {
        fill(image, &side, color);
    }
}

/// A label with its place.
struct Label {
    line: Line,
    ground: Rect,
    padding: i64,
    color: Rgb,
}

/// Finds each label a place in the picture, the best detection first.
///
/// Above its frame, inside it where that leaves room for what is found, below it; at the left or the right; the place
/// where it hides least of the labels before it, the first of equals.
fn place_labels(drawn: &[(&Annotation, Rect)], side: f32, width: i64, height: i64) -> Vec<Label> {
    // Smaller letters cannot be read; larger ones are as large a part of the picture as on one of 1000 pixels.
    const SMALLEST: f32 = 11.0;
    let size = (0.028 * side).max(SMALLEST);
    let mut labels: Vec<Label> = Vec::with_capacity(drawn.len());
    for (annotation, frame) in drawn {
        if annotation.label.is_empty() {
            continue;
        }
        let mut line = text::line(&annotation.label, size);
        let padding = (size / 6.0).round() as i64;
        let room = (width - 2 * padding).max(1) as f32;
        if line.width > room {
            line = text::line(&annotation.label, (size * room / line.width).max(SMALLEST));
        }
        let (w, h) = (line.width.ceil() as i64 + 2 * padding, line.height.ceil() as i64 + padding);
        if 2 * h > height {
            // It would hide the picture.
            continue;
        }
        let left = frame.left.min(width - w).max(0);
        let right = (frame.right - w).min(width - w).max(0);
        let (above, below) = (frame.top - h, frame.bottom);
        let inside = (frame.bottom - frame.top >= 3 * h).then_some(frame.top);
        let in_the_picture: Vec<Rect> = [
            Some((left, above)),
            inside.map(|top| (left, top)),
            Some((left, below)),
            Some((right, above)),
            inside.map(|top| (right, top)),
            Some((right, below)),
            inside.map(|_| (left, below - h)),
        ]
        .into_iter()
        .flatten()
        .map(|(x, y)| Rect::of(x, y, w, h))
        .filter(|r| r.top >= 0 && r.bottom <= height)
        .collect();
        let hidden = |r: &Rect| labels.iter().map(|l| l.ground.overlap(r)).sum::<i64>();
        let ground = in_the_picture.into_iter().min_by_key(hidden).unwrap_or(Rect::of(left, frame.top.min(height - h), w, h));
        labels.push(Label { line, ground, padding, color: class_color(annotation.class) });
    }
    labels
}

fn draw_label(image: &mut RgbImage, label: &Label) {
    fill(image, &label.ground, label.color);
    let ink = text_color(label.color);
    let (left, top) = (label.ground.left + label.padding, label.ground.top + label.padding / 2);
    let (width, height) = (image.width as i64, image.height as i64);
    label.line.draw(|x, y, coverage| {
        let (x, y) = (left + x, top + y);
        if !(0..width).contains(&x) || !(0..height).contains(&y) {
            return;
        }
        let place = 3 * (y * width + x) as usize;
        for (channel, ink) in image.data[place..place + 3].iter_mut().zip(ink) {
            let mixed = f32::from(*channel) * (1.0 - coverage) + f32::from(ink) * coverage;
            *channel = mixed.round() as u8;
        }
    });
}

fn fill(image: &mut RgbImage, rect: &Rect, color: Rgb) {
    let rect = rect.clipped(image.width as i64, image.height as i64);
    if rect.left >= rect.right {
        return;
    }
    for y in rect.top..rect.bottom {
        let row = y as usize * image.width;
        let pixels = 3 * (row + rect.left as usize)..3 * (row + rect.right as usize);
        for pixel in image.data[pixels].chunks_exact_mut(3) {
            pixel.copy_from_slice(&color);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grey(width: usize, height: usize) -> RgbImage {
        RgbImage { width, height, data: vec![128; 3 * width * height] }
    }

    fn annotation(bbox: BBox, label: &str) -> Annotation {
        Annotation { bbox, label: label.to_string(), class: 0 }
    }

    fn pixel(image: &RgbImage, x: usize, y: usize) -> Rgb {
        let place = 3 * (y * image.width + x);
        [image.data[place], image.data[place + 1], image.data[place + 2]]
    }

    #[test]
    fn the_edges_of_a_box_take_its_colour_and_its_inside_does_not() {
        let mut image = grey(500, 500);
        draw(&mut image, &[annotation([0.2, 0.2, 0.8, 0.8], "")]);
        for (x, y) in [(100, 250), (399, 250), (250, 100), (250, 399)] {
            assert_eq!(pixel(&image, x, y), class_color(0), "{x}, {y}");
        }
        for (x, y) in [(250, 250), (90, 250), (110, 250), (410, 250)] {
            assert_eq!(pixel(&image, x, y), [128; 3], "{x}, {y}");
        }
    }

    #[test]
    fn a_label_stands_above_its_box_or_inside_at_the_top_edge() {
        let count = |image: &RgbImage, rows: std::ops::Range<usize>| {
            rows.flat_map(|y| (110..160).map(move |x| (x, y))).filter(|&(x, y)| pixel(image, x, y) != [128; 3]).count()
        };
        let mut above = grey(500, 500);
        draw(&mut above, &[annotation([0.4, 0.2, 0.8, 0.8], "dog: 97%")]);
        assert!(count(&above, 184..196) > 500 && count(&above, 205..220) == 0);
        let mut inside = grey(500, 500);
        draw(&mut inside, &[annotation([0.0, 0.2, 0.8, 0.8], "dog: 97%")]);
        assert!(count(&inside, 3..12) > 400);
    }

    #[test]
    fn every_size_of_picture_and_every_odd_box_is_survived() {
        let odd = [
            [f32::NAN, 0.0, 1.0, 1.0],
            [0.0, 0.0, f32::INFINITY, 1.0],
            [f32::NEG_INFINITY, -1e30, 1e30, f32::INFINITY],
            [-5.0, -5.0, -1.0, -1.0],
            [0.9, 0.9, 0.1, 0.1],
            [0.5, 0.5, 0.5, 0.5],
            [0.0, 0.0, 1.0, 1.0],
            [0.999_999, 0.999_999, 1.0, 1.0],
        ];
        let all: Vec<Annotation> = odd.iter().map(|b| annotation(*b, "a rather long name 너구리: 100%")).collect();
        for (width, height) in [(0, 0), (1, 1), (2, 1), (1, 300), (300, 1), (17, 23), (640, 40), (40, 640)] {
            let mut image = grey(width, height);
            draw(&mut image, &all);
            assert_eq!(image.data.len(), 3 * width * height);
        }
    }

    #[test]
    fn boxes_outside_the_picture_or_without_numbers_change_nothing() {
        let mut image = grey(100, 100);
        let outside = [[-5.0, -5.0, -1.0, -1.0], [f32::NAN, 0.1, 0.9, 0.9], [1.5, 0.1, 1.9, 0.9]];
        draw(&mut image, &outside.map(|b| annotation(b, "x: 50%")));
        assert!(image.data.iter().all(|&v| v == 128));
    }

    #[test]
    fn per_cents_are_cut_off_and_low_scores_left_out() {
        let detections =
            Detections { boxes: vec![[0.0, 0.0, 1.0, 1.0]; 3], scores: vec![0.979, 0.5, 0.499], classes: vec![17, 0, 0] };
        let found = annotations(&detections, 0.5, |c| format!("class {c}"));
        let labels: Vec<&str> = found.iter().map(|a| a.label.as_str()).collect();
        assert_eq!(labels, ["class 17: 97%", "class 0: 50%"]);
    }
}
