//! Ctrl-C: work in steps asks whether to stop, saves what it has, and ends with exit code 130.

use std::ffi::c_int;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering};

unsafe extern "C" {
    /// POSIX: ends the process without running what was left for its end.
    safe fn _exit(status: c_int) -> !;
}

static REQUESTED: AtomicBool = AtomicBool::new(false);

/// From here on the first Ctrl-C only makes [`requested`], and what is returned, true; a second one ends the process at once.
pub fn watch() -> &'static AtomicBool {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let handler = || {
            if REQUESTED.swap(true, Ordering::SeqCst) {
                // Not `exit`: libtorch would be taken down under the threads that compute with it, which then crash.
                _exit(130);
            }
        };
        if let Err(e) = ctrlc::set_handler(handler) {
            tracing::warn!("Ctrl-C will end the program without saving: {e}");
        }
    });
    &REQUESTED
}

/// Whether Ctrl-C was pressed since [`watch`].
pub fn requested() -> bool {
    REQUESTED.load(Ordering::SeqCst)
}
