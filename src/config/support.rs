//! Which fields of a pipeline config are honoured here, which have no effect, and which are refused.

use std::fmt::Write as _;

use anyhow::{Result, bail};
use prost_reflect::{DynamicMessage, FieldDescriptor, Value};

use crate::backbones::{faster_rcnn, ssd};
use crate::config::text;
use Support::{No, NoEffect, Only, Yes};

/// How a field that a config sets is taken.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Support {
    /// Honoured, whatever it says; in a message field, by what its own fields say.
    Yes,
    /// Accepted and logged: it steers something that is not here, and what is here instead is said.
    NoEffect(&'static str),
    /// Honoured at these values (as text has them, strings without quotes), refused at others for the reason given.
    Only(&'static [&'static str], &'static str),
    /// Refused for the reason given, unless it is set to its default.
    No(&'static str),
}

/// The fields of one message.
struct Message {
    name: &'static str,
    fields: &'static [(&'static str, Support)],
    /// For fields that the list does not have; without it such a field is refused.
    rest: Option<Support>,
}

const fn fields(name: &'static str, fields: &'static [(&'static str, Support)]) -> Message {
    Message { name, fields, rest: None }
}

const fn all(name: &'static str, rest: Support) -> Message {
    Message { name, fields: &[], rest: Some(rest) }
}

const QUEUES: &str = "pictures are read, shuffled and batched another way";
const ONE_PROCESS: &str = "one process trains";
const SUMMARIES: &str = "what evaluation draws is fixed";
const KEYPOINTS: &str = "keypoints are not supported";
const MASKS: &str = "masks are not supported";
const NO_MASKS: &str = "there are no masks";
const MULTICLASS: &str = "several scores a box are not supported";
const PYRAMIDS: &str = "feature pyramids are not built";
const SAMPLING: &str = "only hard_example_miner selects anchors here";
const FALSE: &[&str] = &["false"];
const TRUE: &[&str] = &["true"];

/// Every message that a pipeline config can hold. A test holds it against proto/.
#[rustfmt::skip]
const TABLE: &[Message] = &[
    fields("TrainEvalPipelineConfig", &[
        ("model", Yes), ("train_config", Yes), ("train_input_reader", Yes), ("eval_config", Yes), ("eval_input_reader", Yes),
        ("graph_rewriter", Yes),
    ]),
    fields("GraphRewriter", &[("quantization", No("quantization-aware training is not supported"))]),
    all("Quantization", No("quantization-aware training is not supported")),
    fields("DetectionModel", &[("ssd", Yes), ("faster_rcnn", Yes)]),

    // SSD
    fields("Ssd", &[
        ("num_classes", Yes), ("image_resizer", Yes), ("feature_extractor", Yes), ("box_coder", Yes), ("matcher", Yes),
        ("similarity_calculator", Yes), ("negative_class_weight", Yes), ("box_predictor", Yes), ("anchor_generator", Yes),
        ("post_processing", Yes), ("normalize_loss_by_num_matches", Yes), ("normalize_loc_loss_by_codesize", Yes), ("loss", Yes),
        ("freeze_batchnorm", Yes),
        ("inplace_batchnorm_update", NoEffect("moving averages are updated once a step either way")),
        ("encode_background_as_zeros", Yes),
        ("add_background_class", Only(TRUE, "the background has a column of its own")),
        ("explicit_background_class", Only(FALSE, "the background has a column of its own")),
        ("use_confidences_as_targets", Only(FALSE, "groundtruth has no confidences")),
        ("implicit_example_weight", No("groundtruth has no confidences")),
        ("mask_head_config", No(MASKS)),
    ]),
    all("Ssd.MaskHead", No(MASKS)),
    fields("SsdFeatureExtractor", &[
        ("type", Only(ssd::TYPES, "that feature extractor is not built")),
        ("depth_multiplier", Yes), ("min_depth", Yes), ("conv_hyperparams", Yes), ("pad_to_multiple", Yes),
        ("override_base_feature_extractor_hyperparams", Yes), ("use_depthwise", Yes),
        ("use_explicit_padding", Yes),
        ("batch_norm_trainable", Only(TRUE, "freeze_batchnorm freezes them")),
        ("fpn", No(PYRAMIDS)),
        ("replace_preprocessor_with_placeholder", Only(FALSE, "pictures are always preprocessed")),
    ]),
    all("FeaturePyramidNetworks", No(PYRAMIDS)),
    fields("Hyperparams", &[
        ("op", Only(&["CONV"], "these layers are convolutions")),
        ("regularizer", Yes), ("initializer", Yes), ("activation", Yes), ("batch_norm", Yes),
        ("group_norm", No("batch_norm is the only normalization")),
        ("regularize_depthwise", Only(FALSE, "depthwise filters are regularized as April 2018 did, by the feature extractor")),
    ]),
    fields("Regularizer", &[("l2_regularizer", Yes), ("l1_regularizer", Yes)]),
    all("L2Regularizer", Yes),
    all("L1Regularizer", Yes),
    all("Initializer", Yes),
    all("TruncatedNormalInitializer", Yes),
    all("VarianceScalingInitializer", Yes),
    all("RandomNormalInitializer", Yes),
    all("BatchNorm", Yes),
    all("GroupNorm", No("batch_norm is the only normalization")),
    fields("ImageResizer", &[
        ("fixed_shape_resizer", Yes),
        ("keep_aspect_ratio_resizer", Yes),
        ("identity_resizer", No("fixed_shape_resizer and keep_aspect_ratio_resizer are")),
    ]),
    all("FixedShapeResizer", Yes),
    all("KeepAspectRatioResizer", Yes),
    all("IdentityResizer", No("fixed_shape_resizer and keep_aspect_ratio_resizer are")),
    fields("BoxCoder", &[
        ("faster_rcnn_box_coder", Yes), ("mean_stddev_box_coder", No("faster_rcnn_box_coder is")),
        ("square_box_coder", No("faster_rcnn_box_coder is")), ("keypoint_box_coder", No(KEYPOINTS)),
    ]),
    all("FasterRcnnBoxCoder", Yes),
    all("MeanStddevBoxCoder", No("faster_rcnn_box_coder is")),
    all("SquareBoxCoder", No("faster_rcnn_box_coder is")),
    all("KeypointBoxCoder", No(KEYPOINTS)),
    fields("Matcher", &[("argmax_matcher", Yes), ("bipartite_matcher", Yes)]),
    fields("ArgMaxMatcher", &[
        ("matched_threshold", Yes), ("unmatched_threshold", Yes), ("ignore_thresholds", Yes), ("negatives_lower_than_unmatched", Yes),
        ("force_match_for_each_row", Yes), ("use_matmul_gather", NoEffect("it gives the same matches")),
    ]),
    fields("BipartiteMatcher", &[("use_matmul_gather", NoEffect("it gives the same matches"))]),
    fields("RegionSimilarityCalculator", &[
        ("iou_similarity", Yes), ("neg_sq_dist_similarity", No("iou_similarity is")), ("ioa_similarity", No("iou_similarity is")),
        ("thresholded_iou_similarity", No("iou_similarity is")),
    ]),
    all("IouSimilarity", Yes),
    all("NegSqDistSimilarity", No("iou_similarity is")),
    all("IoaSimilarity", No("iou_similarity is")),
    all("ThresholdedIouSimilarity", No("iou_similarity is")),
    fields("BoxPredictor", &[
        ("convolutional_box_predictor", Yes), ("mask_rcnn_box_predictor", Yes), ("rfcn_box_predictor", Yes),
        ("weight_shared_convolutional_box_predictor", No(PYRAMIDS)),
    ]),
    fields("ConvolutionalBoxPredictor", &[
        ("conv_hyperparams", Yes), ("min_depth", Yes), ("max_depth", Yes), ("num_layers_before_predictor", Yes), ("use_dropout", Yes),
        ("dropout_keep_probability", Yes), ("kernel_size", Yes), ("class_prediction_bias_init", Yes), ("use_depthwise", Yes), ("apply_sigmoid_to_scores", Yes),
        ("box_code_size", Only(&["4"], "a box has 4 numbers")),
    ]),
    all("WeightSharedConvolutionalBoxPredictor", No(PYRAMIDS)),
    all("WeightSharedConvolutionalBoxPredictor.BoxEncodingsClipRange", No(PYRAMIDS)),
    fields("MaskRCNNBoxPredictor", &[
        ("fc_hyperparams", Yes), ("use_dropout", Yes), ("dropout_keep_probability", Yes),
        ("box_code_size", Only(&["4"], "a box has 4 numbers")),
        ("conv_hyperparams", NoEffect("only masks would have these layers")),
        ("predict_instance_masks", Only(FALSE, MASKS)),
        ("mask_prediction_conv_depth", NoEffect(NO_MASKS)), ("mask_height", NoEffect(NO_MASKS)), ("mask_width", NoEffect(NO_MASKS)),
        ("mask_prediction_num_conv_layers", NoEffect(NO_MASKS)), ("masks_are_class_agnostic", NoEffect(NO_MASKS)),
        ("convolve_then_upsample_masks", NoEffect(NO_MASKS)),
        ("predict_keypoints", Only(FALSE, KEYPOINTS)),
        ("share_box_across_classes", Only(FALSE, "each class has a box of its own")),
    ]),
    fields("RfcnBoxPredictor", &[
        ("conv_hyperparams", Yes), ("num_spatial_bins_height", Yes), ("num_spatial_bins_width", Yes), ("depth", Yes),
        ("crop_height", Yes), ("crop_width", Yes),
        ("box_code_size", Only(&["4"], "a box has 4 numbers")),
    ]),
    fields("AnchorGenerator", &[
        ("ssd_anchor_generator", Yes), ("grid_anchor_generator", Yes), ("multiscale_anchor_generator", No(PYRAMIDS)),
    ]),
    all("SsdAnchorGenerator", Yes),
    all("GridAnchorGenerator", Yes),
    all("MultiscaleAnchorGenerator", No(PYRAMIDS)),
    fields("PostProcessing", &[("batch_non_max_suppression", Yes), ("score_converter", Yes), ("logit_scale", Yes)]),
    fields("BatchNonMaxSuppression", &[
        ("score_threshold", Yes), ("iou_threshold", Yes), ("max_detections_per_class", Yes), ("max_total_detections", Yes),
        ("use_static_shapes", NoEffect("it gives the same detections")),
    ]),
    fields("Loss", &[
        ("localization_loss", Yes), ("classification_loss", Yes), ("hard_example_miner", Yes), ("classification_weight", Yes),
        ("localization_weight", Yes), ("random_example_sampler", No(SAMPLING)),
        ("equalization_loss", No("classes are weighted equally")),
        ("expected_loss_weights", Only(&["NONE"], SAMPLING)),
        ("min_num_negative_samples", No(SAMPLING)), ("desired_negative_sampling_ratio", No(SAMPLING)),
    ]),
    all("Loss.EqualizationLoss", No("classes are weighted equally")),
    all("RandomExampleSampler", No(SAMPLING)),
    fields("LocalizationLoss", &[
        ("weighted_smooth_l1", Yes), ("weighted_l2", Yes), ("weighted_iou", No("weighted_smooth_l1 and weighted_l2 are")),
    ]),
    fields("WeightedSmoothL1LocalizationLoss", &[("delta", Yes), ("anchorwise_output", NoEffect("losses are always kept for each anchor"))]),
    fields("WeightedL2LocalizationLoss", &[("anchorwise_output", NoEffect("losses are always kept for each anchor"))]),
    all("WeightedIOULocalizationLoss", No("weighted_smooth_l1 and weighted_l2 are")),
    fields("ClassificationLoss", &[
        ("weighted_sigmoid", Yes), ("weighted_softmax", Yes), ("bootstrapped_sigmoid", Yes), ("weighted_sigmoid_focal", Yes),
        ("weighted_logits_softmax", No("weighted_softmax is")),
    ]),
    fields("WeightedSigmoidClassificationLoss", &[("anchorwise_output", NoEffect("losses are always kept for each anchor"))]),
    fields("WeightedSoftmaxClassificationLoss", &[
        ("logit_scale", Yes), ("anchorwise_output", NoEffect("losses are always kept for each anchor")),
    ]),
    fields("SigmoidFocalClassificationLoss", &[
        ("gamma", Yes), ("alpha", Yes), ("anchorwise_output", NoEffect("losses are always kept for each anchor")),
    ]),
    fields("BootstrappedSigmoidClassificationLoss", &[
        ("alpha", Yes), ("hard_bootstrap", Yes), ("anchorwise_output", NoEffect("losses are always kept for each anchor")),
    ]),
    all("WeightedSoftmaxClassificationAgainstLogitsLoss", No("weighted_softmax is")),
    all("HardExampleMiner", Yes),

    // Faster R-CNN and R-FCN
    fields("FasterRcnn", &[
        ("number_of_stages", Only(&["2"], "there are proposals and their classification; a third stage would make masks")),
        ("num_classes", Yes), ("image_resizer", Yes), ("feature_extractor", Yes), ("first_stage_anchor_generator", Yes),
        ("first_stage_atrous_rate", Yes), ("first_stage_box_predictor_conv_hyperparams", Yes),
        ("first_stage_box_predictor_kernel_size", Yes), ("first_stage_box_predictor_depth", Yes), ("first_stage_minibatch_size", Yes),
        ("first_stage_positive_balance_fraction", Yes), ("first_stage_nms_score_threshold", Yes), ("first_stage_nms_iou_threshold", Yes),
        ("first_stage_max_proposals", Yes), ("first_stage_localization_loss_weight", Yes), ("first_stage_objectness_loss_weight", Yes),
        ("initial_crop_size", Yes), ("maxpool_kernel_size", Yes), ("maxpool_stride", Yes), ("second_stage_box_predictor", Yes),
        ("second_stage_batch_size", Yes), ("second_stage_balance_fraction", Yes), ("second_stage_post_processing", Yes),
        ("second_stage_localization_loss_weight", Yes), ("second_stage_classification_loss_weight", Yes),
        ("second_stage_mask_prediction_loss_weight", NoEffect(NO_MASKS)), ("resize_masks", NoEffect(NO_MASKS)),
        // See `BY_PATH` for the fields of this one.
        ("hard_example_miner", Yes), ("second_stage_classification_loss", Yes),
        ("inplace_batchnorm_update", NoEffect("moving averages are updated once a step either way")),
        ("use_matmul_crop_and_resize", NoEffect("it gives the same crops")),
        ("use_matmul_gather_in_matcher", NoEffect("it gives the same matches")),
        ("use_static_shapes_for_eval", NoEffect("it gives the same detections")),
        ("clip_anchors_to_image", Yes),
        ("use_static_balanced_label_sampler", Only(FALSE, "samples are as large as they can be")),
        ("use_static_shapes", Only(FALSE, "samples are as large as they can be")),
    ]),
    fields("FasterRcnnFeatureExtractor", &[
        ("type", Only(faster_rcnn::TYPES, "that feature extractor is not built")),
        ("first_stage_features_stride", Yes), ("batch_norm_trainable", Yes),
    ]),

    // Training
    fields("TrainConfig", &[
        ("batch_size", Yes), ("data_augmentation_options", Yes), ("optimizer", Yes), ("gradient_clipping_by_norm", Yes),
        ("fine_tune_checkpoint", Yes), ("from_detection_checkpoint", Yes), ("load_all_detection_checkpoint_vars", Yes), ("num_steps", Yes),
        ("bias_grad_multiplier", Yes), ("freeze_variables", Yes), ("add_regularization_loss", Yes),
        ("fine_tune_checkpoint_type", Only(&["", "detection", "classification"], "there are no other kinds of checkpoint")),
        ("sync_replicas", NoEffect(ONE_PROCESS)), ("startup_delay_steps", NoEffect(ONE_PROCESS)), ("replicas_to_aggregate", NoEffect(ONE_PROCESS)),
        ("keep_checkpoint_every_n_hours", NoEffect("the last checkpoints and the best are kept")),
        ("batch_queue_capacity", NoEffect(QUEUES)), ("num_batch_queue_threads", NoEffect(QUEUES)), ("prefetch_queue_capacity", NoEffect(QUEUES)),
        ("max_number_of_boxes", NoEffect("every box of a picture counts")),
        ("unpad_groundtruth_tensors", NoEffect("groundtruth is never padded")),
        ("retain_original_images", NoEffect(SUMMARIES)), ("summarize_gradients", NoEffect("gradients are not written to the event file")),
        ("update_trainable_variables", Yes),
        ("merge_multiple_label_boxes", Only(FALSE, "a box has one class")),
        ("use_multiclass_scores", Only(FALSE, MULTICLASS)),
        ("use_bfloat16", Only(FALSE, "training is in 32 bits")),
    ]),
    fields("Optimizer", &[
        ("rms_prop_optimizer", Yes), ("momentum_optimizer", Yes), ("adam_optimizer", Yes),
        ("use_moving_average", Yes), ("moving_average_decay", Yes),
    ]),
    all("RMSPropOptimizer", Yes),
    all("MomentumOptimizer", Yes),
    all("AdamOptimizer", Yes),
    all("LearningRate", Yes),
    all("ConstantLearningRate", Yes),
    all("ExponentialDecayLearningRate", Yes),
    all("ManualStepLearningRate", Yes),
    all("ManualStepLearningRate.LearningRateSchedule", Yes),
    all("CosineDecayLearningRate", Yes),

    // Augmentation: data::augment refuses values that are out of range.
    fields("PreprocessingStep", &[
        ("normalize_image", Yes), ("random_horizontal_flip", Yes), ("random_pixel_value_scale", Yes), ("random_image_scale", Yes),
        ("random_rgb_to_gray", Yes), ("random_adjust_brightness", Yes), ("random_adjust_contrast", Yes), ("random_adjust_hue", Yes),
        ("random_adjust_saturation", Yes), ("random_distort_color", Yes), ("random_jitter_boxes", Yes), ("random_crop_image", Yes),
        ("random_pad_image", Yes), ("random_crop_pad_image", Yes), ("random_crop_to_aspect_ratio", Yes), ("random_black_patches", Yes),
        ("resize_image", Yes), ("subtract_channel_mean", Yes), ("ssd_random_crop", Yes), ("ssd_random_crop_pad", Yes),
        ("ssd_random_crop_fixed_aspect_ratio", Yes), ("ssd_random_crop_pad_fixed_aspect_ratio", Yes), ("random_vertical_flip", Yes),
        ("random_rotation90", Yes),
        ("random_resize_method", Yes), ("rgb_to_gray", No(NOT_WRITTEN)),
        ("random_absolute_pad_image", No(NOT_WRITTEN)), ("random_self_concat_image", No(NOT_WRITTEN)),
        ("scale_boxes_to_pixel_coordinates", No("boxes stay normalized until the model scales them")),
        ("convert_class_logits_to_softmax", No(MULTICLASS)),
    ]),
    all("NormalizeImage", Yes),
    fields("RandomHorizontalFlip", &[("keypoint_flip_permutation", NoEffect("there are no keypoints to flip"))]),
    fields("RandomVerticalFlip", &[("keypoint_flip_permutation", NoEffect("there are no keypoints to flip"))]),
    all("RandomRotation90", Yes),
    all("RandomPixelValueScale", Yes),
    all("RandomImageScale", Yes),
    all("RandomRGBtoGray", Yes),
    all("RandomAdjustBrightness", Yes),
    all("RandomAdjustContrast", Yes),
    all("RandomAdjustHue", Yes),
    all("RandomAdjustSaturation", Yes),
    all("RandomDistortColor", Yes),
    all("RandomJitterBoxes", Yes),
    Message { name: "RandomCropImage", fields: CLIPPED, rest: Some(Yes) },
    all("RandomPadImage", Yes),
    Message { name: "RandomCropPadImage", fields: CLIPPED, rest: Some(Yes) },
    Message { name: "RandomCropToAspectRatio", fields: CLIPPED, rest: Some(Yes) },
    all("RandomBlackPatches", Yes),
    all("ResizeImage", Yes),
    all("SubtractChannelMean", Yes),
    all("SSDRandomCrop", Yes),
    Message { name: "SSDRandomCropOperation", fields: CLIPPED, rest: Some(Yes) },
    all("SSDRandomCropPad", Yes),
    Message { name: "SSDRandomCropPadOperation", fields: CLIPPED, rest: Some(Yes) },
    all("SSDRandomCropFixedAspectRatio", Yes),
    Message { name: "SSDRandomCropFixedAspectRatioOperation", fields: CLIPPED, rest: Some(Yes) },
    all("SSDRandomCropPadFixedAspectRatio", Yes),
    Message { name: "SSDRandomCropPadFixedAspectRatioOperation", fields: CLIPPED, rest: Some(Yes) },
    all("RandomResizeMethod", Yes),
    all("RGBtoGray", No(NOT_WRITTEN)),
    all("RandomAbsolutePadImage", No(NOT_WRITTEN)),
    all("RandomSelfConcatImage", No(NOT_WRITTEN)),
    all("ScaleBoxesToPixelCoordinates", No("boxes stay normalized until the model scales them")),
    all("ConvertClassLogitsToSoftmax", No(MULTICLASS)),

    // Input and evaluation
    fields("InputReader", &[
        ("label_map_path", Yes), ("tf_record_input_reader", Yes),
        ("external_input_reader", No("pictures are read from TFRecord files")),
        // See `BY_PATH` for the epochs in training.
        ("shuffle", Yes), ("num_epochs", NoEffect("an evaluation reads its pictures once")),
        ("name", NoEffect("there is one reader for training and one for evaluation")),
        ("shuffle_buffer_size", NoEffect(QUEUES)), ("filenames_shuffle_buffer_size", NoEffect(QUEUES)), ("num_readers", NoEffect(QUEUES)),
        ("queue_capacity", NoEffect(QUEUES)), ("min_after_dequeue", NoEffect(QUEUES)), ("read_block_length", NoEffect(QUEUES)),
        ("prefetch_size", NoEffect(QUEUES)), ("num_parallel_map_calls", NoEffect(QUEUES)), ("num_parallel_batches", NoEffect(QUEUES)),
        ("num_prefetch_batches", NoEffect(QUEUES)), ("max_number_of_boxes", NoEffect("every box of a picture counts")),
        ("use_display_name", NoEffect("classes are read by their ids, and without ids by either name")),
        ("mask_type", NoEffect("masks are not read")),
        ("load_instance_masks", Only(FALSE, MASKS)),
        ("load_multiclass_scores", Only(FALSE, MULTICLASS)),
        ("num_keypoints", No(KEYPOINTS)),
        ("num_additional_channels", No("networks take three channels")),
        ("sample_1_of_n_examples", No("every picture is read")),
    ]),
    all("TFRecordInputReader", Yes),
    all("ExternalInputReader", No("pictures are read from TFRecord files")),
    fields("EvalConfig", &[
        ("num_examples", NoEffect("an evaluation reads every validation picture")),
        ("batch_size", NoEffect("it changes the speed only")),
        ("max_evals", NoEffect("training says when to evaluate")), ("eval_interval_secs", NoEffect("training says when to evaluate")),
        ("eval_master", NoEffect(ONE_PROCESS)),
        ("metrics_set", Only(
            &["pascal_voc_metrics", "pascal_voc_detection_metrics", "coco_detection_metrics"],
            "the PASCAL VOC and COCO detection figures are what is computed",
        )),
        ("include_metrics_per_category", NoEffect("every category is listed")),
        ("export_path", NoEffect("the figures are written to eval_dir")),
        ("ignore_groundtruth", Only(FALSE, "an evaluation needs groundtruth")),
        ("use_moving_averages", Yes),
        ("eval_instance_masks", Only(FALSE, MASKS)),
        ("num_visualizations", Yes), ("visualization_export_dir", NoEffect(SUMMARIES)), ("save_graph", NoEffect(SUMMARIES)),
        ("min_score_threshold", Yes), ("max_num_boxes_to_visualize", NoEffect(SUMMARIES)), ("skip_scores", NoEffect(SUMMARIES)),
        ("skip_labels", NoEffect(SUMMARIES)), ("visualize_groundtruth_boxes", NoEffect(SUMMARIES)),
        ("groundtruth_box_visualization_color", NoEffect(SUMMARIES)), ("keep_image_id_for_visualization_export", NoEffect(SUMMARIES)),
        ("retain_original_images", NoEffect(SUMMARIES)),
    ]),
];

const UNCOUNTED: &str = "Faster R-CNN's miner does not tell positives from negatives";

const NOT_WRITTEN: &str = "this augmentation is not built";

/// Crops always clip the boxes that they cut.
const CLIPPED: &[(&str, Support)] = &[("clip_boxes", Only(TRUE, "boxes that a crop cuts are clipped"))];

/// Where a field means something else than elsewhere in its message.
const BY_PATH: &[(&str, Support)] = &[
    (
        "model.faster_rcnn.second_stage_box_predictor.mask_rcnn_box_predictor.fc_hyperparams.op",
        Only(&["FC"], "these layers are fully connected"),
    ),
    (
        "model.faster_rcnn.second_stage_box_predictor.mask_rcnn_box_predictor.fc_hyperparams.batch_norm",
        No("these layers have biases"),
    ),
    ("model.faster_rcnn.hard_example_miner.max_negatives_per_positive", NoEffect(UNCOUNTED)),
    ("model.faster_rcnn.hard_example_miner.min_negatives_per_image", NoEffect(UNCOUNTED)),
    ("train_input_reader.num_epochs", No("train_config.num_steps says how long to train")),
];

/// Checks every field that `config` sets (a message of type TrainEvalPipelineConfig): the notes on what has no effect, in the
/// order of the fields.
///
/// # Errors
/// If fields are set that change the result and are not supported; all are named.
pub fn check(config: &DynamicMessage) -> Result<Vec<String>> {
    let mut found = Found::default();
    found.message(config, "");
    if found.refused.is_empty() {
        return Ok(found.notes);
    }
    let mut text = String::from("the pipeline config sets what is not supported:");
    for refused in found.refused {
        let _ = write!(text, "\n  {refused}");
    }
    bail!(text)
}

#[derive(Default)]
struct Found {
    notes: Vec<String>,
    refused: Vec<String>,
}

impl Found {
    fn message(&mut self, message: &DynamicMessage, path: &str) {
        let mut fields: Vec<_> = message.fields().collect();
        fields.sort_by_key(|(field, _)| field.number());
        for (field, value) in fields {
            let name = if path.is_empty() { field.name().to_string() } else { format!("{path}.{}", field.name()) };
            let support = support(&field, &name);
            match value.as_list() {
                None => self.field(&field, value, &name, support),
                // One of a kind speaks for all, but for messages, whose fields may differ.
                Some(values) if matches!(support, NoEffect(_) | No(_)) => {
                    values.iter().take(1).for_each(|value| self.field(&field, value, &name, support));
                }
                Some(values) => {
                    for (i, value) in values.iter().enumerate() {
                        self.field(&field, value, &format!("{name}[{i}]"), support);
                    }
                }
            }
        }
    }

    fn field(&mut self, field: &FieldDescriptor, value: &Value, path: &str, support: Support) {
        let shown = match value {
            Value::Message(_) => String::new(),
            _ => format!(": {}", text::scalar(value, &field.kind())),
        };
        match support {
            Yes => match value {
                Value::Message(inner) => self.message(inner, path),
                Value::String(text) if text.chars().any(char::is_control) => self.refused.push(format!(
                    "{path}{shown}: a backslash made a letter into a control character; write / or double every backslash"
                )),
                _ => {}
            },
            NoEffect(instead) => self.notes.push(format!("{path}{shown} has no effect here: {instead}")),
            Only(accepted, why) => {
                let plain = value.as_str().map_or_else(|| text::scalar(value, &field.kind()), str::to_string);
                if !accepted.contains(&plain.as_str()) {
                    let accepted = match accepted {
                        [_] if value.as_bool().is_some() => String::new(),
                        _ => format!(
                            " (accepted: {})",
                            accepted.iter().filter(|a| !a.is_empty()).copied().collect::<Vec<_>>().join(", ")
                        ),
                    };
                    self.refused.push(format!("{path}{shown}: {why}{accepted}"));
                }
            }
            No(why) => {
                let default = !field.is_list() && *value == field.default_value() && !matches!(value, Value::Message(_));
                if !default {
                    self.refused.push(format!("{path}{shown} is not supported: {why}"));
                }
            }
        }
    }
}

/// What the table says of a field; a field that it does not have is refused.
fn support(field: &FieldDescriptor, path: &str) -> Support {
    if let Some((_, support)) = BY_PATH.iter().find(|(known, _)| *known == path) {
        return *support;
    }
    listed(field).unwrap_or(No("this program does not know it"))
}

fn listed(field: &FieldDescriptor) -> Option<Support> {
    let message = field.parent_message();
    let name = message.full_name().strip_prefix("object_detection.protos.")?;
    let entry = TABLE.iter().find(|entry| entry.name == name)?;
    match entry.fields.iter().find(|(known, _)| *known == field.name()) {
        Some((_, support)) => Some(*support),
        None => entry.rest,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use prost_reflect::{Kind, MessageDescriptor};

    use super::*;
    use crate::config::pipeline;

    const ROOT: &str = "object_detection.protos.TrainEvalPipelineConfig";

    fn reachable(message: MessageDescriptor, seen: &mut BTreeSet<String>, fields: &mut Vec<FieldDescriptor>) {
        if !seen.insert(message.full_name().to_string()) {
            return;
        }
        for field in message.fields() {
            if let Kind::Message(inner) = field.kind() {
                reachable(inner, seen, fields);
            }
            fields.push(field);
        }
    }

    #[test]
    fn every_field_of_every_message_is_classified_and_nothing_else_is() {
        let mut seen = BTreeSet::new();
        let mut all = Vec::new();
        reachable(text::descriptor(ROOT).unwrap(), &mut seen, &mut all);
        assert!(all.len() > 300, "{}", all.len());
        for field in &all {
            assert!(listed(field).is_some(), "{} is not classified", field.full_name());
        }
        let mut names = BTreeSet::new();
        for entry in TABLE {
            let name = format!("object_detection.protos.{}", entry.name);
            assert!(seen.contains(&name), "{name} is in no pipeline config");
            assert!(names.insert(name.clone()), "{name} is listed twice");
            let message = text::descriptor(&name).unwrap();
            let mut fields = BTreeSet::new();
            for (field, _) in entry.fields {
                assert!(message.get_field_by_name(field).is_some(), "{name} has no field {field}");
                assert!(fields.insert(field), "{name}.{field} is listed twice");
            }
        }
    }

    #[test]
    fn what_is_accepted_of_a_field_is_of_its_type_and_holds_its_default() {
        let mut all = Vec::new();
        reachable(text::descriptor(ROOT).unwrap(), &mut BTreeSet::new(), &mut all);
        for field in all {
            let Some(Only(accepted, _)) = listed(&field) else { continue };
            if field.is_list() || field.kind() == Kind::String {
                continue;
            }
            let default = text::scalar(&field.default_value(), &field.kind());
            assert!(accepted.contains(&default.as_str()), "{}: {default} is refused", field.full_name());
        }
    }

    #[track_caller]
    fn checked(text: &str) -> Result<Vec<String>> {
        pipeline::check_supported(&pipeline::parse(text, "p.config").unwrap())
    }

    #[track_caller]
    fn refused(text: &str) -> String {
        format!("{:#}", checked(text).unwrap_err())
    }

    const MODEL: &str = "model { ssd { num_classes: 3 } } ";

    #[test]
    fn what_changes_the_result_is_refused_by_its_path() {
        let ssd = |inner: &str| refused(&format!("model {{ ssd {{ {inner} }} }}"));
        assert!(
            ssd("feature_extractor { fpn { min_level: 3 } }").contains("  model.ssd.feature_extractor.fpn is not supported: ")
        );
        let text = ssd("feature_extractor { type: 'ssd_resnet50_v1_fpn' }");
        assert!(text.contains("model.ssd.feature_extractor.type: \"ssd_resnet50_v1_fpn\""), "{text}");
        assert!(
            text.contains(
                "(accepted: ssd_mobilenet_v1, ssd_mobilenet_v2, ssd_inception_v2, ssd_inception_v3, embedded_ssd_mobilenet_v1)"
            ),
            "{text}"
        );
        assert!(ssd("add_background_class: false").contains("model.ssd.add_background_class: false: "));
        assert!(ssd("image_resizer { identity_resizer {} }").contains("image_resizer.identity_resizer"));
        assert!(ssd("box_predictor { convolutional_box_predictor { box_code_size: 5 } }").contains("box_code_size: 5"));
        let frcnn = |inner: &str| refused(&format!("model {{ faster_rcnn {{ {inner} }} }}"));
        let masks =
            "second_stage_box_predictor { mask_rcnn_box_predictor { predict_instance_masks: true predict_keypoints: true } }";
        let text = frcnn(&format!("number_of_stages: 3 feature_extractor {{ type: 'faster_rcnn_vgg16' }} {masks}"));
        for path in ["number_of_stages: 3", "feature_extractor.type", "predict_instance_masks", "predict_keypoints"] {
            assert!(text.contains(path), "{path}: {text}");
        }
        for step in [
            "rgb_to_gray",
            "scale_boxes_to_pixel_coordinates",
            "convert_class_logits_to_softmax",
            "random_absolute_pad_image",
            "random_self_concat_image",
        ] {
            let text = refused(&format!(
                "{MODEL} train_config {{ data_augmentation_options {{ random_horizontal_flip {{}} }} data_augmentation_options {{ {step} {{}} }} }}"
            ));
            assert!(text.contains(&format!("train_config.data_augmentation_options[1].{step}")), "{text}");
        }
        let text = refused(&format!(
            "{MODEL} train_input_reader {{ num_epochs: 3 }} eval_config {{ metrics_set: 'open_images_metrics' }}"
        ));
        for path in ["train_input_reader.num_epochs: 3", "eval_config.metrics_set[0]"] {
            assert!(text.contains(path), "{path}: {text}");
        }
        assert!(
            refused(&format!("{MODEL} graph_rewriter {{ quantization {{ delay: 48000 }} }}"))
                .contains("graph_rewriter.quantization")
        );
    }

    #[test]
    fn a_default_that_is_written_out_is_not_refused() {
        let notes = checked("model { ssd { implicit_example_weight: 1.0 add_background_class: true } }").unwrap();
        assert!(notes.is_empty(), "{notes:?}");
    }

    #[test]
    fn what_steers_queues_readers_and_summaries_is_noted() {
        let notes = checked(&format!(
            "{MODEL} train_config {{ batch_queue_capacity: 150 }} train_input_reader {{ num_readers: 4 }} eval_config {{ num_examples: 20 }} \
             eval_input_reader {{ shuffle: false num_epochs: 1 }}"
        ))
        .unwrap();
        let paths: Vec<&str> = notes.iter().map(|n| n.split_once(" has no effect here").unwrap().0).collect();
        assert_eq!(
            paths,
            [
                "train_config.batch_queue_capacity: 150",
                "train_input_reader.num_readers: 4",
                "eval_config.num_examples: 20",
                "eval_input_reader.num_epochs: 1",
            ]
        );
    }

    #[test]
    fn a_path_with_an_escape_that_was_not_meant_is_refused() {
        let text = refused(&format!("{MODEL} train_input_reader {{ label_map_path: 'C:\\temp\\new.pbtxt' }}"));
        assert!(text.contains("train_input_reader.label_map_path") && text.contains("backslash"), "{text}");
    }
}
