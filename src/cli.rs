//! The command line: flags as typed, then as meant; dispatch; what failed, and the exit code.

use std::collections::HashMap;
use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Arg, ArgAction, Command, CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::commands::{detect, eval, export, models, tfgen, train};
use crate::logging::{self, Level};
use crate::net::shim::{self, Preloaded};
use crate::{exit, flags, limits};

const EXAMPLE: &str = "\
Examples:
  odh models                                 # what can be trained
  odh tfgen -sr 8                            # images/ -> dataset/: 8 of 10 pictures train, 2 validate
  odh train -m ssd_mobilenet_v1_coco -s 6000 -n 3000
  odh detect photo.jpg                       # boxes on a picture, or on a folder of them
  cat process.log                            # what happened, how long it took, how good it is

`odh COMMAND --help` shows the flags of a command and an example.";

/// From a folder of labelled pictures to a trained, evaluated, exported object detector
#[derive(Parser)]
#[command(name = "odh", version, after_help = EXAMPLE, arg_required_else_help = true, max_term_width = 100)]
pub struct Cli {
    /// Least severe lines to keep in process.log [default: INFO]; short: -lv, -log_level
    #[arg(long = "log_level", global = true, value_name = "DEBUG|INFO|WARNING|ERROR|CRITICAL")]
    log_level: Option<Level>,
    #[command(subcommand)]
    command: Commands,
}

#[derive(Subcommand)]
enum Commands {
    /// Turn labelled pictures into TFRecord files for training and validation
    Tfgen(tfgen::Args),
    /// Fine-tune a model, evaluate it as it learns, and export it
    Train(train::Args),
    /// Measure a trained model: PASCAL VOC mAP@0.5 and the COCO figures
    Eval(eval::Args),
    /// Write a trained model for TensorFlow, onnxruntime and PyTorch, and verify it
    Export(export::Args),
    /// Find objects on pictures and draw them
    Detect(detect::Args),
    /// List the models, or tell all of one
    Models(models::Args),
}

impl Commands {
    /// Whether it needs libtorch.
    fn computes(&self) -> bool {
        match self {
            Commands::Train(_) | Commands::Eval(_) | Commands::Export(_) | Commands::Detect(_) => true,
            Commands::Tfgen(_) | Commands::Models(_) => false,
        }
    }

    fn run(self) -> Result<()> {
        match self {
            Commands::Tfgen(args) => tfgen::run(args),
            Commands::Train(args) => train::run(args),
            Commands::Eval(args) => eval::run(args),
            Commands::Export(args) => export::run(args),
            Commands::Detect(args) => detect::run(args),
            Commands::Models(args) => models::run(args),
        }
    }
}

/// Runs the command line `typed` (program name first) and says how it ended.
pub fn main(typed: Vec<OsString>) -> ExitCode {
    let preloaded = Preloaded::take();
    limits::raise();
    // A flag given twice: the last one counts, as in the old tool.
    let mut grammar = Cli::command().args_override_self(true).mut_subcommands(|command| command.args_override_self(true));
    grammar.build();
    let meant = as_meant(typed, &grammar);
    let line = meant.iter().map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ");
    let parsed = grammar.try_get_matches_from(meant).and_then(|matches| Cli::from_arg_matches(&matches));
    let cli = match parsed {
        Ok(cli) => cli,
        Err(e) => {
            // Help and version are results, all else an error; a reader that has gone is neither.
            return match e.print() {
                _ if e.use_stderr() => ExitCode::from(2),
                Err(fault) if !logging::reader_has_gone(&fault) => ExitCode::FAILURE,
                _ => ExitCode::SUCCESS,
            };
        }
    };
    // Before the log is opened, as the program may start again.
    let ready = if cli.command.computes() { shim::restart(preloaded) } else { Ok(None) };
    logging::init(Path::new("."), cli.log_level);
    tracing::debug!("{line}");
    if let Ok(Some(e)) = &ready {
        tracing::warn!("compute threads wait by OpenMP's defaults, which slow the loading of pictures: {e}");
    }
    match ready.and_then(|_| cli.command.run()).and_then(|()| logging::printed()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            let code = exit::code(&e);
            if code == 130 {
                tracing::warn!(target: logging::FILE_ONLY, "{e:#}");
            } else {
                tracing::error!(target: logging::FILE_ONLY, critical = true, "{}", exit::causes(&e).join(": "));
            }
            logging::say(&format!("error: {}", exit::causes(&e).join("\n  caused by: ")));
            ExitCode::from(code)
        }
    }
}

/// Letters, the long flag, and what may stand directly behind the letters.
type OldShort = (&'static str, &'static str, fn(&str) -> bool);

/// The old tool's flags of several letters after one dash, and the flag that each stands for.
///
/// The third column says what may stand directly behind it (`-sr5`): where a value is not of this form, the letters mean
/// the one-letter flag again (`-lvalues.txt` is `-l values.txt`).
const OLD_SHORTS: &[OldShort] = &[
    ("log_level", "log_level", is_level),
    ("lv", "log_level", is_level),
    ("sr", "split_rate", is_number),
    ("tc", "train_csv_output", is_anything),
    ("vc", "validate_csv_output", is_anything),
];

fn is_level(value: &str) -> bool {
    value.parse::<Level>().is_ok()
}

fn is_number(value: &str) -> bool {
    value.parse::<f64>().is_ok()
}

fn is_anything(_: &str) -> bool {
    true
}

/// How a flag takes its value.
#[derive(Clone, Copy, PartialEq)]
enum Takes {
    /// The next word, whatever it is.
    Value,
    /// A boolean word, or none.
    Boolean,
    /// Stands alone; `--flag False` takes it away again.
    Nothing,
}

/// What one command's flags are called and what they take.
#[derive(Default)]
struct Known {
    longs: HashMap<String, Takes>,
    shorts: HashMap<char, Takes>,
    /// Whether words that are no flags mean something.
    positionals: bool,
}

impl Known {
    fn of<'a>(args: impl Iterator<Item = &'a Arg>) -> Known {
        let mut known = Known::default();
        for arg in args {
            if arg.is_positional() {
                known.positionals = true;
                continue;
            }
            let takes = match arg.get_action() {
                ArgAction::Set | ArgAction::Append if arg.is_require_equals_set() => Takes::Boolean,
                ArgAction::Set | ArgAction::Append => Takes::Value,
                _ => Takes::Nothing,
            };
            for long in arg.get_long_and_visible_aliases().unwrap_or_default() {
                known.longs.insert(long.to_string(), takes);
            }
            for short in arg.get_short_and_visible_aliases().unwrap_or_default() {
                known.shorts.insert(short, takes);
            }
        }
        known
    }
}

/// Rewrites the words of a command line into what clap parses: the old tool's short flags of several letters, hyphens for
/// underscores in long flags, and boolean words after boolean flags. A word that is a flag's value, or stands after `--`, is
/// left as it is.
fn as_meant(typed: Vec<OsString>, grammar: &Command) -> Vec<OsString> {
    let mut meant = Vec::with_capacity(typed.len());
    let mut known = Known::of(grammar.get_arguments());
    let mut in_command = false;
    let mut words = typed.into_iter().peekable();
    meant.extend(words.next());
    while let Some(word) = words.next() {
        let Some(text) = word.to_str() else {
            meant.push(word);
            continue;
        };
        if text == "--" {
            meant.push(word);
            meant.extend(words);
            break;
        }
        if !text.starts_with('-') || text == "-" {
            if !in_command && let Some(command) = grammar.find_subcommand(text) {
                known = Known::of(command.get_arguments().chain(grammar.get_arguments().filter(|a| a.is_global_set())));
                in_command = true;
            }
            meant.push(word);
            continue;
        }
        let flag = Flag::read(text, &known);
        let next = words.peek().and_then(|next| next.to_str());
        match (flag.takes, &flag.value) {
            (Some(Takes::Value), None) => {
                // A negative number is a value, not a flag; clap takes it only behind an equals sign.
                if next.is_some_and(|next| next.starts_with('-') && is_number(next)) {
                    let value = words.next().unwrap_or_default();
                    meant.push(joined(&flag.name, &value));
                } else {
                    meant.push(flag.name.into());
                    meant.extend(words.next());
                }
            }
            (Some(Takes::Boolean), None) => match next.filter(|next| flags::boolean(next).is_ok()) {
                Some(_) => {
                    let value = words.next().unwrap_or_default();
                    meant.push(joined(&flag.name, &value));
                }
                None => meant.push(flag.name.into()),
            },
            (Some(Takes::Nothing), value) => {
                // `models --json 1` asks for the first model.
                let next = next.filter(|next| !(known.positionals && is_number(next)));
                let given = value.as_deref().or(next).map(flags::boolean);
                match (given, value) {
                    (Some(Ok(on)), _) => {
                        if value.is_none() {
                            words.next();
                        }
                        if on {
                            meant.push(flag.name.into());
                        }
                    }
                    (_, Some(value)) => meant.push(joined(&flag.name, &value.into())),
                    (_, None) => meant.push(flag.name.into()),
                }
            }
            (Some(_), Some(value)) => meant.push(joined(&flag.name, &value.into())),
            (None, _) => meant.push(word),
        }
    }
    meant
}

/// One word of the command line that starts with a dash.
struct Flag {
    /// With its dashes, as clap knows it.
    name: String,
    value: Option<String>,
    /// `None` if the word is to be left to clap.
    takes: Option<Takes>,
}

impl Flag {
    fn read(word: &str, known: &Known) -> Flag {
        let unknown = Flag { name: word.to_string(), value: None, takes: None };
        if let Some(long) = word.strip_prefix("--") {
            let (name, value) = split_value(long);
            let spellings = [name.to_string(), name.replace('-', "_"), name.replace('_', "-")];
            let Some(name) = spellings.into_iter().find(|name| known.longs.contains_key(name)) else { return unknown };
            return Flag { takes: known.longs.get(&name).copied(), name: format!("--{name}"), value };
        }
        let letters = &word[1..];
        for (short, long, fits) in OLD_SHORTS {
            let Some(rest) = letters.strip_prefix(short) else { continue };
            let Some(takes) = known.longs.get(*long).copied() else { continue };
            let value = match rest.strip_prefix('=') {
                Some(value) => Some(value.to_string()),
                None if rest.is_empty() => None,
                None if fits(rest) => Some(rest.to_string()),
                None => continue,
            };
            return Flag { name: format!("--{long}"), value, takes: Some(takes) };
        }
        // A cluster such as `-re`, or `-n3000`: the letters up to the first that takes a value.
        let mut last = None;
        for (at, letter) in letters.char_indices() {
            let Some(takes) = known.shorts.get(&letter).copied() else { return unknown };
            let end = at + letter.len_utf8();
            let rest = &letters[end..];
            // `-rTrue`, as the old tool took it; letters such as `-rn` stay flags.
            if takes == Takes::Boolean && ["true", "false"].iter().any(|word| rest.eq_ignore_ascii_case(word)) {
                let name = word[..1 + end].to_string();
                return Flag { name, value: Some(rest.to_string()), takes: Some(takes) };
            }
            if rest.is_empty() || rest.starts_with('=') || takes == Takes::Value {
                last = Some((takes, end));
                break;
            }
        }
        let Some((takes, end)) = last else { return unknown };
        let (name, rest) = word.split_at(1 + end);
        let value = match rest.strip_prefix('=') {
            Some(value) => Some(value.to_string()),
            None if rest.is_empty() => None,
            // `-n3000` is clap's own.
            None => return unknown,
        };
        Flag { name: name.to_string(), value, takes: Some(takes) }
    }
}

fn split_value(flag: &str) -> (&str, Option<String>) {
    match flag.split_once('=') {
        Some((name, value)) => (name, Some(value.to_string())),
        None => (flag, None),
    }
}

fn joined(name: &str, value: &OsString) -> OsString {
    let mut word = OsString::from(name);
    word.push("=");
    word.push(value);
    word
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A grammar with each kind of flag, so that these tests do not depend on what the commands have.
    fn grammar() -> Command {
        let boolean = |name: &'static str, short| {
            Arg::new(name)
                .long(name)
                .short(short)
                .num_args(0..=1)
                .require_equals(true)
                .default_missing_value("true")
                .value_parser(flags::boolean)
        };
        let mut grammar = Command::new("odh")
            .arg(Arg::new("log_level").long("log_level").global(true))
            .subcommand(
                Command::new("tfgen")
                    .arg(Arg::new("label_file").long("label_file").short('l'))
                    .arg(Arg::new("input_folder").long("input_folder").short('i'))
                    .arg(Arg::new("split_rate").long("split_rate"))
                    .arg(Arg::new("train_csv_output").long("train_csv_output"))
                    .arg(Arg::new("validate_csv_output").long("validate_csv_output"))
                    .arg(Arg::new("strict").long("strict").action(ArgAction::SetTrue))
                    .arg(boolean("custom_csv", 'c')),
            )
            .subcommand(
                Command::new("train")
                    .arg(Arg::new("label_file").long("label_file").short('l'))
                    .arg(Arg::new("evaluate_number").long("evaluate_number").short('n'))
                    .arg(boolean("reset", 'r'))
                    .arg(boolean("evaluate", 'e'))
                    .arg(Arg::new("path").num_args(0..)),
            );
        grammar.build();
        grammar
    }

    fn meant(line: &str) -> String {
        let typed = line.split(' ').map(OsString::from).collect();
        let meant = as_meant(typed, &grammar());
        meant.iter().map(|w| w.to_str().unwrap()).collect::<Vec<_>>().join(" ")
    }

    #[track_caller]
    fn check(typed: &str, expected: &str) {
        assert_eq!(meant(&format!("odh {typed}")), format!("odh {expected}"));
    }

    #[test]
    fn the_old_short_flags_of_several_letters_work_in_every_form() {
        check("tfgen -sr 5", "tfgen --split_rate 5");
        check("tfgen -sr=5", "tfgen --split_rate=5");
        check("tfgen -sr5", "tfgen --split_rate=5");
        check("tfgen -sr0.85", "tfgen --split_rate=0.85");
        check(
            "tfgen -lv DEBUG -tc a.csv -vc b.csv",
            "tfgen --log_level DEBUG --train_csv_output a.csv --validate_csv_output b.csv",
        );
        check("tfgen -lv=DEBUG -lvinfo", "tfgen --log_level=DEBUG --log_level=info");
        check("train -log_level INFO", "train --log_level INFO");
        check("train -log_level=10", "train --log_level=10");
        check("-lv DEBUG train", "--log_level DEBUG train");
    }

    #[test]
    fn one_letter_flags_keep_their_values() {
        check("tfgen -l v", "tfgen -l v");
        check("tfgen -lfile.pbtxt", "tfgen -lfile.pbtxt");
        check("tfgen -lvalues.pbtxt", "tfgen -lvalues.pbtxt");
        check("train -log.pbtxt", "train -log.pbtxt");
        check("train -n3000", "train -n3000");
        check("train -n=3000", "train -n=3000");
    }

    #[test]
    fn hyphens_stand_for_underscores() {
        check("tfgen --split-rate 5 --label-file=x", "tfgen --split_rate 5 --label_file=x");
        check("tfgen --log-level DEBUG", "tfgen --log_level DEBUG");
        check("tfgen --split-rat 5", "tfgen --split-rat 5");
    }

    #[test]
    fn values_are_never_rewritten() {
        check("tfgen -i -sr", "tfgen -i -sr");
        check("tfgen --input_folder --split-rate", "tfgen --input_folder --split-rate");
        check("tfgen --label_file=--split-rate", "tfgen --label_file=--split-rate");
        check("train -- -sr 5 --label-file", "train -- -sr 5 --label-file");
        check("train a-b --label-file -lv", "train a-b --label_file -lv");
        check("tfgen -sr -5", "tfgen --split_rate=-5");
    }

    #[test]
    fn boolean_flags_take_a_boolean_word_and_nothing_else() {
        check("train -r", "train -r");
        check("train -r True", "train -r=True");
        check("train -e False photo.jpg", "train -e=False photo.jpg");
        check("train -r photo.jpg", "train -r photo.jpg");
        check("train -r -e no", "train -r -e=no");
        check("train --reset=false --evaluate 0", "train --reset=false --evaluate=0");
        check("train -re False", "train -re=False");
        check("train -rTrue -efalse", "train -r=True -e=false");
        check("tfgen -c=True", "tfgen -c=True");
        check("tfgen --strict True", "tfgen --strict");
        check("tfgen --strict=no -sr 5", "tfgen --split_rate 5");
        check("tfgen --strict False", "tfgen");
        check("tfgen --strict=maybe", "tfgen --strict=maybe");
    }

    #[test]
    fn words_that_are_not_utf8_pass_through() {
        use std::os::unix::ffi::OsStringExt;
        let odd = OsString::from_vec(b"im\xffges".to_vec());
        let typed = vec!["odh".into(), "tfgen".into(), "-i".into(), odd.clone()];
        assert_eq!(as_meant(typed.clone(), &grammar()), typed);
    }

    #[test]
    fn the_grammar_is_sound_and_every_command_shows_an_example() {
        let mut grammar = Cli::command();
        grammar.clone().debug_assert();
        grammar.build();
        for command in grammar.get_subcommands_mut().filter(|c| c.get_name() != "help") {
            let help = command.render_long_help().to_string();
            assert!(help.contains(&format!("odh {}", command.get_name())), "{help}");
            assert!(help.contains("Example"), "{help}");
        }
    }
}
