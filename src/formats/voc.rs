//! voc
