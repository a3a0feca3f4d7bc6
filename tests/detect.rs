//! `odh detect` with a real COCO-trained checkpoint, against what TensorFlow finds on the same pictures.

mod common;

use std::path::Path;

use assert_cmd::Command;
use serde_json::Value;

const MODEL: &str = "ssd_mobilenet_v1_0.75_depth_coco";
/// Of scores and of normalized box sides.
const TOLERANCE: f64 = 1e-3;
/// Scores from which the golden file has detections.
const LEAST_SCORE: f64 = 0.2;

/// Runs `odh detect ARGUMENTS` in a folder whose `model_zoo` is the shared one.
fn detect(folder: &Path, zoo: &Path, arguments: &[&Path]) -> std::process::Output {
    let archives = folder.join("model_zoo");
    if !archives.exists() {
        std::fs::create_dir(&archives).unwrap();
        let name = format!("{MODEL}.tar.gz");
        std::fs::copy(zoo.join(&name), archives.join(&name)).unwrap();
    }
    Command::cargo_bin("odh")
        .unwrap()
        .current_dir(folder)
        .arg("detect")
        .args(arguments)
        .args(["-m", MODEL, "--device", "cpu"])
        .output()
        .unwrap()
}

fn read_json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// The largest difference between two detections of one class, `None` if their classes differ.
fn difference(a: &Value, b: &Value) -> Option<f64> {
    if a["class_id"] != b["class_id"] || a["class"] != b["class"] {
        return None;
    }
    let off = |a: &Value, b: &Value| (a.as_f64().unwrap() - b.as_f64().unwrap()).abs();
    Some((0..4).map(|i| off(&a["box"][i], &b["box"][i])).fold(off(&a["score"], &b["score"]), f64::max))
}

#[test]
fn a_real_checkpoint_finds_what_tensorflow_finds() {
    let (Some(zoo), Some(golden), Some(raccoons)) =
        (common::shared("model_zoo"), common::shared("golden/detect"), common::shared("datasets/raccoon/images"))
    else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let pictures =
        [golden.join("image1.jpg"), golden.join("image2.jpg"), raccoons.join("raccoon-1.jpg"), raccoons.join("raccoon-12.jpg")];
    let output = detect(folder.path(), &zoo, &pictures.each_ref().map(|p| p.as_path()));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let found = read_json(&folder.path().join("detections/detections.json"));
    let expected = read_json(&golden.join("detections.json"));
    let names = |v: &Value| v.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&found), names(&expected));
    let (mut rows, mut worst) = (0, 0.0f64);
    for (name, expected) in expected.as_object().unwrap() {
        let found = &found[name];
        assert_eq!((&found["height"], &found["width"]), (&expected["height"], &expected["width"]), "{name}");
        let mut left: Vec<&Value> = found["detections"].as_array().unwrap().iter().collect();
        rows += left.len();
        for wanted in expected["detections"].as_array().unwrap() {
            let near = left.iter().enumerate().filter_map(|(i, d)| Some((i, difference(d, wanted)?)));
            let Some((i, off)) = near.min_by(|a, b| a.1.total_cmp(&b.1)) else { panic!("{name}: nothing like {wanted}") };
            let at_the_limit = wanted["score"].as_f64().unwrap() < LEAST_SCORE + TOLERANCE;
            assert!(off <= TOLERANCE || at_the_limit, "{name}: {off} from {wanted}: {}", left[i]);
            if off <= TOLERANCE {
                left.remove(i);
                worst = worst.max(off);
            }
        }
        for extra in left {
            assert!(extra["score"].as_f64().unwrap() < LEAST_SCORE + TOLERANCE, "{name}: TensorFlow has no {extra}");
        }
        let drawn = std::fs::read(folder.path().join("detections").join(name)).unwrap();
        let size = odh::data::image::size(&drawn).unwrap();
        assert_eq!(Value::from(vec![size.1, size.0]), Value::from(vec![expected["height"].clone(), expected["width"].clone()]));
    }
    println!("largest difference {worst:e}");
    let csv = std::fs::read_to_string(folder.path().join("detections/detections.csv")).unwrap();
    assert_eq!(csv.lines().count(), rows + 1);
    let shown = String::from_utf8(output.stdout).unwrap();
    assert!(shown.contains("image1.jpg: dog: 71%, dog: 70%, person: 51%"), "{shown}");
}

#[test]
fn a_damaged_picture_is_named_the_others_are_done_and_the_exit_code_is_1() {
    let (Some(zoo), Some(raccoons)) = (common::shared("model_zoo"), common::shared("datasets/raccoon/images")) else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("사진 폴더");
    std::fs::create_dir_all(input.join("sub")).unwrap();
    let picture = std::fs::read(raccoons.join("raccoon-1.jpg")).unwrap();
    std::fs::write(input.join("너구리 1.jpg"), &picture).unwrap();
    std::fs::write(input.join("sub/너구리 1.jpg"), &picture).unwrap();
    std::fs::write(input.join("cut.jpg"), &picture[..picture.len() / 2]).unwrap();
    std::fs::write(input.join("empty.png"), b"").unwrap();
    let output = detect(folder.path(), &zoo, &[&input]);
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stderr).unwrap();
    for part in ["cut.jpg", "empty.png", "2 of 4 pictures"] {
        assert!(said.contains(part), "{part}: {said}");
    }
    let found = read_json(&folder.path().join("detections/detections.json"));
    let names: Vec<&String> = found.as_object().unwrap().keys().collect();
    assert_eq!(names, ["sub/너구리 1.jpg", "너구리 1.jpg"]);
    for name in ["너구리 1.jpg", "sub/너구리 1.jpg"] {
        assert!(folder.path().join("detections").join(name).is_file(), "{name}");
    }
    // Again: nothing of what was written is looked at, and nothing is left lying about.
    let again = detect(folder.path(), &zoo, &[folder.path()]);
    assert_eq!(again.status.code(), Some(1));
    let files: Vec<_> = walkdir::WalkDir::new(folder.path().join("detections"))
        .into_iter()
        .map(|e| e.unwrap())
        .filter(|e| e.file_type().is_file())
        .map(|e| e.path().strip_prefix(folder.path()).unwrap().display().to_string())
        .collect();
    assert!(files.iter().all(|f| !f.contains(".tmp") && !f.contains("detections/detections/")), "{files:?}");
}

#[test]
fn what_is_mistyped_is_said_before_a_model_is_loaded() {
    let folder = tempfile::tempdir().unwrap();
    let run = |arguments: &[&str]| {
        let output =
            Command::cargo_bin("odh").unwrap().current_dir(folder.path()).arg("detect").args(arguments).output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let (code, said) = run(&["gone.jpg"]);
    assert!(code == Some(1) && said.contains("`gone.jpg` is not there"), "{said}");
    let (code, said) = run(&["gone.jpg", "--min_score", "50"]);
    assert!(code == Some(2) && said.contains("from 0 to 1"), "{said}");
    std::fs::write(folder.path().join("a.jpg"), b"").unwrap();
    let (code, said) = run(&["a.jpg"]);
    assert!(code == Some(2) && said.contains("no trained model"), "{said}");
    let (code, said) = run(&["a.jpg", "-m", "yolo"]);
    assert!(code == Some(2) && said.contains("yolo"), "{said}");
}

#[test]
fn pictures_of_kinds_that_cannot_be_read_are_not_left_unsaid() {
    let folder = tempfile::tempdir().unwrap();
    let photos = folder.path().join("photos");
    std::fs::create_dir(&photos).unwrap();
    std::fs::write(photos.join("a.TIF"), b"II*\0").unwrap();
    std::fs::write(photos.join("b.heic"), b"").unwrap();
    std::fs::write(photos.join("notes.txt"), b"").unwrap();
    let output = Command::cargo_bin("odh").unwrap().current_dir(folder.path()).args(["detect", "photos"]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("2 pictures are passed over") && said.contains("a.TIF"), "{said}");
}
