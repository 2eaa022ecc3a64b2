//! One measuring thread: a single-threaded runtime with a transport, its lanes, and a desk.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc;

use futures_util::{StreamExt, stream};
use gpufeed_io::bell::{Ringer, bell};
use gpufeed_workloads::machine::Workload;
use gpufeed_workloads::op::{ErrorKind, Names, Tick};
use tokio::runtime::{Builder, LocalOptions};
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

use super::desk::{Conductor, Desk, Link, Outpost};
use super::shared::{Ended, Report, Shared};
use super::station::{ByChannel, Station, beat};
use super::{CoreSlot, OTHER};
use crate::brain::Brain;
use crate::cpu;
use crate::measured::RunError;
use crate::payload::Cargo;
use crate::record::{Block, Recorder, Steps, op_log};
use crate::settings::Settings;
use crate::transport::{Clock, OpError, Transport};

/// Connections opened at the same time by one core.
const OPENING: usize = 32;

/// What a core does besides driving lanes.
pub(super) enum Role<W> {
    /// Runs a machine; `links` lead to other cores' lanes and `ringer` is rung by them.
    Conductor { machine: W, links: Vec<Arc<Link>>, ringer: Ringer },
    /// Performs what a conductor sends.
    Outpost(Arc<Link>),
}

/// Everything a core needs.
pub(super) struct Core<'a, W> {
    pub(super) slot: CoreSlot,
    pub(super) role: Role<W>,
    pub(super) settings: &'a Settings,
    pub(super) clock: Clock,
    pub(super) shared: Arc<Shared>,
    pub(super) names: Arc<Names>,
    pub(super) steps: Steps,
    pub(super) log: Option<op_log::Sender>,
    pub(super) reports: mpsc::Sender<Report>,
    pub(super) empty: mpsc::Receiver<Box<Block>>,
    /// When the run starts, or nothing if it does not.
    pub(super) go: mpsc::Receiver<Tick>,
}

fn system(what: &'static str) -> impl Fn(std::io::Error) -> RunError {
    move |source| RunError::System { what, source }
}

impl<W: Workload + 'static> Core<'_, W> {
    /// Runs the core to its end; gives the machine back where it had one. Reports everything else.
    pub(super) fn run<T: Transport>(self, open: &(impl Fn(CoreSlot, Clock) -> Result<T, OpError> + Sync)) -> Option<W> {
        let reports = self.reports.clone();
        let shared = Arc::clone(&self.shared);
        let mut ended = match self.run_in_runtime(open) {
            Ok(Some((ended, machine))) => (Ok(ended), machine),
            // The run did not begin, because of another core.
            Ok(None) => return None,
            Err(error) => (Err(error), None),
        };
        if ended.0.is_err() {
            shared.fatal.store(true, Relaxed);
        }
        let machine = ended.1.take();
        // The control thread waits for this report.
        let _ = reports.send(Report::Ended(ended.0.map(Box::new)));
        machine
    }

    fn run_in_runtime<T: Transport>(
        self,
        open: &(impl Fn(CoreSlot, Clock) -> Result<T, OpError> + Sync),
    ) -> Result<Option<(Ended, Option<W>)>, RunError> {
        if let Some(cpu) = self.slot.cpu {
            cpu::pin(cpu).map_err(system("pin a measuring thread to its processor"))?;
        }
        let runtime = Builder::new_current_thread()
            .enable_all()
            .build_local(LocalOptions::default())
            .map_err(system("start a runtime"))?;
        let ended = runtime.block_on(self.main(open));
        // Whatever a transport left on blocking threads must not hold up the end.
        runtime.shutdown_background();
        ended
    }

    async fn main<T: Transport>(
        self,
        open: &(impl Fn(CoreSlot, Clock) -> Result<T, OpError> + Sync),
    ) -> Result<Option<(Ended, Option<W>)>, RunError> {
        let mut tasks = JoinSet::new();
        let opened = self.open(open, &mut tasks).await;
        let (transport, lanes) = match opened {
            Ok(opened) => {
                let _ = self.reports.send(Report::Opened(Ok(())));
                opened
            }
            Err(error) => {
                let _ = self.reports.send(Report::Opened(Err(RunError::Open(error))));
                return Ok(None);
            }
        };
        // Nothing else runs on this core until the start is known.
        let Ok(start) = self.go.recv() else { return Ok(None) };

        let Core { slot, role, settings, clock, shared, names, steps, log, reports, empty, .. } = self;
        let exchange = ByChannel { full: reports, empty };
        let second_from = settings.second.as_ref().map(|second| second.from_space);
        let recorder =
            Recorder::new(slot.index, start, steps, Arc::clone(&shared.window), exchange, log).split(second_from);
        let cargo = Cargo::new(names, transport.arena().clone(), settings, slot.index);
        let patience = (settings.op_timeout, settings.retries);
        let carriers = (second_from, [transport.carrier(), transport.second_carrier()]);
        let shared_again = Arc::clone(&shared);
        let station =
            Rc::new(Station::new(slot.index, clock, recorder, shared, cargo, lanes.len(), patience, carriers));
        let shared = shared_again;
        let mut beats = tokio::time::interval(beat(settings.op_timeout));
        beats.set_missed_tick_behavior(MissedTickBehavior::Delay);

        let (machine, end, stuck) = match role {
            Role::Conductor { machine, links, ringer } => {
                let brain = Brain::new(machine, start, Arc::clone(&shared.window), settings.drain);
                let desk = Conductor::new(brain, lanes.len(), clock, links, Arc::clone(&shared));
                let desk = Rc::new(desk.map_err(system("make a timer"))?);
                spawn_lanes(&mut tasks, &station, &desk, lanes);
                let (this, at) = (Rc::clone(&desk), Rc::clone(&station));
                tasks.spawn_local(async move { this.keep_time(&at).await.map_err(system("wait for a timer")) });
                let hung = bell(&ringer).map_err(system("make an eventfd"))?;
                let (this, at) = (Rc::clone(&desk), Rc::clone(&station));
                tasks.spawn_local(async move {
                    loop {
                        this.collect(&at);
                        hung.sleep(|| this.nothing_to_collect()).await.map_err(system("wait for an eventfd"))?;
                    }
                });
                let mut ended = loop {
                    tokio::select! {
                        () = desk.over() => break Ok(()),
                        Some(task) = tasks.join_next() => if let Err(error) = failed(task) { break Err(error) },
                        _ = beats.tick() => {
                            station.on_beat(desk.in_flight(), desk.progress());
                            desk.turn(&station);
                            if shared.fatal.load(Relaxed) {
                                break Ok(());
                            }
                        }
                    }
                };
                shared.closing.store(true, Relaxed);
                desk.ring_all();
                tasks.shutdown().await;
                if ended.is_ok() && shared.fatal.load(Relaxed) {
                    ended = Err(RunError::Internal(OTHER.to_owned()));
                }
                ended?;
                let brain = Rc::try_unwrap(desk).map_err(|_| left_behind())?.into_brain();
                let (end, stuck) = (brain.end(), brain.stuck());
                (Some(brain.into_machine()), end, stuck)
            }
            Role::Outpost(link) => {
                let desk = Rc::new(Outpost::new(link, Arc::clone(&shared)));
                spawn_lanes(&mut tasks, &station, &desk, lanes);
                let hung = bell(desk.ringer()).map_err(system("make an eventfd"))?;
                let this = Rc::clone(&desk);
                let pump = async move {
                    while !this.closing() {
                        this.hand_out();
                        hung.sleep(|| this.nothing_to_do()).await.map_err(system("wait for an eventfd"))?;
                    }
                    Ok::<(), RunError>(())
                };
                let mut pump = std::pin::pin!(pump);
                loop {
                    tokio::select! {
                        done = &mut pump => { done?; break }
                        Some(task) = tasks.join_next() => failed(task)?,
                        _ = beats.tick() => {
                            station.on_beat(desk.in_flight(), None);
                            if shared.abandoned.load(Relaxed) {
                                station.cancel_all();
                            }
                            if shared.fatal.load(Relaxed) {
                                break;
                            }
                        }
                    }
                }
                tasks.shutdown().await;
                (None, None, false)
            }
        };
        let usage = station.usage();
        let (verified, starved) = station.checks();
        let station = Rc::try_unwrap(station).map_err(|_| left_behind())?;
        let mut recorder = station.recorder.into_inner();
        recorder.in_flight = 0;
        let finished = recorder.finish(clock.now());
        Ok(Some((Ended { finished: Some(finished), usage, verified, starved, end, stuck }, machine)))
    }

    /// Opens the transport and its lanes.
    async fn open<T: Transport>(
        &self,
        open: &(impl Fn(CoreSlot, Clock) -> Result<T, OpError> + Sync),
        tasks: &mut JoinSet<Result<(), RunError>>,
    ) -> Result<(Rc<T>, Vec<T::Lane>), OpError> {
        let transport = Rc::new(open(self.slot, self.clock)?);
        let turning = Rc::clone(&transport);
        tasks.spawn_local(async move {
            turning.turn().await;
            Ok(())
        });
        let timeout = self.settings.op_timeout;
        let one = || async {
            tokio::time::timeout(timeout, transport.lane()).await.unwrap_or_else(|_| {
                let words = format!("no connection within {} ms", timeout.as_millis());
                Err(OpError::new(ErrorKind::Timeout, words))
            })
        };
        let mut opening = stream::iter((0..self.slot.lanes).map(|_| one())).buffer_unordered(OPENING);
        let mut lanes = Vec::with_capacity(self.slot.lanes);
        while let Some(lane) = opening.next().await {
            lanes.push(lane?);
        }
        drop(opening);
        Ok((transport, lanes))
    }
}

fn spawn_lanes<L: crate::transport::Lane + 'static, D: Desk>(
    tasks: &mut JoinSet<Result<(), RunError>>,
    station: &Rc<Station>,
    desk: &Rc<D>,
    lanes: Vec<L>,
) {
    for (index, lane) in lanes.into_iter().enumerate() {
        let work = Rc::clone(station).work(Rc::clone(desk), lane, index);
        tasks.spawn_local(async move {
            work.await;
            Ok(())
        });
    }
}

fn failed(task: Result<Result<(), RunError>, tokio::task::JoinError>) -> Result<(), RunError> {
    match task {
        Ok(result) => result,
        Err(error) => {
            let words = error.try_into_panic().map_or_else(
                |_| "a task was cancelled".to_owned(),
                |panic| {
                    let text = panic.downcast_ref::<String>().map(String::as_str);
                    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("a panic").to_owned()
                },
            );
            Err(RunError::Internal(words))
        }
    }
}

fn left_behind() -> RunError {
    RunError::Internal("a task outlived its core".to_owned())
}
