//! Axes: scales, ticks and their labels.

use std::ops::Range;

use gpufeed_profiles::units::{show_nanos, three_digits};
use plotters::coord::ranged1d::{KeyPointHint, NoDefaultFormatting, Ranged, ValueFormatter};

use crate::figures::{count, percent, rate, short};

/// How values become places.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scale {
    /// Evenly.
    Linear,
    /// By ratio.
    Log,
    /// Quantiles by the logarithm of what lies beyond them: 90%, 99% and 99.9% are equally far apart, as HDR plots do.
    Nines,
}

/// What values are, for labels. The names are known to the script.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unit {
    Nanos,
    Seconds,
    BytesPerSecond,
    PerSecond,
    Ratio,
    Count,
}

impl Unit {
    /// Its name in chart data.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Nanos => "ns",
            Self::Seconds => "s",
            Self::BytesPerSecond => "B/s",
            Self::PerSecond => "/s",
            Self::Ratio => "%",
            Self::Count => "",
        }
    }

    /// A value in full.
    pub(super) fn show(self, value: f64) -> String {
        match self {
            Self::Nanos => show_nanos(value),
            Self::Seconds => format!("{} s", three_digits(value)),
            Self::BytesPerSecond => rate(value),
            Self::PerSecond => format!("{}/s", short(value)),
            Self::Ratio => percent(value),
            Self::Count => count(value.max(0.0) as u64),
        }
    }

    /// A value as a tick label, without trailing zeros: `1 ms`, `0.5 s`.
    fn tick(self, value: f64) -> String {
        match self {
            Self::Count => trimmed(&short(value)),
            _ if value == 0.0 => "0".to_owned(),
            _ => trimmed(&self.show(value)),
        }
    }
}

/// Without zeros that end a decimal fraction.
fn trimmed(text: &str) -> String {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.' && c != ',').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    if !number.contains('.') {
        return text.to_owned();
    }
    format!("{}{unit}", number.trim_end_matches('0').trim_end_matches('.'))
}

/// One axis of a chart.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Axis {
    pub(super) scale: Scale,
    pub(super) unit: Unit,
    pub(super) lo: f64,
    pub(super) hi: f64,
}

impl Axis {
    /// An axis that holds all values, widened to round numbers. Values that its scale cannot show are ignored.
    pub(super) fn over(scale: Scale, unit: Unit, values: impl IntoIterator<Item = f64>) -> Self {
        let shown = values.into_iter().filter(|v| v.is_finite() && (scale != Scale::Log || *v > 0.0));
        let (lo, hi) = shown.fold((f64::INFINITY, f64::NEG_INFINITY), |(lo, hi), v| (lo.min(v), hi.max(v)));
        let (lo, hi) = if lo > hi { (1.0, 1.0) } else { (lo, hi) };
        match scale {
            Scale::Linear => {
                let hi = if hi > 0.0 { hi } else { 1.0 };
                let step = nice(hi / 4.0);
                Self { scale, unit, lo: 0.0, hi: (hi / step - 1e-9).ceil() * step }
            }
            Scale::Log => {
                let (lo, hi) = (below(lo), above(hi));
                Self { scale, unit, lo, hi: if hi > lo { hi } else { lo * 10.0 } }
            }
            Scale::Nines => Self { scale, unit, lo: 0.0, hi: hi.clamp(0.5, 0.999_999_9) },
        }
    }

    /// A linear axis with the given ends.
    pub(super) const fn fixed(unit: Unit, lo: f64, hi: f64) -> Self {
        Self { scale: Scale::Linear, unit, lo, hi }
    }

    /// Where a value lies, 0 at the low end and 1 at the high end.
    fn place(&self, value: f64) -> f64 {
        let warp = |v: f64| match self.scale {
            Scale::Linear => v,
            Scale::Log => v.max(self.lo).log10(),
            Scale::Nines => -(1.0 - v.clamp(0.0, 0.999_999_9)).log10(),
        };
        let (lo, hi) = (warp(self.lo), warp(self.hi));
        if hi > lo { ((warp(value) - lo) / (hi - lo)).clamp(0.0, 1.0) } else { 0.0 }
    }

    /// Tick values, about `wanted` of them or fewer.
    pub(super) fn ticks(&self, wanted: usize) -> Vec<f64> {
        let wanted = wanted.max(2);
        match self.scale {
            Scale::Linear => {
                let step = nice((self.hi - self.lo) / wanted as f64);
                let first = (self.lo / step).ceil() as i64;
                let last = (self.hi / step + 1e-9).floor() as i64;
                (first..=last).map(|i| i as f64 * step).collect()
            }
            Scale::Log => {
                let decades = (self.hi / self.lo).log10();
                let fine: &[f64] = if decades * 3.0 <= wanted as f64 + 2.0 { &[1.0, 2.0, 5.0] } else { &[1.0] };
                let stride = (decades / wanted as f64).ceil().max(1.0) as i32;
                let (from, to) = (self.lo.log10().floor() as i32, self.hi.log10().ceil() as i32);
                let ticks = (from..=to).filter(|d| (d - from) % stride == 0 || fine.len() > 1);
                let ticks = ticks.flat_map(|d| fine.iter().map(move |f| f * 10f64.powi(d)));
                let ticks: Vec<f64> =
                    ticks.filter(|t| *t >= self.lo * (1.0 - 1e-9) && *t <= self.hi * (1.0 + 1e-9)).collect();
                if ticks.len() < 2 { vec![self.lo, self.hi] } else { ticks }
            }
            Scale::Nines => {
                let all = [0.0, 0.5, 0.9, 0.99, 0.999, 0.999_9, 0.999_99, 0.999_999];
                all.into_iter().filter(|t| *t <= self.hi + 1e-9).collect()
            }
        }
    }

    /// A tick's label.
    pub(super) fn label(&self, value: f64) -> String {
        match self.scale {
            Scale::Nines => format!("{}%", trimmed(&format!("{:.4}", value * 100.0))),
            _ => self.unit.tick(value),
        }
    }
}

impl Ranged for Axis {
    type FormatOption = NoDefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, limit: (i32, i32)) -> i32 {
        limit.0 + (self.place(*value) * f64::from(limit.1 - limit.0)).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, hint: Hint) -> Vec<f64> {
        self.ticks(hint.max_num_points())
    }

    fn range(&self) -> Range<f64> {
        self.lo..self.hi
    }
}

impl ValueFormatter<f64> for Axis {
    fn format_ext(&self, value: &f64) -> String {
        self.label(*value)
    }
}

/// The smallest of 1, 2, 5 times a power of ten that is at least `step`.
fn nice(step: f64) -> f64 {
    if step.is_nan() || step <= 0.0 {
        return 1.0;
    }
    let power = 10f64.powf(step.log10().floor());
    let factor = [1.0, 2.0, 5.0, 10.0].into_iter().find(|f| f * power >= step * (1.0 - 1e-9)).unwrap_or(10.0);
    factor * power
}

fn above(value: f64) -> f64 {
    nice(value)
}

fn below(value: f64) -> f64 {
    let power = 10f64.powf(value.log10().floor());
    let factor = [5.0, 2.0, 1.0].into_iter().find(|f| f * power <= value * (1.0 + 1e-9)).unwrap_or(1.0);
    factor * power
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_numbers_enclose_the_values() {
        let axis = Axis::over(Scale::Linear, Unit::BytesPerSecond, [3.0e8, 1.3e9]);
        assert_eq!((axis.lo, axis.hi), (0.0, 1.5e9));
        assert_eq!(
            axis.ticks(4).iter().map(|t| axis.label(*t)).collect::<Vec<_>>(),
            ["0", "500 MB/s", "1 GB/s", "1.5 GB/s"]
        );
        let axis = Axis::over(Scale::Log, Unit::Nanos, [230_000.0, 4.1e7]);
        assert!((axis.lo / 2e5 - 1.0).abs() < 1e-9 && (axis.hi / 5e7 - 1.0).abs() < 1e-9, "{axis:?}");
        assert_eq!(axis.ticks(5).iter().map(|t| axis.label(*t)).collect::<Vec<_>>(), ["1 ms", "10 ms"]);
    }

    #[test]
    fn nines_are_equally_far_apart() {
        let axis = Axis::over(Scale::Nines, Unit::Ratio, [0.999]);
        let at = |q: f64| axis.map(&q, (0, 3000));
        assert_eq!((at(0.0), at(0.9), at(0.99), at(0.999)), (0, 1000, 2000, 3000));
        let labels: Vec<String> = axis.ticks(9).iter().map(|t| axis.label(*t)).collect();
        assert_eq!(labels, ["0%", "50%", "90%", "99%", "99.9%"]);
    }

    #[test]
    fn nothing_to_show_is_still_an_axis() {
        for scale in [Scale::Linear, Scale::Log, Scale::Nines] {
            for values in [vec![], vec![0.0], vec![f64::NAN, f64::INFINITY], vec![5.0, 5.0], vec![u64::MAX as f64]] {
                let axis = Axis::over(scale, Unit::Nanos, values);
                assert!(axis.hi > axis.lo && axis.hi.is_finite(), "{axis:?}");
                assert!(axis.ticks(5).len() < 20);
                let place = axis.place(5.0);
                assert!((0.0..=1.0).contains(&place));
            }
        }
    }
}
