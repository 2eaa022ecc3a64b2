//! Layer-wise first chunks against a table computed by hand, the closed form, and the worker's books.

use std::sync::Arc;

use gpufeed_schema::GpuTime;
use proptest::prelude::*;

use crate::inference::cost_tests::llama_8b_h100;
use crate::inference::worker::overlapped_end;
use crate::inference::{Batch, Begin, Host, Job, Limits, Parts, Peaks, Phase, Reason, Worker, summarize};
use crate::op::Tick;

const BLOCK: u64 = 16;
const LAYERS: usize = 32;

/// Loads the first `blocks` blocks of every job layer by layer.
#[derive(Debug, Default)]
struct Layered {
    blocks: usize,
    first: Vec<(u32, Tick, Parts)>,
    cached: Vec<(u32, u64)>,
    again: Vec<(Reason, u64)>,
    gaps: Vec<u64>,
    finished: usize,
}

impl Host for Layered {
    fn begin(&mut self, _: Tick, _: u32, job: &Job, _: usize, _: usize) -> Begin {
        if job.blocks.len() < self.blocks || self.blocks == 0 { Begin::Prefill } else { Begin::Overlap(self.blocks) }
    }
    fn recompute(&mut self, _: u32, _: &Job, index: usize) -> Option<Reason> {
        (index < self.blocks).then_some(Reason::TimedOut)
    }
    fn prefill(&mut self, _: Tick, _: u32, job: &Job, cached: u64, _: bool) {
        self.cached.push((job.id, cached));
    }
    fn recomputed(&mut self, _: Tick, reason: Reason, tokens: u64) {
        self.again.push((reason, tokens));
    }
    fn gap(&mut self, _: Tick, gap_ns: u64, count: u64) {
        self.gaps.extend((0..count).map(|_| gap_ns));
    }
    fn first_token(&mut self, at: Tick, _: u32, job: &Job, parts: &Parts) {
        self.first.push((job.id, at, *parts));
    }
    fn finished(&mut self, _: Tick, _: u32, _: &Job, _: Tick) {
        self.finished += 1;
    }
    fn refused(&mut self, _: Tick, _: u32, job: &Job) {
        panic!("{} fits", job.id);
    }
}

fn worker() -> Worker {
    let limits = Limits {
        max_num_batched_tokens: 2048,
        max_num_seqs: 8,
        block_tokens: BLOCK,
        hbm_blocks: 4096,
        time_scale: 1.0,
    };
    Worker::new(0, Arc::new(llama_8b_h100()), limits, Tick(0))
}

fn job(id: u32, at: u64, prompt: u64, output: u64) -> Job {
    let blocks = (0..prompt / BLOCK).map(|i| u64::from(id) << 32 | i).collect();
    Job { id, arrived: Tick(at), prompt_tokens: prompt, output_tokens: output, blocks }
}

fn iteration(shape: impl FnOnce(&mut Batch)) -> u64 {
    let mut batch = Batch::default();
    shape(&mut batch);
    llama_8b_h100().iteration_ns(&batch).round() as u64
}

fn drain(worker: &mut Worker, host: &mut Layered) -> Tick {
    let mut end = Tick(0);
    while let Some(due) = worker.due() {
        end = due;
        worker.advance(due, host);
    }
    end
}

fn books(worker: &Worker, end: Tick) -> GpuTime {
    let peaks = Peaks { flops_per_s: 1e15, bytes_per_s: 1e12 };
    let (gpu, _) = summarize([worker.ledger().clone()], (Tick(0), end), peaks, 1.0);
    let cells = gpu.prefill_ns + gpu.recompute_ns + gpu.decode_ns + gpu.storage_stall_ns;
    assert_eq!(cells + gpu.transfer_stall_ns + gpu.no_work_ns + gpu.down_ns, end.0);
    gpu
}

/// Design §5: `l₁ + Σ max(cᵢ, lᵢ₊₁) + c_L`.
fn closed_form(compute_ns: u64, loads: &[u64]) -> u64 {
    let c = compute_ns / loads.len() as u64;
    loads[0] + loads[1..].iter().map(|l| c.max(*l)).sum::<u64>() + c
}

fn one_after_the_other(start: u64, loads: &[u64]) -> Vec<Tick> {
    let mut at = start;
    let next = |l: &u64| {
        at += l;
        Tick(at)
    };
    loads.iter().map(next).collect()
}

#[test]
fn the_recurrence_gives_the_table_computed_by_hand() {
    let end = |compute, landed: &[u64]| {
        overlapped_end(Tick(100), compute, &landed.iter().map(|at| Tick(100 + at)).collect::<Vec<_>>()).0 - 100
    };
    // Nothing to wait for: the compute alone, wherever the landings lie before the start of their layer.
    assert_eq!(end(40, &[0, 0, 0, 0]), 40);
    assert_eq!(end(40, &[0, 10, 20, 30]), 40);
    // c = 10: 5 → 15, 25, 35, 45.
    assert_eq!(end(40, &[5, 10, 15, 20]), 45);
    // c = 10, l = 15: 15 → 25, 30 → 40, 45 → 55, 60 → 70.
    assert_eq!(end(40, &[15, 30, 45, 60]), 70);
    // A late first layer hides the others: 70 → 80, 90, 100, 110.
    assert_eq!(end(40, &[70, 60, 50, 40]), 110);
    // One late layer in the middle: 10, then 50 → 60, 70, 80.
    assert_eq!(end(40, &[0, 50, 51, 52]), 80);
    // Compute that takes forever hides all but the first layer.
    assert_eq!(end(4_000_000_000_000, &[7, 14, 21, 28]), 7 + 4_000_000_000_000);
    // What does not divide evenly still sums.
    assert_eq!(end(43, &[0, 0, 0, 0]), 43);
    assert_eq!(end(43, &[]), 43);
}

#[test]
fn a_layered_prompt_ends_at_the_recurrence_and_the_wait_is_a_storage_stall() {
    for l in [0u64, 20_000, 400_000, 3_000_000] {
        let (mut worker, mut host) = (worker(), Layered { blocks: 64, ..Layered::default() });
        worker.enqueue(Tick(1000), Tick(1000), job(1, 400, 2000, 1), &mut host);
        assert_eq!(worker.due(), None, "its end is not known before its layers are");
        let landed = one_after_the_other(1000, &[l; LAYERS]);
        worker.layers_landed(landed[LAYERS - 1].max(Tick(1000)), 1, 64, landed.clone(), &mut host);
        let compute = iteration(|batch| batch.chunk(&llama_8b_h100(), 1024, 976, true));
        let expected = overlapped_end(Tick(1000), compute, &landed);
        assert_eq!(drain(&mut worker, &mut host), expected);
        let wait = expected.0 - 1000 - compute;
        // Equal layers: what design §5 says, to the rounding of the layers' parts.
        assert!((expected.0 - 1000).abs_diff(closed_form(compute, &[l; LAYERS])) <= LAYERS as u64);
        assert_eq!(wait == 0, l == 0);
        assert_eq!(host.first, [(1, expected, Parts([0, 0, wait, 0, 600 + compute, 0]))]);
        assert_eq!(host.cached, [(1, 1024)]);
        let gpu = books(&worker, expected);
        assert_eq!((gpu.storage_stall_ns, gpu.prefill_ns, gpu.no_work_ns), (wait, compute, 1000));
        assert_eq!(worker.pool().match_prefix(&job(1, 0, 2000, 1).blocks), 125, "loaded and computed blocks are there");
    }
}

#[test]
fn the_whole_batch_waits() {
    let (mut worker, mut host) = (worker(), Layered { blocks: 64, ..Layered::default() });
    worker.enqueue(Tick(0), Tick(0), job(1, 0, 160, 20), &mut host);
    let begun = worker.due().expect("it prefills");
    worker.enqueue(Tick(1), Tick(1), job(2, 1, 2000, 2), &mut host);
    worker.advance(begun, &mut host);
    assert_eq!(worker.due(), None);
    let landed = one_after_the_other(begun.0, &[1_000_000; LAYERS]);
    worker.layers_landed(landed[LAYERS - 1], 2, 64, landed.clone(), &mut host);
    let compute = iteration(|batch| {
        batch.chunk(&llama_8b_h100(), 1024, 976, true);
        batch.decode(&llama_8b_h100(), 161);
    });
    let end = overlapped_end(begun, compute, &landed);
    assert_eq!(worker.due(), Some(end));
    drain(&mut worker, &mut host);
    assert_eq!(host.finished, 2);
    assert_eq!(host.gaps[0], end.0 - begun.0, "the decoding request's gap holds the wait");
}

/// A request whose layers still come is loading, whether its first chunk waits to begin or has begun.
#[test]
fn layers_on_their_way_starve_as_whole_loads_do() {
    let (mut worker, mut host) = (worker(), Layered { blocks: 64, ..Layered::default() });
    worker.enqueue(Tick(0), Tick(0), job(1, 0, 2000, 1), &mut host);
    worker.layers_landed(Tick(9_000_000), 1, 64, vec![Tick(9_000_000); LAYERS], &mut host);
    let end = drain(&mut worker, &mut host);
    let starved = books(&worker, end).storage_starved_ratio;
    assert!((starved - 9e6 / end.0 as f64).abs() < 1e-12, "{starved}");

    let (mut worker, mut host) = (self::worker(), Layered { blocks: 64, ..Layered::default() });
    worker.enqueue(Tick(0), Tick(0), job(1, 0, 160, 20), &mut host);
    let begun = worker.due().expect("it prefills");
    worker.enqueue(Tick(1), Tick(1), job(2, 1, 2000, 2), &mut host);
    worker.advance(begun, &mut host);
    let landed = Tick(begun.0 + 40_000_000);
    worker.layers_landed(landed, 2, 64, vec![landed; LAYERS], &mut host);
    let end = drain(&mut worker, &mut host);
    let starved = books(&worker, end).storage_starved_ratio;
    assert!((starved - 20e6 / end.0 as f64).abs() < 1e-12, "one of two: {starved}");
}

#[test]
fn what_does_not_come_is_computed_and_the_chunk_after_it_again() {
    let (mut worker, mut host) = (worker(), Layered { blocks: 64, ..Layered::default() });
    worker.enqueue(Tick(0), Tick(0), job(1, 0, 2000, 1), &mut host);
    worker.layers_landed(Tick(5000), 1, 40, vec![Tick(5000); LAYERS], &mut host);
    let model = llama_8b_h100();
    let void = iteration(|batch| batch.chunk(&model, 1024, 976, true));
    let again = iteration(|batch| batch.chunk(&model, 640, 1360, true));
    assert_eq!(drain(&mut worker, &mut host), Tick(5000 + void + again));
    assert_eq!(host.cached, [(1, 640)]);
    assert_eq!(host.again, [(Reason::TimedOut, 16); 24]);
    assert_eq!(host.finished, 1);
}

#[test]
fn a_stop_in_the_wait_books_all_time() {
    let (mut worker, mut host) = (worker(), Layered { blocks: 64, ..Layered::default() });
    worker.enqueue(Tick(0), Tick(0), job(1, 0, 2000, 1), &mut host);
    worker.stop(Tick(7_000_000));
    let gpu = books(&worker, Tick(7_000_000));
    assert_eq!(gpu.no_work_ns, 0);
    assert!(gpu.storage_stall_ns > 0 && gpu.prefill_ns > 0, "{gpu:?}");
}

#[test]
fn a_dead_worker_forgets_its_layers() {
    let (mut worker, mut host) = (worker(), Layered { blocks: 64, ..Layered::default() });
    worker.enqueue(Tick(0), Tick(0), job(1, 0, 2000, 1), &mut host);
    let lost = worker.kill(Tick(9000), &mut host);
    assert_eq!(lost.requests.len(), 1);
    worker.layers_landed(Tick(9500), 1, 64, vec![Tick(9500); LAYERS], &mut host);
    assert_eq!(worker.due(), None);
    worker.restart(Tick(10_000));
    host.blocks = 0;
    worker.enqueue(Tick(10_000), Tick(10_000), job(2, 10_000, 100, 1), &mut host);
    let end = drain(&mut worker, &mut host);
    assert_eq!(host.first.last().map(|first| first.0), Some(2));
    let gpu = books(&worker, end);
    assert_eq!(gpu.down_ns, 1000);
}

#[test]
fn a_job_may_wait_for_its_look_up_first() {
    #[derive(Debug, Default)]
    struct Asks(Layered);
    impl Host for Asks {
        fn begin(&mut self, _: Tick, _: u32, _: &Job, _: usize, _: usize) -> Begin {
            Begin::Wait(Phase::Lookup)
        }
        fn prefill(&mut self, at: Tick, worker: u32, job: &Job, cached: u64, again: bool) {
            self.0.prefill(at, worker, job, cached, again);
        }
        fn first_token(&mut self, at: Tick, worker: u32, job: &Job, parts: &Parts) {
            self.0.first_token(at, worker, job, parts);
        }
        fn finished(&mut self, _: Tick, _: u32, _: &Job, _: Tick) {}
        fn refused(&mut self, _: Tick, _: u32, _: &Job) {}
    }
    let (mut worker, mut host) = (worker(), Asks::default());
    worker.enqueue(Tick(0), Tick(0), job(1, 0, 2000, 1), &mut host);
    worker.overlap(Tick(300), 1, 64, &mut host);
    worker.layers_landed(Tick(800), 1, 64, vec![Tick(800); LAYERS], &mut host);
    let compute = iteration(|batch| batch.chunk(&llama_8b_h100(), 1024, 976, true));
    assert_eq!(worker.due(), Some(Tick(800 + compute)));
    worker.advance(Tick(800 + compute), &mut host);
    assert_eq!(host.0.first[0].2, Parts([0, 300, 500, 0, compute, 0]));
}

proptest! {
    /// Free-running loads never end later than the closed form, and exactly there when layers are alike.
    #[test]
    fn recurrence_and_closed_form(c in 0u64..1000, loads in prop::collection::vec(0u64..1000, 1..90), alike: bool) {
        let loads = if alike { vec![loads[0]; loads.len()] } else { loads };
        let compute = c * loads.len() as u64;
        let end = overlapped_end(Tick(5), compute, &one_after_the_other(5, &loads)).0 - 5;
        let closed = closed_form(compute, &loads);
        prop_assert!(end <= closed && end >= compute.max(loads.iter().sum::<u64>() + c));
        prop_assert!(!alike || end == closed);
    }
}
