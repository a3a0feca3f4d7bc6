//! SSD (Liu et al., arXiv:1512.02325; upstream meta_architectures/ssd_meta_arch.py): every anchor of every feature map predicts a box and
//! a class at once.

use std::sync::Arc;

use anyhow::{Result, bail};
use rayon::prelude::*;
use tch::Tensor;

use super::box_predictor::Predicted;
use super::detection_model::{DetectionModel, Frozen, Losses, StepContext};
use super::pictures::{Frame, Pictures};
use super::post_processing::ScoreConverter;
use super::ssd_config;
use crate::data::resizer::Resizer;
use crate::detection::anchors::SsdAnchors;
use crate::detection::box_coder::BoxCoder;
use crate::detection::boxes::{BBox, Detections, Groundtruth, clip, scale};
use crate::detection::hard_example_miner::{HardExampleMiner, Mined, RankBy};
use crate::detection::losses::{ClassificationLoss, LocalizationLoss};
use crate::detection::matcher::Matcher;
use crate::detection::nms::{ClassBoxes, NmsOptions, multiclass};
use crate::detection::target_assigner::{Targets, assign};
use crate::net::exec::{self, Inference, Outputs};
use crate::net::graph::{Graph, NodeId, Variable};
use crate::net::host::host_values;
use crate::net::variables::Variables;
use crate::proto::object_detection::protos as pb;

/// An SSD without its variables.
#[derive(Debug, Clone)]
pub struct Ssd {
    num_classes: usize,
    resizer: Resizer,
    graph: Arc<Graph>,
    feature_maps: Vec<NodeId>,
    predictors: Vec<Predicted>,
    per_cell: Vec<usize>,
    shapes: SsdAnchors,
    /// Where all pictures have the same size; otherwise none.
    anchors: Vec<BBox>,
    coder: BoxCoder,
    matcher: Matcher,
    loss: LossOptions,
    nms: NmsOptions,
    converter: ScoreConverter,
}

/// How the losses are computed, selected and weighted.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LossOptions {
    pub localization: LocalizationLoss,
    pub classification: ClassificationLoss,
    pub miner: Option<HardExampleMiner>,
    pub localization_weight: f64,
    pub classification_weight: f64,
    /// Divide by the matches of the whole batch.
    pub normalize_by_matches: bool,
    /// Divide the localization loss by 4 as well.
    pub normalize_by_code_size: bool,
    /// Of anchors that match nothing.
    pub negative_class_weight: f32,
    /// The class target of such an anchor is a row of zeros, with no column for the background.
    pub background_as_zeros: bool,
}

/// What the network says of a batch.
#[derive(Debug)]
pub struct Predictions {
    /// `[N, A, 4]`.
    pub box_encodings: Tensor,
    /// Logits, background first: `[N, A, K + 1]`.
    pub class_predictions_with_background: Tensor,
    /// Normalized to the batch's pictures, padding included. `[A]`
    pub anchors: Vec<BBox>,
    /// The pictures' sizes.
    pub frame: Frame,
}

/// What the loss was made from; kept for tests and diagnosis.
#[derive(Debug)]
pub struct LossRecord {
    pub localization: Tensor,
    pub classification: Tensor,
    /// A picture each.
    pub targets: Vec<Targets>,
    /// A picture each; empty without a miner.
    pub mined: Vec<Mined>,
}

impl Ssd {
    /// # Errors
    /// If the message sets a part that is not built, named by its field.
    pub fn from_config(config: &pb::Ssd) -> Result<Self> {
        let resizer = ssd_config::resizer(config)?;
        let input_size = resizer.fixed_size();
        let shapes = ssd_config::anchors(config)?;
        let per_cell = shapes.per_cell();
        let mut graph = Graph::new();
        let image = graph.input("Preprocessor/sub", resizer.channels() as i64);
        let maps = ssd_config::append_feature_extractor(&mut graph, image, config, input_size)?;
        if maps.len() != per_cell.len() {
            bail!(
                "model.ssd.anchor_generator.ssd_anchor_generator.num_layers: {} does not fit the feature extractor's {} feature maps",
                per_cell.len(),
                maps.len()
            );
        }
        let predictors = ssd_config::append_box_predictor(&mut graph, config, &maps, &per_cell)?;
        for (i, predicted) in predictors.iter().enumerate() {
            graph.output(&format!("box_encodings_{i}"), predicted.boxes);
            graph.output(&format!("class_predictions_{i}"), predicted.classes);
        }
        let grids = input_size.map_or_else(Vec::new, |picture| {
            let sizes = graph.sizes(picture.map(|side| side as i64));
            maps.iter().map(|m| sizes[m.0]).collect::<Vec<[i64; 2]>>()
        });
        if let Some(small) = grids.iter().flatten().position(|side| *side < 1) {
            bail!("model.ssd.image_resizer: pictures of {input_size:?} are too small: feature map {} has no cells", small / 2);
        }
        let anchors = input_size.map_or_else(Vec::new, |picture| shapes.generate(&grids, picture));
        let (nms, converter) = ssd_config::post_processing(config)?;
        Ok(Self {
            num_classes: ssd_config::num_classes(config)?,
            resizer,
            feature_maps: maps,
            predictors,
            shapes,
            anchors,
            per_cell,
            coder: ssd_config::box_coder(config)?,
            matcher: ssd_config::matcher(config)?,
            loss: ssd_config::loss(config)?,
            nms,
            converter,
            graph: Arc::new(graph),
        })
    }

    /// `[height, width]` that pictures are resized to, padding included, where all get the same.
    pub fn input_size(&self) -> Option<[usize; 2]> {
        self.resizer.fixed_size()
    }

    /// The network.
    pub fn graph(&self) -> &Arc<Graph> {
        &self.graph
    }

    /// Normalized anchors of pictures of [`input_size`](Self::input_size), in the order of the predictions; none where sizes vary. `[A]`.
    pub fn anchors(&self) -> &[BBox] {
        &self.anchors
    }

    /// What anchors are made from.
    pub fn shapes(&self) -> &SsdAnchors {
        &self.shapes
    }

    /// The nodes that are predicted from; for tests, as nothing else wants to see their values.
    pub fn feature_maps(&self) -> &[NodeId] {
        &self.feature_maps
    }

    /// The nodes that predict, a feature map.
    pub fn predictors(&self) -> &[Predicted] {
        &self.predictors
    }

    /// The box coder.
    pub fn coder(&self) -> &BoxCoder {
        &self.coder
    }

    /// How detections are selected.
    pub fn nms(&self) -> &NmsOptions {
        &self.nms
    }

    /// How logits become scores.
    pub fn converter(&self) -> ScoreConverter {
        self.converter
    }

    /// From `[N, H, W, C]` in 0..255 to `[N, C, H, W]` in [-1, 1], in channels-last memory order.
    pub fn preprocess(images: &Tensor) -> Result<Tensor> {
        Ok(images.f_permute([0i64, 3, 1, 2])?.f_mul_scalar(2.0 / 255.0)?.f_sub_scalar(1.0)?)
    }

    /// Collects the predictors' maps into rows of anchors.
    pub fn gather(&self, outputs: &Outputs, frame: &Frame) -> Result<Predictions> {
        let rows = |kind: &str, columns: i64| -> Result<Tensor> {
            let maps: Vec<Tensor> = (0..self.per_cell.len())
                .map(|i| {
                    let map = &outputs[&format!("{kind}_{i}")]; // [N, per_cell * columns, H, W]
                    Ok(map.f_permute([0i64, 2, 3, 1])?.f_reshape([map.size()[0], -1, columns])?) // [N, H * W * per_cell, columns]
                })
                .collect::<Result<_>>()?;
            Ok(Tensor::f_cat(&maps, 1)?) // [N, A, columns]
        };
        let anchors = if self.input_size() == Some(frame.px) {
            self.anchors.clone()
        } else {
            let size = |i: usize| outputs[&format!("box_encodings_{i}")].size();
            let grids: Vec<[i64; 2]> = (0..self.per_cell.len()).map(|i| [size(i)[2], size(i)[3]]).collect();
            self.shapes.generate(&grids, frame.px)
        };
        Ok(Predictions {
            anchors,
            frame: frame.clone(),
            box_encodings: rows("box_encodings", 4)?,
            class_predictions_with_background: rows("class_predictions", self.num_classes as i64 + 1)?,
        })
    }

    /// Localization and classification loss of a batch, weighted and normalized.
    ///
    /// * `groundtruth`: normalized to each picture without padding.
    pub fn loss(&self, predictions: &Predictions, groundtruth: &[Groundtruth]) -> Result<LossRecord> {
        let (kind, device) = (predictions.box_encodings.kind(), predictions.box_encodings.device());
        let anchors = &predictions.anchors;
        let [n, a] = [groundtruth.len() as i64, anchors.len() as i64];
        let options = &self.loss;
        let groundtruth = predictions.frame.framed(groundtruth);
        let targets: Vec<Targets> = groundtruth
            .par_iter()
            .map(|g| assign(&self.matcher, &self.coder, anchors, g, options.negative_class_weight))
            .collect();
        let stack = |row: fn(&Targets) -> &[f32], shape: &[i64]| -> Result<Tensor> {
            let flat: Vec<f32> = targets.iter().flat_map(|t| row(t).iter().copied()).collect();
            Ok(Tensor::from_slice(&flat).f_view(shape)?.f_to_device(device)?.f_to_kind(kind)?)
        };
        let codes = stack(|t| &t.codes, &[n, a, 4])?;
        let box_weights = stack(|t| &t.box_weights, &[n, a])?;
        let class_weights = stack(|t| &t.class_weights, &[n, a])?;
        let column = |class: i64| if class == 0 && options.background_as_zeros { -1 } else { class };
        let classes: Vec<i64> = targets.iter().flat_map(|t| t.classes.iter().map(|&c| column(c))).collect();
        let classes = Tensor::from_slice(&classes).f_view([n, a])?.f_to_device(device)?;

        let mut localization = options.localization.per_anchor(&predictions.box_encodings, &codes, &box_weights)?; // [N, A]
        let mut classification =
            options.classification.per_anchor(&predictions.class_predictions_with_background, &classes, &class_weights)?; // [N, A]
        let mut mined = Vec::new();
        if let Some(miner) = &options.miner {
            mined = self.mine(miner, predictions, &localization, &classification, &targets)?;
            let mut mask = vec![0f32; (n * a) as usize];
            for (i, m) in mined.iter().enumerate() {
                m.selected.iter().for_each(|&s| mask[i * a as usize + s] = 1.0);
            }
            let mask = Tensor::from_slice(&mask).f_view([n, a])?.f_to_device(device)?.f_to_kind(kind)?;
            localization = localization.f_mul(&mask)?;
            classification = classification.f_mul(&mask)?;
        }
        let matched: usize = targets.iter().map(Targets::num_matched).sum();
        let normalizer = if options.normalize_by_matches { (matched as f64).max(1.0) } else { 1.0 };
        let code_size = if options.normalize_by_code_size { 4.0 } else { 1.0 };
        Ok(LossRecord {
            localization: localization.f_sum(localization.kind())? * (options.localization_weight / (normalizer * code_size)),
            classification: classification.f_sum(classification.kind())? * (options.classification_weight / normalizer),
            targets,
            mined,
        })
    }

    /// Ranks the anchors on the CPU: a GPU waits here.
    fn mine(
        &self,
        miner: &HardExampleMiner,
        predictions: &Predictions,
        localization: &Tensor,
        classification: &Tensor,
        targets: &[Targets],
    ) -> Result<Vec<Mined>> {
        let rank = tch::no_grad(|| match miner.rank_by {
            RankBy::Classification => classification.f_detach(),
            RankBy::Localization => localization.f_detach(),
            RankBy::Both => Ok(classification * self.loss.classification_weight + localization * self.loss.localization_weight),
        })?;
        let losses = host_values(&rank)?;
        let codes = host_values(&predictions.box_encodings)?;
        let anchors = &predictions.anchors;
        let a = anchors.len();
        Ok(targets
            .par_iter()
            .enumerate()
            .map(|(i, t)| {
                let boxes = self.decode(&codes[i * a * 4..(i + 1) * a * 4], anchors);
                miner.mine(&boxes, &losses[i * a..(i + 1) * a], &t.matches)
            })
            .collect())
    }

    fn decode(&self, codes: &[f32], anchors: &[BBox]) -> Vec<BBox> {
        codes.chunks_exact(4).zip(anchors).map(|(code, anchor)| self.coder.decode(code, anchor)).collect()
    }

    /// Decodes, scores and selects.
    pub fn postprocess(&self, predictions: &Predictions) -> Result<Vec<Detections>> {
        let scores = self.converter.convert(&predictions.class_predictions_with_background)?;
        let scores = scores.f_slice(2, 1, i64::MAX, 1)?; // [N, A, K]
        let scores = host_values(&scores)?;
        let codes = host_values(&predictions.box_encodings)?;
        let anchors = &predictions.anchors;
        let (a, k) = (anchors.len(), self.num_classes);
        Ok(predictions
            .frame
            .windows()
            .into_par_iter()
            .enumerate()
            .map(|(i, window)| {
                let boxes = self.decode(&codes[i * a * 4..(i + 1) * a * 4], anchors);
                // Suppression is done on boxes normalized to the picture without padding, as upstream does it.
                let own = [1.0 / window[2], 1.0 / window[3]];
                let boxes: Vec<BBox> = boxes.iter().map(|b| scale(&clip(b, &window), own)).collect();
                multiclass(ClassBoxes::Shared(&boxes), &scores[i * a * k..(i + 1) * a * k], k, &self.nms)
            })
            .collect())
    }
}

impl DetectionModel for Ssd {
    fn num_classes(&self) -> usize {
        self.num_classes
    }

    fn variables(&self) -> &[Variable] {
        self.graph.variables()
    }

    fn resizer(&self) -> Resizer {
        self.resizer
    }

    fn feature_extractor_scopes(&self) -> &'static [&'static str] {
        &["FeatureExtractor/"]
    }

    fn losses(
        &self,
        variables: &Variables,
        pictures: &Pictures,
        groundtruth: &[Groundtruth],
        context: &mut StepContext,
    ) -> Result<Losses> {
        let pass = exec::train(&self.graph, variables, &Self::preprocess(&pictures.pixels)?, context.step)?;
        let record = self.loss(&self.gather(&pass.outputs, &pictures.frame)?, groundtruth)?;
        Ok(Losses {
            terms: vec![("Loss/localization_loss", record.localization), ("Loss/classification_loss", record.classification)],
            moving: pass.moving,
        })
    }

    fn freeze(&self, variables: &Variables) -> Result<Box<dyn Frozen>> {
        Ok(Box::new(FrozenSsd { ssd: self.clone(), network: Inference::new(&self.graph, variables)? }))
    }
}

/// An SSD ready for inference.
#[derive(Debug)]
struct FrozenSsd {
    ssd: Ssd,
    network: Inference,
}

impl Frozen for FrozenSsd {
    fn detect(&self, pictures: &Pictures) -> Result<Vec<Detections>> {
        tch::no_grad(|| {
            let outputs = self.network.run(&Ssd::preprocess(&pictures.pixels)?)?;
            self.ssd.postprocess(&self.ssd.gather(&outputs, &pictures.frame)?)
        })
    }
}
