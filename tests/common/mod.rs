//! What the integration tests share: finding the reference data, and saying so when it is not there; configs, random draws that repeat.

use std::sync::{Mutex, PoisonError};

use odh::config::{pipeline, zoo};
use odh::proto::object_detection::protos as pb;

// The unit tests' own, which is part of the library only when that is tested.
#[allow(dead_code)]
#[path = "../../src/testing.rs"]
mod testing;
#[allow(unused_imports)]
pub use testing::{say, shared};

/// Runs `draw` with libtorch's generator started at `seed`. The generator is the process's, and tests run beside
/// each other in threads: whatever draws from it does so in here.
#[allow(dead_code)]
pub fn seeded<T>(seed: i64, draw: impl FnOnce() -> T) -> T {
    static GENERATOR: Mutex<()> = Mutex::new(());
    // A test that failed in here leaves nothing behind: every draw starts from its own seed.
    let _held = GENERATOR.lock().unwrap_or_else(PoisonError::into_inner);
    tch::manual_seed(seed);
    draw()
}

/// A zoo model's config with some of its text replaced, with three classes, as `odh train --pipeline_config` takes it.
#[allow(dead_code)]
pub fn zoo_config(name: &str, replaced: &[(&str, &str)]) -> pb::TrainEvalPipelineConfig {
    let mut text = zoo::resolve(name).unwrap().built_in_config().replace("num_classes: 90", "num_classes: 3");
    for (from, to) in replaced {
        assert!(text.contains(from), "{name}: no `{from}`");
        text = text.replace(from, to);
    }
    let config = pipeline::parse(&text, name).unwrap();
    pipeline::check_supported(&config).unwrap();
    config
}
