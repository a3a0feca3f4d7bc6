//! The small config that `make demo` trains is one that the program supports, and fits the sample pictures.

use std::path::Path;

use odh::config::label_map::LabelMap;
use odh::config::pipeline;
use odh::proto::object_detection::protos::detection_model;

#[test]
fn the_demo_config_loads_and_every_field_of_it_counts() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let config = pipeline::load(&root.join("configs/demo.config")).unwrap();
    let notes = pipeline::check_supported(&config).unwrap();
    // Who reads the config learns from it: nothing in it may be there for show.
    let idle: Vec<_> = notes.iter().filter(|note| note.contains("has no effect")).collect();
    assert!(idle.is_empty(), "{idle:?}");
    let labels = LabelMap::load(&root.join("label_map.pbtxt")).unwrap();
    let Some(detection_model::Model::Ssd(ssd)) = config.model.unwrap().model else { panic!("not an SSD") };
    assert_eq!(ssd.num_classes() as u32, labels.max_id());
}
