//! From raw predictions to scores and selections, as both meta-architectures do it (upstream builders/post_processing_builder.py).

use anyhow::{Result, ensure};
use tch::{Kind, Tensor};

use super::config_values::{logit_scale, overlap, positive};
use crate::detection::nms::NmsOptions;
use crate::proto::object_detection::protos as pb;

/// From logits to scores.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum ScoreConverter {
    Identity { logit_scale: f64 },
    Sigmoid { logit_scale: f64 },
    Softmax { logit_scale: f64 },
}

impl ScoreConverter {
    /// Of each row of the last dimension.
    pub fn convert(self, logits: &Tensor) -> Result<Tensor> {
        Ok(match self {
            Self::Identity { logit_scale } => logits.f_div_scalar(logit_scale)?,
            Self::Sigmoid { logit_scale } => logits.f_div_scalar(logit_scale)?.f_sigmoid()?,
            Self::Softmax { logit_scale } => logits.f_div_scalar(logit_scale)?.f_softmax(-1, Kind::Float)?,
        })
    }
}

/// Suppression and score conversion; `field` names the message in errors.
///
/// # Errors
/// If a limit is not a positive number, or what upstream refuses: a threshold of overlap beyond 0 to 1, or more detections of a class than in all.
pub fn from_config(post: &pb::PostProcessing, field: &str) -> Result<(NmsOptions, ScoreConverter)> {
    let default = pb::BatchNonMaxSuppression::default();
    let nms = post.batch_non_max_suppression.as_ref().unwrap_or(&default);
    let count = |name: &str, value: i32| positive(&format!("{field}.batch_non_max_suppression.{name}"), value);
    let options = NmsOptions {
        score_threshold: nms.score_threshold(),
        iou_threshold: overlap(&format!("{field}.batch_non_max_suppression.iou_threshold"), nms.iou_threshold())?,
        max_per_class: count("max_detections_per_class", nms.max_detections_per_class())?,
        max_total: count("max_total_detections", nms.max_total_detections())?,
    };
    let (most, total) = (options.max_per_class, options.max_total);
    ensure!(
        most <= total,
        "{field}.batch_non_max_suppression.max_detections_per_class: {most} is above max_total_detections: {total}; lower it to {total}"
    );
    let logit_scale = logit_scale(field, post.logit_scale())?;
    let converter = match post.score_converter() {
        pb::post_processing::ScoreConverter::Identity => ScoreConverter::Identity { logit_scale },
        pb::post_processing::ScoreConverter::Sigmoid => ScoreConverter::Sigmoid { logit_scale },
        pb::post_processing::ScoreConverter::Softmax => ScoreConverter::Softmax { logit_scale },
    };
    Ok((options, converter))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_that_upstream_refuses_are_refused_by_name() {
        let options = |inner: &str| {
            let text = format!("model {{ ssd {{ post_processing {{ batch_non_max_suppression {{ {inner} }} }} }} }}");
            let config = crate::config::pipeline::parse(&text, "test").unwrap();
            let Some(pb::detection_model::Model::Ssd(ssd)) = config.model.unwrap().model else { panic!() };
            from_config(&ssd.post_processing.unwrap(), "p").map(|(nms, _)| nms)
        };
        let nms = options("max_detections_per_class: 7 max_total_detections: 7 iou_threshold: 1").unwrap();
        assert_eq!((nms.max_per_class, nms.max_total, nms.iou_threshold), (7, 7, 1.0));
        for (inner, word) in [
            (
                "max_detections_per_class: 8 max_total_detections: 7",
                "max_detections_per_class: 8 is above max_total_detections: 7",
            ),
            ("iou_threshold: 1.1", "iou_threshold: 1.1 must be from 0 to 1"),
            ("iou_threshold: -0.1", "iou_threshold: -0.1"),
            ("max_detections_per_class: 0", "max_detections_per_class: 0 must be at least 1"),
        ] {
            let error = options(inner).unwrap_err().to_string();
            assert!(error.starts_with("p.batch_non_max_suppression.") && error.contains(word), "{inner}: {error}");
        }
    }
}
