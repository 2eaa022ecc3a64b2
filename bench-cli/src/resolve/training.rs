//! Defaults of training reads.

use std::time::Duration;

use gpufeed_profiles::{Access, Framework, Overrides, TrainingProfile};
use gpufeed_workloads::training::{LoaderKind, TrainingSpec};

use super::{bounded_by_work, prefix, timed};
use crate::args::{SharedArgs, TrainingArgs};
use crate::exit::OrUsage;
use crate::host;
use crate::plan::{MemberPlan, SpecPlan, TargetPlan, WarmUpPlan};

const DURATION: Duration = Duration::from_secs(30);
/// Length of each member of `run quick`.
const QUICK: Duration = Duration::from_secs(12);
/// Most bytes of a data set on an embedded server unless told otherwise.
const EMBEDDED_BYTES: f64 = 4e9;
/// The same on a server that makes its payload.
const SYNTH_BYTES: f64 = 16e9;
/// Steps of an epoch that a data set smaller than MLPerf's has at least.
const STEPS: u64 = 4;

/// `run training`.
pub(super) fn member(args: &TrainingArgs, target: &TargetPlan) -> anyhow::Result<MemberPlan> {
    let overrides = Overrides::parse(&args.shared.set).or_usage()?;
    let profile = gpufeed_profiles::training(&args.profile, &overrides).or_usage()?;
    let mut spec = spec(&profile, args.accelerators, args.shared.seed, prefix(target, "training"));
    if let Some(readers) = args.readers {
        spec.readers = readers;
    }
    spec.epochs = args.epochs;
    spec.files = args.files.unwrap_or_else(|| files(&profile, &spec, target));
    spec.check().or_usage()?;
    let scaling = spec.scaling(1, host::memory_bytes());
    let spec = SpecPlan::Training(spec);
    let mut member = match args.epochs {
        Some(_) => bounded_by_work(&args.shared, "training", spec),
        None => {
            // Steps come in lumps of whole batches, which no detector of steady throughput can read.
            let timed = timed(&args.shared, "training", DURATION, spec);
            let quarter = timed.duration.unwrap_or_default() / 4;
            MemberPlan { warm_up: WarmUpPlan::Fixed(args.shared.warm_up.unwrap_or(quarter)), ..timed }
        }
    };
    member.scaling.extend(scaling);
    member.scaling.extend(access_note(&profile));
    Ok(member)
}

/// The training member of `run quick`: emulated accelerators that a laptop's loopback can feed, reading samples of a
/// hundred kilobytes, so that a short run has enough of them for percentiles.
pub(super) fn quick(shared: &SharedArgs, target: &TargetPlan) -> anyhow::Result<MemberPlan> {
    let args = TrainingArgs {
        shared: SharedArgs { duration: Some(shared.duration.unwrap_or(QUICK)), ..shared.clone() },
        profile: "resnet50-h100".to_owned(),
        accelerators: 4,
        files: Some(48),
        epochs: None,
        readers: None,
    };
    member(&args, target)
}

fn spec(profile: &TrainingProfile, accelerators: u32, seed: u64, prefix: String) -> TrainingSpec {
    TrainingSpec {
        model: profile.workload.clone(),
        accelerator: profile.accelerator.clone(),
        accelerators,
        files: profile.files,
        samples_per_file: profile.samples_per_file,
        sample_bytes: profile.record_bytes,
        sample_bytes_sigma: profile.record_bytes_sigma,
        batch: profile.batch,
        compute: profile.compute,
        loader: match profile.framework {
            Framework::Pytorch => LoaderKind::Pytorch,
            Framework::Tensorflow => LoaderKind::Tensorflow,
        },
        readers: profile.readers,
        prefetch: profile.prefetch_batches,
        shuffle: true,
        epochs: None,
        au_threshold_ratio: profile.au_threshold_ratio,
        prefix: format!("{prefix}{}/part_", profile.workload),
        suffix: format!(".{}", profile.format),
        seed,
    }
}

/// Files of the data set: MLPerf's rule where there is room for it, else what an embedded server can hold.
fn files(profile: &TrainingProfile, spec: &TrainingSpec, target: &TargetPlan) -> u64 {
    let rule = spec.files_by_rules(1, host::memory_bytes());
    let room = match target {
        TargetPlan::Embedded { store, .. } if store == "mem" => EMBEDDED_BYTES,
        TargetPlan::Embedded { .. } => SYNTH_BYTES,
        TargetPlan::Null => return rule,
        TargetPlan::S3 { .. } | TargetPlan::Kv { .. } | TargetPlan::File { .. } => return rule,
    };
    let file_bytes = profile.record_bytes * profile.samples_per_file as f64;
    let steps = STEPS * u64::from(spec.batch) * u64::from(spec.accelerators);
    let least = steps.div_ceil(profile.samples_per_file);
    ((room / file_bytes) as u64).clamp(least, rule.max(least))
}

/// What of the profile's access pattern is not replayed as it is.
fn access_note(profile: &TrainingProfile) -> Option<String> {
    (profile.access == Access::Shard).then(|| {
        format!(
            "{} streams whole shards; here each sample is a ranged GET of its own, which costs storage more requests for the same bytes",
            profile.workload
        )
    })
}
