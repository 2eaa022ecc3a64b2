//! What will be done: every default resolved, printed by `--dry-run`, stored as `plan.toml`, without secrets.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use gpufeed_profiles::units::{Bytes, duration};
use gpufeed_workloads::inference::CostModel;
use gpufeed_workloads::kv::KvSpec;
use gpufeed_workloads::ops::OpsSpec;
use gpufeed_workloads::rag::{IndexPlan, QueryArrivals};
use gpufeed_workloads::trace::Synth;
use gpufeed_workloads::training::TrainingSpec;
use serde::{Deserialize, Serialize};

use crate::exit::usage;

/// Version of the plan format.
pub const PLAN_VERSION: u32 = 1;

/// A run, resolved.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// [`PLAN_VERSION`].
    pub plan_version: u32,
    /// `quick`, `ops`, `training`, `kv`, `rag`.
    pub workload: String,
    /// Seed of everything random.
    pub seed: u64,
    /// How it is driven and measured.
    pub run: RunPlan,
    /// Where the data is.
    pub target: TargetPlan,
    /// What is replayed, one after the other.
    pub members: Vec<MemberPlan>,
}

/// How a run is driven and measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunPlan {
    /// Processors of the client, a thread pinned to each.
    pub cores: Vec<usize>,
    /// Time-out of one attempt.
    #[serde(with = "duration")]
    pub op_timeout: Duration,
    /// Attempts after the first.
    pub retries: u32,
    /// How long operations may complete after the window.
    #[serde(with = "duration")]
    pub drain: Duration,
    /// Step of the series and of the interval log.
    #[serde(with = "duration")]
    pub interval: Duration,
    /// Share of reads checked against what was written.
    pub verify_ratio: f64,
    /// Where bodies land: `discard`, `hold` or `arena`.
    pub landing: String,
    /// Whether every operation is logged.
    pub op_log: bool,
    /// Whether data already there is used.
    pub reuse: bool,
    /// Whether the data stays afterwards.
    pub keep_data: bool,
}

/// Where the data is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", tag = "kind")]
pub enum TargetPlan {
    /// The reference server as a child process.
    Embedded {
        /// `mem` or `synth`.
        store: String,
        /// Most memory for objects.
        capacity: Bytes,
        /// Injected latency, caps and faults.
        shape: Vec<String>,
        /// Processors of the server.
        server_cores: Vec<usize>,
        /// `raw` or `aws-sdk`.
        s3_client: String,
        /// How it is reached: `s3` or `kv`.
        #[serde(default = "s3_wire")]
        wire: String,
    },
    /// A KV block server.
    Kv {
        /// `host:port`.
        address: String,
        /// The bucket of its blocks.
        bucket: String,
        /// Text before every key; empty, or ends with `/`.
        prefix: String,
        /// Profile of the AWS configuration files that has the keys.
        aws_profile: Option<String>,
    },
    /// An S3 bucket.
    S3 {
        /// Bucket.
        bucket: String,
        /// Text before every key; empty, or ends with `/`.
        prefix: String,
        /// Endpoints; none means AWS.
        endpoints: Vec<String>,
        /// Region, where it does not come from the AWS configuration.
        region: Option<String>,
        /// Profile of the AWS configuration files.
        aws_profile: Option<String>,
        /// `auto`, `path` or `virtual`.
        addressing: String,
        /// Whether certificates are checked.
        verify_tls: bool,
        /// `raw` or `aws-sdk`.
        s3_client: String,
    },
    /// A directory.
    File {
        /// The directory.
        dir: PathBuf,
    },
    /// Nowhere: completes at once.
    Null,
}

/// One workload of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemberPlan {
    /// Its name in the report.
    pub name: String,
    /// Length of its window; without it, it runs until it is finished.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "optional_duration")]
    pub duration: Option<Duration>,
    /// What precedes the window.
    pub warm_up: WarmUpPlan,
    /// In words, what is smaller than real and what that does.
    #[serde(default)]
    pub scaling: Vec<String>,
    /// What is replayed.
    pub spec: SpecPlan,
}

/// What precedes a window.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub enum WarmUpPlan {
    /// So long; zero for none.
    Fixed(#[serde(with = "duration")] Duration),
    /// Until throughput is steady, at most so long.
    UntilSteady(#[serde(with = "duration")] Duration),
}

/// What is replayed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub enum SpecPlan {
    /// Plain load.
    Ops(OpsSpec),
    /// Training reads.
    Training(TrainingSpec),
    /// KV-cache offload.
    Kv(Box<KvPlan>),
    /// Retrieval-augmented generation.
    Rag(Box<RagPlan>),
}

/// KV-cache offload.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KvPlan {
    /// Whether the same trace also runs on other storage in virtual time.
    pub baselines: bool,
    /// Whether the run is part of the table of routing × shared tier.
    #[serde(default)]
    pub matrix: bool,
    /// The workload's own settings.
    pub spec: KvSpec,
    /// Directory of the local drive (G3), where the spec has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drive: Option<PathBuf>,
    /// Where requests come from.
    pub trace: TracePlan,
    /// What an iteration costs.
    pub cost: CostModel,
    /// Where the figures behind that come from.
    pub sources: BTreeMap<String, String>,
}

/// Retrieval-augmented generation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RagPlan {
    /// The workload's own settings.
    pub spec: RagSpec,
    /// Where queries come from.
    pub trace: TracePlan,
    /// What an iteration costs.
    pub cost: CostModel,
    /// Where the figures behind that come from.
    pub sources: BTreeMap<String, String>,
}

/// Settings of a RAG run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RagSpec {
    /// Model served, for the report.
    pub model: String,
    /// GPU it is served on (emulated), for the report.
    pub gpu: String,
    /// Emulated workers.
    pub workers: u32,
    /// Ends the run after so many queries.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queries: Option<u64>,
    /// Bytes of a passage's text per token.
    pub bytes_per_token: f64,
    /// Time to embed a question, emulated.
    #[serde(with = "duration")]
    pub embed: Duration,
    /// Time to rank what the posting lists gave, emulated.
    #[serde(with = "duration")]
    pub rerank: Duration,
    /// Most reads in flight.
    pub lanes: usize,
    /// Most tokens of one iteration.
    pub max_num_batched_tokens: u64,
    /// Most sequences that run at once on a worker.
    pub max_num_seqs: u32,
    /// Share of GPU memory the engine may use.
    pub gpu_memory_utilization: f64,
    /// Tokens of a KV block in GPU memory.
    pub block_tokens: u64,
    /// Emulated times and gaps between arrivals are multiplied by this; results are divided by it.
    pub time_scale: f64,
    /// Text before every key.
    pub prefix: String,
    /// When queries arrive.
    pub arrivals: QueryArrivals,
    /// The index on the target.
    pub index: IndexPlan,
}

/// Where requests come from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", tag = "from")]
pub enum TracePlan {
    /// A file.
    File {
        /// Its path.
        path: PathBuf,
        /// The part of it that is replayed, in seconds from its first arrival.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        window_s: Option<(f64, f64)>,
    },
    /// Named parameters.
    Synth(Synth),
}

impl Plan {
    /// The plan as TOML.
    ///
    /// # Errors
    /// Never for plans made by this program.
    pub fn to_toml(&self) -> anyhow::Result<String> {
        toml::to_string(self).context("cannot write the plan as TOML")
    }

    /// Reads a plan.
    ///
    /// # Errors
    /// One sentence with file and line.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let at = path.display();
        let text =
            std::fs::read_to_string(path).map_err(|error| usage(format!("cannot read the plan {at}: {error}")))?;
        let plan: Self = toml::from_str(&text).map_err(|error| {
            usage(format!("{at}{} is no part of a plan: {}", line_of(&text, &error), error.message()))
        })?;
        if plan.plan_version != PLAN_VERSION {
            return Err(usage(format!(
                "{at} has plan version {}, this program reads {PLAN_VERSION}: use the release that wrote it",
                plan.plan_version
            )));
        }
        Ok(plan)
    }
}

/// The line an error lies in, as words.
fn line_of(text: &str, error: &toml::de::Error) -> String {
    let before = error.span().and_then(|span| text.get(..span.start));
    before.map_or_else(String::new, |before| format!(" line {}", before.matches('\n').count() + 1))
}

/// Whether a target is on this machine and made for tests, so that the run judges the tool and not a product.
impl TargetPlan {
    /// Server and client share this machine, or there is no server at all.
    pub const fn self_test(&self) -> bool {
        matches!(self, Self::Embedded { .. } | Self::Null)
    }

    /// The target as the user names it.
    pub fn name(&self) -> String {
        match self {
            Self::Embedded { store, wire, .. } => {
                let store = if store == "mem" { String::new() } else { format!(":{store}") };
                let wire = if wire == "kv" { " by the KV protocol" } else { "" };
                format!("embedded{store}{wire}")
            }
            Self::Kv { address, bucket, prefix, .. } => format!("kv://{address}/{bucket}/{prefix}"),
            Self::S3 { bucket, prefix, endpoints, .. } => {
                let at = if endpoints.is_empty() { String::new() } else { format!(" at {}", endpoints.join(", ")) };
                format!("s3://{bucket}/{prefix}{at}")
            }
            Self::File { dir } => format!("file://{}", dir.display()),
            Self::Null => "mem:".to_owned(),
        }
    }

    /// The transport's name in reports.
    pub fn transport(&self) -> &'static str {
        match self {
            Self::Embedded { wire, .. } if wire == "kv" => "kv",
            Self::Kv { .. } => "kv",
            Self::Embedded { s3_client, .. } | Self::S3 { s3_client, .. } if s3_client == "aws-sdk" => "s3-aws-sdk",
            Self::Embedded { .. } | Self::S3 { .. } => "s3-raw",
            Self::File { .. } => "file",
            Self::Null => "mem",
        }
    }

    /// Text before every key.
    pub fn prefix(&self) -> &str {
        match self {
            Self::S3 { prefix, .. } | Self::Kv { prefix, .. } => prefix,
            _ => "",
        }
    }
}

fn s3_wire() -> String {
    "s3".to_owned()
}

mod optional_duration {
    use std::time::Duration;

    use gpufeed_profiles::units::duration;
    use serde::{Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(value: &Option<Duration>, to: S) -> Result<S::Ok, S::Error> {
        match value {
            Some(value) => duration::serialize(value, to),
            None => to.serialize_none(),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Duration>, D::Error> {
        duration::deserialize(from).map(Some)
    }
}
