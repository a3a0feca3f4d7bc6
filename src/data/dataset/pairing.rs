//! Which picture belongs to which label file.
//!
//! A label file asks for pictures in its order of preference; a picture that several ask for goes to the one that it fits
//! best, and the others ask for their next (Gale and Shapley's deferred acceptance).

use std::cmp::Ordering;
use std::collections::HashMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use crate::data::dataset::finding::{Finding, shown};
use crate::data::dataset::walk::{Tree, composed, file_name, last_part, path_as_text, stem};
use crate::data::image::OTHER_EXTENSIONS;
use crate::formats::voc::Annotation;
use crate::wording::printable;

/// What a label file says of its picture's name and place.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    /// The label file.
    pub labels: PathBuf,
    /// Its `<folder>`.
    pub folder: Option<String>,
    /// Its `<filename>`'s last part.
    pub filename: Option<String>,
    /// The folders before it, where `<filename>` has any, the nearest last.
    pub filename_folders: Vec<String>,
    /// Its `<path>`.
    pub path: Option<String>,
}

impl Wanted {
    /// From what an XML file says.
    pub fn of(labels: &Path, annotation: &Annotation) -> Self {
        let filename = annotation.filename.as_deref().map(|name| last_part(name).to_string());
        Self {
            labels: labels.to_path_buf(),
            folder: annotation.folder.clone(),
            filename: filename.filter(|name| !name.is_empty()),
            filename_folders: annotation.filename.as_deref().map(folders_in).unwrap_or_default(),
            path: annotation.path.clone(),
        }
    }
}

/// How a picture was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Way {
    /// By the label file's own name.
    Own,
    /// By `<filename>`.
    Filename,
    /// By the last part of `<path>`.
    Path,
}

impl Way {
    fn words(self) -> &'static str {
        match self {
            Way::Own => "the XML's own name",
            Way::Filename => "<filename>",
            Way::Path => "the last part of <path>",
        }
    }
}

/// How well a picture fits a label file: smaller is better.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Fit {
    way: Way,
    /// `<filename>` names folders, and the picture lies in others; not asked where the label file's own name leads to it.
    elsewhere: bool,
    /// Folders to go up and down from one to the other, less what the ends of their paths share.
    distance: isize,
    /// The names look alike and have other bytes: in another Unicode form, or in another encoding.
    other_bytes: bool,
    /// Its extension is that of a kind of picture that cannot be used.
    unusable: bool,
    name: Name,
    /// Folders that the end of `<path>` or `<filename>` and the picture's path share, and whether `<folder>` names its folder, as negatives;
    /// only asked where several pictures come into question.
    hints: isize,
}

/// How near a picture's name is to the one that is looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Name {
    /// Letter for letter.
    Same,
    /// The same letters in another Unicode form.
    OtherForm,
    OtherExtension,
    OtherCase,
}

#[derive(Debug, Clone)]
struct Candidate {
    picture: usize,
    fit: Fit,
    /// Pictures that fit exactly as well.
    rivals: Vec<usize>,
}

/// The index in `tree.pictures` for each label file, or `None`, with what there is to say.
pub fn pair(tree: &Tree, wanted: &[Wanted]) -> (Vec<Option<usize>>, Vec<Finding>) {
    let choices: Vec<Vec<Candidate>> = wanted.par_iter().map(|wanted| of_xml(tree, wanted)).collect();
    let mut next = vec![0; wanted.len()];
    // Who has each picture for now.
    let mut holder: HashMap<usize, usize> = HashMap::new();
    let mut asking: Vec<usize> = (0..wanted.len()).rev().collect();
    while let Some(asker) = asking.pop() {
        let Some(candidate) = choices[asker].get(next[asker]) else { continue };
        let rank = |who: usize| (&choices[who][next[who]].fit, &wanted[who].labels);
        match holder.get(&candidate.picture).copied() {
            Some(other) if rank(other).cmp(&rank(asker)) == Ordering::Less => {
                next[asker] += 1;
                asking.push(asker);
            }
            before => {
                holder.insert(candidate.picture, asker);
                if let Some(other) = before {
                    next[other] += 1;
                    asking.push(other);
                }
            }
        }
    }
    let mut pairs = vec![None; wanted.len()];
    let mut findings = Vec::new();
    for (i, wants) in wanted.iter().enumerate() {
        match choices[i].get(next[i]) {
            Some(candidate) => pairs[i] = accept(tree, wants, candidate, &mut findings),
            None => {
                let taken = choices[i].first().and_then(|candidate| {
                    let other = holder.get(&candidate.picture)?;
                    Some((&tree.pictures[candidate.picture], &wanted[*other].labels))
                });
                findings.push(missing(tree, wants, taken));
            }
        }
    }
    (pairs, findings)
}

/// The picture, if it is clear which it is; says so if it has another name than the XML gives.
fn accept(tree: &Tree, wanted: &Wanted, candidate: &Candidate, findings: &mut Vec<Finding>) -> Option<usize> {
    let picture = &tree.pictures[candidate.picture];
    if let Some(&rival) = candidate.rivals.first() {
        let rival = &tree.pictures[rival];
        if !candidate.rivals.iter().all(|&rival| same_bytes(picture, &tree.pictures[rival])) {
            findings.push(Finding::picture_skipped(
                &wanted.labels,
                format!(
                    "two pictures fit equally well, `{}` and `{}`; put the right one beside the XML",
                    shown(picture),
                    shown(rival)
                ),
            ));
            return None;
        }
    }
    let name = file_name(picture);
    match &wanted.filename {
        Some(filename) if composed(filename) == composed(&name) => {}
        Some(filename) => findings.push(Finding::note(
            &wanted.labels,
            format!(
                "<filename> says `{}`; `{}` is used, found by {}",
                printable(filename),
                shown(picture),
                candidate.fit.way.words()
            ),
        )),
        None => findings.push(Finding::note(
            &wanted.labels,
            format!("there is no <filename>; `{}` is used, found by {}", shown(picture), candidate.fit.way.words()),
        )),
    }
    Some(candidate.picture)
}

fn missing(tree: &Tree, wanted: &Wanted, taken: Option<(&PathBuf, &PathBuf)>) -> Finding {
    if let Some((picture, owner)) = taken {
        return Finding::picture_skipped(
            &wanted.labels,
            format!(
                "its picture `{}` is already labelled by `{}`, which fits it better, and there is no other; remove one of \
                 the two XML files, or put the missing picture there",
                shown(picture),
                shown(owner)
            ),
        );
    }
    let mut looked = vec![format!("`{}.*` (the XML's own name)", stem(&file_name(&wanted.labels)))];
    if let Some(filename) = &wanted.filename {
        looked.push(format!("<filename> `{}`", printable(filename)));
    }
    if let Some(path) = &wanted.path {
        looked.push(format!("<path>'s `{}`", printable(last_part(path))));
    }
    Finding::picture_skipped(
        &wanted.labels,
        format!(
            "no picture: {} {} below `{}`; put the picture there or remove the XML",
            looked.join(", "),
            if looked.len() == 1 { "is not" } else { "are not" },
            shown(&tree.root)
        ),
    )
}

/// The picture that a CSV file means by `filename`: a path below the input folder, or else a name anywhere in it.
///
/// # Errors
/// What is wrong and what to do, if there is none or it is not clear which.
pub fn by_filename(tree: &Tree, filename: &str) -> Result<(usize, Option<String>), String> {
    // To the letter, a backslash or a space at an end being one: those are letters of a name here.
    let letters = |&&picture: &&usize| tree.pictures[picture].file_name() == Some(OsStr::new(filename));
    let mut exact = tree.named(filename).iter().filter(letters);
    if let (Some(&picture), None) = (exact.next(), exact.next()) {
        return Ok((picture, None));
    }
    let filename = filename.trim();
    let said = filename.replace('\\', "/");
    for path in [tree.root.join(filename), tree.root.join(&said)].into_iter().chain(below(&tree.root, Path::new(&said))) {
        if let Ok(picture) = tree.pictures.binary_search(&path) {
            return Ok((picture, None));
        }
    }
    let wanted = Wanted {
        // As if it stood in the input folder itself.
        labels: tree.root.join("."),
        folder: None,
        filename: Some(last_part(filename).to_string()),
        filename_folders: vec![],
        path: Some(filename.to_string()),
    };
    let mut found = candidates(tree, &wanted, &[(Way::Filename, last_part(filename))]);
    // No label file lies anywhere: letter for letter and the folders that are named come before nearness to the input folder.
    found.sort_by_key(|candidate| (candidate.fit.name, candidate.fit.hints));
    let Some(candidate) = found.first() else {
        return Err(format!(
            "there is no picture `{}` below `{}`; put it there or remove the line",
            printable(filename),
            shown(&tree.root)
        ));
    };
    let picture = &tree.pictures[candidate.picture];
    if let Some(&rival) = candidate.rivals.iter().find(|&&rival| !same_bytes(picture, &tree.pictures[rival])) {
        return Err(format!(
            "`{}` and `{}` fit equally well; write the path below `{}` in the CSV",
            shown(picture),
            shown(&tree.pictures[rival]),
            shown(&tree.root)
        ));
    }
    let in_said_folder = folders_in(filename).is_empty() || hints(&wanted, picture) > 0;
    let same = composed(&file_name(picture)) == composed(last_part(filename)) && in_said_folder;
    let note = (!same).then(|| format!("the filename is `{}`; `{}` is used", printable(filename), shown(picture)));
    Ok((candidate.picture, note))
}

/// The path as the tree has it, of a file that is named from where the program runs or by its whole path.
fn below(root: &Path, said: &Path) -> Option<PathBuf> {
    let real = said.canonicalize().ok()?;
    Some(root.join(real.strip_prefix(root.canonicalize().ok()?).ok()?))
}

/// The folders of a path of any system, the nearest to the file last.
fn folders_in(path: &str) -> Vec<String> {
    let mut parts: Vec<String> = path.split(['/', '\\']).map(str::to_string).collect();
    parts.pop();
    parts.retain(|part| !matches!(part.as_str(), "" | "."));
    parts
}

/// The pictures that a label file may mean, the best first, each once.
fn of_xml(tree: &Tree, wanted: &Wanted) -> Vec<Candidate> {
    let own = stem(&file_name(&wanted.labels));
    let mut ways = vec![(Way::Own, own.as_str())];
    ways.extend(wanted.filename.as_deref().map(|name| (Way::Filename, name)));
    ways.extend(wanted.path.as_deref().map(|path| (Way::Path, last_part(path))));
    candidates(tree, wanted, &ways)
}

fn candidates(tree: &Tree, wanted: &Wanted, ways: &[(Way, &str)]) -> Vec<Candidate> {
    let mut found: Vec<Candidate> = Vec::new();
    for &(way, name) in ways {
        // `a.jpg` means `a.jpg`, and `a.png` if there is no such; the XML's own name has no extension to take off.
        let bare = if way == Way::Own { name.to_string() } else { stem(name) };
        let mut step: Vec<Candidate> = Vec::new();
        for &picture in tree.named(name).iter().chain(tree.named(&bare)) {
            let known = found.iter().chain(&step).any(|candidate| candidate.picture == picture);
            if !known {
                let fit = fit(tree, wanted, way, name, picture);
                step.push(Candidate { picture, fit, rivals: Vec::new() });
            }
        }
        if step.len() > 1 {
            for candidate in &mut step {
                candidate.fit.hints = -hints(wanted, &tree.pictures[candidate.picture]);
            }
        }
        step.sort_by(|a, b| a.fit.cmp(&b.fit).then(a.picture.cmp(&b.picture)));
        for i in 0..step.len() {
            let rivals = step.iter().enumerate().filter(|(j, other)| *j != i && other.fit == step[i].fit);
            step[i].rivals = rivals.map(|(_, other)| other.picture).collect();
        }
        found.append(&mut step);
    }
    found
}

fn fit(tree: &Tree, wanted: &Wanted, way: Way, name: &str, picture: usize) -> Fit {
    let path = &tree.pictures[picture];
    let here = file_name(path);
    let said = wanted.filename.as_deref().unwrap_or_default();
    let (here_composed, name_composed) = (composed(&here), composed(name));
    // The stems are asked for their bytes where it is the label file's own name that counts.
    let other_bytes = way == Way::Own
        && stem(&here_composed) == name_composed
        && path.file_stem().map(OsStr::as_encoded_bytes) != wanted.labels.file_stem().map(OsStr::as_encoded_bytes);
    let name = if here == name || here == said {
        Name::Same
    } else if here_composed == name_composed || here_composed == composed(said) {
        Name::OtherForm
    } else if stem(&here_composed) == name_composed || stem(&here_composed) == stem(&name_composed) {
        Name::OtherExtension
    } else {
        Name::OtherCase
    };
    let extension = path.extension().map(OsStr::to_ascii_lowercase);
    let unusable = extension.is_some_and(|end| OTHER_EXTENSIONS.iter().any(|other| end == *other));
    let elsewhere = way != Way::Own && shared(&wanted.filename_folders, path) < wanted.filename_folders.len();
    Fit { way, elsewhere, distance: distance(&wanted.labels, path), other_bytes, unusable, name, hints: 0 }
}

/// Folders between two files: those to go up and down, less those that the ends of the two paths share.
///
/// So `annotations/train/a.xml` is nearer to `images/train/a.jpg` than to `images/test/a.jpg`.
fn distance(a: &Path, b: &Path) -> isize {
    if a.parent() == b.parent() {
        return 0;
    }
    let folders = |path: &Path| -> Vec<String> {
        let folder = path.parent().unwrap_or(Path::new(""));
        folder.components().map(|part| path_as_text(part.as_ref())).collect()
    };
    let (a, b) = (folders(a), folders(b));
    let above = a.iter().zip(&b).take_while(|(a, b)| a == b).count();
    let (a, b) = (&a[above..], &b[above..]);
    let shared = a.iter().rev().zip(b.iter().rev()).take_while(|(a, b)| a == b).count();
    (a.len() + b.len() - 2 * shared) as isize
}

fn hints(wanted: &Wanted, picture: &Path) -> isize {
    let in_path = wanted.path.as_deref().map_or(0, |path| shared(&folders_in(path), picture));
    let shared = in_path.max(shared(&wanted.filename_folders, picture));
    let folder = picture.parent().and_then(Path::file_name).map(|name| path_as_text(name.as_ref()));
    let named = wanted.folder.as_deref().is_some_and(|name| folder.is_some_and(|folder| composed(&folder) == composed(name)));
    2 * shared as isize + isize::from(named)
}

/// How many of these folders, from the last on, are those that a file lies in.
fn shared(folders: &[String], file: &Path) -> usize {
    let lies_in = file.parent().unwrap_or(Path::new("")).components().rev();
    folders.iter().rev().zip(lies_in).take_while(|(a, b)| composed(a) == composed(&path_as_text(b.as_ref()))).count()
}

/// Only asked of pictures between which nothing else decides.
pub fn same_bytes(a: &Path, b: &Path) -> bool {
    let length = |path: &Path| std::fs::metadata(path).map(|meta| meta.len()).ok();
    length(a).is_some() && length(a) == length(b) && matches!((std::fs::read(a), std::fs::read(b)), (Ok(a), Ok(b)) if a == b)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use unicode_normalization::UnicodeNormalization;

    /// Writes empty files, pairs, and gives `label -> picture` with what was said.
    fn paired(files: &[&str], wants: &[(&str, Option<&str>, Option<&str>)]) -> (Vec<Option<String>>, String) {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        for name in files {
            let path = root.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, name).unwrap();
        }
        let tree = Tree::walk(root).unwrap();
        let wanted: Vec<Wanted> = wants
            .iter()
            .map(|(labels, filename, path)| {
                let annotation = Annotation {
                    filename: filename.map(str::to_string),
                    path: path.map(str::to_string),
                    ..Annotation::default()
                };
                Wanted::of(&root.join(labels), &annotation)
            })
            .collect();
        let (pairs, findings) = pair(&tree, &wanted);
        let relative = |i: usize| tree.pictures[i].strip_prefix(root).unwrap().display().to_string();
        let said: Vec<String> = findings.iter().map(ToString::to_string).collect();
        (pairs.into_iter().map(|pair| pair.map(relative)).collect(), said.join("\n"))
    }

    fn one(files: &[&str], want: (&str, Option<&str>, Option<&str>)) -> (Option<String>, String) {
        let (mut pairs, said) = paired(files, &[want]);
        (pairs.remove(0), said)
    }

    #[test]
    fn a_plain_pair_needs_no_word() {
        assert_eq!(one(&["a.jpg", "b.jpg"], ("a.xml", Some("a.jpg"), None)), (Some("a.jpg".into()), String::new()));
    }

    #[test]
    fn the_own_name_comes_before_filename_before_path() {
        let all = ["own.png", "file.jpg", "path.jpg"];
        let want = ("own.xml", Some("file.jpg"), Some(r"C:\x\path.jpg"));
        let (picture, said) = one(&all, want);
        assert_eq!(picture.as_deref(), Some("own.png"));
        assert!(said.contains("`file.jpg`") && said.contains("the XML's own name"), "{said}");
        assert_eq!(one(&all[1..], want).0.as_deref(), Some("file.jpg"));
        let (picture, said) = one(&all[2..], want);
        assert_eq!(picture.as_deref(), Some("path.jpg"));
        assert!(said.contains("<path>"), "{said}");
    }

    #[test]
    fn other_extensions_and_cases_and_missing_ones_are_found() {
        for (file, filename) in [
            ("a.jpg", "a"),
            ("a.JPG", "a.jpg"),
            ("A.jpg", "a.jpg"),
            ("a.png", "a.jpg"),
            ("a.mp4#t=1.jpg", "a.mp4#t=1"),
            ("b c.jpeg", "b c.jpg"),
        ] {
            let (picture, said) = one(&[file], ("other.xml", Some(filename), None));
            assert_eq!(picture.as_deref(), Some(file), "{filename}");
            assert!(said.contains(file), "{said}");
        }
    }

    #[test]
    fn the_same_name_in_two_folders_pairs_with_the_nearest() {
        let files = ["train/a.jpg", "test/a.jpg", "a.jpg"];
        let wants = [("train/a.xml", Some("a.jpg"), None), ("test/a.xml", Some("a.jpg"), None), ("a.xml", Some("a.jpg"), None)];
        let (pairs, said) = paired(&files, &wants);
        assert_eq!(pairs, files.map(|f| Some(f.to_string())));
        assert_eq!(said, "");
        let files = ["images/train/a.jpg", "images/test/a.jpg"];
        let (picture, _) = one(&files, ("annotations/test/a.xml", Some("a.jpg"), None));
        assert_eq!(picture.as_deref(), Some("images/test/a.jpg"));
    }

    #[test]
    fn folders_in_filename_say_which_of_one_name_is_meant() {
        // As CVAT writes it: the XML elsewhere, and the part of the set in <filename>.
        let files = ["pics/train/001.jpg", "pics/test/001.jpg"];
        let wants = [("labels/x1.xml", Some("train/001.jpg"), None), ("labels/x2.xml", Some(r"test\001.jpg"), None)];
        let (pairs, _) = paired(&files, &wants);
        assert_eq!(pairs, files.map(|f| Some(f.to_string())));
        let (picture, _) = one(&["images/001.jpg", "images/train/001.jpg"], ("images/x1.xml", Some("train/001.jpg"), None));
        assert_eq!(picture.as_deref(), Some("images/train/001.jpg"));
        // A picture that lies beside its XML, and is called like it, is meant whatever folder it came from.
        let (picture, said) = one(&["a/001.jpg", "train/001.jpg"], ("a/001.xml", Some("train/001.jpg"), None));
        assert_eq!((picture.as_deref(), said.as_str()), (Some("a/001.jpg"), ""));
    }

    #[test]
    fn a_picture_that_was_converted_is_used_beside_the_one_that_cannot_be() {
        for other in ["a.tif", "a.HEIC"] {
            let (picture, said) = one(&["a.jpg", other], ("a.xml", Some(other), None));
            assert_eq!(picture.as_deref(), Some("a.jpg"), "{other}");
            assert!(said.contains(other), "{said}");
            assert_eq!(one(&[other], ("a.xml", Some(other), None)).0.as_deref(), Some(other));
        }
    }

    #[test]
    fn a_csvs_folders_say_which_picture_is_meant() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("images");
        fs::create_dir_all(root.join("train")).unwrap();
        for name in ["a.jpg", "train/a.jpg", "train/b.jpg"] {
            fs::write(root.join(name), name).unwrap();
        }
        let tree = Tree::walk(&root).unwrap();
        let found = |name: &str| {
            let (picture, note) = by_filename(&tree, name).unwrap();
            (tree.pictures[picture].strip_prefix(&root).unwrap().display().to_string(), note.is_some())
        };
        let whole = root.join("train/a.jpg").display().to_string();
        for name in ["train/a.jpg", r"train\a.jpg", "images/train/a.jpg", r"C:\set\images\train\a.jpg", &whole] {
            assert_eq!(found(name), ("train/a.jpg".to_string(), false), "{name}");
        }
        assert_eq!(found("a.jpg"), ("a.jpg".to_string(), false));
        assert_eq!(found("images/a.jpg"), ("a.jpg".to_string(), false));
        // The only one of its name, but not where the CSV says.
        assert_eq!(found("val/b.jpg"), ("train/b.jpg".to_string(), true));
        assert_eq!(found("b.jpg"), ("train/b.jpg".to_string(), false));
    }

    #[test]
    fn pictures_that_were_converted_pair_within_their_own_part_of_mirrored_trees() {
        let files = ["images/train/1.jpg", "images/test/1.png"];
        let (picture, said) = one(&files, ("annotations/train/1.xml", Some("1.png"), None));
        assert_eq!(picture.as_deref(), Some("images/train/1.jpg"));
        assert!(said.contains("`1.png`"), "{said}");
        // A label file that was left over does not take the picture from the one of its name.
        let (pairs, said) = paired(&["p.jpg"], &[("p_old.xml", Some("p.jpg"), None), ("annotations/p.xml", Some("p.jpg"), None)]);
        assert_eq!(pairs, [None, Some("p.jpg".to_string())]);
        assert!(said.contains("p_old.xml"), "{said}");
    }

    #[test]
    fn a_csv_file_s_filename_is_taken_letter_for_letter_wherever_that_is() {
        let folder = tempfile::tempdir().unwrap();
        let decomposed: String = "너.jpg".nfd().collect();
        let deep = format!("deep/{decomposed}");
        let files = [
            "a/x.jpg",
            "deep/er/x.png",
            "a/Y.jpg",
            "deep/er/y.jpg",
            "너.jpg",
            &deep,
            "a/z.jpg",
            r"a/back\slash.jpg",
            "a/ w.jpg",
            "w.jpg",
        ];
        for name in files {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, name).unwrap();
        }
        let tree = Tree::walk(folder.path()).unwrap();
        let found = |name: &str| {
            let (picture, note) = by_filename(&tree, name).unwrap();
            (tree.pictures[picture].strip_prefix(folder.path()).unwrap().to_str().unwrap().to_string(), note.is_some())
        };
        assert_eq!(found("x.png"), ("deep/er/x.png".to_string(), false));
        assert_eq!(found("y.jpg"), ("deep/er/y.jpg".to_string(), false));
        assert_eq!(found(&decomposed), (format!("deep/{decomposed}"), false));
        assert_eq!(found("너.jpg"), ("너.jpg".to_string(), false));
        assert_eq!(found(r"back\slash.jpg"), (r"a/back\slash.jpg".to_string(), false));
        assert_eq!(found(" w.jpg"), ("a/ w.jpg".to_string(), false));
        assert_eq!(found("w.jpg "), ("w.jpg".to_string(), false));
        assert_eq!(found("z.png"), ("a/z.jpg".to_string(), true));
        assert_eq!(found("x.gif"), ("a/x.jpg".to_string(), true));
    }

    #[test]
    fn names_that_are_not_utf_8_are_told_apart() {
        use std::os::unix::ffi::OsStrExt;
        let folder = tempfile::tempdir().unwrap();
        // 개 and 새 in EUC-KR, and bytes that are neither EUC-KR nor UTF-8.
        let stems = [&b"\xb0\xb3"[..], b"\xbb\xf5", b"caf\xe9", b"caf\xe8"];
        let file = |stem: &[u8], end: &str| folder.path().join(std::ffi::OsStr::from_bytes(&[stem, end.as_bytes()].concat()));
        for stem in stems {
            fs::write(file(stem, ".jpg"), stem).unwrap();
        }
        let tree = Tree::walk(folder.path()).unwrap();
        let wanted: Vec<Wanted> = stems.map(|stem| Wanted::of(&file(stem, ".xml"), &Annotation::default())).to_vec();
        let (pairs, _) = pair(&tree, &wanted);
        let names: Vec<String> = pairs.iter().map(|pair| file_name(&tree.pictures[pair.unwrap()])).collect();
        assert_eq!(names, ["개.jpg", "새.jpg", "caf%E9.jpg", "caf%E8.jpg"]);
        let said = Wanted::of(&file(b"x", ".xml"), &Annotation { filename: Some("개.jpg".into()), ..Annotation::default() });
        assert_eq!(pair(&tree, &[said]).0[0], pairs[0], "by the name that the XML has in UTF-8");
        assert_eq!(by_filename(&tree, "caf%E8.jpg").unwrap().0, pairs[3].unwrap());
        // The same name in UTF-8 beside it: each goes with the label file of its bytes.
        for (stem, end) in [("개".as_bytes(), ".jpg"), ("개".as_bytes(), ".xml")] {
            fs::write(file(stem, end), stem).unwrap();
        }
        let tree = Tree::walk(folder.path()).unwrap();
        let both = [stems[0], "개".as_bytes()].map(|stem| Wanted::of(&file(stem, ".xml"), &Annotation::default()));
        let (pairs, said) = pair(&tree, &both);
        let found = pairs.iter().map(|pair| tree.pictures[pair.unwrap()].clone()).collect::<Vec<_>>();
        assert_eq!(found, [file(stems[0], ".jpg"), file("개".as_bytes(), ".jpg")], "{said:?}");
    }

    #[test]
    fn a_picture_goes_to_the_label_file_that_it_fits_best() {
        // b.xml was copied from a.xml and its own picture is gone.
        let (pairs, said) = paired(&["a.jpg"], &[("b.xml", Some("a.jpg"), None), ("a.xml", Some("a.jpg"), None)]);
        assert_eq!(pairs, [None, Some("a.jpg".to_string())]);
        assert!(said.contains("b.xml") && said.contains("already labelled by") && said.contains("a.xml"), "{said}");
        // train/001.xml labels cat.jpg; the other folder's 001.jpg belongs to its own XML.
        let (pairs, _) = paired(
            &["test/001.jpg", "train/cat.jpg"],
            &[("train/001.xml", Some("cat.jpg"), None), ("test/001.xml", Some("001.jpg"), None)],
        );
        assert_eq!(pairs, [Some("train/cat.jpg".to_string()), Some("test/001.jpg".to_string())]);
    }

    #[test]
    fn equal_rivals_are_refused_unless_a_hint_decides() {
        let files = ["x/a.jpg", "y/a.jpg"];
        let (picture, said) = one(&files, ("labels/a.xml", Some("a.jpg"), None));
        assert_eq!(picture, None);
        assert!(said.contains("equally well"), "{said}");
        let (picture, _) = one(&files, ("labels/a.xml", Some("a.jpg"), Some(r"D:\data\y\a.jpg")));
        assert_eq!(picture.as_deref(), Some("y/a.jpg"));
    }

    #[test]
    fn a_missing_picture_names_all_that_was_looked_for() {
        let (picture, said) = one(&["z.jpg"], ("a.xml", Some("b.jpg"), Some(r"C:\c.jpg")));
        assert_eq!(picture, None);
        assert!(["`a.*`", "`b.jpg`", "`c.jpg`", "put the picture there"].iter().all(|part| said.contains(part)), "{said}");
    }
}
