//! Networks as data, and what runs them.

pub mod exec;
pub mod graph;
pub mod hyperparams;
pub mod layers;
pub mod shim;
pub mod variables;
