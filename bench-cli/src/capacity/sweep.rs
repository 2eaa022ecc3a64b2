//! `gpufeed plan sweep`: one table of virtual runs over one or more settings.

use std::collections::BTreeMap;
use std::time::Duration;

use clap::{Args, ValueEnum};
use gpufeed_profiles::units::Bytes;
use gpufeed_schema::{CAPACITY_VERSION, Sweep, SweepChart};
use gpufeed_workloads::kv::{OutputBlocks, Requests};
use gpufeed_workloads::storage::{Instant, Storage};
use gpufeed_workloads::trace::{Format, Record, Trace};

use super::case::{Case, Crew, Played, Tiers};
use super::plan::{CapacityArgs, tool};
use super::storage::Given;
use super::text;
use crate::args::PlanFormat;
use crate::exit::{Exit, OrUsage, usage};
use crate::output;
use crate::progress::Show;

/// Time between rounds of requests that must not meet: an hour of virtual time costs nothing.
const APART: Duration = Duration::from_secs(3600);

/// `gpufeed plan sweep`.
#[derive(Debug, Clone, Args)]
pub struct SweepArgs {
    /// What to sweep
    #[arg(value_enum)]
    pub what: SweepOf,
    /// What goes to standard output
    #[arg(long, value_enum, default_value_t = PlanFormat::Text, help_heading = "Output")]
    pub format: PlanFormat,
    /// What is planned for.
    #[command(flatten)]
    pub capacity: CapacityArgs,
}

/// What is swept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum SweepOf {
    /// Time to first token over context × share cached on storage × requests at once
    Ttft,
    /// Tokens/s per GPU against tokens/s per user, over arrival rates and kinds of storage
    Throughput,
    /// Tokens of a block
    BlockSize,
    /// Objects that a worker reads or writes at once
    InFlight,
    /// Host memory of each worker
    G2,
}

/// Sweeps, and prints the table.
///
/// # Errors
/// When a flag makes no sense, or an output cannot be written.
pub(super) fn run(args: &SweepArgs) -> anyhow::Result<Exit> {
    let flags =
        &CapacityArgs { quiet: args.capacity.quiet || args.format == PlanFormat::Json, ..args.capacity.clone() };
    let sweep = table(flags, args.what)?;
    let page = |page: &mut Vec<u8>| gpufeed_reports::html::capacity::render_sweep(&sweep, page);
    if let Some(dir) = &flags.out {
        super::write(dir, &format!("sweep-{}", sweep.name), &sweep, page, Some(text::csv(&sweep)))?;
    }
    match args.format {
        PlanFormat::Text => output::result(&text::sweep(&sweep))?,
        PlanFormat::Json => output::result(&(serde_json::to_string_pretty(&sweep)? + "\n"))?,
        PlanFormat::Html => {
            let mut bytes = Vec::new();
            page(&mut bytes)?;
            output::result(&String::from_utf8(bytes)?)?;
        }
    }
    Ok(Exit::Passed)
}

/// The table itself.
///
/// # Errors
/// When a flag makes no sense.
pub(super) fn table(flags: &CapacityArgs, what: SweepOf) -> anyhow::Result<Sweep> {
    flags.check_sweep()?;
    let case = flags.case()?;
    let given = match &flags.storage {
        Some(text) => Some(Given::parse(text, flags.storage_concurrency, case.seed)?),
        None => None,
    };
    let crew = Crew::new(Show::fitting(flags.quiet));
    let on = On { case: &case, crew: &crew, flags, given: given.as_ref(), concurrency: flags.storage_concurrency };
    match what {
        SweepOf::Ttft => on.ttft(),
        SweepOf::Throughput => on.throughput(),
        SweepOf::BlockSize => on.block_size(),
        SweepOf::InFlight => on.in_flight(),
        SweepOf::G2 => on.g2(),
    }
}

struct On<'a> {
    case: &'a Case,
    crew: &'a Crew,
    flags: &'a CapacityArgs,
    given: Option<&'a Given>,
    concurrency: Option<usize>,
}

type Row = Vec<Option<f64>>;

/// Columns that every sweep over a trace has.
const FIGURES: [&str; 7] = [
    "ttft_p50_ns",
    "ttft_p99_ns",
    "output_tokens_per_s",
    "goodput_per_s",
    "token_hit_ratio",
    "read_bytes",
    "storage_stall_ratio",
];

fn figures(played: &Played) -> Row {
    let section = &played.section;
    let ttft = &section.ttft.summary;
    vec![
        ttft.p50_ns.map(|ns| ns as f64),
        ttft.p99_ns.map(|ns| ns as f64),
        Some(section.output_tokens_per_s),
        Some(section.goodput_per_s),
        section.token_hit_ratio,
        Some(section.loaded_bytes as f64),
        Some(section.gpu.storage_stall_ratio),
    ]
}

fn doubling(from: u64, to: u64) -> Vec<u64> {
    std::iter::successors(Some(from), |value| Some(value * 2)).take_while(|value| *value <= to).collect()
}

impl On<'_> {
    fn storage(&self) -> Box<dyn Storage> {
        self.given.map_or_else(
            || Box::new(Instant) as Box<dyn Storage>,
            |given| given.storage(self.concurrency, self.case.seed),
        )
    }

    fn sweep(&self, name: &str, title: String, settings: &[&str], figures: &[&str], rows: Vec<Row>) -> Sweep {
        let on = if self.given.is_some() { "the storage given" } else { "ideal storage (give --storage for another)" };
        Sweep {
            schema_version: CAPACITY_VERSION.to_owned(),
            tool: tool(),
            name: name.to_owned(),
            title: format!(
                "{title}: {} on {} × {} of {}, {on}, in virtual time",
                self.case.spec.model, self.case.spec.workers, self.case.cost.tp, self.case.spec.gpu
            ),
            columns: settings.iter().chain(figures).map(|column| (*column).to_owned()).collect(),
            settings: settings.len(),
            rows,
            words: BTreeMap::new(),
            charts: Vec::new(),
            inputs: BTreeMap::new(),
        }
    }

    /// One setting over the trace.
    fn over(
        &self,
        name: &str,
        title: &str,
        column: &str,
        values: &[u64],
        change: impl Fn(&Case, u64) -> anyhow::Result<Case> + Sync,
    ) -> anyhow::Result<Sweep> {
        self.crew.expect(values.len());
        let rows = self.crew.each(values, |&value| {
            let played = change(self.case, value)?.play(Tiers::Shared, self.storage())?;
            Ok([vec![Some(value as f64)], figures(&played)].concat())
        })?;
        let mut sweep = self.sweep(name, title.to_owned(), &[column], &FIGURES, rows);
        let chart = |y: &str| SweepChart { x: column.to_owned(), y: y.to_owned(), ..SweepChart::default() };
        sweep.charts = vec![chart("ttft_p50_ns"), chart("output_tokens_per_s"), chart("token_hit_ratio")];
        Ok(sweep)
    }

    fn in_flight(&self) -> anyhow::Result<Sweep> {
        self.over("in-flight", "Objects in flight per worker", "in_flight", &doubling(1, 128), |case, value| {
            Ok(case.with(|spec| (spec.get_in_flight, spec.put_in_flight) = (value as u32, value as u32)))
        })
    }

    fn g2(&self) -> anyhow::Result<Sweep> {
        let values = [vec![0], doubling(4 << 30, 1 << 40)].concat();
        self.over("g2", "Host memory per worker", "g2_bytes", &values, |case, value| {
            Ok(case.with(|spec| spec.g2_bytes = Bytes(value)))
        })
    }

    fn block_size(&self) -> anyhow::Result<Sweep> {
        let values = doubling(16, 4096);
        self.over("block-size", "Tokens of a block", "block_tokens", &values, |_, value| {
            let mut flags = self.flags.clone();
            flags.set.push(format!("kv.block_tokens={value}"));
            // GPU memory is as large as it was, where it was given in blocks.
            let blocks = |blocks: u64| (blocks * u64::from(self.case.spec.block_tokens) / value).max(1);
            Ok(flags.case()?.with(|spec| spec.g1_blocks = self.case.spec.g1_blocks.map(blocks)))
        })
    }

    /// Each user's share of the tokens against each GPU's, as arrivals get faster.
    fn throughput(&self) -> anyhow::Result<Sweep> {
        let rates: Vec<f64> = (-4..=8).map(|step| 2f64.powf(f64::from(step) / 2.0)).collect();
        let mut kinds = vec![(Tiers::No, "no cache"), (Tiers::Local, "local tiers"), (Tiers::Ideal, "ideal storage")];
        kinds.extend(self.given.map(|_| (Tiers::Shared, "given storage")));
        let points: Vec<(usize, f64)> =
            (0..kinds.len()).flat_map(|kind| rates.iter().map(move |rate| (kind, *rate))).collect();
        self.crew.expect(points.len());
        let rows = self.crew.each(&points, |&(kind, rate)| {
            let tiers = kinds[kind].0;
            let storage = if tiers == Tiers::Shared { self.storage() } else { Box::new(Instant) };
            let played = self.case.faster(rate).play(tiers, storage)?;
            let per_user = played.section.tpot.mean_ns.filter(|ns| *ns > 0.0).map(|ns| 1e9 / ns);
            let per_gpu = played.section.output_tokens_per_s / self.case.gpus();
            Ok([vec![Some(kind as f64), Some(rate), per_user, Some(per_gpu)], figures(&played)].concat())
        })?;
        let own = ["tokens_per_s_per_user", "tokens_per_s_per_gpu"];
        let columns: Vec<&str> = own.into_iter().chain(FIGURES).collect();
        let title = "Tokens/s per GPU against tokens/s per user".to_owned();
        let mut sweep = self.sweep("throughput", title, &["storage", "rate_scale"], &columns, rows);
        sweep.words.insert("storage".to_owned(), kinds.iter().map(|(_, name)| (*name).to_owned()).collect());
        let chart = |x: &str, y: &str| SweepChart {
            x: x.to_owned(),
            y: y.to_owned(),
            by: Some("storage".to_owned()),
            fixed: Vec::new(),
        };
        sweep.charts =
            vec![chart(own[0], own[1]), chart("rate_scale", "goodput_per_s"), chart("rate_scale", "ttft_p50_ns")];
        Ok(sweep)
    }

    /// Requests at once whose prefix lies on storage and nowhere else.
    fn ttft(&self) -> anyhow::Result<Sweep> {
        let block = self.case.requests.block_tokens();
        // A prompt and its answer have to fit into GPU memory.
        let most = self.case.g1_blocks().saturating_sub(1) * block;
        let fits = |context: &u64| *context >= 2 * block && *context <= most;
        let contexts: Vec<u64> = doubling(1024, 131_072).into_iter().filter(fits).collect();
        if contexts.is_empty() {
            return Err(usage(format!(
                "GPU memory holds {most} tokens beside an answer, less than two blocks of {block}: give more, or smaller blocks"
            )));
        }
        let mut points = Vec::new();
        for &at_once in &[1u64, 4, 16] {
            for &hit in &[0.0, 0.5, 0.9, 1.0] {
                points.extend(contexts.iter().map(|&context| (context, hit, at_once)));
            }
        }
        self.crew.expect(points.len());
        let rows = self.crew.each(&points, |&(context, hit, at_once)| {
            let played = self.case.at_once(context, hit, at_once)?.play(Tiers::Shared, self.storage())?;
            let section = &played.section;
            let part = |latency: &gpufeed_schema::Latency| latency.mean_ns;
            let ttft = &section.ttft.summary;
            let parts = &section.ttft_parts;
            Ok(vec![
                Some(context as f64),
                Some(hit),
                Some(at_once as f64),
                ttft.mean_ns,
                ttft.max_ns.map(|ns| ns as f64),
                part(&parts.queue),
                part(&parts.load),
                part(&parts.copy),
                part(&parts.prefill),
                section.token_hit_ratio,
            ])
        })?;
        let columns = [
            "ttft_mean_ns",
            "ttft_max_ns",
            "queue_mean_ns",
            "load_mean_ns",
            "copy_mean_ns",
            "prefill_mean_ns",
            "token_hit_ratio",
        ];
        let settings = ["context_tokens", "cached_ratio", "requests_at_once"];
        let title = "Time to first token over context, share cached on storage, and requests at once".to_owned();
        let mut sweep = self.sweep("ttft", title, &settings, &columns, rows);
        sweep.charts = [1.0, 4.0, 16.0]
            .map(|at_once| SweepChart {
                x: settings[0].to_owned(),
                y: columns[0].to_owned(),
                by: Some(settings[1].to_owned()),
                fixed: vec![(settings[2].to_owned(), at_once)],
            })
            .to_vec();
        Ok(sweep)
    }
}

impl Case {
    /// `at_once` requests of `context` tokens come to each worker's turn together, of which `hit` are cached on storage and
    /// nowhere else: they were computed an hour ago, and the hour after that something else filled GPU and host memory.
    ///
    /// # Errors
    /// When the model does not fit.
    fn at_once(&self, context: u64, hit: f64, at_once: u64) -> anyhow::Result<Self> {
        let block = self.requests.block_tokens();
        let cached = (context as f64 * hit / block as f64).floor() as u64;
        let blocks = context.div_ceil(block);
        let ids = |round: u64, request: u64, from: u64, to: u64| {
            (from..to).map(move |i| (round << 48) | (request << 32) | i).collect::<Vec<u64>>()
        };
        let mut records = Vec::new();
        let mut add = |hour: u64, tokens: u64, blocks: Vec<u64>| {
            records.push(Record {
                stamp_ns: Some((hour * APART.as_nanos() as u64) as i64),
                input_tokens: tokens as u32,
                output_tokens: 1,
                blocks,
                ..Record::default()
            });
        };
        for request in 0..at_once {
            // Nothing to compute first: a request of one block stands in, so that the clock starts all the same.
            let warm = cached.max(1);
            let round = if cached == 0 { 9 } else { 1 };
            add(0, warm * block, ids(round, request, 0, warm));
        }
        // Twice, so that nothing of the first hour is left.
        for (hour, round) in [(1, 2), (2, 4)] {
            (0..at_once).for_each(|request| add(hour, blocks * block, ids(round, request, 0, blocks)));
        }
        for request in 0..at_once {
            let blocks = [ids(1, request, 0, cached), ids(3, request, cached, blocks)].concat();
            add(3, context, blocks);
        }
        let trace =
            Trace::from_records(Format::Mooncake, records.into_iter().map(Ok), Some(block as u32)).or_usage()?;
        let requests = Requests::from_trace(&trace, OutputBlocks::None, block as u32);
        let g1 = self.g1_blocks().min(at_once * blocks + 1);
        let case = self.with(|spec| {
            spec.workers = 1;
            spec.g1_blocks = Some(g1);
            spec.g2_bytes = Bytes(0);
            spec.rate_scale = 1.0;
            spec.put_queue_blocks = u32::MAX;
        });
        Ok(case.playing(requests, 3 * APART - Duration::from_secs(1)))
    }
}
