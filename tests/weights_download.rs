//! Pretrained weights from a server that behaves, and from servers that do not.

mod common;
#[path = "common/project.rs"]
mod project;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use odh::config::download::{self, Patience};
use odh::config::weights::{self, WeightsOptions};
use odh::formats::tensor_bundle::{self, BundleReader, TensorData};
use project::names;

/// What a test's server does with one request, told the request's number, path and headers (in lower case).
type Answer = dyn Fn(usize, &str, &[(String, String)]) -> Reply + Send + Sync;

/// An answer, sent as it stands.
#[derive(Clone, Default)]
struct Reply {
    status: &'static str,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    /// Sends so much of the body, then hangs up.
    cut: Option<usize>,
    /// Waits after what is sent, without hanging up.
    stall: Option<Duration>,
}

impl Reply {
    fn new(status: &'static str, body: &[u8]) -> Self {
        Reply { status, body: body.to_vec(), ..Reply::default() }
    }

    fn with(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_string(), value.to_string()));
        self
    }

    fn cut(mut self, at: usize) -> Self {
        self.cut = Some(at);
        self
    }
}

/// Path and `range` header of each request.
type Log = Mutex<Vec<(String, Option<String>)>>;

/// A server on this machine that lives as long as the test program.
struct Server {
    url: String,
    seen: Arc<Log>,
}

impl Server {
    fn start(answer: impl Fn(usize, &str, &[(String, String)]) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let seen = Arc::new(Mutex::new(Vec::new()));
        let log = seen.clone();
        let answer: Arc<Answer> = Arc::new(answer);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (log, answer) = (log.clone(), answer.clone());
                std::thread::spawn(move || serve(stream, &log, &*answer));
            }
        });
        Server { url, seen }
    }

    fn seen(&self) -> Vec<(String, Option<String>)> {
        self.seen.lock().unwrap().clone()
    }
}

fn serve(mut stream: TcpStream, log: &Log, answer: &Answer) -> Option<()> {
    let mut lines = BufReader::new(stream.try_clone().ok()?).lines();
    let path = lines.next()?.ok()?.split(' ').nth(1)?.to_string();
    let mut headers = Vec::new();
    for line in lines {
        let line = line.ok()?;
        let Some((name, value)) = line.split_once(':') else { break };
        headers.push((name.to_lowercase(), value.trim().to_string()));
    }
    let number = {
        let mut log = log.lock().ok()?;
        log.push((path.clone(), header(&headers, "range")));
        log.len()
    };
    let reply = answer(number, &path, &headers);
    let mut head = format!("HTTP/1.1 {}\r\nconnection: close\r\n", reply.status);
    if !reply.headers.iter().any(|(name, _)| name == "content-length" || name == "transfer-encoding") {
        head += &format!("content-length: {}\r\n", reply.body.len());
    }
    for (name, value) in &reply.headers {
        head += &format!("{name}: {value}\r\n");
    }
    stream.write_all(format!("{head}\r\n").as_bytes()).ok()?;
    stream.write_all(&reply.body[..reply.cut.unwrap_or(reply.body.len())]).ok()?;
    if let Some(stall) = reply.stall {
        std::thread::sleep(stall);
    }
    Some(())
}

fn header(headers: &[(String, String)], name: &str) -> Option<String> {
    headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone())
}

/// As a good server answers: ranges, and the whole if the file is another than the client knows.
fn ranged(body: &[u8], tag: &str, headers: &[(String, String)]) -> Reply {
    let start = header(headers, "range").and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse::<usize>().ok());
    let same = header(headers, "if-range").is_none_or(|known| known == tag);
    match start {
        Some(start) if same && start >= body.len() => {
            Reply::new("416 Range Not Satisfiable", b"").with("content-range", &format!("bytes */{}", body.len()))
        }
        Some(start) if same => Reply::new("206 Partial Content", &body[start..])
            .with("etag", tag)
            .with("content-range", &format!("bytes {start}-{}/{}", body.len() - 1, body.len())),
        _ => Reply::new("200 OK", body).with("etag", tag),
    }
}

/// Does not keep a test waiting.
fn quick() -> Patience {
    Patience { answer: Duration::from_secs(5), more: Duration::from_millis(300), attempts: 3, pause: Duration::from_millis(5) }
}

fn noise(length: usize) -> Vec<u8> {
    (0..length as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

/// `NAME/model.ckpt.*` as the zoo packs it.
fn archive(top: &str) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let values: Vec<f32> = (0..50_000).map(|i| (i as f32).sin()).collect();
    tensor_bundle::write(&folder.path().join("model.ckpt"), [("w", TensorData::from_f32(&[50_000], &values))]).unwrap();
    let mut tar = tar::Builder::new(flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast()));
    tar.append_dir_all(top, folder.path()).unwrap();
    tar.into_inner().unwrap().finish().unwrap()
}

fn options(folder: &Path, base_url: &str) -> WeightsOptions {
    WeightsOptions { zoo_dir: folder.join("model_zoo"), base_url: base_url.to_string() }
}

#[test]
fn weights_are_downloaded_once_unpacked_and_found_again() {
    let body = archive("some_other_name");
    let server = Server::start(move |_, _, headers| ranged(&body, "\"1\"", headers));
    let folder = tempfile::tempdir().unwrap();
    let options = options(folder.path(), &format!("{}/models/", server.url));
    let prefix = weights::pretrained("net_v1", &options).unwrap();
    assert_eq!(prefix, options.zoo_dir.join("net_v1/model.ckpt"));
    assert_eq!(BundleReader::open(&prefix).unwrap().read_f32("w").unwrap().0, [50_000]);
    assert_eq!(weights::pretrained("net_v1", &options).unwrap(), prefix);
    assert_eq!(server.seen(), [("/models/net_v1.tar.gz".to_string(), None)]);
    assert_eq!(names(&options.zoo_dir), ["net_v1", "net_v1.tar.gz"]);
}

#[test]
fn redirects_are_followed() {
    let body = archive("m");
    let server = Server::start(move |_, path, headers| match path {
        "/m.tar.gz" => Reply::new("302 Found", b"").with("location", "/elsewhere/file"),
        _ => ranged(&body, "\"1\"", headers),
    });
    let folder = tempfile::tempdir().unwrap();
    weights::pretrained("m", &options(folder.path(), &server.url)).unwrap();
    let forever = Server::start(|_, _, _| Reply::new("302 Found", b"").with("location", "/again"));
    let folder = tempfile::tempdir().unwrap();
    let error = format!("{:#}", weights::pretrained("m", &options(folder.path(), &forever.url)).unwrap_err());
    assert!(error.contains("redirect") && error.contains("--fine_tune_checkpoint none"), "{error}");
}

#[test]
fn a_broken_connection_is_resumed_where_it_broke() {
    let body = noise(300_000);
    let sent = body.clone();
    let server = Server::start(move |number, _, headers| {
        let reply = ranged(&sent, "\"1\"", headers);
        if number < 4 { reply.cut(70_000) } else { reply }
    });
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("f");
    download::fetch(&format!("{}/f", server.url), &target, &quick()).unwrap();
    assert!(fs::read(&target).unwrap() == body);
    let ranges: Vec<_> = server.seen().into_iter().map(|(_, range)| range.unwrap_or_default()).collect();
    assert_eq!(ranges, ["", "bytes=70000-", "bytes=140000-", "bytes=210000-"]);
    assert_eq!(names(folder.path()), ["f"]);
}

#[test]
fn a_later_run_goes_on_from_what_an_interrupted_one_left() {
    let body = noise(300_000);
    let sent = body.clone();
    let server = Server::start(move |number, _, headers| match number {
        1 => ranged(&sent, "\"1\"", headers).cut(100_000),
        2..=4 => Reply::new("503 Service Unavailable", b""),
        _ => ranged(&sent, "\"1\"", headers),
    });
    let folder = tempfile::tempdir().unwrap();
    let (url, target) = (format!("{}/f", server.url), folder.path().join("f"));
    let error = format!("{:#}", download::fetch(&url, &target, &quick()).unwrap_err());
    assert!(error.contains("gave up after 3 attempts") && error.contains("503"), "{error}");
    assert_eq!(fs::metadata(folder.path().join("f.part")).unwrap().len(), 100_000);
    assert!(!target.exists());
    download::fetch(&url, &target, &quick()).unwrap();
    assert!(fs::read(&target).unwrap() == body);
    assert_eq!(server.seen().last().unwrap().1.as_deref(), Some("bytes=100000-"));
}

#[test]
fn a_file_that_changed_meanwhile_or_a_server_without_ranges_starts_over() {
    for ignore_ranges in [false, true] {
        let (old, new) = (noise(200_000), noise(250_000).into_iter().rev().collect::<Vec<u8>>());
        let wanted = if ignore_ranges { old.clone() } else { new.clone() };
        let server = Server::start(move |number, _, headers| match (number, ignore_ranges) {
            (1, _) => ranged(&old, "\"1\"", headers).cut(90_000),
            (_, false) => ranged(&new, "\"2\"", headers),
            (_, true) => Reply::new("200 OK", &old),
        });
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("f");
        download::fetch(&format!("{}/f", server.url), &target, &quick()).unwrap();
        assert!(fs::read(&target).unwrap() == wanted, "ignoring ranges: {ignore_ranges}");
        assert_eq!(server.seen().len(), 2);
    }
}

#[test]
fn what_another_server_sent_is_not_gone_on_from() {
    let (one, other) = (noise(100_000), noise(120_000).into_iter().rev().collect::<Vec<u8>>());
    let first = Server::start(move |number, _, headers| match number {
        1 => ranged(&one, "\"1\"", headers).cut(50_000),
        _ => Reply::new("404 Not Found", b""),
    });
    let wanted = other.clone();
    // This one would serve a range of whatever it is asked.
    let second = Server::start(move |_, _, headers| ranged(&other, &header(headers, "if-range").unwrap_or_default(), headers));
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("f");
    download::fetch(&format!("{}/f", first.url), &target, &quick()).unwrap_err();
    download::fetch(&format!("{}/f", second.url), &target, &quick()).unwrap();
    assert!(fs::read(&target).unwrap() == wanted);
}

#[test]
fn a_wrong_range_and_a_server_that_never_finishes_are_not_believed() {
    let body = noise(100_000);
    let sent = body.clone();
    let server = Server::start(move |number, _, headers| match number {
        1 => ranged(&sent, "\"1\"", headers).cut(40_000),
        2 => Reply::new("206 Partial Content", &sent[..60_000]).with("content-range", "bytes 0-59999/100000"),
        _ => ranged(&sent, "\"1\"", headers),
    });
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("f");
    download::fetch(&format!("{}/f", server.url), &target, &quick()).unwrap();
    assert!(fs::read(&target).unwrap() == body);

    let short = Server::start(|_, _, _| Reply::new("200 OK", &noise(5000)).with("content-length", "9000"));
    let error = format!("{:#}", download::fetch(&format!("{}/f", short.url), &folder.path().join("g"), &quick()).unwrap_err());
    assert!(error.contains("gave up"), "{error}");
    assert!(!folder.path().join("g").exists());
}

#[test]
fn a_server_that_falls_silent_is_not_waited_for_longer_than_agreed() {
    let body = noise(50_000);
    let sent = body.clone();
    let server = Server::start(move |number, _, headers| {
        let mut reply = ranged(&sent, "\"1\"", headers);
        if number == 1 {
            reply.cut = Some(20_000);
            reply.stall = Some(Duration::from_secs(30));
        }
        reply
    });
    let folder = tempfile::tempdir().unwrap();
    let start = Instant::now();
    download::fetch(&format!("{}/f", server.url), &folder.path().join("f"), &quick()).unwrap();
    assert!(fs::read(folder.path().join("f")).unwrap() == body);
    assert!(start.elapsed() < Duration::from_secs(15), "{:?}", start.elapsed());
}

#[test]
fn a_length_that_is_not_told_and_an_encoding_that_is_are_taken_as_the_bytes_they_are() {
    // Some servers say of a .tar.gz that its encoding is gzip: the file must arrive packed all the same.
    let body = archive("m");
    let mut chunked = format!("{:x}\r\n", body.len()).into_bytes();
    chunked.extend_from_slice(&body);
    chunked.extend_from_slice(b"\r\n0\r\n\r\n");
    let server = Server::start(move |_, _, _| {
        Reply::new("200 OK", &chunked).with("transfer-encoding", "chunked").with("content-encoding", "gzip")
    });
    let folder = tempfile::tempdir().unwrap();
    weights::pretrained("m", &options(folder.path(), &server.url)).unwrap();
    assert!(fs::read(folder.path().join("model_zoo/m.tar.gz")).unwrap() == body);
}

#[test]
fn a_file_that_is_not_there_is_not_asked_for_again_and_says_how_to_go_on() {
    let server = Server::start(|_, _, _| Reply::new("404 Not Found", b"<html>no</html>"));
    let folder = tempfile::tempdir().unwrap();
    let options = options(folder.path(), &server.url);
    let error = format!("{:#}", weights::pretrained("m", &options).unwrap_err());
    let place = options.zoo_dir.join("m.tar.gz");
    for wanted in [&format!("{}/m.tar.gz", server.url), place.to_str().unwrap(), "--fine_tune_checkpoint none", "404"] {
        assert!(error.contains(wanted), "{wanted}: {error}");
    }
    assert_eq!(server.seen().len(), 1);
    assert_eq!(names(&options.zoo_dir), [""; 0]);
}

#[test]
fn a_server_that_cannot_be_reached_says_how_to_go_on() {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port(); // free again at once
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("f");
    let error = format!("{:#}", download::fetch(&format!("http://127.0.0.1:{port}/f"), &target, &quick()).unwrap_err());
    assert!(error.contains("gave up after 3 attempts"), "{error}");
}

#[test]
fn a_download_that_is_no_archive_is_reported_and_not_kept() {
    let server = Server::start(|_, _, _| Reply::new("200 OK", b"<html>Please log in to this network</html>"));
    let folder = tempfile::tempdir().unwrap();
    let options = options(folder.path(), &server.url);
    let error = format!("{:#}", weights::pretrained("m", &options).unwrap_err());
    assert!(error.contains("is damaged or cut short") && error.contains("--fine_tune_checkpoint none"), "{error}");
    assert_eq!(names(&options.zoo_dir), [""; 0]);
}

#[test]
fn a_downloaded_archive_that_is_refused_does_not_stand_in_the_way_of_another_place() {
    let evil = Server::start(|_, _, _| {
        let mut tar = tar::Builder::new(flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast()));
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        tar.append_link(&mut header, "m/out", "/").unwrap();
        Reply::new("200 OK", &tar.into_inner().unwrap().finish().unwrap())
    });
    let folder = tempfile::tempdir().unwrap();
    let refused = options(folder.path(), &evil.url);
    let error = format!("{:#}", weights::pretrained("m", &refused).unwrap_err());
    assert!(error.contains("links are not unpacked") && error.contains("has been deleted"), "{error}");
    assert_eq!(names(&refused.zoo_dir), [""; 0]);
    let body = archive("m");
    let server = Server::start(move |_, _, headers| ranged(&body, "\"1\"", headers));
    weights::pretrained("m", &options(folder.path(), &server.url)).unwrap();
}

#[test]
fn ctrl_c_during_a_download_ends_the_command_at_once_and_keeps_what_came() {
    let body = noise(50_000);
    let server = Server::start(move |_, _, headers| {
        let cut = ranged(&body, "\"1\"", headers).cut(20_000);
        Reply { stall: Some(Duration::from_secs(60)), ..cut }
    });
    let detect = ["detect", env!("CARGO_MANIFEST_DIR"), "-m", "ssd_mobilenet_v1_0.75_depth_coco"];
    for arguments in [&["export", "-m", "ssd_mobilenet_v1_0.75_depth_coco"][..], &detect] {
        let folder = tempfile::tempdir().unwrap();
        let mut odh = std::process::Command::new(assert_cmd::cargo::cargo_bin!("odh"));
        odh.current_dir(folder.path()).args(arguments).env("ODH_MODEL_ZOO_URL", &server.url);
        let mut child = odh.spawn().unwrap();
        let part = folder.path().join("model_zoo/ssd_mobilenet_v1_0.75_depth_coco.tar.gz.part");
        let until = |what: &str, done: &mut dyn FnMut() -> bool| {
            let begun = Instant::now();
            while !done() {
                assert!(begun.elapsed() < Duration::from_secs(20), "{arguments:?} {what}");
                std::thread::sleep(Duration::from_millis(20));
            }
        };
        until("downloads nothing", &mut || fs::metadata(&part).map_or(0, |stat| stat.len()) == 20_000);
        assert!(std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
        let mut status = None;
        until("goes on after Ctrl-C", &mut || {
            status = child.try_wait().unwrap();
            status.is_some()
        });
        assert!(!status.unwrap().success());
        assert_eq!(fs::metadata(&part).unwrap().len(), 20_000);
    }
}

#[test]
fn two_runs_at_once_download_and_unpack_once() {
    let body = archive("m");
    let server = Server::start(move |_, _, headers| {
        std::thread::sleep(Duration::from_millis(100));
        ranged(&body, "\"1\"", headers)
    });
    let folder = tempfile::tempdir().unwrap();
    let options = options(folder.path(), &server.url);
    let prefixes: Vec<PathBuf> = std::thread::scope(|scope| {
        let runs: Vec<_> = (0..3).map(|_| scope.spawn(|| weights::pretrained("m", &options).unwrap())).collect();
        runs.into_iter().map(|run| run.join().unwrap()).collect()
    });
    assert!(prefixes.iter().all(|prefix| *prefix == options.zoo_dir.join("m/model.ckpt")));
    assert_eq!(server.seen().len(), 1);
}

#[test]
fn the_real_checkpoint_is_unpacked_from_its_archive_and_whole() {
    let Some(archive) = common::shared("model_zoo/ssd_mobilenet_v1_0.75_depth_coco.tar.gz") else { return };
    let folder = tempfile::tempdir().unwrap();
    let name = "ssd_mobilenet_v1_0.75_depth_coco";
    let options = options(folder.path(), &format!("file://{}", archive.canonicalize().unwrap().parent().unwrap().display()));
    let prefix = weights::pretrained(name, &options).unwrap();
    assert_eq!(prefix, options.zoo_dir.join(name).join("model.ckpt"));
    let reader = BundleReader::open(&prefix).unwrap();
    let (shape, values) = reader.read_f32("FeatureExtractor/MobilenetV1/Conv2d_0/weights").unwrap();
    assert_eq!(shape, [3, 3, 3, 24]); // 32 channels times 0.75
    assert!(values.iter().all(|value| value.is_finite()) && values.iter().any(|value| value.abs() > 0.1));
    assert_eq!(reader.get("BoxPredictor_0/ClassPredictor/biases").unwrap().shape, [3 * 91]);
}
