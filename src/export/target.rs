//! The place of an export: a folder beside it that takes its place whole or not at all.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use tempfile::TempDir;

use super::folder::{CHECKPOINT, EXPORT_JSON, FROZEN_GRAPH, Format, LABELS, ONNX, SAVED_MODEL, TORCHSCRIPT};
use crate::config::{label_map, pipeline};
use crate::formats::checkpoint_state;
use crate::formats::lock::Lock;
use crate::logging;

/// In the hidden name of an export that is being made.
const MAKING: &str = "export-";
/// In the hidden name of what holds an export, as `INSIDE`, that is being replaced.
const REPLACED: &str = "old-";
const INSIDE: &str = "export";

/// Where the export goes, and where it is made.
pub struct Target {
    /// The export folder, with an absolute parent.
    path: PathBuf,
    /// Beside it; deleted if it does not get there.
    temporary: TempDir,
    /// Nobody else exports there meanwhile.
    _lock: Lock,
}

impl Target {
    /// Where the new export is made.
    pub fn folder(&self) -> &Path {
        self.temporary.path()
    }

    /// Looks at what is there, tidies up what a killed export left beside it, and makes a hidden folder there.
    ///
    /// # Errors
    /// If it is a file, or a folder of other things than an export, or another process exports there.
    pub fn new(output_dir: &Path) -> Result<Self> {
        let (path, parent) = made_place(output_dir)?;
        let lock = Lock::take(&parent.join(hidden(&path, "lock")), output_dir)?;
        if lock.is_sure() {
            tidy(&path, &parent);
        }
        let temporary = tempfile::Builder::new()
            .prefix(&hidden(&path, MAKING))
            // As any new folder: the umask takes away what it must.
            .permissions(Permissions::from_mode(0o777))
            .tempdir_in(&parent)
            .with_context(|| format!("cannot create a folder in `{}`", parent.display()))?;
        Ok(Self { path, temporary, _lock: lock })
    }

    /// Another place: `.NAME.what` beside the first. An earlier export there is replaced; returns the place.
    ///
    /// # Errors
    /// If other things than an export are there.
    pub fn aim_aside(&mut self, what: &str) -> Result<PathBuf> {
        self.path = made_place(&self.path.with_file_name(hidden(&self.path, what)))?.0;
        Ok(self.path.clone())
    }

    /// The new folder takes the old one's place; files that an export does not have move over from there.
    pub fn put_in_place(self) -> Result<()> {
        let failed = || format!("cannot put the export in place at `{}`", self.path.display());
        let Some(parent) = self.path.parent() else { bail!("`{}` cannot be replaced", self.path.display()) };
        let new = self.temporary.path();
        sync(new).with_context(failed)?;
        let old = if self.path.exists() {
            let aside = tempfile::Builder::new().prefix(&hidden(&self.path, REPLACED)).tempdir_in(parent).with_context(failed)?;
            let old = aside.path().join(INSIDE);
            if !exchanged(new, &self.path, &old).with_context(failed)? {
                fs::rename(&self.path, &old).with_context(failed)?;
                if let Err(error) = fs::rename(new, &self.path) {
                    if fs::rename(&old, &self.path).is_err() {
                        // Better an odd folder left over than the only good export deleted.
                        let kept = aside.keep();
                        return Err(error).with_context(|| format!("{}; the earlier one is in `{}`", failed(), kept.display()));
                    }
                    return Err(error).with_context(failed);
                }
            }
            Some((aside, old))
        } else {
            fs::rename(new, &self.path).with_context(failed)?;
            None
        };
        sync(parent).with_context(failed)?;
        if let Some((aside, old)) = old
            && let Err(error) = carry_over(&old, &self.path)
        {
            let kept = aside.keep();
            return Err(error).with_context(|| format!("the export is in place, and the earlier one in `{}`", kept.display()));
        }
        Ok(())
    }
}

/// Puts `new` in the place of `path`, which goes to `old`, without a moment in which nothing is there. False, and nothing has changed, where
/// the file system cannot.
///
/// # Errors
/// If `new` cannot be moved.
fn exchanged(new: &Path, path: &Path, old: &Path) -> std::io::Result<bool> {
    // First to where the old one will be: whatever is found there later is tidied as one that was replaced, with the user's own files.
    fs::rename(new, old)?;
    if renameat2(AT_FDCWD, old, AT_FDCWD, path, RenameFlags::RENAME_EXCHANGE).is_ok() {
        return Ok(true);
    }
    fs::rename(old, new)?;
    Ok(false)
}

/// Moves what a user put beside an earlier export; what other exports wrote would not belong to this graph any more.
fn carry_over(old: &Path, new: &Path) -> Result<()> {
    for entry in fs::read_dir(old).with_context(|| format!("cannot read `{}`", old.display()))? {
        let name = entry.with_context(|| format!("cannot read `{}`", old.display()))?.file_name();
        let to = new.join(&name);
        if !is_exports(&name) && !to.exists() {
            fs::rename(old.join(&name), &to).with_context(|| format!("cannot keep `{}`", to.display()))?;
        }
    }
    Ok(())
}

/// Ends what exports began that were killed: those half made are deleted, and one that was being replaced either goes back to its
/// place or gives up what a user put beside it. Nobody else may be exporting there.
fn tidy(path: &Path, parent: &Path) {
    for aside in left_behind(path, parent, REPLACED) {
        let old = aside.join(INSIDE);
        let kept = match (old.exists(), path.exists()) {
            (false, _) => Ok(()),
            (true, false) => fs::rename(&old, path).context("it cannot go back"),
            (true, true) => carry_over(&old, path),
        };
        match kept {
            Ok(()) => delete(&aside),
            Err(error) => tracing::warn!("an earlier export of `{}` is in `{}`: {error:#}", path.display(), aside.display()),
        }
    }
    for half in left_behind(path, parent, MAKING) {
        delete(&half);
    }
}

/// Folders of the names that `hidden` starts and tempfile ends.
fn left_behind(path: &Path, parent: &Path, what: &str) -> Vec<PathBuf> {
    let start = hidden(path, what);
    let is_one = |name: &OsStr| {
        let rest = name.as_encoded_bytes().strip_prefix(start.as_encoded_bytes());
        rest.is_some_and(|rest| rest.len() == 6 && rest.iter().all(u8::is_ascii_alphanumeric))
    };
    let entries = fs::read_dir(parent).into_iter().flatten().flatten();
    entries.filter(|e| is_one(&e.file_name()) && e.file_type().is_ok_and(|kind| kind.is_dir())).map(|e| e.path()).collect()
}

fn delete(folder: &Path) {
    match fs::remove_dir_all(folder) {
        Ok(()) => tracing::info!("deleted `{}`, which an export left that was killed", folder.display()),
        Err(error) => tracing::warn!("cannot delete `{}`, which an export left that was killed: {error}", folder.display()),
    }
}

/// An export's place, absolute, and the folder that it is in.
fn place(output_dir: &Path) -> Result<(PathBuf, PathBuf)> {
    let shown = output_dir.display();
    let path = std::path::absolute(output_dir).with_context(|| format!("`{shown}` is no folder's name"))?;
    // A link to a folder stays a link: the folder behind it is replaced.
    let path = if path.is_dir() { path.canonicalize().with_context(|| format!("cannot reach `{shown}`"))? } else { path };
    if path.exists() {
        ensure!(path.is_dir(), "`{shown}` is a file; name a folder with --output_dir");
        let mut entries = fs::read_dir(&path).with_context(|| format!("cannot read `{shown}`"))?;
        // In the folder that the program runs in it has just made its record.
        let empty = entries.all(|entry| entry.is_ok_and(|entry| entry.file_name() == logging::FILE_NAME));
        ensure!(
            empty || Format::ALL.iter().any(|(_, _, name)| path.join(name).exists()),
            "`{shown}` is there already and is not an export (it has no {FROZEN_GRAPH}, {SAVED_MODEL}, {ONNX} or {TORCHSCRIPT}); name another folder with \
             --output_dir"
        );
    }
    if let Some(checkpoint) = of_training(&path) {
        bail!(
            "`{shown}` holds a training (`{}`), whose checkpoints an export would replace; name another folder with --output_dir",
            checkpoint.display()
        );
    }
    ensure!(
        !path.is_symlink(),
        "`{shown}` is a link to a folder that is not there; make that folder, or name another with --output_dir"
    );
    let parent = path.parent().with_context(|| format!("`{shown}` cannot be replaced"))?.to_path_buf();
    let device = |folder: &Path| fs::metadata(folder).map(|meta| meta.dev()).ok();
    ensure!(
        !path.exists() || device(&path) == device(&parent),
        "`{shown}` is where another file system is mounted, and cannot be replaced as a whole; name a folder in it with --output_dir"
    );
    Ok((path, parent))
}

/// Whether an export could go there, as far as that can be said beforehand.
///
/// # Errors
/// If it is a file, or a folder of other things than an export.
pub fn check(output_dir: &Path) -> Result<()> {
    place(output_dir).map(|_| ())
}

/// [`place`], and the folder that it is in is made.
fn made_place(output_dir: &Path) -> Result<(PathBuf, PathBuf)> {
    let (path, parent) = place(output_dir)?;
    fs::create_dir_all(&parent).with_context(|| format!("cannot create `{}`", parent.display()))?;
    Ok((path, parent))
}

/// Whether an export, odh's or upstream's, writes a file or folder of this name.
fn is_exports(name: &OsStr) -> bool {
    const NAMES: &[&str] = &[
        FROZEN_GRAPH,
        pipeline::FILE_NAME,
        label_map::FILE_NAME,
        LABELS,
        checkpoint_state::FILE_NAME,
        SAVED_MODEL,
        ONNX,
        TORCHSCRIPT,
        EXPORT_JSON,
    ];
    let name = name.to_string_lossy();
    let of_checkpoint = name
        .strip_prefix(CHECKPOINT)
        .is_some_and(|rest| matches!(rest, "" | ".index" | ".meta") || rest.starts_with(".data-") && rest.contains("-of-"));
    NAMES.contains(&name.as_ref()) || of_checkpoint
}

/// A checkpoint with its step in its name, as trainings write them and exports do not.
fn of_training(folder: &Path) -> Option<OsString> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.file_name());
    entries.into_iter().find(|name| {
        let name = name.to_string_lossy();
        let step = name.strip_prefix("model.ckpt-").and_then(|rest| rest.strip_suffix(".index"));
        step.is_some_and(|step| step.parse::<u64>().is_ok())
    })
}

/// `.NAME.what`, a hidden name beside `path` or the start of one.
fn hidden(path: &Path, what: &str) -> OsString {
    let mut name = OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(format!(".{what}"));
    name
}

fn sync(folder: &Path) -> std::io::Result<()> {
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> =
            fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    fn export(folder: &Path, contents: &str) -> PathBuf {
        fs::create_dir_all(folder).unwrap();
        fs::write(folder.join(ONNX), contents).unwrap();
        folder.to_path_buf()
    }

    #[test]
    fn a_folder_that_a_training_wrote_is_no_place_for_an_export() {
        let folder = tempfile::tempdir().unwrap();
        let m = export(&folder.path().join("m"), "frozen into the train folder");
        fs::write(m.join("model.ckpt-30.index"), "").unwrap();
        let error = Target::new(&m).err().unwrap().to_string();
        assert!(error.contains("model.ckpt-30.index") && error.contains("--output_dir"), "{error}");
        assert_eq!(names(&m), ["model.ckpt-30.index", ONNX].map(String::from));
    }

    #[test]
    fn an_export_takes_an_earlier_one_s_place_and_keeps_the_users_own_files() {
        let folder = tempfile::tempdir().unwrap();
        let m = export(&folder.path().join("m"), "old");
        for own in ["notes.txt", "model.ckpt_of_mine"] {
            fs::write(m.join(own), "mine").unwrap();
        }
        fs::write(m.join("model.ckpt.index"), "old").unwrap();
        let target = Target::new(&m).unwrap();
        export(target.folder(), "new");
        target.put_in_place().unwrap();
        assert_eq!(fs::read_to_string(m.join(ONNX)).unwrap(), "new");
        assert_eq!(names(&m), ["model.ckpt_of_mine", ONNX, "notes.txt"].map(String::from));
        assert_eq!(names(folder.path()), ["m"]);
    }

    #[test]
    fn an_export_that_was_killed_before_the_exchange_leaves_the_old_one() {
        let folder = tempfile::tempdir().unwrap();
        let m = export(&folder.path().join("m"), "old");
        export(&folder.path().join(".m.old-abcdef/export"), "new");
        drop(Target::new(&m).unwrap());
        assert_eq!(fs::read_to_string(m.join(ONNX)).unwrap(), "old");
        assert_eq!(names(folder.path()), ["m"]);
    }

    #[test]
    fn two_exports_into_one_folder_at_once_are_refused_and_into_two_are_not() {
        let folder = tempfile::tempdir().unwrap();
        let first = Target::new(&folder.path().join("m")).unwrap();
        let error = Target::new(&folder.path().join("./m")).err().unwrap().to_string();
        assert!(error.contains("m` is in use by another odh (process "), "{error}");
        Target::new(&folder.path().join("other")).unwrap();
        export(first.folder(), "new");
        first.put_in_place().unwrap();
        assert_eq!(names(folder.path()), ["m"]);
    }

    #[test]
    fn what_killed_exports_left_is_deleted_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let m = export(&folder.path().join("m"), "whole");
        let others =
            [".m.export-ab", ".m.export-abcdefg", ".n.export-abcdef", ".m.export-abc.ef", "m.export-abcdef", ".m.drifted"];
        for name in others.iter().chain(&[".m.export-aB3dE6"]) {
            fs::create_dir(folder.path().join(name)).unwrap();
            fs::write(folder.path().join(name).join("half"), "").unwrap();
        }
        fs::write(folder.path().join(".m.export-abcdef"), "a file").unwrap();
        let target = Target::new(&m).unwrap();
        let made = target.folder().file_name().unwrap().to_str().unwrap().to_string();
        drop(target);
        let mut left: Vec<&str> = others.into_iter().chain(["m", ".m.export-abcdef"]).collect();
        left.sort_unstable();
        assert_eq!(names(folder.path()), left, "made {made}");
        assert_eq!(fs::read_to_string(m.join(ONNX)).unwrap(), "whole");
    }

    #[test]
    fn an_export_that_was_killed_between_its_two_renames_gives_the_old_one_back() {
        let folder = tempfile::tempdir().unwrap();
        let m = folder.path().join("m");
        export(&folder.path().join(".m.old-abcdef/export"), "old");
        export(&folder.path().join(".m.export-abcdef"), "half");
        drop(Target::new(&m).unwrap());
        assert_eq!(fs::read_to_string(m.join(ONNX)).unwrap(), "old");
        assert_eq!(names(folder.path()), ["m"]);
    }

    #[test]
    fn an_export_that_was_killed_behind_its_renames_gives_up_the_users_own_files() {
        let folder = tempfile::tempdir().unwrap();
        let m = export(&folder.path().join("m"), "new");
        let old = export(&folder.path().join(".m.old-abcdef/export"), "old");
        fs::write(old.join("notes.txt"), "mine").unwrap();
        drop(Target::new(&m).unwrap());
        assert_eq!(fs::read_to_string(m.join(ONNX)).unwrap(), "new");
        assert_eq!(fs::read_to_string(m.join("notes.txt")).unwrap(), "mine");
        assert_eq!(names(folder.path()), ["m"]);
    }
}
