//! Pictures as files, in the format that their name promises.

use std::io::Cursor;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use image::codecs::{bmp::BmpEncoder, gif::GifEncoder, jpeg::JpegEncoder, png::PngEncoder, webp::WebPEncoder};
use image::{ExtendedColorType, ImageEncoder};

use crate::data::image::{Format, RgbImage};

/// Of annotated JPEGs: high enough that labels stay sharp.
const JPEG_QUALITY: u8 = 92;

/// The format that a file's extension stands for.
pub fn format_of(path: &Path) -> Option<Format> {
    match path.extension()?.to_str()?.to_ascii_lowercase().as_str() {
        "jpg" | "jpeg" | "jpe" | "jfif" => Some(Format::Jpeg),
        "png" | "apng" => Some(Format::Png),
        "bmp" | "dib" => Some(Format::Bmp),
        "gif" => Some(Format::Gif),
        "webp" => Some(Format::WebP),
        _ => None,
    }
}

/// The bytes of a picture file. JPEG loses a little, GIF has 256 colours, the others keep every pixel.
///
/// # Errors
/// If the picture has no pixels or more than the format can hold.
pub fn encode(picture: &RgbImage, format: Format) -> Result<Vec<u8>> {
    let (width, height) = (picture.width, picture.height);
    ensure!(width > 0 && height > 0, "a picture of {width} x {height} pixels cannot be written");
    let failed = || format!("cannot write a {} of {width} x {height} pixels", format.name());
    let (w, h) = (u32::try_from(width).with_context(failed)?, u32::try_from(height).with_context(failed)?);
    let mut bytes = Cursor::new(Vec::new());
    let (data, color) = (picture.data.as_slice(), ExtendedColorType::Rgb8);
    match format {
        Format::Jpeg => JpegEncoder::new_with_quality(&mut bytes, JPEG_QUALITY).write_image(data, w, h, color),
        Format::Png => PngEncoder::new(&mut bytes).write_image(data, w, h, color),
        Format::Bmp => BmpEncoder::new(&mut bytes).write_image(data, w, h, color),
        Format::Gif => GifEncoder::new_with_speed(&mut bytes, 10).encode(data, w, h, color),
        Format::WebP => WebPEncoder::new_lossless(&mut bytes).write_image(data, w, h, color),
    }
    .with_context(failed)?;
    Ok(bytes.into_inner())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::image::{decode, sniff};

    #[test]
    fn every_format_is_read_back_with_its_pixels() {
        let (width, height) = (37, 21);
        let data: Vec<u8> = (0..width * height).flat_map(|i| [(i % width * 6) as u8, (i / width * 11) as u8, 90]).collect();
        let picture = RgbImage { width, height, data };
        for name in ["a.JPG", "a.jpeg", "a.png", "a.bmp", "a.gif", "a.webp"] {
            let format = format_of(Path::new(name)).unwrap();
            let bytes = encode(&picture, format).unwrap();
            assert_eq!(sniff(&bytes), Some(format), "{name}");
            let back = decode(&bytes).unwrap();
            assert_eq!((back.width, back.height), (width, height), "{name}");
            let most = back.data.iter().zip(&picture.data).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
            let allowed = match format {
                Format::Jpeg => 40,
                Format::Gif => 64,
                _ => 0,
            };
            assert!(most <= allowed, "{name}: {most}");
        }
    }

    #[test]
    fn a_picture_without_pixels_is_an_error() {
        let none = RgbImage { width: 0, height: 5, data: Vec::new() };
        for format in [Format::Jpeg, Format::Png, Format::Bmp, Format::Gif, Format::WebP] {
            assert!(encode(&none, format).is_err());
        }
    }
}
