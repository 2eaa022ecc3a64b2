//! One trace on one kind of GPU, played in virtual time on one storage or another.

use std::ffi::OsString;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use clap::Parser;
use gpufeed_profiles::Overrides;
use gpufeed_profiles::units::show_duration;
use gpufeed_schema::Kv as Section;
use gpufeed_workloads::inference::CostModel;
use gpufeed_workloads::kv::{BaselineKind, Counted, Kv, KvSpec, Moved, Requests, of_kind, play};
use gpufeed_workloads::op::Tick;
use gpufeed_workloads::storage::Storage;

use crate::args::{Cli, Command};
use crate::exit::{OrUsage, usage};
use crate::output;
use crate::plan::{KvPlan, SpecPlan, WarmUpPlan};
use crate::progress::Show;
use crate::resolve::fit;

/// What is played, whatever the storage.
#[derive(Debug, Clone)]
pub(super) struct Case {
    /// Settings of the workload.
    pub spec: KvSpec,
    /// What an iteration costs.
    pub cost: CostModel,
    /// What arrives.
    pub requests: Arc<Requests>,
    /// The trace, in words.
    pub trace: String,
    /// Start of what counts.
    warm_up: Duration,
    /// Length of what counts; none for until all is served.
    length: Option<Duration>,
    /// Seed of everything random.
    pub seed: u64,
}

/// Which tiers outside GPU memory there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tiers {
    /// None.
    No,
    /// Those of each worker.
    Local,
    /// And the shared one.
    Shared,
    /// And the shared one is perfect, so that loading whatever is there is right.
    Ideal,
}

/// What a virtual run gave.
#[derive(Debug, Clone)]
pub(super) struct Played {
    /// The machine's own figures.
    pub section: Section,
    /// Payload by second.
    pub moved: Moved,
    /// Its length in virtual time.
    pub end_s: f64,
}

impl Played {
    /// Requests that met every objective.
    pub(super) fn good(&self) -> f64 {
        self.section.goodput_per_s * self.window_s()
    }

    /// Of all that arrived.
    pub(super) fn slo_ratio(&self) -> f64 {
        self.good() / self.section.requests.max(1) as f64
    }

    fn window_s(&self) -> f64 {
        self.section.gpu.total_ns as f64 / 1e9 / f64::from(self.section.workers.max(1))
    }
}

impl Case {
    /// What `gpufeed run kv` with these flags would play.
    ///
    /// # Errors
    /// In the words of `run kv`; and when the trace shares nothing, or the model does not fit.
    pub(super) fn resolve(flags: Vec<OsString>, engine: Option<&str>) -> anyhow::Result<Self> {
        let words = ["gpufeed", "run", "kv"].map(OsString::from).into_iter().chain(flags);
        let cli = Cli::try_parse_from(words).map_err(|error| {
            let text = error.render().to_string();
            usage(text.lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned())
        })?;
        let Command::Run(run) = cli.command else { return Err(usage("these are not flags of `gpufeed run kv`")) };
        let crate::args::WorkloadArgs::Kv(args) = &run.workload else {
            return Err(usage("these are not flags of `gpufeed run kv`"));
        };
        let (model, gpu, tp, set) =
            (args.inference.model.clone(), args.inference.gpu.clone(), args.inference.tp, args.shared.set.clone());
        let trace = args.inference.trace.as_ref().map_or("synthetic".to_owned(), |path| path.display().to_string());
        let seed = args.shared.seed;
        let request = crate::resolve::resolve(run.workload)?;
        let member = request.plan.members.into_iter().next().ok_or_else(|| usage("there is nothing to play"))?;
        let SpecPlan::Kv(mut plan) = member.spec else { return Err(usage("there is nothing to play")) };
        if let Some(engine) = engine {
            with_engine(&mut plan, engine, &model, &gpu, tp, &set)?;
            let (model, gpu, engine) = profiles(&model, &gpu, engine, &set)?;
            fit::check(fit::Memory::of(&plan.spec), &plan.cost, &model, &gpu, &engine)?;
        }
        let requests = crate::run::member::requests(&plan)?;
        if requests.shares_nothing() {
            return Err(usage(format!(
                "{trace} has no block ids, so no request shares a prefix with another and no storage helps: use a trace with ids (Mooncake's), --trace synth, or make up prefixes with --set kv.prefix_share=0.5"
            )));
        }
        let warm_up = match member.warm_up {
            WarmUpPlan::Fixed(time) | WarmUpPlan::UntilSteady(time) => time,
        };
        // Virtual time needs no scaling.
        plan.spec.time_scale = 1.0;
        Ok(Self { spec: plan.spec, cost: plan.cost, requests, trace, warm_up, length: member.duration, seed })
    }

    /// The same arrivals, so many times as fast.
    pub(super) fn faster(&self, times: f64) -> Self {
        let mut case = self.clone();
        case.spec.rate_scale *= times;
        // What comes faster is over sooner.
        case.warm_up = case.warm_up.div_f64(times);
        case.length = case.length.map(|length| length.div_f64(times));
        case
    }

    /// The same with other settings.
    pub(super) fn with(&self, change: impl FnOnce(&mut KvSpec)) -> Self {
        let mut case = self.clone();
        change(&mut case.spec);
        case
    }

    /// Other requests, of which those that arrive after `warm_up` count.
    pub(super) fn playing(&self, requests: Requests, warm_up: Duration) -> Self {
        Self { requests: Arc::new(requests), warm_up, length: None, ..self.clone() }
    }

    /// Plays it.
    ///
    /// # Errors
    /// When a knob is out of range or the model does not fit.
    pub(super) fn play(&self, tiers: Tiers, storage: impl Storage) -> anyhow::Result<Played> {
        let spec = match tiers {
            Tiers::No => of_kind(&self.spec, BaselineKind::NoCache),
            Tiers::Local => of_kind(&self.spec, BaselineKind::Local),
            Tiers::Ideal => of_kind(&self.spec, BaselineKind::IdealStorage),
            Tiers::Shared => KvSpec { shared_tier: true, ..self.spec.clone() },
        };
        let mut machine = Kv::new(spec, self.cost.clone(), Arc::clone(&self.requests)).or_usage()?;
        let measure = Tick::ZERO + self.warm_up;
        let mut storage = Counted::new(storage);
        let end = play(&mut machine, &mut storage, measure, self.length.map(|length| measure + length));
        let section = machine.report((measure.min(end), end));
        Ok(Played { section, moved: storage.moved, end_s: end.0 as f64 / 1e9 })
    }

    /// GPUs of all workers.
    pub(super) fn gpus(&self) -> f64 {
        f64::from(self.spec.workers) * f64::from(self.cost.tp)
    }

    /// Bytes of a block, all ranks.
    pub(super) fn block_bytes(&self) -> u64 {
        self.cost.block_bytes(self.requests.block_tokens())
    }

    /// Blocks that fit into GPU memory of a worker.
    pub(super) fn g1_blocks(&self) -> u64 {
        let room = self.cost.hbm_blocks(
            self.spec.gpu_memory_utilization,
            self.spec.max_num_batched_tokens,
            self.requests.block_tokens(),
        );
        self.spec.g1_blocks.unwrap_or(room)
    }
}

fn profiles(
    model: &str,
    gpu: &str,
    engine: &str,
    set: &[String],
) -> anyhow::Result<(gpufeed_profiles::Model, gpufeed_profiles::Gpu, gpufeed_profiles::Engine)> {
    let ours: Vec<&String> = set.iter().filter(|text| !text.starts_with("kv.")).collect();
    let overrides = Overrides::parse(&ours).or_usage()?;
    Ok((
        gpufeed_profiles::model(model, &overrides).or_usage()?,
        gpufeed_profiles::gpu(gpu, &overrides).or_usage()?,
        gpufeed_profiles::engine(engine, &overrides).or_usage()?,
    ))
}

fn with_engine(plan: &mut KvPlan, engine: &str, model: &str, gpu: &str, tp: u32, set: &[String]) -> anyhow::Result<()> {
    let (model, gpu, engine) = profiles(model, gpu, engine, set)?;
    plan.cost = CostModel::from_profiles(&model, &gpu, &engine, tp, model.weight_dtype, model.kv_dtype);
    plan.spec.max_num_batched_tokens = engine.max_batched_tokens;
    plan.spec.max_num_seqs = u32::try_from(engine.max_sequences).unwrap_or(u32::MAX);
    plan.spec.gpu_memory_utilization = engine.hbm_utilization_ratio;
    Ok(())
}

/// Virtual runs on all cores, with what they will take and how far they are.
#[derive(Debug)]
pub(super) struct Crew {
    cores: usize,
    show: Show,
    done: AtomicUsize,
    expected: AtomicUsize,
    start: Instant,
    last_line: std::sync::Mutex<Instant>,
}

impl Crew {
    /// All cores of this machine.
    pub(super) fn new(show: Show) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let now = Instant::now();
        let (done, expected) = (AtomicUsize::new(0), AtomicUsize::new(0));
        Self { cores, show, done, expected, start: now, last_line: std::sync::Mutex::new(now) }
    }

    /// Cores at work.
    pub(super) const fn cores(&self) -> usize {
        self.cores
    }

    /// Runs so far.
    pub(super) fn done(&self) -> usize {
        self.done.load(Ordering::Relaxed)
    }

    /// Time since the first.
    pub(super) fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    /// Says how many runs there will be about, and how long they take if each takes as long as those so far.
    pub(super) fn expect(&self, runs: usize) {
        self.expected.store(self.done() + runs, Ordering::Relaxed);
        if self.show == Show::Nothing || self.done() == 0 {
            return;
        }
        let each = self.elapsed().div_f64(self.done() as f64);
        let rest = each.mul_f64(runs as f64 / self.cores as f64);
        output::say(&format!(
            "about {runs} virtual runs of {} each on {} cores: {}",
            show_duration(each),
            self.cores,
            show_duration(rest)
        ));
    }

    /// Does `work` for each of `items`, in their order.
    ///
    /// # Errors
    /// The first error in that order.
    pub(super) fn each<T: Sync, R: Send>(
        &self,
        items: &[T],
        work: impl Fn(&T) -> anyhow::Result<R> + Sync,
    ) -> anyhow::Result<Vec<R>> {
        let next = AtomicUsize::new(0);
        let run = || {
            let mut done = Vec::new();
            while let Some((index, item)) = {
                let index = next.fetch_add(1, Ordering::Relaxed);
                items.get(index).map(|item| (index, item))
            } {
                done.push((index, work(item)));
                self.one_done();
            }
            done
        };
        let mut results = if self.cores == 1 || items.len() == 1 {
            run()
        } else {
            std::thread::scope(|scope| {
                let threads: Vec<_> = (0..self.cores.min(items.len())).map(|_| scope.spawn(run)).collect();
                threads
                    .into_iter()
                    .flat_map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
                    .collect()
            })
        };
        results.sort_by_key(|(index, _)| *index);
        results.into_iter().map(|(_, result)| result).collect()
    }

    fn one_done(&self) {
        let done = self.done.fetch_add(1, Ordering::Relaxed) + 1;
        if self.show == Show::Nothing {
            return;
        }
        let mut last = self.last_line.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if last.elapsed() > Duration::from_secs(10) {
            *last = Instant::now();
            let expected = self.expected.load(Ordering::Relaxed).max(done);
            let left = self.elapsed().mul_f64((expected - done) as f64 / done as f64);
            output::say(&format!("virtual run {done} of about {expected}, {} left", show_duration(left)));
        }
    }
}
