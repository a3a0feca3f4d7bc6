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
    for command in ["tfgen", "train", "eval", "export", "detect"] {
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

#[test]
fn a_reader_that_has_gone_is_no_error() {
    let folder = tempdir().unwrap();
    let mut child = odh_in(folder.path(), &["--help"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
}
