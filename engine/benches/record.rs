//! Cost of recording one operation: nanoseconds and allocations. `cargo bench -p gpufeed-engine --bench record`.

#![allow(clippy::print_stdout, missing_docs)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use gpufeed_engine::record::{Block, Exchange, Recorder, Steps, Window};
use gpufeed_io::counting::{Counting, allocations};
use gpufeed_workloads::machine::Submit;
use gpufeed_workloads::op::{Carrier, Key, Op, Outcome, Tick};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Two blocks that take turns; clearing stands in for the collector's work and is outside the timed region.
struct Two(Option<Box<Block>>);

impl Exchange for Two {
    fn exchange(&mut self, block: &mut Box<Block>) -> bool {
        if let Some(other) = self.0.take() {
            let full = std::mem::replace(block, other);
            self.0 = Some(full);
        }
        true
    }
}

fn main() {
    // As a test (`cargo test --benches`) a few rounds suffice.
    let rounds = if std::env::args().any(|arg| arg == "--bench") { 200 } else { 2 };
    let window = Arc::new(Window::default());
    window.open_at(Tick::ZERO);
    let steps = Steps { warm_up: Duration::from_secs(1), measure: Duration::from_secs(1) };
    let two = Two(Some(Box::new(Block::new(0))));
    let mut recorder = Recorder::new(0, Tick::ZERO, steps, window, two, None);
    let mut random = 1u64;
    let mut operations = Vec::new();
    for _ in 0..10_000u64 {
        random = random.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
        let service = 50_000 + (random >> 33) % 10_000_000;
        let op = Op::get(Key { space: 0, rank: 0, id: random >> 40, ..Key::ZERO }, 4096);
        operations.push((op, service));
    }
    let mut at = 0u64;
    let mut once = |recorder: &mut Recorder<Two>| {
        for (op, service) in &operations {
            at += 5000;
            let (intended, sent) = (Tick(at), Tick(at + 700));
            let submit = Submit { tag: 0, worker: 0, intended, op: *op };
            let done = Tick(at + service);
            let outcome = Outcome {
                intended,
                sent,
                first_byte: Tick(at + service / 2 + 700),
                done,
                carrier: Carrier::Http,
                bytes: 4096,
                attempts: 1,
                result: Ok(()),
            };
            recorder.issue(op);
            recorder.record(std::hint::black_box(&submit), std::hint::black_box(&outcome));
        }
    };
    // Both blocks have seen the operation after two intervals.
    (0..50).for_each(|_| once(&mut recorder));
    let (before, start) = (allocations(), Instant::now());
    (0..rounds).for_each(|_| once(&mut recorder));
    let elapsed = start.elapsed();
    let allocated = allocations() - before;
    let n = rounds * 10_000u64;
    println!("record: {:.1} ns per operation, {allocated} allocations in {n}", elapsed.as_nanos() as f64 / n as f64);
    assert_eq!(allocated, 0, "recording must not allocate");
}
