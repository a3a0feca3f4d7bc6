//! Event files as TensorBoard itself reads them (where a Python with TensorBoard is at hand).

mod common;

use std::io::Cursor;
use std::process::Command;

use image::{ImageFormat, Rgb, RgbImage};
use odh::formats::events::EventWriter;

#[test]
fn tensorboard_shows_scalars_and_pictures_and_drops_what_a_restart_made_void() {
    let Some(python) = std::env::var_os("ODH_TENSORFLOW_PYTHON") else {
        common::say("skipped: ODH_TENSORFLOW_PYTHON does not name a Python with TensorBoard");
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let mut png = Cursor::new(Vec::new());
    RgbImage::from_pixel(4, 3, Rgb([10, 200, 30])).write_to(&mut png, ImageFormat::Png).unwrap();
    let mut first = EventWriter::create(folder.path()).unwrap();
    for step in 1..=10 {
        first.scalar(step, "Losses/TotalLoss", 1.0 / step as f32).unwrap();
    }
    first.image(5, "image-0", 4, 3, png.into_inner()).unwrap();
    first.flush().unwrap();
    let mut second = EventWriter::create(folder.path()).unwrap();
    second.session_start(8).unwrap();
    for step in 8..=12 {
        second.scalar(step, "Losses/TotalLoss", step as f32).unwrap();
    }
    second.scalar(12, "PascalBoxes_PerformanceByCategory/AP@0.5IOU/개", f32::NAN).unwrap();
    second.flush().unwrap();
    let script = r#"
import io, sys
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
events = EventAccumulator(sys.argv[1]).Reload()
tags = events.Tags()
print(tags["scalars"], tags["images"])
print([(e.step, round(e.value, 3)) for e in events.Scalars("Losses/TotalLoss")])
image, = events.Images("image-0")
print(image.step, image.width, image.height, Image.open(io.BytesIO(image.encoded_image_string)).getpixel((0, 0)))
"#;
    let output = Command::new(python).arg("-c").arg(script).arg(folder.path()).env("TF_CPP_MIN_LOG_LEVEL", "3").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(
        String::from_utf8(output.stdout).unwrap(),
        "['Losses/TotalLoss', 'PascalBoxes_PerformanceByCategory/AP@0.5IOU/개'] ['image-0']\n\
         [(1, 1.0), (2, 0.5), (3, 0.333), (4, 0.25), (5, 0.2), (6, 0.167), (7, 0.143), (8, 8.0), (9, 9.0), (10, 10.0), (11, 11.0), \
         (12, 12.0)]\n\
         5 4 3 (10, 200, 30)\n"
    );
}
