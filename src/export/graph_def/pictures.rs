//! From the pictures given to what the network takes: resizing, padding, grey, scale (upstream builders/image_resizer_builder.py).

use super::builder::{Builder, Op, Value};
use super::ops::{cast, concat, element, height_and_width, select};
use super::parts;
use crate::backbones::faster_rcnn::Pixels;
use crate::data::resample::Method;
use crate::data::resizer::{GREY, Resizer, Target};
use crate::proto::tensorflow::DataType::{DtFloat, DtInt32};

/// Pictures as the network takes them, and their sizes.
#[derive(Debug, Clone, Copy)]
pub struct Prepared {
    /// `[N, H, W, C]`.
    pub pixels: Value,
    /// `[height, width]`, padding included.
    pub frame: Value,
    /// `[height, width]` without padding: the same value as `frame` where there is none.
    pub own: Value,
}

/// Prepares `pictures`, `[N, height, width, 3]` bytes.
pub fn prepare(b: &mut Builder, resizer: Resizer, pixels: &Pixels, pictures: Value) -> Prepared {
    let own = target_size(b, resizer, pictures);
    let mut picture = resize(b, resizer.method, pictures, own);
    let mut frame = own;
    if let (Some(color), Some(size)) = (resizer.padding, resizer.fixed_size()) {
        frame = b.ints("PadToMax/size", &[2], &size.map(|side| side as i32));
        picture = b.within("PadToMax", |b| pad(b, picture, color, [frame, own]));
    }
    if resizer.grey {
        let shares = b.floats("rgb_to_grayscale/weights", &[3], &GREY);
        let weighed = b.same("rgb_to_grayscale/mul", "Mul", &[picture, shares]);
        let axis = b.int("rgb_to_grayscale/axis", 3);
        let sum = Op::new("Sum", &[weighed, axis]).typed("T").with("Tidx", DtInt32).with("keep_dims", true);
        picture = b.add("rgb_to_grayscale", sum, DtFloat);
    }
    Prepared { pixels: parts::scale_pixels(b, pixels, picture), frame, own }
}

/// The pictures resized: `[N, size[0], size[1], 3]` floats in 0..255.
fn resize(b: &mut Builder, method: Method, pictures: Value, size: Value) -> Value {
    let (kind, pictures) = match method {
        Method::Bilinear => ("ResizeBilinear", pictures),
        Method::Bicubic => ("ResizeBicubic", pictures),
        Method::Area => ("ResizeArea", pictures),
        // It alone gives elements of the type that it gets.
        Method::NearestNeighbor => ("ResizeNearestNeighbor", cast(b, "ToFloat", pictures, DtFloat)),
    };
    // Legacy corners: neither aligned nor half-pixel centres (an attribute that TensorFlow 1.12 lacks and whose default is false).
    let op = Op::new(kind, &[pictures, size]).typed("T").with("align_corners", false);
    b.add(&format!("ResizeImage/{kind}"), op, DtFloat)
}

/// A colour below and to the right.
fn pad(b: &mut Builder, picture: Value, color: [f32; 3], [frame, own]: [Value; 2]) -> Value {
    let missing = b.same("missing", "Sub", &[frame, own]); // [2]
    let column = super::ops::reshape(b, "column", missing, &[2, 1]);
    let zeros = b.ints("before", &[2, 1], &[0, 0]);
    let sides = concat(b, "sides", &[zeros, column], 1); // [2, 2]
    let none = b.ints("none", &[1, 2], &[0, 0]);
    let paddings = concat(b, "paddings", &[none, sides, none], 0); // [4, 2]
    let padded = |b: &mut Builder, x: Value, value: f32| {
        let value = b.float("value", value);
        b.add("PadV2", Op::new("PadV2", &[x, paddings, value]).typed("T").with("Tpaddings", DtInt32), DtFloat)
    };
    if color == [color[0]; 3] {
        return padded(b, picture, color[0]);
    }
    let axis = b.int("split/axis", 3);
    let split = Op::new("Split", &[axis, picture]).with("T", DtFloat).with("num_split", 3i64);
    let channels = b.add_many("split", split, &[DtFloat; 3]);
    let channels: Vec<Value> = channels.into_iter().zip(color).map(|(channel, value)| padded(b, channel, value)).collect();
    concat(b, "concat", &channels, 3)
}

/// `[height, width]` that the pictures are resized to.
///
/// Source: upstream core/preprocessor.py, `resize_to_range`: float32, and rounding to even.
fn target_size(b: &mut Builder, resizer: Resizer, pictures: Value) -> Value {
    let (min, max) = match resizer.target {
        Target::FixedShape { height, width } => return b.ints("ResizeImage/size", &[2], &[height as i32, width as i32]),
        Target::KeepAspectRatio { min, max } => (min, max),
    };
    b.within("ResizeToRange", |b| {
        let sides = height_and_width(b, pictures);
        let sides = cast(b, "ToFloat", sides, DtFloat);
        let axis = b.int("axis", 0);
        let reduce = |b: &mut Builder, kind: &'static str, x: Value| {
            b.add(kind, Op::new(kind, &[x, axis]).typed("T").with("Tidx", DtInt32), DtFloat)
        };
        let one = b.float("one", 1.0);
        let scaled = |b: &mut Builder, name: &str, to: usize, side: Value| {
            b.within(name, |b| {
                let to = b.float("to", to as f32);
                let factor = b.same("truediv", "RealDiv", &[to, side]);
                let sides = b.same("mul", "Mul", &[sides, factor]);
                let sides = b.same("Round", "Round", &[sides]);
                b.same("Maximum", "Maximum", &[sides, one])
            })
        };
        let short = reduce(b, "Min", sides);
        let long = reduce(b, "Max", sides);
        let large = scaled(b, "large", min, short);
        let small = scaled(b, "small", max, long);
        let longest = reduce(b, "Max", large);
        let limit = b.float("max_dimension", max as f32);
        let too_long = b.compare("Greater", "Greater", [longest, limit]);
        let size = select(b, "Select", too_long, [small, large]);
        cast(b, "ToInt32", size, DtInt32)
    })
}

/// The sizes of a batch's pictures as boxes are measured by them.
#[derive(Debug, Clone, Copy)]
pub struct Frame {
    /// How many: the `N` of the shapes.
    pub pictures: Value,
    /// Height, width, height, width, as floats, padding included: `[4]`.
    pub corners: Value,
    /// One over each of them.
    pub reciprocal: Value,
    /// Without padding; as `corners` where there is none.
    pub own_corners: Value,
    /// One over each of them.
    pub own_reciprocal: Value,
}

impl Frame {
    /// * `pictures`: as they were given.
    pub fn new(b: &mut Builder, pictures: Value, prepared: &Prepared) -> Self {
        let sizes = super::ops::shape_of(b, pictures);
        let pictures = element(b, "pictures", sizes, 0);
        let (corners, reciprocal) = corners(b, prepared.frame);
        let (own_corners, own_reciprocal) = match prepared.own == prepared.frame {
            true => (corners, reciprocal),
            false => b.within("own", |b| self::corners(b, prepared.own)),
        };
        Self { pictures, corners, reciprocal, own_corners, own_reciprocal }
    }
}

fn corners(b: &mut Builder, size: Value) -> (Value, Value) {
    let size = cast(b, "ToFloat", size, DtFloat);
    let corners = concat(b, "corners", &[size, size], 0);
    let one = b.float("one", 1.0);
    (corners, b.same("truediv", "RealDiv", &[one, corners]))
}
