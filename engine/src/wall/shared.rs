//! What the threads of a run share: the window, orders to stop, meters.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use gpufeed_workloads::op::Tick;

use super::station::Usage;
use crate::measured::RunError;
use crate::record::{Block, Finished, Window};

/// What the threads of a run share; written rarely, read cheaply.
pub(super) struct Shared {
    pub(super) window: Arc<Window>,
    /// The run cannot go on: every core ends at once.
    pub(super) fatal: AtomicBool,
    /// The conductor's drain is over: other cores cancel what they have.
    pub(super) abandoned: AtomicBool,
    /// The conductor's machine is over: other cores end.
    pub(super) closing: AtomicBool,
    pub(super) meters: Vec<Meter>,
}

impl Shared {
    pub(super) fn new(cores: usize) -> Self {
        Self {
            window: Arc::new(Window::default()),
            fatal: AtomicBool::new(false),
            abandoned: AtomicBool::new(false),
            closing: AtomicBool::new(false),
            meters: (0..cores).map(|_| Meter::default()).collect(),
        }
    }
}

/// How far one core is; on a cache line of its own.
#[derive(Default)]
#[repr(align(128))]
pub(super) struct Meter {
    ops: AtomicU64,
    bytes: AtomicU64,
    errors: AtomicU64,
    progress: AtomicU64,
}

impl Meter {
    pub(super) fn show(&self, ops: u64, bytes: u64, errors: u64, progress: Option<f64>) {
        self.ops.store(ops, Relaxed);
        self.bytes.store(bytes, Relaxed);
        self.errors.store(errors, Relaxed);
        self.progress.store(progress.unwrap_or(f64::NAN).to_bits(), Relaxed);
    }

    /// Successes, their bytes, failures, and the share of the work done.
    pub(super) fn read(&self) -> (u64, u64, u64, Option<f64>) {
        let progress = Some(f64::from_bits(self.progress.load(Relaxed))).filter(|p| !p.is_nan());
        (self.ops.load(Relaxed), self.bytes.load(Relaxed), self.errors.load(Relaxed), progress)
    }
}

/// What cores tell the control thread.
pub(super) enum Report {
    /// Lanes are open, or why not.
    Opened(Result<(), RunError>),
    /// An interval.
    Block(Box<Block>),
    /// The core ended, or why it broke.
    Ended(Result<Box<Ended>, RunError>),
}

/// What a core leaves.
pub(super) struct Ended {
    /// Taken as soon as the core has ended.
    pub(super) finished: Option<Finished>,
    pub(super) usage: Usage,
    pub(super) verified: u64,
    pub(super) starved: u64,
    /// When its machine ended by itself.
    pub(super) end: Option<Tick>,
    pub(super) stuck: bool,
}
