#![expect(unsafe_code, reason = "owns raw memory that hardware and the kernel write to")]
//! Page-aligned buffers from a fixed pool: one allocation for a whole core, registrable with verbs and io_uring.
//!
//! A [`Buf`] belongs to one operation at a time. It is `Send`, freezes into [`Bytes`] without a copy, and goes back to
//! its pool when it (or the last `Bytes` made from it) is dropped. An operation that timed out while hardware may still
//! write to its buffer must keep the `Buf` alive until the completion or flush arrives.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::*};

use bytes::Bytes;

/// Alignment of every buffer: what O_DIRECT, io_uring and verbs ask for.
pub const PAGE: usize = 4096;

/// Why a pool could not be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("cannot make {count} buffers of {buf_bytes} bytes: more than the address space holds")]
pub struct ArenaTooLarge {
    buf_bytes: usize,
    count: usize,
}

/// A pool of equal buffers in one allocation.
#[derive(Clone)]
pub struct Arena {
    region: Arc<Region>,
}

struct Region {
    start: NonNull<u8>,
    layout: Layout,
    buf_bytes: usize,
    free: Free,
}

/// The free slots, last given back first taken: its bytes are the likeliest to be in cache still. A lock-free stack
/// (R. K. Treiber, "Systems Programming: Coping with Parallelism", 1986) whose head carries a count of changes, so
/// that a slot taken and given back in between is not mistaken for one that stayed.
struct Free {
    /// Changes so far in the upper half, slot on top plus one in the lower; zero there is empty.
    head: AtomicU64,
    /// The slot under each plus one, as long as it is free.
    under: Box<[AtomicU32]>,
    count: AtomicU32,
}

impl Free {
    /// All of `slots`, the first on top.
    fn all(slots: u32) -> Self {
        let under = (1..=slots).map(|slot| AtomicU32::new(if slot == slots { 0 } else { slot + 1 })).collect();
        Self { head: AtomicU64::new(1), under, count: AtomicU32::new(slots) }
    }

    /// The head after another change, with `top` in its lower half.
    fn next(head: u64, top: u32) -> u64 {
        ((head >> 32).wrapping_add(1) << 32) | u64::from(top)
    }

    fn pop(&self) -> Option<u32> {
        let mut head = self.head.load(Acquire);
        loop {
            let slot = (head as u32).checked_sub(1)?;
            // Stale if another thread is faster, in which case the exchange fails.
            let under = self.under[slot as usize].load(Relaxed);
            match self.head.compare_exchange_weak(head, Self::next(head, under), Acquire, Acquire) {
                Ok(_) => {
                    self.count.fetch_sub(1, Relaxed);
                    return Some(slot);
                }
                Err(now) => head = now,
            }
        }
    }

    fn push(&self, slot: u32) {
        // First, so that the count never falls below zero.
        self.count.fetch_add(1, Relaxed);
        let mut head = self.head.load(Relaxed);
        loop {
            self.under[slot as usize].store(head as u32, Relaxed);
            // Whoever takes the slot next sees what was written to its bytes and to `under`.
            match self.head.compare_exchange_weak(head, Self::next(head, slot + 1), Release, Relaxed) {
                Ok(_) => return,
                Err(now) => head = now,
            }
        }
    }
}

// SAFETY: `start` is an allocation owned by the region alone; distinct slots never overlap, and the lock-free stack
// hands a slot to one `Buf` at a time, so threads never hold the same bytes.
unsafe impl Send for Region {}
// SAFETY: as above; all shared state besides the slots is the stack, which is `Sync`.
unsafe impl Sync for Region {}

impl Arena {
    /// A pool of `count` buffers of `buf_bytes` each, rounded up to whole pages. Memory is zeroed lazily by the kernel.
    ///
    /// # Errors
    /// When the pool is larger than the address space.
    pub fn new(buf_bytes: usize, count: usize) -> Result<Self, ArenaTooLarge> {
        let too_large = ArenaTooLarge { buf_bytes, count };
        let (buf_bytes, count) = (buf_bytes.max(1), count.max(1));
        let buf_bytes = buf_bytes.checked_next_multiple_of(PAGE).ok_or(too_large)?;
        let bytes = buf_bytes.checked_mul(count).ok_or(too_large)?;
        let slots = u32::try_from(count).ok().filter(|&slots| slots < u32::MAX).ok_or(too_large)?;
        let layout = Layout::from_size_align(bytes, PAGE).map_err(|_| too_large)?;
        // SAFETY: the layout's size is at least one page, never zero.
        let Some(start) = NonNull::new(unsafe { alloc_zeroed(layout) }) else { handle_alloc_error(layout) };
        Ok(Self { region: Arc::new(Region { start, layout, buf_bytes, free: Free::all(slots) }) })
    }

    /// Takes a buffer, if one is free.
    #[must_use]
    pub fn take(&self) -> Option<Buf> {
        let slot = self.region.free.pop()?;
        Some(Buf { region: Arc::clone(&self.region), slot, len: 0 })
    }

    /// Size of each buffer.
    #[must_use]
    pub fn buf_bytes(&self) -> usize {
        self.region.buf_bytes
    }

    /// Buffers that are free now.
    #[must_use]
    pub fn free(&self) -> usize {
        self.region.free.count.load(Relaxed) as usize
    }

    /// The whole allocation, for registration: start address and length in bytes.
    #[must_use]
    pub fn span(&self) -> (NonNull<u8>, usize) {
        (self.region.start, self.region.layout.size())
    }
}

impl fmt::Debug for Arena {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Arena").field("buf_bytes", &self.buf_bytes()).field("free", &self.free()).finish()
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: allocated in `Arena::new` with this layout; no `Buf` is left, each holds an `Arc` of the region.
        unsafe { dealloc(self.start.as_ptr(), self.layout) }
    }
}

/// One buffer: derefs to the `len` bytes in use; `spare` is all of it.
pub struct Buf {
    region: Arc<Region>,
    slot: u32,
    len: usize,
}

impl Buf {
    fn start(&self) -> NonNull<u8> {
        // SAFETY: `slot` came from the region's stack, so the offset lies inside its allocation.
        unsafe { self.region.start.add(self.slot as usize * self.region.buf_bytes) }
    }

    /// Bytes it can hold.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.region.buf_bytes
    }

    /// Says how many bytes are in use, from the start.
    ///
    /// # Panics
    /// When `len` is over the capacity.
    pub fn set_len(&mut self, len: usize) {
        assert!(len <= self.capacity(), "{len} bytes in a buffer of {}", self.capacity());
        self.len = len;
    }

    /// All of the buffer, for writing. What earlier users left may be in it.
    #[must_use]
    pub fn spare(&mut self) -> &mut [u8] {
        // SAFETY: the slot's bytes are initialized (zeroed at allocation) and this `Buf` alone owns them.
        unsafe { std::slice::from_raw_parts_mut(self.start().as_ptr(), self.capacity()) }
    }

    /// Address of the first byte, aligned to [`PAGE`]; valid while the `Buf` lives.
    #[must_use]
    pub fn as_ptr(&self) -> NonNull<u8> {
        self.start()
    }

    /// The bytes in use as [`Bytes`], without a copy; the buffer goes back to its pool with the last of them.
    #[must_use]
    pub fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

// SAFETY: a `Buf` owns its slot's bytes alone; see `Region`.
unsafe impl Send for Buf {}
// SAFETY: shared references only read.
unsafe impl Sync for Buf {}

impl Deref for Buf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: initialized and owned by this `Buf`; `len` is at most the capacity.
        unsafe { std::slice::from_raw_parts(self.start().as_ptr(), self.len) }
    }
}

impl DerefMut for Buf {
    fn deref_mut(&mut self) -> &mut [u8] {
        let len = self.len;
        &mut self.spare()[..len]
    }
}

impl AsRef<[u8]> for Buf {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl Drop for Buf {
    fn drop(&mut self) {
        self.region.free.push(self.slot);
    }
}

impl fmt::Debug for Buf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Buf").field("len", &self.len).field("capacity", &self.capacity()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_distinct_and_come_back() {
        let arena = Arena::new(5000, 3).expect("small");
        assert_eq!(arena.buf_bytes(), 2 * PAGE);
        let mut bufs: Vec<Buf> = std::iter::from_fn(|| arena.take()).collect();
        assert_eq!(bufs.len(), 3);
        for (i, buf) in bufs.iter_mut().enumerate() {
            assert_eq!(buf.as_ptr().addr().get() % PAGE, 0);
            buf.spare().fill(i as u8);
            buf.set_len(5000);
        }
        for (i, buf) in bufs.iter().enumerate() {
            assert!(buf.iter().all(|&b| b == i as u8));
        }
        drop(bufs);
        assert_eq!(arena.free(), 3);
    }

    #[test]
    fn frozen_buffers_come_back_with_their_last_bytes() {
        let arena = Arena::new(PAGE, 1).expect("small");
        let mut buf = arena.take().expect("one");
        buf.spare()[..3].copy_from_slice(b"abc");
        buf.set_len(3);
        let bytes = buf.freeze();
        let tail = bytes.slice(1..);
        drop(bytes);
        assert!(arena.take().is_none());
        assert_eq!(&tail[..], b"bc");
        std::thread::spawn(move || drop(tail)).join().expect("no panic");
        assert!(arena.take().is_some());
    }

    #[test]
    fn the_buffer_given_back_last_is_taken_first() {
        let arena = Arena::new(PAGE, 4).expect("small");
        let (first, second) = (arena.take().expect("free"), arena.take().expect("free"));
        let address = first.as_ptr();
        drop(second);
        drop(first);
        assert_eq!(arena.take().expect("free").as_ptr(), address);
    }

    #[test]
    fn threads_that_take_and_give_back_never_share_a_buffer() {
        let arena = Arena::new(PAGE, 3).expect("small");
        std::thread::scope(|scope| {
            for mark in 1..=4u64 {
                let arena = &arena;
                scope.spawn(move || {
                    let mut held = Vec::new();
                    for turn in 0..50_000u64 {
                        if let Some(mut buf) = arena.take() {
                            let word = (mark << 56 | turn).to_le_bytes();
                            buf.spare()[..8].copy_from_slice(&word);
                            held.push((buf, word));
                        }
                        if held.len() > (turn % 3) as usize {
                            let (mut buf, word) = held.remove(0);
                            assert_eq!(buf.spare()[..8], word);
                        }
                    }
                });
            }
        });
        assert_eq!(arena.free(), 3);
        assert_eq!(std::iter::from_fn(|| arena.take()).collect::<Vec<_>>().len(), 3);
    }

    #[test]
    fn pools_beyond_the_address_space_are_refused() {
        assert!(Arena::new(usize::MAX, 2).is_err());
        assert!(Arena::new(1 << 40, 1 << 40).is_err());
    }
}
