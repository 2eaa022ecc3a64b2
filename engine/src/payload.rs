//! Bytes from key and seed, and their verification: what an operation carries, made before it is sent and checked after
//! it is done, both outside its times.

use std::sync::Arc;

use gpufeed_io::arena::Arena;
use gpufeed_io::payload::{Payload, Payloads};
use gpufeed_workloads::op::{Names, Op, Verb};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::settings::{Landing, Settings, Verify};
use crate::transport::Data;

/// Makes and checks the payloads of one core.
pub(crate) struct Cargo {
    names: Arc<Names>,
    payloads: Payloads,
    arena: Arena,
    verify: Verify,
    landing: Landing,
    random: SmallRng,
    name: String,
    /// Reads checked.
    pub(crate) verified: u64,
    /// Operations that wanted a buffer when none was free.
    pub(crate) starved: u64,
}

/// What one operation carries.
pub(crate) struct Load {
    pub(crate) data: Data,
    /// Whether the answer is to be checked.
    pub(crate) check: bool,
    /// Whether making it took time.
    pub(crate) made: bool,
}

impl Cargo {
    pub(crate) fn new(names: Arc<Names>, arena: Arena, settings: &Settings, core: usize) -> Self {
        Self {
            names,
            payloads: Payloads::new(settings.seed),
            arena,
            verify: settings.verify,
            landing: settings.landing,
            random: SmallRng::seed_from_u64(settings.seed ^ (core as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)),
            name: String::new(),
            verified: 0,
            starved: 0,
        }
    }

    fn payload(&mut self, op: &Op) -> Payload {
        self.name.clear();
        self.names.write(op.key, &mut self.name);
        self.payloads.of(&self.name)
    }

    /// What `op` carries.
    pub(crate) fn load(&mut self, op: &Op) -> Load {
        let plain = |data| Load { data, check: false, made: false };
        match op.verb {
            Verb::Put | Verb::Multipart => {
                let payload = self.payload(op);
                let fits = usize::try_from(op.bytes).ok().filter(|&bytes| bytes <= self.arena.buf_bytes());
                let Some(bytes) = fits else { return plain(Data::Derived(payload)) };
                let Some(mut buf) = self.arena.take() else {
                    self.starved += 1;
                    return plain(Data::Derived(payload));
                };
                buf.set_len(bytes);
                payload.fill(0, &mut buf);
                Load { data: Data::From(buf.freeze()), check: false, made: true }
            }
            Verb::Get => {
                let check = match self.verify {
                    Verify::Off => false,
                    Verify::Full => true,
                    Verify::Sampled(share) => self.random.random_bool(share.clamp(0.0, 1.0)),
                };
                if !check && self.landing != Landing::Arena {
                    return plain(if self.landing == Landing::Hold { Data::Hold } else { Data::Discard });
                }
                let Some(buf) = self.arena.take() else {
                    self.starved += 1;
                    return plain(Data::Discard);
                };
                // A window somewhere in an answer that is larger than the buffer.
                let rest = op.bytes.saturating_sub(buf.capacity() as u64);
                let from = if rest > 0 && check { self.random.random_range(0..=rest) } else { 0 };
                Load { data: Data::Into { buf, from }, check, made: false }
            }
            Verb::Stat | Verb::List | Verb::Delete => plain(Data::None),
        }
    }

    /// Checks what arrived; words for a person when it is wrong.
    pub(crate) fn check(&mut self, op: &Op, data: &Data) -> Result<(), String> {
        let Data::Into { buf, from } = data else {
            return Err("the transport kept the buffer of a read to be verified".to_owned());
        };
        self.verified += 1;
        let payload = self.payload(op);
        let expected = op.bytes.saturating_sub(*from).min(buf.capacity() as u64);
        if buf.len() as u64 != expected {
            return Err(format!("get {}: {} bytes landed where {expected} were expected", self.name, buf.len()));
        }
        payload.verify(op.offset + from, buf).map_err(|mismatch| format!("get {}: {mismatch}", self.name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gpufeed_workloads::op::{Key, KeyStyle, Space};

    fn cargo(verify: Verify, landing: Landing) -> Cargo {
        let space = Space { before: "a/".into(), after: String::new(), style: KeyStyle::Hash };
        let settings = Settings { verify, landing, seed: 5, ..Settings::default() };
        Cargo::new(Arc::new(Names { spaces: vec![space] }), Arena::new(8192, 2).expect("small"), &settings, 0)
    }

    const KEY: Key = Key { space: 0, rank: 0, id: 9, ..Key::ZERO };

    #[test]
    fn writes_are_made_beforehand_if_they_fit() {
        let mut cargo = cargo(Verify::Off, Landing::Discard);
        let load = cargo.load(&Op::put(KEY, 5000));
        let Data::From(bytes) = &load.data else { panic!("made") };
        assert_eq!(Payloads::new(5).of("a/0000000000000009").verify(0, bytes), Ok(()));
        assert_eq!(bytes.len(), 5000);
        assert!(matches!(cargo.load(&Op::put(KEY, 8193)).data, Data::Derived(_)));
        let _second = cargo.load(&Op::put(KEY, 1));
        assert!(matches!(cargo.load(&Op::put(KEY, 1)).data, Data::Derived(_)));
        assert_eq!(cargo.starved, 1);
        drop(load);
        assert!(matches!(cargo.load(&Op::put(KEY, 1)).data, Data::From(_)));
    }

    #[test]
    fn a_wrong_byte_and_a_short_answer_are_found_and_named() {
        let mut cargo = cargo(Verify::Full, Landing::Discard);
        let op = Op::get_range(KEY, 100, 20_000);
        for _ in 0..50 {
            let mut load = cargo.load(&op);
            let Data::Into { buf, from } = &mut load.data else { panic!("to be verified") };
            buf.set_len(8192);
            Payloads::new(5).of("a/0000000000000009").fill(100 + *from, buf);
            let from = *from;
            assert_eq!(cargo.check(&op, &load.data), Ok(()));
            let Data::Into { buf, .. } = &mut load.data else { panic!("still there") };
            buf[7] ^= 1;
            let words = cargo.check(&op, &load.data).expect_err("found");
            assert_eq!(words, format!("get a/0000000000000009: byte {} is not what was written", 107 + from));
            let Data::Into { buf, .. } = &mut load.data else { panic!("still there") };
            buf.set_len(10);
            assert!(cargo.check(&op, &load.data).is_err());
        }
    }

    #[test]
    fn reads_land_as_asked_and_a_share_is_verified() {
        let get = Op::get(KEY, 100);
        assert!(matches!(cargo(Verify::Off, Landing::Discard).load(&get).data, Data::Discard));
        assert!(matches!(cargo(Verify::Off, Landing::Hold).load(&get).data, Data::Hold));
        assert!(matches!(cargo(Verify::Off, Landing::Arena).load(&get).data, Data::Into { from: 0, .. }));
        let mut sampled = cargo(Verify::Sampled(0.1), Landing::Discard);
        let checked = (0..10_000).filter(|_| sampled.load(&get).check).count();
        // Binomial(10,000, 0.1) has a standard deviation of 30.
        assert!((850..1150).contains(&checked), "{checked}");
    }
}
