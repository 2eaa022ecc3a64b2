//! Units, and model, GPU, workload, storage and claims data, each figure with its source.

pub mod units;
