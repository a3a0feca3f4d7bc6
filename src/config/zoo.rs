//! The models by name: the table of the tutorial, the old menu, and the config that each model comes with.

use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::config::{pipeline, text};
use crate::proto::object_detection::protos as pb;
use crate::{exit, prompt};

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

    /// Whether this program can run the model: whether its built-in config is supported.
    pub fn is_built(&self) -> bool {
        pipeline::parse(self.embedded, self.folder).is_ok_and(|config| pipeline::check_supported(&config).is_ok())
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
    prompt::ask(&menu(), "--model NAME", choose)
}

fn menu() -> String {
    let mut text = String::from("\nSelect Model\n\n");
    for model in MODELS {
        if let Some(number) = model.number {
            let note = if model.is_built() { "" } else { "(not built yet)" };
            let line = format!("{number}. {} {note}", model.table_name);
            text.push_str(line.trim_end());
            text.push('\n');
        }
    }
    text.push_str("\nSelect Model Number : ");
    text
}

fn choose(answer: &str) -> Result<&'static ZooModel> {
    let model = resolve(answer)?;
    if !model.is_built() {
        return Err(exit::usage(format!("{} is not built yet; choose another", model.table_name)));
    }
    Ok(model)
}

#[cfg(test)]
mod tests {
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
            assert_eq!(model.is_built(), model.folder.starts_with("ssd_mobilenet_v1"), "{}", model.folder);
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
