//! Speed of making and of checking payload bytes on one core, in a buffer that stays in cache and over a pool whose
//! buffers take turns. `cargo bench -p gpufeed-io --bench payload`

#![expect(clippy::print_stdout, reason = "prints what it measured")]

use std::hint::black_box;
use std::time::Instant;

use gpufeed_io::arena::Arena;
use gpufeed_io::payload::Payloads;

fn main() {
    // As a test (`cargo test --benches`) a little suffices.
    let bytes: usize = if std::env::args().any(|arg| arg == "--bench") { 4 << 30 } else { 16 << 20 };
    let payload = Payloads::new(1).of("train/img_0001.npz");
    for (size, pool) in [(4 << 10, 1), (64 << 10, 1), (1 << 20, 1), (1 << 20, 32), (2 << 20, 1), (2 << 20, 32)] {
        let arena = Arena::new(size, pool).expect("small");
        // Held, so that the buffer taken next is the one given back longest ago.
        let mut bufs: Vec<_> = std::iter::from_fn(|| arena.take()).collect();
        bufs.iter_mut().for_each(|buf| buf.set_len(size));
        let rounds = bytes / size;
        let start = Instant::now();
        for round in 0..rounds {
            payload.fill(0, black_box(&mut bufs[round % pool]));
        }
        let fill = start.elapsed();
        bufs.iter_mut().for_each(|buf| payload.fill(0, buf));
        let start = Instant::now();
        for round in 0..rounds {
            payload.verify(0, black_box(&bufs[round % pool])).expect("what was written");
        }
        let verify = start.elapsed();
        let rate = |took: std::time::Duration| (rounds * size) as f64 / took.as_secs_f64() / 1e9;
        println!("{} KiB, {pool} buffers: fill {:.1} GB/s, verify {:.1} GB/s", size >> 10, rate(fill), rate(verify));
    }
    // Reading memory, for comparison: nothing can be checked faster.
    let all = vec![1u64; (64 << 20) / 8];
    let start = Instant::now();
    let mut sum = 0u64;
    for _ in 0..bytes / (64 << 20) {
        sum = black_box(&all).iter().fold(sum, |sum, word| sum ^ word);
    }
    black_box(sum);
    println!("reading 64 MiB: {:.1} GB/s", bytes as f64 / start.elapsed().as_secs_f64() / 1e9);
}
