//! What goes down the tiers, and when: by write policy, and because a tier above has no room any more.
//!
//! Host memory (G2) gets every new block. Below it, a block is written through at once, selectively, or when the tier
//! above lets it go. What leaves host memory goes to the drive (G3) if that does not have it; what leaves the drive goes
//! to the target (G4) when policy is to write back. The shared tier deletes what it has no room for.

use crate::inference::{Room, Slot};
use crate::kv::drive::Kept;
use crate::kv::exchange::{Asked, Landed};
use crate::kv::shared::Admission;
use crate::kv::spec::WritePolicy;
use crate::kv::tiers::{Tier, Tiers};
use crate::op::Tick;

impl Tiers {
    /// Whether policy lets a block below host memory at all.
    fn selected(&self, id: u64) -> bool {
        self.spec.write_policy != WritePolicy::WriteThroughSelective
            || self.seen.get(&id).is_some_and(|seen| *seen >= self.spec.write_after_seen)
    }

    /// Whether a new block is to be written to the drive, and to the target, as soon as it is computed.
    fn written_at_once(&self, worker: u32, id: u64) -> (bool, bool) {
        let back = self.spec.write_policy == WritePolicy::WriteBack;
        let (host, drive) = (self.locals[worker as usize].g2.capacity() > 0, self.drives.exist());
        let selected = self.selected(id);
        (selected && drive && !(back && host), selected && self.spec.shared_tier && !(back && (host || drive)))
    }

    /// Whether a block that is complete in GPU memory is to be written below host memory now.
    pub(super) fn wants_write(&self, worker: u32, id: u64) -> bool {
        let (drive, target) = self.written_at_once(worker, id);
        (drive && !self.drives.knows(worker, id)) || (target && !self.shared.contains(id) && !self.shared.writes(id))
    }

    /// Writes a new block through.
    pub(super) fn write_through(&mut self, at: Tick, worker: u32, id: u64) {
        let (drive, target) = self.written_at_once(worker, id);
        if drive {
            self.write_to_drive(at, worker, id);
        }
        if target {
            self.write_to_target(at, worker, id);
        }
    }

    /// A prompt contains these blocks. Those that have now been seen often enough to be written are: from host memory
    /// where it has them; the others, wherever in GPU memory they are, are for the machine to offload again.
    pub(super) fn see(&mut self, at: Tick, worker: u32, ids: &[u64]) {
        if self.spec.write_policy != WritePolicy::WriteThroughSelective {
            return;
        }
        for &id in ids {
            let seen = self.seen.get(&id).map_or(1, |seen| seen.saturating_add(1));
            self.seen.insert(id, seen);
            if seen != self.spec.write_after_seen || !self.wants_write(worker, id) {
                continue;
            }
            if self.locals[worker as usize].g2.contains(id) {
                self.write_through(at, worker, id);
            } else {
                self.rewrites.push((worker, id));
            }
        }
        self.pump(at, worker);
    }

    /// Whether no more writes of a worker can be queued.
    pub(super) fn queue_is_full(&self, worker: u32) -> bool {
        let most = |ranks: u16| self.spec.put_queue_blocks as usize * usize::from(ranks);
        [&self.target, &self.drives.exchange]
            .iter()
            .any(|exchange| exchange.writes_waiting(worker) >= most(exchange.shape().ranks))
    }

    /// Finds room for one block in host memory; what must go for it goes on.
    pub(super) fn host_room(&mut self, at: Tick, worker: u32) -> Option<Slot> {
        let g2 = &mut self.locals[worker as usize].g2;
        let room = g2.make_room(at);
        let slot = if room == Room::None { None } else { g2.allocate() };
        if let Room::Evicted(other) = room {
            self.left_host(at, worker, other);
        }
        slot
    }

    /// Puts a block in host memory, or makes it the most recently used there.
    pub(super) fn keep_in_host(&mut self, at: Tick, worker: u32, id: u64) -> bool {
        let g2 = &mut self.locals[worker as usize].g2;
        if g2.capacity() == 0 {
            return false;
        }
        let known = g2.acquire(id);
        let Some(slot) = known.or_else(|| self.host_room(at, worker)) else { return false };
        let g2 = &mut self.locals[worker as usize].g2;
        g2.name(slot, id);
        g2.release(slot);
        known.is_none()
    }

    /// Host memory has let a block go: it goes to the drive, or, where there is none and policy is to write back, to the
    /// target.
    fn left_host(&mut self, at: Tick, worker: u32, id: u64) {
        self.metrics.flow.evicted_g2_blocks += 1;
        if !self.selected(id) {
            return;
        }
        if self.drives.exist() {
            if self.write_to_drive(at, worker, id) {
                self.metrics.flow.demoted_g3_blocks += 1;
            }
        } else if self.spec.write_policy == WritePolicy::WriteBack && self.write_to_target(at, worker, id) {
            self.metrics.flow.demoted_g4_blocks += 1;
        }
    }

    /// A block came from below, and was not staged: it is kept in the tier above, so that it is near the next time.
    pub(super) fn promote(&mut self, at: Tick, from: Tier, worker: u32, id: u64) {
        if !self.spec.promote {
            return;
        }
        if self.locals[worker as usize].g2.capacity() > 0 {
            self.metrics.flow.promoted_g2_blocks += u64::from(self.keep_in_host(at, worker, id));
        } else if from == Tier::G4 && self.drives.exist() && self.selected(id) {
            self.metrics.flow.promoted_g3_blocks += u64::from(self.write_to_drive(at, worker, id));
        }
    }

    /// Queues the write of a block to the drive of the worker's node; whether it will be written.
    fn write_to_drive(&mut self, at: Tick, worker: u32, id: u64) -> bool {
        if self.stopped || self.drives.knows(worker, id) {
            return false;
        }
        let exchange = &self.drives.exchange;
        let most = self.spec.put_queue_blocks as usize * usize::from(exchange.shape().ranks);
        if exchange.writes_waiting(worker) >= most {
            self.metrics.skipped_blocks += 1;
            return false;
        }
        match self.drives.keep(worker, id, at) {
            Kept::Writing => true,
            Kept::InPlaceOf(other) => {
                self.metrics.flow.evicted_g3_blocks += 1;
                let back = self.spec.write_policy == WritePolicy::WriteBack && self.spec.shared_tier;
                if back && !self.shared.contains(other) && !self.shared.writes(other) {
                    self.drives.exchange.carry(worker, other);
                } else {
                    self.drives.exchange.remove(worker, other);
                }
                true
            }
            Kept::Known => false,
            Kept::Full => {
                self.metrics.flow.refused_blocks += 1;
                false
            }
        }
    }

    /// Queues the write of a block to the target; whether it will be written.
    fn write_to_target(&mut self, at: Tick, worker: u32, id: u64) -> bool {
        if !self.spec.shared_tier || self.stopped {
            return false;
        }
        let most = self.spec.put_queue_blocks as usize * usize::from(self.target.shape().ranks);
        if self.target.writes_waiting(worker) >= most {
            let news = !self.shared.contains(id) && !self.shared.writes(id);
            self.metrics.skipped_blocks += u64::from(news);
            return false;
        }
        let admission = self.shared.admit(id);
        match admission {
            Admission::Write => self.target.store(worker, id),
            Admission::Full => self.metrics.flow.refused_blocks += 1,
            Admission::Known => {}
        }
        for gone in self.shared.evict(at) {
            self.metrics.flow.evicted_g4_blocks += 1;
            self.target.remove(worker, gone);
        }
        admission == Admission::Write
    }

    /// A tier turned out not to hold a block: it is a miss from now on.
    pub(super) fn lost(&mut self, tier: Tier, worker: u32, id: u64) {
        self.metrics.flow.lost_blocks += 1;
        match tier {
            Tier::G3 => self.drives.lost(worker, id),
            Tier::G4 => self.shared.lost(id),
        }
    }

    /// A write, a deletion, or the read of a block that is carried from the drive to the target came back. A tier holds
    /// a block when all its objects are written.
    pub(super) fn write_landed(&mut self, now: Tick, tier: Tier, landed: &Landed) {
        let Some(answer) = landed.block else { return };
        let (worker, id, good) = (landed.worker, landed.id, answer.is_there());
        match (tier, landed.asked) {
            (Tier::G3, Asked::Store { .. }) => self.drives.written(worker, id, good),
            (Tier::G3, Asked::Remove) => {
                if let Some(writer) = self.drives.removed(worker, id, self.over) {
                    self.pump(now, writer);
                }
            }
            (Tier::G3, Asked::Carry) => {
                // What cannot be read is lost; its room is needed either way.
                let carried = good && self.write_to_target(now, worker, id);
                self.metrics.flow.demoted_g4_blocks += u64::from(carried);
                self.drives.exchange.remove(worker, id);
            }
            (Tier::G4, Asked::Store { .. }) => self.shared.written(id, now, good),
            (Tier::G4, Asked::Remove) => self.shared.deleted(id),
            _ => {}
        }
    }

    /// Gives up the writes that were not begun: there is nobody left to read them.
    pub(super) fn drop_writes(&mut self, at: Tick) {
        self.over = true;
        let workers = 0..self.locals.len() as u32;
        workers.clone().for_each(|worker| self.resume_stalled(at, worker));
        let (broken, silent) = self.target.drop_stores();
        self.metrics.unwritten_blocks += broken;
        for (_, id) in silent {
            self.shared.written(id, at, false);
        }
        let (broken, silent) = self.drives.exchange.drop_stores();
        self.metrics.unwritten_blocks += broken;
        for (worker, id) in silent {
            self.drives.written(worker, id, false);
        }
        // What is left is deletions, and blocks on their way from a drive.
        workers.for_each(|worker| self.pump(at, worker));
    }
}
