//! Files that other programs run.

pub mod detector;
pub mod folder;
pub mod graph_def;
pub mod layers;
mod manifest;
mod names;
pub mod onnx;
pub mod parity;
pub mod runtimes;
pub mod saved_model;
pub mod ssd;
mod target;
pub mod torchscript;

pub use target::check as check_place;
