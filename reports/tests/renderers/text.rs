//! Terminal tables, CSV, Markdown, and reading reports back.

use gpufeed_reports::{csv, markdown, read, terminal};
use gpufeed_schema::RunReport;

use crate::fixtures;

const PLAIN: terminal::Style = terminal::Style { color: false, ascii: false };

fn csv_of(report: &RunReport) -> String {
    let mut bytes = Vec::new();
    csv::render(report, &mut bytes).expect("memory takes it");
    String::from_utf8(bytes).expect("UTF-8")
}

#[test]
fn terminal_tables() {
    insta::assert_snapshot!("terminal_quick", terminal::render(&fixtures::quick(60), PLAIN));
    insta::assert_snapshot!("terminal_empty", terminal::render(&fixtures::empty(), PLAIN));
    insta::assert_snapshot!("terminal_extremes", terminal::render(&fixtures::extremes(), PLAIN));
}

#[test]
fn csv_summaries() {
    insta::assert_snapshot!("csv_quick", csv_of(&fixtures::quick(60)));
    insta::assert_snapshot!("csv_empty", csv_of(&fixtures::empty()));
    insta::assert_snapshot!("csv_extremes", csv_of(&fixtures::extremes()));
}

#[test]
fn markdown_summaries() {
    insta::assert_snapshot!("markdown_quick", markdown::render(&fixtures::quick(60)));
    insta::assert_snapshot!("markdown_empty", markdown::render(&fixtures::empty()));
    insta::assert_snapshot!("markdown_extremes", markdown::render(&fixtures::extremes()));
}

#[test]
fn terminal_lines_fit_and_say_no_more_than_they_show() {
    for report in [fixtures::quick(60), fixtures::empty(), fixtures::extremes(), fixtures::hostile()] {
        for ascii in [false, true] {
            let text = terminal::render(&report, terminal::Style { color: false, ascii });
            for line in text.lines() {
                assert!(line.chars().count() <= 80, "{line}");
                assert!(!line.contains(|c: char| c.is_control()), "{line:?}");
                assert!(!ascii || line.is_ascii(), "{line}");
            }
            let color = terminal::render(&report, terminal::Style { color: true, ascii });
            let bare: String = ["1", "31", "32", "33", "0"]
                .iter()
                .fold(color.clone(), |text, code| text.replace(&format!("\u{1b}[{code}m"), ""));
            assert_eq!(bare, text);
            assert!(color.contains('\u{1b}'));
        }
    }
}

#[test]
fn only_doubtful_checks_are_shown() {
    let text = terminal::render(&fixtures::quick(60), PLAIN);
    assert!(text.contains("steady-state") && !text.contains("verification"), "{text}");
}

#[test]
fn csv_rows_are_members_by_operations() {
    let report = fixtures::quick(60);
    let text = csv_of(&report);
    let lines: Vec<&str> = text.lines().collect();
    let operations: usize = report.members.iter().map(|m| m.operations.len()).sum();
    assert_eq!(lines.len(), 1 + operations);
    let columns: Vec<&str> = lines[0].split(',').collect();
    let column = |name: &str| columns.iter().position(|c| *c == name).expect(name);
    let put: Vec<&str> = lines.iter().find(|l| l.contains(",put,")).expect("a put").split(',').collect();
    assert_eq!(put.len(), columns.len());
    assert_eq!(put[column("errors")], "14");
    assert_eq!(put[column("count")], "12800");
    let kv = report.members[1].kv.as_ref().expect("kv");
    assert_eq!(put[column("kv_ttft_p99_ns")], kv.ttft.summary.p99_ns.expect("enough samples").to_string());
    assert_eq!(put[column("training_au_ratio")], "");
}

#[test]
fn markdown_keeps_hostile_text_as_text() {
    let text = markdown::render(&fixtures::hostile());
    assert!(!text.contains("<img") && !text.contains("</script") && !text.contains('\u{1b}'));
    // Every row of a table has as many cells as its header.
    let cells = |line: &str| line.replace("\\|", "").matches('|').count();
    let lines: Vec<&str> = text.lines().collect();
    for pair in lines.windows(2).filter(|p| p[0].starts_with('|') && p[1].starts_with('|')) {
        assert_eq!(cells(pair[0]), cells(pair[1]), "{pair:?}");
    }
}

/// Whether two reports say the same. Reading a decimal fraction may differ from what was written in its last bit.
fn alike(a: &RunReport, b: &RunReport) -> bool {
    fn same(a: &serde_json::Value, b: &serde_json::Value) -> bool {
        use serde_json::Value::{Array, Number, Object};
        match (a, b) {
            (Number(a), Number(b)) if a.is_f64() => {
                let (a, b) = (a.as_f64().expect("a number"), b.as_f64().expect("a number"));
                (a - b).abs() <= 1e-14 * b.abs()
            }
            (Array(a), Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b)),
            (Object(a), Object(b)) => a.len() == b.len() && a.iter().all(|(k, a)| b.get(k).is_some_and(|b| same(a, b))),
            (a, b) => a == b,
        }
    }
    same(&serde_json::to_value(a).expect("JSON"), &serde_json::to_value(b).expect("JSON"))
}

#[test]
fn reports_survive_json_and_fit_the_schema() {
    let schema = gpufeed_schema::json_schema();
    let validator = jsonschema::validator_for(&schema).expect("a schema");
    for report in [fixtures::quick(60), fixtures::empty(), fixtures::extremes(), fixtures::hostile()] {
        let text = serde_json::to_string(&report).expect("JSON");
        assert!(alike(&read::report(&text).expect("reads back"), &report));
        let value: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        let errors: Vec<String> =
            validator.iter_errors(&value).map(|e| format!("{e} at {}", e.instance_path)).collect();
        assert!(errors.is_empty(), "{errors:?}");
    }
    let mut wrong = serde_json::to_value(fixtures::quick(3)).expect("JSON");
    wrong["verdict"] = "guilty".into();
    assert!(!validator.is_valid(&wrong));
}

fn refusal(text: &str) -> String {
    read::report(text).expect_err("refused").to_string()
}

#[test]
fn what_cannot_be_read_is_refused_in_one_sentence() {
    let whole = serde_json::to_string_pretty(&fixtures::quick(3)).expect("JSON");
    let version = |v: &str| whole.replacen(&format!("\"{}\"", gpufeed_schema::SCHEMA_VERSION), v, 1);

    assert_eq!(refusal(""), "the report is not valid JSON at line 1, column 0: it ends too early; write it again");
    assert!(refusal(&whole[..whole.len() / 2]).ends_with("it ends too early; write it again"));
    assert_eq!(
        refusal("{\n  \"schema_version\": \"1.0\",,\n}"),
        "the report is not valid JSON at line 2, column 27: it was edited or damaged"
    );
    let none = "this JSON is not a gpufeed report: it has no `schema_version` of the form major.minor";
    for other in [
        "[]",
        "{}",
        "3",
        "null",
        "{\"schema_version\": 1}",
        "{\"schema_version\": \"one\"}",
        "{\"schema_version\": \"1\"}",
    ] {
        assert_eq!(refusal(other), none, "{other}");
    }
    assert_eq!(
        refusal(&version("\"2.0\"")),
        "the report has schema version 2.0, this gpufeed reads up to 1.x; use a newer gpufeed"
    );
    assert_eq!(
        refusal(&version("\"0.9\"")),
        "the report has schema version 0.9, this gpufeed reads 1.x; use the gpufeed that wrote it"
    );
    let shape = refusal(&whole.replacen("\"verdict\": \"self-test\"", "\"verdict\": \"guilty\"", 1));
    assert!(shape.starts_with("the report does not fit its schema at line "), "{shape}");
    assert!(shape.contains("unknown variant `guilty`"), "{shape}");
    assert_eq!(
        refusal("{\"schema_version\": \"1.0\"}"),
        "the report does not fit its schema at line 1, column 25: missing field `tool`"
    );
}

/// What 1.1 added is missing from a report of 1.0, which reads all the same.
#[test]
fn reports_of_1_0_are_read() {
    let mut value = serde_json::to_value(fixtures::quick(3)).expect("JSON");
    value["schema_version"] = "1.0".into();
    let members = value["members"].as_array_mut().expect("members");
    let kv = members.iter_mut().find_map(|member| member["kv"].as_object_mut()).expect("a KV section");
    for key in ["wire", "transfer", "tier_flow", "gpu_pools", "transferred_bytes", "failover", "matrix", "load"] {
        assert!(kv.remove(key).is_some(), "{key}");
    }
    let without = |object: &mut serde_json::Value, key: &str| {
        assert!(object.as_object_mut().expect("an object").remove(key).is_some(), "{key}");
    };
    without(&mut kv["ttft_parts"], "transfer");
    for name in ["no_cache", "local", "ideal_storage"] {
        for key in ["ttft_parts", "input_tokens_per_s"] {
            without(&mut kv["baselines"][name], key);
        }
    }
    let report = read::report(&value.to_string()).expect("reads");
    let kv = report.members.iter().find_map(|member| member.kv.as_ref()).expect("a KV section");
    let expected = fixtures::quick(3);
    let expected = expected.members.iter().find_map(|member| member.kv.as_ref()).expect("a KV section");
    assert_eq!((&kv.ttft, kv.completed, kv.gpu), (&expected.ttft, expected.completed, expected.gpu));
    assert!(kv.gpu_pools.is_empty() && kv.failover.is_none());
}

#[test]
fn no_truncation_is_read_or_panics() {
    let whole = serde_json::to_string(&fixtures::quick(2)).expect("JSON");
    for end in (0..whole.len()).step_by(97).filter(|end| whole.is_char_boundary(*end)) {
        assert!(!refusal(&whole[..end]).contains('\n'));
    }
}

#[test]
fn later_minor_versions_are_read_without_what_they_add() {
    let mut value = serde_json::to_value(fixtures::quick(3)).expect("JSON");
    value["schema_version"] = "1.7".into();
    value["added_later"] = serde_json::json!({ "deep": [1, 2] });
    value["members"][0]["operations"][0]["added_later"] = 3.into();
    // Keys that reports of this version may lack, since they came later than the first.
    for key in ["unit", "note"] {
        value["claims"][0].as_object_mut().expect("a claim").remove(key);
    }
    let mut expected = fixtures::quick(3);
    expected.schema_version = "1.7".into();
    (expected.claims[0].unit, expected.claims[0].note) = (String::new(), None);
    assert!(alike(&read::report(&format!("\u{feff}{value}")).expect("reads"), &expected));
}
