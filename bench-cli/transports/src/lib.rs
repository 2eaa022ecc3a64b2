//! Measured transports: raw S3, the KV block protocol, files, and the null target.

pub mod file;
pub mod kv;
mod landing;
pub mod null;
pub mod s3;

pub use landing::land;
