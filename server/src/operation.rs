//! What a request asks for, as logs, metrics and the shape name it.

use gpufeed_profiles::storage::ShapedOp;
use http::{HeaderMap, Method};

use crate::s3::read;
use crate::s3::target::Target;

/// What a request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Operation {
    Get,
    Head,
    Put,
    Copy,
    Delete,
    DeleteMany,
    List,
    UploadStart,
    UploadPart,
    UploadComplete,
    UploadAbort,
    Bucket,
    Other,
}

impl Operation {
    pub(crate) const ALL: [Self; 13] = [
        Self::Get,
        Self::Head,
        Self::Put,
        Self::Copy,
        Self::Delete,
        Self::DeleteMany,
        Self::List,
        Self::UploadStart,
        Self::UploadPart,
        Self::UploadComplete,
        Self::UploadAbort,
        Self::Bucket,
        Self::Other,
    ];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::Head => "head",
            Self::Put => "put",
            Self::Copy => "copy",
            Self::Delete => "delete",
            Self::DeleteMany => "delete_many",
            Self::List => "list",
            Self::UploadStart => "upload_start",
            Self::UploadPart => "upload_part",
            Self::UploadComplete => "upload_complete",
            Self::UploadAbort => "upload_abort",
            Self::Bucket => "bucket",
            Self::Other => "other",
        }
    }

    /// What the shape takes it for; what only sets the stage is not shaped.
    pub(crate) const fn shaped(self) -> Option<ShapedOp> {
        match self {
            Self::Get => Some(ShapedOp::Get),
            Self::Head => Some(ShapedOp::Stat),
            Self::Put | Self::Copy | Self::UploadStart | Self::UploadPart | Self::UploadComplete => Some(ShapedOp::Put),
            Self::List => Some(ShapedOp::List),
            Self::Delete | Self::DeleteMany | Self::UploadAbort => Some(ShapedOp::Delete),
            Self::Bucket | Self::Other => None,
        }
    }

    /// What a request asks for, by its first line.
    pub(crate) fn of(method: &Method, target: Option<&Target<'_>>, query: Option<&str>, headers: &HeaderMap) -> Self {
        let Some(target) = target else { return Self::Other };
        let has =
            |name: &str| query.is_some_and(|query| query.split('&').any(|field| field.split('=').next() == Some(name)));
        if target.key.is_empty() {
            return match *method {
                Method::GET if has("uploads") || has("location") => Self::Other,
                Method::GET => Self::List,
                Method::POST if has("delete") => Self::DeleteMany,
                Method::PUT | Method::HEAD | Method::DELETE => Self::Bucket,
                _ => Self::Other,
            };
        }
        match *method {
            Method::GET if read::is_read(method, target, query) => Self::Get,
            Method::HEAD => Self::Head,
            Method::PUT if has("partNumber") => Self::UploadPart,
            Method::PUT if headers.contains_key("x-amz-copy-source") => Self::Copy,
            Method::PUT => Self::Put,
            Method::POST if has("uploads") => Self::UploadStart,
            Method::POST if has("uploadId") => Self::UploadComplete,
            Method::DELETE if has("uploadId") => Self::UploadAbort,
            Method::DELETE => Self::Delete,
            _ => Self::Other,
        }
    }
}
