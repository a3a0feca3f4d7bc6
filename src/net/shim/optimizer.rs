//! One step of an optimizer over all variables in one call, with TensorFlow 1.x's arithmetic, L2 regularization and clipping.

use std::ffi::c_int;

use anyhow::{Context, Result, ensure};
use tch::Tensor;
use torch_sys::C_tensor;

use super::check;

unsafe extern "C" {
    fn odh_optimizer_step(
        rule: c_int,
        n: i64,
        vars: *const *const C_tensor,
        grads: *const *const C_tensor,
        slot0: *const *const C_tensor,
        slot1: *const *const C_tensor,
        l2: *const f64,
        multipliers: *const f64,
        numbers: *const f64,
    ) -> c_int;
    fn odh_l2_loss(n: i64, vars: *const *const C_tensor, l2: *const f64, out: *mut f64) -> c_int;
    fn odh_take_grad(var: *const C_tensor, out: *mut *mut C_tensor) -> c_int;
}

/// How gradients change variables.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Rule {
    /// `ms += (g² - ms) * (1 - decay); mom = momentum * mom + lr * g / sqrt(ms + epsilon); var -= mom`.
    /// Slots: `ms` (TensorFlow starts it at 1), `mom` (at 0).
    RmsProp { decay: f64, momentum: f64, epsilon: f64 },
    /// `acc = momentum * acc + g; var -= lr * acc`, or with `nesterov` `var -= lr * (g + momentum * acc)`. Slot: `acc` (at 0).
    Momentum { momentum: f64, nesterov: bool },
    /// `m += (g - m) * (1 - beta1); v += (g² - v) * (1 - beta2); var -= lr' * m / (sqrt(v) + epsilon)`, where
    /// `lr' = lr * sqrt(1 - beta2_power) / (1 - beta1_power)`, the powers being beta to the t, `t` = 1 in the first step.
    /// Slots: `m`, `v` (both at 0).
    Adam { beta1: f64, beta2: f64, epsilon: f64, beta1_power: f64, beta2_power: f64 },
}

/// What one step works on: parallel slices, one entry a variable.
#[derive(Debug, Clone, Copy)]
pub struct Update<'a> {
    /// Changed in place.
    pub vars: &'a [&'a Tensor],
    pub grads: &'a [&'a Tensor],
    /// The rule's first slots, changed in place.
    pub slots0: &'a [&'a Tensor],
    /// The rule's second slots, changed in place; empty for momentum.
    pub slots1: &'a [&'a Tensor],
    /// Weight of the L2 regularizer `weight / 2 * |var|²`, whose gradient is added to `grads`; 0 for none.
    pub l2: &'a [f64],
    /// Factor of each gradient, the regularizer's share included; 1 for none.
    pub multipliers: &'a [f64],
    /// Each gradient, multiplied, is then scaled down to this norm at most, as `tf.clip_by_norm` does.
    pub clip_norm: Option<f64>,
    pub learning_rate: f64,
}

/// Applies one step. One pass over memory for fp32 on the CPU, where slots and gradients lie in the order of their variable (slots made
/// by `zeros_like` do).
///
/// # Errors
/// If the slices differ in length or the tensors in shape.
pub fn optimizer_step(rule: Rule, update: &Update) -> Result<()> {
    let n = update.vars.len();
    let (code, slots, mut numbers) = match rule {
        Rule::RmsProp { decay, momentum, epsilon } => (0, 2, [0., decay, momentum, epsilon, 0., 0., 0., 0., 0., 0.]),
        Rule::Momentum { momentum, nesterov } => {
            (1, 1, [0., 0., momentum, 0., 0., 0., 0., 0., 0., f64::from(u8::from(nesterov))])
        }
        Rule::Adam { beta1, beta2, epsilon, beta1_power, beta2_power } => {
            (2, 2, [0., 0., 0., epsilon, beta1, beta2, beta1_power, beta2_power, 0., 0.])
        }
    };
    numbers[0] = update.learning_rate;
    numbers[8] = update.clip_norm.unwrap_or(0.);
    let lengths = [update.grads.len(), update.slots0.len(), update.l2.len(), update.multipliers.len()];
    ensure!(
        lengths == [n; 4] && update.slots1.len() == if slots == 2 { n } else { 0 },
        "optimizer step: {n} variables with {lengths:?} gradients, first slots, L2 weights and multipliers, and {} second slots",
        update.slots1.len()
    );
    let [vars, grads, slots0, slots1] = [update.vars, update.grads, update.slots0, update.slots1].map(pointers);
    check(unsafe {
        odh_optimizer_step(
            code,
            n as i64,
            vars.as_ptr(),
            grads.as_ptr(),
            slots0.as_ptr(),
            slots1.as_ptr(),
            update.l2.as_ptr(),
            update.multipliers.as_ptr(),
            numbers.as_ptr(),
        )
    })
    .context("optimizer step")
}

/// The sum over variables of `l2 / 2 * |var|²`, in double precision. A GPU sync.
///
/// # Errors
/// If the slices differ in length.
pub fn l2_loss(vars: &[&Tensor], l2: &[f64]) -> Result<f64> {
    ensure!(vars.len() == l2.len(), "{} variables with {} L2 weights", vars.len(), l2.len());
    let mut out = 0.;
    check(unsafe { odh_l2_loss(vars.len() as i64, pointers(vars).as_ptr(), l2.as_ptr(), &mut out) }).context("L2 loss")?;
    Ok(out)
}

/// Takes a variable's gradient away and leaves none, so that the next backward pass stores its result instead of adding to zeros.
pub fn take_grad(var: &Tensor) -> Result<Option<Tensor>> {
    let mut out = std::ptr::null_mut();
    check(unsafe { odh_take_grad(var.as_ptr(), &mut out) }).context("taking a gradient")?;
    Ok((!out.is_null()).then(|| unsafe { Tensor::from_ptr(out) }))
}

fn pointers(tensors: &[&Tensor]) -> Vec<*const C_tensor> {
    tensors.iter().map(|t| t.as_ptr()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::shim::channels_last;
    use tch::{Device, Kind};

    fn scalar(v: f32) -> Tensor {
        Tensor::from_slice(&[v])
    }

    fn value(t: &Tensor) -> f64 {
        t.double_value(&[0])
    }

    fn one(rule: Rule, l2: f64, clip_norm: Option<f64>, slots: [f32; 2]) -> [f64; 3] {
        let (var, grad, s0, s1) = (scalar(2.), scalar(0.5), scalar(slots[0]), scalar(slots[1]));
        let second: &[&Tensor] = if matches!(rule, Rule::Momentum { .. }) { &[] } else { &[&s1] };
        let update = Update {
            vars: &[&var],
            grads: &[&grad],
            slots0: &[&s0],
            slots1: second,
            l2: &[l2],
            multipliers: &[1.],
            clip_norm,
            learning_rate: 0.1,
        };
        optimizer_step(rule, &update).unwrap();
        [value(&var), value(&s0), value(&s1)]
    }

    fn assert_close(got: [f64; 3], expected: [f64; 3]) {
        for (g, e) in got.iter().zip(expected) {
            assert!((g - e).abs() < 1e-6, "{got:?} is not {expected:?}");
        }
    }

    #[test]
    fn rmsprop_is_what_a_pencil_says() {
        let rule = Rule::RmsProp { decay: 0.9, momentum: 0.5, epsilon: 1. };
        // ms = 1 + (0.25 - 1) * 0.1 = 0.925; mom = 0.2 * 0.5 + 0.1 * 0.5 / sqrt(1.925)
        let mom = 0.1 + 0.05 / 1.925f64.sqrt();
        assert_close(one(rule, 0., None, [1., 0.2]), [2. - mom, 0.925, mom]);
        // L2: g = 0.5 + 0.25 * 2 = 1
        let mom = 0.1 + 0.1 / 2f64.sqrt();
        assert_close(one(rule, 0.25, None, [1., 0.2]), [2. - mom, 1., mom]);
        // ... clipped to 0.5 again
        let mom = 0.1 + 0.05 / 1.925f64.sqrt();
        assert_close(one(rule, 0.25, Some(0.5), [1., 0.2]), [2. - mom, 0.925, mom]);
        // ... and left alone by a larger norm
        let mom = 0.1 + 0.1 / 2f64.sqrt();
        assert_close(one(rule, 0.25, Some(3.), [1., 0.2]), [2. - mom, 1., mom]);
    }

    #[test]
    fn momentum_and_nesterov_are_what_a_pencil_says() {
        let plain = Rule::Momentum { momentum: 0.9, nesterov: false };
        assert_close(one(plain, 0., None, [1., 0.]), [2. - 0.14, 1.4, 0.]);
        let nesterov = Rule::Momentum { momentum: 0.9, nesterov: true };
        assert_close(one(nesterov, 0., None, [1., 0.]), [2. - 0.05 - 0.9 * 1.4 * 0.1, 1.4, 0.]);
    }

    #[test]
    fn adam_is_what_a_pencil_says() {
        let rule = Rule::Adam { beta1: 0.9, beta2: 0.999, epsilon: 1e-8, beta1_power: 0.9, beta2_power: 0.999 };
        // In the first step m and v are corrected to g and g², so the step is the learning rate.
        assert_close(one(rule, 0., None, [0., 0.]), [1.9, 0.05, 0.00025]);
    }

    fn random(shape: &[i64], seed: i64) -> Tensor {
        let n: i64 = shape.iter().product();
        ((Tensor::arange(n, (Kind::Double, Device::Cpu)) + seed) * 12.9898).sin().to_kind(Kind::Float).view(shape)
    }

    /// Three steps over several variables, in `kind`.
    fn several(rule: Rule, kind: Kind, clip_norm: Option<f64>) -> Vec<Tensor> {
        let shapes: [&[i64]; 4] = [&[7], &[16, 8, 3, 3], &[300, 301], &[5, 1, 1, 1]];
        let make = |seed: i64| -> Vec<Tensor> {
            shapes.iter().enumerate().map(|(i, s)| random(s, seed * 100 + i as i64).to_kind(kind)).collect()
        };
        let mut vars = make(1);
        vars[1] = channels_last(&vars[1]).unwrap();
        let slots0: Vec<Tensor> = vars.iter().map(Tensor::ones_like).collect();
        let slots1: Vec<Tensor> = vars.iter().map(Tensor::ones_like).collect();
        let refs = |t: &[Tensor]| t.iter().map(Tensor::shallow_clone).collect::<Vec<_>>();
        for step in 0..3 {
            let grads = make(2 + step);
            let (v, g, a, b) = (refs(&vars), refs(&grads), refs(&slots0), refs(&slots1));
            let [v, g, a, b] = [&v, &g, &a, &b].map(|t| t.iter().collect::<Vec<&Tensor>>());
            let second = if matches!(rule, Rule::Momentum { .. }) { &[][..] } else { &b[..] };
            let update = Update {
                vars: &v,
                grads: &g,
                slots0: &a,
                slots1: second,
                l2: &[0., 4e-5, 0.1, 0.],
                multipliers: &[1., 0.5, 1., 2.],
                clip_norm,
                learning_rate: 0.01,
            };
            optimizer_step(rule, &update).unwrap();
        }
        vars.into_iter().chain(slots0).chain(slots1).collect()
    }

    #[test]
    fn the_single_pass_and_libtorch_operators_agree() {
        let rules = [
            Rule::RmsProp { decay: 0.9, momentum: 0.9, epsilon: 1. },
            Rule::Momentum { momentum: 0.9, nesterov: false },
            Rule::Momentum { momentum: 0.9, nesterov: true },
            // As in TensorFlow 1 - beta is rounded to single precision, so betas that it holds exactly.
            Rule::Adam { beta1: 0.875, beta2: 0.9375, epsilon: 1e-8, beta1_power: 0.5, beta2_power: 0.9 },
        ];
        for rule in rules {
            for clip in [None, Some(0.7)] {
                let fused = several(rule, Kind::Float, clip);
                let double = several(rule, Kind::Double, clip);
                for (i, (a, b)) in fused.iter().zip(&double).enumerate() {
                    let e = (a.to_kind(Kind::Double) - b).abs().max().double_value(&[]);
                    assert!(e < 2e-6, "{rule:?} clip {clip:?}, tensor {i}: {e}");
                }
            }
        }
    }

    #[test]
    fn the_l2_loss_is_half_the_weighted_sum_of_squares() {
        let vars = [random(&[100, 1000], 1), random(&[3], 2), random(&[9], 3)];
        let refs: Vec<&Tensor> = vars.iter().collect();
        let expected: f64 = [0.5, 2.]
            .iter()
            .zip(&vars)
            .map(|(l2, v)| v.to_kind(Kind::Double).square().sum(Kind::Double).double_value(&[]) * l2 / 2.)
            .sum();
        let got = l2_loss(&refs, &[0.5, 2., 0.]).unwrap();
        assert!((got - expected).abs() < 1e-6 * expected, "{got} {expected}");
    }

    #[test]
    fn a_taken_gradient_is_gone_and_the_next_one_is_not_added_to_it() {
        let x = scalar(3.).set_requires_grad(true);
        assert!(take_grad(&x).unwrap().is_none());
        for _ in 0..2 {
            (&x * 2).sum(Kind::Float).backward();
            assert_eq!(value(&take_grad(&x).unwrap().unwrap()), 2.);
        }
        assert!(take_grad(&x).unwrap().is_none());
    }

    #[test]
    fn mismatched_lists_are_refused() {
        let (a, b) = (scalar(1.), Tensor::ones([2], (Kind::Float, Device::Cpu)));
        let rule = Rule::Momentum { momentum: 0.9, nesterov: false };
        let update = Update {
            vars: &[&a],
            grads: &[&b],
            slots0: &[&a],
            slots1: &[],
            l2: &[0.],
            multipliers: &[1.],
            clip_norm: None,
            learning_rate: 0.1,
        };
        let message = format!("{:#}", optimizer_step(rule, &update).unwrap_err());
        assert!(message.contains("variable 0"), "{message}");
        assert!(optimizer_step(rule, &Update { l2: &[], ..update }).is_err());
    }
}
