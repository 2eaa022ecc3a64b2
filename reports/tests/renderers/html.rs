//! The HTML report is well formed, self-contained, small and harmless.

use std::collections::BTreeSet;

use gpufeed_schema::RunReport;

use crate::fixtures;

fn html(report: &RunReport) -> String {
    let mut bytes = Vec::new();
    gpufeed_reports::html::render(report, &mut bytes).expect("memory takes it");
    String::from_utf8(bytes).expect("UTF-8")
}

/// An element's name and attributes.
pub(crate) struct Tag {
    pub(crate) name: String,
    attributes: Vec<(String, String)>,
}

/// Reads every tag, checking that elements nest, that attributes are quoted and appear once, and that text holds no
/// stray `<`. Answers the tags in order and the text outside scripts and styles.
pub(crate) fn well_formed(page: &str) -> Result<(Vec<Tag>, String), String> {
    let mut rest = page.strip_prefix("<!DOCTYPE html>").ok_or("no doctype")?;
    let (mut tags, mut text, mut open) = (Vec::new(), String::new(), Vec::<String>::new());
    while let Some(start) = rest.find('<') {
        text.push_str(&rest[..start]);
        rest = &rest[start + 1..];
        if let Some(closing) = rest.strip_prefix('/') {
            let end = closing.find('>').ok_or("unclosed end tag")?;
            let top = open.pop();
            if top.as_deref() != Some(&closing[..end]) {
                return Err(format!("</{}> closes {top:?}", &closing[..end]));
            }
            rest = &closing[end + 1..];
            continue;
        }
        let name: String = rest.chars().take_while(char::is_ascii_alphanumeric).collect();
        if name.is_empty() {
            return Err(format!("stray < before {:.40}", rest));
        }
        rest = &rest[name.len()..];
        let mut attributes: Vec<(String, String)> = Vec::new();
        let closed = loop {
            rest = rest.trim_start();
            if let Some(after) = rest.strip_prefix("/>") {
                rest = after;
                break true;
            }
            if let Some(after) = rest.strip_prefix('>') {
                rest = after;
                break false;
            }
            let (key, after) = rest.split_once("=\"").ok_or(format!("attribute of {name}: {rest:.40}"))?;
            let (value, after) = after.split_once('"').ok_or("unclosed attribute")?;
            if key.contains(|c: char| !(c.is_ascii_alphanumeric() || c == '-')) {
                return Err(format!("attribute `{key:.60}` of {name}"));
            }
            if attributes.iter().any(|(k, _)| k == key) {
                return Err(format!("{key} twice in {name}"));
            }
            attributes.push((key.to_owned(), value.to_owned()));
            rest = after;
        };
        if name == "script" || name == "style" {
            let end = rest.find(&format!("</{name}")).ok_or("unclosed script")?;
            rest = &rest[end..];
        }
        if !closed {
            open.push(name.clone());
        }
        tags.push(Tag { name, attributes });
    }
    if open.is_empty() { Ok((tags, text)) } else { Err(format!("left open: {open:?}")) }
}

fn all() -> Vec<(&'static str, RunReport)> {
    vec![
        ("quick", fixtures::quick(60)),
        ("empty", fixtures::empty()),
        ("extremes", fixtures::extremes()),
        ("hostile", fixtures::hostile()),
    ]
}

#[test]
fn the_checker_finds_what_is_wrong() {
    for bad in
        ["<p>", "<p></b>", "<p a=b></p>", "<p a=\"1\" a=\"2\"></p>", "<p>1 < 2</p>", "<p><b></p></b>", "no doctype"]
    {
        let page = if bad == "no doctype" { bad.to_owned() } else { format!("<!DOCTYPE html>{bad}") };
        assert!(well_formed(&page).is_err(), "{bad}");
    }
    assert!(well_formed("<!DOCTYPE html><p a=\"1\">x<br/></p>").is_ok());
}

#[test]
fn every_page_is_well_formed_and_needs_nothing_else() {
    for (name, report) in all() {
        let page = html(&report);
        let (tags, _) = well_formed(&page).unwrap_or_else(|error| panic!("{name}: {error}"));
        let mut ids = BTreeSet::new();
        for tag in &tags {
            for (key, value) in &tag.attributes {
                match key.as_str() {
                    "id" => assert!(ids.insert(value.clone()), "{name}: id {value} twice"),
                    "href" => assert!(value.starts_with('#'), "{name}: {value}"),
                    "src" | "style" | "srcset" | "action" => panic!("{name}: {} has {key}", tag.name),
                    key => assert!(!key.starts_with("on"), "{name}: {key}"),
                }
            }
            assert!(
                !["link", "iframe", "img", "object", "base", "form"].contains(&tag.name.as_str()),
                "{name}: {}",
                tag.name
            );
        }
        let targets = tags.iter().flat_map(|t| &t.attributes).filter(|(k, _)| k == "href" || k == "aria-labelledby");
        for id in targets.flat_map(|(_, v)| v.split(' ')) {
            assert!(ids.contains(id.trim_start_matches('#')), "{name}: nothing is called {id}");
        }
        // The one address in it names the SVG element type for the script.
        let addresses =
            page.matches("http://").count() + page.matches("https://").count() + page.matches("url(").count();
        assert_eq!(addresses, page.matches("\"http://www.w3.org/2000/svg\"").count(), "{name}");
        assert!(!page.contains("NaN") && !page.contains("inf "), "{name}");
    }
}

#[test]
fn charts_are_described_and_hold_the_data_that_the_script_reads() {
    let page = html(&fixtures::quick(60));
    let (tags, _) = well_formed(&page).expect("well formed");
    let charts = tags.iter().filter(|t| t.name == "svg" && t.attributes.iter().any(|(k, _)| k == "data-plot"));
    assert_eq!(charts.count(), 2 * 19, "each chart once wide and once narrow");
    for tag in tags.iter().filter(|t| t.name == "svg") {
        let has = |key: &str| tag.attributes.iter().any(|(k, v)| k == key && !v.is_empty());
        assert!(has("role") && (has("aria-label") || has("aria-labelledby")));
    }
    let mut found = 0;
    for data in page.split(r#"<script type="application/json">"#).skip(1) {
        let data: serde_json::Value = serde_json::from_str(data.split("</script>").next().expect("one")).expect("JSON");
        for series in data["s"].as_array().expect("series") {
            assert_eq!(series["x"].as_array().map(Vec::len), series["y"].as_array().map(Vec::len));
        }
        found += 1;
    }
    assert_eq!(found, 19);
}

#[test]
fn charts_draw_classes_not_colors() {
    let page = html(&fixtures::quick(60));
    let body = page.split("<body>").nth(1).and_then(|b| b.split("<script>").next()).expect("a body");
    for attribute in [" fill=", " stroke=", " style=", " color=", " opacity="] {
        assert!(!body.contains(attribute), "{attribute}");
    }
}

#[test]
fn hostile_text_stays_text() {
    let page = html(&fixtures::hostile());
    let (tags, text) = well_formed(&page).expect("well formed");
    assert_eq!(tags.iter().filter(|t| t.name == "img").count(), 0);
    assert!(text.contains("&lt;/script&gt;&lt;img src=x onerror=&quot;steal(&#39;a&#39;)&quot;&gt;&amp;amp;"));
    assert!(!page.contains(['\u{0}', '\u{1b}', '\u{202e}']));
    let scripts = |page: &str| page.matches("<script").count();
    let mut plain = fixtures::quick(3);
    plain.interference = fixtures::hostile().interference;
    assert_eq!(scripts(&page), scripts(&html(&plain)), "no script but ours");
}

#[test]
fn the_longest_report_stays_under_two_megabytes() {
    let mut report = fixtures::quick(5000);
    let kv = report.members[1].clone();
    report.members = vec![kv; 17];
    report.plan = serde_json::json!({ "keys": vec!["&&&&&&&&&&&&&&&&&&&&&&&&&&&&&&"; 100_000] });
    let page = html(&report);
    well_formed(&page).expect("well formed");
    assert!(page.len() < 2_000_000, "{} bytes", page.len());
    assert!(page.contains("9 more members are in report.json"));
}

#[test]
fn the_verdict_is_the_first_thing_said() {
    let page = html(&fixtures::extremes());
    let first = page.split("<h1>").nth(1).expect("a heading");
    assert!(first.starts_with("Client-limited: the storage may be faster than these figures"), "{first:.80}");
    assert!(page.find("<h1>") < page.find("<h2>"));
    let page = html(&fixtures::empty());
    assert!(page.contains("<h1>Interrupted, results are partial. Client-limited.</h1>"));
    assert!(page.contains("Nothing was measured."));
}

#[test]
fn a_picture_is_small_well_formed_and_needs_nothing_else() {
    for (name, report) in all() {
        let mut picture = Vec::new();
        gpufeed_reports::html::picture::render(&report, &mut picture).expect("memory takes it");
        let picture = String::from_utf8(picture).expect("UTF-8");
        assert!(picture.len() < 60_000, "{name}: {} bytes", picture.len());
        let (tags, _) =
            well_formed(&format!("<!DOCTYPE html>{picture}")).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(
            tags.iter().all(|t| ["svg", "style", "g", "rect", "path", "text", "circle"].contains(&t.name.as_str()))
        );
        assert!(!picture.contains("href") && !picture.contains("url(") && !picture.contains("NaN"), "{name}");
    }
}

#[test]
fn several_plain_loads_are_one_table() {
    let mut report = fixtures::quick(3);
    let operations = report.members[2].operations.clone();
    let load = |name: &str| gpufeed_schema::Member {
        name: name.into(),
        operations: operations.clone(),
        ..gpufeed_schema::Member::default()
    };
    report.members = vec![load("ops-4KiB-x1"), load("ops-4KiB-x16")];
    let page = html(&report);
    well_formed(&page).expect("well formed");
    let table = page.split("<caption>All loads</caption>").nth(1).and_then(|t| t.split("</table>").next());
    let table = table.expect("a table");
    assert!(table.contains("4KiB at depth 1<") && table.contains("4KiB at depth 16<"));
    assert!(!html(&fixtures::quick(3)).contains("All loads"));
}

#[test]
fn parts_of_ttft_stand_beside_the_baselines_and_loads_on_their_side_of_break_even() {
    use gpufeed_schema::{BreakEvenWrong, Distribution, Latency, Loading, TtftParts};
    let mean = |ms: f64| Latency { count: 1000, mean_ns: Some(ms * 1e6), ..Latency::default() };
    let mut report = fixtures::quick(60);
    let kv = report.members[1].kv.as_mut().expect("a KV run");
    kv.ttft_parts =
        TtftParts { queue: mean(30.0), load: mean(50.0), copy: mean(5.0), prefill: mean(15.0), ..TtftParts::default() };
    let ideal = kv.baselines.ideal_storage.as_mut().expect("a baseline");
    ideal.ttft_parts = TtftParts { queue: mean(10.0), prefill: mean(40.0), ..TtftParts::default() };
    // 61 GB of blocks in 1,000 loads of 25 ms, whatever the objects were scaled down to.
    (kv.block_tokens, kv.block_bytes, kv.loaded_tokens, kv.loaded_bytes) = (256, 256 * 131_072, 465_393, 7);
    kv.load = Loading {
        loads: 1000,
        last_block: Distribution { summary: mean(25.0), ladder: Vec::new() },
        break_even_wrong: BreakEvenWrong { loaded: 1000, loaded_slower: 7, ..BreakEvenWrong::default() },
        ..Loading::default()
    };
    let page = html(&report);
    for (label, whole) in [
        ("queue 30.0 ms, load 50.0 ms, copy 5.00 ms, prefill 15.0 ms", "100 ms"),
        ("queue 10.0 ms, prefill 40.0 ms", "50.0 ms"),
    ] {
        let after = page.split(&format!(r#"aria-label="{label}""#)).nth(1).unwrap_or_else(|| panic!("no bar {label}"));
        let cell = after.split("</tr>").next().expect("a row");
        assert!(cell.contains(&format!(r#"data-name="mean">{whole}</td>"#)), "{label}: {cell}");
    }
    let figure = page.split(r#"id="m1-break-even""#).nth(1).and_then(|rest| rest.split("</figure>").next());
    let figure = figure.expect("a break-even curve");
    assert!(figure.contains("the 2.44 GB/s that this run"), "{figure:.400}");
    assert!(figure.contains("7 of 1,000 requests that loaded would have been sooner computing"), "{figure:.400}");
    assert!(figure.contains(r#""n":"achieved by this run""#), "the line is in the data");
}
