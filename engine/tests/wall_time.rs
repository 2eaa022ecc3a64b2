//! The wall driver over a transport of injected delays and faults.

mod loops;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use gpufeed_engine::fault::{Faulty, Injection};
use gpufeed_engine::memory::{Memory, Objects};
use gpufeed_engine::transport::{Clock, OpError, Transport};
use gpufeed_engine::wall::{self, CoreSlot, Machines};
use gpufeed_engine::{Landing, Measured, RunError, Settings, Verify, WarmUp, Watch};
use gpufeed_io::arena::Arena;
use gpufeed_io::payload::Payloads;
use gpufeed_workloads::machine::Workload;
use gpufeed_workloads::op::{ErrorKind, Key, Op, Verb};
use loops::{Loop, Start};

const SEED: u64 = 11;

fn objects(count: u64, bytes: usize) -> Objects {
    let names = Loop::new(Start::Closed(1), None).names();
    let payloads = Payloads::new(SEED);
    let object = |id| {
        let name = names.of(Key { space: 0, rank: 0, id, ..Key::ZERO });
        let mut body = vec![0; bytes];
        payloads.of(&name).fill(0, &mut body);
        (name, body.into())
    };
    Arc::new(std::sync::Mutex::new((0..count).map(object).collect()))
}

fn settings(cores: usize) -> Settings {
    Settings {
        cores: vec![None; cores],
        duration: Some(Duration::from_millis(300)),
        interval: Duration::from_millis(50),
        drain: Duration::from_secs(5),
        seed: SEED,
        ..Settings::default()
    }
}

/// Runs over memory with faults.
fn run(
    settings: &Settings,
    machines: Machines<Loop>,
    objects: &Objects,
    inject: impl Fn(u64, &Op) -> Injection + Clone + Send + Sync + 'static,
    watch: &Watch,
) -> Result<Measured<Loop>, RunError> {
    let names = Arc::new(Loop::new(Start::Closed(1), None).names());
    let clock = Clock::new(Instant::now());
    let open = |slot: CoreSlot, clock: Clock| -> Result<_, OpError> {
        let arena = Arena::new(usize::try_from(slot.buffer_bytes).expect("small"), slot.buffers).expect("small");
        Ok(Faulty::new(Memory::new(Arc::clone(objects), Arc::clone(&names), arena, clock), clock, inject.clone()))
    };
    wall::run(settings, clock, open, machines, watch)
}

fn delay(delay: Duration) -> impl Fn(u64, &Op) -> Injection + Clone + Send + Sync + 'static {
    move |_, _| Injection { delay, ..Injection::default() }
}

fn nothing_lost(run: &Measured<Loop>) {
    for machine in &run.machines {
        assert!(machine.done.iter().all(|&times| times == 1));
        assert_eq!(machine.in_flight(), 0);
        assert!(machine.stopped_at.is_some());
    }
}

#[test]
fn an_injected_delay_is_the_service_time_and_counts_agree_with_the_machines() {
    let delayed = Duration::from_millis(2);
    let machines = Machines::PerCore(vec![Loop::new(Start::Closed(4), None), Loop::new(Start::Closed(4), None)]);
    let objects = objects(5000, 4096);
    let settings = Settings { verify: Verify::Full, ..settings(2) };
    let run = run(&settings, machines, &objects, delay(delayed), &Watch::new()).expect("runs");
    nothing_lost(&run);
    let op = &run.operations[0];
    assert!(op.service_time.summary.min_ns.expect("some") >= 1_998_000, "{op:?}");
    assert!(op.errors.is_empty() && !run.interrupted);
    let (from, to) = run.window;
    assert_eq!(to - from, Duration::from_millis(300));
    let outcomes = || run.machines.iter().flat_map(|machine| &machine.outcomes);
    assert_eq!(op.count, outcomes().filter(|o| from <= o.intended && o.intended < to).count() as u64);
    let completed = outcomes().filter(|o| from <= o.done && o.done < to).count() as f64;
    assert!((op.ops_per_s * 0.3 - completed).abs() < 1e-6);
    assert_eq!(run.series.points.iter().map(|p| p.ops).sum::<u64>() as f64, completed);
    assert!(run.machines.iter().all(|m| m.measured_at == Some(from) && m.stopped_at == Some(to)));
    assert!(run.validity.iter().any(|v| v.check == "verification" && !v.detail.starts_with("0 ")));
    assert!(run.cpu.is_some_and(|cpu| cpu.cores == 2 && cpu.cpu_ratio > 0.0 && cpu.cpu_ratio <= 1.1));
}

#[test]
fn one_machine_uses_the_lanes_of_all_cores_and_loses_nothing() {
    let objects = objects(20_000, 100);
    for start in [Start::Closed(6), Start::Open(Duration::from_micros(100), 6)] {
        let mut machine = Loop::new(start, None);
        machine.bytes = 100;
        let used = Arc::new([const { AtomicU64::new(0) }; 3]);
        let names = Arc::new(machine.names());
        let clock = Clock::new(Instant::now());
        let open = |slot: CoreSlot, clock: Clock| -> Result<_, OpError> {
            assert_eq!((slot.lanes, slot.cores), (2, 3));
            let arena = Arena::new(4096, slot.buffers).expect("small");
            let used = Arc::clone(&used);
            Ok(Faulty::new(
                Memory::new(Arc::clone(&objects), Arc::clone(&names), arena, clock),
                clock,
                move |_, _: &Op| {
                    used[slot.index].fetch_add(1, Ordering::Relaxed);
                    Injection { delay: Duration::from_micros(500), ..Injection::default() }
                },
            ))
        };
        let run = wall::run(&settings(3), clock, open, Machines::One(machine), &Watch::new()).expect("runs");
        nothing_lost(&run);
        let used: Vec<u64> = used.iter().map(|n| n.load(Ordering::Relaxed)).collect();
        assert!(used.iter().all(|&n| n > 0), "{used:?}");
        let machine = &run.machines[0];
        assert_eq!(used.iter().sum::<u64>(), machine.submitted);
        let within = |o: &&gpufeed_workloads::op::Outcome| run.window.0 <= o.intended && o.intended < run.window.1;
        assert_eq!(run.operations[0].count, machine.outcomes.iter().filter(within).count() as u64);
    }
}

#[test]
fn an_open_loop_keeps_its_schedule_whatever_the_target_does() {
    // 1,000/s on one lane that takes 5 ms: four of five wait, and that shows as slip and response time, not as service.
    let machine = Loop::new(Start::Open(Duration::from_millis(1), 1), None);
    let objects = objects(1000, 4096);
    let run =
        run(&settings(1), Machines::PerCore(vec![machine]), &objects, delay(Duration::from_millis(5)), &Watch::new());
    let run = run.expect("runs");
    nothing_lost(&run);
    let op = &run.operations[0];
    // Arrivals at 1, 2, … 299 ms after the start, none left out; the window begins with the start.
    assert_eq!(op.count, 299);
    // The last waits for 298 others of 5 ms, and was meant for 299 ms after the start.
    let slip = op.schedule_slip.max_ns.expect("some");
    assert!(slip >= 298 * 5_000_000 - 298 * 1_000_000 - 1_000_000, "{slip}");
    let response = op.response_time.summary.max_ns.expect("some");
    assert!(response >= slip && op.service_time.summary.p50_ns.expect("some") < 50_000_000);
}

#[test]
fn a_count_bounded_run_ends_with_its_last_completion_and_issues_by_plan() {
    let objects = objects(300, 4096);
    let settings = Settings { duration: None, ..settings(2) };
    let once = |delayed| {
        let machines =
            Machines::PerCore(vec![Loop::new(Start::Closed(3), Some(200)), Loop::new(Start::Closed(3), Some(300))]);
        let run = run(&settings, machines, &objects, delay(delayed), &Watch::new()).expect("runs");
        nothing_lost(&run);
        assert_eq!(run.operations[0].count, 500);
        let last = run.machines.iter().flat_map(|m| &m.outcomes).map(|o| o.done).max().expect("some");
        assert!(run.window.1 >= last);
        assert!(run.window.1 - last < Duration::from_millis(200));
        (run.plan_hash, run.issued_hash)
    };
    let hashes = once(Duration::from_micros(200));
    assert_eq!(hashes, once(Duration::ZERO));
    assert!(hashes.1.is_some());
}

#[test]
fn a_hanging_operation_times_out_and_its_lane_works_on() {
    let objects = objects(100_000, 16);
    let mut machine = Loop::new(Start::Closed(2), Some(200));
    machine.bytes = 16;
    let settings = Settings { duration: None, op_timeout: Duration::from_millis(300), ..settings(1) };
    let hang = |n, _: &Op| Injection { hang: n % 50 == 7, ..Injection::default() };
    let run = run(&settings, Machines::PerCore(vec![machine]), &objects, hang, &Watch::new()).expect("runs");
    nothing_lost(&run);
    let op = &run.operations[0];
    assert_eq!((op.count, op.errors["timeout"], op.errors.len()), (196, 4, 1));
    assert!(op.response_time.summary.max_ns.expect("some") < 300_000_000);
    assert_eq!(run.errors, vec!["timeout: no answer within 300 ms".to_owned()]);
    let waited = run.machines[0].outcomes.iter().filter(|o| o.result == Err(ErrorKind::Timeout));
    assert!(waited.map(|o| o.response_time()).all(|t| t >= Duration::from_millis(300)));
}

#[test]
fn retries_mend_what_they_can_and_span_all_attempts() {
    let objects = objects(200, 4096);
    let settings = Settings { duration: None, retries: 2, ..settings(1) };
    let flaky = |n: u64, _: &Op| Injection {
        delay: Duration::from_millis(1),
        error: n.is_multiple_of(2).then_some(ErrorKind::Throttled),
        ..Injection::default()
    };
    let machine = Loop::new(Start::Closed(1), Some(100));
    let run = run(&settings, Machines::PerCore(vec![machine]), &objects, flaky, &Watch::new()).expect("runs");
    nothing_lost(&run);
    let op = &run.operations[0];
    assert_eq!((op.count, op.attempts, op.errors.len()), (100, 200, 0));
    assert!(op.service_time.summary.min_ns.expect("some") >= 1_990_000);
}

#[test]
fn corrupt_bytes_are_an_error_of_their_own_and_writes_are_what_reads_expect() {
    let objects = Objects::default();
    let mut writer = Loop::new(Start::Closed(2), Some(100));
    writer.verb = Verb::Put;
    let settings = Settings { duration: None, verify: Verify::Full, landing: Landing::Arena, ..settings(1) };
    let none = |_, _: &Op| Injection::default();
    let written = run(&settings, Machines::PerCore(vec![writer]), &objects, none, &Watch::new()).expect("runs");
    assert_eq!(written.operations[0].bytes, 100 * 4096);
    let reader = || Machines::PerCore(vec![Loop::new(Start::Closed(2), Some(100))]);
    let read = run(&settings, reader(), &objects, none, &Watch::new()).expect("runs");
    assert_eq!((read.operations[0].count, read.operations[0].errors.len()), (100, 0));
    let corrupt = |n: u64, _: &Op| Injection { corrupt: n.is_multiple_of(10), ..Injection::default() };
    let read = run(&settings, reader(), &objects, corrupt, &Watch::new()).expect("runs");
    assert_eq!((read.operations[0].count, read.operations[0].errors["corrupt"]), (90, 10));
    assert!(read.errors[0].contains("byte 0 is not what was written"), "{:?}", read.errors);
}

#[test]
fn the_drain_is_bounded_and_what_is_left_is_cancelled() {
    let objects = objects(1, 4096);
    for cores in [1, 2] {
        let hang = |_, _: &Op| Injection { hang: true, ..Injection::default() };
        let settings = Settings { drain: Duration::from_millis(100), ..settings(cores) };
        let machine = Loop::new(Start::Open(Duration::from_millis(10), 4), None);
        let began = Instant::now();
        let run = run(&settings, Machines::One(machine), &objects, hang, &Watch::new()).expect("runs");
        assert!(began.elapsed() < Duration::from_secs(20));
        nothing_lost(&run);
        // 29 arrivals, of which four got a lane.
        assert_eq!((run.operations[0].count, run.operations[0].errors["cancelled"]), (0, 29));
    }
}

#[test]
fn cancelling_drains_and_returns_what_there_is() {
    let objects = objects(100_000, 16);
    let mut machine = Loop::new(Start::Closed(2), None);
    machine.bytes = 16;
    let settings = Settings { duration: None, warm_up: WarmUp::Fixed(Duration::from_millis(20)), ..settings(1) };
    let watch = Watch::new();
    let canceller = std::thread::spawn({
        let watch = watch.clone();
        move || {
            while watch.progress().ops < 50 {
                std::thread::yield_now();
            }
            watch.cancel();
        }
    });
    let run = run(&settings, Machines::PerCore(vec![machine]), &objects, delay(Duration::from_millis(1)), &watch);
    let run = run.expect("runs");
    canceller.join().expect("no panic");
    nothing_lost(&run);
    assert!(run.interrupted && run.operations[0].count > 0 && run.operations[0].errors.is_empty());
}

#[test]
fn a_target_that_never_answers_is_an_error_and_one_that_dies_a_partial_result() {
    let objects = objects(1_000_000, 1);
    let settings = Settings { duration: None, give_up: Duration::from_millis(200), ..settings(1) };
    let dead = |after: u64| {
        move |n: u64, _: &Op| Injection { error: (n >= after).then_some(ErrorKind::Connect), ..Injection::default() }
    };
    let machine = || {
        let mut machine = Loop::new(Start::Closed(2), None);
        machine.bytes = 1;
        Machines::PerCore(vec![machine])
    };
    let error = run(&settings, machine(), &objects, dead(0), &Watch::new()).expect_err("dead");
    assert!(matches!(&error, RunError::Dead { detail, .. } if detail == "get failed as injected"), "{error}");
    let partial = run(&settings, machine(), &objects, dead(100), &Watch::new()).expect("partial");
    nothing_lost(&partial);
    assert!(partial.interrupted && partial.operations[0].count == 100);
    assert!(partial.validity.iter().any(|v| v.check == "target"));
}

#[test]
fn lanes_that_do_not_open_end_the_run_before_it_begins() {
    struct Closed(Arena);
    impl Transport for Closed {
        type Lane = Memory;
        fn limits(&self) -> gpufeed_engine::transport::Limits {
            gpufeed_engine::transport::Limits { object_bytes: 1, alignment: 1 }
        }
        fn arena(&self) -> &Arena {
            &self.0
        }
        async fn lane(&self) -> Result<Memory, OpError> {
            Err(OpError::new(ErrorKind::Connect, "cannot connect to 127.0.0.1:1: connection refused"))
        }
    }
    let open = |_: CoreSlot, _: Clock| Ok(Closed(Arena::new(1, 1).expect("small")));
    let machines = Machines::PerCore(vec![Loop::new(Start::Closed(2), None), Loop::new(Start::Closed(2), None)]);
    let error = wall::run(&settings(2), Clock::new(Instant::now()), open, machines, &Watch::new()).expect_err("closed");
    assert_eq!(error.to_string(), "cannot open the target: cannot connect to 127.0.0.1:1: connection refused");
}

#[test]
fn a_fault_in_a_machine_is_reported_and_does_not_hang() {
    let objects = objects(10, 4096);
    for machines in [
        Machines::PerCore(vec![Loop::new(Start::Closed(1), None), Loop::new(Start::Closed(1), None)]),
        Machines::One(Loop::new(Start::Closed(2), None)),
    ] {
        let bomb = |n, _: &Op| {
            assert!(n < 5, "a defect");
            Injection::default()
        };
        let error = run(&settings(2), machines, &objects, bomb, &Watch::new()).expect_err("broken");
        assert!(matches!(&error, RunError::Internal(words) if words.contains("a defect")), "{error}");
    }
}

#[test]
fn automatic_warm_up_ends_within_its_bound_on_every_core() {
    let objects = objects(1_000_000, 1);
    let machine = || {
        let mut machine = Loop::new(Start::Closed(2), None);
        machine.bytes = 1;
        machine
    };
    let settings = Settings { warm_up: WarmUp::Auto { at_most: Duration::from_secs(1) }, ..settings(2) };
    let machines = Machines::PerCore(vec![machine(), machine()]);
    let run = run(&settings, machines, &objects, delay(Duration::from_millis(1)), &Watch::new()).expect("runs");
    nothing_lost(&run);
    assert!(run.warm_up <= Duration::from_millis(1500), "{:?}", run.warm_up);
    assert!(run.validity.iter().any(|v| v.check == "steady-state"));
    assert!(run.machines.iter().all(|m| m.measured_at == Some(run.window.0)));
    assert_eq!(run.window.1 - run.window.0, Duration::from_millis(300));
}
