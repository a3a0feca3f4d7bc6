//! Exported files, run without the model's definition.

pub mod file_kind;
pub mod listing;
pub mod metadata;
pub mod onnx;
#[cfg_attr(not(feature = "onnx"), path = "no_onnxruntime.rs")]
pub mod onnxruntime;
pub mod outputs;
pub mod torchscript;
