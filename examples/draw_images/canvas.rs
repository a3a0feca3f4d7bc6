//! A picture being painted: colours as fractions of full light, shapes as functions of a point, edges smoothed by sampling.

/// Red, green, blue, 0 to 1.
pub type Colour = [f32; 3];

/// Pixel columns `x0..x1` and rows `y0..y1`; may reach beyond the picture.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Region {
    pub x0: i32,
    pub y0: i32,
    pub x1: i32,
    pub y1: i32,
}

impl Region {
    /// The square of half side `reach` round a point.
    pub fn around(x: f32, y: f32, reach: f32) -> Self {
        Self {
            x0: (x - reach).floor() as i32,
            y0: (y - reach).floor() as i32,
            x1: (x + reach).ceil() as i32 + 1,
            y1: (y + reach).ceil() as i32 + 1,
        }
    }

    pub fn meet(&self, other: &Region) -> Region {
        Region { x0: self.x0.max(other.x0), y0: self.y0.max(other.y0), x1: self.x1.min(other.x1), y1: self.y1.min(other.y1) }
    }
}

pub struct Canvas {
    pub width: i32,
    pub height: i32,
    pixels: Vec<Colour>,
}

impl Canvas {
    pub fn new(width: i32, height: i32) -> Self {
        Self { width, height, pixels: vec![[0.0; 3]; (width * height) as usize] }
    }

    pub fn region(&self) -> Region {
        Region { x0: 0, y0: 0, x1: self.width, y1: self.height }
    }

    /// Recolours every pixel by its centre and its colour so far.
    pub fn wash(&mut self, shade: impl Fn(f32, f32, Colour) -> Colour) {
        for y in 0..self.height {
            for x in 0..self.width {
                let pixel = &mut self.pixels[(y * self.width + x) as usize];
                *pixel = shade(x as f32 + 0.5, y as f32 + 0.5, *pixel);
            }
        }
    }

    /// Lays over `region` what `shade` says of each point: a colour and how much it covers, or nothing.
    ///
    /// Each pixel is the mean over a 4 x 4 grid of points, so edges come out smooth.
    pub fn paint(&mut self, region: Region, shade: impl Fn(f32, f32) -> Option<(Colour, f32)>) {
        const GRID: i32 = 4;
        let region = region.meet(&self.region());
        for y in region.y0..region.y1 {
            for x in region.x0..region.x1 {
                let (mut sum, mut cover) = ([0.0; 3], 0.0);
                for point in 0..GRID * GRID {
                    let px = x as f32 + ((point % GRID) as f32 + 0.5) / GRID as f32;
                    let py = y as f32 + ((point / GRID) as f32 + 0.5) / GRID as f32;
                    if let Some((colour, alpha)) = shade(px, py) {
                        for (s, c) in sum.iter_mut().zip(colour) {
                            *s += c * alpha;
                        }
                        cover += alpha;
                    }
                }
                if cover > 0.0 {
                    let points = (GRID * GRID) as f32;
                    let pixel = &mut self.pixels[(y * self.width + x) as usize];
                    for (p, s) in pixel.iter_mut().zip(sum) {
                        *p = *p * (1.0 - cover / points) + s / points;
                    }
                }
            }
        }
    }

    /// The picture as bytes, row by row, RGB.
    pub fn into_rgb(self) -> Vec<u8> {
        self.pixels.into_iter().flatten().map(|v| (v.clamp(0.0, 1.0) * 255.0 + 0.5) as u8).collect()
    }
}

pub fn mix(a: Colour, b: Colour, share: f32) -> Colour {
    let t = share.clamp(0.0, 1.0);
    [a[0] + (b[0] - a[0]) * t, a[1] + (b[1] - a[1]) * t, a[2] + (b[2] - a[2]) * t]
}

pub fn scale(colour: Colour, by: f32) -> Colour {
    colour.map(|c| c * by)
}

/// How far inside an ellipse a point is: 1 at its centre, 0 on its edge, negative outside. `turn` is (cosine, sine) of its tilt.
pub fn ellipse((x, y): (f32, f32), (cx, cy): (f32, f32), (rx, ry): (f32, f32), turn: (f32, f32)) -> f32 {
    let (dx, dy) = (x - cx, y - cy);
    let (a, b) = ((dx * turn.0 + dy * turn.1) / rx, (dy * turn.0 - dx * turn.1) / ry);
    1.0 - (a * a + b * b).sqrt()
}

/// The distance of a point from a line segment.
pub fn from_segment((x, y): (f32, f32), (ax, ay): (f32, f32), (bx, by): (f32, f32)) -> f32 {
    let (dx, dy) = (bx - ax, by - ay);
    let along = (((x - ax) * dx + (y - ay) * dy) / (dx * dx + dy * dy).max(1e-12)).clamp(0.0, 1.0);
    let (ex, ey) = (x - ax - along * dx, y - ay - along * dy);
    (ex * ex + ey * ey).sqrt()
}

/// Whether a point is within a triangle.
pub fn in_triangle(p: (f32, f32), a: (f32, f32), b: (f32, f32), c: (f32, f32)) -> bool {
    let side = |u: (f32, f32), v: (f32, f32)| (v.0 - u.0) * (p.1 - u.1) - (v.1 - u.1) * (p.0 - u.0) >= 0.0;
    let (ab, bc, ca) = (side(a, b), side(b, c), side(c, a));
    ab == bc && bc == ca
}
