//! A driver for tests: virtual time, unlimited lanes, each operation ends when a closure says so.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use crate::machine::{Actions, Event, Machine, Submit};
use crate::op::{Carrier, ErrorKind, Outcome, Tick};

/// What happens at a tick; in the order of the fields where ticks are equal.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Next {
    Measure,
    Done(usize),
    Due(Tick, u64),
    Stop,
}

/// Drives `machine` from `start` until it is finished or nothing is left, with `Measure` and `Stop` at the ticks given.
/// `serve` says how long an operation takes and how it ends. Returns all submits and the last tick.
pub(crate) fn drive<M: Machine>(
    machine: &mut M,
    start: Tick,
    measure: Option<Tick>,
    stop: Option<Tick>,
    serve: impl FnMut(&Submit) -> (Duration, Result<(), ErrorKind>),
) -> (Vec<Submit>, Tick) {
    drive_late(machine, start, measure, stop, serve, |_| Duration::ZERO)
}

/// [`drive`], with event number n told so much later than it happened, as a busy machine would.
pub(crate) fn drive_late<M: Machine>(
    machine: &mut M,
    start: Tick,
    measure: Option<Tick>,
    stop: Option<Tick>,
    mut serve: impl FnMut(&Submit) -> (Duration, Result<(), ErrorKind>),
    late: impl Fn(u64) -> Duration,
) -> (Vec<Submit>, Tick) {
    let mut out = Actions::default();
    let mut heap = BinaryHeap::new();
    let mut submits: Vec<(Submit, Tick, Result<(), ErrorKind>)> = Vec::new();
    let mut order = 0u64;
    heap.extend(measure.map(|at| Reverse((at, 0, Next::Measure))));
    heap.extend(stop.map(|at| Reverse((at, u64::MAX, Next::Stop))));
    let mut now = start;
    machine.step(now, Event::Start, &mut out);
    loop {
        for submit in out.drain_submits() {
            assert!(submit.intended <= now, "an intended start in the future");
            let (takes, result) = serve(&submit);
            order += 1;
            let done = submit.intended.max(start) + takes;
            heap.push(Reverse((done.max(now) + late(order), order, Next::Done(submits.len()))));
            submits.push((submit, done, result));
        }
        for (at, tag) in out.drain_wakes() {
            order += 1;
            heap.push(Reverse((at.max(now) + late(order), order, Next::Due(at, tag))));
        }
        if out.finished() {
            break;
        }
        let Some(Reverse((at, _, next))) = heap.pop() else { break };
        now = at;
        match next {
            Next::Measure => machine.step(now, Event::Measure, &mut out),
            Next::Stop => machine.step(now, Event::Stop, &mut out),
            Next::Due(at, tag) => machine.step(now, Event::Due { at, tag }, &mut out),
            Next::Done(i) => {
                let (submit, done, result) = submits[i];
                let outcome = Outcome {
                    intended: submit.intended,
                    sent: submit.intended,
                    first_byte: done,
                    done,
                    carrier: Carrier::Null,
                    bytes: submit.op.bytes,
                    attempts: 1,
                    result,
                };
                machine.step(now, Event::Done { tag: submit.tag, op: &submit.op, outcome: &outcome }, &mut out);
            }
        }
    }
    (submits.into_iter().map(|(submit, ..)| submit).collect(), now)
}
