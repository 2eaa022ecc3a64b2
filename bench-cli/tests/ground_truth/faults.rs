//! Injected errors and wrong bodies: counted by a run exactly as often as the server's access log has them.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use gpufeed_profiles::units::Bytes;
use gpufeed_server::Server;
use gpufeed_server::config::{AccessLog, Config, Key, LogFormat, StoreKind};
use serde_json::Value;

use super::support::{Run, run_with};

const BYTES: u64 = 16 << 10;

/// GETs of a run against a server of this shape, and the access log's count of them by (status, fault).
fn counted(shape: &str, args: &[&str]) -> (Run, BTreeMap<(String, String), u64>) {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("access.csv");
    let key = Key { access_key: "tester".into(), secret_key: "a-secret-for-tests".into() };
    let server = Server::start(Config {
        s3: SocketAddr::from(([127, 0, 0, 1], 0)),
        keys: vec![key.clone()],
        buckets: vec!["data".into()],
        store: StoreKind::Mem { capacity: Bytes(64 << 20) },
        shape: vec![shape.into()],
        shape_seed: 7,
        access_log: Some(AccessLog { path: path.clone(), format: LogFormat::Csv }),
        ..Config::default()
    })
    .expect("the server starts");
    let url = format!("http://{}", server.s3_addr);
    let base = ["ops", "--target", "s3://data/x", "--endpoint-url", &url, "--size", "16KiB", "--depth", "8"];
    let env = [
        ("AWS_ACCESS_KEY_ID", key.access_key.as_str()),
        ("AWS_SECRET_ACCESS_KEY", &key.secret_key),
        ("AWS_REGION", "us-east-1"),
    ];
    let run = run_with(&[&base[..], args].concat(), &env);
    server.shutdown(Duration::from_secs(10));
    let mut reader = csv::Reader::from_path(&path).expect("a log");
    let mut counts = BTreeMap::new();
    for line in reader.deserialize::<BTreeMap<String, String>>() {
        let line = line.expect("a line of the log");
        if line["op"] == "get" {
            // What the log says was sent agrees with what it says went wrong.
            let sent: u64 = line["bytes"].parse().expect("bytes");
            match line["fault"].as_str() {
                "" | "corrupt" => assert_eq!(sent, BYTES),
                "short" => assert!(sent < BYTES),
                fault => assert_eq!(fault, "error"),
            }
            *counts.entry((line["status"].clone(), line["fault"].clone())).or_insert(0u64) += 1;
        }
    }
    (run, counts)
}

/// Errors by kind, and successes, as the report has them and as the log has them.
fn agree(run: &Run, log: &BTreeMap<(String, String), u64>, kinds: &[(&str, &str, &str)]) {
    let op = run.op("get");
    let of = |status: &str, fault: &str| log.get(&(status.to_owned(), fault.to_owned())).copied().unwrap_or(0);
    for (status, fault, kind) in kinds {
        let injected = of(status, fault);
        assert!(injected > 0, "nothing was injected: {log:?}");
        assert_eq!(op["errors"][kind], injected, "{kind}: {op}");
    }
    assert_eq!(op["count"], of("200", ""), "successes: {op}");
    let errors: u64 = op["errors"].as_object().expect("kinds").values().filter_map(Value::as_u64).sum();
    assert_eq!(op["count"].as_u64().expect("a count") + errors, log.values().sum::<u64>(), "nothing else happened");
    assert_eq!(op["errors"].as_object().map(serde_json::Map::len), Some(kinds.len()), "{op}");
}

#[test]
fn errors_are_counted_by_kind_and_are_no_successes() {
    for (shape, status, kind) in [("get:errors=5%", "503", "throttled"), ("get:errors=5%:500", "500", "server")] {
        let (run, log) = counted(shape, &["--count", "1500"]);
        agree(&run, &log, &[(status, "error", kind)]);
        assert_eq!(log.values().sum::<u64>(), 1500);
        assert_eq!(run.op("get")["bytes"], run.op("get")["count"].as_u64().expect("a count") * BYTES);
    }
}

#[test]
fn retries_are_attempts_the_server_has_seen() {
    let (run, log) = counted("get:errors=20%", &["--count", "1000", "--retries", "20"]);
    let op = run.op("get");
    assert_eq!((op["count"].as_u64(), op["errors"].as_object().map(serde_json::Map::len)), (Some(1000), Some(0)));
    assert_eq!(op["attempts"], log.values().sum::<u64>());
    assert!(log[&("503".to_owned(), "error".to_owned())] > 100, "{log:?}");
}

#[test]
fn wrong_and_short_bodies_are_found_each_time() {
    let shape = "get:corrupt=4%,get:short=3%,get:errors=2%";
    let (run, log) = counted(shape, &["--count", "1500", "--verify", "full"]);
    let kinds = [("200", "corrupt", "corrupt"), ("200", "short", "short-body"), ("503", "error", "throttled")];
    agree(&run, &log, &kinds);
    assert_eq!(log.values().sum::<u64>(), 1500);
}

/// Without verification a wrong byte goes unnoticed, and the report must not say otherwise.
#[test]
fn what_is_not_checked_is_not_found() {
    let (run, log) = counted("get:corrupt=4%", &["--count", "500", "--verify", "off"]);
    assert!(log[&("200".to_owned(), "corrupt".to_owned())] > 0, "{log:?}");
    assert_eq!((run.op("get")["count"].as_u64(), log.values().sum::<u64>()), (Some(500), 500));
}
