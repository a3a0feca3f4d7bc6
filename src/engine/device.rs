//! Which processor computes, by its name on the command line.

use anyhow::{Context, Result, anyhow, bail, ensure};
use tch::{Device, Kind, Tensor};

use crate::net::shim::{self, CudaLibrary};

/// The device for `auto`, `cpu`, `cuda` or `cuda:N`, tried out. Loads libtorch's CUDA half unless it is `cpu`; call it before the first tensor.
///
/// With `auto`, a GPU that cannot be used is a warning, and the CPU computes.
///
/// # Errors
/// If CUDA is asked for and cannot be used, or the loaded libtorch is another version than this binary's.
pub fn choose(typed: &str) -> Result<Device> {
    let asked = match typed.to_ascii_lowercase().as_str() {
        "cpu" => {
            shim::init()?;
            return Ok(Device::Cpu);
        }
        "auto" => None,
        "cuda" => Some(0),
        other => match other.strip_prefix("cuda:").and_then(|n| n.parse::<usize>().ok()) {
            Some(n) => Some(n),
            None => return Err(crate::exit::usage(format!("--device `{typed}`: it must be auto, cpu, cuda or cuda:N"))),
        },
    };
    let cuda = shim::load_cuda();
    shim::init()?;
    let index = asked.unwrap_or(0);
    let why = match cuda {
        CudaLibrary::Loaded => match try_out(index) {
            Ok(()) => return Ok(Device::Cuda(index)),
            Err(error) => format!("{error:#}"),
        },
        CudaLibrary::NoDriver(_) if asked.is_none() => return Ok(Device::Cpu),
        CudaLibrary::NoDriver(why) | CudaLibrary::Unusable(why) => why.clone(),
    };
    if asked.is_some() {
        bail!("--device {typed}: {why}; --device cpu computes without a GPU");
    }
    tracing::warn!("the CPU computes, as the GPU cannot be used: {why}");
    Ok(Device::Cpu)
}

/// Computes something on a CUDA device.
///
/// # Errors
/// If there is no such device, or it does not compute.
fn try_out(index: usize) -> Result<()> {
    let count = usize::try_from(tch::Cuda::device_count()).unwrap_or(0);
    if count == 0 {
        let [driver, libtorch] = shim::cuda_versions()?;
        bail!(no_device(driver, libtorch));
    }
    ensure!(index < count, "there is no cuda:{index} on this machine, which has {}", names(count));
    let compute = || Tensor::f_zeros([1], (Kind::Float, Device::Cuda(index)))?.f_add_scalar(1.0)?.f_double_value(&[0]);
    // What libtorch adds to a CUDA error's first line is for its developers.
    let first_line = |error: tch::TchError| anyhow!(error.to_string().lines().next().unwrap_or_default().to_string());
    let one = compute().map_err(first_line).with_context(|| format!("cuda:{index} does not compute"))?;
    ensure!(one == 1.0, "cuda:{index} computes 0 + 1 = {one}");
    Ok(())
}

/// Why libtorch finds no device where the driver does, by their CUDA versions (`shim::cuda_versions`).
fn no_device(driver: i32, libtorch: i32) -> String {
    let version = |number: i32| format!("{}.{}", number / 1000, number % 1000 / 10);
    // Newer drivers, and older ones of the same major version, are compatible.
    if driver != 0 && driver / 1000 < libtorch / 1000 {
        let (has, needed) = (version(driver), version(libtorch));
        format!("the NVIDIA driver is too old: it is for CUDA {has}, and this libtorch needs CUDA {needed}; update the driver")
    } else {
        format!("libtorch (CUDA {}) finds no device, though the NVIDIA driver (CUDA {}) does", version(libtorch), version(driver))
    }
}

/// `cuda:0 and cuda:1`, all that there are.
fn names(count: usize) -> String {
    match count {
        1 => "cuda:0 only".to_string(),
        2 => "cuda:0 and cuda:1".to_string(),
        _ => format!("cuda:0 to cuda:{}", count - 1),
    }
}

/// What people call a device.
pub fn name(device: Device) -> String {
    match device {
        Device::Cpu => format!("cpu ({} threads)", tch::get_num_threads()),
        Device::Cuda(n) => format!("cuda:{n}"),
        other => format!("{other:?}").to_lowercase(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_driver_is_told_from_a_device_that_libtorch_does_not_find() {
        assert_eq!(
            no_device(12040, 13000),
            "the NVIDIA driver is too old: it is for CUDA 12.4, and this libtorch needs CUDA 13.0; update the driver"
        );
        assert_eq!(no_device(13010, 13000), "libtorch (CUDA 13.0) finds no device, though the NVIDIA driver (CUDA 13.1) does");
    }

    #[test]
    fn a_device_that_is_not_there_is_an_error_that_says_what_to_do() {
        for (typed, expected) in [("gpu", "auto, cpu, cuda or cuda:N"), ("cuda:99", "--device cpu")] {
            let error = choose(typed).unwrap_err().to_string();
            assert!(error.contains(typed) && error.contains(expected), "{error}");
        }
        assert_eq!(choose("CPU").unwrap(), Device::Cpu);
    }
}
