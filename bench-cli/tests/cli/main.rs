//! The command line, as a user meets it: the real program with real servers, in directories and on ports of its own.
//!
//! [`program`] runs it; the others hold what it must do.
#![expect(unreachable_pub, reason = "a test program has no users")]

mod capacity;
mod inference;
mod interrupts;
mod kv_wire;
mod load;
mod outputs;
mod plans;
mod predictions;
mod program;
mod reach;
mod targets;
mod tiers;
mod topology;
mod traces;
mod usage;
