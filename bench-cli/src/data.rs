//! The data set of a run: put on the target before it, taken away after it.

use std::time::Duration;

use anyhow::bail;
use gpufeed_engine::settings::{Landing, Settings, Verify, WarmUp};
use gpufeed_engine::wall::Machines;
use gpufeed_engine::watch::Watch;
use gpufeed_workloads::machine::{Dataset, Workload};
use gpufeed_workloads::op::{Key, Names};
use gpufeed_workloads::prepare::{Prepare, Tally};
use rustc_hash::{FxHashMap, FxHashSet};

use crate::client::{Purpose, Target};
use crate::plan::RunPlan;

/// Objects written at the same time.
const DEPTH: usize = 16;
/// Objects up to this size are made before they are sent.
const BUFFER: u64 = 8 << 20;

/// Writes what is missing of `dataset`.
///
/// # Errors
/// When an object cannot be written: the target is full, refuses, or is gone.
pub(crate) fn prepare(
    target: &Target,
    run: &RunPlan,
    seed: u64,
    names: &Names,
    dataset: &Dataset,
    watch: &Watch,
) -> anyhow::Result<Tally> {
    let there = if run.reuse { already_there(target, names, dataset)? } else { FxHashSet::default() };
    let machines = Prepare::split(names, dataset, DEPTH, &there, run.cores.len());
    let settings = Settings {
        cores: run.cores.iter().take(machines.len()).map(|core| Some(*core)).collect(),
        warm_up: WarmUp::None,
        duration: None,
        drain: run.drain,
        op_timeout: Duration::from_secs(120),
        seed,
        verify: Verify::Off,
        landing: Landing::Discard,
        max_data_bytes: dataset.objects().map(|(_, bytes)| bytes).max().unwrap_or(0).clamp(4096, BUFFER),
        transport_name: "prepare".to_owned(),
        ..Settings::default()
    };
    let measured = target.drive(Purpose::Control, &settings, Machines::PerCore(machines), watch)?;
    let mut all = Tally::default();
    for tally in measured.machines.iter().map(Prepare::tally) {
        all.objects += tally.objects;
        all.done += tally.done;
        all.done_bytes += tally.done_bytes;
        all.bytes += tally.bytes;
        all.skipped += tally.skipped;
        all.failed += tally.failed;
        all.first_failure = all.first_failure.or(tally.first_failure);
    }
    if let Some((key, kind)) = all.first_failure {
        let why = measured.errors.first().cloned().unwrap_or_else(|| kind.name().to_owned());
        bail!(
            "cannot write the data set: {} of {} objects failed, the first {}: {why}",
            all.failed,
            all.objects,
            names.of(key)
        );
    }
    if measured.interrupted && all.done < all.objects {
        bail!("interrupted while writing the data set: {} of {} objects are there", all.done, all.objects);
    }
    Ok(all)
}

/// The objects of `dataset` that stand on the target with their size.
fn already_there(target: &Target, names: &Names, dataset: &Dataset) -> anyhow::Result<FxHashSet<Key>> {
    let mut sizes: FxHashMap<String, u64> = FxHashMap::default();
    for space in &names.spaces {
        sizes.extend(target.list(&space.before)?);
    }
    Ok(dataset
        .objects()
        .filter(|(key, bytes)| sizes.get(&names.of(*key)).is_some_and(|there| there == bytes))
        .map(|(key, _)| key)
        .collect())
}

/// Removes everything a workload has put on the target.
///
/// # Errors
/// When the target does not let go.
pub(crate) fn clean_up(target: &Target, workload_names: &Names) -> anyhow::Result<u64> {
    let mut removed = 0;
    for space in &workload_names.spaces {
        removed += target.delete_prefix(&space.before)?;
    }
    Ok(removed)
}

/// What the machines of all cores together need before they start, if anything.
pub(crate) fn needed<W: Workload>(machines: &[W]) -> Option<Dataset> {
    let dataset = Dataset { runs: machines.iter().flat_map(|machine| machine.dataset().runs).collect() };
    (dataset.count() > 0).then_some(dataset)
}
