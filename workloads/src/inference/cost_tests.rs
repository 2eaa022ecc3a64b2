//! The iteration formula against closed forms and published figures.

use crate::inference::cost::MooncakeEq2;
use crate::inference::{Batch, CostModel};

/// Llama-3.1-8B in bf16 on one H100 under vLLM, with the rates that facts fitted for it (facts/decode_calibration.md):
/// prefill T = 4.498e-10·n² + 2.368e-5·n s, decode 6.44 ms + 4.37e-5 ms per context token.
pub(crate) fn llama_8b_h100() -> CostModel {
    // 8.03e9 parameters, of which 128,256 · 4,096 each in embedding and head.
    let head = 128_256.0 * 4096.0;
    let dense = 8.03e9 - 2.0 * head;
    CostModel {
        layers: 32,
        hidden: 4096,
        dense_params: dense,
        expert_params: 0.0,
        experts: 0,
        experts_per_token: 0,
        head_params: head,
        weight_bytes: 2.0,
        dense_weight_bytes: None,
        roofline_loss: 0.0,
        kv_batch_loss: 0.0,
        kernels_ns: 0.0,
        head_weight_bytes: 2.0,
        prefill_attention_width: 4096.0,
        decode_attention_width: 4096.0,
        window_layers: 0,
        window_tokens: 0,
        kv_bytes_per_token: 131_072.0,
        kv_bytes_per_token_rank: 131_072.0,
        tp: 1,
        gemm_flops_per_s: 2.0 * dense / 2.30e-5,
        attention_flops_per_s: 2.0 * 4096.0 * 32.0 / 4.498e-10,
        weight_bytes_per_s: (dense + head) * 2.0 / 6.44e-3,
        kv_bytes_per_s: 3.0e12,
        hbm_bytes_per_s: 3.35e12 * 0.8,
        elementwise_passes: 7.0,
        all_reduce_ns: 8e3,
        link_bytes_per_s: 360e9,
        step_ns: 1.0e6,
        launch_ns: 50e3,
        sequence_ns: 20e3,
        request_ns: 2e6,
        token_ns: 200.0,
        host_link_bytes_per_s: 43.9e9,
        peak_flops_per_s: 989e12,
        peak_hbm_bytes_per_s: 3.35e12,
        hbm_bytes: 80e9,
        weight_bytes_per_rank: 16.06e9,
        activation_bytes_per_token: 250e3,
        reserved_bytes: 1.5e9,
    }
}

fn decode(model: &CostModel, seqs: u64, context: u64) -> Batch {
    let mut batch = Batch::default();
    (0..seqs).for_each(|_| batch.decode(model, context));
    batch
}

fn near(actual: f64, expected: f64, ratio: f64) {
    assert!((actual / expected - 1.0).abs() <= ratio, "{actual} against {expected}");
}

#[test]
fn each_term_is_its_closed_form() {
    let model = CostModel {
        layers: 4,
        hidden: 100,
        dense_params: 1e6,
        head_params: 1e5,
        weight_bytes: 2.0,
        head_weight_bytes: 2.0,
        prefill_attention_width: 64.0,
        decode_attention_width: 32.0,
        kv_bytes_per_token_rank: 500.0,
        tp: 2,
        gemm_flops_per_s: 1e9,
        attention_flops_per_s: 2e9,
        weight_bytes_per_s: 1e9,
        kv_bytes_per_s: 1e8,
        hbm_bytes_per_s: 1e7,
        elementwise_passes: 3.0,
        all_reduce_ns: 10.0,
        link_bytes_per_s: 1e6,
        step_ns: 100.0,
        launch_ns: 10.0,
        sequence_ns: 1.0,
        ..llama_8b_h100()
    };
    let mut batch = decode(&model, 3, 50);
    batch.chunk(&model, 20, 10, true);
    let terms = model.iteration(&batch);
    near(terms.host_ns, 100.0 + 40.0 + 4.0, 1e-12);
    // 13 tokens are compute bound (13 ms against 1 ms of weights), 4 sampled rows are bound by compute as well.
    near(terms.gemm_ns, (2.0 * 1e6 * 13.0 / 1e9 + 2.0 * 1e5 * 4.0 / 1e9) / 2.0 * 1e9, 1e-12);
    near(terms.prefill_attention_ns, 2.0 * 64.0 * 4.0 * (900.0 - 400.0) / (2e9 * 2.0) * 1e9, 1e-12);
    // KV bytes of the rank: 150 tokens · 500 bytes at 1e8; the FLOPs take less.
    near(terms.decode_attention_ns, 150.0 * 500.0 / 1e8 * 1e9, 1e-12);
    near(terms.all_reduce_ns, 8.0 * (10.0 + 13.0 * 100.0 * 2.0 / 1e6 * 1e9), 1e-12);
    near(terms.elementwise_ns, 3.0 * 4.0 * 13.0 * 200.0 / 1e7 * 1e9, 1e-12);
    near(terms.total_ns(), terms.gpu_ns(), 1e-12);
    assert_eq!(model.iteration(&Batch::default()).total_ns(), 0.0);
    // One token only: weights bound, and the host takes longer when it is slow.
    let slow_host = CostModel { step_ns: 1e12, ..model };
    near(slow_host.iteration_ns(&decode(&slow_host, 1, 1)), 1e12, 1e-6);
}

#[test]
fn experts_are_touched_as_the_batch_grows() {
    let model = CostModel { experts: 8, experts_per_token: 2, expert_params: 8e9, ..llama_8b_h100() };
    let bytes = |tokens: u64| {
        let dense = llama_8b_h100();
        model.bytes(&decode(&model, tokens, 1)) - dense.bytes(&decode(&dense, tokens, 1))
    };
    near(bytes(1), 2e9 * 2.0, 1e-9);
    near(bytes(2), 8e9 * 2.0 * (1.0 - 0.75 * 0.75), 1e-9);
    near(bytes(1000), 8e9 * 2.0, 1e-9);
}

#[test]
fn a_window_caps_the_pairs() {
    let model = CostModel { window_layers: 16, window_tokens: 100, ..llama_8b_h100() };
    let mut batch = Batch::default();
    batch.chunk(&model, 50, 150, true);
    near(batch.prefill_pairs, (200.0 * 200.0 - 50.0 * 50.0) / 2.0, 1e-12);
    near(batch.window_pairs, (100.0 * 100.0 - 50.0 * 50.0) / 2.0 + 100.0 * 100.0, 1e-12);
    let half = model.iteration(&decode(&model, 1, 1_000_000)).decode_attention_ns;
    near(half, llama_8b_h100().iteration(&decode(&llama_8b_h100(), 1, 1_000_000)).decode_attention_ns / 2.0, 1e-3);
}

#[test]
fn itl_of_an_8b_model_on_one_h100_is_the_published_line() {
    let model = llama_8b_h100();
    for context in [0u64, 1000, 10_000, 50_000, 100_000, 130_000] {
        let published_ms = 6.44 + 4.37e-5 * context as f64;
        near(model.iteration_ns(&decode(&model, 1, context)) / 1e6, published_ms, 0.05);
    }
    // Batch of 8, 20k in and 2k out: 15.18 ms at the median.
    near(model.iteration_ns(&decode(&model, 8, 21_000)) / 1e6, 15.18, 0.10);
}

#[test]
fn cold_ttft_is_within_a_tenth_of_the_published_rows() {
    // Rows V10..V100 of published_ttft.csv: vLLM, one H100, Llama-3.1-8B in bf16.
    let model = llama_8b_h100();
    for (tokens, published_s) in [(10_000, 0.265), (30_000, 1.1), (50_000, 2.291), (70_000, 3.843), (100_000, 6.846)] {
        let predicted_ns = model.request_ns(tokens) + model.prefill_ns(0, tokens, 8192);
        near(predicted_ns / 1e9, published_s, 0.10);
    }
}

#[test]
fn mooncake_equation_2_gives_the_papers_figures() {
    let eq = |gpus_tflops: f64| MooncakeEq2 {
        flops_per_s: 8.0 * gpus_tflops * 1e12,
        attention: 4.0,
        linear: 22.0,
        dimension: 8192.0,
        gqa: 8.0,
        element_bytes: 2.0,
        prefix_tokens: 8192.0,
    };
    near(eq(312.0).min_bytes_per_s(), 5.86e9, 1e-3);
    near(eq(989.0).min_bytes_per_s(), 18.57e9, 1e-3);
}

#[test]
fn break_even_is_where_loading_takes_as_long_as_computing() {
    let model = llama_8b_h100();
    for tokens in [2048u64, 32_768, 131_072] {
        let t0 = 1e6;
        let bytes_per_s = model.break_even_bytes_per_s(0, tokens, 8192, t0).expect("a long prefill");
        let bytes = model.kv_bytes_per_token * tokens as f64;
        near(t0 + bytes / bytes_per_s * 1e9 + model.copy_ns(bytes), model.prefill_ns(0, tokens, 8192), 1e-9);
    }
    assert_eq!(model.break_even_bytes_per_s(0, 512, 8192, 1e9), None, "a second before the first byte");
}

#[test]
fn blocks_fill_what_the_weights_leave() {
    let model = llama_8b_h100();
    let room = 80e9 * 0.9 - 16.06e9 - 250e3 * 8192.0 - 1.5e9;
    assert_eq!(model.hbm_blocks(0.9, 8192, 16), (room / (131_072.0 * 16.0)) as u64);
    let too_big = CostModel { weight_bytes_per_rank: 100e9, ..model };
    assert_eq!(too_big.hbm_blocks(0.9, 8192, 16), 0);
}
