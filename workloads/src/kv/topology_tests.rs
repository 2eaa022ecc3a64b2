//! Workers that die, pools apart, conversations that wait, and what is offered, against closed forms.

use std::sync::Arc;
use std::time::Duration;

use gpufeed_profiles::units::{Bytes, BytesPerSec};
use gpufeed_schema::{GpuTime, Kv as Section};
use proptest::prelude::*;

use super::tests::{machine, near, play, prefill_ns, requests, spec, sums, trace};
use super::*;
use crate::driver::drive;
use crate::inference::Batch;
use crate::inference::cost_tests::llama_8b_h100;
use crate::machine::Event;
use crate::op::{ErrorKind, Verb};
use crate::trace::{Format, Record, Trace};

const MS: u64 = 1_000_000;
const S: u64 = 1_000_000_000;
/// When runs begin.
const START: u64 = 7;
const TOKEN_BYTES: u64 = 131_072;

fn outage(worker: u32, at_ms: u64, back_ms: Option<u64>) -> Outage {
    Outage { worker, at: Duration::from_millis(at_ms), back: back_ms.map(Duration::from_millis) }
}

fn ns(model_ns: f64) -> u64 {
    model_ns.round() as u64
}

/// Prefill in chunks of 8192 tokens, each an iteration of its own.
fn chunks_ns(mut cached: u64, tokens: u64) -> u64 {
    let model = llama_8b_h100();
    let (mut total, end) = (0, cached + tokens);
    while cached < end {
        let chunk = (end - cached).min(8192);
        let mut batch = Batch::default();
        batch.chunk(&model, cached, chunk, cached + chunk == end);
        total += ns(model.iteration_ns(&batch));
        cached += chunk;
    }
    total
}

/// An iteration that decodes one sequence whose KV cache grows to `context` tokens.
fn decode_ns(context: u64) -> u64 {
    let model = llama_8b_h100();
    let mut batch = Batch::default();
    batch.decode(&model, context);
    ns(model.iteration_ns(&batch))
}

fn host_ns(tokens: u64) -> u64 {
    ns(llama_8b_h100().request_ns(tokens))
}

/// Tokens given out by `until` by a request of `prompt` tokens that begins its prefill at `from`.
fn given_out(prompt: u64, from: u64, until: u64) -> u64 {
    let mut at = from + chunks_ns(0, prompt);
    let mut given = 0;
    while at <= until {
        given += 1;
        at += decode_ns(prompt + given);
    }
    given
}

fn two(outages: Vec<Outage>) -> KvSpec {
    KvSpec { workers: 2, routing: Routing::RoundRobin, outages, ..spec() }
}

#[test]
fn a_dead_workers_request_goes_on_from_the_shared_tier() {
    let (prompt, output, latency) = (10_240, 400, 20 * MS);
    let spec = two(vec![outage(0, 2000, None)]);
    let mut kv = machine(&spec, &requests(&[(0, 1, prompt, output)]));
    let (submits, end) = drive(&mut kv, Tick(START), None, None, |_| (Duration::from_nanos(latency), Ok(())));
    let section = kv.report((Tick(START), end));
    let given = given_out(prompt, host_ns(prompt), 2 * S);
    assert!(given > 50 && given < output, "{given}");
    // All 20 blocks are loaded, in two rounds of at most 16; what it had given out is prefilled, but for nothing else.
    let failover = section.failover.expect("a worker was to die");
    assert_eq!((failover.workers_lost, failover.moved_requests, failover.failed_requests), (1, 1, 0));
    assert_eq!((failover.loaded_tokens, failover.found_tokens), (prompt, 0));
    assert_eq!(failover.lost_tokens, prompt + given - 1, "the last token given out had not been fed back");
    assert_eq!(failover.recomputed_tokens, given - 1);
    assert_eq!(section.recomputed_tokens["worker-lost"], 0);
    assert_eq!(submits.iter().filter(|s| s.op.verb == Verb::Get).count(), 20);
    assert_eq!(section.loaded_bytes, prompt * TOKEN_BYTES);

    let copy_ns = ns(512.0 * TOKEN_BYTES as f64 / 43.9);
    // The copies of the first round outlast the second round.
    let resumed = 2 * S + host_ns(prompt + given) + latency + 20 * copy_ns + chunks_ns(prompt, given);
    let rest: u64 = (given + 1..output).map(|made| decode_ns(prompt + made)).sum();
    near(section.e2e.summary.max_ns, resumed + rest);
    near(section.ttft.summary.max_ns, host_ns(prompt) + prefill_chunks(prompt));
    // The gap that the loss made is one between two tokens.
    let last = host_ns(prompt) + prefill_chunks(prompt) + (1..given).map(|made| decode_ns(prompt + made)).sum::<u64>();
    near(section.itl.max_ns, resumed - last);
    assert_eq!(section.itl.count, output - 1);
    // Every nanosecond after its death is down, and it worked up to then.
    let window = end.0 - START;
    sums(&section, window);
    assert_eq!(section.gpu.down_ns, window - 2 * S);
    assert_eq!((section.completed, section.unfinished), (1, 0));
    let busy = section.gpu.prefill_ns + section.gpu.recompute_ns + section.gpu.decode_ns;
    assert_eq!(busy, 2 * S - host_ns(prompt) + chunks_ns(prompt, given) + rest);
    assert!(section.gpu.storage_stall_ns >= 2 * latency);
}

fn prefill_chunks(tokens: u64) -> u64 {
    chunks_ns(0, tokens)
}

#[test]
fn without_a_shared_tier_everything_is_computed_again() {
    let spec = KvSpec { shared_tier: false, ..two(vec![outage(0, 2000, None)]) };
    let section = play(&spec, &requests(&[(0, 1, 10_240, 400)]), Duration::ZERO);
    let failover = section.failover.expect("a worker was to die");
    assert_eq!((failover.loaded_tokens, failover.found_tokens), (0, 0));
    assert_eq!(failover.recomputed_tokens, failover.lost_tokens);
    assert_eq!(section.recomputed_tokens["worker-lost"], 10_240);
    assert_eq!(section.completed, 1);
}

#[test]
fn tokens_that_another_worker_has_are_found_there() {
    // The same prompt ran on worker 1 before.
    let list = requests(&[(0, 9, 512, 1), (10, 1, 10_240, 1), (1000, 1, 10_240, 400)]);
    let spec = KvSpec { shared_tier: false, ..two(vec![outage(0, 3000, None)]) };
    let failover = play(&spec, &list, Duration::ZERO).failover.expect("a worker was to die");
    assert_eq!((failover.found_tokens, failover.loaded_tokens), (10_240, 0));
}

#[test]
fn what_others_need_of_a_dead_worker_is_lost_with_it_unless_a_tier_has_it() {
    // The second turn comes after worker 0, which computed the first, has died: to worker 1, or to 0 when it is back.
    let list = requests(&[(0, 1, 10_240, 1), (10, 9, 512, 1), (5000, 1, 10_240, 1)]);
    for back in [None, Some(4000)] {
        let alone = KvSpec { shared_tier: false, ..two(vec![outage(0, 3000, back)]) };
        let section = play(&alone, &list, Duration::ZERO);
        assert_eq!((section.recomputed_tokens["worker-lost"], section.recomputed_tokens["elsewhere"]), (10_240, 0));
        assert_eq!(section.recomputed_tokens["evicted"], 0, "{back:?}");
        let shared = KvSpec { shared_tier: true, ..alone };
        let section = play(&shared, &list, Duration::ZERO);
        assert_eq!((section.recomputed_tokens["worker-lost"], section.loaded_tokens), (0, 19 * 512), "{back:?}");
    }
    // What the other worker computes afterwards is its own.
    let list = requests(&[
        (0, 1, 10_240, 1),
        (10, 9, 512, 1),
        (5000, 1, 10_240, 1),
        (8000, 2, 10_240, 1),
        (11_000, 1, 10_240, 1),
    ]);
    let spec = KvSpec { shared_tier: false, g1_blocks: Some(20), ..two(vec![outage(0, 3000, None)]) };
    let section = play(&spec, &list, Duration::ZERO);
    assert_eq!((section.recomputed_tokens["worker-lost"], section.recomputed_tokens["evicted"]), (10_240, 10_240));
}

#[test]
fn a_worker_that_is_back_takes_what_waited() {
    let spec = KvSpec { workers: 1, outages: vec![outage(0, 2000, Some(5000))], ..spec() };
    // One is cut off, one comes while nobody is there.
    let section = play(&spec, &requests(&[(0, 1, 10_240, 400), (3000, 2, 1024, 1)]), Duration::ZERO);
    assert_eq!((section.completed, section.failed, section.gpu.down_ns), (2, 0, 3 * S));
    near(section.ttft.summary.max_ns, 2 * S + host_ns(1024) + chunks_ns(0, 1024));
    assert_eq!(section.ttft_parts.queue.max_ns.map(|queue| queue >= 2 * S - host_ns(1024)), Some(true));

    let spec = KvSpec { outages: vec![outage(0, 2000, None)], ..spec };
    let section = play(&spec, &requests(&[(0, 1, 10_240, 400), (3000, 2, 1024, 1)]), Duration::ZERO);
    assert_eq!((section.completed, section.failed, section.unfinished), (0, 2, 0));
    assert_eq!(section.failover.map(|failover| failover.failed_requests), Some(2));
}

#[test]
fn what_a_dead_worker_had_in_flight_lands_for_nobody() {
    // The second turn loads slowly on worker 0, which dies meanwhile; worker 1 loads it again.
    let list = requests(&[(0, 1, 10_240, 1), (1, 9, 512, 1), (3000, 1, 10_240, 4)]);
    let spec = KvSpec { g1_blocks: Some(24), ..two(vec![outage(0, 4000, Some(4500))]) };
    let spec = KvSpec { routing: Routing::RoundRobin, ..spec };
    let evict =
        requests(&[(0, 1, 10_240, 1), (1, 9, 512, 1), (1500, 2, 10_240, 1), (1501, 8, 512, 1), (3000, 1, 10_240, 4)]);
    for list in [list, evict] {
        let mut kv = machine(&spec, &list);
        let (submits, end) = drive(&mut kv, Tick(START), None, None, |submit| {
            (Duration::from_secs(u64::from(submit.op.verb == Verb::Get) * 3), Ok(()))
        });
        let section = kv.report((Tick(START), end));
        sums(&section, end.0 - START);
        assert_eq!(section.completed, list.list().len() as u64);
        let read = submits.iter().filter(|s| s.op.verb == Verb::Get).count() as u64;
        assert_eq!(section.loaded_bytes, read * 512 * TOKEN_BYTES, "what lands for nobody was on the wire too");
    }
}

fn pools(prefill: u32, decode: u32) -> KvSpec {
    KvSpec {
        topology: Topology::Disaggregated,
        workers: prefill + decode,
        prefill_workers: prefill,
        transfer_bytes_per_s: BytesPerSec(10e9),
        ..spec()
    }
}

/// A KV cache of so many tokens at 10 GB/s.
fn transfer_ns(tokens: u64) -> u64 {
    ns(tokens as f64 * TOKEN_BYTES as f64 / 10.0)
}

fn pool<'a>(section: &'a Section, name: &str) -> &'a GpuTime {
    &section.gpu_pools.iter().find(|pool| pool.name == name).expect("a pool").gpu
}

#[test]
fn ttft_of_disaggregated_pools_is_prefill_and_transfer() {
    let (prompt, output) = (10_240, 50);
    let section = play(&pools(1, 1), &requests(&[(0, 1, prompt, output)]), Duration::ZERO);
    let ttft = host_ns(prompt) + chunks_ns(0, prompt) + transfer_ns(prompt);
    near(section.ttft.summary.max_ns, ttft);
    near(section.ttft_parts.transfer.max_ns, transfer_ns(prompt));
    let decode: u64 = (1..output).map(|made| decode_ns(prompt + made)).sum();
    near(section.e2e.summary.max_ns, ttft + decode);
    assert_eq!(section.transferred_bytes, prompt * TOKEN_BYTES);
    // Each pool does what it is for, and the two are all there is.
    let (p, d) = (pool(&section, "prefill"), pool(&section, "decode"));
    assert_eq!((p.prefill_ns, p.decode_ns), (chunks_ns(0, prompt), 0));
    assert_eq!((d.prefill_ns, d.decode_ns, d.transfer_stall_ns), (0, decode, transfer_ns(prompt)));
    assert_eq!(p.transfer_stall_ns, 0, "it has nothing to do meanwhile, with or without the transfer");
    assert_eq!(p.total_ns + d.total_ns, section.gpu.total_ns);
    assert_eq!(p.no_work_ns + d.no_work_ns, section.gpu.no_work_ns);
}

#[test]
fn only_what_is_not_there_is_transferred() {
    let section = play(&pools(1, 1), &requests(&[(0, 1, 10_240, 2), (5000, 1, 10_752, 2)]), Duration::ZERO);
    assert_eq!(section.transferred_bytes, (10_240 + 512) * TOKEN_BYTES);
    assert_eq!(section.hits_by_tier.g1, 10_240);
}

#[test]
fn transfers_take_turns_on_a_link() {
    // Two prompts are ready at the same time, on workers of their own; one worker takes both.
    let section = play(
        &KvSpec { routing: Routing::RoundRobin, ..pools(2, 1) },
        &requests(&[(0, 1, 4096, 1000), (0, 2, 4096, 1000)]),
        Duration::ZERO,
    );
    let ready = host_ns(4096) + chunks_ns(0, 4096);
    near(section.ttft.summary.min_ns, ready + transfer_ns(4096));
    // Memory is reserved between iterations, and is there for both before the first decodes.
    near(section.ttft.summary.max_ns, ready + 2 * transfer_ns(4096));
    assert_eq!(section.transferred_bytes, 2 * 4096 * TOKEN_BYTES);
}

#[test]
fn memory_is_reserved_before_a_transfer() {
    // The decode worker has room for one of them only.
    let (prompt, output) = (10_240u64, 300u64);
    let spec = KvSpec { g1_blocks: Some(24), ..pools(2, 1) };
    let spec = KvSpec { routing: Routing::RoundRobin, ..spec };
    let section = play(&spec, &requests(&[(0, 1, prompt, output), (0, 2, prompt, output)]), Duration::ZERO);
    let ready = host_ns(prompt) + chunks_ns(0, prompt);
    let decode: u64 = (1..output).map(|made| decode_ns(prompt + made)).sum();
    near(section.e2e.summary.min_ns, ready + transfer_ns(prompt) + decode);
    near(section.ttft.summary.max_ns, ready + transfer_ns(prompt) + decode + transfer_ns(prompt));
    assert_eq!(section.completed, 2);
}

#[test]
fn a_dead_decode_worker_sends_its_requests_back_to_prefill() {
    let (prompt, output) = (10_240u64, 400u64);
    let spec = KvSpec { outages: vec![outage(1, 2000, None)], ..pools(1, 2) };
    let spec = KvSpec { routing: Routing::RoundRobin, ..spec };
    let section = play(&spec, &requests(&[(0, 1, prompt, output)]), Duration::ZERO);
    assert_eq!((section.completed, section.failed), (1, 0));
    let failover = section.failover.expect("a worker was to die");
    assert_eq!(
        (failover.moved_requests, failover.found_tokens),
        (1, prompt),
        "the prefill worker still has the prompt"
    );
    assert_eq!(section.itl.count, output - 1);
    assert!(section.transferred_bytes > 2 * prompt * TOKEN_BYTES);

    // Nobody is left to decode.
    let spec = KvSpec { outages: vec![outage(1, 2000, None), outage(2, 2000, None)], ..spec };
    let section = play(&spec, &requests(&[(0, 1, prompt, output), (9000, 2, prompt, output)]), Duration::ZERO);
    assert_eq!((section.completed, section.failed, section.unfinished), (0, 2, 0));
}

#[test]
fn a_transfer_whose_end_dies_is_made_again_and_one_whose_source_dies_is_computed_again() {
    let prompt = 10_240;
    let ready_ms = (host_ns(prompt) + chunks_ns(0, prompt)) / MS + 20;
    // In the middle of the transfer, which takes 134 ms.
    let run = |worker| {
        let spec = KvSpec { outages: vec![outage(worker, ready_ms, None)], ..pools(2, 2) };
        let spec = KvSpec { routing: Routing::RoundRobin, shared_tier: false, ..spec };
        play(&spec, &requests(&[(0, 1, prompt, 9)]), Duration::ZERO)
    };
    let ready = host_ns(prompt) + chunks_ns(0, prompt);
    let (to, from) = (run(2), run(0));
    near(to.ttft.summary.max_ns, ready_ms * MS + transfer_ns(prompt));
    assert_eq!(to.transferred_bytes, 2 * prompt * TOKEN_BYTES);
    assert_eq!(to.failover.map(|failover| failover.lost_tokens), Some(0), "its KV cache was still where it came from");
    near(from.ttft.summary.max_ns, ready_ms * MS + ready + transfer_ns(prompt));
    assert_eq!(from.failover.map(|failover| failover.recomputed_tokens), Some(prompt));
    assert_eq!((to.completed, from.completed), (1, 1));
}

/// Turns of (conversation, stamp in ms, think time in ms, prompt, output).
fn talk(turns: &[(&str, u64, Option<u64>, u64, u64)]) -> Arc<Requests> {
    let records = turns.iter().map(|&(session, at_ms, think_ms, input, output)| {
        let talk = u64::from(session.as_bytes()[0]);
        Ok(Record {
            stamp_ns: Some((at_ms * MS) as i64),
            input_tokens: input as u32,
            output_tokens: output as u32,
            blocks: (0..input.div_ceil(512)).map(|i| talk << 32 | i).collect(),
            session: Some(session.into()),
            think_time: think_ms.map(Duration::from_millis),
            ..Record::default()
        })
    });
    let trace = Trace::from_records(Format::Aiperf, records, Some(512)).expect("valid records");
    Arc::new(Requests::from_trace(&trace, OutputBlocks::None, 512))
}

#[test]
fn a_turn_begins_when_the_one_before_has_ended_and_its_think_time_is_over() {
    let list = talk(&[("a", 0, None, 2048, 100), ("a", 10, Some(500), 4096, 100), ("a", 20, None, 6144, 100)]);
    for time_scale in [1.0, 3.0] {
        let spec = KvSpec { sessions: true, time_scale, ..spec() };
        let mut kv = machine(&spec, &list);
        assert_eq!(kv.load(), ClosedOrOpen::Closed);
        let (_, end) = drive(&mut kv, Tick(START), None, None, |_| (Duration::ZERO, Ok(())));
        let section = kv.report((Tick(START), end));
        assert_eq!((section.requests, section.completed), (3, 3));
        let decode = |prompt: u64| (1..100).map(|made| decode_ns(prompt + made)).sum::<u64>();
        let alone = |cached: u64, prompt: u64| host_ns(prompt) + chunks_ns(cached, prompt - cached) + decode(prompt);
        // 2048 tokens of the first turn's prompt are there for the second, 4096 for the third; where the trace has no
        // think time, the gap between arrivals is taken: 10 ms.
        let whole = alone(0, 2048) + 500 * MS + alone(2048, 4096) + 10 * MS + alone(4096, 6144);
        near(Some((end.0 as f64 / time_scale) as u64), whole);
        near(section.e2e.summary.min_ns, alone(0, 2048).min(alone(2048, 4096)).min(alone(4096, 6144)));
        assert_eq!(section.gpu.no_work_ns / MS, (510 * MS + host_ns(2048) + host_ns(4096) + host_ns(6144)) / MS);
    }
    // Open loop: all three come within 20 ms.
    let (_, end) = drive(&mut machine(&spec(), &list), Tick(START), None, None, |_| (Duration::ZERO, Ok(())));
    assert!(end.0 < 3 * S / 2, "{end:?}");
}

#[test]
fn conversations_go_on_after_a_turn_that_failed_and_without_names() {
    // The first turn does not fit into GPU memory.
    let list = talk(&[("a", 0, None, 6000, 1), ("a", 10, Some(100), 1024, 1), ("b", 5, None, 1024, 1)]);
    let section = play(&KvSpec { sessions: true, g1_blocks: Some(10), ..spec() }, &list, Duration::ZERO);
    assert_eq!((section.completed, section.failed, section.unfinished), (2, 1, 0));
    // A trace without sessions: a prompt that contains another with its answer follows it.
    let list = Requests::from_trace(&trace(&[(0, 1, 1024, 1200), (9000, 1, 4096, 1)]), OutputBlocks::Infer, 512);
    assert_eq!(list.list()[1].after, Some(Turn { request: 0, think_ns: 9 * S }));
}

#[test]
fn load_is_a_share_of_what_the_workers_can_do() {
    // Prompts of one length, nothing shared, one token each: capacity is one over the prefill of a batch.
    let list: Vec<_> = (0..64).map(|i| (i * 100, i, 4096, 1)).collect();
    let list = requests(&list);
    for workers in [1, 4] {
        let spec = KvSpec { workers, routing: Routing::RoundRobin, ..spec() };
        let capacity = capacity_per_s(&spec, &llama_8b_h100(), &list).expect("a valid run");
        // Two prompts fill an iteration; the first has one of them, as its arrival is the first.
        let model = llama_8b_h100();
        let mut batch = Batch::default();
        batch.chunk(&model, 0, 4096, true);
        batch.chunk(&model, 0, 4096, true);
        let expected = f64::from(workers) * 2e9 / model.iteration_ns(&batch);
        assert!((capacity / expected - 1.0).abs() < 0.02, "{capacity} {expected}");
        // At that load, `load_ratio` of a run says the same.
        let offered = 64.0 / 6.3;
        let spec = KvSpec { rate_scale: 0.8 * capacity / offered, ..spec };
        let mut section = play(&spec, &list, Duration::ZERO);
        fill_baselines(&mut section, &spec, &llama_8b_h100(), &list, Window::default()).expect("a valid run");
        assert!(section.load_ratio.is_some_and(|load| (load - 0.8).abs() < 0.01), "{:?}", section.load_ratio);
    }
    // The slower pool decides: a single token each leaves nothing to decode.
    let pools = KvSpec { routing: Routing::RoundRobin, ..pools(2, 1) };
    let both =
        capacity_per_s(&pools, &llama_8b_h100(), &requests(&[(0, 1, 4096, 200), (9, 2, 4096, 200)])).expect("runs");
    let prefill = 2.0 * 1e9 / prefill_ns(4096) as f64;
    assert!(both < prefill / 2.0, "{both} {prefill}");
}

#[test]
fn baselines_follow_the_layout() {
    let list: Vec<_> = (0..24).map(|i| (i * 250, i % 4, 4096, 30)).collect();
    let list = requests(&list);
    let died = |spec: KvSpec| KvSpec { outages: vec![outage(0, 2000, Some(3000))], ..spec };
    for spec in
        [two(vec![]), pools(1, 1), died(two(vec![])), died(pools(2, 1)), KvSpec { sessions: true, ..pools(1, 1) }]
    {
        let mut section = play(&spec, &list, Duration::from_millis(1));
        fill_baselines(&mut section, &spec, &llama_8b_h100(), &list, Window::default()).expect("a valid run");
        let all = &section.baselines;
        for baseline in [&all.no_cache, &all.local, &all.ideal_storage] {
            let baseline = baseline.as_ref().expect("filled");
            assert_eq!(baseline.completed, 24);
            assert_eq!(baseline.gpu.down_ns, section.gpu.down_ns);
            assert_eq!(baseline.gpu.transfer_stall_ns > 0, spec.topology == Topology::Disaggregated);
        }
        assert_eq!(section.load_ratio.is_none(), spec.sessions);
        let useful = section.gpu.useful_ratio.expect("work was done");
        assert!(useful > 0.0 && useful < 1.05, "{useful}");
    }
}

#[test]
fn layouts_that_make_no_sense_are_refused_in_words() {
    let error = |spec: KvSpec| spec.check().expect_err("a bad layout").to_string();
    assert_eq!(
        error(KvSpec { workers: 2, ..pools(2, 1) }),
        "`prefill_workers` is 2; it must be at least 1 and less than `workers`, so that some prefill and some decode"
    );
    let dies = |outages| error(KvSpec { workers: 2, outages, ..spec() });
    assert_eq!(
        dies(vec![outage(2, 1, None)]),
        "`outages.worker` is 2; it must be less than `workers`: they count from 0"
    );
    assert!(dies(vec![outage(1, 5, Some(5))]).starts_with("`outages.back` is 5ms; it must be later than `at`"));
    assert!(dies(vec![outage(1, 5, None), outage(1, 9, None)]).starts_with("`outages.at` is 9ms"));
    let twice = vec![outage(1, 5, Some(7)), outage(1, 9, Some(11)), outage(0, 6, None)];
    assert_eq!(KvSpec { workers: 2, outages: twice, ..spec() }.check(), Ok(()));
    let weights = RouterWeights { g2: 1.5, ..RouterWeights::default() };
    assert_eq!(error(KvSpec { router: weights, ..spec() }), "`router.g2` is 1.5; it must be between 0 and 1");
}

#[test]
fn a_plan_with_outages_reads_back_and_an_old_one_still_reads() {
    let spec = KvSpec { outages: vec![outage(0, 30_000, None), outage(1, 5, Some(9))], sessions: true, ..pools(1, 1) };
    let text = serde_json::to_string(&spec).expect("plain data");
    assert!(text.contains(r#"{"worker":0,"at":"30s"}"#), "{text}");
    assert_eq!(serde_json::from_str::<KvSpec>(&text).expect("what was written"), spec);
    let old = serde_json::from_str::<KvSpec>(r#"{"workers":3}"#).expect("an old plan");
    assert_eq!((old.topology, old.outages.len(), old.sessions), (Topology::Aggregated, 0, false));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whoever dies whenever, whatever storage does: cells sum exactly, every request ends once, down is down.
    #[test]
    fn books_balance_under_kills(
        list in prop::collection::vec((0u64..3000, 0u64..6, 1u64..9000, 1u64..60), 1..30),
        prefill in 0u32..3, others in 1u32..4, g1 in 18u64..60, g2 in 0u64..40,
        deaths in prop::collection::vec((0u32..6, 0u64..3000, prop::option::of(1u64..2000)), 0..6),
        cut in prop::option::of(1u64..4 * S), sessions: bool, shared: bool, stat: bool, scale in 1u32..3,
        routing in prop::sample::select(vec![Routing::RoundRobin, Routing::LeastLoaded, Routing::KvAware]),
        layer_wise: bool,
        faults in prop::collection::vec(0u64..60, 1..40),
    ) {
        let workers = prefill + others;
        let mut outages: Vec<Outage> = Vec::new();
        for &(worker, at, more) in &deaths {
            let one = outage(worker % workers, at, more.map(|more| at + more));
            // A worker that is down cannot die.
            let clash = |other: &Outage| {
                let ends = |o: &Outage| o.back.unwrap_or(Duration::MAX);
                other.worker == one.worker && !(ends(other) < one.at || ends(&one) < other.at)
            };
            if !outages.iter().any(clash) {
                outages.push(one);
            }
        }
        let spec = KvSpec {
            topology: if prefill > 0 { Topology::Disaggregated } else { Topology::Aggregated },
            workers, prefill_workers: prefill, outages: outages.clone(), sessions, shared_tier: shared, routing,
            g1_blocks: Some(g1), g2_bytes: Bytes(g2 << 26), time_scale: f64::from(scale),
            exists: if stat { Exists::Stat } else { Exists::Index },
            overlap: if layer_wise { spec::Overlap::LayerWise } else { spec::Overlap::default() },
            load: LoadPolicy::BreakEven, get_in_flight: 3, put_in_flight: 2,
            transfer_bytes_per_s: BytesPerSec(20e9), ..spec()
        };
        let list = Arc::new(Requests::from_trace(&trace(&list), OutputBlocks::Infer, 512));
        let mut kv = machine(&spec, &list);
        let mut turn = 0;
        let stop = cut.map(|cut| Tick(START + cut));
        let (_, end) = drive(&mut kv, Tick(START), None, stop, |submit| {
            turn += 1;
            let fault = faults[turn % faults.len()];
            let result = if fault == 7 { Err(ErrorKind::Timeout) } else { Ok(()) };
            (Duration::from_millis(fault * (1 + u64::from(submit.op.verb == Verb::Get))), result)
        });
        let end = if kv.window_was_cut() { stop.unwrap_or(end) } else { end };
        let section = kv.report((Tick(START), end));
        let g = &section.gpu;
        let cells = |g: &GpuTime| {
            [g.prefill_ns, g.recompute_ns, g.decode_ns, g.storage_stall_ns, g.transfer_stall_ns, g.no_work_ns, g.down_ns]
                .iter().sum::<u64>()
        };
        prop_assert_eq!(cells(g), g.total_ns);
        let exact = (end.0 - START) * u64::from(workers);
        prop_assert_eq!(g.total_ns, (exact as f64 / f64::from(scale)).round() as u64);
        for pool in &section.gpu_pools {
            prop_assert_eq!(cells(&pool.gpu), pool.gpu.total_ns);
        }
        // Down is what the outages say, cut at the end.
        let moment = |at: Duration| (START + at.as_nanos() as u64 * u64::from(scale)).min(end.0);
        let down: u64 = outages.iter().map(|o| o.back.map_or(end.0, moment) - moment(o.at)).sum();
        prop_assert!(g.down_ns.abs_diff(down / u64::from(scale)) <= u64::from(scale), "{} {}", g.down_ns, down);
        prop_assert_eq!(section.requests, section.completed + section.failed + section.unfinished);
        if !kv.window_was_cut() {
            prop_assert_eq!(section.requests, list.list().len() as u64);
            prop_assert_eq!(section.unfinished, 0);
            prop_assert_eq!(kv.tiers.kept_for_jobs(), 0, "requests that have ended leave nothing behind");
        }
        if let Some(failover) = section.failover {
            let parts = failover.loaded_tokens + failover.found_tokens + failover.recomputed_tokens;
            prop_assert_eq!(failover.lost_tokens, parts);
            prop_assert!(failover.failed_requests <= section.failed);
        }
    }
}

/// Wakes that come late do not move outages: what is down is down from the moment it was to be.
#[test]
fn an_outage_is_booked_when_it_was_due() {
    let spec = KvSpec { shared_tier: false, ..two(vec![outage(0, 1000, Some(2500))]) };
    let mut kv = machine(&spec, &requests(&[(0, 1, 4096, 2), (4000, 2, 4096, 2), (4001, 3, 4096, 2)]));
    let mut out = Actions::default();
    let mut wakes = std::collections::BTreeSet::new();
    let (mut now, mut order, mut last) = (0, 0, 0);
    kv.step(Tick(0), Event::Start, &mut out);
    while !out.finished() {
        assert_eq!(out.drain_submits().count(), 0, "no shared tier");
        for (at, tag) in out.drain_wakes() {
            order += 1;
            wakes.insert((at, order, tag));
        }
        let (at, order, tag) = wakes.pop_first().expect("a wake");
        now = now.max(at.0 + crate::random::mix(order) % (3 * MS));
        last = at.0;
        kv.step(Tick(now), Event::Due { at, tag }, &mut out);
    }
    let section = kv.report((Tick(0), Tick(last)));
    assert_eq!((section.gpu.down_ns, section.completed), (1500 * MS, 3));
}
