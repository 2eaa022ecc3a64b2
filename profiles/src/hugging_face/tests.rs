use std::fs;

use serde_json::json;

use super::*;
use crate::Overrides;

fn embedded(name: &str) -> Model {
    crate::model(name, &Overrides::default()).expect(name)
}

/// Configurations as their publishers write them, cut to what matters, with the embedded model each must agree with.
fn published() -> Vec<(&'static str, Value)> {
    vec![
        (
            "llama-3.1-8b",
            json!({
                "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 4096,
                "intermediate_size": 14336, "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8,
                "rope_theta": 500000.0, "tie_word_embeddings": false, "torch_dtype": "bfloat16", "vocab_size": 128256
            }),
        ),
        (
            "qwen2.5-7b",
            json!({
                "model_type": "qwen2", "hidden_size": 3584, "intermediate_size": 18944, "max_window_layers": 28,
                "num_attention_heads": 28, "num_hidden_layers": 28, "num_key_value_heads": 4, "sliding_window": 131072,
                "use_sliding_window": false, "tie_word_embeddings": false, "vocab_size": 152064
            }),
        ),
        (
            "qwen3-32b",
            json!({
                "model_type": "qwen3", "head_dim": 128, "hidden_size": 5120, "intermediate_size": 25600,
                "num_attention_heads": 64, "num_hidden_layers": 64, "num_key_value_heads": 8, "sliding_window": null,
                "use_sliding_window": false, "vocab_size": 151936
            }),
        ),
        (
            "qwen3-30b-a3b",
            json!({
                "model_type": "qwen3_moe", "decoder_sparse_step": 1, "head_dim": 128, "hidden_size": 2048,
                "intermediate_size": 6144, "mlp_only_layers": [], "moe_intermediate_size": 768,
                "num_attention_heads": 32, "num_experts": 128, "num_experts_per_tok": 8, "num_hidden_layers": 48,
                "num_key_value_heads": 4, "sliding_window": null, "vocab_size": 151936
            }),
        ),
        (
            "mixtral-8x7b",
            json!({
                "model_type": "mixtral", "hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32,
                "num_experts_per_tok": 2, "num_hidden_layers": 32, "num_key_value_heads": 8, "num_local_experts": 8,
                "sliding_window": null, "vocab_size": 32000
            }),
        ),
        (
            "gpt-oss-20b",
            json!({
                "model_type": "gpt_oss", "experts_per_token": 4, "head_dim": 64, "hidden_size": 2880,
                "intermediate_size": 2880, "layer_types": (0..24).map(|i| if i % 2 == 0 { "sliding_attention" } else { "full_attention" }).collect::<Vec<_>>(),
                "num_attention_heads": 64, "num_experts_per_tok": 4, "num_hidden_layers": 24, "num_key_value_heads": 8,
                "num_local_experts": 32, "quantization_config": { "quant_method": "mxfp4" }, "sliding_window": 128,
                "tie_word_embeddings": false, "vocab_size": 201088
            }),
        ),
        (
            "deepseek-v3",
            json!({
                "model_type": "deepseek_v3", "first_k_dense_replace": 3, "hidden_size": 7168, "intermediate_size": 18432,
                "kv_lora_rank": 512, "moe_intermediate_size": 2048, "moe_layer_freq": 1, "n_routed_experts": 256,
                "n_shared_experts": 1, "num_attention_heads": 128, "num_experts_per_tok": 8, "num_hidden_layers": 61,
                "num_key_value_heads": 128, "q_lora_rank": 1536, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64,
                "quantization_config": { "quant_method": "fp8" }, "torch_dtype": "bfloat16", "v_head_dim": 128,
                "vocab_size": 129280
            }),
        ),
        (
            "kimi-k2",
            json!({
                "model_type": "kimi_k25", "text_config": {
                    "model_type": "kimi_k2", "first_k_dense_replace": 1, "hidden_size": 7168, "intermediate_size": 18432,
                    "kv_lora_rank": 512, "moe_intermediate_size": 2048, "moe_layer_freq": 1, "n_routed_experts": 384,
                    "n_shared_experts": 1, "num_attention_heads": 64, "num_experts_per_tok": 8, "num_hidden_layers": 61,
                    "num_key_value_heads": 64, "q_lora_rank": 1536, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64,
                    "quantization_config": { "quant_method": "fp8" }, "v_head_dim": 128, "vocab_size": 163840
                }
            }),
        ),
    ]
}

#[test]
fn published_configurations_agree_with_the_embedded_models() {
    for (name, json) in published() {
        let read = from_json(&json).expect(name);
        let known = embedded(name);
        let expected = Model {
            name: String::new(),
            aliases: Vec::new(),
            total_params: None,
            active_params: None,
            sources: read.sources.clone(),
            ..known
        };
        assert_eq!(read, expected, "{name}");
    }
}

fn llama() -> Value {
    published().remove(0).1
}

fn with(changes: &[(&str, Value)]) -> Value {
    let mut json = llama();
    for (key, value) in changes {
        json[*key] = value.clone();
    }
    json
}

#[test]
fn heads_default_as_in_transformers() {
    // Multi-head attention has no num_key_value_heads; head_dim is hidden ÷ heads unless given.
    let mut json = llama();
    json.as_object_mut().expect("object").remove("num_key_value_heads");
    let model = from_json(&json).expect("MHA");
    assert_eq!((model.kv_heads, model.head_dim), (32, 128));
    assert_eq!(model.kv_bytes_per_token(Dtype::Bf16), 2.0 * 32.0 * 32.0 * 128.0 * 2.0);
}

#[test]
fn windows_of_each_family_are_found() {
    let window = |changes: &[(&str, Value)]| {
        from_json(&with(changes)).expect("model").window.map(|w| (w.tokens, w.layers, w.every, w.first_layer))
    };
    // Mistral 7B: every layer. Gemma 2: every other one. Gemma 3: five of six. Qwen2 with its switch on: the last few.
    assert_eq!(window(&[("model_type", json!("mistral")), ("sliding_window", json!(4096))]), Some((4096, 32, 1, 0)));
    assert_eq!(window(&[("model_type", json!("gemma2")), ("sliding_window", json!(4096))]), Some((4096, 16, 2, 0)));
    let gemma3 = [("sliding_window", json!(1024)), ("sliding_window_pattern", json!(6))];
    assert_eq!(window(&gemma3), Some((1024, 27, 1, 0)));
    let qwen = [("sliding_window", json!(8192)), ("use_sliding_window", json!(true)), ("max_window_layers", json!(20))];
    assert_eq!(window(&qwen), Some((8192, 12, 1, 20)));
    assert_eq!(window(&[("sliding_window", json!(null))]), None);
}

#[test]
fn dense_layers_of_a_mixture_are_counted() {
    let base = [("num_experts", json!(8)), ("num_experts_per_tok", json!(2)), ("moe_intermediate_size", json!(512))];
    let dense = |more: &[(&str, Value)]| {
        let all: Vec<_> = base.iter().chain(more).cloned().collect();
        from_json(&with(&all)).expect("model").moe.expect("experts").dense_layers
    };
    assert_eq!(dense(&[]), 0);
    assert_eq!(dense(&[("decoder_sparse_step", json!(2))]), 16);
    assert_eq!(dense(&[("mlp_only_layers", json!([0, 5]))]), 2);
    assert_eq!(dense(&[("first_k_dense_replace", json!(3)), ("moe_layer_freq", json!(1))]), 3);
    let shared =
        with(&[base[0].clone(), base[1].clone(), base[2].clone(), ("shared_expert_intermediate_size", json!(99))]);
    let moe = from_json(&shared).expect("model").moe.expect("experts");
    assert_eq!((moe.shared_experts, moe.shared_intermediate), (1, Some(99)));
}

#[test]
fn a_config_is_found_by_file_or_directory_and_takes_overrides() {
    let directory = tempfile::tempdir().expect("directory");
    let home = directory.path().join("My-Llama");
    fs::create_dir(&home).expect("create");
    fs::write(home.join("config.json"), llama().to_string()).expect("write");
    let by_directory = crate::model(home.to_str().expect("UTF-8"), &Overrides::default()).expect("directory");
    assert_eq!(by_directory.name, "my-llama");
    let file = home.join("config.json");
    let overrides = Overrides::parse(&["model.layers=16", "model.kv_dtype=fp8"]).expect("overrides");
    let changed = crate::model(file.to_str().expect("UTF-8"), &overrides).expect("file");
    assert_eq!((changed.layers, changed.kv_dtype, changed.heads), (16, Dtype::Fp8, by_directory.heads));
    assert_eq!(changed.kv_bytes_per_token(changed.kv_dtype), by_directory.kv_bytes_per_token(Dtype::Bf16) / 4.0);
}

#[test]
fn what_is_missing_or_unsupported_is_named() {
    let directory = tempfile::tempdir().expect("directory");
    let file = directory.path().join("config.json");
    let read = |text: String| {
        fs::write(&file, text).expect("write");
        Model::from_hf_config(&file).expect_err("wrong").to_string()
    };
    for key in ["hidden_size", "num_attention_heads", "num_hidden_layers", "intermediate_size", "vocab_size"] {
        let mut json = llama();
        json.as_object_mut().expect("object").remove(key);
        let error = read(json.to_string());
        assert!(error.contains(&format!("config.json: `{key}` is missing")), "{error}");
    }
    for (changes, says) in [
        (("layer_types", json!(["linear_attention"])), "layers of type \"linear_attention\" are not supported"),
        (("num_key_value_heads", json!([4, 8])), "`num_key_value_heads` is [4,8] where one whole number is needed"),
        (("num_attention_heads", json!(0)), "`num_attention_heads` is zero"),
        (("num_hidden_layers", json!(-1)), "one whole number"),
        (("num_hidden_layers", json!(4_000_000_000_000u64)), "too large"),
        (("num_hidden_layers", json!(4_000_000_000u64)), "beyond any model"),
        (("num_key_value_heads", json!(7)), "32 query heads do not share 7 KV heads evenly"),
        (("kv_lora_rank", json!(512)), "`qk_rope_head_dim` is missing"),
    ] {
        let error = read(with(&[changes]).to_string());
        assert!(error.contains(says), "{error}");
    }
    let short = [("sliding_window", json!(128)), ("layer_types", json!(["sliding_attention"]))];
    assert!(read(with(&short).to_string()).contains("`layer_types` has 1 entries for 32 layers"));
    assert!(read("[]".to_owned()).contains("one JSON object"));
    assert!(read("{\n\"a\": }".to_owned()).contains("config.json:2: not JSON"));
    assert!(Model::from_hf_config("no/such/config.json").is_err());
}
