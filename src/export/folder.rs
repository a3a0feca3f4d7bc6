//! The export folder: a model in other programs' formats with the checkpoint, config and label map that it was made from, put in place
//! whole or not at all.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use prost::Message;
use prost::bytes::Bytes;
use tempfile::TempDir;

use super::detector::Detector;
use super::saved_model::saved_model;
use super::{graph_def, onnx};
use crate::config::label_map::LabelMap;
use crate::config::pipeline;
use crate::data::resize::Resizer;
use crate::formats::atomic_file;
use crate::formats::checkpoint_state::{self, CheckpointState};
use crate::formats::tensor_bundle::{BundleReader, BundleWriter};
use crate::net::graph::Variable;
use crate::proto::object_detection::protos as pb;
use crate::proto::tensorflow::DataType;
use crate::{exit, interrupt};

/// The frozen graph's file name.
pub const FROZEN_GRAPH: &str = "frozen_inference_graph.pb";
/// The checkpoint's prefix.
pub const CHECKPOINT: &str = "model.ckpt";
/// The resolved pipeline config.
pub const PIPELINE_CONFIG: &str = "pipeline.config";
/// The label map.
pub const LABEL_MAP: &str = "label_map.pbtxt";
/// A line for each class id from 1 on.
pub const LABELS: &str = "labels.txt";
/// What `labels.txt` has for an id that no class has.
const NO_LABEL: &str = "???";

/// The SavedModel's folder.
pub const SAVED_MODEL: &str = "saved_model";
/// The ONNX model's file name.
pub const ONNX: &str = "model.onnx";

/// What a model can be written as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Format {
    FrozenGraph,
    SavedModel,
    Onnx,
}

impl Format {
    /// All, with the names they are asked for by and where they stand in the export folder.
    pub const ALL: [(&'static str, Format, &'static str); 3] = [
        ("frozen_graph", Self::FrozenGraph, FROZEN_GRAPH),
        ("saved_model", Self::SavedModel, SAVED_MODEL),
        ("onnx", Self::Onnx, ONNX),
    ];
}

/// What an export is made from, and where it goes.
#[derive(Debug, Clone, Copy)]
pub struct ExportInput<'a> {
    pub config: &'a pb::TrainEvalPipelineConfig,
    pub label_map: &'a LabelMap,
    /// `PREFIX` of `PREFIX.index`.
    pub checkpoint: &'a Path,
    /// The folder that is made, or takes the place of an earlier export.
    pub output_dir: &'a Path,
    /// Which formats are written; empty for all.
    pub formats: &'a [Format],
}

impl ExportInput<'_> {
    fn writes(&self, format: Format) -> bool {
        self.formats.is_empty() || self.formats.contains(&format)
    }
}

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exported {
    pub folder: PathBuf,
    /// The checkpoint's `global_step`, if it has one.
    pub step: Option<i64>,
    /// What was written, and its bytes.
    pub models: Vec<(PathBuf, u64)>,
}

/// Writes the export folder.
///
/// Everything is written to a folder beside `output_dir` first, which takes its place at the end.
///
/// # Errors
/// If the model cannot be exported, the checkpoint is not the model's, the label map has more classes than the model, `output_dir` is
/// a folder of other things, writing fails, or Ctrl-C was pressed (exit code 130); what was at `output_dir` is then still there.
pub fn run(input: &ExportInput) -> Result<Exported> {
    let detector = Detector::from_config(input.config)?;
    let model = detector.model();
    let classes = input.label_map.num_classes() as usize;
    ensure!(
        classes <= model.num_classes(),
        "the label map's largest id is {classes}, but the model has {} classes: it was trained with another label map",
        model.num_classes()
    );
    let reader = BundleReader::open(input.checkpoint)?;
    fits(&reader, model.variables()).with_context(|| format!("cannot export `{}`", input.checkpoint.display()))?;
    let target = Target::new(input.output_dir)?;
    let folder = target.temporary.path();

    let mut models = Vec::new();
    let mut written = |name: &str, bytes: u64| models.push((input.output_dir.join(name), bytes));
    let read = |name: &str| Ok(reader.read_f32(name)?.1);
    if input.writes(Format::FrozenGraph) || input.writes(Format::SavedModel) {
        let graph = detector.frozen_graph(&read)?;
        graph_def::check::check(&graph).context("the frozen graph is not sound; this is a bug in odh")?;
        if input.writes(Format::FrozenGraph) {
            written(FROZEN_GRAPH, write_message(&folder.join(FROZEN_GRAPH), &graph)?);
        }
        if input.writes(Format::SavedModel) {
            let path = folder.join(SAVED_MODEL);
            // Loaders look for it, though a frozen graph has no variables.
            fs::create_dir_all(path.join("variables")).with_context(|| format!("cannot create `{}`", path.display()))?;
            let model = saved_model(graph, detector.max_detections());
            written(SAVED_MODEL, write_message(&path.join("saved_model.pb"), &model)?);
        }
    }
    if input.writes(Format::Onnx) {
        let model = detector.onnx(&read, &metadata(input, &detector)?)?;
        onnx::check::check(&model).context("the ONNX model is not sound; this is a bug in odh")?;
        written(ONNX, write_message(&folder.join(ONNX), &model)?);
    }
    let step = copy_variables(&reader, model.variables(), &folder.join(CHECKPOINT))?;
    let prefix = folder.join(CHECKPOINT);
    checkpoint_state::write(folder, &CheckpointState { latest: prefix.clone(), all: vec![prefix] })?;
    atomic_file::write(&folder.join(PIPELINE_CONFIG), pipeline::to_text(input.config).as_bytes())?;
    atomic_file::write(&folder.join(LABEL_MAP), input.label_map.to_text()?.as_bytes())?;
    atomic_file::write(&folder.join(LABELS), labels(input.label_map).as_bytes())?;
    if interrupt::requested() {
        return Err(exit::interrupted(format!(
            "stopped before the export took its place; `{}` is as it was",
            input.output_dir.display()
        )));
    }
    target.put_in_place()?;
    Ok(Exported { folder: input.output_dir.to_path_buf(), step, models })
}

/// Whether the checkpoint has every variable of the model in its shape.
fn fits(reader: &BundleReader, variables: &[Variable]) -> Result<()> {
    let mut wrong = Vec::new();
    for variable in variables {
        match reader.get(&variable.name) {
            None => wrong.push(format!("it has no `{}`", variable.name)),
            Some(entry) if entry.shape != variable.shape => {
                wrong.push(format!("`{}` is {:?} in it and {:?} in the model", variable.name, entry.shape, variable.shape));
            }
            Some(entry) if entry.dtype != DataType::DtFloat => {
                wrong.push(format!("`{}` is {} in it, not float32", variable.name, entry.dtype.as_str_name()));
            }
            Some(_) => {}
        }
    }
    if wrong.is_empty() {
        return Ok(());
    }
    let shown = wrong.iter().take(3).map(String::as_str).collect::<Vec<_>>().join("; ");
    let more = if wrong.len() > 3 { format!("; and {} more", wrong.len() - 3) } else { String::new() };
    bail!("the checkpoint is not of this model and number of classes: {shown}{more}")
}

/// What a reader may ask the ONNX file for.
fn metadata(input: &ExportInput, detector: &Detector) -> Result<Vec<(&'static str, String)>> {
    let classes: BTreeMap<u32, String> = (1..=input.label_map.num_classes())
        .filter(|&id| input.label_map.name_of(id).is_some())
        .map(|id| (id, input.label_map.label(id)))
        .collect();
    let size = match detector.model().resizer() {
        Resizer::FixedShape { height, width } => serde_json::json!({ "height": height, "width": width }),
        Resizer::KeepAspectRatio { min, max } => serde_json::json!({ "min_dimension": min, "max_dimension": max }),
    };
    Ok(vec![
        ("odh_version", env!("CARGO_PKG_VERSION").to_string()),
        ("classes", serde_json::to_string(&classes)?),
        ("resized_to", size.to_string()),
        ("max_detections", detector.max_detections().to_string()),
    ])
}

/// Writes a file, then reads it back and compares.
fn write_message<M: Message + Default + PartialEq>(path: &Path, message: &M) -> Result<u64> {
    // Protobuf's own limit; TensorFlow and onnxruntime read nothing larger.
    let size = message.encoded_len();
    ensure!(size < i32::MAX as usize, "`{}` would have {size} bytes; a protobuf file can have at most 2 GiB", path.display());
    atomic_file::write(path, &message.encode_to_vec())?;
    let bytes = fs::read(path).with_context(|| format!("cannot read `{}` back", path.display()))?;
    let length = bytes.len() as u64;
    let back = M::decode(Bytes::from(bytes)).with_context(|| format!("`{}` is damaged", path.display()))?;
    ensure!(back == *message, "`{}` does not hold what was written to it; is the disk failing?", path.display());
    Ok(length)
}

/// The model's variables, without an optimizer's; and `global_step`, whose value is returned.
fn copy_variables(reader: &BundleReader, variables: &[Variable], prefix: &Path) -> Result<Option<i64>> {
    const STEP: &str = "global_step";
    let mut writer = BundleWriter::create(prefix)?;
    for variable in variables {
        writer.add(&variable.name, &reader.read(&variable.name)?)?;
    }
    let mut step = None;
    if reader.get(STEP).is_some() {
        let tensor = reader.read(STEP)?;
        step = tensor.to_i64().and_then(|values| values.first().copied());
        writer.add(STEP, &tensor)?;
    }
    writer.finish()?;
    Ok(step)
}

/// A line for each id from 1 to the largest: line `i` names class `i`.
fn labels(map: &LabelMap) -> String {
    let line = |id: u32| match map.name_of(id) {
        // A line break in a name would shift all that follow.
        Some(_) => map.label(id).replace(['\r', '\n'], " "),
        None => NO_LABEL.to_string(),
    };
    (1..=map.num_classes()).map(|id| line(id) + "\n").collect()
}

/// Where the export goes, and where it is made.
struct Target {
    /// The export folder, with an absolute parent.
    path: PathBuf,
    /// Beside it; deleted if it does not get there.
    temporary: TempDir,
}

impl Target {
    fn new(output_dir: &Path) -> Result<Self> {
        let shown = output_dir.display();
        let path = std::path::absolute(output_dir).with_context(|| format!("`{shown}` is no folder's name"))?;
        // A link to a folder stays a link: the folder behind it is replaced.
        let path = if path.is_dir() { path.canonicalize().with_context(|| format!("cannot reach `{shown}`"))? } else { path };
        if path.exists() {
            ensure!(path.is_dir(), "`{shown}` is a file; name a folder with --output_dir");
            let empty = fs::read_dir(&path).with_context(|| format!("cannot read `{shown}`"))?.next().is_none();
            ensure!(
                empty || Format::ALL.iter().any(|(_, _, name)| path.join(name).exists()),
                "`{shown}` is there already and is not an export (it has no {FROZEN_GRAPH}, {SAVED_MODEL} or {ONNX}); name another folder with \
                 --output_dir"
            );
        }
        let parent = path.parent().with_context(|| format!("`{shown}` cannot be replaced"))?;
        fs::create_dir_all(parent).with_context(|| format!("cannot create `{}`", parent.display()))?;
        let temporary = tempfile::Builder::new()
            .prefix(&hidden(&path, "export"))
            // As any new folder: the umask takes away what it must.
            .permissions(Permissions::from_mode(0o777))
            .tempdir_in(parent)
            .with_context(|| format!("cannot create a folder in `{}`", parent.display()))?;
        Ok(Self { path, temporary })
    }

    /// The new folder takes the old one's place; files that an export does not have move over from there.
    fn put_in_place(self) -> Result<()> {
        let failed = || format!("cannot put the export in place at `{}`", self.path.display());
        let Some(parent) = self.path.parent() else { bail!("`{}` cannot be replaced", self.path.display()) };
        let new = self.temporary.path();
        sync(new).with_context(failed)?;
        let old = if self.path.exists() {
            let aside = tempfile::Builder::new().prefix(&hidden(&self.path, "old")).tempdir_in(parent).with_context(failed)?;
            let old = aside.path().join("export");
            fs::rename(&self.path, &old).with_context(failed)?;
            Some((aside, old))
        } else {
            None
        };
        if let Err(error) = fs::rename(new, &self.path) {
            if let Some((aside, old)) = old {
                let back = fs::rename(&old, &self.path);
                if back.is_err() {
                    // Better an odd folder left over than the only good export deleted.
                    let kept = aside.keep();
                    return Err(error).with_context(|| format!("{}; the earlier one is in `{}`", failed(), kept.display()));
                }
            }
            return Err(error).with_context(failed);
        }
        sync(parent).with_context(failed)?;
        if let Some((aside, old)) = old
            && let Err(error) = self.carry_over(&old)
        {
            let kept = aside.keep();
            return Err(error).with_context(|| format!("the export is in place, and the earlier one in `{}`", kept.display()));
        }
        Ok(())
    }

    /// Moves what a user put beside an earlier export; what other exports wrote would not belong to this graph any more.
    fn carry_over(&self, old: &Path) -> Result<()> {
        for entry in fs::read_dir(old).with_context(|| format!("cannot read `{}`", old.display()))? {
            let name = entry.with_context(|| format!("cannot read `{}`", old.display()))?.file_name();
            let to = self.path.join(&name);
            if !is_exports(&name) && !to.exists() {
                fs::rename(old.join(&name), &to).with_context(|| format!("cannot keep `{}`", to.display()))?;
            }
        }
        Ok(())
    }
}

/// Whether an export, odh's or upstream's, writes a file or folder of this name.
fn is_exports(name: &OsStr) -> bool {
    const NAMES: &[&str] =
        &[FROZEN_GRAPH, PIPELINE_CONFIG, LABEL_MAP, LABELS, checkpoint_state::FILE_NAME, SAVED_MODEL, ONNX, "export.json"];
    let name = name.to_string_lossy();
    NAMES.contains(&name.as_ref()) || name.starts_with("model.ckpt") || name.starts_with("model.torchscript")
}

/// `.NAME.what-`, the start of a hidden name beside `path`.
fn hidden(path: &Path, what: &str) -> OsString {
    let mut name = OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(format!(".{what}-"));
    name
}

fn sync(folder: &Path) -> std::io::Result<()> {
    File::open(folder)?.sync_all()
}
