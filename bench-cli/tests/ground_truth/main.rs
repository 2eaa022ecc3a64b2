//! Ground truth on the wall clock: what the reference server injects is what a run reports. The real binary runs against
//! a real server over loopback; next to each shaped run stands an unshaped one, the control, that says what this machine
//! and both programs cost by themselves.
//!
//! **Why the best of some rounds is sound.** Other work on the machine can only delay an answer, never hasten it: a
//! deadline that has passed is noticed late, not early. So of several rounds the smallest percentile is the one least
//! disturbed. A defect of the tool (a timer that oversleeps, a clock started too late or too early) is part of every
//! round, the smallest included. What could make a figure too *small* is held apart, without any choice among rounds: no
//! operation of any round may take less than what was injected.
//!
//! **What a busy machine changes.** The smallest of hundreds of operations is hardly ever disturbed, so the minimum is held
//! to the full tolerance on any machine: a timer that is 2% off shows there. Percentiles are held to it too, but for what
//! the control's own percentile lies above the control's minimum, times 1.5: a quiet machine adds nothing, and on a busy one no
//! percentile can be known better than the control's.
//!
//! Runs that measure time take turns (see [`support::alone`]): two at once would be each other's noise.

mod caps;
mod faults;
mod kv;
mod kv_clients;
mod kv_model;
mod latency;
mod nightly;
mod stall;
mod support;
mod training;
