//! `odh tfgen`: labelled pictures become a dataset.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use anyhow::{Context, Result, anyhow, bail, ensure};
use clap::ArgAction;
use indicatif::{ProgressBar, ProgressStyle};
use rayon::prelude::*;

use crate::config::label_map::LabelMap;
use crate::data::dataset::ahead::{Ahead, Hoped};
use crate::data::dataset::check::{self, Labelled, Pass, Picture};
use crate::data::dataset::finding::{Finding, Level, Outcome, printable, shown};
use crate::data::dataset::pairing::{self, Wanted};
use crate::data::dataset::picture::Depth;
use crate::data::dataset::walk::{Tree, file_name, path_as_text, stem};
use crate::data::dataset::write::{self, Staged};
use crate::data::dataset::{summary, table, whole};
use crate::data::split::{self, Side, Unit};
use crate::formats::voc::{self, Annotation};
use crate::logging::old_clock;
use crate::{exit, interrupt, logging, outln, prompt};

const EXAMPLE: &str = "\
Examples:
  odh tfgen -sr 8                                # images/ -> dataset/, 8 of 10 pictures train
  odh tfgen -i photos -l map.pbtxt --write_label_map -sr 0.85
  odh tfgen -c -tc my/train.csv -vc my/val.csv   # your own boxes and your own split

A picture's labels may be anywhere below the input folder. What is wrong with a picture or a box is said, and it is left out;
--strict stops instead. Boxes are [xmin, ymin, xmax, ymax] in pixels of the picture as stored.";

/// XML files above this are no labels.
const LARGEST_XML: u64 = 64 << 20;
/// Notes that the terminal shows; the log has them all.
const SHOWN_NOTES: usize = 20;

/// What `odh tfgen` is told.
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLE)]
pub struct Args {
    /// Largest class id that the label map may have
    #[arg(short = 'm', long = "max_num_classes", value_name = "N", default_value_t = 90)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..))]
    max_num_classes: u32,
    /// Folder of pictures and their labelImg XML, searched with its subfolders
    #[arg(short = 'i', long = "input_folder", value_name = "FOLDER", default_value = "./images/")]
    input_folder: PathBuf,
    /// Label map
    #[arg(short = 'l', long = "label_file", value_name = "FILE", default_value = "./label_map.pbtxt")]
    label_file: PathBuf,
    /// Write the label map from the classes found if it is not there, without asking
    #[arg(long = "write_label_map", value_name = "BOOL", action = ArgAction::Set, num_args = 0..=1, require_equals = true)]
    #[arg(default_value = "false", default_missing_value = "true", value_parser = crate::flags::boolean)]
    write_label_map: bool,
    /// Take boxes and split from the two CSV files instead of the XML; `name,width,height,,,,,` is a picture without boxes
    #[arg(short = 'c', long = "custom_csv", value_name = "BOOL", action = ArgAction::Set, num_args = 0..=1, require_equals = true)]
    #[arg(default_value = "false", default_missing_value = "true", value_parser = crate::flags::boolean)]
    custom_csv: bool,
    /// CSV of the training boxes [default: train.csv in the output folder]; short: -tc
    #[arg(long = "train_csv_output", value_name = "FILE")]
    train_csv_output: Option<PathBuf>,
    /// CSV of the validation boxes [default: validate.csv in the output folder]; short: -vc
    #[arg(long = "validate_csv_output", value_name = "FILE")]
    validate_csv_output: Option<PathBuf>,
    /// Tenths of the pictures that train (1 to 9; 5 is 50:50), or a fraction below 1 such as 0.85; short: -sr
    #[arg(long = "split_rate", value_name = "RATE", default_value = "8", value_parser = split::parse_rate)]
    split_rate: f64,
    /// Seed of the split: the same pictures and seed give the same files
    #[arg(long = "seed", value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Folder for train.record and validate.record
    #[arg(short = 'o', long = "output_folder", value_name = "FOLDER", default_value = "./dataset")]
    output_folder: PathBuf,
    /// Write each record in N files, train.record-00000-of-0000N and so on
    #[arg(long = "num_shards", value_name = "N", value_parser = clap::value_parser!(u32).range(1..=99_999))]
    num_shards: Option<u32>,
    /// How far pictures are looked into. `decode` finds all that would fail in training, and is the default since a training run
    /// costs more than the check; `structure` reads headers and follows markers to the end, which finds truncated files at about
    /// the disk's speed
    #[arg(long = "picture_check", value_name = "DEPTH", value_enum, default_value = "decode")]
    picture_check: Depth,
    /// If anything is wrong, write nothing and exit with 1 (notes are not wrong)
    #[arg(long = "strict", value_name = "BOOL", action = ArgAction::Set, num_args = 0..=1, require_equals = true)]
    #[arg(default_value = "false", default_missing_value = "true", value_parser = crate::flags::boolean)]
    strict: bool,
}

impl Args {
    /// The record of each side, and the files it is written in.
    fn records(&self) -> [(PathBuf, Vec<PathBuf>); 2] {
        ["train", "validate"].map(|name| {
            let path = self.output_folder.join(format!("{name}.record"));
            let paths = write::record_paths(&path, self.num_shards.map(|shards| shards as usize));
            (path, paths)
        })
    }
}

/// The label map, or the leave to write one.
enum Classes {
    Map(LabelMap),
    ToWrite,
}

/// Checks, splits and writes a dataset.
///
/// # Errors
/// If the input or the label map cannot be read, nothing can be used, a fault was found under `--strict`, the user stopped
/// it, or a file cannot be written. The old dataset is whole then.
pub fn run(args: Args) -> Result<()> {
    let start = Instant::now();
    tracing::info!(
        "Program start [ tfgen, input folder : {}, label file : {}, custom csv : {}, split rate : {}, seed : {}, picture check : \
         {:?} ]",
        args.input_folder.display(),
        args.label_file.display(),
        args.custom_csv,
        args.split_rate,
        args.seed,
        args.picture_check
    );
    let tree = Tree::walk(&args.input_folder)?;
    let csv = [
        args.train_csv_output.clone().unwrap_or_else(|| args.output_folder.join("train.csv")),
        args.validate_csv_output.clone().unwrap_or_else(|| args.output_folder.join("validate.csv")),
    ];
    let mut findings = tree.findings.clone();
    // Pictures that some label file means.
    let mut seen = vec![false; tree.pictures.len()];
    let (labelled, given) = match args.custom_csv {
        true => from_csv(&tree, &csv, &mut seen, &mut findings)?,
        false => (from_xml(&tree, &mut seen, &mut findings)?, None),
    };
    let without_labels = seen.iter().filter(|seen| !**seen).count();
    let classes = label_map(&args, &labelled)?;
    // Not before: at the question of the label map, Ctrl-C is an answer.
    let stop = interrupt::watch();

    let mut staged = Staged::default();
    // The split as it is if nothing is wrong, so that records can be written while their pictures are in memory.
    let hoped = if args.strict { None } else { hoped(&args, &labelled, given.as_ref(), &classes) };
    let ahead = match &hoped {
        Some(hoped) => {
            let paths = args.records().map(|(_, paths)| paths);
            Some(Ahead::new(&mut staged, paths, &labelled, hoped)?)
        }
        None => None,
    };
    let progress = bar(labelled.len(), "checking");
    let taker = ahead.as_ref().map(|ahead| ahead as &dyn check::Take);
    let map = match &classes {
        Classes::Map(map) => Some(map),
        Classes::ToWrite => None,
    };
    let pass = Pass { depth: args.picture_check, map, progress: &progress, stop, taker };
    let checked = check::check_all(&labelled, &pass);
    progress.finish_and_clear();
    let (mut pictures, found) = checked?;
    if interrupt::requested() {
        return Err(exit::interrupted("stopped; the old dataset is as it was"));
    }
    let complete = match ahead {
        Some(ahead) => ahead.finish()?,
        None => false,
    };
    findings.extend(found);
    drop(labelled);

    let (map, write_map) = match classes {
        Classes::Map(map) => (map, false),
        Classes::ToWrite => (LabelMap::from_names(whole::classes(&pictures)), true),
    };
    ensure!(
        !write_map || map.num_classes() <= args.max_num_classes,
        "{} classes were found, more than --max_num_classes {}; raise it, or correct the labels if that is too many",
        map.num_classes(),
        args.max_num_classes
    );
    findings.extend(map.notes().into_iter().map(|note| Finding::note(&args.label_file, note)));
    let objects: usize = pictures.iter().map(|picture| picture.objects.len()).sum();
    let without_class = whole::assign_classes(&mut pictures, &map, args.max_num_classes);
    if args.write_label_map && !write_map && !without_class.is_empty() {
        let text = "it is there already, and --write_label_map leaves it as it is; delete it to have it written anew";
        findings.push(Finding::note(&args.label_file, text));
    } else if 2 * without_class.len() > objects {
        let text = format!(
            "{} of {objects} objects cannot be used by it; if it is another set's label map, correct it, or delete it, and tfgen offers to \
             write it from the classes found",
            without_class.len()
        );
        findings.push(Finding::note(&args.label_file, text));
    }
    findings.extend(without_class);
    findings.extend(whole::drop_emptied(&mut pictures));
    let groups = whole::same_bytes(&pictures);
    let sides = match (given, hoped) {
        (Some(given), _) => pictures.iter().map(|picture| side_of(&picture.labels, &given)).collect(),
        // Nothing was wrong, so the split is the one hoped for.
        (None, Some(hoped)) if complete && groups.is_empty() => hoped.sides,
        (None, _) => divide(&content(&pictures, &groups), &args),
    };
    let complete = complete && (groups.is_empty() || args.custom_csv);
    findings.extend(whole::duplicates(&pictures, &sides, &groups));
    findings.extend(summary::one_sided(&pictures, &sides, &map, &args.input_folder, args.custom_csv));
    let counts = tell(findings);
    ensure!(
        !args.strict || counts.problems == 0,
        "{} found, and --strict was given: nothing was written",
        summary::plural(counts.problems, "problem")
    );
    ensure!(
        !write_map || pictures.is_empty() || map.num_classes() > 0,
        "`{}`: no object is labelled, so there is no class to write into `{}`; label objects in labelImg; nothing was written",
        shown(&args.input_folder),
        shown(&args.label_file)
    );
    ensure!(!pictures.is_empty(), "`{}`: no labelled picture that can be used; nothing was written", shown(&args.input_folder));

    let plan = Plan { args: &args, csv: &csv, map: write_map.then_some(&map), complete, stop };
    let written = write_all(staged, &plan, &pictures, &sides)?;
    for line in summary::table(&pictures, &sides, &map) {
        tracing::info!("{line}");
        outln!("{line}");
    }
    let negatives = pictures.iter().filter(|picture| picture.objects.is_empty()).count();
    let mut closing = vec![format!(
        "{} ({}), {} ({} and {} skipped), {}",
        summary::plural(pictures.len(), "picture"),
        summary::plural(negatives, "negative"),
        summary::plural(counts.problems, "problem"),
        summary::plural(counts.objects, "object"),
        summary::plural(counts.pictures, "picture"),
        summary::plural(counts.notes, "note"),
    )];
    if without_labels > 0 {
        closing.push(format!("{} without labels, not used", summary::plural(without_labels, "picture")));
    }
    closing.push(format!("wrote {} (split seed {})", written.join(", "), args.seed));
    for line in closing {
        tracing::info!("{line}");
        outln!("{line}");
    }
    tracing::info!("Tfrecord generation Success [ Total time : {} ]", old_clock(start.elapsed()));
    Ok(())
}

fn bar(length: usize, what: &str) -> ProgressBar {
    let style = ProgressStyle::with_template("{msg} [{wide_bar}] {pos}/{len} pictures, {per_sec}, {eta} left");
    let bar = ProgressBar::new(length as u64).with_message(what.to_string());
    if let Ok(style) = style {
        bar.set_style(style.progress_chars("=> "));
    }
    logging::progress().add(bar)
}

/// Reads every XML file and finds its picture.
fn from_xml(tree: &Tree, seen: &mut [bool], findings: &mut Vec<Finding>) -> Result<Vec<Labelled>> {
    ensure!(
        !tree.labels.is_empty(),
        "`{}`: there is no XML file in it or below; label the pictures with labelImg (Pascal VOC), or name another folder with \
         --input_folder",
        shown(&tree.root)
    );
    let read: Vec<Result<Annotation>> = tree.labels.par_iter().map(|path| read_xml(path)).collect();
    let mut annotations = Vec::with_capacity(read.len());
    let mut wanted = Vec::with_capacity(read.len());
    for (path, read) in tree.labels.iter().zip(read) {
        match read {
            Ok(annotation) => {
                for tag in &annotation.misplaced {
                    let text =
                        "is not directly inside <annotation>, or has capitals, and is not read: set it right, or remove it";
                    findings.push(Finding::object_skipped(path, &format!("<{tag}>"), text));
                }
                wanted.push(Wanted::of(path, &annotation));
                annotations.push(annotation);
            }
            Err(error) => {
                findings.push(Finding::picture_skipped(path, format!("{error:#}")));
                // Its picture has labels, if none that can be read.
                for &picture in tree.named(&stem(&file_name(path))) {
                    seen[picture] |= tree.pictures[picture].parent() == path.parent();
                }
            }
        }
    }
    let (pairs, found) = pairing::pair(tree, &wanted);
    findings.extend(found);
    for &picture in pairs.iter().flatten() {
        seen[picture] = true;
    }
    // Of all, labelled or not: --custom_csv looks among all of them.
    let mut names: HashMap<String, usize> = HashMap::new();
    for picture in &tree.pictures {
        *names.entry(file_name(picture)).or_default() += 1;
    }
    let paired = wanted.into_iter().zip(annotations).zip(pairs);
    Ok(paired
        .filter_map(|((wanted, annotation), picture)| {
            let picture = &tree.pictures[picture?];
            // Of two pictures of one name, the path below the input folder tells which is meant.
            let name = match names.get(&file_name(picture)) {
                Some(&count) if count > 1 => path_as_text(picture.strip_prefix(&tree.root).unwrap_or(picture)),
                _ => file_name(picture),
            };
            let objects = annotation.objects.into_iter().enumerate();
            Some(Labelled {
                labels: wanted.labels,
                place: None,
                picture: picture.clone(),
                name,
                size: [annotation.width, annotation.height],
                objects: objects.map(|(i, object)| (format!("object {}", i + 1), object)).collect(),
            })
        })
        .collect())
}

fn read_xml(path: &Path) -> Result<Annotation> {
    let mut bytes = Vec::with_capacity(1 << 14);
    let file = File::open(path).context("cannot be opened")?;
    file.take(LARGEST_XML + 1).read_to_end(&mut bytes).context("cannot be read")?;
    ensure!(
        bytes.len() as u64 <= LARGEST_XML,
        "the file has more than {LARGEST_XML} bytes, which no label file has; move it out of the input folder"
    );
    voc::parse(&bytes)
}

/// Which CSV file stands for which side.
type Given = HashMap<PathBuf, Side>;

/// Reads the two CSV files and finds their pictures.
fn from_csv(
    tree: &Tree,
    csv: &[PathBuf; 2],
    seen: &mut [bool],
    findings: &mut Vec<Finding>,
) -> Result<(Vec<Labelled>, Option<Given>)> {
    let same = match (csv[0].canonicalize(), csv[1].canonicalize()) {
        (Ok(train), Ok(validate)) => train == validate,
        _ => csv[0] == csv[1],
    };
    ensure!(!same, "`{}`: is given as both CSV files; name two with -tc and -vc", shown(&csv[0]));
    let mut labelled = Vec::new();
    for path in csv {
        let table = table::read(path)?;
        for (line, text) in table.faults {
            findings.push(Finding::object_skipped(path, &format!("line {line}"), text));
        }
        for (line, text) in table.sizes {
            let text = format!("the size is given as {text}; the picture's own is used, so correct the wrong one");
            findings.push(Finding::kept(path, text).of(&format!("line {line}")));
        }
        // Of this file: the boxes of one picture belong together, whatever the lines call it.
        let mut pictures: HashMap<usize, usize> = HashMap::new();
        for rows in table.pictures {
            let line = format!("line {}", rows.line);
            match pairing::by_filename(tree, &rows.filename) {
                Ok((picture, note)) => {
                    seen[picture] = true;
                    findings.extend(note.map(|note| Finding::note(path, note).of(&line)));
                    if let Some(&earlier) = pictures.get(&picture) {
                        let earlier: &mut Labelled = &mut labelled[earlier];
                        let text = format!(
                            "`{}` is the picture `{}` again, and its boxes are added to that one's; write one name",
                            printable(rows.filename.trim()),
                            printable(&earlier.name)
                        );
                        findings.push(Finding::note(path, text).of(&line));
                        earlier.objects.extend(rows.objects);
                        continue;
                    }
                    pictures.insert(picture, labelled.len());
                    let picture = tree.pictures[picture].clone();
                    let to_the_letter = picture.file_name() == Some(OsStr::new(&rows.filename));
                    let name = if to_the_letter { rows.filename.as_str() } else { rows.filename.trim() };
                    labelled.push(Labelled {
                        labels: path.clone(),
                        place: Some(line),
                        picture,
                        name: name.to_string(),
                        size: rows.size,
                        objects: rows.objects,
                    });
                }
                Err(text) => findings.push(Finding::picture_skipped(path, text).of(&line)),
            }
        }
    }
    let given = HashMap::from([(csv[0].clone(), Side::Train), (csv[1].clone(), Side::Validate)]);
    Ok((labelled, Some(given)))
}

fn side_of(labels: &Path, given: &Given) -> Side {
    given.get(labels).copied().unwrap_or(Side::Train)
}

/// Reads the label map, or asks whether it may be written. Asked before the long work, which then needs nobody.
fn label_map(args: &Args, labelled: &[Labelled]) -> Result<Classes> {
    let file = &args.label_file;
    match LabelMap::load(file) {
        Ok(map) => return Ok(Classes::Map(map)),
        Err(error) if file.exists() => return Err(error),
        Err(_) => {}
    }
    if args.write_label_map {
        return Ok(Classes::ToWrite);
    }
    let mut names: Vec<&str> =
        labelled.iter().flat_map(|l| &l.objects).filter_map(|(_, object)| object.name.as_deref().map(str::trim)).collect();
    names.sort_unstable();
    names.dedup();
    let mut list = names.iter().take(20).map(|name| format!("`{}`", printable(name))).collect::<Vec<_>>().join(", ");
    if names.len() > 20 {
        list.push_str(&format!(" and {} more", names.len() - 20));
    }
    let missing =
        format!("`{}`: there is no such label map; {} found: {list}", shown(file), summary::plural(names.len(), "class"));
    if !prompt::possible() {
        bail!("{missing}. Write it by hand, or let --write_label_map write it");
    }
    match prompt::confirm(&format!("{missing}.\nWrite it with these?"), "--write_label_map", true)? {
        true => Ok(Classes::ToWrite),
        false => Err(anyhow!("{missing}. Write it by hand and run tfgen again")),
    }
}

/// Split and label map, from the labels alone; `None` if they already show that something is wrong.
fn hoped(args: &Args, labelled: &[Labelled], given: Option<&Given>, classes: &Classes) -> Option<Hoped> {
    let map = match classes {
        Classes::Map(map) => map.clone(),
        Classes::ToWrite => {
            let names = labelled.iter().flat_map(|l| &l.objects).filter_map(|(_, object)| object.name.as_deref());
            LabelMap::from_names(names.map(str::trim).collect::<BTreeSet<_>>())
        }
    };
    if map.num_classes() > args.max_num_classes {
        return None;
    }
    let mut ids: HashMap<&str, u32> = HashMap::new();
    let mut content = Vec::with_capacity(labelled.len());
    for (i, labelled) in labelled.iter().enumerate() {
        let mut classes = Vec::with_capacity(labelled.objects.len());
        for (_, object) in &labelled.objects {
            let name = object.name.as_deref()?.trim();
            let id = match ids.get(name) {
                Some(id) => *id,
                None => *ids.entry(name).or_insert(map.id_of(name)?),
            };
            classes.push(id);
        }
        content.push((i, classes));
    }
    let sides = match given {
        Some(given) => labelled.iter().map(|labelled| side_of(&labelled.labels, given)).collect(),
        None => divide(&content, args),
    };
    Some(Hoped { map, max_id: args.max_num_classes, sides })
}

/// What the split has to know of each picture: which it is one with, and its boxes' class ids.
type Content = Vec<(usize, Vec<u32>)>;

/// Of checked pictures; those with the same bytes are one.
fn content(pictures: &[Picture], groups: &[Vec<usize>]) -> Content {
    let mut content: Content =
        pictures.iter().enumerate().map(|(i, p)| (i, p.objects.iter().map(|object| object.id).collect())).collect();
    for group in groups {
        for &member in group {
            content[member].0 = group[0];
        }
    }
    content
}

/// Splits by picture.
fn divide(content: &Content, args: &Args) -> Vec<Side> {
    let mut numbers: HashMap<usize, usize> = HashMap::new();
    let mut units: Vec<Unit> = Vec::new();
    let mut unit_of = Vec::with_capacity(content.len());
    for (one_with, ids) in content {
        let index = *numbers.entry(*one_with).or_insert_with(|| {
            units.push(Unit::default());
            units.len() - 1
        });
        unit_of.push(index);
        let unit = &mut units[index];
        unit.pictures += 1;
        let mut boxes: BTreeMap<usize, usize> = BTreeMap::new();
        for id in ids {
            *boxes.entry(*id as usize - 1).or_default() += 1;
        }
        for (class, count) in boxes {
            match unit.classes.iter_mut().find(|(other, ..)| *other == class) {
                Some((_, pictures, boxes)) => {
                    *pictures += 1;
                    *boxes += count;
                }
                None => unit.classes.push((class, 1, count)),
            }
        }
    }
    let sides = split::split(&units, args.split_rate, args.seed);
    unit_of.into_iter().map(|index| sides[index]).collect()
}

/// How many of each kind of finding there were.
#[derive(Default)]
struct Counts {
    problems: usize,
    notes: usize,
    objects: usize,
    pictures: usize,
}

/// Says all findings, file by file: problems on the terminal and in the log, notes in the log and the first on the terminal.
fn tell(mut findings: Vec<Finding>) -> Counts {
    let mut counts = Counts::default();
    // A stable sort: within a file they stay in the order of its objects.
    findings.sort_by(|a, b| a.file.cmp(&b.file));
    for finding in &findings {
        match finding.outcome {
            Outcome::ObjectSkipped => counts.objects += 1,
            Outcome::PictureSkipped => counts.pictures += 1,
            Outcome::Kept | Outcome::PassedOver => {}
        }
        match finding.level {
            Level::Problem => {
                counts.problems += 1;
                tracing::warn!("{finding}");
            }
            Level::Note => {
                counts.notes += 1;
                tracing::info!(target: logging::FILE_ONLY, "note: {finding}");
                if counts.notes <= SHOWN_NOTES {
                    logging::say(&format!("note: {finding}"));
                }
            }
        }
    }
    if counts.notes > SHOWN_NOTES {
        logging::say(&format!("note: {} more like these in process.log", counts.notes - SHOWN_NOTES));
    }
    counts
}

/// What is written where.
struct Plan<'a> {
    args: &'a Args,
    csv: &'a [PathBuf; 2],
    map: Option<&'a LabelMap>,
    /// Whether the records are written already.
    complete: bool,
    stop: &'a AtomicBool,
}

/// Writes everything under temporary names, then puts all in place; gives the files' names.
fn write_all(mut staged: Staged, plan: &Plan, pictures: &[Picture], sides: &[Side]) -> Result<Vec<String>> {
    let args = plan.args;
    let mut written = Vec::new();
    if let Some(map) = plan.map {
        let text = map.to_text()?;
        write::small(&mut staged, &args.label_file, |out| Ok(out.write_all(text.as_bytes())?))?;
        written.push(shown(&args.label_file));
    }
    let records = args.records();
    for (i, side) in [Side::Train, Side::Validate].into_iter().enumerate() {
        let of_side: Vec<&Picture> =
            pictures.iter().zip(sides).filter(|(_, s)| **s == side).map(|(picture, _)| picture).collect();
        if !args.custom_csv {
            write::small(&mut staged, &plan.csv[i], |out| table::write(out, of_side.iter().copied()))?;
            written.push(shown(&plan.csv[i]));
        }
        let (path, paths) = &records[i];
        if !plan.complete {
            staged.discard(paths);
            let progress = bar(of_side.len(), "writing");
            let result = write::records(&mut staged, paths.clone(), &of_side, &progress, plan.stop);
            progress.finish_and_clear();
            result?;
        }
        written.push(match args.num_shards {
            None => shown(path),
            Some(shards) => format!("{} in {}", shown(path), summary::plural(shards as usize, "shard")),
        });
    }
    staged.commit()?;
    for (path, kept) in &records {
        write::remove_other_shards(path, kept);
    }
    Ok(written)
}
