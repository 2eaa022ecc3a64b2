//! The reference storage server: one store, many wires.

pub mod config;
mod s3;
pub mod store;
