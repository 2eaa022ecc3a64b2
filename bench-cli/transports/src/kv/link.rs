//! A connection and the operations in flight on it.
//!
//! Lanes put their frames into a batch; [`Link::drive`] sends the batch in as few system calls as it takes and hands
//! answers out as they come, in whatever order. An operation that was given up keeps its buffer here until its answer is
//! through, so that nothing is written into memory that belongs to somebody else by then.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::rc::Rc;
use std::task::{Poll, Waker};

use bytes::Bytes;
use gpufeed_engine::transport::{Clock, Data, OpError};
use gpufeed_wire::frame::{Flags, HEADER_BYTES, Header, Opener, Operation, Sealer};
use gpufeed_wire::greeting::{Hello, PROOF_BYTES, Session, Side, WELCOME_BYTES, Welcome};
use gpufeed_wire::{Limits, Status, VERSION};
use gpufeed_workloads::op::{ErrorKind, Tick};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use xxhash_rust::xxh3::Xxh3;

use super::KvConfig;
use crate::landing::land;

/// Bytes read at once.
const READ_BYTES: usize = 256 << 10;
/// Pieces of one system call.
const PIECES: usize = 64;

/// What came of an operation.
#[derive(Debug, Clone, Copy)]
pub(super) struct Answer {
    pub(super) sent: Tick,
    pub(super) first_byte: Tick,
    pub(super) done: Tick,
    pub(super) status: Status,
    pub(super) bytes: u64,
    /// Whether the payload has its hash.
    pub(super) whole: bool,
    /// The first eight bytes of meta data.
    pub(super) word: Option<u64>,
}

#[derive(Debug)]
enum State {
    Free,
    Waiting(Option<Waker>),
    /// Given up by its lane; its answer may still come.
    Abandoned,
    Answered(Answer),
    Failed,
}

#[derive(Debug)]
struct Slot {
    state: State,
    /// Part of the request's number, so that a late answer is not taken for another's.
    generation: u32,
    sent: Tick,
    /// Where an answer's payload goes.
    data: Data,
    /// Pieces of an answer that is to be held.
    held: Vec<u8>,
}

/// Frames to be sent: bytes of headers and meta data, and payloads that come after so many of them.
#[derive(Debug, Default)]
struct Batch {
    small: Vec<u8>,
    payloads: Vec<(usize, Bytes)>,
}

impl Batch {
    fn is_empty(&self) -> bool {
        self.small.is_empty()
    }

    fn clear(&mut self) {
        self.small.clear();
        self.payloads.clear();
    }

    /// The pieces in order.
    fn pieces(&self) -> impl Iterator<Item = &[u8]> {
        let mut from = 0;
        let mut pairs = self.payloads.iter().flat_map(move |(at, payload)| {
            let head = &self.small[std::mem::replace(&mut from, *at)..*at];
            [head, &payload[..]]
        });
        let last = self.payloads.last().map_or(0, |(at, _)| *at);
        let mut tail = Some(&self.small[last..]);
        std::iter::from_fn(move || pairs.next().or_else(|| tail.take()))
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Link {
    stream: RefCell<Option<TcpStream>>,
    address: String,
    clock: Clock,
    limits: Limits,
    seal: RefCell<Sealer>,
    open: RefCell<Opener>,
    batch: RefCell<Batch>,
    /// Told when there is something to send.
    ready: Notify,
    slots: RefCell<Vec<Slot>>,
    free: RefCell<Vec<u32>>,
    /// Why it is of no further use.
    ended: RefCell<Option<(ErrorKind, String)>>,
    closed: Cell<bool>,
}

impl Link {
    /// Connects and greets.
    pub(super) async fn connect(config: &KvConfig, clock: Clock) -> Result<Self, OpError> {
        let address = &config.address;
        let no = |kind, why: &dyn std::fmt::Display| OpError::new(kind, format!("cannot use kv://{address}: {why}"));
        let lost = |error: io::Error| no(ErrorKind::Connect, &error);
        let mut stream = TcpStream::connect(address.as_str()).await.map_err(lost)?;
        stream.set_nodelay(true).map_err(lost)?;
        let mut nonce = [0; 32];
        let mut have = 0;
        while have < nonce.len() {
            let random = rustix::rand::getrandom(&mut nonce[have..], rustix::rand::GetRandomFlags::empty());
            have += random.map_err(|error| lost(error.into()))?;
        }
        let hello = Hello {
            versions: (VERSION, VERSION),
            nonce,
            access_key: &config.credentials.access_key,
            bucket: &config.bucket,
        };
        let hello = hello.encode().map_err(|error| no(ErrorKind::Client, &error))?;
        stream.write_all(&hello).await.map_err(lost)?;
        let mut welcome = [0; WELCOME_BYTES];
        let not_ours = |error: io::Error| {
            let kind =
                if error.kind() == io::ErrorKind::UnexpectedEof { ErrorKind::Protocol } else { ErrorKind::Connect };
            no(kind, &"it closed the connection, so it is no KV block server, or has no room for another client")
        };
        stream.read_exact(&mut welcome).await.map_err(not_ours)?;
        let said = Welcome::decode(&welcome);
        let said = said.map_err(|_| no(ErrorKind::Protocol, &"it is no KV block server"))?;
        if said.status != Status::Ok {
            return Err(no(ErrorKind::Protocol, &said.status));
        }
        let session = Session::new(config.credentials.secret_key.as_bytes(), &hello, &welcome);
        stream.write_all(&session.proof(Side::Client)).await.map_err(lost)?;
        let mut ready = [0; PROOF_BYTES];
        stream.read_exact(&mut ready).await.map_err(lost)?;
        session.check(Side::Server, &ready).map_err(|status| match status {
            Status::Unauthorized => no(ErrorKind::Denied, &"access key or secret key is wrong"),
            Status::NotFound => no(ErrorKind::NotFound, &format_args!("there is no bucket `{}`", config.bucket)),
            status => no(ErrorKind::Denied, &status),
        })?;
        let (seal, open) = session.channel(Side::Client);
        Ok(Self {
            stream: RefCell::new(Some(stream)),
            address: address.clone(),
            clock,
            limits: said.limits,
            seal: RefCell::new(seal),
            open: RefCell::new(open),
            batch: RefCell::default(),
            ready: Notify::new(),
            slots: RefCell::default(),
            free: RefCell::default(),
            ended: RefCell::default(),
            closed: Cell::new(false),
        })
    }

    /// Whether operations can be sent.
    pub(super) fn is_open(&self) -> bool {
        !self.closed.get()
    }

    /// Sends a request; the answer's payload goes into `data`.
    pub(super) fn send(self: &Rc<Self>, header: Header, meta: &[u8], payload: Bytes, data: Data) -> Call {
        let slot = self.free.borrow_mut().pop().unwrap_or_else(|| {
            let mut slots = self.slots.borrow_mut();
            slots.push(Slot {
                state: State::Free,
                generation: 0,
                sent: Tick::ZERO,
                data: Data::None,
                held: Vec::new(),
            });
            (slots.len() - 1) as u32
        });
        let sent = self.clock.now();
        let generation = {
            let slot = &mut self.slots.borrow_mut()[slot as usize];
            slot.generation = slot.generation.wrapping_add(1);
            (slot.state, slot.sent) = (State::Waiting(None), sent);
            // What is written is not needed here: the payload is.
            slot.data = data;
            slot.generation
        };
        let header = Header { request: u64::from(generation) << 32 | u64::from(slot), ..header };
        let head = self.seal.borrow_mut().seal(&header, meta);
        let mut batch = self.batch.borrow_mut();
        batch.small.extend_from_slice(&head);
        batch.small.extend_from_slice(meta);
        if !payload.is_empty() {
            let at = batch.small.len();
            batch.payloads.push((at, payload));
        }
        self.ready.notify_one();
        Call { link: Rc::clone(self), slot, sent, over: false }
    }

    /// Sends and receives until the connection ends.
    pub(super) async fn drive(self: Rc<Self>) {
        let Some(mut stream) = self.stream.borrow_mut().take() else { return };
        let (mut from, mut to) = stream.split();
        let ended = tokio::select! {
            ended = self.receive(&mut from) => ended,
            ended = self.transmit(&mut to) => ended,
        };
        self.closed.set(true);
        let (kind, why) = ended.unwrap_or_else(|error| (ErrorKind::Connect, error.to_string()));
        *self.ended.borrow_mut() = Some((kind, format!("kv://{}: {why}", self.address)));
        for slot in &mut *self.slots.borrow_mut() {
            if let State::Waiting(waker) = &mut slot.state {
                let waker = waker.take();
                slot.state = State::Failed;
                if let Some(waker) = waker {
                    waker.wake();
                }
            }
        }
    }

    async fn transmit(&self, to: &mut (impl tokio::io::AsyncWrite + Unpin)) -> io::Result<(ErrorKind, String)> {
        let mut sending = Batch::default();
        loop {
            std::mem::swap(&mut *self.batch.borrow_mut(), &mut sending);
            if sending.is_empty() {
                self.ready.notified().await;
                continue;
            }
            let all: usize =
                sending.small.len() + sending.payloads.iter().map(|(_, payload)| payload.len()).sum::<usize>();
            let mut sent = 0;
            while sent < all {
                let mut slices = [IoSlice::new(&[]); PIECES];
                let (mut count, mut skip) = (0, sent);
                for piece in sending.pieces() {
                    if skip >= piece.len() {
                        skip -= piece.len();
                        continue;
                    }
                    if count == PIECES {
                        break;
                    }
                    slices[count] = IoSlice::new(&piece[skip..]);
                    (count, skip) = (count + 1, 0);
                }
                match to.write_vectored(&slices[..count]).await? {
                    0 => return Err(io::ErrorKind::WriteZero.into()),
                    written => sent += written,
                }
            }
            sending.clear();
        }
    }

    async fn receive(&self, from: &mut (impl tokio::io::AsyncRead + Unpin)) -> io::Result<(ErrorKind, String)> {
        let mut input = Input { from, bytes: vec![0; READ_BYTES], at: 0, end: 0 };
        let protocol = |what: &str| Ok((ErrorKind::Protocol, what.to_owned()));
        loop {
            if !input.need(HEADER_BYTES).await? {
                return Ok((ErrorKind::Connect, "the server closed the connection".to_owned()));
            }
            let first_byte = self.clock.now();
            let Some(head) = input.rest().first_chunk::<HEADER_BYTES>().copied() else { continue };
            let Ok((meta_bytes, payload)) = Opener::follows(&head, &self.limits) else {
                return protocol("an answer over the limits");
            };
            input.at += HEADER_BYTES;
            input.need(meta_bytes).await?;
            let opened = self.open.borrow_mut().open(&head, &input.rest()[..meta_bytes]);
            let header = match opened {
                Ok(header) if header.flags.has(Flags::ANSWER) => header,
                Ok(_) => return protocol("a request where an answer was due"),
                Err(status) => return protocol(&format!("an answer that is {status}")),
            };
            let word = input.rest()[..meta_bytes].first_chunk::<8>().map(|word| u64::from_le_bytes(*word));
            input.at += meta_bytes;
            if header.operation == Operation::Connection {
                let kind = if header.status == Status::Closing { ErrorKind::Throttled } else { ErrorKind::Protocol };
                return Ok((kind, format!("the server ends the connection: {}", header.status)));
            }
            let slot = header.request as u32 as usize;
            let generation = (header.request >> 32) as u32;
            // A number that was never given out, or is no longer waited for: not an answer to anything.
            let known = self.slots.borrow().get(slot).is_some_and(|slot| {
                slot.generation == generation && matches!(slot.state, State::Waiting(_) | State::Abandoned)
            });
            if !known {
                return protocol("an answer to nothing");
            }
            let mut hash = Xxh3::new();
            let mut at = 0;
            while at < payload {
                input.need(1).await?;
                let rest = input.rest();
                let chunk = &rest[..rest.len().min(usize::try_from(payload - at).unwrap_or(usize::MAX))];
                hash.update(chunk);
                let Slot { data, held, .. } = &mut self.slots.borrow_mut()[slot];
                match data {
                    Data::Into { buf, from } => land(buf, *from, at, chunk),
                    Data::Hold => held.extend_from_slice(chunk),
                    _ => {}
                }
                at += chunk.len() as u64;
                input.at += chunk.len();
            }
            let mut slots = self.slots.borrow_mut();
            let here = &mut slots[slot];
            let answer = Answer {
                sent: here.sent,
                first_byte,
                done: self.clock.now(),
                status: header.status,
                bytes: payload,
                whole: payload == 0 || hash.digest128() as u64 == header.payload_hash,
                word,
            };
            if let Data::Into { buf, from } = &mut here.data {
                let kept = usize::try_from(payload.saturating_sub(*from)).unwrap_or(usize::MAX);
                buf.set_len(kept.min(buf.capacity()));
            }
            match std::mem::replace(&mut here.state, State::Answered(answer)) {
                State::Waiting(Some(waker)) => waker.wake(),
                State::Abandoned => {
                    drop(slots);
                    self.release(slot as u32);
                }
                _ => {}
            }
        }
    }

    fn release(&self, slot: u32) -> Data {
        let here = &mut self.slots.borrow_mut()[slot as usize];
        here.state = State::Free;
        here.held.clear();
        self.free.borrow_mut().push(slot);
        std::mem::replace(&mut here.data, Data::None)
    }

    fn why(&self) -> OpError {
        match &*self.ended.borrow() {
            Some((kind, why)) => OpError::new(*kind, why.as_str()),
            None => OpError::new(ErrorKind::Connect, format!("kv://{}: the connection ended", self.address)),
        }
    }
}

/// Bytes from the socket that are not used yet.
struct Input<'a, T> {
    from: &'a mut T,
    bytes: Vec<u8>,
    at: usize,
    end: usize,
}

impl<T: tokio::io::AsyncRead + Unpin> Input<'_, T> {
    fn rest(&self) -> &[u8] {
        &self.bytes[self.at..self.end]
    }

    /// Reads until there are `want` bytes; false at the end of the stream between frames.
    async fn need(&mut self, want: usize) -> io::Result<bool> {
        while self.end - self.at < want {
            if self.bytes.len() - self.at < want || self.at == self.end {
                self.bytes.copy_within(self.at..self.end, 0);
                (self.at, self.end) = (0, self.end - self.at);
                if self.bytes.len() < want {
                    self.bytes.resize(want, 0);
                }
            }
            let read = self.from.read(&mut self.bytes[self.end..]).await?;
            if read == 0 {
                let between = self.at == self.end && want == HEADER_BYTES;
                return if between { Ok(false) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
            }
            self.end += read;
        }
        Ok(true)
    }
}

/// An operation in flight.
#[derive(Debug)]
pub(super) struct Call {
    link: Rc<Link>,
    slot: u32,
    sent: Tick,
    over: bool,
}

impl Call {
    /// When it was sent.
    pub(super) const fn sent(&self) -> Tick {
        self.sent
    }

    /// Waits for its answer.
    pub(super) async fn answer(&mut self) -> Result<Answer, OpError> {
        poll_fn(|cx| {
            let mut slots = self.link.slots.borrow_mut();
            match &mut slots[self.slot as usize].state {
                State::Answered(answer) => Poll::Ready(Ok(*answer)),
                State::Waiting(waker) if !self.link.closed.get() => {
                    match waker {
                        Some(waker) => waker.clone_from(cx.waker()),
                        None => *waker = Some(cx.waker().clone()),
                    }
                    Poll::Pending
                }
                _ => Poll::Ready(Err(self.link.why())),
            }
        })
        .await
    }

    /// The buffer, once there is an answer or no hope of one.
    pub(super) fn take_back(mut self) -> Data {
        self.over = true;
        self.link.release(self.slot)
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        if self.over {
            return;
        }
        let mut slots = self.link.slots.borrow_mut();
        let state = &mut slots[self.slot as usize].state;
        if matches!(state, State::Waiting(_)) && !self.link.closed.get() {
            *state = State::Abandoned;
        } else {
            drop(slots);
            self.link.release(self.slot);
        }
    }
}
