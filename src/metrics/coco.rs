//! coco
