//! A batch of resized pictures, and where in it each picture ends and its padding begins.

use anyhow::Result;
use tch::{Device, Tensor};

use crate::detection::boxes::{BBox, Groundtruth, scale};

/// What a model looks at.
#[derive(Debug)]
pub struct Pictures {
    /// `[N, H, W, C]`, RGB or grey, 0 to 255.
    pub pixels: Tensor,
    pub frame: Frame,
}

/// The sizes of a batch's pictures.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// `[height, width]` of the batch.
    pub px: [usize; 2],
    /// `[height, width]` of each picture, at the top left of the batch's; what is beyond is padding. `[N]`
    pub pictures_px: Vec<[usize; 2]>,
}

impl Pictures {
    /// Pictures as the loader has them, on a device.
    ///
    /// * `pixels`: `[N * H * W * C]`; `sizes`: height and width of each picture without padding.
    pub fn new(pixels: &[f32], (height, width): (usize, usize), sizes: &[(usize, usize)], device: Device) -> Result<Self> {
        let shape = [sizes.len() as i64, height as i64, width as i64, -1];
        Ok(Self {
            pixels: Tensor::from_slice(pixels).f_view(shape)?.f_to_device(device)?,
            frame: Frame { px: [height, width], pictures_px: sizes.iter().map(|&(h, w)| [h, w]).collect() },
        })
    }

    /// Without padding.
    ///
    /// * `pixels`: `[N, H, W, C]`.
    pub fn whole(pixels: &Tensor) -> Self {
        let size = pixels.size();
        let frame = Frame::whole([size[1] as usize, size[2] as usize], size[0] as usize);
        Self { pixels: pixels.shallow_clone(), frame }
    }
}

impl Frame {
    /// Of `count` pictures without padding.
    pub fn whole(px: [usize; 2], count: usize) -> Self {
        Self { px, pictures_px: vec![px; count] }
    }

    /// The whole batch's, padding included, in pixels.
    pub fn window_px(&self) -> BBox {
        window(self.px.map(|side| side as f32))
    }

    /// Each picture's, in pixels. `[N]`
    pub fn windows_px(&self) -> Vec<BBox> {
        self.pictures_px.iter().map(|px| window(px.map(|side| side as f32))).collect()
    }

    /// Each picture's, as shares of the batch's sides. `[N]`
    pub fn windows(&self) -> Vec<BBox> {
        let share = |px: &[usize; 2]| [0, 1].map(|i| px[i] as f32 / self.px[i] as f32);
        self.pictures_px.iter().map(|px| window(share(px))).collect()
    }

    /// Groundtruth in pixels.
    pub fn in_pixels(&self, groundtruth: &[Groundtruth]) -> Vec<Groundtruth> {
        scaled(groundtruth, &self.windows_px())
    }

    /// Groundtruth as shares of the batch's sides, in place of each picture's own.
    ///
    /// Source: upstream inputs.py, `transform_input_data`, which does so since 2020; before, an SSD learnt the boxes of padded pictures in the
    /// wrong places.
    pub fn framed(&self, groundtruth: &[Groundtruth]) -> Vec<Groundtruth> {
        scaled(groundtruth, &self.windows())
    }
}

fn window([height, width]: [f32; 2]) -> BBox {
    [0.0, 0.0, height, width]
}

fn scaled(groundtruth: &[Groundtruth], windows: &[BBox]) -> Vec<Groundtruth> {
    let one = |(g, w): (&Groundtruth, &BBox)| Groundtruth {
        boxes: g.boxes.iter().map(|b| scale(b, [w[2], w[3]])).collect(),
        ..g.clone()
    };
    groundtruth.iter().zip(windows).map(one).collect()
}
