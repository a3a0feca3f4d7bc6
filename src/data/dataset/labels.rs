//! The labels of a dataset, read and paired with their pictures.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use rayon::prelude::*;

use crate::data::dataset::check::Labelled;
use crate::data::dataset::finding::{Finding, shown};
use crate::data::dataset::pairing::{self, Wanted};
use crate::data::dataset::table;
use crate::data::dataset::walk::{Tree, file_name, path_as_text, stem};
use crate::data::split::Side;
use crate::formats::voc::{self, Annotation};
use crate::wording::printable;

/// XML files above this are no labels.
const LARGEST_XML: u64 = 64 << 20;

/// Reads every XML file and finds its picture.
///
/// * `seen`: for each picture of `tree`, whether labels mean it; set here.
///
/// # Errors
/// If there is no XML file.
pub fn from_xml(tree: &Tree, seen: &mut [bool], findings: &mut Vec<Finding>) -> Result<Vec<Labelled>> {
    ensure!(
        !tree.labels.is_empty(),
        "`{}`: there is no XML file in it or below; label the pictures with labelImg (Pascal VOC), or name another folder with \
         --input_folder",
        shown(&tree.root)
    );
    let read: Vec<Result<Annotation>> = tree.labels.par_iter().map(|path| read_xml(path)).collect();
    let mut annotations = Vec::with_capacity(read.len());
    let mut wanted = Vec::with_capacity(read.len());
    for (path, read) in tree.labels.iter().zip(read) {
        match read {
            Ok(annotation) => {
                for tag in &annotation.misplaced {
                    let text =
                        "is not directly inside <annotation>, or has capitals, and is not read: set it right, or remove it";
                    findings.push(Finding::object_skipped(path, &format!("<{tag}>"), text));
                }
                wanted.push(Wanted::of(path, &annotation));
                annotations.push(annotation);
            }
            Err(error) => {
                findings.push(Finding::picture_skipped(path, format!("{error:#}")));
                // Its picture has labels, if none that can be read.
                for &picture in tree.named(&stem(&file_name(path))) {
                    seen[picture] |= tree.pictures[picture].parent() == path.parent();
                }
            }
        }
    }
    let (pairs, found) = pairing::pair(tree, &wanted);
    findings.extend(found);
    for &picture in pairs.iter().flatten() {
        seen[picture] = true;
    }
    // Of all, labelled or not: --custom_csv looks among all of them.
    let mut names: HashMap<String, usize> = HashMap::new();
    for picture in &tree.pictures {
        *names.entry(file_name(picture)).or_default() += 1;
    }
    let paired = wanted.into_iter().zip(annotations).zip(pairs);
    Ok(paired
        .filter_map(|((wanted, annotation), picture)| {
            let picture = &tree.pictures[picture?];
            // Of two pictures of one name, the path below the input folder tells which is meant.
            let name = match names.get(&file_name(picture)) {
                Some(&count) if count > 1 => path_as_text(picture.strip_prefix(&tree.root).unwrap_or(picture)),
                _ => file_name(picture),
            };
            let objects = annotation.objects.into_iter().enumerate();
            Some(Labelled {
                labels: wanted.labels,
                place: None,
                picture: picture.clone(),
                name,
                size: [annotation.width, annotation.height],
                objects: objects.map(|(i, object)| (format!("object {}", i + 1), object)).collect(),
            })
        })
        .collect())
}

fn read_xml(path: &Path) -> Result<Annotation> {
    let mut bytes = Vec::with_capacity(1 << 14);
    let file = File::open(path).context("cannot be opened")?;
    file.take(LARGEST_XML + 1).read_to_end(&mut bytes).context("cannot be read")?;
    ensure!(
        bytes.len() as u64 <= LARGEST_XML,
        "the file has more than {LARGEST_XML} bytes, which no label file has; move it out of the input folder"
    );
    voc::parse(&bytes)
}

/// Which CSV file stands for which side.
pub type Given = HashMap<PathBuf, Side>;

/// Reads the two CSV files, of training and of validation, and finds their pictures.
///
/// * `seen`: as [`from_xml`]'s.
///
/// # Errors
/// If they are one file, or cannot be read.
pub fn from_csv(
    tree: &Tree,
    csv: &[PathBuf; 2],
    seen: &mut [bool],
    findings: &mut Vec<Finding>,
) -> Result<(Vec<Labelled>, Given)> {
    let same = match (csv[0].canonicalize(), csv[1].canonicalize()) {
        (Ok(train), Ok(validate)) => train == validate,
        _ => csv[0] == csv[1],
    };
    ensure!(!same, "`{}`: is given as both CSV files; name two with -tc and -vc", shown(&csv[0]));
    let mut labelled = Vec::new();
    for path in csv {
        let table = table::read(path)?;
        for (line, text) in table.faults {
            findings.push(Finding::object_skipped(path, &format!("line {line}"), text));
        }
        for (line, text) in table.sizes {
            let text = format!("the size is given as {text}; the picture's own is used, so correct the wrong one");
            findings.push(Finding::kept(path, text).of(&format!("line {line}")));
        }
        // Of this file: the boxes of one picture belong together, whatever the lines call it.
        let mut pictures: HashMap<usize, usize> = HashMap::new();
        for rows in table.pictures {
            let line = format!("line {}", rows.line);
            match pairing::by_filename(tree, &rows.filename) {
                Ok((picture, note)) => {
                    seen[picture] = true;
                    findings.extend(note.map(|note| Finding::note(path, note).of(&line)));
                    if let Some(&earlier) = pictures.get(&picture) {
                        let earlier: &mut Labelled = &mut labelled[earlier];
                        let text = format!(
                            "`{}` is the picture `{}` again, and its boxes are added to that one's; write one name",
                            printable(rows.filename.trim()),
                            printable(&earlier.name)
                        );
                        findings.push(Finding::note(path, text).of(&line));
                        earlier.objects.extend(rows.objects);
                        continue;
                    }
                    pictures.insert(picture, labelled.len());
                    let picture = tree.pictures[picture].clone();
                    let to_the_letter = picture.file_name() == Some(OsStr::new(&rows.filename));
                    let name = if to_the_letter { rows.filename.as_str() } else { rows.filename.trim() };
                    labelled.push(Labelled {
                        labels: path.clone(),
                        place: Some(line),
                        picture,
                        name: name.to_string(),
                        size: rows.size,
                        objects: rows.objects,
                    });
                }
                Err(text) => findings.push(Finding::picture_skipped(path, text).of(&line)),
            }
        }
    }
    let given = HashMap::from([(csv[0].clone(), Side::Train), (csv[1].clone(), Side::Validate)]);
    Ok((labelled, given))
}

/// The side of a picture by the file of its labels.
pub fn side_of(labels: &Path, given: &Given) -> Side {
    given.get(labels).copied().unwrap_or(Side::Train)
}
