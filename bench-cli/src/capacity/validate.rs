//! Predictions beside published figures.

use crate::args::PlanFormat;
use crate::exit::{Exit, usage};

pub(super) fn run(_format: PlanFormat) -> anyhow::Result<Exit> {
    Err(usage("not yet"))
}
