//! How workers are laid out, what is known of them to the router, and which of them die.

use std::time::Duration;

use gpufeed_profiles::units;
use serde::{Deserialize, Serialize};

use crate::kv::Requests;
use crate::kv::spec::{KvError, KvSpec};

/// Who prefills and who decodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Topology {
    /// Every worker does both.
    #[default]
    Aggregated,
    /// The first workers prefill, the others decode; a prompt's KV cache goes from one to the other over the network.
    /// The prompt's own token goes with it, so that TTFT spans prefill and transfer.
    Disaggregated,
}

/// What a block counts in KV-aware routing: least `prefill·(blocks to prefill) + blocks in use` wins.
///
/// Defaults are those of NVIDIA Dynamo's router: `--router-prefill-load-scale` 1, `overlap_score_credit` 1,
/// `--router-host-cache-hit-weight` 0.75, `--router-disk-cache-hit-weight` 0.25, `--shared-cache-multiplier` 0.5
/// (docs.nvidia.com/dynamo, router guide, as of version 1.3).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RouterWeights {
    /// `w`: a block to prefill, against a block that running requests hold.
    pub prefill: f64,
    /// Share of a block's prefill that is taken off if GPU memory has it.
    pub g1: f64,
    /// The same for host memory.
    pub g2: f64,
    /// The same for the local drive.
    pub g3: f64,
    /// The same for the target.
    pub g4: f64,
}

impl Default for RouterWeights {
    fn default() -> Self {
        Self { prefill: 1.0, g1: 1.0, g2: 0.75, g3: 0.25, g4: 0.5 }
    }
}

impl std::fmt::Display for RouterWeights {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "prefill {}, credit G1 {}, G2 {}, G3 {}, G4 {}", self.prefill, self.g1, self.g2, self.g3, self.g4)
    }
}

/// A worker that dies. Times are the trace's own, from its start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Outage {
    /// Which, from zero.
    pub worker: u32,
    /// When.
    #[serde(with = "units::duration")]
    pub at: Duration,
    /// When it is back, with empty memory; never if not given.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "optional_duration")]
    pub back: Option<Duration>,
}

mod optional_duration {
    use std::time::Duration;

    use gpufeed_profiles::units::duration;
    use serde::{Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(value: &Option<Duration>, to: S) -> Result<S::Ok, S::Error> {
        match value {
            Some(value) => duration::serialize(value, to),
            None => to.serialize_none(),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Duration>, D::Error> {
        duration::deserialize(from).map(Some)
    }
}

impl KvSpec {
    /// The workers that prefill, and those that decode; the same if there is no difference.
    #[must_use]
    pub const fn pools(&self) -> (std::ops::Range<usize>, std::ops::Range<usize>) {
        let (all, prefill) = (self.workers as usize, self.prefill_workers as usize);
        match self.topology {
            Topology::Aggregated => (0..all, 0..all),
            Topology::Disaggregated => (0..prefill, prefill..all),
        }
    }

    /// What a report says of how workers are laid out, die and are paced.
    pub(super) fn topology_inputs(&self, requests: &Requests) -> Vec<(String, String)> {
        let mut inputs = vec![("router weights".to_owned(), self.router.to_string())];
        if self.topology == Topology::Disaggregated {
            let (prefill, decode) = self.pools();
            let text = format!("{} prefill, {} decode", prefill.len(), decode.len());
            inputs.push(("workers by pool".to_owned(), text));
            inputs.push(("network per worker, each way".to_owned(), self.transfer_bytes_per_s.to_string()));
        }
        for outage in &self.outages {
            let back = outage.back.map_or("for good".to_owned(), |back| format!("until {back:?}"));
            inputs.push((format!("worker {} down from {:?}", outage.worker, outage.at), back));
        }
        if self.sessions {
            let turns = requests.list().iter().filter(|request| request.after.is_some()).count();
            let text = format!("closed loop: {turns} turns wait for the end of the one before and their think time");
            inputs.push(("conversations".to_owned(), text));
        }
        inputs
    }

    /// Checks how workers are laid out, and when they die.
    ///
    /// # Errors
    /// Names the first knob that is out of range.
    pub(super) fn check_topology(&self) -> Result<(), KvError> {
        let knob = |name, value: String, must| Err(KvError::Knob { name, value, must });
        let split = self.prefill_workers > 0 && self.prefill_workers < self.workers;
        if self.topology == Topology::Disaggregated && !split {
            let must = "at least 1 and less than `workers`, so that some prefill and some decode";
            return knob("prefill_workers", self.prefill_workers.to_string(), must);
        }
        if !(self.transfer_bytes_per_s.0.is_finite() && self.transfer_bytes_per_s.0 > 0.0) {
            return knob("transfer_bytes_per_s", self.transfer_bytes_per_s.0.to_string(), "above 0");
        }
        let weights = &self.router;
        for (name, credit) in
            [("router.g1", weights.g1), ("router.g2", weights.g2), ("router.g3", weights.g3), ("router.g4", weights.g4)]
        {
            if !(0.0..=1.0).contains(&credit) {
                return knob(name, credit.to_string(), "between 0 and 1");
            }
        }
        if !(weights.prefill.is_finite() && weights.prefill >= 0.0) {
            return knob("router.prefill", weights.prefill.to_string(), "0 or more");
        }
        for outage in &self.outages {
            if outage.worker >= self.workers {
                return knob("outages.worker", outage.worker.to_string(), "less than `workers`: they count from 0");
            }
            if outage.back.is_some_and(|back| back <= outage.at) {
                return knob("outages.back", format!("{:?}", outage.back.unwrap_or_default()), "later than `at`");
            }
        }
        let mut spans: Vec<_> = self.outages.iter().map(|outage| (outage.worker, outage.at, outage.back)).collect();
        spans.sort();
        for pair in spans.windows(2) {
            let ((worker, _, back), (next, at, _)) = (pair[0], pair[1]);
            if worker == next && back.is_none_or(|back| back > at) {
                return knob(
                    "outages.at",
                    format!("{at:?}"),
                    "later than `back` of the same worker's outage before it",
                );
            }
        }
        Ok(())
    }
}
