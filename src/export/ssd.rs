//! What the writers of other programs' formats need to know of an SSD: its network and the numbers before and after it.

use anyhow::{Result, ensure};

use crate::backbones::faster_rcnn::Pixels;
use crate::data::resizer::Resizer;
use crate::detection::anchors::SsdAnchors;
use crate::detection::box_coder::BoxCoder;
use crate::detection::boxes::BBox;
use crate::detection::nms::NmsOptions;
use crate::export::layers::input;
use crate::models::DetectionModel;
use crate::models::post_processing::ScoreConverter;
use crate::models::ssd::Ssd;
use crate::net::graph::{Graph, NodeId};

/// A single shot detector.
#[derive(Debug, Clone)]
pub struct SsdExport<'a> {
    /// The network from the preprocessed picture to the raw predictions; it has one `Op::Input`.
    pub graph: &'a Graph,
    /// The predictors of each feature map, finest first.
    pub heads: Vec<Head>,
    /// Classes without background: the `K` of the shapes.
    pub num_classes: usize,
    /// What happens to a picture first.
    pub resizer: Resizer,
    /// What happens to a resized pixel.
    pub pixels: Pixels,
    /// `[A]`, normalized, in the order of the predictions; none where pictures have different sizes.
    pub anchors: &'a [BBox],
    /// What anchors are made from.
    pub shapes: &'a SsdAnchors,
    /// What the box predictors' numbers mean.
    pub coder: BoxCoder,
    /// From raw class predictions to scores.
    pub scores: ScoreConverter,
    /// Thresholds and limits of the non-maximum suppression.
    pub nms: NmsOptions,
}

/// The predictors on one feature map of `h x w` cells with `a` anchors each.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Head {
    /// Box encodings, `[N, h, w, a * 4]` in TensorFlow's order.
    pub boxes: NodeId,
    /// Class predictions, background first, `[N, h, w, a * (K + 1)]`.
    pub classes: NodeId,
}

impl<'a> SsdExport<'a> {
    /// The description of a model.
    pub fn new(model: &'a Ssd) -> Self {
        let heads = model.predictors().iter().map(|p| Head { boxes: p.boxes, classes: p.classes }).collect();
        Self {
            graph: model.graph(),
            heads,
            num_classes: model.num_classes(),
            resizer: model.resizer(),
            pixels: Pixels::MINUS_ONE_TO_ONE,
            anchors: model.anchors(),
            shapes: model.shapes(),
            coder: *model.coder(),
            scores: model.converter(),
            nms: *model.nms(),
        }
    }

    /// Whether the parts fit together.
    ///
    /// # Errors
    /// If not, with the numbers.
    pub fn check(&self) -> Result<()> {
        input(self.graph)?;
        ensure!(!self.heads.is_empty(), "the model has no box predictors");
        for &Head { boxes, classes } in &self.heads {
            let columns = self.num_classes as i64 + 1;
            let (b, c) = (self.graph.channels(boxes), self.graph.channels(classes));
            ensure!(
                b % 4 == 0 && c == b / 4 * columns,
                "{} has {b} channels and {} has {c}; {} classes need 4 and {columns} an anchor",
                self.graph.node(boxes).name,
                self.graph.node(classes).name,
                self.num_classes
            );
        }
        if let Some(picture) = self.resizer.fixed_size() {
            let sizes = self.graph.sizes(picture.map(|side| side as i64));
            let of = |head: &Head| sizes[head.boxes.0].iter().product::<i64>() * self.graph.channels(head.boxes) / 4;
            let (predicted, anchors) = (self.heads.iter().map(of).sum::<i64>(), self.anchors.len());
            ensure!(predicted == anchors as i64, "the box predictors have {predicted} anchors, the anchor generator {anchors}");
            let pairs = anchors * self.num_classes;
            ensure!(
                pairs > 0 && pairs <= i32::MAX as usize / 64,
                "{anchors} anchors of {} classes cannot be exported",
                self.num_classes
            );
        }
        ensure!(
            self.nms.max_total > 0 && self.nms.max_per_class > 0,
            "the limits of detections in all and a class must be positive"
        );
        Ok(())
    }
}
