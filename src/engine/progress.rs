//! How a training goes: one live line on a terminal, a plain line every few seconds elsewhere.

use std::collections::VecDeque;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::logging;

/// Between two plain lines.
const PLAIN_EVERY: Duration = Duration::from_secs(10);
/// Rates are over this many of the last steps.
const WINDOW: usize = 50;

/// The numbers of one step.
#[derive(Debug, Clone)]
pub struct StepLine {
    /// With regularization.
    pub total: f64,
    pub terms: Vec<(&'static str, f64)>,
    pub learning_rate: f64,
}

/// Counts steps and shows them.
pub struct Progress {
    bar: Option<ProgressBar>,
    num_steps: u64,
    batch_size: usize,
    /// When each of the last steps ended, and how long it had waited for data.
    recent: VecDeque<(Instant, Duration)>,
    waiting: Duration,
    printed: Instant,
    first: u64,
}

impl Progress {
    /// Begins behind `step` finished steps.
    pub fn new(step: u64, num_steps: u64, batch_size: usize) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = logging::progress().add(ProgressBar::new(num_steps).with_position(step));
            if let Ok(style) = ProgressStyle::with_template("{bar:10} {pos}/{len} {wide_msg}") {
                bar.set_style(style);
            }
            bar
        });
        let now = Instant::now();
        Self {
            bar,
            num_steps,
            batch_size,
            recent: VecDeque::from([(now, Duration::ZERO)]),
            waiting: Duration::ZERO,
            printed: now,
            first: step,
        }
    }

    /// Time of the coming step that was spent waiting for data.
    pub fn waited(&mut self, time: Duration) {
        self.waiting = time;
    }

    /// One more step is finished.
    pub fn step(&mut self, step: u64, line: &StepLine) {
        let now = Instant::now();
        self.recent.push_back((now, std::mem::take(&mut self.waiting)));
        if self.recent.len() > WINDOW + 1 {
            self.recent.pop_front();
        }
        let due = step == self.first + 1 || step == self.num_steps || self.printed.elapsed() >= PLAIN_EVERY;
        if self.bar.is_none() && !due {
            return;
        }
        let text = self.text(step, line, now);
        match &self.bar {
            Some(bar) => {
                bar.set_message(text);
                bar.set_position(step);
            }
            None => {
                logging::say(&format!("step {step}/{} {text}", self.num_steps));
                self.printed = now;
            }
        }
    }

    fn text(&self, step: u64, line: &StepLine, now: Instant) -> String {
        let span = now - self.recent[0].0;
        let steps = (self.recent.len() - 1).max(1) as f64;
        let per_second = steps / span.as_secs_f64().max(1e-9);
        let waited: Duration = self.recent.iter().skip(1).map(|(_, w)| *w).sum();
        let left = Duration::from_secs_f64(((self.num_steps - step.min(self.num_steps)) as f64 / per_second).min(1e9));
        let terms: Vec<String> = line.terms.iter().map(|(name, v)| format!("{} {v:.3}", short(name))).collect();
        // The live line is cut off where the terminal ends: what matters most stands first.
        format!(
            "loss {:.4} ETA {} {per_second:.2} steps/s {:.1} images/s data wait {:.0}% lr {:.2e} ({})",
            line.total,
            clock(left),
            per_second * self.batch_size as f64,
            100.0 * waited.as_secs_f64() / span.as_secs_f64().max(1e-9),
            line.learning_rate,
            terms.join(", ")
        )
    }

    /// Does something else, whose time does not count.
    pub fn pause<T>(&mut self, work: impl FnOnce() -> T) -> T {
        let begun = Instant::now();
        let done = work();
        let lost = begun.elapsed();
        for (at, _) in &mut self.recent {
            *at += lost;
        }
        done
    }

    /// Takes the live line away.
    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// `localization` of `Loss/localization_loss`, `RPN localization` of `Loss/RPNLoss/localization_loss`.
fn short(name: &str) -> String {
    let last = name.rsplit('/').next().unwrap_or(name);
    let last = last.strip_suffix("_loss").unwrap_or(last);
    match name.split('/').nth_back(1) {
        Some("RPNLoss") => format!("RPN {last}"),
        Some("BoxClassifierLoss") => format!("box {last}"),
        _ => last.to_string(),
    }
}

/// `1:02:03`.
fn clock(time: Duration) -> String {
    let s = time.as_secs();
    format!("{}:{:02}:{:02}", s / 3600, s / 60 % 60, s % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_names_are_short() {
        assert_eq!(clock(Duration::from_secs(3723)), "1:02:03");
        assert_eq!(short("Loss/localization_loss"), "localization");
        assert_eq!(short("Loss/RPNLoss/localization_loss"), "RPN localization");
        assert_eq!(short("Loss/BoxClassifierLoss/classification_loss"), "box classification");
    }
}
