//! The log's own time: the stamp a leader puts on an entry.
//!
//! It never goes backwards, on any replica. A node whose clock is far from the majority's does not stamp wall time: it
//! lets the log's time run on by its own ticks. And a leader's log time can't outrun those ticks, so that a clock that jumps ahead in
//! the middle of a term expires nobody's session. Order and acknowledgement never depend on any of this.

use crate::ids::TimestampMs;
use crate::{planted, reached};

/// Whether this node's wall clock is near the majority's.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum ClockTrust {
    /// Near it: entries may be stamped with it.
    #[default]
    Trusted,
    /// Far from it, or too few peers to tell.
    Untrusted,
}

impl From<bool> for ClockTrust {
    /// From whether the clock agrees with the majority's.
    fn from(agrees: bool) -> ClockTrust {
        if agrees {
            ClockTrust::Trusted
        } else {
            ClockTrust::Untrusted
        }
    }
}

/// Stamps entries.
#[derive(Clone, Debug)]
pub(super) struct LogTime {
    tick_ms: u64,
    /// How far beyond its ticks a leader's log time may run: ticks come late and in steps.
    slack_ms: u64,
    ticks: u64,
    now: TimestampMs,
    trust: ClockTrust,
    /// Invariant: at least every stamp seen in the log or given out.
    last: TimestampMs,
    /// The tick at which `last` was set.
    last_tick: u64,
    /// The first stamp of this leadership and its tick.
    anchor: Option<(TimestampMs, u64)>,
}

impl LogTime {
    pub(super) fn new(tick_ms: u64, slack_ms: u64, last: TimestampMs) -> LogTime {
        let trust = ClockTrust::Untrusted;
        LogTime { tick_ms, slack_ms, ticks: 0, now: last, trust, last, last_tick: 0, anchor: None }
    }

    pub(super) fn tick(&mut self, now: TimestampMs, trust: ClockTrust) {
        self.ticks += 1;
        self.now = now;
        self.trust = trust;
    }

    /// The clock, and whether it can be trusted, as of what was just heard: the stamp of a leader that was elected since the last tick counts. Both
    /// together: the clock may have been set right since then, and what it said before is not what is trusted now.
    pub(super) fn look(&mut self, now: TimestampMs, trust: ClockTrust) {
        self.now = now;
        self.trust = trust;
    }

    /// An entry with this stamp was applied.
    pub(super) fn saw(&mut self, timestamp: TimestampMs) {
        if timestamp > self.last {
            self.last = timestamp;
            self.last_tick = self.ticks;
        }
    }

    /// A leadership begins or ends: the next stamp may be as far ahead as the clock says.
    pub(super) fn leadership_changed(&mut self) {
        self.anchor = None;
    }

    /// The stamp for an entry proposed now.
    pub(super) fn stamp(&mut self) -> TimestampMs {
        let wanted = match self.trust {
            ClockTrust::Trusted => self.now,
            ClockTrust::Untrusted => {
                reached!("clock distrusted, stamped by ticks");
                TimestampMs(self.last.0.saturating_add(self.ticked_ms(self.last_tick)))
            }
        };
        let bound = match self.anchor {
            None => wanted,
            Some((first, tick)) => {
                let ticked = self.ticked_ms(tick);
                TimestampMs(first.0.saturating_add(ticked + ticked / 8 + self.slack_ms))
            }
        };
        if wanted > bound {
            reached!("log time held back");
        }
        self.saw(if planted!("log-time-follows-any-clock") { self.now } else { wanted.min(bound) });
        if self.trust == ClockTrust::Trusted {
            // Counted ticks are no anchor: a leader that comes to trust its clock later may catch up with it, once.
            self.anchor.get_or_insert((self.last, self.ticks));
        }
        self.last
    }

    /// This node's clock, as of the last tick.
    pub(super) fn local(&self) -> TimestampMs {
        self.now
    }

    fn ticked_ms(&self, since: u64) -> u64 {
        (self.ticks - since) * self.tick_ms
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ClockTrust::{Trusted, Untrusted};

    fn log_time() -> LogTime {
        LogTime::new(50, 500, TimestampMs(1_000))
    }

    #[test]
    fn the_first_stamp_of_a_leadership_is_the_clock_and_no_stamp_goes_back() {
        let mut time = log_time();
        time.tick(TimestampMs(90_000), Trusted);
        assert_eq!(time.stamp(), TimestampMs(90_000));
        time.tick(TimestampMs(80_000), Trusted);
        assert_eq!(time.stamp(), TimestampMs(90_000));
    }

    #[test]
    fn what_is_heard_since_the_last_tick_counts() {
        let mut time = log_time();
        time.tick(TimestampMs(90_000_000), Trusted);
        time.look(TimestampMs(90_000_010), Untrusted);
        assert_eq!(time.stamp(), TimestampMs(1_050));
        time.look(TimestampMs(1_080), Trusted);
        assert_eq!(time.stamp(), TimestampMs(1_080), "not what the clock said before it was set right");
    }

    #[test]
    fn a_clock_that_jumps_ahead_does_not_outrun_the_ticks() {
        let mut time = log_time();
        time.tick(TimestampMs(90_000), Trusted);
        time.stamp();
        time.tick(TimestampMs(90_000_000), Trusted);
        assert_eq!(time.stamp(), TimestampMs(90_000 + 50 + 6 + 500));
        assert_eq!(time.stamp(), TimestampMs(90_000 + 50 + 6 + 500), "stamping again gains nothing");
    }

    #[test]
    fn a_clock_that_comes_to_be_trusted_is_caught_up_with() {
        let mut time = log_time();
        time.tick(TimestampMs(90_000), Untrusted);
        assert_eq!(time.stamp(), TimestampMs(1_050));
        time.tick(TimestampMs(90_050), Trusted);
        assert_eq!(time.stamp(), TimestampMs(90_050));
    }

    #[test]
    fn an_untrusted_clock_counts_ticks() {
        let mut time = log_time();
        for _ in 0..4 {
            time.tick(TimestampMs(u64::MAX), Untrusted);
        }
        assert_eq!(time.stamp(), TimestampMs(1_200));
        time.tick(TimestampMs(u64::MAX), Untrusted);
        assert_eq!(time.stamp(), TimestampMs(1_250));
    }
}
