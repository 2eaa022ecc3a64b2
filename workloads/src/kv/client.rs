//! How a KV-offload client's requests look: key texts, and the operations by which it stores and reads a block.

use std::time::Duration;

use gpufeed_profiles::units;
use gpufeed_profiles::{KeyForm, Store};
use serde::{Deserialize, Serialize};

use crate::kv::spec::KvSpec;
use crate::op::{Condition, ErrorKind, Key, KeyStyle, Op, Space};
use crate::random::mix2;

/// What a client does beyond HEAD, GET and PUT of one object per block.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RequestShape {
    /// The client, for the report.
    pub client: String,
    /// How objects are called.
    pub key: KeyForm,
    /// The dtype of KV entries as keys write it.
    pub dtype: String,
    /// Whether each rank asks for one block after the other up to the first that is missing, and never again for what it
    /// once found or wrote; otherwise it asks for all of them at once, each time.
    pub sizes_cached: bool,
    /// How a new block is written.
    pub store: Store,
    /// Whether every GET names a range.
    pub ranged_get: bool,
    /// Blocks that are read before the next ones are begun; no limit if not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub batch_blocks: Option<u32>,
    /// How often the client looks whether a load is complete; zero for at once.
    #[serde(with = "units::duration")]
    pub poll: Duration,
}

impl Default for RequestShape {
    fn default() -> Self {
        Self {
            client: String::new(),
            key: KeyForm::Hash,
            dtype: "bfloat16".to_owned(),
            sizes_cached: false,
            store: Store::Put,
            ranged_get: false,
            batch_blocks: None,
            poll: Duration::ZERO,
        }
    }
}

/// Key spaces of the shared target: blocks, then what a client keeps beside them.
const BLOCKS: u16 = 0;
const LOCKS: u16 = 1;
const MARKS: u16 = 2;
/// How many there are; other targets' spaces begin here.
pub(super) const SPACES: u16 = 3;

/// Bytes of a `.lock` object: JSON of the writer's UUID and two times with nanoseconds,
/// `{"instance_id":"…36","acquired_at":"…35","deadline":"…35"}`. A `.meta` object is empty.
const LOCK_BYTES: u64 = 16 + 36 + 17 + 35 + 14 + 35 + 2;

/// The key spaces of the shared target. Locks and marks are of whole blocks, without a rank (KVBM: their manager writes
/// them with the key format that has none).
pub(super) fn spaces(spec: &KvSpec, world: u32) -> [Space; SPACES as usize] {
    let shape = &spec.shape;
    let (style, of_block) = match shape.key {
        KeyForm::Hash if spec.per_rank => (KeyStyle::RankHash, KeyStyle::Hash),
        KeyForm::Hash => (KeyStyle::Hash, KeyStyle::Hash),
        KeyForm::U64 => (KeyStyle::Index(0), KeyStyle::Index(0)),
        KeyForm::RankPositionHash if spec.per_rank => (KeyStyle::RankLineage, KeyStyle::Lineage),
        KeyForm::RankPositionHash => (KeyStyle::Lineage, KeyStyle::Lineage),
        KeyForm::ModelWorldWorkerHash => (KeyStyle::WorkerHash, KeyStyle::WorkerHash),
    };
    let (mut before, mut after) = (spec.prefix.clone(), String::new());
    if shape.key == KeyForm::ModelWorldWorkerHash {
        // Of the key itself, not of the prefix, slashes become underscores.
        before.push_str(&format!("{}@{world}@", spec.model).replace('/', "_"));
        after = format!("@{}", shape.dtype).replace('/', "_");
    }
    let beside = |suffix: &str| Space { before: spec.prefix.clone(), after: suffix.to_owned(), style: of_block };
    [Space { before, after, style }, beside(".lock"), beside(".meta")]
}

/// One step of a block's sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// Is the object there?
    Head,
    Get,
    Put,
    Delete,
    /// Is the whole block there?
    HeadMark,
    /// The lock, if nobody has it; and once more, if it went away while it was looked at.
    Lock,
    LockAgain,
    /// Whose lock is it?
    ReadLock,
    Mark,
    Unlock,
    /// Before a block is deleted.
    Unmark,
}

/// How a step, or a whole block, went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    /// Found, read, written or deleted.
    Good,
    /// Not written: it was there.
    Present,
    /// Not written: somebody else is writing it.
    Locked,
    /// Given up before it was begun.
    Withdrawn,
    /// Not there, or it did not work.
    Failed(ErrorKind),
}

impl Answer {
    /// What two objects of one block make together: the worse of both, the first if they are alike.
    pub(super) fn and(self, other: Self) -> Self {
        let rank = |answer: &Self| match answer {
            Self::Present => 0,
            Self::Good => 1,
            Self::Locked => 2,
            Self::Withdrawn => 3,
            Self::Failed(_) => 4,
        };
        if rank(&other) > rank(&self) { other } else { self }
    }

    /// Whether the block is on the target.
    pub(super) const fn is_there(self) -> bool {
        matches!(self, Self::Good | Self::Present)
    }
}

impl Step {
    /// Whether there is one of it for each rank's object, rather than one for the block.
    pub(super) const fn per_object(self) -> bool {
        matches!(self, Self::Head | Self::Get | Self::Put | Self::Delete)
    }

    /// Whether it moves the block's own bytes.
    pub(super) const fn data(self) -> bool {
        matches!(self, Self::Get | Self::Put)
    }

    /// Whether nothing was done for the block before it.
    pub(super) const fn first(self, store: Store) -> bool {
        match self {
            Self::Head | Self::Get | Self::HeadMark | Self::Unmark => true,
            Self::Put | Self::Delete => !matches!(store, Store::LockMeta),
            _ => false,
        }
    }

    /// The first step of a write.
    pub(super) const fn of_store(store: Store) -> Self {
        if matches!(store, Store::LockMeta) { Self::HeadMark } else { Self::Put }
    }

    /// The first step of a deletion.
    pub(super) const fn of_remove(store: Store) -> Self {
        if matches!(store, Store::LockMeta) { Self::Unmark } else { Self::Delete }
    }

    /// What an operation's result means.
    pub(super) const fn answer(self, result: Result<(), ErrorKind>, store: Store) -> Answer {
        match (self, result) {
            (Self::HeadMark, Ok(())) => Answer::Present,
            (Self::HeadMark, Err(ErrorKind::NotFound)) => Answer::Good,
            (Self::Lock | Self::LockAgain, Err(ErrorKind::Condition)) | (Self::ReadLock, Ok(())) => Answer::Locked,
            (Self::Put, Err(ErrorKind::Condition)) if matches!(store, Store::PutIfAbsent) => Answer::Present,
            // What is written beside a block is logged when it fails, and nothing else (KVBM).
            (Self::Mark | Self::Unlock | Self::Unmark, _) | (_, Ok(())) => Answer::Good,
            (_, Err(kind)) => Answer::Failed(kind),
        }
    }

    /// What follows when all of a step came back. `ours`: whether the writer has the block's lock from an earlier try.
    pub(super) const fn next(self, answer: Answer, store: Store, ours: bool) -> Option<Self> {
        let locks = matches!(store, Store::LockMeta);
        match (self, answer) {
            (Self::HeadMark, Answer::Good) => Some(Self::Lock),
            (Self::Lock, Answer::Locked) => Some(Self::ReadLock),
            (Self::ReadLock, Answer::Failed(ErrorKind::NotFound)) => Some(Self::LockAgain),
            (Self::ReadLock, Answer::Locked) if ours => Some(Self::Put),
            (Self::Lock | Self::LockAgain, Answer::Good) => Some(Self::Put),
            (Self::Put, Answer::Good) if locks => Some(Self::Mark),
            (Self::Mark, _) => Some(Self::Unlock),
            (Self::Unmark, _) => Some(Self::Delete),
            _ => None,
        }
    }

    /// The operation on a block's object of `bytes`, or on what lies beside it.
    pub(super) fn op(self, base: u16, key: Key, bytes: u64, shape: &RequestShape) -> Op {
        let data = Key { space: base + BLOCKS, ..key };
        let data = if shape.key == KeyForm::U64 { Key { id: mix2(key.id, u64::from(key.rank)), ..data } } else { data };
        let (lock, mark) = (Key { space: base + LOCKS, rank: 0, ..key }, Key { space: base + MARKS, rank: 0, ..key });
        let if_absent = |op: Op| Op { condition: Condition::IfAbsent, ..op };
        match self {
            Self::Head => Op::exists(data),
            Self::Get if shape.ranged_get => Op::get_range(data, 0, bytes),
            Self::Get => Op::get(data, bytes),
            Self::Put if shape.store == Store::PutIfAbsent => if_absent(Op::put(data, bytes)),
            Self::Put => Op::put(data, bytes),
            Self::Delete => Op::delete(data),
            Self::HeadMark => Op::exists(mark),
            Self::Lock | Self::LockAgain => if_absent(Op::put(lock, LOCK_BYTES)),
            Self::ReadLock => Op::get(lock, LOCK_BYTES),
            Self::Mark => Op::put(mark, 0),
            Self::Unlock => Op::delete(lock),
            Self::Unmark => Op::delete(mark),
        }
    }
}
