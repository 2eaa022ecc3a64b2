//! Sequences of operations of KV-offload clients, on virtual time, against a store that knows what it holds.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use gpufeed_profiles::units::Bytes;
use gpufeed_profiles::{KeyForm, Store};
use proptest::prelude::*;

use super::*;
use crate::driver::drive;
use crate::inference::cost_tests::llama_8b_h100;
use crate::machine::Submit;
use crate::op::{Condition, ErrorKind, Key, Verb};
use crate::random::mix;
use crate::trace::{Format, Record, Trace};

/// Three prompts of four blocks and a bit; the second drives the first out of GPU memory, the third is the first again. A
/// fourth without a full block keeps the run going until everything is written. Blocks of a prompt are numbered from
/// 100 × its conversation.
fn requests(trace_tokens: u64, block_tokens: u32) -> Arc<Requests> {
    let records =
        [(0u64, 1u64, 1034u64), (4000, 2, 1034), (8000, 1, 1034), (12_000, 3, 50)].map(|(at_ms, talk, tokens)| {
            Ok(Record {
                stamp_ns: Some((at_ms * 1_000_000) as i64),
                input_tokens: tokens as u32,
                output_tokens: 1,
                blocks: (0..tokens.div_ceil(trace_tokens)).map(|i| talk * 100 + i).collect(),
                ..Record::default()
            })
        });
    let trace = Trace::from_records(Format::Mooncake, records, Some(trace_tokens as u32)).expect("valid records");
    Arc::new(Requests::from_trace(&trace, OutputBlocks::None, block_tokens))
}

fn kvbm() -> KvSpec {
    KvSpec {
        model: "org/m".into(),
        workers: 1,
        g1_blocks: Some(5),
        g2_bytes: Bytes(0),
        load: LoadPolicy::Always,
        exists: Exists::Stat,
        per_rank: true,
        shape: RequestShape { key: KeyForm::RankPositionHash, store: Store::LockMeta, ..RequestShape::default() },
        ..KvSpec::default()
    }
}

fn lmcache() -> KvSpec {
    let shape = RequestShape { key: KeyForm::ModelWorldWorkerHash, sizes_cached: true, ..RequestShape::default() };
    KvSpec { shape, ..kvbm() }
}

/// What was asked of the store, and how it answered.
type Asked = Vec<(String, Result<(), ErrorKind>)>;

/// Plays a run of two ranks on a store that has `before` in it; an operation fails as `fails` says.
fn play_on(
    spec: KvSpec,
    requests: &Arc<Requests>,
    before: &[&str],
    mut fails: impl FnMut(&str) -> Option<ErrorKind>,
) -> (Asked, gpufeed_schema::Kv, Vec<Submit>) {
    let cost = CostModel { tp: 2, kv_bytes_per_token_rank: 65_536.0, ..llama_8b_h100() };
    let mut kv = Kv::new(spec, cost, Arc::clone(requests)).expect("a valid run");
    let names = kv.names();
    let mut store: BTreeSet<String> = before.iter().map(|&key| key.to_owned()).collect();
    let mut asked = Asked::new();
    let (submits, end) = drive(&mut kv, Tick(0), None, None, |submit| {
        let (op, key) = (&submit.op, names.of(submit.op.key));
        let line = format!("{} {key}", op.verb);
        let there = store.contains(&key);
        let result = match op.verb {
            _ if let Some(kind) = fails(&line) => Err(kind),
            Verb::Get | Verb::Stat if !there => Err(ErrorKind::NotFound),
            Verb::Put if there && op.condition == Condition::IfAbsent => Err(ErrorKind::Condition),
            _ => Ok(()),
        };
        match op.verb {
            Verb::Put if result.is_ok() => _ = store.insert(key),
            Verb::Delete => _ = store.remove(&key),
            _ => {}
        }
        asked.push((line, result));
        (Duration::from_millis(1), result)
    });
    (asked, kv.report((Tick(0), end)), submits)
}

/// Operations of one block, by the text of its hash.
fn of_block(asked: &Asked, hash: &str) -> Vec<String> {
    asked.iter().filter(|(line, _)| line.contains(&format!(":{hash}"))).map(|(line, _)| line.clone()).collect()
}

/// The hash of a block of the trace as keys write it.
fn base58(id: u64) -> String {
    let space = crate::op::Space { before: String::new(), after: String::new(), style: crate::op::KeyStyle::Lineage };
    let names = crate::op::Names { spaces: vec![space] };
    names.of(Key { id: mix(id), ..Key::ZERO }).trim_start_matches("0:").to_owned()
}

/// Sizes are known to a process, not to its node: who takes a dead worker's place asks for every object again.
#[test]
fn a_worker_that_died_knows_no_sizes() {
    let asks = |outages| {
        let (asked, section, _) = play_on(KvSpec { outages, ..lmcache() }, &requests(256, 256), &[], |_| None);
        assert_eq!((section.completed, section.hits_by_tier.g4), (4, 4 * 256));
        asked.iter().filter(|(line, result)| line.starts_with("stat") && result.is_ok()).count()
    };
    assert_eq!(asks(Vec::new()), 0, "it wrote them itself");
    let at = Duration::from_secs(6);
    let died = Outage { worker: 0, at, back: Some(at + Duration::from_secs(1)) };
    assert_eq!(asks(vec![died]), 4 * 2, "four blocks of two ranks");
}

#[test]
fn kvbm_locks_writes_marks_and_unlocks_each_block() {
    let (asked, section, submits) = play_on(kvbm(), &requests(256, 256), &[], |_| None);
    let (first, second) = (base58(100), base58(101));
    let wanted = |key: &str, of_rank: &[&str]| -> Vec<String> {
        let beside = [format!("stat kv/{key}.meta"), format!("put kv/{key}.lock")];
        let after = [format!("put kv/{key}.meta"), format!("delete kv/{key}.lock")];
        let ranks = of_rank.iter().flat_map(|verb| [0, 1].map(|rank| format!("{verb} kv/{rank}/{key}")));
        let (look, rest): (Vec<_>, Vec<_>) = ranks.partition(|line| line.starts_with("stat"));
        let (put, get): (Vec<_>, Vec<_>) = rest.into_iter().partition(|line| line.starts_with("put"));
        // Each prompt asks for all of its blocks but the last before it is computed; the third finds and reads them.
        [look.clone(), beside.to_vec(), put, after.to_vec(), look, get].concat()
    };
    let of_first: Vec<String> =
        asked.iter().map(|(line, _)| line.clone()).filter(|line| line.contains(&format!("0:{first}"))).collect();
    assert_eq!(of_first, wanted(&format!("0:{first}"), &["stat", "put", "get"]));
    let key = format!("1:{second}:{first}");
    let of_second: Vec<String> = asked.iter().map(|(line, _)| line.clone()).filter(|l| l.contains(&key)).collect();
    assert_eq!(of_second, wanted(&key, &["stat", "put", "get"]));
    assert_eq!(section.hits_by_tier.g4, 4 * 256);
    // A lock says who has it since when and until when; a mark is empty.
    let bytes = |suffix: &str| -> BTreeSet<u64> {
        let puts = submits
            .iter()
            .zip(&asked)
            .filter(|(submit, (line, _))| submit.op.verb == Verb::Put && line.ends_with(suffix));
        puts.map(|(submit, _)| submit.op.bytes).collect()
    };
    assert_eq!((bytes(".lock"), bytes(".meta")), ([155].into(), [0].into()));
    let locks = submits.iter().filter(|submit| submit.op.condition == Condition::IfAbsent);
    assert_eq!(locks.count(), 8, "a conditional write for each block, and no other");
}

#[test]
fn a_lock_that_is_taken_is_read_and_the_block_is_left_alone() {
    let (key, other) = (format!("kv/0:{}", base58(100)), base58(200));
    let (asked, section, _) = play_on(kvbm(), &requests(256, 256), &[&format!("{key}.lock")], |_| None);
    let first = of_block(&asked, &base58(100));
    let stats = first.iter().filter(|line| line.starts_with("stat kv/0/") || line.starts_with("stat kv/1/")).count();
    let rest: Vec<_> = first
        .iter()
        .filter(|line| !line.starts_with("stat kv/0/") && !line.starts_with("stat kv/1/"))
        .filter(|line| line.contains("/0:"))
        .cloned()
        .collect();
    let once = [format!("stat {key}.meta"), format!("put {key}.lock"), format!("get {key}.lock")];
    // The third prompt computes it again, finds it neither there nor free, and leaves it again.
    assert_eq!((stats > 0, rest), (true, [once.clone(), once].concat()));
    assert_eq!(section.hits_by_tier.g4, 0, "nothing after a hole is loaded");
    assert_eq!(section.inputs["blocks not written, another writer had them"], "2");
    assert!(of_block(&asked, &other).iter().any(|line| line.starts_with("delete")), "others are written");
}

#[test]
fn a_lock_of_ones_own_is_no_obstacle_after_a_write_that_failed() {
    let key = format!("0:{}", base58(100));
    let mut failed = false;
    let (asked, _, _) = play_on(kvbm(), &requests(256, 256), &[], |line| {
        let first = line == format!("put kv/1/{key}") && !std::mem::replace(&mut failed, true);
        first.then_some(ErrorKind::Server)
    });
    let writes: Vec<_> = asked
        .iter()
        .filter(|(line, _)| line.contains(&key) && !line.starts_with("stat kv/0/") && !line.starts_with("stat kv/1/"))
        .map(|(line, result)| (line.replace(&key, "B"), result.is_ok()))
        .collect();
    let line = |text: &str, good| (text.to_owned(), good);
    let wanted = [
        line("stat kv/B.meta", false),
        line("put kv/B.lock", true),
        line("put kv/0/B", true),
        line("put kv/1/B", false),
        // The third prompt computes it again.
        line("stat kv/B.meta", false),
        line("put kv/B.lock", false),
        line("get kv/B.lock", true),
        line("put kv/0/B", true),
        line("put kv/1/B", true),
        line("put kv/B.meta", true),
        line("delete kv/B.lock", true),
    ];
    assert_eq!(writes, wanted);
}

#[test]
fn lmcache_asks_once_in_order_up_to_the_first_miss() {
    let (asked, section, _) = play_on(lmcache(), &requests(256, 256), &[], |_| None);
    let key = |rank: u16, id: u64| format!("kv/org_m@2@{rank}@{:016x}@bfloat16", mix(id));
    let lines = |verb: &str| -> Vec<String> {
        let of = |(line, _): &(String, _)| line.strip_prefix(verb).map(|key: &str| key.trim_start().to_owned());
        asked.iter().filter_map(of).collect()
    };
    // The first and the second prompt ask for their first block only: it is not there. The third knows what was written.
    assert_eq!(lines("stat"), [key(0, 100), key(1, 100), key(0, 200), key(1, 200)]);
    let all = |talk: u64| (0..4).flat_map(move |i| [key(0, talk + i), key(1, talk + i)]);
    assert_eq!(lines("put"), all(100).chain(all(200)).collect::<Vec<_>>());
    assert_eq!(lines("get"), all(100).collect::<Vec<_>>());
    assert_eq!(section.hits_by_tier.g4, 4 * 256);

    // What another process wrote is asked for: each rank one block after the other.
    let there: Vec<String> = (0..2).flat_map(|i| [key(0, 100 + i), key(1, 100 + i)]).chain([key(0, 102)]).collect();
    let there: Vec<&str> = there.iter().map(String::as_str).collect();
    let (asked, ..) = play_on(lmcache(), &requests(256, 256), &there, |_| None);
    let of_first: Vec<String> = asked
        .iter()
        .take_while(|(line, _)| !line.starts_with("put"))
        .filter_map(|(line, _)| line.strip_prefix("stat ").map(str::to_owned))
        .collect();
    let ask = |rank: u16, blocks: std::ops::Range<u64>| blocks.map(move |i| key(rank, 100 + i)).collect::<Vec<_>>();
    let of_rank =
        |rank: u16| of_first.iter().filter(|k| k.contains(&format!("@2@{rank}@"))).cloned().collect::<Vec<_>>();
    assert_eq!((of_rank(0), of_rank(1)), (ask(0, 0..4), ask(1, 0..3)));
}

#[test]
fn conditional_writes_ranged_reads_numbers_and_batches() {
    let shape = RequestShape {
        key: KeyForm::U64,
        store: Store::PutIfAbsent,
        ranged_get: true,
        batch_blocks: Some(2),
        poll: Duration::from_millis(50),
        ..RequestShape::default()
    };
    let spec = KvSpec { shape, exists: Exists::Index, ..kvbm() };
    let (asked, section, submits) = play_on(spec, &requests(256, 256), &[], |_| None);
    let keys: BTreeSet<&str> =
        asked.iter().filter_map(|(line, _)| line.split_once("kv/")).map(|(_, key)| key).collect();
    assert_eq!(keys.len(), 16, "each rank's object has a number of its own");
    assert!(keys.iter().all(|key| key.parse::<u64>().is_ok()), "{keys:?}");
    assert!(submits.iter().filter(|s| s.op.verb == Verb::Put).all(|s| s.op.condition == Condition::IfAbsent));
    let gets: Vec<_> = submits.iter().filter(|s| s.op.verb == Verb::Get).collect();
    assert!(gets.iter().all(|s| s.op.ranged && s.op.offset == 0 && s.op.bytes == 256 * 65_536));
    // Two blocks of two ranks, then the next two a millisecond later; noticed when the client looks, after 50 ms.
    let times: Vec<u64> = gets.iter().map(|s| s.intended.0 - gets[0].intended.0).collect();
    assert_eq!(times, [0, 0, 0, 0, 1_000_000, 1_000_000, 1_000_000, 1_000_000]);
    let parts = &section.ttft_parts;
    let waited = parts.load.max_ns.unwrap_or(0) + parts.copy.max_ns.unwrap_or(0);
    assert!((49_900_000..50_100_000).contains(&waited), "{waited}");
}

#[test]
fn latent_copies_heads_and_scales_make_the_object() {
    let object = |per_rank, tp, rank_bytes, bytes_scale| {
        let cost = CostModel { tp, kv_bytes_per_token_rank: rank_bytes, ..llama_8b_h100() };
        let spec = KvSpec { per_rank, bytes_scale, g1_blocks: Some(9), ..KvSpec::default() };
        Kv::new(spec, cost, requests(256, 64)).expect("a valid run").object_bytes()
    };
    // 131,072 bytes a token; with more ranks than KV heads each rank still has one head.
    assert_eq!(object(false, 2, 65_536.0, 1.0), 64 * 131_072);
    assert_eq!(object(true, 2, 65_536.0, 1.0), 64 * 65_536);
    assert_eq!(object(true, 16, 16_384.0, 1.0), 64 * 16_384, "twice 131,072 / 16: heads are replicated");
    assert_eq!(object(true, 2, 65_536.0, 0.5), 32 * 65_536);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever fails: no run hangs, every lock that was got is released unless the write failed, nothing is written
    /// without a lock, and what is in flight stays within the limits.
    #[test]
    fn locks_are_released(faults in prop::collection::vec(0u8..12, 1..60), in_flight in 1u32..6, tokens in 1u64..5) {
        let kinds = [ErrorKind::Timeout, ErrorKind::Server, ErrorKind::NotFound];
        let spec = KvSpec { get_in_flight: in_flight, put_in_flight: in_flight, ..kvbm() };
        let mut turn = 0;
        let (asked, section, _) = play_on(spec, &requests(64 * tokens, 128), &[], |_| {
            turn += 1;
            kinds.get(usize::from(faults[turn % faults.len()])).copied()
        });
        prop_assert_eq!(section.completed + section.failed, 4);
        let mut locks: BTreeMap<String, i32> = BTreeMap::new();
        for (line, result) in &asked {
            if let Some(key) = line.strip_prefix("put kv/").and_then(|key| key.strip_suffix(".lock")) {
                if result.is_ok() {
                    *locks.entry(key.to_owned()).or_default() += 1;
                }
            } else if let Some(key) = line.strip_prefix("delete kv/").and_then(|key| key.strip_suffix(".lock")) {
                *locks.entry(key.to_owned()).or_default() -= 1;
            } else if let Some(key) = line.strip_prefix("put kv/").filter(|key| !key.ends_with(".meta")) {
                let (_, block) = key.split_once('/').expect("a rank");
                prop_assert!(locks.contains_key(block), "{} without a lock", line);
            }
        }
        let failed = |key: &str| asked.iter().any(|(line, result)| {
            result.is_err() && line.starts_with("put kv/") && line.ends_with(key) && !line.ends_with(".lock")
        });
        for (key, count) in locks {
            prop_assert!(count <= 0 || failed(&key), "{} stays locked", key);
        }
    }
}
