//! Moving averages of variables in a TensorFlow checkpoint, under names of their own (upstream evaluator.py, exporter.py:
//! `ExponentialMovingAverage.variables_to_restore`).

use anyhow::{Result, ensure};

use super::tensor_bundle::BundleReader;

/// The last part of an average's name.
pub const SUFFIX: &str = "ExponentialMovingAverage";

/// Which values of a checkpoint's variables are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Values {
    /// Those that were trained.
    Trained,
    /// Their moving averages, where they have one.
    Averages,
}

/// The name of a variable's moving average.
pub fn name(variable: &str) -> String {
    format!("{variable}/{SUFFIX}")
}

impl Values {
    /// The name of the tensor that has these values of a variable.
    pub fn source(self, bundle: &BundleReader, variable: &str) -> String {
        match self {
            Values::Averages if bundle.get(&name(variable)).is_some() => name(variable),
            _ => variable.to_string(),
        }
    }

    /// # Errors
    /// If averages are wanted and the checkpoint has none at all.
    pub fn check(self, bundle: &BundleReader) -> Result<()> {
        let suffix = format!("/{SUFFIX}");
        ensure!(
            self == Values::Trained || bundle.entries().iter().any(|entry| entry.name.ends_with(&suffix)),
            "eval_config.use_moving_averages: true, and the checkpoint has no moving averages; set it to false, or train with \
             train_config.optimizer.use_moving_average: true"
        );
        Ok(())
    }
}
