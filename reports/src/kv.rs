//! What a KV run says in words, the same in every format.

use gpufeed_profiles::units::show_nanos;
use gpufeed_schema::Kv;

use crate::figures::{count, percent};

/// What was computed again, by reason, as a sentence without its full stop; nothing where nothing was.
pub(crate) fn recomputed(kv: &Kv) -> Option<String> {
    let all: u64 = kv.recomputed_tokens.values().fold(0, |all, n| all.saturating_add(*n));
    let mut reasons: Vec<(&str, u64)> =
        kv.recomputed_tokens.iter().map(|(reason, n)| (reason.as_str(), *n)).filter(|(_, n)| *n > 0).collect();
    reasons.sort_by_key(|(_, n)| std::cmp::Reverse(*n));
    let each: Vec<String> =
        reasons.iter().map(|(reason, n)| format!("{reason} {}", percent(*n as f64 / all as f64))).collect();
    (all > 0).then(|| format!("Tokens computed again {}: {}", count(all), each.join(", ")))
}

/// How many requests lay on the wrong side of break-even, judged afterwards, as a sentence without its full stop;
/// nothing where none was judged.
pub(crate) fn wrong_side(kv: &Kv) -> Option<String> {
    let wrong = &kv.load.break_even_wrong;
    let of = |part: u64, all: u64, what: &str, sooner: &str, lost_s: f64| {
        let lost =
            if part > 0 { format!(", which cost {} of TTFT in all", show_nanos(lost_s * 1e9)) } else { String::new() };
        let text =
            format!("{} of {} requests that {what} would have been sooner {sooner}{lost}", count(part), count(all));
        (all > 0).then_some(text)
    };
    let loaded = of(wrong.loaded_slower, wrong.loaded, "loaded", "computing", wrong.loaded_slower_ttft_s);
    let what = "computed what the target held";
    let computed = of(wrong.computed_slower, wrong.computed, what, "loading", wrong.computed_slower_ttft_s);
    let sides: Vec<String> = [loaded, computed].into_iter().flatten().collect();
    (!sides.is_empty()).then(|| format!("Wrong side of break-even: {}", sides.join("; ")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use gpufeed_schema::{BreakEvenWrong, Loading};

    #[test]
    fn reasons_come_largest_first_and_silence_means_nothing() {
        let mut kv = Kv::default();
        assert_eq!((recomputed(&kv), wrong_side(&kv)), (None, None));
        for (reason, n) in [("chosen", 250u64), ("evicted", 750), ("tail", 0)] {
            kv.recomputed_tokens.insert(reason.to_owned(), n);
        }
        assert_eq!(recomputed(&kv).as_deref(), Some("Tokens computed again 1,000: evicted 75.0%, chosen 25.0%"));
        let break_even_wrong = BreakEvenWrong {
            loaded: 8,
            loaded_slower: 2,
            loaded_slower_ttft_s: 1.5,
            computed: 3,
            ..Default::default()
        };
        kv.load = Loading { break_even_wrong, ..Loading::default() };
        assert_eq!(
            wrong_side(&kv).as_deref(),
            Some(
                "Wrong side of break-even: 2 of 8 requests that loaded would have been sooner computing, which cost 1.50 s \
                 of TTFT in all; 0 of 3 requests that computed what the target held would have been sooner loading"
            )
        );
    }
}
