//! Decoding and resizing, held against what TensorFlow 2.15.1 gives: the sums are SHA-256 of its bytes.

use std::path::{Path, PathBuf};

use odh::data::image::{check_structure, decode, decode_accurate, size, sniff};
use odh::data::resize::resize_bilinear;
use sha2::{Digest, Sha256};

mod common;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn sum(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/decode")
}

/// Every `.jpg` below a folder, sorted by path.
fn photos(folder: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = walkdir::WalkDir::new(folder)
        .into_iter()
        .map(|entry| entry.unwrap().into_path())
        .filter(|path| path.extension().is_some_and(|e| e == "jpg"))
        .collect();
    found.sort();
    found
}

#[test]
fn every_fixture_decodes_to_tensorflows_bytes_or_is_refused_as_it_refuses() {
    let table = std::fs::read_to_string(fixtures().join("expected.tsv")).unwrap();
    let mut wrong = Vec::new();
    for line in table.lines() {
        let [name, width, height, fast, accurate] = line.split('\t').collect::<Vec<_>>()[..] else {
            panic!("expected.tsv: {line}");
        };
        let bytes = std::fs::read(fixtures().join(name)).unwrap();
        let said = |result: anyhow::Result<odh::data::image::RgbImage>| match result {
            Ok(p) => (p.width.to_string(), p.height.to_string(), sum(&p.data)),
            Err(_) => ("0".into(), "0".into(), "refused".into()),
        };
        let mut compare = |kind: &str, got: (String, String, String), want: &str| {
            if (got.0.as_str(), got.1.as_str(), got.2.as_str()) != (width, height, want) {
                wrong.push(format!("{name} {kind}: {got:?}, TensorFlow {width} x {height} {want}"));
            }
        };
        compare("fast", said(decode(&bytes)), fast);
        if accurate != "-" {
            compare("accurate", said(decode_accurate(&bytes)), accurate);
        }
        if fast != "refused" {
            assert!(check_structure(&bytes).is_ok(), "{name}: {:?}", check_structure(&bytes));
            let (w, h) = size(&bytes).unwrap();
            assert_eq!((w.to_string().as_str(), h.to_string().as_str()), (width, height), "{name}");
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(table.lines().count(), 49);
}

#[test]
fn every_truncation_of_a_picture_is_found_without_decoding_it() {
    for name in ["420.jpg", "420_progressive.jpg", "restarts.jpg", "grey.jpg", "rgba.png", "frame.gif", "photo.bmp"] {
        let bytes = std::fs::read(fixtures().join(name)).unwrap();
        for length in 0..bytes.len() {
            assert!(check_structure(&bytes[..length]).is_err(), "{name} cut to {length} of {} bytes", bytes.len());
        }
    }
}

#[test]
fn a_bmp_whose_header_gives_another_length_is_whole() {
    let good = std::fs::read(fixtures().join("photo.bmp")).unwrap();
    for length in [0, 1, good.len() as u32 + 2, u32::MAX] {
        let bytes = [&good[..2], &length.to_le_bytes(), &good[6..]].concat();
        assert!(check_structure(&bytes).is_ok(), "{length}");
        assert_eq!(decode(&bytes).unwrap(), decode(&good).unwrap(), "{length}");
        assert!(check_structure(&bytes[..bytes.len() - 1]).is_err(), "{length}");
    }
}

#[test]
fn a_truncated_picture_is_refused_at_whatever_byte_it_ends() {
    for name in ["420.jpg", "420_progressive.jpg", "restarts.jpg", "grey.jpg", "rgba.png", "photo.bmp"] {
        let bytes = std::fs::read(fixtures().join(name)).unwrap();
        for length in 0..bytes.len() {
            assert!(decode(&bytes[..length]).is_err(), "{name} cut to {length} of {} bytes", bytes.len());
        }
    }
}

/// A PNG with one more chunk before its last.
fn with_chunk(png: &[u8], kind: &[u8; 4]) -> Vec<u8> {
    let (rest, end) = png.split_at(png.len() - 12);
    let mut checksum = flate2::Crc::new();
    checksum.update(kind);
    [rest, &[0; 4], kind, &checksum.sum().to_be_bytes(), end].concat()
}

#[test]
fn damage_behind_the_last_pixel_is_refused_where_tensorflow_refuses_it() {
    let png = std::fs::read(fixtures().join("rgb.png")).unwrap();
    for (kind, good) in [(b"teXt", true), (b"te\x0ft", false), (b"+EXt", false), (b"CgBI", false)] {
        assert_eq!(decode(&with_chunk(&png, kind)).is_ok(), good, "{}", kind.escape_ascii());
        assert_eq!(check_structure(&with_chunk(&png, kind)).is_ok(), good, "{}", kind.escape_ascii());
    }
    let mut end = png.clone();
    *end.last_mut().unwrap() ^= 1;
    assert!(decode(&end).unwrap_err().to_string().contains("IEND"));

    // A marker that libjpeg does not know, between the last scan and the end.
    let jpeg = std::fs::read(fixtures().join("420.jpg")).unwrap();
    assert!(jpeg.ends_with(&[0xFF, 0xD9]));
    let with_marker = |code: u8| [&jpeg[..jpeg.len() - 2], &[0xFF, code, 0, 2, 0xFF, 0xD9]].concat();
    assert_eq!(decode(&with_marker(0xFE)).unwrap(), decode(&jpeg).unwrap(), "a comment");
    assert!(decode(&with_marker(0x8F)).is_err());
}

#[test]
fn no_damage_makes_the_decoder_panic() {
    // A small generator of its own, so that a failure can be repeated: xorshift64.
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut draw = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % below as u64) as usize
    };
    for name in
        ["420.jpg", "420_progressive.jpg", "restarts.jpg", "ycck.jpg", "rgba.png", "interlaced_2.png", "frame.gif", "photo.bmp"]
    {
        let whole = std::fs::read(fixtures().join(name)).unwrap();
        for _ in 0..200 {
            let mut bytes = whole.clone();
            for _ in 0..1 + draw(8) {
                let at = draw(bytes.len());
                bytes[at] = draw(256) as u8;
            }
            let _ = (decode(&bytes), check_structure(&bytes), size(&bytes), sniff(&bytes));
        }
    }
}

#[test]
fn what_cannot_be_read_is_refused_by_its_own_name() {
    let said = |name: &str| format!("{:#}", decode(&std::fs::read(fixtures().join(name)).unwrap()).unwrap_err());
    assert!(said("bad_12_bits.jpg").contains("12 bits a sample"), "{}", said("bad_12_bits.jpg"));
    assert!(said("bad_huge.jpg").contains("65500 x 65500"), "{}", said("bad_huge.jpg"));
    assert!(said("bad_zero.jpg").contains("37 x 0"), "{}", said("bad_zero.jpg"));
    assert!(said("bad_truncated.jpg").contains("truncated"), "{}", said("bad_truncated.jpg"));
    assert!(said("bad_truncated.png").contains("truncated"), "{}", said("bad_truncated.png"));
    assert!(format!("{:#}", decode(b"").unwrap_err()).contains("empty"));
    assert!(format!("{:#}", decode(b"<html>no").unwrap_err()).contains("3C 68 74 6D 6C"));
}

#[test]
fn a_damaged_pictures_fault_is_said_once() {
    let mut bytes = std::fs::read(fixtures().join("la.png")).unwrap();
    let data = bytes.windows(4).position(|w| w == b"IDAT").unwrap();
    let length = u32::from_be_bytes(bytes[data - 4..data].try_into().unwrap()) as usize;
    bytes[data + 4 + length] ^= 0xff; // the chunk's checksum
    let said = format!("{:#}", decode(&bytes).unwrap_err());
    assert!(said.starts_with("the png cannot be decoded, copy it again") && said.matches("CRC").count() == 1, "{said}");
    assert!(!said.contains("ChunkType"), "{said}");
}

#[test]
fn real_photos_decode_to_tensorflows_bytes() {
    for (folder, count, want) in [
        ("datasets/raccoon", 200, "26192329468edacf998f2e93736930a7f965c7bd6d26f2a9aff6136ed701400c"),
        ("datasets/microcontrollers", 149, "2015d07f56670137fbf0e12f04b022138a629c5b8b558a6d09b9235b2c427002"),
        ("golden/detect", 2, "6df280cd7f57a58dd08bd8ecf0bfe1cb0fd8bc4401d28a57f1ba1f521d51d7c5"),
    ] {
        let Some(folder) = common::shared(folder) else { return };
        let photos = photos(&folder);
        assert_eq!(photos.len(), count, "{}", folder.display());
        let mut all = Sha256::new();
        for photo in photos {
            all.update(&decode(&std::fs::read(&photo).unwrap()).unwrap().data);
        }
        assert_eq!(hex(&all.finalize()), want, "{}", folder.display());
    }
}

#[test]
fn real_photos_resize_to_tensorflows_floats() {
    let Some(folder) = common::shared("golden/detect") else { return };
    for (height, width, want) in [
        (300, 300, "fcfeb0fa31021fdb31fe6bf3e51b53cb1a8e5a7fd0a553e6da131e9e7c4d0679"),
        (600, 1024, "3f9c878e4153811e2c4938e8405086f78a3eea9a1bd675f20f59f81b967e531c"),
        (37, 1200, "e3008a4bc9fac39eacbe601fb9920ba6bd5b265f6068b2b5a210c1d03259032a"),
    ] {
        let mut all = Sha256::new();
        for photo in photos(&folder) {
            let photo = decode(&std::fs::read(&photo).unwrap()).unwrap();
            for value in resize_bilinear(&photo.data, photo.height, photo.width, 3, height, width) {
                all.update(value.to_le_bytes());
            }
        }
        assert_eq!(hex(&all.finalize()), want, "{height} x {width}");
    }
}
