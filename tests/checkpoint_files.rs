//! Checkpoints that TensorFlow wrote are read, and (where a Python with TensorFlow is at hand) what we write is restored by it.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use odh::formats::checkpoint_state::{self, CheckpointState};
use odh::formats::sstable;
use odh::formats::tensor_bundle::{self, BundleReader, BundleWriter, Index, TensorData};
use odh::proto::tensorflow::DataType;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Written by TensorFlow 2.15.1 with `generate.py` beside it: three shards, partitioned variables, strings.
fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/checkpoints").join(name)
}

fn ramp(count: usize, first: f32) -> Vec<f32> {
    (0..count).map(|i| i as f32 + first).collect()
}

#[test]
fn reads_a_sharded_checkpoint_of_tensorflow_with_partitioned_and_string_variables() {
    let reader = BundleReader::open(&fixture("sharded.ckpt-1234")).unwrap();
    let entries: Vec<_> = reader.entries().iter().map(|e| (e.name.as_str(), e.dtype, e.shape.clone())).collect();
    assert_eq!(
        entries,
        [
            ("a/weights", DataType::DtFloat, vec![3, 2]),
            ("b/biases", DataType::DtFloat, vec![4]),
            ("flag", DataType::DtBool, vec![2]),
            ("global_step", DataType::DtInt64, vec![]),
            ("half", DataType::DtHalf, vec![2]),
            ("part", DataType::DtFloat, vec![5, 3]),
            ("text", DataType::DtString, vec![2, 2]),
            ("wide", DataType::DtFloat, vec![2, 150]),
        ]
    );
    assert_eq!(reader.read_f32("a/weights").unwrap().1, ramp(6, 0.5));
    assert_eq!(reader.read_f32("b/biases").unwrap().1, ramp(4, 10.0));
    assert_eq!(reader.read_f32("part").unwrap().1, ramp(15, 100.0));
    assert_eq!(reader.read_f32("wide").unwrap().1, ramp(300, 0.0));
    assert_eq!(reader.read_i64("global_step").unwrap().1, [1234]);
    assert_eq!(reader.read("flag").unwrap().bytes, [1, 0]);
    assert_eq!(reader.read("half").unwrap().bytes, [0x00, 0x3e, 0x00, 0xc0]); // 1.5 and -2
    let strings: Vec<Vec<u8>> = vec!["".into(), "dog".into(), "고양이".into(), "x".repeat(200).into()];
    assert_eq!(reader.read_strings("text").unwrap(), (vec![2, 2], strings));
    reader.verify().unwrap();
}

#[test]
fn a_missing_shard_is_named() {
    let folder = tempfile::tempdir().unwrap();
    for file in fs::read_dir(fixture("")).unwrap().map(|entry| entry.unwrap().path()) {
        fs::copy(&file, folder.path().join(file.file_name().unwrap())).unwrap();
    }
    fs::remove_file(folder.path().join("sharded.ckpt-1234.data-00001-of-00003")).unwrap();
    let error = format!("{:#}", BundleReader::open(&folder.path().join("sharded.ckpt-1234")).unwrap_err());
    assert!(error.contains("sharded.ckpt-1234.data-00001-of-00003`: the checkpoint's data file 2 of 3"), "{error}");
}

#[test]
fn the_old_format_is_recognized_and_explained() {
    let error = BundleReader::open(&fixture("v1.ckpt")).unwrap_err().to_string();
    assert!(error.contains("V1 format") && error.contains("SaverDef.V2"), "{error}");
    // Renamed to look like an index it is still told apart: its table has another header.
    let folder = tempfile::tempdir().unwrap();
    fs::copy(fixture("v1.ckpt"), folder.path().join("m.index")).unwrap();
    let error = format!("{:#}", BundleReader::open(&folder.path().join("m")).unwrap_err());
    assert!(error.contains("m.index`") && error.contains("V2 checkpoint"), "{error}");
}

#[test]
fn the_checkpoint_file_that_tensorflow_wrote_names_its_checkpoint() {
    let state = checkpoint_state::read(&fixture("")).unwrap().unwrap();
    assert_eq!(state.latest, fixture("sharded.ckpt-1234"));
    assert_eq!(state.all, [fixture("sharded.ckpt-1234")]);
}

/// Name to type and shape with 90 classes, from a table of `reference/variables`.
fn variables(path: &Path) -> BTreeMap<String, (DataType, Vec<i64>)> {
    let text = fs::read_to_string(path).unwrap();
    let rows = text.lines().filter(|line| !line.starts_with('#')).map(|line| line.split('\t').collect::<Vec<_>>());
    rows.map(|row| {
        let shape = row[2].split('x').filter_map(|size| size.parse().ok()).collect();
        let dtype = match row[1] {
            "float32" => DataType::DtFloat,
            "int64" => DataType::DtInt64,
            other => panic!("{other}"),
        };
        (row[0].to_string(), (dtype, shape))
    })
    .collect()
}

#[test]
fn indexes_of_the_model_zoo_hold_the_variables_of_their_models() {
    for (index, table) in [
        ("ssd_mobilenet_v1_coco_2018_01_28", "ssd_mobilenet_v1_coco_2017_11_17"),
        ("ssd_mobilenet_v2_coco_2018_03_29", "ssd_mobilenet_v2_coco_2018_03_29"),
        ("faster_rcnn_inception_v2_coco_2018_01_28", "faster_rcnn_inception_v2_coco_2018_01_28"),
    ] {
        let Some(index) = common::shared(&format!("reference/index/{index}/model.ckpt.index")) else { return };
        let Some(table) = common::shared(&format!("reference/variables/{table}.txt")) else { return };
        let wanted = variables(&table);
        let found = Index::read(&index).unwrap();
        assert!(wanted.len() > 50, "{}", table.display());
        for (name, (dtype, shape)) in &wanted {
            let entry = found.get(name).unwrap_or_else(|| panic!("{} lacks {name}", index.display()));
            assert_eq!((entry.dtype, &entry.shape), (*dtype, shape), "{name}");
        }
        let others: Vec<_> = found.entries.iter().map(|e| e.name.as_str()).filter(|name| !wanted.contains_key(*name)).collect();
        assert!(others.is_empty(), "{}: {others:?}", index.display());
    }
}

#[test]
fn a_quantization_aware_index_is_read_too() {
    let name = "reference/index/ssd_mobilenet_v1_0.75_depth_quantized_300x300_coco14_sync_2018_07_18/model.ckpt.index";
    let Some(path) = common::shared(name) else { return };
    let index = Index::read(&path).unwrap();
    let kernel = index.get("FeatureExtractor/MobilenetV1/Conv2d_0/weights").unwrap();
    assert_eq!(kernel.shape, [3, 3, 3, 24]); // 32 channels times 0.75
}

#[test]
fn flipping_any_byte_of_a_real_index_is_an_error_or_changes_nothing() {
    let Some(path) = common::shared("reference/index/ssd_mobilenet_v1_coco_2018_01_28/model.ckpt.index") else { return };
    let good = fs::read(&path).unwrap();
    let contents = Index::read(&path).unwrap().entries;
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path().join("m.index");
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 0x41;
        fs::write(&copy, &bad).unwrap();
        if let Ok(index) = Index::read(&copy) {
            assert_eq!(index.entries, contents, "byte {at}");
        }
    }
    for length in (0..good.len()).step_by(13) {
        fs::write(&copy, &good[..length]).unwrap();
        assert!(Index::read(&copy).is_err(), "{length} bytes");
    }
}

#[test]
fn nonsense_in_an_index_with_right_checksums_is_an_error_and_never_a_panic() {
    let folder = tempfile::tempdir().unwrap();
    let prefix = folder.path().join("m");
    for shard in 0..3 {
        let name = format!("data-{shard:05}-of-00003");
        fs::copy(fixture(&format!("sharded.ckpt-1234.{name}")), folder.path().join(format!("m.{name}"))).unwrap();
    }
    let index = folder.path().join("m.index");
    let pairs = sstable::read(&fixture("sharded.ckpt-1234.index")).unwrap();
    let mut rng = ChaCha8Rng::seed_from_u64(2);
    let mut errors = 0;
    for _ in 0..2000 {
        let mut pairs = pairs.clone();
        let pair = rng.random_range(0..pairs.len());
        for _ in 0..rng.random_range(1..3) {
            let value = &mut pairs[pair].value;
            let at = rng.random_range(0..value.len());
            value[at] = [0, 1, 0x7f, 0x80, 0xff, rng.random()][rng.random_range(0..6)];
        }
        if rng.random_bool(0.1) {
            pairs.remove(rng.random_range(0..pairs.len()));
        }
        let mut table = sstable::Writer::new(Vec::new());
        for pair in &pairs {
            table.add(&pair.key, &pair.value).unwrap();
        }
        fs::write(&index, table.finish().unwrap()).unwrap();
        errors += usize::from(BundleReader::open(&prefix).and_then(|reader| reader.verify()).is_err());
    }
    assert!(errors > 1000, "only {errors} of 2000 were errors");
}

#[test]
fn any_tensors_of_any_names_read_back_as_written() {
    let folder = tempfile::tempdir().unwrap();
    let mut rng = ChaCha8Rng::seed_from_u64(4);
    for round in 0..30 {
        let prefix = folder.path().join(format!("model.ckpt-{round}"));
        let mut wanted = BTreeMap::new();
        for _ in 0..rng.random_range(0..40) {
            let name: String = (0..rng.random_range(1..30))
                .map(|_| ['a', '/', '_', '0', 'é', '층', '\u{10ffff}'][rng.random_range(0..7)])
                .collect();
            let (dtype, element) =
                [(DataType::DtFloat, 4), (DataType::DtInt64, 8), (DataType::DtBool, 1)][rng.random_range(0..3)];
            let shape: Vec<i64> = (0..rng.random_range(0..5)).map(|_| rng.random_range(0..6)).collect();
            let bytes = (0..shape.iter().product::<i64>() * element).map(|_| rng.random()).collect();
            wanted.insert(name, TensorData { dtype, shape, bytes });
        }
        tensor_bundle::write(&prefix, wanted.iter().rev().map(|(name, tensor)| (name.as_str(), tensor.clone()))).unwrap();
        let reader = BundleReader::open(&prefix).unwrap();
        let found: BTreeMap<_, _> =
            reader.entries().iter().map(|entry| (entry.name.clone(), reader.read(&entry.name).unwrap())).collect();
        assert_eq!(found, wanted);
    }
}

/// A Python with TensorFlow, named by `ODH_TENSORFLOW_PYTHON`.
fn tensorflow(script: &str, arguments: &[&Path]) -> Option<String> {
    let Some(python) = std::env::var_os("ODH_TENSORFLOW_PYTHON") else {
        common::say("skipped: ODH_TENSORFLOW_PYTHON does not name a Python with TensorFlow");
        return None;
    };
    let output = Command::new(python).arg("-c").arg(script).args(arguments).env("TF_CPP_MIN_LOG_LEVEL", "3").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Some(String::from_utf8(output.stdout).unwrap())
}

#[test]
fn tensorflow_restores_what_we_write_and_finds_it_by_the_checkpoint_file() {
    let folder = tempfile::tempdir().unwrap();
    let prefixes = ["model.ckpt-0", "모델's \"best\".ckpt-7"].map(|name| folder.path().join(name));
    for (step, prefix) in prefixes.iter().enumerate() {
        let mut writer = BundleWriter::create(prefix).unwrap();
        writer.add("z/weights", &TensorData::from_f32(&[2, 3], &ramp(6, -2.5))).unwrap();
        writer.add("global_step", &TensorData::from_i64(&[], &[step as i64])).unwrap();
        writer.add_strings("names", &[2], &["", "개"]).unwrap();
        // Enough entries for restart points within the block.
        for i in 0..100 {
            writer.add(&format!("scope/layer_{i}/biases"), &TensorData::from_f32(&[1], &[i as f32])).unwrap();
        }
        writer.finish().unwrap();
    }
    let state = CheckpointState { latest: prefixes[1].clone(), all: prefixes.to_vec() };
    checkpoint_state::write(folder.path(), &state).unwrap();
    let script = r#"
import sys
import tensorflow as tf
v1 = tf.compat.v1
latest = tf.train.latest_checkpoint(sys.argv[1])
print(latest.split("/")[-1], len(tf.train.get_checkpoint_state(sys.argv[1]).all_model_checkpoint_paths))
reader = tf.train.load_checkpoint(latest)
print(len(reader.get_variable_to_shape_map()), reader.get_tensor("scope/layer_99/biases"), reader.get_tensor("names")[1].decode())
v1.disable_eager_execution()
w = v1.get_variable("z/weights", [2, 3])
g = v1.get_variable("global_step", [], tf.int64)
with v1.Session() as session:
    v1.train.Saver().restore(session, latest)
    print(session.run(w).tolist(), session.run(g))
"#;
    let Some(said) = tensorflow(script, &[folder.path()]) else { return };
    assert_eq!(said, "모델's \"best\".ckpt-7 2\n103 [99.] 개\n[[-2.5, -1.5, -0.5], [0.5, 1.5, 2.5]] 1\n");
}
