//! A summary in Markdown, for pull requests and step summaries.

use std::fmt::Write as _;

use gpufeed_schema::{Baseline, ClaimStatus, Kv, Member, RunReport, ValidityStatus};

use crate::claims::figure as in_unit;
use crate::figures::{DASH, count, errors, goal, machine, nanos, number, p50_p99, rate, share};
use crate::kv::{recomputed, wrong_side};
use crate::verdict::{headline, sentence};

/// Text that Markdown takes literally, on one line, in a table cell or outside.
fn plain(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\\' | '`' | '*' | '_' | '[' | ']' | '|' | '#' | '~' | '!' => {
                out.push('\\');
                out.push(c);
            }
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '&' => out.push_str("&amp;"),
            // A mention or an issue reference would notify people.
            '@' => out.push_str("&#64;"),
            c if c.is_control() => out.push(' '),
            c => out.push(c),
        }
    }
    out
}

fn line(out: &mut String, cells: &[String]) {
    // Writing to a String cannot fail.
    let _ = writeln!(out, "| {} |", cells.join(" | "));
}

fn header(out: &mut String, names: &[&str]) {
    line(out, &names.iter().map(|&n| n.to_owned()).collect::<Vec<_>>());
    let rule: Vec<String> = (0..names.len()).map(|i| if i == 0 { "---" } else { "---:" }.to_owned()).collect();
    line(out, &rule);
}

/// The report as Markdown.
#[must_use]
pub fn render(report: &RunReport) -> String {
    let mut out = String::new();
    let run = &report.run;
    let _ = writeln!(out, "### gpufeed: {}\n", plain(&run.workload));
    let _ = writeln!(out, "**{}.**\n", plain(&sentence(report)));
    for scaling in &run.scaling {
        let _ = writeln!(out, "Scaled: {}\n", plain(scaling));
    }
    for member in &report.members {
        one_member(&mut out, member);
    }
    if !report.claims.is_empty() {
        let open = report.claims.iter().filter(|c| c.status == ClaimStatus::NotMeasurable).count();
        if open > 0 {
            let _ = writeln!(out, "{open} of {} claims are not measurable by this run.\n", report.claims.len());
        }
        if open < report.claims.len() {
            header(&mut out, &["claim", "measured", "needed", "status"]);
        }
        for claim in report.claims.iter().filter(|c| c.status != ClaimStatus::NotMeasurable) {
            let status = match claim.status {
                ClaimStatus::Met => "met",
                ClaimStatus::Missed => "**missed**",
                ClaimStatus::NotMeasurable => "not measurable here",
            };
            let measured = claim.measured.map_or_else(|| DASH.to_owned(), |v| in_unit(v, &claim.unit));
            let needed = in_unit(claim.threshold, &claim.unit);
            line(&mut out, &[plain(&claim.text), plain(&measured), plain(&needed), status.to_owned()]);
        }
        out.push('\n');
    }
    let doubtful = report.validity.iter().filter(|v| v.status != ValidityStatus::Ok);
    for check in doubtful {
        let word = match check.status {
            ValidityStatus::Fail => "**Fail**",
            ValidityStatus::Warn => "**Warning**",
            ValidityStatus::Ok | ValidityStatus::Note => "Note",
        };
        let _ = writeln!(out, "- {word}, {}: {}", plain(&check.check), plain(&check.detail));
    }
    let _ = writeln!(
        out,
        "\n<sub>{} {} ({}) · target {} · {} s after {} s of warm-up · seed {} · plan {}</sub>",
        plain(&report.tool.name),
        plain(&report.tool.version),
        plain(&report.tool.commit),
        plain(&run.target),
        number(run.duration_s),
        number(run.warm_up_s),
        run.seed,
        plain(&run.plan_hash)
    );
    out
}

fn one_member(out: &mut String, member: &Member) {
    let _ = writeln!(out, "#### {}\n\n{}\n", plain(&member.name), plain(&headline(member)));
    if let Some(t) = &member.training {
        header(out, &["accelerators", "AU", "needed", "samples/s", "read", "needed to keep all busy"]);
        line(
            out,
            &[
                format!("{} × {} (emulated)", t.accelerators, plain(&machine(&t.accelerator))),
                share(t.au_ratio),
                format!("≥ {}", goal(t.au_threshold_ratio)),
                number(t.samples_per_s),
                rate(t.bytes_per_s),
                rate(t.needed_bytes_per_s),
            ],
        );
        out.push('\n');
    }
    if let Some(kv) = &member.kv {
        kv_table(out, kv);
    }
    if let Some(rag) = &member.rag {
        header(out, &["queries/s", "retrieve p50 / p99", "TTFT p50 / p99", "retrieve share of TTFT", "recall"]);
        line(
            out,
            &[
                number(rag.queries_per_s),
                p50_p99(&rag.retrieve.summary),
                p50_p99(&rag.ttft.summary),
                share(rag.retrieve_share_ratio),
                share(rag.recall_ratio),
            ],
        );
        out.push('\n');
    }
    if !member.operations.is_empty() {
        let names = ["op", "carrier", "count", "errors", "ops/s", "bytes/s"];
        header(out, &[&names[..], &["service p50 / p99", "response p50 / p99", "slip p99"]].concat());
        for o in &member.operations {
            line(
                out,
                &[
                    plain(&o.op),
                    plain(&o.carrier),
                    count(o.count),
                    count(errors(o)),
                    number(o.ops_per_s),
                    if o.bytes > 0 { rate(o.bytes_per_s) } else { DASH.to_owned() },
                    p50_p99(&o.service_time.summary),
                    p50_p99(&o.response_time.summary),
                    nanos(o.schedule_slip.p99_ns),
                ],
            );
        }
        out.push('\n');
    }
}

fn kv_table(out: &mut String, kv: &Kv) {
    header(out, &["", "TTFT p50", "TTFT p99", "output tokens/s", "token hit ratio", "GPU useful", "storage stall"]);
    let gpu = |gpu: &gpufeed_schema::GpuTime| {
        let known = gpu.total_ns > 0;
        [share(gpu.useful_ratio.filter(|_| known)), share(known.then_some(gpu.storage_stall_ratio))]
    };
    let mut row = vec![
        "this run".to_owned(),
        nanos(kv.ttft.summary.p50_ns),
        nanos(kv.ttft.summary.p99_ns),
        number(kv.output_tokens_per_s),
        share(kv.token_hit_ratio),
    ];
    row.extend(gpu(&kv.gpu));
    line(out, &row);
    let baselines: [(&str, &Option<Baseline>); 4] = [
        ("no cache", &kv.baselines.no_cache),
        ("local tiers only", &kv.baselines.local),
        ("ideal storage", &kv.baselines.ideal_storage),
        ("this target, modeled", &kv.baselines.target_model),
    ];
    for (name, baseline) in baselines {
        let Some(b) = baseline else { continue };
        let mut row = vec![
            name.to_owned(),
            nanos(b.ttft.summary.p50_ns),
            nanos(b.ttft.summary.p99_ns),
            number(b.output_tokens_per_s),
            share(b.token_hit_ratio),
        ];
        row.extend(gpu(&b.gpu));
        line(out, &row);
    }
    out.push('\n');
    for text in [recomputed(kv), wrong_side(kv)].into_iter().flatten() {
        let _ = writeln!(out, "{}.\n", plain(&text));
    }
}
