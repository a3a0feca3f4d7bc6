//! `odh tfgen`: labelled pictures become a dataset.

use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use anyhow::{Result, anyhow, bail, ensure};
use clap::ArgAction;
use indicatif::{ProgressBar, ProgressStyle};

use crate::config::label_map::LabelMap;
use crate::data::dataset::ahead::Ahead;
use crate::data::dataset::check::{self, Labelled, Pass, Picture};
use crate::data::dataset::division::{Division, content};
use crate::data::dataset::finding::{Finding, Level, Outcome, shown};
use crate::data::dataset::labels::{from_csv, from_xml, side_of};
use crate::data::dataset::picture::Depth;
use crate::data::dataset::walk::Tree;
use crate::data::dataset::write::{self, Staged};
use crate::data::dataset::{summary, table, whole};
use crate::data::split::{self, Side};
use crate::logging::old_clock;
use crate::wording::{plural, printable};
use crate::{interrupt, logging, outln, prompt};

const EXAMPLE: &str = "\
Examples:
  odh tfgen -sr 8                                # images/ -> dataset/, 8 of 10 pictures train
  odh tfgen -i photos -l map.pbtxt --write_label_map -sr 0.85
  odh tfgen -c -tc my/train.csv -vc my/val.csv   # your own boxes and your own split

A picture's labels may be anywhere below the input folder. What is wrong with a picture or a box is said, and it is left out; \
--strict stops instead. Boxes are [xmin, ymin, xmax, ymax] in pixels of the picture as stored.";

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
        true => from_csv(&tree, &csv, &mut seen, &mut findings).map(|(labelled, given)| (labelled, Some(given)))?,
        false => (from_xml(&tree, &mut seen, &mut findings)?, None),
    };
    let without_labels = seen.iter().filter(|seen| !**seen).count();
    let classes = label_map(&args, &labelled)?;
    // Not before: at the question of the label map, Ctrl-C is an answer.
    let stop = interrupt::watch();

    let mut staged = Staged::default();
    // The split as it is if nothing is wrong, so that records can be written while their pictures are in memory.
    let map = match &classes {
        Classes::Map(map) => Some(map),
        Classes::ToWrite => None,
    };
    let division = Division { rate: args.split_rate, seed: args.seed };
    let hoped = if args.strict { None } else { division.hoped(&labelled, given.as_ref(), map, args.max_num_classes) };
    let ahead = match &hoped {
        Some(hoped) => {
            let paths = args.records().map(|(_, paths)| paths);
            Some(Ahead::new(&mut staged, paths, &labelled, hoped)?)
        }
        None => None,
    };
    let progress = bar(labelled.len(), "checking");
    let taker = ahead.as_ref().map(|ahead| ahead as &dyn check::Take);
    let pass = Pass { depth: args.picture_check, map, progress: &progress, stop, taker };
    let checked = check::check_all(&labelled, &pass);
    progress.finish_and_clear();
    let (mut pictures, found) = checked?;
    interrupt::check(|| "stopped; the old dataset is as it was".to_string())?;
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
        !write_map || map.max_id() <= args.max_num_classes,
        "{} classes were found, more than --max_num_classes {}; raise it, or correct the labels if that is too many",
        map.max_id(),
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
        (None, _) => division.of(&content(&pictures, &groups)),
    };
    let complete = complete && (groups.is_empty() || args.custom_csv);
    findings.extend(whole::duplicates(&pictures, &sides, &groups));
    findings.extend(summary::one_sided(&pictures, &sides, &map, &args.input_folder, args.custom_csv));
    let counts = tell(findings);
    ensure!(
        !args.strict || counts.problems == 0,
        "{} found, and --strict was given: nothing was written",
        plural(counts.problems, "problem")
    );
    ensure!(
        !write_map || pictures.is_empty() || map.max_id() > 0,
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
        plural(pictures.len(), "picture"),
        plural(negatives, "negative"),
        plural(counts.problems, "problem"),
        plural(counts.objects, "object"),
        plural(counts.pictures, "picture"),
        plural(counts.notes, "note"),
    )];
    if without_labels > 0 {
        closing.push(format!("{} without labels, not used", plural(without_labels, "picture")));
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
    let missing = format!("`{}`: there is no such label map; {} found: {list}", shown(file), plural(names.len(), "class"));
    if !prompt::possible() {
        bail!("{missing}. Write it by hand, or let --write_label_map write it");
    }
    match prompt::confirm(&format!("{missing}.\nWrite it with these?"), "--write_label_map", true)? {
        true => Ok(Classes::ToWrite),
        false => Err(anyhow!("{missing}. Write it by hand and run tfgen again")),
    }
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
            Some(shards) => format!("{} in {}", shown(path), plural(shards as usize, "shard")),
        });
    }
    staged.commit()?;
    for (path, kept) in &records {
        write::remove_other_shards(path, kept);
    }
    Ok(written)
}
