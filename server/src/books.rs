//! What was served: counters and the access log.
//!
//! Each core counts for itself and writes log lines into a buffer of its own; a thread of its own writes the file.

use std::cell::RefCell;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use serde::Serialize;

use crate::config::{AccessLog, LogFormat};
use crate::operation::Operation;
use crate::store::Usage;

/// Upper bounds of the duration histogram's buckets, in microseconds.
const BUCKETS_US: [u64; 16] = [
    50,
    100,
    200,
    500,
    1_000,
    2_000,
    5_000,
    10_000,
    20_000,
    50_000,
    100_000,
    200_000,
    500_000,
    1_000_000,
    5_000_000,
    u64::MAX,
];
/// Log bytes a core gathers before it passes them on.
const LOG_BUFFER_BYTES: usize = 32 * 1024;

#[derive(Debug, Default)]
struct OperationCounts {
    /// By hundreds of the status: 1xx to 5xx.
    by_status: [AtomicU64; 5],
    bytes_in: AtomicU64,
    bytes_out: AtomicU64,
    duration_ns: AtomicU64,
    durations: [AtomicU64; BUCKETS_US.len()],
}

/// How a request came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wire {
    S3,
    Kv,
}

impl Wire {
    const ALL: [Self; 2] = [Self::S3, Self::Kv];

    const fn name(self) -> &'static str {
        match self {
            Self::S3 => "s3",
            Self::Kv => "kv",
        }
    }
}

/// One core's counters.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    wires: [[OperationCounts; Operation::ALL.len()]; Wire::ALL.len()],
    pub(crate) connections: AtomicU64,
}

/// One request, served.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Served {
    pub(crate) wire: Wire,
    pub(crate) operation: Operation,
    pub(crate) status: u16,
    pub(crate) bytes_in: u64,
    pub(crate) bytes_out: u64,
    pub(crate) duration: Duration,
    /// What the shape made go wrong: `error`, `corrupt`, `short`, or nothing.
    pub(crate) fault: &'static str,
}

impl Counts {
    pub(crate) fn add(&self, served: &Served) {
        let counts = &self.wires[served.wire as usize][served.operation as usize];
        let class = usize::from(served.status / 100).clamp(1, 5) - 1;
        counts.by_status[class].fetch_add(1, Relaxed);
        counts.bytes_in.fetch_add(served.bytes_in, Relaxed);
        counts.bytes_out.fetch_add(served.bytes_out, Relaxed);
        let nanos = u64::try_from(served.duration.as_nanos()).unwrap_or(u64::MAX);
        counts.duration_ns.fetch_add(nanos, Relaxed);
        let bucket = BUCKETS_US.partition_point(|bound| bound.saturating_mul(1000) < nanos);
        counts.durations[bucket.min(BUCKETS_US.len() - 1)].fetch_add(1, Relaxed);
    }
}

/// All cores' counters as Prometheus text.
pub(crate) fn prometheus(cores: &[Arc<Counts>], usage: Usage, evicted: u64) -> String {
    let sum = |pick: &dyn Fn(&Counts) -> &AtomicU64| cores.iter().map(|core| pick(core).load(Relaxed)).sum::<u64>();
    let mut out = String::new();
    let mut family = |name: &str, kind: &str, help: &str, lines: String| {
        // Writing to a String cannot fail.
        let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}\n{}", lines.trim_end());
    };
    let mut requests = String::new();
    let mut bytes = String::new();
    let mut durations = String::new();
    let all = Wire::ALL.into_iter().flat_map(|wire| Operation::ALL.map(|operation| (wire, operation)));
    for (wire, operation) in all {
        let (w, i) = (wire as usize, operation as usize);
        let labels = format!("wire=\"{}\",op=\"{}\"", wire.name(), operation.name());
        for class in 0..5 {
            let count = sum(&|core| &core.wires[w][i].by_status[class]);
            let _ = writeln!(requests, "gpufeed_requests_total{{{labels},status=\"{}xx\"}} {count}", class + 1);
        }
        let received = sum(&|core| &core.wires[w][i].bytes_in);
        let sent = sum(&|core| &core.wires[w][i].bytes_out);
        let _ = writeln!(bytes, "gpufeed_body_bytes_total{{{labels},direction=\"in\"}} {received}");
        let _ = writeln!(bytes, "gpufeed_body_bytes_total{{{labels},direction=\"out\"}} {sent}");
        let mut count = 0;
        for (bucket, bound) in BUCKETS_US.iter().enumerate() {
            count += sum(&|core| &core.wires[w][i].durations[bucket]);
            let le = if *bound == u64::MAX { "+Inf".to_owned() } else { (*bound as f64 / 1e6).to_string() };
            let _ = writeln!(durations, "gpufeed_request_duration_seconds_bucket{{{labels},le=\"{le}\"}} {count}");
        }
        let seconds = sum(&|core| &core.wires[w][i].duration_ns) as f64 / 1e9;
        let _ = writeln!(durations, "gpufeed_request_duration_seconds_sum{{{labels}}} {seconds}");
        let _ = writeln!(durations, "gpufeed_request_duration_seconds_count{{{labels}}} {count}");
    }
    family("gpufeed_requests_total", "counter", "Requests served.", requests);
    family("gpufeed_body_bytes_total", "counter", "Bytes of bodies.", bytes);
    family(
        "gpufeed_request_duration_seconds",
        "histogram",
        "From the end of a request's header to the last byte of its answer handed to the socket.",
        durations,
    );
    let gauge = |name: &str, value: u64| format!("{name} {value}");
    let connections = sum(&|core| &core.connections);
    family("gpufeed_connections", "gauge", "Connections open.", gauge("gpufeed_connections", connections));
    family("gpufeed_objects", "gauge", "Objects stored.", gauge("gpufeed_objects", usage.objects));
    family("gpufeed_held_bytes", "gauge", "Bytes held.", gauge("gpufeed_held_bytes", usage.held_bytes));
    let evictions = gauge("gpufeed_evicted_blocks_total", evicted);
    family("gpufeed_evicted_blocks_total", "counter", "KV blocks evicted for want of room.", evictions);
    let capacity = gauge("gpufeed_capacity_bytes", usage.capacity_bytes);
    family("gpufeed_capacity_bytes", "gauge", "Bytes that may be held.", capacity);
    out
}

/// What a log line says of a request besides how it went.
#[derive(Debug, Clone, Default)]
pub(crate) struct Request {
    pub(crate) bucket: String,
    pub(crate) key: String,
    pub(crate) range: String,
}

#[derive(Serialize)]
struct Line<'a> {
    time_unix_ns: u64,
    wire: &'static str,
    op: &'static str,
    bucket: &'a str,
    key: &'a str,
    range: &'a str,
    status: u16,
    bytes: u64,
    duration_ns: u64,
    fault: &'static str,
}

const CSV_HEADER: &str = "time_unix_ns,wire,op,bucket,key,range,status,bytes,duration_ns,fault\n";

/// A field of a CSV line, quoted where it must be (RFC 4180).
fn field(out: &mut Vec<u8>, text: &str) {
    if text.contains([',', '"', '\n', '\r']) {
        out.push(b'"');
        out.extend_from_slice(text.replace('"', "\"\"").as_bytes());
        out.push(b'"');
    } else {
        out.extend_from_slice(text.as_bytes());
    }
}

/// The thread that writes the log.
#[derive(Debug)]
pub(crate) struct LogWriter {
    thread: JoinHandle<()>,
}

impl LogWriter {
    /// Opens the file.
    ///
    /// # Errors
    /// When the file cannot be opened or the thread not started.
    pub(crate) fn start(log: &AccessLog) -> io::Result<(Self, LogSender)> {
        let mut file = File::options().create(true).append(true).open(&log.path)?;
        if log.format == LogFormat::Csv && file.metadata()?.len() == 0 {
            file.write_all(CSV_HEADER.as_bytes())?;
        }
        // Bounded: a disk that cannot keep up slows requests down; memory does not grow.
        let (sender, lines) = mpsc::sync_channel::<Vec<u8>>(256);
        let path = log.path.clone();
        let write = move || {
            for buffer in lines {
                if let Err(error) = file.write_all(&buffer) {
                    tracing::error!(%error, path = %path.display(), "cannot write the access log, which ends here");
                    return;
                }
            }
        };
        let thread = std::thread::Builder::new().name("access-log".into()).spawn(write)?;
        Ok((Self { thread }, LogSender { lines: sender, format: log.format }))
    }

    /// Waits until all is written; to be called once all senders are gone.
    pub(crate) fn finish(self) {
        // A panic there has been reported where it happened.
        let _ = self.thread.join();
    }
}

/// Makes the log buffers of the cores.
#[derive(Debug, Clone)]
pub(crate) struct LogSender {
    lines: mpsc::SyncSender<Vec<u8>>,
    format: LogFormat,
}

/// A core's log lines on their way.
#[derive(Debug)]
pub(crate) struct Log {
    sender: LogSender,
    buffer: RefCell<Vec<u8>>,
}

impl Log {
    pub(crate) fn new(sender: LogSender) -> Self {
        Self { sender, buffer: RefCell::default() }
    }

    pub(crate) fn add(&self, request: &Request, served: &Served) {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let nanos = |duration: Duration| u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        let line = Line {
            time_unix_ns: nanos(now.saturating_sub(served.duration)),
            wire: served.wire.name(),
            op: served.operation.name(),
            bucket: &request.bucket,
            key: &request.key,
            range: &request.range,
            status: served.status,
            bytes: if served.bytes_in > 0 { served.bytes_in } else { served.bytes_out },
            duration_ns: nanos(served.duration),
            fault: served.fault,
        };
        let mut buffer = self.buffer.borrow_mut();
        // Writing to memory cannot fail.
        match self.sender.format {
            LogFormat::Json => {
                let _ = serde_json::to_writer(&mut *buffer, &line);
                buffer.push(b'\n');
            }
            LogFormat::Csv => {
                let _ = write!(buffer, "{},{},{},", line.time_unix_ns, line.wire, line.op);
                for text in [line.bucket, line.key, line.range] {
                    field(&mut buffer, text);
                    buffer.push(b',');
                }
                let _ = writeln!(buffer, "{},{},{},{}", line.status, line.bytes, line.duration_ns, line.fault);
            }
        }
        let full = buffer.len() >= LOG_BUFFER_BYTES;
        drop(buffer);
        if full {
            self.flush();
        }
    }

    /// Passes on what there is.
    pub(crate) fn flush(&self) {
        let buffer = std::mem::take(&mut *self.buffer.borrow_mut());
        if !buffer.is_empty() {
            // The writer is gone after an error it has reported.
            let _ = self.sender.lines.send(buffer);
        }
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        self.flush();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_cumulative_and_sums_are_over_cores() {
        let served = |micros| Served {
            wire: Wire::S3,
            operation: Operation::Get,
            status: 206,
            bytes_in: 0,
            bytes_out: 10,
            duration: Duration::from_micros(micros),
            fault: "",
        };
        let cores = [Arc::new(Counts::default()), Arc::new(Counts::default())];
        cores[0].add(&served(50));
        cores[0].add(&served(51));
        cores[1].add(&served(100_000_000));
        let text = prometheus(&cores, Usage::default(), 0);
        let has = |line: &str| assert!(text.lines().any(|found| found == line), "no {line} in {text}");
        has("gpufeed_requests_total{wire=\"s3\",op=\"get\",status=\"2xx\"} 3");
        has("gpufeed_body_bytes_total{wire=\"s3\",op=\"get\",direction=\"out\"} 30");
        has("gpufeed_request_duration_seconds_bucket{wire=\"s3\",op=\"get\",le=\"0.00005\"} 1");
        has("gpufeed_request_duration_seconds_bucket{wire=\"s3\",op=\"get\",le=\"0.0001\"} 2");
        has("gpufeed_request_duration_seconds_bucket{wire=\"s3\",op=\"get\",le=\"+Inf\"} 3");
        has("gpufeed_request_duration_seconds_count{wire=\"s3\",op=\"get\"} 3");
        has("gpufeed_requests_total{wire=\"s3\",op=\"put\",status=\"2xx\"} 0");
    }

    #[test]
    fn fields_are_quoted_where_they_must_be() {
        let mut out = Vec::new();
        field(&mut out, "a,\"b\"");
        assert_eq!(out, b"\"a,\"\"b\"\"\"");
    }
}
