//! Runs model.torchscript.pt, by what the file alone says.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde::Deserialize;
use tch::{Device, Kind, Tensor};
use zip::ZipArchive;

use crate::config::label_map::{Item, LabelMap};
use crate::detection::boxes::{BBox, Detections};
use crate::models::post_processing::host_values;
use crate::net::shim::{self, Script};

/// File name endings of models, ours and others', by which a name is known for a file's.
const ENDINGS: &[&str] =
    &["pt", "pth", "ts", "torchscript", "pb", "onnx", "tflite", "h5", "keras", "safetensors", "ckpt", "engine", "zip"];
/// What a zip archive begins with, and so a file of PyTorch 1.6 or later.
const ZIP: [u8; 4] = *b"PK\x03\x04";
/// What can be run instead of another file.
const INSTEAD: &str =
    "odh runs model.torchscript.pt of `odh export`, and checkpoints (name the model, its folder, or --checkpoint PREFIX)";

/// What a file says of itself; it says more (export/manifest.rs), which running it does not need.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Metadata {
    /// The export's name.
    pub model: String,
    /// Which odh wrote it.
    pub odh_version: String,
    pub classes: Vec<Class>,
}

/// A class by its id in the label map.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Class {
    pub id: u32,
    pub name: String,
}

impl Metadata {
    /// The classes as a label map.
    pub fn label_map(&self) -> LabelMap {
        let item = |class: &Class| Item { id: class.id, name: class.name.clone(), display_name: None };
        LabelMap { items: self.classes.iter().map(item).collect() }
    }
}

/// An exported model, ready to run.
#[derive(Debug)]
pub struct TorchScriptModel {
    script: Script,
    device: Device,
    metadata: Metadata,
}

/// Whether what was typed as a model means a file: there is one, or a file would be called so.
pub fn is_file_name(typed: &str) -> bool {
    let path = Path::new(typed);
    let ending = path.extension().and_then(|e| e.to_str()).map(str::to_ascii_lowercase);
    path.is_file() || (!path.is_dir() && ending.is_some_and(|ending| ENDINGS.contains(&ending.as_str())))
}

impl TorchScriptModel {
    /// Reads a file that `odh export` wrote.
    ///
    /// # Errors
    /// If it is damaged, or anything else than such a file; the message says what, and what can be run instead.
    pub fn open(path: &Path, device: Device) -> Result<Self> {
        let shown = path.display();
        is_torchscript(path).with_context(|| format!("`{shown}` cannot be run"))?;
        shim::init()?;
        let script =
            Script::load(path, device).with_context(|| format!("`{shown}` is not a TorchScript file that libtorch can load"))?;
        let said = script.ask("metadata").ok().flatten();
        let said = said.with_context(|| {
            format!("`{shown}` is TorchScript, but not of `odh export`, and what it takes and gives is unknown; {INSTEAD}")
        })?;
        let metadata: Metadata =
            serde_json::from_str(&said).with_context(|| format!("`{shown}`: its metadata is not odh's: {said:.80}"))?;
        Ok(Self { script, device, metadata })
    }

    /// What the file says of itself.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// What is in each picture.
    ///
    /// * `pictures`: uint8 `[N, height, width, 3]`, RGB, of any size; on any device.
    ///
    /// # Errors
    /// If the tensor is another, or the file does not give detections for it.
    pub fn detect(&self, pictures: &Tensor) -> Result<Vec<Detections>> {
        let size = pictures.size();
        ensure!(
            pictures.kind() == Kind::Uint8 && size.len() == 4 && size[3] == 3,
            "a file takes uint8 [N, height, width, 3], not {:?} {size:?}",
            pictures.kind()
        );
        let [boxes, scores, classes, counts] = self.script.forward::<4>(&pictures.f_to_device(self.device)?)?;
        let (n, rows) = (size[0], scores.size().get(1).copied().unwrap_or_default());
        let shapes = [boxes.size(), scores.size(), classes.size(), counts.size()];
        ensure!(
            shapes == [vec![n, rows, 4], vec![n, rows], vec![n, rows], vec![n]],
            "the file gives {shapes:?} for {n} pictures"
        );
        let [boxes, scores, classes, counts] = [boxes, scores, classes, counts].map(|x| host_values(&x));
        let (boxes, scores, classes, counts) = (boxes?, scores?, classes?, counts?);
        let rows = rows as usize;
        let boxes: Vec<BBox> = boxes.chunks_exact(4).map(|b| [b[0], b[1], b[2], b[3]]).collect();
        counts
            .iter()
            .enumerate()
            .map(|(i, &count)| {
                ensure!(count >= 0.0 && count as usize <= rows, "the file gives {count} detections of at most {rows}");
                let own = i * rows..i * rows + count as usize;
                let class =
                    |&id: &f32| if id >= 1.0 { Ok(id as usize - 1) } else { Err(anyhow!("the file gives the class id {id}")) };
                Ok(Detections {
                    boxes: boxes[own.clone()].to_vec(),
                    scores: scores[own.clone()].to_vec(),
                    classes: classes[own].iter().map(class).collect::<Result<_>>()?,
                })
            })
            .collect()
    }
}

/// Whether a file is TorchScript, and undamaged: libtorch looks at no checksum, and what it does not expect may end the program.
fn is_torchscript(path: &Path) -> Result<()> {
    ensure!(path.exists(), "it is not there");
    ensure!(!path.is_dir(), "it is a folder; {INSTEAD}");
    let mut file = File::open(path)?;
    let mut start = Vec::new();
    (&mut file).take(ZIP.len() as u64).read_to_end(&mut start)?;
    if start != ZIP {
        bail!("it is {}; {INSTEAD}", other_format(path, &start));
    }
    let damaged = "it is damaged, or was not copied as a whole";
    let mut archive = ZipArchive::new(io::BufReader::new(file)).context(damaged)?;
    let mut code = false;
    for i in 0..archive.len() {
        let mut entry = archive.by_index(i).context(damaged)?;
        code |= entry.name().is_ok_and(|name| name.contains("/code/"));
        // Reading an entry to its end compares its checksum.
        io::copy(&mut entry, &mut io::sink()).context(damaged)?;
    }
    ensure!(code, "it is an archive without TorchScript's code, such as torch.save writes of weights alone; {INSTEAD}");
    Ok(())
}

/// What a file that is no archive looks like.
fn other_format(path: &Path, start: &[u8]) -> String {
    let ending = path.extension().and_then(|e| e.to_str()).unwrap_or_default().to_ascii_lowercase();
    match ending.as_str() {
        _ if start.is_empty() => "empty".to_string(),
        "pb" => "a TensorFlow graph, which TensorFlow runs".to_string(),
        "onnx" => "an ONNX model, which onnxruntime runs".to_string(),
        "pt" | "pth" | "ts" | "torchscript" => "damaged, or no TorchScript file".to_string(),
        "tflite" | "h5" | "keras" | "safetensors" | "engine" => format!("a .{ending} file"),
        _ => "no TorchScript file".to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(name: &str, content: &[u8]) -> String {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        format!("{:#}", TorchScriptModel::open(&path, Device::Cpu).unwrap_err())
    }

    #[test]
    fn what_cannot_be_run_is_told_apart() {
        for (name, content, part) in [
            ("a.pb", &b"\x0a\x10graph"[..], "TensorFlow runs"),
            ("a.onnx", b"\x08\x08\x12\x03odh", "onnxruntime runs"),
            ("a.pt", b"\x80\x02old pickle", "no TorchScript file"),
            ("a.pt", b"", "empty"),
            ("a.pt", b"PK\x03\x04 cut off", "damaged"),
            ("model.ckpt-7.index", b"\x00\x01", "--checkpoint"),
        ] {
            let error = said(name, content);
            assert!(error.contains(part) && error.contains(name), "{error}");
        }
        let error = format!("{:#}", TorchScriptModel::open(Path::new("gone.pt"), Device::Cpu).unwrap_err());
        assert!(error.contains("`gone.pt`") && error.contains("not there"), "{error}");
    }

    #[test]
    fn torchscript_of_others_is_not_run() {
        shim::init().unwrap();
        let mut script = Script::new("__torch__.Other").unwrap();
        script.define("def forward(self, x):\n    return x\n").unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("other.pt");
        script.write(&mut std::fs::File::create(&path).unwrap()).unwrap();
        let error = format!("{:#}", TorchScriptModel::open(&path, Device::Cpu).unwrap_err());
        assert!(error.contains("not of `odh export`"), "{error}");
    }

    #[test]
    fn a_name_with_a_dot_is_no_file_but_what_models_files_are_called_is() {
        assert!(!is_file_name("ssd_mobilenet_v1_0.75_depth_coco"));
        assert!(!is_file_name("my_model"));
        assert!(is_file_name("export_dir/m/model.onnx"));
        assert!(is_file_name("MODEL.PT"));
    }
}
