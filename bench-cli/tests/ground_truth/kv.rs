//! KV-cache loads on the wall clock: the same trace, machine and shape on the virtual clock are the closed form.

use std::path::Path;
use std::sync::Arc;

use gpufeed::plan::{Plan, SpecPlan, TracePlan};
use gpufeed_engine::Settings;
use gpufeed_engine::simulated::{self, StorageModel};
use gpufeed_engine::watch::Watch;
use gpufeed_profiles::storage::Shape;
use gpufeed_schema::{Kv as Section, Section as Any};
use gpufeed_workloads::kv::{Kv, Requests};
use gpufeed_workloads::machine::Workload as _;
use gpufeed_workloads::trace::Trace;
use serde_json::Value;

use super::support::{MS, Run, alone, number, shaped, tolerance_ns};

/// Prompts of 20 blocks; the second drives the first's blocks out of GPU memory, the third is the first again and finds
/// 19 of them on the target. The last block is computed whatever is cached.
const BLOCKS: u64 = 20;
const LOADED: u64 = BLOCKS - 1;

fn write_trace(path: &Path) {
    let line = |at_ms: u64, talk: u64| {
        let ids: Vec<u64> = (0..BLOCKS).map(|i| talk * 1000 + i).collect();
        format!(
            "{{\"timestamp\":{at_ms},\"input_length\":{},\"output_length\":1,\"hash_ids\":{ids:?}}}\n",
            BLOCKS * 512
        )
    };
    std::fs::write(path, [line(0, 1), line(1500, 2), line(3000, 1)].concat()).expect("written");
}

/// The same plan on the virtual clock.
pub(super) fn model(plan: &Plan, shape: &str) -> Section {
    let SpecPlan::Kv(kv) = &plan.members[0].spec else { panic!("{:?}", plan.members[0].spec) };
    let TracePlan::File { path, .. } = &kv.trace else { panic!("a file") };
    let trace = Trace::load(path).expect("a trace");
    let requests = Arc::new(Requests::from_trace(&trace, kv.spec.output_blocks, kv.spec.block_tokens));
    let machine = Kv::new(kv.spec.clone(), kv.cost.clone(), requests).expect("a machine");
    let storage = StorageModel::new(&Shape::parse(&[shape]).expect("a shape"), plan.seed, None);
    let settings = Settings { duration: None, seed: plan.seed, ..Settings::default() };
    let played = simulated::run(&settings, storage, machine, &Watch::new()).expect("runs");
    match played.machines[0].section(played.window) {
        Any::Kv(section) => *section,
        other => panic!("{other:?}"),
    }
}

/// Length of an object: 512 tokens of Llama 3.1 8B are 64 MiB, and these runs store a 1,024th of it.
const OBJECT: u64 = 64 << 10;

fn counts_are_exact(run: &Run) {
    let kv = &run.member()["kv"];
    assert_eq!((&kv["requests"], &kv["completed"], &kv["failed"]), (&Value::from(3), &Value::from(3), &Value::from(0)));
    assert_eq!(kv["hits_by_tier"]["g4"], LOADED * 512, "{}", kv["hits_by_tier"]);
    for (op, blocks) in [("get", LOADED), ("put", 2 * BLOCKS)] {
        let row = run.op(op);
        assert_eq!((&row["count"], &row["bytes"]), (&Value::from(blocks), &Value::from(blocks * OBJECT)), "{row}");
    }
}

#[test]
fn a_repeated_prompt_takes_as_long_as_its_loads() {
    let _turn = alone();
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("trace.jsonl");
    write_trace(&path);
    let trace = path.to_str().expect("text");
    let args = [
        "kv",
        "--trace",
        trace,
        "--model",
        "llama-3.1-8b",
        "--gpu",
        "h100-sxm",
        "--workers",
        "1",
        "--no-baselines",
        "--load-policy",
        "always",
        "--client",
        "mooncake",
        "--set",
        "kv.g1_blocks=20",
        "--set",
        "kv.g2_bytes=0",
        "--set",
        "kv.get_in_flight=1",
        "--set",
        "kv.bytes_scale=0.0009765625",
    ];
    let shape = "get:latency=40ms";
    let load_ns = |section: &Value| number(&section["ttft_parts"]["load"], "max_ns");
    // One load after the other.
    let injected = LOADED as f64 * 40.0 * MS;
    let (mut control, mut load, mut ttft) = (f64::INFINITY, f64::INFINITY, f64::INFINITY);
    let mut expected = (0.0, 0.0);
    for _ in 0..8 {
        // Small objects want a shape; this one does nothing.
        let without = shaped(&args, "get:latency=0ms");
        counts_are_exact(&without);
        control = control.min(load_ns(&without.member()["kv"]));
        let run = shaped(&args, shape);
        counts_are_exact(&run);
        let model = model(&run.plan(), shape);
        let (model_load, model_ttft) = (model.ttft_parts.load.max_ns, model.ttft.summary.max_ns);
        let (model_load, model_ttft) = (model_load.expect("loads") as f64, model_ttft.expect("requests") as f64);
        assert!((model_load / injected - 1.0).abs() < 2e-3, "{model_load} ns in the model, {injected} by the formula");
        expected = (model_load + control, model_ttft + control);
        let kv = &run.member()["kv"];
        assert!(load_ns(kv) >= 0.998 * injected, "{} ns for loads of {injected} ns", load_ns(kv));
        (load, ttft) = (load.min(load_ns(kv)), ttft.min(number(&kv["ttft"], "max_ns")));
        if load - expected.0 <= tolerance_ns(injected) && (ttft - expected.1).abs() <= tolerance_ns(injected) {
            return;
        }
    }
    panic!("load {load} ns, time to first token {ttft} ns; expected {expected:?}");
}
