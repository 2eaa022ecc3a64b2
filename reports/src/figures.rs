//! Numbers as people read them: three significant digits, a unit, and a dash for what the sample does not support.

use gpufeed_profiles::units::{Bytes, BytesPerSec, show_nanos, three_digits};
use gpufeed_schema::{Latency, Operation};

/// Stands where a figure is not known or not supported by the sample.
pub(crate) const DASH: &str = "–";

/// A figure, or a dash where there is none or it is not a number.
pub(crate) fn or_dash(value: Option<f64>, show: impl Fn(f64) -> String) -> String {
    value.filter(|v| v.is_finite()).map_or_else(|| DASH.to_owned(), show)
}

/// Nanoseconds as a duration.
pub(crate) fn nanos(value: Option<u64>) -> String {
    or_dash(value.map(|v| v as f64), show_nanos)
}

/// A ratio as a percentage.
pub(crate) fn percent(ratio: f64) -> String {
    or_dash(Some(ratio), |r| match r * 100.0 {
        p if p != 0.0 && p.abs() < 0.01 => "<0.01%".to_owned(),
        // Above 99.95% three digits would claim a full hundred.
        p if (99.95..100.0).contains(&p) => format!("{:.2}%", (p * 100.0).floor() / 100.0),
        p => format!("{}%", three_digits(p)),
    })
}

/// A ratio somebody chose, without zeros after the point: `90%`.
pub(crate) fn goal(ratio: f64) -> String {
    or_dash(Some(ratio), |r| format!("{}%", (r * 1e4).round() / 100.0))
}

/// A ratio that may be unknown, as a percentage.
pub(crate) fn share(ratio: Option<f64>) -> String {
    ratio.map_or_else(|| DASH.to_owned(), percent)
}

/// Bytes per second.
pub(crate) fn rate(bytes_per_s: f64) -> String {
    or_dash(Some(bytes_per_s), |v| BytesPerSec(v).to_string())
}

/// A size.
pub(crate) fn size(bytes: u64) -> String {
    Bytes(bytes).to_string()
}

/// A whole number with thousands separated.
pub(crate) fn count(value: u64) -> String {
    let digits = value.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A number with three significant digits, thousands separated.
pub(crate) fn number(value: f64) -> String {
    or_dash(Some(value), |v| if v.abs() >= 999.5 { count(v.abs().round() as u64) } else { three_digits(v) })
}

/// A number in at most five characters: `12.3k`, `4.57M`.
pub(crate) fn short(value: f64) -> String {
    or_dash(Some(value), |v| match v {
        v if v.abs() < 999.5 && v.fract() == 0.0 => format!("{v}"),
        v if v.abs() < 999.5 => three_digits(v),
        v if v < 999.5e3 => format!("{}k", three_digits(v / 1e3)),
        v if v < 999.5e6 => format!("{}M", three_digits(v / 1e6)),
        v if v < 999.5e9 => format!("{}G", three_digits(v / 1e9)),
        v if v < 999.5e12 => format!("{}T", three_digits(v / 1e12)),
        v => format!("{v:.1e}"),
    })
}

/// How many times one figure is the other, as words after it: `2.4× shorter`.
pub(crate) fn times(value: f64) -> String {
    format!("{}×", three_digits(value))
}

/// `p50 / p99` of a latency.
pub(crate) fn p50_p99(latency: &Latency) -> String {
    format!("{} / {}", nanos(latency.p50_ns), nanos(latency.p99_ns))
}

/// The highest of p99, p50 and mean that the sample supports, by name. A mean says of how few it is one.
pub(crate) fn typical(latency: &Latency) -> (String, Option<f64>) {
    match (latency.p99_ns, latency.p50_ns, latency.mean_ns) {
        (Some(p99), ..) => ("p99".to_owned(), Some(p99 as f64)),
        (None, Some(p50), _) => ("p50".to_owned(), Some(p50 as f64)),
        (None, None, Some(mean)) => (format!("mean of {}", count(latency.count)), Some(mean)),
        (None, None, None) => ("p50".to_owned(), None),
    }
}

/// The same in words: `p99 1.04 s`, or `81.2 ms, the mean of 19`.
pub(crate) fn typical_words(latency: &Latency) -> String {
    match (typical(latency), latency.p50_ns.or(latency.p99_ns)) {
        ((name, value), Some(_)) => format!("{name} {}", or_dash(value, show_nanos)),
        ((_, None), None) => DASH.to_owned(),
        ((name, value), None) => format!("{}, the {name}", or_dash(value, show_nanos)),
    }
}

/// An accelerator as its maker writes it: `H100`, `L40S`.
pub(crate) fn machine(name: &str) -> String {
    name.to_uppercase()
}

/// Failed operations of all kinds.
pub(crate) fn errors(operation: &Operation) -> u64 {
    operation.errors.values().sum()
}

/// The same text in ASCII, for terminals and logs that know nothing else.
pub(crate) fn ascii(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '–' | '—' | '─' => plain.push('-'),
            'µ' => plain.push('u'),
            '×' => plain.push('x'),
            '·' | '•' => plain.push('|'),
            '≥' => plain.push_str(">="),
            '≤' => plain.push_str("<="),
            '÷' => plain.push('/'),
            '…' => plain.push_str("..."),
            '✓' => plain.push('+'),
            '✗' => plain.push('x'),
            c if c.is_ascii() => plain.push(c),
            _ => plain.push('?'),
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_have_three_digits_and_a_unit() {
        assert_eq!(percent(0.931_2), "93.1%");
        assert_eq!(percent(1.0), "100%");
        assert_eq!(percent(0.999_99), "99.99%");
        assert_eq!(percent(0.0), "0%");
        assert_eq!(percent(0.000_01), "<0.01%");
        assert_eq!(percent(f64::NAN), DASH);
        assert_eq!(count(0), "0");
        assert_eq!(count(999), "999");
        assert_eq!(count(1_234_567), "1,234,567");
        assert_eq!(number(12_345.6), "12,346");
        assert_eq!(number(12.345), "12.3");
        assert_eq!(short(12_345.0), "12.3k");
        assert_eq!(short(7.0), "7");
        assert_eq!(short(999_600.0), "1.00M");
        assert_eq!(nanos(None), DASH);
        assert_eq!(nanos(Some(2_410_000)), "2.41 ms");
    }

    #[test]
    fn ascii_leaves_nothing_else() {
        assert!(ascii("183 µs – 2.4× ≥ ≤ ÷ … é 日本").is_ascii());
        assert_eq!(ascii("183 µs"), "183 us");
    }
}
