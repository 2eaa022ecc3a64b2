//! Merges the cores' blocks into totals, series and logs, off the measuring cores.

use std::collections::BTreeMap;
use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use gpufeed_schema::{Distribution, Latency, Operation, Series, Validity, ValidityStatus};
use gpufeed_workloads::op::{ErrorKind, Tick};
use hdrhistogram::Histogram;

use super::histogram::{Samples, empty, merge, nanos};
use super::hlog::IntervalLog;
use super::intervals::Intervals;
use super::series::Timeline;
use super::{Block, Finished, Slot, Way, Window};
use crate::measured::{Histograms, RunError};
use crate::settings::Settings;
use crate::watch::Phase;

/// One interval of all cores, when all of them are past it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Summary {
    /// The phase it lies in.
    pub phase: Phase,
    /// Its start.
    pub from: Tick,
    /// Its end.
    pub to: Tick,
    /// Successes completed in it.
    pub ops: u64,
    /// Payload bytes of those.
    pub bytes: u64,
    /// 99th percentile of their response time, where they are enough.
    pub p99: Option<Duration>,
}

/// Merges blocks.
pub struct Collector {
    window: Arc<Window>,
    step: Duration,
    totals: BTreeMap<Way, Box<Slot>>,
    /// Intervals that some core has not passed yet.
    pending: BTreeMap<(Phase, u64), Interval>,
    /// How far each core is.
    reached: Vec<Tick>,
    timeline: Timeline,
    hlog: Option<IntervalLog>,
    intervals: Option<Intervals>,
    issued: u64,
    details: BTreeMap<ErrorKind, Vec<String>>,
    validity: Vec<Validity>,
    summaries: VecDeque<Summary>,
}

struct Interval {
    from: Tick,
    to: Tick,
    ops: u64,
    bytes: u64,
    errors: u64,
    in_flight: u64,
    recent: Histogram<u64>,
    /// Filled only where a log wants them.
    slots: BTreeMap<Way, Box<Slot>>,
}

/// What a run recorded.
#[derive(Debug)]
pub struct Recorded {
    /// Rows of the report.
    pub operations: Vec<Operation>,
    /// What happened over time.
    pub series: Series,
    /// The histograms behind the rows.
    pub histograms: Vec<Histograms>,
    /// Schedule slip over all operations.
    pub slip: Latency,
    /// Hash of what was issued, whatever the order.
    pub issued: u64,
    /// A few words per kind of failure.
    pub errors: Vec<String>,
    /// Outputs that could not be written.
    pub validity: Vec<Validity>,
}

impl Collector {
    /// A collector for as many cores, which writes the interval outputs that `settings` name.
    ///
    /// # Errors
    /// When an output cannot be made.
    pub fn new(cores: usize, settings: &Settings, window: Arc<Window>) -> Result<Self, RunError> {
        let cannot = |path: &std::path::Path| {
            let path = path.to_owned();
            move |source| RunError::Output { path, source }
        };
        let hlog = settings.hlog.as_deref();
        let hlog = hlog.map(|p| IntervalLog::create(p, SystemTime::now()).map_err(cannot(p))).transpose()?;
        let csv = settings.intervals_csv.as_deref();
        let intervals = csv.map(|p| Intervals::create(p).map_err(cannot(p))).transpose()?;
        let step = settings.interval.max(Duration::from_millis(1));
        Ok(Self {
            window,
            step,
            totals: BTreeMap::new(),
            pending: BTreeMap::new(),
            reached: vec![Tick::ZERO; cores],
            timeline: Timeline::new(step.as_secs_f64()),
            hlog,
            intervals,
            issued: 0,
            details: BTreeMap::new(),
            validity: Vec::new(),
            summaries: VecDeque::new(),
        })
    }

    /// Takes in a block and empties it.
    pub fn absorb(&mut self, block: &mut Block) {
        for (way, slot) in block.slots() {
            self.totals.entry(way).or_insert_with(|| Box::new(Slot::new())).merge(slot);
        }
        let last = block.to.0.saturating_sub(1).max(block.from.0);
        let index = match block.phase {
            Phase::Measure => last.saturating_sub(self.window.from().0) / nanos(self.step).max(1),
            Phase::Drain => 0,
            // Sub-intervals of the warm-up are never longer than the step.
            _ => last / 1_000_000,
        };
        let logs = self.hlog.is_some() || self.intervals.is_some();
        let interval = self.pending.entry((block.phase, index)).or_insert_with(|| Interval {
            from: block.from,
            to: block.to,
            ops: 0,
            bytes: 0,
            errors: 0,
            in_flight: 0,
            recent: empty(),
            slots: BTreeMap::new(),
        });
        interval.from = interval.from.min(block.from);
        interval.to = interval.to.max(block.to);
        interval.ops += block.ops;
        interval.bytes += block.bytes;
        interval.errors += block.errors;
        interval.in_flight += block.in_flight;
        merge(&mut interval.recent, &block.recent);
        if logs {
            for (way, slot) in block.slots() {
                interval.slots.entry(way).or_insert_with(|| Box::new(Slot::new())).merge(slot);
            }
        }
        self.reached[block.core] = self.reached[block.core].max(block.to);
        block.clear();
        self.flush();
    }

    /// Takes in what a core left when it ended.
    pub fn absorb_last(&mut self, mut finished: Finished) {
        let core = finished.block.core;
        self.absorb(&mut finished.block);
        self.reached[core] = Tick(u64::MAX);
        self.issued = self.issued.wrapping_add(finished.issued);
        for (kind, details) in finished.details {
            let known = self.details.entry(kind).or_default();
            for detail in details {
                if known.len() < super::DETAILS && !known.contains(&detail) {
                    known.push(detail);
                }
            }
        }
        self.flush();
    }

    /// The next interval that all cores have passed.
    pub fn summary(&mut self) -> Option<Summary> {
        self.summaries.pop_front()
    }

    fn flush(&mut self) {
        let all = self.reached.iter().copied().min().unwrap_or_default();
        while let Some(entry) = self.pending.first_entry() {
            if entry.get().to > all {
                return;
            }
            let (phase, index) = *entry.key();
            let interval = entry.remove();
            self.close(phase, index, &interval);
        }
    }

    fn close(&mut self, phase: Phase, index: u64, interval: &Interval) {
        let Interval { from, to, ops, bytes, errors, in_flight, recent, slots } = interval;
        if phase == Phase::Measure {
            self.timeline.add(index, *ops, *bytes, *errors, *in_flight, recent);
        }
        let start = from.since(self.window.from());
        let length = to.since(*from);
        for (&way, slot) in slots {
            let quiet = slot.response.is_empty() && slot.completed == 0 && slot.errors.iter().all(|&n| n == 0);
            if phase < Phase::Measure || quiet {
                continue;
            }
            let wrote = self.intervals.as_mut().map(|to| to.write(phase, start, length, way, slot));
            if let Some(Err(error)) = wrote {
                self.intervals = None;
                self.cannot_write("intervals.csv", &error);
            }
            let clocks = [("response", &slot.response), ("service", &slot.service), ("first-byte", &slot.first_byte)];
            for (clock, histogram) in clocks {
                // Commas and spaces end a tag.
                let second = if way.second { "-second" } else { "" };
                let tag = format!("{}-{}{second}-{clock}", way.verb.name(), way.carrier.name());
                let wrote = self.hlog.as_mut().map(|to| to.write(&tag, start, length, histogram));
                if let Some(Err(error)) = wrote {
                    self.hlog = None;
                    self.cannot_write("latency.hlog", &error);
                }
            }
        }
        let latency = Latency::of(&Samples(recent));
        let p99 = latency.p99_ns.map(Duration::from_nanos);
        self.summaries.push_back(Summary { phase, from: *from, to: *to, ops: *ops, bytes: *bytes, p99 });
    }

    fn cannot_write(&mut self, name: &str, error: &dyn fmt::Display) {
        self.validity.push(Validity::new(
            "outputs",
            ValidityStatus::Fail,
            format!("{name} is incomplete, writing it failed: {error}"),
        ));
    }

    /// What was recorded, for the window as it turned out.
    pub fn finish(mut self, window: (Tick, Tick), settings: &Settings) -> Recorded {
        self.reached.fill(Tick(u64::MAX));
        self.flush();
        if let Some(Err(error)) = self.hlog.take().map(IntervalLog::finish) {
            self.cannot_write("latency.hlog", &error);
        }
        if let Some(Err(error)) = self.intervals.take().map(Intervals::finish) {
            self.cannot_write("intervals.csv", &error);
        }
        let seconds = window.1.since(window.0).as_secs_f64();
        let per_second = |n: u64| if seconds > 0.0 { n as f64 / seconds } else { 0.0 };
        let mut slips = empty();
        let mut operations = Vec::new();
        let mut histograms = Vec::new();
        for (Way { second, verb, carrier }, slot) in self.totals {
            if slot.attempts == 0 && slot.completed == 0 {
                continue;
            }
            merge(&mut slips, &slot.slip);
            let errors = ErrorKind::ALL.iter().zip(slot.errors).filter(|&(_, n)| n > 0);
            let transport = settings.second.as_ref().filter(|_| second).map(|second| &second.transport_name);
            let transport = transport.unwrap_or(&settings.transport_name);
            operations.push(Operation {
                op: verb.name().to_owned(),
                transport: transport.clone(),
                carrier: carrier.name().to_owned(),
                count: slot.response.len(),
                errors: errors.map(|(kind, n)| (kind.name().to_owned(), n)).collect(),
                attempts: slot.attempts,
                bytes: slot.bytes,
                bytes_per_s: per_second(slot.completed_bytes),
                ops_per_s: per_second(slot.completed),
                service_time: Distribution::of(&Samples(&slot.service)),
                response_time: Distribution::of(&Samples(&slot.response)),
                schedule_slip: Latency::of(&Samples(&slot.slip)),
                first_byte: Latency::of(&Samples(&slot.first_byte)),
            });
            let Slot { response, service, slip, first_byte, .. } = *slot;
            histograms.push(Histograms { second, verb, carrier, response, service, slip, first_byte });
        }
        let errors = self
            .details
            .into_iter()
            .flat_map(|(kind, details)| details.into_iter().map(move |detail| format!("{}: {detail}", kind.name())));
        Recorded {
            operations,
            series: self.timeline.series(),
            histograms,
            slip: Latency::of(&Samples(&slips)),
            issued: self.issued,
            errors: errors.collect(),
            validity: self.validity,
        }
    }
}
