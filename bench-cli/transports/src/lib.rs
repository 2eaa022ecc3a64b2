//! Measured transports: raw S3, files, and the null target.

pub mod null;
pub mod s3;
