//! Buckets.

use s3s::S3Result;
use s3s::dto::{Bucket, CreateBucketOutput, HeadBucketOutput, ListBucketsInput, ListBucketsOutput};

use super::{Wire, listing};
use crate::store::Store;

impl<S: Store> Wire<S> {
    pub(super) fn create_bucket(&self, bucket: &str) -> S3Result<CreateBucketOutput> {
        self.store.create_bucket(bucket)?;
        Ok(CreateBucketOutput { location: Some(format!("/{bucket}")) })
    }

    pub(super) fn head_bucket(&self, bucket: &str) -> S3Result<HeadBucketOutput> {
        self.store.bucket(bucket)?;
        Ok(HeadBucketOutput { bucket_region: Some("us-east-1".to_owned()), ..HeadBucketOutput::default() })
    }

    pub(super) fn list_buckets(&self, input: ListBucketsInput) -> ListBucketsOutput {
        let prefix = input.prefix.unwrap_or_default();
        let buckets =
            self.store.buckets().into_iter().filter(|bucket| bucket.name.starts_with(&prefix)).map(|bucket| Bucket {
                name: Some(bucket.name),
                creation_date: Some(bucket.created.into()),
                ..Bucket::default()
            });
        ListBucketsOutput {
            buckets: Some(buckets.collect()),
            owner: Some(listing::owner()),
            prefix: (!prefix.is_empty()).then_some(prefix),
            ..ListBucketsOutput::default()
        }
    }
}
