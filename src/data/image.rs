//! Pictures: telling their format by their bytes, and decoding them to RGB as TensorFlow's `decode_image` does.

use std::io::Cursor;
use std::panic::{AssertUnwindSafe, catch_unwind};

use anyhow::{Context, Result, anyhow, bail};
use image::{DynamicImage, ImageError, ImageFormat, ImageReader, Limits};

use crate::data::jpeg::{self, Dct};
use crate::data::png;

/// Pixels in one picture that are still decoded: TensorFlow refuses 2^29 samples or more.
pub const MAX_PIXELS: u64 = (1 << 29) / 3;

/// What files of pictures that can be read end in, in lower case. What a file is, its bytes say.
pub const EXTENSIONS: [&str; 10] = ["jpg", "jpeg", "jpe", "jfif", "png", "apng", "bmp", "dib", "gif", "webp"];

/// What files of other pictures end in: they cannot be read, which is said rather than left unsaid.
pub const OTHER_EXTENSIONS: [&str; 27] = [
    "tif", "tiff", "heic", "heif", "avif", "jp2", "j2k", "jxl", "ico", "cur", "icns", "pbm", "pgm", "ppm", "pnm", "svg", "svgz",
    "tga", "wbmp", "xbm", "xpm", "pcx", "psd", "exr", "dng", "cr2", "nef",
];

/// A decoded picture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RgbImage {
    /// Pixels.
    pub width: usize,
    /// Pixels.
    pub height: usize,
    /// Red, green, blue of each pixel, row by row: `[height, width, 3]`.
    pub data: Vec<u8>,
}

impl RgbImage {
    /// Whether all its pixels are alike.
    pub fn has_one_colour(&self) -> bool {
        self.data.chunks_exact(3).all(|pixel| pixel == &self.data[..3])
    }
}

/// A picture file's format, as its first bytes say (never its name).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Format {
    /// JPEG.
    Jpeg,
    /// PNG.
    Png,
    /// GIF; only its first frame is ever used.
    Gif,
    /// Windows bitmap.
    Bmp,
    /// WebP, lossy or lossless.
    WebP,
}

impl Format {
    /// The name that `image/format` carries in a tf.Example: `jpeg`, `png`, `gif`, `bmp`, `webp`.
    pub fn name(self) -> &'static str {
        match self {
            Format::Jpeg => "jpeg",
            Format::Png => "png",
            Format::Gif => "gif",
            Format::Bmp => "bmp",
            Format::WebP => "webp",
        }
    }

    fn codec(self) -> ImageFormat {
        match self {
            Format::Jpeg => ImageFormat::Jpeg,
            Format::Png => ImageFormat::Png,
            Format::Gif => ImageFormat::Gif,
            Format::Bmp => ImageFormat::Bmp,
            Format::WebP => ImageFormat::WebP,
        }
    }
}

/// The format of a picture's bytes, or `None` if they are none that can be read.
pub fn sniff(bytes: &[u8]) -> Option<Format> {
    match bytes {
        [0xFF, 0xD8, 0xFF, ..] => Some(Format::Jpeg),
        [0x89, b'P', b'N', b'G', b'\r', b'\n', 0x1A, b'\n', ..] => Some(Format::Png),
        [b'G', b'I', b'F', b'8', ..] => Some(Format::Gif),
        [b'B', b'M', ..] => Some(Format::Bmp),
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => Some(Format::WebP),
        _ => None,
    }
}

fn known(bytes: &[u8]) -> Result<Format> {
    if bytes.is_empty() {
        bail!("the picture is empty (0 bytes)");
    }
    sniff(bytes).ok_or_else(|| {
        let start: Vec<String> = bytes.iter().take(8).map(|b| format!("{b:02X}")).collect();
        anyhow!("not a picture that can be read: it begins with {}; JPEG, PNG, GIF, BMP and WebP can", start.join(" "))
    })
}

/// Width and height in pixels, from the header alone.
///
/// # Errors
/// If the bytes are no picture, or its header is damaged or gives a side as 0.
pub fn size(bytes: &[u8]) -> Result<(usize, usize)> {
    let format = known(bytes)?;
    let (width, height) = match format {
        Format::Jpeg => jpeg::header(bytes).map(|h| (h.width, h.height))?,
        Format::Png => png::size(bytes)?,
        other => {
            let reader = ImageReader::with_format(Cursor::new(bytes), other.codec());
            let dimensions = catch_panics(|| reader.into_dimensions().map_err(plainly));
            let (width, height) = dimensions.with_context(|| format!("the {}'s header cannot be read", other.name()))?;
            (width as usize, height as usize)
        }
    };
    if width == 0 || height == 0 {
        bail!("the {}'s header gives its size as {width} x {height}; the file is damaged, copy it again", format.name());
    }
    Ok((width, height))
}

/// Checks the file's own framing from its header to its end, without decoding: finds truncated files.
///
/// JPEG: every marker up to end-of-image; PNG: every chunk up to IEND; GIF: its trailer; BMP: the end of its rows, where
/// their length is known, or else that of the header, which WebP goes by too.
///
/// # Errors
/// If the bytes are no picture, or stop before the end that their framing promises.
pub fn check_structure(bytes: &[u8]) -> Result<()> {
    let format = known(bytes)?;
    size(bytes)?;
    match format {
        Format::Jpeg => jpeg::check_structure(bytes),
        Format::Png => png::check_structure(bytes),
        Format::Gif => gif_blocks_to_the_end(bytes),
        Format::Bmp => {
            // Some writers give 0 as the length, or too much.
            let said = bmp_pixels_end(bytes).unwrap_or_else(|| bytes.get(2..6).map_or(0, le32) as usize);
            if said > bytes.len() {
                bail!("the bmp has {} bytes where its header promises {said}; the file is truncated, copy it again", bytes.len());
            }
            Ok(())
        }
        Format::WebP => {
            let said = bytes.get(4..8).map_or(0, le32) as usize + 8;
            if said > bytes.len() {
                bail!(
                    "the webp has {} bytes where its header promises {said}; the file is truncated, copy it again",
                    bytes.len()
                );
            }
            Ok(())
        }
    }
}

/// Where the rows of a BMP end that is not compressed; its header's own length may be anything.
fn bmp_pixels_end(bytes: &[u8]) -> Option<usize> {
    let number = |at: usize, length: usize| bytes.get(at..at + length).map(le32);
    let (width, height, bits, compression) = match number(14, 4)? {
        12 => (number(18, 2)?, number(20, 2)?, number(24, 2)?, 0),
        // A height below 0 says that the first row is the top one.
        _ => (number(18, 4)?, (number(22, 4)? as i32).unsigned_abs(), number(28, 2)?, number(30, 4)?),
    };
    // None, and masks of a pixel's colours.
    if !matches!(compression, 0 | 3) {
        return None;
    }
    let row = (u64::from(width) * u64::from(bits)).div_ceil(32) * 4;
    let end = row.saturating_mul(height.into()).saturating_add(number(10, 4)?.into());
    usize::try_from(end).ok()
}

fn le32(bytes: &[u8]) -> u32 {
    bytes.iter().rev().fold(0, |sum, &b| sum << 8 | u32::from(b))
}

fn gif_blocks_to_the_end(bytes: &[u8]) -> Result<()> {
    let truncated = || anyhow!("the gif's {} bytes end without its trailer; the file is truncated, copy it again", bytes.len());
    let byte = |at: usize| bytes.get(at).copied().map(usize::from).ok_or_else(truncated);
    // A colour table of 2^(n+1) entries follows a descriptor whose flags have the top bit set.
    let table = |flags: usize| if flags & 0x80 != 0 { 3 << ((flags & 7) + 1) } else { 0 };
    let mut at = 13 + table(byte(10)?);
    loop {
        at = match byte(at)? {
            0x3B => return Ok(()),
            0x21 => at + 2,
            // Descriptor of 10 bytes, table, one byte of code size.
            0x2C => at + 10 + table(byte(at + 9)?) + 1,
            other => bail!("the gif has a block of unknown kind {other:#04x} at byte {at}; the file is damaged, copy it again"),
        };
        loop {
            let length = byte(at)?;
            at += 1 + length;
            if length == 0 {
                break;
            }
        }
    }
}

/// Decodes a picture to RGB, with the very bytes that TensorFlow's `decode_image(channels=3)` gives for JPEG and PNG:
/// grey is repeated, CMYK converted, alpha dropped without blending, 16 bits cut to their upper 8. GIF: the first frame.
///
/// # Errors
/// If the bytes are no picture, or one that is damaged, truncated or too large, or a JPEG of a kind that cannot be read
/// (12 bits a sample, lossless, hierarchical). Never panics, whatever the bytes.
pub fn decode(bytes: &[u8]) -> Result<RgbImage> {
    decode_with(bytes, Dct::Fast)
}

/// [`decode`] with libjpeg's accurate inverse DCT, as Pillow decodes; for comparison with data made that way.
///
/// # Errors
/// As [`decode`].
pub fn decode_accurate(bytes: &[u8]) -> Result<RgbImage> {
    decode_with(bytes, Dct::Accurate)
}

fn decode_with(bytes: &[u8], dct: Dct) -> Result<RgbImage> {
    let format = known(bytes)?;
    let (width, height) = size(bytes)?;
    if width as u64 * height as u64 > MAX_PIXELS {
        bail!(
            "the {} is {width} x {height} pixels, more than the {MAX_PIXELS} that can be decoded; make it smaller",
            format.name()
        );
    }
    if format == Format::Jpeg {
        let (width, height, data) = jpeg::decode(bytes, dct)?;
        return Ok(RgbImage { width, height, data });
    }
    if format == Format::Png {
        // The decoder stops after the last pixel; libpng, and so TensorFlow, reads on to the end.
        png::check_structure(bytes)?;
    }
    let picture = catch_panics(|| {
        let mut reader = ImageReader::with_format(Cursor::new(bytes), format.codec());
        let mut limits = Limits::default();
        // 16 bits and alpha make up to 8 bytes of a pixel, and decoders keep a second copy.
        limits.max_alloc = Some(16 * MAX_PIXELS);
        reader.limits(limits);
        reader.decode().map_err(plainly)
    });
    let picture = picture.with_context(|| format!("the {} cannot be decoded, copy it again or save it anew", format.name()))?;
    let (width, height) = (picture.width() as usize, picture.height() as usize);
    Ok(RgbImage { width, height, data: rgb_of(picture) })
}

/// A codec's error without what it says of its cause in its own words, where that is its cause's very words.
fn plainly(error: ImageError) -> anyhow::Error {
    match std::error::Error::source(&error).map(ToString::to_string) {
        // The png crate tells of a chunk by the fields of its own type.
        Some(cause) if error.to_string().contains(&cause) => {
            anyhow!(cause.split(" while decoding ChunkType").next().unwrap_or_default().to_string())
        }
        _ => anyhow!(error),
    }
}

/// Runs a decoder that should not panic on damaged data, and makes an error of it if it does.
fn catch_panics<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| bail!("the decoder gave up on damaged data"))
}

/// The colours of a decoded picture, by libpng's rules: alpha stripped, the lower 8 of 16 bits stripped.
fn rgb_of(picture: DynamicImage) -> Vec<u8> {
    /// Of `channels` samples a pixel, 1 or 2 are grey (and alpha), 3 or 4 are colours (and alpha).
    fn pixels<T: Copy>(samples: &[T], channels: usize, byte: impl Fn(T) -> u8) -> Vec<u8> {
        let mut out = Vec::with_capacity(samples.len() / channels * 3);
        for pixel in samples.chunks_exact(channels) {
            match *pixel {
                [r, g, b, ..] => out.extend([byte(r), byte(g), byte(b)]),
                [grey, ..] => out.extend([byte(grey); 3]),
                [] => {}
            }
        }
        out
    }
    let upper = |sample: u16| (sample >> 8) as u8;
    match picture {
        DynamicImage::ImageRgb8(p) => p.into_raw(),
        DynamicImage::ImageRgba8(p) => pixels(&p, 4, |v| v),
        DynamicImage::ImageLuma8(p) => pixels(&p, 1, |v| v),
        DynamicImage::ImageLumaA8(p) => pixels(&p, 2, |v| v),
        DynamicImage::ImageRgb16(p) => pixels(&p, 3, upper),
        DynamicImage::ImageRgba16(p) => pixels(&p, 4, upper),
        DynamicImage::ImageLuma16(p) => pixels(&p, 1, upper),
        DynamicImage::ImageLumaA16(p) => pixels(&p, 2, upper),
        other => other.into_rgb8().into_raw(),
    }
}
