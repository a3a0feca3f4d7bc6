//! An SSD as TorchScript: pictures of any size in, detections out.

use anyhow::Result;

use super::network::write_network;
use super::parts;
use super::source::Source;
use crate::export::layers::ReadVariable;
use crate::export::ssd::SsdExport;
use crate::net::graph::NodeId;
use crate::net::shim::Script;

/// From the picture to the four outputs.
const FORWARD: &str = "\
def forward(self, image_tensor) -> Tuple[Tensor, Tensor, Tensor, Tensor]:
    pictures = self.pictures(image_tensor)
    codes, logits = self.predict(self.network(self.preprocess(pictures, HEIGHT, WIDTH)))
    boxes = self.decode(codes, self.anchors, self.scale_factors).clamp(0.0, 1.0)
    scores = SCORES
    counts = [boxes.size(1)] * boxes.size(0)
    return self.detections(boxes.view([-1, 1, 4]), scores.reshape([-1, scores.size(2)]), counts)
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
    parts::write(&mut source, &model.pixels, &model.coder.scale, &model.nms)?;
    source.parameter("anchors", &[model.anchors.len() as i64, 4], model.anchors.as_flattened())?;
    let wanted: Vec<NodeId> = model.heads.iter().flat_map(|head| [head.boxes, head.classes]).collect();
    let [height, width] = model.picture;
    write_network(&mut source, "network", model.graph, Some([height as i64, width as i64]), &wanted, variables)?;
    source.method(predict(model.heads.len(), model.num_classes + 1));
    let scores = parts::convert_scores(model.scores, "logits");
    source.method(FORWARD.replace("HEIGHT", &height.to_string()).replace("WIDTH", &width.to_string()).replace("SCORES", &scores));
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
