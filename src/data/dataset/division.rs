//! Which pictures train and which validate.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::config::label_map::LabelMap;
use crate::data::dataset::ahead::Hoped;
use crate::data::dataset::check::{Labelled, Picture};
use crate::data::dataset::labels::{Given, side_of};
use crate::data::split::{self, Side, Unit};

/// What the split has to know of each picture: which it is one with, and its boxes' class ids.
pub type Content = Vec<(usize, Vec<u32>)>;

/// Of checked pictures; those with the same bytes are one.
pub fn content(pictures: &[Picture], groups: &[Vec<usize>]) -> Content {
    let mut content: Content =
        pictures.iter().enumerate().map(|(i, p)| (i, p.objects.iter().map(|object| object.id).collect())).collect();
    for group in groups {
        for &member in group {
            content[member].0 = group[0];
        }
    }
    content
}

/// How pictures are divided.
#[derive(Debug, Clone, Copy)]
pub struct Division {
    /// The share that trains.
    pub rate: f64,
    /// Of what is left to chance.
    pub seed: u64,
}

impl Division {
    /// Splits by picture.
    pub fn of(&self, content: &Content) -> Vec<Side> {
        let mut numbers: HashMap<usize, usize> = HashMap::new();
        let mut units: Vec<Unit> = Vec::new();
        let mut unit_of = Vec::with_capacity(content.len());
        for (one_with, ids) in content {
            let index = *numbers.entry(*one_with).or_insert_with(|| {
                units.push(Unit::default());
                units.len() - 1
            });
            unit_of.push(index);
            let unit = &mut units[index];
            unit.pictures += 1;
            let mut boxes: BTreeMap<usize, usize> = BTreeMap::new();
            for id in ids {
                *boxes.entry(*id as usize - 1).or_default() += 1;
            }
            for (class, count) in boxes {
                match unit.classes.iter_mut().find(|(other, ..)| *other == class) {
                    Some((_, pictures, boxes)) => {
                        *pictures += 1;
                        *boxes += count;
                    }
                    None => unit.classes.push((class, 1, count)),
                }
            }
        }
        let sides = split::split(&units, self.rate, self.seed);
        unit_of.into_iter().map(|index| sides[index]).collect()
    }

    /// Split and label map, from the labels alone; `None` if they already show that something is wrong.
    ///
    /// * `map`: the label map; one of the classes found, if there is none.
    pub fn hoped(&self, labelled: &[Labelled], given: Option<&Given>, map: Option<&LabelMap>, max_id: u32) -> Option<Hoped> {
        let map = match map {
            Some(map) => map.clone(),
            None => {
                let names = labelled.iter().flat_map(|l| &l.objects).filter_map(|(_, object)| object.name.as_deref());
                LabelMap::from_names(names.map(str::trim).collect::<BTreeSet<_>>())
            }
        };
        if map.max_id() > max_id {
            return None;
        }
        let mut ids: HashMap<&str, u32> = HashMap::new();
        let mut content = Vec::with_capacity(labelled.len());
        for (i, labelled) in labelled.iter().enumerate() {
            let mut classes = Vec::with_capacity(labelled.objects.len());
            for (_, object) in &labelled.objects {
                let name = object.name.as_deref()?.trim();
                let id = match ids.get(name) {
                    Some(id) => *id,
                    None => *ids.entry(name).or_insert(map.id_of(name)?),
                };
                classes.push(id);
            }
            content.push((i, classes));
        }
        let sides = match given {
            Some(given) => labelled.iter().map(|labelled| side_of(&labelled.labels, given)).collect(),
            None => self.of(&content),
        };
        Some(Hoped { map, max_id, sides })
    }
}
