//! Deadlines and back-off, and the one source of randomness of a client: seeded, so that the simulator can replay it.

use std::sync::Mutex;
use std::time::Duration;
use tokio::time::Instant;

const BACKOFF_FIRST_MS: u64 = 10;
/// Short at first, since a fail-over takes a few hundred milliseconds and nobody wants to sleep through its end.
const BACKOFF_EARLY_MAX_MS: u64 = 60;
const BACKOFF_EARLY_TRIES: u32 = 40;
const BACKOFF_MAX_MS: u64 = 300;

/// When an operation must have ended.
#[derive(Clone, Copy, Debug)]
pub(super) struct Deadline {
    started: Instant,
    at: Instant,
}

impl Deadline {
    pub(super) fn after(time: Duration) -> Deadline {
        let started = Instant::now();
        Deadline { started, at: started + time }
    }

    pub(super) fn remaining(&self) -> Duration {
        self.at.saturating_duration_since(Instant::now())
    }

    pub(super) fn passed(&self) -> bool {
        self.remaining().is_zero()
    }

    pub(super) fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }
}

/// Small seeded generator (splitmix64): jitter needs no more.
#[derive(Debug)]
pub(super) struct Jitter(Mutex<u64>);

impl Jitter {
    pub(super) fn new(seed: u64) -> Jitter {
        Jitter(Mutex::new(seed))
    }

    /// The next number.
    pub(super) fn next(&self) -> u64 {
        let mut state = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = *state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

/// How long to wait before the next try: doubling, bounded, half of it random, so that clients do not come back in step.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Backoff {
    tries: u32,
}

impl Backoff {
    /// Failures since the last [`Backoff::reset`].
    pub(super) fn tries(&self) -> u32 {
        self.tries
    }

    pub(super) fn reset(&mut self) {
        self.tries = 0;
    }

    /// The wait after one more failure.
    pub(super) fn next(&mut self, jitter: &Jitter) -> Duration {
        let max = if self.tries < BACKOFF_EARLY_TRIES { BACKOFF_EARLY_MAX_MS } else { BACKOFF_MAX_MS };
        let full = max.min(BACKOFF_FIRST_MS << self.tries.min(10));
        self.tries = self.tries.saturating_add(1);
        Duration::from_millis(full / 2 + jitter.next() % (full / 2 + 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn back_off_doubles_up_to_its_bound_and_starts_again_after_success() {
        let jitter = Jitter::new(1);
        let mut backoff = Backoff::default();
        let maxima = [10, 20, 40].into_iter().chain([60; 37]).chain([300; 5]);
        for expected_max in maxima {
            let wait = backoff.next(&jitter).as_millis() as u64;
            assert!(wait >= expected_max / 2 && wait <= expected_max, "{wait} ms, at most {expected_max}");
        }
        backoff.reset();
        assert!(backoff.next(&jitter).as_millis() <= 10);
    }

    #[test]
    fn the_same_seed_gives_the_same_jitter() {
        let (one, two) = (Jitter::new(7), Jitter::new(7));
        assert!((0..100).all(|_| one.next() == two.next()));
    }
}
