//! `odh train` as its user runs it, on the sample pictures with a very small model.

#[path = "common/project.rs"]
mod project;

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Output, Stdio};

use odh::data::example::LabeledImage;
use odh::formats::tfrecord;
use project::{odh_in, tiny_project};
use prost::Message;
use tempfile::TempDir;

const START: &[&str] = &["train", "--pipeline_config", "tiny.config", "--fine_tune_checkpoint", "none", "--device", "cpu"];

fn train(folder: &Path, more: &[&str]) -> Output {
    odh_in(folder).args(START).args(more).output().unwrap()
}

fn trained(folder: &Path, more: &[&str]) -> Output {
    let output = train(folder, more);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output
}

fn checkpoint(folder: &Path, step: u64) -> PathBuf {
    folder.join(format!("train_dir/tiny/model.ckpt-{step}.data-00000-of-00001"))
}

/// Steps of the checkpoints that are there, ascending.
fn steps(folder: &Path) -> Vec<u64> {
    let mut steps: Vec<u64> = fs::read_dir(folder.join("train_dir/tiny"))
        .unwrap()
        .filter_map(|e| {
            let name = e.unwrap().file_name().into_string().unwrap();
            name.strip_prefix("model.ckpt-")?.strip_suffix(".index")?.parse().ok()
        })
        .collect();
    steps.sort_unstable();
    steps
}

#[test]
fn a_resumed_run_ends_with_the_very_bytes_of_an_uninterrupted_one() {
    let (whole, parts) = (tiny_project(), tiny_project());
    trained(whole.path(), &["-s", "6", "-n", "3", "-e", "False", "--seed", "7"]);
    trained(parts.path(), &["-s", "3", "-n", "3", "-e", "False", "--seed", "7"]);
    // Another number of loader threads, and another seed on the command line: the run keeps its own.
    let resumed = trained(parts.path(), &["-s", "6", "-n", "3", "-e", "False", "--seed", "8", "--loader_threads", "3"]);
    let said = String::from_utf8_lossy(&resumed.stderr).into_owned();
    assert!(said.contains("--seed 8 is not heeded") && said.contains("with its own, 7"), "{said}");
    assert!(!said.contains("the training records are others"), "{said}");
    assert_eq!(fs::read(checkpoint(whole.path(), 6)).unwrap(), fs::read(checkpoint(parts.path(), 6)).unwrap());

    let other = tiny_project();
    trained(other.path(), &["-s", "6", "-n", "3", "-e", "False", "--seed", "8"]);
    assert_ne!(fs::read(checkpoint(whole.path(), 6)).unwrap(), fs::read(checkpoint(other.path(), 6)).unwrap());
}

#[test]
fn a_run_that_goes_on_with_another_split_is_told() {
    let folder = tiny_project();
    let records = ["train", "validate"].map(|side| folder.path().join(format!("dataset/{side}.record")));
    trained(folder.path(), &["-s", "1", "-e", "False"]);
    let between = folder.path().join("dataset/between");
    for (from, to) in [(&records[0], &between), (&records[1], &records[0]), (&between, &records[1])] {
        fs::rename(from, to).unwrap();
    }
    let said = |steps: &str| String::from_utf8(trained(folder.path(), &["-s", steps, "-e", "False"]).stderr).unwrap();
    assert!(said("2").contains("the training records are others than up to step 1"));
    // Those are its records now.
    assert!(!said("3").contains("the training records are others"));
}

#[test]
fn a_split_without_validation_pictures_names_the_flag_that_trains_without_evaluation() {
    let folder = tiny_project();
    fs::write(folder.path().join("dataset/validate.record"), b"").unwrap();
    let output = train(folder.path(), &["-s", "1"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("`-e False`") && said.contains("no picture in"), "{said}");
    assert!(!folder.path().join("train_dir").exists());
    trained(folder.path(), &["-s", "1", "-e", "False"]);
    // One of several records may be empty.
    let config = fs::read_to_string(folder.path().join("tiny.config")).unwrap();
    let input = "input_path: \"dataset/validate.record\"";
    assert_eq!(config.matches(input).count(), 1);
    let both = config.replace(input, &format!("{input} input_path: \"dataset/train.record\""));
    fs::write(folder.path().join("tiny.config"), both).unwrap();
    trained(folder.path(), &["-s", "2"]);
}

/// A long training that has made its first step, and what it says from there on.
fn under_way(folder: &Path) -> (Child, BufReader<ChildStderr>) {
    let mut command = odh_in(folder);
    command.args(START).args(["-s", "100000", "-e", "False"]).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    while !line.starts_with("step 1/") {
        line.clear();
        assert!(stderr.read_line(&mut line).unwrap() > 0, "it ended before its first step");
    }
    (child, stderr)
}

#[test]
fn ctrl_c_saves_and_exits_with_130_and_the_run_goes_on() {
    let folder = tiny_project();
    let (mut child, stderr) = under_way(folder.path());
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let rest: Vec<String> = stderr.lines().map_while(Result::ok).collect();
    assert_eq!(child.wait().unwrap().code(), Some(130), "{rest:?}");
    let step = *steps(folder.path()).last().expect("a checkpoint was saved");
    let more = (step + 2).to_string();
    trained(folder.path(), &["-s", &more, "-e", "False"]);
    assert!(checkpoint(folder.path(), step + 2).exists());
    let log = fs::read_to_string(folder.path().join("process.log")).unwrap();
    assert!(log.contains(&format!("Resume [ checkpoint : train_dir/tiny/model.ckpt-{step}, step : {step} ]")), "{log}");
}

#[test]
fn a_second_ctrl_c_ends_at_once_with_130_and_without_a_crash() {
    let folder = tiny_project();
    let (mut child, stderr) = under_way(folder.path());
    for _ in 0..2 {
        // The second may come too late, when the first has ended it.
        let _ = Command::new("kill").args(["-INT", &child.id().to_string()]).stderr(Stdio::null()).status();
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    drop(stderr);
    let status = child.wait().unwrap();
    assert_eq!(status.code(), Some(130), "{status}");
}

#[test]
fn a_second_training_in_one_folder_is_refused_until_the_first_is_gone_even_if_killed() {
    let folder = tiny_project();
    let (mut child, stderr) = under_way(folder.path());
    for more in [&["-s", "2"][..], &["-s", "2", "-r"]] {
        let second = train(folder.path(), more);
        assert_eq!(second.status.code(), Some(1), "{more:?}");
        let text = String::from_utf8_lossy(&second.stderr);
        assert!(text.contains("train_dir/tiny` is in use by another odh"), "{text}");
        assert!(text.contains(&format!("(process {}", child.id())), "{text}");
    }
    assert_eq!(child.try_wait().unwrap(), None, "the first goes on");
    child.kill().unwrap();
    child.wait().unwrap();
    drop(stderr);
    trained(folder.path(), &["-s", "2", "-e", "False", "--export", "False"]);
    assert_eq!(steps(folder.path()), [2]);
    assert!(!folder.path().join("train_dir/tiny/.odh.lock").exists());
}

#[test]
fn a_damaged_checkpoint_is_named_with_the_whole_one_before_it_and_the_flag_that_takes_that() {
    let (folder, whole) = (tiny_project(), tiny_project());
    let quiet = ["-e", "False", "--export", "False"];
    let run = |folder: &TempDir, more: &[&str]| train(folder.path(), &[more, &quiet[..]].concat());
    for folder in [&folder, &whole] {
        assert!(run(folder, &["-s", "6", "-n", "2"]).status.success());
    }
    let at = |name: &str| folder.path().join("train_dir/tiny").join(name);
    let cut = |name: &str| fs::write(at(name), &fs::read(at(name)).unwrap()[..9]).unwrap();
    let refused = |wanted: &[&str]| {
        let kept = steps(folder.path());
        let output = run(&folder, &["-s", "8", "-n", "2"]);
        assert_eq!(output.status.code(), Some(1));
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        for wanted in wanted {
            assert!(text.contains(wanted), "no `{wanted}`: {text}");
        }
        assert_eq!(steps(folder.path()), kept);
    };
    cut("model.ckpt-6.data-00000-of-00001");
    refused(&["model.ckpt-6.data-00000-of-00001", "add `--checkpoint train_dir/tiny/model.ckpt-4`"]);
    // The one before is damaged too, in a single byte.
    let mut bytes = fs::read(at("model.ckpt-4.data-00000-of-00001")).unwrap();
    bytes[5000] ^= 1;
    fs::write(at("model.ckpt-4.data-00000-of-00001"), bytes).unwrap();
    refused(&["model.ckpt-6", "add `--checkpoint train_dir/tiny/model.ckpt-2`"]);
    cut("checkpoint");
    refused(&["train_dir/tiny/checkpoint` is damaged", "add `--checkpoint train_dir/tiny/model.ckpt-2`"]);
    fs::remove_file(at("checkpoint")).unwrap();
    refused(&["no `checkpoint`", "add `--checkpoint train_dir/tiny/model.ckpt-2`", "--reset"]);

    // From there it ends where the run without faults does.
    let chosen = "train_dir/tiny/model.ckpt-2";
    assert!(run(&folder, &["-s", "8", "-n", "2", "--checkpoint", chosen]).status.success());
    assert!(run(&whole, &["-s", "8", "-n", "2"]).status.success());
    assert_eq!(fs::read(checkpoint(folder.path(), 8)).unwrap(), fs::read(checkpoint(whole.path(), 8)).unwrap());

    // Gone back once more: what lies behind is of another branch from here on, and neither listed nor deleted.
    assert!(run(&folder, &["-s", "5", "-n", "9", "--checkpoint", "./train_dir/tiny/model.ckpt-4.index"]).status.success());
    let state = fs::read_to_string(at("checkpoint")).unwrap();
    let listed: Vec<&str> = state.lines().filter_map(|line| line.strip_prefix("all_model_checkpoint_paths: ")).collect();
    assert_eq!(listed, ["\"model.ckpt-2\"", "\"model.ckpt-4\"", "\"model.ckpt-5\""], "{state}");
    assert_eq!(steps(folder.path()), [2, 4, 5, 6, 8]);

    fs::create_dir(folder.path().join("elsewhere")).unwrap();
    for file in ["index", "data-00000-of-00001"] {
        fs::copy(at(&format!("model.ckpt-8.{file}")), folder.path().join(format!("elsewhere/model.ckpt-8.{file}"))).unwrap();
    }
    let output = run(&folder, &["-s", "9", "--checkpoint", "elsewhere/model.ckpt-8"]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("--fine_tune_checkpoint"), "{output:?}");
    assert_eq!(run(&folder, &["-s", "9", "-r", "--checkpoint", chosen]).status.code(), Some(2));
}

#[test]
fn a_reset_deletes_nothing_unless_there_is_something_to_start_from() {
    let folder = tiny_project();
    trained(folder.path(), &["-s", "1", "-e", "False", "--export", "False"]);
    let own = "train_dir/tiny/model.ckpt-1";
    for (start, wanted) in [(own, "would delete"), ("nowhere/model.ckpt", "nowhere/model.ckpt")] {
        let output = train(folder.path(), &["-s", "2", "-r", "-e", "False", "--fine_tune_checkpoint", start]);
        assert_eq!(output.status.code(), Some(1), "{start}");
        assert!(String::from_utf8_lossy(&output.stderr).contains(wanted), "{output:?}");
        assert_eq!(steps(folder.path()), [1]);
    }
}

#[test]
fn a_start_that_fails_leaves_the_earlier_training_as_it_was() {
    let folder = tiny_project();
    trained(folder.path(), &["-s", "1", "-e", "False", "--export", "False"]);
    let at = |path: &str| folder.path().join(path);
    let kept = ["pipeline.config", "label_map.pbtxt", "checkpoint"].map(|name| format!("train_dir/tiny/{name}"));
    let before = kept.each_ref().map(|path| fs::read(at(path)).unwrap());

    // Two ids have changed places; a class fewer; records that are damaged; weights of nothing that fits, and damaged ones.
    let map = fs::read_to_string(at("label_map.pbtxt")).unwrap();
    let swapped = map.replace("id: 1", "id: 9").replace("id: 2", "id: 1").replace("id: 9", "id: 2");
    assert_ne!(map, swapped);
    fs::write(at("swapped.pbtxt"), swapped).unwrap();
    fs::write(at("one.pbtxt"), "item { id: 1 name: 'panda' }").unwrap();
    let mut record = fs::read(at("dataset/train.record")).unwrap();
    assert!(record.len() > 50_000);
    for byte in record.iter_mut().step_by(5000).skip(1) {
        *byte ^= 1;
    }
    fs::write(at("damaged.record"), record).unwrap();
    fs::create_dir(at("other")).unwrap();
    for file in ["index", "data-00000-of-00001"] {
        fs::copy(at(&format!("train_dir/tiny/model.ckpt-1.{file}")), at(&format!("other/model.ckpt-1.{file}"))).unwrap();
    }
    let mut data = fs::read(at("other/model.ckpt-1.data-00000-of-00001")).unwrap();
    data.iter_mut().step_by(100).for_each(|byte| *byte ^= 1);
    fs::write(at("other/model.ckpt-1.data-00000-of-00001"), data).unwrap();

    let damaged = ["-r", "--fine_tune_checkpoint", "other/model.ckpt-1"];
    let starts: [&[&str]; 4] =
        [&["-l", "swapped.pbtxt"], &["-l", "one.pbtxt"], &["-r", "--train_record", "damaged.record"], &damaged];
    for start in starts {
        let output = train(folder.path(), &[&["-s", "2", "-e", "False", "--export", "False"], start].concat());
        assert_eq!(output.status.code(), Some(1), "{start:?}: {output:?}");
        for (path, before) in kept.iter().zip(&before) {
            assert_eq!(&fs::read(at(path)).unwrap(), before, "{start:?}: {path}");
        }
        assert_eq!(steps(folder.path()), [1], "{start:?}");
    }
}

#[test]
fn an_evaluation_that_was_broken_off_is_made_up_for() {
    let folder = tiny_project();
    trained(folder.path(), &["-s", "1", "-e", "False", "--export", "False"]);
    let report = folder.path().join("eval_dir/tiny/eval-1.json");
    assert!(!report.exists());
    let again = trained(folder.path(), &["-s", "1", "--export", "False"]);
    assert!(report.exists(), "{again:?}");
    let written = fs::metadata(&report).unwrap().modified().unwrap();
    trained(folder.path(), &["-s", "1", "--export", "False"]);
    assert_eq!(fs::metadata(&report).unwrap().modified().unwrap(), written, "once");
    // Also where the run goes on from there.
    fs::remove_file(&report).unwrap();
    trained(folder.path(), &["-s", "2", "-n", "1", "--export", "False"]);
    assert!(report.exists() && report.with_file_name("eval-2.json").exists());
}

#[test]
fn a_record_that_cannot_be_used_does_not_cost_the_steps_before_it() {
    let folder = tiny_project();
    let path = folder.path().join("dataset/train.record");
    let file = fs::File::open(&path).unwrap();
    let spans = tfrecord::index(&path).unwrap();
    let mut writer = tfrecord::Writer::new(Vec::new());
    for (i, span) in spans.into_iter().enumerate() {
        let mut image = LabeledImage::from_record(tfrecord::read_at(&file, span).unwrap()).unwrap();
        if i == 17 {
            image.boxes[0][3] = 1.5;
        }
        writer.write(&image.to_example().encode_to_vec()).unwrap();
    }
    let good = fs::read(&path).unwrap();
    fs::write(&path, writer.finish().unwrap()).unwrap();
    let config = fs::read_to_string(folder.path().join("tiny.config")).unwrap();
    let config = config.replacen("train_input_reader {", "train_input_reader { shuffle: false", 1);
    fs::write(folder.path().join("tiny.config"), config).unwrap();
    // Batches of four in the file's order: the fifth has it.
    let output = train(folder.path(), &["-s", "9", "-e", "False", "--export", "False"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    for part in ["stopped at step 4; all is saved", "record 17", "1.5"] {
        assert!(said.contains(part), "{said}");
    }
    assert_eq!(steps(folder.path()), [4]);
    fs::write(&path, good).unwrap();
    trained(folder.path(), &["-s", "9", "-e", "False", "--export", "False"]);
    assert_eq!(steps(folder.path()), [4, 9]);
}

#[test]
fn sigterm_saves_as_ctrl_c_does() {
    let folder = tiny_project();
    let (mut child, _lines) = under_way(folder.path());
    let signal = |name: &str| Command::new("kill").args([name, &child.id().to_string()]).status().unwrap();
    assert!(signal("-TERM").success());
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert!(!steps(folder.path()).is_empty());
}

#[test]
fn evaluations_checkpoints_export_and_the_log_are_where_the_old_tool_had_them() {
    let folder = tiny_project();
    let output = trained(folder.path(), &["-s", "7", "-n", "1"]);
    // The last five, and the best if that is another.
    let kept = steps(folder.path());
    let best: serde_json::Value =
        serde_json::from_slice(&fs::read(folder.path().join("train_dir/tiny/best.json")).unwrap()).unwrap();
    assert!(kept.ends_with(&[3, 4, 5, 6, 7]) && kept.len() <= 6, "{kept:?}");
    assert!(kept.contains(&best["step"].as_u64().unwrap()), "{kept:?}, best {best}");
    for file in [
        "train_dir/tiny/pipeline.config",
        "train_dir/tiny/label_map.pbtxt",
        "train_dir/tiny/checkpoint",
        "eval_dir/tiny/eval-7.json",
        "export_dir/tiny/frozen_inference_graph.pb",
        "export_dir/tiny/pipeline.config",
        "export_dir/tiny/model.ckpt.index",
    ] {
        assert!(folder.path().join(file).is_file(), "{file} is missing");
    }
    for dir in ["train_dir/tiny", "eval_dir/tiny"] {
        let events =
            fs::read_dir(folder.path().join(dir)).unwrap().any(|e| e.unwrap().file_name().to_string_lossy().contains("tfevents"));
        assert!(events, "no event file in {dir}");
    }
    assert!(String::from_utf8_lossy(&output.stdout).contains("mAP"));
    let log = fs::read_to_string(folder.path().join("process.log")).unwrap();
    for line in [
        "> Program start [ model : tiny, num steps : 7 ]",
        "> Transfer learning start",
        "> Evaluate start",
        "> Transfer learning Success [ Total learning time : 0 Hour ",
        "> Export start",
        "> Export Success",
        "> Program end",
        "seed : 0",
        "images per second : ",
        "mAP@0.5 : ",
        "peak memory : ",
        "device : cpu",
    ] {
        assert!(log.contains(line), "process.log lacks `{line}`:\n{log}");
    }
    let first = log.lines().find(|l| l.contains("Program start [ model")).unwrap();
    assert!(first.starts_with("[INFO|train.rs:"), "{first}");

    // Again with as many steps: nothing to train, and it says so; with --reset it starts anew.
    let again = trained(folder.path(), &["-s", "7", "-e", "False"]);
    assert!(String::from_utf8_lossy(&again.stderr).contains("--reset"));
    trained(folder.path(), &["-s", "1", "-r", "-e", "False"]);
    assert_eq!(steps(folder.path()), [1]);
    assert!(!folder.path().join("eval_dir/tiny/eval-7.json").exists());
}

#[test]
fn a_loss_that_is_not_finite_stops_the_run_and_names_step_term_and_pictures() {
    let folder = tiny_project();
    let config = fs::read_to_string(folder.path().join("tiny.config")).unwrap();
    fs::write(folder.path().join("tiny.config"), config.replace("learning_rate: 0.004", "learning_rate: 1e30")).unwrap();
    let output = train(folder.path(), &["-s", "50", "-e", "False"]);
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("step ") && text.contains("loss") && text.contains(".jpg"), "{text}");
    assert!(text.contains("checkpoint is from before"), "{text}");
}

#[test]
fn weights_that_are_not_finite_are_never_saved_and_spoilt_ones_are_said_to_be_in_the_checkpoint() {
    let config = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tiny.config")).unwrap();
    // The first loss is finite, whatever the rate; with the larger one the first update overflows.
    for (rate, wanted, kept) in [
        ("1e38", ["step 1: `", "has become ", "nothing is saved", ".jpg"], &[][..]),
        ("1e30", ["step 2: Loss/", "the same weights", "--checkpoint", ".jpg"], &[1]),
    ] {
        let folder = tiny_project();
        fs::write(folder.path().join("tiny.config"), config.replace("learning_rate: 0.004", &format!("learning_rate: {rate}")))
            .unwrap();
        let output = train(folder.path(), &["-s", "50", "-n", "1", "-e", "False"]);
        assert_eq!(output.status.code(), Some(1), "{rate}");
        let text = String::from_utf8_lossy(&output.stderr);
        for wanted in wanted {
            assert!(text.contains(wanted), "no `{wanted}`: {text}");
        }
        assert_eq!(steps(folder.path()), kept, "{rate}");
        assert_eq!(folder.path().join("train_dir/tiny/checkpoint").exists(), !kept.is_empty());
        assert!(!folder.path().join("export_dir").exists());
    }
}

#[test]
fn pretrained_weights_that_do_not_fit_or_are_not_there_are_errors() {
    let folder = tiny_project();
    let run = |more: &[&str]| {
        let output = odh_in(folder.path()).args(["train", "-s", "1", "--device", "cpu"]).args(more).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{more:?}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let nowhere = format!("file://{}/zoo", folder.path().display());
    let text = run(&["-m", "ssd_mobilenet_v1_coco", "--model_zoo_url", &nowhere]);
    assert!(text.contains("ssd_mobilenet_v1_coco_2017_11_17") && text.contains("--fine_tune_checkpoint none"), "{text}");
    let text = run(&["--pipeline_config", "tiny.config", "--fine_tune_checkpoint", "no/such/model.ckpt"]);
    assert!(text.contains("no/such/model.ckpt"), "{text}");
    assert!(!folder.path().join("train_dir/tiny/checkpoint").exists());
}

/// What `best.json` holds: the step and its mAP@0.5.
fn best(folder: &Path) -> (u64, f64) {
    let best: serde_json::Value = serde_json::from_slice(&fs::read(folder.join("train_dir/tiny/best.json")).unwrap()).unwrap();
    (best["step"].as_u64().unwrap(), best["map"].as_f64().unwrap())
}

#[test]
fn the_best_of_a_course_that_was_left_is_not_the_best_of_the_new_one() {
    let folder = tiny_project();
    trained(folder.path(), &["-s", "4", "-n", "2", "--export", "False"]);
    let report = |step: u64| folder.path().join(format!("eval_dir/tiny/eval-{step}.json"));
    let map_of = |step: u64| {
        let report: serde_json::Value = serde_json::from_slice(&fs::read(report(step)).unwrap()).unwrap();
        report["pascal"]["mAP@0.5IOU"].as_f64().unwrap()
    };
    // As if step 4 had been very good.
    let mark = folder.path().join("train_dir/tiny/best.json");
    fs::write(&mark, r#"{"step": 4, "map": 2.0}"#).unwrap();
    let first = map_of(2);
    trained(folder.path(), &["-s", "4", "-n", "2", "--checkpoint", "train_dir/tiny/model.ckpt-2", "--export", "False"]);
    let (step, map) = best(folder.path());
    assert_eq!((step, map), if map_of(4) > first { (4, map_of(4)) } else { (2, first) });
    // Where nothing says how good the rest was, none is the best until the next evaluation.
    fs::write(&mark, r#"{"step": 4, "map": 2.0}"#).unwrap();
    fs::remove_file(report(2)).unwrap();
    trained(folder.path(), &["-s", "3", "-e", "False", "--checkpoint", "train_dir/tiny/model.ckpt-2", "--export", "False"]);
    assert!(!mark.exists());
    // A damaged mark might let the best be deleted: it is told of before anything is written, and its deletion forgets it.
    fs::write(&mark, r#"{"step": 4"#).unwrap();
    let latest = fs::read(folder.path().join("train_dir/tiny/checkpoint")).unwrap();
    let refused = train(folder.path(), &["-s", "4", "-n", "4", "--export", "False"]);
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(refused.status.code() == Some(1) && said.contains("best.json") && said.contains("delete it"), "{said}");
    assert_eq!(fs::read(folder.path().join("train_dir/tiny/checkpoint")).unwrap(), latest);
    fs::remove_file(&mark).unwrap();
    // A finished training that is asked for again tells what its evaluation gave.
    trained(folder.path(), &["-s", "4", "-n", "4", "--export", "False"]);
    let again = trained(folder.path(), &["-s", "4", "-n", "4", "--export", "False"]);
    let told = format!("mAP@0.5 {:.4}", map_of(4));
    assert!(String::from_utf8_lossy(&again.stdout).contains(&told), "{told}: {}", String::from_utf8_lossy(&again.stdout));
}

#[test]
fn a_reset_that_cannot_begin_deletes_nothing_and_no_training_starts_that_could_not_be_evaluated() {
    let folder = tiny_project();
    trained(folder.path(), &["-s", "2", "-e", "False", "--export", "False"]);
    fs::create_dir(folder.path().join("eval_dir")).unwrap();
    fs::write(folder.path().join("eval_dir/tiny"), "").unwrap();
    for more in [&["-r", "-s", "2"][..], &["-s", "4"], &["-r", "-s", "2", "-e", "False"]] {
        let output = train(folder.path(), more);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(1) && said.contains("eval_dir/tiny"), "{more:?}: {said}");
        assert_eq!(steps(folder.path()), [2], "{more:?}");
    }
}

#[test]
fn a_training_goes_on_with_its_own_classes_only() {
    let folder = tiny_project();
    trained(folder.path(), &["-s", "1", "-e", "False", "--export", "False"]);
    let map = folder.path().join("label_map.pbtxt");
    let before = fs::read_to_string(&map).unwrap();
    let names: Vec<&str> = before.split('\'').skip(1).step_by(2).collect();
    // Two classes have each other's id now.
    let swapped = before.replacen(names[0], "?", 1).replacen(names[1], names[0], 1).replacen('?', names[1], 1);
    fs::write(&map, swapped).unwrap();
    for steps in ["1", "2"] {
        let output = train(folder.path(), &["-s", steps, "-e", "False"]);
        let said = String::from_utf8_lossy(&output.stderr);
        let named = format!("class `{}` has id 2 in ./label_map.pbtxt, and this training has learnt it as 1", names[0]);
        assert!(output.status.code() == Some(1) && said.contains(&named) && said.contains("--reset"), "{said}");
    }
    assert_eq!(steps(folder.path()), [1]);
    assert!(!folder.path().join("export_dir").exists());
    // A class may be called otherwise.
    fs::write(&map, before.replacen(names[0], "otherwise", 1)).unwrap();
    let output = trained(folder.path(), &["-s", "1", "-e", "False"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains(&format!("class 1 was `{}` when this training began, and is `otherwise` now", names[0])), "{said}");
}

#[test]
fn the_config_that_is_kept_names_what_the_training_began_with() {
    let folder = tiny_project();
    let at = |name: &str| folder.path().join(name);
    let config = fs::read_to_string(at("tiny.config")).unwrap();
    let all = "train_config { from_detection_checkpoint: true load_all_detection_checkpoint_vars: true";
    fs::write(at("tiny.config"), config.replace("train_config {", all)).unwrap();
    trained(folder.path(), &["-s", "2", "-e", "False", "--export", "False"]);
    fs::create_dir(at("own")).unwrap();
    for end in ["index", "data-00000-of-00001"] {
        fs::copy(at(&format!("train_dir/tiny/model.ckpt-2.{end}")), at(&format!("own/model.ckpt.{end}"))).unwrap();
    }
    let kept = || {
        let config = fs::read_to_string(at("train_dir/tiny/pipeline.config")).unwrap();
        config.lines().find(|line| line.contains("fine_tune_checkpoint:")).map(|line| line.trim().to_string())
    };
    assert_eq!(kept(), None, "it began with random values");
    let named = Some("fine_tune_checkpoint: \"own/model.ckpt\"".to_string());
    let begin = [
        "train",
        "--pipeline_config",
        "tiny.config",
        "--fine_tune_checkpoint",
        "own/model.ckpt",
        "-e",
        "False",
        "--export",
        "False",
    ];
    let run = |more: &[&str]| {
        let output = odh_in(folder.path()).args(begin).args(more).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let said = run(&["-r", "-s", "1"]);
    assert!(said.contains("own/model.ckpt: ") && said.contains(" restored, 0 skipped for their shape, 0 missing"), "{said}");
    assert_eq!(kept(), named);
    run(&["-s", "2"]);
    assert_eq!(kept(), named, "resumed");
}

#[test]
fn a_config_that_asks_for_moving_averages_has_them_evaluated_and_exported() {
    let folder = tiny_project();
    let at = |name: &str| folder.path().join(name);
    let config = fs::read_to_string(at("tiny.config")).unwrap();
    let averages = |kept: bool| {
        let asked = config.replace("use_moving_average: false", &format!("use_moving_average: {kept} moving_average_decay: 0.5"));
        assert!(asked.contains("decay: 0.5"));
        fs::write(at("tiny.config"), asked + "eval_config { use_moving_averages: true }").unwrap();
    };
    averages(false);
    let text = String::from_utf8_lossy(&train(folder.path(), &["-s", "3"]).stderr).into_owned();
    assert!(text.contains("use_moving_averages: true") && text.contains("use_moving_average: false"), "{text}");

    averages(true);
    trained(folder.path(), &["-s", "3", "-n", "3"]);
    let read = |prefix: &str, name: &str| {
        let bundle = odh::formats::tensor_bundle::BundleReader::open(&at(prefix)).unwrap();
        bundle.read_f32(name).unwrap().1
    };
    let name = "BoxPredictor_0/ClassPredictor/weights";
    let trained_to = read("train_dir/tiny/model.ckpt-3", name);
    let average = read("train_dir/tiny/model.ckpt-3", &format!("{name}/ExponentialMovingAverage"));
    assert_ne!(trained_to, average);
    // The export holds the averages under the variables' names, and `odh eval` of it finds what was found while training.
    assert_eq!(read("export_dir/tiny/model.ckpt", name), average);
    let figures = |report: &str| -> serde_json::Value {
        let mut report: serde_json::Value = serde_json::from_slice(&fs::read(at(report)).unwrap()).unwrap();
        report.as_object_mut().unwrap().remove("seconds");
        report
    };
    let during = figures("eval_dir/tiny/eval-3.json");
    let args = ["eval", "--checkpoint", "train_dir/tiny/model.ckpt-3"];
    let output = odh_in(folder.path()).args(args).args(["--device", "cpu", "--eval_dir", "again"]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let again = fs::read_dir(at("again")).unwrap().next().unwrap().unwrap().file_name().into_string().unwrap();
    assert_eq!(figures(&format!("again/{again}/eval-3.json")), during);
}

#[test]
fn a_label_map_that_the_users_own_config_names_is_read() {
    let folder = tiny_project();
    let at = |name: &str| folder.path().join(name);
    let config = fs::read_to_string(at("tiny.config")).unwrap();
    let named = config.replace("train_input_reader {", "train_input_reader {\n  label_map_path: \"maps/mine.pbtxt\"");
    assert_ne!(config, named);
    fs::write(at("tiny.config"), named).unwrap();
    fs::create_dir(at("maps")).unwrap();
    fs::copy(at("label_map.pbtxt"), at("maps/mine.pbtxt")).unwrap();
    fs::remove_file(at("label_map.pbtxt")).unwrap();
    trained(folder.path(), &["-s", "1", "-e", "False"]);

    // One that is not there, as in the zoo's own files, gives way to tfgen's, and is said to.
    fs::rename(at("maps/mine.pbtxt"), at("label_map.pbtxt")).unwrap();
    let output = trained(folder.path(), &["-s", "2", "-e", "False"]);
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("maps/mine.pbtxt") && text.contains("./label_map.pbtxt"), "{text}");
}

#[test]
fn what_is_missing_without_a_terminal_is_an_error_that_names_the_flag() {
    let folder = tiny_project();
    for (args, flag) in [
        (&["train", "-s", "1"][..], "--model"),
        (&["train", "-m", "ssd_mobilenet_v1_coco"][..], "--num_steps"),
        (&["train", "--pipeline_config", "tiny.config", "-s", "1"][..], "--fine_tune_checkpoint"),
    ] {
        let output = odh_in(folder.path()).args(args).stdin(Stdio::null()).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(text.contains(flag), "{args:?}: {text}");
    }
}

#[test]
fn reset_does_not_delete_what_the_training_reads() {
    let folder = tiny_project();
    let kept = folder.path().join("train_dir/tiny/tiny.config");
    fs::create_dir_all(kept.parent().unwrap()).unwrap();
    fs::copy(folder.path().join("tiny.config"), &kept).unwrap();
    let args = ["train", "--pipeline_config", "train_dir/tiny/tiny.config", "--fine_tune_checkpoint", "none", "-s", "1", "-r"];
    let output = odh_in(folder.path()).args(args).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("--reset would delete `train_dir/tiny/tiny.config`"), "{said}");
    assert!(kept.is_file());
}
