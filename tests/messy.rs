//! Real label sets with faults: what must be said of each faulty file, and that nothing good is lost.
//!
//! The lists were written by reading the XML and the first bytes of the pictures, not from what the program says.

mod common;

use std::path::Path;
use std::process::Command;

use odh::data::example::LabeledImage;
use odh::formats::tfrecord::Reader;

/// What one set must lead to.
struct Set {
    folder: &'static str,
    /// A file's name, an object of it or "", and words that must stand on the line that names them.
    faults: &'static [(&'static str, &'static str, &'static [&'static str])],
    /// Pictures and boxes that must be in the records.
    pictures: usize,
    boxes: usize,
    classes: &'static [&'static str],
}

const SETS: [Set; 3] = [
    // Seven pictures. 311.jpg begins with 89 50 4E 47 and its header says 1140 x 712; 311.xml says 0 x 0.
    // Every <path> is C:\models\research\...: no fault, the pictures lie beside their XML.
    Set {
        folder: "fire",
        faults: &[("311.jpg", "", &["PNG", "JPEG"]), ("311.xml", "", &["0 x 0", "1140 x 712"])],
        pictures: 7,
        boxes: 5 + 5 + 1 + 1 + 7 + 2 + 5,
        classes: &["Fire"],
    },
    // Four PNG with an alpha channel named .jpg, `#` and `=` in every name, and coordinates with many decimals.
    // In 1055.xml object 1 the ymax is whole, and so is 1074.xml's.
    Set {
        folder: "plates",
        faults: &[
            ("dayride_type1_001.mp4#t=1055.jpg", "", &["PNG", "JPEG"]),
            ("dayride_type1_001.mp4#t=1058.jpg", "", &["PNG", "JPEG"]),
            ("dayride_type1_001.mp4#t=1074.jpg", "", &["PNG", "JPEG"]),
            ("dayride_type1_001.mp4#t=1085.jpg", "", &["PNG", "JPEG"]),
            ("dayride_type1_001.mp4#t=1055.xml", "object 1", &["113.10026892047637", "399.8360655737705", "192.76219746446407"]),
            (
                "dayride_type1_001.mp4#t=1055.xml",
                "object 2",
                &["562.0591625048021", "413.6065573770491", "649.0971955436034", "436.22950819672116"],
            ),
            (
                "dayride_type1_001.mp4#t=1058.xml",
                "object 1",
                &["529.1125624279678", "589.672131147541", "711.5482135996926", "634.3770686915661"],
            ),
            ("dayride_type1_001.mp4#t=1074.xml", "object 1", &["601.890126776796", "506.0655737704917", "726.3004225893201"]),
            (
                "dayride_type1_001.mp4#t=1085.xml",
                "object 1",
                &["583.2039953899347", "346.2295081967213", "662.8659239339224", "367.3770491803279"],
            ),
        ],
        pictures: 4,
        boxes: 5,
        classes: &["license-plate"],
    },
    // No <path>, no <depth>, in seven of eight files no <pose>: none of it a fault. A class name with a space.
    Set { folder: "starwars", faults: &[], pictures: 8, boxes: 7 * 2 + 1, classes: &["Tie Fighter"] },
];

#[test]
fn every_fault_of_the_messy_sets_is_named_and_nothing_good_is_lost() {
    let Some(messy) = common::shared("datasets/messy") else { return };
    for set in &SETS {
        let work = tempfile::tempdir().unwrap();
        let output = Command::new(env!("CARGO_BIN_EXE_odh"))
            .current_dir(work.path())
            .args(["tfgen", "--write_label_map", "-i"])
            .arg(messy.join(set.folder))
            .output()
            .unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{}: {said}", set.folder);
        let lines: Vec<&str> = said.lines().collect();
        for (file, object, words) in set.faults {
            let place = match *object {
                "" => format!("{file}`: "),
                object => format!("{file}`: {object}: "),
            };
            let found = lines.iter().any(|line| line.contains(&place) && words.iter().all(|word| line.contains(word)));
            assert!(found, "{}: nothing said of {place} with {words:?}:\n{said}", set.folder);
        }
        let about_files = lines.iter().filter(|line| line.contains(".xml`") || line.contains(".jpg`:")).count();
        assert_eq!(about_files, set.faults.len(), "{}: more is said than is wrong:\n{said}", set.folder);

        let images: Vec<LabeledImage> =
            ["train", "validate"].iter().flat_map(|name| images(&work.path().join(format!("dataset/{name}.record")))).collect();
        assert_eq!(images.len(), set.pictures, "{}", set.folder);
        assert_eq!(images.iter().map(|image| image.boxes.len()).sum::<usize>(), set.boxes, "{}", set.folder);
        for class in images.iter().flat_map(|image| &image.class_names) {
            assert!(set.classes.contains(&class.as_str()), "{}: {class}", set.folder);
        }
        for image in &images {
            let bytes = std::fs::read(messy.join(set.folder).join(&image.filename)).unwrap();
            assert_eq!(image.encoded, bytes, "{}: {} is not the picture's own bytes", set.folder, image.filename);
        }
    }
}

#[test]
fn fractions_of_a_pixel_reach_the_record_and_are_rounded_in_the_csv() {
    let Some(messy) = common::shared("datasets/messy") else { return };
    let work = tempfile::tempdir().unwrap();
    let status = Command::new(env!("CARGO_BIN_EXE_odh"))
        .current_dir(work.path())
        .args(["tfgen", "--write_label_map", "-i"])
        .arg(messy.join("plates"))
        .output()
        .unwrap()
        .status;
    assert!(status.success());
    let all: Vec<LabeledImage> =
        ["train", "validate"].iter().flat_map(|name| images(&work.path().join(format!("dataset/{name}.record")))).collect();
    let image = all.iter().find(|image| image.filename.ends_with("t=1085.jpg")).unwrap();
    // The file's values over 720 and 1280.
    let wanted = [346.229_5 / 720.0, 583.204 / 1280.0, 367.377_05 / 720.0, 662.865_9 / 1280.0];
    for (value, wanted) in image.boxes[0].iter().zip(wanted) {
        assert!((value - wanted).abs() < 1e-6, "{value} {wanted}");
    }
    let csv: String = ["train", "validate"]
        .iter()
        .map(|name| std::fs::read_to_string(work.path().join(format!("dataset/{name}.csv"))).unwrap())
        .collect();
    assert!(csv.contains("dayride_type1_001.mp4#t=1085.jpg,1280,720,license-plate,583,346,663,367\n"), "{csv}");
}

fn images(record: &Path) -> Vec<LabeledImage> {
    Reader::open(record).unwrap().map(|record| LabeledImage::from_record(record.unwrap()).unwrap()).collect()
}
