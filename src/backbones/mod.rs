//! Feature extractors: functions that append operations to a `net::graph::Graph`, under the scopes TensorFlow gave them.

pub mod faster_rcnn;
pub mod mobilenet_v1;
mod resnet_v1;
pub mod ssd_feature_maps;

/// How many channels a layer gets.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Depth {
    /// Times the nominal number, rounded down.
    pub multiplier: f64,
    /// But at least this.
    pub min: i64,
}

impl Depth {
    /// Channels for a nominal number of them.
    pub fn of(&self, nominal: i64) -> i64 {
        ((nominal as f64 * self.multiplier) as i64).max(self.min)
    }
}
