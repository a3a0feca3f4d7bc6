//! The dataset's files, written beside the old ones and put in their place together at the end.

use std::collections::{BTreeSet, HashSet};
use std::fs::{self, File, OpenOptions};
use std::io::{BufWriter, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, bail, ensure};
use indicatif::ProgressBar;
use rayon::prelude::*;

use crate::data::dataset::check::Picture;
use crate::data::dataset::finding::shown;
use crate::data::dataset::picture;
use crate::data::example::LabeledImage;
use crate::data::image::Format;
use crate::exit;
use crate::formats::hexadecimal::hexadecimal;
use crate::formats::lock::is_at;
use crate::formats::tfrecord::{self, shard_path};

/// Bytes of pictures that are read ahead of the writer, so that memory does not grow with the dataset.
pub(super) const AHEAD: u64 = 32 << 20;

/// Files under temporary names, removed again unless [`Staged::commit`] is reached.
#[derive(Debug, Default)]
pub struct Staged {
    files: Vec<StagedFile>,
    /// What they replace: one file may be asked for by several paths.
    real: HashSet<PathBuf>,
    /// Folders that were not there before.
    folders: Vec<PathBuf>,
    /// Folders in which there was a look at what killed runs left.
    swept: HashSet<PathBuf>,
}

#[derive(Debug)]
struct StagedFile {
    temporary: PathBuf,
    /// Open until the end, as its lock says that this run lives.
    _locked: Arc<File>,
    /// As it was asked for.
    target: PathBuf,
    /// What is replaced: where `target` is a link, the file that it leads to.
    real: PathBuf,
}

impl Staged {
    /// Opens a temporary file in the folder of `target`, which it will replace. The folder is made if it is not there.
    ///
    /// # Errors
    /// If the folder or the file cannot be made, or `target` cannot be replaced.
    pub fn create(&mut self, target: &Path) -> Result<Arc<File>> {
        ensure!(!target.is_dir(), "`{}`: is a folder, and a file is to be written there; name another file", shown(target));
        ensure!(
            !target.exists() || target.is_file(),
            "`{}`: is a device or a pipe, and a file is to be put there; name another file",
            shown(target)
        );
        // A link that leads nowhere yet says where the file is to be.
        let folder_of = |path: &Path| path.parent().map(Path::to_path_buf).unwrap_or_default();
        let linked = target.canonicalize().ok().or_else(|| Some(folder_of(target).join(target.read_link().ok()?)));
        let linked = linked.filter(|_| target.is_symlink());
        let real = linked.unwrap_or_else(|| target.to_path_buf());
        let folder = real.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new(".")).to_path_buf();
        self.make_folder(&folder)?;
        let real =
            folder.canonicalize().map_or_else(|_| real.clone(), |folder| folder.join(real.file_name().unwrap_or_default()));
        ensure!(!self.real.contains(&real), "`{}`: two outputs have this name; give each its own", shown(target));
        if self.swept.insert(folder.clone()) {
            remove_leftovers(&folder);
        }
        let (file, temporary) = temporary(&folder, &real).with_context(|| {
            let open = self.files.len();
            let hint = if open > 100 {
                format!(" beside {open} others; ask for fewer shards, or raise `ulimit -n`")
            } else {
                String::new()
            };
            format!("`{}`: cannot be written{hint}", shown(target))
        })?;
        let file = Arc::new(file);
        self.real.insert(real.clone());
        self.files.push(StagedFile { temporary, _locked: file.clone(), target: target.to_path_buf(), real });
        Ok(file)
    }

    fn make_folder(&mut self, folder: &Path) -> Result<()> {
        // Remembered so that a run that fails leaves no empty folders behind.
        let missing: Vec<PathBuf> = folder
            .ancestors()
            .take_while(|above| !above.as_os_str().is_empty() && !above.exists())
            .map(Path::to_path_buf)
            .collect();
        fs::create_dir_all(folder).with_context(|| format!("`{}`: the folder cannot be made", shown(folder)))?;
        self.folders.extend(missing);
        Ok(())
    }

    /// Throws away the temporary files of these targets.
    pub fn discard(&mut self, targets: &[PathBuf]) {
        self.files.retain(|file| {
            let discarded = targets.contains(&file.target);
            if discarded {
                let _ = fs::remove_file(&file.temporary);
                self.real.remove(&file.real);
            }
            !discarded
        });
    }

    /// Puts every file in its place, or none.
    ///
    /// # Errors
    /// If one cannot be renamed; the old files are then as they were.
    pub fn commit(mut self) -> Result<()> {
        // Another run's files between these would make one dataset of two splits. Where there are no locks, runs take their chance.
        let parents = self.files.iter().filter_map(|file| file.temporary.parent()?.canonicalize().ok());
        let folders: BTreeSet<PathBuf> = parents.collect(); // in one order for all, so that no two wait for each other
        let locked = |folder: &PathBuf| File::open(folder).ok().filter(|file| file.lock().is_ok());
        let _locks: Vec<File> = folders.iter().filter_map(locked).collect();
        let mut replaced = Vec::with_capacity(self.files.len());
        for file in &self.files {
            match Replaced::by(file) {
                Ok(old) => replaced.push(old),
                Err(error) => {
                    let stuck: Vec<String> = replaced.into_iter().rev().filter_map(|old: Replaced| old.restore().err()).collect();
                    let state = match stuck.as_slice() {
                        [] => "; the old dataset is as it was".to_string(),
                        stuck => format!("; {}: the dataset is mixed now, so make it anew", stuck.join(", ")),
                    };
                    return Err(error).with_context(|| format!("`{}`: cannot be replaced{state}", shown(&file.target)));
                }
            }
        }
        replaced.into_iter().for_each(Replaced::forget);
        self.files.clear();
        self.folders.clear();
        Ok(())
    }
}

/// A file that was put in its place, and where the one before it is kept.
struct Replaced {
    real: PathBuf,
    /// `None` if there was none.
    old: Option<PathBuf>,
}

impl Replaced {
    fn by(file: &StagedFile) -> std::io::Result<Self> {
        if file.real.is_dir() {
            return Err(ErrorKind::IsADirectory.into());
        }
        let mut name = file.real.file_name().unwrap_or_default().to_os_string();
        name.push(".old");
        // A name that is nobody's: the file goes again, and what is kept takes its place.
        let (_, old) = temporary(file.temporary.parent().unwrap_or(Path::new(".")), Path::new(&name))?;
        fs::remove_file(&old)?;
        // A second name, so that the file is never missing under its own; where there are no links, it is for a moment.
        let kept = match fs::hard_link(&file.real, &old) {
            Err(error) if error.kind() == ErrorKind::NotFound => false,
            Err(_) => fs::rename(&file.real, &old).map(|()| true)?,
            Ok(()) => true,
        };
        let replaced = Self { real: file.real.clone(), old: kept.then_some(old) };
        if let Err(error) = fs::rename(&file.temporary, &file.real) {
            let _ = replaced.restore();
            return Err(error);
        }
        Ok(replaced)
    }

    /// Puts the old file back. The error says which could not be.
    fn restore(self) -> Result<(), String> {
        let done = match &self.old {
            Some(old) => fs::rename(old, &self.real).and_then(|()| match fs::remove_file(old) {
                // Renaming one name of a file to another of its names does nothing.
                Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
                _ => Ok(()),
            }),
            None => match fs::remove_file(&self.real) {
                Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
                _ => Ok(()),
            },
        };
        done.map_err(|error| format!("`{}` cannot be put back: {error}", shown(&self.real)))
    }

    fn forget(self) {
        if let Some(old) = self.old {
            let _ = fs::remove_file(old);
        }
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        for file in &self.files {
            let _ = fs::remove_file(&file.temporary);
        }
        for folder in &self.folders {
            // Fails, as it should, for a folder with something in it.
            let _ = fs::remove_dir(folder);
        }
    }
}

/// What our temporary files end in.
const TEMPORARY: &str = ".odh-tmp";

/// A new file under a name of its own, locked where there are locks: so others see that its run lives, also those on another machine or in
/// another container, where numbers of processes say nothing.
fn temporary(folder: &Path, target: &Path) -> std::io::Result<(File, PathBuf)> {
    let name = target.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let prefix = format!(".{name}.");
    let mut builder = tempfile::Builder::new();
    builder.prefix(&prefix).suffix(TEMPORARY);
    loop {
        let made = builder.make_in(folder, |path| OpenOptions::new().write(true).create_new(true).open(path))?;
        let (file, path) = made.keep().map_err(|error| error.error)?;
        // Between the two another run may have taken it for one that was left.
        if file.try_lock().is_err() || is_at(&file, &path) {
            return Ok((file, path));
        }
    }
}

/// Removes temporary files that a killed run left behind, whatever they were to become: those that nobody has locked.
fn remove_leftovers(folder: &Path) {
    // Who puts a dataset in its place has the folder, and keeps the old files meanwhile under such names.
    let Ok(whole) = File::open(folder) else { return };
    if whole.try_lock().is_err() {
        return;
    }
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let ours = name.as_encoded_bytes().starts_with(b".") && name.as_encoded_bytes().ends_with(TEMPORARY.as_bytes());
        if ours
            && entry.file_type().is_ok_and(|kind| kind.is_file())
            && let Ok(file) = File::open(entry.path())
            && file.try_lock().is_ok()
        {
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// The names of a record file: itself, or its shards.
pub fn record_paths(path: &Path, shards: Option<usize>) -> Vec<PathBuf> {
    match shards {
        None => vec![path.to_path_buf()],
        Some(shards) => (0..shards).map(|shard| shard_path(path, shard, shards)).collect(),
    }
}

/// Removes what an earlier run wrote of the same record in another number of shards: readers would take it for current.
pub fn remove_other_shards(path: &Path, kept: &[PathBuf]) {
    let pattern = format!("{}-?????-of-?????", glob::Pattern::escape(&path.to_string_lossy()));
    let shards = glob::glob(&pattern).into_iter().flatten().flatten();
    // By name: all lie in one folder, and a glob's `dataset/x` is not the `./dataset/x` that it was asked for.
    let is_kept = |old: &Path| kept.iter().any(|kept| kept.file_name() == old.file_name());
    for old in shards.chain([path.to_path_buf()]).filter(|old| !is_kept(old) && old.is_file()) {
        if let Err(error) = fs::remove_file(&old) {
            tracing::warn!("`{}`: an older record that cannot be removed: {error}", shown(&old));
        }
    }
}

/// Writes the records of `pictures` to the shards in turn. Pictures are read in parallel and written in order.
///
/// # Errors
/// If a picture changed since it was checked, or a file cannot be written (a full disk).
pub fn records(
    staged: &mut Staged,
    paths: Vec<PathBuf>,
    pictures: &[&Picture],
    progress: &ProgressBar,
    stop: &AtomicBool,
) -> Result<()> {
    let mut shards = Shards::create(staged, paths)?;
    let mut start = 0;
    while start < pictures.len() {
        let end = start + batch(&pictures[start..]);
        if stop.load(Ordering::Relaxed) {
            return Err(exit::interrupted("stopped; the old dataset is as it was"));
        }
        let made: Vec<Record> = pictures[start..end].par_iter().map(|picture| record(picture)).collect::<Result<_>>()?;
        for record in &made {
            shards.write(record)?;
            progress.inc(1);
        }
        start = end;
    }
    shards.finish()
}

/// How many of the pictures fit into what is read ahead: at least one.
fn batch(pictures: &[&Picture]) -> usize {
    let mut bytes = 0;
    pictures
        .iter()
        .take_while(|picture| {
            bytes += picture.looked.bytes;
            bytes <= AHEAD
        })
        .count()
        .max(1)
}

/// One picture's record.
fn record(picture: &Picture) -> Result<Record> {
    let mut bytes = Vec::new();
    let changed = || format!("`{}`: the picture was changed while it was read; run tfgen again", shown(&picture.path));
    picture::read(&picture.path, &mut bytes).with_context(changed)?;
    if picture::sha256(&bytes) != picture.looked.sha256 {
        bail!(changed());
    }
    Record::new(picture, &mut bytes)
}

/// A record ready to be written.
pub(super) struct Record {
    frame: tfrecord::Frame,
    before: Vec<u8>,
    /// The picture, as it is stored.
    pub(super) encoded: Vec<u8>,
    behind: Vec<u8>,
}

impl Record {
    /// Takes the picture file's bytes.
    pub(super) fn new(picture: &Picture, bytes: &mut Vec<u8>) -> Result<Self> {
        let mut encoded = std::mem::take(bytes);
        let (mut sha256, mut format) = (picture.looked.sha256, picture.looked.format);
        if !picture::stored_as_is(format) {
            encoded =
                picture::as_png(&encoded).with_context(|| format!("`{}`: cannot be stored as PNG", shown(&picture.path)))?;
            sha256 = picture::sha256(&encoded);
            format = Format::Png;
        }
        let (before, behind) = labeled_image(picture, format, sha256).record_around(encoded.len());
        let frame = tfrecord::Frame::of(&[&before, &encoded, &behind]);
        Ok(Self { frame, before, encoded, behind })
    }

    /// In bytes.
    pub(super) fn len(&self) -> usize {
        self.before.len() + self.encoded.len() + self.behind.len()
    }
}

/// The records of one side, in one file or several.
pub(super) struct Shards {
    paths: Vec<PathBuf>,
    writers: Vec<tfrecord::Writer<BufWriter<Arc<File>>>>,
    written: usize,
}

impl Shards {
    pub(super) fn create(staged: &mut Staged, paths: Vec<PathBuf>) -> Result<Self> {
        let mut writers = Vec::with_capacity(paths.len());
        for path in &paths {
            // Small, so that a picture goes straight to the file and only what stands around it is gathered.
            writers.push(tfrecord::Writer::new(BufWriter::with_capacity(1 << 13, staged.create(path)?)));
        }
        Ok(Self { paths, writers, written: 0 })
    }

    /// Appends to the shards in turn.
    pub(super) fn write(&mut self, record: &Record) -> Result<()> {
        let shard = self.written % self.paths.len();
        self.written += 1;
        self.writers[shard]
            .write_framed(&record.frame, &[&record.before, &record.encoded, &record.behind])
            .with_context(|| cannot(&self.paths[shard]))
    }

    pub(super) fn finish(self) -> Result<()> {
        for (writer, path) in self.writers.into_iter().zip(&self.paths) {
            let buffered = writer.finish().with_context(|| cannot(path))?;
            buffered.into_inner().map_err(std::io::IntoInnerError::into_error).with_context(|| cannot(path))?;
        }
        Ok(())
    }
}

fn cannot(path: &Path) -> String {
    format!("`{}`: cannot be written; the old dataset is as it was", shown(path))
}

/// All of the example but the picture's bytes.
fn labeled_image(picture: &Picture, format: Format, sha256: [u8; 32]) -> LabeledImage {
    let (width, height) = (f64::from(picture.looked.width), f64::from(picture.looked.height));
    let objects = &picture.objects;
    LabeledImage {
        filename: picture.name.clone(),
        source_id: picture.name.clone(),
        encoded: Vec::new(),
        format: format.name().to_string(),
        width: picture.looked.width,
        height: picture.looked.height,
        sha256: hexadecimal(&sha256),
        boxes: objects
            .iter()
            .map(|object| {
                let [ymin, xmin, ymax, xmax] = object.box_px;
                [ymin / height, xmin / width, ymax / height, xmax / width].map(|value| value as f32)
            })
            .collect(),
        classes: objects.iter().map(|object| object.id).collect(),
        class_names: objects.iter().map(|object| object.class.clone()).collect(),
        difficult: objects.iter().map(|object| object.difficult).collect(),
        truncated: objects.iter().map(|object| object.truncated).collect(),
        poses: objects.iter().map(|object| object.pose.clone()).collect(),
        crowd: vec![false; objects.len()],
    }
}

/// Writes a small file through `fill`.
///
/// # Errors
/// If it cannot be written.
pub fn small(staged: &mut Staged, path: &Path, fill: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<()> {
    let mut out = BufWriter::new(staged.create(path)?);
    fill(&mut out).with_context(|| cannot(path))?;
    out.into_inner().map_err(std::io::IntoInnerError::into_error).with_context(|| cannot(path))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_one_file_cannot_be_replaced_none_is() {
        let folder = tempfile::tempdir().unwrap();
        let [a, b, c] = ["a", "b", "c"].map(|name| folder.path().join(name));
        fs::write(&a, "old").unwrap();
        let mut staged = Staged::default();
        for path in [&a, &b, &c] {
            small(&mut staged, path, |out| Ok(out.write_all(b"new")?)).unwrap();
        }
        // Meanwhile somebody makes a folder of that name.
        fs::create_dir_all(c.join("full")).unwrap();
        let said = format!("{:#}", staged.commit().unwrap_err());
        assert!(said.contains("cannot be replaced; the old dataset is as it was"), "{said}");
        assert_eq!(fs::read(&a).unwrap(), b"old");
        assert!(!b.exists());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2, "nothing temporary stays");
    }

    #[test]
    fn a_link_is_written_through_and_one_file_is_not_written_twice() {
        let folder = tempfile::tempdir().unwrap();
        let [real, link] = ["real", "link"].map(|name| folder.path().join(name));
        fs::write(&real, "old").unwrap();
        std::os::unix::fs::symlink(&real, &link).unwrap();
        let mut staged = Staged::default();
        small(&mut staged, &link, |out| Ok(out.write_all(b"new")?)).unwrap();
        for again in [real.clone(), folder.path().join(".").join("real")] {
            let said = staged.create(&again).unwrap_err().to_string();
            assert!(said.contains("two outputs"), "{said}");
        }
        staged.commit().unwrap();
        assert!(link.is_symlink());
        assert_eq!(fs::read(&real).unwrap(), b"new");
        fs::remove_file(&real).unwrap();
        let mut staged = Staged::default();
        small(&mut staged, &link, |out| Ok(out.write_all(b"first")?)).unwrap();
        staged.commit().unwrap();
        assert!(link.is_symlink());
        assert_eq!(fs::read(&real).unwrap(), b"first");
    }

    #[test]
    fn nothing_is_seen_before_the_commit_and_all_after_it() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("dataset/a.csv");
        let mut staged = Staged::default();
        small(&mut staged, &target, |out| Ok(out.write_all(b"new")?)).unwrap();
        assert!(!target.exists());
        staged.commit().unwrap();
        assert_eq!(fs::read(&target).unwrap(), b"new");
        assert_eq!(fs::read_dir(target.parent().unwrap()).unwrap().count(), 1);
    }

    #[test]
    fn what_is_not_committed_leaves_no_trace() {
        let folder = tempfile::tempdir().unwrap();
        let old = folder.path().join("old.csv");
        fs::write(&old, "old").unwrap();
        let mut staged = Staged::default();
        small(&mut staged, &old, |out| Ok(out.write_all(b"new")?)).unwrap();
        small(&mut staged, &folder.path().join("deep/er/b.csv"), |_| Ok(())).unwrap();
        drop(staged);
        assert_eq!(fs::read(&old).unwrap(), b"old");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn leftovers_of_a_killed_run_are_removed_and_those_of_a_living_one_kept() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("a.csv");
        let (file, dead) = temporary(folder.path(), Path::new("b.record-00001-of-00002")).unwrap();
        drop(file);
        let (_locked, alive) = temporary(folder.path(), &target).unwrap();
        // Another run's, that has written this file and not the others yet.
        let mut other = Staged::default();
        small(&mut other, &target, |out| Ok(out.write_all(b"other")?)).unwrap();
        let mut staged = Staged::default();
        small(&mut staged, &target, |out| Ok(out.write_all(b"own")?)).unwrap();
        assert!(!dead.exists() && alive.exists());
        other.commit().unwrap();
        assert_eq!(fs::read(&target).unwrap(), b"other");
        staged.commit().unwrap();
        assert_eq!(fs::read(&target).unwrap(), b"own");
    }

    #[test]
    fn a_dataset_takes_its_place_only_when_no_other_is_just_taking_it() {
        let folder = tempfile::tempdir().unwrap();
        let (a, b) = (folder.path().join("a.csv"), folder.path().join("sub/b.csv"));
        let mut staged = Staged::default();
        for target in [&a, &b] {
            small(&mut staged, target, |out| Ok(out.write_all(b"new")?)).unwrap();
        }
        let other = File::open(folder.path().join("sub")).unwrap();
        other.lock().unwrap();
        std::thread::scope(|scope| {
            let commit = scope.spawn(|| staged.commit());
            std::thread::sleep(std::time::Duration::from_millis(200));
            assert!(!a.exists() && !b.exists() && !commit.is_finished());
            drop(other);
            commit.join().unwrap().unwrap();
        });
        assert!(a.exists() && b.exists());
    }

    #[test]
    fn two_outputs_of_one_name_and_a_folder_in_the_way_are_errors() {
        let folder = tempfile::tempdir().unwrap();
        let mut staged = Staged::default();
        staged.create(&folder.path().join("a.csv")).unwrap();
        assert!(staged.create(&folder.path().join("a.csv")).unwrap_err().to_string().contains("two outputs"));
        assert!(staged.create(folder.path()).unwrap_err().to_string().contains("is a folder"));
    }

    #[test]
    fn older_shards_are_removed_and_current_ones_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("train.record");
        let kept = record_paths(&path, Some(2));
        for old in kept.iter().chain(&record_paths(&path, Some(3))).chain([&path]) {
            fs::write(old, "").unwrap();
        }
        fs::write(folder.path().join("train.record.txt"), "").unwrap();
        remove_other_shards(&path, &kept);
        let mut left: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["train.record-00000-of-00002", "train.record-00001-of-00002", "train.record.txt"]);
    }
}
