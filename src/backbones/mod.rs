//! Feature extractors: functions that append operations to a `net::graph::Graph`, under the scopes TensorFlow gave them.

pub mod depth;
pub mod faster_rcnn;
mod inception_resnet_v2;
mod inception_v2;
mod inception_v3;
mod mobilenet_v1;
mod mobilenet_v2;
mod names;
mod nasnet;
mod resnet_v1;
pub mod ssd;
mod ssd_feature_maps;
