//! Box maths that knows no network.

pub mod anchors;
pub mod box_coder;
pub mod boxes;
pub mod hard_example_miner;
pub mod losses;
pub mod matcher;
pub mod nms;
pub mod sampler;
pub mod target_assigner;
