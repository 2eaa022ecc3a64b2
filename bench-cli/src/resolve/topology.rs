//! How inference workers are laid out, when they die, and how fast requests come.

use gpufeed_profiles::Gpu;
use gpufeed_profiles::units::BytesPerSec;
use gpufeed_workloads::kv::{KvSpec, Outage, Routing, Topology, capacity_per_s};

use crate::args::{InferenceArgs, TopologyArg, TopologyArgs};
use crate::exit::{OrUsage, usage};
use crate::plan::{KvPlan, MemberPlan, SpecPlan};
use crate::run::member::requests;

/// Workers in all.
///
/// # Errors
/// When the pools do not add up.
pub(super) fn workers(args: &TopologyArgs, inference: &InferenceArgs) -> anyhow::Result<u32> {
    let pools = (args.topology, args.prefill_workers, args.decode_workers);
    match pools {
        (TopologyArg::Aggregated, None, None) => Ok(inference.workers),
        (TopologyArg::Aggregated, ..) => {
            Err(usage("--prefill-workers and --decode-workers split the workers: give --topology disaggregated too"))
        }
        (TopologyArg::Disaggregated, Some(prefill), Some(decode)) if prefill > 0 && decode > 0 => {
            let all = prefill.saturating_add(decode);
            if inference.workers != 1 && inference.workers != all {
                let given = inference.workers;
                return Err(usage(format!(
                    "--workers {given} is not the {prefill} + {decode} that prefill and decode: leave it out"
                )));
            }
            Ok(all)
        }
        (TopologyArg::Disaggregated, ..) => {
            Err(usage("--topology disaggregated needs --prefill-workers and --decode-workers, each at least 1"))
        }
    }
}

/// What the flags say of a run on `gpu` with `tp` of them for each worker, of which there are `spec.workers`.
///
/// # Errors
/// When a worker does not exist, or comes back without having died.
pub(super) fn settle(args: &TopologyArgs, gpu: &Gpu, tp: u32, spec: KvSpec) -> anyhow::Result<KvSpec> {
    let workers = spec.workers;
    for (flag, at) in
        args.kill_worker.iter().map(|at| ("--kill-worker", at)).chain(args.restart.iter().map(|at| ("--restart", at)))
    {
        if at.worker >= workers {
            return Err(usage(format!(
                "{flag} {}@{:?}: there is no such worker, they count from 0 to {}",
                at.worker,
                at.at,
                workers - 1
            )));
        }
    }
    let mut outages: Vec<Outage> =
        args.kill_worker.iter().map(|kill| Outage { worker: kill.worker, at: kill.at, back: None }).collect();
    for restart in &args.restart {
        let died = |outage: &&mut Outage| outage.worker == restart.worker && outage.at < restart.at;
        let last = outages.iter_mut().filter(died).max_by_key(|outage| outage.at);
        match last {
            Some(outage) if outage.back.is_none() => outage.back = Some(restart.at),
            _ => {
                return Err(usage(format!(
                    "--restart {}@{:?}: that worker does not die before; give --kill-worker with an earlier time",
                    restart.worker, restart.at
                )));
            }
        }
    }
    Ok(KvSpec {
        topology: match args.topology {
            TopologyArg::Aggregated => Topology::Aggregated,
            TopologyArg::Disaggregated => Topology::Disaggregated,
        },
        prefill_workers: args.prefill_workers.unwrap_or(0),
        transfer_bytes_per_s: BytesPerSec(gpu.nic_bytes_per_s.0 * f64::from(tp)),
        outages,
        sessions: args.sessions,
        max_num_batched_tokens: args.max_num_batched_tokens.unwrap_or(spec.max_num_batched_tokens),
        max_num_seqs: args.max_num_seqs.unwrap_or(spec.max_num_seqs),
        gpu_memory_utilization: args.gpu_memory_utilization.unwrap_or(spec.gpu_memory_utilization),
        g1_blocks: args.num_gpu_blocks_override.or(spec.g1_blocks),
        ..spec
    })
}

/// Sets arrivals so that they are `load` of what the workers can do without a tier; says how in words.
///
/// # Errors
/// When the load makes no sense or the trace cannot be read.
pub(super) fn pace(load: f64, plan: &mut KvPlan) -> anyhow::Result<String> {
    if !(load.is_finite() && load > 0.0) {
        return Err(usage(format!("--load {load} is no share of the capacity: give one above 0, such as 0.8")));
    }
    if plan.spec.sessions {
        return Err(usage(
            "--load sets when requests arrive, --sessions lets that depend on answers: give one of them",
        ));
    }
    if plan.spec.rate_scale != 1.0 {
        return Err(usage("--load and --rate-scale both set how fast requests arrive: give one of them"));
    }
    let requests = requests(plan)?;
    let offered_per_s = requests.list().len() as f64 / (requests.span_ns() as f64 / 1e9);
    if !offered_per_s.is_finite() {
        return Err(usage("--load needs requests that arrive at different times: the trace has them all at once"));
    }
    let capacity = capacity_per_s(&plan.spec, &plan.cost, &requests).or_usage()?;
    plan.spec.rate_scale = load * capacity / offered_per_s;
    plan.spec.check().or_usage()?;
    Ok(format!(
        "load {load}: without a cache outside GPU memory the workers do {capacity:.4} requests/s (virtual time, never \
         without work), the trace has {offered_per_s:.4}/s; arrivals are {:.4} times as fast",
        plan.spec.rate_scale
    ))
}

/// The member that measures the same with the other routing, for the table of routing × shared tier.
///
/// # Errors
/// Without baselines, which are the half of it that does not use the target.
pub(super) fn other_routing(member: &mut MemberPlan) -> anyhow::Result<MemberPlan> {
    let mut other = member.clone();
    if let (SpecPlan::Kv(plan), SpecPlan::Kv(other_plan)) = (&mut member.spec, &mut other.spec) {
        if !plan.baselines {
            return Err(usage("--matrix takes half of its table from the baselines: leave --no-baselines out"));
        }
        plan.matrix = true;
        other_plan.matrix = true;
        other_plan.spec.routing = match plan.spec.routing {
            Routing::RoundRobin => Routing::KvAware,
            Routing::LeastLoaded | Routing::KvAware => Routing::RoundRobin,
        };
        let name = other_plan.spec.routing.name();
        other.name = format!("{}-{name}", member.name);
        other_plan.spec.prefix = format!("{}{name}/", plan.spec.prefix);
    }
    Ok(other)
}
