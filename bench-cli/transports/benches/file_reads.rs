//! CPU and latency of 4 KiB random reads through [`FileTarget`] lanes against bare `pread` on the same O_DIRECT file.
//!
//! `cargo bench -p gpufeed-transports --bench file_reads [-- DIRECTORY]`

#![expect(clippy::print_stdout, reason = "prints what it measured")]

use std::sync::Arc;
use std::time::Instant;

use gpufeed_engine::transport::{Clock, Data, Lane, Transport};
use gpufeed_io::arena::Arena;
use gpufeed_io::payload::Payloads;
use gpufeed_transports::file::{FileConfig, FileStore, FileTarget};
use gpufeed_workloads::op::{Key, KeyStyle, Names, Op, Space};
use rustix::fs::{Mode, OFlags};
use rustix::time::{ClockId, clock_gettime};

const FILE: u64 = 256 << 20;
const READ: u64 = 4096;
const READS: u64 = 20_000;
const KEY: Key = Key { space: 0, rank: 0, id: 1, ..Key::ZERO };

fn cpu_ns() -> f64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as f64 * 1e9 + time.tv_nsec as f64
}

/// Offset of read `i`: a page drawn by a multiplicative hash.
const fn offset(i: u64) -> u64 {
    (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) % (FILE / READ) * READ
}

fn show(name: &str, cpu: f64, wall: std::time::Duration) {
    let (reads, wall) = (READS as f64, wall.as_secs_f64());
    println!("{name:>28}: {:.2} CPU µs/read, {:.1} µs/read of wall time", cpu / reads / 1e3, wall / reads * 1e6);
}

fn main() {
    let root = std::env::args().skip(1).find(|arg| !arg.starts_with('-')).unwrap_or_else(|| ".".into());
    let root = tempfile::tempdir_in(root).expect("a directory to write to");
    let store = FileStore::open(&FileConfig::new(root.path())).expect("a directory");
    store.notes().iter().for_each(|note| println!("{note}"));
    let space = Space { before: "f".into(), after: String::new(), style: KeyStyle::Hash };
    let names = Arc::new(Names { spaces: vec![space] });
    let arena = Arena::new(4096, 64).expect("small");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build_local(Default::default());
    let runtime = runtime.expect("a runtime");
    let clock = Clock::new(Instant::now());
    let target = FileTarget::new(store.clone(), Arc::clone(&names), arena.clone(), clock).expect("a ring");
    runtime.block_on(async {
        let pumped = target.clone();
        let pump = tokio::task::spawn_local(async move { pumped.turn().await });
        let mut lane = target.lane().await.expect("opens");
        let payload = Payloads::new(1).of(&names.of(KEY));
        let written = lane.call(&Op::put(KEY, FILE), &mut Data::Derived(payload)).await;
        assert!(written.result.is_ok(), "{:?}", written.result);
        for lanes in [1, 16] {
            let (cpu, wall) = (cpu_ns(), Instant::now());
            let tasks: Vec<_> = (0..lanes)
                .map(|first| {
                    let target = target.clone();
                    tokio::task::spawn_local(async move {
                        let mut lane = target.lane().await.expect("opens");
                        let mut data = Data::Into { buf: target.arena().take().expect("free"), from: 0 };
                        for i in (first..READS).step_by(lanes as usize) {
                            let done = lane.call(&Op::get_range(KEY, offset(i), READ), &mut data).await;
                            assert!(done.result.is_ok(), "{:?}", done.result);
                        }
                    })
                })
                .collect();
            for task in tasks {
                task.await.expect("no panic");
            }
            show(&format!("lanes, {lanes} at once"), cpu_ns() - cpu, wall.elapsed());
        }
        pump.abort();
    });
    let path = root.path().join(names.of(KEY));
    let file = rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECT, Mode::empty()).expect("O_DIRECT");
    let mut buf = arena.take().expect("free");
    let (cpu, wall) = (cpu_ns(), Instant::now());
    for i in 0..READS {
        assert_eq!(rustix::io::pread(&file, buf.spare(), offset(i)).expect("reads") as u64, READ);
    }
    show("bare pread", cpu_ns() - cpu, wall.elapsed());
}
