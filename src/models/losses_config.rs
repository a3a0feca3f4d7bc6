//! What the configs of all models say of losses in the same words.

use anyhow::Result;

use super::config_values::{logit_scale, overlap};
use crate::detection::hard_example_miner::{HardExampleMiner, RankBy};
use crate::detection::losses::ClassificationLoss;
use crate::proto::object_detection::protos as pb;

/// The message `HardExampleMiner`, resolved.
///
/// # Errors
/// If its threshold is none; `field` is named.
pub fn hard_example_miner(config: &pb::HardExampleMiner, field: &str) -> Result<HardExampleMiner> {
    use pb::hard_example_miner::LossType;
    Ok(HardExampleMiner {
        num_hard_examples: usize::try_from(config.num_hard_examples()).ok().filter(|&n| n > 0),
        iou_threshold: overlap(&format!("{field}.iou_threshold"), config.iou_threshold())?,
        rank_by: match config.loss_type() {
            LossType::Both => RankBy::Both,
            LossType::Classification => RankBy::Classification,
            LossType::Localization => RankBy::Localization,
        },
        max_negatives_per_positive: (config.max_negatives_per_positive() > 0).then(|| config.max_negatives_per_positive() as f32),
        min_negatives_per_image: usize::try_from(config.min_negatives_per_image()).unwrap_or(0),
    })
}

/// The message `WeightedSoftmaxClassificationLoss`, resolved; the field of the message `field` holds it.
///
/// # Errors
/// As [`logit_scale`].
pub fn softmax(config: &pb::WeightedSoftmaxClassificationLoss, field: &str) -> Result<ClassificationLoss> {
    Ok(ClassificationLoss::Softmax { logit_scale: logit_scale(&format!("{field}.weighted_softmax"), config.logit_scale())? })
}
