//! What the tests that run the program share: a project folder, running `odh` in it, and what lies there then.
#![allow(dead_code)] // each test takes what it needs

use std::fs;
use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

/// The repository.
pub const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// `odh`, to be run in a folder.
pub fn odh_in(folder: &Path) -> Command {
    let mut command = Command::new(assert_cmd::cargo::cargo_bin!("odh"));
    command.current_dir(folder);
    command
}

/// What `odh` says on stderr; it must succeed.
pub fn odh(folder: &Path, args: &[&str]) -> String {
    let output = odh_in(folder).args(args).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "odh {args:?}: {said}");
    said
}

/// A project with records of the sample pictures, their label map, and a config of this name and text.
pub fn sample_project(config: &str, text: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::copy(Path::new(ROOT).join("label_map.pbtxt"), folder.path().join("label_map.pbtxt")).unwrap();
    fs::write(folder.path().join(config), text).unwrap();
    odh(folder.path(), &["tfgen", "-i", &format!("{ROOT}/images")]);
    folder
}

/// [`sample_project`] with a very small SSD, `tiny.config`.
pub fn tiny_project() -> TempDir {
    sample_project("tiny.config", include_str!("../fixtures/tiny.config"))
}

/// The names in a folder, sorted.
pub fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}
