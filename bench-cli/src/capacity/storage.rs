//! Storage that a plan is made for: a shape, figures of nodes, or a target as an earlier run measured it.

use std::path::Path;

use anyhow::Context;
use gpufeed_engine::record::hlog;
use gpufeed_profiles::storage::Shape;
use gpufeed_schema::{RunReport, TransferRates};
use gpufeed_workloads::op::Verb;
use gpufeed_workloads::storage::{MeasuredStorage, Storage, StorageModel};

use crate::exit::{OrUsage, usage};

/// Bandwidth and latency; none is no limit.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Figures {
    /// Reads.
    pub read_bytes_per_s: Option<f64>,
    /// Writes.
    pub write_bytes_per_s: Option<f64>,
    /// First byte of reads, look-ups and writes, as in a shape: `2ms`, `lognormal(2ms,0.5)`.
    pub latency: Option<String>,
}

impl Figures {
    /// No limits.
    pub(super) const NONE: Self = Self { read_bytes_per_s: None, write_bytes_per_s: None, latency: None };

    /// A latency that never varies.
    pub(super) fn latency_ns(ns: f64) -> Option<String> {
        Some(format!("{}ns", ns.round()))
    }

    /// As a shape.
    ///
    /// # Errors
    /// When the latency is not one.
    pub(super) fn shape(&self) -> anyhow::Result<Shape> {
        let rate = |op: &str, rate: Option<f64>| rate.map(|rate| format!("{op}:bandwidth={rate}B/s"));
        let parts: Vec<String> = [rate("get", self.read_bytes_per_s), rate("put", self.write_bytes_per_s)]
            .into_iter()
            .flatten()
            .chain(self.latency.iter().map(|latency| format!("all:latency={latency}")))
            .collect();
        Shape::parse(&parts).or_usage()
    }

    /// As storage that serves `concurrency` operations at a time.
    ///
    /// # Errors
    /// As [`Figures::shape`].
    pub(super) fn storage(&self, concurrency: Option<usize>, seed: u64) -> anyhow::Result<StorageModel> {
        Ok(StorageModel::new(&self.shape()?, seed, concurrency))
    }
}

/// What `--storage` names.
#[derive(Debug, Clone)]
pub(super) enum Given {
    /// A shape.
    Shape(Shape),
    /// A target that was measured.
    Measured(Box<MeasuredStorage>),
}

impl Given {
    /// Reads `report:DIR` or a shape.
    ///
    /// # Errors
    /// When the report cannot be read or holds no reads, or the shape is none.
    pub(super) fn parse(text: &str, concurrency: Option<usize>, seed: u64) -> anyhow::Result<Self> {
        match text.strip_prefix("report:") {
            Some(dir) => Ok(Self::Measured(Box::new(measured(Path::new(dir), seed)?.at_a_time(concurrency)))),
            None => Ok(Self::Shape(Shape::parse(&[text]).or_usage()?)),
        }
    }

    /// As storage that serves `concurrency` operations at a time.
    pub(super) fn storage(&self, concurrency: Option<usize>, seed: u64) -> Box<dyn Storage> {
        match self {
            Self::Shape(shape) => Box::new(StorageModel::new(shape, seed, concurrency)),
            Self::Measured(storage) => Box::new((**storage).clone()),
        }
    }
}

/// A target as a report directory has it: first bytes from `latency.hlog`, bandwidth from `report.json`.
fn measured(dir: &Path, seed: u64) -> anyhow::Result<MeasuredStorage> {
    let path = dir.join("report.json");
    let text = std::fs::read_to_string(&path)
        .map_err(|error| usage(format!("cannot read the report {}: {error}", path.display())))?;
    let report: RunReport =
        serde_json::from_str(&text).map_err(|error| usage(format!("{} is no report: {error}", path.display())))?;
    let rates = rates(&report);
    let logs = logs(dir)?;
    let mut storage = MeasuredStorage::new(seed).bandwidth(rates.read_bytes_per_s, rates.write_bytes_per_s);
    let mut found = false;
    for verb in [Verb::Get, Verb::Put, Verb::Stat] {
        let merged = hlog::merged(&logs, |tag| {
            tag.starts_with(verb.name()) && tag.ends_with("first-byte") && !tag.contains("-second-")
        });
        found |= verb == Verb::Get && !merged.is_empty();
        storage = storage.first_byte(verb, &merged);
    }
    if !found {
        return Err(usage(format!("the run in {} read nothing, so it says nothing of reads", dir.display())));
    }
    Ok(storage)
}

/// Every histogram of a directory's interval logs with its tag.
fn logs(dir: &Path) -> anyhow::Result<Vec<(String, hdrhistogram::Histogram<u64>)>> {
    let mut all = Vec::new();
    let entries = std::fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))?;
    for entry in entries {
        let path = entry.with_context(|| format!("cannot read {}", dir.display()))?.path();
        if path.to_string_lossy().ends_with("latency.hlog") {
            all.extend(hlog::read(&path).with_context(|| format!("cannot read {}", path.display()))?);
        }
    }
    Ok(all)
}

/// Bandwidth that a run's target had while it was asked; of plain load, what it achieved.
fn rates(report: &RunReport) -> TransferRates {
    let most = |a: Option<f64>, b: Option<f64>| [a, b].into_iter().flatten().reduce(f64::max);
    let of_operations = |name: &str| {
        let rate = |member: &gpufeed_schema::Member| {
            member.operations.iter().filter(|o| o.op == name).map(|o| o.bytes_per_s).sum::<f64>()
        };
        report.members.iter().map(rate).filter(|rate| *rate > 0.0).reduce(f64::max)
    };
    let kv =
        report.members.iter().filter_map(|member| member.kv.as_ref()).fold(TransferRates::default(), |rates, kv| {
            TransferRates {
                read_bytes_per_s: most(rates.read_bytes_per_s, kv.transfer.read_bytes_per_s),
                write_bytes_per_s: most(rates.write_bytes_per_s, kv.transfer.write_bytes_per_s),
            }
        });
    TransferRates {
        read_bytes_per_s: kv.read_bytes_per_s.or_else(|| of_operations("get")),
        write_bytes_per_s: kv.write_bytes_per_s.or_else(|| of_operations("put")),
    }
}
