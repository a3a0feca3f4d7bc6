//! What a file that is named as a model is, told by its first bytes and its name, and what cannot be run.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

/// File name endings of models, ours and others', by which a name is known for a file's.
const ENDINGS: &[&str] =
    &["pt", "pth", "ts", "torchscript", "pb", "onnx", "tflite", "h5", "keras", "safetensors", "ckpt", "engine", "zip"];
/// What a zip archive begins with, and so a file of PyTorch 1.6 or later.
const ZIP: [u8; 4] = *b"PK\x03\x04";
/// What an ONNX file begins with: the tag of its `ir_version`, a number.
const IR_VERSION: u8 = 0x08;
/// What can be run instead of another file.
pub const INSTEAD: &str = "odh runs model.torchscript.pt and model.onnx of `odh export`, and checkpoints (name the model, its folder, or \
                           --checkpoint PREFIX)";

/// A format that can be run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    TorchScript,
    Onnx,
}

/// Whether what was typed as a model means a file: there is one, or a file would be called so.
pub fn is_file_name(typed: &str) -> bool {
    let path = Path::new(typed);
    path.is_file() || (!path.is_dir() && ENDINGS.contains(&ending(path).as_str()))
}

/// What a file is to be run as. More may be wrong with it: only its beginning is looked at.
///
/// # Errors
/// If it cannot be read or is neither; the message says what, and what can be run instead.
pub fn of(path: &Path) -> Result<Kind> {
    kind(path).with_context(|| format!("`{}` cannot be run", path.display()))
}

fn kind(path: &Path) -> Result<Kind> {
    ensure!(path.exists(), "it is not there");
    ensure!(!path.is_dir(), "it is a folder; {INSTEAD}");
    // A pipe would wait for its other end.
    ensure!(path.is_file(), "it is not a file");
    let mut start = Vec::new();
    File::open(path)?.take(ZIP.len() as u64).read_to_end(&mut start)?;
    let ending = ending(path);
    match start.first() {
        _ if start == ZIP => Ok(Kind::TorchScript),
        None => bail!("it is empty; {INSTEAD}"),
        Some(_) if ending == "onnx" => Ok(Kind::Onnx),
        Some(&IR_VERSION) if !ENDINGS.contains(&ending.as_str()) => Ok(Kind::Onnx),
        _ => bail!("it is {}; {INSTEAD}", other_format(&ending)),
    }
}

/// What a file that is neither looks like.
fn other_format(ending: &str) -> String {
    match ending {
        "pb" => "a TensorFlow graph, which TensorFlow runs".to_string(),
        "pt" | "pth" | "ts" | "torchscript" => "damaged, or no TorchScript file".to_string(),
        "tflite" | "h5" | "keras" | "safetensors" | "engine" => format!("a .{ending} file"),
        _ => "neither a TorchScript nor an ONNX file".to_string(),
    }
}

fn ending(path: &Path) -> String {
    path.extension().and_then(|e| e.to_str()).unwrap_or_default().to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind_of(name: &str, content: &[u8]) -> Result<Kind> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        of(&path)
    }

    #[test]
    fn what_cannot_be_run_is_told_apart() {
        for (name, content, part) in [
            ("a.pb", &b"\x0a\x10graph"[..], "TensorFlow runs"),
            ("saved_model.pb", b"\x08\x01\x12", "TensorFlow runs"),
            ("a.pt", b"\x80\x02old pickle", "no TorchScript file"),
            ("a.pt", b"", "empty"),
            ("a.onnx", b"", "empty"),
            ("a.tflite", b"\x1c\0\0\0TFL3", "a .tflite file"),
            ("model.ckpt-7.index", b"\x00\x01", "--checkpoint"),
        ] {
            let error = format!("{:#}", kind_of(name, content).unwrap_err());
            assert!(error.contains(part) && error.contains(name), "{error}");
        }
        let error = format!("{:#}", of(Path::new("gone.pt")).unwrap_err());
        assert!(error.contains("`gone.pt`") && error.contains("not there"), "{error}");
        let error = format!("{:#}", of(Path::new("/dev/null")).unwrap_err());
        assert!(error.contains("not a file"), "{error}");
    }

    #[test]
    fn a_file_is_known_by_its_bytes_before_its_name() {
        for (name, content, kind) in [
            ("a.pt", &b"PK\x03\x04"[..], Kind::TorchScript),
            ("model", b"PK\x03\x04", Kind::TorchScript),
            ("a.onnx", b"\x08\x08\x12\x03odh", Kind::Onnx),
            ("model", b"\x08\x08\x12\x03odh", Kind::Onnx),
            // It says that it is ONNX: then it is a damaged one.
            ("a.onnx", b"hello", Kind::Onnx),
        ] {
            assert_eq!(kind_of(name, content).unwrap(), kind, "{name}");
        }
    }

    #[test]
    fn a_name_with_a_dot_is_no_file_but_what_models_files_are_called_is() {
        assert!(!is_file_name("ssd_mobilenet_v1_0.75_depth_coco"));
        assert!(!is_file_name("my_model"));
        assert!(is_file_name("export_dir/m/model.onnx"));
        assert!(is_file_name("MODEL.PT"));
    }
}
