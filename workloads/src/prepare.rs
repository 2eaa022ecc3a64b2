//! Putting a data set on the target before a run, and taking it away afterwards, with bounded work in flight.
//!
//! Both are machines like any other, so they run under the same drivers and over the same transports as what they
//! prepare for. Nothing they do is measured.

use std::time::Duration;

use gpufeed_schema::{ClosedOrOpen, Section};
use rustc_hash::FxHashSet;

use crate::machine::{Actions, Dataset, Event, Machine, Submit, Workload};
use crate::op::{ErrorKind, Key, Names, Op, Tick, Verb};
use crate::random::mix2;

/// Attempts at one object, the first included.
const ATTEMPTS: u32 = 4;
/// Pause before the second attempt; four times as long before each further one.
const PAUSE: Duration = Duration::from_millis(50);
/// Failed objects after which the rest is not tried: the target is not going to take it.
const GIVE_UP_AFTER: u64 = 16;

/// What is done to every object.
pub trait Task: Send + 'static {
    /// The operation on one object.
    fn op(key: Key, bytes: u64) -> Op;

    /// Whether a failure of this kind means that the work is done all the same.
    fn done_anyway(kind: ErrorKind) -> bool;
}

/// Writing every object.
#[derive(Debug)]
pub enum Write {}

impl Task for Write {
    fn op(key: Key, bytes: u64) -> Op {
        Op::put(key, bytes)
    }

    fn done_anyway(_: ErrorKind) -> bool {
        false
    }
}

/// Removing every object.
#[derive(Debug)]
pub enum Remove {}

impl Task for Remove {
    fn op(key: Key, _: u64) -> Op {
        Op::delete(key)
    }

    fn done_anyway(kind: ErrorKind) -> bool {
        kind == ErrorKind::NotFound
    }
}

/// Writes a data set, a put for each object.
pub type Prepare = Each<Write>;
/// Deletes a data set; objects that are not there are fine.
pub type Cleanup = Each<Remove>;

/// How preparation or clean-up went so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tally {
    /// Objects to treat in all, without those skipped.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Objects done.
    pub done: u64,
    /// Their bytes.
    pub done_bytes: u64,
    /// Objects that were already there.
    pub skipped: u64,
    /// Objects that failed for good.
    pub failed: u64,
    /// The first object that failed for good, and why.
    pub first_failure: Option<(Key, ErrorKind)>,
    /// Whether the rest was not tried because too many failed.
    pub gave_up: bool,
}

#[derive(Debug, Clone, Copy)]
struct Slot {
    key: Key,
    bytes: u64,
    attempts: u32,
}

/// A machine that does one thing to every object of a data set.
pub struct Each<T> {
    names: Names,
    dataset: Dataset,
    skip: FxHashSet<Key>,
    slots: Vec<Slot>,
    /// Position of the next object: run, and object within it.
    run: usize,
    object: u64,
    /// Objects of the data set left to this machine, skipped ones included.
    left: u64,
    busy: usize,
    stopped: bool,
    tally: Tally,
    task: std::marker::PhantomData<T>,
}

impl<T: Task> Each<T> {
    /// Treats all of `dataset`, `depth` objects at a time.
    #[must_use]
    pub fn new(names: Names, dataset: Dataset, depth: usize) -> Self {
        let objects = dataset.count();
        Self::share(names, dataset, depth, FxHashSet::default(), 0..objects)
    }

    /// Splits the work over `cores` machines; together they treat `dataset` without the objects of `skip`, `depth` at a
    /// time in all, and at least one each.
    #[must_use]
    pub fn split(names: &Names, dataset: &Dataset, depth: usize, skip: &FxHashSet<Key>, cores: usize) -> Vec<Self> {
        let objects = dataset.count();
        let cores = cores.clamp(1, usize::try_from(objects).unwrap_or(usize::MAX).max(1));
        let part = |core: usize| u64::try_from(u128::from(objects) * core as u128 / cores as u128).unwrap_or(objects);
        (0..cores)
            .map(|core| {
                let depth = depth / cores + usize::from(core < depth % cores);
                Self::share(names.clone(), dataset.clone(), depth, skip.clone(), part(core)..part(core + 1))
            })
            .collect()
    }

    fn share(
        names: Names,
        dataset: Dataset,
        depth: usize,
        mut skip: FxHashSet<Key>,
        part: std::ops::Range<u64>,
    ) -> Self {
        let left = part.end - part.start;
        let (mut run, mut object) = (0, part.start);
        while run < dataset.runs.len() && object >= dataset.runs[run].count {
            object -= dataset.runs[run].count;
            run += 1;
        }
        let depth = depth.clamp(1, usize::try_from(left).unwrap_or(usize::MAX).max(1));
        let slots = vec![Slot { key: Key::default(), bytes: 0, attempts: 0 }; depth];
        let task = std::marker::PhantomData;
        let mut each = Self {
            names,
            dataset,
            skip: FxHashSet::default(),
            slots,
            run,
            object,
            left,
            busy: 0,
            stopped: false,
            tally: Tally::default(),
            task,
        };
        let mut tally = Tally::default();
        let mut found = FxHashSet::default();
        while let Some((key, bytes)) = each.advance() {
            if skip.remove(&key) {
                tally.skipped += 1;
                found.insert(key);
            } else {
                tally.objects += 1;
                tally.bytes += bytes;
            }
        }
        Self { skip: found, run, object, left, tally, ..each }
    }

    /// How it went so far.
    #[must_use]
    pub const fn tally(&self) -> Tally {
        self.tally
    }

    fn advance(&mut self) -> Option<(Key, u64)> {
        if self.left == 0 {
            return None;
        }
        self.left -= 1;
        while self.dataset.runs.get(self.run)?.count == self.object {
            self.run += 1;
            self.object = 0;
        }
        let object = self.dataset.runs[self.run].object(self.object);
        self.object += 1;
        Some(object)
    }

    fn next_object(&mut self) -> Option<(Key, u64)> {
        if self.stopped || self.tally.gave_up {
            return None;
        }
        loop {
            let (key, bytes) = self.advance()?;
            if self.skip.is_empty() || !self.skip.contains(&key) {
                return Some((key, bytes));
            }
        }
    }

    /// Gives a free slot its next object; `false` when there is none.
    fn refill(&mut self, slot: usize, now: Tick, out: &mut Actions) -> bool {
        let Some((key, bytes)) = self.next_object() else { return false };
        self.slots[slot] = Slot { key, bytes, attempts: 0 };
        self.attempt(slot, now, out);
        true
    }

    fn attempt(&mut self, slot: usize, now: Tick, out: &mut Actions) {
        let Slot { key, bytes, attempts } = &mut self.slots[slot];
        *attempts += 1;
        out.submit(Submit { tag: slot as u64, worker: slot as u32, intended: now, op: T::op(*key, *bytes) });
    }

    fn free(&mut self, slot: usize, now: Tick, out: &mut Actions) {
        if !self.refill(slot, now, out) {
            self.busy -= 1;
        }
    }

    fn fail(&mut self, slot: usize, kind: ErrorKind) {
        self.tally.failed += 1;
        self.tally.first_failure.get_or_insert((self.slots[slot].key, kind));
        self.tally.gave_up |= self.tally.failed >= GIVE_UP_AFTER;
    }
}

/// Whether another attempt may go better.
const fn passes(kind: ErrorKind) -> bool {
    !matches!(
        kind,
        ErrorKind::Denied | ErrorKind::NotFound | ErrorKind::Client | ErrorKind::NoSpace | ErrorKind::Cancelled
    )
}

impl<T: Task> Machine for Each<T> {
    fn step(&mut self, now: Tick, event: Event<'_>, out: &mut Actions) {
        match event {
            Event::Start => {
                for slot in 0..self.slots.len() {
                    if self.refill(slot, now, out) {
                        self.busy += 1;
                    }
                }
            }
            Event::Due { at, tag } => {
                let slot = tag as usize;
                if self.stopped || self.tally.gave_up {
                    self.free(slot, at, out);
                } else {
                    self.attempt(slot, at, out);
                }
            }
            Event::Done { tag, outcome, .. } => {
                let slot = tag as usize;
                let Slot { bytes, attempts, .. } = self.slots[slot];
                match outcome.result {
                    Err(kind) if !T::done_anyway(kind) => {
                        if passes(kind) && attempts < ATTEMPTS && !self.stopped && !self.tally.gave_up {
                            out.wake(now + PAUSE * 4u32.pow(attempts - 1), tag);
                        } else {
                            self.fail(slot, kind);
                            self.free(slot, now, out);
                        }
                    }
                    _ => {
                        self.tally.done += 1;
                        self.tally.done_bytes += bytes;
                        self.free(slot, now, out);
                    }
                }
            }
            Event::Measure => {}
            Event::Stop => self.stopped = true,
        }
        if self.busy == 0 {
            out.finish();
        }
    }
}

impl<T: Task> Workload for Each<T> {
    fn names(&self) -> Names {
        self.names.clone()
    }

    fn dataset(&self) -> Dataset {
        Dataset::default()
    }

    fn lanes(&self) -> usize {
        self.slots.len()
    }

    fn plan_hash(&self) -> u64 {
        self.dataset.objects().take(65_536).fold(T::op(Key::default(), 0).verb as u64, |hash, (key, bytes)| {
            mix2(hash, mix2(mix2(u64::from(key.space), key.id), bytes))
        })
    }

    fn issues_by_plan(&self) -> bool {
        false
    }

    fn load(&self) -> ClosedOrOpen {
        ClosedOrOpen::Closed
    }

    /// By bytes where it writes, by objects where it deletes.
    fn progress(&self) -> Option<f64> {
        let Tally { objects, bytes, done, done_bytes, failed, .. } = self.tally;
        Some(if objects == 0 {
            1.0
        } else if bytes > 0 && T::op(Key::default(), 0).verb == Verb::Put {
            done_bytes as f64 / bytes as f64
        } else {
            (done + failed) as f64 / objects as f64
        })
    }

    fn section(&self, _: (Tick, Tick)) -> Section {
        Section::None
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::machine::{ObjectRun, Sizes};
    use crate::op::{Carrier, Outcome};

    fn key(id: u64) -> Key {
        Key { id, ..Key::default() }
    }

    fn dataset(counts: &[u64]) -> Dataset {
        let mut first = 0;
        let runs = counts
            .iter()
            .map(|&count| {
                first += 1000;
                ObjectRun { first: key(first), count, sizes: Sizes::Each((0..count).map(|i| first + i).collect()) }
            })
            .collect();
        Dataset { runs }
    }

    /// Drives a machine to its end, each operation ending as `judge` says; returns what was written and the most in
    /// flight.
    fn drive<T: Task>(
        machine: &mut Each<T>,
        mut judge: impl FnMut(Key, u32) -> Result<(), ErrorKind>,
    ) -> (BTreeMap<Key, u64>, usize) {
        let mut out = Actions::default();
        let (mut now, mut flight, mut wakes) = (Tick(0), Vec::new(), Vec::new());
        let (mut written, mut tries, mut most) = (BTreeMap::new(), BTreeMap::<Key, u32>::new(), 0);
        machine.step(now, Event::Start, &mut out);
        loop {
            flight.extend(out.drain_submits());
            wakes.extend(out.drain_wakes());
            most = most.max(flight.len());
            now = now + Duration::from_micros(1);
            if let Some(submit) = flight.pop() {
                let tried = tries.entry(submit.op.key).or_default();
                *tried += 1;
                let result = judge(submit.op.key, *tried);
                if result.is_ok() {
                    assert!(written.insert(submit.op.key, submit.op.bytes).is_none(), "written twice");
                }
                let outcome = Outcome {
                    intended: submit.intended,
                    sent: now,
                    first_byte: now,
                    done: now,
                    carrier: Carrier::Null,
                    bytes: submit.op.bytes,
                    attempts: 1,
                    result,
                };
                machine.step(now, Event::Done { tag: submit.tag, op: &submit.op, outcome: &outcome }, &mut out);
            } else if !wakes.is_empty() {
                let (at, tag) = wakes.remove(0);
                now = now.max(at);
                machine.step(now, Event::Due { at, tag }, &mut out);
            } else {
                break;
            }
        }
        assert!(out.finished());
        (written, most)
    }

    proptest! {
        #[test]
        fn every_object_is_written_once_by_some_core(
            counts in prop::collection::vec(0u64..40, 0..5),
            cores in 1usize..5,
            depth in 1usize..9,
            skip in prop::collection::hash_set(0u64..40, 0..10),
        ) {
            let dataset = dataset(&counts);
            let skip: FxHashSet<Key> = skip.into_iter().map(|id| key(1000 + id)).collect();
            let mut all = BTreeMap::new();
            let mut objects = 0;
            for mut machine in Prepare::split(&Names::default(), &dataset, depth, &skip, cores) {
                let (written, most) = drive(&mut machine, |_, _| Ok(()));
                prop_assert!(most <= machine.lanes());
                let tally = machine.tally();
                prop_assert_eq!((tally.done, tally.done_bytes), (tally.objects, tally.bytes));
                prop_assert_eq!(machine.progress(), Some(1.0));
                objects += tally.objects + tally.skipped;
                for (key, bytes) in written {
                    prop_assert!(all.insert(key, bytes).is_none());
                }
            }
            prop_assert_eq!(objects, dataset.count());
            let expected: BTreeMap<Key, u64> = dataset.objects().filter(|(key, _)| !skip.contains(key)).collect();
            prop_assert_eq!(all, expected);
        }
    }

    #[test]
    fn a_failed_put_is_tried_again_and_then_counted() {
        let mut machine = Prepare::new(Names::default(), dataset(&[20]), 3);
        let (written, most) = drive(&mut machine, |key, tried| match key.id % 10 {
            1 if tried <= 3 => Err(ErrorKind::Throttled),
            2 => Err(ErrorKind::Server),
            3 => Err(ErrorKind::Denied),
            _ => Ok(()),
        });
        assert_eq!((written.len(), most), (16, 3));
        let tally = machine.tally();
        assert_eq!((tally.done, tally.failed, tally.gave_up), (16, 4, false));
        assert!(matches!(tally.first_failure, Some((_, ErrorKind::Server | ErrorKind::Denied))));
    }

    #[test]
    fn a_target_that_refuses_everything_is_given_up() {
        let mut machine = Prepare::new(Names::default(), dataset(&[900]), 4);
        let mut attempts = 0;
        let (written, _) = drive(&mut machine, |_, _| {
            attempts += 1;
            Err(ErrorKind::Denied)
        });
        let tally = machine.tally();
        assert!(written.is_empty() && tally.gave_up);
        assert_eq!((tally.failed, attempts), (GIVE_UP_AFTER + 3, 19));
        assert_eq!(tally.first_failure.map(|(_, kind)| kind), Some(ErrorKind::Denied));
    }

    #[test]
    fn cleaning_up_what_is_gone_already_is_fine() {
        let mut machine = Cleanup::new(Names::default(), dataset(&[5]), 2);
        let (_, _) = drive(&mut machine, |key, _| if key.id == 1002 { Err(ErrorKind::NotFound) } else { Ok(()) });
        assert_eq!((machine.tally().done, machine.tally().failed), (5, 0));
    }

    #[test]
    fn stop_lets_what_is_in_flight_end() {
        let mut machine = Prepare::new(Names::default(), dataset(&[100]), 4);
        let mut out = Actions::default();
        machine.step(Tick(0), Event::Start, &mut out);
        machine.step(Tick(1), Event::Stop, &mut out);
        let submits: Vec<Submit> = out.drain_submits().collect();
        assert_eq!(submits.len(), 4);
        for submit in submits {
            assert!(!out.finished());
            let outcome = Outcome {
                intended: Tick(0),
                sent: Tick(0),
                first_byte: Tick(2),
                done: Tick(2),
                carrier: Carrier::Null,
                bytes: 0,
                attempts: 1,
                result: Ok(()),
            };
            machine.step(Tick(2), Event::Done { tag: submit.tag, op: &submit.op, outcome: &outcome }, &mut out);
        }
        assert!(out.finished() && out.drain_submits().next().is_none());
        assert_eq!(machine.tally().done, 4);
    }
}
