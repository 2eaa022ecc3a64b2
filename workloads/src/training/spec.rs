//! What a training run reads: data set, sample sizes, order, and the accelerators that consume it.

use std::sync::Arc;
use std::time::Duration;

use gpufeed_profiles::units::duration;
use serde::{Deserialize, Serialize};

use crate::machine::{Dataset, ObjectRun, Sizes};
use crate::op::{Key, KeyStyle, Names, Op, Space};
use crate::random::{Permutation, mix, mix2, normal_quantile, unit};

/// How batches are loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LoaderKind {
    /// PyTorch's `DataLoader`: a reader process reads a whole batch, sample after sample; batch k belongs to reader
    /// k mod r and is handed over in order. Without readers the training process reads each batch itself.
    #[default]
    Pytorch,
    /// tf.data's `map(num_parallel_calls=r).batch(b).prefetch(p)`: r reads at a time, in order of samples, whichever
    /// batch they belong to.
    Tensorflow,
}

/// A training run, every default resolved. MLPerf Storage's names are given where they differ.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainingSpec {
    /// Workload: `unet3d`, `resnet50`, …
    pub model: String,
    /// Kind of accelerator emulated: `h100`, …
    pub accelerator: String,
    /// Emulated accelerators, in data-parallel lock-step.
    pub accelerators: u32,
    /// Files of the data set (`num_files_train`).
    pub files: u64,
    /// Samples of each file. One: the file is read whole; more: a ranged GET each.
    pub samples_per_file: u64,
    /// Mean bytes of a sample (`record_length_bytes`).
    pub sample_bytes: f64,
    /// Standard deviation of the above, before truncation; all samples of a file have the same size.
    pub sample_bytes_sigma: f64,
    /// Samples of a step on one accelerator (`batch_size`).
    pub batch: u32,
    /// Compute of a step (`computation_time`).
    #[serde(with = "duration")]
    pub compute: Duration,
    /// How batches are loaded.
    pub loader: LoaderKind,
    /// Readers of each accelerator (`read_threads`).
    pub readers: u32,
    /// Batches wanted ahead (`prefetch_size`). PyTorch rounds it up to a multiple of the readers.
    pub prefetch: u32,
    /// Whether each epoch has an order of its own.
    pub shuffle: bool,
    /// Epochs to run; without it the run ends when it is stopped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epochs: Option<u32>,
    /// Accelerator utilization that passes, 0..=1.
    pub au_threshold_ratio: f64,
    /// Text before a file's number in its key.
    pub prefix: String,
    /// Text after it.
    pub suffix: String,
    /// Seed of sizes and orders.
    pub seed: u64,
}

/// Why a training run cannot be as asked.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum TrainingError {
    /// Something is zero that cannot be.
    #[error("{0} must be at least 1")]
    Zero(&'static str),
    /// Sizes make no sense.
    #[error(
        "samples of {mean} ± {sigma} bytes cannot be made: the mean must be at least 1, the deviation not negative"
    )]
    SampleBytes {
        /// Mean bytes.
        mean: f64,
        /// Their standard deviation.
        sigma: f64,
    },
    /// No compute.
    #[error("a step without compute has no utilization: give a compute time above 0")]
    Compute,
    /// Not a ratio.
    #[error("a utilization threshold of {0} is not a ratio: write 0.9 for 90%")]
    Threshold(f64),
    /// Not one step.
    #[error(
        "{samples} samples are not two steps of {batch} for each of {accelerators} accelerators: use at least {files} files, or fewer accelerators"
    )]
    TooFewSamples {
        /// Samples of the data set.
        samples: u64,
        /// Samples of a step.
        batch: u32,
        /// Accelerators.
        accelerators: u32,
        /// Files that would do.
        files: u64,
    },
    /// More than can be numbered.
    #[error("{0} lanes (accelerators · readers) are more than one process can open: use fewer")]
    TooManyLanes(u64),
    /// More than sizes and numbers can hold.
    #[error("{files} files of {samples_per_file} samples are more than can be numbered: use fewer")]
    TooManySamples {
        /// Files of the data set.
        files: u64,
        /// Samples of each.
        samples_per_file: u64,
    },
}

impl TrainingSpec {
    /// Samples of the data set.
    #[must_use]
    pub const fn samples(&self) -> u64 {
        self.files.saturating_mul(self.samples_per_file)
    }

    /// Steps of an epoch on each accelerator: whole batches only, `⌊files · samples_per_file / batch / ranks⌋`.
    #[must_use]
    pub const fn steps(&self) -> u64 {
        self.samples() / self.batch as u64 / self.accelerators as u64
    }

    /// Checks that it can be run.
    ///
    /// # Errors
    /// When a count is zero, sizes, compute or threshold make no sense, or the samples do not suffice for two steps;
    /// the sentence says which.
    pub fn check(&self) -> Result<(), TrainingError> {
        let counts = [
            ("the number of accelerators", u64::from(self.accelerators)),
            ("the number of files", self.files),
            ("the number of samples in a file", self.samples_per_file),
            ("the batch", u64::from(self.batch)),
            ("the number of epochs", self.epochs.map_or(1, u64::from)),
        ];
        if let Some((what, _)) = counts.into_iter().find(|(_, count)| *count == 0) {
            return Err(TrainingError::Zero(what));
        }
        let (mean, sigma) = (self.sample_bytes, self.sample_bytes_sigma);
        let lanes = u64::from(self.accelerators) * u64::from(self.readers.max(1));
        let needed = u64::from(self.batch).saturating_mul(2 * u64::from(self.accelerators));
        if !((1.0..1e15).contains(&mean) && sigma >= 0.0 && sigma.is_finite()) {
            Err(TrainingError::SampleBytes { mean, sigma })
        } else if self.compute.is_zero() {
            Err(TrainingError::Compute)
        } else if !(0.0..=1.0).contains(&self.au_threshold_ratio) {
            Err(TrainingError::Threshold(self.au_threshold_ratio))
        } else if lanes > 1 << 20 {
            Err(TrainingError::TooManyLanes(lanes))
        } else if self.files >= 100_000_000 || self.samples() >= 1 << 53 {
            Err(TrainingError::TooManySamples { files: self.files, samples_per_file: self.samples_per_file })
        } else if self.samples() < needed {
            let files = needed.div_ceil(self.samples_per_file);
            let (samples, batch, accelerators) = (self.samples(), self.batch, self.accelerators);
            Err(TrainingError::TooFewSamples { samples, batch, accelerators, files })
        } else {
            Ok(())
        }
    }

    /// Files MLPerf Storage asks for, so that no cache holds the data set (facts: `min_samples = max(500 · batch ·
    /// accelerators, 5 · hosts · memory_bytes / record_length)`), for `memory_bytes` of memory on each of `hosts`
    /// client hosts.
    #[must_use]
    pub fn files_by_rules(&self, hosts: u32, memory_bytes: u64) -> u64 {
        let steps = 500 * u128::from(self.batch) * u128::from(self.accelerators);
        let cache = 5.0 * f64::from(hosts) * memory_bytes as f64 / self.sample_bytes;
        let samples = steps.max(cache.ceil() as u128);
        u64::try_from(samples.div_ceil(u128::from(self.samples_per_file.max(1)))).unwrap_or(u64::MAX)
    }

    /// What a smaller data set than MLPerf's does to the figures, in words; none where it is large enough.
    #[must_use]
    pub fn scaling(&self, hosts: u32, memory_bytes: u64) -> Option<String> {
        let rule = self.files_by_rules(hosts, memory_bytes);
        (self.files < rule).then(|| {
            format!(
                "{} files instead of the {rule} that MLPerf Storage's size rule asks for: caches of client and target may serve reads, and short epochs of {} steps flatter the utilization",
                self.files,
                self.steps()
            )
        })
    }

    /// Rate of reads at which all accelerators would be busy all the time, in bytes per second.
    #[must_use]
    pub fn needed_bytes_per_s(&self) -> f64 {
        f64::from(self.accelerators) * f64::from(self.batch) * self.sample_bytes / self.compute.as_secs_f64()
    }

    /// PyTorch's readers; one for a training process that reads by itself.
    pub(super) const fn readers_or_self(&self) -> u32 {
        if self.readers == 0 { 1 } else { self.readers }
    }
}

/// The data set with its sizes and the order in which it is read.
#[derive(Debug, Clone)]
pub(super) struct Samples {
    samples_per_file: u64,
    samples: u64,
    accelerators: u32,
    seed: u64,
    shuffle: bool,
    files: u64,
    /// Bytes of a sample, by file where they differ.
    sizes: Sizes,
}

/// The samples one accelerator reads in one epoch: a contiguous range of the data set in an order of its own.
#[derive(Debug, Clone, Copy)]
pub(super) struct Order {
    first: u64,
    places: Option<Permutation>,
}

impl Order {
    /// The sample at a position of the epoch.
    pub(super) const fn sample(&self, position: u64) -> u64 {
        self.first
            + match &self.places {
                Some(places) => places.at(position),
                None => position,
            }
    }
}

/// Sample size of a file: normal, cut symmetrically so that the mean stays, at three deviations or where a sample
/// would be under a twentieth of the mean.
fn truncated_normal(mean: f64, sigma: f64, mut hash: u64) -> u64 {
    let cut = (0.95 * mean / sigma).min(3.0);
    loop {
        hash = mix(hash);
        let z = normal_quantile(unit(hash) + f64::EPSILON / 4.0);
        if z.abs() <= cut {
            return (mean + sigma * z).round().max(1.0) as u64;
        }
    }
}

impl Samples {
    pub(super) fn new(spec: &TrainingSpec) -> Self {
        let (mean, sigma) = (spec.sample_bytes, spec.sample_bytes_sigma);
        let sizes = if sigma == 0.0 {
            Sizes::Fixed(mean.round() as u64)
        } else {
            let seed = mix2(spec.seed, 0x5a3e);
            Sizes::Each((0..spec.files).map(|file| truncated_normal(mean, sigma, mix2(seed, file))).collect())
        };
        Self {
            samples_per_file: spec.samples_per_file,
            samples: spec.samples(),
            accelerators: spec.accelerators,
            seed: spec.seed,
            shuffle: spec.shuffle,
            files: spec.files,
            sizes,
        }
    }

    pub(super) fn names(spec: &TrainingSpec) -> Names {
        let space = Space { before: spec.prefix.clone(), after: spec.suffix.clone(), style: KeyStyle::Index(8) };
        Names { spaces: vec![space] }
    }

    pub(super) fn dataset(&self) -> Dataset {
        let sizes = match &self.sizes {
            Sizes::Fixed(bytes) => Sizes::Fixed(bytes * self.samples_per_file),
            Sizes::Each(sizes) if self.samples_per_file == 1 => Sizes::Each(Arc::clone(sizes)),
            Sizes::Each(sizes) => Sizes::Each(sizes.iter().map(|bytes| bytes * self.samples_per_file).collect()),
        };
        Dataset { runs: vec![ObjectRun { first: Key::default(), count: self.files, sizes }] }
    }

    /// What accelerator `rank` reads in `epoch`.
    pub(super) fn order(&self, epoch: u32, rank: u32) -> Order {
        let part = |n: u32| (u128::from(self.samples) * u128::from(n) / u128::from(self.accelerators)) as u64;
        let (first, end) = (part(rank), part(rank + 1));
        let key = mix2(mix2(self.seed, u64::from(epoch)), u64::from(rank));
        Order { first, places: self.shuffle.then(|| Permutation::new(end - first, key)) }
    }

    /// The read of a sample.
    pub(super) fn read(&self, sample: u64) -> Op {
        let (file, index) = (sample / self.samples_per_file, sample % self.samples_per_file);
        let bytes = match &self.sizes {
            Sizes::Fixed(bytes) => *bytes,
            Sizes::Each(sizes) => sizes[file as usize],
        };
        let key = Key { id: file, ..Key::default() };
        if self.samples_per_file == 1 { Op::get(key, bytes) } else { Op::get_range(key, index * bytes, bytes) }
    }
}
