//! What this client machine can reach when the target costs nothing: the ceiling that verdicts are held against.
//!
//! Two measurements against the reference server on this machine, on cores of its own: 4 KiB reads for operations per
//! second, 2 MiB reads for bytes per second. The server is on the same machine, so a client on a better network may do
//! more; a run that comes near the ceiling is told to be the client's limit, never the other way round.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};
use gpufeed_engine::settings::{Landing, Settings, Verify, WarmUp};
use gpufeed_engine::wall::Machines;
use gpufeed_engine::watch::Watch;
use gpufeed_profiles::units::{Bytes, BytesPerSec, show_duration, three_digits};
use gpufeed_workloads::machine::Workload;
use gpufeed_workloads::op::Verb;
use gpufeed_workloads::ops::{Mix, Ops, OpsSpec, SizeSpec};
use gpufeed_workloads::schedule::Load;
use serde::{Deserialize, Serialize};

use crate::args::CalibrateArgs;
use crate::client::{Purpose, Target};
use crate::plan::{RunPlan, TargetPlan};
use crate::progress::{Progress, Show};
use crate::{data, host, output};

/// Connections of each measurement.
const DEPTH: u32 = 16;
/// Length of each measurement when a run has to make its own.
const OWN: Duration = Duration::from_secs(1);

/// What a client can reach.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Ceiling {
    /// Payload of 2 MiB reads.
    pub bytes_per_s: f64,
    /// 4 KiB reads.
    pub ops_per_s: f64,
}

/// A kept calibration.
#[derive(Debug, Serialize, Deserialize)]
struct Kept {
    host: String,
    client_cores: usize,
    ceiling: Ceiling,
}

/// `gpufeed calibrate`.
///
/// # Errors
/// When the server cannot be started or the result not be kept.
pub(crate) fn run(args: &CalibrateArgs) -> anyhow::Result<()> {
    let split = host::split(&host::cores(), args.threads);
    let ceiling = measure(&split, args.duration, Show::fitting(args.json))?;
    let path = keep(split.client.len(), ceiling)?;
    if args.json {
        return output::result(&(serde_json::to_string_pretty(&ceiling)? + "\n"));
    }
    output::say(&format!("kept in {}", path.display()));
    output::result(&format!(
        "{} cores: {} of 2 MiB reads, {} reads of 4 KiB per second\n",
        split.client.len(),
        BytesPerSec(ceiling.bytes_per_s),
        three_digits(ceiling.ops_per_s)
    ))
}

/// The kept ceiling of this machine with as many client cores, or one measured now in about two seconds.
///
/// A calibration leaves cores to its server, so a run on all cores is held against the ceiling of those left, in
/// proportion.
///
/// # Errors
/// When the server cannot be started.
pub(crate) fn ceiling(cores: &[usize], show: Show) -> anyhow::Result<Ceiling> {
    let split = host::split(&host::cores(), None);
    let ceiling = match kept(split.client.len()) {
        Some(ceiling) => ceiling,
        None => measure(&split, OWN, show).context("calibration")?,
    };
    let share = cores.len() as f64 / split.client.len().max(1) as f64;
    Ok(Ceiling { bytes_per_s: ceiling.bytes_per_s * share, ops_per_s: ceiling.ops_per_s * share })
}

fn measure(split: &host::Split, duration: Duration, show: Show) -> anyhow::Result<Ceiling> {
    let target = Target::open(
        &TargetPlan::Embedded {
            store: "mem".to_owned(),
            capacity: Bytes(1 << 30),
            shape: Vec::new(),
            server_cores: split.server.clone(),
            s3_client: "raw".to_owned(),
            wire: "s3".to_owned(),
        },
        0,
    )?;
    // A machine so busy that nothing is done in that time gets more of it: a ceiling of zero would be a lie.
    let patiently = |size, objects| {
        for duration in [duration, 4 * duration, 16 * duration] {
            let rates = rates(&target, split, size, objects, duration, show)?;
            if rates.0 > 0.0 {
                return Ok(rates);
            }
        }
        bail!(
            "no read of {size} ended within {}: this machine is too busy to be calibrated",
            show_duration(16 * duration)
        )
    };
    let (_, ops_per_s) = patiently(Bytes(4 << 10), 1000)?;
    let (bytes_per_s, _) = patiently(Bytes(2 << 20), 64)?;
    Ok(Ceiling { bytes_per_s, ops_per_s })
}

/// Bytes and operations per second of reads of one size.
fn rates(
    target: &Target,
    split: &host::Split,
    size: Bytes,
    objects: u64,
    duration: Duration,
    show: Show,
) -> anyhow::Result<(f64, f64)> {
    let spec = OpsSpec {
        sizes: SizeSpec::Fixed(size),
        objects,
        prefix: format!("calibrate/{}/", size.0),
        load: Load::Closed { depth: DEPTH },
        ..OpsSpec::new(Mix::only(Verb::Get))
    };
    let run = RunPlan {
        cores: split.client.clone(),
        op_timeout: Duration::from_secs(10),
        retries: 0,
        drain: Duration::from_secs(10),
        interval: Duration::from_secs(1),
        verify_ratio: 0.0,
        landing: "discard".to_owned(),
        op_log: false,
        reuse: false,
        keep_data: true,
    };
    let machines = Ops::split(&spec, run.cores.len())?;
    if let (Some(first), Some(dataset)) = (machines.first(), data::needed(&machines)) {
        data::prepare(target, &run, 0, &first.names(), &dataset, &Watch::new())?;
    }
    let settings = Settings {
        cores: run.cores.iter().take(machines.len()).map(|core| Some(*core)).collect(),
        warm_up: WarmUp::Fixed(duration / 8),
        duration: Some(duration),
        verify: Verify::Off,
        landing: Landing::Discard,
        max_data_bytes: 4096,
        transport_name: "s3-raw".to_owned(),
        ..Settings::default()
    };
    let watch = Watch::new();
    let progress = Progress::new(show, "calibrate".to_owned(), watch.clone(), Some(duration), |_| {});
    let measured = target.drive(Purpose::Measure, &settings, Machines::PerCore(machines), &watch)?;
    drop(progress);
    let sum = |figure: fn(&gpufeed_schema::Operation) -> f64| measured.operations.iter().map(figure).sum::<f64>();
    Ok((sum(|operation| operation.bytes_per_s), sum(|operation| operation.ops_per_s)))
}

fn path() -> Option<PathBuf> {
    let cache = std::env::var_os("XDG_CACHE_HOME").filter(|path| !path.is_empty()).map(PathBuf::from);
    let cache = cache.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")))?;
    Some(cache.join("gpufeed").join("calibration.json"))
}

fn kept(client_cores: usize) -> Option<Ceiling> {
    let kept: Kept = serde_json::from_str(&fs::read_to_string(path()?).ok()?).ok()?;
    (kept.host == host::fingerprint(&host::look()) && kept.client_cores == client_cores).then_some(kept.ceiling)
}

fn keep(client_cores: usize, ceiling: Ceiling) -> anyhow::Result<PathBuf> {
    let path = path().context("cannot keep the calibration: neither XDG_CACHE_HOME nor HOME is set")?;
    let kept = Kept { host: host::fingerprint(&host::look()), client_cores, ceiling };
    let write = || -> std::io::Result<()> {
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory)?;
        }
        fs::write(&path, serde_json::to_string_pretty(&kept)?)
    };
    write().with_context(|| format!("cannot keep the calibration in {}", path.display()))?;
    Ok(path)
}
