//! The message `Ssd` as the parts of an SSD, each refused by name where it is not built.

use anyhow::{Context, Result, bail, ensure};

use super::box_predictor::{ConvolutionalBoxPredictor, Predicted};
use super::config_values::positive;
use super::losses_config;
use super::post_processing::{self, ScoreConverter};
use super::ssd::LossOptions;
use crate::backbones::depth::Depth;
use crate::backbones::ssd::{self as backbones, SsdSettings};
use crate::data::resizer::Resizer;
use crate::detection::anchors::{SsdAnchorOptions, SsdAnchors};
use crate::detection::box_coder::BoxCoder;
use crate::detection::losses::{ClassificationLoss, LocalizationLoss};
use crate::detection::matcher::{ArgMaxMatcher, Matcher};
use crate::detection::nms::NmsOptions;
use crate::net::graph::{Graph, NodeId};
use crate::net::hyperparams::{Surroundings, conv_scope};
use crate::proto::object_detection::protos as pb;

/// What happens to pictures first.
pub fn resizer(config: &pb::Ssd) -> Result<Resizer> {
    Resizer::of_network(config.image_resizer.as_ref(), "model.ssd.image_resizer")
}

/// Appends backbone and feature maps: the maps, finest first.
///
/// * `input_size`: of the pictures, where all have the same.
pub fn append_feature_extractor(
    graph: &mut Graph,
    image: NodeId,
    config: &pb::Ssd,
    input_size: Option<[usize; 2]>,
) -> Result<Vec<NodeId>> {
    let field = "model.ssd.feature_extractor";
    let extractor = config.feature_extractor.as_ref().with_context(|| format!("{field} is not set"))?;
    let backbone = backbones::named(extractor.r#type()).with_context(|| format!("{field}.type"))?;
    let default = pb::Hyperparams::default();
    let hyperparams = extractor.conv_hyperparams.as_ref().unwrap_or(&default);
    let multiplier = f64::from(extractor.depth_multiplier());
    ensure!(multiplier > 0.0 && multiplier.is_finite(), "{field}.depth_multiplier: {multiplier} must be above 0");
    let surroundings = Surroundings { freeze_batch_norm: config.freeze_batchnorm(), moving: backbone.moving };
    let settings = SsdSettings {
        depth: Depth { multiplier, min: extractor.min_depth().into() },
        hyperparams: conv_scope(hyperparams, &format!("{field}.conv_hyperparams"), surroundings)?,
        override_base: extractor.override_base_feature_extractor_hyperparams(),
        train_batch_norm: !config.freeze_batchnorm(),
        use_depthwise: extractor.use_depthwise(),
        explicit_padding: extractor.use_explicit_padding(),
        pad_to_multiple: extractor.pad_to_multiple().into(),
    };
    let input_size = input_size.map(|size| size.map(|side| side as i64));
    backbones::append(graph, image, input_size, backbone, &settings).with_context(|| field.to_string())
}

/// Appends the box predictors of all maps.
pub fn append_box_predictor(graph: &mut Graph, config: &pb::Ssd, maps: &[NodeId], per_cell: &[usize]) -> Result<Vec<Predicted>> {
    use pb::box_predictor::BoxPredictorOneof as P;
    let predictor = config.box_predictor.as_ref().and_then(|p| p.box_predictor_oneof.as_ref());
    match predictor.context("model.ssd.box_predictor is not set")? {
        P::ConvolutionalBoxPredictor(convolutional) => {
            let predictor =
                ConvolutionalBoxPredictor::from_config(convolutional, num_classes(config)?, config.freeze_batchnorm())?;
            Ok(predictor.append(graph, maps, per_cell))
        }
        _ => bail!("model.ssd.box_predictor: only convolutional_box_predictor is supported for SSD"),
    }
}

/// Classes without background.
pub fn num_classes(config: &pb::Ssd) -> Result<usize> {
    positive("model.ssd.num_classes", config.num_classes())
}

/// The anchors' shapes.
pub fn anchors(config: &pb::Ssd) -> Result<SsdAnchors> {
    use pb::anchor_generator::AnchorGeneratorOneof as A;
    let generator = config.anchor_generator.as_ref().and_then(|a| a.anchor_generator_oneof.as_ref());
    let Some(A::SsdAnchorGenerator(a)) = generator else {
        bail!("model.ssd.anchor_generator: only ssd_anchor_generator is supported for SSD");
    };
    let field = "model.ssd.anchor_generator.ssd_anchor_generator";
    let num_layers = positive(&format!("{field}.num_layers"), a.num_layers())?;
    if !a.scales.is_empty() && a.scales.len() != num_layers {
        bail!("{field}.scales: {} are given for num_layers: {num_layers}", a.scales.len());
    }
    for (name, list) in [("scales", &a.scales), ("aspect_ratios", &a.aspect_ratios)] {
        ensure!(list.iter().all(|&value| value > 0.0 && value.is_finite()), "{field}.{name}: {list:?} must all be above 0");
    }
    for (name, list) in [("height_stride", &a.height_stride), ("width_stride", &a.width_stride)] {
        ensure!(list.iter().all(|&value| value > 0), "{field}.{name}: {list:?} must all be above 0");
    }
    let (least, most) = (a.min_scale(), a.max_scale());
    ensure!(!a.scales.is_empty() || least > 0.0 && most > 0.0, "{field}: min_scale {least} and max_scale {most} must be above 0");
    for (name, list) in [
        ("height_stride", &a.height_stride),
        ("width_stride", &a.width_stride),
        ("height_offset", &a.height_offset),
        ("width_offset", &a.width_offset),
    ] {
        if !list.is_empty() && list.len() != num_layers {
            bail!("{field}.{name}: {} are given for num_layers: {num_layers}", list.len());
        }
    }
    if a.height_stride.len() != a.width_stride.len() || a.height_offset.len() != a.width_offset.len() {
        bail!("{field}: height and width need strides (or offsets) together");
    }
    for (name, side) in [("base_anchor_height", a.base_anchor_height()), ("base_anchor_width", a.base_anchor_width())] {
        ensure!(side > 0.0 && side.is_finite(), "{field}.{name}: {side} must be above 0");
    }
    let options = SsdAnchorOptions {
        num_layers,
        min_scale: a.min_scale(),
        max_scale: a.max_scale(),
        scales: a.scales.clone(),
        // Upstream's builder passes an empty list on as it is: then only the interpolated anchors remain.
        aspect_ratios: a.aspect_ratios.clone(),
        interpolated_scale_aspect_ratio: a.interpolated_scale_aspect_ratio(),
        reduce_boxes_in_lowest_layer: a.reduce_boxes_in_lowest_layer(),
        base_anchor_height: a.base_anchor_height(),
        base_anchor_width: a.base_anchor_width(),
        height_stride: a.height_stride.clone(),
        width_stride: a.width_stride.clone(),
        height_offset: a.height_offset.clone(),
        width_offset: a.width_offset.clone(),
    };
    let anchors = SsdAnchors::new(&options);
    if let Some(layer) = anchors.per_cell().iter().position(|&count| count == 0) {
        bail!("{field}: layer {layer} has no anchors; it needs aspect_ratios or an interpolated_scale_aspect_ratio");
    }
    Ok(anchors)
}

/// The box coder.
pub fn box_coder(config: &pb::Ssd) -> Result<BoxCoder> {
    use pb::box_coder::BoxCoderOneof as C;
    match config.box_coder.as_ref().and_then(|c| c.box_coder_oneof.as_ref()) {
        Some(C::FasterRcnnBoxCoder(c)) => {
            let scale = [c.y_scale(), c.x_scale(), c.height_scale(), c.width_scale()];
            ensure!(
                scale.iter().all(|&factor| factor > 0.0 && factor.is_finite()),
                "model.ssd.box_coder.faster_rcnn_box_coder: y_scale, x_scale, height_scale and width_scale are {scale:?} and must be above 0"
            );
            Ok(BoxCoder { scale })
        }
        _ => bail!("model.ssd.box_coder: only faster_rcnn_box_coder is supported"),
    }
}

/// The matcher.
pub fn matcher(config: &pb::Ssd) -> Result<Matcher> {
    use pb::matcher::MatcherOneof as M;
    let matcher = config.matcher.as_ref().and_then(|m| m.matcher_oneof.as_ref());
    let m = match matcher.context("model.ssd.matcher is not set")? {
        M::BipartiteMatcher(_) => return Ok(Matcher::Bipartite),
        M::ArgmaxMatcher(m) => m,
    };
    let field = "model.ssd.matcher.argmax_matcher";
    // With ignore_thresholds upstream matches every anchor to its best groundtruth, whatever the overlap.
    let (matched, unmatched) = if m.ignore_thresholds() {
        (f32::NEG_INFINITY, f32::NEG_INFINITY)
    } else {
        (m.matched_threshold(), m.unmatched_threshold())
    };
    if unmatched > matched {
        bail!("{field}: unmatched_threshold {unmatched} is above matched_threshold {matched}");
    }
    ensure!(
        m.negatives_lower_than_unmatched() || unmatched < matched,
        "{field}: with negatives_lower_than_unmatched: false the negatives are between unmatched_threshold and matched_threshold, which are \
         alike here; lower the first"
    );
    Ok(Matcher::ArgMax(ArgMaxMatcher {
        matched_threshold: matched,
        unmatched_threshold: unmatched,
        negatives_lower_than_unmatched: m.negatives_lower_than_unmatched(),
        force_match_for_each_row: m.force_match_for_each_row(),
    }))
}

/// The losses and what is done with them.
pub fn loss(config: &pb::Ssd) -> Result<LossOptions> {
    use pb::classification_loss::ClassificationLoss as C;
    use pb::localization_loss::LocalizationLoss as L;
    let loss = config.loss.as_ref().context("model.ssd.loss is not set")?;
    let localization = match loss.localization_loss.as_ref().and_then(|l| l.localization_loss.as_ref()) {
        Some(L::WeightedSmoothL1(s)) => {
            let delta = s.delta();
            ensure!(delta > 0.0, "model.ssd.loss.localization_loss.weighted_smooth_l1.delta: {delta} must be above 0");
            LocalizationLoss::SmoothL1 { delta: delta.into() }
        }
        Some(L::WeightedL2(_)) => LocalizationLoss::L2,
        _ => bail!("model.ssd.loss.localization_loss: only weighted_smooth_l1 and weighted_l2 are supported"),
    };
    let classification = match loss.classification_loss.as_ref().and_then(|c| c.classification_loss.as_ref()) {
        Some(C::WeightedSigmoid(_)) => ClassificationLoss::Sigmoid,
        Some(C::WeightedSigmoidFocal(f)) => {
            ClassificationLoss::SigmoidFocal { alpha: f.alpha.map(f64::from), gamma: f.gamma().into() }
        }
        Some(C::WeightedSoftmax(s)) => losses_config::softmax(s, "model.ssd.loss.classification_loss")?,
        Some(C::BootstrappedSigmoid(b)) => {
            ClassificationLoss::BootstrappedSigmoid { alpha: b.alpha().into(), hard: b.hard_bootstrap() }
        }
        _ => bail!(
            "model.ssd.loss.classification_loss: only weighted_sigmoid, weighted_sigmoid_focal, weighted_softmax and bootstrapped_sigmoid are supported"
        ),
    };
    if loss.hard_example_miner.is_some() && matches!(classification, ClassificationLoss::SigmoidFocal { .. }) {
        bail!(
            "model.ssd.loss.hard_example_miner: upstream refuses it with weighted_sigmoid_focal, which weighs the anchors already; remove it"
        );
    }
    let miner = loss.hard_example_miner.as_ref();
    let miner = miner.map(|m| losses_config::hard_example_miner(m, "model.ssd.loss.hard_example_miner")).transpose()?;
    Ok(LossOptions {
        localization,
        classification,
        miner,
        localization_weight: loss.localization_weight().into(),
        classification_weight: loss.classification_weight().into(),
        normalize_by_matches: config.normalize_loss_by_num_matches(),
        normalize_by_code_size: config.normalize_loc_loss_by_codesize(),
        negative_class_weight: config.negative_class_weight(),
        background_as_zeros: config.encode_background_as_zeros(),
    })
}

/// Suppression and score conversion.
pub fn post_processing(config: &pb::Ssd) -> Result<(NmsOptions, ScoreConverter)> {
    let post = config.post_processing.as_ref().context("model.ssd.post_processing is not set")?;
    post_processing::from_config(post, "model.ssd.post_processing")
}
