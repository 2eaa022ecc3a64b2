//! How a run is driven and what it keeps: part of the printed plan.

use std::path::PathBuf;
use std::time::Duration;

/// How a run is driven and what it keeps.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// One entry for each measuring core: the processor it is pinned to, or `None` to let the kernel place it.
    pub cores: Vec<Option<usize>>,
    /// What precedes the measured window.
    pub warm_up: WarmUp,
    /// Length of the measured window; `None` runs until the machine is finished.
    pub duration: Option<Duration>,
    /// How long operations may complete after the window; what is left then counts as cancelled.
    pub drain: Duration,
    /// How long one attempt may take. Kept to within 5%, never early.
    pub op_timeout: Duration,
    /// Attempts after the first, for errors that another attempt may mend.
    pub retries: u32,
    /// Seed of everything random: payloads, which reads are verified.
    pub seed: u64,
    /// Which reads are checked.
    pub verify: Verify,
    /// Where the bytes of reads go that are not checked.
    pub landing: Landing,
    /// Length of an interval of the series, the interval log and `intervals.csv`.
    pub interval: Duration,
    /// Size of the buffers that payloads are made in and checked in. Larger writes are made while sending; larger reads
    /// are checked in a window of this size.
    pub max_data_bytes: u64,
    /// Where to write the log of operations (CSV, zstd).
    pub op_log: Option<PathBuf>,
    /// Where to write the HdrHistogram interval log.
    pub hlog: Option<PathBuf>,
    /// Where to write the table of intervals.
    pub intervals_csv: Option<PathBuf>,
    /// Name of the transport in the report.
    pub transport_name: String,
    /// The run's second target, where it has one.
    pub second: Option<Second>,
    /// A target that gave nothing but errors for this long ends the run.
    pub give_up: Duration,
}

impl Default for Settings {
    /// One core, not pinned; 10 s measured, nothing written.
    fn default() -> Self {
        Self {
            cores: vec![None],
            warm_up: WarmUp::None,
            duration: Some(Duration::from_secs(10)),
            drain: Duration::from_secs(10),
            op_timeout: Duration::from_secs(60),
            retries: 0,
            seed: 0,
            verify: Verify::Off,
            landing: Landing::Discard,
            interval: Duration::from_secs(1),
            max_data_bytes: 1 << 20,
            op_log: None,
            hlog: None,
            intervals_csv: None,
            transport_name: String::new(),
            second: None,
            give_up: Duration::from_secs(10),
        }
    }
}

/// A second target beside the first, as a KV cache has a local drive beside shared storage: which operations go there,
/// and how their rows are named in the report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Second {
    /// Its first key space; those after it are its too.
    pub from_space: u16,
    /// Name of its transport in the report.
    pub transport_name: String,
}

/// What precedes the measured window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WarmUp {
    /// Nothing: the window begins with the run.
    None,
    /// This long.
    Fixed(Duration),
    /// Until throughput is steady (see [`crate::phases::SteadyState`]), at most so long.
    Auto {
        /// When to measure regardless, and say so.
        at_most: Duration,
    },
}

/// Which reads are checked against the bytes that were written.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Verify {
    /// None.
    Off,
    /// This share of them, 0..=1, chosen at random.
    Sampled(f64),
    /// All.
    Full,
}

/// Where the bytes of reads go that are not checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Landing {
    /// Nowhere: counted and dropped as they arrive.
    Discard,
    /// Kept as received until the read is done.
    Hold,
    /// Copied into a registered, page-aligned buffer.
    Arena,
}
