//! `gpufeed plan`: what storage N GPUs need, single predictions for scripts, and how well the predictions hold.

pub(crate) mod args;
mod plan;
mod predict;
mod validate;

use crate::args::{PlanArgs, PlanCommand};
use crate::exit::Exit;

/// Does what was asked for: one prediction, the validation, or the plan itself.
///
/// # Errors
/// When a model, GPU or engine is not known, or a flag makes no sense.
pub(crate) fn run(args: &PlanArgs) -> anyhow::Result<Exit> {
    match &args.command {
        Some(PlanCommand::Ttft(args)) => predict::ttft(args),
        Some(PlanCommand::Itl(args)) => predict::itl(args),
        None if args.validate => validate::run(args.format),
        None => plan::run(args),
    }
}
