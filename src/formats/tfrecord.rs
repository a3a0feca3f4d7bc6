//! TFRecord files: length-framed records with masked CRC32C, whole or in shards, read in order or by position.
//!
//! One record is `u64 length, u32 crc(length), bytes, u32 crc(bytes)`, little endian.
//! Source: tensorflow/core/lib/io/record_writer.cc, tensorflow/core/lib/hash/crc32c.h.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, IoSlice, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

/// What to do about a file that is not whole.
const REMEDY: &str = "copy it again, or make it anew with `odh tfgen`";
/// Bytes before a record's data: its length and the length's checksum.
const HEADER: u64 = 12;
/// Bytes after a record's data: its checksum.
const FOOTER: u64 = 4;
/// `kMaskDelta` of crc32c.h.
const MASK_DELTA: u32 = 0xa282_ead8;

/// CRC32C, rotated and offset so that a checksum of data that holds checksums stays useful.
pub fn masked_crc32c(bytes: &[u8]) -> u32 {
    mask(crc32c::crc32c(bytes))
}

/// The mask alone, for a CRC32C made piece by piece.
pub fn mask(crc: u32) -> u32 {
    crc.rotate_right(15).wrapping_add(MASK_DELTA)
}

/// Writes records one after another. Nothing is buffered here: hand in a `BufWriter`.
#[derive(Debug)]
pub struct Writer<W: Write> {
    inner: W,
}

impl<W: Write> Writer<W> {
    /// A writer at the present position of `inner`.
    pub fn new(inner: W) -> Self {
        Self { inner }
    }

    /// Appends one record.
    ///
    /// # Errors
    /// Those of the underlying writer.
    pub fn write(&mut self, record: &[u8]) -> io::Result<()> {
        self.write_parts(&[record])
    }

    /// Appends one record made of `parts`, without joining them in memory first.
    ///
    /// # Errors
    /// Those of the underlying writer.
    pub fn write_parts(&mut self, parts: &[&[u8]]) -> io::Result<()> {
        self.write_framed(&Frame::of(parts), parts)
    }

    /// Appends one record whose frame was made before, perhaps on another thread.
    ///
    /// # Errors
    /// Those of the underlying writer.
    pub fn write_framed(&mut self, frame: &Frame, parts: &[&[u8]]) -> io::Result<()> {
        let mut slices: Vec<IoSlice> = Vec::with_capacity(parts.len() + 2);
        slices.push(IoSlice::new(&frame.header));
        slices.extend(parts.iter().map(|part| IoSlice::new(part)));
        slices.push(IoSlice::new(&frame.footer));
        let mut left = slices.as_mut_slice();
        // All in one call where that can be; also takes away parts that are empty.
        IoSlice::advance_slices(&mut left, 0);
        while !left.is_empty() {
            match self.inner.write_vectored(left) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => IoSlice::advance_slices(&mut left, written),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Hands everything on to where it goes.
    ///
    /// # Errors
    /// Those of the underlying writer.
    pub fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }

    /// Flushes and gives the underlying writer back.
    ///
    /// # Errors
    /// Those of the underlying writer.
    pub fn finish(mut self) -> io::Result<W> {
        self.inner.flush()?;
        Ok(self.inner)
    }
}

/// What stands around one record's data.
#[derive(Debug, Clone, Copy)]
pub struct Frame {
    header: [u8; HEADER as usize],
    footer: [u8; FOOTER as usize],
}

impl Frame {
    /// The frame of a record made of `parts`.
    pub fn of(parts: &[&[u8]]) -> Self {
        let length = parts.iter().map(|part| part.len() as u64).sum::<u64>().to_le_bytes();
        let mut header = [0; HEADER as usize];
        header[..8].copy_from_slice(&length);
        header[8..].copy_from_slice(&masked_crc32c(&length).to_le_bytes());
        let crc = parts.iter().fold(0, |crc, part| crc32c::crc32c_append(crc, part));
        Self { header, footer: mask(crc).to_le_bytes() }
    }
}

/// Reads records in order; every checksum is checked. After an error the iterator ends.
#[derive(Debug)]
pub struct Reader<R: Read> {
    inner: R,
    name: String,
    record: usize,
    done: bool,
}

impl Reader<BufReader<File>> {
    /// Opens a file.
    ///
    /// # Errors
    /// If it cannot be opened.
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).with_context(|| format!("`{}`: cannot be opened", path.display()))?;
        Ok(Self::new(BufReader::with_capacity(1 << 18, file), &path.display().to_string()))
    }
}

impl<R: Read> Reader<R> {
    /// Reads from `inner`; `name` is what errors call it.
    pub fn new(inner: R, name: &str) -> Self {
        Self { inner, name: name.to_string(), record: 0, done: false }
    }

    fn next_record(&mut self) -> Result<Option<Vec<u8>>> {
        let mut header = Vec::with_capacity(HEADER as usize);
        self.inner.by_ref().take(HEADER).read_to_end(&mut header)?;
        if header.is_empty() {
            return Ok(None);
        }
        ensure!(header.len() as u64 == HEADER, "ends inside a record's header");
        let length = parse_header(&header)?;
        // `take` grows with what is really there, so a length past the end costs no memory.
        let mut data = Vec::new();
        self.inner.by_ref().take(length.saturating_add(FOOTER)).read_to_end(&mut data)?;
        ensure!(data.len() as u64 == length.saturating_add(FOOTER), "ends inside a record of {length} bytes");
        check_data(data).map(Some)
    }
}

impl<R: Read> Iterator for Reader<R> {
    type Item = Result<Vec<u8>>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        let item = self.next_record().with_context(|| format!("`{}`: record {} is damaged; {REMEDY}", self.name, self.record));
        self.record += 1;
        self.done = !matches!(item, Ok(Some(_)));
        item.transpose()
    }
}

/// Where one record's data lies in its file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// Of the data's first byte, from the start of the file.
    pub offset: u64,
    /// Of the data, in bytes.
    pub len: u64,
}

/// Finds every record of a file, reading only the headers; the checksum of every length is checked, that of the
/// data by [`read_at`].
///
/// # Errors
/// If the file cannot be read, a length's checksum is wrong, or the file ends inside a record.
pub fn index(path: &Path) -> Result<Vec<Span>> {
    let name = path.display();
    let file = File::open(path).with_context(|| format!("`{name}`: cannot be opened"))?;
    let end = file.metadata().with_context(|| format!("`{name}`: cannot be read"))?.len();
    let mut spans = Vec::new();
    let mut position = 0;
    let mut header = [0; HEADER as usize];
    while position < end {
        let damaged = || format!("`{name}`: record {} at byte {position} is damaged; {REMEDY}", spans.len());
        ensure!(end - position >= HEADER, "{}: the file ends inside its header", damaged());
        file.read_exact_at(&mut header, position).with_context(damaged)?;
        let len = parse_header(&header).with_context(damaged)?;
        let offset = position + HEADER;
        // Compared this way round because `offset + len` could overflow.
        ensure!(
            len.checked_add(FOOTER).is_some_and(|need| need <= end - offset),
            "{}: it should hold {len} bytes and the file ends after {}",
            damaged(),
            end - offset
        );
        spans.push(Span { offset, len });
        position = offset + len + FOOTER;
    }
    Ok(spans)
}

/// Reads one record that [`index`] found, and checks its data's checksum. Takes no seek, so threads may share `file`.
///
/// # Errors
/// If it cannot be read or its checksum is wrong.
pub fn read_at(file: &File, span: Span) -> Result<Vec<u8>> {
    let damaged = || format!("the record at byte {} is damaged; {REMEDY}", span.offset - HEADER);
    let mut data = vec![0; usize::try_from(span.len + FOOTER)?];
    file.read_exact_at(&mut data, span.offset).with_context(damaged)?;
    check_data(data).with_context(damaged)
}

/// The name of shard `shard` of `shards`: `train.record-00000-of-00004`.
pub fn shard_path(path: &Path, shard: usize, shards: usize) -> PathBuf {
    let mut name = path.as_os_str().to_os_string();
    name.push(format!("-{shard:05}-of-{shards:05}"));
    PathBuf::from(name)
}

/// The files that `path` stands for: itself, its shards (`path-?????-of-?????`), or what it matches as a glob, in order.
///
/// # Errors
/// If there is none, if a shard is missing, or if sets with different numbers of shards lie side by side.
pub fn resolve(path: &Path) -> Result<Vec<PathBuf>> {
    if path.is_file() {
        return Ok(vec![path.to_path_buf()]);
    }
    let text = path.to_str().with_context(|| format!("`{}`: the path is not UTF-8", path.display()))?;
    let mut found = matches_of(&format!("{}-?????-of-?????", glob::Pattern::escape(text)))?;
    if found.is_empty() && text.contains(['*', '?', '[']) {
        found = matches_of(text)?;
    }
    ensure!(!found.is_empty(), "`{text}`: no such record file, and no shards `{text}-?????-of-?????`; make it with `odh tfgen`");
    check_shards(&found)?;
    Ok(found)
}

fn matches_of(pattern: &str) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in glob::glob(pattern).with_context(|| format!("`{pattern}` is not a valid glob"))? {
        let path = entry.with_context(|| format!("`{pattern}`: cannot be searched"))?;
        if path.is_file() {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// A set of shards with a gap would silently train on part of the data.
fn check_shards(found: &[PathBuf]) -> Result<()> {
    let mut sets: BTreeMap<String, (Vec<usize>, Vec<usize>)> = BTreeMap::new();
    for path in found {
        let name = path.to_string_lossy();
        let Some((rest, of)) = name.rsplit_once("-of-") else { continue };
        let Some((stem, shard)) = rest.rsplit_once('-') else { continue };
        if let (Ok(shard), Ok(of)) = (shard.parse(), of.parse()) {
            let set = sets.entry(stem.to_string()).or_default();
            set.0.push(shard);
            set.1.push(of);
        }
    }
    for (stem, (shards, of)) in sets {
        let total = of[0];
        ensure!(
            of.iter().all(|&n| n == total),
            "`{stem}`: shards of sets with different counts lie side by side; remove the old ones"
        );
        if let Some(missing) = (0..total).find(|n| !shards.contains(n)) {
            bail!("`{}`: this shard is missing; {REMEDY}", shard_path(Path::new(&stem), missing, total).display());
        }
    }
    Ok(())
}

/// The length in a 12-byte header, whose checksum must fit.
fn parse_header(header: &[u8]) -> Result<u64> {
    let (length, crc) = header.split_at(8);
    let stored = u32::from_le_bytes(crc.try_into()?);
    ensure!(masked_crc32c(length) == stored, "the checksum of its length is wrong (not a TFRecord file, or corrupt)");
    Ok(u64::from_le_bytes(length.try_into()?))
}

/// Splits the checksum off the end of `data` and checks it.
fn check_data(mut data: Vec<u8>) -> Result<Vec<u8>> {
    let at = data.len() - FOOTER as usize;
    let stored = u32::from_le_bytes(data[at..].try_into()?);
    data.truncate(at);
    ensure!(masked_crc32c(&data) == stored, "the checksum of its data is wrong (corrupt)");
    Ok(data)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(records: &[&[u8]]) -> Vec<u8> {
        let mut writer = Writer::new(Vec::new());
        for record in records {
            writer.write(record).unwrap();
        }
        writer.finish().unwrap()
    }

    fn read(bytes: &[u8]) -> Result<Vec<Vec<u8>>> {
        Reader::new(bytes, "test.record").collect()
    }

    #[test]
    fn masks_the_checksum_of_an_empty_record_as_tensorflow_does() {
        // crc32c of nothing is 0, so the mask's constant stands alone; the length's checksum is TensorFlow's own.
        let bytes = written(&[b""]);
        assert_eq!(bytes[..8], [0; 8]);
        assert_eq!(bytes[8..12], [0x29, 0x03, 0x98, 0x07]);
        assert_eq!(bytes[12..], MASK_DELTA.to_le_bytes());
    }

    #[test]
    fn gives_back_what_was_written_in_order_and_by_position() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.record");
        let records: [&[u8]; 3] = [b"one", b"", b"three"];
        std::fs::write(&path, written(&records)).unwrap();
        let all: Result<Vec<_>> = Reader::open(&path).unwrap().collect();
        assert_eq!(all.unwrap(), records);
        let file = File::open(&path).unwrap();
        let spans = index(&path).unwrap();
        assert_eq!(spans[2], Span { offset: 12 + 3 + 4 + 12 + 4 + 12, len: 5 });
        for (span, record) in spans.iter().zip(records) {
            assert_eq!(read_at(&file, *span).unwrap(), record);
        }
    }

    #[test]
    fn a_record_in_parts_has_the_bytes_of_one_in_one_piece() {
        let mut writer = Writer::new(Vec::new());
        writer.write_parts(&[b"ab", b"", b"cde"]).unwrap();
        assert_eq!(writer.finish().unwrap(), written(&[b"abcde"]));
    }

    /// Takes a few bytes at a time.
    struct Narrow(Vec<u8>);

    impl Write for Narrow {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let taken = bytes.len().min(3);
            self.0.extend(&bytes[..taken]);
            Ok(taken)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_writer_that_takes_a_few_bytes_at_a_time_gets_all() {
        let mut writer = Writer::new(Narrow(Vec::new()));
        writer.write_parts(&[b"", b"hello ", b"", b"world"]).unwrap();
        assert_eq!(writer.finish().unwrap().0, written(&[b"hello world"]));
    }

    #[test]
    fn finds_every_flipped_byte() {
        let good = written(&[b"hello", b"world"]);
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0x40;
            assert!(read(&bad).is_err(), "byte {at}");
        }
    }

    #[test]
    fn finds_every_truncation() {
        let good = written(&[b"hello", b"world"]);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.record");
        for end in (1..good.len()).filter(|&end| end != good.len() / 2) {
            assert!(read(&good[..end]).is_err(), "{end} bytes");
            std::fs::write(&path, &good[..end]).unwrap();
            assert!(index(&path).is_err(), "{end} bytes");
        }
    }

    #[test]
    fn a_huge_length_with_a_right_checksum_is_an_error_not_an_allocation() {
        let length = (u64::MAX - 1).to_le_bytes();
        let mut bytes = length.to_vec();
        bytes.extend(masked_crc32c(&length).to_le_bytes());
        assert!(format!("{:#}", read(&bytes).unwrap_err()).contains("record 0"));
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.record");
        std::fs::write(&path, &bytes).unwrap();
        assert!(index(&path).is_err());
    }

    #[test]
    fn shards_are_found_in_order_and_a_missing_one_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tr[a]in.record");
        assert!(resolve(&path).is_err());
        for shard in [2, 0, 1] {
            std::fs::write(shard_path(&path, shard, 3), written(&[])).unwrap();
        }
        let wanted: Vec<_> = (0..3).map(|shard| shard_path(&path, shard, 3)).collect();
        assert_eq!(resolve(&path).unwrap(), wanted);
        std::fs::remove_file(&wanted[1]).unwrap();
        assert!(format!("{:#}", resolve(&path).unwrap_err()).contains("-00001-of-00003"));
        std::fs::write(&path, written(&[])).unwrap();
        assert_eq!(resolve(&path).unwrap(), [path]);
    }

    #[test]
    fn an_empty_file_holds_no_records() {
        assert_eq!(read(b"").unwrap(), Vec::<Vec<u8>>::new());
    }
}
