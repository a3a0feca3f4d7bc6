//! TensorFlow V2 checkpoints ("tensor bundles"): an index of names, shapes and checksums, and files of raw tensor bytes.
//!
//! `PREFIX.index` is a sorted table (`sstable`) from tensor names to `BundleEntryProto`, the empty name holding the header;
//! `PREFIX.data-?????-of-?????` hold the tensors' bytes, little endian, one behind the other.
//!
//! Source: TensorFlow's `core/util/tensor_bundle/tensor_bundle.cc` and `core/protobuf/tensor_bundle.proto`.

use std::collections::HashMap;
use std::collections::hash_map::Entry as Slot;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use super::bundle_index::{Extent, Place, index_of, shard_path, with_suffix};
use super::sstable;
use super::tensor_data::unpack_strings;
use super::tensor_slice::{self, Assembly};
use super::tfrecord::mask;
use crate::proto::tensorflow::DataType;

pub use super::bundle_index::{Entry, Index};
pub use super::bundle_writer::{BundleWriter, remove, write};
pub use super::tensor_data::{TensorData, element_size};

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
        let index_path = index_of(prefix);
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
                    Slot::Occupied(known) => known.into_mut(),
                    Slot::Vacant(new) => new.insert(open_shard(prefix, extent.shard, index.num_shards)?),
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
        let (strings, found) = unpack_strings(&bytes, count).with_context(|| {
            format!("`{}`: tensor `{name}`", self.shard(*extent).map_or(&self.index_path, |s| &s.path).display())
        })?;
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
        format!(
            "`{}`: the checkpoint's data file {} of {count} cannot be opened; put it beside the index",
            path.display(),
            id + 1
        )
    })?;
    let stat = file.metadata().with_context(|| format!("cannot read `{}`", path.display()))?;
    ensure!(stat.is_file(), "`{}` is not a file", path.display());
    Ok((Shard { path, file }, stat.len()))
}

/// Why there is no checkpoint at `prefix`, as nearly as its surroundings tell.
pub fn explain_no_index(prefix: &Path) -> String {
    let name = prefix.display();
    let text = prefix.to_string_lossy();
    if let Some(stem) = text.strip_suffix(".index").or_else(|| text.split_once(".data-").map(|(stem, _)| stem))
        && index_of(Path::new(stem)).is_file()
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
    // What the old format wrote is one table.
    if prefix.is_file() && !sstable::ends_as_table(prefix) {
        return format!("`{name}` is no checkpoint: name one by what its files have in common, PREFIX of PREFIX.index");
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

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;
    use crate::formats::bundle_index::check_header;
    use crate::formats::sstable;
    use crate::proto::tensorflow::{
        BundleEntryProto, BundleHeaderProto, TensorShapeProto, VersionDef, bundle_header_proto::Endianness,
        tensor_shape_proto::Dim,
    };

    fn sample(folder: &Path) -> PathBuf {
        let prefix = folder.join("model.ckpt");
        let mut writer = BundleWriter::create(&prefix).unwrap();
        writer
            .add("b/weights", &TensorData::from_f32(&[2, 3], &[0.0, 1.0, -2.5, f32::MIN_POSITIVE, f32::INFINITY, 6.0]))
            .unwrap();
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
        let path = index_of(prefix);
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
        let path = index_of(&prefix);
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
        assert!(
            error_of(&prefix).contains("model.ckpt.data-00000-of-00001`: the checkpoint's data file 1 of 1"),
            "{}",
            error_of(&prefix)
        );
    }

    #[test]
    fn sizes_that_no_file_holds_are_refused_without_allocating_them() {
        type Change = fn(&mut BundleEntryProto);
        let cases: [(&str, Change); 8] = [
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
        fs::write(index_of(&prefix), table.finish().unwrap()).unwrap();
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
        fs::copy(index_of(&prefix), folder.path().join("old.ckpt")).unwrap();
        assert!(at("old.ckpt").contains("old V1 format"));
        for text in ["", "model_checkpoint_path: \"model.ckpt\"\n"] {
            fs::write(folder.path().join("checkpoint"), text).unwrap();
            assert!(at("checkpoint").contains("is no checkpoint: name one by"), "{}", at("checkpoint"));
        }
        fs::remove_file(folder.path().join("checkpoint")).unwrap();
        fs::remove_file(index_of(&prefix)).unwrap();
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
