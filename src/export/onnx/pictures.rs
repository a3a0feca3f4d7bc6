//! From the pictures given to what the network takes: resizing, padding, grey, scale.
//!
//! Resizing is written down in TensorFlow 1's own order of operations: ONNX's Resize has its corners too, but rounds coordinates otherwise,
//! which moves scores.

use super::builder::{Attribute, Builder, Value};
use super::parts::{self, cast, concat, exact_div, range, reshape, side};
use crate::backbones::faster_rcnn::Pixels;
use crate::data::resample::{self, Method};
use crate::data::resizer::{GREY, Resizer, Target};
use crate::proto::onnx::tensor_proto::DataType;

/// Pictures as the network takes them, and their sizes.
#[derive(Debug, Clone, Copy)]
pub struct Prepared {
    /// `[N, C, H, W]`.
    pub pixels: Value,
    /// Height and width with padding, each a row of one integer.
    pub frame: [Value; 2],
    /// The same without padding: the same values where there is none.
    pub own: [Value; 2],
}

/// Prepares `pictures`, `[N, height, width, 3]` bytes.
pub fn prepare(b: &mut Builder, resizer: Resizer, pixels: &Pixels, pictures: Value) -> Prepared {
    let own = target_size(b, resizer, pictures);
    let mut picture = b.within("ResizeImage", |b| resize(b, resizer.method, pictures, own));
    let mut frame = own;
    if let (Some(color), Some(size)) = (resizer.padding, resizer.fixed_size()) {
        frame = size.map(|side| b.ints("frame", &[1], &[side as i64]));
        picture = b.within("PadToMax", |b| pad(b, picture, color, [frame, own]));
    }
    if resizer.grey {
        let shares = b.floats("grey", &[3, 1], &GREY);
        picture = b.op("ToGrey", "MatMul", &[picture, shares], &[]); // [N, H, W, 1]
    }
    Prepared { pixels: scale_pixels(b, pixels, resizer.channels(), picture), frame, own }
}

/// What the network takes in place of resized pixels: `[N, h, w, C] -> [N, C, h, w]`.
fn scale_pixels(b: &mut Builder, pixels: &Pixels, channels: usize, resized: Value) -> Value {
    // What is added to a channel goes over whole planes then, not three numbers at a time.
    let mut planes = b.op("transpose", "Transpose", &[resized], &[Attribute::ints("perm", &[0, 3, 1, 2])]);
    if pixels.scale != 1.0 {
        let scale = b.float("scale", pixels.scale as f32);
        planes = b.op("mul", "Mul", &[scale, planes], &[]);
    }
    let shift = b.floats("shift", &[channels as i64, 1, 1], &pixels.shift[..channels]);
    b.op("add", "Add", &[planes, shift], &[])
}

/// A colour below and to the right.
fn pad(b: &mut Builder, picture: Value, color: [f32; 3], [frame, own]: [[Value; 2]; 2]) -> Value {
    let missing = [0, 1].map(|i| b.op("missing", "Sub", &[frame[i], own[i]], &[]));
    let before = b.ints("before", &[5], &[0; 5]); // and of the pictures, behind
    let channels = b.ints("channels", &[1], &[0]);
    let pads = concat(b, "pads", &[before, missing[0], missing[1], channels], 0); // [8]
    let padded = |b: &mut Builder, x: Value, value: f32| {
        let value = b.float("value", value);
        b.op("Pad", "Pad", &[x, pads, value], &[])
    };
    if color == [color[0]; 3] {
        return padded(b, picture, color[0]);
    }
    let channels: Vec<Value> = (0..3)
        .map(|i| {
            let channel = parts::columns(b, "channel", picture, [i, i + 1]);
            padded(b, channel, color[i as usize])
        })
        .collect();
    concat(b, "concat", &channels, 3)
}

/// The pictures resized: floats `[N, h, w, 3]` in 0..255.
///
/// * `size`: the height and width, each a row of one integer.
fn resize(b: &mut Builder, method: Method, pictures: Value, size: [Value; 2]) -> Value {
    let sides = [("vertical", Side { axis: 1, size: size[0] }), ("horizontal", Side { axis: 2, size: size[1] })];
    let [vertical, horizontal] = sides.map(|(name, to)| b.within(name, |b| Coordinates::new(b, method, pictures, to)));
    match method {
        Method::Bilinear => bilinear(b, pictures, [&vertical, &horizontal]),
        Method::NearestNeighbor => {
            let at = [&vertical, &horizontal].map(|side| b.within("nearest", |b| side.lower(b)));
            let rows = take(b, "rows", pictures, 1, at[0]);
            let pixels = take(b, "pixels", rows, 2, at[1]);
            cast(b, "ToFloat", pixels, DataType::Float)
        }
        Method::Bicubic => {
            let rows = b.within("rows", |b| cubic(b, pictures, &vertical));
            b.within("columns", |b| cubic(b, rows, &horizontal))
        }
        Method::Area => {
            let [down, across] = [&vertical, &horizontal].map(|side| b.within("shares", |b| side.shares(b)));
            let picture = cast(b, "ToFloat", pictures, DataType::Float);
            let lines = reshape(b, "lines", picture, &[0, 0, -1]); // [N, height, width * 3]
            let rows = b.op("rows", "MatMul", &[down, lines], &[]); // [N, h, width * 3]
            let rows = {
                let (all, channels) = (b.ints("all", &[2], &[0, 0]), b.ints("channels", &[1], &[3]));
                let sizes = concat(b, "rows/shape", &[all, horizontal.source, channels], 0);
                b.op("rows/pixels", "Reshape", &[rows, sizes], &[]) // [N, h, width, 3]
            };
            b.op("pixels", "MatMul", &[across, rows], &[]) // [N, h, w, 3]
        }
    }
}

/// An axis of the pictures, and how long it becomes.
struct Side {
    axis: i64,
    size: Value,
}

/// Where the cells of one side lie on the source.
struct Coordinates {
    axis: i64,
    /// Cells of the source: a row of one integer.
    source: Value,
    /// Source cells for one of the result: one float.
    scale: Value,
    /// Numbers of the result's cells, floats.
    cells: Value,
    /// `cells * scale`, and the whole cell before it.
    at: Value,
    floor: Value,
}

impl Coordinates {
    fn new(b: &mut Builder, method: Method, pictures: Value, to: Side) -> Self {
        let source = side(b, "source", pictures, to.axis);
        let [from, size] = [("from", source), ("to", to.size)].map(|(name, x)| cast(b, name, x, DataType::Float));
        // Pixels are taken from whole cells; of the other methods a last bit moves no pixel by more than as much.
        let scale = match method {
            Method::NearestNeighbor => exact_div(b, "scale", from, size),
            _ => b.op("scale", "Div", &[from, size], &[]),
        };
        let cells = range(b, "cells", to.size);
        let cells = cast(b, "cells/ToFloat", cells, DataType::Float);
        let at = b.op("at", "Mul", &[cells, scale], &[]);
        let floor = b.op("floor", "Floor", &[at], &[]);
        Self { axis: to.axis, source, scale, cells, at, floor }
    }

    /// How far it is from the cell before to the next.
    fn fraction(&self, b: &mut Builder) -> Value {
        b.op("fraction", "Sub", &[self.at, self.floor], &[])
    }

    /// The source's cell so many after the one before, as an index.
    fn neighbour(&self, b: &mut Builder, name: &str, away: i64) -> Value {
        let lower = cast(b, &format!("{name}/lower"), self.floor, DataType::Int64);
        let [one, zero, away] =
            [("one", 1), ("zero", 0), ("away", away)].map(|(part, v)| b.ints(&format!("{name}/{part}"), &[1], &[v]));
        let last = b.op(&format!("{name}/last"), "Sub", &[self.source, one], &[]);
        let at = b.op(&format!("{name}/at"), "Add", &[lower, away], &[]);
        let at = b.op(&format!("{name}/not_behind"), "Min", &[at, last], &[]);
        b.op(name, "Max", &[at, zero], &[])
    }

    fn lower(&self, b: &mut Builder) -> Value {
        self.neighbour(b, "nearest", 0)
    }

    /// A row with one number for each cell, in a shape that broadcasts over the pictures.
    fn across(&self, b: &mut Builder, name: &str, row: Value) -> Value {
        reshape(b, name, row, if self.axis == 1 { &[1, -1, 1, 1] } else { &[1, 1, -1, 1] })
    }

    /// How much of each cell of the result each cell of the source covers: `[cells, source]`.
    fn shares(&self, b: &mut Builder) -> Value {
        let one = b.float("one", 1.0);
        let next = b.op("next", "Add", &[self.cells, one], &[]);
        let high = b.op("high", "Mul", &[next, self.scale], &[]);
        let [low, high] = [("low/column", self.at), ("high/column", high)].map(|(name, x)| reshape(b, name, x, &[-1, 1]));
        let from = range(b, "sources", self.source);
        let from = cast(b, "sources/ToFloat", from, DataType::Float);
        let to = b.op("sources/end", "Add", &[from, one], &[]);
        let end = b.op("end", "Min", &[high, to], &[]);
        let start = b.op("start", "Max", &[low, from], &[]);
        let covered = b.op("covered", "Sub", &[end, start], &[]);
        let covered = b.op("covered/inside", "Relu", &[covered], &[]);
        b.op("share", "Div", &[covered, self.scale], &[])
    }
}

fn take(b: &mut Builder, name: &str, x: Value, axis: i64, at: Value) -> Value {
    b.op(name, "Gather", &[x, at], &[Attribute::int("axis", axis)])
}

fn bilinear(b: &mut Builder, pictures: Value, [vertical, horizontal]: [&Coordinates; 2]) -> Value {
    let fractions = [("vertical", vertical), ("horizontal", horizontal)].map(|(name, side)| {
        b.within(name, |b| {
            let fraction = side.fraction(b);
            let fraction = side.across(b, "across", fraction);
            // For each channel: rows of that length go quicker than three numbers at a time.
            if side.axis == 2 { concat(b, "channels", &[fraction; 3], 3) } else { fraction }
        })
    });
    let ends =
        |b: &mut Builder, side: &Coordinates| [("lower", 0), ("upper", 1)].map(|(name, away)| side.neighbour(b, name, away));
    let (ys, xs) = (b.within("vertical", |b| ends(b, vertical)), b.within("horizontal", |b| ends(b, horizontal)));
    let mut row = |name: &str, y: Value| {
        b.within(name, |b| {
            let row = take(b, "row", pictures, 1, y); // [N, h, width, 3]
            let mut end = |name: &str, x: Value| {
                let pixels = take(b, name, row, 2, x); // [N, h, w, 3]
                cast(b, &format!("{name}/ToFloat"), pixels, DataType::Float)
            };
            let (left, right) = (end("left", xs[0]), end("right", xs[1]));
            lerp(b, left, right, fractions[1])
        })
    };
    let (top, bottom) = (row("top", ys[0]), row("bottom", ys[1]));
    lerp(b, top, bottom, fractions[0])
}

fn lerp(b: &mut Builder, from: Value, to: Value, fraction: Value) -> Value {
    let way = b.op("way", "Sub", &[to, from], &[]);
    let part = b.op("part", "Mul", &[way, fraction], &[]);
    b.op("lerp", "Add", &[from, part], &[])
}

/// One side resized from four neighbours each.
///
/// Source: data/resample.rs.
fn cubic(b: &mut Builder, x: Value, along: &Coordinates) -> Value {
    let x = cast(b, "ToFloat", x, DataType::Float);
    let steps = b.float("steps", resample::CUBIC_STEPS);
    let fraction = along.fraction(b);
    let fraction = b.op("fraction/mul", "Mul", &[fraction, steps], &[]);
    let fraction = b.op("fraction/Round", "Round", &[fraction], &[]);
    let fraction = b.op("fraction/div", "Div", &[fraction, steps], &[]);
    let one = b.float("one", 1.0);
    let rest = b.op("rest", "Sub", &[one, fraction], &[]);
    let neighbours = [
        (-1, fraction, resample::CUBIC_FAR),
        (0, fraction, resample::CUBIC_NEAR),
        (1, rest, resample::CUBIC_NEAR),
        (2, rest, resample::CUBIC_FAR),
    ];
    let mut sum = None;
    for (i, (away, distance, polynomial)) in neighbours.into_iter().enumerate() {
        let part = b.within(&format!("neighbour_{i}"), |b| {
            // By Horner's rule.
            let mut weight = b.float("highest", polynomial[0]);
            for coefficient in &polynomial[1..] {
                let coefficient = b.float("coefficient", *coefficient);
                weight = b.op("mul", "Mul", &[weight, distance], &[]);
                weight = b.op("add", "Add", &[weight, coefficient], &[]);
            }
            let weight = along.across(b, "weight", weight);
            let at = along.neighbour(b, "at", away);
            let cells = take(b, "cells", x, along.axis, at);
            b.op("part", "Mul", &[cells, weight], &[])
        });
        sum = Some(match sum {
            None => part,
            Some(sum) => b.op("sum", "Add", &[sum, part], &[]),
        });
    }
    sum.unwrap_or(x)
}

/// The height and width that the pictures are resized to, each a row of one integer.
///
/// Source: upstream core/preprocessor.py, `resize_to_range`: float32, and rounding to even.
fn target_size(b: &mut Builder, resizer: Resizer, pictures: Value) -> [Value; 2] {
    let (min, max) = match resizer.target {
        Target::FixedShape { height, width } => return [height, width].map(|side| b.ints("size", &[1], &[side as i64])),
        Target::KeepAspectRatio { min, max } => (min, max),
    };
    b.within("ResizeToRange", |b| {
        let [height, width] = [(1, "height"), (2, "width")].map(|(axis, name)| {
            let side = side(b, name, pictures, axis);
            cast(b, &format!("{name}/ToFloat"), side, DataType::Float)
        });
        let short = b.op("short", "Min", &[height, width], &[]);
        let long = b.op("long", "Max", &[height, width], &[]);
        let one = b.float("one", 1.0);
        let mut scaled = |name: &str, to: usize, by: Value| {
            b.within(name, |b| {
                let to = b.float("to", to as f32);
                let factor = exact_div(b, "factor", to, by);
                [height, width].map(|side| {
                    let side = b.op("mul", "Mul", &[side, factor], &[]);
                    let side = b.op("Round", "Round", &[side], &[]);
                    b.op("Max", "Max", &[side, one], &[])
                })
            })
        };
        let (large, small) = (scaled("large", min, short), scaled("small", max, long));
        let longest = b.op("longest", "Max", &large, &[]);
        let limit = b.float("max_dimension", max as f32);
        let too_long = b.op("TooLong", "Greater", &[longest, limit], &[]);
        [0, 1].map(|i| {
            let side = b.op("Where", "Where", &[too_long, small[i], large[i]], &[]);
            cast(b, "ToInt", side, DataType::Int64)
        })
    })
}

/// The sizes of a batch's pictures as boxes are measured by them.
#[derive(Debug, Clone, Copy)]
pub struct Frame {
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
    pub fn new(b: &mut Builder, prepared: &Prepared) -> Self {
        let (corners, reciprocal) = corners(b, prepared.frame);
        let (own_corners, own_reciprocal) = match prepared.own == prepared.frame {
            true => (corners, reciprocal),
            false => b.within("own", |b| self::corners(b, prepared.own)),
        };
        Self { corners, reciprocal, own_corners, own_reciprocal }
    }
}

fn corners(b: &mut Builder, [height, width]: [Value; 2]) -> (Value, Value) {
    let corners = concat(b, "corners", &[height, width, height, width], 0);
    let corners = cast(b, "corners/ToFloat", corners, DataType::Float);
    (corners, b.op("reciprocal", "Reciprocal", &[corners], &[]))
}
