//! The report as one HTML file that needs nothing else: no network, no script to be read, no more than 2 MB.

mod axis;
mod canvas;
pub mod capacity;
mod chart;
mod curves;
mod escape;
mod gpu;
mod kv;
mod matrix;
mod member;
pub mod picture;
pub mod search;
mod tables;
mod words;

use std::fmt::Write as _;
use std::io::Write;

use gpufeed_profiles::units::show_nanos;
use gpufeed_schema::{ClaimStatus, Member, RunReport, ValidityStatus, Verdict};

use crate::figures::{DASH, goal, number, or_dash, rate, share, typical};
use crate::verdict::{headline, sentence};
use escape::Text;

const STYLE: &str = include_str!("html/style.css");
const DARK: &str = include_str!("html/dark.css");
const SCRIPT: &str = include_str!("html/script.js");

/// Most of a plan that is shown, in bytes: `plan.toml` has it whole.
const MOST_PLAN_BYTES: usize = 200_000;
/// Members with charts; more keep their place in `report.json`.
const MOST_MEMBERS: usize = 8;

/// Writes `report.html`.
///
/// # Errors
/// Those of `to`.
pub fn render(report: &RunReport, to: &mut impl Write) -> std::io::Result<()> {
    to.write_all(page(report).as_bytes())
}

fn page(report: &RunReport) -> String {
    let mut page = String::with_capacity(256 * 1024);
    let run = &report.run;
    let verdict = sentence(report);
    let _ = write!(
        page,
        concat!(
            "<!DOCTYPE html>\n",
            r#"<html lang="en"><head><meta charset="utf-8"/><meta name="viewport" content="width=device-width, initial-scale=1"/>"#,
            r#"<meta name="color-scheme" content="light dark"/><title>gpufeed {} on {}</title>"#
        ),
        Text(&run.workload),
        Text(&run.target)
    );
    let _ = write!(
        page,
        "<style>{STYLE}\n@media screen and (prefers-color-scheme:dark){{:root:not([data-theme=light]){{{DARK}}}}}\n@media screen{{:root[data-theme=dark]{{{DARK}}}}}</style></head><body>"
    );
    page.push_str(r##"<a class="skip" href="#main">Skip to the report</a><header><div class="bar-top"><p class="mark">gpufeed</p>"##);
    navigation(&mut page, report);
    page.push_str(r#"<button type="button" id="theme" hidden="">Theme</button></div></header><main id="main">"#);
    top(&mut page, report, &verdict);
    for (i, member) in report.members.iter().take(MOST_MEMBERS).enumerate() {
        let most_points = chart::MOST_POINTS * 4 / report.members.len().clamp(4, MOST_MEMBERS);
        member::section(&mut page, i, member, most_points, report.members.len() == 1);
    }
    if report.members.len() > MOST_MEMBERS {
        let more = report.members.len() - MOST_MEMBERS;
        let _ = write!(page, r#"<p class="fine">{more} more members are in report.json.</p>"#);
    }
    if !report.interference.is_empty() {
        page.push_str(r#"<section id="interference"><h2>Interference</h2>"#);
        tables::interference(&mut page, &report.interference);
        page.push_str("</section>");
    }
    if !report.claims.is_empty() {
        page.push_str(r#"<section id="claims"><h2>Claims</h2><p class="fine">What vendors say of storage for AI, and what this run says of it.</p>"#);
        tables::claims(&mut page, &report.claims);
        page.push_str("</section>");
    }
    page.push_str(r#"<section id="validity"><h2>Can these figures be trusted?</h2>"#);
    if report.validity.is_empty() {
        page.push_str(r#"<p class="fine">No check was recorded.</p>"#);
    } else {
        tables::validity(&mut page, &report.validity, report.members.len() == 1);
    }
    if !report.clients.is_empty() {
        tables::clients(&mut page, &report.clients);
    }
    if !report.hosts.is_empty() {
        tables::hosts(&mut page, &report.hosts);
    }
    page.push_str("</section>");
    plan(&mut page, report);
    words::section(&mut page, report);
    let _ = write!(
        page,
        r#"</main><footer><p>Written by {} {} ({}), report schema {}.</p></footer><div id="tip" role="status" hidden=""></div><script>{SCRIPT}</script></body></html>"#,
        Text(&report.tool.name),
        Text(&report.tool.version),
        Text(&report.tool.commit),
        Text(&report.schema_version)
    );
    page.push('\n');
    page
}

fn navigation(page: &mut String, report: &RunReport) {
    page.push_str(r#"<nav aria-label="Sections">"#);
    for (i, member) in report.members.iter().take(MOST_MEMBERS).enumerate() {
        let _ = write!(page, r##"<a href="#m{i}">{}</a>"##, Text(member::title(&member.name)));
    }
    if !report.claims.is_empty() {
        page.push_str(r##"<a href="#claims">Claims</a>"##);
    }
    page.push_str(r##"<a href="#validity">Trust</a><a href="#plan">Plan</a></nav>"##);
}

/// RFC 3339 to the minute, as people write it; other text as it is.
fn started(at: &str) -> String {
    match (at.get(..10), at.get(10..11), at.get(11..16)) {
        (Some(day), Some("T"), Some(time)) if at.ends_with('Z') => format!("{day} {time} UTC"),
        _ => at.to_owned(),
    }
}

fn top(page: &mut String, report: &RunReport, verdict: &str) {
    let run = &report.run;
    // The figures that led to the verdict stand below it.
    let (first, rest) = verdict.split_once("; ").map_or((verdict, None), |(first, rest)| (first, Some(rest)));
    let class = match report.verdict {
        _ if report.interrupted => "bad",
        Verdict::ClientLimited => "warn",
        Verdict::StorageLimited | Verdict::ScheduleLimited => "good",
        Verdict::SelfTest => "none",
    };
    let _ = write!(
        page,
        r#"<section class="top"><p class="fine">{} on <code>{}</code>, {}</p><h1>{}.</h1>"#,
        Text(&run.workload),
        Text(&run.target),
        Text(started(&run.started_at)),
        Text(first)
    );
    if let Some(rest) = rest {
        let _ = write!(page, r#"<p class="lead">{}.</p>"#, Text(member::capitalized(rest)));
    }
    let _ = write!(page, r#"<p><span class="chip {class}">{}</span>"#, report.verdict.name());
    if report.interrupted {
        page.push_str(r#"<span class="chip bad">interrupted</span>"#);
    }
    if run.scaled {
        page.push_str(r#"<span class="chip warn">scaled</span>"#);
    }
    let emulated = report.members.iter().any(|m| m.training.is_some() || m.kv.is_some() || m.rag.is_some());
    if emulated {
        page.push_str(r#"<span class="chip none">accelerators emulated</span>"#);
    }
    page.push_str("</p>");
    if report.members.is_empty() {
        page.push_str("<p>Nothing was measured.</p>");
    }
    tables::loads(page, &report.members);
    let class = if report.members.len() == 1 { "cards one" } else { "cards" };
    let _ = write!(page, r#"<div class="{class}">"#);
    // Several plain loads are a table.
    let with_card = if tables::are_loads(&report.members) { 0 } else { MOST_MEMBERS };
    for (i, member) in report.members.iter().take(with_card).enumerate() {
        card(page, i, member);
    }
    checks_card(page, report);
    page.push_str("</div>");
    for line in &run.scaling {
        let _ = write!(
            page,
            r#"<p class="fine"><b>Scaled.</b> {}.</p>"#,
            Text(member::capitalized(line.trim_end_matches('.')))
        );
    }
    page.push_str("</section>");
}

/// A member's most telling figure, its name and its outcome.
fn key_figure(member: &Member) -> (String, String, Option<bool>) {
    if let Some(t) = &member.training {
        return (
            share(t.au_ratio),
            format!("accelerator utilization, {} needed", goal(t.au_threshold_ratio)),
            t.passed,
        );
    }
    if let Some(kv) = &member.kv {
        let (name, value) = typical(&kv.ttft.summary);
        return (or_dash(value, show_nanos), format!("time to first token, {name}"), None);
    }
    if let Some(rag) = &member.rag {
        return (share(rag.retrieve_share_ratio), "of time to first token is retrieval".to_owned(), None);
    }
    let bytes: f64 = member.operations.iter().map(|o| o.bytes_per_s).sum();
    let ops: f64 = member.operations.iter().map(|o| o.ops_per_s).sum();
    match (member.operations.is_empty(), bytes > 0.0) {
        (true, _) => (DASH.to_owned(), "nothing measured".to_owned(), None),
        (false, true) => (rate(bytes), "payload moved".to_owned(), None),
        (false, false) => (format!("{}/s", number(ops)), "operations".to_owned(), None),
    }
}

fn card(page: &mut String, index: usize, member: &Member) {
    let (value, name, passed) = key_figure(member);
    let chip = match passed {
        Some(true) => r#"<span class="chip good">pass</span>"#,
        Some(false) => r#"<span class="chip bad">fail</span>"#,
        None => "",
    };
    let _ = write!(
        page,
        r##"<a class="card" href="#m{index}"><span class="name">{} {chip}</span><strong>{}</strong><span class="of">{}</span><span class="why">{}.</span></a>"##,
        Text(member::title(&member.name)),
        Text(value),
        Text(name),
        Text(member::capitalized(&headline(member)))
    );
}

fn checks_card(page: &mut String, report: &RunReport) {
    let of = |status: ValidityStatus| report.validity.iter().filter(|v| v.status == status).count();
    let (failed, doubtful) = (of(ValidityStatus::Fail), of(ValidityStatus::Warn));
    let all = report.validity.len();
    let (class, word) = match (all, failed, doubtful) {
        (0, ..) => ("none", "no checks"),
        (_, 0, 0) => ("good", "sound"),
        (_, 0, _) => ("warn", "doubtful"),
        _ => ("bad", "wrong"),
    };
    let mut worst: Vec<&gpufeed_schema::Validity> = report.validity.iter().collect();
    worst.retain(|v| matches!(v.status, ValidityStatus::Fail | ValidityStatus::Warn));
    worst.sort_by_key(|v| std::cmp::Reverse(v.status));
    let mut why = match worst.split_first() {
        None => String::new(),
        Some((first, [])) => format!("{}. ", member::capitalized(first.detail.trim_end_matches('.'))),
        Some((first, more)) => {
            format!("{}; {} more below. ", member::capitalized(first.detail.trim_end_matches('.')), more.len())
        }
    };
    let of = |status: ClaimStatus| report.claims.iter().filter(|c| c.status == status).count();
    let (met, missed) = (of(ClaimStatus::Met), of(ClaimStatus::Missed));
    if met + missed > 0 {
        let _ = write!(why, "Claims: {met} met, {missed} missed.");
    }
    let _ = write!(
        page,
        r##"<a class="card" href="#validity"><span class="name">Trust <span class="chip {class}">{word}</span></span><strong>{}/{all}</strong><span class="of">checks of the measurement hold</span><span class="why">{}</span></a>"##,
        all - failed - doubtful,
        Text(why)
    );
}

fn plan(page: &mut String, report: &RunReport) {
    let run = &report.run;
    page.push_str(concat!(
        r#"<section id="plan"><h2>Plan</h2><p>To run this again exactly, in the report's directory:</p>"#,
        r#"<pre><code>gpufeed run plan.toml</code></pre><p class="fine">The same plan and seed generate the same operations; "#,
        r#"the plan hash says whether they did.</p><div class="scroll" tabindex="0" role="group" aria-label="Run"><table><caption>Run</caption><tbody>"#
    ));
    let rows = [
        ("workload", run.workload.clone()),
        ("target", run.target.clone()),
        ("transport", run.transport.clone()),
        ("seed", run.seed.to_string()),
        ("started", run.started_at.clone()),
        ("warm-up", format!("{} s", number(run.warm_up_s))),
        ("measured", format!("{} s", number(run.duration_s))),
        ("plan hash", run.plan_hash.clone()),
        ("issued hash", run.issued_hash.clone().unwrap_or_else(|| DASH.to_owned())),
    ];
    for (name, value) in rows {
        let _ = write!(page, r#"<tr><th scope="row">{name}</th><td class="text">{}</td></tr>"#, Text(value));
    }
    page.push_str("</tbody></table></div>");
    let full = Text(serde_json::to_string_pretty(&report.plan).unwrap_or_default()).to_string();
    let cut = full.len() > MOST_PLAN_BYTES;
    // Cut at the end of a line, never inside a character reference.
    let shown = match full.get(..full.floor_char_boundary(MOST_PLAN_BYTES)) {
        Some(head) if cut => &head[..head.rfind('\n').unwrap_or(0)],
        _ => full.as_str(),
    };
    let rest = if cut { "\n… cut here; plan.toml has it whole" } else { "" };
    let _ = write!(
        page,
        r#"<details><summary>The full plan, every default resolved</summary><pre tabindex="0"><code>{shown}{rest}</code></pre></details></section>"#
    );
}
