//! What a replica knows of itself and its group, for `balsa status` and for whoever routes requests.

use super::machine::StateMachine;
use super::membership;
use super::replica::Replica;
use crate::ids::{LogIndex, ReplicaId, Term};
use raft::{ProgressState, StateRole};

/// A replica's role.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// Follows a leader, or waits for one.
    Follower,
    /// Asks whether it would win an election.
    PreCandidate,
    /// Stands for election.
    Candidate,
    /// Leads.
    Leader,
}

/// One replica's view of its group.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ReplicaStatus {
    /// This replica.
    pub id: ReplicaId,
    /// Its role.
    pub role: Role,
    /// Who leads, if known.
    pub leader: Option<ReplicaId>,
    /// Its term.
    pub term: Term,
    /// Whether something of its term is committed: a leader serves reads and changes from then on.
    pub committed_in_term: bool,
    /// First index kept.
    pub first: LogIndex,
    /// Applied through this index.
    pub applied: LogIndex,
    /// Committed through this index.
    pub commit: LogIndex,
    /// Durable here through this index.
    pub durable: LogIndex,
    /// The log's last index.
    pub last: LogIndex,
    /// Members, by id. How far they are is known to the leader alone.
    pub members: Vec<MemberStatus>,
    /// Whether a change of membership is half way.
    pub joint: bool,
    /// On a leader: whether the last change of membership can't be undone by crashes any more. A majority of the voters has it on
    /// disk that the change is committed.
    ///
    /// Until then removed replicas must stay and vote. Found in the storm of `tests/scenarios.rs`: both removed replicas of
    /// three were gone at once, the last one crashed with the change in its log but not known to be committed, and after its restart
    /// it needed a majority of the three.
    pub settled: bool,
    /// To whom leadership is being handed.
    pub transferring_to: Option<ReplicaId>,
    /// Whether it may lead.
    pub may_lead: bool,
    /// Commands queued or waiting for their entry.
    pub proposals_waiting: usize,
    /// Reads that wait.
    pub reads_waiting: usize,
    /// Bytes proposed and not committed; on a leader.
    pub uncommitted_bytes: u64,
}

/// A member, as this replica sees it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MemberStatus {
    /// Which.
    pub id: ReplicaId,
    /// Whether it votes; in a joint configuration in either half.
    pub voter: bool,
    /// Its log matches the leader's through this index; known to the leader.
    pub matched: Option<LogIndex>,
    /// The next entry it is sent, always beyond `matched`; known to the leader.
    pub next: Option<LogIndex>,
    /// Whether it must be sent a snapshot first.
    pub needs_snapshot: bool,
    /// Ticks since it was last heard, if this replica listens to it.
    pub silent_ticks: Option<u64>,
}

/// What a replica holds in memory beside its state machine, for who watches that all of it is bounded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Held {
    /// Bytes of applied entries, kept for followers.
    pub applied_bytes: usize,
    /// Reads of segments that Raft waits for.
    pub fetches: usize,
    /// Messages with entries in flight to the member that has most of them; on a leader.
    pub inflight_messages: usize,
    /// Commands queued or waiting for their entry.
    pub proposals: usize,
    /// Bytes of the queued ones.
    pub queued_bytes: u64,
    /// Reads that wait.
    pub reads: usize,
    /// Bytes proposed and not committed; on a leader.
    pub uncommitted_bytes: u64,
}

impl<S: StateMachine> Replica<S> {
    /// What it holds in memory.
    #[must_use]
    pub fn held(&self) -> Held {
        let raft = &self.raw_node.raft;
        let (applied_bytes, fetches) = raft.store().held();
        let inflight = raft.prs().iter().filter(|_| self.is_leader()).map(|(_, progress)| progress.ins.count());
        Held {
            applied_bytes,
            fetches,
            inflight_messages: inflight.max().unwrap_or(0),
            proposals: self.proposals.count(),
            queued_bytes: self.proposals.queued_bytes(),
            reads: self.reads.count(),
            uncommitted_bytes: raft.uncommitted_size() as u64,
        }
    }

    /// This replica's role.
    #[must_use]
    pub fn role(&self) -> Role {
        match self.raw_node.raft.state {
            StateRole::Follower => Role::Follower,
            StateRole::PreCandidate => Role::PreCandidate,
            StateRole::Candidate => Role::Candidate,
            StateRole::Leader => Role::Leader,
        }
    }

    /// Who leads, if known.
    #[must_use]
    pub fn leader(&self) -> Option<ReplicaId> {
        self.leader_id()
    }

    /// Its term.
    #[must_use]
    pub fn term(&self) -> Term {
        Term(self.raw_node.raft.term)
    }

    /// The term it leads and has committed something in, if any: from then on it serves reads.
    #[must_use]
    pub fn serving_term(&self) -> Option<Term> {
        (self.is_leader() && self.raw_node.raft.commit_to_current_term()).then(|| self.term())
    }

    /// How things stand, in full.
    #[must_use]
    pub fn status(&self) -> ReplicaStatus {
        let raft = &self.raw_node.raft;
        let log = &raft.raft_log;
        ReplicaStatus {
            id: self.options.id,
            role: self.role(),
            leader: self.leader_id(),
            term: Term(raft.term),
            committed_in_term: raft.commit_to_current_term(),
            first: LogIndex(log.first_index()),
            applied: self.applied.index,
            commit: LogIndex(log.committed),
            durable: LogIndex(log.persisted),
            last: LogIndex(log.last_index()),
            members: self.member_status(),
            joint: membership::is_joint(&self.applied.conf_state),
            settled: self.is_settled(),
            transferring_to: raft.lead_transferee.map(ReplicaId),
            may_lead: self.may_lead(),
            proposals_waiting: self.proposals.count(),
            reads_waiting: self.reads.count(),
            uncommitted_bytes: raft.uncommitted_size() as u64,
        }
    }

    fn is_settled(&self) -> bool {
        let raft = &self.raw_node.raft;
        let knows = |id: &&u64| {
            let commit = if **id == self.options.id.0 {
                self.durable_commit()
            } else {
                // A follower's responses leave after what they tell is on its disk.
                raft.prs().get(**id).map_or(0, |progress| progress.committed_index)
            };
            commit >= self.last_change.0
        };
        let conf = &self.applied.conf_state;
        self.is_leader()
            && !membership::is_joint(conf)
            && !raft.has_pending_conf()
            && conf.voters.iter().filter(knows).count() > conf.voters.len() / 2
    }

    fn member_status(&self) -> Vec<MemberStatus> {
        let conf = &self.applied.conf_state;
        let raft = &self.raw_node.raft;
        let mut ids: Vec<u64> = [&conf.voters, &conf.voters_outgoing, &conf.learners, &conf.learners_next]
            .into_iter()
            .flatten()
            .copied()
            .collect();
        ids.sort_unstable();
        ids.dedup();
        let status = |id: u64| {
            let progress = raft.prs().get(id).filter(|_| self.is_leader());
            MemberStatus {
                id: ReplicaId(id),
                voter: conf.voters.contains(&id) || conf.voters_outgoing.contains(&id),
                matched: progress.map(|progress| LogIndex(progress.matched)),
                next: progress.map(|progress| LogIndex(progress.next_idx)),
                needs_snapshot: progress.is_some_and(|progress| progress.state == ProgressState::Snapshot),
                silent_ticks: self.silent_ticks(id).filter(|_| id != self.options.id.0),
            }
        };
        ids.into_iter().map(status).collect()
    }
}
