//! Raw S3: hyper on connections of our own, one for each lane, signed by a signer that allocates nothing.

mod answer;
mod config;
mod connect;
mod lane;
mod send;
mod sign;

pub use answer::{Refusal, refusal};
pub use config::{Addressing, Credentials, S3Config, Tls, client_tls, trusted_pem};
pub use connect::S3Target;
pub use lane::{RawS3, S3Lane};
pub use send::{Outgoing, outgoing};
pub use sign::{PayloadHash, Signer, encode_key, encode_query};
