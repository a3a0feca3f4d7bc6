//! The export folder: a model in other programs' formats with the checkpoint, config and label map that it was made from.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use prost::Message;
use prost::bytes::Bytes;

use super::detector::Detector;
use super::manifest::Facts;
use super::parity::Parity;
use super::saved_model::saved_model;
use super::target::Target;
use super::{graph_def, onnx, torchscript};
use crate::config::label_map::{self, LabelMap};
use crate::config::pipeline;
use crate::formats::atomic_file::{self, AtomicFile};
use crate::formats::averages::Values;
use crate::formats::checkpoint_state::{self, CheckpointState};
use crate::formats::tensor_bundle::{BundleReader, BundleWriter};
use crate::interrupt;
use crate::net::graph::Variable;
use crate::net::shim::{self, Script};
use crate::proto::object_detection::protos as pb;
use crate::proto::tensorflow::DataType;

/// The frozen graph's file name.
pub const FROZEN_GRAPH: &str = "frozen_inference_graph.pb";
/// The checkpoint's prefix.
pub const CHECKPOINT: &str = "model.ckpt";
/// What is in the folder, and what the models take and give.
pub use crate::runtime::listing::EXPORT_JSON;
/// A line for each class id from 1 on.
pub const LABELS: &str = "labels.txt";
/// What `labels.txt` has for an id that no class has.
const NO_LABEL: &str = "???";

/// The SavedModel's folder.
pub const SAVED_MODEL: &str = "saved_model";
/// The ONNX model's file name.
pub const ONNX: &str = "model.onnx";
/// The TorchScript module's file name.
pub const TORCHSCRIPT: &str = "model.torchscript.pt";

/// What a model can be written as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Format {
    FrozenGraph,
    SavedModel,
    Onnx,
    TorchScript,
}

impl Format {
    /// All, with the names they are asked for by and where they stand in the export folder.
    pub const ALL: [(&'static str, Format, &'static str); 4] = [
        ("frozen_graph", Self::FrozenGraph, FROZEN_GRAPH),
        ("saved_model", Self::SavedModel, SAVED_MODEL),
        ("onnx", Self::Onnx, ONNX),
        ("torchscript", Self::TorchScript, TORCHSCRIPT),
    ];

    /// The name that it is asked for by.
    pub fn name(self) -> &'static str {
        Self::ALL[self as usize].0
    }
}

/// What an export is made from, and where it goes.
#[derive(Debug, Clone, Copy)]
pub struct ExportInput<'a> {
    /// What the model is called.
    pub model: &'a str,
    pub config: &'a pb::TrainEvalPipelineConfig,
    pub label_map: &'a LabelMap,
    /// `PREFIX` of `PREFIX.index`.
    pub checkpoint: &'a Path,
    /// The folder that is made, or takes the place of an earlier export.
    pub output_dir: &'a Path,
    /// Which formats are written; empty for all.
    pub formats: &'a [Format],
}

impl<'a> ExportInput<'a> {
    /// In all formats.
    pub fn new(
        model: &'a str,
        config: &'a pb::TrainEvalPipelineConfig,
        label_map: &'a LabelMap,
        checkpoint: &'a Path,
        output_dir: &'a Path,
    ) -> Self {
        Self { model, config, label_map, checkpoint, output_dir, formats: &[] }
    }
}

/// Looks at the files in a folder before they take their place.
pub type Verify<'a> = &'a mut dyn FnMut(&Path) -> Result<Parity>;

impl ExportInput<'_> {
    /// Whether a format is asked for.
    pub fn writes(&self, format: Format) -> bool {
        self.formats.is_empty() || self.formats.contains(&format)
    }
}

/// What was written.
#[derive(Debug, Clone)]
pub struct Exported {
    pub folder: PathBuf,
    /// The checkpoint's `global_step`, if it has one.
    pub step: Option<i64>,
    /// What was written, and its bytes.
    pub models: Vec<(PathBuf, u64)>,
    /// What was found beside the model itself, if that was asked.
    pub parity: Option<Parity>,
}

/// Writes the export folder.
///
/// Everything is written to a folder beside `output_dir` first, which takes its place at the end. What drifts from the model goes to a
/// hidden folder beside `output_dir`, where it can be looked at, and what was at `output_dir` stays.
///
/// * `verify`: says whether the files find what the model finds; its report goes into export.json.
///
/// # Errors
/// If the model cannot be exported, the checkpoint is not the model's, the label map has more classes than the model, `output_dir` is
/// a folder of other things, writing fails, or Ctrl-C was pressed (exit code 130); what was at `output_dir` is then still there.
pub fn run(input: &ExportInput, verify: Option<Verify>) -> Result<Exported> {
    let detector =
        Detector::from_config(input.config).with_context(|| format!("the pipeline config of {}", input.checkpoint.display()))?;
    let model = detector.model();
    input.label_map.ensure_within(model.num_classes())?;
    if input.writes(Format::TorchScript) {
        shim::init()?;
    }
    let reader = BundleReader::open(input.checkpoint)?;
    fits(&reader, model.variables()).with_context(|| format!("cannot export `{}`", input.checkpoint.display()))?;
    let values = pipeline::values_evaluated(input.config);
    values.check(&reader).with_context(|| format!("cannot export `{}`", input.checkpoint.display()))?;
    let mut target = Target::new(input.output_dir)?;
    let folder = &target.folder().to_path_buf();

    let facts = Facts::new(&detector, input.label_map);
    let mut models = Vec::new();
    let mut written = |name: &str, bytes: u64| models.push((name.to_string(), bytes));
    let read = |name: &str| {
        let (_, values) = reader.read_f32(&values.source(&reader, name))?;
        let finite = values.iter().all(|value| value.is_finite());
        ensure!(
            finite,
            "`{}`: `{name}` holds values that are no numbers, as trainings leave that diverged",
            input.checkpoint.display()
        );
        Ok(values)
    };
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
        let model = detector.onnx(&read, &facts.metadata()?)?;
        onnx::check::check(&model).context("the ONNX model is not sound; this is a bug in odh")?;
        written(ONNX, write_message(&folder.join(ONNX), &model)?);
    }
    if input.writes(Format::TorchScript) {
        let path = folder.join(TORCHSCRIPT);
        written(TORCHSCRIPT, write_script(&path, &detector.torchscript(&read, &facts.json(input.model)?)?)?);
    }
    let step = copy_variables(&reader, values, model.variables(), &folder.join(CHECKPOINT))?;
    let prefix = folder.join(CHECKPOINT);
    checkpoint_state::write(folder, &CheckpointState { latest: prefix.clone(), all: vec![prefix] })?;
    let mut config = input.config.clone();
    if let Some(eval) = &mut config.eval_config {
        // Where averages are exported, they are the exported checkpoint's variables.
        eval.use_moving_averages = eval.use_moving_averages.map(|_| false);
    }
    atomic_file::write(&folder.join(pipeline::FILE_NAME), pipeline::to_text(&config).as_bytes())?;
    atomic_file::write(&folder.join(label_map::FILE_NAME), input.label_map.to_text()?.as_bytes())?;
    atomic_file::write(&folder.join(LABELS), labels(input.label_map).as_bytes())?;
    let parity = verify.map(|verify| verify(folder)).transpose()?;
    let manifest = facts.manifest(input.model, step, parity.as_ref(), folder)?;
    atomic_file::write(&folder.join(EXPORT_JSON), manifest.as_bytes())?;
    interrupt::check(|| format!("stopped before the export took its place; `{}` is as it was", input.output_dir.display()))?;
    let place = if parity.as_ref().is_some_and(|parity| !parity.drifted().is_empty()) {
        target.aim_aside("drifted")?
    } else {
        input.output_dir.to_path_buf()
    };
    target.put_in_place()?;
    let models = models.into_iter().map(|(name, bytes)| (place.join(name), bytes)).collect();
    Ok(Exported { folder: place, step, models, parity })
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

/// Writes a TorchScript file, then reads it back and compares.
fn write_script(path: &Path, script: &Script) -> Result<u64> {
    let mut file = AtomicFile::create(path)?;
    script.write(&mut file).with_context(|| format!("cannot write `{}`", path.display()))?;
    file.commit()?;
    torchscript::check::check(path, script)?;
    Ok(fs::metadata(path).with_context(|| format!("cannot read `{}` back", path.display()))?.len())
}

/// The model's variables, without an optimizer's; and `global_step`, whose value is returned.
fn copy_variables(reader: &BundleReader, values: Values, variables: &[Variable], prefix: &Path) -> Result<Option<i64>> {
    const STEP: &str = "global_step";
    let mut writer = BundleWriter::create(prefix)?;
    for variable in variables {
        writer.add(&variable.name, &reader.read(&values.source(reader, &variable.name))?)?;
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
    (1..=map.max_id()).map(|id| line(id) + "\n").collect()
}
