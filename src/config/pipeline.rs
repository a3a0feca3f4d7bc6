//! The pipeline config: protobuf text, checked, overridden, saved.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::config::{support, text};
use crate::formats::averages::Values;
use crate::proto::object_detection::protos as pb;

/// What a pipeline config is called beside a checkpoint.
pub const FILE_NAME: &str = "pipeline.config";

const ROOT: &str = "object_detection.protos.TrainEvalPipelineConfig";

/// Reads a pipeline.config file.
///
/// # Errors
/// If the file cannot be read, or its text is not a pipeline config (`FILE:LINE:COLUMN`, and what is wrong there).
pub fn load(path: &Path) -> Result<pb::TrainEvalPipelineConfig> {
    parse(&text::read(path)?, &path.display().to_string())
}

/// Parses the text of a pipeline config; `source` is what errors call it.
///
/// # Errors
/// As [`load`].
pub fn parse(text: &str, source: &str) -> Result<pb::TrainEvalPipelineConfig> {
    text::refuse_empty(text, source)?;
    text::parse(ROOT, text, source)
}

/// The config as text that parses to the same config again, here and in TensorFlow.
pub fn to_text(config: &pb::TrainEvalPipelineConfig) -> String {
    match text::reflect(ROOT, config) {
        Ok(dynamic) => text::to_text(&dynamic),
        Err(e) => unreachable!("the descriptors and the types come from the same files: {e:#}"),
    }
}

/// Checks that everything the config sets can be honoured: the notes, one for each field that is accepted but has no effect
/// here.
///
/// # Errors
/// If the config has no model, or sets fields that change the result and are not supported; each is named.
pub fn check_supported(config: &pb::TrainEvalPipelineConfig) -> Result<Vec<String>> {
    let notes = support::check(&text::reflect(ROOT, config)?)?;
    model(config)?;
    Ok(notes)
}

const NO_MODEL: &str = "the config has no model: set model.ssd or model.faster_rcnn";

/// The model that the config describes.
///
/// # Errors
/// If it describes none.
pub fn model(config: &pb::TrainEvalPipelineConfig) -> Result<&pb::detection_model::Model> {
    config.model.as_ref().and_then(|model| model.model.as_ref()).context(NO_MODEL)
}

/// The files of training records: the config's, or else tfgen's.
pub fn train_records(config: &pb::TrainEvalPipelineConfig) -> Vec<PathBuf> {
    records(config.train_input_reader.as_ref(), "./dataset/train.record")
}

/// The files of validation records, likewise.
pub fn eval_records(config: &pb::TrainEvalPipelineConfig) -> Vec<PathBuf> {
    records(config.eval_input_reader.as_ref(), "./dataset/validate.record")
}

fn records(reader: Option<&pb::InputReader>, default: &str) -> Vec<PathBuf> {
    match reader.and_then(|reader| reader.input_reader.as_ref()) {
        Some(pb::input_reader::InputReader::TfRecordInputReader(records)) if !records.input_path.is_empty() => {
            records.input_path.iter().map(PathBuf::from).collect()
        }
        _ => vec![PathBuf::from(default)],
    }
}

/// Which values of the variables are evaluated, exported and detected with.
pub fn values_evaluated(config: &pb::TrainEvalPipelineConfig) -> Values {
    match config.eval_config.as_ref().is_some_and(pb::EvalConfig::use_moving_averages) {
        true => Values::Averages,
        false => Values::Trained,
    }
}

/// What flags and the label map say in place of the config's fields; `None` leaves a field as it is.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Overrides {
    /// Without background.
    pub num_classes: Option<u32>,
    /// Pictures a step.
    pub batch_size: Option<u32>,
    /// Steps to train.
    pub num_steps: Option<u32>,
    /// For training and evaluation.
    pub label_map: Option<PathBuf>,
    /// The training pictures: a file, or the common part of sharded ones.
    pub train_record: Option<PathBuf>,
    /// The validation pictures.
    pub validate_record: Option<PathBuf>,
    /// `Some(None)` trains from random values.
    pub fine_tune_checkpoint: Option<Option<PathBuf>>,
}

/// The model's classes; 0 if the config has no model.
pub fn num_classes(config: &pb::TrainEvalPipelineConfig) -> u32 {
    use pb::detection_model::Model;
    let count = match model(config) {
        Ok(Model::Ssd(ssd)) => ssd.num_classes(),
        Ok(Model::FasterRcnn(faster_rcnn)) => faster_rcnn.num_classes(),
        Err(_) => 0,
    };
    u32::try_from(count).unwrap_or(0)
}

/// Puts `overrides` into the config.
///
/// # Errors
/// If the config has no model to give `num_classes` to, or a path is not UTF-8 (the config could not hold it).
pub fn apply(config: &mut pb::TrainEvalPipelineConfig, overrides: &Overrides) -> Result<()> {
    use pb::detection_model::Model;
    if let Some(classes) = overrides.num_classes {
        let classes = Some(i32::try_from(classes).with_context(|| format!("{classes} classes are too many"))?);
        match config.model.as_mut().and_then(|m| m.model.as_mut()) {
            Some(Model::Ssd(ssd)) => ssd.num_classes = classes,
            Some(Model::FasterRcnn(faster_rcnn)) => faster_rcnn.num_classes = classes,
            None => bail!(NO_MODEL),
        }
    }
    let train = config.train_config.get_or_insert_default();
    if overrides.batch_size.is_some() {
        train.batch_size = overrides.batch_size;
    }
    if overrides.num_steps.is_some() {
        train.num_steps = overrides.num_steps;
    }
    match &overrides.fine_tune_checkpoint {
        None => {}
        Some(None) => train.fine_tune_checkpoint = None,
        Some(Some(path)) => train.fine_tune_checkpoint = Some(utf8(path)?),
    }
    let readers =
        [(&mut config.train_input_reader, &overrides.train_record), (&mut config.eval_input_reader, &overrides.validate_record)];
    for (reader, record) in readers {
        if let Some(path) = &overrides.label_map {
            reader.get_or_insert_default().label_map_path = Some(utf8(path)?);
        }
        if let Some(path) = record {
            let records = pb::TfRecordInputReader { input_path: vec![utf8(path)?] };
            reader.get_or_insert_default().input_reader = Some(pb::input_reader::InputReader::TfRecordInputReader(records));
        }
    }
    Ok(())
}

fn utf8(path: &Path) -> Result<String> {
    path.to_str()
        .map(str::to_string)
        .with_context(|| format!("{}: the path is not UTF-8, and a pipeline config cannot hold it; rename it", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::shared;

    fn error(text: &str) -> String {
        format!("{:#}", parse(text, "p.config").unwrap_err())
    }

    #[test]
    fn real_configs_parse_and_their_text_parses_to_the_same_again() {
        let Some(index) = shared("reference/index") else {
            return;
        };
        for model in ["ssd_mobilenet_v1_coco_2018_01_28", "ssd_mobilenet_v2_coco_2018_03_29"] {
            let config = load(&index.join(model).join("pipeline.config")).unwrap();
            let Some(pb::detection_model::Model::Ssd(ssd)) = config.model.as_ref().unwrap().model.as_ref() else {
                panic!("not an ssd")
            };
            assert_eq!(ssd.num_classes(), 1);
            let again = to_text(&config);
            assert_eq!(parse(&again, "again").unwrap(), config);
            assert_eq!(to_text(&parse(&again, "again").unwrap()), again);
        }
    }

    #[test]
    fn a_windows_path_with_bad_escapes_is_refused_with_its_line_and_column() {
        let Some(index) = shared("reference/index") else {
            return;
        };
        let path = index.join("faster_rcnn_inception_v2_coco_2018_01_28/pipeline.config");
        let error = format!("{:#}", load(&path).unwrap_err());
        assert!(error.contains("pipeline.config:112:28: "), "{error}");
        assert!(error.contains("Users\\elisa"), "{error}");
        assert!(error.contains("backslash"), "{error}");
    }

    #[test]
    fn an_unknown_field_is_named_with_its_place_and_the_nearest_known_one() {
        let error = error("train_config {\n  batch_sise: 24\n}\n");
        assert!(error.starts_with("p.config:2:3: "), "{error}");
        assert!(error.contains("did you mean `batch_size`"), "{error}");
        assert!(error.contains("  |   batch_sise: 24\n  |   ^^^^^^^^^^"), "{error}");
    }

    #[test]
    fn a_field_in_the_wrong_message_is_told_where_it_belongs() {
        let error = error("model { ssd { gradient_clipping_by_norm: 10.0 } }");
        assert!(error.contains("it is a field of TrainConfig"), "{error}");
    }

    #[test]
    fn a_brace_that_is_not_closed_is_found() {
        let error = error("model {\n  ssd {\n    num_classes: 3 # }\n}\n");
        assert!(error.contains("the brace opened at 1:7 is not closed"), "{error}");
    }

    #[test]
    fn wrong_values_name_what_is_allowed() {
        let text = "model { ssd { post_processing { score_converter: SIGMOYD } } }";
        let error_text = error(text);
        assert!(error_text.contains("IDENTITY, SIGMOID, SOFTMAX"), "{error_text}");
        let error_text = error("train_config { batch_size: many }");
        assert!(error_text.starts_with("p.config:1:28: expected an integer"), "{error_text}");
        let error_text = error("train_config { batch_size: 8 batch_size: 9 }");
        assert!(error_text.contains("'batch_size' is already set"), "{error_text}");
    }

    #[test]
    fn strings_survive_quotes_backslashes_and_letters_beyond_ascii() {
        let mut config = pb::TrainEvalPipelineConfig::default();
        let path = "C:\\라쿤\\\"x\"\n'\u{7f}.pbtxt";
        config.train_input_reader.get_or_insert_default().label_map_path = Some(path.to_string());
        let again = parse(&to_text(&config), "again").unwrap();
        assert_eq!(again.train_input_reader.unwrap().label_map_path(), path);
    }

    #[test]
    fn an_empty_file_is_refused() {
        assert!(error(" \n# nothing\n").contains("empty"));
    }

    #[test]
    fn overrides_replace_what_they_name_and_nothing_else() {
        let text = "model { ssd { num_classes: 90 } } train_config { batch_size: 24 fine_tune_checkpoint: 'a' num_steps: 7 } \
                    train_input_reader { label_map_path: 'l' num_readers: 2 tf_record_input_reader { input_path: ['a', 'b'] } }";
        let mut config = parse(text, "p").unwrap();
        let before = config.clone();
        apply(&mut config, &Overrides::default()).unwrap();
        assert_eq!(config, before);
        let overrides = Overrides {
            num_classes: Some(3),
            batch_size: Some(8),
            label_map: Some("m.pbtxt".into()),
            train_record: Some("t.record".into()),
            validate_record: Some("v.record".into()),
            fine_tune_checkpoint: Some(None),
            ..Default::default()
        };
        apply(&mut config, &overrides).unwrap();
        let expected = "model { ssd { num_classes: 3 } } train_config { batch_size: 8 num_steps: 7 } \
                        train_input_reader { label_map_path: 'm.pbtxt' num_readers: 2 tf_record_input_reader { input_path: 't.record' } } \
                        eval_input_reader { label_map_path: 'm.pbtxt' tf_record_input_reader { input_path: 'v.record' } }";
        assert_eq!(config, parse(expected, "p").unwrap());
    }

    #[test]
    fn num_classes_needs_a_model() {
        let overrides = Overrides { num_classes: Some(3), ..Default::default() };
        assert!(apply(&mut pb::TrainEvalPipelineConfig::default(), &overrides).is_err());
    }

    #[test]
    fn real_ssd_configs_are_supported_and_a_config_without_a_model_is_not() {
        let Some(index) = shared("reference/index") else { return };
        let config = load(&index.join("ssd_mobilenet_v1_coco_2018_01_28/pipeline.config")).unwrap();
        let notes = check_supported(&config).unwrap();
        assert!(notes.iter().any(|n| n.starts_with("train_config.keep_checkpoint_every_n_hours: 1 has no effect")), "{notes:?}");
        assert!(check_supported(&parse("train_config {}", "p").unwrap()).unwrap_err().to_string().contains("no model"));
    }
}
