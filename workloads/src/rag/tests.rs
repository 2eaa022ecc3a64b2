use std::collections::HashSet;

use gpufeed_schema::{GpuTime, Rag as RagSection};
use proptest::prelude::*;
use rustc_hash::FxHashMap;

use super::*;
use crate::driver::drive;
use crate::inference::cost_tests::llama_8b_h100;
use crate::op::ErrorKind;
use crate::trace::{Component, Format, Kind, Part, Record, Synth};

const MS: u64 = 1_000_000;
const EMBED: u64 = 3 * MS;
const RERANK: u64 = 7 * MS;

/// Queries `gap_ms` apart, with two passages of their own each, and a system prompt that all share.
fn apart(queries: u64, gap_ms: u64) -> Trace {
    let records = (0..queries).map(|i| {
        let part = |component, id, tokens| Part { component, id, tokens };
        let parts = vec![
            part(Component::SysPrompt, 0, 512),
            part(Component::Passage, 2 * i, 300),
            part(Component::Passage, 2 * i + 1, 200),
            part(Component::UserInput, i, 20),
        ];
        Ok(Record {
            stamp_ns: Some((i * gap_ms * MS) as i64),
            input_tokens: 1032,
            output_tokens: 5,
            parts,
            ..Record::default()
        })
    });
    Trace::from_records(Format::Ragpulse, records, None).expect("no errors among them")
}

fn plan(trace: Trace) -> RagPlan {
    RagPlan {
        trace: Arc::new(trace),
        arrivals: QueryArrivals::Trace { speed: 1.0 },
        queries: None,
        index: IndexPlan { vectors: 4096, lists: 64, nprobe: 4, range_bytes_max: 100_000, ..IndexPlan::default() },
        bytes_per_token: 4.0,
        embed: Duration::from_nanos(EMBED),
        rerank: Duration::from_nanos(RERANK),
        prefix: "rag/".to_owned(),
        lanes: 64,
        workers: 1,
        cost: Arc::new(llama_8b_h100()),
        limits: Limits {
            max_num_batched_tokens: 2048,
            max_num_seqs: 8,
            block_tokens: 16,
            hbm_blocks: 4096,
            time_scale: 1.0,
        },
        seed: 1,
        inputs: BTreeMap::new(),
    }
}

fn section(rag: &Rag, from: Tick, to: Tick) -> RagSection {
    match rag.section((from, to)) {
        Section::Rag(section) => *section,
        other => panic!("{other:?}"),
    }
}

fn cells(gpu: &GpuTime) -> u64 {
    gpu.prefill_ns
        + gpu.recompute_ns
        + gpu.decode_ns
        + gpu.storage_stall_ns
        + gpu.transfer_stall_ns
        + gpu.no_work_ns
        + gpu.down_ns
}

/// Histograms keep three significant digits.
fn near(value: Option<u64>, expected: u64) {
    let value = value.expect("samples") as f64;
    assert!((value / expected as f64 - 1.0).abs() < 1.1e-3, "{value} is not {expected}");
}

#[test]
fn retrieval_takes_two_rounds_of_storage_and_the_emulated_times() {
    let latency = 5 * MS;
    let queries = 30;
    let mut rag = Rag::new(plan(apart(queries, 2000))).expect("valid");
    let (submits, end) = drive(&mut rag, Tick(0), None, None, |_| (Duration::from_nanos(latency), Ok(())));
    let found = section(&rag, Tick(0), end);
    assert_eq!((found.queries, found.completed, found.failed, found.unfinished), (queries, queries, 0, 0));
    // Embed, all posting lists at once, rank, all passages at once.
    let retrieve = EMBED + latency + RERANK + latency;
    near(found.retrieve.summary.min_ns, retrieve);
    near(found.retrieve.summary.max_ns, retrieve);
    for submit in &submits {
        let within = submit.intended.0 % (2000 * MS);
        assert_eq!(within, if submit.op.key.space == INDEX { EMBED } else { EMBED + latency + RERANK });
    }
    // Then host time and prefill; all but the first query find the system prompt's 32 blocks in GPU memory.
    let cost = llama_8b_h100();
    let host = cost.request_ns(1032).round() as u64;
    let (cold, warm) = (cost.prefill_ns(0, 1032, 2048).round() as u64, cost.prefill_ns(512, 520, 2048).round() as u64);
    near(found.ttft.summary.max_ns, retrieve + host + cold);
    near(found.ttft.summary.min_ns, retrieve + host + warm);
    let ttft = (retrieve + host) * queries + cold + (queries - 1) * warm;
    let share = found.retrieve_share_ratio.expect("queries");
    assert!((share - (retrieve * queries) as f64 / ttft as f64).abs() < 1e-9, "{share}");
    assert_eq!(found.recall_ratio, None);
    // The worker is alone with each query: it waits for storage exactly two round trips each.
    assert_eq!(found.gpu.storage_stall_ns, queries * 2 * latency);
    assert_eq!(found.gpu.prefill_ns, cold + (queries - 1) * warm);
    assert_eq!(found.gpu.recompute_ns, 0);
    assert_eq!((cells(&found.gpu), found.gpu.total_ns), (end.0, end.0));
    assert!((found.queries_per_s - queries as f64 / (end.0 as f64 / 1e9)).abs() < 1e-9);
}

#[test]
fn a_retrieval_behind_a_busy_gpu_is_no_stall() {
    // Two queries 40 ms apart; the second's reads all fall into the first one's answer of over 6 ms a token.
    let mut trace_plan = plan(apart(2, 40));
    trace_plan.trace = Arc::new({
        let parts = |i| vec![Part { component: Component::Passage, id: i, tokens: 1000 }];
        let records = (0..2).map(|i| {
            Ok(Record {
                stamp_ns: Some(i as i64 * 40_000_000),
                input_tokens: 1000,
                output_tokens: 50,
                parts: parts(i),
                ..Record::default()
            })
        });
        Trace::from_records(Format::Ragpulse, records, None).expect("no errors among them")
    });
    let mut rag = Rag::new(trace_plan).expect("valid");
    let (_, end) = drive(&mut rag, Tick(0), None, None, |_| (Duration::from_millis(5), Ok(())));
    let found = section(&rag, Tick(0), end);
    assert_eq!((found.completed, found.gpu.storage_stall_ns), (2, 10 * MS));
    assert!(found.gpu.storage_starved_ratio > 10.0 * MS as f64 / end.0 as f64);
}

#[test]
fn bytes_read_are_the_lists_and_passages_planned() {
    let trace = Synth { sessions: 50, ..Synth::preset(Kind::Rag) }.trace().expect("preset");
    let mut rag = Rag::new(plan(trace)).expect("valid");
    let sizes: FxHashMap<Key, u64> = rag.dataset().objects().collect();
    let (submits, end) =
        drive(&mut rag, Tick(0), None, None, |submit| (Duration::from_nanos(MS + submit.op.bytes), Ok(())));
    let found = section(&rag, Tick(0), end);
    let read = |space| submits.iter().filter(|s| s.op.key.space == space).map(|s| s.op.bytes).sum::<u64>();
    assert_eq!((found.posting_bytes, found.passage_bytes), (read(INDEX), read(PASSAGES)));
    for submit in &submits {
        let size = sizes[&submit.op.key];
        assert!(submit.op.offset + submit.op.bytes <= size);
        assert!(submit.op.ranged || submit.op.bytes == size);
    }
    // Independently: the lists each query must probe, and the passages its prompt is made of.
    let (mut postings, mut passages) = (0, 0);
    let corpus = &rag.corpus;
    for (number, &request) in corpus.order.iter().enumerate() {
        let parts = corpus.plan.trace.parts(&corpus.plan.trace.requests()[request as usize]);
        let wanted = parts.iter().filter(|part| part.component == Component::Passage);
        passages += wanted.clone().map(|part| 4 * u64::from(part.tokens)).sum::<u64>();
        let mut lists = Vec::new();
        corpus.ivf.probe(number as u64, wanted.map(|part| part.id), &mut lists);
        assert_eq!(lists.iter().collect::<HashSet<_>>().len(), 4);
        postings += lists.iter().map(|&list| corpus.ivf.list_bytes(list)).sum::<u64>();
    }
    assert_eq!((found.posting_bytes, found.passage_bytes), (postings, passages));
    assert_eq!(found.completed, corpus.order.len() as u64);
}

#[test]
fn failed_reads_fail_their_query_and_nothing_else() {
    let queries = 40;
    for space in [INDEX, PASSAGES] {
        let mut rag = Rag::new(plan(apart(queries, 1000))).expect("valid");
        // Every fourth query: all its reads of one kind fail, or only its first.
        let (_, end) = drive(&mut rag, Tick(0), None, None, |submit| {
            let query = submit.intended.0 / (1000 * MS);
            let fails = submit.op.key.space == space && query.is_multiple_of(4);
            (Duration::from_millis(2), if fails { Err(ErrorKind::Throttled) } else { Ok(()) })
        });
        let found = section(&rag, Tick(0), end);
        assert_eq!((found.queries, found.failed, found.completed, found.unfinished), (queries, 10, 30, 0));
        assert_eq!(found.ttft.summary.count, 30);
        let per_list: u64 = 30 * 2 * 4 * 250;
        assert_eq!(found.passage_bytes, per_list);
        assert_eq!((cells(&found.gpu), rag.books.live()), (end.0, 0));
    }
}

#[test]
fn only_the_window_counts() {
    let mut rag = Rag::new(plan(apart(60, 100))).expect("valid");
    let (from, to) = (Tick(1000 * MS), Tick(3000 * MS));
    let (submits, end) = drive(&mut rag, Tick(0), Some(from), Some(to), |_| (Duration::from_millis(4), Ok(())));
    let found = section(&rag, from, to);
    // Arrivals at 1.0 s, 1.1 s, … 2.9 s; those in flight at Stop are answered in the drain.
    assert_eq!((found.queries, found.completed, found.unfinished), (20, 20, 0));
    assert!(end > to && submits.iter().all(|submit| submit.intended < Tick(3100 * MS)));
    let counted: u64 = submits
        .iter()
        .filter(|s| s.op.key.space == PASSAGES && (from..to).contains(&s.intended))
        .map(|s| s.op.bytes)
        .sum();
    assert_eq!(found.passage_bytes, counted);
    assert_eq!((found.gpu.total_ns, cells(&found.gpu)), (2000 * MS, 2000 * MS));
}

#[test]
fn a_plan_and_its_seed_make_the_hash() {
    let trace = || Synth { sessions: 20, ..Synth::preset(Kind::Rag) }.trace().expect("preset");
    let hash = |change: fn(&mut RagPlan)| {
        let mut plan = plan(trace());
        change(&mut plan);
        Rag::new(plan).expect("valid").plan_hash()
    };
    let same = hash(|_| {});
    assert_eq!(same, hash(|_| {}));
    let others = [
        hash(|plan| plan.seed = 2),
        hash(|plan| plan.index.nprobe = 5),
        hash(|plan| plan.bytes_per_token = 5.0),
        hash(|plan| plan.arrivals = QueryArrivals::Poisson { rate_per_s: 3.0 }),
        hash(|plan| plan.queries = Some(3)),
    ];
    assert!(others.iter().all(|other| *other != same));
    assert_eq!(others.iter().collect::<HashSet<_>>().len(), others.len());
}

#[test]
fn poisson_arrivals_repeat_the_trace_with_new_questions() {
    let mut plan = plan(apart(10, 1));
    plan.arrivals = QueryArrivals::Poisson { rate_per_s: 50.0 };
    plan.queries = Some(2000);
    plan.workers = 4;
    let mut rag = Rag::new(plan).expect("valid");
    let (submits, end) = drive(&mut rag, Tick(0), None, None, |_| (Duration::from_millis(1), Ok(())));
    let found = section(&rag, Tick(0), end);
    assert_eq!((found.queries, found.completed), (2000, 2000));
    // A Poisson process of 2,000 arrivals: within 5 standard errors of 2.2%.
    let last = submits.iter().map(|s| s.intended.0).max().expect("reads") as f64 / 1e9;
    assert!((2000.0 / last / 50.0 - 1.0).abs() < 0.11, "{last}");
    assert_eq!(found.passage_bytes, 2000 * 500 * 4);
    // Passages come back in prompts whose question is new: their blocks are found, not the question's.
    let (a, b) = (rag.corpus.job(0, 3, Tick(0)), rag.corpus.job(0, 13, Tick(0)));
    let shared = a.blocks.iter().zip(&b.blocks).take_while(|(a, b)| a == b).count();
    assert_eq!((shared, a.blocks.len()), (1012 / 16, 1032 / 16));
    assert_eq!((cells(&found.gpu), found.gpu.total_ns), (4 * end.0, 4 * end.0));
    assert_eq!(rag.progress(), Some(1.0));
}

#[test]
fn stretched_time_is_reported_unstretched() {
    let run = |time_scale: f64| {
        let mut plan = plan(apart(20, 1500));
        plan.limits.time_scale = time_scale;
        let mut rag = Rag::new(plan).expect("valid");
        let latency = Duration::from_nanos((5e6 * time_scale) as u64);
        let (_, end) = drive(&mut rag, Tick(0), None, None, |_| (latency, Ok(())));
        section(&rag, Tick(0), end)
    };
    let (one, four) = (run(1.0), run(4.0));
    let ratio = |a: Option<f64>, b: Option<f64>| a.expect("samples") / b.expect("samples");
    assert!((ratio(four.ttft.summary.mean_ns, one.ttft.summary.mean_ns) - 1.0).abs() < 2e-3);
    assert!((ratio(four.retrieve.summary.mean_ns, one.retrieve.summary.mean_ns) - 1.0).abs() < 2e-3);
    assert!((four.queries_per_s / one.queries_per_s - 1.0).abs() < 1e-3);
    assert!((four.gpu.storage_stall_ratio / one.gpu.storage_stall_ratio - 1.0).abs() < 1e-3);
}

#[test]
fn plans_that_make_no_run_say_why() {
    let error = |change: fn(&mut RagPlan)| {
        let mut plan = plan(apart(2, 1));
        change(&mut plan);
        Rag::new(plan).expect_err("invalid").to_string()
    };
    assert!(error(|plan| plan.workers = 0).contains("workers"));
    assert!(error(|plan| plan.index.nprobe = 65).contains("nprobe"));
    assert!(error(|plan| plan.arrivals = QueryArrivals::Trace { speed: f64::NAN }).contains("speed"));
    let chat = Synth { sessions: 3, ..Synth::preset(Kind::MultiTurn) }.trace().expect("preset");
    assert!(Rag::new(plan(chat)).expect_err("no passages").to_string().contains("trace synth rag"));
}

#[test]
fn the_public_trace_runs_at_another_rate() {
    let folder = std::env::var_os("GPUFEED_TRACES").map_or_else(
        || std::path::PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/traces")),
        std::path::PathBuf::from,
    );
    let Ok(trace) = Trace::load(&folder.join("ragpulse")) else { return };
    let mut plan = plan(trace);
    plan.arrivals = QueryArrivals::Poisson { rate_per_s: 4.0 };
    plan.workers = 2;
    let mut rag = Rag::new(plan).expect("valid");
    let (from, to) = (Tick(5_000 * MS), Tick(65_000 * MS));
    let (_, _) = drive(&mut rag, Tick(0), Some(from), Some(to), |_| (Duration::from_millis(3), Ok(())));
    let found = section(&rag, from, to);
    assert!((190..290).contains(&found.queries), "{}", found.queries);
    assert_eq!(found.completed, found.queries);
    assert_eq!((cells(&found.gpu), found.gpu.total_ns), (120_000 * MS, 120_000 * MS));
    assert!(found.posting_bytes > 0 && found.passage_bytes > 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    /// Whatever storage does: every query is accounted for, and every nanosecond of every worker.
    #[test]
    fn queries_and_time_are_partitioned(
        seed: u64, workers in 1u32..4, gap_ms in 0u64..300, hbm_blocks in 60usize..400, errors in 0u64..30,
        from_ms in 0u64..800, length_ms in 1u64..3000, slow_ms in 1u64..200,
    ) {
        let mut plan = plan(apart(25, gap_ms));
        (plan.seed, plan.workers, plan.limits.hbm_blocks) = (seed, workers, hbm_blocks);
        let mut rag = Rag::new(plan).expect("valid");
        let (from, to) = (Tick(from_ms * MS), Tick((from_ms + length_ms) * MS));
        let mut n = 0;
        let (submits, end) = drive(&mut rag, Tick(0), Some(from), Some(to), |_| {
            n += 1;
            let luck = mix2(seed, n);
            let fails = luck % 100 < errors;
            (Duration::from_nanos(luck % (slow_ms * MS)), if fails { Err(ErrorKind::Server) } else { Ok(()) })
        });
        // Done before the window began, or before it was over.
        prop_assume!(end > from);
        let to = to.min(end);
        let found = section(&rag, from, to);
        prop_assert_eq!(found.queries, found.completed + found.failed + found.unfinished);
        prop_assert_eq!((found.unfinished, rag.books.live()), (0, 0));
        prop_assert_eq!(found.ttft.summary.count, found.completed);
        prop_assert!(rag.books.load.iter().all(|&load| load == 0) && rag.reading.iter().all(|&reads| reads == 0));
        prop_assert_eq!(found.gpu.total_ns, u64::from(workers) * (to.0 - from.0));
        prop_assert_eq!(cells(&found.gpu), found.gpu.total_ns);
        // The driver reports the bytes asked for, so a read that succeeded moved its plan's.
        let asked: u64 = submits.iter().filter(|s| (from..to).contains(&s.intended)).map(|s| s.op.bytes).sum();
        prop_assert!(found.posting_bytes + found.passage_bytes <= asked);
        if errors == 0 {
            prop_assert_eq!(found.posting_bytes + found.passage_bytes, asked);
            // A prompt with its answer has 65 blocks.
            prop_assert_eq!(found.failed, if hbm_blocks < 65 { found.queries } else { 0 });
        }
    }
}
