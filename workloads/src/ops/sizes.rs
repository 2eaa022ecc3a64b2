//! Object sizes: fixed, listed, or drawn from a distribution, and always the same for the same object.

use std::fmt;
use std::str::FromStr;

use gpufeed_profiles::units::Bytes;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::random::{mix, normal_quantile, unit};

/// Where the tail of a lognormal is cut where the writer does not say: so many times its median.
const LOGNORMAL_CUT: u64 = 64;

/// How large objects are. Written as `4KiB`, `list(4KiB,1MiB)`, `uniform(4KiB,1MiB)`, `lognormal(1MiB,0.5)` (median
/// and standard deviation of the natural logarithm; a third value cuts the tail, 64 medians unless told) or
/// `mix(90%:4KiB,10%:uniform(1MiB,2MiB))`.
#[derive(Debug, Clone, PartialEq)]
pub enum SizeSpec {
    /// All the same.
    Fixed(Bytes),
    /// Each of these as often as the others.
    List(Vec<Bytes>),
    /// Any whole number of bytes between the two, both included.
    Uniform(Bytes, Bytes),
    /// Lognormal.
    Lognormal {
        /// Half of the objects are smaller.
        median: Bytes,
        /// Standard deviation of ln(size).
        sigma: f64,
        /// No object is larger: what would be has this size.
        most: Bytes,
    },
    /// Shares of others, by weight.
    Mix(Vec<(f64, SizeSpec)>),
}

/// Text that is not a size or a distribution of sizes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{text}` is not a size: {why}; write it like 4KiB, list(4KiB,1MiB), uniform(4KiB,1MiB), lognormal(1MiB,0.5) or mix(90%:4KiB,10%:1MiB)"
)]
pub struct SizeError {
    text: String,
    why: String,
}

impl SizeSpec {
    /// The size of the object that hashes to `hash`, in bytes.
    #[must_use]
    pub fn of(&self, hash: u64) -> u64 {
        match self {
            Self::Fixed(bytes) => bytes.0,
            Self::List(sizes) => sizes[(unit(mix(hash)) * sizes.len() as f64) as usize].0,
            Self::Uniform(least, most) => {
                let span = u128::from(most.0 - least.0) + 1;
                least.0 + ((u128::from(mix(hash)) * span) >> 64) as u64
            }
            Self::Lognormal { median, sigma, most } => {
                let factor = (sigma * normal_quantile(unit(mix(hash)) + f64::EPSILON / 4.0)).exp();
                ((median.0 as f64 * factor).round() as u64).clamp(1, most.0)
            }
            Self::Mix(shares) => {
                let total: f64 = shares.iter().map(|(weight, _)| weight).sum();
                let hash = mix(hash);
                let mut at = unit(hash) * total;
                for (weight, sizes) in shares {
                    at -= weight;
                    if at < 0.0 {
                        return sizes.of(mix(hash));
                    }
                }
                shares.last().map_or(0, |(_, sizes)| sizes.of(mix(hash)))
            }
        }
    }

    /// The size where all objects have the same.
    #[must_use]
    pub const fn fixed(&self) -> Option<u64> {
        match self {
            Self::Fixed(bytes) => Some(bytes.0),
            _ => None,
        }
    }

    /// The largest size an object can have, in bytes.
    #[must_use]
    pub fn most(&self) -> u64 {
        match self {
            Self::Fixed(bytes) | Self::Uniform(_, bytes) | Self::Lognormal { most: bytes, .. } => bytes.0,
            Self::List(sizes) => sizes.iter().map(|bytes| bytes.0).max().unwrap_or(0),
            Self::Mix(shares) => shares.iter().map(|(_, sizes)| sizes.most()).max().unwrap_or(0),
        }
    }
}

impl fmt::Display for SizeSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed(bytes) => exact(*bytes, f),
            Self::List(sizes) => {
                f.write_str("list(")?;
                for (i, bytes) in sizes.iter().enumerate() {
                    f.write_str(if i == 0 { "" } else { "," })?;
                    exact(*bytes, f)?;
                }
                f.write_str(")")
            }
            Self::Uniform(least, most) => {
                f.write_str("uniform(")?;
                exact(*least, f)?;
                f.write_str(",")?;
                exact(*most, f)?;
                f.write_str(")")
            }
            Self::Lognormal { median, sigma, most } => {
                f.write_str("lognormal(")?;
                exact(*median, f)?;
                write!(f, ",{sigma},")?;
                exact(*most, f)?;
                f.write_str(")")
            }
            Self::Mix(shares) => {
                f.write_str("mix(")?;
                for (i, (weight, sizes)) in shares.iter().enumerate() {
                    write!(f, "{}{weight}:{sizes}", if i == 0 { "" } else { "," })?;
                }
                f.write_str(")")
            }
        }
    }
}

/// A size in the largest binary unit that holds it exactly.
fn exact(Bytes(bytes): Bytes, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    for (unit, shift) in [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)] {
        if bytes >= 1 << shift && bytes.trailing_zeros() >= shift {
            return write!(f, "{}{unit}", bytes >> shift);
        }
    }
    write!(f, "{bytes}")
}

/// Splits at the commas that are not inside parentheses.
fn arguments(text: &str) -> impl Iterator<Item = &str> {
    let mut depth = 0;
    text.split(move |c| {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            _ => {}
        }
        c == ',' && depth == 0
    })
    .map(str::trim)
}

impl FromStr for SizeSpec {
    type Err = SizeError;

    fn from_str(text: &str) -> Result<Self, SizeError> {
        let text = text.trim();
        let error = |why: String| SizeError { text: text.to_owned(), why };
        let size = |part: &str| part.parse::<Bytes>().map_err(|_| error(format!("`{part}` has no meaning as a size")));
        let Some((name, inner)) = text.split_once('(') else { return size(text).map(Self::Fixed) };
        let inner = inner.strip_suffix(')').ok_or_else(|| error("the closing parenthesis is missing".into()))?;
        let parts: Vec<&str> = arguments(inner).collect();
        match (name.trim(), parts.as_slice()) {
            ("list", [_, ..]) => parts.iter().map(|part| size(part)).collect::<Result<_, _>>().map(Self::List),
            ("uniform", [least, most]) => match (size(least)?, size(most)?) {
                (least, most) if least <= most => Ok(Self::Uniform(least, most)),
                _ => Err(error("the second size must be at least the first".into())),
            },
            ("lognormal", [median, sigma, rest @ ..]) if rest.len() < 2 => {
                let median = size(median)?;
                let sigma = sigma.parse::<f64>().ok().filter(|sigma| (0.0..=8.0).contains(sigma));
                let sigma = sigma.ok_or_else(|| error("the standard deviation must lie between 0 and 8".into()))?;
                let most = rest.first().map_or(Ok(Bytes(median.0.saturating_mul(LOGNORMAL_CUT))), |most| size(most))?;
                if median.0 == 0 || most < median {
                    return Err(error("the median must be above 0 and not above the largest size".into()));
                }
                Ok(Self::Lognormal { median, sigma, most })
            }
            ("mix", [_, ..]) => parts.iter().map(|part| share(part, &error)).collect::<Result<_, _>>().map(Self::Mix),
            ("list" | "uniform" | "lognormal" | "mix", _) => Err(error("wrong number of values".into())),
            (name, _) => Err(error(format!("there is no distribution called `{name}`"))),
        }
    }
}

/// One `weight:size` of a mix; a weight may end in `%`.
fn share(part: &str, error: &impl Fn(String) -> SizeError) -> Result<(f64, SizeSpec), SizeError> {
    let (weight, sizes) = part.split_once(':').ok_or_else(|| error(format!("`{part}` has no weight")))?;
    let weight = weight.trim();
    let number = weight.strip_suffix('%').unwrap_or(weight).parse::<f64>().ok();
    let number = number.filter(|w| *w > 0.0 && w.is_finite());
    let weight = number.ok_or_else(|| error(format!("`{weight}` is not a weight above 0")))?;
    Ok((weight, sizes.parse()?))
}

impl Serialize for SizeSpec {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for SizeSpec {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draw(text: &str, n: u64) -> Vec<u64> {
        let sizes: SizeSpec = text.parse().expect("valid");
        (0..n).map(|i| sizes.of(mix(i))).collect()
    }

    #[test]
    fn sizes_follow_their_distribution() {
        let n = 100_000;
        let mean = |sizes: &[u64]| sizes.iter().sum::<u64>() as f64 / sizes.len() as f64;
        assert!(draw("4KiB", 10).iter().all(|&b| b == 4096));
        let list = draw("list(1KiB,2KiB,4KiB)", n);
        for size in [1024, 2048, 4096] {
            let share = list.iter().filter(|&&b| b == size).count() as f64 / n as f64;
            assert!((share - 1.0 / 3.0).abs() < 0.006, "{size}: {share}");
        }
        let uniform = draw("uniform(100,200)", n);
        assert!(uniform.iter().all(|b| (100..=200).contains(b)) && uniform.contains(&100) && uniform.contains(&200));
        // Standard error 29.15/√n = 0.092.
        assert!((mean(&uniform) - 150.0).abs() < 0.37);
        let lognormal = draw("lognormal(1MiB,0.5,1GiB)", n);
        let logs: Vec<f64> = lognormal.iter().map(|&b| (b as f64 / f64::from(1 << 20)).ln()).collect();
        let log_mean = logs.iter().sum::<f64>() / n as f64;
        let sigma = (logs.iter().map(|l| (l - log_mean).powi(2)).sum::<f64>() / n as f64).sqrt();
        assert!(log_mean.abs() < 0.0064 && (sigma - 0.5).abs() < 0.0045, "{log_mean} {sigma}");
        assert_eq!(draw("lognormal(1KiB,3,2KiB)", n).iter().max(), Some(&2048));
        let mix = draw("mix(90%:1KiB,10%:uniform(1MiB,2MiB))", n);
        let small = mix.iter().filter(|&&b| b == 1024).count() as f64 / n as f64;
        assert!((small - 0.9).abs() < 0.0038, "{small}");
    }

    #[test]
    fn text_reads_back_as_written() {
        for text in
            ["4KiB", "1000", "list(4KiB,1MiB)", "uniform(0,5)", "lognormal(1MiB,0.5,64MiB)", "mix(9:4KiB,1:list(1,2))"]
        {
            let sizes: SizeSpec = text.parse().expect(text);
            assert_eq!(sizes.to_string(), text);
        }
        assert_eq!("mix(98%:1MB,2%:2MB)".parse::<SizeSpec>().map(|s| s.most()), Ok(2_000_000));
        assert_eq!("lognormal(1MiB,0.5)".parse::<SizeSpec>().map(|s| s.most()), Ok(64 << 20));
    }

    #[test]
    fn what_is_not_a_size_is_refused_in_one_sentence() {
        for text in [
            "",
            "4 apples",
            "uniform(2,1)",
            "uniform(1)",
            "list()",
            "mix(1KiB)",
            "mix(0:1KiB)",
            "gauss(1,2)",
            "list(1",
            "lognormal(0,1)",
            "lognormal(1MiB,-1)",
        ] {
            let error = text.parse::<SizeSpec>().expect_err(text).to_string();
            assert!(error.contains(&format!("`{text}` is not a size")), "{error}");
        }
    }
}
