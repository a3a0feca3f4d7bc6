//! Files that other programs run.

pub mod folder;
pub mod graph_def;
pub mod ssd;
