//! One picture file read once: what it is, whether it is whole, and its checksums.

use std::fs::File;
use std::io::{Cursor, Read};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest, Sha256};

use crate::data::encode::{encode, format_of};
use crate::data::image::{self, Format};
use crate::data::{jpeg, png};

/// How far a picture is looked into.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Depth {
    /// Decode every pixel: finds all that would fail in training.
    Decode,
    /// Read headers, and follow markers and chunks to the end of the file: finds truncation, at about the disk's speed.
    Structure,
}

/// Larger files are no photographs, and a record has to fit in memory several times over.
const LARGEST_FILE: u64 = 512 << 20;
/// libpng, and so TensorFlow, refuses longer sides; other formats' sides are shorter or are stored as PNG.
const LONGEST_SIDE: usize = 1_000_000;

/// What a picture's bytes say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Looked {
    /// By its bytes, whatever its name.
    pub format: Format,
    /// In pixels, as stored.
    pub width: u32,
    /// In pixels, as stored.
    pub height: u32,
    /// EXIF's orientation: 1 is upright, 2 to 8 are mirrored or turned, of which 5 to 8 swap width and height.
    pub orientation: u8,
    /// Of the file.
    pub bytes: u64,
    /// Of the file; also tells whether it changed before it was written.
    pub sha256: [u8; 32],
    /// What the decoder could not make out of a JPEG and guessed, in libjpeg's words; only where it was decoded.
    pub loss: Option<String>,
}

#[cfg(test)]
impl Looked {
    /// An upright JPEG of one byte.
    pub fn jpeg(width: u32, height: u32) -> Self {
        Self { format: Format::Jpeg, width, height, orientation: 1, bytes: 1, sha256: [0; 32], loss: None }
    }
}

/// Reads a whole file into `buffer`, which is kept from file to file.
///
/// # Errors
/// If it cannot be read, is empty, or is too large.
pub fn read(path: &Path, buffer: &mut Vec<u8>) -> Result<()> {
    let mut file = File::open(path).context("the picture cannot be opened")?;
    let length = file.metadata().context("the picture cannot be read")?.len();
    ensure!(length <= LARGEST_FILE, "the picture file has {length} bytes, more than the {LARGEST_FILE} that are allowed");
    buffer.clear();
    // A little more than there is, or the end is felt for with a call of its own.
    buffer.reserve(length as usize + 64);
    file.by_ref().take(length).read_to_end(buffer).context("the picture cannot be read")?;
    ensure!(!buffer.is_empty(), "the picture file is empty (0 bytes); put the picture there again");
    Ok(())
}

/// Checks a picture's bytes.
///
/// # Errors
/// If they are no picture that can be used, with what to do.
pub fn look(bytes: &[u8], depth: Depth) -> Result<Looked> {
    let Some(format) = image::sniff(bytes) else {
        bail!("{}", foreign(bytes));
    };
    let (width, height) = image::size(bytes)?;
    ensure!(
        width as u64 * (height as u64) <= image::MAX_PIXELS,
        "the picture has {width} x {height} pixels, more than TensorFlow decodes; make it smaller"
    );
    ensure!(
        width.max(height) <= LONGEST_SIDE,
        "the picture is {width} x {height}, longer than the {LONGEST_SIDE} pixels of a side that TensorFlow decodes; cut it into pieces"
    );
    if format == Format::Jpeg {
        jpeg::check_kind(&jpeg::header(bytes)?)?;
    }
    image::check_structure(bytes)?;
    // What is stored as PNG has to be decoded anyway; better to know now that it can be.
    let mut loss = None;
    if depth == Depth::Decode || !stored_as_is(format) {
        image::decode(bytes)?;
        loss = (format == Format::Jpeg).then(jpeg::loss).flatten();
    }
    if depth == Depth::Decode && format == Format::Png {
        png::check_pixels(bytes)?;
    }
    Ok(Looked {
        format,
        width: u32::try_from(width)?,
        height: u32::try_from(height)?,
        orientation: orientation(bytes, format),
        bytes: bytes.len() as u64,
        sha256: sha256(bytes),
        loss,
    })
}

/// The SHA-256 of `bytes`: most of the work of a structural check.
pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

/// Whether a picture's bytes go into the record untouched; others are stored as PNG.
pub fn stored_as_is(format: Format) -> bool {
    matches!(format, Format::Jpeg | Format::Png)
}

/// The picture (of an animation: its first frame) as PNG. The same picture always gives the same bytes.
///
/// # Errors
/// If it does not decode.
pub fn as_png(bytes: &[u8]) -> Result<Vec<u8>> {
    encode(&image::decode(bytes)?, Format::Png)
}

/// How a format is written in messages.
pub fn format_name(format: Format) -> &'static str {
    match format {
        Format::Jpeg => "JPEG",
        Format::Png => "PNG",
        Format::Gif => "GIF",
        Format::Bmp => "BMP",
        Format::WebP => "WebP",
    }
}

/// What a file's extension promises in place of `format`, if it promises a kind of picture.
pub fn promised_instead(path: &Path, format: Format) -> Option<String> {
    if let Some(promised) = format_of(path) {
        return (promised != format).then(|| format_name(promised).to_string());
    }
    let extension = path.extension()?.to_str()?.to_ascii_lowercase();
    image::OTHER_EXTENSIONS.contains(&extension.as_str()).then(|| extension.to_ascii_uppercase())
}

/// EXIF's orientation; 1 if there is none or it makes no sense.
pub fn orientation(bytes: &[u8], format: Format) -> u8 {
    let read = match format {
        Format::Jpeg => match exif_segment(bytes) {
            Some(segment) => exif::Reader::new().read_raw(segment.to_vec()),
            None => return 1,
        },
        Format::Png | Format::WebP => exif::Reader::new().read_from_container(&mut Cursor::new(bytes)),
        Format::Gif | Format::Bmp => return 1,
    };
    let field = read
        .ok()
        .and_then(|exif| exif.get_field(exif::Tag::Orientation, exif::In::PRIMARY).and_then(|field| field.value.get_uint(0)));
    field.filter(|value| (1..=8).contains(value)).map_or(1, |value| value as u8)
}

/// The TIFF structure in a JPEG's APP1 segment, which stands before the first scan.
fn exif_segment(bytes: &[u8]) -> Option<&[u8]> {
    const APP1: u8 = 0xe1;
    const SCAN: u8 = 0xda;
    let mut at = 2;
    loop {
        // Any number of fill bytes may stand before a marker's own.
        while bytes.get(at..at + 2)? == [0xff, 0xff] {
            at += 1;
        }
        let &[0xff, marker, high, low] = bytes.get(at..at + 4)? else { return None };
        let body = bytes.get(at + 4..at + 2 + usize::from(u16::from_be_bytes([high, low])))?;
        match marker {
            APP1 if body.starts_with(b"Exif\0") => return body.get(6..),
            SCAN => return None,
            _ => at += 4 + body.len(),
        }
    }
}

/// Whether bytes are a TGA picture, which has no mark at its start: by the mark that newer ones end in, else by a header whose every
/// field makes sense.
fn is_tga(bytes: &[u8]) -> bool {
    let Some(&[_, has_map, kind, m0, m1, n0, n1, map_bits, _, _, _, _, w0, w1, h0, h1, bits, _]) = bytes.first_chunk::<18>()
    else {
        return false;
    };
    let map = match has_map {
        0 => [m0, m1, n0, n1, map_bits] == [0; 5] && !matches!(kind, 1 | 9),
        1 => [n0, n1] != [0, 0] && matches!(map_bits, 15 | 16 | 24 | 32),
        _ => false,
    };
    let header = map && matches!(kind, 1..=3 | 9..=11) && matches!(bits, 8 | 15 | 16 | 24 | 32);
    header && [w0, w1] != [0, 0] && [h0, h1] != [0, 0] || bytes.ends_with(b"TRUEVISION-XFILE.\0")
}

/// What bytes that are no usable picture seem to be, and what to do.
fn foreign(bytes: &[u8]) -> String {
    let at = |offset: usize, mark: &[u8]| bytes.get(offset..).is_some_and(|rest| rest.starts_with(mark));
    let text = bytes.trim_ascii_start();
    let picture = match () {
        () if at(0, b"II*\0") || at(0, b"MM\0*") => "a TIFF picture (or a camera's raw file)",
        () if [&b"ftyphei"[..], b"ftyphev", b"ftypmif1", b"ftypmsf1"].iter().any(|mark| at(4, mark)) => "a HEIC picture",
        () if at(4, b"ftypavif") => "an AVIF picture",
        () if at(0, b"\0\0\0\x0cjP  ") || at(0, b"\xff\x4f\xff\x51") => "a JPEG 2000 picture",
        () if at(0, b"\xff\x0a") || at(0, b"\0\0\0\x0cJXL ") => "a JPEG XL picture",
        () if at(0, b"8BPS") => "a Photoshop picture",
        () if bytes.len() > 2 && bytes[0] == b'P' && matches!(bytes[1], b'1'..=b'7') && bytes[2].is_ascii_whitespace() => {
            "a PPM, PGM or PBM picture"
        }
        () if at(0, b"\0\0\x01\0") => "an icon",
        () if at(0, b"DDS ") => "a DDS picture",
        () if at(0, b"v/1\x01") || at(0, b"#?RADIANCE") => "an HDR picture",
        () if matches!(bytes, [0x0a, 0 | 2..=5, 0 | 1, 1 | 2 | 4 | 8, ..]) => "a PCX picture",
        () if is_tga(bytes) => "a TGA picture",
        () if text.starts_with(b"<svg") => "an SVG drawing",
        () => "",
    };
    if !picture.is_empty() {
        return format!("the bytes are {picture}, which cannot be used; convert it to JPEG or PNG");
    }
    let other = match () {
        () if at(0, b"version https://git-lfs") => {
            return "the file is a Git LFS pointer, not the picture; fetch the picture with `git lfs pull`".to_string();
        }
        () if at(4, b"ftyp") => "a video",
        () if at(0, b"%PDF") => "a PDF file",
        () if at(0, b"PK\x03\x04") => "a ZIP archive",
        () if text.starts_with(b"<") => "a web page or XML",
        () if bytes.iter().all(|&byte| byte == 0) => "all zero",
        () => "of no known kind",
    };
    format!("the bytes are {other}, not a picture; put the picture there again or remove it")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A PNG of `width` by `height` pixels.
    fn png(width: u32, height: u32) -> Vec<u8> {
        let mut bytes = Vec::new();
        let picture = ::image::RgbImage::from_fn(width, height, |x, y| ::image::Rgb([x as u8, y as u8, 7]));
        picture.write_to(&mut Cursor::new(&mut bytes), ::image::ImageFormat::Png).unwrap();
        bytes
    }

    fn in_format(format: ::image::ImageFormat) -> Vec<u8> {
        let mut bytes = Vec::new();
        let picture = ::image::RgbImage::from_fn(9, 5, |x, y| ::image::Rgb([(x * 20) as u8, (y * 20) as u8, 7]));
        picture.write_to(&mut Cursor::new(&mut bytes), format).unwrap();
        bytes
    }

    /// A JPEG with an EXIF segment that gives `orientation`.
    fn jpeg_turned(orientation: u8) -> Vec<u8> {
        let plain = in_format(::image::ImageFormat::Jpeg);
        let mut exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0".to_vec();
        exif.extend([orientation, 0, 0, 0, 0, 0, 0]);
        let mut bytes = vec![0xff, 0xd8, 0xff, 0xe1, 0, exif.len() as u8 + 2];
        bytes.extend(exif);
        bytes.extend(&plain[2..]);
        bytes
    }

    #[test]
    fn every_format_is_told_by_its_bytes_at_both_depths() {
        use ::image::ImageFormat as F;
        for (codec, format) in [
            (F::Jpeg, Format::Jpeg),
            (F::Png, Format::Png),
            (F::Gif, Format::Gif),
            (F::Bmp, Format::Bmp),
            (F::WebP, Format::WebP),
        ] {
            for depth in [Depth::Decode, Depth::Structure] {
                let looked = look(&in_format(codec), depth).unwrap();
                assert_eq!((looked.format, looked.width, looked.height, looked.orientation), (format, 9, 5, 1));
            }
        }
    }

    #[test]
    fn truncation_is_found_at_both_depths() {
        use ::image::ImageFormat as F;
        for codec in [F::Jpeg, F::Png, F::Gif, F::Bmp, F::WebP] {
            let bytes = in_format(codec);
            for depth in [Depth::Decode, Depth::Structure] {
                for end in [bytes.len() - 3, bytes.len() * 2 / 3, 20, 1] {
                    assert!(look(&bytes[..end], depth).is_err(), "{codec:?} cut at {end} of {}", bytes.len());
                }
            }
        }
    }

    #[test]
    fn the_hash_of_nothing_is_the_known_one() {
        // FIPS 180-2's empty message.
        assert_eq!(sha256(b"")[..4], [0xe3, 0xb0, 0xc4, 0x42]);
    }

    #[test]
    fn orientation_is_read_from_exif() {
        assert_eq!(look(&jpeg_turned(6), Depth::Decode).unwrap().orientation, 6);
        assert_eq!(look(&jpeg_turned(1), Depth::Structure).unwrap().orientation, 1);
        assert_eq!(look(&jpeg_turned(77), Depth::Structure).unwrap().orientation, 1);
    }

    #[test]
    fn twelve_bits_and_lossless_are_named() {
        let mut bytes = in_format(::image::ImageFormat::Jpeg);
        let frame = bytes.windows(2).position(|w| w == [0xff, 0xc0]).unwrap();
        bytes[frame + 4] = 12;
        let said = look(&bytes, Depth::Structure).unwrap_err().to_string();
        assert!(said.contains("12 bits"), "{said}");
        bytes[frame + 4] = 8;
        bytes[frame + 1] = 0xc3;
        let said = look(&bytes, Depth::Structure).unwrap_err().to_string();
        assert!(said.contains("SOF3"), "{said}");
    }

    #[test]
    fn a_name_that_promises_another_kind_of_picture_is_told() {
        let promised = |name: &str| promised_instead(Path::new(name), Format::Jpeg);
        for (name, kind) in [("a.png", "PNG"), ("a.HEIC", "HEIC"), ("a.tif", "TIF"), ("a.dng", "DNG"), ("a.webp", "WebP")] {
            assert_eq!(promised(name).as_deref(), Some(kind));
        }
        for name in ["a.jpg", "a.JPEG", "a.jfif", "a", "a.mp4#t=1", ".png"] {
            assert_eq!(promised(name), None, "{name}");
        }
    }

    #[test]
    fn a_png_that_libpng_refuses_is_refused() {
        let good = png(40, 30);
        assert!(look(&good, Depth::Decode).is_ok());
        let at = good.windows(4).position(|w| w == b"IDAT").unwrap();
        let length = u32::from_be_bytes(good[at - 4..at].try_into().unwrap()) as usize;
        let chunk = |kind: &[u8], body: &[u8]| {
            let mut crc = flate2::Crc::new();
            crc.update(kind);
            crc.update(body);
            [&(body.len() as u32).to_be_bytes(), kind, body, &crc.sum().to_be_bytes()].concat()
        };
        let body = &good[at + 4..at + 4 + length];
        // One IDAT chunk: its body ends in the pixels' Adler-32, and the chunk's own CRC is right.
        let mut wrong = body.to_vec();
        *wrong.last_mut().unwrap() ^= 1;
        let wrong = [&good[..at - 4], &chunk(b"IDAT", &wrong), &good[at + 8 + length..]].concat();
        let said = format!("{:#}", look(&wrong, Depth::Decode).unwrap_err());
        assert!(said.contains("incorrect data check"), "{said}");
        let twice = [&good[..at - 4], &good[8..33], &good[at - 4..]].concat();
        assert!(look(&twice, Depth::Structure).unwrap_err().to_string().contains("second IHDR"));
        // The pixels in two chunks, which is right, and with something between them.
        let [first, second] = [&body[..20], &body[20..]].map(|part| chunk(b"IDAT", part));
        let (head, tail) = (&good[..at - 4], &good[at + 8 + length..]);
        assert!(look(&[head, &first, &second, tail].concat(), Depth::Decode).is_ok());
        let parted = [head, &first, &chunk(b"tEXt", b"a\0b"), &second, tail].concat();
        assert!(look(&parted, Depth::Structure).unwrap_err().to_string().contains("between its pixels"));
        let mut long = good.clone();
        long[16..24].copy_from_slice(&[0, 0x0f, 0x42, 0x41, 0, 0, 0, 1]);
        assert!(look(&long, Depth::Structure).unwrap_err().to_string().contains("1000001 x 1"));
    }

    #[test]
    fn pixels_that_libjpeg_guesses_are_told_though_the_file_ends_as_it_should() {
        let sample = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/images")).unwrap().map(|e| e.unwrap().path());
        let sample = sample.filter(|path| path.extension().is_some_and(|e| e == "jpg")).min().unwrap();
        let good = std::fs::read(sample).unwrap();
        assert_eq!(look(&good, Depth::Decode).unwrap().loss, None);
        // Cut, and closed again, as some tools do.
        let closed = [&good[..good.len() / 3], b"\xff\xd9"].concat();
        let loss = look(&closed, Depth::Decode).unwrap().loss.unwrap();
        assert!(loss.contains("premature end of data segment"), "{loss}");
        assert_eq!(look(&closed, Depth::Structure).unwrap().loss, None);
        // Stray bytes between the scan and the end cost no pixel.
        let stray = [&good[..good.len() - 2], b"\0\0\0\0\xff\xd9"].concat();
        assert_eq!(look(&stray, Depth::Decode).unwrap().loss, None);
        // Nothing of it sticks to the next picture.
        assert_eq!(look(&good, Depth::Decode).unwrap().loss, None);
    }

    #[test]
    fn other_files_are_named() {
        for (bytes, wanted) in [
            (&b"II*\0aaaa"[..], "TIFF"),
            (b"\0\0\x02\0\0\0\0\0\0\0\0\0\x3c\0\x28\0\x18\0", "TGA"),
            (b"\0\x01\x09\0\0\0\x01\x18\0\0\0\0\x3c\0\x28\0\x08\x20", "TGA"),
            (b"any header at all, then TRUEVISION-XFILE.\0", "TGA"),
            (b"\x0a\x05\x01\x08\0\0\0\0", "PCX"),
            (b"\0\0\0\x18ftypheic", "HEIC"),
            (b"\0\0\0\x18ftyphevc", "HEIC"),
            (b"P6\n2 1\n255\nabcdef", "PPM"),
            (b"<!DOCTYPE html>", "web page"),
            (b"\0\0\0\0\0\0\0\0", "zero"),
            (b"version https://git-lfs.github.com/spec/v1", "git lfs pull"),
            (b"hello", "not a picture"),
        ] {
            let said = look(bytes, Depth::Decode).unwrap_err().to_string();
            assert!(said.contains(wanted), "{said}");
        }
    }

    #[test]
    fn a_picture_of_more_pixels_than_tensorflow_decodes_is_refused_without_decoding_it() {
        let mut bytes = png(3, 3);
        bytes[16..24].copy_from_slice(&[0, 1, 0, 0, 0, 1, 0, 0]);
        let said = look(&bytes, Depth::Structure).unwrap_err().to_string();
        assert!(said.contains("65536 x 65536"), "{said}");
    }

    #[test]
    fn what_is_stored_as_png_keeps_its_pixels_and_is_the_same_each_time() {
        let bmp = in_format(::image::ImageFormat::Bmp);
        let png = as_png(&bmp).unwrap();
        assert_eq!(image::decode(&png).unwrap(), image::decode(&bmp).unwrap());
        assert_eq!(as_png(&bmp).unwrap(), png);
    }
}
