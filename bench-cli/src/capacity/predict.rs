//! Single predictions for scripts: TTFT of one request on an idle worker, and the time of one decode iteration.

use std::fmt::Write as _;
use std::time::Duration;

use gpufeed_profiles::units::{BytesPerSec, show_nanos};
use gpufeed_profiles::{Covers, Dtype, Engine, Gpu, Model, Overrides, Published, published};
use gpufeed_workloads::inference::{Batch, CostModel, Terms};

use crate::args::{ItlArgs, PlanFormat, ServedArgs, TtftArgs};
use crate::exit::{Exit, OrUsage, usage};
use crate::output;

/// Far more than engines batch; the sum over them is a loop.
const MOST_SEQUENCES: u64 = 1 << 20;
/// Tokens of a prompt beyond which nothing is known, and the sum over chunks gets long.
const MOST_TOKENS: u64 = 1 << 30;

/// Prints the TTFT of one request.
///
/// # Errors
/// When a name is not known, the model does not fit, or the numbers make no sense.
pub(super) fn ttft(args: &TtftArgs) -> anyhow::Result<Exit> {
    let served = Served::of(&args.served)?;
    let request = Request { context: args.context, cached: args.cached };
    request.check()?;
    let load = args
        .load_bytes_per_s
        .map(|bytes_per_s| Load { bytes_per_s, first_byte: args.load_latency.unwrap_or_default() });
    if load.is_some_and(|load| load.bytes_per_s.0 <= 0.0) {
        return Err(usage("--load-bytes-per-s must be more than zero"));
    }
    let what = if load.is_some() && args.cached > 0 { Covers::Reuse } else { Covers::Cold };
    served.warn_of_room(request.context);
    let reason = served.extrapolated(&published(), what);
    print(args.served.format, &served.ttft(request, load), reason.as_deref())
}

/// Prints the time of one decode iteration.
///
/// # Errors
/// When a name is not known, the model does not fit, or the numbers make no sense.
pub(super) fn itl(args: &ItlArgs) -> anyhow::Result<Exit> {
    let served = Served::of(&args.served)?;
    if args.batch == 0 || args.context == 0 {
        return Err(usage("--batch and --context must be at least 1"));
    }
    if args.batch > MOST_SEQUENCES {
        return Err(usage(format!("--batch {} is beyond any engine: take at most {MOST_SEQUENCES}", args.batch)));
    }
    served.warn_of_room(args.batch.saturating_mul(args.context));
    let reason = served.extrapolated(&published(), Covers::Itl);
    print(args.served.format, &served.itl(args.batch, args.context), reason.as_deref())
}

/// One request's tokens.
#[derive(Debug, Clone, Copy)]
pub(super) struct Request {
    /// Of the prompt.
    pub(super) context: u64,
    /// Of those, cached.
    pub(super) cached: u64,
}

impl Request {
    fn check(self) -> anyhow::Result<()> {
        if self.context == 0 {
            return Err(usage("--context must be at least 1"));
        }
        if self.context > MOST_TOKENS {
            return Err(usage(format!("--context {} is beyond any model: take at most {MOST_TOKENS}", self.context)));
        }
        if self.cached > self.context {
            return Err(usage(format!("--cached {} is more than --context {}", self.cached, self.context)));
        }
        Ok(())
    }
}

/// How cached KV is loaded.
#[derive(Debug, Clone, Copy)]
pub(super) struct Load {
    /// All GPUs of the worker together.
    pub(super) bytes_per_s: BytesPerSec,
    /// Before the first byte.
    pub(super) first_byte: Duration,
}

/// A time as the sum of its terms, each in whole nanoseconds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Prediction {
    terms: Vec<(&'static str, u64)>,
}

impl Prediction {
    /// Sum of the terms, in nanoseconds.
    pub(super) fn ns(&self) -> u64 {
        self.terms.iter().map(|(_, ns)| ns).sum()
    }

    fn json(&self, reason: Option<&str>) -> serde_json::Value {
        let terms: serde_json::Map<_, _> =
            self.terms.iter().map(|(name, ns)| (format!("{name}_ns"), (*ns).into())).collect();
        serde_json::json!({
            "predicted_ns": self.ns(),
            "extrapolated": reason.is_some(),
            "extrapolated_because": reason,
            "terms": terms,
        })
    }

    fn text(&self, reason: Option<&str>) -> String {
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{:<20}{:>12}", "predicted", show_nanos(self.ns() as f64));
        for (name, ns) in self.terms.iter().filter(|(_, ns)| *ns > 0) {
            let _ = writeln!(text, "  {:<18}{:>12}", name.replace('_', " "), show_nanos(*ns as f64));
        }
        let _ = match reason {
            Some(reason) => writeln!(text, "extrapolated: {reason}"),
            None => writeln!(text, "fitted: a cited measurement stands behind this GPU, engine and number of GPUs"),
        };
        text
    }
}

fn print(format: PlanFormat, prediction: &Prediction, reason: Option<&str>) -> anyhow::Result<Exit> {
    output::result(&match format {
        PlanFormat::Text => prediction.text(reason),
        PlanFormat::Json => serde_json::to_string_pretty(&prediction.json(reason))? + "\n",
        PlanFormat::Html => return Err(usage("a single prediction has no page: use --format text or json")),
    })?;
    Ok(Exit::Passed)
}

/// Sums iterations term by term.
#[derive(Debug, Default)]
struct Sum {
    terms: Terms,
    host_wait_ns: f64,
}

impl Sum {
    fn add(&mut self, iteration: Terms) {
        let sum = &mut self.terms;
        sum.gemm_ns += iteration.gemm_ns;
        sum.prefill_attention_ns += iteration.prefill_attention_ns;
        sum.decode_attention_ns += iteration.decode_attention_ns;
        sum.all_reduce_ns += iteration.all_reduce_ns;
        sum.elementwise_ns += iteration.elementwise_ns;
        sum.kernels_ns += iteration.kernels_ns;
        self.host_wait_ns += iteration.host_wait_ns();
    }

    fn terms(&self) -> [(&'static str, u64); 7] {
        [
            ("gemm", self.terms.gemm_ns),
            ("prefill_attention", self.terms.prefill_attention_ns),
            ("decode_attention", self.terms.decode_attention_ns),
            ("all_reduce", self.terms.all_reduce_ns),
            ("elementwise", self.terms.elementwise_ns),
            ("kernels", self.terms.kernels_ns),
            ("host_wait", self.host_wait_ns),
        ]
        .map(|(name, ns)| (name, ns.round() as u64))
    }
}

/// A model on GPUs under an engine.
pub(super) struct Served {
    gpu: String,
    engine: Engine,
    tp: u32,
    /// Figures of GPU or engine were set by hand, so no fit stands behind them.
    set: bool,
    cost: CostModel,
}

impl Served {
    fn of(args: &ServedArgs) -> anyhow::Result<Self> {
        let overrides = Overrides::parse(&args.set).or_usage()?;
        let used = ["model", "gpu", "engine"];
        if let Some(section) = overrides.sections().find(|section| !used.contains(section)) {
            return Err(usage(format!("`--set {section}.…` changes nothing here: set model, gpu or engine")));
        }
        let model = gpufeed_profiles::model(&args.model, &overrides).or_usage()?;
        let gpu = gpufeed_profiles::gpu(&args.gpu, &overrides).or_usage()?;
        let engine = gpufeed_profiles::engine(&args.engine, &overrides).or_usage()?;
        let set = overrides.sections().any(|section| section != "model");
        let weights = args.weights_dtype.unwrap_or(model.weight_dtype);
        let kv = args.kv_dtype.unwrap_or(model.kv_dtype);
        check_fit(&model, &gpu, args.tp, weights)?;
        Ok(Self::new(&model, &gpu, engine, args.tp, weights, kv, set))
    }

    /// From profiles.
    pub(super) fn new(model: &Model, gpu: &Gpu, engine: Engine, tp: u32, weights: Dtype, kv: Dtype, set: bool) -> Self {
        let cost = CostModel::from_profiles(model, gpu, &engine, tp, weights, kv);
        Self { gpu: gpu.name.clone(), engine, tp, set, cost }
    }

    /// TTFT of one request on an idle worker: `t_request + τ_token·n + load + Σ T_iter` (design §5).
    ///
    /// However much is cached, at least one block is computed again, since the first token comes from it; what is
    /// cached is loaded if `load` says how, and in GPU memory already if not.
    pub(super) fn ttft(&self, request: Request, load: Option<Load>) -> Prediction {
        let Request { context, cached } = request;
        let from = cached.min(context.saturating_sub(self.engine.block_tokens));
        let chunk = self.engine.max_batched_tokens;
        let mut sum = Sum::default();
        let mut at = from;
        while at < context {
            let tokens = chunk.min(context - at);
            let mut batch = Batch::default();
            batch.chunk(&self.cost, at, tokens, at + tokens == context);
            sum.add(self.cost.iteration(&batch));
            at += tokens;
        }
        let load_ns = load.filter(|_| from > 0).map_or(0.0, |load| {
            load.first_byte.as_secs_f64() * 1e9 + self.cost.kv_bytes_per_token * from as f64 / load.bytes_per_s.0 * 1e9
        });
        let mut terms =
            vec![("request", self.cost.request_ns(context).round() as u64), ("load", load_ns.round() as u64)];
        terms.extend(sum.terms().into_iter().filter(|(name, _)| *name != "decode_attention"));
        Prediction { terms }
    }

    /// One iteration in which `batch` sequences of `context` tokens each decode a token.
    pub(super) fn itl(&self, batch: u64, context: u64) -> Prediction {
        let mut decoding = Batch::default();
        (0..batch).for_each(|_| decoding.decode(&self.cost, context));
        let mut sum = Sum::default();
        sum.add(self.cost.iteration(&decoding));
        Prediction { terms: sum.terms().into_iter().filter(|(name, _)| *name != "prefill_attention").collect() }
    }

    /// Says so where the KV of that many tokens does not fit beside the weights. The time is right all the same: engines
    /// with other settings, or that keep the window only of windowed layers, hold more.
    fn warn_of_room(&self, tokens: u64) {
        let room = self.room_tokens();
        if tokens > room {
            output::say(&format!(
                "gpufeed: beside the weights {} × {} hold the KV of {room} tokens at this engine's settings, not of {tokens}",
                self.tp, self.gpu
            ));
        }
    }

    /// Tokens whose KV fits beside the weights.
    fn room_tokens(&self) -> u64 {
        let engine = &self.engine;
        let blocks = self.cost.hbm_blocks(engine.hbm_utilization_ratio, engine.max_batched_tokens, engine.block_tokens);
        blocks * engine.block_tokens
    }

    /// Why a prediction is an extrapolation; none where a cited measurement fits.
    pub(super) fn extrapolated(&self, published: &Published, what: Covers) -> Option<String> {
        let (gpu, engine, tp) = (&self.gpu, &self.engine.name, self.tp);
        let of = match what {
            Covers::Cold => "TTFT without a load",
            Covers::Reuse => "TTFT with a load",
            Covers::Itl => "ITL",
        };
        if self.set {
            return Some("figures of the GPU or the engine were set on the command line".to_owned());
        }
        if published.fit(gpu, engine, tp, what).is_some() {
            return None;
        }
        let fits = published.fit.iter().filter(|fit| fit.covers.contains(&what));
        let fits: Vec<String> = fits.map(|fit| format!("{} × {} × TP {}", fit.gpu, fit.engine, fit.tp)).collect();
        Some(format!("no cited measurement fits {of} of {gpu} × {engine} × TP {tp}; there are {}", fits.join(", ")))
    }
}

/// A model that is larger than the GPUs' memory, or that they cannot share, has no prediction.
fn check_fit(model: &Model, gpu: &Gpu, tp: u32, weights: Dtype) -> anyhow::Result<()> {
    if tp == 0 {
        return Err(usage("--tp must be at least 1"));
    }
    if !model.heads.is_multiple_of(tp) {
        return Err(usage(format!("{} attention heads of {} do not spread over --tp {tp}", model.heads, model.name)));
    }
    let (bytes, each) = (model.weights_bytes(weights), gpu.usable_hbm().0 as f64);
    if bytes <= each * f64::from(tp) {
        return Ok(());
    }
    let enough = (0..=10).map(|power| 1u32 << power).find(|tp| bytes <= 0.9 * each * f64::from(*tp));
    let way_out = enough.map_or_else(String::new, |tp| format!("; --tp {tp} would"));
    Err(usage(format!(
        "{} in {weights} is {:.0} GB of weights, which {tp} × {} of {:.0} GB do not hold{way_out}",
        model.name,
        bytes / 1e9,
        gpu.name,
        each / 1e9
    )))
}

#[cfg(test)]
mod tests {
    use gpufeed_profiles::{engine, gpu, model};

    use super::*;

    fn served(name: &str, on: &str, by: &str, tp: u32) -> Served {
        served_in(name, on, by, tp, None, None)
    }

    fn served_in(name: &str, on: &str, by: &str, tp: u32, weights: Option<Dtype>, kv: Option<Dtype>) -> Served {
        let none = Overrides::default();
        let model = model(name, &none).expect("a known model");
        let (gpu, engine) = (gpu(on, &none).expect("a known GPU"), engine(by, &none).expect("a known engine"));
        let (weights, kv) = (weights.unwrap_or(model.weight_dtype), kv.unwrap_or(model.kv_dtype));
        Served::new(&model, &gpu, engine, tp, weights, kv, false)
    }

    fn itl_ms(name: &str, on: &str, tp: u32, batch: u64, context: u64) -> f64 {
        served(name, on, "vllm", tp).itl(batch, context).ns() as f64 / 1e6
    }

    fn term(prediction: &Prediction, name: &str) -> u64 {
        prediction.terms.iter().find(|(term, _)| *term == name).expect("a term").1
    }

    #[test]
    fn terms_add_up_to_what_the_cost_model_says() {
        for (name, tp, context) in [("llama-3.1-8b", 1, 20_000), ("deepseek-v3", 8, 9000), ("gpt-oss-120b", 2, 500)] {
            let served = served(name, "h200-sxm", "vllm", tp);
            let prediction = served.ttft(Request { context, cached: 0 }, None);
            let expected = served.cost.request_ns(context) + served.cost.prefill_ns(0, context, 8192);
            assert!((prediction.ns() as f64 - expected).abs() < 10.0, "{name}: {prediction:?} of {expected}");
            let mut batch = Batch::default();
            (0..5).for_each(|_| batch.decode(&served.cost, context));
            let itl = served.itl(5, context).ns() as f64;
            assert!((itl - served.cost.iteration_ns(&batch)).abs() < 10.0, "{name}");
        }
    }

    #[test]
    fn a_full_hit_loads_all_but_one_block_and_computes_that() {
        let served = served("llama-3.1-8b", "h100-sxm", "vllm", 1);
        let load = Load { bytes_per_s: BytesPerSec(40e9), first_byte: Duration::from_millis(3) };
        let full = served.ttft(Request { context: 8000, cached: 8000 }, Some(load));
        assert_eq!(full, served.ttft(Request { context: 8000, cached: 7984 }, Some(load)));
        assert_eq!(term(&full, "load"), 3_000_000 + (131_072.0_f64 * 7984.0 / 40.0).round() as u64);
        // Nothing is loaded where nothing is cached, nor where it is in GPU memory.
        assert_eq!(term(&served.ttft(Request { context: 8000, cached: 0 }, Some(load)), "load"), 0);
        assert_eq!(term(&served.ttft(Request { context: 8000, cached: 7000 }, None), "load"), 0);
    }

    #[test]
    fn an_mla_latent_and_replicated_heads_are_loaded_once() {
        let load = Load { bytes_per_s: BytesPerSec(1e9), first_byte: Duration::ZERO };
        for (name, bytes) in [("deepseek-v3", 70_272), ("qwen3-235b-a22b", 192_512)] {
            for tp in [4, 8] {
                let served = served(name, "b300", "vllm", tp);
                let loaded = term(&served.ttft(Request { context: 10_016, cached: 10_000 }, Some(load)), "load");
                assert_eq!(loaded, bytes * 10_000, "{name}, TP {tp}");
            }
        }
    }

    #[test]
    fn decode_gets_no_slower_with_more_gpus_until_the_host_limits_it() {
        for (name, gpu) in [("llama-3.1-8b", "h100-sxm"), ("llama-3.1-70b", "h200-sxm"), ("qwen3-32b", "b200")] {
            let times = [1, 2, 4, 8].map(|tp| itl_ms(name, gpu, tp, 8, 4000));
            assert!(times.is_sorted_by(|a, b| a >= b), "{name} on {gpu}: {times:?}");
        }
        // A small model on eight GPUs waits for the host: no time of its own, and more than bytes need.
        let eight = served("llama-3.1-8b", "h100-sxm", "vllm", 8).itl(1, 1000);
        let vllm = engine("vllm", &Overrides::default()).expect("vllm");
        let host = vllm.step_time + 32 * vllm.launch_time + vllm.sequence_time;
        // Terms are rounded one by one.
        assert!(u128::from(eight.ns()).abs_diff(host.as_nanos()) < 7, "{eight:?} of {host:?}");
        assert!(term(&eight, "host_wait") > 0 && term(&eight, "all_reduce") > 64 * 6000);
    }

    #[test]
    fn decode_is_never_faster_than_memory_allows() {
        for name in ["llama-3.1-8b", "llama-3.1-70b", "qwen3-30b-a3b", "mixtral-8x7b", "gpt-oss-120b", "deepseek-v3"] {
            for gpu in ["a100-sxm", "h100-sxm", "h20", "h200-sxm", "b200", "gb200", "b300", "mi300x", "l40s", "a10g"] {
                for (tp, batch) in [(1, 1), (2, 8), (8, 64)] {
                    let served = served(name, gpu, "vllm", tp);
                    let mut decoding = Batch::default();
                    (0..batch).for_each(|_| decoding.decode(&served.cost, 2000));
                    let ranks = f64::from(tp);
                    let least = served.cost.bytes(&decoding) / ranks / served.cost.peak_hbm_bytes_per_s * 1e9;
                    let itl = served.itl(batch, 2000).ns() as f64;
                    assert!(itl > least * 1.05, "{name} on {tp} × {gpu}, batch {batch}: {itl} of {least}");
                }
            }
        }
    }

    #[test]
    fn experts_are_touched_as_batches_grow() {
        // Qwen3-30B-A3B: 8 of 128 experts for one token, most of them for 64; then it reads as much as a dense 30B.
        let [one, eight, many] = [1, 8, 64]
            .map(|batch| term(&served("qwen3-30b-a3b", "h100-sxm", "vllm", 1).itl(batch, 1000), "gemm") as f64);
        let experts = |tokens: i32| 1.0 - (1.0 - 8.0 / 128.0_f64).powi(tokens);
        assert!(eight > 4.0 * one && eight < one * experts(8) / experts(1), "{one} {eight}");
        assert!(many > 2.0 * eight && many < 30.5e9 * 2.0 / (3.35e12 * 0.765) * 1.3 * 1e9, "{eight} {many}");
        // At a batch of one kernels weigh more than bytes, so it is no three-billion model.
        let single = served("qwen3-30b-a3b", "h100-sxm", "vllm", 1).itl(1, 1000);
        assert!(term(&single, "kernels") > term(&single, "gemm"));
    }

    #[test]
    fn without_nvlink_all_reduces_decide() {
        let [nvlink, pcie] = ["a100-sxm", "l40s"].map(|gpu| served("llama-3.1-70b", gpu, "vllm", 4));
        let share = |prediction: &Prediction| term(prediction, "all_reduce") as f64 / prediction.ns() as f64;
        let prefill = |served: &Served| share(&served.ttft(Request { context: 8192, cached: 0 }, None));
        assert!(prefill(&pcie) > 0.4 && prefill(&nvlink) < 0.15, "{} {}", prefill(&pcie), prefill(&nvlink));
        let decode = |served: &Served| term(&served.itl(1, 1000), "all_reduce");
        assert!(decode(&pcie) > 3 * decode(&nvlink));
        // More GPUs without a switch: each all-reduce takes longer.
        assert!(decode(&served("llama-3.1-70b", "l40s", "vllm", 8)) > decode(&pcie));
    }

    #[test]
    fn faster_memory_decodes_faster_and_more_compute_prefills_faster() {
        let [h100, h20, h200, b200] = ["h100-sxm", "h20", "h200-sxm", "b200"].map(|gpu| {
            let served = served("llama-3.1-70b", gpu, "vllm", 4);
            (served.itl(1, 8000).ns(), served.ttft(Request { context: 16_000, cached: 0 }, None).ns())
        });
        assert!(b200.0 < h200.0 && h200.0 < h20.0 && h20.0 < h100.0, "{h100:?} {h20:?} {h200:?} {b200:?}");
        assert!(b200.1 < h100.1 && h100.1 < 2 * h200.1 && h20.1 > 3 * h100.1);
    }

    #[test]
    fn narrower_weights_and_caches_are_read_faster() {
        let itl = |weights, kv| {
            served_in("llama-3.1-70b", "h100-sxm", "vllm", 4, Some(weights), Some(kv)).itl(16, 30_000).ns()
        };
        let (wide, weights, both) =
            (itl(Dtype::Bf16, Dtype::Bf16), itl(Dtype::Fp8, Dtype::Bf16), itl(Dtype::Fp8, Dtype::Fp8));
        assert!(wide > weights && weights > both, "{wide} {weights} {both}");
    }

    #[test]
    fn what_is_not_fitted_says_so() {
        let published = published();
        let reason = |gpu, by, tp, what| served("llama-3.1-8b", gpu, by, tp).extrapolated(&published, what);
        assert_eq!(reason("h100-sxm", "vllm", 1, Covers::Itl), None);
        assert_eq!(reason("h100", "trtllm", 8, Covers::Cold), None, "by their other names");
        let text = reason("h20", "vllm", 2, Covers::Itl).expect("no fit");
        assert!(text.contains("h20 × vllm × TP 2") && text.contains("h100-sxm × vllm × TP 1"), "{text}");
        let set = Served { set: true, ..served("llama-3.1-8b", "h100-sxm", "vllm", 1) };
        assert!(set.extrapolated(&published, Covers::Itl).is_some_and(|text| text.contains("command line")));
    }

    #[test]
    fn a_model_that_does_not_fit_is_answered_with_what_would() {
        let none = Overrides::default();
        let (v3, h100) = (model("deepseek-v3", &none).expect("V3"), gpu("h100-sxm", &none).expect("H100"));
        let says = |tp| check_fit(&v3, &h100, tp, Dtype::Fp8).map_err(|error| error.to_string());
        let text = says(8).expect_err("672 GB in 640");
        assert!(text.contains("8 × h100-sxm of 80 GB do not hold; --tp 16 would"), "{text}");
        assert_eq!(says(16), Ok(()));
        assert!(says(0).is_err() && says(3).expect_err("heads").contains("do not spread over --tp 3"));
    }
}
