//! The index of a TensorFlow V2 checkpoint: where each tensor lies, checked so that nothing read after it is too large.
//!
//! Source: TensorFlow's `core/util/tensor_bundle/tensor_bundle.cc` and `core/protobuf/tensor_bundle.proto`.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use prost::Message;

use super::sstable;
use super::tensor_data::element_size;
use super::tensor_slice::{self, Slice};
use crate::proto::tensorflow::{BundleEntryProto, BundleHeaderProto, DataType, bundle_header_proto::Endianness};

/// The format's version, which we write, and the oldest consumer we can stand in for.
pub(super) const VERSION: i32 = 1;

/// A tensor as the index describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The variable's name.
    pub name: String,
    /// The type of its elements.
    pub dtype: DataType,
    /// Its sizes; none for a scalar.
    pub shape: Vec<i64>,
    pub(super) place: Place,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Place {
    Whole(Extent),
    Sliced(Vec<(Slice, Extent)>),
}

/// A run of bytes in one shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Extent {
    pub(super) shard: i32,
    pub(super) offset: u64,
    pub(super) size: u64,
    pub(super) crc: u32,
}

impl Entry {
    pub(super) fn extents(&self) -> Vec<Extent> {
        match &self.place {
            Place::Whole(extent) => vec![*extent],
            Place::Sliced(parts) => parts.iter().map(|(_, extent)| *extent).collect(),
        }
    }

    /// The shape with its sizes known to be addressable.
    pub(super) fn sizes(&self) -> Vec<usize> {
        self.shape.iter().map(|&size| size as usize).collect()
    }
}

/// What a `.index` file says, by itself.
#[derive(Debug, Clone)]
pub struct Index {
    /// The tensors, by name.
    pub entries: Vec<Entry>,
    /// How many data files there are.
    pub num_shards: i32,
}

impl Index {
    /// Reads and checks an index file; the data files are not looked at.
    ///
    /// # Errors
    /// If it cannot be read, is damaged, or says what no TensorFlow would.
    pub fn read(path: &Path) -> Result<Self> {
        let pairs = sstable::read(path)?;
        Self::from_pairs(pairs).with_context(|| format!("`{}`", path.display()))
    }

    fn from_pairs(pairs: Vec<sstable::Pair>) -> Result<Self> {
        let mut pairs = pairs.into_iter();
        let header = pairs.next().filter(|pair| pair.key.is_empty());
        let header = header.context("it has no header entry (the empty key), so it is not a checkpoint's index")?;
        let header = BundleHeaderProto::decode(header.value.as_slice())
            .context("its header entry does not decode, so it is not the index of a V2 checkpoint")?;
        check_header(&header)?;

        let mut raw: BTreeMap<Vec<u8>, BundleEntryProto> = BTreeMap::new();
        for pair in pairs {
            let entry = BundleEntryProto::decode(pair.value.as_slice())
                .with_context(|| format!("the entry of `{}` does not decode", pair.key.escape_ascii()))?;
            raw.insert(pair.key, entry);
        }
        let mut entries = Vec::new();
        // Keys that start with a zero byte are the slices of partitioned tensors, which stand under their own names too.
        for (key, proto) in raw.iter().filter(|(key, _)| key.first() != Some(&0)) {
            let name =
                std::str::from_utf8(key).with_context(|| format!("the tensor name `{}` is not UTF-8", key.escape_ascii()))?;
            let entry = entry(name, proto, &raw, header.num_shards).with_context(|| format!("tensor `{name}`"))?;
            entries.push(entry);
        }
        check_overlap(&entries)?;
        Ok(Index { entries, num_shards: header.num_shards })
    }

    /// The tensor of this name.
    pub fn get(&self, name: &str) -> Option<&Entry> {
        let at = self.entries.binary_search_by(|entry| entry.name.as_str().cmp(name)).ok()?;
        self.entries.get(at)
    }
}

pub(super) fn check_header(header: &BundleHeaderProto) -> Result<()> {
    ensure!(
        header.num_shards >= 1,
        "its header says {} data files, so it is not the index of a V2 checkpoint",
        header.num_shards
    );
    match Endianness::try_from(header.endianness) {
        Ok(Endianness::Little) => {}
        Ok(Endianness::Big) => bail!(
            "it was written on a big-endian machine, which is not supported: restore and save it with TensorFlow on a common PC"
        ),
        Err(_) => bail!("its header gives the unknown byte order {}", header.endianness),
    }
    let version = header.version.clone().unwrap_or_default();
    ensure!(
        version.min_consumer <= VERSION && !version.bad_consumers.contains(&VERSION),
        "it needs a reader of version {} or later, and this one is version {VERSION}",
        version.min_consumer
    );
    Ok(())
}

fn entry(name: &str, proto: &BundleEntryProto, raw: &BTreeMap<Vec<u8>, BundleEntryProto>, shards: i32) -> Result<Entry> {
    let dtype = DataType::try_from(proto.dtype).ok().filter(|&dtype| dtype != DataType::DtInvalid);
    let dtype = dtype.with_context(|| format!("its type has the unknown number {}", proto.dtype))?;
    let shape = shape(proto)?;
    let mut entry = Entry { name: name.to_string(), dtype, shape, place: Place::Sliced(Vec::new()) };
    let sizes = entry.sizes();
    let elements = tensor_slice::elements(&sizes)?;
    if proto.slices.is_empty() {
        entry.place = Place::Whole(extent(proto, dtype, elements, shards)?);
        return Ok(entry);
    }
    ensure!(element_size(dtype).is_some(), "it is partitioned, which is not supported for {}", dtype.as_str_name());
    let mut parts = Vec::with_capacity(proto.slices.len());
    let mut held = 0usize;
    for (i, slice) in proto.slices.iter().enumerate() {
        let what = || format!("its slice {}", i + 1);
        let part = raw.get(&tensor_slice::key(name, slice)).with_context(|| format!("{} has no entry of its own", what()))?;
        ensure!(part.dtype == proto.dtype, "{} has the type number {}, the tensor {}", what(), part.dtype, proto.dtype);
        let place = Slice::place(slice, &sizes).with_context(what)?;
        let extent = extent(part, dtype, place.elements(), shards).with_context(what)?;
        held = held.saturating_add(place.elements());
        parts.push((place, extent));
    }
    ensure!(held == elements, "its slices hold {held} elements, the tensor {elements}: they overlap or leave gaps");
    entry.place = Place::Sliced(parts);
    Ok(entry)
}

fn shape(proto: &BundleEntryProto) -> Result<Vec<i64>> {
    let shape = proto.shape.clone().unwrap_or_default();
    ensure!(!shape.unknown_rank, "its shape is not known");
    let sizes: Vec<i64> = shape.dim.iter().map(|dim| dim.size).collect();
    ensure!(sizes.iter().all(|&size| size >= 0), "its shape {sizes:?} has a negative size");
    Ok(sizes)
}

fn extent(proto: &BundleEntryProto, dtype: DataType, elements: usize, shards: i32) -> Result<Extent> {
    let &BundleEntryProto { shard_id: shard, offset, size, crc32c: crc, .. } = proto;
    ensure!((0..shards).contains(&shard), "it lies in data file {shard}, and there are {shards}");
    ensure!(offset >= 0 && size >= 0, "it lies at byte {offset} with {size} bytes");
    ensure!(offset.checked_add(size).is_some(), "it lies at byte {offset} with {size} bytes, which is too far");
    let (offset, size) = (offset as u64, size as u64);
    if let Some(element) = element_size(dtype) {
        let wanted = elements.checked_mul(element).map(|n| n as u64);
        ensure!(
            wanted == Some(size),
            "it has {size} bytes, but {elements} elements of {} take {} each",
            dtype.as_str_name(),
            element
        );
    } else if dtype == DataType::DtString {
        // At least a length byte for each string.
        ensure!(elements as u64 <= size, "it has {size} bytes, too few for {elements} strings");
    }
    Ok(Extent { shard, offset, size, crc })
}

/// No two tensors share bytes in a real checkpoint.
fn check_overlap(entries: &[Entry]) -> Result<()> {
    let extents = entries.iter().flat_map(|entry| entry.extents().into_iter().map(move |extent| (extent, &entry.name)));
    let mut extents: Vec<_> = extents.filter(|(extent, _)| extent.size > 0).collect();
    extents.sort_by_key(|(extent, _)| (extent.shard, extent.offset));
    for pair in extents.windows(2) {
        let [(a, a_name), (b, b_name)] = pair else { continue };
        ensure!(
            a.shard != b.shard || a.offset + a.size <= b.offset,
            "tensors `{a_name}` (bytes {} to {}) and `{b_name}` (from byte {}) overlap in data file {}",
            a.offset,
            a.offset + a.size,
            b.offset,
            a.shard
        );
    }
    Ok(())
}

/// The file of one shard.
pub(super) fn shard_path(prefix: &Path, id: i32, count: i32) -> PathBuf {
    with_suffix(prefix, &format!(".data-{id:05}-of-{count:05}"))
}

/// The index of the checkpoint with this prefix.
pub fn index_of(prefix: &Path) -> PathBuf {
    with_suffix(prefix, ".index")
}

/// `prefix` with more to its last part.
pub fn with_suffix(prefix: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(prefix);
    name.push(suffix);
    PathBuf::from(name)
}
