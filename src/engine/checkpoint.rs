//! Variables to and from TensorFlow checkpoints: fine-tuning, saving, resuming.

use std::collections::HashSet;
use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use super::optimizer::Optimizer;
use crate::data::loader::Position;
use crate::formats::averages::Values;
use crate::formats::bundle_index::{index_of, with_suffix};
use crate::formats::checkpoint_state::{self, CheckpointState};
use crate::formats::tensor_bundle::{self, BundleReader, TensorData};
use crate::net::variables::Variables;

/// How many checkpoints stay, besides the best.
const KEEP: usize = 5;
/// What stands before the step in a checkpoint's name.
const PREFIX: &str = "model.ckpt-";
/// The file that marks the best.
const BEST: &str = "best.json";
/// TensorFlow's name of the step counter.
const GLOBAL_STEP: &str = "global_step";

/// Which of a checkpoint's variables a model starts from.
#[derive(Clone, Copy)]
pub enum FineTune<'a> {
    /// From a detection checkpoint, those under these scopes.
    Scopes(&'a [&'a str]),
    /// From a detection checkpoint, all.
    All,
    /// From a classification checkpoint: those under these scopes, which the checkpoint's names lack; it calls a variable what the function
    /// gives for scope and name, or just the name.
    Classification(&'a [&'a str], &'a dyn Fn(&str, &str) -> String),
}

/// What a restore did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Restored {
    pub restored: Vec<String>,
    /// The checkpoint has them with another shape.
    pub other_shape: Vec<String>,
    /// The checkpoint lacks them.
    pub missing: Vec<String>,
    /// Not asked for.
    pub out_of_scope: Vec<String>,
}

/// Starts a model from a checkpoint by the old trainer's rule: a variable is taken where name and shape agree.
///
/// Source: upstream utils/variables_helper.py, `restore_map` of the meta-architectures.
///
/// # Errors
/// If the checkpoint cannot be read, or not one variable fits.
pub fn fine_tune(prefix: &Path, variables: &mut Variables, what: FineTune) -> Result<Restored> {
    let bundle = BundleReader::open(prefix)?;
    let mut report = Restored::default();
    let mut looked_for = None;
    for i in 0..variables.specs().len() {
        let name = variables.specs()[i].name.clone();
        let source = match what {
            FineTune::All => Some(name.clone()),
            FineTune::Scopes(scopes) => scopes.iter().any(|s| name.starts_with(s)).then(|| name.clone()),
            FineTune::Classification(scopes, its_name) => {
                let within = scopes.iter().find_map(|scope| Some((*scope, name.strip_prefix(scope)?)));
                within.map(|(scope, rest)| match its_name(scope, rest) {
                    known if bundle.get(&known).is_some() => known,
                    _ => rest.to_string(),
                })
            }
        };
        let Some(source) = source.as_deref() else {
            report.out_of_scope.push(name);
            continue;
        };
        match bundle.get(source) {
            None => {
                looked_for.get_or_insert_with(|| source.to_string());
                report.missing.push(name);
            }
            Some(entry) if entry.shape != variables.specs()[i].shape => report.other_shape.push(name),
            Some(_) => {
                let (_, values) = bundle.read_f32(source)?;
                variables.set_from_tensorflow(i, &values)?;
                report.restored.push(name);
            }
        }
    }
    if report.restored.is_empty() {
        // Read by the other rule, much of it may fit.
        let names: HashSet<&str> = variables.specs().iter().map(|s| s.name.as_str()).collect();
        let detection = bundle.entries().iter().any(|e| names.contains(e.name.as_str()));
        let choose = "choose the checkpoint of this model, or start from random values with --fine_tune_checkpoint none";
        let advice = match what {
            FineTune::Classification(..) if detection => {
                "it is a detection checkpoint: set train_config.from_detection_checkpoint: true".to_string()
            }
            FineTune::All | FineTune::Scopes(_) if !detection => {
                format!("{choose}; if it is one of a classification network, set train_config.from_detection_checkpoint: false")
            }
            _ => choose.to_string(),
        };
        let held: Vec<&str> = bundle.entries().iter().take(3).map(|e| e.name.as_str()).collect();
        let wanted = looked_for.as_deref().or(variables.specs().first().map(|s| s.name.as_str())).unwrap_or_default();
        bail!(
            "{}: not one variable fits this model: the checkpoint holds {}, ..., the model wants {wanted}, ...; {advice}",
            prefix.display(),
            held.join(", ")
        );
    }
    Ok(report)
}

/// Where a run stands, besides what TensorFlow's checkpoint holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunState {
    /// Of every random choice.
    pub seed: u64,
    /// Where the loader goes on.
    pub position: Position,
    /// Which pictures it was trained on last (`Records::fingerprint`); earlier versions did not write it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub records: Option<u64>,
}

/// Writes `folder/model.ckpt-<step>` and all beside it, makes it the folder's latest, and deletes what is older than the last five and not
/// the best.
///
/// # Errors
/// If a value is not finite ([`NotFinite`]) or writing fails; the checkpoint before is then still the latest.
pub fn save(folder: &Path, variables: &Variables, optimizer: &Optimizer, step: u64, run: RunState) -> Result<PathBuf> {
    let prefix = folder.join(format!("{PREFIX}{step}"));
    write(&prefix, variables, Some(optimizer), step)?;
    let path = run_state_path(&prefix);
    crate::formats::atomic_file::write(&path, serde_json::to_string_pretty(&run)?.as_bytes())?;
    let mut kept = listed(folder)?;
    kept.retain(|&s| s < step);
    kept.push(step);
    let best = read_best(folder)?.map(|best| best.step);
    let old: Vec<u64> = kept.iter().rev().skip(KEEP).copied().filter(|&s| Some(s) != best).collect();
    kept.retain(|s| !old.contains(s));
    list(folder, step, &kept)?;
    for step in old {
        let prefix = folder.join(format!("{PREFIX}{step}"));
        tensor_bundle::remove(&prefix)?;
        let _ = std::fs::remove_file(run_state_path(&prefix));
    }
    Ok(prefix)
}

/// Makes an older checkpoint of a folder the one that it stands at. Those behind it stay, but are no longer this run's: none is listed, gone
/// on from or deleted.
///
/// # Errors
/// If the `checkpoint` file cannot be written.
pub fn rewind(folder: &Path, prefix: &Path) -> Result<()> {
    let stands = checkpoint_state::read(folder).is_ok_and(|state| state.is_some_and(|state| state.latest == prefix));
    match prefix.file_name().and_then(|name| step_in(name.to_str()?)) {
        Some(step) if !stands => {
            let mut kept = listed(folder)?;
            kept.retain(|&s| s < step);
            kept.push(step);
            list(folder, step, &kept)
        }
        _ => Ok(()),
    }
}

/// Steps of the checkpoints of a folder that are its run's, ascending: those that its `checkpoint` file lists, else all.
///
/// # Errors
/// If the folder cannot be read.
pub fn listed(folder: &Path) -> Result<Vec<u64>> {
    let mut steps = steps_in(folder)?;
    if let Ok(Some(state)) = checkpoint_state::read(folder) {
        let names = state.all.iter().filter_map(|prefix| prefix.file_name()?.to_str());
        let listed: Vec<u64> = names.filter_map(step_in).collect();
        steps.retain(|step| listed.contains(step));
    }
    Ok(steps)
}

/// Writes the `checkpoint` file.
fn list(folder: &Path, latest: u64, steps: &[u64]) -> Result<()> {
    let name = |step: u64| PathBuf::from(format!("{PREFIX}{step}"));
    let state = CheckpointState { latest: name(latest), all: steps.iter().map(|&s| name(s)).collect() };
    checkpoint_state::write(folder, &state)
}

/// A value that no training goes on from.
#[derive(Debug)]
pub struct NotFinite {
    name: String,
    value: f32,
}

impl fmt::Display for NotFinite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` has become {}", self.name, self.value)
    }
}

impl std::error::Error for NotFinite {}

fn finite(name: &str, values: &[f32]) -> Result<(), NotFinite> {
    let found = values.iter().find(|value| !value.is_finite());
    found.map_or(Ok(()), |&value| Err(NotFinite { name: name.to_string(), value }))
}

/// Writes the variables, and the optimizer's state where there is one.
///
/// # Errors
/// If one of them is not finite ([`NotFinite`]), or writing fails; the checkpoint is then not there.
pub fn write(prefix: &Path, variables: &Variables, optimizer: Option<&Optimizer>, step: u64) -> Result<()> {
    let mut writer = tensor_bundle::BundleWriter::create(prefix)?;
    for (i, spec) in variables.specs().iter().enumerate() {
        let values = variables.to_tensorflow(i)?;
        finite(&spec.name, &values)?;
        writer.add(&spec.name, &TensorData::from_f32(&spec.shape, &values))?;
    }
    if let Some(optimizer) = optimizer {
        for (name, shape, values) in optimizer.to_tensorflow(variables, step)? {
            finite(&name, &values)?;
            writer.add(&name, &TensorData::from_f32(&shape, &values))?;
        }
    }
    writer.add(GLOBAL_STEP, &TensorData::from_i64(&[], &[step as i64]))?;
    writer.finish()
}

/// Every variable of the model from a checkpoint, for evaluation, export and detection; the step it was saved at, if it says.
///
/// # Errors
/// If the checkpoint cannot be read, lacks a variable or has it with another shape, or lacks averages that are wanted.
pub fn load(prefix: &Path, variables: &mut Variables, values: Values) -> Result<Option<u64>> {
    let bundle = BundleReader::open(prefix)?;
    values.check(&bundle).with_context(|| prefix.display().to_string())?;
    load_variables(&bundle, prefix, variables, values)?;
    step_of(&bundle)
}

/// A whole run from its checkpoint: variables, optimizer, step, and where the loader stood.
///
/// # Errors
/// As `load`; or if the optimizer's state does not fit, there is no step, or the run's state is damaged.
pub fn resume(prefix: &Path, variables: &mut Variables, optimizer: &mut Optimizer) -> Result<(u64, Option<RunState>)> {
    let bundle = BundleReader::open(prefix)?;
    // A damaged file says nothing of the config.
    let changed = |error: anyhow::Error, advice: &str| match bundle.verify() {
        Ok(()) => error.context(format!("{}: {advice}, or start anew with --reset", prefix.display())),
        Err(damage) => damage,
    };
    load_variables(&bundle, prefix, variables, Values::Trained)
        .map_err(|error| changed(error, "the training's variables are not the config's; put back what was changed"))?;
    let read = |name: &str| bundle.get(name).map(|_| bundle.read_f32(name)).transpose();
    optimizer
        .restore(variables, read)
        .map_err(|error| changed(error, "the optimizer's state is not of the config's optimizer; put back what was changed"))?;
    let step = step_of(&bundle)?.with_context(|| {
        format!(
            "{}: there is no {GLOBAL_STEP}; go on from another with --checkpoint, or start anew with --reset",
            prefix.display()
        )
    })?;
    Ok((step, read_run_state(prefix)?))
}

/// What is beside a checkpoint that a run saved; `None` beside others.
///
/// # Errors
/// If it cannot be read.
pub fn read_run_state(prefix: &Path) -> Result<Option<RunState>> {
    let path = run_state_path(prefix);
    match std::fs::read_to_string(&path) {
        Ok(text) => serde_json::from_str(&text).map(Some).with_context(|| format!("`{}` is damaged", path.display())),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e).with_context(|| format!("cannot read `{}`", path.display())),
    }
}

/// The latest checkpoint of a folder, by its `checkpoint` file; `None` if the folder has none at all.
///
/// # Errors
/// If that file is damaged, or names a checkpoint that is not there, or is missing where there are checkpoints; with what to go on from.
pub fn latest(folder: &Path) -> Result<Option<PathBuf>> {
    let name = folder.join(checkpoint_state::FILE_NAME);
    match checkpoint_state::read(folder) {
        Ok(Some(state)) if index_of(&state.latest).is_file() => Ok(Some(state.latest)),
        Ok(Some(state)) => {
            bail!("`{}` names `{}`, which is not there; {}", name.display(), state.latest.display(), instead(folder, None))
        }
        // To start anew in such a folder would write over a training that somebody has paid for.
        Ok(None) if folder.is_dir() && !steps_in(folder)?.is_empty() => {
            bail!(
                "there are checkpoints in `{}` but no `{}`; {}",
                folder.display(),
                checkpoint_state::FILE_NAME,
                instead(folder, None)
            )
        }
        Ok(None) => Ok(None),
        Err(error) => Err(error.context(format!("`{}` is damaged; {}", name.display(), instead(folder, None)))),
    }
}

/// Adds to an error of [`resume`] what to go on from, if it is the checkpoint that is damaged and not another model's.
pub fn advise(error: anyhow::Error, prefix: &Path) -> anyhow::Error {
    let Some(folder) = prefix.parent().filter(|_| !is_whole(prefix)) else { return error };
    let before = prefix.file_name().and_then(|name| step_in(name.to_str()?));
    error.context(format!("the checkpoint `{}` is damaged; {}", prefix.display(), instead(folder, before)))
}

/// What can be done where the latest checkpoint cannot be gone on from: the newest whole one is named, of those before a step.
fn instead(folder: &Path, before: Option<u64>) -> String {
    let steps = steps_in(folder).unwrap_or_default();
    let older = steps.iter().rev().filter(|&&step| before.is_none_or(|before| step < before));
    match older.map(|step| folder.join(format!("{PREFIX}{step}"))).find(|prefix| is_whole(prefix)) {
        Some(prefix) => format!(
            "`{}` is whole: to go on from there, add `--checkpoint {}` to the command (--reset starts anew)",
            prefix.display(),
            prefix.display()
        ),
        None => format!("`{}` has no whole checkpoint to go on from; --reset starts anew", folder.display()),
    }
}

/// Whether every checksum of a checkpoint agrees and the run's state can be read.
fn is_whole(prefix: &Path) -> bool {
    let bundle = BundleReader::open(prefix).and_then(|bundle| bundle.verify());
    bundle.is_ok() && read_run_state(prefix).is_ok()
}

/// The best checkpoint of a folder by its evaluations, if one was marked.
///
/// # Errors
/// As [`read_best`].
pub fn best(folder: &Path) -> Result<Option<PathBuf>> {
    Ok(read_best(folder)?.map(|best| folder.join(format!("{PREFIX}{}", best.step))))
}

/// What `best.json` holds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Best {
    pub step: u64,
    /// PASCAL mAP@0.5.
    pub map: f64,
}

/// The best evaluation so far.
///
/// # Errors
/// If the mark cannot be read: which checkpoint it keeps from being deleted is then not known.
pub fn read_best(folder: &Path) -> Result<Option<Best>> {
    let mark = folder.join(BEST);
    let text = match std::fs::read(&mark) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        text => text.with_context(|| format!("cannot read `{}`", mark.display()))?,
    };
    serde_json::from_slice(&text).map(Some).with_context(|| {
        format!(
            "`{}`, which says which checkpoint evaluated best, is damaged; delete it, and the next evaluation writes it anew",
            mark.display()
        )
    })
}

/// Marks a checkpoint as the best so far; it is never deleted while it is.
pub fn write_best(folder: &Path, best: Best) -> Result<()> {
    crate::formats::atomic_file::write(&folder.join(BEST), serde_json::to_string(&best)?.as_bytes())
}

/// Marks none as the best.
///
/// # Errors
/// If the mark cannot be deleted.
pub fn forget_best(folder: &Path) -> Result<()> {
    let mark = folder.join(BEST);
    std::fs::remove_file(&mark).with_context(|| format!("cannot delete `{}`", mark.display()))
}

fn load_variables(bundle: &BundleReader, prefix: &Path, variables: &mut Variables, values: Values) -> Result<()> {
    for i in 0..variables.specs().len() {
        let name = values.source(bundle, &variables.specs()[i].name);
        let shape = variables.specs()[i].shape.clone();
        let entry = bundle.get(&name).with_context(|| {
            format!("{}: there is no variable `{name}`; is this the checkpoint of another model?", prefix.display())
        })?;
        ensure!(
            entry.shape == shape,
            "{}: `{name}` has shape {:?}, the model wants {shape:?}; were the config's model or the number of the label map's classes changed?",
            prefix.display(),
            entry.shape
        );
        variables.set_from_tensorflow(i, &bundle.read_f32(&name)?.1)?;
    }
    Ok(())
}

fn step_of(bundle: &BundleReader) -> Result<Option<u64>> {
    if bundle.get(GLOBAL_STEP).is_none() {
        return Ok(None);
    }
    let (_, step) = bundle.read_i64(GLOBAL_STEP)?;
    Ok(step.first().and_then(|&s| u64::try_from(s).ok()))
}

/// Steps of the checkpoints in a folder, ascending.
fn steps_in(folder: &Path) -> Result<Vec<u64>> {
    let mut steps = Vec::new();
    for entry in std::fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))? {
        let name = entry?.file_name();
        steps.extend(name.to_str().and_then(|name| step_in(name.strip_suffix(".index")?)));
    }
    steps.sort_unstable();
    Ok(steps)
}

/// Of a checkpoint's name.
fn step_in(name: &str) -> Option<u64> {
    name.strip_prefix(PREFIX)?.parse().ok()
}

fn run_state_path(prefix: &Path) -> PathBuf {
    with_suffix(prefix, ".run.json")
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;
    use crate::net::graph::{Initializer, Regularizer, Variable, VariableKind};

    /// Vectors, each filled with `value`.
    fn variables(of: &[(&str, i64)], value: f32) -> Variables {
        let specs: Vec<Variable> = of
            .iter()
            .map(|&(name, length)| Variable {
                name: name.to_string(),
                shape: vec![length],
                kind: VariableKind::Vector,
                trainable: true,
                initializer: Initializer::Constant(value),
                regularizer: Regularizer::None,
            })
            .collect();
        Variables::new(&specs, 0, Device::Cpu).unwrap()
    }

    const MODEL: [(&str, i64); 4] = [("Feature/a", 2), ("Feature/b", 3), ("Box/class", 2), ("Box/new", 1)];

    /// A checkpoint of ones; what is restored of it into a model of zeros, and the first value of each of its variables then.
    fn restored(checkpoint: &[(&str, i64)], what: FineTune) -> Result<(Restored, Vec<f32>)> {
        let folder = tempfile::tempdir().unwrap();
        let prefix = folder.path().join("model.ckpt-7");
        write(&prefix, &variables(checkpoint, 1.0), None, 7).unwrap();
        let mut model = variables(&MODEL, 0.0);
        let report = fine_tune(&prefix, &mut model, what)?;
        let values = (0..MODEL.len()).map(|i| model.to_tensorflow(i).unwrap()[0]).collect();
        Ok((report, values))
    }

    fn names(of: &[&str]) -> Vec<String> {
        of.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn what_has_name_and_shape_is_restored_and_the_rest_is_told_by_its_reason() {
        // The predictor was of other classes.
        let checkpoint = [("Feature/a", 2), ("Feature/b", 3), ("Box/class", 9), ("Other", 1)];
        let (report, values) = restored(&checkpoint, FineTune::All).unwrap();
        let expected = Restored {
            restored: names(&["Feature/a", "Feature/b"]),
            other_shape: names(&["Box/class"]),
            missing: names(&["Box/new"]),
            out_of_scope: vec![],
        };
        assert_eq!((report, values), (expected, vec![1.0, 1.0, 0.0, 0.0]));

        let whole = [("Feature/a", 2), ("Feature/b", 3), ("Box/class", 2), ("Box/new", 1)];
        let (report, values) = restored(&whole, FineTune::Scopes(&["Feature/"])).unwrap();
        let expected = Restored {
            restored: names(&["Feature/a", "Feature/b"]),
            out_of_scope: names(&["Box/class", "Box/new"]),
            ..Restored::default()
        };
        assert_eq!((report, values), (expected, vec![1.0, 1.0, 0.0, 0.0]));
    }

    #[test]
    fn a_classification_checkpoint_has_names_of_its_own() {
        // `a` under the network's own name, `b` without any.
        let own = |_: &str, name: &str| format!("Network/{name}");
        let (report, values) =
            restored(&[("Network/a", 2), ("b", 3), ("logits", 5)], FineTune::Classification(&["Feature/"], &own)).unwrap();
        assert_eq!(report.restored, ["Feature/a", "Feature/b"]);
        assert_eq!(report.out_of_scope, ["Box/class", "Box/new"]);
        assert_eq!(values, [1.0, 1.0, 0.0, 0.0]);
    }

    #[test]
    fn a_checkpoint_of_which_nothing_fits_is_an_error_that_says_what_each_side_has() {
        let error = |checkpoint: &[(&str, i64)], what| restored(checkpoint, what).unwrap_err().to_string();
        let said = error(&[("First/a", 2), ("Feature/a", 9)], FineTune::All);
        assert!(
            said.contains("not one variable fits") && said.contains("Feature/a, First/a") && said.contains("Feature/b"),
            "{said}"
        );
        let own = |_: &str, name: &str| name.to_string();
        let said = error(&[("Feature/a", 2)], FineTune::Classification(&["Feature/"], &own));
        assert!(said.contains("from_detection_checkpoint: true"), "{said}");
        let said = error(&[("Network/a", 2)], FineTune::Scopes(&["Feature/"]));
        assert!(said.contains("from_detection_checkpoint: false"), "{said}");
    }
}
