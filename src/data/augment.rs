//! Random changes of a training picture.
