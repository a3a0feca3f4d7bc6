//! Anchors: the boxes that a detector's outputs are relative to (upstream anchor_generators/).

use super::boxes::BBox;

/// SSD's anchors (upstream multiple_grid_anchor_generator.py, `create_ssd_anchors`).
#[derive(Debug, Clone, PartialEq)]
pub struct SsdAnchors {
    /// For each layer, finest first, `(scale, aspect ratio)` of each anchor of a cell.
    specs: Vec<Vec<(f32, f32)>>,
    /// `[height, width]`: the anchor of scale 1 and ratio 1, in units of the picture's shorter side.
    base_size: [f32; 2],
    /// `[height, width]` between cells in pixels, a layer; where absent, one over the grid.
    strides_px: Vec<[f32; 2]>,
    /// Centre of the first cell, likewise; where absent, half a stride.
    offsets_px: Vec<[f32; 2]>,
}

/// What `SsdAnchors` is made from: the fields of the message `SsdAnchorGenerator`.
#[derive(Debug, Clone, PartialEq)]
pub struct SsdAnchorOptions {
    pub num_layers: usize,
    pub min_scale: f32,
    pub max_scale: f32,
    /// Replaces the linear scales when not empty.
    pub scales: Vec<f32>,
    pub aspect_ratios: Vec<f32>,
    /// Scale of a further anchor between two layers' scales; 0 for none.
    pub interpolated_scale_aspect_ratio: f32,
    pub reduce_boxes_in_lowest_layer: bool,
    pub base_anchor_height: f32,
    pub base_anchor_width: f32,
    /// Pixels, a layer; empty for one over the grid.
    pub height_stride: Vec<i32>,
    pub width_stride: Vec<i32>,
    pub height_offset: Vec<i32>,
    pub width_offset: Vec<i32>,
}

impl SsdAnchors {
    /// The anchors' shapes; positions need the grids.
    pub fn new(options: &SsdAnchorOptions) -> Self {
        let n = options.num_layers;
        // As upstream in double precision; 1.0 follows the last layer's scale.
        let mut scales: Vec<f64> = if options.scales.is_empty() {
            let (min, max) = (f64::from(options.min_scale), f64::from(options.max_scale));
            let step = if n > 1 { (max - min) / (n as f64 - 1.0) } else { 0.0 };
            (0..n).map(|i| min + step * i as f64).collect()
        } else {
            options.scales.iter().map(|&s| f64::from(s)).collect()
        };
        scales.push(1.0);
        let specs = (0..n)
            .map(|layer| {
                let (scale, next) = (scales[layer], scales[layer + 1]);
                if layer == 0 && options.reduce_boxes_in_lowest_layer {
                    return vec![(0.1, 1.0), (scale as f32, 2.0), (scale as f32, 0.5)];
                }
                let mut spec: Vec<(f32, f32)> = options.aspect_ratios.iter().map(|&r| (scale as f32, r)).collect();
                if options.interpolated_scale_aspect_ratio > 0.0 {
                    spec.push(((scale * next).sqrt() as f32, options.interpolated_scale_aspect_ratio));
                }
                spec
            })
            .collect();
        let pairs = |h: &[i32], w: &[i32]| h.iter().zip(w).map(|(&h, &w)| [h as f32, w as f32]).collect();
        Self {
            specs,
            base_size: [options.base_anchor_height, options.base_anchor_width],
            strides_px: pairs(&options.height_stride, &options.width_stride),
            offsets_px: pairs(&options.height_offset, &options.width_offset),
        }
    }

    /// Anchors of a cell, a layer.
    pub fn per_cell(&self) -> Vec<usize> {
        self.specs.iter().map(Vec::len).collect()
    }

    /// `[height, width]` of each anchor of a cell, where the base anchor is 1.
    pub fn shapes(&self, layer: usize) -> Vec<[f32; 2]> {
        let shape = |&(scale, ratio): &(f32, f32)| [scale / ratio.sqrt(), scale * ratio.sqrt()];
        self.specs[layer].iter().map(shape).collect()
    }

    /// `[height, width]` of the base anchor, in units of the picture's shorter side.
    pub fn base_size(&self) -> [f32; 2] {
        self.base_size
    }

    /// `[vertical, horizontal]` between cells in pixels, where the config says so; otherwise the cells share the picture evenly.
    pub fn stride_px(&self, layer: usize) -> Option<[f32; 2]> {
        self.strides_px.get(layer).copied()
    }

    /// Centre of the first cell in pixels, where the config says so; otherwise half a stride.
    pub fn offset_px(&self, layer: usize) -> Option<[f32; 2]> {
        self.offsets_px.get(layer).copied()
    }

    /// All anchors, layer by layer, row by row, then by their order in a cell: `[A]`, normalized.
    ///
    /// * `grids`: `[height, width]` of each feature map.
    /// * `picture`: `[height, width]` in pixels; the anchors are square in pixels, not in the normalized frame.
    pub fn generate(&self, grids: &[[i64; 2]], picture: [usize; 2]) -> Vec<BBox> {
        assert!(grids.len() == self.specs.len(), "{} feature maps for {} layers of anchors", grids.len(), self.specs.len());
        let [height, width] = picture.map(|side| side as f32);
        let shorter = height.min(width);
        let base = [shorter / height * self.base_size[0], shorter / width * self.base_size[1]];
        let mut anchors = Vec::new();
        for (layer, grid) in grids.iter().enumerate() {
            let shapes = self.shapes(layer);
            let share = |px: &[f32; 2]| [px[0] / height, px[1] / width];
            let stride = self.strides_px.get(layer).map_or([1.0 / grid[0] as f32, 1.0 / grid[1] as f32], share);
            let offset = self.offsets_px.get(layer).map_or([0.5 * stride[0], 0.5 * stride[1]], share);
            for y in 0..grid[0] {
                for x in 0..grid[1] {
                    let (cy, cx) = (y as f32 * stride[0] + offset[0], x as f32 * stride[1] + offset[1]);
                    for [h, w] in shapes.iter().map(|s| [s[0] * base[0], s[1] * base[1]]) {
                        anchors.push([cy - 0.5 * h, cx - 0.5 * w, cy + 0.5 * h, cx + 0.5 * w]);
                    }
                }
            }
        }
        anchors
    }
}

/// Anchors of several sizes and shapes at every cell of one grid, in pixels of the resized picture (upstream grid_anchor_generator.py): the
/// fields of the message `GridAnchorGenerator`, resolved.
#[derive(Debug, Clone, PartialEq)]
pub struct GridAnchors {
    /// `[height, width]` of the anchor of scale 1 and ratio 1.
    pub base_size_px: [f32; 2],
    /// `[vertical, horizontal]` between cells.
    pub stride_px: [f32; 2],
    /// Centre of the first cell.
    pub offset_px: [f32; 2],
    pub scales: Vec<f32>,
    /// Width over height.
    pub aspect_ratios: Vec<f32>,
}

impl GridAnchors {
    /// Anchors of a cell.
    pub fn per_cell(&self) -> usize {
        self.scales.len() * self.aspect_ratios.len()
    }

    /// `[height, width]` of a cell's anchors, in their order.
    pub fn sizes_px(&self) -> Vec<[f32; 2]> {
        self.aspect_ratios
            .iter()
            .flat_map(|ratio| {
                let root = ratio.sqrt();
                self.scales.iter().map(move |scale| [scale / root * self.base_size_px[0], scale * root * self.base_size_px[1]])
            })
            .collect()
    }

    /// Whether any anchor, wherever it lies, is no larger than a picture of this height and width.
    pub fn fit_into(&self, [height, width]: [f32; 2]) -> bool {
        self.sizes_px().iter().any(|&[h, w]| h <= height && w <= width)
    }

    /// All anchors, row by row, cell by cell, in a cell ratio by ratio and then by scale: `[A]`, in pixels.
    ///
    /// * `grid`: `[height, width]` of the feature map.
    pub fn generate(&self, grid: [i64; 2]) -> Vec<BBox> {
        let sizes = self.sizes_px();
        let mut anchors = Vec::with_capacity((grid[0] * grid[1]) as usize * sizes.len());
        for y in 0..grid[0] {
            for x in 0..grid[1] {
                let cy = y as f32 * self.stride_px[0] + self.offset_px[0];
                let cx = x as f32 * self.stride_px[1] + self.offset_px[1];
                anchors.extend(sizes.iter().map(|[h, w]| [cy - 0.5 * h, cx - 0.5 * w, cy + 0.5 * h, cx + 0.5 * w]));
            }
        }
        anchors
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn zoo() -> SsdAnchorOptions {
        SsdAnchorOptions {
            num_layers: 6,
            min_scale: 0.2,
            max_scale: 0.95,
            scales: vec![],
            aspect_ratios: vec![1.0, 2.0, 0.5, 3.0, 0.3333],
            interpolated_scale_aspect_ratio: 1.0,
            reduce_boxes_in_lowest_layer: true,
            base_anchor_height: 1.0,
            base_anchor_width: 1.0,
            height_stride: vec![],
            width_stride: vec![],
            height_offset: vec![],
            width_offset: vec![],
        }
    }

    #[test]
    fn the_zoos_ssd_has_1917_anchors() {
        let anchors = SsdAnchors::new(&zoo());
        assert_eq!(anchors.per_cell(), [3, 6, 6, 6, 6, 6]);
        let all = anchors.generate(&[[19, 19], [10, 10], [5, 5], [3, 3], [2, 2], [1, 1]], [300, 300]);
        assert_eq!(all.len(), 1917);
        let c = 0.5 / 19.0;
        for (got, want) in all[0].iter().zip([c - 0.05, c - 0.05, c + 0.05, c + 0.05]) {
            assert!((got - want).abs() < 1e-6);
        }
    }

    /// Within rounding of one another.
    #[track_caller]
    fn near(mine: &[BBox], expected: &[BBox]) {
        assert_eq!(mine.len(), expected.len());
        for (a, b) in mine.iter().zip(expected) {
            assert!(a.iter().zip(b).all(|(x, y)| (x - y).abs() < 1e-6), "{mine:?} are not {expected:?}");
        }
    }

    #[test]
    fn scales_ratios_and_base_sizes_are_the_configs() {
        let options = SsdAnchorOptions {
            num_layers: 2,
            scales: vec![0.2, 0.8],
            aspect_ratios: vec![1.0, 4.0],
            interpolated_scale_aspect_ratio: 2.0,
            reduce_boxes_in_lowest_layer: false,
            base_anchor_width: 2.0,
            ..zoo()
        };
        let anchors = SsdAnchors::new(&options);
        assert_eq!(anchors.per_cell(), [3, 3]);
        // By hand, around the middle of one cell: 0.2 and 0.4; 0.1 and 0.8; the scale between is the root of 0.2 * 0.8, 0.4, whose ratio of
        // 2 gives 0.4 / sqrt(2) and 0.8 * sqrt(2). After the last scale comes 1: sqrt(0.8).
        let box_of = |h: f32, w: f32| [0.5 - h / 2.0, 0.5 - w / 2.0, 0.5 + h / 2.0, 0.5 + w / 2.0];
        let (root, last) = (2f32.sqrt(), 0.8f32.sqrt());
        near(
            &anchors.generate(&[[1, 1], [1, 1]], [100, 100]),
            &[
                box_of(0.2, 0.4),
                box_of(0.1, 0.8),
                box_of(0.4 / root, 0.8 * root),
                box_of(0.8, 1.6),
                box_of(0.4, 3.2),
                box_of(last / root, 2.0 * last * root),
            ],
        );
        let none = SsdAnchorOptions { interpolated_scale_aspect_ratio: 0.0, ..options };
        assert_eq!(SsdAnchors::new(&none).per_cell(), [2, 2]);
    }

    #[test]
    fn strides_and_offsets_in_pixels_place_the_cells() {
        let options = SsdAnchorOptions {
            num_layers: 1,
            scales: vec![0.1],
            aspect_ratios: vec![1.0],
            interpolated_scale_aspect_ratio: 0.0,
            reduce_boxes_in_lowest_layer: false,
            height_stride: vec![20],
            width_stride: vec![50],
            height_offset: vec![10],
            width_offset: vec![25],
            ..zoo()
        };
        let mine = SsdAnchors::new(&options).generate(&[[2, 2]], [100, 100]);
        let at = |y: f32, x: f32| [y - 0.05, x - 0.05, y + 0.05, x + 0.05];
        near(&mine, &[at(0.1, 0.25), at(0.1, 0.75), at(0.3, 0.25), at(0.3, 0.75)]);
    }

    #[test]
    fn grid_anchors_stand_on_the_cells_ratio_by_ratio_and_then_by_scale() {
        let anchors = GridAnchors {
            base_size_px: [256.0, 256.0],
            stride_px: [16.0, 8.0],
            offset_px: [0.0, 4.0],
            scales: vec![0.5, 1.0],
            aspect_ratios: vec![1.0, 4.0],
        };
        assert_eq!(anchors.per_cell(), 4);
        // 128 x 128, 256 x 256, 64 x 256 and 128 x 512.
        for (size, fit) in [([128.0, 128.0], true), ([127.0, 128.0], false), ([64.0, 256.0], true), ([1e3, 127.0], false)] {
            assert_eq!(anchors.fit_into(size), fit, "{size:?}");
        }
        let all = anchors.generate([2, 3]);
        assert_eq!(all.len(), 24);
        assert_eq!(all[0], [-64.0, -60.0, 64.0, 68.0]);
        assert_eq!(all[1], [-128.0, -124.0, 128.0, 132.0]);
        assert_eq!(all[2], [-32.0, -124.0, 32.0, 132.0]);
        assert_eq!(all[4], [-64.0, -52.0, 64.0, 76.0]);
        assert_eq!(all[12], [-48.0, -60.0, 80.0, 68.0]);
    }

    #[test]
    fn anchors_of_a_wide_picture_are_square_in_pixels() {
        let anchors = SsdAnchors::new(&zoo()).generate(&[[1, 1]; 6], [100, 200]);
        let [ymin, xmin, ymax, xmax] = anchors[0];
        assert!(((ymax - ymin) * 100.0 - (xmax - xmin) * 200.0).abs() < 1e-4);
    }
}
