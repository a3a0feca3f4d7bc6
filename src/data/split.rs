//! Which pictures train and which validate: whole pictures, every class in the wanted ratio, seeded.
//!
//! A small search after the idea of iterative stratification (Sechidis et al., On the Stratification of Multi-label Data,
//! 2011): from a greedy start, pictures move and trade places as long as that brings the counts nearer to the ratio.

use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Where a picture goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Side {
    /// Into the training set.
    Train,
    /// Into the validation set.
    Validate,
}

impl Side {
    fn other(self) -> Self {
        match self {
            Side::Train => Side::Validate,
            Side::Validate => Side::Train,
        }
    }
}

/// What has to stay on one side: one picture, or several with the same bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Unit {
    /// Pictures in it.
    pub pictures: usize,
    /// For each class in it (0-based, each once): pictures with it, and boxes.
    pub classes: Vec<(usize, usize, usize)>,
}

/// Reads a split rate: 1 to 9 are tenths that train, below 1 a fraction that trains.
///
/// # Errors
/// If it is anything else.
pub fn parse_rate(text: &str) -> Result<f64, String> {
    let wrong = || {
        format!(
            "`{text}` is no split rate: 1 to 9 are tenths of the pictures that train (5 is 50:50), below 1 a fraction such as 0.85"
        )
    };
    let rate: f64 = text.trim().parse().map_err(|_| wrong())?;
    if rate > 0.0 && rate < 1.0 {
        return Ok(rate);
    }
    if (1.0..=9.0).contains(&rate) && rate.fract() == 0.0 {
        return Ok(rate / 10.0);
    }
    Err(wrong())
}

/// Being on one side only costs this much to a class that could be on both: more than any ratio.
const MISSING: f64 = 1e9;
/// Boxes count this much beside pictures, which cannot be cut.
const BOXES: f64 = 0.1;
/// Below this many units every trade is tried; above, a random choice of them.
const SMALL: usize = 500;

/// A side for each unit, so that `rate` of all pictures, of each class's pictures, and roughly of its boxes, train.
///
/// A class that is in two or more units is on both sides wherever that is possible; one in a single unit trains.
pub fn split(units: &[Unit], rate: f64, seed: u64) -> Vec<Side> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let restarts = (20_000 / units.len().max(1)).clamp(1, 12);
    let mut best: Option<(f64, Vec<Side>)> = None;
    for _ in 0..restarts {
        let mut search = Search::new(units, rate);
        search.run(&mut rng);
        let cost = search.cost();
        if best.as_ref().is_none_or(|(least, _)| cost < least - 1e-9) {
            best = Some((cost, search.sides));
        }
    }
    best.map(|(_, sides)| sides).unwrap_or_default()
}

/// One thing that is counted on both sides: all pictures, pictures without objects, a class's pictures, a class's boxes.
struct Count {
    train: f64,
    wanted: f64,
    weight: f64,
    /// Units with it that train, and in all; `None` if it may be on one side only.
    units: Option<(usize, usize)>,
}

impl Count {
    fn cost(&self) -> f64 {
        let missing = match self.units {
            // A class that nothing trains cannot be learned; one that is not validated can at least be used.
            Some((0, _)) => 2.0 * MISSING,
            Some((train, all)) if train == all && all > 1 => MISSING,
            _ => 0.0,
        };
        missing + self.weight * (self.train - self.wanted).powi(2)
    }
}

struct Search {
    /// What each unit adds to which count.
    amounts: Vec<Vec<(usize, f64)>>,
    counts: Vec<Count>,
    sides: Vec<Side>,
}

impl Search {
    fn new(units: &[Unit], rate: f64) -> Self {
        let classes = units.iter().flat_map(|unit| &unit.classes).map(|&(class, ..)| class + 1).max().unwrap_or(0);
        let amounts: Vec<Vec<(usize, f64)>> = units
            .iter()
            .map(|unit| {
                let mut amounts = vec![(0, unit.pictures as f64)];
                if unit.classes.is_empty() {
                    amounts.push((1, unit.pictures as f64));
                }
                for &(class, pictures, boxes) in &unit.classes {
                    amounts.push((2 + 2 * class, pictures as f64));
                    amounts.push((3 + 2 * class, boxes as f64));
                }
                amounts
            })
            .collect();
        let mut totals = vec![(0.0, 0_usize); 2 + 2 * classes];
        for &(count, amount) in amounts.iter().flatten() {
            totals[count].0 += amount;
            totals[count].1 += 1;
        }
        let counts = totals
            .iter()
            .enumerate()
            .map(|(i, &(total, units))| {
                let boxes = i >= 2 && i % 2 == 1;
                Count {
                    train: 0.0,
                    wanted: rate * total,
                    weight: match boxes {
                        // On the scale of pictures, so that a picture of many boxes does not outweigh its class.
                        true if total > 0.0 => BOXES * (totals[i - 1].0 / total).powi(2),
                        _ => 1.0,
                    },
                    units: (i != 1 && !boxes && units > 0).then_some((0, units)),
                }
            })
            .collect();
        Self { amounts, counts, sides: vec![Side::Validate; units.len()] }
    }

    fn cost(&self) -> f64 {
        self.counts.iter().map(Count::cost).sum()
    }

    fn flip(&mut self, unit: usize) {
        self.sides[unit] = self.sides[unit].other();
        let to_train = self.sides[unit] == Side::Train;
        for &(count, amount) in &self.amounts[unit] {
            let count = &mut self.counts[count];
            count.train += if to_train { amount } else { -amount };
            if let Some((train, _)) = &mut count.units {
                *train = if to_train { *train + 1 } else { *train - 1 };
            }
        }
    }

    /// What the counts that a unit touches cost now.
    fn local(&self, unit: usize) -> f64 {
        self.amounts[unit].iter().map(|&(count, _)| self.counts[count].cost()).sum()
    }

    /// Moves a unit over if that is better.
    fn try_flip(&mut self, unit: usize) -> bool {
        let before = self.local(unit);
        self.flip(unit);
        let better = self.local(unit) < before - 1e-9;
        if !better {
            self.flip(unit);
        }
        better
    }

    /// Trades two units of different sides if that is better.
    fn try_trade(&mut self, a: usize, b: usize) -> bool {
        if self.sides[a] == self.sides[b] {
            return false;
        }
        let before_a = self.local(a);
        self.flip(a);
        let change = self.local(a) - before_a;
        let before_b = self.local(b);
        self.flip(b);
        let better = change + self.local(b) - before_b < -1e-9;
        if !better {
            self.flip(a);
            self.flip(b);
        }
        better
    }

    fn run(&mut self, rng: &mut ChaCha8Rng) {
        let count = self.sides.len();
        let mut order: Vec<usize> = (0..count).collect();
        order.shuffle(rng);
        // Units of the rarest classes are placed first, while there is still a choice.
        let rarity = |unit: usize| {
            let units = self.amounts[unit].iter().skip(1).filter_map(|&(i, _)| self.counts[i].units.map(|(_, all)| all));
            units.min().unwrap_or(usize::MAX)
        };
        let keys: Vec<usize> = (0..count).map(rarity).collect();
        order.sort_by_key(|&unit| keys[unit]);
        for &unit in &order {
            self.try_flip(unit);
        }
        // Each round costs, and the gain fades; thirty are far more than are ever needed.
        let mut cost = self.cost();
        for _ in 0..30 {
            order.shuffle(rng);
            let mut better = false;
            for &unit in &order {
                better |= self.try_flip(unit);
            }
            if count <= SMALL {
                for i in 0..count {
                    for j in i + 1..count {
                        better |= self.try_trade(order[i], order[j]);
                    }
                }
            } else {
                for _ in 0..4 * count {
                    let (a, b) = (rng.random_range(0..count), rng.random_range(0..count));
                    better |= self.try_trade(a, b);
                }
            }
            let before = std::mem::replace(&mut cost, self.cost());
            // In a large set, the last hundredth of a picture is not worth another round.
            if !better || (count > SMALL && before - cost < 0.01) {
                break;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Units of one picture each, with one box of each class.
    fn singles(classes: &[&[usize]]) -> Vec<Unit> {
        classes
            .iter()
            .map(|classes| Unit { pictures: 1, classes: classes.iter().map(|&class| (class, 1, 1)).collect() })
            .collect()
    }

    fn trained(units: &[Unit], sides: &[Side], class: usize) -> (usize, usize) {
        let with = |side| {
            let of_side = units.iter().zip(sides).filter(|(_, s)| **s == side);
            of_side.flat_map(|(unit, _)| &unit.classes).filter(|(c, ..)| *c == class).map(|(_, pictures, _)| pictures).sum()
        };
        (with(Side::Train), with(Side::Validate))
    }

    #[test]
    fn rates_are_tenths_or_fractions_and_all_else_is_an_error() {
        for (text, rate) in
            [("8", 0.8), ("5", 0.5), ("1", 0.1), ("9", 0.9), ("0.85", 0.85), (" 8 ", 0.8), ("8.0", 0.8), (".5", 0.5)]
        {
            assert!((parse_rate(text).unwrap() - rate).abs() < 1e-12, "{text}");
        }
        for text in ["0", "10", "8.5", "1.5", "-1", "nan", "inf", "", "x", "80%", "0.0", "-0.5"] {
            assert!(parse_rate(text).is_err(), "{text}");
        }
    }

    #[test]
    fn one_class_is_split_exactly() {
        let units = singles(&vec![&[0][..]; 200]);
        for seed in 0..3 {
            assert_eq!(trained(&units, &split(&units, 0.8, seed), 0), (160, 40));
        }
    }

    #[test]
    fn the_seed_decides_and_the_same_seed_gives_the_same_split() {
        let units = singles(&vec![&[0][..]; 50]);
        assert_eq!(split(&units, 0.8, 1), split(&units, 0.8, 1));
        assert_ne!(split(&units, 0.8, 1), split(&units, 0.8, 2));
    }

    #[test]
    fn every_class_keeps_the_ratio_on_multi_label_pictures() {
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        // Six classes of falling frequency, one to four a picture.
        let units: Vec<Unit> = (0..300)
            .map(|_| {
                let mut classes: Vec<(usize, usize, usize)> = (0..6)
                    .filter_map(|class| {
                        let boxes = rng.random_range(1..5);
                        (rng.random_range(0..(class + 2) * 2) == 0).then_some((class, 1, boxes))
                    })
                    .collect();
                classes.truncate(4);
                Unit { pictures: 1, classes }
            })
            .collect();
        let sides = split(&units, 0.8, 7);
        assert_eq!(sides.iter().filter(|side| **side == Side::Train).count(), 240);
        for class in 0..6 {
            let (train, validate) = trained(&units, &sides, class);
            let off = train as f64 - 0.8 * (train + validate) as f64;
            assert!(off.abs() <= 1.0, "class {class}: {train} and {validate}");
        }
    }

    #[test]
    fn a_class_with_two_pictures_is_on_both_sides_and_one_with_a_single_picture_trains() {
        let mut classes: Vec<&[usize]> = vec![&[0]; 40];
        classes.extend([&[1][..], &[1], &[2], &[0, 3], &[3]]);
        let units = singles(&classes);
        for (seed, rate) in [(0, 0.8), (1, 0.9), (2, 0.1), (3, 0.99), (4, 0.01)] {
            let sides = split(&units, rate, seed);
            assert_eq!(trained(&units, &sides, 1), (1, 1), "rate {rate}");
            assert_eq!(trained(&units, &sides, 2), (1, 0), "rate {rate}");
            assert_eq!(trained(&units, &sides, 3), (1, 1), "rate {rate}");
        }
    }

    #[test]
    fn classes_that_only_come_together_both_reach_both_sides() {
        let units = singles(&[&[0, 1], &[0, 1], &[0, 2], &[2, 1]]);
        let sides = split(&units, 0.5, 0);
        for class in 0..3 {
            let (train, validate) = trained(&units, &sides, class);
            assert!(train > 0 && validate > 0, "class {class}");
        }
    }

    #[test]
    fn large_groups_of_equal_pictures_still_leave_the_ratio_right() {
        let mut units = singles(&vec![&[0][..]; 90]);
        units.push(Unit { pictures: 10, classes: vec![(0, 10, 10)] });
        assert_eq!(trained(&units, &split(&units, 0.8, 0), 0), (80, 20));
    }

    #[test]
    fn nothing_and_one_are_no_special_cases() {
        assert!(split(&[], 0.8, 0).is_empty());
        assert_eq!(split(&singles(&[&[0]]), 0.1, 0), [Side::Train]);
        let sides = split(&singles(&[&[], &[]]), 0.8, 0);
        assert_ne!(sides[0], sides[1]);
    }

    #[test]
    fn ten_thousand_pictures_take_little_time() {
        let units: Vec<Unit> = (0..10_000).map(|i| Unit { pictures: 1, classes: vec![(i % 20, 1, 1 + i % 3)] }).collect();
        let start = std::time::Instant::now();
        let sides = split(&units, 0.8, 0);
        assert_eq!(sides.iter().filter(|side| **side == Side::Train).count(), 8000);
        assert!(start.elapsed().as_secs() < 20);
    }
}
