//! Proofs that take minutes: `ci/nightly` runs them in a release build.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::stall::Stall;
use super::support::{GPUFEED, alone, run};

/// 1 s every 10 s, 200 arrivals per second, six whole periods: 12,000 operations.
#[test]
#[ignore = "two minutes"]
fn nightly_a_second_of_stall_in_ten() {
    let stall = Stall { length_ms: 1000.0, period_ms: 10_000.0, latency_ms: 1.0, rate_per_s: 200.0 };
    let args = [
        "ops",
        "--size",
        "4KiB",
        "--rate",
        "200",
        "--arrivals",
        "constant",
        "--depth",
        "512",
        "--objects",
        "64",
        "--warm-up",
        "10s",
        "--duration",
        "60s",
        "--verify",
        "off",
    ];
    stall.holds(&args, &[("p50_ns", 0.5), ("p99_ns", 0.99), ("p999_ns", 0.999)], 3);
}

/// Resident memory of a process, in KiB.
fn resident_kib(process: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().trim_end_matches("kB").trim().parse().ok()
}

/// Memory of client and server after a fifth of the run, and at its end: within 3% and 1 MiB. Nothing is written, since a
/// store that gets more objects than it loses grows, as it should.
#[test]
#[ignore = "ten minutes"]
fn nightly_memory_is_flat() {
    let minutes = std::env::var("GPUFEED_NIGHTLY_MINUTES").ok().and_then(|text| text.parse().ok()).unwrap_or(10.0);
    let length = Duration::from_secs_f64(60.0 * minutes);
    let dir = tempfile::tempdir().expect("a directory");
    let duration = format!("{}s", length.as_secs());
    let mut client = Command::new(GPUFEED)
        .args(["run", "ops", "--op", "get=70,stat=30", "--size", "mix(90%:4KiB,10%:64KiB)", "--depth", "16"])
        .args(["--warm-up", "1s", "--duration", &duration, "--quiet", "--format", "json", "--out"])
        .arg(dir.path().join("report"))
        .stdout(Stdio::null())
        .spawn()
        .expect("the program starts");
    let began = Instant::now();
    let children = format!("/proc/{0}/task/{0}/children", client.id());
    let mut early = None;
    let mut last = None;
    // Memory is looked at every second, for as long as the run lasts: this test is about time passing.
    while client.try_wait().expect("a child").is_none() {
        std::thread::sleep(Duration::from_secs(1));
        let server = std::fs::read_to_string(&children).unwrap_or_default();
        let server = server.split_ascii_whitespace().next().and_then(|id| id.parse().ok()).and_then(resident_kib);
        let now = resident_kib(client.id()).zip(server);
        let share = began.elapsed().as_secs_f64() / length.as_secs_f64();
        if share >= 0.2 && early.is_none() {
            early = now;
        }
        if share <= 1.0 {
            last = now.or(last);
        }
    }
    assert!(client.wait().expect("a child").success());
    let (early, last) = (early.expect("looked at"), last.expect("looked at"));
    for (who, early, last) in [("client", early.0, last.0), ("server", early.1, last.1)] {
        assert!(last as f64 <= 1.03 * early as f64 + 1024.0, "{who}: {early} KiB after a fifth, {last} KiB at the end");
    }
}

/// Ten million operations: their page is made in under 2 s and weighs under 2 MB.
#[test]
#[ignore = "a release build's figure"]
fn nightly_a_report_of_ten_million_operations() {
    let _turn = alone();
    let run = run(&["ops", "--target", "mem:", "--size", "4KiB", "--depth", "16", "--count", "10000000"]);
    assert_eq!(run.op("get")["count"], 10_000_000);
    let page = run.out().join("again.html");
    let began = Instant::now();
    let status = Command::new(GPUFEED)
        .args(["report", "--format", "html", "--out"])
        .args([&page, &run.out()])
        .status()
        .expect("the program starts");
    let took = began.elapsed();
    assert!(status.success() && took < Duration::from_secs(2), "{status} after {took:?}");
    let bytes = std::fs::metadata(&page).expect("a page").len();
    assert!(bytes < 2_000_000, "{bytes} bytes");
}
