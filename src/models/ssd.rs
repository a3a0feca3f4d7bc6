//! SSD.
