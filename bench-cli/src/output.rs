//! Standard output and standard error, the only places that print. Results go to the one, words for people to the other.

use std::io::{self, IsTerminal, Write};
use std::path::Path;

use anyhow::Context;

/// Writes a result to standard output. A reader that went away (`gpufeed … | head`) is no error.
///
/// # Errors
/// When standard output cannot be written to.
pub(crate) fn result(text: &str) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other.context("cannot write to standard output"),
    }
}

/// Writes a result to a file, or to standard output where none is named.
///
/// # Errors
/// When it cannot be written.
pub(crate) fn result_to(path: Option<&Path>, text: &str) -> anyhow::Result<()> {
    match path {
        None => result(text),
        Some(path) => std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display())),
    }
}

/// Says something to the person at the terminal.
pub(crate) fn say(line: &str) {
    // Nowhere is left to complain about a closed standard error.
    let _ = writeln!(io::stderr().lock(), "{line}");
}

/// Whether standard output takes colors: a terminal, and `NO_COLOR` (no-color.org) not set.
pub(crate) fn colors() -> bool {
    io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}
