//! The reference storage server: one store, many wires.
//!
//! [`Server::start`] serves S3 over HTTP and KV blocks over TCP from one thread per core. Objects live in a [`store::Store`]; latency, caps and
//! faults are injected by a shape, between the answer and its departure.

mod books;
pub mod config;
mod connection;
mod front;
mod inbound;
mod kv;
mod operation;
mod outbound;
mod s3;
mod server;
mod shape;
pub mod store;
mod waits;

pub use config::{Config, EtagKind, Key, StoreKind};
pub use server::{Running, Server, StartError, Stopper};
