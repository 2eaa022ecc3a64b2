//! The loader of one accelerator: who reads what when, and which batch is ready.

use crate::op::Tick;

use super::spec::{LoaderKind, TrainingSpec};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// The training process itself reads batch k when it asks for it.
    InProcess,
    /// Batch k belongs to reader k mod r.
    Batches,
    /// Readers take samples in turn.
    Samples,
}

/// A batch asked for and not handed over.
#[derive(Debug, Clone, Copy, Default)]
struct Slot {
    asked: Tick,
    missing: u32,
    ready: Tick,
    bytes: u64,
}

#[derive(Debug, Clone, Copy, Default)]
struct Reader {
    batch: u64,
    sample: u32,
    free: Tick,
    busy: bool,
}

/// A read to start: reader, position in the epoch's order, and when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Read {
    pub(super) reader: u32,
    pub(super) position: u64,
    pub(super) at: Tick,
}

/// See the module. Times are the model's own: completions and hand-overs, not the moments at which they were told.
#[derive(Debug)]
pub(super) struct Loader {
    kind: Kind,
    batch: u32,
    steps: u64,
    /// Batches asked for and not handed over are kept in slot `k mod slots`.
    slots: Box<[Slot]>,
    readers: Box<[Reader]>,
    /// Batches asked for in this epoch.
    asked: u64,
    /// Batches handed over in this epoch.
    handed: u64,
    /// Samples: position nobody has begun to read.
    next: u64,
}

impl Loader {
    pub(super) fn new(spec: &TrainingSpec) -> Self {
        let readers = spec.readers_or_self();
        let (kind, ahead) = match (spec.readers, spec.loader) {
            (0, _) => (Kind::InProcess, 1),
            (_, LoaderKind::Pytorch) => (Kind::Batches, spec.prefetch.div_ceil(readers).max(1).saturating_mul(readers)),
            (_, LoaderKind::Tensorflow) => (Kind::Samples, spec.prefetch.max(1)),
        };
        // More slots than steps are never used at once.
        let ahead = u64::from(ahead).min(spec.steps().max(1));
        Self {
            kind,
            batch: spec.batch,
            steps: spec.steps(),
            slots: vec![Slot::default(); ahead as usize].into(),
            readers: vec![Reader::default(); readers as usize].into(),
            asked: 0,
            handed: 0,
            next: 0,
        }
    }

    /// An epoch starts: the queue is filled.
    pub(super) fn begin(&mut self, at: Tick, start: &mut dyn FnMut(Read)) {
        (self.asked, self.handed, self.next) = (0, 0, 0);
        for _ in 0..self.slots.len() {
            self.ask(at, start);
        }
    }

    /// A step after the first starts: the process that reads by itself does so now.
    pub(super) fn step(&mut self, at: Tick, start: &mut dyn FnMut(Read)) {
        if self.kind == Kind::InProcess {
            self.ask(at, start);
        }
    }

    /// When the next batch in order became ready, if it is.
    pub(super) fn ready(&self) -> Option<Tick> {
        let slot = self.slots[(self.handed % self.slots.len() as u64) as usize];
        (self.handed < self.asked && slot.missing == 0).then_some(slot.ready)
    }

    /// The next batch goes to its accelerator and another is asked for. Returns the bytes of the batch.
    pub(super) fn hand_over(&mut self, at: Tick, start: &mut dyn FnMut(Read)) -> u64 {
        let bytes = self.slots[(self.handed % self.slots.len() as u64) as usize].bytes;
        self.handed += 1;
        if self.kind != Kind::InProcess {
            self.ask(at, start);
        }
        bytes
    }

    /// A read ended; its reader goes on.
    pub(super) fn done(&mut self, reader: u32, at: Tick, bytes: u64, start: &mut dyn FnMut(Read)) {
        let Reader { batch, sample, .. } = self.readers[reader as usize];
        let slot = self.slot(batch);
        slot.missing -= 1;
        slot.bytes += bytes;
        slot.ready = slot.ready.max(at);
        self.readers[reader as usize].free = at;
        let next = match self.kind {
            Kind::InProcess | Kind::Batches if sample + 1 < self.batch => Some((batch, sample + 1)),
            Kind::InProcess | Kind::Batches => {
                let next = batch + self.readers.len() as u64;
                (next < self.asked).then_some((next, 0))
            }
            Kind::Samples => self.take(),
        };
        match next {
            Some((batch, sample)) => self.start(reader, batch, sample, start),
            None => self.readers[reader as usize].busy = false,
        }
    }

    fn slot(&mut self, batch: u64) -> &mut Slot {
        let index = batch % self.slots.len() as u64;
        &mut self.slots[index as usize]
    }

    /// The next sample nobody reads, of the batches asked for.
    fn take(&mut self) -> Option<(u64, u32)> {
        let batch = u64::from(self.batch);
        let position = self.next;
        (position < self.asked * batch).then(|| {
            self.next += 1;
            (position / batch, (position % batch) as u32)
        })
    }

    /// Asks for the next batch of the epoch, if there is one.
    fn ask(&mut self, at: Tick, start: &mut dyn FnMut(Read)) {
        let batch = self.asked;
        if batch == self.steps {
            return;
        }
        self.asked += 1;
        *self.slot(batch) = Slot { asked: at, missing: self.batch, ready: Tick::ZERO, bytes: 0 };
        match self.kind {
            Kind::InProcess | Kind::Batches => {
                let reader = (batch % self.readers.len() as u64) as u32;
                if !self.readers[reader as usize].busy {
                    self.start(reader, batch, 0, start);
                }
            }
            Kind::Samples => {
                for reader in 0..self.readers.len() as u32 {
                    if !self.readers[reader as usize].busy {
                        let Some((batch, sample)) = self.take() else { break };
                        self.start(reader, batch, sample, start);
                    }
                }
            }
        }
    }

    /// A reader begins a sample as soon as it is free and the batch has been asked for.
    fn start(&mut self, reader: u32, batch: u64, sample: u32, start: &mut dyn FnMut(Read)) {
        let at = self.slot(batch).asked.max(self.readers[reader as usize].free);
        let slot = &mut self.readers[reader as usize];
        *slot = Reader { batch, sample, busy: true, ..*slot };
        start(Read { reader, position: batch * u64::from(self.batch) + u64::from(sample), at });
    }
}
