//! The files below the input folder: label files, and pictures that are found by any of their names.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use encoding_rs::EUC_KR;
use unicode_normalization::UnicodeNormalization;
use walkdir::WalkDir;

use crate::data::dataset::finding::{Finding, shown};
use crate::data::image;
use crate::formats::atomic_file::is_hidden;

/// Whether a name promises a picture, also of a kind that cannot be used (labelImg opens more): those are told so when they are labelled.
fn is_picture(extension: &str) -> bool {
    image::EXTENSIONS.contains(&extension) || image::OTHER_EXTENSIONS.contains(&extension)
}

/// What lies below the input folder.
#[derive(Debug, Default)]
pub struct Tree {
    /// The input folder itself.
    pub root: PathBuf,
    /// XML files, by path.
    pub labels: Vec<PathBuf>,
    /// Pictures, by path.
    pub pictures: Vec<PathBuf>,
    /// What could not be read.
    pub findings: Vec<Finding>,
    /// Pictures by their folded file name, and by it without its extension.
    by_name: HashMap<String, Vec<usize>>,
}

impl Tree {
    /// Walks `root`. Hidden files and folders are passed over; links are followed, and a file that is reached twice
    /// through one counts once.
    ///
    /// # Errors
    /// If `root` is not a folder that can be read.
    pub fn walk(root: &Path) -> Result<Self> {
        if !root.is_dir() {
            let what = if root.exists() { "is not a folder" } else { "there is no such folder" };
            bail!("`{}`: {what}; name the folder of pictures and XML files with --input_folder", shown(root));
        }
        std::fs::read_dir(root).with_context(|| format!("`{}`: cannot be read", shown(root)))?;
        let mut tree = Self { root: root.to_path_buf(), ..Self::default() };
        // Following links costs a call for every file, so they are only followed where there are any.
        if !tree.collect(false) {
            tree = Self { root: root.to_path_buf(), ..Self::default() };
            tree.collect(true);
            tree.drop_repeats();
        }
        tree.labels.sort();
        tree.pictures.sort();
        for (i, picture) in tree.pictures.iter().enumerate() {
            let name = fold(&file_name(picture));
            let stem = stem(&name);
            if stem != name {
                tree.by_name.entry(stem).or_default().push(i);
            }
            tree.by_name.entry(name).or_default().push(i);
        }
        Ok(tree)
    }

    /// Pictures whose name, or name without its extension, is `name`, letters' case and Unicode form aside.
    pub fn named(&self, name: &str) -> &[usize] {
        self.by_name.get(&fold(name)).map_or(&[], Vec::as_slice)
    }

    /// Takes every file. False if a link was met that was not to be followed.
    fn collect(&mut self, follow: bool) -> bool {
        let entries = WalkDir::new(&self.root)
            .follow_links(follow)
            .sort_by_file_name()
            .into_iter()
            .filter_entry(|entry| entry.depth() == 0 || !is_hidden(entry.path()));
        for entry in entries {
            match entry {
                Ok(entry) if !follow && entry.depth() > 0 && entry.path_is_symlink() => return false,
                Ok(entry) if entry.file_type().is_file() => self.take(entry.into_path()),
                Ok(_) => {}
                Err(error) => self.complain(&error),
            }
        }
        true
    }

    fn take(&mut self, path: PathBuf) {
        let extension = path.extension().map(|e| e.to_string_lossy().to_ascii_lowercase()).unwrap_or_default();
        if extension == "xml" {
            self.labels.push(path);
        } else if is_picture(&extension) || begins_like_a_picture(&path) {
            self.pictures.push(path);
        }
    }

    fn complain(&mut self, error: &walkdir::Error) {
        let path = error.path().unwrap_or(&self.root).to_path_buf();
        let finding = match (error.loop_ancestor(), error.io_error()) {
            (Some(ancestor), _) => Finding::note(&path, format!("this link leads back to `{}`; passed over", shown(ancestor))),
            (None, Some(io)) if io.kind() == std::io::ErrorKind::NotFound => {
                Finding::passed_over(&path, "this link leads nowhere; mend or remove it")
            }
            (None, Some(io)) => {
                Finding::passed_over(&path, format!("cannot be read: {io}; give yourself the right to, or remove it"))
            }
            (None, None) => Finding::passed_over(&path, format!("cannot be read: {error}")),
        };
        self.findings.push(finding);
    }

    /// Keeps one path of each file that links lead to; one without a link in it if there is one. A picture that a link gives
    /// another name is kept under both, since either may be the one that is labelled.
    fn drop_repeats(&mut self) {
        let mut seen = HashSet::new();
        for list in [&mut self.labels, &mut self.pictures] {
            let mut files: Vec<(bool, PathBuf, PathBuf)> = list
                .drain(..)
                .map(|path| {
                    let real = path.canonicalize().unwrap_or_else(|_| path.clone());
                    (!real.ends_with(path.strip_prefix(&self.root).unwrap_or(&path)), path, real)
                })
                .collect();
            files.sort();
            let firsts = files.into_iter().filter(|(_, path, real)| seen.insert((real.clone(), fold(&file_name(path)))));
            list.extend(firsts.map(|(_, path, _)| path));
        }
    }
}

/// A file name as text.
pub fn file_name(path: &Path) -> String {
    path.file_name().map(text_of).unwrap_or_default()
}

/// A path as text, like [`file_name`].
pub fn path_as_text(path: &Path) -> String {
    if let Some(text) = path.to_str() {
        return text.to_string();
    }
    // Each part by itself: folders may be in another encoding than what is in them.
    let parts: Vec<String> = path.iter().map(text_of).collect();
    parts.join("/").replacen("//", "/", 1)
}

/// A name as text. What is not UTF-8 is taken for EUC-KR where it can be that, as Korean archives of other
/// systems unpack; otherwise bytes that are no text are written as `%B0`.
fn text_of(name: &OsStr) -> String {
    if let Some(name) = name.to_str() {
        return name.to_string();
    }
    let bytes = name.as_encoded_bytes();
    if let Some(name) = EUC_KR.decode_without_bom_handling_and_without_replacement(bytes) {
        return name.into_owned();
    }
    let mut text = String::new();
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        text.extend(chunk.invalid().iter().map(|byte| format!("%{byte:02X}")));
    }
    text
}

/// A file name without its extension.
pub fn stem(name: &str) -> String {
    match name.rsplit_once('.') {
        Some((stem, _)) if !stem.is_empty() => stem.to_string(),
        _ => name.to_string(),
    }
}

/// The last part of a path of any system.
pub fn last_part(path: &str) -> &str {
    path.rsplit(['/', '\\']).next().unwrap_or(path)
}

/// A name in one Unicode form (macOS takes letters apart, others do not).
pub fn composed(name: &str) -> String {
    if name.is_ascii() { name.to_string() } else { name.nfc().collect() }
}

/// A name in one Unicode form and one case.
fn fold(name: &str) -> String {
    if name.is_ascii() { name.to_ascii_lowercase() } else { composed(name).to_lowercase() }
}

/// Files without a picture's extension may be pictures: their first bytes say.
fn begins_like_a_picture(path: &Path) -> bool {
    let mut start = Vec::with_capacity(16);
    let read = File::open(path).and_then(|file| file.take(16).read_to_end(&mut start));
    // `BM` alone begins too many words to mean a bitmap.
    read.is_ok() && image::sniff(&start).is_some_and(|format| format != image::Format::Bmp)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    fn names(paths: &[PathBuf], root: &Path) -> Vec<String> {
        paths.iter().map(|path| path.strip_prefix(root).unwrap().display().to_string()).collect()
    }

    #[test]
    fn finds_labels_and_pictures_below_and_passes_hidden_files_over() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        fs::create_dir_all(root.join("a/b")).unwrap();
        fs::create_dir_all(root.join(".git")).unwrap();
        for name in ["x.XML", "a/y.xml", "a/b/y.JPG", "a/._y.xml", ".git/z.xml", "a/notes.txt", "photo.heic"] {
            fs::write(root.join(name), "text").unwrap();
        }
        fs::write(root.join("a/bare"), b"\xff\xd8\xff\xe0").unwrap();
        let tree = Tree::walk(root).unwrap();
        assert_eq!(names(&tree.labels, root), ["a/y.xml", "x.XML"]);
        assert_eq!(names(&tree.pictures, root), ["a/b/y.JPG", "a/bare", "photo.heic"]);
        assert_eq!(tree.named("Y"), tree.named("y.jpg"));
        assert_eq!(tree.named("BARE").len(), 1);
        assert!(tree.named("z").is_empty());
    }

    #[test]
    fn decomposed_korean_names_are_found_by_composed_ones() {
        let folder = tempfile::tempdir().unwrap();
        let decomposed: String = "너구리.jpg".nfd().collect();
        assert_ne!(decomposed, "너구리.jpg");
        fs::write(folder.path().join(decomposed), "").unwrap();
        let tree = Tree::walk(folder.path()).unwrap();
        assert_eq!(tree.named("너구리.JPG").len(), 1);
        assert_eq!(tree.named("너구리").len(), 1);
    }

    #[test]
    fn paths_of_two_encodings_are_read_part_by_part() {
        use std::os::unix::ffi::OsStrExt;
        let path = |start: &str| Path::new(start).join(OsStr::from_bytes(b"\xb0\xb3.jpg"));
        assert_eq!(path_as_text(&path("/images/사진")), "/images/사진/개.jpg");
        assert_eq!(path_as_text(&path("사진")), "사진/개.jpg");
    }

    #[test]
    fn links_in_a_circle_end_and_repeats_count_once() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        fs::create_dir(root.join("real")).unwrap();
        fs::write(root.join("real/a.xml"), "").unwrap();
        symlink(root.join("real"), root.join("again")).unwrap();
        symlink(root, root.join("real/up")).unwrap();
        symlink(root.join("gone"), root.join("dangling.jpg")).unwrap();
        let tree = Tree::walk(root).unwrap();
        assert_eq!(names(&tree.labels, root), ["real/a.xml"]);
        let said: Vec<String> = tree.findings.iter().map(ToString::to_string).collect();
        assert!(said.iter().any(|s| s.contains("leads back")), "{said:?}");
        assert!(said.iter().any(|s| s.contains("dangling.jpg") && s.contains("leads nowhere")), "{said:?}");
    }

    #[test]
    fn a_missing_input_folder_names_the_flag() {
        let error = Tree::walk(Path::new("no/such/folder")).unwrap_err().to_string();
        assert!(error.contains("--input_folder"), "{error}");
    }

    #[test]
    fn the_last_part_is_found_in_windows_paths() {
        assert_eq!(last_part(r"C:\Users\a b\IMG_1.jpg"), "IMG_1.jpg");
        assert_eq!(last_part("/home/a/b.jpg"), "b.jpg");
        assert_eq!(last_part("b.jpg"), "b.jpg");
        assert_eq!(stem("dayride.mp4#t=1055.jpg"), "dayride.mp4#t=1055");
        assert_eq!(stem(".jpg"), ".jpg");
    }
}
