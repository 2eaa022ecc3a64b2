//! Curves and the two kinds of charts made of them: over percentiles and over time.

use gpufeed_schema::Distribution;

use super::axis::{Axis, Scale, Unit};
use super::chart::{Chart, Series};

/// Color slots by meaning.
pub(super) mod slot {
    pub(in crate::html) const BLUE: u8 = 0;
    pub(in crate::html) const VERMILION: u8 = 1;
    pub(in crate::html) const GREEN: u8 = 2;
    pub(in crate::html) const PURPLE: u8 = 3;
    pub(in crate::html) const AMBER: u8 = 4;
    pub(in crate::html) const SKY: u8 = 5;
    pub(in crate::html) const GRAY: u8 = 6;
    pub(in crate::html) const DARK: u8 = 7;
}

/// A curve of a chart, by name, color and points.
pub(super) fn solid(name: impl Into<String>, slot: u8, points: Vec<(f64, Option<f64>)>) -> Series {
    Series { name: name.into(), slot, dashed: false, shaded: false, points }
}

pub(super) fn values(series: &[Series]) -> impl Iterator<Item = f64> + '_ {
    series.iter().flat_map(|s| s.points.iter().filter_map(|(_, y)| *y))
}

pub(super) fn abscissas(series: &[Series]) -> impl Iterator<Item = f64> + '_ {
    series.iter().flat_map(|s| s.points.iter().map(|(x, _)| *x))
}

pub(super) fn ladder(distribution: &Distribution) -> Vec<(f64, Option<f64>)> {
    // Below the tenth percentile a curve falls to the smallest sample, which would take the scale from all the rest.
    let steps = distribution.ladder.iter().filter(|s| (0.1..1.0).contains(&s.quantile_ratio));
    steps.map(|s| (s.quantile_ratio, Some(s.value_ns as f64))).collect()
}

/// Latency curves over percentiles.
pub(super) fn percentiles(id: String, title: &str, note: String, y_name: &'static str, series: Vec<Series>) -> Chart {
    let x = Axis::over(Scale::Nines, Unit::Ratio, abscissas(&series));
    let y = Axis::over(Scale::Log, Unit::Nanos, values(&series));
    Chart { id, title: title.to_owned(), note, x, x_name: "percentile", y, y_name, series, stacked: false }
}

/// Curves over the time of the window.
pub(super) fn over_time(
    id: String,
    title: &str,
    note: String,
    scale: Scale,
    unit: Unit,
    y_name: &'static str,
    series: Vec<Series>,
) -> Chart {
    let end = abscissas(&series).fold(0.0, f64::max);
    let x = Axis::fixed(Unit::Seconds, 0.0, if end > 0.0 { end } else { 1.0 });
    let y = Axis::over(scale, unit, values(&series));
    Chart {
        id,
        title: title.to_owned(),
        note,
        x,
        x_name: "seconds since the start of the window",
        y,
        y_name,
        series,
        stacked: false,
    }
}
