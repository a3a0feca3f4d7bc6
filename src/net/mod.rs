//! Networks as data, and what runs them.

pub mod exec;
pub mod graph;
pub mod host;
pub mod hyperparams;
mod inference;
pub mod layers;
pub mod operations;
mod plan;
pub mod shim;
pub mod variables;
