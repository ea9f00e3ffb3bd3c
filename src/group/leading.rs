//! Who leads, as far as it is ours to decide: handing over, giving up, hurrying after a lost leader, and what a leader
//! has to look after at each tick.
//!
//! Elections themselves are Raft's; when to campaign is decided in `elections`.

use super::effects::ProposeError;
use super::machine::StateMachine;
use super::replica::Replica;
use crate::ids::{LogIndex, NodeId, ReplicaId, Term};
use crate::reached;
use raft::{ProgressState, SnapshotStatus, StateRole, INVALID_ID};
use slog::info;
use std::collections::BTreeMap;

impl<S: StateMachine> Replica<S> {
    /// Hands leadership to the voter on node `to`. Commands are refused until it is done, or an election timeout has passed.
    ///
    /// # Errors
    /// If this replica does not lead, or there is no voter on that node.
    pub fn transfer_leader(&mut self, to: NodeId) -> Result<(), ProposeError> {
        self.wake();
        if !self.is_leader() {
            return Err(self.not_leader());
        }
        let target = self.voters().into_iter().find(|id| id.node() == to);
        let target = target.ok_or_else(|| {
            reached!("transfer refused, no voter is there");
            ProposeError::NoVoterThere { node: to }
        })?;
        self.raw_node.transfer_leader(target.0);
        Ok(())
    }

    /// The connection to `node` broke and could not be made again. A follower of a leader there campaigns soon, one after the other by rank:
    /// it must drop its leader first, since check-quorum makes it ignore candidates while it believes in one.
    pub fn leader_lost(&mut self, node: NodeId) {
        let raft = &mut self.raw_node.raft;
        let lost = ReplicaId(raft.leader_id);
        if raft.leader_id == INVALID_ID || raft.leader_id == raft.id || lost.node() != node {
            return;
        }
        let term = raft.term;
        raft.become_follower(term, INVALID_ID);
        self.wake();
        let followers: Vec<ReplicaId> = self.voters().into_iter().filter(|id| *id != lost).collect();
        reached!("leader's node lost, campaign hurried");
        if let Some(place) = followers.iter().position(|id| *id == self.options.id) {
            // Turned by the group's number, so that the groups of a lost node spread over the others.
            let turn = (self.options.group.0 % followers.len() as u64) as usize;
            self.elections.hurry(((place + turn) % followers.len()) as u64, term);
        }
        self.note_role();
    }

    /// A new group has no leader: its founder of rank 0 campaigns at once, the others one after the other.
    pub fn campaign_soon(&mut self, rank: u64) {
        self.wake();
        self.elections.hurry(rank, self.raw_node.raft.term);
    }

    /// Through where this leader's followers have been told of commits, if that is behind; see [`super::untold`].
    #[must_use]
    pub fn commits_told(&self) -> Option<LogIndex> {
        let raft = &self.raw_node.raft;
        let behind =
            self.is_leader() && self.told_commit < raft.raft_log.committed && raft.prs().iter().nth(1).is_some();
        behind.then_some(LogIndex(self.told_commit))
    }

    /// Tells them, unless an append has told them more than `told` since.
    pub fn tell_commits(&mut self, told: LogIndex) {
        if self.commits_told() == Some(told) {
            self.raw_node.raft.bcast_append();
            // Whom no append can be sent to now learns it from the next one, or from a heartbeat: nobody is told every few milliseconds.
            self.told_commit = self.raw_node.raft.raft_log.committed;
        }
    }

    /// Whether this replica may lead. If not it hands leadership over, stops leading after an election timeout in any case,
    /// and neither campaigns nor accepts a transfer; it goes on voting and replicating.
    pub fn set_may_lead(&mut self, may_lead: bool) {
        self.wake();
        self.may_lead = may_lead;
        self.step_down_at = None;
        self.retire_if_leading();
        self.note_role();
    }

    /// Compares role and leader with those last seen.
    pub(super) fn note_role(&mut self) {
        let raft = &self.raw_node.raft;
        let led = (raft.state == StateRole::Leader).then_some(Term(raft.term));
        let (leader, term) = (raft.leader_id, raft.term);
        if led != self.led {
            self.time.leadership_changed();
            self.snapshots_since.clear();
            self.appended.clear();
            self.view_changed = true;
            if self.led.is_some() {
                self.proposals.leadership_lost(self.ticks);
            }
            self.led = led;
            if led.is_some() {
                info!(self.log, "leads"; "term" => term);
                let now = self.ticks;
                self.heard = self.raw_node.raft.prs().iter().map(|(id, _)| (*id, now)).collect();
                self.retire_if_leading();
            }
        }
        if leader != self.leader {
            self.leader = leader;
            self.view_changed = true;
        }
        if leader != INVALID_ID && led.is_none() {
            self.heard.retain(|id, _| *id == leader); // a follower hears its leader alone
        }
    }

    pub(super) fn retire_if_leading(&mut self) {
        if self.may_lead || !self.is_leader() || self.step_down_at.is_some() {
            return;
        }
        match self.best_successor() {
            Some(successor) => {
                reached!("leader that must not lead hands over");
                self.step_down_at = Some(self.ticks + self.options.election_ticks as u64);
                self.raw_node.transfer_leader(successor.0);
            }
            None => {
                reached!("leader that must not lead stops alone");
                self.step_down();
            }
        }
    }

    pub(super) fn step_down(&mut self) {
        self.step_down_at = None;
        let raft = &mut self.raw_node.raft;
        let term = raft.term;
        raft.become_follower(term, INVALID_ID);
    }

    pub(super) fn best_successor(&self) -> Option<ReplicaId> {
        self.best_successor_but(|_| false)
    }

    /// The voter that is furthest, of those heard lately if there are any, without the ones that leave.
    pub(super) fn best_successor_but(&self, leaves: impl Fn(&ReplicaId) -> bool) -> Option<ReplicaId> {
        let prs = self.raw_node.raft.prs();
        let others = self.voters().into_iter().filter(|id| *id != self.options.id && !leaves(id));
        others
            .filter_map(|id| Some((id, prs.get(id.0)?)))
            .max_by_key(|(id, progress)| (self.is_heard(*id), progress.matched, std::cmp::Reverse(*id)))
            .map(|(id, _)| id)
    }

    pub(super) fn tick_leader(&mut self) {
        if self.step_down_at.is_some_and(|at| self.ticks >= at) {
            reached!("hand-over took too long");
            self.step_down();
            return;
        }
        self.tick_snapshots();
        self.leave_joint();
    }

    /// Reports snapshots that were never acknowledged as failed: Raft waits for ever otherwise.
    fn tick_snapshots(&mut self) {
        let prs = self.raw_node.raft.prs();
        let under_way = prs.iter().filter(|(_, progress)| progress.state == ProgressState::Snapshot);
        let under_way: BTreeMap<u64, u64> =
            under_way.map(|(id, _)| (*id, self.snapshots_since.get(id).copied().unwrap_or(self.ticks))).collect();
        self.snapshots_since = under_way;
        let patience = 2 * self.options.election_ticks as u64;
        let lost = self.snapshots_since.iter().filter(|(_, since)| self.ticks >= **since + patience);
        let lost: Vec<u64> = lost.map(|(id, _)| *id).collect();
        for id in lost {
            reached!("snapshot given up as lost");
            self.snapshots_since.remove(&id);
            self.raw_node.report_snapshot(id, SnapshotStatus::Failure);
        }
    }
}
