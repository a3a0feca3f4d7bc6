//! Files that appear whole or not at all: written beside their place under a temporary name, then renamed.
//!
//! A temporary file is locked while it is written. So those that killed processes left can be told, and are deleted by the next one that
//! writes into their folder.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs::{self, DirEntry, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use tempfile::NamedTempFile;

/// A temporary name is this, six letters or digits, and `END`.
const START: &str = ".odh-";
const END: &str = ".tmp";
/// Younger files are left alone: one that was just made may not be locked yet.
const OLD: Duration = Duration::from_secs(600);

/// Whether the name begins with a dot, as those of files do that are in the making, were set aside, or that a user does not want seen.
pub fn is_hidden(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."))
}

/// A file being written. Dropped before [`AtomicFile::commit`], it leaves what was there before.
pub struct AtomicFile {
    path: PathBuf,
    temporary: BufWriter<NamedTempFile>,
}

impl AtomicFile {
    /// Starts a file that is to be `path`; its folders are made.
    ///
    /// # Errors
    /// If a folder or the temporary file cannot be made.
    pub fn create(path: &Path) -> Result<Self> {
        let folder = match path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        std::fs::create_dir_all(folder).with_context(|| format!("cannot make the folder `{}`", folder.display()))?;
        sweep_once(folder);
        let mut builder = tempfile::Builder::new();
        builder.prefix(START).suffix(END);
        // Readable by whom the user's umask lets read, as any file that a program writes, and not by its owner alone.
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
        let temporary = builder
            .tempfile_in(folder)
            .with_context(|| format!("cannot write in `{}`, where `{}` is to be", folder.display(), path.display()))?;
        // Where there are no locks, nobody deletes anything either.
        let _ = temporary.as_file().try_lock();
        Ok(Self { path: path.to_path_buf(), temporary: BufWriter::new(temporary) })
    }

    /// Puts the file in its place.
    ///
    /// # Errors
    /// If what is left cannot be written (a full disk, say) or the file not be renamed; what was there before stays.
    pub fn commit(self) -> Result<()> {
        let Self { path, temporary } = self;
        let failed = || format!("cannot write `{}`", path.display());
        let temporary = temporary.into_inner().map_err(io::IntoInnerError::into_error).with_context(failed)?;
        // Else a power cut soon after could leave the name with nothing behind it.
        temporary.as_file().sync_all().with_context(failed)?;
        temporary.persist(&path).map_err(|e| e.error).with_context(failed)?;
        Ok(())
    }
}

impl Write for AtomicFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.temporary.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.temporary.flush()
    }
}

/// Writes a whole file at once.
///
/// # Errors
/// As [`AtomicFile`]'s.
pub fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut file = AtomicFile::create(path)?;
    file.write_all(bytes).with_context(|| format!("cannot write `{}`", path.display()))?;
    file.commit()
}

/// [`sweep`], the first time that this process writes into a folder.
fn sweep_once(folder: &Path) {
    static SWEPT: LazyLock<Mutex<HashSet<PathBuf>>> = LazyLock::new(Mutex::default);
    if SWEPT.lock().unwrap_or_else(PoisonError::into_inner).insert(folder.to_path_buf()) {
        sweep(folder, OLD);
    }
}

/// Deletes the temporary files in a folder whose writers were killed: that are of this age and not locked.
fn sweep(folder: &Path, age: Duration) {
    let is_old = |entry: &DirEntry| {
        let modified = entry.metadata().ok().filter(fs::Metadata::is_file).and_then(|stat| stat.modified().ok());
        modified.and_then(|at| at.elapsed().ok()).is_some_and(|since| since >= age)
    };
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if !is_temporary(&entry.file_name()) || !is_old(&entry) {
            continue;
        }
        let path = entry.path();
        if File::open(&path).is_ok_and(|file| file.try_lock().is_ok()) && fs::remove_file(&path).is_ok() {
            tracing::info!("deleted `{}`, which a run left that was killed", path.display());
        }
    }
}

fn is_temporary(name: &OsStr) -> bool {
    let middle = name.to_str().and_then(|name| name.strip_prefix(START)?.strip_suffix(END));
    middle.is_some_and(|middle| middle.len() == 6 && middle.bytes().all(|byte| byte.is_ascii_alphanumeric()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let names = std::fs::read_dir(folder).unwrap();
        names.map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect()
    }

    #[test]
    fn a_file_replaces_the_old_one_only_when_committed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a/b.txt");
        write(&path, b"old").unwrap();
        let mut file = AtomicFile::create(&path).unwrap();
        file.write_all(b"new, but never finished").unwrap();
        drop(file);
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        write(&path, b"new").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"new");
        assert_eq!(names(&folder.path().join("a")), ["b.txt"]);
    }

    #[test]
    fn a_folder_in_the_way_is_an_error_that_names_the_file() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(folder.path().join("x/y")).unwrap();
        let error = write(&folder.path().join("x"), b"1").unwrap_err();
        assert!(format!("{error:#}").contains("cannot write `"), "{error:#}");
        std::fs::write(folder.path().join("file"), b"").unwrap();
        assert!(write(&folder.path().join("file/x"), b"1").is_err());
    }

    #[test]
    fn what_killed_runs_left_is_deleted_and_what_is_being_written_or_is_not_ours_stays() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let mut being_written = AtomicFile::create(&at("a")).unwrap();
        being_written.write_all(b"1").unwrap();
        let others = [".odh-abc.tmp", ".odh-abcdefg.tmp", "odh-abcdef.tmp", ".odh-abc.ef.tmp", ".odh-abcdef.tmp2", ".odh.lock"];
        for name in others.iter().chain(&[".odh-aB3dE6.tmp"]) {
            fs::write(at(name), b"").unwrap();
        }
        fs::create_dir(at(".odh-folder.tmp")).unwrap();
        sweep(folder.path(), OLD);
        assert!(at(".odh-aB3dE6.tmp").exists(), "it is young");
        sweep(folder.path(), Duration::ZERO);
        assert!(!at(".odh-aB3dE6.tmp").exists());
        assert_eq!(names(folder.path()).len(), others.len() + 2, "{:?}", names(folder.path()));
        being_written.commit().unwrap();
        assert_eq!(fs::read(at("a")).unwrap(), b"1");
    }

    #[test]
    fn the_first_file_written_into_a_folder_sweeps_it() {
        let folder = tempfile::tempdir().unwrap();
        let left = folder.path().join(".odh-abcdef.tmp");
        let file = File::create(&left).unwrap();
        file.set_modified(std::time::SystemTime::now() - 2 * OLD).unwrap();
        drop(file);
        write(&folder.path().join("a"), b"1").unwrap();
        assert_eq!(names(folder.path()), ["a"]);
    }
}
