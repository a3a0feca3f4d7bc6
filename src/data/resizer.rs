//! What size a model wants its pictures, and how they become so (upstream builders/image_resizer_builder.py; core/preprocessor.py,
//! `resize_image` and `resize_to_range`).

use anyhow::{Context, Result, bail, ensure};

use super::image::MAX_PIXELS;
use super::resample::{self, Method};
use super::resize::resize_bilinear_into;
use crate::proto::object_detection::protos as pb;

/// Share of red, green and blue in a grey value, as TensorFlow's `rgb_to_grayscale` has it.
pub const GREY: [f32; 3] = [0.2989, 0.5870, 0.1140];

/// The message `ImageResizer`, resolved.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Resizer {
    pub target: Target,
    /// How new pixels are computed.
    pub method: Method,
    /// The resized picture lies at the top left of a square of the longest side that there can be; this colour is the rest.
    pub padding: Option<[f32; 3]>,
    /// Pictures have one channel.
    pub grey: bool,
}

/// The size of a resized picture, padding apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// This height and width, whatever the picture's shape.
    FixedShape {
        /// Pixels.
        height: usize,
        /// Pixels.
        width: usize,
    },
    /// The shorter side becomes `min`, unless the longer would pass `max`: then the longer becomes `max`.
    KeepAspectRatio {
        /// Pixels.
        min: usize,
        /// Pixels.
        max: usize,
    },
}

/// A resized picture.
#[derive(Debug, Clone, PartialEq)]
pub struct Resized {
    /// `[height, width, channels]`, 0 to 255 (a little beyond where the method overshoots).
    pub pixels: Vec<f32>,
    /// Height and width with padding, in pixels.
    pub frame: (usize, usize),
    /// Height and width of the picture in it, in pixels.
    pub size: (usize, usize),
}

impl Resizer {
    /// To this height and width.
    pub fn fixed_shape(height: usize, width: usize) -> Self {
        Self { target: Target::FixedShape { height, width }, method: Method::Bilinear, padding: None, grey: false }
    }

    /// To a short side of `min`, or a long side of `max` where that is smaller.
    pub fn keep_aspect_ratio(min: usize, max: usize) -> Self {
        Self { target: Target::KeepAspectRatio { min, max }, ..Self::fixed_shape(1, 1) }
    }

    /// The resizer before a network, which upstream wants to see at least 33 pixels each way; `field` names it in errors.
    ///
    /// # Errors
    /// As [`Self::from_config`], or if pictures become smaller.
    pub fn of_network(config: Option<&pb::ImageResizer>, field: &str) -> Result<Self> {
        const LEAST: usize = 33;
        let resizer = Self::from_config(config, field)?;
        let sides = match resizer.target {
            Target::FixedShape { height, width } => {
                [("fixed_shape_resizer.height", height), ("fixed_shape_resizer.width", width)]
            }
            Target::KeepAspectRatio { min, max } => {
                [("keep_aspect_ratio_resizer.min_dimension", min), ("keep_aspect_ratio_resizer.max_dimension", max)]
            }
        };
        for (name, side) in sides {
            ensure!(side >= LEAST, "{field}.{name}: {side} is too small; at least {LEAST} is needed");
        }
        Ok(resizer)
    }

    /// The largest height and width that pictures get.
    pub fn largest(&self) -> [usize; 2] {
        match self.target {
            Target::FixedShape { height, width } => [height, width],
            Target::KeepAspectRatio { min, max } => [max.max(min); 2],
        }
    }

    /// The resizer that the message describes; `field` names it in errors.
    ///
    /// # Errors
    /// If no resizer is set, its sides are no sizes, or it asks for what is not supported.
    pub fn from_config(config: Option<&pb::ImageResizer>, field: &str) -> Result<Self> {
        use pb::image_resizer::ImageResizerOneof as R;
        let side = |name: &str, value: i32| {
            usize::try_from(value).ok().filter(|&s| s > 0).with_context(|| format!("{field}.{name}: {value} is not a size"))
        };
        let method = |method: pb::ResizeType| match method {
            pb::ResizeType::Bilinear => Method::Bilinear,
            pb::ResizeType::NearestNeighbor => Method::NearestNeighbor,
            pb::ResizeType::Bicubic => Method::Bicubic,
            pb::ResizeType::Area => Method::Area,
        };
        match config.and_then(|r| r.image_resizer_oneof.as_ref()).with_context(|| format!("{field} is not set"))? {
            R::FixedShapeResizer(r) => {
                let height = side("fixed_shape_resizer.height", r.height())?;
                let width = side("fixed_shape_resizer.width", r.width())?;
                ensure!(
                    height as u64 * width as u64 <= MAX_PIXELS,
                    "{field}.fixed_shape_resizer: {height} x {width} pixels are more than a picture can have ({MAX_PIXELS})"
                );
                let target = Target::FixedShape { height, width };
                Ok(Self { target, method: method(r.resize_method()), padding: None, grey: r.convert_to_grayscale() })
            }
            R::KeepAspectRatioResizer(r) => {
                let field = format!("{field}.keep_aspect_ratio_resizer");
                let min = side("keep_aspect_ratio_resizer.min_dimension", r.min_dimension())?;
                let max = side("keep_aspect_ratio_resizer.max_dimension", r.max_dimension())?;
                if min > max {
                    bail!("{field}: min_dimension {min} is above max_dimension {max}");
                }
                let color = &r.per_channel_pad_value;
                ensure!(
                    matches!(color.len(), 0 | 3) && color.iter().all(|v| v.is_finite()),
                    "{field}.per_channel_pad_value: {color:?} must be three numbers, for red, green and blue"
                );
                let color = if color.is_empty() { [0.0; 3] } else { [color[0], color[1], color[2]] };
                Ok(Self {
                    target: Target::KeepAspectRatio { min, max },
                    method: method(r.resize_method()),
                    padding: r.pad_to_max_dimension().then_some(color),
                    grey: r.convert_to_grayscale(),
                })
            }
            R::IdentityResizer(_) => {
                bail!("{field}.identity_resizer is not supported; use fixed_shape_resizer or keep_aspect_ratio_resizer")
            }
        }
    }

    /// The height and width that a picture of `size` (height, width) is resized to, padding apart.
    pub fn size_for(self, size: (usize, usize)) -> (usize, usize) {
        match self.target {
            Target::FixedShape { height, width } => (height, width),
            Target::KeepAspectRatio { min, max } => {
                // Float32 and rounding to even, as TensorFlow's graph computes it: other arithmetic gives other sizes here and there.
                let (height, width) = (size.0 as f32, size.1 as f32);
                let scaled = |scale: f32| {
                    let side = |s: f32| ((s * scale).round_ties_even() as usize).max(1);
                    (side(height), side(width))
                };
                let large = scaled(min as f32 / height.min(width));
                if large.0.max(large.1) > max { scaled(max as f32 / height.max(width)) } else { large }
            }
        }
    }

    /// The one size of all pictures, padding included, if there is one: `[height, width]`.
    pub fn fixed_size(self) -> Option<[usize; 2]> {
        match self.target {
            Target::FixedShape { height, width } => Some([height, width]),
            Target::KeepAspectRatio { max, .. } => self.padding.map(|_| [max; 2]),
        }
    }

    /// 3, or 1 for grey pictures.
    pub fn channels(self) -> usize {
        if self.grey { 1 } else { 3 }
    }

    /// Resizes, pads and greys a picture.
    ///
    /// * `src`: `[height, width, 3]`, 0 to 255; `from`: its height and width.
    ///
    /// # Panics
    /// If `src` is not as long as its shape says, or a side is 0.
    pub fn resize<T: Copy + Into<f32>>(self, src: &[T], from: (usize, usize)) -> Resized {
        let size = self.size_for(from);
        let mut pixels = match self.method {
            Method::Bilinear => {
                let mut out = vec![0.0; size.0 * size.1 * 3];
                resize_bilinear_into(src, (from.0, from.1, 3), size, &mut out);
                out
            }
            method => resample::resize(method, src, from, size),
        };
        let mut frame = size;
        if let (Some(color), Some([height, width])) = (self.padding, self.fixed_size()) {
            frame = (height, width);
            let mut padded: Vec<f32> = color.iter().copied().cycle().take(height * width * 3).collect();
            for (row, own) in padded.chunks_exact_mut(width * 3).zip(pixels.chunks_exact(size.1 * 3)) {
                row[..own.len()].copy_from_slice(own);
            }
            pixels = padded;
        }
        if self.grey {
            pixels = pixels.as_chunks::<3>().0.iter().map(|[r, g, b]| GREY[0] * r + GREY[1] * g + GREY[2] * b).collect();
        }
        Resized { pixels, frame, size }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeping_the_aspect_makes_the_shorter_side_the_minimum_or_the_longer_the_maximum() {
        let resizer = Resizer::keep_aspect_ratio(600, 1024);
        assert_eq!(resizer.size_for((636, 904)), (600, 853));
        assert_eq!(resizer.size_for((300, 600)), (512, 1024));
        assert_eq!(resizer.size_for((2000, 100)), (1024, 51));
        // 0.5 goes to the even neighbour: 2.5 to 2, 3.5 to 4.
        let small = Resizer::keep_aspect_ratio(1, 100);
        assert_eq!(small.size_for((2, 5)), (1, 2));
        assert_eq!(small.size_for((7, 2)), (4, 1));
    }

    #[test]
    fn a_padded_picture_lies_at_the_top_left_of_a_square_and_grey_is_made_of_both() {
        let padded = Resizer { padding: Some([1.0, 2.0, 3.0]), ..Resizer::keep_aspect_ratio(2, 4) };
        assert_eq!(padded.fixed_size(), Some([4, 4]));
        let out = padded.resize(&[100u8; 4 * 6 * 3], (4, 6));
        assert_eq!((out.frame, out.size, out.pixels.len()), ((4, 4), (2, 3), 48));
        for (at, pixel) in out.pixels.as_chunks::<3>().0.iter().enumerate() {
            let inside = at / 4 < 2 && at % 4 < 3;
            assert_eq!(*pixel, if inside { [100.0; 3] } else { [1.0, 2.0, 3.0] }, "pixel {at}");
        }
        let grey = Resizer { grey: true, ..padded };
        let grey = grey.resize(&[100u8; 4 * 6 * 3], (4, 6)).pixels;
        assert_eq!((grey.len(), grey[3]), (16, 0.2989 + 2.0 * 0.587 + 3.0 * 0.114));
        assert!((grey[0] - 99.99).abs() < 1e-4);
    }

    #[test]
    fn every_field_of_the_message_is_taken_or_named() {
        let of = |inner: &str| {
            let text = format!("model {{ ssd {{ image_resizer {{ {inner} }} }} }}");
            let config = crate::config::pipeline::parse(&text, "test").unwrap();
            let Some(pb::detection_model::Model::Ssd(ssd)) = config.model.unwrap().model else { panic!() };
            Resizer::from_config(ssd.image_resizer.as_ref(), "r").map_err(|e| e.to_string())
        };
        let fixed = of("fixed_shape_resizer { height: 5 width: 7 resize_method: AREA convert_to_grayscale: true }").unwrap();
        assert_eq!(fixed, Resizer { method: Method::Area, grey: true, ..Resizer::fixed_shape(5, 7) });
        let keep = of(
            "keep_aspect_ratio_resizer { min_dimension: 5 max_dimension: 7 resize_method: BICUBIC per_channel_pad_value: [1, 2, 3] }",
        );
        assert_eq!(keep.unwrap(), Resizer { method: Method::Bicubic, ..Resizer::keep_aspect_ratio(5, 7) });
        let keep = of("keep_aspect_ratio_resizer { min_dimension: 5 max_dimension: 7 pad_to_max_dimension: true }").unwrap();
        assert_eq!(keep, Resizer { padding: Some([0.0; 3]), ..Resizer::keep_aspect_ratio(5, 7) });
        for (inner, words) in [
            ("keep_aspect_ratio_resizer { min_dimension: 9 max_dimension: 7 }", "min_dimension 9 is above max_dimension 7"),
            ("keep_aspect_ratio_resizer { per_channel_pad_value: [1, 2] }", "per_channel_pad_value: [1.0, 2.0]"),
            ("fixed_shape_resizer { height: 0 }", "r.fixed_shape_resizer.height: 0"),
            ("identity_resizer { }", "r.identity_resizer is not supported"),
        ] {
            let error = of(inner).unwrap_err();
            assert!(error.contains(words), "{inner}: {error}");
        }
    }
}
