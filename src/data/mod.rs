//! Pictures and their boxes, from files to batches.

pub mod augment;
pub mod dataset;
pub mod detections_file;
pub mod draw;
pub mod encode;
pub mod example;
pub mod image;
pub mod inputs;
pub mod jpeg;
mod libjpeg_errors;
pub mod loader;
pub mod palette;
pub mod png;
pub mod resample;
pub mod resize;
pub mod resizer;
pub mod sample;
pub mod split;
pub mod text;
