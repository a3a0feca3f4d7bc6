//! The pipeline config: protobuf text, checked, overridden, saved.
