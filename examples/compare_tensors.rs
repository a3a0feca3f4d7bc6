//! Compares what a pipeline config's model computes with tensors that another program wrote for it: a tool for checking configs beyond the zoo's.
//!
//! ```text
//! cargo run --release --example compare_tensors -- PICTURES VARIANT.config VARIANT.npz [VARIANT.config VARIANT.npz ...]
//! ```
//!
//! Weights are those of the recipe in reference/README.md. The npz file has keys as the golden ones: `var/NAME` (shape), `tvar/NAME` (trainable),
//! `init/NAME` (mean, deviation, least and greatest of its random start), `i/...` inference on image1, `t/...` one training step on image1
//! (`batch` 2: and image2), `grad/NAME/{l2,s}`, `delta/NAME/{l2,s}`.
//! With a key `float64` both sides are float64, losses and gradients alone, with `grad/NAME/{sum,max}` too (tests/interop/gradients.py writes it).

#[allow(dead_code)]
#[path = "../tests/common/reference.rs"]
mod reference;

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use odh::config::pipeline;
use odh::data::image::decode_accurate;
use odh::detection::boxes::{BBox, Detections, Groundtruth};
use odh::detection::sampler::Shuffle;
use odh::engine::optimizer::Optimizer;
use odh::models;
use odh::models::box_classifier::{BoxClassifierLoss, Regioned};
use odh::models::faster_rcnn::FasterRcnn;
use odh::models::pictures::{Frame, Pictures};
use odh::models::rpn::{Phase, RpnLoss};
use odh::models::ssd::Ssd;
use odh::net::exec::{self, Inference, MovingUpdate};
use odh::net::graph::Regularizer;
use odh::net::variables::{Variables, values_in_tensorflow_layout};
use odh::proto::object_detection::protos as pb;
use reference::{Golden, nhwc, rows, set_regenerated_weights, values, with_outputs};
use tch::{Device, Kind, Tensor};

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [pictures, pairs @ ..] = args.as_slice() else { bail!("usage: compare_tensors PICTURES CONFIG NPZ ...") };
    ensure!(pairs.len().is_multiple_of(2) && !pairs.is_empty(), "each CONFIG needs its NPZ");
    let mut different = false;
    for pair in pairs.chunks_exact(2) {
        let name = Path::new(&pair[0]).file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let mut report = Report { lines: Vec::new(), worst: BTreeMap::new() };
        match compare(Path::new(pictures), Path::new(&pair[0]), Path::new(&pair[1]), &mut report) {
            Ok(()) => {}
            Err(e) => report.lines.push(format!("ERROR {e:#}")),
        }
        let worst: Vec<String> = report.worst.iter().map(|(k, (d, n))| format!("{k} {d:.0e} ({n})")).collect();
        println!("{name}: {}", worst.join(", "));
        report.lines.iter().take(12).for_each(|line| println!("    {line}"));
        different |= !report.lines.is_empty();
    }
    if different {
        bail!("there are differences");
    }
    Ok(())
}

/// What differs.
struct Report {
    lines: Vec<String>,
    /// Of a kind of tensor: the largest difference, and how many were compared.
    worst: BTreeMap<String, (f64, usize)>,
}

impl Report {
    fn add(&mut self, kind: &str, what: &str, difference: f64, tolerance: f64) {
        let entry = self.worst.entry(kind.to_string()).or_insert((0.0, 0));
        entry.0 = entry.0.max(if difference.is_nan() { f64::INFINITY } else { difference });
        entry.1 += 1;
        if difference.is_nan() || difference > tolerance {
            self.lines.push(format!("{kind} {what}: {difference:.1e}"));
        }
    }

    fn tensor(&mut self, golden: &Golden, kind: &str, key: &str, mine: &[f32], tolerance: f64) {
        if !golden.has(key) {
            return self.lines.push(format!("{key} is not in the npz"));
        }
        let n = golden.get(key).len();
        if n != mine.len() {
            return self.lines.push(format!("{kind} {key}: {} elements for {n}", mine.len()));
        }
        self.add(kind, key, golden.difference(key, mine), tolerance);
    }

    fn scalar(&mut self, golden: &Golden, kind: &str, key: &str, mine: f64, tolerance: f64) {
        if !golden.has(key) {
            return self.lines.push(format!("{key} is not in the npz"));
        }
        let expected = golden.scalar(key);
        let difference = (mine - expected).abs() / expected.abs().max(1e-6);
        self.add(kind, &format!("{key} {mine} for {expected}"), difference, tolerance);
    }
}

fn compare(pictures: &Path, config: &Path, npz: &Path, report: &mut Report) -> Result<()> {
    let config = pipeline::load(config)?;
    for note in pipeline::check_supported(&config)? {
        eprintln!("    note: {note}");
    }
    let golden = Golden::open(npz);
    let model = models::from_config(&config)?;
    if !(golden.keys("var/").is_empty() && golden.keys("tvar/").is_empty()) {
        variables(&golden, model.variables(), report);
    }
    if !report.lines.is_empty() {
        bail!("the variable tables differ");
    }
    let mut weights = Variables::new(model.variables(), 0, Device::Cpu)?;
    initial_values(&golden, &weights, report)?;
    let double = golden.has("float64");
    if !golden.has("i/preprocessed") && !golden.has("t/preprocessed") && !double {
        return Ok(());
    }
    set_regenerated_weights(&mut weights);
    let pictures = |names: &[&str]| -> Result<Pictures> {
        let (mut pixels, mut frame, mut sizes) = (Vec::new(), (0, 0), Vec::new());
        for name in names {
            let file = pictures.join(format!("{name}.jpg"));
            let image = decode_accurate(&std::fs::read(&file).with_context(|| file.display().to_string())?)?;
            let resized = model.resizer().resize(&image.data, (image.height, image.width));
            pixels.extend(resized.pixels);
            frame = resized.frame;
            sizes.push(resized.size);
        }
        Pictures::new(&pixels, frame, &sizes, Device::Cpu)
    };
    let names: &[&str] = if golden.has("batch") && golden.scalar("batch") == 2.0 { &["image1", "image2"] } else { &["image1"] };
    let truth: Vec<Groundtruth> = names.iter().map(|name| groundtruth(&golden, name)).collect();
    let batch = pictures(names)?;
    match &config.model.as_ref().and_then(|m| m.model.as_ref()) {
        Some(pb::detection_model::Model::Ssd(c)) => {
            let ssd = Ssd::from_config(c)?;
            if golden.has("i/preprocessed") {
                ssd_inference(&golden, &ssd, &weights, &pictures(&["image1"])?, report)?;
            }
            if double {
                double_gradients(&golden, &weights, report, |weights| ssd_double(&ssd, weights, &batch, &truth))?;
            }
            if golden.has("t/preprocessed") {
                let moving = ssd_training(&golden, &ssd, &weights, &batch, &truth, report)?;
                step(&golden, &config, &mut weights, &moving, report)?;
            }
        }
        Some(pb::detection_model::Model::FasterRcnn(c)) => {
            let model = FasterRcnn::from_config(c)?;
            if golden.has("i/preprocessed") {
                faster_rcnn_inference(&golden, &model, &weights, &pictures(&["image1"])?, report)?;
            }
            if double {
                double_gradients(&golden, &weights, report, |weights| {
                    faster_rcnn_double(&golden, &model, weights, &batch, &truth)
                })?;
            }
            if golden.has("t/preprocessed") {
                let moving = faster_rcnn_training(&golden, &model, &weights, &batch, &truth, report)?;
                step(&golden, &config, &mut weights, &moving, report)?;
            }
        }
        None => bail!("no model"),
    }
    Ok(())
}

/// Mean, standard deviation, least and greatest of each variable's random start: in units of what chance allows.
fn initial_values(golden: &Golden, start: &Variables, report: &mut Report) -> Result<()> {
    for name in golden.keys("init/") {
        let Some(i) = start.position(&name) else {
            report.lines.push(format!("variable {name} is missing"));
            continue;
        };
        let values = start.to_tensorflow(i)?;
        let n = values.len() as f64;
        let mean = values.iter().map(|&v| f64::from(v)).sum::<f64>() / n;
        let deviation = (values.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / n).sqrt();
        let reach = values.iter().fold(0f64, |most, &v| most.max((f64::from(v) - mean).abs()));
        let other = golden.get(&format!("init/{name}"));
        let other_reach = (other[2] - other[0]).abs().max((other[3] - other[0]).abs());
        let chance = deviation.max(other[1]) * (2.0 / n).sqrt() + 1e-7;
        let what = format!("{name} {mean:.2e} +- {deviation:.3e} for {:.2e} +- {:.3e}", other[0], other[1]);
        report.add("initial means", &what, (mean - other[0]).abs() / chance, 5.0);
        report.add("initial deviations", &what, (deviation - other[1]).abs() / chance, 5.0);
        if n >= 1000.0 && other_reach > 0.0 {
            report.add(
                "initial reaches",
                &format!("{what}, {reach:.3e} for {other_reach:.3e}"),
                (reach / other_reach - 1.0).abs(),
                0.3,
            );
        }
    }
    Ok(())
}

fn groundtruth(golden: &Golden, name: &str) -> Groundtruth {
    let classes: Vec<usize> = golden.get(&format!("gt/{name}/classes0")).iter().map(|&c| c as usize).collect();
    let n = classes.len();
    let boxes = rows(&golden.f32(&format!("gt/{name}/boxes")));
    Groundtruth { boxes, classes, difficult: vec![false; n], crowd: vec![false; n] }
}

fn variables(golden: &Golden, mine: &[odh::net::graph::Variable], report: &mut Report) {
    let names = golden.keys("var/");
    let trainable = golden.keys("tvar/");
    let expected = if names.is_empty() { &trainable } else { &names };
    for name in expected {
        match mine.iter().find(|v| v.name == *name) {
            None => report.lines.push(format!("variable {name} is missing")),
            Some(v) => {
                if golden.has(&format!("var/{name}")) {
                    let shape: Vec<i64> = golden.get(&format!("var/{name}")).iter().map(|&d| d as i64).collect();
                    if shape != v.shape {
                        report.lines.push(format!("variable {name}: {:?} for {shape:?}", v.shape));
                    }
                }
                if golden.has(&format!("tvar/{name}")) && (golden.scalar(&format!("tvar/{name}")) == 1.0) != v.trainable {
                    report.lines.push(format!("variable {name}: trainable {}", v.trainable));
                }
            }
        }
    }
    for v in mine {
        if !expected.contains(&v.name) {
            report.lines.push(format!("variable {} {:?} is too many", v.name, v.shape));
        }
    }
    report.worst.insert("variables".into(), (0.0, expected.len()));
}

fn detections(golden: &Golden, mine: &Detections, report: &mut Report) {
    let n = golden.scalar("i/det/num_detections") as usize;
    if mine.scores.len() != n {
        report.lines.push(format!("{} detections for {n}", mine.scores.len()));
    }
    let scores = golden.f32("i/det/detection_scores");
    let classes = golden.f32("i/det/detection_classes");
    let boxes = rows(&golden.f32("i/det/detection_boxes"));
    let mut missing = 0;
    for i in 0..n.min(scores.len()) {
        let best = (0..mine.scores.len())
            .filter(|&j| mine.classes[j] as f32 == classes[i])
            .map(|j| {
                mine.boxes[j].iter().zip(&boxes[i]).fold((mine.scores[j] - scores[i]).abs(), |m, (a, b)| m.max((a - b).abs()))
            })
            .fold(f32::INFINITY, f32::min);
        if best > 1e-4 {
            missing += 1;
        } else {
            report.add("detections", &i.to_string(), best.into(), 1e-4);
        }
    }
    if missing > 0 {
        report.lines.push(format!(
            "{missing} of {n} detections are not among mine; first scores {:?} for {:?}",
            &mine.scores[..mine.scores.len().min(3)],
            &scores[..n.min(3)]
        ));
    }
    for (i, (a, b)) in mine.scores.iter().zip(&scores).take(n).enumerate() {
        report.add("scores", &i.to_string(), f64::from((a - b).abs()), 1e-4);
    }
}

fn ssd_inference(golden: &Golden, model: &Ssd, weights: &Variables, pictures: &Pictures, report: &mut Report) -> Result<()> {
    let preprocessed = Ssd::preprocess(&pictures.pixels)?;
    report.tensor(golden, "preprocessed", "i/preprocessed", &nhwc(&preprocessed), 1e-6);
    let graph = with_outputs(model.graph(), "feature_map", model.feature_maps());
    let outputs = tch::no_grad(|| Inference::new(&graph, weights)?.run(&preprocessed))?;
    for i in 0..model.feature_maps().len() {
        let map = nhwc(&outputs[&format!("feature_map_{i}")]);
        report.tensor(golden, "maps", &format!("i/pred/feature_maps/{i}"), &map, 2e-5);
    }
    let predictions = model.gather(&outputs, &pictures.frame)?;
    report.tensor(golden, "anchors", "i/pred/anchors", predictions.anchors.as_flattened(), 1e-6);
    report.tensor(golden, "predictions", "i/pred/box_encodings", &values(&predictions.box_encodings), 2e-5);
    let classes = values(&predictions.class_predictions_with_background);
    report.tensor(golden, "predictions", "i/pred/class_predictions_with_background", &classes, 2e-5);
    detections(golden, &model.postprocess(&predictions)?[0], report);
    Ok(())
}

fn ssd_training(
    golden: &Golden,
    model: &Ssd,
    weights: &Variables,
    pictures: &Pictures,
    truth: &[Groundtruth],
    report: &mut Report,
) -> Result<Vec<MovingUpdate>> {
    let pass = exec::train(model.graph(), weights, &Ssd::preprocess(&pictures.pixels)?, 0)?;
    let predictions = model.gather(&pass.outputs, &pictures.frame)?;
    report.tensor(golden, "training predictions", "t/pred/box_encodings", &values(&predictions.box_encodings), 1e-3);
    let classes = values(&predictions.class_predictions_with_background);
    report.tensor(golden, "training predictions", "t/pred/class_predictions_with_background", &classes, 1e-3);
    let record = model.loss(&predictions, truth)?;
    report.scalar(golden, "losses", "t/loss/localization_loss", record.localization.double_value(&[]), 1e-4);
    report.scalar(golden, "losses", "t/loss/classification_loss", record.classification.double_value(&[]), 1e-4);
    (record.localization + record.classification).backward();
    Ok(pass.moving)
}

/// Loss terms by name.
type Terms = Vec<(&'static str, Tensor)>;

/// The loss terms of a batch with float64 weights.
fn ssd_double(model: &Ssd, weights: &Variables, pictures: &Pictures, truth: &[Groundtruth]) -> Result<Terms> {
    let pixels = pictures.pixels.f_to_kind(Kind::Double)?;
    let pass = exec::train(model.graph(), weights, &Ssd::preprocess(&pixels)?, 0)?;
    let record = model.loss(&model.gather(&pass.outputs, &pictures.frame)?, truth)?;
    Ok(vec![("localization_loss", record.localization), ("classification_loss", record.classification)])
}

/// The same with the golden proposals.
fn faster_rcnn_double(
    golden: &Golden,
    model: &FasterRcnn,
    weights: &Variables,
    pictures: &Pictures,
    truth: &[Groundtruth],
) -> Result<Terms> {
    let pixels = pictures.pixels.f_to_kind(Kind::Double)?;
    let truth_px = pictures.frame.in_pixels(truth);
    let pass = exec::train(model.first_graph(), weights, &model.preprocess(&pixels)?, 0)?;
    let first = model.rpn().gather(&pass.outputs, &pictures.frame, Phase::Training)?;
    let rpn_loss = model.rpn().loss(&first, &truth_px, &mut Shuffle::Identity)?;
    let classifier = model.classifier();
    let regions = regions(golden, "t", &pictures.frame);
    let classify = |input: &Tensor| Ok(exec::train(&classifier.graph, weights, input, 0)?.outputs);
    let loss = classifier.loss(&classifier.classify(&first.map, &regions, classify)?, &regions, &truth_px)?;
    Ok(faster_rcnn_terms(rpn_loss, loss))
}

fn faster_rcnn_terms(rpn: RpnLoss, classifier: BoxClassifierLoss) -> Terms {
    vec![
        ("RPNLoss/localization_loss", rpn.localization),
        ("RPNLoss/objectness_loss", rpn.objectness),
        ("BoxClassifierLoss/localization_loss", classifier.localization),
        ("BoxClassifierLoss/classification_loss", classifier.classification),
    ]
}

/// Losses and gradients, regularization included, in float64 on both sides.
fn double_gradients(
    golden: &Golden,
    weights: &Variables,
    report: &mut Report,
    terms: impl FnOnce(&Variables) -> Result<Terms>,
) -> Result<()> {
    let weights = weights.to_double()?;
    let terms = terms(&weights)?;
    for (name, term) in &terms {
        report.scalar(golden, "losses", &format!("t/loss/{name}"), term.double_value(&[]), 1e-6);
    }
    let terms: Vec<&Tensor> = terms.iter().map(|(_, term)| term).collect();
    Tensor::f_stack(&terms, 0)?.sum(terms[0].kind()).backward();
    let floor = 1e-6 * golden.scalar("t/gnorm");
    for (i, spec) in weights.specs().iter().enumerate().filter(|(_, s)| s.trainable) {
        let gradient = weights.tensor(i).grad();
        if !gradient.defined() {
            report.lines.push(format!("no gradient for {}", spec.name));
            continue;
        }
        let gradient = gradient + weights.tensor(i).detach() * spec.regularizer.l2();
        let values = values_in_tensorflow_layout(spec, &gradient)?;
        let key = |what: &str| format!("grad/{}/{what}", spec.name);
        if !golden.has(&key("l2")) {
            report.lines.push(format!("no gradient for {} in the npz", spec.name));
            continue;
        }
        let [l2, largest] = ["l2", "max"].map(|what| golden.scalar(&key(what)));
        let squares = values.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>();
        report.add("gradient norms", &spec.name, (squares.sqrt() - l2).abs() / l2.max(floor), 1e-3);
        // A sum may cancel: what its addends leave of it is known to a part of the norm.
        let sum = values.iter().map(|&v| f64::from(v)).sum::<f64>() - golden.scalar(&key("sum"));
        report.add("sums, of the norm", &spec.name, sum.abs() / (l2.max(floor) * (values.len() as f64).sqrt()), 1e-3);
        let samples = golden.get(&key("s"));
        let n = values.len();
        for (k, s) in samples.iter().enumerate() {
            let at = if samples.len() == n { k } else { (n * k / 16 + n / 32).min(n - 1) };
            report.add("samples, of the largest", &spec.name, (f64::from(values[at]) - s).abs() / largest.max(floor), 1e-3);
        }
    }
    let count = golden.keys("grad/").iter().filter(|k| k.ends_with("/l2")).count();
    if report.worst.get("gradient norms").map_or(0, |(_, n)| *n) != count {
        report.lines.push(format!("{count} gradients expected"));
    }
    Ok(())
}

/// The proposals of a golden file.
fn regions(golden: &Golden, phase: &str, frame: &Frame) -> Regioned {
    let counts: Vec<usize> = golden.get(&format!("{phase}/pred/num_proposals")).iter().map(|&n| n as usize).collect();
    let padded = |name: &str| rows(&golden.f32(&format!("{phase}/pred/{name}")));
    // Both are read: to divide by the picture's sides rounds otherwise, and may put a crop's last sample outside of the map.
    let [boxes, boxes_px] = ["proposal_boxes_normalized", "proposal_boxes"].map(|name| -> Vec<BBox> {
        let all = padded(name);
        let most = all.len() / counts.len();
        counts.iter().enumerate().flat_map(|(i, &n)| all[i * most..i * most + n].to_vec()).collect()
    });
    Regioned { frame: frame.clone(), counts, boxes, boxes_px }
}

fn same_boxes(what: &str, mine: &[BBox], golden: &[BBox], report: &mut Report) {
    if mine.len() != golden.len() {
        report.lines.push(format!("{what}: {} for {}", mine.len(), golden.len()));
    }
    let near = |a: &BBox, b: &BBox| a.iter().zip(b).all(|(x, y)| (x - y).abs() < 0.1);
    let missing = golden.iter().filter(|g| !mine.iter().any(|m| near(m, g))).count();
    report.add(what, &format!("{missing} of {} missing", golden.len()), missing as f64 / golden.len().max(1) as f64, 0.02);
}

fn faster_rcnn_inference(
    golden: &Golden,
    model: &FasterRcnn,
    weights: &Variables,
    pictures: &Pictures,
    report: &mut Report,
) -> Result<()> {
    let preprocessed = model.preprocess(&pictures.pixels)?;
    report.tensor(golden, "preprocessed", "i/preprocessed", &nhwc(&preprocessed), 1e-6);
    let outputs = tch::no_grad(|| Inference::new(model.first_graph(), weights)?.run(&preprocessed))?;
    report.tensor(golden, "maps", "i/pred/rpn_features_to_crop", &nhwc(&outputs["map"]), 2e-5);
    let first = model.rpn().gather(&outputs, &pictures.frame, Phase::Inference)?;
    report.tensor(golden, "anchors", "i/pred/anchors", first.anchors_px.as_flattened(), 1e-6);
    report.tensor(golden, "rpn", "i/pred/rpn_box_encodings", &values(&first.box_encodings), 2e-5);
    let objectness = values(&first.objectness);
    report.tensor(golden, "rpn", "i/pred/rpn_objectness_predictions_with_background", &objectness, 2e-5);
    let proposals = &model.rpn().proposals(&first)?[0];
    let expected = regions(golden, "i", &pictures.frame);
    same_boxes("proposals", proposals, &expected.boxes_px, report);
    let classifier = model.classifier();
    let second = Inference::new(&classifier.graph, weights)?;
    let classified = tch::no_grad(|| classifier.classify_in_parts(&first.map, &expected, |input| second.run(input)))?;
    report.tensor(
        golden,
        "predictions",
        "i/pred/refined_box_encodings",
        &padded(&classified.refined_box_encodings, golden, "i/pred/refined_box_encodings"),
        2e-5,
    );
    let key = "i/pred/class_predictions_with_background";
    report.tensor(golden, "predictions", key, &padded(&classified.class_predictions, golden, key), 2e-5);
    detections(golden, &classifier.postprocess(&classified, &expected)?[0], report);
    Ok(())
}

/// The values, and the golden ones where the golden tensor has rows of padding at its end.
fn padded(mine: &Tensor, golden: &Golden, key: &str) -> Vec<f32> {
    let mut values = values(mine);
    let golden = golden.f32(key);
    if values.len() < golden.len() {
        values.extend(&golden[values.len()..]);
    }
    values
}

fn faster_rcnn_training(
    golden: &Golden,
    model: &FasterRcnn,
    weights: &Variables,
    pictures: &Pictures,
    truth: &[Groundtruth],
    report: &mut Report,
) -> Result<Vec<MovingUpdate>> {
    let preprocessed = model.preprocess(&pictures.pixels)?;
    let truth_px = pictures.frame.in_pixels(truth);
    let pass = exec::train(model.first_graph(), weights, &preprocessed, 0)?;
    let mut moving = pass.moving;
    let first = model.rpn().gather(&pass.outputs, &pictures.frame, Phase::Training)?;
    report.tensor(golden, "training rpn", "t/pred/rpn_box_encodings", &values(&first.box_encodings), 2e-5);
    let objectness = values(&first.objectness);
    report.tensor(golden, "training rpn", "t/pred/rpn_objectness_predictions_with_background", &objectness, 2e-5);
    let proposals = model.rpn().proposals(&first)?;
    let rpn_loss = model.rpn().loss(&first, &truth_px, &mut Shuffle::Identity)?;
    let classifier = model.classifier();
    let sampled: Vec<BBox> = classifier.sample(&proposals, &truth_px, &mut Shuffle::Identity).concat();
    let expected = regions(golden, "t", &pictures.frame);
    same_boxes("sampled", &sampled, &expected.boxes_px, report);
    let classified = classifier.classify(&first.map, &expected, |input| {
        let pass = exec::train(&classifier.graph, weights, input, 0)?;
        moving.extend(pass.moving);
        Ok(pass.outputs)
    })?;
    let loss = classifier.loss(&classified, &expected, &truth_px)?;
    let terms = faster_rcnn_terms(rpn_loss, loss);
    for (name, term) in &terms {
        report.scalar(golden, "losses", &format!("t/loss/{name}"), term.double_value(&[]), 1e-4);
    }
    let terms: Vec<&Tensor> = terms.iter().map(|(_, term)| term).collect();
    Tensor::f_stack(&terms, 0)?.sum(Kind::Float).backward();
    Ok(moving)
}

/// Regularization, gradients, and one step of the config's optimizer.
fn step(
    golden: &Golden,
    config: &pb::TrainEvalPipelineConfig,
    weights: &mut Variables,
    moving: &[MovingUpdate],
    report: &mut Report,
) -> Result<()> {
    let global = golden.scalar("t/gnorm");
    let train = config.train_config.as_ref().context("no train_config")?;
    let before: Vec<Vec<f32>> = (0..weights.specs().len()).map(|i| weights.to_tensorflow(i)).collect::<Result<_>>()?;
    let mut optimizer = Optimizer::from_config(train, weights)?;
    let regularization = optimizer.regularization(weights)?.double_value(&[]);
    report.scalar(golden, "regularization", "t/reg", regularization, 1e-4);
    let mut expected = golden.keys("grad/");
    expected.retain(|k| k.ends_with("/l2"));
    let mut compared = 0;
    let l2 = |values: &[f32]| values.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().sqrt();
    for (i, spec) in weights.specs().iter().enumerate() {
        if !golden.has(&format!("grad/{}/l2", spec.name)) {
            continue;
        }
        compared += 1;
        let gradient = weights.tensor(i).grad();
        if !gradient.defined() {
            report.lines.push(format!("no gradient for {}", spec.name));
            continue;
        }
        let value = weights.tensor(i).detach();
        let regularizer = if train.add_regularization_loss() { spec.regularizer } else { Regularizer::None };
        let gradient = gradient + value.sign() * regularizer.l1() + value * regularizer.l2();
        let norm = l2(&values_in_tensorflow_layout(spec, &gradient)?);
        let golden_norm = golden.scalar(&format!("grad/{}/l2", spec.name));
        let difference = (reference::apart(norm, golden_norm) - 1e-6 * global).max(0.0) / golden_norm.max(1e-30);
        report.add("gradients", &format!("{} {norm:.3e} for {golden_norm:.3e}", spec.name), difference, 1e-3);
    }
    if compared != expected.len() {
        report.lines.push(format!("{} gradients expected, {compared} compared", expected.len()));
    }
    optimizer.step(weights, 0)?;
    exec::apply_moving_updates(weights, moving)?;
    for (i, spec) in weights.specs().iter().enumerate() {
        let delta: Vec<f32> = weights.to_tensorflow(i)?.iter().zip(&before[i]).map(|(a, b)| a - b).collect();
        let rounding = 1e-6 * global * optimizer.learning_rate(0)
            + before[i].iter().map(|&b| (f64::from(b) * 6e-8).powi(2)).sum::<f64>().sqrt();
        let key = format!("delta/{}/l2", spec.name);
        if golden.has(&key) {
            let (mine, theirs) = (l2(&delta), golden.scalar(&key));
            let difference = (reference::apart(mine, theirs) - rounding).max(0.0) / theirs.max(mine).max(1e-30);
            let kind = if spec.name.contains("/moving_") { "moving averages" } else { "changes" };
            report.add(kind, &format!("{} {mine:.3e} for {theirs:.3e}", spec.name), difference, 1e-2);
        }
    }
    Ok(())
}
