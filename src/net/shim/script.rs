//! TorchScript modules: made from source and parameters, saved, loaded and run.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use anyhow::{Context, Result, bail};
use tch::{Device, Tensor};
use torch_sys::C_tensor;

use super::{check, tensor};

/// libtorch's `torch::jit::Module`.
#[repr(C)]
struct Module {
    _private: [u8; 0],
}

unsafe extern "C" {
    fn odh_script_new(name: *const c_char, out: *mut *mut Module) -> c_int;
    fn odh_script_free(module: *mut Module);
    fn odh_script_add_parameter(module: *mut Module, name: *const c_char, value: *const C_tensor) -> c_int;
    fn odh_script_add_text(module: *mut Module, name: *const c_char, value: *const c_char) -> c_int;
    fn odh_script_define(module: *mut Module, source: *const c_char) -> c_int;
    fn odh_script_write(module: *const Module, to: *mut c_void, write: extern "C" fn(*mut c_void, *const c_void, usize))
    -> c_int;
    fn odh_script_load(path: *const c_char, device: c_int, out: *mut *mut Module) -> c_int;
    fn odh_script_parameters(module: *const Module, out: *mut *const c_char) -> c_int;
    fn odh_script_parameter(module: *const Module, name: *const c_char, out: *mut *mut C_tensor) -> c_int;
    fn odh_script_operators(module: *const Module, method: *const c_char, out: *mut *const c_char) -> c_int;
    fn odh_script_ask(module: *const Module, method: *const c_char, out: *mut *const c_char) -> c_int;
    fn odh_script_forward(module: *const Module, input: *const C_tensor, count: usize, out: *mut *mut C_tensor) -> c_int;
}

/// A TorchScript module.
#[derive(Debug)]
pub struct Script(*mut Module);

// libtorch's modules are counted references without thread-local state.
unsafe impl Send for Script {}

impl Drop for Script {
    fn drop(&mut self) {
        unsafe { odh_script_free(self.0) }
    }
}

impl Script {
    /// An empty module.
    ///
    /// * `name`: of its class, such as `__torch__.Detector`.
    pub fn new(name: &str) -> Result<Self> {
        let name = CString::new(name)?;
        made(|out| unsafe { odh_script_new(name.as_ptr(), out) })
    }

    /// Adds a tensor under a name without dots that its source knows as `self.NAME`.
    pub fn add_parameter(&mut self, name: &str, value: &Tensor) -> Result<()> {
        let text = CString::new(name)?;
        check(unsafe { odh_script_add_parameter(self.0, text.as_ptr(), value.as_ptr()) })
            .with_context(|| format!("adding {name}"))
    }

    /// Adds a text under a name that its source knows as `self.NAME`.
    pub fn add_text(&mut self, name: &str, value: &str) -> Result<()> {
        let (name, value) = (CString::new(name)?, CString::new(value)?);
        check(unsafe { odh_script_add_text(self.0, name.as_ptr(), value.as_ptr()) })
    }

    /// Compiles methods, Python's `def`s; they may call each other and read what was added before.
    ///
    /// # Errors
    /// With libtorch's message where it does not take the source.
    pub fn define(&mut self, source: &str) -> Result<()> {
        let source = CString::new(source)?;
        check(unsafe { odh_script_define(self.0, source.as_ptr()) })
    }

    /// Writes what a file of it holds.
    ///
    /// # Errors
    /// If `file` cannot be written to.
    pub fn write(&self, file: &mut dyn Write) -> Result<()> {
        let mut sink = Sink { file, failed: None };
        check(unsafe { odh_script_write(self.0, (&raw mut sink).cast(), take) })?;
        sink.failed.map_or(Ok(()), |error| Err(error.into()))
    }

    /// Reads a file. Its checksums are not looked at: libtorch is built without.
    ///
    /// # Errors
    /// With the first line of libtorch's message where it is no TorchScript file.
    pub fn load(path: &Path, device: Device) -> Result<Self> {
        let number = match device {
            Device::Cpu => -1,
            Device::Cuda(n) => c_int::try_from(n)?,
            other => bail!("TorchScript files run on the CPU or a CUDA device, not on {other:?}"),
        };
        let typed = CString::new(path.as_os_str().as_bytes())?;
        made(|out| unsafe { odh_script_load(typed.as_ptr(), number, out) }).map_err(first_line)
    }

    /// The parameters' names, in the order they were added.
    pub fn parameters(&self) -> Result<Vec<String>> {
        let text = text(|out| unsafe { odh_script_parameters(self.0, out) })?.unwrap_or_default();
        Ok(text.lines().map(str::to_string).collect())
    }

    /// A parameter by its name.
    pub fn parameter(&self, name: &str) -> Result<Tensor> {
        let text = CString::new(name)?;
        tensor(|out| unsafe { odh_script_parameter(self.0, text.as_ptr(), out) }).with_context(|| format!("reading {name}"))
    }

    /// The signature of a method, and the operators of all methods by their full names (`aten::relu`).
    pub fn operators(&self, method: &str) -> Result<(String, Vec<String>)> {
        let method = CString::new(method)?;
        let text = text(|out| unsafe { odh_script_operators(self.0, method.as_ptr(), out) })?.unwrap_or_default();
        let mut lines = text.lines().map(str::to_string);
        Ok((lines.next().unwrap_or_default(), lines.collect()))
    }

    /// What a method without arguments says; `None` where there is none of that name.
    pub fn ask(&self, method: &str) -> Result<Option<String>> {
        let method = CString::new(method)?;
        text(|out| unsafe { odh_script_ask(self.0, method.as_ptr(), out) })
    }

    /// `forward(input)`, a tuple of `N` tensors; without gradients.
    pub fn forward<const N: usize>(&self, input: &Tensor) -> Result<[Tensor; N]> {
        let mut out = [std::ptr::null_mut(); N];
        check(unsafe { odh_script_forward(self.0, input.as_ptr(), N, out.as_mut_ptr()) })?;
        Ok(out.map(|pointer| unsafe { Tensor::from_ptr(pointer) }))
    }
}

/// Where a file's bytes go, until that fails.
struct Sink<'a> {
    file: &'a mut dyn Write,
    failed: Option<io::Error>,
}

/// Called by libtorch with a `Sink`.
extern "C" fn take(sink: *mut c_void, bytes: *const c_void, count: usize) {
    let sink = unsafe { &mut *sink.cast::<Sink>() };
    if count > 0 && sink.failed.is_none() {
        sink.failed = sink.file.write_all(unsafe { std::slice::from_raw_parts(bytes.cast(), count) }).err();
    }
}

fn made(call: impl FnOnce(*mut *mut Module) -> c_int) -> Result<Script> {
    let mut out = std::ptr::null_mut();
    check(call(&mut out))?;
    Ok(Script(out))
}

fn text(call: impl FnOnce(*mut *const c_char) -> c_int) -> Result<Option<String>> {
    let mut out = std::ptr::null();
    check(call(&mut out))?;
    if out.is_null() {
        return Ok(None);
    }
    Ok(Some(unsafe { CStr::from_ptr(out) }.to_str().context("the module's text is not UTF-8")?.to_string()))
}

fn first_line(error: anyhow::Error) -> anyhow::Error {
    let text = format!("{error:#}");
    anyhow::anyhow!(text.lines().find(|line| !line.trim().is_empty()).unwrap_or_default().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::shim;

    #[test]
    fn a_module_from_source_does_the_same_after_it_was_saved_and_loaded() {
        shim::init().unwrap();
        let mut script = Script::new("__torch__.Test").unwrap();
        script.add_parameter("factor", &Tensor::from_slice(&[2f32, 3.0])).unwrap();
        script.add_text("words", "\"너구리\"\n").unwrap();
        let source = "def forward(self, x):\n    y = x * self.factor\n    return (y, y + 1)\ndef metadata(self) -> str:\n    return self.words\n";
        script.define(source).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("모델.pt");
        script.write(&mut std::fs::File::create(&path).unwrap()).unwrap();
        let loaded = Script::load(&path, Device::Cpu).unwrap();
        assert_eq!(loaded.parameters().unwrap(), ["factor"]);
        assert_eq!(loaded.parameter("factor").unwrap(), Tensor::from_slice(&[2f32, 3.0]));
        assert_eq!(loaded.ask("metadata").unwrap().as_deref(), Some("\"너구리\"\n"));
        assert_eq!(loaded.ask("nothing").unwrap(), None);
        let (signature, operators) = loaded.operators("forward").unwrap();
        assert!(signature.ends_with("-> ((Tensor, Tensor))"), "{signature}");
        assert!(operators.contains(&"aten::mul".to_string()), "{operators:?}");
        let [y, z] = loaded.forward(&Tensor::from_slice(&[1f32, 2.0])).unwrap();
        assert_eq!((y, z), (Tensor::from_slice(&[2f32, 6.0]), Tensor::from_slice(&[3f32, 7.0])));
        assert!(loaded.forward::<3>(&Tensor::from_slice(&[1f32, 2.0])).is_err());
    }

    #[test]
    fn a_full_disk_is_an_error_wherever_it_becomes_full() {
        struct Disk(usize);
        impl Write for Disk {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                let n = bytes.len().min(self.0);
                self.0 -= n;
                if n == 0 { Err(io::ErrorKind::StorageFull.into()) } else { Ok(n) }
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        shim::init().unwrap();
        let mut script = Script::new("__torch__.Test").unwrap();
        script.add_parameter("weights", &Tensor::zeros([1000], (tch::Kind::Float, Device::Cpu))).unwrap();
        script.define("def forward(self, x):\n    return x * self.weights\n").unwrap();
        let mut whole = Vec::new();
        script.write(&mut whole).unwrap();
        for room in (0..whole.len()).step_by(100) {
            let error = script.write(&mut Disk(room)).unwrap_err();
            assert_eq!(error.downcast_ref::<io::Error>().unwrap().kind(), io::ErrorKind::StorageFull, "{room}");
        }
        script.write(&mut Disk(whole.len())).unwrap();
    }

    #[test]
    fn what_libtorch_does_not_take_is_an_error_in_its_words() {
        shim::init().unwrap();
        let mut script = Script::new("__torch__.Test").unwrap();
        let error = format!("{:#}", script.define("def forward(self, x):\n    return torch.nothing(x)\n").unwrap_err());
        assert!(error.contains("nothing"), "{error}");
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.pt");
        std::fs::write(&path, b"PK\x03\x04 not a zip").unwrap();
        let error = Script::load(&path, Device::Cpu).unwrap_err().to_string();
        assert!(!error.is_empty() && !error.contains('\n'), "{error}");
    }
}
