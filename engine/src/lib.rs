//! Runs machines over transports and measures.

mod brain;
pub mod conformance;
pub mod cpu;
pub mod fault;
pub mod measured;
pub mod memory;
mod payload;
pub mod phases;
pub mod record;
pub mod settings;
pub mod simulated;
pub mod transport;
pub mod two;
pub mod wall;
pub mod watch;

pub use measured::{CpuUse, Histograms, Measured, RunError};
pub use settings::{Landing, Second, Settings, Verify, WarmUp};
pub use watch::{Phase, Progress, Watch};
