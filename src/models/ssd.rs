//! SSD (Liu et al., arXiv:1512.02325; upstream meta_architectures/ssd_meta_arch.py): every anchor of every feature map predicts a box and
//! a class at once.

use std::sync::Arc;

use anyhow::{Result, bail};
use rayon::prelude::*;
use tch::{Kind, Tensor};

use super::box_predictor::Predicted;
use super::post_processing::{ScoreConverter, host_values};
use super::{DetectionModel, Frozen, Losses, StepContext, ssd_config};
use crate::data::resize::Resizer;
use crate::detection::box_coder::BoxCoder;
use crate::detection::boxes::{BBox, Detections, Groundtruth};
use crate::detection::hard_example_miner::{HardExampleMiner, Mined, RankBy};
use crate::detection::losses::{ClassificationLoss, LocalizationLoss};
use crate::detection::matcher::Matcher;
use crate::detection::nms::{NmsOptions, multiclass};
use crate::detection::target_assigner::{Targets, assign};
use crate::net::exec::{self, Inference, Outputs};
use crate::net::graph::{Graph, Variable};
use crate::net::variables::Variables;
use crate::proto::object_detection::protos as pb;

/// The picture, in normalized coordinates.
const WINDOW: BBox = [0.0, 0.0, 1.0, 1.0];

/// An SSD without its variables.
#[derive(Debug, Clone)]
pub struct Ssd {
    num_classes: usize,
    input_size: [usize; 2],
    graph: Arc<Graph>,
    predictors: Vec<Predicted>,
    per_cell: Vec<usize>,
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
        let input_size = ssd_config::input_size(config)?;
        let shapes = ssd_config::anchors(config, input_size)?;
        let per_cell = shapes.per_cell();
        let mut graph = Graph::new();
        let image = graph.input("Preprocessor/sub", 3);
        let maps = ssd_config::append_feature_extractor(&mut graph, image, config, input_size)?;
        if maps.len() != per_cell.len() {
            bail!(
                "model.ssd.anchor_generator.ssd_anchor_generator.num_layers: {} does not fit the feature extractor's {} feature maps",
                per_cell.len(),
                maps.len()
            );
        }
        let predictors = ssd_config::append_box_predictor(&mut graph, config, &maps, &per_cell)?;
        for (i, (map, predicted)) in maps.iter().zip(&predictors).enumerate() {
            graph.output(&format!("feature_map_{i}"), *map);
            graph.output(&format!("box_encodings_{i}"), predicted.boxes);
            graph.output(&format!("class_predictions_{i}"), predicted.classes);
        }
        let sizes = graph.sizes(input_size.map(|side| side as i64));
        let grids: Vec<[i64; 2]> = maps.iter().map(|m| sizes[m.0]).collect();
        let (nms, converter) = ssd_config::post_processing(config)?;
        Ok(Self {
            num_classes: ssd_config::num_classes(config)?,
            input_size,
            predictors,
            anchors: shapes.generate(&grids, input_size),
            per_cell,
            coder: ssd_config::box_coder(config)?,
            matcher: ssd_config::matcher(config)?,
            loss: ssd_config::loss(config)?,
            nms,
            converter,
            graph: Arc::new(graph),
        })
    }

    /// `[height, width]` that pictures are resized to.
    pub fn input_size(&self) -> [usize; 2] {
        self.input_size
    }

    /// The network.
    pub fn graph(&self) -> &Arc<Graph> {
        &self.graph
    }

    /// Normalized anchors, in the order of the predictions. `[A]`.
    pub fn anchors(&self) -> &[BBox] {
        &self.anchors
    }

    /// Anchors of a cell, a feature map.
    pub fn per_cell(&self) -> &[usize] {
        &self.per_cell
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

    /// From `[N, H, W, 3]` in 0..255 to `[N, 3, H, W]` in [-1, 1], in channels-last memory order.
    pub fn preprocess(images: &Tensor) -> Result<Tensor> {
        Ok((images.f_permute([0i64, 3, 1, 2])? * (2.0 / 255.0)).f_sub_scalar(1.0)?)
    }

    /// Collects the predictors' maps into rows of anchors.
    pub fn gather(&self, outputs: &Outputs) -> Result<Predictions> {
        let rows = |kind: &str, columns: i64| -> Result<Tensor> {
            let maps: Vec<Tensor> = (0..self.per_cell.len())
                .map(|i| {
                    let map = &outputs[&format!("{kind}_{i}")]; // [N, per_cell * columns, H, W]
                    Ok(map.f_permute([0i64, 2, 3, 1])?.f_reshape([map.size()[0], -1, columns])?) // [N, H * W * per_cell, columns]
                })
                .collect::<Result<_>>()?;
            Ok(Tensor::f_cat(&maps, 1)?) // [N, A, columns]
        };
        Ok(Predictions {
            box_encodings: rows("box_encodings", 4)?,
            class_predictions_with_background: rows("class_predictions", self.num_classes as i64 + 1)?,
        })
    }

    /// Localization and classification loss of a batch, weighted and normalized.
    pub fn loss(&self, predictions: &Predictions, groundtruth: &[Groundtruth]) -> Result<LossRecord> {
        let device = predictions.box_encodings.device();
        let [n, a] = [groundtruth.len() as i64, self.anchors.len() as i64];
        let options = &self.loss;
        let targets: Vec<Targets> = groundtruth
            .par_iter()
            .map(|g| assign(&self.matcher, &self.coder, &self.anchors, g, options.negative_class_weight))
            .collect();
        let stack = |row: fn(&Targets) -> &[f32], shape: &[i64]| -> Result<Tensor> {
            let flat: Vec<f32> = targets.iter().flat_map(|t| row(t).iter().copied()).collect();
            Ok(Tensor::from_slice(&flat).f_view(shape)?.f_to_device(device)?)
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
            let mask = Tensor::from_slice(&mask).f_view([n, a])?.f_to_device(device)?;
            localization = localization.f_mul(&mask)?;
            classification = classification.f_mul(&mask)?;
        }
        let matched: usize = targets.iter().map(Targets::num_matched).sum();
        let normalizer = if options.normalize_by_matches { (matched as f64).max(1.0) } else { 1.0 };
        let code_size = if options.normalize_by_code_size { 4.0 } else { 1.0 };
        Ok(LossRecord {
            localization: localization.f_sum(Kind::Float)? * (options.localization_weight / (normalizer * code_size)),
            classification: classification.f_sum(Kind::Float)? * (options.classification_weight / normalizer),
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
        let a = self.anchors.len();
        Ok(targets
            .par_iter()
            .enumerate()
            .map(|(i, t)| {
                let boxes = self.decode(&codes[i * a * 4..(i + 1) * a * 4]);
                miner.mine(&boxes, &losses[i * a..(i + 1) * a], &t.matches)
            })
            .collect())
    }

    fn decode(&self, codes: &[f32]) -> Vec<BBox> {
        codes.chunks_exact(4).zip(&self.anchors).map(|(code, anchor)| self.coder.decode(code, anchor)).collect()
    }

    /// Decodes, scores and selects.
    pub fn postprocess(&self, predictions: &Predictions) -> Result<Vec<Detections>> {
        let scores = self.converter.convert(&predictions.class_predictions_with_background)?;
        let scores = scores.f_slice(2, 1, i64::MAX, 1)?; // [N, A, K]
        let n = scores.size()[0] as usize;
        let scores = host_values(&scores)?;
        let codes = host_values(&predictions.box_encodings)?;
        let (a, k) = (self.anchors.len(), self.num_classes);
        Ok((0..n)
            .into_par_iter()
            .map(|i| {
                let boxes = self.decode(&codes[i * a * 4..(i + 1) * a * 4]);
                multiclass(&boxes, &scores[i * a * k..(i + 1) * a * k], k, &WINDOW, &self.nms)
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
        let [height, width] = self.input_size;
        Resizer::FixedShape { height, width }
    }

    fn feature_extractor_scopes(&self) -> &'static [&'static str] {
        &["FeatureExtractor/"]
    }

    fn losses(
        &self,
        variables: &Variables,
        images: &Tensor,
        groundtruth: &[Groundtruth],
        context: &mut StepContext,
    ) -> Result<Losses> {
        let pass = exec::train(&self.graph, variables, &Self::preprocess(images)?, context.step)?;
        let record = self.loss(&self.gather(&pass.outputs)?, groundtruth)?;
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
    fn detect(&self, images: &Tensor) -> Result<Vec<Detections>> {
        tch::no_grad(|| {
            let outputs = self.network.run(&Ssd::preprocess(images)?)?;
            self.ssd.postprocess(&self.ssd.gather(&outputs)?)
        })
    }
}
