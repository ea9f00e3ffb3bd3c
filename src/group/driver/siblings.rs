//! What the loops of one driver know of each other.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;

/// One loop's place among all.
pub(super) struct Siblings {
    place: usize,
    /// Whether a sync that each loop waits for is slow.
    slow: Arc<[AtomicBool]>,
}

/// The places of so many loops.
pub(super) fn siblings(count: usize) -> Vec<Siblings> {
    let slow: Arc<[AtomicBool]> = (0..count).map(|_| AtomicBool::new(false)).collect();
    (0..count).map(|place| Siblings { place, slow: slow.clone() }).collect()
}

impl Siblings {
    /// How many there are.
    pub fn count(&self) -> usize {
        self.slow.len()
    }

    /// Whether this one looks after what the node does once: it tells the peers and the log how the node is.
    pub fn is_first(&self) -> bool {
        self.place == 0
    }

    /// Tells whether this loop waits for a slow sync, and says whether any does. They share a disk, and the groups of a loop that has nothing to
    /// write must not be led here while it hangs.
    pub fn any_slow(&self, slow: bool) -> bool {
        self.slow[self.place].store(slow, Ordering::Relaxed);
        self.slow.iter().any(|slow| slow.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_slow_sync_is_known_to_all_until_it_is_over() {
        let loops = siblings(3);
        assert!(loops.iter().all(|one| !one.any_slow(false)) && loops[0].is_first() && !loops[2].is_first());
        assert!(loops[1].any_slow(true));
        assert!(loops[2].any_slow(false) && loops[0].any_slow(false) && loops[1].any_slow(true));
        assert!(!loops[1].any_slow(false) && !loops[0].any_slow(false));
    }
}
