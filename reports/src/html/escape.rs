//! Text from a report, made harmless inside HTML.

use std::fmt::{self, Display, Write as _};

/// Displays as HTML text, safe as element content and inside a quoted attribute.
pub(super) struct Text<T>(pub(super) T);

impl<T: Display> Display for Text<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(Escaping(f), "{}", self.0)
    }
}

struct Escaping<'a, 'b>(&'a mut fmt::Formatter<'b>);

impl fmt::Write for Escaping<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for c in text.chars() {
            match c {
                '&' => self.0.write_str("&amp;")?,
                '<' => self.0.write_str("&lt;")?,
                '>' => self.0.write_str("&gt;")?,
                '"' => self.0.write_str("&quot;")?,
                '\'' => self.0.write_str("&#39;")?,
                '\n' | '\t' => self.0.write_char(c)?,
                c if misleads(c) => self.0.write_char('\u{fffd}')?,
                c => self.0.write_char(c)?,
            }
        }
        Ok(())
    }
}

/// Control characters, and those that change the direction of what follows: they could hide or reorder text.
fn misleads(c: char) -> bool {
    c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// JSON that cannot end the script element it stands in.
pub(super) fn json(value: &serde_json::Value) -> String {
    let mut safe = String::new();
    for c in value.to_string().chars() {
        match c {
            c if matches!(c, '<' | '>' | '&') || misleads(c) => {
                // All of these have four hexadecimal digits; writing to a String cannot fail.
                let _ = write!(safe, "\\u{:04x}", u32::from(c));
            }
            c => safe.push(c),
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_html_reads_survives() {
        let hostile = "</script><img src=x onerror='a()'>\"&\u{0}\u{202e}";
        let text = Text(hostile).to_string();
        assert!(!text.contains(['<', '>', '"', '\'', '\u{0}', '\u{202e}']), "{text}");
        assert_eq!(text.matches('&').count(), text.matches(';').count());
        let json = json(&serde_json::json!({ "n": hostile }));
        assert!(!json.contains(['<', '>', '&', '\u{202e}']), "{json}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&json).expect("still JSON")["n"], hostile);
    }
}
