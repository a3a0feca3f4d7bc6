//! model.torchscript.pt and, where onnxruntime's library is found, model.onnx: what a file finds is what the model finds, whatever the
//! picture's size; and `odh detect --model FILE`.

mod common;
#[allow(dead_code)]
#[path = "common/reference.rs"]
mod reference;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Once;

use assert_cmd::Command;
use common::zoo_config;
use odh::config::label_map::LabelMap;
use odh::config::pipeline;
use odh::data::encode;
use odh::data::image::{Format, RgbImage};
use odh::data::resizer::Resizer;
use odh::detection::boxes::Detections;
use odh::export::detector::Detector;
use odh::export::folder::{self, ExportInput, ONNX, TORCHSCRIPT};
use odh::formats::tensor_bundle::{self, TensorData};
use odh::models::Frozen;
use odh::models::pictures::Pictures;
use odh::net::shim;
use odh::net::variables::Variables;
use odh::proto::object_detection::protos as pb;
use odh::runtime::onnx::{LibrarySearch, OnnxModel};
use odh::runtime::onnxruntime;
use odh::runtime::torchscript::TorchScriptModel;
use prost::Message;
use tch::{Device, IValue, Kind, Tensor};

/// Of scores and of normalized box sides.
const TOLERANCE: f32 = 1e-5;

fn ssd(name: &str) -> pb::TrainEvalPipelineConfig {
    zoo_config(name, &[("height: 300", "height: 96"), ("width: 300", "width: 160")])
}

/// A Faster R-CNN or R-FCN for small pictures, with few proposals, and some change.
fn two_stages(name: &str, change: impl FnOnce(&mut pb::FasterRcnn)) -> pb::TrainEvalPipelineConfig {
    use pb::anchor_generator::AnchorGeneratorOneof as A;
    let mut config = zoo_config(name, &[]);
    let Some(pb::detection_model::Model::FasterRcnn(model)) = config.model.as_mut().unwrap().model.as_mut() else {
        panic!("{name}")
    };
    let generator = model.first_stage_anchor_generator.as_mut().unwrap().anchor_generator_oneof.as_mut().unwrap();
    let A::GridAnchorGenerator(grid) = generator else { panic!("{generator:?}") };
    grid.scales = vec![0.125, 0.25];
    model.first_stage_max_proposals = Some(12);
    model.second_stage_batch_size = Some(8);
    resized(model, 96, 200);
    change(model);
    pipeline::check_supported(&config).unwrap();
    config
}

fn resized(model: &mut pb::FasterRcnn, min: i32, max: i32) {
    use pb::image_resizer::ImageResizerOneof as R;
    let size = pb::KeepAspectRatioResizer { min_dimension: Some(min), max_dimension: Some(max), ..Default::default() };
    model.image_resizer.as_mut().unwrap().image_resizer_oneof = Some(R::KeepAspectRatioResizer(size));
}

fn fixed(model: &mut pb::FasterRcnn, height: i32, width: i32) {
    use pb::image_resizer::ImageResizerOneof as R;
    let size = pb::FixedShapeResizer { height: Some(height), width: Some(width), ..Default::default() };
    model.image_resizer.as_mut().unwrap().image_resizer_oneof = Some(R::FixedShapeResizer(size));
}

/// Whether ONNX files can be run on this machine; if not, it is said once.
fn has_onnxruntime() -> bool {
    static SAID: Once = Once::new();
    let loaded = onnxruntime::load(&LibrarySearch::new(None, None));
    if let Err(missing) = &loaded {
        SAID.call_once(|| common::say(&format!("ONNX files are not run: {missing:#}")));
    }
    loaded.is_ok()
}

/// A model in memory, and as the files that it is exported to.
struct Both {
    frozen: Box<dyn Frozen>,
    resizer: Resizer,
    file: TorchScriptModel,
    onnx: Option<OnnxModel>,
}

impl Both {
    fn new(config: &pb::TrainEvalPipelineConfig) -> Self {
        shim::init().unwrap();
        let detector = Detector::from_config(config).unwrap();
        let mut variables = Variables::zeros(detector.model().variables(), Device::Cpu).unwrap();
        reference::set_regenerated_weights(&mut variables);
        let read = |name: &str| variables.to_tensorflow(variables.position(name).unwrap());
        let metadata = r#"{"model": "m", "odh_version": "0", "classes": [{"id": 1, "name": "a"}], "more": 1}"#;
        let script = detector.torchscript(&read, metadata).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(TORCHSCRIPT);
        script.write(&mut std::fs::File::create(&path).unwrap()).unwrap();
        odh::export::torchscript::check::check(&path, &script).unwrap();
        let file = TorchScriptModel::open(&path, Device::Cpu).unwrap();
        let onnx = has_onnxruntime().then(|| {
            let path = folder.path().join(ONNX);
            let classes = r#"[{"id": 1, "name": "a"}]"#.to_string();
            let model = detector.onnx(&read, &[("odh_version", "0".to_string()), ("classes", classes)]).unwrap();
            fs::write(&path, model.encode_to_vec()).unwrap();
            OnnxModel::open(&path, &LibrarySearch::new(None, None)).unwrap()
        });
        Self { frozen: detector.model().freeze(&variables).unwrap(), resizer: detector.model().resizer(), file, onnx }
    }

    /// As `odh detect` has it.
    fn expected(&self, picture: &[u8], [height, width]: [usize; 2]) -> Detections {
        let resized = self.resizer.resize(picture, (height, width));
        let pictures = Pictures::new(&resized.pixels, resized.frame, &[resized.size], Device::Cpu).unwrap();
        self.frozen.detect(&pictures).unwrap().remove(0)
    }

    fn compare(&mut self, what: &str, size: [usize; 2]) {
        let picture = noise(size, 1);
        let expected = self.expected(&picture, size);
        let found = self.file.detect(&tensor(&picture, size)).unwrap();
        assert_eq!(found.len(), 1, "{what}");
        assert_same(&format!("{what} {size:?}"), &expected, &found[0]);
        if let Some(onnx) = &mut self.onnx {
            let [height, width] = size;
            let found = onnx.detect(&RgbImage { width, height, data: picture }).unwrap();
            assert_same(&format!("{what} {size:?} in onnxruntime"), &expected, &found);
        }
    }
}

fn tensor(pictures: &[u8], [height, width]: [usize; 2]) -> Tensor {
    Tensor::from_slice(pictures).view([-1, height as i64, width as i64, 3])
}

/// Smooth noise, so that resizing does not make it grey.
fn noise([height, width]: [usize; 2], seed: usize) -> Vec<u8> {
    let value = |y: usize, x: usize, c: usize| {
        let at = (y * (3 + seed)) as f32 * 0.11 + (x * (5 + c)) as f32 * 0.07 + (x * y) as f32 * 0.001 + c as f32;
        (127.5 + 127.5 * at.sin()) as u8
    };
    (0..height * width * 3).map(|i| value(i / 3 / width, i / 3 % width, i % 3)).collect()
}

/// Every detection of one side has its own partner of the same class on the other, near in score and place.
#[track_caller]
fn assert_same(what: &str, expected: &Detections, found: &Detections) {
    assert_eq!(expected.scores.len(), found.scores.len(), "{what}");
    assert!(!expected.scores.is_empty(), "{what}: nothing to compare");
    let mut free: Vec<usize> = (0..found.scores.len()).collect();
    for i in 0..expected.scores.len() {
        let off = |j: usize| {
            // What is no number is as far off as can be; `f32::max` would pass over it.
            let apart = |a: f32, b: f32| Some((a - b).abs()).filter(|apart| !apart.is_nan()).unwrap_or(f32::INFINITY);
            let boxes = expected.boxes[i].iter().zip(&found.boxes[j]).map(|(&a, &b)| apart(a, b));
            boxes.fold(apart(expected.scores[i], found.scores[j]), f32::max)
        };
        let same = free.iter().copied().filter(|&j| found.classes[j] == expected.classes[i]);
        let nearest = same.min_by(|&a, &b| off(a).total_cmp(&off(b))).unwrap_or_else(|| panic!("{what}: {i} has no partner"));
        assert!(off(nearest) <= TOLERANCE, "{what}: {i} is {} off", off(nearest));
        free.retain(|&j| j != nearest);
    }
}

const SIZES: [[usize; 2]; 5] = [[1, 1], [300, 300], [40, 640], [320, 20], [96, 160]];

#[test]
fn an_ssds_file_finds_what_the_model_finds_in_pictures_of_any_size() {
    for name in ["ssd_mobilenet_v1_coco", "ssd_mobilenet_v2_coco", "ssd_inception_v2_coco"] {
        let mut both = Both::new(&ssd(name));
        SIZES.iter().for_each(|&size| both.compare(name, size));
    }
}

/// An SSD with another resizer.
fn ssd_resized(resizer: &str) -> pb::TrainEvalPipelineConfig {
    let text = "fixed_shape_resizer {\n        height: 300\n        width: 300\n      }";
    zoo_config("ssd_mobilenet_v1_coco", &[(text, resizer), ("depth_multiplier: 1.0", "depth_multiplier: 0.25")])
}

#[test]
fn a_file_resizes_pads_and_greys_as_the_model_does() {
    let keep = |more: &str| format!("keep_aspect_ratio_resizer {{ min_dimension: 96 max_dimension: 160 {more} }}");
    let fixed = |more: &str| format!("fixed_shape_resizer {{ height: 96 width: 160 {more} }}");
    for resizer in [
        keep(""),
        keep("pad_to_max_dimension: true"),
        keep("pad_to_max_dimension: true per_channel_pad_value: [10, 20, 30] resize_method: NEAREST_NEIGHBOR"),
        keep("pad_to_max_dimension: true convert_to_grayscale: true resize_method: AREA per_channel_pad_value: [10, 20, 30]"),
        fixed("resize_method: NEAREST_NEIGHBOR"),
        fixed("resize_method: BICUBIC"),
        fixed("resize_method: AREA"),
        fixed("convert_to_grayscale: true"),
    ] {
        let mut both = Both::new(&ssd_resized(&resizer));
        SIZES.iter().for_each(|&size| both.compare(&resizer, size));
    }
    // Anchors with strides and offsets of their own, in pixels of pictures whose size is not known before.
    let mut strided = ssd_resized(&keep(""));
    let Some(pb::detection_model::Model::Ssd(model)) = strided.model.as_mut().unwrap().model.as_mut() else { panic!() };
    let generator = model.anchor_generator.as_mut().unwrap().anchor_generator_oneof.as_mut().unwrap();
    let pb::anchor_generator::AnchorGeneratorOneof::SsdAnchorGenerator(anchors) = generator else { panic!() };
    anchors.height_stride = vec![16, 32, 64, 96, 96, 96];
    anchors.width_stride = vec![16, 32, 64, 100, 120, 160];
    anchors.height_offset = vec![8, 16, 32, 48, 48, 48];
    anchors.width_offset = vec![8, 16, 32, 50, 60, 80];
    let mut both = Both::new(&strided);
    SIZES.iter().for_each(|&size| both.compare("strides", size));
    for (name, more) in [
        ("faster_rcnn_inception_v2_coco", "pad_to_max_dimension: true"),
        ("faster_rcnn_resnet50_coco", "pad_to_max_dimension: true per_channel_pad_value: [124, 117, 104]"),
        ("faster_rcnn_inception_v2_coco", "resize_method: BICUBIC convert_to_grayscale: true"),
        ("rfcn_resnet101_coco", "pad_to_max_dimension: true"),
    ] {
        let text = format!("model {{ faster_rcnn {{ image_resizer {{ {} }} }} }}", keep(more));
        let Some(pb::detection_model::Model::FasterRcnn(with)) = pipeline::parse(&text, name).unwrap().model.unwrap().model
        else {
            panic!()
        };
        let mut both = Both::new(&two_stages(name, |model| model.image_resizer = with.image_resizer));
        [[300, 300], [40, 640], [96, 160]].iter().for_each(|&size| both.compare(&format!("{name} {more}"), size));
    }
}

#[test]
fn a_batch_finds_what_each_picture_finds_alone() {
    let configs = [ssd("ssd_mobilenet_v1_coco"), two_stages("faster_rcnn_inception_v2_coco", |_| {})];
    for (what, config) in ["SSD", "Faster R-CNN"].iter().zip(&configs) {
        let both = Both::new(config);
        let size = [100, 150];
        let mut pictures: Vec<Vec<u8>> = (0..3).map(|seed| noise(size, seed)).collect();
        // A grey picture, given as three channels.
        pictures[2].chunks_exact_mut(3).for_each(|pixel| pixel.fill(pixel[0]));
        let found = both.file.detect(&tensor(&pictures.concat(), size)).unwrap();
        assert_eq!(found.len(), 3);
        for (i, (picture, found)) in pictures.iter().zip(&found).enumerate() {
            assert_same(&format!("{what} picture {i}"), &both.expected(picture, size), found);
        }
    }
}

#[test]
fn a_faster_rcnns_file_finds_what_the_model_finds_in_pictures_of_any_size() {
    let name = "faster_rcnn_inception_v2_coco";
    let mut both = Both::new(&two_stages(name, |_| {}));
    SIZES.iter().for_each(|&size| both.compare(name, size));
    let mut both = Both::new(&two_stages(name, |m| fixed(m, 70, 90)));
    SIZES[1..3].iter().for_each(|&size| both.compare("a fixed size", size));
    // ResNet's paddings and its second stage; without pooling of the crops.
    let changed = two_stages("faster_rcnn_resnet50_coco", |m| {
        m.initial_crop_size = Some(5);
        m.maxpool_kernel_size = Some(1);
        m.maxpool_stride = Some(1);
    });
    SIZES[1..3].iter().for_each(|&size| Both::new(&changed).compare("resnet50", size));
    // The ONNX file has the second stage in parts, here three of 24 regions, two of them too many.
    let many = two_stages(name, |m| m.first_stage_max_proposals = Some(70));
    Both::new(&many).compare("70 regions", [96, 160]);
}

#[test]
fn an_rfcns_file_finds_what_the_model_finds_in_pictures_of_any_size() {
    use pb::box_predictor::BoxPredictorOneof as P;
    let rfcn = |bins: [i32; 2], crop: [i32; 2]| {
        two_stages("faster_rcnn_inception_v2_coco", |m| {
            let predictor = pb::RfcnBoxPredictor {
                num_spatial_bins_height: Some(bins[0]),
                num_spatial_bins_width: Some(bins[1]),
                depth: Some(32),
                crop_height: Some(crop[0]),
                crop_width: Some(crop[1]),
                ..Default::default()
            };
            m.second_stage_box_predictor.as_mut().unwrap().box_predictor_oneof = Some(P::RfcnBoxPredictor(predictor));
        })
    };
    let mut both = Both::new(&rfcn([3, 3], [18, 18]));
    SIZES.iter().for_each(|&size| both.compare("R-FCN", size));
    // One sample a bin lies in its middle.
    Both::new(&rfcn([2, 3], [8, 3])).compare("R-FCN of other bins", [200, 300]);
}

#[test]
fn tchs_own_reader_runs_the_file_too() {
    let (_work, export) = exported();
    let model = tch::CModule::load(export.join(TORCHSCRIPT)).unwrap();
    let (size, picture) = ([50, 70], noise([50, 70], 1));
    let found = model.forward_is(&[IValue::Tensor(tensor(&picture, size))]).unwrap();
    let (boxes, scores, classes, count): (Tensor, Tensor, Tensor, Tensor) = found.try_into().unwrap();
    assert_eq!((boxes.size(), scores.size(), classes.size()), (vec![1, 100, 4], vec![1, 100], vec![1, 100]));
    assert!([&boxes, &scores, &classes, &count].iter().all(|x| x.kind() == Kind::Float && !x.requires_grad()));
    let ours = TorchScriptModel::open(&export.join(TORCHSCRIPT), Device::Cpu).unwrap().detect(&tensor(&picture, size)).unwrap();
    assert_eq!(count.double_value(&[0]) as usize, ours[0].scores.len());
    assert!((scores.double_value(&[0, 0]) as f32 - ours[0].scores[0]).abs() < TOLERANCE);
    assert_eq!(classes.double_value(&[0, 0]) as usize, ours[0].classes[0] + 1);
    let said: String = model.method_is::<IValue>("metadata", &[]).unwrap().try_into().unwrap();
    let said: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert_eq!(said["model"], "모델");
    assert_eq!(said["classes"], serde_json::json!([{ "id": 1, "name": "cat" }, { "id": 3, "name": "개" }]));
    assert_eq!(said["input"]["shape"], serde_json::json!([-1, -1, -1, 3]));
    assert_eq!(said["outputs"][3]["name"], "num_detections");
}

/// The paddings and poolings of the large backbones, on maps whose size is not known beforehand.
#[test]
#[ignore = "minutes and some GiB"]
fn the_large_backbones_files_find_what_the_models_find() {
    for name in
        ["faster_rcnn_resnet101_coco", "rfcn_resnet101_coco", "faster_rcnn_inception_resnet_v2_atrous_coco", "faster_rcnn_nas"]
    {
        let mut both = Both::new(&two_stages(name, |m| resized(m, 96, 200)));
        [[301, 300], [40, 640]].iter().for_each(|&size| both.compare(name, size));
    }
}

#[test]
fn what_is_no_batch_of_pictures_is_refused_in_words() {
    let both = Both::new(&ssd("ssd_mobilenet_v1_coco"));
    for wrong in [Tensor::from_slice(&[1u8, 2, 3]), Tensor::from_slice(&[1f32; 12]).view([1, 2, 2, 3])] {
        let error = both.file.detect(&wrong).unwrap_err().to_string();
        assert!(error.contains("uint8 [N, height, width, 3]"), "{error}");
    }
    let none = Tensor::from_slice::<u8>(&[]).view([0, 4, 4, 3]);
    assert!(format!("{:#}", both.file.detect(&none).unwrap_err()).contains("image_tensor must be"));
}

/// An exported folder of the zoo's smallest model with 3 classes, and the folder above it.
fn exported() -> (tempfile::TempDir, PathBuf) {
    let work = tempfile::tempdir().unwrap();
    let config = ssd("ssd_mobilenet_v1_0.75_depth_coco");
    let detector = Detector::from_config(&config).unwrap();
    let tensors: Vec<(String, TensorData)> = detector
        .model()
        .variables()
        .iter()
        .map(|v| (v.name.clone(), TensorData::from_f32(&v.shape, &reference::weight(&v.name, &v.shape))))
        .collect();
    let prefix = work.path().join("model.ckpt-1");
    tensor_bundle::write(&prefix, tensors.iter().map(|(n, t)| (n.as_str(), t.clone()))).unwrap();
    let label_map = LabelMap::parse("item { id: 1 name: 'cat' } item { id: 3 name: 'dog' display_name: '개' }", "map").unwrap();
    let output = work.path().join("export_dir/모델");
    let input = ExportInput::new("모델", &config, &label_map, &prefix, &output);
    folder::run(&input, None).unwrap();
    (work, output)
}

fn detect(folder: &Path, arguments: &[&str]) -> (Option<i32>, String) {
    let mut command = Command::new(assert_cmd::cargo::cargo_bin!("odh"));
    let output = command.current_dir(folder).arg("detect").args(arguments).args(["--device", "cpu"]).output().unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

fn detections(folder: &Path) -> serde_json::Value {
    serde_json::from_slice(&fs::read(folder.join("detections.json")).unwrap()).unwrap()
}

#[test]
fn the_command_takes_the_file_alone_and_finds_the_same() {
    let (work, export) = exported();
    let folder = work.path();
    fs::create_dir(folder.join("photos")).unwrap();
    for (name, height, width) in [("a.png", 60, 90), ("b.jpg", 200, 33)] {
        let picture = RgbImage { width, height, data: noise([height, width], 1) };
        let format = if name.ends_with("png") { Format::Png } else { Format::Jpeg };
        fs::write(folder.join("photos").join(name), encode::encode(&picture, format).unwrap()).unwrap();
    }
    let with = |model: &str, output: &str| {
        let (code, said) = detect(folder, &["photos", "-m", model, "--min_score", "0.1", "--output_dir", output]);
        assert_eq!(code, Some(0), "{said}");
        detections(&folder.join(output))
    };
    let expected = with("모델", "by_name");
    let mut files = vec![(TORCHSCRIPT, "elsewhere.pt")];
    if has_onnxruntime() {
        files.push((ONNX, "elsewhere.onnx"));
    }
    for (file, alone) in files {
        fs::copy(export.join(file), folder.join(alone)).unwrap();
        let output = format!("by {alone}");
        same_detections(&expected, &with(alone, &output), &folder.join(output));
        // Other names for the classes.
        fs::write(folder.join("map.pbtxt"), "item { id: 3 name: 'fox' }").unwrap();
        let words = ["photos/a.png", "-m", alone, "-l", "map.pbtxt", "--output_dir", "named", "--min_score", "0.1"];
        let (code, said) = detect(folder, &words);
        assert_eq!(code, Some(0), "{said}");
        assert!(detections(&folder.join("named"))["a.png"].to_string().contains("fox"));
    }
}

/// Every picture's detections are the same in two detections.json, and written beside the second.
#[track_caller]
fn same_detections(expected: &serde_json::Value, found: &serde_json::Value, folder: &Path) {
    let (mut rows, mut korean) = (0, 0);
    for (name, expected) in expected.as_object().unwrap() {
        let both = [expected, &found[name]].map(|picture| {
            let list = picture["detections"].as_array().unwrap().iter();
            let class = |d: &serde_json::Value| d["class_id"].as_u64().unwrap() as usize;
            let number = |v: &serde_json::Value| v.as_f64().unwrap() as f32;
            korean += list.clone().filter(|d| d["class"] == "개" && class(d) == 3).count();
            Detections {
                boxes: list.clone().map(|d| std::array::from_fn(|i| number(&d["box"][i]))).collect(),
                scores: list.clone().map(|d| number(&d["score"])).collect(),
                classes: list.map(class).collect(),
            }
        });
        assert_same(name, &both[0], &both[1]);
        rows += both[0].scores.len();
        assert!(folder.join(name).is_file());
    }
    assert!(korean > 0, "no detection of a class with another display name");
    assert_eq!(fs::read_to_string(folder.join("detections.csv")).unwrap().lines().count(), rows + 1);
}

#[test]
fn a_file_that_cannot_be_run_is_named_with_what_can_be_run_instead() {
    let (work, export) = exported();
    let folder = work.path();
    let picture = RgbImage { width: 4, height: 4, data: vec![9; 48] };
    fs::write(folder.join("a.png"), encode::encode(&picture, Format::Png).unwrap()).unwrap();
    let fails = |model: &str, parts: &[&str]| {
        let (code, said) = detect(folder, &["a.png", "-m", model]);
        assert_eq!(code, Some(1), "{model}: {said}");
        assert!(parts.iter().all(|part| said.contains(part)), "{model}: {said}");
        assert!(!said.contains("panicked") && !said.contains("RUST_BACKTRACE"), "{said}");
    };
    fails("export_dir/모델/frozen_inference_graph.pb", &["TensorFlow runs", TORCHSCRIPT]);
    fails("gone.pt", &["`gone.pt`", "not there"]);
    let good = fs::read(export.join(TORCHSCRIPT)).unwrap();
    for keep in [4, 100, good.len() / 2, good.len() - 10] {
        fs::write(folder.join("cut.pt"), &good[..keep]).unwrap();
        fails("cut.pt", &["`cut.pt`", "damaged"]);
    }
    // A bit of a weight, of the code, and of the checksum of the last file in the directory at the end.
    let entry = good.windows(4).rposition(|w| w == b"PK\x01\x02").unwrap();
    let name = b"code/__torch__.py";
    let code = good.windows(name.len()).position(|w| w == name).unwrap() + name.len();
    for at in [good.len() / 2, code + 500, entry + 16] {
        let mut bad = good.clone();
        bad[at] ^= 4;
        let name = format!("bad_{at}.pt");
        fs::write(folder.join(&name), &bad).unwrap();
        fails(&name, &[&name, "damaged"]);
    }
}
