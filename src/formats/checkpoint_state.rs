//! The text file `checkpoint` beside TensorFlow checkpoints: which is the latest, and which others are kept.
//!
//! Source: TensorFlow's `python/training/checkpoint_state.proto` and `checkpoint_management.py`.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use prost_reflect::{DynamicMessage, ReflectMessage, Value};

use super::atomic_file;
use super::bundle_index::index_of;
use crate::proto::DESCRIPTORS;

/// The file's name.
pub const FILE_NAME: &str = "checkpoint";
/// Its message, in `proto/tensorflow/checkpoint_state.proto`.
const MESSAGE: &str = "tensorflow.CheckpointState";
const LATEST: &str = "model_checkpoint_path";
const ALL: &str = "all_model_checkpoint_paths";
/// The file takes a line per checkpoint; beyond this it is something else.
const MAX_FILE: u64 = 16 << 20;

/// The checkpoints of one folder, as prefixes (`.../model.ckpt-100`, without `.index`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckpointState {
    /// The one to go on from.
    pub latest: PathBuf,
    /// Every one that is kept, oldest first, `latest` among them.
    pub all: Vec<PathBuf>,
}

/// Reads `folder/checkpoint`; `None` where there is no such file.
///
/// Relative paths are taken from `folder`. Where a path leads nowhere but a checkpoint of that name lies in `folder` itself (the
/// folder was moved or copied from another machine), that one is meant.
///
/// # Errors
/// If the file cannot be read or parsed, or names no checkpoint.
pub fn read(folder: &Path) -> Result<Option<CheckpointState>> {
    let path = folder.join(FILE_NAME);
    let name = path.display();
    let text = match fs::metadata(&path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("cannot read `{name}`")),
        Ok(stat) => {
            ensure!(stat.is_file() && stat.len() <= MAX_FILE, "`{name}` is not a text file that names checkpoints");
            fs::read_to_string(&path).with_context(|| format!("cannot read `{name}`"))?
        }
    };
    let (latest, all) =
        parse(&text).with_context(|| format!("`{name}`: delete it, or name the checkpoint in it: {LATEST}: \"model.ckpt\""))?;
    Ok(Some(CheckpointState {
        latest: resolve(folder, &latest),
        all: all.iter().map(|prefix| resolve(folder, prefix)).collect(),
    }))
}

/// Writes `folder/checkpoint`, naming checkpoints that lie in `folder` by their file names, so that the folder can be moved.
///
/// # Errors
/// If a prefix is not UTF-8, or the file cannot be written; the old file is then still whole.
pub fn write(folder: &Path, state: &CheckpointState) -> Result<()> {
    let literal = |prefix: &PathBuf| -> Result<String> {
        let short = prefix.strip_prefix(folder).unwrap_or(prefix);
        let short = short.to_str().with_context(|| format!("`{}` is not UTF-8", prefix.display()))?;
        literal(short)
    };
    let mut text = format!("{LATEST}: {}\n", literal(&state.latest)?);
    for prefix in &state.all {
        text.push_str(&format!("{ALL}: {}\n", literal(prefix)?));
    }
    atomic_file::write(&folder.join(FILE_NAME), text.as_bytes())
}

fn message() -> Result<DynamicMessage> {
    let descriptor = DESCRIPTORS.get_message_by_name(MESSAGE).with_context(|| format!("{MESSAGE} is not compiled in"))?;
    Ok(DynamicMessage::new(descriptor))
}

/// `text` in quotes with its escapes, as the text format has it.
fn literal(text: &str) -> Result<String> {
    let mut message = message()?;
    message.set_field_by_name(LATEST, Value::String(text.to_string()));
    let line = message.to_text_format();
    // The printer would put a list's items on one line, between brackets; TensorFlow writes a line for each.
    let literal = line.split_once(':').map(|(_, literal)| literal.trim().to_string());
    literal.with_context(|| format!("cannot write `{line}`"))
}

/// The latest prefix and all of them, as written.
fn parse(text: &str) -> Result<(String, Vec<String>)> {
    let message = DynamicMessage::parse_text_format(message()?.descriptor(), text)?;
    let latest = message.get_field_by_name(LATEST).and_then(|value| value.as_str().map(str::to_string));
    let latest = latest.filter(|latest| !latest.is_empty()).with_context(|| format!("it has no {LATEST}"))?;
    let all = message.get_field_by_name(ALL);
    let all = all.as_deref().and_then(Value::as_list).unwrap_or_default();
    let mut all: Vec<String> = all.iter().filter_map(|value| value.as_str().map(str::to_string)).collect();
    // TensorFlow appends the latest too where a writer left it out.
    if !all.contains(&latest) {
        all.push(latest.clone());
    }
    Ok((latest, all))
}

fn resolve(folder: &Path, written: &str) -> PathBuf {
    let as_written = folder.join(written); // an absolute path replaces the folder
    if index_of(&as_written).exists() {
        return as_written;
    }
    // A checkpoint written on Windows has backslashes.
    let file_name = written.rsplit(['/', '\\']).next().unwrap_or(written);
    let beside = folder.join(file_name);
    if index_of(&beside).exists() { beside } else { as_written }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder_with(text: &str, checkpoints: &[&str]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(FILE_NAME), text).unwrap();
        for name in checkpoints {
            fs::write(folder.path().join(format!("{name}.index")), "").unwrap();
        }
        folder
    }

    #[test]
    fn relative_paths_are_taken_from_the_folder() {
        let text = "model_checkpoint_path: \"model.ckpt-20\"\nall_model_checkpoint_paths: 'model.ckpt-10'\n\
                    all_model_checkpoint_paths: \"model.ckpt-20\"\nall_model_checkpoint_timestamps: 1526500000.25\n\
                    last_preserved_timestamp: 1.5e9\n";
        let folder = folder_with(text, &["model.ckpt-10", "model.ckpt-20"]);
        let state = read(folder.path()).unwrap().unwrap();
        assert_eq!(state.latest, folder.path().join("model.ckpt-20"));
        assert_eq!(state.all, [folder.path().join("model.ckpt-10"), folder.path().join("model.ckpt-20")]);
    }

    #[test]
    fn an_absolute_path_is_kept_if_it_is_there_and_else_found_beside_the_file() {
        let elsewhere = folder_with("", &["model.ckpt-7"]);
        let there = elsewhere.path().join("model.ckpt-7");
        let text = format!("model_checkpoint_path: \"{}\"", there.display());
        assert_eq!(read(folder_with(&text, &["model.ckpt-7"]).path()).unwrap().unwrap().latest, there);
        for moved in ["/nowhere/train/model.ckpt-7", r"C:\\Users\\kim\\train\\model.ckpt-7"] {
            let folder = folder_with(&format!("model_checkpoint_path: \"{moved}\""), &["model.ckpt-7"]);
            assert_eq!(read(folder.path()).unwrap().unwrap().latest, folder.path().join("model.ckpt-7"));
        }
    }

    #[test]
    fn escapes_and_octal_utf8_are_understood() {
        // As Python's text_format writes it, byte by byte.
        let text = r#"model_checkpoint_path: "\353\252\250\353\215\270 \"a\".ckpt-1""#;
        let folder = folder_with(text, &[]);
        assert_eq!(read(folder.path()).unwrap().unwrap().latest, folder.path().join("모델 \"a\".ckpt-1"));
    }

    #[test]
    fn what_is_written_reads_back() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(read(folder.path()).unwrap(), None);
        let all: Vec<PathBuf> = ["model.ckpt-0", "it's \"모델\"\\.ckpt-5"].iter().map(|name| folder.path().join(name)).collect();
        let state = CheckpointState { latest: all[1].clone(), all };
        write(folder.path(), &state).unwrap();
        for prefix in &state.all {
            fs::write(index_of(prefix), "").unwrap();
        }
        assert_eq!(read(folder.path()).unwrap().unwrap(), state);
        let text = fs::read_to_string(folder.path().join(FILE_NAME)).unwrap();
        assert!(text.starts_with("model_checkpoint_path: "), "{text}");
        assert_eq!(text.lines().count(), 3, "{text}");
    }

    #[test]
    fn a_file_that_names_nothing_or_does_not_parse_is_an_error_that_names_it() {
        for text in ["", "model_checkpoint_path: \"\"", "model_checkpoint_path: ", "\u{0}\u{1}binary", "unknown_field: 1"] {
            let folder = folder_with(text, &[]);
            let error = format!("{:#}", read(folder.path()).unwrap_err());
            assert!(error.contains(&folder.path().join(FILE_NAME).display().to_string()), "{text:?}: {error}");
        }
    }
}
