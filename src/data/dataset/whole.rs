//! What only all pictures together show: their classes, pictures that nothing is left on, and those of the same bytes.

use std::collections::{BTreeMap, HashMap};

use crate::config::label_map::LabelMap;
use crate::data::dataset::check::Picture;
use crate::data::dataset::finding::{Finding, shown};
use crate::data::split::Side;
use crate::wording::printable;

/// The classes of all objects, sorted.
pub fn classes(pictures: &[Picture]) -> Vec<String> {
    let mut names: BTreeMap<&str, ()> = BTreeMap::new();
    for object in pictures.iter().flat_map(|picture| &picture.objects) {
        names.insert(&object.class, ());
    }
    names.into_keys().map(str::to_string).collect()
}

/// Gives every object its class's id; leaves out those that have none, or one above `max_id`.
pub fn assign_classes(pictures: &mut [Picture], map: &LabelMap, max_id: u32) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut known: HashMap<String, Result<u32, String>> = HashMap::new();
    for picture in pictures {
        let labels = &picture.labels;
        let before = picture.objects.len();
        picture.objects.retain_mut(|object| {
            let id = known.entry(object.class.clone()).or_insert_with_key(|class| match map.id_of(class) {
                Some(id) if id > max_id => Err(format!(
                    "class `{}` has id {id} in the label map, above --max_num_classes {max_id}; raise the flag or lower the id",
                    printable(class)
                )),
                Some(id) => Ok(id),
                None => {
                    let near = map.nearest(class).unwrap_or_default();
                    Err(format!(
                        "class `{}` is not in the label map; the nearest there is `{near}`: rename the label or add the class",
                        printable(class)
                    ))
                }
            });
            match id {
                Ok(id) => {
                    object.id = *id;
                    // A label may be a display name; from here on the class has its own.
                    if let Some(name) = map.name_of(*id) {
                        object.class = name.to_string();
                    }
                    true
                }
                Err(text) => {
                    findings.push(Finding::object_skipped(labels, &object.label, text.clone()));
                    false
                }
            }
        });
        picture.skipped += before - picture.objects.len();
    }
    findings
}

/// Leaves out pictures whose objects were all left out: as negatives they would teach that what is on them is background.
pub fn drop_emptied(pictures: &mut Vec<Picture>) -> Vec<Finding> {
    let mut findings = Vec::new();
    pictures.retain(|picture| {
        let emptied = picture.objects.is_empty() && picture.skipped > 0;
        if emptied {
            findings.push(Finding::picture_skipped(
                &picture.labels,
                format!(
                    "of `{}` {}, so the picture is not used either",
                    shown(&picture.path),
                    match picture.skipped {
                        1 => "the only object cannot be used".to_string(),
                        count => format!("none of the {count} objects can be used"),
                    }
                ),
            ));
        }
        !emptied
    });
    findings
}

/// Pictures with the same bytes, as indices; each group has at least two.
pub fn same_bytes(pictures: &[Picture]) -> Vec<Vec<usize>> {
    let mut by_hash: HashMap<[u8; 32], Vec<usize>> = HashMap::new();
    for (i, picture) in pictures.iter().enumerate() {
        by_hash.entry(picture.looked.sha256).or_default().push(i);
    }
    let mut groups: Vec<Vec<usize>> = by_hash.into_values().filter(|group| group.len() > 1).collect();
    groups.sort();
    groups
}

/// Says which pictures have the same bytes, above all where they are on both sides of a split that the user gave.
pub fn duplicates(pictures: &[Picture], sides: &[Side], groups: &[Vec<usize>]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for group in groups {
        let first = &pictures[group[0]];
        for &member in &group[1..] {
            let other = &pictures[member];
            let text = match (sides[member] == sides[group[0]], other.path == first.path) {
                (true, _) => {
                    let boxes = |picture: &Picture| -> Vec<_> {
                        let mut boxes: Vec<_> = picture.objects.iter().map(|o| (o.box_px.map(f64::to_bits), o.id)).collect();
                        boxes.sort_unstable();
                        boxes
                    };
                    format!(
                        "the same picture, byte for byte, as `{}`{}; both are used, on one side of the split: remove one",
                        shown(&first.path),
                        if boxes(first) == boxes(other) { "" } else { ", labelled differently" }
                    )
                }
                (false, true) => format!(
                    "it is in both `{}` and `{}`, so evaluation sees what training saw; keep it in one",
                    shown(&first.labels),
                    shown(&other.labels)
                ),
                (false, false) => format!(
                    "the same picture, byte for byte, as `{}`, and one is in `{}`, the other in `{}`, so evaluation sees what \
                     training saw; keep it in one",
                    shown(&first.path),
                    shown(&first.labels),
                    shown(&other.labels)
                ),
            };
            findings.push(Finding::kept(&other.path, text));
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::dataset::check::Object;
    use crate::data::dataset::picture::Looked;

    fn picture(objects: &[&str], hash: u8) -> Picture {
        let objects = objects.iter().enumerate().map(|(i, class)| Object {
            label: format!("object {}", i + 1),
            class: class.to_string(),
            id: 0,
            box_px: [0.0, 0.0, 1.0, 1.0],
            pose: String::new(),
            truncated: false,
            difficult: false,
        });
        Picture {
            labels: "a.xml".into(),
            path: "a.jpg".into(),
            name: "a.jpg".into(),
            looked: Looked { sha256: [hash; 32], ..Looked::jpeg(9, 9) },
            objects: objects.collect(),
            skipped: 0,
        }
    }

    #[test]
    fn unknown_classes_are_named_with_the_nearest_and_emptied_pictures_dropped() {
        let map = LabelMap::from_names(["Fire", "smoke"]);
        let mut pictures = vec![picture(&["Fire", "fire"], 0), picture(&["smok"], 1), picture(&[], 2)];
        let said: Vec<String> = assign_classes(&mut pictures, &map, 90).iter().map(ToString::to_string).collect();
        assert_eq!(said.len(), 2);
        assert!(said[0].contains("object 2") && said[0].contains("`fire`") && said[0].contains("`Fire`"), "{said:?}");
        assert!(said[1].contains("`smoke`"), "{said:?}");
        assert_eq!(pictures[0].objects[0].id, 1);
        assert_eq!(drop_emptied(&mut pictures).len(), 1);
        assert_eq!(pictures.iter().map(|p| p.objects.len()).collect::<Vec<_>>(), [1, 0]);
    }

    #[test]
    fn ids_above_the_limit_are_named() {
        let map = LabelMap::from_names(["a", "b"]);
        let mut pictures = vec![picture(&["a", "b"], 0)];
        let said = assign_classes(&mut pictures, &map, 1);
        assert!(said.len() == 1 && said[0].text.contains("--max_num_classes 1"), "{said:?}");
    }

    #[test]
    fn pictures_of_the_same_bytes_are_grouped() {
        let pictures = [picture(&[], 7), picture(&[], 1), picture(&[], 7)];
        assert_eq!(same_bytes(&pictures), [vec![0, 2]]);
    }
}
