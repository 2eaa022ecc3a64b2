//! Injected latency, closed and open loop, and the same plan on the virtual clock.

use gpufeed::plan::SpecPlan;
use gpufeed_engine::Settings;
use gpufeed_engine::simulated::{self, StorageModel};
use gpufeed_engine::watch::Watch;
use gpufeed_profiles::storage::Shape;
use gpufeed_workloads::ops::Ops;

use super::support::{Least, MS, PERCENTILES, alone, run, shaped, tolerance_ns};

/// Rounds at most.
const ROUNDS: usize = 12;
/// What a histogram of three digits, and time stamps taken on both sides of a send, may take from an injected latency.
const FLOOR: f64 = 0.998;

/// Rounds of control and shaped runs, one after the other, until the percentiles are where they should be. Where they are
/// not at once, the control is also run with a fifth of the latency, which says what a delayed answer costs this machine
/// beside its delay: an error in proportion to the latency would be five times as large in the run itself.
fn agrees(control: &[&str], args: &[&str], shape: &str, injected: f64) {
    let _turn = alone();
    let (mut without, mut with, mut probe) = (Least::NONE, Least::NONE, Least::NONE);
    let fifth = injected / 5.0;
    let mut off = Vec::new();
    for _ in 0..ROUNDS {
        without.add(&run(control));
        let run = shaped(args, shape);
        assert!(run.op("get")["errors"].as_object().is_some_and(serde_json::Map::is_empty), "{}", run.op("get"));
        // Holds in every round, however busy the machine: nobody answers before the injected time is over.
        for clock in ["response_time", "service_time", "first_byte"] {
            let min = run.get([clock, "min_ns"]);
            assert!(min >= FLOOR * injected, "{clock}: {min} ns is less than the injected {injected}");
        }
        with.add(&run);
        let injected = [injected; PERCENTILES.len()];
        if with.off(&without, injected, Least::FREE_WAKING).is_empty() {
            return;
        }
        probe.add(&shaped(control, &latency(fifth)));
        off = with.off(&without, injected, probe.waking(&without, fifth));
        if off.is_empty() {
            return;
        }
    }
    panic!("{shape}: {}", off.join("; "));
}

/// The shape of a constant latency.
fn latency(ns: f64) -> String {
    format!("get:latency={ns}ns")
}

/// One client: a second would find the control's server busy with the first, and the shaped one's idle.
const CLOSED: [&str; 9] = ["ops", "--size", "4KiB", "--depth", "1", "--objects", "64", "--verify", "off"];
/// The rate leaves both programs idle most of the time in a debug build too.
const OPEN: [&str; 13] = [
    "ops",
    "--size",
    "4KiB",
    "--rate",
    "100",
    "--arrivals",
    "constant",
    "--objects",
    "64",
    "--depth",
    "32",
    "--verify",
    "off",
];

fn with<'a>(args: &[&'a str], count: &'a str) -> Vec<&'a str> {
    [args, &["--count", count]].concat()
}

/// An unshaped run at the pace that a closed loop of one has when operations take `1 / rate`: both programs sleep between
/// two operations as long as they do there.
fn paced<'a>(rate: &'a str, count: &'a str) -> Vec<&'a str> {
    let mut args = with(&OPEN, count);
    let place = args.iter().position(|&arg| arg == "--rate").expect("an open loop");
    args[place + 1] = rate;
    args
}

#[test]
fn five_milliseconds_in_a_closed_loop() {
    agrees(&paced("200", "250"), &with(&CLOSED, "250"), "get:latency=5ms", 5.0 * MS);
}

#[test]
fn five_milliseconds_in_an_open_loop() {
    let args = with(&OPEN, "150");
    agrees(&args, &args, "get:latency=5ms", 5.0 * MS);
}

/// Here the tolerance is 2%, 1 ms.
#[test]
fn fifty_milliseconds_in_a_closed_and_an_open_loop() {
    agrees(&paced("20", "100"), &with(&CLOSED, "100"), "get:latency=50ms", 50.0 * MS);
    let args = with(&OPEN, "150");
    agrees(&args, &args, "get:latency=50ms", 50.0 * MS);
}

#[test]
fn a_few_slow_ones_leave_the_median_and_the_ninetieth_alone() {
    let shape = "get:latency=mix(98%:1ms,2%:20ms)";
    agrees(&paced("500", "500"), &with(&CLOSED, "500"), shape, MS);
    let args = with(&OPEN, "150");
    agrees(&args, &args, shape, MS);
}

/// The slow ones themselves: as many as the shape draws, whatever the machine does.
#[test]
fn the_slow_ones_are_seen() {
    let _turn = alone();
    let mut p99 = f64::INFINITY;
    for _ in 0..ROUNDS {
        let run = shaped(&with(&CLOSED, "1000"), "get:latency=mix(95%:1ms,5%:20ms)");
        let slow = run.get(["service_time", "p99_ns"]);
        assert!(slow >= FLOOR * 20.0 * MS, "p99 is {slow} ns where one in twenty takes 20 ms");
        p99 = p99.min(slow);
        if p99 <= 20.0 * MS + 4.0 * tolerance_ns(20.0 * MS) {
            return;
        }
    }
    panic!("p99 is {p99} ns where one in twenty takes 20 ms");
}

/// The plan of a wall run, played on the virtual clock against the same shape and seed: the difference is what this
/// machine costs, which the control says.
#[test]
fn wall_and_virtual_clock_agree() {
    let _turn = alone();
    let shape = "get:latency=lognormal(10ms,0.2)";
    let args = with(&CLOSED, "300");
    let (mut control, mut wall, mut probe) = (Least::NONE, Least::NONE, Least::NONE);
    let mut off = Vec::new();
    for _ in 0..ROUNDS {
        let pace = paced("100", "300");
        control.add(&run(&pace));
        let run = shaped(&args, shape);
        let plan = run.plan();
        let SpecPlan::Ops(spec) = &plan.members[0].spec else { panic!("{:?}", plan.members[0].spec) };
        let machine = Ops::split(spec, 1).expect("a machine").remove(0);
        let storage = StorageModel::new(&Shape::parse(&[shape]).expect("a shape"), plan.seed, None);
        let settings = Settings { duration: None, seed: plan.seed, ..Settings::default() };
        let played = simulated::run(&settings, storage, machine, &Watch::new()).expect("runs");
        assert_eq!(run.op("get")["count"], played.operations[0].count);
        assert_eq!(run.report["run"]["plan_hash"], *played.plan_hash, "the same operations");
        let model = &played.operations[0].service_time.summary;
        let (p50, p90) = (model.p50_ns.expect("enough") as f64, model.p90_ns.expect("enough") as f64);
        wall.add(&run);
        assert!(run.get(["service_time", "p50_ns"]) >= FLOOR * p50, "less than in the model: {}", run.op("get"));
        // Of a distribution, the least operation is one draw; the percentiles are what is compared.
        let least = model.min_ns.expect("some") as f64;
        assert!(run.get(["service_time", "min_ns"]) >= FLOOR * least, "less than in the model: {}", run.op("get"));
        let differ = |waking| {
            let mut off = wall.off(&control, [p50, p90, p50, p90], waking);
            off.retain(|what| !what.starts_with("the least"));
            off
        };
        if differ(Least::FREE_WAKING).is_empty() {
            return;
        }
        probe.add(&shaped(&pace, &latency(2.0 * MS)));
        off = differ(probe.waking(&control, 2.0 * MS));
        if off.is_empty() {
            return;
        }
    }
    panic!("wall and model differ: {}", off.join("; "));
}
