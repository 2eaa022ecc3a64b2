//! What one iteration of an inference engine costs: the formula of the design (§5), term by term.
//!
//! Every figure is an estimate from the model's shape and the GPU's *achievable* rates; each term is kept apart so that
//! a report can show where an iteration's time goes. Times are nanoseconds as `f64`; the worker rounds each iteration
//! to whole nanoseconds once.

/// Inputs of the iteration formula for one model on one kind of GPU at one tensor-parallel width.
///
/// Symbols of the formula are named in each field's comment.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CostModel {
    /// `L`: transformer layers.
    pub layers: u32,
    /// Hidden size, in elements; what an all-reduce moves.
    pub hidden: u32,
    /// Parameters every token passes through in GEMMs: attention projections, dense MLPs, shared experts, routers.
    /// Neither the input embedding nor the LM head.
    pub dense_params: f64,
    /// Parameters of all routed experts of all layers; zero for a dense model.
    pub expert_params: f64,
    /// `E`: routed experts per layer; zero for a dense model.
    pub experts: u32,
    /// `k`: routed experts each token passes through.
    pub experts_per_token: u32,
    /// Parameters of the LM head, which runs on sampled rows only.
    pub head_params: f64,
    /// Bytes of a stored weight; of the experts where `dense_weight_bytes` says otherwise for the rest.
    pub weight_bytes: f64,
    /// Bytes of a weight outside the experts, where it differs: only experts are stored in four bits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dense_weight_bytes: Option<f64>,
    /// Bytes of a weight of the LM head, often kept at a higher precision.
    pub head_weight_bytes: f64,
    /// `d_attn` in prefill: heads · head dimension, or heads · (qk + v) / 2 for MLA.
    pub prefill_attention_width: f64,
    /// `d_attn` in decode: as in prefill, or the absorbed width for MLA.
    pub decode_attention_width: f64,
    /// Layers with a sliding window; the others attend to everything.
    pub window_layers: u32,
    /// Tokens of the sliding window.
    pub window_tokens: u64,
    /// KV bytes of a token as stored outside the GPU: every KV head once, all layers.
    pub kv_bytes_per_token: f64,
    /// KV bytes of a token on one rank: replicated heads (TP > KV heads) and the MLA latent count in full.
    pub kv_bytes_per_token_rank: f64,
    /// GPUs that share the model (tensor parallelism).
    pub tp: u32,
    /// `r_gemm`: achievable GEMM rate of one GPU at the weights' dtype.
    pub gemm_flops_per_s: f64,
    /// `r_attn`: achievable attention rate of one GPU in prefill.
    pub attention_flops_per_s: f64,
    /// `bw_w`: achievable bandwidth when streaming weights, one GPU.
    pub weight_bytes_per_s: f64,
    /// `bw_kv`: achievable bandwidth when streaming the KV cache at its dtype, one GPU.
    pub kv_bytes_per_s: f64,
    /// `λ`: share of the shorter of a GEMM's two times, compute and memory, that does not hide behind the longer. Zero is
    /// the ideal roofline.
    #[serde(default)]
    pub roofline_loss: f64,
    /// `ζ`: share by which a large batch reads its KV more slowly than a single sequence does; (1 − 1/B) of it at B.
    #[serde(default)]
    pub kv_batch_loss: f64,
    /// `bw`: memory bandwidth for norms and element-wise work, one GPU.
    pub hbm_bytes_per_s: f64,
    /// `κ`: passes of N·hidden elements of two bytes over memory per layer, by norms and element-wise work.
    pub elementwise_passes: f64,
    /// GPU time of an iteration that depends on no size: the kernels of a layer follow each other, and none takes less
    /// than a few microseconds. Those of a mixture of experts (routing, sorting, grouped GEMMs) are many.
    #[serde(default)]
    pub kernels_ns: f64,
    /// `α`: latency of one all-reduce over all ranks.
    pub all_reduce_ns: f64,
    /// `e·NVLink`: achievable bandwidth between GPUs, per direction.
    pub link_bytes_per_s: f64,
    /// `t_step`: host time of one iteration (scheduling, sampling, output).
    pub step_ns: f64,
    /// `t_launch`: host time to launch one layer.
    pub launch_ns: f64,
    /// `τ_seq`: host time per sequence of the batch.
    pub sequence_ns: f64,
    /// `t_request`: fixed time of a request before it can be scheduled.
    pub request_ns: f64,
    /// `τ_token`: time per prompt token before the request can be scheduled (tokenizing, block hashing).
    pub token_ns: f64,
    /// Host memory to GPU memory, one GPU, one direction.
    pub host_link_bytes_per_s: f64,
    /// Peak rate of one GPU, for MFU.
    pub peak_flops_per_s: f64,
    /// Peak memory bandwidth of one GPU, for MBU.
    pub peak_hbm_bytes_per_s: f64,
    /// Memory of one GPU.
    pub hbm_bytes: f64,
    /// Weights on one rank, embedding and head included.
    pub weight_bytes_per_rank: f64,
    /// Activations on one rank per batched token.
    pub activation_bytes_per_token: f64,
    /// CUDA graphs, NCCL buffers and the context, on one rank.
    pub reserved_bytes: f64,
}

/// What one iteration works on.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Batch {
    /// Tokens prefilled.
    pub prefill_tokens: u64,
    /// Prefill chunks.
    pub chunks: u64,
    /// Query–key pairs of the chunks in a layer that attends to everything.
    pub prefill_pairs: f64,
    /// The same in a layer with a sliding window.
    pub window_pairs: f64,
    /// Sequences that decode one token.
    pub decode_seqs: u64,
    /// Context tokens of those, in all.
    pub decode_context: f64,
    /// The same as a sliding window sees them.
    pub window_context: f64,
    /// Rows the LM head runs on.
    pub sampled_rows: u64,
}

impl Batch {
    /// Adds a chunk of `tokens` after `cached` tokens; `last` if it ends the prompt, so that a token is sampled.
    pub fn chunk(&mut self, model: &CostModel, cached: u64, tokens: u64, last: bool) {
        let (p, end) = (cached as f64, (cached + tokens) as f64);
        self.prefill_tokens += tokens;
        self.chunks += 1;
        self.prefill_pairs += (end * end - p * p) / 2.0;
        if model.window_layers > 0 {
            // ∫ min(x, w) dx over the chunk's positions.
            let w = model.window_tokens as f64;
            let below = |x: f64| x.min(w).powi(2) / 2.0 + (x - w).max(0.0) * w;
            self.window_pairs += below(end) - below(p);
        }
        self.sampled_rows += u64::from(last);
    }

    /// Adds a sequence that decodes one token over a context of `context` tokens.
    pub fn decode(&mut self, model: &CostModel, context: u64) {
        self.decode_seqs += 1;
        self.decode_context += context as f64;
        self.window_context += context.min(model.window_tokens) as f64;
        self.sampled_rows += 1;
    }

    /// Sequences in the iteration.
    #[must_use]
    pub const fn sequences(&self) -> u64 {
        self.chunks + self.decode_seqs
    }

    /// `N`: tokens that pass through the GEMMs.
    #[must_use]
    pub const fn tokens(&self) -> u64 {
        self.prefill_tokens + self.decode_seqs
    }
}

/// Terms of one iteration, in nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Terms {
    /// `T_host`: overlaps the GPU, so the longer of the two counts.
    pub host_ns: f64,
    /// GEMMs of the layers and the head.
    pub gemm_ns: f64,
    /// Attention of the prefill chunks.
    pub prefill_attention_ns: f64,
    /// Attention of the decoding sequences.
    pub decode_attention_ns: f64,
    /// All-reduces of tensor parallelism.
    pub all_reduce_ns: f64,
    /// Norms and element-wise work.
    pub elementwise_ns: f64,
    /// What kernels take however little they do.
    pub kernels_ns: f64,
    /// Waiting for storage inside the iteration (layer-wise loading).
    pub exposed_wait_ns: f64,
}

impl Terms {
    /// `T_gpu`.
    #[must_use]
    pub fn gpu_ns(&self) -> f64 {
        self.gemm_ns
            + self.prefill_attention_ns
            + self.decode_attention_ns
            + self.all_reduce_ns
            + self.elementwise_ns
            + self.kernels_ns
    }

    /// Time in which the GPU waits for the host.
    #[must_use]
    pub fn host_wait_ns(&self) -> f64 {
        (self.host_ns - self.gpu_ns()).max(0.0)
    }

    /// `T_iter = max(T_host, T_gpu) + exposed_wait`.
    #[must_use]
    pub fn total_ns(&self) -> f64 {
        self.host_ns.max(self.gpu_ns()) + self.exposed_wait_ns
    }
}

const NS: f64 = 1e9;

impl CostModel {
    /// The terms of one iteration (design §5); an empty batch costs nothing.
    ///
    /// Three terms go beyond the design's formula, each zero unless a profile says otherwise, because published figures
    /// cannot be had without them: kernels have a least time (`kernels_ns`: an iteration of gpt-oss-20b takes 4 ms on an
    /// H100, twice what its bytes and FLOPs need), the two sides of the roofline overlap in part only
    /// (`roofline_loss`), and a batch reads its KV more slowly than one long sequence (`kv_batch_loss`).
    #[must_use]
    pub fn iteration(&self, batch: &Batch) -> Terms {
        if batch.sequences() == 0 {
            return Terms::default();
        }
        let (layers, tp, tokens) = (f64::from(self.layers), f64::from(self.tp), batch.tokens() as f64);
        let roofline = |params_per_token: f64, rows: f64, bytes: f64| {
            let compute = 2.0 * params_per_token * rows / self.gemm_flops_per_s;
            let memory = bytes / self.weight_bytes_per_s;
            (compute.max(memory) + self.roofline_loss * compute.min(memory)) / tp * NS
        };
        let mut gemm_ns = roofline(self.dense_params, tokens, self.dense_params * self.dense_weight_bytes());
        if self.experts > 0 {
            gemm_ns += roofline(self.active_expert_params(), tokens, self.touched_expert_bytes(tokens));
        }
        if batch.sampled_rows > 0 {
            let bytes = self.head_params * self.head_weight_bytes;
            gemm_ns += roofline(self.head_params, batch.sampled_rows as f64, bytes);
        }
        let decode_bytes = self.decode_kv_bytes_rank(batch);
        let decode_flops =
            self.attention_flops(self.decode_attention_width, batch.decode_context, batch.window_context);
        let prefill_flops = self.attention_flops(self.prefill_attention_width, batch.prefill_pairs, batch.window_pairs);
        let activation = tokens * f64::from(self.hidden) * 2.0;
        let all_reduce_ns = if self.tp > 1 {
            let moved = 2.0 * (tp - 1.0) / tp * activation / self.link_bytes_per_s * NS;
            2.0 * layers * (self.all_reduce_ns + moved)
        } else {
            0.0
        };
        Terms {
            host_ns: self.step_ns + layers * self.launch_ns + batch.sequences() as f64 * self.sequence_ns,
            gemm_ns,
            prefill_attention_ns: prefill_flops / (self.attention_flops_per_s * tp) * NS,
            decode_attention_ns: (decode_bytes / self.kv_bytes_per_s * self.batched_read(batch.decode_seqs))
                .max(decode_flops / (self.attention_flops_per_s * tp))
                * NS,
            all_reduce_ns,
            elementwise_ns: self.elementwise_passes * layers * activation / self.hbm_bytes_per_s * NS,
            kernels_ns: self.kernels_ns,
            exposed_wait_ns: 0.0,
        }
    }

    /// Time of one iteration in nanoseconds.
    #[must_use]
    pub fn iteration_ns(&self, batch: &Batch) -> f64 {
        self.iteration(batch).total_ns()
    }

    /// FLOPs of an iteration, all ranks: what MFU counts.
    #[must_use]
    pub fn flops(&self, batch: &Batch) -> f64 {
        2.0 * (self.dense_params + self.active_expert_params()) * batch.tokens() as f64
            + 2.0 * self.head_params * batch.sampled_rows as f64
            + self.attention_flops(self.prefill_attention_width, batch.prefill_pairs, batch.window_pairs)
            + self.attention_flops(self.decode_attention_width, batch.decode_context, batch.window_context)
    }

    /// Bytes an iteration must read from GPU memory, all ranks: weights and the decoding sequences' KV. What MBU counts.
    #[must_use]
    pub fn bytes(&self, batch: &Batch) -> f64 {
        if batch.sequences() == 0 {
            return 0.0;
        }
        let head = if batch.sampled_rows > 0 { self.head_params * self.head_weight_bytes } else { 0.0 };
        self.dense_params * self.dense_weight_bytes()
            + self.touched_expert_bytes(batch.tokens() as f64)
            + head
            + self.decode_kv_bytes_rank(batch) * f64::from(self.tp)
    }

    /// `T_pre(p, k)`: time to prefill `tokens` after `cached` ones alone on a worker, in chunks of at most
    /// `chunk_tokens`, in nanoseconds. The request's own host time is not in it.
    #[must_use]
    pub fn prefill_ns(&self, cached: u64, tokens: u64, chunk_tokens: u64) -> f64 {
        let end = cached + tokens;
        let mut at = cached;
        let mut total = 0.0;
        while at < end {
            let chunk = chunk_tokens.max(1).min(end - at);
            let mut batch = Batch::default();
            batch.chunk(self, at, chunk, at + chunk == end);
            total += self.iteration_ns(&batch);
            at += chunk;
        }
        total
    }

    /// `t_request + τ_token·n`: time before a request of `tokens` can be scheduled, in nanoseconds.
    #[must_use]
    pub fn request_ns(&self, tokens: u64) -> f64 {
        self.request_ns + self.token_ns * tokens as f64
    }

    /// Time to move `bytes` of KV (all ranks) between host and GPU memory, each rank over its own link, in nanoseconds.
    #[must_use]
    pub fn copy_ns(&self, bytes: f64) -> f64 {
        bytes / (self.host_link_bytes_per_s * f64::from(self.tp)) * NS
    }

    /// Bytes of a block of `block_tokens` as stored outside the GPU, all ranks.
    #[must_use]
    pub fn block_bytes(&self, block_tokens: u64) -> u64 {
        (self.kv_bytes_per_token * block_tokens as f64).round() as u64
    }

    /// KV blocks that fit on the worker: ⌊(HBM · utilization − weights − activations − graphs and NCCL) / block⌋, per
    /// rank; zero when the model itself does not fit.
    #[must_use]
    pub fn hbm_blocks(&self, utilization_ratio: f64, max_batched_tokens: u64, block_tokens: u64) -> u64 {
        let room = self.hbm_bytes * utilization_ratio
            - self.weight_bytes_per_rank
            - self.activation_bytes_per_token * max_batched_tokens as f64
            - self.reserved_bytes;
        (room / (self.kv_bytes_per_token_rank * block_tokens as f64)).floor().max(0.0) as u64
    }

    /// `B*(k) = k·s / (T_pre(p, k) − t₀ − t_copy)`: the bandwidth in bytes per second at which loading `tokens` after
    /// `cached` ones takes as long as computing them; `None` where computing always wins.
    ///
    /// `first_byte_ns` is t₀, the latency before the first byte of a load.
    #[must_use]
    pub fn break_even_bytes_per_s(
        &self,
        cached: u64,
        tokens: u64,
        chunk_tokens: u64,
        first_byte_ns: f64,
    ) -> Option<f64> {
        let bytes = self.kv_bytes_per_token * tokens as f64;
        let spare_ns = self.prefill_ns(cached, tokens, chunk_tokens) - first_byte_ns - self.copy_ns(bytes);
        (spare_ns > 0.0).then(|| bytes / spare_ns * NS)
    }

    fn dense_weight_bytes(&self) -> f64 {
        self.dense_weight_bytes.unwrap_or(self.weight_bytes)
    }

    /// How much longer `seqs` sequences take to read their KV than one with as many tokens: 1 + ζ·(1 − 1/B).
    fn batched_read(&self, seqs: u64) -> f64 {
        1.0 + self.kv_batch_loss * (1.0 - 1.0 / seqs.max(1) as f64)
    }

    fn active_expert_params(&self) -> f64 {
        if self.experts == 0 {
            return 0.0;
        }
        self.expert_params * f64::from(self.experts_per_token) / f64::from(self.experts)
    }

    /// Expert bytes read when `tokens` each pick k of E experts: experts · (1 − (1 − k/E)^N).
    fn touched_expert_bytes(&self, tokens: f64) -> f64 {
        if self.experts == 0 {
            return 0.0;
        }
        let missed = (1.0 - f64::from(self.experts_per_token) / f64::from(self.experts)).powf(tokens);
        self.expert_params * self.weight_bytes * (1.0 - missed)
    }

    /// 4·d FLOPs per query–key pair and layer: 2 for the scores, 2 for the values.
    fn attention_flops(&self, width: f64, pairs: f64, window_pairs: f64) -> f64 {
        let full = f64::from(self.layers - self.window_layers);
        4.0 * width * (full * pairs + f64::from(self.window_layers) * window_pairs)
    }

    fn decode_kv_bytes_rank(&self, batch: &Batch) -> f64 {
        let windowed = f64::from(self.window_layers) / f64::from(self.layers);
        self.kv_bytes_per_token_rank * ((1.0 - windowed) * batch.decode_context + windowed * batch.window_context)
    }
}

/// Inputs of Mooncake's Eq. 2 (Qin et al., FAST'25, §4.1): a transformer with causal attention and grouped queries.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MooncakeEq2 {
    /// `G`: compute of all GPUs of an instance, FLOP/s.
    pub flops_per_s: f64,
    /// `a`: constant of the attention FLOPs.
    pub attention: f64,
    /// `b`: constant of the linear FLOPs.
    pub linear: f64,
    /// `d`: model dimension.
    pub dimension: f64,
    /// `gqa`: query heads per KV head.
    pub gqa: f64,
    /// `s`: bytes of an element.
    pub element_bytes: f64,
    /// `p`: tokens of the reused prefix.
    pub prefix_tokens: f64,
}

impl MooncakeEq2 {
    /// `B_min = G·2·d·s / (gqa·(a·p·d + b·d²))`: bandwidth from which loading a prefix beats computing it, bytes/s.
    #[must_use]
    pub fn min_bytes_per_s(&self) -> f64 {
        let Self { flops_per_s, attention, linear, dimension: d, gqa, element_bytes, prefix_tokens } = *self;
        flops_per_s * 2.0 * d * element_bytes / (gqa * (attention * prefix_tokens * d + linear * d * d))
    }
}
