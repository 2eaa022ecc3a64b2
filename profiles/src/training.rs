//! MLPerf Storage training workloads on one kind of accelerator.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use crate::catalog::{Profile, Sources};
use crate::gpu::ratio_above_zero;
use crate::units::{self, BytesPerSec};

/// A training workload on one kind of accelerator.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainingProfile {
    /// Name (`unet3d-h100`); of the file if it is not given.
    #[serde(default)]
    pub name: String,
    /// Other names.
    #[serde(default)]
    pub aliases: Vec<String>,
    /// `unet3d`, `resnet50`, …
    pub workload: String,
    /// Accelerator whose compute time this is.
    pub accelerator: String,
    /// Mean bytes of a sample as stored.
    pub record_bytes: f64,
    /// Standard deviation of the same.
    #[serde(default)]
    pub record_bytes_sigma: f64,
    /// Mean bytes of a sample that are read, where a reader needs some columns only; all if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub read_bytes: Option<f64>,
    /// Samples of one object.
    pub samples_per_file: u64,
    /// Objects of the data set as published; see [`TrainingProfile::min_files`] for what the rules ask of a run.
    pub files: u64,
    /// Samples of a step on one accelerator.
    pub batch: u32,
    /// Time of a step's computation.
    #[serde(with = "units::duration")]
    pub compute: Duration,
    /// Passes over the data.
    pub epochs: u32,
    /// Accelerator utilization a run must reach.
    pub au_threshold_ratio: f64,
    /// How reading is organized.
    pub framework: Framework,
    /// Format of the files, for their names.
    pub format: String,
    /// How samples lie in objects and are read.
    pub access: Access,
    /// Reader workers of an accelerator; zero reads in the training loop itself.
    pub readers: u32,
    /// Batches asked for ahead, over all readers (DLIO's `prefetch_size`).
    pub prefetch_batches: u32,
    /// Sources of the figures.
    #[serde(default)]
    pub sources: Sources,
}

/// How a framework's readers share the work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Framework {
    /// One worker reads a whole batch, sample after sample; batches are handed over in order.
    Pytorch,
    /// Workers read samples.
    Tensorflow,
}

/// How samples lie in objects and are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Access {
    /// One object per sample, read whole.
    Object,
    /// Many samples per object, each read by a range.
    Ranged,
    /// Many samples per object, streamed from its start.
    Shard,
}

impl TrainingProfile {
    /// Mean bytes of a sample that are read.
    #[must_use]
    pub fn read_bytes_per_sample(&self) -> f64 {
        self.read_bytes.unwrap_or(self.record_bytes)
    }

    /// Rate at which one accelerator is busy all the time: `batch · bytes / compute`.
    #[must_use]
    pub fn needed_bytes_per_s(&self) -> BytesPerSec {
        BytesPerSec(f64::from(self.batch) * self.read_bytes_per_sample() / self.compute.as_secs_f64())
    }

    /// Objects MLPerf Storage asks for: enough for 500 steps of every accelerator, and for five times the memory of the
    /// client hosts, so that no cache can hold the data.
    #[must_use]
    pub fn min_files(&self, accelerators: u32, hosts: u32, host_memory_bytes: u64) -> u64 {
        let steps = 500 * u64::from(self.batch) * u64::from(accelerators);
        let memory = (5.0 * f64::from(hosts) * host_memory_bytes as f64 / self.record_bytes).ceil() as u64;
        steps.max(memory).div_ceil(self.samples_per_file)
    }
}

impl Profile for TrainingProfile {
    const KIND: &'static str = "training";
    const DATA: &'static str = include_str!("../data/training.toml");

    /// One profile for each accelerator of a workload; the workload's own name stands for the one on an H100, or on the
    /// first there is.
    fn expand(workload: &str, mut table: Table) -> Vec<(String, Table)> {
        let Some(Value::Table(accelerators)) = table.remove("accelerators") else { return Vec::new() };
        let usual = if accelerators.contains_key("h100") { Some("h100") } else { None };
        let usual = usual.or_else(|| accelerators.keys().next().map(String::as_str)).map(str::to_owned);
        let on = |(accelerator, own): (String, Value)| {
            let mut merged = table.clone();
            merged.insert("workload".to_owned(), Value::String(workload.to_owned()));
            if let Value::Table(own) = own {
                merged.extend(own);
            }
            if Some(&accelerator) == usual.as_ref() {
                merged.insert("aliases".to_owned(), Value::Array(vec![Value::String(workload.to_owned())]));
            }
            let name = format!("{workload}-{accelerator}");
            merged.insert("accelerator".to_owned(), Value::String(accelerator));
            (name, merged)
        };
        accelerators.into_iter().map(on).collect()
    }

    fn set_name(&mut self, name: &str) {
        name.clone_into(&mut self.name);
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn check(&self) -> Result<(), String> {
        ratio_above_zero("au_threshold_ratio", self.au_threshold_ratio)?;
        let counts = [
            ("samples_per_file", self.samples_per_file),
            ("files", self.files),
            ("batch", u64::from(self.batch)),
            ("epochs", u64::from(self.epochs)),
            ("prefetch_batches", u64::from(self.prefetch_batches)),
        ];
        if let Some((what, _)) = counts.into_iter().find(|(_, count)| *count == 0) {
            return Err(format!("{what} must be more than zero"));
        }
        if self.compute.is_zero() {
            return Err("compute must be more than zero".to_owned());
        }
        if !(self.record_bytes >= 1.0 && self.record_bytes.is_finite()) {
            return Err("record_bytes must be at least one".to_owned());
        }
        if !(self.record_bytes_sigma >= 0.0 && self.record_bytes_sigma.is_finite()) {
            return Err("record_bytes_sigma must not be negative".to_owned());
        }
        if self.read_bytes.is_some_and(|read| !(read >= 1.0 && read <= self.record_bytes)) {
            return Err("read_bytes must be at least one and at most record_bytes".to_owned());
        }
        if self.access == Access::Object && self.samples_per_file != 1 {
            return Err(format!("access by object with {} samples per file", self.samples_per_file));
        }
        Ok(())
    }
}
