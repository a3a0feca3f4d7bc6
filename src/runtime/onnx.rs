//! Runs model.onnx by what the file alone says, and others with the inputs and outputs of the OD API's detectors.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use prost::Message;
use prost::bytes::Bytes;

use super::file_kind::INSTEAD;
use super::listing;
use super::metadata::Metadata;
use super::onnxruntime::{self, Session};
use super::outputs;
use crate::data::image::RgbImage;
use crate::detection::boxes::Detections;
use crate::proto::onnx::tensor_proto::DataType;
use crate::proto::onnx::tensor_shape_proto::dimension::Value as Side;
use crate::proto::onnx::{ModelProto, ValueInfoProto, type_proto};

/// Where onnxruntime's library may be, besides the usual places.
#[derive(Debug, Clone)]
pub struct LibrarySearch {
    /// Its file or folder, if it is named.
    pub library: Option<PathBuf>,
    /// A Python that may have it.
    pub python: PathBuf,
}

impl LibrarySearch {
    /// With the Python that is named, or else `$ODH_PYTHON`, or `python3`.
    pub fn new(library: Option<PathBuf>, python: Option<PathBuf>) -> Self {
        let python = python.or_else(|| std::env::var_os("ODH_PYTHON").map(PathBuf::from));
        Self { library, python: python.unwrap_or_else(|| "python3".into()) }
    }
}

/// A file that is ready to run.
#[derive(Debug)]
pub struct OnnxModel {
    session: Session,
    runtime: String,
    interface: Interface,
}

/// What a file takes and gives.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Interface {
    input: String,
    /// In the order of [`outputs::NAMES`].
    outputs: [String; 4],
    /// None of a file that is not odh's.
    metadata: Option<Metadata>,
}

impl OnnxModel {
    /// Reads a file, on the CPU.
    ///
    /// # Errors
    /// If it is damaged or no detector, or onnxruntime is not there or does not take it.
    pub fn open(path: &Path, search: &LibrarySearch) -> Result<Self> {
        let shown = path.display();
        // What the file is can be said without onnxruntime, and more clearly.
        let interface = fs::read(path)
            .map_err(anyhow::Error::from)
            .and_then(|bytes| {
                if listing::was_changed(path, &bytes) {
                    // By another program perhaps, and then all is well.
                    tracing::warn!("`{shown}` is not as it was exported: export.json beside it has another SHA-256; if nobody changed it, it is damaged");
                }
                Interface::read(Bytes::from(bytes))
            })
            .with_context(|| format!("`{shown}` cannot be run"))?;
        let runtime =
            onnxruntime::load(search).with_context(|| format!("`{shown}` is an ONNX file, which takes onnxruntime to run"))?;
        let threads = usize::try_from(tch::get_num_threads()).unwrap_or(0);
        let session = runtime
            .session(path, threads)
            .with_context(|| format!("{} does not take `{shown}`: it is damaged, or too new for it", runtime.name()))?;
        Ok(Self { session, runtime: runtime.name(), interface })
    }

    /// Name and version of what runs it.
    pub fn runtime(&self) -> &str {
        &self.runtime
    }

    /// What the file says of itself; nothing, if it is not odh's.
    pub fn metadata(&self) -> Option<&Metadata> {
        self.interface.metadata.as_ref()
    }

    /// What is in a picture.
    ///
    /// # Errors
    /// If the file does not give detections for it.
    pub fn detect(&mut self, picture: &RgbImage) -> Result<Detections> {
        let Interface { input, outputs, .. } = &self.interface;
        let shape = [1, picture.height as i64, picture.width as i64, 3];
        let found = self.session.run(input, outputs, shape, &picture.data).with_context(|| self.runtime.clone())?;
        outputs::detections(1, found)?.pop().context("the file gave nothing for the picture")
    }
}

impl Interface {
    fn read(bytes: Bytes) -> Result<Self> {
        let model = ModelProto::decode(bytes).ok().filter(|model| model.ir_version.is_some() && model.graph.is_some());
        // The operators' versions come behind the graph: without them, the end is missing.
        let model = model.filter(|model| !model.opset_import.is_empty());
        let model = model.with_context(|| format!("it is damaged, was not copied as a whole, or is no ONNX file; {INSTEAD}"))?;
        let graph = model.graph.as_ref().context("it has no graph")?;
        // Before IR version 4, a constant was an input too.
        let is_constant = |name: &str| graph.initializer.iter().any(|constant| constant.name() == name);
        let inputs: Vec<&ValueInfoProto> = graph.input.iter().filter(|input| !is_constant(input.name())).collect();
        let described = || {
            let list = |infos: &mut dyn Iterator<Item = &ValueInfoProto>| infos.map(describe).collect::<Vec<_>>().join(", ");
            format!("takes {} and gives {}", list(&mut inputs.iter().copied()), list(&mut graph.output.iter()))
        };
        let wanted = "a detector takes one uint8 [1, height, width, 3], for any height and width, and gives float detection_boxes, \
                      detection_scores, detection_classes and num_detections";
        let [input] = inputs[..] else { bail!("it {}; {wanted}", described()) };
        ensure!(takes_pictures(input), "it {}; {wanted}", described());
        let named = |name: &str| {
            // The names of TensorFlow's tensors end in `:0`, and so do those of some converters.
            let output = graph.output.iter().find(|output| output.name().trim_end_matches(":0") == name);
            output.filter(|output| tensor(output).is_some_and(|(kind, _)| kind == DataType::Float as i32))
        };
        let mut outputs = Vec::new();
        for name in outputs::NAMES {
            outputs.push(named(name).with_context(|| format!("it {}; {wanted}", described()))?.name().to_string());
        }
        let outputs = outputs.try_into().map_err(|_| anyhow::anyhow!("it has other outputs"))?;
        Ok(Self { input: input.name().to_string(), outputs, metadata: metadata(&model)? })
    }
}

/// What a file of odh's says of itself (export/manifest.rs).
fn metadata(model: &ModelProto) -> Result<Option<Metadata>> {
    let value = |key: &str| model.metadata_props.iter().find(|entry| entry.key() == key).map(|entry| entry.value());
    if model.producer_name() != env!("CARGO_PKG_NAME") {
        return Ok(None);
    }
    let damaged = "it is of odh, but its metadata is damaged";
    let odh_version = value("odh_version").context(damaged)?.to_string();
    let classes = serde_json::from_str(value("classes").context(damaged)?).context(damaged)?;
    Ok(Some(Metadata { odh_version, classes }))
}

/// Type and sides of a value; a side that may be any is none.
fn tensor(info: &ValueInfoProto) -> Option<(i32, Option<Vec<Option<i64>>>)> {
    let Some(type_proto::Value::TensorType(tensor)) = info.r#type.as_ref()?.value.as_ref() else { return None };
    let sides = tensor.shape.as_ref().map(|shape| {
        let side = |value: &Option<Side>| match value {
            Some(Side::DimValue(n)) if *n > 0 => Some(*n),
            _ => None,
        };
        shape.dim.iter().map(|dim| side(&dim.value)).collect()
    });
    Some((tensor.elem_type(), sides))
}

fn takes_pictures(input: &ValueInfoProto) -> bool {
    let Some((kind, sides)) = tensor(input) else { return false };
    let fits = sides.is_none_or(|sides| matches!(sides[..], [None | Some(1), None, None, None | Some(3)]));
    kind == DataType::Uint8 as i32 && fits
}

/// `image_tensor uint8 [?, ?, ?, 3]`.
fn describe(info: &ValueInfoProto) -> String {
    let Some((kind, sides)) = tensor(info) else { return format!("{} (no tensor)", info.name()) };
    let kind = DataType::try_from(kind).map_or_else(|_| format!("type {kind}"), |kind| kind.as_str_name().to_lowercase());
    let sides = sides.map(|sides| {
        let side = |side: &Option<i64>| side.map_or_else(|| "?".to_string(), |n| n.to_string());
        format!(" [{}]", sides.iter().map(side).collect::<Vec<_>>().join(", "))
    });
    format!("{} {kind}{}", info.name(), sides.unwrap_or_default())
}
