//! How long to wait before the next attempt to reach a peer.
//!
//! Pure: the jitter comes from a seed. Doubles from [`FIRST`] to [`LONGEST`]; each pause is drawn from the upper half of
//! its step, so that nodes that lost the same peer do not come back in step.

use std::time::Duration;

/// The first pause.
pub const FIRST: Duration = Duration::from_millis(50);
/// The longest pause.
pub const LONGEST: Duration = Duration::from_secs(1);

/// Grows from one failure to the next, and starts again after a success.
#[derive(Debug)]
pub struct Backoff {
    step: Duration,
    state: u64,
}

impl Backoff {
    /// A backoff whose jitter follows from `seed`.
    #[must_use]
    pub fn new(seed: u64) -> Backoff {
        Backoff { step: FIRST, state: seed }
    }

    /// The next pause.
    pub fn pause(&mut self) -> Duration {
        let step = self.step;
        self.step = (step * 2).min(LONGEST);
        let half_ms = step.as_millis() as u64 / 2;
        Duration::from_millis(half_ms + self.draw() % (half_ms + 1))
    }

    /// The longest pause, for what a human must mend first.
    pub fn long_pause(&mut self) -> Duration {
        self.step = LONGEST;
        self.pause()
    }

    /// The peer was reached.
    pub fn reset(&mut self) {
        self.step = FIRST;
    }

    /// SplitMix64 (Steele, Lea and Flood 2014).
    fn draw(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_the_longest_stay_in_their_upper_half_and_start_again() {
        let mut backoff = Backoff::new(7);
        let mut step = FIRST;
        for _ in 0..20 {
            let pause = backoff.pause();
            assert!(step / 2 <= pause && pause <= step, "{pause:?} in a step of {step:?}");
            step = (step * 2).min(LONGEST);
        }
        assert_eq!(step, LONGEST);
        backoff.reset();
        assert!(backoff.pause() <= FIRST);
    }

    #[test]
    fn the_same_seed_gives_the_same_pauses_and_another_seed_others() {
        let pauses = |seed| {
            let mut backoff = Backoff::new(seed);
            std::array::from_fn::<_, 8, _>(|_| backoff.pause())
        };
        assert_eq!(pauses(1), pauses(1));
        assert_ne!(pauses(1), pauses(2));
    }
}
