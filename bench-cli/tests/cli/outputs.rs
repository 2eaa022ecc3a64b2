//! What is written where: JSON by its schema, reports in every format, help, and disks that are full.

use std::fs::{self, OpenOptions};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::program::{Place, ended};

const SHORT: [&str; 8] = ["run", "ops", "--target", "mem:", "--count", "500", "--objects", "20"];

fn short(place: &Place, out: &str, more: &[&str]) -> String {
    place.run(&[&SHORT[..], &["--out", out], more].concat()).passed().out
}

#[test]
fn json_is_valid_by_the_printed_schema_and_nothing_else_is_printed() {
    let place = Place::new();
    let schema: Value = serde_json::from_str(&place.run(&["report", "--schema"]).passed().out).expect("a schema");
    let schema = jsonschema::validator_for(&schema).expect("a valid schema");
    let printed: Value = serde_json::from_str(&short(&place, "r", &["--format", "json"])).expect("nothing but JSON");
    let errors: Vec<_> = schema.iter_errors(&printed).map(|error| error.to_string()).collect();
    assert!(errors.is_empty(), "{errors:?}");
    assert_eq!(printed, place.json("r/report.json"));
    let mut broken = printed;
    broken["run"]["seed"] = "many".into();
    assert!(!schema.is_valid(&broken), "the schema refuses something");
    place.write("broken.json", &broken.to_string());
    place.run(&["report", "broken.json"]).said(2, &["broken.json"]);
}

#[test]
fn reports_are_rendered_in_every_format() {
    let place = Place::new();
    let printed = short(&place, "r", &["--quiet"]);
    let render = |format: &str| place.run(&["report", "r", "--format", format]).passed().out;
    assert_eq!(render("text"), printed, "the tables of a run again");
    let page = render("html");
    assert_eq!(page, fs::read_to_string(place.path("r/report.html")).expect("a page"));
    assert!(page.starts_with("<!") && page.trim_end().ends_with("</html>") && page.len() < 2 << 20);
    assert!(!page.contains("src=\"http") && !page.contains("<link rel=\"stylesheet\""), "self-contained");
    let again: Value = serde_json::from_str(&render("json")).expect("JSON");
    assert_eq!(again, place.json("r/report.json"));
    let table = render("csv");
    let mut rows = csv::Reader::from_reader(table.as_bytes());
    assert!(rows.headers().expect("a head").iter().any(|column| column == "count"));
    assert_eq!(rows.records().count(), 1, "a row for the one operation");
    assert!(render("markdown").contains("| "), "a table");
    place.run(&["report", "r/report.json", "--format", "html", "--out", "page.html"]).passed();
    assert_eq!(fs::read_to_string(place.path("page.html")).expect("a page"), page);
    assert!(short(&place, "m", &["--format", "markdown"]).contains("| "));
    place.run(&["report", "absent"]).said(2, &["absent"]);
    place.run(&["report", "r", "--out", "no/such/file"]).said(1, &["no/such/file"]);
}

#[test]
fn a_directory_that_holds_a_report_is_left_alone() {
    let place = Place::new();
    short(&place, "r", &[]);
    let before = fs::read(place.path("r/report.json")).expect("a report");
    let again = place.run(&[&SHORT[..], &["--out", "r"]].concat());
    again.said(2, &["r holds a report already", "--out"]);
    assert_eq!(fs::read(place.path("r/report.json")).expect("a report"), before);
}

#[test]
fn without_out_a_directory_is_named_after_the_run() {
    let place = Place::new();
    place.run(&SHORT).passed();
    let names = place.names();
    assert!(names.len() == 1 && names[0].starts_with("gpufeed-ops-"), "{names:?}");
}

#[test]
fn directories_that_cannot_be_written_are_found_before_the_run() {
    let place = Place::new();
    let file = place.write("file", "");
    let below = format!("{file}/r");
    place.run(&[&SHORT[..], &["--out", &below]].concat()).said(1, &[&below]);
    let locked = place.path("locked");
    fs::create_dir(&locked).expect("a directory");
    fs::set_permissions(&locked, std::os::unix::fs::PermissionsExt::from_mode(0o555)).expect("permissions");
    // Root may write everywhere.
    if fs::write(locked.join("probe"), "").is_err() {
        place.run(&[&SHORT[..], &["--out", "locked/r"]].concat()).said(1, &["locked/r"]);
    }
}

/// The program on a disk whose files take no more than `blocks` of 512 bytes.
fn limited(place: &Place, blocks: u32) -> Command {
    let mut shell = place.command("sh");
    let script = format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$0\" \"$@\"");
    shell.args(["-c", &script, env!("CARGO_BIN_EXE_gpufeed")]);
    shell
}

#[test]
fn a_full_disk_is_said_and_the_results_are_still_shown() {
    let place = Place::new();
    // Room for the plan, not for the report.
    let ended = ended(limited(&place, 8).args(SHORT).args(["--out", "r", "--quiet"]));
    ended.said(1, &["cannot write r/", "File too large"]);
    assert!(ended.out.contains("500"), "{}", ended.out);
    let names: Vec<_> = fs::read_dir(place.path("r")).expect("a directory").flatten().map(|e| e.file_name()).collect();
    assert!(names.iter().all(|name| !name.to_string_lossy().ends_with(".part")), "no halves: {names:?}");
    // No room for anything.
    let place = Place::new();
    let ended = crate::program::ended(limited(&place, 0).args(SHORT).args(["--out", "r"]));
    ended.said(1, &["r/plan.toml", "File too large"]);
    assert!(ended.took < Duration::from_secs(10));
}

#[test]
fn a_log_that_no_longer_fits_costs_the_log_and_not_the_report() {
    let place = Place::new();
    let args = ["run", "ops", "--target", "mem:", "--count", "400000", "--op-log", "--quiet", "--out", "r"];
    let ended = ended(limited(&place, 1024).args(args));
    let report = place.json("r/report.json");
    let log = fs::metadata(place.path("r/ops.csv.zst")).expect("a log").len();
    assert!(log <= 512 << 10, "{log}");
    let checks = report["validity"].as_array().expect("validity");
    let said = checks.iter().any(|check| check["check"] == "ops: op-log" && check["status"] == "fail");
    assert!(said, "{checks:?}");
    ended.said(1, &["ops.csv.zst is incomplete", "File too large"]);
}

#[test]
fn standard_output_that_is_full_is_an_error() {
    let place = Place::new();
    let full = OpenOptions::new().write(true).open("/dev/full").expect("/dev/full");
    let mut command = place.gpufeed();
    command.args(["report", "--schema"]).stdout(full).stderr(Stdio::piped());
    let ended = command.spawn().expect("a program").wait_with_output().expect("the end");
    assert_eq!(ended.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&ended.stderr).starts_with("gpufeed: cannot write to standard output"));
}

#[test]
fn completions_man_and_version() {
    let place = Place::new();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        assert!(place.run(&["completions", shell]).passed().out.contains("gpufeed"), "{shell}");
    }
    assert!(place.run(&["man"]).passed().out.starts_with(".ie"));
    assert!(place.run(&["--version"]).passed().out.starts_with("gpufeed "));
}

#[test]
fn help_fits_100_columns() {
    let place = Place::new();
    let mut seen = 0;
    let mut commands = vec![Vec::<String>::new()];
    while let Some(command) = commands.pop() {
        let words: Vec<&str> = command.iter().map(String::as_str).chain(["--help"]).collect();
        let help = ended(place.gpufeed().args(&words).env("COLUMNS", "200")).passed().out;
        for line in help.lines() {
            assert!(line.chars().count() <= 100, "{words:?}: {line}");
        }
        seen += 1;
        let listed = help.split("Commands:\n").nth(1).into_iter().flat_map(str::lines);
        for line in listed.take_while(|line| line.starts_with("  ")) {
            // Names stand at two columns, what goes on from the line before further in.
            let name = line[2..].split(' ').next().filter(|name| !name.is_empty() && *name != "help");
            commands.extend(name.map(|name| command.iter().cloned().chain([name.to_owned()]).collect::<Vec<_>>()));
        }
    }
    assert!(seen >= 20, "{seen} commands");
}

#[test]
fn calibration_is_kept_and_used() {
    let place = Place::new();
    let cache = place.path("cache");
    let mut command = place.gpufeed();
    command.env("XDG_CACHE_HOME", &cache).args(["calibrate", "--duration", "200ms", "--json"]);
    let ceiling: Value = serde_json::from_str(&ended(&mut command).passed().out).expect("JSON");
    assert!(ceiling["bytes_per_s"].as_f64() > Some(0.0) && ceiling["ops_per_s"].as_f64() > Some(0.0), "{ceiling}");
    assert!(cache.join("gpufeed/calibration.json").exists());
    let data = format!("file://{}", place.path("data").display());
    fs::create_dir(place.path("data")).expect("a directory");
    let mut run = place.gpufeed();
    run.env("XDG_CACHE_HOME", &cache).args(["run", "ops", "--count", "100", "--objects", "20", "--out", "r"]);
    ended(run.args(["--target", &data])).passed();
    let report = place.json("r/report.json");
    assert!(report["clients"][0]["ceiling_bytes_per_s"].as_f64() > Some(0.0));
    assert_ne!(report["verdict"], "self-test");
}
