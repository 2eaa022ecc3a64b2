//! The conformance suite: what every transport must do, run by every implementation's tests.
//!
//! A transport says what its target cannot do ([`Capabilities`]); whatever it does not disclaim is checked.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::Poll;

use bytes::Bytes;
use gpufeed_io::payload::{Payload, Payloads};
use gpufeed_workloads::op::{Condition, ErrorKind, Key, KeyStyle, Names, Op, Space, Verb};

use crate::transport::{Clock, Data, Done, Lane, Transport};

/// What a target can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capabilities {
    /// Remembers what was written: absent objects, bad ranges and deletions are told.
    pub stores: bool,
    /// Knows [`Verb::List`].
    pub list: bool,
    /// Knows [`Verb::Multipart`]; smallest part, last one excepted.
    pub multipart_part_bytes: Option<u64>,
    /// Knows [`Condition::IfAbsent`].
    pub conditional: bool,
    /// Takes objects of no bytes.
    pub empty: bool,
}

impl Capabilities {
    /// Everything, with parts as small as S3 allows.
    pub const ALL: Self =
        Self { stores: true, list: true, multipart_part_bytes: Some(5 << 20), conditional: true, empty: true };
}

/// Seed of the suite's payloads: to be used by synthetic targets that make what they are asked for.
pub const SEED: u64 = 0x6770_7566;

/// The names the suite uses, all below `prefix` (empty, or ending in a slash).
#[must_use]
pub fn names(prefix: &str) -> Names {
    let space = |before: &str, style| Space { before: format!("{prefix}{before}"), after: ".bin".to_owned(), style };
    Names {
        spaces: vec![space("conformance/obj_", KeyStyle::Index(6)), space("conformance/blocks/", KeyStyle::RankHash)],
    }
}

/// Sizes that fall on, before and after pages and part of a megabyte.
const SIZES: [u64; 5] = [0, 1, 4095, 4096, (1 << 20) + 3];

/// Checks a transport whose names are those of [`names`] with the same prefix. Leaves the target as it was, where it
/// can delete. To be run on a single-threaded runtime with time and I/O; the arena must hold two buffers of 2 MiB.
///
/// # Errors
/// The first thing that is not as it should be.
pub async fn check<T: Transport>(
    transport: &T,
    clock: Clock,
    prefix: &str,
    capabilities: Capabilities,
) -> Result<(), String> {
    let suite = async {
        let lane = transport.lane().await.map_err(|error| format!("opening a lane: {error}"))?;
        let names = names(prefix);
        let mut suite = Suite { transport, lane, clock, names, payloads: Payloads::new(SEED), capabilities };
        suite.sizes().await?;
        suite.ranges().await?;
        suite.dropped_calls().await?;
        suite.two_lanes().await?;
        if capabilities.stores {
            suite.absent().await?;
            suite.bad_ranges().await?;
        }
        if capabilities.list {
            suite.call("list", &Op::list(0, 100), Data::None).await?;
        }
        if capabilities.conditional {
            suite.conditional().await?;
        }
        if let Some(part_bytes) = capabilities.multipart_part_bytes {
            suite.multipart(part_bytes).await?;
        }
        suite.clean().await
    };
    let mut suite = pin!(suite);
    let mut turn = pin!(transport.turn());
    poll_fn(|context| {
        // What lanes share must be driven beside them, as the engine does.
        let _ = turn.as_mut().poll(context);
        suite.as_mut().poll(context)
    })
    .await
}

struct Suite<'a, T: Transport> {
    transport: &'a T,
    lane: T::Lane,
    clock: Clock,
    names: Names,
    payloads: Payloads,
    capabilities: Capabilities,
}

fn key(id: u64) -> Key {
    Key { space: 0, rank: 0, id, ..Key::ZERO }
}

const BLOCK: Key = Key { space: 1, rank: 3, id: 0xfeed_0001, ..Key::ZERO };
const LARGE: u64 = (1 << 20) + 3;
const MULTIPART: u64 = 900_001;

fn expect(holds: bool, words: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(words()) }
}

impl<T: Transport> Suite<'_, T> {
    fn payload(&self, key: Key) -> Payload {
        self.payloads.of(&self.names.of(key))
    }

    fn made(&self, op: &Op) -> Data {
        let mut bytes = vec![0; usize::try_from(op.bytes).unwrap_or(0)];
        self.payload(op.key).fill(0, &mut bytes);
        Data::From(Bytes::from(bytes))
    }

    /// Calls, and checks what holds for every answer.
    async fn try_call(&mut self, what: &str, op: &Op, data: &mut Data) -> Result<Done, String> {
        let before = self.clock.now();
        let done = self.lane.call(op, data).await;
        let after = self.clock.now();
        expect(before <= done.sent && done.sent <= done.first_byte, || {
            format!("{what}: first byte before it was sent")
        })?;
        expect(done.first_byte <= done.done && done.done <= after, || format!("{what}: done before its first byte"))?;
        expect(done.attempts >= 1, || format!("{what}: no attempt was counted"))?;
        Ok(done)
    }

    async fn call(&mut self, what: &str, op: &Op, mut data: Data) -> Result<(Done, Data), String> {
        let done = self.try_call(what, op, &mut data).await?;
        if let Err(error) = &done.result {
            return Err(format!("{what}: {error}"));
        }
        let carrier = self.transport.carrier().unwrap_or(done.carrier);
        expect(done.carrier == carrier, || format!("{what}: travelled by {:?}, not {carrier:?}", done.carrier))?;
        let bytes = if op.verb == Verb::Get || op.verb.writes() { Some(op.bytes) } else { None };
        if let Some(bytes) = bytes {
            expect(done.bytes == bytes, || format!("{what}: counted {} bytes, not {bytes}", done.bytes))?;
        }
        Ok((done, data))
    }

    async fn fails(&mut self, what: &str, op: &Op, mut data: Data, kind: ErrorKind) -> Result<(), String> {
        let done = self.try_call(what, op, &mut data).await?;
        match done.result {
            Err(error) if error.kind == kind => {
                expect(!error.detail.is_empty(), || format!("{what}: fails without words"))
            }
            Err(error) => Err(format!("{what}: fails as {}, not as {}: {error}", error.kind.name(), kind.name())),
            Ok(()) => Err(format!("{what}: succeeds where it must fail as {}", kind.name())),
        }
    }

    /// Reads a range and compares it, from byte `from` of the answer on.
    async fn read_back(&mut self, what: &str, op: &Op, from: u64) -> Result<(), String> {
        let buf = self.transport.arena().take().ok_or("the arena has no free buffer")?;
        let capacity = buf.capacity() as u64;
        let (_, data) = self.call(what, op, Data::Into { buf, from }).await?;
        let Data::Into { buf, .. } = data else { return Err(format!("{what}: the buffer was not given back")) };
        let expected = op.bytes.saturating_sub(from).min(capacity);
        expect(buf.len() as u64 == expected, || format!("{what}: {} bytes landed, not {expected}", buf.len()))?;
        self.payload(op.key).verify(op.offset + from, &buf).map_err(|error| format!("{what}: {error}"))
    }

    async fn sizes(&mut self) -> Result<(), String> {
        let least = u64::from(!self.capabilities.empty);
        for (id, bytes) in (0..).zip(SIZES).filter(|&(_, bytes)| bytes >= least) {
            let put = Op::put(key(id), bytes);
            self.call(&format!("put of {bytes} bytes"), &put, self.made(&put)).await?;
            self.call(&format!("stat of {bytes} bytes"), &Op::stat(key(id)), Data::None).await?;
            let get = Op::get(key(id), bytes);
            let what = format!("get of {bytes} bytes");
            self.read_back(&what, &get, 0).await?;
            self.call(&format!("{what}, discarded"), &get, Data::Discard).await?;
            self.call(&format!("{what}, held"), &get, Data::Hold).await?;
            // Overwriting, with a payload made while sending.
            let derived = Data::Derived(self.payload(key(id)));
            self.call(&format!("derived put of {bytes} bytes"), &put, derived).await?;
            self.read_back(&format!("{what}, written again"), &get, 0).await?;
        }
        let put = Op::put(BLOCK, 4096);
        self.call("put of a block", &put, self.made(&put)).await?;
        self.read_back("get of a block", &Op::get(BLOCK, 4096), 0).await
    }

    async fn ranges(&mut self) -> Result<(), String> {
        let large = key(4);
        let ranges = [(0, 1), (0, LARGE), (1, 4096), (4096, 4096), (4095, 2), (12_345, 65_537), (LARGE - 1, 1)];
        for (offset, bytes) in ranges {
            let what = format!("get of {bytes} bytes from {offset}");
            self.read_back(&what, &Op::get_range(large, offset, bytes), 0).await?;
        }
        self.read_back("get into a buffer from the answer's byte 5000", &Op::get(large, LARGE), 5000).await?;
        self.read_back("ranged get kept from byte 10", &Op::get_range(large, 100, 5000), 10).await
    }

    /// A lane whose call was dropped at any point performs the next.
    async fn dropped_calls(&mut self) -> Result<(), String> {
        let get = Op::get(key(4), LARGE);
        let put = Op::put(key(4), LARGE);
        for polls in 0..6u32 {
            for op in [get, put] {
                let mut data = if op.verb == Verb::Get { Data::Discard } else { self.made(&op) };
                {
                    let mut call = pin!(self.lane.call(&op, &mut data));
                    for _ in 0..=polls {
                        let poll = poll_fn(|context| Poll::Ready(call.as_mut().poll(context))).await;
                        if poll.is_ready() {
                            break;
                        }
                        tokio::task::yield_now().await;
                    }
                }
                let what = format!("put after a {} dropped after {polls} polls", op.verb);
                self.call(&what, &put, self.made(&put)).await?;
                self.read_back(&format!("get after a {} dropped after {polls} polls", op.verb), &get, 0).await?;
            }
        }
        Ok(())
    }

    /// Two lanes have an operation in flight each.
    async fn two_lanes(&mut self) -> Result<(), String> {
        let mut other = self.transport.lane().await.map_err(|error| format!("opening a second lane: {error}"))?;
        let (one, two) = (Op::get(key(3), 4096), Op::get(key(4), LARGE));
        let (mut data_one, mut data_two) = (Data::Discard, Data::Discard);
        let both = futures_util::future::join(self.lane.call(&one, &mut data_one), other.call(&two, &mut data_two));
        let (one, two) = both.await;
        expect(one.result.is_ok() && one.bytes == 4096, || format!("first of two lanes: {:?}", one.result))?;
        expect(two.result.is_ok() && two.bytes == LARGE, || format!("second of two lanes: {:?}", two.result))
    }

    async fn absent(&mut self) -> Result<(), String> {
        let absent = key(999_999);
        self.fails("stat of an absent object", &Op::stat(absent), Data::None, ErrorKind::NotFound).await?;
        self.fails("get of an absent object", &Op::get(absent, 10), Data::Discard, ErrorKind::NotFound).await?;
        // Deleting what is not there is a success, as in S3.
        self.call("delete of an absent object", &Op::delete(absent), Data::None).await?;
        Ok(())
    }

    async fn bad_ranges(&mut self) -> Result<(), String> {
        let mut data = Data::Discard;
        let beyond = Op::get_range(key(3), 8192, 10);
        let done = self.try_call("get beyond the end", &beyond, &mut data).await?;
        expect(done.result.is_err(), || "get beyond the end: succeeds".to_owned())?;
        let across = Op::get_range(key(3), 4090, 10);
        let done = self.try_call("get across the end", &across, &mut data).await?;
        expect(done.result.is_err() || done.bytes == 6, || format!("get across the end: counts {} bytes", done.bytes))?;
        self.read_back("get after a bad range", &Op::get(key(3), 4096), 0).await
    }

    async fn conditional(&mut self) -> Result<(), String> {
        let put = Op { condition: Condition::IfAbsent, ..Op::put(key(20), 100) };
        self.call("put if absent, absent", &put, self.made(&put)).await?;
        self.fails("put if absent, present", &put, self.made(&put), ErrorKind::Condition).await?;
        self.read_back("get after a refused put", &Op::get(key(20), 100), 0).await
    }

    async fn multipart(&mut self, part_bytes: u64) -> Result<(), String> {
        for (id, bytes) in [(30, MULTIPART), (31, part_bytes + MULTIPART)] {
            let op = Op::multipart(key(id), bytes, part_bytes);
            let what = format!("multipart write of {bytes} bytes");
            self.call(&what, &op, Data::Derived(self.payload(key(id)))).await?;
            if bytes <= 2 << 20 {
                self.call(&format!("{what}, made before"), &op, self.made(&op)).await?;
            }
            let around = bytes.saturating_sub(1 << 20);
            let tail = Op::get_range(key(id), around, bytes - around);
            self.read_back(&format!("end of a {what}"), &tail, 0).await?;
            self.call(&format!("whole of a {what}"), &Op::get(key(id), bytes), Data::Discard).await?;
        }
        Ok(())
    }

    async fn clean(&mut self) -> Result<(), String> {
        for key in (0..5).chain([20, 30, 31]).map(key).chain([BLOCK]) {
            self.call("delete", &Op::delete(key), Data::None).await?;
            if self.capabilities.stores {
                self.fails("stat of a deleted object", &Op::stat(key), Data::None, ErrorKind::NotFound).await?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fault::{Faulty, Injection};
    use crate::memory::Memory;
    use gpufeed_io::arena::Arena;
    use std::sync::Arc;
    use std::time::{Duration, Instant};

    fn memory(clock: Clock) -> Memory {
        Memory::new(Arc::default(), Arc::new(names("p/")), Arena::new(2 << 20, 2).expect("small"), clock)
    }

    #[tokio::test]
    async fn memory_conforms_and_so_does_a_slow_one() {
        let clock = Clock::new(Instant::now());
        check(&memory(clock), clock, "p/", Capabilities::ALL).await.expect("conforms");
        let slow = |_, _: &Op| Injection { delay: Duration::from_micros(300), ..Injection::default() };
        check(&Faulty::new(memory(clock), clock, slow), clock, "p/", Capabilities::ALL).await.expect("conforms");
    }

    #[tokio::test]
    async fn damage_and_failures_are_found() {
        let clock = Clock::new(Instant::now());
        let corrupt = |n, _: &Op| Injection { corrupt: n > 20, ..Injection::default() };
        let words = check(&Faulty::new(memory(clock), clock, corrupt), clock, "p/", Capabilities::ALL).await;
        assert!(words.expect_err("found").contains("not what was written"));
        let failing = |n, _: &Op| Injection { error: (n == 7).then_some(ErrorKind::Server), ..Injection::default() };
        assert!(check(&Faulty::new(memory(clock), clock, failing), clock, "p/", Capabilities::ALL).await.is_err());
    }
}
