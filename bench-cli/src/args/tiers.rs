//! Flags of the tiers below GPU memory.

use clap::{Args, ValueEnum};
use gpufeed_profiles::units::Bytes;

/// Drive, bound of the shared tier, and when blocks are written.
#[derive(Debug, Clone, Default, Args)]
pub struct TierArgs {
    /// Local drive for KV blocks (tier G3), shared by all workers: file:///directory
    #[arg(long, value_name = "URL", help_heading = "Workload")]
    pub g3: Option<String>,
    /// What that drive may hold, e.g. 100GiB
    #[arg(long, help_heading = "Workload")]
    pub g3_bytes: Option<Bytes>,
    /// What the shared tier (G4) may hold before it deletes its least recently used blocks, zero for no shared tier
    /// [default: unbounded]
    #[arg(long, help_heading = "Workload")]
    pub g4_bytes: Option<Bytes>,
    /// When blocks are written below host memory
    #[arg(long, value_enum, help_heading = "Workload")]
    pub write_policy: Option<WritePolicyArg>,
}

/// When blocks are written below host memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum WritePolicyArg {
    /// As soon as they are computed
    WriteThrough,
    /// The same, but only blocks that two prompts have contained (`--set kv.write_after_seen=N`)
    WriteThroughSelective,
    /// When they leave the tier above
    WriteBack,
}
