//! Which processor computes, by its name on the command line.

use anyhow::{Result, bail};
use tch::Device;

use crate::net::shim::{self, CudaLibrary};

/// The device for `auto`, `cpu`, `cuda` or `cuda:N`. Loads libtorch's CUDA half; call it before the first tensor.
///
/// # Errors
/// If CUDA is asked for and not there, or the loaded libtorch is another version than this binary's.
pub fn choose(typed: &str) -> Result<Device> {
    if typed.eq_ignore_ascii_case("cpu") {
        shim::init()?;
        return Ok(Device::Cpu);
    }
    let cuda = shim::init()?;
    let count = usize::try_from(tch::Cuda::device_count()).unwrap_or(0);
    let index = match typed.to_ascii_lowercase().as_str() {
        "auto" if count == 0 => return Ok(Device::Cpu),
        "auto" | "cuda" => 0,
        other => match other.strip_prefix("cuda:").and_then(|n| n.parse::<usize>().ok()) {
            Some(n) => n,
            None => return Err(crate::exit::usage(format!("--device `{typed}`: it must be auto, cpu, cuda or cuda:N"))),
        },
    };
    if index >= count {
        let why = match cuda {
            CudaLibrary::Absent(why) => format!(": {why}"),
            CudaLibrary::Loaded => String::new(),
        };
        bail!("--device {typed}: this machine offers {count} CUDA devices{why}; use --device cpu");
    }
    Ok(Device::Cuda(index))
}

/// What people call a device.
pub fn name(device: Device) -> String {
    match device {
        Device::Cpu => format!("cpu ({} threads)", tch::get_num_threads()),
        Device::Cuda(n) => format!("cuda:{n}"),
        other => format!("{other:?}").to_lowercase(),
    }
}
