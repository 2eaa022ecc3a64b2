//! Offload: new full blocks go to host memory while the GPU goes on, and from there where the write policy wants them.

use crate::inference::Slot;
use crate::kv::spec::QueueFull;
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
        if !(wanted_here || self.wants_write(worker, id)) {
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

    /// A copy to host memory is over: the blocks are in host memory, and go on. Those that must wait for room in the
    /// queue of writes stay in GPU memory, and are not among the ones given back.
    pub(super) fn offload_copied(&mut self, at: Tick, copy: u32) -> Option<Copying> {
        let mut copying = self.copies.get_mut(copy as usize)?.take()?;
        let worker = copying.worker;
        copying.blocks.retain(|&(slot, id)| {
            let goes = self.locals[worker as usize].stalled.is_empty() && self.pass_on(at, worker, id);
            if !goes {
                self.locals[worker as usize].stalled.push_back((slot, id));
                self.metrics.flow.stalled_blocks += 1;
            }
            goes
        });
        self.pump(at, worker);
        Some(copying)
    }

    /// A block goes from the copy to host memory and further, unless there is no room in the queue and policy is to
    /// wait for some.
    fn pass_on(&mut self, at: Tick, worker: u32, id: u64) -> bool {
        if self.spec.queue_full == QueueFull::Stall && self.queue_is_full(worker) && !self.over {
            return false;
        }
        self.keep_in_host(at, worker, id);
        self.write_through(at, worker, id);
        true
    }

    /// Room may have appeared in a worker's queue of writes: blocks that waited for it in GPU memory go on.
    pub(super) fn resume_stalled(&mut self, at: Tick, worker: u32) {
        while let Some(&(slot, id)) = self.locals[worker as usize].stalled.front() {
            if !self.pass_on(at, worker, id) {
                return;
            }
            self.locals[worker as usize].stalled.pop_front();
            self.unpins.push((worker, slot));
        }
    }
}
