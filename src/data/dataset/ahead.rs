//! Records written while their pictures are checked, so that most sets are read only once.
//!
//! What is written is for the split that the set has if nothing is wrong with it. The first fault ends it: what was written
//! is thrown away, and the records are made again when all is known.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use anyhow::Result;

use crate::config::label_map::LabelMap;
use crate::data::dataset::check::{Labelled, Picture, Take};
use crate::data::dataset::whole::assign_classes;
use crate::data::dataset::write::{AHEAD, Record, Shards, Staged};
use crate::data::split::Side;

/// Pictures whose memory is kept for the next ones.
const KEPT: usize = 8;

/// What the set is if nothing is wrong with it.
#[derive(Debug)]
pub struct Hoped {
    /// The label map.
    pub map: LabelMap,
    /// The largest id that a class may have.
    pub max_id: u32,
    /// Of each picture.
    pub sides: Vec<Side>,
}

/// Takes pictures from many threads in any order and writes them in theirs.
pub struct Ahead<'a> {
    labelled: &'a [Labelled],
    hoped: &'a Hoped,
    given_up: AtomicBool,
    queue: Mutex<Queue>,
    /// Told when there is room in the queue again.
    moved: Condvar,
    /// Training's and validation's. Whoever holds them writes for all; the others go on with their pictures.
    shards: Mutex<[Shards; 2]>,
}

#[derive(Default)]
struct Queue {
    /// The index that is written next.
    turn: usize,
    /// Records by index.
    records: BTreeMap<usize, Record>,
    /// What they hold in bytes, the one being written included.
    held: usize,
    /// Threads that wait for room.
    waiters: usize,
    /// Memory of pictures that are written, for the next ones.
    free: Vec<Vec<u8>>,
}

impl<'a> Ahead<'a> {
    /// Opens the temporary files; `paths` are training's and validation's.
    ///
    /// # Errors
    /// If they cannot be made.
    pub fn new(staged: &mut Staged, paths: [Vec<PathBuf>; 2], labelled: &'a [Labelled], hoped: &'a Hoped) -> Result<Self> {
        let [train, validate] = paths;
        let shards = [Shards::create(staged, train)?, Shards::create(staged, validate)?];
        Ok(Self {
            labelled,
            hoped,
            given_up: AtomicBool::new(false),
            queue: Mutex::default(),
            moved: Condvar::new(),
            shards: Mutex::new(shards),
        })
    }

    /// Closes the files. True if they hold every picture; false if they have to be written again.
    ///
    /// # Errors
    /// If the last bytes cannot be written.
    pub fn finish(self) -> Result<bool> {
        let queue = self.queue.into_inner().unwrap_or_else(PoisonError::into_inner);
        if self.given_up.into_inner() || queue.turn != self.labelled.len() {
            return Ok(false);
        }
        for shards in self.shards.into_inner().unwrap_or_else(PoisonError::into_inner) {
            shards.finish()?;
        }
        Ok(true)
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn give_up(&self) {
        let mut queue = self.queue();
        // Under the lock, so that no thread begins to wait after it was told.
        self.given_up.store(true, Ordering::Relaxed);
        queue.records.clear();
        self.moved.notify_all();
    }

    fn has_given_up(&self) -> bool {
        self.given_up.load(Ordering::Relaxed)
    }

    /// The record, if the picture is just as its labels had it.
    fn record(&self, index: usize, picture: Option<&Picture>, bytes: &mut Vec<u8>) -> Result<Option<Record>> {
        let Some(picture) = picture.filter(|picture| picture.objects.len() == self.labelled[index].objects.len()) else {
            return Ok(None);
        };
        let mut picture = [picture.clone()];
        if !assign_classes(&mut picture, &self.hoped.map, self.hoped.max_id).is_empty() {
            return Ok(None);
        }
        Record::new(&picture[0], bytes).map(Some)
    }

    /// Writes what has its turn, unless another thread is at it; that one then also writes what comes meanwhile.
    fn write(&self) -> Result<()> {
        loop {
            let Ok(mut shards) = self.shards.try_lock() else { return Ok(()) };
            while let Some((index, record)) = self.next() {
                shards[usize::from(self.hoped.sides[index] == Side::Validate)].write(&record)?;
                let mut queue = self.queue();
                queue.held -= record.len();
                if queue.free.len() < KEPT {
                    queue.free.push(record.encoded);
                }
                if queue.waiters > 0 {
                    self.moved.notify_all();
                }
            }
            drop(shards);
            // A record that came after the last look and before the files were let go would be left lying.
            let queue = self.queue();
            if !queue.records.contains_key(&queue.turn) {
                return Ok(());
            }
        }
    }

    fn next(&self) -> Option<(usize, Record)> {
        let mut queue = self.queue();
        let index = queue.turn;
        let record = queue.records.remove(&index)?;
        queue.turn += 1;
        Some((index, record))
    }
}

impl Take for Ahead<'_> {
    fn take(&self, index: usize, picture: Option<&Picture>, bytes: &mut Vec<u8>) -> Result<()> {
        if self.has_given_up() {
            return Ok(());
        }
        let record = self.record(index, picture, bytes).inspect_err(|_| self.give_up())?;
        let Some(record) = record else {
            self.give_up();
            return Ok(());
        };
        let mut queue = self.queue();
        // Whoever is far ahead waits; the one whose turn it is never does.
        while !self.has_given_up() && queue.turn != index && queue.held + record.len() > AHEAD as usize {
            queue.waiters += 1;
            queue = self.moved.wait(queue).unwrap_or_else(PoisonError::into_inner);
            queue.waiters -= 1;
        }
        if self.has_given_up() {
            return Ok(());
        }
        queue.held += record.len();
        queue.records.insert(index, record);
        drop(queue);
        self.write().inspect_err(|_| self.give_up())?;
        if bytes.capacity() == 0 {
            *bytes = self.queue().free.pop().unwrap_or_default();
        }
        Ok(())
    }
}
