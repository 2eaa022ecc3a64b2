//! The null target (`mem:`): every operation succeeds at once. What a run over it reaches is this client's own ceiling.

use std::sync::Arc;

use gpufeed_engine::transport::{Clock, Data, Done, Lane, Limits, OpError, Transport};
use gpufeed_io::arena::Arena;
use gpufeed_io::payload::Payloads;
use gpufeed_workloads::op::{Carrier, Names, Op, Verb};

/// A target that stores nothing: reads answer what was (or would have been) written, writes vanish.
#[derive(Debug, Clone)]
pub struct NullTarget {
    names: Arc<Names>,
    payloads: Payloads,
    arena: Arena,
    clock: Clock,
}

impl NullTarget {
    /// The null target of one core. `seed` is the run's: reads into a buffer answer the payload of that seed.
    #[must_use]
    pub fn new(names: Arc<Names>, seed: u64, arena: Arena, clock: Clock) -> Self {
        Self { names, payloads: Payloads::new(seed), arena, clock }
    }
}

impl Transport for NullTarget {
    type Lane = NullLane;

    fn limits(&self) -> Limits {
        Limits { object_bytes: u64::MAX, alignment: 1 }
    }

    fn arena(&self) -> &Arena {
        &self.arena
    }

    fn carrier(&self) -> Option<Carrier> {
        Some(Carrier::Null)
    }

    async fn lane(&self) -> Result<NullLane, OpError> {
        Ok(NullLane { target: self.clone(), name: String::new() })
    }
}

/// A lane of the [`NullTarget`].
#[derive(Debug)]
pub struct NullLane {
    target: NullTarget,
    name: String,
}

impl Lane for NullLane {
    async fn call(&mut self, op: &Op, data: &mut Data) -> Done {
        if let Data::Into { buf, from } = data {
            self.name.clear();
            self.target.names.write(op.key, &mut self.name);
            let kept = usize::try_from(op.bytes.saturating_sub(*from)).unwrap_or(usize::MAX).min(buf.capacity());
            buf.set_len(kept);
            self.target.payloads.of(&self.name).fill(op.offset + *from, buf);
        }
        let sent = self.target.clock.now();
        let bytes = if matches!(op.verb, Verb::Get | Verb::Put | Verb::Multipart) { op.bytes } else { 0 };
        let done = self.target.clock.now();
        Done { sent, first_byte: done, done, carrier: Carrier::Null, bytes, attempts: 1, result: Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gpufeed_workloads::op::{Key, KeyStyle, Space};
    use std::time::Instant;

    #[tokio::test]
    async fn reads_answer_the_payload_and_touch_nothing_when_it_is_dropped() {
        let space = Space { before: "a/".into(), after: String::new(), style: KeyStyle::Hash };
        let names = Arc::new(Names { spaces: vec![space] });
        let arena = Arena::new(4096, 1).expect("small");
        let target = NullTarget::new(Arc::clone(&names), 7, arena, Clock::new(Instant::now()));
        let mut lane = target.lane().await.expect("always opens");
        let key = Key { space: 0, rank: 0, id: 3, ..Key::ZERO };

        let buf = target.arena().take().expect("free");
        let mut data = Data::Into { buf, from: 5 };
        let done = lane.call(&Op::get_range(key, 100, 50), &mut data).await;
        assert!(
            done.result.is_ok() && done.bytes == 50 && done.sent <= done.first_byte && done.first_byte <= done.done
        );
        let Data::Into { buf, .. } = &data else { panic!("still a buffer") };
        assert_eq!(buf.len(), 45);
        assert_eq!(Payloads::new(7).of(&names.of(key)).verify(105, buf), Ok(()));

        let done = lane.call(&Op::get(key, 1 << 40), &mut Data::Discard).await;
        assert_eq!((done.bytes, done.carrier), (1 << 40, Carrier::Null));
        assert_eq!(lane.call(&Op::stat(key), &mut Data::None).await.bytes, 0);
    }
}
