//! What goes up and down the tiers, against what must: exact small scenarios, and invariants whatever happens.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use gpufeed_profiles::units::Bytes;
use gpufeed_schema::Kv as Section;
use proptest::prelude::*;

use super::tests::{machine, requests, spec, sums, trace};
use super::*;
use crate::driver::drive;
use crate::machine::Submit;
use crate::op::{ErrorKind, Key, Verb};

const MS: u64 = 1_000_000;
const S: u64 = 1_000_000_000;
/// Tokens and bytes of a block.
const TOKENS: u64 = 512;
const BLOCK: u64 = TOKENS * 131_072;
const DRIVE: u16 = client::SPACES;

/// One operation as storage saw it.
#[derive(Debug, Clone, Copy)]
struct Seen {
    verb: Verb,
    key: Key,
    sent: u64,
    done: u64,
    result: Result<(), ErrorKind>,
}

impl Seen {
    const fn near(&self) -> bool {
        self.key.space == DRIVE
    }

    /// Whether a block was gone after it.
    fn frees(&self) -> bool {
        self.verb == Verb::Delete || (self.verb == Verb::Get && self.result == Err(ErrorKind::NotFound))
    }
}

/// Plays to the end; what storage saw, in order.
fn watch(
    spec: &KvSpec,
    list: &Arc<Requests>,
    mut serve: impl FnMut(&Submit) -> (Duration, Result<(), ErrorKind>),
) -> (Section, Vec<Seen>) {
    let mut kv = machine(spec, list);
    let mut seen = Vec::new();
    let (_, end) = drive(&mut kv, Tick(0), None, None, |submit| {
        let (took, result) = serve(submit);
        let (sent, done) = (submit.intended.0, submit.intended.0 + took.as_nanos() as u64);
        seen.push(Seen { verb: submit.op.verb, key: submit.op.key, sent, done, result });
        (took, result)
    });
    let section = kv.report((Tick(0), end));
    assert_eq!(section.requests, section.completed + section.failed);
    kv.nothing_is_held();
    (section, seen)
}

fn quick(spec: &KvSpec, list: &[(u64, u64, u64, u64)]) -> (Section, Vec<Seen>) {
    let (section, seen) = watch(spec, &requests(list), |_| (Duration::from_millis(1), Ok(())));
    (section, seen)
}

fn count(seen: &[Seen], near: bool, verb: Verb) -> u64 {
    seen.iter().filter(|op| op.near() == near && op.verb == verb).count() as u64
}

fn blocks(n: u64) -> Bytes {
    Bytes(n * BLOCK)
}

impl Kv {
    /// After the last request nothing is pinned, leased for reading, or about to be written anywhere.
    fn nothing_is_held(&self) {
        assert!(self.workers.iter().all(|worker| worker.pool().in_use() == 0), "GPU memory");
        assert!(
            self.tiers.locals.iter().all(|local| local.g2.in_use() == 0 && local.stalled.is_empty()),
            "host memory"
        );
        assert!(self.tiers.drives.idle(), "drives");
        assert_eq!(self.tiers.shared.under_way(), (0, 0, 0), "written, read, deleted on the target");
    }
}

/// Twenty blocks each; GPU memory holds one prompt.
const A: u64 = 1;
const B: u64 = 2;
const C: u64 = 3;

fn turns(talks: &[u64]) -> Vec<(u64, u64, u64, u64)> {
    talks.iter().enumerate().map(|(i, talk)| (i as u64 * 4000, *talk, 20 * TOKENS, 1)).collect()
}

fn one_prompt() -> KvSpec {
    KvSpec { g1_blocks: Some(20), ..spec() }
}

#[test]
fn what_leaves_host_memory_goes_to_the_drive_and_comes_back_by_it() {
    let spec = KvSpec {
        g2_bytes: blocks(20),
        g3_bytes: blocks(40),
        shared_tier: false,
        write_policy: WritePolicy::WriteBack,
        ..one_prompt()
    };
    let (section, seen) = quick(&spec, &turns(&[A, B, A]));
    let hits = section.hits_by_tier;
    assert_eq!((hits.g2, hits.g3, hits.g4), (0, 19 * TOKENS, 0));
    let flow = section.tier_flow;
    // B pushes A's 20 out; loading A pushes 19 of B's out; A's last block, computed again, the 20th.
    assert_eq!((flow.evicted_g2_blocks, flow.demoted_g3_blocks), (40, 40));
    assert_eq!((flow.promoted_g2_blocks, flow.evicted_g3_blocks), (19, 0));
    assert_eq!((count(&seen, true, Verb::Put), count(&seen, true, Verb::Get)), (40, 19));
    assert_eq!((flow.g3_read_bytes, flow.g3_written_bytes), (19 * BLOCK, 40 * BLOCK));
    assert_eq!(count(&seen, false, Verb::Put), 0);
    assert_eq!((section.loaded_bytes, section.loaded_tokens), (0, 0));
}

#[test]
fn what_leaves_a_full_drive_is_carried_to_the_target_before_its_place_is_taken() {
    let spec = KvSpec {
        g2_bytes: blocks(20),
        g3_bytes: blocks(20),
        write_policy: WritePolicy::WriteBack,
        promote: false,
        ..one_prompt()
    };
    let (section, seen) = quick(&spec, &turns(&[A, B, C, A]));
    assert_eq!(section.hits_by_tier.g4, 19 * TOKENS);
    let flow = section.tier_flow;
    // The last is the block that A's own last one, computed again, pushes out.
    assert_eq!((flow.demoted_g3_blocks, flow.evicted_g3_blocks, flow.demoted_g4_blocks), (41, 21, 21));
    // Blocks that went to the target: written to the drive, read from it, written to the target, deleted from the drive.
    let carried: Vec<&Seen> = seen.iter().filter(|op| !op.near() && op.verb == Verb::Put).collect();
    for put in carried {
        let life: Vec<(bool, Verb)> =
            seen.iter().filter(|op| op.key.id == put.key.id).map(|op| (op.near(), op.verb)).take(4).collect();
        assert_eq!(life[..2], [(true, Verb::Put), (true, Verb::Get)]);
        assert!(life[2..].contains(&(false, Verb::Put)) && life[2..].contains(&(true, Verb::Delete)));
    }
    // The drive never holds more than twenty: what comes is sent when what goes has been deleted.
    let (mut held, mut freed): (u64, Vec<u64>) = (0, Vec::new());
    for op in seen.iter().filter(|op| op.near()) {
        match op.verb {
            Verb::Put => held += 1,
            Verb::Delete => freed.push(op.done),
            _ => {}
        }
        let gone = freed.iter().filter(|done| **done <= op.sent).count() as u64;
        assert!(held - gone <= 20, "{held} written, {gone} deleted");
    }
}

#[test]
fn writing_through_puts_every_block_everywhere_once() {
    let spec = KvSpec { g2_bytes: blocks(100), g3_bytes: blocks(100), ..one_prompt() };
    let (section, seen) = quick(&spec, &turns(&[A, B, A]));
    assert_eq!(section.hits_by_tier.g2, 19 * TOKENS, "the nearest tier answers");
    assert_eq!((count(&seen, true, Verb::Put), count(&seen, false, Verb::Put)), (40, 40));
    assert_eq!((count(&seen, true, Verb::Get), count(&seen, false, Verb::Get)), (0, 0));
    let (section, _) = quick(&KvSpec { g2_bytes: Bytes(0), ..spec.clone() }, &turns(&[A, B, A]));
    assert_eq!((section.hits_by_tier.g3, section.hits_by_tier.g4), (19 * TOKENS, 0));
    let (section, _) = quick(&KvSpec { g2_bytes: Bytes(0), g3_bytes: Bytes(0), ..spec }, &turns(&[A, B, A]));
    assert_eq!((section.hits_by_tier.g3, section.hits_by_tier.g4), (0, 19 * TOKENS));
}

#[test]
fn tiers_of_no_size_are_no_tiers() {
    let none = KvSpec { g4_bytes: Some(Bytes(0)), ..one_prompt() };
    let (section, seen) = quick(&none, &turns(&[A, B, A]));
    assert_eq!(section.hits_by_tier.miss, 60 * TOKENS);
    assert_eq!(section.recomputed_tokens["evicted"], 20 * TOKENS);
    assert!(seen.is_empty());
    // Less than a block is nothing too.
    let (_, seen) =
        quick(&KvSpec { g3_bytes: Bytes(BLOCK - 1), g4_bytes: Some(Bytes(BLOCK - 1)), ..none }, &turns(&[A]));
    assert!(seen.is_empty());
}

#[test]
fn selective_writes_wait_until_a_block_has_been_seen_often_enough() {
    for (g1, g2, after, again) in [(60, 0, 2, 20), (21, 60, 2, 20), (60, 0, 3, 0)] {
        let spec = KvSpec {
            g1_blocks: Some(g1),
            g2_bytes: blocks(g2),
            write_policy: WritePolicy::WriteThroughSelective,
            write_after_seen: after,
            ..spec()
        };
        // An answer long enough for the writes: what begins after the last token is nobody's any more.
        let mut list = turns(&[A, B, A]);
        list[2].3 = 40;
        let (section, seen) = quick(&spec, &list);
        // From GPU memory, or from host memory.
        assert_eq!(count(&seen, false, Verb::Put), again, "{g1} {g2} {after}");
        assert_eq!(section.hits_by_tier.g1 + section.hits_by_tier.g2, 19 * TOKENS);
    }
    // A block that comes by the second time is written when it is computed.
    let spec = KvSpec { write_policy: WritePolicy::WriteThroughSelective, ..one_prompt() };
    let (section, seen) = quick(&spec, &turns(&[A, B, A, B, A]));
    assert_eq!((section.recomputed_tokens["evicted"], count(&seen, false, Verb::Put)), (40 * TOKENS, 40));
    assert_eq!(section.hits_by_tier.g4, 19 * TOKENS, "A's third time");
}

#[test]
fn a_load_is_staged_where_host_memory_has_room_and_no_further() {
    let spec = KvSpec { g2_bytes: blocks(5), stage_in_host_memory: true, ..one_prompt() };
    let (section, _) = quick(&spec, &turns(&[A, B, A]));
    // All five of host memory's blocks are idle: they make room.
    assert_eq!((section.hits_by_tier.g2, section.hits_by_tier.g4), (0, 5 * TOKENS));
    assert_eq!(section.recomputed_tokens["chosen"], 14 * TOKENS);
    let (section, _) = quick(&KvSpec { stage_in_host_memory: false, ..spec }, &turns(&[A, B, A]));
    assert_eq!(section.hits_by_tier.g4, 19 * TOKENS);
}

#[test]
fn short_hits_below_host_memory_are_not_loaded() {
    let with = |min_hit_tokens| {
        let spec = KvSpec { min_hit_tokens, ..one_prompt() };
        quick(&spec, &turns(&[A, B, A])).0
    };
    assert_eq!(with(19 * TOKENS).hits_by_tier.g4, 19 * TOKENS);
    let short = with(19 * TOKENS + 1);
    assert_eq!((short.hits_by_tier.g4, short.recomputed_tokens["chosen"]), (0, 19 * TOKENS));
}

#[test]
fn a_drive_belongs_to_its_node() {
    let spec = |g3_workers| KvSpec {
        workers: 2,
        routing: Routing::RoundRobin,
        g3_bytes: blocks(40),
        g3_workers,
        shared_tier: false,
        ..one_prompt()
    };
    let (shared, _) = quick(&spec(0), &turns(&[A, A]));
    assert_eq!(shared.hits_by_tier.g3, 19 * TOKENS);
    let (apart, seen) = quick(&spec(1), &turns(&[A, A, B, B, A, A]));
    assert_eq!(apart.hits_by_tier.g3, 2 * 19 * TOKENS, "each finds its own");
    assert_eq!(apart.recomputed_tokens["elsewhere"], 2 * 20 * TOKENS, "A's second and B's second, computed apart");
    let keys: std::collections::BTreeSet<Key> =
        seen.iter().filter(|op| op.verb == Verb::Put).map(|op| op.key).collect();
    assert_eq!(keys.len(), 80, "two drives, two keys for each block");
}

#[test]
fn a_full_shared_tier_deletes_what_was_used_least_recently() {
    // 60 blocks, deletes 6 above 45: when C comes, three times.
    let spec = KvSpec { g4_bytes: Some(blocks(60)), g4_evict_above_ratio: 0.75, g4_evict_ratio: 0.1, ..one_prompt() };
    let (section, seen) = quick(&spec, &turns(&[A, B, C, A]));
    let flow = section.tier_flow;
    assert_eq!(flow.evicted_g4_blocks, count(&seen, false, Verb::Delete));
    assert!(flow.evicted_g4_blocks >= 18, "{flow:?}");
    assert_eq!(section.hits_by_tier.g4, 0, "the first block of A is gone, and with it the prefix");
    assert_eq!(section.recomputed_tokens["evicted"] + section.recomputed_tokens["hole"], 20 * TOKENS);
    // With a lease on what was looked up, A's blocks survive C; what goes is B's.
    let leased = KvSpec { lease: Duration::from_secs(10), ..spec };
    let (section, _) = quick(&leased, &turns(&[A, B, A, C, A]));
    assert_eq!(section.hits_by_tier.g4, 2 * 19 * TOKENS);
    assert_eq!((section.tier_flow.evicted_g4_blocks, section.tier_flow.refused_blocks), (18, 0));
}

#[test]
fn a_full_queue_of_writes_skips_blocks_or_holds_them_in_gpu_memory() {
    let with = |queue_full| {
        let chunk = KvSpec { max_num_batched_tokens: 1 << 14, ..one_prompt() };
        let spec = KvSpec { put_in_flight: 1, put_queue_blocks: 2, queue_full, ..chunk };
        // An answer long enough for all writes.
        let list = requests(&[(0, A, 19 * TOKENS, 500)]);
        watch(&spec, &list, |_| (Duration::from_millis(50), Ok(())))
    };
    let (skipped, seen) = with(QueueFull::Skip);
    assert_eq!(count(&seen, false, Verb::Put), 2, "the queue, and nothing after it: it is asked for all at once");
    assert_eq!((skipped.tier_flow.skipped_blocks, skipped.tier_flow.stalled_blocks), (17, 0));
    let (stalled, seen) = with(QueueFull::Stall);
    assert_eq!(count(&seen, false, Verb::Put), 19);
    assert_eq!((stalled.tier_flow.skipped_blocks, stalled.tier_flow.stalled_blocks), (0, 17));
}

#[test]
fn stalled_blocks_keep_requests_waiting_for_memory() {
    let with = |queue_full| {
        let spec = KvSpec { put_in_flight: 1, put_queue_blocks: 1, queue_full, ..one_prompt() };
        watch(&spec, &requests(&[(0, A, 20 * TOKENS, 1), (10, B, 20 * TOKENS, 1)]), |submit| {
            (Duration::from_millis(if submit.op.verb == Verb::Put { 500 } else { 1 }), Ok(()))
        })
    };
    let (skip, stall) = (with(QueueFull::Skip).0, with(QueueFull::Stall).0);
    let slowest = |section: &Section| section.ttft.summary.max_ns.expect("two requests");
    assert!(slowest(&skip) < 2 * S && slowest(&stall) > 9 * S, "{} {}", slowest(&skip), slowest(&stall));
    assert!(stall.gpu.storage_stall_ns > 8 * S);
}

#[test]
fn what_a_tier_has_lost_is_a_miss_and_is_written_again() {
    for near in [true, false] {
        let spec =
            if near { KvSpec { shared_tier: false, g3_bytes: blocks(100), ..one_prompt() } } else { one_prompt() };
        let mut lost = BTreeMap::new();
        let (section, seen) = watch(&spec, &requests(&turns(&[A, B, A, B, A])), |submit| {
            // Every block is lost once.
            let first = submit.op.verb == Verb::Get && lost.insert(submit.op.key, ()).is_none();
            (Duration::from_millis(1), if first { Err(ErrorKind::NotFound) } else { Ok(()) })
        });
        let lost = section.tier_flow.lost_blocks;
        assert!(lost >= 2, "{near}");
        assert_eq!(seen.iter().filter(|op| op.result.is_err()).count() as u64, lost);
        assert!(section.recomputed_tokens["lost"] > 0);
        assert_eq!((section.completed, section.failed), (5, 0));
        assert!(count(&seen, near, Verb::Put) > 40, "what was lost is written again");
    }
}

#[test]
fn a_drive_that_does_not_answer_is_computed_around_and_counted() {
    for (kind, reason) in [(ErrorKind::Timeout, "timed-out"), (ErrorKind::Io, "failed")] {
        let spec = KvSpec { shared_tier: false, g3_bytes: blocks(100), ..one_prompt() };
        let (section, _) = watch(&spec, &requests(&turns(&[A, B, A])), |submit| {
            let fails = submit.op.verb == Verb::Get;
            (Duration::from_millis(1), if fails { Err(kind) } else { Ok(()) })
        });
        assert_eq!(section.recomputed_tokens[reason], 19 * TOKENS);
        assert_eq!((section.hits_by_tier.g3, section.completed), (0, 3));
    }
}

#[derive(Debug, Clone)]
struct Sizes {
    g1: u64,
    g2: u64,
    g3: u64,
    g4: Option<u64>,
}

fn sizes() -> impl Strategy<Value = Sizes> {
    (18u64..50, 0u64..30, 0u64..30, prop::option::of(0u64..50)).prop_map(|(g1, g2, g3, g4)| Sizes { g1, g2, g3, g4 })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever storage does: hits and misses sum to the prompts, no tier holds more than it may, nothing that is being
    /// read is deleted, and in the end nothing is pinned.
    #[test]
    fn tiers_keep_their_promises(
        list in prop::collection::vec((0u64..6000, 0u64..6, 1u64..9000, 1u64..60), 1..30),
        sizes in sizes(), policy in 0usize..3, after in 1u32..4,
        stall: bool, staged: bool, promote: bool, stat: bool, nodes in 0u32..3, min_hit in 0u64..3, lease_ms in 0u64..3000,
        queue in 1u32..9, faults in prop::collection::vec(0u64..40, 1..50),
    ) {
        let spec = KvSpec {
            workers: 2,
            g1_blocks: Some(sizes.g1),
            g2_bytes: blocks(sizes.g2),
            g3_bytes: blocks(sizes.g3),
            g3_workers: nodes,
            g4_bytes: sizes.g4.map(blocks),
            g4_evict_above_ratio: 0.8,
            g4_evict_ratio: 0.1,
            write_policy: [WritePolicy::WriteThrough, WritePolicy::WriteThroughSelective, WritePolicy::WriteBack][policy],
            write_after_seen: after,
            queue_full: if stall { QueueFull::Stall } else { QueueFull::Skip },
            stage_in_host_memory: staged,
            promote,
            exists: if stat { Exists::Stat } else { Exists::Index },
            min_hit_tokens: min_hit * 2 * TOKENS,
            lease: Duration::from_millis(lease_ms),
            put_queue_blocks: queue,
            get_in_flight: 3,
            put_in_flight: 2,
            g3_in_flight: 2,
            ..spec()
        };
        let list = Arc::new(Requests::from_trace(&trace(&list), OutputBlocks::Infer, TOKENS as u32));
        let mut turn = 0;
        let mut there = std::collections::BTreeSet::new();
        let (section, seen) = watch(&spec, &list, |submit| {
            turn += 1;
            let (fault, op) = (faults[turn % faults.len()], submit.op);
            let mut result = match fault {
                7 => Err(ErrorKind::Timeout),
                9 => Err(ErrorKind::NotFound),
                _ => Ok(()),
            };
            match op.verb {
                Verb::Put if result.is_ok() => drop(there.insert(op.key)),
                Verb::Delete => drop(there.remove(&op.key)),
                Verb::Stat if !there.contains(&op.key) => result = Err(ErrorKind::NotFound),
                _ => {}
            }
            (Duration::from_micros(fault * 1000), result)
        });
        sums(&section, section.gpu.total_ns / u64::from(section.workers));

        let hits = section.hits_by_tier;
        let prompts: u64 = list.list().iter().map(|request| request.input_tokens).sum();
        prop_assert_eq!(section.failed, 0);
        prop_assert_eq!(hits.g1 + hits.g2 + hits.g3 + hits.g4 + hits.miss, prompts);

        for near in [true, false] {
            let capacity = if near { Some(sizes.g3 * u64::from(if nodes == 1 { 2u32 } else { 1 })) } else { sizes.g4 };
            let ops: Vec<&Seen> = seen.iter().filter(|op| op.near() == near).collect();
            for (i, op) in ops.iter().enumerate() {
                if op.verb == Verb::Put {
                    let puts = ops[..=i].iter().filter(|op| op.verb == Verb::Put && (op.result.is_ok() || op.done > ops[i].sent));
                    let kept: Vec<Key> = puts.map(|op| op.key).collect();
                    let gone = ops[..=i].iter().filter(|op| op.frees() && op.done <= ops[i].sent).count();
                    // A failed write or a lost block may be written again to the same place.
                    let held: std::collections::BTreeSet<Key> = kept.iter().copied().collect();
                    prop_assert!(capacity.is_none_or(|most| held.len() as u64 <= most + gone as u64), "{} in {:?}, drive {}", held.len(), capacity, near);
                }
                if op.verb == Verb::Delete {
                    let read = ops[..i].iter().find(|get| get.verb == Verb::Get && get.key == op.key && get.done > op.sent);
                    prop_assert!(read.is_none(), "deleted while it is read: {:?}", read);
                }
            }
        }
    }
}

/// The same run twice is the same run, whatever hash maps do.
#[test]
fn evictions_are_the_same_every_time() {
    let list: Vec<_> = (0..60).map(|i| (i * 120, i % 9, 3000 + i * 90, 20)).collect();
    let spec = KvSpec {
        workers: 3,
        g1_blocks: Some(30),
        g2_bytes: blocks(12),
        g3_bytes: blocks(20),
        g4_bytes: Some(blocks(40)),
        write_policy: WritePolicy::WriteBack,
        lease: Duration::from_millis(300),
        ..spec()
    };
    let run = || {
        let (section, seen) =
            watch(&spec, &requests(&list), |submit| (Duration::from_nanos(MS + submit.op.bytes / 10), Ok(())));
        (section, seen.iter().map(|op| (op.sent, op.verb as u8, op.key)).collect::<Vec<_>>())
    };
    assert!(run() == run());
}
