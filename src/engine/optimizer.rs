//! Optimizers as TensorFlow 1.x computes them, their state under TensorFlow's slot names.

use anyhow::{Context, Result, bail, ensure};
use regex::Regex;
use tch::{Device, Kind, Tensor};

use super::learning_rate::LearningRate;
use crate::formats::averages;
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
    /// Kingma and Ba (arXiv:1412.6980), epsilon outside the root as TensorFlow has it, and the rest in its 32 bits: `1 - beta2` has few of them
    /// left, which shows in the first steps.
    Adam { beta1: f32, beta2: f32, epsilon: f64 },
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
            Rule::Adam { beta1, beta2, epsilon } => shim::Rule::Adam {
                beta1: beta1.into(),
                beta2: beta2.into(),
                epsilon,
                beta1_power: power(beta1, step).into(),
                beta2_power: power(beta2, step).into(),
            },
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

/// `beta` to the power of `step + 1`, as TensorFlow multiplies it up, a step at a time.
fn power(beta: f32, step: u64) -> f32 {
    (0..step).fold(beta, |power, _| power * beta)
}

/// The patterns of a field of TrainConfig.
fn patterns(field: &str, texts: &[String], variables: &Variables, anchored: impl Fn(&str) -> String) -> Result<Vec<Regex>> {
    let compile = |text: &String| {
        let pattern = Regex::new(&anchored(text));
        let pattern = pattern.with_context(|| {
            format!("train_config.{field}: `{text}` is no regular expression that odh knows (look-around is not among them)")
        })?;
        if !variables.specs().iter().any(|spec| spec.trainable && pattern.is_match(&spec.name)) {
            tracing::warn!("train_config.{field}: no variable that is trained has a name that `{text}` matches");
        }
        Ok(pattern)
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
    /// Of the moving averages of the variables (`use_moving_average`); `None` where they are not kept.
    average_decay: Option<f64>,
    /// By variable position. As in TensorFlow, a variable that no loss depends on (the first stage's block4 in a Faster R-CNN on ResNet) never
    /// gets any.
    states: Vec<Option<VariableState>>,
}

/// What is kept of a variable from its first gradient on.
#[derive(Debug)]
struct VariableState {
    /// In the order of the rule's slots.
    slots: Vec<Tensor>,
    average: Option<Tensor>,
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
        let frozen = patterns("freeze_variables", &config.freeze_variables, variables, |p| format!("^(?:{p})"))?;
        // Python's re.search: anywhere in it.
        let updated = patterns("update_trainable_variables", &config.update_trainable_variables, variables, str::to_string)?;
        let any = |patterns: &[Regex], name: &str| patterns.iter().any(|p| p.is_match(name));
        let fixed = |name: &str| any(&frozen, name) || !updated.is_empty() && !any(&updated, name);
        let count = variables.freeze(fixed)?;
        if count > 0 {
            tracing::info!("{count} variables are frozen by train_config.freeze_variables or update_trainable_variables");
            ensure!(
                variables.specs().iter().any(|spec| spec.trainable),
                "train_config.freeze_variables and update_trainable_variables leave no variable to train"
            );
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
        let multiplier = f64::from(config.bias_grad_multiplier());
        Ok(Self {
            rule,
            learning_rate: LearningRate::from_config(rate.as_ref())?,
            clip_norm: config.gradient_clipping_by_norm().into(),
            bias_multiplier: if multiplier == 0.0 { 1.0 } else { multiplier },
            regularize: config.add_regularization_loss(),
            average_decay: config
                .optimizer
                .as_ref()
                .filter(|o| o.use_moving_average())
                .map(|o| f64::from(o.moving_average_decay())),
            states: variables.specs().iter().map(|_| None).collect(),
        })
    }

    /// Whether moving averages of the variables are kept.
    pub fn keeps_averages(&self) -> bool {
        self.average_decay.is_some()
    }

    /// The variables with their moving averages in place of those that have one.
    pub fn averaged(&self, variables: &Variables) -> Result<Variables> {
        let mut averaged = variables.copy()?;
        for (i, state) in self.states.iter().enumerate() {
            if let Some(average) = state.as_ref().and_then(|state| state.average.as_ref()) {
                averaged.set(i, average)?;
            }
        }
        Ok(averaged)
    }

    /// The learning rate of the step that follows `step` finished ones.
    pub fn learning_rate(&self, step: u64) -> f64 {
        self.learning_rate.at(step)
    }

    /// The regularization loss of the present values, a scalar tensor: `sum(l2 * w² / 2)` and `sum(l1 * |w|)`.
    pub fn regularization(&self, variables: &Variables) -> Result<Tensor> {
        tch::no_grad(|| {
            let mut sum = Tensor::f_zeros([], (Kind::Float, variables.device()))?;
            if !self.regularize {
                return Ok(sum);
            }
            for (i, spec) in variables.specs().iter().enumerate().filter(|(_, s)| s.regularizer.l1() != 0.0) {
                sum += variables.tensor(i).f_abs()?.f_sum(Kind::Float)? * spec.regularizer.l1();
            }
            if variables.device() == Device::Cpu {
                let (tensors, l2): (Vec<&Tensor>, Vec<f64>) =
                    variables.specs().iter().enumerate().map(|(i, s)| (variables.tensor(i), s.regularizer.l2())).unzip();
                return Ok(sum + shim::l2_loss(&tensors, &l2)?);
            }
            for (i, spec) in variables.specs().iter().enumerate().filter(|(_, s)| s.regularizer.l2() != 0.0) {
                let norm = variables.tensor(i).f_norm()?; // of all elements
                sum += norm.f_square()? * (spec.regularizer.l2() / 2.0);
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
            if let Some(mut grad) = shim::take_grad(variables.tensor(i))? {
                let l1 = variables.specs()[i].regularizer.l1();
                if self.regularize && l1 != 0.0 {
                    let _ = grad.f_add_(&(variables.tensor(i).f_detach()?.f_sign()? * l1))?;
                }
                grads.push(grad);
                trained.push(i);
                if self.states[i].is_none() {
                    self.states[i] = Some(self.first_state(variables.tensor(i))?);
                }
            }
        }
        let states: Vec<&VariableState> = trained.iter().filter_map(|i| self.states[*i].as_ref()).collect();
        let spec = |i: &usize| &variables.specs()[*i];
        let second = self.rule.slots().len() > 1;
        shim::optimizer_step(
            self.rule.at(step),
            &shim::Update {
                vars: &trained.iter().map(|i| variables.tensor(*i)).collect::<Vec<_>>(),
                grads: &grads.iter().collect::<Vec<_>>(),
                slots0: &states.iter().map(|state| &state.slots[0]).collect::<Vec<_>>(),
                slots1: &states.iter().filter(|_| second).map(|state| &state.slots[1]).collect::<Vec<_>>(),
                l2: &trained.iter().map(|i| if self.regularize { spec(i).regularizer.l2() } else { 0.0 }).collect::<Vec<_>>(),
                multipliers: &trained
                    .iter()
                    .map(|i| if spec(i).name.ends_with("/biases") { self.bias_multiplier } else { 1.0 })
                    .collect::<Vec<_>>(),
                clip_norm: (self.clip_norm > 0.0).then_some(self.clip_norm),
                learning_rate: self.learning_rate.at(step),
            },
        )?;
        let Some(decay) = self.average_decay else { return Ok(()) };
        tch::no_grad(|| {
            for (i, state) in trained.iter().zip(states) {
                if let Some(average) = &state.average {
                    let _ = average.shallow_clone().f_lerp_(variables.tensor(*i), 1.0 - decay)?;
                }
            }
            Ok(())
        })
    }

    /// The state of a variable before its first gradient. Its average begins at its value; TensorFlow's begins at the random one from before a
    /// checkpoint was restored, so that with a decay of 0.9999 an evaluation of the averages sees little else for thousands of steps.
    fn first_state(&self, variable: &Tensor) -> Result<VariableState> {
        let variable = variable.f_detach()?;
        // Like the variable, in its memory layout.
        let slots = self.rule.slots().iter().map(|slot| Ok(variable.f_full_like(slot.start)?)).collect::<Result<_>>()?;
        let copy = |_| -> Result<Tensor> {
            let mut copy = variable.f_zeros_like()?;
            copy.f_copy_(&variable)?;
            Ok(copy)
        };
        Ok(VariableState { slots, average: self.average_decay.map(copy).transpose()? })
    }

    /// Slots and other state as a checkpoint holds them: `(name, shape, values)`; a scalar has no shape.
    ///
    /// * `step`: finished steps.
    pub fn to_tensorflow(&self, variables: &Variables, step: u64) -> Result<Vec<State>> {
        let mut state = Vec::new();
        for (i, spec) in variables.specs().iter().enumerate() {
            let Some(held) = &self.states[i] else { continue };
            let slots = self.rule.slots().iter().map(|slot| slot.name).zip(&held.slots);
            for (kind, tensor) in slots.chain(held.average.iter().map(|average| (averages::SUFFIX, average))) {
                let values = values_in_tensorflow_layout(spec, tensor)?;
                state.push((format!("{}/{kind}", spec.name), spec.shape.clone(), values));
            }
        }
        if let Rule::Adam { beta1, beta2, .. } = self.rule {
            for (name, beta) in [("beta1_power", beta1), ("beta2_power", beta2)] {
                state.push((name.to_string(), vec![], vec![power(beta, step)]));
            }
        }
        Ok(state)
    }

    /// Takes slots and averages from a checkpoint, for every variable that has them there. An average that is kept and missing begins anew.
    ///
    /// * `read`: values of a tensor by name, in TensorFlow's layout; none where there is no such tensor.
    ///
    /// # Errors
    /// If no variable has slots, one has some of them only, or one has another shape.
    pub fn restore(&mut self, variables: &Variables, read: impl Fn(&str) -> Result<Option<(Vec<i64>, Vec<f32>)>>) -> Result<()> {
        let mut without = Vec::new();
        let mut held = 0;
        for (i, spec) in variables.specs().iter().enumerate().filter(|(_, spec)| spec.trainable) {
            let take = |name: &str, tensor: &Tensor| -> Result<bool> {
                let Some((shape, values)) = read(name)? else { return Ok(false) };
                ensure!(shape == spec.shape, "`{name}` has shape {shape:?} in the checkpoint, not {:?}", spec.shape);
                let values = to_libtorch(spec, &values, variables.device())?;
                tch::no_grad(|| tensor.shallow_clone().f_copy_(&values)).with_context(|| format!("taking over `{name}`"))?;
                Ok(true)
            };
            let state = self.first_state(variables.tensor(i))?;
            let mut missing = Vec::new();
            for (slot, tensor) in self.rule.slots().iter().zip(&state.slots) {
                let name = format!("{}/{}", spec.name, slot.name);
                if !take(&name, tensor)? {
                    missing.push(name);
                }
            }
            match missing.as_slice() {
                [] => {}
                [first, ..] if missing.len() < state.slots.len() => bail!("`{first}` is not in the checkpoint"),
                [first, ..] => {
                    without.push(first.clone());
                    continue;
                }
            }
            if let Some(average) = &state.average {
                take(&averages::name(&spec.name), average)?;
            }
            self.states[i] = Some(state);
            held += 1;
        }
        if let Some(first) = without.first() {
            ensure!(held > 0, "`{first}` is not in the checkpoint, nor is any other");
            tracing::info!(
                "{} variables have no optimizer state in the checkpoint ({first}, ...): it begins with their first gradient",
                without.len()
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::graph::{Initializer, Regularizer, Variable, VariableKind};

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
            regularizer: Regularizer::L2(1.0),
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
            variables.specs().iter().filter(|s| s.trainable && s.regularizer.l2() == 1.0).map(|s| s.name.clone()).collect()
        };
        assert_eq!(trained("").len(), 3);
        // From the start of the name, and anywhere in it.
        assert_eq!(trained("freeze_variables: 'Feature' freeze_variables: 'a'"), ["BoxPredictor_0/a"]);
        assert_eq!(trained("update_trainable_variables: '/a$'"), ["FeatureExtractor/a", "BoxPredictor_0/a"]);
        assert_eq!(trained("update_trainable_variables: '/a$' freeze_variables: 'Box'"), ["FeatureExtractor/a"]);
    }

    #[test]
    fn a_variable_without_slots_in_a_checkpoint_has_none_where_others_have_theirs() {
        let config =
            train_config("rms_prop_optimizer { learning_rate { constant_learning_rate {} } } use_moving_average: false", "");
        let restored = |held: &[&str]| -> Result<Vec<(String, f32)>> {
            let mut variables = Variables::new(&["a", "b"].map(variable), 0, Device::Cpu)?;
            let mut optimizer = Optimizer::from_config(&config, &mut variables)?;
            optimizer.restore(&variables, |name| Ok(held.contains(&name).then(|| (vec![1], vec![7.0]))))?;
            Ok(optimizer.to_tensorflow(&variables, 0)?.into_iter().map(|(name, _, values)| (name, values[0])).collect())
        };
        let names = |restored: Result<Vec<(String, f32)>>| -> Vec<String> {
            restored.unwrap().into_iter().filter(|(_, value)| *value == 7.0).map(|(name, _)| name).collect()
        };
        let all = ["a/RMSProp", "a/RMSProp_1", "b/RMSProp", "b/RMSProp_1"];
        assert_eq!(names(restored(&all)), all);
        assert_eq!(names(restored(&all[2..])), all[2..]);
        assert!(restored(&["a/RMSProp", "b/RMSProp", "b/RMSProp_1"]).unwrap_err().to_string().contains("`a/RMSProp_1`"));
        assert!(restored(&["a", "b"]).unwrap_err().to_string().contains("nor is any other"));
    }

    fn train_config(optimizer: &str, more: &str) -> pb::TrainConfig {
        let text = format!("train_config {{ optimizer {{ {optimizer} }} {more} }}");
        crate::config::pipeline::parse(&text, "test").unwrap().train_config.unwrap()
    }

    /// `w * w * [1, 0.25]`, `b³` and `c²`, summed; `unread` is in no loss.
    fn loss(variables: &Variables) -> Tensor {
        let [w, b, c] = ["a/weights", "a/biases", "c/weights"].map(|name| variables.get(name).unwrap());
        (w * w * Tensor::from_slice(&[1f32, 0.25])).sum(Kind::Float) + (b * b * b).sum(Kind::Float) + (c * c).sum(Kind::Float)
    }

    fn four_variables() -> Variables {
        let numbers =
            |name: &str, count: i64, l2: f64| Variable { shape: vec![count], regularizer: Regularizer::L2(l2), ..variable(name) };
        let specs =
            [numbers("a/weights", 2, 0.1), numbers("a/biases", 1, 0.0), numbers("c/weights", 1, 0.0), numbers("unread", 1, 0.0)];
        let mut variables = Variables::new(&specs, 0, Device::Cpu).unwrap();
        variables.set_from_tensorflow(0, &[1.0, -2.0]).unwrap();
        variables.set_from_tensorflow(1, &[0.5]).unwrap();
        variables.set_from_tensorflow(2, &[3.0]).unwrap();
        variables
    }

    const RATE: &str =
        "learning_rate { manual_step_learning_rate { initial_learning_rate: 0.5 schedule { step: 2 learning_rate: 0.1 } } }";

    #[test]
    #[rustfmt::skip]
    fn five_steps_with_regularized_multiplied_frozen_and_clipped_gradients_are_tensorflows() {
        // Upstream's optimizer_builder and variables_helper with slim's clip_gradient_norms, in TensorFlow 2.15.1: the two weights and the bias
        // after each step, then the slots.
        type Case = (&'static str, [[f32; 3]; 5], &'static [(&'static str, &'static [f32])]);
        let cases: [Case; 3] = [
            ("rms_prop_optimizer { RATE momentum_optimizer_value: 0.9 decay: 0.9 epsilon: 1.0 }",
             [[0.414_835_16, -1.649_041_7, -0.014_495_79], [-0.408_372_82, -0.983_059_17, -0.477_986_34], [-1.090_292_7, -0.341_235_76, -0.989_742_5],
              [-1.575_445_2, 0.249_531_5, -1.579_712_6], [-1.889_569_5, 0.774_403_5, -2.233_537_2]],
             &[("a/weights/RMSProp", &[1.659_552_1, 0.758_310_56]), ("a/weights/RMSProp_1", &[0.314_124_35, -0.524_872]),
               ("a/biases/RMSProp", &[1.650_325_1]), ("a/biases/RMSProp_1", &[0.653_824_57])]),
            ("momentum_optimizer { RATE momentum_optimizer_value: 0.9 }",
             [[0.131_756_84, -1.503_861, -0.25], [-0.788_006_6, -0.606_177_57, -1.112_5], [-0.788_082_66, -0.408_223_93, -1.467_75],
              [-0.622_653_7, -0.205_572_2, -1.987_474_9], [-0.343_010_43, -0.010_851_324, -2.655_227_4]],
             &[("a/weights/Momentum", &[-2.796_433, -1.947_208_8]), ("a/biases/Momentum", &[6.677_524_6])]),
            ("adam_optimizer { RATE }",
             [[0.500_000_1, -1.500_000_2, 1.490_116_1e-7], [0.020_757_258, -1.001_865_1, -0.335_027_75], [-0.054_689_676, -0.905_442_8, -0.408_457_76],
              [-0.113_105_07, -0.811_191_5, -0.490_065_3], [-0.155_802_88, -0.718_913_14, -0.577_975_75]],
             &[("a/weights/Adam", &[0.159_918_31, -0.276_969_46]), ("a/weights/Adam_1", &[0.004_173_973_6, 0.002_680_577]),
               ("a/biases/Adam", &[0.387_156_25]), ("a/biases/Adam_1", &[0.005_771_07]),
               ("beta1_power", &[0.531_440_9]), ("beta2_power", &[0.994_015_1])]),
        ];
        for (text, path, slots) in cases {
            let more = "gradient_clipping_by_norm: 2.0 bias_grad_multiplier: 2.0 freeze_variables: 'c/.*'";
            let config = train_config(&format!("{} use_moving_average: false", text.replace("RATE", RATE)), more);
            let mut variables = four_variables();
            let mut optimizer = Optimizer::from_config(&config, &mut variables).unwrap();
            let near = |what: &str, mine: &[f32], theirs: &[f32]| {
                assert_eq!(mine.len(), theirs.len(), "{what}");
                assert!(mine.iter().zip(theirs).all(|(a, b)| (a - b).abs() <= 2e-6 + 1e-5 * b.abs()), "{what}: {mine:?}, not {theirs:?}");
            };
            for (step, expected) in path.iter().enumerate() {
                loss(&variables).backward();
                optimizer.step(&variables, step as u64).unwrap();
                let all: Vec<f32> = (0..3).flat_map(|i| variables.to_tensorflow(i).unwrap()).collect();
                near(&format!("{text} after step {step}"), &all, &[expected.as_slice(), &[3.0]].concat());
            }
            let state = optimizer.to_tensorflow(&variables, 5).unwrap();
            // What is frozen or unread has none.
            assert_eq!(state.iter().map(|(name, ..)| name.as_str()).collect::<Vec<_>>(), slots.iter().map(|(name, _)| *name).collect::<Vec<_>>());
            for ((name, _, mine), (_, theirs)) in state.iter().zip(slots) {
                near(name, mine, theirs);
            }
        }
    }

    #[test]
    fn an_l1_regularizer_is_in_the_loss_and_its_sign_in_the_gradient() {
        let config = train_config(&format!("momentum_optimizer {{ {RATE} }} use_moving_average: false"), "");
        let spec = Variable { shape: vec![3], regularizer: Regularizer::L1(0.25), ..variable("w") };
        let mut variables = Variables::new(&[spec], 0, Device::Cpu).unwrap();
        variables.set_from_tensorflow(0, &[2.0, -1.0, 0.0]).unwrap();
        let mut optimizer = Optimizer::from_config(&config, &mut variables).unwrap();
        assert_eq!(optimizer.regularization(&variables).unwrap().double_value(&[]), 0.75);
        (variables.get("w").unwrap() * 2.0).sum(Kind::Float).backward();
        optimizer.step(&variables, 0).unwrap();
        // Gradients 2.25, 1.75 and 2 at a rate of 0.5.
        assert_eq!(variables.to_tensorflow(0).unwrap(), [0.875, -1.875, -1.0]);
    }

    #[test]
    fn a_frozen_variables_regularization_stays_in_the_loss() {
        let config = train_config(&format!("momentum_optimizer {{ {RATE} }}"), "freeze_variables: 'a/'");
        let mut variables = four_variables();
        let optimizer = Optimizer::from_config(&config, &mut variables).unwrap();
        let loss = optimizer.regularization(&variables).unwrap().double_value(&[]);
        assert!((loss - 0.1 / 2.0 * 5.0).abs() < 1e-6, "{loss}");
    }

    #[test]
    fn averages_follow_the_variables_and_survive_a_checkpoint() {
        let config =
            train_config(&format!("momentum_optimizer {{ {RATE} }} moving_average_decay: 0.75"), "freeze_variables: 'c/.*'");
        let mut variables = four_variables();
        let mut optimizer = Optimizer::from_config(&config, &mut variables).unwrap();
        assert!(optimizer.keeps_averages());
        let bias = |variables: &Variables| variables.to_tensorflow(1).unwrap()[0];
        let mut average = bias(&variables);
        let step = |optimizer: &mut Optimizer, variables: &Variables, at: u64| {
            loss(variables).backward();
            optimizer.step(variables, at).unwrap();
        };
        for at in 0..3 {
            step(&mut optimizer, &variables, at);
            average = 0.75 * average + 0.25 * bias(&variables);
        }
        let averaged = optimizer.averaged(&variables).unwrap();
        assert!((bias(&averaged) - average).abs() < 1e-6 && (bias(&variables) - average).abs() > 1e-2, "{average}");
        // What is frozen or unread has no average and keeps its value.
        assert_eq!((averaged.to_tensorflow(2).unwrap(), averaged.to_tensorflow(3).unwrap()), (vec![3.0], vec![1.0]));
        let state = optimizer.to_tensorflow(&variables, 3).unwrap();
        let names: Vec<&str> =
            state.iter().map(|(name, ..)| name.as_str()).filter(|name| name.ends_with(averages::SUFFIX)).collect();
        assert_eq!(names, ["a/weights/ExponentialMovingAverage", "a/biases/ExponentialMovingAverage"]);

        let resumed = |without: &str| {
            let mut optimizer = Optimizer::from_config(&config, &mut four_variables()).unwrap();
            let read = |name: &str| {
                let found = state.iter().find(|(held, ..)| held == name && !(name.ends_with(without)));
                Ok(found.map(|(_, shape, values)| (shape.clone(), values.clone())))
            };
            optimizer.restore(&variables, read).unwrap();
            step(&mut optimizer, &variables, 3);
            (average_of_bias(&optimizer, &variables), bias(&variables))
        };
        let (mine, now) = resumed("nothing");
        assert!((mine - (0.75 * average + 0.25 * now)).abs() < 1e-6, "{mine}");
        // A checkpoint without averages: they begin at the variables.
        let before = now;
        let (mine, now) = resumed(averages::SUFFIX);
        assert!((mine - (0.75 * before + 0.25 * now)).abs() < 1e-6, "{mine}");
    }

    fn average_of_bias(optimizer: &Optimizer, variables: &Variables) -> f32 {
        optimizer.averaged(variables).unwrap().to_tensorflow(1).unwrap()[0]
    }
}
