//! process.log and the terminal: the record in the old tool's format, warnings on stderr, results on stdout, progress bars in one piece.

use std::fmt::{self, Write as _};
use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{LazyLock, OnceLock};
use std::time::Duration;

use console::Term;
use indicatif::{MultiProgress, ProgressDrawTarget, TermLike};
use nix::errno::Errno;
use tracing::field::{Field, Visit};
use tracing::{Event, Metadata, Subscriber};
use tracing_appender::rolling::{InitError, RollingFileAppender, Rotation};
use tracing_subscriber::Layer;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::{Context, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;

use crate::wording::without_controls;

/// Target of events that the terminal has already shown another way and that only process.log takes.
pub const FILE_ONLY: &str = "odh::process_log";

pub const FILE_NAME: &str = "process.log";

/// A severity as Python's `logging` numbers it: DEBUG 10, INFO 20, WARNING 30, ERROR 40, CRITICAL 50.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Level(u8);

impl Level {
    /// What only a developer wants to know.
    pub const DEBUG: Level = Level(10);
    /// What happened.
    pub const INFO: Level = Level(20);
    /// What the user should look at.
    pub const WARNING: Level = Level(30);
    /// What failed.
    pub const ERROR: Level = Level(40);
    /// What ended the program: an event at tracing's ERROR with the field `critical = true`.
    pub const CRITICAL: Level = Level(50);

    const NAMES: [(&'static str, Level); 7] = [
        ("DEBUG", Level::DEBUG),
        ("INFO", Level::INFO),
        ("WARNING", Level::WARNING),
        ("ERROR", Level::ERROR),
        ("CRITICAL", Level::CRITICAL),
        ("WARN", Level::WARNING),
        ("FATAL", Level::CRITICAL),
    ];

    fn name(self) -> &'static str {
        match self.0 {
            50.. => "CRITICAL",
            40..50 => "ERROR",
            30..40 => "WARNING",
            20..30 => "INFO",
            _ => "DEBUG",
        }
    }

    fn of(level: tracing::Level) -> Level {
        match level {
            tracing::Level::ERROR => Level::ERROR,
            tracing::Level::WARN => Level::WARNING,
            tracing::Level::INFO => Level::INFO,
            tracing::Level::DEBUG => Level::DEBUG,
            tracing::Level::TRACE => Level(5),
        }
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match Level::NAMES.iter().find(|(_, level)| level == self) {
            Some((name, _)) => f.write_str(name),
            None => write!(f, "{}", self.0),
        }
    }
}

impl FromStr for Level {
    type Err = String;

    /// A name in any case, or Python's number for it.
    fn from_str(typed: &str) -> Result<Level, String> {
        let word = typed.trim();
        if let Some((_, level)) = Level::NAMES.iter().find(|(name, _)| name.eq_ignore_ascii_case(word)) {
            return Ok(*level);
        }
        match word.parse::<u8>() {
            Ok(number @ 1..=50) => Ok(Level(number)),
            _ => Err("it must be DEBUG, INFO, WARNING, ERROR, CRITICAL or a number from 1 to 50".to_string()),
        }
    }
}

/// Starts the record: from here on tracing's events go to `folder`/process.log and, from WARNING up, to stderr.
///
/// `level` is what the user asked to have recorded: process.log gets no event below it, and if it is DEBUG the terminal gets all of them too.
/// INFO is what process.log gets when nothing was asked for. A process.log that cannot be opened is warned of once, and the
/// program goes on without. Calling it a second time changes nothing.
pub fn init(folder: &Path, level: Option<Level>) {
    let file = match open(folder) {
        Ok(file) => Some(file),
        Err(e) => {
            let why = std::error::Error::source(&e).map_or(e.to_string(), ToString::to_string);
            say(&format!("warning: cannot write {}: {why}; going on without a record", folder.join(FILE_NAME).display()));
            None
        }
    };
    let asked = level.unwrap_or(Level::INFO);
    let record = Record {
        file,
        threshold: asked,
        // What went wrong is said whatever is recorded: a summary that counts it would count what nobody saw.
        terminal: if asked <= Level::DEBUG { asked } else { Level::WARNING },
        failed: AtomicBool::new(false),
    };
    if tracing_subscriber::registry().with(record).try_init().is_ok() {
        record_panics();
    }
}

/// Opens the record for appending; it is never rotated.
fn open(folder: &Path) -> Result<RollingFileAppender, InitError> {
    RollingFileAppender::builder().rotation(Rotation::NEVER).filename_prefix(FILE_NAME).build(folder)
}

/// The bars of this process: add yours here, so that log lines and results do not tear them.
pub fn progress() -> &'static MultiProgress {
    static BARS: LazyLock<MultiProgress> = LazyLock::new(|| {
        let target = ProgressDrawTarget::stderr();
        match target.is_hidden() {
            true => MultiProgress::with_draw_target(target),
            // As often as indicatif's own.
            false => MultiProgress::with_draw_target(ProgressDrawTarget::term_like_with_hz(Box::new(Lenient::stderr()), 20)),
        }
    });
    &BARS
}

/// A terminal that may go away: what cannot be written there is dropped. indicatif panics of it, and work that goes on without its terminal
/// would end.
#[derive(Debug)]
struct Lenient(Term);

impl Lenient {
    fn stderr() -> Self {
        Self(Term::buffered_stderr())
    }
}

impl TermLike for Lenient {
    fn width(&self) -> u16 {
        self.0.size().1
    }

    fn height(&self) -> u16 {
        self.0.size().0
    }

    fn move_cursor_up(&self, n: usize) -> io::Result<()> {
        self.0.move_cursor_up(n).or(Ok(()))
    }

    fn move_cursor_down(&self, n: usize) -> io::Result<()> {
        self.0.move_cursor_down(n).or(Ok(()))
    }

    fn move_cursor_right(&self, n: usize) -> io::Result<()> {
        self.0.move_cursor_right(n).or(Ok(()))
    }

    fn move_cursor_left(&self, n: usize) -> io::Result<()> {
        self.0.move_cursor_left(n).or(Ok(()))
    }

    fn write_line(&self, text: &str) -> io::Result<()> {
        self.0.write_line(text).or(Ok(()))
    }

    fn write_str(&self, text: &str) -> io::Result<()> {
        self.0.write_str(text).or(Ok(()))
    }

    fn clear_line(&self) -> io::Result<()> {
        self.0.clear_line().or(Ok(()))
    }

    fn flush(&self) -> io::Result<()> {
        self.0.flush().or(Ok(()))
    }
}

/// Whether nobody holds the other end of stdout any more, a pipe's or a terminal's, by what writing there gave.
pub fn reader_has_gone(error: &io::Error) -> bool {
    // A disk that fails gives the same number as a terminal that is gone.
    let stdout_is_a_file =
        || io::stdout().as_fd().try_clone_to_owned().and_then(|fd| File::from(fd).metadata()).is_ok_and(|meta| meta.is_file());
    error.kind() == io::ErrorKind::BrokenPipe || error.raw_os_error() == Some(Errno::EIO as i32) && !stdout_is_a_file()
}

/// Why a line of the results could not be printed, the first time that it happened.
static UNPRINTED: OnceLock<io::Error> = OnceLock::new();

/// Whether all lines of the results could be printed.
///
/// # Errors
/// If one could not, for another reason than that nobody reads on.
pub fn printed() -> anyhow::Result<()> {
    match UNPRINTED.get() {
        None => Ok(()),
        Some(e) => Err(anyhow::anyhow!("the results could not be printed: {e}")),
    }
}

/// Prints one result line to stdout, bars aside; see [`crate::outln`].
///
/// A reader that has gone (`odh ... | head`) is no error: the work goes on and what follows is dropped. So does it where the lines cannot be
/// written, to a full disk for one, but then [`printed`] says so at the end.
pub fn print_line(line: fmt::Arguments<'_>) {
    let text = format!("{line}\n");
    let write = || {
        let mut out = io::stdout().lock();
        if let Err(e) = out.write_all(text.as_bytes()).and_then(|()| out.flush())
            && !reader_has_gone(&e)
        {
            let _ = UNPRINTED.set(e);
        }
    };
    if io::stdout().is_terminal() {
        progress().suspend(write);
    } else {
        write();
    }
}

/// `println!` for results: never panics on a closed pipe and leaves progress bars whole.
#[macro_export]
macro_rules! outln {
    ($($arg:tt)*) => { $crate::logging::print_line(format_args!($($arg)*)) };
}

/// One line on stderr, bars aside; a closed stderr is passed over.
pub fn say(line: &str) {
    let line = without_controls(line, &['\n', '\t']);
    progress().suspend(|| {
        let _ = writeln!(io::stderr().lock(), "{line}");
    });
}

/// The layer that takes tracing's events.
struct Record {
    file: Option<RollingFileAppender>,
    threshold: Level,
    terminal: Level,
    /// A full disk is said once.
    failed: AtomicBool,
}

impl Record {
    /// One write(2) per event to a file opened with O_APPEND, without the appender's background thread: lines of several
    /// processes are never torn, and none waits in a buffer when the process is killed.
    fn write(&self, line: &str) {
        let Some(file) = &self.file else { return };
        if let Err(e) = file.make_writer().write_all(line.as_bytes())
            && !self.failed.swap(true, Ordering::Relaxed)
        {
            say(&format!("warning: cannot write process.log: {e}; the record has gaps from here"));
        }
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Record {
    fn enabled(&self, metadata: &Metadata<'_>, _: Context<'_, S>) -> bool {
        // CRITICAL is told by a field, which is not known yet here.
        *metadata.level() == tracing::Level::ERROR || Level::of(*metadata.level()) >= self.threshold.min(self.terminal)
    }

    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let metadata = event.metadata();
        let mut fields = Fields::default();
        event.record(&mut fields);
        let level = if fields.critical { Level::CRITICAL } else { Level::of(*metadata.level()) };
        if level >= self.threshold {
            self.write(&line(level, metadata.file(), metadata.line(), &fields.text));
        }
        if level >= self.terminal && metadata.target() != FILE_ONLY {
            say(&format!("{}: {}", level.name().to_lowercase(), fields.text));
        }
    }
}

/// The message, then other fields as `name=value`.
#[derive(Default)]
struct Fields {
    text: String,
    critical: bool,
}

impl Visit for Fields {
    fn record_bool(&mut self, field: &Field, value: bool) {
        if field.name() == "critical" {
            self.critical = value;
        } else {
            self.record_debug(field, &value);
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            self.text.insert_str(0, value);
        } else {
            let _ = write!(self.text, " {}={value}", field.name());
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            self.text.insert_str(0, &format!("{value:?}"));
        } else {
            let _ = write!(self.text, " {}={value:?}", field.name());
        }
    }
}

/// `[INFO|train.rs:94] 2018-05-17 00:21:48,698 > message`, as the old tool wrote it.
fn line(level: Level, file: Option<&str>, number: Option<u32>, message: &str) -> String {
    let file = file.unwrap_or("?");
    let name = file.rsplit(['/', '\\']).next().unwrap_or(file);
    let now = chrono::Local::now().format("%Y-%m-%d %H:%M:%S,%3f");
    let message = without_controls(message, &[]);
    format!("[{}|{name}:{}] {now} > {message}\n", level.name(), number.unwrap_or(0))
}

/// How long something took, as the old tool wrote it: `0 Hour 1 Minute 2 Second`.
pub fn old_clock(time: Duration) -> String {
    let s = time.as_secs();
    format!("{} Hour {} Minute {} Second", s / 3600, s / 60 % 60, s % 60)
}

/// A panic is a bug of ours: the record names it. A closed stdout that some `println!` trips over is none, and ends quietly.
fn record_panics() {
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        let message = info.payload_as_str().unwrap_or("panic");
        if message.starts_with("failed printing to stdout") && message.contains("Broken pipe") {
            std::process::exit(0);
        }
        let place = info.location().map(|l| format!("{}:{}: ", l.file(), l.line())).unwrap_or_default();
        tracing::error!(target: FILE_ONLY, critical = true, "panic: {place}{message}");
        before(info);
    }));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_the_old_tool_did() {
        assert_eq!(old_clock(Duration::from_secs(62)), "0 Hour 1 Minute 2 Second");
    }

    fn recording(threshold: Level, folder: &Path) -> Record {
        Record { file: Some(open(folder).unwrap()), threshold, terminal: Level(255), failed: AtomicBool::new(false) }
    }

    #[test]
    fn levels_are_pythons_in_any_case_or_as_numbers() {
        for (typed, level) in [
            ("DEBUG", Level::DEBUG),
            ("info", Level::INFO),
            ("Warning", Level::WARNING),
            ("warn", Level::WARNING),
            ("ERROR", Level::ERROR),
            ("critical", Level::CRITICAL),
            ("10", Level::DEBUG),
            ("50", Level::CRITICAL),
            ("25", Level(25)),
        ] {
            assert_eq!(typed.parse(), Ok(level), "{typed}");
        }
        for typed in ["", "VERBOSE", "0", "51", "-10", "1e1"] {
            assert!(typed.parse::<Level>().is_err(), "{typed}");
        }
        assert_eq!(Level::INFO.to_string(), "INFO");
        assert_eq!(Level(25).to_string(), "25");
    }

    #[test]
    fn lines_have_the_old_tools_format() {
        let line = line(Level::INFO, Some("src/engine/train.rs"), Some(94), "Program start [ model : x ]");
        let (head, rest) = line.split_once("] ").unwrap();
        assert_eq!(head, "[INFO|train.rs:94");
        let (time, message) = rest.split_once(" > ").unwrap();
        assert_eq!(message, "Program start [ model : x ]\n");
        assert_eq!(time.len(), "2018-05-17 00:21:48,698".len());
        assert!(chrono::NaiveDateTime::parse_from_str(time, "%Y-%m-%d %H:%M:%S,%3f").is_ok(), "{time}");
    }

    #[test]
    fn the_record_is_appended_and_keeps_to_its_level() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("process.log");
        std::fs::write(&path, "before\n").unwrap();
        let subscriber = tracing_subscriber::registry().with(recording(Level::INFO, folder.path()));
        tracing::subscriber::with_default(subscriber, || {
            tracing::debug!("not this");
            tracing::info!(boxes = 3, name = "a b", "kept");
            tracing::warn!("라쿤\nin\r\na box");
            tracing::error!(critical = true, "the end");
        });
        let text = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 4, "{text}");
        assert_eq!(lines[0], "before");
        assert!(lines[1].starts_with("[INFO|logging.rs:") && lines[1].ends_with("> kept boxes=3 name=a b"), "{text}");
        assert!(lines[2].starts_with("[WARNING|") && lines[2].ends_with(r"> 라쿤\nin\r\na box"), "{text}");
        assert!(lines[3].starts_with("[CRITICAL|") && lines[3].ends_with("> the end"), "{text}");
    }

    #[test]
    fn control_characters_are_shown_and_not_obeyed() {
        assert_eq!(without_controls("너\x1b[2K구\r\n리\u{9b}", &['\n']), "너\\u{1b}[2K구\\r\n리\\u{9b}");
    }

    #[test]
    fn at_critical_errors_are_dropped() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("process.log");
        let subscriber = tracing_subscriber::registry().with(recording(Level::CRITICAL, folder.path()));
        tracing::subscriber::with_default(subscriber, || {
            tracing::error!("an error");
            tracing::error!(critical = true, "the end");
        });
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text.lines().count(), 1, "{text}");
    }

    #[test]
    fn lines_of_many_writers_are_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("process.log");
        std::thread::scope(|scope| {
            for writer in 0..8 {
                let folder = folder.path();
                scope.spawn(move || {
                    let record = recording(Level::INFO, folder);
                    let text = format!("{writer}").repeat(3000);
                    for _ in 0..50 {
                        record.write(&line(Level::INFO, Some("x.rs"), Some(1), &text));
                    }
                });
            }
        });
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text.lines().count(), 400);
        for line in text.lines() {
            let message = line.split_once(" > ").unwrap().1;
            assert_eq!(message.len(), 3000);
            assert!(message.bytes().all(|b| b == message.as_bytes()[0]));
        }
    }
}
