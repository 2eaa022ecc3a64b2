//! A chart as a figure: drawn twice, wide and for a phone, with its data for the script.

use std::cell::RefCell;
use std::convert::Infallible;
use std::fmt::Write as _;

use plotters::coord::Shift;
use plotters::coord::cartesian::Cartesian2d;
use plotters::element::{Circle, PathElement, Polygon, Rectangle, Text as Label};
use plotters::prelude::{DrawingArea, DrawingAreaErrorKind, IntoDrawingArea};
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{Color, ShapeStyle, TextStyle};
use serde_json::{Value, json};

use super::axis::Axis;
use super::canvas::{Canvas, Ink, UNIT, text_width};
use super::escape::{Text, json as safe_json};

type Drawn = Result<(), DrawingAreaErrorKind<Infallible>>;

/// Most points of a series that are drawn: more do not fit the pixels, and many charts have to fit 2 MB.
pub(super) const MOST_POINTS: usize = 400;

/// One curve.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Series {
    pub(super) name: String,
    pub(super) slot: u8,
    pub(super) dashed: bool,
    /// Whether the area below is shaded.
    pub(super) shaded: bool,
    /// Gaps are `None`.
    pub(super) points: Vec<(f64, Option<f64>)>,
}

/// A chart with two axes.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Chart {
    /// Unique within the page.
    pub(super) id: String,
    pub(super) title: String,
    /// One sentence below the title: what to see, and under which conditions.
    pub(super) note: String,
    pub(super) x: Axis,
    pub(super) x_name: &'static str,
    pub(super) y: Axis,
    pub(super) y_name: &'static str,
    pub(super) series: Vec<Series>,
    /// Whether series stand on each other, first at the bottom.
    pub(super) stacked: bool,
}

/// Size of a drawing in CSS pixels and how many ticks it has room for.
struct Format {
    class: &'static str,
    size: (u32, u32),
    x_ticks: usize,
    y_ticks: usize,
}

const WIDE: Format = Format { class: "wide", size: (560, 280), x_ticks: 6, y_ticks: 5 };
const NARROW: Format = Format { class: "narrow", size: (336, 250), x_ticks: 4, y_ticks: 4 };

impl Chart {
    /// Whether there is anything to draw: a curve needs two points.
    pub(super) fn is_empty(&self) -> bool {
        !self.series.iter().any(|s| s.points.iter().filter(|(_, y)| y.is_some()).count() > 1)
    }

    /// Writes the figure; nothing when there is nothing to draw.
    pub(super) fn figure(&self, page: &mut String) {
        if self.is_empty() {
            return;
        }
        let id = Text(&self.id);
        let _ = write!(page, r#"<figure class="chart" id="{id}"><figcaption><h3>{}</h3>"#, Text(&self.title));
        if !self.note.is_empty() {
            let _ = write!(page, "<p>{}</p>", Text(&self.note));
        }
        page.push_str("</figcaption>");
        // A curve alone needs no key unless it is not what the axis says, which its dashes tell.
        if self.series.len() > 1 || self.series.iter().any(|s| s.dashed) {
            page.push_str(r#"<div class="keys">"#);
            for (i, series) in self.series.iter().enumerate() {
                let _ = write!(page, r#"<button type="button" class="key" data-series="{i}" aria-pressed="true">"#);
                let slot = series.slot;
                if self.stacked {
                    let _ = write!(page, r#"<span class="swatch c{slot}"></span>"#);
                } else {
                    // Drawn as the curve is, since dashes differ by more than color.
                    let dash = if series.dashed { " dash" } else { "" };
                    let _ = write!(
                        page,
                        r#"<svg class="stroke" viewBox="0 0 30 8" role="img" aria-label="its line"><path class="line{dash} c{slot}" d="M1 4H29"/></svg>"#
                    );
                }
                let _ = write!(page, "{}</button>", Text(&series.name));
            }
            page.push_str("</div>");
        }
        page.push_str(r#"<div class="plot">"#);
        for format in [&WIDE, &NARROW] {
            self.svg(page, format);
        }
        let _ = write!(page, r#"</div><script type="application/json">{}</script></figure>"#, safe_json(&self.data()));
    }

    /// What a reader who cannot see the chart is told.
    fn description(&self) -> String {
        let mut text = format!("{} against {}.", self.y_name, self.x_name);
        for series in &self.series {
            let known: Vec<(f64, f64)> = series.points.iter().filter_map(|(x, y)| Some((*x, (*y)?))).collect();
            let (Some(first), Some(last)) = (known.first(), known.last()) else { continue };
            let most = known.iter().map(|(_, y)| *y).fold(f64::MIN, f64::max);
            let show = |v: f64| self.y.unit.show(v);
            let _ = write!(
                text,
                " {}: {} at {}, {} at {}, at most {}.",
                series.name,
                show(first.1),
                self.x.label(first.0),
                show(last.1),
                self.x.label(last.0),
                show(most)
            );
        }
        text
    }

    fn svg(&self, page: &mut String, format: &Format) {
        let (width, height) = format.size;
        let (body, plot) = self.drawn(format);
        let [x0, y0, x1, y1] = plot.map(|v| f64::from(v) / f64::from(UNIT));
        let id = format!("{}-{}", self.id, format.class);
        let id = Text(&id);
        let _ = write!(
            page,
            r#"<svg class="{}" viewBox="0 0 {width} {height}" role="img" aria-labelledby="{id}-t {id}-d" data-plot="{x0} {y0} {x1} {y1}"><title id="{id}-t">{}</title><desc id="{id}-d">{}</desc>{}</svg>"#,
            format.class,
            Text(&self.title),
            Text(self.description()),
            body
        );
    }

    /// The elements of a drawing, and the plot's left, top, right and bottom within it.
    fn drawn(&self, format: &Format) -> (String, [i32; 4]) {
        let body = RefCell::new(String::new());
        let plot = {
            let root = Canvas::new(&body, format.size).into_drawing_area();
            // The canvas cannot fail, so neither can drawing on it.
            self.draw(&root, format, &body).unwrap_or_default()
        };
        (body.into_inner(), plot)
    }

    /// The elements of the wide drawing, and its width and height.
    pub(super) fn wide(&self) -> (String, (u32, u32)) {
        (self.drawn(&WIDE).0, WIDE.size)
    }

    /// Draws axes and curves; answers the plot's left, top, right and bottom.
    fn draw(
        &self,
        root: &DrawingArea<Canvas<'_>, Shift>,
        format: &Format,
        body: &RefCell<String>,
    ) -> Result<[i32; 4], DrawingAreaErrorKind<Infallible>> {
        let (width, height) = (format.size.0 as i32 * UNIT, format.size.1 as i32 * UNIT);
        let x_ticks = self.x.ticks(format.x_ticks);
        let y_ticks = self.y.ticks(format.y_ticks);
        let widest = y_ticks.iter().map(|t| text_width(&self.y.label(*t))).max().unwrap_or(0);
        let (left, right) = (widest + 8 * UNIT, width - 14 * UNIT);
        let (top, bottom) = (24 * UNIT, height - 40 * UNIT);
        let area = root.apply_coord_spec(Cartesian2d::<Axis, Axis>::new(self.x, self.y, (left..right, bottom..top)));
        let place = |x: f64, y: f64| area.map_coordinate(&(x, y));

        let text = |h: HPos, v: VPos| TextStyle::from(("sans-serif", 12 * UNIT)).color(&Ink::Label).pos(Pos::new(h, v));
        for tick in &y_ticks {
            let (_, y) = place(self.x.lo, *tick);
            let ink = if *tick == self.y.lo { Ink::Axis } else { Ink::Grid };
            root.draw(&PathElement::new([(left, y), (right, y)], line(ink)))?;
            root.draw(&Label::new(self.y.label(*tick), (left - 6 * UNIT, y), text(HPos::Right, VPos::Center)))?;
        }
        if y_ticks.first().is_none_or(|t| *t > self.y.lo) {
            root.draw(&PathElement::new([(left, bottom), (right, bottom)], line(Ink::Axis)))?;
        }
        let mut free_from = i32::MIN;
        for tick in &x_ticks {
            let (x, _) = place(*tick, self.y.lo);
            let label = self.x.label(*tick);
            let half = text_width(&label) / 2;
            // The outermost labels stay inside the drawing.
            let at = x.clamp(half.min(width / 2), (width - half).max(width / 2));
            root.draw(&PathElement::new([(x, bottom), (x, bottom + 4 * UNIT)], line(Ink::Axis)))?;
            if at - half >= free_from {
                root.draw(&Label::new(label, (at, bottom + 7 * UNIT), text(HPos::Center, VPos::Top)))?;
                free_from = at + half + 6 * UNIT;
            }
        }
        root.draw(&Label::new(self.x_name, ((left + right) / 2, height - 2 * UNIT), text(HPos::Center, VPos::Bottom)))?;
        root.draw(&Label::new(self.y_name, (0, 2 * UNIT), text(HPos::Left, VPos::Top)))?;

        let mut floor: Vec<f64> = Vec::new();
        for (i, series) in self.series.iter().enumerate() {
            let _ = write!(body.borrow_mut(), r#"<g data-series="{i}">"#);
            if self.stacked {
                stack(&area, series, &mut floor)?;
            } else {
                curve(&area, &self.y, series)?;
            }
            body.borrow_mut().push_str("</g>");
        }
        Ok([left, top, right, bottom])
    }

    /// What the script needs for tooltips.
    fn data(&self) -> Value {
        let axis = |a: &Axis| json!({ "k": format!("{:?}", a.scale), "u": a.unit.name(), "a": a.lo, "b": a.hi });
        let series: Vec<Value> = self
            .series
            .iter()
            .map(|s| {
                let xs: Vec<Value> = s.points.iter().map(|(x, _)| rounded(*x)).collect();
                let ys: Vec<Value> = s.points.iter().map(|(_, y)| y.map_or(Value::Null, rounded)).collect();
                json!({ "n": s.name, "c": s.slot, "x": xs, "y": ys })
            })
            .collect();
        json!({ "x": axis(&self.x), "xn": self.x_name, "y": axis(&self.y), "s": series, "stacked": self.stacked })
    }
}

/// A number with seven significant digits: tooltips show three, quantiles need their nines.
fn rounded(value: f64) -> Value {
    if value.fract() == 0.0 && value.abs() < 1e7 {
        return json!(value as i64);
    }
    format!("{value:.6e}").parse::<f64>().map_or(Value::Null, |v| json!(v))
}

fn line(ink: Ink) -> ShapeStyle {
    ShapeStyle { color: ink.to_rgba(), filled: false, stroke_width: 1 }
}

fn filled(ink: Ink) -> ShapeStyle {
    ShapeStyle { color: ink.to_rgba(), filled: true, stroke_width: 0 }
}

/// A curve, broken at gaps; a lone point is a dot.
fn curve(area: &DrawingArea<Canvas<'_>, Cartesian2d<Axis, Axis>>, y: &Axis, series: &Series) -> Drawn {
    let ink = Ink::Line { slot: series.slot, dashed: series.dashed };
    for run in series.points.split(|(_, y)| y.is_none()) {
        let points: Vec<(f64, f64)> = run.iter().filter_map(|(x, y)| Some((*x, (*y)?))).collect();
        let (Some(first), Some(last)) = (points.first(), points.last()) else { continue };
        if points.len() == 1 {
            area.draw(&Circle::new(*first, 2 * UNIT, filled(Ink::Solid { slot: series.slot })))?;
            continue;
        }
        if series.shaded {
            let mut outline = points.clone();
            outline.extend([(last.0, y.lo), (first.0, y.lo)]);
            area.draw(&Polygon::new(outline, filled(Ink::Shade { slot: series.slot })))?;
        }
        area.draw(&PathElement::new(points, line(ink)))?;
    }
    Ok(())
}

/// One layer of a stack, on top of `floor`, which it raises.
fn stack(area: &DrawingArea<Canvas<'_>, Cartesian2d<Axis, Axis>>, series: &Series, floor: &mut Vec<f64>) -> Drawn {
    floor.resize(series.points.len().max(floor.len()), 0.0);
    let mut outline: Vec<(f64, f64)> = Vec::with_capacity(2 * series.points.len());
    outline.extend(series.points.iter().zip(floor.iter()).map(|((x, y), floor)| (*x, floor + y.unwrap_or(0.0))));
    let below = series.points.iter().zip(floor.iter()).rev().map(|((x, _), floor)| (*x, *floor));
    let below: Vec<(f64, f64)> = below.collect();
    for ((_, y), floor) in series.points.iter().zip(floor.iter_mut()) {
        *floor += y.unwrap_or(0.0);
    }
    if series.points.iter().all(|(_, y)| y.unwrap_or(0.0) <= 0.0) {
        return Ok(());
    }
    outline.extend(below);
    area.draw(&Polygon::new(outline, filled(Ink::Solid { slot: series.slot })))
}

/// Parts of a whole as one bar, with offset, in thousandths of its width: no text, stretches to its container.
pub(super) fn bar(page: &mut String, label: &str, parts: &[(u8, f64, f64)], mark: Option<f64>) {
    let body = RefCell::new(String::new());
    let root = Canvas::new(&body, (1000, 20)).into_drawing_area();
    let at = |ratio: f64| (ratio.clamp(0.0, 1.0) * f64::from(1000 * UNIT)).round() as i32;
    for (slot, from, to) in parts.iter().filter(|(_, from, to)| to > from) {
        // The canvas cannot fail, so neither can drawing on it.
        let _ = root.draw(&Rectangle::new([(at(*from), 0), (at(*to), 20 * UNIT)], filled(Ink::Solid { slot: *slot })));
    }
    if let Some(mark) = mark {
        let _ = root.draw(&PathElement::new([(at(mark), 0), (at(mark), 20 * UNIT)], line(Ink::Axis)));
    }
    drop(root);
    let _ = write!(
        page,
        r#"<svg class="{}" viewBox="0 0 1000 20" preserveAspectRatio="none" role="img" aria-label="{}">{}</svg>"#,
        if parts.len() > 1 { "bar parts" } else { "bar" },
        Text(label),
        body.into_inner()
    );
}
