//! From a device to plain rows.

use anyhow::Result;
use tch::{Device, Tensor};

/// A tensor's values, row by row; a GPU waits here.
pub fn host_values(x: &Tensor) -> Result<Vec<f32>> {
    let flat = x.f_detach()?.f_to_device(Device::Cpu)?.f_contiguous()?.f_view([-1])?;
    Ok(Vec::<f32>::try_from(&flat)?)
}
