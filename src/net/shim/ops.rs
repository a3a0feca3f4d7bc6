//! Layers with kernels of our own on the CPU: depthwise convolution, and batch norm together with its activation.
//!
//! The fast paths take fp32 on the CPU and work in NHWC order (`channels_last`): an input in another order is copied into it, so a
//! network is fastest when its pictures enter as `channels_last`. Other devices and types go through libtorch's own operators. All
//! are differentiable once.

use std::ffi::c_int;

use anyhow::{Context, Result};
use tch::Tensor;
use torch_sys::C_tensor;

use super::{check, tensor};

unsafe extern "C" {
    fn odh_depthwise_conv2d(x: *const C_tensor, w: *const C_tensor, geometry: *const i64, out: *mut *mut C_tensor) -> c_int;
    fn odh_batch_norm_train(
        x: *const C_tensor,
        gamma: *const C_tensor,
        beta: *const C_tensor,
        eps: f64,
        centred: c_int,
        act: c_int,
        out: *mut *mut C_tensor,
    ) -> c_int;
    fn odh_affine_act(
        x: *const C_tensor,
        scale: *const C_tensor,
        shift: *const C_tensor,
        act: c_int,
        out: *mut *mut C_tensor,
    ) -> c_int;
}

/// The activation that a layer applies in the same pass.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Act {
    #[default]
    None = 0,
    Relu = 1,
    Relu6 = 2,
}

/// How a batch norm is written out, which decides how it rounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// `(x - mean) * scale + beta`: TensorFlow's fused kernel.
    Fused,
    /// `x * scale + (beta - mean * scale)`: TensorFlow's separate operations.
    Separate,
}

/// Where a convolution's kernel meets its input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConvGeometry {
    /// Rows, columns.
    pub stride: [i64; 2],
    /// Zeros around the input: top, left, bottom, right. TensorFlow's SAME often differs between the sides.
    pub padding: [i64; 4],
    pub dilation: [i64; 2],
}

/// Depthwise convolution without bias.
///
/// * `x`: `[N, C, H, W]`
/// * `w`: `[C * M, 1, kh, kw]`; the fast path is for M = 1
/// * returns `[N, C * M, OH, OW]`
///
/// # Errors
/// If the shapes do not fit.
pub fn depthwise_conv2d(x: &Tensor, w: &Tensor, geometry: ConvGeometry) -> Result<Tensor> {
    let ConvGeometry { stride: s, padding: p, dilation: d } = geometry;
    let geometry = [s[0], s[1], p[0], p[1], p[2], p[3], d[0], d[1]];
    tensor(|out| unsafe { odh_depthwise_conv2d(x.as_ptr(), w.as_ptr(), geometry.as_ptr(), out) }).context("depthwise convolution")
}

/// What [`batch_norm_train`] gives.
#[derive(Debug)]
pub struct BatchNorm {
    /// The normalized (and activated) values, as the input.
    pub y: Tensor,
    /// `[C]`, no gradient.
    pub mean: Tensor,
    /// `[C]`, biased (divided by the count), no gradient.
    pub variance: Tensor,
}

/// Batch norm by the batch's own statistics, then `act`: `act((x - mean) / sqrt(variance + eps) * gamma + beta)`.
///
/// * `x`: `[N, C, H, W]` or `[N, C]`
/// * `gamma`: `[C]`, or `None` for 1 (`scale: false`); `beta`: `[C]`
///
/// # Errors
/// If the input is empty or the shapes do not fit.
pub fn batch_norm_train(
    x: &Tensor,
    gamma: Option<&Tensor>,
    beta: &Tensor,
    eps: f64,
    (form, act): (Form, Act),
) -> Result<BatchNorm> {
    let mut out = [std::ptr::null_mut(); 3];
    let gamma = gamma.map_or(std::ptr::null(), Tensor::as_ptr);
    let centred = c_int::from(form == Form::Fused);
    check(unsafe { odh_batch_norm_train(x.as_ptr(), gamma, beta.as_ptr(), eps, centred, act as c_int, out.as_mut_ptr()) })
        .context("batch norm")?;
    let [y, mean, variance] = out.map(|p| unsafe { Tensor::from_ptr(p) });
    Ok(BatchNorm { y, mean, variance })
}

/// `act(x * scale + shift)`, a channel at a time: batch norm by frozen statistics, or a bias (`scale` 1).
///
/// * `x`: `[N, C, H, W]` or `[N, C]`
/// * `scale`, `shift`: `[C]`
///
/// # Errors
/// If the shapes do not fit.
pub fn affine_act(x: &Tensor, scale: &Tensor, shift: &Tensor, act: Act) -> Result<Tensor> {
    tensor(|out| unsafe { odh_affine_act(x.as_ptr(), scale.as_ptr(), shift.as_ptr(), act as c_int, out) })
        .context("affine and activation")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::shim::{channels_last, init, is_channels_last};
    use rand_chacha::ChaCha8Rng;
    use rand_chacha::rand_core::{Rng, SeedableRng};
    use std::cell::RefCell;
    use tch::{Device, Kind};

    unsafe extern "C" {
        fn odh_use_instruction_set(i: c_int) -> c_int;
    }

    thread_local! {
        // Each test has a thread, and so numbers, of its own.
        static RNG: RefCell<ChaCha8Rng> = RefCell::new(ChaCha8Rng::seed_from_u64(7));
    }

    /// Roughly normal numbers: mean 0, variance 1.
    fn random(shape: &[i64]) -> Tensor {
        let count = shape.iter().product::<i64>() as usize;
        let values: Vec<f32> = RNG.with_borrow_mut(|rng| {
            let mut uniform = || f64::from(rng.next_u32()) / f64::from(u32::MAX) - 0.5;
            (0..count).map(|_| ((0..4).map(|_| uniform()).sum::<f64>() * 3f64.sqrt()) as f32).collect()
        });
        Tensor::from_slice(&values).view(shape)
    }

    /// Runs `f` with every instruction set that this processor has.
    fn with_every_instruction_set(f: impl Fn()) {
        for i in 0.. {
            if check(unsafe { odh_use_instruction_set(i) }).is_err() {
                assert!(i > 0);
                break;
            }
            f();
        }
        check(unsafe { odh_use_instruction_set(0) }).unwrap();
    }

    /// The largest difference as a part of the largest value of `right`.
    fn error(left: &Tensor, right: &Tensor) -> f64 {
        assert_eq!(left.size(), right.size());
        let right = right.to_kind(Kind::Double);
        let difference = (left.to_kind(Kind::Double) - &right).abs().max();
        (difference / right.abs().max().clamp_min(1e-30)).double_value(&[])
    }

    /// Copies that record gradients, in `kind`.
    fn leaves(tensors: &[&Tensor], kind: Kind) -> Vec<Tensor> {
        tensors.iter().map(|t| t.to_kind(kind).detach().copy().set_requires_grad(true)).collect()
    }

    fn reference_depthwise(x: &Tensor, w: &Tensor, g: ConvGeometry) -> Tensor {
        let [top, left, bottom, right] = g.padding;
        let x = x.constant_pad_nd([left, right, top, bottom]);
        x.conv2d(w, None::<&Tensor>, g.stride, [0, 0], g.dilation, w.size()[0])
    }

    fn compare_depthwise(n: i64, c: i64, size: [i64; 2], kernel: [i64; 2], g: ConvGeometry) {
        let x = channels_last(&random(&[n, c, size[0], size[1]])).unwrap();
        let w = random(&[c, 1, kernel[0], kernel[1]]);
        let ours = leaves(&[&x, &w], Kind::Float);
        let y = depthwise_conv2d(&ours[0], &ours[1], g).unwrap();
        assert!(is_channels_last(&y).unwrap());
        let exact = leaves(&[&x, &w], Kind::Double);
        let expected = reference_depthwise(&exact[0], &exact[1], g);
        let what = format!("n {n} c {c} size {size:?} kernel {kernel:?} {g:?}");
        assert!(error(&y, &expected) < 1e-6, "forward: {what}: {}", error(&y, &expected));
        let dy = random(&y.size());
        (&y * &dy).sum(Kind::Float).backward();
        (&expected * dy.to_kind(Kind::Double)).sum(Kind::Double).backward();
        for (name, a, b) in [("input", &ours[0], &exact[0]), ("weight", &ours[1], &exact[1])] {
            let e = error(&a.grad(), &b.grad());
            assert!(e < 2e-6, "{name} gradient: {what}: {e}");
        }
    }

    #[test]
    fn depthwise_convolution_and_its_gradients_equal_a_double_precision_reference() {
        with_every_instruction_set(check_depthwise_convolution);
    }

    fn check_depthwise_convolution() {
        init().unwrap();
        let geometry = |stride, padding, dilation| ConvGeometry { stride, padding, dilation };
        let same = geometry([1, 1], [1, 1, 1, 1], [1, 1]);
        // The widths of MobileNet at depth multipliers 1 and 0.75, and channel counts that no vector divides.
        for c in [1, 3, 8, 24, 32, 37, 96] {
            compare_depthwise(2, c, [19, 21], [3, 3], same);
            // SAME at stride 2: an even size pads below and to the right only.
            compare_depthwise(2, c, [20, 26], [3, 3], geometry([2, 2], [0, 0, 1, 1], [1, 1]));
        }
        compare_depthwise(1, 16, [1, 1], [3, 3], same);
        compare_depthwise(3, 16, [2, 3], [3, 3], geometry([2, 2], [1, 1, 1, 1], [1, 1]));
        compare_depthwise(2, 20, [17, 13], [5, 5], geometry([1, 1], [2, 2, 2, 2], [1, 1]));
        compare_depthwise(2, 20, [17, 13], [7, 3], geometry([2, 1], [2, 0, 3, 2], [1, 1]));
        compare_depthwise(2, 20, [23, 18], [3, 3], geometry([1, 1], [2, 2, 2, 2], [2, 2]));
        compare_depthwise(2, 20, [23, 18], [3, 3], geometry([2, 3], [4, 0, 1, 6], [3, 2]));
        // VALID, with input rows and columns that no output reads.
        compare_depthwise(2, 12, [12, 14], [3, 3], geometry([4, 4], [0, 0, 0, 0], [1, 1]));
        compare_depthwise(1, 64, [75, 75], [3, 3], same);
    }

    #[test]
    fn depthwise_convolution_takes_other_orders_types_and_multipliers() {
        let g = ConvGeometry { stride: [2, 2], padding: [0, 0, 1, 1], dilation: [1, 1] };
        let (x, w) = (random(&[2, 6, 10, 10]), random(&[6, 1, 3, 3]));
        let expected = reference_depthwise(&x, &w, g);
        assert!(error(&depthwise_conv2d(&x, &w, g).unwrap(), &expected) < 1e-6);
        let (x64, w64) = (x.to_kind(Kind::Double), w.to_kind(Kind::Double));
        assert!(error(&depthwise_conv2d(&x64, &w64, g).unwrap(), &expected) < 1e-6);
        let twice = random(&[12, 1, 3, 3]);
        let y = depthwise_conv2d(&x, &twice, g).unwrap();
        let expected = x.constant_pad_nd([0, 1, 0, 1]).conv2d(&twice, None::<&Tensor>, [2, 2], [0, 0], [1, 1], 6);
        assert!(error(&y, &expected) < 1e-6);
    }

    #[test]
    fn depthwise_convolution_rejects_what_does_not_fit() {
        let g = ConvGeometry { stride: [1, 1], padding: [0; 4], dilation: [1, 1] };
        let (x, w) = (random(&[1, 4, 2, 2]), random(&[4, 1, 3, 3]));
        let message = format!("{:#}", depthwise_conv2d(&x, &w, g).unwrap_err());
        assert!(message.contains("larger than the padded input"), "{message}");
        assert!(depthwise_conv2d(&x, &random(&[6, 1, 1, 1]), g).is_err());
        let flat = ConvGeometry { stride: [0, 1], ..g };
        assert!(depthwise_conv2d(&x, &random(&[4, 1, 1, 1]), flat).is_err());
    }

    #[test]
    fn two_runs_of_the_gradients_give_the_same_bits_with_one_thread_and_with_two() {
        let g = ConvGeometry { stride: [1, 1], padding: [1, 1, 1, 1], dilation: [1, 1] };
        let x = channels_last(&random(&[3, 32, 40, 40])).unwrap();
        let (w, beta, dy) = (random(&[32, 1, 3, 3]), random(&[32]), random(&[3, 32, 40, 40]));
        let threads = tch::get_num_threads();
        let run = |threads| {
            tch::set_num_threads(threads);
            let leaves = leaves(&[&x, &w, &beta], Kind::Float);
            let y = depthwise_conv2d(&leaves[0], &leaves[1], g).unwrap();
            let y = batch_norm_train(&y, None, &leaves[2], 1e-3, (Form::Fused, Act::Relu6)).unwrap().y;
            (y * &dy).sum(Kind::Float).backward();
            leaves.iter().map(Tensor::grad).collect::<Vec<_>>()
        };
        let (one, two, again) = (run(1), run(2), run(2));
        tch::set_num_threads(threads);
        for i in 0..3 {
            assert_eq!(one[i], two[i]);
            assert_eq!(two[i], again[i]);
        }
    }

    fn reference_norm(x: &Tensor, gamma: &Tensor, beta: &Tensor, eps: f64, act: Act) -> Tensor {
        let dims: &[i64] = if x.dim() == 4 { &[0, 2, 3] } else { &[0] };
        let mean = x.mean_dim(dims, true, None);
        let variance = (x - &mean).square().mean_dim(dims, true, None);
        let shape: &[i64] = if x.dim() == 4 { &[1, -1, 1, 1] } else { &[1, -1] };
        activate(&((x - &mean) / (variance + eps).sqrt() * gamma.view(shape) + beta.view(shape)), act)
    }

    fn activate(x: &Tensor, act: Act) -> Tensor {
        match act {
            Act::None => x.shallow_clone(),
            Act::Relu => x.relu(),
            Act::Relu6 => x.clamp(0, 6),
        }
    }

    #[test]
    fn batch_norm_and_its_gradients_equal_a_double_precision_reference() {
        with_every_instruction_set(check_batch_norm);
    }

    fn check_batch_norm() {
        for (shape, offset) in [
            (vec![4, 32, 13, 17], 0.),
            (vec![2, 5, 9, 7], 3.),
            (vec![8, 1024, 3, 3], -1.),
            (vec![70, 24], 0.5),
            (vec![5, 16, 1, 1], 0.),
            // A mean far from 0 must not cost the variance its digits.
            (vec![3, 48, 40, 40], 100.),
        ] {
            // The rounding of a large mean moves some values across a bend, and with them their gradients.
            let acts: &[Act] = if offset > 50. { &[Act::None] } else { &[Act::None, Act::Relu, Act::Relu6] };
            for (&act, form) in acts.iter().flat_map(|act| [(act, Form::Fused), (act, Form::Separate)]) {
                let mut x = random(&shape) + offset;
                if x.dim() == 4 {
                    x = channels_last(&x).unwrap();
                }
                let c = shape[1];
                let (gamma, beta) = (random(&[c]) * 2, random(&[c]) + 1);
                let ours = leaves(&[&x, &gamma, &beta], Kind::Float);
                let got = batch_norm_train(&ours[0], Some(&ours[1]), &ours[2], 1e-3, (form, act)).unwrap();
                let exact = leaves(&[&x, &gamma, &beta], Kind::Double);
                let expected = reference_norm(&exact[0], &exact[1], &exact[2], 1e-3, act);
                let what = format!("{shape:?} offset {offset} {act:?} {form:?}");
                // The input's own rounding, as a part of its deviation, sets what can be had.
                let tolerance = 3e-6 * (1. + offset.abs() / 20.);
                let e = error(&got.y, &expected);
                assert!(e < tolerance, "forward: {what}: {e}");
                let dims: &[i64] = if shape.len() == 4 { &[0, 2, 3] } else { &[0] };
                let exact_x = exact[0].detach();
                assert!(error(&got.mean, &exact_x.mean_dim(dims, false, None)) < 1e-6);
                let e = error(&got.variance, &exact_x.var_dim(dims, false, false));
                assert!(e < 1e-6, "variance: {what}: {e}");
                assert!(!got.mean.requires_grad() && !got.variance.requires_grad());
                let dy = random(&shape);
                (&got.y * &dy).sum(Kind::Float).backward();
                (&expected * dy.to_kind(Kind::Double)).sum(Kind::Double).backward();
                for (i, name) in ["x", "gamma", "beta"].iter().enumerate() {
                    // Values within rounding of a bend may fall on either side of it; none do at these seeds' tolerance of a
                    // single element, which would show as an error near 1.
                    let e = error(&ours[i].grad(), &exact[i].grad());
                    assert!(e < 2e-5 * (1. + offset.abs() / 20.), "{name}: {what}: {e}");
                }
            }
        }
    }

    #[test]
    fn batch_norm_without_gamma_is_gamma_one() {
        let (x, beta) = (channels_last(&random(&[2, 8, 5, 5])).unwrap(), random(&[8]));
        let one = Tensor::ones([8], (Kind::Float, Device::Cpu));
        let with = batch_norm_train(&x, Some(&one), &beta, 1e-3, (Form::Fused, Act::Relu6)).unwrap();
        let without = batch_norm_train(&x, None, &beta, 1e-3, (Form::Fused, Act::Relu6)).unwrap();
        assert_eq!(with.y, without.y);
    }

    #[test]
    fn batch_norm_of_other_types_goes_through_libtorch() {
        let (x, gamma, beta) = (random(&[2, 8, 5, 5]), random(&[8]), random(&[8]));
        let [x64, gamma64, beta64] = [&x, &gamma, &beta].map(|t| t.to_kind(Kind::Double));
        let ours = batch_norm_train(&x, Some(&gamma), &beta, 1e-3, (Form::Fused, Act::Relu6)).unwrap();
        let double = batch_norm_train(&x64, Some(&gamma64), &beta64, 1e-3, (Form::Fused, Act::Relu6)).unwrap();
        assert!(error(&ours.y, &double.y) < 1e-6);
        assert!(error(&ours.mean, &double.mean) < 1e-6);
        assert!(error(&ours.variance, &double.variance) < 1e-6);
    }

    #[test]
    fn affine_and_its_gradients_equal_a_double_precision_reference() {
        with_every_instruction_set(check_affine);
    }

    fn check_affine() {
        for shape in [vec![2, 37, 11, 9], vec![4, 64, 20, 20], vec![30, 12]] {
            for act in [Act::None, Act::Relu, Act::Relu6] {
                let c = shape[1];
                let (x, s, b) = (random(&shape) * 3, random(&[c]), random(&[c]));
                let ours = leaves(&[&x, &s, &b], Kind::Float);
                let exact = leaves(&[&x, &s, &b], Kind::Double);
                let y = affine_act(&ours[0], &ours[1], &ours[2], act).unwrap();
                let to: &[i64] = if shape.len() == 4 { &[1, -1, 1, 1] } else { &[1, -1] };
                let expected = activate(&(&exact[0] * exact[1].view(to) + exact[2].view(to)), act);
                assert!(error(&y, &expected) < 1e-6);
                let dy = random(&shape);
                (&y * &dy).sum(Kind::Float).backward();
                (&expected * dy.to_kind(Kind::Double)).sum(Kind::Double).backward();
                for i in 0..3 {
                    let e = error(&ours[i].grad(), &exact[i].grad());
                    assert!(e < 2e-6, "{i}: {shape:?} {act:?}: {e}");
                }
            }
        }
    }

    #[test]
    fn a_nan_stays_a_nan() {
        let x = Tensor::from_slice(&[f32::NAN, 1., 2., 3.]).view([4, 1]);
        let one = Tensor::ones([1], (Kind::Float, Device::Cpu));
        let y = affine_act(&x, &one, &one, Act::Relu6).unwrap();
        assert!(y.double_value(&[0, 0]).is_nan());
        let y = batch_norm_train(&x, None, &one, 1e-3, (Form::Fused, Act::Relu6)).unwrap().y;
        assert!(y.double_value(&[1, 0]).is_nan());
    }

    #[test]
    fn a_gradient_of_a_gradient_is_refused() {
        let x = random(&[4, 3]).set_requires_grad(true);
        let one = Tensor::ones([3], (Kind::Float, Device::Cpu));
        let y = affine_act(&x, &one, &one, Act::None).unwrap().sum(Kind::Float);
        assert!(Tensor::f_run_backward(&[y], &[&x], true, true).is_err());
    }
}
