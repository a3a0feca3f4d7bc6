//! Detection metrics.

pub mod argsort;
pub mod coco;
pub mod matching;
pub mod pascal;
