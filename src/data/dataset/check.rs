//! Label files and their pictures against each other: every box, size and name, with all cores.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use anyhow::Result;
use indicatif::ProgressBar;

use crate::config::label_map::LabelMap;
use crate::data::dataset::finding::{Finding, shown};
use crate::data::dataset::number;
use crate::data::dataset::picture::{self, Depth, Looked};
use crate::formats::voc;
use crate::wording::printable;

/// Pixels that a box may overhang the picture and is still clipped.
const OVERHANG: f64 = 1.0;

/// One picture as its labels describe it, before anything is checked.
#[derive(Debug, Clone)]
pub struct Labelled {
    /// The XML or CSV file.
    pub labels: PathBuf,
    /// Where in it the picture begins, if it holds more than one: `line 7`.
    pub place: Option<String>,
    /// The picture file.
    pub picture: PathBuf,
    /// What CSV files and records call the picture.
    pub name: String,
    /// Width and height, as the labels give them.
    pub size: [Option<String>; 2],
    /// What the labels call an object: `object 2`, `line 7`; and the object.
    pub objects: Vec<(String, voc::Object)>,
}

/// One picture that can be used.
#[derive(Debug, Clone)]
pub struct Picture {
    /// The XML or CSV file.
    pub labels: PathBuf,
    /// The picture file.
    pub path: PathBuf,
    /// What CSV files and records call the picture.
    pub name: String,
    /// What its bytes say.
    pub looked: Looked,
    /// Its usable objects.
    pub objects: Vec<Object>,
    /// Objects that were left out.
    pub skipped: usize,
}

/// One object that can be used.
#[derive(Debug, Clone, PartialEq)]
pub struct Object {
    /// What the labels call it: `object 2`, `line 7`.
    pub label: String,
    /// Its class.
    pub class: String,
    /// Its class's id; 0 until [`assign_classes`].
    pub id: u32,
    /// `[ymin, xmin, ymax, xmax]` in pixels, within the picture, with an area.
    pub box_px: [f64; 4],
    /// labelImg's pose.
    pub pose: String,
    /// Cut by the picture's edge.
    pub truncated: bool,
    /// Neither counted nor punished by evaluation.
    pub difficult: bool,
}

/// What a pass over the pictures needs beside them.
pub struct Pass<'a> {
    /// How far pictures are looked into.
    pub depth: Depth,
    /// Where there is one: says which of the labels' words are one class.
    pub map: Option<&'a LabelMap>,
    /// Moves on by one for each picture.
    pub progress: &'a ProgressBar,
    /// Ends the pass early when set.
    pub stop: &'a AtomicBool,
    /// Takes each picture while its bytes are in memory.
    pub taker: Option<&'a dyn Take>,
}

/// What takes pictures as they are checked.
pub trait Take: Sync {
    /// Takes the picture with this index, or hears that it is left out. Every index comes once, from any thread, and an
    /// index comes only when all before it have been begun. `bytes` is the picture's file and may be taken away.
    ///
    /// # Errors
    /// What ends the pass.
    fn take(&self, index: usize, picture: Option<&Picture>, bytes: &mut Vec<u8>) -> Result<()>;
}

/// A label file's number, its picture where it can be used, and what was found.
type Numbered = (usize, Option<Picture>, Vec<Finding>);

/// Checks all pictures on all cores; the result keeps the order. Memory holds one picture a core at a time.
///
/// # Errors
/// Those of the taker.
pub fn check_all(labelled: &[Labelled], pass: &Pass) -> Result<(Vec<Picture>, Vec<Finding>)> {
    let next = AtomicUsize::new(0);
    let failed = AtomicBool::new(false);
    let work = || -> Result<Vec<Numbered>> {
        let mut checked = Vec::new();
        let mut buffer = Vec::new();
        while !pass.stop.load(Ordering::Relaxed) && !failed.load(Ordering::Relaxed) {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(labelled) = labelled.get(index) else { break };
            let (picture, findings) = check(labelled, pass, &mut buffer);
            if let Some(taker) = pass.taker {
                taker.take(index, picture.as_ref(), &mut buffer).inspect_err(|_| failed.store(true, Ordering::Relaxed))?;
            }
            checked.push((index, picture, findings));
            pass.progress.inc(1);
        }
        Ok(checked)
    };
    let threads = rayon::current_num_threads().min(labelled.len()).max(1);
    let results: Vec<Result<Vec<_>>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect()
    });
    let mut checked = Vec::with_capacity(labelled.len());
    for result in results {
        checked.append(&mut result?);
    }
    checked.sort_by_key(|(index, ..)| *index);
    let mut pictures = Vec::with_capacity(checked.len());
    let mut findings = Vec::new();
    for (_, picture, found) in checked {
        pictures.extend(picture);
        findings.extend(found);
    }
    Ok((pictures, findings))
}

/// Checks one picture; `None` if it is left out.
fn check(labelled: &Labelled, pass: &Pass, buffer: &mut Vec<u8>) -> (Option<Picture>, Vec<Finding>) {
    let mut findings = Vec::new();
    let looked = match picture::read(&labelled.picture, buffer).and_then(|()| picture::look(buffer, pass.depth)) {
        Ok(looked) => looked,
        Err(error) => {
            findings.push(Finding::picture_skipped(&labelled.picture, format!("{error:#}")));
            return (None, findings);
        }
    };
    if let Some(promised) = picture::promised_instead(&labelled.picture, looked.format) {
        findings.push(Finding::kept(
            &labelled.picture,
            format!(
                "the bytes are {}, not {promised} as the name says; it is used as what it is, and best renamed",
                picture::format_name(looked.format)
            ),
        ));
    }
    if let Some(loss) = &looked.loss {
        let text = format!(
            "some of the picture is lost, and decodes to grey or to shifted pixels (libjpeg: {loss}); look at it, and copy it again or remove \
             it with its boxes"
        );
        findings.push(Finding::kept(&labelled.picture, text));
    }
    let before = findings.len();
    let fits = check_size(labelled, &looked, &mut findings);
    for finding in &mut findings[before..] {
        finding.object.clone_from(&labelled.place);
    }
    if !fits {
        return (None, findings);
    }
    if matches!(looked.orientation, 2..=4) {
        findings.push(Finding::note(
            &labelled.picture,
            format!(
                "EXIF says that the picture is shown {}; the stored pixels are used, so look whether the boxes fit them",
                if looked.orientation == 3 { "upside down" } else { "mirrored" }
            ),
        ));
    }
    let mut objects: Vec<Object> = Vec::with_capacity(labelled.objects.len());
    let mut skipped = 0;
    for (label, object) in &labelled.objects {
        match check_object(labelled, label, object, &looked, &mut findings) {
            Ok(object) => match repeats(&objects, &object, pass.map) {
                Some((other, true)) => {
                    // The first stands for both, so nothing is lost and the picture may stay.
                    findings.push(Finding::object_skipped(
                        &labelled.labels,
                        label,
                        format!("the same box of class `{}` as {other}; remove one", printable(&object.class)),
                    ));
                }
                Some((other, false)) => {
                    findings.push(
                        Finding::kept(
                            &labelled.labels,
                            format!("the same box as {other} with another class; remove one if they are one object"),
                        )
                        .of(label),
                    );
                    objects.push(object);
                }
                None => objects.push(object),
            },
            Err(finding) => {
                skipped += 1;
                findings.push(*finding);
            }
        }
    }
    let picture = Picture {
        labels: labelled.labels.clone(),
        path: labelled.picture.clone(),
        name: labelled.name.clone(),
        looked,
        objects,
        skipped,
    };
    (Some(picture), findings)
}

/// An earlier object with the same box, and whether it also has the same class.
fn repeats<'a>(objects: &'a [Object], object: &Object, map: Option<&LabelMap>) -> Option<(&'a str, bool)> {
    let same_class = |other: &Object| {
        let id = |object: &Object| map.and_then(|map| map.id_of(&object.class));
        other.class == object.class || id(object).is_some_and(|own| id(other) == Some(own))
    };
    let mut same = objects.iter().filter(|other| other.box_px == object.box_px);
    let first = same.clone().next()?;
    match same.find(|other| same_class(other)) {
        Some(other) => Some((&other.label, true)),
        None => Some((&first.label, false)),
    }
}

/// The size in the labels against the picture's, which wins. False if the picture has to be left out.
fn check_size(labelled: &Labelled, looked: &Looked, findings: &mut Vec<Finding>) -> bool {
    let stored = (f64::from(looked.width), f64::from(looked.height));
    let (width, height) = stored;
    let turned = matches!(looked.orientation, 5..=8);
    let [said_width, said_height] = &labelled.size;
    let read = |text: &Option<String>| text.as_deref().and_then(number::read).map(|number| number.value);
    let said = (read(said_width), read(said_height));
    if said == (Some(width), Some(height)) {
        if turned && width == height {
            findings.push(Finding::note(
                &labelled.labels,
                format!(
                    "EXIF turns `{}` (orientation {}), and as it is square its size does not say on which way up the boxes were drawn; look \
                     whether they fit its stored pixels",
                    shown(&labelled.picture),
                    looked.orientation
                ),
            ));
        }
        return true;
    }
    let in_words = |text: &Option<String>| text.as_deref().map_or("nothing".to_string(), printable);
    let words = format!("{} x {}", in_words(said_width), in_words(said_height));
    if turned && width != height && said == (Some(height), Some(width)) {
        findings.push(Finding::picture_skipped(
            &labelled.labels,
            format!(
                "the size is given as {words}, which is the size of `{}` as EXIF turns it (orientation {}); its pixels are \
                 stored as {width} x {height}, where the boxes would be wrong: save the picture upright without EXIF and label \
                 it again",
                shown(&labelled.picture),
                looked.orientation
            ),
        ));
        return false;
    }
    let remark = if turned {
        format!("; EXIF turns the picture (orientation {}), so look whether the boxes fit its stored pixels", looked.orientation)
    } else {
        String::new()
    };
    if said_width.is_none() && said_height.is_none() {
        findings
            .push(Finding::note(&labelled.labels, format!("no size is given; the picture's {width} x {height} is used{remark}")));
    } else {
        findings.push(Finding::kept(
            &labelled.labels,
            format!(
                "the size is given as {words}, and `{}` is {width} x {height}, which is used; correct the size and look whether \
                 the boxes fit{remark}",
                shown(&labelled.picture)
            ),
        ));
    }
    true
}

/// One object against its picture.
fn check_object(
    labelled: &Labelled,
    label: &str,
    object: &voc::Object,
    looked: &Looked,
    findings: &mut Vec<Finding>,
) -> Result<Object, Box<Finding>> {
    let Labelled { labels, place, .. } = labelled;
    let from_csv = place.is_some();
    let there = if from_csv { "in the CSV file" } else { "in labelImg" };
    let skip = |text: String| Box::new(Finding::object_skipped(labels, label, text));
    let Some(class) = object.name.as_deref().map(str::trim).filter(|name| !name.is_empty()) else {
        return Err(skip(format!("it has no class name; name it {there}")));
    };
    let Some(corners) = &object.corners else {
        return Err(skip("it has no <bndbox>; draw its box in labelImg".to_string()));
    };
    let texts = [("ymin", &corners.ymin), ("xmin", &corners.xmin), ("ymax", &corners.ymax), ("xmax", &corners.xmax)];
    let mut values = [0.0; 4];
    let mut odd = Vec::new();
    for (value, (name, text)) in values.iter_mut().zip(texts) {
        let Some(text) = text else {
            return Err(skip(format!("its box has no {name}; fix the box {there}")));
        };
        let Some(number) = number::read(text) else {
            return Err(skip(format!("{name} `{}` is not a number; correct it or draw the box again", printable(text))));
        };
        // A negative whole number is written as it should be, wherever it lies.
        let whole = number.value.fract() == 0.0 && number.value.to_string() == *text;
        if !(number.plain || whole) {
            odd.push(match number.value.to_string() == *text {
                true => format!("{name} {text}"),
                false => format!("{name} `{}` as {}", printable(text), number.value),
            });
        }
        *value = number.value;
    }
    let [ymin, xmin, ymax, xmax] = values;
    for (low, high, names) in [(xmin, xmax, ["xmin", "xmax", "left of"]), (ymin, ymax, ["ymin", "ymax", "above"])] {
        let [low_name, high_name, side] = names;
        if low > high {
            return Err(skip(format!(
                "{low_name} {low} is not {side} {high_name} {high}: the box is reversed; fix the box {there}"
            )));
        }
        if low == high {
            return Err(skip(format!("{low_name} and {high_name} are both {low}: the box has no area; draw it again")));
        }
    }
    // A box within one pixel, drawn in parts of it: no hand draws that, and other tools write shares.
    if values.iter().all(|value| (0.0..=1.0).contains(value)) && values.iter().any(|value| value.fract() != 0.0) {
        return Err(skip(format!(
            "its corners xmin {xmin}, ymin {ymin}, xmax {xmax}, ymax {ymax} are shares of the picture's sides, as it seems; they have to be pixels"
        )));
    }
    let limits = [f64::from(looked.height), f64::from(looked.width)];
    let mut clipped = Vec::new();
    for (i, (name, _)) in texts.iter().enumerate() {
        let limit = limits[i % 2];
        let inside = values[i].clamp(0.0, limit);
        let overhang = (values[i] - inside).abs();
        if overhang > OVERHANG {
            return Err(skip(format!(
                "{name} {} is {overhang} px outside the picture, which is {} x {}; fix the box {there}",
                values[i], looked.width, looked.height
            )));
        }
        if overhang > 0.0 {
            clipped.push(format!("{name} {} to {inside}", values[i]));
            values[i] = inside;
        }
    }
    if values[0] >= values[2] || values[1] >= values[3] {
        return Err(skip(format!(
            "the box lies wholly outside the picture, which is {} x {}; fix the box {there}",
            looked.width, looked.height
        )));
    }
    // The record has float32.
    let written = |i: usize| (values[i] / limits[i % 2]) as f32;
    if written(0) == written(2) || written(1) == written(3) {
        return Err(skip("the box is so thin that a record gives it no area; draw it again".to_string()));
    }
    for tag in &object.doubled {
        let text = format!("it has more than one <{tag}>, of which the first is used; remove the others");
        findings.push(Finding::kept(labels, text).of(label));
    }
    if !odd.is_empty() {
        // Of boxes that come from a CSV file, none is written.
        let csv = if from_csv { "" } else { ", the CSV rounded" };
        let text = format!("not written as whole numbers: {}; the record has them as read{csv}", odd.join(", "));
        findings.push(Finding::note(labels, text).of(label));
    }
    if !clipped.is_empty() {
        findings.push(Finding::note(labels, format!("clipped to the picture: {}", clipped.join(", "))).of(label));
    }
    Ok(Object {
        label: label.to_string(),
        class: class.to_string(),
        id: 0,
        box_px: values,
        pose: object.pose.clone().unwrap_or_else(|| "Unspecified".to_string()),
        truncated: object.truncated,
        difficult: object.difficult,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_xml() -> Labelled {
        let (labels, picture) = ("a.xml".into(), "a.jpg".into());
        Labelled { labels, place: None, picture, name: "a.jpg".into(), size: [None, None], objects: Vec::new() }
    }

    fn looked(width: u32, height: u32, orientation: u8) -> Looked {
        Looked { orientation, ..Looked::jpeg(width, height) }
    }

    fn object(class: &str, [xmin, ymin, xmax, ymax]: [&str; 4]) -> voc::Object {
        let text = |text: &str| (!text.is_empty()).then(|| text.to_string());
        let corners = voc::Corners { xmin: text(xmin), ymin: text(ymin), xmax: text(xmax), ymax: text(ymax) };
        voc::Object { name: text(class), corners: Some(corners), ..voc::Object::default() }
    }

    /// The box of an object on a picture of 100 x 50, or what is said of it; and the notes.
    fn checked(corners: [&str; 4]) -> (Result<[f64; 4], String>, String) {
        let mut notes = Vec::new();
        let result = check_object(&of_xml(), "object 1", &object("cat", corners), &looked(100, 50, 1), &mut notes);
        let notes: Vec<String> = notes.iter().map(ToString::to_string).collect();
        (result.map(|object| object.box_px).map_err(|finding| finding.to_string()), notes.join("\n"))
    }

    #[test]
    fn a_plain_box_needs_no_word() {
        assert_eq!(checked(["1", "2", "100", "50"]), (Ok([2.0, 1.0, 50.0, 100.0]), String::new()));
        assert_eq!(checked(["0", "0", "100", "50"]).0, Ok([0.0, 0.0, 50.0, 100.0]));
    }

    #[test]
    fn boxes_that_overhang_by_a_pixel_are_clipped_and_noted() {
        let (result, notes) = checked(["-1", "0", "101", "50.5"]);
        assert_eq!(result, Ok([0.0, 0.0, 50.0, 100.0]));
        assert!(notes.contains("xmin -1 to 0") && notes.contains("xmax 101 to 100") && notes.contains("ymax 50.5 to 50"));
    }

    #[test]
    fn readable_numbers_are_kept_with_a_note() {
        let (result, notes) = checked([" 12.0 ", "[3]", "45.25", "1e1"]);
        assert_eq!(result, Ok([3.0, 12.0, 10.0, 45.25]));
        for part in ["object 1", "xmin ` 12.0 ` as 12", "ymin `[3]` as 3", "xmax 45.25", "ymax `1e1` as 10"] {
            assert!(notes.contains(part), "{notes}");
        }
    }

    #[test]
    fn faulty_boxes_are_named_and_skipped() {
        for (corners, wanted) in [
            (["41", "2", "9", "20"], "xmin 41 is not left of xmax 9"),
            (["1", "20", "9", "2"], "ymin 20 is not above ymax 2"),
            (["9", "2", "9", "20"], "no area"),
            (["1.00000001", "2", "1.00000002", "20"], "so thin"),
            (["0.1", "0.2", "0.5", "1"], "xmin 0.1, ymin 0.2, xmax 0.5, ymax 1 are shares"),
            (["1", "2", "103", "20"], "xmax 103 is 3 px outside"),
            (["-2", "2", "10", "20"], "xmin -2 is 2 px outside"),
            (["100", "2", "101", "20"], "wholly outside"),
            (["nan", "2", "9", "20"], "xmin `nan` is not a number"),
            (["1", "inf", "9", "20"], "ymin `inf` is not a number"),
            (["1", "12,5", "9", "20"], "ymin `12,5` is not a number"),
            (["", "2", "9", "20"], "no xmin"),
        ] {
            let (result, _) = checked(corners);
            let said = result.unwrap_err();
            assert!(said.starts_with("`a.xml`: object 1: ") && said.contains(wanted), "{said}");
            assert!(said.ends_with("(object skipped)"), "{said}");
        }
    }

    #[test]
    fn the_same_box_under_two_names_of_one_class_is_one_object_twice() {
        let map =
            LabelMap::parse("item { id: 1 name: 'b' display_name: 'Display Bee' } item { id: 2 name: 'c' }", "map").unwrap();
        let of = |class: &str| Object {
            label: "object 1".into(),
            class: class.into(),
            id: 0,
            box_px: [1.0, 2.0, 3.0, 4.0],
            pose: String::new(),
            truncated: false,
            difficult: false,
        };
        assert_eq!(repeats(&[of("b")], &of("Display Bee"), Some(&map)), Some(("object 1", true)));
        assert_eq!(repeats(&[of("b")], &of("c"), Some(&map)), Some(("object 1", false)));
        assert_eq!(repeats(&[of("x")], &of("y"), Some(&map)), Some(("object 1", false)), "two that the map does not know");
    }

    #[test]
    fn a_tag_that_stands_twice_is_named_and_the_first_counts() {
        let mut notes = Vec::new();
        let twice = voc::Object { doubled: vec!["bndbox"], ..object("cat", ["1", "2", "3", "4"]) };
        let object = check_object(&of_xml(), "object 1", &twice, &looked(9, 9, 1), &mut notes).unwrap();
        assert_eq!(object.box_px, [2.0, 1.0, 4.0, 3.0]);
        assert!(notes[0].to_string().contains("more than one <bndbox>"), "{notes:?}");
    }

    #[test]
    fn objects_without_class_or_box_are_named() {
        let csv = Labelled { place: Some("line 2".into()), ..of_xml() };
        let reversed = object("cat", ["9", "1", "2", "5"]);
        let said = check_object(&csv, "line 2", &reversed, &looked(9, 9, 1), &mut Vec::new()).unwrap_err().to_string();
        assert!(said.contains("reversed; fix the box in the CSV file"), "{said}");
        let mut notes = Vec::new();
        let mut say =
            |object| check_object(&of_xml(), "object 3", &object, &looked(9, 9, 1), &mut notes).unwrap_err().to_string();
        assert!(say(object("", ["1", "1", "2", "2"])).contains("no class name"));
        assert!(say(object("  ", ["1", "1", "2", "2"])).contains("no class name"));
        assert!(say(voc::Object { name: Some("cat".into()), ..Default::default() }).contains("no <bndbox>"));
    }

    fn sized(said: [Option<&str>; 2], looked: &Looked) -> (bool, String) {
        let labelled = Labelled {
            labels: "a.xml".into(),
            place: None,
            picture: "a.jpg".into(),
            name: "a.jpg".into(),
            size: said.map(|text| text.map(str::to_string)),
            objects: vec![],
        };
        let mut findings = Vec::new();
        let used = check_size(&labelled, looked, &mut findings);
        (used, findings.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn the_picture_wins_over_the_size_in_the_labels() {
        let picture = looked(640, 480, 1);
        assert_eq!(sized([Some("640"), Some("480")], &picture), (true, String::new()));
        for said in [["0", "0"], ["480", "640"], ["x", "480"], ["1280", "960"]] {
            let (used, text) = sized(said.map(Some), &picture);
            assert!(used && text.contains("640 x 480") && text.contains(said[0]) && text.contains("(kept)"), "{text}");
        }
        let (used, text) = sized([None, None], &picture);
        assert!(used && text.contains("no size") && !text.contains("(kept)"), "{text}");
    }

    #[test]
    fn a_swapped_size_on_a_turned_picture_skips_it_and_the_stored_size_does_not() {
        let picture = looked(640, 480, 6);
        assert_eq!(sized([Some("640"), Some("480")], &picture), (true, String::new()));
        let (used, text) = sized([Some("480"), Some("640")], &picture);
        assert!(!used && text.contains("orientation 6") && text.contains("(picture skipped)"), "{text}");
        assert!(sized([Some("0"), Some("0")], &picture).1.contains("orientation 6"));
        let square = looked(480, 480, 6);
        let (used, text) = sized([Some("480"), Some("480")], &square);
        assert!(used && text.contains("orientation 6") && text.contains("square"), "{text}");
        assert_eq!(sized([Some("480"), Some("480")], &looked(480, 480, 1)).1, "");
    }
}
