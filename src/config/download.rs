//! Downloads one file over HTTP, going on where an earlier attempt or run stopped.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, IsTerminal, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use indicatif::{ProgressBar, ProgressStyle};
use serde::{Deserialize, Serialize};
use ureq::Agent;
use ureq::http::{HeaderMap, Response, StatusCode, header};

use crate::logging;

const CHUNK: usize = 1 << 16;
/// Where nobody watches a bar, a line now and then says that it goes on.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// How long to wait for a server, and how often to try.
#[derive(Debug, Clone)]
pub struct Patience {
    /// For a connection, and then for the answer to start.
    pub answer: Duration,
    /// For more of the file to arrive.
    pub more: Duration,
    /// Attempts in a row that bring nothing new before giving up.
    pub attempts: u32,
    /// The pause after the first of them; it doubles with each.
    pub pause: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Patience { answer: Duration::from_secs(30), more: Duration::from_secs(60), attempts: 4, pause: Duration::from_secs(1) }
    }
}

/// What an unfinished download came from, kept beside it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Origin {
    url: String,
    /// The server's name for this version of the file (a strong ETag, or else its date), if it gave one.
    version: Option<String>,
    /// The whole file's size, if the server said.
    size: Option<u64>,
}

/// Why one attempt ended early.
enum Stop {
    /// Another attempt may do better.
    Retry(anyhow::Error),
    /// It will not.
    GiveUp(anyhow::Error),
}

/// Downloads `url` to `target`, by way of `target.part`, which a later call goes on from.
///
/// The size is checked against what the server announced. A server that ignores ranges, or whose file has changed, is asked for the
/// whole again.
///
/// # Errors
/// If the server refuses, cannot be reached after `patience.attempts`, or the file cannot be written.
pub fn fetch(url: &str, target: &Path, patience: &Patience) -> Result<()> {
    let agent: Agent = Agent::config_builder()
        .http_status_as_error(false)
        .timeout_connect(Some(patience.answer))
        .timeout_recv_response(Some(patience.answer))
        .timeout_per_read(Some(patience.more))
        .user_agent(concat!("odh/", env!("CARGO_PKG_VERSION")))
        .build()
        .into();
    let part = Part::open(target, url)?;
    let bar = bar(target);
    let mut idle = 0;
    loop {
        let before = part.length()?;
        match attempt(&agent, url, &part, &bar) {
            Ok(()) => break,
            Err(Stop::GiveUp(error)) => return Err(error),
            Err(Stop::Retry(error)) => {
                idle = if part.length()? > before { 0 } else { idle + 1 };
                if idle >= patience.attempts {
                    return Err(error.context(format!("gave up after {idle} attempts")));
                }
                tracing::info!("download of {url} interrupted at {} bytes, trying again: {error:#}", part.length()?);
                std::thread::sleep(patience.pause * 2u32.saturating_pow(idle.saturating_sub(1)));
            }
        }
    }
    bar.finish_and_clear();
    part.finish(target)
}

/// One request, written to the part's end until the file is whole.
fn attempt(agent: &Agent, url: &str, part: &Part, bar: &ProgressBar) -> Result<(), Stop> {
    let have = part.length().map_err(Stop::GiveUp)?;
    let origin = part.origin();
    if have > 0 && origin.as_ref().and_then(|origin| origin.size) == Some(have) {
        return Ok(()); // an earlier run was stopped between the last byte and the renaming
    }
    let mut request = agent.get(url).header(header::ACCEPT_ENCODING, "identity");
    if have > 0 {
        request = request.header(header::RANGE, format!("bytes={have}-"));
        if let Some(version) = origin.as_ref().and_then(|origin| origin.version.as_deref()) {
            request = request.header(header::IF_RANGE, version);
        }
    }
    let response = request.call().map_err(unreachable)?;
    match response.status() {
        StatusCode::OK => {
            let new = Origin { url: url.to_string(), version: version(response.headers()), size: length(&response) };
            part.restart(&new).map_err(Stop::GiveUp)?;
            receive(response, part, 0, new.size, bar)
        }
        StatusCode::PARTIAL_CONTENT => {
            let range = content_range(response.headers());
            let known = origin.as_ref().and_then(|origin| origin.size);
            let same = |total: Option<u64>| known.is_none() || total.is_none() || total == known;
            match range {
                Some((Some(start), total)) if start == have && have > 0 && same(total) => {
                    receive(response, part, have, total.or(known), bar)
                }
                _ => {
                    part.clear().map_err(Stop::GiveUp)?;
                    Err(Stop::Retry(anyhow!("the server sent another range than was asked for")))
                }
            }
        }
        StatusCode::RANGE_NOT_SATISFIABLE if have > 0 => {
            part.clear().map_err(Stop::GiveUp)?;
            Err(Stop::Retry(anyhow!("the server's file is not longer than what an earlier attempt left")))
        }
        status => {
            let error = anyhow!("the server answered {status}");
            let passing =
                status.is_server_error() || matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT);
            Err(if passing { Stop::Retry(error) } else { Stop::GiveUp(error) })
        }
    }
}

/// Appends the body to the part.
fn receive(response: Response<ureq::Body>, part: &Part, have: u64, size: Option<u64>, bar: &ProgressBar) -> Result<(), Stop> {
    if let Some(size) = size {
        bar.set_length(size);
    }
    bar.set_position(have);
    let mut body = response.into_body().into_reader();
    let mut file = part.append().map_err(Stop::GiveUp)?;
    let mut at = have;
    let mut buffer = vec![0; CHUNK];
    let mut said = Instant::now();
    loop {
        let n = match body.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => n,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(Stop::Retry(anyhow!(error).context(format!("the connection broke at byte {at}")))),
        };
        file.write_all(&buffer[..n]).map_err(|error| Stop::GiveUp(part.cannot_write(error)))?;
        at += n as u64;
        bar.set_position(at);
        if bar.is_hidden() && !std::io::stderr().is_terminal() && said.elapsed() >= LINE_EVERY {
            said = Instant::now();
            let of = size.map(|size| format!(" of {size}")).unwrap_or_default();
            logging::say(&format!("downloading {}: {at}{of} bytes", part.path.display()));
        }
    }
    file.sync_all().map_err(|error| Stop::GiveUp(part.cannot_write(error)))?;
    match size {
        Some(size) if at < size => Err(Stop::Retry(anyhow!("the connection ended after {at} of {size} bytes"))),
        Some(size) if at > size => {
            part.clear().map_err(Stop::GiveUp)?;
            Err(Stop::Retry(anyhow!("the server sent {at} bytes of a file of {size}")))
        }
        _ => Ok(()),
    }
}

fn unreachable(error: ureq::Error) -> Stop {
    match error {
        ureq::Error::BadUri(_)
        | ureq::Error::Http(_)
        | ureq::Error::TooManyRedirects
        | ureq::Error::RedirectFailed
        | ureq::Error::InvalidProxyUrl => Stop::GiveUp(anyhow!(error)),
        other => Stop::Retry(anyhow!(other)),
    }
}

/// What `If-Range` may name: a strong ETag, or else the date.
fn version(headers: &HeaderMap) -> Option<String> {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_string);
    text(header::ETAG).filter(|tag| !tag.starts_with("W/")).or_else(|| text(header::LAST_MODIFIED))
}

fn length(response: &Response<ureq::Body>) -> Option<u64> {
    response.headers().get(header::CONTENT_LENGTH)?.to_str().ok()?.trim().parse().ok()
}

/// The start and the whole size of `bytes START-END/SIZE`, either of which may be missing.
fn content_range(headers: &HeaderMap) -> Option<(Option<u64>, Option<u64>)> {
    let text = headers.get(header::CONTENT_RANGE)?.to_str().ok()?;
    let (range, size) = text.trim().strip_prefix("bytes")?.trim_start().split_once('/')?;
    let start = range.split_once('-').and_then(|(start, _)| start.trim().parse().ok());
    Some((start, size.trim().parse().ok()))
}

fn bar(target: &Path) -> ProgressBar {
    let name = target.file_name().unwrap_or_default().display().to_string();
    let template = "{msg} {wide_bar} {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left";
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    logging::progress().add(ProgressBar::no_length().with_style(style).with_message(name))
}

/// The unfinished file and the note of where it came from.
struct Part {
    path: PathBuf,
    note: PathBuf,
}

impl Part {
    /// What an earlier run left, if it came from `url`; else nothing.
    fn open(target: &Path, url: &str) -> Result<Self> {
        let with = |suffix: &str| {
            let mut name = target.as_os_str().to_os_string();
            name.push(suffix);
            PathBuf::from(name)
        };
        let part = Part { path: with(".part"), note: with(".part.json") };
        if part.origin().is_none_or(|origin| origin.url != url) {
            part.clear()?;
        }
        Ok(part)
    }

    fn origin(&self) -> Option<Origin> {
        serde_json::from_str(&fs::read_to_string(&self.note).ok()?).ok()
    }

    fn length(&self) -> Result<u64> {
        match fs::metadata(&self.path) {
            Ok(stat) => Ok(stat.len()),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(0),
            Err(error) => Err(error).with_context(|| format!("cannot read `{}`", self.path.display())),
        }
    }

    /// Throws away what is there, and notes where the next bytes come from before the first of them is written.
    fn restart(&self, origin: &Origin) -> Result<()> {
        self.clear()?;
        let note = serde_json::to_string(origin).context("download note")?;
        fs::write(&self.note, note).with_context(|| format!("cannot write `{}`", self.note.display()))
    }

    fn clear(&self) -> Result<()> {
        for path in [&self.path, &self.note] {
            match fs::remove_file(path) {
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    return Err(error).with_context(|| format!("cannot delete `{}`", path.display()));
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn append(&self) -> Result<File> {
        let file = OpenOptions::new().create(true).append(true).open(&self.path);
        let mut file = file.map_err(|error| self.cannot_write(error))?;
        file.seek(SeekFrom::End(0)).map_err(|error| self.cannot_write(error))?;
        Ok(file)
    }

    fn finish(&self, target: &Path) -> Result<()> {
        fs::rename(&self.path, target).with_context(|| format!("cannot write `{}`", target.display()))?;
        self.clear()
    }

    fn cannot_write(&self, error: std::io::Error) -> anyhow::Error {
        anyhow!(error).context(format!("cannot write `{}`", self.path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: header::HeaderName, value: &str) -> HeaderMap {
        HeaderMap::from_iter([(name, value.parse().unwrap())])
    }

    #[test]
    fn content_ranges_are_read_as_servers_write_them() {
        let range = |text| content_range(&headers(header::CONTENT_RANGE, text));
        assert_eq!(range("bytes 100-199/1000"), Some((Some(100), Some(1000))));
        assert_eq!(range("bytes 100-199/*"), Some((Some(100), None)));
        assert_eq!(range("bytes */1000"), Some((None, Some(1000))));
        assert_eq!(range("items 1-2/3"), None);
    }

    #[test]
    fn a_weak_tag_does_not_name_a_version() {
        assert_eq!(version(&headers(header::ETAG, "\"abc\"")), Some("\"abc\"".to_string()));
        assert_eq!(version(&headers(header::ETAG, "W/\"abc\"")), None);
        assert_eq!(version(&headers(header::LAST_MODIFIED, "Thu, 17 May 2018 00:21:48 GMT")).unwrap().len(), 29);
    }
}
