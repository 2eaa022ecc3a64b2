//! What the lanes of one core share: the transport, the recorder, payloads, time-outs.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc;
use std::task::{Poll, Waker};
use std::time::Duration;

use gpufeed_workloads::machine::Submit;
use gpufeed_workloads::op::{Carrier, ErrorKind, Op, Outcome, Tick, Verb};

use super::desk::Desk;
use super::shared::{Report, Shared};
use super::worth_another;
use crate::cpu::ThreadUse;
use crate::payload::Cargo;
use crate::record::{Block, Exchange, Recorder};
use crate::transport::{Clock, Done, Lane};

/// Operations that complete without waiting before a lane lets the others have a turn.
const INLINE: u32 = 64;
/// Longest pause after a broken connection, doubling from [`FIRST_PAUSE`].
const LONGEST_PAUSE: Duration = Duration::from_millis(256);
const FIRST_PAUSE: Duration = Duration::from_millis(1);

/// Exchanges blocks with the collector's thread.
pub(super) struct ByChannel {
    pub(super) full: mpsc::Sender<Report>,
    pub(super) empty: mpsc::Receiver<Box<Block>>,
}

impl Exchange for ByChannel {
    fn exchange(&mut self, block: &mut Box<Block>) -> bool {
        let Ok(empty) = self.empty.try_recv() else { return false };
        // The collector outlives the cores.
        let _ = self.full.send(Report::Block(std::mem::replace(block, empty)));
        true
    }
}

/// Why a call was given up.
#[derive(Debug, Clone, Copy)]
enum GivenUp {
    Timeout,
    Cancelled,
}

/// One lane as its core sees it.
#[derive(Default)]
struct Slot {
    /// Beat at which its call began; `None` while it has none.
    since: Cell<Option<u64>>,
    given_up: Cell<Option<GivenUp>>,
    waker: RefCell<Option<Waker>>,
}

/// What the lanes of one core share.
pub(super) struct Station {
    pub(super) clock: Clock,
    pub(super) recorder: RefCell<Recorder<ByChannel>>,
    pub(super) shared: Arc<Shared>,
    pub(super) core: usize,
    cargo: RefCell<Cargo>,
    slots: Vec<Slot>,
    beats: Cell<u64>,
    patience: u64,
    op_timeout: Duration,
    retries: u32,
    /// How payloads travel, as far as known: to the first target, and to the second.
    carriers: [Cell<Option<Carrier>>; 2],
    /// First key space of the second.
    second_from: u16,
    cancelling: Cell<bool>,
    usage: RefCell<Usage>,
    /// What the thread had used when it began.
    born: ThreadUse,
}

/// What the thread used at the ends of the window.
#[derive(Default, Clone)]
pub(super) struct Usage {
    pub(super) first: Option<ThreadUse>,
    pub(super) last: Option<ThreadUse>,
}

/// How often time-outs and the window are looked at: a twentieth of the time-out, at least every 10 ms.
pub(super) fn beat(op_timeout: Duration) -> Duration {
    (op_timeout / 20).clamp(Duration::from_millis(1), Duration::from_millis(10))
}

impl Station {
    #[allow(clippy::too_many_arguments)]
    pub(super) fn new(
        core: usize,
        clock: Clock,
        recorder: Recorder<ByChannel>,
        shared: Arc<Shared>,
        cargo: Cargo,
        lanes: usize,
        (op_timeout, retries): (Duration, u32),
        (second_from, carriers): (Option<u16>, [Option<Carrier>; 2]),
    ) -> Self {
        let patience = op_timeout.as_nanos().div_ceil(beat(op_timeout).as_nanos().max(1)) + 1;
        Self {
            clock,
            recorder: RefCell::new(recorder),
            shared,
            core,
            cargo: RefCell::new(cargo),
            slots: (0..lanes).map(|_| Slot::default()).collect(),
            beats: Cell::new(0),
            patience: u64::try_from(patience).unwrap_or(u64::MAX),
            op_timeout,
            retries,
            carriers: carriers.map(Cell::new),
            second_from: second_from.unwrap_or(u16::MAX),
            cancelling: Cell::new(false),
            usage: RefCell::default(),
            born: ThreadUse::now(),
        }
    }

    /// Ends calls that take too long, hands over intervals of idle cores, takes the thread's CPU use at the window's
    /// ends, and tells the control thread how far this core is.
    pub(super) fn on_beat(&self, in_flight: u64, progress: Option<f64>) {
        let beat = self.beats.get() + 1;
        self.beats.set(beat);
        for slot in &self.slots {
            if slot.since.get().is_some_and(|since| beat - since >= self.patience) {
                slot.give_up(GivenUp::Timeout);
            }
        }
        let now = self.clock.now();
        let mut recorder = self.recorder.borrow_mut();
        recorder.in_flight = in_flight;
        recorder.turn(now);
        self.shared.meters[self.core].show(recorder.ops, recorder.bytes, recorder.errors, progress);
        let mut usage = self.usage.borrow_mut();
        if usage.first.is_none() && now >= self.shared.window.from() {
            usage.first = Some(ThreadUse::now());
        }
        if usage.last.is_none() && now >= self.shared.window.to() {
            usage.last = Some(ThreadUse::now());
        }
    }

    /// What the thread used in the window, up to now where it has not ended.
    pub(super) fn usage(&self) -> Usage {
        let mut usage = self.usage.borrow().clone();
        if usage.first.is_none() && self.clock.now() >= self.shared.window.from() {
            // Over before the first beat: what came before the window was short too.
            usage.first = Some(self.born);
        }
        if usage.first.is_some() && usage.last.is_none() {
            usage.last = Some(ThreadUse::now());
        }
        usage
    }

    /// Gives up all calls, and every call made later.
    pub(super) fn cancel_all(&self) {
        if !self.cancelling.replace(true) {
            self.slots
                .iter()
                .filter(|slot| slot.since.get().is_some())
                .for_each(|slot| slot.give_up(GivenUp::Cancelled));
        }
    }

    pub(super) fn cancelling(&self) -> bool {
        self.cancelling.get()
    }

    /// An operation that never got a lane.
    pub(super) fn cancelled(&self, submit: &Submit) -> Outcome {
        let now = self.clock.now();
        let times = (now, now, now);
        let outcome = self.outcome(&submit.op, submit.intended, times, 0, 0, Err(ErrorKind::Cancelled));
        self.recorder.borrow_mut().record(submit, &outcome);
        outcome
    }

    /// Verified reads and operations that found no buffer.
    pub(super) fn checks(&self) -> (u64, u64) {
        let cargo = self.cargo.borrow();
        (cargo.verified, cargo.starved)
    }

    /// How payloads of the target that `op` goes to travel.
    fn carrier(&self, op: &Op) -> &Cell<Option<Carrier>> {
        &self.carriers[usize::from(op.key.space >= self.second_from)]
    }

    fn outcome(
        &self,
        op: &Op,
        intended: Tick,
        (sent, first_byte, done): (Tick, Tick, Tick),
        bytes: u64,
        attempts: u32,
        result: Result<(), ErrorKind>,
    ) -> Outcome {
        // Until something answered, nobody knows how it would have travelled.
        let carrier = self.carrier(op).get().unwrap_or(Carrier::Null);
        Outcome { intended, sent, first_byte, done, carrier, bytes, attempts, result }
    }

    /// Performs operations of `desk` one after the other, for as long as it is polled.
    pub(super) async fn work<L: Lane, D: Desk>(self: Rc<Self>, desk: Rc<D>, mut lane: L, index: usize) {
        let mut inline = 0;
        let mut pause = FIRST_PAUSE;
        loop {
            let mut waited = false;
            let submit = poll_fn(|context| {
                let next = desk.poll_next(index, context);
                waited |= next.is_pending();
                next
            })
            .await;
            let (outcome, now) = self.perform(&mut lane, index, &submit).await;
            let broken = matches!(outcome.result, Err(ErrorKind::Connect));
            self.recorder.borrow_mut().record(&submit, &outcome);
            // A lane that is about to pause leaves what is ready to the others.
            desk.done(&self, now, &submit, &outcome, !broken);
            inline = if waited { 0 } else { inline + 1 };
            if inline >= INLINE {
                inline = 0;
                tokio::task::yield_now().await;
            }
            if broken && !self.cancelling() {
                // A dead target must not turn this core into a loop of refused connections.
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            } else {
                pause = FIRST_PAUSE;
            }
        }
    }

    /// One operation with all its attempts; what happened, and the time after it.
    async fn perform<L: Lane>(&self, lane: &mut L, index: usize, submit: &Submit) -> (Outcome, Tick) {
        let op = &submit.op;
        self.recorder.borrow_mut().issue(op);
        let mut intended = submit.intended;
        let mut first_sent = None;
        let mut attempts = 0;
        loop {
            let before = if op.verb.writes() { self.clock.now() } else { Tick::ZERO };
            let mut load = self.cargo.borrow_mut().load(op);
            if load.made {
                // An application has its bytes at hand: making them is no part of any time. What waits because this
                // core was busy making them does wait, and shows.
                intended = intended + self.clock.now().since(before);
            }
            attempts += 1;
            let called = self.call(lane, index, submit, &mut load.data).await;
            let done = match called {
                Ok(done) => done,
                Err(given_up) => self.give_up(op, given_up, intended),
            };
            attempts += done.attempts.saturating_sub(1);
            let mut now = done.done;
            let sent = *first_sent.get_or_insert(done.sent);
            let mut result = match done.result {
                Ok(()) if op.verb == Verb::Get && done.bytes != op.bytes => {
                    let words = format!("get of {} bytes answered {}", op.bytes, done.bytes);
                    self.recorder.borrow_mut().describe(ErrorKind::ShortBody, &words);
                    Err(ErrorKind::ShortBody)
                }
                Ok(()) => Ok(()),
                Err(error) => {
                    if !op.is_answered_by(Err(error.kind)) {
                        self.recorder.borrow_mut().describe(error.kind, &error.detail);
                    }
                    now = now.max(self.clock.now());
                    Err(error.kind)
                }
            };
            if result.is_ok() {
                self.carrier(op).set(Some(done.carrier));
                if load.check {
                    if let Err(words) = self.cargo.borrow_mut().check(op, &load.data) {
                        self.recorder.borrow_mut().describe(ErrorKind::Corrupt, &words);
                        result = Err(ErrorKind::Corrupt);
                    }
                    now = self.clock.now();
                }
            }
            let again = result.is_err_and(worth_another) && attempts <= self.retries && !self.cancelling();
            if !again {
                let carrier = if op.is_answered_by(result) { Some(done.carrier) } else { self.carrier(op).get() };
                let times = (sent, done.first_byte.max(sent), done.done.max(sent));
                let mut outcome = self.outcome(op, intended, times, done.bytes, attempts, result);
                outcome.carrier = carrier.unwrap_or(done.carrier);
                return (outcome, now);
            }
        }
    }

    async fn call<L: Lane>(
        &self,
        lane: &mut L,
        index: usize,
        submit: &Submit,
        data: &mut crate::transport::Data,
    ) -> Result<Done, GivenUp> {
        if self.cancelling() {
            return Err(GivenUp::Cancelled);
        }
        let slot = &self.slots[index];
        slot.since.set(Some(self.beats.get()));
        let mut call = pin!(lane.call(&submit.op, data));
        let done = poll_fn(|context| {
            if let Poll::Ready(done) = call.as_mut().poll(context) {
                return Poll::Ready(Ok(done));
            }
            if let Some(why) = slot.given_up.take() {
                return Poll::Ready(Err(why));
            }
            let mut waker = slot.waker.borrow_mut();
            if !waker.as_ref().is_some_and(|known| known.will_wake(context.waker())) {
                *waker = Some(context.waker().clone());
            }
            Poll::Pending
        })
        .await;
        slot.since.set(None);
        slot.given_up.set(None);
        done
    }

    fn give_up(&self, op: &Op, why: GivenUp, intended: Tick) -> Done {
        let now = self.clock.now();
        let (kind, words, began) = match why {
            GivenUp::Timeout => {
                let words = format!("no answer within {} ms", self.op_timeout.as_millis());
                (ErrorKind::Timeout, words, Tick(now.0.saturating_sub(nanos(self.op_timeout))))
            }
            GivenUp::Cancelled => (ErrorKind::Cancelled, "given up at the end of the drain".to_owned(), now),
        };
        let sent = began.max(intended).min(now);
        let carrier = self.carrier(op).get().unwrap_or(Carrier::Null);
        let result = Err(crate::transport::OpError::new(kind, words));
        Done { sent, first_byte: now, done: now, carrier, bytes: 0, attempts: 1, result }
    }
}

fn nanos(duration: Duration) -> u64 {
    crate::record::histogram::nanos(duration)
}

impl Slot {
    fn give_up(&self, why: GivenUp) {
        self.given_up.set(Some(why));
        if let Some(waker) = self.waker.borrow_mut().take() {
            waker.wake();
        }
    }
}
