//! Routing × shared tier, and the pools of workers that only prefill or only decode.

use std::fmt::Write as _;

use gpufeed_profiles::units::show_nanos;
use gpufeed_schema::Kv;

use super::escape::Text;
use crate::figures::{count, number, or_dash, percent, share, size};

fn table(page: &mut String, caption: &str, columns: &[&str], rows: &[Vec<String>]) {
    let _ = write!(
        page,
        r#"<div class="scroll" tabindex="0" role="group" aria-label="{0}"><table><caption>{0}</caption><thead><tr>"#,
        Text(caption)
    );
    for column in columns {
        let _ = write!(page, r#"<th scope="col">{}</th>"#, Text(column));
    }
    page.push_str("</tr></thead><tbody>");
    for row in rows {
        for (i, cell) in row.iter().enumerate() {
            let (open, close) = if i == 0 { (r#"<tr><th scope="row">"#, "</th>") } else { ("<td>", "</td>") };
            let _ = write!(page, "{open}{}{close}", Text(cell));
        }
        page.push_str("</tr>");
    }
    page.push_str("</tbody></table></div>");
}

/// What a run has to say about how its workers were laid out; nothing if they were all alike and lived.
pub(super) fn topology(page: &mut String, kv: &Kv) {
    if !kv.matrix.is_empty() {
        page.push_str(concat!(
            "<h3>Routing and the shared tier</h3>",
            r#"<p class="fine"><em>Measured</em> cells used the target, one run after the other. Without a shared tier "#,
            "nothing is read or written, so that virtual time is the result.</p>"
        ));
        let rows: Vec<Vec<String>> = kv
            .matrix
            .iter()
            .map(|cell| {
                let figures = &cell.figures;
                vec![
                    format!("{}, {}", cell.routing, if cell.shared_tier { "shared tier" } else { "local tiers only" }),
                    cell.source.clone(),
                    or_dash(figures.ttft.summary.mean_ns, show_nanos),
                    or_dash(figures.ttft.summary.p99_ns.map(|ns| ns as f64), show_nanos),
                    number(figures.output_tokens_per_s),
                    number(figures.goodput_per_s),
                    share(figures.token_hit_ratio),
                    share(figures.gpu.useful_ratio),
                ]
            })
            .collect();
        let columns =
            ["", "source", "TTFT mean", "TTFT p99", "tokens/s", "requests/s in SLO", "not prefilled", "useful"];
        table(page, "Routing × shared tier", &columns, &rows);
    }
    if !kv.gpu_pools.is_empty() {
        let _ = write!(
            page,
            r#"<h3>Pools</h3><p class="fine">{} of KV cache went from the workers that prefill to those that decode.</p>"#,
            Text(&size(kv.transferred_bytes))
        );
        let rows: Vec<Vec<String>> = kv
            .gpu_pools
            .iter()
            .map(|pool| {
                let gpu = &pool.gpu;
                let ratios = [
                    gpu.prefill_ratio,
                    gpu.recompute_ratio,
                    gpu.decode_ratio,
                    gpu.storage_stall_ratio,
                    gpu.transfer_stall_ratio,
                    gpu.no_work_ratio,
                    gpu.down_ratio,
                ];
                let head = [pool.name.clone(), count(u64::from(pool.workers))];
                head.into_iter().chain(ratios.map(percent)).collect()
            })
            .collect();
        let columns =
            ["pool", "workers", "prefill", "recompute", "decode", "storage stall", "transfer stall", "no work", "down"];
        table(page, "GPU time by pool", &columns, &rows);
    }
    if let Some(failover) = &kv.failover {
        let _ = write!(
            page,
            "<h3>Workers lost</h3><p>Workers that died: {}; {} requests went on elsewhere, {} failed. Of {} tokens they had in GPU \
             memory, {} were loaded from the shared tier, {} found where they went, {} computed again.</p>",
            count(failover.workers_lost),
            count(failover.moved_requests),
            count(failover.failed_requests),
            count(failover.lost_tokens),
            count(failover.loaded_tokens),
            count(failover.found_tokens),
            count(failover.recomputed_tokens),
        );
    }
}

#[cfg(test)]
mod tests {
    use gpufeed_schema::{Baseline, Failover, GpuPool, GpuTime, MatrixCell};

    use super::*;

    #[test]
    fn a_plain_run_says_nothing_and_others_show_each_figure() {
        let mut page = String::new();
        topology(&mut page, &Kv::default());
        assert_eq!(page, "");
        let cell = |shared_tier, source: &str| MatrixCell {
            routing: "kv-aware".to_owned(),
            shared_tier,
            source: source.to_owned(),
            figures: Baseline { token_hit_ratio: Some(0.25), ..Baseline::default() },
        };
        let pool = |name: &str, decode_ratio| GpuPool {
            name: name.to_owned(),
            workers: 3,
            gpu: GpuTime { decode_ratio, total_ns: 1, ..GpuTime::default() },
        };
        let kv = Kv {
            matrix: vec![cell(false, "model"), cell(true, "measured")],
            gpu_pools: vec![pool("prefill", 0.0), pool("decode", 0.875)],
            failover: Some(Failover {
                workers_lost: 1,
                moved_requests: 17,
                loaded_tokens: 4096,
                ..Failover::default()
            }),
            transferred_bytes: 3 << 30,
            ..Kv::default()
        };
        topology(&mut page, &kv);
        for words in [
            "kv-aware, shared tier",
            "kv-aware, local tiers only",
            "<td>measured</td>",
            "<td>model</td>",
            "<td>25.0%</td>",
            "<th scope=\"row\">decode</th>",
            "<td>87.5%</td>",
            "17 requests went on elsewhere",
            "4,096 were loaded from the shared tier",
        ] {
            assert!(page.contains(words), "{words} in {page}");
        }
    }
}
