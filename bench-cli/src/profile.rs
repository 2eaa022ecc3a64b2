//! `gpufeed profile`: what is built in, with its sources.

use std::fmt::Write as _;

use gpufeed_profiles::{list, show};

use crate::args::ProfileCommand;
use crate::exit::OrUsage;
use crate::output;

/// Lists or shows.
///
/// # Errors
/// When no profile has the name; the nearest are named.
pub(crate) fn run(command: ProfileCommand) -> anyhow::Result<()> {
    match command {
        ProfileCommand::List { json: true } => {
            let entries: Vec<_> = list()
                .into_iter()
                .map(|entry| serde_json::json!({"kind": entry.kind, "name": entry.name, "aliases": entry.aliases}))
                .collect();
            output::result(&(serde_json::to_string_pretty(&entries)? + "\n"))
        }
        ProfileCommand::List { json: false } => {
            let mut text = String::new();
            for entry in list() {
                let also =
                    if entry.aliases.is_empty() { String::new() } else { format!("  ({})", entry.aliases.join(", ")) };
                // Writing to a String cannot fail.
                let _ = writeln!(text, "{:<10} {}{also}", entry.kind, entry.name);
            }
            output::result(&text)
        }
        ProfileCommand::Show { name, json } => {
            let found = show(&name).or_usage()?;
            if json {
                let all: Vec<_> = found
                    .iter()
                    .map(|(kind, text)| {
                        let profile: toml::Table = toml::from_str(text)?;
                        Ok(serde_json::json!({"kind": kind, "profile": profile}))
                    })
                    .collect::<anyhow::Result<_>>()?;
                return output::result(&(serde_json::to_string_pretty(&all)? + "\n"));
            }
            let texts: Vec<String> = found.iter().map(|(kind, text)| format!("# {kind}\n{text}")).collect();
            output::result(&texts.join("\n"))
        }
    }
}
