//! What every detector's TorchScript has before and behind its network: the picture, box decoding, scores, the four outputs.

use anyhow::Result;

use super::source::{Source, number};
use super::{pictures, suppression};
use crate::backbones::faster_rcnn::Pixels;
use crate::data::resizer::Resizer;
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
pub fn write(source: &mut Source, resizer: Resizer, pixels: &Pixels, scale_factors: &[f32; 4], nms: &NmsOptions) -> Result<()> {
    source.parameter("scale_factors", &[4], scale_factors)?;
    for method in [PICTURES, DECODE, ROWS] {
        source.method(method);
    }
    pictures::write(source, resizer, pixels)?;
    suppression::write(source);
    let options = suppression::options(nms);
    source.method(DETECTIONS.replace("OPTIONS", &options).replace("TOTAL", &nms.max_total.to_string()));
    Ok(())
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
