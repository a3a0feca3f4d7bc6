//! JPEG: headers, a check that the markers reach the end, and decoding to the very bytes that TensorFlow decodes.
//!
//! TensorFlow decodes with libjpeg-turbo, the INTEGER_FAST inverse DCT and fancy upsampling
//! (`tensorflow/core/lib/jpeg/jpeg_mem.cc`); other decoders and other DCTs differ by several levels in most pixels.
//! One difference is left: where neighbouring pixels alternate between black and white, TensorFlow's vector code can
//! overflow its 16 bits and give white for black; here such pixels come out right.

use std::cell::Cell;
use std::io::{BufRead, Read};
use std::panic::{AssertUnwindSafe, catch_unwind};

use anyhow::{Result, anyhow, bail, ensure};
use memchr::memchr;
use mozjpeg::{ColorSpace, DctMethod, Decompress, Marker};

use super::libjpeg_errors;

/// Which inverse DCT to decode with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dct {
    /// libjpeg's fast integer DCT: TensorFlow's default.
    Fast,
    /// libjpeg's accurate integer DCT: what Pillow and most programs use.
    Accurate,
}

/// What the frame header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Pixels.
    pub width: usize,
    /// Pixels.
    pub height: usize,
    /// Bits a sample: 8, or 12 in medical and scientific files.
    pub precision: u8,
    /// 1 (grey), 3 (colour) or 4 (CMYK, YCCK).
    pub components: u8,
    /// Whether an Adobe APP14 marker stands before the frame: it says that CMYK is stored inverted.
    pub adobe: bool,
    /// The frame marker's low byte: 0xC0 baseline, 0xC1 extended, 0xC2 progressive, others are rare processes.
    pub process: u8,
}

impl Header {
    /// Whether TensorFlow, too, decodes the coding process: baseline, extended or progressive, with Huffman or arithmetic coding.
    pub fn is_decodable(&self) -> bool {
        matches!(self.process, 0xC0..=0xC2) || self.is_arithmetic()
    }

    fn is_arithmetic(&self) -> bool {
        matches!(self.process, 0xC9 | 0xCA)
    }

    /// 8 x 8 blocks of the picture that a bit of the file can stand for at most. Huffman coding gives a block one bit or more, and the finest
    /// component has at least a quarter of the blocks that the picture would have at full size. Arithmetic coding spends next to nothing where all
    /// is flat, but a file's headers alone then allow for any picture that there is.
    fn blocks_a_bit(&self) -> usize {
        if self.is_arithmetic() { 4096 } else { 4 }
    }
}

/// Rows decoded at a time.
const STRIP: usize = 64;

const SOI: u8 = 0xD8;
const EOI: u8 = 0xD9;
const SOS: u8 = 0xDA;
const APP14: u8 = 0xEE;

/// The next marker at or after `at` (which should stand on 0xFF): its low byte and the position after it.
fn next_marker(bytes: &[u8], at: usize) -> Option<(u8, usize)> {
    let mut at = at + memchr(0xFF, bytes.get(at..)?)?;
    // Any number of fill bytes 0xFF may stand before the marker's own byte.
    loop {
        match bytes.get(at + 1)? {
            0xFF => at += 1,
            0x00 => at += 2 + memchr(0xFF, bytes.get(at + 2..)?)?,
            &code => return Some((code, at + 2)),
        }
    }
}

/// The body of the segment whose length field stands at `at`, and the position after it.
fn segment(bytes: &[u8], at: usize) -> Result<(&[u8], usize)> {
    let truncated = || anyhow!("the JPEG ends inside a header segment at byte {at}; the file is truncated, copy it again");
    let length = bytes.get(at..at + 2).ok_or_else(truncated)?;
    let length = usize::from(u16::from_be_bytes([length[0], length[1]]));
    if length < 2 {
        bail!("the JPEG's segment at byte {at} gives its length as {length}; the file is damaged, copy it again");
    }
    let body = bytes.get(at + 2..at + length).ok_or_else(truncated)?;
    Ok((body, at + length))
}

/// Whether a marker stands alone, without a length and a body (TEM, RST0..7, SOI).
fn stands_alone(code: u8) -> bool {
    code == 0x01 || (0xD0..=SOI).contains(&code)
}

/// Reads the frame header, no pixel.
///
/// # Errors
/// If the bytes are no JPEG, or end or go wrong before the frame header.
pub fn header(bytes: &[u8]) -> Result<Header> {
    if !bytes.starts_with(&[0xFF, SOI]) {
        bail!("not a JPEG: it does not begin with FF D8");
    }
    let mut at = 2;
    let mut adobe = false;
    loop {
        let Some((code, after)) = next_marker(bytes, at) else {
            bail!("the JPEG ends before its frame header; the file is truncated, copy it again");
        };
        if stands_alone(code) {
            at = after;
            continue;
        }
        if code == EOI || code == SOS {
            bail!(
                "the JPEG has no frame header before its {}; the file is damaged, copy it again",
                if code == EOI { "end" } else { "scan" }
            );
        }
        let (body, next) = segment(bytes, after)?;
        at = next;
        match code {
            APP14 => adobe |= body.len() >= 12 && body.starts_with(b"Adobe"),
            // 0xC4, 0xC8 and 0xCC in this range are tables and an extension, not frames.
            0xC0..=0xCF if !matches!(code, 0xC4 | 0xC8 | 0xCC) => {
                let &[precision, h1, h0, w1, w0, components, ..] = body else {
                    bail!("the JPEG's frame header has only {} bytes; the file is damaged, copy it again", body.len());
                };
                return Ok(Header {
                    width: usize::from(u16::from_be_bytes([w1, w0])),
                    height: usize::from(u16::from_be_bytes([h1, h0])),
                    precision,
                    components,
                    adobe,
                    process: code,
                });
            }
            _ => {}
        }
    }
}

/// Walks every marker from the first to the end-of-image marker; finds truncation without decoding.
///
/// # Errors
/// If the bytes end, or a segment's length leads outside, before the end-of-image marker, or there is no scan.
pub fn check_structure(bytes: &[u8]) -> Result<()> {
    if !bytes.starts_with(&[0xFF, SOI]) {
        bail!("not a JPEG: it does not begin with FF D8");
    }
    let mut at = 2;
    let mut scans = 0;
    loop {
        let Some((code, after)) = next_marker(bytes, at) else {
            bail!("the JPEG's {} bytes end without an end-of-image marker; the file is truncated, copy it again", bytes.len());
        };
        at = after;
        match code {
            EOI if scans == 0 => bail!("the JPEG ends without a scan: it holds no picture, copy the file again"),
            EOI => return Ok(()),
            code if stands_alone(code) => {}
            code => {
                // A scan's entropy-coded bytes follow its header; `next_marker` passes over their stuffed FF 00.
                at = segment(bytes, after)?.1;
                scans += usize::from(code == SOS);
            }
        }
    }
}

/// A picture's bytes, noting whether libjpeg asked for more than there are.
///
/// The `mozjpeg` crate answers such a request with an end-of-image marker of its own, as libjpeg's file source does, so
/// a truncated picture would decode with a grey rest. TensorFlow refuses it.
struct Source<'a> {
    bytes: &'a [u8],
    exhausted: &'a Cell<bool>,
}

impl Read for Source<'_> {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        self.bytes.read(into)
    }
}

impl BufRead for Source<'_> {
    fn fill_buf(&mut self) -> std::io::Result<&[u8]> {
        if self.bytes.is_empty() {
            self.exhausted.set(true);
        }
        Ok(self.bytes)
    }

    fn consume(&mut self, count: usize) {
        self.bytes = &self.bytes[count..];
    }
}

/// Makes sure that a JPEG is of a kind that TensorFlow decodes.
///
/// # Errors
/// If it is not, with what to do.
pub fn check_kind(header: &Header) -> Result<()> {
    ensure!(
        header.precision == 8,
        "the JPEG has {} bits a sample and only 8 can be used; convert it to an 8-bit JPEG or PNG",
        header.precision
    );
    ensure!(
        header.is_decodable(),
        "the JPEG is of a rare kind (SOF{}: lossless or hierarchical) that cannot be used; convert it to a baseline JPEG",
        header.process - 0xC0
    );
    ensure!(
        matches!(header.components, 1 | 3 | 4),
        "the JPEG has {} channels and only 1, 3 or 4 can be used; convert it to RGB",
        header.components
    );
    Ok(())
}

/// Decodes to RGB: `(width, height, [height, width, 3])`, as TensorFlow's `decode_jpeg(channels=3)` does.
///
/// # Errors
/// If the header is damaged, the picture is of a kind that cannot be read (12 bits, lossless, hierarchical), the
/// data end before the picture does, or libjpeg gives up. Damage inside the data that libjpeg can skip is not an error,
/// as in TensorFlow; [`loss`] tells of it.
pub fn decode(bytes: &[u8], dct: Dct) -> Result<(usize, usize, Vec<u8>)> {
    libjpeg_errors::take_loss();
    let header = header(bytes)?;
    check_kind(&header)?;
    // A damaged header would only cost memory and time, at more blocks than the data can stand for.
    if header.width.div_ceil(8) * header.height.div_ceil(8) / header.blocks_a_bit() > bytes.len() * 8 {
        bail!(
            "the JPEG's {} bytes cannot hold its {} x {} pixels; the file is truncated or its header damaged, copy it again",
            bytes.len(),
            header.width,
            header.height
        );
    }
    let exhausted = Cell::new(false);
    // libjpeg's errors arrive by unwinding (`resume_unwind`, so no panic hook runs and nothing is printed).
    let outcome = catch_unwind(AssertUnwindSafe(|| decode_with_libjpeg(bytes, &header, dct, &exhausted)));
    match outcome {
        Ok(result) => result,
        Err(payload) => {
            let said = (payload.downcast_ref::<String>().map(String::as_str))
                .or_else(|| payload.downcast_ref::<&str>().copied())
                .unwrap_or("no reason given");
            Err(anyhow!("{said}").context("the JPEG cannot be decoded, copy it again or save it anew"))
        }
    }
}

/// What libjpeg skipped of the picture that this thread [`decode`]d last, in its words: some of its pixels are grey or others' then.
pub fn loss() -> Option<String> {
    libjpeg_errors::take_loss()
}

fn decode_with_libjpeg(bytes: &[u8], header: &Header, dct: Dct, exhausted: &Cell<bool>) -> Result<(usize, usize, Vec<u8>)> {
    let truncated = |exhausted: &Cell<bool>| {
        if exhausted.get() {
            bail!("the JPEG's {} bytes end before the picture does; the file is truncated, copy it again", bytes.len());
        }
        Ok(())
    };
    let source = Source { bytes, exhausted };
    let mut decompress =
        match Decompress::builder().with_err(libjpeg_errors::manager()).with_markers(&[Marker::APP(14)]).from_reader(source) {
            Ok(decompress) => decompress,
            Err(error) => {
                truncated(exhausted)?;
                return Err(anyhow!(error).context("the JPEG's headers cannot be read, copy it again or save it anew"));
            }
        };
    decompress.dct_method(match dct {
        Dct::Fast => DctMethod::IntegerFast,
        Dct::Accurate => DctMethod::IntegerSlow,
    });
    decompress.do_fancy_upsampling(true);
    let (width, height) = decompress.size();
    let inks = matches!(decompress.color_space(), ColorSpace::JCS_CMYK | ColorSpace::JCS_YCCK);
    let mut started = decompress.to_colorspace(if inks { ColorSpace::JCS_CMYK } else { ColorSpace::JCS_RGB })?;
    truncated(exhausted)?;
    if (started.width(), started.height()) != (width, height) || (width, height) != (header.width, header.height) {
        bail!("the JPEG gives its size in two ways; the file is damaged, copy it again");
    }
    let row = width * if inks { 4 } else { 3 };
    let mut samples = vec![0; row * height];
    // In strips, so that a truncated picture ends where its data do, not after a long grey rest.
    for strip in samples.chunks_mut(row * STRIP) {
        started.read_scanlines_into(strip)?;
        truncated(exhausted)?;
    }
    // Reads on to the end-of-image marker: what libjpeg cannot pass over there TensorFlow refuses.
    started.finish()?;
    Ok((width, height, if inks { rgb_of_cmyk(&samples, header.adobe) } else { samples }))
}

/// CMYK to RGB with TensorFlow's integer rule; `inverted` as Adobe stores it (255 is no ink).
fn rgb_of_cmyk(samples: &[u8], inverted: bool) -> Vec<u8> {
    let light = |ink: u8| u32::from(if inverted { ink } else { 255 - ink });
    let mut out = Vec::with_capacity(samples.len() / 4 * 3);
    for &[c, m, y, k] in samples.as_chunks::<4>().0 {
        for ink in [c, m, y] {
            // At most 255 * 255 / 255.
            out.push((light(k) * light(ink) / 255) as u8);
        }
    }
    out
}
