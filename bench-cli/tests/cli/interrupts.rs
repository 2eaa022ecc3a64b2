//! Ends that nobody planned: Ctrl-C, a killed server, a killed parent. What was measured is reported and marked.

use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::program::{Place, Running, Server, children, failures, gone, number, operations, signal, target, until};

/// A run that lasts far longer than any test.
fn long(command: &mut Command, more: &[&str]) -> Running {
    command.args(["run", "ops", "--duration", "300s", "--warm-up", "0s", "--objects", "64", "--out", "r"]);
    Running::start(command.args(more))
}

/// The partial report of a run cut short after it had measured something.
fn partial(place: &Place) -> Value {
    let report = place.json("r/report.json");
    assert_eq!(report["interrupted"], true);
    assert!(number(&operations(&report)[0]["count"]) > 0, "{report}");
    let html = std::fs::read_to_string(place.path("r/report.html")).expect("a page");
    assert!(html.to_lowercase().contains("interrupted"));
    report
}

fn drains_after(name: &str) {
    let place = Place::new();
    let run = long(&mut place.gpufeed(), &[]);
    let server = run.embedded();
    run.measures(&place.path("r"), server);
    let asked = Instant::now();
    run.signal(name);
    let ended = run.end();
    assert!(asked.elapsed() < Duration::from_secs(20), "{:?}", asked.elapsed());
    ended.said(1, &["interrupted", "once more ends at once"]);
    assert!(ended.out.contains("Interrupted"), "{}", ended.out);
    let report = partial(&place);
    assert!(failures(&report).is_empty(), "{:?}", failures(&report));
    assert_eq!(operations(&report)[0]["errors"], serde_json::json!({}), "in flight is let finish");
    assert!(gone(server), "the embedded server is still there");
}

#[test]
fn ctrl_c_drains_and_reports() {
    drains_after("INT");
}

#[test]
fn sigterm_drains_and_reports() {
    drains_after("TERM");
}

/// A stalled target keeps the drain going, until the user has had enough.
#[test]
fn a_second_ctrl_c_ends_at_once() {
    let place = Place::new();
    let run = long(&mut place.gpufeed(), &["--shape", "get:stall=250s@500ms", "--op-timeout", "200s"]);
    let server = run.embedded();
    until("measurement", || place.path("r/latency.hlog").exists().then_some(()));
    // Nothing completes from here on: an idle server means that everything in flight is held.
    let held = || crate::program::cpu_ticks(server).expect("a server");
    until("a stall", || {
        let before = held();
        std::thread::sleep(Duration::from_millis(700));
        (held() == before).then_some(())
    });
    run.signal("INT");
    let asked = Instant::now();
    // The first one is taken note of before the second one comes.
    until("a word", || run.err.try_recv().ok()?.contains("interrupted").then_some(()));
    run.signal("INT");
    let ended = run.end();
    assert!(asked.elapsed() < Duration::from_secs(10));
    ended.said(1, &["ended at once"]);
    until("the server's end", || gone(server).then_some(()));
}

#[test]
fn a_server_that_dies_ends_the_run_soon_with_a_partial_report() {
    let place = Place::new();
    let mut server = Server::start(&place, &[]);
    let run = long(&mut server.client(&place), &["--target", &target()]);
    run.measures(&place.path("r"), server.running.child.id());
    server.running.child.kill().expect("kill");
    let ended = run.end();
    assert_eq!(ended.status.code(), Some(1), "{}", ended.err);
    assert!(ended.err.contains("the target stopped answering"), "{}", ended.err);
    assert!(ended.took < Duration::from_secs(45), "{:?}", ended.took);
    let report = partial(&place);
    assert!(report["members"][0]["operations"][0]["errors"]["connect"].as_u64() > Some(0), "{report}");
}

#[test]
fn an_embedded_server_that_dies_ends_the_run_soon_with_a_partial_report() {
    let place = Place::new();
    let run = long(&mut place.gpufeed(), &[]);
    let server = run.embedded();
    run.measures(&place.path("r"), server);
    signal(server, "KILL");
    let ended = run.end();
    ended.said(1, &["the target stopped answering", "partial"]);
    partial(&place);
}

#[test]
fn an_embedded_server_ends_with_a_killed_parent() {
    let place = Place::new();
    let mut run = long(&mut place.gpufeed(), &[]);
    let server = run.embedded();
    run.measures(&place.path("r"), server);
    assert_eq!(children(run.child.id()), [server]);
    run.child.kill().expect("kill");
    run.child.wait().expect("the end");
    until("the server's end", || gone(server).then_some(()));
}

#[test]
fn serve_ends_when_told_to() {
    for name in ["INT", "TERM"] {
        let place = Place::new();
        let server = Server::start(&place, &[]);
        server.running.signal(name);
        let ended = server.running.end().passed();
        assert!(ended.took < Duration::from_secs(15), "{:?}", ended.took);
    }
}
