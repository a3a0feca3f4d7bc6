//! Configuration files: the pipeline config, the label map, and the zoo of models by name.

pub mod label_map;
pub mod pipeline;
pub mod text;
pub mod zoo;
