//! How a parameter is spread: one number, or a distribution written as text.

use std::fmt;
use std::str::FromStr;

use rand::Rng;
use rand_distr::{Distribution, Exp1, StandardNormal};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A distribution of a quantity, in whatever unit the parameter's name says.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Spread {
    /// Always this: `512`.
    Fixed(f64),
    /// Evenly between two bounds: `uniform(100,200)`.
    Uniform(f64, f64),
    /// Exponential with this mean: `exp(300)`.
    Exponential(f64),
    /// Log-normal with this median and this standard deviation of the logarithm: `lognormal(300,0.8)`.
    LogNormal(f64, f64),
    /// Geometric from one up, with this mean: `geometric(4)`.
    Geometric(f64),
}

/// Text that is no [`Spread`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no distribution; write it like 512, uniform(100,200), exp(300), lognormal(300,0.8) or geometric(4)")]
pub struct SpreadError(String);

impl Spread {
    /// Draws a value.
    pub fn sample(&self, rng: &mut impl Rng) -> f64 {
        match *self {
            Self::Fixed(value) => value,
            Self::Uniform(low, high) => low + (high - low) * rng.random::<f64>(),
            Self::Exponential(mean) => {
                let unit: f64 = Exp1.sample(rng);
                mean * unit
            }
            Self::LogNormal(median, sigma) => {
                let unit: f64 = StandardNormal.sample(rng);
                median * (sigma * unit).exp()
            }
            Self::Geometric(mean) if mean <= 1.0 => 1.0,
            // Inverse of P(X > k) = (1 − 1/mean)^k.
            Self::Geometric(mean) => {
                let unit: f64 = 1.0 - rng.random::<f64>();
                1.0 + (unit.ln() / (-1.0 / mean).ln_1p()).floor()
            }
        }
    }

    /// Draws a whole number, at least one.
    pub fn sample_count(&self, rng: &mut impl Rng) -> u32 {
        // Casting saturates.
        (self.sample(rng).round() as u32).max(1)
    }

    /// The mean of the distribution.
    #[must_use]
    pub fn mean(&self) -> f64 {
        match *self {
            Self::Fixed(value) => value,
            Self::Uniform(low, high) => low.midpoint(high),
            Self::Exponential(mean) => mean,
            Self::LogNormal(median, sigma) => median * (sigma * sigma / 2.0).exp(),
            Self::Geometric(mean) => mean.max(1.0),
        }
    }
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed(value) => write!(f, "{value}"),
            Self::Uniform(low, high) => write!(f, "uniform({low},{high})"),
            Self::Exponential(mean) => write!(f, "exp({mean})"),
            Self::LogNormal(median, sigma) => write!(f, "lognormal({median},{sigma})"),
            Self::Geometric(mean) => write!(f, "geometric({mean})"),
        }
    }
}

impl FromStr for Spread {
    type Err = SpreadError;

    fn from_str(text: &str) -> Result<Self, SpreadError> {
        let error = || SpreadError(text.to_owned());
        let number = |text: &str| {
            text.trim().parse::<f64>().ok().filter(|value| value.is_finite() && *value >= 0.0).ok_or_else(error)
        };
        let text = text.trim();
        let Some((name, rest)) = text.split_once('(') else { return number(text).map(Self::Fixed) };
        let inside = rest.strip_suffix(')').ok_or_else(error)?;
        let values = inside.split(',').map(number).collect::<Result<Vec<f64>, _>>()?;
        Ok(match (name.trim(), &values[..]) {
            ("fixed", &[value]) => Self::Fixed(value),
            ("uniform", &[low, high]) if low <= high => Self::Uniform(low, high),
            ("exp", &[mean]) => Self::Exponential(mean),
            ("lognormal", &[median, sigma]) => Self::LogNormal(median, sigma),
            ("geometric", &[mean]) if mean >= 1.0 => Self::Geometric(mean),
            _ => return Err(error()),
        })
    }
}

impl Serialize for Spread {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Fixed(value) => to.serialize_f64(*value),
            other => to.collect_str(other),
        }
    }
}

impl<'de> Deserialize<'de> for Spread {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Written {
            Number(f64),
            Text(String),
        }
        match Written::deserialize(from)? {
            Written::Number(value) => value.to_string().parse(),
            Written::Text(text) => text.parse(),
        }
        .map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    #[test]
    fn text_reads_back_and_nonsense_does_not() {
        for text in ["512", "0.5", "uniform(100,200)", "exp(300)", "lognormal(300,0.8)", "geometric(4)"] {
            let spread: Spread = text.parse().expect(text);
            assert_eq!(spread.to_string(), text);
            let json = serde_json::to_string(&spread).expect("plain");
            assert_eq!(serde_json::from_str::<Spread>(&json).expect("as written"), spread);
        }
        for text in ["", "-1", "uniform(2,1)", "uniform(1)", "exp(", "exp)", "gauss(1,2)", "geometric(0.5)", "nan"] {
            assert!(text.parse::<Spread>().is_err(), "{text}");
        }
    }

    #[test]
    fn samples_have_the_mean_they_promise() {
        let mut rng = Random::stream(1, 0);
        let n = 200_000;
        for text in ["7", "uniform(10,20)", "exp(300)", "lognormal(300,0.8)", "geometric(4)"] {
            let spread: Spread = text.parse().expect(text);
            let samples: Vec<f64> = (0..n).map(|_| spread.sample(&mut rng)).collect();
            let mean = samples.iter().sum::<f64>() / f64::from(n);
            let variance = samples.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / f64::from(n);
            let allowed = 5.0 * (variance / f64::from(n)).sqrt() + 1e-9;
            assert!((mean - spread.mean()).abs() <= allowed, "{text}: {mean}");
        }
    }
}
