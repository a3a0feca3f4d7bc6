//! The multi-resolution feature maps of SSD.
