//! One member of a run: its machine is made, its data prepared, and it is measured.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use gpufeed_engine::measured::Measured;
use gpufeed_engine::settings::{Landing, Second, Settings, Verify, WarmUp};
use gpufeed_engine::wall::Machines;
use gpufeed_engine::watch::{Phase, Watch};
use gpufeed_profiles::units::Bytes;
use gpufeed_schema::{ClosedOrOpen, Section, Validity, ValidityStatus};
use gpufeed_workloads::inference::Limits;
use gpufeed_workloads::kv::{Kv, KvError, Requests, Window, fill_baselines, fill_target_model};
use gpufeed_workloads::machine::Workload;
use gpufeed_workloads::ops::Ops;
use gpufeed_workloads::rag::{Rag, RagPlan as RagMachinePlan};
use gpufeed_workloads::trace::Trace;
use gpufeed_workloads::training::Training;

use crate::client::{Purpose, Target};
use crate::drive::{self, Drive};
use crate::exit::{OrUsage, usage};
use crate::plan::{KvPlan, MemberPlan, Plan, RagPlan, SpecPlan, TracePlan, WarmUpPlan};
use crate::progress::{Progress, Show};
use crate::run::directory::Directory;
use crate::run::interrupt::Interrupt;
use crate::run::modeled::Targets;
use crate::{data, output, trace};

/// Largest payload that is made before it is sent and checked whole.
const MOST_BUFFER: u64 = 64 << 20;
/// Buffer of workloads that only read large objects: a window of each is checked.
const WINDOW: u64 = 1 << 20;

/// What one member needs to run.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stretch<'a> {
    /// The whole run.
    pub plan: &'a Plan,
    /// This member.
    pub member: &'a MemberPlan,
    /// Where the data is.
    pub target: &'a Target,
    /// Whether nothing else uses the target afterwards.
    pub last_use: bool,
    /// Where outputs go.
    pub directory: &'a Directory,
    /// The user's wish to end.
    pub interrupt: &'a Interrupt,
    /// Where progress goes.
    pub show: Show,
}

/// What a member found out, whatever its machine.
#[derive(Debug)]
pub(super) struct Outcome {
    /// Everything measured; the machines have had their say in `section`.
    pub measured: Measured<()>,
    /// The machine's own section.
    pub section: Section,
    /// How load was offered.
    pub load: ClosedOrOpen,
    /// CPU seconds per core and second of an embedded server in the window.
    pub server_cpu_ratio: Option<f64>,
    /// Words on how the data set came to be.
    pub prepared: Option<String>,
}

impl Stretch<'_> {
    /// Makes the machine and runs it.
    ///
    /// # Errors
    /// When the machine cannot be made, the data not prepared, or the target not used.
    pub(super) fn run(&self) -> anyhow::Result<Outcome> {
        match &self.member.spec {
            SpecPlan::Ops(spec) => {
                let machines = Ops::split(spec, self.plan.run.cores.len()).or_usage()?;
                self.execute(Machines::PerCore(machines), spec.sizes.most().min(MOST_BUFFER), None)
            }
            SpecPlan::Training(spec) => {
                let machine = Training::new(spec.clone()).or_usage()?;
                self.execute(Machines::One(machine), WINDOW, None)
            }
            SpecPlan::Kv(plan) => self.kv(plan),
            SpecPlan::Rag(plan) => {
                let machine = rag(plan, self.plan.seed)?;
                let mut outcome = self.execute(Machines::One(machine), WINDOW, None)?;
                add_sources(&mut outcome.section, &plan.sources);
                Ok(outcome)
            }
        }
    }

    fn kv(&self, plan: &KvPlan) -> anyhow::Result<Outcome> {
        let requests = requests(plan)?;
        let machine = Kv::new(plan.spec.clone(), plan.cost.clone(), Arc::clone(&requests)).or_usage()?;
        let object_bytes = machine.object_bytes().min(MOST_BUFFER);
        let second = machine.drive_space();
        let drive = plan.drive.as_deref().zip(second).map(|(dir, from)| {
            let names = machine.names();
            Drive::open(dir, plan.spec.g3_bytes, &names.spaces[usize::from(from)], from)
        });
        let drive = drive.transpose()?;
        let mut outcome = self.execute(Machines::One(machine), object_bytes, drive.as_ref())?;
        add_sources(&mut outcome.section, &plan.sources);
        if let Section::Kv(section) = &mut outcome.section
            && plan.baselines
            && !outcome.measured.interrupted
        {
            if self.show != Show::Nothing {
                output::say(&format!("{:<10} the same trace on other storage, in virtual time", self.member.name));
            }
            let unscaled = |time: Duration| time.div_f64(plan.spec.time_scale);
            let window =
                Window { warm_up: unscaled(outcome.measured.warm_up), length: self.member.duration.map(unscaled) };
            fill_baselines(section, &plan.spec, &plan.cost, &requests, window).or_usage()?;
            let window = Window { warm_up: outcome.measured.warm_up, length: self.member.duration };
            let second = second.unwrap_or(u16::MAX);
            let target = Targets::measured(&outcome.measured.histograms, section.transfer, second, self.plan.seed);
            fill_target_model(section, &plan.spec, &plan.cost, &requests, window, target).or_usage()?;
        }
        Ok(outcome)
    }

    fn execute<W: Workload + 'static>(
        &self,
        machines: Machines<W>,
        buffer: u64,
        drive: Option<&Drive>,
    ) -> anyhow::Result<Outcome> {
        let run = &self.plan.run;
        let first = match &machines {
            Machines::PerCore(machines) => machines.first(),
            Machines::One(machine) => Some(machine),
        };
        let (names, load) = first.map(|m| (m.names(), m.load())).context("there is no machine to run")?;
        let dataset = match &machines {
            Machines::PerCore(machines) => data::needed(machines),
            Machines::One(machine) => data::needed(std::slice::from_ref(machine)),
        };
        let prepared = dataset.map(|dataset| self.prepare(&names, &dataset)).transpose()?;
        let cores = match &machines {
            Machines::PerCore(machines) => machines.len(),
            Machines::One(_) => run.cores.len(),
        };
        let file = |name| Some(self.directory.member_file(&self.member.name, name));
        let settings = Settings {
            cores: run.cores.iter().take(cores).map(|core| Some(*core)).collect(),
            warm_up: match self.member.warm_up {
                WarmUpPlan::Fixed(time) if time.is_zero() => WarmUp::None,
                WarmUpPlan::Fixed(time) => WarmUp::Fixed(time),
                WarmUpPlan::UntilSteady(at_most) => WarmUp::Auto { at_most },
            },
            duration: self.member.duration,
            drain: run.drain,
            op_timeout: run.op_timeout,
            retries: run.retries,
            seed: self.plan.seed,
            verify: match run.verify_ratio {
                0.0 => Verify::Off,
                1.0 => Verify::Full,
                share => Verify::Sampled(share),
            },
            landing: match run.landing.as_str() {
                "hold" => Landing::Hold,
                "arena" => Landing::Arena,
                _ => Landing::Discard,
            },
            interval: run.interval,
            max_data_bytes: buffer.max(4096),
            op_log: if run.op_log { file("ops.csv.zst") } else { None },
            hlog: file("latency.hlog"),
            intervals_csv: file("intervals.csv"),
            transport_name: self.plan.target.transport().to_owned(),
            second: drive
                .map(|drive| Second { from_space: drive.from_space, transport_name: drive::TRANSPORT.to_owned() }),
            ..Settings::default()
        };
        let watch = self.interrupt.watch();
        let server = Arc::new(Mutex::new(ServerUse::default()));
        let expected = self.member.duration.map(|duration| {
            duration
                + match settings.warm_up {
                    WarmUp::None => Duration::ZERO,
                    WarmUp::Fixed(time) | WarmUp::Auto { at_most: time } => time,
                }
        });
        let progress = self.progress(&self.member.name, &watch, expected, Some(Arc::clone(&server)));
        let measured = self.target.drive_beside(drive, Purpose::Measure, &settings, machines, &watch);
        drop(progress);
        if !run.keep_data
            && let Some(Err(error)) = drive.map(Drive::clear)
        {
            output::say(&format!("gpufeed: the local drive of {} was not emptied: {error:#}", self.member.name));
        }
        let mut measured = measured?;
        let notes = drive.map(Drive::notes).unwrap_or_default();
        measured.validity.extend(notes.iter().map(|note| Validity::new("drive", ValidityStatus::Note, note.clone())));
        let section = measured.machines.first().map_or(Section::None, |machine| machine.section(measured.window));
        if !run.keep_data {
            self.clean_up(&names);
        }
        let server = *server.lock().unwrap_or_else(PoisonError::into_inner);
        let server_cores = self.target.embedded.as_ref().map_or(1, |embedded| embedded.cores.max(1));
        Ok(Outcome {
            measured: without_machines(measured),
            section,
            load,
            server_cpu_ratio: server.ratio().map(|cores| cores / f64::from(server_cores)),
            prepared,
        })
    }

    fn prepare(
        &self,
        names: &gpufeed_workloads::op::Names,
        dataset: &gpufeed_workloads::machine::Dataset,
    ) -> anyhow::Result<String> {
        let watch = self.interrupt.watch();
        let progress = self.progress("prepare", &watch, None, None);
        let run = &self.plan.run;
        let tally = data::prepare(self.target, run, self.plan.seed, names, dataset, &watch);
        drop(progress);
        let tally = tally?;
        let there = if tally.skipped > 0 { format!(", {} were there", tally.skipped) } else { String::new() };
        Ok(format!("data set of {} objects, {}{there}", dataset.count(), Bytes(dataset.bytes())))
    }

    /// Takes the data away; a failure to is said, and no reason to lose the results.
    fn clean_up(&self, names: &gpufeed_workloads::op::Names) {
        if self.plan.target.self_test() && self.last_use {
            // The data goes with the server.
            return;
        }
        if let Err(error) = data::clean_up(self.target, names) {
            output::say(&format!("gpufeed: the data of {} was not removed: {error:#}", self.member.name));
        }
    }

    fn progress(
        &self,
        title: &str,
        watch: &Watch,
        expected: Option<Duration>,
        server: Option<Arc<Mutex<ServerUse>>>,
    ) -> Progress {
        let cpu = self.target.embedded.as_ref().map(crate::embedded::Embedded::cpu_meter);
        Progress::new(self.show, title.to_owned(), watch.clone(), expected, move |now| {
            if let (Some(server), Some(cpu)) = (&server, &cpu) {
                let mut used = server.lock().unwrap_or_else(PoisonError::into_inner);
                used.see(now.phase, now.elapsed, || cpu.used());
            }
        })
    }
}

/// CPU time of an embedded server at the first and the last look into the measured window.
#[derive(Debug, Clone, Copy, Default)]
struct ServerUse {
    first: Option<(Duration, Duration)>,
    last: Option<(Duration, Duration)>,
}

impl ServerUse {
    fn see(&mut self, phase: Phase, elapsed: Duration, cpu: impl FnOnce() -> Option<Duration>) {
        if phase == Phase::Measure
            && let Some(cpu) = cpu()
        {
            self.first.get_or_insert((elapsed, cpu));
            self.last = Some((elapsed, cpu));
        }
    }

    /// CPU seconds per second.
    fn ratio(&self) -> Option<f64> {
        let ((from, before), (to, after)) = (self.first?, self.last?);
        let seconds = to.checked_sub(from)?.as_secs_f64();
        (seconds > 0.0).then(|| after.saturating_sub(before).as_secs_f64() / seconds)
    }
}

/// An estimate carries its inputs, and they their sources.
fn add_sources(section: &mut Section, sources: &BTreeMap<String, String>) {
    let inputs = match section {
        Section::Kv(kv) => &mut kv.inputs,
        Section::Rag(rag) => &mut rag.inputs,
        _ => return,
    };
    inputs.extend(sources.iter().map(|(figure, source)| (format!("source of {figure}"), source.clone())));
}

/// What was measured, without the machines, which have had their say.
fn without_machines<W>(measured: Measured<W>) -> Measured<()> {
    Measured {
        machines: Vec::new(),
        window: measured.window,
        warm_up: measured.warm_up,
        operations: measured.operations,
        series: measured.series,
        histograms: measured.histograms,
        cpu: measured.cpu,
        slip: measured.slip,
        plan_hash: measured.plan_hash,
        issued_hash: measured.issued_hash,
        interrupted: measured.interrupted,
        errors: measured.errors,
        validity: measured.validity,
    }
}

/// Reads or makes the trace of a plan.
fn load_trace(plan: &TracePlan) -> anyhow::Result<Trace> {
    match plan {
        TracePlan::Synth(synth) => synth.trace().or_usage(),
        TracePlan::File { path, window_s } => {
            let trace = trace::load(path)?;
            match window_s {
                None => Ok(trace),
                Some((from, to)) => trace::cut(&trace, Duration::from_secs_f64(*from), Duration::from_secs_f64(*to)),
            }
        }
    }
}

/// The requests of a plan, read or made.
///
/// # Errors
/// When the trace cannot be read, or has block ids where prefixes are to be made up.
pub(crate) fn requests(plan: &KvPlan) -> anyhow::Result<Arc<Requests>> {
    let trace = load_trace(&plan.trace)?;
    let requests = Requests::from_trace(&trace, plan.spec.output_blocks, plan.spec.block_tokens);
    if plan.spec.prefix_share > 0.0 && !requests.synthetic() {
        return Err(usage(
            "kv.prefix_share makes up prefixes for traces without block ids, and this one has them: leave it out",
        ));
    }
    Ok(Arc::new(requests.with_prefixes(plan.spec.prefix_share, plan.spec.prefix_groups)))
}

fn rag(plan: &RagPlan, seed: u64) -> anyhow::Result<Rag> {
    let spec = &plan.spec;
    let room = plan.cost.hbm_blocks(spec.gpu_memory_utilization, spec.max_num_batched_tokens, spec.block_tokens);
    if room == 0 {
        return Err(KvError::ModelTooBig {
            model: spec.model.clone(),
            gpu: spec.gpu.clone(),
            tp: plan.cost.tp,
            weights: Bytes(plan.cost.weight_bytes_per_rank as u64),
            memory: Bytes(plan.cost.hbm_bytes as u64),
        })
        .or_usage();
    }
    let inputs = [("model", &spec.model), ("gpu", &spec.gpu)].map(|(name, value)| (name.to_owned(), value.clone()));
    Rag::new(RagMachinePlan {
        trace: Arc::new(load_trace(&plan.trace)?),
        arrivals: spec.arrivals,
        queries: spec.queries,
        index: spec.index.clone(),
        bytes_per_token: spec.bytes_per_token,
        embed: spec.embed,
        rerank: spec.rerank,
        prefix: spec.prefix.clone(),
        lanes: spec.lanes,
        workers: spec.workers,
        cost: Arc::new(plan.cost.clone()),
        limits: Limits {
            max_num_batched_tokens: spec.max_num_batched_tokens,
            max_num_seqs: spec.max_num_seqs as usize,
            block_tokens: spec.block_tokens,
            hbm_blocks: usize::try_from(room).unwrap_or(usize::MAX),
            time_scale: spec.time_scale,
        },
        seed,
        inputs: inputs.into(),
    })
    .or_usage()
}

/// Removes what the members of a plan have put on a target.
///
/// # Errors
/// When a machine cannot be made, or the target does not let go.
pub(crate) fn remove_data(plan: &Plan, target: &Target) -> anyhow::Result<()> {
    for member in &plan.members {
        let names = match &member.spec {
            SpecPlan::Ops(spec) => Ops::split(spec, 1).or_usage()?.first().map(Workload::names).unwrap_or_default(),
            SpecPlan::Training(spec) => Training::new(spec.clone()).or_usage()?.names(),
            SpecPlan::Kv(kv) => Kv::new(kv.spec.clone(), kv.cost.clone(), requests(kv)?).or_usage()?.names(),
            SpecPlan::Rag(rag_plan) => rag(rag_plan, plan.seed)?.names(),
        };
        data::clean_up(target, &names)?;
    }
    Ok(())
}

/// Name, objects and bytes of each member's data set.
///
/// # Errors
/// When a machine cannot be made.
pub(super) fn data_sets(plan: &Plan) -> anyhow::Result<Vec<(String, u64, Bytes)>> {
    let of = |member: &MemberPlan| -> anyhow::Result<_> {
        let dataset = match &member.spec {
            SpecPlan::Ops(spec) => Ops::split(spec, 1).or_usage()?.first().map(Workload::dataset).unwrap_or_default(),
            SpecPlan::Training(spec) => Training::new(spec.clone()).or_usage()?.dataset(),
            SpecPlan::Kv(kv) => Kv::new(kv.spec.clone(), kv.cost.clone(), requests(kv)?).or_usage()?.dataset(),
            SpecPlan::Rag(rag_plan) => rag(rag_plan, plan.seed)?.dataset(),
        };
        Ok((member.name.clone(), dataset.count(), Bytes(dataset.bytes())))
    };
    plan.members.iter().map(of).collect()
}
