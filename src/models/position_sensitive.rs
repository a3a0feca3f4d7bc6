//! The mean of every bin of a region over the bin's own group of maps (Dai et al., R-FCN, arXiv:1605.06409; upstream utils/ops.py,
//! `position_sensitive_crop_regions` with `global_pool`).
//!
//! Upstream crops the map for each bin, and averages the crop. Bilinear samples are sums over cells, though, and a bin's samples form a grid,
//! so that a cell's share in their mean is its row's share times its column's: one matrix product for each picture gives all means.

use std::ops::Range;

use anyhow::Result;
use tch::{Device, Kind, Tensor};

use crate::detection::boxes::BBox;

/// What each cell of a map has in the mean of a bin's samples.
pub struct BinShares {
    bins: [i64; 2],
    /// For each picture: `[bins, R, h * w]`, bins row by row.
    shares: Vec<Tensor>,
}

impl BinShares {
    /// * `boxes`: all regions, normalized. `rows`: those of each picture.
    /// * `bins`: down and across. `samples`: of each bin, down and across. `map`: height and width in cells.
    ///
    /// # Errors
    /// If the device has no room.
    pub fn new(boxes: &[BBox], rows: &[Range<usize>], [bins, samples, map]: [[i64; 2]; 3], device: Device) -> Result<Self> {
        let of_picture = |rows: &Range<usize>| -> Result<Tensor> {
            let boxes = &boxes[rows.clone()];
            let side = |axis: usize| -> Result<Tensor> {
                let [count, samples, cells] = [bins[axis], samples[axis], map[axis]].map(|n| n as usize);
                let ends: Vec<[f32; 2]> = boxes.iter().map(|b| [b[axis], b[axis + 2]]).collect();
                let shares = along(&ends, count, samples, cells);
                Ok(Tensor::from_slice(&shares).f_view([count as i64, boxes.len() as i64, cells as i64])?.f_to_device(device)?)
            };
            let r = boxes.len() as i64;
            let down = side(0)?.f_view([bins[0], 1, r, map[0], 1])?;
            let across = side(1)?.f_view([1, bins[1], r, 1, map[1]])?;
            Ok(down.f_mul(&across)?.f_view([bins[0] * bins[1], r, map[0] * map[1]])?)
        };
        Ok(Self { bins, shares: rows.iter().map(of_picture).collect::<Result<_>>()? })
    }

    /// `[N, bins * C, h, w] -> [R, C]`.
    ///
    /// # Errors
    /// If `maps` are not of the pictures, the bins, or the size that the shares were made for.
    pub fn means(&self, maps: &Tensor) -> Result<Tensor> {
        let (n, depth, h, w) = maps.size4()?;
        let bins = self.bins[0] * self.bins[1];
        let cells = maps.f_permute([0, 2, 3, 1])?.f_reshape([n, h * w, bins, depth / bins])?;
        let of_picture = |(i, shares): (usize, &Tensor)| -> Result<Tensor> {
            let cells = cells.f_select(0, i as i64)?.f_transpose(0, 1)?; // [bins, h * w, C]
            Ok(shares.f_bmm(&cells)?.f_mean_dim([0i64].as_slice(), false, Kind::Float)?)
        };
        let means: Vec<Tensor> = self.shares.iter().enumerate().map(of_picture).collect::<Result<_>>()?;
        Ok(Tensor::f_cat(&means, 0)?)
    }
}

/// The shares of the cells of one side: `[bins, R, cells]`.
///
/// Where the samples lie is computed as TensorFlow does it; one past the map by no more than rounding counts as 0 there.
///
/// * `ends`: of each region, normalized.
///
/// Source: tensorflow/core/kernels/image/crop_and_resize_op.cc.
fn along(ends: &[[f32; 2]], bins: usize, samples: usize, cells: usize) -> Vec<f32> {
    let mut shares = vec![0f32; bins * ends.len() * cells];
    let last = (cells - 1) as f32;
    for (row, (bin, [low, high])) in
        shares.chunks_mut(cells).zip((0..bins).flat_map(|bin| ends.iter().map(move |&ends| (bin as f32, ends))))
    {
        let step = (high - low) / bins as f32;
        let (from, to) = (low + bin * step, low + (bin + 1.0) * step);
        for i in 0..samples {
            let at = match samples {
                1 => 0.5 * (from + to) * last,
                _ => from * last + i as f32 * ((to - from) * last / (samples - 1) as f32),
            };
            // A box of NaN is outside too.
            if at >= 0.0 && at <= last {
                let lower = at.floor();
                let part = at - lower;
                row[lower as usize] += (1.0 - part) / samples as f32;
                if part > 0.0 {
                    row[lower as usize + 1] += part / samples as f32;
                }
            }
        }
    }
    shares
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::shim::crop_and_resize;

    /// As upstream does it: a crop for each bin, and its mean.
    fn cropped(maps: &Tensor, boxes: &[BBox], pictures: &[i64], bins: [i64; 2], samples: [i64; 2]) -> Tensor {
        let groups = maps.chunk(bins[0] * bins[1], 1);
        let mean = |(i, group): (i64, &Tensor)| {
            let (y, x) = ((i / bins[1]) as f32, (i % bins[1]) as f32);
            let bin = |b: &BBox| {
                let (dy, dx) = ((b[2] - b[0]) / bins[0] as f32, (b[3] - b[1]) / bins[1] as f32);
                [b[0] + y * dy, b[1] + x * dx, b[0] + (y + 1.0) * dy, b[1] + (x + 1.0) * dx]
            };
            let boxes: Vec<BBox> = boxes.iter().map(bin).collect();
            crop_and_resize(group, &boxes, pictures, samples).unwrap().mean_dim([2i64, 3].as_slice(), false, Kind::Float)
        };
        let means: Vec<Tensor> = (0..).zip(&groups).map(mean).collect();
        Tensor::stack(&means, 0).mean_dim([0i64].as_slice(), false, Kind::Float)
    }

    #[test]
    fn the_product_gives_what_a_crop_for_each_bin_gives_and_the_same_gradient() {
        tch::manual_seed(5);
        let boxes: Vec<BBox> = vec![
            [0.1, 0.2, 0.7, 0.9],
            [0.0, 0.0, 1.0, 1.0],
            [0.5, 0.3, 0.5, 0.3],
            [-0.2, 0.4, 0.6, 1.3],
            [0.8, 0.8, 0.2, 0.1],
            [f32::NAN, 0.0, 1.0, 1.0],
        ];
        for (bins, samples) in [([3, 3], [6, 6]), ([4, 2], [4, 6]), ([2, 1], [1, 3])] {
            for map in [[7, 5], [1, 9]] {
                for rows in [[0..2, 2..6], [0..0, 0..6]] {
                    let pictures: Vec<i64> = (0..).zip(&rows).flat_map(|(i, r)| r.clone().map(move |_| i)).collect();
                    let maps = Tensor::randn([2, bins[0] * bins[1] * 4, map[0], map[1]], (Kind::Float, Device::Cpu));
                    let both = [maps.copy().set_requires_grad(true), maps.copy().set_requires_grad(true)];
                    let ours = BinShares::new(&boxes, &rows, [bins, samples, map], Device::Cpu).unwrap().means(&both[0]).unwrap();
                    let theirs = cropped(&both[1], &boxes, &pictures, bins, samples);
                    assert_eq!(ours.size(), [6, 4]);
                    let apart = |a: &Tensor, b: &Tensor| (a - b).abs().max().double_value(&[]);
                    assert!(apart(&ours, &theirs) < 2e-6, "{bins:?} {map:?}: {}", apart(&ours, &theirs));
                    (ours.square().sum(Kind::Float)).backward();
                    (theirs.square().sum(Kind::Float)).backward();
                    assert!(both[1].grad().abs().max().double_value(&[]) > 0.01);
                    assert!(apart(&both[0].grad(), &both[1].grad()) < 2e-6);
                }
            }
        }
    }
}
