//! Files that appear whole or not at all: written beside their place under a temporary name, then renamed.

use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use tempfile::NamedTempFile;

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
        let mut builder = tempfile::Builder::new();
        builder.prefix(".odh-").suffix(".tmp");
        // Readable by whom the user's umask lets read, as any file that a program writes, and not by its owner alone.
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
        let temporary = builder
            .tempfile_in(folder)
            .with_context(|| format!("cannot write in `{}`, where `{}` is to be", folder.display(), path.display()))?;
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
}
