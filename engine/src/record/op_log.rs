//! The log of operations: `ops.csv.zst`, written by a thread of its own.
//!
//! Measuring cores push fixed-size entries into a bounded lock-free queue. When the writer cannot keep up, entries are
//! dropped and counted; the run is then marked.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_queue::ArrayQueue;
use gpufeed_workloads::machine::Submit;
use gpufeed_workloads::op::{Names, Outcome, Tick};
use serde::Serialize;

/// Entries that may wait for the writer: 10 MiB, a third of a second at 200,000 operations per second.
const WAITING: usize = 1 << 16;
/// How often the writer looks when there was nothing to write.
const LOOK: Duration = Duration::from_millis(2);

struct Entry {
    submit: Submit,
    outcome: Outcome,
}

struct Shared {
    waiting: ArrayQueue<Entry>,
    dropped: AtomicU64,
    closed: AtomicBool,
    /// Wait for room instead of dropping: on the virtual clock nobody is disturbed.
    lossless: bool,
}

/// The cores' end.
#[derive(Clone)]
pub struct Sender {
    shared: Arc<Shared>,
}

impl Sender {
    /// Logs one operation, or counts it as dropped.
    pub fn send(&self, submit: &Submit, outcome: &Outcome) {
        let mut entry = Entry { submit: *submit, outcome: *outcome };
        while let Err(back) = self.shared.waiting.push(entry) {
            if !self.shared.lossless || self.shared.closed.load(Ordering::Relaxed) {
                self.shared.dropped.fetch_add(1, Ordering::Relaxed);
                return;
            }
            std::thread::sleep(Duration::from_micros(100));
            entry = back;
        }
    }
}

/// The writer's end.
pub struct OpLog {
    shared: Arc<Shared>,
    writer: Option<JoinHandle<io::Result<u64>>>,
}

/// What was logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Logged {
    /// Rows written.
    pub written: u64,
    /// Operations that found no room.
    pub dropped: u64,
}

#[derive(Serialize)]
struct Row<'a> {
    worker: u32,
    op: &'static str,
    carrier: &'static str,
    key: &'a str,
    offset: u64,
    bytes: u64,
    intended_ns: u64,
    sent_ns: u64,
    first_byte_ns: u64,
    done_ns: u64,
    status: &'static str,
    attempts: u32,
}

impl OpLog {
    /// Starts the writer. Times in the log are since `start`.
    ///
    /// # Errors
    /// When the file cannot be made or the thread not started.
    pub fn create(path: &Path, names: Names, start: Tick, lossless: bool) -> io::Result<Self> {
        let file = zstd::Encoder::new(File::create(path)?, 1)?;
        let shared = Arc::new(Shared {
            waiting: ArrayQueue::new(WAITING),
            dropped: AtomicU64::new(0),
            closed: AtomicBool::new(false),
            lossless,
        });
        let writer = std::thread::Builder::new().name("gpufeed-op-log".into()).spawn({
            let shared = Arc::clone(&shared);
            move || {
                let written = write(&shared, csv::Writer::from_writer(file), &names, start);
                // Senders must not wait for a writer that is gone.
                shared.closed.store(true, Ordering::Relaxed);
                written
            }
        })?;
        Ok(Self { shared, writer: Some(writer) })
    }

    /// What cores log into.
    #[must_use]
    pub fn sender(&self) -> Sender {
        Sender { shared: Arc::clone(&self.shared) }
    }

    /// Writes what is left and closes the file.
    ///
    /// # Errors
    /// When writing failed at some point: the log is incomplete.
    pub fn finish(mut self) -> io::Result<Logged> {
        self.shared.closed.store(true, Ordering::Release);
        let writer = self.writer.take().ok_or_else(|| io::Error::other("the op log was finished before"))?;
        let written = writer.join().map_err(|_| io::Error::other("the op log's writer panicked"))??;
        Ok(Logged { written, dropped: self.shared.dropped.load(Ordering::Relaxed) })
    }
}

impl Drop for OpLog {
    fn drop(&mut self) {
        self.shared.closed.store(true, Ordering::Release);
    }
}

fn write(
    shared: &Shared,
    mut to: csv::Writer<zstd::Encoder<'static, File>>,
    names: &Names,
    start: Tick,
) -> io::Result<u64> {
    let mut written = 0;
    let mut key = String::new();
    let since = |tick: Tick| tick.0.saturating_sub(start.0);
    loop {
        // Read before the queue: what was pushed before closing is seen below.
        let closed = shared.closed.load(Ordering::Acquire);
        while let Some(Entry { submit, outcome }) = shared.waiting.pop() {
            key.clear();
            names.write(submit.op.key, &mut key);
            let row = Row {
                worker: submit.worker,
                op: submit.op.verb.name(),
                carrier: outcome.carrier.name(),
                key: &key,
                offset: submit.op.offset,
                bytes: outcome.bytes,
                intended_ns: since(outcome.intended),
                sent_ns: since(outcome.sent),
                first_byte_ns: since(outcome.first_byte),
                done_ns: since(outcome.done),
                status: outcome.result.map_or_else(|kind| kind.name(), |()| "ok"),
                attempts: outcome.attempts,
            };
            to.serialize(row).map_err(io::Error::other)?;
            written += 1;
        }
        if closed {
            to.flush()?;
            to.into_inner().map_err(|error| io::Error::other(error.to_string()))?.finish()?.sync_data()?;
            return Ok(written);
        }
        std::thread::sleep(LOOK);
    }
}
