//! Non-maximum suppression class by class as TorchScript (upstream core/post_processing.py).
//!
//! What comes out is what suppression of every class over all its boxes gives, and then the best of all classes. Pairs of box and class are
//! looked at best first, whatever their class: whether one is kept depends on better ones of its class alone, so the walk can end as soon
//! as enough are kept. It starts with the best pairs, and begins anew with all where too few of them survive.
//!
//! The walk goes block by block. Within a block a pair is kept if nothing kept before it overlaps it; that has one solution, which is reached
//! by applying it to its own result until nothing changes: the first k pairs are right after k rounds, and in practice all after a few.

use super::source::{Source, number};
use crate::detection::nms::NmsOptions;

/// Pairs that the suppression starts with, times the detections wanted.
const CANDIDATES_PER_DETECTION: usize = 16;
/// Pairs that are compared with each other at a time.
const BLOCK: usize = 256;

/// Which pairs of two sets are of one class and overlap by more than `limit`, `[A, B]`; in detection/nms.rs's order of operations.
const OVERLAP: &str = "\
def overlap(self, a, b, a_classes, b_classes, limit: float):
    ay, ax, az, aw = a.unsqueeze(2).unbind(1)
    by, bx, bz, bw = b.unbind(1)
    height = (torch.minimum(az, bz) - torch.maximum(ay, by)).clamp(min=0.0)
    width = (torch.minimum(aw, bw) - torch.maximum(ax, bx)).clamp(min=0.0)
    shared = height * width
    union = (az - ay) * (aw - ax) + (bz - by) * (bw - bx) - shared
    return (shared / union > limit) & (shared > 0.0) & (a_classes.unsqueeze(1) == b_classes)
";

/// Places of those to keep, of boxes `[M, 4]` that are in order.
const WALK: &str = "\
def walk(self, boxes, classes, limit: float, per_class: int, wanted: int):
    count = boxes.size(0)
    kept = torch.zeros([0], dtype=4, device=boxes.device)
    start = 0
    while start < count and kept.size(0) < wanted:
        stop = min(start + BLOCK, count)
        own = boxes[start:stop]
        own_classes = classes[start:stop]
        kept_classes = classes.index_select(0, kept)
        beaten = self.overlap(own, boxes.index_select(0, kept), own_classes, kept_classes, limit).any(1)
        free = torch.logical_not(beaten)
        better = self.overlap(own, own, own_classes, own_classes, limit).tril(-1)
        keep = free
        settled = False
        while not settled:
            before = keep
            keep = free & torch.logical_not((better & before).any(1))
            settled = torch.equal(keep, before)
        if per_class < wanted:
            same = ((own_classes.unsqueeze(1) == own_classes) & keep).tril(-1).sum(1)
            rank = same + (own_classes.unsqueeze(1) == kept_classes).sum(1)
            keep = keep & (rank < per_class)
        kept = torch.cat([kept, keep.nonzero().squeeze(1) + start])
        start = stop
    return kept[:wanted]
";

/// The best of one picture: boxes `[D, 4]`, scores `[D]`, classes `[D]` from 0 on; of equal scores the lower class, then the lower row first.
///
/// * `boxes`: `[A, 1, 4]`, or `[A, K, 4]` where each class has its own; clipped to the picture; `scores`: `[A, K]`.
const BEST: &str = "\
def best(self, boxes, scores, least: float, limit: float, per_class: int, wanted: int) -> Tuple[Tensor, Tensor, Tensor]:
    rows = scores.size(0)
    area = (boxes[:, :, 2] - boxes[:, :, 0]) * (boxes[:, :, 3] - boxes[:, :, 1])
    nothing = float(\"-inf\")
    ranked = torch.where((scores > least) & (area > 0.0), scores, nothing).t().reshape([-1])
    by_class = boxes.permute([1, 0, 2]).reshape([-1, 4])
    pairs = ranked.size(0)
    some = min(CANDIDATES * wanted, pairs)
    searching = True
    place = torch.zeros([0], dtype=4, device=boxes.device)
    while searching:
        bar = nothing
        if some < pairs:
            bar = float(torch.topk(ranked, some)[0][-1])
        chosen = ((ranked >= bar) & (ranked > nothing)).nonzero().squeeze(1)
        order = torch.sort(ranked.index_select(0, chosen), stable=True, dim=0, descending=True)[1]
        chosen = chosen.index_select(0, order)
        classes = torch.div(chosen, rows, rounding_mode=\"floor\")
        corners = by_class.index_select(0, chosen if boxes.size(1) > 1 else chosen % rows)
        corners = torch.cat([torch.minimum(corners[:, :2], corners[:, 2:]), torch.maximum(corners[:, :2], corners[:, 2:])], 1)
        place = chosen.index_select(0, self.walk(corners, classes, limit, per_class, wanted))
        searching = place.size(0) < wanted and bar > nothing
        some = pairs
    boxes = by_class.index_select(0, place if boxes.size(1) > 1 else place % rows)
    return (boxes, ranked.index_select(0, place), torch.div(place, rows, rounding_mode=\"floor\"))
";

/// Adds the method `best`.
pub fn write(source: &mut Source) {
    source.method(OVERLAP);
    source.method(WALK.replace("BLOCK", &BLOCK.to_string()));
    source.method(BEST.replace("CANDIDATES", &CANDIDATES_PER_DETECTION.to_string()));
}

/// What follows the boxes and scores in a call of `best`.
pub fn options(nms: &NmsOptions) -> String {
    let [least, limit] = [nms.score_threshold, nms.iou_threshold].map(|v| number(f64::from(v)));
    format!("{least}, {limit}, {}, {}", nms.max_per_class, nms.max_total)
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind, Tensor};

    use super::*;
    use crate::detection::boxes::BBox;
    use crate::detection::nms::{ClassBoxes, multiclass};
    use crate::net::shim::{self, Script};

    /// A module whose input has a row for each box: its classes' boxes, then its classes' scores.
    fn script(nms: &NmsOptions, own: usize, classes: usize) -> Script {
        let mut source = Source::new();
        write(&mut source);
        let options = options(nms);
        source.method(format!(
            "def forward(self, x) -> Tuple[Tensor, Tensor, Tensor]:\n    \
             return self.best(x[:, :{end}].reshape([-1, {own}, 4]), x[:, {end}:].reshape([-1, {classes}]), {options})\n",
            end = 4 * own
        ));
        source.finish("{}").unwrap()
    }

    fn values(x: &Tensor) -> Vec<f32> {
        Vec::<f32>::try_from(x.to_kind(Kind::Float).contiguous().view([-1])).unwrap()
    }

    /// Numbers from 0 to 1 that repeat from run to run.
    fn noise(seed: u64) -> impl FnMut() -> f32 {
        let mut state = seed;
        move || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1u64 << 24) as f32
        }
    }

    #[test]
    fn what_is_kept_is_what_suppression_class_by_class_keeps_ties_and_limits_included() {
        shim::init().unwrap();
        let usual = NmsOptions { score_threshold: 1e-8, iou_threshold: 0.6, max_per_class: 10, max_total: 10 };
        let few_a_class = NmsOptions { max_per_class: 2, ..usual };
        let strict = NmsOptions { iou_threshold: 0.05, score_threshold: 0.3, ..usual };
        // Rows, classes, steps of the scores (few of them: many ties), how large boxes are, whether each class has its own.
        let cases = [
            (700, 3, 1e6, 0.3, false),
            (700, 3, 10.0, 0.3, true),
            (600, 1, 1.0, 0.1, false),
            // All on one another: hardly any survives, and all must be looked at.
            (900, 2, 1e6, 5.0, true),
            (3, 4, 100.0, 0.5, true),
            (0, 2, 1.0, 0.5, false),
        ];
        for nms in [usual, few_a_class, strict] {
            for (i, &(rows, classes, steps, size, each)) in cases.iter().enumerate() {
                let mut next = noise(i as u64 + 1);
                let own = if each { classes } else { 1 };
                let mut boxes: Vec<BBox> = Vec::new();
                for _ in 0..rows * own {
                    let (y, x, h, w) = (next(), next(), (next() - 0.1) * size, (next() - 0.1) * size);
                    // Clipped, so some are empty; some are upside down in both directions, and have an area.
                    boxes.push([y, x, y + h, x + w].map(|v| v.clamp(0.0, 1.0)));
                }
                let scores: Vec<f32> = (0..rows * classes).map(|_| (next() * steps).round() / steps).collect();
                let parts = if each { ClassBoxes::Own(&boxes) } else { ClassBoxes::Shared(&boxes) };
                let expected = multiclass(parts, &scores, classes, &nms);
                let sides = |columns: usize| [rows as i64, columns as i64];
                let input = [
                    Tensor::from_slice(boxes.as_flattened()).view(sides(4 * own)),
                    Tensor::from_slice(&scores).view(sides(classes)),
                ];
                let [got_boxes, got_scores, got_classes] =
                    script(&nms, own, classes).forward::<3>(&Tensor::cat(&input, 1)).unwrap();
                let what = format!("case {i}, {nms:?}");
                assert_eq!(values(&got_scores), expected.scores, "{what}");
                assert_eq!(values(&got_classes), expected.classes.iter().map(|&c| c as f32).collect::<Vec<_>>(), "{what}");
                assert_eq!(values(&got_boxes), expected.boxes.as_flattened(), "{what}");
                assert!(rows < 100 || !expected.scores.is_empty(), "{what}");
            }
        }
    }

    #[test]
    fn a_score_that_is_no_number_is_never_found() {
        shim::init().unwrap();
        let nms = NmsOptions { score_threshold: 0.0, iou_threshold: 0.6, max_per_class: 5, max_total: 5 };
        let rows = [[0.0, 0.0, 0.5, 0.5, f32::NAN], [f32::NAN, 0.0, 0.5, 0.5, 0.9], [0.5, 0.5, 1.0, 1.0, 0.4]];
        let input = Tensor::from_slice(rows.as_flattened()).view([3, 5]).to_device(Device::Cpu);
        let [_, scores, _] = script(&nms, 1, 1).forward::<3>(&input).unwrap();
        assert_eq!(values(&scores), [0.4]);
    }
}
