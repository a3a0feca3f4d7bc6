//! Optimizers as TensorFlow 1.x computes them, their state under TensorFlow's slot names.

use anyhow::{Context, Result, bail, ensure};
use regex::Regex;
use tch::{Device, Kind, Tensor};

use super::learning_rate::LearningRate;
use crate::net::shim;
use crate::net::variables::{Variables, to_libtorch, values_in_tensorflow_layout};
use crate::proto::object_detection::protos as pb;

/// How a gradient becomes a change.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Rule {
    /// `ms = decay ms + (1 - decay) g²; mom = momentum mom + lr g / sqrt(ms + epsilon); w -= mom`, not centered.
    RmsProp { decay: f64, momentum: f64, epsilon: f64 },
    /// `acc = momentum acc + g; w -= lr acc`.
    Momentum { momentum: f64 },
    /// Kingma and Ba (arXiv:1412.6980), epsilon outside the root as TensorFlow has it.
    Adam { beta1: f64, beta2: f64, epsilon: f64 },
}

/// A slot: what a checkpoint calls it, and where it starts.
#[derive(Debug, Clone, Copy)]
struct Slot {
    name: &'static str,
    start: f64,
}

impl Rule {
    /// The update after `step` finished ones.
    fn at(self, step: u64) -> shim::Rule {
        match self {
            Rule::RmsProp { decay, momentum, epsilon } => shim::Rule::RmsProp { decay, momentum, epsilon },
            Rule::Momentum { momentum } => shim::Rule::Momentum { momentum, nesterov: false },
            Rule::Adam { beta1, beta2, epsilon } => {
                let power = |beta: f64| beta.powf(step as f64 + 1.0);
                shim::Rule::Adam { beta1, beta2, epsilon, beta1_power: power(beta1), beta2_power: power(beta2) }
            }
        }
    }

    fn slots(self) -> &'static [Slot] {
        match self {
            Rule::RmsProp { .. } => &[Slot { name: "RMSProp", start: 1.0 }, Slot { name: "RMSProp_1", start: 0.0 }],
            Rule::Momentum { .. } => &[Slot { name: "Momentum", start: 0.0 }],
            Rule::Adam { .. } => &[Slot { name: "Adam", start: 0.0 }, Slot { name: "Adam_1", start: 0.0 }],
        }
    }
}

/// The patterns of a field of TrainConfig.
fn patterns(field: &str, texts: &[String], anchored: impl Fn(&str) -> String) -> Result<Vec<Regex>> {
    let compile = |text: &String| {
        Regex::new(&anchored(text)).with_context(|| format!("train_config.{field}: `{text}` is not a regular expression"))
    };
    // Upstream passes over empty ones.
    texts.iter().filter(|text| !text.is_empty()).map(compile).collect()
}

/// A tensor of an optimizer's state: name, shape (none for a scalar), values in TensorFlow's layout.
pub type State = (String, Vec<i64>, Vec<f32>);

/// An optimizer with its state.
#[derive(Debug)]
pub struct Optimizer {
    rule: Rule,
    learning_rate: LearningRate,
    /// Of each tensor's own gradient norm; 0 for none.
    clip_norm: f64,
    /// Of gradients of biases; 1 for none.
    bias_multiplier: f64,
    /// Whether the gradient of L2 regularization is added.
    regularize: bool,
    /// By variable position, then slot; empty for a variable that is not trained.
    slots: Vec<Vec<Tensor>>,
}

impl Optimizer {
    /// The optimizer that the config describes, at its initial state; marks what `freeze_variables` names, and what
    /// `update_trainable_variables` does not where it is set, as not trainable.
    ///
    /// # Errors
    /// If no optimizer is set, or a pattern is not a regular expression.
    pub fn from_config(config: &pb::TrainConfig, variables: &mut Variables) -> Result<Self> {
        use pb::optimizer::Optimizer as O;
        // Python's re.match: from the start of the name.
        let frozen = patterns("freeze_variables", &config.freeze_variables, |p| format!("^(?:{p})"))?;
        // Python's re.search: anywhere in it.
        let updated = patterns("update_trainable_variables", &config.update_trainable_variables, str::to_string)?;
        let any = |patterns: &[Regex], name: &str| patterns.iter().any(|p| p.is_match(name));
        let fixed = |name: &str| any(&frozen, name) || !updated.is_empty() && !any(&updated, name);
        let count = variables.freeze(fixed)?;
        if count > 0 {
            tracing::info!("{count} variables are frozen by train_config.freeze_variables or update_trainable_variables");
        }
        let optimizer =
            config.optimizer.as_ref().and_then(|o| o.optimizer.as_ref()).context("train_config.optimizer is not set")?;
        let (rule, rate) = match optimizer {
            O::RmsPropOptimizer(r) => (
                Rule::RmsProp {
                    decay: r.decay().into(),
                    momentum: r.momentum_optimizer_value().into(),
                    epsilon: r.epsilon().into(),
                },
                &r.learning_rate,
            ),
            O::MomentumOptimizer(m) => (Rule::Momentum { momentum: m.momentum_optimizer_value().into() }, &m.learning_rate),
            // TensorFlow's defaults; the message has no fields for them.
            O::AdamOptimizer(a) => (Rule::Adam { beta1: 0.9, beta2: 0.999, epsilon: 1e-8 }, &a.learning_rate),
        };
        let mut slots = Vec::with_capacity(variables.specs().len());
        for (i, spec) in variables.specs().iter().enumerate() {
            let kinds = if spec.trainable { rule.slots() } else { &[] };
            let tensors: Result<Vec<Tensor>> = kinds
                .iter()
                // The clone keeps the variable's memory layout.
                .map(|s| Ok(variables.tensor(i).f_detach()?.f_full_like(s.start)?))
                .collect();
            slots.push(tensors?);
        }
        let multiplier = f64::from(config.bias_grad_multiplier());
        Ok(Self {
            rule,
            learning_rate: LearningRate::from_config(rate.as_ref())?,
            clip_norm: config.gradient_clipping_by_norm().into(),
            bias_multiplier: if multiplier == 0.0 { 1.0 } else { multiplier },
            regularize: config.add_regularization_loss(),
            slots,
        })
    }

    /// The learning rate of the step that follows `step` finished ones.
    pub fn learning_rate(&self, step: u64) -> f64 {
        self.learning_rate.at(step)
    }

    /// The regularization loss of the present values, a scalar tensor: `sum(l2 * w² / 2)`.
    pub fn regularization(&self, variables: &Variables) -> Result<Tensor> {
        tch::no_grad(|| {
            let mut sum = Tensor::f_zeros([], (Kind::Float, variables.device()))?;
            if !self.regularize {
                return Ok(sum);
            }
            if variables.device() == Device::Cpu {
                let (tensors, l2): (Vec<&Tensor>, Vec<f64>) =
                    variables.specs().iter().enumerate().map(|(i, s)| (variables.tensor(i), s.l2)).unzip();
                return Ok(Tensor::from(shim::l2_loss(&tensors, &l2)? as f32));
            }
            for (i, spec) in variables.specs().iter().enumerate().filter(|(_, s)| s.l2 != 0.0) {
                let norm = variables.tensor(i).f_norm()?; // of all elements
                sum += norm.f_square()? * (spec.l2 / 2.0);
            }
            Ok(sum)
        })
    }

    /// Applies the variables' gradients, then clears them.
    ///
    /// * `step`: finished steps, for the learning rate and Adam's correction.
    pub fn step(&mut self, variables: &Variables, step: u64) -> Result<()> {
        let mut grads = Vec::new();
        let mut trained = Vec::new();
        for (i, _) in variables.specs().iter().enumerate().filter(|(_, s)| s.trainable) {
            if let Some(grad) = shim::take_grad(variables.tensor(i))? {
                grads.push(grad);
                trained.push(i);
            }
        }
        let spec = |i: &usize| &variables.specs()[*i];
        let second = self.rule.slots().len() > 1;
        shim::optimizer_step(
            self.rule.at(step),
            &shim::Update {
                vars: &trained.iter().map(|i| variables.tensor(*i)).collect::<Vec<_>>(),
                grads: &grads.iter().collect::<Vec<_>>(),
                slots0: &trained.iter().map(|i| &self.slots[*i][0]).collect::<Vec<_>>(),
                slots1: &trained.iter().filter(|_| second).map(|i| &self.slots[*i][1]).collect::<Vec<_>>(),
                l2: &trained.iter().map(|i| if self.regularize { spec(i).l2 } else { 0.0 }).collect::<Vec<_>>(),
                multipliers: &trained
                    .iter()
                    .map(|i| if spec(i).name.ends_with("/biases") { self.bias_multiplier } else { 1.0 })
                    .collect::<Vec<_>>(),
                clip_norm: (self.clip_norm > 0.0).then_some(self.clip_norm),
                learning_rate: self.learning_rate.at(step),
            },
        )
    }

    /// Slots and other state as a checkpoint holds them: `(name, shape, values)`; a scalar has no shape.
    ///
    /// * `step`: finished steps.
    pub fn to_tensorflow(&self, variables: &Variables, step: u64) -> Result<Vec<State>> {
        let mut state = Vec::new();
        for (i, spec) in variables.specs().iter().enumerate() {
            for (slot, tensor) in self.rule.slots().iter().zip(&self.slots[i]) {
                state.push((
                    format!("{}/{}", spec.name, slot.name),
                    spec.shape.clone(),
                    values_in_tensorflow_layout(spec, tensor)?,
                ));
            }
        }
        if let Rule::Adam { beta1, beta2, .. } = self.rule {
            for (name, beta) in [("beta1_power", beta1), ("beta2_power", beta2)] {
                state.push((name.to_string(), vec![], vec![beta.powf(step as f64 + 1.0) as f32]));
            }
        }
        Ok(state)
    }

    /// Takes the slots from a checkpoint. TensorFlow gives none to a variable that no loss depends on (the first stage's block4 in a Faster
    /// R-CNN on ResNet): one without any keeps its start, where others have theirs.
    ///
    /// * `read`: values of a tensor by name, in TensorFlow's layout; none where there is no such tensor.
    ///
    /// # Errors
    /// If no variable has slots, one has some of them only, or a slot has another shape.
    pub fn restore(&mut self, variables: &Variables, read: impl Fn(&str) -> Result<Option<(Vec<i64>, Vec<f32>)>>) -> Result<()> {
        let slots = self.rule.slots();
        let mut without = Vec::new();
        for (i, spec) in variables.specs().iter().enumerate() {
            let tensors = &mut self.slots[i];
            let names: Vec<String> =
                slots.iter().zip(tensors.iter()).map(|(slot, _)| format!("{}/{}", spec.name, slot.name)).collect();
            let mut missing = Vec::new();
            for (name, tensor) in names.iter().zip(tensors) {
                let Some((shape, values)) = read(name)? else {
                    missing.push(name);
                    continue;
                };
                ensure!(shape == spec.shape, "`{name}` has shape {shape:?} in the checkpoint, not {:?}", spec.shape);
                let values = to_libtorch(spec, &values, variables.device())?;
                tch::no_grad(|| tensor.f_copy_(&values)).with_context(|| format!("taking over `{name}`"))?;
            }
            match missing.as_slice() {
                [] => {}
                [first, ..] if missing.len() < names.len() => bail!("`{first}` is not in the checkpoint"),
                [first, ..] => without.push((*first).clone()),
            }
        }
        let all = self.slots.iter().filter(|tensors| !tensors.is_empty()).count();
        if let Some(first) = without.first() {
            ensure!(without.len() < all, "`{first}` is not in the checkpoint, nor is any other");
            tracing::info!(
                "{} variables have no optimizer state in the checkpoint ({first}, ...): it starts anew",
                without.len()
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::graph::{Initializer, Variable, VariableKind};

    /// Applies the rule to one weight for the gradients given; the weight after each.
    fn run(rule: Rule, gradients: &[f64]) -> Vec<f64> {
        let w = Tensor::from_slice(&[1f32]);
        let slots: Vec<Tensor> = rule.slots().iter().map(|s| w.full_like(s.start)).collect();
        let mut path = Vec::new();
        for (step, g) in gradients.iter().enumerate() {
            let second: Vec<&Tensor> = slots.iter().skip(1).collect();
            let update = shim::Update {
                vars: &[&w],
                grads: &[&Tensor::from_slice(&[*g as f32])],
                slots0: &[&slots[0]],
                slots1: &second,
                l2: &[0.0],
                multipliers: &[1.0],
                clip_norm: None,
                learning_rate: 0.1,
            };
            shim::optimizer_step(rule.at(step as u64), &update).unwrap();
            path.push(w.double_value(&[0]));
        }
        path
    }

    #[test]
    fn rmsprop_starts_from_ones_with_epsilon_inside_the_root() {
        let path = run(Rule::RmsProp { decay: 0.9, momentum: 0.5, epsilon: 1.0 }, &[2.0, 1.0]);
        // By hand: ms = 0.9 + 0.4 = 1.3; mom = 0.2 / sqrt(2.3); then ms = 1.27, mom = mom / 2 + 0.1 / sqrt(2.27).
        let first = 0.2 / 2.3f64.sqrt();
        let second = first / 2.0 + 0.1 / 2.27f64.sqrt();
        assert!((path[0] - (1.0 - first)).abs() < 1e-6);
        assert!((path[1] - (1.0 - first - second)).abs() < 1e-6);
    }

    #[test]
    fn momentum_accumulates_gradients() {
        let path = run(Rule::Momentum { momentum: 0.5 }, &[2.0, 1.0]);
        assert!((path[0] - 0.8).abs() < 1e-6 && (path[1] - 0.6).abs() < 1e-6);
    }

    #[test]
    fn adams_first_step_is_the_learning_rate() {
        let path = run(Rule::Adam { beta1: 0.9, beta2: 0.999, epsilon: 1e-8 }, &[5.0]);
        assert!((path[0] - 0.9).abs() < 1e-5);
    }

    /// A trainable variable of one number, which starts at 1.
    fn variable(name: &str) -> Variable {
        Variable {
            name: name.to_string(),
            shape: vec![1],
            kind: VariableKind::Vector,
            trainable: true,
            initializer: Initializer::Constant(1.0),
            l2: 1.0,
        }
    }

    #[test]
    fn patterns_say_what_is_trained() {
        let specs = ["FeatureExtractor/a", "FeatureExtractor/b", "BoxPredictor_0/a"].map(variable);
        let trained = |lists: &str| -> Vec<String> {
            let text = format!(
                "train_config {{ optimizer {{ momentum_optimizer {{ learning_rate {{ constant_learning_rate {{}} }} }} }} {lists} }}"
            );
            let config = crate::config::pipeline::parse(&text, "test").unwrap().train_config.unwrap();
            let mut variables = Variables::new(&specs, 0, Device::Cpu).unwrap();
            Optimizer::from_config(&config, &mut variables).unwrap();
            variables.specs().iter().filter(|s| s.trainable && s.l2 == 1.0).map(|s| s.name.clone()).collect()
        };
        assert_eq!(trained("").len(), 3);
        // From the start of the name, and anywhere in it.
        assert_eq!(trained("freeze_variables: 'Feature' freeze_variables: 'a'"), ["BoxPredictor_0/a"]);
        assert_eq!(trained("update_trainable_variables: '/a$'"), ["FeatureExtractor/a", "BoxPredictor_0/a"]);
        assert_eq!(trained("update_trainable_variables: '/a$' freeze_variables: 'Box'"), ["FeatureExtractor/a"]);
    }

    #[test]
    fn a_variable_without_slots_in_a_checkpoint_keeps_its_start_where_others_have_theirs() {
        let text = "train_config { optimizer { rms_prop_optimizer { learning_rate { constant_learning_rate {} } } } }";
        let config = crate::config::pipeline::parse(text, "test").unwrap().train_config.unwrap();
        let restored = |held: &[&str]| -> Result<Vec<f64>> {
            let mut variables = Variables::new(&["a", "b"].map(variable), 0, Device::Cpu)?;
            let mut optimizer = Optimizer::from_config(&config, &mut variables)?;
            optimizer.restore(&variables, |name| Ok(held.contains(&name).then(|| (vec![1], vec![7.0]))))?;
            Ok(optimizer.slots.iter().flatten().map(|t| t.double_value(&[0])).collect())
        };
        assert_eq!(restored(&["a/RMSProp", "a/RMSProp_1", "b/RMSProp", "b/RMSProp_1"]).unwrap(), [7.0; 4]);
        assert_eq!(restored(&["b/RMSProp", "b/RMSProp_1"]).unwrap(), [1.0, 0.0, 7.0, 7.0]);
        assert!(restored(&["a/RMSProp", "b/RMSProp", "b/RMSProp_1"]).unwrap_err().to_string().contains("`a/RMSProp_1`"));
        assert!(restored(&["a", "b"]).unwrap_err().to_string().contains("nor is any other"));
    }
}
