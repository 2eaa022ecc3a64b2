//! Workers that die and come back, and what becomes of what they had.

use std::ops::Range;

use crate::inference::{BlockPool, Lost};
use crate::kv::Kv;
use crate::kv::metrics::Metrics;
use crate::kv::tiers::{Tiers, Wake};
use crate::machine::Actions;
use crate::op::Tick;

impl Kv {
    /// A moment of the trace, on the run's own clock.
    fn moment(&self, since_start: std::time::Duration) -> Tick {
        let ns = since_start.as_nanos() as f64 * self.tiers.spec.time_scale;
        Tick(self.tiers.origin.0 + ns.round() as u64)
    }

    /// Asks to be woken for everything that is to happen to workers.
    pub(super) fn schedule_outages(&self, out: &mut Actions) {
        for (index, outage) in self.tiers.spec.outages.iter().enumerate() {
            let outage_index = index as u32;
            out.wake(self.moment(outage.at), Wake::Down { outage: outage_index }.tag());
            if let Some(back) = outage.back {
                out.wake(self.moment(back), Wake::Back { outage: outage_index }.tag());
            }
        }
    }

    /// A worker dies: its memory and its host's are gone, and its requests go on elsewhere.
    pub(super) fn down(&mut self, at: Tick, outage: usize) {
        let worker = self.tiers.spec.outages[outage].worker;
        // What it did before comes first: a prompt just computed is on its way.
        self.workers[worker as usize].advance(at, &mut self.tiers);
        self.act();
        let Lost { requests, incoming, outgoing } = self.workers[worker as usize].kill(at, &mut self.tiers);
        self.act();
        self.tiers.worker_lost(at, worker);
        let mut requests = requests;
        requests.extend(outgoing.into_iter().filter_map(|id| self.recall(at, id)));
        for moved in requests {
            self.redirect(at, moved);
        }
        for moved in incoming {
            self.tiers.metrics.moved(at);
            self.resend(at, moved);
        }
    }

    /// A worker is back, with nothing in its memory.
    pub(super) fn back(&mut self, at: Tick, outage: usize) {
        let worker = self.tiers.spec.outages[outage].worker;
        self.workers[worker as usize].restart(at);
        self.find_workers(at);
        self.find_decoders(at);
    }

    /// Whether some worker of a pool is up at `at`, or will be.
    pub(super) fn comes_back(&self, at: Tick, pool: &Range<usize>) -> bool {
        pool.clone().any(|worker| !self.workers[worker].is_down())
            || self.tiers.spec.outages.iter().any(|outage| {
                pool.contains(&(outage.worker as usize)) && outage.back.is_some_and(|back| self.moment(back) > at)
            })
    }

    /// The end of the books: `end`, or the last iteration booked where no Stop has cut the window.
    pub(super) fn booked(&self, end: Tick) -> Tick {
        let last = self.workers.iter().map(|worker| worker.ledger().cursor()).max().unwrap_or_default();
        if self.tiers.stopped { end } else { end.max(last) }
    }
}

impl Tiers {
    /// A worker is gone, with its host's memory. What it had in flight lands for nobody.
    pub(super) fn worker_lost(&mut self, at: Tick, worker: u32) {
        self.metrics.worker_lost(at);
        let local = &mut self.locals[worker as usize];
        local.g2 = BlockPool::new(local.g2.capacity());
        (local.in_free, local.out_free) = (at, at);
        if self.open_copy.as_ref().is_some_and(|(_, copying)| copying.worker == worker) {
            self.open_copy = None;
        }
        for copying in self.copies.iter_mut().flatten().filter(|copying| copying.worker == worker) {
            copying.blocks.clear();
        }
        local.stalled.clear();
        for load in self.loads.values_mut() {
            load.forget_host(worker);
        }
        for id in self.target.abandon(worker) {
            self.shared.written(id, at, false);
        }
        self.drives.worker_lost(worker);
        self.lose_computed(worker);
    }

    /// Blocks of `ids` from the first on that the target holds, as far as routing cares.
    pub(super) fn shared_match(&self, ids: &[u64]) -> usize {
        let counts = self.spec.shared_tier && self.spec.router.g4 > 0.0;
        if counts { ids.iter().take_while(|id| self.shared.contains(**id)).count() } else { 0 }
    }

    /// Blocks of `ids` by the first tier that a worker finds them in, G1 to G4: `held` of them are in GPU memory, and the
    /// target has the first `shared`.
    pub(super) fn tier_match(&self, worker: usize, ids: &[u64], held: usize, shared: usize) -> [u64; 4] {
        let host = self.local_match(worker, ids, held);
        let drive = if self.drives.exist() {
            host + ids[host..].iter().take_while(|id| self.drives.contains(worker as u32, **id)).count()
        } else {
            host
        };
        // Behind a block that the target lacks, it is asked again.
        let beyond = if drive <= shared { shared - drive } else { self.shared_match(&ids[drive..]) };
        [held, host - held, drive - host, beyond].map(|blocks| blocks as u64)
    }
}

impl Metrics {
    pub(super) fn worker_lost(&mut self, at: Tick) {
        self.failover.workers_lost += u64::from(self.counts(at));
    }

    pub(super) fn moved(&mut self, at: Tick) {
        self.failover.moved_requests += u64::from(self.counts(at));
    }

    pub(super) fn gave_up(&mut self, at: Tick) {
        self.failover.failed_requests += u64::from(self.counts(at));
    }
}
