//! Configuration files: the pipeline config, the label map, and the zoo of models by name.

pub mod coco_labels;
pub mod download;
pub mod label_map;
pub mod pipeline;
pub mod support;
pub mod text;
pub mod weights;
pub mod zoo;
