//! Resizes pictures exactly as TensorFlow 1's `resize_bilinear` does (`align_corners=False`, no half-pixel centres).
//!
//! Source: `tensorflow/core/kernels/image/resize_bilinear_op.cc`, legacy scaler.

/// How output coordinates lie on the source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Corners {
    /// Coordinate times (input / output): TensorFlow 1's default.
    Legacy,
    /// The first and the last pixels of both lie on each other (`align_corners=True`).
    Aligned,
}

/// Where one output coordinate reads: two neighbouring source coordinates and the weight of the second.
#[derive(Debug, Clone, Copy)]
struct Tap {
    lower: usize,
    upper: usize,
    lerp: f32,
}

/// The taps of every output coordinate along one axis.
fn taps(input: usize, output: usize, corners: Corners) -> Vec<Tap> {
    let scale = match corners {
        Corners::Aligned if output > 1 => (input - 1) as f32 / (output - 1) as f32,
        _ => input as f32 / output as f32,
    };
    (0..output)
        .map(|i| {
            // Float32 throughout, in TensorFlow's order: a double here changes the last bit of the weights.
            let at = i as f32 * scale;
            let floor = at.floor();
            let lower = (floor as usize).min(input - 1);
            Tap { lower, upper: (at.ceil() as usize).min(input - 1), lerp: at - floor }
        })
        .collect()
}

/// One source row, interpolated along x. `row`: `[w, c]`, `out`: `[out_w, c]`.
fn resize_row<T: Copy + Into<f32>>(row: &[T], channels: usize, xs: &[Tap], out: &mut [f32]) {
    if channels == 3 {
        for (tap, pixel) in xs.iter().zip(out.as_chunks_mut::<3>().0) {
            let left = &row[tap.lower * 3..tap.lower * 3 + 3];
            let right = &row[tap.upper * 3..tap.upper * 3 + 3];
            for ((to, &l), &r) in pixel.iter_mut().zip(left).zip(right) {
                let (l, r): (f32, f32) = (l.into(), r.into());
                *to = l + (r - l) * tap.lerp;
            }
        }
        return;
    }
    for (tap, pixel) in xs.iter().zip(out.chunks_exact_mut(channels)) {
        let left = &row[tap.lower * channels..][..channels];
        let right = &row[tap.upper * channels..][..channels];
        for ((to, &l), &r) in pixel.iter_mut().zip(left).zip(right) {
            let (l, r): (f32, f32) = (l.into(), r.into());
            *to = l + (r - l) * tap.lerp;
        }
    }
}

/// Resizes `src` (`[h, w, c]`, bytes or floats) to `[out_h, out_w, c]`, equal to TensorFlow's to the last bit.
///
/// # Panics
/// If `src` is not `h * w * c` long, or a side is 0.
pub fn resize_bilinear<T: Copy + Into<f32>>(src: &[T], h: usize, w: usize, c: usize, out_h: usize, out_w: usize) -> Vec<f32> {
    let mut out = vec![0.0; out_h * out_w * c];
    resize_bilinear_into(src, (h, w, c), (out_h, out_w), &mut out);
    out
}

/// [`resize_bilinear`] into a slice of `out_h * out_w * c` floats, such as one picture's place in a batch.
///
/// # Panics
/// If a slice is not as long as its shape says, or a side is 0.
pub fn resize_bilinear_into<T: Copy + Into<f32>>(src: &[T], from: (usize, usize, usize), to: (usize, usize), out: &mut [f32]) {
    resize_bilinear_with(Corners::Legacy, src, from, to, out);
}

/// [`resize_bilinear_into`] with a choice of how the coordinates lie.
///
/// # Panics
/// As [`resize_bilinear_into`].
pub fn resize_bilinear_with<T: Copy + Into<f32>>(
    corners: Corners,
    src: &[T],
    (h, w, c): (usize, usize, usize),
    (out_h, out_w): (usize, usize),
    out: &mut [f32],
) {
    assert!(h > 0 && w > 0 && c > 0 && out_h > 0 && out_w > 0, "resize_bilinear: a side is 0");
    assert_eq!(src.len(), h * w * c, "resize_bilinear: source length");
    assert_eq!(out.len(), out_h * out_w * c, "resize_bilinear: output length");
    if (h, w) == (out_h, out_w) {
        for (to, &from) in out.iter_mut().zip(src) {
            *to = from.into();
        }
        return;
    }
    let ys = taps(h, out_h, corners);
    let xs = taps(w, out_w, corners);
    let width = out_w * c;
    // The two source rows last used, interpolated along x. An output row often shares one with the row before.
    let mut rows = [vec![0.0f32; width], vec![0.0f32; width]];
    let mut held = [usize::MAX; 2];
    for (tap, line) in ys.iter().zip(out.chunks_exact_mut(width)) {
        if held[0] != tap.lower && held[1] == tap.lower {
            rows.swap(0, 1);
            held.swap(0, 1);
        }
        for (slot, wanted) in [(0, tap.lower), (1, tap.upper)] {
            if held[slot] != wanted {
                resize_row(&src[wanted * w * c..(wanted + 1) * w * c], c, &xs, &mut rows[slot]);
                held[slot] = wanted;
            }
        }
        let [top, bottom] = &rows;
        for ((to, &t), &b) in line.iter_mut().zip(top).zip(bottom) {
            *to = t + (b - t) * tap.lerp;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_size_is_the_same_picture() {
        let src: Vec<u8> = (0..2 * 3 * 3).collect();
        let out = resize_bilinear(&src, 2, 3, 3, 2, 3);
        assert_eq!(out, src.iter().map(|&v| f32::from(v)).collect::<Vec<_>>());
    }

    #[test]
    fn doubling_repeats_the_last_row_and_column_as_the_legacy_resize_does() {
        // 0 10 / 20 30, doubled: coordinates 0, 0.5, 1, 1.5, the last of which is clamped.
        let out = resize_bilinear(&[0u8, 10, 20, 30], 2, 2, 1, 4, 4);
        #[rustfmt::skip]
        let want = [
            0.0, 5.0, 10.0, 10.0,
            10.0, 15.0, 20.0, 20.0,
            20.0, 25.0, 30.0, 30.0,
            20.0, 25.0, 30.0, 30.0,
        ];
        assert_eq!(out, want);
    }

    #[test]
    fn halving_takes_every_second_pixel_without_averaging() {
        let src: Vec<f32> = (0..16).map(|v| v as f32).collect();
        assert_eq!(resize_bilinear(&src, 4, 4, 1, 2, 2), [0.0, 2.0, 8.0, 10.0]);
    }

    #[test]
    fn one_pixel_fills_any_size() {
        let out = resize_bilinear(&[7u8, 8, 9], 1, 1, 3, 5, 4);
        assert_eq!(out.len(), 60);
        assert!(out.chunks(3).all(|p| p == [7.0, 8.0, 9.0]));
        assert_eq!(resize_bilinear(&[1.0f32, 2.0, 3.0, 4.0], 1, 4, 1, 1, 1), [1.0], "to one pixel: the first");
    }
}
