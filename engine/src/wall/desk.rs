//! Where lanes get their operations: from a machine on the same core, or from a conductor on another.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll, Waker};

use crossbeam_queue::ArrayQueue;
use gpufeed_io::bell::Ringer;
use gpufeed_io::timer::Timer;
use gpufeed_workloads::machine::{Submit, Workload};
use gpufeed_workloads::op::{Outcome, Tick};
use tokio::sync::Notify;

use super::shared::Shared;
use super::station::Station;
use crate::brain::Brain;
use crate::transport::Clock;

/// Where lanes get their operations.
pub(super) trait Desk: 'static {
    /// The next operation for lane `index`.
    fn poll_next(&self, index: usize, context: &mut Context<'_>) -> Poll<Submit>;
    /// An operation is done; `stays` if its lane will ask for the next at once.
    fn done(&self, station: &Station, now: Tick, submit: &Submit, outcome: &Outcome, stays: bool);
}

/// Lanes that wait for work, longest first, so that idle connections take turns.
struct Waiting {
    lanes: RefCell<VecDeque<(usize, Waker)>>,
    /// Which lanes are in that queue.
    queued: RefCell<Vec<bool>>,
    /// Which of them were woken and have not looked yet.
    woken: RefCell<Vec<bool>>,
    woken_count: Cell<usize>,
}

impl Waiting {
    fn new(lanes: usize) -> Self {
        Self {
            lanes: RefCell::new(VecDeque::with_capacity(lanes)),
            queued: RefCell::new(vec![false; lanes]),
            woken: RefCell::new(vec![false; lanes]),
            woken_count: Cell::new(0),
        }
    }

    /// Lane `index` looks for work.
    fn looks(&self, index: usize) {
        if std::mem::take(&mut self.woken.borrow_mut()[index]) {
            self.woken_count.set(self.woken_count.get() - 1);
        }
    }

    fn waits(&self, index: usize, waker: &Waker) {
        // Polled again without having been woken: one task, one waker.
        if !std::mem::replace(&mut self.queued.borrow_mut()[index], true) {
            self.lanes.borrow_mut().push_back((index, waker.clone()));
        }
    }

    fn wake_one(&self) -> bool {
        let Some((index, waker)) = self.lanes.borrow_mut().pop_front() else { return false };
        self.queued.borrow_mut()[index] = false;
        self.woken.borrow_mut()[index] = true;
        self.woken_count.set(self.woken_count.get() + 1);
        waker.wake();
        true
    }

    fn idle(&self) -> usize {
        self.lanes.borrow().len()
    }
}

/// A completion on its way back to the conductor.
pub(super) struct Completion {
    submit: Submit,
    outcome: Outcome,
    now: Tick,
}

/// The queues between a conductor and one other core; each holds as many entries as that core has lanes.
pub(super) struct Link {
    jobs: ArrayQueue<Submit>,
    completions: ArrayQueue<Completion>,
    /// Wakes the other core.
    pub(super) there: Ringer,
    /// Wakes the conductor.
    pub(super) here: Ringer,
    lanes: usize,
}

impl Link {
    pub(super) fn new(lanes: usize, here: Ringer) -> std::io::Result<Self> {
        Ok(Self {
            jobs: ArrayQueue::new(lanes.max(1)),
            completions: ArrayQueue::new(lanes.max(1)),
            there: Ringer::new()?,
            here,
            lanes,
        })
    }
}

/// A machine, the lanes of its core, and links to those of other cores.
pub(super) struct Conductor<W> {
    brain: RefCell<Brain<W>>,
    waiting: Waiting,
    timer: Timer,
    armed: Cell<Tick>,
    clock: Clock,
    links: Vec<(Arc<Link>, Cell<usize>)>,
    over: Notify,
    shared: Arc<Shared>,
}

impl<W: Workload> Conductor<W> {
    pub(super) fn new(
        brain: Brain<W>,
        lanes: usize,
        clock: Clock,
        links: Vec<Arc<Link>>,
        shared: Arc<Shared>,
    ) -> std::io::Result<Self> {
        Ok(Self {
            brain: RefCell::new(brain),
            waiting: Waiting::new(lanes),
            timer: Timer::new()?,
            armed: Cell::new(Tick(u64::MAX)),
            clock,
            links: links
                .into_iter()
                .map(|link| (Cell::new(link.lanes), link))
                .map(|(free, link)| (link, free))
                .collect(),
            over: Notify::new(),
            shared,
        })
    }

    pub(super) fn into_brain(self) -> Brain<W> {
        self.brain.into_inner()
    }

    pub(super) fn in_flight(&self) -> u64 {
        self.brain.borrow().in_flight()
    }

    /// Wakes the other cores, to see that something shared has changed.
    pub(super) fn ring_all(&self) {
        self.links.iter().for_each(|(link, _)| link.there.ring());
    }

    pub(super) fn progress(&self) -> Option<f64> {
        self.brain.borrow().machine().progress()
    }

    /// Waits until the machine is over and nothing is in flight.
    pub(super) async fn over(&self) {
        while !self.brain.borrow().over() {
            self.over.notified().await;
        }
    }

    /// Delivers what is due, forever.
    pub(super) async fn keep_time(&self, station: &Station) -> std::io::Result<()> {
        loop {
            self.turn(station);
            self.timer.expired().await?;
            self.armed.set(Tick(u64::MAX));
        }
    }

    /// Delivers what is due and looks at the window again.
    pub(super) fn turn(&self, station: &Station) {
        self.brain.borrow_mut().turn(self.clock.now());
        self.after(station, 0);
    }

    /// Takes completions from other cores.
    pub(super) fn collect(&self, station: &Station) {
        for (link, free) in &self.links {
            while let Some(Completion { submit, outcome, now }) = link.completions.pop() {
                free.set(free.get() + 1);
                self.brain.borrow_mut().done(now, &submit, &outcome);
            }
        }
        self.after(station, 0);
    }

    pub(super) fn nothing_to_collect(&self) -> bool {
        self.links.iter().all(|(link, _)| link.completions.is_empty())
    }

    /// After every step: hands out work, sets the timer, ends the run. `kept` operations stay for the calling lane.
    fn after(&self, station: &Station, kept: usize) {
        let mut brain = self.brain.borrow_mut();
        if brain.abandoned() {
            self.shared.abandoned.store(true, Relaxed);
            station.cancel_all();
            while let Some(submit) = brain.ready().pop_front() {
                let outcome = station.cancelled(&submit);
                brain.done(outcome.done, &submit, &outcome);
            }
            self.ring_all();
        }
        if brain.over() {
            self.over.notify_one();
            return;
        }
        self.hand_out(&mut brain, kept);
        let deadline = brain.next_deadline();
        if deadline < self.armed.get() && deadline != Tick(u64::MAX) {
            self.armed.set(deadline);
            // Known not to fail for a valid timer; if it did, the beat would still turn every few milliseconds.
            let _ = self.timer.arm(self.clock.instant(deadline));
        }
    }

    fn hand_out(&self, brain: &mut Brain<W>, kept: usize) {
        let ready = brain.ready();
        while ready.len() > self.waiting.woken_count.get() + kept {
            let best = self.links.iter().max_by_key(|(_, free)| free.get()).filter(|(_, free)| free.get() > 0);
            match best {
                Some((link, free)) if free.get() > self.waiting.idle() => {
                    let Some(submit) = ready.pop_front() else { return };
                    free.set(free.get() - 1);
                    // As many entries as lanes, and a lane is free.
                    let _ = link.jobs.push(submit);
                    link.there.ring();
                }
                _ if self.waiting.wake_one() => {}
                _ => return,
            }
        }
    }
}

impl<W: Workload + 'static> Desk for Conductor<W> {
    fn poll_next(&self, index: usize, context: &mut Context<'_>) -> Poll<Submit> {
        self.waiting.looks(index);
        match self.brain.borrow_mut().ready().pop_front() {
            Some(submit) => Poll::Ready(submit),
            None => {
                self.waiting.waits(index, context.waker());
                Poll::Pending
            }
        }
    }

    fn done(&self, station: &Station, now: Tick, submit: &Submit, outcome: &Outcome, stays: bool) {
        {
            let mut brain = self.brain.borrow_mut();
            brain.done(now, submit, outcome);
        }
        self.after(station, usize::from(stays));
    }
}

/// The lanes of a core whose conductor is elsewhere.
pub(super) struct Outpost {
    link: Arc<Link>,
    waiting: Waiting,
    shared: Arc<Shared>,
}

impl Outpost {
    pub(super) fn new(link: Arc<Link>, shared: Arc<Shared>) -> Self {
        Self { waiting: Waiting::new(link.lanes), link, shared }
    }

    pub(super) fn ringer(&self) -> &Ringer {
        &self.link.there
    }

    pub(super) fn closing(&self) -> bool {
        self.shared.closing.load(Relaxed)
    }

    pub(super) fn nothing_to_do(&self) -> bool {
        // Lanes that are busy or pausing look for themselves when they are back.
        let handed_out = self.link.jobs.len() <= self.waiting.woken_count.get() || self.waiting.idle() == 0;
        handed_out && !self.closing()
    }

    pub(super) fn in_flight(&self) -> u64 {
        (self.link.lanes - self.waiting.idle()) as u64
    }

    /// Wakes lanes for the jobs that have arrived.
    pub(super) fn hand_out(&self) {
        while self.link.jobs.len() > self.waiting.woken_count.get() && self.waiting.wake_one() {}
    }
}

impl Desk for Outpost {
    fn poll_next(&self, index: usize, context: &mut Context<'_>) -> Poll<Submit> {
        self.waiting.looks(index);
        match self.link.jobs.pop() {
            Some(submit) => Poll::Ready(submit),
            None => {
                self.waiting.waits(index, context.waker());
                Poll::Pending
            }
        }
    }

    fn done(&self, _station: &Station, now: Tick, submit: &Submit, outcome: &Outcome, _stays: bool) {
        // As many entries as lanes, and the conductor takes one before it sends the lane another.
        let _ = self.link.completions.push(Completion { submit: *submit, outcome: *outcome, now });
        self.link.here.ring();
    }
}
