//! The command line as a user meets it: the real binary, its exit codes, its two output streams and process.log.

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use tempfile::{TempDir, tempdir};

/// A run of `odh` in a folder of its own.
struct Run {
    folder: TempDir,
    output: Output,
}

impl Run {
    fn code(&self) -> i32 {
        self.output.status.code().unwrap()
    }

    fn out(&self) -> String {
        String::from_utf8(self.output.stdout.clone()).unwrap()
    }

    fn err(&self) -> String {
        String::from_utf8(self.output.stderr.clone()).unwrap()
    }

    fn log(&self) -> Option<String> {
        fs::read_to_string(self.folder.path().join("process.log")).ok()
    }
}

fn odh_in(folder: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(assert_cmd::cargo::cargo_bin!("odh"));
    command.args(args).current_dir(folder).stdin(Stdio::null());
    command
}

fn odh(args: &[&str]) -> Run {
    let folder = tempdir().unwrap();
    let output = odh_in(folder.path(), args).output().unwrap();
    Run { folder, output }
}

#[test]
fn help_and_version_are_results_and_leave_no_record() {
    for args in [&["--help"][..], &["--version"], &["tfgen", "--help"], &["help", "train"], &["detect", "-h"]] {
        let run = odh(args);
        assert_eq!(run.code(), 0, "{args:?}");
        assert!(!run.out().is_empty(), "{args:?}");
        assert_eq!(run.err(), "", "{args:?}");
        assert_eq!(run.log(), None, "{args:?}");
    }
}

#[test]
fn every_command_shows_a_working_example_in_its_help() {
    for command in ["tfgen", "train", "eval", "export", "detect", "models"] {
        let help = odh(&[command, "--help"]).out();
        assert!(help.contains("Example") && help.contains(&format!("odh {command} ")), "{help}");
    }
}

#[test]
fn wrong_usage_exits_2_on_stderr_with_usage_and_the_nearest_flag() {
    let run = odh(&["tfgen", "--splitrate", "5"]);
    assert_eq!(run.code(), 2);
    assert_eq!(run.out(), "");
    assert!(run.err().contains("--split_rate") && run.err().contains("Usage:"), "{}", run.err());
    let run = odh(&["tfgne"]);
    assert_eq!(run.code(), 2);
    assert!(run.err().contains("tfgen"), "{}", run.err());
    let run = odh(&[]);
    assert_eq!(run.code(), 2);
    assert!(run.err().contains("Usage:"), "{}", run.err());
    assert_eq!(odh(&["tfgen", "-lv", "LOUD"]).code(), 2);
    assert_eq!(odh(&["train", "-r", "-e=maybe"]).code(), 2);
}

#[test]
fn the_old_tools_flags_are_accepted_in_every_form() {
    for args in [
        &["tfgen", "-sr", "5", "-lv", "DEBUG", "-tc", "a.csv", "-vc", "b.csv", "-m", "90", "-i", ".", "-l", "v", "-c", "False"][..],
        &["tfgen", "-sr=5", "-lv=debug", "-tc=a.csv", "-vcb.csv", "-c=True", "-lvalues.pbtxt"],
        &["tfgen", "-sr5", "-lv10", "--train-csv-output", "a.csv", "-c"],
        &["tfgen", "--split-rate=0.85", "--log-level=ERROR"],
        // The last one counts, as it did.
        &["tfgen", "-sr5", "--split_rate", "8", "-c", "--custom_csv=no"],
        &["train", "-log_level", "INFO", "-r", "True", "-e", "False", "-n", "3000", "-l", "label_map.pbtxt"],
        &["train", "-log_level=30", "-r", "-e=no", "-n3000", "--evaluate-number=5", "--reset=false"],
    ] {
        // --help at the end: all before it was understood, and nothing is done.
        let args: Vec<&str> = args.iter().copied().chain(["--help"]).collect();
        let run = odh(&args);
        assert_eq!(run.code(), 0, "{args:?}: {}", run.err());
    }
}

#[test]
fn a_failure_exits_1_with_its_causes_and_is_recorded() {
    let folder = tempdir().unwrap();
    fs::write(folder.path().join("process.log"), "of an earlier run\n").unwrap();
    let output = odh_in(folder.path(), &["tfgen", "-i", "no_such_folder"]).output().unwrap();
    let run = Run { folder, output };
    assert_eq!(run.code(), 1, "{}", run.err());
    assert!(run.err().starts_with("error: ") || run.err().contains("\nerror: "), "{}", run.err());
    assert!(run.err().contains("no_such_folder"), "{}", run.err());
    let log = run.log().unwrap();
    assert!(log.starts_with("of an earlier run\n"), "{log}");
    let last = log.lines().last().unwrap();
    assert!(last.starts_with("[CRITICAL|cli.rs:") && last.contains("no_such_folder"), "{log}");
}

#[test]
fn a_process_log_that_cannot_be_opened_is_warned_of_once() {
    let folder = tempdir().unwrap();
    fs::create_dir(folder.path().join("process.log")).unwrap();
    let output = odh_in(folder.path(), &["tfgen", "-i", "no_such_folder"]).output().unwrap();
    let run = Run { folder, output };
    assert_eq!(run.code(), 1);
    assert_eq!(run.err().matches("process.log").count(), 1, "{}", run.err());
    assert!(run.err().contains("no_such_folder"), "{}", run.err());
}

/// The libraries that the dynamic linker looked for, as glibc's tells.
#[cfg(target_os = "linux")]
fn libraries(args: &[&str]) -> String {
    let folder = tempdir().unwrap();
    let output = odh_in(folder.path(), args).env("LD_DEBUG", "libs").output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(told.contains("find library="), "{told}");
    told
}

#[test]
#[cfg(target_os = "linux")]
fn libtorch_is_loaded_by_the_commands_that_compute_and_by_no_other() {
    for args in
        [&["--help"][..], &["train", "--help"], &["models"], &["models", "ssd_mobilenet_v1_coco"], &["tfgen"], &["tfgen", "-x"]]
    {
        let told = libraries(args);
        let cause = "was it built by another RUSTC_WRAPPER than scripts/rustc.sh?";
        assert!(!told.contains("libtorch_cpu.so"), "{args:?}; {cause}\n{told}");
    }
    for args in [&["train", "-m", "gone"][..], &["eval"], &["export"], &["detect", "gone.jpg"]] {
        let told = libraries(args);
        assert!(told.contains("libtorch_cpu.so") && !told.contains("libtorch is not loaded"), "{args:?}: {told}");
    }
}

#[test]
#[cfg(target_os = "linux")]
fn a_libtorch_that_cannot_be_loaded_is_an_error_that_says_where_it_is_looked_for() {
    let folder = tempdir().unwrap();
    fs::write(folder.path().join("libtorch_cpu.so"), "hello").unwrap();
    let output = odh_in(folder.path(), &["detect", "photo.jpg"]).env("LD_LIBRARY_PATH", folder.path()).output().unwrap();
    let run = Run { folder, output };
    assert_eq!(run.code(), 1, "{}", run.err());
    for part in ["error: libtorch is not loaded", "file too short", "LD_LIBRARY_PATH", "2.11.0"] {
        assert!(run.err().contains(part), "{}", run.err());
    }
    assert!(run.log().unwrap().contains("libtorch is not loaded"));
}

#[test]
fn a_reader_that_has_gone_is_no_error() {
    let folder = tempdir().unwrap();
    let mut child = odh_in(folder.path(), &["--help"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
}

#[test]
fn models_are_listed_with_what_was_published_and_where_their_weights_are() {
    let folder = tempdir().unwrap();
    fs::create_dir_all(folder.path().join("model_zoo")).unwrap();
    fs::write(folder.path().join("model_zoo/ssd_mobilenet_v2_coco_2018_03_29.tar.gz"), b"\x1f\x8b an archive").unwrap();
    let output = odh_in(folder.path(), &["models"]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0), "{text}");
    let row = |name: &str| -> Vec<String> {
        let line = text.lines().find(|line| line.split_whitespace().any(|word| word == name));
        line.unwrap_or_else(|| panic!("{name}: {text}")).split_whitespace().map(str::to_string).collect()
    };
    // Number, name, size, COCO mAP, milliseconds, input, weights.
    let packed = row("ssd_mobilenet_v2_coco");
    assert_eq!(packed[..6], ["2", "ssd_mobilenet_v2_coco", "201M", "22", "31", "300"]);
    assert_eq!(packed[6..], ["here,", "packed"]);
    assert_eq!(row("faster_rcnn_nas")[..5], ["12", "faster_rcnn_nas", "1.2G", "43", "1833"]);
    assert_eq!(row("faster_rcnn_resnet50_lowproposals_coco")[3], "-");
    assert_eq!(row("ssd_mobilenet_v1_0.75_depth_coco")[1..4], ["-", "18", "26"]);

    let json: serde_json::Value =
        serde_json::from_slice(&odh_in(folder.path(), &["models", "--json"]).output().unwrap().stdout).unwrap();
    let models = json.as_array().unwrap();
    assert_eq!(models.iter().filter(|m| m["number"].is_u64()).count(), 13);
    assert_eq!(models.len(), 14);
    assert_eq!(models[1]["weights"]["state"], "archive");
    assert_eq!(models[0]["weights"]["state"], "absent");
    assert_eq!(models[13]["size"], serde_json::Value::Null);
}

#[test]
fn one_model_is_told_with_its_variables_config_and_address() {
    let folder = tempdir().unwrap();
    let json = odh_in(folder.path(), &["models", "--json", "ssd_mobilenet_v1_coco"]).output().unwrap().stdout;
    let told: serde_json::Value = serde_json::from_slice(&json).unwrap();
    // The rows of reference/variables/ssd_mobilenet_v1_coco_2017_11_17.txt without global_step, and those that are trainable.
    assert_eq!(told["network"]["variables"], 199);
    assert_eq!(told["network"]["trainable_variables"], 129);
    assert_eq!(told["feature_extractor"], "ssd_mobilenet_v1");
    assert_eq!(told["batch_size"], 24);
    assert_eq!(told["learning_rate"], 0.004);
    let run = odh(&["models", "2", "--model_zoo_url", "file:///zoo"]);
    let text = run.out();
    for part in [
        "ssd_mobilenet_v2_coco\n",
        "SSD on ssd_mobilenet_v2",
        "22, as published",
        "not on this machine",
        "file:///zoo/ssd_mobilenet_v2_coco_2018_03_29.tar.gz",
        "resized to 300 x 300",
        "344 (216 trainable) for 90 classes",
        "random_horizontal_flip, ssd_random_crop",
        "RMSProp at 0.004",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let run = odh(&["models", "yolo"]);
    assert_eq!(run.code(), 2);
    assert!(run.err().contains("no model `yolo`"), "{}", run.err());
}
