//! File formats that know nothing of detection.

pub mod archive;
pub mod atomic_file;
pub mod averages;
pub mod bundle_index;
pub mod bundle_writer;
pub mod checkpoint_state;
pub mod events;
pub mod hexadecimal;
pub mod lock;
pub mod sstable;
pub mod tensor_bundle;
pub mod tensor_data;
pub mod tensor_slice;
pub mod tfrecord;
pub mod voc;
