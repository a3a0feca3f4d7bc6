//! model.torchscript.pt: a network with its pre- and post-processing as TorchScript source, compiled by libtorch.
//!
//! The source is written from the network's definition, not traced: loops and sizes stay what they are, so any picture size works.

pub mod check;
pub mod faster_rcnn;
mod network;
mod parts;
mod pictures;
mod source;
pub mod ssd;
mod suppression;
