//! The KV block protocol over TCP (`server/wire/PROTOCOL.md`): many operations in flight on each connection.

mod link;

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use gpufeed_engine::transport::{Clock, Data, Done, Lane, Limits, OpError, Transport};
use gpufeed_io::arena::Arena;
use gpufeed_wire::frame::{Flags, Header, Operation};
use gpufeed_wire::keys::{ABSENT, range_argument, write_key, write_keys};
use gpufeed_wire::{BLOCK_BYTES, Status};
use gpufeed_workloads::op::{Carrier, Condition, ErrorKind, Names, Op, Verb};
use tokio::sync::Notify;

use self::link::{Answer, Link};
use crate::s3::Credentials;

/// Lanes that share a connection: enough for several frames in a system call, few enough that one large block on its way
/// holds up few others.
const LANES: usize = 16;

/// A KV block server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KvConfig {
    /// `host:port`.
    pub address: String,
    /// Who asks.
    pub credentials: Credentials,
    /// The bucket that holds the blocks.
    pub bucket: String,
}

/// A KV block server, seen from one core.
#[derive(Debug, Clone)]
pub struct KvTarget {
    shared: Rc<Shared>,
}

#[derive(Debug)]
struct Shared {
    config: KvConfig,
    names: Arc<Names>,
    arena: Arena,
    clock: Clock,
    /// Connections, each with the lanes that use it.
    links: RefCell<Vec<(Rc<Link>, usize)>>,
    /// Connections that nobody drives yet.
    fresh: RefCell<Vec<Rc<Link>>>,
    arrived: Notify,
}

/// Connects and greets once, so that what is wrong is said before anything is done.
///
/// # Errors
/// Unreachable, no KV block server, refused, no such bucket.
pub async fn check(config: &KvConfig) -> Result<(), OpError> {
    Link::connect(config, Clock::new(std::time::Instant::now())).await.map(|_| ())
}

impl KvTarget {
    /// The transport of one core. Connections are made as lanes are opened.
    #[must_use]
    pub fn new(config: KvConfig, names: Arc<Names>, arena: Arena, clock: Clock) -> Self {
        let shared = Shared {
            config,
            names,
            arena,
            clock,
            links: RefCell::default(),
            fresh: RefCell::default(),
            arrived: Notify::new(),
        };
        Self { shared: Rc::new(shared) }
    }
}

impl Shared {
    /// A connection with room for another lane.
    async fn link(&self) -> Result<Rc<Link>, OpError> {
        let free = |links: &mut Vec<(Rc<Link>, usize)>| {
            links.retain(|(link, _)| link.is_open());
            let (link, lanes) = links.iter_mut().find(|(_, lanes)| *lanes < LANES)?;
            *lanes += 1;
            Some(Rc::clone(link))
        };
        if let Some(link) = free(&mut self.links.borrow_mut()) {
            return Ok(link);
        }
        let link = Rc::new(Link::connect(&self.config, self.clock).await?);
        self.links.borrow_mut().push((Rc::clone(&link), 1));
        self.fresh.borrow_mut().push(Rc::clone(&link));
        self.arrived.notify_one();
        Ok(link)
    }

    fn leave(&self, link: &Rc<Link>) {
        let mut links = self.links.borrow_mut();
        if let Some((_, lanes)) = links.iter_mut().find(|(there, _)| Rc::ptr_eq(there, link)) {
            *lanes -= 1;
        }
    }
}

impl Transport for KvTarget {
    type Lane = KvLane;

    fn limits(&self) -> Limits {
        Limits { object_bytes: BLOCK_BYTES, alignment: 1 }
    }

    fn arena(&self) -> &Arena {
        &self.shared.arena
    }

    fn carrier(&self) -> Option<Carrier> {
        Some(Carrier::KvTcp)
    }

    async fn lane(&self) -> Result<KvLane, OpError> {
        let link = Some(self.shared.link().await?);
        let shared = Rc::clone(&self.shared);
        Ok(KvLane { shared, link, name: String::new(), meta: Vec::with_capacity(256) })
    }

    async fn turn(&self) {
        let mut driven = FuturesUnordered::new();
        loop {
            driven.extend(self.shared.fresh.borrow_mut().drain(..).map(Link::drive));
            tokio::select! {
                // A connection that has ended has told its lanes.
                Some(()) = driven.next(), if !driven.is_empty() => {}
                () = self.shared.arrived.notified() => {}
            }
        }
    }
}

/// A lane of [`KvTarget`].
#[derive(Debug)]
pub struct KvLane {
    shared: Rc<Shared>,
    link: Option<Rc<Link>>,
    name: String,
    meta: Vec<u8>,
}

impl Drop for KvLane {
    fn drop(&mut self) {
        if let Some(link) = &self.link {
            self.shared.leave(link);
        }
    }
}

impl Lane for KvLane {
    async fn call(&mut self, op: &Op, data: &mut Data) -> Done {
        let clock = self.shared.clock;
        let answer = match self.ask(op, data) {
            Err(error) => Err((clock.now(), error)),
            Ok((header, payload)) => self.exchange(header, payload, data).await,
        };
        let now = clock.now();
        match answer {
            Err((sent, error)) => Done {
                sent,
                first_byte: now,
                done: now,
                carrier: Carrier::KvTcp,
                bytes: 0,
                attempts: 1,
                result: Err(error),
            },
            Ok(answer) => {
                let result = self.judge(op, &answer);
                let bytes = match op.verb {
                    Verb::Get => answer.bytes,
                    Verb::Put if result.is_ok() => op.bytes,
                    _ => 0,
                };
                let Answer { sent, first_byte, done, .. } = answer;
                Done { sent, first_byte, done, carrier: Carrier::KvTcp, bytes, attempts: 1, result }
            }
        }
    }
}

impl KvLane {
    fn wrong(&self, kind: ErrorKind, op: &Op, why: impl std::fmt::Display) -> OpError {
        let address = &self.shared.config.address;
        OpError::new(kind, format!("{} of {} on kv://{address}: {why}", op.verb, self.name))
    }

    /// The request: header, and the payload where it has one. Meta data is left in `self.meta`.
    fn ask(&mut self, op: &Op, data: &Data) -> Result<(Header, Bytes), OpError> {
        self.name.clear();
        self.shared.names.write(op.key, &mut self.name);
        self.meta.clear();
        let operation = match op.verb {
            Verb::Get => Operation::Get,
            Verb::Put => Operation::Put,
            Verb::Stat => Operation::Exists,
            Verb::Delete => Operation::Delete,
            Verb::List | Verb::Multipart => {
                return Err(self.wrong(ErrorKind::Client, op, "the KV block protocol has no such operation"));
            }
        };
        let written = match operation {
            Operation::Get | Operation::Put => write_key(&self.name, &mut self.meta),
            _ => write_keys(std::iter::once(self.name.as_str()), &mut self.meta),
        };
        written.map_err(|error| self.wrong(ErrorKind::Client, op, error))?;
        let mut header = Header::request(operation, 0, self.meta.len() as u32);
        let mut payload = Bytes::new();
        if op.verb == Verb::Put {
            if !(1..=BLOCK_BYTES).contains(&op.bytes) {
                let why = format!("a block of {} bytes; one has 1 to {BLOCK_BYTES}", op.bytes);
                return Err(self.wrong(ErrorKind::Client, op, why));
            }
            // A block fits in memory, so it is made and hashed before it is sent.
            payload = match data {
                Data::From(bytes) if bytes.len() as u64 >= op.bytes => bytes.slice(..op.bytes as usize),
                Data::Derived(payload) => {
                    let mut bytes = BytesMut::zeroed(op.bytes as usize);
                    payload.fill(0, &mut bytes);
                    bytes.freeze()
                }
                _ => return Err(self.wrong(ErrorKind::Client, op, "there are too few bytes to write")),
            };
            header = header.carrying(&payload);
            if op.condition == Condition::IfAbsent {
                header.flags = Flags::IF_ABSENT;
            }
        } else if op.verb == Verb::Get && op.ranged {
            let small =
                |what: u64| u32::try_from(what).map_err(|_| self.wrong(ErrorKind::Client, op, "a range past 4 GiB"));
            if op.bytes == 0 {
                return Err(self.wrong(ErrorKind::Client, op, "a range of no bytes"));
            }
            header.argument = range_argument(small(op.offset)?, small(op.bytes)?);
        }
        Ok((header, payload))
    }

    async fn exchange(
        &mut self,
        header: Header,
        payload: Bytes,
        data: &mut Data,
    ) -> Result<Answer, (gpufeed_workloads::op::Tick, OpError)> {
        let failed = |error| (self.shared.clock.now(), error);
        if !self.link.as_ref().is_some_and(|link| link.is_open()) {
            self.link = None;
            self.link = Some(self.shared.link().await.map_err(failed)?);
        }
        let Some(link) = &self.link else { return Err(failed(OpError::new(ErrorKind::Connect, "no connection"))) };
        let mut call = link.send(header, &self.meta, payload, std::mem::replace(data, Data::None));
        let sent = call.sent();
        let answer = call.answer().await;
        *data = call.take_back();
        answer.map_err(|error| (sent, error))
    }

    /// What an answer says of an operation.
    fn judge(&self, op: &Op, answer: &Answer) -> Result<(), OpError> {
        let status = match (op.verb, answer.status) {
            // One key was asked for: its length, or its own status.
            (Verb::Stat, Status::Ok) if answer.word == Some(ABSENT) => Status::NotFound,
            (Verb::Stat, Status::Ok) if answer.word.is_none() => {
                return Err(self.wrong(ErrorKind::Protocol, op, "the answer has no length"));
            }
            // To delete what is not there is to have deleted it, as in S3.
            (_, status) => status,
        };
        let kind = match status {
            Status::Ok if op.verb == Verb::Get && answer.bytes != op.bytes => {
                let why = format!("answered {} bytes where {} were asked for", answer.bytes, op.bytes);
                return Err(self.wrong(ErrorKind::ShortBody, op, why));
            }
            Status::Ok if !answer.whole => {
                return Err(self.wrong(ErrorKind::Corrupt, op, "the payload does not have its hash"));
            }
            Status::Ok => return Ok(()),
            Status::NotFound => ErrorKind::NotFound,
            Status::Exists => ErrorKind::Condition,
            Status::Busy | Status::Closing => ErrorKind::Throttled,
            Status::Unauthorized | Status::Forbidden | Status::Forged | Status::Replayed => ErrorKind::Denied,
            Status::Corrupt => ErrorKind::Corrupt,
            Status::Full => ErrorKind::NoSpace,
            Status::Internal => ErrorKind::Server,
            Status::TooLarge | Status::BadRequest | Status::Version => ErrorKind::Client,
        };
        Err(self.wrong(kind, op, status))
    }
}
