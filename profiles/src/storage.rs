//! The shape of storage: injected latency, caps, errors and stalls as a pure function of arrivals and a seed.
//!
//! The reference server delays real answers by it (`--shape`) and the virtual clock uses it as its storage model, so a
//! figure measured over either has the same ground truth. Text form, comma separated, each part for the operation it
//! names (`get`, `put`, `stat`, `list`, `delete`) or for all:
//!
//! ```text
//! get:latency=lognormal(2ms,0.3)   median 2 ms, standard deviation 0.3 of the natural logarithm
//! all:latency=5ms                  also uniform(1ms,3ms), exp(2ms), mix(98%:1ms,2%:50ms)
//! bandwidth=1GB/s  iops=1000       first come, first served, shared by the operations named
//! errors=1%  errors=0.5%:500       503 unless a status is given
//! stall=1s/10s  stall=1s@5s        1 s long every 10 s, first at 10 s; once, at 5 s
//! corrupt=0.1%  short=0.1%         bodies of GETs with a wrong byte, or ending early
//! ```
//!
//! Of several latencies that name an operation the last one counts; of everything else all count.

mod text;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use rand_distr::{Distribution, StandardNormal};

pub use text::ShapeError;

/// What storage is asked for, as far as shaping tells it apart. A part of a multipart write is a [`ShapedOp::Put`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ShapedOp {
    /// Read an object or a range of it.
    Get,
    /// Write an object or a part of one.
    Put,
    /// Ask for presence and size.
    Stat,
    /// List keys.
    List,
    /// Remove an object.
    Delete,
}

impl ShapedOp {
    /// Every operation, in the order of their discriminants.
    pub const ALL: [Self; 5] = [Self::Get, Self::Put, Self::Stat, Self::List, Self::Delete];

    /// The name used in shapes.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::Put => "put",
            Self::Stat => "stat",
            Self::List => "list",
            Self::Delete => "delete",
        }
    }
}

/// How storage behaves; empty storage is instant and faultless.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Shape {
    rules: Vec<Rule>,
}

/// One part of a shape.
#[derive(Debug, Clone, PartialEq)]
struct Rule {
    /// The operation it is for, all if none.
    on: Option<ShapedOp>,
    effect: Effect,
}

#[derive(Debug, Clone, PartialEq)]
enum Effect {
    Latency(Latency),
    /// Bytes per second.
    Bandwidth(f64),
    /// Operations per second.
    Iops(f64),
    Errors {
        percent: f64,
        status: u16,
    },
    Stall(Stall),
    Corrupt {
        percent: f64,
    },
    Short {
        percent: f64,
    },
}

/// A distribution of latencies, in nanoseconds.
#[derive(Debug, Clone, PartialEq)]
enum Latency {
    Fixed(u64),
    Uniform(u64, u64),
    /// Mean.
    Exponential(u64),
    /// Median, and standard deviation of the natural logarithm.
    LogNormal(u64, f64),
    /// Percent and the distribution it is drawn from.
    Mix(Vec<(f64, Latency)>),
}

/// A time in which nothing leaves storage, in nanoseconds since the shaper's origin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stall {
    length: u64,
    first: u64,
    /// Distance between starts; a stall without it happens once.
    every: Option<u64>,
}

impl Latency {
    fn draw(&self, random: &mut SmallRng) -> u64 {
        match self {
            Self::Fixed(nanos) => *nanos,
            Self::Uniform(low, high) => random.random_range(*low..=*high),
            // 1 − u is never zero.
            Self::Exponential(mean) => (-(1.0 - random.random::<f64>()).ln() * *mean as f64).round() as u64,
            Self::LogNormal(median, sigma) => {
                let normal: f64 = StandardNormal.sample(random);
                (*median as f64 * (sigma * normal).exp()).round() as u64
            }
            Self::Mix(parts) => {
                let mut left = random.random::<f64>() * 100.0;
                for (percent, latency) in parts {
                    if left < *percent {
                        return latency.draw(random);
                    }
                    left -= percent;
                }
                // Percentages that sum to a hair under 100 leave a crumb to the last.
                parts.last().map_or(0, |(_, latency)| latency.draw(random))
            }
        }
    }
}

/// What becomes of one operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fate {
    /// When the answer's first byte leaves, on the clock of `now_ns`.
    pub first_byte_ns: u64,
    /// When its last byte leaves; never before the first.
    pub done_ns: u64,
    /// What is wrong with the answer.
    pub fault: Option<Fault>,
}

/// What is wrong with an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// An HTTP status instead of the answer.
    Error(u16),
    /// A body with a wrong byte.
    Corrupt,
    /// A body that ends early.
    Short,
}

/// A [`Shape`] at work: holds the queues and the random streams. Each rule draws from a stream of its own, once per
/// operation it names, so adding a rule does not change what the others do.
#[derive(Debug, Clone)]
pub struct Shaper {
    latencies: Vec<(Option<ShapedOp>, Latency, SmallRng)>,
    bandwidths: Vec<(Option<ShapedOp>, Queue)>,
    iops: Vec<(Option<ShapedOp>, Queue)>,
    faults: Vec<(Option<ShapedOp>, f64, Fault, SmallRng)>,
    stalls: [Stalls; ShapedOp::ALL.len()],
}

impl Shaper {
    /// Starts storage of that shape at time zero of the clock that [`Shaper::admit`] is given.
    #[must_use]
    pub fn new(shape: &Shape, seed: u64) -> Self {
        let mut shaper = Self {
            latencies: Vec::new(),
            bandwidths: Vec::new(),
            iops: Vec::new(),
            faults: Vec::new(),
            stalls: ShapedOp::ALL.map(|op| Stalls::of(shape, op)),
        };
        for (i, rule) in shape.rules.iter().enumerate() {
            let stream = || SmallRng::seed_from_u64(seed ^ (i as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
            let on = rule.on;
            match &rule.effect {
                Effect::Latency(latency) => shaper.latencies.push((on, latency.clone(), stream())),
                Effect::Bandwidth(bytes_per_s) => shaper.bandwidths.push((on, Queue::new(*bytes_per_s))),
                Effect::Iops(ops_per_s) => shaper.iops.push((on, Queue::new(*ops_per_s))),
                Effect::Errors { percent, status } => {
                    shaper.faults.push((on, percent / 100.0, Fault::Error(*status), stream()));
                }
                // Only a GET has a body that can be wrong.
                Effect::Corrupt { percent } => {
                    shaper.faults.push((Some(ShapedOp::Get), percent / 100.0, Fault::Corrupt, stream()));
                }
                Effect::Short { percent } => {
                    shaper.faults.push((Some(ShapedOp::Get), percent / 100.0, Fault::Short, stream()));
                }
                Effect::Stall(_) => {}
            }
        }
        // An error has no body, so it is decided before the body's faults.
        shaper.faults.sort_by_key(|(_, _, fault, _)| !matches!(fault, Fault::Error(_)));
        shaper
    }

    /// Decides what becomes of an operation that arrives at `now_ns` (nanoseconds, never less than in the call before)
    /// and moves `bytes` of payload.
    ///
    /// With `slot` the time the IOPS queues let it in (its arrival without one):
    /// `first_byte = slot + latency`, `done = max(first_byte, when the bandwidth queues have moved its bytes)`. Queues
    /// stand still during a stall, and whatever would leave in one leaves at its end. An error moves no payload.
    pub fn admit(&mut self, op: ShapedOp, bytes: u64, now_ns: u64) -> Fate {
        let stalls = &self.stalls[op as usize];
        let mut latency = 0;
        for (on, distribution, random) in &mut self.latencies {
            if names(*on, op) {
                latency = distribution.draw(random);
            }
        }
        let mut fault = None;
        for (on, rate, kind, random) in &mut self.faults {
            if names(*on, op) {
                let hit = random.random::<f64>() < *rate;
                fault = fault.or(hit.then_some(*kind));
            }
        }
        let mut slot = now_ns;
        for (on, queue) in &mut self.iops {
            if names(*on, op) {
                slot = slot.max(queue.serve(1.0, now_ns, stalls).0);
            }
        }
        let first_byte_ns = stalls.release(slot.saturating_add(latency));
        let mut done_ns = first_byte_ns;
        if !matches!(fault, Some(Fault::Error(_))) {
            for (on, queue) in &mut self.bandwidths {
                if names(*on, op) {
                    done_ns = done_ns.max(stalls.release(queue.serve(bytes as f64, slot, stalls).1));
                }
            }
        }
        Fate { first_byte_ns, done_ns, fault }
    }
}

fn names(on: Option<ShapedOp>, op: ShapedOp) -> bool {
    on.is_none_or(|only| only == op)
}

/// A first-come-first-served server of constant rate.
#[derive(Debug, Clone)]
struct Queue {
    nanos_per_unit: f64,
    /// When it has served all it was given.
    free: u64,
    /// The part of a nanosecond that `free` leaves out, so that rounding does not add up over a run.
    carry: f64,
}

impl Queue {
    fn new(units_per_s: f64) -> Self {
        Self { nanos_per_unit: 1e9 / units_per_s, free: 0, carry: 0.0 }
    }

    /// Start and end of service of what arrives at `at`.
    fn serve(&mut self, units: f64, at: u64, stalls: &Stalls) -> (u64, u64) {
        if at > self.free {
            self.free = at;
            self.carry = 0.0;
        }
        let start = stalls.release(self.free);
        let work = units * self.nanos_per_unit + self.carry;
        self.carry = work.fract();
        self.free = stalls.after(start, work as u64);
        (start, self.free)
    }
}

/// The stalls of one operation: any number that happen once, at most one that repeats.
#[derive(Debug, Clone, Default)]
struct Stalls {
    once: Vec<(u64, u64)>,
    periodic: Option<(u64, u64, u64)>,
}

impl Stalls {
    fn of(shape: &Shape, op: ShapedOp) -> Self {
        let mut stalls = Self::default();
        for rule in shape.rules.iter().filter(|rule| names(rule.on, op)) {
            let Effect::Stall(Stall { length, first, every }) = rule.effect else { continue };
            match every {
                Some(every) => stalls.periodic = Some((length, first, every)),
                None => stalls.once.push((first, first.saturating_add(length))),
            }
        }
        stalls.once.sort_unstable();
        stalls
    }

    /// `at`, or the end of the stall it lies in.
    fn release(&self, mut at: u64) -> u64 {
        loop {
            let before = at;
            if let Some((length, first, every)) = self.periodic
                && at >= first
                && (at - first) % every < length
            {
                at = at.saturating_add(length - (at - first) % every);
            }
            for &(start, end) in &self.once {
                if (start..end).contains(&at) {
                    at = end;
                }
            }
            if at == before {
                return at;
            }
        }
    }

    /// When `work` nanoseconds of service are done that start at `at`, standing still during stalls.
    fn after(&self, mut at: u64, mut work: u64) -> u64 {
        for &(start, end) in &self.once {
            if end <= at {
                continue;
            }
            let up = self.up_time(start.max(at)) - self.up_time(at);
            if work <= up {
                break;
            }
            work -= up;
            at = end;
        }
        self.at_up_time(self.up_time(at).saturating_add(work)).max(at)
    }

    /// Time up to `at` that is outside the periodic stall.
    fn up_time(&self, at: u64) -> u64 {
        match self.periodic {
            Some((length, first, every)) if at > first => {
                let (cycles, rest) = ((at - first) / every, (at - first) % every);
                first + cycles * (every - length) + rest.saturating_sub(length)
            }
            _ => at,
        }
    }

    /// The first moment with that much [`Stalls::up_time`].
    fn at_up_time(&self, up: u64) -> u64 {
        match self.periodic {
            Some((length, first, every)) if up > first => {
                let (cycles, rest) = ((up - first) / (every - length), (up - first) % (every - length));
                let start = first.saturating_add(cycles.saturating_mul(every));
                if rest == 0 { start } else { start.saturating_add(length + rest) }
            }
            _ => up,
        }
    }
}

#[cfg(test)]
mod tests;
