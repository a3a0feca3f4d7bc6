//! The place of an export: a folder beside it that takes its place whole or not at all.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;

use super::folder::{EXPORT_JSON, FROZEN_GRAPH, Format, LABEL_MAP, LABELS, ONNX, PIPELINE_CONFIG, SAVED_MODEL, TORCHSCRIPT};
use crate::formats::checkpoint_state;

/// Where the export goes, and where it is made.
pub struct Target {
    /// The export folder, with an absolute parent.
    path: PathBuf,
    /// Beside it; deleted if it does not get there.
    temporary: TempDir,
}

impl Target {
    /// Where the new export is made.
    pub fn folder(&self) -> &Path {
        self.temporary.path()
    }

    /// Looks at what is there, and makes a hidden folder beside it.
    ///
    /// # Errors
    /// If it is a file, or a folder of other things than an export.
    pub fn new(output_dir: &Path) -> Result<Self> {
        let (path, parent) = place(output_dir)?;
        let temporary = tempfile::Builder::new()
            .prefix(&hidden(&path, "export"))
            // As any new folder: the umask takes away what it must.
            .permissions(Permissions::from_mode(0o777))
            .tempdir_in(&parent)
            .with_context(|| format!("cannot create a folder in `{}`", parent.display()))?;
        Ok(Self { path, temporary })
    }

    /// Another place: `.NAME.what` beside the first. An earlier export there is replaced; returns the place.
    ///
    /// # Errors
    /// If other things than an export are there.
    pub fn aim_aside(&mut self, what: &str) -> Result<PathBuf> {
        let mut name = OsString::from(".");
        name.push(self.path.file_name().unwrap_or_default());
        name.push(format!(".{what}"));
        self.path = place(&self.path.with_file_name(name))?.0;
        Ok(self.path.clone())
    }

    /// The new folder takes the old one's place; files that an export does not have move over from there.
    pub fn put_in_place(self) -> Result<()> {
        let failed = || format!("cannot put the export in place at `{}`", self.path.display());
        let Some(parent) = self.path.parent() else { bail!("`{}` cannot be replaced", self.path.display()) };
        let new = self.temporary.path();
        sync(new).with_context(failed)?;
        let old = if self.path.exists() {
            let aside = tempfile::Builder::new().prefix(&hidden(&self.path, "old")).tempdir_in(parent).with_context(failed)?;
            let old = aside.path().join("export");
            fs::rename(&self.path, &old).with_context(failed)?;
            Some((aside, old))
        } else {
            None
        };
        if let Err(error) = fs::rename(new, &self.path) {
            if let Some((aside, old)) = old {
                let back = fs::rename(&old, &self.path);
                if back.is_err() {
                    // Better an odd folder left over than the only good export deleted.
                    let kept = aside.keep();
                    return Err(error).with_context(|| format!("{}; the earlier one is in `{}`", failed(), kept.display()));
                }
            }
            return Err(error).with_context(failed);
        }
        sync(parent).with_context(failed)?;
        if let Some((aside, old)) = old
            && let Err(error) = self.carry_over(&old)
        {
            let kept = aside.keep();
            return Err(error).with_context(|| format!("the export is in place, and the earlier one in `{}`", kept.display()));
        }
        Ok(())
    }

    /// Moves what a user put beside an earlier export; what other exports wrote would not belong to this graph any more.
    fn carry_over(&self, old: &Path) -> Result<()> {
        for entry in fs::read_dir(old).with_context(|| format!("cannot read `{}`", old.display()))? {
            let name = entry.with_context(|| format!("cannot read `{}`", old.display()))?.file_name();
            let to = self.path.join(&name);
            if !is_exports(&name) && !to.exists() {
                fs::rename(old.join(&name), &to).with_context(|| format!("cannot keep `{}`", to.display()))?;
            }
        }
        Ok(())
    }
}

/// An export's place, absolute, and the folder that it is in, which is made.
fn place(output_dir: &Path) -> Result<(PathBuf, PathBuf)> {
    let shown = output_dir.display();
    let path = std::path::absolute(output_dir).with_context(|| format!("`{shown}` is no folder's name"))?;
    // A link to a folder stays a link: the folder behind it is replaced.
    let path = if path.is_dir() { path.canonicalize().with_context(|| format!("cannot reach `{shown}`"))? } else { path };
    if path.exists() {
        ensure!(path.is_dir(), "`{shown}` is a file; name a folder with --output_dir");
        let empty = fs::read_dir(&path).with_context(|| format!("cannot read `{shown}`"))?.next().is_none();
        ensure!(
            empty || Format::ALL.iter().any(|(_, _, name)| path.join(name).exists()),
            "`{shown}` is there already and is not an export (it has no {FROZEN_GRAPH}, {SAVED_MODEL}, {ONNX} or {TORCHSCRIPT}); name another folder with \
             --output_dir"
        );
    }
    let parent = path.parent().with_context(|| format!("`{shown}` cannot be replaced"))?.to_path_buf();
    fs::create_dir_all(&parent).with_context(|| format!("cannot create `{}`", parent.display()))?;
    Ok((path, parent))
}

/// Whether an export, odh's or upstream's, writes a file or folder of this name.
fn is_exports(name: &OsStr) -> bool {
    const NAMES: &[&str] =
        &[FROZEN_GRAPH, PIPELINE_CONFIG, LABEL_MAP, LABELS, checkpoint_state::FILE_NAME, SAVED_MODEL, ONNX, EXPORT_JSON];
    let name = name.to_string_lossy();
    NAMES.contains(&name.as_ref()) || name.starts_with("model.ckpt") || name.starts_with("model.torchscript")
}

/// `.NAME.what-`, the start of a hidden name beside `path`.
fn hidden(path: &Path, what: &str) -> OsString {
    let mut name = OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(format!(".{what}-"));
    name
}

fn sync(folder: &Path) -> std::io::Result<()> {
    File::open(folder)?.sync_all()
}
