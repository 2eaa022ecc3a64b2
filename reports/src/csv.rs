//! A summary as CSV: one row for each member and operation, with the member's key figures repeated on each.

use std::io::Write;

use gpufeed_schema::{Latency, Member, Operation, RunReport};

use crate::figures::errors;

/// The columns, in order. Names carry their units as in `report.json`.
const COLUMNS: [&str; 48] = [
    "started_at",
    "workload",
    "target",
    "verdict",
    "interrupted",
    "plan_hash",
    "member",
    "duration_s",
    "op",
    "transport",
    "carrier",
    "count",
    "errors",
    "attempts",
    "bytes",
    "bytes_per_s",
    "ops_per_s",
    "service_min_ns",
    "service_mean_ns",
    "service_p50_ns",
    "service_p90_ns",
    "service_p99_ns",
    "service_p999_ns",
    "service_max_ns",
    "response_min_ns",
    "response_mean_ns",
    "response_p50_ns",
    "response_p90_ns",
    "response_p99_ns",
    "response_p999_ns",
    "response_max_ns",
    "slip_p50_ns",
    "slip_p99_ns",
    "first_byte_p50_ns",
    "first_byte_p99_ns",
    "training_au_ratio",
    "training_samples_per_s",
    "kv_ttft_p50_ns",
    "kv_ttft_p99_ns",
    "kv_output_tokens_per_s",
    "kv_token_hit_ratio",
    "kv_gpu_useful_ratio",
    "kv_gpu_storage_stall_ratio",
    "rag_queries_per_s",
    "rag_retrieve_p50_ns",
    "rag_retrieve_p99_ns",
    "rag_ttft_p50_ns",
    "rag_ttft_p99_ns",
];

/// Writes the summary. Figures that are not known are empty. A member without operations has one row without them.
///
/// # Errors
/// Those of `to`.
pub fn render(report: &RunReport, to: &mut impl Write) -> std::io::Result<()> {
    let mut csv = csv::Writer::from_writer(to);
    csv.write_record(COLUMNS)?;
    for member in &report.members {
        let operations: Vec<Option<&Operation>> = match member.operations.as_slice() {
            [] => vec![None],
            some => some.iter().map(Some).collect(),
        };
        for operation in operations {
            csv.write_record(row(report, member, operation))?;
        }
    }
    csv.flush()
}

fn row(report: &RunReport, member: &Member, operation: Option<&Operation>) -> Vec<String> {
    let mut row = vec![
        report.run.started_at.clone(),
        report.run.workload.clone(),
        report.run.target.clone(),
        report.verdict.name().to_owned(),
        report.interrupted.to_string(),
        report.run.plan_hash.clone(),
        member.name.clone(),
        member.duration_s.to_string(),
    ];
    match operation {
        None => row.resize(row.len() + 27, String::new()),
        Some(o) => {
            row.extend([o.op.clone(), o.transport.clone(), o.carrier.clone()]);
            row.extend([o.count, errors(o), o.attempts, o.bytes].map(|n| n.to_string()));
            row.extend([o.bytes_per_s, o.ops_per_s].map(|n| n.to_string()));
            row.extend(seven(&o.service_time.summary));
            row.extend(seven(&o.response_time.summary));
            row.extend(
                [o.schedule_slip.p50_ns, o.schedule_slip.p99_ns, o.first_byte.p50_ns, o.first_byte.p99_ns].map(text),
            );
        }
    }
    let (training, kv, rag) = (member.training.as_ref(), member.kv.as_ref(), member.rag.as_ref());
    row.extend([
        text(training.and_then(|t| t.au_ratio)),
        text(training.map(|t| t.samples_per_s)),
        text(kv.and_then(|k| k.ttft.summary.p50_ns)),
        text(kv.and_then(|k| k.ttft.summary.p99_ns)),
        text(kv.map(|k| k.output_tokens_per_s)),
        text(kv.and_then(|k| k.token_hit_ratio)),
        text(kv.and_then(|k| k.gpu.useful_ratio)),
        text(kv.map(|k| k.gpu.storage_stall_ratio)),
        text(rag.map(|r| r.queries_per_s)),
        text(rag.and_then(|r| r.retrieve.summary.p50_ns)),
        text(rag.and_then(|r| r.retrieve.summary.p99_ns)),
        text(rag.and_then(|r| r.ttft.summary.p50_ns)),
        text(rag.and_then(|r| r.ttft.summary.p99_ns)),
    ]);
    row
}

fn seven(l: &Latency) -> [String; 7] {
    [text(l.min_ns), text(l.mean_ns), text(l.p50_ns), text(l.p90_ns), text(l.p99_ns), text(l.p999_ns), text(l.max_ns)]
}

fn text(value: Option<impl ToString>) -> String {
    value.map_or_else(String::new, |v| v.to_string())
}
