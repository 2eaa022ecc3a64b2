//! Request shapes of KV-offload clients: what they ask of storage for a prefix, and how they write new blocks.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::catalog::{Profile, Sources};
use crate::gpu::ratio_above_zero;
use crate::units::Bytes;

/// How a client lays out and asks for KV blocks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KvClient {
    /// Name; of the file if it is not given.
    #[serde(default)]
    pub name: String,
    /// Other names.
    #[serde(default)]
    pub aliases: Vec<String>,
    /// Tokens of an object.
    pub block_tokens: u64,
    /// Bytes of an object where that is fixed whatever the model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub block_bytes: Option<Bytes>,
    /// How objects are called.
    pub key: KeyForm,
    /// How presence is asked before a load.
    pub exists: Exists,
    /// How a new block is written.
    pub store: Store,
    /// Most requests in flight, of each rank where ranks have objects of their own.
    pub in_flight: u32,
    /// Shortest hit worth loading.
    #[serde(default)]
    pub min_hit_tokens: u64,
    /// Most blocks of one batch; no limit if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batch_blocks: Option<u32>,
    /// Whether each tensor-parallel rank has objects of its own, replicated KV heads included.
    #[serde(default)]
    pub per_rank: bool,
    /// Whether every GET names a range.
    #[serde(default)]
    pub ranged_get: bool,
    /// Whether loads go through host memory (G2).
    #[serde(default)]
    pub stage_in_host_memory: bool,
    /// How often completion is looked at; at once if not given.
    #[serde(default, with = "poll", skip_serializing_if = "Option::is_none")]
    pub poll: Option<Duration>,
    /// How long an exists or a get protects a block from eviction.
    #[serde(default, with = "poll", skip_serializing_if = "Option::is_none")]
    pub lease: Option<Duration>,
    /// Share of capacity above which the store evicts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evict_above_ratio: Option<f64>,
    /// Share of capacity one eviction frees.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evict_ratio: Option<f64>,
    /// Sources of the figures.
    #[serde(default)]
    pub sources: Sources,
}

/// How objects are called.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KeyForm {
    /// The block's hash.
    Hash,
    /// A 64-bit number.
    U64,
    /// `{rank}/{position}:{hash}:{parent}`, hashes in base 58; the first block has no parent.
    RankPositionHash,
    /// `{model}@{world}@{worker}@{hash}@{dtype}`.
    ModelWorldWorkerHash,
}

/// How presence is asked before a load.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Exists {
    /// HEAD per block.
    Head,
    /// HEAD per block and rank.
    HeadPerRank,
    /// HEAD per block and rank, one after the other up to the first that is missing; what was found or written is not
    /// asked for again.
    HeadCached,
    /// One question for many blocks to the store's own index. Over S3, which has no such question, the run's index of
    /// completed writes stands for it.
    Batch,
}

/// How a new block is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Store {
    /// PUT.
    Put,
    /// PUT with `If-None-Match: *`.
    PutIfAbsent,
    /// HEAD of `.meta`, conditional PUT of `.lock`, PUT of each rank's data, PUT of an empty `.meta`, DELETE of `.lock`. A
    /// lock that is taken is read, and the block is left to who has it; taking over one that has expired (after 5
    /// minutes) is not played.
    LockMeta,
    /// Start, transfer, end; a plain PUT over S3.
    PutStartEnd,
    /// Allocate, write, commit; a plain PUT over S3.
    AllocateCommit,
}

/// Optional durations as text.
mod poll {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer};

    use crate::units::duration;

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Duration>, D::Error> {
        #[derive(Deserialize)]
        struct Text(#[serde(with = "duration")] Duration);
        Ok(Some(Text::deserialize(from)?.0))
    }

    pub(super) fn serialize<S: Serializer>(value: &Option<Duration>, to: S) -> Result<S::Ok, S::Error> {
        match value {
            Some(value) => duration::serialize(value, to),
            None => to.serialize_none(),
        }
    }
}

impl Profile for KvClient {
    const KIND: &'static str = "kv-client";
    const DATA: &'static str = include_str!("../data/kv_clients.toml");

    fn set_name(&mut self, name: &str) {
        name.clone_into(&mut self.name);
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn check(&self) -> Result<(), String> {
        if self.block_tokens == 0 || self.in_flight == 0 || self.batch_blocks == Some(0) {
            return Err("block_tokens, in_flight and batch_blocks must be more than zero".to_owned());
        }
        if self.block_bytes == Some(Bytes(0)) {
            return Err("block_bytes must be more than zero".to_owned());
        }
        for (what, ratio) in [("evict_above_ratio", self.evict_above_ratio), ("evict_ratio", self.evict_ratio)] {
            ratio.map_or(Ok(()), |ratio| ratio_above_zero(what, ratio))?;
        }
        Ok(())
    }
}
