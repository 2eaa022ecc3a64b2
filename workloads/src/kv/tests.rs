//! The machine against closed forms, on virtual time with storage whose behavior is known.

use std::sync::Arc;
use std::time::Duration;

use gpufeed_profiles::units::Bytes;
use gpufeed_schema::{GpuTime, Kv as Section};
use proptest::prelude::*;

use super::*;
use crate::driver::drive;
use crate::inference::Batch;
use crate::inference::cost_tests::llama_8b_h100;
use crate::op::{ErrorKind, Verb};
use crate::trace::{Format, Record, Trace};

const MS: u64 = 1_000_000;
const S: u64 = 1_000_000_000;
const BLOCK: u64 = 512;

/// Requests of (arrival in ms, conversation, prompt tokens, output tokens); prompts of one conversation share blocks.
pub(super) fn trace(requests: &[(u64, u64, u64, u64)]) -> Trace {
    let records = requests.iter().map(|&(at_ms, talk, input, output)| {
        Ok(Record {
            stamp_ns: Some((at_ms * MS) as i64),
            input_tokens: input as u32,
            output_tokens: output as u32,
            blocks: (0..input.div_ceil(BLOCK)).map(|i| talk << 32 | i).collect(),
            ..Record::default()
        })
    });
    Trace::from_records(Format::Mooncake, records, Some(BLOCK as u32)).expect("valid records")
}

pub(super) fn requests(list: &[(u64, u64, u64, u64)]) -> Arc<Requests> {
    Arc::new(Requests::from_trace(&trace(list), OutputBlocks::None, BLOCK as u32))
}

pub(super) fn spec() -> KvSpec {
    KvSpec { workers: 1, g2_bytes: Bytes(0), load: LoadPolicy::Always, ..KvSpec::default() }
}

pub(super) fn machine(spec: &KvSpec, requests: &Arc<Requests>) -> Kv {
    Kv::new(spec.clone(), llama_8b_h100(), Arc::clone(requests)).expect("a valid run")
}

/// Plays to the end on storage with a fixed latency.
pub(super) fn play(spec: &KvSpec, requests: &Arc<Requests>, latency: Duration) -> Section {
    let mut kv = machine(spec, requests);
    let (_, end) = drive(&mut kv, Tick(7), None, None, |_| (latency, Ok(())));
    let section = kv.report((Tick(7), end));
    sums(&section, ((end.0 - 7) as f64 / spec.time_scale).round() as u64);
    section
}

pub(super) fn sums(section: &Section, window_ns: u64) {
    let GpuTime { total_ns, .. } = section.gpu;
    let g = &section.gpu;
    let cells =
        [g.prefill_ns, g.recompute_ns, g.decode_ns, g.storage_stall_ns, g.transfer_stall_ns, g.no_work_ns, g.down_ns];
    assert_eq!(cells.iter().sum::<u64>(), total_ns);
    assert_eq!(total_ns, window_ns * u64::from(section.workers), "workers × window");
    assert_eq!(section.requests, section.completed + section.failed + section.unfinished);
}

pub(super) fn near(actual: Option<u64>, expected: u64) {
    let actual = actual.expect("a sample");
    // Histograms keep three digits.
    assert!((actual as f64 / expected as f64 - 1.0).abs() < 2e-3, "{actual} against {expected}");
}

pub(super) fn prefill_ns(tokens: u64) -> u64 {
    let model = llama_8b_h100();
    let mut batch = Batch::default();
    batch.chunk(&model, 0, tokens, true);
    model.iteration_ns(&batch).round() as u64
}

#[test]
fn ttft_of_one_request_is_host_time_and_iterations() {
    let model = llama_8b_h100();
    for (time_scale, rate_scale) in [(1.0, 1.0), (8.0, 1.0), (1.0, 4.0)] {
        let section =
            play(&KvSpec { time_scale, rate_scale, ..spec() }, &requests(&[(100, 1, 6000, 50)]), Duration::ZERO);
        near(section.ttft.summary.max_ns, model.request_ns(6000) as u64 + prefill_ns(6000));
        let decode = |i: u64| {
            let mut batch = Batch::default();
            batch.decode(&model, 6000 + i);
            model.iteration_ns(&batch)
        };
        let decode_ns: f64 = (1..50).map(decode).sum();
        near(section.tpot.max_ns, (decode_ns / 49.0) as u64);
        near(section.e2e.summary.max_ns, (model.request_ns(6000) + decode_ns) as u64 + prefill_ns(6000));
        assert_eq!((section.requests, section.completed), (1, 1));
        assert_eq!(section.stored_bytes, 11 * 512 * 131_072);
        assert_eq!(section.itl.count, 49);
    }
}

#[test]
fn a_prompt_seen_before_is_found_in_gpu_memory() {
    let section = play(&spec(), &requests(&[(0, 1, 5120, 2), (3000, 1, 5120, 2)]), Duration::ZERO);
    assert_eq!(section.hits_by_tier.g1, 9 * 512, "all but the last block, which must be computed");
    assert_eq!(section.recomputed_tokens["tail"], 512);
    assert_eq!(section.prefix_hit_ratio, Some(9.0 / 20.0));
    assert_eq!(section.token_hit_ratio, Some(9.0 * 512.0 / 10_240.0));
    assert_eq!((section.loaded_bytes, section.loaded_tokens), (0, 0));
}

/// The third request's blocks have left GPU memory; the target has them.
const EVICTED: [(u64, u64, u64, u64); 3] = [(0, 1, 10_240, 1), (4000, 2, 10_240, 1), (8000, 1, 10_240, 1)];

#[test]
fn a_load_takes_its_latency_times_the_rounds_it_needs() {
    for (get_in_flight, rounds) in [(1, 19), (4, 5), (16, 2), (19, 1)] {
        let spec = KvSpec { g1_blocks: Some(20), get_in_flight, ..spec() };
        let section = play(&spec, &requests(&EVICTED), Duration::from_millis(40));
        assert_eq!(section.hits_by_tier.g4, 19 * 512);
        assert_eq!(section.loaded_bytes, 19 * 512 * 131_072);
        near(section.ttft_parts.load.max_ns, rounds * 40 * MS);
        // The blocks of the last round are copied after it, at 43.9 GB/s.
        let last = if 19 % get_in_flight == 0 { get_in_flight } else { 19 % get_in_flight };
        let copy_ns = u64::from(last) as f64 * 512.0 * 131_072.0 / 43.9;
        near(section.ttft_parts.copy.max_ns, copy_ns as u64);
        assert!(section.gpu.storage_stall_ns >= rounds * 40 * MS);
        assert_eq!(section.never_read_blocks, 40 - 19);
    }
}

#[test]
fn host_memory_answers_before_the_target() {
    let spec = KvSpec { g1_blocks: Some(20), g2_bytes: Bytes(40 << 26), ..spec() };
    let section = play(&spec, &requests(&EVICTED), Duration::from_millis(20));
    assert_eq!((section.hits_by_tier.g2, section.hits_by_tier.g4, section.loaded_bytes), (19 * 512, 0, 0));
    near(section.ttft_parts.copy.max_ns, (19.0 * 512.0 * 131_072.0 / 43.9) as u64);
}

#[test]
fn ranks_have_objects_of_their_own() {
    let spec = KvSpec { g1_blocks: Some(20), per_rank: true, ..spec() };
    let cost = CostModel { tp: 2, kv_bytes_per_token_rank: 65_536.0, ..llama_8b_h100() };
    let mut kv = Kv::new(spec, cost, requests(&EVICTED)).expect("a valid run");
    let names = kv.names();
    let (submits, end) = drive(&mut kv, Tick(0), None, None, |_| (Duration::from_millis(1), Ok(())));
    let puts = submits.iter().filter(|s| s.op.verb == Verb::Put);
    let keys: std::collections::BTreeSet<String> = puts.clone().map(|s| names.of(s.op.key)).collect();
    assert_eq!((puts.clone().count(), keys.len()), (80, 80));
    assert!(keys.iter().all(|key| key.starts_with("kv/0/") || key.starts_with("kv/1/")));
    assert!(submits.iter().all(|s| s.op.bytes == 512 * 65_536));
    assert_eq!(kv.report((Tick(0), end)).loaded_bytes, 19 * 512 * 131_072);
}

#[test]
fn failed_loads_are_computed_again_and_counted_by_reason() {
    for (kind, reason) in [
        (ErrorKind::Timeout, "timed-out"),
        (ErrorKind::NotFound, "lost"),
        (ErrorKind::Server, "failed"),
        (ErrorKind::Corrupt, "failed"),
    ] {
        let spec = KvSpec { g1_blocks: Some(20), get_in_flight: 8, ..spec() };
        let mut kv = machine(&spec, &requests(&EVICTED));
        let mut gets = 0;
        let (submits, end) = drive(&mut kv, Tick(0), None, None, |submit| {
            gets += u64::from(submit.op.verb == Verb::Get);
            let fails = submit.op.verb == Verb::Get && gets == 6;
            (Duration::from_millis(2), if fails { Err(kind) } else { Ok(()) })
        });
        let section = kv.report((Tick(0), end));
        assert_eq!(section.completed, 3);
        assert_eq!(section.hits_by_tier.g4, 5 * 512, "up to the block that failed");
        assert_eq!(section.recomputed_tokens[reason], 14 * 512, "{reason}");
        assert_eq!(section.recomputed_tokens["tail"], 512, "the last block");
        assert_eq!(submits.iter().filter(|s| s.op.verb == Verb::Get).count(), 13, "the rest was not asked for");
        // A lost block is written again, the others are still there.
        let puts = submits.iter().filter(|s| s.op.verb == Verb::Put).count();
        assert_eq!(puts, if kind == ErrorKind::NotFound { 41 } else { 40 });
    }
}

#[test]
fn policies_and_lookups() {
    let slow = Duration::from_secs(1);
    let with = |load| play(&KvSpec { g1_blocks: Some(20), load, ..spec() }, &requests(&EVICTED), slow);
    assert_eq!(with(LoadPolicy::Never).recomputed_tokens["chosen"], 19 * 512);
    assert_eq!(with(LoadPolicy::Always).recomputed_tokens["chosen"], 0);
    // Nothing is known of the target before the first load, so break-even tries it once.
    let again: Vec<_> = (0..6).map(|i| (i * 6000, i % 2, 10_240, 1)).collect();
    let section = play(&KvSpec { g1_blocks: Some(20), load: LoadPolicy::BreakEven, ..spec() }, &requests(&again), slow);
    assert_eq!(section.hits_by_tier.g4, 19 * 512);
    assert_eq!(section.recomputed_tokens["chosen"], 3 * 19 * 512);

    let spec = KvSpec { g1_blocks: Some(20), exists: Exists::Stat, ..spec() };
    let mut kv = machine(&spec, &requests(&EVICTED));
    let mut written = std::collections::BTreeSet::new();
    let (submits, end) = drive(&mut kv, Tick(0), None, None, |submit| {
        let known = !written.insert(submit.op.key.id) || submit.op.verb == Verb::Put;
        if submit.op.verb == Verb::Stat && !known {
            written.remove(&submit.op.key.id);
        }
        (Duration::from_millis(3), if known { Ok(()) } else { Err(ErrorKind::NotFound) })
    });
    let section = kv.report((Tick(0), end));
    assert_eq!(submits.iter().filter(|s| s.op.verb == Verb::Stat).count(), 3 * 19);
    assert_eq!(section.hits_by_tier.g4, 19 * 512);
    near(section.ttft_parts.lookup.max_ns, 2 * 3 * MS);
    near(section.ttft_parts.load.max_ns, 2 * 3 * MS);
}

#[test]
fn answers_are_found_by_the_next_turn() {
    // The second turn's prompt is the first's with its answer and more.
    let list = [(0, 1, 1024, 1200), (60_000, 1, 4096, 1)];
    let infer = Requests::from_trace(&trace(&list), OutputBlocks::Infer, 512);
    assert_eq!(infer.blocks(&infer.list()[0]).len(), 4, "two of the prompt, two of the answer");
    let section = play(&spec(), &Arc::new(infer), Duration::ZERO);
    assert_eq!(section.hits_by_tier.g1, 4 * 512);
    let none = play(&spec(), &requests(&list), Duration::ZERO);
    assert_eq!(none.hits_by_tier.g1, 2 * 512);
}

#[test]
fn the_same_plan_is_the_same_run() {
    let list: Vec<_> = (0..40).map(|i| (i * 150, i % 7, 2000 + i * 100, 30 + i)).collect();
    let spec = KvSpec { workers: 3, ..spec() };
    let run = || {
        let mut kv = machine(&spec, &requests(&list));
        let hash = kv.plan_hash();
        let (submits, end) =
            drive(&mut kv, Tick(0), None, None, |s| (Duration::from_micros(s.op.bytes / 5000), Ok(())));
        (hash, submits, kv.report((Tick(0), end)))
    };
    let (a, b) = (run(), run());
    assert!(a == b);
    let mut other = list.clone();
    other[5].2 += 1;
    assert_ne!(machine(&spec, &requests(&other)).plan_hash(), a.0);
    let faster = KvSpec { rate_scale: 2.0, ..spec.clone() };
    assert_ne!(machine(&faster, &requests(&list)).plan_hash(), a.0);
}

/// Wakes that come late, as on a wall clock, do not move the model's time line.
#[test]
fn lateness_does_not_accumulate() {
    let list = requests(&(0..80).map(|i| (i * 130, i % 9, 3000 + i * 50, 20 + i)).collect::<Vec<_>>());
    let spec = KvSpec { workers: 3, g1_blocks: Some(60), g2_bytes: Bytes(40 << 26), shared_tier: false, ..spec() };
    let run = |late: fn(u64) -> u64| {
        let mut kv = machine(&spec, &list);
        let mut out = Actions::default();
        let mut wakes = std::collections::BTreeSet::new();
        let (mut now, mut order, mut last) = (0, 0, 0);
        kv.step(Tick(0), Event::Start, &mut out);
        while !out.finished() {
            for (at, tag) in out.drain_wakes() {
                order += 1;
                wakes.insert((at, order, tag));
            }
            let (at, order, tag) = wakes.pop_first().expect("a wake");
            now = now.max(at.0 + late(order));
            last = at.0;
            kv.step(Tick(now), Event::Due { at, tag }, &mut out);
        }
        kv.report((Tick(0), Tick(last)))
    };
    let (exact, late) = (run(|_| 0), run(|order| crate::random::mix(order) % (3 * MS)));
    assert!(exact == late);
    assert_eq!(exact.completed, 80);
}

#[test]
fn time_scale_changes_storage_only() {
    let list: Vec<_> = (0..30).map(|i| (i * 400, i % 5, 4000, 40)).collect();
    let run = |time_scale| play(&KvSpec { time_scale, ..spec() }, &requests(&list), Duration::ZERO);
    let (plain, slow) = (run(1.0), run(20.0));
    near(slow.ttft.summary.max_ns, plain.ttft.summary.max_ns.expect("samples"));
    assert!((slow.output_tokens_per_s / plain.output_tokens_per_s - 1.0).abs() < 1e-3);
    assert!((slow.gpu.decode_ratio - plain.gpu.decode_ratio).abs() < 1e-3);
}

#[test]
fn baselines_stand_in_their_order() {
    let list: Vec<_> = (0..60).map(|i| (i * 300, crate::random::mix(i) % 12, 16_384, 20)).collect();
    let spec =
        KvSpec { workers: 2, g1_blocks: Some(40), g2_bytes: Bytes(120 << 26), routing: Routing::RoundRobin, ..spec() };
    let list = requests(&list);
    let mut section = play(&spec, &list, Duration::from_millis(1));
    fill_baselines(&mut section, &spec, &llama_8b_h100(), &list, Window::default()).expect("a valid run");
    let Baselines { no_cache, local, ideal } = Baselines::of(&section);
    assert!(no_cache.hit < local.hit && local.hit < ideal.hit, "{no_cache:?} {local:?} {ideal:?}");
    assert!(no_cache.ttft > local.ttft && local.ttft > ideal.ttft, "{no_cache:?} {local:?} {ideal:?}");
    assert!(no_cache.useful < local.useful && local.useful < ideal.useful);
    let useful = section.gpu.useful_ratio.expect("ideal storage did work");
    assert!(useful > local.useful && useful <= 1.0, "{useful}");
    assert!(section.load_ratio.is_some_and(|load| load > 0.5));
}

#[derive(Debug)]
struct Line {
    hit: f64,
    ttft: f64,
    useful: f64,
}

struct Baselines {
    no_cache: Line,
    local: Line,
    ideal: Line,
}

impl Baselines {
    fn of(section: &Section) -> Self {
        let line = |baseline: &Option<gpufeed_schema::Baseline>| {
            let baseline = baseline.as_ref().expect("filled");
            Line {
                hit: baseline.token_hit_ratio.expect("prompts"),
                ttft: baseline.ttft.summary.mean_ns.expect("samples"),
                useful: baseline.gpu.useful_ratio.expect("work"),
            }
        };
        let all = &section.baselines;
        Self { no_cache: line(&all.no_cache), local: line(&all.local), ideal: line(&all.ideal_storage) }
    }
}

/// The trap: storage slower than break-even keeps the GPU busy, nearly all of it decode, and is of little use, because
/// few requests at a time get as far as decoding.
#[test]
fn slow_storage_looks_busy_decoding_and_is_of_little_use() {
    // 200 prompts once, to be stored; then again, four a second, with long answers.
    let once = (0..200).map(|i| (i * 250, i, 8192, 1));
    let again = (0..200).map(|i| (60_000 + i * 250, i, 8192, 800));
    let list = requests(&once.chain(again).collect::<Vec<_>>());
    let spec = KvSpec { workers: 2, routing: Routing::RoundRobin, ..spec() };
    let window = Window { warm_up: Duration::from_secs(59), length: None };
    let run = |latency| {
        let mut kv = machine(&spec, &list);
        let measure = Tick::ZERO + window.warm_up;
        let (_, end) = drive(&mut kv, Tick(0), Some(measure), None, |submit| {
            (if submit.op.verb == Verb::Get { latency } else { Duration::ZERO }, Ok(()))
        });
        let mut section = kv.report((measure, end));
        sums(&section, end.0 - measure.0);
        fill_baselines(&mut section, &spec, &llama_8b_h100(), &list, window).expect("a valid run");
        assert_eq!(section.completed, 200);
        section.gpu
    };
    let (fast, slow) = (run(Duration::from_millis(1)), run(Duration::from_secs(4)));
    assert!(slow.busy_ratio > 0.8 && slow.decode_ratio / slow.busy_ratio > 0.95, "{slow:?}");
    assert!(fast.useful_ratio > Some(0.95) && slow.useful_ratio < Some(0.5), "{slow:?} {fast:?}");
    assert!(slow.storage_starved_ratio > 5.0 * fast.storage_starved_ratio);
    assert!(slow.mean_batch < fast.mean_batch / 2.0);
}

#[test]
fn a_plan_reads_back_and_takes_no_unknown_knob() {
    let spec = KvSpec { exists: Exists::Stat, g1_blocks: Some(9), slo_tpot: Duration::from_micros(1500), ..spec() };
    let text = serde_json::to_string(&spec).expect("plain data");
    assert!(text.contains(r#""slo_tpot":"1500us""#), "{text}");
    assert_eq!(serde_json::from_str::<KvSpec>(&text).expect("what was written"), spec);
    let error = serde_json::from_str::<KvSpec>(r#"{"g2": 1}"#).expect_err("an unknown knob").to_string();
    assert!(error.starts_with("unknown field `g2`"), "{error}");
}

#[test]
fn bad_plans_say_what_is_wrong() {
    let list = requests(&[(0, 1, 1000, 1)]);
    let error = |spec, cost| Kv::new(spec, cost, Arc::clone(&list)).expect_err("a bad plan").to_string();
    assert_eq!(
        error(KvSpec { get_in_flight: 0, ..spec() }, llama_8b_h100()),
        "`get_in_flight` is 0; it must be at least 1"
    );
    assert_eq!(
        error(KvSpec { time_scale: f64::NAN, ..spec() }, llama_8b_h100()),
        "`time_scale` is NaN; it must be above 0 and at most a million"
    );
    let big = CostModel { weight_bytes_per_rank: 141e9, ..llama_8b_h100() };
    assert!(error(KvSpec { model: "m".into(), ..spec() }, big).starts_with("m leaves no GPU memory for a KV cache"));
    let empty = Kv::new(spec(), llama_8b_h100(), Arc::default()).expect_err("no requests");
    assert_eq!(empty, KvError::EmptyTrace);
}

#[test]
fn a_prompt_larger_than_gpu_memory_fails_and_the_run_goes_on() {
    let spec = KvSpec { g1_blocks: Some(10), ..spec() };
    let section = play(&spec, &requests(&[(0, 1, 5121, 2), (10, 2, 3000, 2)]), Duration::ZERO);
    assert_eq!((section.completed, section.failed, section.unfinished), (1, 1, 0));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Whatever storage does and whenever the window is cut: cells sum exactly, requests are accounted for, and every
    /// block on the wire is counted.
    #[test]
    fn books_balance(
        list in prop::collection::vec((0u64..4000, 0u64..6, 1u64..9000, 1u64..60), 1..40),
        measure in 0u64..3 * S, length in 1u64..8 * S,
        workers in 1u32..4, g1 in 18u64..60, g2 in 0u64..40, stat: bool, time_scale in 1u32..3,
        faults in prop::collection::vec(0u64..40, 1..50),
    ) {
        let spec = KvSpec {
            workers, g1_blocks: Some(g1), g2_bytes: Bytes(g2 << 26),
            exists: if stat { Exists::Stat } else { Exists::Index },
            time_scale: f64::from(time_scale), load: LoadPolicy::BreakEven, get_in_flight: 3, put_in_flight: 2, ..spec()
        };
        let list = Arc::new(Requests::from_trace(&trace(&list), OutputBlocks::Infer, 512));
        let mut kv = machine(&spec, &list);
        let (mut turn, mut good, stop) = (0, Vec::new(), measure + length);
        let (submits, _) = drive(&mut kv, Tick(0), Some(Tick(measure)), Some(Tick(stop)), |submit| {
            turn += 1;
            let fault = faults[turn % faults.len()];
            let latency = Duration::from_micros(fault * 1000);
            let result = if fault == 7 { Err(ErrorKind::Timeout) } else { Ok(()) };
            good.extend(result.is_ok().then_some(*submit));
            (latency, result)
        });
        let section = kv.report((Tick(measure), Tick(stop)));
        let g = &section.gpu;
        let cells = [g.prefill_ns, g.recompute_ns, g.decode_ns, g.storage_stall_ns, g.transfer_stall_ns, g.no_work_ns, g.down_ns];
        prop_assert_eq!(cells.iter().sum::<u64>(), g.total_ns);
        if kv.window_was_cut() {
            let exact = length * u64::from(workers);
            prop_assert_eq!(g.total_ns, (exact as f64 / f64::from(time_scale)).round() as u64);
        }
        // As the recorder counts: by intended start, whenever it ends. A machine that finished was never stopped, and may
        // have been over before there was anything to measure.
        let start = kv.window.expect("it has started").0;
        let end = if kv.window_was_cut() { stop } else { u64::MAX };
        let within = good.iter().filter(|submit| (start..end).contains(&submit.intended.0));
        let of = |verb| within.clone().filter(|s| s.op.verb == verb).map(|s| s.op.bytes).sum::<u64>();
        let (wire, loaded, stored) = (section.wire, of(Verb::Get), of(Verb::Put));
        prop_assert_eq!((section.loaded_bytes, section.stored_bytes), (loaded, stored));
        prop_assert_eq!((wire.objects_read, wire.objects_written), (loaded / wire.object_bytes, stored / wire.object_bytes));
        prop_assert_eq!(section.requests, section.completed + section.failed + section.unfinished);
        prop_assert!(submits.iter().all(|s| s.op.verb == Verb::Stat || s.op.bytes == kv.object_bytes()));
    }
}

/// Not a timed test: run by hand with a trace, prints what it took.
#[test]
#[ignore = "needs GPUFEED_TRACE, a Mooncake trace file"]
fn a_whole_trace() {
    let path = std::env::var("GPUFEED_TRACE").expect("GPUFEED_TRACE names a trace file");
    let workers = std::env::var("GPUFEED_WORKERS").map_or(16, |text| text.parse().expect("a number"));
    let trace = Trace::load(std::path::Path::new(&path)).expect("a trace");
    let list = Arc::new(Requests::from_trace(&trace, OutputBlocks::Infer, 512));
    let spec = KvSpec { workers, load: LoadPolicy::BreakEven, g2_bytes: Bytes(64 << 30), ..spec() };
    for kind in [BaselineKind::NoCache, BaselineKind::Local, BaselineKind::IdealStorage] {
        let start = std::time::Instant::now();
        let section = baseline(&spec, &llama_8b_h100(), &list, kind, Window::default()).expect("a valid run");
        let took = start.elapsed();
        assert_eq!(section.completed + section.failed, list.list().len() as u64);
        let note = format!(
            "{kind:?}: {took:?} completed {} failed {} hit {:?} ttft mean {:?} p99 {:?} tokens/s {:.0} gpu {:?}\n",
            section.completed,
            section.failed,
            section.token_hit_ratio,
            section.ttft.summary.mean_ns,
            section.ttft.summary.p99_ns,
            section.output_tokens_per_s,
            section.gpu
        );
        std::io::Write::write_all(&mut std::io::stderr(), note.as_bytes()).expect("standard error");
    }
}
