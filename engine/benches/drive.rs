//! Cost of driving operations over a target that answers at once: closed loop in nanoseconds and allocations per
//! operation, open loop at 20,000/s by schedule slip. `cargo bench -p gpufeed-engine --bench drive`.
//!
//! With `--count N` it makes so many operations in a closed loop and times nothing: for counting instructions.

#![allow(clippy::print_stdout, missing_docs)]

use std::time::{Duration, Instant};

use gpufeed_engine::transport::{Clock, Data, Done, Lane, Limits, OpError, Transport};
use gpufeed_engine::wall::{self, CoreSlot, Machines};
use gpufeed_engine::{Measured, Settings, Watch};
use gpufeed_io::arena::Arena;
use gpufeed_io::counting::{Counting, allocations};
use gpufeed_profiles::units::show_nanos;
use gpufeed_schema::{ClosedOrOpen, Section};
use gpufeed_workloads::machine::{Actions, Dataset, Event, Machine, Submit, Workload};
use gpufeed_workloads::op::{Carrier, Key, KeyStyle, Names, Op, Space, Tick};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Answers at once.
struct Null(Arena, Clock);

struct NullLane(Clock);

impl Transport for Null {
    type Lane = NullLane;
    fn limits(&self) -> Limits {
        Limits { object_bytes: u64::MAX, alignment: 1 }
    }
    fn arena(&self) -> &Arena {
        &self.0
    }
    async fn lane(&self) -> Result<NullLane, OpError> {
        Ok(NullLane(self.1))
    }
}

impl Lane for NullLane {
    async fn call(&mut self, op: &Op, _data: &mut Data) -> Done {
        let now = self.0.now();
        Done {
            sent: now,
            first_byte: now,
            done: now,
            carrier: Carrier::Null,
            bytes: op.bytes,
            attempts: 1,
            result: Ok(()),
        }
    }
}

/// A closed loop of `lanes`, or an open one.
struct Load {
    gap: Option<Duration>,
    lanes: usize,
    count: u64,
    /// Operations in all.
    most: u64,
    stopped: bool,
}

impl Load {
    fn one(&mut self, at: Tick, out: &mut Actions) {
        if self.count >= self.most {
            out.finish();
            return;
        }
        self.count += 1;
        let op = Op::get(Key { space: 0, rank: 0, id: self.count, ..Key::ZERO }, 4096);
        out.submit(Submit { tag: 0, worker: 0, intended: at, op });
    }
}

impl Machine for Load {
    fn step(&mut self, now: Tick, event: Event<'_>, out: &mut Actions) {
        match (event, self.gap) {
            (Event::Stop, _) => self.stopped = true,
            (Event::Start, None) => (0..self.lanes).for_each(|_| self.one(now, out)),
            (Event::Done { .. }, None) if !self.stopped => self.one(now, out),
            (Event::Start, Some(gap)) => out.wake(now + gap, 0),
            (Event::Due { at, .. }, Some(gap)) if !self.stopped => {
                self.one(at, out);
                out.wake(at + gap, 0);
            }
            _ => {}
        }
    }
}

impl Workload for Load {
    fn names(&self) -> Names {
        Names { spaces: vec![Space { before: "b/".into(), after: String::new(), style: KeyStyle::Hash }] }
    }
    fn dataset(&self) -> Dataset {
        Dataset::default()
    }
    fn lanes(&self) -> usize {
        self.lanes
    }
    fn plan_hash(&self) -> u64 {
        0
    }
    fn issues_by_plan(&self) -> bool {
        false
    }
    fn load(&self) -> ClosedOrOpen {
        ClosedOrOpen::Closed
    }
    fn section(&self, _measured: (Tick, Tick)) -> Section {
        Section::None
    }
}

fn run(cores: usize, one: bool, gap: Option<Duration>, seconds: f64) -> (Measured<Load>, u64) {
    bounded(cores, one, gap, Some(Duration::from_secs_f64(seconds)), u64::MAX)
}

fn bounded(
    cores: usize,
    one: bool,
    gap: Option<Duration>,
    duration: Option<Duration>,
    most: u64,
) -> (Measured<Load>, u64) {
    let load = || Load { gap, lanes: 16, count: 0, most, stopped: false };
    let machines = if one { Machines::One(load()) } else { Machines::PerCore((0..cores).map(|_| load()).collect()) };
    let settings = Settings { cores: vec![None; cores], duration, ..Settings::default() };
    let open = |_: CoreSlot, clock: Clock| Ok(Null(Arena::new(4096, 1).expect("small"), clock));
    let before = allocations();
    let measured = wall::run(&settings, Clock::new(Instant::now()), open, machines, &Watch::new()).expect("runs");
    (measured, allocations() - before)
}

fn main() {
    let mut words = std::env::args().skip_while(|word| word != "--count");
    if let Some(count) = words.nth(1) {
        let most = count.parse().expect("--count N");
        let (measured, _) = bounded(1, false, None, None, most);
        assert_eq!(measured.operations[0].count, most);
        return;
    }
    let seconds = if std::env::args().any(|arg| arg == "--bench") { 4.0 } else { 0.2 };
    let (baseline, fixed) = run(1, false, None, seconds / 2.0);
    let (closed, allocated) = run(1, false, None, seconds);
    let rate = closed.operations[0].ops_per_s;
    println!(
        "closed loop, one core: {:.0} ns of CPU and {:.0} ns per operation ({rate:.0}/s), {} allocations in {} operations ({} in half the time)",
        closed.cpu.map_or(f64::NAN, |cpu| cpu.cpu_ratio * 1e9 / rate),
        1e9 / rate,
        allocated,
        closed.operations[0].count,
        fixed
    );
    drop(baseline);
    let (spread, _) = run(2, true, None, seconds);
    println!("closed loop, one machine over two cores: {:.0}/s", spread.operations[0].ops_per_s);
    let (open, _) = run(1, false, Some(Duration::from_micros(50)), seconds);
    let show = |ns: Option<u64>| ns.map_or("–".to_owned(), |ns| show_nanos(ns as f64));
    println!(
        "open loop at 20,000/s: {:.0}/s, slip p50 {} p99 {} max {}, CPU {:.0}%, run-queue wait {:.1}%",
        open.operations[0].ops_per_s,
        show(open.slip.p50_ns),
        show(open.slip.p99_ns),
        show(open.slip.max_ns),
        open.cpu.map_or(0.0, |cpu| cpu.cpu_ratio * 100.0),
        open.cpu.and_then(|cpu| cpu.run_wait_ratio).unwrap_or(0.0) * 100.0
    );
}
