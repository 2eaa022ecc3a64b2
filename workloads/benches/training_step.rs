//! What one read of a training run costs the machine: a completion in, whatever it starts out. 500 accelerators.

use std::collections::VecDeque;
use std::io::Write as _;
use std::time::{Duration, Instant};

use gpufeed_workloads::machine::{Actions, Event, Machine, Submit};
use gpufeed_workloads::op::{Carrier, Outcome, Tick};
use gpufeed_workloads::training::{LoaderKind, Training, TrainingSpec};

const READS: u64 = 3_000_000;

fn nanos_per_read(spec: TrainingSpec) -> f64 {
    let mut training = Training::new(spec).expect("runs");
    let mut out = Actions::default();
    let mut flight: VecDeque<Submit> = VecDeque::new();
    let mut wake = None;
    let mut now = Tick(0);
    training.step(now, Event::Start, &mut out);
    let begin = Instant::now();
    let mut reads = 0;
    while reads < READS {
        flight.extend(out.drain_submits());
        wake = out.drain_wakes().last().or(wake);
        now = Tick(now.0 + 10);
        match flight.pop_front() {
            Some(submit) => {
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
                training.step(now, Event::Done { tag: submit.tag, op: &submit.op, outcome: &outcome }, &mut out);
                reads += 1;
            }
            None => {
                let (at, tag) = wake.take().expect("a step under way");
                now = now.max(at);
                training.step(now, Event::Due { at, tag }, &mut out);
            }
        }
    }
    begin.elapsed().as_nanos() as f64 / READS as f64
}

fn main() {
    let cosmoflow = TrainingSpec {
        model: "cosmoflow".into(),
        accelerator: "h100".into(),
        accelerators: 500,
        files: 524_288,
        samples_per_file: 1,
        sample_bytes: 2_828_486.0,
        sample_bytes_sigma: 71_311.0,
        batch: 1,
        compute: Duration::from_micros(3500),
        loader: LoaderKind::Pytorch,
        readers: 4,
        prefetch: 2,
        shuffle: true,
        epochs: None,
        au_threshold_ratio: 0.7,
        prefix: String::new(),
        suffix: String::new(),
        seed: 42,
    };
    let resnet50 = TrainingSpec {
        files: 1024,
        samples_per_file: 1251,
        sample_bytes: 114_660.07,
        sample_bytes_sigma: 0.0,
        batch: 400,
        loader: LoaderKind::Tensorflow,
        readers: 8,
        ..cosmoflow.clone()
    };
    for (name, spec) in [("cosmoflow, batch 1", cosmoflow), ("resnet50, batch 400", resnet50)] {
        let best = (0..3).map(|_| nanos_per_read(spec.clone())).fold(f64::INFINITY, f64::min);
        writeln!(std::io::stdout(), "{name:<24}{best:8.1} ns per read").expect("standard output");
    }
}
