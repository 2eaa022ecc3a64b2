//! The worker against closed forms of its iterations, and coalesced runs against single iterations.

use std::sync::Arc;

use gpufeed_schema::GpuTime;
use proptest::prelude::*;

use crate::inference::cost_tests::llama_8b_h100;
use crate::inference::{
    Batch, Begin, CostModel, Host, Job, Limits, Parts, Peaks, Phase, Reason, Slot, Worker, summarize,
};
use crate::op::Tick;

#[derive(Debug, Default, PartialEq)]
struct Log {
    first: Vec<(u32, Tick, Parts)>,
    finished: Vec<(u32, Tick)>,
    refused: Vec<u32>,
    again: Vec<(Reason, u64)>,
    blocks: Vec<(u64, Tick)>,
    cached: Vec<(u32, u64)>,
    tokens: u64,
    gaps: Vec<(u64, u64)>,
    load: bool,
    /// Blocks of a prompt that somebody had computed.
    known: usize,
}

impl Host for Log {
    fn begin(&mut self, _: Tick, _: u32, _: &Job, _: usize, _: usize) -> Begin {
        if self.load { Begin::Wait(Phase::Load) } else { Begin::Prefill }
    }
    fn recompute(&mut self, _: u32, _: &Job, index: usize) -> Option<Reason> {
        (index < self.known).then_some(Reason::Evicted)
    }
    fn prefill(&mut self, _: Tick, _: u32, job: &Job, cached: u64, _: bool) {
        self.cached.push((job.id, cached));
    }
    fn recomputed(&mut self, _: Tick, reason: Reason, tokens: u64) {
        self.again.push((reason, tokens));
    }
    fn completed(&mut self, at: Tick, _: u32, job: &Job, index: usize, _: Slot) -> bool {
        self.blocks.push((job.blocks[index], at));
        false
    }
    fn tokens(&mut self, _: Tick, count: u64) {
        self.tokens += count;
    }
    fn gap(&mut self, _: Tick, gap_ns: u64, count: u64) {
        self.gaps.push((gap_ns, count));
    }
    fn first_token(&mut self, at: Tick, _: u32, job: &Job, parts: &Parts) {
        self.first.push((job.id, at, *parts));
    }
    fn finished(&mut self, at: Tick, _: u32, job: &Job, _: Tick) {
        self.finished.push((job.id, at));
    }
    fn refused(&mut self, _: Tick, _: u32, job: &Job) {
        self.refused.push(job.id);
    }
}

fn limits(hbm_blocks: usize) -> Limits {
    Limits { max_num_batched_tokens: 2048, max_num_seqs: 8, block_tokens: 16, hbm_blocks, time_scale: 1.0 }
}

fn worker(limits: Limits) -> Worker {
    Worker::new(0, Arc::new(llama_8b_h100()), limits, Tick(0))
}

fn job(id: u32, at: u64, prompt: u64, output: u64) -> Job {
    let blocks = (0..prompt / 16).map(|i| u64::from(id) << 32 | i).collect();
    Job { id, arrived: Tick(at), prompt_tokens: prompt, output_tokens: output, blocks }
}

fn drain(worker: &mut Worker, log: &mut Log) -> Tick {
    let mut now = Tick(0);
    while let Some(due) = worker.due() {
        now = due;
        worker.advance(now, log);
    }
    now
}

fn iteration(model: &CostModel, shape: impl FnOnce(&mut Batch)) -> u64 {
    let mut batch = Batch::default();
    shape(&mut batch);
    model.iteration_ns(&batch).round() as u64
}

#[test]
fn one_job_takes_the_sum_of_its_iterations() {
    let model = llama_8b_h100();
    let (mut worker, mut log) = (worker(limits(4096)), Log::default());
    worker.enqueue(Tick(1000), Tick(1000), job(1, 400, 5000, 100), &mut log);
    let end = drain(&mut worker, &mut log);
    let prefill: u64 = [(0, 2048), (2048, 2048), (4096, 904)]
        .map(|(at, chunk)| iteration(&model, |batch| batch.chunk(&model, at, chunk, at + chunk == 5000)))
        .iter()
        .sum();
    let decode: u64 = (1..100).map(|i| iteration(&model, |batch| batch.decode(&model, 5000 + i))).sum();
    assert_eq!(log.first, [(1, Tick(1000 + prefill), Parts([0, 0, 0, 0, 600 + prefill, 0]))]);
    assert_eq!((end, &log.finished), (Tick(1000 + prefill + decode), &vec![(1, end)]));
    assert_eq!((log.tokens, log.gaps.iter().map(|gap| gap.1).sum::<u64>()), (100, 99));
    assert_eq!(log.gaps.iter().map(|gap| gap.0 * gap.1).sum::<u64>(), decode);
    assert_eq!(log.blocks.len(), 5000 / 16);
    assert_eq!(worker.pool().in_use(), 0);
}

#[test]
fn the_same_prompt_again_computes_one_block() {
    let (mut worker, mut log) = (worker(limits(4096)), Log::default());
    worker.enqueue(Tick(0), Tick(0), job(7, 0, 3200, 2), &mut log);
    let end = drain(&mut worker, &mut log);
    worker.enqueue(end, end, Job { arrived: end, ..job(7, 0, 3200, 2) }, &mut log);
    drain(&mut worker, &mut log);
    assert_eq!(log.cached, [(7, 0), (7, 3184)]);
    assert_eq!(log.again, [(Reason::Tail, 16)]);
}

#[test]
fn a_big_prefill_shows_in_the_gaps_of_others() {
    let model = llama_8b_h100();
    let (mut worker, mut log) = (worker(limits(4096)), Log::default());
    worker.enqueue(Tick(0), Tick(0), job(1, 0, 160, 50), &mut log);
    // In the middle of a run of decodes.
    worker.advance(Tick(50_000_000), &mut log);
    worker.enqueue(Tick(50_000_000), Tick(50_000_000), job(2, 50_000_000, 8000, 1), &mut log);
    drain(&mut worker, &mut log);
    let longest = log.gaps.iter().map(|gap| gap.0).max().expect("gaps");
    let decode = iteration(&model, |batch| batch.decode(&model, 200));
    assert!(longest > 5 * decode, "{longest} against {decode}");
    let (_, first, parts) = log.first[1];
    assert_eq!(parts.total(), first.0 - 50_000_000);
    assert!(parts.of(Phase::Queue) > 0 && parts.of(Phase::Queue) <= decode, "until the iteration in progress ends");
}

/// While a prompt of 8,000 is prefilled in chunks, each gap of a decoding request is one mixed iteration; before and
/// after it is a decode by itself.
#[test]
fn each_gap_of_a_running_request_is_the_iteration_it_shares() {
    let model = llama_8b_h100();
    let (mut worker, mut log) = (worker(limits(4096)), Log::default());
    worker.enqueue(Tick(0), Tick(0), job(1, 0, 160, 40), &mut log);
    let arrival = Tick(60_000_000);
    worker.advance(arrival, &mut log);
    worker.enqueue(arrival, arrival, job(2, arrival.0, 8000, 1), &mut log);
    drain(&mut worker, &mut log);

    let mut at = iteration(&model, |batch| batch.chunk(&model, 0, 160, true));
    let (mut context, mut expected) = (160, Vec::new());
    let mut decode = |expected: &mut Vec<u64>, at: &mut u64, chunk: Option<(u64, u64)>| {
        context += 1;
        let gap = iteration(&model, |batch| {
            batch.decode(&model, context);
            if let Some((from, tokens)) = chunk {
                batch.chunk(&model, from, tokens, from + tokens == 8000);
            }
        });
        *at += gap;
        expected.push(gap);
    };
    while at <= arrival.0 {
        decode(&mut expected, &mut at, None);
    }
    // 2,048 tokens an iteration, of which the running request decodes one.
    for chunk in [(0, 2047), (2047, 2047), (4094, 2047), (6141, 1859)] {
        decode(&mut expected, &mut at, Some(chunk));
    }
    let prefilled = at;
    for _ in expected.len()..39 {
        decode(&mut expected, &mut at, None);
    }
    let gaps: Vec<u64> = log.gaps.iter().flat_map(|&(gap, count)| std::iter::repeat_n(gap, count as usize)).collect();
    // Gaps of one run are told together, so only their lengths are compared, not their order.
    let sorted = |mut gaps: Vec<u64>| {
        gaps.sort_unstable();
        gaps
    };
    assert_eq!(sorted(gaps), sorted(expected));
    assert_eq!(log.first[1].1, Tick(prefilled));
    assert_eq!(log.finished, [(2, Tick(prefilled)), (1, Tick(at))]);
}

/// One iteration that prefills new blocks, prefills known ones again and decodes is split as each would take alone.
#[test]
fn a_mixed_iteration_is_split_as_its_parts_would_take_alone() {
    let model = llama_8b_h100();
    let (mut worker, mut log) = (worker(limits(4096)), Log { known: 50, ..Log::default() });
    worker.enqueue(Tick(0), Tick(0), job(1, 0, 8, 2), &mut log);
    let first = worker.due().expect("a prefill");
    worker.enqueue(Tick(1), Tick(1), job(2, 1, 1600, 1), &mut log);
    let end = drain(&mut worker, &mut log);
    // 100 blocks of which 50 are known: 800 tokens again, 800 new, and one decode over nine tokens.
    let whole = iteration(&model, |batch| {
        batch.decode(&model, 9);
        batch.chunk(&model, 0, 1600, true);
    });
    assert_eq!(end.0 - first.0, whole);
    let alone = |shape: &dyn Fn(&mut Batch)| {
        let mut batch = Batch::default();
        shape(&mut batch);
        model.iteration_ns(&batch)
    };
    let parts = [
        alone(&|batch| batch.chunk(&model, 800, 800, true)),
        alone(&|batch| batch.chunk(&model, 0, 800, false)),
        alone(&|batch| batch.decode(&model, 9)),
    ];
    let gpu = time(&worker, end.0);
    let all: f64 = parts.iter().sum();
    let cells = [gpu.prefill_ns - first.0, gpu.recompute_ns, gpu.decode_ns];
    for (cell, part) in cells.iter().zip(parts) {
        assert!((*cell as f64 - whole as f64 * part / all).abs() <= 1.0, "{cells:?} against {parts:?}");
    }
    assert_eq!(cells.iter().sum::<u64>(), whole);
    assert_eq!(log.again.iter().map(|again| again.1).sum::<u64>(), 800);
}

#[test]
fn a_job_that_can_never_fit_is_refused_and_preemption_starts_over() {
    let (mut worker, mut log) = (worker(limits(20)), Log::default());
    worker.enqueue(Tick(0), Tick(0), job(1, 0, 320, 2), &mut log);
    worker.enqueue(Tick(0), Tick(0), job(2, 0, 160, 100), &mut log);
    worker.enqueue(Tick(0), Tick(0), job(3, 0, 144, 100), &mut log);
    drain(&mut worker, &mut log);
    assert_eq!(log.refused, [1]);
    assert_eq!(log.finished.len(), 2);
    assert_eq!(log.tokens, 200);
    assert!(log.cached.iter().filter(|cached| cached.0 == 3).count() > 1, "the newest was preempted: {:?}", log.cached);
    assert_eq!(worker.pool().in_use(), 0);
}

#[test]
fn waiting_for_a_load_is_a_storage_stall() {
    let (mut worker, mut log) = (worker(limits(100)), Log { load: true, ..Log::default() });
    worker.enqueue(Tick(0), Tick(0), job(1, 0, 320, 1), &mut log);
    assert_eq!(worker.due(), None);
    worker.phase(Tick(700), 1, Phase::Copy);
    worker.loaded(Tick(1000), 1, 19, &mut log);
    let end = drain(&mut worker, &mut log);
    worker.settle_for_test(end + std::time::Duration::from_nanos(50));
    let (_, _, parts) = log.first[0];
    assert_eq!((parts.of(Phase::Load), parts.of(Phase::Copy)), (700, 300));
    let gpu = time(&worker, end.0 + 50);
    assert_eq!((gpu.storage_stall_ns, gpu.prefill_ns, gpu.no_work_ns), (1000, end.0 - 1000, 50));
    assert!((gpu.storage_starved_ratio - 1000.0 / (end.0 + 50) as f64).abs() < 1e-12);
}

fn time(worker: &Worker, until: u64) -> GpuTime {
    let peaks = Peaks { flops_per_s: 989e12, bytes_per_s: 3.35e12 };
    summarize([worker.ledger().clone()], (Tick(0), Tick(until)), peaks, 1.0).0
}

proptest! {
    /// Poking the worker at any time cuts runs short; it must not change anything that happens.
    #[test]
    fn coalescing_changes_nothing(
        jobs in prop::collection::vec((0u64..400_000_000, 1u64..900, 1u64..120), 1..12),
        pokes in prop::collection::vec(0u64..2_000_000_000, 0..40),
        hbm_blocks in 70usize..200,
    ) {
        let mut events: Vec<(u64, Option<Job>)> = jobs.iter().enumerate()
            .map(|(i, &(at, prompt, output))| (at, Some(job(i as u32, at, prompt, output)))).collect();
        events.sort_by_key(|event| event.0);
        let play = |events: Vec<(u64, Option<Job>)>| {
            let (mut worker, mut log) = (worker(limits(hbm_blocks)), Log::default());
            for (at, job) in events {
                while let Some(due) = worker.due().filter(|due| due.0 <= at) {
                    worker.advance(due, &mut log);
                }
                match job {
                    Some(job) => worker.enqueue(Tick(at), Tick(at), job, &mut log),
                    None => worker.poke_for_test(Tick(at), &mut log),
                }
            }
            let end = drain(&mut worker, &mut log);
            log.gaps.clear(); // the same gaps, in other groups
            (log, time(&worker, end.0.max(2_000_000_000)), worker.pool().in_use())
        };
        let plain = play(events.clone());
        let mut poked = events;
        poked.extend(pokes.iter().map(|&at| (at, None)));
        poked.sort_by_key(|event| event.0);
        let poked = play(poked);
        prop_assert_eq!(&plain.0, &poked.0);
        let cells = |gpu: &GpuTime| (gpu.prefill_ns, gpu.recompute_ns, gpu.decode_ns, gpu.storage_stall_ns, gpu.no_work_ns);
        prop_assert_eq!(cells(&plain.1), cells(&poked.1));
        prop_assert_eq!(plain.0.finished.len(), jobs.len());
        prop_assert_eq!(plain.2, 0);
    }
}
