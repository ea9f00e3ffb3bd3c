//! How much memory a run holds: what it allocated and did not give back, counted per thread, for a run has one to itself.
//!
//! A queue without a bound shows nowhere else: nothing breaks in a simulated minute, and the process is far from its end. Counted are
//! the simulated disks, too. Decides nothing of what a run does.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

thread_local! {
    static HELD: Cell<i64> = const { Cell::new(0) };
    static MOST: Cell<i64> = const { Cell::new(0) };
}

/// The system's allocator, counting.
pub struct Counting;

fn count(bytes: i64) {
    // At the end of a thread there may be no place to count in any more.
    let _ = HELD.try_with(|held| {
        let now = held.get() + bytes;
        held.set(now);
        let _ = MOST.try_with(|most| most.set(most.get().max(now)));
    });
}

// SAFETY: every call is passed on as it came; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as i64);
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as i64);
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, held: *mut u8, layout: Layout) {
        count(-(layout.size() as i64));
        unsafe { System.dealloc(held, layout) }
    }

    unsafe fn realloc(&self, held: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size as i64 - layout.size() as i64);
        unsafe { System.realloc(held, layout, size) }
    }
}

/// The most bytes that this thread ever held at once; zero where another allocator is at work.
pub fn most() -> u64 {
    MOST.get().max(0) as u64
}
