//! The second stage of Faster R-CNN (Girshick, Fast R-CNN, arXiv:1504.08083) and of R-FCN (Dai et al., arXiv:1605.06409): what is in each
//! proposal, and where exactly (upstream meta_architectures/faster_rcnn_meta_arch.py, rfcn_meta_arch.py, core/box_predictor.py).

use std::sync::Arc;

use anyhow::{Result, ensure};
use rayon::prelude::*;
use tch::{Device, Tensor};

use super::pictures::Frame;
use super::position_sensitive::BinShares;
use super::post_processing::ScoreConverter;
use crate::detection::box_coder::BoxCoder;
use crate::detection::boxes::{BBox, Detections, Groundtruth, clip, scale};
use crate::detection::hard_example_miner::{HardExampleMiner, RankBy};
use crate::detection::losses::{ClassificationLoss, LocalizationLoss};
use crate::detection::matcher::{ArgMaxMatcher, Match, Matcher};
use crate::detection::nms::{ClassBoxes, NmsOptions, multiclass};
use crate::detection::sampler::{BalancedSampler, Shuffle};
use crate::detection::target_assigner::{Targets, assign};
use crate::net::exec::Outputs;
use crate::net::graph::{Graph, NodeId, Op};
use crate::net::graph::{Padding, Window};
use crate::net::host::host_values;
use crate::net::layers::{ConvScope, Scope, conv2d, fully_connected};
use crate::net::shim::crop_and_resize;

/// Which proposals hold an object.
///
/// Source: upstream core/target_assigner.py, `create_target_assigner('FasterRCNN', 'detection')`.
const MATCHER: Matcher = Matcher::ArgMax(ArgMaxMatcher {
    matched_threshold: 0.5,
    unmatched_threshold: 0.5,
    negatives_lower_than_unmatched: true,
    force_match_for_each_row: false,
});

/// Bytes of crops that are classified at a time in inference on a CPU: few, so that they stay in its caches.
pub const CROPS_CPU: usize = 96 << 20;
/// The same on a GPU, which many keep busy.
pub const CROPS_GPU: usize = 768 << 20;

/// How proposals meet the map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Regions {
    /// Each is cropped from the map and resized to this side; the graph runs on the crops.
    Crops { side: i64 },
    /// The graph runs on the map, and gives a group of maps for each of `[vertical, horizontal]` bins; each bin of a proposal averages what
    /// its own group has there, sampled at `crop` points of the whole proposal.
    PositionSensitive { bins: [i64; 2], crop: [i64; 2] },
}

/// A second stage, without its variables.
#[derive(Debug, Clone)]
pub struct BoxClassifier {
    pub num_classes: usize,
    pub regions: Regions,
    /// From crops, or the map, to `refined_box_encodings` and `class_predictions`.
    pub graph: Arc<Graph>,
    /// The node that the predictors start from.
    pub features: NodeId,
    pub coder: BoxCoder,
    /// How many proposals of a picture upstream's tensors hold in training.
    pub proposals: usize,
    /// Which proposals training looks at, where there is no miner.
    pub sampler: BalancedSampler,
    /// Which of all proposals count in the losses.
    pub miner: Option<HardExampleMiner>,
    pub classification: ClassificationLoss,
    pub localization_weight: f64,
    pub classification_weight: f64,
    pub nms: NmsOptions,
    pub converter: ScoreConverter,
}

/// The proposals of a batch, as the second stage sees them: one list, picture by picture.
#[derive(Debug, Clone, PartialEq)]
pub struct Regioned {
    /// The pictures' sizes.
    pub frame: Frame,
    /// How many are of each picture. `[N]`
    pub counts: Vec<usize>,
    /// As shares of the batch's sides, padding included. `[R]`
    pub boxes: Vec<BBox>,
    /// The same in pixels, computed from the normalized ones as upstream does. `[R]`
    pub boxes_px: Vec<BBox>,
}

/// What the second stage says of `R` proposals.
#[derive(Debug)]
pub struct Classified {
    /// For each class relative to the proposal: `[R, K, 4]`.
    pub refined_box_encodings: Tensor,
    /// Logits, background first: `[R, K + 1]`.
    pub class_predictions: Tensor,
}

/// The losses, weighted and normalized, and what they were made from.
#[derive(Debug)]
pub struct BoxClassifierLoss {
    pub localization: Tensor,
    pub classification: Tensor,
    /// A picture each.
    pub targets: Vec<Targets>,
}

/// Appends fully connected predictors on the mean of the features (upstream `MaskRCNNBoxPredictor`).
///
/// * `dropout_keep`: of the features in training, if any are dropped.
pub fn append_fully_connected(
    graph: &mut Graph,
    features: NodeId,
    num_classes: usize,
    dropout_keep: Option<f64>,
    with: &ConvScope,
) {
    let scope = Scope::new("SecondStageBoxPredictor");
    let channels = graph.channels(features);
    let mut x = graph.push(&format!("{}/AvgPool", scope.ops), Op::GlobalMean, &[features], channels);
    if let Some(keep) = dropout_keep {
        x = graph.push(&format!("{}/Dropout", scope.ops), Op::Dropout { keep }, &[x], channels);
    }
    let k = num_classes as i64;
    for (name, columns, output) in [("BoxEncodingPredictor", 4 * k, BOXES), ("ClassPredictor", k + 1, CLASSES)] {
        let y = fully_connected(graph, x, &scope.child(name), columns, &with.linear());
        graph.output(output, y);
    }
}

/// Appends position-sensitive score maps (upstream `RfcnBoxPredictor`).
///
/// * `depth`: channels that the features are reduced to first.
pub fn append_position_sensitive(
    graph: &mut Graph,
    features: NodeId,
    num_classes: usize,
    (bins, depth): ([i64; 2], i64),
    with: &ConvScope,
) {
    let scope = Scope::new("SecondStageBoxPredictor");
    let point = Window::square(1, 1, Padding::Same);
    let x = conv2d(graph, features, &scope.child("reduce_depth"), depth, point, with);
    let k = num_classes as i64;
    // As the arg scope has it, these have its batch norm, though no activation.
    let raw = ConvScope { activation: None, ..*with };
    for (name, columns, output) in [("refined_locations", 4 * k, BOXES), ("class_predictions", k + 1, CLASSES)] {
        let y = conv2d(graph, x, &scope.child(name), bins[0] * bins[1] * columns, point, &raw);
        graph.output(output, y);
    }
}

const BOXES: &str = "refined_box_encodings";
const CLASSES: &str = "class_predictions";

impl Regioned {
    /// * `boxes_px`: a picture each.
    pub fn new<'b>(boxes_px: impl IntoIterator<Item = &'b [BBox]>, frame: &Frame) -> Self {
        let mut regions = Self { frame: frame.clone(), counts: Vec::new(), boxes: Vec::new(), boxes_px: Vec::new() };
        let size = frame.px.map(|side| side as f32);
        for boxes in boxes_px {
            regions.counts.push(boxes.len());
            regions.boxes.extend(boxes.iter().map(|b| scale(b, size.map(|side| 1.0 / side))));
        }
        regions.boxes_px = regions.boxes.iter().map(|b| scale(b, size)).collect();
        regions
    }

    /// The same regions, where those that end on the frame's edge end a little inside it or behind it.
    ///
    /// TensorFlow's `crop_and_resize` gives 0 for a sample behind the map's last cell. The last samples of a region that ends on the edge lie
    /// exactly on that cell, and one rounding decides which it is.
    ///
    /// * `inside`: which of it, each time it is asked; lower ends first, then right ends.
    pub fn off_the_edge(&self, mut inside: impl FnMut(usize) -> bool) -> Self {
        /// More than all roundings on the way to a sample, and less than can be seen, as a share of the frame's side.
        const STEP: f32 = 2e-6;
        let mut moved = self.clone();
        for end in moved.boxes.iter_mut().flat_map(|b| b[2..].iter_mut().enumerate()) {
            if *end.1 > 1.0 - STEP {
                *end.1 = if inside(end.0) { 1.0 - STEP } else { 1.0 + STEP };
            }
        }
        moved
    }

    /// Which picture each is of. `[R]`
    pub fn pictures(&self) -> Vec<i64> {
        self.counts.iter().enumerate().flat_map(|(i, &n)| std::iter::repeat_n(i as i64, n)).collect()
    }

    /// The rows of each picture.
    fn ranges(&self) -> Vec<std::ops::Range<usize>> {
        let mut start = 0;
        self.counts
            .iter()
            .map(|&n| {
                start += n;
                start - n..start
            })
            .collect()
    }
}

impl BoxClassifier {
    /// The proposals that training looks at: a sample balanced between objects and background, or with a miner all.
    ///
    /// * `proposals`: a picture each, in pixels, as is `groundtruth_px`.
    pub fn sample(&self, proposals: &[Vec<BBox>], groundtruth_px: &[Groundtruth], shuffle: &mut Shuffle) -> Vec<Vec<BBox>> {
        proposals
            .iter()
            .zip(groundtruth_px)
            .map(|(p, g)| {
                if self.miner.is_some() {
                    return p.clone();
                }
                let targets = assign(&MATCHER, &self.coder, p, g, 1.0);
                let positive: Vec<bool> = targets.classes.iter().map(|&c| c > 0).collect();
                let mut candidate: Vec<bool> = targets.class_weights.iter().map(|&w| w > 0.0).collect();
                if !candidate.contains(&true) {
                    candidate.fill(true);
                }
                self.sampler.sample(&candidate, &positive, shuffle).into_iter().map(|i| p[i]).collect()
            })
            .collect()
    }

    /// Classifies all regions at once, for training. Where a picture has fewer than [`Self::proposals`], boxes without area fill them up where
    /// batch norms train: they count in no loss, but in the statistics.
    pub fn classify(&self, map: &Tensor, regions: &Regioned, run: impl FnOnce(&Tensor) -> Result<Outputs>) -> Result<Classified> {
        match self.regions {
            Regions::Crops { side } => {
                let (mut boxes, mut pictures) = (regions.boxes.clone(), regions.pictures());
                if self.graph.nodes().iter().any(|node| matches!(&node.op, Op::BatchNorm(norm) if norm.train)) {
                    let missing =
                        regions.counts.iter().enumerate().map(|(i, &count)| (i as i64, self.proposals.saturating_sub(count)));
                    pictures.extend(missing.flat_map(|(i, count)| std::iter::repeat_n(i, count)));
                    boxes.resize(pictures.len(), [0.0; 4]);
                }
                let outputs = run(&crop_and_resize(map, &boxes, &pictures, [side; 2])?)?;
                let real = |name: &str| outputs[name].f_narrow(0, 0, regions.boxes.len() as i64);
                self.classified(real(BOXES)?, real(CLASSES)?)
            }
            Regions::PositionSensitive { bins, crop } => {
                let outputs = run(map)?;
                let maps = &outputs[BOXES];
                let (_, _, h, w) = maps.size4()?;
                let samples = [crop[0] / bins[0], crop[1] / bins[1]];
                let shares = BinShares::new(&regions.boxes, &regions.ranges(), [bins, samples, [h, w]], maps.device())?;
                self.classified(shares.means(maps)?, shares.means(&outputs[CLASSES])?)
            }
        }
    }

    /// As `classify`, in parts of bounded memory, for inference.
    pub fn classify_in_parts(
        &self,
        map: &Tensor,
        regions: &Regioned,
        mut run: impl FnMut(&Tensor) -> Result<Outputs>,
    ) -> Result<Classified> {
        let Regions::Crops { side } = self.regions else { return self.classify(map, regions, run) };
        let budget = if map.device() == Device::Cpu { CROPS_CPU } else { CROPS_GPU };
        let crop = (map.size()[1] * side * side) as usize * size_of::<f32>();
        let rows = (budget / crop).max(1);
        let pictures = regions.pictures();
        let (mut boxes, mut classes) = (Vec::new(), Vec::new());
        for (part, of) in regions.boxes.chunks(rows).zip(pictures.chunks(rows)) {
            let outputs = run(&crop_and_resize(map, part, of, [side; 2])?)?;
            boxes.push(outputs[BOXES].shallow_clone());
            classes.push(outputs[CLASSES].shallow_clone());
        }
        ensure!(!boxes.is_empty(), "there is no proposal to classify");
        self.classified(Tensor::f_cat(&boxes, 0)?, Tensor::f_cat(&classes, 0)?)
    }

    /// * `boxes`: `[R, K * 4]`; `classes`: `[R, K + 1]`.
    fn classified(&self, boxes: Tensor, classes: Tensor) -> Result<Classified> {
        let refined_box_encodings = boxes.f_reshape([-1, self.num_classes as i64, 4])?; // [R, K, 4]
        Ok(Classified { refined_box_encodings, class_predictions: classes })
    }

    /// The losses of a batch.
    pub fn loss(&self, classified: &Classified, regions: &Regioned, groundtruth_px: &[Groundtruth]) -> Result<BoxClassifierLoss> {
        let device = classified.class_predictions.device();
        let n = groundtruth_px.len();
        let ranges = regions.ranges();
        let targets: Vec<Targets> = groundtruth_px
            .par_iter()
            .zip(&ranges)
            .map(|(g, rows)| assign(&MATCHER, &self.coder, &regions.boxes_px[rows.clone()], g, 1.0))
            .collect();
        let r = regions.boxes.len() as i64;
        let rows = |row: fn(&Targets) -> &[f32], shape: &[i64]| -> Result<Tensor> {
            let flat: Vec<f32> = targets.iter().flat_map(|t| row(t).iter().copied()).collect();
            Ok(Tensor::from_slice(&flat).f_view(shape)?.f_to_device(device)?)
        };
        let classes: Vec<i64> = targets.iter().flat_map(|t| t.classes.iter().copied()).collect();
        // Each picture's proposals weigh the same, however many.
        let normalizer: Vec<f32> =
            regions.counts.iter().flat_map(|&count| std::iter::repeat_n(count as f32 * n as f32, count)).collect();
        let normalizer = Tensor::from_slice(&normalizer).f_view([1, r])?.f_to_device(device)?;

        // Of each proposal the box of its target class; background has none, and weighs nothing.
        let own: Vec<i64> = classes.iter().map(|&c| (c - 1).max(0)).collect();
        let own = Tensor::from_slice(&own).f_view([r, 1, 1])?.f_expand([r, 1, 4], false)?.f_to_device(device)?;
        let boxes = classified.refined_box_encodings.f_gather(1, &own, false)?.f_view([1, r, 4])?;
        let mut localization = LocalizationLoss::SmoothL1 { delta: 1.0 }.per_anchor(
            &boxes,
            &rows(|t| &t.codes, &[1, r, 4])?,
            &rows(|t| &t.box_weights, &[1, r])?,
        )? / &normalizer; // [1, R]
        let classes = Tensor::from_slice(&classes).f_view([1, r])?.f_to_device(device)?;
        let mut classification = self.classification.per_anchor(
            &classified.class_predictions.f_unsqueeze(0)?,
            &classes,
            &rows(|t| &t.class_weights, &[1, r])?,
        )? / &normalizer; // [1, R]
        if let Some(miner) = &self.miner {
            let mask = self.mine(miner, regions, &ranges, &localization, &classification)?;
            let mask = Tensor::from_slice(&mask).f_view([1, r])?.f_to_device(device)?;
            localization = localization.f_mul(&mask)?;
            classification = classification.f_mul(&mask)?;
        }
        Ok(BoxClassifierLoss {
            localization: localization.f_sum(localization.kind())? * self.localization_weight,
            classification: classification.f_sum(classification.kind())? * self.classification_weight,
            targets,
        })
    }

    /// 1 for each proposal that counts. `[R]`
    fn mine(
        &self,
        miner: &HardExampleMiner,
        regions: &Regioned,
        ranges: &[std::ops::Range<usize>],
        localization: &Tensor,
        classification: &Tensor,
    ) -> Result<Vec<f32>> {
        let rank = tch::no_grad(|| match miner.rank_by {
            RankBy::Classification => classification.shallow_clone(),
            RankBy::Localization => localization.shallow_clone(),
            RankBy::Both => classification * self.classification_weight + localization * self.localization_weight,
        });
        let losses = host_values(&rank)?;
        let mut mask = vec![0f32; losses.len()];
        for rows in ranges {
            // Upstream hands no matches to the miner here: negatives are not counted against positives.
            let matches = vec![Match::Ignored; rows.len()];
            let mined = miner.mine(&regions.boxes_px[rows.clone()], &losses[rows.clone()], &matches);
            mined.selected.iter().for_each(|&i| mask[rows.start + i] = 1.0);
        }
        Ok(mask)
    }

    /// Decodes, scores and selects: a picture each.
    pub fn postprocess(&self, classified: &Classified, regions: &Regioned) -> Result<Vec<Detections>> {
        let scores = self.converter.convert(&classified.class_predictions)?.f_slice(1, 1, i64::MAX, 1)?; // [R, K]
        let (scores, codes) = (host_values(&scores)?, host_values(&classified.refined_box_encodings)?);
        let windows = regions.frame.windows_px();
        let k = self.num_classes;
        Ok(regions
            .ranges()
            .into_par_iter()
            .zip(&windows)
            .map(|(rows, window)| {
                let own = [1.0 / window[2], 1.0 / window[3]];
                let boxes: Vec<BBox> = rows
                    .clone()
                    .flat_map(|r| (0..k).map(move |class| (r, class)))
                    .map(|(r, class)| {
                        let at = (r * k + class) * 4;
                        let decoded = self.coder.decode(&codes[at..at + 4], &regions.boxes_px[r]);
                        // Suppression is done on normalized boxes, as upstream does it.
                        scale(&clip(&decoded, window), own)
                    })
                    .collect();
                multiclass(ClassBoxes::Own(&boxes), &scores[rows.start * k..rows.end * k], k, &self.nms)
            })
            .collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_ends_on_the_edge_move_off_it_each_its_own_way() {
        let frame = Frame::whole([100, 200], 1);
        let regions = Regioned::new([[[0.0, 0.0, 100.0, 50.0], [20.0, 30.0, 60.0, 200.0]].as_slice()], &frame);
        let mut asked = Vec::new();
        let moved = regions.off_the_edge(|side| {
            asked.push(side);
            side == 0
        });
        assert_eq!(asked, [0, 1]);
        assert!(moved.boxes[0][2] < 1.0 && moved.boxes[1][3] > 1.0, "{:?}", moved.boxes);
        assert!((moved.boxes[0][2] - 1.0).abs() < 1e-5 && (moved.boxes[1][3] - 1.0).abs() < 1e-5);
        let others = |boxes: &[BBox]| [boxes[0][0], boxes[0][1], boxes[0][3], boxes[1][0], boxes[1][1], boxes[1][2]];
        assert_eq!(others(&moved.boxes), others(&regions.boxes));
        assert_eq!(moved.boxes_px, regions.boxes_px);
    }
}
