//! What the integration tests share: finding the reference data, and saying so when it is not there; configs, random draws that repeat.

use std::io::Write;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use odh::config::{pipeline, zoo};
use odh::proto::object_detection::protos as pb;

/// The path of `name` in the shared reference data, or `None` (said on stderr) where a clone stands alone.
///
/// # Panics
/// If `ODH_REQUIRE_SHARED=1` (as CI sets) and the data is missing: there a skipped test is a failure.
#[allow(dead_code)]
pub fn shared(name: &str) -> Option<PathBuf> {
    let root = std::env::var_os("ODH_SHARED")
        .map(PathBuf::from)
        .unwrap_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../shared"));
    let path = root.join(name);
    if path.exists() {
        return Some(path);
    }
    let test = std::thread::current().name().unwrap_or("test").to_string();
    assert!(
        std::env::var_os("ODH_REQUIRE_SHARED").is_none_or(|v| v != "1"),
        "{test}: needs {}, which is not there",
        path.display()
    );
    say(&format!("skipped: {test}: {} is not there", path.display()));
    None
}

/// One line on stderr that is seen though the test passes, when the harness keeps eprintln!'s to itself.
#[allow(dead_code)]
pub fn say(line: &str) {
    let mut stderr = std::io::stderr();
    let _ = writeln!(stderr, "{line}");
}

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
