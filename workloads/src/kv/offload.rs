//! Offload: new full blocks go to host memory and, written through, to the target, while the GPU goes on.

use crate::inference::Slot;
use crate::kv::exchange::{Answer, Landed};
use crate::kv::tiers::{Copying, Tiers, Wake};
use crate::op::Tick;

impl Tiers {
    /// Block `id` is complete in `slot` of a worker. True if it must stay there until it is copied.
    pub(super) fn offload(&mut self, at: Tick, worker: u32, id: u64, slot: Slot) -> bool {
        if self.stopped {
            return false;
        }
        let g2 = &self.locals[worker as usize].g2;
        let wanted_here = g2.capacity() > 0 && !g2.contains(id);
        let wanted_there = self.spec.shared_tier && !self.stored.contains_key(&id) && !self.writing.contains(&id);
        if !(wanted_here || wanted_there) {
            return false;
        }
        if self.open_copy.as_ref().is_some_and(|(since, open)| *since != at || open.worker != worker) {
            self.close_copy();
        }
        let (_, open) = self.open_copy.get_or_insert_with(|| (at, Copying { worker, blocks: Vec::new() }));
        open.blocks.push((slot, id));
        true
    }

    /// Puts the blocks that one iteration completed on the host link, as one copy.
    pub(super) fn close_copy(&mut self) {
        let Some((at, copying)) = self.open_copy.take() else { return };
        let takes = (self.block_copy_ns * copying.blocks.len() as f64).round() as u64;
        let link = &mut self.locals[copying.worker as usize].out_free;
        *link = Tick(at.0.max(link.0) + takes.max(1));
        let end = *link;
        let free = self.copies.iter().position(Option::is_none).unwrap_or_else(|| {
            self.copies.push(None);
            self.copies.len() - 1
        });
        self.copies[free] = Some(copying);
        self.wakes.push((end, Wake::OffloadCopied { copy: free as u32 }));
    }

    /// A copy to host memory is over: the blocks are in host memory, and go on to the target.
    pub(super) fn offload_copied(&mut self, at: Tick, copy: u32) -> Option<Copying> {
        let copying = self.copies.get_mut(copy as usize)?.take()?;
        let worker = copying.worker;
        for &(_, id) in &copying.blocks {
            self.locals[worker as usize].g2.insert(id);
            self.write(worker, id);
        }
        self.pump(at, worker);
        Some(copying)
    }

    fn write(&mut self, worker: u32, id: u64) {
        if !self.spec.shared_tier || self.stopped || self.stored.contains_key(&id) || self.writing.contains(&id) {
            return;
        }
        let most = self.spec.put_queue_blocks as usize * usize::from(self.target.shape().ranks);
        if self.target.writes_waiting(worker) >= most {
            self.metrics.skipped_blocks += 1;
            return;
        }
        self.writing.insert(id);
        self.target.store(worker, id);
    }

    /// Gives up the writes that were not begun.
    pub(super) fn drop_writes(&mut self) {
        let (broken, silent) = self.target.drop_stores();
        self.metrics.unwritten_blocks += broken;
        for id in silent {
            self.writing.remove(&id);
        }
    }

    /// A write came back. The target holds a block when all its objects are written.
    pub(super) fn store_landed(&mut self, landed: &Landed) {
        let Some(answer) = landed.block else { return };
        if answer == Answer::Good {
            self.stored.insert(landed.id, false);
        }
        self.writing.remove(&landed.id);
    }
}
