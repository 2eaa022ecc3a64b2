//! What a KV-offload client makes of a run: the size of its blocks, its keys, and the operations it issues.

use gpufeed_profiles::units::Bytes;
use gpufeed_profiles::{Dtype, Exists as Asks, KvClient, Model};
use gpufeed_workloads::inference::CostModel;
use gpufeed_workloads::kv::{Exists, KvSpec, RequestShape};

use crate::exit::usage;
use crate::plan::TargetPlan;

/// Largest object that S3 takes in one PUT (S3 API reference, PutObject).
const S3_OBJECT_BYTES: u64 = 5 << 30;

/// The run as this client does it.
pub(super) fn settle(
    client: &KvClient,
    model: &Model,
    cost: &CostModel,
    block_tokens: Option<u32>,
    spec: KvSpec,
) -> anyhow::Result<KvSpec> {
    if block_tokens == Some(0) {
        return Err(usage("--block-tokens must be at least 1"));
    }
    // A block of fixed bytes holds what fits into it.
    let fixed = client.block_bytes.map(|bytes| ((bytes.0 as f64 / cost.kv_bytes_per_token) as u64).max(1));
    let own = u32::try_from(fixed.unwrap_or(client.block_tokens)).unwrap_or(u32::MAX);
    // The latent of multi-head latent attention is the same on every rank; one copy is stored.
    let per_rank = client.per_rank && model.mla.is_none();
    // Each rank is a process with a client of its own.
    let in_flight = client.in_flight.saturating_mul(if per_rank { cost.tp } else { 1 });
    Ok(KvSpec {
        exists: match client.exists {
            Asks::Head | Asks::HeadPerRank | Asks::HeadCached => Exists::Stat,
            Asks::Batch => Exists::Index,
        },
        get_in_flight: in_flight,
        put_in_flight: in_flight,
        per_rank,
        block_tokens: block_tokens.unwrap_or(own),
        shape: RequestShape {
            client: client.name.clone(),
            key: client.key,
            dtype: dtype(model.kv_dtype).to_owned(),
            sizes_cached: client.exists == Asks::HeadCached,
            store: client.store,
            ranged_get: client.ranged_get,
            batch_blocks: client.batch_blocks,
            poll: client.poll.unwrap_or_default(),
        },
        ..spec
    })
}

/// A dtype as LMCache writes it into keys.
const fn dtype(dtype: Dtype) -> &'static str {
    match dtype {
        Dtype::Fp32 => "float",
        Dtype::Bf16 => "bfloat16",
        Dtype::Fp16 => "half",
        Dtype::Fp8 => "fp8_e4m3",
        Dtype::Int8 => "int8",
        _ => "uint8",
    }
}

/// Refuses blocks that the target does not take as one object.
pub(super) fn check_object(spec: &KvSpec, cost: &CostModel, target: &TargetPlan) -> anyhow::Result<()> {
    let per_token = if spec.per_rank { cost.kv_bytes_per_token_rank } else { cost.kv_bytes_per_token };
    let bytes = (per_token * f64::from(spec.block_tokens) * spec.bytes_scale).round() as u64;
    let (limit, who) = match target.transport() {
        "kv" => (gpufeed_wire::BLOCK_BYTES, "the KV block protocol takes"),
        "file" | "mem" => (u64::MAX, ""),
        _ => (S3_OBJECT_BYTES, "S3 takes in one PUT"),
    };
    if bytes <= limit || !spec.shared_tier {
        return Ok(());
    }
    let most = (limit as f64 / (per_token * spec.bytes_scale)) as u64;
    Err(usage(format!(
        "a block of {} tokens of {} is an object of {}, more than the {} that {who}: use --block-tokens {most} or less",
        spec.block_tokens,
        spec.model,
        Bytes(bytes),
        Bytes(limit),
    )))
}
