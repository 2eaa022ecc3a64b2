//! Ground truth on the virtual clock, exact to the histogram's resolution.

mod loops;

use std::time::Duration;

use gpufeed_engine::record::histogram::empty;
use gpufeed_engine::simulated::{self, Answer, Storage, StorageModel};
use gpufeed_engine::{Measured, Settings, WarmUp, Watch};
use gpufeed_profiles::storage::Shape;
use gpufeed_workloads::op::{ErrorKind, Op, Tick};
use loops::{Loop, Start};
use proptest::prelude::*;

const MS: u64 = 1_000_000;

fn open_200(duration: u64, shape: &str) -> Measured<Loop> {
    let shape = Shape::parse(&[shape]).expect("shape");
    let settings = Settings {
        duration: Some(Duration::from_secs(duration)),
        drain: Duration::from_secs(30),
        ..Settings::default()
    };
    let machine = Loop::new(Start::Open(Duration::from_millis(5), 10_000), None);
    simulated::run(&settings, StorageModel::new(&shape, 1, None), machine, &Watch::new()).expect("runs")
}

/// Three significant digits.
fn same(measured: Option<u64>, exact: u64) {
    let measured = measured.expect("enough samples");
    assert!(measured.abs_diff(exact) as f64 <= exact as f64 * 1e-3, "{measured} is not {exact}");
}

#[test]
fn five_milliseconds_are_five_milliseconds() {
    let run = open_200(60, "all:latency=5ms");
    let op = &run.operations[0];
    // Arrivals at 5, 10, … < 60,000 ms.
    assert_eq!(op.count, 11_999);
    for latency in [op.response_time.summary, op.service_time.summary, op.first_byte] {
        for value in [latency.min_ns, latency.p50_ns, latency.p99_ns, latency.p999_ns, latency.max_ns] {
            same(value, 5 * MS);
        }
    }
    assert_eq!(op.schedule_slip.max_ns, Some(0));
    // The last arrival completes at the end of the window, which it does not belong to.
    assert_eq!(op.ops_per_s, 11_998.0 / 60.0);
    assert_eq!(run.series.points.len(), 60);
    assert_eq!(run.series.points.iter().map(|p| p.ops).sum::<u64>(), 11_998);
    assert_eq!(run.window, (Tick::ZERO, Tick(60_000 * MS)));
}

#[test]
fn two_percent_at_fifty_milliseconds() {
    let run = open_200(600, "get:latency=mix(98%:1ms,2%:50ms)");
    let response = &run.operations[0].response_time.summary;
    same(response.p50_ns, MS);
    same(response.p90_ns, MS);
    same(response.p99_ns, 50 * MS);
    same(response.p999_ns, 50 * MS);
    let slow = run.machines[0].outcomes.iter().filter(|o| o.service_time() > Duration::from_millis(10)).count() as f64;
    let n = run.operations[0].count as f64;
    // Within five standard deviations of a binomial.
    assert!((slow - 0.02 * n).abs() < 5.0 * (n * 0.02 * 0.98).sqrt(), "{slow} of {n}");
    let mean = (slow * 50e6 + (n - slow) * 1e6) / n;
    assert!((response.mean_ns.expect("mean") - mean).abs() < mean * 1e-3);
}

/// The stall of 1 s every 10 s, first at 10 s, seen by arrivals every 5 ms: what arrives in `[s, s + 1 s)` is answered at
/// its end, all else after 1 ms.
#[test]
fn a_stall_is_seen_by_everyone_who_arrives_in_it() {
    let run = open_200(100, "all:latency=1ms,stall=1s/10s");
    let mut expected = empty();
    let mut arrivals = 0u64;
    for i in 1.. {
        let at = i * 5 * MS;
        if at >= 100_000 * MS {
            break;
        }
        let within = at % (10_000 * MS);
        let stalled = at >= 10_000 * MS && within < 1000 * MS;
        expected.saturating_record(if stalled { 1000 * MS - within } else { MS });
        arrivals += 1;
    }
    let response = &run.operations[0].response_time.summary;
    assert_eq!(response.count, arrivals);
    for (q, value) in
        [(0.5, response.p50_ns), (0.99, response.p99_ns), (0.999, response.p999_ns), (1.0, response.max_ns)]
    {
        let exact = expected.value_at_quantile(q);
        let value = value.expect("enough samples");
        assert!(value.abs_diff(exact) <= exact / 1000, "q {q}: {value} is not {exact}");
    }
    assert_eq!(run.operations[0].schedule_slip.max_ns, Some(0));
}

#[test]
fn waiting_for_a_lane_is_slip_and_part_of_response_time() {
    // 200/s on one lane that takes 10 ms: arrival i waits for all before it.
    let shape = Shape::parse(&["latency=10ms"]).expect("shape");
    let settings =
        Settings { duration: Some(Duration::from_secs(1)), drain: Duration::from_secs(60), ..Settings::default() };
    let machine = Loop::new(Start::Open(Duration::from_millis(5), 1), None);
    let run = simulated::run(&settings, StorageModel::new(&shape, 1, None), machine, &Watch::new()).expect("runs");
    let op = &run.operations[0];
    assert_eq!(op.count, 199);
    same(op.service_time.summary.max_ns, 10 * MS);
    // The i-th (from 1) is sent at 5 + 10(i − 1) ms and was meant for 5i ms.
    same(op.schedule_slip.max_ns, 198 * 5 * MS);
    same(op.response_time.summary.max_ns, 198 * 5 * MS + 10 * MS);
    same(op.response_time.summary.p50_ns, 99 * 5 * MS + 10 * MS);
    assert_eq!(op.ops_per_s, 99.0);
}

#[test]
fn warm_up_is_left_out_and_the_drain_is_counted() {
    let shape = Shape::parse(&["latency=100ms"]).expect("shape");
    let settings = Settings {
        warm_up: WarmUp::Fixed(Duration::from_secs(2)),
        duration: Some(Duration::from_secs(3)),
        ..Settings::default()
    };
    let machine = Loop::new(Start::Closed(4), None);
    let run = simulated::run(&settings, StorageModel::new(&shape, 1, None), machine, &Watch::new()).expect("runs");
    let machine = &run.machines[0];
    assert_eq!((machine.measured_at, machine.stopped_at), (Some(Tick(2000 * MS)), Some(Tick(5000 * MS))));
    // Each of four starts at 2.0, 2.1, … 4.9 s: those at 2.0 and after count, the last complete in the drain.
    assert_eq!(run.operations[0].count, 120);
    assert_eq!(machine.in_flight(), 0);
    assert_eq!(run.warm_up, Duration::from_secs(2));
    assert_eq!(run.operations[0].ops_per_s, 40.0);
}

#[test]
fn automatic_warm_up_ends_when_throughput_holds_and_says_so() {
    let settings = |warm_up| Settings { warm_up, duration: Some(Duration::from_secs(2)), ..Settings::default() };
    let auto = settings(WarmUp::Auto { at_most: Duration::from_secs(30) });
    let run = |storage: Slowing, settings: &Settings| {
        simulated::run_on(settings, storage, 8, Loop::new(Start::Closed(8), None), &Watch::new()).expect("runs")
    };
    // Latency falls for five seconds, then stays.
    let settled = run(Slowing { until: 5_000 * MS }, &auto);
    let warm_up = settled.warm_up.as_secs_f64();
    assert!((4.5..20.0).contains(&warm_up), "{warm_up}");
    assert!(
        settled.validity.iter().any(|v| v.check == "steady-state" && v.status == gpufeed_schema::ValidityStatus::Ok)
    );
    // It never stays.
    let never = run(Slowing { until: u64::MAX }, &auto);
    assert!(never.warm_up >= Duration::from_secs(30) && never.warm_up < Duration::from_secs(31), "{:?}", never.warm_up);
    assert!(
        never.validity.iter().any(|v| v.check == "steady-state" && v.status == gpufeed_schema::ValidityStatus::Warn)
    );
    assert!(never.operations[0].count > 0);
}

/// Latency that falls with time: throughput grows by a tenth per second of the first.
struct Slowing {
    until: u64,
}

impl Storage for Slowing {
    fn admit(&mut self, _op: &Op, now: Tick) -> Answer {
        let seconds = now.0.min(self.until) as f64 / 1e9;
        let done = now + Duration::from_secs_f64(0.002 / (1.0 + seconds));
        Answer { first_byte: done, done, result: Ok(()) }
    }
}

#[test]
fn errors_retries_and_timeouts_are_counted_and_kept_out_of_latency() {
    struct Flaky(u64);
    impl Storage for Flaky {
        fn admit(&mut self, _op: &Op, now: Tick) -> Answer {
            self.0 += 1;
            let (delay, result) = match self.0 % 10 {
                0 => (Duration::from_millis(1), Err(ErrorKind::Throttled)),
                5 => (Duration::from_secs(100), Ok(())),
                _ => (Duration::from_millis(2), Ok(())),
            };
            Answer { first_byte: now + delay, done: now + delay, result }
        }
    }
    let settings = Settings { duration: None, op_timeout: Duration::from_millis(50), ..Settings::default() };
    let run = |settings: &Settings| {
        simulated::run_on(settings, Flaky(0), 1, Loop::new(Start::Closed(1), Some(1000)), &Watch::new()).expect("runs")
    };
    let once = run(&settings);
    let op = &once.operations[0];
    assert_eq!((op.count, op.errors["throttled"], op.errors["timeout"], op.attempts), (800, 100, 100, 1000));
    same(op.response_time.summary.max_ns, 2 * MS);
    let retried = run(&Settings { retries: 1, ..settings });
    let op = &retried.operations[0];
    assert_eq!((op.count, op.errors.len()), (1000, 0));
    // Every fifth attempt is lost and made good by the next: the 1,000th success is attempt 1,249.
    assert_eq!(op.attempts, 1249);
    // A time-out of 50 ms and another attempt: response time spans both.
    same(op.response_time.summary.max_ns, 52 * MS);
}

#[test]
fn outputs_are_complete_and_standard() {
    let dir = tempfile::tempdir().expect("temp dir");
    let path = |name| Some(dir.path().join(name));
    let settings = Settings {
        duration: Some(Duration::from_secs(5)),
        op_log: path("ops.csv.zst"),
        hlog: path("latency.hlog"),
        intervals_csv: path("intervals.csv"),
        ..Settings::default()
    };
    let shape = Shape::parse(&["latency=3ms"]).expect("shape");
    let machine = Loop::new(Start::Open(Duration::from_millis(1), 100), None);
    let run = simulated::run(&settings, StorageModel::new(&shape, 1, None), machine, &Watch::new()).expect("runs");
    let count = run.operations[0].count;
    assert_eq!(count, 4999);

    let log = zstd::decode_all(std::fs::File::open(dir.path().join("ops.csv.zst")).expect("log")).expect("zstd");
    let mut rows = csv::Reader::from_reader(&log[..]);
    let headers = "worker,op,carrier,key,offset,bytes,intended_ns,sent_ns,first_byte_ns,done_ns,status,attempts";
    assert_eq!(rows.headers().expect("headers").iter().collect::<Vec<_>>().join(","), headers);
    let rows: Vec<csv::StringRecord> = rows.records().collect::<Result<_, _>>().expect("rows");
    assert_eq!(rows.len() as u64, count);
    assert_eq!(rows[2].iter().collect::<Vec<_>>()[..5], ["1", "get", "model", "t/0000000000000002", "0"]);
    let number = |row: &csv::StringRecord, i: usize| row[i].parse::<u64>().expect("number");
    assert!(rows.iter().all(|row| number(row, 9) - number(row, 6) == 3 * MS && &row[10] == "ok"));

    let hlog = std::fs::read_to_string(dir.path().join("latency.hlog")).expect("hlog");
    let responses = hlog.lines().filter(|line| line.starts_with("Tag=get-model-response,")).count();
    // One per second, and the drain.
    assert_eq!(responses, 6);
    let mut intervals = csv::Reader::from_path(dir.path().join("intervals.csv")).expect("intervals");
    let ops_at = intervals.headers().expect("headers").iter().position(|name| name == "ops").expect("a count");
    let ops: u64 = intervals.records().map(|row| number(&row.expect("row"), ops_at)).sum();
    assert_eq!(ops as f64, run.operations[0].ops_per_s * 5.0);
}

#[test]
fn same_plan_and_seed_issue_the_same_and_another_does_not() {
    let run = |limit, seed, lanes| {
        let shape = Shape::parse(&["latency=uniform(1ms,9ms)"]).expect("shape");
        let settings = Settings { duration: None, seed, ..Settings::default() };
        let machine = Loop::new(Start::Closed(lanes), Some(limit));
        let run =
            simulated::run(&settings, StorageModel::new(&shape, seed, None), machine, &Watch::new()).expect("runs");
        (run.plan_hash, run.issued_hash.expect("count-bounded"), run.window)
    };
    assert_eq!(run(1000, 7, 8), run(1000, 7, 8));
    // Other timing, same operations.
    let (a, b) = (run(1000, 7, 8), run(1000, 8, 3));
    assert_eq!((&a.0, &a.1), (&b.0, &b.1));
    assert_ne!(a.2, b.2);
    assert_ne!(run(1001, 7, 8).1, a.1);
}

#[test]
fn cancelling_stops_and_marks_the_run() {
    let watch = Watch::new();
    watch.cancel();
    let settings = Settings { duration: None, ..Settings::default() };
    let shape = Shape::parse(&["latency=1ms"]).expect("shape");
    let machine = Loop::new(Start::Closed(2), None);
    let run = simulated::run(&settings, StorageModel::new(&shape, 1, None), machine, &watch).expect("runs");
    assert!(run.interrupted && run.machines[0].in_flight() == 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Whatever storage does, every operation comes back exactly once, and the report's counts are the machine's.
    #[test]
    fn no_completion_is_lost(
        open: bool,
        gap_us in 1u64..3000,
        lanes in 1usize..40,
        duration_ms in 1u64..400,
        warm_up_ms in 0u64..100,
        drain_ms in 0u64..50,
        timeout_ms in 1u64..40,
        retries in 0u32..3,
        limit in prop::option::of(1u64..500),
        seed: u64,
    ) {
        let gap = Duration::from_micros(gap_us);
        let start = if open { Start::Open(gap, lanes) } else { Start::Closed(lanes) };
        let shape = Shape::parse(&["latency=exp(2ms),errors=3%,short=2%,stall=20ms/60ms"]).expect("shape");
        let settings = Settings {
            warm_up: if warm_up_ms > 0 { WarmUp::Fixed(Duration::from_millis(warm_up_ms)) } else { WarmUp::None },
            duration: Some(Duration::from_millis(duration_ms)),
            drain: Duration::from_millis(drain_ms),
            op_timeout: Duration::from_millis(timeout_ms),
            interval: Duration::from_millis(37),
            retries,
            ..Settings::default()
        };
        let machine = Loop::new(start, limit);
        let run = simulated::run(&settings, StorageModel::new(&shape, seed, None), machine, &Watch::new()).expect("runs");
        let machine = &run.machines[0];
        prop_assert!(machine.done.iter().all(|&times| times == 1), "{:?}", machine.done);
        let within = |o: &&gpufeed_workloads::op::Outcome| run.window.0 <= o.intended && o.intended < settings_end(&run, &settings);
        let counted: u64 = run.operations.iter().map(|op| op.count + op.errors.values().sum::<u64>()).sum();
        let expected = machine.outcomes.iter().filter(within).count() as u64;
        if machine.measured_at.is_some() {
            prop_assert_eq!(counted, expected);
            let completed = |o: &&gpufeed_workloads::op::Outcome| {
                o.result.is_ok() && run.window.0 <= o.done && o.done < settings_end(&run, &settings)
            };
            let completed = machine.outcomes.iter().filter(completed).count() as u64;
            prop_assert_eq!(run.series.points.iter().map(|p| p.ops).sum::<u64>(), completed);
        }
    }
}

/// The window's end as planned: a machine that finished early ends its window with its last completion, inclusive.
fn settings_end(run: &Measured<Loop>, settings: &Settings) -> Tick {
    run.window.0 + settings.duration.expect("bounded")
}
