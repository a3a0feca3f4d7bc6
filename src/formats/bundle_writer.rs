//! Writes TensorFlow V2 checkpoints.
//!
//! Source: TensorFlow's `core/util/tensor_bundle/tensor_bundle.cc`.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use prost::Message;

use super::atomic_file::AtomicFile;
use super::bundle_index::{Index, VERSION, index_of, shard_path, with_suffix};
use super::tensor_data::{self, TensorData, element_size};
use super::tfrecord::mask;
use super::{sstable, tensor_slice};
use crate::proto::tensorflow::{
    BundleEntryProto, BundleHeaderProto, DataType, TensorShapeProto, VersionDef, bundle_header_proto::Endianness,
    tensor_shape_proto::Dim,
};

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
        let (bytes, crc) = tensor_data::pack_strings(strings);
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
        let index_path = index_of(&self.prefix);
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
    let shards = Index::read(&index_of(prefix)).map_or(1, |index| index.num_shards);
    remove_if_there(&index_of(prefix))?;
    for shard in 0..shards {
        remove_if_there(&shard_path(prefix, shard, shards))?;
    }
    remove_if_there(&with_suffix(prefix, ".meta"))
}

fn remove_if_there(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot delete `{}`", path.display()))
        }
        _ => Ok(()),
    }
}
