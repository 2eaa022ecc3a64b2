//! Runs machines over transports and measures.

pub mod transport;
