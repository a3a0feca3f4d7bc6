//! Runs files of an export in TensorFlow or onnxruntime, where a Python on this machine has them.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use serde::Deserialize;
use tempfile::TempDir;

use super::folder::Format;
use crate::data::image::RgbImage;
use crate::detection::boxes::Detections;
use crate::interrupt;

const SCRIPT: &str = include_str!("runtimes.py");
/// The end of what a failed runtime printed that is worth repeating, bytes.
const LAST_WORDS: usize = 600;
/// From one look at whether a runtime has ended to the next.
const A_LOOK: Duration = Duration::from_millis(20);

/// Decoded pictures on disk: each is read when it is its turn, by whichever runtime.
pub struct Pictures {
    folder: TempDir,
    /// File, height, width.
    entries: Vec<(String, usize, usize)>,
}

impl Pictures {
    /// No pictures yet, in a temporary folder.
    ///
    /// # Errors
    /// If there can be none.
    pub fn new() -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("odh-verify-").tempdir().context("cannot create a temporary folder")?;
        Ok(Self { folder, entries: Vec::new() })
    }

    /// Adds one.
    ///
    /// # Errors
    /// If the disk is full.
    pub fn add(&mut self, picture: &RgbImage) -> Result<()> {
        let name = format!("{}.rgb", self.entries.len());
        let path = self.folder.path().join(&name);
        fs::write(&path, &picture.data).with_context(|| format!("cannot write `{}`", path.display()))?;
        self.entries.push((name, picture.height, picture.width));
        Ok(())
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Height and width of each.
    pub fn sizes(&self) -> impl Iterator<Item = (usize, usize)> {
        self.entries.iter().map(|(_, height, width)| (*height, *width))
    }

    /// Picture `i`.
    ///
    /// # Errors
    /// If its file is gone.
    pub fn read(&self, i: usize) -> Result<RgbImage> {
        let (name, height, width) = &self.entries[i];
        let path = self.folder.path().join(name);
        let data = fs::read(&path).with_context(|| format!("cannot read `{}` back", path.display()))?;
        Ok(RgbImage { width: *width, height: *height, data })
    }
}

/// What a runtime found.
pub struct Found {
    /// Name and version.
    pub runtime: String,
    /// Of each picture.
    pub detections: Vec<Detections>,
    /// For each picture.
    pub seconds: Vec<f64>,
}

/// What came of an attempt to run a file.
pub enum Attempt {
    /// There is nothing to run it with.
    Unavailable(String),
    /// The runtime is there, and does not take the file.
    Failed(String),
    Ran(Found),
}

/// As the script writes it.
#[derive(Deserialize)]
#[serde(untagged)]
enum Answer {
    Missing { missing: String },
    Loading { loading: String },
    Ran { runtime: String, seconds: Vec<f64>, found: Vec<Rows> },
}

#[derive(Deserialize)]
struct Rows {
    boxes: Vec<[f32; 4]>,
    scores: Vec<f32>,
    /// Ids of the label map.
    classes: Vec<f32>,
}

/// Runs a file on all pictures.
///
/// * `python`: a program's name or path.
///
/// # Errors
/// If it cannot be tried at all. After Ctrl-C the Python is ended, and the attempt has failed.
pub fn run_in_python(python: &Path, format: Format, file: &Path, pictures: &Pictures) -> Result<Attempt> {
    let folder = pictures.folder.path();
    let list = folder.join("pictures.json");
    fs::write(&list, serde_json::to_vec(&pictures.entries)?).with_context(|| format!("cannot write `{}`", list.display()))?;
    let name = format.name();
    let mut command = Command::new(python);
    command.args(["-c", SCRIPT, name]).arg(file).arg(folder);
    let ran = run_to_its_end(&mut command, &folder.join("stderr.txt"));
    let (status, said) = match ran {
        Ok(ran) => ran,
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::PermissionDenied) => {
            return Ok(Attempt::Unavailable(format!("`{}` cannot be started: {error}", python.display())));
        }
        Err(error) => return Err(error).with_context(|| format!("cannot start `{}`", python.display())),
    };
    let said = said.trim_end();
    let from = (said.len().saturating_sub(LAST_WORDS)..said.len()).find(|&i| said.is_char_boundary(i)).unwrap_or(0);
    let last_words = format!("{} ({})", said[from..].trim(), status);
    let path = folder.join(format!("{name}.json"));
    let Ok(text) = fs::read(&path) else {
        return Ok(Attempt::Unavailable(format!("`{}` ended before it came to the file: {last_words}", python.display())));
    };
    Ok(match serde_json::from_slice(&text).with_context(|| format!("`{}` answered in another form", python.display()))? {
        Answer::Missing { missing } => Attempt::Unavailable(format!("`{}`: {missing}", python.display())),
        // Killed from outside, for want of memory as a rule: that says nothing of the file.
        Answer::Loading { loading } if status.signal() == Some(Signal::SIGKILL as i32) => {
            Attempt::Unavailable(format!("`{}`: {loading} was killed, perhaps for want of memory", python.display()))
        }
        Answer::Loading { .. } => Attempt::Failed(last_words),
        Answer::Ran { runtime, seconds, found } => {
            let detections: Vec<Detections> = found.into_iter().map(Detections::from).collect();
            ensure!(detections.len() == pictures.len() && seconds.len() == pictures.len(), "{runtime} left out pictures");
            Attempt::Ran(Found { runtime, detections, seconds })
        }
    })
}

/// Its exit status and what it wrote to its standard error, which goes by way of a file. A signal that reaches this process alone ends it too.
fn run_to_its_end(command: &mut Command, stderr: &Path) -> std::io::Result<(ExitStatus, String)> {
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(stderr)?).spawn()?;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if interrupt::requested() {
            child.kill()?;
            break child.wait()?;
        }
        std::thread::sleep(A_LOOK);
    };
    Ok((status, String::from_utf8_lossy(&fs::read(stderr)?).into_owned()))
}

impl From<Rows> for Detections {
    fn from(rows: Rows) -> Self {
        // Class 0 or what is no id becomes one that no detection of odh's has.
        let class = |id: &f32| if *id >= 1.0 { *id as usize - 1 } else { usize::MAX };
        Self { boxes: rows.boxes, scores: rows.scores, classes: rows.classes.iter().map(class).collect() }
    }
}
