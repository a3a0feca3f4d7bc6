//! Detection metrics.

pub mod coco;
pub mod matching;
pub mod pascal;
