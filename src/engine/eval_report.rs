//! An evaluation for people and programs: a table, lines for the log, scalars for TensorBoard, and a JSON file.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::Serialize;

use crate::config::label_map::LabelMap;
use crate::formats::atomic_file;
use crate::metrics::coco::{CocoResult, CocoStats};
use crate::metrics::pascal::PascalResult;
use crate::wording::{columns, plural, printable};

/// What was evaluated, on what, and how long it took.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct EvalRun {
    /// The model's folder name.
    pub model: String,
    /// The checkpoint's prefix.
    pub checkpoint: String,
    /// The training step that the checkpoint was saved at; 0 for pretrained weights.
    pub step: u64,
    /// Pictures that were looked at.
    pub pictures: usize,
    /// Groundtruth boxes, difficult ones and crowds included.
    pub groundtruth_boxes: usize,
    /// Detections that the model gave.
    pub detections: usize,
    /// Wall time, with reading the pictures.
    pub seconds: f64,
    /// What it ran on, as `device::name` calls it: `cpu (2 threads)`.
    pub device: String,
}

/// Every figure of one evaluation. Figures that do not exist are NaN here and `null` in JSON; COCO's twelve are -1 then, as
/// pycocotools prints them.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct EvalReport {
    #[serde(flatten)]
    pub run: EvalRun,
    pub pascal: PascalReport,
    pub coco: CocoReport,
}

/// PASCAL VOC at IoU 0.5.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PascalReport {
    #[serde(rename = "mAP@0.5IOU")]
    pub map: f64,
    #[serde(rename = "mean_CorLoc@0.5IOU")]
    pub mean_corloc: f64,
    /// By ascending id.
    pub classes: Vec<ClassReport>,
}

/// One class of the label map.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ClassReport {
    pub id: u32,
    /// What people are shown.
    pub name: String,
    #[serde(rename = "AP@0.5IOU")]
    pub ap: f64,
    #[serde(rename = "CorLoc@0.5IOU")]
    pub corloc: f64,
    /// Groundtruth boxes, difficult ones left out.
    pub groundtruth_boxes: usize,
    /// Pictures with groundtruth of the class.
    pub pictures: usize,
    /// COCO's AP over IoU 0.50 to 0.95.
    pub coco_ap: f64,
}

/// COCO's figures.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CocoReport {
    /// The twelve by name.
    #[serde(flatten)]
    pub stats: CocoStats,
    /// The twelve in pycocotools' order.
    #[serde(rename = "stats")]
    pub list: [f64; 12],
}

/// TensorBoard's tags of COCO's twelve figures, as the OD API names them, in pycocotools' order.
const COCO_TAGS: [&str; 12] = [
    "DetectionBoxes_Precision/mAP",
    "DetectionBoxes_Precision/mAP@.50IOU",
    "DetectionBoxes_Precision/mAP@.75IOU",
    "DetectionBoxes_Precision/mAP (small)",
    "DetectionBoxes_Precision/mAP (medium)",
    "DetectionBoxes_Precision/mAP (large)",
    "DetectionBoxes_Recall/AR@1",
    "DetectionBoxes_Recall/AR@10",
    "DetectionBoxes_Recall/AR@100",
    "DetectionBoxes_Recall/AR@100 (small)",
    "DetectionBoxes_Recall/AR@100 (medium)",
    "DetectionBoxes_Recall/AR@100 (large)",
];

/// The mAP@0.5 that a report's file gives; none where there is no such file, or nothing was to be found.
pub fn map_in(path: &Path) -> Option<f64> {
    let report: serde_json::Value = serde_json::from_slice(&std::fs::read(path).ok()?).ok()?;
    report["pascal"]["mAP@0.5IOU"].as_f64()
}

impl EvalReport {
    /// Puts the figures beside the names of their classes.
    pub fn new(run: EvalRun, label_map: &LabelMap, pascal: &PascalResult, coco: &CocoResult) -> Self {
        let classes: Vec<ClassReport> = label_map
            .items
            .iter()
            .map(|item| {
                let i = (item.id as usize).wrapping_sub(1);
                let figure = |list: &[f64]| list.get(i).copied().unwrap_or(f64::NAN);
                let count = |list: &[usize]| list.get(i).copied().unwrap_or(0);
                ClassReport {
                    id: item.id,
                    name: label_map.label(item.id),
                    ap: figure(&pascal.ap),
                    corloc: figure(&pascal.corloc),
                    groundtruth_boxes: count(&pascal.num_gt),
                    pictures: count(&pascal.num_gt_images),
                    coco_ap: coco.categories.iter().find(|c| c.id == item.id).map_or(f64::NAN, |c| c.ap),
                }
            })
            .collect();
        Self {
            run,
            pascal: PascalReport { map: pascal.map, mean_corloc: pascal.mean_corloc, classes },
            coco: CocoReport { stats: coco.stats, list: coco.stats.to_array() },
        }
    }

    /// The scalars for TensorBoard under the OD API's tags, those that do not exist left out.
    pub fn scalars(&self) -> Vec<(String, f64)> {
        let mut scalars = vec![("PascalBoxes_Precision/mAP@0.5IOU".to_string(), self.pascal.map)];
        for class in &self.pascal.classes {
            scalars.push((format!("PascalBoxes_PerformanceByCategory/AP@0.5IOU/{}", class.name), class.ap));
        }
        scalars.retain(|(_, value)| !value.is_nan());
        let coco = COCO_TAGS.iter().zip(self.coco.list).filter(|(_, value)| *value >= 0.0);
        scalars.extend(coco.map(|(tag, value)| (tag.to_string(), value)));
        scalars
    }

    /// The lines for process.log.
    pub fn log_lines(&self) -> Vec<String> {
        let run = &self.run;
        let mut lines = vec![format!(
            "Evaluate [ model : {}, step : {}, mAP@0.5 : {}, COCO AP : {}, pictures : {}, boxes : {}, seconds : {:.1}, \
             pictures per second : {:.1}, device : {}, checkpoint : {} ]",
            run.model,
            run.step,
            cell(self.pascal.map),
            cell(self.coco.stats.ap),
            run.pictures,
            run.groundtruth_boxes,
            run.seconds,
            self.rate(),
            run.device,
            run.checkpoint
        )];
        for class in &self.pascal.classes {
            lines.push(format!(
                "AP@0.5 [ {} : {}, boxes : {}, pictures : {} ]",
                class.name,
                cell(class.ap),
                class.groundtruth_boxes,
                class.pictures
            ));
        }
        lines.push(format!("COCO [ {} ]", self.coco.list.map(cell).join(", ")));
        lines
    }

    /// The table for the terminal, without a last line end.
    pub fn table(&self) -> String {
        let run = &self.run;
        let mut out = format!(
            "{} at step {}: {}, {}, {:.1} s ({:.1} pictures/s) on {}\n\n",
            run.model,
            run.step,
            plural(run.pictures, "picture"),
            plural(run.groundtruth_boxes, "box"),
            run.seconds,
            self.rate(),
            run.device
        );
        let total: usize = self.pascal.classes.iter().map(|c| c.groundtruth_boxes).sum();
        let names = self.pascal.classes.iter().map(|c| printable(&c.name)).chain(["NAME", "mAP"].map(String::from));
        let width = names.map(|name| columns(&name)).max().unwrap_or(0);
        // Writing to a String cannot fail.
        let mut row = |id: &str, name: &str, cells: [&str; 3]| {
            let gap = " ".repeat(width.saturating_sub(columns(name)));
            let _ = writeln!(out, "{id:>4}  {name}{gap}  {:>7}  {:>7}  {:>7}", cells[0], cells[1], cells[2]);
        };
        row("ID", "NAME", ["AP@0.5", "COCO AP", "boxes"]);
        for class in &self.pascal.classes {
            let boxes = class.groundtruth_boxes.to_string();
            row(&class.id.to_string(), &printable(&class.name), [&cell(class.ap), &cell(class.coco_ap), &boxes]);
        }
        row("", "mAP", [&cell(self.pascal.map), &cell(self.coco.stats.ap), &total.to_string()]);
        let s = &self.coco.stats;
        let _ = writeln!(out, "\nCOCO                 all       small     medium    large");
        let mut line = |name: &str, cells: [f64; 4]| {
            let cells = cells.map(|v| format!("{:<10}", if v.is_nan() { String::new() } else { cell(v) }));
            let _ = writeln!(out, "{}", format!("{name:<21}{}", cells.concat()).trim_end());
        };
        line("AP, IoU 0.50:0.95", [s.ap, s.ap_small, s.ap_medium, s.ap_large]);
        line("AP, IoU 0.50", [s.ap_50, f64::NAN, f64::NAN, f64::NAN]);
        line("AP, IoU 0.75", [s.ap_75, f64::NAN, f64::NAN, f64::NAN]);
        line("AR, 1 detection", [s.ar_1, f64::NAN, f64::NAN, f64::NAN]);
        line("AR, 10 detections", [s.ar_10, f64::NAN, f64::NAN, f64::NAN]);
        line("AR, 100 detections", [s.ar_100, s.ar_small, s.ar_medium, s.ar_large]);
        out.trim_end().to_string()
    }

    /// Writes `folder/eval-STEP.json` and returns its path.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn write(&self, folder: &Path) -> Result<PathBuf> {
        let path = path(folder, self.run.step);
        let mut json = serde_json::to_string_pretty(self).with_context(|| format!("cannot write `{}`", path.display()))?;
        json.push('\n');
        atomic_file::write(&path, json.as_bytes())?;
        Ok(path)
    }

    fn rate(&self) -> f64 {
        if self.run.seconds > 0.0 { self.run.pictures as f64 / self.run.seconds } else { 0.0 }
    }
}

/// Where the report of a step lies.
pub fn path(folder: &Path, step: u64) -> PathBuf {
    folder.join(format!("eval-{step}.json"))
}

/// A figure to four places; a dash where there is none.
fn cell(value: f64) -> String {
    if value.is_nan() || value < 0.0 { "-".to_string() } else { format!("{value:.4}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::coco::CocoEvaluator;
    use crate::metrics::matching::{PictureDetections, PictureGroundtruth};
    use crate::metrics::pascal::PascalEvaluator;

    /// One raccoon found, one 회로 missed, no fox; the map has a gap at id 3.
    fn report() -> EvalReport {
        let mut label_map = LabelMap::from_names(["raccoon", "회로", "gap", "fox"]);
        label_map.items.remove(2);
        let (a, b) = ([0., 0., 20., 20.], [30., 30., 60., 60.]);
        let groundtruth = PictureGroundtruth { boxes_px: vec![a, b], classes: vec![1, 2], ..Default::default() };
        let detections = PictureDetections { boxes_px: vec![a], classes: vec![1], scores: vec![0.9] };
        let mut pascal = PascalEvaluator::new(label_map.max_id() as usize);
        let mut coco = CocoEvaluator::new(label_map.items.iter().map(|i| i.id));
        pascal.add(&groundtruth, &detections);
        coco.add(0, &groundtruth, &detections);
        let run = EvalRun {
            model: "ssd_mobilenet_v1_coco_2017_11_17".into(),
            checkpoint: "train_dir/model.ckpt-300".into(),
            step: 300,
            pictures: 1,
            groundtruth_boxes: 2,
            detections: 1,
            seconds: 0.5,
            device: "cpu".into(),
        };
        EvalReport::new(run, &label_map, &pascal.result(), &coco.result())
    }

    #[test]
    fn the_table_has_every_class_and_both_means() {
        let table = report().table();
        let lines: Vec<&str> = table.lines().collect();
        assert!(lines[0].contains("step 300: 1 picture, 2 boxes, 0.5 s (2.0 pictures/s) on cpu"), "{table}");
        assert_eq!(lines[3], "   1  raccoon   1.0000   1.0000        1", "{table}");
        assert_eq!(lines[4], "   2  회로      0.0000   0.0000        1", "{table}");
        assert_eq!(lines[5], "   4  fox            -        -        0", "{table}");
        assert_eq!(lines[6], "      mAP       0.5000   0.5000        2", "{table}");
        assert!(table.contains("AP, IoU 0.50:0.95    0.5000    0.5000    -         -"), "{table}");
    }

    #[test]
    fn the_json_has_every_figure_and_null_for_none() {
        let folder = tempfile::tempdir().unwrap();
        let path = report().write(folder.path()).unwrap();
        assert_eq!(path.file_name().unwrap(), "eval-300.json");
        let json: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        assert_eq!(json["pascal"]["mAP@0.5IOU"], 0.5);
        assert_eq!(json["pascal"]["classes"][1]["name"], "회로");
        assert!(json["pascal"]["classes"][2]["AP@0.5IOU"].is_null());
        assert_eq!(json["coco"]["stats"].as_array().unwrap().len(), 12);
        assert!((json["coco"]["ap"].as_f64().unwrap() - 0.5).abs() < 1e-9);
        assert_eq!(json["coco"]["ap_large"], -1.0);
        for (key, value) in [("pictures", 1), ("groundtruth_boxes", 2), ("step", 300)] {
            assert_eq!(json[key], value, "{key}");
        }
        assert_eq!(json["checkpoint"], "train_dir/model.ckpt-300");
    }

    #[test]
    fn tensorboard_gets_the_old_tags_and_no_figure_that_does_not_exist() {
        let scalars = report().scalars();
        let tags: Vec<&str> = scalars.iter().map(|(tag, _)| tag.as_str()).collect();
        assert_eq!(
            tags[..3],
            [
                "PascalBoxes_Precision/mAP@0.5IOU",
                "PascalBoxes_PerformanceByCategory/AP@0.5IOU/raccoon",
                "PascalBoxes_PerformanceByCategory/AP@0.5IOU/회로"
            ]
        );
        assert!(tags.contains(&"DetectionBoxes_Precision/mAP") && !tags.contains(&"DetectionBoxes_Precision/mAP (large)"));
        assert!(scalars.iter().all(|(_, value)| (0.0..=1.0).contains(value)));
    }

    #[test]
    fn the_log_names_the_checkpoint_and_each_class() {
        let lines = report().log_lines();
        assert!(lines[0].starts_with("Evaluate [ model : ssd_mobilenet_v1_coco_2017_11_17, step : 300, mAP@0.5 : 0.5000"));
        assert!(lines[0].contains("train_dir/model.ckpt-300"));
        assert_eq!(lines[3], "AP@0.5 [ fox : -, boxes : 0, pictures : 0 ]");
        assert_eq!(lines.len(), 5);
    }
}
