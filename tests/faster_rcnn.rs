//! Faster R-CNN and R-FCN beyond the reference's own configs: batches, other parts and settings, and `odh train` as its user runs it.

mod common;
#[path = "common/project.rs"]
mod project;
#[allow(dead_code)]
#[path = "common/reference.rs"]
mod reference;

use std::fs;
use std::path::{Path, PathBuf};

use common::{seeded, zoo_config};
use odh::config::pipeline;
use odh::data::resizer::Resizer;
use odh::detection::boxes::Groundtruth;
use odh::detection::sampler::Shuffle;
use odh::models::box_classifier::Regioned;
use odh::models::faster_rcnn::FasterRcnn;
use odh::models::pictures::Pictures;
use odh::models::{DetectionModel, Losses, StepContext, from_config};
use odh::net::exec;
use odh::net::variables::Variables;
use odh::proto::object_detection::protos as pb;
use project::{odh, sample_project};
use reference::set_regenerated_weights;
use tch::{Device, Kind, Tensor};

/// The zoo's Faster R-CNN with Inception V2, for small pictures: 96x96, few and small anchors, few proposals.
fn small() -> pb::TrainEvalPipelineConfig {
    use pb::anchor_generator::AnchorGeneratorOneof as A;
    use pb::image_resizer::ImageResizerOneof as R;
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs/faster_rcnn_inception_v2_coco_2018_01_28.config");
    let mut config = pipeline::load(&path).unwrap();
    let model = part(&mut config);
    model.num_classes = Some(3);
    let size = pb::FixedShapeResizer { height: Some(96), width: Some(96), ..Default::default() };
    model.image_resizer.as_mut().unwrap().image_resizer_oneof = Some(R::FixedShapeResizer(size));
    let generator = model.first_stage_anchor_generator.as_mut().unwrap().anchor_generator_oneof.as_mut().unwrap();
    let A::GridAnchorGenerator(grid) = generator else { panic!("{generator:?}") };
    grid.scales = vec![0.125, 0.25];
    model.first_stage_max_proposals = Some(12);
    model.second_stage_batch_size = Some(8);
    config
}

fn part(config: &mut pb::TrainEvalPipelineConfig) -> &mut pb::FasterRcnn {
    match config.model.as_mut().unwrap().model.as_mut().unwrap() {
        pb::detection_model::Model::FasterRcnn(model) => model,
        other => panic!("{other:?}"),
    }
}

/// The small model with one change, built only if it counts as supported.
fn model(change: impl FnOnce(&mut pb::FasterRcnn)) -> FasterRcnn {
    let mut config = small();
    change(part(&mut config));
    pipeline::check_supported(&config).unwrap();
    FasterRcnn::from_config(part(&mut config)).unwrap()
}

fn variables(model: &FasterRcnn) -> Variables {
    let mut variables = Variables::new(model.variables(), 0, Device::Cpu).unwrap();
    set_regenerated_weights(&mut variables);
    variables
}

/// Two pictures of noise with a box each.
fn batch() -> (Tensor, [Groundtruth; 2]) {
    let images = seeded(5, || Tensor::rand([2, 96, 96, 3], (Kind::Float, Device::Cpu))) * 255.0;
    let truth = |b, class| Groundtruth { boxes: vec![b], classes: vec![class], difficult: vec![false], crowd: vec![false] };
    (images, [truth([0.1, 0.1, 0.6, 0.5], 0), truth([0.3, 0.2, 0.9, 0.9], 2)])
}

/// Samplers that take the first come first.
fn in_order() -> StepContext {
    StepContext { step: 0, shuffle: Shuffle::Identity }
}

fn terms(losses: &Losses) -> Vec<f64> {
    losses.terms.iter().map(|(_, t)| t.double_value(&[])).collect()
}

#[test]
fn a_classification_checkpoint_s_names_are_the_whole_network_s() {
    let name = |model: &str, scope: &str, name: &str| {
        from_config(&zoo_config(model, &[])).unwrap().classification_name(&format!("{scope}FeatureExtractor/"), name)
    };
    // Upstream's restore_from_classification_checkpoint_fn of each feature extractor.
    for (model, scope, variable, expected) in [
        ("faster_rcnn_resnet50_coco", "SecondStage", "resnet_v1_50/block4/a", "resnet_v1_50/block4/a"),
        ("faster_rcnn_inception_resnet_v2_atrous_coco", "FirstStage", "InceptionResnetV2/Repeat/a", "InceptionResnetV2/Repeat/a"),
        (
            "faster_rcnn_inception_resnet_v2_atrous_coco",
            "SecondStage",
            "InceptionResnetV2/Repeat/a",
            "InceptionResnetV2/Repeat_2/a",
        ),
        (
            "faster_rcnn_inception_resnet_v2_atrous_coco",
            "SecondStage",
            "InceptionResnetV2/Mixed_7a/a",
            "InceptionResnetV2/Mixed_7a/a",
        ),
        ("faster_rcnn_nas", "FirstStage", "cell_0/a", "cell_0/a/ExponentialMovingAverage"),
    ] {
        assert_eq!(name(model, scope, variable), expected, "{model}");
    }
}

#[test]
fn anchors_beyond_the_picture_are_taken_out_in_training_or_clipped_as_the_config_says() {
    let (images, truth) = batch();
    let anchors = |clip: bool| {
        let model = model(|m| m.clip_anchors_to_image = Some(clip));
        let pass = model.train(&variables(&model), &Pictures::whole(&images), &truth, &mut in_order()).unwrap();
        assert!(pass.rpn_loss.objectness.double_value(&[]) > 0.0);
        pass.first.anchors_px
    };
    let (pruned, clipped) = (anchors(false), anchors(true));
    assert!(pruned.len() < clipped.len(), "{} {}", pruned.len(), clipped.len());
    assert!(clipped.iter().flatten().all(|v| (0.0..=96.0).contains(v)));
    assert!(pruned.iter().all(|a| clipped.contains(a)));
}

#[test]
fn padded_pictures_of_different_shapes_make_a_batch_and_are_found_in_themselves() {
    let padded = model(|m| {
        use pb::image_resizer::ImageResizerOneof as R;
        let size = pb::KeepAspectRatioResizer {
            min_dimension: Some(64),
            max_dimension: Some(96),
            pad_to_max_dimension: Some(true),
            ..Default::default()
        };
        m.image_resizer.as_mut().unwrap().image_resizer_oneof = Some(R::KeepAspectRatioResizer(size));
    });
    let square = model(|_| {});
    assert_eq!(padded.resizer().fixed_size(), Some([96, 96]));
    let variables = variables(&padded);
    let (images, truth) = batch();
    let pixels: Vec<f32> = images.contiguous().view([-1]).try_into().unwrap();
    let sizes = [(72, 96), (96, 64)];
    let pictures = Pictures::new(&pixels, (96, 96), &sizes, Device::Cpu).unwrap();
    // Boxes are of each picture without padding; in the square they are the smaller.
    let squeezed: Vec<Groundtruth> = truth
        .iter()
        .zip(sizes)
        .map(|(g, (h, w))| {
            let [h, w] = [h as f32 / 96.0, w as f32 / 96.0];
            Groundtruth { boxes: g.boxes.iter().map(|b| [b[0] * h, b[1] * w, b[2] * h, b[3] * w]).collect(), ..g.clone() }
        })
        .collect();
    let mine = terms(&padded.losses(&variables, &pictures, &truth, &mut in_order()).unwrap());
    let expected = terms(&square.losses(&variables, &Pictures::whole(&images), &squeezed, &mut in_order()).unwrap());
    assert!(mine.iter().zip(&expected).all(|(a, b)| (a - b).abs() <= 1e-4 * b.abs()), "{mine:?} are not {expected:?}");
    let found = padded.freeze(&variables).unwrap().detect(&pictures).unwrap();
    let whole = square.freeze(&variables).unwrap().detect(&Pictures::whole(&images)).unwrap();
    for ((found, whole), (height, width)) in found.iter().zip(&whole).zip(sizes) {
        assert!(!found.boxes.is_empty() && found.boxes.iter().flatten().all(|v| (0.0..=1.0).contains(v)));
        // The best detection is the square's, cut at the picture's edge and measured by the picture.
        let share = [height as f32 / 96.0, width as f32 / 96.0];
        let same = |(f, b): (&[f32; 4], &[f32; 4])| (0..4).all(|i| (f[i] - (b[i] / share[i % 2]).min(1.0)).abs() < 1e-4);
        assert!(whole.boxes.iter().any(|b| same((&found.boxes[0], b))), "{:?}", found.boxes[0]);
    }
}

#[test]
fn a_batch_of_two_has_the_mean_of_their_losses_and_the_detections_of_each() {
    let model = model(|_| {});
    let variables = variables(&model);
    let (images, mut truth) = batch();
    // A proposal of each picture is its object, so that some proposals are positive.
    let pass = model.train(&variables, &Pictures::whole(&images), &truth, &mut in_order()).unwrap();
    truth[0].boxes = vec![pass.regions.boxes[0]];
    truth[1].boxes = vec![pass.regions.boxes[pass.regions.counts[0] + 1]];
    let losses = |images: &Tensor, truth: &[Groundtruth]| {
        terms(&model.losses(&variables, &Pictures::whole(images), truth, &mut in_order()).unwrap())
    };
    let both = losses(&images, &truth);
    let each = [losses(&images.narrow(0, 0, 1), &truth[..1]), losses(&images.narrow(0, 1, 1), &truth[1..])];
    for (i, loss) in both.iter().enumerate() {
        let mean = (each[0][i] + each[1][i]) / 2.0;
        assert!(mean > 0.0 && (loss - mean).abs() < 1e-4 * mean, "term {i}: {loss} is not {mean}");
    }
    let frozen = model.freeze(&variables).unwrap();
    let found = frozen.detect(&Pictures::whole(&images)).unwrap();
    assert_eq!(found.len(), 2);
    for (i, both) in found.iter().enumerate() {
        let alone = &frozen.detect(&Pictures::whole(&images.narrow(0, i as i64, 1))).unwrap()[0];
        assert!(!both.scores.is_empty());
        assert_eq!(both.classes, alone.classes);
        assert!(both.scores.iter().zip(&alone.scores).all(|(a, b)| (a - b).abs() < 1e-5));
        assert!(both.boxes.as_flattened().iter().zip(alone.boxes.as_flattened()).all(|(a, b)| (a - b).abs() < 1e-4));
    }
}

#[test]
fn other_parts_and_settings_train_and_detect() {
    use pb::box_predictor::BoxPredictorOneof as P;
    use pb::classification_loss::ClassificationLoss as C;
    type Change = fn(&mut pb::FasterRcnn);
    fn extractor(model: &mut pb::FasterRcnn) -> &mut pb::FasterRcnnFeatureExtractor {
        model.feature_extractor.as_mut().unwrap()
    }
    let changes: &[(&str, Change)] = &[
        ("stride 8", |m| {
            extractor(m).r#type = Some("faster_rcnn_resnet50".into());
            extractor(m).first_stage_features_stride = Some(8);
        }),
        ("Inception V2's stride 8, which changes nothing", |m| extractor(m).first_stage_features_stride = Some(8)),
        ("trained batch norms", |m| extractor(m).batch_norm_trainable = Some(true)),
        ("a dilated RPN of another depth and kernel", |m| {
            m.first_stage_atrous_rate = Some(2);
            m.first_stage_box_predictor_depth = Some(64);
            m.first_stage_box_predictor_kernel_size = Some(1);
        }),
        ("crops without pooling", |m| {
            m.initial_crop_size = Some(5);
            m.maxpool_kernel_size = Some(1);
            m.maxpool_stride = Some(1);
        }),
        ("dropout and a sigmoid", |m| {
            let Some(P::MaskRcnnBoxPredictor(p)) = m.second_stage_box_predictor.as_mut().unwrap().box_predictor_oneof.as_mut()
            else {
                panic!()
            };
            p.use_dropout = Some(true);
            p.dropout_keep_probability = Some(0.5);
            let sigmoid = C::WeightedSigmoid(pb::WeightedSigmoidClassificationLoss::default());
            m.second_stage_classification_loss = Some(pb::ClassificationLoss { classification_loss: Some(sigmoid) });
            m.second_stage_post_processing.as_mut().unwrap().set_score_converter(pb::post_processing::ScoreConverter::Sigmoid);
        }),
        ("R-FCN of other bins", |m| {
            let predictor = pb::RfcnBoxPredictor {
                num_spatial_bins_height: Some(2),
                num_spatial_bins_width: Some(3),
                depth: Some(32),
                crop_height: Some(8),
                crop_width: Some(9),
                ..Default::default()
            };
            m.second_stage_box_predictor.as_mut().unwrap().box_predictor_oneof = Some(P::RfcnBoxPredictor(predictor));
        }),
    ];
    let (images, truth) = batch();
    for (what, change) in changes {
        let model = model(change);
        let variables = variables(&model);
        let losses = model.losses(&variables, &Pictures::whole(&images), &truth, &mut StepContext::new(0, 0)).unwrap();
        let terms = terms(&losses);
        assert!(terms.iter().all(|t| t.is_finite() && *t >= 0.0) && terms[0] > 0.0 && terms[1] > 0.0, "{what}: {terms:?}");
        assert_eq!(losses.moving.is_empty(), *what != "trained batch norms", "{what}");
        losses.total().unwrap().backward();
        let grad = variables.get("Conv/weights").unwrap().grad();
        assert!(grad.abs().sum(Kind::Double).double_value(&[]) > 0.0, "{what}");
        let found = model.freeze(&variables).unwrap().detect(&Pictures::whole(&images)).unwrap();
        assert!(
            found.iter().all(|d| !d.scores.is_empty() && d.boxes.as_flattened().iter().all(|v| (0.0..=1.0).contains(v))),
            "{what}"
        );
    }
}

#[test]
fn a_miner_looks_at_all_proposals_and_counts_the_worst() {
    let model = model(|m| {
        let miner = pb::HardExampleMiner {
            num_hard_examples: Some(5),
            iou_threshold: Some(1.0),
            loss_type: Some(pb::hard_example_miner::LossType::Classification.into()),
            ..Default::default()
        };
        m.hard_example_miner = Some(miner);
    });
    let variables = variables(&model);
    let (images, truth) = batch();
    let pass =
        model.train(&variables, &Pictures::whole(&images.narrow(0, 0, 1)), &truth[..1], &mut StepContext::new(0, 0)).unwrap();
    assert_eq!(pass.regions.counts, [12]);
    let loss = pass.classifier_loss.unwrap();
    let log = pass.classified.unwrap().class_predictions.log_softmax(-1, Kind::Float);
    let mut rows: Vec<f64> =
        loss.targets[0].classes.iter().enumerate().map(|(i, &c)| -log.double_value(&[i as i64, c])).collect();
    rows.sort_by(|a, b| b.total_cmp(a));
    let worst: f64 = rows[..5].iter().sum::<f64>() / 12.0;
    let got = loss.classification.double_value(&[]);
    assert!((got - worst).abs() < 1e-4 * worst, "{got} is not {worst}");
}

/// Upstream's tensors have a fixed number of proposals, which batch norms see, too: the loss of its own code is another without them.
#[test]
fn missing_proposals_count_in_the_statistics_of_batch_norms_that_train() {
    for trains in [false, true] {
        let model = model(|m| m.feature_extractor.as_mut().unwrap().batch_norm_trainable = Some(trains));
        let (variables, classifier) = (variables(&model), model.classifier());
        let channels = classifier.graph.nodes()[0].channels;
        let map = seeded(3, || Tensor::rand([2, channels, 6, 6], (Kind::Float, Device::Cpu)));
        let frame = Pictures::whole(&batch().0).frame;
        let boxes = [vec![[0.0, 0.0, 50.0, 40.0]; 3], vec![[10.0, 20.0, 90.0, 80.0]; 5]];
        let regions = Regioned::new(boxes.iter().map(Vec::as_slice), &frame);
        let mut crops = Tensor::new();
        let classified = classifier
            .classify(&map, &regions, |input| {
                crops = input.shallow_clone();
                Ok(exec::train(&classifier.graph, &variables, input, 0)?.outputs)
            })
            .unwrap();
        assert_eq!(crops.size()[0], if trains { 16 } else { 8 });
        assert_eq!(classified.class_predictions.size(), [8, 4]);
        assert_eq!(classified.refined_box_encodings.size(), [8, 3, 4]);
        // Five of the first picture, three of the second: its first cell all over.
        for (i, picture) in (8..crops.size()[0]).zip([0, 0, 0, 0, 0, 1, 1, 1]) {
            let cell = map.narrow(0, picture, 1).narrow(2, 0, 1).narrow(3, 0, 1);
            assert_eq!(crops.narrow(0, i, 1), cell.expand_as(&crops.narrow(0, i, 1)));
        }
    }
}

#[test]
fn a_picture_too_narrow_for_any_anchor_has_no_losses() {
    let model = model(|_| {});
    let variables = variables(&model);
    let (_, truth) = batch();
    let images = Tensor::zeros([1, 8, 200, 3], (Kind::Float, Device::Cpu));
    let losses = model.losses(&variables, &Pictures::whole(&images), &truth[..1], &mut StepContext::new(0, 0)).unwrap();
    assert_eq!(terms(&losses), [0.0; 4]);
    losses.total().unwrap().backward();
    assert!(!model.freeze(&variables).unwrap().detect(&Pictures::whole(&images)).unwrap()[0].scores.is_empty());
}

#[test]
fn anchors_that_fit_no_picture_at_all_are_told_of_where_they_would_teach_nothing() {
    let large = |clipped: bool| {
        model(|m| {
            use pb::anchor_generator::AnchorGeneratorOneof as A;
            let generator = m.first_stage_anchor_generator.as_mut().unwrap().anchor_generator_oneof.as_mut().unwrap();
            let A::GridAnchorGenerator(grid) = generator else { panic!("{generator:?}") };
            grid.scales = vec![1.0];
            m.clip_anchors_to_image = Some(clipped);
        })
    };
    let (images, truth) = batch();
    let losses = |model: &FasterRcnn| {
        let variables = variables(model);
        model.losses(&variables, &Pictures::whole(&images), &truth, &mut StepContext::new(0, 0)).map(|losses| terms(&losses))
    };
    let said = losses(&large(false)).unwrap_err().to_string();
    assert!(said.contains("first_stage_anchor_generator") && said.contains("96 x 96"), "{said}");
    assert!(losses(&large(true)).unwrap()[1] > 0.0);
}

#[test]
fn a_picture_without_objects_trains_as_background() {
    let model = model(|_| {});
    let variables = variables(&model);
    let (images, _) = batch();
    let losses = model.losses(
        &variables,
        &Pictures::whole(&images.narrow(0, 0, 1)),
        &[Groundtruth::default()],
        &mut StepContext::new(0, 0),
    );
    let terms = terms(&losses.unwrap());
    assert!(terms[0] == 0.0 && terms[1] > 0.0 && terms[2] == 0.0 && terms[3] > 0.0, "{terms:?}");
}

#[test]
fn the_parts_that_are_not_there_are_refused_by_name() {
    use pb::box_predictor::BoxPredictorOneof as P;
    type Change = fn(&mut pb::FasterRcnn);
    fn mask_rcnn(model: &mut pb::FasterRcnn) -> &mut pb::MaskRcnnBoxPredictor {
        match model.second_stage_box_predictor.as_mut().unwrap().box_predictor_oneof.as_mut() {
            Some(P::MaskRcnnBoxPredictor(p)) => p,
            other => panic!("{other:?}"),
        }
    }
    let changes: &[(&str, Change)] = &[
        ("image_resizer.fixed_shape_resizer.width: 20 is too small", |m| {
            let size = pb::FixedShapeResizer { height: Some(96), width: Some(20), ..Default::default() };
            m.image_resizer.as_mut().unwrap().image_resizer_oneof =
                Some(pb::image_resizer::ImageResizerOneof::FixedShapeResizer(size));
        }),
        ("number_of_stages: 3", |m| m.number_of_stages = Some(3)),
        ("predict_instance_masks", |m| mask_rcnn(m).predict_instance_masks = Some(true)),
        ("predict_keypoints", |m| mask_rcnn(m).predict_keypoints = Some(true)),
        ("feature_extractor.type: `vgg`", |m| m.feature_extractor.as_mut().unwrap().r#type = Some("vgg".into())),
        ("first_stage_features_stride", |m| m.feature_extractor.as_mut().unwrap().first_stage_features_stride = Some(4)),
        ("initial_crop_size", |m| m.initial_crop_size = None),
        ("initial_crop_size: of crops of 4, pooled to 2, the second stage leaves nothing", |m| {
            m.feature_extractor.as_mut().unwrap().r#type = Some("faster_rcnn_inception_resnet_v2".into());
            m.initial_crop_size = Some(4);
        }),
        ("fc_hyperparams.op", |m| mask_rcnn(m).fc_hyperparams.as_mut().unwrap().op = None),
        ("second_stage_post_processing", |m| m.second_stage_post_processing = None),
        ("first_stage_nms_iou_threshold: 7", |m| m.first_stage_nms_iou_threshold = Some(7.0)),
        ("dropout_keep_probability: 1.5", |m| {
            mask_rcnn(m).use_dropout = Some(true);
            mask_rcnn(m).dropout_keep_probability = Some(1.5);
        }),
        ("hard_example_miner.iou_threshold: -1", |m| {
            m.hard_example_miner = Some(pb::HardExampleMiner { iou_threshold: Some(-1.0), ..Default::default() });
        }),
    ];
    for (name, change) in changes {
        let mut config = small();
        change(part(&mut config));
        let error = FasterRcnn::from_config(part(&mut config)).map(|_| ()).unwrap_err();
        assert!(format!("{error:#}").contains(name), "{name}: {error:#}");
    }
    // More samples than proposals cannot be trained; what was trained may detect with fewer.
    let mut config = small();
    part(&mut config).second_stage_batch_size = Some(13);
    from_config(&config).unwrap();
    let error = odh::models::check_training(&config).unwrap_err().to_string();
    assert!(error.contains("second_stage_batch_size: 13"), "{error}");
}

/// Pictures with their records and the small config, which keeps their aspect.
fn project() -> tempfile::TempDir {
    let mut config = small();
    let size = pb::KeepAspectRatioResizer { min_dimension: Some(80), max_dimension: Some(112), ..Default::default() };
    let resizer = part(&mut config).image_resizer.as_mut().unwrap();
    resizer.image_resizer_oneof = Some(pb::image_resizer::ImageResizerOneof::KeepAspectRatioResizer(size));
    sample_project("small.config", &pipeline::to_text(&config))
}

#[test]
fn a_resumed_run_ends_with_the_very_bytes_of_an_uninterrupted_one_and_evaluates() {
    let train = |folder: &Path, steps: &str, more: &[&str]| {
        let start = ["train", "--pipeline_config", "small.config", "--fine_tune_checkpoint", "none", "--device", "cpu"];
        let args = ["--export=False", "-s", steps, "-n", "100"];
        let args: Vec<&str> = start.into_iter().chain(args).chain(more.iter().copied()).collect();
        odh(folder, &args)
    };
    let (whole, parts) = (project(), project());
    let said = train(whole.path(), "4", &["--seed", "7"]);
    assert!(said.contains("RPN objectness") && said.contains("box classification"), "{said}");
    train(parts.path(), "2", &["--seed", "7", "-e", "False"]);
    train(parts.path(), "4", &["--seed", "8", "-e", "False", "--loader_threads", "3"]);
    let bytes = |folder: &Path| -> Vec<u8> {
        let path: PathBuf = folder.join("train_dir/small/model.ckpt-4.data-00000-of-00001");
        fs::read(path).unwrap()
    };
    assert!(bytes(whole.path()) == bytes(parts.path()));
    assert!(whole.path().join("eval_dir/small/eval-4.json").is_file());
}

#[test]
fn a_network_of_152_layers_and_another_picture_size_are_a_matter_of_the_config() {
    let model = model(|m| {
        m.feature_extractor.as_mut().unwrap().r#type = Some("faster_rcnn_resnet152".into());
        let size = pb::FixedShapeResizer { height: Some(120), width: Some(72), ..Default::default() };
        m.image_resizer.as_mut().unwrap().image_resizer_oneof =
            Some(pb::image_resizer::ImageResizerOneof::FixedShapeResizer(size));
    });
    assert_eq!(model.resizer(), Resizer::fixed_shape(120, 72));
    // Five variables each of 155 convolutions with their batch norms (three of 50 units and a shortcut a block, and the first), block4's
    // ten again, and two each of the proposal network's three layers and the two predictors.
    assert_eq!(model.variables().len(), 5 * (155 + 10) + 2 * 5);
}
