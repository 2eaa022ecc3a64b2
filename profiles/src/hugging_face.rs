//! Models from a Hugging Face `config.json`.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::catalog::{Profile, ProfileError, Sources, read};
use crate::dtype::Dtype;
use crate::model::{Mla, Model, Moe, Window};

impl Model {
    /// Reads the dimensions of a decoder-only transformer from a Hugging Face `config.json`, or from the directory that
    /// holds it: Llama, Mistral, Mixtral, Qwen2 and 3 (with and without experts), gpt-oss, DeepSeek-V2 and V3, Kimi,
    /// Gemma, Phi-3 and whatever else uses the same keys.
    ///
    /// # Errors
    /// When the file cannot be read, is not such a configuration, lacks a key (which is named), or describes layers
    /// whose cache is not a KV cache (state-space and linear attention).
    pub fn from_hf_config(path: impl AsRef<Path>) -> Result<Self, ProfileError> {
        let path = path.as_ref();
        let file = if path.is_dir() { path.join("config.json") } else { path.to_owned() };
        let text = read("model", &file)?;
        let json: Value = serde_json::from_str(&text).map_err(|error| ProfileError::File {
            path: file.clone(),
            line: error.line(),
            reason: format!("not JSON: {error}"),
        })?;
        let config = |reason| ProfileError::Config { path: file.clone(), reason };
        let mut model = from_json(&json).map_err(config)?;
        model.name = name(&json, &file);
        model.check().map_err(config)?;
        Ok(model)
    }
}

/// The repository's name where the configuration has it, else that of the directory, else of the file.
fn name(json: &Value, file: &Path) -> String {
    let given = json["_name_or_path"].as_str().filter(|name| !name.is_empty()).map(PathBuf::from);
    let stem = || {
        let stem = file.file_stem().unwrap_or_default();
        if stem == "config" { file.parent().map(Path::to_owned) } else { Some(PathBuf::from(stem)) }
    };
    given
        .or_else(stem)
        .and_then(|path| path.file_name().map(|name| name.to_string_lossy().to_lowercase()))
        .unwrap_or_else(|| "model".to_owned())
}

/// The keys of one configuration.
struct Config<'a> {
    json: &'a Value,
    family: &'a str,
}

impl Config<'_> {
    /// A whole number at the first of several names; absent and null are the same.
    fn number(&self, keys: &[&str]) -> Result<Option<u64>, String> {
        match keys.iter().find(|key| !self.json[**key].is_null()) {
            Some(key) => match self.json[*key].as_u64() {
                Some(number) => Ok(Some(number)),
                None => Err(format!("`{key}` is {} where one whole number is needed", self.json[*key])),
            },
            None => Ok(None),
        }
    }

    fn dimension(&self, keys: &[&str]) -> Result<Option<u32>, String> {
        let convert = |number| u32::try_from(number).map_err(|_| format!("`{}` of {number} is too large", keys[0]));
        self.number(keys)?.map(convert).transpose()
    }

    fn needed(&self, keys: &[&str]) -> Result<u32, String> {
        self.dimension(keys)?.ok_or_else(|| {
            format!("`{}` is missing; this reads the config.json of decoder-only transformers", keys.join("` or `"))
        })
    }

    fn flag(&self, key: &str) -> Option<bool> {
        self.json[key].as_bool()
    }
}

fn from_json(json: &Value) -> Result<Model, String> {
    if !json.is_object() {
        return Err("a config.json is one JSON object".to_owned());
    }
    // Models that also see or hear keep their language model's dimensions one level down.
    let inner = ["text_config", "llm_config", "language_config"].into_iter().find(|key| json[*key].is_object());
    let json = inner.map_or(json, |key| &json[key]);
    let config = Config { json, family: json["model_type"].as_str().unwrap_or_default() };
    let mla = mla(&config)?;
    let heads = config.needed(&["num_attention_heads"])?;
    let hidden = config.needed(&["hidden_size"])?;
    let layers = config.needed(&["num_hidden_layers"])?;
    if heads == 0 {
        return Err("`num_attention_heads` is zero".to_owned());
    }
    let (kv_heads, head_dim) = match mla {
        Some(_) => (0, 0),
        None => {
            let kv_heads = config.dimension(&["num_key_value_heads"])?.unwrap_or(heads);
            (kv_heads, config.dimension(&["head_dim"])?.unwrap_or(hidden / heads))
        }
    };
    let moe = moe(&config, layers)?;
    // A mixture without dense layers has no dense MLP, even where the key is there for the experts.
    let needs_dense = moe.is_none_or(|moe| moe.dense_layers > 0);
    let intermediate = if needs_dense { config.needed(&["intermediate_size"])? } else { 0 };
    let not_gated = ["phi", "falcon", "gpt_neox", "starcoder2", "opt", "nemotron"].contains(&config.family);
    let source = "Hugging Face config.json given by the user".to_owned();
    Ok(Model {
        layers,
        hidden,
        intermediate,
        mlp_matrices: if not_gated { 2 } else { 3 },
        heads,
        kv_heads,
        head_dim,
        vocabulary: config.needed(&["vocab_size"])?,
        tied_embeddings: config.flag("tie_word_embeddings").unwrap_or_else(|| config.family.starts_with("gemma")),
        weight_dtype: weight_dtype(json),
        kv_dtype: Dtype::Bf16,
        mla,
        moe,
        window: window(&config, layers)?,
        sources: Sources::from([("*".to_owned(), source)]),
        ..Model::default()
    })
}

fn mla(config: &Config<'_>) -> Result<Option<Mla>, String> {
    let Some(kv_lora_rank) = config.dimension(&["kv_lora_rank"])? else { return Ok(None) };
    Ok(Some(Mla {
        q_lora_rank: config.dimension(&["q_lora_rank"])?,
        kv_lora_rank,
        rope_dim: config.needed(&["qk_rope_head_dim"])?,
        nope_dim: config.needed(&["qk_nope_head_dim"])?,
        v_dim: config.needed(&["v_head_dim"])?,
    }))
}

fn moe(config: &Config<'_>, layers: u32) -> Result<Option<Moe>, String> {
    let experts = config.dimension(&["num_local_experts", "n_routed_experts", "num_experts"])?.unwrap_or(0);
    if experts == 0 {
        return Ok(None);
    }
    let shared_intermediate = config.dimension(&["shared_expert_intermediate_size"])?.filter(|width| *width > 0);
    let shared = config.dimension(&["n_shared_experts"])?.unwrap_or(u32::from(shared_intermediate.is_some()));
    // Layers with experts: all but the first few, every so many of them, less those listed as dense.
    let first = config.dimension(&["first_k_dense_replace"])?.unwrap_or(0);
    let step = config.dimension(&["decoder_sparse_step", "moe_layer_freq"])?.unwrap_or(1).max(1);
    let listed: Vec<u64> =
        config.json["mlp_only_layers"].as_array().into_iter().flatten().filter_map(Value::as_u64).collect();
    let offset = if config.json["decoder_sparse_step"].is_null() { 0 } else { 1 };
    let dense =
        |layer: &u32| *layer < first || !(layer + offset).is_multiple_of(step) || listed.contains(&u64::from(*layer));
    Ok(Some(Moe {
        experts,
        experts_per_token: config.needed(&["num_experts_per_tok", "experts_per_token"])?,
        intermediate: config.needed(&["moe_intermediate_size", "intermediate_size"])?,
        shared_experts: shared,
        shared_intermediate,
        dense_layers: (0..layers.min(100_000)).filter(dense).count() as u32,
    }))
}

fn window(config: &Config<'_>, layers: u32) -> Result<Option<Window>, String> {
    let Some(tokens) = config.number(&["sliding_window"])? else { return windowless(config) };
    if config.flag("use_sliding_window") == Some(false) {
        return windowless(config);
    }
    let windowed: Vec<bool> = match config.json["layer_types"].as_array() {
        Some(types) => types.iter().map(layer_type).collect::<Result<_, _>>()?,
        None => {
            // Families from before `layer_types`: every layer, all but every n-th, every other one, or those from a
            // certain layer on.
            let pattern = config.dimension(&["sliding_window_pattern"])?;
            let pattern = pattern.or(matches!(config.family, "gpt_oss" | "gemma2").then_some(2)).filter(|n| *n > 0);
            let from = match config.flag("use_sliding_window") {
                Some(_) => config.dimension(&["max_window_layers"])?.unwrap_or(0),
                None => 0,
            };
            let is = |layer: u32| layer >= from && pattern.is_none_or(|every| !(layer + 1).is_multiple_of(every));
            (0..layers.min(100_000)).map(is).collect()
        }
    };
    if windowed.len() != layers as usize {
        return Err(format!("`layer_types` has {} entries for {layers} layers", windowed.len()));
    }
    let count = windowed.iter().filter(|is| **is).count() as u32;
    let first = windowed.iter().position(|is| *is).unwrap_or(0);
    let second = windowed.iter().skip(first + 1).position(|is| *is).unwrap_or(0);
    Ok((count > 0).then_some(Window { tokens, layers: count, every: second as u32 + 1, first_layer: first as u32 }))
}

/// Without a window no layer may claim one, and none may be of a kind without a KV cache.
fn windowless(config: &Config<'_>) -> Result<Option<Window>, String> {
    for kind in config.json["layer_types"].as_array().into_iter().flatten() {
        if layer_type(kind)? {
            return Err("`layer_types` names sliding_attention, but there is no `sliding_window`".to_owned());
        }
    }
    Ok(None)
}

/// Whether a layer has a window.
fn layer_type(kind: &Value) -> Result<bool, String> {
    match kind.as_str() {
        Some("full_attention") => Ok(false),
        Some("sliding_attention") => Ok(true),
        _ => Err(format!("layers of type {kind} are not supported: their cache is not a KV cache of all tokens")),
    }
}

fn weight_dtype(json: &Value) -> Dtype {
    let method = json["quantization_config"]["quant_method"].as_str();
    match method.or(json["dtype"].as_str()).or(json["torch_dtype"].as_str()) {
        Some("fp8" | "fbgemm_fp8") => Dtype::Fp8,
        Some("mxfp4") => Dtype::Mxfp4,
        Some("float32") => Dtype::Fp32,
        Some("float16") => Dtype::Fp16,
        _ => Dtype::Bf16,
    }
}

#[cfg(test)]
mod tests;
