//! The operations of a graph as libtorch calls, the same in training and inference.

use anyhow::{Result, bail};
use tch::Tensor;

use super::graph::{Activation, BatchNorm, Op, VariableId, Window};
use super::shim;

/// Factor and summand of each channel when a batch norm uses its stored statistics, `[C]` each.
pub fn scale_and_shift<'v>(norm: &BatchNorm, var: &impl Fn(VariableId) -> &'v Tensor) -> Result<(Tensor, Tensor)> {
    let mut scale = (var(norm.moving_variance) + norm.epsilon).f_rsqrt()?;
    if let Some(gamma) = norm.gamma {
        scale *= var(gamma);
    }
    let mut shift = -(var(norm.moving_mean) * &scale);
    if let Some(beta) = norm.beta {
        shift += var(beta);
    }
    Ok((scale, shift))
}

/// The activation as the fused kernels name it.
pub fn act(activation: Option<Activation>) -> shim::Act {
    match activation {
        None => shim::Act::None,
        Some(Activation::Relu) => shim::Act::Relu,
        Some(Activation::Relu6) => shim::Act::Relu6,
    }
}

/// `activation(x)` in the memory of `x`.
pub fn activate_in_place(mut x: Tensor, activation: Option<Activation>) -> Result<Tensor> {
    Ok(match activation {
        None => x,
        Some(Activation::Relu) => x.f_relu_()?,
        // Not clamp: its gradient needs the input, which would then be kept beside the result.
        Some(Activation::Relu6) => x.f_relu6_()?,
    })
}

/// A convolution and what follows it.
#[derive(Debug)]
pub struct Convolution<'a> {
    pub weights: &'a Tensor,
    pub bias: Option<&'a Tensor>,
    pub window: &'a Window,
    /// One filter a channel.
    pub depthwise: bool,
    pub activation: Option<Activation>,
}

impl Convolution<'_> {
    /// `[N, I, H, W] -> [N, O, H', W']`.
    pub fn run(&self, x: &Tensor) -> Result<Tensor> {
        let Self { weights, bias, window, depthwise, activation } = *self;
        let size = x.size();
        let [top, left, bottom, right] = window.pads(size[2], size[3]);
        let y = if depthwise {
            let geometry =
                shim::ConvGeometry { stride: window.stride, padding: [top, left, bottom, right], dilation: window.dilation };
            let y = shim::depthwise_conv2d(x, weights, geometry)?;
            match bias {
                // One pass for both; for a gradient it would keep the convolution's result.
                Some(bias) if !y.requires_grad() => {
                    return shim::affine_act(&y, &bias.f_ones_like()?, bias, act(activation));
                }
                Some(bias) => y.f_add(&bias.f_view([1, -1, 1, 1])?)?,
                None => y,
            }
        } else if top == bottom && left == right {
            x.f_conv2d(weights, bias, window.stride, [top, left], window.dilation, 1)?
        } else {
            let padded = x.f_constant_pad_nd([left, right, top, bottom])?;
            padded.f_conv2d(weights, bias, window.stride, [0, 0], window.dilation, 1)?
        };
        activate_in_place(y, activation)
    }
}

/// Operations that are the same in training and inference; `channels` are the result's.
pub fn apply<'v>(op: &Op, x: &[&Tensor], channels: i64, var: &impl Fn(VariableId) -> &'v Tensor) -> Result<Tensor> {
    Ok(match op {
        Op::Conv2d { .. } | Op::DepthwiseConv2d { .. } => bail!("a convolution is handled by its caller"),
        Op::FullyConnected { weights } => x[0].f_linear(var(*weights), None::<&Tensor>)?,
        Op::BiasAdd { biases } => {
            let bias = var(*biases);
            if x[0].dim() == 4 { x[0].f_add(&bias.f_view([1, -1, 1, 1])?)? } else { x[0].f_add(bias)? }
        }
        Op::Activation(Activation::Relu) => x[0].f_relu()?,
        Op::Activation(Activation::Relu6) => x[0].f_relu6()?,
        Op::MaxPool(window) => max_pool(x[0], window)?,
        Op::AvgPool(window) => avg_pool(x[0], window)?,
        Op::GlobalMean => x[0].f_mean_dim([2i64, 3].as_slice(), false, x[0].kind())?,
        Op::Concat => Tensor::f_cat(x, 1)?,
        Op::Add => x[0].f_add(x[1])?,
        Op::Scale(factor) => x[0].f_mul_scalar(*factor)?,
        Op::Sigmoid => x[0].f_sigmoid()?,
        Op::Pad([top, left, bottom, right]) => x[0].f_constant_pad_nd([*left, *right, *top, *bottom])?,
        Op::Slice { row, column, channel } => {
            let [height, width] = [x[0].size()[2], x[0].size()[3]];
            x[0].f_narrow(1, *channel, channels)?.f_narrow(2, *row, height - row)?.f_narrow(3, *column, width - column)?
        }
        Op::Input | Op::BatchNorm(_) | Op::Dropout { .. } | Op::DropPath { .. } => bail!("{op:?} is handled by its caller"),
    })
}

/// How libtorch pools a map of `[height, width]` with the window's padding without a padded copy: the cells before the map, and whether
/// windows may overhang behind it.
pub fn pool_padding(size: [i64; 2], window: &Window) -> Option<([i64; 2], bool)> {
    let [top, left, _, _] = window.pads(size[0], size[1]);
    let before = [top, left];
    if (0..2).any(|i| 2 * before[i] > window.kernel[i]) {
        return None;
    }
    // The same first window, stride and number of windows are the same windows.
    let count = |i: usize, overhang: bool| {
        let stride = window.stride[i];
        let room = size[i] + 2 * before[i] - (window.kernel[i] - 1) * window.dilation[i] - 1;
        let count = if overhang { (room + stride - 1).div_euclid(stride) } else { room.div_euclid(stride) } + 1;
        // None starts behind the map.
        if overhang && (count - 1) * stride >= size[i] + before[i] { count - 1 } else { count }
    };
    let wanted = window.output_size(size[0], size[1]);
    [false, true]
        .into_iter()
        .find(|&overhang| [count(0, overhang), count(1, overhang)] == wanted)
        .map(|overhang| (before, overhang))
}

fn max_pool(x: &Tensor, window: &Window) -> Result<Tensor> {
    if let Some(cells) = every_nth(x, window)? {
        return Ok(cells);
    }
    let pool = |x: &Tensor, padding, overhang| x.f_max_pool2d(window.kernel, window.stride, padding, window.dilation, overhang);
    if let Some((padding, overhang)) = pool_padding([x.size()[2], x.size()[3]], window) {
        return Ok(pool(x, padding, overhang)?);
    }
    let [top, left, bottom, right] = window.pads(x.size()[2], x.size()[3]);
    // Cells outside the map never win.
    Ok(pool(&x.f_pad([left, right, top, bottom], "constant", f64::NEG_INFINITY)?, [0, 0], false)?)
}

fn avg_pool(x: &Tensor, window: &Window) -> Result<Tensor> {
    if let Some(cells) = every_nth(x, window)? {
        return Ok(cells);
    }
    if let Some((padding, overhang)) = pool_padding([x.size()[2], x.size()[3]], window) {
        // Without `count_include_pad`: the mean is over the cells inside the map.
        return Ok(x.f_avg_pool2d(window.kernel, window.stride, padding, overhang, false, None)?);
    }
    let size = x.size();
    let [top, left, bottom, right] = window.pads(size[2], size[3]);
    let sum = |x: &Tensor| -> Result<Tensor> {
        let x = x.f_constant_pad_nd([left, right, top, bottom])?;
        Ok(x.f_avg_pool2d(window.kernel, window.stride, [0, 0], false, true, Some(1))?)
    };
    // The sum over the window, divided by how many of its cells lie inside the map.
    Ok(sum(x)?.f_div(&sum(&Tensor::f_ones([1, 1, size[2], size[3]], (x.kind(), x.device()))?)?)?)
}

/// A window of one cell only picks cells.
fn every_nth(x: &Tensor, window: &Window) -> Result<Option<Tensor>> {
    let size = x.size();
    if window.kernel != [1, 1] || window.pads(size[2], size[3]) != [0; 4] {
        return Ok(None);
    }
    let picked = x.f_slice(2, 0, size[2], window.stride[0])?.f_slice(3, 0, size[3], window.stride[1])?;
    Ok(Some(shim::channels_last(&picked)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::graph::Padding;
    use tch::{Device, Kind};

    /// The slow way: windows over a copy padded with `fill`, and for means the number of cells inside.
    fn pooled(x: &Tensor, window: &Window, fill: f64) -> Tensor {
        let [top, left, bottom, right] = window.pads(x.size()[2], x.size()[3]);
        let padded = x.pad([left, right, top, bottom], "constant", fill);
        let [kernel, stride] = [window.kernel, window.stride];
        padded.unfold(2, kernel[0], stride[0]).unfold(3, kernel[1], stride[1]).flatten(4, 5) // [N, C, H, W, cells]
    }

    #[test]
    fn pools_equal_windows_over_a_padded_copy_whatever_the_size() {
        shim::init().unwrap();
        for (height, width) in [(7, 9), (8, 10), (7, 10), (1, 5), (2, 2)] {
            let x = Tensor::arange(2 * 3 * height * width, (Kind::Float, Device::Cpu)).view([2, 3, height, width]).sin();
            for (kernel, stride) in [(3, 1), (3, 2), (2, 2), (1, 2), (5, 3), (1, 1)] {
                for padding in [Padding::Same, Padding::Valid, Padding::Explicit([1, 0, 0, 1])] {
                    let window = Window::square(kernel, stride, padding);
                    let what = format!("{height}x{width} {window:?}");
                    let [top, left, bottom, right] = window.pads(height, width);
                    if height + top + bottom < kernel || width + left + right < kernel {
                        continue;
                    }
                    let (most, _) = pooled(&x, &window, f64::NEG_INFINITY).max_dim(4, false);
                    assert_eq!(max_pool(&x, &window).unwrap(), most, "{what}");
                    let inside = pooled(&x.ones_like(), &window, 0.0).sum_dim_intlist([4i64].as_slice(), false, None);
                    let sum = pooled(&x, &window, 0.0).sum_dim_intlist([4i64].as_slice(), false, None);
                    let mean = avg_pool(&x, &window).unwrap();
                    // A window of padding alone has no mean.
                    let difference = (mean - sum / &inside).nan_to_num(0.0, None, None).abs().max().double_value(&[]);
                    assert!(difference < 1e-6, "{what}: {difference}");
                }
            }
        }
    }
}
