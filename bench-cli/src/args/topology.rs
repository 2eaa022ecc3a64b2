//! Flags that lay inference workers out, let them die, and pace what they get.

use clap::{Args, ValueEnum};

use super::duration;

/// Who prefills and who decodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum TopologyArg {
    /// Every worker does both
    #[default]
    Aggregated,
    /// Some workers prefill, others decode; KV caches go from one to the other over the network
    Disaggregated,
}

/// A worker and a moment: `2@30s`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WorkerAt {
    /// Which, from zero.
    pub worker: u32,
    /// When, from the start of the run.
    pub at: std::time::Duration,
}

impl std::str::FromStr for WorkerAt {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let form = || format!("`{text}` is not WORKER@TIME: write it like 2@30s, with workers counted from 0");
        let (worker, at) = text.split_once('@').ok_or_else(form)?;
        Ok(Self { worker: worker.parse().map_err(|_| form())?, at: duration(at).map_err(|_| form())? })
    }
}

/// Flags that lay inference workers out, let them die, and pace what they get.
#[derive(Debug, Clone, Default, Args)]
pub struct TopologyArgs {
    /// Whether prefill and decode have workers of their own
    #[arg(long, value_enum, default_value_t, help_heading = "Workload")]
    pub topology: TopologyArg,
    /// Workers that prefill (disaggregated)
    #[arg(long, value_name = "N", help_heading = "Workload")]
    pub prefill_workers: Option<u32>,
    /// Workers that decode (disaggregated)
    #[arg(long, value_name = "N", help_heading = "Workload")]
    pub decode_workers: Option<u32>,
    /// A worker dies at a time: it loses its memory, and its requests go on elsewhere; e.g. 2@30s, workers count from 0;
    /// repeatable
    #[arg(long, value_name = "WORKER@TIME", help_heading = "Workload")]
    pub kill_worker: Vec<WorkerAt>,
    /// A worker that died is back, with empty memory; e.g. 2@60s; repeatable
    #[arg(long, value_name = "WORKER@TIME", help_heading = "Workload")]
    pub restart: Vec<WorkerAt>,
    /// Closed loop over conversations: a turn begins when the one before has ended and its think time is over
    #[arg(long, help_heading = "Workload")]
    pub sessions: bool,
    /// Requests arrive at this share of what the workers can do without any cache outside GPU memory, e.g. 0.8
    #[arg(long, value_name = "SHARE", help_heading = "Workload")]
    pub load: Option<f64>,
    /// Also measure with the other routing, and show routing × shared tier
    #[arg(long, help_heading = "Workload")]
    pub matrix: bool,
    /// Most tokens of one iteration, as in vLLM [default: the engine profile's]
    #[arg(long, value_name = "N", help_heading = "Workload")]
    pub max_num_batched_tokens: Option<u64>,
    /// Most sequences that run at once on a worker, as in vLLM [default: the engine profile's]
    #[arg(long, value_name = "N", help_heading = "Workload")]
    pub max_num_seqs: Option<u32>,
    /// Share of GPU memory the engine may use, as in vLLM [default: the engine profile's]
    #[arg(long, value_name = "SHARE", help_heading = "Workload")]
    pub gpu_memory_utilization: Option<f64>,
    /// KV blocks in GPU memory instead of what the model leaves there, as in vLLM
    #[arg(long, value_name = "N", help_heading = "Workload")]
    pub num_gpu_blocks_override: Option<u64>,
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_worker_and_a_moment() {
        let parsed: WorkerAt = "2@1m30s".parse().expect("a worker and a time");
        assert_eq!(parsed, WorkerAt { worker: 2, at: Duration::from_secs(90) });
        for wrong in ["2", "@30s", "2@", "x@30s", "2@soon", "-1@3s"] {
            let error = wrong.parse::<WorkerAt>().expect_err(wrong);
            assert_eq!(
                error,
                format!("`{wrong}` is not WORKER@TIME: write it like 2@30s, with workers counted from 0")
            );
        }
    }
}
