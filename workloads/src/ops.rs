//! Plain load, as in warp or fio: any mix of operations, sizes and popularities, in a closed or an open loop.
//!
//! Load is made of clients. What a client does depends on its number and the seed alone: not on timing, not on other
//! clients, not on how many cores share the clients out. Errors are the one exception: what could not be written will
//! not be deleted either.

mod client;
mod sizes;
mod spec;

use std::time::Duration;

use gpufeed_schema::{ClosedOrOpen, Section};

pub use sizes::{SizeError, SizeSpec};
pub use spec::{Mix, MixError, OpsError, OpsSpec, Popularity, PopularityError};

use crate::machine::{Actions, Dataset, Event, Machine, Submit, Workload};
use crate::op::{ErrorKind, Names, Op, Tick};
use crate::random::{mix, mix2};
use crate::schedule::Schedule;
use client::{Client, Draw};

/// Logical operations of each stream that the plan hash covers.
const HASHED: u64 = 65_536;
/// Of all streams together, so that a load of thousands of clients is hashed in a fraction of a second.
const HASHED_IN_ALL: u64 = 1 << 22;
/// Pause of a closed-loop client whose target is not there, doubled with each further failure up to
/// [`LONGEST_PAUSE`]: a dead target is not hammered, and its errors stay countable.
const PAUSE: Duration = Duration::from_millis(10);
/// The longest such pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// The clients of one core.
#[derive(Debug)]
pub struct Ops {
    draw: Draw,
    core: u32,
    cores: u32,
    clients: Vec<Seat>,
    /// Clients that may still start something or have something in flight.
    live: usize,
    quota: u64,
    completed: u64,
    stopped: bool,
}

/// A client with its place in time.
#[derive(Debug)]
struct Seat {
    client: Client,
    schedule: Option<Schedule>,
    /// The next start of an open loop.
    next: Tick,
    in_flight: u32,
    /// It starts nothing more.
    ended: bool,
    /// Failures to connect, one after the other.
    unreachable: u32,
}

impl Ops {
    /// The load of `spec`, shared out over `cores` machines: its clients in turn, and with them the depth or rate, the
    /// count and the keys. There are never more machines than clients.
    ///
    /// # Errors
    /// When `spec` cannot be run, see [`OpsSpec::check`].
    pub fn split(spec: &OpsSpec, cores: usize) -> Result<Vec<Self>, OpsError> {
        spec.check()?;
        let clients = spec.load.clients();
        let cores = u32::try_from(cores).unwrap_or(u32::MAX).clamp(1, clients);
        Ok((0..cores).map(|core| Self::on_core(spec, core, cores)).collect())
    }

    fn on_core(spec: &OpsSpec, core: u32, cores: u32) -> Self {
        let clients: Vec<Seat> = (core..spec.load.clients())
            .step_by(cores as usize)
            .map(|index| Seat {
                client: Client::new(spec, index),
                schedule: None,
                next: Tick::ZERO,
                in_flight: 0,
                ended: false,
                unreachable: 0,
            })
            .collect();
        let quota = clients.iter().fold(0, |sum: u64, seat| sum.saturating_add(seat.client.left));
        let live = clients.len();
        Self { draw: Draw::new(spec.clone()), core, cores, clients, live, quota, completed: 0, stopped: false }
    }

    /// Starts the next operation of a client; `false` when it has none.
    fn start(&mut self, seat: usize, intended: Tick, out: &mut Actions) -> bool {
        let Seat { client, in_flight, .. } = &mut self.clients[seat];
        let Some(op) = client.next(&self.draw) else { return false };
        *in_flight += 1;
        out.submit(Submit { tag: seat as u64, worker: u32::from(client.index), intended, op });
        true
    }

    /// A client starts nothing more.
    fn end(&mut self, seat: usize) {
        let seat = &mut self.clients[seat];
        if !seat.ended {
            seat.ended = true;
            self.live -= usize::from(seat.in_flight == 0);
        }
    }

    /// Closed loop: the next operation, or the end of the client.
    fn follow(&mut self, seat: usize, intended: Tick, out: &mut Actions) {
        if self.stopped || !self.start(seat, intended, out) {
            self.end(seat);
        }
    }

    /// Open loop: everything that is due, and a wake for what is not.
    fn catch_up(&mut self, seat: usize, now: Tick, out: &mut Actions) {
        while self.clients[seat].next <= now {
            let intended = self.clients[seat].next;
            if self.stopped || !self.start(seat, intended, out) {
                self.end(seat);
                return;
            }
            self.advance(seat);
        }
        if self.clients[seat].client.left == 0 {
            self.end(seat);
        } else {
            out.wake(self.clients[seat].next, seat as u64);
        }
    }

    fn advance(&mut self, seat: usize) {
        let seat = &mut self.clients[seat];
        // Schedules of a rate have no end.
        seat.next = seat.schedule.as_mut().and_then(Iterator::next).unwrap_or(Tick(u64::MAX));
    }

    fn done(&mut self, seat_index: usize, op: &Op, at: Tick, result: Result<(), ErrorKind>, out: &mut Actions) {
        self.completed += 1;
        let seat = &mut self.clients[seat_index];
        seat.in_flight -= 1;
        seat.unreachable = if result == Err(ErrorKind::Connect) { seat.unreachable + 1 } else { 0 };
        if result.is_ok() {
            seat.client.succeeded(op, self.draw.spec().new_space());
        }
        if seat.ended {
            self.live -= usize::from(seat.in_flight == 0);
        } else if seat.schedule.is_none() {
            if seat.unreachable > 0 && !self.stopped {
                let pause = PAUSE.saturating_mul(1 << (seat.unreachable - 1).min(10)).min(LONGEST_PAUSE);
                out.wake(at + pause, seat_index as u64);
            } else {
                self.follow(seat_index, at, out);
            }
        }
    }
}

impl Machine for Ops {
    fn step(&mut self, now: Tick, event: Event<'_>, out: &mut Actions) {
        match event {
            Event::Start => {
                for seat in 0..self.clients.len() {
                    let spec = self.draw.spec();
                    let index = u32::from(self.clients[seat].client.index);
                    self.clients[seat].schedule = spec.load.schedule(index, now, spec.seed);
                    if self.clients[seat].schedule.is_some() {
                        self.advance(seat);
                        self.catch_up(seat, now, out);
                    } else {
                        self.follow(seat, now, out);
                    }
                }
            }
            Event::Due { at, tag } => {
                let seat = tag as usize;
                if self.clients[seat].ended {
                    // A wake from before the stop.
                } else if self.clients[seat].schedule.is_some() {
                    self.catch_up(seat, now, out);
                } else {
                    self.follow(seat, at, out);
                }
            }
            // The completion may be told late; the client of a closed loop goes on from the completion itself.
            Event::Done { tag, op, outcome } => self.done(tag as usize, op, outcome.done.min(now), outcome.result, out),
            Event::Measure => {}
            Event::Stop => {
                self.stopped = true;
                (0..self.clients.len()).for_each(|seat| self.end(seat));
            }
        }
        if self.live == 0 {
            out.finish();
        }
    }
}

impl Workload for Ops {
    fn names(&self) -> Names {
        self.draw.spec().names()
    }

    /// This core's share; the shares of all cores together are the whole.
    fn dataset(&self) -> Dataset {
        self.draw.spec().dataset(self.core, self.cores)
    }

    fn lanes(&self) -> usize {
        self.clients.len()
    }

    /// The sum over this core's clients, so that the (wrapping) sum over cores does not depend on their number.
    fn plan_hash(&self) -> u64 {
        let spec = self.draw.spec();
        let each = HASHED.min(HASHED_IN_ALL / u64::from(spec.load.clients()));
        let one = |seat: &Seat| {
            let index = u32::from(seat.client.index);
            let mut client = Client::new(spec, index);
            let mut schedule = spec.load.schedule(index, Tick::ZERO, spec.seed);
            let mut hash = mix(u64::from(index));
            for _ in 0..each {
                let Some(op) = client.next(&self.draw) else { break };
                client.succeeded(&op, spec.new_space());
                let start = schedule.as_mut().and_then(Iterator::next).unwrap_or_default();
                hash = mix2(hash, op_hash(&op) ^ start.0.rotate_left(32));
            }
            hash
        };
        self.clients.iter().map(one).fold(0, u64::wrapping_add)
    }

    /// Where the count bounds the run. An open loop with deletes is out: what there is to delete depends on when writes
    /// end.
    fn issues_by_plan(&self) -> bool {
        let spec = self.draw.spec();
        spec.count.is_some() && (spec.mix.delete == 0 || self.load() == ClosedOrOpen::Closed)
    }

    fn load(&self) -> ClosedOrOpen {
        self.draw.spec().load.as_report()
    }

    fn progress(&self) -> Option<f64> {
        self.draw.spec().count.map(|_| {
            // Clients that run out of objects to delete end early.
            if self.live == 0 { 1.0 } else { self.completed as f64 / self.quota.max(1) as f64 }
        })
    }

    fn section(&self, _: (Tick, Tick)) -> Section {
        Section::None
    }
}

/// Everything that is sent, as one word.
fn op_hash(op: &Op) -> u64 {
    let key = mix2(u64::from(op.key.space) << 32 | u64::from(op.key.rank) << 8 | op.verb as u64, op.key.id);
    mix2(mix2(key ^ op.part_bytes, op.offset), op.bytes ^ u64::from(op.ranged) << 63)
}

#[cfg(test)]
mod tests;
