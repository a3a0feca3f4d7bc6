//! tf.Example records: a picture, its boxes and classes, under the TF OD API's feature keys.
//!
//! Source of the keys: object_detection/data_decoders/tf_example_decoder.py and the old tool's record writer.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail, ensure};
use prost::Message;
use prost::bytes::Bytes;

use crate::detection::boxes::{BBox, Groundtruth};
use crate::proto::tensorflow::{BytesList, Example, Feature, Features, FloatList, Int64List, feature::Kind};

const HEIGHT: &str = "image/height";
const WIDTH: &str = "image/width";
const FILENAME: &str = "image/filename";
const SOURCE_ID: &str = "image/source_id";
const SHA256: &str = "image/key/sha256";
const ENCODED: &str = "image/encoded";
const FORMAT: &str = "image/format";
const YMIN: &str = "image/object/bbox/ymin";
const XMIN: &str = "image/object/bbox/xmin";
const YMAX: &str = "image/object/bbox/ymax";
const XMAX: &str = "image/object/bbox/xmax";
const CLASS_TEXT: &str = "image/object/class/text";
const CLASS_LABEL: &str = "image/object/class/label";
const DIFFICULT: &str = "image/object/difficult";
const TRUNCATED: &str = "image/object/truncated";
const POSE: &str = "image/object/view";
const CROWD: &str = "image/object/is_crowd";

/// One picture with its labelled boxes. The vectors over boxes all have length `M`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct LabeledImage {
    /// The picture's file name, as the user knows it.
    pub filename: String,
    /// What evaluation calls the picture; tfgen writes the file name.
    pub source_id: String,
    /// The picture file's bytes.
    pub encoded: Vec<u8>,
    /// What the bytes are: `jpeg` or `png`.
    pub format: String,
    /// In pixels; 0 if the record does not say.
    pub width: u32,
    /// In pixels; 0 if the record does not say.
    pub height: u32,
    /// Of `encoded`, lower-case hexadecimal; empty if the record does not say.
    pub sha256: String,
    /// Normalized boxes. `[M]`
    pub boxes: Vec<BBox>,
    /// The label map's ids, from 1; 0 where the record gives only a name (see [`Self::resolve_classes`]). `[M]`
    pub classes: Vec<u32>,
    /// The label map's names; empty where the record gives only an id. `[M]`
    pub class_names: Vec<String>,
    /// Objects that evaluation neither counts nor punishes. `[M]`
    pub difficult: Vec<bool>,
    /// Objects cut by the picture's edge. `[M]`
    pub truncated: Vec<bool>,
    /// labelImg's `pose`. `[M]`
    pub poses: Vec<String>,
    /// Boxes around many objects. `[M]`
    pub crowd: Vec<bool>,
}

impl LabeledImage {
    /// The record's message. Features are sorted by key, so the same picture always gives the same bytes.
    pub fn to_example(&self) -> Example {
        let corner = |i: usize| floats(self.boxes.iter().map(|b| b[i]).collect());
        let flags = |flags: &[bool]| ints(flags.iter().map(|&flag| i64::from(flag)).collect());
        let texts = |texts: &[String]| bytes(texts.iter().map(|text| text.clone().into()).collect());
        let text = |text: &str| bytes(vec![Bytes::copy_from_slice(text.as_bytes())]);
        let mut feature = BTreeMap::from([
            (HEIGHT, ints(vec![i64::from(self.height)])),
            (WIDTH, ints(vec![i64::from(self.width)])),
            (FILENAME, text(&self.filename)),
            (SOURCE_ID, text(&self.source_id)),
            (SHA256, text(&self.sha256)),
            (ENCODED, bytes(vec![Bytes::copy_from_slice(&self.encoded)])),
            (FORMAT, text(&self.format)),
            (YMIN, corner(0)),
            (XMIN, corner(1)),
            (YMAX, corner(2)),
            (XMAX, corner(3)),
            (CLASS_TEXT, texts(&self.class_names)),
            (CLASS_LABEL, ints(self.classes.iter().map(|&id| i64::from(id)).collect())),
            (DIFFICULT, flags(&self.difficult)),
            (TRUNCATED, flags(&self.truncated)),
            (POSE, texts(&self.poses)),
        ]);
        // The old tool never wrote it, and its default says the same.
        if self.crowd.contains(&true) {
            feature.insert(CROWD, flags(&self.crowd));
        }
        let feature = feature.into_iter().map(|(key, value)| (key.to_string(), value)).collect();
        Example { features: Some(Features { feature }) }
    }

    /// The bytes of [`Self::to_example`] before and behind the picture's own, where `self.encoded` is left empty and the
    /// picture has `length` bytes: a large picture then need not be copied into a message first.
    pub fn record_around(&self, length: usize) -> (Vec<u8>, Vec<u8>) {
        assert!(self.encoded.is_empty(), "the picture is given by its length");
        let mut features = self.to_example().features.unwrap_or_default();
        features.feature.remove(ENCODED);
        // `ENCODED` is the first of all keys, so the rest of the map follows it.
        assert!(features.feature.keys().all(|key| key.as_str() > ENCODED), "features are sorted by key");
        let behind = features.encode_to_vec();
        // From the inside out: BytesList.value, Feature.bytes_list, the map's entry of key and value, Features.feature,
        // Example.features; each is a tag byte, a length, and what it holds.
        let size = |length: usize| 1 + prost::length_delimiter_len(length) + length;
        let list = size(length);
        let feature = size(list);
        let entry = size(ENCODED.len()) + size(feature);
        let all = size(entry) + behind.len();
        const FIELD_1: u8 = 0x0a;
        const FIELD_2: u8 = 0x12;
        let open = |out: &mut Vec<u8>, tag: u8, length: usize| {
            out.push(tag);
            // Into a vector it cannot fail.
            let _ = prost::encode_length_delimiter(length, out);
        };
        let mut before = Vec::with_capacity(64);
        open(&mut before, FIELD_1, all);
        open(&mut before, FIELD_1, entry);
        open(&mut before, FIELD_1, ENCODED.len());
        before.extend_from_slice(ENCODED.as_bytes());
        open(&mut before, FIELD_2, feature);
        open(&mut before, FIELD_1, list);
        open(&mut before, FIELD_1, length);
        (before, behind)
    }

    /// Reads a record's message, ours or another program's: all but the picture and the boxes' corners may be missing.
    ///
    /// # Errors
    /// If the picture is missing, a feature has another type than the OD API gives it, the per-box features differ in
    /// length, a box is not a number, or an id is not positive. The feature is named.
    pub fn from_example(example: Example) -> Result<Self> {
        let mut features = Reader(example.features.unwrap_or_default().feature);
        let encoded = features
            .first_bytes(ENCODED)?
            .filter(|encoded| !encoded.is_empty())
            .with_context(|| format!("the example has no `{ENCODED}`, so there is no picture in it"))?;
        let corners = [features.floats(YMIN)?, features.floats(XMIN)?, features.floats(YMAX)?, features.floats(XMAX)?];
        let count = corners[0].len();
        for (key, corner) in [YMIN, XMIN, YMAX, XMAX].iter().zip(&corners) {
            ensure!(corner.len() == count, "`{key}` has {} values and `{YMIN}` has {count}", corner.len());
            ensure!(corner.iter().all(|v| v.is_finite()), "`{key}` holds a value that is not a number");
        }
        let boxes = (0..count).map(|i| [corners[0][i], corners[1][i], corners[2][i], corners[3][i]]).collect();
        let filename = features.first_text(FILENAME)?;
        let image = Self {
            source_id: features.first_text(SOURCE_ID)?,
            encoded: encoded.into(),
            format: features.first_text(FORMAT)?,
            width: features.size(WIDTH)?,
            height: features.size(HEIGHT)?,
            sha256: features.first_text(SHA256)?,
            boxes,
            classes: features.classes(count)?,
            class_names: features.texts(CLASS_TEXT, count)?,
            difficult: features.flags(DIFFICULT, count)?,
            truncated: features.flags(TRUNCATED, count)?,
            poses: features.texts(POSE, count)?,
            crowd: features.flags(CROWD, count)?,
            filename,
        };
        for (i, (id, name)) in image.classes.iter().zip(&image.class_names).enumerate() {
            ensure!(*id > 0 || !name.is_empty(), "box {i} has no class: neither `{CLASS_LABEL}` nor `{CLASS_TEXT}` gives one");
        }
        Ok(image)
    }

    /// Reads one record's bytes.
    ///
    /// # Errors
    /// If they are not a tf.Example, and those of [`Self::from_example`].
    pub fn from_record(record: Vec<u8>) -> Result<Self> {
        // As `Bytes`, the picture is a slice of the record, not a copy.
        let example = Example::decode(Bytes::from(record)).context("the record is not a tf.Example")?;
        Self::from_example(example)
    }

    /// Gives boxes that only have a name their id; `id_of` looks a name up in the label map.
    ///
    /// # Errors
    /// If a name is not in the label map.
    pub fn resolve_classes(&mut self, id_of: impl Fn(&str) -> Option<u32>) -> Result<()> {
        for (id, name) in self.classes.iter_mut().zip(&self.class_names).filter(|(id, _)| **id == 0) {
            *id = id_of(name).with_context(|| format!("the label map has no class `{name}`"))?;
        }
        Ok(())
    }

    /// What training and evaluation need of it. Every class must have its id (see [`Self::resolve_classes`]).
    pub fn groundtruth(&self) -> Groundtruth {
        assert!(!self.classes.contains(&0), "classes must be resolved before groundtruth is asked for");
        Groundtruth {
            boxes: self.boxes.clone(),
            classes: self.classes.iter().map(|&id| id as usize - 1).collect(),
            difficult: self.difficult.clone(),
            crowd: self.crowd.clone(),
        }
    }
}

fn bytes(value: Vec<Bytes>) -> Feature {
    Feature { kind: Some(Kind::BytesList(BytesList { value })) }
}

fn floats(value: Vec<f32>) -> Feature {
    Feature { kind: Some(Kind::FloatList(FloatList { value })) }
}

fn ints(value: Vec<i64>) -> Feature {
    Feature { kind: Some(Kind::Int64List(Int64List { value })) }
}

/// Takes features out by key and type; what is missing is empty.
struct Reader(BTreeMap<String, Feature>);

impl Reader {
    fn bytes(&mut self, key: &str) -> Result<Vec<Bytes>> {
        match self.0.remove(key).and_then(|feature| feature.kind) {
            None => Ok(Vec::new()),
            Some(Kind::BytesList(list)) => Ok(list.value),
            Some(kind) => bail!("`{key}` is {} and must be a list of bytes", describe(&kind)),
        }
    }

    fn floats(&mut self, key: &str) -> Result<Vec<f32>> {
        match self.0.remove(key).and_then(|feature| feature.kind) {
            None => Ok(Vec::new()),
            Some(Kind::FloatList(list)) => Ok(list.value),
            // A writer that was handed an empty list cannot know its type.
            Some(Kind::BytesList(list)) if list.value.is_empty() => Ok(Vec::new()),
            Some(Kind::Int64List(list)) if list.value.is_empty() => Ok(Vec::new()),
            Some(kind) => bail!("`{key}` is {} and must be a list of floats", describe(&kind)),
        }
    }

    fn ints(&mut self, key: &str) -> Result<Vec<i64>> {
        match self.0.remove(key).and_then(|feature| feature.kind) {
            None => Ok(Vec::new()),
            Some(Kind::Int64List(list)) => Ok(list.value),
            Some(Kind::BytesList(list)) if list.value.is_empty() => Ok(Vec::new()),
            Some(Kind::FloatList(list)) if list.value.is_empty() => Ok(Vec::new()),
            Some(kind) => bail!("`{key}` is {} and must be a list of integers", describe(&kind)),
        }
    }

    fn first_bytes(&mut self, key: &str) -> Result<Option<Bytes>> {
        Ok(self.bytes(key)?.into_iter().next())
    }

    /// The first text, or an empty one.
    fn first_text(&mut self, key: &str) -> Result<String> {
        Ok(self.first_bytes(key)?.map(|text| String::from_utf8_lossy(&text).into_owned()).unwrap_or_default())
    }

    fn size(&mut self, key: &str) -> Result<u32> {
        let value = self.ints(key)?.first().copied().unwrap_or(0);
        u32::try_from(value).with_context(|| format!("`{key}` is {value}, which is not a size"))
    }

    /// One value for each of `count` boxes, or the default for all if the feature is missing or empty.
    fn each<T: Clone + Default>(key: &str, values: Vec<T>, count: usize) -> Result<Vec<T>> {
        if values.is_empty() {
            return Ok(vec![T::default(); count]);
        }
        ensure!(values.len() == count, "`{key}` has {} values for {count} boxes", values.len());
        Ok(values)
    }

    fn flags(&mut self, key: &str, count: usize) -> Result<Vec<bool>> {
        let values = self.ints(key)?;
        Self::each(key, values.into_iter().map(|value| value != 0).collect(), count)
    }

    fn texts(&mut self, key: &str, count: usize) -> Result<Vec<String>> {
        let values = self.bytes(key)?;
        Self::each(key, values.iter().map(|text| String::from_utf8_lossy(text).into_owned()).collect(), count)
    }

    fn classes(&mut self, count: usize) -> Result<Vec<u32>> {
        let mut ids = Vec::new();
        for id in self.ints(CLASS_LABEL)? {
            // 0 is the background, which no box can be.
            ensure!(id > 0, "`{CLASS_LABEL}` holds {id}; ids start at 1");
            ids.push(u32::try_from(id).with_context(|| format!("`{CLASS_LABEL}` holds {id}, which is too large"))?);
        }
        Self::each(CLASS_LABEL, ids, count)
    }
}

fn describe(kind: &Kind) -> &'static str {
    match kind {
        Kind::BytesList(_) => "a list of bytes",
        Kind::FloatList(_) => "a list of floats",
        Kind::Int64List(_) => "a list of integers",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn two_boxes() -> LabeledImage {
        LabeledImage {
            filename: "너구리 1.jpg".into(),
            source_id: "너구리 1.jpg".into(),
            encoded: vec![0xff, 0xd8, 1, 2, 3],
            format: "jpeg".into(),
            width: 40,
            height: 30,
            sha256: "ab".into(),
            boxes: vec![[0.1, 0.2, 0.5, 0.6], [0.0, 0.0, 1.0, 1.0]],
            classes: vec![1, 3],
            class_names: vec!["raccoon".into(), "r2 d2".into()],
            difficult: vec![false, true],
            truncated: vec![true, false],
            poses: vec!["Unspecified".into(), "Left".into()],
            crowd: vec![false, true],
        }
    }

    fn without(keys: &[&str]) -> Example {
        let mut example = two_boxes().to_example();
        let features = example.features.as_mut().unwrap();
        for key in keys {
            assert!(features.feature.remove(*key).is_some(), "{key}");
        }
        example
    }

    fn with(key: &str, feature: Feature) -> Example {
        let mut example = two_boxes().to_example();
        example.features.as_mut().unwrap().feature.insert(key.to_string(), feature);
        example
    }

    #[test]
    fn gives_back_what_was_written() {
        let image = two_boxes();
        assert_eq!(LabeledImage::from_record(image.to_example().encode_to_vec()).unwrap(), image);
    }

    #[test]
    fn a_negative_has_empty_lists_and_comes_back() {
        let image = LabeledImage {
            boxes: vec![],
            classes: vec![],
            class_names: vec![],
            difficult: vec![],
            truncated: vec![],
            poses: vec![],
            crowd: vec![],
            ..two_boxes()
        };
        assert_eq!(LabeledImage::from_record(image.to_example().encode_to_vec()).unwrap(), image);
        assert_eq!(image.groundtruth(), Groundtruth::default());
    }

    #[test]
    fn the_same_picture_always_gives_the_same_bytes_in_key_order() {
        let bytes = two_boxes().to_example().encode_to_vec();
        assert_eq!(bytes, two_boxes().to_example().encode_to_vec());
        let at = |key: &str| bytes.windows(key.len()).position(|w| w == key.as_bytes()).unwrap();
        assert!(at(ENCODED) < at(FILENAME) && at(FILENAME) < at(FORMAT) && at(FORMAT) < at(YMIN));
    }

    #[test]
    fn a_record_around_its_picture_has_the_bytes_of_the_whole() {
        for length in [0, 1, 127, 128, 300, 20_000, 3_000_000] {
            let whole = LabeledImage { encoded: vec![7; length], ..two_boxes() };
            let (before, behind) = LabeledImage { encoded: vec![], ..two_boxes() }.record_around(length);
            assert_eq!([before, whole.encoded.clone(), behind].concat(), whole.to_example().encode_to_vec(), "{length}");
        }
    }

    #[test]
    fn only_the_picture_must_be_there() {
        let image = LabeledImage::from_example(without(&[
            HEIGHT, WIDTH, FILENAME, SOURCE_ID, SHA256, FORMAT, DIFFICULT, TRUNCATED, POSE, CROWD, CLASS_TEXT,
        ]))
        .unwrap();
        assert_eq!((image.width, image.height, image.difficult.as_slice()), (0, 0, [false, false].as_slice()));
        assert_eq!(image.class_names, ["", ""]);
        let error = LabeledImage::from_example(without(&[ENCODED])).unwrap_err().to_string();
        assert!(error.contains(ENCODED), "{error}");
    }

    #[test]
    fn a_name_without_an_id_is_looked_up() {
        let mut image = LabeledImage::from_example(without(&[CLASS_LABEL])).unwrap();
        assert_eq!(image.classes, [0, 0]);
        let error = image.clone().resolve_classes(|name| (name == "raccoon").then_some(7)).unwrap_err().to_string();
        assert!(error.contains("r2 d2"), "{error}");
        image.resolve_classes(|name| Some(name.len() as u32)).unwrap();
        assert_eq!(image.classes, [7, 5]);
        assert_eq!(image.groundtruth().classes, [6, 4]);
    }

    #[test]
    fn faults_name_their_feature() {
        for (example, wanted) in [
            (without(&[CLASS_LABEL, CLASS_TEXT]), "no class"),
            (without(&[XMAX]), XMAX),
            (with(XMAX, floats(vec![0.1])), XMAX),
            (with(YMAX, floats(vec![f32::NAN, 0.1])), YMAX),
            (with(YMIN, ints(vec![1, 2])), YMIN),
            (with(CLASS_LABEL, ints(vec![1])), CLASS_LABEL),
            (with(CLASS_LABEL, ints(vec![1, 0])), CLASS_LABEL),
            (with(CLASS_LABEL, ints(vec![1, i64::MAX])), CLASS_LABEL),
            (with(DIFFICULT, ints(vec![0, 0, 0])), DIFFICULT),
            (with(WIDTH, ints(vec![-1])), WIDTH),
        ] {
            let error = format!("{:#}", LabeledImage::from_example(example).unwrap_err());
            assert!(error.contains(wanted), "{error} should name {wanted}");
        }
        assert!(LabeledImage::from_record(vec![0xff; 9]).is_err());
    }
}
