//! The training augmentations of the TF OD API: one step each, built from its config message, drawn from a seeded generator.
//!
//! Source: `object_detection/core/preprocessor.py` and `builders/preprocessor_builder.py`, April 2018. The steps see the
//! picture as decoded (before it is resized), with values from 0 to 255.

pub mod color;
pub mod crop;
pub mod flip;
pub mod pad;

use anyhow::{Context, Result, bail, ensure};
use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use crate::data::augment::color::Color;
use crate::data::augment::crop::{Crop, crop_to_aspect_ratio, ssd_random_crop};
use crate::data::augment::flip::Flip;
use crate::data::augment::pad::{CropPad, Fill, Pad, pad_to_aspect_ratio};
use crate::data::resample::{self, Method};
use crate::data::resize::{Corners, resize_bilinear_with};
use crate::data::sample::{Pixels, Sample};
use crate::proto::object_detection::protos as pb;

/// What the SSD crops share upstream where the config lists no operations: seven degrees of strictness.
const STRICTNESS: [f32; 7] = [0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0];

/// The [`Crop`] of a message that has its fields: five of the config's messages do, each a type of its own.
macro_rules! crop {
    ($message:expr) => {
        crop!($message, ($message.min_aspect_ratio(), $message.max_aspect_ratio()))
    };
    ($message:expr, $aspect_ratio:expr) => {
        Crop {
            min_object_covered: $message.min_object_covered(),
            aspect_ratio: $aspect_ratio,
            area: ($message.min_area(), $message.max_area()),
            overlap_thresh: $message.overlap_thresh(),
            random_coef: $message.random_coef(),
        }
    };
}

/// One augmentation step, ready to run.
#[derive(Debug, Clone, PartialEq)]
pub enum Augmentation {
    /// Left to right, top to bottom or a quarter turn, for half of the pictures.
    Flip(Flip),
    /// A change of colours.
    Color(Color),
    /// One crop.
    Crop(Crop),
    /// A padding.
    Pad(Pad),
    /// A crop and a padding.
    CropPad(CropPad),
    /// One of several crops.
    SsdCrop(Vec<Crop>),
    /// One of several crops with padding.
    SsdCropPad(Vec<CropPad>),
    /// One of several crops, then a cut to an aspect ratio.
    SsdCropToAspectRatio(Vec<Crop>, f32),
    /// One of several crops, then a padding to an aspect ratio.
    SsdCropPadToAspectRatio {
        /// The crops.
        crops: Vec<Crop>,
        /// Width / height.
        aspect_ratio: f32,
        /// Least size after padding, as ratios of height and width.
        min_ratio: (f32, f32),
        /// Greatest size after padding.
        max_ratio: (f32, f32),
    },
    /// A cut to an aspect ratio, and the share of a box that must be left.
    CropToAspectRatio(f32, f32),
    /// Resizes by a factor between the two; boxes are normalized and stay.
    Scale(f32, f32),
    /// Resizes to this height and width.
    Resize(Method, usize, usize),
    /// Resizes to this height and width by one of the methods.
    ResizeByAnyMethod(usize, usize),
    /// Moves each corner by up to this share of the box's sides.
    JitterBoxes(f32),
    /// Subtracts each channel's mean.
    SubtractMean([f32; 3]),
    /// Maps the range of the first two to that of the last two.
    Normalize {
        /// The values that come in, least and greatest.
        from: (f32, f32),
        /// What they become.
        to: (f32, f32),
    },
}

impl Augmentation {
    /// What it does to pictures' aspect: `Some(true)` if they come out with different ones, `Some(false)` with the same one, `None` as they
    /// went in.
    fn varies_aspect(&self) -> Option<bool> {
        match self {
            Self::Flip(Flip::Rotation90)
            | Self::Crop(_)
            | Self::Pad(_)
            | Self::CropPad(_)
            | Self::SsdCrop(_)
            | Self::SsdCropPad(_) => Some(true),
            Self::SsdCropToAspectRatio(..)
            | Self::SsdCropPadToAspectRatio { .. }
            | Self::CropToAspectRatio(..)
            | Self::Resize(..)
            | Self::ResizeByAnyMethod(..) => Some(false),
            Self::Flip(_)
            | Self::Color(_)
            | Self::Scale(..)
            | Self::JitterBoxes(_)
            | Self::SubtractMean(_)
            | Self::Normalize { .. } => None,
        }
    }

    /// Whether pictures leave these steps with different aspects, whatever they came with.
    pub fn vary_aspect(steps: &[Self]) -> bool {
        steps.iter().rev().find_map(Self::varies_aspect).unwrap_or(false)
    }

    /// The steps of a config, in their order.
    ///
    /// # Errors
    /// As [`Self::from_config`], with the step's place.
    pub fn all_from_config(config: &pb::TrainConfig) -> Result<Vec<Self>> {
        let place = |i: usize| format!("train_config.data_augmentation_options[{i}]");
        let steps = config.data_augmentation_options.iter().enumerate();
        steps.map(|(i, step)| Self::from_config(step).with_context(|| place(i))).collect()
    }

    /// Builds a step from the config.
    ///
    /// # Errors
    /// If the step is not supported, or one of its fields is out of range; both are named.
    pub fn from_config(step: &pb::PreprocessingStep) -> Result<Self> {
        use pb::preprocessing_step::PreprocessingStep as Step;
        let Some(step) = &step.preprocessing_step else {
            bail!("it is empty; remove it or name a step");
        };
        Ok(match step {
            // Keypoints are not read from the records, so their permutation has nothing to permute.
            Step::RandomHorizontalFlip(_) => Self::Flip(Flip::Horizontal),
            Step::RandomVerticalFlip(_) => Self::Flip(Flip::Vertical),
            Step::RandomRotation90(_) => Self::Flip(Flip::Rotation90),
            Step::RandomPixelValueScale(c) => Self::Color(Color::PixelScale(c.minval(), c.maxval())),
            Step::RandomRgbToGray(c) => Self::Color(Color::Gray(c.probability())),
            Step::RandomAdjustBrightness(c) => Self::Color(Color::Brightness(c.max_delta())),
            Step::RandomAdjustContrast(c) => Self::Color(Color::Contrast(c.min_delta(), c.max_delta())),
            Step::RandomAdjustHue(c) => Self::Color(Color::Hue(c.max_delta())),
            Step::RandomAdjustSaturation(c) => Self::Color(Color::Saturation(c.min_delta(), c.max_delta())),
            Step::RandomDistortColor(c) => match c.color_ordering() {
                0 => Self::Color(Color::Distort { contrast_second: false }),
                1 => Self::Color(Color::Distort { contrast_second: true }),
                other => bail!("random_distort_color: color_ordering {other} must be 0 or 1"),
            },
            Step::RandomBlackPatches(c) => {
                let size = c.size_to_image_ratio();
                ensure!((0.0..=1.0).contains(&size), "random_black_patches: size_to_image_ratio {size} must be from 0 to 1");
                let tries = c.max_black_patches().max(0) as usize;
                Self::Color(Color::BlackPatches { tries, probability: c.probability(), size })
            }
            Step::RandomJitterBoxes(c) => Self::JitterBoxes(c.ratio()),
            Step::RandomImageScale(c) => {
                let (low, high) = (c.min_scale_ratio(), c.max_scale_ratio());
                ensure!(low > 0.0 && high >= low, "random_image_scale: ratios {low} and {high} must be above 0 and in order");
                Self::Scale(low, high)
            }
            Step::RandomCropImage(c) => Self::Crop(crop!(c).checked("random_crop_image")?),
            Step::RandomPadImage(c) => Self::Pad(Pad {
                min_size: both("random_pad_image: min_image", c.min_image_height, c.min_image_width)?,
                max_size: both("random_pad_image: max_image", c.max_image_height, c.max_image_width)?,
                fill: fill("random_pad_image", &c.pad_color)?,
            }),
            Step::RandomCropPadImage(c) => Self::CropPad(CropPad {
                crop: crop!(c).checked("random_crop_pad_image")?,
                min_ratio: pair("random_crop_pad_image: min_padded_size_ratio", &c.min_padded_size_ratio, 1.0)?,
                max_ratio: pair("random_crop_pad_image: max_padded_size_ratio", &c.max_padded_size_ratio, 2.0)?,
                fill: fill("random_crop_pad_image", &c.pad_color)?,
            }),
            Step::RandomCropToAspectRatio(c) => {
                let ratio = positive("random_crop_to_aspect_ratio: aspect_ratio", c.aspect_ratio())?;
                Self::CropToAspectRatio(ratio, c.overlap_thresh())
            }
            Step::ResizeImage(c) => {
                use pb::resize_image::Method as Named;
                let (height, width) = (c.new_height(), c.new_width());
                ensure!(height > 0 && width > 0, "resize_image: new_height {height} and new_width {width} must be above 0");
                let method = match c.method() {
                    Named::Area => Method::Area,
                    Named::Bicubic => Method::Bicubic,
                    Named::Bilinear => Method::Bilinear,
                    Named::NearestNeighbor => Method::NearestNeighbor,
                };
                Self::Resize(method, height as usize, width as usize)
            }
            Step::RandomResizeMethod(c) => {
                let (height, width) = (c.target_height(), c.target_width());
                ensure!(
                    height >= 1.0 && width >= 1.0,
                    "random_resize_method: target_height {height} and target_width {width} must be at least 1"
                );
                Self::ResizeByAnyMethod(height as usize, width as usize)
            }
            Step::SubtractChannelMean(c) => match c.means[..] {
                [r, g, b] => Self::SubtractMean([r, g, b]),
                _ => bail!("subtract_channel_mean: means has {} values and must have 3", c.means.len()),
            },
            Step::NormalizeImage(c) => {
                let from = (c.original_minval(), c.original_maxval());
                ensure!(
                    from.0 < from.1,
                    "normalize_image: original_minval {} and original_maxval {} must be set and in order",
                    from.0,
                    from.1
                );
                Self::Normalize { from, to: (c.target_minval(), c.target_maxval()) }
            }
            Step::SsdRandomCrop(c) => {
                Self::SsdCrop(ssd_crops("ssd_random_crop", &STRICTNESS, c.operations.iter().map(|o| crop!(o)))?)
            }
            Step::SsdRandomCropPad(c) => {
                let crops = ssd_crops(
                    "ssd_random_crop_pad",
                    // Upstream leaves the loosest out here.
                    &STRICTNESS[1..],
                    c.operations.iter().map(|o| crop!(o)),
                )?;
                let pads = (0..crops.len()).map(|i| match c.operations.get(i) {
                    None => Ok(((1.0, 1.0), (2.0, 2.0), Fill::Mean)),
                    Some(o) => Ok((
                        pair("ssd_random_crop_pad: min_padded_size_ratio", &o.min_padded_size_ratio, 1.0)?,
                        pair("ssd_random_crop_pad: max_padded_size_ratio", &o.max_padded_size_ratio, 2.0)?,
                        // With operations listed, a colour that is not set is black, as upstream.
                        Fill::Color([o.pad_color_r(), o.pad_color_g(), o.pad_color_b()]),
                    )),
                });
                let pads: Vec<_> = pads.collect::<Result<_>>()?;
                let join = |(crop, (min_ratio, max_ratio, fill))| CropPad { crop, min_ratio, max_ratio, fill };
                Self::SsdCropPad(crops.into_iter().zip(pads).map(join).collect())
            }
            Step::SsdRandomCropFixedAspectRatio(c) => {
                let ratio = positive("ssd_random_crop_fixed_aspect_ratio: aspect_ratio", c.aspect_ratio())?;
                let mut crops = ssd_crops(
                    "ssd_random_crop_fixed_aspect_ratio",
                    &STRICTNESS,
                    c.operations.iter().map(|o| crop!(o, (ratio, ratio))),
                )?;
                // Only where operations are listed does the message's ratio count upstream; the default there is 1.
                let ratio = if c.operations.is_empty() { 1.0 } else { ratio };
                crops.iter_mut().for_each(|crop| crop.aspect_ratio = (ratio, ratio));
                Self::SsdCropToAspectRatio(crops, ratio)
            }
            Step::SsdRandomCropPadFixedAspectRatio(c) => Self::SsdCropPadToAspectRatio {
                crops: ssd_crops("ssd_random_crop_pad_fixed_aspect_ratio", &STRICTNESS, c.operations.iter().map(|o| crop!(o)))?,
                aspect_ratio: positive("ssd_random_crop_pad_fixed_aspect_ratio: aspect_ratio", c.aspect_ratio())?,
                min_ratio: pair("ssd_random_crop_pad_fixed_aspect_ratio: min_padded_size_ratio", &c.min_padded_size_ratio, 1.0)?,
                max_ratio: pair("ssd_random_crop_pad_fixed_aspect_ratio: max_padded_size_ratio", &c.max_padded_size_ratio, 2.0)?,
            },
            // The check of the whole config has said more of them.
            Step::ScaleBoxesToPixelCoordinates(_)
            | Step::RgbToGray(_)
            | Step::ConvertClassLogitsToSoftmax(_)
            | Step::RandomAbsolutePadImage(_)
            | Step::RandomSelfConcatImage(_) => bail!("a step that is not supported; remove it"),
        })
    }

    /// Changes a picture and its boxes. The same generator state gives the same result.
    pub fn apply(&self, sample: &mut Sample, rng: &mut ChaCha8Rng) {
        match self {
            Self::Flip(flip) => flip.apply(sample, rng),
            Self::Color(color) => color.apply(sample, rng),
            Self::Crop(crop) => crop.apply(sample, rng),
            Self::Pad(pad) => pad.apply(sample, rng),
            Self::CropPad(crop_pad) => crop_pad.apply(sample, rng),
            Self::SsdCrop(crops) => ssd_random_crop(crops, sample, rng),
            Self::SsdCropPad(steps) => steps[rng.random_range(0..steps.len())].apply(sample, rng),
            Self::SsdCropToAspectRatio(crops, ratio) => {
                ssd_random_crop(crops, sample, rng);
                // `random_crop_to_aspect_ratio`'s own default threshold.
                crop_to_aspect_ratio(*ratio, 0.3, sample, rng);
            }
            Self::SsdCropPadToAspectRatio { crops, aspect_ratio, min_ratio, max_ratio } => {
                ssd_random_crop(crops, sample, rng);
                pad_to_aspect_ratio(*aspect_ratio, *min_ratio, *max_ratio, sample, rng);
            }
            Self::CropToAspectRatio(ratio, overlap_thresh) => crop_to_aspect_ratio(*ratio, *overlap_thresh, sample, rng),
            Self::Scale(low, high) => {
                let factor = rng.random::<f32>() * (high - low) + low;
                let side = |pixels: usize| ((pixels as f32 * factor) as usize).max(1);
                scale(sample, (side(sample.height), side(sample.width)));
            }
            Self::Resize(method, height, width) => resize(sample, *method, (*height, *width)),
            Self::ResizeByAnyMethod(height, width) => {
                resize(sample, Method::ALL[rng.random_range(0..Method::ALL.len())], (*height, *width));
            }
            Self::JitterBoxes(ratio) => {
                for bbox in &mut sample.groundtruth.boxes {
                    let (height, width) = (bbox[2] - bbox[0], bbox[3] - bbox[1]);
                    for (value, side) in bbox.iter_mut().zip([height, width, height, width]) {
                        let share = rng.random::<f32>() * 2.0 * ratio - ratio;
                        *value = (*value + side * share).clamp(0.0, 1.0);
                    }
                }
            }
            Self::SubtractMean(means) => {
                for pixel in sample.floats().as_chunks_mut::<3>().0 {
                    pixel.iter_mut().zip(means).for_each(|(value, mean)| *value -= mean);
                }
            }
            Self::Normalize { from, to } => {
                let scale = (to.1 - to.0) / (from.1 - from.0);
                sample.floats().iter_mut().for_each(|value| *value = (*value - from.0) * scale + to.0);
            }
        }
    }
}

/// Bilinear, with the corners of both pictures on each other.
fn scale(sample: &mut Sample, (height, width): (usize, usize)) {
    let mut out = vec![0.0; height * width * 3];
    let from = (sample.height, sample.width, 3);
    match &sample.pixels {
        Pixels::Bytes(data) => resize_bilinear_with(Corners::Aligned, data, from, (height, width), &mut out),
        Pixels::Floats(data) => resize_bilinear_with(Corners::Aligned, data, from, (height, width), &mut out),
    }
    sample.pixels = Pixels::Floats(out);
    (sample.height, sample.width) = (height, width);
}

fn resize(sample: &mut Sample, method: Method, to: (usize, usize)) {
    let from = (sample.height, sample.width);
    sample.pixels = Pixels::Floats(match &sample.pixels {
        Pixels::Bytes(data) => resample::resize(method, data, from, to),
        Pixels::Floats(data) => resample::resize(method, data, from, to),
    });
    (sample.height, sample.width) = to;
}

/// The listed crops, checked, or upstream's seven (or fewer) where none are listed.
fn ssd_crops(name: &str, strictness: &[f32], listed: impl ExactSizeIterator<Item = Crop>) -> Result<Vec<Crop>> {
    if listed.len() > 0 {
        return listed.enumerate().map(|(i, crop)| crop.checked(&format!("{name}.operations[{i}]"))).collect();
    }
    let default = |&degree: &f32| Crop {
        min_object_covered: degree,
        aspect_ratio: (0.5, 2.0),
        area: (0.1, 1.0),
        overlap_thresh: degree,
        random_coef: 0.15,
    };
    Ok(strictness.iter().map(default).collect())
}

fn positive(name: &str, value: f32) -> Result<f32> {
    ensure!(value > 0.0, "{name} {value} must be above 0");
    Ok(value)
}

fn pair(name: &str, values: &[f32], default: f32) -> Result<(f32, f32)> {
    match *values {
        [] => Ok((default, default)),
        [height, width] if height > 0.0 && width > 0.0 => Ok((height, width)),
        _ => bail!("{name} {values:?} must be two values above 0 (height, width)"),
    }
}

fn both(name: &str, height: Option<f32>, width: Option<f32>) -> Result<Option<(usize, usize)>> {
    match (height, width) {
        (None, None) => Ok(None),
        (Some(height), Some(width)) if height >= 0.0 && width >= 0.0 => Ok(Some((height as usize, width as usize))),
        (Some(height), Some(width)) => bail!("{name}_height {height} and its _width {width} must not be negative"),
        _ => bail!("{name}_height and its _width must be both set or both unset"),
    }
}

fn fill(name: &str, color: &[f32]) -> Result<Fill> {
    match *color {
        [] => Ok(Fill::Mean),
        [r, g, b] => Ok(Fill::Color([r, g, b])),
        _ => bail!("{name}: pad_color has {} values and must have 3 (red, green, blue)", color.len()),
    }
}
