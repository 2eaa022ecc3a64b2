//! Defaults of KV-cache offload and RAG.

use std::collections::BTreeMap;
use std::time::Duration;

use gpufeed_profiles::units::{Bytes, parse_duration};
use gpufeed_profiles::{Engine, Gpu, Model, Overrides, Sources, source_of};
use gpufeed_workloads::inference::CostModel;
use gpufeed_workloads::kv::{KvSpec, LoadPolicy, Overlap, Routing};
use gpufeed_workloads::rag::{IndexPlan, QueryArrivals};
use gpufeed_workloads::trace::{Kind, Spread, Synth};

use super::{apply, bounded_by_work, fit, kv_client, own_settings, prefix, tiers, timed, topology};
use crate::args::{
    InferenceArgs, KvArgs, LoadPolicyArg, OverlapArg, RagArgs, RoutingArg, SharedArgs, TierArgs, TopologyArgs,
};
use crate::exit::{OrUsage, usage};
use crate::plan::{KvPlan, MemberPlan, RagPlan, RagSpec, SpecPlan, TargetPlan, TracePlan};

const DURATION: Duration = Duration::from_secs(60);
/// Length of each member of `run quick`.
const QUICK: Duration = Duration::from_secs(15);
/// KV blocks in GPU memory of each worker of `run quick`.
const QUICK_G1_BLOCKS: u64 = 32;
/// Reads a RAG run may have in flight.
const RAG_LANES: usize = 64;

/// Model, GPU and engine of a run, with what an iteration costs on them.
struct Served {
    model: Model,
    gpu: Gpu,
    engine: Engine,
    cost: CostModel,
}

impl Served {
    /// Where the figures behind the cost model come from.
    fn sources(&self) -> BTreeMap<String, String> {
        let of = |what: &str, sources: &Sources, keys: &[&str]| -> Vec<(String, String)> {
            let named = |key: &&str| Some((format!("{what} {key}"), source_of(sources, key)?.to_owned()));
            keys.iter().filter_map(named).collect()
        };
        let gpu =
            ["peak", "gemm_ratio", "attention_ratio", "weight_read_ratio", "kv_read_ratio", "host_link_bytes_per_s"];
        let engine = ["request_time", "step_time", "launch_time", "sequence_time", "elementwise_passes"];
        let mut all = of("gpu", &self.gpu.sources, &gpu);
        all.extend(of("engine", &self.engine.sources, &engine));
        all.extend(of("model", &self.model.sources, &["layers", "kv_heads"]));
        all.into_iter().collect()
    }
}

fn served(args: &InferenceArgs, set: &[&str]) -> anyhow::Result<Served> {
    let overrides = Overrides::parse(set).or_usage()?;
    let model = gpufeed_profiles::model(&args.model, &overrides).or_usage()?;
    let gpu = gpufeed_profiles::gpu(&args.gpu, &overrides).or_usage()?;
    let engine = gpufeed_profiles::engine("vllm", &overrides).or_usage()?;
    if args.tp == 0 || args.workers == 0 {
        return Err(usage("--tp and --workers must be at least 1"));
    }
    let cost = CostModel::from_profiles(&model, &gpu, &engine, args.tp, model.weight_dtype, model.kv_dtype);
    Ok(Served { model, gpu, engine, cost })
}

fn window(args: &InferenceArgs) -> anyhow::Result<Option<(f64, f64)>> {
    let Some(text) = &args.window else { return Ok(None) };
    let form = || usage(format!("--window {text} is not FROM..TO: write it like 0s..10m"));
    let (from, to) = text.split_once("..").ok_or_else(form)?;
    let at = |text: &str, default: Duration| match text.trim() {
        "" => Ok(default),
        text => parse_duration(text).map_err(|_| form()),
    };
    let (from, to) = (at(from, Duration::ZERO)?, at(to, Duration::MAX)?);
    if from >= to {
        return Err(usage(format!("--window {text} is empty: its end must be after its start")));
    }
    Ok(Some((from.as_secs_f64(), to.as_secs_f64().min(1e12))))
}

fn trace(args: &InferenceArgs, synth: Synth) -> anyhow::Result<TracePlan> {
    let window_s = window(args)?;
    Ok(match &args.trace {
        Some(path) => TracePlan::File { path: path.clone(), window_s },
        None if window_s.is_some() => return Err(usage("--window cuts a trace file: give --trace too")),
        None => TracePlan::Synth(synth),
    })
}

/// Conversations that keep `workers` about `load` busy if nothing were cached, by the cost model's own prefill time.
fn fitting(served: &Served, workers: u32, load: f64, length: Duration, seed: u64) -> Synth {
    let mut synth = Synth { seed, ..Synth::preset(Kind::MultiTurn) };
    let turns = synth.turns.mean();
    // Each turn's prompt carries the ones before it: on average half of the conversation.
    let added = synth.input_tokens.mean() + synth.output_tokens.mean();
    let prompt = synth.system_prompt_tokens.mean() + added * turns.max(1.0);
    let seconds = served.cost.prefill_ns(0, prompt as u64, served.engine.max_batched_tokens) / 1e9;
    let requests_per_s = load * f64::from(workers) / seconds;
    synth.sessions_per_s = requests_per_s / turns;
    synth.sessions = ((synth.sessions_per_s * length.as_secs_f64()).ceil() as u32).max(4);
    synth
}

/// `run kv`.
pub(super) fn kv(args: &KvArgs, target: &TargetPlan) -> anyhow::Result<MemberPlan> {
    let (own, others) = own_settings(&args.shared.set, "kv");
    let served = served(&args.inference, &others)?;
    let client = gpufeed_profiles::kv_client(&args.client, &Overrides::parse(&others).or_usage()?).or_usage()?;
    let length = args.shared.duration.unwrap_or(DURATION);
    let workers = topology::workers(&args.topology, &args.inference)?;
    let synth = fitting(&served, workers, 0.7, length, args.shared.seed);
    let trace = trace(&args.inference, synth)?;
    let spec = KvSpec {
        model: served.model.name.clone(),
        gpu: served.gpu.name.clone(),
        workers,
        routing: match args.routing {
            RoutingArg::RoundRobin => Routing::RoundRobin,
            RoutingArg::LeastLoaded => Routing::LeastLoaded,
            RoutingArg::KvAware => Routing::KvAware,
        },
        max_num_batched_tokens: served.engine.max_batched_tokens,
        max_num_seqs: u32::try_from(served.engine.max_sequences).unwrap_or(u32::MAX),
        gpu_memory_utilization: served.engine.hbm_utilization_ratio,
        g2_bytes: args.host_cache,
        load: match args.load_policy {
            LoadPolicyArg::Always => LoadPolicy::Always,
            LoadPolicyArg::Never => LoadPolicy::Never,
            LoadPolicyArg::BreakEven => LoadPolicy::BreakEven,
        },
        overlap: match args.overlap {
            OverlapArg::None => Overlap::None,
            OverlapArg::LayerWise => Overlap::LayerWise,
        },
        layers_per_read: args.layers_per_read,
        time_scale: args.inference.time_scale,
        rate_scale: args.inference.rate_scale,
        bytes_scale: args.scale_bytes.unwrap_or(1.0),
        slo_ttft: args.inference.slo_ttft.unwrap_or(KvSpec::default().slo_ttft),
        slo_tpot: args.inference.slo_tpot.unwrap_or(KvSpec::default().slo_tpot),
        prefix: prefix(target, "kv"),
        ..KvSpec::default()
    };
    let spec = topology::settle(&args.topology, &served.gpu, args.inference.tp, spec)?;
    let spec = tiers::settle(&args.tiers, &client, spec);
    let spec = kv_client::settle(&client, &served.model, &served.cost, args.block_tokens, spec)?;
    let spec = apply(spec, "kv", &own)?;
    spec.check().or_usage()?;
    fit::check(fit::Memory::of(&spec), &served.cost, &served.model, &served.gpu, &served.engine)?;
    check_bytes_scale(&spec, target)?;
    kv_client::check_object(&spec, &served.cost, target)?;
    let mut scaling = scaling(&spec);
    let sources = served.sources();
    let drive = tiers::drive(&args.tiers, &spec)?;
    let mut plan =
        KvPlan { baselines: !args.no_baselines, matrix: false, drive, spec, trace, cost: served.cost, sources };
    if let Some(load) = args.topology.load {
        scaling.push(topology::pace(load, &mut plan)?);
    }
    let mut member = bounded_by_work(&args.shared, "kv", SpecPlan::Kv(Box::new(plan)));
    member.scaling = scaling;
    Ok(member)
}

/// The members of `run kv`: one, or with `--matrix` one for each of two ways of routing.
pub(super) fn kv_members(args: &KvArgs, target: &TargetPlan) -> anyhow::Result<Vec<MemberPlan>> {
    let mut member = kv(args, target)?;
    if !args.topology.matrix {
        return Ok(vec![member]);
    }
    let other = topology::other_routing(&mut member)?;
    Ok(vec![member, other])
}

/// The KV member of `run quick`: small GPUs, which a laptop's loopback can keep up with, and short answers, so that many
/// requests fit into it.
pub(super) fn quick_kv(shared: &SharedArgs, target: &TargetPlan) -> anyhow::Result<MemberPlan> {
    let shared = SharedArgs { duration: Some(shared.duration.unwrap_or(QUICK)), ..shared.clone() };
    let args = KvArgs {
        shared: shared.clone(),
        inference: quick_inference(),
        client: "mooncake".to_owned(),
        host_cache: Bytes(3 << 29),
        load_policy: LoadPolicyArg::BreakEven,
        overlap: OverlapArg::None,
        layers_per_read: 1,
        routing: RoutingArg::LeastLoaded,
        no_baselines: false,
        block_tokens: None,
        scale_bytes: None,
        topology: TopologyArgs::default(),
        tiers: TierArgs::default(),
    };
    let mut member = kv(&args, target)?;
    if let SpecPlan::Kv(plan) = &mut member.spec {
        let synth = Synth {
            seed: shared.seed,
            sessions_per_s: 1.5,
            sessions: (1.5 * shared.duration.unwrap_or(QUICK).as_secs_f64()).ceil() as u32,
            turns: Spread::Geometric(5.0),
            system_prompt_tokens: Spread::Fixed(3072.0),
            input_tokens: Spread::LogNormal(500.0, 0.8),
            output_tokens: Spread::LogNormal(24.0, 0.6),
            think_time_s: Spread::Exponential(1.5),
            ..Synth::preset(Kind::MultiTurn)
        };
        plan.trace = TracePlan::Synth(synth);
        plan.spec.g1_blocks = Some(QUICK_G1_BLOCKS);
    }
    member.scaling.push(format!(
        "caches are small, {QUICK_G1_BLOCKS} blocks in GPU memory and 1.5 GiB of host memory for each worker, so that a short run reaches the target as a long one would"
    ));
    Ok(member)
}

fn quick_inference() -> InferenceArgs {
    InferenceArgs {
        model: "qwen2.5-7b".to_owned(),
        gpu: "l40s".to_owned(),
        tp: 1,
        workers: 2,
        rate_scale: 1.0,
        time_scale: 1.0,
        ..InferenceArgs::default()
    }
}

/// `run rag`.
pub(super) fn rag(args: &RagArgs, target: &TargetPlan) -> anyhow::Result<MemberPlan> {
    let (own, others) = own_settings(&args.shared.set, "rag");
    let served = served(&args.inference, &others)?;
    let trace = trace(&args.inference, Synth { seed: args.shared.seed, ..Synth::preset(Kind::Rag) })?;
    let arrivals = match (args.rate, &args.inference.trace) {
        (Some(rate_per_s), _) => QueryArrivals::Poisson { rate_per_s },
        (None, Some(_)) => QueryArrivals::Trace { speed: args.inference.rate_scale },
        (None, None) => QueryArrivals::Poisson { rate_per_s: 4.0 * f64::from(args.inference.workers) },
    };
    let lists = (args.vectors as f64).sqrt().round().clamp(1.0, 65_536.0) as u32;
    if args.nprobe == 0 || args.nprobe > lists {
        return Err(usage(format!("--nprobe {} cannot be read from an index of {lists} lists", args.nprobe)));
    }
    let spec = RagSpec {
        model: served.model.name.clone(),
        gpu: served.gpu.name.clone(),
        workers: args.inference.workers,
        arrivals,
        queries: None,
        index: IndexPlan {
            vectors: args.vectors,
            dims: args.dimensions,
            lists,
            nprobe: args.nprobe,
            ..IndexPlan::default()
        },
        bytes_per_token: 4.0,
        embed: Duration::from_millis(5),
        rerank: Duration::from_millis(2),
        lanes: RAG_LANES,
        max_num_batched_tokens: served.engine.max_batched_tokens,
        max_num_seqs: u32::try_from(served.engine.max_sequences).unwrap_or(u32::MAX),
        gpu_memory_utilization: served.engine.hbm_utilization_ratio,
        block_tokens: served.engine.block_tokens,
        time_scale: args.inference.time_scale,
        prefix: prefix(target, "rag"),
    };
    let spec = apply(spec, "rag", &own)?;
    let memory = fit::Memory {
        utilization_ratio: spec.gpu_memory_utilization,
        batched_tokens: spec.max_num_batched_tokens,
        block_tokens: spec.block_tokens,
    };
    fit::check(memory, &served.cost, &served.model, &served.gpu, &served.engine)?;
    let sources = served.sources();
    // Without a trace file, arrivals have a rate of their own.
    let rate_scale = if matches!(spec.arrivals, QueryArrivals::Trace { .. }) { args.inference.rate_scale } else { 1.0 };
    let scaled = [time_scaled(spec.time_scale), rate_scaled(rate_scale, "requests arrive")];
    let plan = SpecPlan::Rag(Box::new(RagPlan { spec, trace, cost: served.cost, sources }));
    let mut member = match (args.rate, &args.inference.trace) {
        (None, Some(_)) => bounded_by_work(&args.shared, "rag", plan),
        _ => timed(&args.shared, "rag", DURATION, plan),
    };
    member.warm_up = crate::plan::WarmUpPlan::Fixed(args.shared.warm_up.unwrap_or_default());
    member.scaling = scaled.into_iter().flatten().collect();
    Ok(member)
}

/// The RAG member of `run quick`.
pub(super) fn quick_rag(shared: &SharedArgs, target: &TargetPlan) -> anyhow::Result<MemberPlan> {
    let shared = SharedArgs { duration: Some(shared.duration.unwrap_or(QUICK)), ..shared.clone() };
    let args = RagArgs {
        shared: shared.clone(),
        inference: quick_inference(),
        rate: Some(5.0),
        nprobe: 8,
        vectors: 50_000,
        dimensions: 1024,
    };
    let mut member = rag(&args, target)?;
    if let SpecPlan::Rag(plan) = &mut member.spec {
        let output_tokens = Spread::LogNormal(24.0, 0.6);
        plan.trace = TracePlan::Synth(Synth { seed: shared.seed, output_tokens, ..Synth::preset(Kind::Rag) });
    }
    Ok(member)
}

/// What a run's spec scales, wherever it was said: by a flag or by `--set`.
fn scaling(spec: &KvSpec) -> Vec<String> {
    let mut words = Vec::new();
    words.extend(time_scaled(spec.time_scale));
    // Later turns of a closed loop wait for the ones before and their think times, whatever the rate.
    words.extend(rate_scaled(spec.rate_scale, if spec.sessions { "conversations begin" } else { "requests arrive" }));
    if spec.bytes_scale != 1.0 {
        let scale = spec.bytes_scale;
        words.push(format!("objects are {scale} of a block's size, so storage looks faster than it is"));
    }
    words
}

fn time_scaled(scale: f64) -> Option<String> {
    let words = format!(
        "time × {scale}: emulated GPUs are {scale} times slower and requests arrive {scale} times slower, bytes are real, \
         results are divided by {scale}; fixed latencies of the target therefore weigh {scale} times less than they would"
    );
    (scale != 1.0).then_some(words)
}

fn rate_scaled(scale: f64, what: &str) -> Option<String> {
    (scale != 1.0).then(|| format!("{what} {scale} times as fast as in the trace"))
}

/// Smaller objects flatter storage, so they are for targets whose speed is injected.
fn check_bytes_scale(spec: &KvSpec, target: &TargetPlan) -> anyhow::Result<()> {
    let shaped = matches!(target, TargetPlan::Embedded { shape, .. } if !shape.is_empty());
    if spec.bytes_scale != 1.0 && !shaped {
        return Err(usage(
            "--scale-bytes (kv.bytes_scale) makes storage look faster: it is for embedded targets with --shape only",
        ));
    }
    Ok(())
}
