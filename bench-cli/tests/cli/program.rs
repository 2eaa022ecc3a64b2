//! The program under test: started in a directory of its own, with nothing of the caller's AWS configuration, never
//! waited for without a bound.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{OnceLock, mpsc};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

/// Longest time anything here may take.
pub const BOUND: Duration = Duration::from_secs(60);
pub const ACCESS_KEY: &str = "clitestkey";
pub const SECRET_KEY: &str = "cli-test-secret-0123456789";
pub const BUCKET: &str = "cli-tests";

/// A directory to run in.
pub struct Place {
    dir: TempDir,
}

/// A run that is over.
#[derive(Debug)]
pub struct Ended {
    pub status: ExitStatus,
    pub out: String,
    pub err: String,
    pub took: Duration,
}

impl Place {
    pub fn new() -> Self {
        Self { dir: TempDir::new().expect("a temporary directory") }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn write(&self, name: &str, text: &str) -> String {
        fs::write(self.path(name), text).expect("a file");
        self.path(name).display().to_string()
    }

    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(self.dir.path())
            .expect("the directory")
            .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }

    /// The program, or another one that starts it, in this directory.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.current_dir(self.dir.path()).stdin(Stdio::null()).env_clear();
        command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.env("HOME", self.dir.path()).env("XDG_CACHE_HOME", cache());
        command.env("AWS_EC2_METADATA_DISABLED", "true");
        command
    }

    pub fn gpufeed(&self) -> Command {
        self.command(env!("CARGO_BIN_EXE_gpufeed"))
    }

    pub fn run(&self, args: &[&str]) -> Ended {
        ended(self.gpufeed().args(args))
    }

    /// `run OPS… --out out --quiet --format json`, which must pass; its report.
    pub fn report(&self, args: &[&str]) -> Value {
        report(self.gpufeed().args(args).args(["--quiet", "--format", "json"]))
    }

    pub fn json(&self, name: &str) -> Value {
        let text = fs::read_to_string(self.path(name)).expect(name);
        serde_json::from_str(&text).expect("JSON")
    }
}

/// A kept calibration for all tests, so that runs on targets that are not embedded need none of their own.
fn cache() -> &'static Path {
    static CACHE: OnceLock<TempDir> = OnceLock::new();
    let made = CACHE.get_or_init(|| {
        let dir = TempDir::new().expect("a temporary directory");
        let mut command = Command::new(env!("CARGO_BIN_EXE_gpufeed"));
        command.args(["calibrate", "--duration", "100ms", "--json"]).env("XDG_CACHE_HOME", dir.path());
        ended(&mut command).passed();
        dir
    });
    made.path()
}

pub fn report(command: &mut Command) -> Value {
    let ended = ended(command).passed();
    assert_eq!(ended.err, "", "--quiet says nothing");
    serde_json::from_str(&ended.out).expect("nothing but JSON on standard output")
}

/// Runs to the end.
pub fn ended(command: &mut Command) -> Ended {
    Running::start(command).end()
}

/// A started program; killed when dropped.
pub struct Running {
    pub child: Child,
    begun: Instant,
    out: mpsc::Receiver<String>,
    pub err: mpsc::Receiver<String>,
}

fn reader(from: impl Read + Send + 'static) -> mpsc::Receiver<String> {
    let (to, lines) = mpsc::channel();
    std::thread::spawn(move || {
        let mut from = BufReader::new(from);
        let mut line = String::new();
        while from.read_line(&mut line).is_ok_and(|bytes| bytes > 0) {
            let _ = to.send(std::mem::take(&mut line));
        }
    });
    lines
}

impl Running {
    pub fn start(command: &mut Command) -> Self {
        let begun = Instant::now();
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("a started program");
        let out = reader(child.stdout.take().expect("piped"));
        let err = reader(child.stderr.take().expect("piped"));
        Self { child, begun, out, err }
    }

    pub fn signal(&self, name: &str) {
        signal(self.child.id(), name);
    }

    /// The embedded server: this program's one child process.
    pub fn embedded(&self) -> u32 {
        until("an embedded server", || children(self.child.id()).first().copied())
    }

    /// Returns once `out` is being measured into and the server has worked on it for a while.
    pub fn measures(&self, out: &Path, server: u32) {
        until("measurement", || out.join("latency.hlog").exists().then_some(()));
        let before = cpu_ticks(server).expect("a server");
        until("work on the server", || cpu_ticks(server).is_none_or(|now| now >= before + 15).then_some(()));
    }

    pub fn end(mut self) -> Ended {
        let status = until("the program's end", || self.child.try_wait().expect("a child"));
        let took = self.begun.elapsed();
        let all = |lines: &mpsc::Receiver<String>| {
            let mut text = String::new();
            while let Ok(line) = lines.recv_timeout(BOUND) {
                text.push_str(&line);
            }
            text
        };
        let ended = Ended { status, out: all(&self.out), err: all(&self.err), took };
        assert!(!ended.err.contains("panicked at"), "{}", ended.err);
        ended
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Ended {
    pub fn passed(self) -> Self {
        assert_eq!(self.status.code(), Some(0), "{}", self.err);
        self
    }

    /// Ended with `code` after one sentence of the program's own that holds all of `words`.
    pub fn said(&self, code: i32, words: &[&str]) {
        let sentences: Vec<&str> = self.err.lines().filter(|line| line.starts_with("gpufeed: ")).collect();
        assert_eq!(self.status.code(), Some(code), "{}", self.err);
        assert_eq!(sentences.len(), 1, "one sentence: {}", self.err);
        let sentence = sentences[0];
        for word in words {
            assert!(sentence.contains(word), "`{word}` is not in: {sentence}");
        }
        assert!(!sentence.ends_with('.') && !sentence.contains('\u{1b}'), "{sentence}");
        assert!(self.took < Duration::from_secs(30), "took {:?}: {}", self.took, self.err);
    }
}

/// A `gpufeed serve` of a test's own.
pub struct Server {
    pub running: Running,
    pub url: String,
    /// `kv://host:port`
    pub kv: String,
}

impl Server {
    pub fn start(place: &Place, args: &[&str]) -> Self {
        let mut command = place.gpufeed();
        command.args(["serve", "--listen", "127.0.0.1:0", "--metrics", "none", "--threads", "1", "--bucket", BUCKET]);
        command
            .args(["--kv-listen", "127.0.0.1:0", "--access-key", ACCESS_KEY])
            .env("GPUFEED_SECRET_KEY", SECRET_KEY)
            .args(args);
        let running = Running::start(&mut command);
        let address = |name: &str| {
            let line = running.err.recv_timeout(BOUND).expect("an address");
            line.trim().strip_prefix(name).unwrap_or_else(|| panic!("an address, not {line}")).to_owned()
        };
        let (url, kv) = (address("S3 on "), address("KV blocks on "));
        Self { running, url, kv }
    }

    /// The program with this server's keys and address.
    pub fn client(&self, place: &Place) -> Command {
        let mut command = place.gpufeed();
        command.env("AWS_ACCESS_KEY_ID", ACCESS_KEY).env("AWS_SECRET_ACCESS_KEY", SECRET_KEY);
        command.env("AWS_ENDPOINT_URL", &self.url);
        command
    }
}

pub fn target() -> String {
    format!("s3://{BUCKET}/some/where")
}

pub fn signal(process: u32, name: &str) {
    let sent = Command::new("kill").args(["-s", name, &process.to_string()]).status().expect("kill");
    assert!(sent.success(), "kill -s {name} {process}");
}

/// Waits for a condition, for [`BOUND`] at most.
pub fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + BOUND;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "no {what} within {BOUND:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// State, parent and CPU time of a process, from after its name in `/proc`.
fn stat(process: u32) -> Option<Vec<String>> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    Some(stat.rsplit_once(") ")?.1.split(' ').map(str::to_owned).collect())
}

pub fn cpu_ticks(process: u32) -> Option<u64> {
    let stat = stat(process)?;
    Some(stat[11].parse::<u64>().ok()? + stat[12].parse::<u64>().ok()?)
}

/// Whether a process is gone, or only its entry is left for a parent that does not look.
pub fn gone(process: u32) -> bool {
    stat(process).is_none_or(|stat| stat[0] == "Z" || stat[0] == "X")
}

pub fn children(process: u32) -> Vec<u32> {
    let entries = fs::read_dir("/proc").expect("/proc").flatten();
    let ids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    ids.filter(|id| stat(*id).is_some_and(|stat| stat[1] == process.to_string() && stat[0] != "Z")).collect()
}

/// The operations of the first member.
pub fn operations(report: &Value) -> &[Value] {
    report["members"][0]["operations"].as_array().map_or(&[], Vec::as_slice)
}

pub fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("{value} is no whole number"))
}

/// Checks that fail in a report.
pub fn failures(report: &Value) -> Vec<&Value> {
    let checks = report["validity"].as_array().expect("validity");
    checks.iter().filter(|check| check["status"] == "fail").collect()
}

pub fn no_errors(report: &Value) {
    for member in report["members"].as_array().expect("members") {
        for operation in member["operations"].as_array().expect("operations") {
            assert_eq!(operation["errors"], serde_json::json!({}), "{operation}");
        }
    }
    assert!(failures(report).is_empty(), "{:?}", failures(report));
    assert_eq!(report["interrupted"], false);
}

/// Whether any file below `dir` holds `secret`.
pub fn holds(dir: &Path, secret: &str) -> bool {
    fs::read_dir(dir).expect("a directory").flatten().any(|entry| {
        let path = entry.path();
        let bytes = fs::read(&path).unwrap_or_default();
        path.is_dir() && holds(&path, secret) || bytes.windows(secret.len()).any(|part| part == secret.as_bytes())
    })
}
