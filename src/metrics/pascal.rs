//! pascal
