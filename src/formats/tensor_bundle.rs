//! TensorFlow V2 checkpoints ("tensor bundles"): an index of names, shapes and checksums, and files of raw tensor bytes.
//!
//! `PREFIX.index` is a sorted table (`sstable`) from tensor names to `BundleEntryProto`, the empty name holding the header;
//! `PREFIX.data-?????-of-?????` hold the tensors' bytes, little endian, one behind the other.
//!
//! Source: TensorFlow's `core/util/tensor_bundle/tensor_bundle.cc` and `core/protobuf/tensor_bundle.proto`.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use prost::Message;

use super::atomic_file::AtomicFile;
use super::sstable;
use super::tensor_slice::{self, Assembly, Slice};
use super::tfrecord::mask;
use crate::proto::tensorflow::{
    BundleEntryProto, BundleHeaderProto, DataType, TensorShapeProto, VersionDef, bundle_header_proto::Endianness,
    tensor_shape_proto::Dim,
};

/// The format's version, which we write, and the oldest consumer we can stand in for.
const VERSION: i32 = 1;

/// A tensor's bytes as the checkpoint holds them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorData {
    /// The type of its elements.
    pub dtype: DataType,
    /// Its sizes; none for a scalar.
    pub shape: Vec<i64>,
    /// Its elements, little endian, in row-major order.
    pub bytes: Vec<u8>,
}

impl TensorData {
    /// A float32 tensor.
    pub fn from_f32(shape: &[i64], values: &[f32]) -> Self {
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        TensorData { dtype: DataType::DtFloat, shape: shape.to_vec(), bytes }
    }

    /// An int64 tensor, as `global_step` is (a scalar: `shape` is empty).
    pub fn from_i64(shape: &[i64], values: &[i64]) -> Self {
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        TensorData { dtype: DataType::DtInt64, shape: shape.to_vec(), bytes }
    }

    /// Its elements, if they are float32.
    pub fn to_f32(&self) -> Option<Vec<f32>> {
        let value = |chunk: &[u8]| f32::from_le_bytes([chunk[0], chunk[1], chunk[2], chunk[3]]);
        (self.dtype == DataType::DtFloat).then(|| self.bytes.chunks_exact(4).map(value).collect())
    }

    /// Its elements, if they are int64.
    pub fn to_i64(&self) -> Option<Vec<i64>> {
        let value = |chunk: &[u8]| {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(chunk);
            i64::from_le_bytes(bytes)
        };
        (self.dtype == DataType::DtInt64).then(|| self.bytes.chunks_exact(8).map(value).collect())
    }
}

/// A tensor as the index describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The variable's name.
    pub name: String,
    /// The type of its elements.
    pub dtype: DataType,
    /// Its sizes; none for a scalar.
    pub shape: Vec<i64>,
    place: Place,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    Whole(Extent),
    Sliced(Vec<(Slice, Extent)>),
}

/// A run of bytes in one shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Extent {
    shard: i32,
    offset: u64,
    size: u64,
    crc: u32,
}

impl Entry {
    fn extents(&self) -> Vec<Extent> {
        match &self.place {
            Place::Whole(extent) => vec![*extent],
            Place::Sliced(parts) => parts.iter().map(|(_, extent)| *extent).collect(),
        }
    }

    /// The shape with its sizes known to be addressable.
    fn sizes(&self) -> Vec<usize> {
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
        let header = BundleHeaderProto::decode(header.value.as_slice()).context("its header entry does not decode, so it is not the index of a V2 checkpoint")?;
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
            let name = std::str::from_utf8(key)
                .with_context(|| format!("the tensor name `{}` is not UTF-8", key.escape_ascii()))?;
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

fn check_header(header: &BundleHeaderProto) -> Result<()> {
    ensure!(header.num_shards >= 1, "its header says {} data files, so it is not the index of a V2 checkpoint", header.num_shards);
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

/// Bytes of one element; `None` for types without a fixed size.
pub fn element_size(dtype: DataType) -> Option<usize> {
    use DataType::*;
    match dtype {
        DtUint8 | DtInt8 | DtBool | DtQint8 | DtQuint8 => Some(1),
        DtInt16 | DtUint16 | DtQint16 | DtQuint16 | DtBfloat16 | DtHalf => Some(2),
        DtFloat | DtInt32 | DtUint32 | DtQint32 => Some(4),
        DtDouble | DtInt64 | DtUint64 | DtComplex64 => Some(8),
        DtComplex128 => Some(16),
        DtInvalid | DtString | DtResource | DtVariant => None,
    }
}

/// An open checkpoint.
#[derive(Debug)]
pub struct BundleReader {
    index_path: PathBuf,
    index: Index,
    shards: HashMap<i32, Shard>,
}

#[derive(Debug)]
struct Shard {
    path: PathBuf,
    file: File,
}

impl BundleReader {
    /// Opens the checkpoint with this prefix (`.../model.ckpt`), checking its index and that its data files are all there.
    ///
    /// # Errors
    /// If a file is missing, cut short or damaged, or `prefix` is something else than a V2 checkpoint's prefix; each says which.
    pub fn open(prefix: &Path) -> Result<Self> {
        let index_path = with_suffix(prefix, ".index");
        match fs::metadata(&index_path) {
            Err(error) if error.kind() == ErrorKind::NotFound => bail!(explain_no_index(prefix)),
            Err(error) => return Err(error).with_context(|| format!("cannot read `{}`", index_path.display())),
            Ok(_) => {}
        }
        let index = Index::read(&index_path)?;
        let mut shards: HashMap<i32, (Shard, u64)> = HashMap::new();
        for entry in &index.entries {
            for extent in entry.extents() {
                let (shard, length) = match shards.entry(extent.shard) {
                    std::collections::hash_map::Entry::Occupied(known) => known.into_mut(),
                    std::collections::hash_map::Entry::Vacant(new) => {
                        new.insert(open_shard(prefix, extent.shard, index.num_shards)?)
                    }
                };
                let end = extent.offset + extent.size;
                ensure!(
                    end <= *length || extent.size == 0,
                    "`{}` is cut short: it has {length} bytes, and tensor `{}` lies at bytes {} to {end}; copy or download it again",
                    shard.path.display(),
                    entry.name,
                    extent.offset
                );
            }
        }
        let shards = shards.into_iter().map(|(id, (shard, _))| (id, shard)).collect();
        Ok(BundleReader { index_path, index, shards })
    }

    /// Every tensor, by name.
    pub fn entries(&self) -> &[Entry] {
        &self.index.entries
    }

    /// What the index says of one tensor.
    pub fn get(&self, name: &str) -> Option<&Entry> {
        self.index.get(name)
    }

    /// Reads one tensor, its slices put together, its checksum checked.
    ///
    /// # Errors
    /// If there is none of this name, its elements have no fixed size (strings: `read_strings`), or its data is damaged.
    pub fn read(&self, name: &str) -> Result<TensorData> {
        let entry = self.entry(name)?;
        let Some(element) = element_size(entry.dtype) else {
            bail!("`{}`: tensor `{name}` is a {}, not numbers", self.index_path.display(), entry.dtype.as_str_name());
        };
        let bytes = match &entry.place {
            Place::Whole(extent) => {
                let (bytes, found) = self.bytes(name, *extent)?;
                self.check(name, *extent, found)?;
                bytes
            }
            Place::Sliced(parts) => {
                let put_together = || -> Result<Vec<u8>> {
                    let mut whole = Assembly::new(&entry.sizes(), element)?;
                    for (slice, extent) in parts {
                        let (bytes, found) = self.bytes(name, *extent)?;
                        self.check(name, *extent, found)?;
                        whole.put(slice, &bytes)?;
                    }
                    whole.finish()
                };
                put_together().with_context(|| format!("`{}`: tensor `{name}`", self.index_path.display()))?
            }
        };
        Ok(TensorData { dtype: entry.dtype, shape: entry.shape.clone(), bytes })
    }

    /// Reads one float32 tensor: its shape and its elements in row-major order.
    ///
    /// # Errors
    /// As `read`, and if it is of another type.
    pub fn read_f32(&self, name: &str) -> Result<(Vec<i64>, Vec<f32>)> {
        let data = self.read(name)?;
        let values = data.to_f32().with_context(|| self.wrong_type(name, data.dtype, "float32"))?;
        Ok((data.shape, values))
    }

    /// Reads one int64 tensor: its shape and its elements in row-major order.
    ///
    /// # Errors
    /// As `read`, and if it is of another type.
    pub fn read_i64(&self, name: &str) -> Result<(Vec<i64>, Vec<i64>)> {
        let data = self.read(name)?;
        let values = data.to_i64().with_context(|| self.wrong_type(name, data.dtype, "int64"))?;
        Ok((data.shape, values))
    }

    /// Reads one tensor of strings (of bytes, really): its shape and its elements in row-major order.
    ///
    /// # Errors
    /// As `read`, and if it is of another type.
    pub fn read_strings(&self, name: &str) -> Result<(Vec<i64>, Vec<Vec<u8>>)> {
        let entry = self.entry(name)?;
        let (DataType::DtString, Place::Whole(extent)) = (entry.dtype, &entry.place) else {
            bail!(self.wrong_type(name, entry.dtype, "string"));
        };
        let (bytes, _) = self.bytes(name, *extent)?;
        let count = tensor_slice::elements(&entry.sizes())?;
        let (strings, found) = unpack_strings(&bytes, count)
            .with_context(|| format!("`{}`: tensor `{name}`", self.shard(*extent).map_or(&self.index_path, |s| &s.path).display()))?;
        self.check(name, *extent, found)?;
        Ok((entry.shape.clone(), strings))
    }

    /// Reads everything once, to be sure that every checksum is right.
    ///
    /// # Errors
    /// As `read`, for the first tensor that is damaged.
    pub fn verify(&self) -> Result<()> {
        for entry in self.entries() {
            if entry.dtype == DataType::DtString {
                self.read_strings(&entry.name)?;
            } else if element_size(entry.dtype).is_some() {
                self.read(&entry.name)?;
            }
        }
        Ok(())
    }

    fn entry(&self, name: &str) -> Result<&Entry> {
        self.get(name).with_context(|| {
            let count = self.entries().len();
            format!("`{}` has no tensor `{name}` among its {count}", self.index_path.display())
        })
    }

    fn wrong_type(&self, name: &str, found: DataType, wanted: &str) -> String {
        format!("`{}`: tensor `{name}` is a {}, not a {wanted}", self.index_path.display(), found.as_str_name())
    }

    fn shard(&self, extent: Extent) -> Option<&Shard> {
        self.shards.get(&extent.shard)
    }

    /// The bytes of `extent`, which lies within its file, and their checksum.
    fn bytes(&self, name: &str, extent: Extent) -> Result<(Vec<u8>, u32)> {
        let shard = self.shard(extent).with_context(|| format!("data file {} is not open", extent.shard))?;
        let mut bytes = vec![0; extent.size as usize];
        shard.file.read_exact_at(&mut bytes, extent.offset).with_context(|| {
            format!("`{}`: cannot read tensor `{name}` ({} bytes from {})", shard.path.display(), extent.size, extent.offset)
        })?;
        let crc = crc32c::crc32c(&bytes);
        Ok((bytes, crc))
    }

    fn check(&self, name: &str, extent: Extent, found: u32) -> Result<()> {
        let found = mask(found);
        ensure!(
            found == extent.crc,
            "`{}`: tensor `{name}`: checksum of bytes {} to {}: stored {:#010x}, found {found:#010x}: the file is damaged, copy or \
             download it again",
            self.shard(extent).map_or(&self.index_path, |shard| &shard.path).display(),
            extent.offset,
            extent.offset + extent.size,
            extent.crc
        );
        Ok(())
    }
}

fn open_shard(prefix: &Path, id: i32, count: i32) -> Result<(Shard, u64)> {
    let path = shard_path(prefix, id, count);
    let file = File::open(&path).with_context(|| {
        format!("`{}`: the checkpoint's data file {} of {count} cannot be opened; put it beside the index", path.display(), id + 1)
    })?;
    let stat = file.metadata().with_context(|| format!("cannot read `{}`", path.display()))?;
    ensure!(stat.is_file(), "`{}` is not a file", path.display());
    Ok((Shard { path, file }, stat.len()))
}

fn shard_path(prefix: &Path, id: i32, count: i32) -> PathBuf {
    with_suffix(prefix, &format!(".data-{id:05}-of-{count:05}"))
}

fn with_suffix(prefix: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(prefix);
    name.push(suffix);
    PathBuf::from(name)
}

/// Why there is no checkpoint at `prefix`, as nearly as its surroundings tell.
fn explain_no_index(prefix: &Path) -> String {
    let name = prefix.display();
    let text = prefix.to_string_lossy();
    if let Some(stem) = text.strip_suffix(".index").or_else(|| text.split_once(".data-").map(|(stem, _)| stem))
        && with_suffix(Path::new(stem), ".index").is_file()
    {
        return format!("`{name}` is one file of a checkpoint: name the checkpoint by what its files have in common, `{stem}`");
    }
    if prefix.is_dir() {
        let found = checkpoints_in(prefix);
        return match found.first() {
            Some(one) => format!("`{name}` is a folder: name a checkpoint in it, such as `{}`", one.display()),
            None => format!("`{name}` is a folder without a checkpoint (no `.index` file)"),
        };
    }
    if prefix.is_file() || with_suffix(prefix, "-00000-of-00001").is_file() {
        return format!(
            "`{name}` is a checkpoint of TensorFlow's old V1 format (no `.index` file), which is not supported: restore it in \
             TensorFlow and save it with tf.compat.v1.train.Saver(write_version=tf.compat.v1.train.SaverDef.V2)"
        );
    }
    let folder = prefix.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let data = format!("{}.data-", prefix.file_name().unwrap_or_default().to_string_lossy());
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    if entries.into_iter().any(|entry| entry.file_name().to_string_lossy().starts_with(&data)) {
        return format!("checkpoint `{name}`: its data is there, but not `{name}.index`; copy that file too");
    }
    let found: Vec<String> = checkpoints_in(folder).iter().take(5).map(|one| format!("`{}`", one.display())).collect();
    let known = if found.is_empty() { String::new() } else { format!(" (in its folder: {})", found.join(", ")) };
    format!("there is no checkpoint `{name}`: `{name}.index` does not exist{known}")
}

/// Prefixes of the checkpoints in a folder, by name.
fn checkpoints_in(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut found: Vec<PathBuf> =
        entries.filter(|path| path.extension().is_some_and(|e| e == "index")).map(|path| path.with_extension("")).collect();
    found.sort();
    found
}

/// Strings lie as their lengths, the checksum of the lengths, and their bytes one behind the other.
///
/// Returns the strings and the checksum of the tensor, which covers the lengths as fixed-size numbers.
fn unpack_strings(bytes: &[u8], count: usize) -> Result<(Vec<Vec<u8>>, u32)> {
    let mut rest = bytes;
    let mut lengths = Vec::with_capacity(count);
    let mut crc = 0;
    for i in 0..count {
        let (length, used) = sstable::varint(rest).with_context(|| format!("the length of string {i} is cut short"))?;
        crc = append_length(crc, length);
        lengths.push(length);
        rest = &rest[used..];
    }
    let Some((stored, mut rest)) = rest.split_first_chunk::<4>() else {
        bail!("the checksum of its lengths is cut short");
    };
    let found = mask(crc);
    ensure!(found.to_le_bytes() == *stored, "the checksum of its string lengths differs: the file is damaged");
    crc = crc32c::crc32c_append(crc, stored);
    crc = crc32c::crc32c_append(crc, rest);
    let mut strings = Vec::with_capacity(count);
    for (i, length) in lengths.into_iter().enumerate() {
        let Some((string, after)) = usize::try_from(length).ok().and_then(|length| rest.split_at_checked(length)) else {
            bail!("string {i} has {length} bytes, and {} are left", rest.len());
        };
        strings.push(string.to_vec());
        rest = after;
    }
    ensure!(rest.is_empty(), "{} bytes are left after its last string", rest.len());
    Ok((strings, crc))
}

fn append_length(crc: u32, length: u64) -> u32 {
    match u32::try_from(length) {
        Ok(short) => crc32c::crc32c_append(crc, &short.to_le_bytes()),
        Err(_) => crc32c::crc32c_append(crc, &length.to_le_bytes()),
    }
}

/// Writes a checkpoint as TensorFlow's Saver would: tensors in any order, then `finish`.
///
/// The files have temporary names until `finish`; a writer that is dropped before takes them away.
pub struct BundleWriter {
    prefix: PathBuf,
    data: AtomicFile,
    /// Where the next tensor goes; `None` once writing has failed, since nothing after that lies where it should.
    offset: Option<u64>,
    entries: BTreeMap<String, BundleEntryProto>,
}

impl BundleWriter {
    /// Starts the checkpoint `prefix`; its folder is made.
    ///
    /// # Errors
    /// If its files cannot be created.
    pub fn create(prefix: &Path) -> Result<Self> {
        let data = AtomicFile::create(&shard_path(prefix, 0, 1))?;
        Ok(BundleWriter { prefix: prefix.to_path_buf(), data, offset: Some(0), entries: BTreeMap::new() })
    }

    /// Appends a tensor of numbers.
    ///
    /// # Errors
    /// If the name is taken or empty, the bytes do not fit the shape, or writing fails (the disk is full).
    pub fn add(&mut self, name: &str, tensor: &TensorData) -> Result<()> {
        let sizes: Result<Vec<usize>, _> = tensor.shape.iter().map(|&size| usize::try_from(size)).collect();
        let sizes = sizes.ok().with_context(|| format!("tensor `{name}`: shape {:?} has a negative size", tensor.shape))?;
        let elements = tensor_slice::elements(&sizes).with_context(|| format!("tensor `{name}`"))?;
        let element = element_size(tensor.dtype)
            .with_context(|| format!("tensor `{name}`: {} has no fixed size", tensor.dtype.as_str_name()))?;
        ensure!(
            elements.checked_mul(element) == Some(tensor.bytes.len()),
            "tensor `{name}`: {} bytes do not fill shape {:?} of {}",
            tensor.bytes.len(),
            tensor.shape,
            tensor.dtype.as_str_name()
        );
        self.append(name, tensor.dtype, &tensor.shape, &tensor.bytes, crc32c::crc32c(&tensor.bytes))
    }

    /// Appends a tensor of strings.
    ///
    /// # Errors
    /// As `add`.
    pub fn add_strings<S: AsRef<[u8]>>(&mut self, name: &str, shape: &[i64], strings: &[S]) -> Result<()> {
        let elements: i64 = shape.iter().product();
        ensure!(elements == strings.len() as i64, "tensor `{name}`: {} strings do not fill shape {shape:?}", strings.len());
        let mut bytes = Vec::new();
        let mut crc = 0;
        for string in strings {
            let length = string.as_ref().len() as u64;
            sstable::put_varint(&mut bytes, length);
            crc = append_length(crc, length);
        }
        let lengths = mask(crc).to_le_bytes();
        bytes.extend_from_slice(&lengths);
        crc = crc32c::crc32c_append(crc, &lengths);
        for string in strings {
            bytes.extend_from_slice(string.as_ref());
            crc = crc32c::crc32c_append(crc, string.as_ref());
        }
        self.append(name, DataType::DtString, shape, &bytes, crc)
    }

    fn append(&mut self, name: &str, dtype: DataType, shape: &[i64], bytes: &[u8], crc: u32) -> Result<()> {
        ensure!(!name.is_empty() && !name.starts_with('\0'), "a tensor cannot be named `{}`", name.escape_default());
        ensure!(!self.entries.contains_key(name), "tensor `{name}` is already in the checkpoint");
        let path = shard_path(&self.prefix, 0, 1);
        let offset = self.offset.take().with_context(|| broken(&path))?;
        self.data.write_all(bytes).with_context(|| format!("cannot write `{}`", path.display()))?;
        self.offset = Some(offset + bytes.len() as u64);
        let dim = shape.iter().map(|&size| Dim { size, name: String::new() }).collect();
        let entry = BundleEntryProto {
            dtype: dtype.into(),
            shape: Some(TensorShapeProto { dim, unknown_rank: false }),
            shard_id: 0,
            offset: offset as i64,
            size: bytes.len() as i64,
            crc32c: mask(crc),
            slices: Vec::new(),
        };
        self.entries.insert(name.to_string(), entry);
        Ok(())
    }

    /// Writes the index, makes sure that everything is on disk, and gives the files their names, the index last.
    ///
    /// # Errors
    /// If writing fails; the checkpoint is then not there.
    pub fn finish(self) -> Result<()> {
        ensure!(self.offset.is_some(), broken(&shard_path(&self.prefix, 0, 1)));
        let index_path = with_suffix(&self.prefix, ".index");
        let index = AtomicFile::create(&index_path)?;
        let index = self.write_index(index).with_context(|| format!("cannot write `{}`", index_path.display()))?;
        // An index from an earlier save under this name must not meet the new data.
        remove_if_there(&index_path)?;
        self.data.commit()?;
        index.commit()?;
        let folder = self.prefix.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(folder).and_then(|folder| folder.sync_all()).with_context(|| format!("cannot sync `{}`", folder.display()))
    }

    fn write_index(&self, file: AtomicFile) -> Result<AtomicFile> {
        let mut table = sstable::Writer::new(file);
        let version = Some(VersionDef { producer: VERSION, min_consumer: 0, bad_consumers: Vec::new() });
        let header = BundleHeaderProto { num_shards: 1, endianness: Endianness::Little.into(), version };
        table.add(b"", &header.encode_to_vec())?;
        for (name, entry) in &self.entries {
            table.add(name.as_bytes(), &entry.encode_to_vec())?;
        }
        table.finish()
    }
}

fn broken(path: &Path) -> String {
    format!("`{}` is not whole: writing it failed before", path.display())
}

/// Writes a whole checkpoint.
///
/// # Errors
/// As `BundleWriter`'s steps.
pub fn write<'a>(prefix: &Path, tensors: impl IntoIterator<Item = (&'a str, TensorData)>) -> Result<()> {
    let mut writer = BundleWriter::create(prefix)?;
    for (name, tensor) in tensors {
        writer.add(name, &tensor)?;
    }
    writer.finish()
}

/// Deletes a checkpoint's files, the index first so that none is left half; one that is not there is no error.
///
/// # Errors
/// If a file cannot be deleted.
pub fn remove(prefix: &Path) -> Result<()> {
    let shards = Index::read(&with_suffix(prefix, ".index")).map_or(1, |index| index.num_shards);
    remove_if_there(&with_suffix(prefix, ".index"))?;
    for shard in 0..shards {
        remove_if_there(&shard_path(prefix, shard, shards))?;
    }
    remove_if_there(&with_suffix(prefix, ".meta"))
}

fn remove_if_there(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error).with_context(|| format!("cannot delete `{}`", path.display())),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(folder: &Path) -> PathBuf {
        let prefix = folder.join("model.ckpt");
        let mut writer = BundleWriter::create(&prefix).unwrap();
        writer.add("b/weights", &TensorData::from_f32(&[2, 3], &[0.0, 1.0, -2.5, f32::MIN_POSITIVE, f32::INFINITY, 6.0])).unwrap();
        writer.add("global_step", &TensorData::from_i64(&[], &[1 << 40])).unwrap();
        writer.add("a/empty", &TensorData::from_f32(&[0, 7], &[])).unwrap();
        writer.add_strings("names", &[2, 1], &["", "개"]).unwrap();
        writer.finish().unwrap();
        prefix
    }

    fn error_of(prefix: &Path) -> String {
        match BundleReader::open(prefix).and_then(|reader| reader.verify()) {
            Ok(()) => String::from("no error"),
            Err(error) => format!("{error:#}"),
        }
    }

    /// The index of `prefix` with every entry passed through `change`.
    fn rewrite_index(prefix: &Path, change: impl Fn(&str, &mut BundleEntryProto)) {
        let path = with_suffix(prefix, ".index");
        let mut table = sstable::Writer::new(Vec::new());
        for pair in sstable::read(&path).unwrap() {
            if pair.key.is_empty() {
                table.add(&pair.key, &pair.value).unwrap();
                continue;
            }
            let mut entry = BundleEntryProto::decode(pair.value.as_slice()).unwrap();
            change(std::str::from_utf8(&pair.key).unwrap(), &mut entry);
            table.add(&pair.key, &entry.encode_to_vec()).unwrap();
        }
        fs::write(path, table.finish().unwrap()).unwrap();
    }

    #[test]
    fn a_checkpoint_reads_back_as_written_in_name_order() {
        let folder = tempfile::tempdir().unwrap();
        let reader = BundleReader::open(&sample(folder.path())).unwrap();
        let entries: Vec<_> = reader.entries().iter().map(|e| (e.name.as_str(), e.dtype, e.shape.as_slice())).collect();
        assert_eq!(
            entries,
            [
                ("a/empty", DataType::DtFloat, [0, 7].as_slice()),
                ("b/weights", DataType::DtFloat, &[2, 3]),
                ("global_step", DataType::DtInt64, &[]),
                ("names", DataType::DtString, &[2, 1]),
            ]
        );
        let (shape, values) = reader.read_f32("b/weights").unwrap();
        assert_eq!((shape, values[3], values[4]), (vec![2, 3], f32::MIN_POSITIVE, f32::INFINITY));
        assert_eq!(reader.read_i64("global_step").unwrap(), (vec![], vec![1 << 40]));
        assert_eq!(reader.read_f32("a/empty").unwrap(), (vec![0, 7], vec![]));
        assert_eq!(reader.read_strings("names").unwrap().1, [b"".to_vec(), "개".as_bytes().to_vec()]);
        reader.verify().unwrap();
    }

    #[test]
    fn asking_for_what_is_not_there_or_of_another_type_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let reader = BundleReader::open(&sample(folder.path())).unwrap();
        let error = |result: Result<()>| result.unwrap_err().to_string();
        assert!(error(reader.read("c").map(drop)).contains("has no tensor `c` among its 4"));
        assert!(error(reader.read_f32("global_step").map(drop)).contains("is a DT_INT64, not a float32"));
        assert!(error(reader.read("names").map(drop)).contains("is a DT_STRING, not numbers"));
        assert!(error(reader.read_strings("b/weights").map(drop)).contains("is a DT_FLOAT, not a string"));
    }

    #[test]
    fn the_data_holds_the_tensors_one_behind_the_other_without_padding() {
        let folder = tempfile::tempdir().unwrap();
        let prefix = sample(folder.path());
        let data = fs::read(shard_path(&prefix, 0, 1)).unwrap();
        // 6 floats, an int64, then two lengths, their checksum and 3 bytes of UTF-8.
        assert_eq!(data.len(), 24 + 8 + 2 + 4 + 3);
        assert_eq!(data[24..32], (1i64 << 40).to_le_bytes());
        let names: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names.len(), 2, "nothing temporary is left: {names:?}");
    }

    #[test]
    fn a_flipped_bit_in_the_data_names_the_file_the_tensor_and_the_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let prefix = sample(folder.path());
        let path = shard_path(&prefix, 0, 1);
        let good = fs::read(&path).unwrap();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0x10;
            fs::write(&path, &bad).unwrap();
            let tensor = ["b/weights", "global_step", "names"][usize::from(at >= 24) + usize::from(at >= 32)];
            let error = error_of(&prefix);
            assert!(error.contains(&format!("{}`: tensor `{tensor}`", path.display())), "byte {at}: {error}");
        }
        let mut bad = good.clone();
        bad[25] ^= 1;
        fs::write(&path, &bad).unwrap();
        assert!(error_of(&prefix).contains("checksum of bytes 24 to 32: stored 0x"), "{}", error_of(&prefix));
    }

    #[test]
    fn a_flipped_byte_in_the_index_is_an_error_or_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let prefix = sample(folder.path());
        let path = with_suffix(&prefix, ".index");
        let good = fs::read(&path).unwrap();
        let contents = Index::read(&path).unwrap().entries;
        for at in 0..good.len() {
            for flip in [1, 0xff] {
                let mut bad = good.clone();
                bad[at] ^= flip;
                fs::write(&path, &bad).unwrap();
                if let Ok(index) = Index::read(&path) {
                    assert_eq!(index.entries, contents, "byte {at}");
                    assert!(at >= good.len() - 48, "only the footer's padding carries nothing, and byte {at} is not in it");
                }
            }
        }
    }

    #[test]
    fn data_that_is_cut_short_or_missing_is_named_before_anything_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let prefix = sample(folder.path());
        let path = shard_path(&prefix, 0, 1);
        fs::write(&path, &fs::read(&path).unwrap()[..30]).unwrap();
        let error = BundleReader::open(&prefix).unwrap_err().to_string();
        assert!(error.contains("is cut short: it has 30 bytes, and tensor `global_step` lies at bytes 24 to 32"), "{error}");
        fs::remove_file(&path).unwrap();
        assert!(error_of(&prefix).contains("model.ckpt.data-00000-of-00001`: the checkpoint's data file 1 of 1"), "{}", error_of(&prefix));
    }

    #[test]
    fn sizes_that_no_file_holds_are_refused_without_allocating_them() {
        let cases: [(&str, fn(&mut BundleEntryProto)); 8] = [
            ("has too many elements", |e| e.shape = Some(shape_of(&[i64::MAX, i64::MAX]))),
            ("elements of DT_FLOAT take 4 each", |e| e.shape = Some(shape_of(&[1 << 40]))),
            ("has a negative size", |e| e.shape = Some(shape_of(&[-6]))),
            ("is cut short", |e| {
                e.shape = Some(shape_of(&[1 << 40]));
                e.size = 4 << 40;
                e.offset = 1 << 20; // clear of the other tensors
            }),
            ("which is too far", |e| e.offset = i64::MAX),
            ("lies at byte -1", |e| e.offset = -1),
            ("lies in data file 7, and there are 1", |e| e.shard_id = 7),
            ("its type has the unknown number 99", |e| e.dtype = 99),
        ];
        for (wanted, change) in cases {
            let folder = tempfile::tempdir().unwrap();
            let prefix = sample(folder.path());
            rewrite_index(&prefix, |name, entry| {
                if name == "b/weights" {
                    change(entry);
                }
            });
            let error = error_of(&prefix);
            assert!(error.contains(wanted) && error.contains("`b/weights`"), "{wanted}: {error}");
        }
    }

    fn shape_of(sizes: &[i64]) -> TensorShapeProto {
        TensorShapeProto { dim: sizes.iter().map(|&size| Dim { size, name: String::new() }).collect(), unknown_rank: false }
    }

    #[test]
    fn tensors_that_overlap_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let prefix = sample(folder.path());
        rewrite_index(&prefix, |name, entry| {
            if name == "global_step" {
                entry.offset = 20;
            }
        });
        let error = error_of(&prefix);
        assert!(error.contains("`b/weights` (bytes 0 to 24) and `global_step` (from byte 20) overlap"), "{error}");
    }

    #[test]
    fn a_header_of_another_byte_order_version_or_format_is_refused() {
        let header = |num_shards, endianness: Endianness, min_consumer| {
            let version = Some(VersionDef { producer: 1, min_consumer, bad_consumers: vec![] });
            BundleHeaderProto { num_shards, endianness: endianness.into(), version }
        };
        for (header, wanted) in [
            (header(1, Endianness::Big, 0), "big-endian"),
            (header(1, Endianness::Little, 2), "reader of version 2"),
            (header(0, Endianness::Little, 0), "not the index of a V2 checkpoint"),
        ] {
            let error = check_header(&header).unwrap_err().to_string();
            assert!(error.contains(wanted), "{wanted}: {error}");
        }
        let folder = tempfile::tempdir().unwrap();
        let prefix = folder.path().join("m");
        let mut table = sstable::Writer::new(Vec::new());
        table.add(b"a", b"").unwrap();
        fs::write(with_suffix(&prefix, ".index"), table.finish().unwrap()).unwrap();
        assert!(error_of(&prefix).contains("no header entry"), "{}", error_of(&prefix));
    }

    #[test]
    fn a_prefix_without_an_index_is_explained_by_what_is_there() {
        let folder = tempfile::tempdir().unwrap();
        let prefix = sample(folder.path());
        let at = |name: &str| error_of(&folder.path().join(name));
        let name = prefix.display();
        assert!(at("model.ckpt.index").contains(&format!("files have in common, `{name}`")));
        assert!(at("model.ckpt.data-00000-of-00001").contains(&format!("files have in common, `{name}`")));
        assert!(at("").contains(&format!("is a folder: name a checkpoint in it, such as `{name}`")));
        assert!(at("model.ckpt-7").contains(&format!("does not exist (in its folder: `{name}`)")), "{}", at("model.ckpt-7"));
        fs::write(folder.path().join("old.ckpt"), "").unwrap();
        assert!(at("old.ckpt").contains("old V1 format"));
        fs::remove_file(with_suffix(&prefix, ".index")).unwrap();
        assert!(at("model.ckpt").contains("its data is there, but not"), "{}", at("model.ckpt"));
    }

    #[test]
    fn an_unfinished_writer_leaves_nothing_and_an_old_checkpoint_whole() {
        let folder = tempfile::tempdir().unwrap();
        let prefix = sample(folder.path());
        let mut writer = BundleWriter::create(&prefix).unwrap();
        writer.add("x", &TensorData::from_f32(&[1], &[1.0])).unwrap();
        drop(writer);
        BundleReader::open(&prefix).unwrap().verify().unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
        remove(&prefix).unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        remove(&prefix).unwrap();
    }

    #[test]
    fn the_writer_refuses_what_tensorflow_could_not_read() {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = BundleWriter::create(&folder.path().join("m")).unwrap();
        let tensor = TensorData::from_f32(&[1], &[1.0]);
        writer.add("x", &tensor).unwrap();
        assert!(writer.add("x", &tensor).unwrap_err().to_string().contains("already"));
        assert!(writer.add("", &tensor).is_err());
        let wrong = TensorData { shape: vec![2], ..tensor };
        assert_eq!(writer.add("y", &wrong).unwrap_err().to_string(), "tensor `y`: 4 bytes do not fill shape [2] of DT_FLOAT");
    }
}
