//! How the process begins: with libtorch and in an environment that suits computing, or without both.
//!
//! Loading libtorch takes a quarter to half a second, so the program is not linked to it (`scripts/lazy_libtorch.rs`) and loads it only for the
//! commands that compute: [`restart`] starts it again, with libtorch in LD_PRELOAD. Only the dynamic linker can fill in the
//! addresses that the program refers to, before `main`. A program that is linked to libtorch, as the tests are, works as well.

use std::ffi::{CStr, OsStr, OsString, c_char, c_int};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;
use std::{env, io};

use anyhow::{Context, Result, bail};

use super::LIBTORCH_VERSION;

unsafe extern "C" {
    fn odh_has_libtorch() -> c_int;
    fn odh_why_no_libtorch() -> *const c_char;
    fn odh_keep_memory(huge_pages: c_int);
}

const PRELOAD: &str = "LD_PRELOAD";
/// Set for the process that [`restart`] starts, as the dynamic linker takes LD_PRELOAD away where the file gives its user other rights.
const RESTARTED: &str = "ODH_RESTARTED";
/// What is loaded, with all that it depends on. A bare name, which is looked for as a linked library is.
const LIBRARY: &str = "libtorch_cpu.so";
/// How often OpenMP's waiting threads look for work before they sleep: about half a millisecond. More takes ever more from other threads;
/// below 5000, two threads begin to share a processor.
const SPINS: &str = "10000";
/// glibc's malloc on huge pages (from 2.35 on; others do not know it).
const HUGE_PAGES: &str = "glibc.malloc.hugetlb=1";

/// Whether this process was started by [`restart`], to load libtorch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Preloaded(bool);

impl Preloaded {
    /// Takes libtorch out of LD_PRELOAD again: what this process starts has no use for it. To be called before anything else is done.
    pub fn take() -> Preloaded {
        let restarted = env::var_os(RESTARTED).is_some();
        let listed = env::var_os(PRELOAD).map(|list| split_off(&list));
        // Safety: no other thread runs yet.
        unsafe {
            env::remove_var(RESTARTED);
            match listed {
                Some((Some(users), true)) => env::set_var(PRELOAD, users),
                Some((None, true)) => env::remove_var(PRELOAD),
                _ => {}
            }
        }
        Preloaded(restarted)
    }
}

/// LD_PRELOAD's list without libtorch at its end, and whether that was there.
fn split_off(list: &OsStr) -> (Option<OsString>, bool) {
    match list.as_bytes().strip_suffix(LIBRARY.as_bytes()) {
        Some([]) => (None, true),
        Some([users @ .., b':']) => (Some(OsString::from_vec(users.to_vec())), true),
        _ => (Some(list.to_os_string()), false),
    }
}

/// LD_PRELOAD's list with libtorch at its end.
fn joined(users: Option<OsString>) -> OsString {
    match users.filter(|list| !list.is_empty()) {
        Some(mut list) => {
            list.push(":");
            list.push(LIBRARY);
            list
        }
        None => LIBRARY.into(),
    }
}

/// Starts the program again, in its own place and with its own arguments, with libtorch and in an environment that suits computing: OpenMP's
/// threads wait for about half a millisecond before they sleep, and malloc takes huge pages. The environment stays as it is where it already
/// says how threads wait. To be called before threads are started and files opened; returns only where nothing is to be done, or with why the
/// environment could not be changed: then all works, more slowly.
///
/// libgomp's threads spin for many milliseconds between parallel loops, which takes the processors from the threads that load pictures
/// (a step beside busy threads: three times as long; detection on two processors: up to five times the processor seconds). Threads that sleep at
/// once are no better: Linux wakes them on the processor of whoever wakes them, and two threads compute on one processor (twice as long on
/// an idle machine). The wait in between is an environment variable, which libgomp reads when it is loaded, before `main`; so does malloc.
///
/// # Errors
/// If libtorch cannot be loaded, with where it is looked for.
pub fn restart(preloaded: Preloaded) -> Result<Option<io::Error>> {
    let loaded = unsafe { odh_has_libtorch() } != 0;
    if !loaded && preloaded.0 {
        let why = unsafe { CStr::from_ptr(odh_why_no_libtorch()) }.to_string_lossy();
        bail!(
            "libtorch is not loaded: {why}; it is looked for in LD_LIBRARY_PATH, where this program was built, and in the folder `libtorch` beside \
             it: put all of libtorch {LIBTORCH_VERSION} there, such as a copy of the folder `.libtorch` that it was built with"
        );
    }
    let tuned = ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT"].iter().any(|name| env::var_os(name).is_some());
    if loaded && tuned {
        return Ok(None);
    }
    let again = |program: OsString| -> io::Error {
        let mut command = Command::new(program);
        let mut args = env::args_os();
        if let Some(name) = args.next() {
            command.arg0(name);
        }
        command.env(RESTARTED, "1");
        if !loaded {
            command.env(PRELOAD, joined(env::var_os(PRELOAD)));
        }
        if !tuned {
            command.env("GOMP_SPINCOUNT", SPINS);
            if env::var_os("GLIBC_TUNABLES").is_none() {
                command.env("GLIBC_TUNABLES", HUGE_PAGES);
            }
        }
        command.args(args).exec()
    };
    // By its path, which a list of processes shows; by the kernel's own link, if the file was replaced or has no name; by its name as typed,
    // where there is no /proc.
    let path = env::current_exe().map(PathBuf::into_os_string);
    let failed = path.map_or_else(|e| e, again);
    again("/proc/self/exe".into());
    if let Some(name) = env::args_os().next() {
        again(name);
    }
    if !loaded {
        return Err(failed).context("starting again with libtorch");
    }
    Ok(Some(failed))
}

/// Readies the process for a long run of steps on the CPU: memory that a step frees stays with the process for the next one.
pub fn tune_process() {
    unsafe { odh_keep_memory(huge_pages().into()) }
}

/// Whether malloc asks for huge pages and the kernel gives them.
fn huge_pages() -> bool {
    let asked = env::var("GLIBC_TUNABLES").is_ok_and(|tunables| tunables.contains(HUGE_PAGES));
    let given = std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled").is_ok_and(|s| !s.contains("[never]"));
    asked && given
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_users_own_preload_list_is_kept() {
        for users in [None, Some("libjemalloc.so.2"), Some("/a b/one.so:two.so")] {
            let users = users.map(OsString::from);
            assert_eq!(split_off(&joined(users.clone())), (users, true));
        }
        for list in ["", "one.so", "mylibtorch_cpu.so", "libtorch_cpu.so:one.so"] {
            assert_eq!(split_off(OsStr::new(list)), (Some(list.into()), false));
        }
        assert_eq!(joined(Some("".into())), LIBRARY);
    }

    #[test]
    fn what_is_linked_to_libtorch_has_it() {
        assert_ne!(unsafe { odh_has_libtorch() }, 0);
    }
}
