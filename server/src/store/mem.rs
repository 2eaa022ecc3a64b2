//! Objects in memory, up to a capacity.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::task::{Context, Poll};
use std::time::SystemTime;

use bytes::{Bytes, BytesMut};

use super::index::Index;
use super::synth::{Source, Stretch, Synth};
use super::uploads::Uploads;
use super::{
    BucketInfo, CHUNK_BYTES, Entry, ListQuery, Listing, Meta, PartInfo, Precondition, Reader, Store, StoreError,
    UploadInfo, Usage, Writer,
};

/// Bodies are cut into allocations of this many bytes.
const SEGMENT_BYTES: usize = 1 << 20;
/// First allocation of a body whose length is not known.
const FIRST_BYTES: usize = 16 * 1024;

/// What may be held, and what is.
#[derive(Debug)]
struct Space {
    capacity: u64,
    used: AtomicU64,
}

/// Bytes taken from a [`Space`], given back on drop.
#[derive(Debug)]
struct Reserved {
    space: Arc<Space>,
    bytes: u64,
}

impl Reserved {
    fn none(space: &Arc<Space>) -> Self {
        Self { space: Arc::clone(space), bytes: 0 }
    }

    fn grow(&mut self, bytes: u64) -> Result<(), StoreError> {
        let Space { capacity, used } = &*self.space;
        used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
            used.checked_add(bytes).filter(|sum| sum <= capacity)
        })
        .map_err(|used| StoreError::Full { needed: bytes, used, capacity: *capacity })?;
        self.bytes += bytes;
        Ok(())
    }

    fn shrink(&mut self, bytes: u64) {
        self.space.used.fetch_sub(bytes, Ordering::Relaxed);
        self.bytes -= bytes;
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        self.space.used.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// A piece of a body.
#[derive(Debug, Clone)]
enum Extent {
    /// Held, together with its share of the capacity.
    Held(Bytes, Arc<Reserved>),
    /// Made again on GET.
    Made(Stretch),
}

impl Extent {
    fn len(&self) -> u64 {
        match self {
            Self::Held(bytes, _) => bytes.len() as u64,
            Self::Made(stretch) => stretch.len,
        }
    }

    fn part(&self, from: u64, len: u64) -> Self {
        match self {
            // An offset inside a held piece fits a usize.
            Self::Held(bytes, reserved) => {
                Self::Held(bytes.slice(from as usize..(from + len) as usize), Arc::clone(reserved))
            }
            Self::Made(stretch) => Self::Made(stretch.part(from, len)),
        }
    }
}

/// A body in memory.
#[derive(Debug)]
pub struct MemBody {
    extents: Vec<Extent>,
}

#[derive(Debug)]
struct Bucket {
    created: SystemTime,
    objects: RwLock<Index<MemBody>>,
    uploads: RwLock<Uploads<MemBody>>,
}

/// Objects in memory, and, with a [`Synth`], such as need not be.
#[derive(Debug)]
pub struct MemStore {
    buckets: RwLock<BTreeMap<String, Arc<Bucket>>>,
    space: Arc<Space>,
    synth: Option<Arc<Synth>>,
}

/// A panic elsewhere while a lock was held leaves whole entries behind: every change is one insert or one remove.
fn read<T>(lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

fn write<T>(lock: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}

impl MemStore {
    /// An empty store that holds at most `capacity` bytes of bodies.
    #[must_use]
    pub fn new(capacity: u64) -> Self {
        let space = Arc::new(Space { capacity, used: AtomicU64::new(0) });
        Self { buckets: RwLock::default(), space, synth: None }
    }

    /// An empty store that does not hold what `synth` can make.
    #[must_use]
    pub fn with_synth(capacity: u64, synth: Synth) -> Self {
        Self { synth: Some(Arc::new(synth)), ..Self::new(capacity) }
    }

    fn open(&self, bucket: &str) -> Result<Arc<Bucket>, StoreError> {
        read(&self.buckets).get(bucket).cloned().ok_or_else(|| StoreError::NoSuchBucket(bucket.to_owned()))
    }

    fn insert(
        &self,
        bucket: &str,
        key: &str,
        entry: Entry<MemBody>,
        only: &Precondition,
    ) -> Result<Arc<Entry<MemBody>>, StoreError> {
        let entry = Arc::new(entry);
        // Holding the list of buckets keeps this one from being deleted, as empty, under the write.
        let buckets = read(&self.buckets);
        let bucket = buckets.get(bucket).ok_or_else(|| StoreError::NoSuchBucket(bucket.to_owned()))?;
        let replaced = {
            let mut objects = write(&bucket.objects);
            only.check(objects.get(key).map(|there| there.meta.etag))?;
            objects.insert(key, Arc::clone(&entry))
        };
        // Freeing a large body takes a while: not under the lock.
        drop(replaced);
        Ok(entry)
    }

    /// Lets go of what turns out to be payload now that its place in the object is known.
    fn recognize_joined(&self, key: &str, extents: &mut Vec<Extent>) {
        let Some(synth) = &self.synth else { return };
        let source = synth.source(key);
        let mut at = 0;
        for extent in &mut *extents {
            let len = extent.len();
            if let Extent::Held(bytes, _) = extent
                && let Some(stretch) = Synth::recognize(&source, at, bytes)
            {
                *extent = Extent::Made(stretch);
            }
            at += len;
        }
        merge(extents);
    }
}

/// Joins stretches that follow one another in the payload of the same object.
fn merge(extents: &mut Vec<Extent>) {
    extents.dedup_by(|next, last| match (next, last) {
        (Extent::Made(next), Extent::Made(last)) if last.is_followed_by(next) => {
            last.len += next.len;
            true
        }
        _ => false,
    });
}

/// A body on its way into memory.
#[derive(Debug)]
pub struct MemWriter {
    extents: Vec<Extent>,
    segment: BytesMut,
    reserved: Reserved,
    /// Bytes of the body still to come, where known.
    remaining: Option<u64>,
    source: Option<Source>,
    /// Where the segment begins in the object.
    at: u64,
}

impl MemWriter {
    /// Bytes to allocate next.
    fn next_segment(&self) -> usize {
        match self.remaining {
            Some(remaining) => usize::try_from(remaining).unwrap_or(usize::MAX).clamp(1, SEGMENT_BYTES),
            None => (FIRST_BYTES << self.extents.len().min(6)).min(SEGMENT_BYTES),
        }
    }

    /// Files the segment away, if there is anything in it.
    fn close_segment(&mut self) {
        let len = self.segment.len() as u64;
        if len == 0 {
            return;
        }
        if let Some(source) = &self.source
            && let Some(stretch) = Synth::recognize(source, self.at, &self.segment)
        {
            self.extents.push(Extent::Made(stretch));
            merge(&mut self.extents);
            self.segment.clear();
        } else {
            let segment = std::mem::take(&mut self.segment);
            // A segment mostly empty, as the last of a body of unknown length can be, is not worth its allocation.
            let bytes = if segment.len() < segment.capacity() / 2 {
                Bytes::copy_from_slice(&segment)
            } else {
                segment.freeze()
            };
            self.reserved.shrink(self.reserved.bytes - len);
            let none = Reserved::none(&self.reserved.space);
            let reserved = std::mem::replace(&mut self.reserved, none);
            self.extents.push(Extent::Held(bytes, Arc::new(reserved)));
        }
        self.at += len;
    }

    fn append(&mut self, mut chunk: &[u8]) -> Result<(), StoreError> {
        while !chunk.is_empty() {
            // A segment is filled to what was reserved for it, never to what the allocator rounded it up to.
            if self.segment.len() as u64 == self.reserved.bytes {
                self.close_segment();
                if self.reserved.bytes == 0 {
                    let bytes = self.next_segment();
                    self.reserved.grow(bytes as u64)?;
                    self.segment = BytesMut::with_capacity(bytes);
                }
            }
            let room = (self.reserved.bytes as usize).saturating_sub(self.segment.len());
            let (now, later) = chunk.split_at(room.min(chunk.len()));
            self.segment.extend_from_slice(now);
            if let Some(remaining) = &mut self.remaining {
                *remaining = remaining.saturating_sub(now.len() as u64);
            }
            chunk = later;
        }
        Ok(())
    }
}

impl Writer for MemWriter {
    type Body = MemBody;

    async fn write(&mut self, chunk: Bytes) -> Result<(), StoreError> {
        self.append(&chunk)
    }

    async fn finish(mut self) -> Result<MemBody, StoreError> {
        self.close_segment();
        self.extents.shrink_to_fit();
        Ok(MemBody { extents: self.extents })
    }
}

/// A body on its way out of memory.
#[derive(Debug)]
pub struct MemReader {
    entry: Arc<Entry<MemBody>>,
    synth: Option<Arc<Synth>>,
    /// The extent to read from next, and where in it.
    extent: usize,
    within: u64,
    remaining: u64,
}

impl Reader for MemReader {
    fn poll_chunk(&mut self, _: &mut Context<'_>) -> Poll<Option<Result<Bytes, StoreError>>> {
        while self.remaining > 0 {
            let Some(extent) = self.entry.body.extents.get(self.extent) else { break };
            let left = extent.len() - self.within;
            if left == 0 {
                (self.extent, self.within) = (self.extent + 1, 0);
                continue;
            }
            let left = left.min(self.remaining);
            let chunk = match (extent, &self.synth) {
                // A slice costs nothing, and hyper writes what it has been given before it asks for more: the larger,
                // the fewer system calls.
                (Extent::Held(bytes, _), _) => bytes.slice(self.within as usize..(self.within + left) as usize),
                (Extent::Made(stretch), Some(synth)) => synth.make(stretch, self.within, left.min(CHUNK_BYTES as u64)),
                // Stretches come from a synth.
                (Extent::Made(_), None) => break,
            };
            self.within += chunk.len() as u64;
            self.remaining -= chunk.len() as u64;
            return Poll::Ready(Some(Ok(chunk)));
        }
        Poll::Ready(None)
    }
}

/// The extent that holds byte `at`, and where in it.
fn locate(extents: &[Extent], mut at: u64) -> (usize, u64) {
    for (i, extent) in extents.iter().enumerate() {
        if at < extent.len() {
            return (i, at);
        }
        at -= extent.len();
    }
    (extents.len(), 0)
}

impl Store for MemStore {
    type Body = MemBody;
    type Writer = MemWriter;
    type Reader = MemReader;

    fn create_bucket(&self, bucket: &str) -> Result<(), StoreError> {
        let mut buckets = write(&self.buckets);
        if buckets.contains_key(bucket) {
            return Err(StoreError::BucketExists(bucket.to_owned()));
        }
        let new = Bucket { created: SystemTime::now(), objects: RwLock::default(), uploads: RwLock::default() };
        buckets.insert(bucket.to_owned(), Arc::new(new));
        Ok(())
    }

    fn delete_bucket(&self, bucket: &str) -> Result<(), StoreError> {
        let mut buckets = write(&self.buckets);
        let there = buckets.get(bucket).ok_or_else(|| StoreError::NoSuchBucket(bucket.to_owned()))?;
        if read(&there.objects).len() > 0 {
            return Err(StoreError::BucketNotEmpty(bucket.to_owned()));
        }
        buckets.remove(bucket);
        Ok(())
    }

    fn bucket(&self, bucket: &str) -> Result<BucketInfo, StoreError> {
        let there = self.open(bucket)?;
        Ok(BucketInfo { name: bucket.to_owned(), created: there.created })
    }

    fn buckets(&self) -> Vec<BucketInfo> {
        let info = |(name, bucket): (&String, &Arc<Bucket>)| BucketInfo { name: name.clone(), created: bucket.created };
        read(&self.buckets).iter().map(info).collect()
    }

    fn usage(&self) -> Usage {
        let objects = read(&self.buckets).values().map(|bucket| read(&bucket.objects).len() as u64).sum();
        let held_bytes = self.space.used.load(Ordering::Relaxed);
        Usage { objects, held_bytes, capacity_bytes: self.space.capacity }
    }

    fn room(&self) -> (u64, u64) {
        (self.space.used.load(Ordering::Relaxed), self.space.capacity)
    }

    fn find(&self, bucket: &str, key: &str) -> Result<Arc<Entry<MemBody>>, StoreError> {
        let buckets = read(&self.buckets);
        let bucket = buckets.get(bucket).ok_or_else(|| StoreError::NoSuchBucket(bucket.to_owned()))?;
        let objects = read(&bucket.objects);
        objects.get(key).cloned().ok_or(StoreError::NoSuchKey)
    }

    fn read(&self, entry: &Arc<Entry<MemBody>>, range: Range<u64>) -> MemReader {
        let (extent, within) = locate(&entry.body.extents, range.start);
        MemReader {
            entry: Arc::clone(entry),
            synth: self.synth.clone(),
            extent,
            within,
            remaining: range.end.saturating_sub(range.start),
        }
    }

    fn slice(&self, entry: &Arc<Entry<MemBody>>, range: Range<u64>) -> MemBody {
        let extents = &entry.body.extents;
        let (mut extent, mut within) = locate(extents, range.start);
        let mut remaining = range.end.saturating_sub(range.start);
        let mut parts = Vec::new();
        while remaining > 0
            && let Some(whole) = extents.get(extent)
        {
            let len = (whole.len() - within).min(remaining);
            parts.push(whole.part(within, len));
            remaining -= len;
            (extent, within) = (extent + 1, 0);
        }
        MemBody { extents: parts }
    }

    fn writer(&self, key: &str, len: Option<u64>, at: u64) -> MemWriter {
        MemWriter {
            extents: Vec::new(),
            segment: BytesMut::new(),
            reserved: Reserved::none(&self.space),
            remaining: len,
            source: self.synth.as_ref().map(|synth| synth.source(key)),
            at,
        }
    }

    async fn put(
        &self,
        bucket: &str,
        key: &str,
        entry: Entry<MemBody>,
        only: &Precondition,
    ) -> Result<Arc<Entry<MemBody>>, StoreError> {
        self.insert(bucket, key, entry, only)
    }

    async fn delete(&self, bucket: &str, key: &str, only: &Precondition) -> Result<bool, StoreError> {
        let bucket = self.open(bucket)?;
        let removed = {
            let mut objects = write(&bucket.objects);
            only.check(objects.get(key).map(|there| there.meta.etag))?;
            objects.remove(key)
        };
        Ok(removed.is_some())
    }

    fn list(&self, bucket: &str, query: &ListQuery<'_>) -> Result<Listing<MemBody>, StoreError> {
        let bucket = self.open(bucket)?;
        let objects = read(&bucket.objects);
        Ok(objects.list(query))
    }

    fn start_upload(&self, bucket: &str, info: UploadInfo) -> Result<String, StoreError> {
        let bucket = self.open(bucket)?;
        let mut uploads = write(&bucket.uploads);
        Ok(uploads.start(info))
    }

    fn upload(&self, bucket: &str, key: &str, id: &str) -> Result<Arc<UploadInfo>, StoreError> {
        let bucket = self.open(bucket)?;
        let uploads = read(&bucket.uploads);
        uploads.info(key, id)
    }

    fn uploads(&self, bucket: &str) -> Result<Vec<(String, Arc<UploadInfo>)>, StoreError> {
        let bucket = self.open(bucket)?;
        let uploads = read(&bucket.uploads);
        Ok(uploads.all())
    }

    async fn add_part(
        &self,
        bucket: &str,
        key: &str,
        id: &str,
        info: PartInfo,
        body: MemBody,
    ) -> Result<(), StoreError> {
        let bucket = self.open(bucket)?;
        let replaced = write(&bucket.uploads).add(key, id, info, body)?;
        drop(replaced);
        Ok(())
    }

    fn parts(&self, bucket: &str, key: &str, id: &str) -> Result<Vec<PartInfo>, StoreError> {
        let bucket = self.open(bucket)?;
        let uploads = read(&bucket.uploads);
        uploads.parts(key, id)
    }

    async fn complete_upload(
        &self,
        bucket: &str,
        key: &str,
        id: &str,
        numbers: &[u32],
        meta: Meta,
        only: &Precondition,
    ) -> Result<Arc<Entry<MemBody>>, StoreError> {
        let there = self.open(bucket)?;
        let parts = {
            let mut uploads = write(&there.uploads);
            // An upload whose completion is refused is still there; the write itself checks again.
            only.check(read(&there.objects).get(key).map(|entry| entry.meta.etag))?;
            uploads.take(key, id, numbers)?
        };
        let mut extents: Vec<_> = parts.into_iter().flat_map(|(_, body)| body.extents).collect();
        merge(&mut extents);
        self.recognize_joined(key, &mut extents);
        self.insert(bucket, key, Entry { meta, body: MemBody { extents } }, only)
    }

    fn abort_upload(&self, bucket: &str, key: &str, id: &str) -> Result<(), StoreError> {
        let bucket = self.open(bucket)?;
        write(&bucket.uploads).abort(key, id)
    }
}
