//! Pictures: sniffing, decoding as TensorFlow decodes, resizing as TensorFlow resizes.
