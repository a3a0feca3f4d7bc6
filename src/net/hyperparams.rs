//! The message `Hyperparams` as a layer scope (upstream builders/hyperparams_builder.py).

use anyhow::{Result, ensure};

use super::graph::{Activation, Fan, Initializer, MovingVariance, Regularizer};
use super::layers::{BatchNormParams, ConvScope};
use crate::proto::object_detection::protos as pb;

/// What a layer scope takes from its meta-architecture, besides the message.
#[derive(Debug, Clone, Copy)]
pub struct Surroundings {
    /// Batch norms keep their stored statistics whatever the message says.
    pub freeze_batch_norm: bool,
    /// What moving averages take.
    pub moving: MovingVariance,
}

/// The layer scope that `hyperparams`, the message `field`, describes.
///
/// # Errors
/// If a regularizer's weight is below 0: it would reward large weights.
pub fn conv_scope(hyperparams: &pb::Hyperparams, field: &str, surroundings: Surroundings) -> Result<ConvScope> {
    use pb::initializer::InitializerOneof as I;
    use pb::regularizer::RegularizerOneof as R;
    let regularizer = match hyperparams.regularizer.as_ref().and_then(|r| r.regularizer_oneof.as_ref()) {
        Some(R::L2Regularizer(l2)) => Regularizer::L2(l2.weight().into()),
        Some(R::L1Regularizer(l1)) => Regularizer::L1(l1.weight().into()),
        None => Regularizer::None,
    };
    if let Regularizer::L2(weight) | Regularizer::L1(weight) = regularizer {
        ensure!(weight >= 0.0, "{field}.regularizer: its weight {weight} must not be below 0");
    }
    let initializer = match hyperparams.initializer.as_ref().and_then(|i| i.initializer_oneof.as_ref()) {
        Some(I::TruncatedNormalInitializer(n)) => Initializer::TruncatedNormal { mean: n.mean(), stddev: n.stddev() },
        Some(I::RandomNormalInitializer(n)) => Initializer::RandomNormal { mean: n.mean(), stddev: n.stddev() },
        Some(I::VarianceScalingInitializer(v)) => Initializer::VarianceScaling {
            factor: v.factor(),
            fan: match v.mode() {
                pb::variance_scaling_initializer::Mode::FanIn => Fan::In,
                pb::variance_scaling_initializer::Mode::FanOut => Fan::Out,
                pb::variance_scaling_initializer::Mode::FanAvg => Fan::Average,
            },
            uniform: v.uniform(),
        },
        // slim's own default: Xavier, uniform.
        None => Initializer::VarianceScaling { factor: 1.0, fan: Fan::Average, uniform: true },
    };
    let batch_norm = hyperparams.batch_norm.as_ref().map(|b| BatchNormParams {
        decay: f64::from(b.decay()),
        epsilon: f64::from(b.epsilon()),
        center: b.center(),
        scale: b.scale(),
        train: b.train() && !surroundings.freeze_batch_norm,
        trainable: true,
        moving: surroundings.moving,
    });
    let activation = match hyperparams.activation() {
        pb::hyperparams::Activation::None => None,
        pb::hyperparams::Activation::Relu => Some(Activation::Relu),
        pb::hyperparams::Activation::Relu6 => Some(Activation::Relu6),
    };
    Ok(ConvScope { initializer, regularizer, batch_norm, activation, trainable: true })
}
