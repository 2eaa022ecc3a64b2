//! Plans against closed forms.

use std::path::Path;

use super::plan::{CapacityArgs, plan};

use super::sweep;
use crate::progress::Show;

const BLOCKS: u64 = 20;
const TOKENS: u64 = BLOCKS * 512;
/// The last block of a prompt is computed whatever is cached.
const LOADED: u64 = BLOCKS - 1;
const REQUESTS: u64 = 40;
const SLO_NS: f64 = 150e6;

/// Two prompts of 20 blocks in turn, five seconds apart, on one worker whose GPU memory holds one of them: but for the first
/// two, each finds its first 19 blocks on shared storage and nowhere else.
fn two_in_turn(path: &Path) -> CapacityArgs {
    let line = |i: u64| {
        let ids: Vec<u64> = (0..BLOCKS).map(|block| (i % 2 + 1) * 1000 + block).collect();
        format!("{{\"timestamp\":{},\"input_length\":{TOKENS},\"output_length\":1,\"hash_ids\":{ids:?}}}\n", i * 5000)
    };
    std::fs::write(path, (0..REQUESTS).map(line).collect::<String>()).expect("written");
    CapacityArgs {
        trace: Some(path.to_str().expect("text").to_owned()),
        workers: Some(1),
        slo_ttft: Some("150ms".to_owned()),
        grid: Some(2),
        set: ["kv.g1_blocks=20", "kv.g2_bytes=0"].map(str::to_owned).to_vec(),
        run_kv: ["--client", "mooncake", "--load-policy", "always"].map(Into::into).to_vec(),
        ..CapacityArgs::default()
    }
}

#[test]
fn what_is_required_is_what_the_formulas_say() {
    let dir = tempfile::tempdir().expect("a directory");
    let args = CapacityArgs {
        node_read_bytes_per_s: Some("4GB/s".parse().expect("a rate")),
        node_write_bytes_per_s: Some("4GB/s".parse().expect("a rate")),
        node_capacity: Some("1GiB".parse().expect("a size")),
        node_latency: Some("1ms".to_owned()),
        ..two_in_turn(&dir.path().join("trace.jsonl"))
    };
    let found = plan(&args, Show::Nothing).expect("a plan");
    let case = args.case().expect("a case");
    let cost = &case.cost;
    let block_bytes = case.block_bytes() as f64;
    let loaded = LOADED as f64 * block_bytes;
    // What remains of the objective after everything that is not storage: host time, the last block, and the copies to the
    // GPU that come after the last load. Earlier ones overlap with loads, which are slower.
    let computed_ns = cost.request_ns(TOKENS) + cost.prefill_ns(LOADED * 512, 512, 8192);
    let left_ns = |copies: f64| SLO_NS - computed_ns - cost.copy_ns(copies * block_bytes);
    assert!(left_ns(19.0) > 30e6, "the case leaves {} ns to storage", left_ns(19.0));
    let near =
        |is: f64, by_hand: f64| assert!((is / by_hand - 1.0).abs() < 0.01, "{is} in the plan, {by_hand} by hand");
    let required = &found.required;
    near(required.read_bytes_per_s.expect("reads are needed"), loaded / left_ns(1.0) * 1e9);
    // 16 reads at once: 19 take two rounds, the second of three.
    near(required.first_byte_p99_ns.expect("a bound") as f64, left_ns(3.0) / 2.0);
    assert!(!required.local_is_enough);
    // One of the 38 that ideal storage serves in time may be late, and that is the second prompt's second, whose blocks are
    // written after the first's. The first's second finds what was written in the ten seconds since the first chunk of
    // 16 blocks was done, and may compute what few blocks the objective leaves time for.
    let partly_ns = |found: u64| {
        let computed = cost.prefill_ns(found * 512, (BLOCKS - found) * 512, 8192);
        cost.request_ns(TOKENS) + computed + cost.copy_ns(found as f64 * block_bytes)
    };
    let found_blocks = (0..=LOADED).find(|found| partly_ns(*found) <= SLO_NS).expect("all of them will do") as f64;
    let begun_ns = cost.request_ns(TOKENS) + cost.prefill_ns(0, 8192, 8192) + cost.copy_ns(16.0 * block_bytes);
    let by_hand = found_blocks * block_bytes / (10e9 - begun_ns) * 1e9;
    near(required.write_bytes_per_s.expect("writes are needed"), by_hand);

    let reads = (REQUESTS - 2) as f64 * loaded;
    assert_eq!(found.demand.read.bytes as f64, reads, "all but the first two read 19 blocks");
    assert_eq!(found.demand.write.bytes as f64, 2.0 * BLOCKS as f64 * block_bytes, "every block is written once");
    near(found.demand.read.mean_bytes_per_s, reads / (5.0 * (REQUESTS - 1) as f64));
    assert_eq!(found.demand.read.max_window_bytes_per_s, loaded, "one request's blocks in its second");

    // Each prompt comes again after the other: two prompts hold everything, less hits nothing.
    let set = &found.working_set;
    assert_eq!((set.unique_blocks, set.prompt_blocks), (2 * BLOCKS, REQUESTS * BLOCKS));
    assert_eq!(set.shared_tier_bytes as f64, 2.0 * BLOCKS as f64 * block_bytes);
    let nodes = found.nodes.as_ref().expect("figures of nodes were given");
    let by_hand = [
        (required.read_bytes_per_s.expect("needed") / 4e9).ceil() as u64,
        (required.write_bytes_per_s.expect("needed") / 4e9).ceil() as u64,
        set.shared_tier_bytes.div_ceil(1 << 30),
    ];
    assert_eq!([nodes.for_read, nodes.for_write, nodes.for_capacity.expect("given")], by_hand);
    assert_eq!(nodes.count, by_hand.into_iter().max().expect("three"));
    assert_eq!((nodes.latency_p99_ns, nodes.latency_is_enough), (Some(1_000_000), Some(true)));

    let line = |name: &str| found.storages.iter().find(|line| line.name == name).expect("a line");
    let all_but_cold = (REQUESTS - 2) as f64 / REQUESTS as f64;
    assert_eq!(line("local").slo_ratio, 0.0, "whatever is not on storage is computed, which takes too long");
    assert!((line("ideal_storage").slo_ratio - all_but_cold).abs() < 1e-9);
    let ideal = line("ideal_storage");
    let gpu_dollars = found.prices.gpu_dollars_per_hour.expect("a price");
    let storage_dollars = found.prices.storage_bytes as f64 / 1e12 * found.prices.storage_dollars_per_tb_month / 730.5;
    let per_million = (gpu_dollars + storage_dollars) / (ideal.figures.output_tokens_per_s * 3600.0) * 1e6;
    near(ideal.dollars_per_million_output_tokens.expect("a price"), per_million);
    assert_eq!(found.grid.len(), 4);

    let mut page = Vec::new();
    gpufeed_reports::html::capacity::render(&found, &mut page).expect("a page");
    let page = String::from_utf8(page).expect("text");
    assert!(page.contains("grid-tokens") && page.contains("grid-useful") && page.len() < 2 << 20);
}

#[test]
fn storage_that_serves_few_at_a_time_needs_to_be_faster() {
    let dir = tempfile::tempdir().expect("a directory");
    let args = two_in_turn(&dir.path().join("trace.jsonl"));
    let with = |at_a_time| {
        let found = plan(&CapacityArgs { storage_concurrency: Some(at_a_time), ..args.clone() }, Show::Nothing);
        found.expect("a plan")
    };
    let case = args.case().expect("a case");
    let (cost, block_bytes) = (&case.cost, case.block_bytes() as f64);
    let left_ns = |copies: f64| {
        let computed_ns = cost.request_ns(TOKENS) + cost.prefill_ns(LOADED * 512, 512, 8192);
        SLO_NS - computed_ns - cost.copy_ns(copies * block_bytes)
    };
    // Nineteen reads, four at a time: five rounds, the last of three. One at a time: nineteen rounds.
    for (at_a_time, last, rounds) in [(4, 3.0, 5.0), (1, 1.0, 19.0)] {
        let most = with(at_a_time).required.first_byte_p99_ns.expect("a bound") as f64;
        let by_hand = left_ns(last) / rounds;
        assert!((most / by_hand - 1.0).abs() < 0.01, "{at_a_time} at a time: {most} ns, {by_hand} by hand");
    }
    // The longest latency of the grid is what is required, with half the bandwidth first.
    let found = with(4);
    let longest = found.grid.iter().max_by_key(|point| point.latency_ns).expect("points").latency_ns;
    assert_eq!(Some(longest), found.required.first_byte_p99_ns);
    let slow = CapacityArgs { storage: Some(format!("get:latency={longest}ns")), ..args.clone() };
    let p50 = |at_a_time| {
        let args = CapacityArgs { storage_concurrency: at_a_time, grid: Some(0), ..slow.clone() };
        let found = plan(&args, Show::Nothing).expect("a plan");
        let line = found.storages.iter().find(|line| line.name == "given").expect("a line");
        line.figures.ttft.summary.p50_ns.expect("enough requests") as f64
    };
    // Five rounds instead of two, whose last copies are as many.
    let by_hand = 3.0 * longest as f64;
    assert!(((p50(Some(4)) - p50(None)) / by_hand - 1.0).abs() < 0.01, "{} {}", p50(Some(4)), p50(None));
}

#[test]
fn bad_input_says_the_way_out() {
    let dir = tempfile::tempdir().expect("a directory");
    let good = two_in_turn(&dir.path().join("trace.jsonl"));
    let says = |args: &CapacityArgs, words: &[&str]| {
        let error = format!("{:#}", plan(args, Show::Nothing).expect_err("bad input"));
        assert!(words.iter().all(|word| error.contains(word)), "{error} lacks {words:?}");
    };
    says(&CapacityArgs { workers: Some(0), ..good.clone() }, &["workers", "at least 1"]);
    says(&CapacityArgs { model: Some("llama-3.1-70b".to_owned()), ..good.clone() }, &["does not fit", "--tp 4"]);
    says(&CapacityArgs { storage: Some("get:latency=soon".to_owned()), ..good.clone() }, &["get:latency=soon"]);
    says(&CapacityArgs { storage: Some("report:/nowhere".to_owned()), ..good.clone() }, &["/nowhere/report.json"]);
    says(&CapacityArgs { grid: Some(1), ..good.clone() }, &["--grid"]);
    says(&CapacityArgs { storage_concurrency: Some(0), ..good.clone() }, &["--storage-concurrency"]);
    let azure = dir.path().join("azure.csv");
    let text = "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,4808,10\n";
    std::fs::write(&azure, text).expect("written");
    let azure = Some(azure.to_str().expect("text").to_owned());
    says(&CapacityArgs { trace: azure, ..good }, &["no block ids", "--trace synth"]);
}

#[test]
fn sweeps_move_as_storage_does() {
    let dir = tempfile::tempdir().expect("a directory");
    let args = CapacityArgs {
        storage: Some("get:latency=10ms".to_owned()),
        grid: None,
        quiet: true,
        ..two_in_turn(&dir.path().join("trace.jsonl"))
    };
    // One read at a time takes 19 latencies and the last copy, 32 at once take one and all copies.
    let case = args.case().expect("a case");
    let cost = &case.cost;
    let by_hand = 18.0 * (10e6 - cost.copy_ns(case.block_bytes() as f64));
    let table = sweep::table(&args, sweep::SweepOf::InFlight).expect("a table");
    let column = |name: &str| table.columns.iter().position(|column| column == name).expect("a column");
    let p50 = |in_flight: f64| {
        let row = table.rows.iter().find(|row| row[0] == Some(in_flight)).expect("a row");
        row[column("ttft_p50_ns")].expect("enough requests")
    };
    assert!(((p50(1.0) - p50(32.0)) / by_hand - 1.0).abs() < 0.01, "{} {}", p50(1.0), p50(32.0));

    // Of prompts of 16 blocks, half cached: 8 blocks are loaded, 16 at a time, and the rest is computed.
    let table = sweep::table(&args, sweep::SweepOf::Ttft).expect("a table");
    let wanted = [Some(8192.0), Some(0.5), Some(1.0)];
    let row = table.rows.iter().find(|row| row[..3] == wanted).expect("a row");
    let copied = cost.copy_ns(8.0 * case.block_bytes() as f64);
    let by_hand = cost.request_ns(8192) + 10e6 + copied + cost.prefill_ns(4096, 4096, 8192);
    let ttft = row[3].expect("one request");
    assert!((ttft / by_hand - 1.0).abs() < 2e-3, "{ttft} ns, {by_hand} by hand");
    assert_eq!(row[9], Some(0.5), "half of the tokens are not prefilled");
}
