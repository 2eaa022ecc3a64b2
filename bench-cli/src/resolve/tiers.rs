//! Defaults of the tiers of a KV cache.

use std::path::PathBuf;

use gpufeed_profiles::KvClient;
use gpufeed_profiles::units::Bytes;
use gpufeed_workloads::kv::{KvSpec, WritePolicy};

use crate::args::{TierArgs, WritePolicyArg};
use crate::exit::usage;
use crate::target::{self, Target};

/// What the flags and the client say about tiers.
pub(super) fn settle(args: &TierArgs, client: &KvClient, spec: KvSpec) -> KvSpec {
    let plain = KvSpec::default();
    KvSpec {
        g3_bytes: args.g3_bytes.unwrap_or(Bytes(0)),
        g4_bytes: args.g4_bytes,
        g4_evict_above_ratio: client.evict_above_ratio.unwrap_or(plain.g4_evict_above_ratio),
        g4_evict_ratio: client.evict_ratio.unwrap_or(plain.g4_evict_ratio),
        write_policy: match args.write_policy {
            None | Some(WritePolicyArg::WriteThrough) => WritePolicy::WriteThrough,
            Some(WritePolicyArg::WriteThroughSelective) => WritePolicy::WriteThroughSelective,
            Some(WritePolicyArg::WriteBack) => WritePolicy::WriteBack,
        },
        min_hit_tokens: client.min_hit_tokens,
        lease: client.lease.unwrap_or_default(),
        stage_in_host_memory: client.stage_in_host_memory,
        ..spec
    }
}

/// The directory of the local drive, which a plan has if and only if its spec has room on it.
///
/// # Errors
/// When one is given without the other, or it is no directory.
pub(super) fn drive(args: &TierArgs, spec: &KvSpec) -> anyhow::Result<Option<PathBuf>> {
    match (&args.g3, spec.g3_bytes) {
        (None, Bytes(0)) => Ok(None),
        (None, bytes) => Err(usage(format!("a local drive of {bytes} needs a place: add --g3 file:///directory"))),
        (Some(url), bytes) => match target::parse(url) {
            Ok(Target::File(_)) if bytes.0 == 0 => {
                Err(usage(format!("how much of {url} may be used is not said: add --g3-bytes, e.g. --g3-bytes 100GiB")))
            }
            Ok(Target::File(dir)) => Ok(Some(dir)),
            Ok(_) => Err(usage(format!("--g3 {url} is no local drive: write --g3 file:///directory"))),
            Err(error) => Err(error.context("--g3")),
        },
    }
}
