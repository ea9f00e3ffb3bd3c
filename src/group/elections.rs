//! When this replica campaigns. Raft's own draw of election timeouts ignores the simulator's seed, so the timeout is set from a seeded
//! generator before every tick; and the timer is held back while campaigning would be wrong, or hurried when the
//! leader's node is known to be gone.
//!
//! Held back: while the node may not lead (its disk hangs, or it is about to stop), and while an entry or a snapshot is not
//! durable yet (Raft aborts if such a replica wins). A held-back replica still votes: its timer stands still short of the timeout,
//! but beyond the span in which a follower ignores candidates.

use crate::reached;
use raft::StateRole;

/// Ticks between the campaigns of two neighbours in rank after their leader's node was lost.
const RANK_STEP_TICKS: u64 = 3;
/// Ticks until a hurried campaign that got no answer is tried again, before the rank's share.
const HURRY_AGAIN_TICKS: u64 = 4;
/// How often a hurried campaign is tried before the usual timeouts take over.
const HURRY_TRIES: u32 = 4;

/// A small generator (SplitMix64: Steele, Lea, Flood 2014), so that a seed decides every timeout.
#[derive(Clone, Debug)]
struct Generator(u64);

impl Generator {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

/// Campaigns hurried after the leader's node was lost.
#[derive(Clone, Copy, Debug)]
struct Hurry {
    rank: u64,
    wait_ticks: u64,
    tries_left: u32,
    /// The hurry ends with the term: somebody's campaign got through.
    term: u64,
}

/// What of Raft's state decides about the timer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Standing {
    pub(super) term: u64,
    pub(super) role: StateRole,
    pub(super) knows_leader: bool,
    pub(super) elapsed: usize,
    /// Whether it would be safe and allowed to campaign now.
    pub(super) may_campaign: bool,
}

/// The timer to set before a tick.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Timer {
    pub(super) timeout: usize,
    pub(super) elapsed: usize,
}

/// Sets the election timer.
#[derive(Clone, Debug)]
pub(super) struct Elections {
    generator: Generator,
    election_ticks: usize,
    timeout: usize,
    /// What `timeout` was drawn for: another term, role or campaign gets another draw.
    drawn_for: Option<(u64, StateRole)>,
    hurry: Option<Hurry>,
}

impl Elections {
    /// `election_ticks` is at least 4.
    pub(super) fn new(seed: u64, election_ticks: usize) -> Elections {
        let generator = Generator(seed);
        Elections { generator, election_ticks, timeout: election_ticks, drawn_for: None, hurry: None }
    }

    /// The leader's node is gone, and `rank` of its followers should campaign before this one.
    pub(super) fn hurry(&mut self, rank: u64, term: u64) {
        self.hurry = Some(Hurry { rank, wait_ticks: rank * RANK_STEP_TICKS, tries_left: HURRY_TRIES, term });
    }

    /// The timer for the tick that comes.
    pub(super) fn before_tick(&mut self, standing: Standing) -> Timer {
        if self.drawn_for != Some((standing.term, standing.role)) {
            self.drawn_for = Some((standing.term, standing.role));
            self.timeout = self.election_ticks + (self.generator.next() % self.election_ticks as u64) as usize;
        }
        if standing.role == StateRole::Leader {
            self.hurry = None;
            return Timer { timeout: self.timeout, elapsed: standing.elapsed };
        }
        if !standing.may_campaign {
            if standing.elapsed + 2 >= 2 * self.election_ticks {
                reached!("campaign held back");
            }
            let timeout = 2 * self.election_ticks - 1;
            return Timer { timeout, elapsed: standing.elapsed.min(timeout - 2) };
        }
        match self.hurry_now(standing) {
            None => Timer { timeout: self.timeout, elapsed: standing.elapsed },
            Some(true) => Timer { timeout: self.timeout, elapsed: self.timeout - 1 },
            Some(false) => Timer { timeout: self.timeout, elapsed: standing.elapsed.min(self.timeout - 2) },
        }
    }

    /// After a tick in which a campaign began: the next one gets another draw.
    pub(super) fn campaigned(&mut self) {
        self.drawn_for = None;
    }

    /// Whether a hurried campaign is due; `None` without hurry.
    fn hurry_now(&mut self, standing: Standing) -> Option<bool> {
        let hurry = self.hurry.as_mut()?;
        let over = standing.knows_leader || standing.term != hurry.term || standing.role == StateRole::Candidate;
        if over || hurry.tries_left == 0 {
            self.hurry = None;
            return None;
        }
        if hurry.wait_ticks > 0 {
            hurry.wait_ticks -= 1;
            return Some(false);
        }
        hurry.tries_left -= 1;
        hurry.wait_ticks = HURRY_AGAIN_TICKS + hurry.rank;
        Some(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn follower(elapsed: usize) -> Standing {
        Standing { term: 3, role: StateRole::Follower, knows_leader: true, elapsed, may_campaign: true }
    }

    #[test]
    fn a_timeout_stays_for_its_term_and_role_and_lies_between_one_and_two_election_timeouts() {
        let mut elections = Elections::new(7, 10);
        let mut seen = std::collections::BTreeSet::new();
        for term in 0..200 {
            let standing = Standing { term, ..follower(0) };
            let timer = elections.before_tick(standing);
            assert_eq!(timer, elections.before_tick(standing));
            assert!((10..20).contains(&timer.timeout));
            seen.insert(timer.timeout);
        }
        assert_eq!(seen.len(), 10);
    }

    #[test]
    fn who_may_not_campaign_never_times_out_and_still_grants_votes() {
        let mut elections = Elections::new(7, 10);
        let mut elapsed = 0;
        for _ in 0..100 {
            let timer = elections.before_tick(Standing { may_campaign: false, ..follower(elapsed) });
            elapsed = timer.elapsed + 1;
            assert!(elapsed < timer.timeout);
        }
        assert!(elapsed >= 10, "a follower ignores candidates for one election timeout only");
    }

    #[test]
    fn after_a_lost_leader_the_ranks_campaign_one_after_the_other() {
        let first_campaign = |rank| {
            let mut elections = Elections::new(7, 10);
            elections.hurry(rank, 3);
            let standing = Standing { knows_leader: false, ..follower(0) };
            (1..).find(|_| {
                let timer = elections.before_tick(standing);
                timer.elapsed + 1 >= timer.timeout
            })
        };
        assert_eq!([0, 1, 2].map(first_campaign), [Some(1), Some(4), Some(7)]);
    }
}
