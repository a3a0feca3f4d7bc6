//! What all tests share: finding the reference data, and saying so when it is not there.

use std::io::Write;
use std::path::PathBuf;

/// The path of `name` in the shared reference data, or `None` (said on stderr) where a clone stands alone.
///
/// # Panics
/// If `ODH_REQUIRE_SHARED=1` (as CI sets) and the data is missing: there a skipped test is a failure.
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
pub fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}
