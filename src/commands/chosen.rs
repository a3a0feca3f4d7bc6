//! The model that `odh eval`, `odh export` and `odh detect` are about: one that was trained here, or the zoo's own.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::zoo_args::ZooArgs;
use crate::config::label_map::LabelMap;
use crate::config::{pipeline, weights, zoo};
use crate::engine::model_files::{self, ModelSource, Search};
use crate::exit;
use crate::proto::object_detection::protos as pb;

/// What was typed.
pub struct Wanted<'a> {
    pub search: Search<'a>,
    /// The checkpoint that evaluated best in place of the latest.
    pub best: bool,
    /// In place of the model's own.
    pub label_file: Option<&'a Path>,
    pub zoo: &'a ZooArgs,
}

/// The model that is meant.
pub struct Chosen {
    /// Of its folder.
    pub name: OsString,
    pub checkpoint: PathBuf,
    pub config: pb::TrainEvalPipelineConfig,
    /// Where the config is from, for messages.
    pub source: String,
    pub label_map: LabelMap,
}

impl Chosen {
    /// Finds it; the zoo's weights are downloaded if need be.
    ///
    /// # Errors
    /// If none is found or several are, a file of it is missing or cannot be read, or its files do not fit together; exit code 2 where a flag decides it.
    pub fn find(wanted: &Wanted) -> Result<Self> {
        if wanted.best && wanted.search.checkpoint.is_some_and(|typed| !typed.is_dir()) {
            return Err(exit::usage(
                "--checkpoint names one and --best asks for another: leave one of them out, or name the train folder",
            ));
        }
        let files = match model_files::find(&wanted.search, |typed| Ok(zoo::resolve(typed)?.folder.to_string()))? {
            ModelSource::Files(files) => files,
            ModelSource::Zoo(name) => return Self::pretrained(wanted, &name),
        };
        let config = model_files::config(&files)?;
        pipeline::model(&config).with_context(|| files.pipeline_config.display().to_string())?;
        let label_map = model_files::label_map(wanted.label_file, &files.folder, &config)?;
        label_map.ensure_within(pipeline::num_classes(&config) as usize)?;
        Ok(Self {
            name: model_files::name(&files.folder)?,
            source: files.pipeline_config.display().to_string(),
            label_map,
            checkpoint: if wanted.best { model_files::best(&files.folder)? } else { files.checkpoint },
            config,
        })
    }

    /// The zoo's own weights, where there is no training of the model.
    fn pretrained(wanted: &Wanted, name: &str) -> Result<Self> {
        if wanted.best {
            return Err(model_files::no_best(name));
        }
        tracing::info!("there is no training of {name} here: taking the zoo's weights");
        let (config, source) = match wanted.search.pipeline_config {
            Some(path) => (pipeline::load(path)?, path.display().to_string()),
            None => zoo::resolve(name)?.config(Path::new("."))?,
        };
        pipeline::model(&config).with_context(|| source.clone())?;
        let label_map = model_files::zoo_label_map(wanted.label_file)?;
        label_map.ensure_within(pipeline::num_classes(&config) as usize)?;
        Ok(Self { name: name.into(), label_map, checkpoint: weights::pretrained(name, &wanted.zoo.options())?, config, source })
    }
}
