//! Language models: the dimensions that decide what a token costs in FLOPs, in weights read and in KV cache.

use serde::{Deserialize, Serialize};

use crate::catalog::{Profile, Sources};
use crate::dtype::Dtype;

/// A decoder-only transformer, by its dimensions. Parameter counts are computed from them; norms and biases, well under
/// a thousandth, are left out.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Model {
    /// Name; of the file if it is not given.
    #[serde(default)]
    pub name: String,
    /// Other names.
    #[serde(default)]
    pub aliases: Vec<String>,
    /// `L`: transformer layers.
    pub layers: u32,
    /// Width of the residual stream, in elements.
    pub hidden: u32,
    /// Width of a dense MLP, in elements; zero where every layer is a mixture of experts.
    #[serde(default)]
    pub intermediate: u32,
    /// Matrices of an MLP: three where it is gated (SwiGLU), else two.
    #[serde(default = "gated")]
    pub mlp_matrices: u32,
    /// Query heads.
    pub heads: u32,
    /// Key and value heads; as many as [`Model::heads`] with multi-head attention, unused with MLA.
    #[serde(default)]
    pub kv_heads: u32,
    /// Elements of a head; unused with MLA.
    #[serde(default)]
    pub head_dim: u32,
    /// Rows of the embedding and of the LM head.
    pub vocabulary: u32,
    /// Whether the LM head is the embedding.
    #[serde(default)]
    pub tied_embeddings: bool,
    /// Format the weights are published in; embedding and head stay in 16 bits where this is narrower.
    #[serde(default)]
    pub weight_dtype: Dtype,
    /// Format the KV cache has unless told otherwise.
    #[serde(default)]
    pub kv_dtype: Dtype,
    /// Parameters as published, for comparison with [`Model::params`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total_params: Option<f64>,
    /// Parameters a token passes through, as published.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub active_params: Option<f64>,
    /// Multi-head latent attention instead of `kv_heads` and `head_dim`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mla: Option<Mla>,
    /// Experts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moe: Option<Moe>,
    /// Layers that attend to the last few tokens only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<Window>,
    /// Sources of the figures.
    #[serde(default)]
    pub sources: Sources,
}

const fn gated() -> u32 {
    3
}

/// Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, §2.1): one latent per token and layer is cached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mla {
    /// Rank of the query projection; none if queries are projected directly.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub q_lora_rank: Option<u32>,
    /// Elements of the cached latent.
    pub kv_lora_rank: u32,
    /// Elements of the cached rotary key, shared by all heads.
    pub rope_dim: u32,
    /// Elements of a head's key without rotary position.
    pub nope_dim: u32,
    /// Elements of a head's value.
    pub v_dim: u32,
}

/// A mixture of experts in every layer but the first few.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Moe {
    /// `E`: routed experts of a layer.
    pub experts: u32,
    /// `k`: routed experts a token passes through.
    pub experts_per_token: u32,
    /// Width of an expert's MLP, in elements.
    pub intermediate: u32,
    /// Experts every token passes through.
    #[serde(default)]
    pub shared_experts: u32,
    /// Width of a shared expert; that of a routed one if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shared_intermediate: Option<u32>,
    /// Layers that have a dense MLP instead.
    #[serde(default)]
    pub dense_layers: u32,
}

/// Sliding-window attention.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Window {
    /// Tokens a windowed layer attends to.
    pub tokens: u64,
    /// How many layers are windowed; the others attend to everything.
    pub layers: u32,
    /// Distance between windowed layers, counted from `first_layer`.
    pub every: u32,
    /// The first windowed layer, from zero.
    #[serde(default)]
    pub first_layer: u32,
}

impl Model {
    /// Elements of the KV cache a token has in one layer: `2·kv_heads·head_dim` (MHA, GQA), or
    /// `kv_lora_rank + rope_dim` (MLA).
    #[must_use]
    pub fn kv_elements_per_layer(&self) -> u64 {
        match self.mla {
            Some(mla) => u64::from(mla.kv_lora_rank + mla.rope_dim),
            None => 2 * u64::from(self.kv_heads) * u64::from(self.head_dim),
        }
    }

    /// Layers that attend to everything.
    #[must_use]
    pub fn full_attention_layers(&self) -> u32 {
        self.layers - self.window_layers()
    }

    /// Layers with a sliding window.
    #[must_use]
    pub fn window_layers(&self) -> u32 {
        self.window.map_or(0, |window| window.layers)
    }

    /// KV bytes of a token with all layers stored, every KV head once.
    #[must_use]
    pub fn kv_bytes_per_token(&self, kv: Dtype) -> f64 {
        self.kv_bytes(self.layers, 1, kv)
    }

    /// KV bytes of a token in the layers that attend to everything: what a long context adds per token.
    #[must_use]
    pub fn kv_bytes_per_token_full_attention(&self, kv: Dtype) -> f64 {
        self.kv_bytes(self.full_attention_layers(), 1, kv)
    }

    /// Most KV bytes the windowed layers of one sequence hold, however long it is.
    #[must_use]
    pub fn kv_window_bytes(&self, kv: Dtype) -> f64 {
        self.window.map_or(0.0, |window| self.kv_bytes(window.layers, window.tokens, kv))
    }

    /// KV bytes of a sequence of `tokens` where windowed layers keep their window only.
    #[must_use]
    pub fn kv_sequence_bytes(&self, tokens: u64, kv: Dtype) -> f64 {
        let windowed = self.window.map_or(0.0, |window| self.kv_bytes(window.layers, tokens.min(window.tokens), kv));
        self.kv_bytes(self.full_attention_layers(), tokens, kv) + windowed
    }

    /// Bytes of a KV block of `tokens` as stored outside the GPU: all layers, every KV head once, the MLA latent once.
    #[must_use]
    pub fn kv_block_bytes(&self, tokens: u64, kv: Dtype) -> u64 {
        self.kv_bytes(self.layers, tokens, kv).ceil() as u64
    }

    fn kv_bytes(&self, layers: u32, tokens: u64, kv: Dtype) -> f64 {
        (self.kv_elements_per_layer() * u64::from(layers) * tokens) as f64 * kv.bytes()
    }

    /// KV heads on one of `tp` ranks: heads are replicated where there are more ranks than heads.
    #[must_use]
    pub fn kv_heads_per_rank(&self, tp: u32) -> u32 {
        self.kv_heads.div_ceil(tp.max(1)).max(1)
    }

    /// How many copies of each KV element `tp` ranks hold together: 1, `tp ÷ kv_heads` where heads are replicated, or
    /// `tp` for the MLA latent, which every rank needs whole.
    #[must_use]
    pub fn kv_replication(&self, tp: u32) -> f64 {
        let tp = tp.max(1);
        match self.mla {
            Some(_) => f64::from(tp),
            None => f64::from(self.kv_heads_per_rank(tp) * tp) / f64::from(self.kv_heads),
        }
    }

    /// KV bytes of a token on one of `tp` ranks.
    #[must_use]
    pub fn kv_bytes_per_token_rank(&self, kv: Dtype, tp: u32) -> f64 {
        self.kv_bytes_per_token(kv) * self.kv_replication(tp) / f64::from(tp.max(1))
    }

    /// `d_attn` in prefill, in elements: `heads·head_dim`, or `heads·(nope + rope + v)/2` for MLA. A query–key pair
    /// costs `4·d_attn` FLOPs in a layer.
    #[must_use]
    pub fn prefill_attention_width(&self) -> f64 {
        let heads = f64::from(self.heads);
        match self.mla {
            Some(mla) => heads * f64::from(mla.nope_dim + mla.rope_dim + mla.v_dim) / 2.0,
            None => heads * f64::from(self.head_dim),
        }
    }

    /// `d_attn` in decode, in elements: as in prefill, or the absorbed width `heads·(2·kv_lora + rope)/2` for MLA, whose
    /// scores and values are taken in the latent space.
    #[must_use]
    pub fn decode_attention_width(&self) -> f64 {
        match self.mla {
            Some(mla) => f64::from(self.heads) * f64::from(2 * mla.kv_lora_rank + mla.rope_dim) / 2.0,
            None => self.prefill_attention_width(),
        }
    }

    fn attention_params_per_layer(&self) -> f64 {
        let (hidden, heads) = (f64::from(self.hidden), f64::from(self.heads));
        match self.mla {
            Some(mla) => {
                let query = heads * f64::from(mla.nope_dim + mla.rope_dim);
                let queries = mla.q_lora_rank.map_or(hidden * query, |rank| f64::from(rank) * (hidden + query));
                let latent = hidden * f64::from(mla.kv_lora_rank + mla.rope_dim);
                let up = f64::from(mla.kv_lora_rank) * heads * f64::from(mla.nope_dim + mla.v_dim);
                queries + latent + up + heads * f64::from(mla.v_dim) * hidden
            }
            None => {
                let (q, kv) = (heads * f64::from(self.head_dim), f64::from(self.kv_heads * self.head_dim));
                hidden * (q + 2.0 * kv) + q * hidden
            }
        }
    }

    fn mlp_params(&self, width: u32) -> f64 {
        f64::from(self.mlp_matrices) * f64::from(self.hidden) * f64::from(width)
    }

    /// Parameters every token passes through in the layers' GEMMs: attention projections, dense MLPs, shared experts,
    /// routers. Neither embedding nor LM head.
    #[must_use]
    pub fn dense_params(&self) -> f64 {
        let layers = f64::from(self.layers);
        let attention = layers * self.attention_params_per_layer();
        let Some(moe) = self.moe else { return attention + layers * self.mlp_params(self.intermediate) };
        let shared =
            f64::from(moe.shared_experts) * self.mlp_params(moe.shared_intermediate.unwrap_or(moe.intermediate));
        let router = f64::from(self.hidden) * f64::from(moe.experts);
        let sparse = f64::from(self.layers - moe.dense_layers);
        attention + f64::from(moe.dense_layers) * self.mlp_params(self.intermediate) + sparse * (shared + router)
    }

    /// Parameters of all routed experts of all layers; zero for a dense model.
    #[must_use]
    pub fn expert_params(&self) -> f64 {
        self.moe.map_or(0.0, |moe| {
            f64::from(self.layers - moe.dense_layers) * f64::from(moe.experts) * self.mlp_params(moe.intermediate)
        })
    }

    /// `P_gemm`: parameters a token passes through in the layers' GEMMs, without embedding and LM head.
    #[must_use]
    pub fn gemm_params_active(&self) -> f64 {
        let share = self.moe.map_or(0.0, |moe| f64::from(moe.experts_per_token) / f64::from(moe.experts));
        self.dense_params() + self.expert_params() * share
    }

    /// Parameters of the LM head, which runs on sampled rows only.
    #[must_use]
    pub fn head_params(&self) -> f64 {
        f64::from(self.vocabulary) * f64::from(self.hidden)
    }

    /// Parameters of the input embedding that are not the LM head's.
    #[must_use]
    pub fn embedding_params(&self) -> f64 {
        if self.tied_embeddings { 0.0 } else { self.head_params() }
    }

    /// All parameters.
    #[must_use]
    pub fn params(&self) -> f64 {
        self.dense_params() + self.expert_params() + self.head_params() + self.embedding_params()
    }

    /// Parameters a token passes through, embedding and LM head included, as models are advertised.
    #[must_use]
    pub fn params_active(&self) -> f64 {
        self.gemm_params_active() + self.head_params() + self.embedding_params()
    }

    /// Format of the LM head and embedding beside weights of `weights`: never narrower than 16 bits.
    #[must_use]
    pub fn head_dtype(&self, weights: Dtype) -> Dtype {
        if weights.bytes() < 2.0 { Dtype::Bf16 } else { weights }
    }

    /// Format of what is neither expert, embedding nor LM head: of four-bit formats only the experts are stored in four
    /// bits (gpt-oss model card, §2.1), the rest in sixteen.
    #[must_use]
    pub const fn dense_dtype(&self, weights: Dtype) -> Dtype {
        match weights {
            Dtype::Mxfp4 if self.moe.is_some() => Dtype::Bf16,
            other => other,
        }
    }

    /// Layers with routed experts.
    #[must_use]
    pub fn moe_layers(&self) -> u32 {
        self.moe.map_or(0, |moe| self.layers - moe.dense_layers)
    }

    /// Bytes of all weights stored as `weights`: dense ones, embedding and LM head as [`Model::dense_dtype`] and
    /// [`Model::head_dtype`] say.
    #[must_use]
    pub fn weights_bytes(&self, weights: Dtype) -> f64 {
        self.dense_params() * self.dense_dtype(weights).bytes()
            + self.expert_params() * weights.bytes()
            + (self.head_params() + self.embedding_params()) * self.head_dtype(weights).bytes()
    }
}

impl Profile for Model {
    const KIND: &'static str = "model";
    const DATA: &'static str = include_str!("../data/models.toml");

    fn set_name(&mut self, name: &str) {
        name.clone_into(&mut self.name);
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn check(&self) -> Result<(), String> {
        let positive = |what: &str, value: u32| match value {
            0 => Err(format!("{what} must be more than zero")),
            // Products of three dimensions stay well inside what is exact in 64 bits.
            1_000_001.. if what != "vocabulary" => Err(format!("{what} of {value} is beyond any model")),
            _ => Ok(()),
        };
        positive("layers", self.layers)?;
        positive("hidden", self.hidden)?;
        positive("heads", self.heads)?;
        positive("vocabulary", self.vocabulary)?;
        match self.mla {
            Some(mla) => {
                positive("mla.kv_lora_rank", mla.kv_lora_rank)?;
                for (what, value) in
                    [("mla.rope_dim", mla.rope_dim), ("mla.nope_dim", mla.nope_dim), ("mla.v_dim", mla.v_dim)]
                {
                    positive(what, value)?;
                }
            }
            None => {
                positive("kv_heads", self.kv_heads)?;
                positive("head_dim", self.head_dim)?;
                if !self.heads.is_multiple_of(self.kv_heads) {
                    return Err(format!("{} query heads do not share {} KV heads evenly", self.heads, self.kv_heads));
                }
            }
        }
        match self.moe {
            Some(moe) => {
                positive("moe.experts", moe.experts)?;
                positive("moe.intermediate", moe.intermediate)?;
                if moe.experts_per_token == 0 || moe.experts_per_token > moe.experts {
                    return Err(format!("{} experts per token of {}", moe.experts_per_token, moe.experts));
                }
                if moe.dense_layers > self.layers {
                    return Err(format!("{} dense layers of {}", moe.dense_layers, self.layers));
                }
                if moe.dense_layers > 0 {
                    positive("intermediate", self.intermediate)?;
                }
            }
            None => positive("intermediate", self.intermediate)?,
        }
        if let Some(window) = self.window {
            if window.layers > self.layers {
                return Err(format!("{} windowed layers of {}", window.layers, self.layers));
            }
            if window.tokens == 0 || window.every == 0 {
                return Err("window.tokens and window.every must be more than zero".to_owned());
            }
        }
        Ok(())
    }
}
