//! Every golden case of the metrics, against the TF OD API's PASCAL evaluator and pycocotools.

mod common;

use std::io::Read;

use odh::detection::boxes::BBox;
use odh::metrics::argsort::TieOrder;
use odh::metrics::coco::CocoEvaluator;
use odh::metrics::matching::{PictureDetections, PictureGroundtruth};
use odh::metrics::pascal::{PascalEvaluator, PascalResult};
use serde_json::Value;

const TOLERANCE: f64 = 1e-6;

fn cases(name: &str) -> Option<Vec<Value>> {
    let path = common::shared(&format!("reference/metrics/{name}"))?;
    let mut text = String::new();
    flate2::read::MultiGzDecoder::new(std::fs::File::open(path).unwrap()).read_to_string(&mut text).unwrap();
    Some(text.lines().map(|line| serde_json::from_str(line).unwrap()).collect())
}

/// A number, parsed to single precision from its own digits rather than by way of a double.
fn f32_of(value: &Value) -> f32 {
    value.to_string().parse().unwrap()
}

fn list<T>(value: &Value, each: impl Fn(&Value) -> T) -> Vec<T> {
    value.as_array().map(|items| items.iter().map(each).collect()).unwrap_or_default()
}

fn boxes(value: &Value) -> Vec<BBox> {
    list(value, |b| [f32_of(&b[0]), f32_of(&b[1]), f32_of(&b[2]), f32_of(&b[3])])
}

fn classes(value: &Value) -> Vec<u32> {
    list(value, |c| c.as_u64().unwrap() as u32)
}

fn groundtruth(image: &Value) -> PictureGroundtruth {
    let gt = &image["gt"];
    PictureGroundtruth {
        boxes_px: boxes(&gt["boxes"]),
        classes: classes(&gt["classes"]),
        difficult: list(&gt["difficult"], |v| v == 1),
        crowd: list(&gt["crowd"], |v| v == 1),
        area_px: gt.get("area").map(|a| list(a, f32_of)),
    }
}

fn detections(image: &Value) -> PictureDetections {
    let det = &image["det"];
    PictureDetections { boxes_px: boxes(&det["boxes"]), classes: classes(&det["classes"]), scores: list(&det["scores"], f32_of) }
}

/// The largest difference between figures and what is expected of them; infinite where only one is a number.
fn difference(figures: &[f64], expected: &Value) -> f64 {
    let expected = list(expected, |v| v.as_f64().unwrap_or(f64::NAN));
    assert_eq!(figures.len(), expected.len());
    figures
        .iter()
        .zip(&expected)
        .map(|(a, b)| match (a.is_nan(), b.is_nan()) {
            (true, true) => 0.0,
            (false, false) => (a - b).abs(),
            _ => f64::INFINITY,
        })
        .fold(0.0, f64::max)
}

fn pascal(case: &Value, ties: TieOrder) -> PascalResult {
    let largest = classes(&case["categories"]).into_iter().max().unwrap();
    let mut evaluator = PascalEvaluator::with_ties(largest as usize, ties);
    for image in case["images"].as_array().unwrap() {
        evaluator.add(&groundtruth(image), &detections(image));
    }
    evaluator.result()
}

#[test]
fn pascal_figures_equal_the_od_apis_in_every_case() {
    let Some(cases) = cases("pascal.jsonl.gz") else {
        return;
    };
    assert_eq!(cases.len(), 358);
    let mut worst = (0.0, "");
    for case in &cases {
        let name = case["name"].as_str().unwrap();
        let (result, expect) = (pascal(case, TieOrder::Numpy), &case["expect"]);
        let counts = |v: &[usize]| v.iter().map(|&n| n as f64).collect::<Vec<_>>();
        for (what, figures, expected) in [
            ("ap", result.ap.clone(), expect["ap"].clone()),
            ("corloc", result.corloc.clone(), expect["corloc"].clone()),
            ("num_gt", counts(&result.num_gt), expect["num_gt"].clone()),
            ("num_gt_images", counts(&result.num_gt_images), expect["num_gt_images"].clone()),
            ("map", vec![result.map], Value::Array(vec![expect["map"].clone()])),
            ("mean_corloc", vec![result.mean_corloc], Value::Array(vec![expect["mean_corloc"].clone()])),
        ] {
            let off = difference(&figures, &expected);
            assert!(off <= TOLERANCE, "{name}: {what}: {figures:?} is not {expected}");
            if off > worst.0 {
                worst = (off, name);
            }
        }
    }
    println!("PASCAL: {} cases, largest difference {:e} {}", cases.len(), worst.0, worst.1);
}

#[test]
fn pascal_figures_with_a_stable_sort_equal_what_is_given_for_it() {
    let Some(cases) = cases("pascal.jsonl.gz") else {
        return;
    };
    let mut apart = 0;
    for case in &cases {
        let result = pascal(case, TieOrder::Stable);
        let expect = case.get("expect_stable").inspect(|_| apart += 1).unwrap_or(&case["expect"]);
        assert!(difference(&result.ap, &expect["ap"]) <= TOLERANCE, "{}: {:?}", case["name"], result.ap);
        let map = Value::Array(vec![expect["map"].clone()]);
        assert!(difference(&[result.map], &map) <= TOLERANCE, "{}: {}", case["name"], result.map);
    }
    assert_eq!(apart, 9);
}

#[test]
fn coco_figures_equal_pycocotools_in_every_case() {
    let Some(cases) = cases("coco.jsonl.gz") else {
        return;
    };
    assert_eq!(cases.len(), 189);
    let mut worst = (0.0, "");
    for case in &cases {
        let name = case["name"].as_str().unwrap();
        // Numbers order as numbers, texts as texts; no case has both.
        let mut evaluator = CocoEvaluator::new(classes(&case["categories"]));
        for image in case["images"].as_array().unwrap() {
            let id = (image["id"].as_i64(), image["id"].as_str().map(str::to_string));
            evaluator.add(id, &groundtruth(image), &detections(image));
        }
        let result = evaluator.result();
        let expect = &case["expect"];
        let by_category = |f: fn(&odh::metrics::coco::CocoCategory) -> f64| result.categories.iter().map(f).collect();
        for (what, figures) in
            [("stats", result.stats.to_array().to_vec()), ("ap", by_category(|c| c.ap)), ("ap50", by_category(|c| c.ap_50))]
        {
            let off = difference(&figures, &expect[what]);
            assert!(off <= TOLERANCE, "{name}: {what}: {figures:?} is not {}", expect[what]);
            if off > worst.0 {
                worst = (off, name);
            }
        }
    }
    println!("COCO: {} cases, largest difference {:e} {}", cases.len(), worst.0, worst.1);
}
