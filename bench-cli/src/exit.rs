//! Exit status, and the errors that choose it.

use std::process::ExitCode;

/// How the program ends (design §2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Done.
    Passed,
    /// The run or the tool failed.
    Failed,
    /// Wrong usage.
    Usage,
    /// A threshold or gate failed.
    Missed,
    /// What was asked cannot be told from what was measured.
    Inconclusive,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(match exit {
            Exit::Passed => 0,
            Exit::Failed => 1,
            Exit::Usage => 2,
            Exit::Missed => 3,
            Exit::Inconclusive => 4,
        })
    }
}

/// Marks an error as one of usage: what was asked for makes no sense, whatever the target does.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Usage(pub String);

/// The error of a wrong flag or file.
pub(crate) fn usage(message: impl Into<String>) -> anyhow::Error {
    anyhow::Error::new(Usage(message.into()))
}

/// Marks an error as one of judgment: what was measured does not tell what was asked.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Undecided(pub String);

/// The error of a measurement that does not tell what was asked.
pub(crate) fn undecided(message: impl Into<String>) -> anyhow::Error {
    anyhow::Error::new(Undecided(message.into()))
}

/// Marks errors as ones of usage.
pub(crate) trait OrUsage<T> {
    /// Makes the error one of usage, in its own words.
    ///
    /// # Errors
    /// The same error, marked.
    fn or_usage(self) -> anyhow::Result<T>;
}

impl<T, E: std::fmt::Display> OrUsage<T> for Result<T, E> {
    fn or_usage(self) -> anyhow::Result<T> {
        self.map_err(|error| usage(error.to_string()))
    }
}

/// Which status an error ends the program with.
pub(crate) fn of(error: &anyhow::Error) -> Exit {
    match error {
        error if error.chain().any(|cause| cause.is::<Usage>()) => Exit::Usage,
        error if error.chain().any(|cause| cause.is::<Undecided>()) => Exit::Inconclusive,
        _ => Exit::Failed,
    }
}
