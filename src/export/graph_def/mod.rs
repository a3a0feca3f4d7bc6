//! frozen_inference_graph.pb: a network with its pre- and post-processing as a TensorFlow GraphDef.

pub mod builder;
pub mod check;
pub mod faster_rcnn;
pub mod network;
mod ops;
mod parts;
mod pictures;
pub mod ssd;
mod suppression;
