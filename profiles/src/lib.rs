//! Units, and model, GPU, workload, storage and claims data, each figure with its source.

pub mod storage;
pub mod units;

/// The known name that is nearest to a mistyped one, if any is near.
fn nearest<'a>(typed: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    known
        .into_iter()
        .map(|name| (strsim::damerau_levenshtein(typed, name), name))
        .min_by_key(|(distance, _)| *distance)
        .filter(|(distance, name)| *distance <= (name.len().max(typed.len()) / 3).max(1))
        .map(|(_, name)| name)
}
