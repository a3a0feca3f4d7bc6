//! An SSD as TorchScript: pictures of any size in, detections out.

use anyhow::Result;

use super::network::write_network;
use super::parts;
use super::source::Source;
use crate::detection::anchors::SsdAnchors;
use crate::export::layers::ReadVariable;
use crate::export::ssd::SsdExport;
use crate::net::graph::NodeId;
use crate::net::shim::Script;

/// From the picture to the four outputs.
const FORWARD: &str = "\
def forward(self, image_tensor) -> Tuple[Tensor, Tensor, Tensor, Tensor]:
    pictures = self.pictures(image_tensor)
    size = self.target_size(pictures.size(1), pictures.size(2))
    maps = self.network(self.preprocess(pictures, size[0], size[1]))
    codes, logits = self.predict(maps)
    boxes = self.decode(codes, ANCHORS, self.scale_factors)
    boxes = BOXES
    scores = SCORES
    counts = [boxes.size(1)] * boxes.size(0)
    return self.detections(boxes.view([-1, 1, 4]), scores.reshape([-1, scores.size(2)]), counts)
";
/// Boxes clipped to the picture's share of the frame, and then measured by it.
const OWN: &str = "\
def own(self, boxes, size: List[int]):
    frame = self.frame(size)
    window = torch.tensor(size + size, dtype=6, device=boxes.device) / torch.tensor(frame + frame, dtype=6, device=boxes.device)
    return torch.minimum(boxes, window).clamp(min=0.0) * (1.0 / window)
";
/// A layer's anchors on a map of `height` x `width` cells.
///
/// * `shapes`: `[height, width]` of each anchor of a cell, `[a, 2]`; `stride`, `offset`: `[y, x]`.
///
/// Source: detection/anchors.rs, `SsdAnchors::generate`.
const LAYER: &str = "\
def layer(self, height: int, width: int, shapes, stride, offset):
    y = (torch.arange(height, dtype=6, device=shapes.device) * stride[0] + offset[0]).view([-1, 1, 1])
    x = (torch.arange(width, dtype=6, device=shapes.device) * stride[1] + offset[1]).view([1, -1, 1])
    down = shapes[:, 0] * 0.5
    across = shapes[:, 1] * 0.5
    edges = torch.broadcast_tensors([y - down, x - across, y + down, x + across])
    return torch.stack(edges, -1).view([-1, 4])
";

/// The module: `image_tensor` to the four outputs.
///
/// * `metadata`: what readers may ask the file for.
///
/// # Errors
/// If the parts of `model` do not fit together, a variable cannot be read, or libtorch does not take the source.
pub fn torchscript(model: &SsdExport, variables: &ReadVariable, metadata: &str) -> Result<Script> {
    model.check()?;
    let mut source = Source::new();
    parts::write(&mut source, model.resizer, &model.pixels, &model.coder.scale, &model.nms)?;
    let wanted: Vec<NodeId> = model.heads.iter().flat_map(|head| [head.boxes, head.classes]).collect();
    let size = model.resizer.fixed_size();
    let sides = size.map(|size| size.map(|side| side as i64));
    write_network(&mut source, "network", model.graph, sides, &wanted, variables)?;
    let anchors = match size {
        Some(_) => source.parameter("anchors", &[model.anchors.len() as i64, 4], model.anchors.as_flattened())?,
        None => {
            write_anchors(&mut source, model.shapes, model.heads.len())?;
            "self.grids(maps, size)".to_string()
        }
    };
    let boxes = match model.resizer.padding {
        None => "boxes.clamp(0.0, 1.0)",
        Some(_) => {
            source.method(OWN);
            "self.own(boxes, size)"
        }
    };
    source.method(predict(model.heads.len(), model.num_classes + 1));
    let scores = parts::convert_scores(model.scores, "logits");
    source.method(FORWARD.replace("ANCHORS", &anchors).replace("BOXES", boxes).replace("SCORES", &scores));
    source.finish(metadata)
}

/// Collects the predictors' maps into rows of anchors: encodings `[N, A, 4]` and logits `[N, A, K + 1]`.
fn predict(heads: usize, columns: usize) -> String {
    let kinds = vec!["Tensor"; 2 * heads].join(", ");
    let rows = |of: usize, columns: usize| -> Vec<String> {
        (0..heads).map(|i| format!("self.rows(maps[{}], {columns})", 2 * i + of)).collect()
    };
    format!(
        "def predict(self, maps: Tuple[{kinds}]) -> Tuple[Tensor, Tensor]:\n    return (torch.cat([{}], 1), torch.cat([{}], 1))\n",
        rows(0, 4).join(", "),
        rows(1, columns).join(", ")
    )
}

/// Adds `grids`, the anchors of pictures of a size: `[A, 4]`.
fn write_anchors(source: &mut Source, shapes: &SsdAnchors, layers: usize) -> Result<()> {
    source.method(LAYER);
    let kinds = vec!["Tensor"; 2 * layers].join(", ");
    let mut lines = vec![
        format!("def grids(self, maps: Tuple[{kinds}], size: List[int]):"),
        "sides = torch.tensor(size, dtype=6, device=self.scale_factors.device)".to_string(),
    ];
    let base = source.parameter("base_size", &[2], &shapes.base_size())?;
    lines.push(format!("base = sides.min() / sides * {base}"));
    let mut calls = Vec::new();
    for layer in 0..layers {
        let map = format!("maps[{}]", 2 * layer);
        let own = shapes.shapes(layer);
        let own = source.parameter(&format!("shapes_{layer}"), &[own.len() as i64, 2], own.as_flattened())?;
        let stride = match shapes.stride_px(layer) {
            Some(px) => format!("{} / sides", source.parameter(&format!("stride_px_{layer}"), &[2], &px)?),
            None => format!("1.0 / torch.tensor([{map}.size(2), {map}.size(3)], dtype=6, device=sides.device)"),
        };
        lines.push(format!("stride_{layer} = {stride}"));
        let offset = match shapes.offset_px(layer) {
            Some(px) => format!("{} / sides", source.parameter(&format!("offset_px_{layer}"), &[2], &px)?),
            None => format!("stride_{layer} * 0.5"),
        };
        calls.push(format!("self.layer({map}.size(2), {map}.size(3), {own} * base, stride_{layer}, {offset})"));
    }
    lines.push(format!("return torch.cat([{}])\n", calls.join(", ")));
    source.method(lines.join("\n    "));
    Ok(())
}
