//! What one operation of plain load costs the machine: a completion in, the next submission out.

use std::io::Write as _;
use std::time::Instant;

use gpufeed_workloads::machine::{Actions, Event, Machine, Submit};
use gpufeed_workloads::op::{Carrier, Outcome, Tick};
use gpufeed_workloads::ops::{Mix, Ops, OpsSpec, Popularity};
use gpufeed_workloads::schedule::Load;

const OPERATIONS: u64 = 5_000_000;

fn nanos_per_step(spec: &OpsSpec) -> f64 {
    let mut ops = Ops::split(spec, 1).expect("runs").remove(0);
    let mut out = Actions::default();
    let mut now = Tick(0);
    ops.step(now, Event::Start, &mut out);
    let mut flight: std::collections::VecDeque<Submit> = out.drain_submits().collect();
    let begin = Instant::now();
    for _ in 0..OPERATIONS {
        let submit = flight.pop_front().expect("a closed loop without an end");
        now = Tick(now.0 + 1);
        let outcome = Outcome {
            intended: submit.intended,
            sent: submit.intended,
            first_byte: now,
            done: now,
            carrier: Carrier::Null,
            bytes: submit.op.bytes,
            attempts: 1,
            result: Ok(()),
        };
        ops.step(now, Event::Done { tag: submit.tag, op: &submit.op, outcome: &outcome }, &mut out);
        flight.extend(out.drain_submits());
    }
    begin.elapsed().as_nanos() as f64 / OPERATIONS as f64
}

fn main() {
    let with = |mix: &str, popularity| OpsSpec {
        popularity,
        load: Load::Closed { depth: 16 },
        objects: 1_000_000,
        ..OpsSpec::new(mix.parse::<Mix>().expect("a mix"))
    };
    let cases = [
        ("get, uniform", with("get", Popularity::Uniform)),
        ("get, zipf(0.99)", with("get", Popularity::Zipf(0.99))),
        ("mixed, uniform", with("mixed", Popularity::Uniform)),
        (
            "get, lognormal sizes",
            OpsSpec { sizes: "lognormal(1MiB,0.5)".parse().expect("sizes"), ..with("get", Popularity::Uniform) },
        ),
    ];
    for (name, spec) in cases {
        let best = (0..3).map(|_| nanos_per_step(&spec)).fold(f64::INFINITY, f64::min);
        writeln!(std::io::stdout(), "{name:<24}{best:8.1} ns per operation").expect("standard output");
    }
}
