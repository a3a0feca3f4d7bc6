//! Busy backgrounds: washes of colour, blobs, leaves, lines, patterned paper, and shapes that share the animals' colours.

use crate::canvas::{Canvas, Colour, Region, ellipse, from_segment, in_triangle, mix, scale};
use crate::chance::{Chance, cloud, cosine, sine, speckle};

/// Palettes: sky, middle, ground, and two accents.
const PALETTES: [[Colour; 5]; 8] = [
    [[0.62, 0.80, 0.92], [0.70, 0.82, 0.62], [0.36, 0.52, 0.28], [0.95, 0.84, 0.45], [0.85, 0.42, 0.38]], // meadow
    [[0.98, 0.80, 0.62], [0.90, 0.58, 0.50], [0.45, 0.32, 0.42], [0.99, 0.90, 0.70], [0.55, 0.30, 0.55]], // dusk
    [[0.74, 0.86, 0.72], [0.44, 0.62, 0.40], [0.20, 0.34, 0.24], [0.80, 0.88, 0.40], [0.58, 0.40, 0.26]], // bamboo
    [[0.90, 0.88, 0.82], [0.80, 0.72, 0.62], [0.56, 0.46, 0.38], [0.36, 0.56, 0.60], [0.78, 0.50, 0.36]], // paper
    [[0.30, 0.36, 0.52], [0.24, 0.30, 0.44], [0.12, 0.14, 0.24], [0.88, 0.84, 0.62], [0.50, 0.62, 0.78]], // night
    [[0.80, 0.90, 0.94], [0.60, 0.76, 0.84], [0.84, 0.88, 0.92], [0.36, 0.52, 0.66], [0.90, 0.66, 0.62]], // snow
    [[0.92, 0.78, 0.50], [0.82, 0.56, 0.30], [0.50, 0.30, 0.20], [0.70, 0.20, 0.18], [0.44, 0.50, 0.26]], // autumn
    [[0.96, 0.82, 0.86], [0.82, 0.70, 0.86], [0.54, 0.66, 0.78], [0.98, 0.94, 0.72], [0.46, 0.70, 0.62]], // sweets
];

/// Colours of the animals' own coats, for shapes that are none of them.
const DECOYS: [Colour; 6] =
    [[0.95, 0.94, 0.91], [0.12, 0.11, 0.13], [0.52, 0.47, 0.43], [0.86, 0.52, 0.22], [0.93, 0.70, 0.38], [0.74, 0.70, 0.66]];

/// Fills the whole canvas.
pub fn paint(canvas: &mut Canvas, chance: &mut Chance) {
    let palette = PALETTES[chance.below(PALETTES.len())];
    ground(canvas, chance, &palette);
    let busy = canvas.width.min(canvas.height) as f32;
    for _ in 0..6 + chance.below(12) {
        blob(canvas, chance, &palette, busy);
    }
    match chance.below(4) {
        0 => stripes(canvas, chance, &palette),
        1 => dots(canvas, chance, &palette, busy),
        _ => {}
    }
    for _ in 0..chance.below(14) {
        line(canvas, chance, &palette, busy);
    }
    for _ in 0..3 + chance.below(7) {
        decoy(canvas, chance, busy);
    }
    for _ in 0..8 + chance.below(40) {
        leaf(canvas, chance, &palette, busy);
    }
}

/// Grain over the finished picture, as a camera would leave it.
pub fn grain(canvas: &mut Canvas, chance: &mut Chance) {
    let (seed, strength) = (chance.word(), chance.within(0.01, 0.045));
    canvas.wash(|x, y, colour| {
        let shift = (speckle(x as i32, y as i32, seed) - 0.5) * strength;
        [colour[0] + shift, colour[1] + shift, colour[2] + shift]
    });
}

fn ground(canvas: &mut Canvas, chance: &mut Chance, palette: &[Colour; 5]) {
    let turns = chance.within(0.17, 0.33);
    let (dx, dy) = (cosine(turns), sine(turns));
    let (seed, fine) = (chance.word(), chance.within(4.0, 12.0));
    let (w, h) = (canvas.width as f32, canvas.height as f32);
    canvas.wash(|x, y, _| {
        let (u, v) = (x / w, y / h);
        let rough = cloud(u * fine, v * fine, seed) + 0.5 * cloud(u * fine * 3.1, v * fine * 3.1, seed ^ 1) - 0.75;
        let t = ((u - 0.5) * dx + (v - 0.5) * dy + 0.5) * 2.0 + 0.35 * rough;
        let base = if t < 1.0 { mix(palette[0], palette[1], t) } else { mix(palette[1], palette[2], t - 1.0) };
        scale(base, 1.0 + 0.16 * rough)
    });
}

fn anywhere(canvas: &Canvas, chance: &mut Chance) -> (f32, f32) {
    let margin = 0.05;
    (chance.within(-margin, 1.0 + margin) * canvas.width as f32, chance.within(-margin, 1.0 + margin) * canvas.height as f32)
}

fn pick(chance: &mut Chance, palette: &[Colour; 5]) -> Colour {
    let colour = palette[chance.below(5)];
    scale(colour, chance.within(0.75, 1.12))
}

/// A soft or hard round patch.
fn blob(canvas: &mut Canvas, chance: &mut Chance, palette: &[Colour; 5], busy: f32) {
    let (x, y) = anywhere(canvas, chance);
    let (rx, ry) = (busy * chance.within(0.04, 0.26), busy * chance.within(0.04, 0.22));
    let turns = chance.within(0.0, 1.0);
    let (turn, colour) = ((cosine(turns), sine(turns)), pick(chance, palette));
    let (soft, strength) = (chance.within(1.0, 8.0), chance.within(0.25, 0.8));
    canvas.paint(Region::around(x, y, rx.max(ry)), |px, py| {
        let inside = ellipse((px, py), (x, y), (rx, ry), turn);
        (inside > 0.0).then(|| (colour, strength * (inside * soft).min(1.0)))
    });
}

fn line(canvas: &mut Canvas, chance: &mut Chance, palette: &[Colour; 5], busy: f32) {
    let (a, b) = (anywhere(canvas, chance), anywhere(canvas, chance));
    let (colour, thick) = (pick(chance, palette), busy * chance.within(0.002, 0.014));
    let (bend, waves) = (busy * chance.within(0.0, 0.05), chance.within(1.0, 4.0));
    let strength = chance.within(0.4, 0.95);
    let length = ((b.0 - a.0) * (b.0 - a.0) + (b.1 - a.1) * (b.1 - a.1)).sqrt().max(1.0);
    let (dx, dy) = ((b.0 - a.0) / length, (b.1 - a.1) / length);
    let reach = (thick + bend).ceil() as i32 + 1;
    let region = Region {
        x0: a.0.min(b.0) as i32 - reach,
        y0: a.1.min(b.1) as i32 - reach,
        x1: a.0.max(b.0) as i32 + reach,
        y1: a.1.max(b.1) as i32 + reach,
    };
    canvas.paint(region, |x, y| {
        let along = (x - a.0) * dx + (y - a.1) * dy;
        let shift = bend * sine(along / length * waves);
        let near = from_segment((x + dy * shift, y - dx * shift), a, b);
        (near < thick).then_some((colour, strength))
    });
}

fn stripes(canvas: &mut Canvas, chance: &mut Chance, palette: &[Colour; 5]) {
    let turns = chance.within(0.0, 0.5);
    let (dx, dy) = (cosine(turns), sine(turns));
    let (period, share) = (chance.within(14.0, 48.0), chance.within(0.15, 0.5));
    let (colour, strength) = (pick(chance, palette), chance.within(0.15, 0.45));
    canvas.paint(canvas.region(), |x, y| {
        let phase = (x * dx + y * dy) / period;
        (phase - phase.floor() < share).then_some((colour, strength))
    });
}

fn dots(canvas: &mut Canvas, chance: &mut Chance, palette: &[Colour; 5], busy: f32) {
    let (step, share) = (busy * chance.within(0.05, 0.12), chance.within(0.15, 0.38));
    let (colour, strength) = (pick(chance, palette), chance.within(0.3, 0.8));
    canvas.paint(canvas.region(), |x, y| {
        let row = (y / step).floor();
        let shifted = x / step + 0.5 * (row - 2.0 * (row / 2.0).floor());
        let (u, v) = (shifted - shifted.floor() - 0.5, y / step - row - 0.5);
        (u * u + v * v < share * share).then_some((colour, strength))
    });
}

/// A leaf: where two circles meet, with a darker half and a midrib.
fn leaf(canvas: &mut Canvas, chance: &mut Chance, palette: &[Colour; 5], busy: f32) {
    let (x, y) = anywhere(canvas, chance);
    let (length, slim) = (busy * chance.within(0.03, 0.13), chance.within(0.22, 0.5));
    let turns = chance.within(0.0, 1.0);
    let (dx, dy) = (cosine(turns), sine(turns));
    let green = mix(palette[2], [0.36, 0.56, 0.24], chance.within(0.0, 0.9));
    let colour = if chance.happens(0.8) { scale(green, chance.within(0.7, 1.4)) } else { pick(chance, palette) };
    canvas.paint(Region::around(x, y, length), |px, py| {
        let (u, v) = (((px - x) * dx + (py - y) * dy) / length, ((py - y) * dx - (px - x) * dy) / length);
        let half = slim * (1.0 - u * u);
        if u.abs() > 1.0 || v.abs() > half {
            return None;
        }
        let rib = v.abs() < 0.025 || ((u * 5.0 - v.abs() * 6.0).abs() % 1.0 < 0.12 && v.abs() < half * 0.8);
        let shade = if rib {
            1.22
        } else if v > 0.0 {
            0.86
        } else {
            1.0
        };
        Some((scale(colour, shade), 0.96))
    });
}

/// A ball, a bar, a ring, a triangle or a pair of discs in an animal's colours: colour alone must not tell an animal.
fn decoy(canvas: &mut Canvas, chance: &mut Chance, busy: f32) {
    let centre = anywhere(canvas, chance);
    let radius = busy * chance.within(0.025, 0.13);
    let turns = chance.within(0.0, 1.0);
    let (dx, dy) = (cosine(turns), sine(turns));
    let first = scale(DECOYS[chance.below(DECOYS.len())], chance.within(0.8, 1.05));
    let second = scale(DECOYS[chance.below(DECOYS.len())], chance.within(0.8, 1.05));
    let kind = chance.below(5);
    canvas.paint(Region::around(centre.0, centre.1, radius * 1.3), |x, y| {
        let (ex, ey) = ((x - centre.0) / radius, (y - centre.1) / radius);
        let p = (ex * dx + ey * dy, ey * dx - ex * dy);
        let distance = (p.0 * p.0 + p.1 * p.1).sqrt();
        let colour = match kind {
            0 => (distance < 1.0).then_some(if p.0 > 0.25 { second } else { first }),
            1 => (p.0.abs() < 1.1 && p.1.abs() < 0.35).then_some(if (p.0 * 2.0).floor() % 2.0 == 0.0 { first } else { second }),
            2 => (distance < 1.0 && distance > 0.55).then_some(first),
            3 => in_triangle(p, (-0.9, 0.7), (0.9, 0.7), (0.0, -0.9)).then_some(first),
            _ => ((p.0.abs() - 0.5) * (p.0.abs() - 0.5) + p.1 * p.1 < 0.2).then_some(if p.0 > 0.0 { first } else { second }),
        };
        colour.map(|c| (scale(c, 1.0 - 0.12 * ey), 0.97))
    });
}
