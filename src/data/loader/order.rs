//! Which record comes when: a seeded permutation for each pass, and a position in it that can be saved.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

/// Where the reading stands: the next picture is number `index` of pass `epoch`, both from 0.
///
/// Together with the seed it is all that a later run needs to go on with the very same pictures and augmentations.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// Passes over the data that are complete.
    pub epoch: u64,
    /// Pictures taken of the present pass.
    pub index: u64,
}

impl Position {
    /// The position `count` pictures later, in passes of `len`.
    pub fn advanced(self, count: u64, len: u64) -> Self {
        let index = self.index + count;
        Self { epoch: self.epoch + index / len, index: index % len }
    }
}

/// What a generator is for; keeps the draws for the order apart from those for a picture.
const ORDER: u64 = 1;
const PICTURE: u64 = 2;

/// Passes whose order is kept: batches in flight seldom span more than two.
const KEPT: usize = 4;

/// The order of `len` records in every pass.
#[derive(Debug)]
pub struct Order {
    seed: u64,
    len: u32,
    shuffle: bool,
    kept: Mutex<VecDeque<(u64, Arc<Vec<u32>>)>>,
}

impl Order {
    /// Passes over `len` records; shuffled anew in each, or always in the order of the files.
    pub fn new(len: u32, seed: u64, shuffle: bool) -> Self {
        Self { seed, len, shuffle, kept: Mutex::new(VecDeque::new()) }
    }

    /// Records in a pass.
    pub fn count(&self) -> u64 {
        u64::from(self.len)
    }

    /// The record at a position.
    pub fn record(&self, at: Position) -> usize {
        match self.shuffle {
            true => self.permutation(at.epoch)[at.index as usize] as usize,
            false => at.index as usize,
        }
    }

    /// The generator of the picture at a position: the same whatever came before and whichever thread asks.
    pub fn generator(&self, at: Position) -> ChaCha8Rng {
        generator([self.seed, PICTURE, at.epoch, at.index])
    }

    fn permutation(&self, epoch: u64) -> Arc<Vec<u32>> {
        // A thread that panicked here left a list that is still whole.
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, order)) = kept.iter().find(|(of, _)| *of == epoch) {
            return Arc::clone(order);
        }
        let mut order: Vec<u32> = (0..self.len).collect();
        order.shuffle(&mut generator([self.seed, ORDER, epoch, 0]));
        let order = Arc::new(order);
        if kept.len() == KEPT {
            kept.pop_front();
        }
        kept.push_back((epoch, Arc::clone(&order)));
        order
    }
}

fn generator(words: [u64; 4]) -> ChaCha8Rng {
    let mut seed = [0; 32];
    for (bytes, word) in seed.chunks_exact_mut(8).zip(words) {
        bytes.copy_from_slice(&word.to_le_bytes());
    }
    ChaCha8Rng::from_seed(seed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::Rng;

    #[test]
    fn every_pass_holds_every_record_once_in_an_order_of_its_own() {
        let order = Order::new(50, 3, true);
        let pass = |epoch| (0..50).map(|index| order.record(Position { epoch, index })).collect::<Vec<_>>();
        let mut sorted = pass(0);
        sorted.sort_unstable();
        assert_eq!(sorted, (0..50).collect::<Vec<_>>());
        assert_ne!(pass(0), pass(1));
        assert_ne!(pass(0), (0..50).collect::<Vec<_>>());
        let first = pass(0);
        (1..20).for_each(|epoch| drop(pass(epoch)));
        assert_eq!(pass(0), first, "after it was forgotten");
        assert_eq!(Order::new(50, 3, false).record(Position { epoch: 9, index: 7 }), 7);
    }

    #[test]
    fn generators_differ_by_seed_and_position_only() {
        let draw = |seed, epoch, index| Order::new(9, seed, true).generator(Position { epoch, index }).next_u64();
        assert_eq!(draw(1, 2, 3), draw(1, 2, 3));
        let all = [draw(1, 2, 3), draw(2, 2, 3), draw(1, 3, 3), draw(1, 2, 4), draw(1, 3, 2)];
        assert!((0..5).all(|i| (0..i).all(|j| all[i] != all[j])), "{all:?}");
    }

    #[test]
    fn positions_go_on_into_the_next_pass() {
        let start = Position { epoch: 4, index: 7 };
        assert_eq!(start.advanced(2, 10), Position { epoch: 4, index: 9 });
        assert_eq!(start.advanced(3, 10), Position { epoch: 5, index: 0 });
        assert_eq!(start.advanced(25, 10), Position { epoch: 7, index: 2 });
    }
}
