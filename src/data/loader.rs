//! Batches of pictures from record files, made ahead of the step by background threads, in an order that can be resumed.
//!
//! Worker threads read, decode, augment and resize; one more puts the results together to batches and keeps `prefetch` of
//! them ready, so [`Loader::next`] only hands one over. Which picture comes when, and how it is augmented, follows from the
//! seed and the position alone: any number of threads gives the same batches, and a run that starts at a saved position
//! goes on exactly. Memory is bounded by the batches ready, one batch in the making, the pictures that threads have
//! decoded ahead of it (as many as a batch has, or two a thread where that is more), and in training those that are kept decoded.
//!
//! A record that cannot be used (wrong checksum, no tf.Example, a picture that does not decode, a class outside the label
//! map) is an error at the batch it belongs to, and ends the loading: a training that goes on without pictures that its
//! user believes in would hide the fault. `odh tfgen` writes none such.

mod decoded;
pub mod order;
pub mod pool;
pub mod records;

use std::path::PathBuf;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};

use crate::data::augment::Augmentation;
use crate::data::image::{RgbImage, decode};
use crate::data::loader::decoded::Decoded;
use crate::data::loader::order::Order;
pub use crate::data::loader::order::Position;
use crate::data::loader::pool::{Pool, Size, Stop};
pub use crate::data::loader::records::Classes;
use crate::data::loader::records::Records;
use crate::data::resizer::Resized;
pub use crate::data::resizer::Resizer;
use crate::data::sample::{Pixels, Sample};
use crate::detection::boxes::Groundtruth;

/// Bytes of decoded pictures that a training keeps for its next passes: some hundred photos, and little beside what its step takes.
const KEPT_DECODED: usize = 128 << 20;

/// What to load and how.
#[derive(Debug, Clone)]
pub struct LoaderOptions {
    /// Record files, shard sets or globs.
    pub records: Vec<PathBuf>,
    /// Pictures in a batch.
    pub batch_size: usize,
    /// Makes every picture the same size.
    pub resizer: Resizer,
    /// What the classes in the records may be.
    pub classes: Classes,
    /// Whether every pass has an order of its own; otherwise that of the files.
    pub shuffle: bool,
    /// Of the order and the augmentations.
    pub seed: u64,
    /// Done in this order to the decoded picture, before it is resized.
    pub augmentations: Vec<Augmentation>,
    /// Where to begin: the `position` of the last batch that counted.
    pub start: Position,
    /// Worker threads; 0 is one less than the machine has cores, at least one.
    pub num_threads: usize,
    /// Batches kept ready, at least 1.
    pub prefetch: usize,
    /// How many pictures, from the first, come with their decoded source (for drawing on).
    pub keep_sources: usize,
}

impl LoaderOptions {
    /// Options for reading in order, once or for ever, without augmentation; set the other fields for training.
    pub fn new(records: Vec<PathBuf>, batch_size: usize, resizer: Resizer, classes: Classes) -> Self {
        Self {
            records,
            batch_size,
            resizer,
            classes,
            shuffle: false,
            seed: 0,
            augmentations: Vec::new(),
            start: Position::default(),
            num_threads: 0,
            prefetch: 2,
            keep_sources: 0,
        }
    }
}

/// One batch. `N` is the number of `names`.
#[derive(Debug, Clone)]
pub struct Batch {
    /// `[N, height, width, 3]`, RGB, 0 to 255; one channel where the resizer makes them grey.
    pub images: Vec<f32>,
    /// Of every picture here, padding included, pixels.
    pub height: usize,
    /// Of every picture here, padding included, pixels.
    pub width: usize,
    /// Height and width of each picture without padding, in pixels. `[N]`
    pub sizes: Vec<(usize, usize)>,
    /// After augmentation, normalized. `[N]`
    pub groundtruth: Vec<Groundtruth>,
    /// File names as the records give them. `[N]`
    pub names: Vec<String>,
    /// Height and width of the pictures as stored, before augmentation, in pixels. `[N]`
    pub source_sizes: Vec<(usize, usize)>,
    /// The pictures as stored, of the first `keep_sources` of a run. `[N]`
    pub sources: Vec<Option<RgbImage>>,
    /// Where a run that goes on after this batch has to start.
    pub position: Position,
    /// How long the taker waited for it.
    pub waited: Duration,
}

/// One picture, ready for its batch.
struct Prepared {
    image: Resized,
    groundtruth: Groundtruth,
    name: String,
    source_size: (usize, usize),
    source: Option<RgbImage>,
}

/// Batches without end, for training. Dropping it stops its threads.
pub struct Loader {
    feed: Feed,
}

impl Loader {
    /// Indexes the records and starts the threads.
    ///
    /// # Errors
    /// If there is no record, a record file is damaged, or an option is out of range.
    pub fn new(options: LoaderOptions) -> Result<Self> {
        Ok(Self { feed: Feed::start(options, None)? })
    }

    /// See [`Records::fingerprint`].
    pub fn fingerprint(&self) -> u64 {
        self.feed.fingerprint
    }

    /// The next batch; always full, going on into the next pass where one ends.
    ///
    /// # Errors
    /// If a record of this batch cannot be used, or one of an earlier batch could not; file, record and picture are named.
    // Not an `Iterator`: there is no end, and a caller that forgets the error must not compile.
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> Result<Batch> {
        match self.feed.take() {
            Some(batch) => batch,
            None => bail!("the loader has stopped at an earlier error"),
        }
    }
}

/// Every picture once, in the order of the files, for evaluation; the last batch may be smaller.
///
/// An iterator of batches; after an error it ends.
pub struct OnePass {
    feed: Feed,
}

impl OnePass {
    /// Indexes the records and starts the threads; `shuffle`, `augmentations` and `start` are taken as they are set.
    /// Reads at most `limit` pictures, where given.
    ///
    /// # Errors
    /// As [`Loader::new`].
    pub fn new(options: LoaderOptions, limit: Option<usize>) -> Result<Self> {
        let limit = limit.map_or(u64::MAX, |limit| limit as u64);
        Ok(Self { feed: Feed::start(options, Some(limit))? })
    }
}

impl Iterator for OnePass {
    type Item = Result<Batch>;

    fn next(&mut self) -> Option<Self::Item> {
        self.feed.take()
    }
}

/// The threads behind a loader, and the batches that they have ready.
struct Feed {
    /// `None` once dropping has begun: closing it is what ends the assembler.
    batches: Option<Receiver<Result<Batch>>>,
    stop: Stop<Prepared>,
    assembler: Option<JoinHandle<()>>,
    fingerprint: u64,
}

impl Feed {
    /// `once`: end after one pass, or after so many pictures if that is less.
    fn start(options: LoaderOptions, once: Option<u64>) -> Result<Self> {
        ensure!(options.batch_size > 0, "batch_size 0 must be at least 1");
        ensure!(
            options.batch_size == 1
                || options.resizer.fixed_size().is_some()
                || !Augmentation::vary_aspect(&options.augmentations),
            "train_config.batch_size: {} needs pictures of one size, but train_config.data_augmentation_options change their aspect and \
             keep_aspect_ratio_resizer keeps it: set batch_size: 1 (--batch_size 1), pad them with pad_to_max_dimension: true, or resize with a fixed_shape_resizer",
            options.batch_size
        );
        let records = Records::open(&options.records)?;
        let fingerprint = records.fingerprint();
        let order = Order::new(records.count(), options.seed, options.shuffle);
        let len = order.count();
        let start = match options.start {
            start if start.index < len => start,
            start => {
                if start.index > len {
                    tracing::warn!(
                        "the saved position is picture {} of a pass, and there are {len} now; going on with the next pass",
                        start.index
                    );
                }
                Position { epoch: start.epoch + 1, index: 0 }
            }
        };
        let end = once.map_or(u64::MAX, |limit| limit.min(len - start.index));
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let threads = if options.num_threads > 0 { options.num_threads } else { cores.saturating_sub(1).max(1) };
        let size = Size { threads, ahead: options.batch_size.max(2 * threads) };
        let (batch_size, prefetch) = (options.batch_size, options.prefetch.max(1));
        let decoded = Decoded::new(if once.is_some() { 0 } else { KEPT_DECODED });
        let job = move |number: u64| prepare(&records, &decoded, &order, &options, start.advanced(number, len), number);
        let pool = Pool::start(size, end, job)?;
        let stop = pool.stopper();
        // The assembler holds one batch more while it waits for room.
        let (sender, batches) = sync_channel(prefetch - 1);
        let assemble = move || {
            let mut position = start;
            loop {
                let Some(batch) = assemble(&pool, batch_size) else { return };
                let batch = batch.map(|mut batch| {
                    position = position.advanced(batch.names.len() as u64, len);
                    batch.position = position;
                    batch
                });
                let failed = batch.is_err();
                if sender.send(batch).is_err() || failed {
                    return;
                }
            }
        };
        let assembler = std::thread::Builder::new()
            .name("loader-batch".into())
            .spawn(assemble)
            .context("a loader thread cannot be started")?;
        Ok(Self { batches: Some(batches), stop, assembler: Some(assembler), fingerprint })
    }

    fn take(&mut self) -> Option<Result<Batch>> {
        let begun = Instant::now();
        let batch = self.batches.as_ref()?.recv().ok()?;
        Some(batch.map(|batch| Batch { waited: begun.elapsed(), ..batch }))
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        self.stop.stop();
        self.batches = None;
        if let Some(assembler) = self.assembler.take() {
            // It holds the pool, whose own end waits for the workers.
            let _ = assembler.join();
        }
    }
}

/// Takes pictures until the batch is full or there are no more; `None` if there was none at all. Pictures of different sizes make no batch.
fn assemble(pool: &Pool<Prepared>, batch_size: usize) -> Option<Result<Batch>> {
    let mut batch: Option<Batch> = None;
    for _ in 0..batch_size {
        let prepared = match pool.next() {
            Some(Ok(prepared)) => prepared,
            Some(Err(error)) => return Some(Err(error)),
            None => break,
        };
        let batch = batch.get_or_insert_with(|| {
            let (height, width) = prepared.image.frame;
            Batch {
                images: Vec::with_capacity(batch_size * prepared.image.pixels.len()),
                height,
                width,
                sizes: Vec::with_capacity(batch_size),
                groundtruth: Vec::with_capacity(batch_size),
                names: Vec::with_capacity(batch_size),
                source_sizes: Vec::with_capacity(batch_size),
                sources: Vec::with_capacity(batch_size),
                position: Position::default(),
                waited: Duration::ZERO,
            }
        });
        if (batch.height, batch.width) != prepared.image.frame {
            return Some(Err(anyhow!(
                "keep_aspect_ratio_resizer makes {} {}x{} and {} {}x{} (height x width), which cannot be in one batch: set \
                 train_config.batch_size: 1 (--batch_size 1), pad them with pad_to_max_dimension: true, or resize with a fixed_shape_resizer",
                batch.names[0],
                batch.height,
                batch.width,
                prepared.name,
                prepared.image.frame.0,
                prepared.image.frame.1
            )));
        }
        batch.images.extend_from_slice(&prepared.image.pixels);
        batch.sizes.push(prepared.image.size);
        batch.groundtruth.push(prepared.groundtruth);
        batch.names.push(prepared.name);
        batch.source_sizes.push(prepared.source_size);
        batch.sources.push(prepared.source);
    }
    batch.map(Ok)
}

/// Reads, decodes, augments and resizes the picture at a position, number `number` of this run.
fn prepare(
    records: &Records,
    decoded: &Decoded,
    order: &Order,
    options: &LoaderOptions,
    at: Position,
    number: u64,
) -> Result<Prepared> {
    let index = order.record(at);
    let labeled = records.read(index, &options.classes)?;
    let image = decoded.picture(index, || records.context(index, Some(&labeled.filename), decode(&labeled.encoded)))?;
    let source_size = (image.height, image.width);
    let source = (number < options.keep_sources as u64).then(|| image.clone());
    let mut sample = Sample::new(image, labeled.groundtruth());
    let mut rng = order.generator(at);
    for augmentation in &options.augmentations {
        augmentation.apply(&mut sample, &mut rng);
    }
    let from = (sample.height, sample.width);
    let image = match &sample.pixels {
        Pixels::Bytes(data) => options.resizer.resize(data, from),
        Pixels::Floats(data) => options.resizer.resize(data, from),
    };
    Ok(Prepared { image, groundtruth: sample.groundtruth, name: labeled.filename, source_size, source })
}

/// Whether record paths stand for something that can be read, and hold a picture between them.
///
/// # Errors
/// As [`Loader::new`].
pub fn records_exist(paths: &[std::path::PathBuf]) -> Result<()> {
    Records::open(paths).map(|_| ())
}
