//! Files that other programs run.

pub mod graph_def;
pub mod ssd;
