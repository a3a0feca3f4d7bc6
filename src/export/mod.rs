//! Files that other programs run.

pub mod detector;
pub mod folder;
pub mod graph_def;
pub mod ssd;
