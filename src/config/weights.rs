//! Pretrained weights: found in the model zoo's folder, unpacked from an archive there, or downloaded.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail, ensure};
use indicatif::{ProgressBar, ProgressStyle};
use walkdir::WalkDir;

use super::download::{self, Patience};
use crate::formats::archive::{self, Failure};
use crate::formats::atomic_file::is_hidden;
use crate::formats::tensor_bundle::BundleReader;
use crate::logging;

/// Where the archives of the TensorFlow detection model zoo are.
pub const DEFAULT_BASE_URL: &str = "http://download.tensorflow.org/models/object_detection";
/// Names another place.
pub const BASE_URL_VARIABLE: &str = "ODH_MODEL_ZOO_URL";
/// The flag that does so too.
pub const BASE_URL_FLAG: &str = "--model_zoo_url";
/// What every archive calls its checkpoint.
const CHECKPOINT: &str = "model.ckpt";
/// The folder of pretrained models unless another is named.
pub const DEFAULT_ZOO_DIR: &str = "./model_zoo";
/// How far below a model's folder its checkpoint may lie.
const MAX_DEPTH: usize = 5;

/// Where weights are looked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WeightsOptions {
    /// The folder that holds a folder for each model: `model_zoo`.
    pub zoo_dir: PathBuf,
    /// `BASE/NAME.tar.gz` is a model's archive; `http://`, `https://` or `file://`.
    pub base_url: String,
}

impl WeightsOptions {
    /// The base URL as flagged, or else from the environment, or else TensorFlow's.
    pub fn new(zoo_dir: &Path, flag: Option<&str>) -> Self {
        let environment = std::env::var(BASE_URL_VARIABLE).ok().filter(|url| !url.trim().is_empty());
        let base_url = flag.map(str::to_string).or(environment).unwrap_or_else(|| DEFAULT_BASE_URL.to_string());
        WeightsOptions { zoo_dir: zoo_dir.to_path_buf(), base_url }
    }
}

/// Finds the checkpoint of the zoo model `name`, fetching it if need be, and returns its prefix (`.../model.ckpt`).
///
/// Looked for in `zoo_dir/NAME/`, then in `zoo_dir/NAME.tar.gz` (or a `.tar.gz` in `zoo_dir/NAME/`), then at `base_url`. What is
/// unpacked is checked whole before it gets its name; it is unpacked in [`DEFAULT_ZOO_DIR`] if `zoo_dir` cannot be written in.
///
/// # Errors
/// If it is damaged, or cannot be had: then with the URL, the place to put the file, and how to start without.
pub fn pretrained(name: &str, options: &WeightsOptions) -> Result<PathBuf> {
    let mut parts = Path::new(name).components();
    let plain = matches!((parts.next(), parts.next()), (Some(Component::Normal(part)), None) if part == name);
    ensure!(plain && !name.starts_with('.'), "`{name}` is not a model's name");
    let folder = options.zoo_dir.join(name);
    if let Some(prefix) = find(&folder)? {
        return Ok(prefix);
    }
    fs::create_dir_all(&options.zoo_dir).with_context(|| format!("cannot create the folder `{}`", options.zoo_dir.display()))?;
    let _lock = lock(&options.zoo_dir);
    // Whoever held the lock before may have fetched it.
    if let Some(prefix) = find(&folder)? {
        return Ok(prefix);
    }
    if let Some(archive) = archive_in(&options.zoo_dir, name)? {
        let zoo_dir = writable(&options.zoo_dir);
        // Unpacked there before.
        if let Some(prefix) = find(&zoo_dir.join(name))? {
            return Ok(prefix);
        }
        return unpack(&archive, name, &zoo_dir)
            .map_err(|failure| unusable(failure, &archive, "delete it and run again to download it afresh"));
    }
    fetch(name, options)
}

/// Where archives of a folder are unpacked: there, or where others write its files, in `./model_zoo`.
fn writable(zoo_dir: &Path) -> PathBuf {
    let own = Path::new(DEFAULT_ZOO_DIR);
    if tempfile::tempfile_in(zoo_dir).is_ok() || fs::create_dir_all(own).is_err() || tempfile::tempfile_in(own).is_err() {
        return zoo_dir.to_path_buf();
    }
    tracing::info!("`{}` cannot be written in; its archives are unpacked in {DEFAULT_ZOO_DIR}", zoo_dir.display());
    own.to_path_buf()
}

/// Where a model's weights are, without fetching or unpacking anything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Presence {
    /// A checkpoint, by its prefix.
    Checkpoint(PathBuf),
    /// An archive that is still to be unpacked.
    Archive(PathBuf),
    Absent,
    /// Something that cannot be used, and why.
    Damaged(String),
}

/// Looks where [`pretrained`] looks on this machine.
pub fn presence(name: &str, zoo_dir: &Path) -> Presence {
    let found = match find(&zoo_dir.join(name)) {
        Ok(Some(prefix)) => return Presence::Checkpoint(prefix),
        Ok(None) => archive_in(zoo_dir, name),
        Err(error) => Err(error),
    };
    match found {
        Ok(Some(archive)) => match begins_as_gzip(&archive) {
            true => Presence::Archive(archive),
            false => Presence::Damaged(format!("`{}` is no .tar.gz; delete it to have it fetched again", archive.display())),
        },
        Ok(None) => Presence::Absent,
        Err(error) => Presence::Damaged(format!("{error:#}")),
    }
}

/// Without unpacking it, which `pretrained` does.
fn begins_as_gzip(archive: &Path) -> bool {
    let mut start = [0; 2];
    File::open(archive).and_then(|mut file| file.read_exact(&mut start)).is_ok() && start == [0x1f, 0x8b]
}

/// Where a model's archive can be had.
pub fn url(name: &str, base_url: &str) -> String {
    format!("{}/{}", base_url.trim().trim_end_matches('/'), archive_name(name))
}

/// The checkpoint below `folder`, if its files are all there.
fn find(folder: &Path) -> Result<Option<PathBuf>> {
    let Some(prefix) = locate(folder)? else { return Ok(None) };
    BundleReader::open(&prefix).with_context(|| {
        format!("the pretrained weights in `{}` cannot be used; delete that folder to have them fetched again", folder.display())
    })?;
    Ok(Some(prefix))
}

/// The one checkpoint of this name below `folder`, the uppermost first.
fn locate(folder: &Path) -> Result<Option<PathBuf>> {
    if !folder.is_dir() {
        return Ok(None);
    }
    let index = format!("{CHECKPOINT}.index");
    let walk = WalkDir::new(folder).max_depth(MAX_DEPTH).follow_links(true).sort_by_file_name().into_iter();
    let mut found: Vec<(usize, PathBuf)> = Vec::new();
    for entry in walk.filter_entry(|entry| entry.depth() == 0 || !is_hidden(entry.path())) {
        // What cannot be read is no checkpoint: a link that leads nowhere, or round in a circle.
        let Ok(entry) = entry else { continue };
        if entry.file_name() == index.as_str() && entry.file_type().is_file() {
            found.push((entry.depth(), entry.into_path()));
        }
    }
    found.sort();
    Ok(found.into_iter().next().map(|(_, path)| path.with_extension("")))
}

/// Keeps two runs from unpacking into one place; where the file system has no locks, they take their chance.
fn lock(folder: &Path) -> Option<File> {
    let folder = File::open(folder).ok()?;
    if folder.try_lock().is_err() {
        logging::say("waiting for another odh that fetches weights");
        tracing::info!(target: logging::FILE_ONLY, "waiting for another run that fetches weights");
        folder.lock().ok()?;
    }
    Some(folder)
}

/// The archive beside the model's folder, or one inside it.
fn archive_in(zoo_dir: &Path, name: &str) -> Result<Option<PathBuf>> {
    let folder = zoo_dir.join(name);
    for path in [zoo_dir.join(archive_name(name)), folder.join(archive_name(name))] {
        if path.is_file() {
            return Ok(Some(path));
        }
    }
    if !folder.is_dir() {
        return Ok(None);
    }
    let entries = fs::read_dir(&folder).with_context(|| format!("cannot read the folder `{}`", folder.display()))?;
    let is_archive = |path: &PathBuf| path.is_file() && path.as_os_str().as_encoded_bytes().ends_with(b".tar.gz");
    let mut found: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).filter(is_archive).collect();
    ensure!(found.len() < 2, "`{}` holds several archives: leave the one to use, or unpack it there", folder.display());
    Ok(found.pop())
}

fn archive_name(name: &str) -> String {
    format!("{name}.tar.gz")
}

/// Gets the archive from the base URL and unpacks it.
fn fetch(name: &str, options: &WeightsOptions) -> Result<PathBuf> {
    let url = url(name, &options.base_url);
    let archive = options.zoo_dir.join(archive_name(name));
    let missing = |error: anyhow::Error| error.context(how_to_have_it(name, &url, options));
    match url.split_once("://") {
        Some(("http" | "https", _)) => {
            tracing::info!("downloading pretrained weights from {url}");
            download::fetch(&url, &archive, &Patience::default()).map_err(missing)?;
            tracing::info!("downloaded `{}`", archive.display());
            unpack(&archive, name, &options.zoo_dir).map_err(|failure| {
                if matches!(failure, Failure::Local(_)) {
                    return unusable(failure, &archive, "");
                }
                // It would be found, and found unusable, at every later start, whatever other place is named.
                let _ = fs::remove_file(&archive);
                missing(unusable(failure, Path::new(&url), "what was downloaded has been deleted"))
            })
        }
        Some(("file", rest)) => {
            let path = local_path(rest).map_err(missing)?;
            if !path.is_file() {
                return Err(missing(anyhow!("`{}` does not exist", path.display())));
            }
            unpack(&path, name, &options.zoo_dir).map_err(|failure| unusable(failure, &path, "put a whole one there"))
        }
        _ => bail!(
            "the model zoo's address `{}` ({BASE_URL_FLAG}, {BASE_URL_VARIABLE}) starts with none of http://, https://, file://",
            options.base_url
        ),
    }
}

fn how_to_have_it(name: &str, url: &str, options: &WeightsOptions) -> String {
    let archive = options.zoo_dir.join(archive_name(name));
    format!(
        "the pretrained weights of `{name}` cannot be had from {url}: either put that file at `{}` (or unpack it to `{}`), or name \
         another place that has {} ({BASE_URL_FLAG} URL, or {BASE_URL_VARIABLE} in the environment). To \
         train without pretrained weights, give `odh train` --fine_tune_checkpoint none",
        archive.display(),
        options.zoo_dir.join(name).display(),
        archive_name(name)
    )
}

/// The path of a `file://` URL, without its scheme.
fn local_path(rest: &str) -> Result<PathBuf> {
    let path = rest.strip_prefix("localhost").filter(|path| path.starts_with('/')).unwrap_or(rest);
    ensure!(path.starts_with('/'), "file://{rest} is not absolute: write file:///folder (three slashes)");
    let mut bytes = Vec::with_capacity(path.len());
    let mut left = path.as_bytes();
    while let Some((&first, rest)) = left.split_first() {
        let code = rest.get(..2).and_then(|digits| std::str::from_utf8(digits).ok());
        match (first, code.and_then(|digits| u8::from_str_radix(digits, 16).ok())) {
            (b'%', Some(byte)) => {
                bytes.push(byte);
                left = &rest[2..];
            }
            _ => {
                bytes.push(first);
                left = rest;
            }
        }
    }
    Ok(PathBuf::from(<std::ffi::OsString as std::os::unix::ffi::OsStringExt>::from_vec(bytes)))
}

fn unusable(failure: Failure, archive: &Path, advice: &str) -> anyhow::Error {
    let name = archive.display();
    match failure {
        Failure::Damaged(error) => error.context(format!("`{name}` is damaged or cut short: {advice}")),
        Failure::Refused(error) => error.context(format!("`{name}` is not a model's archive: {advice}")),
        Failure::Local(error) => error.context(format!("cannot unpack `{name}`")),
    }
}

/// Unpacks `archive` beside where it will be, checks the checkpoint in it whole, and gives it its place.
fn unpack(archive: &Path, name: &str, zoo_dir: &Path) -> Result<PathBuf, Failure> {
    let local = |error: std::io::Error, what: &str, path: &Path| {
        Failure::Local(anyhow!(error).context(format!("cannot {what} `{}`", path.display())))
    };
    let temporary = Temporary::create(zoo_dir.join(format!(".{name}.unpacking")))?;
    tracing::info!("unpacking `{}`", archive.display());
    let bar = unpack_bar(archive);
    archive::unpack_tar_gz(archive, &temporary.0, |read| bar.set_position(read))?;
    bar.finish_and_clear();
    let no_checkpoint = || {
        let held: Vec<String> = children(&temporary.0).iter().take(10).map(|path| format!("`{}`", path.display())).collect();
        Failure::Refused(anyhow!("it holds no {CHECKPOINT}.index, only {}", held.join(", ")))
    };
    let prefix = locate(&temporary.0).map_err(Failure::Local)?.ok_or_else(no_checkpoint)?;
    BundleReader::open(&prefix)
        .and_then(|reader| reader.verify())
        .map_err(|error| Failure::Damaged(inside(error, &temporary.0)))?;

    // An archive holds one folder, whatever it is called; else all of it is the model's.
    let top = children(&temporary.0);
    let unpacked = match top.as_slice() {
        [one] if temporary.0.join(one).is_dir() => temporary.0.join(one),
        _ => temporary.0.clone(),
    };
    let below = prefix.strip_prefix(&unpacked).map_err(|error| Failure::Local(anyhow!(error)))?.to_path_buf();
    let place = place_for(&zoo_dir.join(name), name)?;
    fs::rename(&unpacked, &place).map_err(|error| local(error, "create", &place))?;
    File::open(zoo_dir).and_then(|folder| folder.sync_all()).map_err(|error| local(error, "sync", zoo_dir))?;
    Ok(place.join(below))
}

/// Errors from within name files of a folder that will be gone: only the file's own name helps.
fn inside(error: anyhow::Error, folder: &Path) -> anyhow::Error {
    anyhow!(format!("{error:#}").replace(&format!("{}/", folder.display()), ""))
}

/// `folder` itself, unless it holds something already (the archive, say): then a folder within.
fn place_for(folder: &Path, name: &str) -> Result<PathBuf, Failure> {
    if !folder.exists() || fs::remove_dir(folder).is_ok() {
        return Ok(folder.to_path_buf());
    }
    let within = folder.join(name);
    if within.exists() && fs::remove_dir(&within).is_err() {
        return Err(Failure::Local(anyhow!("`{}` is in the way: move it elsewhere", within.display())));
    }
    Ok(within)
}

/// Names of what lies in a folder.
fn children(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<PathBuf> = entries.map(|entry| PathBuf::from(entry.file_name())).collect();
    names.sort();
    names
}

fn unpack_bar(archive: &Path) -> ProgressBar {
    let size = fs::metadata(archive).map_or(0, |stat| stat.len());
    let style =
        ProgressStyle::with_template("unpacking {msg} {wide_bar} {percent} %").unwrap_or_else(|_| ProgressStyle::default_bar());
    let name = archive.file_name().unwrap_or_default().display().to_string();
    logging::progress().add(ProgressBar::new(size).with_style(style).with_message(name))
}

/// A folder that goes away again, whatever of it has not been moved out.
struct Temporary(PathBuf);

impl Temporary {
    fn create(path: PathBuf) -> Result<Self, Failure> {
        // What an interrupted run left; its name tells that it is nobody else's.
        let _ = fs::remove_dir_all(&path);
        match fs::create_dir(&path) {
            Ok(()) => Ok(Temporary(path)),
            Err(error) => Err(Failure::Local(anyhow!(error).context(format!("cannot create the folder `{}`", path.display())))),
        }
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0); // the next run tries again
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::formats::archive::tar_gz;
    use crate::formats::tensor_bundle::{self, TensorData};

    const INDEX: &str = "model.ckpt.index";
    const DATA: &str = "model.ckpt.data-00000-of-00001";

    /// The two files of a small checkpoint.
    fn checkpoint() -> (Vec<u8>, Vec<u8>) {
        let folder = tempfile::tempdir().unwrap();
        let prefix = folder.path().join(CHECKPOINT);
        tensor_bundle::write(&prefix, [("w", TensorData::from_f32(&[2], &[1.5, 2.5]))]).unwrap();
        (fs::read(folder.path().join(INDEX)).unwrap(), fs::read(folder.path().join(DATA)).unwrap())
    }

    fn archive_of(top: &str) -> Vec<u8> {
        let (index, data) = checkpoint();
        tar_gz(&[(&format!("{top}{INDEX}"), &index), (&format!("{top}{DATA}"), &data), (&format!("{top}pipeline.config"), b"")])
            .unwrap()
    }

    /// A zoo folder with these files in it, and a base URL that has nothing.
    fn zoo(files: &[(&str, &[u8])]) -> (tempfile::TempDir, WeightsOptions) {
        let folder = tempfile::tempdir().unwrap();
        let zoo_dir = folder.path().join("model_zoo");
        for (path, bytes) in files {
            let path = zoo_dir.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        }
        let base_url = format!("file://{}/nowhere", folder.path().display());
        (folder, WeightsOptions { zoo_dir, base_url })
    }

    fn error_of(options: &WeightsOptions) -> String {
        format!("{:#}", pretrained("m", options).unwrap_err())
    }

    #[test]
    fn an_unpacked_checkpoint_is_used_as_it_is_even_one_folder_further_down() {
        let (index, data) = checkpoint();
        for below in ["", "train/"] {
            let paths = [format!("m/{below}{INDEX}"), format!("m/{below}{DATA}")];
            let (_folder, options) = zoo(&[(&paths[0], &index), (&paths[1], &data)]);
            assert_eq!(pretrained("m", &options).unwrap(), options.zoo_dir.join("m").join(format!("{below}{CHECKPOINT}")));
        }
    }

    #[test]
    fn an_archive_is_unpacked_wherever_it_lies_and_whatever_its_folder_is_called() {
        for (place, top, prefix) in [
            ("m.tar.gz", "m/", "m/model.ckpt"),
            ("m.tar.gz", "other_name_2018/", "m/model.ckpt"),
            ("m.tar.gz", "", "m/model.ckpt"),
            ("m.tar.gz", "./m/train/", "m/train/model.ckpt"),
            ("m/m.tar.gz", "m/", "m/m/model.ckpt"),
            ("m/as_downloaded.tar.gz", "m/", "m/m/model.ckpt"),
        ] {
            let (_folder, options) = zoo(&[(place, &archive_of(top))]);
            let found = pretrained("m", &options).unwrap();
            assert_eq!(found, options.zoo_dir.join(prefix), "{place} with {top}");
            assert_eq!(BundleReader::open(&found).unwrap().read_f32("w").unwrap().1, [1.5, 2.5]);
            assert_eq!(pretrained("m", &options).unwrap(), found, "a second time, without unpacking");
            let left: Vec<_> = children(&options.zoo_dir).into_iter().filter(|name| is_hidden(name)).collect();
            assert!(left.is_empty(), "{left:?}");
        }
    }

    #[test]
    fn an_archive_is_taken_from_a_file_url_with_escapes() {
        let (folder, mut options) = zoo(&[]);
        let mirror = folder.path().join("mirror of 개");
        fs::create_dir(&mirror).unwrap();
        fs::write(mirror.join("m.tar.gz"), archive_of("m/")).unwrap();
        options.base_url = format!("file://{}/mirror%20of%20%EA%B0%9C/", folder.path().display());
        assert_eq!(pretrained("m", &options).unwrap(), options.zoo_dir.join("m/model.ckpt"));
    }

    #[test]
    fn a_truncated_or_corrupt_archive_says_what_to_do_and_leaves_nothing_that_looks_complete() {
        let good = archive_of("m/");
        let mut flipped = good.clone();
        let middle = good.len() / 2;
        flipped[middle] ^= 4;
        let html = b"<html>Not found</html>".to_vec();
        for bad in [&good[..good.len() - 1], &good[..100], &flipped, &html, b""] {
            let (_folder, options) = zoo(&[("m.tar.gz", bad)]);
            let error = error_of(&options);
            assert!(error.contains("m.tar.gz` is damaged or cut short: delete it and run again"), "{error}");
            assert_eq!(children(&options.zoo_dir), [PathBuf::from("m.tar.gz")]);
        }
    }

    #[test]
    fn a_whole_archive_of_a_damaged_checkpoint_is_refused_and_the_tensor_named() {
        let (index, mut data) = checkpoint();
        data[5] ^= 1;
        let archive = tar_gz(&[("m/model.ckpt.index", &index), ("m/model.ckpt.data-00000-of-00001", &data)]).unwrap();
        let (_folder, options) = zoo(&[("m.tar.gz", &archive)]);
        let error = error_of(&options);
        assert!(error.contains("`m/model.ckpt.data-00000-of-00001`: tensor `w`: checksum"), "{error}");
        assert!(!options.zoo_dir.join("m").exists());
    }

    #[test]
    fn an_archive_without_a_checkpoint_says_what_it_holds() {
        let (_folder, options) = zoo(&[("m.tar.gz", &tar_gz(&[("readme.txt", b"")]).unwrap())]);
        let error = error_of(&options);
        assert!(error.contains("it holds no model.ckpt.index, only `readme.txt`"), "{error}");
        assert!(error.contains("m.tar.gz` is not a model's archive: delete it"), "{error}");
    }

    #[test]
    fn an_archive_that_lacks_the_checkpoints_data_names_that_file_and_no_folder_that_is_gone() {
        let (index, data) = checkpoint();
        for half in
            [&[("m/model.ckpt.index", &index[..])][..], &[("m/model.ckpt.index", &index), (&format!("m/{DATA}"), &data[..3])]]
        {
            let (_folder, options) = zoo(&[("m.tar.gz", &tar_gz(half).unwrap())]);
            let error = error_of(&options);
            assert!(error.contains("m.tar.gz` is damaged or cut short: delete it") && error.contains(DATA), "{error}");
            assert!(!error.contains("unpacking"), "{error}");
        }
    }

    #[test]
    fn what_an_interrupted_unpacking_left_is_not_taken_for_a_model() {
        let (index, _) = checkpoint();
        let (_folder, options) = zoo(&[(".m.unpacking/m/model.ckpt.index", &index), ("m.tar.gz", &archive_of("m/"))]);
        assert_eq!(pretrained("m", &options).unwrap(), options.zoo_dir.join("m/model.ckpt"));
        assert!(!options.zoo_dir.join(".m.unpacking").exists());
    }

    #[test]
    fn weights_that_are_half_there_are_an_error_and_not_fetched_over() {
        let (index, _) = checkpoint();
        let (_folder, options) = zoo(&[("m/model.ckpt.index", &index)]);
        let error = error_of(&options);
        assert!(error.contains("delete that folder") && error.contains(DATA), "{error}");
    }

    #[test]
    fn weights_that_cannot_be_had_name_the_url_the_place_and_the_flag() {
        let (folder, options) = zoo(&[]);
        let error = error_of(&options);
        let nowhere = folder.path().join("nowhere/m.tar.gz");
        let place = options.zoo_dir.join("m.tar.gz");
        for wanted in [nowhere.to_str().unwrap(), place.to_str().unwrap(), "--fine_tune_checkpoint none", "ODH_MODEL_ZOO_URL"] {
            assert!(error.contains(wanted), "{wanted}: {error}");
        }
    }

    #[test]
    fn names_and_addresses_that_are_none_are_refused() {
        let (_folder, options) = zoo(&[]);
        for name in ["", ".", "..", "../m", "a/b", "/etc", ".hidden", "m/"] {
            let error = pretrained(name, &options).unwrap_err().to_string();
            assert!(error.contains("is not a model's name"), "{name}: {error}");
        }
        let ftp = WeightsOptions { base_url: "ftp://host".to_string(), ..options.clone() };
        assert!(error_of(&ftp).contains("none of http://, https://, file://"));
        let relative = WeightsOptions { base_url: "file://mirror".to_string(), ..options };
        assert!(error_of(&relative).contains("is not absolute"), "{}", error_of(&relative));
    }
}
