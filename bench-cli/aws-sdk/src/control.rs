//! Preparation and clean-up: is the bucket there, what is in it, remove it.

use aws_sdk_s3::Client;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_s3::types::{
    BucketLocationConstraint, CreateBucketConfiguration, Delete, MultipartUpload, ObjectIdentifier,
};
use gpufeed_engine::transport::OpError;
use gpufeed_workloads::op::ErrorKind;

use crate::access::Session;
use crate::failure::failure;

/// What is done to a bucket beside the measurement.
#[derive(Debug, Clone)]
pub struct Control {
    client: Client,
    endpoint: String,
    bucket: String,
    region: String,
}

impl Control {
    /// Controls `bucket` through the session's first endpoint.
    ///
    /// # Errors
    /// When certificates cannot be read.
    pub fn new(session: &Session, bucket: &str) -> Result<Self, OpError> {
        let (endpoint, client) = session.clients()?.swap_remove(0);
        Ok(Self { client, endpoint, bucket: bucket.to_owned(), region: session.region().to_owned() })
    }

    /// Whether the bucket can be reached with these credentials: one small listing, whose refusal names its reason
    /// (that of a HEAD would not).
    ///
    /// # Errors
    /// One sentence for an unreachable endpoint, unknown or wrong keys, an expired token, a missing bucket.
    pub async fn check(&self) -> Result<(), OpError> {
        let asked = self.client.list_objects_v2().bucket(&self.bucket).max_keys(1).send().await;
        asked.map(|_| ()).map_err(|error| self.failed("LIST", "", &error))
    }

    /// Makes the bucket if it is not there; whether it had to.
    ///
    /// # Errors
    /// As [`Self::check`], and when the bucket cannot be made.
    pub async fn ensure_bucket(&self) -> Result<bool, OpError> {
        match self.client.list_objects_v2().bucket(&self.bucket).max_keys(1).send().await {
            Ok(_) => return Ok(false),
            Err(error) if error.code() == Some("NoSuchBucket") => {}
            Err(error) => return Err(self.failed("LIST", "", &error)),
        }
        let mut create = self.client.create_bucket().bucket(&self.bucket);
        // us-east-1 is the one region that may not be named.
        if self.region != "us-east-1" {
            let region = BucketLocationConstraint::from(self.region.as_str());
            let config = CreateBucketConfiguration::builder().location_constraint(region).build();
            create = create.create_bucket_configuration(config);
        }
        match create.send().await {
            Ok(_) => Ok(true),
            // Somebody else was faster.
            Err(error) if error.code() == Some("BucketAlreadyOwnedByYou") => Ok(false),
            Err(error) => Err(self.failed("CREATE BUCKET", "", &error)),
        }
    }

    /// Every object whose key starts with `prefix`, with its size in bytes, in the order of keys.
    ///
    /// # Errors
    /// As [`Self::check`].
    pub async fn list(&self, prefix: &str) -> Result<Vec<(String, u64)>, OpError> {
        let mut found = Vec::new();
        let mut pages = self.client.list_objects_v2().bucket(&self.bucket).prefix(prefix).into_paginator().send();
        while let Some(page) = pages.next().await {
            let page = page.map_err(|error| self.failed("LIST", prefix, &error))?;
            found.extend(page.contents().iter().filter_map(|object| {
                let bytes = object.size().and_then(|bytes| u64::try_from(bytes).ok())?;
                Some((object.key()?.to_owned(), bytes))
            }));
        }
        Ok(found)
    }

    /// Removes every object whose key starts with `prefix`, and every upload begun there and not completed; how many
    /// objects.
    ///
    /// # Errors
    /// As [`Self::check`], and when an object cannot be removed.
    pub async fn delete_prefix(&self, prefix: &str) -> Result<u64, OpError> {
        let mut count = 0;
        let mut pages = self.client.list_objects_v2().bucket(&self.bucket).prefix(prefix).into_paginator().send();
        while let Some(page) = pages.next().await {
            let page = page.map_err(|error| self.failed("LIST", prefix, &error))?;
            let keys = page.contents().iter().filter_map(|object| object.key());
            let keys: Result<Vec<_>, _> = keys.map(|key| ObjectIdentifier::builder().key(key).build()).collect();
            let keys = keys.unwrap_or_default();
            if keys.is_empty() {
                continue;
            }
            count += keys.len() as u64;
            let delete = Delete::builder().set_objects(Some(keys)).quiet(true).build();
            let delete = delete.map_err(|error| OpError::new(ErrorKind::Client, error.to_string()))?;
            let answer = self.client.delete_objects().bucket(&self.bucket).delete(delete).send().await;
            let answer = answer.map_err(|error| self.failed("DELETE", prefix, &error))?;
            if let Some(error) = answer.errors().first() {
                let (key, code) = (error.key().unwrap_or(prefix), error.code().unwrap_or("an error"));
                let detail = format!("DELETE {}/{key} at {} was answered {code}", self.bucket, self.endpoint);
                return Err(OpError::new(ErrorKind::Server, detail));
            }
        }
        // Not every server lists uploads; what cannot be listed is not ours to complain about.
        if let Ok(uploads) = self.client.list_multipart_uploads().bucket(&self.bucket).prefix(prefix).send().await {
            for (key, id) in uploads
                .uploads()
                .iter()
                .filter_map(MultipartUpload::key)
                .zip(uploads.uploads().iter().filter_map(MultipartUpload::upload_id))
            {
                let abort = self.client.abort_multipart_upload().bucket(&self.bucket).key(key).upload_id(id);
                abort.send().await.map_err(|error| self.failed("ABORT", key, &error))?;
            }
        }
        Ok(count)
    }

    /// Size of an object in bytes, if it is there.
    ///
    /// # Errors
    /// As [`Self::check`].
    pub async fn head(&self, key: &str) -> Result<Option<u64>, OpError> {
        match self.client.head_object().bucket(&self.bucket).key(key).send().await {
            Ok(object) => Ok(Some(object.content_length().and_then(|bytes| u64::try_from(bytes).ok()).unwrap_or(0))),
            Err(error) if error.raw_response().is_some_and(|answer| answer.status().as_u16() == 404) => Ok(None),
            Err(error) => Err(self.failed("HEAD", key, &error)),
        }
    }

    fn failed<E>(
        &self,
        what: &str,
        key: &str,
        error: &SdkError<E, aws_smithy_runtime_api::client::orchestrator::HttpResponse>,
    ) -> OpError
    where
        E: ProvideErrorMetadata + std::error::Error + 'static,
    {
        failure(&format!("{what} {}/{key}", self.bucket), &self.endpoint, error)
    }
}
