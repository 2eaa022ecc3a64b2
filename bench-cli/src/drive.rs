//! The local drive of a KV cache (G3), beside the target.

use std::path::Path;

use anyhow::Context;
use gpufeed_profiles::units::Bytes;
use gpufeed_transports::file::{FileConfig, FileStore};
use gpufeed_workloads::op::Space;

use crate::exit::usage;

/// Name of its transport in the report.
pub(crate) const TRANSPORT: &str = "g3-file";

/// An opened drive.
#[derive(Debug)]
pub(crate) struct Drive {
    /// The directory.
    pub store: FileStore,
    /// Its first key space.
    pub from_space: u16,
    prefix: String,
    notes: Vec<String>,
}

impl Drive {
    /// Opens a directory that is to hold `bytes`, and empties it of what an earlier run has left in `space`, the
    /// `from_space`-th.
    ///
    /// # Errors
    /// When the directory cannot be made or written to, or its file system has too little room.
    pub(crate) fn open(dir: &Path, bytes: Bytes, space: &Space, from_space: u16) -> anyhow::Result<Self> {
        let at = dir.display();
        let store = FileStore::open(&FileConfig::new(dir)).with_context(|| format!("local drive file://{at}"))?;
        store.delete_prefix(&space.before)?;
        let room = rustix::fs::statvfs(dir).with_context(|| format!("cannot see how much room {at} has"))?;
        let room = Bytes(room.f_bavail.saturating_mul(room.f_frsize));
        if room.0 < bytes.0 {
            return Err(usage(format!(
                "the local drive may hold {bytes}, but {at} has {room} left: use a smaller --g3-bytes or another directory"
            )));
        }
        let mut notes = vec![format!("file://{at} is the local drive of every node (G3), up to {bytes} of each")];
        notes.extend(store.notes().iter().map(|note| format!("G3: {note}")));
        Ok(Self { store, from_space, prefix: space.before.clone(), notes })
    }

    /// What there is to say about it.
    pub(crate) fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Removes everything a run has put there.
    ///
    /// # Errors
    /// When the directory does not let go.
    pub(crate) fn clear(&self) -> anyhow::Result<u64> {
        Ok(self.store.delete_prefix(&self.prefix)?)
    }
}
