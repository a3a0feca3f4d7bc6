//! The training loop: load, predict, lose, step; every so many steps save and evaluate.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tch::{Device, Kind, Tensor};

use super::checkpoint::{self, Best, FineTune, NotFinite, RunState};
use super::eval::{self, EvalOptions};
use super::eval_report;
use super::memory;
use super::optimizer::Optimizer;
use super::progress::{Progress, StepLine};
use crate::config::label_map::LabelMap;
use crate::data::augment::Augmentation;
use crate::data::loader::{Batch, Loader, LoaderOptions, Position};
use crate::formats::events::EventWriter;
use crate::models::pictures::Pictures;
use crate::models::{DetectionModel, Losses, StepContext};
use crate::net::exec::apply_moving_updates;
use crate::net::shim;
use crate::net::variables::Variables;
use crate::proto::object_detection::protos as pb;
use crate::{exit, interrupt};

/// Steps between two points of the curves in TensorBoard.
const SUMMARY_STEPS: u64 = 10;
/// Batches that the loader keeps ready.
const PREFETCH: usize = 4;

/// What to train, and where it goes.
#[derive(Debug, Clone)]
pub struct TrainOptions<'a> {
    pub model_name: &'a str,
    pub config: &'a pb::TrainConfig,
    pub label_map: &'a LabelMap,
    /// Record files, shard sets or globs.
    pub train_records: Vec<PathBuf>,
    /// Done to each training picture, in this order.
    pub augmentations: Vec<Augmentation>,
    /// Whether each pass over the pictures has an order of its own.
    pub shuffle: bool,
    /// Whether moving averages are what is evaluated and exported.
    pub averages: bool,
    /// Evaluated on every `save_every` steps and at the end; `None` for never.
    pub evaluation: Option<EvalOptions<'a>>,
    pub train_dir: PathBuf,
    pub eval_dir: PathBuf,
    /// The checkpoint of an earlier run to go on from; `None` to begin.
    pub resume_from: Option<PathBuf>,
    /// Pretrained weights to begin with; `None` for random ones.
    pub start_from: Option<PathBuf>,
    /// Steps to have finished in the end.
    pub num_steps: u64,
    pub save_every: u64,
    /// Of every random choice; a resumed run keeps its own.
    pub seed: u64,
    pub device: Device,
    /// Loader threads; 0 for one less than the machine has cores.
    pub num_threads: usize,
    /// What goes on where a run was stopped, as people are told.
    pub again: &'a str,
}

/// What came of it.
#[derive(Debug, Clone)]
pub struct Trained {
    /// The latest checkpoint.
    pub checkpoint: PathBuf,
    pub step: u64,
    /// Of the last evaluation, PASCAL mAP@0.5.
    pub map: Option<f64>,
    /// In the steps, without saving and evaluating.
    pub stepping: Duration,
    /// Of it, waiting for data.
    pub waited: Duration,
    pub images_per_second: f64,
}

/// Everything that changes while training.
struct Run<'a> {
    /// `None` where no step is to be done.
    loader: Option<Loader>,
    /// The loader's first.
    first_batch: Option<Batch>,
    model: &'a dyn DetectionModel,
    options: &'a TrainOptions<'a>,
    variables: Variables,
    optimizer: Optimizer,
    step: u64,
    /// The step that was saved last, or where the run began.
    saved: u64,
    state: RunState,
    events: EventWriter,
    eval_events: Option<EventWriter>,
    map: Option<f64>,
}

/// Trains to `num_steps`. `begin` is called if there are steps to do, once weights and first batch are there and before anything is
/// written: whatever cannot be trained leaves the folders as they are.
///
/// # Errors
/// If data, checkpoints or the disk fail; if a loss is not finite; exit code 130 after Ctrl-C, once all is saved.
pub fn train(model: &dyn DetectionModel, options: &TrainOptions, begin: impl FnOnce() -> Result<()>) -> Result<Trained> {
    shim::tune_process();
    memory::ensure_fit(model.variables())?;
    let mut variables = Variables::new(model.variables(), options.seed, options.device)?;
    let mut optimizer = Optimizer::from_config(options.config, &mut variables)?;
    ensure!(
        !options.averages || optimizer.keeps_averages(),
        "eval_config.use_moving_averages: true, and train_config.optimizer.use_moving_average: false keeps none; set both alike"
    );
    let mut state = RunState { seed: options.seed, position: Position::default(), records: None };
    let mut step = 0;
    if let Some(prefix) = &options.resume_from {
        // What is marked as the best is not deleted: that has to be known before anything is written.
        checkpoint::read_best(&options.train_dir)?;
        let resumed = checkpoint::resume(prefix, &mut variables, &mut optimizer);
        let (at, saved) = resumed.map_err(|error| checkpoint::advise(error, prefix))?;
        step = at;
        match saved {
            Some(saved) => state = saved,
            None => tracing::warn!("{} has no loader position beside it: the data starts a new pass", prefix.display()),
        }
    } else if let Some(prefix) = &options.start_from {
        start_from(prefix, model, &mut variables, options.config)?;
    } else {
        tracing::warn!("no pretrained weights: training starts from random values, as asked");
    }
    let mut loader = if step < options.num_steps { Some(loader(model, options, state)?) } else { None };
    if let Some(loader) = &loader {
        let now = loader.fingerprint();
        if state.records.is_some_and(|before| before != now) {
            tracing::warn!(
                "the training records are others than up to step {step}: if the pictures were split anew, some that it has learnt may be among \
                 those that it is evaluated on, and its mAP too good; --reset starts anew"
            );
        }
        state.records = Some(now);
    }
    let first_batch = loader.as_mut().map(Loader::next).transpose()?;
    if loader.is_some() {
        begin()?;
    }
    if let Some(prefix) = &options.resume_from {
        checkpoint::rewind(&options.train_dir, prefix)?;
        reconsider_best(options, step)?;
        tracing::info!("Resume [ checkpoint : {}, step : {step} ]", prefix.display());
    }
    let mut events = EventWriter::create(&options.train_dir)?;
    if options.resume_from.is_some() {
        events.session_start(step as i64 + 1)?;
    }
    let mut run = Run {
        loader,
        first_batch,
        model,
        options,
        variables,
        optimizer,
        step,
        saved: step,
        state,
        events,
        eval_events: None,
        map: None,
    };
    run.finish()
}

/// What libtorch's generator starts a step from: on a CPU it looks at 32 bits, which steps and seeds next to each other must not share.
fn seed_of_step(seed: u64, step: u64) -> i64 {
    let mut key = [0; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    key[8..16].copy_from_slice(&step.to_le_bytes());
    // The samplers' key has a 0 here.
    key[16] = 1;
    i64::from(ChaCha8Rng::from_seed(key).random::<u32>())
}

/// Where a run goes on from before its best checkpoint, that one is no longer of its course: the best of those that are is marked in its place.
fn reconsider_best(options: &TrainOptions, step: u64) -> Result<()> {
    let folder = &options.train_dir;
    if checkpoint::read_best(folder)?.is_none_or(|best| best.step <= step) {
        return Ok(());
    }
    let evaluated = |step| Some(Best { step, map: eval_report::map_in(&eval_report::path(&options.eval_dir, step))? });
    let kept = checkpoint::listed(folder)?.into_iter().filter(|&at| at <= step).filter_map(evaluated);
    match kept.reduce(|best, other| if other.map > best.map { other } else { best }) {
        Some(best) => checkpoint::write_best(folder, best),
        None => checkpoint::forget_best(folder),
    }
}

/// Batches from where the run stands.
fn loader(model: &dyn DetectionModel, options: &TrainOptions, state: RunState) -> Result<Loader> {
    let classes = eval::classes(model, options.label_map);
    let batch_size = options.config.batch_size() as usize;
    Loader::new(LoaderOptions {
        shuffle: options.shuffle,
        seed: state.seed,
        augmentations: options.augmentations.clone(),
        start: state.position,
        num_threads: options.num_threads,
        prefetch: PREFETCH,
        ..LoaderOptions::new(options.train_records.clone(), batch_size, model.resizer(), classes)
    })
}

/// Takes over what fits of a checkpoint and says what did not.
fn start_from(prefix: &Path, model: &dyn DetectionModel, variables: &mut Variables, config: &pb::TrainConfig) -> Result<()> {
    let scopes = model.feature_extractor_scopes();
    let detection = match config.fine_tune_checkpoint_type() {
        "" => config.from_detection_checkpoint(),
        "detection" => true,
        "classification" => false,
        other => bail!("train_config.fine_tune_checkpoint_type: `{other}` must be detection or classification"),
    };
    let what = match (detection, config.load_all_detection_checkpoint_vars()) {
        (true, true) => FineTune::All,
        (true, false) => FineTune::Scopes(scopes),
        (false, _) => FineTune::Classification(scopes, &|scope, name| model.classification_name(scope, name)),
    };
    let report = checkpoint::fine_tune(prefix, variables, what)?;
    crate::outln!(
        "{}: {} variables restored, {} skipped for their shape, {} missing, {} not asked for",
        prefix.display(),
        report.restored.len(),
        report.other_shape.len(),
        report.missing.len(),
        report.out_of_scope.len()
    );
    tracing::info!(
        "Restore [ checkpoint : {}, restored : {}, skipped for their shape : {}, missing : {}, not asked for : {} ]",
        prefix.display(),
        report.restored.len(),
        report.other_shape.len(),
        report.missing.len(),
        report.out_of_scope.len()
    );
    for (why, names) in [("has another shape", &report.other_shape), ("is not in the checkpoint", &report.missing)] {
        for name in names {
            tracing::info!("Restore: {name} {why} and starts anew");
        }
    }
    Ok(())
}

impl Run<'_> {
    fn finish(&mut self) -> Result<Trained> {
        let options = self.options;
        let first = self.step;
        let mut checkpoint = options.resume_from.clone();
        let (mut stepping, mut waited) = (Duration::ZERO, Duration::ZERO);
        match self.loader.take() {
            None => {
                tracing::warn!(
                    "{} stands at step {} already; ask for more with --num_steps, or start anew with --reset",
                    options.train_dir.display(),
                    self.step
                );
                self.make_up_for_evaluation(checkpoint.as_deref())?;
            }
            Some(mut loader) => {
                if self.step.is_multiple_of(options.save_every) {
                    self.make_up_for_evaluation(checkpoint.as_deref())?;
                }
                let mut progress = Progress::new(self.step, options.num_steps, options.config.batch_size() as usize);
                while self.step < options.num_steps {
                    let begun = Instant::now();
                    let batch = match self.first_batch.take() {
                        Some(batch) => batch,
                        None => loader.next().or_else(|error| self.save_before(error))?,
                    };
                    waited += batch.waited;
                    progress.waited(batch.waited);
                    let line = self.one_step(&batch)?;
                    stepping += begun.elapsed();
                    progress.step(self.step, &line);
                    let mut stop = interrupt::requested();
                    let due = self.step.is_multiple_of(options.save_every) || self.step == options.num_steps;
                    if due || stop {
                        checkpoint = Some(self.save(Some(&batch))?);
                    }
                    if due && !stop && options.evaluation.is_some() {
                        let prefix = checkpoint.clone().context("a checkpoint was just saved")?;
                        match progress.pause(|| self.evaluate(&prefix)) {
                            Err(error) if exit::code(&error) == 130 => stop = true,
                            done => done.with_context(|| {
                                let Self { step, options, .. } = self;
                                format!(
                                    "the evaluation of step {step} failed; the step is saved, and {} goes on from there",
                                    options.again
                                )
                            })?,
                        }
                    }
                    if stop {
                        progress.finish();
                        return Err(exit::interrupted(format!(
                            "stopped at step {}; all is saved: {} goes on from there",
                            self.step, options.again
                        )));
                    }
                }
                progress.finish();
            }
        }
        let images = (self.step - first) as f64 * f64::from(options.config.batch_size());
        Ok(Trained {
            checkpoint: checkpoint.context("nothing was trained and there is no checkpoint: --num_steps must be at least 1")?,
            step: self.step,
            map: self.map,
            stepping,
            waited,
            images_per_second: images / stepping.as_secs_f64().max(1e-9),
        })
    }

    /// Evaluates the checkpoint at which the run stands, if that was broken off.
    fn make_up_for_evaluation(&mut self, checkpoint: Option<&Path>) -> Result<()> {
        let (Some(prefix), true) = (checkpoint, self.options.evaluation.is_some()) else { return Ok(()) };
        let report = eval_report::path(&self.options.eval_dir, self.step);
        if !report.exists() {
            return self.evaluate(prefix);
        }
        self.map = eval_report::map_in(&report);
        Ok(())
    }

    /// One batch: losses, gradients, update. Returns what the progress line shows.
    fn one_step(&mut self, batch: &Batch) -> Result<StepLine> {
        let device = self.options.device;
        // Dropout draws from libtorch's generator: bound to the step, a resumed run draws the same.
        tch::manual_seed(seed_of_step(self.state.seed, self.step));
        let images = Pictures::new(&batch.images, (batch.height, batch.width), &batch.sizes, device)?;
        let mut context = StepContext::new(self.state.seed, self.step);
        let losses = self.model.losses(&self.variables, &images, &batch.groundtruth, &mut context)?;
        let regularization = self.optimizer.regularization(&self.variables)?;
        losses.total()?.f_backward()?;
        // Behind the backward pass, so that a GPU is not left without work, and before anything is changed.
        let line = self.read_losses(&losses, &regularization, batch)?;
        self.optimizer.step(&self.variables, self.step)?;
        apply_moving_updates(&self.variables, &losses.moving)?;
        let first = self.step == 0;
        self.step += 1;
        tracing::debug!("step {}: total loss {:.6}", self.step, line.total);
        self.state.position = batch.position;
        if first || self.step.is_multiple_of(SUMMARY_STEPS) || self.step == self.options.num_steps {
            self.summarize(&line)?;
        }
        Ok(line)
    }

    /// The numbers of one step; a GPU waits here.
    fn read_losses(&self, losses: &Losses, regularization: &Tensor, batch: &Batch) -> Result<StepLine> {
        let tensors: Vec<&Tensor> = losses.terms.iter().map(|(_, term)| term).chain([regularization]).collect();
        let values = Vec::<f64>::try_from(Tensor::f_stack(&tensors, 0)?.f_detach()?.f_to_kind(Kind::Double)?)?;
        let terms: Vec<_> = losses.terms.iter().map(|(name, _)| *name).zip(values.iter().copied()).collect();
        let regularization = values[terms.len()];
        let total = terms.iter().map(|(_, value)| value).sum::<f64>() + regularization;
        let named = terms.iter().copied().chain([("Loss/regularization_loss", regularization)]);
        if let Some((name, value)) = named.into_iter().find(|(_, value)| !value.is_finite()) {
            let before = match self.saved == self.step && self.step > 0 {
                true => "the latest checkpoint has the same weights, and --checkpoint goes on from an earlier one",
                false => "the latest checkpoint is from before",
            };
            bail!("step {}: {name} is {value}{}; {before}", self.step + 1, self.blame(batch));
        }
        Ok(StepLine { total, terms, learning_rate: self.optimizer.learning_rate(self.step) })
    }

    fn summarize(&mut self, line: &StepLine) -> Result<()> {
        let step = self.step as i64;
        self.events.scalar(step, "Losses/TotalLoss", line.total as f32)?;
        for (name, value) in &line.terms {
            self.events.scalar(step, &format!("Losses/{name}"), *value as f32)?;
        }
        self.events.scalar(step, "LearningRate/LearningRate/learning_rate", line.learning_rate as f32)?;
        self.events.flush()
    }

    /// What may have led to a value that is not finite.
    fn blame(&self, batch: &Batch) -> String {
        let pictures = batch.names.join(", ");
        format!("; pictures of the batch: {pictures}. Lower the learning rate or look at these pictures' boxes")
    }

    /// What was trained before a record that cannot be used is not lost.
    fn save_before<T>(&mut self, error: anyhow::Error) -> Result<T> {
        if self.saved == self.step {
            return Err(error);
        }
        self.save(None).with_context(|| format!("{error:#}"))?;
        Err(error.context(format!("stopped at step {}; all is saved: {} goes on from there", self.step, self.options.again)))
    }

    /// * `batch`: the last step's, if it is at hand.
    fn save(&mut self, batch: Option<&Batch>) -> Result<PathBuf> {
        let folder = &self.options.train_dir;
        let prefix = checkpoint::save(folder, &self.variables, &self.optimizer, self.step, self.state);
        let prefix = prefix.map_err(|error| match error.downcast_ref::<NotFinite>() {
            Some(what) => {
                let blame = batch.map(|batch| self.blame(batch)).unwrap_or_default();
                anyhow!("step {}: {what}, and nothing is saved{blame}", self.step)
            }
            None => error.context(format!("saving step {} into {}", self.step, folder.display())),
        })?;
        self.saved = self.step;
        // One that is there already is of weights that were here before.
        let _ = std::fs::remove_file(eval_report::path(&self.options.eval_dir, self.step));
        tracing::info!("Save [ checkpoint : {} ]", prefix.display());
        Ok(prefix)
    }

    fn evaluate(&mut self, prefix: &Path) -> Result<()> {
        let Some(options) = &self.options.evaluation else { return Ok(()) };
        tracing::info!("Evaluate start [ step : {} ]", self.step);
        let averaged = self.options.averages.then(|| self.optimizer.averaged(&self.variables)).transpose()?;
        let variables = averaged.as_ref().unwrap_or(&self.variables);
        let evaluated = eval::evaluate(self.model, variables, options, (prefix, self.step))?;
        let events = match &mut self.eval_events {
            Some(events) => events,
            empty => empty.insert(EventWriter::create(&self.options.eval_dir)?),
        };
        eval::write(&evaluated, &self.options.eval_dir, events)?;
        for line in evaluated.report.log_lines() {
            tracing::info!("{line}");
        }
        crate::outln!("{}", evaluated.report.table());
        let map = evaluated.report.pascal.map;
        self.map = Some(map);
        let best = checkpoint::read_best(&self.options.train_dir)?;
        if map.is_finite() && best.is_none_or(|b| map > b.map) {
            checkpoint::write_best(&self.options.train_dir, Best { step: self.step, map })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_steps_begin_alike() {
        let seeds: std::collections::HashSet<i64> = (0..10_000).map(|step| seed_of_step(0, step)).collect();
        // By chance two of 10,000 in 2^32 may meet.
        assert!(seeds.len() >= 9_998);
        assert_ne!(seed_of_step(5, 0), seed_of_step(5 + (1 << 32), 0));
        assert_ne!(seed_of_step(0, 1), seed_of_step(1 << 20, 0));
        assert_eq!(seed_of_step(3, 7), seed_of_step(3, 7));
    }
}
