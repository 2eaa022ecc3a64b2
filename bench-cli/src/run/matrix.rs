//! The table of routing × shared tier. What shares the target was measured on it, once for each routing; what does not
//! share it does no I/O, so that virtual time is its result: the baselines have it.

use gpufeed_schema::{MatrixCell, Member};
use gpufeed_workloads::kv::headline;

/// Puts the table into the first of the members that are part of it, each given with its routing.
pub(super) fn fill(members: &mut [Member], parts: &[(usize, &'static str)]) {
    let of = |&(index, routing): &(usize, &'static str)| {
        let kv = members.get(index)?.kv.as_ref()?;
        let cell = |shared_tier, source: &str, figures| MatrixCell {
            routing: routing.to_owned(),
            shared_tier,
            source: source.to_owned(),
            figures,
        };
        let local = kv.baselines.local.clone()?;
        Some([cell(false, "model", local), cell(true, "measured", headline(kv))])
    };
    let cells: Vec<MatrixCell> = parts.iter().filter_map(of).flatten().collect();
    let first = parts.first().and_then(|(index, _)| members.get_mut(*index));
    if let Some(kv) = first.and_then(|member| member.kv.as_mut()) {
        kv.matrix = cells;
    }
}
