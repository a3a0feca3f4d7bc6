//! Looking at pictures: decoded ahead, looked at, drawn on and written, picture by picture.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use crossbeam_channel::{Receiver, Sender, bounded};

use crate::config::label_map::LabelMap;
use crate::data::dataset::picture::{self, orientation};
use crate::data::detections_file::{DetectionsFiles, Found};
use crate::data::image::RgbImage;
use crate::data::inputs::Input;
use crate::data::{draw, encode, image};
use crate::detection::boxes::Detections;
use crate::formats::atomic_file;
use crate::{exit, interrupt};

/// Scores from which detections are in the files even if fewer are drawn, so that another threshold can be tried without
/// looking at the pictures again.
const KEPT_SCORE: f32 = 0.2;
/// Pictures that may wait decoded, or for being written: enough to even out large and small ones.
const AHEAD: usize = 3;
/// On how many pictures the model may fail, none of which it has done, before it is taken to be its own fault, not theirs.
const FAILURES: usize = 3;

/// What finds objects in a picture.
pub trait PictureDetector {
    /// The objects in one picture of any size, best score first, boxes normalized, classes counted from 0.
    ///
    /// # Errors
    /// If the model cannot be run.
    fn detect(&mut self, picture: &RgbImage) -> Result<Detections>;

    /// What the classes are called.
    fn label_map(&self) -> &LabelMap;
}

/// What to do with what is found.
#[derive(Debug, Clone)]
pub struct DetectOptions {
    /// Least score of a box that is drawn.
    pub min_score: f32,
    /// Where annotated pictures, `detections.json` and `detections.csv` go.
    pub output: PathBuf,
}

/// What came of it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct DetectSummary {
    /// Pictures that were looked at.
    pub pictures: usize,
    /// Boxes that were drawn.
    pub boxes: usize,
    /// Pictures that could not be looked at, or whose result could not be written; each was named in the log.
    pub faulty: usize,
    /// Whether Ctrl-C ended it early.
    pub interrupted: bool,
    /// From the first picture's reading to the last one's writing.
    pub elapsed: Duration,
    /// Of it, the model's own.
    pub model: Duration,
}

/// A picture on its way to its file.
struct Finished<'a> {
    input: &'a Input,
    picture: RgbImage,
    annotations: Vec<draw::Annotation>,
}

/// Looks at every picture and writes the results below `options.output`.
///
/// Pictures are decoded in one thread beside the model's and drawn on and written in another. One that is damaged, or that the model fails
/// on, is named in the log and passed over. `each` is told of every picture that was looked at, with what is drawn on it.
///
/// # Errors
/// If the model fails on the only pictures there are or on the first few, or `detections.json` or `detections.csv` cannot be written.
pub fn detect_all(
    detector: &mut dyn PictureDetector,
    inputs: &[Input],
    options: &DetectOptions,
    mut each: impl FnMut(&Input, Option<&[draw::Annotation]>),
) -> Result<DetectSummary> {
    let start = Instant::now();
    let mut summary = DetectSummary::default();
    let mut files = DetectionsFiles::create(&options.output)?;
    let (to_model, decoded) = bounded::<(&Input, Result<RgbImage>)>(AHEAD);
    let (to_writer, finished) = bounded::<Finished>(AHEAD);
    let looked: Result<usize> = std::thread::scope(|scope| {
        scope.spawn(|| decode_all(inputs, to_model));
        let writer = scope.spawn(|| write_all(&options.output, finished));
        // Both ends of the queues go with this closure's locals, so an error here also ends the two threads.
        let looked = look_at_all(detector, decoded, &to_writer, &mut files, options, &mut summary, &mut each);
        drop(to_writer);
        let unwritten = writer.join().map_err(|_| anyhow::anyhow!("the thread that writes pictures has panicked"));
        looked.and(unwritten)
    });
    summary.faulty += looked?;
    files.finish()?;
    summary.elapsed = start.elapsed();
    Ok(summary)
}

fn decode_all<'a>(inputs: &'a [Input], to_model: Sender<(&'a Input, Result<RgbImage>)>) {
    for input in inputs {
        // Nobody takes it any more: the model has failed, or Ctrl-C was pressed.
        if to_model.send((input, decode(&input.path))).is_err() {
            return;
        }
    }
}

fn decode(path: &Path) -> Result<RgbImage> {
    let mut bytes = Vec::new();
    picture::read(path, &mut bytes)?;
    let turned = image::sniff(&bytes).map_or(1, |format| orientation(&bytes, format));
    if turned != 1 {
        tracing::warn!(
            "`{}` is stored turned (EXIF orientation {turned}) and looked at as it is stored, as TensorFlow does; save it \
             upright if little is found",
            path.display()
        );
    }
    image::decode(&bytes)
}

fn look_at_all<'a>(
    detector: &mut dyn PictureDetector,
    decoded: Receiver<(&'a Input, Result<RgbImage>)>,
    to_writer: &Sender<Finished<'a>>,
    files: &mut DetectionsFiles,
    options: &DetectOptions,
    summary: &mut DetectSummary,
    each: &mut impl FnMut(&Input, Option<&[draw::Annotation]>),
) -> Result<()> {
    let pass_over = |failure: anyhow::Error| tracing::error!("{}; the picture is passed over", exit::causes(&failure).join(": "));
    // Failures of a model that has done no picture yet: they may end it.
    let mut failures: Vec<anyhow::Error> = Vec::new();
    for (input, picture) in decoded {
        if interrupt::requested() {
            summary.interrupted = true;
            break;
        }
        let picture = match picture {
            Ok(picture) => picture,
            Err(e) => {
                tracing::error!("`{}` is passed over: {e:#}", input.path.display());
                summary.faulty += 1;
                each(input, None);
                continue;
            }
        };
        let start = Instant::now();
        let detections = detector.detect(&picture).with_context(|| format!("the model failed on `{}`", input.path.display()));
        summary.model += start.elapsed();
        let detections = match detections {
            Ok(detections) => detections,
            Err(e) => {
                summary.faulty += 1;
                each(input, None);
                if summary.pictures > 0 {
                    pass_over(e);
                    continue;
                }
                failures.push(e);
                if failures.len() == FAILURES {
                    break;
                }
                continue;
            }
        };
        failures.drain(..).for_each(pass_over);
        let label = |class: usize| detector.label_map().label(u32::try_from(class + 1).unwrap_or(u32::MAX));
        let found = Found { name: &input.name, height: picture.height, width: picture.width, detections: &detections };
        files.add(&found, options.min_score.min(KEPT_SCORE), label)?;
        let annotations = draw::annotations(&detections, options.min_score, label);
        summary.pictures += 1;
        summary.boxes += annotations.len();
        each(input, Some(&annotations));
        let sent = to_writer.send(Finished { input, picture, annotations });
        sent.map_err(|_| anyhow::anyhow!("the thread that writes pictures has ended"))?;
    }
    let last = if summary.interrupted { None } else { failures.pop() };
    failures.into_iter().for_each(pass_over);
    last.map_or(Ok(()), |e| Err(e.context("the model has not done a single picture")))
}

/// Draws on pictures and writes them; returns how many could not be written.
fn write_all(output: &Path, finished: Receiver<Finished>) -> usize {
    let mut faulty = 0;
    for mut item in finished {
        draw::draw(&mut item.picture, &item.annotations);
        if let Err(e) = write_one(output, &item) {
            tracing::error!("the annotated `{}` is not written: {e:#}", item.input.name);
            faulty += 1;
        }
    }
    faulty
}

fn write_one(output: &Path, item: &Finished) -> Result<()> {
    // The name's own format, so that it can be kept; a name that promises none gets a JPEG.
    let format = encode::format_of(&item.input.place).unwrap_or(image::Format::Jpeg);
    let bytes = encode::encode(&item.picture, format)?;
    atomic_file::write(&output.join(&item.input.place), &bytes)
}

#[cfg(test)]
mod tests {
    use anyhow::bail;

    use super::*;
    use crate::data::inputs;

    /// Finds one thing in every picture: its left half.
    struct LeftHalf(LabelMap);

    impl PictureDetector for LeftHalf {
        fn detect(&mut self, picture: &RgbImage) -> Result<Detections> {
            if picture.width == 13 {
                bail!("out of luck");
            }
            Ok(Detections { boxes: vec![[0.0, 0.0, 1.0, 0.5]; 3], scores: vec![0.9, 0.3, 0.1], classes: vec![0, 0, 1] })
        }

        fn label_map(&self) -> &LabelMap {
            &self.0
        }
    }

    fn picture(path: &Path, width: usize, height: usize) {
        let picture = RgbImage { width, height, data: vec![200; 3 * width * height] };
        atomic_file::write(path, &encode::encode(&picture, encode::format_of(path).unwrap()).unwrap()).unwrap();
    }

    fn detect(folder: &Path, min_score: f32) -> Result<(DetectSummary, Vec<String>)> {
        let output = folder.join("out");
        let inputs = inputs::find(&[folder.join("in")], Some(&output))?;
        let mut told = Vec::new();
        let mut detector = LeftHalf(LabelMap::from_names(["raccoon", "fox"]));
        let summary = detect_all(&mut detector, &inputs, &DetectOptions { min_score, output }, |input, found| {
            told.push(format!("{} {:?}", input.name, found.map(<[_]>::len)));
        })?;
        Ok((summary, told))
    }

    #[test]
    fn a_damaged_picture_among_many_is_passed_over() {
        let folder = tempfile::tempdir().unwrap();
        let input = folder.path().join("in");
        picture(&input.join("a.jpg"), 60, 40);
        picture(&input.join("sub/a.jpg"), 50, 40);
        picture(&input.join("d.png"), 30, 40);
        std::fs::write(input.join("b.jpg"), b"\xff\xd8\xff\xe0 not a picture").unwrap();
        std::fs::write(input.join("c.jpg"), b"").unwrap();
        let (summary, told) = detect(folder.path(), 0.5).unwrap();
        assert_eq!((summary.pictures, summary.boxes, summary.faulty, summary.interrupted), (3, 3, 2, false));
        assert_eq!(told, ["a.jpg Some(1)", "b.jpg None", "c.jpg None", "d.png Some(1)", "sub/a.jpg Some(1)"]);
        let output = folder.path().join("out");
        for (name, width) in [("a.jpg", 60), ("sub/a.jpg", 50), ("d.png", 30)] {
            let drawn = image::decode(&std::fs::read(output.join(name)).unwrap()).unwrap();
            assert_eq!((drawn.width, drawn.height), (width, 40));
            assert!(drawn.data.iter().any(|&v| v < 150), "{name} has no box");
        }
        assert!(!output.join("b.jpg").exists());
        let json: serde_json::Value = serde_json::from_slice(&std::fs::read(output.join("detections.json")).unwrap()).unwrap();
        let names: Vec<&String> = json.as_object().unwrap().keys().collect();
        assert_eq!(names, ["a.jpg", "d.png", "sub/a.jpg"]);
        // Not drawn at 0.5, but kept; 0.1 is not.
        assert_eq!(json["a.jpg"]["detections"].as_array().unwrap().len(), 2);
        assert_eq!(json["a.jpg"]["detections"][0]["class"], "raccoon");
    }

    #[test]
    fn a_lower_threshold_draws_and_keeps_more() {
        let folder = tempfile::tempdir().unwrap();
        picture(&folder.path().join("in/a.jpg"), 60, 40);
        let (summary, _) = detect(folder.path(), 0.05).unwrap();
        assert_eq!(summary.boxes, 3);
        let csv = std::fs::read_to_string(folder.path().join("out/detections.csv")).unwrap();
        assert_eq!(csv.lines().count(), 4);
        assert!(csv.lines().nth(3).unwrap().ends_with(",fox,0,0,30,40,0.1,2"), "{csv}");
    }

    /// Ten pictures, of which the model fails on these; the result, and whether detections.json is still the old one.
    fn failing_on(some: &[usize]) -> (Result<(DetectSummary, Vec<String>)>, bool) {
        let folder = tempfile::tempdir().unwrap();
        for i in 0..10 {
            picture(&folder.path().join(format!("in/{i}.jpg")), if some.contains(&i) { 13 } else { 20 }, 20);
        }
        let json = folder.path().join("out/detections.json");
        atomic_file::write(&json, b"old").unwrap();
        (detect(folder.path(), 0.5), std::fs::read(json).unwrap() == b"old")
    }

    #[test]
    fn a_picture_that_the_model_fails_on_is_passed_over() {
        for (failing, faulty) in [(vec![5], 1), (vec![0], 1), (vec![9], 1), (vec![0, 1, 3, 4, 5, 6, 7, 9], 8)] {
            let (result, old) = failing_on(&failing);
            let (summary, told) = result.unwrap();
            assert_eq!((summary.pictures, summary.faulty), (10 - faulty, faulty), "{failing:?}");
            assert_eq!(told.iter().filter(|line| line.ends_with("None")).count(), faulty);
            assert!(!old);
        }
    }

    #[test]
    fn a_model_that_fails_on_the_first_pictures_ends_it_and_leaves_the_old_files() {
        for failing in [vec![0, 1, 2], (0..10).collect()] {
            let (result, old) = failing_on(&failing);
            let error = format!("{:#}", result.unwrap_err());
            assert!(error.contains("not done a single picture") && error.contains("2.jpg`: out of luck"), "{error}");
            assert!(old);
        }
        // The only picture there is.
        let folder = tempfile::tempdir().unwrap();
        picture(&folder.path().join("in/a.jpg"), 13, 20);
        let error = format!("{:#}", detect(folder.path(), 0.5).unwrap_err());
        assert!(error.contains("a.jpg`: out of luck"), "{error}");
    }

    #[test]
    fn a_result_that_cannot_be_written_is_counted() {
        let folder = tempfile::tempdir().unwrap();
        picture(&folder.path().join("in/a.jpg"), 60, 40);
        picture(&folder.path().join("in/b.jpg"), 60, 40);
        std::fs::create_dir_all(folder.path().join("out/a.jpg/in the way")).unwrap();
        let (summary, _) = detect(folder.path(), 0.5).unwrap();
        assert_eq!((summary.pictures, summary.faulty), (2, 1));
        assert!(folder.path().join("out/b.jpg").is_file());
    }
}
