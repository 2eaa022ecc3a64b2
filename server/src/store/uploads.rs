//! Multipart uploads under way.

use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;
use std::time::SystemTime;

use super::{Attributes, ChecksumKind, Checksums, Etag, StoreError};

/// What a multipart upload was started with.
#[derive(Debug, Clone)]
pub struct UploadInfo {
    /// The object's key.
    pub key: String,
    /// When it was started.
    pub started: SystemTime,
    /// Header fields the object gets.
    pub attributes: Option<Box<Attributes>>,
    /// Checksum algorithm by its S3 name, where one was asked for.
    pub checksum_algorithm: Option<String>,
    /// What the object's checksum covers.
    pub checksum_kind: ChecksumKind,
}

/// What is known of a part.
#[derive(Debug, Clone)]
pub struct PartInfo {
    /// 1 to 10,000.
    pub number: u32,
    /// Length in bytes.
    pub len: u64,
    /// Entity tag.
    pub etag: Etag,
    /// When it was written.
    pub modified: SystemTime,
    /// Its checksums, where given.
    pub checksums: Option<Box<Checksums>>,
}

#[derive(Debug)]
struct Upload<B> {
    info: Arc<UploadInfo>,
    parts: BTreeMap<u32, (PartInfo, B)>,
}

/// The uploads of one bucket.
#[derive(Debug)]
pub(super) struct Uploads<B>(HashMap<String, Upload<B>>);

impl<B> Default for Uploads<B> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<B> Uploads<B> {
    pub(super) fn start(&mut self, info: UploadInfo) -> String {
        // Unique here, and not like any before a restart; it is no secret, every call is signed.
        let random = || RandomState::new().hash_one(self.0.len());
        let id = loop {
            let id = format!("{:016x}{:016x}", random(), random());
            if !self.0.contains_key(&id) {
                break id;
            }
        };
        self.0.insert(id.clone(), Upload { info: Arc::new(info), parts: BTreeMap::new() });
        id
    }

    fn get(&self, key: &str, id: &str) -> Result<&Upload<B>, StoreError> {
        self.0.get(id).filter(|upload| upload.info.key == key).ok_or(StoreError::NoSuchUpload)
    }

    pub(super) fn info(&self, key: &str, id: &str) -> Result<Arc<UploadInfo>, StoreError> {
        self.get(key, id).map(|upload| Arc::clone(&upload.info))
    }

    pub(super) fn all(&self) -> Vec<(String, Arc<UploadInfo>)> {
        let mut all: Vec<_> = self.0.iter().map(|(id, upload)| (id.clone(), Arc::clone(&upload.info))).collect();
        all.sort_by(|a, b| (&a.1.key, &a.0).cmp(&(&b.1.key, &b.0)));
        all
    }

    pub(super) fn add(&mut self, key: &str, id: &str, part: PartInfo, body: B) -> Result<Option<B>, StoreError> {
        let upload = self.0.get_mut(id).filter(|upload| upload.info.key == key).ok_or(StoreError::NoSuchUpload)?;
        Ok(upload.parts.insert(part.number, (part, body)).map(|(_, old)| old))
    }

    pub(super) fn parts(&self, key: &str, id: &str) -> Result<Vec<PartInfo>, StoreError> {
        Ok(self.get(key, id)?.parts.values().map(|(part, _)| part.clone()).collect())
    }

    /// The bodies of the parts `numbers`, and the end of the upload.
    pub(super) fn take(&mut self, key: &str, id: &str, numbers: &[u32]) -> Result<Vec<(PartInfo, B)>, StoreError> {
        let upload = self.get(key, id)?;
        if let Some(missing) = numbers.iter().find(|number| !upload.parts.contains_key(number)) {
            return Err(StoreError::InvalidPart(*missing));
        }
        let mut parts = self.0.remove(id).ok_or(StoreError::NoSuchUpload)?.parts;
        Ok(numbers.iter().filter_map(|number| parts.remove(number)).collect())
    }

    pub(super) fn abort(&mut self, key: &str, id: &str) -> Result<(), StoreError> {
        self.get(key, id)?;
        self.0.remove(id);
        Ok(())
    }
}
