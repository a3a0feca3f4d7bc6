//! The region proposal network (Ren et al., Faster R-CNN, arXiv:1506.01497, section 3.1; upstream meta_architectures/faster_rcnn_meta_arch.py):
//! at every anchor a box and whether it holds an object, and of these the best as proposals.

use anyhow::Result;
use rayon::prelude::*;
use tch::{Kind, Tensor};

use super::pictures::Frame;
use crate::detection::anchors::GridAnchors;
use crate::detection::box_coder::BoxCoder;
use crate::detection::boxes::{BBox, Groundtruth, clip};
use crate::detection::losses::{ClassificationLoss, LocalizationLoss};
use crate::detection::matcher::{ArgMaxMatcher, Matcher};
use crate::detection::nms::{ClassBoxes, NmsOptions, multiclass};
use crate::detection::sampler::{BalancedSampler, Shuffle};
use crate::detection::target_assigner::{Targets, assign};
use crate::net::exec::Outputs;
use crate::net::graph::{Activation, Graph, NodeId, Padding, Window};
use crate::net::host::host_values;
use crate::net::layers::{ConvScope, Scope, conv2d};

/// Which anchors are positive.
///
/// Source: upstream core/target_assigner.py, `create_target_assigner('FasterRCNN', 'proposal')`.
const MATCHER: Matcher = Matcher::ArgMax(ArgMaxMatcher {
    matched_threshold: 0.7,
    unmatched_threshold: 0.3,
    negatives_lower_than_unmatched: true,
    force_match_for_each_row: true,
});

/// A proposal network, without its variables.
#[derive(Debug, Clone)]
pub struct Rpn {
    pub anchors: GridAnchors,
    /// In training too, anchors that leave the picture are clipped to it (`clip_anchors_to_image`), not taken out.
    pub clip_anchors: bool,
    pub coder: BoxCoder,
    /// What becomes a proposal; there is one class.
    pub nms: NmsOptions,
    /// What counts in the losses.
    pub sampler: BalancedSampler,
    pub localization_weight: f64,
    pub objectness_weight: f64,
}

/// The layers before the predictors.
#[derive(Debug, Clone, Copy)]
pub struct RpnLayers {
    pub kernel: i64,
    pub depth: i64,
    pub dilation: i64,
    /// The settings of these layers and of the predictors; the activation is always ReLU6.
    pub with: ConvScope,
}

/// Anchors in training and in inference differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Anchors that leave the picture are taken out, together with what was predicted at them, unless they are clipped.
    Training,
    /// Anchors are clipped to the picture.
    Inference,
}

/// What the first stage says of a batch.
#[derive(Debug)]
pub struct FirstStage {
    /// The pictures' sizes.
    pub frame: Frame,
    /// What proposals are cropped from, `[N, C, h, w]`.
    pub map: Tensor,
    /// `[A]`, in pixels.
    pub anchors_px: Vec<BBox>,
    /// `[N, A, 4]`.
    pub box_encodings: Tensor,
    /// Logits, background first: `[N, A, 2]`.
    pub objectness: Tensor,
}

/// The losses, weighted and normalized, and what they were made from.
#[derive(Debug)]
pub struct RpnLoss {
    pub localization: Tensor,
    pub objectness: Tensor,
    /// A picture each.
    pub targets: Vec<Targets>,
    /// The anchors that counted, a picture each.
    pub sampled: Vec<Vec<usize>>,
}

/// Appends the network's layers on the first stage's map, and names its outputs; returns the map before the predictors.
pub fn append(graph: &mut Graph, map: NodeId, layers: &RpnLayers, per_cell: usize) -> NodeId {
    let window = Window { kernel: [layers.kernel; 2], stride: [1; 2], dilation: [layers.dilation; 2], padding: Padding::Same };
    let with = ConvScope { activation: Some(Activation::Relu6), ..layers.with };
    let features = conv2d(graph, map, &Scope::new("Conv"), layers.depth, window, &with);
    let scope = Scope::new("FirstStageBoxPredictor");
    let point = Window::square(1, 1, Padding::Same);
    let per_cell = per_cell as i64;
    for (name, columns, output) in [("BoxEncodingPredictor", 4, "box_encodings"), ("ClassPredictor", 2, "objectness")] {
        let predicted = conv2d(graph, features, &scope.child(name), per_cell * columns, point, &layers.with.linear());
        graph.output(output, predicted);
    }
    graph.output("map", map);
    features
}

impl Rpn {
    /// Collects what the graph gave for pictures of these sizes. Anchors may lie on padding. In training, a picture too narrow for any anchor has none, and so no losses,
    /// where upstream divides by zero.
    pub fn gather(&self, outputs: &Outputs, frame: &Frame, phase: Phase) -> Result<FirstStage> {
        let rows = |name: &str, columns: i64| -> Result<Tensor> {
            let map = &outputs[name]; // [N, per_cell * columns, h, w]
            Ok(map.f_permute([0i64, 2, 3, 1])?.f_reshape([map.size()[0], -1, columns])?) // [N, A, columns]
        };
        let (mut box_encodings, mut objectness) = (rows("box_encodings", 4)?, rows("objectness", 2)?);
        let size = outputs["box_encodings"].size();
        let mut anchors_px = self.anchors.generate([size[2], size[3]]);
        let window = frame.window_px();
        match phase {
            Phase::Inference => anchors_px.iter_mut().for_each(|a| *a = clip(a, &window)),
            Phase::Training if self.clip_anchors => anchors_px.iter_mut().for_each(|a| *a = clip(a, &window)),
            Phase::Training => {
                let inside = |a: &BBox| a[0] >= window[0] && a[1] >= window[1] && a[2] <= window[2] && a[3] <= window[3];
                let kept: Vec<i64> = (0..anchors_px.len()).filter(|&i| inside(&anchors_px[i])).map(|i| i as i64).collect();
                anchors_px = kept.iter().map(|&i| anchors_px[i as usize]).collect();
                let kept = Tensor::from_slice(&kept).f_to_device(box_encodings.device())?;
                box_encodings = box_encodings.f_index_select(1, &kept)?;
                objectness = objectness.f_index_select(1, &kept)?;
            }
        }
        Ok(FirstStage { frame: frame.clone(), map: outputs["map"].shallow_clone(), anchors_px, box_encodings, objectness })
    }

    /// The boxes of each picture, best first, in pixels. They may lie on padding, as upstream's do; no gradient flows through them. A GPU waits
    /// here.
    pub fn proposals(&self, first: &FirstStage) -> Result<Vec<Vec<BBox>>> {
        let scores = first.objectness.f_detach()?.f_softmax(-1, Kind::Float)?.f_select(2, 1)?; // [N, A]
        let (scores, codes) = (host_values(&scores)?, host_values(&first.box_encodings)?);
        let window = first.frame.window_px();
        let anchors = &first.anchors_px;
        let a = anchors.len();
        if a == 0 {
            return Ok(vec![vec![]; first.objectness.size()[0] as usize]);
        }
        Ok(scores
            .par_chunks_exact(a)
            .zip(codes.par_chunks_exact(4 * a))
            .map(|(scores, codes)| {
                let boxes = codes.chunks_exact(4).zip(anchors).map(|(code, anchor)| self.coder.decode(code, anchor));
                let boxes: Vec<BBox> = boxes.map(|b| clip(&b, &window)).collect();
                multiclass(ClassBoxes::Shared(&boxes), scores, 1, &self.nms).boxes
            })
            .collect())
    }

    /// The losses of a batch.
    ///
    /// * `groundtruth_px`: a picture each, in pixels of the resized picture.
    pub fn loss(&self, first: &FirstStage, groundtruth_px: &[Groundtruth], shuffle: &mut Shuffle) -> Result<RpnLoss> {
        let device = first.box_encodings.device();
        let [n, a] = [groundtruth_px.len() as i64, first.anchors_px.len() as i64];
        let anchors = &first.anchors_px;
        let targets: Vec<Targets> = groundtruth_px
            .par_iter()
            .map(|g| {
                // Whatever it is, it is an object.
                let objects = Groundtruth { classes: vec![0; g.boxes.len()], ..g.clone() };
                assign(&MATCHER, &self.coder, anchors, &objects, 1.0)
            })
            .collect();
        let sampled: Vec<Vec<usize>> = targets
            .iter()
            .map(|t| {
                let candidate: Vec<bool> = t.class_weights.iter().map(|&w| w > 0.0).collect();
                let positive: Vec<bool> = t.classes.iter().map(|&c| c > 0).collect();
                self.sampler.sample(&candidate, &positive, shuffle)
            })
            .collect();
        // Each picture's sample weighs the same, however large.
        let mut weights = vec![0f32; (n * a) as usize];
        for (i, rows) in sampled.iter().enumerate() {
            rows.iter().for_each(|&r| weights[i * a as usize + r] = 1.0 / (rows.len() as f32 * n as f32));
        }
        let boxes: Vec<f32> = weights.iter().zip(targets.iter().flat_map(|t| &t.box_weights)).map(|(w, b)| w * b).collect();
        let tensor = |values: &[f32], shape: &[i64]| -> Result<Tensor> {
            Ok(Tensor::from_slice(values).f_view(shape)?.f_to_device(device)?)
        };
        let codes: Vec<f32> = targets.iter().flat_map(|t| t.codes.iter().copied()).collect();
        let classes: Vec<i64> = targets.iter().flat_map(|t| t.classes.iter().copied()).collect();
        let classes = Tensor::from_slice(&classes).f_view([n, a])?.f_to_device(device)?;
        let localization = LocalizationLoss::SmoothL1 { delta: 1.0 }.per_anchor(
            &first.box_encodings,
            &tensor(&codes, &[n, a, 4])?,
            &tensor(&boxes, &[n, a])?,
        )?; // [N, A]
        let objectness = ClassificationLoss::Softmax { logit_scale: 1.0 }.per_anchor(
            &first.objectness,
            &classes,
            &tensor(&weights, &[n, a])?,
        )?; // [N, A]
        Ok(RpnLoss {
            localization: localization.f_sum(localization.kind())? * self.localization_weight,
            objectness: objectness.f_sum(objectness.kind())? * self.objectness_weight,
            targets,
            sampled,
        })
    }
}
