//! A Faster R-CNN or R-FCN as TorchScript: pictures of any size in, detections out.

use anyhow::Result;

use super::network::write_network;
use super::parts;
use super::source::{Source, number};
use super::suppression;
use crate::export::layers::{ReadVariable, output};
use crate::models::DetectionModel;
use crate::models::box_classifier::{BoxClassifier, CROPS_CPU, CROPS_GPU, Regions};
use crate::models::faster_rcnn::FasterRcnn;
use crate::models::post_processing::ScoreConverter;
use crate::models::rpn::Rpn;
use crate::net::graph::Graph;
use crate::net::shim::Script;

/// From the picture to the four outputs.
///
/// Boxes are in pixels of the resized picture up to the proposals, and normalized to what is not padding when they leave.
const FORWARD: &str = "\
def forward(self, image_tensor) -> Tuple[Tensor, Tensor, Tensor, Tensor]:
    pictures = self.pictures(image_tensor)
    size = self.target_size(pictures.size(1), pictures.size(2))
    map, codes, objectness = self.first_stage(self.preprocess(pictures, size[0], size[1]))
    frame = self.frame(size)
    corners = torch.tensor(frame + frame, dtype=6, device=pictures.device)
    own = torch.tensor(size + size, dtype=6, device=pictures.device)
    proposals, counts = self.propose(codes, objectness, corners)
    proposals = proposals * (1.0 / corners)
    codes, logits = self.classify(map, proposals, self.numbers(counts, pictures.device))
    anchors = (proposals * corners).unsqueeze(1)
    boxes = self.decode(codes.view([-1, CLASSES, 4]), anchors, self.scale_factors)
    boxes = torch.minimum(boxes, own).clamp(min=0.0) * (1.0 / own)
    return self.detections(boxes, SCORES, counts)
";

/// The best boxes of all pictures, one picture after the other `[R, 4]`, in pixels; and how many are of each.
///
/// * `codes`: encodings `[N, a * 4, h, w]`; `objectness`: `[N, a * 2, h, w]`; `corners`: height, width, height, width of the pictures.
const PROPOSE: &str = "\
def propose(self, codes, objectness, corners) -> Tuple[Tensor, List[int]]:
    anchors = self.grid(codes.size(2), codes.size(3), corners.device)
    anchors = torch.minimum(anchors, corners).clamp(min=0.0)
    boxes = self.decode(self.rows(codes, 4), anchors, self.proposal_scale_factors)
    boxes = torch.minimum(boxes, corners).clamp(min=0.0).unsqueeze(2)
    logits = self.rows(objectness, 2)
    scores = SCORES
    proposals: List[Tensor] = []
    counts: List[int] = []
    for i in range(boxes.size(0)):
        best = self.best(boxes[i], scores[i], OPTIONS)
        proposals.append(best[0])
        counts.append(best[0].size(0))
    return (torch.cat(proposals), counts)
";

/// Every anchor of a map of `height` x `width` cells, in pixels: `[A, 4]`.
const GRID: &str = "\
def grid(self, height: int, width: int, device: Device):
    y = (torch.arange(height, dtype=6, device=device) * STRIDE_Y + OFFSET_Y).view([-1, 1, 1])
    x = (torch.arange(width, dtype=6, device=device) * STRIDE_X + OFFSET_X).view([1, -1, 1])
    down = self.anchor_sizes[:, 0] * 0.5
    across = self.anchor_sizes[:, 1] * 0.5
    edges = torch.broadcast_tensors([y - down, x - across, y + down, x + across])
    return torch.stack(edges, -1).view([-1, 4])
";

/// Which picture each proposal is of: `[R]`.
const NUMBERS: &str = "\
def numbers(self, counts: List[int], device: Device):
    return torch.repeat_interleave(torch.tensor(counts, dtype=4, device=device))
";

/// Where the `count` samples of each of `low..high` `[R]`, normalized, lie on a side of a map: the two neighbours `[R, count, 2]`, and their
/// weights, which are 0 outside of the map.
///
/// What is divided by is a tensor: a GPU divides by a number as it multiplies by the reciprocal, which puts some last samples past the map.
///
/// Source: tensorflow/core/kernels/image/crop_and_resize_op.cc; single precision, in its order.
const TAPS: &str = "\
def taps(self, low, high, side: int, count: int) -> Tuple[Tensor, Tensor]:
    last = float(side - 1)
    if count > 1:
        step = (high - low) * last / torch.full([1], float(count - 1), dtype=6, device=low.device)
        at = (low * last).unsqueeze(1) + torch.arange(count, dtype=6, device=low.device) * step.unsqueeze(1)
    else:
        at = (0.5 * (low + high) * last).unsqueeze(1)
    inside = (at >= 0.0) & (at <= last)
    at = torch.where(inside, at, 0.0)
    lower = at.floor()
    part = at - lower
    weights = torch.stack([1.0 - part, part], -1) * inside.unsqueeze(-1)
    return (torch.stack([lower, at.ceil()], -1).to(4), weights)
";

/// The weighted sum of rows of `cells`, a number of them at a time: `[I]` of them become `[I / each, C]`.
const MIX: &str = "\
def mix(self, cells, index, weights, each: int):
    starts = torch.arange(0, index.size(0), each, dtype=4, device=cells.device)
    return torch.embedding_bag(cells, index, starts, False, 0, False, weights)[0]
";

/// Crops of the map at normalized boxes, resized to SIDE x SIDE: `[N, C, h, w] -> [R, C, SIDE, SIDE]`; 0 outside of the map.
const CROP: &str = "\
def crop(self, map, boxes, numbers):
    height = map.size(2)
    width = map.size(3)
    y, y_weights = self.taps(boxes[:, 0], boxes[:, 2], height, SIDE)
    x, x_weights = self.taps(boxes[:, 1], boxes[:, 3], width, SIDE)
    line = ((numbers.view([-1, 1, 1]) * height + y) * width).view([-1, SIDE, 1, 2, 1])
    index = (line + x.view([-1, 1, SIDE, 1, 2])).view([-1])
    weights = (y_weights.view([-1, SIDE, 1, 2, 1]) * x_weights.view([-1, 1, SIDE, 1, 2])).view([-1])
    cells = map.permute([0, 2, 3, 1]).reshape([-1, map.size(1)])
    return self.mix(cells, index, weights, 4).view([-1, SIDE, SIDE, map.size(1)]).permute([0, 3, 1, 2])
";

/// The second stage on crops, a part at a time, as many as memory is meant for: encodings `[R, K * 4]` and logits `[R, K + 1]`.
const CLASSIFY_CROPS: &str = "\
def classify(self, map, boxes, numbers) -> Tuple[Tensor, Tensor]:
    part = max((BYTES_GPU if map.is_cuda else BYTES_CPU) // (map.size(1) * SIDE * SIDE * 4), 1)
    codes = [torch.zeros([0, CODES], dtype=6, device=map.device)]
    logits = [torch.zeros([0, LOGITS], dtype=6, device=map.device)]
    for start in range(0, boxes.size(0), part):
        crops = self.crop(map, boxes[start:start + part], numbers[start:start + part])
        own_codes, own_logits = self.second_stage(crops)
        codes.append(own_codes)
        logits.append(own_logits)
    return (torch.cat(codes), torch.cat(logits))
";

/// The second stage on the map: every bin of a region averages what its own group of maps has there.
///
/// Source: upstream utils/ops.py, `position_sensitive_crop_regions` with `global_pool`.
const CLASSIFY_MAPS: &str = "\
def classify(self, map, boxes, numbers) -> Tuple[Tensor, Tensor]:
    codes, logits = self.second_stage(map)
    return (self.average(codes, boxes, numbers), self.average(logits, boxes, numbers))
";

/// `[N, DOWN * ACROSS * C, h, w] -> [R, C]`. A group's cells are rows of their own, so a bin is a sum of weighted rows.
const AVERAGE: &str = "\
def average(self, maps, boxes, numbers):
    height = maps.size(2)
    width = maps.size(3)
    y, y_weights = self.bin_taps(boxes[:, 0], boxes[:, 2], height, DOWN, ROWS)
    x, x_weights = self.bin_taps(boxes[:, 1], boxes[:, 3], width, ACROSS, COLUMNS)
    line = ((numbers.view([-1, 1, 1, 1]) * height + y) * width).view([-1, DOWN, 1, ROWS, 1, 2, 1])
    cell = line + x.view([-1, 1, ACROSS, 1, COLUMNS, 1, 2])
    group = torch.arange(DOWN * ACROSS, dtype=4, device=maps.device).view([1, DOWN, ACROSS, 1, 1, 1, 1])
    index = (cell * (DOWN * ACROSS) + group).view([-1])
    weights = y_weights.view([-1, DOWN, 1, ROWS, 1, 2, 1]) * x_weights.view([-1, 1, ACROSS, 1, COLUMNS, 1, 2])
    columns = maps.size(1) // (DOWN * ACROSS)
    cells = maps.permute([0, 2, 3, 1]).reshape([-1, columns])
    bins = self.mix(cells, index, weights.view([-1]), ROWS * COLUMNS * 4).view([-1, DOWN * ACROSS, columns])
    return bins.sum(1) / float(DOWN * ACROSS * ROWS * COLUMNS)
";
/// As `taps`, for each of `bins` equal parts of `low..high`: `[R, bins, count, 2]`.
const BIN_TAPS: &str = "\
def bin_taps(self, low, high, side: int, bins: int, count: int) -> Tuple[Tensor, Tensor]:
    step = ((high - low) / torch.full([1], float(bins), dtype=6, device=low.device)).unsqueeze(1)
    number = torch.arange(bins, dtype=6, device=low.device)
    start = low.unsqueeze(1) + number * step
    end = low.unsqueeze(1) + (number + 1.0) * step
    places, weights = self.taps(start.view([-1]), end.view([-1]), side, count)
    return (places.view([-1, bins, count, 2]), weights.view([-1, bins, count, 2]))
";

/// The module: `image_tensor` to the four outputs.
///
/// * `metadata`: what readers may ask the file for.
///
/// # Errors
/// If the parts of `model` do not fit together, a variable cannot be read, or libtorch does not take the source.
pub fn torchscript(model: &FasterRcnn, variables: &ReadVariable, metadata: &str) -> Result<Script> {
    let mut source = Source::new();
    let classifier = model.classifier();
    parts::write(&mut source, model.resizer(), &model.pixels(), &classifier.coder.scale, &classifier.nms)?;

    let first = model.first_graph();
    let size = model.resizer().fixed_size().map(|sides| sides.map(|side| side as i64));
    let map = output(first, "map")?;
    let wanted = [map, output(first, "box_encodings")?, output(first, "objectness")?];
    write_network(&mut source, "first_stage", first, size, &wanted, variables)?;
    write_proposals(&mut source, model.rpn())?;

    for method in [NUMBERS, TAPS, MIX] {
        source.method(method);
    }
    let graph = &classifier.graph;
    let map_size = size.map(|size| first.sizes(size)[map.0]);
    write_classifier(&mut source, classifier);
    let size = match classifier.regions {
        Regions::Crops { side } => Some([side; 2]),
        Regions::PositionSensitive { .. } => map_size,
    };
    write_second_stage(&mut source, graph, size, variables)?;
    let k = classifier.num_classes;
    let scores = parts::convert_scores(classifier.converter, "logits");
    source.method(FORWARD.replace("CLASSES", &k.to_string()).replace("SCORES", &scores));
    source.finish(metadata)
}

fn write_second_stage(source: &mut Source, graph: &Graph, size: Option<[i64; 2]>, variables: &ReadVariable) -> Result<()> {
    let wanted = [output(graph, "refined_box_encodings")?, output(graph, "class_predictions")?];
    write_network(source, "second_stage", graph, size, &wanted, variables)
}

fn write_proposals(source: &mut Source, rpn: &Rpn) -> Result<()> {
    source.parameter("proposal_scale_factors", &[4], &rpn.coder.scale)?;
    let sizes = rpn.anchors.sizes_px();
    source.parameter("anchor_sizes", &[sizes.len() as i64, 2], sizes.as_flattened())?;
    let mut grid = GRID.to_string();
    let (stride, offset) = (rpn.anchors.stride_px, rpn.anchors.offset_px);
    for (word, value) in [("STRIDE_Y", stride[0]), ("STRIDE_X", stride[1]), ("OFFSET_Y", offset[0]), ("OFFSET_X", offset[1])] {
        grid = grid.replace(word, &number(f64::from(value)));
    }
    source.method(grid);
    let scores = parts::convert_scores(ScoreConverter::Softmax { logit_scale: 1.0 }, "logits");
    source.method(PROPOSE.replace("SCORES", &scores).replace("OPTIONS", &suppression::options(&rpn.nms)));
    Ok(())
}

fn write_classifier(source: &mut Source, classifier: &BoxClassifier) {
    match classifier.regions {
        Regions::Crops { side } => {
            let (codes, logits) = (4 * classifier.num_classes, classifier.num_classes + 1);
            let words = [
                ("SIDE", side as usize),
                ("BYTES_CPU", CROPS_CPU),
                ("BYTES_GPU", CROPS_GPU),
                ("CODES", codes),
                ("LOGITS", logits),
            ];
            source.method(filled(CROP, &words));
            source.method(filled(CLASSIFY_CROPS, &words));
        }
        Regions::PositionSensitive { bins, crop } => {
            let [rows, columns] = [0, 1].map(|i| (crop[i] / bins[i]) as usize);
            let words = [("DOWN", bins[0] as usize), ("ACROSS", bins[1] as usize), ("ROWS", rows), ("COLUMNS", columns)];
            source.method(CLASSIFY_MAPS);
            source.method(BIN_TAPS);
            source.method(filled(AVERAGE, &words));
        }
    }
}

fn filled(text: &str, words: &[(&str, usize)]) -> String {
    words.iter().fold(text.to_string(), |text, (word, value)| text.replace(word, &value.to_string()))
}
