//! What every detector's TorchScript has before and behind its network: the picture, box decoding, scores, the four outputs.

use anyhow::Result;

use super::source::{Source, number};
use super::suppression;
use crate::backbones::faster_rcnn::Pixels;
use crate::detection::nms::NmsOptions;
use crate::models::post_processing::ScoreConverter;

/// uint8 `[N, height, width, 3]`, RGB, of any size; on the parameters' device.
const PICTURES: &str = "\
def pictures(self, image_tensor):
    said = \"image_tensor must be uint8 [N, height, width, 3]\"
    assert image_tensor.dim() == 4 and image_tensor.dtype == 0, said
    assert image_tensor.size(3) == 3 and image_tensor.numel() > 0, said
    return image_tensor.to(device=self.scale_factors.device)
";

/// The pictures resized as TensorFlow 1 does it, in its own order of operations: floats `[N, height, width, 3]` in 0..255.
///
/// Source: data/resize.rs; float32 throughout, which needs tensors where Python has doubles.
const RESIZE: &str = "\
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
/// Where the cells of one side lie on the source: two neighbours, and how far it is from the first to the second.
const PLACES: &str = "\
def places(self, source: int, target: int, device: Device) -> Tuple[Tensor, Tensor, Tensor]:
    scale = torch.full([1], source, dtype=6, device=device) / torch.full([1], target, dtype=6, device=device)
    at = torch.arange(target, dtype=6, device=device) * scale
    lower = at.floor()
    cell = lower.to(4)
    return (cell.clamp(max=source - 1), (cell + 1).clamp(max=source - 1), at - lower)
";

/// From encodings `[..., 4]` to boxes of the same shape, relative to `anchors` of a shape that broadcasts to it.
///
/// Source: Ren et al., Faster R-CNN (arXiv:1506.01497), section 3.1.2; detection/box_coder.rs.
const DECODE: &str = "\
def decode(self, codes, anchors, scale_factors):
    codes = codes / scale_factors
    sizes = anchors[..., 2:] - anchors[..., :2]
    centres = anchors[..., :2] + sizes / 2.0
    reach = codes[..., 2:].exp() * sizes / 2.0
    centres = codes[..., :2] * sizes + centres
    return torch.cat([centres - reach, centres + reach], -1)
";

/// A predictor's map `[N, a * columns, h, w]` as rows of anchors: `[N, h * w * a, columns]`.
const ROWS: &str = "\
def rows(self, map, columns: int):
    return map.permute([0, 2, 3, 1]).reshape([map.size(0), -1, columns])
";

/// The four outputs, of boxes `[R, 1 or K, 4]` and scores `[R, K]` of one picture after the other:
///
/// * boxes `[N, D, 4]`, normalized, where `D` is the limit of detections in all; zeros beyond the last;
/// * scores `[N, D]`, best first; zeros beyond the last;
/// * classes `[N, D]`, the label map's ids as floats; 1 beyond the last, as upstream has it;
/// * how many there are `[N]`, as floats.
const DETECTIONS: &str = "\
def detections(self, boxes, scores, counts: List[int]) -> Tuple[Tensor, Tensor, Tensor, Tensor]:
    all_boxes: List[Tensor] = []
    all_scores: List[Tensor] = []
    all_classes: List[Tensor] = []
    found: List[int] = []
    start = 0
    for count in counts:
        own = self.best(boxes[start:start + count], scores[start:start + count], OPTIONS)
        start += count
        room = TOTAL - own[0].size(0)
        all_boxes.append(torch.constant_pad_nd(own[0], [0, 0, 0, room], 0.0))
        all_scores.append(torch.constant_pad_nd(own[1], [0, room], 0.0))
        all_classes.append(torch.constant_pad_nd(own[2].to(6) + 1.0, [0, room], 1.0))
        found.append(own[0].size(0))
    totals = torch.tensor(found, dtype=6, device=boxes.device)
    return (torch.stack(all_boxes), torch.stack(all_scores), torch.stack(all_classes), totals)
";

/// Adds the methods that all detectors have.
///
/// * `scale_factors`: the coder's of the detections' boxes; where they are tells `pictures` where to compute.
pub fn write(source: &mut Source, pixels: &Pixels, scale_factors: &[f32; 4], nms: &NmsOptions) -> Result<()> {
    source.parameter("scale_factors", &[4], scale_factors)?;
    for method in [PICTURES, RESIZE, PLACES, DECODE, ROWS] {
        source.method(method);
    }
    let shift = pixel_shift(source, pixels)?;
    source.method(preprocess(&shift, pixels));
    suppression::write(source);
    let options = suppression::options(nms);
    source.method(DETECTIONS.replace("OPTIONS", &options).replace("TOTAL", &nms.max_total.to_string()));
    Ok(())
}

/// What is added to a pixel: one number where all colours have the same.
fn pixel_shift(source: &mut Source, pixels: &Pixels) -> Result<String> {
    let [red, green, blue] = pixels.shift;
    if red == green && green == blue { Ok(number(f64::from(red))) } else { source.parameter("pixel_shift", &[3], &pixels.shift) }
}

/// What the network takes: `[N, h, w, 3]` uint8 to `[N, 3, height, width]`, still NHWC in memory.
fn preprocess(shift: &str, pixels: &Pixels) -> String {
    let scale = if pixels.scale == 1.0 { String::new() } else { format!(" * {}", number(pixels.scale)) };
    format!(
        "def preprocess(self, pictures, height: int, width: int):\n    \
         return (self.resize(pictures, height, width){scale} + {shift}).permute([0, 3, 1, 2])\n"
    )
}

/// From raw predictions `logits`, background first, to scores without background, as an expression; rows of the last dimension.
pub fn convert_scores(converter: ScoreConverter, logits: &str) -> String {
    let (ScoreConverter::Identity { logit_scale }
    | ScoreConverter::Sigmoid { logit_scale }
    | ScoreConverter::Softmax { logit_scale }) = converter;
    let scaled = if logit_scale == 1.0 { logits.to_string() } else { format!("({logits} / {})", number(logit_scale)) };
    match converter {
        ScoreConverter::Identity { .. } => format!("{scaled}[..., 1:]"),
        ScoreConverter::Sigmoid { .. } => format!("torch.sigmoid({scaled}[..., 1:])"),
        // Background takes part in the sum.
        ScoreConverter::Softmax { .. } => format!("torch.softmax({scaled}, -1)[..., 1:]"),
    }
}
