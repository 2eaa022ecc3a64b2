//! Workers that die, pools apart, conversations and offered load, over real I/O and as words on the command line.

use serde_json::Value;

use crate::program::{Place, no_errors, number};

const TARGET: [&str; 4] = ["--target", "embedded:synth", "--out", "r"];
const SMALL: [&str; 6] = ["--model", "qwen2.5-7b", "--gpu", "l40s", "--host-cache", "64MiB"];

/// Every nanosecond of every worker is in one cell.
fn partitioned(gpu: &Value) {
    let cells = ["prefill", "recompute", "decode", "storage_stall", "transfer_stall", "no_work", "down"];
    let all: u64 = cells.iter().map(|cell| number(&gpu[format!("{cell}_ns")])).sum();
    assert_eq!(all, number(&gpu["total_ns"]), "{gpu}");
}

/// A trace of conversations in the place, some tens of requests within about eight seconds.
fn talks(place: &Place) {
    let set =
        ["sessions=8", "sessions_per_s=4", "turns=4", "input_tokens=1500", "output_tokens=60", "think_time_s=0.5"];
    let set = set.into_iter().flat_map(|change| ["--set", change]).collect::<Vec<_>>();
    place.run(&[&["trace", "synth", "multi-turn", "--out", "t.jsonl"][..], &set].concat()).passed();
}

fn kv(place: &Place, more: &[&str]) -> Value {
    let report = place.report(&[&["run", "kv", "--trace", "t.jsonl"][..], &SMALL, more, &TARGET].concat());
    no_errors(&report);
    report
}

#[test]
fn requests_of_a_dead_worker_go_on_elsewhere() {
    let place = Place::new();
    talks(&place);
    let caches = ["--workers", "3", "--load-policy", "always", "--set", "kv.g1_blocks=64"];
    let report = kv(&place, &[&caches[..], &["--kill-worker", "1@2s", "--restart", "1@4s"]].concat());
    let kv = &report["members"][0]["kv"];
    partitioned(&kv["gpu"]);
    assert_eq!(number(&kv["gpu"]["down_ns"]), 2_000_000_000, "from its death to its return, by the model's clock");
    assert_eq!(number(&kv["completed"]), number(&kv["requests"]));
    let failover = &kv["failover"];
    assert_eq!(number(&failover["workers_lost"]), 1);
    assert!(number(&failover["moved_requests"]) > 0, "{failover}");
    let parts = ["loaded_tokens", "found_tokens", "recomputed_tokens"].map(|part| number(&failover[part]));
    assert_eq!(number(&failover["lost_tokens"]), parts.iter().sum::<u64>());
    let html = std::fs::read_to_string(place.path("r/report.html")).expect("a page");
    assert!(html.contains("Workers lost"));
}

#[test]
fn pools_apart_report_their_gpus_apart() {
    let place = Place::new();
    talks(&place);
    let report = kv(&place, &["--topology", "disaggregated", "--prefill-workers", "2", "--decode-workers", "1"]);
    let kv = &report["members"][0]["kv"];
    assert_eq!((number(&kv["workers"]), number(&kv["completed"])), (3, number(&kv["requests"])));
    let [prefill, decode] = [0, 1].map(|i| &kv["gpu_pools"][i]);
    assert_eq!((&prefill["name"], &decode["name"]), (&Value::from("prefill"), &Value::from("decode")));
    partitioned(&prefill["gpu"]);
    partitioned(&decode["gpu"]);
    assert_eq!(number(&prefill["gpu"]["decode_ns"]), 0);
    assert_eq!(
        number(&prefill["gpu"]["total_ns"]) + number(&decode["gpu"]["total_ns"]),
        number(&kv["gpu"]["total_ns"])
    );
    assert!(number(&kv["transferred_bytes"]) > 0);
    assert_eq!(kv["ttft_parts"]["transfer"]["count"], kv["ttft"]["count"]);
    let claims = report["claims"].as_array().expect("claims");
    let decode_claim = claims.iter().find(|claim| claim["id"] == "decode-utilization-90").expect("the claim");
    assert_eq!(decode_claim["measured"], decode["gpu"]["decode_ratio"]);
}

#[test]
fn routing_and_the_shared_tier_make_a_table_of_four() {
    let place = Place::new();
    talks(&place);
    let report = kv(&place, &["--workers", "2", "--matrix", "--rate-scale", "2"]);
    assert_eq!(report["members"].as_array().map(Vec::len), Some(2));
    let kv = &report["members"][0]["kv"];
    let cells = kv["matrix"].as_array().expect("cells");
    let of = |cell: &Value| (cell["routing"].clone(), cell["shared_tier"].clone(), cell["source"].clone());
    let expected = [
        ("kv-aware", false, "model"),
        ("kv-aware", true, "measured"),
        ("round-robin", false, "model"),
        ("round-robin", true, "measured"),
    ];
    let expected = expected.map(|(routing, tier, source)| (routing.into(), tier.into(), source.into()));
    assert_eq!(cells.iter().map(of).collect::<Vec<(Value, Value, Value)>>(), expected);
    let other = &report["members"][1]["kv"];
    assert_eq!(cells[1]["figures"]["token_hit_ratio"], kv["token_hit_ratio"]);
    assert_eq!(cells[3]["figures"]["token_hit_ratio"], other["token_hit_ratio"]);
    assert_eq!(cells[2]["figures"], other["baselines"]["local"]);
}

#[test]
fn load_is_offered_as_a_share_of_capacity() {
    let place = Place::new();
    talks(&place);
    let plan = |load: &str| -> f64 {
        let words = ["run", "kv", "--trace", "t.jsonl", "--load", load, "--dry-run", "--format", "json"];
        let plan: Value = serde_json::from_str(&place.run(&[&words[..], &SMALL].concat()).passed().out).expect("JSON");
        assert!(plan["members"][0]["scaling"].to_string().contains("requests/s"), "{plan}");
        plan["members"][0]["spec"]["kv"]["spec"]["rate_scale"].as_f64().expect("a rate")
    };
    let (half, whole) = (plan("0.5"), plan("1.0"));
    assert!((whole / half - 2.0).abs() < 1e-9, "{half} {whole}");
}

/// Scaled is called scaled, whether a flag or `--set` says it.
#[test]
fn what_is_scaled_is_in_the_plan() {
    let place = Place::new();
    talks(&place);
    let scaling = |more: &[&str]| -> String {
        let words = ["run", "kv", "--trace", "t.jsonl", "--dry-run", "--format", "json"];
        let out = place.run(&[&words[..], &SMALL, more].concat()).passed().out;
        let plan: Value = serde_json::from_str(&out).expect("JSON");
        plan["members"][0]["scaling"].to_string()
    };
    for more in [["--time-scale", "4"], ["--set", "kv.time_scale=4"]] {
        assert!(scaling(&more).contains("time × 4: emulated GPUs are 4 times slower"), "{more:?}");
    }
    for more in [["--rate-scale", "2"], ["--set", "kv.rate_scale=2"]] {
        assert!(scaling(&more).contains("requests arrive 2 times as fast"), "{more:?}");
    }
    assert!(scaling(&["--rate-scale", "2", "--sessions"]).contains("conversations begin 2 times as fast"));
    assert!(!scaling(&[]).contains("time"));
}

#[test]
fn what_makes_no_sense_is_said_in_a_sentence() {
    let place = Place::new();
    talks(&place);
    let says = |more: &[&str], words: &str| {
        place.run(&[&["run", "kv", "--trace", "t.jsonl", "--dry-run"][..], &SMALL, more].concat()).said(2, &[words]);
    };
    says(&["--kill-worker", "1@2s"], "--kill-worker 1@2s: there is no such worker, they count from 0 to 0");
    says(&["--restart", "0@2s"], "that worker does not die before");
    says(&["--topology", "disaggregated"], "needs --prefill-workers and --decode-workers");
    says(&["--prefill-workers", "1"], "give --topology disaggregated too");
    says(&["--load", "0"], "give one above 0");
    says(&["--load", "0.5", "--rate-scale", "2"], "give one of them");
    says(&["--load", "0.5", "--sessions"], "give one of them");
    says(&["--matrix", "--no-baselines"], "leave --no-baselines out");
    let ended = place.run(&["run", "kv", "--kill-worker", "one"]);
    assert_eq!(ended.status.code(), Some(2));
    assert!(ended.err.contains("`one` is not WORKER@TIME: write it like 2@30s"), "{}", ended.err);
}
