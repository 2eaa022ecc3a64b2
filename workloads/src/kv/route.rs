//! Which worker gets a request: plain functions of what the router can know.

use crate::kv::spec::Routing;
use crate::kv::topology::RouterWeights;

/// What the router knows of a worker when a request arrives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Candidate {
    /// Blocks of the request's prompt, from the start on, that lie in G1, G2, G3 and G4 as seen from the worker; each
    /// block counts in the first of them.
    pub matched_blocks: [u64; 4],
    /// Blocks that wait to be prefilled there.
    pub queued_blocks: u64,
    /// Blocks that running requests hold there.
    pub active_blocks: u64,
    /// Requests it has not finished.
    pub jobs: u64,
}

impl RouterWeights {
    /// `w·uncached_prefill_blocks + active_decode_blocks` (design, §4), the uncached ones less the credit of each tier.
    #[must_use]
    pub fn cost(&self, candidate: &Candidate, prompt_blocks: u64) -> f64 {
        let credit: f64 = [self.g1, self.g2, self.g3, self.g4]
            .iter()
            .zip(candidate.matched_blocks)
            .map(|(credit, blocks)| credit * blocks as f64)
            .sum();
        let uncached = (prompt_blocks as f64 - credit).max(0.0);
        self.prefill * (uncached + candidate.queued_blocks as f64) + candidate.active_blocks as f64
    }
}

/// Which of the `workers`, all of them up, gets a request of `prompt_blocks`, the `turn`-th of the run; none without
/// workers. Equals take turns, so that light load does not pile up on the first.
#[must_use]
pub fn route(
    routing: Routing,
    weights: &RouterWeights,
    turn: u64,
    prompt_blocks: u64,
    workers: &[usize],
    candidate: impl Fn(usize) -> Candidate,
) -> Option<usize> {
    let first = usize::try_from(turn % workers.len().max(1) as u64).unwrap_or_default();
    let (before, from) = workers.split_at(first);
    let mut in_turn = from.iter().chain(before).copied();
    match routing {
        Routing::RoundRobin => in_turn.next(),
        Routing::LeastLoaded => in_turn.min_by_key(|&worker| candidate(worker).jobs),
        Routing::KvAware => {
            let costs = in_turn.map(|worker| (worker, weights.cost(&candidate(worker), prompt_blocks)));
            costs.min_by(|a, b| a.1.total_cmp(&b.1)).map(|(worker, _)| worker)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_policy_takes_what_it_promises() {
        let workers = [
            Candidate { matched_blocks: [0; 4], queued_blocks: 0, active_blocks: 12, jobs: 1 },
            Candidate { matched_blocks: [8, 0, 0, 0], queued_blocks: 2, active_blocks: 5, jobs: 3 },
            Candidate { matched_blocks: [0; 4], queued_blocks: 1, active_blocks: 9, jobs: 0 },
        ];
        let weights = RouterWeights::default();
        let among = |routing, turn, up: &[usize]| route(routing, &weights, turn, 10, up, |i| workers[i]);
        let to = |routing, turn| among(routing, turn, &[0, 1, 2]);
        assert_eq!([0, 1, 2, 3].map(|turn| to(Routing::RoundRobin, turn)), [0, 1, 2, 0].map(Some));
        assert_eq!(to(Routing::LeastLoaded, 0), Some(2));
        // 10 + 0 + 12 = 22; 2 + 2 + 5 = 9; 10 + 1 + 9 = 20.
        assert_eq!(to(Routing::KvAware, 0), Some(1));
        assert_eq!(among(Routing::KvAware, 0, &[0, 2]), Some(2), "worker 1 is down");
        assert_eq!([0, 1].map(|turn| among(Routing::RoundRobin, turn, &[1, 2])), [1, 2].map(Some));
        let idle = |routing, turn| route(routing, &weights, turn, 10, &[0, 1, 2], |_| Candidate::default());
        for routing in [Routing::RoundRobin, Routing::LeastLoaded, Routing::KvAware] {
            assert_eq!([0, 1, 2, 3].map(|turn| idle(routing, turn)), [0, 1, 2, 0].map(Some), "equals take turns");
        }
        for routing in [Routing::RoundRobin, Routing::LeastLoaded, Routing::KvAware] {
            assert_eq!(among(routing, 0, &[]), None);
        }
    }

    #[test]
    fn tiers_are_credited_by_their_weights() {
        let weights = RouterWeights { prefill: 2.0, g1: 1.0, g2: 0.5, g3: 0.25, g4: 0.125 };
        let at = |matched_blocks| {
            weights.cost(&Candidate { matched_blocks, queued_blocks: 3, active_blocks: 7, jobs: 0 }, 40)
        };
        // 2 · (40 − credit + 3) + 7, with a credit of 8, 4, 2, 1 and all of them.
        assert_eq!(at([8, 0, 0, 0]), 77.0);
        assert_eq!(at([0, 8, 0, 0]), 85.0);
        assert_eq!(at([0, 0, 8, 0]), 89.0);
        assert_eq!(at([0, 0, 0, 8]), 91.0);
        assert_eq!(at([8, 8, 8, 8]), 2.0 * (40.0 - 15.0 + 3.0) + 7.0);
        assert_eq!(at([50, 0, 0, 0]), 2.0 * 3.0 + 7.0, "never less than nothing");
    }
}
