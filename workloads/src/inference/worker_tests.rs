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
}

impl Host for Log {
    fn begin(&mut self, _: Tick, _: u32, _: &Job, _: usize, _: usize) -> Begin {
        if self.load { Begin::Wait(Phase::Load) } else { Begin::Prefill }
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
