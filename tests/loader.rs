//! The loader: the same batches from any number of threads and any place, every fault named, nothing left running.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use odh::data::augment::Augmentation;
use odh::data::augment::flip::Flip;
use odh::data::example::LabeledImage;
use odh::data::loader::{Batch, Classes, Loader, LoaderOptions, OnePass, Position, Resizer};
use odh::formats::tfrecord::Writer;
use odh::proto::object_detection::protos as pb;
use prost::Message;

mod common;

/// A PNG of `width` x 10 pixels in a shade of its own, with a box whose class is 1 + (shade mod 3).
fn picture(shade: u8, width: u32) -> LabeledImage {
    let image = image::RgbImage::from_fn(width, 10, |x, _| image::Rgb([shade, x as u8, 7]));
    let mut encoded = Cursor::new(Vec::new());
    image.write_to(&mut encoded, image::ImageFormat::Png).unwrap();
    let class = 1 + u32::from(shade) % 3;
    LabeledImage {
        filename: format!("{shade}.png"),
        source_id: format!("{shade}.png"),
        encoded: encoded.into_inner(),
        format: "png".into(),
        width,
        height: 10,
        boxes: vec![[0.0, 0.25, 0.5, 0.5]],
        classes: vec![class],
        class_names: vec![format!("class {class}")],
        difficult: vec![false],
        truncated: vec![false],
        poses: vec![String::new()],
        crowd: vec![false],
        ..LabeledImage::default()
    }
}

fn write(path: &Path, pictures: &[LabeledImage]) {
    let mut writer = Writer::new(File::create(path).unwrap());
    for picture in pictures {
        writer.write(&picture.to_example().encode_to_vec()).unwrap();
    }
    writer.finish().unwrap();
}

/// Pictures 0.png, 1.png, ... in one file.
fn dataset(folder: &Path, count: u8) -> PathBuf {
    let path = folder.join("train.record");
    write(&path, &(0..count).map(|i| picture(i, 20 + u32::from(i))).collect::<Vec<_>>());
    path
}

fn classes(count: usize) -> Classes {
    Classes { count, ids: BTreeMap::new() }
}

fn options(path: &Path, batch_size: usize) -> LoaderOptions {
    let resizer = Resizer::fixed_shape(8, 6);
    LoaderOptions::new(vec![path.to_path_buf()], batch_size, resizer, classes(3))
}

/// Shuffled and augmented, as in training.
fn training(path: &Path, batch_size: usize) -> LoaderOptions {
    let crop = pb::preprocessing_step::PreprocessingStep::SsdRandomCrop(pb::SsdRandomCrop::default());
    let crop = pb::PreprocessingStep { preprocessing_step: Some(crop) };
    LoaderOptions {
        shuffle: true,
        seed: 11,
        augmentations: vec![Augmentation::Flip(Flip::Horizontal), Augmentation::from_config(&crop).unwrap()],
        ..options(path, batch_size)
    }
}

/// All that a batch says, but for the time it took.
fn content(batch: &Batch) -> impl PartialEq + std::fmt::Debug + use<> {
    (batch.names.clone(), batch.images.clone(), batch.groundtruth.clone(), batch.position, batch.source_sizes.clone())
}

fn first_error(options: LoaderOptions) -> String {
    let error = match Loader::new(options) {
        Err(error) => error,
        Ok(mut loader) => (0..50).find_map(|_| loader.next().err()).expect("an error within 50 batches"),
    };
    format!("{error:#}")
}

#[test]
fn the_batches_are_the_same_whatever_the_number_of_threads() {
    let folder = tempfile::tempdir().unwrap();
    let path = dataset(folder.path(), 23);
    let run = |num_threads, prefetch| {
        let mut loader = Loader::new(LoaderOptions { num_threads, prefetch, ..training(&path, 5) }).unwrap();
        (0..20).map(|_| content(&loader.next().unwrap())).collect::<Vec<_>>()
    };
    let one = run(1, 1);
    assert!(one == run(4, 3) && one == run(7, 1));
    let mut other = Loader::new(LoaderOptions { seed: 12, ..training(&path, 5) }).unwrap();
    assert!(content(&other.next().unwrap()) != one[0]);
}

#[test]
fn a_run_from_any_saved_position_goes_on_exactly() {
    let folder = tempfile::tempdir().unwrap();
    let path = dataset(folder.path(), 7);
    let mut whole = Loader::new(training(&path, 3)).unwrap();
    let batches: Vec<Batch> = (0..12).map(|_| whole.next().unwrap()).collect();
    for stop in 0..11 {
        // What is saved is JSON beside the checkpoint.
        let saved = serde_json::to_string(&batches[stop].position).unwrap();
        let start: Position = serde_json::from_str(&saved).unwrap();
        let mut rest = Loader::new(LoaderOptions { start, ..training(&path, 3) }).unwrap();
        for batch in &batches[stop + 1..] {
            assert!(content(&rest.next().unwrap()) == content(batch), "from {saved}");
        }
    }
}

#[test]
fn every_pass_holds_every_picture_once_in_a_new_order() {
    let folder = tempfile::tempdir().unwrap();
    let path = dataset(folder.path(), 12);
    let mut loader = Loader::new(training(&path, 4)).unwrap();
    let mut passes = Vec::new();
    for epoch in 1..=3 {
        let mut names = Vec::new();
        for _ in 0..3 {
            let batch = loader.next().unwrap();
            for (name, truth) in batch.names.iter().zip(&batch.groundtruth) {
                let shade: usize = name.trim_end_matches(".png").parse().unwrap();
                // A crop may have lost the box; where it is left, its class is its picture's.
                assert!(truth.classes.iter().all(|&class| class == shade % 3), "{name}: {truth:?}");
            }
            names.extend(batch.names);
            assert_eq!(batch.images.len(), 4 * 8 * 6 * 3);
            if names.len() == 12 {
                assert_eq!(batch.position, Position { epoch, index: 0 });
            }
        }
        passes.push(names.clone());
        names.sort();
        names.dedup();
        assert_eq!(names.len(), 12);
    }
    assert!(passes[0] != passes[1] && passes[1] != passes[2]);
}

#[test]
fn a_dataset_smaller_than_a_batch_is_gone_round() {
    let folder = tempfile::tempdir().unwrap();
    let path = dataset(folder.path(), 2);
    let batch = Loader::new(options(&path, 5)).unwrap().next().unwrap();
    assert_eq!(batch.names, ["0.png", "1.png", "0.png", "1.png", "0.png"]);
    assert_eq!(batch.position, Position { epoch: 2, index: 1 });
    // Resized: the first column of picture 1 has its shade in red, and the columns count up in green.
    let second = &batch.images[8 * 6 * 3..];
    assert_eq!(second[..6], [1.0, 0.0, 7.0, 1.0, 3.5, 7.0]);
}

#[test]
fn a_saved_position_beyond_a_dataset_that_has_shrunk_begins_the_next_pass() {
    let folder = tempfile::tempdir().unwrap();
    let path = dataset(folder.path(), 3);
    let start = Position { epoch: 4, index: 90 };
    let batch = Loader::new(LoaderOptions { start, ..options(&path, 2) }).unwrap().next().unwrap();
    assert_eq!(
        (batch.names.as_slice(), batch.position),
        (["0.png", "1.png"].map(String::from).as_slice(), Position { epoch: 5, index: 2 })
    );
}

#[test]
fn one_pass_gives_each_picture_once_with_its_size_and_the_first_sources() {
    let folder = tempfile::tempdir().unwrap();
    dataset(folder.path(), 5);
    // Two shards instead of the file.
    for shard in 0..2 {
        let pictures: Vec<_> = (0..5).filter(|i| i % 2 == shard).map(|i| picture(i, 20 + u32::from(i))).collect();
        write(&folder.path().join(format!("validate.record-0000{shard}-of-00002")), &pictures);
    }
    let path = folder.path().join("validate.record");
    let batches = |limit, batch_size| -> Vec<Batch> {
        let pass = OnePass::new(LoaderOptions { keep_sources: 2, ..options(&path, batch_size) }, limit).unwrap();
        pass.map(|batch| batch.unwrap()).collect()
    };
    let all = batches(None, 2);
    assert_eq!(all.iter().map(|b| b.names.len()).collect::<Vec<_>>(), [2, 2, 1]);
    let names: Vec<&str> = all.iter().flat_map(|b| &b.names).map(String::as_str).collect();
    assert_eq!(names, ["0.png", "2.png", "4.png", "1.png", "3.png"]);
    let sizes: Vec<_> = all.iter().flat_map(|b| b.source_sizes.clone()).collect();
    assert_eq!(sizes, [(10, 20), (10, 22), (10, 24), (10, 21), (10, 23)]);
    let sources: Vec<bool> = all.iter().flat_map(|b| &b.sources).map(Option::is_some).collect();
    assert_eq!(sources, [true, true, false, false, false]);
    assert_eq!(all[0].sources[1].as_ref().unwrap().width, 22);
    assert_eq!(all[2].images.len(), 8 * 6 * 3);
    assert_eq!(batches(Some(3), 2).iter().map(|b| b.names.len()).collect::<Vec<_>>(), [2, 1]);
    assert_eq!(batches(Some(0), 2).len(), 0);
    assert_eq!(batches(Some(99), 99)[0].names.len(), 5);
}

#[test]
fn every_fault_names_file_record_and_picture() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("train.record");
    let fault = |change: fn(&mut LabeledImage)| {
        let mut pictures: Vec<_> = (0..4).map(|i| picture(i, 20)).collect();
        change(&mut pictures[2]);
        write(&path, &pictures);
        let said = first_error(options(&path, 2));
        assert!(said.contains("train.record`: record 2 (`2.png`)"), "{said}");
        said
    };
    let said = fault(|p| p.classes[0] = 9);
    assert!(said.contains("label id 9 (`class 3`)") && said.contains("num_classes is 3"), "{said}");
    let said = fault(|p| p.encoded.truncate(40));
    assert!(said.contains("truncated"), "{said}");
    let said = fault(|p| p.encoded = b"no picture".to_vec());
    assert!(said.contains("not a picture"), "{said}");
    let said = fault(|p| p.boxes[0] = [0.5, 0.1, 0.2, 0.3]);
    assert!(said.contains("box 0 is reversed: ymin 0.5"), "{said}");
    let said = fault(|p| p.boxes[0] = [5.0, 10.0, 20.0, 30.0]);
    assert!(said.contains("not normalized"), "{said}");
    let said = fault(|p| p.classes[0] = 0);
    assert!(said.contains("image/object/class/label"), "{said}");
}

#[test]
fn damage_in_the_file_itself_is_named_and_ends_the_loading() {
    let folder = tempfile::tempdir().unwrap();
    let path = dataset(folder.path(), 6);
    let whole = std::fs::read(&path).unwrap();
    let mut flipped = whole.clone();
    let third = odh::formats::tfrecord::index(&path).unwrap()[2];
    flipped[(third.offset + third.len / 2) as usize] ^= 1;
    std::fs::write(&path, &flipped).unwrap();
    let mut loader = Loader::new(options(&path, 2)).unwrap();
    let errors: Vec<String> = (0..9).filter_map(|_| loader.next().err()).map(|e| format!("{e:#}")).collect();
    assert!(errors[0].contains("train.record`: record 2") && errors[0].contains("damaged"), "{}", errors[0]);
    assert!(errors.len() > 1 && errors[1..].iter().all(|e| e.contains("earlier error")), "{errors:?}");
    std::fs::write(&path, &whole[..whole.len() - 9]).unwrap();
    let said = first_error(options(&path, 2));
    assert!(said.contains("train.record`: record 5"), "{said}");
    std::fs::write(&path, b"").unwrap();
    let said = first_error(options(&path, 2));
    assert!(said.contains("no picture in") && said.contains("train.record"), "{said}");
    std::fs::remove_file(&path).unwrap();
    let said = first_error(options(&path, 2));
    assert!(said.contains("train.record"), "{said}");
    let said = first_error(LoaderOptions { records: Vec::new(), ..options(&path, 2) });
    assert!(said.contains("no record file is given"), "{said}");
}

#[test]
fn names_without_ids_are_looked_up() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("train.record");
    let mut example = picture(1, 20).to_example();
    example.features.as_mut().unwrap().feature.remove("image/object/class/label").unwrap();
    let mut writer = Writer::new(File::create(&path).unwrap());
    writer.write(&example.encode_to_vec()).unwrap();
    writer.finish().unwrap();
    let classes = Classes { count: 3, ids: BTreeMap::from([("class 2".to_string(), 3)]) };
    let batch = Loader::new(LoaderOptions { classes, ..options(&path, 1) }).unwrap().next().unwrap();
    assert_eq!(batch.groundtruth[0].classes, [2]);
    let said = first_error(options(&path, 1));
    assert!(said.contains("(`1.png`)") && said.contains("no class `class 2`"), "{said}");
}

#[test]
fn ids_that_are_other_classes_in_the_label_map_are_refused_and_names_that_it_lacks_are_not() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("train.record");
    write(&path, &[picture(1, 20)]);
    let mapped = |ids: &[(&str, u32)]| {
        let ids = ids.iter().map(|&(name, id)| (name.to_string(), id)).collect();
        LoaderOptions { classes: Classes { count: 3, ids }, ..options(&path, 1) }
    };
    for fitting in [&[("class 2", 2)][..], &[("renamed", 2), ("class 1", 1)]] {
        assert_eq!(Loader::new(mapped(fitting)).unwrap().next().unwrap().groundtruth[0].classes, [1]);
    }
    let said = first_error(mapped(&[("class 1", 2), ("class 2", 1)]));
    assert!(said.contains("label id 2 and the name `class 2`, which has the id 1"), "{said}");
    // Within 1 to num_classes, but in a gap of the label map.
    let said = first_error(mapped(&[("class 1", 1), ("class 3", 3)]));
    assert!(said.contains("label id 2 (`class 2`), which no item of the label map has"), "{said}");
}

#[test]
fn a_loader_that_keeps_its_pictures_decoded_gives_the_same_ones_in_every_pass() {
    let folder = tempfile::tempdir().unwrap();
    let path = dataset(folder.path(), 3);
    let mut loader = Loader::new(options(&path, 3)).unwrap();
    let first = loader.next().unwrap();
    for _ in 0..3 {
        let again = loader.next().unwrap();
        assert_eq!((again.images == first.images, &again.names), (true, &first.names));
    }
}

#[test]
fn dropping_it_ends_its_threads_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let path = dataset(folder.path(), 9);
    for batches in [0, 1, 3] {
        let mut loader = Loader::new(LoaderOptions { num_threads: 3, ..training(&path, 2) }).unwrap();
        (0..batches).for_each(|_| drop(loader.next().unwrap()));
        let begun = Instant::now();
        drop(loader);
        assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    }
}

#[test]
fn real_photos_load_and_never_keep_a_slow_step_waiting() {
    let Some(photos) = common::shared("datasets/raccoon/images") else { return };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("train.record");
    let mut pictures = Vec::new();
    for entry in std::fs::read_dir(photos).unwrap().flatten().take(24) {
        let encoded = std::fs::read(entry.path()).unwrap();
        pictures.push(LabeledImage { encoded, filename: entry.file_name().to_string_lossy().into(), ..picture(0, 10) });
    }
    write(&path, &pictures);
    let resizer = Resizer::fixed_shape(300, 300);
    let mut loader = Loader::new(LoaderOptions { resizer, ..training(&path, 24) }).unwrap();
    // Nobody could have made the first one ahead, so its time is what every one would cost.
    let first = loader.next().unwrap().waited;
    let mut waited = Duration::ZERO;
    for _ in 0..6 {
        std::thread::sleep(first * 2);
        waited += loader.next().unwrap().waited;
    }
    assert!(waited < first * 3, "waited {waited:?} over six slow steps, {first:?} for the first batch alone");
}

#[test]
fn pictures_that_keep_their_aspect_make_no_batch_unless_they_are_of_one_size() {
    let folder = tempfile::tempdir().unwrap();
    let path = dataset(folder.path(), 5);
    let keep = |batch_size| LoaderOptions { resizer: Resizer::keep_aspect_ratio(20, 100), ..options(&path, batch_size) };
    let mut alone = Loader::new(keep(1)).unwrap();
    for width in [40, 42, 44] {
        let batch = alone.next().unwrap();
        assert_eq!((batch.height, batch.width, batch.images.len()), (20, width, 20 * width * 3));
    }
    let error = first_error(keep(2));
    assert!(error.contains("0.png 20x40 and 1.png 20x42") && error.contains("batch_size: 1"), "{error}");

    // Crops make it certain at once; pictures of one size are no fault.
    let crop = training(&path, 2).augmentations;
    let error = Loader::new(LoaderOptions { augmentations: crop, ..keep(2) }).err().map(|e| format!("{e:#}")).unwrap();
    assert!(error.contains("train_config.batch_size: 2") && error.contains("data_augmentation_options"), "{error}");
    let same = folder.path().join("same.record");
    write(&same, &[picture(1, 30), picture(2, 30)]);
    let mut pair = Loader::new(LoaderOptions { records: vec![same], ..keep(2) }).unwrap();
    assert_eq!(pair.next().unwrap().names.len(), 2);
}
