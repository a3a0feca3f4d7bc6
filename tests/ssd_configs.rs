//! SSDs from pipeline configs that the zoo does not have: what each field does to the network, its anchors and its losses.

mod common;

use common::{seeded, zoo_config};
use odh::config::zoo;
use odh::detection::boxes::Groundtruth;
use odh::models::pictures::{Frame, Pictures};
use odh::models::ssd::{Predictions, Ssd};
use odh::models::{DetectionModel, StepContext, from_config};
use odh::net::exec::{self, Inference};
use odh::net::graph::Variable;
use odh::net::variables::Variables;
use odh::proto::object_detection::protos as pb;
use tch::{Device, Kind, Tensor};

const V1: &str = "ssd_mobilenet_v1_coco";
const V2: &str = "ssd_mobilenet_v2_coco";
const INCEPTION: &str = "ssd_inception_v2_coco";

fn ssd(name: &str, replaced: &[(&str, &str)]) -> Ssd {
    let Some(pb::detection_model::Model::Ssd(ssd)) = zoo_config(name, replaced).model.unwrap().model else {
        panic!("{name} is no SSD")
    };
    Ssd::from_config(&ssd).unwrap()
}

fn variable<'a>(model: &'a Ssd, name: &str) -> &'a Variable {
    model.variables().iter().find(|v| v.name == format!("FeatureExtractor/{name}")).unwrap_or_else(|| panic!("no {name}"))
}

#[track_caller]
fn shapes(model: &Ssd, expected: &[(&str, &[i64])]) {
    for (name, shape) in expected {
        assert_eq!(variable(model, name).shape, *shape, "{name}");
    }
}

fn picture(model: &Ssd, seed: i64) -> Tensor {
    let [height, width] = model.input_size().unwrap().map(|side| side as i64);
    seeded(seed, || Tensor::rand([1, height, width, 3], (Kind::Float, Device::Cpu))) * 255.0
}

/// Runs the network frozen; every anchor must have a prediction.
fn infer(model: &Ssd, variables: &Variables, picture: &Tensor) -> Predictions {
    let outputs = Inference::new(model.graph(), variables).unwrap().run(&Ssd::preprocess(picture).unwrap()).unwrap();
    let predictions = model.gather(&outputs, &Frame::whole(model.input_size().unwrap(), 1)).unwrap();
    assert_eq!(predictions.box_encodings.size(), [1, model.anchors().len() as i64, 4]);
    predictions
}

fn start(model: &Ssd) -> Variables {
    Variables::new(model.variables(), 5, Device::Cpu).unwrap()
}

fn one_box() -> Groundtruth {
    Groundtruth { boxes: vec![[0.2, 0.3, 0.7, 0.8]], classes: vec![1], difficult: vec![false], crowd: vec![false] }
}

/// Every trainable variable gets a finite gradient, and some of it is not zero.
fn learns(name: &str, replaced: &[(&str, &str)]) {
    let model = from_config(&zoo_config(name, replaced)).unwrap();
    let variables = Variables::new(model.variables(), 5, Device::Cpu).unwrap();
    let [height, width] = model.resizer().fixed_size().unwrap_or_else(|| panic!("{name} resizes otherwise"));
    let (pictures, losses) = seeded(3, || {
        let pictures = Tensor::rand([2, height as i64, width as i64, 3], (Kind::Float, Device::Cpu)) * 255.0;
        let pictures = Pictures::whole(&pictures);
        let losses = model.losses(&variables, &pictures, &[one_box(), one_box()], &mut StepContext::new(0, 0));
        (pictures, losses.unwrap())
    });
    losses.total().unwrap().backward();
    let mut sum = 0.0;
    for (i, spec) in variables.specs().iter().enumerate().filter(|(_, s)| s.trainable) {
        let norm = variables.tensor(i).grad().norm().double_value(&[]);
        assert!(norm.is_finite(), "{name}: {}", spec.name);
        sum += norm;
    }
    assert!(sum > 0.0, "{name}");
    let found = model.freeze(&variables).unwrap().detect(&pictures).unwrap();
    assert_eq!(found.len(), 2);
}

/// Small pictures, to be quick.
const SMALL: [(&str, &str); 2] = [("height: 300", "height: 96"), ("width: 300", "width: 160")];

fn small<'a>(more: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    SMALL.iter().chain(more).copied().collect()
}

#[test]
fn mobilenet_v1_takes_other_depths() {
    let half = ssd(V1, &[("depth_multiplier: 1.0", "depth_multiplier: 0.5")]);
    shapes(
        &half,
        &[
            ("MobilenetV1/Conv2d_0/weights", &[3, 3, 3, 16]),
            ("MobilenetV1/Conv2d_13_pointwise/weights", &[1, 1, 512, 512]),
            // The layers on top shrink too.
            ("MobilenetV1/Conv2d_13_pointwise_2_Conv2d_2_3x3_s2_256/weights", &[3, 3, 128, 256]),
            ("MobilenetV1/Conv2d_13_pointwise_1_Conv2d_5_1x1_32/weights", &[1, 1, 128, 32]),
        ],
    );
    // 0.1 of 32 is 3, and of 128 / 2 is 6: the least depth holds.
    let tenth = ssd(V1, &[("depth_multiplier: 1.0", "depth_multiplier: 0.1"), ("min_depth: 16", "min_depth: 8")]);
    shapes(
        &tenth,
        &[
            ("MobilenetV1/Conv2d_0/weights", &[3, 3, 3, 8]),
            ("MobilenetV1/Conv2d_11_pointwise/weights", &[1, 1, 51, 51]),
            ("MobilenetV1/Conv2d_13_pointwise_1_Conv2d_5_1x1_8/weights", &[1, 1, 25, 8]),
        ],
    );
    learns(V1, &small(&[("depth_multiplier: 1.0", "depth_multiplier: 0.25")]));
}

#[test]
fn mobilenet_v2_rounds_its_depths_to_eighths() {
    // By hand: 32 * 1.4 = 44.8 is nearest to 48, 24 * 1.4 = 33.6 to 32, 160 * 1.4 = 224, 1280 * 1.4 = 1792; expansions are six times that.
    let wide = ssd(V2, &[("depth_multiplier: 1.0", "depth_multiplier: 1.4")]);
    shapes(
        &wide,
        &[
            ("MobilenetV2/Conv/weights", &[3, 3, 3, 48]),
            ("MobilenetV2/expanded_conv/project/weights", &[1, 1, 48, 24]),
            ("MobilenetV2/expanded_conv_1/expand/weights", &[1, 1, 24, 144]),
            ("MobilenetV2/expanded_conv_1/project/weights", &[1, 1, 144, 32]),
            ("MobilenetV2/expanded_conv_3/project/weights", &[1, 1, 192, 48]),
            ("MobilenetV2/expanded_conv_13/expand/weights", &[1, 1, 136, 816]),
            ("MobilenetV2/expanded_conv_15/expand/weights", &[1, 1, 224, 1344]),
            ("MobilenetV2/Conv_1/weights", &[1, 1, 448, 1792]),
            // The layers on top are rounded down, as SSD's own.
            ("MobilenetV2/layer_19_2_Conv2d_2_3x3_s2_716/weights", &[1, 1, 358, 716]),
        ],
    );
    // 32 * 0.35 = 11.2, 16 * 0.35 = 5.6 and 24 * 0.35 = 8.4 are below the least depth of 16; 96 * 0.35 = 33.6 is 32.
    let narrow = ssd(V2, &[("depth_multiplier: 1.0", "depth_multiplier: 0.35")]);
    shapes(
        &narrow,
        &[
            ("MobilenetV2/Conv/weights", &[3, 3, 3, 16]),
            ("MobilenetV2/expanded_conv_1/expand/weights", &[1, 1, 16, 96]),
            ("MobilenetV2/expanded_conv_2/project/weights", &[1, 1, 96, 16]),
            ("MobilenetV2/expanded_conv_13/expand/weights", &[1, 1, 32, 192]),
            ("MobilenetV2/Conv_1/weights", &[1, 1, 112, 448]),
        ],
    );
    learns(V2, &small(&[("depth_multiplier: 1.0", "depth_multiplier: 0.35")]));
}

#[test]
fn inception_v2_takes_other_depths() {
    let half = ssd(INCEPTION, &[("depth_multiplier: 1.0", "depth_multiplier: 0.5")]);
    shapes(
        &half,
        &[
            ("InceptionV2/Conv2d_1a_7x7/depthwise_weights", &[7, 7, 3, 8]),
            ("InceptionV2/Conv2d_1a_7x7/pointwise_weights", &[1, 1, 24, 32]),
            // 32 + 32 + 48 + 16 channels of Mixed_3b.
            ("InceptionV2/Mixed_3c/Branch_0/Conv2d_0a_1x1/weights", &[1, 1, 128, 32]),
            ("InceptionV2/Mixed_5c_1_Conv2d_2_1x1_128/weights", &[1, 1, 512, 128]),
        ],
    );
    // A third of 16 filters: five a channel.
    let quarter = ssd(INCEPTION, &[("depth_multiplier: 1.0", "depth_multiplier: 0.25")]);
    shapes(
        &quarter,
        &[
            ("InceptionV2/Conv2d_1a_7x7/depthwise_weights", &[7, 7, 3, 5]),
            ("InceptionV2/Conv2d_1a_7x7/pointwise_weights", &[1, 1, 15, 16]),
        ],
    );
    learns(INCEPTION, &small(&[("depth_multiplier: 1.0", "depth_multiplier: 0.25")]));
    // Upstream insists that this is said; old configs do not.
    let unsaid = ssd(INCEPTION, &[("override_base_feature_extractor_hyperparams: true", "")]);
    assert_eq!(variable(&unsaid, "InceptionV2/Conv2d_2b_1x1/weights").regularizer.l2() as f32, 4e-5);
}

#[test]
fn a_focal_loss_trains_without_a_miner_from_a_bias_of_rare_objects() {
    let text = zoo::resolve(V1).unwrap().built_in_config();
    let from = text.find("hard_example_miner {").unwrap();
    let miner = &text[from..from + text[from..].find('}').unwrap() + 1];
    let changes = [
        ("weighted_sigmoid {\n        }", "weighted_sigmoid_focal { alpha: 0.75 gamma: 2.0 }"),
        (miner, ""),
        ("kernel_size: 1", "kernel_size: 1 class_prediction_bias_init: -4.6"),
    ];
    let refused = from_config(&zoo_config(V1, &changes[..1])).err().expect("upstream refuses a miner here");
    assert!(refused.to_string().contains("model.ssd.loss.hard_example_miner"), "{refused:#}");
    let model = ssd(V1, &small(&changes));
    let variables = start(&model);
    let biases = variables.get("BoxPredictor_0/ClassPredictor/biases").unwrap();
    assert!((biases.min().double_value(&[]) + 4.6).abs() < 1e-6 && (biases.max().double_value(&[]) + 4.6).abs() < 1e-6);
    assert_eq!(variables.get("BoxPredictor_0/BoxEncodingPredictor/biases").unwrap().abs().max().double_value(&[]), 0.0);
    // Behind a depthwise layer upstream does not give it.
    let depthwise = ("kernel_size: 1", "kernel_size: 1 use_depthwise: true");
    let depthwise = start(&ssd(V1, &small(&[&changes[..], &[depthwise]].concat())));
    assert_eq!(depthwise.get("BoxPredictor_0/ClassPredictor/biases").unwrap().abs().max().double_value(&[]), 0.0);
    let predictions = infer(&model, &variables, &picture(&model, 1));
    let record = model.loss(&predictions, &[one_box()]).unwrap();
    assert!(record.mined.is_empty());
    let matched = record.targets[0].num_matched();
    assert!(matched > 0);
    // By hand, column by column: the matched anchors' own column against the rest, divided by the matches.
    let logits: Vec<f32> = predictions.class_predictions_with_background.view([-1]).try_into().unwrap();
    let mut expected = 0.0;
    for (a, class) in record.targets[0].classes.iter().enumerate() {
        for column in 0..4 {
            let p = 1.0 / (1.0 + (-f64::from(logits[a * 4 + column])).exp());
            let hit = column as i64 == *class;
            let (p_t, alpha) = if hit { (p, 0.75) } else { (1.0 - p, 0.25) };
            expected -= alpha * (1.0 - p_t).powi(2) * p_t.ln();
        }
    }
    let classification = record.classification.double_value(&[]);
    assert!((classification * matched as f64 / expected - 1.0).abs() < 1e-4, "{classification} x {matched}: {expected}");
    learns(V1, &small(&changes));
}

#[test]
fn the_embedded_mobilenet_has_five_maps_of_256_pixels() {
    let extractor = ("type: \"ssd_mobilenet_v1\"", "type: \"embedded_ssd_mobilenet_v1\"");
    let sides = ("height: 300\n        width: 300", "height: 256\n        width: 256");
    let all = [extractor, sides, ("num_layers: 6", "num_layers: 5"), ("depth_multiplier: 1.0", "depth_multiplier: 0.125")];
    let model = ssd(V1, &all);
    // Maps of 16, 8, 4, 2 and 1 cells a side.
    assert_eq!(model.anchors().len(), 256 * 3 + (64 + 16 + 4 + 1) * 6);
    shapes(
        &model,
        &[
            ("MobilenetV1/Conv2d_13_pointwise_1_Conv2d_3_1x1_16/weights", &[1, 1, 64, 16]),
            ("MobilenetV1/Conv2d_13_pointwise_2_Conv2d_3_3x3_s2_32/weights", &[3, 3, 16, 32]),
            ("MobilenetV1/Conv2d_13_pointwise_2_Conv2d_4_2x2_s2_32/weights", &[2, 2, 16, 32]),
        ],
    );
    // Its depthwise filters are not regularized, but where the config's settings are the backbone's too.
    let filters = "MobilenetV1/Conv2d_1_depthwise/depthwise_weights";
    let overridden = ("min_depth: 16", "min_depth: 16 override_base_feature_extractor_hyperparams: true");
    let overridden = ssd(V1, &[&all[..], &[overridden]].concat());
    let weights = [&model, &overridden, &ssd(V1, &[])].map(|model| variable(model, filters).regularizer.l2() as f32);
    assert_eq!(weights, [0.0, 4e-5, 4e-5]);
    infer(&model, &start(&model), &picture(&model, 1));
    learns(V1, &all);
    for changes in [vec![all[0], all[2]], [&all[..], &[("min_depth: 16", "min_depth: 16 pad_to_multiple: 32")]].concat()] {
        let refused = format!("{:#}", from_config(&zoo_config(V1, &changes)).err().expect("upstream refuses it"));
        assert!(refused.contains("model.ssd.feature_extractor") && refused.contains("256 x 256"), "{refused}");
    }
}

#[test]
fn mobilenet_v2_has_its_batch_norms_whatever_a_config_overrides() {
    let overridden = ("min_depth: 16", "min_depth: 16 override_base_feature_extractor_hyperparams: true");
    let block = "        batch_norm {
          decay: 0.9997
          center: true
          scale: true
          epsilon: 0.001
          train: true
        }
";
    // slim's own definition of the network stands inside the config's settings.
    for change in [("scale: true", "scale: false"), (block, "")] {
        let model = ssd(V2, &[overridden, change]);
        let own = |part: &str| variable(&model, &format!("MobilenetV2/expanded_conv/project/BatchNorm/{part}")).shape.clone();
        assert_eq!([own("gamma"), own("beta"), own("moving_variance")], [[16], [16], [16]].map(Vec::from), "{change:?}");
        assert!(!model.variables().iter().any(|v| v.name.ends_with("MobilenetV2/Conv/biases")), "{change:?}");
        // SSD's own layers have what the config says.
        let extra = "FeatureExtractor/MobilenetV2/layer_19_1_Conv2d_2_1x1_256/BatchNorm/gamma";
        assert!(!model.variables().iter().any(|v| v.name == extra), "{change:?}");
    }
}

#[test]
fn other_input_sizes_have_anchors_for_every_prediction() {
    for name in [V1, V2, INCEPTION] {
        // 96 x 160: maps of 6 x 10, 3 x 5, 2 x 3, then 1 x 2, 1 x 1 and 1 x 1; six anchors a cell, on the
        // first map three.
        let model = ssd(name, &small(&[]));
        let cells = 3 * 5 + 2 * 3 + 2 + 1 + 1;
        assert_eq!(model.anchors().len(), 60 * 3 + cells * 6, "{name}");
        infer(&model, &start(&model), &picture(&model, 1));
    }
}

#[test]
fn padding_can_be_explicit_and_pictures_padded_to_a_multiple() {
    for name in [V1, V2, INCEPTION] {
        let extractor = "min_depth: 16";
        let model = ssd(name, &small(&[(extractor, "min_depth: 16 use_explicit_padding: true")]));
        infer(&model, &start(&model), &picture(&model, 1));
        // 96 x 160 become 128 x 192: maps of 8 x 12, 4 x 6, 2 x 3, 1 x 2, 1 x 1, 1 x 1.
        let model = ssd(name, &small(&[(extractor, "min_depth: 16 pad_to_multiple: 64")]));
        assert_eq!(model.anchors().len(), 96 * 3 + (24 + 6 + 2 + 1 + 1) * 6, "{name}");
        infer(&model, &start(&model), &picture(&model, 1));
    }
    // Half a kernel of zeros on each side of an even map: one pixel of 'SAME' moves from the bottom right to the top left.
    let same = ssd(V1, &small(&[]));
    let explicit = ssd(V1, &small(&[("min_depth: 16", "min_depth: 16 use_explicit_padding: true")]));
    let (x, variables) = (picture(&same, 1), start(&same));
    let (a, b) = (infer(&same, &variables, &x).box_encodings, infer(&explicit, &variables, &x).box_encodings);
    assert!((&a - b).abs().max().double_value(&[]) > 0.01 * a.abs().max().double_value(&[]));
}

#[test]
fn dropout_touches_the_class_predictions_of_training_alone() {
    let on = small(&[("use_dropout: false", "use_dropout: true")]);
    let (with, without) = (ssd(V1, &on), ssd(V1, &small(&[])));
    assert_eq!(with.variables(), without.variables());
    let variables = start(&with);
    let x = picture(&with, 2);
    let same = |a: &Tensor, b: &Tensor| (a - b).abs().max().double_value(&[]) == 0.0;
    let (a, b) = (infer(&with, &variables, &x), infer(&without, &variables, &x));
    assert!(same(&a.class_predictions_with_background, &b.class_predictions_with_background));
    let input = Ssd::preprocess(&x).unwrap();
    let run = |seed: i64| {
        let trained = seeded(seed, || exec::train(with.graph(), &variables, &input, 0).unwrap());
        with.gather(&trained.outputs, &Frame::whole(with.input_size().unwrap(), 1)).unwrap()
    };
    let (a, b, again) = (run(1), run(2), run(1));
    assert!(same(&a.box_encodings, &b.box_encodings));
    assert!(!same(&a.class_predictions_with_background, &b.class_predictions_with_background));
    assert!(same(&a.class_predictions_with_background, &again.class_predictions_with_background));
}

#[test]
fn dropout_keeps_its_share_and_scales_it_up() {
    use odh::net::graph::{Graph, Op};
    let mut graph = Graph::new();
    let x = graph.input("x", 4);
    let y = graph.push("Dropout", Op::Dropout { keep: 0.8 }, &[x], 4);
    graph.output("y", y);
    let variables = Variables::new(&[], 0, Device::Cpu).unwrap();
    let ones = Tensor::ones([1, 4, 100, 100], (Kind::Float, Device::Cpu));
    let y = &seeded(1, || exec::train(&graph, &variables, &ones, 0).unwrap()).outputs["y"];
    let values: Vec<f32> = y.view([-1]).try_into().unwrap();
    assert!(values.iter().all(|v| *v == 0.0 || (v - 1.25).abs() < 1e-6));
    // 40,000 draws: the share's standard deviation is 0.002.
    let kept = values.iter().filter(|v| **v != 0.0).count() as f64 / values.len() as f64;
    assert!((kept - 0.8).abs() < 0.01, "{kept}");
}

#[test]
fn a_background_of_zeros_has_no_column_of_its_own() {
    let model = ssd(
        V2,
        &small(&[(
            "normalize_loss_by_num_matches: true",
            "normalize_loss_by_num_matches: true encode_background_as_zeros: true",
        )]),
    );
    let plain = ssd(V2, &small(&[]));
    let variables = start(&model);
    let predictions = infer(&model, &variables, &picture(&model, 1));
    // Nothing to find: three negatives (V2's min_negatives_per_image), each of which should say no in every column.
    let nothing = [Groundtruth::default()];
    let record = model.loss(&predictions, &nothing).unwrap();
    let logits: Vec<f32> = predictions.class_predictions_with_background.view([-1]).try_into().unwrap();
    let no = |x: f32| f64::from(x).exp().ln_1p();
    let selected = &record.mined[0].selected;
    assert_eq!(selected.len(), 3);
    let expected: f64 = selected.iter().flat_map(|a| &logits[a * 4..a * 4 + 4]).map(|x| no(*x)).sum();
    assert!((record.classification.double_value(&[]) / expected - 1.0).abs() < 1e-5);
    // With a column of its own the background should say yes there.
    let record = plain.loss(&predictions, &nothing).unwrap();
    let selected = &record.mined[0].selected;
    let expected: f64 =
        selected.iter().map(|a| no(-logits[a * 4]) + logits[a * 4 + 1..a * 4 + 4].iter().map(|x| no(*x)).sum::<f64>()).sum();
    assert!((record.classification.double_value(&[]) / expected - 1.0).abs() < 1e-5);
}

#[test]
fn overriding_hyperparams_reach_the_backbone() {
    let changes = [("weight: 0.00004", "weight: 0.001"), ("decay: 0.9997", "decay: 0.9")];
    // slim's own: 4e-5, and nothing for V2's depthwise filters.
    for (name, scope, depthwise) in [
        (V1, "MobilenetV1/Conv2d_1_pointwise", "MobilenetV1/Conv2d_1_depthwise/depthwise_weights"),
        (V2, "MobilenetV2/expanded_conv_1/expand", "MobilenetV2/expanded_conv_1/depthwise/depthwise_weights"),
    ] {
        let own = ssd(name, &changes);
        let l2 = |model: &Ssd, name: &str| variable(model, name).regularizer.l2() as f32;
        assert_eq!(l2(&own, &format!("{scope}/weights")), 4e-5);
        assert_eq!(l2(&own, depthwise), if name == V1 { 4e-5 } else { 0.0 });
        let mut more = changes.to_vec();
        more.push(("min_depth: 16", "min_depth: 16 override_base_feature_extractor_hyperparams: true"));
        let overridden = ssd(name, &more);
        assert_eq!(l2(&overridden, &format!("{scope}/weights")), 1e-3);
        assert_eq!(l2(&overridden, depthwise), 1e-3);
    }
}

#[test]
fn frozen_batch_norms_keep_their_statistics_and_learn_their_scale() {
    for name in [V1, V2, INCEPTION] {
        let frozen = ssd(name, &small(&[("num_classes: 3", "num_classes: 3 freeze_batchnorm: true")]));
        let variables = start(&frozen);
        let input = Ssd::preprocess(&picture(&frozen, 1)).unwrap();
        assert!(exec::train(frozen.graph(), &variables, &input, 0).unwrap().moving.is_empty(), "{name}");
        assert!(frozen.variables().iter().any(|v| v.name.ends_with("/gamma") && v.trainable), "{name}");
        let free = ssd(name, &small(&[]));
        let norms = free.variables().iter().filter(|v| v.name.ends_with("/moving_mean")).count();
        assert_eq!(exec::train(free.graph(), &variables, &input, 0).unwrap().moving.len(), norms, "{name}");
    }
}

#[test]
fn depthwise_predictors_and_extra_layers_can_be_had_on_every_backbone() {
    for name in [V1, INCEPTION] {
        let changes = small(&[
            ("kernel_size: ", "use_depthwise: true kernel_size: "),
            ("min_depth: 16", "min_depth: 16 use_depthwise: true"),
        ]);
        let model = ssd(name, &changes);
        let has = |part: &str| model.variables().iter().any(|v| v.name.contains(part));
        assert!(has("BoxPredictor_0/ClassPredictor_depthwise/depthwise_weights"), "{name}");
        assert!(has("_3x3_s2_512_depthwise/depthwise_weights"), "{name}");
        learns(name, &changes);
    }
}

#[test]
fn batch_norms_before_the_predictors_store_the_unbiased_variance() {
    use odh::net::graph::{MovingVariance, Op};
    // Upstream turns the fused kernel off around the MobileNets and the layers on top of them, and not around the predictors: one step of its
    // own code at batch 2 changes these moving variances, on maps of a single cell, by twice what the biased variance gives.
    for name in [V1, V2] {
        let model = ssd(
            name,
            &small(&[("num_layers_before_predictor: 0", "num_layers_before_predictor: 1"), ("max_depth: 0", "max_depth: 32")]),
        );
        let norms = |predictor: bool| {
            model.graph().nodes().iter().filter_map(move |n| match &n.op {
                Op::BatchNorm(norm) if n.name.starts_with("BoxPredictor_") == predictor => Some(norm.moving),
                _ => None,
            })
        };
        assert_eq!(norms(true).count(), 6, "{name}");
        assert!(norms(true).all(|moving| moving == MovingVariance::Unbiased), "{name}");
        assert!(norms(false).all(|moving| moving == MovingVariance::Biased), "{name}");
    }
}

#[test]
fn a_predictors_sigmoid_is_on_its_scores_in_training_and_inference() {
    let plain = ssd(V1, &small(&[]));
    let with = ssd(V1, &small(&[("apply_sigmoid_to_scores: false", "apply_sigmoid_to_scores: true")]));
    let variables = start(&plain);
    let x = picture(&plain, 4);
    let (logits, scores) = (infer(&plain, &variables, &x), infer(&with, &variables, &x));
    let near = |a: &Tensor, b: &Tensor| (a - b).abs().max().double_value(&[]) < 1e-6;
    assert!(near(&logits.class_predictions_with_background.sigmoid(), &scores.class_predictions_with_background));
    assert!(near(&logits.box_encodings, &scores.box_encodings));
    learns(V1, &small(&[("apply_sigmoid_to_scores: false", "apply_sigmoid_to_scores: true")]));
}

#[test]
fn the_bipartite_matcher_trains_one_anchor_a_groundtruth() {
    let text = zoo::resolve(V1).unwrap().built_in_config();
    let from = text.find("argmax_matcher {").unwrap();
    let argmax = &text[from..from + text[from..].find('}').unwrap() + 1];
    let model = ssd(V1, &small(&[(argmax, "bipartite_matcher { }")]));
    let predictions = infer(&model, &start(&model), &picture(&model, 1));
    let two = Groundtruth {
        boxes: vec![[0.2, 0.3, 0.7, 0.8], [0.21, 0.31, 0.71, 0.81]],
        classes: vec![1, 2],
        difficult: vec![false; 2],
        crowd: vec![false; 2],
    };
    let record = model.loss(&predictions, &[two]).unwrap();
    assert_eq!(record.targets[0].num_matched(), 2);
    let mut classes: Vec<i64> = record.targets[0].classes.iter().copied().filter(|&c| c > 0).collect();
    classes.sort_unstable();
    assert_eq!(classes, [2, 3]);
}

/// The zoo's resizer, to be replaced.
const RESIZER: &str = "fixed_shape_resizer {\n        height: 300\n        width: 300\n      }";

fn in_hundreds(height: i64, width: i64) -> Tensor {
    seeded(6, || Tensor::rand([1, height, width, 3], (Kind::Float, Device::Cpu))) * 255.0
}

#[test]
fn a_picture_that_keeps_its_aspect_has_the_anchors_and_results_of_its_size() {
    let keep = ssd(V1, &[(RESIZER, "keep_aspect_ratio_resizer { min_dimension: 96 max_dimension: 200 }")]);
    assert_eq!((keep.input_size(), keep.anchors().len()), (None, 0));
    let variables = start(&keep);
    for (height, width) in [(96, 160), (128, 96)] {
        let fixed = ssd(V1, &[("height: 300", &format!("height: {height}")), ("width: 300", &format!("width: {width}"))]);
        let pictures = Pictures::whole(&in_hundreds(height, width));
        let predictions = |model: &Ssd| {
            let input = Ssd::preprocess(&pictures.pixels).unwrap();
            let outputs = Inference::new(model.graph(), &variables).unwrap().run(&input).unwrap();
            model.gather(&outputs, &pictures.frame).unwrap()
        };
        assert_eq!(predictions(&keep).anchors, fixed.anchors());
        let loss = |model: &Ssd| {
            let record = model.loss(&predictions(model), &[one_box()]).unwrap();
            (record.localization.double_value(&[]), record.classification.double_value(&[]))
        };
        assert!(loss(&keep).0 > 0.0);
        assert_eq!(loss(&keep), loss(&fixed));
        let found = |model: &Ssd| model.freeze(&variables).unwrap().detect(&pictures).unwrap();
        assert_eq!(found(&keep), found(&fixed));
    }
    let multiple = zoo_config(
        V1,
        &[
            (RESIZER, "keep_aspect_ratio_resizer { min_dimension: 96 max_dimension: 200 }"),
            ("min_depth: 16", "min_depth: 16 pad_to_multiple: 32"),
        ],
    );
    let error = format!("{:#}", from_config(&multiple).err().unwrap());
    assert!(error.contains("pad_to_multiple: 32") && error.contains("pad_to_max_dimension"), "{error}");
}

#[test]
fn boxes_of_a_padded_picture_are_learnt_in_the_frame_and_found_in_the_picture() {
    let resizer = "keep_aspect_ratio_resizer { min_dimension: 96 max_dimension: 160 pad_to_max_dimension: true }";
    let padded = ssd(V1, &[(RESIZER, resizer)]);
    let fixed = ssd(V1, &[("height: 300", "height: 160"), ("width: 300", "width: 160")]);
    assert_eq!((padded.input_size(), padded.anchors()), (Some([160, 160]), fixed.anchors()));
    let variables = start(&padded);
    let whole = Pictures::whole(&in_hundreds(160, 160));
    // The upper 96 rows are the picture.
    let pixels: Vec<f32> = whole.pixels.contiguous().view([-1]).try_into().unwrap();
    let pictures = Pictures::new(&pixels, (160, 160), &[(96, 160)], Device::Cpu).unwrap();
    let squeezed =
        Groundtruth { boxes: one_box().boxes.iter().map(|b| [b[0] * 0.6, b[1], b[2] * 0.6, b[3]]).collect(), ..one_box() };
    let loss = |model: &Ssd, pictures: &Pictures, truth: Groundtruth| {
        let losses = model.losses(&variables, pictures, &[truth], &mut StepContext::new(0, 0)).unwrap();
        losses.total().unwrap().double_value(&[])
    };
    let (mine, expected) = (loss(&padded, &pictures, one_box()), loss(&fixed, &whole, squeezed));
    assert!((mine / expected - 1.0).abs() < 1e-5, "{mine} is not {expected}");
    let found = padded.freeze(&variables).unwrap().detect(&pictures).unwrap().remove(0);
    let in_frame = fixed.freeze(&variables).unwrap().detect(&whole).unwrap().remove(0);
    assert!(found.boxes.iter().flatten().all(|v| (0.0..=1.0).contains(v)) && !found.boxes.is_empty());
    // A box that lies inside the picture, and so is not clipped, is the frame's, stretched.
    let inside = in_frame.boxes.iter().zip(&in_frame.scores).find(|(b, _)| b[2] < 0.55).expect("a box in the picture");
    let at = found.scores.iter().position(|s| (s - inside.1).abs() < 1e-6).expect("the same box");
    let stretched = [inside.0[0] / 0.6, inside.0[1], inside.0[2] / 0.6, inside.0[3]];
    assert!(
        found.boxes[at].iter().zip(&stretched).all(|(a, b)| (a - b).abs() < 1e-5),
        "{:?} is not {stretched:?}",
        found.boxes[at]
    );
}

#[test]
fn grey_pictures_have_networks_of_one_channel() {
    let model = ssd(V1, &[(RESIZER, "fixed_shape_resizer { height: 96 width: 96 convert_to_grayscale: true }")]);
    shapes(&model, &[("MobilenetV1/Conv2d_0/weights", &[3, 3, 1, 32])]);
    let pictures = Pictures::whole(&(Tensor::ones([2, 96, 96, 1], (Kind::Float, Device::Cpu)) * 77.0));
    let losses = model.losses(&start(&model), &pictures, &[one_box(), one_box()], &mut StepContext::new(0, 0)).unwrap();
    assert!(losses.total().unwrap().double_value(&[]).is_finite());
}

#[test]
fn inception_v3_has_its_layers_under_upstreams_names() {
    const V3: (&str, &str) = ("ssd_inception_v2", "ssd_inception_v3");
    let model = ssd(INCEPTION, &[V3]);
    shapes(
        &model,
        &[
            ("InceptionV3/Conv2d_4a_3x3/weights", &[3, 3, 80, 192]),
            // Upstream's slips of the pen, which checkpoints have.
            ("InceptionV3/Mixed_5c/Branch_1/Conv_1_0c_5x5/weights", &[5, 5, 48, 64]),
            ("InceptionV3/Mixed_6a/Branch_0/Conv2d_1a_1x1/weights", &[3, 3, 288, 384]),
            ("InceptionV3/Mixed_6e/Branch_2/Conv2d_0e_1x7/weights", &[1, 7, 192, 192]),
            ("InceptionV3/Mixed_7b/Branch_1/Conv2d_0b_3x1/weights", &[3, 1, 384, 384]),
            ("InceptionV3/Mixed_7c/Branch_1/Conv2d_0c_3x1/weights", &[3, 1, 384, 384]),
            ("InceptionV3/Mixed_7c/Branch_3/Conv2d_0b_1x1/weights", &[1, 1, 2048, 192]),
            ("InceptionV3/Mixed_7c_2_Conv2d_3_3x3_s2_512/weights", &[3, 3, 256, 512]),
        ],
    );
    // Windows without padding: 35, 17 and 8 cells of 300 pixels, then halves.
    assert_eq!(model.anchors().len(), 35 * 35 * 3 + (17 * 17 + 8 * 8 + 4 * 4 + 2 * 2 + 1) * 6);
    learns(INCEPTION, &small(&[V3, ("depth_multiplier: 1.0", "depth_multiplier: 0.25")]));
    let tiny = zoo_config(INCEPTION, &[V3, ("height: 300", "height: 60")]);
    let error = format!("{:#}", from_config(&tiny).err().unwrap());
    assert!(error.contains("model.ssd.image_resizer") && error.contains("no cells"), "{error}");
}

#[test]
fn values_that_nothing_can_be_learnt_with_are_refused_by_name() {
    for (from, to, said) in [
        ("iou_threshold: 0.99", "iou_threshold: -1", "model.ssd.loss.hard_example_miner.iou_threshold: -1"),
        (
            "negatives_lower_than_unmatched: true",
            "negatives_lower_than_unmatched: false",
            "negatives_lower_than_unmatched: false",
        ),
        ("y_scale: 10.0", "y_scale: 0", "y_scale"),
        ("aspect_ratios: 0.5", "aspect_ratios: -0.5", "ssd_anchor_generator.aspect_ratios"),
        ("max_scale: 0.95", "max_scale: 0.95 scales: [0.1, 0.2, 0.3, 0, 0.5, 0.6]", "ssd_anchor_generator.scales"),
        ("min_scale: 0.2", "min_scale: 0", "min_scale 0"),
        ("depth_multiplier: 1.0", "depth_multiplier: -1", "feature_extractor.depth_multiplier: -1"),
        ("min_depth: 0\n        max_depth: 0", "min_depth: 64 max_depth: 32", "min_depth 64 is above max_depth 32"),
        ("kernel_size: 1", "kernel_size: 0", "kernel_size: 0"),
        (
            "use_dropout: false\n        dropout_keep_probability: 0.8",
            "use_dropout: true dropout_keep_probability: 1.8",
            "dropout_keep_probability: 1.8",
        ),
        ("weighted_smooth_l1 {", "weighted_smooth_l1 { delta: 0", "weighted_smooth_l1.delta: 0"),
        ("weighted_sigmoid {", "weighted_softmax { logit_scale: 0", "classification_loss.weighted_softmax.logit_scale: 0"),
        ("score_converter: SIGMOID", "score_converter: SIGMOID logit_scale: 0", "post_processing.logit_scale: 0"),
        ("max_scale: 0.95", "max_scale: 0.95 base_anchor_width: -1", "base_anchor_width: -1"),
        ("weight: 0.00004", "weight: -0.1", "conv_hyperparams.regularizer: its weight -0.1"),
    ] {
        let refused = match from_config(&zoo_config(V1, &[(from, to)])) {
            Ok(_) => panic!("{to} is taken"),
            Err(error) => format!("{error:#}"),
        };
        assert!(refused.contains(said), "{to}: {refused}");
    }
}
