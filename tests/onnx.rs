//! `odh detect -m model.onnx` where there is no onnxruntime, or something else under its name, or no model: said in words, never a crash.
#![cfg(feature = "onnx")]

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command as Process;

use assert_cmd::Command;
use odh::data::encode;
use odh::data::image::{Format, RgbImage};
use odh::export::onnx::builder::{Builder, Side};
use odh::proto::onnx::ModelProto;
use odh::proto::onnx::tensor_proto::DataType;
use prost::Message;

const OUTPUTS: [(&str, &[Side]); 4] = [
    ("detection_boxes", &[Side::Known(1), Side::Known(2), Side::Known(4)]),
    ("detection_scores", &[Side::Known(1), Side::Known(2)]),
    ("detection_classes", &[Side::Known(1), Side::Known(2)]),
    ("num_detections", &[Side::Known(1)]),
];

/// A detector that finds the same two things in every picture, with `ending` at its names' ends.
fn detector(ending: &str) -> ModelProto {
    let mut b = Builder::new();
    let name = |name: &str| format!("{name}{ending}");
    let input =
        b.input(&name("image_tensor"), DataType::Uint8, &[Side::Named("n"), Side::Named("h"), Side::Named("w"), Side::Known(3)]);
    let values: [&[f32]; 4] = [&[0.1, 0.2, 0.5, 0.6, 0.0, 0.0, 1.0, 1.0], &[0.9, 0.8], &[2.0, 1.0], &[2.0]];
    for ((output, sides), values) in OUTPUTS.iter().zip(values) {
        let dims: Vec<i64> = sides.iter().map(|side| if let Side::Known(n) = side { *n } else { unreachable!() }).collect();
        let value = b.floats(&format!("{output}/value"), &dims, values);
        b.output(&name(output), value, DataType::Float, sides);
    }
    // Every input is read.
    b.op("unused", "Identity", &[input], &[]);
    b.finish("test", &[])
}

/// A folder with a picture, and a model of another's that has no metadata.
fn work() -> tempfile::TempDir {
    let work = tempfile::tempdir().unwrap();
    let picture = RgbImage { width: 20, height: 10, data: vec![99; 600] };
    fs::write(work.path().join("a.png"), encode::encode(&picture, Format::Png).unwrap()).unwrap();
    fs::write(work.path().join("model.onnx"), of_others(detector("")).encode_to_vec()).unwrap();
    work
}

fn of_others(mut model: ModelProto) -> ModelProto {
    model.producer_name = Some("another".into());
    model
}

/// `odh detect` of the picture, with `PATH`, `--onnxruntime` or whatever in `arguments`, where nothing else knows an onnxruntime.
fn detect(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(assert_cmd::cargo::cargo_bin!("odh"));
    command.current_dir(folder).env_remove("ORT_DYLIB_PATH").env("ODH_PYTHON", "no-such-python");
    command.args(["detect", "a.png", "--device", "cpu", "--output_dir", "out", "-m"]).args(arguments);
    command
}

#[track_caller]
fn fails(mut command: Command, code: i32, parts: &[&str]) {
    let output = command.output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{said}");
    assert!(parts.iter().all(|part| said.contains(part)), "{parts:?} in {said}");
    assert!(!said.contains("panicked") && !said.contains("RUST_BACKTRACE"), "{said}");
}

/// Compiles C++ into a shared library.
fn library(folder: &Path, name: &str, source: &str) -> PathBuf {
    let (code, library) = (folder.join(format!("{name}.cpp")), folder.join(name));
    fs::write(&code, source).unwrap();
    let done = Process::new("c++").args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&code).status().unwrap();
    assert!(done.success());
    library
}

/// An onnxruntime's beginning, which has no functions.
fn stand_in(version: &str) -> String {
    format!(
        r#"
        struct Base {{ const void* (*api)(unsigned); const char* (*version)(); }};
        static const void* api(unsigned) {{ return nullptr; }}
        static const char* version() {{ return {version}; }}
        static const Base base = {{ api, version }};
        extern "C" const Base* OrtGetApiBase() {{ return &base; }}
        "#
    )
}

#[test]
fn a_library_that_is_no_onnxruntime_or_too_old_is_said_to_be_so() {
    let work = work();
    let folder = work.path();
    let null = r#"extern "C" const void* OrtGetApiBase() { return nullptr; }"#;
    for (name, source, part) in [
        ("other.so", "int something_else;".to_string(), "has no OrtGetApiBase"),
        ("null.so", null.to_string(), "its OrtGetApiBase gives nothing"),
        ("nameless.so", stand_in("nullptr"), "has no version"),
        ("old.so", stand_in("\"1.16.3\""), "it is onnxruntime 1.16.3; odh needs 1.17 or later"),
        ("ancient.so", stand_in("\"0.5\""), "it is onnxruntime 0.5;"),
        ("odd.so", stand_in("\"nightly\""), "it is onnxruntime nightly;"),
        ("empty.so", stand_in("\"1.99.0\""), "does not have the functions of 1.17"),
    ] {
        let path = library(folder, name, &source);
        let path = path.to_str().unwrap();
        fails(detect(folder, &["model.onnx", "--onnxruntime", path]), 1, &["--onnxruntime", name, part]);
        let mut by_variable = detect(folder, &["model.onnx"]);
        by_variable.env("ORT_DYLIB_PATH", path);
        fails(by_variable, 1, &["$ORT_DYLIB_PATH", name, part]);
    }
    fs::write(folder.join("text.so"), "hello").unwrap();
    fs::create_dir(folder.join("empty")).unwrap();
    for (path, part) in [
        ("text.so", "cannot be loaded"),
        ("gone.so", "No such file"),
        ("empty", "has no libonnxruntime.so"),
        ("/dev/null", "not a file"),
    ] {
        fails(detect(folder, &["model.onnx", "--onnxruntime", path]), 1, &["`model.onnx`", path, part]);
    }
}

#[test]
fn without_a_library_every_place_is_named_with_what_to_do() {
    use std::os::unix::fs::PermissionsExt;
    let work = work();
    let folder = work.path();
    // The loader and a Python know something, and it will not do.
    let old = library(folder, "libonnxruntime.so", &stand_in("\"1.16.0\""));
    fs::create_dir(folder.join("capi")).unwrap();
    fs::copy(&old, folder.join("libonnxruntime.so.1")).unwrap();
    library(&folder.join("capi"), "libonnxruntime.so.1.15.1", &stand_in("\"1.15.1\""));
    let python = folder.join("python");
    // What is preloaded here is not for it.
    fs::write(&python, format!("#!/bin/sh\n[ -z \"$LD_PRELOAD\" ] && printf %s '{}'\n", folder.display())).unwrap();
    fs::set_permissions(&python, fs::Permissions::from_mode(0o755)).unwrap();
    let mut command = detect(folder, &["model.onnx"]);
    command.env("LD_LIBRARY_PATH", folder).env("ODH_PYTHON", &python);
    let parts = [
        "`model.onnx`",
        "beside the program",
        "loader: it is onnxruntime 1.16.0",
        "it is onnxruntime 1.15.1",
        "pip install onnxruntime",
    ];
    fails(command, 1, &[&parts[..], &["--onnxruntime", "ORT_DYLIB_PATH"]].concat());
    let mut command = detect(folder, &["model.onnx"]);
    command.env("LD_LIBRARY_PATH", folder);
    fails(command, 1, &["`no-such-python` cannot be started"]);
    // It is said before minutes of exporting.
    let mut export = Command::new(assert_cmd::cargo::cargo_bin!("odh"));
    let words = ["export", "-m", "ssd_mobilenet_v1_coco", "--verify", "--onnxruntime", "libonnxruntime.so"];
    export.current_dir(folder).args(words).args(["--model_zoo_url", "file:///nowhere"]);
    fails(export, 1, &["libonnxruntime.so"]);
    assert!(!folder.join("export_dir").exists());
}

#[test]
fn a_file_that_is_no_detector_or_damaged_is_told_apart_without_onnxruntime() {
    let work = work();
    let folder = work.path();
    let write = |name: &str, model: &ModelProto| fs::write(folder.join(name), model.encode_to_vec()).unwrap();
    let good = detector("").encode_to_vec();
    for keep in [1, 30, good.len() / 2, good.len() - 3] {
        fs::write(folder.join("cut.onnx"), &good[..keep]).unwrap();
        fails(detect(folder, &["cut.onnx"]), 1, &["`cut.onnx`", "damaged", "odh runs"]);
    }
    fs::write(folder.join("text.onnx"), "version https://git-lfs.github.com/spec/v1\n").unwrap();
    fails(detect(folder, &["text.onnx"]), 1, &["`text.onnx`", "is no ONNX file"]);
    fs::write(folder.join("empty.onnx"), "").unwrap();
    fails(detect(folder, &["empty.onnx"]), 1, &["`empty.onnx`", "it is empty"]);
    // It says that odh wrote it, and not what odh writes.
    write("bare.onnx", &detector(""));
    fails(detect(folder, &["bare.onnx"]), 1, &["`bare.onnx`", "metadata is damaged"]);

    let change = |change: fn(&mut ModelProto)| {
        let mut model = of_others(detector(""));
        change(&mut model);
        model
    };
    let wanted = "a detector takes one uint8";
    let mut classifier = Builder::new();
    let input = classifier.input("data", DataType::Float, &[Side::Known(1), Side::Known(3), Side::Known(224), Side::Known(224)]);
    classifier.output("scores", input, DataType::Float, &[Side::Known(1)]);
    write("classifier.onnx", &of_others(classifier.finish("test", &[])));
    fails(detect(folder, &["classifier.onnx"]), 1, &["it takes data float [1, 3, 224, 224] and gives scores float [1]", wanted]);
    write("fewer.onnx", &change(|m| m.graph.as_mut().unwrap().output.truncate(2)));
    fails(detect(folder, &["fewer.onnx"]), 1, &["gives detection_boxes float [1, 2, 4], detection_scores float [1, 2]", wanted]);
    write("none.onnx", &change(|m| m.graph.as_mut().unwrap().input.clear()));
    fails(detect(folder, &["none.onnx"]), 1, &[wanted]);
    // A GPU is not what runs it.
    fails(detect(folder, &["model.onnx", "--device", "cuda"]), 2, &["--device `cuda`", "on the CPU"]);
}

/// With the library of this machine, if it has one.
#[test]
fn others_files_with_the_same_outputs_have_their_classes_by_number() {
    use odh::runtime::onnx::{LibrarySearch, OnnxModel};
    use odh::runtime::onnxruntime;
    if let Err(missing) = onnxruntime::load(&LibrarySearch::new(None, None)) {
        common::say(&format!("ONNX files are not run: {missing:#}"));
        return;
    }
    let work = work();
    let folder = work.path();
    for ending in ["", ":0"] {
        let path = folder.join("model.onnx");
        fs::write(&path, of_others(detector(ending)).encode_to_vec()).unwrap();
        let mut model = OnnxModel::open(&path, &LibrarySearch::new(None, None)).unwrap();
        assert_eq!(model.metadata(), None);
        let found = model.detect(&RgbImage { width: 3, height: 2, data: vec![0; 18] }).unwrap();
        assert_eq!((found.scores, found.classes), (vec![0.9, 0.8], vec![1, 0]));
        assert_eq!(found.boxes[0], [0.1, 0.2, 0.5, 0.6]);
    }
    let mut command = Command::new(assert_cmd::cargo::cargo_bin!("odh"));
    let said = command.current_dir(folder).args(["detect", "a.png", "-m", "model.onnx"]).output().unwrap();
    let said = String::from_utf8(said.stdout).unwrap();
    assert!(said.contains("a.png: id 2: 90%, id 1: 80%"), "{said}");
    // What protobuf accepts and onnxruntime does not.
    let mut model = of_others(detector(""));
    model.graph.as_mut().unwrap().node[0].op_type = Some("NoSuchOperator".into());
    fs::write(folder.join("model.onnx"), model.encode_to_vec()).unwrap();
    let error = format!("{:#}", OnnxModel::open(&folder.join("model.onnx"), &LibrarySearch::new(None, None)).unwrap_err());
    assert!(error.contains("model.onnx") && error.contains("NoSuchOperator"), "{error}");
}
