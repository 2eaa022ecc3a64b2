//! Objects in memory behind the [`Transport`] traits: the reference for the conformance suite, and a target for tests
//! that must not depend on a network or a disk.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use gpufeed_io::arena::Arena;
use gpufeed_workloads::op::{Carrier, Condition, ErrorKind, Names, Op, Verb};

use crate::transport::{Clock, Data, Done, Lane, Limits, OpError, Transport};

/// Objects by name, shared by all cores of a run.
pub type Objects = Arc<Mutex<BTreeMap<String, Bytes>>>;

/// A target in memory.
#[derive(Debug, Clone)]
pub struct Memory {
    objects: Objects,
    names: Arc<Names>,
    arena: Arena,
    clock: Clock,
}

impl Memory {
    /// One core's view of `objects`.
    #[must_use]
    pub fn new(objects: Objects, names: Arc<Names>, arena: Arena, clock: Clock) -> Self {
        Self { objects, names, arena, clock }
    }
}

impl Transport for Memory {
    type Lane = Self;

    fn limits(&self) -> Limits {
        Limits { object_bytes: u64::MAX, alignment: 1 }
    }

    fn arena(&self) -> &Arena {
        &self.arena
    }

    fn carrier(&self) -> Option<Carrier> {
        Some(Carrier::Null)
    }

    async fn lane(&self) -> Result<Self, OpError> {
        Ok(self.clone())
    }
}

impl Lane for Memory {
    async fn call(&mut self, op: &Op, data: &mut Data) -> Done {
        let sent = self.clock.now();
        let answer = self.perform(op, data);
        let done = self.clock.now();
        let (bytes, result) = match answer {
            Ok(bytes) => (bytes, Ok(())),
            Err(error) => (0, Err(error)),
        };
        Done { sent, first_byte: done, done, carrier: Carrier::Null, bytes, attempts: 1, result }
    }
}

impl Memory {
    fn perform(&self, op: &Op, data: &mut Data) -> Result<u64, OpError> {
        let name = self.names.of(op.key);
        let fail = |kind, words: &str| OpError::new(kind, format!("{} {name}: {words}", op.verb));
        let absent = || fail(ErrorKind::NotFound, "no such object");
        let mut objects = self.objects.lock().unwrap_or_else(PoisonError::into_inner);
        match op.verb {
            Verb::Get => {
                let object = objects.get(&name).ok_or_else(absent)?;
                let from = if op.ranged { op.offset } else { 0 };
                if from >= object.len() as u64 && op.ranged && op.bytes > 0 {
                    return Err(fail(ErrorKind::Client, "range not satisfiable"));
                }
                let start = usize::try_from(from).unwrap_or(usize::MAX).min(object.len());
                let wanted = if op.ranged { usize::try_from(op.bytes).unwrap_or(usize::MAX) } else { object.len() };
                let body = &object[start..start.saturating_add(wanted).min(object.len())];
                if let Data::Into { buf, from } = data {
                    let kept = &body[usize::try_from(*from).unwrap_or(usize::MAX).min(body.len())..];
                    let kept = &kept[..kept.len().min(buf.capacity())];
                    buf.set_len(kept.len());
                    buf.copy_from_slice(kept);
                }
                Ok(body.len() as u64)
            }
            Verb::Put | Verb::Multipart => {
                if op.condition == Condition::IfAbsent && objects.contains_key(&name) {
                    return Err(fail(ErrorKind::Condition, "the object exists"));
                }
                let body = match data {
                    // A copy: the payload's buffer goes back to its pool.
                    Data::From(bytes) => Bytes::copy_from_slice(bytes),
                    Data::Derived(payload) => {
                        let mut body = vec![0; usize::try_from(op.bytes).unwrap_or(usize::MAX)];
                        payload.fill(0, &mut body);
                        body.into()
                    }
                    _ => return Err(fail(ErrorKind::Protocol, "a write without a payload")),
                };
                let bytes = body.len() as u64;
                objects.insert(name, body);
                Ok(bytes)
            }
            Verb::Stat => objects.get(&name).map(|_| 0).ok_or_else(absent),
            Verb::List => Ok(0),
            Verb::Delete => {
                objects.remove(&name);
                Ok(0)
            }
        }
    }
}
