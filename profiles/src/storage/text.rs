//! Shapes as text: reading, with errors that name the bad part, and writing back.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{Effect, Latency, Rule, Shape, ShapedOp, Stall};
use crate::units::{BytesPerSec, duration, parse_duration};

const EFFECTS: [&str; 7] = ["latency", "bandwidth", "iops", "errors", "stall", "corrupt", "short"];
const DISTRIBUTIONS: &str = "5ms, uniform(1ms,3ms), exp(2ms), lognormal(2ms,0.3) or mix(98%:1ms,2%:50ms)";

/// A shape that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("cannot read `{part}` of the storage shape: {reason}")]
pub struct ShapeError {
    part: String,
    reason: String,
}

impl Shape {
    /// Reads a shape from one text or several, each a comma-separated list of parts.
    ///
    /// # Errors
    /// Names the part that cannot be read and what is allowed in its place.
    pub fn parse(specs: &[impl AsRef<str>]) -> Result<Self, ShapeError> {
        let mut shape = Self::default();
        for spec in specs {
            for part in split(spec.as_ref()) {
                let error = |reason| ShapeError { part: part.to_owned(), reason };
                let rule = rule(part).map_err(error)?;
                shape.check(&rule).map_err(error)?;
                shape.rules.push(rule);
            }
        }
        Ok(shape)
    }

    /// Whether storage of this shape is instant and faultless.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// Two rhythms on one operation have no closed form for when a queue is served.
    fn check(&self, new: &Rule) -> Result<(), String> {
        let rhythm = |rule: &Rule| matches!(rule.effect, Effect::Stall(Stall { every: Some(_), .. }));
        let meets = |old: &Rule| old.on.is_none() || new.on.is_none() || old.on == new.on;
        match self.rules.iter().find(|old| rhythm(new) && rhythm(old) && meets(old)) {
            Some(old) => Err(format!(
                "`{old}` already stalls the same operations in a rhythm; use `stall=1s@5s` for stalls at given times"
            )),
            None => Ok(()),
        }
    }
}

impl FromStr for Shape {
    type Err = ShapeError;

    fn from_str(text: &str) -> Result<Self, ShapeError> {
        Self::parse(&[text])
    }
}

/// Parts between commas outside parentheses; empty ones are left out, so an empty text is an empty shape.
fn split(text: &str) -> impl Iterator<Item = &str> {
    let mut depth = 0u32;
    text.split(move |c| {
        match c {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            _ => {}
        }
        c == ',' && depth == 0
    })
    .map(str::trim)
    .filter(|part| !part.is_empty())
}

fn rule(part: &str) -> Result<Rule, String> {
    let (left, value) = part
        .split_once('=')
        .ok_or_else(|| format!("expected `effect=value`, with an effect of {}", EFFECTS.join(", ")))?;
    let (on, effect) = match left.split_once(':') {
        Some((op, effect)) => (operation(op.trim())?, effect.trim()),
        None => (None, left.trim()),
    };
    let value = value.trim();
    let effect = match effect {
        "latency" => Effect::Latency(latency(value, 0)?),
        "bandwidth" => {
            let BytesPerSec(rate) = value.parse().map_err(|e| format!("{e}"))?;
            Effect::Bandwidth(positive(rate, "bandwidth")?)
        }
        "iops" => {
            let rate: f64 = value.parse().map_err(|_| format!("`{value}` is not a number of operations per second"))?;
            Effect::Iops(positive(rate, "iops")?)
        }
        "errors" => errors(value)?,
        "stall" => Effect::Stall(stall(value)?),
        "corrupt" | "short" if on.is_some_and(|op| op != ShapedOp::Get) => {
            return Err(format!("`{effect}` is about the bodies of GETs; write `get:{effect}=…` or `{effect}=…`"));
        }
        "corrupt" => Effect::Corrupt { percent: percent(value)? },
        "short" => Effect::Short { percent: percent(value)? },
        other => {
            let near =
                crate::nearest(other, EFFECTS).map(|name| format!(", did you mean `{name}`")).unwrap_or_default();
            return Err(format!("no effect is called `{other}`{near}; allowed are {}", EFFECTS.join(", ")));
        }
    };
    Ok(Rule { on, effect })
}

fn operation(name: &str) -> Result<Option<ShapedOp>, String> {
    if name == "all" {
        return Ok(None);
    }
    ShapedOp::ALL.into_iter().find(|op| op.name() == name).map(Some).ok_or_else(|| {
        format!("no operation is called `{name}`; allowed are {} and all", ShapedOp::ALL.map(ShapedOp::name).join(", "))
    })
}

fn positive(rate: f64, what: &str) -> Result<f64, String> {
    if rate.is_finite() && rate > 0.0 { Ok(rate) } else { Err(format!("{what} must be more than zero")) }
}

fn nanos(text: &str) -> Result<u64, String> {
    let read = parse_duration(text).map_err(|e| e.to_string())?;
    u64::try_from(read.as_nanos()).map_err(|_| format!("`{text}` is too long"))
}

/// `2%`, or a share such as `0.02`.
fn percent(text: &str) -> Result<f64, String> {
    let value = match text.strip_suffix('%') {
        Some(percent) => percent.trim().parse::<f64>(),
        None => text.parse::<f64>().map(|share| share * 100.0),
    };
    value
        .ok()
        .filter(|percent| (0.0..=100.0).contains(percent))
        .ok_or_else(|| format!("`{text}` is not a share; write it like 1% or 0.01, at most 100%"))
}

fn errors(value: &str) -> Result<Effect, String> {
    let (share, status) = value.split_once(':').unwrap_or((value, "503"));
    let status = status
        .trim()
        .parse()
        .ok()
        .filter(|status| (400..600).contains(status))
        .ok_or_else(|| format!("`{}` is not an HTTP error status; use one from 400 to 599", status.trim()))?;
    Ok(Effect::Errors { percent: percent(share.trim())?, status })
}

fn stall(value: &str) -> Result<Stall, String> {
    let (rhythm, at) = match value.split_once('@') {
        Some((rhythm, at)) => (rhythm.trim(), Some(nanos(at.trim())?)),
        None => (value, None),
    };
    let (length, every) = match rhythm.split_once('/') {
        Some((length, every)) => (nanos(length.trim())?, Some(nanos(every.trim())?)),
        None => (nanos(rhythm)?, None),
    };
    if length == 0 {
        return Err("a stall must be longer than zero".to_owned());
    }
    if every.is_some_and(|every| every <= length) {
        return Err("the stall would never end; its period must be longer than the stall".to_owned());
    }
    let first = at.or(every).ok_or("say when, as in `1s/10s` (every 10 s) or `1s@5s` (once, at 5 s)")?;
    Ok(Stall { length, first, every })
}

/// Mixtures within mixtures are allowed, without end they are not.
const DEEPEST: u32 = 8;

fn latency(text: &str, depth: u32) -> Result<Latency, String> {
    let Some((name, rest)) = text.split_once('(') else {
        return nanos(text).map(Latency::Fixed).map_err(|e| format!("{e}; a latency is {DISTRIBUTIONS}"));
    };
    let inner = rest.strip_suffix(')').ok_or_else(|| format!("`{text}` lacks its closing parenthesis"))?;
    let arguments: Vec<&str> = split(inner).collect();
    Ok(match (name.trim(), arguments.as_slice()) {
        ("uniform", [low, high]) => {
            let (low, high) = (nanos(low)?, nanos(high)?);
            if low > high {
                return Err(format!("`{text}` has its bounds the wrong way round"));
            }
            Latency::Uniform(low, high)
        }
        ("exp", [mean]) => Latency::Exponential(nanos(mean)?),
        ("lognormal", [median, sigma]) => {
            let read = sigma.parse().ok().filter(|sigma| (0.0..=10.0).contains(sigma));
            Latency::LogNormal(nanos(median)?, read.ok_or_else(|| format!("the sigma `{sigma}` must be from 0 to 10"))?)
        }
        ("mix", [_, ..]) if depth < DEEPEST => {
            let part = |part: &&str| {
                let (share, inner) =
                    part.split_once(':').ok_or_else(|| format!("`{part}` lacks its share, as in `98%:1ms`"))?;
                Ok((percent(share.trim())?, latency(inner.trim(), depth + 1)?))
            };
            let parts = arguments.iter().map(part).collect::<Result<Vec<_>, String>>()?;
            let sum: f64 = parts.iter().map(|(percent, _)| percent).sum();
            if (sum - 100.0).abs() > 1e-6 {
                return Err(format!("the shares of a mixture must sum to 100%, these sum to {sum}%"));
            }
            Latency::Mix(parts)
        }
        _ => return Err(format!("`{text}` is not a latency; write {DISTRIBUTIONS}")),
    })
}

/// The shortest text that reads back as the same nanoseconds.
fn exact(nanos: u64) -> String {
    duration::exact(std::time::Duration::from_nanos(nanos))
}

impl fmt::Display for Latency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed(nanos) => f.write_str(&exact(*nanos)),
            Self::Uniform(low, high) => write!(f, "uniform({},{})", exact(*low), exact(*high)),
            Self::Exponential(mean) => write!(f, "exp({})", exact(*mean)),
            Self::LogNormal(median, sigma) => write!(f, "lognormal({},{sigma})", exact(*median)),
            Self::Mix(parts) => {
                f.write_str("mix(")?;
                for (i, (percent, latency)) in parts.iter().enumerate() {
                    write!(f, "{}{percent}%:{latency}", if i == 0 { "" } else { "," })?;
                }
                f.write_str(")")
            }
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(op) = self.on {
            write!(f, "{}:", op.name())?;
        }
        match &self.effect {
            Effect::Latency(latency) => write!(f, "latency={latency}"),
            Effect::Bandwidth(rate) => {
                let readable = [(1e9, "GB/s"), (1e6, "MB/s"), (1e3, "kB/s")];
                let (value, unit) = readable
                    .into_iter()
                    .map(|(size, unit)| (rate / size, size, unit))
                    .find(|(value, size, _)| *value >= 1.0 && value * size == *rate)
                    .map_or((*rate, "B/s"), |(value, _, unit)| (value, unit));
                write!(f, "bandwidth={value}{unit}")
            }
            Effect::Iops(rate) => write!(f, "iops={rate}"),
            Effect::Errors { percent, status: 503 } => write!(f, "errors={percent}%"),
            Effect::Errors { percent, status } => write!(f, "errors={percent}%:{status}"),
            Effect::Stall(Stall { length, first, every: None }) => {
                write!(f, "stall={}@{}", exact(*length), exact(*first))
            }
            Effect::Stall(Stall { length, first, every: Some(every) }) => {
                write!(f, "stall={}/{}", exact(*length), exact(*every))?;
                if first == every { Ok(()) } else { write!(f, "@{}", exact(*first)) }
            }
            Effect::Corrupt { percent } => write!(f, "corrupt={percent}%"),
            Effect::Short { percent } => write!(f, "short={percent}%"),
        }
    }
}

impl fmt::Display for Shape {
    /// Text that reads back as the same shape.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, rule) in self.rules.iter().enumerate() {
            write!(f, "{}{rule}", if i == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

impl Serialize for Shape {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Shape {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from)?.parse().map_err(serde::de::Error::custom)
    }
}
