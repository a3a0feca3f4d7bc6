//! Feature extractors: functions that append operations to a `net::graph::Graph`, under the scopes TensorFlow gave them.

pub mod mobilenet_v1;
pub mod ssd_feature_maps;
