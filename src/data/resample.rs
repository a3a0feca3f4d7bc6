//! TensorFlow 1's other ways to resize a picture: nearest neighbour, bicubic and area.
//!
//! Sources: `tensorflow/core/kernels/image/resize_{nearest_neighbor,bicubic,area}_op.cc`, legacy scaler.

use crate::data::resize::{Corners, resize_bilinear_with};

/// How to compute the new pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// From four neighbours, by distance.
    Bilinear,
    /// From one.
    NearestNeighbor,
    /// From sixteen, by Keys' cubic with a = -0.75; may overshoot.
    Bicubic,
    /// The mean of the pixels that the new one covers.
    Area,
}

impl Method {
    /// All, in the order of TensorFlow's numbers.
    pub const ALL: [Method; 4] = [Method::Bilinear, Method::NearestNeighbor, Method::Bicubic, Method::Area];
}

/// Steps to which TensorFlow's bicubic resize rounds the distance between two pixels.
pub const CUBIC_STEPS: f32 = 1024.0;
/// Keys' cubic with a = -0.75 for a neighbour at distance `x` up to 1: the coefficients of its powers, the highest first.
pub const CUBIC_NEAR: [f32; 4] = [1.25, -2.25, 0.0, 1.0];
/// The same for a neighbour at distance `1 + x`.
pub const CUBIC_FAR: [f32; 4] = [-0.75, 1.5, -0.75, 0.0];

/// Where one output coordinate reads along one axis: source coordinates and their weights.
type Reads = Vec<(usize, f32)>;

/// Resizes `src`, `[h, w, 3]`, to `[out_h, out_w, 3]`.
///
/// # Panics
/// If `src` is not `h * w * 3` long, or a side is 0.
pub fn resize<T: Copy + Into<f32>>(
    method: Method,
    src: &[T],
    (h, w): (usize, usize),
    (out_h, out_w): (usize, usize),
) -> Vec<f32> {
    assert!(h > 0 && w > 0 && out_h > 0 && out_w > 0 && src.len() == h * w * 3, "resize {h} x {w} to {out_h} x {out_w}");
    let mut out = vec![0.0; out_h * out_w * 3];
    let reads: fn(usize, usize) -> Vec<Reads> = match method {
        Method::Bilinear => {
            resize_bilinear_with(Corners::Legacy, src, (h, w, 3), (out_h, out_w), &mut out);
            return out;
        }
        Method::NearestNeighbor => nearest,
        Method::Bicubic => cubic,
        Method::Area => area,
    };
    let (rows, columns) = (reads(h, out_h), reads(w, out_w));
    // One row of the source's width, already summed over y.
    let mut line = vec![0.0f32; w * 3];
    for (row, to) in rows.iter().zip(out.chunks_exact_mut(out_w * 3)) {
        line.fill(0.0);
        for &(y, weight) in row {
            for (sum, &value) in line.iter_mut().zip(&src[y * w * 3..(y + 1) * w * 3]) {
                *sum += value.into() * weight;
            }
        }
        for (column, pixel) in columns.iter().zip(to.as_chunks_mut::<3>().0) {
            for &(x, weight) in column {
                for (value, &sum) in pixel.iter_mut().zip(&line[x * 3..x * 3 + 3]) {
                    *value += sum * weight;
                }
            }
        }
    }
    out
}

fn nearest(input: usize, output: usize) -> Vec<Reads> {
    let scale = input as f32 / output as f32;
    (0..output).map(|i| vec![((i as f32 * scale).floor() as usize, 1.0)]).map(|reads| clamp(reads, input)).collect()
}

fn cubic(input: usize, output: usize) -> Vec<Reads> {
    // In double precision and rounded once, as TensorFlow makes its table.
    let polynomial =
        |coefficients: [f32; 4], x: f32| coefficients.iter().fold(0.0, |sum, &c| sum * f64::from(x) + f64::from(c)) as f32;
    let (near, far) = (|x: f32| polynomial(CUBIC_NEAR, x), |x: f32| polynomial(CUBIC_FAR, x));
    let scale = input as f32 / output as f32;
    let reads = |i: usize| {
        let at = i as f32 * scale;
        let left = at.floor();
        let x = ((at - left) * CUBIC_STEPS).round_ties_even() / CUBIC_STEPS;
        let weights = [far(x), near(x), near(1.0 - x), far(1.0 - x)];
        // One pixel to the left is clamped to the first.
        let places = [(left as usize).saturating_sub(1), left as usize, left as usize + 1, left as usize + 2];
        clamp(places.into_iter().zip(weights).collect(), input)
    };
    (0..output).map(reads).collect()
}

fn area(input: usize, output: usize) -> Vec<Reads> {
    let scale = input as f32 / output as f32;
    let reads = |i: usize| {
        let (low, high) = (i as f32 * scale, (i + 1) as f32 * scale);
        let covered = |j: usize| (high.min((j + 1) as f32) - low.max(j as f32)) / scale;
        clamp((low.floor() as usize..high.ceil() as usize).map(|j| (j, covered(j))).collect(), input)
    };
    (0..output).map(reads).collect()
}

fn clamp(mut reads: Reads, input: usize) -> Reads {
    reads.iter_mut().for_each(|(at, _)| *at = (*at).min(input - 1));
    reads
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Red and green of what `method` makes of a 2 x 3 picture.
    fn resized(method: Method, to: (usize, usize)) -> Vec<f32> {
        #[rustfmt::skip]
        let src: [u8; 18] = [
            10, 0, 0,   200, 50, 0,  30, 90, 255,
            0, 255, 1,  255, 0, 2,   90, 90, 3,
        ];
        let out = resize(method, &src, (2, 3), to);
        out.as_chunks::<3>().0.iter().flat_map(|&[r, g, _]| [r, g]).collect()
    }

    /// Against tf.compat.v1.image.resize_* of TensorFlow 2.15.1, printed to four places.
    fn check(method: Method, to: (usize, usize), want: &[f32]) {
        let got = resized(method, to);
        assert_eq!(got.len(), want.len());
        assert!(got.iter().zip(want).all(|(a, b)| (a - b).abs() < 1e-3), "{method:?} {to:?}: {got:?}");
    }

    #[test]
    #[rustfmt::skip]
    fn every_method_is_tensorflows() {
        check(Method::NearestNeighbor, (1, 2), &[10.0, 0.0, 200.0, 50.0]);
        check(Method::NearestNeighbor, (4, 5), &[
            10.0, 0.0, 10.0, 0.0, 200.0, 50.0, 200.0, 50.0, 30.0, 90.0,
            10.0, 0.0, 10.0, 0.0, 200.0, 50.0, 200.0, 50.0, 30.0, 90.0,
            0.0, 255.0, 0.0, 255.0, 255.0, 0.0, 255.0, 0.0, 90.0, 90.0,
            0.0, 255.0, 0.0, 255.0, 255.0, 0.0, 255.0, 0.0, 90.0, 90.0,
        ]);
        check(Method::Bicubic, (1, 2), &[10.0, 0.0, 132.8125, 74.6875]);
        check(Method::Bicubic, (4, 5), &[
            10.0, 0.0, 144.5516, 26.2597, 188.296, 61.8501, 64.5207, 84.1543, 11.646, 94.3186,
            5.0, 127.5, 159.1576, 57.7967, 219.358, 26.6078, 94.8615, 76.0832, 41.9159, 97.0177,
            0.0, 255.0, 173.7636, 89.3337, 250.42, -8.6345, 125.2024, 68.0121, 72.1858, 99.7168,
            -0.9375, 278.9062, 176.5022, 95.2469, 256.2442, -15.2425, 130.8913, 66.4988, 77.8614, 100.2229,
        ]);
        check(Method::Area, (1, 2), &[79.1667, 93.3333, 115.8333, 68.3333]);
        check(Method::Area, (4, 5), &[
            10.0, 0.0, 73.3333, 16.6667, 200.0, 50.0, 86.6666, 76.6667, 30.0, 90.0,
            10.0, 0.0, 73.3333, 16.6667, 200.0, 50.0, 86.6666, 76.6667, 30.0, 90.0,
            0.0, 255.0, 85.0, 170.0, 255.0, 0.0, 145.0, 60.0, 90.0, 90.0,
            0.0, 255.0, 85.0, 170.0, 255.0, 0.0, 145.0, 60.0, 90.0, 90.0,
        ]);
        check(Method::Bilinear, (1, 2), &[10.0, 0.0, 115.0, 70.0]);
    }
}
