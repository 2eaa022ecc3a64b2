//! The trap, on the wall clock: storage slower than break-even that must be loaded from keeps an emulated GPU busy,
//! nearly all of it decode, and is of little use. The same against storage that keeps up, beside it. Both runs' books
//! balance.

use std::fmt::Write as _;
use std::process::{Command, Stdio};

use serde_json::Value;

/// Prompts of 2,048 tokens: all once, to be stored, then again from 4.5 s on, faster than the GPU serves them, with
/// answers of 100 tokens. Computing one takes about 50 ms.
const PROMPTS: u64 = 40;

fn trace() -> String {
    let mut lines = String::new();
    for (start_ms, gap_ms, output) in [(0, 60, 1), (4500, 50, 100)] {
        for i in 0..PROMPTS {
            let (at, ids) = (start_ms + i * gap_ms, (4 * i..4 * i + 4).collect::<Vec<_>>());
            writeln!(lines, r#"{{"timestamp":{at},"input_length":2048,"output_length":{output},"hash_ids":{ids:?}}}"#)
                .expect("memory takes it");
        }
    }
    lines
}

/// A run against storage whose reads take `latency`; six prompts fit in GPU memory at a time.
fn run(latency: &str) -> Value {
    let dir = tempfile::TempDir::new().expect("a temporary directory");
    std::fs::write(dir.path().join("trace.jsonl"), trace()).expect("a file");
    let output = Command::new(env!("CARGO_BIN_EXE_gpufeed"))
        .args(["run", "kv", "--target", "embedded:synth", "--shape", &format!("get:latency={latency}")])
        .args(["--trace", "trace.jsonl", "--workers", "1", "--load-policy", "always", "--warm-up", "4s"])
        .args(["--model", "llama-3.1-8b", "--gpu", "h100-sxm", "--format", "json", "--out", "out", "--quiet"])
        .args(["--set", "kv.g1_blocks=24", "--set", "kv.g2_bytes=0", "--set", "kv.bytes_scale=0.001"])
        .current_dir(dir.path())
        .env("HOME", dir.path())
        .env("XDG_CACHE_HOME", dir.path())
        .stdin(Stdio::null())
        .output()
        .expect("the program starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("a report")
}

fn books_balance(report: &Value) {
    let status = |check: &str| {
        let checks = report["validity"].as_array().expect("checks");
        let found = checks.iter().find(|v| v["check"] == format!("kv: {check}"));
        found.unwrap_or_else(|| panic!("no {check}"))["status"].as_str().expect("text").to_owned()
    };
    assert_eq!(status("gpu-time-partition"), "ok");
    assert_eq!(status("requests"), "ok");
    // The start of the window may fall between two clocks, never further from an operation's own.
    assert!(["ok", "note"].contains(&status("wire-read").as_str()));
    assert!(["ok", "warn"].contains(&status("schedule-slip").as_str()));
}

#[test]
fn storage_slower_than_break_even_looks_busy_decoding_and_is_of_little_use() {
    let (slow, fast) = std::thread::scope(|scope| {
        let slow = scope.spawn(|| run("800ms"));
        let fast = run("1ms");
        (slow.join().expect("a run"), fast)
    });
    let figure = |report: &Value, key: &str| report["members"][0]["kv"]["gpu"][key].as_f64().expect("a ratio");
    for report in [&slow, &fast] {
        books_balance(report);
        assert_eq!(report["members"][0]["kv"]["completed"], PROMPTS);
        assert!(figure(report, "busy_ratio") > 0.7, "both look busy");
        assert!(figure(report, "decode_ratio") / figure(report, "busy_ratio") > 0.85, "and decode");
    }
    let [slow_useful, fast_useful] = [&slow, &fast].map(|report| figure(report, "useful_ratio"));
    assert!(fast_useful > 0.75 && slow_useful < 0.75 * fast_useful, "{slow_useful} against {fast_useful}");
    let starved = |report| figure(report, "storage_starved_ratio");
    assert!(starved(&slow) > 2.0 * starved(&fast), "{} against {}", starved(&slow), starved(&fast));
    // Every load lay on the wrong side, and the report says so.
    let wrong = &slow["members"][0]["kv"]["load"]["break_even_wrong"];
    assert!(wrong["loaded"].as_u64() > Some(20), "{wrong}");
    assert_eq!(wrong["loaded_slower"], wrong["loaded"], "800 ms against 50 ms of compute");
}
