//! Loads against closed forms: layers, stragglers, the choice between loading and computing, and deadlines.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use gpufeed_profiles::units::{Bytes, BytesPerSec};
use gpufeed_schema::Kv as Section;
use proptest::prelude::*;

use super::tests::{machine, near, play, requests, spec, sums, trace};
use super::*;
use crate::driver::drive;
use crate::inference::Batch;
use crate::inference::cost_tests::llama_8b_h100;
use crate::inference::worker::overlapped_end;
use crate::kv::play::play as play_on;
use crate::machine::Submit;
use crate::op::{ErrorKind, Verb};
use crate::storage::{Answer, Storage};

const MS: u64 = 1_000_000;
const BLOCK: u64 = 512;
const LAYERS: u64 = 32;
const BLOCK_BYTES: u64 = BLOCK * 131_072;

/// The third prompt's blocks have left GPU memory; the target has them.
const EVICTED: [(u64, u64, u64, u64); 3] = [(0, 1, 10_240, 1), (4000, 2, 10_240, 1), (8000, 1, 10_240, 1)];

fn layered(layers_per_read: u32) -> KvSpec {
    KvSpec { g1_blocks: Some(20), overlap: Overlap::LayerWise, layers_per_read, get_in_flight: 10_000, ..spec() }
}

fn last_chunk_ns() -> u64 {
    let mut batch = Batch::default();
    batch.chunk(&llama_8b_h100(), 19 * BLOCK, BLOCK, true);
    llama_8b_h100().iteration_ns(&batch).round() as u64
}

#[test]
fn layers_are_read_as_ranges_and_the_first_token_comes_at_the_recurrence() {
    for (per_read, latency_ms) in [(1, 0), (1, 3), (1, 60), (8, 60), (5, 60), (32, 60), (64, 60)] {
        let mut kv = machine(&layered(per_read), &requests(&EVICTED));
        let latency = Duration::from_millis(latency_ms);
        let (submits, end) = drive(&mut kv, Tick(0), None, None, |_| (latency, Ok(())));
        let section = kv.report((Tick(0), end));
        sums(&section, end.0);
        // N·L ranged reads, or N·⌈L/g⌉.
        let parts = LAYERS.div_ceil(u64::from(per_read));
        let gets: Vec<&Submit> = submits.iter().filter(|submit| submit.op.verb == Verb::Get).collect();
        assert_eq!(gets.len() as u64, 19 * parts);
        assert_eq!(section.load.reads_per_object, parts as u32);
        assert!(gets.iter().all(|submit| submit.op.ranged));
        assert_eq!((section.loaded_bytes, section.hits_by_tier.g4), (19 * BLOCK_BYTES, 19 * BLOCK));
        // The ranges of each object lie end to end.
        let mut ranges: BTreeMap<_, Vec<(u64, u64)>> = BTreeMap::new();
        for get in &gets {
            ranges.entry(get.op.key).or_default().push((get.op.offset, get.op.bytes));
        }
        for mut ranges in ranges.into_values() {
            ranges.sort_unstable();
            let end = ranges.iter().fold(0, |at, &(offset, bytes)| if offset == at { at + bytes } else { u64::MAX });
            assert_eq!(end, BLOCK_BYTES);
        }
        // All reads land at once, after the latency; their copies follow one another, layer by layer.
        let copy_ns = ((BLOCK_BYTES as f64 / 43.9) / parts as f64).round() as u64;
        let landed: Vec<Tick> =
            (0..LAYERS).map(|layer| Tick(latency_ms * MS + (layer / u64::from(per_read) + 1) * 19 * copy_ns)).collect();
        let ttft = overlapped_end(Tick(0), last_chunk_ns(), &landed).0 + llama_8b_h100().request_ns(10_240) as u64;
        let wait = overlapped_end(Tick(0), last_chunk_ns(), &landed).0 - last_chunk_ns();
        near(section.ttft_parts.load.max_ns, wait);
        near(section.ttft.summary.min_ns, ttft);
        // Nothing else ran: what was waited for is a storage stall.
        let stall = section.gpu.storage_stall_ns;
        assert!(stall.abs_diff(wait) <= 1000, "{stall} against {wait}");
    }
}

#[test]
fn layers_that_are_there_at_once_cost_nothing() {
    // A link that takes no time and storage that answers at once: as if the prefix had been in GPU memory.
    let cost = CostModel { host_link_bytes_per_s: 1e18, ..llama_8b_h100() };
    let run = |overlap, g1| {
        let spec = KvSpec { overlap, g1_blocks: Some(g1), ..layered(1) };
        let mut kv = Kv::new(spec, cost.clone(), requests(&EVICTED)).expect("a valid run");
        let (_, end) = drive(&mut kv, Tick(0), None, None, |_| (Duration::ZERO, Ok(())));
        kv.report((Tick(0), end)).ttft.summary.min_ns.expect("a request")
    };
    let (held, loaded) = (run(Overlap::None, 60), run(Overlap::LayerWise, 20));
    assert!(loaded >= held && loaded - held < 2000 + held / 500, "{loaded} against {held}");
}

#[test]
fn host_memory_is_copied_layer_by_layer_too() {
    let spec = KvSpec { g2_bytes: Bytes(60 << 26), ..layered(1) };
    let section = play(&spec, &requests(&EVICTED), Duration::from_millis(20));
    assert_eq!((section.hits_by_tier.g2, section.loaded_bytes), (19 * BLOCK, 0));
    // The copy of 19 blocks takes longer than the chunk: what it takes beyond all but the last layer's compute shows.
    let copy_ns = ((BLOCK_BYTES as f64 / 43.9) / LAYERS as f64).round() as u64;
    let landed: Vec<Tick> = (1..=LAYERS).map(|layer| Tick(layer * 19 * copy_ns)).collect();
    near(section.ttft_parts.load.max_ns, overlapped_end(Tick(0), last_chunk_ns(), &landed).0 - last_chunk_ns());
}

#[test]
fn what_fails_in_a_layer_is_computed() {
    for (kind, reason) in
        [(ErrorKind::Timeout, "timed-out"), (ErrorKind::NotFound, "lost"), (ErrorKind::Server, "failed")]
    {
        let spec = KvSpec { get_in_flight: 8, ..layered(4) };
        let mut kv = machine(&spec, &requests(&EVICTED));
        let mut gets = 0;
        let (submits, end) = drive(&mut kv, Tick(0), None, None, |submit| {
            gets += u64::from(submit.op.verb == Verb::Get);
            let fails = submit.op.verb == Verb::Get && gets == 25;
            (Duration::from_millis(2), if fails { Err(kind) } else { Ok(()) })
        });
        let section = kv.report((Tick(0), end));
        sums(&section, end.0);
        assert_eq!(section.completed, 3);
        // The 25th read is the second group of layers of block 5; the reads of 1..=5 of it are in flight with it.
        assert_eq!(section.hits_by_tier.g4, 5 * BLOCK);
        assert_eq!(section.recomputed_tokens[reason], 14 * BLOCK, "{reason}");
        let after = submits.iter().filter(|s| s.op.verb == Verb::Get).count();
        assert!(after < 19 * 8, "{after} reads: those of blocks behind the hole were not sent");
    }
}

/// Reads of which one in fifty is slow: the slowest of N decides, so that a load of N is slow with 1 − (1 − p)^N.
#[test]
fn the_slowest_of_n_reads_decides() {
    let (fast, slow, p) = (Duration::from_millis(4), Duration::from_millis(36), 0.02);
    for blocks in [2u64, 5, 19] {
        let tokens = (blocks + 1) * BLOCK;
        let list: Vec<_> = (0..1500).map(|i| (i * 2000, i % 2, tokens, 1)).collect();
        let spec = KvSpec { g1_blocks: Some(blocks + 1), get_in_flight: 64, ..spec() };
        let mut kv = machine(&spec, &requests(&list));
        let mut turn = 0;
        let mut loads: BTreeMap<Tick, bool> = BTreeMap::new();
        let (_, end) = drive(&mut kv, Tick(0), None, None, |submit| {
            if submit.op.verb != Verb::Get {
                return (Duration::ZERO, Ok(()));
            }
            turn += 1;
            let is_slow = (crate::random::mix(turn) >> 11) as f64 / (1u64 << 53) as f64 <= p;
            *loads.entry(submit.intended).or_default() |= is_slow;
            (if is_slow { slow } else { fast }, Ok(()))
        });
        let section = kv.report((Tick(0), end));
        let last = section.load.last_block.summary;
        assert_eq!((section.load.loads, last.count), (1498, 1498));
        // By count, exactly: the mean of a two-point distribution says how many were slow.
        let mean = last.mean_ns.expect("loads");
        let counted = (mean - fast.as_nanos() as f64) / (slow - fast).as_nanos() as f64 * 1498.0;
        let slow_loads = loads.values().filter(|slow| **slow).count() as f64;
        assert!((counted - slow_loads).abs() < 0.01, "{counted} against {slow_loads}");
        // By probability, within four standard deviations of the binomial.
        let expected = 1.0 - (1.0 - p).powi(blocks as i32);
        let sigma = (expected * (1.0 - expected) / 1498.0).sqrt();
        assert!((slow_loads / 1498.0 - expected).abs() < 4.0 * sigma, "{slow_loads} of 1498 against {expected}");
        let straggler = section.load.straggler_ratio;
        assert_eq!(straggler.count, 1498);
        assert!(straggler.max_ratio.is_some_and(|ratio| blocks == 2 || (ratio - 9.0).abs() < 0.02), "{straggler:?}");
        assert_eq!(straggler.min_ratio, Some(1.0));
    }
}

/// Storage that takes a fixed time to the first byte and then moves bytes one read after the other.
struct Pipe {
    latency_ns: u64,
    ns_per_byte: f64,
    free: f64,
}

impl Pipe {
    fn new(latency_ns: u64, bytes_per_s: f64) -> Self {
        Self { latency_ns, ns_per_byte: 1e9 / bytes_per_s, free: 0.0 }
    }
}

impl Storage for Pipe {
    fn admit(&mut self, op: &Op, now: Tick) -> Answer {
        if op.verb != Verb::Get {
            return Answer::at_once(now);
        }
        let first_byte = now.0 + self.latency_ns;
        self.free = self.free.max(first_byte as f64) + op.bytes as f64 * self.ns_per_byte;
        Answer { first_byte: Tick(first_byte), done: Tick(self.free.round() as u64), result: Ok(()) }
    }
}

fn on_pipe(spec: &KvSpec, list: &[(u64, u64, u64, u64)], pipe: Pipe) -> Section {
    let mut kv = machine(spec, &requests(list));
    let end = play_on(&mut kv, pipe, Tick(0), None);
    kv.report((Tick(0), end))
}

/// A first load teaches what the target does; the next load of `blocks` blocks is decided by it.
fn second_load_is_taken(blocks: u64, latency_ns: u64, bytes_per_s: f64) -> bool {
    let tokens = (blocks + 1) * BLOCK;
    // 1 and 2 fill GPU memory in turn; 1 comes back twice, first to be loaded whatever it takes.
    let list = [(0, 1, tokens, 1), (400_000, 2, tokens, 1), (800_000, 1, tokens, 1), (1_200_000, 2, tokens, 1)];
    let spec = KvSpec { g1_blocks: Some(blocks + 1), get_in_flight: 256, load: LoadPolicy::BreakEven, ..spec() };
    let section = on_pipe(&spec, &list, Pipe::new(latency_ns, bytes_per_s));
    let taken = section.recomputed_tokens["chosen"] == 0;
    assert_eq!(section.hits_by_tier.g4, if taken { 2 } else { 1 } * blocks * BLOCK, "the first load is taken untried");
    taken
}

#[test]
fn the_choice_flips_at_break_even() {
    let model = llama_8b_h100();
    let mut last = f64::INFINITY;
    for blocks in [2u64, 4, 16, 60] {
        for latency_ns in [0, 2 * MS, 15 * MS] {
            let tokens = blocks * BLOCK;
            let bound = model.break_even_bytes_per_s(0, tokens, 8192, latency_ns as f64).expect("loading can win");
            assert!(second_load_is_taken(blocks, latency_ns, bound * 1.001), "{blocks} blocks above B*");
            assert!(!second_load_is_taken(blocks, latency_ns, bound / 1.001), "{blocks} blocks below B*");
            if latency_ns == 15 * MS {
                // With latency, longer loads break even at less bandwidth: at one bandwidth, short ones are computed.
                assert!(bound < last);
                last = bound;
            }
        }
    }
    let between = |blocks: u64| model.break_even_bytes_per_s(0, blocks * BLOCK, 8192, 15e6).expect("loading can win");
    let bytes_per_s = (between(4) * between(16)).sqrt();
    assert!(!second_load_is_taken(4, 15 * MS, bytes_per_s) && second_load_is_taken(16, 15 * MS, bytes_per_s));
    // Latency alone takes longer than computing: no bandwidth is enough.
    assert_eq!(model.break_even_bytes_per_s(0, 2 * BLOCK, 8192, 1e9), None);
    assert!(!second_load_is_taken(2, 1000 * MS, 1e15));
}

#[test]
fn curves_are_their_closed_forms() {
    [1.0, 4.0].into_iter().for_each(curves_at);
}

fn curves_at(time_scale: f64) {
    let latency_ns = 5 * MS;
    let spec = KvSpec { g1_blocks: Some(20), time_scale, ..spec() };
    let section = on_pipe(&spec, &EVICTED, Pipe::new(latency_ns, 3e9));
    let model = llama_8b_h100();
    let close = |actual: Option<f64>, expected: Option<f64>| match (actual, expected) {
        (Some(actual), Some(expected)) => (actual / expected - 1.0).abs() < 1e-9,
        (actual, expected) => actual == expected,
    };
    let curves = section.load.break_even.iter().map(|curve| (curve.cached_tokens, &curve.points));
    let mut points = 0;
    for (cached, curve) in std::iter::once((0, &section.break_even)).chain(curves) {
        for point in curve {
            let bytes = 131_072.0 * point.tokens as f64;
            // Against GPUs that are slower by the scale, latency weighs less by it.
            let latency_ns = latency_ns as f64 / time_scale;
            let spare = model.prefill_ns(cached, point.tokens, 8192) - latency_ns - model.copy_ns(bytes);
            assert!(close(point.bytes_per_s, (spare > 0.0).then(|| bytes / spare * 1e9)), "{cached} {point:?}");
            points += 1;
        }
    }
    assert_eq!(points, 4 * 9);
    for (point, alone) in section.load.throughput_break_even.iter().zip(&section.break_even) {
        let bytes = 131_072.0 * point.tokens as f64;
        assert!(close(point.bytes_per_s, Some(bytes / model.prefill_ns(0, point.tokens + BLOCK, 8192) * 1e9)));
        assert!(alone.bytes_per_s.is_none_or(|alone| point.bytes_per_s < Some(alone)), "it frees the GPU earlier");
    }
    // What the pipe did, by reads in flight.
    let seen = &section.load.concurrency;
    assert_eq!(seen.iter().map(|seen| seen.reads).sum::<u64>(), 19);
    assert!(seen.iter().all(|seen| close(seen.first_byte_ns, Some(latency_ns as f64))));
    assert!(seen.iter().filter_map(|seen| seen.bytes_per_s).all(|rate| (rate / 3e9 - 1.0).abs() < 1e-6), "{seen:?}");
}

#[test]
fn requests_on_the_wrong_side_are_counted_with_what_they_lost() {
    let model = llama_8b_h100();
    let compute_ns = model.prefill_ns(0, 19 * BLOCK, 8192);
    let list: Vec<_> = (0..6).map(|i| (i * 8000, i % 2, 10_240, 1)).collect();
    let with = |load, latency| {
        let spec = KvSpec { g1_blocks: Some(20), get_in_flight: 64, load, ..spec() };
        play(&spec, &requests(&list), latency).load.break_even_wrong
    };
    // Always, from a target that takes two seconds: four loads, all too slow.
    let wrong = with(LoadPolicy::Always, Duration::from_secs(2));
    assert_eq!((wrong.loaded, wrong.loaded_slower, wrong.computed), (4, 4, 0));
    // The last block of the load is copied after it has come; the others' copies, before it, are one after the other.
    let took_ns = 2e9 + 19.0 * (BLOCK_BYTES as f64 / 43.9).round();
    let lost_s = 4.0 * (took_ns - compute_ns) / 1e9;
    assert!((wrong.loaded_slower_ttft_s / lost_s - 1.0).abs() < 1e-6, "{wrong:?} {lost_s}");
    let wrong = with(LoadPolicy::Always, Duration::from_millis(5));
    assert_eq!((wrong.loaded, wrong.loaded_slower, wrong.loaded_slower_ttft_s), (4, 0, 0.0));
    // Never, without knowing the target: by what is expected of it.
    let never = |expected_latency, bytes_per_s| {
        let expected_bytes_per_s = Some(BytesPerSec(bytes_per_s));
        let spec =
            KvSpec { g1_blocks: Some(20), load: LoadPolicy::Never, expected_latency, expected_bytes_per_s, ..spec() };
        play(&spec, &requests(&list), Duration::ZERO).load.break_even_wrong
    };
    let wrong = never(Duration::from_millis(10), 10e9);
    assert_eq!((wrong.loaded, wrong.computed, wrong.computed_slower), (0, 4, 4));
    let load_ns = 10e6 + 19.0 * BLOCK_BYTES as f64 / 10.0 + 19.0 * BLOCK_BYTES as f64 / 43.9;
    assert!((wrong.computed_slower_ttft_s / (4.0 * (compute_ns - load_ns) / 1e9) - 1.0).abs() < 1e-6, "{wrong:?}");
    assert!((wrong.computed_slower_gpu_s / (4.0 * compute_ns / 1e9) - 1.0).abs() < 1e-9, "{wrong:?}");
    let wrong = never(Duration::from_millis(10), 1e9);
    assert_eq!((wrong.computed, wrong.computed_slower), (4, 0));
}

/// The first load takes minutes, and every later one would take no time: who never reads again never learns it.
#[test]
fn a_target_that_has_recovered_is_found_out() {
    let prompts: Vec<(u64, u64, u64, u64)> = (0..200).map(|i| (i * 200_000, 1 + i % 2, 10_240, 1)).collect();
    let spec = KvSpec { g1_blocks: Some(20), load: LoadPolicy::BreakEven, ..spec() };
    let mut kv = machine(&spec, &requests(&prompts));
    let mut reads = 0;
    let (_, end) = drive(&mut kv, Tick(0), None, None, |submit| {
        reads += u64::from(submit.op.verb == Verb::Get);
        let slow = submit.op.verb == Verb::Get && reads <= 19;
        (Duration::from_secs(if slow { 100 } else { 0 }), Ok(()))
    });
    let section = kv.report((Tick(0), end));
    // Two prompts are new, one is loaded slowly, then 64 are computed before one load is tried and the rest follow.
    assert_eq!(section.hits_by_tier.g4, (200 - 2 - 63) * 19 * BLOCK, "{:?}", section.recomputed_tokens);
    assert_eq!(section.recomputed_tokens["chosen"], 63 * 19 * BLOCK);
}

#[test]
fn a_prior_decides_before_the_first_read() {
    let model = llama_8b_h100();
    let bound = model.break_even_bytes_per_s(0, 19 * BLOCK, 8192, 5e6).expect("loading can win");
    let loads = |bytes_per_s| {
        let spec = KvSpec {
            g1_blocks: Some(20),
            load: LoadPolicy::BreakEven,
            expected_latency: Duration::from_millis(5),
            expected_bytes_per_s: Some(BytesPerSec(bytes_per_s)),
            ..spec()
        };
        play(&spec, &requests(&EVICTED), Duration::ZERO).hits_by_tier.g4 > 0
    };
    assert!(loads(bound * 1.001) && !loads(bound / 1.001));
}

#[test]
fn layers_make_slower_storage_worth_it() {
    // The chunk after the prefix is long: layers hide behind it, so that break-even lies at less bandwidth.
    let (blocks, chunk) = (16, 16);
    let taken = |overlap, bytes_per_s| {
        let whole = (blocks + chunk) * BLOCK;
        let list = [(0, 1, blocks * BLOCK, 1), (400_000, 2, whole, 1), (800_000, 1, whole, 1)];
        let prior = Some(BytesPerSec(bytes_per_s));
        let g1_blocks = Some(blocks + chunk);
        let spec = KvSpec { overlap, g1_blocks, expected_bytes_per_s: prior, load: LoadPolicy::BreakEven, ..spec() };
        on_pipe(&spec, &list, Pipe::new(0, bytes_per_s)).hits_by_tier.g4 == blocks * BLOCK
    };
    let bound = llama_8b_h100().break_even_bytes_per_s(0, blocks * BLOCK, 8192, 0.0).expect("loading can win");
    assert!(taken(Overlap::None, bound * 1.001) && !taken(Overlap::None, bound / 1.001));
    assert!(taken(Overlap::LayerWise, bound / 1.5));
}

#[test]
fn a_load_that_takes_too_long_is_given_up() {
    for overlap in [Overlap::None, Overlap::LayerWise] {
        let spec = KvSpec {
            g1_blocks: Some(20),
            get_in_flight: 4,
            load_timeout: Duration::from_millis(250),
            overlap,
            layers_per_read: 32,
            ..spec()
        };
        let mut kv = machine(&spec, &requests(&EVICTED));
        let (submits, end) = drive(&mut kv, Tick(0), None, None, |_| (Duration::from_millis(100), Ok(())));
        let section = kv.report((Tick(0), end));
        sums(&section, end.0);
        // Two rounds of four have landed, the third is on its way: it comes, and nobody wants it.
        assert_eq!(section.hits_by_tier.g4, 8 * BLOCK);
        assert_eq!(section.recomputed_tokens["timed-out"], 11 * BLOCK);
        assert_eq!((section.load.given_up, section.load.loads), (1, 0));
        assert_eq!(submits.iter().filter(|submit| submit.op.verb == Verb::Get).count(), 12);
        assert_eq!(section.loaded_bytes, 12 * BLOCK_BYTES, "bytes on the wire are bytes on the wire");
        assert_eq!(section.load.late_bytes, 4 * BLOCK_BYTES);
        assert_eq!(section.completed, 3);
        if overlap == Overlap::None {
            near(section.ttft_parts.load.max_ns, 250 * MS);
        }
    }
    // One that is in time is not.
    let spec = KvSpec { g1_blocks: Some(20), get_in_flight: 4, load_timeout: Duration::from_millis(501), ..spec() };
    let section = play(&spec, &requests(&EVICTED), Duration::from_millis(100));
    assert_eq!((section.load.given_up, section.load.loads, section.hits_by_tier.g4), (0, 1, 19 * BLOCK));
}

#[test]
fn best_effort_holds_nobody_up() {
    // An idle worker computes at once; what it had asked for comes for nobody.
    let spec = KvSpec { g1_blocks: Some(20), get_in_flight: 4, load_wait: LoadWait::BestEffort, ..spec() };
    let section = play(&spec, &requests(&EVICTED), Duration::from_millis(100));
    assert_eq!((section.hits_by_tier.g4, section.recomputed_tokens["timed-out"]), (0, 19 * BLOCK));
    assert_eq!((section.load.given_up, section.load.late_bytes), (1, 4 * BLOCK_BYTES));
    assert_eq!(section.ttft_parts.load.max_ns, Some(0));
    // A worker that prefills something else (8192 tokens of it at a time) gives the reads that long.
    let list = [EVICTED[0], EVICTED[1], (8000, 3, 16_384, 1), (8001, 1, 10_240, 1)];
    let chunk_ns = llama_8b_h100().prefill_ns(0, 8192, 8192);
    let rest_ns = llama_8b_h100().prefill_ns(8192, 8192, 8192);
    let spec = KvSpec { g1_blocks: Some(60), max_num_batched_tokens: 8192, ..spec };
    let list = [(0, 1, 10_240, 1), (2000, 2, 60 * BLOCK, 1), list[2], list[3]];
    let section = play(&spec, &requests(&list), Duration::from_millis(10));
    assert_eq!(section.completed, 4);
    // The load begins when the last chunk before it leaves room: at the latest when that chunk ends.
    let most = ((chunk_ns + rest_ns) / 10e6) as u64 * 4;
    let got = section.hits_by_tier.g4 / BLOCK;
    assert!(got <= most.min(19), "{got} blocks of at most {most}");
    assert_eq!(section.hits_by_tier.g4 + section.recomputed_tokens["timed-out"], 19 * BLOCK);
}

#[test]
fn knobs_of_loading_say_what_is_wrong() {
    let error = |spec: KvSpec| spec.check().expect_err("a bad plan").to_string();
    assert_eq!(error(KvSpec { layers_per_read: 0, ..spec() }), "`layers_per_read` is 0; it must be at least 1");
    assert_eq!(
        error(KvSpec { load_wait: LoadWait::Timeout, ..spec() }),
        "`load_timeout` is 0; it must be above 0 where `load_wait` is `timeout`"
    );
    assert_eq!(
        error(KvSpec { expected_bytes_per_s: Some(BytesPerSec(0.0)), ..spec() }),
        "`expected_bytes_per_s` is 0; it must be above 0; leave it out to expect the best"
    );
    let best = KvSpec { load_wait: LoadWait::BestEffort, overlap: Overlap::LayerWise, ..spec() };
    assert!(error(best).starts_with("`load_wait` is `best-effort`; it must be `wait-complete` or `timeout`"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Whatever storage does and whenever the window is cut: cells sum exactly, requests are accounted for, and every
    /// byte on the wire is counted.
    #[test]
    fn books_balance_layer_by_layer(
        list in prop::collection::vec((0u64..4000, 0u64..6, 1u64..9000, 1u64..60), 1..30),
        measure in 0u64..3_000 * MS, length in 1u64..8_000 * MS,
        workers in 1u32..3, g1 in 18u64..60, g2 in 0u64..30, stat: bool, per_read in 1u32..40, timeout_ms in 0u64..60,
        faults in prop::collection::vec(0u64..40, 1..50), best_effort: bool,
    ) {
        let spec = KvSpec {
            workers, g1_blocks: Some(g1), g2_bytes: Bytes(g2 << 26),
            exists: if stat { Exists::Stat } else { Exists::Index },
            overlap: Overlap::LayerWise, layers_per_read: per_read, load_timeout: Duration::from_millis(timeout_ms),
            load: if best_effort { LoadPolicy::BreakEven } else { LoadPolicy::Always },
            get_in_flight: 5, put_in_flight: 2, ..spec()
        };
        let list = Arc::new(Requests::from_trace(&trace(&list), OutputBlocks::Infer, 512));
        let count = list.list().len() as u64;
        let (mut turn, mut loaded, stop) = (0, 0u64, measure + length);
        let mut stopped = machine(&spec, &list);
        let mut keys = BTreeSet::new();
        drive(&mut stopped, Tick(0), Some(Tick(measure)), Some(Tick(stop)), |submit| {
            turn += 1;
            let fault = faults[turn % faults.len()];
            let result = if fault == 7 { Err(ErrorKind::Timeout) } else { Ok(()) };
            if submit.op.verb == Verb::Get && result.is_ok() && (measure..stop).contains(&submit.intended.0) {
                loaded += submit.op.bytes;
                keys.insert(submit.op.key);
            }
            (Duration::from_micros(fault * 1000), result)
        });
        let section = stopped.report((Tick(measure), Tick(stop)));
        let g = &section.gpu;
        let cells = [g.prefill_ns, g.recompute_ns, g.decode_ns, g.storage_stall_ns, g.transfer_stall_ns, g.no_work_ns, g.down_ns];
        prop_assert_eq!(cells.iter().sum::<u64>(), g.total_ns);
        if stopped.window_was_cut() {
            prop_assert_eq!(g.total_ns, length * u64::from(workers));
            prop_assert_eq!(section.loaded_bytes, loaded);
        }
        prop_assert_eq!(section.requests, section.completed + section.failed + section.unfinished);
        // Left alone, everybody is served.
        let mut whole = machine(&spec, &list);
        drive(&mut whole, Tick(0), None, None, |submit| {
            turn += 1;
            let fault = faults[turn % faults.len()];
            let failed = fault == 7 && submit.op.verb == Verb::Get;
            (Duration::from_micros(fault * 1000), if failed { Err(ErrorKind::Timeout) } else { Ok(()) })
        });
        let section = whole.report((Tick(0), Tick(0)));
        prop_assert_eq!(section.completed, count);
    }
}
