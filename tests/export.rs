//! Exports: the frozen graph's structure and numbers, and the folder that takes its place whole.

#[path = "common/project.rs"]
mod project;

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use odh::config::label_map::LabelMap;
use odh::config::zoo;
use odh::export::detector::Detector;
use odh::export::folder::{self, CHECKPOINT, ExportInput, FROZEN_GRAPH};
use odh::export::graph_def::{check, ssd};
use odh::export::ssd::SsdExport;
use odh::formats::checkpoint_state;
use odh::formats::tensor_bundle::{self, BundleReader, TensorData};
use odh::models::DetectionModel;
use odh::models::pictures::Frame;
use odh::models::ssd::Ssd;
use odh::net::variables::Variables;
use odh::proto::object_detection::protos as pb;
use odh::proto::tensorflow::attr_value::Value as Attr;
use odh::proto::tensorflow::{DataType, GraphDef, NodeDef};
use project::names;
use prost::Message;
use tch::{Device, Kind, Tensor};

const SMALL: &str = "ssd_mobilenet_v1_0.75_depth_coco";

/// The zoo's smallest model with `classes` classes.
fn config(classes: i32) -> pb::TrainEvalPipelineConfig {
    let (mut config, _) = zoo::resolve(SMALL).unwrap().config(Path::new("no such folder")).unwrap();
    match config.model.as_mut().and_then(|m| m.model.as_mut()) {
        Some(pb::detection_model::Model::Ssd(ssd)) => ssd.num_classes = Some(classes),
        _ => panic!("{SMALL} is an SSD"),
    }
    config
}

fn model(config: &pb::TrainEvalPipelineConfig) -> Ssd {
    match config.model.as_ref().and_then(|m| m.model.as_ref()) {
        Some(pb::detection_model::Model::Ssd(ssd)) => Ssd::from_config(ssd).unwrap(),
        _ => panic!("{SMALL} is an SSD"),
    }
}

/// Variables that no two channels share, batch norm statistics included.
fn variables(model: &Ssd) -> Variables {
    let mut variables = Variables::new(model.variables(), 7, Device::Cpu).unwrap();
    for i in 0..model.variables().len() {
        let name = &model.variables()[i].name;
        let n: i64 = model.variables()[i].shape.iter().product();
        let wave = |low: f32, high: f32| -> Vec<f32> {
            (0..n).map(|j| low + (high - low) * (0.5 + 0.5 * ((j * 7 + i as i64) as f32).sin())).collect()
        };
        let values = match name.rsplit('/').next().unwrap() {
            "moving_variance" => wave(0.5, 1.5),
            "moving_mean" | "beta" | "biases" => wave(-0.2, 0.2),
            "gamma" => wave(0.8, 1.4),
            _ => continue,
        };
        variables.set_from_tensorflow(i, &values).unwrap();
    }
    variables
}

fn frozen(model: &Ssd, variables: &Variables) -> GraphDef {
    let read = |name: &str| variables.to_tensorflow(variables.position(name).unwrap());
    ssd::frozen_graph(&SsdExport::new(model), &read).unwrap()
}

fn node<'a>(graph: &'a GraphDef, name: &str) -> &'a NodeDef {
    graph.node.iter().find(|n| n.name == name).unwrap_or_else(|| panic!("there is no {name}"))
}

#[test]
fn the_frozen_graph_is_sound_and_the_same_every_time() {
    let model = model(&config(90));
    let variables = variables(&model);
    let graph = frozen(&model, &variables);
    check::check(&graph).unwrap();
    assert_eq!(graph.encode_to_vec(), frozen(&model, &variables).encode_to_vec());
    assert_eq!(graph.versions.as_ref().unwrap().producer, 27);

    let input = node(&graph, "image_tensor");
    assert_eq!(input.op, "Placeholder");
    assert_eq!(input.attr["dtype"].value, Some(Attr::Type(DataType::DtUint8 as i32)));
    let Some(Attr::Shape(shape)) = &input.attr["shape"].value else { panic!("image_tensor has no shape") };
    assert_eq!(shape.dim.iter().map(|d| d.size).collect::<Vec<_>>(), [-1, -1, -1, 3]);
    for output in ["detection_boxes", "detection_scores", "detection_classes", "num_detections"] {
        assert_eq!(node(&graph, output).attr["T"].value, Some(Attr::Type(DataType::DtFloat as i32)), "{output}");
    }
    let count = |op: &str| graph.node.iter().filter(|n| n.op == op).count();
    // One picture's, one attempt's and one class's loop.
    assert_eq!((count("LoopCond"), count("NonMaxSuppressionV3"), count("DepthwiseConv2dNative")), (3, 1, 13));
    assert_eq!(count("Conv2D"), count("BiasAdd") - count("DepthwiseConv2dNative"));
    // No batch norm is left: one that was not folded would be a product and a bias.
    let products = graph.node.iter().filter(|n| n.op == "Mul" && n.name.starts_with("FeatureExtractor/MobilenetV1"));
    assert_eq!(products.map(|n| n.name.as_str()).collect::<Vec<_>>(), [""; 0]);
    assert!(graph.node.iter().any(|n| n.op == "Conv2D" && n.name.starts_with("FeatureExtractor/MobilenetV1")));
}

/// Every model can be written; what the files compute is their runtimes' to say (tests/interop). The lowproposals models
/// differ from their parents in a few numbers only.
#[test]
fn every_models_exports_are_sound() {
    for zoo in zoo::MODELS.iter().filter(|m| !m.folder.contains("lowproposals")) {
        let (mut config, _) = zoo.config(Path::new("no such folder")).unwrap();
        match config.model.as_mut().and_then(|m| m.model.as_mut()) {
            Some(pb::detection_model::Model::Ssd(ssd)) => ssd.num_classes = Some(2),
            Some(pb::detection_model::Model::FasterRcnn(model)) => model.num_classes = Some(2),
            None => panic!("{} has no model", zoo.folder),
        }
        let detector = Detector::from_config(&config).unwrap();
        let sizes: HashMap<&str, usize> =
            detector.model().variables().iter().map(|v| (v.name.as_str(), v.shape.iter().product::<i64>() as usize)).collect();
        let graph = detector.frozen_graph(&|name| Ok(vec![0.5; sizes[name]])).unwrap();
        check::check(&graph).unwrap_or_else(|e| panic!("{}: {e:#}", zoo.folder));
        for name in ["image_tensor", "detection_boxes", "detection_scores", "detection_classes", "num_detections"] {
            node(&graph, name);
        }
        let onnx = detector.onnx(&|name| Ok(vec![0.5; sizes[name]]), &[]).unwrap();
        odh::export::onnx::check::check(&onnx).unwrap_or_else(|e| panic!("{}: {e:#}", zoo.folder));
        for node in &onnx.graph.as_ref().unwrap().node {
            // onnxruntime without its optimizations reckons a negative padding for these, and stops.
            let of = |name: &str| node.attribute.iter().find(|a| a.name() == name);
            let one_cell = of("kernel_shape").is_some_and(|a| a.ints == [1, 1]);
            assert!(!(one_cell && of("auto_pad").is_some()), "{}: {} pads a window of one cell", zoo.folder, node.name());
        }
        // Compiled by libtorch.
        let script = detector.torchscript(&|name| Ok(vec![0.5; sizes[name]]), "{}").unwrap();
        assert_eq!(script.ask("metadata").unwrap().as_deref(), Some("{}"), "{}", zoo.folder);
    }
}

#[test]
fn a_graph_that_tensorflow_would_refuse_is_found() {
    let model = model(&config(2));
    let sound = frozen(&model, &variables(&model));
    let broken = |change: fn(&mut GraphDef)| {
        let mut graph = sound.clone();
        change(&mut graph);
        check::check(&graph).unwrap_err().to_string()
    };
    assert!(broken(|g| g.node[5].input.push("nowhere".into())).contains("nowhere, which does not exist"));
    assert!(broken(|g| g.node[5].input.push("detection_boxes".into())).contains("comes after it"));
    assert!(broken(|g| g.node[5].input.push("image_tensor:1".into())).contains("no such output"));
    assert!(broken(|g| g.node[5].name = "image_tensor".into()).contains("two nodes"));
    assert!(broken(|g| g.node[5].op = "CombinedNonMaxSuppression".into()).contains("CombinedNonMaxSuppression"));
    let error = broken(|g| {
        let resize = g.node.iter_mut().find(|n| n.op == "ResizeBilinear").unwrap();
        let value = resize.attr["align_corners"].clone();
        resize.attr.insert("half_pixel_centers".into(), value);
    });
    assert!(error.contains("half_pixel_centers") && error.contains("1.12"), "{error}");
}

/// Runs the operations between the preprocessed picture and the raw predictions on libtorch: a reader of the file that shares
/// nothing with the writer.
fn run(graph: &GraphDef, picture: &Tensor, wanted: &str) -> Tensor {
    let mut values: HashMap<&str, Tensor> = HashMap::new();
    values.insert("Preprocessor/sub", picture.shallow_clone());
    for node in &graph.node {
        if node.name.starts_with("Preprocessor/") || node.name == "image_tensor" {
            continue;
        }
        let x = |i: usize| &values[node.input[i].as_str()];
        let ints = |name: &str| match &node.attr[name].value {
            Some(Attr::List(list)) => list.i.clone(),
            other => panic!("{}: {name} is {other:?}", node.name),
        };
        let host = |i: usize| Vec::<i64>::try_from(&x(i).to_kind(Kind::Int64).reshape([-1])).unwrap();
        let convolve = |groups: i64, filters: Tensor| {
            assert_eq!(node.attr["padding"].value, Some(Attr::S("SAME".as_bytes().to_vec().into())));
            let input = x(0).permute([0, 3, 1, 2]); // [N, C, H, W]
            let (stride, size, kernel) = (ints("strides")[1], input.size(), filters.size());
            let pads: Vec<i64> = [3, 2]
                .iter()
                .flat_map(|&d| {
                    let output = (size[d] + stride - 1) / stride;
                    let total = ((output - 1) * stride + kernel[d] - size[d]).max(0);
                    [total / 2, total - total / 2]
                })
                .collect();
            let input = input.constant_pad_nd(pads);
            input.conv2d(&filters, None::<Tensor>, stride, 0, 1, groups).permute([0, 2, 3, 1])
        };
        let value = match node.op.as_str() {
            "Const" => constant(node),
            "Conv2D" => convolve(1, x(1).permute([3, 2, 0, 1])),
            "DepthwiseConv2dNative" => convolve(x(1).size()[2], x(1).permute([2, 3, 0, 1])),
            "BiasAdd" => x(0) + x(1),
            "Relu6" => x(0).clamp(0.0, 6.0),
            "Reshape" => x(0).reshape(host(1)),
            "ConcatV2" => {
                let last = node.input.len() - 1;
                let parts: Vec<&Tensor> = (0..last).map(x).collect();
                Tensor::cat(&parts, host(last)[0])
            }
            op => panic!("{} is a {op}, which is not expected before {wanted}", node.name),
        };
        if node.name == wanted {
            return value;
        }
        values.insert(&node.name, value);
    }
    panic!("there is no {wanted}")
}

fn constant(node: &NodeDef) -> Tensor {
    let Some(Attr::Tensor(tensor)) = &node.attr["value"].value else { panic!("{} has no value", node.name) };
    let shape: Vec<i64> = tensor.tensor_shape.as_ref().unwrap().dim.iter().map(|d| d.size).collect();
    let kind = match tensor.dtype() {
        DataType::DtFloat => Kind::Float,
        DataType::DtInt32 => Kind::Int,
        other => panic!("{}: {other:?}", node.name),
    };
    Tensor::from_data_size(&tensor.tensor_content, &shape, kind)
}

#[test]
fn the_frozen_network_predicts_what_the_model_predicts() {
    let model = model(&config(5));
    let variables = variables(&model);
    let graph = frozen(&model, &variables);
    let pixels: Vec<f32> = (0..300 * 300 * 3).map(|i| 127.5 + 127.5 * (f64::from(i) * 0.37).sin() as f32).collect();
    let images = Tensor::from_slice(&pixels).view([1, 300, 300, 3]);
    let _no_grad = tch::no_grad_guard();
    let preprocessed = Ssd::preprocess(&images).unwrap();
    let inference = odh::net::exec::Inference::new(model.graph(), &variables).unwrap();
    let expected = model
        .gather(&inference.run(&preprocessed).unwrap(), &Frame::whole(model.input_size().unwrap(), images.size()[0] as usize))
        .unwrap();
    let input = preprocessed.permute([0, 2, 3, 1]);
    for (name, expected) in [("concat", expected.box_encodings), ("concat_1", expected.class_predictions_with_background)] {
        let got = run(&graph, &input, name);
        assert_eq!(got.size(), expected.size());
        let error = f64::try_from((&got - &expected).abs().max()).unwrap();
        let largest = f64::try_from(expected.abs().max()).unwrap();
        assert!(error <= 2e-5 * largest, "{name}: {error} of {largest}");
    }
}

/// A checkpoint of a model with `classes` classes, optimizer slots and `global_step` 42 included.
fn checkpoint(folder: &Path, classes: i32) -> PathBuf {
    let model = model(&config(classes));
    let variables = variables(&model);
    let prefix = folder.join("model.ckpt-42");
    let mut tensors: Vec<(String, TensorData)> = Vec::new();
    for (i, variable) in model.variables().iter().enumerate() {
        let data = TensorData::from_f32(&variable.shape, &variables.to_tensorflow(i).unwrap());
        tensors.push((format!("{}/RMSProp", variable.name), data.clone()));
        tensors.push((variable.name.clone(), data));
    }
    tensors.push(("global_step".into(), TensorData::from_i64(&[], &[42])));
    tensor_bundle::write(&prefix, tensors.iter().map(|(n, t)| (n.as_str(), t.clone()))).unwrap();
    prefix
}

const FILES: [&str; 11] = [
    "checkpoint",
    "export.json",
    "frozen_inference_graph.pb",
    "label_map.pbtxt",
    "labels.txt",
    "model.ckpt.data-00000-of-00001",
    "model.ckpt.index",
    "model.onnx",
    "model.torchscript.pt",
    "pipeline.config",
    "saved_model",
];

#[test]
fn an_export_has_its_files_and_a_later_one_replaces_it() {
    let work = tempfile::tempdir().unwrap();
    let prefix = checkpoint(work.path(), 3);
    let output = work.path().join("export_dir/모델 1");
    let config = config(3);
    let label_map = LabelMap::parse("item { id: 1 name: 'cat' } item { id: 3 name: 'dog' display_name: '개' }", "map").unwrap();
    let input = ExportInput::new("모델", &config, &label_map, &prefix, &output);
    let exported = folder::run(&input, None).unwrap();
    assert_eq!(exported.step, Some(42));
    assert_eq!(names(&output), FILES);
    assert_eq!(names(output.parent().unwrap()), ["모델 1"]);
    assert_eq!(exported.models[0], (output.join(FROZEN_GRAPH), fs::metadata(output.join(FROZEN_GRAPH)).unwrap().len()));
    assert_eq!(exported.models.len(), 4);
    assert_eq!(fs::read_to_string(output.join("labels.txt")).unwrap(), "cat\n???\n개\n");
    assert_eq!(LabelMap::load(&output.join("label_map.pbtxt")).unwrap(), label_map);
    assert_eq!(odh::config::pipeline::load(&output.join("pipeline.config")).unwrap(), config);

    let manifest: serde_json::Value = serde_json::from_slice(&fs::read(output.join("export.json")).unwrap()).unwrap();
    assert_eq!((manifest["model"].as_str(), manifest["step"].as_i64()), (Some("모델"), Some(42)));
    assert_eq!(manifest["classes"], serde_json::json!([{ "id": 1, "name": "cat" }, { "id": 3, "name": "개" }]));
    let files = manifest["files"].as_array().unwrap();
    // All but itself; the SavedModel is the one file of its folder.
    assert_eq!(files.len(), FILES.len() - 1);
    let graph = files.iter().find(|f| f["path"] == FROZEN_GRAPH).unwrap();
    assert_eq!(graph["bytes"].as_u64(), Some(exported.models[0].1));
    assert_eq!(graph["sha256"].as_str().unwrap().len(), 64);

    let state = checkpoint_state::read(&output).unwrap().unwrap();
    assert_eq!(state.latest, output.join(CHECKPOINT));
    let written = BundleReader::open(&state.latest).unwrap();
    let model = model(&config);
    // The variables and global_step, no optimizer's.
    assert_eq!(written.entries().len(), model.variables().len() + 1);
    let original = BundleReader::open(&prefix).unwrap();
    for variable in model.variables() {
        assert_eq!(written.read(&variable.name).unwrap(), original.read(&variable.name).unwrap());
    }
    let graph = GraphDef::decode(fs::read(output.join(FROZEN_GRAPH)).unwrap().as_slice()).unwrap();
    check::check(&graph).unwrap();

    fs::write(output.join("notes.txt"), "mine").unwrap();
    fs::write(output.join("saved_model/of_another_model"), "old").unwrap();
    fs::write(output.join("labels.txt"), "old").unwrap();
    let before = fs::read(output.join(FROZEN_GRAPH)).unwrap();
    folder::run(&input, None).unwrap();
    assert_eq!(fs::read(output.join(FROZEN_GRAPH)).unwrap(), before);
    let mut expected: Vec<&str> = FILES.to_vec();
    expected.push("notes.txt");
    expected.sort();
    assert_eq!(names(&output), expected);
    assert_eq!(names(&output.join("saved_model")), ["saved_model.pb", "variables"]);
    assert_eq!(fs::read_to_string(output.join("labels.txt")).unwrap(), "cat\n???\n개\n");
    assert_eq!(names(output.parent().unwrap()), ["모델 1"]);
}

#[test]
fn an_export_that_fails_leaves_the_earlier_one_and_nothing_else() {
    let work = tempfile::tempdir().unwrap();
    let output = work.path().join("export_dir/m");
    let (three, five) = (config(3), config(5));
    let label_map = LabelMap::from_names(["a", "b", "c"]);
    let prefix = checkpoint(work.path(), 3);
    let good = ExportInput::new("모델", &three, &label_map, &prefix, &output);
    folder::run(&good, None).unwrap();
    let contents = || -> Vec<Vec<u8>> {
        let path = |file: &&str| output.join(if *file == "saved_model" { "saved_model/saved_model.pb" } else { file });
        FILES.iter().map(|file| fs::read(path(file)).unwrap()).collect()
    };
    let before = contents();

    let fails = |input: &ExportInput, parts: &[&str]| {
        let error = format!("{:#}", folder::run(input, None).unwrap_err());
        assert!(parts.iter().all(|p| error.contains(p)), "{error}");
    };
    fails(&ExportInput { config: &five, ..good }, &["model.ckpt-42", "BoxPredictor_0/ClassPredictor/weights", "[1, 1, 384, 12]"]);
    let many = LabelMap::from_names(["a", "b", "c", "d"]);
    fails(&ExportInput { label_map: &many, ..good }, &["largest id is 4", "3 classes"]);
    fails(&ExportInput { checkpoint: &work.path().join("gone"), ..good }, &["gone"]);
    // A damaged checkpoint is found while the new folder is being made.
    let data = work.path().join("model.ckpt-42.data-00000-of-00001");
    let mut bytes = fs::read(&data).unwrap();
    bytes.iter_mut().for_each(|b| *b ^= 1);
    fs::write(&data, &bytes).unwrap();
    fails(&good, &["model.ckpt-42"]);

    assert!(before == contents());
    assert_eq!(names(output.parent().unwrap()), ["m"]);
}

#[test]
fn a_folder_of_other_things_is_not_replaced() {
    let work = tempfile::tempdir().unwrap();
    let prefix = checkpoint(work.path(), 3);
    let (config, label_map) = (config(3), LabelMap::from_names(["a", "b", "c"]));
    let photos = work.path().join("photos");
    fs::create_dir(&photos).unwrap();
    fs::write(photos.join("a.jpg"), "not to be lost").unwrap();
    for (output, part) in [(photos.clone(), "is not an export"), (photos.join("a.jpg"), "is a file")] {
        let input = ExportInput::new("모델", &config, &label_map, &prefix, &output);
        let error = folder::run(&input, None).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
    assert_eq!(names(&photos), ["a.jpg"]);
    let empty = work.path().join("empty");
    fs::create_dir(&empty).unwrap();
    folder::run(&ExportInput::new("모델", &config, &label_map, &prefix, &empty), None).unwrap();
    assert_eq!(names(&empty), FILES);
}

/// `odh export` with these arguments in a working folder, on a machine without onnxruntime's library, whatever this one has.
fn odh_export(folder: &Path, args: &[&str]) -> assert_cmd::assert::Assert {
    let mut command = assert_cmd::Command::new(assert_cmd::cargo::cargo_bin!("odh"));
    command.current_dir(folder).env("ORT_DYLIB_PATH", "nowhere/libonnxruntime.so").arg("export").args(args).assert()
}

/// A train folder with a checkpoint, its config and label map.
fn trained(work: &Path) -> PathBuf {
    let train = work.join("train_dir/my_model");
    fs::create_dir_all(&train).unwrap();
    let prefix = checkpoint(&train, 3);
    checkpoint_state::write(&train, &checkpoint_state::CheckpointState { latest: prefix.clone(), all: vec![prefix] }).unwrap();
    fs::write(train.join("pipeline.config"), odh::config::pipeline::to_text(&config(3))).unwrap();
    fs::write(train.join("label_map.pbtxt"), LabelMap::from_names(["a", "b", "c"]).to_text().unwrap()).unwrap();
    train
}

/// A program that stands in for a Python: its last argument is the folder where its answer goes.
fn stand_in(folder: &Path, answer: &str) -> PathBuf {
    use std::os::unix::fs::PermissionsExt;
    let path = folder.join("stand_in");
    fs::write(&path, format!("#!/bin/sh\nfor last; do :; done\n{answer}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

#[test]
fn a_signal_to_the_verification_alone_ends_the_runtime_that_it_waits_for() {
    use std::process::{Command, Stdio};
    let work = tempfile::tempdir().unwrap();
    let work = work.path();
    trained(work);
    let pictures = concat!(env!("CARGO_MANIFEST_DIR"), "/images");
    let python = stand_in(work, "echo $$ > began.new; mv began.new began; exec sleep 600");
    let mut command = Command::new(assert_cmd::cargo::cargo_bin!("odh"));
    command.args([
        "export",
        "--verify",
        "--format",
        "frozen_graph",
        "--verify_pictures",
        pictures,
        "--verify_count",
        "1",
        "--python",
    ]);
    let mut odh = command.arg(python).current_dir(work).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let began = work.join("began");
    while !began.exists() {
        assert!(odh.try_wait().unwrap().is_none(), "the verification ended");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let runtime: i32 = fs::read_to_string(began).unwrap().trim().parse().unwrap();
    let pid = |id: i32| nix::unistd::Pid::from_raw(id);
    nix::sys::signal::kill(pid(odh.id() as i32), nix::sys::signal::Signal::SIGTERM).unwrap();
    assert_eq!(odh.wait().unwrap().code(), Some(130));
    assert!(nix::sys::signal::kill(pid(runtime), None).is_err(), "the runtime goes on");
    assert!(!work.join("export_dir/my_model").exists());
}

#[test]
fn a_verification_says_what_was_run_and_a_drift_is_exit_code_3_that_leaves_the_good_export() {
    let work = tempfile::tempdir().unwrap();
    let work = work.path();
    trained(work);
    let pictures = concat!(env!("CARGO_MANIFEST_DIR"), "/images");
    let verify = |python: &Path| {
        let python = python.to_str().unwrap();
        let words = ["--verify", "--format", "onnx", "--verify_pictures", pictures, "--verify_count", "2", "--python", python];
        odh_export(work, &words)
    };
    let place = work.join("export_dir/my_model");
    let parity = |folder: &Path| -> serde_json::Value {
        let text = fs::read(folder.join("export.json")).unwrap();
        serde_json::from_slice::<serde_json::Value>(&text).unwrap()["parity"].clone()
    };

    // No Python at all; one without the runtime. What was not run is not called equal.
    for (answer, said) in [
        (None, "cannot be started"),
        (Some(r#"echo '{"missing": "No module named onnxruntime"}' > "$last/onnx.json""#), "No module named onnxruntime"),
        // One that never comes as far as the file, and one that is killed there, tell nothing of the file.
        (Some("exit 0"), "ended before it came to the file"),
        (Some("echo 'broken installation' >&2; exit 1"), "broken installation"),
        (Some(r#"echo '{"loading": "stand-in"}' > "$last/onnx.json"; kill -9 $$"#), "stand-in was killed"),
    ] {
        let python = answer.map_or_else(|| work.join("nowhere"), |answer| stand_in(work, answer));
        let output = verify(&python).code(1).stdout(predicates::str::contains("NOT RUN"));
        output.stdout(predicates::str::contains(said)).stderr(predicates::str::contains("nothing of it could be run"));
        let parity = parity(&place);
        assert_eq!((parity["pictures"].as_u64(), parity["formats"][0]["outcome"].as_str()), (Some(2), Some("not_run")));
    }

    let good = fs::read(place.join("export.json")).unwrap();
    let rows = r#"{"boxes": [[0, 0, 0.5, 0.5]], "scores": [0.999], "classes": [2]}"#;
    let wrong =
        format!(r#"echo '{{"runtime": "stand-in 1.0", "seconds": [0.1, 0.1], "found": [{rows}, {rows}]}}' > "$last/onnx.json""#);
    let refused = r#"echo '{"loading": "stand-in"}' > "$last/onnx.json"; echo 'invalid graph' >&2; exit 1"#;
    for (answer, said) in [(wrong.as_str(), "DRIFT"), (refused, "FAILED: invalid graph")] {
        verify(&stand_in(work, answer))
            .code(3)
            .stdout(predicates::str::contains(said))
            .stderr(predicates::str::contains(".drifted"));
        assert_eq!(fs::read(place.join("export.json")).unwrap(), good);
        assert_eq!(names(&work.join("export_dir")), [".my_model.drifted", "my_model"]);
    }
    verify(&stand_in(work, &wrong)).code(3);
    let drifted = parity(&work.join("export_dir/.my_model.drifted"));
    assert_eq!(drifted["formats"][0]["runtime"], "stand-in 1.0");
    assert_eq!(drifted["formats"][0]["equal"], false);
    assert!(drifted["formats"][0]["unpaired"].as_u64().unwrap() > 0, "{drifted}");

    // TorchScript needs no Python: odh runs it.
    let words =
        ["--verify", "--format", "torchscript", "--verify_pictures", pictures, "--verify_count", "2", "--python", "nowhere"];
    odh_export(work, &words).success().stdout(predicates::str::contains("libtorch 2.11.0"));
    let ran = parity(&place)["formats"][0].clone();
    assert_eq!((ran["outcome"].as_str(), ran["equal"].as_bool()), (Some("ran"), Some(true)), "{ran}");
    assert!(ran["detections"].as_u64().unwrap() > 0, "{ran}");
    let good = fs::read(place.join("export.json")).unwrap();

    odh_export(work, &["--verify", "--tolerance", "-1"]).code(2);
    odh_export(work, &["--verify"]).code(1).stderr(predicates::str::contains("odh tfgen"));
    assert_eq!(fs::read(place.join("export.json")).unwrap(), good);
    // A folder that was set aside is no second model.
    odh_export(work, &["--train_dir", "export_dir", "--output_dir", "again"]).success();
}

#[test]
fn the_command_exports_the_latest_the_best_or_the_named_checkpoint() {
    let work = tempfile::tempdir().unwrap();
    let train = trained(work.path());
    for ending in ["index", "data-00000-of-00001"] {
        fs::copy(train.join(format!("model.ckpt-42.{ending}")), train.join(format!("model.ckpt-7.{ending}"))).unwrap();
    }

    odh_export(work.path(), &["--best"]).code(2).stderr(predicates::str::contains("--best"));
    assert!(!work.path().join("export_dir").exists());
    odh_export(work.path(), &[]).success().stdout(predicates::str::contains("model.ckpt-42 (step 42)"));
    assert_eq!(names(&work.path().join("export_dir/my_model")), FILES);
    fs::write(train.join("best.json"), r#"{"step": 7, "map": 0.5}"#).unwrap();
    odh_export(work.path(), &["--best", "--format", "onnx"]).success().stdout(predicates::str::contains("model.ckpt-7 "));
    let files = names(&work.path().join("export_dir/my_model"));
    assert!(files.contains(&"model.onnx".to_string()) && !files.contains(&FROZEN_GRAPH.to_string()), "{files:?}");
    odh_export(work.path(), &["--format", "tflite"])
        .code(2)
        .stderr(predicates::str::contains("frozen_graph, saved_model, onnx, torchscript"));

    // Without its config beside it.
    let bare = work.path().join("bare");
    fs::create_dir(&bare).unwrap();
    checkpoint(&bare, 3);
    odh_export(work.path(), &["--checkpoint", "bare", "--output_dir", "out"])
        .failure()
        .stderr(predicates::str::contains("pipeline.config"));
    let config = train.join("pipeline.config");
    let config = config.to_str().unwrap();
    let map = train.join("label_map.pbtxt");
    let named = [
        "--checkpoint",
        "bare/model.ckpt-42.index",
        "--pipeline_config",
        config,
        "-l",
        map.to_str().unwrap(),
        "--output_dir",
        "out",
    ];
    odh_export(work.path(), &named).success();
    assert_eq!(names(&work.path().join("out")), FILES);
    let log = fs::read_to_string(work.path().join("process.log")).unwrap();
    assert!(log.contains("Export start [") && log.contains("Export Success [ step 42"), "{log}");

    // An export is a model too where its training is gone.
    odh_export(work.path(), &["-m", "my_modle"]).code(2).stderr(predicates::str::contains("only my_model"));
    fs::remove_dir_all(&train).unwrap();
    odh_export(work.path(), &["-m", "my_model"]).success().stdout(predicates::str::contains("export_dir/my_model/model.ckpt ("));
    assert_eq!(names(&work.path().join("export_dir/my_model")), FILES);
    odh_export(work.path(), &["-m", "my_model", "--train_dir", "train_dir"]).code(2);
}
