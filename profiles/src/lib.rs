//! Units, and model, GPU, workload, storage and claims data, each figure with its source.
//!
//! A profile is had by name from the embedded data (`data/*.toml`) or by path from a file of the user's with the same
//! keys; `section.key=value` overrides change either. Figures have their source in the profile's `sources`.

mod catalog;
mod claims;
mod costs;
mod dtype;
mod gpu;
mod hugging_face;
mod kv_client;
mod model;
mod published;
pub mod storage;
mod training;
pub mod units;

pub use catalog::{Overrides, ProfileError, Sources, source_of};
pub use claims::Claim;
pub use costs::{Costs, HOURS_PER_MONTH, StorageCosts, costs};
pub use dtype::{Dtype, DtypeError};
pub use gpu::{ByDtype, Engine, Gpu};
pub use kv_client::{Exists, KeyForm, KvClient, Store};
pub use model::{Mla, Model, Moe, Window};
pub use published::{Covers, Deployment, Eq2, Fit, Itl, Note, Published, Ratio, StoreRate, Ttft, published};
pub use training::{Access, Framework, TrainingProfile};

/// A language model by name (`llama-3.1-8b`), by the path of a TOML file, or by that of a Hugging Face `config.json` or
/// its directory.
///
/// # Errors
/// When there is none of that name (the nearest are named), or the file cannot be read or is not one.
pub fn model(name_or_path: &str, overrides: &Overrides) -> Result<Model, ProfileError> {
    let path = std::path::Path::new(name_or_path);
    let hugging_face = path.extension().is_some_and(|end| end == "json") || path.join("config.json").is_file();
    if hugging_face {
        return catalog::overridden(Model::from_hf_config(path)?, overrides);
    }
    catalog::load(name_or_path, overrides)
}

/// A GPU by name (`h100-sxm`) or by the path of a TOML file.
///
/// # Errors
/// When there is none of that name (the nearest are named), or the file cannot be read or is not one.
pub fn gpu(name_or_path: &str, overrides: &Overrides) -> Result<Gpu, ProfileError> {
    catalog::load(name_or_path, overrides)
}

/// An inference engine by name (`vllm`) or by the path of a TOML file.
///
/// # Errors
/// When there is none of that name (the nearest are named), or the file cannot be read or is not one.
pub fn engine(name_or_path: &str, overrides: &Overrides) -> Result<Engine, ProfileError> {
    catalog::load(name_or_path, overrides)
}

/// A training workload on an accelerator by name (`unet3d-h100`) or by the path of a TOML file.
///
/// # Errors
/// When there is none of that name (the nearest are named), or the file cannot be read or is not one.
pub fn training(name_or_path: &str, overrides: &Overrides) -> Result<TrainingProfile, ProfileError> {
    catalog::load(name_or_path, overrides)
}

/// The request shape of a KV-offload client by name (`lmcache`) or by the path of a TOML file.
///
/// # Errors
/// When there is none of that name (the nearest are named), or the file cannot be read or is not one.
pub fn kv_client(name_or_path: &str, overrides: &Overrides) -> Result<KvClient, ProfileError> {
    catalog::load(name_or_path, overrides)
}

/// All vendor claims.
#[must_use]
pub fn claims() -> Vec<Claim> {
    let load =
        |id: &str| catalog::load(id, &Overrides::default()).expect("embedded claims are valid, as a test checks");
    catalog::names::<Claim>().iter().map(|(id, _)| load(id)).collect()
}

/// One line of `gpufeed profile list`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// `model`, `gpu`, `engine`, `training`, `kv-client`, `claim`.
    pub kind: &'static str,
    /// The name.
    pub name: String,
    /// Other names.
    pub aliases: Vec<String>,
}

/// Every embedded profile, by kind and name.
#[must_use]
pub fn list() -> Vec<Entry> {
    fn of<P: catalog::Profile>() -> impl Iterator<Item = Entry> {
        catalog::names::<P>().into_iter().map(|(name, aliases)| Entry { kind: P::KIND, name, aliases })
    }
    of::<Model>()
        .chain(of::<Gpu>())
        .chain(of::<Engine>())
        .chain(of::<TrainingProfile>())
        .chain(of::<KvClient>())
        .chain(of::<Claim>())
        .collect()
}

/// What `gpufeed profile show NAME` prints, for every kind that has the name: its kind and TOML text that is a valid file
/// of that kind, sources included.
///
/// # Errors
/// When no kind has it; the nearest names of all are given.
pub fn show(name: &str) -> Result<Vec<(&'static str, String)>, ProfileError> {
    let found: Vec<_> = [
        (<Model as catalog::Profile>::KIND, catalog::text::<Model>(name)),
        (<Gpu as catalog::Profile>::KIND, catalog::text::<Gpu>(name)),
        (<Engine as catalog::Profile>::KIND, catalog::text::<Engine>(name)),
        (<TrainingProfile as catalog::Profile>::KIND, catalog::text::<TrainingProfile>(name)),
        (<KvClient as catalog::Profile>::KIND, catalog::text::<KvClient>(name)),
        (<Claim as catalog::Profile>::KIND, catalog::text::<Claim>(name)),
    ]
    .into_iter()
    .filter_map(|(kind, text)| Some((kind, text?)))
    .collect();
    if !found.is_empty() {
        return Ok(found);
    }
    let all = list();
    let names = all.iter().flat_map(|entry| std::iter::once(&entry.name).chain(&entry.aliases)).map(String::as_str);
    let hint = match nearest_few(name, names).as_slice() {
        [] => "`gpufeed profile list` shows all there are".to_owned(),
        near => format!("did you mean `{}`", near.join("` or `")),
    };
    Err(ProfileError::Unknown { kind: "profile", name: name.to_owned(), hint })
}

/// The known name that is nearest to a mistyped one, if any is near.
fn nearest<'a>(typed: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    nearest_few(typed, known).first().copied()
}

/// At most three known names near a mistyped one, or that it is part of; nearest first.
fn nearest_few<'a>(typed: &str, known: impl IntoIterator<Item = &'a str>) -> Vec<&'a str> {
    let mut near: Vec<(usize, &str)> = known
        .into_iter()
        .filter_map(|name| {
            let distance = strsim::damerau_levenshtein(typed, name);
            let close = distance <= (name.len().max(typed.len()) / 3).max(1);
            (close || (typed.len() > 2 && name.contains(typed))).then_some((distance, name))
        })
        .collect();
    near.sort_unstable();
    near.dedup();
    near.into_iter().take(3).map(|(_, name)| name).collect()
}

#[cfg(test)]
mod tests;
