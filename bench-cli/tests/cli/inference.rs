//! Training, KV cache and RAG over real I/O: their books agree with the operations', and GPU time sums exactly.

use serde_json::Value;

use crate::program::{Place, no_errors, number};

const TARGET: [&str; 4] = ["--target", "embedded:synth", "--out", "r"];

/// The sum of `figure` over the operations called `op`.
fn sum(member: &Value, op: &str, figure: &str) -> u64 {
    let operations = member["operations"].as_array().expect("operations").iter();
    operations.filter(|operation| operation["op"] == op).map(|operation| number(&operation[figure])).sum()
}

/// Every nanosecond of every worker is in one cell.
fn partitioned(gpu: &Value) {
    let cells = ["prefill", "recompute", "decode", "storage_stall", "transfer_stall", "no_work", "down"];
    let all: u64 = cells.iter().map(|cell| number(&gpu[format!("{cell}_ns")])).sum();
    assert_eq!(all, number(&gpu["total_ns"]), "{gpu}");
    let ratios: f64 = cells.iter().filter_map(|cell| gpu[format!("{cell}_ratio")].as_f64()).sum();
    assert!((ratios - 1.0).abs() < 1e-9, "{ratios}");
}

fn accounted(section: &Value, arrived: &str) {
    let parts = ["completed", "failed", "unfinished"].map(|part| number(&section[part]));
    assert_eq!(parts.iter().sum::<u64>(), number(&section[arrived]), "{parts:?}");
    assert_eq!(number(&section["failed"]), 0);
}

#[test]
fn training_reads_what_its_accelerators_consume() {
    let place = Place::new();
    let profile = ["--profile", "resnet50-h100", "--set", "training.batch=8", "--files", "4", "--duration", "2s"];
    let report = place.report(&[&["run", "training"][..], &profile, &TARGET].concat());
    no_errors(&report);
    let training = &report["members"][0]["training"];
    assert_eq!(training["accelerator"], "h100");
    let au = training["au_ratio"].as_f64().expect("AU");
    assert!(au > 0.0 && au <= 1.0, "{au}");
    assert!(training["samples_per_s"].as_f64() > Some(0.0));
    assert!(sum(&report["members"][0], "get", "bytes") > 0);
    let busy = ["compute_s", "stall_s"].map(|part| training[part].as_f64().expect(part));
    assert!(busy.iter().all(|part| *part >= 0.0), "{busy:?}");
    assert_eq!(training["passed"], au >= training["au_threshold_ratio"].as_f64().expect("a threshold"));
}

#[test]
fn kv_books_agree_with_the_operations() {
    let place = Place::new();
    let talk = ["sessions=12", "sessions_per_s=4", "turns=3", "input_tokens=400", "output_tokens=12"];
    let pauses = ["think_time_s=0.2", "system_prompt_tokens=1536", "system_prompts=4"];
    let set = talk.into_iter().chain(pauses).flat_map(|change| ["--set", change]).collect::<Vec<_>>();
    place.run(&[&["trace", "synth", "multi-turn", "--out", "t.jsonl"][..], &set].concat()).passed();
    let small = ["--model", "qwen2.5-7b", "--gpu", "l40s", "--workers", "2", "--host-cache", "64MiB"];
    let caches = ["--set", "kv.g1_blocks=8", "--load-policy", "always", "--trace", "t.jsonl"];
    let report = place.report(&[&["run", "kv"][..], &small, &caches, &TARGET].concat());
    no_errors(&report);
    let member = &report["members"][0];
    let kv = &member["kv"];
    partitioned(&kv["gpu"]);
    accounted(kv, "requests");
    assert!(number(&kv["requests"]) > 0);
    assert_eq!(number(&kv["loaded_bytes"]), sum(member, "get", "bytes"), "{kv}");
    assert_eq!(number(&kv["stored_bytes"]), sum(member, "put", "bytes"), "{kv}");
    assert!(number(&kv["stored_bytes"]) > 0 && number(&kv["loaded_bytes"]) > 0, "{kv}");
    assert_eq!(number(&kv["loaded_bytes"]) % number(&kv["block_bytes"]), 0);
    for baseline in ["no_cache", "local", "ideal_storage"] {
        assert!(kv["baselines"][baseline].is_object(), "{baseline}");
    }
    for part in ["queue", "lookup", "load", "copy", "prefill"] {
        assert_eq!(kv["ttft_parts"][part]["count"], kv["ttft"]["count"], "{part}");
    }
}

#[test]
fn kv_replays_a_window_of_a_trace_to_its_end() {
    let place = Place::new();
    let trace = place.path("t.jsonl").display().to_string();
    place.run(&["trace", "synth", "multi-turn", "--set", "sessions=40", "--out", &trace]).passed();
    let info = |file: &str| -> Value {
        serde_json::from_str(&place.run(&["trace", "info", "--json", file]).passed().out).expect("JSON")
    };
    let cut = place.path("cut.jsonl").display().to_string();
    place.run(&["trace", "window", &trace, "--from", "10s", "--to", "30s", "--out", &cut]).passed();
    let requests = number(&info(&cut)["requests"]);
    assert!(requests > 3 && requests < number(&info(&trace)["requests"]), "{requests}");
    let window = ["--trace", &trace, "--window", "10s..30s", "--rate-scale", "10", "--no-baselines"];
    let workers = ["--workers", "4", "--gpu", "h200"];
    let report = place.report(&[&["run", "kv"][..], &window, &workers, &TARGET].concat());
    no_errors(&report);
    let kv = &report["members"][0]["kv"];
    assert_eq!(number(&kv["requests"]), requests);
    assert_eq!(number(&kv["completed"]), requests);
    assert_eq!(report["run"]["scaled"], true);
    partitioned(&kv["gpu"]);
}

#[test]
fn rag_books_agree_with_the_operations() {
    let place = Place::new();
    let small = ["--model", "qwen2.5-7b", "--gpu", "l40s", "--vectors", "4000", "--dimensions", "128", "--rate", "10"];
    let report = place.report(&[&["run", "rag", "--duration", "3s"][..], &small, &TARGET].concat());
    no_errors(&report);
    let member = &report["members"][0];
    let rag = &member["rag"];
    partitioned(&rag["gpu"]);
    accounted(rag, "queries");
    assert!(number(&rag["queries"]) > 5);
    assert_eq!(number(&rag["posting_bytes"]) + number(&rag["passage_bytes"]), sum(member, "get", "bytes"), "{rag}");
    assert!(number(&rag["posting_bytes"]) > 0 && number(&rag["passage_bytes"]) > 0);
}

/// A trace without block ids shares nothing, unless prefixes are made up on request, which the report says.
#[test]
fn prefixes_are_made_up_where_a_trace_has_none() {
    let place = Place::new();
    let row = |i: u32| format!("2023-11-16 18:15:{:02}.{}000000,1600,2\n", 40 + i / 5, i % 5 * 2);
    place.write(
        "azure.csv",
        &("TIMESTAMP,ContextTokens,GeneratedTokens\n".to_owned() + &(0..20).map(row).collect::<String>()),
    );
    let base = ["run", "kv", "--trace", "azure.csv", "--model", "qwen2.5-7b", "--gpu", "l40s", "--client", "vllm"];
    let base = [&base[..], &["--no-baselines", "--target", "embedded:synth"]].concat();
    let run = |out: &str, more: &[&str]| {
        let report = place.report(&[&base[..], &["--out", out], more].concat());
        no_errors(&report);
        report["members"][0]["kv"].clone()
    };
    let alone = run("alone", &[]);
    assert_eq!(alone["hits_by_tier"]["miss"], 20 * 1600);
    let shared = run("shared", &["--set", "kv.prefix_share=0.8", "--set", "kv.prefix_groups=1"]);
    // 80 of 100 blocks of 16 tokens, in GPU memory from the second request on.
    assert_eq!(number(&shared["hits_by_tier"]["g1"]), 19 * 1280, "{}", shared["hits_by_tier"]);
    assert!(shared["inputs"]["blocks"].as_str().is_some_and(|words| words.contains("made up")), "{}", shared["inputs"]);
    place.run(&["trace", "synth", "multi-turn", "--set", "sessions=2", "--out", "t.jsonl"]).passed();
    let both = ["run", "kv", "--trace", "t.jsonl", "--set", "kv.prefix_share=0.5", "--target", "mem:", "--out", "both"];
    place.run(&both).said(2, &["kv.prefix_share", "leave it out"]);
}
