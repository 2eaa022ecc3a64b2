//! Tables for a terminal of 80 columns.

use comfy_table::{Cell, CellAlignment, ContentArrangement, Table};
use gpufeed_profiles::units::show_nanos;
use gpufeed_schema::{
    Baseline, GpuTime, Kv, Latency, Member, Operation, Rag, RunReport, Training, Validity, ValidityStatus, Verdict,
};

use crate::figures::{ascii, count, errors, goal, machine, nanos, number, or_dash, percent, rate, share, short, size};
use crate::kv::{recomputed, wrong_side};
use crate::verdict::{headline, sentence};

/// Columns that everything fits in.
const WIDTH: usize = 80;

/// How to write to a terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Style {
    /// Whether to use ANSI colors; the caller knows whether there is a terminal and honors `NO_COLOR`.
    pub color: bool,
    /// Whether to write ASCII only.
    pub ascii: bool,
}

#[derive(Clone, Copy)]
enum Tone {
    Good,
    Bad,
    Warn,
    Strong,
}

struct Page {
    style: Style,
    text: String,
}

impl Page {
    fn blank(&mut self) {
        self.text.push('\n');
    }

    /// A paragraph, wrapped, with later lines indented by `indent`.
    fn paragraph(&mut self, tone: Option<Tone>, indent: usize, text: &str) {
        let text = if self.style.ascii { ascii(text) } else { text.to_owned() };
        for line in wrapped(&text, indent) {
            match tone.filter(|_| self.style.color) {
                None => self.text.push_str(&line),
                Some(tone) => {
                    let code = match tone {
                        Tone::Good => "32",
                        Tone::Bad => "31",
                        Tone::Warn => "33",
                        Tone::Strong => "1",
                    };
                    self.text.push_str(&format!("\u{1b}[{code}m{line}\u{1b}[0m"));
                }
            }
            self.text.push('\n');
        }
    }

    fn table(&mut self, table: &Table) {
        for line in table.lines() {
            let line = if self.style.ascii { ascii(&line) } else { line };
            self.text.push_str(line.trim_end());
            self.text.push('\n');
        }
    }
}

/// Breaks text at spaces so that no line is wider than [`WIDTH`]; a longer word is cut.
fn wrapped(text: &str, indent: usize) -> Vec<String> {
    let mut lines = Vec::new();
    let mut line = String::new();
    let mut width = 0;
    for word in text.split_whitespace() {
        let mut letters: Vec<char> = word.chars().filter(|c| !c.is_control()).collect();
        while !letters.is_empty() {
            let room = WIDTH.saturating_sub(if lines.is_empty() { 0 } else { indent });
            let gap = usize::from(width > 0);
            if width + gap + letters.len() <= room || width == 0 {
                let taken: String = letters.drain(..letters.len().min(room)).collect();
                if gap > 0 {
                    line.push(' ');
                }
                width += gap + taken.chars().count();
                line.push_str(&taken);
            }
            if !letters.is_empty() {
                lines.push(std::mem::take(&mut line));
                line = " ".repeat(indent);
                width = 0;
            }
        }
    }
    if width > 0 || lines.is_empty() {
        lines.push(line);
    }
    lines
}

/// A table without borders but a rule below its header; the first column is text, the others are figures.
fn table<const N: usize>(header: [&str; N], left: usize) -> Table {
    let mut table = Table::new();
    table
        .load_preset("     ──            ")
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_width(WIDTH as u16);
    table.set_header(header);
    for (i, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, 1));
        column.set_cell_alignment(if i < left { CellAlignment::Left } else { CellAlignment::Right });
    }
    table
}

/// The report as text: verdict first, then each member's figures, then what is doubtful.
#[must_use]
pub fn render(report: &RunReport, style: Style) -> String {
    let mut page = Page { style, text: String::new() };
    let tone = match report.verdict {
        _ if report.interrupted => Tone::Bad,
        Verdict::ClientLimited => Tone::Warn,
        _ => Tone::Strong,
    };
    page.paragraph(Some(tone), 2, &sentence(report));
    let run = &report.run;
    let timing = format!("{} s measured after {} s of warm-up", number(run.duration_s), number(run.warm_up_s));
    page.paragraph(
        None,
        2,
        &format!("{} on {} ({}), {timing}, seed {}", run.workload, run.target, run.transport, run.seed),
    );
    for line in &run.scaling {
        page.paragraph(None, 2, &format!("Scaled: {line}"));
    }
    for member in &report.members {
        one_member(&mut page, member);
    }
    if report.members.is_empty() {
        page.blank();
        page.paragraph(None, 0, "Nothing was measured.");
    }
    let doubtful: Vec<&Validity> = report.validity.iter().filter(|v| v.status != ValidityStatus::Ok).collect();
    if !doubtful.is_empty() {
        page.blank();
        for check in doubtful {
            let (tone, word) = match check.status {
                ValidityStatus::Fail => (Some(Tone::Bad), "FAIL"),
                ValidityStatus::Warn => (Some(Tone::Warn), "warn"),
                ValidityStatus::Ok | ValidityStatus::Note => (None, "note"),
            };
            page.paragraph(tone, 6, &format!("{word}  {}: {}", check.check, check.detail));
        }
    }
    page.text
}

fn one_member(page: &mut Page, member: &Member) {
    page.blank();
    let kind = match (&member.training, &member.kv, &member.rag, &member.checkpoint) {
        (Some(t), ..) => format!("{} on {} × {} (emulated)", t.model, t.accelerators, machine(&t.accelerator)),
        (_, Some(k), ..) => {
            let workers = if k.workers == 1 { "worker" } else { "workers" };
            format!("{} on {} {workers} of {} × {} (emulated)", k.model, k.workers, k.tp, machine(&k.gpu_kind))
        }
        _ => String::new(),
    };
    let title = if kind.is_empty() { member.name.clone() } else { format!("{}: {kind}", member.name) };
    page.paragraph(Some(Tone::Strong), 2, &title);
    let tone = match member.training.as_ref().and_then(|t| t.passed) {
        Some(true) => Some(Tone::Good),
        Some(false) => Some(Tone::Bad),
        None => None,
    };
    page.paragraph(tone, 2, &format!("→ {}", headline(member)).replace('→', if page.style.ascii { "->" } else { "→" }));
    page.blank();
    if let Some(training) = &member.training {
        page.table(&training_table(training));
        page.blank();
    }
    if let Some(kv) = &member.kv {
        kv_tables(page, kv);
        page.blank();
    }
    if let Some(rag) = &member.rag {
        page.table(&rag_table(rag));
        page.blank();
    }
    if let Some(checkpoint) = member.checkpoint.as_ref().filter(|c| c.write.is_some() || c.read.is_some()) {
        let mut table = table(["checkpoint", "count", "size", "slowest rank", "bytes/s"], 1);
        for (name, part) in [("write", &checkpoint.write), ("read", &checkpoint.read)] {
            let Some(part) = part else { continue };
            let slowest = format!("{} s", number(part.duration_s));
            table.add_row([name.to_owned(), count(part.count), size(part.bytes), slowest, rate(part.bytes_per_s)]);
        }
        page.table(&table);
        page.blank();
    }
    if member.operations.is_empty() {
        page.paragraph(None, 0, "No operations.");
    } else {
        page.table(&operations_table(&member.operations));
        failures(page, &member.operations);
    }
}

fn training_table(training: &Training) -> Table {
    let mut table = table(["accelerators", "AU", "threshold", "", "samples/s", "read", "needed", "stalled"], 1);
    let passed = match training.passed {
        Some(true) => "pass",
        Some(false) => "FAIL",
        None => "–",
    };
    let time = training.compute_s + training.stall_s;
    table.add_row([
        count(training.accelerators.into()),
        share(training.au_ratio),
        format!("≥ {}", goal(training.au_threshold_ratio)),
        passed.to_owned(),
        number(training.samples_per_s),
        rate(training.bytes_per_s),
        rate(training.needed_bytes_per_s),
        share((time > 0.0).then(|| training.stall_s / time)),
    ]);
    table
}

/// One column of the KV table.
struct Column<'a> {
    name: &'static str,
    ttft: &'a Latency,
    tokens_per_s: f64,
    goodput_per_s: f64,
    token_hit_ratio: Option<f64>,
    gpu: &'a GpuTime,
}

fn kv_tables(page: &mut Page, kv: &Kv) {
    let mut columns = vec![Column {
        name: "this run",
        ttft: &kv.ttft.summary,
        tokens_per_s: kv.output_tokens_per_s,
        goodput_per_s: kv.goodput_per_s,
        token_hit_ratio: kv.token_hit_ratio,
        gpu: &kv.gpu,
    }];
    let baselines: [(&'static str, &Option<Baseline>); 3] = [
        ("no cache", &kv.baselines.no_cache),
        ("local", &kv.baselines.local),
        ("ideal storage", &kv.baselines.ideal_storage),
    ];
    columns.extend(baselines.into_iter().filter_map(|(name, baseline)| {
        baseline.as_ref().map(|b| Column {
            name,
            ttft: &b.ttft.summary,
            tokens_per_s: b.output_tokens_per_s,
            goodput_per_s: b.goodput_per_s,
            token_hit_ratio: b.token_hit_ratio,
            gpu: &b.gpu,
        })
    }));
    let requests = format!(
        "{} requests: {} completed, {} failed, {} unfinished",
        count(kv.requests),
        count(kv.completed),
        count(kv.failed),
        count(kv.unfinished)
    );
    page.paragraph(None, 2, &requests);
    let mut table = Table::new();
    table
        .load_preset("     ──            ")
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_width(WIDTH as u16);
    table.set_header(std::iter::once("").chain(columns.iter().map(|c| c.name)));
    let row = |name: &str, figure: &dyn Fn(&Column<'_>) -> String| {
        std::iter::once(Cell::new(name)).chain(columns.iter().map(|c| Cell::new(figure(c)))).collect::<Vec<_>>()
    };
    if columns.iter().all(|c| c.ttft.p50_ns.is_none()) {
        // Too few for percentiles.
        table.add_row(row("TTFT mean", &|c| or_dash(c.ttft.mean_ns, show_nanos)));
    }
    table.add_row(row("TTFT p50", &|c| nanos(c.ttft.p50_ns)));
    table.add_row(row("TTFT p99", &|c| nanos(c.ttft.p99_ns)));
    table.add_row(row("output tokens/s", &|c| number(c.tokens_per_s)));
    if kv.slo.ttft_ns.is_some() || kv.slo.tpot_ns.is_some() {
        table.add_row(row("requests/s inside the SLO", &|c| number(c.goodput_per_s)));
    }
    table.add_row(row("prompt tokens not prefilled", &|c| share(c.token_hit_ratio)));
    if columns.iter().any(|c| c.gpu.total_ns > 0) {
        let of = |figure: fn(&GpuTime) -> Option<f64>| {
            move |c: &Column<'_>| share(figure(c.gpu).filter(|_| c.gpu.total_ns > 0))
        };
        table.add_row(row("GPU useful", &of(|g| g.useful_ratio)));
        table.add_row(row("GPU busy", &of(|g| Some(g.busy_ratio))));
        table.add_row(row("GPU recomputing", &of(|g| Some(g.recompute_ratio))));
        table.add_row(row("GPU stalled on storage", &of(|g| Some(g.storage_stall_ratio))));
        table.add_row(row("GPU without work", &of(|g| Some(g.no_work_ratio))));
    }
    for (i, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, 2));
        column.set_cell_alignment(if i == 0 { CellAlignment::Left } else { CellAlignment::Right });
    }
    page.table(&table);
    topology(page, kv);
    let tiers = kv.hits_by_tier;
    let all = tiers.g1 + tiers.g2 + tiers.g3 + tiers.g4 + tiers.miss;
    if all > 0 {
        let of = |tokens: u64| percent(tokens as f64 / all as f64);
        let text = format!(
            "Prompt tokens found in GPU memory {}, host memory {}, local drive {}, target {}, nowhere {}",
            of(tiers.g1),
            of(tiers.g2),
            of(tiers.g3),
            of(tiers.g4),
            of(tiers.miss)
        );
        page.paragraph(None, 2, &text);
    }
    for text in [recomputed(kv), wrong_side(kv)].into_iter().flatten() {
        page.paragraph(None, 2, &text);
    }
}

/// Routing × shared tier, pools of workers, and workers that died, where a run has them.
fn topology(page: &mut Page, kv: &Kv) {
    if !kv.matrix.is_empty() {
        let columns = ["", "source", "TTFT mean", "tokens/s", "requests/s in SLO", "not prefilled"];
        let mut matrix = table(columns, 1);
        for cell in &kv.matrix {
            let tier = if cell.shared_tier { "shared tier" } else { "local tiers only" };
            matrix.add_row([
                format!("{}, {tier}", cell.routing),
                cell.source.clone(),
                or_dash(cell.figures.ttft.summary.mean_ns, show_nanos),
                number(cell.figures.output_tokens_per_s),
                number(cell.figures.goodput_per_s),
                share(cell.figures.token_hit_ratio),
            ]);
        }
        page.table(&matrix);
    }
    for pool in &kv.gpu_pools {
        let gpu = &pool.gpu;
        let text = format!(
            "{} {} workers: prefill {}, recompute {}, decode {}, stalled on storage {}, on transfer {}, without work {}",
            count(u64::from(pool.workers)),
            pool.name,
            percent(gpu.prefill_ratio),
            percent(gpu.recompute_ratio),
            percent(gpu.decode_ratio),
            percent(gpu.storage_stall_ratio),
            percent(gpu.transfer_stall_ratio),
            percent(gpu.no_work_ratio)
        );
        page.paragraph(None, 2, &text);
    }
    if let Some(failover) = &kv.failover {
        let text = format!(
            "Workers died: {} ({} of GPU time down); {} requests went on elsewhere, {} failed; of {} tokens lost, {} were \
             loaded from the shared tier, {} found where they went, {} computed again",
            count(failover.workers_lost),
            percent(kv.gpu.down_ratio),
            count(failover.moved_requests),
            count(failover.failed_requests),
            count(failover.lost_tokens),
            count(failover.loaded_tokens),
            count(failover.found_tokens),
            count(failover.recomputed_tokens)
        );
        page.paragraph(None, 2, &text);
    }
}

fn rag_table(rag: &Rag) -> Table {
    let mut table = table(["", "queries", "queries/s", "p50", "p99", "share of TTFT", "recall"], 1);
    let (retrieve, ttft) = (&rag.retrieve.summary, &rag.ttft.summary);
    let blank = String::new;
    table.add_row([
        "retrieve".to_owned(),
        blank(),
        blank(),
        nanos(retrieve.p50_ns),
        nanos(retrieve.p99_ns),
        share(rag.retrieve_share_ratio),
        share(rag.recall_ratio),
    ]);
    table.add_row([
        "first token".to_owned(),
        count(rag.completed),
        number(rag.queries_per_s),
        nanos(ttft.p50_ns),
        nanos(ttft.p99_ns),
        blank(),
        blank(),
    ]);
    table
}

/// Two lines for each operation: service time above response time.
fn operations_table(operations: &[Operation]) -> Table {
    let mut table = table(["op", "count", "errors", "ops/s", "bytes/s", "time", "p50", "p99", "slip p99"], 1);
    for o in operations {
        let (service, response) = (&o.service_time.summary, &o.response_time.summary);
        let moved = if o.bytes > 0 { rate(o.bytes_per_s) } else { String::new() };
        table.add_row([
            format!("{}\n {}", clean(&o.op), clean(&o.carrier)),
            short(o.count as f64),
            short(errors(o) as f64),
            short(o.ops_per_s),
            moved,
            "service\nresponse".to_owned(),
            format!("{}\n{}", nanos(service.p50_ns), nanos(response.p50_ns)),
            format!("{}\n{}", nanos(service.p99_ns), nanos(response.p99_ns)),
            format!("\n{}", nanos(o.schedule_slip.p99_ns)),
        ]);
    }
    if let Some(column) = table.column_mut(5) {
        column.set_cell_alignment(CellAlignment::Left);
    }
    table
}

/// Text without what would move a terminal's cursor.
fn clean(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).collect()
}

/// What failed, by kind; nothing where nothing did.
fn failures(page: &mut Page, operations: &[Operation]) {
    for o in operations.iter().filter(|o| errors(o) > 0) {
        let kinds: Vec<String> =
            o.errors.iter().filter(|(_, n)| **n > 0).map(|(kind, n)| format!("{kind} {}", count(*n))).collect();
        page.paragraph(Some(Tone::Bad), 2, &format!("{} failed: {}", o.op, kinds.join(", ")));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrapping_never_exceeds_the_width_and_loses_nothing() {
        let text = format!("short words and {} and more", "x".repeat(200));
        for indent in [0, 2, 6] {
            let lines = wrapped(&text, indent);
            assert!(lines.iter().all(|l| l.chars().count() <= WIDTH), "{lines:?}");
            let squeezed = |s: &str| s.chars().filter(|c| !c.is_whitespace()).collect::<String>();
            assert_eq!(squeezed(&lines.concat()), squeezed(&text));
        }
    }
}
