//! Which worker gets a request: plain functions of what the router can know.

use crate::kv::spec::Routing;

/// What the router knows of a worker when a request arrives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Candidate {
    /// Blocks of the request's prompt that the worker holds from the start on, in its own tiers.
    pub matched_blocks: u64,
    /// Blocks that wait to be prefilled there.
    pub queued_blocks: u64,
    /// Blocks that running requests hold there.
    pub active_blocks: u64,
    /// Requests it has not finished.
    pub jobs: u64,
}

/// What a block of prefill counts against a block in decode.
const PREFILL_WEIGHT: u64 = 1;

/// Index of the worker for a request of `prompt_blocks`, the `turn`-th of the run. Among equals the lowest index wins.
#[must_use]
pub fn route(
    routing: Routing,
    turn: u64,
    prompt_blocks: u64,
    workers: usize,
    mut candidate: impl FnMut(usize) -> Candidate,
) -> usize {
    let mut least = |cost: fn(Candidate, u64) -> u64| {
        (0..workers).min_by_key(|&worker| cost(candidate(worker), prompt_blocks)).unwrap_or(0)
    };
    match routing {
        Routing::RoundRobin => (turn % workers.max(1) as u64) as usize,
        Routing::LeastLoaded => least(|worker, _| worker.jobs),
        Routing::KvAware => least(|worker, blocks| {
            PREFILL_WEIGHT * (blocks.saturating_sub(worker.matched_blocks) + worker.queued_blocks)
                + worker.active_blocks
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_policy_takes_what_it_promises() {
        let workers = [
            Candidate { matched_blocks: 0, queued_blocks: 0, active_blocks: 12, jobs: 1 },
            Candidate { matched_blocks: 8, queued_blocks: 2, active_blocks: 5, jobs: 3 },
            Candidate { matched_blocks: 0, queued_blocks: 1, active_blocks: 9, jobs: 0 },
        ];
        let to = |routing, turn| route(routing, turn, 10, 3, |i| workers[i]);
        assert_eq!([0, 1, 2, 3].map(|turn| to(Routing::RoundRobin, turn)), [0, 1, 2, 0]);
        assert_eq!(to(Routing::LeastLoaded, 0), 2);
        // 10 + 0 + 12 = 22; 2 + 2 + 5 = 9; 10 + 1 + 9 = 20.
        assert_eq!(to(Routing::KvAware, 0), 1);
    }
}
