//! The KV block protocol over TCP (`wire/PROTOCOL.md`): who comes in, and a connection from its greeting to its end.
//!
//! A connection is two loops in one task. [`requests`] reads frames and starts what they ask for; [`link`] sends answers
//! in the order in which they are ready. What has to wait (an injected delay, a store on disk) waits in a task of its own
//! and holds nobody else up.

pub(crate) mod blocks;
mod link;
mod requests;

use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use gpufeed_wire::greeting::{HELLO_BYTES_MAX, Hello, PROOF_BYTES, Session, Side, Welcome, refusal};
use gpufeed_wire::{Limits, Status, VERSION};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use crate::config::Key;
use crate::connection::Connection;
use crate::front::Core;
use crate::kv::blocks::Blocks;
use crate::kv::link::Link;
use crate::store::Store;

/// What the KV wires of all cores share.
#[derive(Debug)]
pub(crate) struct Shared {
    keys: Vec<Key>,
    pub(crate) blocks: Blocks,
    limits: Limits,
    next_session: AtomicU64,
}

impl Shared {
    /// For these access keys; leases last `lease`.
    pub(crate) fn new(keys: &[Key], lease: Duration) -> Arc<Self> {
        Arc::new(Self {
            keys: keys.to_vec(),
            blocks: Blocks::new(lease),
            limits: Limits::default(),
            next_session: AtomicU64::new(1),
        })
    }
}

/// Why a connection ends before its client closes it.
#[derive(Debug, thiserror::Error)]
pub(super) enum End {
    /// The client is gone, or was never there.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// It did what the protocol does not allow.
    #[error("{0}")]
    Protocol(Status),
    /// It kept the server waiting.
    #[error("the client was silent in the middle of a frame")]
    Silent,
}

/// Serves a connection until it ends.
pub(crate) async fn serve<S, T>(core: Rc<Core<S>>, mut stream: T, connection: Rc<Connection>)
where
    S: Store,
    T: AsyncRead + AsyncWrite + Unpin + 'static,
{
    // From here on the connection is watched by its own time-outs.
    connection.begin();
    let greeted = tokio::time::timeout(core.limits.header_timeout, greet(&core, &mut stream)).await;
    let (bucket, session) = match greeted {
        Ok(Ok(greeted)) => greeted,
        Ok(Err(error)) => return tracing::debug!(%error, "a KV connection was refused"),
        Err(_) => return tracing::debug!("a KV client did not finish its greeting"),
    };
    let (seal, open) = session.channel(Side::Server);
    let (reader, writer) = tokio::io::split(stream);
    let link = Link::new(Rc::clone(&core), bucket, core.kv.limits, seal);
    let reading = requests::read(&link, reader, open, &connection);
    let sending = link.send(writer, core.limits.body_timeout);
    let both = async {
        tokio::pin!(sending);
        let ended = tokio::select! {
            ended = reading => ended,
            sent = &mut sending => return sent,
        };
        match &ended {
            Err(End::Protocol(status)) => link.say(*status),
            // Nobody is there to be answered.
            Err(End::Io(_) | End::Silent) => return ended,
            Ok(()) => {}
        }
        // What is under way is answered first.
        link.finish();
        let sent = sending.await;
        ended.and(sent)
    };
    if let Err(error) = both.await {
        tracing::debug!(%error, "a KV connection ended early");
    }
}

/// The four messages of the greeting; the bucket and the session.
async fn greet<S, T>(core: &Core<S>, stream: &mut T) -> Result<(Box<str>, Session), End>
where
    S: Store,
    T: AsyncRead + AsyncWrite + Unpin,
{
    let mut hello = vec![0; HELLO_BYTES_MAX];
    let mut have = 0;
    let length = loop {
        // The lengths are in the first nine bytes: no byte of what follows the Hello is read here.
        let want = if have < 9 { 9 } else { HELLO_BYTES_MAX };
        let want = match Hello::length(&hello[..have]).map_err(|_| End::Protocol(Status::BadRequest))? {
            Some(length) if length == have => break length,
            Some(length) => length,
            None => want,
        };
        let read = stream.read(&mut hello[have..want]).await?;
        if read == 0 {
            return Err(End::Io(io::ErrorKind::UnexpectedEof.into()));
        }
        have += read;
    };
    hello.truncate(length);
    let said = Hello::decode(&hello).map_err(|_| End::Protocol(Status::BadRequest))?;
    let status = if said.version().is_some() { Status::Ok } else { Status::Version };
    let welcome = Welcome {
        version: VERSION,
        status,
        session: core.kv.next_session.fetch_add(1, Relaxed),
        nonce: nonce()?,
        limits: core.kv.limits,
    };
    let welcome = welcome.encode();
    stream.write_all(&welcome).await?;
    stream.flush().await?;
    if status != Status::Ok {
        return Err(End::Protocol(status));
    }
    let mut proof = [0; PROOF_BYTES];
    stream.read_exact(&mut proof).await?;
    let key = core.kv.keys.iter().find(|key| key.access_key == said.access_key);
    // An unknown key takes as long as a wrong secret.
    let secret = key.map_or(&[][..], |key| key.secret_key.as_bytes());
    let session = Session::new(secret, &hello, &welcome);
    let status = match session.check(Side::Client, &proof) {
        Ok(()) if key.is_none() => Status::Unauthorized,
        Ok(()) if core.wire.store.bucket(said.bucket).is_err() => Status::NotFound,
        Ok(()) => Status::Ok,
        Err(status) => status,
    };
    let ready = if status == Status::Ok { session.proof(Side::Server) } else { refusal(status) };
    stream.write_all(&ready).await?;
    stream.flush().await?;
    if status == Status::Ok { Ok((said.bucket.into(), session)) } else { Err(End::Protocol(status)) }
}

fn nonce() -> io::Result<[u8; 32]> {
    let mut nonce = [0; 32];
    let mut have = 0;
    while have < nonce.len() {
        have += rustix::rand::getrandom(&mut nonce[have..], rustix::rand::GetRandomFlags::empty())?;
    }
    Ok(nonce)
}
