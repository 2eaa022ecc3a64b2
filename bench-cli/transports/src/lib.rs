//! Measured transports: raw S3, files, and the null target.

pub mod file;
mod landing;
pub mod null;
pub mod s3;

pub use landing::land;
