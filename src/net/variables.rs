//! The variables of a graph as tensors: TensorFlow's names and shapes outside, libtorch's layout inside.

use std::collections::HashMap;

use anyhow::{Context, Result, bail};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tch::{Device, Kind, Tensor};

use super::graph::{Fan, Initializer, Variable, VariableKind};
use super::shim;

/// Variables by name, each with its tensor in libtorch's layout.
#[derive(Debug)]
pub struct Variables {
    specs: Vec<Variable>,
    tensors: Vec<Tensor>,
    index: HashMap<String, usize>,
    device: Device,
}

impl Variables {
    /// Every variable at its initial value.
    ///
    /// The value depends on `seed` and the variable's name alone, so that adding a layer does not change the others.
    pub fn new(specs: &[Variable], seed: u64, device: Device) -> Result<Self> {
        Self::filled(specs, device, |spec| initial_value(spec, seed))
    }

    /// Every variable 0, to be filled from a checkpoint.
    pub fn zeros(specs: &[Variable], device: Device) -> Result<Self> {
        Self::filled(specs, device, |spec| vec![0.0; spec.shape.iter().product::<i64>() as usize])
    }

    fn filled(specs: &[Variable], device: Device, values: impl Fn(&Variable) -> Vec<f32>) -> Result<Self> {
        let tensors = specs.iter().map(|spec| to_libtorch(spec, &values(spec), device)).collect::<Result<_>>()?;
        let index = specs.iter().enumerate().map(|(i, spec)| (spec.name.clone(), i)).collect();
        let mut variables = Self { specs: specs.to_vec(), tensors, index, device };
        variables.track_gradients()?;
        Ok(variables)
    }

    /// The variables in the order of the graph.
    pub fn specs(&self) -> &[Variable] {
        &self.specs
    }

    /// Where the tensors are.
    pub fn device(&self) -> Device {
        self.device
    }

    /// The tensor of the `i`th variable, in libtorch's layout.
    pub fn tensor(&self, i: usize) -> &Tensor {
        &self.tensors[i]
    }

    /// The position of the variable named so.
    pub fn position(&self, name: &str) -> Option<usize> {
        self.index.get(name).copied()
    }

    /// The tensor of the variable named so, in libtorch's layout.
    ///
    /// # Errors
    /// If there is none.
    pub fn get(&self, name: &str) -> Result<&Tensor> {
        let i = self.position(name).with_context(|| format!("the network has no variable `{name}`"))?;
        Ok(&self.tensors[i])
    }

    /// Values of the `i`th variable in TensorFlow's layout.
    pub fn to_tensorflow(&self, i: usize) -> Result<Vec<f32>> {
        values_in_tensorflow_layout(&self.specs[i], &self.tensors[i])
    }

    /// Sets the `i`th variable from values in TensorFlow's layout.
    ///
    /// # Errors
    /// If their number is not the variable's.
    pub fn set_from_tensorflow(&mut self, i: usize, values: &[f32]) -> Result<()> {
        let tensor = to_libtorch(&self.specs[i], values, self.device)?;
        tch::no_grad(|| self.tensors[i].f_copy_(&tensor))?;
        Ok(())
    }

    /// The same variables and values in memory of their own, with no gradients.
    pub fn copy(&self) -> Result<Self> {
        let mut copy = Self::zeros(&self.specs, self.device)?;
        for (i, tensor) in self.tensors.iter().enumerate() {
            copy.set(i, tensor)?;
        }
        Ok(copy)
    }

    /// The same variables and values as float64, for a pass without float32's roundings.
    pub fn to_double(&self) -> Result<Self> {
        let mut copy = self.copy()?;
        for tensor in &mut copy.tensors {
            *tensor = tch::no_grad(|| tensor.f_to_kind(Kind::Double))?;
        }
        copy.track_gradients()?;
        Ok(copy)
    }

    /// Sets the `i`th variable from a tensor of its shape.
    pub fn set(&mut self, i: usize, values: &Tensor) -> Result<()> {
        tch::no_grad(|| self.tensors[i].f_copy_(&values.detach()))?;
        Ok(())
    }

    /// Marks variables as not trainable where `frozen` says so, and returns how many it marked.
    pub fn freeze(&mut self, frozen: impl Fn(&str) -> bool) -> Result<usize> {
        let mut count = 0;
        for spec in &mut self.specs {
            if spec.trainable && frozen(&spec.name) {
                // Its regularization stays in the loss, as upstream, where only the gradient is left out.
                spec.trainable = false;
                count += 1;
            }
        }
        self.track_gradients()?;
        Ok(count)
    }

    fn track_gradients(&mut self) -> Result<()> {
        for (spec, tensor) in self.specs.iter().zip(&mut self.tensors) {
            let _ = tensor.f_requires_grad_(spec.trainable)?;
        }
        Ok(())
    }
}

/// Values in TensorFlow's layout as a tensor in libtorch's, convolution weights in channels-last memory order.
///
/// # Errors
/// If the number of values is not the shape's.
pub fn to_libtorch(spec: &Variable, values: &[f32], device: Device) -> Result<Tensor> {
    let count: i64 = spec.shape.iter().product();
    if count != values.len() as i64 {
        bail!("variable `{}` has {count} elements, not {}", spec.name, values.len());
    }
    let tensor = Tensor::from_slice(values).f_view(spec.shape.as_slice())?;
    let tensor = match spec.kind {
        VariableKind::Convolution => tensor.f_permute([3i64, 2, 0, 1])?, // [O, I, H, W]
        VariableKind::DepthwiseConvolution => {
            let [h, w] = [spec.shape[0], spec.shape[1]];
            tensor.f_permute([2i64, 3, 0, 1])?.f_reshape([-1, 1, h, w])? // [I * M, 1, H, W]
        }
        VariableKind::FullyConnected => tensor.f_transpose(0, 1)?, // [O, I]
        VariableKind::Vector => tensor,
    };
    let tensor = match spec.kind {
        VariableKind::Convolution => shim::channels_last(&tensor)?,
        _ => tensor.f_contiguous()?,
    };
    Ok(tensor.f_to_device(device)?)
}

/// A tensor of the variable's shape (its value, its gradient, an optimizer slot) as values in TensorFlow's layout.
pub fn values_in_tensorflow_layout(spec: &Variable, tensor: &Tensor) -> Result<Vec<f32>> {
    let tensor = tensor.f_detach()?.f_to_device(Device::Cpu)?.f_to_kind(Kind::Float)?;
    let tensor = match spec.kind {
        VariableKind::Convolution => tensor.f_permute([2i64, 3, 1, 0])?,
        VariableKind::DepthwiseConvolution => {
            let [h, w, i, m] = [spec.shape[0], spec.shape[1], spec.shape[2], spec.shape[3]];
            tensor.f_contiguous()?.f_view([i, m, h, w])?.f_permute([2i64, 3, 0, 1])?
        }
        VariableKind::FullyConnected => tensor.f_transpose(0, 1)?,
        VariableKind::Vector => tensor,
    };
    let flat = tensor.f_contiguous()?.f_view([-1])?;
    Ok(Vec::<f32>::try_from(&flat)?)
}

/// The initial value in TensorFlow's layout.
fn initial_value(spec: &Variable, seed: u64) -> Vec<f32> {
    let count = spec.shape.iter().product::<i64>() as usize;
    // FNV-1a of the name: one stream of random numbers a variable.
    let key = spec.name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3));
    let mut rng = ChaCha8Rng::seed_from_u64(seed ^ key);
    let mut normal = move || {
        // Box and Muller; 1 - u keeps the logarithm finite.
        let (u, v): (f64, f64) = (rng.random(), rng.random());
        ((-2.0 * (1.0 - u).ln()).sqrt() * (2.0 * std::f64::consts::PI * v).cos()) as f32
    };
    let mut truncated = |mean: f32, stddev: f32| {
        loop {
            let x = normal();
            if x.abs() <= 2.0 {
                return mean + stddev * x;
            }
        }
    };
    match spec.initializer {
        Initializer::Constant(value) => vec![value; count],
        Initializer::TruncatedNormal { mean, stddev } => (0..count).map(|_| truncated(mean, stddev)).collect(),
        Initializer::RandomNormal { mean, stddev } => (0..count).map(|_| mean + stddev * normal()).collect(),
        Initializer::VarianceScaling { factor, fan, uniform } => {
            let n = fan_size(spec, fan);
            if uniform {
                let limit = (3.0 * f64::from(factor) / n).sqrt();
                let mut rng = ChaCha8Rng::seed_from_u64(seed ^ key);
                (0..count).map(|_| ((rng.random::<f64>() * 2.0 - 1.0) * limit) as f32).collect()
            } else {
                // slim's 1.3 makes up for what the truncation takes from the variance.
                let stddev = (1.3 * f64::from(factor) / n).sqrt() as f32;
                (0..count).map(|_| truncated(0.0, stddev)).collect()
            }
        }
    }
}

/// As slim counts: every dimension but the last two is the receptive field.
fn fan_size(spec: &Variable, fan: Fan) -> f64 {
    let n = spec.shape.len();
    let (last, before) = (spec.shape[n - 1] as f64, if n > 1 { spec.shape[n - 2] as f64 } else { spec.shape[0] as f64 });
    let field: f64 = spec.shape[..n.saturating_sub(2)].iter().map(|&d| d as f64).product();
    match fan {
        Fan::In => before * field,
        Fan::Out => last * field,
        Fan::Average => (before + last) * field / 2.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::graph::Regularizer;

    fn spec(kind: VariableKind, shape: &[i64]) -> Variable {
        let initializer = Initializer::TruncatedNormal { mean: 0.0, stddev: 1.0 };
        Variable { name: "x".into(), shape: shape.to_vec(), kind, trainable: true, initializer, regularizer: Regularizer::None }
    }

    #[test]
    fn every_layout_survives_the_way_there_and_back() {
        for (kind, shape) in [
            (VariableKind::Convolution, vec![3, 2, 4, 5]),
            (VariableKind::DepthwiseConvolution, vec![3, 2, 4, 2]),
            (VariableKind::FullyConnected, vec![3, 4]),
            (VariableKind::Vector, vec![7]),
        ] {
            let spec = spec(kind, &shape);
            let values: Vec<f32> = (0..shape.iter().product::<i64>()).map(|i| i as f32).collect();
            let tensor = to_libtorch(&spec, &values, Device::Cpu).unwrap();
            assert_eq!(values_in_tensorflow_layout(&spec, &tensor).unwrap(), values);
        }
    }

    #[test]
    fn variance_is_scaled_by_the_fan_that_is_asked_for() {
        let convolution = (VariableKind::Convolution, vec![3, 3, 20, 40]);
        let connected = (VariableKind::FullyConnected, vec![100, 60]);
        for ((kind, shape), fan, n) in [
            (&convolution, Fan::In, 180.0),
            (&convolution, Fan::Out, 360.0),
            (&convolution, Fan::Average, 270.0),
            (&connected, Fan::In, 100.0),
            (&connected, Fan::Out, 60.0),
            (&connected, Fan::Average, 80.0),
        ] {
            for uniform in [true, false] {
                let mut spec = spec(*kind, shape);
                spec.initializer = Initializer::VarianceScaling { factor: 2.0, fan, uniform };
                let values = initial_value(&spec, 1);
                let variance = values.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>() / values.len() as f64;
                assert!((variance * n / 2.0 - 1.0).abs() < 0.05, "{shape:?} {fan:?} {uniform}: {variance}");
                // A uniform one ends at the root of three times the variance, a normal one at two of its deviations.
                let limit = if uniform { (3.0 * 2.0 / n).sqrt() } else { 2.0 * (1.3 * 2.0 / n).sqrt() } as f32;
                let most = values.iter().fold(0f32, |most, v| most.max(v.abs()));
                assert!(most <= limit && most > 0.97 * limit, "{shape:?} {fan:?} {uniform}: {most} of {limit}");
            }
        }
    }

    #[test]
    fn a_normal_has_its_mean_and_deviation() {
        let mut spec = spec(VariableKind::Vector, &[10_000]);
        spec.initializer = Initializer::RandomNormal { mean: 3.0, stddev: 0.5 };
        let values = initial_value(&spec, 1);
        let mean = values.iter().sum::<f32>() / 10_000.0;
        let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f32>() / 10_000.0;
        assert!((mean - 3.0).abs() < 0.02 && (variance - 0.25).abs() < 0.01, "{mean} {variance}");
        assert!(values.iter().any(|v| (v - 3.0).abs() > 1.0), "nothing is cut");
    }

    #[test]
    fn a_truncated_normal_stays_within_two_deviations() {
        let values = initial_value(&spec(VariableKind::Vector, &[10_000]), 1);
        assert!(values.iter().all(|v| v.abs() <= 2.0));
        let variance = values.iter().map(|v| v * v).sum::<f32>() / 10_000.0;
        // The variance of a normal cut at two deviations is 0.774.
        assert!((variance - 0.774).abs() < 0.03, "{variance}");
    }

    #[test]
    fn the_same_seed_gives_the_same_start() {
        let spec = spec(VariableKind::Vector, &[16]);
        assert_eq!(initial_value(&spec, 3), initial_value(&spec, 3));
        assert_ne!(initial_value(&spec, 3), initial_value(&spec, 4));
    }
}
