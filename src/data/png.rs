//! PNG's framing and its compressed pixels, held against what libpng, and so TensorFlow, reads; what decodes them is in `image`.

use std::ffi::{CStr, c_int};
use std::mem::MaybeUninit;

use anyhow::{Context, Result, bail, ensure};
use libz_sys::{Z_NO_FLUSH, Z_OK, Z_STREAM_END, inflate, inflateEnd, inflateInit2_, uInt, z_stream, zlibVersion};

/// The passes of an interlaced picture (PNG specification, 8.2): first column and row, and the steps between them.
const ADAM7: [[usize; 4]; 7] = [[0, 0, 8, 8], [4, 0, 8, 8], [0, 4, 4, 8], [2, 0, 4, 4], [0, 2, 2, 4], [1, 0, 2, 2], [0, 1, 1, 2]];
/// At most so much of a chunk is inflated at once.
const PIECE: usize = 4096;

fn be32(bytes: &[u8]) -> usize {
    bytes.iter().fold(0, |sum, &b| sum << 8 | usize::from(b))
}

/// Width and height in pixels, from the IHDR chunk, which PNG puts first.
///
/// # Errors
/// If it is not there.
pub fn size(bytes: &[u8]) -> Result<(usize, usize)> {
    match bytes.get(8..24) {
        Some(head) if &head[4..8] == b"IHDR" => Ok((be32(&head[8..12]), be32(&head[12..16]))),
        Some(_) => bail!("the png does not begin with an IHDR chunk; the file is damaged, copy it again"),
        None => bail!("the png ends inside its header; the file is truncated, copy it again"),
    }
}

/// Walks the chunks up to IEND, and refuses kinds that libpng, and so TensorFlow, refuses: those that are no four letters, and
/// those unknown to it whose first letter is large, which says that a picture cannot be shown without them.
///
/// # Errors
/// If the file ends before its IEND chunk, or has such a chunk or one that stands where it must not.
pub fn check_structure(bytes: &[u8]) -> Result<()> {
    let mut at = 8;
    // Whether pixels have come, and something else behind them.
    let (mut pixels, mut behind) = (false, false);
    loop {
        // Length, type, body, CRC.
        let Some(head) = bytes.get(at..at + 8) else {
            bail!("the png's {} bytes end without an IEND chunk; the file is truncated, copy it again", bytes.len());
        };
        let next = at + 12 + be32(&head[..4]);
        if next > bytes.len() {
            bail!(
                "the png's {} bytes end inside its {} chunk; the file is truncated, copy it again",
                bytes.len(),
                String::from_utf8_lossy(&head[4..])
            );
        }
        let kind = &head[4..];
        if kind == b"IHDR" && at > 8 {
            bail!("the png has a second IHDR chunk at byte {at}; the file is damaged, save it anew");
        }
        match kind == b"IDAT" {
            true if behind => {
                bail!("the png has other chunks between its pixels' (IDAT, at byte {at}); the file is damaged, save it anew")
            }
            true => pixels = true,
            false => behind = pixels,
        }
        let known = matches!(kind, b"IHDR" | b"PLTE" | b"IDAT" | b"IEND");
        if !known && (kind[0].is_ascii_uppercase() || !kind.iter().all(u8::is_ascii_alphabetic)) {
            let kind = kind.escape_ascii();
            bail!("the png has a chunk `{kind}` at byte {at}, which no reader knows; the file is damaged, save it anew");
        }
        if kind == b"IEND" {
            // Of no body the checksum is always the same. What decodes the pixels never comes to it; libpng does, and refuses.
            if bytes[next - 4..next] != [0xAE, 0x42, 0x60, 0x82] {
                bail!("the checksum of the png's IEND chunk is wrong; the file is damaged, copy it again");
            }
            return Ok(());
        }
        at = next;
    }
}

/// Inflates a PNG's pixels as libpng does, which is stricter than what [`decode`](super::image::decode) is made of: the distances may reach no
/// further back than the window that the stream's first byte gives, which some writers gave too small, and the checksum at the end counts. The
/// window counts from call to call, so that rows are inflated one by one, as libpng does.
///
/// # Errors
/// If the pixels end early, libpng would not inflate them, or the checksum is wrong.
pub fn check_pixels(bytes: &[u8]) -> Result<()> {
    let pieces = chunks(bytes).filter(|(kind, _)| kind == b"IDAT").flat_map(|(_, body)| body.chunks(PIECE));
    let mut pixels = Inflate::new(pieces)?;
    let mut row = Vec::new();
    for length in row_lengths(bytes)? {
        row.resize(length, 0);
        let mut done = 0;
        while done < length {
            ensure!(!pixels.ended, "the png has fewer pixels than its header says; the file is damaged, save it anew");
            pixels.refill()?;
            done += pixels.inflate(&mut row[done..])?;
        }
    }
    // With the last row mostly comes the end. Where it does not, as chunks are small, libpng asks for one more piece, and for all the others
    // only where that holds pixels too many; what zlib then finds wrong it passes over.
    let mut behind = 0;
    while !pixels.ended {
        pixels.refill()?;
        match pixels.inflate(&mut [0; 1024]) {
            Ok(more) => behind += more,
            Err(_) => break,
        }
        if behind == 0 {
            break;
        }
    }
    Ok(())
}

/// Kind and body of each chunk, to the first that is not whole.
fn chunks(bytes: &[u8]) -> impl Iterator<Item = ([u8; 4], &[u8])> {
    let mut rest = bytes.get(8..).unwrap_or_default();
    std::iter::from_fn(move || {
        let (length, behind) = rest.split_first_chunk::<4>()?;
        let (kind, behind) = behind.split_first_chunk::<4>()?;
        let body = behind.get(..be32(length))?;
        rest = behind.get(body.len() + 4..).unwrap_or_default();
        Some((*kind, body))
    })
}

/// Bytes of each row of pixels in the order of the stream, with the byte that says how the row is filtered.
fn row_lengths(bytes: &[u8]) -> Result<Vec<usize>> {
    let (width, height) = size(bytes)?;
    let Some(&[depth, colour, _, _, interlace]) = bytes.get(24..29) else { bail!("the png ends inside its header") };
    let samples = match colour {
        0 | 3 => 1,
        4 => 2,
        2 => 3,
        6 => 4,
        _ => bail!("the png's header gives the colour type {colour}, which there is not; the file is damaged, copy it again"),
    };
    let length = |columns: usize| 1 + (columns * samples * usize::from(depth)).div_ceil(8);
    if interlace == 0 {
        return Ok(vec![length(width); height]);
    }
    let passes = ADAM7.iter().map(|&[x, y, right, down]| {
        let (columns, rows) = (width.saturating_sub(x).div_ceil(right), height.saturating_sub(y).div_ceil(down));
        vec![length(columns); if columns == 0 { 0 } else { rows }]
    });
    Ok(passes.collect::<Vec<_>>().concat())
}

/// A zlib stream in pieces.
struct Inflate<'a, I> {
    pieces: I,
    /// What is left of the present one.
    piece: &'a [u8],
    /// zlib's state, which must stay where it is.
    stream: Box<z_stream>,
    /// Whether the end is reached, and the checksum right.
    ended: bool,
}

impl<'a, I: Iterator<Item = &'a [u8]>> Inflate<'a, I> {
    /// With the window that the stream itself gives.
    fn new(pieces: I) -> Result<Self> {
        // No input, and null for zlib's own allocator.
        let mut stream = Box::new(MaybeUninit::<z_stream>::zeroed());
        // SAFETY: zeros are all that inflateInit reads; version and size are those of the library that is called.
        let code = unsafe { inflateInit2_(stream.as_mut_ptr(), 0, zlibVersion(), size_of::<z_stream>() as c_int) };
        ensure!(code == Z_OK, "zlib does not start (code {code})");
        // SAFETY: initialized by zlib, which has put functions of its own in place of null.
        let stream = unsafe { stream.assume_init() };
        Ok(Self { pieces, piece: &[], stream, ended: false })
    }

    /// Takes the next piece when the present one is used up.
    fn refill(&mut self) -> Result<()> {
        if self.piece.is_empty() {
            self.piece = self.pieces.next().context("the png's pixels end early; the file is damaged, save it anew")?;
        }
        Ok(())
    }

    /// Inflates to the end of `out` or of the present piece, whichever comes first: how much of `out`.
    fn inflate(&mut self, out: &mut [u8]) -> Result<usize> {
        self.stream.next_in = self.piece.as_ptr().cast_mut();
        self.stream.avail_in = uInt::try_from(self.piece.len())?;
        self.stream.next_out = out.as_mut_ptr();
        self.stream.avail_out = uInt::try_from(out.len())?;
        // SAFETY: input, which zlib only reads, and output are as long as it is told, and the stream is where it was initialized.
        let code = unsafe { inflate(&mut *self.stream, Z_NO_FLUSH) };
        self.piece = &self.piece[self.piece.len() - self.stream.avail_in as usize..];
        let done = out.len() - self.stream.avail_out as usize;
        match code {
            Z_OK => {}
            Z_STREAM_END => self.ended = true,
            _ => {
                // SAFETY: null, or one of zlib's own texts, which are always there.
                let said = unsafe { self.stream.msg.as_ref().map(|text| CStr::from_ptr(text)) };
                let said = said.map_or(format!("code {code}"), |text| text.to_string_lossy().into_owned());
                bail!("the png's pixels cannot be inflated by TensorFlow ({said}); the file is damaged, save it anew");
            }
        }
        Ok(done)
    }
}

impl<I> Drop for Inflate<'_, I> {
    fn drop(&mut self) {
        // SAFETY: it was initialized, and is not used again.
        unsafe { inflateEnd(&mut *self.stream) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(kind: &[u8], body: &[u8]) -> Vec<u8> {
        let mut crc = flate2::Crc::new();
        crc.update(kind);
        crc.update(body);
        [&(body.len() as u32).to_be_bytes(), kind, body, &crc.sum().to_be_bytes()].concat()
    }

    /// Grey, 16 bits.
    fn png(width: u32, height: u32, interlace: u8, pixels: &[u8]) -> Vec<u8> {
        let header = [&width.to_be_bytes()[..], &height.to_be_bytes(), &[16, 0, 0, 0, interlace]].concat();
        let chunks = [chunk(b"IHDR", &header), chunk(b"IDAT", pixels), chunk(b"IEND", b"")].concat();
        [b"\x89PNG\r\n\x1a\n", &chunks[..]].concat()
    }

    /// Compressed, with the window that its first byte gives.
    fn compressed(bytes: &[u8], window_bits: u8) -> Vec<u8> {
        use std::io::Write;
        let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::best());
        encoder.write_all(bytes).unwrap();
        let mut stream = encoder.finish().unwrap();
        stream[0] = (window_bits - 8) << 4 | 8;
        // Such that both bytes as a number are a multiple of 31.
        stream[1] = 31 - (u16::from(stream[0]) * 256 % 31) as u8;
        stream
    }

    /// Rows of bytes that never come again, but for the last row, which is the first.
    fn rows(length: usize, count: usize) -> Vec<u8> {
        let mut state = 1u32;
        let mut rows: Vec<u8> = (0..length * count)
            .map(|at| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                if at % length == 0 { 0 } else { (state >> 24) as u8 }
            })
            .collect();
        rows.copy_within(..length, length * (count - 1));
        rows
    }

    #[test]
    fn distances_that_the_window_does_not_reach_are_refused() {
        let pixels = rows(201, 30);
        for (window_bits, right) in [(15, true), (13, true), (12, false), (8, false)] {
            let checked = check_pixels(&png(100, 30, 0, &compressed(&pixels, window_bits)));
            match checked {
                Ok(()) => assert!(right, "{window_bits}"),
                Err(error) => assert!(!right && error.to_string().contains("too far back"), "{window_bits}: {error}"),
            }
        }
    }

    #[test]
    fn interlaced_rows_are_those_of_seven_passes() {
        let whole = |width, height| row_lengths(&png(width, height, 1, &[])).unwrap();
        assert_eq!(whole(1, 1), [3]);
        // By hand: passes 1, 4 and 6 have columns of a picture of two, pass 7 both.
        assert_eq!(whole(2, 2), [3, 3, 5]);
        assert_eq!(whole(9, 9).len(), 2 + 2 + 1 + 3 + 2 + 5 + 4);
        let pixels: Vec<u8> = whole(9, 9).iter().flat_map(|&length| vec![0; length]).collect();
        assert!(check_pixels(&png(9, 9, 1, &compressed(&pixels, 15))).is_ok());
        let error = check_pixels(&png(9, 9, 1, &compressed(&pixels[1..], 15))).unwrap_err().to_string();
        assert!(error.contains("fewer pixels"), "{error}");
    }

    #[test]
    fn the_stream_ends_with_its_checksum() {
        let stream = compressed(&rows(201, 30), 15);
        let mut wrong = stream.clone();
        *wrong.last_mut().unwrap() ^= 1;
        for (stream, part) in
            [(&wrong[..], "incorrect data check"), (&stream[..stream.len() - 4], "end early"), (&[], "end early")]
        {
            let error = check_pixels(&png(100, 30, 0, stream)).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
        // TensorFlow reads this one: the checksum is in a chunk of its own.
        let (pixels, checksum) = wrong.split_at(wrong.len() - 4);
        let whole = png(100, 30, 0, pixels);
        let at = whole.len() - chunk(b"IEND", b"").len();
        assert!(check_pixels(&whole).is_err());
        assert!(check_pixels(&[&whole[..at], &chunk(b"IDAT", checksum), &whole[at..]].concat()).is_ok());
    }
}
