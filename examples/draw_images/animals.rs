//! The three animals: each a face drawn on a plane of its own, about 1 from the centre to the edge, y downward.

use crate::canvas::{Colour, ellipse, from_segment, in_triangle, mix, scale};
use crate::chance::{Chance, cloud, cosine, direction, sine, speckle};

/// The classes, in the order of the label map.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Species {
    Panda,
    Raccoon,
    Pomeranian,
}

impl Species {
    pub const ALL: [Species; 3] = [Species::Panda, Species::Raccoon, Species::Pomeranian];

    pub fn name(self) -> &'static str {
        match self {
            Species::Panda => "panda",
            Species::Raccoon => "raccoon",
            Species::Pomeranian => "pomeranian",
        }
    }
}

/// One animal: its looks, and where it is in the picture.
pub struct Animal {
    pub species: Species,
    /// The middle of the face, in pixels.
    pub centre: (f32, f32),
    /// Pixels to one unit of its plane.
    pub radius: f32,
    tilt: (f32, f32),
    stretch: f32,
    light: f32,
    tint: Colour,
    coat: Colour,
    gaze: (f32, f32),
    happy: bool,
    seed: u32,
}

const INK: Colour = [0.09, 0.08, 0.10];
const SNOW: Colour = [0.97, 0.96, 0.93];
const NO_TURN: (f32, f32) = (1.0, 0.0);

impl Animal {
    /// An animal of a random species and look at the origin, one pixel in radius.
    pub fn any(chance: &mut Chance) -> Self {
        let species = Species::ALL[chance.below(3)];
        let turns = chance.within(-0.08, 0.08);
        let shade = chance.within(0.0, 1.0);
        let coat = match species {
            Species::Panda => mix([0.98, 0.97, 0.95], [0.90, 0.85, 0.76], shade),
            Species::Raccoon => mix([0.48, 0.46, 0.46], [0.55, 0.46, 0.38], shade),
            Species::Pomeranian => mix([0.95, 0.68, 0.33], [0.80, 0.42, 0.17], shade),
        };
        Self {
            species,
            centre: (0.0, 0.0),
            radius: 1.0,
            tilt: (cosine(turns), sine(turns)),
            stretch: chance.within(0.9, 1.12),
            light: chance.within(0.78, 1.06),
            tint: [chance.within(0.94, 1.06), chance.within(0.96, 1.04), chance.within(0.92, 1.06)],
            coat,
            gaze: (chance.within(-0.025, 0.025), chance.within(-0.02, 0.03)),
            happy: chance.happens(0.5),
            seed: chance.word(),
        }
    }

    /// How far from the centre it may reach, in pixels.
    pub fn reach(&self) -> f32 {
        1.45 * self.radius
    }

    /// The colour at a point of the picture, or `None` beside the animal.
    pub fn at(&self, x: f32, y: f32) -> Option<Colour> {
        let (dx, dy) = ((x - self.centre.0) / self.radius, (y - self.centre.1) / self.radius);
        let p = ((dx * self.tilt.0 + dy * self.tilt.1) * self.stretch, (dy * self.tilt.0 - dx * self.tilt.1) / self.stretch);
        let colour = match self.species {
            Species::Panda => self.panda(p),
            Species::Raccoon => self.raccoon(p),
            Species::Pomeranian => self.pomeranian(p),
        }?;
        // Light falls from above left; fur is never quite even.
        let relief = 1.04 - 0.10 * (p.0 * 0.5 + p.1) + 0.07 * (cloud(p.0 * 9.0, p.1 * 9.0, self.seed) - 0.5);
        let lit = scale(colour, self.light * relief);
        Some([lit[0] * self.tint[0], lit[1] * self.tint[1], lit[2] * self.tint[2]])
    }

    fn panda(&self, p: (f32, f32)) -> Option<Colour> {
        let mirrored = (p.0.abs(), p.1);
        let patch = ellipse(mirrored, (0.36, 0.02), (0.20, 0.28), (0.85, 0.53)) > 0.0;
        let head = ellipse(p, (0.0, 0.08), (0.95, 0.80), NO_TURN);
        if head > 0.0 {
            let white = mix(self.coat, scale(self.coat, 0.82), (0.18 - head) * 4.0);
            let face = if patch { mix(INK, self.coat, 0.04) } else { self.blush(p, white) };
            return Some(self.features(p, face, (0.33, 0.03), 0.085));
        }
        let ear = ellipse(mirrored, (0.66, -0.60), (0.32, 0.32), NO_TURN);
        (ear > 0.0).then(|| if ear > 0.5 { [0.24, 0.20, 0.22] } else { mix(INK, self.coat, 0.05) })
    }

    fn raccoon(&self, p: (f32, f32)) -> Option<Colour> {
        let m = (p.0.abs(), p.1);
        let head = ellipse(p, (0.0, 0.05), (0.86, 0.72), NO_TURN);
        // Three tufts of cheek fur on each side.
        let tuft = in_triangle(m, (0.62, -0.10), (1.04, 0.10), (0.70, 0.36))
            || in_triangle(m, (0.60, 0.05), (1.00, 0.36), (0.58, 0.52))
            || in_triangle(m, (0.45, 0.30), (0.82, 0.62), (0.30, 0.70));
        if head > 0.0 || tuft {
            let mask = ellipse(m, (0.40, 0.06), (0.40, 0.20), (0.93, 0.37)) > 0.0;
            let brow = ellipse(m, (0.42, -0.10), (0.50, 0.22), (0.93, 0.37)) > 0.0;
            let muzzle = ellipse(p, (0.0, 0.42), (0.34, 0.28), NO_TURN) > 0.0;
            let blaze = m.0 < 0.09 + 0.05 * (p.1 + 0.6) && p.1 < 0.25;
            let dark = mix(INK, self.coat, 0.18);
            let pale = mix(SNOW, self.coat, 0.12);
            let fur = match () {
                () if muzzle => pale,
                () if mask => dark,
                () if blaze => mix(dark, self.coat, 0.25),
                () if brow || (p.1 > 0.12 && m.0 > 0.55) => pale,
                () => mix(self.coat, scale(self.coat, 0.75), -p.1),
            };
            return Some(self.features(p, fur, (0.34, 0.07), 0.085));
        }
        let ear = in_triangle(m, (0.28, -0.50), (0.76, -1.02), (0.84, -0.22));
        let inner = in_triangle(m, (0.44, -0.52), (0.70, -0.86), (0.76, -0.36));
        ear.then(|| if inner { mix(SNOW, [0.75, 0.55, 0.55], 0.5) } else { scale(self.coat, 0.62) })
    }

    fn pomeranian(&self, p: (f32, f32)) -> Option<Colour> {
        let m = (p.0.abs(), p.1);
        let distance = (p.0 * p.0 + (p.1 - 0.06) * (p.1 - 0.06)).sqrt();
        // Thirty-four locks of fur round the face, each of its own length.
        let locks = direction(p.0, p.1 - 0.06) * 34.0;
        let within = locks - locks.floor();
        let length = 0.06 + 0.12 * speckle(locks.floor() as i32, 0, self.seed);
        let edge = 0.82 + length * (1.0 - (2.0 * within - 1.0).abs());
        let ear = in_triangle(m, (0.22, -0.60), (0.62, -1.08), (0.74, -0.40));
        if distance > edge {
            let inner = in_triangle(m, (0.36, -0.66), (0.58, -0.94), (0.64, -0.52));
            return ear.then(|| if inner { mix(self.coat, [0.85, 0.55, 0.5], 0.6) } else { scale(self.coat, 0.78) });
        }
        let cream = mix(self.coat, [1.0, 0.93, 0.80], 0.65);
        // Strands run outward from the nose.
        let strand = cloud(direction(p.0, p.1 - 0.2) * 90.0, distance * 3.0, self.seed);
        let mane = mix(scale(self.coat, 0.78), mix(self.coat, cream, 0.35), strand);
        let face = ellipse(p, (0.0, 0.10), (0.56, 0.52), NO_TURN);
        let muzzle = ellipse(p, (0.0, 0.36), (0.30, 0.24), NO_TURN) > 0.0;
        let fur = if muzzle { cream } else { mix(mane, mix(self.coat, cream, 0.45), face * 3.0) };
        let tongue = self.happy && ellipse(p, (0.0, 0.60), (0.10, 0.14), NO_TURN) > 0.0;
        let fur = if tongue { [0.95, 0.48, 0.52] } else { self.blush((p.0 * 1.15, p.1), fur) };
        Some(self.features(p, fur, (0.27, 0.06), 0.10))
    }

    /// Rosy cheeks.
    fn blush(&self, p: (f32, f32), fur: Colour) -> Colour {
        let rosy = ellipse((p.0.abs(), p.1), (0.56, 0.40), (0.22, 0.15), NO_TURN);
        mix(fur, [0.98, 0.62, 0.60], rosy.max(0.0) * 0.9)
    }

    /// Eyes at `eye` and its mirror, a nose and a mouth over the `fur` at a point.
    fn features(&self, p: (f32, f32), fur: Colour, eye: (f32, f32), size: f32) -> Colour {
        let m = (p.0.abs(), p.1);
        let side = if p.0 < 0.0 { -1.0 } else { 1.0 };
        let gaze = (self.gaze.0 * side, self.gaze.1);
        if ellipse(m, eye, (size, size), NO_TURN) > 0.0 {
            let glint = (eye.0 - 0.03 * side, eye.1 - 0.035);
            if ellipse(m, glint, (0.032, 0.032), NO_TURN) > 0.0 {
                return [1.0; 3];
            }
            let pupil = ellipse(m, (eye.0 + gaze.0, eye.1 + gaze.1), (size * 0.66, size * 0.66), NO_TURN);
            return if pupil > 0.0 { [0.03, 0.03, 0.05] } else { [0.42, 0.26, 0.14] };
        }
        if ellipse(p, (0.0, 0.30), (0.13, 0.09), NO_TURN) > 0.0 {
            let shine = ellipse(p, (-0.04, 0.27), (0.04, 0.02), NO_TURN) > 0.0;
            return if shine { [0.55; 3] } else { INK };
        }
        let stem = from_segment(p, (0.0, 0.36), (0.0, 0.47)) < 0.02;
        let smile = ellipse(m, (0.11, 0.44), (0.12, 0.10), NO_TURN);
        if stem || (smile.abs() < 0.17 && p.1 > 0.46) { mix(INK, fur, 0.2) } else { fur }
    }
}
