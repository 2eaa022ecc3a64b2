//! What storage N GPUs of a kind need.

use clap::Args;

use crate::args::PlanArgs;
use crate::exit::{Exit, usage};

/// Flags of `gpufeed plan` itself.
#[derive(Debug, Clone, Default, Args)]
pub struct CapacityArgs {}

/// Plans.
///
/// # Errors
/// When a flag makes no sense.
pub(crate) fn run(_args: &PlanArgs) -> anyhow::Result<Exit> {
    Err(usage("say what to predict: `gpufeed plan ttft`, `gpufeed plan itl`, or `gpufeed plan --validate`"))
}
