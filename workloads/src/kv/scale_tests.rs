//! Speed and size, by hand and in release builds: `cargo test --release -p gpufeed-workloads --lib scale -- --ignored
//! --nocapture --test-threads 1`. Each prints its figure and holds it against the bound of the design.

use std::hint::black_box;
use std::io::Write as _;
use std::process::Command;
use std::time::{Duration, Instant as Clock};

use gpufeed_profiles::units::Bytes;

use super::tests::spec;
use super::*;
use crate::inference::BlockPool;
use crate::inference::cost_tests::llama_8b_h100;
use crate::kv::block_map::BlockMap;
use crate::kv::shared::SharedIndex;
use crate::random::mix;
use crate::storage::Instant;
use crate::trace::{Format, Record, Trace};

fn say(line: &str) {
    writeln!(std::io::stderr(), "{line}").expect("standard error");
}

/// 128 workers, the whole hour of Mooncake's conversation trace, in virtual time: under 10 s on one core.
#[test]
#[ignore = "needs GPUFEED_TRACE, Mooncake's conversation trace, and a release build"]
fn the_conversation_hour_on_128_workers() {
    let path = std::env::var("GPUFEED_TRACE").expect("GPUFEED_TRACE names a trace file");
    let trace = Trace::load(std::path::Path::new(&path)).expect("a trace");
    let list = Arc::new(Requests::from_trace(&trace, OutputBlocks::Infer, 512));
    let spec = KvSpec { workers: 128, load: LoadPolicy::BreakEven, g2_bytes: Bytes(64 << 30), ..spec() };
    let mut kv = Kv::new(spec, llama_8b_h100(), Arc::clone(&list)).expect("a valid run");
    let start = Clock::now();
    let end = play(&mut kv, Instant, Tick::ZERO, None);
    let took = start.elapsed();
    let section = kv.report((Tick::ZERO, end));
    say(&format!(
        "{} requests, {} s of trace on 128 workers: {:.2} s ({:.0} times real time)",
        section.completed,
        end.0 / 1_000_000_000,
        took.as_secs_f64(),
        end.0 as f64 / took.as_nanos() as f64
    ));
    assert_eq!(section.completed, list.list().len() as u64);
    assert!(took < Duration::from_secs(10), "{took:?}");
}

/// Prompts of `of` blocks of 16 tokens, `shared` of them the first blocks of the prompt before; one every millisecond.
fn prompts(count: u64, of: u64, shared: u64) -> Trace {
    let records = (0..count).map(|i| {
        let own = |i: u64, block: u64| i * of + block;
        // Every other request continues the one before.
        let first = |block: u64| if i % 2 == 1 && block < 2 * shared { own(i - 1, block) } else { own(i, block) };
        Ok(Record {
            stamp_ns: Some(i as i64 * 1_000_000),
            input_tokens: (of * 16) as u32,
            output_tokens: 1,
            blocks: (0..of).map(first).collect(),
            ..Record::default()
        })
    });
    Trace::from_records(Format::Mooncake, records, Some(16)).expect("valid records")
}

/// Most memory this process has had, in bytes.
fn peak_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a peak");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") * 1024
}

/// One million requests of 100 blocks, 37 in 100 of them seen before as in Mooncake's trace: from the trace in memory to
/// the report in under 4 GiB. `GPUFEED_SHARED=0` makes all of them new.
#[test]
#[ignore = "takes minutes in a release build"]
fn a_hundred_million_blocks_fit_in_four_gib() {
    const CHILD: &str = "GPUFEED_SCALE_CHILD";
    if std::env::var(CHILD).is_err() {
        // A process of its own, so that nothing else counts.
        let name = "kv::scale_tests::a_hundred_million_blocks_fit_in_four_gib";
        let this = std::env::current_exe().expect("a program");
        let status = Command::new(this).args(["--exact", name, "--ignored", "--nocapture"]).env(CHILD, "1").status();
        assert!(status.expect("it starts").success());
        return;
    }
    let number = |name: &str, default: u64| std::env::var(name).map_or(default, |n| n.parse().expect("a number"));
    let count = number("GPUFEED_REQUESTS", 1_000_000);
    let start = Clock::now();
    let list =
        Arc::new(Requests::from_trace(&prompts(count, 100, number("GPUFEED_SHARED", 37)), OutputBlocks::None, 16));
    let (built, after_trace) = (start.elapsed(), peak_bytes());
    let spec = KvSpec { workers: 64, routing: Routing::LeastLoaded, g2_bytes: Bytes(8 << 30), ..spec() };
    let mut kv = Kv::new(spec, llama_8b_h100(), Arc::clone(&list)).expect("a valid run");
    let end = play(&mut kv, Instant, Tick::ZERO, None);
    let section = kv.report((Tick::ZERO, end));
    let peak = peak_bytes();
    say(&format!(
        "{count} requests, {} blocks: {} at most ({} when the trace was read, after {:.0} s), {:.0} s in all; {} blocks \
         written, hit ratio {:?}",
        count * 100,
        Bytes(peak),
        Bytes(after_trace),
        built.as_secs_f64(),
        start.elapsed().as_secs_f64(),
        section.wire.objects_written,
        section.token_hit_ratio
    ));
    assert_eq!(section.completed, count);
    assert!(peak < 4 << 30, "{}", Bytes(peak));
}

/// Prefix match: at least 10 million look-ups of blocks a second, in GPU memory, on the target, and in what was computed.
#[test]
#[ignore = "a speed, for release builds"]
fn ten_million_look_ups_a_second() {
    const BLOCKS: u64 = 1 << 20;
    let prompt: Vec<Vec<u64>> = (0..1000u64).map(|i| (0..BLOCKS / 1000).map(|b| mix(i << 32 | b)).collect()).collect();
    let (mut pool, mut index) = (BlockPool::new(BLOCKS as usize), SharedIndex::new(None, 0));
    let mut computed = BlockMap::<u16>::default();
    for &id in prompt.iter().flatten() {
        pool.insert(id);
        index.admit(id);
        index.written(id, Tick::ZERO, true);
        computed.insert(id, 1);
    }
    let rate = |name: &str, look_up: &dyn Fn(&[u64]) -> usize| {
        let start = Clock::now();
        let mut found = 0;
        for _ in 0..20 {
            // In an order that no prefetcher knows.
            found += (0..1000).map(|i| look_up(black_box(&prompt[(i * 619) % 1000]))).sum::<usize>();
        }
        let per_s = found as f64 / start.elapsed().as_secs_f64();
        say(&format!("{name}: {:.1} million look-ups/s among {BLOCKS} blocks", per_s / 1e6));
        per_s
    };
    let rates = [
        rate("GPU memory", &|ids| pool.match_prefix(ids)),
        rate("target", &|ids| ids.iter().take_while(|id| index.contains(**id)).count()),
        rate("computed", &|ids| ids.iter().take_while(|id| computed.contains_key(id)).count()),
    ];
    assert!(rates.iter().all(|rate| *rate > 1e7), "{rates:?}");
}
