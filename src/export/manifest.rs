//! What a reader wants to know of an export without opening it: export.json, and the same facts inside model.onnx and
//! model.torchscript.pt.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;
use sha2::{Digest, Sha256};

use super::detector::Detector;
use super::parity::Parity;
use crate::config::label_map::LabelMap;
use crate::data::resample::Method;
use crate::data::resizer::{Resizer, Target};
use crate::formats::hexadecimal::hexadecimal;
use crate::runtime::metadata::Class;

/// The facts of a model, whatever it is written as.
#[derive(Debug, Serialize)]
pub struct Facts {
    odh_version: &'static str,
    classes: Vec<Class>,
    input: Input,
    outputs: [Output; 4],
}

/// What is fed; -1 is any size.
#[derive(Debug, Serialize)]
struct Input {
    name: &'static str,
    dtype: &'static str,
    shape: [i64; 4],
    color: &'static str,
    /// What the model does with a picture's size.
    resized_to: serde_json::Value,
}

/// What is fetched; the first side is the input's.
#[derive(Debug, Serialize)]
struct Output {
    name: &'static str,
    dtype: &'static str,
    shape: Vec<i64>,
    what: &'static str,
}

/// A file of the export.
#[derive(Debug, Serialize)]
struct Entry {
    path: String,
    bytes: u64,
    sha256: String,
}

/// export.json.
#[derive(Debug, Serialize)]
struct Manifest<'a> {
    model: &'a str,
    step: Option<i64>,
    #[serde(flatten)]
    facts: &'a Facts,
    files: Vec<Entry>,
    /// What was found beside the model itself; null if nobody looked.
    parity: Option<&'a Parity>,
}

impl Facts {
    /// The facts of `detector` with the classes of `label_map`.
    pub fn new(detector: &Detector, label_map: &LabelMap) -> Self {
        let named = (1..=label_map.max_id()).filter(|&id| label_map.name_of(id).is_some());
        let d = detector.max_detections() as i64;
        let output = |name, shape: &[i64], what| Output { name, dtype: "float32", shape: shape.to_vec(), what };
        Self {
            odh_version: env!("CARGO_PKG_VERSION"),
            classes: named.map(|id| Class { id, name: label_map.label(id) }).collect(),
            input: Input {
                name: "image_tensor",
                dtype: "uint8",
                shape: [-1, -1, -1, 3],
                color: "RGB",
                resized_to: resized_to(detector.model().resizer()),
            },
            outputs: [
                output("detection_boxes", &[-1, d, 4], "ymin, xmin, ymax, xmax, as shares of the picture"),
                output("detection_scores", &[-1, d], "best first"),
                output("detection_classes", &[-1, d], "ids of the label map"),
                output("num_detections", &[-1], "what is beyond is padding"),
            ],
        }
    }

    /// The facts as the keys and values of an ONNX file's metadata.
    ///
    /// # Errors
    /// If they cannot be written as JSON.
    pub fn metadata(&self) -> Result<Vec<(&'static str, String)>> {
        Ok(vec![
            ("odh_version", self.odh_version.to_string()),
            ("classes", serde_json::to_string(&self.classes)?),
            ("input", serde_json::to_string(&self.input)?),
            ("outputs", serde_json::to_string(&self.outputs)?),
        ])
    }

    /// The facts as one JSON text, with the export's name: what a TorchScript file's `metadata` says.
    ///
    /// # Errors
    /// If they cannot be written as JSON.
    pub fn json(&self, model: &str) -> Result<String> {
        #[derive(Serialize)]
        struct Named<'a> {
            model: &'a str,
            #[serde(flatten)]
            facts: &'a Facts,
        }
        Ok(serde_json::to_string(&Named { model, facts: self })?)
    }

    /// The text of export.json for the files that stand below `folder`.
    ///
    /// * `model`: the export's name; `step`: of its checkpoint; `parity`: what a verification found.
    ///
    /// # Errors
    /// If a file cannot be read.
    pub fn manifest(&self, model: &str, step: Option<i64>, parity: Option<&Parity>, folder: &Path) -> Result<String> {
        let mut files = Vec::new();
        for entry in walkdir::WalkDir::new(folder).sort_by_file_name() {
            let entry = entry?;
            if entry.file_type().is_file() {
                let below = entry.path().strip_prefix(folder)?;
                files.push(Entry {
                    path: below.to_string_lossy().into_owned(),
                    bytes: entry.metadata()?.len(),
                    sha256: sha256(entry.path())?,
                });
            }
        }
        Ok(serde_json::to_string_pretty(&Manifest { model, step, facts: self, files, parity })? + "\n")
    }
}

fn sha256(path: &Path) -> Result<String> {
    let reading = || format!("cannot read `{}` back", path.display());
    let mut file = File::open(path).with_context(reading)?;
    let mut hasher = Sha256::new();
    let mut block = vec![0; 1 << 20];
    loop {
        match file.read(&mut block).with_context(reading)? {
            0 => return Ok(hexadecimal(&hasher.finalize())),
            n => hasher.update(&block[..n]),
        }
    }
}
/// What the file does to pictures first; what is not said is bilinear, in colour, without padding.
fn resized_to(resizer: Resizer) -> serde_json::Value {
    let mut facts = match resizer.target {
        Target::FixedShape { height, width } => serde_json::json!({ "height": height, "width": width }),
        Target::KeepAspectRatio { min, max } => serde_json::json!({ "short_side": min, "long_side_at_most": max }),
    };
    if resizer.method != Method::Bilinear {
        facts["method"] = format!("{:?}", resizer.method).into();
    }
    if let (Some(color), Some(size)) = (resizer.padding, resizer.fixed_size()) {
        facts["padded_to"] = serde_json::json!({ "height": size[0], "width": size[1], "color": color });
    }
    if resizer.grey {
        facts["grey"] = true.into();
    }
    facts
}
