//! `run ops`: every operation, over every transport, with counts that an independent log confirms.

use std::fs::File;

use serde_json::Value;

use crate::program::{Place, no_errors, number, operations};

/// Rows of `r/ops.csv.zst` by operation: how many, and their bytes.
fn logged(place: &Place, op: &str) -> (u64, u64) {
    let file = File::open(place.path("r/ops.csv.zst")).expect("an operation log");
    let mut rows = csv::Reader::from_reader(zstd::Decoder::new(file).expect("zstd"));
    let column =
        |name: &str, head: &csv::StringRecord| head.iter().position(|column| column == name).expect("a column");
    let head = rows.headers().expect("a head").clone();
    let (verb, bytes, status) = (column("op", &head), column("bytes", &head), column("status", &head));
    let (mut count, mut sum) = (0, 0);
    for row in rows.records().map(|row| row.expect("a row")).filter(|row| &row[verb] == op) {
        assert_eq!(&row[status], "ok");
        count += 1;
        sum += row[bytes].parse::<u64>().expect("bytes");
    }
    (count, sum)
}

/// The one operation of a report without errors.
fn only<'a>(report: &'a Value, op: &str) -> &'a Value {
    no_errors(report);
    let [operation] = operations(report) else { panic!("one operation: {report}") };
    assert_eq!(operation["op"], op);
    operation
}

/// Reports, issued operations and the log agree to the last operation and byte.
fn counted(op: &str, more: &[&str], count: u64, bytes_each: u64) {
    let place = Place::new();
    let count_text = count.to_string();
    let args = ["run", "ops", "--op", op, "--count", &count_text, "--warm-up", "0s", "--op-log", "--out", "r"];
    let report = place.report(&[&args[..], more].concat());
    let operation = only(&report, op);
    assert_eq!(number(&operation["count"]), count);
    assert_eq!(number(&operation["attempts"]), count);
    assert_eq!(number(&operation["bytes"]), count * bytes_each);
    assert_eq!(logged(&place, op), (count, count * bytes_each));
    for clock in ["service_time", "response_time", "schedule_slip", "first_byte"] {
        assert_eq!(number(&operation[clock]["count"]), count, "{clock}");
    }
    assert!(report["run"]["issued_hash"].is_string(), "a count-bounded run has one");
    assert_eq!(place.json("r/report.json"), report);
}

#[test]
fn gets_are_counted() {
    counted("get", &["--size", "16KiB", "--objects", "50", "--verify", "full"], 600, 16 << 10);
}

#[test]
fn ranged_gets_are_counted() {
    counted("get", &["--size", "64KiB", "--range-size", "4KiB", "--objects", "20"], 400, 4 << 10);
}

#[test]
fn puts_are_counted() {
    counted("put", &["--size", "10000"], 400, 10_000);
}

#[test]
fn stats_lists_and_deletes_are_counted() {
    counted("stat", &["--objects", "50"], 400, 0);
    counted("list", &["--objects", "50"], 100, 0);
    counted("delete", &[], 300, 0);
}

#[test]
fn multipart_writes_are_counted() {
    counted("multipart", &["--size", "12MiB", "--part-size", "5MiB", "--depth", "2"], 4, 12 << 20);
}

#[test]
fn the_other_client_and_file_and_null_targets_count_the_same() {
    counted("get", &["--s3-client", "aws-sdk", "--objects", "30", "--verify", "full"], 200, 4096);
    counted("put", &["--s3-client", "aws-sdk"], 200, 4096);
    counted("get", &["--target", "mem:"], 2000, 4096);
    counted("get", &["--target", "embedded:synth", "--size", "1MiB", "--verify", "full"], 60, 1 << 20);
    let data = Place::new();
    let target = format!("file://{}", data.path("").display());
    for op in ["put", "get", "stat", "delete"] {
        counted(
            op,
            &["--target", &target, "--size", "8KiB", "--objects", "40", "--depth", "4"],
            40,
            match op {
                "put" | "get" => 8192,
                _ => 0,
            },
        );
    }
    let left: Vec<_> = data.names().into_iter().filter(|name| !name.contains("gpufeed")).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_mix_of_operations_keeps_its_shares() {
    let place = Place::new();
    let mix = ["--op", "get=50,put=30,stat=15,delete=5", "--count", "2000", "--warm-up", "0s", "--objects", "500"];
    let report = place.report(&[&["run", "ops", "--out", "r"][..], &mix].concat());
    no_errors(&report);
    let count = |op: &str| {
        let found = operations(&report).iter().find(|operation| operation["op"] == op);
        number(&found.unwrap_or_else(|| panic!("no {op}: {report}"))["count"])
    };
    let counts = ["get", "put", "stat", "delete"].map(count);
    assert_eq!(counts.iter().sum::<u64>(), 2000);
    for (count, share) in counts.into_iter().zip([0.5, 0.3, 0.15, 0.05_f64]) {
        // Six standard deviations of a binomial.
        let slack = 6.0 * (2000.0 * share * (1.0 - share)).sqrt();
        assert!((count as f64 - 2000.0 * share).abs() < slack, "{counts:?}");
    }
}

#[test]
fn timed_runs_measure_their_window_only() {
    let place = Place::new();
    let args = ["run", "ops", "--duration", "1s", "--warm-up", "200ms", "--op-log", "--out", "r", "--objects", "50"];
    let report = place.report(&args);
    let operation = only(&report, "get");
    let (count, rows) = (number(&operation["count"]), logged(&place, "get").0);
    assert!(count > 0 && rows > count, "{rows} rows, {count} in the window: warm-up is logged, not measured");
    assert_eq!(report["run"]["duration_s"], 1.0);
    assert_eq!(report["run"]["warm_up_s"], 0.2);
    assert_eq!(number(&operation["bytes"]), count * 4096);
    let completed: u64 = report["members"][0]["series"]["points"]
        .as_array()
        .expect("a series")
        .iter()
        .map(|point| number(&point["ops"]))
        .sum();
    let rate = operation["ops_per_s"].as_f64().expect("a rate");
    assert!((completed as f64 - rate).abs() < 0.5, "{completed} completed within 1 s, {rate}/s");
    for file in ["latency.hlog", "intervals.csv", "plan.toml", "report.html"] {
        assert!(place.path(&format!("r/{file}")).metadata().expect(file).len() > 100, "{file}");
    }
    assert!(std::fs::read_to_string(place.path("r/latency.hlog")).expect("a log").starts_with('#'));
}

#[test]
fn an_open_loop_offers_its_rate() {
    let place = Place::new();
    let args = ["run", "ops", "--rate", "200", "--arrivals", "constant", "--duration", "2s", "--warm-up", "0s"];
    let report = place.report(&[&args[..], &["--out", "r", "--objects", "20"]].concat());
    let operation = only(&report, "get");
    assert_eq!(report["members"][0]["load"], serde_json::json!({"kind": "open", "offered_per_s": 200.0}));
    let count = number(&operation["count"]);
    assert!((399..=401).contains(&count), "{count} arrivals of 200/s in 2 s");
}

#[test]
fn sweeps_have_a_member_for_each_size_and_depth() {
    let place = Place::new();
    let args = ["run", "ops", "--size", "4KiB,uniform(1KiB,2KiB)", "--depth", "1,4", "--count", "60", "--out", "r"];
    let report = place.report(&args);
    no_errors(&report);
    let members = report["members"].as_array().expect("members");
    let names: Vec<&str> = members.iter().filter_map(|member| member["name"].as_str()).collect();
    assert_eq!(names.len(), 4);
    assert!(names.contains(&"ops-4KiB-x1") && names.contains(&"ops-4KiB-x4"), "{names:?}");
    for (name, member) in names.iter().zip(members) {
        assert_eq!(number(&member["operations"][0]["count"]), 60);
        assert!(place.path(&format!("r/{name}.latency.hlog")).exists());
    }
    assert_eq!(number(&members[0]["operations"][0]["bytes"]), 60 * 4096);
}
