//! The KV block protocol as a target: the same store, plan and data as over S3, by another wire.

use serde_json::Value;

use crate::program::{ACCESS_KEY, BUCKET, Place, SECRET_KEY, Server, ended, no_errors, number, operations, report};

/// Every operation came by the KV wire.
fn by_kv(report: &Value) {
    no_errors(report);
    assert_eq!(report["run"]["transport"], "kv");
    for row in operations(report) {
        assert_eq!((&row["carrier"], &row["transport"]), (&Value::from("kv-tcp"), &Value::from("kv")), "{row}");
    }
}

const MIX: [&str; 12] = [
    "run",
    "ops",
    "--op",
    "get=50,put=30,stat=10,delete=10",
    "--count",
    "300",
    "--size",
    "64KiB",
    "--verify",
    "full",
    "--warm-up",
    "0s",
];

#[test]
fn the_same_plan_by_both_wires() {
    let place = Place::new();
    let [s3, kv] = ["s3", "kv"].map(|wire| place.report(&[&MIX[..], &["--wire", wire, "--out", wire]].concat()));
    by_kv(&kv);
    no_errors(&s3);
    assert_eq!(kv["run"]["plan_hash"], s3["run"]["plan_hash"]);
    let counts = |report: &Value| {
        operations(report).iter().map(|row| (row["op"].clone(), row["count"].clone())).collect::<Vec<_>>()
    };
    assert_eq!(counts(&kv), counts(&s3));
    assert_eq!(operations(&kv).iter().map(|row| number(&row["count"])).sum::<u64>(), 300);
}

#[test]
fn a_kv_cache_on_a_kv_server() {
    let place = Place::new();
    let server = Server::start(&place, &["--store", "synth"]);
    let set =
        ["sessions=6", "sessions_per_s=4", "turns=3", "input_tokens=1500", "output_tokens=20", "think_time_s=0.3"];
    let set = set.into_iter().flat_map(|change| ["--set", change]).collect::<Vec<_>>();
    place.run(&[&["trace", "synth", "multi-turn", "--out", "t.jsonl"][..], &set].concat()).passed();
    let target = format!("{}/{BUCKET}/cache", server.kv);
    let args = [
        "run",
        "kv",
        "--trace",
        "t.jsonl",
        "--client",
        "memkv",
        "--model",
        "qwen2.5-7b",
        "--gpu",
        "l40s",
        "--workers",
        "2",
        "--host-cache",
        "0",
        "--load-policy",
        "always",
        "--no-baselines",
        "--set",
        "kv.g1_blocks=400",
        "--target",
        &target,
        "--out",
        "r",
        "--quiet",
        "--format",
        "json",
    ];
    let report = report(server.client(&place).args(args));
    by_kv(&report);
    let kv = &report["members"][0]["kv"];
    assert_eq!(number(&kv["completed"]), number(&kv["requests"]));
    assert!(number(&kv["hits_by_tier"]["g4"]) > 0, "{}", kv["hits_by_tier"]);
    assert!(number(&kv["loaded_bytes"]) > 0 && number(&kv["stored_bytes"]) > 0);
}

#[test]
fn what_is_wrong_with_a_kv_target_is_said() {
    let place = Place::new();
    let server = Server::start(&place, &[]);
    let run = |target: &str, secret: &str| {
        let mut command = server.client(&place);
        command.env("AWS_SECRET_ACCESS_KEY", secret);
        let out = format!("r{}", place.names().len());
        ended(command.args(["run", "ops", "--count", "1", "--target", target, "--out", &out]))
    };
    let bucket = format!("{}/{BUCKET}", server.kv);
    run(&bucket, SECRET_KEY).passed();
    run(&bucket, "another-secret").said(1, &[&server.kv, "secret key is wrong"]);
    run(&format!("{}/elsewhere", server.kv), SECRET_KEY).said(1, &["no bucket `elsewhere`"]);
    let s3 = server.url.replace("http://", "kv://");
    run(&format!("{s3}/{BUCKET}"), SECRET_KEY).said(1, &["no KV block server"]);
    run("kv://127.0.0.1:1/b12", SECRET_KEY).said(1, &["kv://127.0.0.1:1", "refused"]);
    let mut nobody = place.gpufeed();
    let nobody = nobody.env("AWS_ACCESS_KEY_ID", ACCESS_KEY).args(["run", "ops", "--target", &bucket, "--out", "half"]);
    assert_eq!(ended(nobody).status.code(), Some(1), "half a pair of keys");
    place.run(&["run", "ops", "--wire", "kv", "--target", "mem:"]).said(2, &["--wire", "kv://host:9900/bucket"]);
    let large =
        ["run", "kv", "--wire", "kv", "--model", "llama-3.1-70b", "--tp", "8", "--block-tokens", "512", "--dry-run"];
    place.run(&large).said(2, &["512 tokens", "64 MiB", "--block-tokens"]);
}
