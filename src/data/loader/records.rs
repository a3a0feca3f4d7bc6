//! TFRecord files as one list of pictures with their groundtruth, read by number; every error names file, record and picture.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, bail, ensure};

use prost::Message;
use prost::bytes::Bytes;

use crate::data::example::LabeledImage;
use crate::formats::tfrecord::{self, Span};
use crate::proto::tensorflow::{Example, feature::Kind};
use crate::wording::printable;

/// How far a normalized box may overhang the picture: the OD API's own tolerance.
const OVERHANG: f32 = 0.01;

/// Record files, indexed. Holds 24 bytes a record, whatever the pictures' size.
#[derive(Debug)]
pub struct Records {
    files: Vec<(PathBuf, File)>,
    entries: Vec<Entry>,
    /// Names that were said not to be in the label map.
    strangers: Mutex<BTreeSet<String>>,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    file: u32,
    /// In its file, from 0.
    number: u32,
    span: Span,
}

/// What a class may be.
#[derive(Debug, Clone, Default)]
pub struct Classes {
    /// Ids run from 1 to this.
    pub count: usize,
    /// Ids by name, for records that carry only names; others must agree with it.
    pub ids: BTreeMap<String, u32>,
}

impl Records {
    /// Indexes the files that the paths stand for: files, shard sets (`train.record` for `train.record-?????-of-?????`) or
    /// globs, in the order given.
    ///
    /// # Errors
    /// If a path stands for none, a file cannot be read or is damaged between its records, or there is no record at all.
    pub fn open(paths: &[PathBuf]) -> Result<Self> {
        ensure!(!paths.is_empty(), "no record file is given; set `input_path` in the config, or run `odh tfgen`");
        let mut records = Self { files: Vec::new(), entries: Vec::new(), strangers: Mutex::default() };
        for path in paths {
            for path in tfrecord::resolve(path)? {
                records.add(path)?;
            }
        }
        if records.entries.is_empty() {
            let names: Vec<String> = records.files.iter().map(|(path, _)| format!("`{}`", path.display())).collect();
            bail!("no picture in {}; run `odh tfgen` and look at its summary", names.join(", "));
        }
        Ok(records)
    }

    fn add(&mut self, path: PathBuf) -> Result<()> {
        let spans = tfrecord::index(&path)?;
        let handle = File::open(&path).with_context(|| format!("`{}`: cannot be opened", path.display()))?;
        let file = self.files.len() as u32;
        self.files.push((path, handle));
        self.entries.reserve_exact(spans.len());
        self.entries.extend((0..).zip(spans).map(|(number, span)| Entry { file, number, span }));
        ensure!(u32::try_from(self.entries.len()).is_ok(), "more than {} records", u32::MAX);
        Ok(())
    }

    /// Records, over all files.
    pub fn count(&self) -> u32 {
        self.entries.len() as u32
    }

    /// Tells one set of pictures from another, by the lengths of their records; in whatever order and files they stand.
    pub fn fingerprint(&self) -> u64 {
        self.entries.iter().map(|entry| u64::from(crc32c::crc32c(&entry.span.len.to_le_bytes()))).sum()
    }

    /// File and number in it, for messages.
    fn place(&self, index: usize) -> (&Path, u32) {
        let entry = self.entries[index];
        (&self.files[entry.file as usize].0, entry.number)
    }

    /// Puts the record's file and number, and the picture's name where it is known, before an error.
    pub fn context<T>(&self, index: usize, filename: Option<&str>, result: Result<T>) -> Result<T> {
        result.with_context(|| {
            let (path, number) = self.place(index);
            let name = filename.filter(|name| !name.is_empty()).map(|name| format!(" (`{name}`)")).unwrap_or_default();
            format!("`{}`: record {number}{name}", path.display())
        })
    }

    /// Reads a record and checks what would otherwise fail far from its cause: its classes and its boxes.
    ///
    /// # Errors
    /// If the record is damaged or no tf.Example, a class has no id or one outside `classes`, or a box is reversed or not
    /// normalized.
    pub fn read(&self, index: usize, classes: &Classes) -> Result<LabeledImage> {
        let entry = self.entries[index];
        let (_, file) = &self.files[entry.file as usize];
        let record = self.context(index, None, tfrecord::read_at(file, entry.span))?;
        // As `Bytes`, the picture is a slice of the record, not a copy.
        let example = Example::decode(Bytes::from(record)).context("the record is not a tf.Example");
        let example = self.context(index, None, example)?;
        let filename = filename(&example);
        let image = LabeledImage::from_example(example);
        let mut image = self.context(index, filename.as_deref(), image)?;
        let checked = check(&mut image, classes);
        self.context(index, Some(&image.filename), checked)?;
        self.tell_strangers(index, &image, classes);
        Ok(image)
    }

    /// Says once of each name that the label map does not know, whose id it has: renamed perhaps, or another project's records.
    fn tell_strangers(&self, index: usize, image: &LabeledImage, classes: &Classes) {
        for (name, id) in image.class_names.iter().zip(&image.classes) {
            if name.is_empty() || classes.ids.is_empty() || classes.ids.contains_key(name) {
                continue;
            }
            // What a thread that panicked left is whole.
            let mut told = self.strangers.lock().unwrap_or_else(PoisonError::into_inner);
            if told.insert(name.clone()) {
                let own = classes.ids.iter().find(|(_, own)| *own == id).map_or("", |(name, _)| name);
                let (path, number) = self.place(index);
                tracing::warn!(
                    "`{}`: record {number} (`{}`): its class `{}` is not in the label map, where its id {id} has `{}`: its boxes count as that. If \
                     it was not renamed, these are records of another label map",
                    path.display(),
                    printable(&image.filename),
                    printable(name),
                    printable(own)
                );
            }
        }
    }
}

/// The picture's name, for a message about a record that cannot be read otherwise.
fn filename(example: &Example) -> Option<String> {
    match example.features.as_ref()?.feature.get("image/filename")?.kind.as_ref()? {
        Kind::BytesList(list) => Some(String::from_utf8_lossy(list.value.first()?).into_owned()),
        _ => None,
    }
}

fn check(image: &mut LabeledImage, classes: &Classes) -> Result<()> {
    image.resolve_classes(|name| classes.ids.get(name).copied())?;
    for (i, &id) in image.classes.iter().enumerate() {
        let name = image.class_names.get(i).map_or("", String::as_str);
        ensure!(
            (1..=classes.count).contains(&(id as usize)),
            "box {i} has label id {id} (`{name}`), and num_classes is {}: ids run from 1 to num_classes; use the label map \
             that the records were made with",
            classes.count
        );
        ensure!(
            classes.ids.is_empty() || classes.ids.values().any(|&known| known == id),
            "box {i} has label id {id} (`{name}`), which no item of the label map has; use the label map that the records were made with, or \
             add the item"
        );
        // Else a label map that was sorted anew would give every class another's name, and nobody would be told.
        let mapped = classes.ids.get(name).copied().unwrap_or(id);
        ensure!(
            mapped == id,
            "box {i} has label id {id} and the name `{name}`, which has the id {mapped} in the label map; use the label map that the \
             records were made with, or make them again with `odh tfgen`"
        );
    }
    for (i, bbox) in image.boxes.iter().enumerate() {
        let [ymin, xmin, ymax, xmax] = *bbox;
        ensure!(
            bbox.iter().all(|v| (-OVERHANG..=1.0 + OVERHANG).contains(v)),
            "box {i} is not normalized to 0..1: ymin {ymin}, xmin {xmin}, ymax {ymax}, xmax {xmax}; make the record again"
        );
        ensure!(
            ymin <= ymax && xmin <= xmax,
            "box {i} is reversed: ymin {ymin}, xmin {xmin}, ymax {ymax}, xmax {xmax}; make the record again"
        );
    }
    Ok(())
}
