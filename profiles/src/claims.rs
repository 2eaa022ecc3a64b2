//! What storage vendors claim, each with the figure of a report that decides it.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::catalog::Profile;

/// A claim: what it says, and which figure of `report.json` within which bounds would bear it out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Claim {
    /// Name.
    #[serde(default)]
    pub id: String,
    /// In words.
    pub text: String,
    /// Who says so, and where; of the bounds as well.
    pub source: String,
    /// Path of the figure in `report.json`; none if no run can measure it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metric: Option<String>,
    /// Path of the figure it is divided by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub over: Option<String>,
    /// Least that bears it out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at_least: Option<f64>,
    /// Most that bears it out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at_most: Option<f64>,
    /// Unit of the bounds.
    pub unit: String,
    /// Workloads that can measure it.
    pub workloads: Vec<String>,
    /// Under which conditions it was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub condition: Option<String>,
    /// What one report alone cannot show; such a claim is not measurable from it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub needs: Option<String>,
}

impl Claim {
    /// The figure this report has for the claim, if it has one.
    #[must_use]
    pub fn measure(&self, report: &Value) -> Option<f64> {
        if self.needs.is_some() {
            return None;
        }
        let figure = |path: &str| at(report, path)?.as_f64();
        let value = figure(self.metric.as_deref()?)?;
        match self.over.as_deref() {
            Some(path) => figure(path).filter(|over| *over > 0.0).map(|over| value / over),
            None => Some(value),
        }
    }

    /// Whether `measured` bears the claim out.
    #[must_use]
    pub fn met(&self, measured: f64) -> bool {
        self.at_least.is_none_or(|least| measured >= least) && self.at_most.is_none_or(|most| measured <= most)
    }

    /// The bound to show beside `measured`: the one it misses, or else the only or the lower one.
    #[must_use]
    pub fn threshold(&self, measured: Option<f64>) -> f64 {
        let beyond = |most: &f64| measured.is_some_and(|measured| measured > *most);
        self.at_most.filter(beyond).or(self.at_least).or(self.at_most).unwrap_or_default()
    }
}

/// The value at a path such as `members[].operations[op=get,carrier=http].bytes_per_s`, null counting as none.
fn at<'a>(value: &'a Value, path: &str) -> Option<&'a Value> {
    let (step, rest) = path.split_once('.').map_or((path, None), |(step, rest)| (step, Some(rest)));
    let deeper = |value: &'a Value| match rest {
        Some(rest) => at(value, rest),
        None => Some(value).filter(|value| !value.is_null()),
    };
    let Some((key, filter)) = step.strip_suffix(']').and_then(|step| step.split_once('[')) else {
        return deeper(value.get(step)?);
    };
    let wanted = |element: &&Value| {
        filter.split(',').filter_map(|pair| pair.split_once('=')).all(|(key, text)| element[key] == text)
    };
    value.get(key)?.as_array()?.iter().filter(wanted).find_map(deeper)
}

impl Profile for Claim {
    const KIND: &'static str = "claim";
    const DATA: &'static str = include_str!("../data/claims.toml");
    const NAME_KEY: &'static str = "id";

    fn set_name(&mut self, name: &str) {
        name.clone_into(&mut self.id);
    }

    fn name(&self) -> &str {
        &self.id
    }

    fn check(&self) -> Result<(), String> {
        match (self.at_least, self.at_most) {
            (None, None) => Err("a claim needs at_least or at_most".to_owned()),
            (Some(least), Some(most)) if least > most => Err("at_least is more than at_most".to_owned()),
            _ if self.metric.is_none() && self.needs.is_none() => Err("a claim needs a metric".to_owned()),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn claim(id: &str) -> Claim {
        crate::claims().into_iter().find(|claim| claim.id == id).expect(id)
    }

    fn report() -> Value {
        let get = |carrier: &str, rate: f64| json!({ "op": "get", "carrier": carrier, "bytes_per_s": rate, "response_time": { "p50_ns": 150_000 } });
        json!({ "members": [
            { "name": "training", "kv": null, "operations": [{ "op": "put", "bytes_per_s": 9e10 }, get("http", 4e10)] },
            { "name": "kv", "operations": [get("http", 5e10)], "kv": {
                "block_bytes": 33_554_432, "ttft": { "p50_ns": 100 }, "gpu": { "useful_ratio": null },
                "baselines": { "no_cache": { "ttft": { "p50_ns": 2800 } } } } },
        ] })
    }

    #[test]
    fn a_claim_reads_its_figure() {
        let measure = |id: &str| claim(id).measure(&report());
        assert_eq!(measure("kv-retrieval-200us"), Some(150_000.0));
        assert_eq!(measure("node-45gib"), Some(4e10));
        assert_eq!(measure("ttft-27x"), Some(28.0));
        assert_eq!(measure("blocks-2-to-16mb"), Some(33_554_432.0));
        for none in ["rdma-read-5us", "utilization-128k-90", "tco-40", "tokens-5x"] {
            assert_eq!(measure(none), None, "{none}");
        }
        assert_eq!(claim("ttft-27x").measure(&json!({})), None);
    }

    #[test]
    fn bounds_decide() {
        assert!(claim("kv-retrieval-200us").met(200_000.0) && !claim("kv-retrieval-200us").met(200_001.0));
        assert!(claim("ttft-27x").met(28.0) && !claim("ttft-27x").met(26.9));
        let blocks = claim("blocks-2-to-16mb");
        assert!(blocks.met(4e6) && !blocks.met(33_554_432.0) && !blocks.met(65_536.0));
        assert_eq!(blocks.threshold(Some(33_554_432.0)), 16_777_216.0);
        assert_eq!(blocks.threshold(Some(65_536.0)), 2_000_000.0);
        assert_eq!(claim("kv-retrieval-200us").threshold(None), 200_000.0);
    }
}
