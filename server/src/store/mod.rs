//! Where objects live: one trait, whatever the wire they came over.
//!
//! What an object *is* (length, entity tag, attributes) is looked up without waiting; what it *holds* goes in through a
//! [`Writer`] and comes out through a [`Reader`], so that a store on disk can wait there and one in memory need not.

mod index;
pub mod mem;
mod object;
pub mod synth;
mod uploads;

use std::future::Future;
use std::ops::Range;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::SystemTime;

use bytes::Bytes;

pub use index::{ListQuery, Listing};
pub use object::{Attributes, ChecksumKind, Checksums, Entry, Etag, EtagMatch, Meta, Precondition};
pub use uploads::{PartInfo, UploadInfo};

/// Largest piece of a body that is made or read as it is handed out, in bytes: large enough to amortize a system call,
/// small enough to stay in cache between the store and the socket.
pub const CHUNK_BYTES: usize = 256 * 1024;

/// Why a store refused.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The bucket is not there.
    #[error("bucket `{0}` does not exist")]
    NoSuchBucket(String),
    /// The object is not there.
    #[error("no object has this key")]
    NoSuchKey,
    /// A bucket of that name is there already.
    #[error("bucket `{0}` exists already")]
    BucketExists(String),
    /// A bucket with objects cannot be deleted.
    #[error("bucket `{0}` is not empty")]
    BucketNotEmpty(String),
    /// The upload was never started, or is completed or aborted.
    #[error("the multipart upload does not exist")]
    NoSuchUpload,
    /// A part named at completion was not uploaded, or with another entity tag.
    #[error("part {0} was not uploaded, or has another entity tag")]
    InvalidPart(u32),
    /// If-Match or If-None-Match did not hold at the moment of the write.
    #[error("at least one of the preconditions did not hold")]
    PreconditionFailed,
    /// The capacity is used up.
    #[error("{needed} more bytes do not fit: {used} of {capacity} bytes are in use")]
    Full {
        /// Bytes that were asked for.
        needed: u64,
        /// Bytes in use.
        used: u64,
        /// Bytes the store may hold.
        capacity: u64,
    },
}

/// Bytes and objects a store holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Objects in all buckets.
    pub objects: u64,
    /// Bytes really held in memory or on disk; payload a synth store makes on GET does not count.
    pub held_bytes: u64,
    /// Bytes it may hold.
    pub capacity_bytes: u64,
}

/// A bucket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BucketInfo {
    /// Its name.
    pub name: String,
    /// When it was created.
    pub created: SystemTime,
}

/// A body on its way in. Dropping it instead of finishing forgets what was written.
pub trait Writer: Send {
    /// What [`Store::put`] and [`Store::add_part`] take.
    type Body;

    /// Appends `chunk`.
    ///
    /// # Errors
    /// [`StoreError::Full`]; the writer is then of no further use.
    fn write(&mut self, chunk: Bytes) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// The body, complete.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    fn finish(self) -> impl Future<Output = Result<Self::Body, StoreError>> + Send;
}

/// A body on its way out.
pub trait Reader: Send + Unpin + 'static {
    /// The next chunk, at most [`CHUNK_BYTES`]; `None` after the last.
    fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, StoreError>>>;
}

/// Buckets of objects, strictly consistent: what a call has acknowledged, every later call sees.
pub trait Store: Send + Sync + 'static {
    /// The bytes of an object as the store keeps them.
    type Body: Send + Sync + 'static;
    /// Takes a body in.
    type Writer: Writer<Body = Self::Body>;
    /// Gives a body out.
    type Reader: Reader;

    /// Creates a bucket.
    ///
    /// # Errors
    /// [`StoreError::BucketExists`].
    fn create_bucket(&self, bucket: &str) -> Result<(), StoreError>;

    /// Deletes an empty bucket.
    ///
    /// # Errors
    /// [`StoreError::NoSuchBucket`], [`StoreError::BucketNotEmpty`].
    fn delete_bucket(&self, bucket: &str) -> Result<(), StoreError>;

    /// The bucket.
    ///
    /// # Errors
    /// [`StoreError::NoSuchBucket`].
    fn bucket(&self, bucket: &str) -> Result<BucketInfo, StoreError>;

    /// All buckets, by name.
    fn buckets(&self) -> Vec<BucketInfo>;

    /// What is in use.
    fn usage(&self) -> Usage;

    /// Bytes held, and bytes that may be: what [`usage`](Self::usage) says of them, at no cost.
    fn room(&self) -> (u64, u64);

    /// The object called `key`.
    ///
    /// # Errors
    /// [`StoreError::NoSuchBucket`], [`StoreError::NoSuchKey`].
    fn find(&self, bucket: &str, key: &str) -> Result<Arc<Entry<Self::Body>>, StoreError>;

    /// Bytes `range` of an object, which must lie inside it.
    fn read(&self, entry: &Arc<Entry<Self::Body>>, range: Range<u64>) -> Self::Reader;

    /// Bytes `range` of an object as a body of their own, shared where the store can.
    fn slice(&self, entry: &Arc<Entry<Self::Body>>, range: Range<u64>) -> Self::Body;

    /// Begins a body for `key`. `len` is its length where known, `at` where it will begin in the object (0 but for
    /// parts, where it is a guess).
    fn writer(&self, key: &str, len: Option<u64>, at: u64) -> Self::Writer;

    /// Makes `body` the object `key`, if the precondition holds at that moment.
    ///
    /// # Errors
    /// [`StoreError::NoSuchBucket`], [`StoreError::NoSuchKey`] (If-Match without an object),
    /// [`StoreError::PreconditionFailed`].
    fn put(
        &self,
        bucket: &str,
        key: &str,
        entry: Entry<Self::Body>,
        only: &Precondition,
    ) -> impl Future<Output = Result<Arc<Entry<Self::Body>>, StoreError>> + Send;

    /// Deletes the object `key`; whether there was one.
    ///
    /// # Errors
    /// [`StoreError::NoSuchBucket`], [`StoreError::PreconditionFailed`].
    fn delete(
        &self,
        bucket: &str,
        key: &str,
        only: &Precondition,
    ) -> impl Future<Output = Result<bool, StoreError>> + Send;

    /// Keys in order.
    ///
    /// # Errors
    /// [`StoreError::NoSuchBucket`].
    fn list(&self, bucket: &str, query: &ListQuery<'_>) -> Result<Listing<Self::Body>, StoreError>;

    /// Begins a multipart upload; its id.
    ///
    /// # Errors
    /// [`StoreError::NoSuchBucket`].
    fn start_upload(&self, bucket: &str, info: UploadInfo) -> Result<String, StoreError>;

    /// What an upload was started with.
    ///
    /// # Errors
    /// [`StoreError::NoSuchUpload`].
    fn upload(&self, bucket: &str, key: &str, id: &str) -> Result<Arc<UploadInfo>, StoreError>;

    /// Uploads under way in a bucket: id and what they were started with, by key and id.
    ///
    /// # Errors
    /// [`StoreError::NoSuchBucket`].
    fn uploads(&self, bucket: &str) -> Result<Vec<(String, Arc<UploadInfo>)>, StoreError>;

    /// Adds or replaces a part.
    ///
    /// # Errors
    /// [`StoreError::NoSuchUpload`].
    fn add_part(
        &self,
        bucket: &str,
        key: &str,
        id: &str,
        info: PartInfo,
        body: Self::Body,
    ) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// The parts of an upload, by number.
    ///
    /// # Errors
    /// [`StoreError::NoSuchUpload`].
    fn parts(&self, bucket: &str, key: &str, id: &str) -> Result<Vec<PartInfo>, StoreError>;

    /// Joins the parts `numbers` into the object, which `meta` describes, and ends the upload.
    ///
    /// # Errors
    /// As [`put`](Self::put), [`StoreError::NoSuchUpload`], [`StoreError::InvalidPart`].
    fn complete_upload(
        &self,
        bucket: &str,
        key: &str,
        id: &str,
        numbers: &[u32],
        meta: Meta,
        only: &Precondition,
    ) -> impl Future<Output = Result<Arc<Entry<Self::Body>>, StoreError>> + Send;

    /// Forgets an upload and its parts.
    ///
    /// # Errors
    /// [`StoreError::NoSuchUpload`].
    fn abort_upload(&self, bucket: &str, key: &str, id: &str) -> Result<(), StoreError>;
}
