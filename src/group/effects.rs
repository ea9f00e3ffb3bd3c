//! What a replica wants done, and what it tells those who wait.
//!
//! Values only. The driver performs them and decides nothing; the order it must keep stands at [`Effects`].

use super::membership::ChangeRefusal;
use crate::ids::{Digest, LogIndex, NodeId, Offset, ReplicaId, Term, TimestampMs};
use crate::journal::base::Base;
use crate::journal::GroupWrite;
use crate::planted;
use crate::segments::verdict::Verdict;
use crate::segments::Frame;
use raft::eraftpb::Message;

/// Names whoever waits for an answer; the driver's own numbering.
pub type Token = u64;

/// One turn's wishes. In this order:
///
/// 1. `send_now` may leave at once.
/// 2. `installed`: the segments start anew from the base in `write`, durably, before that is submitted.
/// 3. `frames` go into the segments (in memory), `write` into the next journal round.
/// 4. Once the write is durable, *and* so are the writes of all effects numbered lower, `send_after_sync` leaves and
///    [`persisted`](super::replica::Replica::persisted) is called with `number`. An empty write has nothing of its own to wait for, but still waits for the lower ones.
/// 5. `answers` and `fetch` wait for nothing: what is answered was committed by a majority's disks before.
#[derive(Debug, Default)]
pub struct Effects {
    /// Ascends by one from one to the next.
    pub number: u64,
    /// For the journal; may be empty.
    pub write: GroupWrite,
    /// Messages that promise nothing about this replica's disk.
    pub send_now: Vec<Message>,
    /// Messages that promise durability, and all others while a term or vote is unsynced.
    pub send_after_sync: Vec<Message>,
    /// Entries applied in this turn, for the segments.
    pub frames: Vec<Frame>,
    /// A snapshot was installed: its base stands in `write`; `frames` is empty.
    pub installed: bool,
    /// Outcomes for those who wait.
    pub answers: Vec<(Token, Answer)>,
    /// What Raft needs out of the segments.
    pub fetch: Vec<Fetch>,
    /// Something that a view or a status shows has changed.
    pub view_changed: bool,
    /// This replica is no longer a member: its removal was applied. Those who waited are answered. It must *stay*, be ticked
    /// and vote, until the leader's status says that the change is settled and the catalog has dropped it: until then the
    /// group may need its vote (see [`ReplicaStatus::settled`](super::status::ReplicaStatus::settled)).
    pub left: bool,
}

impl Effects {
    /// The base of the snapshot that was installed, if one was.
    #[must_use]
    pub fn installed_base(&self) -> Option<&Base> {
        self.write.base.as_deref().filter(|_| self.installed)
    }
}

/// Something to be read from the segments, for a follower that is far behind.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fetch {
    /// Entries `[lo, hi)`, at least one, as many as fit into `bytes_max`. Answered through
    /// [`entries_fetched`](super::replica::Replica::entries_fetched).
    Entries {
        /// Names the request.
        number: u64,
        /// First index.
        lo: LogIndex,
        /// First index not wanted.
        hi: LogIndex,
        /// Stop at so many bytes.
        bytes_max: u64,
    },
    /// The header of the oldest segment. Answered through [`base_fetched`](super::replica::Replica::base_fetched).
    Base,
}

/// An outcome.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Answer {
    /// The command was committed and applied here.
    Applied {
        /// Index of its entry.
        index: LogIndex,
        /// Term of its entry.
        term: Term,
        /// The log's time at its entry.
        timestamp: TimestampMs,
        /// What the state machine decided.
        verdict: Verdict,
        /// The chain after its entry.
        chain: Digest,
    },
    /// All that was committed when the read was asked for is applied here.
    ReadAt {
        /// Applied through this index.
        index: LogIndex,
        /// The state machine's tail there.
        tail: Offset,
    },
    /// It failed; the error says whether it may have happened.
    Failed(ProposeError),
}

/// Why a command, a read or a change has no result.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ProposeError {
    /// Only leaders propose. It did not happen.
    #[error("replica does not lead in term {term}; the leader is {}", name(leader))]
    NotLeader {
        /// Who leads, if known.
        leader: Option<ReplicaId>,
        /// This replica's term.
        term: Term,
    },
    /// Leadership is being handed over. It did not happen.
    #[error("leadership is being handed to {to}")]
    TransferUnderWay {
        /// To whom.
        to: ReplicaId,
    },
    /// Leadership can't be handed there. Nothing happened.
    #[error("no voter of the group is on node {node}")]
    NoVoterThere {
        /// The node.
        node: NodeId,
    },
    /// Too many commands or reads wait already. It did not happen.
    #[error("{waiting} commands or reads wait; the bound is {limit}")]
    TooManyWaiting {
        /// How many wait.
        waiting: u64,
        /// The bound.
        limit: u64,
    },
    /// Too much waits, or is proposed and not yet committed. It did not happen.
    #[error("{bytes} bytes wait or are not yet committed; the bound is {limit}")]
    UncommittedFull {
        /// Bytes that wait or are not committed.
        bytes: u64,
        /// The bound.
        limit: u64,
    },
    /// The command is larger than an entry may be. It did not happen.
    #[error("command is {bytes} bytes; the bound is {limit}")]
    CommandTooLarge {
        /// Its size.
        bytes: u64,
        /// The bound.
        limit: u64,
    },
    /// Leadership was lost, and another leader's entry was committed at the command's place. It did not happen.
    #[error("entry {index} of term {term} was superseded by one of term {by}")]
    Superseded {
        /// Index of the command's entry.
        index: LogIndex,
        /// Term of the command's entry.
        term: Term,
        /// Term of the entry that stands there for good.
        by: Term,
    },
    /// Leadership was lost before the outcome was known. It may have happened, or may still.
    #[error(
        "leadership of term {term} was lost before entry {index} was known to be committed; the leader is {}",
        name(leader)
    )]
    LostLeadership {
        /// Index of the command's entry.
        index: LogIndex,
        /// Term of the command's entry.
        term: Term,
        /// Who leads now, if known.
        leader: Option<ReplicaId>,
    },
    /// No leader could confirm the read within two election timeouts, or this replica could not apply as far as was confirmed. A read
    /// changes nothing: it did not happen.
    #[error("no majority answers; silent: {silent:?}; the leader is {}", name(leader))]
    NoQuorum {
        /// Who leads, if known.
        leader: Option<ReplicaId>,
        /// Members that have been silent for an election timeout, as far as this replica can tell.
        silent: Vec<ReplicaId>,
    },
    /// The change of membership is refused. It did not happen.
    #[error(transparent)]
    Change(#[from] ChangeRefusal),
    /// This replica was removed from its group. It did not happen.
    #[error("replica was removed from its group")]
    Removed,
}

impl ProposeError {
    /// Whether the command may take effect all the same.
    #[must_use]
    pub fn may_have_happened(&self) -> bool {
        match self {
            ProposeError::LostLeadership { .. } => !planted!("lost-leadership-told-as-refusal"),
            ProposeError::NotLeader { .. }
            | ProposeError::TransferUnderWay { .. }
            | ProposeError::NoVoterThere { .. }
            | ProposeError::TooManyWaiting { .. }
            | ProposeError::UncommittedFull { .. }
            | ProposeError::CommandTooLarge { .. }
            | ProposeError::Superseded { .. }
            | ProposeError::NoQuorum { .. }
            | ProposeError::Change(_)
            | ProposeError::Removed => false,
        }
    }
}

impl ProposeError {
    /// Whether another replica, or this one a little later, may do it; it did not happen.
    #[must_use]
    pub fn is_not_leader(&self) -> bool {
        matches!(
            self,
            ProposeError::NotLeader { .. } | ProposeError::TransferUnderWay { .. } | ProposeError::Superseded { .. }
        )
    }

    /// Whether too much is under way; it did not happen.
    #[must_use]
    pub fn is_overload(&self) -> bool {
        matches!(self, ProposeError::TooManyWaiting { .. } | ProposeError::UncommittedFull { .. })
    }
}

fn name(leader: &Option<ReplicaId>) -> String {
    leader.map_or_else(|| "unknown".to_owned(), |leader| leader.to_string())
}
