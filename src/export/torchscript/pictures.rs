//! From the pictures given to what the network takes: resizing, padding, grey, scale; in TensorFlow 1's own order of operations, float32
//! throughout, which needs tensors where Python has doubles (data/resizer.rs, data/resize.rs, data/resample.rs).

use anyhow::Result;

use super::source::{Source, number};
use crate::backbones::faster_rcnn::Pixels;
use crate::data::resample::{CUBIC_FAR, CUBIC_NEAR, CUBIC_STEPS, Method};
use crate::data::resizer::{GREY, Resizer, Target};

/// The pictures resized bilinearly: floats `[N, height, width, 3]` in 0..255.
const BILINEAR: &str = "\
def resize(self, pictures, height: int, width: int):
    top, bottom, down = self.places(pictures.size(1), height, pictures.device)
    left, right, across = self.places(pictures.size(2), width, pictures.device)
    across = across.view([1, 1, -1, 1])
    row = pictures.index_select(1, top).to(6)
    first = row.index_select(2, left)
    upper = first + (row.index_select(2, right) - first) * across
    row = pictures.index_select(1, bottom).to(6)
    first = row.index_select(2, left)
    lower = first + (row.index_select(2, right) - first) * across
    return upper + (lower - upper) * down.view([1, -1, 1, 1])
";
const NEAREST: &str = "\
def resize(self, pictures, height: int, width: int):
    top, bottom, down = self.places(pictures.size(1), height, pictures.device)
    left, right, across = self.places(pictures.size(2), width, pictures.device)
    return pictures.index_select(1, top).index_select(2, left).to(6)
";
/// Where the cells of one side lie on the source: two neighbours, and how far it is from the first to the second.
const PLACES: &str = "\
def places(self, source: int, target: int, device: Device) -> Tuple[Tensor, Tensor, Tensor]:
    scale = torch.full([1], source, dtype=6, device=device) / torch.full([1], target, dtype=6, device=device)
    at = torch.arange(target, dtype=6, device=device) * scale
    lower = at.floor()
    cell = lower.to(4)
    return (cell.clamp(max=source - 1), (cell + 1).clamp(max=source - 1), at - lower)
";

const CUBIC: &str = "\
def resize(self, pictures, height: int, width: int):
    cells, weights = self.cubic(pictures.size(1), height, pictures.device)
    rows = pictures.index_select(1, cells[0]).to(6) * weights[0].view([1, -1, 1, 1])
    for k in range(1, 4):
        rows = rows + pictures.index_select(1, cells[k]).to(6) * weights[k].view([1, -1, 1, 1])
    cells, weights = self.cubic(pictures.size(2), width, pictures.device)
    pixels = rows.index_select(2, cells[0]) * weights[0].view([1, 1, -1, 1])
    for k in range(1, 4):
        pixels = pixels + rows.index_select(2, cells[k]) * weights[k].view([1, 1, -1, 1])
    return pixels
";
/// Four neighbours of each cell of one side, and their weights: `[4, target]` each.
const CUBIC_NEIGHBOURS: &str = "\
def cubic(self, source: int, target: int, device: Device) -> Tuple[Tensor, Tensor]:
    scale = torch.full([1], source, dtype=6, device=device) / torch.full([1], target, dtype=6, device=device)
    at = torch.arange(target, dtype=6, device=device) * scale
    lower = at.floor()
    x = torch.round((at - lower) * STEPS) / STEPS
    cell = lower.to(4)
    cells = torch.stack([cell - 1, cell, cell + 1, cell + 2]).clamp(0, source - 1)
    rest = 1.0 - x
    return (cells, torch.stack([self.far(x), self.near(x), self.near(rest), self.far(rest)]))
";

const AREA: &str = "\
def resize(self, pictures, height: int, width: int):
    down = self.shares(pictures.size(1), height, pictures.device)
    across = self.shares(pictures.size(2), width, pictures.device)
    rows = torch.matmul(down, pictures.to(6).flatten(2))
    return torch.matmul(across, rows.view([-1, height, pictures.size(2), 3]))
";
/// How much of each cell of the result each cell of the source covers: `[target, source]`.
const SHARES: &str = "\
def shares(self, source: int, target: int, device: Device):
    scale = torch.full([1], source, dtype=6, device=device) / torch.full([1], target, dtype=6, device=device)
    number = torch.arange(target, dtype=6, device=device)
    low = (number * scale).unsqueeze(1)
    high = ((number + 1.0) * scale).unsqueeze(1)
    cell = torch.arange(source, dtype=6, device=device)
    covered = torch.minimum(high, cell + 1.0) - torch.maximum(low, cell)
    return covered.clamp(min=0.0) / scale
";

/// The height and width that pictures are resized to, where the aspect is kept.
///
/// Source: upstream core/preprocessor.py, `resize_to_range`: float32, and rounding to even.
const TARGET_SIZE: &str = "\
def target_size(self, height: int, width: int) -> List[int]:
    sides = torch.tensor([height, width], dtype=6)
    large = torch.round(sides * (torch.full([1], MIN, dtype=6) / sides.min())).clamp(min=1.0)
    small = torch.round(sides * (torch.full([1], MAX, dtype=6) / sides.max())).clamp(min=1.0)
    chosen = small if float(large.max()) > MAX else large
    return [int(chosen[0]), int(chosen[1])]
";

/// Adds the methods:
///
/// * `target_size(height, width)`: what pictures of that size are resized to;
/// * `frame(size)`: the same with padding;
/// * `preprocess(pictures, height, width)`: uint8 `[N, h, w, 3]` resized to `[N, C, H, W]` as the network takes it, still NHWC in memory.
pub fn write(source: &mut Source, resizer: Resizer, pixels: &Pixels) -> Result<()> {
    match resizer.method {
        Method::Bilinear => [BILINEAR, PLACES].into_iter().for_each(|method| source.method(method)),
        Method::NearestNeighbor => [NEAREST, PLACES].into_iter().for_each(|method| source.method(method)),
        Method::Area => [AREA, SHARES].into_iter().for_each(|method| source.method(method)),
        Method::Bicubic => {
            source.method(CUBIC);
            source.method(CUBIC_NEIGHBOURS.replace("STEPS", &number(f64::from(CUBIC_STEPS))));
            for (name, coefficients) in [("near", CUBIC_NEAR), ("far", CUBIC_FAR)] {
                let [a, b, c, d] = coefficients.map(|c| number(f64::from(c)));
                source.method(format!("def {name}(self, x):\n    return ((x * {a} + {b}) * x + {c}) * x + {d}\n"));
            }
        }
    }
    source.method(target_size(resizer));
    source.method(match (resizer.padding, resizer.fixed_size()) {
        (Some(_), Some([height, width])) => {
            format!("def frame(self, size: List[int]) -> List[int]:\n    return [{height}, {width}]\n")
        }
        _ => "def frame(self, size: List[int]) -> List[int]:\n    return size\n".to_string(),
    });
    let shift = pixel_shift(source, pixels)?;
    source.method(preprocess(resizer, &shift, pixels));
    Ok(())
}

fn target_size(resizer: Resizer) -> String {
    match resizer.target {
        Target::FixedShape { height, width } => {
            format!("def target_size(self, height: int, width: int) -> List[int]:\n    return [{height}, {width}]\n")
        }
        Target::KeepAspectRatio { min, max } => {
            let [min, max] = [min, max].map(|side| number(side as f64));
            TARGET_SIZE.replace("MIN", &min).replace("MAX", &max)
        }
    }
}

/// What is added to a pixel: one number where all colours have the same.
fn pixel_shift(source: &mut Source, pixels: &Pixels) -> Result<String> {
    let [red, green, blue] = pixels.shift;
    if red == green && green == blue { Ok(number(f64::from(red))) } else { source.parameter("pixel_shift", &[3], &pixels.shift) }
}

fn preprocess(resizer: Resizer, shift: &str, pixels: &Pixels) -> String {
    let mut lines = vec!["x = self.resize(pictures, height, width)".to_string()];
    if let (Some(color), Some([down, across])) = (resizer.padding, resizer.fixed_size()) {
        let padded = |x: &str, value: f32| {
            let value = number(f64::from(value));
            format!("torch.constant_pad_nd({x}, [0, 0, 0, {across} - width, 0, {down} - height], {value})")
        };
        if color == [color[0]; 3] {
            lines.push(format!("x = {}", padded("x", color[0])));
        } else {
            let channels: Vec<String> = (0..3).map(|i| padded(&format!("x[:, :, :, {i}:{}]", i + 1), color[i])).collect();
            lines.push(format!("x = torch.cat([{}], 3)", channels.join(", ")));
        }
    }
    if resizer.grey {
        let [red, green, blue] = GREY.map(|share| number(f64::from(share)));
        lines.push(format!("x = x[:, :, :, 0:1] * {red} + x[:, :, :, 1:2] * {green} + x[:, :, :, 2:3] * {blue}"));
    }
    let scale = if pixels.scale == 1.0 { String::new() } else { format!(" * {}", number(pixels.scale)) };
    lines.push(format!("return (x{scale} + {shift}).permute([0, 3, 1, 2])"));
    format!("def preprocess(self, pictures, height: int, width: int):\n    {}\n", lines.join("\n    "))
}
