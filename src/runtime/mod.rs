//! Exported files, run without the model's definition.

pub mod torchscript;
