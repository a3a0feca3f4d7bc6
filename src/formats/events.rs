//! Event files for TensorBoard: scalars and pictures by step.
//!
//! Source: TensorFlow's `core/util/events_writer.cc`, `core/util/event.proto` and `core/framework/summary.proto`.

use std::fs::{self, File, OpenOptions};
use std::io::{BufWriter, ErrorKind};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use prost::Message;

use super::lock::host_name;
use super::tfrecord;
use crate::proto::tensorflow::{
    Event, SessionLog, Summary, event::What, session_log::SessionStatus, summary, summary::value::Value as SummaryValue,
};

/// What the first record of every event file says.
const FILE_VERSION: &str = "brain.Event:2";
/// `Summary.Image.colorspace` of an RGB picture.
const RGB: i32 = 3;
/// How many files one folder may get within one second.
const MAX_SAME_SECOND: usize = 1000;

/// Appends events to one new file of a folder; TensorBoard reads all of a folder's files, by name.
#[derive(Debug)]
pub struct EventWriter {
    path: PathBuf,
    records: tfrecord::Writer<BufWriter<File>>,
}

impl EventWriter {
    /// Starts the file `events.out.tfevents.<seconds since 1970>.<host>` in `folder`, which is created if need be.
    ///
    /// # Errors
    /// If the folder or the file cannot be created.
    pub fn create(folder: &Path) -> Result<Self> {
        fs::create_dir_all(folder).with_context(|| format!("cannot create the folder `{}`", folder.display()))?;
        let name = format!("events.out.tfevents.{:010}.{}", since_1970().as_secs(), host());
        let (path, file) = create_new(folder, &name)?;
        let mut writer = EventWriter { path, records: tfrecord::Writer::new(BufWriter::new(file)) };
        writer.event(0, What::FileVersion(FILE_VERSION.to_string()))?;
        writer.flush()?;
        Ok(writer)
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Says that training goes on from `step`: TensorBoard drops what earlier files of the folder hold for this step and later.
    ///
    /// # Errors
    /// If writing fails.
    pub fn session_start(&mut self, step: i64) -> Result<()> {
        self.event(step, What::SessionLog(SessionLog { status: SessionStatus::Start.into() }))
    }

    /// One point of the curve `tag`.
    ///
    /// # Errors
    /// If writing fails.
    pub fn scalar(&mut self, step: i64, tag: &str, value: f32) -> Result<()> {
        self.summary(step, tag, SummaryValue::SimpleValue(value))
    }

    /// One RGB picture, encoded as PNG, `width` by `height` pixels.
    ///
    /// # Errors
    /// If writing fails.
    pub fn image(&mut self, step: i64, tag: &str, width: usize, height: usize, encoded_png: Vec<u8>) -> Result<()> {
        let image = summary::Image {
            height: height as i32,
            width: width as i32,
            colorspace: RGB,
            encoded_image_string: encoded_png.into(),
        };
        self.summary(step, tag, SummaryValue::Image(image))
    }

    /// Hands everything to the operating system, so that TensorBoard sees it.
    ///
    /// # Errors
    /// If writing fails.
    pub fn flush(&mut self) -> Result<()> {
        self.records.flush().with_context(|| format!("cannot write `{}`", self.path.display()))
    }

    fn summary(&mut self, step: i64, tag: &str, value: SummaryValue) -> Result<()> {
        let value = summary::Value { tag: tag.to_string(), value: Some(value) };
        self.event(step, What::Summary(Summary { value: vec![value] }))
    }

    fn event(&mut self, step: i64, what: What) -> Result<()> {
        let event = Event { wall_time: since_1970().as_secs_f64(), step, what: Some(what) };
        self.records.write(&event.encode_to_vec()).with_context(|| format!("cannot write `{}`", self.path.display()))
    }
}

/// Never an existing file: a run that starts within the second of another gets a name behind the other's.
fn create_new(folder: &Path, name: &str) -> Result<(PathBuf, File)> {
    for n in 0..MAX_SAME_SECOND {
        let path = folder.join(if n == 0 { name.to_string() } else { format!("{name}.{n}") });
        match OpenOptions::new().write(true).create_new(true).open(&path) {
            Ok(file) => return Ok((path, file)),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error).with_context(|| format!("cannot create `{}`", path.display())),
        }
    }
    bail!("`{}` holds {MAX_SAME_SECOND} event files of this very second", folder.display())
}

fn since_1970() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default() // a clock before 1970 is no reason to stop
}

/// The machine's name, as far as a file name can hold it.
fn host() -> String {
    host_name().map_or_else(|| "localhost".to_string(), |name| name.replace('/', "_"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn events(path: &Path) -> Vec<Event> {
        tfrecord::Reader::open(path).unwrap().map(|record| Event::decode(record.unwrap().as_slice()).unwrap()).collect()
    }

    #[test]
    fn a_file_starts_with_its_version_and_holds_what_was_written_in_order() {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = EventWriter::create(&folder.path().join("train_dir/m")).unwrap();
        writer.session_start(100).unwrap();
        writer.scalar(101, "Losses/TotalLoss", 2.5).unwrap();
        writer.image(101, "image-0", 640, 480, vec![1, 2, 3]).unwrap();
        writer.flush().unwrap();
        let events = events(writer.path());
        assert_eq!(events[0].what, Some(What::FileVersion("brain.Event:2".to_string())));
        assert_eq!(events[1].what, Some(What::SessionLog(SessionLog { status: 1 })));
        let Some(What::Summary(scalar)) = &events[2].what else { panic!("{:?}", events[2]) };
        assert_eq!((events[2].step, scalar.value[0].tag.as_str()), (101, "Losses/TotalLoss"));
        assert_eq!(scalar.value[0].value, Some(SummaryValue::SimpleValue(2.5)));
        let Some(What::Summary(picture)) = &events[3].what else { panic!("{:?}", events[3]) };
        let Some(SummaryValue::Image(image)) = &picture.value[0].value else { panic!("{picture:?}") };
        assert_eq!(
            (image.width, image.height, image.colorspace, image.encoded_image_string.to_vec()),
            (640, 480, 3, vec![1, 2, 3])
        );
        assert!(events.iter().all(|event| event.wall_time > 1.7e9 && event.wall_time <= since_1970().as_secs_f64()));
        assert_eq!(events.len(), 4);
    }

    #[test]
    fn two_writers_of_one_second_never_share_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let writers: Vec<_> = (0..5).map(|_| EventWriter::create(folder.path()).unwrap()).collect();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 5);
        for writer in &writers {
            let name = writer.path().file_name().unwrap().to_str().unwrap();
            assert!(name.starts_with("events.out.tfevents.1") && name.contains(&host()), "{name}");
        }
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_named() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("file"), "").unwrap();
        let error = format!("{:#}", EventWriter::create(&folder.path().join("file/below")).unwrap_err());
        assert!(error.contains("file/below"), "{error}");
    }
}
