//! At most one run in a place at a time: an advisory lock on a file that says who holds it.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// More than the note of any holder.
const MAX_NOTE: u64 = 500;

/// A place that is taken, until this is dropped or the process ends, however it ends.
#[derive(Debug)]
pub struct Lock {
    path: PathBuf,
    file: File,
    sure: bool,
    /// Folders that were made for it, the innermost first.
    made: Vec<PathBuf>,
}

impl Lock {
    /// Takes the lock file `path`, which is made, with its folder. On a file system without locks it warns and goes on. What was made goes with
    /// the lock if nothing else came into it.
    ///
    /// * `place`: what must not be used by two at once, for messages.
    ///
    /// # Errors
    /// If another process has it (said with what is known of that process), or the file cannot be made.
    pub fn take(path: &Path, place: &Path) -> Result<Self> {
        Self::take_by(path, place, File::try_lock)
    }

    /// Whether nobody else can have it: not so on a file system without locks.
    pub fn is_sure(&self) -> bool {
        self.sure
    }

    fn take_by(path: &Path, place: &Path, try_lock: impl Fn(&File) -> Result<(), TryLockError>) -> Result<Self> {
        let folders = path.ancestors().skip(1).filter(|folder| !folder.as_os_str().is_empty());
        let made: Vec<PathBuf> = folders.take_while(|folder| !folder.exists()).map(Path::to_path_buf).collect();
        loop {
            if let Some(folder) = path.parent() {
                fs::create_dir_all(folder).with_context(|| format!("cannot make the folder `{}`", folder.display()))?;
            }
            let opened = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
            if opened.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::NotFound) {
                // Another's drop removed the folder that it had made.
                continue;
            }
            let mut file = opened.with_context(|| format!("cannot write `{}`", path.display()))?;
            let sure = match try_lock(&file) {
                Ok(()) if is_at(&file, path) => {
                    // Only for messages: a full disk is found out where it matters.
                    let _ = file.set_len(0).and_then(|()| writeln!(file, "{}", note()));
                    true
                }
                // Whoever held it has deleted it since it was opened here, and others lock a new one.
                Ok(()) => continue,
                Err(TryLockError::WouldBlock) => bail!(
                    "`{}` is in use by another odh{}; wait until that has ended, or end it, and run this again",
                    place.display(),
                    holder(&mut file).map(|note| format!(" ({note})")).unwrap_or_default()
                ),
                Err(TryLockError::Error(error)) => {
                    tracing::warn!(
                        "`{}` cannot be locked ({error}): see to it that no other odh works in `{}` meanwhile",
                        path.display(),
                        place.display()
                    );
                    false
                }
            };
            return Ok(Lock { path: path.to_path_buf(), file, sure, made });
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Before it is unlocked, so that nobody's lock but ours is deleted; left behind by a killed process, it bars nobody.
        if is_at(&self.file, &self.path) {
            let _ = fs::remove_file(&self.path);
            // Not those that anything else is in.
            let _ = self.made.iter().try_for_each(fs::remove_dir);
        }
    }
}

/// Whether the name still leads to this very file.
pub fn is_at(file: &File, path: &Path) -> bool {
    match (file.metadata(), fs::metadata(path)) {
        (Ok(ours), Ok(there)) => (ours.dev(), ours.ino()) == (there.dev(), there.ino()),
        _ => false,
    }
}

/// Who this is.
fn note() -> String {
    let host = host_name().map(|name| format!(" on {name}")).unwrap_or_default();
    format!("process {}{host}, since {}", std::process::id(), chrono::Local::now().format("%Y-%m-%d %H:%M:%S"))
}

/// The machine's name, if it has one.
pub(super) fn host_name() -> Option<String> {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").ok()?;
    Some(name.trim().to_string()).filter(|name| !name.is_empty())
}

/// What the holder wrote.
fn holder(file: &mut File) -> Option<String> {
    let mut note = String::new();
    let read: io::Result<usize> = file.rewind().and_then(|()| file.take(MAX_NOTE).read_to_string(&mut note));
    read.ok().map(|_| note.trim().to_string()).filter(|note| !note.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_taker_is_told_who_has_it_and_gets_it_when_it_is_free() {
        let folder = tempfile::tempdir().unwrap();
        let (path, place) = (folder.path().join("new/.lock"), Path::new("some/place"));
        let first = Lock::take(&path, place).unwrap();
        let error = Lock::take(&path, place).unwrap_err().to_string();
        assert!(
            error.contains("`some/place` is in use") && error.contains(&format!("process {}", std::process::id())),
            "{error}"
        );
        drop(first);
        assert!(!path.exists());
        Lock::take(&path, place).unwrap();
    }

    #[test]
    fn folders_that_were_made_for_it_go_with_it_unless_something_came_into_them() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new/newer/.lock");
        drop(Lock::take(&path, folder.path()).unwrap());
        assert!(folder.path().exists() && !folder.path().join("new").exists());
        let lock = Lock::take(&path, folder.path()).unwrap();
        fs::write(folder.path().join("new/kept"), "").unwrap();
        drop(lock);
        assert!(folder.path().join("new/kept").exists() && !folder.path().join("new/newer").exists());
    }

    #[test]
    fn what_a_killed_process_left_bars_nobody_and_its_note_is_gone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(".lock");
        fs::write(&path, format!("process 1 of a longer note{}", " ".repeat(200))).unwrap();
        let _lock = Lock::take(&path, folder.path()).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.starts_with(&format!("process {}", std::process::id())) && text.lines().count() == 1, "{text}");
        assert!(text.len() < 150, "{text}");
    }

    #[test]
    fn a_lock_whose_file_was_deleted_in_between_is_taken_on_the_new_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(".lock");
        let times = std::cell::Cell::new(0);
        let lock = Lock::take_by(&path, folder.path(), |file| {
            times.set(times.get() + 1);
            if times.get() == 1 {
                fs::remove_file(&path).unwrap();
            }
            file.try_lock()
        })
        .unwrap();
        assert_eq!(times.get(), 2);
        assert!(Lock::take(&path, folder.path()).is_err());
        drop(lock);
    }

    #[test]
    fn where_the_file_system_has_no_locks_it_goes_on() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(".lock");
        let no_locks = |_: &File| Err(TryLockError::Error(io::ErrorKind::Unsupported.into()));
        assert!(!Lock::take_by(&path, folder.path(), no_locks).unwrap().is_sure());
        assert!(Lock::take(&path, folder.path()).unwrap().is_sure());
    }

    #[test]
    fn of_many_at_once_one_at_a_time_holds_it() {
        let folder = tempfile::tempdir().unwrap();
        let (path, inside) = (folder.path().join("new/.lock"), std::sync::atomic::AtomicUsize::new(0));
        let taken: usize = std::thread::scope(|scope| {
            let runs: Vec<_> = (0..4)
                .map(|_| {
                    scope.spawn(|| {
                        let mut taken = 0;
                        for _ in 0..500 {
                            let Ok(_lock) = Lock::take(&path, folder.path()) else { continue };
                            taken += 1;
                            assert_eq!(inside.fetch_add(1, std::sync::atomic::Ordering::SeqCst), 0);
                            std::thread::yield_now();
                            inside.fetch_sub(1, std::sync::atomic::Ordering::SeqCst);
                        }
                        taken
                    })
                })
                .collect();
            runs.into_iter().map(|run| run.join().unwrap()).sum()
        });
        assert!(taken > 4, "{taken}");
    }
}
