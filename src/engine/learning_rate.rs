//! Learning rate schedules, as TensorFlow computes them (upstream utils/learning_schedules.py).

use anyhow::{Context, Result, bail, ensure};

use crate::proto::object_detection::protos as pb;

/// A learning rate for every step.
#[derive(Debug, Clone, PartialEq)]
pub enum LearningRate {
    Constant(f64),
    /// `initial * factor ^ (step / decay_steps)`, the exponent rounded down where `staircase`, counted from the end of the burn-in
    /// (at `burnin_rate`, or `initial` where that is 0), and never below `min`.
    Exponential {
        initial: f64,
        decay_steps: u64,
        factor: f64,
        staircase: bool,
        burnin_rate: f64,
        burnin_steps: u64,
        min: f64,
    },
    /// `rates[i]` from `boundaries[i - 1]` on; with `warmup` the first boundary is approached in a straight line.
    ManualStep {
        boundaries: Vec<u64>,
        rates: Vec<f64>,
        warmup: bool,
    },
    /// Half a cosine from `base` to 0 after a straight warmup; 0 beyond `total`.
    Cosine {
        base: f64,
        total: u64,
        warmup_rate: f64,
        warmup_steps: u64,
        hold_steps: u64,
    },
}

impl LearningRate {
    /// # Errors
    /// If no schedule is set, or its numbers contradict each other.
    pub fn from_config(config: Option<&pb::LearningRate>) -> Result<Self> {
        use pb::learning_rate::LearningRate as L;
        let field = "train_config.optimizer: learning_rate";
        let schedule = config.and_then(|c| c.learning_rate.as_ref()).with_context(|| format!("{field} is not set"))?;
        let rate = |name: &str, value: f32| -> Result<f64> {
            ensure!(value.is_finite() && value >= 0.0, "{field}.{name} is {value}, and must be a number of at least 0");
            Ok(value.into())
        };
        Ok(match schedule {
            L::ConstantLearningRate(c) => Self::Constant(rate("constant_learning_rate.learning_rate", c.learning_rate())?),
            L::ExponentialDecayLearningRate(e) => {
                let of = |name: &str, value: f32| rate(&format!("exponential_decay_learning_rate.{name}"), value);
                ensure!(e.decay_steps() > 0, "{field}.exponential_decay_learning_rate.decay_steps must be positive");
                Self::Exponential {
                    initial: of("initial_learning_rate", e.initial_learning_rate())?,
                    decay_steps: e.decay_steps().into(),
                    factor: of("decay_factor", e.decay_factor())?,
                    staircase: e.staircase(),
                    burnin_rate: of("burnin_learning_rate", e.burnin_learning_rate())?,
                    burnin_steps: e.burnin_steps().into(),
                    min: of("min_learning_rate", e.min_learning_rate())?,
                }
            }
            L::ManualStepLearningRate(m) => {
                let mut boundaries: Vec<u64> = m.schedule.iter().map(|s| s.step().into()).collect();
                if boundaries.is_empty() {
                    bail!(
                        "{field}.manual_step_learning_rate.schedule: it is empty; a rate that never changes is a constant_learning_rate"
                    );
                }
                if boundaries.windows(2).any(|w| w[0] >= w[1]) {
                    bail!(
                        "{field}.manual_step_learning_rate.schedule: its steps are {boundaries:?}, and each must be above the one before"
                    );
                }
                let mut rates = std::iter::once(m.initial_learning_rate())
                    .chain(m.schedule.iter().map(pb::manual_step_learning_rate::LearningRateSchedule::learning_rate))
                    .map(|value| rate("manual_step_learning_rate: learning_rate", value))
                    .collect::<Result<Vec<_>>>()?;
                if boundaries[0] == 0 {
                    // Old configs of the zoo begin so; the initial rate then never counts.
                    boundaries.remove(0);
                    rates.remove(0);
                }
                Self::ManualStep { boundaries, rates, warmup: m.warmup() }
            }
            L::CosineDecayLearningRate(c) => {
                let (total, warmup) = (c.total_steps(), c.warmup_steps());
                ensure!(
                    total > warmup,
                    "{field}.cosine_decay_learning_rate: total_steps {total} must exceed warmup_steps {warmup}"
                );
                ensure!(
                    c.learning_rate_base() >= c.warmup_learning_rate() || warmup == 0,
                    "{field}.cosine_decay_learning_rate: learning_rate_base must not be below warmup_learning_rate"
                );
                Self::Cosine {
                    base: rate("cosine_decay_learning_rate.learning_rate_base", c.learning_rate_base())?,
                    total: total.into(),
                    warmup_rate: rate("cosine_decay_learning_rate.warmup_learning_rate", c.warmup_learning_rate())?,
                    warmup_steps: warmup.into(),
                    hold_steps: c.hold_base_rate_steps().into(),
                }
            }
        })
    }

    /// The rate of the step that follows `step` finished ones.
    pub fn at(&self, step: u64) -> f64 {
        let s = step as f64;
        match self {
            Self::Constant(rate) => *rate,
            Self::Exponential { initial, decay_steps, factor, staircase, burnin_rate, burnin_steps, min } => {
                let rate = if step >= *burnin_steps {
                    let exponent = (step - burnin_steps) as f64 / *decay_steps as f64;
                    initial * factor.powf(if *staircase { exponent.floor() } else { exponent })
                } else if *burnin_rate == 0.0 {
                    *initial
                } else {
                    *burnin_rate
                };
                rate.max(*min)
            }
            Self::ManualStep { boundaries, rates, warmup } => {
                let passed = boundaries.iter().filter(|&&b| step >= b).count();
                if *warmup && passed == 0 && !boundaries.is_empty() {
                    // Upstream interpolates from the first rate to the second until the first boundary.
                    return rates[0] + (rates[1] - rates[0]) / boundaries[0] as f64 * s;
                }
                rates[passed]
            }
            Self::Cosine { base, total, warmup_rate, warmup_steps, hold_steps } => {
                if step > *total {
                    return 0.0;
                }
                if step < *warmup_steps {
                    return (base - warmup_rate) / *warmup_steps as f64 * s + warmup_rate;
                }
                let flat = warmup_steps + hold_steps;
                if *hold_steps > 0 && step <= flat {
                    return *base;
                }
                let along = (s - flat as f64) / (*total as f64 - flat as f64);
                0.5 * base * (1.0 + (std::f64::consts::PI * along).cos())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_staircase_falls_at_whole_multiples() {
        let rate = exponential("initial_learning_rate: 0.5 decay_steps: 10 decay_factor: 0.5");
        assert_eq!([rate.at(0), rate.at(9), rate.at(10), rate.at(25)], [0.5, 0.5, 0.25, 0.125]);
        let rate = exponential("initial_learning_rate: 1 decay_steps: 2 decay_factor: 0.25 staircase: false");
        assert_eq!([rate.at(1), rate.at(2), rate.at(3)], [0.5, 0.25, 0.125]);
    }

    fn exponential(fields: &str) -> LearningRate {
        schedule("exponential_decay", fields)
    }

    fn schedule(kind: &str, fields: &str) -> LearningRate {
        let text = format!(
            "train_config {{ optimizer {{ adam_optimizer {{ learning_rate {{ {kind}_learning_rate {{ {fields} }} }} }} }} }}"
        );
        let config = crate::config::pipeline::parse(&text, "test").unwrap();
        let Some(pb::optimizer::Optimizer::AdamOptimizer(adam)) = config.train_config.unwrap().optimizer.unwrap().optimizer
        else {
            panic!()
        };
        LearningRate::from_config(adam.learning_rate.as_ref()).unwrap()
    }

    #[test]
    #[rustfmt::skip]
    fn every_schedule_goes_as_tensorflows_does() {
        // Upstream's optimizer_builder and learning_schedules of April 2018 (burn-in: of August, and as its source has it; upstream
        // refuses a schedule that begins at step 0), run in TensorFlow 2.15.1.
        type Case = (&'static str, &'static str, &'static [(u64, f32)]);
        let cases: &[Case] = &[
            ("manual_step", "initial_learning_rate: 0.0003 schedule { step: 900 learning_rate: .00003 } schedule { step: 1200 learning_rate: .000003 }", &[(0, 0.0003), (899, 0.0003), (900, 3e-5), (1199, 3e-5), (1200, 3e-6), (5000, 3e-6)]),
            ("manual_step", "initial_learning_rate: 0.001 warmup: true schedule { step: 50 learning_rate: .04 } schedule { step: 1200 learning_rate: .003 }", &[(0, 0.001), (1, 0.00178), (49, 0.039219998), (50, 0.04), (51, 0.04), (1199, 0.04), (1200, 0.003)]),
            ("exponential_decay", "initial_learning_rate: 0.004 decay_steps: 100 decay_factor: 0.95", &[(0, 0.004), (99, 0.004), (100, 0.0038), (250, 0.00361), (1000, 0.0023949477)]),
            ("exponential_decay", "initial_learning_rate: 0.004 decay_steps: 100 decay_factor: 0.95 staircase: false", &[(0, 0.004), (1, 0.003997949), (50, 0.003898718), (250, 0.0035185928), (1000, 0.0023949477)]),
            ("exponential_decay", "initial_learning_rate: 0.004 decay_steps: 7 decay_factor: 0.95", &[(6, 0.004), (7, 0.0038), (201, 0.00095130724), (500, 0.00010481793)]),
            ("cosine_decay", "learning_rate_base: .04 total_steps: 1000 warmup_learning_rate: .013333 warmup_steps: 200", &[(0, 0.013333), (1, 0.013466335), (199, 0.039866664), (200, 0.04), (250, 0.039615706), (500, 0.027653668), (1000, 0.0), (1001, 0.0)]),
            ("cosine_decay", "learning_rate_base: .04 total_steps: 1000 warmup_learning_rate: .01 warmup_steps: 100 hold_base_rate_steps: 200", &[(0, 0.01), (99, 0.039699998), (100, 0.04), (101, 0.04), (300, 0.04), (301, 0.039999798), (500, 0.032469798), (1000, 0.0), (1001, 0.0)]),
            ("cosine_decay", "learning_rate_base: .04 total_steps: 1000 warmup_steps: 0 hold_base_rate_steps: 200", &[(0, 0.04), (200, 0.04), (201, 0.039999846), (500, 0.027653668)]),
            ("cosine_decay", "", &[(0, 0.0002), (1, 0.00020018), (5000, 0.0011000001), (39999, 0.0019997212), (100000, 0.0019974904)]),
            ("constant", "learning_rate: 0.0007", &[(0, 0.0007), (5000, 0.0007)]),
            ("constant", "", &[(7, 0.002)]),
            ("exponential_decay", "", &[(100000, 0.002)]),
            ("exponential_decay", "initial_learning_rate: 0.01 decay_steps: 100 decay_factor: 0.5 burnin_learning_rate: 0.001 burnin_steps: 12", &[(0, 0.001), (11, 0.001), (12, 0.01), (111, 0.01), (112, 0.005)]),
            ("manual_step", "initial_learning_rate: 0.1 schedule { step: 0 learning_rate: .003 } schedule { step: 90 learning_rate: .0003 }", &[(0, 0.003), (89, 0.003), (90, 0.0003)]),
            ("exponential_decay", "initial_learning_rate: 0.004 decay_steps: 100 decay_factor: 0.5 staircase: false burnin_steps: 150", &[(0, 0.004), (149, 0.004), (150, 0.004), (151, 0.00397237), (250, 0.002), (1000, 1.10485435e-5)]),
        ];
        for (kind, fields, rates) in cases {
            let mine = schedule(kind, fields);
            for &(step, rate) in *rates {
                let (mine, rate) = (mine.at(step), f64::from(rate));
                assert!((mine - rate).abs() <= 2e-6 * rate + 1e-12, "{kind} {{ {fields} }} at {step}: {mine}, not {rate}");
            }
        }
    }

    #[test]
    fn a_burn_in_is_flat_and_the_decay_is_counted_from_its_end_down_to_the_least_rate() {
        let rate = exponential(
            "initial_learning_rate: 1 decay_steps: 10 decay_factor: 0.5 burnin_learning_rate: 0.5 burnin_steps: 4 min_learning_rate: 0.375",
        );
        let path = [0, 2, 4, 13, 14, 24, 1000].map(|step| rate.at(step));
        assert_eq!(path, [0.5, 0.5, 1.0, 1.0, 0.5, 0.375, 0.375]);
        let flat = exponential("initial_learning_rate: 1 decay_steps: 10 decay_factor: 0.5 burnin_steps: 4");
        assert_eq!([flat.at(0), flat.at(3), flat.at(13), flat.at(14)], [1.0, 1.0, 1.0, 0.5]);
    }

    #[test]
    fn rates_that_are_no_rates_are_named() {
        for (fields, wanted) in [
            ("initial_learning_rate: -1 decay_steps: 10", "initial_learning_rate is -1"),
            ("initial_learning_rate: nan decay_steps: 10", "initial_learning_rate is NaN"),
            ("decay_factor: inf decay_steps: 10", "decay_factor is inf"),
        ] {
            let text = format!(
                "train_config {{ optimizer {{ adam_optimizer {{ learning_rate {{ exponential_decay_learning_rate {{ {fields} }} }} }} }} }}"
            );
            let config = crate::config::pipeline::parse(&text, "test").unwrap().train_config.unwrap();
            let Some(pb::optimizer::Optimizer::AdamOptimizer(adam)) = config.optimizer.unwrap().optimizer else { panic!() };
            let said = LearningRate::from_config(adam.learning_rate.as_ref()).unwrap_err().to_string();
            assert!(said.contains(wanted), "{said}");
        }
    }

    #[test]
    fn manual_steps_change_at_their_boundaries() {
        let rate = LearningRate::ManualStep { boundaries: vec![5, 10], rates: vec![1.0, 2.0, 3.0], warmup: false };
        assert_eq!([rate.at(4), rate.at(5), rate.at(10)], [1.0, 2.0, 3.0]);
        let rate = LearningRate::ManualStep { boundaries: vec![4, 10], rates: vec![1.0, 2.0, 3.0], warmup: true };
        assert_eq!([rate.at(0), rate.at(2), rate.at(4)], [1.0, 1.5, 2.0]);
    }

    #[test]
    fn a_cosine_warms_up_holds_and_ends_at_zero() {
        let rate = LearningRate::Cosine { base: 1.0, total: 100, warmup_rate: 0.1, warmup_steps: 10, hold_steps: 20 };
        assert!((rate.at(5) - 0.55).abs() < 1e-12);
        assert_eq!([rate.at(10), rate.at(30)], [1.0, 1.0]);
        assert!((rate.at(65) - 0.5).abs() < 1e-12);
        assert_eq!(rate.at(101), 0.0);
    }
}
