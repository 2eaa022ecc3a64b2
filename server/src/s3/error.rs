//! What a store's refusal is called in S3.

use http::StatusCode;
use s3s::{S3Error, S3ErrorCode};

use crate::store::StoreError;

impl From<StoreError> for S3Error {
    fn from(error: StoreError) -> Self {
        let code = match &error {
            StoreError::NoSuchBucket(_) => S3ErrorCode::NoSuchBucket,
            StoreError::NoSuchKey => S3ErrorCode::NoSuchKey,
            StoreError::BucketExists(_) => S3ErrorCode::BucketAlreadyOwnedByYou,
            StoreError::BucketNotEmpty(_) => S3ErrorCode::BucketNotEmpty,
            StoreError::NoSuchUpload => S3ErrorCode::NoSuchUpload,
            StoreError::InvalidPart(_) => S3ErrorCode::InvalidPart,
            StoreError::PreconditionFailed => S3ErrorCode::PreconditionFailed,
            StoreError::Full { .. } => S3ErrorCode::Custom("InsufficientStorage".into()),
        };
        let full = matches!(error, StoreError::Full { .. });
        let mut out = Self::with_message(code, error.to_string());
        if full {
            out.set_status_code(StatusCode::INSUFFICIENT_STORAGE);
        }
        out
    }
}

/// What an error in a request's body is called. s3s keeps the types of these errors to itself, not their text.
pub(super) fn of_body(error: &(dyn std::error::Error + 'static)) -> S3Error {
    let text = error.to_string();
    let code = if text.contains("SignatureMismatch") {
        S3ErrorCode::SignatureDoesNotMatch
    } else if text.contains("Sha256Mismatch") {
        let mut mismatch = S3Error::with_message(
            S3ErrorCode::Custom("XAmzContentSHA256Mismatch".into()),
            "the provided x-amz-content-sha256 header does not match what was computed",
        );
        mismatch.set_status_code(StatusCode::BAD_REQUEST);
        return mismatch;
    } else if text.contains("Incomplete") || text.contains("LengthMismatch") || text.contains("Underlying") {
        return S3Error::with_message(
            S3ErrorCode::IncompleteBody,
            "the body does not have the number of bytes its header gives",
        );
    } else {
        S3ErrorCode::InvalidRequest
    };
    S3Error::with_message(code, text)
}
