//! `odh tfgen` as a user meets it: folders of pictures and XML in, a dataset out, and what is said on the way.

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use odh::data::example::LabeledImage;
use odh::formats::tfrecord::{self, Reader};
use tempfile::TempDir;

/// A folder to work in, with an `images` folder.
struct Work(TempDir);

impl Work {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("images")).unwrap();
        Self(folder)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    /// A picture of 40 x 30 that differs with `seed`, in the format of its extension.
    fn picture(&self, name: &str, seed: u8) {
        let picture = image::RgbImage::from_fn(40, 30, |x, y| image::Rgb([seed.wrapping_mul(31), (x * 5) as u8, (y * 7) as u8]));
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        picture.save(path).unwrap();
    }

    /// labelImg's XML for a picture of 40 x 30.
    fn labels(&self, name: &str, filename: &str, objects: &[(&str, [i32; 4])]) {
        let objects: String = objects
            .iter()
            .map(|(class, [xmin, ymin, xmax, ymax])| {
                format!(
                    "<object><name>{class}</name><difficult>0</difficult><bndbox><xmin>{xmin}</xmin><ymin>{ymin}</ymin>\
                     <xmax>{xmax}</xmax><ymax>{ymax}</ymax></bndbox></object>"
                )
            })
            .collect();
        self.write(
            name,
            format!(
                "<annotation><filename>{filename}</filename><size><width>40</width><height>30</height><depth>3</depth></size>\
                 {objects}</annotation>"
            ),
        );
    }

    /// Pictures `0..count` of one class each, `class(i)`.
    fn plain(&self, count: u8, class: impl Fn(u8) -> &'static str) {
        for i in 0..count {
            self.picture(&format!("images/p{i:03}.jpg"), i);
            self.labels(&format!("images/p{i:03}.xml"), &format!("p{i:03}.jpg"), &[(class(i), [1, 2, 20, 25])]);
        }
    }

    fn run(&self, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_odh")).current_dir(self.0.path()).arg("tfgen").args(arguments).output().unwrap()
    }

    /// Runs with `--write_label_map`; gives what was said on stderr.
    fn good(&self, arguments: &[&str]) -> String {
        let output = self.run(&[&["--write_label_map"], arguments].concat());
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{said}");
        said
    }

    /// Runs, and gives the exit code and what was said on stderr.
    fn bad(&self, arguments: &[&str]) -> (i32, String) {
        let output = self.run(arguments);
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success(), "{said}");
        assert!(!said.contains("panicked"), "{said}");
        (output.status.code().unwrap(), said)
    }

    fn images(&self, side: &str) -> Vec<LabeledImage> {
        let paths = tfrecord::resolve(&self.path(&format!("dataset/{side}.record"))).unwrap();
        let records = paths.iter().flat_map(|path| Reader::open(path).unwrap());
        records.map(|record| LabeledImage::from_record(record.unwrap()).unwrap()).collect()
    }

    fn names(&self, side: &str) -> BTreeSet<String> {
        self.images(side).into_iter().map(|image| image.filename).collect()
    }

    fn all(&self) -> Vec<LabeledImage> {
        [self.images("train"), self.images("validate")].concat()
    }

    /// Every file of the dataset folder with its bytes.
    fn snapshot(&self) -> Vec<(PathBuf, Vec<u8>)> {
        let Ok(entries) = fs::read_dir(self.path("dataset")) else { return Vec::new() };
        let mut files: Vec<_> =
            entries.map(|entry| entry.unwrap().path()).map(|path| (path.clone(), fs::read(path).unwrap())).collect();
        files.sort();
        files
    }
}

#[test]
fn a_folder_becomes_csv_records_label_map_and_a_summary_in_the_log() {
    let work = Work::new();
    work.plain(10, |i| if i % 2 == 0 { "cat" } else { "dog" });
    let output = work.run(&["--write_label_map", "-sr", "8"]);
    assert!(output.status.success());
    assert_eq!((work.names("train").len(), work.names("validate").len()), (8, 2));
    assert!(work.names("train").is_disjoint(&work.names("validate")));
    let csv = work.read("dataset/train.csv");
    assert!(csv.starts_with("filename,width,height,class,xmin,ymin,xmax,ymax\np00"), "{csv}");
    assert!(csv.contains(".jpg,40,30,cat,1,2,20,25\n"), "{csv}");
    assert_eq!(csv.lines().count() + work.read("dataset/validate.csv").lines().count(), 10 + 2);
    let map = work.read("label_map.pbtxt");
    assert!(map.contains("name: \"cat\"") && map.contains("id: 2"), "{map}");
    let table = String::from_utf8(output.stdout).unwrap();
    let log = work.read("process.log");
    for row in [
        "ID  NAME            Train  Validate  Total",
        " 1  cat                 4         1      5",
        "total pictures      8         2     10",
    ] {
        assert!(table.contains(row), "{table}");
        assert!(log.contains(row), "{log}");
    }
    assert!(log.contains("seed : 0"), "{log}");
}

#[test]
fn records_hold_the_pictures_own_bytes_and_the_old_tools_keys() {
    let work = Work::new();
    work.plain(2, |_| "cat");
    work.good(&[]);
    let image = work.all().into_iter().find(|image| image.filename == "p001.jpg").unwrap();
    assert_eq!(image.encoded, fs::read(work.path("images/p001.jpg")).unwrap());
    assert_eq!((image.format.as_str(), image.width, image.height), ("jpeg", 40, 30));
    assert_eq!((image.classes.as_slice(), image.class_names.as_slice()), (&[1][..], &["cat".to_string()][..]));
    assert_eq!(image.boxes, [[2.0 / 30.0, 1.0 / 40.0, 25.0 / 30.0, 20.0 / 40.0]]);
    assert_eq!((image.source_id.as_str(), image.sha256.len()), ("p001.jpg", 64));
}

#[test]
fn the_same_pictures_and_seed_give_the_same_files() {
    let work = Work::new();
    work.plain(12, |i| if i % 3 == 0 { "cat" } else { "dog" });
    work.good(&["--seed", "3"]);
    let first = work.snapshot();
    work.good(&["--seed", "3"]);
    assert!(work.snapshot() == first, "a second run wrote other bytes");
    work.good(&["--seed", "4"]);
    assert!(work.snapshot() != first, "another seed wrote the same split");
}

#[test]
fn records_written_while_checking_are_those_written_after_it() {
    let work = Work::new();
    work.plain(12, |i| if i % 3 == 0 { "cat" } else { "dog" });
    work.picture("images/odd.bmp", 40);
    work.labels("images/odd.xml", "odd.bmp", &[("dog", [1, 2, 20, 25])]);
    for shards in ["1", "2"] {
        work.good(&["--num_shards", shards]);
        let ahead = work.snapshot();
        // Under --strict nothing is written before all is checked.
        work.good(&["--num_shards", shards, "--strict"]);
        assert!(work.snapshot() == ahead, "the two ways differ with {shards} shards");
    }
}

#[test]
fn split_rates_are_tenths_or_fractions_and_all_else_is_an_error() {
    let work = Work::new();
    work.plain(20, |_| "cat");
    for (flags, train) in [
        (&["-sr", "5"][..], 10),
        (&["-sr=5"], 10),
        (&["-sr9"], 18),
        (&["--split_rate", "0.85"], 17),
        (&["--split-rate=1"], 2),
        (&[], 16),
    ] {
        work.good(flags);
        assert_eq!((work.names("train").len(), work.names("validate").len()), (train, 20 - train), "{flags:?}");
    }
    for rate in ["0", "10", "8.5", "-1", "nan", "80%", ""] {
        let (code, said) = work.bad(&["--split_rate", rate]);
        assert_eq!(code, 2, "{said}");
        assert!(said.contains("tenths"), "{said}");
    }
}

#[test]
fn every_class_with_two_pictures_is_on_both_sides_and_others_are_named() {
    let work = Work::new();
    work.plain(23, |i| match i {
        0..20 => "cat",
        20..22 => "dog",
        _ => "owl",
    });
    let said = work.good(&[]);
    for side in ["train", "validate"] {
        assert!(work.images(side).iter().any(|image| image.class_names == ["dog"]), "{side}");
    }
    assert!(said.contains("`owl` is on one picture only"), "{said}");
}

#[test]
fn pictures_with_the_same_bytes_stay_on_one_side_and_are_named() {
    let work = Work::new();
    work.plain(10, |_| "cat");
    for copy in ["a", "b", "c", "d"] {
        fs::copy(work.path("images/p000.jpg"), work.path(&format!("images/{copy}.jpg"))).unwrap();
        work.labels(&format!("images/{copy}.xml"), &format!("{copy}.jpg"), &[("cat", [1, 2, 20, 25])]);
    }
    for seed in ["0", "1", "2"] {
        let said = work.good(&["-sr", "5", "--seed", seed]);
        let copies = ["a.jpg", "b.jpg", "c.jpg", "d.jpg", "p000.jpg"].map(str::to_string);
        let train = work.names("train");
        let there = copies.iter().filter(|copy| train.contains(*copy)).count();
        assert!(there == 0 || there == 5, "{train:?}");
        assert!(said.contains("p000.jpg") && said.contains("byte for byte"), "{said}");
    }
}

#[test]
fn shards_hold_all_pictures_and_replace_what_was_written_otherwise() {
    let work = Work::new();
    work.plain(10, |_| "cat");
    work.good(&[]);
    let all = work.names("train");
    work.good(&["--num_shards", "3"]);
    assert_eq!(work.names("train"), all);
    let files: Vec<_> = work.snapshot().into_iter().map(|(path, _)| path.file_name().unwrap().to_owned()).collect();
    let wanted: Vec<String> = ["train", "validate"]
        .iter()
        .flat_map(|side| (0..3).map(move |shard| format!("{side}.record-0000{shard}-of-00003")))
        .chain(["train.csv".to_string(), "validate.csv".to_string()])
        .collect();
    assert_eq!(files.len(), wanted.len(), "{files:?}");
    assert!(wanted.iter().all(|name| files.iter().any(|file| file == name.as_str())), "{files:?}");
    work.good(&[]);
    assert_eq!(work.snapshot().len(), 4);
}

#[test]
fn a_missing_label_map_names_the_flag_that_writes_it() {
    let work = Work::new();
    work.plain(2, |_| "cat");
    let (_, said) = work.bad(&[]);
    assert!(said.contains("--write_label_map") && said.contains("`cat`"), "{said}");
    assert!(work.snapshot().is_empty());
    work.write("map.pbtxt", "item { name: 'cat' id: 5 }");
    assert!(work.run(&["-l", "map.pbtxt"]).status.success());
    assert_eq!(work.images("train")[0].classes, [5]);
    work.write("map.pbtxt", "item {\n  nmae: 'cat' id: 5 }");
    let (_, said) = work.bad(&["-l", "map.pbtxt"]);
    assert!(said.contains("map.pbtxt:2:3"), "{said}");
}

#[test]
fn labels_that_the_map_lacks_are_named_with_the_nearest_and_left_out() {
    let work = Work::new();
    work.plain(4, |_| "raccoon");
    work.picture("images/x.jpg", 99);
    work.labels("images/x.xml", "x.jpg", &[("racoon", [1, 1, 5, 5]), ("raccoon", [1, 1, 9, 9])]);
    work.write("label_map.pbtxt", "item { id: 1 name: 'raccoon' } item { id: 2 name: 'otter' }");
    let said = work.good(&[]);
    assert!(said.contains("x.xml`: object 1: class `racoon` is not in the label map; the nearest there is `raccoon`"), "{said}");
    assert_eq!(work.all().iter().map(|image| image.boxes.len()).sum::<usize>(), 5);
}

#[test]
fn strict_stops_with_1_and_writes_nothing() {
    let work = Work::new();
    work.plain(3, |_| "cat");
    work.labels("images/p000.xml", "p000.jpg", &[("cat", [20, 2, 1, 25])]);
    let (code, said) = work.bad(&["--strict", "--write_label_map"]);
    assert_eq!(code, 1);
    assert!(said.contains("p000.xml`: object 1: xmin 20 is not left of xmax 1") && said.contains("--strict"), "{said}");
    assert!(!work.path("dataset").exists() && !work.path("label_map.pbtxt").exists());
    // Without it the fault is said all the same, and the rest is used.
    let said = work.good(&[]);
    assert!(said.contains("p000.xml`: object 1"), "{said}");
    assert_eq!(work.all().len(), 2);
}

#[test]
fn notes_do_not_stop_strict() {
    let work = Work::new();
    work.plain(3, |_| "cat");
    work.labels("images/p000.xml", "p000.jpg", &[("cat", [-1, 2, 41, 25])]);
    let said = work.good(&["--strict"]);
    assert!(said.contains("clipped"), "{said}");
    let image = work.all().into_iter().find(|image| image.filename == "p000.jpg").unwrap();
    assert_eq!((image.boxes[0][1], image.boxes[0][3]), (0.0, 1.0));
}

#[test]
fn a_picture_without_objects_is_a_negative_and_one_without_xml_is_only_counted() {
    let work = Work::new();
    work.plain(4, |_| "cat");
    work.picture("images/nothing.jpg", 77);
    work.labels("images/nothing.xml", "nothing.jpg", &[]);
    work.picture("images/stray.jpg", 78);
    let output = work.run(&["--write_label_map"]);
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(said.contains("5 pictures (1 negative)") && said.contains("1 picture without labels"), "{said}");
    let negative = work.all().into_iter().find(|image| image.filename == "nothing.jpg").unwrap();
    assert!(negative.boxes.is_empty());
    assert!(work.all().iter().all(|image| image.filename != "stray.jpg"));
}

#[test]
fn bmp_gif_and_webp_are_stored_as_png_with_the_same_pixels() {
    let work = Work::new();
    for (i, name) in ["a.bmp", "b.gif", "c.webp", "d.png", "e.jpg"].into_iter().enumerate() {
        work.picture(&format!("images/{name}"), i as u8);
        work.labels(&format!("images/{}.xml", &name[..1]), name, &[("cat", [1, 2, 20, 25])]);
    }
    work.good(&["--strict"]);
    for image in work.all() {
        let original = fs::read(work.path("images").join(&image.filename)).unwrap();
        assert_eq!(image.format, if image.filename == "e.jpg" { "jpeg" } else { "png" });
        let pixels = |bytes: &[u8]| odh::data::image::decode(bytes).unwrap();
        assert_eq!(pixels(&image.encoded), pixels(&original), "{}", image.filename);
        assert_eq!(image.encoded == original, matches!(image.format.as_str(), "jpeg") || image.filename == "d.png");
    }
}

#[test]
fn a_faulty_line_of_the_users_own_csv_costs_that_line_alone() {
    let work = Work::new();
    work.plain(4, |_| "cat");
    let head = "filename,width,height,class,xmin,ymin,xmax,ymax\n";
    work.write(
        "t.csv",
        format!("{head}p000.jpg,40,30,cat,1,1,5,5\np001.jpg,40,30\n,40,30,cat,1,1,5,5\np002.jpg,4,30,cat,1,1,5,5\n"),
    );
    work.write("v.csv", format!("{head}p003.jpg,40,30,cat,1,1,5,5\n"));
    let said = work.good(&["-c", "-tc", "t.csv", "-vc", "v.csv"]);
    for part in [
        "`t.csv`: line 3: it has 3 fields",
        "`t.csv`: line 4: the filename is empty",
        "`t.csv`: line 5: the size is given as 4 x 30",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    assert_eq!((work.names("train").len(), work.names("validate").len()), (2, 1));
}

#[test]
fn boxes_that_the_users_own_csv_lists_under_two_names_of_a_picture_stand_on_one_example() {
    let work = Work::new();
    work.plain(2, |_| "cat");
    let head = "filename,width,height,class,xmin,ymin,xmax,ymax\n";
    work.write("t.csv", format!("{head}p000.jpg,40,30,cat,1,1,5,5\nP000.JPG,40,30,cat,7,7,9,9\n"));
    work.write("v.csv", format!("{head}p001.jpg,40,30,cat,1,1,5,5\n"));
    let said = work.good(&["-c", "-tc", "t.csv", "-vc", "v.csv"]);
    assert!(said.contains("line 3") && said.contains("`P000.JPG`"), "{said}");
    let images = work.images("train");
    assert_eq!((images.len(), images[0].boxes.len()), (1, 2));
}

#[cfg(unix)]
#[test]
fn a_picture_that_a_link_gives_another_name_is_found_and_named_as_a_copy() {
    let work = Work::new();
    work.plain(4, |_| "cat");
    std::os::unix::fs::symlink("p000.jpg", work.path("images/link.jpg")).unwrap();
    work.labels("images/link.xml", "link.jpg", &[("cat", [1, 2, 20, 25])]);
    let said = work.good(&[]);
    assert!(!said.contains("no picture") && said.contains("byte for byte"), "{said}");
    assert_eq!(work.all().len(), 5);
}

#[test]
fn pictures_of_kinds_that_labelimg_opens_and_tensorflow_does_not_are_named_as_such() {
    let work = Work::new();
    work.plain(2, |_| "cat");
    work.write("images/x.ppm", b"P6\n40 30\n255\n".iter().copied().chain([7; 3600]).collect::<Vec<u8>>());
    work.labels("images/x.xml", "x.ppm", &[("cat", [1, 2, 20, 25])]);
    let said = work.good(&[]);
    assert!(said.contains("x.ppm`: the bytes are a PPM") && said.contains("convert it"), "{said}");
}

#[test]
fn a_label_map_of_another_set_is_taken_for_one() {
    let work = Work::new();
    work.plain(4, |i| if i == 0 { "cat" } else { "otter" });
    work.write("label_map.pbtxt", "item { id: 1 name: 'cat' }");
    let output = work.run(&[]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && said.contains("3 of 4 objects") && said.contains("another set's label map"), "{said}");
    let said = String::from_utf8_lossy(&work.run(&["--write_label_map"]).stderr).into_owned();
    assert!(said.contains("--write_label_map leaves it as it is"), "{said}");
    work.write("label_map.pbtxt", "item { id: 1 name: 'cat' } item { id: 2 name: 'otter' }");
    let said = String::from_utf8_lossy(&work.run(&["--write_label_map"]).stderr).into_owned();
    assert!(!said.contains("label_map.pbtxt"), "{said}");
}

#[test]
fn no_label_map_without_a_class_is_written() {
    let work = Work::new();
    for i in 0..3 {
        work.picture(&format!("images/n{i}.jpg"), i);
        work.labels(&format!("images/n{i}.xml"), &format!("n{i}.jpg"), &[]);
    }
    let (code, said) = work.bad(&["--write_label_map"]);
    assert_eq!(code, 1);
    assert!(said.contains("no object is labelled"), "{said}");
    assert!(!work.path("label_map.pbtxt").exists() && work.snapshot().is_empty());
}

#[test]
fn the_users_own_csv_files_give_boxes_and_split() {
    let work = Work::new();
    work.plain(6, |_| "cat");
    work.picture("images/sub/deep.png", 50);
    work.write("label_map.pbtxt", "item { id: 1 name: 'cat' } item { id: 2 name: 'dog' }");
    let head = "filename,width,height,class,xmin,ymin,xmax,ymax\n";
    work.write("my/t.csv", format!("{head}p000.jpg,40,30,dog,3,4,30,20\np001.jpg,40,30,cat,1,1,5,5\np000.jpg,40,30,cat,1,1,9,9\np002.jpg,40,30,cat,9,1,5,5\np003.jpg,40,30,cat,5,5,9,9\n"));
    work.write("my/v.csv", format!("{head}deep.png,40,30,cat,1,1,39,29\np003.jpg,40,30,cat,5,5,9,9\ngone.jpg,1,1,cat,0,0,1,1\n"));
    for flag in [&["-c"][..], &["-c", "True"], &["-c=True"], &["--custom-csv"]] {
        let said = work.good(&[flag, &["-tc", "my/t.csv", "-vc", "my/v.csv"]].concat());
        assert!(said.contains("my/t.csv`: line 5: xmin 9 is not left of xmax 5"), "{said}");
        assert!(said.contains("my/v.csv`: line 4: there is no picture `gone.jpg`"), "{said}");
        assert!(said.contains("p003.jpg`: it is in both `my/t.csv` and `my/v.csv`"), "{said}");
        let train = work.names("train");
        assert_eq!(train.iter().map(String::as_str).collect::<Vec<_>>(), ["p000.jpg", "p001.jpg", "p003.jpg"]);
        assert_eq!(work.names("validate").iter().map(String::as_str).collect::<Vec<_>>(), ["deep.png", "p003.jpg"]);
        let image = work.images("train").into_iter().find(|image| image.filename == "p000.jpg").unwrap();
        assert_eq!(image.classes, [2, 1]);
    }
    // False means false: the XML is read again.
    work.good(&["-c", "False"]);
    assert_eq!(work.all().len(), 6);
}

#[test]
fn what_tfgen_wrote_is_read_back_as_the_users_own_csv() {
    let work = Work::new();
    work.plain(5, |_| "cat");
    work.picture("images/other/p000.jpg", 60);
    work.labels("images/other/p000.xml", "p000.jpg", &[("cat", [5, 5, 9, 9])]);
    work.good(&["--strict"]);
    let (train, validate) = (work.images("train"), work.images("validate"));
    assert!(work.all().iter().any(|image| image.filename == "other/p000.jpg"));
    work.good(&["--custom_csv", "--strict"]);
    let sorted = |mut images: Vec<LabeledImage>| {
        images.sort_by(|a, b| a.filename.cmp(&b.filename));
        images.into_iter().map(|image| (image.filename, image.boxes, image.classes, image.encoded)).collect::<Vec<_>>()
    };
    assert_eq!(sorted(work.images("train")), sorted(train));
    assert_eq!(sorted(work.images("validate")), sorted(validate));
}

#[test]
fn damaged_pictures_are_named_at_both_depths_and_the_rest_is_used() {
    let work = Work::new();
    work.plain(4, |_| "cat");
    let whole = fs::read(work.path("images/p000.jpg")).unwrap();
    work.write("images/p000.jpg", &whole[..whole.len() - 40]);
    work.write("images/p001.jpg", "");
    work.write("images/p002.jpg", "<html>not found</html>");
    for depth in ["decode", "structure"] {
        let said = work.good(&["--picture_check", depth]);
        for (name, words) in [("p000.jpg", "truncated"), ("p001.jpg", "empty"), ("p002.jpg", "web page")] {
            assert!(said.lines().any(|line| line.contains(name) && line.contains(words)), "{depth}: {said}");
        }
        assert_eq!(work.all().len(), 1);
    }
}

#[test]
fn korean_names_in_either_unicode_form_and_odd_characters_are_paired() {
    let work = Work::new();
    // The same letters, taken apart as macOS does it.
    let decomposed = "\u{1102}\u{1165}\u{1100}\u{116e}\u{1105}\u{1175}.jpg";
    work.picture(&format!("images/{decomposed}"), 1);
    work.labels("images/너구리.xml", "너구리.jpg", &[("너구리", [1, 1, 9, 9])]);
    work.picture("images/a b#t=1.mp4.jpg", 2);
    work.labels("images/a b#t=1.mp4.xml", "a b#t=1.mp4.jpg", &[("너구리", [1, 1, 9, 9])]);
    work.good(&["--strict"]);
    assert_eq!(work.all().len(), 2);
    assert!(work.read("label_map.pbtxt").contains("너구리"));
    assert!(work.read("dataset/train.csv").contains("너구리"));
}

#[test]
fn a_full_disk_is_said_and_leaves_the_old_dataset_whole() {
    let work = Work::new();
    work.plain(10, |_| "cat");
    work.good(&[]);
    let before = work.snapshot();
    let blocks = before.iter().map(|(_, bytes)| bytes.len()).max().unwrap() / 512 / 2;
    // A limit on file size stands in for a full disk: the same call fails with the same kind of error.
    let script = format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$0\" tfgen --seed 1");
    let output = Command::new("sh").args(["-c", &script, env!("CARGO_BIN_EXE_odh")]).current_dir(work.0.path()).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("train.record") && said.contains("cannot be written"), "{said}");
    assert!(work.snapshot() == before, "the old dataset was touched");
}

#[test]
fn faulty_calls_say_what_to_do() {
    let work = Work::new();
    let (_, said) = work.bad(&[]);
    assert!(said.contains("no XML file") && said.contains("--input_folder"), "{said}");
    let (_, said) = work.bad(&["-i", "nowhere"]);
    assert!(said.contains("nowhere") && said.contains("--input_folder"), "{said}");
    let (_, said) = work.bad(&["-c"]);
    assert!(said.contains("train.csv") && said.contains("--custom_csv"), "{said}");
    assert_eq!(work.bad(&["-m", "0"]).0, 2);
    work.labels("images/a.xml", "a.jpg", &[("cat", [1, 1, 2, 2])]);
    let (_, said) = work.bad(&["--write_label_map"]);
    assert!(said.contains("a.xml") && said.contains("nothing was written"), "{said}");
    assert!(!work.path("dataset").exists());
}

#[test]
fn two_real_sets_go_through_with_no_file_edited() {
    for (name, pictures, boxes, classes) in [("raccoon", 200, 217, 1), ("microcontrollers", 149, 177, 4)] {
        let Some(set) = common::shared(&format!("datasets/{name}")) else { return };
        let work = Work::new();
        let said = work.good(&["-i", set.to_str().unwrap()]);
        assert!(!said.contains("skipped"), "{said}");
        let all = work.all();
        assert_eq!(all.len(), pictures);
        assert_eq!(all.iter().map(|image| image.boxes.len()).sum::<usize>(), boxes);
        let train = work.images("train");
        for id in 1..=classes {
            let count = |images: &[LabeledImage]| images.iter().filter(|image| image.classes.contains(&id)).count() as f64;
            let off = count(&train) - 0.8 * count(&all);
            assert!(off.abs() <= 1.0, "{name}: class {id} is off by {off} pictures");
        }
    }
}

#[test]
fn the_raccoon_sets_equal_pictures_are_all_named() {
    let Some(set) = common::shared("datasets/raccoon") else { return };
    let work = Work::new();
    let said = work.good(&["-i", set.to_str().unwrap()]);
    // Found by sha256sum over the folder.
    for [a, b] in [["11", "116"], ["52", "74"], ["65", "98"], ["83", "120"]] {
        let [a, b] = [format!("raccoon-{a}.jpg`"), format!("raccoon-{b}.jpg`")];
        assert!(said.lines().any(|line| line.contains(&a) && line.contains(&b)), "{a} {b}: {said}");
        let train = work.names("train");
        let both = [a, b].map(|name| train.contains(name.trim_end_matches('`')));
        assert_eq!(both[0], both[1]);
    }
    let (train, validate) = (set.join("train.csv"), set.join("validate.csv"));
    let said = work.good(&["-i", set.to_str().unwrap(), "-c", "-tc", train.to_str().unwrap(), "-vc", validate.to_str().unwrap()]);
    // The set's own split has one of these pairs on both sides.
    assert!(
        said.lines().any(|line| line.contains("raccoon-65") && line.contains("raccoon-98") && line.contains("evaluation sees"))
    );
    assert_eq!((work.images("train").len(), work.images("validate").len()), (160, 40));
}

/// A picture with an EXIF orientation, as phones write them.
fn turned(path: &Path, orientation: u8) {
    let plain = fs::read(path).unwrap();
    let mut exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0".to_vec();
    exif.extend([orientation, 0, 0, 0, 0, 0, 0]);
    let mut bytes = vec![0xff, 0xd8, 0xff, 0xe1, 0, exif.len() as u8 + 2];
    bytes.extend(exif);
    bytes.extend(&plain[2..]);
    fs::write(path, bytes).unwrap();
}

#[test]
fn turned_pictures_are_used_only_if_labelled_as_stored() {
    let work = Work::new();
    work.plain(4, |_| "cat");
    turned(&work.path("images/p000.jpg"), 6);
    turned(&work.path("images/p001.jpg"), 8);
    let xml =
        work.read("images/p001.xml").replace("<width>40</width><height>30</height>", "<width>30</width><height>40</height>");
    work.write("images/p001.xml", xml);
    let said = work.good(&[]);
    assert!(!said.contains("p000"), "{said}");
    assert!(
        said.lines().any(|line| line.contains("p001.xml") && line.contains("orientation 8") && line.contains("skipped")),
        "{said}"
    );
    let names: BTreeSet<String> = work.all().into_iter().map(|image| image.filename).collect();
    assert!(names.contains("p000.jpg") && !names.contains("p001.jpg"));
}
