//! What storage N GPUs need: demand, the least that will do, nodes, curves and dollars, all in virtual time.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, ValueHint};
use gpufeed_profiles::units::{Bytes, BytesPerSec, three_digits};
use gpufeed_profiles::{Overrides, StorageCosts, costs, source_of};
use gpufeed_schema::{
    CAPACITY_VERSION, CapacityPlan, Demand, GridPoint, Nodes, Prices, Required, StorageLine, TierCapacity, Tool,
    WorkingSetCurve, WorkingSetPoint,
};
use gpufeed_workloads::kv::{WorkingSet, headline, useful_ratio};
use gpufeed_workloads::storage::{Instant, Storage};

use super::case::{Case, Crew, Played, Tiers};
use super::demand;
use super::require::least;
use super::storage::{Figures, Given};
use super::text;
use crate::args::{PlanArgs, PlanFormat};
use crate::exit::{Exit, usage};
use crate::output;
use crate::progress::Show;

/// The share of ideal storage's goodput that defines what is required.
const ENOUGH: f64 = 0.95;
/// The share of an infinite cache's hits that defines the capacity of the shared tier.
const CAPACITY_SHARE: f64 = 0.99;
/// Arrival rates at which the most requests inside the SLO are looked for, as multiples of the trace's.
const RATES: [f64; 7] = [0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0];

/// Flags of `gpufeed plan` itself, and of its sweeps.
#[derive(Debug, Clone, Default, Args)]
pub struct CapacityArgs {
    /// Trace of requests: a file, or `synth` for conversations that keep the workers busy [default: synth]
    #[arg(long, value_name = "FILE", value_hint = ValueHint::AnyPath, help_heading = "Plan")]
    pub trace: Option<String>,
    /// Part of the trace: from..to since its start, e.g. 0s..10m
    #[arg(long, value_name = "FROM..TO", help_heading = "Plan")]
    pub window: Option<String>,
    /// Model served: a built-in name, a TOML file or a Hugging Face config.json [default: llama-3.1-8b]
    #[arg(long, help_heading = "Plan")]
    pub model: Option<String>,
    /// GPU it is served on [default: h100-sxm]
    #[arg(long, help_heading = "Plan")]
    pub gpu: Option<String>,
    /// GPUs of each worker (tensor parallel) [default: 1]
    #[arg(long, help_heading = "Plan")]
    pub tp: Option<u32>,
    /// Workers [default: 1]
    #[arg(long, help_heading = "Plan")]
    pub workers: Option<u32>,
    /// Inference engine: a built-in name or a TOML file [default: vllm]
    #[arg(long, help_heading = "Plan")]
    pub engine: Option<String>,
    /// Objective: time to first token [default: 2s]
    #[arg(long, value_name = "TIME", help_heading = "Plan")]
    pub slo_ttft: Option<String>,
    /// Objective: time per output token [default: 100ms]
    #[arg(long, value_name = "TIME", help_heading = "Plan")]
    pub slo_tpot: Option<String>,
    /// Storage to plan with: a shape such as 'get:latency=lognormal(2ms,0.5),bandwidth=20GB/s', or report:DIR for a
    /// target as an earlier run measured it
    #[arg(long, value_name = "SHAPE", help_heading = "Storage")]
    pub storage: Option<String>,
    /// Operations that storage serves at a time, in everything but ideal storage [default: as many as come]
    #[arg(long, value_name = "N", help_heading = "Storage")]
    pub storage_concurrency: Option<usize>,
    /// Reads of one storage node
    #[arg(long, value_name = "RATE", requires = "node_write_bytes_per_s", help_heading = "Storage")]
    pub node_read_bytes_per_s: Option<BytesPerSec>,
    /// Writes of one storage node
    #[arg(long, value_name = "RATE", requires = "node_read_bytes_per_s", help_heading = "Storage")]
    pub node_write_bytes_per_s: Option<BytesPerSec>,
    /// First byte of a storage node: a time, or a distribution such as lognormal(2ms,0.5)
    #[arg(long, value_name = "TIME", requires = "node_read_bytes_per_s", help_heading = "Storage")]
    pub node_latency: Option<String>,
    /// Capacity of a storage node
    #[arg(long, value_name = "SIZE", requires = "node_read_bytes_per_s", help_heading = "Storage")]
    pub node_capacity: Option<Bytes>,
    /// Price of a GPU for an hour [default: profiles/data/costs.toml]
    #[arg(long, value_name = "DOLLARS", help_heading = "Prices")]
    pub gpu_dollars_per_hour: Option<f64>,
    /// Price of a decimal terabyte of shared storage for a month [default: profiles/data/costs.toml]
    #[arg(long, value_name = "DOLLARS", help_heading = "Prices")]
    pub storage_dollars_per_tb_month: Option<f64>,
    /// Bandwidths and latencies of the curves, each; 0 for no curves [default: 7]
    #[arg(long, value_name = "N", help_heading = "Plan")]
    pub grid: Option<usize>,
    /// Override a figure: `gpu.weight_read_ratio=0.8`, `kv.g2_bytes=64GiB`; repeatable
    #[arg(long, value_name = "SECTION.KEY=VALUE", help_heading = "Plan")]
    pub set: Vec<String>,
    /// Directory for plan.json and plan.html, made if it is not there
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath, help_heading = "Output")]
    pub out: Option<PathBuf>,
    /// No progress, errors only
    #[arg(long, short, help_heading = "Output")]
    pub quiet: bool,
    /// More flags of `gpufeed run kv`, after --: `-- --host-cache 64GiB --routing round-robin`
    #[arg(last = true, value_name = "FLAGS OF run kv", help_heading = "Plan")]
    pub run_kv: Vec<OsString>,
}

impl CapacityArgs {
    /// What is played.
    ///
    /// # Errors
    /// When a flag makes no sense.
    pub(super) fn case(&self) -> anyhow::Result<Case> {
        let mut flags: Vec<OsString> = Vec::new();
        let mut flag = |name: &str, value: Option<String>| {
            if let Some(value) = value {
                flags.extend([OsString::from(name), OsString::from(value)]);
            }
        };
        flag("--trace", self.trace.clone().filter(|trace| trace != "synth"));
        flag("--window", self.window.clone());
        flag("--model", self.model.clone());
        flag("--gpu", self.gpu.clone());
        flag("--tp", self.tp.map(|tp| tp.to_string()));
        flag("--workers", self.workers.map(|workers| workers.to_string()));
        flag("--slo-ttft", self.slo_ttft.clone());
        flag("--slo-tpot", self.slo_tpot.clone());
        for set in &self.set {
            flag("--set", Some(set.clone()));
        }
        flags.extend(self.run_kv.iter().cloned());
        Case::resolve(flags, self.engine.as_deref())
    }

    /// Refuses flags that only the plan itself reads.
    ///
    /// # Errors
    /// When one of them was given.
    pub(super) fn check_sweep(&self) -> anyhow::Result<()> {
        self.check()?;
        let only_of_plans = [
            ("--grid", self.grid.is_some()),
            ("--node-read-bytes-per-s", self.node_read_bytes_per_s.is_some()),
            ("--gpu-dollars-per-hour", self.gpu_dollars_per_hour.is_some()),
            ("--storage-dollars-per-tb-month", self.storage_dollars_per_tb_month.is_some()),
        ];
        if let Some((flag, _)) = only_of_plans.into_iter().find(|(_, given)| *given) {
            return Err(usage(format!("{flag} does nothing to a sweep: leave it out, or plan without `sweep`")));
        }
        if self.storage_concurrency.is_some() && self.storage.is_none() {
            return Err(usage(
                "--storage-concurrency needs a --storage in a sweep: ideal storage answers at once, however many come",
            ));
        }
        Ok(())
    }

    /// Dollars of a GPU for an hour, of storage, and where they come from.
    fn prices(&self, gpu: &str) -> (Option<f64>, StorageCosts, String) {
        let built_in = costs();
        let overrides = Overrides::default();
        let name = gpufeed_profiles::gpu(gpu, &overrides).map_or_else(|_| gpu.to_owned(), |gpu| gpu.name);
        let dollars = self.gpu_dollars_per_hour.or_else(|| built_in.gpu_dollars_per_hour.get(&name).copied());
        let month = self.storage_dollars_per_tb_month.unwrap_or(built_in.storage.dollars_per_tb_month);
        let given = |given: bool, key: &str| match given {
            true => "as given".to_owned(),
            false => source_of(&built_in.sources, key).unwrap_or("estimate").to_owned(),
        };
        let source = format!(
            "GPU: {}; storage: {}",
            given(self.gpu_dollars_per_hour.is_some(), "gpu_dollars_per_hour"),
            given(self.storage_dollars_per_tb_month.is_some(), "storage.dollars_per_tb_month")
        );
        (dollars, StorageCosts { dollars_per_tb_month: month }, source)
    }

    /// Refuses what makes no sense, and makes the directory before anything is played.
    ///
    /// # Errors
    /// One sentence for each.
    pub(super) fn check(&self) -> anyhow::Result<()> {
        let positive = [
            ("--node-read-bytes-per-s", self.node_read_bytes_per_s.map(|rate| rate.0)),
            ("--node-write-bytes-per-s", self.node_write_bytes_per_s.map(|rate| rate.0)),
            ("--node-capacity", self.node_capacity.map(|bytes| bytes.0 as f64)),
            ("--storage-concurrency", self.storage_concurrency.map(|n| n as f64)),
            ("--gpu-dollars-per-hour", self.gpu_dollars_per_hour),
            ("--storage-dollars-per-tb-month", self.storage_dollars_per_tb_month),
        ];
        for (flag, value) in positive {
            if value.is_some_and(|value| !(value.is_finite() && value > 0.0)) {
                return Err(usage(format!("{flag} must be more than zero")));
            }
        }
        if self.grid.is_some_and(|grid| grid == 1 || grid > 64) {
            return Err(usage("--grid must be 0, or from 2 to 64 steps"));
        }
        if let Some(dir) = &self.out {
            std::fs::create_dir_all(dir)
                .map_err(|error| usage(format!("cannot make the directory --out {}: {error}", dir.display())))?;
        }
        Ok(())
    }
}

/// Plans, and prints the plan.
///
/// # Errors
/// When a flag makes no sense, or an output cannot be written.
pub(crate) fn run(args: &PlanArgs) -> anyhow::Result<Exit> {
    let flags = &args.capacity;
    let show = Show::fitting(flags.quiet || args.format == PlanFormat::Json);
    let plan = plan(flags, show)?;
    if let Some(dir) = &flags.out {
        super::write(dir, "plan", &plan, |page| gpufeed_reports::html::capacity::render(&plan, page), None)?;
    }
    match args.format {
        PlanFormat::Text => output::result(&text::plan(&plan))?,
        PlanFormat::Json => output::result(&(serde_json::to_string_pretty(&plan)? + "\n"))?,
        PlanFormat::Html => {
            let mut page = Vec::new();
            gpufeed_reports::html::capacity::render(&plan, &mut page)?;
            output::result(&String::from_utf8(page)?)?;
        }
    }
    Ok(Exit::Passed)
}

/// A kind of storage to hold the others against.
struct Line {
    name: &'static str,
    tiers: Tiers,
    storage: Source,
}

enum Source {
    Instant,
    Given(Given, Option<usize>),
    Figures(Figures, Option<usize>),
}

impl Source {
    fn storage(&self, seed: u64) -> anyhow::Result<Box<dyn Storage>> {
        Ok(match self {
            Self::Instant => Box::new(Instant),
            Self::Given(given, concurrency) => given.storage(*concurrency, seed),
            Self::Figures(figures, concurrency) => Box::new(figures.storage(*concurrency, seed)?),
        })
    }
}

/// The plan itself.
///
/// # Errors
/// When a flag makes no sense.
pub(super) fn plan(args: &CapacityArgs, show: Show) -> anyhow::Result<CapacityPlan> {
    args.check()?;
    let case = args.case()?;
    let at_a_time = args.storage_concurrency;
    let given = args.storage.as_ref().map(|text| Given::parse(text, at_a_time, case.seed)).transpose()?;
    let node_figures = args.node_read_bytes_per_s.zip(args.node_write_bytes_per_s);
    let node_latency = args.node_latency.clone();
    Figures { latency: node_latency.clone(), ..Figures::NONE }.shape()?;
    let crew = Crew::new(show);
    let run = |tiers, storage: Source| case.play(tiers, storage.storage(case.seed)?);

    let ideal = crew.each(&[()], |()| run(Tiers::Ideal, Source::Instant))?.remove(0);
    let grid_steps = args.grid.unwrap_or(7);
    let lines = 3 + usize::from(given.is_some()) + usize::from(node_figures.is_some());
    crew.expect(40 + lines * (RATES.len() + 2) + grid_steps * grid_steps);
    let local = crew.each(&[()], |()| run(Tiers::Local, Source::Instant))?.remove(0);

    let demand = Demand {
        read: demand::rate(&ideal.moved.read, ideal.end_s),
        write: demand::rate(&ideal.moved.written, ideal.end_s),
    };
    let search = Search { case: &case, crew: &crew, ideal: &ideal, at_a_time };
    let required = search.required(&local, &demand)?;
    let working_set = working_set(&case);
    let nodes = match node_figures {
        None => None,
        Some((read, write)) => {
            let node = Figures {
                read_bytes_per_s: Some(read.0),
                write_bytes_per_s: Some(write.0),
                latency: node_latency.clone(),
            };
            Some(search.nodes(&required, &working_set, &node, args.node_capacity)?)
        }
    };

    let mut kinds = vec![
        Line { name: "no_cache", tiers: Tiers::No, storage: Source::Instant },
        Line { name: "local", tiers: Tiers::Local, storage: Source::Instant },
        Line { name: "ideal_storage", tiers: Tiers::Ideal, storage: Source::Instant },
    ];
    if let Some(given) = given {
        let storage = Source::Given(given, at_a_time);
        kinds.push(Line { name: "given", tiers: Tiers::Shared, storage });
    }
    if let (Some(nodes), Some((read, write))) = (&nodes, node_figures) {
        let many = |rate: BytesPerSec| Some(rate.0 * nodes.count as f64);
        let figures = Figures { read_bytes_per_s: many(read), write_bytes_per_s: many(write), latency: node_latency };
        kinds.push(Line { name: "nodes", tiers: Tiers::Shared, storage: Source::Figures(figures, at_a_time) });
    }
    let (gpu_dollars, storage_costs, source) = args.prices(&case.spec.gpu);
    let capacity = nodes.as_ref().zip(args.node_capacity).map(|(nodes, node)| nodes.count * node.0);
    let prices = Prices {
        gpu_dollars_per_hour: gpu_dollars,
        storage_dollars_per_tb_month: storage_costs.dollars_per_tb_month,
        storage_bytes: capacity.unwrap_or(working_set.shared_tier_bytes),
        source,
    };
    let storages = kinds
        .iter()
        .map(|line| storage_line(&case, &crew, line, &ideal, &prices))
        .collect::<anyhow::Result<Vec<_>>>()?;
    let grid = search.grid(&demand, &required, grid_steps)?;

    Ok(CapacityPlan {
        schema_version: CAPACITY_VERSION.to_owned(),
        tool: tool(),
        model: case.spec.model.clone(),
        gpu: case.spec.gpu.clone(),
        tp: case.cost.tp,
        workers: case.spec.workers,
        trace: case.trace.clone(),
        requests: case.requests.list().len() as u64,
        duration_s: case.requests.span_ns() as f64 / 1e9,
        slo: ideal.section.slo,
        demand,
        notes: notes(&required, &ideal, nodes.as_ref(), at_a_time),
        required,
        storages,
        working_set,
        nodes,
        grid,
        prices,
        virtual_runs: crew.done() as u64,
        elapsed_s: crew.elapsed().as_secs_f64(),
        definitions: definitions(),
        inputs: ideal.section.inputs.clone(),
    })
}

/// What wrote a plan.
pub(super) fn tool() -> Tool {
    Tool {
        name: "gpufeed".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        commit: env!("GPUFEED_COMMIT").to_owned(),
    }
}

/// What the searches of a plan have in common.
struct Search<'a> {
    case: &'a Case,
    crew: &'a Crew,
    ideal: &'a Played,
    /// Operations that storage serves at a time.
    at_a_time: Option<usize>,
}

impl Search<'_> {
    fn on(&self, figures: &Figures) -> anyhow::Result<Played> {
        self.case.play(Tiers::Shared, figures.storage(self.at_a_time, self.case.seed)?)
    }

    /// The least bandwidth and the most latency, each with the others no limit, then all at once.
    fn required(&self, local: &Played, demand: &Demand) -> anyhow::Result<Required> {
        let goal = ENOUGH * self.ideal.good();
        let mut required = Required { goodput_ratio: ENOUGH, ..Required::default() };
        // Nothing brings any inside.
        if goal == 0.0 {
            return Ok(required);
        }
        if local.good() >= goal {
            required.local_is_enough = true;
            (required.read_bytes_per_s, required.write_bytes_per_s) = (Some(0.0), Some(0.0));
            return Ok(required);
        }
        let good = |figures: &Figures| -> anyhow::Result<f64> { Ok(self.on(figures)?.good()) };
        let rate = |demand: &gpufeed_schema::DemandRate, figures: fn(f64) -> Figures| {
            let start = demand.max_window_bytes_per_s.max(1e6);
            least(self.crew, 1e3, start, |rate| Ok(good(&figures(rate))? >= goal))
        };
        required.read_bytes_per_s =
            rate(&demand.read, |rate| Figures { read_bytes_per_s: Some(rate), ..Figures::NONE })?;
        required.write_bytes_per_s =
            rate(&demand.write, |rate| Figures { write_bytes_per_s: Some(rate), ..Figures::NONE })?;
        // The most latency that will do is the least of its inverse; 100 s is as good as never, 1 µs as at once.
        let per_s = least(self.crew, 0.01, 100.0, |per_s| {
            Ok(good(&Figures { latency: Figures::latency_ns(1e9 / per_s), ..Figures::NONE })? >= goal)
        })?;
        required.first_byte_p99_ns = per_s.filter(|per_s| *per_s > 0.0).map(|per_s| (1e9 / per_s) as u64);
        if let (Some(read), Some(write)) = (required.read_bytes_per_s, required.write_bytes_per_s) {
            let some = |rate: f64| (rate > 0.0).then_some(rate);
            let latency = required.first_byte_p99_ns.and_then(|ns| Figures::latency_ns(ns as f64 / 2.0));
            let all = Figures { read_bytes_per_s: some(read), write_bytes_per_s: some(write), latency };
            let together = self.crew.each(&[all], good)?[0];
            required.together_goodput_ratio = (self.ideal.good() > 0.0).then(|| together / self.ideal.good());
        }
        Ok(required)
    }

    /// How many nodes meet every requirement, and what so many reach.
    fn nodes(
        &self,
        required: &Required,
        working_set: &WorkingSetCurve,
        node: &Figures,
        capacity: Option<Bytes>,
    ) -> anyhow::Result<Nodes> {
        let mut found = count_nodes(required, working_set.shared_tier_bytes, node, capacity.map(|bytes| bytes.0));
        let many = |rate: Option<f64>| rate.map(|rate| rate * found.count as f64);
        let figures = Figures {
            read_bytes_per_s: many(node.read_bytes_per_s),
            write_bytes_per_s: many(node.write_bytes_per_s),
            latency: node.latency.clone(),
        };
        if node.latency.is_some() {
            found.latency_p99_ns = Some(demand::first_byte_p99_ns(&node.shape()?, self.case.seed));
            found.latency_is_enough =
                found.latency_p99_ns.map(|p99| required.first_byte_p99_ns.is_none_or(|most| p99 <= most));
        }
        let reached = self.crew.each(&[figures], |figures| self.on(figures))?[0].good();
        found.goodput_ratio = if self.ideal.good() > 0.0 { reached / self.ideal.good() } else { 0.0 };
        Ok(found)
    }

    /// Figures over bandwidth and latency, around what is required.
    fn grid(&self, demand: &Demand, required: &Required, steps: usize) -> anyhow::Result<Vec<GridPoint>> {
        let known = |rate: Option<f64>, demand: f64| rate.filter(|rate| *rate > 0.0).unwrap_or(demand.max(1e6));
        let read = known(required.read_bytes_per_s, demand.read.max_window_bytes_per_s);
        let write = known(required.write_bytes_per_s, demand.write.max_window_bytes_per_s);
        let latency = required.first_byte_p99_ns.map_or(1e9, |ns| ns as f64);
        let middle = (steps / 2) as i32;
        let mut points = Vec::new();
        for i in 0..steps as i32 {
            for j in 0..steps as i32 {
                let times = 2f64.powi(i - middle);
                points.push((read * times, write * times, latency * 4f64.powi(j + 1 - steps as i32)));
            }
        }
        self.crew.each(&points, |&(read, write, latency)| {
            let figures = Figures {
                read_bytes_per_s: Some(read),
                write_bytes_per_s: Some(write),
                latency: Figures::latency_ns(latency),
            };
            let section = self.on(&figures)?.section;
            Ok(GridPoint {
                read_bytes_per_s: read,
                write_bytes_per_s: write,
                latency_ns: latency.round() as u64,
                output_tokens_per_s: section.output_tokens_per_s,
                useful_ratio: useful_ratio(&section, &self.ideal.section),
                goodput_per_s: section.goodput_per_s,
                ttft_p50_ns: section.ttft.summary.p50_ns,
            })
        })
    }
}

fn working_set(case: &Case) -> WorkingSetCurve {
    let (set, block_bytes) = (WorkingSet::of(&case.requests), case.block_bytes());
    let shares = [0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 1.0];
    let points = shares.map(|share_ratio| {
        let blocks = set.blocks_for(share_ratio);
        WorkingSetPoint { share_ratio, hit_ratio: set.hit_ratio(blocks), bytes: blocks * block_bytes }
    });
    let workers = u64::from(case.spec.workers);
    let tier = |tier: &str, blocks: u64| TierCapacity {
        tier: tier.to_owned(),
        bytes: workers * blocks * block_bytes,
        hit_ratio: set.hit_ratio(workers * blocks),
    };
    WorkingSetCurve {
        block_bytes,
        prompt_blocks: set.prompt_blocks,
        unique_blocks: set.unique_blocks,
        most_hit_ratio: set.most_hit_ratio(),
        points: points.to_vec(),
        tiers: vec![tier("g1", case.g1_blocks()), tier("g2", case.spec.g2_bytes.0 / block_bytes.max(1))],
        shared_tier_bytes: set.blocks_for(CAPACITY_SHARE) * block_bytes,
    }
}

fn count_nodes(required: &Required, shared_tier_bytes: u64, node: &Figures, capacity: Option<u64>) -> Nodes {
    let ceil = |needed: Option<f64>, each: Option<f64>| match (needed, each) {
        (Some(needed), Some(each)) => (needed / each).ceil() as u64,
        _ => 0,
    };
    let for_read = ceil(required.read_bytes_per_s, node.read_bytes_per_s);
    let for_write = ceil(required.write_bytes_per_s, node.write_bytes_per_s);
    let for_capacity = capacity.map(|bytes| shared_tier_bytes.div_ceil(bytes));
    let each = [("read", for_read), ("write", for_write), ("capacity", for_capacity.unwrap_or(0))];
    let (limited_by, count) =
        each.into_iter().filter(|(_, count)| *count > 1).max_by_key(|(_, count)| *count).unwrap_or(("one", 1));
    Nodes { count, limited_by: limited_by.to_owned(), for_read, for_write, for_capacity, ..Nodes::default() }
}

/// The trace on one storage, at its own rate and at the rate that gives most requests inside the SLO.
fn storage_line(case: &Case, crew: &Crew, line: &Line, ideal: &Played, prices: &Prices) -> anyhow::Result<StorageLine> {
    let at = |rate: &f64| case.faster(*rate).play(line.tiers, line.storage.storage(case.seed)?);
    let mut played = crew.each(&RATES, at)?;
    let goodput = |played: &Played| played.section.goodput_per_s;
    let best =
        |all: &[Played]| (0..all.len()).max_by(|a, b| goodput(&all[*a]).total_cmp(&goodput(&all[*b]))).unwrap_or(0);
    let peak = RATES[best(&played)];
    let own = RATES.iter().position(|rate| *rate == 1.0).unwrap_or(0);
    let (mut figures, slo_ratio) = (headline(&played[own].section), played[own].slo_ratio());
    figures.gpu.useful_ratio = useful_ratio(&played[own].section, &ideal.section);
    let own_tokens = played[own].section.output_tokens_per_s;
    played.extend(crew.each(&[peak / std::f64::consts::SQRT_2, peak * std::f64::consts::SQRT_2], at)?);
    let most = &played[best(&played)].section;
    let shared = matches!(line.tiers, Tiers::Shared | Tiers::Ideal);
    let dollars = |tokens_per_s: f64| dollars_per_million(case.gpus(), prices, shared, tokens_per_s);
    Ok(StorageLine {
        name: line.name.to_owned(),
        slo_ratio,
        most_requests_per_s: (most.goodput_per_s > 0.0).then_some(most.goodput_per_s),
        most_output_tokens_per_s: (most.goodput_per_s > 0.0).then_some(most.output_tokens_per_s),
        dollars_per_million_output_tokens: dollars(own_tokens),
        dollars_per_million_output_tokens_at_most: (most.goodput_per_s > 0.0)
            .then(|| dollars(most.output_tokens_per_s))
            .flatten(),
        figures,
    })
}

/// (GPUs · $/GPU-hour + capacity · $/TB-month ÷ hours of a month) ÷ (tokens/s · 3600) · 10⁶; shared storage only where
/// there is some.
fn dollars_per_million(gpus: f64, prices: &Prices, shared: bool, tokens_per_s: f64) -> Option<f64> {
    let storage = StorageCosts { dollars_per_tb_month: prices.storage_dollars_per_tb_month };
    let storage = if shared { storage.dollars_per_hour(prices.storage_bytes as f64) } else { 0.0 };
    let per_hour = gpus * prices.gpu_dollars_per_hour? + storage;
    (tokens_per_s > 0.0).then(|| per_hour / (tokens_per_s * 3600.0) * 1e6)
}

fn definitions() -> BTreeMap<String, String> {
    let share = format!("{:.0}%", ENOUGH * 100.0);
    [
        ("demand", "payload asked of ideal storage (infinite, instant; host links and GPU memory as they are), in windows of 1 s from the start to the end of the run".to_owned()),
        ("required bandwidth", format!("least rate of one direction at which at least {share} of the requests that ideal storage serves inside the SLO still are; the other direction and latency are no limit; found by bisection over virtual runs to 0.4%")),
        ("required latency", format!("most time to the first byte of every operation, always the same, at which {share} still are; bandwidth is no limit")),
        ("together", "all three limits at once, with half of that latency: below the share, plan for more of each".to_owned()),
        ("capacity of the shared tier", format!("least LRU cache with {:.0}% of the prefix hits of an infinite one, by stack distances; requests one at a time in order of arrival", CAPACITY_SHARE * 100.0)),
        ("most requests/s inside the SLO", "greatest goodput over arrival rates of 1/4 to 16 times the trace's, in steps of 2, and of √2 around the best".to_owned()),
        ("rates", "of the time until the last request and the last write are over: a trace of a minute on storage that writes slowly shows that tail, and less of everything a second; the share inside the SLO does not".to_owned()),
        ("useful", "busy seconds that ideal storage needs for the same work ÷ (worker-seconds − no work)".to_owned()),
        ("dollars", "(GPUs · $/GPU-hour + capacity · $/TB-month ÷ 730.5 h) ÷ output tokens; no storage in lines without a shared tier".to_owned()),
    ]
    .into_iter()
    .map(|(name, words)| (name.to_owned(), words))
    .collect()
}

fn notes(required: &Required, ideal: &Played, nodes: Option<&Nodes>, at_a_time: Option<usize>) -> Vec<String> {
    let mut notes = vec![
        "everything here is estimated in virtual time: nothing was measured but what --storage report: brings"
            .to_owned(),
    ];
    if ideal.good() == 0.0 {
        notes.push("no request meets the SLO even on ideal storage: give more workers, a faster GPU or looser objectives, or fewer requests".to_owned());
    }
    if required.local_is_enough {
        notes.push(format!(
            "local tiers alone serve as many requests inside the SLO as ideal storage does ({}% of all that come): nothing is required of shared storage at this load",
            three_digits(ideal.slo_ratio() * 100.0)
        ));
    }
    notes.extend(at_a_time.map(|n| format!("storage serves {n} operations at a time wherever it is not ideal")));
    if required.together_goodput_ratio.is_some_and(|ratio| ratio < required.goodput_ratio) {
        notes.push("limits that each will do alone do not all at once: plan for more of each".to_owned());
    }
    if nodes.is_some_and(|nodes| nodes.latency_is_enough == Some(false)) {
        notes.push("a node's latency is more than is allowed, and more nodes do not shorten it".to_owned());
    }
    notes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn required(read: f64, write: f64) -> Required {
        Required { read_bytes_per_s: Some(read), write_bytes_per_s: Some(write), ..Required::default() }
    }

    #[test]
    fn nodes_meet_the_hardest_requirement() {
        let node = Figures { read_bytes_per_s: Some(10e9), write_bytes_per_s: Some(4e9), latency: None };
        let count = |required: &Required, bytes, capacity| {
            let nodes = count_nodes(required, bytes, &node, capacity);
            (nodes.count, nodes.limited_by)
        };
        assert_eq!(count(&required(35e9, 1e9), 5, Some(10)), (4, "read".to_owned()));
        assert_eq!(count(&required(30e9, 16.1e9), 5, Some(10)), (5, "write".to_owned()));
        assert_eq!(count(&required(30e9, 1e9), 95, Some(10)), (10, "capacity".to_owned()));
        assert_eq!(count(&required(0.0, 0.0), 0, None), (1, "one".to_owned()));
        assert_eq!(count_nodes(&required(30e9, 1.0), 95, &node, None).for_capacity, None);
    }

    #[test]
    fn dollars_are_gpus_and_storage_over_tokens() {
        let prices = Prices {
            gpu_dollars_per_hour: Some(3.0),
            storage_dollars_per_tb_month: 20.0,
            storage_bytes: 73_050_000_000_000,
            source: String::new(),
        };
        // 8 GPUs are $24 an hour; 73.05 TB at $20 for 730.5 hours are $2 an hour; 1,000 tokens/s are 3.6 million an hour.
        let near = |a: Option<f64>, b: f64| a.is_some_and(|a| (a / b - 1.0).abs() < 1e-12);
        assert!(near(dollars_per_million(8.0, &prices, false, 1000.0), 24.0 / 3.6));
        assert!(near(dollars_per_million(8.0, &prices, true, 1000.0), 26.0 / 3.6));
        assert_eq!(dollars_per_million(8.0, &prices, true, 0.0), None);
        assert_eq!(dollars_per_million(8.0, &Prices { gpu_dollars_per_hour: None, ..prices }, true, 1.0), None);
    }
}
