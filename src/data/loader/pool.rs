//! Threads that do numbered jobs ahead of whoever takes the results, which come in order whatever the number of threads.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use anyhow::{Context, Result, anyhow};

/// The threads and what they have ready. Dropping it stops them after the job that each has in hand.
#[derive(Debug)]
pub struct Pool<T> {
    shared: Arc<Shared<T>>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared<T> {
    state: Mutex<State<T>>,
    /// Something to do, or an end to it.
    work: Condvar,
    /// The next result is ready, or none will be.
    ready: Condvar,
}

#[derive(Debug)]
struct State<T> {
    /// The first job that no thread has taken.
    next: u64,
    /// Jobs there are.
    end: u64,
    /// Results from the first that has not been taken; `None` is in hand.
    results: VecDeque<Option<Result<T>>>,
    /// Jobs begun and not taken that there may be at most.
    ahead: usize,
    stopped: bool,
}

/// Stops a pool from another thread.
#[derive(Debug)]
pub struct Stop<T>(Arc<Shared<T>>);

impl<T> Shared<T> {
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        // Jobs run outside the lock, so a panic cannot have left the state half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stop(&self) {
        self.lock().stopped = true;
        self.work.notify_all();
        self.ready.notify_all();
    }
}

impl<T> Stop<T> {
    /// No job is begun any more, and [`Pool::next`] gives `None`.
    pub fn stop(&self) {
        self.0.stop();
    }
}

/// How many threads, and how far ahead of the taker they may work.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    /// At least 1.
    pub threads: usize,
    /// Results that may be in hand or waiting; at least 1.
    pub ahead: usize,
}

impl<T: Send + 'static> Pool<T> {
    /// Starts threads on jobs `0..end`.
    ///
    /// # Errors
    /// If a thread cannot be started.
    pub fn start(size: Size, end: u64, job: impl Fn(u64) -> Result<T> + Send + Sync + 'static) -> Result<Self> {
        assert!(size.threads > 0 && size.ahead > 0, "{size:?}");
        let shared = Arc::new(Shared {
            state: Mutex::new(State { next: 0, end, results: VecDeque::new(), ahead: size.ahead, stopped: false }),
            work: Condvar::new(),
            ready: Condvar::new(),
        });
        let job = Arc::new(job);
        let mut pool = Self { shared, threads: Vec::new() };
        for i in 0..size.threads {
            let (shared, job) = (Arc::clone(&pool.shared), Arc::clone(&job));
            let thread = std::thread::Builder::new()
                .name(format!("loader-{i}"))
                .spawn(move || work(&shared, &*job))
                .context("a loader thread cannot be started")?;
            pool.threads.push(thread);
        }
        Ok(pool)
    }

    /// Something that stops the pool while another thread waits in [`Self::next`].
    pub fn stopper(&self) -> Stop<T> {
        Stop(Arc::clone(&self.shared))
    }

    /// Waits for the next result; `None` after the last job, or once stopped.
    pub fn next(&self) -> Option<Result<T>> {
        let mut state = self.shared.lock();
        loop {
            if state.stopped || (state.results.is_empty() && state.next == state.end) {
                return None;
            }
            if let Some(Some(_)) = state.results.front() {
                let result = state.results.pop_front().flatten();
                drop(state);
                self.shared.work.notify_one();
                return result;
            }
            state = self.shared.ready.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl<T> Drop for Pool<T> {
    fn drop(&mut self) {
        self.shared.stop();
        for thread in self.threads.drain(..) {
            // Jobs' panics are caught, so there is nothing to hear from a thread here.
            let _ = thread.join();
        }
    }
}

fn work<T>(shared: &Shared<T>, job: &(impl Fn(u64) -> Result<T> + ?Sized)) {
    let mut state = shared.lock();
    loop {
        if state.stopped || state.next == state.end {
            return;
        }
        if state.results.len() >= state.ahead {
            state = shared.work.wait(state).unwrap_or_else(PoisonError::into_inner);
            continue;
        }
        let number = state.next;
        state.next += 1;
        state.results.push_back(None);
        drop(state);
        let result = catch_unwind(AssertUnwindSafe(|| job(number))).unwrap_or_else(|payload| {
            let said = payload.downcast_ref::<&str>().copied().or(payload.downcast_ref::<String>().map(String::as_str));
            Err(anyhow!("a loader thread panicked: {}", said.unwrap_or("no reason given")))
        });
        state = shared.lock();
        // Jobs between the first that waits to be taken and this one stand before it in the queue.
        let first = state.next - state.results.len() as u64;
        let place = (number - first) as usize;
        state.results[place] = Some(result);
        if place == 0 {
            shared.ready.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn results_come_in_order_however_long_each_takes() {
        for threads in [1, 2, 7] {
            let pool = Pool::start(Size { threads, ahead: 5 }, 60, |i| {
                std::thread::sleep(Duration::from_micros((i * 7919) % 13 * 100));
                Ok(i * i)
            });
            let pool = pool.unwrap();
            for i in 0..60 {
                assert_eq!(pool.next().unwrap().unwrap(), i * i);
            }
            assert!(pool.next().is_none());
        }
    }

    #[test]
    fn no_more_than_the_given_number_are_ahead() {
        let begun = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&begun);
        let pool = Pool::start(Size { threads: 3, ahead: 4 }, u64::MAX, move |i| {
            counter.fetch_add(1, Ordering::SeqCst);
            Ok(i)
        });
        let pool = pool.unwrap();
        for taken in 1..50 {
            pool.next().unwrap().unwrap();
            std::thread::sleep(Duration::from_millis(1));
            assert!(begun.load(Ordering::SeqCst) <= taken + 4);
        }
    }

    #[test]
    fn errors_and_panics_come_at_their_own_place() {
        let pool = Pool::start(Size { threads: 2, ahead: 8 }, 5, |i| match i {
            2 => Err(anyhow!("two")),
            // `resume_unwind` prints nothing, as a panic would.
            3 => std::panic::resume_unwind(Box::new("three")),
            _ => Ok(i),
        });
        let pool = pool.unwrap();
        let said: Vec<String> =
            std::iter::from_fn(|| pool.next()).map(|r| r.map_or_else(|e| e.to_string(), |i| i.to_string())).collect();
        assert_eq!(said, ["0", "1", "two", "a loader thread panicked: three", "4"]);
    }

    #[test]
    fn dropping_it_ends_the_threads_though_endless_work_is_left() {
        let alive = Arc::new(AtomicUsize::new(0));
        struct Guard(Arc<AtomicUsize>);
        impl Drop for Guard {
            fn drop(&mut self) {
                self.0.fetch_sub(1, Ordering::SeqCst);
            }
        }
        for ahead in [1, 100] {
            alive.fetch_add(1, Ordering::SeqCst);
            let guard = Guard(Arc::clone(&alive));
            let pool = Pool::start(Size { threads: 4, ahead }, u64::MAX, move |i| {
                let _held = &guard;
                std::thread::sleep(Duration::from_millis(2));
                Ok(i)
            });
            let start = Instant::now();
            drop(pool.unwrap());
            assert!(start.elapsed() < Duration::from_secs(2));
            assert_eq!(alive.load(Ordering::SeqCst), 0, "every thread has let go of the job");
        }
    }
}
