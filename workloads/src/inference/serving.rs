//! The cost model of a model served by an engine on GPUs of one kind, from their profiles.

use gpufeed_profiles::{Dtype, Engine, Gpu, Model};

use crate::inference::CostModel;

impl CostModel {
    /// `model` with weights in `weights` and its KV cache in `kv`, served by `engine` on `tp` GPUs of the kind `gpu`.
    ///
    /// Attention runs in the KV cache's format, GEMMs in the weights'.
    #[must_use]
    pub fn from_profiles(model: &Model, gpu: &Gpu, engine: &Engine, tp: u32, weights: Dtype, kv: Dtype) -> Self {
        let ns = |duration: std::time::Duration| duration.as_secs_f64() * 1e9;
        let tp = tp.max(1);
        Self {
            layers: model.layers,
            hidden: model.hidden,
            dense_params: model.dense_params(),
            expert_params: model.expert_params(),
            experts: model.moe.map_or(0, |moe| moe.experts),
            experts_per_token: model.moe.map_or(0, |moe| moe.experts_per_token),
            head_params: model.head_params(),
            weight_bytes: weights.bytes(),
            dense_weight_bytes: Some(model.dense_dtype(weights).bytes()).filter(|bytes| *bytes != weights.bytes()),
            head_weight_bytes: model.head_dtype(weights).bytes(),
            prefill_attention_width: model.prefill_attention_width(),
            decode_attention_width: model.decode_attention_width(),
            window_layers: model.window_layers(),
            window_tokens: model.window.map_or(0, |window| window.tokens),
            kv_bytes_per_token: model.kv_bytes_per_token(kv),
            kv_bytes_per_token_rank: model.kv_bytes_per_token_rank(kv, tp),
            tp,
            gemm_flops_per_s: gpu.gemm_rate(weights).0,
            attention_flops_per_s: gpu.attention_rate(kv).0,
            weight_bytes_per_s: gpu.weight_read().0,
            kv_bytes_per_s: gpu.kv_read(kv).0,
            roofline_loss: engine.roofline_loss_ratio,
            kv_batch_loss: gpu.kv_batch_loss_ratio.of(kv),
            hbm_bytes_per_s: gpu.hbm_stream().0,
            kernels_ns: f64::from(model.layers) * ns(engine.layer_time)
                + f64::from(model.moe_layers()) * ns(engine.expert_time),
            elementwise_passes: engine.elementwise_passes,
            all_reduce_ns: ns(gpu.all_reduce_time(tp)),
            link_bytes_per_s: gpu.peer_rate().0,
            step_ns: ns(engine.step_time),
            launch_ns: ns(engine.launch_time),
            sequence_ns: ns(engine.sequence_time),
            request_ns: ns(engine.request_time),
            token_ns: ns(engine.token_time),
            host_link_bytes_per_s: gpu.host_link_bytes_per_s.0,
            peak_flops_per_s: gpu.peak.of(weights).0,
            peak_hbm_bytes_per_s: gpu.hbm_bytes_per_s.0,
            hbm_bytes: gpu.usable_hbm().0 as f64,
            weight_bytes_per_rank: model.weights_bytes(weights) / f64::from(tp),
            activation_bytes_per_token: engine.activation_vectors * f64::from(model.hidden) * 2.0,
            reserved_bytes: engine.reserved_bytes.0 as f64,
        }
    }
}

#[cfg(test)]
mod tests {
    use gpufeed_profiles::{Overrides, engine, gpu, model};

    use super::*;
    use crate::inference::Batch;

    fn cost(name: &str, on: &str, tp: u32, kv: Dtype) -> CostModel {
        let none = Overrides::default();
        let model = model(name, &none).expect("a known model");
        let (gpu, engine) = (gpu(on, &none).expect("a known GPU"), engine("vllm", &none).expect("a known engine"));
        CostModel::from_profiles(&model, &gpu, &engine, tp, model.weight_dtype, kv)
    }

    fn itl_ms(cost: &CostModel, seqs: u64, context: u64) -> f64 {
        let mut batch = Batch::default();
        (0..seqs).for_each(|_| batch.decode(cost, context));
        cost.iteration_ns(&batch) / 1e6
    }

    #[test]
    fn the_published_itl_lines_come_out() {
        for (kv, intercept, slope) in [(Dtype::Bf16, 6.44, 4.37e-5), (Dtype::Fp8, 6.58, 2.37e-5)] {
            let cost = cost("llama-3.1-8b", "h100-sxm", 1, kv);
            for context in [1000u64, 10_000, 50_000, 100_000, 130_000] {
                let (predicted, published) = (itl_ms(&cost, 1, context), intercept + slope * context as f64);
                assert!((predicted / published - 1.0).abs() < 0.05, "{kv:?} {context}: {predicted} of {published}");
            }
        }
        let cost = cost("llama-3.1-8b", "h100-sxm", 1, Dtype::Bf16);
        let predicted = itl_ms(&cost, 8, 21_000);
        assert!((predicted / 15.18 - 1.0).abs() < 0.10, "{predicted}");
    }

    #[test]
    fn the_published_cold_ttfts_come_out() {
        let cost = cost("llama-3.1-8b", "h100-sxm", 1, Dtype::Bf16);
        let rows = [(10_000, 0.265), (30_000, 1.1), (50_000, 2.291), (70_000, 3.843), (100_000, 6.846)];
        for (tokens, published_s) in rows {
            let predicted_s = (cost.request_ns(tokens) + cost.prefill_ns(0, tokens, 8192)) / 1e9;
            assert!((predicted_s / published_s - 1.0).abs() < 0.10, "{tokens}: {predicted_s} of {published_s}");
        }
    }

    #[test]
    fn kv_heads_replicate_and_the_store_holds_them_once() {
        let [four, eight] = [4, 8].map(|tp| cost("qwen3-235b-a22b", "h100-sxm", tp, Dtype::Bf16));
        assert_eq!((four.kv_bytes_per_token, eight.kv_bytes_per_token), (192_512.0, 192_512.0));
        assert_eq!((four.kv_bytes_per_token_rank, eight.kv_bytes_per_token_rank), (48_128.0, 48_128.0));
        assert_eq!(four.hbm_blocks(0.9, 8192, 16), 0, "470 GB of weights on four GPUs of 80 GB");
    }
}
