//! odh at a terminal: its questions and how they are answered, its live line, and Ctrl-C as a key.

#[path = "common/project.rs"]
mod project;

use std::ffi::{CStr, c_char, c_int, c_ulong};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use project::{ROOT, names, tiny_project};

/// For whatever a test waits for.
const PATIENCE: Duration = Duration::from_secs(60);

unsafe extern "C" {
    fn posix_openpt(flags: c_int) -> c_int;
    fn grantpt(fd: c_int) -> c_int;
    fn unlockpt(fd: c_int) -> c_int;
    fn ptsname_r(fd: c_int, name: *mut c_char, length: usize) -> c_int;
    fn setsid() -> c_int;
    fn ioctl(fd: c_int, request: c_ulong, ...) -> c_int;
    fn signal(number: c_int, handler: usize) -> usize;
}

/// Of Linux's `fcntl.h` and `ioctls.h`.
const O_RDWR: c_int = 2;
const O_NOCTTY: c_int = 0o400;
const O_CLOEXEC: c_int = 0o2000000;
const TIOCSCTTY: c_ulong = 0x540e;
const TIOCSWINSZ: c_ulong = 0x5414;
/// Of `signal.h`.
const SIGHUP: c_int = 1;
const SIGINT: c_int = 2;
const SIG_DFL: usize = 0;
const SIG_IGN: usize = 1;

/// odh on a terminal of its own.
struct Terminal {
    keys: File,
    child: Child,
    shown: Receiver<Vec<u8>>,
    text: String,
    /// So much of the text was waited for.
    read: usize,
}

impl Terminal {
    fn open(folder: &Path, columns: u16, arguments: &[&str]) -> io::Result<Self> {
        Self::open_with(folder, columns, arguments, false)
    }

    /// * `nohup`: whether it is to ignore that its terminal goes away.
    fn open_with(folder: &Path, columns: u16, arguments: &[&str], nohup: bool) -> io::Result<Self> {
        let done = |result: c_int| if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) };
        let master = unsafe { File::from_raw_fd(done(posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC))?) };
        let mut name = [0 as c_char; 100];
        unsafe {
            done(grantpt(master.as_raw_fd()))?;
            done(unlockpt(master.as_raw_fd()))?;
            done(-ptsname_r(master.as_raw_fd(), name.as_mut_ptr(), name.len()))?;
        }
        let path = PathBuf::from(unsafe { CStr::from_ptr(name.as_ptr()) }.to_str().map_err(io::Error::other)?);
        let slave = OpenOptions::new().read(true).write(true).open(path)?;
        let size: [u16; 4] = [24, columns, 0, 0];
        done(unsafe { ioctl(slave.as_raw_fd(), TIOCSWINSZ, size.as_ptr()) })?;
        let mut command = Command::new(assert_cmd::cargo::cargo_bin!("odh"));
        command.current_dir(folder).args(arguments).env("TERM", "xterm").env("ODH_MODEL_ZOO_URL", "file:///nowhere");
        command.stdin(slave.try_clone()?).stdout(slave.try_clone()?).stderr(Stdio::from(slave));
        // Keys become signals only on a process's own terminal.
        unsafe {
            command.pre_exec(move || {
                setsid();
                signal(SIGHUP, if nohup { SIG_IGN } else { SIG_DFL });
                // Where these tests run in a shell's background it is ignored, which a process behind a terminal's prompt does not see.
                signal(SIGINT, SIG_DFL);
                if ioctl(0, TIOCSCTTY, 0) < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
            });
        }
        let child = command.spawn()?;
        drop(command); // and with it this side's copies of the terminal
        let (send, shown) = mpsc::channel();
        let mut screen = master.try_clone()?;
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(n) = screen.read(&mut buffer) {
                if n == 0 || send.send(buffer[..n].to_vec()).is_err() {
                    return;
                }
            }
        });
        Ok(Self { keys: master, child, shown, text: String::new(), read: 0 })
    }

    /// Waits until `text` is shown, behind what was waited for before.
    #[track_caller]
    fn wait_for(&mut self, text: &str) -> &mut Self {
        let begun = Instant::now();
        loop {
            if let Some(at) = self.text[self.read..].find(text) {
                self.read += at + text.len();
                return self;
            }
            match self.shown.recv_timeout(PATIENCE.saturating_sub(begun.elapsed())) {
                Ok(bytes) => self.text += &String::from_utf8_lossy(&bytes),
                Err(_) => panic!("`{text}` is not shown: {}", self.text),
            }
        }
    }

    fn press(&mut self, keys: &str) -> &mut Self {
        self.keys.write_all(keys.as_bytes()).unwrap();
        self
    }

    /// Takes the terminal away, and waits for how it ends.
    fn hang_up(self) -> ExitStatus {
        let Self { keys, mut child, shown, .. } = self;
        drop(keys);
        // The thread that reads the screen has a copy, which it drops with the next bytes that nobody takes.
        drop(shown);
        let begun = Instant::now();
        loop {
            match child.try_wait().unwrap() {
                Some(status) => return status,
                None if begun.elapsed() < PATIENCE => std::thread::sleep(Duration::from_millis(20)),
                None => {
                    let _ = child.kill();
                    panic!("it does not end");
                }
            }
        }
    }

    /// How it ended, and all that it showed.
    #[track_caller]
    fn end(mut self) -> (ExitStatus, String) {
        let begun = Instant::now();
        while let Ok(bytes) = self.shown.recv_timeout(PATIENCE.saturating_sub(begun.elapsed())) {
            self.text += &String::from_utf8_lossy(&bytes);
        }
        match self.child.try_wait().unwrap() {
            Some(status) => (status, self.text),
            None if begun.elapsed() < PATIENCE => (self.child.wait().unwrap(), self.text),
            None => {
                let _ = self.child.kill();
                panic!("it does not end: {}", self.text);
            }
        }
    }
}

const CTRL_C: &str = "\x03";
const CTRL_D: &str = "\x04";

fn tfgen(folder: &Path) -> Terminal {
    let mut terminal = Terminal::open(folder, 80, &["tfgen", "-i", &format!("{ROOT}/images")]).unwrap();
    terminal.wait_for("Write it with these? [Y/n] ");
    terminal
}

#[test]
fn the_label_map_is_written_on_yes_and_enter_and_after_answers_that_are_none() {
    for answers in [&["y\r"][..], &["\r"], &["what?\r", "너구리\r", "YES\r"]] {
        let folder = tempfile::tempdir().unwrap();
        let mut terminal = tfgen(folder.path());
        terminal.press(answers[0]);
        for answer in &answers[1..] {
            terminal.wait_for("[Y/n] ").press(answer);
        }
        let (status, text) = terminal.end();
        assert!(status.success(), "{answers:?}: {text}");
        assert_eq!(names(folder.path()), ["dataset", "label_map.pbtxt", "process.log"], "{answers:?}");
        assert!(fs::read_to_string(folder.path().join("label_map.pbtxt")).unwrap().contains("raccoon"));
    }
}

#[test]
fn nothing_is_written_on_no_at_the_inputs_end_and_on_ctrl_c() {
    for (answer, code) in [("n\r", Some(1)), (CTRL_D, Some(2)), (CTRL_C, None)] {
        let folder = tempfile::tempdir().unwrap();
        let mut terminal = tfgen(folder.path());
        terminal.press(answer);
        let (status, text) = terminal.end();
        assert_eq!(status.code(), code, "{answer:?}: {text}");
        assert!(code.is_some() || status.signal() == Some(2), "{answer:?}: {status}");
        assert_eq!(names(folder.path()), ["process.log"], "{answer:?}");
    }
}

#[test]
fn train_asks_for_the_model_with_the_old_menu_and_for_the_steps_until_both_make_sense() {
    let folder = tiny_project();
    let mut terminal = Terminal::open(folder.path(), 80, &["train", "--device", "cpu"]).unwrap();
    terminal.wait_for("13. faster_rcnn_nas_lowproposals_coco");
    for (answer, said) in [
        ("0\r", "the menu goes from 1 to 13"),
        ("14\r", "the menu goes from 1 to 13"),
        ("banana\r", "no model `banana`"),
        ("\r", "no model ``"),
        ("faster_rcnn_resnet50\r", "fits several models"),
    ] {
        terminal.wait_for("Select Model Number : ").press(answer).wait_for(said);
    }
    terminal.wait_for("Select Model Number : ").press("1\r");
    for answer in ["many\r", "0\r", "-3\r", "1e3\r", "99999999999\r"] {
        terminal.wait_for("Input number steps : ").press(answer).wait_for("is not a number of steps");
    }
    terminal.wait_for("Input number steps : ").press("1,000\r");
    let (status, text) = terminal.end();
    // There are no weights to be had here.
    assert_eq!(status.code(), Some(1), "{text}");
    assert!(text.contains("ssd_mobilenet_v1_coco_2017_11_17.tar.gz") && text.contains("--fine_tune_checkpoint none"), "{text}");

    for (key, code, signal) in [(CTRL_C, None, Some(2)), (CTRL_D, Some(2), None)] {
        let mut terminal = Terminal::open(folder.path(), 80, &["train"]).unwrap();
        terminal.wait_for("Select Model Number : ").press(key);
        let (status, text) = terminal.end();
        assert_eq!((status.code(), status.signal()), (code, signal), "{text}");
    }
}

const TRAIN: &[&str] =
    &["train", "--pipeline_config", "tiny.config", "--fine_tune_checkpoint", "none", "--device", "cpu", "--export", "False"];

#[test]
fn the_live_line_is_one_line_on_narrow_and_wide_terminals() {
    let folder = tiny_project();
    for columns in [20, 40, 80, 200] {
        let steps = ["-r", "-s", "12", "-e", "False"];
        let (status, text) = Terminal::open(folder.path(), columns, &[TRAIN, &steps].concat()).unwrap().end();
        assert!(status.success(), "{text}");
        // What lies between two movements of the cursor or ends of lines; a line as wide as the terminal does not wrap yet.
        let lines = text.split(['\r', '\n', '\x1b']).filter(|line| line.contains("/12 "));
        let widths: Vec<usize> = lines.map(|line| line.trim_start_matches("[2K").chars().count()).collect();
        assert!(widths.len() > 3, "{text}");
        assert!(widths.iter().all(|&width| width <= usize::from(columns)), "{columns}: {widths:?} {text}");
        // Never up over more than the line itself.
        assert!(!text.contains("\x1b[1A") && !text.contains("\x1b[2A"), "{columns}: {text}");
        assert!(columns < 80 || text.contains("ETA 0:"), "{text}");
    }
}

/// As where a window is closed: SIGHUP, and what is written to the terminal fails.
#[test]
fn a_terminal_that_goes_away_ends_a_training_as_ctrl_c_does_or_not_at_all() {
    let folder = tiny_project();
    for ignored in [false, true] {
        let steps = if ignored { "60" } else { "100000" };
        let arguments = [TRAIN, &["-r", "-e", "False", "-log_level", "DEBUG", "-s", steps]].concat();
        let mut terminal = Terminal::open_with(folder.path(), 80, &arguments, ignored).unwrap();
        terminal.wait_for("loss ");
        let status = terminal.hang_up();
        assert_eq!(status.code(), Some(if ignored { 0 } else { 130 }), "{status}");
        let log = fs::read_to_string(folder.path().join("process.log")).unwrap();
        assert!(!log.contains("panic"), "{log}");
        assert!(folder.path().join("train_dir/tiny/checkpoint").is_file());
    }
}

#[test]
fn ctrl_c_saves_and_ends_with_130_also_while_it_evaluates() {
    let folder = tiny_project();
    for more in [&["-e", "False"][..], &["-n", "1"]] {
        let mut terminal = Terminal::open(folder.path(), 80, &[TRAIN, &["-r", "-s", "100000"], more].concat()).unwrap();
        terminal.wait_for("loss ").wait_for("loss ").press(CTRL_C);
        let (status, text) = terminal.end();
        assert_eq!(status.code(), Some(130), "{text}");
        // Typed once more, it would begin anew.
        assert!(text.contains("the same command without --reset goes on from there"), "{text}");
        assert!(folder.path().join("train_dir/tiny/checkpoint").is_file());
    }
}
