//! The protobuf messages of `proto/`, as Rust types and as a descriptor pool for their text format.

use std::sync::LazyLock;

use prost_reflect::DescriptorPool;

#[allow(clippy::all, missing_docs)]
mod generated {
    include!(concat!(env!("OUT_DIR"), "/protos.rs"));
}

pub use generated::*;

/// Every message of `proto/`, by full name.
pub static DESCRIPTORS: LazyLock<DescriptorPool> = LazyLock::new(|| {
    DescriptorPool::decode(include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin")).as_ref())
        .expect("build.rs wrote a valid descriptor set")
});
