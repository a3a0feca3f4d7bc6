//! The safe face of the C++ in `shim/`: the libtorch calls that tch has no binding for, and kernels where libtorch is slow.
//!
//! [`init`] comes before any tensor, and [`load_cuda`] before it where a GPU may compute: libtorch looks for its CUDA half once, at its first
//! use.

use std::ffi::{CStr, c_char, c_int};
use std::sync::OnceLock;

use anyhow::{Context, Result, anyhow, bail};
use tch::Tensor;
use torch_sys::C_tensor;

mod crops;
mod ops;
mod optimizer;
mod script;
mod start;

pub use crops::crop_and_resize;
pub use ops::{Act, BatchNorm, ConvGeometry, Form, affine_act, batch_norm_train, depthwise_conv2d};
pub use optimizer::{Rule, Update, l2_loss, optimizer_step, take_grad};
pub use script::Script;
pub use start::{Preloaded, restart, tune_process};

/// The libtorch that tch is generated for. Another one links by luck and computes by luck.
const LIBTORCH_VERSION: &str = "2.11.0";

unsafe extern "C" {
    fn odh_last_error() -> *const c_char;
    fn odh_load_cuda(has_driver: *mut c_int) -> c_int;
    fn odh_cuda_versions(driver: *mut c_int, libtorch: *mut c_int) -> c_int;
    fn odh_libtorch_version(out: *mut c_char, size: usize) -> c_int;
    fn odh_channels_last(x: *const C_tensor, out: *mut *mut C_tensor) -> c_int;
    fn odh_is_channels_last(x: *const C_tensor, out: *mut c_int) -> c_int;
    fn odh_cuda_memory_peak(device: c_int, out: *mut i64) -> c_int;
    fn odh_instruction_set() -> *const c_char;
    fn odh_numerics(tf32: c_int, deterministic: c_int, cudnn_benchmark: c_int) -> c_int;
}

/// Whether libtorch's CUDA half was loaded, or why it was not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CudaLibrary {
    Loaded,
    /// The machine has no NVIDIA driver.
    NoDriver(String),
    /// It has one, but no device that starts, or libtorch is one for the CPU only.
    Unusable(String),
}

/// Loads libtorch's CUDA half where an NVIDIA driver and a device are present, once per process.
///
/// It is never a link dependency, so that one binary serves machines with and without a GPU, and costs nothing where the CPU is to compute.
/// Without a driver this costs well under a millisecond.
pub fn load_cuda() -> &'static CudaLibrary {
    static LOADED: OnceLock<CudaLibrary> = OnceLock::new();
    LOADED.get_or_init(|| {
        let mut has_driver = 0;
        match check(unsafe { odh_load_cuda(&mut has_driver) }) {
            Ok(()) => CudaLibrary::Loaded,
            Err(e) if has_driver == 0 => CudaLibrary::NoDriver(format!("{e:#}")),
            Err(e) => CudaLibrary::Unusable(format!("{e:#}")),
        }
    })
}

/// The CUDA versions, as 1000 * major + 10 * minor, that the driver is for (0 where it does not say) and that libtorch is made for.
///
/// # Errors
/// If libtorch's CUDA half is not loaded.
pub fn cuda_versions() -> Result<[i32; 2]> {
    let [mut driver, mut libtorch] = [0; 2];
    check(unsafe { odh_cuda_versions(&mut driver, &mut libtorch) }).context("asking for CUDA's version")?;
    Ok([driver, libtorch])
}

/// Readies libtorch: its version, and plain fp32 arithmetic. Call it before the first tensor.
///
/// # Errors
/// If the libtorch that was loaded is not the one this binary was built for.
pub fn init() -> Result<()> {
    let found = libtorch_version()?;
    if found != LIBTORCH_VERSION {
        bail!(
            "the loaded libtorch is version {}, but this binary needs {LIBTORCH_VERSION}: correct LD_LIBRARY_PATH, or put libtorch \
             {LIBTORCH_VERSION} into the folder `libtorch` beside the binary",
            if found.is_empty() { "unknown" } else { &found }
        );
    }
    set_numerics(Numerics::default())
}

/// The version of the loaded libtorch, such as `2.11.0` (without a `+cu130`), or an empty string where it does not say.
pub fn libtorch_version() -> Result<String> {
    let mut text = [0 as c_char; 64];
    check(unsafe { odh_libtorch_version(text.as_mut_ptr(), text.len()) }).context("asking libtorch for its version")?;
    let text = unsafe { CStr::from_ptr(text.as_ptr()) }.to_string_lossy();
    Ok(text.split('+').next().unwrap_or_default().to_string())
}

/// The instruction set that the shim's own kernels run with: `baseline`, `avx2` or `avx512`.
pub fn instruction_set() -> String {
    let name = unsafe { CStr::from_ptr(odh_instruction_set()) }.to_string_lossy();
    name.trim_start_matches("odh_").to_string()
}

/// How fp32 is computed on a GPU. The default is parity with TensorFlow 1.x: no TF32, nothing chosen by timing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Numerics {
    /// Let matrix products and convolutions round their inputs to TF32's 10 bits of mantissa.
    pub tf32: bool,
    /// Only kernels that give the same bits on every run (a warning where there is none).
    pub deterministic: bool,
    /// Let cuDNN time its algorithms for each new shape; ignored with `deterministic`.
    pub cudnn_benchmark: bool,
}

/// Sets `numerics` for the whole process.
pub fn set_numerics(numerics: Numerics) -> Result<()> {
    check(unsafe { odh_numerics(numerics.tf32.into(), numerics.deterministic.into(), numerics.cudnn_benchmark.into()) })
}

/// The same values with NHWC strides (shape stays NCHW); no copy where they already lie so.
///
/// * `x`: `[N, C, H, W]`
pub fn channels_last(x: &Tensor) -> Result<Tensor> {
    tensor(|out| unsafe { odh_channels_last(x.as_ptr(), out) })
}

/// Whether a `[N, C, H, W]` tensor lies densely in NHWC order.
pub fn is_channels_last(x: &Tensor) -> Result<bool> {
    let mut out = 0;
    check(unsafe { odh_is_channels_last(x.as_ptr(), &mut out) })?;
    Ok(out != 0)
}

/// Peak bytes that tensors took on CUDA device `device` since the start.
///
/// # Errors
/// If CUDA is not in use.
pub fn cuda_memory_peak(device: usize) -> Result<u64> {
    if !tch::Cuda::is_available() {
        bail!("no CUDA device is in use");
    }
    let mut bytes = 0;
    check(unsafe { odh_cuda_memory_peak(device as c_int, &mut bytes) })?;
    Ok(bytes.max(0) as u64)
}

/// Turns the shim's status into a result that carries libtorch's message.
fn check(status: c_int) -> Result<()> {
    if status == 0 {
        return Ok(());
    }
    let message = unsafe { CStr::from_ptr(odh_last_error()) }.to_string_lossy().into_owned();
    Err(anyhow!(message))
}

/// Runs a call that hands out one tensor.
fn tensor(call: impl FnOnce(*mut *mut C_tensor) -> c_int) -> Result<Tensor> {
    let mut out = std::ptr::null_mut();
    check(call(&mut out))?;
    assert!(!out.is_null(), "the shim reported success without a tensor");
    Ok(unsafe { Tensor::from_ptr(out) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind};

    #[test]
    fn the_loaded_libtorch_is_the_one_tch_was_made_for() {
        init().unwrap();
        assert_eq!(libtorch_version().unwrap(), LIBTORCH_VERSION);
    }

    #[test]
    fn cuda_is_loaded_or_says_why_not() {
        // Where it is loaded, libtorch may have looked for it before, in another test.
        if let CudaLibrary::NoDriver(why) | CudaLibrary::Unusable(why) = load_cuda() {
            assert!(!why.is_empty());
            assert!(!tch::Cuda::is_available());
            assert!(cuda_memory_peak(0).is_err());
            assert!(cuda_versions().is_err());
        }
    }

    #[test]
    fn channels_last_keeps_values_and_moves_strides() {
        let x = Tensor::arange(2 * 3 * 4 * 5, (Kind::Float, Device::Cpu)).view([2, 3, 4, 5]);
        assert!(!is_channels_last(&x).unwrap());
        let y = channels_last(&x).unwrap();
        assert!(is_channels_last(&y).unwrap());
        assert_eq!(y.size(), [2, 3, 4, 5]);
        assert_eq!(y.stride(), [60, 1, 15, 3]);
        assert_eq!(x, y);
    }

    #[test]
    fn a_cpp_exception_becomes_an_error_with_its_message() {
        let flat = Tensor::arange(6, (Kind::Float, Device::Cpu));
        let message = format!("{:#}", channels_last(&flat).unwrap_err());
        assert!(message.contains("rank 4"), "{message}");
    }
}
