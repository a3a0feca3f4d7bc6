//! model.onnx: a network with its pre- and post-processing in ONNX's standard operators.

pub mod builder;
pub mod check;
pub mod faster_rcnn;
mod network;
mod parts;
mod pictures;
pub mod ssd;
mod suppression;
mod winograd;
