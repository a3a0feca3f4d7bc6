//! Which pictures train and which validate: whole pictures, every class in the wanted ratio, seeded.
//!
//! A small search after the idea of iterative stratification (Sechidis et al., On the Stratification of Multi-label Data,
//! 2011): from a greedy start, pictures move and trade places as long as that brings the counts nearer to the ratio. The two
//! pictures of a class that has no more are tied together, one on each side, and move as one; classes that are on one side
//! after all are brought over in a random walk (Selman et al., Noise Strategies for Improving Local Search, 1994).

use std::collections::{BTreeSet, HashMap};

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

/// Being on one side only costs this much to a class of several units: more than all that follows.
const ONE_SIDED: f64 = 1e10;
/// A class that nothing trains cannot be learned; one that is not validated can at least be used. More than any ratio.
const UNTRAINED: f64 = 1e8;
/// Boxes count this much beside pictures, which cannot be cut.
const BOXES: f64 = 0.1;
/// All pictures together, whatever is on them, count this much beside a class's: they say which of equal splits it is. A class in one picture
/// trains, and no other class has to make up for it.
const ALL: f64 = 0.02;
/// Up to this many units every split is looked at.
const FEW: usize = 18;
/// Below this many units every trade is tried; above, a random choice of them.
const SMALL: usize = 500;
/// Steps of the walk, at most.
const WALK: usize = 20_000;
/// Steps of the walk that are taken at random.
const NOISE: f64 = 0.2;

/// A side for each unit, so that `rate` of all pictures, of each class's pictures, and roughly of its boxes, train.
///
/// A class that is in two or more units is on both sides wherever that is possible; one in a single unit trains.
pub fn split(units: &[Unit], rate: f64, seed: u64) -> Vec<Side> {
    let units = &counted_anew(units);
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    if units.len() <= FEW {
        return best_of_all(Search::new(units, rate), &mut rng);
    }
    // Of a start's time, in small sets the square of their size.
    let count = units.len();
    let restarts = (20_000 / count).clamp(1, 12).max((3_000_000 / (count * count)).min(100));
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

/// The same units, their classes counted without gaps: a label map's ids may be any, and what is kept of each class is little but not nothing.
fn counted_anew(units: &[Unit]) -> Vec<Unit> {
    let classes: BTreeSet<usize> = units.iter().flat_map(|unit| &unit.classes).map(|&(class, ..)| class).collect();
    let number: HashMap<usize, usize> = classes.into_iter().enumerate().map(|(number, class)| (class, number)).collect();
    let renumbered = |unit: &Unit| Unit {
        pictures: unit.pictures,
        classes: unit.classes.iter().map(|&(class, pictures, boxes)| (number[&class], pictures, boxes)).collect(),
    };
    units.iter().map(renumbered).collect()
}

/// The best split of few units, of equals one at random.
fn best_of_all(mut search: Search, rng: &mut ChaCha8Rng) -> Vec<Side> {
    let (mut least, mut best, mut equals) = (search.cost(), search.sides.clone(), 1);
    // In the order of the reflected binary code, where each split differs from the one before it in one unit.
    for i in 1..1_usize << search.sides.len() {
        search.turn(i.trailing_zeros() as usize);
        let cost = search.cost();
        if cost < least - 1e-9 {
            (least, equals) = (cost, 0);
        } else if cost > least + 1e-9 {
            continue;
        }
        equals += 1;
        if rng.random_range(0..equals) == 0 {
            best.clone_from(&search.sides);
        }
    }
    best
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
            Some((0, 2..)) => ONE_SIDED + UNTRAINED,
            Some((0, _)) => UNTRAINED,
            Some((train, all)) if train == all && all > 1 => ONE_SIDED,
            _ => 0.0,
        };
        missing + self.weight * (self.train - self.wanted).powi(2)
    }
}

struct Search {
    /// Units that move as one.
    blocks: Vec<Vec<usize>>,
    /// The block of each unit.
    block_of: Vec<usize>,
    /// The counts that a block touches, each once.
    touched: Vec<Vec<usize>>,
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
                    weight: match i {
                        0 => ALL,
                        // On the scale of pictures, so that a picture of many boxes does not outweigh its class.
                        _ if boxes && total > 0.0 => BOXES * (totals[i - 1].0 / total).powi(2),
                        _ => 1.0,
                    },
                    units: (i != 1 && !boxes && units > 0).then_some((0, units)),
                }
            })
            .collect();
        let (blocks, trains) = tied(units, classes);
        let mut block_of = vec![0; units.len()];
        let mut touched = Vec::with_capacity(blocks.len());
        for (index, block) in blocks.iter().enumerate() {
            let counts: BTreeSet<usize> = block.iter().flat_map(|&unit| amounts[unit].iter().map(|&(count, _)| count)).collect();
            touched.push(counts.into_iter().collect());
            for &unit in block {
                block_of[unit] = index;
            }
        }
        let mut search = Self { blocks, block_of, touched, amounts, counts, sides: vec![Side::Validate; units.len()] };
        for (unit, trains) in trains.into_iter().enumerate() {
            if trains {
                search.turn(unit);
            }
        }
        search
    }

    fn cost(&self) -> f64 {
        self.counts.iter().map(Count::cost).sum()
    }

    fn turn(&mut self, unit: usize) {
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

    fn flip(&mut self, block: usize) {
        for i in 0..self.blocks[block].len() {
            self.turn(self.blocks[block][i]);
        }
    }

    /// What the counts that a block touches cost now.
    fn local(&self, block: usize) -> f64 {
        self.touched[block].iter().map(|&count| self.counts[count].cost()).sum()
    }

    /// Moves a block over if that is better.
    fn try_flip(&mut self, block: usize) -> bool {
        let before = self.local(block);
        self.flip(block);
        let better = self.local(block) < before - 1e-9;
        if !better {
            self.flip(block);
        }
        better
    }

    /// Trades two blocks if that is better; two single units only if they are on different sides.
    fn try_trade(&mut self, a: usize, b: usize) -> bool {
        if let ([unit], [other]) = (self.blocks[a].as_slice(), self.blocks[b].as_slice())
            && self.sides[*unit] == self.sides[*other]
        {
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
        let count = self.blocks.len();
        let mut order: Vec<usize> = (0..count).collect();
        order.shuffle(rng);
        // Units of the rarest classes are placed first, while there is still a choice.
        let rarity = |block: usize| {
            let units = self.touched[block].iter().filter(|&&i| i > 0).filter_map(|&i| self.counts[i].units.map(|(_, all)| all));
            units.min().unwrap_or(usize::MAX)
        };
        let keys: Vec<usize> = (0..count).map(rarity).collect();
        order.sort_by_key(|&block| keys[block]);
        for &block in &order {
            self.try_flip(block);
        }
        self.improve(&mut order, rng);
        if self.walk(rng) {
            self.improve(&mut order, rng);
        }
    }

    /// Moves and trades as long as that is better.
    fn improve(&mut self, order: &mut [usize], rng: &mut ChaCha8Rng) {
        let count = order.len();
        // Each round costs, and the gain fades; thirty are far more than are ever needed.
        let mut cost = self.cost();
        for _ in 0..30 {
            order.shuffle(rng);
            let mut better = false;
            for &block in order.iter() {
                better |= self.try_flip(block);
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
                    // A block is not traded with itself.
                    better |= a != b && self.try_trade(a, b);
                }
            }
            let before = std::mem::replace(&mut cost, self.cost());
            // In a large set, the last hundredth of a picture is not worth another round.
            if !better || (count > SMALL && before - cost < 0.01) {
                break;
            }
        }
    }

    /// Classes in several units that are on one side only.
    fn one_sided(&self) -> Vec<usize> {
        let one_sided = |count: &Count| matches!(count.units, Some((train, all)) if all > 1 && (train == 0 || train == all));
        (0..self.counts.len()).filter(|&i| one_sided(&self.counts[i])).collect()
    }

    /// Brings classes over that are on one side only, through worse splits if need be. True if fewer are left.
    fn walk(&mut self, rng: &mut ChaCha8Rng) -> bool {
        let before = self.one_sided().len();
        if before == 0 {
            return false;
        }
        let mut units_of: Vec<Vec<usize>> = vec![Vec::new(); self.counts.len()];
        for (unit, amounts) in self.amounts.iter().enumerate() {
            for &(count, _) in amounts {
                units_of[count].push(unit);
            }
        }
        let mut best = (before, self.sides.clone());
        // What cannot be had is not looked for longer than the set is worth.
        for _ in 0..(50 * self.blocks.len()).min(WALK) {
            let left = self.one_sided();
            if left.len() < best.0 {
                best = (left.len(), self.sides.clone());
            }
            if left.is_empty() {
                break;
            }
            let units = &units_of[left[rng.random_range(0..left.len())]];
            let block = if rng.random_bool(NOISE) {
                self.block_of[units[rng.random_range(0..units.len())]]
            } else {
                // Of many units a few will do.
                let tried: Vec<usize> = (0..units.len().min(8)).map(|_| rng.random_range(0..units.len())).collect();
                let blocks: Vec<usize> = tried.into_iter().map(|i| self.block_of[units[i]]).collect();
                let gain = |search: &mut Self, block: usize| {
                    let before = search.local(block);
                    search.flip(block);
                    let after = search.local(block);
                    search.flip(block);
                    after - before
                };
                let mut least = (f64::INFINITY, blocks[0]);
                for block in blocks {
                    let change = gain(self, block);
                    if change < least.0 {
                        least = (change, block);
                    }
                }
                least.1
            };
            self.flip(block);
        }
        for unit in 0..self.sides.len() {
            if self.sides[unit] != best.1[unit] {
                self.turn(unit);
            }
        }
        best.0 < before
    }
}

/// Orders in which pairs are tried where they contradict each other.
const ORDERS: usize = 200;

/// Units that move as one, and which of all units train to begin with: the two units of each class that has two are tied
/// together on different sides. Where the pairs contradict each other (three classes in a triangle of units), as few as is
/// found in [`ORDERS`] orders tie nothing; nor does a class whose units are all.
fn tied(units: &[Unit], classes: usize) -> (Vec<Vec<usize>>, Vec<bool>) {
    let mut units_of: Vec<Vec<usize>> = vec![Vec::new(); classes];
    for (i, unit) in units.iter().enumerate() {
        for &(class, ..) in &unit.classes {
            units_of[class].push(i);
        }
    }
    let mut pairs: Vec<[usize; 2]> = units_of.iter().filter_map(|units| units.as_slice().try_into().ok()).collect();
    let (mut best, mut contradictions) = tie(&pairs, units.len());
    // Not the split's seed: how few can stay together does not depend on it.
    let mut random = ChaCha8Rng::seed_from_u64(0);
    for _ in 0..ORDERS {
        if contradictions == 0 {
            break;
        }
        pairs.shuffle(&mut random);
        let (other, fewer) = tie(&pairs, units.len());
        if fewer < contradictions {
            (best, contradictions) = (other, fewer);
        }
    }
    best
}

/// Ties pair after pair; also how many contradict those before them.
fn tie(pairs: &[[usize; 2]], units: usize) -> ((Vec<Vec<usize>>, Vec<bool>), usize) {
    // The block of each unit, and whether it is on the other side than the block's first.
    let mut place: Vec<(usize, bool)> = (0..units).map(|i| (i, false)).collect();
    let mut blocks: Vec<Vec<usize>> = (0..units).map(|i| vec![i]).collect();
    let mut contradictions = 0;
    for &[a, b] in pairs {
        let ((to, side_a), (from, side_b)) = (place[a], place[b]);
        if to == from {
            contradictions += usize::from(side_a == side_b);
            continue;
        }
        let turned = side_a == side_b;
        for unit in std::mem::take(&mut blocks[from]) {
            place[unit] = (to, place[unit].1 ^ turned);
            blocks[to].push(unit);
        }
    }
    blocks.retain(|block| !block.is_empty());
    ((blocks, place.into_iter().map(|(_, other)| other).collect()), contradictions)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Classes of two or more units on one side, classes without training, and how far pictures are from the ratio, for sides
    /// given by a function: counted anew, for tests. Each picture has one box of a class.
    fn badness(units: &[Unit], rate: f64, trains: impl Fn(usize) -> bool) -> (usize, usize, f64) {
        // Units that train, units, pictures that train, pictures.
        let count = |is_of: &dyn Fn(&Unit) -> bool| {
            let of = units.iter().enumerate().filter(|(_, unit)| is_of(unit));
            of.fold((0, 0, 0.0, 0.0), |(train, all, pictures, of_all), (i, unit)| {
                let n = unit.pictures as f64;
                (train + usize::from(trains(i)), all + 1, pictures + if trains(i) { n } else { 0.0 }, of_all + n)
            })
        };
        let mut sum = (0, 0, 0.0);
        let mut add = |(train, all, pictures, of_all): (usize, usize, f64, f64), weight: f64, both_sides: bool| {
            sum.0 += usize::from(both_sides && all > 1 && (train == 0 || train == all));
            sum.1 += usize::from(both_sides && all > 0 && train == 0);
            sum.2 += weight * (pictures - rate * of_all).powi(2);
        };
        add(count(&|_| true), ALL, true);
        add(count(&|unit| unit.classes.is_empty()), 1.0, false);
        for class in 0..8 {
            add(count(&|unit| unit.classes.iter().any(|(c, ..)| *c == class)), 1.0 + BOXES, true);
        }
        sum
    }

    #[test]
    fn few_pictures_are_split_as_well_as_any_way_of_splitting_them() {
        let mut rng = ChaCha8Rng::seed_from_u64(11);
        for case in 0..150 {
            let (count, classes) = (rng.random_range(1..=8), rng.random_range(1..=8));
            let (rate, share) = ([0.5, 0.8, 0.9, 0.1, 0.7][case % 5], [0.1, 0.3, 0.6][case % 3]);
            let units: Vec<Unit> = (0..count)
                .map(|_| {
                    let classes = (0..classes).filter(|_| rng.random_bool(share)).map(|class| (class, 1, 1)).collect();
                    Unit { pictures: 1, classes }
                })
                .collect();
            let sides = split(&units, rate, case as u64);
            let (one_sided, untrained, off) = badness(&units, rate, |i| sides[i] == Side::Train);
            let all = (0..1_usize << count).map(|mask| badness(&units, rate, |i| mask >> i & 1 == 1));
            let least = all.min_by(|a, b| (a.0, a.1).cmp(&(b.0, b.1)).then(a.2.total_cmp(&b.2))).unwrap();
            assert_eq!((one_sided, untrained), (least.0, least.1), "case {case}: {units:?} at {rate}");
            assert!(off <= least.2 + 1e-9, "case {case}: {off} and {}: {units:?} at {rate}", least.2);
        }
    }

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
        // Classes come first.
        assert!(sides.iter().filter(|side| **side == Side::Train).count().abs_diff(240) <= 1);
        for class in 0..6 {
            let (train, validate) = trained(&units, &sides, class);
            let off = train as f64 - 0.8 * (train + validate) as f64;
            assert!(off.abs() <= 1.0, "class {class}: {train} and {validate}");
        }
    }

    #[test]
    fn what_a_class_is_called_changes_nothing() {
        let units = singles(&[&[0, 2], &[0, 1, 3], &[1, 2, 4], &[3, 4], &[0], &[1]]);
        let mut high = units.clone();
        high.iter_mut().flat_map(|unit| &mut unit.classes).for_each(|(class, ..)| *class = *class * 400_000_000 + 7);
        assert_eq!(split(&high, 0.5, 3), split(&units, 0.5, 3));
    }

    #[test]
    fn as_few_pairs_as_can_be_are_left_on_one_side_where_they_contradict_each_other() {
        // Two triangles over one edge: the class on that edge alone stands in the way of the four others.
        let mut classes: Vec<&[usize]> = vec![&[0, 2], &[0, 1, 3], &[1, 2, 4], &[3, 4]];
        classes.extend([&[5][..]; 16]);
        let units = singles(&classes);
        for seed in 0..3 {
            let sides = split(&units, 0.5, seed);
            let one_sided = (0..5).filter(|&class| trained(&units, &sides, class) != (1, 1)).collect::<Vec<_>>();
            assert_eq!(one_sided, [1], "seed {seed}");
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
    fn classes_that_can_keep_the_ratio_do_not_make_up_for_those_in_one_or_two_pictures() {
        for (rare, of_each, common, rate, wanted) in [
            (6, 1, 5, 0.5, vec![(2, 3), (3, 2)]),
            (10, 1, 10, 0.8, vec![(8, 2)]),
            (5, 2, 20, 0.8, vec![(16, 4)]),
            (12, 1, 3, 0.8, vec![(2, 1)]),
        ] {
            let classes: Vec<Vec<usize>> =
                (0..rare).flat_map(|class| vec![vec![class]; of_each]).chain(vec![vec![rare]; common]).collect();
            let units = singles(&classes.iter().map(Vec::as_slice).collect::<Vec<_>>());
            for seed in 0..5 {
                let got = trained(&units, &split(&units, rate, seed), rare);
                assert!(wanted.contains(&got), "{rare} rare, {common} at {rate}: {got:?}");
            }
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

    /// Classes of two or more units that are on one side.
    fn one_sided(units: &[Unit], sides: &[Side], classes: usize) -> Vec<usize> {
        (0..classes).filter(|&class| matches!(trained(units, sides, class), (0, 2..) | (2.., 0))).collect()
    }

    #[test]
    fn chains_of_classes_with_two_pictures_each_are_all_parted() {
        let chain: Vec<[usize; 2]> = (0..300).map(|i| [i, i + 1]).collect();
        let units = singles(&chain.iter().map(|pair| &pair[..]).collect::<Vec<_>>());
        for (seed, rate) in [(0, 0.8), (1, 0.5), (2, 0.01)] {
            let sides = split(&units, rate, seed);
            assert_eq!(one_sided(&units, &sides, 301), [0; 0], "rate {rate}");
        }
    }

    #[test]
    fn many_rare_classes_on_the_same_pictures_are_all_parted() {
        let mut rng = ChaCha8Rng::seed_from_u64(9);
        // A split that parts them all is hidden in it: each class is on pictures of both halves.
        let mut lists: Vec<Vec<usize>> = vec![Vec::new(); 120];
        for class in 0..90 {
            let (a, b) = (rng.random_range(0..60), rng.random_range(60..120));
            lists[a].push(class);
            lists[b].push(class);
            let third = rng.random_range(0..120);
            if class % 2 == 0 && third != a && third != b {
                lists[third].push(class);
            }
        }
        let units = singles(&lists.iter().map(Vec::as_slice).collect::<Vec<_>>());
        for seed in 0..3 {
            assert_eq!(one_sided(&units, &split(&units, 0.8, seed), 90), [0; 0], "seed {seed}");
        }
    }

    #[test]
    fn three_classes_of_which_only_two_can_be_parted_leave_one() {
        let units = singles(&[&[0, 1], &[1, 2], &[2, 0]]);
        assert_eq!(one_sided(&units, &split(&units, 0.5, 0), 3).len(), 1);
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
