//! onnxruntime's library, found and opened while the program runs (onnxruntime.ai/docs/api/c): nothing is linked to it.

use std::env::consts::{DLL_PREFIX, DLL_SUFFIX};
use std::ffi::CStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, anyhow, bail, ensure};
use libloading::Library;
use ort::sys::{OrtApi, OrtApiBase};
use ort::value::TensorRef;

use super::onnx::LibrarySearch;
use super::outputs::Output;

/// The minor version of the oldest onnxruntime 1.x that will do: the one whose functions `ort` is built for.
const OLDEST: u32 = 17;
/// Names the library's file, or the folder that has it; other programs know it too.
const VARIABLE: &str = "ORT_DYLIB_PATH";
/// Prints the folder of a Python's onnxruntime without importing it, which would take a second.
const ASK_PYTHON: &str = "import importlib.util, os, sys
spec = importlib.util.find_spec('onnxruntime')
sys.stdout.buffer.write(os.fsencode(spec.submodule_search_locations[0] if spec else ''))";

/// An onnxruntime that was loaded. There is one in a process.
#[derive(Debug, Clone)]
pub struct Runtime {
    version: String,
}

/// A file that it has read.
#[derive(Debug)]
pub struct Session(ort::session::Session);

static LOADED: Mutex<Option<Runtime>> = Mutex::new(None);

/// Finds the library and opens it; later calls get the same, wherever they look.
///
/// Looked at in turn: what `search` names, or else what the environment names, and then nothing else; the folder of the program; what the
/// system's loader knows; the onnxruntime of a Python.
///
/// # Errors
/// If there is none, or none of them will do; the message says where was looked, what was wrong with each, and what to do.
pub fn load(search: &LibrarySearch) -> Result<Runtime> {
    let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(runtime) = loaded.as_ref() {
        return Ok(runtime.clone());
    }
    let runtime = find(search)?;
    *loaded = Some(runtime.clone());
    Ok(runtime)
}

fn find(search: &LibrarySearch) -> Result<Runtime> {
    let named = match &search.library {
        Some(path) => Some(("--onnxruntime".to_string(), path.clone())),
        None => std::env::var_os(VARIABLE).filter(|v| !v.is_empty()).map(|v| (format!("${VARIABLE}"), PathBuf::from(v))),
    };
    if let Some((by, path)) = named {
        return file_in(&path).and_then(|file| open(&file)).with_context(|| {
            format!("{by} names `{}`, which is not onnxruntime's library ({})", path.display(), library_name())
        });
    }
    let mut faults = Vec::new();
    for attempt in [beside_program, known_to_loader, |search: &LibrarySearch| of_python(&search.python)] {
        match attempt(search) {
            Ok(runtime) => return Ok(runtime),
            Err(fault) => faults.push(format!("{fault:#}")),
        }
    }
    bail!(
        "onnxruntime's library is not found ({}). `pip install onnxruntime` brings it; --onnxruntime PATH or ${VARIABLE} names one that is \
         elsewhere",
        faults.join("; ")
    )
}

fn library_name() -> String {
    format!("{DLL_PREFIX}onnxruntime{DLL_SUFFIX}")
}

fn beside_program(_: &LibrarySearch) -> Result<Runtime> {
    let program = std::env::current_exe()?;
    let folder = program.parent().context("the program has no folder")?;
    let file = file_in(folder).context("beside the program")?;
    open(&file).with_context(|| format!("`{}`", file.display()))
}

fn known_to_loader(_: &LibrarySearch) -> Result<Runtime> {
    let name = library_name();
    // Linux distributions have the name without a number only in packages for developers.
    open(Path::new(&name)).or_else(|_| open(Path::new(&format!("{name}.1")))).context("the system's loader")
}

fn of_python(python: &Path) -> Result<Runtime> {
    let shown = python.display();
    let output = Command::new(python)
        .args(["-c", ASK_PYTHON])
        .stdin(Stdio::null())
        .output()
        .map_err(|e| anyhow!("`{shown}` cannot be started: {e}"))?;
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success() && !said.is_empty(), "`{shown}` has no onnxruntime");
    let file = file_in(&Path::new(said.as_ref()).join("capi")).with_context(|| format!("`{shown}`"))?;
    open(&file).with_context(|| format!("`{}`", file.display()))
}

/// The library's file that a path means: itself, or in that folder or its `lib`.
fn file_in(path: &Path) -> Result<PathBuf> {
    // A pipe would wait for its other end.
    ensure!(!path.exists() || path.is_file() || path.is_dir(), "it is not a file");
    if !path.is_dir() {
        // A relative path would be looked for in the loader's places.
        return fs::canonicalize(path).with_context(|| format!("cannot open `{}`", path.display()));
    }
    let name = library_name();
    let mut found: Vec<PathBuf> = [path.to_path_buf(), path.join("lib")]
        .iter()
        .filter_map(|folder| fs::read_dir(folder).ok())
        .flat_map(|entries| entries.flatten().map(|entry| entry.path()))
        .filter(|file| file.is_file() && file.file_name().is_some_and(|n| n.to_string_lossy().starts_with(&name)))
        .collect();
    found.sort();
    let first = found.first().with_context(|| format!("`{}` has no {name}", path.display()))?;
    fs::canonicalize(first).with_context(|| format!("cannot open `{}`", first.display()))
}

/// Loads a library, makes sure that it is an onnxruntime that `ort` can call, and hands it its functions.
fn open(file: &Path) -> Result<Runtime> {
    // SAFETY: loading a library runs its initialization, which is as trusted as the program that the user runs it in.
    let library = unsafe { Library::new(file) }.map_err(|e| anyhow!("it cannot be loaded: {e}"))?;
    let (api, version) = functions(&library)?;
    // SAFETY: the library says that it has the functions of this version, later ones are only longer, and it stays loaded.
    ort::set_api(unsafe { api.read() });
    std::mem::forget(library);
    // What goes wrong is in the errors too; stderr is not the place for a library's own words.
    let log = |_, _: &str, _: &str, place: &str, message: &str| tracing::debug!("onnxruntime: {message} ({place})");
    ort::init().with_name("odh").with_telemetry(false).with_logger(Arc::new(log)).commit();
    Ok(Runtime { version })
}

/// The functions of an onnxruntime, and its version.
fn functions(library: &Library) -> Result<(*const OrtApi, String)> {
    type GetBase = unsafe extern "C" fn() -> *const OrtApiBase;
    let what = "it is no onnxruntime";
    // SAFETY: this is the one function that every onnxruntime exports under this name; null is looked for at each step.
    let base = unsafe {
        let get = library.get::<GetBase>(b"OrtGetApiBase\0").map_err(|_| anyhow!("{what}: it has no OrtGetApiBase"))?;
        get().as_ref().with_context(|| format!("{what}: its OrtGetApiBase gives nothing"))?
    };
    // SAFETY: as above; both functions have been where they are since the first version.
    unsafe {
        let version = (base.GetVersionString)();
        ensure!(!version.is_null(), "{what}: it has no version");
        let version = CStr::from_ptr(version).to_string_lossy().into_owned();
        let mut numbers = version.split('.').map_while(|number| number.parse::<u32>().ok());
        let new_enough = (numbers.next(), numbers.next()) >= (Some(1), Some(OLDEST));
        ensure!(new_enough, "it is onnxruntime {version}; odh needs 1.{OLDEST} or later");
        let api = (base.GetApi)(OLDEST);
        ensure!(!api.is_null(), "it is onnxruntime {version}, which does not have the functions of 1.{OLDEST}");
        Ok((api, version))
    }
}

impl Runtime {
    /// Its name and version.
    pub fn name(&self) -> String {
        format!("onnxruntime {}", self.version)
    }

    /// Reads a file, which it does not take apart from the processor's cores.
    ///
    /// # Errors
    /// If onnxruntime cannot read it or does not know its operators.
    pub fn session(&self, file: &Path, threads: usize) -> Result<Session> {
        let mut builder = ort::session::Session::builder()
            .map_err(plain)?
            .with_log_level(ort::logging::LogLevel::Error)
            .map_err(plain)?
            .with_intra_threads(threads)
            .map_err(plain)?;
        Ok(Session(builder.commit_from_file(file).map_err(plain)?))
    }
}

impl Session {
    /// Runs the file on pictures.
    ///
    /// * `input` is the name of `pixels`, uint8 of shape `shape`; `outputs` are the names of what is wanted.
    ///
    /// # Errors
    /// If onnxruntime fails, or an output is not there or not float32.
    pub fn run(&mut self, input: &str, outputs: &[String; 4], shape: [i64; 4], pixels: &[u8]) -> Result<[Output; 4]> {
        let pictures = TensorRef::from_array_view((shape, pixels)).map_err(plain)?;
        let found = self.0.run(ort::inputs![input => pictures]).map_err(plain)?;
        let output = |name: &String| {
            let value = found.get(name).with_context(|| format!("the file gives no {name}"))?;
            let (shape, values) = value.try_extract_tensor::<f32>().map_err(plain).with_context(|| name.clone())?;
            anyhow::Ok(Output { shape: shape.to_vec(), values: values.to_vec() })
        };
        let [a, b, c, d] = outputs;
        Ok([output(a)?, output(b)?, output(c)?, output(d)?])
    }
}

/// An error of `ort`, which may hold what failed, as its words alone.
fn plain<T>(error: ort::Error<T>) -> anyhow::Error {
    anyhow!("{}", error.message().trim())
}
