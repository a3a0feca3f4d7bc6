//! The message `FasterRcnn` as the parts of a Faster R-CNN or R-FCN, each refused by name where it is not built (upstream
//! builders/model_builder.py).

use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};

use super::box_classifier::{self, BoxClassifier, Regions};
use super::config_values::{box_code_size, kept_by_dropout, overlap};
use super::faster_rcnn::FasterRcnn;
use super::post_processing;
use super::rpn::{self, Rpn, RpnLayers};
use super::{config_values, losses_config};
use crate::backbones::faster_rcnn::{FIRST_STAGE_SCOPE, FasterRcnnBackbone, SECOND_STAGE_SCOPE, StageOptions, backbone};
use crate::data::resizer::Resizer;
use crate::detection::anchors::GridAnchors;
use crate::detection::box_coder::BoxCoder;
use crate::detection::hard_example_miner::HardExampleMiner;
use crate::detection::losses::ClassificationLoss;
use crate::detection::nms::NmsOptions;
use crate::detection::sampler::BalancedSampler;
use crate::net::graph::{Graph, MovingVariance, Op, Padding, Variable, Window};
use crate::net::hyperparams::{Surroundings, conv_scope};
use crate::net::layers::{ConvScope, Scope};
use crate::proto::object_detection::protos as pb;

const FIELD: &str = "model.faster_rcnn";

/// Of both stages.
///
/// Source: upstream core/target_assigner.py, `create_target_assigner`.
const CODER: BoxCoder = BoxCoder { scale: [10.0, 10.0, 5.0, 5.0] };

/// The model that the message describes.
pub fn build(config: &pb::FasterRcnn) -> Result<FasterRcnn> {
    if config.number_of_stages() != 2 {
        bail!("{FIELD}.number_of_stages: {} is not supported, only 2 (3 would add masks)", config.number_of_stages());
    }
    let num_classes = positive("num_classes", config.num_classes())?;
    let extractor = config.feature_extractor.as_ref().with_context(|| format!("{FIELD}.feature_extractor is not set"))?;
    let options = StageOptions {
        stride: extractor.first_stage_features_stride().into(),
        train_batch_norm: extractor.batch_norm_trainable(),
    };
    let backbone = backbone(extractor.r#type(), &options, &format!("{FIELD}.feature_extractor"))?;

    let anchors = anchors(config)?;
    let mut first = Graph::new();
    let resizer = Resizer::of_network(config.image_resizer.as_ref(), &format!("{FIELD}.image_resizer"))?;
    let image = first.input("Preprocessor/sub", resizer.channels() as i64);
    let map = (backbone.first_stage)(&mut first, image, &Scope::new(FIRST_STAGE_SCOPE), &options);
    let rpn_features = rpn::append(&mut first, map, &rpn_layers(config)?, anchors.per_cell());
    let classifier = classifier(config, num_classes, (&backbone, &options, first.channels(map)))?;
    Ok(FasterRcnn {
        resizer,
        classification_name: backbone.classification_name,
        pixels: if resizer.grey { backbone.pixels.of_grey() } else { backbone.pixels },
        rpn_features,
        rpn: rpn(config, anchors)?,
        variables: union(&first, &classifier.graph),
        classifier,
        first: Arc::new(first),
    })
}

/// What upstream asks of a config that is trained, and not of one that only detects.
///
/// # Errors
/// If the second stage is to sample more proposals than there are.
pub fn check_training(config: &pb::FasterRcnn) -> Result<()> {
    let (size, most) = (config.second_stage_batch_size(), config.first_stage_max_proposals());
    ensure!(size <= most, "{FIELD}.second_stage_batch_size: {size} is more than first_stage_max_proposals {most}");
    Ok(())
}

/// The variables of both graphs.
fn union(first: &Graph, second: &Graph) -> Vec<Variable> {
    let own = second.variables().iter().filter(|v| first.variables().iter().all(|w| w.name != v.name));
    first.variables().iter().chain(own).cloned().collect()
}

fn positive(name: &str, value: i32) -> Result<usize> {
    config_values::positive(&format!("{FIELD}.{name}"), value)
}

fn layers(hyperparams: Option<&pb::Hyperparams>, op: pb::hyperparams::Op, field: &str) -> Result<ConvScope> {
    let default = pb::Hyperparams::default();
    let hyperparams = hyperparams.unwrap_or(&default);
    if hyperparams.op() != op {
        bail!("{field}.op: {} is not what these layers are; set {}", hyperparams.op().as_str_name(), op.as_str_name());
    }
    conv_scope(hyperparams, field, Surroundings { freeze_batch_norm: false, moving: MovingVariance::Unbiased })
}

fn rpn_layers(config: &pb::FasterRcnn) -> Result<RpnLayers> {
    let field = format!("{FIELD}.first_stage_box_predictor_conv_hyperparams");
    let side = |name: &str, value: i32| positive(name, value).map(|n| n as i64);
    Ok(RpnLayers {
        kernel: side("first_stage_box_predictor_kernel_size", config.first_stage_box_predictor_kernel_size())?,
        depth: side("first_stage_box_predictor_depth", config.first_stage_box_predictor_depth())?,
        dilation: side("first_stage_atrous_rate", config.first_stage_atrous_rate())?,
        with: layers(config.first_stage_box_predictor_conv_hyperparams.as_ref(), pb::hyperparams::Op::Conv, &field)?,
    })
}

fn anchors(config: &pb::FasterRcnn) -> Result<GridAnchors> {
    use pb::anchor_generator::AnchorGeneratorOneof as A;
    let field = format!("{FIELD}.first_stage_anchor_generator");
    let generator = config.first_stage_anchor_generator.as_ref().and_then(|a| a.anchor_generator_oneof.as_ref());
    let Some(A::GridAnchorGenerator(a)) = generator else { bail!("{field}: only grid_anchor_generator is supported") };
    for (name, list) in [("scales", &a.scales), ("aspect_ratios", &a.aspect_ratios)] {
        if list.is_empty() || list.iter().any(|v| !(v.is_finite() && *v > 0.0)) {
            bail!("{field}.grid_anchor_generator.{name}: {list:?}; at least one is needed, and all must be above 0");
        }
    }
    let pair = |name: &str, height: i32, width: i32, least: i32| {
        if height < least || width < least {
            bail!("{field}.grid_anchor_generator: {name} {height} and {width} must be at least {least}");
        }
        Ok([height as f32, width as f32])
    };
    Ok(GridAnchors {
        base_size_px: pair("height and width", a.height(), a.width(), 1)?,
        stride_px: pair("height_stride and width_stride", a.height_stride(), a.width_stride(), 1)?,
        offset_px: [a.height_offset() as f32, a.width_offset() as f32],
        scales: a.scales.clone(),
        aspect_ratios: a.aspect_ratios.clone(),
    })
}

fn fraction(name: &str, value: f32) -> Result<f64> {
    if !(0.0..=1.0).contains(&value) {
        bail!("{FIELD}.{name}: {value} must be from 0 to 1");
    }
    Ok(value.into())
}

fn rpn(config: &pb::FasterRcnn, anchors: GridAnchors) -> Result<Rpn> {
    let most = positive("first_stage_max_proposals", config.first_stage_max_proposals())?;
    let fraction = fraction("first_stage_positive_balance_fraction", config.first_stage_positive_balance_fraction())?;
    Ok(Rpn {
        anchors,
        clip_anchors: config.clip_anchors_to_image(),
        coder: CODER,
        nms: NmsOptions {
            score_threshold: config.first_stage_nms_score_threshold(),
            iou_threshold: overlap(&format!("{FIELD}.first_stage_nms_iou_threshold"), config.first_stage_nms_iou_threshold())?,
            max_per_class: most,
            max_total: most,
        },
        sampler: BalancedSampler {
            size: positive("first_stage_minibatch_size", config.first_stage_minibatch_size())?,
            positive_fraction: fraction,
        },
        localization_weight: config.first_stage_localization_loss_weight().into(),
        objectness_weight: config.first_stage_objectness_loss_weight().into(),
    })
}

fn classifier(
    config: &pb::FasterRcnn,
    num_classes: usize,
    (backbone, options, channels): (&FasterRcnnBackbone, &StageOptions, i64),
) -> Result<BoxClassifier> {
    use pb::box_predictor::BoxPredictorOneof as P;
    let field = format!("{FIELD}.second_stage_box_predictor");
    let predictor = config.second_stage_box_predictor.as_ref().and_then(|p| p.box_predictor_oneof.as_ref());
    let mut graph = Graph::new();
    let (regions, features);
    match predictor.with_context(|| format!("{field} is not set"))? {
        P::MaskRcnnBoxPredictor(p) => {
            let field = format!("{field}.mask_rcnn_box_predictor");
            if p.predict_instance_masks() {
                bail!("{field}.predict_instance_masks: masks are not supported");
            }
            if p.predict_keypoints() {
                bail!("{field}.predict_keypoints: keypoints are not supported");
            }
            box_code_size(&field, p.box_code_size())?;
            let with = layers(p.fc_hyperparams.as_ref(), pb::hyperparams::Op::Fc, &format!("{field}.fc_hyperparams"))?;
            ensure!(with.batch_norm.is_none(), "{field}.fc_hyperparams.batch_norm is not supported: these layers have biases");
            let side = positive("initial_crop_size", config.initial_crop_size())? as i64;
            let kernel = positive("maxpool_kernel_size", config.maxpool_kernel_size())? as i64;
            let stride = positive("maxpool_stride", config.maxpool_stride())? as i64;
            ensure!(kernel <= side, "{FIELD}.maxpool_kernel_size: {kernel} is larger than initial_crop_size {side}");
            regions = Regions::Crops { side };
            let mut x = graph.input("CropAndResize", channels);
            if (kernel, stride) != (1, 1) {
                let pool = Op::MaxPool(Window::square(kernel, stride, Padding::Valid));
                x = graph.push("MaxPool2D/MaxPool", pool, &[x], channels);
            }
            features = (backbone.second_stage)(&mut graph, x, &Scope::new(SECOND_STAGE_SCOPE), options);
            let sizes = graph.sizes([side; 2]);
            ensure!(
                sizes.iter().flatten().all(|&cells| cells > 0),
                "{FIELD}.initial_crop_size: of crops of {side}, pooled to {}, the second stage leaves nothing; make them larger",
                sizes[x.0][0]
            );
            let keep = p.use_dropout().then(|| kept_by_dropout(&field, p.dropout_keep_probability())).transpose()?;
            box_classifier::append_fully_connected(&mut graph, features, num_classes, keep, &with);
        }
        P::RfcnBoxPredictor(p) => {
            let field = format!("{field}.rfcn_box_predictor");
            box_code_size(&field, p.box_code_size())?;
            let with = layers(p.conv_hyperparams.as_ref(), pb::hyperparams::Op::Conv, &format!("{field}.conv_hyperparams"))?;
            let number = |name: &str, value: i32| -> Result<i64> {
                Ok(config_values::positive(&format!("{field}.{name}"), value)? as i64)
            };
            let bins = [
                number("num_spatial_bins_height", p.num_spatial_bins_height())?,
                number("num_spatial_bins_width", p.num_spatial_bins_width())?,
            ];
            let crop = [number("crop_height", p.crop_height())?, number("crop_width", p.crop_width())?];
            ensure!(
                crop[0] % bins[0] == 0 && crop[1] % bins[1] == 0,
                "{field}: crop_height and crop_width {crop:?} must be multiples of the bins {bins:?}"
            );
            regions = Regions::PositionSensitive { bins, crop };
            let x = graph.input("map", channels);
            features = (backbone.second_stage)(&mut graph, x, &Scope::new(SECOND_STAGE_SCOPE), options);
            let depth = number("depth", p.depth())?;
            box_classifier::append_position_sensitive(&mut graph, features, num_classes, (bins, depth), &with);
        }
        _ => bail!("{field}: only mask_rcnn_box_predictor and rfcn_box_predictor are supported for Faster R-CNN"),
    }
    let size = positive("second_stage_batch_size", config.second_stage_batch_size())?;
    let most = config.first_stage_max_proposals();
    let post = config.second_stage_post_processing.as_ref();
    let post = post.with_context(|| format!("{FIELD}.second_stage_post_processing is not set"))?;
    let (nms, converter) = post_processing::from_config(post, &format!("{FIELD}.second_stage_post_processing"))?;
    Ok(BoxClassifier {
        num_classes,
        regions,
        features,
        graph: Arc::new(graph),
        coder: CODER,
        proposals: if config.hard_example_miner.is_some() { most as usize } else { size },
        sampler: BalancedSampler {
            size,
            positive_fraction: fraction("second_stage_balance_fraction", config.second_stage_balance_fraction())?,
        },
        miner: config.hard_example_miner.as_ref().map(miner).transpose()?,
        classification: classification_loss(config)?,
        localization_weight: config.second_stage_localization_loss_weight().into(),
        classification_weight: config.second_stage_classification_loss_weight().into(),
        nms,
        converter,
    })
}

fn classification_loss(config: &pb::FasterRcnn) -> Result<ClassificationLoss> {
    use pb::classification_loss::ClassificationLoss as C;
    Ok(match config.second_stage_classification_loss.as_ref().and_then(|c| c.classification_loss.as_ref()) {
        None => ClassificationLoss::Softmax { logit_scale: 1.0 },
        Some(C::WeightedSoftmax(s)) => losses_config::softmax(s, &format!("{FIELD}.second_stage_classification_loss"))?,
        Some(C::WeightedSigmoid(_)) => ClassificationLoss::Sigmoid,
        _ => bail!("{FIELD}.second_stage_classification_loss: only weighted_softmax and weighted_sigmoid are supported"),
    })
}

/// Without limits on negatives: upstream hands this miner no matches to count them by.
fn miner(config: &pb::HardExampleMiner) -> Result<HardExampleMiner> {
    let miner = losses_config::hard_example_miner(config, &format!("{FIELD}.hard_example_miner"))?;
    Ok(HardExampleMiner { max_negatives_per_positive: None, min_negatives_per_image: 0, ..miner })
}
