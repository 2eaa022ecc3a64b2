//! What plain load is made of: mix, sizes, popularity, bounds; and the objects it needs.

use std::fmt;
use std::str::FromStr;

use gpufeed_profiles::units::Bytes;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::sizes::SizeSpec;
use crate::machine::{Dataset, ObjectRun, Sizes};
use crate::op::{Key, KeyStyle, Names, Space, Verb};
use crate::random::mix2;
use crate::schedule::{Load, LoadError};

/// Objects that may be deleted and stand ready for each client, where puts make up for what deletes take: so many that
/// a run of luck does not exhaust them.
const SPARE: u64 = 16;

/// Weights of the operations; those of zero do not occur.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Mix {
    /// Reads.
    pub get: u32,
    /// Writes in one piece.
    pub put: u32,
    /// Questions for presence and size.
    pub stat: u32,
    /// Listings of one page.
    pub list: u32,
    /// Removals.
    pub delete: u32,
    /// Writes in parts.
    pub multipart: u32,
}

impl Mix {
    /// One kind of operation.
    #[must_use]
    pub fn only(verb: Verb) -> Self {
        let mut mix = Self::default();
        *mix.weight_mut(verb) = 1;
        mix
    }

    /// The mix that `warp mixed` has unless told otherwise (docs.min.io, warp mixed: 45 get, 30 stat, 15 put, 10
    /// delete).
    #[must_use]
    pub const fn warp() -> Self {
        Self { get: 45, put: 15, stat: 30, list: 0, delete: 10, multipart: 0 }
    }

    /// The weight of one kind.
    #[must_use]
    pub const fn weight(&self, verb: Verb) -> u32 {
        match verb {
            Verb::Get => self.get,
            Verb::Put => self.put,
            Verb::Stat => self.stat,
            Verb::List => self.list,
            Verb::Delete => self.delete,
            Verb::Multipart => self.multipart,
        }
    }

    const fn weight_mut(&mut self, verb: Verb) -> &mut u32 {
        match verb {
            Verb::Get => &mut self.get,
            Verb::Put => &mut self.put,
            Verb::Stat => &mut self.stat,
            Verb::List => &mut self.list,
            Verb::Delete => &mut self.delete,
            Verb::Multipart => &mut self.multipart,
        }
    }

    /// Sum of the weights.
    #[must_use]
    pub fn total(&self) -> u64 {
        Verb::ALL.iter().map(|&verb| u64::from(self.weight(verb))).sum()
    }
}

/// Text that is not a mix.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not an operation or a mix: name one of get, put, stat, list, delete, multipart, mixed, or give weights like get=45,put=15,stat=30,delete=10"
)]
pub struct MixError(String);

impl FromStr for Mix {
    type Err = MixError;

    /// Reads the name of an operation, `mixed`, or weights like `get=45,put=15`.
    fn from_str(text: &str) -> Result<Self, MixError> {
        let error = || MixError(text.to_owned());
        let verb = |name: &str| Verb::ALL.into_iter().find(|verb| verb.name() == name.trim()).ok_or_else(error);
        if text.trim() == "mixed" {
            return Ok(Self::warp());
        }
        if !text.contains('=') {
            return verb(text).map(Self::only);
        }
        let mut mix = Self::default();
        for part in text.split(',') {
            let (name, weight) = part.split_once('=').ok_or_else(error)?;
            *mix.weight_mut(verb(name)?) = weight.trim().parse().map_err(|_| error())?;
        }
        if mix.total() == 0 { Err(error()) } else { Ok(mix) }
    }
}

/// Which objects are read how often. Written as `uniform` or `zipf(0.99)`.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub enum Popularity {
    /// All alike.
    #[default]
    Uniform,
    /// The k-th most popular in proportion to `1 / k^exponent`; which object that is, is drawn by seed.
    Zipf(f64),
}

/// Text that is not a popularity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a popularity of keys: write uniform, or zipf(0.99) with an exponent above 0 and at most 10")]
pub struct PopularityError(String);

impl fmt::Display for Popularity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Uniform => f.write_str("uniform"),
            Self::Zipf(exponent) => write!(f, "zipf({exponent})"),
        }
    }
}

impl FromStr for Popularity {
    type Err = PopularityError;

    fn from_str(text: &str) -> Result<Self, PopularityError> {
        let text = text.trim();
        if text == "uniform" {
            return Ok(Self::Uniform);
        }
        let exponent = text.strip_prefix("zipf").map(|rest| rest.trim_start_matches([':', '(']).trim_end_matches(')'));
        exponent
            .and_then(|exponent| if exponent.is_empty() { Some(0.99) } else { exponent.trim().parse::<f64>().ok() })
            .filter(|exponent| *exponent > 0.0 && *exponent <= 10.0)
            .map(Self::Zipf)
            .ok_or_else(|| PopularityError(text.to_owned()))
    }
}

impl Serialize for Popularity {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Popularity {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Plain load, every default resolved.
///
/// Objects are of two kinds. The *set* (`objects` of them, spread over `prefixes` directories) is written before the
/// run and never removed: GET, STAT and LIST use it, so none of them can miss and the working set stays what was asked
/// for. *New* objects belong to the client that writes them: PUT and multipart writes create them, DELETE removes the
/// client's oldest, of which some stand ready at the start. In a run of deletes without writes, `objects` are ready to
/// be deleted in all, and the run ends when they are gone.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OpsSpec {
    /// Sizes of objects.
    pub sizes: SizeSpec,
    /// Objects of the set.
    pub objects: u64,
    /// Directories the set is spread over; a LIST reads one page of one of them.
    pub prefixes: u16,
    /// Which objects are read how often.
    pub popularity: Popularity,
    /// Reads ranges of so many bytes, at random multiples of it, instead of whole objects. Objects no larger are read
    /// whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub range_bytes: Option<Bytes>,
    /// Size of the parts of multipart writes.
    pub part_bytes: Bytes,
    /// Keys asked for by a LIST.
    pub list_keys: u64,
    /// Whether PUT and multipart writes replace objects of the set instead of creating new ones.
    pub overwrite: bool,
    /// Operations in all, over all clients; without it the duration bounds the run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<u64>,
    /// Text before every key.
    pub prefix: String,
    /// Seed of everything random.
    pub seed: u64,
    /// How load is offered.
    pub load: Load,
    /// Weights of the operations.
    pub mix: Mix,
}

/// Why plain load cannot be run as asked.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum OpsError {
    /// No weight.
    #[error("the mix of operations is empty: give at least one a weight above 0")]
    NoOperation,
    /// Weights beyond what can be added up.
    #[error("the weights of the mix add up to {0}: keep their sum under 4,294,967,296")]
    Weights(u64),
    /// Nothing to read.
    #[error("there is no object to read: ask for at least one")]
    NoObjects,
    /// More objects than keys.
    #[error("{0} objects are more than a key's twelve digits can count")]
    TooManyObjects(u64),
    /// Nowhere to put objects.
    #[error("objects need at least one prefix and at most 60,000, not {0}")]
    Prefixes(u16),
    /// Deletes would remove what other clients read.
    #[error("overwriting the set leaves nothing to delete: drop the deletes or let puts create new objects")]
    DeletesWithOverwrite,
    /// Empty ranges.
    #[error("a range of 0 bytes reads nothing: ask for at least 1 byte")]
    EmptyRange,
    /// S3's limits.
    #[error("parts of {part} bytes make {parts} parts of the largest object: S3 allows 10,000, so use larger parts")]
    TooManyParts {
        /// Bytes of a part.
        part: u64,
        /// Parts of the largest object.
        parts: u64,
    },
    /// A page of no keys.
    #[error("a listing of 0 keys asks for nothing: ask for 1 to 1,000")]
    EmptyList,
    /// Nothing to do.
    #[error("a count of 0 operations does nothing: ask for at least 1")]
    NoCount,
    /// The load itself.
    #[error(transparent)]
    Load(#[from] LoadError),
}

impl OpsSpec {
    /// Load of `mix` with defaults for everything else: 4 KiB objects, 1,000 of them, closed loop of depth 16.
    #[must_use]
    pub fn new(mix: Mix) -> Self {
        Self {
            sizes: SizeSpec::Fixed(Bytes(4096)),
            objects: 1000,
            prefixes: 16,
            popularity: Popularity::Uniform,
            range_bytes: None,
            part_bytes: Bytes(8 << 20),
            list_keys: 1000,
            overwrite: false,
            count: None,
            prefix: "ops/".to_owned(),
            seed: 42,
            load: Load::Closed { depth: 16 },
            mix,
        }
    }

    /// Checks that it can be run.
    ///
    /// # Errors
    /// When the mix, the set, the ranges, the parts, the count or the load make no sense; the sentence says which.
    pub fn check(&self) -> Result<(), OpsError> {
        self.load.check()?;
        let most_parts = self.sizes.most().div_ceil(self.part_bytes.0.max(1));
        match self.mix.total() {
            0 => Err(OpsError::NoOperation),
            total if total > u64::from(u32::MAX) => Err(OpsError::Weights(total)),
            _ if self.objects == 0 && (self.uses_set() || self.mix.delete > 0 && !self.writes()) => {
                Err(OpsError::NoObjects)
            }
            _ if self.objects >= 1_000_000_000_000 => Err(OpsError::TooManyObjects(self.objects)),
            _ if self.prefixes == 0 || self.prefixes > 60_000 => Err(OpsError::Prefixes(self.prefixes)),
            _ if self.overwrite && self.mix.delete > 0 => Err(OpsError::DeletesWithOverwrite),
            _ if self.range_bytes == Some(Bytes(0)) => Err(OpsError::EmptyRange),
            _ if self.mix.multipart > 0 && most_parts > 10_000 => {
                Err(OpsError::TooManyParts { part: self.part_bytes.0, parts: most_parts })
            }
            _ if self.mix.list > 0 && self.list_keys == 0 => Err(OpsError::EmptyList),
            _ if self.count == Some(0) => Err(OpsError::NoCount),
            _ => Ok(()),
        }
    }

    /// Whether operations use the set.
    fn uses_set(&self) -> bool {
        self.mix.get + self.mix.stat + self.mix.list > 0 || self.overwrite && self.writes()
    }

    /// Whether anything is written.
    pub(super) const fn writes(&self) -> bool {
        self.mix.put > 0 || self.mix.multipart > 0
    }

    /// Space of new objects; those before it are the prefixes of the set.
    pub(super) const fn new_space(&self) -> u16 {
        self.prefixes
    }

    /// The key spaces: one for each prefix of the set, then that of new objects.
    #[must_use]
    pub fn names(&self) -> Names {
        let space = |before: String, style| Space { before, after: String::new(), style };
        let set = (0..self.prefixes).map(|p| space(format!("{}set/{p:05}/", self.prefix), KeyStyle::Index(12)));
        let new = space(format!("{}new/", self.prefix), KeyStyle::RankHash);
        Names { spaces: set.chain([new]).collect() }
    }

    /// Key of object `i` of the set.
    pub(super) fn set_key(&self, i: u64) -> Key {
        let prefix = u128::from(i) * u128::from(self.prefixes) / u128::from(self.objects.max(1));
        Key { space: prefix as u16, rank: 0, id: i, ..Key::ZERO }
    }

    /// Key of new object `i` of a client.
    pub(super) const fn new_key(&self, client: u16, i: u64) -> Key {
        Key { space: self.new_space(), rank: client, id: i, ..Key::ZERO }
    }

    /// Size of the object with this key, in bytes; the same whenever it is written.
    #[must_use]
    pub fn size(&self, key: Key) -> u64 {
        match self.sizes.fixed() {
            Some(bytes) => bytes,
            None if key.space == self.new_space() => {
                self.sizes.of(mix2(self.seed ^ u64::from(key.rank) << 48 ^ 1 << 47, key.id))
            }
            None => self.sizes.of(mix2(self.seed, key.id)),
        }
    }

    /// New objects of a client that stand ready to be deleted at the start.
    pub(super) fn ready(&self, client: u32) -> u64 {
        match (self.mix.delete > 0, self.writes()) {
            (false, _) => 0,
            (true, true) => SPARE,
            (true, false) => share(self.objects, client, self.load.clients()),
        }
    }

    /// The objects that core `core` of `cores` sees to: its share of the set and what its clients may delete.
    pub(super) fn dataset(&self, core: u32, cores: u32) -> Dataset {
        let mut runs = Vec::new();
        let mut add = |first: Key, count: u64| {
            let sizes = self.sizes.fixed().map_or_else(
                || Sizes::Each((0..count).map(|i| self.size(Key { id: first.id + i, ..first })).collect()),
                Sizes::Fixed,
            );
            runs.push(ObjectRun { first, count, sizes });
        };
        if self.uses_set() {
            let part = |n: u32| (u128::from(self.objects) * u128::from(n) / u128::from(cores)) as u64;
            let (mut at, end) = (part(core), part(core + 1));
            while at < end {
                let key = self.set_key(at);
                // The first object of the next prefix is the least i with i·prefixes/objects ≥ space + 1.
                let next =
                    (u128::from(key.space) + 1).saturating_mul(u128::from(self.objects)).div_ceil(self.prefixes.into());
                let next = (next as u64).min(end);
                add(key, next - at);
                at = next;
            }
        }
        for client in (core..self.load.clients()).step_by(cores as usize) {
            let count = self.ready(client);
            if count > 0 {
                add(self.new_key(client as u16, 0), count);
            }
        }
        Dataset { runs }
    }
}

/// Part `i` of `n` of a whole; the parts differ by one at most and add up to it.
pub(super) fn share(whole: u64, i: u32, n: u32) -> u64 {
    whole / u64::from(n) + u64::from(u64::from(i) < whole % u64::from(n))
}
