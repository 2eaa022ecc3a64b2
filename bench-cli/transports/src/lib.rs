//! Measured transports: raw S3, files, and the null target.
