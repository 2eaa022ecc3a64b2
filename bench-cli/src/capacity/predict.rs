//! Single predictions for scripts.

use crate::args::{ItlArgs, TtftArgs};
use crate::exit::{Exit, usage};

pub(super) fn ttft(_args: &TtftArgs) -> anyhow::Result<Exit> {
    Err(usage("not yet"))
}

pub(super) fn itl(_args: &ItlArgs) -> anyhow::Result<Exit> {
    Err(usage("not yet"))
}
