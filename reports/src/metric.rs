//! Figures of a report by their path, as claims and gates name them.
//!
//! A path is the key path of `report.json` with dots: `verdict`, `run.duration_s`. A path that starts with a member's
//! name or with a section's key means that member's: `training.au_ratio`, `kv.gpu.useful_ratio`. Operations are named
//! by their verb: `kv.operations.get.service_time.p99_ns`, or `operations.get.ops_per_s` in the first member that has it.

use gpufeed_schema::RunReport;
use serde_json::Value;

/// A report whose figures can be looked up.
#[derive(Debug)]
pub struct Metrics(Value);

impl Metrics {
    /// Of a report.
    #[must_use]
    pub fn of(report: &RunReport) -> Self {
        Self(serde_json::to_value(report).unwrap_or_default())
    }

    /// The number at a path; booleans are 0 and 1. `None` where the path names nothing or the figure is null.
    #[must_use]
    pub fn number(&self, path: &str) -> Option<f64> {
        match self.find(path)? {
            Value::Bool(yes) => Some(f64::from(u8::from(*yes))),
            value => value.as_f64().filter(|v| v.is_finite()),
        }
    }

    /// The value at a path.
    #[must_use]
    pub fn find(&self, path: &str) -> Option<&Value> {
        let steps: Vec<&str> = path.split('.').filter(|step| !step.is_empty()).collect();
        let members = self.0.get("members").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        let (first, rest) = steps.split_first()?;
        walk(&self.0, &steps)
            .or_else(|| {
                let named = members.iter().filter(|m| m.get("name").and_then(Value::as_str) == Some(first));
                named.flat_map(|m| [walk(m, rest), m.get(*first).and_then(|s| walk(s, rest))]).flatten().next()
            })
            .or_else(|| members.iter().find_map(|m| walk(m, &steps)))
            .filter(|value| !value.is_null())
    }
}

fn walk<'a>(value: &'a Value, steps: &[&str]) -> Option<&'a Value> {
    steps.iter().try_fold(value, |value, step| match value {
        Value::Array(items) => step
            .parse::<usize>()
            .ok()
            .and_then(|i| items.get(i))
            .or_else(|| items.iter().find(|i| ["op", "name"].iter().any(|k| i.get(k).and_then(Value::as_str) == Some(step)))),
        other => other.get(step),
    })
}
