//! Checks of a KV run against itself: what the machine says it did, held against what was recorded of it.

use gpufeed_profiles::units::show_nanos;
use gpufeed_schema::{GpuTime, Kv, KvWire, Member, Validity, ValidityStatus};

use crate::figures::{count, percent, size};

/// Share of unfinished requests from which the window's end distorts latencies.
const CUT_OFF: f64 = 0.05;
/// Differences on the wire that the ends of a window explain: both sides look at the clock by themselves, so an
/// operation that starts within microseconds of a cut may fall on either side.
const EDGE_OBJECTS: u64 = 8;
/// Slip that distorts no iteration: tenths of a millisecond are below any model's iteration.
const SLIP_ALLOWED_NS: u64 = 2_000_000;

/// Every check of a member with a KV section whose target is reached by `transport`; none for others.
#[must_use]
pub fn kv(member: &Member, transport: &str) -> Vec<Validity> {
    let Some(kv) = &member.kv else { return Vec::new() };
    let mut checks = vec![partition(kv), requests(kv)];
    checks.extend(wire(member, kv, transport));
    checks.extend(slip(member));
    checks.extend(cut_off(kv));
    checks.extend(overload(kv));
    checks
}

/// The cells of a partition, in the order of the report.
fn cells(gpu: &GpuTime) -> [u64; 7] {
    [
        gpu.prefill_ns,
        gpu.recompute_ns,
        gpu.decode_ns,
        gpu.storage_stall_ns,
        gpu.transfer_stall_ns,
        gpu.no_work_ns,
        gpu.down_ns,
    ]
}

/// Cells sum to the total, to the nanosecond; steps of the time line are whole.
fn partition(kv: &Kv) -> Validity {
    let all: u128 = cells(&kv.gpu).iter().map(|&ns| u128::from(ns)).sum();
    let worst = kv
        .timeline
        .iter()
        .map(|p| {
            let of_step = p.prefill_ratio
                + p.recompute_ratio
                + p.decode_ratio
                + p.storage_stall_ratio
                + p.transfer_stall_ratio
                + p.no_work_ratio
                + p.down_ratio;
            (of_step - 1.0).abs()
        })
        .fold(0.0, f64::max);
    let exact = all == u128::from(kv.gpu.total_ns) && worst < 1e-6;
    let mut detail = format!("cells sum to {} of {}", show_nanos(all as f64), show_nanos(kv.gpu.total_ns as f64));
    if worst >= 1e-6 {
        detail.push_str(&format!("; a step of the time line is off by {}", percent(worst)));
    }
    Validity::new("gpu-time-partition", status(exact), detail)
}

/// Requests in = completed + failed + unfinished, where each is counted by itself.
fn requests(kv: &Kv) -> Validity {
    let accounted = [kv.completed, kv.failed, kv.unfinished].iter().map(|&n| u128::from(n)).sum::<u128>();
    let detail = format!(
        "{} requests arrived: {} completed, {} failed, {} unfinished",
        count(kv.requests),
        count(kv.completed),
        count(kv.failed),
        count(kv.unfinished)
    );
    Validity::new("requests", status(accounted == u128::from(kv.requests)), detail)
}

/// Blocks × bytes = bytes of the operations, both ways.
fn wire(member: &Member, kv: &Kv, transport: &str) -> Vec<Validity> {
    let KvWire {
        object_bytes,
        objects_read,
        objects_written,
        beside_read_bytes,
        beside_written_bytes,
        layer_reads,
        layer_read_bytes,
    } = kv.wire;
    // A second target, such as a local drive, has rows of its own.
    let carried = |op: &str| -> u64 {
        member.operations.iter().filter(|o| o.op == op && o.transport == transport).map(|o| o.bytes).sum()
    };
    let ways = [
        ("wire-read", "read", objects_read, layer_read_bytes, beside_read_bytes, kv.loaded_bytes, carried("get")),
        (
            "wire-written",
            "written",
            objects_written,
            0,
            beside_written_bytes,
            kv.stored_bytes,
            carried("put") + carried("multipart"),
        ),
    ];
    let used = ways.into_iter().filter(|(.., own, recorded)| own + recorded > 0);
    used.map(|(check, word, objects, layers, beside, own, recorded)| {
        let expected = objects * object_bytes + layers;
        let difference = (expected + beside).abs_diff(recorded);
        let status = match difference {
            _ if expected != own => ValidityStatus::Fail,
            0 => ValidityStatus::Ok,
            bytes if bytes <= EDGE_OBJECTS * object_bytes => ValidityStatus::Note,
            _ => ValidityStatus::Fail,
        };
        let mut detail = format!("{} objects of {} were {word}", count(objects), size(object_bytes));
        if layers > 0 {
            detail.push_str(&format!(", and {} of layers in {} reads", size(layers), count(layer_reads)));
        }
        if beside > 0 {
            detail.push_str(&format!(", {} beside them", size(beside)));
        }
        match status {
            ValidityStatus::Ok => detail.push_str(", and operations carried just that"),
            ValidityStatus::Note => detail
                .push_str(&format!("; operations carried {}: the ends of the window cut in between", size(recorded))),
            _ => detail.push_str(&format!(
                ", {} in all; blocks say {} and operations {}",
                size(expected + beside),
                size(own),
                size(recorded)
            )),
        }
        Validity::new(check, status, detail)
    })
    .collect()
}

/// Whether operations left when they should: at p99, or on the mean where there are too few.
fn slip(member: &Member) -> Option<Validity> {
    let slips = member.operations.iter().map(|o| &o.schedule_slip).filter(|slip| slip.count > 0);
    let figure = |slip: &gpufeed_schema::Latency| slip.p99_ns.or(slip.mean_ns.map(|mean| mean.round() as u64));
    let worst = slips.filter_map(|slip| Some((figure(slip)?, slip.p99_ns.is_some()))).max()?;
    let (ns, supported) = worst;
    let status = if ns <= SLIP_ALLOWED_NS { ValidityStatus::Ok } else { ValidityStatus::Warn };
    let name = if supported { "p99" } else { "mean" };
    let detail = format!(
        "operations left {} after they should have ({name} of the worst kind), {} is allowed",
        show_nanos(ns as f64),
        show_nanos(SLIP_ALLOWED_NS as f64)
    );
    Some(Validity::new("schedule-slip", status, detail))
}

fn cut_off(kv: &Kv) -> Option<Validity> {
    (kv.unfinished as f64 > CUT_OFF * kv.requests as f64).then(|| {
        let detail = format!(
            "{} of {} requests were cut off by the end of the window: those still waiting for their first token are not \
             in TTFT, which is therefore too short; run longer, or to the end of the trace (no --duration)",
            count(kv.unfinished),
            count(kv.requests)
        );
        Validity::new("cut-off", ValidityStatus::Warn, detail)
    })
}

fn overload(kv: &Kv) -> Option<Validity> {
    kv.load_ratio.filter(|load| *load > 1.0).map(|load| {
        let detail = format!(
            "offered load is {load:.2} of what the workers can do without the tier: TTFT without it grows with the \
             length of the run"
        );
        Validity::new("load", ValidityStatus::Note, detail)
    })
}

const fn status(holds: bool) -> ValidityStatus {
    if holds { ValidityStatus::Ok } else { ValidityStatus::Fail }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gpufeed_schema::{GpuPoint, Latency, Operation};

    fn operation(op: &str, bytes: u64, slip_p99_ns: u64) -> Operation {
        let json = serde_json::json!({
            "op": op, "transport": "s3-raw", "carrier": "tcp", "count": 1000, "errors": {}, "attempts": 1000,
            "bytes": bytes, "bytes_per_s": 0.0, "ops_per_s": 0.0, "service_time": {"count": 0}, "response_time": {"count": 0},
            "schedule_slip": {"count": 1000}, "first_byte": {"count": 0},
        });
        let operation: Operation = serde_json::from_value(json).expect("an operation");
        Operation {
            schedule_slip: Latency { count: 1000, p99_ns: Some(slip_p99_ns), ..Latency::default() },
            ..operation
        }
    }

    /// A run whose books balance.
    fn sound() -> Member {
        let gpu = GpuTime { total_ns: 1000, prefill_ns: 300, decode_ns: 500, no_work_ns: 200, ..GpuTime::default() };
        let kv = Kv {
            requests: 20,
            completed: 18,
            failed: 1,
            unfinished: 1,
            loaded_bytes: 7 * 4096,
            stored_bytes: 900 * 4096,
            wire: KvWire {
                object_bytes: 4096,
                objects_read: 7,
                objects_written: 900,
                beside_read_bytes: 0,
                beside_written_bytes: 31,
                ..KvWire::default()
            },
            gpu,
            timeline: vec![GpuPoint { decode_ratio: 0.25, no_work_ratio: 0.75, ..GpuPoint::default() }],
            ..Kv::default()
        };
        Member {
            operations: vec![
                operation("get", 7 * 4096, 60_000),
                operation("put", 800 * 4096 + 31, 90_000),
                operation("multipart", 100 * 4096, 1),
                operation("stat", 0, 5),
                // The local tier is another wire.
                Operation { transport: "file".into(), ..operation("get", 5 * 4096, 3) },
            ],
            kv: Some(kv),
            ..Member::default()
        }
    }

    /// Outcome of one check after `change`.
    fn after(check: &str, change: impl FnOnce(&mut Member)) -> Option<ValidityStatus> {
        let mut member = sound();
        change(&mut member);
        kv(&member, "s3-raw").into_iter().find(|v| v.check == check).map(|v| v.status)
    }

    fn with_kv(change: impl FnOnce(&mut Kv)) -> impl FnOnce(&mut Member) {
        move |member| change(member.kv.as_mut().expect("a KV run"))
    }

    #[test]
    fn sound_books_pass_every_check() {
        let checks = kv(&sound(), "s3-raw");
        let names: Vec<&str> = checks.iter().map(|v| v.check.as_str()).collect();
        assert_eq!(names, ["gpu-time-partition", "requests", "wire-read", "wire-written", "schedule-slip"]);
        assert!(checks.iter().all(|v| v.status == ValidityStatus::Ok), "{checks:?}");
        assert!(kv(&Member::default(), "s3-raw").is_empty(), "no KV section, no checks");
    }

    #[test]
    fn each_check_can_fail() {
        use ValidityStatus::{Fail, Note, Ok, Warn};
        let partition = |change: fn(&mut Kv)| after("gpu-time-partition", with_kv(change));
        assert_eq!(partition(|kv| kv.gpu.decode_ns += 1), Some(Fail), "one nanosecond too many");
        assert_eq!(partition(|kv| kv.gpu.down_ns = u64::MAX), Some(Fail), "more than 64 bits hold");
        assert_eq!(partition(|kv| kv.timeline[0].decode_ratio = 0.26), Some(Fail), "a step that is more than whole");

        let requests = |change: fn(&mut Kv)| after("requests", with_kv(change));
        assert_eq!(requests(|kv| kv.completed += 1), Some(Fail), "one ended twice");
        assert_eq!(requests(|kv| kv.unfinished -= 1), Some(Fail), "one was lost");

        let read = |change: fn(&mut Member)| after("wire-read", change);
        assert_eq!(read(|m| m.operations[0].bytes += 1), Some(Note), "a cut in between");
        assert_eq!(read(|m| m.operations[0].bytes += 8 * 4096 + 1), Some(Fail), "the wire carried more");
        assert_eq!(read(|m| m.operations.clear()), Some(Note), "seven objects are within the edges");
        assert_eq!(read(|m| m.operations[0].op = "list".into()), Some(Note));
        assert_eq!(read(|m| m.kv.as_mut().expect("kv").loaded_bytes -= 1), Some(Fail), "blocks of another size");
        let in_layers = |m: &mut Member| {
            let kv = m.kv.as_mut().expect("kv");
            (kv.wire.layer_reads, kv.wire.layer_read_bytes) = (3, 300);
            kv.loaded_bytes += 300;
        };
        assert_eq!(
            after("wire-read", |m| (in_layers(m), m.operations[0].bytes += 300).1),
            Some(Ok),
            "layers count too"
        );
        assert_eq!(after("wire-read", |m| (in_layers(m), m.operations[0].bytes += 299).1), Some(Note));
        let short = after("wire-read", |m| (in_layers(m), m.kv.as_mut().expect("kv").loaded_bytes -= 1).1);
        assert_eq!(short, Some(Fail), "a range that was not what was asked for");
        let written = |change: fn(&mut Member)| after("wire-written", change);
        assert_eq!(written(|m| m.operations[2].bytes = 0), Some(Fail), "writes in parts are writes");
        assert_eq!(written(|m| m.kv.as_mut().expect("kv").wire.objects_written += 1), Some(Fail));
        assert_eq!(written(|m| m.kv.as_mut().expect("kv").wire.beside_written_bytes = 0), Some(Note));

        let slip = |ns: u64| after("schedule-slip", move |m| m.operations[1].schedule_slip.p99_ns = Some(ns));
        assert_eq!((slip(2_000_000), slip(2_000_001)), (Some(Ok), Some(Warn)));
        let few = after("schedule-slip", |m| {
            for o in &mut m.operations {
                o.schedule_slip = Latency { count: 3, mean_ns: Some(3e6), ..Latency::default() };
            }
        });
        assert_eq!(few, Some(Warn), "the mean speaks where percentiles cannot");

        assert_eq!(after("cut-off", with_kv(|kv| kv.unfinished = 2)), Some(Warn));
        assert_eq!(after("load", with_kv(|kv| kv.load_ratio = Some(1.2))), Some(Note));
        assert_eq!(after("load", with_kv(|kv| kv.load_ratio = Some(0.8))), None);
    }
}
