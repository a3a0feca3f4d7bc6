//! The models by name: the table of the tutorial, the old menu, and the config that each model comes with.

use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::config::{pipeline, text};
use crate::proto::object_detection::protos as pb;
use crate::{exit, logging, prompt};

/// One model of the TensorFlow detection model zoo.
#[derive(Debug, PartialEq)]
pub struct ZooModel {
    /// Its line in the old tool's menu, 1 to 13; `None` for a model that the menu did not have.
    pub number: Option<u8>,
    /// Its name in the tutorial's table.
    pub table_name: &'static str,
    /// Its folder in the zoo, under `model_zoo/`, `train_dir/`, `eval_dir/` and `export_dir/`.
    pub folder: &'static str,
    /// Of the pretrained weights' archive contents, as the tutorial's table has it.
    pub size: Option<&'static str>,
    /// The tutorial's time for 1000 steps with evaluation and export on one P100.
    pub training_time: Option<&'static str>,
    /// Milliseconds a picture of 600x600, as the zoo publishes it (one Titan X).
    pub speed_ms: u16,
    /// On COCO, as the zoo publishes it.
    pub coco_map: Option<u8>,
    /// Sides of the network's input.
    pub input: &'static str,
    embedded: &'static str,
}

/// The config that is built in, by the model's folder.
macro_rules! embedded {
    ($folder:literal) => {
        include_str!(concat!("../../configs/", $folder, ".config"))
    };
}

/// A row of [`MODELS`].
macro_rules! model {
    ($number:expr, $table:literal, $folder:literal, $size:expr, $time:expr, $ms:literal, $map:expr, $input:expr) => {
        ZooModel {
            number: $number,
            table_name: $table,
            folder: $folder,
            size: $size,
            training_time: $time,
            speed_ms: $ms,
            coco_map: $map,
            input: $input,
            embedded: embedded!($folder),
        }
    };
}

const KEEP: &str = "600 to 1024";

/// Every model: those of the tutorial's table in its order, which is the old menu's, then the others.
///
/// Sizes and times are the tutorial's, speeds and mAPs the model zoo's page as of April 2018 (0.75 depth: of 2019).
#[rustfmt::skip]
pub const MODELS: &[ZooModel] = &[
    // menu, table name,
    //     folder, size, time of 1000 steps, ms a picture, COCO mAP, input sides
    model!(Some(1),  "ssd_mobilenet_v1_coco",
           "ssd_mobilenet_v1_coco_2017_11_17", Some("86M"), Some("9m 44s"), 30, Some(21), "300"),
    model!(Some(2),  "ssd_mobilenet_v2_coco",
           "ssd_mobilenet_v2_coco_2018_03_29", Some("201M"), Some("11m 12s"), 31, Some(22), "300"),
    model!(Some(3),  "ssd_inception_v2_coco",
           "ssd_inception_v2_coco_2017_11_17", Some("295M"), Some("8m 43s"), 42, Some(24), "300"),
    model!(Some(4),  "faster_rcnn_inception_v2_coco",
           "faster_rcnn_inception_v2_coco_2018_01_28", Some("167M"), Some("4m 43s"), 58, Some(28), KEEP),
    model!(Some(5),  "faster_rcnn_resnet50_coco",
           "faster_rcnn_resnet50_coco_2018_01_28", Some("405M"), Some("4m 28s"), 89, Some(30), KEEP),
    model!(Some(6),  "faster_rcnn_resnet50_lowproposals_coco",
           "faster_rcnn_resnet50_lowproposals_coco_2018_01_28", Some("405M"), Some("4m 30s"), 64, None, KEEP),
    model!(Some(7),  "rfcn_resnet101_coco",
           "rfcn_resnet101_coco_2018_01_28", Some("685M"), Some("6m 19s"), 92, Some(30), KEEP),
    model!(Some(8),  "faster_rcnn_resnet101_coco",
           "faster_rcnn_resnet101_coco_2018_01_28", Some("624M"), Some("6m 13s"), 106, Some(32), KEEP),
    model!(Some(9),  "faster_rcnn_resnet101_lowproposals_coco",
           "faster_rcnn_resnet101_lowproposals_coco_2018_01_28", Some("624M"), Some("6m 13s"), 82, None, KEEP),
    model!(Some(10), "faster_rcnn_inception_resnet_v2_atrous_coco",
           "faster_rcnn_inception_resnet_v2_atrous_coco_2018_01_28", Some("712M"), Some("18m 6s"), 620, Some(37), KEEP),
    model!(Some(11), "faster_rcnn_inception_resnet_v2_atrous_lowproposals_coco",
           "faster_rcnn_inception_resnet_v2_atrous_lowproposals_coco_2018_01_28", Some("712M"), None, 241, None, KEEP),
    model!(Some(12), "faster_rcnn_nas",
           "faster_rcnn_nas_coco_2018_01_28", Some("1.2G"), Some("47m 49s"), 1833, Some(43), "1200"),
    model!(Some(13), "faster_rcnn_nas_lowproposals_coco",
           "faster_rcnn_nas_lowproposals_coco_2018_01_28", Some("1.2G"), None, 540, None, "1200"),
    model!(None,     "ssd_mobilenet_v1_0.75_depth_coco",
           "ssd_mobilenet_v1_0.75_depth_coco", None, None, 26, Some(18), "300"),
];

impl ZooModel {
    /// Where the model's config lies in a working directory, if the user has one there: `configs/FOLDER.config`.
    pub fn config_path(&self) -> PathBuf {
        Path::new("configs").join(format!("{}.config", self.folder))
    }

    /// The model's config: the file [`Self::config_path`] in `folder` if there is one, else the one that is built in; and
    /// what to call it in messages.
    ///
    /// # Errors
    /// If the file is there but cannot be read or parsed.
    pub fn config(&self, folder: &Path) -> Result<(pb::TrainEvalPipelineConfig, String)> {
        let path = folder.join(self.config_path());
        if path.is_file() {
            return Ok((pipeline::load(&path)?, path.display().to_string()));
        }
        let source = format!("{} (built in)", self.config_path().display());
        Ok((pipeline::parse(self.embedded, &source)?, source))
    }

    /// The text of the config that is built in.
    pub fn built_in_config(&self) -> &'static str {
        self.embedded
    }
}

/// The model that is meant by what was typed: a name of the table, a zoo folder, a number of the menu, or the start of one
/// model's name.
///
/// # Errors
/// If nothing starts so (the nearest name is given) or several do (they are listed); exit code 2.
pub fn resolve(typed: &str) -> Result<&'static ZooModel> {
    let name = typed.trim().trim_end_matches(['/', '\\']).to_lowercase();
    let menu = MODELS.iter().filter_map(|m| m.number).max().unwrap_or_default();
    if let Ok(number) = name.parse::<i64>() {
        return MODELS
            .iter()
            .find(|m| m.number.is_some_and(|n| i64::from(n) == number))
            .ok_or_else(|| exit::usage(format!("no model {typed}: the menu goes from 1 to {menu}")));
    }
    if let Some(model) = MODELS.iter().find(|m| m.table_name == name || m.folder == name) {
        return Ok(model);
    }
    let starts = |m: &&ZooModel| !name.is_empty() && (m.table_name.starts_with(&name) || m.folder.starts_with(&name));
    let candidates: Vec<&'static ZooModel> = MODELS.iter().filter(starts).collect();
    match candidates[..] {
        [model] => Ok(model),
        [] => {
            let names = MODELS.iter().flat_map(|m| [m.table_name, m.folder]);
            let hint = match text::nearest(&name, names) {
                Some(near) => format!("did you mean {near}?"),
                None => format!("the models are:\n{}", list(MODELS.iter())),
            };
            Err(exit::usage(format!("no model `{typed}`; {hint}")))
        }
        _ => Err(exit::usage(format!("`{typed}` fits several models:\n{}", list(candidates.into_iter())))),
    }
}

fn list(models: impl Iterator<Item = &'static ZooModel>) -> String {
    models.map(|m| format!("  {}", m.table_name)).collect::<Vec<_>>().join("\n")
}

/// Asks for a model with the old tool's menu.
///
/// # Errors
/// If there is no terminal to ask on: the flag is named; exit code 2.
pub fn choose_model() -> Result<&'static ZooModel> {
    if prompt::possible() {
        logging::say(&menu());
    }
    prompt::ask("Select Model Number : ", "--model NAME", resolve)
}

fn menu() -> String {
    let mut text = String::from("\nSelect Model\n\n");
    for model in MODELS {
        if let Some(number) = model.number {
            text.push_str(&format!("{number}. {}\n", model.table_name));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use prost_reflect::ReflectMessage;

    use super::*;
    use crate::testing::shared;

    fn found(typed: &str) -> &'static str {
        resolve(typed).unwrap().table_name
    }

    fn error(typed: &str) -> String {
        let error = resolve(typed).unwrap_err();
        assert_eq!(exit::code(&error), 2);
        error.to_string()
    }

    #[test]
    fn a_model_is_found_by_table_name_folder_number_or_unique_prefix() {
        assert_eq!(found("ssd_mobilenet_v1_coco"), "ssd_mobilenet_v1_coco");
        assert_eq!(found("ssd_mobilenet_v1_coco_2017_11_17"), "ssd_mobilenet_v1_coco");
        assert_eq!(found("ssd_mobilenet_v1_coco_2017"), "ssd_mobilenet_v1_coco");
        assert_eq!(found(" SSD_Mobilenet_V2 "), "ssd_mobilenet_v2_coco");
        // The table's name for it, though the lowproposals model starts so too.
        assert_eq!(found("faster_rcnn_nas"), "faster_rcnn_nas");
        assert_eq!(found("faster_rcnn_nas_coco"), "faster_rcnn_nas");
        assert_eq!(found("rfcn"), "rfcn_resnet101_coco");
        assert_eq!(found("4"), "faster_rcnn_inception_v2_coco");
        assert_eq!(found("ssd_mobilenet_v1_0.75_depth_coco/"), "ssd_mobilenet_v1_0.75_depth_coco");
    }

    #[test]
    fn what_is_ambiguous_lists_the_candidates_and_what_is_unknown_the_nearest() {
        let text = error("faster_rcnn_resnet50");
        assert!(text.contains("  faster_rcnn_resnet50_coco\n  faster_rcnn_resnet50_lowproposals_coco"), "{text}");
        assert!(error("ssd_mobilnet_v1_coco").contains("did you mean ssd_mobilenet_v1_coco?"));
        assert!(error("14").contains("1 to 13"));
        assert!(error("0").contains("1 to 13"));
        assert!(error("").contains("ssd_inception_v2_coco"));
        assert!(error("yolo").contains("ssd_inception_v2_coco"));
    }

    #[test]
    fn every_built_in_config_parses_and_names_its_own_weights() {
        let nowhere = tempfile::tempdir().unwrap();
        for model in MODELS {
            let (config, source) = model.config(nowhere.path()).unwrap();
            assert!(source.contains("built in"), "{source}");
            let train = config.train_config.as_ref().unwrap();
            assert_eq!(train.fine_tune_checkpoint(), format!("model_zoo/{}/model.ckpt", model.folder));
            assert_eq!(pipeline::parse(&pipeline::to_text(&config), "again").unwrap(), config);
        }
    }

    #[test]
    fn a_config_in_the_working_directory_takes_the_built_in_ones_place() {
        let folder = tempfile::tempdir().unwrap();
        let model = resolve("1").unwrap();
        let path = folder.path().join(model.config_path());
        std::fs::create_dir(folder.path().join("configs")).unwrap();
        std::fs::write(&path, model.built_in_config().replace("batch_size: 24", "batch_size: 5")).unwrap();
        let (config, source) = model.config(folder.path()).unwrap();
        assert_eq!(config.train_config.unwrap().batch_size(), 5);
        assert_eq!(source, path.display().to_string());
    }

    /// A field of a config by its path, as the text format has it.
    fn value(config: &pb::TrainEvalPipelineConfig, path: &str) -> String {
        let mut message = text::reflect("object_detection.protos.TrainEvalPipelineConfig", config).unwrap();
        let (parents, last) = path.rsplit_once('.').unwrap();
        for name in parents.split('.') {
            message = message.get_field_by_name(name).unwrap().as_message().unwrap_or_else(|| panic!("{path}")).clone();
        }
        let field = message.descriptor().get_field_by_name(last).unwrap_or_else(|| panic!("{path}"));
        match message.get_field(&field).as_list() {
            Some(list) => list.iter().map(|v| text::scalar(v, &field.kind())).collect::<Vec<_>>().join(" "),
            None => text::scalar(&message.get_field(&field), &field.kind()),
        }
    }

    #[track_caller]
    fn check(typed: &str, under: &str, expected: &[(&str, &str)]) {
        let config = pipeline::parse(resolve(typed).unwrap().built_in_config(), typed).unwrap();
        for (path, expected) in expected {
            assert_eq!(&value(&config, &format!("{under}.{path}")), expected, "{typed}: {under}.{path}");
        }
    }

    #[test]
    fn ssd_configs_have_the_references_hyperparameters() {
        for (typed, kernel, depthwise, min_negatives, multiplier) in [
            ("1", "1", "false", "0", "1.0"),
            ("2", "3", "true", "3", "1.0"),
            ("3", "3", "false", "0", "1.0"),
            ("ssd_mobilenet_v1_0", "1", "false", "0", "0.75"),
        ] {
            check(
                typed,
                "model.ssd",
                &[
                    ("num_classes", "90"),
                    ("image_resizer.fixed_shape_resizer.height", "300"),
                    ("feature_extractor.depth_multiplier", multiplier),
                    ("feature_extractor.use_depthwise", depthwise),
                    ("feature_extractor.conv_hyperparams.batch_norm.decay", "0.9997"),
                    ("feature_extractor.conv_hyperparams.batch_norm.epsilon", "0.001"),
                    ("feature_extractor.conv_hyperparams.regularizer.l2_regularizer.weight", "4e-5"),
                    ("box_predictor.convolutional_box_predictor.kernel_size", kernel),
                    ("box_predictor.convolutional_box_predictor.use_dropout", "false"),
                    ("box_predictor.convolutional_box_predictor.conv_hyperparams.regularizer.l2_regularizer.weight", "4e-5"),
                    ("anchor_generator.ssd_anchor_generator.aspect_ratios", "1.0 2.0 0.5 3.0 0.3333"),
                    ("anchor_generator.ssd_anchor_generator.max_scale", "0.95"),
                    ("post_processing.batch_non_max_suppression.score_threshold", "1e-8"),
                    ("loss.hard_example_miner.min_negatives_per_image", min_negatives),
                    ("loss.hard_example_miner.loss_type", "CLASSIFICATION"),
                    ("loss.hard_example_miner.iou_threshold", "0.99"),
                ],
            );
            check(
                typed,
                "train_config.optimizer.rms_prop_optimizer",
                &[
                    ("learning_rate.exponential_decay_learning_rate.initial_learning_rate", "0.004"),
                    ("learning_rate.exponential_decay_learning_rate.decay_steps", "800720"),
                    ("decay", "0.9"),
                    ("epsilon", "1.0"),
                ],
            );
            check(typed, "train_config", &[("batch_size", "24")]);
        }
        check("3", "model.ssd.feature_extractor", &[("override_base_feature_extractor_hyperparams", "true")]);
    }

    #[test]
    fn faster_rcnn_configs_have_the_references_hyperparameters() {
        // Menu number, stride, atrous rate, crop and pooling, rate; then proposals, second-stage batch, detections of both.
        for (number, stride, atrous, crop, pool, rate, [proposals, low_proposals], [total, low_total]) in [
            ("4", "16", "1", "14", "2", "0.0002", ["300", ""], ["300", ""]),
            ("5", "16", "1", "14", "2", "0.0003", ["300", "20"], ["300", "20"]),
            ("8", "16", "1", "14", "2", "0.0003", ["300", "20"], ["300", "20"]),
            ("10", "8", "2", "17", "1", "0.0003", ["300", "20"], ["100", "20"]),
            ("12", "16", "1", "17", "1", "0.0003", ["500", "20"], ["100", "20"]),
        ] {
            let low = (number.parse::<u8>().unwrap() + 1).to_string();
            for (number, proposals, batch, total) in [(number, proposals, "64", total), (&low, low_proposals, "20", low_total)] {
                if proposals.is_empty() {
                    continue;
                }
                check(
                    number,
                    "model.faster_rcnn",
                    &[
                        ("feature_extractor.first_stage_features_stride", stride),
                        ("first_stage_anchor_generator.grid_anchor_generator.height_stride", stride),
                        ("first_stage_anchor_generator.grid_anchor_generator.scales", "0.25 0.5 1.0 2.0"),
                        ("first_stage_atrous_rate", atrous),
                        ("first_stage_max_proposals", proposals),
                        ("first_stage_localization_loss_weight", "2.0"),
                        ("initial_crop_size", crop),
                        ("maxpool_kernel_size", pool),
                        ("second_stage_batch_size", batch),
                        ("second_stage_post_processing.batch_non_max_suppression.max_total_detections", total),
                        ("second_stage_post_processing.score_converter", "SOFTMAX"),
                    ],
                );
                check(
                    number,
                    "train_config",
                    &[
                        ("batch_size", "1"),
                        ("gradient_clipping_by_norm", "10.0"),
                        ("optimizer.use_moving_average", "false"),
                        ("optimizer.momentum_optimizer.learning_rate.manual_step_learning_rate.initial_learning_rate", rate),
                    ],
                );
            }
        }
        check(
            "7",
            "model.faster_rcnn.second_stage_box_predictor.rfcn_box_predictor",
            &[("crop_height", "18"), ("depth", "1024")],
        );
    }

    #[test]
    fn the_menu_asks_until_a_model_is_chosen() {
        let mut shown = Vec::new();
        let input = &b"\n14\n13\n1\n"[..];
        let model = prompt::ask_on(&mut &*input, &mut shown, "Select Model Number : ", "--model NAME", resolve).unwrap();
        assert_eq!(model.table_name, "faster_rcnn_nas_lowproposals_coco");
        let shown = String::from_utf8(shown).unwrap();
        assert!(shown.contains("1 to 13"), "{shown}");
        assert_eq!(shown.matches("Select Model Number : ").count(), 3);
    }

    #[test]
    fn the_menu_has_13_lines() {
        let menu = menu();
        assert_eq!(menu.lines().filter(|l| l.starts_with(|c: char| c.is_ascii_digit())).count(), 13);
        assert!(menu.contains("\n1. ssd_mobilenet_v1_coco\n"), "{menu}");
        assert!(menu.contains("\n13. faster_rcnn_nas_lowproposals_coco\n"), "{menu}");
    }

    #[test]
    fn the_menu_has_the_tutorials_order() {
        let Some(seed) = shared("seed") else { return };
        let file = std::fs::read_dir(seed).unwrap().next().unwrap().unwrap().path();
        let tutorial = std::fs::read_to_string(file).unwrap();
        let rows: Vec<Vec<&str>> = tutorial
            .lines()
            .filter(|l| l.starts_with("| ") && l.contains("coco") || l.starts_with("| faster_rcnn_nas "))
            .map(|l| l.split('|').map(str::trim).collect())
            .collect();
        assert_eq!(rows.len(), 13);
        for (row, number) in rows.iter().zip(1..) {
            let model = resolve(&format!("{number}")).unwrap();
            assert_eq!(model.table_name, row[1]);
            assert_eq!(model.size.unwrap_or_default(), row[2]);
            assert_eq!(model.training_time.unwrap_or_default(), row[3]);
        }
    }
}
