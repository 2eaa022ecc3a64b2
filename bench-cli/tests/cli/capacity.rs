//! `gpufeed plan` and its sweeps, as a user runs them: what they print and write, and what they refuse.

use serde_json::Value;

use crate::program::Place;

const BLOCKS: u64 = 8;
const REQUESTS: u64 = 24;

/// Two prompts in turn on a worker whose GPU memory holds one of them and its answer: but for the first two, each finds its first 7 blocks
/// on shared storage and nowhere else.
const IN_TURN: [&str; 8] =
    ["--trace", "t.jsonl", "--workers", "1", "--set", "kv.g1_blocks=9", "--set", "kv.g2_bytes=0"];
const ALWAYS: [&str; 5] = ["--", "--client", "mooncake", "--load-policy", "always"];

fn trace(place: &Place) {
    let line = |i: u64| {
        let ids: Vec<u64> = (0..BLOCKS).map(|block| (i % 2 + 1) * 1000 + block).collect();
        let (at, tokens) = (i * 250, BLOCKS * 512);
        format!("{{\"timestamp\":{at},\"input_length\":{tokens},\"output_length\":4,\"hash_ids\":{ids:?}}}\n")
    };
    place.write("t.jsonl", &(0..REQUESTS).map(line).collect::<String>());
}

fn planned(place: &Place, command: &[&str], more: &[&str]) -> Value {
    let args = [command, &IN_TURN, more, &["--format", "json"], &ALWAYS].concat();
    let ended = place.run(&args).passed();
    serde_json::from_str(&ended.out).expect("JSON and nothing else")
}

fn plan(place: &Place, more: &[&str]) -> Value {
    planned(place, &["plan", "--grid", "0"], more)
}

/// The median TTFT of a line, in nanoseconds.
fn p50(plan: &Value, name: &str) -> f64 {
    let lines = plan["storages"].as_array().expect("lines");
    let line = lines.iter().find(|line| line["name"] == name).unwrap_or_else(|| panic!("no {name}: {lines:?}"));
    line["figures"]["ttft"]["p50_ns"].as_f64().unwrap_or_else(|| panic!("no median: {line}"))
}

fn near(is: f64, by_hand: f64) {
    // Histograms keep three digits, and two of them were subtracted.
    assert!((is / by_hand - 1.0).abs() < 0.01, "{is}, {by_hand} by hand");
}

#[test]
fn a_plan_is_the_same_in_every_form() {
    let place = Place::new();
    trace(&place);
    let objective = ["--slo-ttft", "90ms", "--grid", "2", "--out", "plans/here"];
    let json = planned(&place, &["plan"], &objective);
    assert_eq!(place.json("plans/here/plan.json"), json);
    let page = std::fs::read_to_string(place.path("plans/here/plan.html")).expect("a page");
    assert!(
        page.contains("grid-tokens") && !page.contains("href=\"http") && !page.contains("src="),
        "a page that needs nothing else"
    );
    assert_eq!(json["required"]["local_is_enough"], false);
    let bytes = json["working_set"]["block_bytes"].as_u64().expect("bytes");
    assert_eq!(json["demand"]["read"]["bytes"].as_u64(), Some((REQUESTS - 2) * (BLOCKS - 1) * bytes));
    assert_eq!(json["demand"]["write"]["bytes"].as_u64(), Some(2 * BLOCKS * bytes));

    let text = place.run(&[&["plan", "--quiet"][..], &IN_TURN, &objective[..4], &ALWAYS].concat()).passed();
    assert_eq!(text.err, "");
    for words in ["least that will do", "(1 GPU)", "all at once ", "shared capacity   1 GiB", "24 requests of t.jsonl"]
    {
        assert!(text.out.contains(words), "`{words}` is not in: {}", text.out);
    }
    let html = place.run(&[&["plan", "--quiet", "--format", "html"][..], &IN_TURN, &objective[..4], &ALWAYS].concat());
    assert!(html.passed().out.starts_with("<!DOCTYPE html>"));
}

#[test]
fn a_plan_without_need_says_so() {
    let place = Place::new();
    trace(&place);
    let says = |objective: &str, words: &[&str]| {
        let args = [&["plan", "--grid", "0", "--quiet", "--slo-ttft", objective][..], &IN_TURN, &ALWAYS].concat();
        let text = place.run(&args).passed().out;
        assert!(words.iter().all(|word| text.contains(word)), "{text}");
        assert!(!text.contains("all at once"), "{text}");
    };
    says("30s", &["local tiers alone serve as many", "100% of all that come"]);
    says("1ms", &["no request meets the SLO even on ideal storage"]);
}

#[test]
fn a_target_is_planned_with_as_a_run_measured_it() {
    let place = Place::new();
    trace(&place);
    // The run moves a thousandth of the bytes, and so does the plan.
    let scale = ["--set", "kv.bytes_scale=0.001", "--shape", "get:latency=40ms"];
    place.report(&[&["run", "kv", "--out", "r"][..], &IN_TURN, &scale, &ALWAYS[1..]].concat());
    let planned = |command: &[&str], storage: &str| -> Value {
        let args = [command, &IN_TURN, &["--storage", storage, "--format", "json"], &ALWAYS, &scale].concat();
        serde_json::from_str(&place.run(&args).passed().out).expect("JSON and nothing else")
    };
    let plan = |storage: &str| planned(&["plan", "--grid", "0"], storage);
    let measured = plan("report:r");
    let shaped = plan("get:latency=40ms");
    let (ideal, given) = (p50(&measured, "ideal_storage"), p50(&measured, "given"));
    assert!(given >= p50(&shaped, "given") * 0.999, "{given} ns cannot be less than what the shape took");
    assert!(given - ideal < 4.0 * 40e6, "{given} ns, {ideal} ns on ideal storage: 40 ms a read was measured");
    let sweep = planned(&["plan", "sweep", "in-flight"], "report:r");
    assert!(sweep["title"].as_str().expect("a title").contains("the storage given"), "{sweep}");
}

#[test]
fn an_engine_takes_its_time() {
    let place = Place::new();
    trace(&place);
    let with = |engine: &str, time: &str| {
        p50(&plan(&place, &["--engine", engine, "--set", &format!("engine.request_time={time}")]), "ideal_storage")
    };
    near(with("sglang", "90ms") - with("sglang", "10ms"), 80e6);
    let args = [&["plan", "--engine", "nosuch"][..], &IN_TURN].concat();
    place.run(&args).said(2, &["no engine is called `nosuch`", "vllm"]);
}

/// A sweep as JSON, whose files say the same.
struct Swept(Value);

impl Swept {
    fn of(place: &Place, what: &str, more: &[&str]) -> Self {
        let json = planned(place, &["plan", "sweep", what], &[more, &["--out", "s"]].concat());
        assert_eq!(place.json(&format!("s/sweep-{what}.json")), json);
        let read = |end: &str| std::fs::read_to_string(place.path(&format!("s/sweep-{what}.{end}"))).expect("a file");
        let (csv, page) = (read("csv"), read("html"));
        let swept = Self(json);
        let lines: Vec<&str> = csv.lines().collect();
        assert_eq!(lines[0], swept.columns().join(","));
        assert_eq!(lines.len(), 1 + swept.rows().len());
        assert!(lines.iter().all(|line| line.split(',').count() == swept.columns().len()), "{csv}");
        assert!(
            page.contains("sweep-0") && !page.contains("href=\"http") && !page.contains("src="),
            "a page that needs nothing else"
        );
        swept
    }

    fn columns(&self) -> Vec<&str> {
        self.0["columns"].as_array().expect("columns").iter().filter_map(Value::as_str).collect()
    }

    fn rows(&self) -> &[Value] {
        self.0["rows"].as_array().expect("rows")
    }

    fn column(&self, name: &str) -> Vec<Option<f64>> {
        let at = self.columns().iter().position(|column| *column == name).unwrap_or_else(|| panic!("no {name}"));
        self.rows().iter().map(|row| row[at].as_f64()).collect()
    }

    /// The value of `column` in the row whose first setting is `setting`.
    fn at(&self, setting: f64, column: &str) -> f64 {
        let row = self.rows().iter().position(|row| row[0].as_f64() == Some(setting)).expect("a row");
        self.column(column)[row].unwrap_or_else(|| panic!("no {column} at {setting}"))
    }
}

/// Of a block of 512 tokens of Llama 3.1 8B.
const BLOCK: f64 = (64 << 20) as f64;

#[test]
fn host_memory_that_holds_both_prompts_reads_nothing() {
    let place = Place::new();
    trace(&place);
    let swept = Swept::of(&place, "g2", &["--storage", "get:latency=10ms"]);
    let loads = (REQUESTS - 2) as f64 * (BLOCKS - 1) as f64;
    assert_eq!(swept.at(0.0, "read_bytes"), loads * BLOCK);
    let read = swept.column("read_bytes");
    assert!(read[1..].iter().all(|bytes| *bytes == Some(0.0)), "{read:?}");
    // One round of reads, since 16 are in flight: 7 copies less the one that comes after the last read either way.
    let spared = swept.at(0.0, "ttft_p50_ns") - swept.at((4u64 << 30) as f64, "ttft_p50_ns");
    near(spared, 10e6);
}

#[test]
fn blocks_of_any_size_hold_as_much() {
    let place = Place::new();
    trace(&place);
    let swept = Swept::of(&place, "block-size", &[]);
    for tokens in [32u64, 64, 128, 256, 512] {
        // The last block of a prompt is computed whatever is cached.
        let cached = (REQUESTS - 2) as f64 / REQUESTS as f64 * (1.0 - tokens as f64 / (BLOCKS * 512) as f64);
        assert!((swept.at(tokens as f64, "token_hit_ratio") - cached).abs() < 1e-9, "blocks of {tokens} tokens");
        // What the ninth large block of GPU memory has left beside a small block of the answer is the other prompt's, and
        // need not be read: as much less as there is more to cache.
        assert_eq!(swept.at(tokens as f64, "read_bytes"), (REQUESTS - 2) as f64 * (BLOCKS - 1) as f64 * BLOCK);
    }
}

#[test]
fn objects_in_flight_share_a_latency() {
    let place = Place::new();
    trace(&place);
    let swept = Swept::of(&place, "in-flight", &["--storage", "get:latency=10ms"]);
    // Seven reads: four rounds of two, or two rounds of four; the copies of the last round come after it.
    let link = (swept.at(8.0, "ttft_p50_ns") - swept.at(4.0, "ttft_p50_ns") + 10e6) / 4.0;
    let p50 = |in_flight: f64| swept.at(in_flight, "ttft_p50_ns");
    near(p50(2.0) - p50(4.0), 20e6 - 2.0 * link);
    assert_eq!(p50(8.0), p50(128.0), "seven at most are asked for");
}

#[test]
fn tokens_per_gpu_and_user_are_the_runs_own() {
    let place = Place::new();
    trace(&place);
    let more = ["--storage", "get:latency=10ms", "--tp", "2"];
    let swept = Swept::of(&place, "throughput", &more);
    let kinds = swept.0["words"]["storage"].as_array().expect("kinds").len();
    assert_eq!((kinds, swept.rows().len()), (4, 4 * 13));
    let all = swept.column("output_tokens_per_s");
    let per_gpu = swept.column("tokens_per_s_per_gpu");
    assert!(all.iter().zip(&per_gpu).all(|(all, gpu)| all.expect("a rate") == 2.0 * gpu.expect("a rate")));
    // At the trace's own rate a request is over before the next comes: 4 tokens each, whatever the storage.
    let (rates, kinds) = (swept.column("rate_scale"), swept.column("storage"));
    let goodput = swept.column("goodput_per_s");
    for kind in 0..4 {
        let own = (0..rates.len()).find(|i| rates[*i] == Some(1.0) && kinds[*i] == Some(f64::from(kind)));
        let own = own.expect("the trace's own rate");
        assert!((all[own].expect("a rate") / goodput[own].expect("a rate") - 4.0).abs() < 1e-9);
    }
    let csv = std::fs::read_to_string(place.path("s/sweep-throughput.csv")).expect("a file");
    assert!(csv.contains("\nideal storage,0.25,") && csv.contains("\ngiven storage,16,"), "{csv}");
}

#[test]
fn a_sweep_of_prompts_leaves_out_what_does_not_fit() {
    let place = Place::new();
    trace(&place);
    let swept = Swept::of(&place, "ttft", &["--storage", "get:latency=10ms"]);
    let contexts = swept.column("context_tokens");
    assert!(contexts.contains(&Some(2048.0)) && contexts.iter().all(|tokens| *tokens < Some(4097.0)), "{contexts:?}");
    assert!(swept.column("ttft_mean_ns").iter().all(Option::is_some));
    let text = place.run(&[&["plan", "sweep", "ttft"][..], &IN_TURN, &ALWAYS].concat()).passed().out;
    assert!(text.contains("context tokens  cached  requests at once  TTFT mean"), "{text}");
}

#[test]
fn what_a_plan_cannot_do_is_refused_with_a_way_out() {
    let place = Place::new();
    trace(&place);
    place.write("file", "");
    place.report(&[
        "run", "ops", "--target", "mem:", "--op", "put=100", "--count", "50", "--size", "4KiB", "--out", "writes",
    ]);
    for (args, words) in [
        ("plan --trace t.jsonl --storage report:nowhere", &["nowhere/report.json"][..]),
        ("plan --trace t.jsonl --storage report:writes", &["writes", "read nothing"]),
        ("plan --trace t.jsonl --storage-concurrency 0", &["--storage-concurrency", "more than zero"]),
        ("plan --trace t.jsonl --out file", &["--out file"]),
        ("plan sweep g2 --trace t.jsonl --storage-concurrency 4", &["--storage-concurrency", "needs a --storage"]),
        ("plan sweep g2 --trace t.jsonl --grid 3", &["--grid does nothing to a sweep"]),
        ("plan sweep g2 --trace nowhere.jsonl", &["nowhere.jsonl"]),
    ] {
        let args: Vec<&str> = args.split(' ').collect();
        place.run(&args).said(2, words);
    }
}
