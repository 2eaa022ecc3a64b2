//! Capacity plans and the baselines of a run play KV machines with a driver of their own that records nothing: it must say
//! what the engine's virtual driver says, key by key.

use std::sync::Arc;
use std::time::Duration;

use gpufeed_engine::simulated::{self, StorageModel};
use gpufeed_engine::watch::Watch;
use gpufeed_engine::{Settings, settings::WarmUp};
use gpufeed_profiles::storage::Shape;
use gpufeed_profiles::units::Bytes;
use gpufeed_profiles::{Overrides, engine, gpu, model};
use gpufeed_schema::{Kv as Section, Section as Any};
use gpufeed_workloads::inference::CostModel;
use gpufeed_workloads::kv::{Exists, Kv, KvSpec, LoadPolicy, OutputBlocks, Overlap, Requests, play};
use gpufeed_workloads::machine::Workload as _;
use gpufeed_workloads::op::Tick;
use gpufeed_workloads::storage::Present;
use gpufeed_workloads::trace::{Format, Record, Trace};

/// Conversations in turn, in bursts of three, whose prompts outgrow GPU memory.
fn requests() -> Arc<Requests> {
    let record = |i: u64| {
        let (talk, turn) = (i % 7, i / 7);
        let blocks = 4 + turn;
        Record {
            stamp_ns: Some(((i / 3) * 130_000_000 + (i * i % 11) * 1_000_000) as i64),
            input_tokens: 512 * blocks as u32 - 100,
            output_tokens: 3 + (i % 5) as u32,
            blocks: (0..blocks).map(|block| talk * 100 + block).collect(),
            ..Record::default()
        }
    };
    let mut records: Vec<Record> = (0..84).map(record).collect();
    records.sort_by_key(|record| record.stamp_ns);
    let trace = Trace::from_records(Format::Mooncake, records.into_iter().map(Ok), Some(512)).expect("a trace");
    Arc::new(Requests::from_trace(&trace, OutputBlocks::None, 512))
}

fn cost() -> CostModel {
    let none = Overrides::default();
    let model = model("llama-3.1-8b", &none).expect("a model");
    let (gpu, engine) = (gpu("h100-sxm", &none).expect("a GPU"), engine("vllm", &none).expect("an engine"));
    CostModel::from_profiles(&model, &gpu, &engine, 1, model.weight_dtype, model.kv_dtype)
}

fn storage(concurrency: Option<usize>) -> StorageModel {
    let parts = ["get:latency=lognormal(8ms,0.5)", "get:bandwidth=3GB/s", "put:bandwidth=2GB/s", "stat:latency=2ms"];
    StorageModel::new(&Shape::parse(&parts).expect("a shape"), 5, concurrency)
}

/// The same machine under both drivers.
fn both(spec: &KvSpec, concurrency: Option<usize>, warm_up: Duration, length: Option<Duration>) -> [Section; 2] {
    let requests = requests();
    let machine = || Kv::new(spec.clone(), cost(), Arc::clone(&requests)).expect("a machine");
    let mut played = machine();
    let measure = Tick::ZERO + warm_up;
    let end = play(&mut played, storage(concurrency), measure, length.map(|length| measure + length));
    let played = played.report((measure.min(end), end));

    let settings =
        Settings { duration: length, warm_up: WarmUp::Fixed(warm_up), drain: Duration::ZERO, ..Settings::default() };
    let places = concurrency.unwrap_or(usize::MAX);
    // Only who asks for objects needs to be told which there are.
    let asks = spec.exists != Exists::Index;
    let present = if asks { Present::new(storage(concurrency)) } else { Present::unasked(storage(concurrency)) };
    let run = simulated::run_on(&settings, present, places, machine(), &Watch::new()).expect("runs");
    let Any::Kv(simulated) = run.machines[0].section(run.window) else { panic!("a KV section") };
    [played, *simulated]
}

/// Every key of two sections that differs, with both values.
fn differences([a, b]: &[Section; 2]) -> Vec<String> {
    fn walk(path: &str, a: &serde_json::Value, b: &serde_json::Value, found: &mut Vec<String>) {
        match (a.as_object(), b.as_object()) {
            (Some(a), Some(b)) if a.keys().eq(b.keys()) => {
                a.iter().for_each(|(key, value)| walk(&format!("{path}.{key}"), value, &b[key], found));
            }
            _ if a == b => {}
            _ => found.push(format!("{path}: {a} played, {b} simulated")),
        }
    }
    let json = |section: &Section| serde_json::to_value(section).expect("JSON");
    let mut found = Vec::new();
    walk("kv", &json(a), &json(b), &mut found);
    found
}

#[test]
fn both_virtual_drivers_say_the_same() {
    let base =
        KvSpec { workers: 1, g1_blocks: Some(24), g2_bytes: Bytes(0), load: LoadPolicy::Always, ..KvSpec::default() };
    let cases = [
        ("one worker", base.clone(), None),
        ("four operations at a time", base.clone(), Some(4)),
        ("one operation at a time", base.clone(), Some(1)),
        ("two workers with host memory", KvSpec { workers: 2, g2_bytes: Bytes(1 << 30), ..base.clone() }, None),
        ("break-even", KvSpec { load: LoadPolicy::BreakEven, ..base.clone() }, Some(16)),
        ("layer-wise", KvSpec { overlap: Overlap::LayerWise, ..base.clone() }, None),
        ("look-ups on storage", KvSpec { exists: Exists::Stat, ..base.clone() }, None),
        ("no shared tier", KvSpec { shared_tier: false, ..base.clone() }, None),
    ];
    for (name, spec, concurrency) in cases {
        let found = both(&spec, concurrency, Duration::ZERO, None);
        assert_eq!(found[0].completed, 84, "{name}");
        let loads = name != "no shared tier";
        assert_eq!(found[0].loaded_bytes > 0, loads, "{name} loads what outgrew its memory");
        let differences = differences(&found);
        assert!(differences.is_empty(), "{name}: {differences:#?}");
    }
}

#[test]
fn both_virtual_drivers_cut_the_same_window() {
    let spec =
        KvSpec { workers: 1, g1_blocks: Some(24), g2_bytes: Bytes(0), load: LoadPolicy::Always, ..KvSpec::default() };
    let found = both(&spec, None, Duration::from_millis(700), Some(Duration::from_millis(1900)));
    assert!(found[0].requests > 20 && found[0].requests < 84, "{}", found[0].requests);
    let mut differences = differences(&found);
    // The engine gives reads that are under way at the end back to the machine, whose estimate of the target learns of them.
    differences.retain(|difference| !difference.starts_with("kv.load.concurrency:"));
    assert!(differences.is_empty(), "{differences:#?}");
}
