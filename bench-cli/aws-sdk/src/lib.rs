//! The only user of aws-sdk-s3: control path and the aws-sdk transport.

mod access;
mod control;
mod failure;
mod http;
mod transport;

pub use access::{Access, Keys, Session};
pub use control::Control;
pub use transport::{SdkLane, SdkTransport};
