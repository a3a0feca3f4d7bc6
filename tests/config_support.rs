//! What `check_supported` accepts is what the other layers build.

use odh::config::{pipeline, text, zoo};
use odh::data::augment::Augmentation;
use odh::proto::object_detection::protos as pb;
use prost_reflect::{DynamicMessage, Value};

const STEP: &str = "object_detection.protos.PreprocessingStep";

#[test]
fn an_augmentation_is_accepted_exactly_if_it_can_be_run() {
    let descriptor = text::descriptor(STEP).unwrap();
    let mut accepted = 0;
    for field in descriptor.fields() {
        let mut step = DynamicMessage::new(descriptor.clone());
        let options = field.kind().as_message().unwrap().clone();
        step.set_field(&field, Value::Message(DynamicMessage::new(options)));
        let step: pb::PreprocessingStep = step.transcode_to().unwrap();
        let runs = match Augmentation::from_config(&step) {
            Ok(_) => true,
            // Some steps have options without defaults.
            Err(e) => !format!("{e:#}").contains("not supported"),
        };
        let mut config = pipeline::parse("model { ssd { num_classes: 1 } }", "test").unwrap();
        config.train_config.get_or_insert_default().data_augmentation_options = vec![step];
        let checked = pipeline::check_supported(&config);
        assert_eq!(checked.is_ok(), runs, "{}: {checked:?}", field.name());
        accepted += usize::from(runs);
    }
    assert!(accepted > 20, "{accepted}");
}

#[test]
fn every_model_of_the_zoo_is_built_from_its_config() {
    let nowhere = tempfile::tempdir().unwrap();
    for model in zoo::MODELS {
        let (config, source) = model.config(nowhere.path()).unwrap();
        let network = odh::models::from_config(&config).unwrap_or_else(|e| panic!("{source}: {e:#}"));
        assert_eq!(network.num_classes(), 90, "{source}");
        pipeline::check_supported(&config).unwrap_or_else(|e| panic!("{source}: {e:#}"));
    }
}
