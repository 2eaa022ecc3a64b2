//! A plotters back end that writes SVG elements with class names instead of colors, so that light, dark and print are
//! style sheets.

use std::cell::RefCell;
use std::convert::Infallible;
use std::fmt::Write as _;

use plotters::style::Color;
use plotters_backend::text_anchor::{HPos, VPos};
use plotters_backend::{BackendColor, BackendCoord, BackendStyle, BackendTextStyle, DrawingBackend, DrawingErrorKind};

use super::escape::Text;

/// Drawing units in a CSS pixel: plotters knows whole units only, curves deserve finer ones.
pub(super) const UNIT: i32 = 10;

/// What a thing is drawn as. Travels through plotters disguised as a color.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ink {
    /// Grid lines.
    Grid,
    /// The base line.
    Axis,
    /// Tick labels and axis names.
    Label,
    /// A curve in the color of a slot.
    Line { slot: u8, dashed: bool },
    /// Faint area below a curve.
    Shade { slot: u8 },
    /// Solid area of a stack or bar.
    Solid { slot: u8 },
}

impl Ink {
    fn class(color: BackendColor) -> String {
        match color.rgb {
            (0, _, _) => "grid".to_owned(),
            (1, _, _) => "axis".to_owned(),
            (2, _, _) => "label".to_owned(),
            (3, slot, 0) => format!("line c{slot}"),
            (3, slot, _) => format!("line dash c{slot}"),
            (4, slot, _) => format!("shade c{slot}"),
            (_, slot, _) => format!("solid c{slot}"),
        }
    }
}

impl Color for Ink {
    fn to_backend_color(&self) -> BackendColor {
        let rgb = match *self {
            Self::Grid => (0, 0, 0),
            Self::Axis => (1, 0, 0),
            Self::Label => (2, 0, 0),
            Self::Line { slot, dashed } => (3, slot, u8::from(dashed)),
            Self::Shade { slot } => (4, slot, 0),
            Self::Solid { slot } => (5, slot, 0),
        };
        BackendColor { alpha: 1.0, rgb }
    }
}

/// Collects SVG elements; `size` in CSS pixels.
pub(super) struct Canvas<'a> {
    out: &'a RefCell<String>,
    size: (u32, u32),
}

impl<'a> Canvas<'a> {
    pub(super) fn new(out: &'a RefCell<String>, size: (u32, u32)) -> Self {
        Self { out, size }
    }

    fn put(&self, element: std::fmt::Arguments<'_>) -> Result<(), DrawingErrorKind<Infallible>> {
        // Writing to a String cannot fail.
        let _ = self.out.borrow_mut().write_fmt(element);
        Ok(())
    }
}

/// A coordinate in CSS pixels, as short as it can be written.
struct Px(i32);

impl std::fmt::Display for Px {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (whole, part) = (self.0.abs() / UNIT, self.0.abs() % UNIT);
        let sign = if self.0 < 0 { "-" } else { "" };
        match part {
            0 => write!(f, "{sign}{whole}"),
            part => write!(f, "{sign}{whole}.{part}"),
        }
    }
}

fn data(points: impl IntoIterator<Item = BackendCoord>, close: bool) -> String {
    let mut d = String::new();
    let mut last: Option<BackendCoord> = None;
    for (x, y) in points {
        let _ = match last {
            None => write!(d, "M{} {}", Px(x), Px(y)),
            Some(at) if at == (x, y) => Ok(()),
            Some((_, before)) if before == y => write!(d, "H{}", Px(x)),
            Some((before, _)) if before == x => write!(d, "V{}", Px(y)),
            Some(_) => write!(d, "L{} {}", Px(x), Px(y)),
        };
        last = Some((x, y));
    }
    if close {
        d.push('Z');
    }
    d
}

impl DrawingBackend for Canvas<'_> {
    type ErrorType = Infallible;

    fn get_size(&self) -> (u32, u32) {
        (self.size.0 * UNIT as u32, self.size.1 * UNIT as u32)
    }

    fn ensure_prepared(&mut self) -> Result<(), DrawingErrorKind<Infallible>> {
        Ok(())
    }

    fn present(&mut self) -> Result<(), DrawingErrorKind<Infallible>> {
        Ok(())
    }

    fn draw_pixel(&mut self, at: BackendCoord, color: BackendColor) -> Result<(), DrawingErrorKind<Infallible>> {
        self.put(format_args!(
            r#"<rect class="{}" x="{}" y="{}" width="1" height="1"/>"#,
            Ink::class(color),
            Px(at.0),
            Px(at.1)
        ))
    }

    fn draw_line<S: BackendStyle>(
        &mut self,
        from: BackendCoord,
        to: BackendCoord,
        style: &S,
    ) -> Result<(), DrawingErrorKind<Infallible>> {
        self.draw_path([from, to], style)
    }

    fn draw_rect<S: BackendStyle>(
        &mut self,
        from: BackendCoord,
        to: BackendCoord,
        style: &S,
        _fill: bool,
    ) -> Result<(), DrawingErrorKind<Infallible>> {
        self.put(format_args!(
            r#"<rect class="{}" x="{}" y="{}" width="{}" height="{}"/>"#,
            Ink::class(style.color()),
            Px(from.0.min(to.0)),
            Px(from.1.min(to.1)),
            Px((to.0 - from.0).abs()),
            Px((to.1 - from.1).abs())
        ))
    }

    fn draw_path<S: BackendStyle, I: IntoIterator<Item = BackendCoord>>(
        &mut self,
        path: I,
        style: &S,
    ) -> Result<(), DrawingErrorKind<Infallible>> {
        self.put(format_args!(r#"<path class="{}" d="{}"/>"#, Ink::class(style.color()), data(path, false)))
    }

    fn draw_circle<S: BackendStyle>(
        &mut self,
        center: BackendCoord,
        radius: u32,
        style: &S,
        _fill: bool,
    ) -> Result<(), DrawingErrorKind<Infallible>> {
        self.put(format_args!(
            r#"<circle class="{}" cx="{}" cy="{}" r="{}"/>"#,
            Ink::class(style.color()),
            Px(center.0),
            Px(center.1),
            Px(radius as i32)
        ))
    }

    fn fill_polygon<S: BackendStyle, I: IntoIterator<Item = BackendCoord>>(
        &mut self,
        corners: I,
        style: &S,
    ) -> Result<(), DrawingErrorKind<Infallible>> {
        self.put(format_args!(r#"<path class="{}" d="{}"/>"#, Ink::class(style.color()), data(corners, true)))
    }

    fn draw_text<S: BackendTextStyle>(
        &mut self,
        text: &str,
        style: &S,
        at: BackendCoord,
    ) -> Result<(), DrawingErrorKind<Infallible>> {
        let anchor = match style.anchor().h_pos {
            HPos::Left => "",
            HPos::Right => r#" text-anchor="end""#,
            HPos::Center => r#" text-anchor="middle""#,
        };
        let dy = match style.anchor().v_pos {
            VPos::Top => ".8em",
            VPos::Center => ".35em",
            VPos::Bottom => "-.2em",
        };
        self.put(format_args!(
            r#"<text class="{}" x="{}" y="{}" dy="{dy}"{anchor}>{}</text>"#,
            Ink::class(style.color()),
            Px(at.0),
            Px(at.1),
            Text(text)
        ))
    }

    /// Digits and letters of a 12-pixel sans-serif font are at most this wide.
    fn estimate_text_size<S: BackendTextStyle>(
        &self,
        text: &str,
        _style: &S,
    ) -> Result<(u32, u32), DrawingErrorKind<Infallible>> {
        Ok((text_width(text) as u32, 14 * UNIT as u32))
    }
}

/// Width of a tick label in drawing units, on the generous side.
pub(super) fn text_width(text: &str) -> i32 {
    text.chars().count() as i32 * 15 * UNIT / 2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn coordinates_are_short_and_paths_use_straight_runs() {
        assert_eq!(Px(125).to_string(), "12.5");
        assert_eq!(Px(-5).to_string(), "-0.5");
        assert_eq!(Px(40).to_string(), "4");
        assert_eq!(data([(0, 0), (10, 0), (10, 10), (10, 10), (25, 30)], true), "M0 0H1V1L2.5 3Z");
    }
}
