//! The pictures that a command line means: files, folders (with all below them) and globs.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::io::Read;
use std::path::{Component, Path, PathBuf};

use anyhow::{Result, bail, ensure};
use walkdir::WalkDir;

use super::dataset::walk::path_as_text;
use super::image::{EXTENSIONS, OTHER_EXTENSIONS, sniff};
use crate::formats::atomic_file::is_hidden;

/// What lies beside pictures in this trade and is none: passed over where several files are given, as a shell's `*` gives them.
const BESIDE: [&str; 10] = ["xml", "csv", "json", "txt", "log", "pbtxt", "record", "config", "md", "zip"];

/// One picture to look at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Input {
    pub path: PathBuf,
    /// Where its results go, below the output folder: the path below the folder that was given, or the file's name. No
    /// two pictures have the same; where they would (`a/1.jpg b/1.jpg`), the names of the folders above stand before it.
    pub place: PathBuf,
    /// `place` as text, as tfgen writes and reads it too, with `/` between folders.
    pub name: String,
}

/// Finds the pictures, in the order of the arguments and sorted within a folder or glob; each file once.
///
/// An argument that exists is taken literally, also if its name has a glob's letters. Files and folders whose name starts
/// with a dot, and the folder `output`, if results go anywhere, where it lies below a given folder, are passed over; so are, where several arguments are given and
/// in globs, `output` itself and files that are usual beside pictures.
///
/// # Errors
/// If an argument is no file, no folder and matches nothing, if no picture is found at all, or if a picture's result would
/// stand in the place of one that is looked at.
pub fn find(arguments: &[PathBuf], output: Option<&Path>) -> Result<Vec<Input>> {
    let mut finder =
        Finder { output: output.map(canonical), seen: HashSet::new(), found: Vec::new(), taken: 0, others: BTreeSet::new() };
    let mut faults = Vec::new();
    let (mut empty, mut passed_over) = (Vec::new(), Vec::new());
    let several = arguments.len() > 1;
    for argument in arguments {
        let before = finder.taken;
        let is_output = argument.is_dir() && Some(canonical(argument)) == finder.output;
        if several && (is_output || argument.is_file() && ends_in(argument, &BESIDE)) {
            passed_over.push(argument);
        } else if let Err(e) = finder.take(argument) {
            faults.push(format!("{e:#}"));
        } else if finder.taken == before {
            empty.push(argument);
        }
    }
    if !faults.is_empty() {
        bail!("{}", faults.join("\n"));
    }
    if let Some(first) = finder.others.first() {
        tracing::warn!(
            "{} of a kind that cannot be read, `{}`{}; convert to JPEG or PNG",
            match finder.others.len() {
                1 => "1 picture is passed over, because it is".to_string(),
                count => format!("{count} pictures are passed over, because they are"),
            },
            first.display(),
            if finder.others.len() > 1 { " the first" } else { "" }
        );
    }
    let empty: Vec<String> = empty
        .into_iter()
        .map(|folder| format!("no pictures in `{}`: nothing there ends in {}", folder.display(), EXTENSIONS.join(", ")))
        .collect();
    if finder.found.is_empty() {
        ensure!(!empty.is_empty(), "there is no picture among the {} files and folders given", arguments.len());
        bail!("{}", empty.join("\n"));
    }
    if let Some(first) = passed_over.first() {
        let all = if passed_over.len() > 1 {
            format!("{} files and folders", passed_over.len())
        } else {
            "1 file or folder".to_string()
        };
        tracing::warn!(
            "{all} passed over as no pictures to look at: `{}`{}",
            first.display(),
            if passed_over.len() > 1 { ", ..." } else { "" }
        );
    }
    for fault in empty {
        tracing::warn!("{fault}");
    }
    let inputs = name_apart(finder.found);
    if let Some(output) = output {
        let looked_at: HashMap<PathBuf, &Path> =
            inputs.iter().map(|input| (canonical(&input.path), input.path.as_path())).collect();
        for input in &inputs {
            let result = output.join(&input.place);
            if result.exists()
                && let Some(replaced) = looked_at.get(&canonical(&result))
            {
                bail!(
                    "the annotated picture of `{}` would replace `{}`, which is to be looked at; name another folder with --output_dir",
                    input.path.display(),
                    replaced.display()
                );
            }
        }
    }
    Ok(inputs)
}

/// A file and its path below what was given.
struct FoundFile {
    path: PathBuf,
    below: PathBuf,
}

struct Finder {
    output: Option<PathBuf>,
    /// Files already found, by their real path.
    seen: HashSet<PathBuf>,
    found: Vec<FoundFile>,
    /// Counts every picture, also one that was there already.
    taken: usize,
    /// Pictures in folders that end in something that cannot be read.
    others: BTreeSet<PathBuf>,
}

impl Finder {
    fn take(&mut self, argument: &Path) -> Result<()> {
        if argument.is_dir() {
            self.take_folder(argument, Path::new(""));
            return Ok(());
        }
        if argument.exists() {
            if !argument.is_file() {
                // A pipe could be waited for, and a device read, for ever.
                bail!("`{}` is no file but a device or a pipe", argument.display());
            }
            self.take_file(argument, Path::new(argument.file_name().unwrap_or(argument.as_os_str())));
            return Ok(());
        }
        if argument.symlink_metadata().is_ok() {
            bail!("`{}` is a link to a file that is not there", argument.display());
        }
        let Some(pattern) = argument.to_str().filter(|text| text.contains(['*', '?', '['])) else {
            bail!("`{}` is not there: no such file or folder", argument.display());
        };
        let matches = match glob::glob(pattern) {
            Ok(matches) => matches,
            Err(e) => bail!("`{pattern}` is not there, and as a pattern it is wrong: {e}"),
        };
        // The folder in which the pattern begins to be one.
        let fixed: PathBuf = Path::new(pattern)
            .components()
            .take_while(|part| !part.as_os_str().to_string_lossy().contains(['*', '?', '[']))
            .collect();
        let fixed = canonical(if fixed.as_os_str().is_empty() { Path::new(".") } else { &fixed });
        let output = self.output.as_ref().filter(|output| !fixed.starts_with(output));
        let is_output = |path: &Path| output.is_some_and(|output| canonical(path).starts_with(output));
        let mut any = false;
        let mut matched = Vec::new();
        for path in matches {
            match path {
                Ok(path) => {
                    any = true;
                    if !(is_output(&path) || path.is_file() && ends_in(&path, &BESIDE)) {
                        matched.push(path);
                    }
                }
                Err(e) => tracing::warn!("`{}` is passed over: {}", e.path().display(), e.error()),
            }
        }
        if !any {
            bail!("nothing matches `{pattern}`");
        }
        for path in matched {
            let name = path.file_name().map(OsStr::to_os_string).unwrap_or_default();
            if path.is_dir() {
                self.take_folder(&path, Path::new(&name));
            } else if path.is_file() {
                self.take_file(&path, Path::new(&name));
            }
        }
        Ok(())
    }

    /// All pictures below `folder`; their places start with `prefix`.
    fn take_folder(&mut self, folder: &Path, prefix: &Path) {
        let output = self.output.clone();
        let walk = WalkDir::new(folder).follow_links(true).sort_by_file_name().into_iter().filter_entry(|entry| {
            // What was given itself may be hidden, or the output folder; `find` looks at the latter.
            entry.depth() == 0
                || !(is_hidden(entry.path()) || (entry.file_type().is_dir() && Some(canonical(entry.path())) == output))
        });
        for entry in walk {
            match entry {
                Ok(entry) if entry.file_type().is_file() && is_picture(entry.path()) => {
                    let below = entry.path().strip_prefix(folder).unwrap_or(entry.path());
                    self.take_file(entry.path(), &prefix.join(below));
                }
                Ok(entry) if entry.file_type().is_file() && ends_in(entry.path(), &OTHER_EXTENSIONS) => {
                    self.others.insert(entry.into_path());
                }
                Ok(_) => {}
                Err(e) => tracing::warn!("`{}` is passed over: {e}", e.path().unwrap_or(folder).display()),
            }
        }
    }

    fn take_file(&mut self, path: &Path, below: &Path) {
        self.taken += 1;
        if self.seen.insert(canonical(path)) {
            self.found.push(FoundFile { path: path.to_path_buf(), below: below.to_path_buf() });
        }
    }
}

/// By its name; where that is of a kind that cannot be read, by its first bytes: many a JPEG is called `.heic`.
fn is_picture(path: &Path) -> bool {
    let begins_as_one = || {
        let mut start = Vec::new();
        let read = std::fs::File::open(path).and_then(|file| file.take(16).read_to_end(&mut start));
        read.is_ok() && sniff(&start).is_some()
    };
    ends_in(path, &EXTENSIONS) || ends_in(path, &OTHER_EXTENSIONS) && begins_as_one()
}

fn ends_in(path: &Path, extensions: &[&str]) -> bool {
    let extension = path.extension().and_then(OsStr::to_str).map(str::to_ascii_lowercase);
    extension.is_some_and(|e| extensions.contains(&e.as_str()))
}

/// The real path, or the nearest thing to it for a path that is not there (yet).
fn canonical(path: &Path) -> PathBuf {
    path.canonicalize().or_else(|_| std::path::absolute(path)).unwrap_or_else(|_| path.to_path_buf())
}

/// Gives every picture a place and a name of its own.
fn name_apart(found: Vec<FoundFile>) -> Vec<Input> {
    // Real paths, from which folders are put before the places of those that clash, one more each time round.
    let real: Vec<Vec<OsString>> = found.iter().map(|f| normal_parts(&canonical(&f.path))).collect();
    let mut lengths: Vec<usize> = found.iter().map(|f| normal_parts(&f.below).len()).collect();
    let place = |i: usize, length: usize| -> PathBuf {
        let below = normal_parts(&found[i].below);
        let above = real[i].len().saturating_sub(below.len());
        let more = length.saturating_sub(below.len()).min(above);
        real[i][above - more..above].iter().chain(&below).collect()
    };
    let whole: Vec<String> = (0..found.len()).map(|i| path_as_text(&place(i, real[i].len())).to_lowercase()).collect();
    loop {
        let mut by_name: BTreeMap<String, Vec<usize>> = BTreeMap::new();
        for (i, &length) in lengths.iter().enumerate() {
            by_name.entry(path_as_text(&place(i, length)).to_lowercase()).or_default().push(i);
        }
        // No folder above tells apart what differs in upper and lower case only; numbers do.
        let alike = |group: &[usize]| group.iter().all(|&i| whole[i] == whole[group[0]]);
        let mut changed = false;
        for i in by_name.into_values().filter(|group| !alike(group)).flatten() {
            if lengths[i] < real[i].len() {
                lengths[i] += 1;
                changed = true;
            }
        }
        if !changed {
            break;
        }
    }
    let mut taken: HashSet<String> = HashSet::new();
    let mut inputs = Vec::with_capacity(found.len());
    for (i, file) in found.iter().enumerate() {
        let mut place = place(i, lengths[i]);
        // Two links to one name in different folders that were both walked to their roots: numbers tell them apart.
        for number in 2.. {
            if taken.insert(path_as_text(&place).to_lowercase()) {
                break;
            }
            let mut name = OsString::from(format!("{number}-"));
            name.push(file.below.file_name().unwrap_or_default());
            place.set_file_name(name);
        }
        inputs.push(Input { path: file.path.clone(), name: path_as_text(&place), place });
    }
    inputs
}

fn normal_parts(path: &Path) -> Vec<OsString> {
    path.components()
        .filter_map(|part| match part {
            Component::Normal(part) => Some(part.to_os_string()),
            _ => None,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder with these files in it.
    fn folder(files: &[&str]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for file in files {
            let path = folder.path().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, b"").unwrap();
        }
        folder
    }

    fn names(folder: &tempfile::TempDir, arguments: &[&str]) -> Result<Vec<String>> {
        let arguments: Vec<PathBuf> = arguments.iter().map(|a| folder.path().join(a)).collect();
        Ok(find(&arguments, Some(&folder.path().join("detections")))?.into_iter().map(|i| i.name).collect())
    }

    #[test]
    fn folders_are_searched_to_the_bottom_and_sorted() {
        let f = folder(&["p/b.JPG", "p/a.png", "p/notes.txt", "p/sub/c.jpeg", "p/.hidden.jpg", "p/.git/d.jpg", "p/a.xml"]);
        assert_eq!(names(&f, &["p"]).unwrap(), ["a.png", "b.JPG", "sub/c.jpeg"]);
        assert_eq!(names(&f, &["p/"]).unwrap(), ["a.png", "b.JPG", "sub/c.jpeg"]);
    }

    #[test]
    fn pictures_that_are_called_otherwise_are_found_in_folders() {
        let f = folder(&["p/a.png", "p/b.tif", "p/c.heic", "p/d"]);
        std::fs::write(f.path().join("p/c.heic"), [0xFF, 0xD8, 0xFF, 0xE0]).unwrap();
        assert_eq!(names(&f, &["p"]).unwrap(), ["a.png", "c.heic"]);
    }

    #[test]
    fn a_file_may_end_in_anything() {
        let f = folder(&["p/photo", "p/x.jpg.bak"]);
        assert_eq!(names(&f, &["p/photo", "p/x.jpg.bak"]).unwrap(), ["photo", "x.jpg.bak"]);
    }

    #[test]
    fn quoted_globs_match_and_files_with_a_globs_letters_are_themselves() {
        let f = folder(&["p/a1.jpg", "p/a2.jpg", "p/b.jpg", "p/a[1].jpg", "p/x*.jpg", "p/xy.jpg"]);
        assert_eq!(names(&f, &["p/a?.jpg"]).unwrap(), ["a1.jpg", "a2.jpg"]);
        assert_eq!(names(&f, &["p/a[1].jpg"]).unwrap(), ["a[1].jpg"]);
        assert_eq!(names(&f, &["p/x*.jpg"]).unwrap(), ["x*.jpg"]);
        assert_eq!(names(&f, &["**/b.jpg"]).unwrap(), ["b.jpg"]);
    }

    #[test]
    fn each_file_comes_once_however_often_it_is_named() {
        let f = folder(&["p/a.jpg", "p/b.jpg"]);
        assert_eq!(names(&f, &["p/a.jpg", "p", "p/../p/b.jpg", "p/*.jpg"]).unwrap(), ["a.jpg", "b.jpg"]);
    }

    #[test]
    fn the_same_name_in_two_folders_gets_the_folders_before_it() {
        let f = folder(&["x/one/1.jpg", "x/two/1.jpg", "x/two/2.jpg", "y/one/1.jpg"]);
        assert_eq!(
            names(&f, &["x/one/1.jpg", "x/two", "y/one/1.jpg"]).unwrap(),
            ["x/one/1.jpg", "two/1.jpg", "2.jpg", "y/one/1.jpg"]
        );
        assert_eq!(names(&f, &["x"]).unwrap(), ["one/1.jpg", "two/1.jpg", "two/2.jpg"]);
        assert_eq!(names(&f, &["x/*"]).unwrap(), ["one/1.jpg", "two/1.jpg", "two/2.jpg"]);
    }

    #[test]
    fn names_that_differ_only_in_case_are_kept_apart_for_systems_that_do_not_tell() {
        let f = folder(&["x/A.jpg", "y/a.jpg"]);
        assert_eq!(names(&f, &["x", "y"]).unwrap(), ["x/A.jpg", "y/a.jpg"]);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn names_in_one_folder_that_differ_only_in_case_get_numbers() {
        let f = folder(&["x/A.jpg", "x/a.jpg", "y/a.JPG", "z/b.jpg"]);
        assert_eq!(names(&f, &["x", "z"]).unwrap(), ["A.jpg", "2-a.jpg", "b.jpg"]);
        assert_eq!(names(&f, &["x", "y"]).unwrap(), ["x/A.jpg", "x/2-a.jpg", "y/a.JPG"]);
    }

    #[cfg(unix)]
    #[test]
    fn devices_and_pipes_are_refused_and_passed_over_in_folders_and_globs() {
        let f = folder(&["p/a.jpg"]);
        assert!(std::process::Command::new("mkfifo").arg(f.path().join("p/pipe.jpg")).status().unwrap().success());
        for argument in ["/dev/zero", "p/pipe.jpg"] {
            assert!(names(&f, &[argument]).unwrap_err().to_string().contains("a device or a pipe"), "{argument}");
        }
        assert_eq!(names(&f, &["p"]).unwrap(), ["a.jpg"]);
        assert_eq!(names(&f, &["p/*.jpg"]).unwrap(), ["a.jpg"]);
    }

    #[test]
    fn our_own_results_are_not_looked_at() {
        let f = folder(&["a.jpg", "detections/a.jpg", "detections/sub/b.jpg", "other/detections/c.jpg"]);
        assert_eq!(names(&f, &["."]).unwrap(), ["a.jpg", "other/detections/c.jpg"]);
        for glob in ["**/*.jpg", "*", "*/**/*"] {
            let found = names(&f, &[glob, "a.jpg"]).unwrap();
            assert!(found.iter().all(|name| name.ends_with("a.jpg") || name.ends_with("c.jpg")), "{glob}: {found:?}");
        }
        // As a shell gives `*`, with what else lies there.
        let f = folder(&["a.jpg", "a.xml", "process.log", "detections/a.jpg", "x.bin"]);
        assert_eq!(names(&f, &["a.jpg", "a.xml", "detections", "process.log"]).unwrap(), ["a.jpg"]);
        assert_eq!(names(&f, &["a.jpg", "x.bin"]).unwrap(), ["a.jpg", "x.bin"], "whatever that is");
        assert_eq!(names(&f, &["a.xml"]).unwrap(), ["a.xml"], "asked for alone");
        assert!(names(&f, &["a.xml", "detections"]).unwrap_err().to_string().contains("no picture among"));
    }

    #[test]
    fn pictures_in_the_output_folder_can_be_asked_for() {
        let f = folder(&["detections/in/a.jpg", "detections/in/b.jpg"]);
        assert_eq!(names(&f, &["detections/in/a.jpg", "detections/in/b.jpg"]).unwrap(), ["a.jpg", "b.jpg"]);
        assert_eq!(names(&f, &["detections/in/*.jpg"]).unwrap(), ["a.jpg", "b.jpg"]);
    }

    #[test]
    fn a_result_never_replaces_its_picture() {
        let f = folder(&["detections/a.jpg", "b.jpg"]);
        for argument in ["detections", "detections/a.jpg", "detections/../detections/a.jpg"] {
            let error = names(&f, &[argument]).unwrap_err();
            assert!(error.to_string().contains("--output_dir"), "{error}");
        }
        let error = find(&[f.path().to_path_buf()], Some(f.path())).unwrap_err();
        assert!(error.to_string().contains("b.jpg"), "{error}");
        // Nor another's that is looked at.
        let f = folder(&["x/sub/b.jpg", "detections/sub/b.jpg"]);
        let error = names(&f, &["x", "detections/sub/b.jpg"]).unwrap_err().to_string();
        assert!(error.contains("of `") && error.contains("detections/sub/b.jpg") && error.contains("--output_dir"), "{error}");
    }

    #[test]
    fn what_is_not_there_is_named_and_nothing_is_done() {
        let f = folder(&["p/a.jpg", "empty/notes.txt"]);
        let error = names(&f, &["p", "gone.jpg", "q*.jpg", "[a"]).unwrap_err().to_string();
        for part in ["gone.jpg` is not there", "nothing matches", "q*.jpg", "[a` is not there, and as a pattern"] {
            assert!(error.contains(part), "{part}: {error}");
        }
        let error = names(&f, &["empty"]).unwrap_err().to_string();
        assert!(error.contains("no pictures in") && error.contains("jpg, jpeg"), "{error}");
        assert_eq!(names(&f, &["empty", "p"]).unwrap(), ["a.jpg"]);
    }

    #[cfg(unix)]
    #[test]
    fn links_in_a_circle_end_and_dangling_ones_are_named() {
        let f = folder(&["p/a.jpg"]);
        std::os::unix::fs::symlink(f.path().join("p"), f.path().join("p/loop")).unwrap();
        std::os::unix::fs::symlink("nowhere", f.path().join("p/dangling.jpg")).unwrap();
        assert_eq!(names(&f, &["p"]).unwrap(), ["a.jpg"]);
        assert!(names(&f, &["p/dangling.jpg"]).unwrap_err().to_string().contains("a link to a file that is not there"));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn names_that_are_not_utf8_are_found_and_written_as_tfgen_reads_them() {
        use std::os::unix::ffi::OsStrExt;
        let f = folder(&["p/a.jpg"]);
        let odd = OsStr::from_bytes(b"p/\xB0\xA1.jpg");
        std::fs::write(f.path().join(odd), b"").unwrap();
        assert_eq!(names(&f, &["p"]).unwrap(), ["a.jpg", "가.jpg"]);
        let found = find(&[f.path().join(odd)], Some(Path::new("out"))).unwrap();
        assert_eq!(found[0].place.as_os_str().as_bytes(), b"\xB0\xA1.jpg");
        assert!(find(&[f.path().join(OsStr::from_bytes(b"p/*\xFF"))], Some(Path::new("out"))).is_err());
    }
}
