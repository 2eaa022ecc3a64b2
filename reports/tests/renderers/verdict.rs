//! What limited a run, held against injected conditions; claims and sentences.

use gpufeed_reports::claims;
use gpufeed_reports::verdict::{Inputs, headline, sentence, verdict};
use gpufeed_schema::{ClaimStatus, ClosedOrOpen, GpuPool, GpuTime, Latency, Member, Verdict};

use crate::fixtures;

/// A client with room, against storage that gives less than it could.
fn idle() -> Inputs {
    Inputs {
        cpu_ratio: 0.41,
        run_wait_ratio: Some(0.01),
        steal_ratio: Some(0.0),
        bytes_per_s: 1.0e9,
        ceiling_bytes_per_s: Some(4.0e9),
        ops_per_s: 500.0,
        ceiling_ops_per_s: Some(80_000.0),
        load: ClosedOrOpen::Closed,
        achieved_per_s: 500.0,
        ..Inputs::default()
    }
}

fn open(offered: f64, achieved: f64) -> Inputs {
    let load = ClosedOrOpen::Open { offered_per_s: Some(offered) };
    Inputs { load, achieved_per_s: achieved, service_p50_ns: Some(1_000_000), ..idle() }
}

#[test]
fn each_condition_alone_decides() {
    use Verdict::{ClientLimited, ScheduleLimited, SelfTest, StorageLimited};
    let cases: Vec<(&str, Inputs, Verdict, &str)> = vec![
        ("room left, closed loop", idle(), StorageLimited, "41.0% of its CPU and 25.0% of what it can reach"),
        (
            "no calibration",
            Inputs { ceiling_bytes_per_s: None, ceiling_ops_per_s: None, ..idle() },
            StorageLimited,
            "CPU",
        ),
        ("self-test", Inputs { self_test: true, ..idle() }, SelfTest, "the client used 41.0% of its CPU"),
        (
            "self-test, busy",
            Inputs { self_test: true, cpu_ratio: 0.97, ..idle() },
            SelfTest,
            "this client used 97.0% of its CPU",
        ),
        ("CPU", Inputs { cpu_ratio: 0.97, ..idle() }, ClientLimited, "because this client used 97.0% of its CPU"),
        ("CPU just below", Inputs { cpu_ratio: 0.899, ..idle() }, StorageLimited, "89.9%"),
        (
            "run queue",
            Inputs { run_wait_ratio: Some(0.2), ..idle() },
            ClientLimited,
            "waited for a processor 20.0% of the time",
        ),
        ("run queue unknown", Inputs { run_wait_ratio: None, steal_ratio: None, ..idle() }, StorageLimited, ""),
        (
            "steal",
            Inputs { steal_ratio: Some(0.08), ..idle() },
            ClientLimited,
            "lost 8.00% of the time to its hypervisor",
        ),
        (
            "ceiling in bytes",
            Inputs { bytes_per_s: 3.3e9, ..idle() },
            ClientLimited,
            "reached 3.30 GB/s of the 4.00 GB/s it can move",
        ),
        (
            "ceiling in operations",
            Inputs { ops_per_s: 72_000.0, ..idle() },
            ClientLimited,
            "72,000/s of the 80,000/s it can issue",
        ),
        ("ceiling of nothing", Inputs { ceiling_bytes_per_s: Some(0.0), ..idle() }, StorageLimited, ""),
        (
            "two at once",
            Inputs { cpu_ratio: 1.0, steal_ratio: Some(0.1), ..idle() },
            ClientLimited,
            "used 100% of its CPU and lost 10.0%",
        ),
        ("kept up", open(200.0, 199.5), ScheduleLimited, "200 of 200 per second"),
        ("kept up, barely", open(200.0, 196.0), ScheduleLimited, "196 of 200 per second"),
        ("fell behind", open(200.0, 150.0), StorageLimited, ""),
        (
            "kept up, but late",
            Inputs { slip_p99_ns: Some(9_000_000), ..open(200.0, 200.0) },
            ClientLimited,
            "sent operations 9.00 ms late at p99",
        ),
        ("late within bounds", Inputs { slip_p99_ns: Some(1_900_000), ..open(200.0, 200.0) }, ScheduleLimited, ""),
        (
            "late, but little against service",
            Inputs { slip_p99_ns: Some(9_000_000), service_p50_ns: Some(100_000_000), ..open(200.0, 200.0) },
            ScheduleLimited,
            "",
        ),
        (
            "late behind slow storage",
            Inputs { slip_p99_ns: Some(9_000_000_000), ..open(200.0, 90.0) },
            StorageLimited,
            "",
        ),
        ("slip of a closed loop", Inputs { slip_p99_ns: Some(9_000_000_000), ..idle() }, StorageLimited, ""),
        (
            "a model's demand met",
            Inputs { offered_per_s: Some(500.0), ..idle() },
            ScheduleLimited,
            "500 of 500 per second",
        ),
        ("a model's demand missed", Inputs { offered_per_s: Some(900.0), ..idle() }, StorageLimited, ""),
        (
            "a trace without a rate",
            Inputs { load: ClosedOrOpen::Open { offered_per_s: None }, ..idle() },
            StorageLimited,
            "",
        ),
    ];
    for (name, inputs, expected, words) in cases {
        let (found, text) = verdict(&inputs);
        assert_eq!(found, expected, "{name}: {text}");
        assert!(text.contains(words), "{name}: {text}");
        assert!(text.to_lowercase().starts_with(found.name()) && !text.ends_with('.'), "{name}: {text}");
    }
}

#[test]
fn the_first_line_names_the_verdict() {
    let mut report = fixtures::quick(3);
    assert!(sentence(&report).starts_with("Self-test: server and client"));
    report.verdict = Verdict::ClientLimited;
    report.verdict_detail = "this client used all its CPU.".into();
    assert_eq!(sentence(&report), "Client-limited: this client used all its CPU");
    report.verdict_detail = "Ü".into();
    assert_eq!(sentence(&report), "Client-limited: Ü");
    report.interrupted = true;
    report.verdict_detail = String::new();
    assert_eq!(sentence(&report), "Interrupted, results are partial. Client-limited");
}

#[test]
fn headlines_hold_each_members_figures() {
    let mut report = fixtures::quick(3);
    let all: Vec<String> = report.members.iter().map(headline).collect();
    assert_eq!(
        all,
        [
            "storage keeps 4 emulated H100 fed on unet3d: 93.1% utilization, 90% needed, reading 851 MB/s",
            "TTFT p99 1.04 s, 6.03× shorter than recomputing, 2.23× that of ideal storage; emulated GPUs useful 71.4% of \
             the time and stalled on storage 13.0%; 22 requests unfinished at the end; offered load is 1.24 of the capacity \
             without the tier, so TTFT of recomputing grows with the length of the run",
            "retrieval takes 37.4% of the time to first token, 21.7 ms of 58.9 ms at p50, recall 95.3%; 2 queries unfinished \
             at the end",
        ]
    );
    let training = report.members[0].training.as_mut().expect("training");
    (training.compute_s, training.stall_s) = (61.0, 39.0);
    (training.au_ratio, training.passed) = (Some(0.61), Some(false));
    assert_eq!(
        headline(&report.members[0]),
        "storage starves 4 emulated H100 on unet3d: 61.0% utilization, 90% needed, they waited 39.0% of all time; storage \
         gave 851 MB/s of the 914 MB/s that would keep them busy"
    );
    let plain = Member { operations: report.members[1].operations.clone(), ..Member::default() };
    assert!(headline(&plain).starts_with("get 1,041/s, 2.18 GB/s, p99 7.96 ms; put 427/s"), "{}", headline(&plain));
    assert!(headline(&plain).contains(", 14 failed"));
    assert_eq!(headline(&Member::default()), "no operation completed");
    report.members[1].verdict = "its own words.".into();
    assert_eq!(headline(&report.members[1]), "its own words");
}

/// Where requests come faster than they are served, every TTFT depends on the length of the run, and the headline says so.
#[test]
fn an_overloaded_run_says_so() {
    let clause =
        "; offered load exceeds what the workers can do on this storage, so TTFT grows with the length of the run";
    let said = |requests: u64, completed: u64, no_work_ratio: f64, pools: [f64; 2]| {
        let mut report = fixtures::quick(3);
        let kv = report.members[1].kv.as_mut().expect("a KV section");
        (kv.requests, kv.completed, kv.unfinished, kv.load_ratio) = (requests, completed, requests - completed, None);
        kv.gpu.no_work_ratio = no_work_ratio;
        let gpu = |no_work_ratio| GpuTime { no_work_ratio, ..kv.gpu };
        let pool = |no_work| GpuPool { name: "decode".into(), workers: 2, gpu: gpu(no_work) };
        kv.gpu_pools = pools.map(pool).into();
        if pools == [0.0, 0.0] {
            kv.gpu_pools = Vec::new();
        }
        headline(&report.members[1]).ends_with(clause)
    };
    assert!(said(1000, 700, 0.002, [0.0; 2]));
    assert!(said(1000, 700, 0.3, [0.6, 0.001]), "one pool is enough");
    assert!(!said(1000, 700, 0.2, [0.0; 2]), "workers had time: requests are just long");
    assert!(!said(1000, 990, 0.002, [0.0; 2]), "it keeps up");
}

#[test]
fn one_is_no_plural() {
    let mut report = fixtures::quick(3);
    let kv = report.members[1].kv.as_mut().expect("a KV section");
    (kv.failed, kv.unfinished, kv.load_ratio) = (1, 0, None);
    assert!(headline(&report.members[1]).ends_with("; 1 request failed"));
    let kv = report.members[1].kv.as_mut().expect("a KV section");
    (kv.failed, kv.unfinished) = (2, 1);
    assert!(headline(&report.members[1]).ends_with("; 2 requests failed, 1 unfinished at the end"));
    let rag = report.members[2].rag.as_mut().expect("a RAG section");
    (rag.failed, rag.unfinished) = (0, 1);
    assert!(headline(&report.members[2]).ends_with("; 1 query unfinished at the end"));
}

/// MLPerf's rule leaves out first steps: a run can pass that waited a third of the time, and has to say so.
#[test]
fn a_pass_that_left_out_much_waiting_says_so() {
    let mut report = fixtures::quick(3);
    let training = report.members[0].training.as_mut().expect("training");
    (training.au_ratio, training.passed, training.accelerators) = (Some(0.988), Some(true), 1);
    (training.compute_s, training.stall_s) = (8.0, 4.0);
    training.epochs.iter_mut().for_each(|e| e.steps = 8);
    assert_eq!(
        headline(&report.members[0]),
        "1 emulated H100 on unet3d passes MLPerf's rule, 98.8% utilization with 90% needed, yet waited 33.3% of all time: \
         the rule leaves out each epoch's first step, which waits longest, and epochs here have at most 8 steps"
    );
    let training = report.members[0].training.as_mut().expect("training");
    (training.compute_s, training.stall_s) = (98.0, 2.0);
    assert!(headline(&report.members[0]).starts_with("storage keeps 1 emulated H100 fed"));
}

#[test]
fn few_samples_speak_by_their_mean_and_equal_times_are_called_equal() {
    let mut report = fixtures::quick(3);
    let kv = report.members[1].kv.as_mut().expect("kv");
    let few = Latency { count: 19, mean_ns: Some(81.2e6), ..Latency::default() };
    kv.ttft.summary = few;
    for baseline in [&mut kv.baselines.no_cache, &mut kv.baselines.ideal_storage] {
        baseline.as_mut().expect("a baseline").ttft.summary = Latency { mean_ns: Some(81.9e6), ..few };
    }
    let text = headline(&report.members[1]);
    assert!(text.starts_with("TTFT 81.2 ms, the mean of 19, the same as recomputing, the same as on ideal"), "{text}");
}

#[test]
fn claims_are_decided_only_by_runs_that_can() {
    let mut report = fixtures::quick(3);
    let all = gpufeed_profiles::claims();
    let status = |report: &gpufeed_schema::RunReport, id: &str| {
        let found = claims::check(report, &all).into_iter().find(|c| c.id == id).expect(id);
        (found.status, found.measured, found.note)
    };
    let ratio = {
        let kv = report.members[1].kv.as_ref().expect("kv");
        let of = |l: &gpufeed_schema::Distribution| l.summary.p50_ns.expect("enough samples") as f64;
        of(&kv.baselines.no_cache.as_ref().expect("baseline").ttft) / of(&kv.ttft)
    };
    assert_eq!(claims::check(&report, &all).len(), all.len());

    report.verdict = Verdict::StorageLimited;
    let (missed, measured, _) = status(&report, "ttft-27x");
    assert_eq!((missed, measured), (ClaimStatus::Missed, Some(ratio)));
    let fast = &mut report.members[1].kv.as_mut().expect("kv").ttft.summary;
    fast.p50_ns = Some(1_000_000);
    assert_eq!(status(&report, "ttft-27x").0, ClaimStatus::Met);
    assert_eq!(status(&report, "node-45gib").0, ClaimStatus::Missed);
    let (open, none, why) = status(&report, "tco-40");
    assert_eq!((open, none), (ClaimStatus::NotMeasurable, None));
    assert!(why.expect("a reason").starts_with("needs "));

    report.verdict = Verdict::ClientLimited;
    assert_eq!(status(&report, "ttft-27x").0, ClaimStatus::Met, "a busy client does not help the storage");
    let (open, measured, why) = status(&report, "node-45gib");
    assert_eq!(open, ClaimStatus::NotMeasurable);
    assert!(measured.is_some() && why.expect("a reason").contains("client"));

    report.verdict = Verdict::SelfTest;
    assert_eq!(status(&report, "ttft-27x").0, ClaimStatus::NotMeasurable);
}
