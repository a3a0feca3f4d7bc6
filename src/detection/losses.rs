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
    /// * `predictions`, `targets`: `[N, A, 4]`; `weights`: `[N, A]`; computed in the predictions' kind.
    /// * returns `[N, A]`.
    pub fn per_anchor(&self, predictions: &Tensor, targets: &Tensor, weights: &Tensor) -> Result<Tensor> {
        let targets = &targets.f_to_kind(predictions.kind())?;
        let loss = match *self {
            Self::SmoothL1 { delta } => predictions.f_huber_loss(targets, tch::Reduction::None, delta)?,
            Self::L2 => predictions.f_sub(targets)?.f_square()?.f_mul_scalar(0.5)?,
        }; // [N, A, 4]
        Ok(sum_columns(&loss)?.f_mul(weights)?) // [N, A]
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
    /// * `logits`: `[N, A, K + 1]`; `classes`: column of the target, -1 for a target of zeros, `[N, A]` int64; `weights`: `[N, A]`.
    /// * returns `[N, A]`.
    pub fn per_anchor(&self, logits: &Tensor, classes: &Tensor, weights: &Tensor) -> Result<Tensor> {
        let columns = logits.size()[2];
        let loss = match *self {
            Self::Softmax { logit_scale } => {
                let logits = logits.f_div_scalar(logit_scale)?;
                let logits = logits.f_sub(&logits.f_detach()?.f_amax([-1i64], true)?)?;
                let all = logits.f_logsumexp([-1i64], false)?; // [N, A]
                let target = logits.f_gather(-1, &classes.f_clamp_min(0)?.f_unsqueeze(-1)?, false)?.f_squeeze_dim(-1)?;
                // Of a target of zeros the loss is 0, but as TensorFlow's kernel has it, its gradient is the softmax.
                all.f_sub(&target)?.f_where_self(&classes.f_ge(0)?, &all.f_sub(&all.f_detach()?)?)?
            }
            Self::Sigmoid => {
                let targets = one_hot(classes, columns)?.f_to_kind(logits.kind())?; // [N, A, K + 1]
                sum_columns(&cross_entropy(logits, &targets)?)?
            }
            Self::SigmoidFocal { alpha, gamma } => {
                let targets = one_hot(classes, columns)?.f_to_kind(logits.kind())?;
                let p = logits.f_sigmoid()?;
                let others = one_minus(&targets)?;
                let p_t = targets.f_mul(&p)?.f_add(&others.f_mul(&one_minus(&p)?)?)?;
                let mut loss = cross_entropy(logits, &targets)?;
                if gamma != 0.0 {
                    loss = loss.f_mul_(&one_minus(&p_t)?.f_pow_tensor_scalar(gamma)?)?;
                }
                if let Some(alpha) = alpha {
                    loss = loss.f_mul_(&targets.f_mul_scalar(alpha)?.f_add(&others.f_mul_scalar(1.0 - alpha)?)?)?;
                }
                sum_columns(&loss)?
            }
            Self::BootstrappedSigmoid { alpha, hard } => {
                let targets = one_hot(classes, columns)?.f_to_kind(logits.kind())?;
                let p = logits.f_sigmoid()?;
                let guess = if hard { p.f_gt(0.5)?.f_to_kind(Kind::Float)? } else { p };
                let mixed = targets.f_mul_scalar(alpha)?.f_add(&guess.f_mul_scalar(1.0 - alpha)?)?;
                sum_columns(&cross_entropy(logits, &mixed)?)?
            }
        };
        Ok(loss.f_mul(weights)?)
    }
}

/// All zeros for a class of -1.
fn one_hot(classes: &Tensor, columns: i64) -> Result<Tensor> {
    let columns = Tensor::f_arange(columns, (Kind::Int64, classes.device()))?;
    Ok(classes.f_unsqueeze(-1)?.f_eq_tensor(&columns)?.f_to_kind(Kind::Float)?) // [N, A, K + 1]
}

fn cross_entropy(logits: &Tensor, targets: &Tensor) -> Result<Tensor> {
    Ok(logits.f_binary_cross_entropy_with_logits::<Tensor>(targets, None, None, tch::Reduction::None)?)
}

fn one_minus(x: &Tensor) -> Result<Tensor> {
    Ok(x.f_sub_scalar(1.0)?.f_neg()?)
}

fn sum_columns(x: &Tensor) -> Result<Tensor> {
    Ok(x.f_sum_dim_intlist([-1i64].as_slice(), false, x.kind())?)
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

    /// The loss of one anchor with weight 1, and its gradient by logit.
    fn one(loss: ClassificationLoss, logits: &[f32], class: i64) -> (f64, Vec<f32>) {
        let x = Tensor::from_slice(logits).view([1, 1, -1]).set_requires_grad(true);
        let class = Tensor::from_slice(&[class]).view([1, 1]);
        let loss = loss.per_anchor(&x, &class, &Tensor::from_slice(&[1f32]).view([1, 1])).unwrap();
        loss.sum(Kind::Float).backward();
        (loss.double_value(&[0, 0]), Vec::try_from(x.grad().view([-1])).unwrap())
    }

    fn near(mine: f64, expected: f64) {
        assert!((mine - expected).abs() < 1e-5 * expected.abs().max(1.0), "{mine} is not {expected}");
    }

    #[test]
    fn softmax_divides_the_logits_by_their_scale() {
        // By hand: exp(2 / 2) and exp(0); the loss of the first column is ln(1 + exp(-1)).
        let (loss, gradient) = one(ClassificationLoss::Softmax { logit_scale: 2.0 }, &[2.0, 0.0], 0);
        near(loss, (1.0 + (-1f64).exp()).ln());
        near(gradient[1].into(), 1.0 / (1.0 + 1f64.exp()) / 2.0);
    }

    #[test]
    fn a_focal_loss_weighs_down_what_is_well_classified() {
        // By hand, at logits of 0 every probability is one half: each column's cross entropy ln 2 times 0.5^2, times alpha 0.25 for the
        // target's column and 0.75 for the two others.
        let (loss, _) = one(ClassificationLoss::SigmoidFocal { alpha: Some(0.25), gamma: 2.0 }, &[0.0; 3], 1);
        near(loss, 2f64.ln() * 0.25 * (0.25 + 0.75 * 2.0));
        let (loss, _) = one(ClassificationLoss::SigmoidFocal { alpha: None, gamma: 0.0 }, &[0.0; 3], 1);
        near(loss, 3.0 * 2f64.ln());
    }

    #[test]
    fn a_bootstrapped_loss_mixes_the_target_with_the_prediction() {
        // By hand at logits of ln 3: probability 3/4. Soft: the target 0.8 * 1 + 0.2 * 0.75 = 0.95; hard: 0.8 + 0.2 = 1.
        let x = [3f32.ln()];
        let entropy = |t: f64| -t * 0.75f64.ln() - (1.0 - t) * 0.25f64.ln();
        near(one(ClassificationLoss::BootstrappedSigmoid { alpha: 0.8, hard: false }, &x, 0).0, entropy(0.95));
        near(one(ClassificationLoss::BootstrappedSigmoid { alpha: 0.8, hard: true }, &x, 0).0, entropy(1.0));
    }

    #[test]
    fn a_target_of_zeros_is_no_column_and_keeps_tensorflows_gradient() {
        let (loss, gradient) = one(ClassificationLoss::Sigmoid, &[0.0, 0.0], -1);
        near(loss, 2.0 * 2f64.ln());
        near(gradient[0].into(), 0.5);
        let (loss, gradient) = one(ClassificationLoss::Softmax { logit_scale: 1.0 }, &[0.0, 0.0], -1);
        near(loss, 0.0);
        near(gradient[0].into(), 0.5);
    }

    #[test]
    fn an_l2_loss_is_half_the_squares() {
        let p = Tensor::from_slice(&[1.0f32, 2.0, 0.0, -3.0]).view([1, 1, 4]);
        let loss = LocalizationLoss::L2.per_anchor(&p, &p.zeros_like(), &Tensor::from_slice(&[2.0f32]).view([1, 1])).unwrap();
        near(loss.double_value(&[0, 0]), 2.0 * (0.5 + 2.0 + 4.5));
    }
}
