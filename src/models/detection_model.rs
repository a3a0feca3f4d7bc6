//! What the engine sees of a model, whatever it is made of.

use anyhow::Result;
use tch::Tensor;

use super::pictures::Pictures;
use crate::data::resizer::Resizer;
use crate::detection::boxes::{Detections, Groundtruth};
use crate::detection::sampler::Shuffle;
use crate::net::exec::MovingUpdate;
use crate::net::graph::Variable;
use crate::net::variables::Variables;

/// One training pass: the loss terms by TensorBoard's tags, weighted and normalized, and what the batch norms saw.
#[derive(Debug)]
pub struct Losses {
    /// Scalars; their sum is the loss without regularization.
    pub terms: Vec<(&'static str, Tensor)>,
    pub moving: Vec<MovingUpdate>,
}

impl Losses {
    /// The sum of the terms, a scalar.
    pub fn total(&self) -> Result<Tensor> {
        let terms: Vec<&Tensor> = self.terms.iter().map(|(_, t)| t).collect();
        Ok(Tensor::f_stack(&terms, 0)?.f_sum(tch::Kind::Float)?)
    }
}

/// What a training pass goes by besides its batch; of the step alone, so that a resumed run does the same.
#[derive(Debug, Clone)]
pub struct StepContext {
    /// Of the run, from 0: what follows a schedule.
    pub step: u64,
    /// What samplers choose by.
    pub shuffle: Shuffle,
}

impl StepContext {
    /// Of one step of a run with this seed.
    pub fn new(seed: u64, step: u64) -> Self {
        Self { step, shuffle: Shuffle::of_step(seed, step) }
    }
}

/// What the engine needs of a model.
pub trait DetectionModel {
    /// Classes without background.
    fn num_classes(&self) -> usize;

    /// Every variable, in a fixed order.
    fn variables(&self) -> &[Variable];

    /// What size it wants its pictures.
    fn resizer(&self) -> Resizer;

    /// Scopes that a detection checkpoint is restored into by default.
    fn feature_extractor_scopes(&self) -> &'static [&'static str];

    /// What a classification checkpoint calls the variable `name` under `scope`, one of [`Self::feature_extractor_scopes`].
    fn classification_name(&self, _scope: &str, name: &str) -> String {
        name.to_string()
    }

    /// The losses of a batch, with gradients.
    ///
    /// * `pictures`: resized, on the variables' device; `groundtruth`: normalized to each picture without padding.
    fn losses(
        &self,
        variables: &Variables,
        pictures: &Pictures,
        groundtruth: &[Groundtruth],
        context: &mut StepContext,
    ) -> Result<Losses>;

    /// The model with the variables' present values frozen in. Those that nothing is folded into are shared with `variables`, so that training
    /// on changes them here too: it is for a look in between.
    fn freeze(&self, variables: &Variables) -> Result<Box<dyn Frozen>>;
}

/// A model ready for inference.
pub trait Frozen {
    /// What is in each picture, normalized to it without padding.
    ///
    /// * `pictures`: resized.
    fn detect(&self, pictures: &Pictures) -> Result<Vec<Detections>>;

    /// What the model might find as well in the one picture, had its sums been rounded otherwise; nothing where roundings decide nothing.
    fn rounded_otherwise(&self, _picture: &Pictures) -> Result<Vec<Detections>> {
        Ok(Vec::new())
    }
}
