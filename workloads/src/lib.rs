//! What to replay, as pure state machines: no async, no clocks, no I/O.

#[cfg(test)]
mod driver;
pub mod inference;
pub mod kv;
pub mod machine;
pub mod op;
pub mod ops;
pub mod prepare;
pub mod rag;
pub mod random;
pub mod samples;
pub mod schedule;
pub mod search;
pub mod storage;
pub mod trace;
pub mod training;
