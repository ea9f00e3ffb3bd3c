//! Holds messages from peers against what a sound peer can send, before Raft sees them: Raft 0.7 aborts the process on
//! many that no sound peer sends, and a process must not die by a message.
//!
//! Who the sender is was checked at the connection. What is merely late or doubled is let through: Raft copes. Where it doesn't, it is
//! mended rather than refused, see [`mend`].

use super::reads::CONTEXT_LEN;
use crate::ids::ReplicaId;
use crate::limits::{ENTRY_BYTES_MAX, RAFT_MESSAGE_BYTES_MAX};
use crate::{planted, reached};
use prost::Message as _;
use raft::eraftpb::{ConfChangeV2, Entry, EntryType, Message, MessageType};
use raft::{Raft, StateRole, Storage};

/// Largest index or term taken from outside: beyond any log, and far from overflow.
const NUMBER_MAX: u64 = 1 << 62;

/// Whether a message holds a snapshot for which a disk with so many free bytes has no room; it needs `beside` more than its own. Such a one is
/// dropped, and its leader sends it again: a replica that waited for room with a snapshot in hand would not even vote. No mark: a disk of a
/// simulation is seldom so full at the moment when a snapshot comes.
#[must_use]
pub fn lacks_room(message: &Message, free_bytes: u64, beside: u64) -> bool {
    let bytes = message.snapshot.as_ref().map_or(0, |snapshot| snapshot.data.len() as u64);
    bytes > 0 && free_bytes < bytes + beside
}

/// Why a message was not taken. Nothing happened to the replica.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum StepRefusal {
    /// It is for another replica, or from this one.
    #[error("message from replica {from} to replica {to} reached replica {me}")]
    Misdirected {
        /// Its sender.
        from: ReplicaId,
        /// Its receiver.
        to: ReplicaId,
        /// This replica.
        me: ReplicaId,
    },
    /// Raft sends no such message from node to node, or this version doesn't.
    #[error("no peer sends messages of kind {kind}")]
    Kind {
        /// The kind's number.
        kind: i32,
    },
    /// A field has a value that no sound peer sends.
    #[error("malformed message: {0}")]
    Malformed(&'static str),
    /// Its entries exceed what one message may hold.
    #[error("message has {bytes} bytes of entries; the bound is {limit}")]
    TooLarge {
        /// Their size.
        bytes: u64,
        /// The bound.
        limit: u64,
    },
    /// Another replica leads the same term. One of the two has lost its vote.
    #[error("replica {from} claims to lead term {term}, which replica {leader} leads")]
    SecondLeader {
        /// The sender.
        from: ReplicaId,
        /// The term.
        term: u64,
        /// Who leads it.
        leader: ReplicaId,
    },
    /// It speaks of entries as held here that are not: this replica's log, or the sender's, has lost some.
    #[error("message speaks of entry {index} as agreed; the log ends at {last}")]
    BeyondLog {
        /// The index.
        index: u64,
        /// Where the log ends.
        last: u64,
    },
    /// A snapshot that can't be taken up.
    #[error("snapshot at {index} is unusable: {reason}")]
    Snapshot {
        /// Its index.
        index: u64,
        /// What is wrong with it.
        reason: String,
    },
    /// A read is asked of the leader, over one hop, and this replica does not lead.
    #[error("replica does not lead; a read goes to the leader, over one hop")]
    NotLeader,
    /// Asked to campaign at once, but it must not now.
    #[error("replica may not campaign now")]
    MayNotCampaign,
    /// Not from a member, as far as this replica knows.
    #[error("response from replica {from}, which is no member")]
    NotMember {
        /// The sender.
        from: ReplicaId,
    },
}

impl StepRefusal {
    /// Whether sound peers cause this in the ordinary course of things, by a message that comes late. Not worth a warning.
    #[must_use]
    pub fn is_ordinary(&self) -> bool {
        match self {
            StepRefusal::NotLeader | StepRefusal::MayNotCampaign | StepRefusal::NotMember { .. } => true,
            StepRefusal::Misdirected { .. }
            | StepRefusal::Kind { .. }
            | StepRefusal::Malformed(_)
            | StepRefusal::TooLarge { .. }
            | StepRefusal::SecondLeader { .. }
            | StepRefusal::BeyondLog { .. }
            | StepRefusal::Snapshot { .. } => false,
        }
    }
}

/// Holds a message against the rules. Returns its kind.
///
/// # Errors
/// The rule it breaks.
pub(super) fn check<T: Storage>(raft: &Raft<T>, message: &Message) -> Result<MessageType, StepRefusal> {
    if message.to != raft.id || message.from == raft.id || message.from == 0 {
        let [from, to, me] = [message.from, message.to, raft.id].map(ReplicaId);
        return Err(StepRefusal::Misdirected { from, to, me });
    }
    let kind = MessageType::try_from(message.msg_type).map_err(|_| StepRefusal::Kind { kind: message.msg_type })?;
    check_fields(kind, message)?;
    match kind {
        MessageType::MsgAppend => {
            check_leader(raft, message)?;
            check_entries(message)?;
        }
        MessageType::MsgHeartbeat => {
            check_leader(raft, message)?;
            let overlooked =
                [planted!("commit-beyond-last-index"), planted!("commit-beyond-the-matched")].contains(&true);
            check_within_log(raft, message.term >= raft.term && !overlooked, message.commit)?;
        }
        MessageType::MsgSnapshot => check_leader(raft, message)?,
        MessageType::MsgAppendResponse => {
            let acknowledges = message.term == raft.term && raft.state == StateRole::Leader && !message.reject;
            check_within_log(raft, acknowledges, message.index)?;
        }
        MessageType::MsgReadIndex if raft.state != StateRole::Leader => return Err(StepRefusal::NotLeader),
        MessageType::MsgReadIndex | MessageType::MsgReadIndexResp => check_read(message)?,
        MessageType::MsgTimeoutNow => {
            if message.term > raft.term || (message.term == raft.term && message.from != raft.leader_id) {
                return Err(StepRefusal::Malformed("only a replica's leader tells it to campaign"));
            }
        }
        MessageType::MsgRequestVote
        | MessageType::MsgRequestVoteResponse
        | MessageType::MsgRequestPreVote
        | MessageType::MsgRequestPreVoteResponse
        | MessageType::MsgHeartbeatResponse => {}
        // Local to a node; proposals and transfers are asked of leaders only, by means of our own.
        MessageType::MsgHup
        | MessageType::MsgBeat
        | MessageType::MsgPropose
        | MessageType::MsgUnreachable
        | MessageType::MsgSnapStatus
        | MessageType::MsgCheckQuorum
        | MessageType::MsgTransferLeader => return Err(StepRefusal::Kind { kind: message.msg_type }),
    }
    Ok(kind)
}

/// Mends what Raft 0.7 mishandles. `None` if nothing of the message is of use.
///
/// A delayed rejection made a leader's next index fall to or below what the follower has acknowledged (reproduced; mended on
/// raft's master only): one at or below the match is dropped, one above it does not reach below it.
///
/// A delayed grant of a pre-vote was counted for the one under way, though it was given for an earlier term, when the log or the leader that
/// spoke against a campaign were not known yet (Ongaro 2014, 9.6). A grant carries the term that was asked for; a rejection carries its
/// sender's own, and is left to Raft.
pub(super) fn mend<T: Storage>(raft: &Raft<T>, mut message: Message) -> Option<Message> {
    let log = &raft.raft_log;
    let asks_vote = matches!(message.msg_type(), MessageType::MsgRequestVote | MessageType::MsgRequestPreVote);
    if planted!("vote-without-up-to-date-check") && asks_vote {
        (message.index, message.log_term) =
            (message.index.max(log.last_index()), message.log_term.max(log.last_term()));
    }
    if planted!("commit-beyond-the-matched") && message.msg_type() == MessageType::MsgHeartbeat {
        message.commit = message.commit.min(log.last_index());
    }
    let grants = message.msg_type() == MessageType::MsgRequestPreVoteResponse && !message.reject;
    if grants && message.term != raft.term + 1 {
        reached!("late grant of a pre-vote dropped");
        return None;
    }
    let rejects = message.msg_type() == MessageType::MsgAppendResponse && message.reject;
    if !rejects || raft.state != StateRole::Leader || message.term != raft.term {
        return Some(message);
    }
    let matched = raft.prs().get(message.from).map_or(0, |progress| progress.matched);
    if matched > 0 && message.index <= matched {
        reached!("late rejection dropped");
        return None;
    }
    if message.reject_hint < matched {
        reached!("late rejection mended");
        message.reject_hint = matched;
        message.log_term = 0;
    }
    Some(message)
}

fn check_fields(kind: MessageType, message: &Message) -> Result<(), StepRefusal> {
    let numbers =
        [message.term, message.log_term, message.index, message.commit, message.reject_hint, message.commit_term];
    if numbers.iter().any(|number| *number > NUMBER_MAX) {
        return Err(StepRefusal::Malformed("a number beyond any log"));
    }
    // Raft takes a message of term zero for a local one, except reads, which carry none.
    if (message.term == 0) != (kind == MessageType::MsgReadIndex) {
        return Err(StepRefusal::Malformed("term"));
    }
    if message.request_snapshot != 0 {
        return Err(StepRefusal::Malformed("asks for a snapshot"));
    }
    if (kind == MessageType::MsgSnapshot) != message.snapshot.is_some() {
        return Err(StepRefusal::Malformed("snapshot"));
    }
    let may_hold_entries =
        matches!(kind, MessageType::MsgAppend | MessageType::MsgReadIndex | MessageType::MsgReadIndexResp);
    if !may_hold_entries && !message.entries.is_empty() {
        return Err(StepRefusal::Malformed("entries"));
    }
    if message.context.len() > CONTEXT_LEN {
        return Err(StepRefusal::Malformed("context"));
    }
    Ok(())
}

fn check_leader<T: Storage>(raft: &Raft<T>, message: &Message) -> Result<(), StepRefusal> {
    let leader = if raft.state == StateRole::Leader { raft.id } else { raft.leader_id };
    if message.term == raft.term && leader != 0 && leader != message.from {
        // Not within the budget of damage: a vote was lost.
        let (from, leader) = (ReplicaId(message.from), ReplicaId(leader));
        return Err(StepRefusal::SecondLeader { from, term: message.term, leader });
    }
    Ok(())
}

fn check_within_log<T: Storage>(raft: &Raft<T>, applies: bool, index: u64) -> Result<(), StepRefusal> {
    let last = raft.raft_log.last_index();
    if applies && index > last {
        reached!("message beyond the log refused");
        return Err(StepRefusal::BeyondLog { index, last });
    }
    Ok(())
}

fn check_read(message: &Message) -> Result<(), StepRefusal> {
    match &message.entries[..] {
        [entry] if entry.data.len() == CONTEXT_LEN => Ok(()),
        _ => Err(StepRefusal::Malformed("a read has one context")),
    }
}

fn check_entries(message: &Message) -> Result<(), StepRefusal> {
    let limit = RAFT_MESSAGE_BYTES_MAX + ENTRY_BYTES_MAX as u64;
    let bytes: u64 = message.entries.iter().map(|entry| entry.data.len() as u64).sum();
    if bytes > limit {
        return Err(StepRefusal::TooLarge { bytes, limit });
    }
    let mut previous = (message.index, message.log_term);
    for entry in &message.entries {
        if entry.index != previous.0 + 1 || entry.term < previous.1 || entry.term > message.term {
            return Err(StepRefusal::Malformed("entries do not follow each other"));
        }
        check_entry(entry)?;
        previous = (entry.index, entry.term);
    }
    Ok(())
}

fn check_entry(entry: &Entry) -> Result<(), StepRefusal> {
    if entry.data.len() > ENTRY_BYTES_MAX || !entry.context.is_empty() {
        return Err(StepRefusal::Malformed("entry"));
    }
    match EntryType::try_from(entry.entry_type) {
        Ok(EntryType::EntryNormal) => Ok(()),
        Ok(EntryType::EntryConfChangeV2) if ConfChangeV2::decode(entry.data.clone()).is_ok() => Ok(()),
        _ => Err(StepRefusal::Malformed("kind of entry")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use raft::eraftpb::Snapshot;

    #[test]
    fn only_a_snapshot_needs_room_and_it_needs_its_own_bytes_and_some() {
        let snapshot = Snapshot { data: vec![0; 100].into(), ..Snapshot::default() };
        let with_snapshot = Message { snapshot: Some(snapshot), ..Message::default() };
        assert!(lacks_room(&with_snapshot, 149, 50));
        assert!(!lacks_room(&with_snapshot, 150, 50));
        let vote = Message { snapshot: Some(Snapshot::default()), ..Message::default() };
        assert!(!lacks_room(&vote, 0, 50) && !lacks_room(&Message::default(), 0, 50));
    }
}
