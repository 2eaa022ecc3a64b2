//! The least of something that will do, found by cutting the range into as many parts as there are cores.

use super::case::Crew;

/// How exactly: the answer lies at most this share above the truth.
pub(super) const EXACT: f64 = 0.004;
/// Times a range is widened before the search gives up.
const WIDENINGS: usize = 8;
/// How much at a time.
const WIDENING: f64 = 16.0;

/// The least value, near `start`, for which `enough` says yes, to [`EXACT`]; zero where it does at `least` already,
/// none where it never does. `enough` may not say no above where it says yes, but for noise.
///
/// # Errors
/// Those of `enough`.
pub(super) fn least(
    crew: &Crew,
    least: f64,
    start: f64,
    enough: impl Fn(f64) -> anyhow::Result<bool> + Sync,
) -> anyhow::Result<Option<f64>> {
    if crew.each(&[least], |value| enough(*value))?[0] {
        return Ok(Some(0.0));
    }
    let (mut low, mut high) = (least, start.max(least * 2.0));
    for widened in 0.. {
        if crew.each(&[high], |value| enough(*value))?[0] {
            break;
        }
        if widened == WIDENINGS {
            return Ok(None);
        }
        (low, high) = (high, high * WIDENING);
    }
    while high / low > 1.0 + EXACT {
        let cuts = crew.cores().clamp(1, 16);
        let step = (high / low).powf(1.0 / (cuts + 1) as f64);
        let tries: Vec<f64> = (1..=cuts).map(|i| low * step.powi(i as i32)).collect();
        let verdicts = crew.each(&tries, |value| enough(*value))?;
        // The lowest above which all is well.
        let first = verdicts.iter().rposition(|enough| !enough).map_or(0, |last| last + 1);
        if first > 0 {
            low = tries[first - 1];
        }
        if let Some(value) = tries.get(first) {
            high = *value;
        }
    }
    Ok(Some(high))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::progress::Show;

    #[test]
    fn a_threshold_is_found_from_either_side() {
        let crew = Crew::new(Show::Nothing);
        for threshold in [3.0, 777.0, 5e9] {
            for start in [1.5, 1e3, 1e12] {
                let found = least(&crew, 1.0, start, |value| Ok(value >= threshold)).expect("no errors");
                let found = found.expect("there is one");
                assert!(found >= threshold && found <= threshold * (1.0 + EXACT), "{found} for {threshold}");
            }
        }
        assert_eq!(least(&crew, 1.0, 2.0, |_| Ok(true)).expect("no errors"), Some(0.0));
        assert_eq!(least(&crew, 1.0, 2.0, |_| Ok(false)).expect("no errors"), None);
    }
}
