//! The embedded data against published figures, and what happens when names, files or overrides are wrong.

use std::fs;

use toml::{Table, Value};

use super::*;
use crate::catalog::{Profile, embedded, names};
use crate::units::{Bytes, BytesPerSec, FlopsPerSec};

fn plain() -> Overrides {
    Overrides::default()
}

fn set(texts: &[&str]) -> Overrides {
    Overrides::parse(texts).expect("overrides")
}

fn a_model(name: &str) -> Model {
    model(name, &plain()).expect(name)
}

fn near(actual: f64, expected: f64, ratio: f64, what: &str) {
    assert!((actual / expected - 1.0).abs() <= ratio, "{what}: {actual} against {expected}");
}

/// Published or cross-checked KV sizes: name, layers, KV heads (none for MLA), head dimension or latent, active billions,
/// d_q, bytes per token in bf16 and fp8, bytes of blocks of 16, 64, 256 and 512 tokens in bf16, GiB of 128K tokens.
type Row = (&'static str, u32, Option<u32>, u32, f64, Option<u32>, u64, u64, [u64; 4], f64);

const KV: [Row; 15] = [
    (
        "llama-3.1-8b",
        32,
        Some(8),
        128,
        8.03,
        Some(4096),
        131_072,
        65_536,
        [2_097_152, 8_388_608, 33_554_432, 67_108_864],
        16.0,
    ),
    (
        "llama-3.3-70b",
        80,
        Some(8),
        128,
        70.6,
        Some(8192),
        327_680,
        163_840,
        [5_242_880, 20_971_520, 83_886_080, 167_772_160],
        40.0,
    ),
    (
        "llama-3.1-405b",
        126,
        Some(8),
        128,
        405.9,
        Some(16_384),
        516_096,
        258_048,
        [8_257_536, 33_030_144, 132_120_576, 264_241_152],
        63.0,
    ),
    (
        "qwen3-8b",
        36,
        Some(8),
        128,
        8.19,
        Some(4096),
        147_456,
        73_728,
        [2_359_296, 9_437_184, 37_748_736, 75_497_472],
        18.0,
    ),
    (
        "qwen3-32b",
        64,
        Some(8),
        128,
        32.8,
        Some(8192),
        262_144,
        131_072,
        [4_194_304, 16_777_216, 67_108_864, 134_217_728],
        32.0,
    ),
    (
        "qwen3-30b-a3b",
        48,
        Some(4),
        128,
        3.3,
        Some(4096),
        98_304,
        49_152,
        [1_572_864, 6_291_456, 25_165_824, 50_331_648],
        12.0,
    ),
    (
        "qwen3-235b-a22b",
        94,
        Some(4),
        128,
        22.0,
        Some(8192),
        192_512,
        96_256,
        [3_080_192, 12_320_768, 49_283_072, 98_566_144],
        23.5,
    ),
    (
        "qwen2.5-72b",
        80,
        Some(8),
        128,
        72.7,
        Some(8192),
        327_680,
        163_840,
        [5_242_880, 20_971_520, 83_886_080, 167_772_160],
        40.0,
    ),
    ("qwen2-7b", 28, Some(4), 128, 7.6, Some(3584), 57_344, 28_672, [917_504, 3_670_016, 14_680_064, 29_360_128], 7.0),
    (
        "mixtral-8x7b",
        32,
        Some(8),
        128,
        12.9,
        Some(4096),
        131_072,
        65_536,
        [2_097_152, 8_388_608, 33_554_432, 67_108_864],
        16.0,
    ),
    (
        "mixtral-8x22b",
        56,
        Some(8),
        128,
        39.1,
        Some(6144),
        229_376,
        114_688,
        [3_670_016, 14_680_064, 58_720_256, 117_440_512],
        28.0,
    ),
    (
        "gpt-oss-120b",
        36,
        Some(8),
        64,
        5.1,
        Some(4096),
        73_728,
        36_864,
        [1_179_648, 4_718_592, 18_874_368, 37_748_736],
        9.0,
    ),
    (
        "gpt-oss-20b",
        24,
        Some(8),
        64,
        3.6,
        Some(4096),
        49_152,
        24_576,
        [786_432, 3_145_728, 12_582_912, 25_165_824],
        6.0,
    ),
    ("deepseek-v3", 61, None, 576, 37.0, None, 70_272, 35_136, [1_124_352, 4_497_408, 17_989_632, 35_979_264], 8.58),
    ("kimi-k2", 61, None, 576, 32.0, None, 70_272, 35_136, [1_124_352, 4_497_408, 17_989_632, 35_979_264], 8.58),
];

#[test]
fn kv_sizes_are_the_published_ones() {
    for (name, layers, kv_heads, dim, active, d_q, bf16, fp8, blocks, gib) in KV {
        let model = a_model(name);
        assert_eq!(model.layers, layers, "{name}");
        match (kv_heads, model.mla) {
            (Some(kv_heads), None) => assert_eq!((model.kv_heads, model.head_dim), (kv_heads, dim), "{name}"),
            (None, Some(mla)) => assert_eq!(mla.kv_lora_rank + mla.rope_dim, dim, "{name}"),
            other => panic!("{name}: {other:?}"),
        }
        near(model.active_params.expect("published"), active * 1e9, 1e-12, name);
        if let Some(d_q) = d_q {
            assert_eq!(model.prefill_attention_width(), f64::from(d_q), "{name}");
        }
        assert_eq!(model.kv_bytes_per_token(Dtype::Bf16), bf16 as f64, "{name}");
        assert_eq!(model.kv_bytes_per_token(Dtype::Fp8), fp8 as f64, "{name}");
        for (tokens, bytes) in [16, 64, 256, 512].into_iter().zip(blocks) {
            assert_eq!(model.kv_block_bytes(tokens, Dtype::Bf16), bytes, "{name}, {tokens} tokens");
        }
        let stored = model.kv_block_bytes(131_072, Dtype::Bf16) as f64 / f64::from(1 << 30);
        assert!((stored - gib).abs() < 0.005, "{name}: {stored} GiB");
    }
    assert_eq!(KV.len(), names::<Model>().len(), "a row for every model");
}

#[test]
fn windowed_layers_hold_no_more_than_their_window() {
    // The table's row of gpt-oss-120b with its full-attention layers only.
    let model = a_model("gpt-oss-120b");
    assert_eq!((model.full_attention_layers(), model.window_layers()), (18, 18));
    assert_eq!(model.kv_bytes_per_token_full_attention(Dtype::Bf16), 36_864.0);
    assert_eq!(model.kv_bytes_per_token_full_attention(Dtype::Fp8), 18_432.0);
    let blocks =
        [16u64, 64, 256, 512].map(|tokens| model.kv_bytes_per_token_full_attention(Dtype::Bf16) * tokens as f64);
    assert_eq!(blocks, [589_824.0, 2_359_296.0, 9_437_184.0, 18_874_368.0]);
    assert_eq!(model.kv_window_bytes(Dtype::Bf16), 18.0 * 128.0 * 2048.0);
    let long = model.kv_sequence_bytes(131_072, Dtype::Bf16);
    assert_eq!(long - model.kv_window_bytes(Dtype::Bf16), 4.5 * f64::from(1 << 30));
    // Within the window every layer holds everything.
    assert_eq!(model.kv_sequence_bytes(100, Dtype::Bf16), 100.0 * model.kv_bytes_per_token(Dtype::Bf16));
    let dense = a_model("llama-3.1-8b");
    assert_eq!(dense.kv_sequence_bytes(1000, Dtype::Bf16), dense.kv_block_bytes(1000, Dtype::Bf16) as f64);
}

#[test]
fn heads_and_latents_are_replicated_over_ranks() {
    // vLLM blog: Llama-70B has 1.25 MB per 16 tokens at TP4. Mooncake's SGLang page: Qwen3-235B at TP8 holds twice its KV.
    assert_eq!(a_model("llama-3.1-70b").kv_bytes_per_token_rank(Dtype::Bf16, 4) * 16.0, 1.25 * 1024.0 * 1024.0);
    let qwen = a_model("qwen3-235b-a22b");
    assert_eq!((qwen.kv_replication(1), qwen.kv_replication(4), qwen.kv_replication(8)), (1.0, 1.0, 2.0));
    near(qwen.kv_bytes_per_token(Dtype::Bf16) * 2.0 * 32_768.0, 12.62e9, 0.001, "Qwen3-235B at TP8, 32768 tokens");
    let deepseek = a_model("deepseek-v3");
    assert_eq!(deepseek.kv_bytes_per_token_rank(Dtype::Bf16, 8), deepseek.kv_bytes_per_token(Dtype::Bf16));
    assert_eq!(deepseek.kv_replication(8), 8.0);
}

#[test]
fn dimensions_give_the_published_parameter_counts() {
    for (name, _) in names::<Model>() {
        let model = a_model(&name);
        near(model.params(), model.total_params.expect("published"), 0.02, &name);
        // Some publishers count embedding and head as active, some not.
        let active = model.active_params.expect("published");
        let error =
            [model.params_active(), model.params_active() - model.embedding_params(), model.gemm_params_active()]
                .map(|params| (params / active - 1.0).abs());
        assert!(error.into_iter().any(|error| error < 0.03), "{name}: {error:?}");
    }
    let llama = a_model("llama-3.1-8b");
    assert_eq!(
        llama.gemm_params_active(),
        32.0 * (4096.0 * (4096.0 + 2048.0) + 4096.0 * 4096.0 + 3.0 * 4096.0 * 14_336.0)
    );
    near(llama.weights_bytes(Dtype::Bf16), 16.06e9, 0.001, "weights of Llama-3.1-8B");
    let mixtral = a_model("mixtral-8x7b");
    assert_eq!(mixtral.expert_params(), 32.0 * 8.0 * 3.0 * 4096.0 * 14_336.0);
    assert_eq!(mixtral.gemm_params_active(), mixtral.dense_params() + mixtral.expert_params() / 4.0);
    // gpt-oss-120b is published as a checkpoint of about 65 GB.
    near(a_model("gpt-oss-120b").weights_bytes(Dtype::Mxfp4), 65e9, 0.03, "weights of gpt-oss-120b");
}

#[test]
fn mla_has_two_attention_widths() {
    let model = a_model("deepseek-v3");
    assert_eq!(model.prefill_attention_width(), 128.0 * (192.0 + 128.0) / 2.0);
    assert_eq!(model.decode_attention_width(), 128.0 * (576.0 + 512.0) / 2.0);
}

#[test]
fn gpus_have_the_published_peaks() {
    const T: f64 = 1e12;
    let rows: [(&str, f64, Option<f64>, u64, f64); 12] = [
        ("a100-sxm-80gb", 312.0, None, 80, 2.039),
        ("a800-sxm-80gb", 312.0, None, 80, 2.039),
        ("a10g", 70.0, None, 24, 0.6),
        ("l40s", 362.0, Some(733.0), 48, 0.864),
        ("h20", 148.0, Some(296.0), 96, 4.0),
        ("h100-sxm", 989.0, Some(1979.0), 80, 3.35),
        ("h800-sxm", 989.0, Some(1979.0), 80, 3.35),
        ("h200-sxm", 989.0, Some(1979.0), 141, 4.8),
        ("b200", 2250.0, Some(4500.0), 192, 8.0),
        ("gb200", 2500.0, Some(5000.0), 192, 8.0),
        ("b300", 2250.0, Some(4500.0), 288, 7.75),
        ("mi300x", 1307.4, Some(2614.9), 192, 5.3),
    ];
    assert_eq!(rows.len(), names::<Gpu>().len());
    for (name, bf16, fp8, hbm_gb, tb_per_s) in rows {
        let gpu = gpu(name, &plain()).expect(name);
        near(gpu.peak.bf16.0, bf16 * T, 1e-12, name);
        assert_eq!(gpu.peak.fp8.is_some(), fp8.is_some(), "{name}");
        near(gpu.peak.of(Dtype::Fp8).0, fp8.unwrap_or(bf16) * T, 1e-12, name);
        assert_eq!(gpu.hbm_bytes, Bytes(hbm_gb * 1_000_000_000), "{name}");
        near(gpu.hbm_bytes_per_s.0, tb_per_s * T, 1e-12, name);
        assert!(gpu.gemm_rate(Dtype::Bf16).0 < gpu.peak.bf16.0 && gpu.weight_read().0 < gpu.hbm_bytes_per_s.0);
    }
    assert_eq!(gpu("b200", &plain()).expect("b200").usable_hbm(), Bytes(180_000_000_000));
    // Without 8-bit units weights are widened: the rate of bf16, at its share.
    let a100 = gpu("a100", &plain()).expect("alias");
    assert_eq!(a100.gemm_rate(Dtype::Fp8), a100.gemm_rate(Dtype::Bf16));
}

/// The published slopes from which the H100's achievable rates come, recomputed from its profile.
#[test]
fn the_h100_reproduces_the_published_slopes() {
    let (h100, vllm) = (gpu("h100", &plain()).expect("h100"), engine("vllm", &plain()).expect("vllm"));
    let trt = engine("trtllm", &plain()).expect("TensorRT-LLM");
    let read_time = |model: &Model, dtype: Dtype| {
        let read = model.weights_bytes(dtype) - model.embedding_params() * model.head_dtype(dtype).bytes();
        read / h100.weight_read().0
    };
    // Per token of a full chunk: FLOPs, all-reduces, element-wise work, and a chunk's share of what is paid once.
    let slope = |model: &Model, engine: &Engine, dtype: Dtype, tp: u32| {
        let (ranks, chunk) = (f64::from(tp), engine.max_batched_tokens as f64);
        let activation = f64::from(model.layers) * f64::from(model.hidden) * 2.0;
        let gemm = 2.0 * model.gemm_params_active() / (h100.gemm_rate(dtype).0 * ranks);
        let all_reduce = 2.0 * 2.0 * (ranks - 1.0) / ranks * activation / h100.peer_rate().0;
        let latencies = if tp > 1 { 2.0 * h100.all_reduce_time(tp).as_secs_f64() } else { 0.0 };
        let layers = f64::from(model.layers) * (engine.layer_time.as_secs_f64() + latencies);
        let once = engine.roofline_loss_ratio * read_time(model, dtype) / ranks + layers;
        gemm + all_reduce + engine.elementwise_passes * activation / h100.hbm_stream().0 + once / chunk
    };
    let square = |model: &Model, dtype: Dtype, tp: f64| {
        2.0 * model.prefill_attention_width() * f64::from(model.layers) / (h100.attention_rate(dtype).0 * tp)
    };
    let (small, large) = (a_model("llama-3.1-8b"), a_model("llama-3.1-70b"));
    near(slope(&small, &vllm, Dtype::Bf16, 1), 2.368e-5, 0.005, "vLLM, s/token");
    near(square(&small, Dtype::Bf16, 1.0), 4.498e-10, 0.005, "vLLM, s/token²");
    near(slope(&large, &trt, Dtype::Fp8, 8), 3.530e-5, 0.005, "TensorRT-LLM, s/token");
    near(square(&large, Dtype::Fp8, 8.0), 2.116e-10, 0.005, "TensorRT-LLM, s/token²");
    // A decode step reads all weights but the input embedding's other rows.
    let itl = read_time(&small, Dtype::Bf16) + 32.0 * vllm.layer_time.as_secs_f64();
    near(itl, 6.44e-3, 0.01, "ITL without context");
    near(small.kv_bytes_per_token(Dtype::Bf16) / h100.kv_read(Dtype::Bf16).0, 4.37e-8, 0.01, "ITL per token");
    near(small.kv_bytes_per_token(Dtype::Fp8) / h100.kv_read(Dtype::Fp8).0, 2.37e-8, 0.01, "ITL per token, fp8");
    near(h100.host_link_bytes_per_s.0, 43.9e9, 1e-12, "host link");
    // ITL of gpt-oss-20b bounds the host's share of an iteration.
    let host = vllm.step_time + 24 * vllm.launch_time + vllm.sequence_time;
    assert!(host.as_secs_f64() < 4.05e-3, "{host:?}");
    // And that of gpt-oss-120b on eight, 3.72 ms at a concurrency of 4.
    let host = vllm.step_time + 36 * vllm.launch_time + 4 * vllm.sequence_time;
    assert!(host.as_secs_f64() < 3.72e-3, "{host:?}");
}

#[test]
fn training_workloads_need_the_published_bandwidth() {
    let rows: [(&str, u32, f64, f64, f64); 11] = [
        ("unet3d-a100", 7, 0.636, 0.90, 1.61),
        ("unet3d-h100", 7, 0.323, 0.90, 3.18),
        ("unet3d-b200", 7, 0.162, 0.90, 6.33),
        ("resnet50-a100", 400, 0.435, 0.90, 0.105),
        ("resnet50-h100", 400, 0.224, 0.90, 0.205),
        ("cosmoflow-a100", 1, 0.00551, 0.70, 0.513),
        ("cosmoflow-h100", 1, 0.00350, 0.70, 0.808),
        ("retinanet-b200", 24, 0.04755, 0.85, 0.163),
        ("retinanet-mi355", 32, 0.0634, 0.85, 0.163),
        ("dlrm-b200", 16_384, 0.000_375, 0.70, 7.0),
        ("flux-b200", 48, 1.35, 0.90, 0.077),
    ];
    assert_eq!(rows.len(), names::<TrainingProfile>().len());
    for (name, batch, compute_s, threshold, gb_per_s) in rows {
        let profile = training(name, &plain()).expect(name);
        assert_eq!((profile.batch, profile.compute.as_secs_f64()), (batch, compute_s), "{name}");
        assert_eq!(profile.au_threshold_ratio, threshold, "{name}");
        near(profile.needed_bytes_per_s().0, gb_per_s * 1e9, 0.01, name);
        assert_eq!(format!("{}-{}", profile.workload, profile.accelerator), name);
    }
    let sizes: [(&str, f64, f64, u64, u64); 6] = [
        ("unet3d", 146_600_628.0, 68_341_808.0, 1, 168),
        ("resnet50", 114_660.07, 0.0, 1251, 1024),
        ("cosmoflow", 2_828_486.0, 71_311.0, 1, 524_288),
        ("retinanet", 322_957.0, 0.0, 1, 12_000),
        ("dlrm", 761.0, 0.0, 4_718_592, 2),
        ("flux", 2_164_832.0, 0.0, 288, 84),
    ];
    for (name, bytes, sigma, samples, files) in sizes {
        let profile = training(name, &plain()).expect(name);
        assert_eq!((profile.record_bytes, profile.record_bytes_sigma), (bytes, sigma), "{name}");
        assert_eq!((profile.samples_per_file, profile.files), (samples, files), "{name}");
    }
    assert_eq!(training("unet3d", &plain()).expect("usual").name, "unet3d-h100");
    assert_eq!(training("flux", &plain()).expect("usual").name, "flux-b200");
}

#[test]
fn data_sets_are_as_large_as_the_rules_ask() {
    let unet3d = training("unet3d-h100", &plain()).expect("unet3d");
    // 500 steps of 8 accelerators; or five times 512 GiB of memory.
    assert_eq!(unet3d.min_files(8, 1, 0), 500 * 7 * 8);
    let memory = 512u64 << 30;
    assert_eq!(unet3d.min_files(1, 1, memory), (5.0 * memory as f64 / 146_600_628.0).ceil() as u64);
    for (name, files) in [("retinanet-b200", 12_000), ("retinanet-mi355", 16_000), ("dlrm", 2), ("flux", 84)] {
        let profile = training(name, &plain()).expect(name);
        assert_eq!((profile.min_files(1, 1, 0), profile.files), (files, files), "{name}");
    }
}

#[test]
fn kv_clients_ask_as_documented() {
    let kvbm = kv_client("kvbm", &plain()).expect("kvbm");
    assert_eq!((kvbm.exists, kvbm.store, kvbm.in_flight), (Exists::HeadPerRank, Store::LockMeta, 16));
    assert!(kvbm.per_rank && kvbm.stage_in_host_memory);
    let lmcache = kv_client("lmcache", &plain()).expect("lmcache");
    assert_eq!((lmcache.block_tokens, lmcache.in_flight), (256, 320));
    let hicache = kv_client("hicache", &plain()).expect("hicache");
    assert_eq!((hicache.min_hit_tokens, hicache.batch_blocks), (256, Some(128)));
    let nixl = kv_client("kvbm-nixl", &plain()).expect("kvbm-nixl");
    assert_eq!(nixl.poll, Some(std::time::Duration::from_millis(50)));
    assert_eq!(kv_client("memkv", &plain()).expect("memkv").block_bytes, Some(Bytes(2 << 20)));
    assert_eq!(kv_client("mooncake", &plain()).expect("mooncake").block_tokens, 512);
    assert_eq!(kv_client("vllm", &plain()).expect("vllm").block_tokens, 16);
}

/// Dotted keys of all figures: numbers, and text that begins with one.
fn figures(table: &Table, before: &str, out: &mut Vec<String>) {
    for (key, value) in table {
        let path = if before.is_empty() { key.clone() } else { format!("{before}.{key}") };
        match value {
            _ if path == "sources" || path == "aliases" => {}
            Value::Table(inner) => figures(inner, &path, out),
            Value::Integer(_) | Value::Float(_) => out.push(path),
            Value::String(text) if text.starts_with(|c: char| c.is_ascii_digit()) => out.push(path),
            _ => {}
        }
    }
}

fn every_figure_has_its_source<P: Profile>() {
    for (name, table) in embedded::<P>() {
        let mut keys = Vec::new();
        figures(&table, "", &mut keys);
        assert!(!keys.is_empty(), "{} {name} has no figures", P::KIND);
        let sources: Sources = table["sources"].clone().try_into().expect("sources");
        for key in &keys {
            let source = source_of(&sources, key);
            assert!(source.is_some_and(|text| text.len() >= 8), "{} {name}: no source for `{key}`", P::KIND);
        }
        // A source for a key that is not there is a leftover of a renaming.
        for key in sources.keys().filter(|key| *key != "*") {
            let mut there = Some(&table);
            let parts: Vec<&str> = key.split('.').collect();
            let (last, inner) = parts.split_last().expect("a key has a part");
            for part in inner {
                there = there.and_then(|table| table.get(*part)?.as_table());
            }
            assert!(
                there.is_some_and(|table| table.contains_key(*last)),
                "{} {name}: a source for `{key}`, which is not there",
                P::KIND
            );
        }
    }
}

#[test]
fn every_embedded_figure_has_its_source() {
    every_figure_has_its_source::<Model>();
    every_figure_has_its_source::<Gpu>();
    every_figure_has_its_source::<Engine>();
    every_figure_has_its_source::<TrainingProfile>();
    every_figure_has_its_source::<KvClient>();
    for claim in claims() {
        assert!(claim.source.len() >= 8 && !claim.unit.is_empty(), "{}", claim.id);
        assert!(!claim.workloads.is_empty() || claim.needs.is_some(), "{}", claim.id);
    }
    // And GPUs give each key one of its own.
    for (name, table) in embedded::<Gpu>() {
        assert!(table["sources"].get("*").is_none(), "{name}");
    }
}

#[test]
fn every_name_loads_shows_and_reads_back() {
    let directory = tempfile::tempdir().expect("directory");
    let mut seen = std::collections::BTreeSet::new();
    for Entry { kind, name, aliases } in list() {
        for text in std::iter::once(&name).chain(&aliases) {
            assert!(seen.insert((kind, text.clone())), "{kind} `{text}` is there twice");
        }
        let shown = show(&name).expect(&name).into_iter().find(|(k, _)| *k == kind).expect(kind).1;
        let file = directory.path().join(format!("{kind}-{name}.toml"));
        fs::write(&file, shown).expect("write");
        let file = file.to_str().expect("UTF-8");
        let overrides = plain();
        match kind {
            "model" => assert_eq!(model(file, &overrides).expect(&name), a_model(&name)),
            "gpu" => assert_eq!(gpu(file, &overrides).expect(&name), gpu(&name, &overrides).expect(&name)),
            "engine" => assert_eq!(engine(file, &overrides).expect(&name), engine(&name, &overrides).expect(&name)),
            "training" => {
                assert_eq!(training(file, &overrides).expect(&name), training(&name, &overrides).expect(&name))
            }
            "kv-client" => {
                assert_eq!(kv_client(file, &overrides).expect(&name), kv_client(&name, &overrides).expect(&name))
            }
            "claim" => assert!(claims().iter().any(|claim| claim.id == name)),
            other => panic!("{other}"),
        }
    }
}

#[test]
fn a_profile_in_a_plan_reads_back() {
    let read = |text: String| toml::from_str::<Table>(&text).expect("TOML");
    let kimi = a_model("kimi-k2");
    assert_eq!(read(toml::to_string(&kimi).expect("model")).try_into::<Model>().expect("model"), kimi);
    let b200 = gpu("b200", &plain()).expect("b200");
    assert_eq!(read(toml::to_string(&b200).expect("gpu")).try_into::<Gpu>().expect("gpu"), b200);
    let cosmoflow = training("cosmoflow-a100", &plain()).expect("cosmoflow");
    let text = toml::to_string(&cosmoflow).expect("training");
    assert_eq!(read(text).try_into::<TrainingProfile>().expect("training"), cosmoflow);
    let mooncake = kv_client("mooncake", &plain()).expect("mooncake");
    assert_eq!(read(toml::to_string(&mooncake).expect("client")).try_into::<KvClient>().expect("client"), mooncake);
}

#[test]
fn an_unknown_name_is_answered_with_the_nearest() {
    let says = |error: ProfileError| error.to_string();
    let error = says(model("lama-3.1-8b", &plain()).expect_err("mistyped"));
    assert_eq!(
        error,
        "no model is called `lama-3.1-8b`; did you mean `llama-3.1-8b` or `llama-3-8b` or `llama-3.1-70b`"
    );
    assert!(says(gpu("h1000", &plain()).expect_err("mistyped")).contains("`h100`"));
    assert!(says(training("unet-h100", &plain()).expect_err("mistyped")).contains("did you mean `unet3d-h100`"));
    let error = says(engine("zzzzzzzzzz", &plain()).expect_err("nothing near"));
    assert!(error.ends_with("known are sglang, tensorrt-llm, trtllm, trt-llm, vllm"), "{error}");
    assert!(says(show("kvmb").expect_err("mistyped")).contains("`kvbm`"));
    assert_eq!(show("vllm").expect("two kinds").len(), 2);
}

#[test]
fn a_file_is_read_with_line_and_nearest_key() {
    let directory = tempfile::tempdir().expect("directory");
    let file = directory.path().join("mine.toml");
    let path = file.to_str().expect("UTF-8").to_owned();
    let text = show("unet3d-h100").expect("shown").remove(0).1;
    fs::write(&file, text.replace("batch = 7\n", "btach = 7\n")).expect("write");
    let line = 1 + text.lines().position(|line| line.starts_with("batch")).expect("batch");
    let error = training(&path, &plain()).expect_err("unknown key").to_string();
    assert_eq!(error, format!("{path}:{line}: unknown key `btach`; did you mean `batch`"));

    fs::write(&file, text.replace("\"object\"", "\"objekt\"")).expect("write");
    let error = training(&path, &plain()).expect_err("unknown value").to_string();
    assert!(error.contains("unknown value `objekt`; did you mean `object`"), "{error}");

    fs::write(&file, text.replace("batch = 7", "batch = \"seven\"")).expect("write");
    let error = training(&path, &plain()).expect_err("text for a number").to_string();
    assert!(error.starts_with(&format!("{path}:{line}: invalid type")), "{error}");

    fs::write(&file, text.replace("batch = 7\n", "")).expect("write");
    assert!(training(&path, &plain()).expect_err("missing").to_string().contains("missing field `batch`"));

    fs::write(&file, text.replace("batch = 7", "batch = 0")).expect("write");
    assert!(training(&path, &plain()).expect_err("zero").to_string().ends_with("batch must be more than zero"));

    fs::write(&file, "batch = = 7").expect("write");
    assert!(training(&path, &plain()).expect_err("not TOML").to_string().starts_with(&format!("{path}:1: ")));

    // Without a name of its own it has that of the file.
    fs::write(&file, text.lines().filter(|line| !line.starts_with("name")).collect::<Vec<_>>().join("\n"))
        .expect("write");
    assert_eq!(training(&path, &plain()).expect("valid").name, "mine");

    let error = model("no/such/file.toml", &plain()).expect_err("no file").to_string();
    assert_eq!(error, "cannot read model file no/such/file.toml");
}

#[test]
fn overrides_change_a_profile_and_say_so() {
    let overrides = set(&[
        "training.batch=4",
        "training.compute=5ms",
        "gpu.peak.bf16=2000TFLOP/s",
        "gpu.host_link_bytes_per_s=25GB/s",
        "model.window.tokens=256",
    ]);
    let profile = training("unet3d-h100", &overrides).expect("training");
    assert_eq!((profile.batch, profile.compute), (4, std::time::Duration::from_millis(5)));
    assert_eq!(source_of(&profile.sources, "batch"), Some("set on the command line"));
    assert_eq!(profile.name, "unet3d-h100");
    let h100 = gpu("h100", &overrides).expect("gpu");
    assert_eq!((h100.peak.bf16, h100.host_link_bytes_per_s), (FlopsPerSec(2e15), BytesPerSec(25e9)));
    assert_eq!(h100.peak.fp8, Some(FlopsPerSec(1979e12)));
    assert_eq!(source_of(&h100.sources, "peak.bf16"), Some("set on the command line"));
    let oss = model("gpt-oss-20b", &overrides).expect("model");
    assert_eq!(oss.window.map(|window| (window.tokens, window.layers)), Some((256, 12)));
    assert_eq!(overrides.sections().collect::<Vec<_>>(), ["training", "training", "gpu", "gpu", "model"]);
}

#[test]
fn an_override_that_does_not_fit_is_named() {
    let apply = |text: &str| training("unet3d-h100", &set(&[text])).expect_err(text).to_string();
    assert_eq!(
        apply("training.btach=4"),
        "cannot apply `--set training.btach=4`: unknown key `btach`; did you mean `batch`"
    );
    assert!(apply("training.batch=many").contains("cannot apply `--set training.batch=many`: invalid type"));
    assert!(apply("training.batch.size=3").ends_with("`batch` is a single value and has no `size`"));
    assert!(apply("training.compute=0s").ends_with("compute must be more than zero"));
    let parse = |text: &str| Overrides::parse(&[text]).expect_err(text).to_string();
    assert!(parse("trainig.batch=4").ends_with("no section is called `trainig`; did you mean `training`"));
    for text in ["batch=4", "training.batch", "training..x=1", "training.=1"] {
        assert!(parse(text).contains("write it as section.key=value"), "{text}");
    }
}

#[test]
fn a_calibrated_profile_is_read_as_a_gpu() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/calibrate/example.toml");
    let measured = gpu(path, &plain()).expect("what the script writes");
    assert_eq!(measured.name, "nvidia-example-h100-measured");
    assert_eq!(measured.host_link_bytes_per_s, BytesPerSec(50e9));
    near(measured.gemm_rate(Dtype::Bf16).0, 0.506 * 989e12, 1e-9, "GEMMs");
    near(measured.kv_batch_loss_ratio.of(Dtype::Fp8), 0.208, 1e-9, "batched reads, of the only format measured");
    // The script writes just the keys of the example, each with a source.
    let script = include_str!("../calibrate/calibrate.py");
    let written: Table = toml::from_str(include_str!("../calibrate/example.toml")).expect("TOML");
    for key in written.keys().filter(|key| *key != "sources") {
        assert!(script.contains(&format!("\"{key}\": ")), "{key} is not written by the script");
        assert!(key == "name" || source_of(&measured.sources, key).is_some(), "{key} has no source");
    }
}
