//! Units as types: bytes are binary and whole, rates are SI, durations are [`std::time::Duration`].
//!
//! Text forms follow the habit of the field: sizes are written in binary units (`4KiB`, `2MiB`) and SI ones where the
//! writer says so (`5GB`); rates in SI (`2.5GB/s`, `400Gbit/s`); durations as `200us`, `2ms`, `1.5s`, `3m`, `1h`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Text that is not a quantity of the unit asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a {what}; write it like {example}")]
pub struct UnitError {
    text: String,
    what: &'static str,
    example: &'static str,
}

const fn unit_error(what: &'static str, example: &'static str) -> impl Fn(&str) -> UnitError {
    move |text| UnitError { text: text.to_owned(), what, example }
}

/// A whole number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Bytes(pub u64);

/// A rate in bytes per second.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd, Default)]
pub struct BytesPerSec(pub f64);

/// A number of tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Tokens(pub u64);

/// A rate of floating-point operations per second.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd, Default)]
pub struct FlopsPerSec(pub f64);

/// Splits `12.5 MiB` into its number and its unit.
fn split(text: &str) -> Option<(f64, &str)> {
    let text = text.trim();
    let end = text
        .char_indices()
        .find(|&(i, c)| {
            let exponent = matches!(c, 'e' | 'E')
                && i > 0
                && text[i + 1..].starts_with(|c: char| c.is_ascii_digit() || c == '-' || c == '+');
            let sign = matches!(c, '-' | '+') && i > 0 && matches!(text.as_bytes()[i - 1], b'e' | b'E');
            !(c.is_ascii_digit() || c == '.' || c == '_' || exponent || sign)
        })
        .map_or(text.len(), |(i, _)| i);
    let number: f64 = text[..end].replace('_', "").parse().ok()?;
    (number.is_finite() && number >= 0.0).then(|| (number, text[end..].trim()))
}

fn size_factor(unit: &str) -> Option<f64> {
    Some(match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 1.0,
        "kib" | "k" => 1024.0,
        "mib" | "m" => 1024f64.powi(2),
        "gib" | "g" => 1024f64.powi(3),
        "tib" | "t" => 1024f64.powi(4),
        "pib" => 1024f64.powi(5),
        "kb" => 1e3,
        "mb" => 1e6,
        "gb" => 1e9,
        "tb" => 1e12,
        "pb" => 1e15,
        _ => return None,
    })
}

impl FromStr for Bytes {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let error = unit_error("size", "4KiB, 2MiB or 5GB");
        let (number, unit) = split(text).ok_or_else(|| error(text))?;
        let bytes = number * size_factor(unit).ok_or_else(|| error(text))?;
        if bytes > u64::MAX as f64 {
            return Err(error(text));
        }
        Ok(Self(bytes.round() as u64))
    }
}

impl FromStr for BytesPerSec {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let error = unit_error("rate", "2.5GB/s, 800MiB/s or 100Gbit/s");
        let (number, unit) = split(text).ok_or_else(|| error(text))?;
        let unit = unit.strip_suffix("/s").or_else(|| unit.strip_suffix("ps")).unwrap_or(unit);
        // `Gb` is bits and `GB` bytes in a rate, as network people write them.
        let bits = unit.strip_suffix('b').filter(|prefix| prefix.len() == 1).map(|prefix| format!("{prefix}bit"));
        let unit = bits.as_deref().unwrap_or(unit);
        let factor = match unit.to_ascii_lowercase().as_str() {
            "kbit" => 1e3 / 8.0,
            "mbit" => 1e6 / 8.0,
            "gbit" => 1e9 / 8.0,
            "tbit" => 1e12 / 8.0,
            other => size_factor(other).ok_or_else(|| error(text))?,
        };
        Ok(Self(number * factor))
    }
}

impl FromStr for FlopsPerSec {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let error = unit_error("rate of floating-point operations", "989TFLOP/s");
        let (number, unit) = split(text).ok_or_else(|| error(text))?;
        let unit = unit.trim_end_matches("/s").to_ascii_uppercase();
        let factor = match unit.trim_end_matches('S') {
            "" | "FLOP" => 1.0,
            "GFLOP" => 1e9,
            "TFLOP" => 1e12,
            "PFLOP" => 1e15,
            _ => return Err(error(text)),
        };
        Ok(Self(number * factor))
    }
}

/// Reads a duration: `200us`, `2ms`, `1.5s`, `3m`, `1h30m`, the largest unit first; a bare number is seconds.
///
/// # Errors
/// When the text is not a number with one of those units.
pub fn parse_duration(text: &str) -> Result<Duration, UnitError> {
    let error = unit_error("duration", "200us, 2ms, 30s, 5m or 1h30m");
    let mut rest = text;
    let (mut nanos, mut least) = (0.0, f64::INFINITY);
    while !(rest.trim().is_empty() && least.is_finite()) {
        let (number, after) = split(rest).ok_or_else(|| error(text))?;
        let end = after.find(|c: char| c.is_ascii_digit()).unwrap_or(after.len());
        let unit = match after[..end].trim() {
            "ns" => 1.0,
            "us" | "µs" => 1e3,
            "ms" => 1e6,
            // Alone a number is seconds; after a part with a unit it would be anybody's guess.
            "" if least.is_infinite() => 1e9,
            "s" => 1e9,
            "m" | "min" => 60e9,
            "h" => 3600e9,
            _ => return Err(error(text)),
        };
        if unit >= least {
            return Err(error(text));
        }
        (nanos, least, rest) = (nanos + number * unit, unit, &after[end..]);
    }
    if nanos > u64::MAX as f64 {
        return Err(error(text));
    }
    Ok(Duration::from_nanos(nanos.round() as u64))
}

/// Writes a duration with three significant digits in the unit that suits it: `183 µs`, `2.41 ms`, `1.50 s`.
#[must_use]
pub fn show_duration(duration: Duration) -> String {
    show_nanos(duration.as_nanos() as f64)
}

/// [`show_duration`] of a number of nanoseconds.
#[must_use]
pub fn show_nanos(nanos: f64) -> String {
    let (value, unit) = match nanos.abs() {
        n if n < 999.5 => (nanos, "ns"),
        n if n < 999.5e3 => (nanos / 1e3, "µs"),
        n if n < 999.5e6 => (nanos / 1e6, "ms"),
        n if n < 600e9 => (nanos / 1e9, "s"),
        n if n < 7200e9 => (nanos / 60e9, "min"),
        _ => (nanos / 3600e9, "h"),
    };
    format!("{} {unit}", three_digits(value))
}

/// Three significant digits, never an exponent.
#[must_use]
pub fn three_digits(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        v if v >= 99.95 => format!("{value:.0}"),
        v if v >= 9.995 => format!("{value:.1}"),
        v if v >= 0.9995 => format!("{value:.2}"),
        v if v >= 0.09995 => format!("{value:.3}"),
        _ => format!("{value:.4}"),
    }
}

impl fmt::Display for Bytes {
    /// Exact sizes as they were meant (`4KiB`), others with three digits (`139.8 MiB`).
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut value = self.0 as f64;
        let mut unit = "B";
        for next in ["KiB", "MiB", "GiB", "TiB", "PiB"] {
            if value < 1024.0 {
                break;
            }
            value /= 1024.0;
            unit = next;
        }
        if value.fract() == 0.0 { write!(f, "{value} {unit}") } else { write!(f, "{} {unit}", three_digits(value)) }
    }
}

impl fmt::Display for BytesPerSec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (value, unit) = match self.0 {
            v if v < 999.5 => (v, "B/s"),
            v if v < 999.5e3 => (v / 1e3, "kB/s"),
            v if v < 999.5e6 => (v / 1e6, "MB/s"),
            v if v < 999.5e9 => (v / 1e9, "GB/s"),
            v => (v / 1e12, "TB/s"),
        };
        write!(f, "{} {unit}", three_digits(value))
    }
}

impl fmt::Display for FlopsPerSec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} TFLOP/s", three_digits(self.0 / 1e12))
    }
}

impl fmt::Display for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} tokens", self.0)
    }
}

/// A quantity in a TOML or JSON file: text with a unit, or a bare number in the base unit.
#[derive(Deserialize)]
#[serde(untagged)]
enum Written {
    Number(f64),
    Text(String),
}

macro_rules! as_text {
    ($unit:ident, $from:expr) => {
        impl<'de> Deserialize<'de> for $unit {
            fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                match Written::deserialize(from)? {
                    #[allow(clippy::redundant_closure_call)]
                    Written::Number(number) => Ok($from(number)),
                    Written::Text(text) => text.parse().map_err(serde::de::Error::custom),
                }
            }
        }
    };
}
as_text!(Bytes, |n: f64| Bytes(n.round() as u64));
as_text!(BytesPerSec, BytesPerSec);
as_text!(FlopsPerSec, FlopsPerSec);

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_u64(self.0)
    }
}

impl Serialize for BytesPerSec {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_f64(self.0)
    }
}

impl Serialize for FlopsPerSec {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_f64(self.0)
    }
}

/// Durations as text (`2ms`) in files; use with `#[serde(with = "gpufeed_profiles::units::duration")]`.
pub mod duration {
    use super::{Deserialize, Deserializer, Duration, Serializer, Written, parse_duration};

    /// Reads text with a unit, or a bare number of seconds.
    ///
    /// # Errors
    /// When the text is not a duration.
    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
        match Written::deserialize(from)? {
            Written::Number(seconds) => parse_duration(&seconds.to_string()),
            Written::Text(text) => parse_duration(&text),
        }
        .map_err(serde::de::Error::custom)
    }

    /// Writes the shortest exact text.
    ///
    /// # Errors
    /// Those of the serializer.
    pub fn serialize<S: Serializer>(duration: &Duration, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&exact(*duration))
    }

    /// The shortest text that reads back as the same duration.
    #[must_use]
    pub fn exact(duration: Duration) -> String {
        let nanos = duration.as_nanos();
        for (unit, size) in [("s", 1_000_000_000), ("ms", 1_000_000), ("us", 1000)] {
            if nanos.is_multiple_of(size) {
                return format!("{}{unit}", nanos / size);
            }
        }
        format!("{nanos}ns")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_binary_unless_written_in_si() {
        assert_eq!("4KiB".parse(), Ok(Bytes(4096)));
        assert_eq!("2 MiB".parse(), Ok(Bytes(2 << 20)));
        assert_eq!("5GB".parse(), Ok(Bytes(5_000_000_000)));
        assert_eq!("1_000".parse(), Ok(Bytes(1000)));
        assert_eq!("1e6".parse(), Ok(Bytes(1_000_000)));
        assert!("4 apples".parse::<Bytes>().is_err());
        assert!("-1".parse::<Bytes>().is_err());
        assert!("".parse::<Bytes>().is_err());
        assert_eq!(Bytes(2 << 20).to_string(), "2 MiB");
    }

    #[test]
    fn rates_are_si_and_bits_are_eighths() {
        assert_eq!("2.5GB/s".parse(), Ok(BytesPerSec(2.5e9)));
        assert_eq!("400Gbit/s".parse(), Ok(BytesPerSec(50e9)));
        assert_eq!("100Gbps".parse(), Ok(BytesPerSec(12.5e9)));
        assert_eq!("989TFLOP/s".parse(), Ok(FlopsPerSec(989e12)));
        assert_eq!("989TFLOPs".parse(), Ok(FlopsPerSec(989e12)));
    }

    #[test]
    fn durations_read_and_write_back() {
        for text in ["200us", "2ms", "1s", "3m", "1.5h", "7ns"] {
            let read = parse_duration(text).expect(text);
            assert_eq!(parse_duration(&duration::exact(read)), Ok(read));
        }
        assert_eq!(parse_duration("1h30m"), Ok(Duration::from_secs(5400)));
        assert_eq!(parse_duration("10m 20s"), Ok(Duration::from_secs(620)));
        assert_eq!(parse_duration("1.5"), Ok(Duration::from_millis(1500)));
        for wrong in ["2 fortnights", "", " ", "s", "20s10m", "1m30", "1m-30s", "5s5s", "10m.."] {
            assert!(parse_duration(wrong).is_err(), "{wrong}");
        }
        assert_eq!(show_nanos(183_412.0), "183 µs");
        assert_eq!(show_nanos(1.5e9), "1.50 s");
    }
}
