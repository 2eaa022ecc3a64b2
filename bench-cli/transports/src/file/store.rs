//! A directory as an object store: what its file system allows, and everything that is not a read or a write.

use std::ffi::{CString, OsStr};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use gpufeed_engine::transport::OpError;
use gpufeed_io::arena::{Arena, PAGE};
use gpufeed_io::ring::Ring;
use gpufeed_workloads::op::{Carrier, Condition, ErrorKind, Key};
use rustix::fs::{AtFlags, Mode, OFlags, RenameFlags};
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Where files grow before they are renamed into place.
const NURSERY: &str = ".gpufeed-tmp";
/// File systems in memory, on which O_DIRECT opens but bypasses nothing (linux/magic.h).
const IN_MEMORY: [u64; 2] = [0x0102_1994, 0x8584_58f6];
const SHARDS: usize = 4096;

/// When written objects are made durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Fsync {
    /// When the kernel sees fit.
    #[default]
    Never,
    /// Before a write is reported done: the file, its size and its name.
    Always,
}

/// A directory as a target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileConfig {
    /// The directory; made if it is not there.
    pub root: PathBuf,
    /// Whether to bypass the page cache where the file system can.
    pub direct: bool,
    /// Whether to use io_uring where the kernel allows it.
    pub io_uring: bool,
    /// When written objects are made durable.
    pub fsync: Fsync,
}

impl FileConfig {
    /// Past the page cache, by io_uring, without fsync.
    #[must_use]
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into(), direct: true, io_uring: true, fsync: Fsync::Never }
    }
}

/// An opened directory, shared by the transports of all cores.
#[derive(Debug, Clone)]
pub struct FileStore {
    pub(crate) inner: Arc<Inner>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) root: PathBuf,
    pub(crate) dir: Arc<OwnedFd>,
    pub(crate) direct: bool,
    pub(crate) io_uring: bool,
    pub(crate) fsync: Fsync,
    /// Open files that one core may keep.
    pub(crate) handles: usize,
    notes: Vec<String>,
    temporary: AtomicU64,
    /// Raised when a key of the shard is written or removed, so that no core reads what it had open before.
    generations: Box<[AtomicU32]>,
}

/// Turns an error of the operating system into one of an operation.
pub(crate) fn failed(what: &str, name: &str, root: &Path, error: &io::Error) -> OpError {
    let errno = Errno::from_io_error(error);
    let (kind, advice) = match errno {
        Some(Errno::NOENT) => (ErrorKind::NotFound, ""),
        Some(Errno::EXIST) => (ErrorKind::Condition, ""),
        Some(Errno::NOSPC | Errno::DQUOT) => (ErrorKind::NoSpace, "; free some space or use less data"),
        Some(Errno::ACCESS | Errno::PERM | Errno::ROFS) => (ErrorKind::Denied, "; check the directory's permissions"),
        Some(Errno::NAMETOOLONG | Errno::NOTDIR | Errno::ISDIR) => (ErrorKind::Client, ""),
        Some(Errno::MFILE) => (ErrorKind::Io, "; raise `ulimit -n`"),
        _ => (ErrorKind::Io, ""),
    };
    OpError::new(kind, format!("cannot {what} {}: {error}{advice}", root.join(name).display()))
}

/// Refuses keys that would leave the directory, meet the nursery, or have no file name.
pub(crate) fn check(name: &str) -> Result<(), OpError> {
    let bad = |part: &str| part.is_empty() || part == "." || part == ".." || part.contains('\0');
    if name.split('/').any(bad) || name.split('/').next() == Some(NURSERY) {
        let detail = format!("`{name}` cannot be a file name: no empty, `.` or `..` parts; choose another prefix");
        return Err(OpError::new(ErrorKind::Client, detail));
    }
    Ok(())
}

impl FileStore {
    /// Opens the directory and finds out what it can do. Blocks: call it once, before the run.
    ///
    /// # Errors
    /// When the directory cannot be made, opened, or written to.
    pub fn open(config: &FileConfig) -> Result<Self, OpError> {
        let root = &config.root;
        let cannot = |what: &'static str| move |error: io::Error| failed(what, "", root, &error);
        std::fs::create_dir_all(root.join(NURSERY)).map_err(cannot("make the directory"))?;
        let open = || rustix::fs::open(root, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
        let dir = Arc::new(open().map_err(|error| failed("open", "", root, &error.into()))?);
        sweep(&root.join(NURSERY));
        let mut notes = Vec::new();
        let direct = match (config.direct, probe_direct(root)) {
            (false, _) => false,
            (true, Ok(None)) => true,
            (true, Ok(Some(why))) => {
                notes.push(format!("{}: {why}; files go through the page cache", root.display()));
                false
            }
            (true, Err(error)) => return Err(failed("write to", "", root, &error)),
        };
        let io_uring = config.io_uring
            && match Ring::new(8) {
                Ok(_) => true,
                Err(error) => {
                    notes.push(format!("no io_uring ({error}); files are read and written by pread and pwrite"));
                    false
                }
            };
        Ok(Self {
            inner: Arc::new(Inner {
                root: root.clone(),
                dir,
                direct,
                io_uring,
                fsync: config.fsync,
                handles: handles(),
                notes,
                temporary: AtomicU64::new(0),
                generations: (0..SHARDS).map(|_| AtomicU32::new(0)).collect(),
            }),
        })
    }

    /// What the system did not allow, a sentence each.
    #[must_use]
    pub fn notes(&self) -> &[String] {
        &self.inner.notes
    }

    /// How payloads travel.
    #[must_use]
    pub fn carrier(&self) -> Carrier {
        if self.inner.direct { Carrier::FileDirect } else { Carrier::FileCached }
    }

    /// Every object whose name starts with `prefix`, with its size in bytes, sorted by name. Blocks.
    ///
    /// # Errors
    /// When a directory cannot be read.
    pub fn list(&self, prefix: &str) -> Result<Vec<(String, u64)>, OpError> {
        let mut found = Vec::new();
        let mut see = |path: &Path, name: &str| {
            found.push((name.to_owned(), std::fs::metadata(path)?.len()));
            Ok(true)
        };
        walk(&self.inner.root, prefix, &mut see).map_err(|error| failed("list", prefix, &self.inner.root, &error))?;
        found.sort();
        Ok(found)
    }

    /// Removes every object whose name starts with `prefix`; how many. Blocks.
    ///
    /// # Errors
    /// When a file cannot be removed.
    pub fn delete_prefix(&self, prefix: &str) -> Result<u64, OpError> {
        let mut count = 0;
        let mut see = |path: &Path, _: &str| {
            std::fs::remove_file(path)?;
            count += 1;
            // Directories go with their last file; one that still has some stays.
            let mut parent = path.parent();
            while let Some(dir) = parent.filter(|dir| *dir != self.inner.root) {
                if std::fs::remove_dir(dir).is_err() {
                    break;
                }
                parent = dir.parent();
            }
            Ok(true)
        };
        walk(&self.inner.root, prefix, &mut see)
            .map_err(|error| failed("clean up", prefix, &self.inner.root, &error))?;
        for generation in &self.inner.generations {
            generation.fetch_add(1, Ordering::Release);
        }
        Ok(count)
    }
}

impl Inner {
    fn shard(&self, key: Key) -> &AtomicU32 {
        let mixed =
            (key.id ^ u64::from(key.rank) << 48 ^ u64::from(key.space) << 32).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        &self.generations[(mixed >> 52) as usize % SHARDS]
    }

    pub(crate) fn generation(&self, key: Key) -> u32 {
        self.shard(key).load(Ordering::Acquire)
    }

    pub(crate) fn changed(&self, key: Key) {
        self.shard(key).fetch_add(1, Ordering::Release);
    }

    /// A new file for a write, gone with its handle unless it is kept. Blocks.
    pub(crate) fn create(self: &Arc<Self>) -> io::Result<Temporary> {
        let number = self.temporary.fetch_add(1, Ordering::Relaxed);
        let path = format!("{NURSERY}/{}-{number}", std::process::id());
        let direct = if self.direct { OFlags::DIRECT } else { OFlags::empty() };
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | direct;
        let file = rustix::fs::openat(&self.dir, &path, flags, Mode::from_raw_mode(0o644))?;
        Ok(Temporary { store: Arc::clone(self), path, file: Arc::new(file), kept: false })
    }

    /// Size of an object in bytes. Blocks.
    pub(crate) fn size(&self, name: &str) -> io::Result<u64> {
        let stat = rustix::fs::statat(&self.dir, name, AtFlags::empty())?;
        if rustix::fs::FileType::from_raw_mode(stat.st_mode).is_dir() {
            return Err(Errno::NOENT.into());
        }
        u64::try_from(stat.st_size).map_err(io::Error::other)
    }

    /// Removes an object; absent ones count as removed, as on S3. Blocks.
    pub(crate) fn remove(&self, name: &str) -> io::Result<()> {
        match rustix::fs::unlinkat(&self.dir, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT | Errno::NOTDIR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Counts objects whose names start with `prefix`, at most `most`. Blocks.
    pub(crate) fn count(&self, prefix: &str, most: u64) -> io::Result<u64> {
        let mut count = 0;
        if most > 0 {
            walk(&self.root, prefix, &mut |_, _| {
                count += 1;
                Ok(count < most)
            })?;
        }
        Ok(count)
    }
}

/// A file that is being written.
#[derive(Debug)]
pub(crate) struct Temporary {
    store: Arc<Inner>,
    path: String,
    pub(crate) file: Arc<OwnedFd>,
    kept: bool,
}

impl Temporary {
    /// Gives the file its name. Blocks.
    pub(crate) fn keep(mut self, name: &str, condition: Condition) -> io::Result<()> {
        let dir = &self.store.dir;
        let rename = || match condition {
            Condition::Always | Condition::MayBeAbsent => rustix::fs::renameat(dir, &self.path, dir, name),
            Condition::IfAbsent => {
                match rustix::fs::renameat_with(dir, &self.path, dir, name, RenameFlags::NOREPLACE) {
                    // Not every file system knows the flag; the temporary name then goes with `self`.
                    Err(Errno::INVAL | Errno::NOSYS) => {
                        rustix::fs::linkat(dir, &self.path, dir, name, AtFlags::empty())
                    }
                    other => other,
                }
            }
        };
        let parent = Path::new(name).parent().filter(|parent| !parent.as_os_str().is_empty());
        match rename() {
            Err(Errno::NOENT) if parent.is_some() => {
                std::fs::create_dir_all(self.store.root.join(parent.unwrap_or(Path::new(""))))?;
                rename()?;
            }
            other => other?,
        }
        self.kept = condition != Condition::IfAbsent;
        if self.store.fsync == Fsync::Always {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let parent = parent.unwrap_or_else(|| Path::new("."));
            rustix::fs::fsync(rustix::fs::openat(dir, parent, flags, Mode::empty())?)?;
        }
        Ok(())
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.kept {
            let _ = rustix::fs::unlinkat(&self.store.dir, &self.path, AtFlags::empty());
        }
    }
}

/// Shows every file whose name below `root` starts with `prefix` to `see`, until that says to stop.
fn walk(root: &Path, prefix: &str, see: &mut dyn FnMut(&Path, &str) -> io::Result<bool>) -> io::Result<bool> {
    let (dir, _) = prefix.rsplit_once('/').unwrap_or(("", ""));
    if !dir.is_empty() && check(dir).is_err() {
        return Ok(true);
    }
    below(&root.join(dir), dir, prefix, see)
}

fn below(
    path: &Path,
    name: &str,
    prefix: &str,
    see: &mut dyn FnMut(&Path, &str) -> io::Result<bool>,
) -> io::Result<bool> {
    let entries = match std::fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(true);
        }
        Err(error) => return Err(error),
    };
    for entry in entries {
        let entry = entry?;
        let file_name = entry.file_name();
        let Some(last) = file_name.to_str() else { continue };
        let name = if name.is_empty() { last.to_owned() } else { format!("{name}/{last}") };
        if name == NURSERY || !(name.starts_with(prefix) || prefix.starts_with(&name)) {
            continue;
        }
        let on = if entry.file_type()?.is_dir() {
            below(&entry.path(), &name, prefix, see)?
        } else {
            !name.starts_with(prefix) || see(&entry.path(), &name)?
        };
        if !on {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Removes what writers that are gone have left.
fn sweep(nursery: &Path) {
    let Ok(entries) = std::fs::read_dir(nursery) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let owner = name.to_str().and_then(|name| name.split_once('-')).map(|(owner, _)| owner);
        if owner.is_some_and(|owner| !Path::new("/proc").join(owner).exists()) {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

/// Why the page cache cannot be bypassed in `root`, if it cannot.
fn probe_direct(root: &Path) -> io::Result<Option<&'static str>> {
    let kind = rustix::fs::statfs(root)?.f_type;
    if IN_MEMORY.contains(&(kind as u64)) {
        return Ok(Some("a file system in memory"));
    }
    let path = root.join(NURSERY).join(format!("{}-probe-{:?}", std::process::id(), std::thread::current().id()));
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC;
    let mode = Mode::from_raw_mode(0o600);
    let probe = || -> io::Result<Option<&'static str>> {
        drop(rustix::fs::open(&path, flags, mode)?);
        let file = match rustix::fs::open(&path, flags | OFlags::DIRECT, mode) {
            Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok(Some("the file system has no O_DIRECT")),
            other => other?,
        };
        let arena = Arena::new(PAGE, 1).map_err(io::Error::other)?;
        let mut buf = arena.take().ok_or(io::ErrorKind::OutOfMemory)?;
        match rustix::io::pwrite(&file, buf.spare(), 0).and_then(|_| rustix::io::pread(&file, buf.spare(), 0)) {
            Ok(_) => Ok(None),
            Err(Errno::INVAL) => Ok(Some("the file system has no O_DIRECT in pages of 4 KiB")),
            Err(error) => Err(error.into()),
        }
    };
    let found = probe();
    let _ = std::fs::remove_file(&path);
    found
}

/// Open files that a core may keep: a share of what the process may have, the limit raised as far as it goes.
fn handles() -> usize {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    let most = if setrlimit(Resource::Nofile, raised).is_ok() { limit.maximum } else { limit.current };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let most = most.map_or(1 << 20, |most| usize::try_from(most).unwrap_or(usize::MAX));
    (most / 4 / cores).clamp(16, 4096)
}

/// The path as the kernel takes it, in memory that is used again.
pub(crate) fn c_path(name: &str, spare: &mut Vec<u8>) -> Result<CString, OpError> {
    let mut text = std::mem::take(spare);
    text.clear();
    text.extend_from_slice(OsStr::new(name).as_encoded_bytes());
    CString::new(text).map_err(|_| OpError::new(ErrorKind::Client, format!("`{name}` holds a zero byte")))
}
