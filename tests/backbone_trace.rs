//! The two large backbones against the original TensorFlow code, operation by operation (formats and tolerances: reference/README.md).
//!
//! Whole pictures take minutes and gigabytes: `cargo test --release --test backbone_trace -- --ignored --test-threads 1`.

mod common;
#[path = "common/reference.rs"]
mod reference;

use std::collections::HashMap;
use std::io::Read;
use std::sync::Arc;

use odh::backbones::faster_rcnn::{StageOptions, backbone};
use odh::data::image::decode_accurate;
use odh::data::resize::resize_bilinear;
use odh::net::exec::Inference;
use odh::net::graph::{Graph, NodeId, Op};
use odh::net::layers::Scope;
use odh::net::shim::crop_and_resize;
use odh::net::variables::Variables;
use reference::{Golden, set_regenerated_weights, variable_table};
use tch::{Device, Kind, Tensor};

const FIRST: &str = "FirstStageFeatureExtractor";
const SECOND: &str = "SecondStageFeatureExtractor";
const INCEPTION_RESNET_V2: &str = "faster_rcnn_inception_resnet_v2_atrous_coco_2018_01_28";
const NAS: &str = "faster_rcnn_nas_coco_2018_01_28";

/// Of a tensor's largest magnitude.
const TOLERANCE: f64 = 1e-4;

/// Both halves of a backbone; the first half's input is called `image`, the second's `crops`, their results `features`.
struct Halves {
    first: Graph,
    second: Graph,
}

fn halves(model: &str) -> Halves {
    let (name, stride) = if model == NAS { ("faster_rcnn_nas", 16) } else { ("faster_rcnn_inception_resnet_v2", 8) };
    let options = StageOptions { stride, train_batch_norm: false };
    let backbone = backbone(name, &options, "feature_extractor").unwrap();
    let (mut first, mut second) = (Graph::new(), Graph::new());
    let image = first.input("image", 3);
    let features = (backbone.first_stage)(&mut first, image, &Scope::new(FIRST), &options);
    let crops = second.input("crops", first.channels(features));
    let classifier_features = (backbone.second_stage)(&mut second, crops, &Scope::new(SECOND), &options);
    first.output("features", features);
    second.output("features", classifier_features);
    Halves { first, second }
}

#[test]
fn the_variable_tables_equal_the_references() {
    for model in [INCEPTION_RESNET_V2, NAS] {
        let Some(path) = common::shared(&format!("reference/variables/{model}.txt")) else { return };
        let Halves { first, second } = halves(model);
        let mut mine: Vec<_> = first.variables().iter().chain(second.variables()).collect();
        mine.sort_by(|a, b| a.name.cmp(&b.name));
        let table = variable_table(&path);
        let rows: Vec<_> = table.iter().filter(|r| r.name.starts_with(FIRST) || r.name.starts_with(SECOND)).collect();
        let names = |missing: Vec<&str>| missing.into_iter().take(10).collect::<Vec<_>>().join(", ");
        let extra = mine.iter().filter(|v| !rows.iter().any(|r| r.name == v.name)).map(|v| v.name.as_str()).collect();
        let missing = rows.iter().filter(|r| !mine.iter().any(|v| r.name == v.name)).map(|r| r.name.as_str()).collect();
        assert_eq!(mine.len(), rows.len(), "{model}: too many: {}; too few: {}", names(extra), names(missing));
        for (variable, row) in mine.iter().zip(rows) {
            assert_eq!(variable.name, row.name);
            assert_eq!(variable.shape, row.shape_90, "{}", row.name);
            assert_eq!(row.shape_90, row.shape_5, "{}", row.name);
            assert_eq!(variable.trainable, row.trainable, "{}", row.name);
        }
    }
}

#[test]
fn nasnet_trains_the_reference_number_of_batch_norms() {
    let count = |graph: &Graph, train: bool| {
        graph.nodes().iter().filter(|n| matches!(n.op, Op::BatchNorm(norm) if norm.train == train)).count()
    };
    let Halves { first, second } = halves(NAS);
    assert_eq!((count(&first, true), count(&first, false)), (180, 0));
    assert_eq!((count(&second, true), count(&second, false)), (0, 84));
}

#[test]
fn a_feature_stride_of_sixteen_has_no_dilation() {
    let mut graph = Graph::new();
    let image = graph.input("image", 3);
    let features = |graph: &mut Graph, stride| {
        let options = StageOptions { stride, train_batch_norm: false };
        let backbone = backbone("faster_rcnn_inception_resnet_v2", &options, "feature_extractor").unwrap();
        let features = (backbone.first_stage)(graph, image, &Scope::new("x"), &options);
        graph.sizes([600, 850])[features.0]
    };
    let eight = features(&mut graph, 8);
    assert_eq!(eight, [75, 107]);
    let first_of_sixteen = graph.nodes().len();
    assert_eq!(features(&mut graph, 16), [38, 54]);
    let dilated = |node: &odh::net::graph::Node| matches!(node.op, Op::Conv2d { window, .. } if window.dilation != [1, 1]);
    assert!(graph.nodes()[..first_of_sixteen].iter().any(dilated));
    assert!(!graph.nodes()[first_of_sixteen..].iter().any(dilated));
}

#[test]
#[ignore = "takes a minute and 3 GiB"]
fn inception_resnet_v2_equals_the_traced_operations() {
    equals_the_trace(INCEPTION_RESNET_V2, [600, 853], 100);
}

#[test]
#[ignore = "takes minutes and 5 GiB"]
fn nasnet_equals_the_traced_operations() {
    equals_the_trace(NAS, [1200, 1200], 50);
}

/// Runs both halves on `image1.jpg`, the second in chunks of `chunk` of the golden proposals.
fn equals_the_trace(model: &str, size: [usize; 2], chunk: i64) {
    let Some(path) = common::shared(&format!("reference/trace/{model}__image1.json.gz")) else { return };
    let Some(golden) = common::shared(&format!("reference/golden/{model}__image1.npz")) else { return };
    let Some(jpeg) = common::shared("reference/images/image1.jpg") else { return };
    let (trace, golden) = (read_trace(&path), Golden::open(&golden));
    let Halves { first, second } = halves(model);

    let image = decode_accurate(&std::fs::read(jpeg).unwrap()).unwrap();
    let pixels = resize_bilinear(&image.data, image.height, image.width, 3, size[0], size[1]);
    let images = Tensor::from_slice(&pixels).view([1, size[0] as i64, size[1] as i64, 3]) * (2.0 / 255.0) - 1.0;
    let d = golden.difference("preprocessed", &Vec::<f32>::try_from(images.view([-1])).unwrap());
    assert!(d < 1e-6, "preprocessed: {d}");

    let (features, compared) = compare(&first, &images.permute([0, 3, 1, 2]), 1, &trace);
    eprintln!("{model}: {compared} operations of the first half compared");
    let values = Vec::<f32>::try_from(features.permute([0, 2, 3, 1]).contiguous().view([-1])).unwrap();
    let d = golden.difference("pred/rpn_features_to_crop", &values);
    assert!(d < TOLERANCE, "features: {d}");
    drop(values);

    let corners = golden.f32("pred/proposal_boxes_normalized");
    let boxes: Vec<[f32; 4]> = corners.chunks_exact(4).map(|b| [b[0], b[1], b[2], b[3]]).collect();
    let crops = |from: i64, count: i64| {
        let boxes = &boxes[from as usize..(from + count) as usize];
        crop_and_resize(&features, boxes, &vec![0; boxes.len()], [17, 17]).unwrap()
    };
    let total = boxes.len() as i64;
    let (_, compared) = compare_chunks(&second, &crops, (total, chunk), &trace);
    eprintln!("{model}: {compared} operations of the second half compared");
}

fn compare(graph: &Graph, input: &Tensor, count: i64, trace: &HashMap<String, Traced>) -> (Tensor, usize) {
    compare_chunks(graph, &|_, _| input.shallow_clone(), (count, count), trace)
}

/// Runs the graph on each chunk of the batch, and compares every operation that the trace knows too. Gives the last chunk's features and how
/// many operations were compared.
fn compare_chunks(
    graph: &Graph,
    input: &dyn Fn(i64, i64) -> Tensor,
    (total, chunk): (i64, i64),
    trace: &HashMap<String, Traced>,
) -> (Tensor, usize) {
    let graph = Arc::new(graph.clone());
    let mut variables = Variables::new(graph.variables(), 0, Device::Cpu).unwrap();
    set_regenerated_weights(&mut variables);
    let inference = Inference::new(&graph, &variables).unwrap();
    drop(variables);
    let mut summaries: HashMap<NodeId, Summary> = HashMap::new();
    let mut features = None;
    for from in (0..total).step_by(chunk as usize) {
        let count = chunk.min(total - from);
        let mut observe = |id: NodeId, value: &Tensor| {
            summaries.entry(id).or_insert_with(|| Summary::new(value, total)).add(value, from);
            Ok(())
        };
        features = inference.run_observed(&input(from, count), &mut observe).unwrap().remove("features");
    }
    let mut compared = 0;
    let mut wrong = Vec::new();
    for (id, summary) in &summaries {
        let name = &graph.node(*id).name;
        let suffixed = |suffix: &str| trace.get(&format!("{name}{suffix}"));
        // TensorFlow 1 dilates by sorting cells into the batch and back.
        let traced = suffixed("/BatchToSpaceND").or_else(|| suffixed("/FusedBatchNormV3")).or_else(|| suffixed(""));
        if let Some(traced) = traced {
            compared += 1;
            if let Some(difference) = summary.difference(traced) {
                wrong.push((id.0, format!("{name}: {difference}")));
            }
        }
    }
    wrong.sort();
    let listed: Vec<&str> = wrong.iter().take(5).map(|(_, text)| text.as_str()).collect();
    assert!(wrong.is_empty(), "{} of {compared} operations differ; the first: {}", wrong.len(), listed.join("; "));
    // What the executor folds into other operations is not seen: convolutions before their batch norms, and batch norms before their
    // activations. All else is.
    let expected = trace.keys().filter(|name| graph.find(name).is_some_and(|id| is_last_of_its_layer(&graph, id))).count();
    assert!(compared >= expected && compared > 50, "{compared} of at least {expected} operations were compared");
    (features.unwrap(), compared)
}

/// Whether no batch norm, bias or activation that the executor folds into the node reads its value.
fn is_last_of_its_layer(graph: &Graph, id: NodeId) -> bool {
    let joins = |op: &Op| matches!(op, Op::BatchNorm(_) | Op::BiasAdd { .. } | Op::Activation(_) | Op::Scale(_));
    // A duplicate of an earlier operation is computed once, under the earlier one's name.
    let node = graph.node(id);
    let folded = |reader: &Op| joins(reader) && node.op != Op::Add;
    let duplicate = graph.nodes()[..id.0].iter().any(|other| other.op == node.op && other.inputs == node.inputs);
    !duplicate && !graph.nodes().iter().any(|n| n.inputs.contains(&id) && folded(&n.op))
}

/// One operation's value in TensorFlow, NHWC.
struct Traced {
    shape: Vec<i64>,
    mean: f64,
    std: f64,
    largest: f64,
    samples: Vec<f64>,
}

fn read_trace(path: &std::path::Path) -> HashMap<String, Traced> {
    let mut text = String::new();
    flate2::read::GzDecoder::new(std::fs::File::open(path).unwrap()).read_to_string(&mut text).unwrap();
    let parsed: serde_json::Value = serde_json::from_str(&text).unwrap();
    let numbers = |v: &serde_json::Value| v.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect::<Vec<f64>>();
    let row = |v: &serde_json::Value| {
        let traced = Traced {
            shape: numbers(&v["shape"]).iter().map(|&d| d as i64).collect(),
            mean: v["mean"].as_f64().unwrap(),
            std: v["std"].as_f64().unwrap(),
            largest: v["absmax"].as_f64().unwrap(),
            samples: numbers(&v["samples"]),
        };
        (v["op"].as_str().unwrap().to_string(), traced)
    };
    parsed.as_array().unwrap().iter().map(row).collect()
}

/// The same numbers of one of our values, gathered chunk by chunk.
struct Summary {
    shape: Vec<i64>,
    sum: f64,
    squares: f64,
    largest: f64,
    samples: [f64; 16],
}

impl Summary {
    /// * `value`: a first chunk, for its shape; `total`: the whole batch.
    fn new(value: &Tensor, total: i64) -> Self {
        let s = value.size();
        Self { shape: vec![total, s[2], s[3], s[1]], sum: 0.0, squares: 0.0, largest: 0.0, samples: [f64::NAN; 16] }
    }

    /// * `from`: the chunk's place in the batch.
    fn add(&mut self, value: &Tensor, from: i64) {
        let flat = value.permute([0, 2, 3, 1]).contiguous().view([-1]);
        self.sum += flat.sum(Kind::Double).double_value(&[]);
        self.squares += flat.square().sum(Kind::Double).double_value(&[]);
        self.largest = self.largest.max(flat.abs().max().double_value(&[]));
        let n: i64 = self.shape.iter().product();
        let start = from * n / self.shape[0];
        for (k, sample) in self.samples.iter_mut().enumerate() {
            let at = (n * k as i64 / 16 + n / 32).min(n - 1) - start;
            if (0..flat.size()[0]).contains(&at) {
                *sample = flat.double_value(&[at]);
            }
        }
    }

    /// What differs by more than the tolerance, if anything does.
    fn difference(&self, traced: &Traced) -> Option<String> {
        if self.shape != traced.shape {
            return Some(format!("shape {:?} is not {:?}", self.shape, traced.shape));
        }
        let n = self.shape.iter().product::<i64>() as f64;
        let mean = self.sum / n;
        let std = (self.squares / n - mean * mean).max(0.0).sqrt();
        let mine = [mean, std, self.largest].into_iter().chain(self.samples);
        let theirs = [traced.mean, traced.std, traced.largest].into_iter().chain(traced.samples.iter().copied());
        let limit = TOLERANCE * traced.largest;
        let off = |(i, (a, b)): (usize, (f64, f64))| {
            let what = ["mean", "standard deviation", "largest magnitude"].get(i).copied().unwrap_or("a sample");
            // A sample that was never seen is no number.
            let close = (a - b).abs() <= limit;
            (!close).then(|| format!("{what} {a} is not {b} (within {limit:.1e})"))
        };
        mine.zip(theirs).enumerate().find_map(off)
    }
}
