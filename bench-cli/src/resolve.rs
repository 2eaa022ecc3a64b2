//! From what the user typed to what will be done: every default is chosen here, and the target is not touched.

pub(crate) mod fit;
mod inference;
mod kv_client;
mod ops;
mod tiers;
mod topology;
mod training;

use std::path::PathBuf;
use std::time::Duration;

use gpufeed_profiles::Overrides;
use gpufeed_profiles::storage::Shape;
use gpufeed_profiles::units::Bytes;

use crate::args::{Addressing, LandingArg, RunFormat, S3Client, SharedArgs, Wire, WorkloadArgs};
use crate::exit::{OrUsage, usage};
use crate::host;
use crate::plan::{MemberPlan, PLAN_VERSION, Plan, RunPlan, SpecPlan, TargetPlan, WarmUpPlan};
use crate::target::{self, Target};

/// Directory of our objects under the target's own prefix.
const OURS: &str = "gpufeed/";
/// Most that an embedded server keeps in memory, as a share of the machine's.
const MEMORY_SHARE: u64 = 3;

/// A plan, and what is done with its report.
#[derive(Debug)]
pub(crate) struct Request {
    /// What will be done.
    pub plan: Plan,
    /// Where the report goes, if said.
    pub out: Option<PathBuf>,
    /// What standard output gets.
    pub format: RunFormat,
    /// Whether progress is hidden.
    pub quiet: bool,
    /// Whether the plan is printed and nothing done.
    pub dry_run: bool,
}

/// Chooses every default.
///
/// # Errors
/// One sentence of usage: what makes no sense, and the way out.
pub(crate) fn resolve(workload: WorkloadArgs) -> anyhow::Result<Request> {
    match &workload {
        WorkloadArgs::Training(args) => sections("training", &args.shared.set, &["training"])?,
        WorkloadArgs::Kv(args) => sections("kv", &args.shared.set, &["model", "gpu", "engine", "kv-client", "kv"])?,
        WorkloadArgs::Rag(args) => sections("rag", &args.shared.set, &["model", "gpu", "engine", "rag"])?,
        WorkloadArgs::Quick(_) | WorkloadArgs::Ops(_) | WorkloadArgs::Plan(_) => {}
    }
    match workload {
        WorkloadArgs::Quick(args) => {
            let mut shared = args.shared;
            // Payload is made again on GET, so that the first run fits any machine's memory.
            shared.target.get_or_insert_with(|| "embedded:synth".to_owned());
            let target = target(&shared)?;
            let members = vec![
                training::quick(&shared, &target)?,
                inference::quick_kv(&shared, &target)?,
                inference::quick_rag(&shared, &target)?,
            ];
            request("quick", shared, target, members)
        }
        WorkloadArgs::Ops(args) => {
            let target = target(&args.shared)?;
            let members = ops::members(&args, &target)?;
            request("ops", args.shared, target, members)
        }
        WorkloadArgs::Training(args) => {
            let target = target(&args.shared)?;
            let members = vec![training::member(&args, &target)?];
            request("training", args.shared, target, members)
        }
        WorkloadArgs::Kv(args) => {
            let target = target(&args.shared)?;
            let members = inference::kv_members(&args, &target)?;
            request("kv", args.shared, target, members)
        }
        WorkloadArgs::Rag(args) => {
            let target = target(&args.shared)?;
            let members = vec![inference::rag(&args, &target)?];
            request("rag", args.shared, target, members)
        }
        WorkloadArgs::Plan(words) => again(&words),
    }
}

/// Refuses `--set` of a section that exists but means nothing to a workload, rather than losing it.
fn sections(workload: &str, set: &[String], taken: &[&str]) -> anyhow::Result<()> {
    let section = |text: &str| text.split(['.', '=']).next().unwrap_or_default().trim().to_owned();
    match set
        .iter()
        .find(|text| Overrides::SECTIONS.contains(&section(text).as_str()) && !taken.contains(&section(text).as_str()))
    {
        None => Ok(()),
        Some(text) => Err(usage(format!(
            "--set {text} changes nothing in `run {workload}`: it takes {}",
            taken.iter().map(|name| format!("{name}.key=value")).collect::<Vec<_>>().join(", ")
        ))),
    }
}

/// `gpufeed run plan.toml [--out DIR] [--dry-run] [--quiet] [--format F]`.
fn again(words: &[std::ffi::OsString]) -> anyhow::Result<Request> {
    #[derive(clap::Parser)]
    #[command(name = "gpufeed run PLAN.toml")]
    struct Again {
        plan: PathBuf,
        #[arg(long)]
        out: Option<PathBuf>,
        #[arg(long, value_enum, default_value_t)]
        format: RunFormat,
        #[arg(long, short)]
        quiet: bool,
        #[arg(long)]
        dry_run: bool,
    }
    let first = words.first().map(|word| word.to_string_lossy().into_owned()).unwrap_or_default();
    if !first.ends_with(".toml") {
        let known = ["quick", "ops", "training", "kv", "rag"];
        let near = known.into_iter().filter(|name| strsim::damerau_levenshtein(name, &first) <= 2).collect::<Vec<_>>();
        let hint = if near.is_empty() { known.join(", ") } else { near.join(" or ") };
        return Err(usage(format!("`{first}` is neither a workload nor a plan.toml; did you mean {hint}?")));
    }
    let program = std::ffi::OsString::from("gpufeed run");
    let args = <Again as clap::Parser>::try_parse_from(std::iter::once(&program).chain(words)).map_err(|error| {
        usage(error.render().to_string().lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned())
    })?;
    let plan = Plan::read(&args.plan)?;
    Ok(Request { plan, out: args.out, format: args.format, quiet: args.quiet, dry_run: args.dry_run })
}

fn request(
    workload: &str,
    shared: SharedArgs,
    target: TargetPlan,
    members: Vec<MemberPlan>,
) -> anyhow::Result<Request> {
    if shared.duration.is_some_and(|duration| duration.is_zero()) {
        return Err(usage("a duration of zero measures nothing: give --duration at least 1ms"));
    }
    if shared.op_timeout.is_zero() {
        return Err(usage("a time-out of zero fails every operation: give --op-timeout at least 1ms"));
    }
    if shared.threads == Some(0) {
        return Err(usage("no client threads do nothing: give --threads at least 1"));
    }
    let cores = host::cores();
    let cores = match &target {
        TargetPlan::Embedded { .. } => host::split(&cores, shared.threads).client,
        _ => cores.iter().copied().take(shared.threads.unwrap_or(usize::MAX).max(1)).collect(),
    };
    let plan = Plan {
        plan_version: PLAN_VERSION,
        workload: workload.to_owned(),
        seed: shared.seed,
        run: RunPlan {
            cores,
            op_timeout: shared.op_timeout,
            retries: shared.retries,
            drain: shared.op_timeout + Duration::from_secs(5),
            interval: Duration::from_secs(1),
            verify_ratio: verify(&shared.verify)?,
            landing: match shared.landing {
                LandingArg::Discard => "discard",
                LandingArg::Hold => "hold",
                LandingArg::Arena => "arena",
            }
            .to_owned(),
            op_log: shared.op_log,
            reuse: shared.reuse,
            keep_data: shared.keep_data,
        },
        target,
        members,
    };
    Ok(Request { plan, out: shared.out, format: shared.format, quiet: shared.quiet, dry_run: shared.dry_run })
}

fn verify(text: &str) -> anyhow::Result<f64> {
    match text {
        "off" => Ok(0.0),
        "full" => Ok(1.0),
        share => share
            .parse::<f64>()
            .ok()
            .filter(|share| (0.0..=1.0).contains(share))
            .ok_or_else(|| usage(format!("--verify {share} is not off, full or a share of reads such as 0.01"))),
    }
}

fn target(shared: &SharedArgs) -> anyhow::Result<TargetPlan> {
    let target = target::parse(shared.target.as_deref().unwrap_or("embedded"))?;
    Shape::parse(&shared.shape).or_usage()?;
    if !shared.shape.is_empty() && !matches!(target, Target::Embedded { .. }) {
        return Err(usage("--shape works on embedded targets only: give it to `gpufeed serve` for others"));
    }
    if shared.wire == Wire::Kv && !matches!(target, Target::Embedded { .. }) {
        return Err(usage("--wire chooses how an embedded target is reached: write kv://host:9900/bucket for another"));
    }
    let s3_client = match shared.s3_client {
        S3Client::Raw => "raw",
        S3Client::AwsSdk => "aws-sdk",
    }
    .to_owned();
    Ok(match target {
        Target::Embedded { store } => {
            let memory = Bytes(host::memory_bytes() / MEMORY_SHARE);
            TargetPlan::Embedded {
                store: store.to_owned(),
                capacity: memory,
                shape: shared.shape.clone(),
                server_cores: host::split(&host::cores(), shared.threads).server,
                s3_client,
                wire: match shared.wire {
                    Wire::S3 => "s3",
                    Wire::Kv => "kv",
                }
                .to_owned(),
            }
        }
        Target::Kv { address, bucket, prefix } => {
            TargetPlan::Kv { address, bucket, prefix, aws_profile: shared.aws_profile.clone() }
        }
        Target::S3 { bucket, prefix } => TargetPlan::S3 {
            bucket,
            prefix,
            endpoints: shared.endpoint_url.clone(),
            region: shared.region.clone(),
            aws_profile: shared.aws_profile.clone(),
            addressing: match shared.addressing {
                Addressing::Auto => "auto",
                Addressing::Path => "path",
                Addressing::Virtual => "virtual",
            }
            .to_owned(),
            verify_tls: !shared.no_verify_tls,
            s3_client,
        },
        Target::File(dir) => TargetPlan::File { dir },
        Target::Null => TargetPlan::Null,
    })
}

/// Text before every key of a member.
fn prefix(target: &TargetPlan, member: &str) -> String {
    format!("{}{OURS}{member}/", target.prefix())
}

/// A member of a run bounded by time: so long unless said otherwise, warmed up for a quarter of it at most.
fn timed(shared: &SharedArgs, name: &str, default: Duration, spec: SpecPlan) -> MemberPlan {
    let duration = shared.duration.unwrap_or(default);
    let warm_up = match shared.warm_up {
        Some(warm_up) => WarmUpPlan::Fixed(warm_up),
        None => WarmUpPlan::UntilSteady(duration / 4),
    };
    MemberPlan { name: name.to_owned(), duration: Some(duration), warm_up, scaling: Vec::new(), spec }
}

/// A member that runs until its work is done, unless a duration is given.
fn bounded_by_work(shared: &SharedArgs, name: &str, spec: SpecPlan) -> MemberPlan {
    let warm_up = WarmUpPlan::Fixed(shared.warm_up.unwrap_or_default());
    MemberPlan { name: name.to_owned(), duration: shared.duration, warm_up, scaling: Vec::new(), spec }
}

/// The `--set` texts of one section of the workload's own (`kv`, `rag`, `ops`), and all others.
fn own_settings<'a>(set: &'a [String], section: &str) -> (Vec<(&'a str, &'a str)>, Vec<&'a str>) {
    let mut own = Vec::new();
    let mut others = Vec::new();
    for text in set {
        let inside = text.strip_prefix(section).and_then(|rest| rest.strip_prefix('.'));
        match inside.and_then(|rest| rest.split_once('=')) {
            Some((key, value)) => own.push((key.trim(), value.trim())),
            None => others.push(text.as_str()),
        }
    }
    (own, others)
}

/// Applies `key=value` settings to a specification by way of its TOML form, so that unknown keys and wrong values are
/// refused in its own words.
fn apply<T: serde::Serialize + serde::de::DeserializeOwned>(
    spec: T,
    section: &str,
    settings: &[(&str, &str)],
) -> anyhow::Result<T> {
    if settings.is_empty() {
        return Ok(spec);
    }
    let mut table = toml::Table::try_from(&spec)?;
    let known: Vec<String> = table.keys().cloned().collect();
    for (key, value) in settings {
        let parsed =
            toml::from_str::<toml::Table>(&format!("value = {value}")).ok().and_then(|mut t| t.remove("value"));
        let parsed = parsed.unwrap_or_else(|| toml::Value::String((*value).to_owned()));
        let mut place = &mut table;
        let mut steps = key.split('.').peekable();
        while let Some(step) = steps.next() {
            if steps.peek().is_none() {
                place.insert(step.to_owned(), parsed.clone());
                break;
            }
            let entry = place.entry(step).or_insert_with(|| toml::Value::Table(toml::Table::new()));
            place =
                entry.as_table_mut().ok_or_else(|| usage(format!("--set {section}.{key}: `{step}` holds no keys")))?;
        }
    }
    table.try_into().map_err(|error: toml::de::Error| {
        let near = |key: &str| {
            let distance = |known: &&String| strsim::damerau_levenshtein(known, key);
            known
                .iter()
                .min_by_key(distance)
                .map(|name| format!("; did you mean {section}.{name}?"))
                .unwrap_or_default()
        };
        let unknown =
            settings.iter().map(|(key, _)| key).find(|key| error.message().contains(&format!("unknown field `{key}`")));
        match unknown {
            Some(key) => usage(format!("--set {section}.{key}: no such setting{}", near(key))),
            None => usage(format!("--set {section}: {}", error.message())),
        }
    })
}
