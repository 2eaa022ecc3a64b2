//! A local drive beside the target in one run: real files, rows of their own, and what is said of bad input.

use serde_json::Value;

use crate::program::{Place, no_errors, number};

/// Conversations whose prompts outgrow small caches.
fn trace(place: &Place) {
    let talk = ["sessions=12", "sessions_per_s=4", "turns=3", "input_tokens=400", "output_tokens=12"];
    let pauses = ["think_time_s=0.3", "system_prompt_tokens=1536", "system_prompts=4"];
    let set = talk.into_iter().chain(pauses).flat_map(|change| ["--set", change]).collect::<Vec<_>>();
    place.run(&[&["trace", "synth", "multi-turn", "--out", "t.jsonl"][..], &set].concat()).passed();
}

/// Small caches in memory, so that requests reach the tiers below.
const SMALL: [&str; 16] = [
    "run",
    "kv",
    "--model",
    "qwen2.5-7b",
    "--gpu",
    "l40s",
    "--workers",
    "2",
    "--trace",
    "t.jsonl",
    "--set",
    "kv.g1_blocks=8",
    "--load-policy",
    "always",
    "--out",
    "r",
];

/// The sum of `figure` over the rows of a transport.
fn sum(report: &Value, transport: &str, op: &str, figure: &str) -> u64 {
    let operations = report["members"][0]["operations"].as_array().expect("operations").iter();
    operations.filter(|row| row["transport"] == transport && row["op"] == op).map(|row| number(&row[figure])).sum()
}

fn hits(report: &Value) -> [u64; 5] {
    ["g1", "g2", "g3", "g4", "miss"].map(|tier| number(&report["members"][0]["kv"]["hits_by_tier"][tier]))
}

/// Prompt tokens of the trace.
fn prompts(place: &Place) -> u64 {
    let text = std::fs::read_to_string(place.path("t.jsonl")).expect("the trace");
    let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines.filter_map(|request| request["input_length"].as_u64()).sum()
}

#[test]
fn a_drive_is_read_and_written_beside_the_target() {
    let place = Place::new();
    trace(&place);
    let drive = format!("file://{}", place.path("nvme").display());
    let tiers = ["--g3", &drive, "--g3-bytes", "1GiB", "--host-cache", "0B"];
    let report = place.report(&[&SMALL[..], &tiers].concat());
    no_errors(&report);
    let kv = &report["members"][0]["kv"];
    let [g1, g2, g3, g4, miss] = hits(&report);
    assert!(g3 > 0 && g2 == 0, "{:?}", hits(&report));
    assert_eq!(g1 + g2 + g3 + g4 + miss, prompts(&place), "every token of every prompt comes from somewhere");
    // Both have rows of their own, and the machine's books agree with them.
    let flow = &kv["tier_flow"];
    assert_eq!(number(&flow["g3_read_bytes"]), sum(&report, "g3-file", "get", "bytes"));
    assert_eq!(number(&flow["g3_written_bytes"]), sum(&report, "g3-file", "put", "bytes"));
    assert_eq!(number(&kv["stored_bytes"]), sum(&report, "s3-raw", "put", "bytes"));
    assert!(number(&flow["g3_read_bytes"]) > 0 && number(&kv["stored_bytes"]) > 0);
    let rows = report["members"][0]["operations"].as_array().expect("operations");
    for row in rows.iter().filter(|row| row["transport"] == "g3-file") {
        let carrier = row["carrier"].as_str().expect("a carrier");
        assert!(carrier.starts_with("file-"), "{row}");
    }
    // Nothing of it stays.
    let left: Vec<_> = walk(&place.path("nvme"));
    assert!(left.is_empty(), "{left:?}");
}

/// Files below a directory.
fn walk(dir: &std::path::Path) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(dir).expect("a directory").map(|entry| entry.expect("an entry").path());
    entries.flat_map(|path| if path.is_dir() { walk(&path) } else { vec![path] }).collect()
}

#[test]
fn a_small_drive_writes_back_to_the_target_and_a_small_target_deletes() {
    let place = Place::new();
    trace(&place);
    let drive = format!("file://{}", place.path("nvme").display());
    let tiers = ["--g3", &drive, "--g3-bytes", "256MiB", "--host-cache", "128MiB", "--write-policy", "write-back"];
    let report = place.report(&[&SMALL[..], &tiers, &["--g4-bytes", "512MiB"]].concat());
    no_errors(&report);
    let flow = &report["members"][0]["kv"]["tier_flow"];
    let of = |figure: &str| number(&flow[figure]);
    assert!(of("demoted_g3_blocks") > 0 && of("evicted_g3_blocks") > 0 && of("demoted_g4_blocks") > 0, "{flow}");
    assert_eq!(sum(&report, "g3-file", "delete", "count"), of("evicted_g3_blocks"));
    assert_eq!(sum(&report, "s3-raw", "delete", "count"), of("evicted_g4_blocks"));
    assert_eq!(hits(&report).iter().sum::<u64>(), prompts(&place));
}

#[test]
fn a_drive_without_place_or_size_is_refused_with_a_way_out() {
    let place = Place::new();
    for (flags, words) in [
        (&["--g3", "file:///tmp/x"][..], "add --g3-bytes"),
        (&["--g3-bytes", "1GiB"], "add --g3 file:///directory"),
        (&["--g3", "s3://bucket/x", "--g3-bytes", "1GiB"], "write --g3 file:///directory"),
        (&["--set", "kv.g4_evict_ratio=2"], "`g4_evict_ratio` is 2"),
        (&["--set", "kv.write_policy=sometimes"], "write-back"),
    ] {
        let ended = place.run(&[&["run", "kv", "--dry-run"][..], flags].concat());
        assert_eq!(ended.status.code(), Some(2), "{ended:?}");
        assert!(ended.err.contains(words), "{ended:?}");
    }
    let drive = format!("file://{}", place.path("nvme").display());
    let ended = place.run(&["run", "kv", "--g3", &drive, "--g3-bytes", "900TiB", "--out", "r", "--duration", "1s"]);
    assert_eq!(ended.status.code(), Some(2), "{ended:?}");
    assert!(ended.err.contains("use a smaller --g3-bytes or another directory"), "{ended:?}");
}
