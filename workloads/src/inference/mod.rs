//! An emulated inference worker: iteration cost, continuous batching, GPU memory blocks, and where its time goes.
//!
//! [`Worker`](worker::Worker) is a pure state machine. Whoever owns it is its [`Host`](sequence::Host): it is asked what
//! to load, and told of tokens, blocks and finished jobs.

pub mod blocks;
pub mod cost;
pub mod ledger;
pub mod sequence;
mod serving;
pub mod worker;

#[cfg(test)]
pub(crate) mod cost_tests;
#[cfg(test)]
mod worker_tests;

pub use blocks::{BlockPool, Room, Slot};
pub use cost::{Batch, CostModel, Terms};
pub use ledger::{Cell, Ledger, Peaks, summarize};
pub use sequence::{Begin, Host, Job, Parts, Phase, Reason};
pub use worker::{Limits, Lost, Moved, Worker};

pub use crate::samples::Samples;
