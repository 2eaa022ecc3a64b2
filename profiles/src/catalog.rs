//! Where profiles come from: the embedded data, files of the user's, and overrides of either.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use toml::{Table, Value};

/// A profile that cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    /// No such name.
    #[error("no {kind} is called `{name}`; {hint}")]
    Unknown {
        /// What was looked for: `model`, `gpu`, …
        kind: &'static str,
        /// As typed.
        name: String,
        /// The nearest names, or all of them.
        hint: String,
    },
    /// A file that cannot be read.
    #[error("cannot read {kind} file {}", path.display())]
    Read {
        /// What it should hold.
        kind: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file that says something else than a profile does.
    #[error("{}:{line}: {reason}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Counted from one.
        line: usize,
        /// What is wrong there.
        reason: String,
    },
    /// A profile whose figures contradict each other.
    #[error("{kind} `{name}`: {reason}")]
    Invalid {
        /// `model`, `gpu`, …
        kind: &'static str,
        /// Its name.
        name: String,
        /// The contradiction.
        reason: String,
    },
    /// An override that does not fit.
    #[error("cannot apply `--set {text}`: {reason}")]
    Set {
        /// As typed.
        text: String,
        /// Why.
        reason: String,
    },
    /// A Hugging Face configuration that lacks or contradicts something.
    #[error("{}: {reason}", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

/// Sources of a profile's figures by key (`gemm_ratio.bf16`); a table's name stands for all in it, `*` for the rest.
pub type Sources = BTreeMap<String, String>;

/// The source of the figure at a dotted key, if it is given.
#[must_use]
pub fn source_of<'a>(sources: &'a Sources, key: &str) -> Option<&'a str> {
    let mut at = key;
    loop {
        if let Some(source) = sources.get(at) {
            return Some(source);
        }
        match at.rsplit_once('.') {
            Some((table, _)) => at = table,
            None => return sources.get("*").map(String::as_str),
        }
    }
}

/// A kind of profile: what its data file is and how one is checked.
pub(crate) trait Profile: DeserializeOwned {
    /// Its name in messages and in `--set`.
    const KIND: &'static str;
    /// The embedded data: name → table.
    const DATA: &'static str;

    /// The profiles one table of the data stands for.
    fn expand(name: &str, table: Table) -> Vec<(String, Table)> {
        vec![(name.to_owned(), table)]
    }

    /// The key its name stands at.
    const NAME_KEY: &'static str = "name";

    /// Gives it its name.
    fn set_name(&mut self, name: &str);

    /// Its name, empty if it was not given one.
    fn name(&self) -> &str;

    /// Contradictions between figures, in words.
    fn check(&self) -> Result<(), String>;
}

/// Values given on the command line as `section.key=value`, in the order given.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Overrides {
    all: Vec<Override>,
}

#[derive(Debug, Clone, PartialEq)]
struct Override {
    text: String,
    section: String,
    path: Vec<String>,
    value: Value,
}

impl Overrides {
    /// The sections that can be overridden: the kinds of profiles.
    pub const SECTIONS: [&'static str; 5] = ["model", "gpu", "engine", "training", "kv-client"];

    /// Reads overrides. A value that is not TOML (`5ms`) is text.
    ///
    /// # Errors
    /// When one is not of the form `section.key=value` or names no section.
    pub fn parse(texts: &[impl AsRef<str>]) -> Result<Self, ProfileError> {
        let read = |text: &str| {
            let error = |reason: String| ProfileError::Set { text: text.to_owned(), reason };
            let form = || error("write it as section.key=value, as in training.batch=4".to_owned());
            let (key, value) = text.split_once('=').ok_or_else(form)?;
            let mut path = key.trim().split('.').map(str::to_owned);
            let section = path.next().ok_or_else(form)?;
            let path: Vec<String> = path.collect();
            if path.is_empty() || path.iter().any(String::is_empty) {
                return Err(form());
            }
            if !Self::SECTIONS.contains(&section.as_str()) {
                return Err(error(format!("no section is called `{section}`; {}", hint(&section, Self::SECTIONS))));
            }
            let value = value.trim();
            let value = toml::from_str::<Table>(&format!("value = {value}"))
                .ok()
                .filter(|table| table.len() == 1)
                .and_then(|mut table| table.remove("value"))
                .unwrap_or_else(|| Value::String(value.to_owned()));
            Ok(Override { text: text.to_owned(), section, path, value })
        };
        Ok(Self { all: texts.iter().map(|text| read(text.as_ref())).collect::<Result<_, _>>()? })
    }

    /// Sections named by any of them, so that a caller can refuse one it does not use.
    pub fn sections(&self) -> impl Iterator<Item = &str> {
        self.all.iter().map(|set| set.section.as_str())
    }

    /// Applies those of `kind` one after the other, each tried by reading the profile again.
    fn apply<P: Profile>(&self, mut table: Table, mut profile: P) -> Result<P, ProfileError> {
        for set in self.all.iter().filter(|set| set.section == P::KIND) {
            let error = |reason| ProfileError::Set { text: set.text.clone(), reason };
            put(&mut table, &set.path, set.value.clone()).map_err(error)?;
            profile = P::deserialize_from(table.clone()).map_err(error)?;
            let sources = table.entry("sources").or_insert_with(|| Value::Table(Table::new()));
            if let Value::Table(sources) = sources {
                sources.insert(set.path.join("."), Value::String("set on the command line".to_owned()));
            }
        }
        if self.sections().any(|section| section == P::KIND) {
            profile =
                P::deserialize_from(table).map_err(|reason| ProfileError::Set { text: P::KIND.to_owned(), reason })?;
        }
        Ok(profile)
    }
}

/// Puts a value at a path, making tables on the way.
fn put(table: &mut Table, path: &[String], value: Value) -> Result<(), String> {
    let Some((first, rest)) = path.split_first() else { return Ok(()) };
    if rest.is_empty() {
        table.insert(first.clone(), value);
        return Ok(());
    }
    match table.entry(first.clone()).or_insert_with(|| Value::Table(Table::new())) {
        Value::Table(inner) => put(inner, rest, value),
        _ => Err(format!("`{first}` is a single value and has no `{}`", rest.join("."))),
    }
}

trait DeserializeFrom: Sized {
    fn deserialize_from(table: Table) -> Result<Self, String>;
}

impl<P: Profile> DeserializeFrom for P {
    fn deserialize_from(table: Table) -> Result<Self, String> {
        table.try_into().map_err(|error: toml::de::Error| explain(error.message()))
    }
}

/// What serde says of an unknown field, with the nearest known one instead of all.
fn explain(message: &str) -> String {
    let quoted: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
    match quoted.split_first() {
        Some((unknown, known)) if message.starts_with("unknown field") || message.starts_with("unknown variant") => {
            let what = if message.starts_with("unknown field") { "key" } else { "value" };
            format!("unknown {what} `{unknown}`; {}", hint(unknown, known.iter().copied()))
        }
        _ => message.trim_end().replace('\n', ", "),
    }
}

/// `did you mean …`, or all there is when nothing is near.
fn hint<'a>(typed: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    let known: Vec<&str> = known.into_iter().collect();
    let near = crate::nearest_few(typed, known.iter().copied());
    match near.as_slice() {
        [] => format!("known are {}", known.join(", ")),
        names => format!("did you mean {}", names.iter().map(|n| format!("`{n}`")).collect::<Vec<_>>().join(" or ")),
    }
}

/// The embedded tables of a kind, by name.
pub(crate) fn embedded<P: Profile>() -> Vec<(String, Table)> {
    let data: Table = toml::from_str(P::DATA).expect("embedded data is TOML, which a test checks");
    let tables = data.into_iter().filter_map(|(name, value)| match value {
        Value::Table(table) => Some((name, table)),
        _ => None,
    });
    tables.flat_map(|(name, table)| P::expand(&name, table)).collect()
}

fn aliases(table: &Table) -> impl Iterator<Item = &str> {
    table.get("aliases").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str)
}

/// Whether the user means a file and not a name.
pub(crate) fn is_path(text: &str) -> bool {
    text.contains(std::path::MAIN_SEPARATOR) || [".toml", ".json"].iter().any(|end| text.ends_with(end))
}

/// A profile by name or by the path of a TOML file with the same keys.
pub(crate) fn load<P: Profile>(name_or_path: &str, overrides: &Overrides) -> Result<P, ProfileError> {
    let (name, table, profile) = if is_path(name_or_path) {
        let path = Path::new(name_or_path);
        let text = read(P::KIND, path)?;
        let (table, profile): (Table, P) = parse(path, &text)?;
        let stem = path.file_stem().map(|stem| stem.to_string_lossy().into_owned());
        (stem.unwrap_or_default(), table, profile)
    } else {
        let (name, table) = find::<P>(name_or_path)?;
        let profile = P::deserialize_from(table.clone()).map_err(|reason| ProfileError::Invalid {
            kind: P::KIND,
            name: name.clone(),
            reason,
        })?;
        (name, table, profile)
    };
    let mut profile = overrides.apply(table, profile)?;
    if profile.name().is_empty() {
        profile.set_name(&name);
    }
    let invalid = |reason| ProfileError::Invalid { kind: P::KIND, name: profile.name().to_owned(), reason };
    profile.check().map_err(invalid)?;
    Ok(profile)
}

/// Applies overrides to a profile that came from elsewhere, by way of its own keys.
pub(crate) fn overridden<P: Profile + serde::Serialize>(profile: P, overrides: &Overrides) -> Result<P, ProfileError> {
    let invalid = |name: &str, reason| ProfileError::Invalid { kind: P::KIND, name: name.to_owned(), reason };
    let table = Table::try_from(&profile).map_err(|error| invalid(profile.name(), error.to_string()))?;
    let profile = overrides.apply(table, profile)?;
    profile.check().map_err(|reason| invalid(profile.name(), reason))?;
    Ok(profile)
}

fn find<P: Profile>(wanted: &str) -> Result<(String, Table), ProfileError> {
    let all = embedded::<P>();
    let lower = wanted.to_lowercase();
    let matches = |(name, table): &&(String, Table)| *name == lower || aliases(table).any(|alias| alias == lower);
    if let Some(found) = all.iter().find(matches) {
        return Ok(found.clone());
    }
    let known = all.iter().flat_map(|(name, table)| std::iter::once(name.as_str()).chain(aliases(table)));
    Err(ProfileError::Unknown { kind: P::KIND, name: wanted.to_owned(), hint: hint(&lower, known) })
}

pub(crate) fn read(kind: &'static str, path: &Path) -> Result<String, ProfileError> {
    fs::read_to_string(path).map_err(|source| ProfileError::Read { kind, path: path.to_owned(), source })
}

fn parse<P: Profile>(path: &Path, text: &str) -> Result<(Table, P), ProfileError> {
    let error = |error: toml::de::Error| {
        let start = error.span().map_or(0, |span| span.start).min(text.len());
        let line = 1 + text.as_bytes()[..start].iter().filter(|byte| **byte == b'\n').count();
        ProfileError::File { path: path.to_owned(), line, reason: explain(error.message()) }
    };
    Ok((toml::from_str(text).map_err(error)?, toml::from_str(text).map_err(error)?))
}

/// Names of one kind, in order, each with its aliases.
pub(crate) fn names<P: Profile>() -> Vec<(String, Vec<String>)> {
    embedded::<P>().iter().map(|(name, table)| (name.clone(), aliases(table).map(str::to_owned).collect())).collect()
}

/// One profile as TOML text that is a valid file of its kind; `None` if there is none of that name.
pub(crate) fn text<P: Profile>(name: &str) -> Option<String> {
    let (name, mut table) = find::<P>(name).ok()?;
    table.insert(P::NAME_KEY.to_owned(), Value::String(name));
    toml::to_string(&table).ok()
}
