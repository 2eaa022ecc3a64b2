//! What the user typed: pure syntax. Nothing here is resolved, checked against data, or defaulted from the machine.

mod tiers;
mod topology;

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum, ValueHint};
use gpufeed_profiles::units::{Bytes, UnitError, parse_duration};

pub use crate::capacity::args::{ItlArgs, PlanArgs, PlanCommand, PlanFormat, ServedArgs, TtftArgs};
pub use crate::search::args::{KneeArgs, KvSearch, OpsSearch, RagSearch, SearchArgs, SearchWorkload, TrainingSearch};
pub use tiers::{TierArgs, WritePolicyArg};
pub use topology::{TopologyArg, TopologyArgs, WorkerAt};

fn duration(text: &str) -> Result<Duration, UnitError> {
    parse_duration(text)
}

/// Will this storage keep these GPUs fed, and if not, what does it cost?
///
/// Replays training reads, KV-cache offload and RAG against any S3 endpoint, a local drive or the reference server, and
/// says what the GPUs behind it would have done. Start with `gpufeed run quick`.
#[derive(Debug, Parser)]
#[command(name = "gpufeed", version, propagate_version = true, max_term_width = 100)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The verbs of the tool.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Replay a workload against a target, measure, and write a report directory.
    Run(Box<RunArgs>),
    /// Run the reference storage server.
    Serve(Box<ServeArgs>),
    /// What storage these GPUs need; single predictions of TTFT and ITL; how well they hold.
    Plan(Box<PlanArgs>),
    /// The knee: most accelerators, requests per second or clients before the storage gives in.
    Search(Box<SearchArgs>),
    /// Look at, make, convert and cut request traces.
    #[command(subcommand)]
    Trace(TraceCommand),
    /// List and show the models, GPUs, training workloads, KV clients and claims that are built in.
    #[command(subcommand)]
    Profile(ProfileCommand),
    /// Render a report.json again: HTML, CSV, Markdown, text; or print its JSON Schema.
    Report(ReportArgs),
    /// Measure what this client machine itself can reach; kept, and used for verdicts.
    Calibrate(CalibrateArgs),
    /// Print a completion script for a shell.
    Completions {
        /// Which shell.
        shell: clap_complete::Shell,
    },
    /// Print the manual page.
    Man,
}

/// `gpufeed run`.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = false)]
pub struct RunArgs {
    /// What to replay.
    #[command(subcommand)]
    pub workload: WorkloadArgs,
}

/// What to replay.
#[derive(Debug, Subcommand)]
pub enum WorkloadArgs {
    /// A short training, KV-cache and RAG mix, one after the other: the first thing to run.
    Quick(QuickArgs),
    /// Plain load, as in warp or fio.
    Ops(OpsArgs),
    /// Emulated accelerators reading training data in lock-step (MLPerf Storage semantics).
    Training(TrainingArgs),
    /// Emulated inference workers that offload their KV cache to the target.
    Kv(Box<KvArgs>),
    /// Retrieval-augmented generation: posting lists, passages, prefill.
    Rag(RagArgs),
    /// A `plan.toml` of an earlier run: runs it again exactly.
    #[command(external_subcommand)]
    Plan(Vec<OsString>),
}

/// Flags that every workload takes.
#[derive(Debug, Clone, Default, Args)]
pub struct SharedArgs {
    /// Where the data is: embedded, embedded:synth, s3://bucket/prefix, kv://host:9900/bucket, file:///dir, mem:
    /// [default: embedded]
    #[arg(long, help_heading = "Target")]
    pub target: Option<String>,
    /// S3 endpoint; repeat to spread connections over several
    #[arg(long, value_name = "URL", env = "AWS_ENDPOINT_URL", value_delimiter = ',', help_heading = "Target")]
    pub endpoint_url: Vec<String>,
    /// S3 region [default: from the AWS environment, else us-east-1]
    #[arg(long, help_heading = "Target")]
    pub region: Option<String>,
    /// Named profile of the AWS configuration files
    #[arg(long, value_name = "NAME", help_heading = "Target")]
    pub aws_profile: Option<String>,
    /// How buckets are addressed
    #[arg(long, value_enum, default_value_t = Addressing::Auto, help_heading = "Target")]
    pub addressing: Addressing,
    /// Accept any TLS certificate
    #[arg(long, help_heading = "Target")]
    pub no_verify_tls: bool,
    /// How an embedded target is reached
    #[arg(long, value_enum, default_value_t = Wire::S3, help_heading = "Target")]
    pub wire: Wire,
    /// Which S3 client does the measured operations
    #[arg(long, value_enum, default_value_t = S3Client::Raw, help_heading = "Target")]
    pub s3_client: S3Client,
    /// Inject latency, caps, errors or stalls into an embedded target, e.g. 'get:latency=5ms,bandwidth=1GB/s'; repeatable
    #[arg(long, value_name = "SHAPE", help_heading = "Target")]
    pub shape: Vec<String>,
    /// Use data of an earlier run where it is there with the right size
    #[arg(long, help_heading = "Target")]
    pub reuse: bool,
    /// Leave the data on the target afterwards
    #[arg(long, help_heading = "Target")]
    pub keep_data: bool,

    /// Length of the measured window of each member
    #[arg(long, value_parser = duration, value_name = "TIME", help_heading = "Run")]
    pub duration: Option<Duration>,
    /// Warm-up before it [default: until steady, at most a quarter of the duration]
    #[arg(long, value_parser = duration, value_name = "TIME", help_heading = "Run")]
    pub warm_up: Option<Duration>,
    /// Seed of everything random
    #[arg(long, default_value_t = 42, help_heading = "Run")]
    pub seed: u64,
    /// Client threads, one per core [default: all cores but the embedded server's]
    #[arg(long, help_heading = "Run")]
    pub threads: Option<usize>,
    /// Time-out of one operation
    #[arg(long, value_parser = duration, value_name = "TIME", default_value = "30s", help_heading = "Run")]
    pub op_timeout: Duration,
    /// Retries of a failed operation; response time then spans all attempts
    #[arg(long, default_value_t = 0, help_heading = "Run")]
    pub retries: u32,
    /// How much of what is read is checked against what was written: off, full, or a share such as 0.01
    #[arg(long, default_value = "0.01", help_heading = "Run")]
    pub verify: String,
    /// Where bodies land
    #[arg(long, value_enum, default_value_t = LandingArg::Discard, help_heading = "Run")]
    pub landing: LandingArg,

    /// Report directory [default: gpufeed-WORKLOAD-TIME]
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath, help_heading = "Output")]
    pub out: Option<PathBuf>,
    /// What goes to standard output
    #[arg(long, value_enum, default_value_t = RunFormat::Text, help_heading = "Output")]
    pub format: RunFormat,
    /// Also write every operation to ops.csv.zst
    #[arg(long, help_heading = "Output")]
    pub op_log: bool,
    /// No progress, errors only
    #[arg(long, short, help_heading = "Output")]
    pub quiet: bool,
    /// Print the resolved plan and do nothing
    #[arg(long, help_heading = "Output")]
    pub dry_run: bool,
    /// Override a figure: `model.hidden=4096`, `gpu.hbm_bandwidth=4TB/s`, `training.batch=8`; repeatable
    #[arg(long, value_name = "SECTION.KEY=VALUE", help_heading = "Workload")]
    pub set: Vec<String>,
}

/// `gpufeed run quick`.
#[derive(Debug, Clone, Args)]
pub struct QuickArgs {
    /// Flags of every workload.
    #[command(flatten)]
    pub shared: SharedArgs,
}

/// `gpufeed run ops`.
#[derive(Debug, Clone, Args)]
pub struct OpsArgs {
    /// Flags of every workload.
    #[command(flatten)]
    pub shared: SharedArgs,
    /// Operation: get, put, stat, list, delete, multipart, mixed, or weights such as get=45,put=15,stat=30,delete=10
    #[arg(long, default_value = "get", help_heading = "Workload")]
    pub op: String,
    /// Object size: 4KiB; several for a sweep (4KiB,1MiB); or a distribution: uniform(4KiB,1MiB), lognormal(1MiB,0.5),
    /// mix(90%:4KiB,10%:1MiB)
    #[arg(long, default_value = "4KiB", help_heading = "Workload")]
    pub size: String,
    /// Operations in flight: clients of a closed loop [default: 16], or the most an open loop may have [default: 64];
    /// several for a sweep
    #[arg(long, value_delimiter = ',', help_heading = "Workload")]
    pub depth: Option<Vec<u32>>,
    /// Operations per second: an open loop
    #[arg(long, help_heading = "Workload")]
    pub rate: Option<f64>,
    /// Gaps between arrivals of an open loop
    #[arg(long, value_enum, default_value_t = ArrivalsArg::Poisson, help_heading = "Workload")]
    pub arrivals: ArrivalsArg,
    /// Stop after this many operations instead of --duration
    #[arg(long, help_heading = "Workload")]
    pub count: Option<u64>,
    /// Objects in the data set
    #[arg(long, help_heading = "Workload")]
    pub objects: Option<u64>,
    /// Read ranges of this size at random aligned offsets instead of whole objects
    #[arg(long, help_heading = "Workload")]
    pub range_size: Option<Bytes>,
    /// Popularity of keys: uniform, or zipf(1.1)
    #[arg(long, default_value = "uniform", help_heading = "Workload")]
    pub popularity: String,
    /// Part size of multipart writes
    #[arg(long, default_value = "8MiB", help_heading = "Workload")]
    pub part_size: Bytes,
}

/// `gpufeed run training`.
#[derive(Debug, Clone, Args)]
pub struct TrainingArgs {
    /// Flags of every workload.
    #[command(flatten)]
    pub shared: SharedArgs,
    /// Workload and accelerator, e.g. unet3d-h100, resnet50-a100, cosmoflow-h100; or a TOML file
    #[arg(long, default_value = "unet3d-h100", help_heading = "Workload")]
    pub profile: String,
    /// Emulated accelerators
    #[arg(long, alias = "workers", default_value_t = 1, help_heading = "Workload")]
    pub accelerators: u32,
    /// Files in the data set [default: MLPerf's rule, bounded by the target's memory when embedded]
    #[arg(long, help_heading = "Workload")]
    pub files: Option<u64>,
    /// Epochs to run instead of --duration
    #[arg(long, help_heading = "Workload")]
    pub epochs: Option<u32>,
    /// Reader workers of each accelerator [default: the profile's]
    #[arg(long, help_heading = "Workload")]
    pub readers: Option<u32>,
}

/// Flags of workloads that emulate inference.
#[derive(Debug, Clone, Default, Args)]
pub struct InferenceArgs {
    /// Model served: a built-in name, a TOML file or a Hugging Face config.json
    #[arg(long, default_value = "llama-3.1-8b", help_heading = "Workload")]
    pub model: String,
    /// GPU it is served on
    #[arg(long, default_value = "h100-sxm", help_heading = "Workload")]
    pub gpu: String,
    /// GPUs of each worker (tensor parallel)
    #[arg(long, default_value_t = 1, help_heading = "Workload")]
    pub tp: u32,
    /// Emulated workers
    #[arg(long, default_value_t = 1, help_heading = "Workload")]
    pub workers: u32,
    /// Trace of requests [default: a synthetic one]
    #[arg(long, value_name = "FILE", value_hint = ValueHint::AnyPath, help_heading = "Workload")]
    pub trace: Option<PathBuf>,
    /// Part of the trace: FROM..TO, e.g. 0s..10m
    #[arg(long, value_name = "FROM..TO", help_heading = "Workload")]
    pub window: Option<String>,
    /// Requests arrive this many times as fast as in the trace
    #[arg(long, default_value_t = 1.0, help_heading = "Workload")]
    pub rate_scale: f64,
    /// Emulated GPUs are this many times slower, arrivals too, bytes stay real, and results are scaled back
    #[arg(long, default_value_t = 1.0, help_heading = "Workload")]
    pub time_scale: f64,
    /// Objective: time to first token
    #[arg(long, value_parser = duration, value_name = "TIME", help_heading = "Workload")]
    pub slo_ttft: Option<Duration>,
    /// Objective: time per output token
    #[arg(long, value_parser = duration, value_name = "TIME", help_heading = "Workload")]
    pub slo_tpot: Option<Duration>,
}

/// `gpufeed run kv`.
#[derive(Debug, Clone, Args)]
pub struct KvArgs {
    /// Flags of every workload.
    #[command(flatten)]
    pub shared: SharedArgs,
    /// Flags of emulated inference.
    #[command(flatten)]
    pub inference: InferenceArgs,
    /// Whose request pattern: kvbm, lmcache, mooncake, vllm, hicache, memkv; or a TOML file
    #[arg(long, default_value = "mooncake", help_heading = "Workload")]
    pub client: String,
    /// Tokens of a block, instead of the client's; the trace is cut anew where its own blocks are of another size
    #[arg(long, value_name = "TOKENS", help_heading = "Workload")]
    pub block_tokens: Option<u32>,
    /// Objects of this share of a block's size, which makes storage look faster: for shaped embedded targets only
    #[arg(long, value_name = "SHARE", help_heading = "Workload")]
    pub scale_bytes: Option<f64>,
    /// Host memory for KV blocks of each worker (tier G2)
    #[arg(long, default_value = "8GiB", help_heading = "Workload")]
    pub host_cache: Bytes,
    /// Load a cached prefix, or compute it again
    #[arg(long, value_enum, default_value_t = LoadPolicyArg::BreakEven, help_heading = "Workload")]
    pub load_policy: LoadPolicyArg,
    /// Whether prefill begins before the whole prefix is loaded
    #[arg(long, value_enum, default_value_t = OverlapArg::None, help_heading = "Workload")]
    pub overlap: OverlapArg,
    /// With --overlap layer-wise: layers that each ranged read of a block brings
    #[arg(long, default_value_t = 1, help_heading = "Workload")]
    pub layers_per_read: u32,
    /// Which worker takes a request
    #[arg(long, value_enum, default_value_t = RoutingArg::KvAware, help_heading = "Workload")]
    pub routing: RoutingArg,
    /// Skip the baselines in virtual time
    #[arg(long, help_heading = "Workload")]
    pub no_baselines: bool,
    /// Drive, bound of the shared tier, and when blocks are written.
    #[command(flatten)]
    pub tiers: TierArgs,
    /// How workers are laid out, die and are paced.
    #[command(flatten)]
    pub topology: TopologyArgs,
}

/// `gpufeed run rag`.
#[derive(Debug, Clone, Args)]
pub struct RagArgs {
    /// Flags of every workload.
    #[command(flatten)]
    pub shared: SharedArgs,
    /// Flags of emulated inference.
    #[command(flatten)]
    pub inference: InferenceArgs,
    /// Queries per second instead of the trace's own times
    #[arg(long, help_heading = "Workload")]
    pub rate: Option<f64>,
    /// Posting lists read per query
    #[arg(long, default_value_t = 8, help_heading = "Workload")]
    pub nprobe: u32,
    /// Vectors in the index
    #[arg(long, default_value_t = 100_000, help_heading = "Workload")]
    pub vectors: u64,
    /// Dimensions of a vector
    #[arg(long, default_value_t = 1024, help_heading = "Workload")]
    pub dimensions: u32,
}

/// How buckets are addressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Addressing {
    /// By bucket on AWS, by path elsewhere
    #[default]
    Auto,
    /// `host/bucket/key`
    Path,
    /// `bucket.host/key`
    Virtual,
}

/// How an embedded target is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Wire {
    /// S3 over HTTP
    #[default]
    S3,
    /// The KV block protocol over TCP
    Kv,
}

/// Which S3 client does the measured operations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum S3Client {
    /// hyper on connections of our own
    #[default]
    Raw,
    /// aws-sdk-s3 as an application holds it
    AwsSdk,
}

/// Where bodies land.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum LandingArg {
    /// Counted and dropped as they arrive
    #[default]
    Discard,
    /// Held until the operation is done
    Hold,
    /// Copied into page-aligned buffers
    Arena,
}

/// What a run prints on standard output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum RunFormat {
    /// Tables
    #[default]
    Text,
    /// report.json and nothing else
    Json,
    /// A summary for pull requests
    Markdown,
}

/// Gaps between arrivals.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ArrivalsArg {
    /// Equal
    Constant,
    /// Exponential
    Poisson,
}

/// Load a cached prefix, or compute it again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LoadPolicyArg {
    /// Load whatever is there
    Always,
    /// Compute everything
    Never,
    /// Load where that is expected to be faster
    BreakEven,
}

/// Whether prefill begins before the whole prefix is loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum OverlapArg {
    /// It waits for the whole prefix, while other requests go on
    None,
    /// It begins at once and waits in each layer for that layer's part; the whole batch waits with it
    LayerWise,
}

/// Which worker takes a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum RoutingArg {
    /// In turn
    RoundRobin,
    /// The one with the least to do
    LeastLoaded,
    /// The one with the least left to do, cached blocks counted
    KvAware,
}

/// `gpufeed serve`.
#[derive(Debug, Clone, Args)]
pub struct ServeArgs {
    /// Address of the S3 endpoint
    #[arg(long, default_value = "127.0.0.1:9000", value_name = "ADDR", env = "GPUFEED_LISTEN")]
    pub listen: std::net::SocketAddr,
    /// Address of the KV block protocol; `none` for none
    #[arg(long, default_value = "127.0.0.1:9900", value_name = "ADDR", env = "GPUFEED_KV_LISTEN")]
    pub kv_listen: String,
    /// Address of health and metrics; `none` for neither
    #[arg(long, default_value = "127.0.0.1:9090", value_name = "ADDR", env = "GPUFEED_METRICS_LISTEN")]
    pub metrics: String,
    /// Where objects are kept
    #[arg(long, value_enum, default_value_t = StoreArg::Mem)]
    pub store: StoreArg,
    /// Most memory for objects (mem)
    #[arg(long, default_value = "8GiB")]
    pub capacity: Bytes,
    /// Seed of the payload that a synth store makes
    #[arg(long, default_value_t = 42)]
    pub seed: u64,
    /// Access key
    #[arg(long, env = "GPUFEED_ACCESS_KEY")]
    pub access_key: Option<String>,
    /// Secret key
    #[arg(long, env = "GPUFEED_SECRET_KEY", hide_env_values = true)]
    pub secret_key: Option<String>,
    /// Buckets to create at start; repeatable [default: gpufeed]
    #[arg(long)]
    pub bucket: Vec<String>,
    /// Domain for virtual-host style addresses; repeatable
    #[arg(long)]
    pub domain: Vec<String>,
    /// Inject latency, caps, errors or stalls; repeatable
    #[arg(long)]
    pub shape: Vec<String>,
    /// Server threads [default: one per core]
    #[arg(long)]
    pub threads: Option<usize>,
    /// PEM certificate chain for TLS
    #[arg(long, requires = "tls_key", value_hint = ValueHint::FilePath)]
    pub tls_cert: Option<PathBuf>,
    /// PEM private key for TLS
    #[arg(long, requires = "tls_cert", value_hint = ValueHint::FilePath)]
    pub tls_key: Option<PathBuf>,
    /// File for the access log
    #[arg(long, value_hint = ValueHint::FilePath)]
    pub access_log: Option<PathBuf>,
    /// Started by `gpufeed run`: credentials on standard input, addresses on standard output, ends with its parent
    #[arg(long, hide = true)]
    pub embedded: bool,
}

/// Where objects are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum StoreArg {
    /// In memory
    Mem,
    /// Key and length only; payload is made on GET
    Synth,
}

/// `gpufeed trace`.
#[derive(Debug, Subcommand)]
pub enum TraceCommand {
    /// Requests, tokens, blocks, and how often prefixes repeat
    Info {
        /// Trace file, or a folder of conversations
        #[arg(value_hint = ValueHint::AnyPath)]
        file: PathBuf,
        /// Capacities, in blocks, of LRU caches to try
        #[arg(long, value_delimiter = ',')]
        lru: Vec<u64>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Make a trace from named parameters, in Mooncake's format
    Synth {
        /// agentic, multi-turn or rag
        kind: String,
        /// Parameter to change, e.g. sessions=200, rate=2; repeatable. `--set help` lists them
        #[arg(long, value_name = "NAME=VALUE")]
        set: Vec<String>,
        /// Seed
        #[arg(long, default_value_t = 42)]
        seed: u64,
        /// File to write [default: standard output]
        #[arg(long, short, value_hint = ValueHint::FilePath)]
        out: Option<PathBuf>,
    },
    /// Rewrite a trace in Mooncake's format
    Convert {
        /// Trace file
        #[arg(value_hint = ValueHint::AnyPath)]
        file: PathBuf,
        /// File to write [default: standard output]
        #[arg(long, short, value_hint = ValueHint::FilePath)]
        out: Option<PathBuf>,
    },
    /// Cut a trace by time
    Window {
        /// Trace file
        #[arg(value_hint = ValueHint::AnyPath)]
        file: PathBuf,
        /// First instant kept
        #[arg(long, value_parser = duration, default_value = "0s")]
        from: Duration,
        /// First instant dropped
        #[arg(long, value_parser = duration)]
        to: Duration,
        /// File to write [default: standard output]
        #[arg(long, short, value_hint = ValueHint::FilePath)]
        out: Option<PathBuf>,
    },
}

/// `gpufeed profile`.
#[derive(Debug, Subcommand)]
pub enum ProfileCommand {
    /// What there is
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// One of them, with its sources
    Show {
        /// Its name
        name: String,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

/// `gpufeed report`.
#[derive(Debug, Clone, Args)]
pub struct ReportArgs {
    /// Report directory or report.json
    #[arg(value_hint = ValueHint::AnyPath, required_unless_present = "schema")]
    pub report: Option<PathBuf>,
    /// What to write
    #[arg(long, value_enum, default_value_t = ReportFormat::Text)]
    pub format: ReportFormat,
    /// File to write [default: standard output]
    #[arg(long, short, value_hint = ValueHint::FilePath)]
    pub out: Option<PathBuf>,
    /// Print the JSON Schema of report.json
    #[arg(long, exclusive = true)]
    pub schema: bool,
}

/// What a report is rendered as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ReportFormat {
    /// Tables
    Text,
    /// One self-contained page
    Html,
    /// One row per member and operation
    Csv,
    /// A summary for pull requests
    Markdown,
    /// The report itself, checked and indented
    Json,
}

/// `gpufeed calibrate`.
#[derive(Debug, Clone, Args)]
pub struct CalibrateArgs {
    /// Length of each measurement
    #[arg(long, value_parser = duration, default_value = "2s")]
    pub duration: Duration,
    /// Client threads [default: all cores but the server's]
    #[arg(long)]
    pub threads: Option<usize>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}
