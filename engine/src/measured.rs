//! What a run found out, and why one could not.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use gpufeed_schema::{Latency, Operation, Series, Validity};
use gpufeed_workloads::op::{Carrier, Tick, Verb};
use hdrhistogram::Histogram;

use crate::transport::OpError;

/// What a run found out.
#[derive(Debug)]
pub struct Measured<W> {
    /// The machines, for their own sections of the report.
    pub machines: Vec<W>,
    /// The measured window.
    pub window: (Tick, Tick),
    /// Length of the warm-up before it.
    pub warm_up: Duration,
    /// What was done to storage.
    pub operations: Vec<Operation>,
    /// What was done over time.
    pub series: Series,
    /// The histograms behind `operations`, to be merged with those of other cores, hosts or members.
    pub histograms: Vec<Histograms>,
    /// What the measuring threads used in the window; `None` on the virtual clock.
    pub cpu: Option<CpuUse>,
    /// Schedule slip over all operations.
    pub slip: Latency,
    /// Hash of what the machines generate, 16 hexadecimal digits.
    pub plan_hash: String,
    /// Hash of what was issued, whatever the order; `None` where timing may change it.
    pub issued_hash: Option<String>,
    /// Whether the run was cut short: results are partial.
    pub interrupted: bool,
    /// A few words about failures, `kind: detail`.
    pub errors: Vec<String>,
    /// Whether the measurement can be trusted.
    pub validity: Vec<Validity>,
}

/// Histograms of one verb by one carrier on one target, in nanoseconds; successes with their intended start in the window.
#[derive(Debug, Clone)]
pub struct Histograms {
    /// Whether they are of the run's second target.
    pub second: bool,
    /// What was done.
    pub verb: Verb,
    /// How it travelled.
    pub carrier: Carrier,
    /// Intended start to last byte.
    pub response: Histogram<u64>,
    /// Send to last byte.
    pub service: Histogram<u64>,
    /// Intended start to send.
    pub slip: Histogram<u64>,
    /// Send to first byte.
    pub first_byte: Histogram<u64>,
}

/// What the measuring threads used in the measured window.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CpuUse {
    /// Measuring threads.
    pub cores: u32,
    /// CPU seconds per thread and second.
    pub cpu_ratio: f64,
    /// The same of the busiest thread.
    pub busiest_cpu_ratio: f64,
    /// Time runnable but waiting, per thread and second.
    pub run_wait_ratio: Option<f64>,
    /// Share of all processors' time that the hypervisor took.
    pub steal_ratio: Option<f64>,
    /// Most memory resident.
    pub peak_memory_bytes: Option<u64>,
}

/// Why a run produced nothing.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The settings contradict each other.
    #[error("{0}")]
    Settings(String),
    /// The target could not be reached before the run began.
    #[error("cannot open the target: {0}")]
    Open(#[source] OpError),
    /// The target gave nothing but errors.
    #[error("the target answered no operation within {waited_s:.0} s; {failed} failed, the first with: {detail}")]
    Dead {
        /// How long nothing succeeded.
        waited_s: f64,
        /// Operations failed.
        failed: u64,
        /// What the first failure said.
        detail: String,
    },
    /// An output cannot be written.
    #[error("cannot write {}: {source}", path.display())]
    Output {
        /// Which file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The operating system refused a thread, a timer or a processor.
    #[error("cannot {what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// A fault of this program.
    #[error("internal fault: {0}; this is a defect of gpufeed, please report it")]
    Internal(String),
}
