//! Arenas, payload bytes, io_uring on tokio, and precise timers.

pub mod arena;
pub mod bell;
pub mod counting;
pub mod payload;
pub mod ring;
pub mod timer;
