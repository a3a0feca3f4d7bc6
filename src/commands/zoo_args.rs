//! Where pretrained weights are, as every command takes it.

use std::path::PathBuf;

use crate::config::weights::{self, WeightsOptions};

/// Flags on the model zoo.
#[derive(clap::Args, Debug)]
pub struct ZooArgs {
    /// Folder of pretrained models
    #[arg(long = "model_zoo_dir", value_name = "FOLDER", default_value = weights::DEFAULT_ZOO_DIR)]
    model_zoo_dir: PathBuf,
    /// Where `MODEL.tar.gz` is downloaded from: http(s):// or file:// [default: $ODH_MODEL_ZOO_URL, or TensorFlow's zoo]
    #[arg(long = "model_zoo_url", value_name = "URL")]
    model_zoo_url: Option<String>,
}

impl ZooArgs {
    /// Where weights are looked for.
    pub fn options(&self) -> WeightsOptions {
        WeightsOptions::new(&self.model_zoo_dir, self.model_zoo_url.as_deref())
    }
}
