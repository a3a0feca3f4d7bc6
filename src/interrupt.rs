//! Ctrl-C, and what else asks a program to end: work in steps asks whether to stop, saves what it has, and ends with exit code 130.

use std::ffi::c_int;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

use crate::exit;

unsafe extern "C" {
    /// POSIX: ends the process without running what was left for its end.
    safe fn _exit(status: c_int) -> !;
}

static REQUESTED: AtomicBool = AtomicBool::new(false);

/// From here on the first Ctrl-C only makes [`requested`], and what is returned, true; a second one ends the process at once. The same for
/// what ends a container or a batch job (SIGTERM) and a terminal that is gone (SIGHUP), unless it is to be ignored, as under `nohup`. SIGINT
/// is heeded even so: a script's `&` has it ignored, and whoever sends it there means it.
pub fn watch() -> &'static AtomicBool {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        extern "C" fn ask(_: c_int) {
            // Nothing else is safe in a signal's handler.
            if REQUESTED.swap(true, Ordering::SeqCst) {
                // Not `exit`: libtorch would be taken down under the threads that compute with it, which then crash.
                _exit(130);
            }
        }
        let action = SigAction::new(SigHandler::Handler(ask), SaFlags::SA_RESTART, SigSet::empty());
        for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
            // Safety: the handler touches an atomic and may end the process, both of which a signal's handler may do.
            match unsafe { sigaction(signal, &action) } {
                Ok(before) if signal != Signal::SIGINT && matches!(before.handler(), SigHandler::SigIgn) => {
                    // Safety: it is what was there.
                    let _ = unsafe { sigaction(signal, &before) };
                }
                Ok(_) => {}
                Err(e) => tracing::warn!("{signal} will end the program without saving: {e}"),
            }
        }
    });
    &REQUESTED
}

/// Ends what is done in steps if Ctrl-C was pressed since [`watch`].
///
/// # Errors
/// If it was: exit code 130, and what `message` says.
pub fn check(message: impl FnOnce() -> String) -> anyhow::Result<()> {
    if requested() { Err(exit::interrupted(message())) } else { Ok(()) }
}

/// Whether Ctrl-C was pressed since [`watch`].
pub fn requested() -> bool {
    REQUESTED.load(Ordering::SeqCst)
}
