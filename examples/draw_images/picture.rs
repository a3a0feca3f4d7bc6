//! Composes one picture: how large it is, which animals stand where, what a labeller would write down.

use anyhow::Result;
use image::ExtendedColorType;
use image::codecs::jpeg::JpegEncoder;

use crate::animals::{Animal, Species};
use crate::canvas::{Canvas, Region};
use crate::chance::{Chance, cosine, sine};
use crate::scenery;

/// An object's box as labelImg writes it: pixels, `min` at least 1, `max` at most the picture's side.
#[derive(Clone, Debug, PartialEq)]
pub struct Label {
    pub species: Species,
    pub xmin: i32,
    pub ymin: i32,
    pub xmax: i32,
    pub ymax: i32,
    /// Whether the box touches the picture's edge, which is when labelImg says so.
    pub truncated: bool,
}

pub struct Picture {
    pub name: String,
    pub width: i32,
    pub height: i32,
    pub jpeg: Vec<u8>,
    pub labels: Vec<Label>,
}

/// A box's side is never less nor more than this share of the picture's.
const SHARES: (f32, f32) = (0.05, 0.60);
/// At least this much of an animal lies within the picture.
const WITHIN_EDGE: f32 = 0.5;
/// At least this much of what lies within the picture is left uncovered by other animals.
const UNCOVERED: f32 = 0.6;
const JPEG_QUALITY: u8 = 80;

/// Picture `index` (from 1) of the set `seed`.
pub fn draw(seed: u64, index: u64) -> Result<Picture> {
    let mut chance = Chance::new(seed, index);
    let (width, height) = size(&mut chance);
    let mut canvas = Canvas::new(width, height);
    scenery::paint(&mut canvas, &mut chance);
    let mut scene = Scene::new(width, height);
    let wanted = 1 + chance.below(6);
    let mut animals: Vec<Animal> = (0..wanted).map(|_| Animal::any(&mut chance)).collect();
    for animal in &mut animals {
        animal.radius = radius(&mut chance, width, height);
    }
    // The large ones stand behind.
    animals.sort_by(|a, b| b.radius.total_cmp(&a.radius));
    for animal in animals {
        scene.place(animal, &mut chance);
    }
    for placed in &scene.placed {
        let animal = &placed.animal;
        let region = Region::around(animal.centre.0, animal.centre.1, animal.reach());
        canvas.paint(region, |x, y| animal.at(x, y).map(|colour| (colour, 1.0)));
    }
    scenery::grain(&mut canvas, &mut chance);
    let rgb = canvas.into_rgb();
    let mut jpeg = Vec::new();
    JpegEncoder::new_with_quality(&mut jpeg, JPEG_QUALITY).encode(&rgb, width as u32, height as u32, ExtendedColorType::Rgb8)?;
    let labels = scene.placed.into_iter().map(|placed| placed.label).collect();
    Ok(Picture { name: format!("animals-{index:03}"), width, height, jpeg, labels })
}

/// Sides from 240 to 800 pixels, most of them small; as often upright as lying.
fn size(chance: &mut Chance) -> (i32, i32) {
    let small = chance.within(0.0, 1.0);
    let long = 320.0 + 480.0 * small * small;
    let short = (long / chance.within(1.0, 1.6)).max(240.0);
    if chance.happens(0.5) { (long as i32, short as i32) } else { (short as i32, long as i32) }
}

/// An animal's radius, so that its box (about two radii wide and high) keeps to `SHARES` of both sides.
fn radius(chance: &mut Chance, width: i32, height: i32) -> f32 {
    let low = SHARES.0 * width.max(height) as f32 / 2.0;
    let high = SHARES.1 * width.min(height) as f32 / 2.0;
    // As many per doubling in the middle of the range as can be, few at its ends, leaning to the large.
    let share = (chance.within(0.0, 1.0) + chance.within(0.0, 1.0)) / 2.0;
    low * power(high / low, 0.1 + 0.9 * share)
}

/// `base` to the power `share` (0 to 1) by 16 binary places of repeated square roots, which are exact on every machine.
fn power(base: f32, share: f32) -> f32 {
    let (mut result, mut root, mut rest) = (1.0, base, share);
    for _ in 0..16 {
        root = root.sqrt();
        rest *= 2.0;
        if rest >= 1.0 {
            result *= root;
            rest -= 1.0;
        }
    }
    result
}

struct Placed {
    animal: Animal,
    label: Label,
    /// Pixels it covers within the picture, and how many of those no later animal has covered.
    pixels: usize,
    uncovered: usize,
}

/// Who covers which pixel.
struct Scene {
    width: i32,
    height: i32,
    owner: Vec<Option<usize>>,
    placed: Vec<Placed>,
}

impl Scene {
    fn new(width: i32, height: i32) -> Self {
        Self { width, height, owner: vec![None; (width * height) as usize], placed: Vec::new() }
    }

    /// Tries places until the animal fits: kept to the size limits, enough of everyone still seen. Gives up after 60.
    fn place(&mut self, mut animal: Animal, chance: &mut Chance) {
        for _ in 0..60 {
            animal.centre = self.somewhere(animal.radius, chance);
            if let Some((label, mine)) = self.fits(&animal) {
                let number = self.placed.len();
                for &pixel in &mine {
                    if let Some(below) = self.owner[pixel].replace(number) {
                        self.placed[below].uncovered -= 1;
                    }
                }
                self.placed.push(Placed { animal, label, pixels: mine.len(), uncovered: mine.len() });
                return;
            }
        }
    }

    /// One time in five over the edge, one in three beside an animal that stands already, else anywhere inside.
    fn somewhere(&self, radius: f32, chance: &mut Chance) -> (f32, f32) {
        let (w, h) = (self.width as f32, self.height as f32);
        let (x, y) = (chance.within(radius, w - radius), chance.within(radius, h - radius));
        if chance.happens(0.2) {
            let over = radius * chance.within(-0.2, 0.75);
            return match chance.below(4) {
                0 => (over, y),
                1 => (w - over, y),
                2 => (x, over),
                _ => (x, h - over),
            };
        }
        if !self.placed.is_empty() && chance.happens(0.33) {
            let other = &self.placed[chance.below(self.placed.len())].animal;
            let (turns, distance) = (chance.within(0.0, 1.0), (radius + other.radius) * chance.within(0.55, 0.95));
            return (other.centre.0 + distance * cosine(turns), other.centre.1 + distance * sine(turns));
        }
        (x, y)
    }

    /// The label and the pixels that the animal would have where it is, or `None` if it must not stand there.
    fn fits(&self, animal: &Animal) -> Option<(Label, Vec<usize>)> {
        let region = Region::around(animal.centre.0, animal.centre.1, animal.reach());
        let (mut all, mut mine) = (0, Vec::new());
        let mut seen = Region { x0: i32::MAX, y0: i32::MAX, x1: i32::MIN, y1: i32::MIN };
        for y in region.y0..region.y1 {
            for x in region.x0..region.x1 {
                if animal.at(x as f32 + 0.5, y as f32 + 0.5).is_none() {
                    continue;
                }
                all += 1;
                if (0..self.width).contains(&x) && (0..self.height).contains(&y) {
                    mine.push((y * self.width + x) as usize);
                    seen = Region { x0: seen.x0.min(x), y0: seen.y0.min(y), x1: seen.x1.max(x + 1), y1: seen.y1.max(y + 1) };
                }
            }
        }
        if mine.is_empty() || (mine.len() as f32) < WITHIN_EDGE * all as f32 {
            return None;
        }
        let label = self.label(animal.species, &seen)?;
        let mut covered = vec![0; self.placed.len()];
        for &pixel in &mine {
            if let Some(below) = self.owner[pixel] {
                covered[below] += 1;
            }
        }
        let all_seen = self
            .placed
            .iter()
            .zip(covered)
            .all(|(placed, taken)| (placed.uncovered - taken) as f32 >= UNCOVERED * placed.pixels as f32);
        all_seen.then_some((label, mine))
    }

    /// What labelImg would write of the pixels `seen`; `None` if a side is out of `SHARES`.
    fn label(&self, species: Species, seen: &Region) -> Option<Label> {
        let (xmin, ymin) = (seen.x0.max(1), seen.y0.max(1));
        let (xmax, ymax) = (seen.x1, seen.y1);
        let truncated = xmin == 1 || ymin == 1 || xmax == self.width || ymax == self.height;
        let shares = [(xmax - xmin) as f32 / self.width as f32, (ymax - ymin) as f32 / self.height as f32];
        let fit = shares.iter().all(|share| (SHARES.0..=SHARES.1).contains(share));
        fit.then_some(Label { species, xmin, ymin, xmax, ymax, truncated })
    }
}

/// The picture's labels as labelImg's Pascal VOC writer lays them out.
pub fn annotation(picture: &Picture, folder: &str) -> String {
    let Picture { name, width, height, labels, .. } = picture;
    let mut xml = format!(
        "<annotation>\n\t<folder>{folder}</folder>\n\t<filename>{name}.jpg</filename>\n\t<path>{folder}/{name}.jpg</path>\n\
         \t<source>\n\t\t<database>Unknown</database>\n\t</source>\n\
         \t<size>\n\t\t<width>{width}</width>\n\t\t<height>{height}</height>\n\t\t<depth>3</depth>\n\t</size>\n\
         \t<segmented>0</segmented>\n"
    );
    for Label { species, xmin, ymin, xmax, ymax, truncated } in labels {
        xml += &format!(
            "\t<object>\n\t\t<name>{}</name>\n\t\t<pose>Unspecified</pose>\n\t\t<truncated>{}</truncated>\n\
             \t\t<difficult>0</difficult>\n\t\t<bndbox>\n\t\t\t<xmin>{xmin}</xmin>\n\t\t\t<ymin>{ymin}</ymin>\n\
             \t\t\t<xmax>{xmax}</xmax>\n\t\t\t<ymax>{ymax}</ymax>\n\t\t</bndbox>\n\t</object>\n",
            species.name(),
            i32::from(*truncated),
        );
    }
    xml + "</annotation>\n"
}
