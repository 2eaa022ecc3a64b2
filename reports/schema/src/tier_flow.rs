//! What moved between the tiers of a KV cache.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Blocks that went up and down the tiers in the window, and what could not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct TierFlow {
    /// Blocks loaded from below that host memory has kept.
    pub promoted_g2_blocks: u64,
    /// Blocks loaded from the target that a drive has kept, where there is no host memory.
    pub promoted_g3_blocks: u64,
    /// Blocks that left host memory for a drive.
    pub demoted_g3_blocks: u64,
    /// Blocks that left host memory or a drive for the target.
    pub demoted_g4_blocks: u64,
    /// Blocks that host memory let go.
    pub evicted_g2_blocks: u64,
    /// Blocks that drives let go.
    pub evicted_g3_blocks: u64,
    /// Blocks that the shared tier deleted.
    pub evicted_g4_blocks: u64,
    /// Blocks that stayed in GPU memory for a while because the queue of writes was full.
    pub stalled_blocks: u64,
    /// Blocks not written because the queue of writes was full.
    pub skipped_blocks: u64,
    /// Blocks not written because a bounded tier had no room: what it held was in use, leased, or not deleted yet.
    pub refused_blocks: u64,
    /// Blocks that a tier should have held and did not.
    pub lost_blocks: u64,
    /// Bytes read from drives, by operations that were intended to start in the window.
    pub g3_read_bytes: u64,
    /// Bytes written to drives, likewise.
    pub g3_written_bytes: u64,
}
