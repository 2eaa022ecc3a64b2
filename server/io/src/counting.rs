#![expect(unsafe_code, reason = "an allocator is unsafe to implement")]
//! An allocator that counts, for tests and benches that hold a path to a number of allocations.
//!
//! ```ignore
//! #[global_allocator]
//! static ALLOCATOR: Counting = Counting;
//! ```

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// The system's allocator, counted.
#[derive(Debug, Clone, Copy)]
pub struct Counting;

static ALL: AtomicU64 = AtomicU64::new(0);

thread_local! {
    // Made at compile time and never dropped, so that counting does not allocate.
    static OWN: Cell<u64> = const { Cell::new(0) };
}

fn count() {
    ALL.fetch_add(1, Relaxed);
    OWN.set(OWN.get() + 1);
}

// SAFETY: every call is passed on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promises are those that the system's allocator asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: as above; the memory came from the system's allocator.
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: as above; keeps large arenas lazily zeroed.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        count();
        // SAFETY: as above.
        unsafe { System.realloc(memory, layout, bytes) }
    }
}

/// Allocations so far, of all threads.
#[must_use]
pub fn allocations() -> u64 {
    ALL.load(Relaxed)
}

/// Allocations so far of the calling thread.
#[must_use]
pub fn allocations_of_this_thread() -> u64 {
    OWN.get()
}
