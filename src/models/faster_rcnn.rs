//! Faster R-CNN (Ren et al., arXiv:1506.01497) and R-FCN (Dai et al., arXiv:1605.06409; upstream
//! meta_architectures/faster_rcnn_meta_arch.py, rfcn_meta_arch.py): proposals from a map of the picture, then a look at each.

use std::sync::{Arc, Once};

use anyhow::{Result, ensure};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tch::{Kind, Tensor};

use super::box_classifier::{BoxClassifier, BoxClassifierLoss, Classified, Regioned};
use super::detection_model::{DetectionModel, Frozen, Losses, StepContext};
use super::faster_rcnn_config;
use super::pictures::Pictures;
use super::rpn::{FirstStage, Phase, Rpn, RpnLoss};
use crate::backbones::faster_rcnn::{Pixels, RESTORED_SCOPES};
use crate::data::resizer::Resizer;
use crate::detection::boxes::{Detections, Groundtruth};
use crate::net::exec::{self, Inference, MovingUpdate};
use crate::net::graph::{Graph, NodeId, Variable};
use crate::net::variables::Variables;
use crate::proto::object_detection::protos as pb;

/// How often [`Frozen::rounded_otherwise`] moves each proposal its own way, with exact scores and again with rounded ones: enough for two that
/// compete to be seen in every way.
const MIXED: usize = 12;
/// How far one runtime's objectness is from another's, as a share of the largest.
const ROUNDING: f64 = 2e-6;

/// A Faster R-CNN or R-FCN without its variables.
#[derive(Debug, Clone)]
pub struct FasterRcnn {
    pub(super) resizer: Resizer,
    pub(super) pixels: Pixels,
    /// [`crate::backbones::faster_rcnn::FasterRcnnBackbone::classification_name`].
    pub(super) classification_name: fn(&str, &str) -> String,
    /// From the preprocessed picture to `map`, `box_encodings` and `objectness`.
    pub(super) first: Arc<Graph>,
    /// The map that the proposal network's predictors read.
    pub(super) rpn_features: NodeId,
    pub(super) rpn: Rpn,
    pub(super) classifier: BoxClassifier,
    /// Of both graphs.
    pub(super) variables: Vec<Variable>,
}

/// A training pass: the losses, and what they were made from.
#[derive(Debug)]
pub struct Pass {
    pub first: FirstStage,
    pub regions: Regioned,
    /// None where there is no proposal.
    pub classified: Option<Classified>,
    pub rpn_loss: RpnLoss,
    pub classifier_loss: Option<BoxClassifierLoss>,
    pub moving: Vec<MovingUpdate>,
}

impl FasterRcnn {
    /// # Errors
    /// If the message sets a part that is not built, named by its field.
    pub fn from_config(config: &pb::FasterRcnn) -> Result<Self> {
        faster_rcnn_config::build(config)
    }

    /// What happens to a resized pixel.
    pub fn pixels(&self) -> Pixels {
        self.pixels
    }

    /// The first stage's network.
    pub fn first_graph(&self) -> &Arc<Graph> {
        &self.first
    }

    /// The node of the map that the proposal network's predictors read.
    pub fn rpn_features(&self) -> NodeId {
        self.rpn_features
    }

    /// The proposal network.
    pub fn rpn(&self) -> &Rpn {
        &self.rpn
    }

    /// The second stage.
    pub fn classifier(&self) -> &BoxClassifier {
        &self.classifier
    }

    /// From `[N, H, W, C]` in 0..255 to `[N, C, H, W]` as the backbone wants it, in channels-last memory order.
    pub fn preprocess(&self, images: &Tensor) -> Result<Tensor> {
        let shift = Tensor::from_slice(&self.pixels.shift[..self.resizer.channels()]);
        let shift = shift.f_view([1, -1, 1, 1])?.f_to_device(images.device())?;
        let scaled = images.f_permute([0i64, 3, 1, 2])?.f_mul_scalar(self.pixels.scale)?;
        Ok(scaled.f_add(&shift)?)
    }

    /// Says, once, that a picture has no anchor and so no losses, where upstream ends.
    ///
    /// # Errors
    /// If no picture can have one.
    fn tell_of_no_anchor(&self) -> Result<()> {
        static TOLD: Once = Once::new();
        let [height, width] = self.resizer.largest();
        let field = "model.faster_rcnn.first_stage_anchor_generator";
        ensure!(
            self.rpn.anchors.fit_into([height as f32, width as f32]),
            "{field}: even the smallest anchor is larger than a picture of {height} x {width} pixels, which is all that image_resizer gives, and \
             a training takes only those that lie inside: make them smaller, or set model.faster_rcnn.clip_anchors_to_image: true"
        );
        TOLD.call_once(|| {
            tracing::warn!(
                "a picture is too narrow for any anchor of {field}, and teaches nothing; smaller anchors, or \
                 model.faster_rcnn.clip_anchors_to_image: true, would let it. This is not said again"
            );
        });
        Ok(())
    }

    /// One pass with gradients.
    ///
    /// * `pictures`, `groundtruth`: as [`DetectionModel::losses`] has them.
    pub fn train(
        &self,
        variables: &Variables,
        pictures: &Pictures,
        groundtruth: &[Groundtruth],
        context: &mut StepContext,
    ) -> Result<Pass> {
        let frame = &pictures.frame;
        let groundtruth_px = frame.in_pixels(groundtruth);
        let pass = exec::train(&self.first, variables, &self.preprocess(&pictures.pixels)?, context.step)?;
        let mut moving = pass.moving;
        let first = self.rpn.gather(&pass.outputs, frame, Phase::Training)?;
        if first.anchors_px.is_empty() {
            self.tell_of_no_anchor()?;
        }
        let proposals = self.rpn.proposals(&first)?;
        let sampled = self.classifier.sample(&proposals, &groundtruth_px, &mut context.shuffle);
        let regions = Regioned::new(sampled.iter().map(Vec::as_slice), frame);
        let (mut classified, mut classifier_loss) = (None, None);
        if !regions.boxes.is_empty() {
            let second = self.classifier.classify(&first.map, &regions, |input| {
                let pass = exec::train(&self.classifier.graph, variables, input, context.step)?;
                moving.extend(pass.moving);
                Ok(pass.outputs)
            })?;
            classifier_loss = Some(self.classifier.loss(&second, &regions, &groundtruth_px)?);
            classified = Some(second);
        }
        let rpn_loss = self.rpn.loss(&first, &groundtruth_px, &mut context.shuffle)?;
        Ok(Pass { first, regions, classified, rpn_loss, classifier_loss, moving })
    }
}

impl DetectionModel for FasterRcnn {
    fn num_classes(&self) -> usize {
        self.classifier.num_classes
    }

    fn variables(&self) -> &[Variable] {
        &self.variables
    }

    fn resizer(&self) -> Resizer {
        self.resizer
    }

    fn feature_extractor_scopes(&self) -> &'static [&'static str] {
        RESTORED_SCOPES
    }

    fn classification_name(&self, scope: &str, name: &str) -> String {
        (self.classification_name)(scope, name)
    }

    fn losses(
        &self,
        variables: &Variables,
        pictures: &Pictures,
        groundtruth: &[Groundtruth],
        context: &mut StepContext,
    ) -> Result<Losses> {
        let pass = self.train(variables, pictures, groundtruth, context)?;
        let zero = || Tensor::f_zeros([0i64; 0], (Kind::Float, pictures.pixels.device()));
        let (localization, classification) = match pass.classifier_loss {
            Some(loss) => (loss.localization, loss.classification),
            None => (zero()?, zero()?),
        };
        Ok(Losses {
            terms: vec![
                ("Loss/RPNLoss/localization_loss", pass.rpn_loss.localization),
                ("Loss/RPNLoss/objectness_loss", pass.rpn_loss.objectness),
                ("Loss/BoxClassifierLoss/localization_loss", localization),
                ("Loss/BoxClassifierLoss/classification_loss", classification),
            ],
            moving: pass.moving,
        })
    }

    fn freeze(&self, variables: &Variables) -> Result<Box<dyn Frozen>> {
        Ok(Box::new(FrozenFasterRcnn {
            first: Inference::new(&self.first, variables)?,
            second: Inference::new(&self.classifier.graph, variables)?,
            model: self.clone(),
        }))
    }
}

/// A Faster R-CNN or R-FCN ready for inference.
#[derive(Debug)]
struct FrozenFasterRcnn {
    model: FasterRcnn,
    first: Inference,
    second: Inference,
}

impl Frozen for FrozenFasterRcnn {
    fn detect(&self, pictures: &Pictures) -> Result<Vec<Detections>> {
        tch::no_grad(|| {
            let first = self.first_stage(pictures)?;
            let regions = self.propose(&first)?;
            self.classify(&first, &regions)
        })
    }

    /// Proposals that end on the edge, moved off it all alike and each its own way; and the same with the anchors' scores rounded otherwise,
    /// which choose among equals where the picture is all of one colour.
    fn rounded_otherwise(&self, picture: &Pictures) -> Result<Vec<Detections>> {
        tch::no_grad(|| {
            let mut first = self.first_stage(picture)?;
            let mut found = Vec::new();
            let regions = self.propose(&first)?;
            if regions.boxes.is_empty() {
                return Ok(found);
            }
            for inside in [[true, true], [false, true], [true, false], [false, false]] {
                found.extend(self.classify(&first, &regions.off_the_edge(|side| inside[side]))?);
            }
            let mut random = ChaCha8Rng::seed_from_u64(0);
            let exact = first.objectness.shallow_clone();
            let largest = exact.f_abs()?.f_max()?.f_double_value(&[])?;
            for _ in 0..MIXED {
                found.extend(self.classify(&first, &regions.off_the_edge(|_| random.random()))?);
            }
            for _ in 0..MIXED {
                let noise: Vec<f32> = (0..exact.numel()).map(|_| random.random_range(-1.0..1.0)).collect();
                let noise = Tensor::from_slice(&noise).f_view(exact.size().as_slice())?.f_to_device(exact.device())?;
                first.objectness = exact.f_add(&noise.f_mul_scalar(ROUNDING * largest)?)?;
                let regions = self.propose(&first)?;
                found.extend(self.classify(&first, &regions.off_the_edge(|_| random.random()))?);
            }
            Ok(found)
        })
    }
}

impl FrozenFasterRcnn {
    fn first_stage(&self, pictures: &Pictures) -> Result<FirstStage> {
        let outputs = self.first.run(&self.model.preprocess(&pictures.pixels)?)?;
        self.model.rpn.gather(&outputs, &pictures.frame, Phase::Inference)
    }

    fn propose(&self, first: &FirstStage) -> Result<Regioned> {
        let proposals = self.model.rpn.proposals(first)?;
        Ok(Regioned::new(proposals.iter().map(Vec::as_slice), &first.frame))
    }

    fn classify(&self, first: &FirstStage, regions: &Regioned) -> Result<Vec<Detections>> {
        if regions.boxes.is_empty() {
            return Ok(vec![Detections::default(); regions.counts.len()]);
        }
        let classifier = &self.model.classifier;
        let classified = classifier.classify_in_parts(&first.map, regions, |input| self.second.run(input))?;
        classifier.postprocess(&classified, regions)
    }
}
