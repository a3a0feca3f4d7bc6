//! The pipeline config: protobuf text, checked, overridden, saved.

use std::path::Path;

use anyhow::Result;

use crate::config::text;
use crate::proto::object_detection::protos as pb;

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
        for model in [
            "ssd_mobilenet_v1_coco_2018_01_28",
            "ssd_mobilenet_v2_coco_2018_03_29",
        ] {
            let config = load(&index.join(model).join("pipeline.config")).unwrap();
            let Some(pb::detection_model::Model::Ssd(ssd)) =
                config.model.as_ref().unwrap().model.as_ref()
            else {
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
        assert!(
            error.contains("  |   batch_sise: 24\n  |   ^^^^^^^^^^"),
            "{error}"
        );
    }

    #[test]
    fn a_field_in_the_wrong_message_is_told_where_it_belongs() {
        let error = error("model { ssd { gradient_clipping_by_norm: 10.0 } }");
        assert!(error.contains("it is a field of TrainConfig"), "{error}");
    }

    #[test]
    fn a_brace_that_is_not_closed_is_found() {
        let error = error("model {\n  ssd {\n    num_classes: 3 # }\n}\n");
        assert!(
            error.contains("the brace opened at 1:7 is not closed"),
            "{error}"
        );
    }

    #[test]
    fn wrong_values_name_what_is_allowed() {
        let text = "model { ssd { post_processing { score_converter: SIGMOYD } } }";
        let error_text = error(text);
        assert!(
            error_text.contains("IDENTITY, SIGMOID, SOFTMAX"),
            "{error_text}"
        );
        let error_text = error("train_config { batch_size: many }");
        assert!(
            error_text.starts_with("p.config:1:28: expected an integer"),
            "{error_text}"
        );
        let error_text = error("train_config { batch_size: 8 batch_size: 9 }");
        assert!(
            error_text.contains("'batch_size' is already set"),
            "{error_text}"
        );
    }

    #[test]
    fn strings_survive_quotes_backslashes_and_letters_beyond_ascii() {
        let mut config = pb::TrainEvalPipelineConfig::default();
        let path = "C:\\라쿤\\\"x\"\n'\u{7f}.pbtxt";
        config
            .train_input_reader
            .get_or_insert_default()
            .label_map_path = Some(path.to_string());
        let again = parse(&to_text(&config), "again").unwrap();
        assert_eq!(again.train_input_reader.unwrap().label_map_path(), path);
    }

    #[test]
    fn an_empty_file_is_refused() {
        assert!(error(" \n# nothing\n").contains("empty"));
    }
}
