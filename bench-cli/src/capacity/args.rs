//! What can be typed after `gpufeed plan`: pure syntax.

use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use gpufeed_profiles::Dtype;
use gpufeed_profiles::units::{BytesPerSec, UnitError, parse_duration};

fn duration(text: &str) -> Result<Duration, UnitError> {
    parse_duration(text)
}

/// `gpufeed plan`.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct PlanArgs {
    /// A single prediction instead of a plan.
    #[command(subcommand)]
    pub command: Option<PlanCommand>,
    /// Print every prediction beside the published figure; exits 3 where one that should hold does not
    #[arg(long)]
    pub validate: bool,
    /// What goes to standard output
    #[arg(long, value_enum, default_value_t = PlanFormat::Text, help_heading = "Output")]
    pub format: PlanFormat,
    /// Flags of the plan itself.
    #[command(flatten)]
    pub capacity: super::plan::CapacityArgs,
}

/// Single predictions, for scripts.
#[derive(Debug, Subcommand)]
pub enum PlanCommand {
    /// Time to first token of one request on an idle worker
    Ttft(TtftArgs),
    /// Time of one decode iteration of a batch
    Itl(ItlArgs),
    /// A table of virtual runs over one setting or several
    Sweep(Box<super::sweep::SweepArgs>),
}

/// What serves the request.
#[derive(Debug, Clone, Args)]
pub struct ServedArgs {
    /// Model: a built-in name, a TOML file or a Hugging Face config.json
    #[arg(long)]
    pub model: String,
    /// GPU: a built-in name or a TOML file, such as profiles/calibrate writes
    #[arg(long)]
    pub gpu: String,
    /// GPUs that share the model (tensor parallel)
    #[arg(long, default_value_t = 1)]
    pub tp: u32,
    /// Inference engine: a built-in name or a TOML file
    #[arg(long, default_value = "vllm")]
    pub engine: String,
    /// Format of the weights [default: as the model is published]
    #[arg(long)]
    pub weights_dtype: Option<Dtype>,
    /// Format of the KV cache [default: the model's]
    #[arg(long)]
    pub kv_dtype: Option<Dtype>,
    /// Override a figure: `gpu.weight_read_ratio=0.8`, `engine.step_time=2ms`; repeatable
    #[arg(long, value_name = "SECTION.KEY=VALUE")]
    pub set: Vec<String>,
    /// What goes to standard output
    #[arg(long, value_enum, default_value_t = PlanFormat::Text)]
    pub format: PlanFormat,
}

/// `gpufeed plan ttft`.
#[derive(Debug, Clone, Args)]
pub struct TtftArgs {
    /// What serves it.
    #[command(flatten)]
    pub served: ServedArgs,
    /// Tokens of the prompt
    #[arg(long)]
    pub context: u64,
    /// Of those, tokens whose KV is cached: in GPU memory, or outside when --load-bytes-per-s is given
    #[arg(long, default_value_t = 0)]
    pub cached: u64,
    /// Bandwidth at which cached KV is loaded, all GPUs of the worker together, e.g. 31.7GB/s
    /// [default: it is in GPU memory already]
    #[arg(long, value_name = "RATE")]
    pub load_bytes_per_s: Option<BytesPerSec>,
    /// Time to the first byte of a load
    #[arg(long, value_parser = duration, value_name = "TIME", requires = "load_bytes_per_s")]
    pub load_latency: Option<Duration>,
}

/// `gpufeed plan itl`.
#[derive(Debug, Clone, Args)]
pub struct ItlArgs {
    /// What serves it.
    #[command(flatten)]
    pub served: ServedArgs,
    /// Context of each sequence, in tokens
    #[arg(long)]
    pub context: u64,
    /// Sequences that decode together
    #[arg(long, default_value_t = 1)]
    pub batch: u64,
}

/// What `gpufeed plan` prints on standard output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum PlanFormat {
    /// Tables
    #[default]
    Text,
    /// One JSON document and nothing else
    Json,
    /// A page with charts
    Html,
}
