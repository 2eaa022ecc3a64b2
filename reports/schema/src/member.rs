//! One workload of a run, with the operations it issued.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::latency::{Distribution, Latency};
use crate::sections::{Checkpoint, Kv, Rag, Section, Training};

/// One workload of a run.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
pub struct Member {
    /// `training`, `kv`, `rag`, `ops`, …
    pub name: String,
    /// Its share of the workers.
    pub share: f64,
    /// One sentence: whether its goal was met, with figures.
    #[serde(default)]
    pub verdict: String,
    /// How load was offered.
    pub load: ClosedOrOpen,
    /// Start of its measured window, in seconds since the run began.
    pub start_s: f64,
    /// Length of its measured window.
    pub duration_s: f64,
    /// What it did to storage.
    pub operations: Vec<Operation>,
    /// What it did over time.
    pub series: Series,
    /// Training reads.
    pub training: Option<Training>,
    /// Checkpoints.
    pub checkpoint: Option<Checkpoint>,
    /// KV-cache offload.
    pub kv: Option<Kv>,
    /// Retrieval-augmented generation.
    pub rag: Option<Rag>,
}

impl Member {
    /// Puts a machine's section where it belongs.
    pub fn attach(&mut self, section: Section) {
        match section {
            Section::None => {}
            Section::Training(training) => self.training = Some(*training),
            Section::Checkpoint(checkpoint) => self.checkpoint = Some(*checkpoint),
            Section::Kv(kv) => self.kv = Some(*kv),
            Section::Rag(rag) => self.rag = Some(*rag),
        }
    }
}

/// How load is offered.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub enum ClosedOrOpen {
    /// A new operation starts when one ends.
    #[default]
    Closed,
    /// Operations start on a schedule, whatever the target does.
    Open {
        /// Offered operations or requests per second, null where a trace decides.
        offered_per_s: Option<f64>,
    },
}

/// All operations of one verb that travelled one way.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Operation {
    /// `get`, `put`, `stat`, `list`, `delete`, `multipart`.
    pub op: String,
    /// Transport asked for.
    pub transport: String,
    /// Carrier used.
    pub carrier: String,
    /// Operations whose intended start lies in the measured window and which succeeded.
    pub count: u64,
    /// Those that failed, by kind.
    pub errors: BTreeMap<String, u64>,
    /// Attempts made for both.
    pub attempts: u64,
    /// Payload bytes of the successes.
    pub bytes: u64,
    /// Payload bytes of operations completed within the window, per second of it.
    pub bytes_per_s: f64,
    /// Operations completed with success within the window, per second of it.
    pub ops_per_s: f64,
    /// Send to last byte.
    pub service_time: Distribution,
    /// Intended start to last byte.
    pub response_time: Distribution,
    /// Intended start to send.
    pub schedule_slip: Latency,
    /// Send to first byte.
    pub first_byte: Latency,
}

/// What a member did over time, by completion, in equal steps. Long runs have longer steps, never more of them.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
pub struct Series {
    /// Length of a step.
    pub step_s: f64,
    /// The steps, first at the start of the measured window.
    pub points: Vec<Point>,
}

/// One step of a [`Series`], over all operations.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
pub struct Point {
    /// Start of the step, since the start of the window.
    pub t_s: f64,
    /// Operations completed with success.
    pub ops: u64,
    /// Payload bytes of those.
    pub bytes: u64,
    /// Operations failed.
    pub errors: u64,
    /// Operations in flight at the end of the step.
    pub in_flight: u64,
    /// Median response time.
    pub p50_ns: Option<u64>,
    /// 99th percentile of response time.
    pub p99_ns: Option<u64>,
    /// Largest response time.
    pub max_ns: Option<u64>,
}
