use std::collections::{BTreeMap, BTreeSet};

use gpufeed_profiles::units::Bytes;
use proptest::prelude::*;

use super::*;
use crate::driver::drive;
use crate::op::{Key, Verb};
use crate::schedule::{Arrivals, Load};

const MS: Duration = Duration::from_millis(1);

fn spec(mix: &str, depth: u32, count: Option<u64>) -> OpsSpec {
    OpsSpec { load: Load::Closed { depth }, count, ..OpsSpec::new(mix.parse().expect("a mix")) }
}

/// Everything the load submits on `cores` cores, each operation taking a millisecond.
fn submitted(spec: &OpsSpec, cores: usize) -> Vec<Submit> {
    let machines = Ops::split(spec, cores).expect("runs");
    machines.into_iter().flat_map(|mut ops| drive(&mut ops, Tick(5), None, None, |_| (MS, Ok(()))).0).collect()
}

fn by_client(submits: Vec<Submit>) -> BTreeMap<u32, Vec<(Tick, Op)>> {
    let mut clients = BTreeMap::<u32, Vec<(Tick, Op)>>::new();
    submits.into_iter().for_each(|s| clients.entry(s.worker).or_default().push((s.intended, s.op)));
    clients
}

#[test]
fn what_clients_do_does_not_depend_on_cores() {
    let closed = OpsSpec { popularity: Popularity::Zipf(0.99), ..spec("mixed", 7, Some(1000)) };
    let load = Load::Open { rate_per_s: 5000.0, arrivals: Arrivals::Poisson, clients: 7 };
    for spec in [closed.clone(), OpsSpec { load, ..closed }] {
        let one = Ops::split(&spec, 1).expect("runs");
        let data: BTreeMap<Key, u64> = one[0].dataset().objects().collect();
        assert_eq!(data.len() as u64, spec.objects + 7 * 16);
        for cores in [2, 3, 7, 20] {
            let split = Ops::split(&spec, cores).expect("runs");
            assert_eq!(split.len(), cores.min(7));
            assert_eq!(split.iter().map(Workload::lanes).sum::<usize>(), 7);
            assert_eq!(split.iter().map(Workload::plan_hash).fold(0, u64::wrapping_add), one[0].plan_hash());
            let mut parts = BTreeMap::new();
            for (key, bytes) in split.iter().flat_map(|m| m.dataset().objects().collect::<Vec<_>>()) {
                assert!(parts.insert(key, bytes).is_none(), "two cores see to {key:?}");
            }
            assert_eq!(parts, data);
            assert_eq!(by_client(submitted(&spec, cores)), by_client(submitted(&spec, 1)));
        }
        let other = OpsSpec { seed: 43, ..spec };
        assert_ne!(Ops::split(&other, 1).expect("runs")[0].plan_hash(), one[0].plan_hash());
    }
}

#[test]
fn the_count_is_met_exactly_and_a_closed_loop_holds_its_depth() {
    for (count, depth) in [(1000, 16), (5, 16), (17, 3)] {
        let spec = spec("get", depth, Some(count));
        let mut ops = Ops::split(&spec, 1).expect("runs").remove(0);
        let (submits, end) = drive(&mut ops, Tick(0), None, None, |_| (MS, Ok(())));
        assert_eq!(submits.len() as u64, count);
        // Rounds of `depth` operations, a millisecond each: no operation waits for another client.
        assert_eq!(end, Tick(count.div_ceil(depth.into()) * 1_000_000));
        assert_eq!(ops.progress(), Some(1.0));
        assert!(submits.iter().enumerate().all(|(i, s)| s.intended.0 == i as u64 / u64::from(depth) * 1_000_000));
    }
}

#[test]
fn the_mix_is_the_one_asked_for() {
    let submits = submitted(&spec("mixed", 8, Some(100_000)), 1);
    let share = |verb| submits.iter().filter(|s| s.op.verb == verb).count() as f64 / submits.len() as f64;
    // A delete that finds nothing turns into a put, rarely; √(p(1−p)/n) is 0.16% at most.
    for (verb, expected) in [(Verb::Get, 0.45), (Verb::Put, 0.15), (Verb::Stat, 0.3), (Verb::Delete, 0.1)] {
        assert!((share(verb) - expected).abs() < 0.0064, "{verb}: {}", share(verb));
    }
}

/// What the target would say: every read, stat and delete finds its object, whatever fails and in whichever order
/// operations end.
fn consistent(spec: &OpsSpec, salt: u64) {
    let mut ops = Ops::split(spec, 1).expect("runs").remove(0);
    let mut there: BTreeMap<Key, u64> = ops.dataset().objects().collect();
    let mut deleted = BTreeSet::new();
    let mut n = 0;
    drive(&mut ops, Tick(0), None, None, |submit| {
        n += 1;
        let op = submit.op;
        let takes = Duration::from_micros(mix2(salt, n) % 3000);
        let failed = mix2(salt, n).is_multiple_of(10);
        match op.verb {
            Verb::Get | Verb::Stat => {
                let size = *there.get(&op.key).expect("reads what is there");
                assert!(op.verb == Verb::Stat || op.offset + op.bytes <= size);
                assert!(op.ranged || op.verb == Verb::Stat || op.bytes == size);
            }
            Verb::List => assert!(there.keys().any(|key| key.space == op.key.space)),
            Verb::Delete => {
                assert!(deleted.insert(op.key), "deleted twice");
                assert!(there.remove(&op.key).is_some(), "deletes what is there");
            }
            Verb::Put | Verb::Multipart => {
                if failed {
                    return (takes, Err(ErrorKind::Server));
                }
                let before = there.insert(op.key, op.bytes);
                assert!(before.is_none() || spec.overwrite && before == Some(op.bytes));
            }
        }
        (takes, Ok(()))
    });
    assert!(n > 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn operations_find_their_objects(
        weights in [0u32..4, 0..4, 0..4, 0..4, 0..4, 0..4],
        open: bool,
        sizes in prop::sample::select(vec!["4KiB", "uniform(1,100000)", "mix(9:4KiB,1:1MiB)"]),
        (clients, objects, prefixes) in (1u32..9, 1u64..200, 1u16..20),
        (overwrite, zipf, salt) in (any::<bool>(), any::<bool>(), any::<u64>()),
    ) {
        let [get, put, stat, list, delete, multipart] = weights;
        let mix = Mix { get, put, stat, list, delete, multipart };
        let rate = Load::Open { rate_per_s: 20_000.0, arrivals: Arrivals::Poisson, clients };
        let spec = OpsSpec {
            sizes: sizes.parse().expect("sizes"),
            objects,
            prefixes,
            overwrite: overwrite && delete == 0,
            popularity: if zipf { Popularity::Zipf(1.2) } else { Popularity::Uniform },
            range_bytes: salt.is_multiple_of(2).then_some(Bytes(1000)),
            count: Some(2000),
            load: if open { rate } else { Load::Closed { depth: clients } },
            seed: salt,
            ..OpsSpec::new(mix)
        };
        prop_assume!(mix.total() > 0);
        consistent(&spec, salt);
    }
}

#[test]
fn deletes_alone_end_with_the_last_object() {
    let spec = OpsSpec { objects: 103, ..spec("delete", 4, None) };
    let submits = submitted(&spec, 3);
    let keys: BTreeSet<Key> = submits.iter().map(|s| s.op.key).collect();
    assert_eq!((submits.len(), keys.len()), (103, 103));
}

#[test]
fn ranges_are_aligned_and_inside() {
    let spec = OpsSpec {
        sizes: "1000000".parse().expect("a size"),
        range_bytes: Some(Bytes(65_536)),
        ..spec("get", 2, Some(2000))
    };
    let mut slots = BTreeSet::new();
    for Submit { op, .. } in submitted(&spec, 1) {
        assert!(op.ranged && op.bytes == 65_536 && op.offset % 65_536 == 0 && op.offset + op.bytes <= 1_000_000);
        slots.insert(op.offset / 65_536);
    }
    assert_eq!(slots.len(), 15);
}

#[test]
fn popular_keys_follow_the_law() {
    let spec = OpsSpec { popularity: Popularity::Zipf(1.0), objects: 100, ..spec("get", 1, Some(100_000)) };
    let mut counts = BTreeMap::<u64, u64>::new();
    submitted(&spec, 1).iter().for_each(|s| *counts.entry(s.op.key.id).or_default() += 1);
    let mut counts: Vec<u64> = counts.into_values().collect();
    counts.sort_by_key(|&count| std::cmp::Reverse(count));
    let harmonic: f64 = (1..=100).map(|k| 1.0 / f64::from(k)).sum();
    for (k, count) in counts.iter().take(5).enumerate() {
        let expected = 1e5 / harmonic / (k + 1) as f64;
        assert!((*count as f64 / expected - 1.0).abs() < 0.06, "{k}: {count} for {expected}");
    }
}

#[test]
fn an_open_loop_keeps_its_schedule_however_slow_the_target() {
    let load = Load::Open { rate_per_s: 200.0, arrivals: Arrivals::Constant, clients: 4 };
    let spec = OpsSpec { load, ..spec("get", 1, Some(400)) };
    let mut ops = Ops::split(&spec, 1).expect("runs").remove(0);
    let (submits, _) = drive(&mut ops, Tick(7), None, None, |_| (Duration::from_secs(3), Ok(())));
    let mut starts: Vec<u64> = submits.iter().map(|s| s.intended.0).collect();
    starts.sort_unstable();
    assert_eq!(starts, (0..400).map(|k| 7 + k * 5_000_000).collect::<Vec<_>>());
}

#[test]
fn stop_starts_nothing_new() {
    let mut ops = Ops::split(&spec("get", 4, None), 1).expect("runs").remove(0);
    let (submits, end) = drive(&mut ops, Tick(0), Some(Tick(0)), Some(Tick(10_500_000)), |_| (MS, Ok(())));
    assert_eq!((submits.len(), end), (44, Tick(11_000_000)));
}

#[test]
fn a_target_that_is_not_there_is_not_hammered() {
    let mut ops = Ops::split(&spec("get", 1, None), 1).expect("runs").remove(0);
    let refuse = |_: &Submit| (Duration::from_micros(1), Err(ErrorKind::Connect));
    let (submits, _) = drive(&mut ops, Tick(0), None, Some(Tick(10_000_000_000)), refuse);
    // 10, 20, 40, … 640 ms, then once a second.
    assert_eq!(submits.len(), 16);
}

#[test]
fn specifications_survive_a_plan_file() {
    let spec =
        OpsSpec { range_bytes: Some(Bytes(4096)), popularity: Popularity::Zipf(0.99), ..spec("mixed", 3, Some(9)) };
    let text = toml::to_string(&spec).expect("serializes");
    assert_eq!(toml::from_str::<OpsSpec>(&text).expect("reads back"), spec, "{text}");
    let wrong = text.replace("overwrite =", "overwrites =");
    assert!(toml::from_str::<OpsSpec>(&wrong).expect_err("unknown").to_string().contains("overwrites"));
    let open = Load::Open { rate_per_s: 0.5, arrivals: Arrivals::Poisson, clients: 3 };
    let text = toml::to_string(&OpsSpec { load: open, ..spec }).expect("serializes");
    assert_eq!(toml::from_str::<OpsSpec>(&text).expect("reads back").load, open);
}

#[test]
fn nonsense_is_refused() {
    let get = |change: fn(&mut OpsSpec)| {
        let mut spec = spec("get", 1, None);
        change(&mut spec);
        spec.check().expect_err("nonsense").to_string()
    };
    assert!(get(|s| s.objects = 0).contains("no object to read"));
    assert!(get(|s| s.count = Some(0)).contains("count of 0"));
    assert!(get(|s| s.range_bytes = Some(Bytes(0))).contains("range of 0"));
    assert!(get(|s| s.mix = Mix::default()).contains("mix"));
    assert!(get(|s| s.prefixes = 0).contains("prefix"));
    assert!(get(|s| s.load = Load::Closed { depth: 0 }).contains("depth"));
    assert!(
        get(|s| (s.mix.multipart, s.part_bytes, s.sizes) = (1, Bytes(1), SizeSpec::Fixed(Bytes(1 << 20))))
            .contains("parts")
    );
    assert!(
        "gets".parse::<Mix>().is_err() && "get=0".parse::<Mix>().is_err() && "zipf(0)".parse::<Popularity>().is_err()
    );
}
