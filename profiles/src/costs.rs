//! What GPUs and storage cost: estimates, each with its source, for want of the reader's own prices.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::catalog::Sources;

/// Prices in US dollars.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Costs {
    /// Of one GPU for one hour with its share of a server, by the GPU's name.
    pub gpu_dollars_per_hour: BTreeMap<String, f64>,
    /// Of shared storage.
    pub storage: StorageCosts,
    /// Where the prices come from.
    pub sources: Sources,
}

/// Prices of shared storage.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StorageCosts {
    /// Of a decimal terabyte (10¹² bytes) of usable capacity for a month.
    pub dollars_per_tb_month: f64,
}

/// Hours of a month: 365.25 · 24 / 12.
pub const HOURS_PER_MONTH: f64 = 730.5;

impl StorageCosts {
    /// Dollars an hour for so many bytes.
    #[must_use]
    pub fn dollars_per_hour(&self, bytes: f64) -> f64 {
        bytes / 1e12 * self.dollars_per_tb_month / HOURS_PER_MONTH
    }
}

/// The prices that are built in.
///
/// # Panics
/// Never: the data is part of the program and read by a test.
#[must_use]
pub fn costs() -> Costs {
    toml::from_str(include_str!("../data/costs.toml")).expect("the embedded prices are valid")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::source_of;

    #[test]
    fn every_price_is_of_a_gpu_and_has_a_source() {
        let costs = costs();
        let gpus: Vec<String> = crate::list().into_iter().filter(|e| e.kind == "gpu").map(|e| e.name).collect();
        for (name, price) in &costs.gpu_dollars_per_hour {
            assert!(gpus.contains(name) && *price > 0.0, "{name} at {price} is not the price of a GPU");
        }
        assert!(source_of(&costs.sources, "gpu_dollars_per_hour").is_some());
        assert!(source_of(&costs.sources, "storage.dollars_per_tb_month").is_some());
    }

    #[test]
    fn a_terabyte_costs_its_price_in_a_month_of_hours() {
        let storage = StorageCosts { dollars_per_tb_month: 20.0 };
        assert!((storage.dollars_per_hour(5e12) * HOURS_PER_MONTH - 100.0).abs() < 1e-9);
    }
}
