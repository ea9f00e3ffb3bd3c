//! What the simulator's build (`--cfg planted`) finds in the code, and no other build does: planted bugs and marked branches.
//!
//! A *planted bug* is a small, named defect that shows whether the simulator's net has holes: at most one is switched on per
//! run. A *marked branch* is one that is rarely taken and matters; the simulator counts how often it was. The names of the bugs,
//! and the incidents they are modelled on, stand in `docs/simulation.md`.

/// Whether the planted bug of this name is switched on. Constant `false` outside the simulator's build.
#[macro_export]
macro_rules! planted {
    ($name:literal) => {{
        #[cfg(planted)]
        {
            const NAME: u64 = $crate::probe::hash($name);
            $crate::probe::is_planted(NAME)
        }
        #[cfg(not(planted))]
        {
            false
        }
    }};
}

/// Marks a branch whose being taken the simulator counts. Nothing outside its build.
#[macro_export]
macro_rules! reached {
    ($name:literal) => {{
        #[cfg(planted)]
        $crate::probe::count_reached($name);
    }};
}

#[cfg(planted)]
mod switched_on {
    use std::cell::RefCell;
    use std::collections::BTreeMap;
    use std::sync::atomic::{AtomicU64, Ordering};

    static PLANTED: AtomicU64 = AtomicU64::new(0);

    thread_local! {
        static REACHED: RefCell<BTreeMap<&'static str, u64>> = const { RefCell::new(BTreeMap::new()) };
    }

    /// Names a bug in one word (FNV-1a).
    #[must_use]
    pub const fn hash(name: &str) -> u64 {
        let (bytes, mut hash, mut at) = (name.as_bytes(), 0xcbf2_9ce4_8422_2325, 0);
        while at < bytes.len() {
            hash = (hash ^ bytes[at] as u64).wrapping_mul(0x0000_0100_0000_01b3);
            at += 1;
        }
        hash
    }

    /// Whether it is switched on.
    #[must_use]
    pub fn is_planted(name: u64) -> bool {
        PLANTED.load(Ordering::Relaxed) == name
    }

    /// Switches one bug on, or all off, for the whole process. Only while no run is under way.
    pub fn plant(name: Option<&str>) {
        PLANTED.store(name.map_or(0, hash), Ordering::Relaxed);
    }

    /// Counts a branch as taken, on this thread: a simulated run has one to itself.
    pub fn count_reached(name: &'static str) {
        REACHED.with_borrow_mut(|reached| *reached.entry(name).or_default() += 1);
    }

    /// How often each marked branch was taken on this thread since last asked.
    pub fn take_reached() -> BTreeMap<&'static str, u64> {
        REACHED.take()
    }
}

#[cfg(planted)]
pub use switched_on::{count_reached, hash, is_planted, plant, take_reached};
