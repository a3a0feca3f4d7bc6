//! What was found, as files: `detections.json` and `detections.csv`, written picture by picture.
//!
//! `detections.json` is an object with one member a picture, in the order in which they came: its height, its width and
//! its detections, best first, each with its box (`[ymin, xmin, ymax, xmax]`, normalized), class id, class and score, to
//! six decimals. `detections.csv` has one row a detection, boxes in whole pixels, in the columns of the training CSV
//! files (so that it can be looked through and trained on) and then the score and the class id. Both appear when all is
//! done, and whole; numbers that are none are `null` in the one and empty in the other.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::detection::boxes::Detections;
use crate::formats::atomic_file::AtomicFile;

/// Columns of `detections.csv`.
const COLUMNS: [&str; 10] = ["filename", "width", "height", "class", "xmin", "ymin", "xmax", "ymax", "score", "class_id"];

/// The two files, being written.
pub struct DetectionsFiles {
    json_path: PathBuf,
    json: AtomicFile,
    csv_path: PathBuf,
    csv: csv::Writer<AtomicFile>,
    pictures: usize,
}

/// One picture and what was found in it.
pub struct Found<'a> {
    /// What the files call the picture; each name comes once.
    pub name: &'a str,
    /// In pixels.
    pub height: usize,
    /// In pixels.
    pub width: usize,
    pub detections: &'a Detections,
}

impl DetectionsFiles {
    /// Starts `detections.json` and `detections.csv` in `folder`, which is made.
    ///
    /// # Errors
    /// If the folder or a file cannot be made.
    pub fn create(folder: &Path) -> Result<Self> {
        let (json_path, csv_path) = (folder.join("detections.json"), folder.join("detections.csv"));
        let json = AtomicFile::create(&json_path)?;
        let mut csv = csv::Writer::from_writer(AtomicFile::create(&csv_path)?);
        csv.write_record(COLUMNS).with_context(|| format!("cannot write `{}`", csv_path.display()))?;
        Ok(Self { json_path, json, csv_path, csv, pictures: 0 })
    }

    /// Writes one picture's detections with a score of at least `min_score`.
    ///
    /// * `label`: what a class, counted from 0, is called.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn add(&mut self, found: &Found, min_score: f32, label: impl Fn(usize) -> String) -> Result<()> {
        let opening = if self.pictures == 0 { "{\n" } else { ",\n" };
        let json = format!("{opening}{}", picture_json(found, min_score, &label)?);
        self.json.write_all(json.as_bytes()).with_context(|| format!("cannot write `{}`", self.json_path.display()))?;
        self.pictures += 1;
        for row in picture_rows(found, min_score, &label) {
            self.csv.write_record(&row).with_context(|| format!("cannot write `{}`", self.csv_path.display()))?;
        }
        Ok(())
    }

    /// Ends both files and puts them in their places.
    ///
    /// # Errors
    /// If a file cannot be written; those of an earlier run then stay.
    pub fn finish(mut self) -> Result<()> {
        let ending: &[u8] = if self.pictures == 0 { b"{}" } else { b"\n}" };
        self.json.write_all(ending).with_context(|| format!("cannot write `{}`", self.json_path.display()))?;
        let csv = self
            .csv
            .into_inner()
            .map_err(|e| e.into_error())
            .with_context(|| format!("cannot write `{}`", self.csv_path.display()))?;
        self.json.commit()?;
        csv.commit()
    }
}

/// The rows that count, best first as given.
fn rows(detections: &Detections, min_score: f32) -> impl Iterator<Item = usize> {
    (0..detections.boxes.len()).filter(move |&i| detections.scores[i] >= min_score)
}

/// One member of the JSON object, indented by one space a level.
fn picture_json(found: &Found, min_score: f32, label: &impl Fn(usize) -> String) -> Result<String> {
    let detections: Vec<String> = rows(found.detections, min_score)
        .map(|i| {
            let class = found.detections.classes[i];
            let corners = found.detections.boxes[i].map(|v| format!("     {}", six_decimals(v)));
            Ok(format!(
                "   {{\n    \"box\": [\n{}\n    ],\n    \"class_id\": {},\n    \"class\": {},\n    \"score\": {}\n   }}",
                corners.join(",\n"),
                class + 1,
                serde_json::to_string(&label(class))?,
                six_decimals(found.detections.scores[i]),
            ))
        })
        .collect::<Result<_>>()?;
    let list = match detections.is_empty() {
        true => "[]".to_string(),
        false => format!("[\n{}\n  ]", detections.join(",\n")),
    };
    Ok(format!(
        " {}: {{\n  \"height\": {},\n  \"width\": {},\n  \"detections\": {list}\n }}",
        serde_json::to_string(found.name)?,
        found.height,
        found.width,
    ))
}

/// Rounded to six decimals and no longer than needed: `0.0`, `0.5118`, `0.339357`.
fn six_decimals(value: f32) -> String {
    if !value.is_finite() {
        return "null".to_string();
    }
    let rounded = format!("{value:.6}");
    let short = rounded.trim_end_matches('0');
    match short {
        "-0." => "0.0".to_string(),
        _ if short.ends_with('.') => format!("{short}0"),
        _ => short.to_string(),
    }
}

fn picture_rows(found: &Found, min_score: f32, label: &impl Fn(usize) -> String) -> Vec<[String; 10]> {
    let pixels = |value: f32, side: usize| match f64::from(value) * side as f64 {
        v if v.is_finite() => format!("{}", v.round() as i64),
        _ => String::new(),
    };
    rows(found.detections, min_score)
        .map(|i| {
            let [ymin, xmin, ymax, xmax] = found.detections.boxes[i];
            let class = found.detections.classes[i];
            [
                found.name.to_string(),
                found.width.to_string(),
                found.height.to_string(),
                label(class),
                pixels(xmin, found.width),
                pixels(ymin, found.height),
                pixels(xmax, found.width),
                pixels(ymax, found.height),
                six_decimals(found.detections.scores[i]),
                (class + 1).to_string(),
            ]
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_at_most_six_decimals() {
        for (value, text) in [
            (0.0, "0.0"),
            (-0.0, "0.0"),
            (-1e-9, "0.0"),
            (1.0, "1.0"),
            (0.5118, "0.5118"),
            (0.018_650_93, "0.018651"),
            (1e-6, "0.000001"),
            (-0.25, "-0.25"),
            (10.0, "10.0"),
            (f32::NAN, "null"),
            (f32::INFINITY, "null"),
        ] {
            assert_eq!(six_decimals(value), text);
        }
    }

    #[test]
    fn the_json_is_the_golden_file_byte_for_byte() {
        let Some(path) = crate::testing::shared("golden/detect/detections.json") else { return };
        let golden = std::fs::read_to_string(path).unwrap();
        // serde_json sorts the members of an object by name, which here is the order in which they stand.
        let parsed: serde_json::Value = serde_json::from_str(&golden).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let mut files = DetectionsFiles::create(folder.path()).unwrap();
        let mut names = std::collections::HashMap::new();
        for (name, picture) in parsed.as_object().unwrap() {
            let mut detections = Detections::default();
            for detection in picture["detections"].as_array().unwrap() {
                let number = |v: &serde_json::Value| v.to_string().parse::<f32>().unwrap();
                detections.boxes.push([0, 1, 2, 3].map(|i| number(&detection["box"][i])));
                detections.scores.push(number(&detection["score"]));
                let class = detection["class_id"].as_u64().unwrap() as usize - 1;
                detections.classes.push(class);
                names.insert(class, detection["class"].as_str().unwrap().to_string());
            }
            let side = |what: &str| picture[what].as_u64().unwrap() as usize;
            let found = Found { name, height: side("height"), width: side("width"), detections: &detections };
            files.add(&found, 0.0, |c| names[&c].clone()).unwrap();
        }
        files.finish().unwrap();
        assert!(std::fs::read_to_string(folder.path().join("detections.json")).unwrap() == golden);
    }

    #[test]
    fn odd_names_and_numbers_give_valid_files() {
        let folder = tempfile::tempdir().unwrap();
        let mut files = DetectionsFiles::create(folder.path()).unwrap();
        let detections = Detections {
            boxes: vec![[f32::NAN, 0.0, f32::INFINITY, 0.5], [0.1, 0.2, 0.3, 0.4]],
            scores: vec![0.9, 0.1],
            classes: vec![0, 1],
        };
        let name = "a \"b\", \\ 너구리\n.jpg";
        files.add(&Found { name, height: 10, width: 20, detections: &detections }, 0.5, |_| "x,\"y".into()).unwrap();
        files.add(&Found { name: "empty", height: 1, width: 1, detections: &Detections::default() }, 0.5, |_| "".into()).unwrap();
        files.finish().unwrap();
        let json: serde_json::Value =
            serde_json::from_slice(&std::fs::read(folder.path().join("detections.json")).unwrap()).unwrap();
        assert_eq!(json[name]["detections"].as_array().unwrap().len(), 1);
        assert!(json[name]["detections"][0]["box"][0].is_null());
        assert_eq!(json["empty"]["detections"].as_array().unwrap().len(), 0);
        let mut csv = csv::Reader::from_path(folder.path().join("detections.csv")).unwrap();
        assert_eq!(csv.headers().unwrap().iter().collect::<Vec<_>>(), COLUMNS);
        let rows: Vec<csv::StringRecord> = csv.records().map(Result::unwrap).collect();
        assert_eq!(rows.len(), 1);
        assert_eq!(rows[0].iter().collect::<Vec<_>>(), [name, "20", "10", "x,\"y", "0", "", "10", "", "0.9", "1"]);
    }

    #[test]
    fn no_picture_at_all_gives_an_empty_object() {
        let folder = tempfile::tempdir().unwrap();
        DetectionsFiles::create(folder.path()).unwrap().finish().unwrap();
        assert_eq!(std::fs::read_to_string(folder.path().join("detections.json")).unwrap(), "{}");
    }
}
