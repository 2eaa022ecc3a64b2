//! What can be typed after `gpufeed search`: pure syntax.

use clap::{Args, Subcommand};

use crate::args::{KvArgs, OpsArgs, RagArgs, TrainingArgs};

/// `gpufeed search`.
#[derive(Debug, Args)]
pub struct SearchArgs {
    /// What is raised until it no longer holds.
    #[command(subcommand)]
    pub workload: SearchWorkload,
}

/// What is raised until it no longer holds.
#[derive(Debug, Subcommand)]
pub enum SearchWorkload {
    /// Most accelerators that stay at their utilization or above
    Training(TrainingSearch),
    /// Most requests per second inside the objectives: how many times as fast as the trace
    Kv(Box<KvSearch>),
    /// Most queries per second inside the objective
    Rag(RagSearch),
    /// Most clients, or operations per second, before latency or throughput give in
    Ops(OpsSearch),
}

/// `gpufeed search training`.
#[derive(Debug, Clone, Args)]
pub struct TrainingSearch {
    /// Flags of each probe, an ordinary `gpufeed run training`.
    #[command(flatten)]
    pub run: TrainingArgs,
    /// Flags of every search.
    #[command(flatten)]
    pub knee: KneeArgs,
}

/// `gpufeed search kv`.
#[derive(Debug, Clone, Args)]
pub struct KvSearch {
    /// Flags of each probe, an ordinary `gpufeed run kv`.
    #[command(flatten)]
    pub run: KvArgs,
    /// Flags of every search.
    #[command(flatten)]
    pub knee: KneeArgs,
    /// Share of the requests offered that must meet their objectives
    #[arg(long, default_value = "95%", help_heading = "Search")]
    pub share: String,
    /// Search the same trace also without a cache, with local tiers only and on ideal storage, in virtual time
    #[arg(long = "virtual", help_heading = "Search")]
    pub virtual_baselines: bool,
}

/// `gpufeed search rag`.
#[derive(Debug, Clone, Args)]
pub struct RagSearch {
    /// Flags of each probe, an ordinary `gpufeed run rag`.
    #[command(flatten)]
    pub run: RagArgs,
    /// Flags of every search.
    #[command(flatten)]
    pub knee: KneeArgs,
    /// Share of the queries offered whose first token must come within --slo-ttft
    #[arg(long, default_value = "95%", help_heading = "Search")]
    pub share: String,
}

/// `gpufeed search ops`.
#[derive(Debug, Clone, Args)]
pub struct OpsSearch {
    /// Flags of each probe, an ordinary `gpufeed run ops`.
    #[command(flatten)]
    pub run: OpsArgs,
    /// Flags of every search.
    #[command(flatten)]
    pub knee: KneeArgs,
    /// What is raised: depth (clients of a closed loop) or rate (operations per second of an open one)
    #[arg(long, default_value = "depth", help_heading = "Search")]
    pub over: String,
    /// Most p99 of response time, for --metric p99
    #[arg(long, value_name = "TIME", help_heading = "Search")]
    pub slo: Option<String>,
    /// Throughput has stopped growing where nothing beyond reaches this much more, for --metric throughput
    #[arg(long, default_value = "5%", help_heading = "Search")]
    pub growth: String,
}

/// Flags of every search.
#[derive(Debug, Clone, Default, Args)]
pub struct KneeArgs {
    /// Lowest level
    #[arg(long, value_name = "LEVEL", help_heading = "Search")]
    pub min: Option<f64>,
    /// Highest level
    #[arg(long, value_name = "LEVEL", help_heading = "Search")]
    pub max: Option<f64>,
    /// First level tried; doubled while it passes, halved while it does not
    #[arg(long, value_name = "LEVEL", help_heading = "Search")]
    pub start: Option<f64>,
    /// How near the failing level must be to the passing one [default: the next whole number, or 5%]
    #[arg(long, value_name = "SHARE", help_heading = "Search")]
    pub resolution: Option<String>,
    /// Most runs of one level; what the majority of them says stands
    #[arg(long, default_value_t = 3, value_name = "N", help_heading = "Search")]
    pub confirmations: u32,
    /// Most runs in all
    #[arg(long, default_value_t = 60, value_name = "N", help_heading = "Search")]
    pub most_probes: u32,
    /// What decides: au (training), goodput (kv, rag), p99 or throughput (ops)
    #[arg(long, value_name = "NAME", help_heading = "Search")]
    pub metric: Option<String>,
    /// Go on with the interrupted search in --out, and with nothing else
    #[arg(long, help_heading = "Search")]
    pub resume: bool,
}
