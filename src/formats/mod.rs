//! File formats that know nothing of detection.

pub mod events;
pub mod sstable;
pub mod tensor_bundle;
pub mod tfrecord;
pub mod voc;
