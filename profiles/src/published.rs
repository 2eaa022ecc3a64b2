//! What others measured: figures that predictions are held against, and which deployments a cited fit covers.

use std::time::Duration;

use serde::Deserialize;

use crate::dtype::Dtype;
use crate::units::{self, BytesPerSec, FlopsPerSec};

/// Everything in `data/published.toml`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Published {
    /// Where a cited fit stands behind the profiles' figures.
    pub fit: Vec<Fit>,
    /// Deployments that TTFT was published for.
    pub deployment: Vec<Deployment>,
    /// TTFT by context.
    pub ttft: Vec<Ttft>,
    /// TTFT with reuse over TTFT without.
    pub ratio: Vec<Ratio>,
    /// What was published without enough to predict it.
    pub note: Vec<Note>,
    /// Inter-token latency.
    pub itl: Vec<Itl>,
    /// Mooncake's Eq. 2.
    pub eq2: Vec<Eq2>,
}

/// What a fit covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Covers {
    /// TTFT without reuse.
    Cold,
    /// TTFT with KV loaded from a store.
    Reuse,
    /// Inter-token latency.
    Itl,
}

/// GPU × engine × topology with a cited fit.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fit {
    /// Name of the GPU.
    pub gpu: String,
    /// Name of the engine.
    pub engine: String,
    /// GPUs of a worker.
    pub tp: u32,
    /// What of its predictions.
    pub covers: Vec<Covers>,
    /// The measurement.
    pub source: String,
}

/// GPUs, an engine, a model and a store that figures were published for.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Deployment {
    /// Name its rows call it by.
    pub id: String,
    /// Name of the GPU.
    pub gpu: String,
    /// Name of the engine.
    pub engine: String,
    /// GPUs of a worker.
    pub tp: u32,
    /// Name of the model.
    pub model: String,
    /// Format of the weights.
    pub weights_dtype: Dtype,
    /// Format of the KV cache.
    pub kv_dtype: Dtype,
    /// Where KV is loaded from.
    pub store: StoreRate,
    /// Who published it, and where.
    pub source: String,
}

/// What a store gives, as seen by the GPUs of a worker together.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoreRate {
    /// In words.
    pub name: String,
    /// Bandwidth of a load.
    pub bytes_per_s: BytesPerSec,
    /// Time to its first byte.
    #[serde(with = "units::duration")]
    pub first_byte: Duration,
    /// Where both come from.
    pub source: String,
}

/// TTFT of one request.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ttft {
    /// Name of the row.
    pub id: String,
    /// Its deployment.
    pub deployment: String,
    /// Tokens of the prompt.
    pub context: u64,
    /// Tokens whose KV was loaded; all of them if not given.
    pub cached: Option<u64>,
    /// Without reuse, in seconds.
    pub cold_s: f64,
    /// With reuse, in seconds.
    pub reuse_s: f64,
    /// Why no prediction without reuse has to hold; one must if not given.
    pub cold_ungated: Option<String>,
    /// Why no prediction with reuse has to hold; one must if not given.
    pub reuse_ungated: Option<String>,
}

/// TTFT with reuse as a share of TTFT without.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ratio {
    /// Name of the row.
    pub id: String,
    /// Its deployment.
    pub deployment: String,
    /// Tokens of the prompt.
    pub context: u64,
    /// Tokens whose KV was loaded.
    pub cached: u64,
    /// The share.
    pub reuse_over_cold: f64,
    /// Why no prediction has to hold.
    pub ungated: String,
}

/// Published, but not with what a prediction needs.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Note {
    /// Name of the row.
    pub id: String,
    /// What was published.
    pub text: String,
    /// What is missing.
    pub ungated: String,
    /// Who published it, and where.
    pub source: String,
}

/// Inter-token latency: a line over contexts, or single points.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Itl {
    /// Name of the row.
    pub id: String,
    /// Name of the GPU.
    pub gpu: String,
    /// Name of the engine.
    pub engine: String,
    /// GPUs of a worker.
    pub tp: u32,
    /// Name of the model, with weights as published.
    pub model: String,
    /// Format of the KV cache; the model's if not given.
    pub kv_dtype: Option<Dtype>,
    /// Sequences that decode together.
    #[serde(default = "one")]
    pub batch: u64,
    /// Contexts of each sequence to compare at, in tokens.
    pub contexts: Vec<u64>,
    /// Latency without context, or at the one context given, in milliseconds.
    pub intercept_ms: f64,
    /// What each context token adds, in milliseconds.
    #[serde(default)]
    pub slope_ms_per_token: f64,
    /// Figures of the GPU that differ from its profile's, as `--set` takes them.
    #[serde(default)]
    pub set: Vec<String>,
    /// How near a prediction has to be, or is meant to be where it does not have to.
    pub within_ratio: f64,
    /// Why no prediction has to hold; one must if not given.
    pub ungated: Option<String>,
    /// Who published it, and where.
    pub source: String,
}

const fn one() -> u64 {
    1
}

impl Itl {
    /// The published latency at a context, in milliseconds.
    #[must_use]
    pub fn at_ms(&self, context: u64) -> f64 {
        self.slope_ms_per_token.mul_add(context as f64, self.intercept_ms)
    }
}

/// One result of Mooncake's Eq. 2.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Eq2 {
    /// Name of the row.
    pub id: String,
    /// `G`: compute of all GPUs.
    pub flops_per_s: FlopsPerSec,
    /// What the equation gives, in 10⁹ bytes/s.
    pub gigabytes_per_s: f64,
    /// What the paper prints.
    pub paper_gigabytes_per_s: f64,
    /// Symbols and values.
    pub source: String,
}

impl Published {
    /// The fit that stands behind predictions of one kind for a deployment, by the names of its GPU and engine.
    #[must_use]
    pub fn fit(&self, gpu: &str, engine: &str, tp: u32, what: Covers) -> Option<&Fit> {
        let here = |fit: &&Fit| fit.gpu == gpu && fit.engine == engine && fit.tp == tp;
        self.fit.iter().filter(here).find(|fit| fit.covers.contains(&what))
    }

    /// The deployment of that name.
    #[must_use]
    pub fn deployment(&self, id: &str) -> Option<&Deployment> {
        self.deployment.iter().find(|deployment| deployment.id == id)
    }
}

/// What others measured and published, each with its source.
#[must_use]
pub fn published() -> Published {
    toml::from_str(include_str!("../data/published.toml")).expect("embedded data is valid, as a test checks")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Overrides, engine, gpu, model};

    #[test]
    fn every_row_names_what_exists_and_says_where_it_is_from() {
        let published = published();
        let known = |name: &str, served: &str, by: &str, set: &[String]| {
            let set = Overrides::parse(set).expect("overrides");
            assert!(
                model(served, &set).is_ok() && gpu(name, &set).is_ok() && engine(by, &set).is_ok(),
                "{served} {name}"
            );
        };
        for d in &published.deployment {
            known(&d.gpu, &d.model, &d.engine, &[]);
            assert!(d.source.len() > 8 && d.store.source.len() > 8 && d.store.bytes_per_s.0 > 0.0, "{}", d.id);
        }
        for itl in &published.itl {
            known(&itl.gpu, &itl.model, &itl.engine, &itl.set);
            assert!(itl.source.len() > 8 && !itl.contexts.is_empty(), "{}", itl.id);
        }
        let used = published.ttft.iter().map(|row| &row.deployment);
        for id in used.chain(published.ratio.iter().map(|row| &row.deployment)) {
            assert!(published.deployment(id).is_some(), "{id}");
        }
        let ids = published.ttft.iter().map(|row| row.id.as_str());
        let rest =
            published.ratio.iter().map(|row| row.id.as_str()).chain(published.note.iter().map(|n| n.id.as_str()));
        let all: Vec<&str> = ids.chain(rest).collect();
        assert_eq!(
            all,
            [
                "V10", "V30", "V50", "V70", "V100", "W50", "W1000", "W8000", "W32000", "D235k", "D4k", "A2500", "PF",
                "MK128", "OC64"
            ]
        );
    }

    #[test]
    fn only_what_was_fitted_is_covered() {
        let published = published();
        assert!(published.fit("h100-sxm", "vllm", 1, Covers::Itl).is_some());
        assert!(published.fit("h100-sxm", "vllm", 4, Covers::Reuse).is_some());
        assert!(published.fit("h100-sxm", "vllm", 4, Covers::Cold).is_none());
        assert!(published.fit("h200-sxm", "vllm", 1, Covers::Itl).is_none());
        assert!(published.fit("h100-sxm", "sglang", 1, Covers::Cold).is_none());
    }
}
