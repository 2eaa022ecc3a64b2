//! What a run says of itself against closed forms: what was computed again and why, what of the GPU's time was useful,
//! which requests were good, and that parts add up.

use std::time::Duration;

use gpufeed_profiles::units::Bytes;
use gpufeed_schema::Kv as Section;
use proptest::prelude::*;

use super::tests::{machine, near, play, prefill_ns, requests, spec, sums};
use super::*;
use crate::driver::drive;
use crate::inference::Reason;
use crate::inference::cost_tests::llama_8b_h100;
use crate::machine::Submit;
use crate::op::{ErrorKind, Verb};

const S: u64 = 1_000_000_000;
const BLOCK: u64 = 512;

/// A prompt of 20 blocks, another that takes its place in a GPU memory of 20 blocks, and the first again.
const AGAIN: [(u64, u64, u64, u64); 3] = [(0, 1, 10_240, 1), (4000, 2, 10_240, 1), (8000, 1, 10_240, 1)];

/// Plays on storage where `fate` says how the n-th operation of its verb ends, each after 2 ms.
fn play_with(
    spec: &KvSpec,
    list: &[(u64, u64, u64, u64)],
    fate: impl Fn(&Submit, u64) -> Result<(), ErrorKind>,
) -> Section {
    let mut kv = machine(spec, &requests(list));
    let mut turns = [0u64; 8];
    let (_, end) = drive(&mut kv, Tick(0), None, None, |submit| {
        turns[submit.op.verb as usize] += 1;
        (Duration::from_millis(2), fate(submit, turns[submit.op.verb as usize]))
    });
    let section = kv.report((Tick(0), end));
    sums(&section, end.0);
    section
}

/// Recomputed blocks by reason; whole blocks only, and nothing beside what is listed.
fn again(section: &Section, expected: &[(Reason, u64)]) {
    let found: Vec<(&str, u64)> =
        section.recomputed_tokens.iter().map(|(reason, n)| (reason.as_str(), *n)).filter(|(_, n)| *n > 0).collect();
    let mut expected: Vec<(&str, u64)> = expected.iter().map(|(reason, n)| (reason.name(), n * BLOCK)).collect();
    expected.sort_unstable();
    assert_eq!(found, expected);
}

/// One scenario for each reason to compute a block again.
#[test]
fn each_reason_has_its_scenario() {
    let good = |_: &Submit, _: u64| Ok(());
    let small = KvSpec { g1_blocks: Some(20), ..spec() };
    let alone = KvSpec { shared_tier: false, ..small.clone() };
    // There in full: all but the last block is found.
    let section = play_with(&spec(), &[AGAIN[0], AGAIN[2]], good);
    again(&section, &[(Reason::Tail, 1)]);
    // No tier, and the memory was needed for another prompt.
    again(&play_with(&alone, &AGAIN, good), &[(Reason::Evicted, 20)]);
    // Another worker has it; this one never had.
    let two = KvSpec { workers: 2, routing: Routing::RoundRobin, ..alone };
    again(&play_with(&two, &[AGAIN[0], AGAIN[2]], good), &[(Reason::Elsewhere, 20)]);
    // Loading is forbidden. The last block is computed whatever the policy.
    let never = KvSpec { load: LoadPolicy::Never, ..small.clone() };
    again(&play_with(&never, &AGAIN, good), &[(Reason::Chosen, 19), (Reason::Tail, 1)]);
    // The sixth block was never written: those behind it are there and out of reach.
    let section = play_with(&small, &AGAIN, |submit, turn| match (submit.op.verb, turn) {
        (Verb::Put, 6) => Err(ErrorKind::Server),
        _ => Ok(()),
    });
    again(&section, &[(Reason::Evicted, 1), (Reason::Hole, 14)]);
    assert_eq!(section.hits_by_tier.g4, 5 * BLOCK);
    // The sixth read does not bring its block: that one and those behind it are computed for that reason.
    for (kind, reason) in [
        (ErrorKind::Timeout, Reason::TimedOut),
        (ErrorKind::NotFound, Reason::Lost),
        (ErrorKind::Server, Reason::Failed),
        (ErrorKind::Corrupt, Reason::Failed),
    ] {
        let section = play_with(&small, &AGAIN, |submit, turn| match (submit.op.verb, turn) {
            (Verb::Get, 6) => Err(kind),
            _ => Ok(()),
        });
        again(&section, &[(reason, 14), (Reason::Tail, 1)]);
        assert_eq!(section.hits_by_tier.g4, 5 * BLOCK, "{reason:?}");
    }
    // Two that grow into each other's memory of 20 blocks: A of 10, one more from its first token on, and B of 8 and a
    // part. When B's ninth is full there is no tenth: B, the newest, gives all back, eight cached and one, with its
    // answer in it, free. A takes three until it ends: the free one, then B's tail, released first. B finds six of nine.
    let preempted = KvSpec { shared_tier: false, ..small };
    let section = play_with(&preempted, &[(0, 1, 5120, 1900), (1, 2, 4396, 1900)], good);
    again(&section, &[(Reason::Preempted, 3)]);
    assert_eq!(section.completed, 2);
}

/// With one request at a time the GPU does the same work on any storage, so what is useful is that work's share of the
/// time with work to do; the rest is the wait for loads.
#[test]
fn useful_is_the_work_without_the_wait() {
    let spec = KvSpec { g1_blocks: Some(20), get_in_flight: 4, ..spec() };
    let list = requests(&AGAIN);
    let mut section = play(&spec, &list, Duration::from_millis(40));
    fill_baselines(&mut section, &spec, &llama_8b_h100(), &list, Window::default()).expect("a valid run");
    let gpu = &section.gpu;
    let busy = gpu.prefill_ns + gpu.recompute_ns + gpu.decode_ns;
    // Nineteen reads by four are five rounds, and the three blocks of the last are copied after it.
    let wait = 5 * 40_000_000 + 3 * (BLOCK as f64 * 131_072.0 / 43.9).round() as u64;
    assert!(gpu.storage_stall_ns.abs_diff(wait) <= 3, "{} against {wait}", gpu.storage_stall_ns);
    let useful = gpu.useful_ratio.expect("work was done");
    assert!((useful - busy as f64 / (busy + wait) as f64).abs() < 1e-6, "{useful}");
    assert_eq!(gpu.busy_ratio, busy as f64 / gpu.total_ns as f64);
    let ideal = section.baselines.ideal_storage.expect("filled").gpu;
    assert_eq!(ideal.prefill_ns + ideal.recompute_ns + ideal.decode_ns, busy);
}

/// Goodput counts requests that meet every objective, and nothing but those.
#[test]
fn goodput_is_what_meets_every_objective() {
    let model = llama_8b_h100();
    let list = requests(&[(0, 1, 600, 1), (3000, 2, 6000, 1), (6000, 3, 6000, 200)]);
    let ttft = |tokens| model.request_ns(tokens).round() as u64 + prefill_ns(tokens);
    let decode: f64 = (1..200u64)
        .map(|i| {
            let mut batch = crate::inference::Batch::default();
            batch.decode(&model, 6000 + i);
            model.iteration_ns(&batch).round()
        })
        .sum();
    let tpot = (decode / 199.0) as u64;
    let (short, long) = (ttft(600), ttft(6000));
    for (time_scale, slo_ttft, slo_tpot, good) in [
        (1.0, 0, 0, 3),
        (1.0, short, 0, 1),
        (1.0, short - 1, 0, 0),
        (1.0, long, 0, 3),
        (1.0, long - 1, 0, 1),
        // Objectives are of real time, whatever the scale of the run.
        (4.0, long + 2, 0, 3),
        (4.0, long - 2, 0, 1),
        (1.0, 0, tpot, 3),
        (1.0, 0, tpot - 1, 2),
        (1.0, long - 1, tpot - 1, 1),
    ] {
        let slo = |ns| Duration::from_nanos(ns);
        let spec = KvSpec { time_scale, slo_ttft: slo(slo_ttft), slo_tpot: slo(slo_tpot), ..spec() };
        let section = play(&spec, &list, Duration::ZERO);
        let window_s = section.gpu.total_ns as f64 / 1e9;
        let found = section.goodput_per_s * window_s;
        assert!((found - f64::from(good)).abs() < 1e-3, "{slo_ttft} {slo_tpot}: {found} instead of {good}");
        assert_eq!(section.completed, 3);
    }
    near(play(&spec(), &list, Duration::ZERO).tpot.max_ns, tpot);
}

/// A window that ends in the middle: what had not ended is unfinished, by its own count.
#[test]
fn what_the_window_cuts_is_unfinished() {
    let list: Vec<_> = (0..10).map(|i| (i * 1000, i, 2000, 40)).collect();
    let mut kv = machine(&spec(), &requests(&list));
    drive(&mut kv, Tick(0), Some(Tick(2 * S + 1)), Some(Tick(6 * S + 1)), |_| (Duration::ZERO, Ok(())));
    let section = kv.report((Tick(2 * S + 1), Tick(6 * S + 1)));
    // Those of seconds 3 to 6 arrive in the window; the last has not had its first token.
    assert_eq!((section.requests, section.completed, section.failed, section.unfinished), (4, 3, 0, 1));
    assert_eq!(section.ttft.summary.count, 3);
}

/// The report calls knobs what plans and the command line call them.
#[test]
fn inputs_are_in_the_words_of_plans() {
    let spec = KvSpec { routing: Routing::KvAware, write_policy: WritePolicy::WriteThroughSelective, ..spec() };
    let inputs = play(&spec, &requests(&AGAIN), Duration::ZERO).inputs;
    let of = ["routing", "writes", "load or recompute"].map(|name| inputs[name].as_str());
    assert_eq!(of, ["kv-aware", "write-through-selective", "always"]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// The parts of every TTFT add up to it, so their means do as well, however the run went.
    #[test]
    fn means_of_the_parts_of_ttft_add_up(
        list in prop::collection::vec((0u64..4000, 0u64..6, 1u64..9000, 1u64..60), 1..40),
        workers in 1u32..4, g1 in 18u64..60, g2 in 0u64..40, stat: bool, latency_ms in 0u64..60, time_scale in 1u32..3,
    ) {
        let spec = KvSpec {
            workers, g1_blocks: Some(g1), g2_bytes: Bytes(g2 << 26), time_scale: f64::from(time_scale),
            exists: if stat { Exists::Stat } else { Exists::Index }, get_in_flight: 3, ..spec()
        };
        let mut kv = machine(&spec, &requests(&list));
        let (_, end) = drive(&mut kv, Tick(0), None, None, |_| (Duration::from_millis(latency_ms), Ok(())));
        let section = kv.report((Tick(0), end));
        let parts = section.ttft_parts;
        let all = [parts.queue, parts.lookup, parts.load, parts.copy, parts.transfer, parts.prefill];
        let mean = section.ttft.summary.mean_ns.expect("somebody was served");
        let sum: f64 = all.iter().map(|part| part.mean_ns.unwrap_or(0.0)).sum();
        prop_assert!((sum - mean).abs() < 1e-9 * mean, "{sum} of {mean}");
        prop_assert!(all.iter().all(|part| part.count == section.ttft.summary.count));
    }
}
