//! What to replay, as pure state machines: no async, no clocks, no I/O.

pub mod inference;
pub mod machine;
#[cfg(test)]
mod driver;
pub mod op;
pub mod ops;
pub mod prepare;
pub mod rag;
pub mod random;
pub mod schedule;
pub mod trace;
pub mod training;
