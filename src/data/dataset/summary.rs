//! The table that tfgen ends with, and what the split could not give.

use std::path::Path;

use crate::config::label_map::LabelMap;
use crate::data::dataset::check::Picture;
use crate::data::dataset::finding::Finding;
use crate::data::split::Side;
use crate::wording::{columns, printable};

/// Boxes of each class on each side, as the old tool told them: ID, NAME, Train, Validate, and totals.
pub fn table(pictures: &[Picture], sides: &[Side], map: &LabelMap) -> Vec<String> {
    let boxes = |side, id| {
        let of_side = pictures.iter().zip(sides).filter(|(_, s)| **s == side);
        of_side.flat_map(|(picture, _)| &picture.objects).filter(|object| id == 0 || object.id == id).count()
    };
    let on = |side| sides.iter().filter(|s| **s == side).count();
    let mut rows = vec![["ID", "NAME", "Train", "Validate", "Total"].map(str::to_string)];
    let mut row = |id: String, name: &str, train: usize, validate: usize| {
        rows.push([id, name.to_string(), train.to_string(), validate.to_string(), (train + validate).to_string()]);
    };
    for item in &map.items {
        row(item.id.to_string(), &printable(&item.name), boxes(Side::Train, item.id), boxes(Side::Validate, item.id));
    }
    row(String::new(), "total boxes", boxes(Side::Train, 0), boxes(Side::Validate, 0));
    row(String::new(), "total pictures", on(Side::Train), on(Side::Validate));
    let widths: Vec<usize> = (0..5).map(|i| rows.iter().map(|row| columns(&row[i])).max().unwrap_or(0)).collect();
    rows.iter()
        .map(|row| {
            let mut line = String::new();
            for (i, (cell, width)) in row.iter().zip(&widths).enumerate() {
                let gap = " ".repeat(width - columns(cell));
                if i > 0 {
                    line.push_str("  ");
                }
                // Names stand at the left, numbers at the right.
                if i == 1 {
                    line.push_str(cell);
                    line.push_str(&gap);
                } else {
                    line.push_str(&gap);
                    line.push_str(cell);
                }
            }
            line
        })
        .collect()
}

/// Names each class that is on one side only, or nowhere, and an empty side; `given` if the split is the user's own.
pub fn one_sided(pictures: &[Picture], sides: &[Side], map: &LabelMap, file: &Path, given: bool) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (side, name) in [(Side::Train, "training"), (Side::Validate, "validation")] {
        if !pictures.is_empty() && !sides.contains(&side) {
            findings.push(Finding::note(file, format!("no picture is left for {name}; add pictures or change the split")));
        }
    }
    for item in &map.items {
        let with = |side| {
            let of_side = pictures.iter().zip(sides).filter(|(_, s)| **s == side);
            of_side.filter(|(picture, _)| picture.objects.iter().any(|object| object.id == item.id)).count()
        };
        let (train, validate) = (with(Side::Train), with(Side::Validate));
        let name = printable(&item.name);
        let text = match (train, validate) {
            (0, 0) => format!("class `{name}` (id {}) is in the label map and on no picture that is used", item.id),
            (1, 0) | (0, 1) => {
                let side = if train == 1 { "training" } else { "validation" };
                format!("class `{name}` is on one picture only, which is for {side}; add pictures of it")
            }
            (count, 0) | (0, count) => {
                let side = if validate == 0 { "training" } else { "validation" };
                match given {
                    true => format!("all {count} pictures with class `{name}` are for {side}; move some to the other CSV"),
                    false => format!(
                        "the {count} pictures with class `{name}` could not be parted, because they have the same bytes or other \
                         classes stand against it, and are all for {side}; add pictures of it"
                    ),
                }
            }
            _ => continue,
        };
        findings.push(Finding::note(file, text));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::dataset::check::Object;
    use crate::data::dataset::picture::Looked;

    fn picture(ids: &[u32]) -> Picture {
        let object = |id: &u32| Object {
            label: String::new(),
            class: String::new(),
            id: *id,
            box_px: [0.0; 4],
            pose: String::new(),
            truncated: false,
            difficult: false,
        };
        Picture {
            labels: "a.xml".into(),
            path: "a.jpg".into(),
            name: "a.jpg".into(),
            looked: Looked::jpeg(1, 1),
            objects: ids.iter().map(object).collect(),
            skipped: 0,
        }
    }

    #[test]
    fn the_table_counts_boxes_of_each_class_and_side() {
        let map = LabelMap::from_names(["cat", "너구리"]);
        let pictures = [picture(&[1, 1, 2]), picture(&[2]), picture(&[])];
        let sides = [Side::Train, Side::Validate, Side::Train];
        assert_eq!(
            table(&pictures, &sides, &map),
            [
                "ID  NAME            Train  Validate  Total",
                " 1  cat                 2         0      2",
                " 2  너구리              1         1      2",
                "    total boxes         3         1      4",
                "    total pictures      2         1      3",
            ]
        );
    }

    #[test]
    fn class_names_cannot_drive_the_terminal_or_break_the_tables_lines() {
        let map = LabelMap::from_names(["ca\nt", "\u{1b}[31mred"]);
        let pictures = [picture(&[1]), picture(&[2])];
        let sides = [Side::Train, Side::Train];
        let said = one_sided(&pictures, &sides, &map, Path::new("images"), false);
        let lines = table(&pictures, &sides, &map).into_iter().chain(said.iter().map(ToString::to_string));
        for line in lines {
            assert!(!line.contains(char::is_control), "{line:?}");
        }
    }

    #[test]
    fn classes_on_one_side_are_named() {
        let map = LabelMap::from_names(["cat", "dog", "owl", "bee"]);
        let pictures = [picture(&[1, 2]), picture(&[1]), picture(&[2, 3]), picture(&[3])];
        let sides = [Side::Train, Side::Validate, Side::Train, Side::Train];
        let said: Vec<String> =
            one_sided(&pictures, &sides, &map, Path::new("images"), false).iter().map(ToString::to_string).collect();
        assert_eq!(said.len(), 3, "{said:?}");
        assert!(said[0].contains("`dog`") && said[0].contains("2 pictures"));
        assert!(said[1].contains("`owl`"));
        assert!(said[2].contains("`bee`") && said[2].contains("no picture"));
    }
}
