//! Frames in, and what they ask for.

use std::cell::Cell;
use std::collections::HashMap;
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Instant, SystemTime};

use bytes::{Buf as _, Bytes, BytesMut};
use gpufeed_profiles::storage::{Fault, ShapedOp};
use gpufeed_wire::frame::{Flags, HEADER_BYTES, Header, Opener, Operation as Asked};
use gpufeed_wire::keys::{ABSENT, Keys, range, read_key};
use gpufeed_wire::{Malformed, Status};
use tokio::io::{AsyncRead, AsyncReadExt as _};
use xxhash_rust::xxh3::Xxh3;

use crate::books::Request;
use crate::connection::Connection;
use crate::kv::End;
use crate::kv::link::{Link, Ticket};
use crate::operation::Operation;
use crate::shape::Verdict;
use crate::store::{Entry, Etag, EtagMatch, Meta, Precondition, Reader as _, Store, StoreError, Writer as _};

/// Bytes read at once.
const READ_BYTES: usize = 256 << 10;

/// Bytes from the socket that are not used yet.
struct Input<T> {
    from: T,
    bytes: BytesMut,
    patience: std::time::Duration,
    /// Longest time between frames.
    idle: std::time::Duration,
}

impl<T: AsyncRead + Unpin> Input<T> {
    /// Reads until there are `want` bytes; false at the end of the stream between frames.
    async fn need(&mut self, want: usize, connection: &Connection) -> Result<bool, End> {
        while self.bytes.len() < want {
            self.bytes.reserve(READ_BYTES.max(want - self.bytes.len()));
            let between = self.bytes.is_empty() && want == HEADER_BYTES;
            let read = async {
                if !between {
                    let read = tokio::time::timeout(self.patience, self.from.read_buf(&mut self.bytes));
                    return read.await.map_err(|_| End::Silent)?.map_err(End::Io);
                }
                // Between frames the server may end the connection.
                let drain =
                    std::future::poll_fn(|cx| if connection.is_draining(cx) { Poll::Ready(()) } else { Poll::Pending });
                tokio::select! {
                    biased;
                    read = self.from.read_buf(&mut self.bytes) => read.map_err(End::Io),
                    () = drain => Err(End::Protocol(Status::Closing)),
                    // A client that asks for nothing holds a connection that another could use.
                    () = tokio::time::sleep(self.idle) => Err(End::Protocol(Status::Closing)),
                }
            };
            if read.await? == 0 {
                return if between { Ok(false) } else { Err(End::Io(std::io::ErrorKind::UnexpectedEof.into())) };
            }
        }
        Ok(true)
    }

    /// The next bytes of a payload of which `left` are to come.
    async fn chunk(&mut self, left: u64, connection: &Connection) -> Result<Bytes, End> {
        self.need(1, connection).await?;
        let now = self.bytes.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        Ok(self.bytes.split_to(now).freeze())
    }
}

/// Reads frames and starts what they ask for, until the client closes or does what it must not.
pub(super) async fn read<S: Store>(
    link: &Rc<Link<S>>,
    from: impl AsyncRead + Unpin,
    open: Opener,
    connection: &Connection,
) -> Result<(), End> {
    // Batches that are being put: what became of each block so far.
    let mut batches = HashMap::new();
    let ended = frames(link, from, open, connection, &mut batches).await;
    // What they have waited for will not come.
    link.abandon(batches.len());
    ended
}

async fn frames<S: Store>(
    link: &Rc<Link<S>>,
    from: impl AsyncRead + Unpin,
    mut open: Opener,
    connection: &Connection,
    batches: &mut HashMap<u64, Vec<u8>>,
) -> Result<(), End> {
    let limits = &link.core.limits;
    let (patience, idle) = (limits.body_timeout, limits.idle_timeout);
    let mut input = Input { from, bytes: BytesMut::new(), patience, idle };
    loop {
        link.admit().await;
        if !input.need(HEADER_BYTES, connection).await? {
            return Ok(());
        }
        let Some(head) = input.bytes.first_chunk::<HEADER_BYTES>().copied() else { continue };
        let (meta_bytes, _) = Opener::follows(&head, &link.limits).map_err(End::Protocol)?;
        input.need(HEADER_BYTES + meta_bytes, connection).await?;
        input.bytes.advance(HEADER_BYTES);
        let meta = input.bytes.split_to(meta_bytes);
        let header = open.open(&head, &meta).map_err(End::Protocol)?;
        if header.flags.has(Flags::ANSWER) || header.status != Status::Ok {
            return Err(End::Protocol(Status::BadRequest));
        }
        let arrived = Instant::now();
        let puts = matches!(header.operation, Asked::Put | Asked::BatchPut);
        if !puts && header.payload_bytes > 0 {
            return Err(End::Protocol(Status::BadRequest));
        }
        let bad = |_: Malformed| End::Protocol(Status::BadRequest);
        match header.operation {
            Asked::Connection => return Err(End::Protocol(Status::BadRequest)),
            Asked::Ping => {
                link.begin();
                let answer = Header { argument: header.argument, ..header.answer(Status::Ok) };
                link.answer(&answer, b"", &[], link.ticket(Operation::Other, arrived, None));
            }
            Asked::Exists => {
                let keys = Keys::read(&meta).map_err(bad)?;
                link.begin();
                link.exists(&header, keys, arrived);
            }
            Asked::Get => {
                let key = read_key(&meta).map_err(bad)?;
                link.begin();
                let (first, bytes) = range(header.argument);
                link.get(&header, header.answer(Status::Ok), key, (first, bytes), arrived, &Rc::new(Cell::new(1)));
            }
            Asked::BatchGet => {
                let keys = Keys::read(&meta).map_err(bad)?;
                link.begin();
                let left = Rc::new(Cell::new(keys.len()));
                for (index, key) in keys.enumerate() {
                    let answer = Header { argument: index as u64, ..header.answer(Status::Ok) };
                    link.get(&header, answer, key, (0, None), arrived, &left);
                }
            }
            Asked::Put | Asked::BatchPut => {
                let key = read_key(&meta).map_err(bad)?;
                let batch = header.operation == Asked::BatchPut;
                let statuses = if batch { batches.remove(&header.request) } else { None };
                if statuses.is_none() {
                    link.begin();
                }
                let (outcome, verdict) = link.put(&header, key, &mut input, connection, arrived).await?;
                let mut statuses = statuses.unwrap_or_default();
                statuses.extend((outcome.status as u16).to_le_bytes());
                let more = batch && header.flags.has(Flags::MORE);
                // Batches that never end would fill the connection, and it would wait for itself.
                let unended = batches.len() as u32 >= link.limits.requests / 2;
                if more && (unended || statuses.len() / 2 >= gpufeed_wire::BATCH_KEYS) {
                    batches.insert(header.request, statuses);
                    return Err(End::Protocol(Status::BadRequest));
                }
                if more {
                    link.count(outcome);
                    batches.insert(header.request, statuses);
                    continue;
                }
                let answer = header.answer(if batch { Status::Ok } else { outcome.status });
                let meta = if batch { statuses } else { Vec::new() };
                link.when_due(verdict, move |link| {
                    let answer = Header { meta_bytes: meta.len() as u32, ..answer };
                    link.answer(&answer, &meta, &[], outcome);
                });
            }
            Asked::Delete => {
                let keys = Keys::read(&meta).map_err(bad)?;
                link.begin();
                link.delete(&header, keys, arrived).await;
            }
        }
    }
}

fn status_of(error: &StoreError) -> Status {
    match error {
        StoreError::NoSuchKey | StoreError::NoSuchBucket(_) => Status::NotFound,
        StoreError::PreconditionFailed => Status::Exists,
        StoreError::Full { .. } => Status::Full,
        _ => Status::Internal,
    }
}

fn injected(status: u16) -> Status {
    match status {
        404 => Status::NotFound,
        403 => Status::Forbidden,
        429 | 503 => Status::Busy,
        _ => Status::Internal,
    }
}

impl<S: Store> Link<S> {
    fn ticket(&self, operation: Operation, arrived: Instant, key: Option<&str>) -> Ticket {
        let request = |_: &crate::books::Log| {
            let key = key.unwrap_or_default().to_owned();
            Box::new(Request { bucket: self.bucket.to_string(), key, range: String::new() })
        };
        Ticket {
            operation,
            arrived,
            status: Status::Ok,
            bytes_in: 0,
            bytes_out: 0,
            fault: "",
            request: self.core.books.log.as_ref().map(request),
            last: true,
            window: 0,
        }
    }

    fn admitted(&self, op: ShapedOp, bytes: u64, arrived: Instant) -> Option<Verdict> {
        self.core.shaping.as_ref().map(|shaping| shaping.admit(op, bytes, arrived))
    }

    /// Does `then` when the shape says that the answer leaves: at once where there is none. Frames share a connection, so
    /// one that is held back by a bandwidth cap leaves whole when its last byte is due.
    fn when_due(self: &Rc<Self>, verdict: Option<Verdict>, then: impl FnOnce(&Rc<Self>) + 'static) {
        match verdict.filter(|verdict| verdict.last > Instant::now()) {
            None => then(self),
            Some(verdict) => {
                let link = Rc::clone(self);
                tokio::task::spawn_local(async move {
                    link.core.waits.until(verdict.last).await;
                    then(&link);
                });
            }
        }
    }

    fn exists(self: &Rc<Self>, header: &Header, keys: Keys<'_>, arrived: Instant) {
        let lease = header.flags.has(Flags::LEASE);
        let mut meta = Vec::with_capacity(keys.len() * 8 + 4);
        let first = keys.clone().next().map(str::to_owned);
        for key in keys {
            let found = self.core.wire.store.find(&self.bucket, key);
            if found.is_ok() {
                self.core.kv.blocks.used(&self.bucket, key, lease);
            }
            meta.extend(found.map_or(ABSENT, |entry| entry.meta.len).to_le_bytes());
        }
        let mut ticket = self.ticket(Operation::Head, arrived, first.as_deref());
        let verdict = self.admitted(ShapedOp::Stat, 0, arrived);
        let mut answer = header.answer(Status::Ok);
        if let Some(Verdict { fault: Some(Fault::Error(status)), .. }) = verdict {
            (answer.status, ticket.fault) = (injected(status), "error");
            meta.clear();
        } else if lease {
            answer.flags = answer.flags.with(Flags::LEASE);
            meta.extend(self.lease_ms().to_le_bytes());
        }
        ticket.status = answer.status;
        self.when_due(verdict, move |link| {
            let answer = Header { meta_bytes: meta.len() as u32, ..answer };
            link.answer(&answer, &meta, &[], ticket);
        });
    }

    fn lease_ms(&self) -> u32 {
        u32::try_from(self.core.kv.blocks.lease().as_millis()).unwrap_or(u32::MAX)
    }

    /// Answers with a block or a part of it. `left` counts the answers of the request still to come.
    fn get(
        self: &Rc<Self>,
        header: &Header,
        answer: Header,
        key: &str,
        (first, bytes): (u64, Option<u64>),
        arrived: Instant,
        left: &Rc<Cell<usize>>,
    ) {
        let ticket = self.ticket(Operation::Get, arrived, Some(key));
        let entry = match self.core.wire.store.find(&self.bucket, key) {
            Err(error) => return self.got(answer, ticket, Err(status_of(&error)), left),
            Ok(entry) => entry,
        };
        let lease = header.flags.has(Flags::LEASE);
        self.core.kv.blocks.used(&self.bucket, key, lease);
        let len = entry.meta.len;
        let end = bytes.map_or(len, |bytes| first.saturating_add(bytes).min(len));
        if first > end || end - first > self.limits.block_bytes {
            let status = if first > end { Status::BadRequest } else { Status::TooLarge };
            return self.got(answer, ticket, Err(status), left);
        }
        let answer = Header {
            argument: if header.operation == Asked::Get { len } else { answer.argument },
            flags: if lease { answer.flags.with(Flags::LEASE) } else { answer.flags },
            ..answer
        };
        self.hold(end - first);
        let ticket = Ticket { window: end - first, ..ticket };
        let mut reader = self.core.wire.store.read(&entry, first..end);
        let mut pieces = Vec::new();
        // A store in memory has all of it at once.
        let mut cx = Context::from_waker(Waker::noop());
        let whole = loop {
            match reader.poll_chunk(&mut cx) {
                Poll::Ready(Some(Ok(piece))) => pieces.push(piece),
                Poll::Ready(None) => break Some(Ok(())),
                Poll::Ready(Some(Err(error))) => break Some(Err(error)),
                Poll::Pending => break None,
            }
        };
        let range = first..end;
        match whole {
            Some(Ok(())) => self.got(answer, ticket, Ok((&entry, range, pieces)), left),
            Some(Err(error)) => self.got(answer, ticket, Err(status_of(&error)), left),
            None => {
                let (link, left) = (Rc::clone(self), Rc::clone(left));
                tokio::task::spawn_local(async move {
                    let result = loop {
                        match std::future::poll_fn(|cx| reader.poll_chunk(cx)).await {
                            Some(Ok(piece)) => pieces.push(piece),
                            None => break Ok((&entry, range, pieces)),
                            Some(Err(error)) => break Err(status_of(&error)),
                        }
                    };
                    link.got(answer, ticket, result, &left);
                });
            }
        }
    }

    /// A block is read, or will not be: it leaves when the shape lets it.
    #[expect(clippy::type_complexity, reason = "what was read, or why not")]
    fn got(
        self: &Rc<Self>,
        mut answer: Header,
        mut ticket: Ticket,
        read: Result<(&Arc<Entry<S::Body>>, Range<u64>, Vec<Bytes>), Status>,
        left: &Rc<Cell<usize>>,
    ) {
        let mut pieces = Vec::new();
        match read {
            Ok((entry, range, read)) => {
                answer.payload_bytes = range.end - range.start;
                let whole = answer.payload_bytes == entry.meta.len;
                answer.payload_hash = match entry.meta.etag {
                    _ if answer.payload_bytes == 0 => 0,
                    // The lower half of the tag is the hash of the whole block.
                    Etag::Fast(tag) if whole => tag as u64,
                    _ => {
                        let mut hash = Xxh3::new();
                        read.iter().for_each(|piece| hash.update(piece));
                        hash.digest128() as u64
                    }
                };
                pieces = read;
            }
            Err(status) => (answer.status, answer.flags) = (status, Flags::ANSWER),
        }
        let verdict = self.admitted(ShapedOp::Get, answer.payload_bytes, ticket.arrived);
        let mut short = false;
        match verdict.and_then(|verdict| verdict.fault).filter(|_| answer.status == Status::Ok) {
            Some(Fault::Error(status)) => {
                (answer.status, answer.flags, ticket.fault) = (injected(status), Flags::ANSWER, "error");
                (answer.payload_bytes, answer.payload_hash) = (0, 0);
                pieces.clear();
            }
            Some(Fault::Corrupt) if answer.payload_bytes > 0 => {
                let mut wrong = pieces.concat();
                let middle = wrong.len() / 2;
                wrong[middle] ^= 1;
                (pieces, ticket.fault) = (vec![Bytes::from(wrong)], "corrupt");
            }
            Some(Fault::Short) if answer.payload_bytes > 0 => (short, ticket.fault) = (true, "short"),
            _ => {}
        }
        (ticket.status, ticket.bytes_out) = (answer.status, answer.payload_bytes);
        let left = Rc::clone(left);
        self.when_due(verdict, move |link| {
            left.set(left.get() - 1);
            ticket.last = left.get() == 0;
            let mut answer = answer;
            if !ticket.last {
                answer.flags = answer.flags.with(Flags::MORE);
            }
            let meta = link.lease_ms().to_le_bytes();
            let meta = if answer.flags.has(Flags::LEASE) { &meta[..] } else { &[] };
            answer.meta_bytes = meta.len() as u32;
            if short {
                link.break_off(&answer, meta, &pieces, ticket);
            } else {
                link.answer(&answer, meta, &pieces, ticket);
            }
        });
    }

    /// Takes a block in; how it went, and when that may be said.
    async fn put<T: AsyncRead + Unpin>(
        &self,
        header: &Header,
        key: &str,
        input: &mut Input<T>,
        connection: &Connection,
        arrived: Instant,
    ) -> Result<(Ticket, Option<Verdict>), End> {
        let store = &self.core.wire.store;
        let bytes = header.payload_bytes;
        let verdict = self.admitted(ShapedOp::Put, bytes, arrived);
        let mut ticket = Ticket { bytes_in: bytes, window: bytes, ..self.ticket(Operation::Put, arrived, Some(key)) };
        self.hold(bytes);
        let mut refused = match verdict {
            _ if bytes == 0 => Some(Status::BadRequest),
            Some(Verdict { fault: Some(Fault::Error(status)), .. }) => {
                ticket.fault = "error";
                Some(injected(status))
            }
            _ => self.core.kv.blocks.make_room(&**store, bytes).await.err().map(|error| status_of(&error)),
        };
        let mut writer = store.writer(key, Some(bytes), 0);
        let mut hash = Xxh3::new();
        let mut left = bytes;
        while left > 0 {
            let chunk = input.chunk(left, connection).await?;
            left -= chunk.len() as u64;
            if refused.is_none() {
                hash.update(&chunk);
                refused = writer.write(chunk).await.err().map(|error| status_of(&error));
            }
        }
        let hash = hash.digest128();
        if refused.is_none() && hash as u64 != header.payload_hash {
            refused = Some(Status::Corrupt);
        }
        ticket.status = match refused {
            Some(status) => status,
            None => match writer.finish().await {
                Err(error) => status_of(&error),
                Ok(body) => {
                    let meta = Meta {
                        len: bytes,
                        etag: Etag::Fast(hash),
                        modified: SystemTime::now(),
                        attributes: None,
                        checksums: None,
                        part_lens: None,
                    };
                    let absent = header.flags.has(Flags::IF_ABSENT).then_some(EtagMatch::Any);
                    let only = Precondition { if_none_match: absent, ..Precondition::default() };
                    match store.put(&self.bucket, key, Entry { meta, body }, &only).await {
                        Ok(_) => {
                            self.core.kv.blocks.written(&self.bucket, key, bytes);
                            Status::Ok
                        }
                        Err(error) => status_of(&error),
                    }
                }
            },
        };
        Ok((ticket, verdict))
    }

    async fn delete(self: &Rc<Self>, header: &Header, keys: Keys<'_>, arrived: Instant) {
        let mut meta = Vec::with_capacity(keys.len() * 2);
        let mut ticket = self.ticket(Operation::Delete, arrived, keys.clone().next());
        let mut answer = header.answer(Status::Ok);
        // A delete that is to fail changes nothing.
        let verdict = self.admitted(ShapedOp::Delete, 0, arrived);
        if let Some(Verdict { fault: Some(Fault::Error(status)), .. }) = verdict {
            (answer.status, ticket.fault) = (injected(status), "error");
        }
        for key in keys.take(if answer.status == Status::Ok { usize::MAX } else { 0 }) {
            let deleted = self.core.wire.store.delete(&self.bucket, key, &Precondition::default()).await;
            let status = match deleted {
                Ok(true) => Status::Ok,
                Ok(false) => Status::NotFound,
                Err(error) => status_of(&error),
            };
            self.core.kv.blocks.gone(&self.bucket, key);
            meta.extend((status as u16).to_le_bytes());
        }
        ticket.status = answer.status;
        self.when_due(verdict, move |link| {
            let answer = Header { meta_bytes: meta.len() as u32, ..answer };
            link.answer(&answer, &meta, &[], ticket);
        });
    }
}
