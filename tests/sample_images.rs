//! The pictures in `images/` are those that `examples/draw_images` draws, and are what the README says of them.

#[path = "../examples/draw_images/animals.rs"]
mod animals;
#[path = "../examples/draw_images/canvas.rs"]
mod canvas;
#[path = "../examples/draw_images/chance.rs"]
mod chance;
#[path = "../examples/draw_images/picture.rs"]
mod picture;
#[path = "../examples/draw_images/scenery.rs"]
mod scenery;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use picture::{Label, Picture};
use rayon::prelude::*;

/// The committed set: the generator's default seed and count.
static DRAWN: LazyLock<Vec<Picture>> =
    LazyLock::new(|| (1..=60u64).into_par_iter().map(|index| picture::draw(1, index).unwrap()).collect());

fn images() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("images")
}

#[test]
fn the_committed_pictures_are_drawn_again_to_the_byte() {
    for drawn in DRAWN.iter() {
        let committed = fs::read(images().join(&drawn.name).with_extension("jpg")).unwrap();
        assert!(committed == drawn.jpeg, "{}.jpg differs from what the generator draws", drawn.name);
    }
}

#[test]
fn the_committed_labels_are_written_again_to_the_byte() {
    for drawn in DRAWN.iter() {
        let committed = fs::read_to_string(images().join(&drawn.name).with_extension("xml")).unwrap();
        assert_eq!(committed, picture::annotation(drawn, "images"), "{}.xml", drawn.name);
    }
}

#[test]
fn the_folder_holds_nothing_that_the_generator_did_not_draw() {
    let mut expected: Vec<String> =
        DRAWN.iter().flat_map(|drawn| ["jpg", "xml"].map(|extension| format!("{}.{extension}", drawn.name))).collect();
    let mut found: Vec<String> =
        fs::read_dir(images()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    expected.sort();
    found.sort();
    assert_eq!(found, expected);
}

#[test]
fn another_seed_draws_other_pictures() {
    let other = picture::draw(2, 1).unwrap();
    assert_ne!(other.jpeg, DRAWN[0].jpeg);
    assert_ne!(other.labels, DRAWN[0].labels);
}

#[test]
fn sides_are_240_to_800_pixels_and_lie_both_ways() {
    assert!(DRAWN.iter().all(|p| (240..=800).contains(&p.width) && (240..=800).contains(&p.height)));
    assert!(DRAWN.iter().filter(|p| p.width > p.height).count() >= 15);
    assert!(DRAWN.iter().filter(|p| p.width < p.height).count() >= 15);
}

#[test]
fn every_picture_has_1_to_6_objects_and_every_class_at_least_50() {
    assert!(DRAWN.iter().all(|p| (1..=6).contains(&p.labels.len())));
    for species in animals::Species::ALL {
        let count = DRAWN.iter().flat_map(|p| &p.labels).filter(|label| label.species == species).count();
        assert!(count >= 50, "{}: {count}", species.name());
    }
}

#[test]
fn boxes_run_from_5_to_60_per_cent_of_the_side() {
    let shares: Vec<f32> = DRAWN
        .iter()
        .flat_map(|p| {
            p.labels.iter().flat_map(|l| [(l.xmax - l.xmin) as f32 / p.width as f32, (l.ymax - l.ymin) as f32 / p.height as f32])
        })
        .collect();
    assert!(shares.iter().all(|share| (0.05..=0.6).contains(share)));
    assert!(shares.iter().any(|&share| share < 0.07) && shares.iter().any(|&share| share > 0.55));
}

#[test]
fn some_objects_overlap_and_some_are_cut_by_the_edge() {
    let meet = |a: &Label, b: &Label| a.xmin < b.xmax && b.xmin < a.xmax && a.ymin < b.ymax && b.ymin < a.ymax;
    let overlapping =
        DRAWN.iter().filter(|p| p.labels.iter().enumerate().any(|(i, a)| p.labels[i + 1..].iter().any(|b| meet(a, b)))).count();
    let cut = DRAWN.iter().flat_map(|p| &p.labels).filter(|label| label.truncated).count();
    assert!(overlapping >= 15, "{overlapping} pictures with overlapping objects");
    assert!(cut >= 25, "{cut} objects cut by the edge");
}

#[test]
fn the_label_map_names_the_classes_in_order() {
    let map = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("label_map.pbtxt")).unwrap();
    for (index, species) in animals::Species::ALL.iter().enumerate() {
        assert!(map.contains(&format!("id: {}\n  name: '{}'", index + 1, species.name())), "{}", species.name());
    }
}
