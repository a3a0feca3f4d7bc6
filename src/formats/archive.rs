//! Unpacks `.tar.gz` archives that come from somewhere else, into one folder and never outside it.

use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::path::{Component, Path, PathBuf};

use anyhow::{Result, anyhow, bail};
use flate2::read::MultiGzDecoder;
use tar::{Archive, EntryType};

/// The largest model of the zoo unpacks to about 2.5 GB; beyond this it is not a model.
const MAX_UNPACKED: u64 = 32 << 30;
/// A model has about ten files.
const MAX_ENTRIES: usize = 100_000;
const CHUNK: usize = 1 << 16;

/// Why an archive could not be unpacked.
#[derive(Debug)]
pub enum Failure {
    /// The archive is cut short, corrupt, or not an archive: getting it again may help.
    Damaged(anyhow::Error),
    /// It holds something that is not for us to unpack.
    Refused(anyhow::Error),
    /// The archive is not at fault (the disk is full, a folder cannot be written).
    Local(anyhow::Error),
}

/// Unpacks the `.tar.gz` file `archive` into `folder`, which exists, calling `progress` with the compressed bytes read so far.
///
/// Only plain files and folders are taken. The whole stream is read to its end, so that gzip's checksum is checked.
///
/// # Errors
/// For a damaged archive; a path that is absolute or has `..`; a link or device; a full disk. What was unpacked until then stays.
pub fn unpack_tar_gz(archive: &Path, folder: &Path, progress: impl Fn(u64)) -> Result<(), Failure> {
    let name = archive.display();
    let file = File::open(archive).map_err(|error| Failure::Local(anyhow!(error).context(format!("cannot open `{name}`"))))?;
    let mut tar = Archive::new(MultiGzDecoder::new(Counting { inner: file, read: 0, progress }));
    let damaged = |error: std::io::Error| Failure::Damaged(anyhow!(error));
    let mut left = MAX_UNPACKED;
    for (i, entry) in tar.entries().map_err(damaged)?.enumerate() {
        let mut entry = entry.map_err(damaged)?;
        if i >= MAX_ENTRIES || entry.size() > left {
            return Err(Failure::Refused(anyhow!("it unpacks to more than any model (at most {MAX_UNPACKED} bytes)")));
        }
        left -= entry.size();
        let kind = entry.header().entry_type();
        if matches!(kind, EntryType::XGlobalHeader) {
            continue;
        }
        let path = entry.path().map_err(damaged)?.into_owned();
        let inside = safe_path(&path, kind).map_err(Failure::Refused)?;
        if inside.as_os_str().is_empty() {
            continue; // "./" itself
        }
        let target = folder.join(inside);
        if kind == EntryType::Directory {
            fs::create_dir_all(&target).map_err(|error| local(error, &target))?;
            continue;
        }
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent).map_err(|error| local(error, parent))?;
        }
        let size = entry.size();
        write_file(&mut entry, size, &target)?;
    }
    // The tar ends before the gzip stream does: its checksum comes last.
    let mut rest = tar.into_inner();
    let mut buffer = [0; CHUNK];
    loop {
        match rest.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(n) if n as u64 <= left => left -= n as u64,
            Ok(_) => return Err(Failure::Refused(anyhow!("it unpacks to more than any model (at most {MAX_UNPACKED} bytes)"))),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(damaged(error)),
        }
    }
}

/// The path below the folder, if the entry is one we take.
fn safe_path(path: &Path, kind: EntryType) -> Result<PathBuf> {
    let name = path.display();
    match kind {
        EntryType::Regular | EntryType::Continuous | EntryType::Directory => {}
        EntryType::Symlink | EntryType::Link => bail!("it holds a link, `{name}`, and links are not unpacked"),
        EntryType::Char | EntryType::Block | EntryType::Fifo => {
            bail!("it holds a device, `{name}`, and devices are not unpacked")
        }
        other => bail!("it holds `{name}`, an entry of the unknown kind {other:?}"),
    }
    let mut inside = PathBuf::new();
    for component in path.components() {
        match component {
            Component::Normal(part) => inside.push(part),
            Component::CurDir => {}
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => {
                bail!("it holds the path `{name}`, which leads out of its folder")
            }
        }
    }
    if inside.as_os_str().is_empty() && kind != EntryType::Directory {
        bail!("it holds a file without a name");
    }
    Ok(inside)
}

fn write_file(entry: &mut impl Read, size: u64, target: &Path) -> Result<(), Failure> {
    // Two entries of one name would let the second replace what the first put there.
    let mut file = match File::create_new(target) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            return Err(Failure::Refused(anyhow!("it holds `{}` twice", target.file_name().unwrap_or_default().display())));
        }
        Err(error) => return Err(local(error, target)),
    };
    let mut buffer = [0; CHUNK];
    let mut written = 0;
    loop {
        match entry.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => {
                file.write_all(&buffer[..n]).map_err(|error| local(error, target))?;
                written += n as u64;
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(Failure::Damaged(anyhow!(error))),
        }
    }
    if written != size {
        let name = target.file_name().unwrap_or_default().display();
        return Err(Failure::Damaged(anyhow!("it ends within `{name}`, after {written} of {size} bytes")));
    }
    file.sync_all().map_err(|error| local(error, target))
}

/// That a file of the archive cannot be written: for its name, which is the archive's fault, or for the place.
fn local(error: std::io::Error, path: &Path) -> Failure {
    use ErrorKind::{AlreadyExists, InvalidFilename, InvalidInput, NotADirectory};
    let name = matches!(error.kind(), AlreadyExists | InvalidFilename | InvalidInput | NotADirectory);
    let failed = anyhow!(error).context(format!("cannot write `{}`", path.display()));
    if name { Failure::Refused(failed) } else { Failure::Local(failed) }
}

/// Tells how much of the compressed file has been read.
struct Counting<R, P> {
    inner: R,
    read: u64,
    progress: P,
}

impl<R: Read, P: Fn(u64)> Read for Counting<R, P> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.read += n as u64;
        (self.progress)(self.read);
        Ok(n)
    }
}

/// Makes `.tar.gz` bytes of plain files, for tests.
///
/// # Errors
/// Those of the tar writer, for a path that it cannot hold.
#[cfg(test)]
pub fn tar_gz(files: &[(&str, &[u8])]) -> Result<Vec<u8>> {
    let mut tar = tar::Builder::new(flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast()));
    for (path, bytes) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, path, *bytes)?;
    }
    Ok(tar.into_inner()?.finish()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unpack(bytes: &[u8]) -> (tempfile::TempDir, Result<(), Failure>) {
        let folder = tempfile::tempdir().unwrap();
        let archive = folder.path().join("a.tar.gz");
        fs::write(&archive, bytes).unwrap();
        let inside = folder.path().join("inside");
        fs::create_dir(&inside).unwrap();
        let result = unpack_tar_gz(&archive, &inside, |_| {});
        (folder, result)
    }

    /// A tar entry with its path written raw, which the builder would refuse.
    fn raw(path: &str, kind: EntryType, contents: &[u8]) -> Vec<u8> {
        let mut header = tar::Header::new_gnu();
        header.as_gnu_mut().unwrap().name[..path.len()].copy_from_slice(path.as_bytes());
        header.set_entry_type(kind);
        header.set_size(contents.len() as u64);
        header.set_mode(0o644);
        if kind.is_symlink() || kind.is_hard_link() {
            header.set_link_name("/etc/passwd").unwrap();
        }
        header.set_cksum();
        let mut tar = tar::Builder::new(flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast()));
        tar.append(&header, contents).unwrap();
        tar.into_inner().unwrap().finish().unwrap()
    }

    fn message(failure: &Failure) -> String {
        let (Failure::Damaged(error) | Failure::Refused(error) | Failure::Local(error)) = failure;
        format!("{error:#}")
    }

    #[test]
    fn files_and_folders_come_out_as_they_went_in() {
        let long = format!("m/{}/{}", "d".repeat(90), "f".repeat(90)); // beyond the 100 bytes of the plain header
        let (folder, result) = unpack(&tar_gz(&[("m/a", b"1"), ("./m/b/c", &[7; 100_000]), (&long, b"x")]).unwrap());
        result.unwrap();
        let inside = folder.path().join("inside");
        assert_eq!(fs::read(inside.join("m/a")).unwrap(), b"1");
        assert_eq!(fs::read(inside.join("m/b/c")).unwrap(), [7; 100_000]);
        assert_eq!(fs::read(inside.join(long)).unwrap(), b"x");
    }

    #[test]
    fn paths_that_lead_out_links_and_devices_are_refused() {
        for (path, kind, wanted) in [
            ("../evil", EntryType::Regular, "leads out of its folder"),
            ("m/../../evil", EntryType::Regular, "leads out of its folder"),
            ("/evil", EntryType::Regular, "leads out of its folder"),
            ("../evil", EntryType::Directory, "leads out of its folder"),
            ("m", EntryType::Symlink, "links are not unpacked"),
            ("m", EntryType::Link, "links are not unpacked"),
            ("m", EntryType::Char, "devices are not unpacked"),
            ("m", EntryType::Fifo, "devices are not unpacked"),
        ] {
            let (folder, result) = unpack(&raw(path, kind, b""));
            let failure = result.unwrap_err();
            assert!(matches!(failure, Failure::Refused(_)) && message(&failure).contains(wanted), "{path}: {failure:?}");
            assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2, "{path}: nothing but the archive and its folder");
            assert!(!Path::new("/evil").exists());
        }
    }

    #[test]
    fn the_same_file_twice_is_refused() {
        let (_folder, result) = unpack(&tar_gz(&[("m/a", b"1"), ("m/a", b"2")]).unwrap());
        assert_eq!(message(&result.unwrap_err()), "it holds `a` twice");
    }

    #[test]
    fn names_that_no_folder_can_have_are_the_archives_fault() {
        let long = format!("m/{}", "x".repeat(300));
        for files in [&[(long.as_str(), &b"1"[..])][..], &[("m", b"1"), ("m/a", b"2")], &[("m/a/b", b"1"), ("m/a", b"2")]] {
            let (_folder, result) = unpack(&tar_gz(files).unwrap());
            assert!(matches!(result, Err(Failure::Refused(_))), "{result:?}");
        }
    }

    #[test]
    fn every_truncation_is_noticed_and_a_flipped_byte_anywhere_never_changes_the_contents() {
        let contents: Vec<u8> = (0..1000u32).map(|i| (i * i % 251) as u8).collect();
        let good = tar_gz(&[("m/a", &contents), ("m/b", b"2")]).unwrap();
        for length in 0..good.len() {
            let (_folder, result) = unpack(&good[..length]);
            assert!(matches!(result, Err(Failure::Damaged(_))), "{length} of {} bytes: {result:?}", good.len());
        }
        // The header's time is free, and so are a few bits of the code tables; all else is an error.
        let mut unnoticed = 0;
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0x20;
            let (folder, result) = unpack(&bad);
            if result.is_ok() {
                assert_eq!(fs::read(folder.path().join("inside/m/a")).unwrap(), contents, "byte {at}");
                unnoticed += 1;
            }
        }
        assert!(unnoticed < 20, "{unnoticed} of {} bytes", good.len());
    }

    #[test]
    fn what_is_not_an_archive_is_damaged() {
        for bytes in [b"".as_slice(), b"<!DOCTYPE html><html></html>", &[0x1f, 0x8b]] {
            assert!(matches!(unpack(bytes).1, Err(Failure::Damaged(_))), "{bytes:?}");
        }
    }
}
