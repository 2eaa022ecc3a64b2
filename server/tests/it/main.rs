//! The server, driven by the AWS SDK and by plain sockets.

mod errors;
mod kv;
mod limits;
mod listing;
mod multipart;
mod objects;
mod shape;
mod support;
mod tls;
