//! What an exported file says of itself; it says more (export/manifest.rs), which running it does not need.

use serde::{Deserialize, Serialize};

use crate::config::label_map::{Item, LabelMap};

/// What running a file needs to know.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Metadata {
    /// Which odh wrote it.
    pub odh_version: String,
    pub classes: Vec<Class>,
}

/// A class by its id in the label map.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
pub struct Class {
    pub id: u32,
    pub name: String,
}

impl Metadata {
    /// The classes as a label map.
    pub fn label_map(&self) -> LabelMap {
        let item = |class: &Class| Item { id: class.id, name: class.name.clone(), display_name: None };
        LabelMap { items: self.classes.iter().map(item).collect() }
    }
}
