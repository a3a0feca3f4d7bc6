//! 3x3 convolutions of many small maps with fewer multiplications than they are defined with (S. Winograd 1980; A. Lavin and S. Gray, "Fast
//! Algorithms for Convolutional Neural Networks", 2015).
//!
//! A tile of 4x4 outputs is taken from 6x6 values at 6x6 points of a polynomial product, 36 multiplications for 144. With a map's cells as the
//! rows of a matrix, every step is one MatMul: the tiles' points from the cells, the kernels' products point by point, the outputs from the
//! points. The second stage of Faster R-CNN has hundreds of crops of 7x7 or 4x4, and onnxruntime takes half the time for them.

use super::builder::{Attribute, Builder, Value};
use super::parts::reshape;
use crate::net::graph::Window;

/// Outputs of a tile, down and across.
const TILE: usize = 4;
/// Weights of a kernel, down and across.
const KERNEL: usize = 3;
/// Where the polynomials are evaluated, infinity being the last. With these, rounding is three times that of the plain sum; with 0, 1, -1, 2 and
/// -2, five times.
const POINTS: [f64; POINTS_OF_TILE - 1] = [0.0, 0.75, -0.75, 1.5, -1.5];
const POINTS_OF_TILE: usize = TILE + KERNEL - 1;
/// The work left, of what the plain convolution has, at which it begins to pay: matrices in memory cost time, too.
const WORTHWHILE: f64 = 0.45;

/// A convolution of maps of one size.
#[derive(Debug, Clone, Copy)]
pub struct SmallMaps {
    height: usize,
    width: usize,
    inputs: usize,
    outputs: usize,
}

impl SmallMaps {
    /// The convolution, if it is of this kind and less work this way.
    ///
    /// * `size`: `[height, width]` of a map. `channels`: in and out.
    pub fn of(window: &Window, [height, width]: [i64; 2], [inputs, outputs]: [i64; 2]) -> Option<SmallMaps> {
        let plain = window.kernel == [KERNEL as i64; 2] && window.stride == [1, 1] && window.dilation == [1, 1];
        let same = plain && window.pads(height, width) == [1; 4];
        let side = |side: i64| usize::try_from(side).ok().filter(|&side| side > 0);
        let maps = SmallMaps { height: side(height)?, width: side(width)?, inputs: side(inputs)?, outputs: side(outputs)? };
        (same && maps.share() <= WORTHWHILE).then_some(maps)
    }

    /// Multiplications, as a share of the plain convolution's.
    fn share(&self) -> f64 {
        let (cells, points) = ((self.height * self.width) as f64, self.points() as f64);
        let (inputs, outputs) = (self.inputs as f64, self.outputs as f64);
        let plain = cells * (KERNEL * KERNEL) as f64 * inputs * outputs;
        points * (cells * (inputs + outputs) + inputs * outputs) / plain
    }

    fn points(&self) -> usize {
        points([self.height, self.width]).iter().product()
    }

    /// Appends the convolution `[N, I, h, w] -> [N, O, h, w]` with stride 1 and padding 'SAME'.
    ///
    /// * `weights`: `[3, 3, I, O]`, TensorFlow's layout, as a matrix `[9, I * O]`. `bias`: one an output.
    pub fn convolution(&self, b: &mut Builder, name: &str, [x, weights]: [Value; 2], bias: Option<&[f32]>) -> Value {
        let (cells, points) = ((self.height * self.width) as i64, self.points() as i64);
        let (inputs, outputs) = (self.inputs as i64, self.outputs as i64);
        let of_tile = (POINTS_OF_TILE * POINTS_OF_TILE) as i64;
        let transposed = |b: &mut Builder, name: &str, x: Value, perm: [i64; 3]| {
            b.op(name, "Transpose", &[x], &[Attribute::ints("perm", &perm)])
        };
        let product = |b: &mut Builder, name: &str, of: [Value; 2]| b.op(name, "MatMul", &of, &[]);
        let steps = Steps::new(POINTS);
        b.within(name, |b| {
            let x = reshape(b, "cells", x, &[-1, inputs, cells]);
            let x = transposed(b, "cells_first", x, [2, 0, 1]);
            let x = reshape(b, "cells/rows", x, &[cells, -1]); // [h * w, N * I]
            let spread = b.floats("spread", &[points, cells], &steps.spread([self.height, self.width]));
            let x = product(b, "tiles", [spread, x]);
            let x = reshape(b, "tiles/by_point", x, &[of_tile, -1, inputs]); // [36, tiles * N, I]

            // Made of constants alone: runtimes do it once, and the file has nine weights for their 36.
            let evaluated = b.floats("evaluated", &[of_tile, (KERNEL * KERNEL) as i64], &steps.evaluated());
            let kernels = product(b, "kernels", [evaluated, weights]);
            let kernels = reshape(b, "kernels/by_point", kernels, &[of_tile, inputs, outputs]);

            let x = product(b, "products", [x, kernels]);
            let x = reshape(b, "products/rows", x, &[points, -1]); // [36 * tiles, N * O]
            let gathered = b.floats("gathered", &[cells, points], &steps.gathered([self.height, self.width]));
            let x = product(b, "sums", [gathered, x]);
            let mut x = reshape(b, "sums/cells", x, &[cells, -1, outputs]);
            if let Some(bias) = bias {
                let bias = b.floats("bias", &[outputs], bias);
                x = b.op("BiasAdd", "Add", &[x, bias], &[]);
            }
            let x = transposed(b, "cells_last", x, [1, 2, 0]);
            reshape(b, "maps", x, &[-1, outputs, self.height as i64, self.width as i64])
        })
    }
}

/// The three steps along one side, each linear.
struct Steps {
    /// Of a tile's six values, what each point takes.
    values: [[f64; POINTS_OF_TILE]; POINTS_OF_TILE],
    /// Of a kernel's three weights, what each point takes.
    kernel: [[f64; KERNEL]; POINTS_OF_TILE],
    /// Of the six points, what each output takes.
    outputs: [[f64; POINTS_OF_TILE]; TILE],
}

impl Steps {
    /// The transposed Toom-Cook algorithm at some points and infinity.
    fn new(points: [f64; POINTS_OF_TILE - 1]) -> Steps {
        const LAST: usize = POINTS_OF_TILE - 1;
        let mut steps = Steps { values: Default::default(), kernel: Default::default(), outputs: Default::default() };
        for (i, &point) in points.iter().enumerate() {
            let others = points.iter().filter(|&&other| other != point);
            let scale: f64 = others.clone().map(|other| point - other).product();
            steps.values[i] = with_roots(others);
            steps.kernel[i] = std::array::from_fn(|k| point.powi(k as i32) / scale);
            steps.outputs.iter_mut().enumerate().for_each(|(k, row)| row[i] = point.powi(k as i32));
        }
        steps.values[LAST] = with_roots(points.iter());
        steps.kernel[LAST][KERNEL - 1] = 1.0;
        steps.outputs[TILE - 1][LAST] = 1.0;
        steps
    }

    /// `[36 * tiles, h * w]`: each point of each tile from a map's cells; padding is 0.
    fn spread(&self, [height, width]: [usize; 2]) -> Vec<f32> {
        let share = |point: usize, tile: usize, cell: usize| {
            let at = (cell + KERNEL / 2).checked_sub(tile * TILE);
            at.and_then(|at| self.values[point].get(at)).copied().unwrap_or(0.0)
        };
        let all = pairs(points([height, width]), [height, width]);
        all.map(|([p, q, t, u], [y, x])| (share(p, t, y) * share(q, u, x)) as f32).collect()
    }

    /// `[36, 9]`: each point from a kernel's weights.
    fn evaluated(&self) -> Vec<f32> {
        let all = pairs([POINTS_OF_TILE; 2], [KERNEL; 2]);
        all.map(|([p, q], [y, x])| (self.kernel[p][y] * self.kernel[q][x]) as f32).collect()
    }

    /// `[h * w, 36 * tiles]`: each cell from the points of its tile.
    fn gathered(&self, [height, width]: [usize; 2]) -> Vec<f32> {
        let share = |point: usize, tile: usize, cell: usize| {
            let at = cell.checked_sub(tile * TILE);
            at.and_then(|at| self.outputs.get(at)).map_or(0.0, |row| row[point])
        };
        let all = pairs([height, width], points([height, width]));
        all.map(|([y, x], [p, q, t, u])| (share(p, t, y) * share(q, u, x)) as f32).collect()
    }
}

/// How many points there are: down and across a tile, and tiles down and across a map.
fn points([height, width]: [usize; 2]) -> [usize; 4] {
    [POINTS_OF_TILE, POINTS_OF_TILE, height.div_ceil(TILE), width.div_ceil(TILE)]
}

/// Coefficients of the polynomial that is 0 at each of `roots`, the constant one first.
fn with_roots<'a>(roots: impl Iterator<Item = &'a f64>) -> [f64; POINTS_OF_TILE] {
    let mut product = [0.0; POINTS_OF_TILE];
    product[0] = 1.0;
    for root in roots {
        for i in (0..POINTS_OF_TILE).rev() {
            product[i] = if i > 0 { product[i - 1] } else { 0.0 } - root * product[i];
        }
    }
    product
}

/// Every row's and every column's indices, row by row.
fn pairs<const R: usize, const C: usize>(
    rows: [usize; R],
    columns: [usize; C],
) -> impl Iterator<Item = ([usize; R], [usize; C])> {
    indices(rows).flat_map(move |row| indices(columns).map(move |column| (row, column)))
}

/// The indices of an array with these sides, the last running fastest.
fn indices<const N: usize>(sides: [usize; N]) -> impl Iterator<Item = [usize; N]> {
    (0..sides.iter().product()).map(move |mut flat: usize| {
        let mut at = [0; N];
        for i in (0..N).rev() {
            at[i] = flat % sides[i];
            flat /= sides[i];
        }
        at
    })
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind, Tensor};

    use super::*;
    use crate::net::graph::Padding;

    fn numbers(dims: &[i64], seed: f64) -> Tensor {
        let count: i64 = dims.iter().product();
        ((Tensor::arange(count, (Kind::Double, Device::Cpu)) + seed) * 12.9898).sin().view(dims)
    }

    /// What the three matrices give, beside libtorch's own convolution.
    #[test]
    fn it_is_the_convolution() {
        let steps = Steps::new(POINTS);
        let matrix = |values: Vec<f32>, rows: i64| Tensor::from_slice(&values).to_kind(Kind::Double).view([rows, -1]);
        for [h, w] in [[7, 7], [4, 4], [1, 1], [3, 9], [5, 8]] {
            let (n, i, o) = (3, 5, 6);
            let (x, kernel) = (numbers(&[n, i, h, w], 0.5), numbers(&[3, 3, i, o], 0.25));
            let side = [h as usize, w as usize];
            let tiles = points(side)[2..].iter().product::<usize>() as i64;
            let spread = matrix(steps.spread(side), 36 * tiles).matmul(&x.view([n * i, h * w]).tr());
            let kernels = matrix(steps.evaluated(), 36).matmul(&kernel.view([9, i * o])).view([36, i, o]);
            let products = spread.view([36, tiles * n, i]).matmul(&kernels).view([36 * tiles, n * o]);
            let y = matrix(steps.gathered(side), h * w).matmul(&products).view([h * w, n, o]).permute([1, 2, 0]);
            let plain = x.conv2d(&kernel.permute([3, 2, 0, 1]), None::<Tensor>, 1, 1, 1, 1);
            let far = (y - plain.view([n, o, h * w])).abs().max().double_value(&[]);
            // The matrices are rounded to 24 bits.
            assert!(far < 5e-6 && plain.abs().max().double_value(&[]) > 0.1, "{h}x{w}: {far:e}");
        }
    }

    #[test]
    fn only_what_pays_is_done_so() {
        let same = Window::square(3, 1, Padding::Same);
        for (window, size, channels, pays) in [
            (same, [7, 7], [512, 512], true),
            (same, [4, 4], [192, 320], true),
            (Window::square(3, 1, Padding::Explicit([1; 4])), [7, 7], [512, 512], true),
            (Window::square(3, 1, Padding::Explicit([2, 2, 0, 0])), [7, 7], [512, 512], false),
            // Two tiles a side for five cells.
            (same, [5, 5], [512, 512], false),
            (same, [7, 7], [64, 64], false),
            // The matrices that spread and gather the cells of a large map are large.
            (same, [38, 38], [64, 64], false),
            (Window::square(3, 2, Padding::Same), [7, 7], [512, 512], false),
            (Window::square(3, 1, Padding::Valid), [7, 7], [512, 512], false),
            (Window::square(5, 1, Padding::Same), [7, 7], [512, 512], false),
            (Window { dilation: [2, 2], ..same }, [7, 7], [512, 512], false),
        ] {
            assert_eq!(SmallMaps::of(&window, size, channels).is_some(), pays, "{window:?} {size:?} {channels:?}");
        }
    }
}
