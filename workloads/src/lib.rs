//! What to replay, as pure state machines: no async, no clocks, no I/O.

pub mod machine;
pub mod op;
pub mod prepare;
pub mod random;
pub mod schedule;
