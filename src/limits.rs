//! What the system lets this process do, asked for at its start.

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigHandler, Signal, signal};

/// Makes a file that may not grow an error that names it, and opens as many files as the system allows.
pub fn raise() {
    // As of a full disk: writing then fails with an error. By default the process would be killed without a word.
    // Safety: no handler is installed.
    let _ = unsafe { signal(Signal::SIGXFSZ, SigHandler::SigIgn) };
    // The shards of a dataset are written side by side. Where the limit stays, opening one of them says so.
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft < hard
    {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}
