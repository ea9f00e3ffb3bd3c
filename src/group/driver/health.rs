//! What this node believes of its own fitness: clock, disk space, and how long the journal's sync takes.
//!
//! Pure bookkeeping; the driver acts on it.

use crate::ids::{NodeId, TimestampMs};
use crate::{planted, reached};
use std::collections::BTreeMap;

/// A clock further than this from ours disagrees with it, in milliseconds.
const CLOCK_SKEW_MAX_MS: u64 = 5_000;
/// What a peer said longer ago than this many ticks counts no more.
const REPORT_AGE_TICKS_MAX: u64 = 200;

/// What one peer said last.
#[derive(Clone, Copy, Debug)]
struct PeerReport {
    clock_skew_ms: u64,
    reserve_reached: bool,
    at_tick: u64,
}

/// Fitness of this node, as of the present tick.
#[derive(Debug, Default)]
pub(super) struct Health {
    tick: u64,
    peers: BTreeMap<NodeId, PeerReport>,
    /// Whether this node's free space is below its reserve.
    pub reserve_reached: bool,
    /// Rounds handed to the journal and not yet synced, with the tick at which each was handed over.
    unsynced_since: std::collections::VecDeque<(u64, u64)>,
}

/// How the journal's disk does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum SyncState {
    /// Syncs return in time.
    Well,
    /// One takes longer than the first bound: no leadership.
    Slow,
    /// One takes longer than the second bound: the node must end.
    Hung,
}

impl Health {
    /// A tick of the driver passed.
    pub fn tick(&mut self) {
        self.tick += 1;
    }

    /// A peer told its clock and space.
    pub fn heard(&mut self, from: NodeId, clock: TimestampMs, now: TimestampMs, reserve_reached: bool) {
        let clock_skew_ms = clock.0.abs_diff(now.0);
        self.peers.insert(from, PeerReport { clock_skew_ms, reserve_reached, at_tick: self.tick });
    }

    /// Whether a majority of the nodes heard lately, this one included, agrees with this node's clock.
    ///
    /// A leader has heard from a majority of its group lately by definition; whoever hasn't is no leader for long, and
    /// nothing that it stamps is committed.
    pub fn clock_agrees(&self) -> bool {
        let heard = self.fresh().count() + 1;
        let agreeing = self.fresh().filter(|(_, report)| report.clock_skew_ms <= CLOCK_SKEW_MAX_MS).count() + 1;
        if agreeing <= heard / 2 {
            reached!("own clock far from the majority's");
        }
        agreeing > heard / 2
    }

    /// The nodes whose reserve is reached, this one (`me`) included.
    pub fn full_nodes(&self, me: NodeId) -> Vec<NodeId> {
        let mut full: Vec<NodeId> =
            self.fresh().filter(|(_, report)| report.reserve_reached).map(|(node, _)| *node).collect();
        if self.reserve_reached {
            full.push(me);
        }
        full
    }

    /// A round was handed to the journal.
    pub fn submitted(&mut self, round: u64) {
        self.unsynced_since.push_back((round, self.tick));
    }

    /// All rounds through `round` are durable.
    pub fn synced(&mut self, round: u64) {
        while self.unsynced_since.front().is_some_and(|(number, _)| *number <= round) {
            self.unsynced_since.pop_front();
        }
    }

    /// How long the oldest unsynced round has waited, held against the bounds.
    pub fn sync_state(&self, slow_ticks: u64, hung_ticks: u64) -> SyncState {
        match self.unsynced_since.front().filter(|_| !planted!("hung-disk-leader-goes-on")) {
            Some((_, since)) if self.tick - since >= hung_ticks => SyncState::Hung,
            Some((_, since)) if self.tick - since >= slow_ticks => SyncState::Slow,
            _ => SyncState::Well,
        }
    }

    fn fresh(&self) -> impl Iterator<Item = (&NodeId, &PeerReport)> {
        self.peers.iter().filter(|(_, report)| self.tick - report.at_tick <= REPORT_AGE_TICKS_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_far_from_the_majoritys_is_not_trusted() {
        let mut health = Health::default();
        let now = TimestampMs(1_000_000);
        assert!(health.clock_agrees(), "alone");
        health.heard(NodeId(2), TimestampMs(1_000_000 + 60_000), now, false);
        health.heard(NodeId(3), TimestampMs(1_000_000 + 60_000), now, false);
        assert!(!health.clock_agrees(), "both others are a minute ahead");
        health.heard(NodeId(3), TimestampMs(1_000_100), now, false);
        assert!(health.clock_agrees(), "one other agrees");
        health.heard(NodeId(3), TimestampMs(1_000_000 + 60_000), now, false);
        for _ in 0..=REPORT_AGE_TICKS_MAX {
            health.tick();
        }
        assert!(health.clock_agrees(), "what was heard is too old to count");
    }

    #[test]
    fn a_sync_that_hangs_is_slow_first_and_then_hung() {
        let mut health = Health::default();
        health.submitted(1);
        health.submitted(2);
        assert_eq!(health.sync_state(2, 4), SyncState::Well);
        health.tick();
        health.tick();
        assert_eq!(health.sync_state(2, 4), SyncState::Slow);
        health.tick();
        health.tick();
        assert_eq!(health.sync_state(2, 4), SyncState::Hung);
        health.synced(2);
        assert_eq!(health.sync_state(2, 4), SyncState::Well);
    }

    #[test]
    fn nodes_below_their_reserve_are_named() {
        let mut health = Health::default();
        let now = TimestampMs(0);
        health.heard(NodeId(2), now, now, true);
        health.heard(NodeId(3), now, now, false);
        assert_eq!(health.full_nodes(NodeId(1)), [NodeId(2)]);
        health.reserve_reached = true;
        assert_eq!(health.full_nodes(NodeId(1)), [NodeId(2), NodeId(1)]);
    }
}
