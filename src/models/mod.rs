//! Meta-architectures.

pub mod ssd;
