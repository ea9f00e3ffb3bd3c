//! Changes of a group's membership: what may be asked for, and the Raft change it becomes.
//!
//! A newcomer learns first and votes only once it has caught up, so that no commit ever waits for a replica that is still
//! being fed. Changes are proposed one at a time and only after the term's first commit (the bug found in single-server changes in 2015:
//! Ongaro, raft-dev), and changes of several voters go through joint consensus (Ongaro 2014, 4.3). Who should be a
//! member is the catalog's to decide, not this file's; nothing here promotes by itself. A removed replica stays and votes until
//! the change is settled, see [`ReplicaStatus::settled`](super::status::ReplicaStatus::settled).

use crate::ids::ReplicaId;
use crate::limits::REPLICAS_MAX;
use crate::{planted, reached};
use raft::eraftpb::{ConfChangeSingle, ConfChangeTransition, ConfChangeType, ConfChangeV2, ConfState};
use std::collections::BTreeSet;

/// A learner whose log ends at most so many entries before the leader's has caught up.
pub const PROMOTION_LAG_ENTRIES_MAX: u64 = 1_024;

/// One step of a change; the steps of one change take effect together.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MemberChange {
    /// A replica that is no member begins to learn the log.
    AddLearner(ReplicaId),
    /// A learner that has caught up becomes a voter.
    Promote(ReplicaId),
    /// A voter becomes a learner.
    Demote(ReplicaId),
    /// A member leaves for good.
    Remove(ReplicaId),
}

impl MemberChange {
    /// Whom it concerns.
    #[must_use]
    pub fn replica(self) -> ReplicaId {
        match self {
            MemberChange::AddLearner(id)
            | MemberChange::Promote(id)
            | MemberChange::Demote(id)
            | MemberChange::Remove(id) => id,
        }
    }
}

/// Why a change was not proposed. Nothing happened.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ChangeRefusal {
    /// It changes nothing, or one member twice.
    #[error("a change of membership names each replica once, and at least one")]
    Malformed,
    /// The leader has not committed an entry of its own term yet.
    #[error("nothing of the leader's term is committed yet")]
    TermNotCommitted,
    /// The change before it is not complete.
    #[error("another change of membership is under way")]
    UnderWay,
    /// It is a member already.
    #[error("replica {0} is a member already")]
    AlreadyMember(ReplicaId),
    /// It is not what the change takes it for.
    #[error("replica {0} is no learner of this group")]
    NotLearner(ReplicaId),
    /// It is not what the change takes it for.
    #[error("replica {0} is no voter of this group")]
    NotVoter(ReplicaId),
    /// It is no member.
    #[error("replica {0} is no member of this group")]
    NotMember(ReplicaId),
    /// The leader does not feed it from the log yet, or has not heard it for an election timeout.
    #[error("replica {0} does not follow the log now")]
    NotFollowing(ReplicaId),
    /// The learner is too far behind to vote.
    #[error("replica {replica} is {lag} entries behind; a voter may start {limit} behind")]
    NotCaughtUp {
        /// Which learner.
        replica: ReplicaId,
        /// How far behind.
        lag: u64,
        /// How far it may be.
        limit: u64,
    },
    /// Nobody could vote any more.
    #[error("no voter would remain")]
    NoVoter,
    /// Too few of the voters that would remain are there: nothing could be agreed on any more, not even to take the others out.
    #[error("of the {voters} voters that would remain, {heard} were heard lately, and {majority} make a majority")]
    NoMajority {
        /// How many would vote.
        voters: usize,
        /// How many of them were heard lately.
        heard: usize,
        /// How many it takes.
        majority: usize,
    },
    /// Too many members.
    #[error("the group would have {members} members; the bound is {limit}")]
    TooMany {
        /// How many it would have.
        members: usize,
        /// The bound.
        limit: usize,
    },
    /// The leader itself would stop voting: leadership is being handed over first; ask the next leader.
    #[error("the leader would stop voting; leadership is handed to {to} first")]
    LeaderMovesFirst {
        /// To whom.
        to: ReplicaId,
    },
}

/// Whether replica `id` has any part in the configuration.
pub(super) fn is_member(conf: &ConfState, id: ReplicaId) -> bool {
    [&conf.voters, &conf.learners, &conf.voters_outgoing, &conf.learners_next].iter().any(|ids| ids.contains(&id.0))
}

/// Whether a change is half way: two majorities count.
pub(super) fn is_joint(conf: &ConfState) -> bool {
    !conf.voters_outgoing.is_empty()
}

/// Whether Raft can take this configuration up without aborting: voters there, no replica twice, outgoing ones consistent.
pub(super) fn is_sound(conf: &ConfState) -> bool {
    let unique = |ids: &[u64]| ids.iter().collect::<BTreeSet<_>>().len() == ids.len() && !ids.contains(&0);
    let disjoint = |a: &[u64], b: &[u64]| a.iter().all(|id| !b.contains(id));
    let ConfState { voters, learners, voters_outgoing, learners_next, auto_leave } = conf;
    !voters.is_empty()
        && [voters, learners, voters_outgoing, learners_next].into_iter().all(|ids| unique(ids))
        && disjoint(learners, voters)
        && disjoint(learners, voters_outgoing)
        && disjoint(learners_next, voters)
        && disjoint(learners_next, learners)
        && learners_next.iter().all(|id| voters_outgoing.contains(id))
        && (!auto_leave || !voters_outgoing.is_empty())
        && voters.len() + learners.len() + voters_outgoing.len() <= 4 * REPLICAS_MAX.max(crate::limits::NODES_MAX)
}

/// What the rules need to know of the leader.
pub(super) struct Situation<'a> {
    pub(super) conf: &'a ConfState,
    pub(super) term_committed: bool,
    pub(super) change_pending: bool,
    pub(super) members_max: usize,
    /// Whether a member was heard lately; the leader itself is.
    pub(super) is_heard: &'a dyn Fn(ReplicaId) -> bool,
    /// How many entries a member is behind the leader's last, if it follows the log.
    pub(super) lag_of: &'a dyn Fn(ReplicaId) -> Option<u64>,
}

/// Holds a change against the rules.
///
/// # Errors
/// The first rule it breaks. That the leader must not demote itself is the caller's to see.
pub(super) fn check(changes: &[MemberChange], situation: &Situation<'_>) -> Result<(), ChangeRefusal> {
    let conf = situation.conf;
    let named: BTreeSet<u64> = changes.iter().map(|change| change.replica().0).collect();
    if changes.is_empty() || named.len() < changes.len() || named.contains(&0) {
        return Err(ChangeRefusal::Malformed);
    }
    if !situation.term_committed && !planted!("change-before-term-commit") {
        reached!("change refused before the term's first commit");
        return Err(ChangeRefusal::TermNotCommitted);
    }
    if situation.change_pending || is_joint(conf) {
        return Err(ChangeRefusal::UnderWay);
    }
    let mut voters: BTreeSet<u64> = conf.voters.iter().copied().collect();
    let mut learners: BTreeSet<u64> = conf.learners.iter().copied().collect();
    for change in changes {
        let id = change.replica();
        match change {
            MemberChange::AddLearner(_) => {
                if voters.contains(&id.0) || !learners.insert(id.0) {
                    return Err(ChangeRefusal::AlreadyMember(id));
                }
            }
            MemberChange::Promote(_) => {
                if !learners.remove(&id.0) {
                    return Err(ChangeRefusal::NotLearner(id));
                }
                let lag = (situation.lag_of)(id).ok_or(ChangeRefusal::NotFollowing(id))?;
                let limit = PROMOTION_LAG_ENTRIES_MAX;
                if lag > limit {
                    return Err(ChangeRefusal::NotCaughtUp { replica: id, lag, limit });
                }
                reached!("learner may be promoted");
                voters.insert(id.0);
            }
            MemberChange::Demote(_) => {
                if !voters.remove(&id.0) {
                    return Err(ChangeRefusal::NotVoter(id));
                }
                learners.insert(id.0);
            }
            MemberChange::Remove(_) => {
                if !voters.remove(&id.0) && !learners.remove(&id.0) {
                    return Err(ChangeRefusal::NotMember(id));
                }
            }
        }
    }
    let members = voters.len() + learners.len();
    if voters.is_empty() {
        return Err(ChangeRefusal::NoVoter);
    }
    check_majority(conf, &voters, situation)?;
    if members > situation.members_max {
        return Err(ChangeRefusal::TooMany { members, limit: situation.members_max });
    }
    Ok(())
}

/// Whoever takes a voter away that is there has to leave a majority of such. Those that are gone may always be taken out, and come first.
fn check_majority(conf: &ConfState, voters: &BTreeSet<u64>, situation: &Situation<'_>) -> Result<(), ChangeRefusal> {
    let is_heard = |id: &&u64| (situation.is_heard)(ReplicaId(**id));
    let leaves = conf.voters.iter().filter(|id| !voters.contains(*id)).any(|id| is_heard(&id));
    let (heard, majority) = (voters.iter().filter(is_heard).count(), voters.len() / 2 + 1);
    match leaves && heard < majority {
        true => Err(ChangeRefusal::NoMajority { voters: voters.len(), heard, majority }),
        false => Ok(()),
    }
}

/// The Raft change for these steps. Of several voters it goes through a joint configuration, which Raft leaves by
/// itself.
pub(super) fn to_raft(changes: &[MemberChange], context: Vec<u8>) -> ConfChangeV2 {
    let single = |change: &MemberChange| {
        let kind = match change {
            MemberChange::AddLearner(_) | MemberChange::Demote(_) => ConfChangeType::AddLearnerNode,
            MemberChange::Promote(_) => ConfChangeType::AddNode,
            MemberChange::Remove(_) => ConfChangeType::RemoveNode,
        };
        ConfChangeSingle { change_type: kind.into(), node_id: change.replica().0 }
    };
    ConfChangeV2 {
        transition: ConfChangeTransition::Auto.into(),
        changes: changes.iter().map(single).collect(),
        context: context.into(),
    }
}
