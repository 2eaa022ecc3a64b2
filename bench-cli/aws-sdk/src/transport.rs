//! `--s3-client aws-sdk`: aws-sdk-s3 as an application holds it, one client for a core and endpoint, retries off.

use std::cell::Cell;
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;

use aws_sdk_s3::Client;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_s3::primitives::{ByteStream, SdkBody};
use aws_sdk_s3::types::{CompletedMultipartUpload, CompletedPart};
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use bytes::Bytes;
use gpufeed_engine::transport::{Clock, Data, Done, Lane, Limits, OpError, Transport};
use gpufeed_io::arena::Arena;
use gpufeed_transports::land;
use gpufeed_transports::s3::outgoing;
use gpufeed_workloads::op::{Carrier, Condition, ErrorKind, Names, Op, Tick, Verb};

use crate::access::Session;
use crate::failure::failure;

/// aws-sdk-s3, seen from one core.
#[derive(Debug)]
pub struct SdkTransport {
    /// Each endpoint with its client; lanes take them in turn.
    clients: Vec<(Rc<str>, Client)>,
    next: Cell<usize>,
    bucket: String,
    names: Arc<Names>,
    arena: Arena,
    clock: Clock,
}

impl SdkTransport {
    /// The transport of core number `core`: its lanes start at another endpoint than those of the next core.
    ///
    /// # Errors
    /// When certificates cannot be read.
    pub fn new(
        session: &Session,
        bucket: &str,
        core: usize,
        names: Arc<Names>,
        arena: Arena,
        clock: Clock,
    ) -> Result<Self, OpError> {
        let clients = session.clients()?.into_iter().map(|(endpoint, client)| (endpoint.into(), client)).collect();
        Ok(Self { clients, next: Cell::new(core), bucket: bucket.to_owned(), names, arena, clock })
    }
}

fn carrier(endpoint: &str) -> Carrier {
    if endpoint.starts_with("http://") { Carrier::Http } else { Carrier::Https }
}

impl Transport for SdkTransport {
    type Lane = SdkLane;

    fn limits(&self) -> Limits {
        Limits { object_bytes: 5 << 40, alignment: 1 }
    }

    fn arena(&self) -> &Arena {
        &self.arena
    }

    /// What the endpoints speak, if all speak the same.
    fn carrier(&self) -> Option<Carrier> {
        let mut each = self.clients.iter().map(|(endpoint, _)| carrier(endpoint));
        let first = each.next()?;
        each.all(|other| other == first).then_some(first)
    }

    async fn lane(&self) -> Result<SdkLane, OpError> {
        let turn = self.next.get();
        self.next.set(turn.wrapping_add(1));
        let (endpoint, client) = &self.clients[turn % self.clients.len()];
        Ok(SdkLane {
            client: client.clone(),
            carrier: carrier(endpoint),
            endpoint: Rc::clone(endpoint),
            bucket: self.bucket.clone(),
            names: Arc::clone(&self.names),
            clock: self.clock,
            name: String::new(),
            held: Vec::new(),
        })
    }
}

/// A lane of [`SdkTransport`].
#[derive(Debug)]
pub struct SdkLane {
    client: Client,
    carrier: Carrier,
    endpoint: Rc<str>,
    bucket: String,
    names: Arc<Names>,
    clock: Clock,
    name: String,
    held: Vec<Bytes>,
}

/// Moments of an operation as they are reached. Signing is inside: the SDK does not show when it sends.
struct Marks {
    clock: Clock,
    sent: Tick,
    first_byte: Option<Tick>,
    bytes: u64,
}

impl Marks {
    fn first_byte(&mut self) {
        self.first_byte.get_or_insert_with(|| self.clock.now());
    }
}

impl Lane for SdkLane {
    async fn call(&mut self, op: &Op, data: &mut Data) -> Done {
        self.name.clear();
        if op.verb == Verb::List {
            self.name.push_str(&self.names.spaces[usize::from(op.key.space)].before);
        } else {
            self.names.write(op.key, &mut self.name);
        }
        let mut marks = Marks { clock: self.clock, sent: self.clock.now(), first_byte: None, bytes: 0 };
        // The SDK's futures are tens of kilobytes.
        let result = Box::pin(self.perform(op, data, &mut marks)).await;
        let done = self.clock.now();
        self.held.clear();
        Done {
            sent: marks.sent,
            first_byte: marks.first_byte.unwrap_or(done),
            done,
            carrier: self.carrier,
            bytes: marks.bytes,
            attempts: 1,
            result,
        }
    }
}

impl SdkLane {
    async fn perform(&mut self, op: &Op, data: &mut Data, marks: &mut Marks) -> Result<(), OpError> {
        match op.verb {
            Verb::Get => self.get(op, data, marks).await,
            Verb::Put => {
                let mut put =
                    self.client.put_object().bucket(&self.bucket).key(&self.name).body(body(data, 0, op.bytes)?);
                if op.condition == Condition::IfAbsent {
                    put = put.if_none_match("*");
                }
                put.send().await.map_err(|error| self.failed("PUT", &error))?;
                marks.first_byte();
                marks.bytes = op.bytes;
                Ok(())
            }
            Verb::Stat => {
                let head = self.client.head_object().bucket(&self.bucket).key(&self.name).send().await;
                marks.first_byte();
                head.map(|_| ()).map_err(|error| self.failed("HEAD", &error))
            }
            Verb::Delete => {
                let delete = self.client.delete_object().bucket(&self.bucket).key(&self.name).send().await;
                marks.first_byte();
                delete.map(|_| ()).map_err(|error| self.failed("DELETE", &error))
            }
            Verb::List => {
                let most = i32::try_from(op.bytes.clamp(1, 1000)).unwrap_or(1000);
                let list = self.client.list_objects_v2().bucket(&self.bucket).prefix(&self.name).max_keys(most);
                let list = list.send().await;
                marks.first_byte();
                list.map(|_| ()).map_err(|error| self.failed("LIST", &error))
            }
            Verb::Multipart => self.multipart(op, data, marks).await,
        }
    }

    async fn get(&mut self, op: &Op, data: &mut Data, marks: &mut Marks) -> Result<(), OpError> {
        let mut get = self.client.get_object().bucket(&self.bucket).key(&self.name);
        if op.ranged {
            if op.bytes == 0 {
                return Err(OpError::new(ErrorKind::Client, format!("a range of no bytes of {}", self.name)));
            }
            get = get.range(format!("bytes={}-{}", op.offset, op.offset + op.bytes - 1));
        }
        let mut answer = get.send().await.map_err(|error| self.failed("GET", &error))?;
        let mut at = 0u64;
        while let Some(chunk) = poll_fn(|cx| Pin::new(&mut answer.body).poll_next(cx)).await {
            let chunk = chunk.map_err(|error| {
                let Self { bucket, name, endpoint, .. } = &*self;
                let what = format!("GET {bucket}/{name} at {endpoint}");
                let detail = format!("{what} ended after {at} of {} bytes: {error}", op.bytes);
                OpError::new(ErrorKind::ShortBody, detail)
            })?;
            marks.first_byte();
            let start = at;
            at += chunk.len() as u64;
            marks.bytes = at;
            match data {
                Data::Into { buf, from } => land(buf, *from, start, &chunk),
                Data::Hold => self.held.push(chunk),
                _ => {}
            }
        }
        if let Data::Into { buf, from } = data {
            let kept = usize::try_from(at.saturating_sub(*from)).unwrap_or(usize::MAX);
            buf.set_len(kept.min(buf.capacity()));
        }
        if at == op.bytes {
            return Ok(());
        }
        let Self { bucket, name, .. } = &*self;
        let detail = format!("GET {bucket}/{name} answered {at} bytes where {} were asked for", op.bytes);
        Err(OpError::new(ErrorKind::ShortBody, detail))
    }

    async fn multipart(&mut self, op: &Op, data: &Data, marks: &mut Marks) -> Result<(), OpError> {
        let part_bytes = if op.part_bytes == 0 { op.bytes.max(1) } else { op.part_bytes };
        let parts = op.bytes.div_ceil(part_bytes).max(1);
        let created = self.client.create_multipart_upload().bucket(&self.bucket).key(&self.name).send().await;
        let created = created.map_err(|error| self.failed("CREATE UPLOAD", &error))?;
        let id = created.upload_id().unwrap_or_default().to_owned();
        let sent = self.parts(op, data, &id, parts, part_bytes).await;
        let result = match sent {
            Ok(parts) => {
                let upload = CompletedMultipartUpload::builder().set_parts(Some(parts)).build();
                let mut complete = self
                    .client
                    .complete_multipart_upload()
                    .bucket(&self.bucket)
                    .key(&self.name)
                    .upload_id(&id)
                    .multipart_upload(upload);
                if op.condition == Condition::IfAbsent {
                    complete = complete.if_none_match("*");
                }
                let completed = complete.send().await;
                marks.first_byte();
                completed.map(|_| ()).map_err(|error| self.failed("COMPLETE UPLOAD", &error))
            }
            Err(error) => Err(error),
        };
        if result.is_err() {
            let abort = self.client.abort_multipart_upload().bucket(&self.bucket).key(&self.name).upload_id(&id);
            let _ = abort.send().await;
        } else {
            marks.bytes = op.bytes;
        }
        result
    }

    async fn parts(
        &self,
        op: &Op,
        data: &Data,
        id: &str,
        parts: u64,
        part_bytes: u64,
    ) -> Result<Vec<CompletedPart>, OpError> {
        let mut completed = Vec::new();
        for part in 0..parts {
            let start = part * part_bytes;
            let number = i32::try_from(part + 1).ok().filter(|&number| number <= 10_000).ok_or_else(|| {
                let detail = format!("{} in parts of {part_bytes} bytes has {parts} parts; S3 takes 10000", self.name);
                OpError::new(ErrorKind::Client, detail)
            })?;
            let upload = self
                .client
                .upload_part()
                .bucket(&self.bucket)
                .key(&self.name)
                .upload_id(id)
                .part_number(number)
                .body(body(data, start, part_bytes.min(op.bytes - start))?);
            let answer = upload.send().await.map_err(|error| self.failed("PUT PART", &error))?;
            let part = CompletedPart::builder()
                .part_number(number)
                .set_e_tag(answer.e_tag().map(str::to_owned))
                .set_checksum_crc32(answer.checksum_crc32().map(str::to_owned));
            completed.push(part.build());
        }
        Ok(completed)
    }

    fn failed<E>(&self, what: &str, error: &SdkError<E, HttpResponse>) -> OpError
    where
        E: ProvideErrorMetadata + std::error::Error + 'static,
    {
        failure(&format!("{what} {}/{}", self.bucket, self.name), &self.endpoint, error)
    }
}

/// Bytes `start..start + bytes` of what is to be written.
fn body(data: &Data, start: u64, bytes: u64) -> Result<ByteStream, OpError> {
    if let Data::From(all) = data
        && let Some(part) = usize::try_from(start).ok().zip(usize::try_from(start + bytes).ok())
        && part.1 <= all.len()
    {
        return Ok(ByteStream::from(all.slice(part.0..part.1)));
    }
    Ok(ByteStream::new(SdkBody::from_body_1_x(outgoing(data, start, bytes)?)))
}
