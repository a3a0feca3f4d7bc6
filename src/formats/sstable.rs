//! Sorted tables of keys and values on disk, as LevelDB lays them out and TensorFlow's checkpoint index uses them.
//!
//! A table is a run of blocks, then an index block that names each data block, then a footer of 48 bytes. Within a block a key
//! stores only what differs from the key before it. Every block ends with its compression type and a masked CRC32C.
//!
//! Source: LevelDB's `doc/table_format.md`; TensorFlow's `tensorflow/tsl/lib/io/` (the same format).

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

use super::tfrecord::mask;

/// The last eight bytes of a table, little endian.
const MAGIC: u64 = 0xdb47_7524_8b80_fb57;
/// Two block handles of up to 20 bytes, padded to 40, and the magic number.
const FOOTER: usize = 48;
/// After each block: one byte of compression type and four of checksum.
const TRAILER: usize = 5;
/// Compression types of a block.
const PLAIN: u8 = 0;
const SNAPPY: u8 = 1;
/// A full key is stored at every 16th entry (LevelDB's and TensorFlow's default).
const RESTART_INTERVAL: usize = 16;
/// TensorFlow's own block size.
const BLOCK_SIZE: usize = 256 << 10;
/// A snappy element of three bytes makes at most 64, so no honest block grows by more than this.
const SNAPPY_GROWTH: usize = 22;
/// No index of a real checkpoint comes near these; they bound what a damaged or hostile file can make us allocate.
const MAX_FILE: u64 = 256 << 20;
const MAX_KEY: usize = 1 << 16;
const MAX_KEY_BYTES: usize = 256 << 20;

/// One key and its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pair {
    /// Unique, in increasing order of its bytes.
    pub key: Vec<u8>,
    /// What the key maps to.
    pub value: Vec<u8>,
}

/// Reads a whole table, in key order, checking every block's checksum.
///
/// # Errors
/// If the file cannot be read, is not a table, is cut short, a checksum differs, or its keys are not strictly increasing.
pub fn read(path: &Path) -> Result<Vec<Pair>> {
    let table = Table::open(path)?;
    table.pairs().with_context(|| format!("`{}`", path.display()))
}

/// Whether a file ends as tables do; one of any size, of which nothing else is read.
pub fn ends_as_table(path: &Path) -> bool {
    let last = || -> std::io::Result<u64> {
        let file = File::open(path)?;
        let mut magic = [0; 8];
        file.read_exact_at(&mut magic, file.metadata()?.len().saturating_sub(8))?;
        Ok(u64::from_le_bytes(magic))
    };
    last().is_ok_and(|magic| magic == MAGIC)
}

/// Where a block lies, without its trailer.
#[derive(Debug, Clone, Copy)]
struct Handle {
    offset: u64,
    size: u64,
}

struct Table {
    file: File,
    /// Where the footer starts: no block may reach beyond it.
    end: u64,
    meta: Handle,
    index: Handle,
}

impl Table {
    fn open(path: &Path) -> Result<Self> {
        let name = path.display();
        let file = File::open(path).with_context(|| format!("cannot open `{name}`"))?;
        let stat = file.metadata().with_context(|| format!("cannot read `{name}`"))?;
        ensure!(stat.is_file(), "`{name}` is not a file");
        let length = stat.len();
        ensure!(
            length >= FOOTER as u64,
            "`{name}` is cut short: it has {length} bytes, and its footer alone takes {FOOTER}; copy it again"
        );
        ensure!(length <= MAX_FILE, "`{name}` has {length} bytes, which is too much for a checkpoint index (at most {MAX_FILE})");
        let end = length - FOOTER as u64;
        let mut footer = [0; FOOTER];
        file.read_exact_at(&mut footer, end).with_context(|| format!("cannot read the footer of `{name}`"))?;
        let mut magic = [0; 8];
        magic.copy_from_slice(&footer[FOOTER - 8..]);
        ensure!(
            u64::from_le_bytes(magic) == MAGIC,
            "`{name}` is not a table, or is cut short: its last 8 bytes are {:#018x}, not {MAGIC:#018x}; if it was copied or \
             downloaded, do that again",
            u64::from_le_bytes(magic)
        );
        let mut cursor = Cursor::new(&footer[..FOOTER - 8]);
        let handles = cursor.handle().and_then(|meta| Ok((meta, cursor.handle()?)));
        let (meta, index) = handles.with_context(|| format!("`{name}`: footer at byte {end}"))?;
        Ok(Table { file, end, meta, index })
    }

    fn pairs(&self) -> Result<Vec<Pair>> {
        // Nothing of ours is in the meta index, but a flipped bit there is still a damaged file.
        self.block(self.meta).context("meta index block")?;
        let index = self.block(self.index).context("index block")?;
        let mut pairs: Vec<Pair> = Vec::new();
        let mut key_bytes = 0;
        let mut free_from = 0; // where the next block may start: blocks lie one behind the other
        let mut entries = Entries::new(&index).context("index block")?;
        let mut previous_separator: Option<Vec<u8>> = None;
        while let Some((separator, handle)) = entries.next().context("index block")? {
            let handle = Cursor::new(handle).handle().context("index block")?;
            let block_name = || format!("block at byte {}", handle.offset);
            ensure!(handle.offset >= free_from, "{}: it overlaps the block before it, which ends at {free_from}", block_name());
            let block = self.block(handle).with_context(block_name)?;
            free_from = handle.offset + handle.size + TRAILER as u64;
            let mut inner = Entries::new(&block).with_context(block_name)?;
            while let Some((key, value)) = inner.next().with_context(block_name)? {
                let above = match pairs.last() {
                    Some(last) => last.key.as_slice() < key,
                    None => true,
                };
                let within = previous_separator.as_deref().is_none_or(|p| p < key) && key <= separator;
                ensure!(above && within, "{}: key `{}` is out of order", block_name(), key.escape_ascii());
                key_bytes += key.len();
                ensure!(key_bytes <= MAX_KEY_BYTES, "{}: the keys take more than {MAX_KEY_BYTES} bytes", block_name());
                pairs.push(Pair { key: key.to_vec(), value: value.to_vec() });
            }
            previous_separator = Some(separator.to_vec());
        }
        Ok(pairs)
    }

    /// One block, checked and unpacked.
    fn block(&self, handle: Handle) -> Result<Vec<u8>> {
        let Handle { offset, size } = handle;
        let after = offset.checked_add(size).and_then(|n| n.checked_add(TRAILER as u64));
        ensure!(
            after.is_some_and(|n| n <= self.end),
            "it would take {size} bytes from byte {offset}, beyond the footer at byte {}: the file is cut short or damaged",
            self.end
        );
        let mut bytes = vec![0; size as usize + TRAILER];
        self.file.read_exact_at(&mut bytes, offset)?;
        let trailer = bytes.split_off(size as usize);
        let kind = trailer[0];
        let stored = u32::from_le_bytes([trailer[1], trailer[2], trailer[3], trailer[4]]);
        let found = mask(crc32c::crc32c_append(crc32c::crc32c(&bytes), &[kind]));
        ensure!(
            stored == found,
            "checksum of bytes {offset} to {}: stored {stored:#010x}, found {found:#010x}: the file is damaged, copy it again",
            offset + size
        );
        match kind {
            PLAIN => Ok(bytes),
            SNAPPY => {
                let length = snap::raw::decompress_len(&bytes).context("snappy header")?;
                ensure!(
                    length <= bytes.len().saturating_mul(SNAPPY_GROWTH),
                    "{size} bytes of snappy data cannot unpack to {length}"
                );
                snap::raw::Decoder::new().decompress_vec(&bytes).context("snappy data")
            }
            _ => bail!("compression type {kind} is not known (0 is none, 1 is snappy)"),
        }
    }
}

/// Steps through one block's entries, rebuilding each key.
struct Entries<'a> {
    cursor: Cursor<'a>,
    key: Vec<u8>,
}

impl<'a> Entries<'a> {
    fn new(block: &'a [u8]) -> Result<Self> {
        // The tail: the restart points, for binary search, and their number.
        let Some((_, tail)) = block.split_last_chunk::<4>() else {
            bail!("it has {} bytes, too few for a block", block.len());
        };
        let restarts = u32::from_le_bytes(*tail) as usize;
        let tail_size = restarts.checked_add(1).and_then(|n| n.checked_mul(4));
        let Some(end) = tail_size.and_then(|n| block.len().checked_sub(n)) else {
            bail!("{restarts} restart points do not fit into its {} bytes", block.len());
        };
        Ok(Entries { cursor: Cursor::new(&block[..end]), key: Vec::new() })
    }

    fn next(&mut self) -> Result<Option<(&[u8], &'a [u8])>> {
        if self.cursor.rest.is_empty() {
            return Ok(None);
        }
        let shared = self.cursor.length()?;
        let unshared = self.cursor.length()?;
        let value = self.cursor.length()?;
        ensure!(shared <= self.key.len(), "an entry shares {shared} bytes with a key of {}", self.key.len());
        self.key.truncate(shared);
        self.key.extend_from_slice(self.cursor.take(unshared)?);
        ensure!(self.key.len() <= MAX_KEY, "a key has {} bytes (at most {MAX_KEY})", self.key.len());
        Ok(Some((&self.key, self.cursor.take(value)?)))
    }
}

/// Reads LevelDB's integers and lengths off a slice.
struct Cursor<'a> {
    rest: &'a [u8],
}

impl<'a> Cursor<'a> {
    fn new(rest: &'a [u8]) -> Self {
        Cursor { rest }
    }

    fn varint(&mut self) -> Result<u64> {
        let (value, used) = varint(self.rest).context("a number is cut short or too long")?;
        self.rest = &self.rest[used..];
        Ok(value)
    }

    fn length(&mut self) -> Result<usize> {
        let value = self.varint()?;
        Ok(u32::try_from(value).with_context(|| format!("{value} is too large for a length"))? as usize)
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8]> {
        let Some((head, rest)) = self.rest.split_at_checked(length) else {
            bail!("an entry wants {length} bytes where {} are left", self.rest.len());
        };
        self.rest = rest;
        Ok(head)
    }

    fn handle(&mut self) -> Result<Handle> {
        Ok(Handle { offset: self.varint()?, size: self.varint()? })
    }
}

/// A base-128 number at the head of `bytes`, and how many bytes it takes.
pub fn varint(bytes: &[u8]) -> Option<(u64, usize)> {
    let mut value: u64 = 0;
    for (i, &byte) in bytes.iter().enumerate().take(10) {
        let bits = u64::from(byte & 0x7f);
        if i == 9 && bits > 1 {
            return None;
        }
        value |= bits << (7 * i);
        if byte < 0x80 {
            return Some((value, i + 1));
        }
    }
    None
}

/// Appends a base-128 number.
pub fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Writes a table, uncompressed, from pairs in strictly increasing key order.
pub struct Writer<W: Write> {
    out: W,
    written: u64,
    block: BlockBuilder,
    index: BlockBuilder,
    block_size: usize,
}

impl<W: Write> Writer<W> {
    /// A table that goes to `out`, in blocks of TensorFlow's size.
    pub fn new(out: W) -> Self {
        Self::with_block_size(out, BLOCK_SIZE)
    }

    /// The same, a block ending at the first entry that fills `block_size` bytes.
    pub fn with_block_size(out: W, block_size: usize) -> Self {
        Writer { out, written: 0, block: BlockBuilder::new(RESTART_INTERVAL), index: BlockBuilder::new(1), block_size }
    }

    /// Appends one pair.
    ///
    /// # Errors
    /// If `key` is not above the key before it, is too long, or writing fails.
    pub fn add(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        let first = self.block.entries == 0 && self.index.entries == 0;
        let last = if self.block.entries == 0 { &self.index.last_key } else { &self.block.last_key };
        ensure!(first || last.as_slice() < key, "key `{}` is not above `{}`", key.escape_ascii(), last.escape_ascii());
        ensure!(key.len() <= MAX_KEY, "a key has {} bytes (at most {MAX_KEY})", key.len());
        self.block.add(key, value);
        if self.block.bytes.len() >= self.block_size {
            self.end_block()?;
        }
        Ok(())
    }

    /// Writes what is left, the index and the footer, and gives the output back.
    pub fn finish(mut self) -> Result<W> {
        if self.block.entries > 0 {
            self.end_block()?;
        }
        let meta = self.write_block(BlockBuilder::new(1).finish())?;
        let index = std::mem::replace(&mut self.index, BlockBuilder::new(1)).finish();
        let index = self.write_block(index)?;
        let mut footer = Vec::with_capacity(FOOTER);
        put_handle(&mut footer, meta);
        put_handle(&mut footer, index);
        footer.resize(FOOTER - 8, 0);
        footer.extend_from_slice(&MAGIC.to_le_bytes());
        self.out.write_all(&footer)?;
        Ok(self.out)
    }

    fn end_block(&mut self) -> Result<()> {
        let block = std::mem::replace(&mut self.block, BlockBuilder::new(RESTART_INTERVAL));
        // LevelDB would write a shorter separator; the block's own last key is one too.
        let separator = block.last_key.clone();
        let handle = self.write_block(block.finish())?;
        let mut value = Vec::new();
        put_handle(&mut value, handle);
        self.index.add(&separator, &value);
        Ok(())
    }

    fn write_block(&mut self, contents: Vec<u8>) -> Result<Handle> {
        let handle = Handle { offset: self.written, size: contents.len() as u64 };
        let stored = stored_block(contents, PLAIN);
        self.out.write_all(&stored)?;
        self.written += stored.len() as u64;
        Ok(handle)
    }
}

fn put_handle(out: &mut Vec<u8>, handle: Handle) {
    put_varint(out, handle.offset);
    put_varint(out, handle.size);
}

/// A block's contents with its trailer.
fn stored_block(mut contents: Vec<u8>, kind: u8) -> Vec<u8> {
    contents.push(kind);
    let crc = mask(crc32c::crc32c(&contents));
    contents.extend_from_slice(&crc.to_le_bytes());
    contents
}

struct BlockBuilder {
    bytes: Vec<u8>,
    restarts: Vec<u32>,
    entries: usize,
    interval: usize,
    last_key: Vec<u8>,
}

impl BlockBuilder {
    fn new(interval: usize) -> Self {
        BlockBuilder { bytes: Vec::new(), restarts: vec![0], entries: 0, interval, last_key: Vec::new() }
    }

    fn add(&mut self, key: &[u8], value: &[u8]) {
        let mut shared = 0;
        if !self.entries.is_multiple_of(self.interval) {
            shared = self.last_key.iter().zip(key).take_while(|(a, b)| a == b).count();
        } else if self.entries > 0 {
            self.restarts.push(self.bytes.len() as u32);
        }
        put_varint(&mut self.bytes, shared as u64);
        put_varint(&mut self.bytes, (key.len() - shared) as u64);
        put_varint(&mut self.bytes, value.len() as u64);
        self.bytes.extend_from_slice(&key[shared..]);
        self.bytes.extend_from_slice(value);
        self.last_key = key.to_vec();
        self.entries += 1;
    }

    fn finish(mut self) -> Vec<u8> {
        for restart in &self.restarts {
            self.bytes.extend_from_slice(&restart.to_le_bytes());
        }
        self.bytes.extend_from_slice(&(self.restarts.len() as u32).to_le_bytes());
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    fn sample(n: usize) -> Vec<Pair> {
        (0..n).map(|i| Pair { key: format!("scope/layer_{i:05}/weights").into_bytes(), value: vec![i as u8; i % 40] }).collect()
    }

    fn table(pairs: &[Pair], block_size: usize) -> Vec<u8> {
        let mut writer = Writer::with_block_size(Vec::new(), block_size);
        for pair in pairs {
            writer.add(&pair.key, &pair.value).unwrap();
        }
        writer.finish().unwrap()
    }

    fn read_bytes(bytes: &[u8]) -> Result<Vec<Pair>> {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), bytes).unwrap();
        read(file.path())
    }

    #[test]
    fn a_table_reads_back_as_written_in_one_block_and_in_many() {
        for n in [0, 1, 15, 16, 17, 300] {
            for block_size in [1, 100, 4096, BLOCK_SIZE] {
                let pairs = sample(n);
                assert_eq!(read_bytes(&table(&pairs, block_size)).unwrap(), pairs, "{n} pairs in blocks of {block_size}");
            }
        }
    }

    #[test]
    fn the_empty_key_comes_first_and_keys_may_hold_any_bytes() {
        let mut keys: Vec<Vec<u8>> = vec![vec![], vec![0], vec![0, 255], "가중치".into(), vec![255, 255]];
        keys.sort();
        let pairs: Vec<Pair> = keys.into_iter().map(|key| Pair { value: key.clone(), key }).collect();
        assert_eq!(read_bytes(&table(&pairs, 8)).unwrap(), pairs);
    }

    #[test]
    fn a_snappy_block_is_unpacked() {
        let pairs = sample(50);
        let mut block = BlockBuilder::new(RESTART_INTERVAL);
        for pair in &pairs {
            block.add(&pair.key, &pair.value);
        }
        let packed = snap::raw::Encoder::new().compress_vec(&block.finish()).unwrap();
        let data = Handle { offset: 0, size: packed.len() as u64 };
        let mut file = stored_block(packed, SNAPPY);
        let mut index = BlockBuilder::new(1);
        let mut value = Vec::new();
        put_handle(&mut value, data);
        index.add(b"z", &value);
        let mut handles = Vec::new();
        for block in [BlockBuilder::new(1), index] {
            let contents = block.finish();
            put_handle(&mut handles, Handle { offset: file.len() as u64, size: contents.len() as u64 });
            file.extend(stored_block(contents, PLAIN));
        }
        handles.resize(FOOTER - 8, 0);
        file.extend(handles);
        file.extend(MAGIC.to_le_bytes());
        assert_eq!(read_bytes(&file).unwrap(), pairs);
    }

    #[test]
    fn refuses_keys_out_of_order_when_writing() {
        let mut writer = Writer::with_block_size(Vec::new(), 1);
        writer.add(b"b", b"").unwrap();
        let error = writer.add(b"a", b"").unwrap_err().to_string();
        assert_eq!(error, "key `a` is not above `b`");
        assert!(writer.add(b"b", b"").is_err(), "a key twice");
    }

    #[test]
    fn every_flipped_byte_is_an_error_or_changes_nothing() {
        let pairs = sample(12);
        let good = table(&pairs, 128);
        let mut unnoticed = 0;
        for at in 0..good.len() {
            for flip in [0x01, 0x80, 0xff] {
                let mut bad = good.clone();
                bad[at] ^= flip;
                match read_bytes(&bad) {
                    Ok(found) => {
                        assert_eq!(found, pairs, "byte {at} ^ {flip:#x}");
                        unnoticed += 1;
                    }
                    Err(error) => assert!(!format!("{error:#}").is_empty()),
                }
            }
        }
        // Only the footer's padding carries nothing.
        assert!(unnoticed <= 3 * FOOTER, "{unnoticed} flips went unnoticed");
    }

    #[test]
    fn every_truncation_is_an_error() {
        let good = table(&sample(12), 128);
        for length in 0..good.len() {
            assert!(read_bytes(&good[..length]).is_err(), "{length} of {} bytes", good.len());
        }
    }

    /// Blocks of `file`, which was written with `Writer`, as ranges without their trailers.
    fn blocks(file: &[u8]) -> Vec<std::ops::Range<usize>> {
        let footer = &file[file.len() - FOOTER..];
        let mut cursor = Cursor::new(footer);
        let handles = [cursor.handle().unwrap(), cursor.handle().unwrap()];
        let mut all: Vec<Handle> = handles.to_vec();
        let index = file[handles[1].offset as usize..][..handles[1].size as usize].to_vec();
        let mut entries = Entries::new(&index).unwrap();
        while let Some((_, value)) = entries.next().unwrap() {
            all.push(Cursor::new(value).handle().unwrap());
        }
        all.iter().map(|handle| handle.offset as usize..(handle.offset + handle.size) as usize).collect()
    }

    #[test]
    fn nonsense_under_a_right_checksum_is_an_error_or_a_table_and_never_a_panic() {
        let good = table(&sample(40), 256);
        let blocks = blocks(&good);
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let mut errors = 0;
        for _ in 0..3000 {
            let mut bad = good.clone();
            for _ in 0..rng.random_range(1..4) {
                let block = blocks[rng.random_range(0..blocks.len())].clone();
                bad[rng.random_range(block.clone())] = [0, 1, 0x7f, 0x80, 0xff, rng.random()][rng.random_range(0..6)];
                if rng.random_bool(0.1) {
                    bad[block.end] = SNAPPY;
                }
                let crc = mask(crc32c::crc32c(&bad[block.start..=block.end]));
                bad[block.end + 1..block.end + TRAILER].copy_from_slice(&crc.to_le_bytes());
            }
            match read_bytes(&bad) {
                Ok(pairs) => assert!(pairs.is_sorted_by(|a, b| a.key < b.key)),
                Err(_) => errors += 1,
            }
        }
        assert!(errors > 1000, "only {errors} of 3000 were errors");
    }

    #[test]
    fn a_checksum_error_names_the_file_and_the_block() {
        let mut bytes = table(&sample(40), 256);
        bytes[300] ^= 1;
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), &bytes).unwrap();
        let error = format!("{:#}", read(file.path()).unwrap_err());
        assert!(error.contains(&file.path().display().to_string()), "{error}");
        assert!(error.contains("block at byte 2") && error.contains("checksum"), "{error}");
    }

    #[test]
    fn a_snappy_block_that_claims_four_gigabytes_is_refused_before_it_is_allocated() {
        let mut packed = Vec::new();
        put_varint(&mut packed, u32::MAX.into());
        packed.extend([0; 20]);
        let size = packed.len() as u64;
        let mut file = stored_block(packed, SNAPPY);
        let mut footer = Vec::new();
        put_handle(&mut footer, Handle { offset: 0, size });
        put_handle(&mut footer, Handle { offset: 0, size });
        footer.resize(FOOTER - 8, 0);
        file.extend(footer);
        file.extend(MAGIC.to_le_bytes());
        let error = format!("{:#}", read_bytes(&file).unwrap_err());
        assert!(error.contains("cannot unpack to 4294967295"), "{error}");
    }

    #[test]
    fn varints_round_trip_and_overlong_ones_are_refused() {
        for value in [0, 1, 127, 128, 300, u64::from(u32::MAX), u64::MAX] {
            let mut bytes = Vec::new();
            put_varint(&mut bytes, value);
            assert_eq!(varint(&bytes), Some((value, bytes.len())));
            assert_eq!(varint(&bytes[..bytes.len() - 1]), None);
        }
        assert_eq!(varint(&[0xff; 10]), None);
    }
}
