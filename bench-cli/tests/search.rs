//! `gpufeed search` against ground truth: knees that follow from an injected cap by a formula.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use gpufeed_engine::settings::Settings;
use gpufeed_engine::simulated::{self, StorageModel};
use gpufeed_engine::watch::Watch;
use gpufeed_profiles::storage::Shape;
use gpufeed_schema::{SearchReport, SearchStatus, Section, search_json_schema};
use gpufeed_workloads::machine::Workload;
use gpufeed_workloads::search::{Domain, End, Next, Search, Spec, Vote};
use gpufeed_workloads::training::{LoaderKind, Training, TrainingSpec};
use tempfile::TempDir;

/// Longest time anything here may take.
const BOUND: Duration = Duration::from_secs(180);

/// The right to measure time.
fn alone() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    // A test that failed does not make the others fail.
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

fn gpufeed(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gpufeed"));
    command.arg("search").args(args).stdin(Stdio::null());
    command.env_remove("AWS_PROFILE").env_remove("AWS_ENDPOINT_URL").env("AWS_EC2_METADATA_DISABLED", "true");
    command
}

/// A search that is over.
struct Searched {
    code: Option<i32>,
    out: String,
    err: String,
}

/// Runs a search to its end in `dir`, with its report on standard output.
fn search(dir: &Path, args: &[&str]) -> Searched {
    let mut command = gpufeed(args);
    command.args(["--quiet", "--format", "json", "--out", "found"]).current_dir(dir);
    let output = command.output().expect("the program starts");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
    Searched { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
}

impl Searched {
    /// Its report, after it ended with `code`; what lies in the directory is the same and holds to its schema.
    fn report(&self, code: i32, dir: &Path) -> SearchReport {
        assert_eq!(self.code, Some(code), "{} {}", self.err, self.out);
        let report: SearchReport = serde_json::from_str(&self.out).expect("a report on standard output");
        let kept = kept(dir).expect("search.json");
        assert_eq!(kept, report);
        let schema = jsonschema::validator_for(&search_json_schema()).expect("a schema");
        let value = serde_json::to_value(&report).expect("JSON");
        assert!(schema.is_valid(&value), "{:?}", schema.iter_errors(&value).next());
        let page = std::fs::read_to_string(dir.join("found/search.html")).expect("a page");
        assert!(!page.contains(" src=") && !page.contains("href=\"http"), "self-contained");
        assert!(page.contains("prefers-color-scheme:dark"), "light and dark");
        report
    }
}

fn kept(dir: &Path) -> Option<SearchReport> {
    serde_json::from_str(&std::fs::read_to_string(dir.join("found/search.json")).ok()?).ok()
}

fn place() -> TempDir {
    tempfile::tempdir().expect("a directory")
}

/// Samples of 64 KiB, two a batch, 50 ms of compute: an accelerator needs 2,621,440 bytes/s.
const NEED: f64 = 2.0 * 65_536.0 / 0.05;
/// Utilization that unet3d asks for.
const THRESHOLD: f64 = 0.9;

/// A bandwidth in the middle of those for which `knee` accelerators are the most: floor(B / (θ · need)) = knee.
fn mid_interval(knee: u32, threshold: f64, need: f64) -> f64 {
    (f64::from(knee) + 0.5) * threshold * need
}

/// In virtual time nothing is noisy: every knee is exact, for every threshold.
#[test]
fn accelerators_under_a_bandwidth_cap_are_the_formula_in_virtual_time() {
    for threshold in [0.5, 0.9] {
        for knee in [1, 2, 3, 5, 8, 10] {
            let bandwidth = mid_interval(knee, threshold, NEED);
            let (most, next) = virtual_knee(bandwidth, threshold);
            let formula = (bandwidth / (threshold * NEED)).floor();
            assert_eq!((most, next), (formula, formula + 1.0), "{bandwidth} bytes/s for {threshold}");
        }
    }
}

fn virtual_knee(bandwidth: f64, threshold: f64) -> (f64, f64) {
    let domain = Domain { least: 1.0, most: 64.0, whole: true, resolution_ratio: None };
    let search = Search::new(Spec { domain, start: 1.0, confirmations: 1, most_probes: 50 }).expect("makes sense");
    let mut votes: Vec<Vote> = Vec::new();
    loop {
        match search.next(&votes) {
            Next::Probe(at) => votes.push(Vote { at, passed: utilization(at as u32, bandwidth) >= threshold }),
            Next::Done(found) => {
                assert_eq!(found.end, End::Found);
                return (found.knee.expect("a knee"), found.above.expect("a neighbor"));
            }
        }
    }
}

/// Utilization of an epoch on the virtual clock, on storage of so many bytes per second.
fn utilization(accelerators: u32, bandwidth: f64) -> f64 {
    let spec = TrainingSpec {
        model: "unet3d".into(),
        accelerator: "h100".into(),
        accelerators,
        // 120 steps.
        files: 240 * u64::from(accelerators),
        samples_per_file: 1,
        sample_bytes: 65_536.0,
        sample_bytes_sigma: 0.0,
        batch: 2,
        compute: Duration::from_millis(50),
        loader: LoaderKind::Pytorch,
        readers: 2,
        prefetch: 2,
        shuffle: true,
        epochs: Some(1),
        au_threshold_ratio: THRESHOLD,
        prefix: "train/".into(),
        suffix: ".npz".into(),
        seed: 7,
    };
    let shape = Shape::parse(&[format!("get:bandwidth={bandwidth}B/s")]).expect("a shape");
    let machine = Training::new(spec).expect("runs");
    let settings = Settings { duration: None, ..Settings::default() };
    let storage = StorageModel::new(&shape, 7, None);
    let measured = simulated::run(&settings, storage, machine, &Watch::new()).expect("runs");
    match measured.machines[0].section(measured.window) {
        Section::Training(training) => training.au_ratio.expect("steps"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn accelerators_under_a_bandwidth_cap_are_the_formula_on_the_wall_clock() {
    let _turn = alone();
    let place = place();
    let shape = format!("get:bandwidth={}B/s", mid_interval(5, THRESHOLD, NEED));
    let args = [
        "training",
        "--profile",
        "unet3d-h100",
        "--set",
        "training.record_bytes=65536",
        "--set",
        "training.record_bytes_sigma=0",
        "--set",
        "training.batch=2",
        "--set",
        "training.compute=50ms",
        "--files",
        "512",
        "--verify",
        "off",
        "--duration",
        "2s",
        "--warm-up",
        "500ms",
        "--max",
        "8",
        "--shape",
        &shape,
    ];
    let report = search(place.path(), &args).report(0, place.path());
    let target = &report.storages[0];
    assert_eq!((report.status, target.knee, target.neighbor), (SearchStatus::Found, Some(5.0), Some(6.0)));
    // Climb, bisect, and a second run of the knee and of its neighbor at least.
    let levels: Vec<f64> = target.probes.iter().map(|probe| probe.level).collect();
    assert_eq!(levels[..6], [1.0, 2.0, 4.0, 8.0, 6.0, 5.0]);
    for at in [5.0, 6.0] {
        let level = target.levels.iter().find(|level| level.level == at).expect("tried");
        assert!(level.passed + level.failed >= 2, "{level:?}");
        let ratio = level.figures.au_ratio.expect("a utilization");
        assert_eq!(ratio >= THRESHOLD, at < 5.5, "{level:?}");
    }
    // Each probe is an ordinary run with a report, on the data of the first.
    for (i, probe) in target.probes.iter().enumerate() {
        let dir = place.path().join("found").join(probe.directory.as_ref().expect("measured"));
        let text = std::fs::read_to_string(dir.join("report.json")).expect("a report");
        let run: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(run["members"][0]["training"]["accelerators"].as_f64(), Some(probe.level));
        let data = run["validity"].as_array().expect("checks").iter().find(|c| c["check"] == "training: data-set");
        let words = data.expect("a data set")["detail"].as_str().expect("words").to_owned();
        assert_eq!(words.contains("512 were there"), i > 0, "{words}");
    }
}

/// 20 operations per second of 200 ms each keep 20 · 0.2 = 4 clients busy. Three reach 15 per second, and
/// an operation may take 30 ms longer before four are not within 15% of the cap.
const CAPPED: [&str; 14] = [
    "ops",
    "--shape",
    "get:iops=20,latency=200ms",
    "--growth",
    "15%",
    "--duration",
    "2s",
    "--warm-up",
    "300ms",
    "--verify",
    "off",
    "--objects",
    "32",
    "--max=32",
];

fn probes(dir: &Path) -> usize {
    kept(dir).map_or(0, |report| report.storages[0].probes.len())
}

/// A running search, killed when dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn throughput_stops_growing_at_the_depth_of_the_cap_also_when_killed_on_the_way() {
    let _turn = alone();
    let place = place();
    let dir = place.path();
    let mut command = gpufeed(&CAPPED);
    command.args(["--quiet", "--format", "json", "--out", "found"]).current_dir(dir);
    let running = Running(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("the program starts"));
    let deadline = Instant::now() + BOUND;
    while probes(dir) < 2 {
        assert!(Instant::now() < deadline, "no probe within {BOUND:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
    drop(running);
    let before = kept(dir).expect("what was known");
    assert_eq!(before.status, SearchStatus::Unfinished);

    let report = search(dir, &CAPPED).report(0, dir);
    let target = &report.storages[0];
    assert_eq!((report.status, target.knee, target.neighbor), (SearchStatus::Found, Some(4.0), Some(3.0)));
    let kept_probes = &before.storages[0].probes;
    for (kept, now) in kept_probes.iter().zip(&target.probes) {
        assert_eq!((kept.level, kept.figures), (now.level, now.figures), "kept as it was");
    }
    let levels: Vec<f64> = target.probes.iter().map(|probe| probe.level).collect();
    assert_eq!(levels[..5], [1.0, 2.0, 4.0, 8.0, 3.0], "each level once, as if never killed");

    // A search that is done is told again, not run again.
    let begun = Instant::now();
    let again = search(dir, &[&CAPPED[..], &["--resume"]].concat()).report(0, dir);
    assert_eq!(again.storages, report.storages);
    assert!(begun.elapsed() < Duration::from_secs(10));
    // The directory is for that search alone.
    let other = search(dir, &[&CAPPED[..], &["--seed", "7"]].concat());
    assert_eq!(other.code, Some(2));
    assert!(other.err.contains("holds another search") && other.err.contains("--out"), "{}", other.err);
    assert_eq!(kept(dir).expect("untouched"), again);
}

#[test]
fn the_ends_of_the_range_end_with_a_status_of_their_own() {
    let _turn = alone();
    let base = ["ops", "--shape", "get:latency=20ms", "--duration", "400ms", "--warm-up", "0s", "--objects", "16"];
    let low = place();
    let report = search(low.path(), &[&base[..], &["--slo", "1ms"]].concat()).report(3, low.path());
    assert_eq!((report.status, report.storages[0].knee), (SearchStatus::BelowLowest, None));
    assert_eq!(report.storages[0].probes.len(), 2, "asked twice");
    let high = place();
    let report = search(high.path(), &[&base[..], &["--slo", "20s", "--max", "2"]].concat()).report(4, high.path());
    assert_eq!((report.status, report.storages[0].knee), (SearchStatus::AboveHighest, Some(2.0)));
    assert!(report.summary.contains("raise --max"), "{}", report.summary);
    let few = place();
    let args = [&base[..], &["--slo", "20s", "--max", "64", "--most-probes", "2"]].concat();
    let report = search(few.path(), &args).report(4, few.path());
    assert_eq!(report.status, SearchStatus::OutOfProbes);
}

/// One worker, prompts that fill an iteration, one a second: prefill takes P, so at r times the trace the i-th request
/// waits i·(P − 1/r) for those before it. 95% of N are in time while P + (0.95·N − 1)·(P − 1/r) ≤ the objective.
#[test]
fn requests_per_second_inside_the_objective_are_the_queue_s_closed_form() {
    const REQUESTS: u32 = 60;
    const OBJECTIVE_S: f64 = 2.0;
    let _turn = alone();
    let place = place();
    let line = |i: u32| format!("{{\"timestamp\":{},\"input_length\":8192,\"output_length\":1}}\n", i * 1000);
    std::fs::write(place.path().join("t.jsonl"), (0..REQUESTS).map(line).collect::<String>()).expect("a trace");
    let args = [
        "kv",
        "--trace",
        "t.jsonl",
        "--target",
        "mem:",
        "--time-scale",
        "0.02",
        "--model",
        "qwen2.5-7b",
        "--gpu",
        "l40s",
        "--slo-ttft",
        "2s",
        "--min",
        "0.5",
        "--max",
        "8",
        "--virtual",
    ];
    let report = search(place.path(), &args).report(0, place.path());
    // P by an ordinary run that nobody waits in.
    let mut run = Command::new(env!("CARGO_BIN_EXE_gpufeed"));
    run.arg("run").args(&args[..11]).args(["--no-baselines", "--quiet", "--format", "json", "--out", "alone"]);
    let output = run.current_dir(place.path()).output().expect("the program starts");
    let alone: serde_json::Value = serde_json::from_slice(&output.stdout).expect("a report");
    let prefill_s = alone["members"][0]["kv"]["ttft"]["p50_ns"].as_f64().expect("a median") / 1e9;

    let last_in_time = 0.95 * f64::from(REQUESTS) - 1.0;
    let rate = 1.0 / (prefill_s - (OBJECTIVE_S - prefill_s) / last_in_time);
    let names: Vec<&str> = report.storages.iter().map(|storage| storage.storage.as_str()).collect();
    assert_eq!(names, ["target", "no_cache", "local", "ideal_storage"]);
    for storage in &report.storages {
        assert_eq!(storage.status, SearchStatus::Found);
        let (knee, above) = (storage.knee.expect("a knee"), storage.neighbor.expect("a neighbor"));
        assert!(knee <= 1.002 * rate && 0.998 * rate <= above, "{}: {rate} is not in {knee}..{above}", storage.storage);
        assert!(above <= 1.05 * knee);
        // The headline: all but at most 5% of one request a second, times the scale.
        let per_s = storage.knee_per_s.expect("a headline");
        assert!((0.95 * knee..=1.0001 * knee).contains(&per_s), "{per_s} of {knee}");
    }
}

#[test]
fn what_makes_no_sense_is_refused_in_one_sentence() {
    let cases: [(&str, &[&str]); 18] = [
        ("training --resolution 0", &["--resolution 0", "above 0"]),
        ("kv --resolution 0.00001", &["resolution", "0.1%"]),
        ("ops --max 4 --min 8", &["--max 4", "--min 8"]),
        ("ops --metric p98", &["--metric p98", "p99 or throughput"]),
        ("training --metric p99", &["--metric p99", "au"]),
        ("rag --metric au", &["--metric au", "goodput"]),
        ("ops --metric p99", &["--slo"]),
        ("ops --slo 0ms", &["--slo 0ms", "10ms"]),
        ("ops --slo 5ms --metric throughput", &["--slo", "--metric throughput"]),
        ("ops --over width", &["--over width", "depth or rate"]),
        ("kv --share 0", &["--share 0"]),
        ("ops --confirmations 2", &["--confirmations", "odd"]),
        ("ops --most-probes 0", &["--most-probes"]),
        ("training --accelerators 4", &["--accelerators", "--max"]),
        ("training --min 1.5", &["1.5", "whole number"]),
        ("ops --depth 3", &["--depth", "--min"]),
        ("ops --resume", &["--resume", "--out"]),
        ("training --profile unet3d-h10", &["`unet3d-h10`", "`unet3d-h100`"]),
    ];
    for (args, words) in cases {
        let place = place();
        let args: Vec<&str> = args.split(' ').collect();
        let output = gpufeed(&args).current_dir(place.path()).output().expect("the program starts");
        let err = String::from_utf8(output.stderr).expect("text");
        assert_eq!(output.status.code(), Some(2), "{args:?}: {err}");
        assert_eq!(err.lines().count(), 1, "one sentence: {err}");
        assert!(words.iter().all(|word| err.contains(word)), "{words:?} are not in: {err}");
        assert_eq!(std::fs::read_dir(place.path()).expect("the directory").count(), 0, "{args:?} left something");
    }
}

#[test]
fn a_dry_run_prints_the_search_and_does_nothing() {
    let place = place();
    let mut command = gpufeed(&["rag", "--dry-run", "--format", "json", "--share", "90%", "--max", "50"]);
    let output = command.current_dir(place.path()).output().expect("the program starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let plan: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(plan["parameter"], "query_rate");
    assert_eq!(plan["criterion"]["share_ratio"], 0.9);
    assert_eq!(plan["spec"]["domain"]["most"], 50.0);
    assert_eq!(plan["plan"]["members"][0]["name"], "rag");
    assert_eq!(std::fs::read_dir(place.path()).expect("the directory").count(), 0);
    let text = gpufeed(&["training", "--dry-run"]).current_dir(place.path()).output().expect("the program starts");
    assert!(String::from_utf8_lossy(&text.stdout).contains("threshold_ratio = 0.9"));
}
