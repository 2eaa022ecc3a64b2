//! The tables of the page. Those with `data-v` cells can be sorted.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use gpufeed_profiles::units::show_nanos;
use gpufeed_schema::{
    Baseline, Checkpoint, Claim, ClaimStatus, Client, Epoch, Host, Interference, Kv, Member, Operation, Rag, Validity,
    ValidityStatus,
};

use super::escape::Text;
use super::member::{capitalized, title};
use crate::claims::figure as in_unit;
use crate::figures::{DASH, count, errors, machine, nanos, number, or_dash, percent, rate, share, size};

/// Opens a table that scrolls inside its own container. Columns but those in `texts` are figures.
fn open(page: &mut String, caption: &str, sortable: bool, columns: &[&str], texts: &[usize]) {
    let class = if sortable { r#" class="sortable""# } else { "" };
    let _ = write!(
        page,
        r#"<div class="scroll" tabindex="0" role="group" aria-label="{0}"><table{class}><caption>{0}</caption><thead><tr>"#,
        Text(caption)
    );
    for (i, column) in columns.iter().enumerate() {
        let class = if texts.contains(&i) { r#" class="text""# } else { "" };
        let _ = write!(page, r#"<th scope="col"{class}>{}</th>"#, Text(column));
    }
    page.push_str("</tr></thead><tbody>");
}

fn close(page: &mut String) {
    page.push_str("</tbody></table></div>");
}

fn head(page: &mut String, text: &str) {
    let _ = write!(page, r#"<tr><th scope="row">{}</th>"#, Text(text));
}

fn words(page: &mut String, text: &str) {
    let _ = write!(page, r#"<td class="text">{}</td>"#, Text(text));
}

fn figure(page: &mut String, text: &str) {
    let _ = write!(page, "<td>{}</td>", Text(text));
}

/// A figure with the number to sort by.
fn sorted(page: &mut String, by: Option<f64>, text: &str) {
    match by.filter(|v| v.is_finite()) {
        Some(v) => {
            let _ = write!(page, r#"<td data-v="{v}">{}</td>"#, Text(text));
        }
        None => figure(page, text),
    }
}

fn row(page: &mut String, name: &str, cells: &[String]) {
    head(page, name);
    for cell in cells {
        figure(page, cell);
    }
    page.push_str("</tr>");
}

/// Everything measured of each operation.
pub(super) fn operations(page: &mut String, operations: &[Operation]) {
    let columns = [
        "operation",
        "carrier",
        "count",
        "errors",
        "per second",
        "payload",
        "service p50",
        "service p99",
        "service p99.9",
        "response p50",
        "response p99",
        "response p99.9",
        "slip p99",
        "first byte p50",
    ];
    open(page, "Operations", true, &columns, &[0, 1]);
    for o in operations {
        head(page, &o.op);
        words(page, &o.carrier);
        sorted(page, Some(o.count as f64), &count(o.count));
        let failed = errors(o);
        let _ = write!(
            page,
            r#"<td data-v="{failed}"{}>{}</td>"#,
            if failed > 0 { r#" class="bad""# } else { "" },
            count(failed)
        );
        sorted(page, Some(o.ops_per_s), &number(o.ops_per_s));
        sorted(page, Some(o.bytes_per_s), &if o.bytes > 0 { rate(o.bytes_per_s) } else { DASH.to_owned() });
        let (service, response) = (&o.service_time.summary, &o.response_time.summary);
        for value in [
            service.p50_ns,
            service.p99_ns,
            service.p999_ns,
            response.p50_ns,
            response.p99_ns,
            response.p999_ns,
            o.schedule_slip.p99_ns,
            o.first_byte.p50_ns,
        ] {
            sorted(page, value.map(|v| v as f64), &nanos(value));
        }
        page.push_str("</tr>");
    }
    close(page);
    let failed: Vec<&Operation> = operations.iter().filter(|o| errors(o) > 0).collect();
    if !failed.is_empty() {
        open(page, "Errors by kind", false, &["operation", "kind", "count"], &[0, 1]);
        for o in failed {
            for (kind, n) in o.errors.iter().filter(|(_, n)| **n > 0) {
                head(page, &o.op);
                words(page, kind);
                figure(page, &count(*n));
                page.push_str("</tr>");
            }
        }
        close(page);
    }
}

/// Each epoch of a training run.
pub(super) fn epochs(page: &mut String, epochs: &[Epoch]) {
    /// Rows shown; a long run has thousands of short epochs.
    const MOST: usize = 50;
    let caption = match epochs.len() {
        n if n > MOST => format!("Epochs (the last {MOST} of {n})"),
        _ => "Epochs".to_owned(),
    };
    open(page, &caption, true, &["epoch", "steps", "utilization", "duration", "samples/s", "complete"], &[0]);
    for e in &epochs[epochs.len().saturating_sub(MOST)..] {
        head(page, &e.epoch.to_string());
        sorted(page, Some(e.steps as f64), &count(e.steps));
        sorted(page, e.au_ratio, &share(e.au_ratio));
        sorted(page, Some(e.duration_s), &format!("{} s", number(e.duration_s)));
        sorted(page, Some(e.samples_per_s), &number(e.samples_per_s));
        figure(page, if e.complete { "yes" } else { "no" });
        page.push_str("</tr>");
    }
    close(page);
}

/// Checkpoints written and restored.
pub(super) fn checkpoint(page: &mut String, checkpoint: &Checkpoint) {
    open(page, "Checkpoints", false, &["", "count", "size", "slowest rank", "throughput"], &[0]);
    for (name, part) in [("write", &checkpoint.write), ("restore", &checkpoint.read)] {
        let Some(part) = part else { continue };
        let slowest = format!("{} s", number(part.duration_s));
        row(page, name, &[count(part.count), size(part.bytes), slowest, rate(part.bytes_per_s)]);
    }
    close(page);
}

/// A KV run beside its baselines.
pub(super) fn baselines(page: &mut String, kv: &Kv, others: &[(&'static str, u8, &Baseline)]) {
    if others.is_empty() {
        return;
    }
    let columns = [
        "storage",
        "TTFT mean",
        "TTFT p50",
        "TTFT p99",
        "output tokens/s",
        "requests/s in the SLO",
        "tokens not prefilled",
        "storage stall",
    ];
    open(page, "The same trace on other storage", true, &columns, &[0]);
    let mut one =
        |name: &str, ttft: &gpufeed_schema::Latency, tokens: f64, goodput: f64, hits: Option<f64>, stall: f64| {
            head(page, name);
            sorted(page, ttft.mean_ns, &or_dash(ttft.mean_ns, show_nanos));
            sorted(page, ttft.p50_ns.map(|v| v as f64), &nanos(ttft.p50_ns));
            sorted(page, ttft.p99_ns.map(|v| v as f64), &nanos(ttft.p99_ns));
            sorted(page, Some(tokens), &number(tokens));
            sorted(page, Some(goodput), &number(goodput));
            sorted(page, hits, &share(hits));
            sorted(page, Some(stall), &percent(stall));
            page.push_str("</tr>");
        };
    let (tokens, goodput) = (kv.output_tokens_per_s, kv.goodput_per_s);
    one("this run", &kv.ttft.summary, tokens, goodput, kv.token_hit_ratio, kv.gpu.storage_stall_ratio);
    for (name, _, b) in others {
        let (tokens, goodput) = (b.output_tokens_per_s, b.goodput_per_s);
        one(name, &b.ttft.summary, tokens, goodput, b.token_hit_ratio, b.gpu.storage_stall_ratio);
    }
    close(page);
}

/// Figures of a KV run that have no chart.
pub(super) fn kv_details(page: &mut String, kv: &Kv) {
    page.push_str("<details><summary>All figures of this run</summary>");
    open(page, "Requests and tokens", false, &["figure", "value"], &[0]);
    let workers = format!("{} × {} × {}", kv.workers, kv.tp, machine(&kv.gpu_kind));
    let block = format!("{} tokens, {}", count(kv.block_tokens), size(kv.block_bytes));
    let goal = |name: &str, ns: Option<u64>| ns.map(|_| format!("{name} ≤ {}", nanos(ns)));
    let goals: Vec<String> =
        [goal("TTFT", kv.slo.ttft_ns), goal("TPOT", kv.slo.tpot_ns)].into_iter().flatten().collect();
    let recomputed: u64 = kv.recomputed_tokens.values().sum();
    let mut rows = vec![
        ("model".to_owned(), kv.model.clone()),
        ("emulated workers × GPUs".to_owned(), workers),
        ("KV block".to_owned(), block),
        ("requests".to_owned(), count(kv.requests)),
        ("completed".to_owned(), count(kv.completed)),
        ("failed".to_owned(), count(kv.failed)),
        ("unfinished at the end".to_owned(), count(kv.unfinished)),
        ("offered load ÷ capacity without the tier".to_owned(), or_dash(kv.load_ratio, number)),
        ("objectives".to_owned(), if goals.is_empty() { DASH.to_owned() } else { goals.join(", ") }),
        ("blocks found ÷ prompt blocks".to_owned(), share(kv.prefix_hit_ratio)),
        ("tokens not prefilled ÷ prompt tokens".to_owned(), share(kv.token_hit_ratio)),
        ("tokens loaded from the target".to_owned(), count(kv.loaded_tokens)),
        ("tokens recomputed".to_owned(), count(recomputed)),
    ];
    rows.extend(kv.recomputed_tokens.iter().map(|(reason, n)| (format!("recomputed: {reason}"), count(*n))));
    rows.extend([
        ("bytes loaded".to_owned(), size(kv.loaded_bytes)),
        ("bytes stored".to_owned(), size(kv.stored_bytes)),
        ("blocks stored and never read".to_owned(), count(kv.never_read_blocks)),
    ]);
    rows.extend(kv_loads(kv));
    rows.extend(kv_flow(kv));
    rows.extend([
        ("TPOT p50 / p99".to_owned(), crate::figures::p50_p99(&kv.tpot)),
        ("ITL p50 / p99".to_owned(), crate::figures::p50_p99(&kv.itl)),
        ("end to end p50 / p99".to_owned(), crate::figures::p50_p99(&kv.e2e.summary)),
        ("recompute tax".to_owned(), percent(kv.gpu.recompute_tax_ratio)),
        ("storage starved".to_owned(), percent(kv.gpu.storage_starved_ratio)),
        ("mean batch".to_owned(), number(kv.gpu.mean_batch)),
        ("MFU".to_owned(), percent(kv.gpu.mfu_ratio)),
        ("MBU".to_owned(), percent(kv.gpu.mbu_ratio)),
    ]);
    for (name, value) in rows {
        row(page, &name, &[value]);
    }
    close(page);
    page.push_str("</details>");
}

/// Loads from the target, where there were any.
fn kv_loads(kv: &Kv) -> Vec<(String, String)> {
    let load = &kv.load;
    if load.loads == 0 && load.given_up == 0 {
        return Vec::new();
    }
    let last = &load.last_block.summary;
    let wrong = &load.break_even_wrong;
    vec![
        ("loads from the target".to_owned(), count(load.loads)),
        ("loads given up".to_owned(), count(load.given_up)),
        ("bytes that came after their load was given up".to_owned(), size(load.late_bytes)),
        ("time to last block, mean".to_owned(), or_dash(last.mean_ns, show_nanos)),
        ("time to last block p50 / p99".to_owned(), crate::figures::p50_p99(last)),
        ("last block ÷ median block, mean".to_owned(), or_dash(load.straggler_ratio.mean_ratio, number)),
        ("loaded, would have been sooner computing".to_owned(), part_of(wrong.loaded_slower, wrong.loaded)),
        ("computed, would have been sooner loading".to_owned(), part_of(wrong.computed_slower, wrong.computed)),
    ]
}

fn part_of(part: u64, whole: u64) -> String {
    format!("{} of {}", count(part), count(whole))
}

/// What moved between tiers and workers, as far as anything did. Workers that died have a table of their own.
fn kv_flow(kv: &Kv) -> Vec<(String, String)> {
    let f = &kv.tier_flow;
    let blocks = [
        ("blocks promoted to host memory", f.promoted_g2_blocks),
        ("blocks promoted to the local drive", f.promoted_g3_blocks),
        ("blocks demoted to the local drive", f.demoted_g3_blocks),
        ("blocks demoted to the target", f.demoted_g4_blocks),
        ("blocks evicted from host memory", f.evicted_g2_blocks),
        ("blocks evicted from the local drive", f.evicted_g3_blocks),
        ("blocks evicted from the target", f.evicted_g4_blocks),
        ("blocks that waited in GPU memory to be written", f.stalled_blocks),
        ("blocks not written, queue full", f.skipped_blocks),
        ("blocks not written, tier full", f.refused_blocks),
        ("blocks that a tier lost", f.lost_blocks),
    ];
    let bytes = [
        ("bytes read from local drives", f.g3_read_bytes),
        ("bytes written to local drives", f.g3_written_bytes),
        ("KV cache moved from prefill to decode workers", kv.transferred_bytes),
    ];
    let mut rows: Vec<(String, String)> = Vec::new();
    rows.extend(blocks.into_iter().filter(|(_, n)| *n > 0).map(|(name, n)| (name.to_owned(), count(n))));
    rows.extend(bytes.into_iter().filter(|(_, n)| *n > 0).map(|(name, n)| (name.to_owned(), size(n))));
    rows
}

/// Figures of a RAG run that have no chart.
pub(super) fn rag_details(page: &mut String, rag: &Rag) {
    page.push_str("<details><summary>All figures of this run</summary>");
    open(page, "Queries and bytes", false, &["figure", "value"], &[0]);
    let mut rows = vec![
        ("queries", count(rag.queries)),
        ("completed", count(rag.completed)),
        ("failed", count(rag.failed)),
        ("unfinished at the end", count(rag.unfinished)),
        ("posting lists read", size(rag.posting_bytes)),
        ("passages read", size(rag.passage_bytes)),
        ("end to end p50 / p99", crate::figures::p50_p99(&rag.e2e)),
    ];
    if let Some(ingest) = &rag.ingest {
        rows.extend([
            ("documents ingested", count(ingest.documents)),
            ("bytes written by ingest", size(ingest.bytes)),
            ("duration of ingest", format!("{} s", number(ingest.duration_s))),
            ("write amplification", number(ingest.write_amplification)),
        ]);
    }
    for (name, value) in rows {
        row(page, name, &[value]);
    }
    close(page);
    page.push_str("</details>");
}

/// Inputs of an estimate, with their sources.
pub(super) fn inputs(page: &mut String, inputs: &BTreeMap<String, String>) {
    if inputs.is_empty() {
        return;
    }
    page.push_str("<details><summary>Inputs of the GPU model and their sources</summary>");
    open(page, "Inputs of the GPU model", false, &["input", "value and source"], &[0, 1]);
    for (name, value) in inputs {
        head(page, name);
        words(page, value);
        page.push_str("</tr>");
    }
    close(page);
    page.push_str("</details>");
}

/// Vendors' claims: those this run decides, and below a fold those it does not.
pub(super) fn claims(page: &mut String, claims: &[Claim]) {
    let decided: Vec<&Claim> = claims.iter().filter(|c| c.status != ClaimStatus::NotMeasurable).collect();
    let open_ones: Vec<&Claim> = claims.iter().filter(|c| c.status == ClaimStatus::NotMeasurable).collect();
    if decided.is_empty() {
        page.push_str(r#"<p class="fine">This run decides none of them; below is what each would need.</p>"#);
    } else {
        claim_rows(page, "Claims held against this run", &decided);
    }
    if !open_ones.is_empty() {
        let _ = write!(page, "<details><summary>{} not measurable by this run</summary>", open_ones.len());
        claim_rows(page, "Claims that this run does not decide", &open_ones);
        page.push_str("</details>");
    }
}

fn claim_rows(page: &mut String, caption: &str, claims: &[&Claim]) {
    open(page, caption, false, &["claim", "outcome", "measured", "needed", "note and source"], &[0, 1, 4]);
    for claim in claims {
        let (class, word) = match claim.status {
            ClaimStatus::Met => ("good", "met"),
            ClaimStatus::Missed => ("bad", "missed"),
            ClaimStatus::NotMeasurable => ("none", "not measurable here"),
        };
        head(page, &claim.text);
        let _ = write!(page, r#"<td class="text"><span class="chip {class}">{word}</span></td>"#);
        figure(page, &claim.measured.map_or_else(|| DASH.to_owned(), |v| in_unit(v, &claim.unit)));
        figure(page, &in_unit(claim.threshold, &claim.unit));
        let note = claim.note.as_ref().map(|note| format!("{}; ", capitalized(note))).unwrap_or_default();
        words(page, &format!("{note}{}", claim.source));
        page.push_str("</tr>");
    }
    close(page);
}

/// What members did to each other.
pub(super) fn interference(page: &mut String, rows: &[Interference]) {
    open(page, "Interference: mixed ÷ alone", true, &["member", "figure", "alone", "mixed", "ratio"], &[0, 1]);
    for r in rows {
        head(page, &r.member);
        words(page, &r.metric);
        for v in [r.alone, r.mixed, r.ratio] {
            sorted(page, Some(v), &number(v));
        }
        page.push_str("</tr>");
    }
    close(page);
}

/// A check's name in words, without its member's where there is but one.
fn check_name(check: &str, single: bool) -> String {
    let name = if single { check.split_once(": ").map_or(check, |(_, name)| name) } else { check };
    capitalized(&name.replace('-', " "))
}

/// Whether these are several plain loads and nothing else.
pub(super) fn are_loads(members: &[Member]) -> bool {
    let plain = |m: &Member| m.training.is_none() && m.kv.is_none() && m.rag.is_none() && m.checkpoint.is_none();
    members.len() > 1 && members.iter().all(plain)
}

/// Plain loads side by side, where there are several.
pub(super) fn loads(page: &mut String, members: &[Member]) {
    if !are_loads(members) {
        return;
    }
    let columns = ["load", "operation", "per second", "payload", "response p50", "response p99", "errors"];
    open(page, "All loads", true, &columns, &[0, 1]);
    for member in members {
        for o in &member.operations {
            let _ = write!(page, r#"<tr><th scope="row">{}</th>"#, Text(title(&member.name)));
            words(page, &o.op);
            sorted(page, Some(o.ops_per_s), &number(o.ops_per_s));
            sorted(page, Some(o.bytes_per_s), &if o.bytes > 0 { rate(o.bytes_per_s) } else { DASH.to_owned() });
            let response = &o.response_time.summary;
            for value in [response.p50_ns, response.p99_ns] {
                sorted(page, value.map(|v| v as f64), &nanos(value));
            }
            sorted(page, Some(errors(o) as f64), &count(errors(o)));
            page.push_str("</tr>");
        }
    }
    close(page);
}

/// Whether the measurement can be trusted; `single` where one member is all there is.
pub(super) fn validity(page: &mut String, checks: &[Validity], single: bool) {
    let mut checks: Vec<&Validity> = checks.iter().collect();
    checks.sort_by_key(|c| std::cmp::Reverse(c.status));
    open(page, "Checks of the measurement itself", false, &["check", "outcome", "detail"], &[0, 1, 2]);
    for check in checks {
        let (class, word) = match check.status {
            ValidityStatus::Ok => ("good", "holds"),
            ValidityStatus::Note => ("none", "note"),
            ValidityStatus::Warn => ("warn", "doubtful"),
            ValidityStatus::Fail => ("bad", "failed"),
        };
        head(page, &check_name(&check.check, single));
        let _ = write!(page, r#"<td class="text"><span class="chip {class}">{word}</span></td>"#);
        words(page, &check.detail);
        page.push_str("</tr>");
    }
    close(page);
}

/// The machines.
pub(super) fn hosts(page: &mut String, hosts: &[Host]) {
    open(page, "Hosts", false, &["processor", "cores", "memory", "kernel", "facts"], &[0, 3, 4]);
    for host in hosts {
        head(page, &host.cpu_model);
        figure(page, &count(host.cores.into()));
        figure(page, &size(host.memory_bytes));
        words(page, &host.kernel);
        let facts: Vec<String> = host.facts.iter().map(|(k, v)| format!("{k}: {v}")).collect();
        words(page, &if facts.is_empty() { DASH.to_owned() } else { facts.join("; ") });
        page.push_str("</tr>");
    }
    close(page);
}

/// The processes, and how near their limits they were.
pub(super) fn clients(page: &mut String, clients: &[Client]) {
    let columns = ["process", "cores", "CPU", "waited for CPU", "stolen", "ceiling", "ceiling ops/s", "peak memory"];
    let cells = |c: &Client| {
        [
            count(c.cores.into()),
            percent(c.cpu_ratio),
            share(c.run_wait_ratio),
            share(c.steal_ratio),
            or_dash(c.ceiling_bytes_per_s, rate),
            or_dash(c.ceiling_ops_per_s, number),
            c.peak_memory_bytes.map_or_else(|| DASH.to_owned(), size),
        ]
    };
    // What nobody knows takes no column.
    let known: Vec<usize> = (0..columns.len() - 1).filter(|i| clients.iter().any(|c| cells(c)[*i] != DASH)).collect();
    let shown: Vec<&str> = std::iter::once(columns[0]).chain(known.iter().map(|i| columns[i + 1])).collect();
    open(page, "Processes and their own limits", false, &shown, &[0]);
    for c in clients {
        let cells = cells(c);
        row(page, &c.role, &known.iter().map(|i| cells[*i].clone()).collect::<Vec<_>>());
    }
    close(page);
}
