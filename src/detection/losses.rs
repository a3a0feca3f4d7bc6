//! Losses an anchor, before any selection or normalization (upstream core/losses.py).

use anyhow::Result;
use tch::{Kind, Tensor};

/// How boxes are compared.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum LocalizationLoss {
    /// Huber: `0.5 d^2` up to `delta`, `delta * (|d| - 0.5 delta)` beyond.
    SmoothL1 { delta: f64 },
    /// `0.5 d^2`.
    L2,
}

impl LocalizationLoss {
    /// * `predictions`, `targets`: `[N, A, 4]`; `weights`: `[N, A]`.
    /// * returns `[N, A]`.
    pub fn per_anchor(&self, predictions: &Tensor, targets: &Tensor, weights: &Tensor) -> Result<Tensor> {
        let loss = match *self {
            Self::SmoothL1 { delta } => predictions.f_huber_loss(targets, tch::Reduction::None, delta)?,
            Self::L2 => (predictions - targets).f_square()? * 0.5,
        }; // [N, A, 4]
        Ok(loss.f_sum_dim_intlist([-1i64].as_slice(), false, Kind::Float)? * weights) // [N, A]
    }
}

/// How class scores are compared.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum ClassificationLoss {
    /// Binary cross entropy a column.
    Sigmoid,
    /// Binary cross entropy a column, the well classified ones weighed down (Lin et al., arXiv:1708.02002).
    SigmoidFocal { alpha: Option<f64>, gamma: f64 },
    /// Cross entropy over the columns, logits divided by `logit_scale`.
    Softmax { logit_scale: f64 },
    /// Binary cross entropy towards a mix of the target and the prediction (Reed et al., arXiv:1412.6596).
    BootstrappedSigmoid { alpha: f64, hard: bool },
}

impl ClassificationLoss {
    /// * `logits`: `[N, A, K + 1]`; `classes`: column of the target, `[N, A]` int64; `weights`: `[N, A]`.
    /// * returns `[N, A]`.
    pub fn per_anchor(&self, logits: &Tensor, classes: &Tensor, weights: &Tensor) -> Result<Tensor> {
        let columns = logits.size()[2];
        let loss = match *self {
            Self::Softmax { logit_scale } => {
                let log = (logits / logit_scale).f_log_softmax(-1, Kind::Float)?;
                log.f_gather(-1, &classes.f_unsqueeze(-1)?, false)?.f_squeeze_dim(-1)?.f_neg()?
            }
            Self::Sigmoid => {
                let targets = one_hot(classes, columns)?; // [N, A, K + 1]
                sum_columns(&cross_entropy(logits, &targets)?)?
            }
            Self::SigmoidFocal { alpha, gamma } => {
                let targets = one_hot(classes, columns)?;
                let p = logits.f_sigmoid()?;
                let p_t: Tensor = &targets * &p + (1.0f64 - &targets) * (1.0f64 - &p);
                let mut loss = cross_entropy(logits, &targets)?;
                if gamma != 0.0 {
                    loss *= (1.0f64 - &p_t).f_pow_tensor_scalar(gamma)?;
                }
                if let Some(alpha) = alpha {
                    loss *= &targets * alpha + (1.0f64 - &targets) * (1.0 - alpha);
                }
                sum_columns(&loss)?
            }
            Self::BootstrappedSigmoid { alpha, hard } => {
                let targets = one_hot(classes, columns)?;
                let p = logits.f_sigmoid()?;
                let guess = if hard { p.f_gt(0.5)?.to_kind(Kind::Float) } else { p };
                sum_columns(&cross_entropy(logits, &(targets * alpha + guess * (1.0 - alpha)))?)?
            }
        };
        Ok(loss * weights)
    }
}

fn one_hot(classes: &Tensor, columns: i64) -> Result<Tensor> {
    Ok(classes.f_one_hot(columns)?.to_kind(Kind::Float))
}

fn cross_entropy(logits: &Tensor, targets: &Tensor) -> Result<Tensor> {
    Ok(logits.f_binary_cross_entropy_with_logits::<Tensor>(targets, None, None, tch::Reduction::None)?)
}

fn sum_columns(x: &Tensor) -> Result<Tensor> {
    Ok(x.f_sum_dim_intlist([-1i64].as_slice(), false, Kind::Float)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn smooth_l1_is_quadratic_up_to_one_and_linear_beyond() {
        let p = Tensor::from_slice(&[0.5f32, 0.0, 0.0, 3.0]).view([1, 1, 4]);
        let loss = LocalizationLoss::SmoothL1 { delta: 1.0 }
            .per_anchor(&p, &p.zeros_like(), &Tensor::from_slice(&[2.0f32]).view([1, 1]))
            .unwrap();
        assert!((loss.double_value(&[0, 0]) - 2.0 * (0.125 + 2.5)).abs() < 1e-6);
    }

    #[test]
    fn sigmoid_counts_every_column() {
        let logits = Tensor::zeros([1, 1, 3], (Kind::Float, tch::Device::Cpu));
        let loss = ClassificationLoss::Sigmoid
            .per_anchor(&logits, &Tensor::from_slice(&[0i64]).view([1, 1]), &Tensor::from_slice(&[1.0f32]).view([1, 1]))
            .unwrap();
        assert!((loss.double_value(&[0, 0]) - 3.0 * 2f64.ln()).abs() < 1e-6);
    }
}
