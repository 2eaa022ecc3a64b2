//! Two targets in one run, told apart by key space: a shared one, and one nearer to the machine.

use gpufeed_io::arena::Arena;
use gpufeed_workloads::op::{Carrier, Op, Tick};

use crate::simulated::{Answer, Storage};
use crate::transport::{Data, Done, Lane, Limits, OpError, Transport};

/// Two of a kind: transports of one core, lanes, or storage models. Operations on key spaces from `from_space` on go to
/// the second.
#[derive(Debug)]
pub struct Two<A, B> {
    first: A,
    second: B,
    from_space: u16,
}

impl<A, B> Two<A, B> {
    /// Both side by side. Transports should have the same arena.
    pub const fn new(first: A, second: B, from_space: u16) -> Self {
        Self { first, second, from_space }
    }
}

impl<A: Transport, B: Transport> Transport for Two<A, B> {
    type Lane = Two<A::Lane, B::Lane>;

    fn limits(&self) -> Limits {
        let (first, second) = (self.first.limits(), self.second.limits());
        Limits {
            object_bytes: first.object_bytes.min(second.object_bytes),
            alignment: first.alignment.max(second.alignment),
        }
    }

    fn arena(&self) -> &Arena {
        self.first.arena()
    }

    fn carrier(&self) -> Option<Carrier> {
        self.first.carrier()
    }

    fn second_carrier(&self) -> Option<Carrier> {
        self.second.carrier()
    }

    async fn lane(&self) -> Result<Self::Lane, OpError> {
        Ok(Two::new(self.first.lane().await?, self.second.lane().await?, self.from_space))
    }

    async fn turn(&self) {
        tokio::join!(self.first.turn(), self.second.turn());
    }
}

impl<A: Lane, B: Lane> Lane for Two<A, B> {
    async fn call(&mut self, op: &Op, data: &mut Data) -> Done {
        if op.key.space < self.from_space { self.first.call(op, data).await } else { self.second.call(op, data).await }
    }
}

impl<A: Storage, B: Storage> Storage for Two<A, B> {
    fn admit(&mut self, op: &Op, now: Tick) -> Answer {
        if op.key.space < self.from_space { self.first.admit(op, now) } else { self.second.admit(op, now) }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::{Duration, Instant};

    use gpufeed_profiles::storage::Shape;
    use gpufeed_workloads::op::Key;

    use super::*;
    use crate::conformance::{self, Capabilities};
    use crate::memory::{Memory, Objects};
    use crate::simulated::StorageModel;
    use crate::transport::Clock;

    #[tokio::test]
    async fn two_targets_are_one_transport_and_keep_apart() {
        let names = Arc::new(conformance::names("x/"));
        let clock = Clock::new(Instant::now());
        let arena = Arena::new(2 << 20, 2).expect("small");
        let (near, far) = (Objects::default(), Objects::default());
        let open = |objects: &Objects| Memory::new(Arc::clone(objects), Arc::clone(&names), arena.clone(), clock);
        let two = Two::new(open(&far), open(&near), 1);
        let all = Capabilities { multipart_part_bytes: None, ..Capabilities::ALL };
        conformance::check(&two, clock, "x/", all).await.expect("as one target");
        let mut lane = two.lane().await.expect("in memory");
        for space in [0, 1] {
            let op = Op::put(Key { space, rank: 0, id: 7, ..Key::ZERO }, 3);
            let done = lane.call(&op, &mut Data::From(bytes::Bytes::from_static(b"abc"))).await;
            assert!(done.result.is_ok());
        }
        let held = |objects: &Objects| objects.lock().expect("no panic").keys().cloned().collect::<Vec<_>>();
        assert_eq!(held(&far), ["x/conformance/obj_000007.bin"]);
        assert_eq!(held(&near), ["x/conformance/blocks/0/0000000000000007.bin"]);
    }

    #[test]
    fn two_models_answer_each_for_itself() {
        let model = |shape: &str| StorageModel::new(&shape.parse::<Shape>().expect("a shape"), 1, None);
        let mut two = Two::new(model("get:latency=5ms"), model("get:latency=100us"), 3);
        let mut took = |space| {
            let answer = two.admit(&Op::get(Key { space, rank: 0, id: 1, ..Key::ZERO }, 10), Tick(1000));
            assert_eq!(answer.result, Ok(()));
            answer.done.since(Tick(1000))
        };
        assert_eq!([0, 2, 3, 9].map(&mut took), [5000, 5000, 100, 100].map(Duration::from_micros));
    }
}
