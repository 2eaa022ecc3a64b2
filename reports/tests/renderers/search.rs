//! The page and the tables of a knee search.

use gpufeed_reports::html::search::page;
use gpufeed_reports::search::{markdown, text};
use gpufeed_schema::{
    Host, SEARCH_SCHEMA_VERSION, SearchCriterion, SearchFigures, SearchLevel, SearchParameter, SearchProbe,
    SearchReport, SearchStatus, SearchedStorage, Tool,
};

use crate::html::well_formed;

const HOSTILE: &str = "</script><img src=x onerror='a()'>|";

fn storage(name: &str, knee: f64) -> SearchedStorage {
    let figures = |ratio: f64, level: f64| SearchFigures {
        goodput_ratio: Some(ratio),
        goodput_per_s: Some(ratio * level * 3.0),
        offered_per_s: Some(level * 3.0),
        ..SearchFigures::default()
    };
    let level = |level: f64| {
        let passed = level <= knee;
        let figures = figures(if passed { 0.99 } else { 0.5 }, level);
        SearchLevel { level, passed: 2 * u32::from(passed), failed: 2 * u32::from(!passed), figures }
    };
    let levels = [1.0, 2.0, 2.5, 4.0].map(level).to_vec();
    let probe = |at: &SearchLevel| SearchProbe {
        level: at.level,
        directory: (name == "target").then(|| "probe-001".to_owned()),
        passed: at.passed > 0,
        verdict: None,
        verdict_detail: None,
        failure: None,
        figures: at.figures,
    };
    SearchedStorage {
        storage: name.to_owned(),
        virtual_time: name != "target",
        status: SearchStatus::Found,
        knee: Some(knee),
        neighbor: Some(2.0 * knee),
        knee_per_s: Some(0.99 * knee * 3.0),
        probes: levels.iter().map(probe).collect(),
        levels,
    }
}

fn report() -> SearchReport {
    SearchReport {
        schema_version: SEARCH_SCHEMA_VERSION.to_owned(),
        tool: Tool { name: "gpufeed".to_owned(), version: "0.1.0".to_owned(), commit: "unknown".to_owned() },
        host: Host {
            kernel: "6.1".to_owned(),
            cpu_model: "a processor".to_owned(),
            cores: 2,
            memory_bytes: 1 << 30,
            facts: std::collections::BTreeMap::default(),
        },
        status: SearchStatus::Found,
        summary: "2.5 times the trace is the most".to_owned(),
        workload: "kv".to_owned(),
        target: HOSTILE.to_owned(),
        seed: 42,
        started_at: "2026-01-02T03:04:05Z".to_owned(),
        parameter: SearchParameter {
            name: "rate_scale".to_owned(),
            unit: "times the trace".to_owned(),
            least: 0.125,
            most: 64.0,
            start: 1.0,
            resolution_ratio: Some(0.05),
        },
        criterion: SearchCriterion {
            metric: "goodput".to_owned(),
            text: "at least 95% inside its objectives".to_owned(),
            threshold_ratio: Some(0.95),
            threshold_ns: Some(2_000_000_000),
        },
        confirmations: 3,
        most_probes: 60,
        storages: vec![storage("target", 2.5), storage("no_cache", 1.0), storage("ideal_storage", 2.0)],
        trace_span_s: Some(60.0),
        notes: vec![HOSTILE.to_owned()],
        search_hash: "0123456789abcdef".to_owned(),
        plan: serde_json::json!({ "target": HOSTILE }),
    }
}

#[test]
fn the_page_is_well_formed_harmless_and_shows_every_curve() {
    let page = page(&report());
    let (tags, words) = well_formed(&page).expect("well formed");
    assert!(tags.iter().all(|tag| tag.name != "img"), "what was typed stays text");
    assert!(page.contains("prefers-color-scheme:dark") && page.len() < 200_000);
    for word in ["2.5 times the trace is the most", "no cache", "ideal storage", "what a level has to do", "virtual"] {
        assert!(words.contains(word), "{word}");
    }
    // A wide and a narrow drawing.
    assert_eq!(page.matches(r#"aria-labelledby="knee-"#).count(), 2);
    assert_eq!(page.matches(r#"href="probe-001/report.html""#).count(), 4, "each measured probe leads to its report");
}

#[test]
fn a_search_that_has_just_begun_has_a_page_too() {
    let mut report = report();
    report.storages.truncate(1);
    report.storages[0].levels.clear();
    report.storages[0].probes.clear();
    let page = page(&report);
    well_formed(&page).expect("well formed");
    assert!(page.contains("A curve needs two levels"));
}

#[test]
fn tables_stand_side_by_side_and_mark_the_knee() {
    let text = text(&report());
    let line = |start: &str| text.lines().find(|line| line.starts_with(start)).unwrap_or_else(|| panic!("{text}"));
    // 0.99 · 2.5 · 3 and 0.99 · 1 · 3 requests per second.
    assert!(line("the target ").ends_with("2.5    7.42") || line("the target ").ends_with("2.5    7.43"), "{text}");
    assert!(line("no cache ").ends_with("2.97"), "{text}");
    assert_eq!(text.matches("  knee").count(), 3, "{text}");
    let line = line("2.5  ");
    assert!(line.contains("pass 2 of 2") && line.contains("99.0%"), "{text}");
    let markdown = markdown(&report());
    assert!(markdown.starts_with("**2.5 times the trace is the most**"));
    assert!(!markdown.contains("<img") && markdown.contains("| 2.5 | pass 2 of 2 | 99.0% |"), "{markdown}");
}
