//! A lane of files: one operation at a time, with a bounce buffer of its own for what the operation's cannot take.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use gpufeed_engine::transport::{Clock, Data, Done, Lane, Limits, OpError, Transport};
use gpufeed_io::arena::{Arena, Buf, PAGE};
use gpufeed_io::payload::Payload;
use gpufeed_io::ring::Ring;
use gpufeed_workloads::op::{Carrier, ErrorKind, Key, Names, Op, Tick, Verb};
use rustix::fs::OFlags;

use super::disk::{Disk, blocking};
use super::store::{FileStore, Fsync, c_path, check, failed};
use crate::landing::land;

/// Bytes of a lane's bounce buffer: larger reads and writes go in several.
const BOUNCE: usize = 4 << 20;
/// Operations of the ring that may be queued at once; more are submitted earlier.
const ENTRIES: u32 = 256;

/// Files, seen from one core.
#[derive(Debug, Clone)]
pub struct FileTarget {
    store: FileStore,
    disk: Disk,
    names: Arc<Names>,
    arena: Arena,
    clock: Clock,
    handles: Rc<RefCell<Handles>>,
}

impl FileTarget {
    /// The transport of one core; to be made on that core's thread.
    ///
    /// # Errors
    /// When the core's ring cannot be made (descriptors or memory used up).
    pub fn new(store: FileStore, names: Arc<Names>, arena: Arena, clock: Clock) -> Result<Self, OpError> {
        let disk = if store.inner.io_uring {
            let ring = Ring::new(ENTRIES).map_err(|error| failed("use io_uring in", "", &store.inner.root, &error))?;
            // Without registration the kernel pins pages for each operation: slower, not wrong.
            if let Err(error) = ring.register(&[&arena]) {
                tracing::debug!("buffers are not registered with io_uring: {error}");
            }
            Disk::Ring(ring)
        } else {
            Disk::Threads
        };
        let handles = Rc::new(RefCell::new(Handles { open: HashMap::new(), order: VecDeque::new() }));
        Ok(Self { store, disk, names, arena, clock, handles })
    }
}

impl Transport for FileTarget {
    type Lane = FileLane;

    fn limits(&self) -> Limits {
        Limits { object_bytes: 1 << 44, alignment: if self.store.inner.direct { PAGE as u64 } else { 1 } }
    }

    fn arena(&self) -> &Arena {
        &self.arena
    }

    fn carrier(&self) -> Option<Carrier> {
        Some(self.store.carrier())
    }

    async fn lane(&self) -> Result<FileLane, OpError> {
        let bounce = Arena::new(BOUNCE, 2).map_err(|error| OpError::new(ErrorKind::Io, error.to_string()))?;
        Ok(FileLane { target: self.clone(), bounce, name: String::new(), path: Vec::new() })
    }

    async fn turn(&self) {
        if let Disk::Ring(ring) = &self.disk
            && let Err(error) = ring.pump().await
        {
            tracing::error!("io_uring stopped: {error}");
        }
        std::future::pending().await
    }
}

/// Files kept open for reading, so that small random reads do not pay for opening: first opened, first closed.
#[derive(Debug)]
struct Handles {
    open: HashMap<Key, Handle>,
    order: VecDeque<Key>,
}

#[derive(Debug, Clone)]
struct Handle {
    generation: u32,
    file: Arc<OwnedFd>,
    bytes: u64,
}

impl Handles {
    fn get(&self, key: Key, generation: u32) -> Option<Handle> {
        self.open.get(&key).filter(|handle| handle.generation == generation).cloned()
    }

    fn insert(&mut self, key: Key, handle: Handle, most: usize) {
        if self.open.insert(key, handle).is_none() {
            self.order.push_back(key);
        }
        while self.open.len() > most {
            let Some(oldest) = self.order.pop_front() else { break };
            self.open.remove(&oldest);
        }
    }
}

/// A lane of [`FileTarget`].
#[derive(Debug)]
pub struct FileLane {
    target: FileTarget,
    /// One buffer in use, another for when a dropped operation still has the first.
    bounce: Arena,
    name: String,
    /// Memory of the path given to the kernel, used again.
    path: Vec<u8>,
}

/// Moments of an operation as they are reached.
struct Marks {
    sent: Tick,
    first_byte: Option<Tick>,
    bytes: u64,
}

impl Lane for FileLane {
    async fn call(&mut self, op: &Op, data: &mut Data) -> Done {
        self.name.clear();
        if op.verb != Verb::List {
            self.target.names.write(op.key, &mut self.name);
        }
        let clock = self.target.clock;
        let mut marks = Marks { sent: clock.now(), first_byte: None, bytes: 0 };
        let result = self.perform(op, data, &mut marks).await;
        let done = clock.now();
        Done {
            sent: marks.sent,
            first_byte: marks.first_byte.unwrap_or(done),
            done,
            carrier: self.target.store.carrier(),
            bytes: marks.bytes,
            attempts: 1,
            result,
        }
    }
}

impl FileLane {
    async fn perform(&mut self, op: &Op, data: &mut Data, marks: &mut Marks) -> Result<(), OpError> {
        if op.verb != Verb::List {
            check(&self.name)?;
        }
        let store = Arc::clone(&self.target.store.inner);
        match op.verb {
            Verb::Get => {
                // The kernel may write to the buffer after this call was dropped, so the buffer goes with the read.
                if !matches!(data, Data::Into { .. }) {
                    return self.get(op, None, marks).await.0;
                }
                let Data::Into { buf, from } = std::mem::replace(data, Data::Discard) else { return Ok(()) };
                let (result, buf) = self.get(op, Some((buf, from)), marks).await;
                if let Some(buf) = buf {
                    *data = Data::Into { buf, from };
                }
                result
            }
            // Parts of a multipart write go to one file one after the other, as one write does.
            Verb::Put | Verb::Multipart => {
                self.put(op, data).await?;
                marks.bytes = op.bytes;
                Ok(())
            }
            Verb::Stat => {
                let name = self.name.clone();
                blocking(move || store.size(&name)).await.map(|_| ()).map_err(|error| self.failed("stat", &error))
            }
            Verb::List => {
                let prefix = self.target.names.spaces[usize::from(op.key.space)].before.clone();
                let most = op.bytes;
                let counted = blocking(move || store.count(&prefix, most)).await;
                counted.map(|_| ()).map_err(|error| self.failed("list", &error))
            }
            Verb::Delete => {
                let name = self.name.clone();
                let key = op.key;
                let removed = blocking(move || {
                    store.remove(&name)?;
                    store.changed(key);
                    Ok(())
                });
                removed.await.map_err(|error| self.failed("delete", &error))
            }
        }
    }

    fn failed(&self, what: &str, error: &io::Error) -> OpError {
        failed(what, &self.name, &self.target.store.inner.root, error)
    }

    fn bounce(&mut self) -> Result<Buf, OpError> {
        if let Some(buf) = self.bounce.take() {
            return Ok(buf);
        }
        // Dropped operations still have both: they free the old pool when the kernel lets go.
        let out = |error: &dyn std::fmt::Display| OpError::new(ErrorKind::Io, format!("no bounce buffer: {error}"));
        self.bounce = Arena::new(BOUNCE, 2).map_err(|error| out(&error))?;
        self.bounce.take().ok_or_else(|| out(&"pool is empty"))
    }

    async fn open(&mut self, key: Key) -> Result<Handle, OpError> {
        let store = &self.target.store.inner;
        let generation = store.generation(key);
        if let Some(handle) = self.target.handles.borrow().get(key, generation) {
            return Ok(handle);
        }
        let direct = if store.direct { OFlags::DIRECT } else { OFlags::empty() };
        let path = c_path(&self.name, &mut self.path)?;
        let (opened, path) = self.target.disk.open(&store.dir, path, OFlags::RDONLY | direct).await;
        self.path = path.map(std::ffi::CString::into_bytes).unwrap_or_default();
        let file = opened.map_err(|error| self.failed("open", &error))?;
        let stat = rustix::fs::fstat(&file).map_err(|error| self.failed("open", &error.into()))?;
        if rustix::fs::FileType::from_raw_mode(stat.st_mode).is_dir() {
            return Err(self.failed("open", &rustix::io::Errno::NOENT.into()));
        }
        let bytes = u64::try_from(stat.st_size).unwrap_or(0);
        let handle = Handle { generation, file: Arc::new(file), bytes };
        let most = self.target.store.inner.handles;
        self.target.handles.borrow_mut().insert(key, handle.clone(), most);
        Ok(handle)
    }

    /// Reads the range or object; the buffer comes back unless the read was dropped or failed.
    async fn get(
        &mut self,
        op: &Op,
        into: Option<(Buf, u64)>,
        marks: &mut Marks,
    ) -> (Result<(), OpError>, Option<Buf>) {
        let (mut buf, from) = into.map_or((None, 0), |(buf, from)| (Some(buf), from));
        let result = self.read(op, &mut buf, from, marks).await;
        if let Some(buf) = &mut buf {
            let kept = usize::try_from(marks.bytes.saturating_sub(from)).unwrap_or(usize::MAX);
            buf.set_len(kept.min(buf.capacity()));
        }
        if result.is_ok() && marks.bytes != op.bytes {
            let detail = format!("{} holds {} of the {} bytes asked for", self.name, marks.bytes, op.bytes);
            return (Err(OpError::new(ErrorKind::ShortBody, detail)), buf);
        }
        (result, buf)
    }

    async fn read(&mut self, op: &Op, into: &mut Option<Buf>, from: u64, marks: &mut Marks) -> Result<(), OpError> {
        let handle = self.open(op.key).await?;
        if !op.ranged && handle.bytes != op.bytes {
            let detail = format!("{} is {} bytes long, not {}", self.name, handle.bytes, op.bytes);
            return Err(OpError::new(ErrorKind::ShortBody, detail));
        }
        let align = self.target.limits().alignment;
        let end = op.offset + op.bytes;
        // Straight into the operation's buffer, where the whole aligned window fits.
        let rounded = usize::try_from(op.bytes.next_multiple_of(align)).unwrap_or(usize::MAX);
        let straight =
            from == 0 && op.offset.is_multiple_of(align) && into.as_ref().is_some_and(|buf| rounded <= buf.capacity());
        let mut bounce = if straight { into.take() } else { Some(self.bounce()?) };
        let mut position = op.offset;
        while position < end {
            let Some(buf) = bounce.take() else { break };
            let start = position - position % align;
            let at = if straight { usize::try_from(position - op.offset).unwrap_or(0) } else { 0 };
            let room = (buf.capacity() - at) as u64;
            let len = usize::try_from((end - start).next_multiple_of(align).min(room)).unwrap_or(0);
            let (read, mut buf) = match self.target.disk.read(&handle.file, start, buf, at, len).await {
                Ok(read) => read,
                Err(error) => return Err(self.failed("read", &error)),
            };
            let useful = (start + read as u64).min(end);
            if !straight
                && useful > position
                && let Some(into) = into
            {
                let skip = usize::try_from(position - start).unwrap_or(0);
                let got = &buf.spare()[skip..skip + usize::try_from(useful - position).unwrap_or(0)];
                land(into, from, position - op.offset, got);
            }
            bounce = Some(buf);
            if useful <= position {
                break;
            }
            marks.first_byte.get_or_insert_with(|| self.target.clock.now());
            position = useful;
            marks.bytes = position - op.offset;
            // A direct read that is not whole pages long has met the end of the file.
            if !position.is_multiple_of(align) {
                break;
            }
        }
        if straight {
            *into = bounce;
        }
        Ok(())
    }

    async fn put(&mut self, op: &Op, data: &Data) -> Result<(), OpError> {
        let source = Source::of(data, op.bytes)?;
        let store = Arc::clone(&self.target.store.inner);
        let align = self.target.limits().alignment;
        let temporary = blocking({
            let store = Arc::clone(&store);
            move || store.create()
        });
        let temporary = temporary.await.map_err(|error| self.failed("write", &error))?;
        let file = Arc::clone(&temporary.file);
        let padded = self.write(&file, &source, op.bytes, align).await?;
        if padded {
            let file = Arc::clone(&file);
            let bytes = op.bytes;
            let cut = blocking(move || Ok(rustix::fs::ftruncate(&file, bytes)?)).await;
            cut.map_err(|error| self.failed("write", &error))?;
        }
        if store.fsync == Fsync::Always {
            self.target.disk.sync_data(&file).await.map_err(|error| self.failed("sync", &error))?;
        }
        let name = self.name.clone();
        let (key, condition) = (op.key, op.condition);
        let kept = blocking(move || {
            temporary.keep(&name, condition)?;
            store.changed(key);
            Ok(())
        });
        kept.await.map_err(|error| self.failed("write", &error))
    }

    /// Writes the payload; whether zeros follow it to a whole page.
    async fn write(
        &mut self,
        file: &Arc<OwnedFd>,
        source: &Source<'_>,
        bytes: u64,
        align: u64,
    ) -> Result<bool, OpError> {
        let mut position = 0;
        // Straight from the operation's bytes, as far as they are whole pages in aligned memory.
        if let Source::Ready(ready) = source
            && (ready.as_ptr().addr() as u64).is_multiple_of(align)
        {
            let whole = bytes - bytes % align;
            while position < whole {
                let rest = ready.slice(index(position)..index(whole));
                let wrote = self.target.disk.write_bytes(file, position, rest).await;
                position += self.advance(wrote)?;
            }
        }
        let mut bounce = None;
        while position < bytes {
            let mut buf = match bounce.take() {
                Some(buf) => buf,
                None => self.bounce()?,
            };
            let len = index((bytes - position).min(BOUNCE as u64));
            source.fill(position, &mut buf.spare()[..len]);
            let padded = len.next_multiple_of(index(align));
            buf.spare()[len..padded].fill(0);
            let mut at = 0;
            while at < padded {
                let (wrote, back) = match self.target.disk.write(file, position + at as u64, buf, at, padded - at).await
                {
                    Ok((wrote, back)) => (Ok(wrote), back),
                    Err(error) => return Err(self.failed("write", &error)),
                };
                buf = back;
                at += index(self.advance(wrote)?);
            }
            bounce = Some(buf);
            position += len as u64;
        }
        Ok(!bytes.is_multiple_of(align))
    }

    fn advance(&self, wrote: io::Result<usize>) -> Result<u64, OpError> {
        match wrote {
            Ok(0) => Err(self.failed("write", &io::ErrorKind::WriteZero.into())),
            Ok(bytes) => Ok(bytes as u64),
            Err(error) => Err(self.failed("write", &error)),
        }
    }
}

fn index(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

/// What is to be written.
enum Source<'a> {
    Ready(&'a Bytes),
    Derived(&'a Payload),
    Nothing,
}

impl<'a> Source<'a> {
    fn of(data: &'a Data, bytes: u64) -> Result<Self, OpError> {
        match data {
            Data::From(ready) if ready.len() as u64 >= bytes => Ok(Self::Ready(ready)),
            Data::Derived(payload) => Ok(Self::Derived(payload)),
            _ if bytes == 0 => Ok(Self::Nothing),
            _ => Err(OpError::new(ErrorKind::Client, format!("a write of {bytes} bytes was given a shorter payload"))),
        }
    }

    fn fill(&self, position: u64, out: &mut [u8]) {
        match self {
            Self::Ready(ready) => out.copy_from_slice(&ready[index(position)..index(position) + out.len()]),
            Self::Derived(payload) => payload.fill(position, out),
            Self::Nothing => {}
        }
    }
}
