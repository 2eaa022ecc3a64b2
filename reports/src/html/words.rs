//! How to read the page: the words that stand on it, and no others.

use std::fmt::Write as _;

use gpufeed_schema::{ClosedOrOpen, RunReport, Verdict};

/// Writes the section.
pub(super) fn section(page: &mut String, report: &RunReport) {
    page.push_str(r#"<section id="words"><h2>How to read this</h2><dl class="words">"#);
    for (word, meaning) in words(report) {
        let _ = write!(page, "<div><dt>{word}</dt><dd>{meaning}.</dd></div>");
    }
    page.push_str("</dl></section>");
}

fn words(report: &RunReport) -> Vec<(&'static str, &'static str)> {
    let members = &report.members;
    let inference = members.iter().any(|m| m.kv.is_some() || m.rag.is_some());
    let training = members.iter().any(|m| m.training.is_some());
    let mut words = vec![match report.verdict {
        Verdict::SelfTest => (
            "Self-test",
            "the reference server, the client or a null target shared one machine: good for trying things out, no word \
             on any storage product",
        ),
        Verdict::StorageLimited => {
            ("Storage-limited", "the client had room to spare, so the figures are those of the storage")
        }
        Verdict::ClientLimited => {
            ("Client-limited", "the machine that measured was the limit: the storage may be faster than the figures")
        }
        Verdict::ScheduleLimited => {
            ("Schedule-limited", "the storage did all that was asked of it: it may be able to do more")
        }
    }];
    words.extend([
        ("Service time", "from the actual send of an operation to its last byte"),
        ("Response time", "from the intended start to the last byte: what a user of a busy system waits"),
        ("Schedule slip", "from the intended start to the actual send: how late this client was"),
        ("First byte", "from the actual send to the first byte of the answer"),
        (
            "Percentiles",
            "p99 is the time that 99 of 100 stay below. They come from merged histograms, never from averages, and stand \
             only where at least ten samples lie beyond; – elsewhere",
        ),
        ("Errors", "are counted by kind and kept out of latencies"),
        (
            "Warm-up",
            "precedes the measured window and is left out; operations that end after the window still count, by when they \
             were meant to start",
        ),
    ]);
    words.push(match members.iter().any(|m| matches!(m.load, ClosedOrOpen::Open { .. })) {
        true => (
            "Open and closed loop",
            "in an open loop work arrives on a schedule whatever the target does, so waiting shows; in a closed loop each \
             operation starts when one ends, so a slow target is asked less",
        ),
        false => (
            "Closed loop",
            "an operation starts when one ends, so that a slow target is asked less and waiting hides: an open loop, at a \
             rate, shows it",
        ),
    });
    if training || inference {
        words.push((
            "Emulated",
            "accelerators and GPUs are models that issue real storage operations; their times are estimates, the storage \
             is measured",
        ));
    }
    if training {
        words.extend([
            (
                "Accelerator utilization (AU)",
                "compute time ÷ running time by the rule of MLPerf Storage, each epoch's first step left out",
            ),
            ("Stalled", "accelerator time spent waiting for data or for the slowest peer, first steps included"),
            ("Step, sample, epoch", "one batch on every accelerator; one item of a batch; one pass over the data set"),
        ]);
    }
    if inference {
        words.extend([
            ("TTFT", "time from a request's arrival to its first output token"),
            ("Prefill, decode", "computing the prompt; producing the answer token by token"),
            ("Storage stall", "a GPU had nothing to run while some request waited for storage"),
            ("No work", "no request was there: no fault of the storage"),
            ("Busy", "all time but stalls and no work; recomputing counts as busy"),
        ]);
    }
    if members.iter().any(|m| m.kv.is_some()) {
        words.extend([
            (
                "Useful",
                "busy time that ideal storage would need for the same completed work ÷ time with work to do",
            ),
            ("Recompute", "prefill of tokens that some worker had computed before: what missing storage costs"),
            ("KV block", "the state that a model keeps for a fixed number of tokens; the unit that is stored and loaded"),
            ("TPOT, ITL", "mean time per output token of a request after its first; a single gap between two tokens"),
            ("Inside the SLO", "requests per second that met every objective listed under all figures"),
            (
                "Baselines",
                "the same requests in virtual time with no cache beyond the GPU's, with local tiers only, and with storage \
                 that is infinite and instant",
            ),
        ]);
    }
    if report.run.scaled {
        words.push((
            "Scaled",
            "something is smaller or slower than it would be in production; the lines at the top say what, and what that \
             does to the figures",
        ));
    }
    words
}
