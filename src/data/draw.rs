//! Boxes and labels drawn on a picture.
