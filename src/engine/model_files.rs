//! Where a trained model is: in an export folder, a train folder, or the zoo's.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail, ensure};

use super::checkpoint;
use crate::config::label_map::{self, LabelMap};
use crate::config::{coco_labels, pipeline, zoo};
use crate::exit;
use crate::formats::atomic_file::is_hidden;
use crate::formats::bundle_index::index_of;
use crate::formats::{checkpoint_state, tensor_bundle};
use crate::proto::object_detection::protos as pb;
use crate::wording::plural;

/// The files of one trained model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelFiles {
    /// The folder that the others are in.
    pub folder: PathBuf,
    /// `PREFIX` of `PREFIX.index` and `PREFIX.data-?????-of-?????`.
    pub checkpoint: PathBuf,
    /// The pipeline config beside it.
    pub pipeline_config: PathBuf,
}

/// Where to look.
#[derive(Debug, Clone, Default)]
pub struct Search<'a> {
    /// What was typed as the model: a folder, or a name.
    pub model: Option<&'a str>,
    /// A checkpoint's prefix, one of its files, or its folder.
    pub checkpoint: Option<&'a Path>,
    /// The pipeline config, where none need be beside the checkpoint.
    pub pipeline_config: Option<&'a Path>,
    /// Folders to look in, in this order: each one of several models' folders or a model's own.
    pub roots: Vec<PathBuf>,
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModelSource {
    /// A trained model on this machine.
    Files(ModelFiles),
    /// The zoo's model of this folder name; no training of it was found.
    Zoo(String),
}

/// Where a trained model is looked for, its training before its export; a folder that is named is meant alone.
pub fn trained_roots(named: Option<&Path>) -> Vec<PathBuf> {
    match named {
        Some(folder) => vec![folder.to_path_buf()],
        None => vec![PathBuf::from("./train_dir"), PathBuf::from("./export_dir")],
    }
}

/// Makes sure that a folder that was named is there, lest a slip of the pen has another model taken.
///
/// # Errors
/// Exit code 2 if it is not; `flag` is named.
pub fn ensure_folder(flag: &str, named: Option<&Path>) -> Result<()> {
    match named.filter(|folder| !folder.is_dir()) {
        Some(folder) => Err(exit::usage(format!("{flag} `{}`: there is no such folder", folder.display()))),
        None => Ok(()),
    }
}

/// Finds the model that is meant.
///
/// A checkpoint that is named is it. Else a model that is a folder with a checkpoint is it; a name is looked for below the
/// roots, as typed and as the zoo's name that `resolve` makes of it, and is the zoo's pretrained model if there is none.
/// Without a name, the only model below the first root that has any is meant.
///
/// # Errors
/// If nothing is found or several models are; exit code 2 where a flag decides it.
pub fn find(search: &Search, resolve: impl Fn(&str) -> Result<String>) -> Result<ModelSource> {
    if let Some(checkpoint) = search.checkpoint {
        return at_checkpoint(checkpoint, search.pipeline_config).map(ModelSource::Files);
    }
    let Some(model) = search.model else { return only_model(search).map(ModelSource::Files) };
    let typed = Path::new(model);
    let in_folder = |folder: &Path| in_folder(folder, search.pipeline_config);
    if let Some(files) = in_folder(typed)? {
        return Ok(ModelSource::Files(files));
    }
    for root in &search.roots {
        if let Some(files) = in_folder(&root.join(typed))? {
            return Ok(ModelSource::Files(files));
        }
    }
    let zoo = resolve(model).map_err(|error| match models_below(&search.roots).join(", ") {
        _ if typed.is_dir() => anyhow!(without_checkpoint(typed)),
        none if none.is_empty() => error,
        names => error.context(format!("no model `{model}` was trained here, only {names}")),
    })?;
    for root in &search.roots {
        let own = root.file_name().is_some_and(|name| name == zoo.as_str());
        let folder = if own { root.clone() } else { root.join(&zoo) };
        if let Some(files) = in_folder(&folder)? {
            return Ok(ModelSource::Files(files));
        }
    }
    Ok(ModelSource::Zoo(zoo))
}

/// The checkpoint that evaluated best of those in a train folder.
///
/// # Errors
/// Exit code 2 if no evaluation has marked one; if the mark is damaged.
pub fn best(folder: &Path) -> Result<PathBuf> {
    checkpoint::best(folder)?.ok_or_else(|| {
        exit::usage(format!("no evaluation marked a best checkpoint in `{}`; leave --best out for the latest", folder.display()))
    })
}

/// What to say where the best checkpoint is wanted of a model that was not trained here: exit code 2.
pub fn no_best(model: &str) -> anyhow::Error {
    exit::usage(format!(
        "there is no training of `{model}` here, and so no best checkpoint; leave --best out for the zoo's weights"
    ))
}

/// What a model's folder is called, also where it was typed as `.`; a link has a name of its own.
///
/// # Errors
/// If it has none, as `/` has not.
pub fn name(folder: &Path) -> Result<OsString> {
    if let Some(name) = folder.file_name() {
        return Ok(name.to_os_string());
    }
    let whole = folder.canonicalize().with_context(|| format!("cannot reach `{}`", folder.display()))?;
    let name =
        whole.file_name().with_context(|| format!("`{}` has no name, and a model's folder has to have one", whole.display()))?;
    Ok(name.to_os_string())
}

/// The model in a folder: its latest checkpoint; `None` if it has none.
///
/// * `config`: its pipeline config, if it is not the one in the folder.
///
/// # Errors
/// If it has a checkpoint but no pipeline config, or its `checkpoint` file names one that is not there.
fn in_folder(folder: &Path, config: Option<&Path>) -> Result<Option<ModelFiles>> {
    match latest_in(folder)? {
        Some(checkpoint) => with_config(folder, checkpoint, config).map(Some),
        None => Ok(None),
    }
}

/// The prefix of a folder's latest checkpoint; `None` if it has none.
fn latest_in(folder: &Path) -> Result<Option<PathBuf>> {
    if !folder.is_dir() {
        return Ok(None);
    }
    let Some(state) = checkpoint_state::read(folder)? else { return newest_index(folder) };
    ensure!(
        index_of(&state.latest).is_file(),
        "`{}` names `{}`, which is not there; name another with --checkpoint",
        folder.join(checkpoint_state::FILE_NAME).display(),
        index_of(&state.latest).display()
    );
    Ok(Some(state.latest))
}

fn without_checkpoint(folder: &Path) -> String {
    format!("`{}` is a folder without a checkpoint: no `checkpoint` file, no *.index", folder.display())
}

fn with_config(folder: &Path, checkpoint: PathBuf, config: Option<&Path>) -> Result<ModelFiles> {
    if let Some(config) = config {
        ensure!(config.is_file(), "`{}` is not there; name another with --pipeline_config", config.display());
        return Ok(ModelFiles { folder: folder.to_path_buf(), checkpoint, pipeline_config: config.to_path_buf() });
    }
    let pipeline_config = folder.join(pipeline::FILE_NAME);
    ensure!(
        pipeline_config.is_file(),
        "`{}` is there but not `{}`, which says what model it is of; copy the model's config there",
        checkpoint.display(),
        pipeline_config.display()
    );
    Ok(ModelFiles { folder: folder.to_path_buf(), checkpoint, pipeline_config })
}

/// The model of a checkpoint that was named.
fn at_checkpoint(typed: &Path, config: Option<&Path>) -> Result<ModelFiles> {
    if typed.is_dir() {
        return in_folder(typed, config)?.with_context(|| without_checkpoint(typed));
    }
    let prefix = existing(typed)?;
    with_config(&folder_of(&prefix), prefix, config)
}

/// The prefix of a checkpoint that is there.
///
/// * `typed`: the prefix or one of the checkpoint's files.
///
/// # Errors
/// If it has no index.
pub fn existing(typed: &Path) -> Result<PathBuf> {
    let prefix = prefix_of(typed);
    ensure!(index_of(&prefix).is_file(), tensor_bundle::explain_no_index(&prefix));
    Ok(prefix)
}

fn folder_of(prefix: &Path) -> PathBuf {
    match prefix.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder.to_path_buf(),
        _ => PathBuf::from("."),
    }
}

/// `model.ckpt-3` of `model.ckpt-3.index`, `model.ckpt-3.data-00000-of-00001`, `model.ckpt-3.meta` or itself.
fn prefix_of(path: &Path) -> PathBuf {
    match path.extension().and_then(|e| e.to_str()) {
        Some(e) if e == "index" || e == "meta" || e.starts_with("data-") => path.with_extension(""),
        _ => path.to_path_buf(),
    }
}

/// The prefix with the largest step among a folder's `*.index`.
fn newest_index(folder: &Path) -> Result<Option<PathBuf>> {
    let entries = fs::read_dir(folder).with_context(|| format!("cannot read `{}`", folder.display()))?;
    let mut prefixes: Vec<PathBuf> = Vec::new();
    for entry in entries {
        let path = entry.with_context(|| format!("cannot read `{}`", folder.display()))?.path();
        if path.extension().is_some_and(|e| e == "index") && path.is_file() {
            prefixes.push(prefix_of(&path));
        }
    }
    let step = |prefix: &PathBuf| -> u64 {
        let name = prefix.to_string_lossy();
        name.rsplit_once('-').and_then(|(_, step)| step.parse().ok()).unwrap_or(0)
    };
    prefixes.sort();
    Ok(prefixes.into_iter().max_by_key(step))
}

/// The folders in a folder, by name; hidden ones are passed over.
fn folders_in(root: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(root).into_iter().flatten().flatten();
    let mut folders: Vec<PathBuf> = entries.map(|e| e.path()).filter(|p| p.is_dir() && !is_hidden(p)).collect();
    folders.sort();
    folders
}

/// The names of the models below the roots, each once.
fn models_below(roots: &[PathBuf]) -> Vec<String> {
    let folders = roots.iter().flat_map(|root| folders_in(root));
    let models = folders.filter(|folder| matches!(in_folder(folder, None), Ok(Some(_))));
    let mut names: Vec<String> = models.filter_map(|folder| Some(folder.file_name()?.to_string_lossy().into_owned())).collect();
    names.sort();
    names.dedup();
    names
}

/// The only model below the first root that has any; hidden folders are passed over.
fn only_model(search: &Search) -> Result<ModelFiles> {
    let in_folder = |folder: &Path| in_folder(folder, search.pipeline_config);
    for root in &search.roots {
        if let Some(files) = in_folder(root)? {
            return Ok(files);
        }
        let mut models = Vec::new();
        for folder in folders_in(root) {
            models.extend(in_folder(&folder)?);
        }
        let names: Vec<String> =
            models.iter().map(|m| m.folder.file_name().unwrap_or(m.folder.as_os_str()).to_string_lossy().into_owned()).collect();
        match (models.pop(), models.is_empty()) {
            (Some(only), true) => return Ok(only),
            (Some(_), false) => {
                return Err(exit::usage(format!(
                    "there are several models in `{}`; name one with --model: {}",
                    root.display(),
                    names.join(", ")
                )));
            }
            (None, _) => {}
        }
    }
    let roots: Vec<String> = search.roots.iter().map(|r| format!("`{}`", r.display())).collect();
    Err(exit::usage(format!(
        "there is no trained model in {}; train one with `odh train`, or name a zoo model with --model",
        roots.join(" or ")
    )))
}

/// What a model's classes are called: the label map that was named, the one beside the model, or the one that its config
/// names; COCO's for an archive of the zoo, and where the config names COCO's label map.
///
/// # Errors
/// If a label map cannot be read, or none is found.
pub fn label_map(named: Option<&Path>, folder: &Path, config: &pb::TrainEvalPipelineConfig) -> Result<LabelMap> {
    if let Some(path) = named {
        return LabelMap::load(path);
    }
    let beside = folder.join(label_map::FILE_NAME);
    if beside.is_file() {
        return LabelMap::load(&beside);
    }
    let num_classes = pipeline::num_classes(config);
    // A zoo archive brings no label map: its classes are COCO's, wherever it lies.
    let archive = folder.canonicalize().ok().and_then(|folder| folder.file_name().map(ToOwned::to_owned));
    let from_zoo = zoo::MODELS.iter().any(|model| archive.as_deref() == Some(model.folder.as_ref()));
    if from_zoo && num_classes == coco_labels::coco().max_id() {
        return Ok(coco_labels::coco());
    }
    let configured = config.train_input_reader.as_ref().and_then(|r| r.label_map_path.as_deref()).filter(|p| !p.is_empty());
    let Some(configured) = configured.map(Path::new) else {
        bail!("`{}` is not there and the config names no label map; name one with --label_file", beside.display());
    };
    let inside = folder.join(configured);
    if inside.is_file() {
        return LabelMap::load(&inside);
    }
    if configured.is_file() {
        let map = LabelMap::load(configured)?;
        // What a relative path leads to from here may be anybody's; fewer classes than the model has are a habit of some.
        ensure!(
            configured.is_absolute() || map.max_id() <= num_classes,
            "`{}`, which the config names as its label map, has ids up to {} here and the model has {}: it is another \
             model's; name the right one with --label_file",
            configured.display(),
            map.max_id(),
            plural(num_classes as usize, "class")
        );
        if map.max_id() < num_classes {
            tracing::warn!(
                "`{}`, which the config names as its label map, has ids up to {} and the model has {}: if it is another \
                 model's, name the right one with --label_file",
                configured.display(),
                map.max_id(),
                plural(num_classes as usize, "class")
            );
        }
        return Ok(map);
    }
    // The zoo's own configs name COCO's file, which no archive brings along.
    if configured.file_name().is_some_and(|name| name == "mscoco_label_map.pbtxt") {
        return Ok(coco_labels::coco());
    }
    bail!(
        "neither `{}` nor the config's label map `{}` is there; name one with --label_file",
        beside.display(),
        configured.display()
    )
}

/// What the classes of the zoo's own weights are called: the label map that was named, or COCO's.
///
/// # Errors
/// If the one that was named cannot be read.
pub fn zoo_label_map(named: Option<&Path>) -> Result<LabelMap> {
    named.map_or_else(|| Ok(coco_labels::coco()), LabelMap::load)
}

/// Reads a model's pipeline config.
///
/// # Errors
/// As [`pipeline::load`]'s.
pub fn config(files: &ModelFiles) -> Result<pb::TrainEvalPipelineConfig> {
    pipeline::load(&files.pipeline_config)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(files: &[&str]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for file in files {
            let path = folder.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, b"").unwrap();
        }
        folder
    }

    fn search<'a>(folder: &Path, model: Option<&'a str>) -> Search<'a> {
        Search {
            model,
            checkpoint: None,
            pipeline_config: None,
            roots: vec![folder.join("export_dir"), folder.join("train_dir")],
        }
    }

    fn resolve(typed: &str) -> Result<String> {
        ensure!("ssd_mobilenet_v1_coco_2017".starts_with(typed), "no model is called `{typed}`");
        Ok("ssd_mobilenet_v1_coco_2017".to_string())
    }

    fn checkpoint(folder: &Path, model: Option<&str>) -> Result<String> {
        match find(&search(folder, model), resolve)? {
            ModelSource::Files(files) => Ok(files.checkpoint.strip_prefix(folder).unwrap().display().to_string()),
            ModelSource::Zoo(name) => Ok(format!("zoo {name}")),
        }
    }

    const SSD: &str = "ssd_mobilenet_v1_coco_2017";

    #[test]
    fn a_name_means_the_export_then_the_training_then_the_zoo() {
        let exported = format!("export_dir/{SSD}/model.ckpt.index");
        let trained = [&format!("train_dir/{SSD}/model.ckpt-{}", 20), &format!("train_dir/{SSD}/model.ckpt-{}", 100)];
        let (e, t) = (format!("export_dir/{SSD}/pipeline.config"), format!("train_dir/{SSD}/pipeline.config"));
        let indexes = trained.map(|p| format!("{p}.index"));
        let f = folder(&[&exported, &indexes[0], &indexes[1], &e, &t]);
        assert_eq!(checkpoint(f.path(), Some("ssd")).unwrap(), format!("export_dir/{SSD}/model.ckpt"));
        assert_eq!(checkpoint(f.path(), None).unwrap(), format!("export_dir/{SSD}/model.ckpt"));
        fs::remove_dir_all(f.path().join("export_dir")).unwrap();
        assert_eq!(checkpoint(f.path(), Some("ssd")).unwrap(), *trained[1]);
        assert_eq!(checkpoint(f.path(), None).unwrap(), *trained[1]);
        fs::remove_dir_all(f.path().join("train_dir")).unwrap();
        assert_eq!(checkpoint(f.path(), Some("ssd")).unwrap(), format!("zoo {SSD}"));
        assert_eq!(exit::code(&checkpoint(f.path(), None).unwrap_err()), 2);
    }

    #[test]
    fn the_checkpoint_file_says_which_is_the_latest() {
        let f = folder(&["m/model.ckpt-5.index", "m/model.ckpt-9.index", "m/pipeline.config"]);
        fs::write(f.path().join("m/checkpoint"), "model_checkpoint_path: \"model.ckpt-5\"\n").unwrap();
        let typed = f.path().join("m");
        assert_eq!(checkpoint(f.path(), typed.to_str()).unwrap(), "m/model.ckpt-5");
        fs::write(f.path().join("m/checkpoint"), "model_checkpoint_path: \"model.ckpt-7\"\n").unwrap();
        let error = checkpoint(f.path(), typed.to_str()).unwrap_err().to_string();
        assert!(error.contains("model.ckpt-7.index") && error.contains("--checkpoint"), "{error}");
    }

    #[test]
    fn a_named_checkpoint_may_be_its_prefix_one_of_its_files_or_its_folder() {
        let f = folder(&["m/model.ckpt-5.index", "m/model.ckpt-9.index", "m/pipeline.config", "bare/x.index"]);
        let at = |path: &str| {
            let path = f.path().join(path);
            find(&Search { checkpoint: Some(&path), ..Default::default() }, resolve)
        };
        for path in ["m/model.ckpt-5", "m/model.ckpt-5.index", "m/model.ckpt-5.data-00000-of-00001"] {
            let ModelSource::Files(files) = at(path).unwrap() else { panic!("{path}") };
            assert!(files.checkpoint.ends_with("m/model.ckpt-5"), "{path}");
        }
        let ModelSource::Files(files) = at("m").unwrap() else { panic!() };
        assert!(files.checkpoint.ends_with("m/model.ckpt-9"));
        for (path, part) in [("m/model.ckpt-6", "there is no checkpoint"), ("bare/x", "pipeline.config"), ("gone", "gone.index")]
        {
            let error = at(path).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn a_config_from_elsewhere_serves_a_checkpoint_that_has_none_beside_it() {
        let f = folder(&["bare/model.ckpt-7.index", "my.config", "empty/x"]);
        let (config, bare) = (f.path().join("my.config"), f.path().join("bare"));
        let find = |typed: &Path, config: &Path| match find(
            &Search { checkpoint: Some(typed), pipeline_config: Some(config), ..Default::default() },
            resolve,
        )? {
            ModelSource::Files(files) => Ok(files),
            ModelSource::Zoo(name) => bail!("the zoo's {name}"),
        };
        for typed in [bare.clone(), bare.join("model.ckpt-7"), bare.join("model.ckpt-7.index")] {
            let files = find(&typed, &config).unwrap();
            assert_eq!(files.checkpoint, bare.join("model.ckpt-7"));
            assert_eq!((files.folder, &files.pipeline_config), (bare.clone(), &config));
        }
        // The same for a model that is named, and for the only one.
        for model in [Some(bare.to_str().unwrap()), Some("bare"), None] {
            let roots = vec![if model.is_some() { f.path().to_path_buf() } else { bare.clone() }];
            let search = Search { model, pipeline_config: Some(&config), roots, ..Default::default() };
            let ModelSource::Files(files) = super::find(&search, resolve).unwrap() else { panic!("{model:?}") };
            assert_eq!((files.checkpoint, &files.pipeline_config), (bare.join("model.ckpt-7"), &config));
        }
        for (typed, config, part) in [
            (bare.clone(), f.path().join("no.config"), "no.config"),
            (f.path().join("empty"), config.clone(), "without a checkpoint"),
            (bare.join("model.ckpt-8"), config, "model.ckpt-8.index"),
        ] {
            let error = find(&typed, &config).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn several_models_are_listed_and_nothing_is_guessed() {
        let f = folder(&[
            "export_dir/a/model.ckpt.index",
            "export_dir/a/pipeline.config",
            "export_dir/b/model.ckpt.index",
            "export_dir/b/pipeline.config",
        ]);
        let error = checkpoint(f.path(), None).unwrap_err();
        assert!(error.to_string().contains("--model: a, b"), "{error}");
        assert_eq!(checkpoint(f.path(), Some("b")).unwrap(), "export_dir/b/model.ckpt");
        let error = checkpoint(f.path(), Some("c")).unwrap_err();
        assert!(error.to_string().contains("only a, b"), "{error}");
        assert!(format!("{error:#}").contains("no model is called `c`"), "{error:#}");
    }

    #[test]
    fn an_archive_of_the_zoo_given_by_its_path_has_cocos_classes() {
        let name = zoo::MODELS[0].folder;
        let f = folder(&[&format!("{name}/x"), "mine/x"]);
        let config = |classes: u32| {
            let text = format!(
                "model {{ ssd {{ num_classes: {classes} }} }} train_input_reader {{ label_map_path: './no_such.pbtxt' }}"
            );
            pipeline::parse(&text, "test").unwrap()
        };
        assert_eq!(label_map(None, &f.path().join(name), &config(90)).unwrap().label(1), "person");
        assert!(label_map(None, &f.path().join(name), &config(5)).is_err());
        assert!(label_map(None, &f.path().join("mine"), &config(90)).is_err());
    }

    #[test]
    fn label_maps_are_the_named_ones_then_those_beside_then_the_configs() {
        let f = folder(&["m/x"]);
        let m = f.path().join("m");
        let write = |name: &str, class: &str| {
            let path = m.join(name);
            fs::write(&path, format!("item {{ id: 1 name: '{class}' }}")).unwrap();
            path
        };
        let mut config = pipeline::parse("model { ssd { num_classes: 1 } }", "test").unwrap();
        let first =
            |named: Option<&Path>, config: &pb::TrainEvalPipelineConfig| label_map(named, &m, config).map(|map| map.label(1));
        assert!(first(None, &config).unwrap_err().to_string().contains("--label_file"));
        assert_eq!(zoo_label_map(None).unwrap().label(1), "person");
        let reader = |path: &str| Some(pb::InputReader { label_map_path: Some(path.into()), ..Default::default() });
        config.train_input_reader = reader("PATH_TO_BE_CONFIGURED/mscoco_label_map.pbtxt");
        assert_eq!(first(None, &config).unwrap(), "person");
        config.train_input_reader = reader("mine.pbtxt");
        assert!(first(None, &config).unwrap_err().to_string().contains("mine.pbtxt"));
        write("mine.pbtxt", "configured");
        assert_eq!(first(None, &config).unwrap(), "configured");
        write("label_map.pbtxt", "beside");
        assert_eq!(first(None, &config).unwrap(), "beside");
        let named = write("other.pbtxt", "named");
        assert_eq!(first(Some(&named), &config).unwrap(), "named");
    }
}
