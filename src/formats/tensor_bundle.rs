//! tensor_bundle
