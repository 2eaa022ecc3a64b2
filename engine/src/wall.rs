//! Wall time: one thread per core, each with a single-threaded runtime of its own, nothing shared on the measured path.
//!
//! Independent machines run one per core: machine, lanes and timer are local, and a lane that completes an operation
//! steps the machine and takes its next operation without a task switch. One stateful machine runs on a conductor on
//! the first core; its operations go to the lanes of all cores through lock-free queues, and the time they spend there
//! is schedule slip. The calling thread collects what the cores recorded and decides when phases change.

mod core;
mod desk;
mod shared;
mod station;

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc;
use std::time::Duration;

use gpufeed_io::bell::Ringer;
use gpufeed_schema::{Validity, ValidityStatus};
use gpufeed_workloads::machine::Workload;
use gpufeed_workloads::op::{ErrorKind, Tick};

use self::core::{Core, Role};
use self::desk::Link;
use self::shared::{Ended, Report, Shared};
use crate::cpu::{self, MachineUse};
use crate::measured::{CpuUse, Measured, RunError};
use crate::phases::SteadyState;
use crate::record::collector::Collector;
use crate::record::op_log::OpLog;
use crate::record::{Block, Steps};
use crate::settings::{Settings, WarmUp};
use crate::simulated::{log_check, steady_state, stuck};
use crate::transport::{Clock, OpError, Transport};
use crate::watch::{Phase, Progress, Watch};

/// Blocks that circulate per core, besides the one being filled.
const BLOCKS: usize = 2;
/// How often the control thread looks around.
const LOOK: Duration = Duration::from_millis(10);
/// How far ahead a change of phase is announced, so that every core knows of it before it comes.
const AHEAD: Duration = Duration::from_millis(30);
/// What a core says that ended because of another.
const OTHER: &str = "another core ended early";
/// Failures without a success that may mean a dead target.
const HOPELESS: u64 = 8;

/// The place a transport is opened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CoreSlot {
    /// Which core, from zero.
    pub index: usize,
    /// How many there are.
    pub cores: usize,
    /// The processor it is pinned to.
    pub cpu: Option<usize>,
    /// Lanes it will open.
    pub lanes: usize,
    /// Buffers its arena should hold: one per lane in use and one being replaced.
    pub buffers: usize,
    /// Size of each ([`Settings::max_data_bytes`]).
    pub buffer_bytes: u64,
}

/// What runs.
#[derive(Debug)]
pub enum Machines<W> {
    /// Independent loops, one for each core.
    PerCore(Vec<W>),
    /// One stateful model on a conductor, with lanes on all cores.
    One(W),
}

/// Whether another attempt may mend such an error.
#[must_use]
pub(crate) const fn worth_another(kind: ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::Connect | ErrorKind::Timeout | ErrorKind::Throttled | ErrorKind::Server | ErrorKind::ShortBody
    )
}

/// Runs machines over the transports that `open` makes, one per core, and measures. Returns when the machines have
/// finished or the window is over, and what was in flight has drained.
///
/// # Errors
/// When the target cannot be opened or answers nothing but errors, when the settings contradict each other, and when
/// an output or a system resource is refused.
pub fn run<T: Transport, W: Workload + 'static>(
    settings: &Settings,
    clock: Clock,
    open: impl Fn(CoreSlot, Clock) -> Result<T, OpError> + Sync,
    machines: Machines<W>,
    watch: &Watch,
) -> Result<Measured<W>, RunError> {
    let machines = match machines {
        Machines::One(machine) if settings.cores.len() == 1 => Machines::PerCore(vec![machine]),
        machines => machines,
    };
    let cores = settings.cores.len();
    let all: Vec<&W> = match &machines {
        Machines::PerCore(machines) => machines.iter().collect(),
        Machines::One(machine) => vec![machine],
    };
    if cores == 0 || all.is_empty() || (matches!(machines, Machines::PerCore(_)) && all.len() != cores) {
        return Err(RunError::Settings(format!("{} machines cannot run on {cores} cores, one each", all.len())));
    }
    let names = Arc::new(all[0].names());
    let plan_hash = plan_hash(&all);
    let by_plan = all.iter().all(|machine| machine.issues_by_plan());
    let lanes: Vec<usize> = match &machines {
        Machines::PerCore(machines) => machines.iter().map(|machine| machine.lanes().max(1)).collect(),
        Machines::One(machine) => spread(machine.lanes().max(cores), cores),
    };

    let shared = Arc::new(Shared::new(cores));
    let mut collector = Collector::new(cores, settings, Arc::clone(&shared.window))?;
    let log = match &settings.op_log {
        Some(path) => {
            let log = OpLog::create(path, (*names).clone(), clock.now(), false);
            Some(log.map_err(|source| RunError::Output { path: path.clone(), source })?)
        }
        None => None,
    };
    let steps = Steps {
        warm_up: match settings.warm_up {
            WarmUp::Auto { at_most } => SteadyState::sub_interval(at_most),
            _ => settings.interval.min(Duration::from_secs(1)),
        },
        measure: settings.interval,
    };
    let roles = roles(machines, &lanes)?;

    let (reports, inbox) = mpsc::channel();
    std::thread::scope(|scope| {
        let mut empties = Vec::new();
        let mut goes = Vec::new();
        let mut threads = Vec::new();
        for (index, role) in roles.into_iter().enumerate() {
            let (empty, empty_inbox) = mpsc::channel();
            (0..BLOCKS).for_each(|_| drop(empty.send(Box::new(Block::new(index)))));
            let (go, go_inbox) = mpsc::channel();
            let slot = CoreSlot {
                index,
                cores,
                cpu: settings.cores[index],
                lanes: lanes[index],
                buffers: 2 * lanes[index],
                buffer_bytes: settings.max_data_bytes,
            };
            let core = Core {
                slot,
                role,
                settings,
                clock,
                shared: Arc::clone(&shared),
                names: Arc::clone(&names),
                steps,
                log: log.as_ref().map(OpLog::sender),
                reports: reports.clone(),
                empty: empty_inbox,
                go: go_inbox,
            };
            let open = &open;
            let thread = std::thread::Builder::new()
                .name(format!("gpufeed-{index}"))
                .spawn_scoped(scope, move || core.run(open))
                .map_err(|source| RunError::System { what: "start a measuring thread", source });
            match thread {
                Ok(thread) => threads.push(thread),
                Err(error) => {
                    // Cores that wait for their start see that there is none.
                    drop(goes);
                    return Err(error);
                }
            }
            empties.push(empty);
            goes.push(go);
        }
        drop(reports);
        let mut control = Control {
            settings,
            clock,
            watch,
            shared: &shared,
            start: Tick::ZERO,
            steady: None,
            running: cores,
            ended: Vec::new(),
            interrupted: false,
            last_success: (0, Tick::ZERO),
            errors_then: 0,
            gave_up: None,
            p99: None,
            first_error: None,
            first_detail: None,
            validity: Vec::new(),
            machine: (None, None),
        };
        control.wait_for_lanes(&inbox)?;
        control.start(&goes);
        control.watch_over(&inbox, &empties, &mut collector)?;
        let machines: Vec<W> = threads.into_iter().filter_map(|thread| thread.join().ok().flatten()).collect();
        control.finish(machines, collector, log, plan_hash, by_plan)
    })
}

/// One hash for a machine or several: a sum, so that how many cores share the work does not change it.
fn plan_hash<W: Workload>(machines: &[&W]) -> String {
    format!("{:016x}", machines.iter().fold(0_u64, |sum, machine| sum.wrapping_add(machine.plan_hash())))
}

/// Splits `lanes` over `cores`, the first ones getting what is left over.
fn spread(lanes: usize, cores: usize) -> Vec<usize> {
    (0..cores).map(|core| lanes / cores + usize::from(core < lanes % cores)).collect()
}

fn roles<W>(machines: Machines<W>, lanes: &[usize]) -> Result<Vec<Role<W>>, RunError> {
    let cannot = |source| RunError::System { what: "make an eventfd", source };
    match machines {
        Machines::PerCore(machines) => machines
            .into_iter()
            .map(|machine| Ok(Role::Conductor { machine, links: Vec::new(), ringer: Ringer::new().map_err(cannot)? }))
            .collect(),
        Machines::One(machine) => {
            let ringer = Ringer::new().map_err(cannot)?;
            let links = lanes[1..].iter().map(|&lanes| Ok(Arc::new(Link::new(lanes, ringer.clone())?)));
            let links = links.collect::<std::io::Result<Vec<_>>>().map_err(cannot)?;
            let mut roles = vec![Role::Conductor { machine, links: links.clone(), ringer }];
            roles.extend(links.into_iter().map(Role::Outpost));
            Ok(roles)
        }
    }
}

/// The calling thread's part of a run.
struct Control<'a> {
    settings: &'a Settings,
    clock: Clock,
    watch: &'a Watch,
    shared: &'a Shared,
    start: Tick,
    steady: Option<(SteadyState, Tick)>,
    running: usize,
    ended: Vec<Ended>,
    interrupted: bool,
    /// Successes so far, and when that number last grew.
    last_success: (u64, Tick),
    /// Failures at that time.
    errors_then: u64,
    gave_up: Option<(f64, u64)>,
    p99: Option<Duration>,
    first_error: Option<RunError>,
    /// Words about the first kind of failure.
    first_detail: Option<String>,
    validity: Vec<Validity>,
    /// Processor time of the machine at the ends of the window.
    machine: (Option<MachineUse>, Option<MachineUse>),
}

impl Control<'_> {
    fn wait_for_lanes(&self, inbox: &mpsc::Receiver<Report>) -> Result<(), RunError> {
        for _ in 0..self.running {
            match inbox.recv() {
                Ok(Report::Opened(opened)) => opened?,
                Ok(Report::Ended(Err(error))) => return Err(error),
                Ok(_) => {}
                Err(_) => return Err(RunError::Internal("a measuring thread ended before it began".to_owned())),
            }
        }
        Ok(())
    }

    fn start(&mut self, goes: &[mpsc::Sender<Tick>]) {
        // A moment ahead, so that every core is there when it comes.
        let start = self.clock.now() + Duration::from_millis(1);
        self.start = start;
        self.last_success.1 = start;
        match self.settings.warm_up {
            WarmUp::None => self.open_window(start),
            WarmUp::Fixed(length) => self.open_window(start + length),
            WarmUp::Auto { at_most } => self.steady = Some((SteadyState::default(), start + at_most)),
        }
        // A core that is gone has said why.
        for go in goes {
            let _ = go.send(start);
        }
    }

    fn open_window(&self, from: Tick) {
        self.shared.window.open_at(from);
        if let Some(length) = self.settings.duration {
            self.shared.window.close_at(from + length);
        }
    }

    /// Collects what the cores hand over until all have ended.
    fn watch_over(
        &mut self,
        inbox: &mpsc::Receiver<Report>,
        empties: &[mpsc::Sender<Box<Block>>],
        collector: &mut Collector,
    ) -> Result<(), RunError> {
        while self.running > 0 {
            match inbox.recv_timeout(LOOK) {
                Ok(Report::Block(mut block)) => {
                    collector.absorb(&mut block);
                    let core = block.core;
                    // A core that has ended needs no more blocks.
                    drop(empties[core].send(block));
                }
                Ok(Report::Ended(ended)) => {
                    self.running -= 1;
                    match ended {
                        Ok(mut ended) => {
                            if let Some(finished) = ended.finished.take() {
                                let mut details = finished.details.values().flatten();
                                self.first_detail = self.first_detail.take().or(details.next().cloned());
                                collector.absorb_last(finished);
                            }
                            self.ended.push(*ended);
                        }
                        Err(error) => {
                            // The first error is the cause; later ones follow from it.
                            let follows =
                                |known: &RunError| matches!(known, RunError::Internal(words) if words == OTHER);
                            if self.first_error.as_ref().is_none_or(follows) {
                                self.first_error = Some(error);
                            }
                            self.shared.closing.store(true, Relaxed);
                        }
                    }
                }
                Ok(Report::Opened(_)) | Err(mpsc::RecvTimeoutError::Timeout) => {}
                Err(mpsc::RecvTimeoutError::Disconnected) => {
                    let words = "a measuring thread ended without a word";
                    return Err(self.first_error.take().unwrap_or_else(|| RunError::Internal(words.to_owned())));
                }
            }
            while let Some(summary) = collector.summary() {
                self.p99 = summary.p99.or(self.p99);
                if let Some((state, _)) = self.steady.as_mut().filter(|_| summary.phase == Phase::WarmUp)
                    && state.add(summary.bytes.max(summary.ops) as f64)
                {
                    self.end_warm_up(true);
                }
            }
            self.look();
        }
        self.first_error.take().map_or(Ok(()), Err)
    }

    fn end_warm_up(&mut self, steady: bool) {
        if self.steady.take().is_some() {
            // Every core hands over once in a sub-interval, and looks at the window with every beat.
            let from = self.clock.now() + AHEAD;
            self.open_window(from);
            self.validity.push(steady_state(steady, from.since(self.start)));
        }
    }

    /// Looks after cancellation, a dead target, the bound of the warm-up, and the progress bar.
    fn look(&mut self) {
        let now = self.clock.now();
        let window = &self.shared.window;
        let (mut ops, mut bytes, mut errors, mut progress) = (0, 0, 0, Vec::new());
        for meter in &self.shared.meters {
            let (o, b, e, p) = meter.read();
            ops += o;
            bytes += b;
            errors += e;
            progress.extend(p);
        }
        if ops > self.last_success.0 {
            self.last_success = (ops, now);
            self.errors_then = errors;
        }
        let silence = now.since(self.last_success.1);
        let hopeless = errors.saturating_sub(self.errors_then) >= HOPELESS && silence >= self.settings.give_up;
        if !self.interrupted && (hopeless || self.watch.cancelled()) && now < window.to() {
            self.interrupted = true;
            if hopeless {
                self.gave_up = Some((silence.as_secs_f64(), errors));
            }
            window.close_at(now + AHEAD);
        }
        if self.steady.as_ref().is_some_and(|&(_, end)| now + AHEAD >= end) {
            self.end_warm_up(false);
        }
        if self.machine.0.is_none() && now >= window.from() {
            self.machine.0 = MachineUse::now();
        }
        if self.machine.1.is_none() && now >= window.to() {
            self.machine.1 = MachineUse::now();
        }
        let shares = progress.len().max(1) as f64;
        self.watch.show(&Progress {
            phase: window.phase(now),
            elapsed: now.since(self.start),
            ops,
            bytes,
            errors,
            p99: self.p99,
            done_ratio: (!progress.is_empty()).then(|| progress.iter().sum::<f64>() / shares),
        });
    }

    fn finish<W>(
        mut self,
        machines: Vec<W>,
        collector: Collector,
        log: Option<OpLog>,
        plan_hash: String,
        by_plan: bool,
    ) -> Result<Measured<W>, RunError> {
        let window = &self.shared.window;
        let now = self.clock.now();
        // Machines that all ended by themselves end the window with the last of them.
        let ends: Vec<Option<Tick>> = self.ended.iter().map(|ended| ended.end).collect();
        let conductors = machines.len();
        let own: Vec<Tick> = ends.into_iter().flatten().collect();
        let end = if own.len() == conductors { own.iter().copied().max().unwrap_or(now) } else { now };
        let end = end.min(window.to());
        let from = window.from().min(end);
        self.validity.extend(self.checks(from, end));
        let cpu = self.cpu();
        let recorded = collector.finish((from, end), self.settings);
        if let Some(log) = log {
            self.validity.extend(log_check(log));
        }
        self.validity.extend(recorded.validity);
        let progress = self.watch.progress();
        self.watch.show(&Progress { phase: Phase::Over, ..progress });
        if let Some((waited_s, failed)) = self.gave_up {
            let detail = self.first_detail.take().unwrap_or_else(|| "no words".to_owned());
            if self.last_success.0 == 0 {
                return Err(RunError::Dead { waited_s, failed, detail });
            }
            let words = format!(
                "the target stopped answering: nothing but errors for {waited_s:.0} s ({detail}); results are partial"
            );
            self.validity.push(Validity::new("target", ValidityStatus::Fail, words));
        }
        Ok(Measured {
            machines,
            window: (from, end),
            warm_up: from.since(self.start),
            operations: recorded.operations,
            series: recorded.series,
            histograms: recorded.histograms,
            cpu,
            slip: recorded.slip,
            plan_hash,
            issued_hash: by_plan.then(|| format!("{:016x}", recorded.issued)),
            interrupted: self.interrupted,
            errors: recorded.errors,
            validity: self.validity,
        })
    }

    fn checks(&self, from: Tick, end: Tick) -> Vec<Validity> {
        let mut checks = Vec::new();
        if end <= from {
            let detail = "the work was over before warm-up was: nothing was measured";
            checks.push(Validity::new("window", ValidityStatus::Fail, detail));
        }
        if self.ended.iter().any(|ended| ended.stuck) {
            checks.push(stuck());
        }
        let verified: u64 = self.ended.iter().map(|ended| ended.verified).sum();
        if verified > 0 {
            let detail = format!("{verified} reads were checked against what was written");
            checks.push(Validity::new("verification", ValidityStatus::Ok, detail));
        }
        let starved: u64 = self.ended.iter().map(|ended| ended.starved).sum();
        if starved > 0 {
            let detail = format!(
                "{starved} operations found no free buffer: their bytes were not checked or were made while sending"
            );
            checks.push(Validity::new("buffers", ValidityStatus::Warn, detail));
        }
        checks
    }

    fn cpu(&self) -> Option<CpuUse> {
        let used: Vec<(f64, Option<f64>)> = self
            .ended
            .iter()
            .filter_map(|ended| Some(ended.usage.last.as_ref()?.since(ended.usage.first.as_ref()?)))
            .collect();
        if used.is_empty() {
            return None;
        }
        let n = used.len() as f64;
        let waits: Vec<f64> = used.iter().filter_map(|(_, wait)| *wait).collect();
        let machine = self.machine.0.zip(self.machine.1.or_else(MachineUse::now));
        Some(CpuUse {
            cores: u32::try_from(used.len()).unwrap_or(u32::MAX),
            cpu_ratio: used.iter().map(|(cpu, _)| cpu).sum::<f64>() / n,
            busiest_cpu_ratio: used.iter().map(|(cpu, _)| *cpu).fold(0.0, f64::max),
            run_wait_ratio: (waits.len() == used.len()).then(|| waits.iter().sum::<f64>() / n),
            steal_ratio: machine.and_then(|(first, last)| last.steal_since(&first)),
            peak_memory_bytes: cpu::peak_memory_bytes(),
        })
    }
}
