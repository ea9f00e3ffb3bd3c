//! Groups that nobody uses sleep: no ticks, no heartbeats, no elections, so that a partition costs nothing while it is quiet.
//!
//! A leader may put its group to sleep when every member has, and knows to be committed, all there is, and nobody waits for
//! anything. It tells its followers with a last heartbeat that carries [`SLEEP`]; each sleeps if the same holds for it, and stays
//! awake otherwise: it will miss its leader, ask for votes, and that wakes the group. Whatever reaches a sleeping replica wakes
//! it, but for the late answers to that heartbeat.
//!
//! Who watches over a sleeping group is not decided here: the driver lets a replica sleep only while the links between the nodes
//! concerned stand, and wakes it when one breaks or is made again.

use super::machine::StateMachine;
use super::replica::Replica;
use crate::{planted, reached};
use raft::eraftpb::{Message, MessageType};
use raft::StateRole;

/// The context of a heartbeat after which its leader sleeps. Shorter than any context of a read.
const SLEEP: &[u8] = b"sleep";

/// Whether the group is in use.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Sleep {
    asleep: bool,
    /// Ticks since something last happened, as far as a leader can tell.
    idle_ticks: u64,
}

impl<S: StateMachine> Replica<S> {
    /// Whether this replica sleeps: ticks do nothing but count.
    #[must_use]
    pub fn is_asleep(&self) -> bool {
        self.sleep.asleep
    }

    /// Whether this leader has had nothing to do for so many ticks that its group could sleep.
    #[must_use]
    pub fn is_drowsy(&self, ticks: u64) -> bool {
        self.sleep.idle_ticks >= ticks && !self.sleep.asleep && self.is_idle()
    }

    /// Whether this leader's group could sleep: every member has and knows all there is, and nobody waits.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        let raft = &self.raw_node.raft;
        let last = raft.raft_log.last_index();
        let knows_all = |progress: &raft::Progress| {
            planted!("group-asleep-with-unmatched-voter")
                || (progress.matched == last && progress.committed_index == last)
        };
        self.is_leader()
            && self.may_lead
            && raft.lead_transferee.is_none()
            && self.is_at_rest()
            && raft.prs().iter().all(|(id, progress)| *id == raft.id || knows_all(progress))
    }

    /// Sends a drowsy leader's group to sleep.
    ///
    /// # Panics
    /// If the replica is not idle: a member would be left behind.
    pub fn fall_asleep(&mut self) {
        assert!(self.is_idle(), "a group with something to do does not sleep");
        let raft = &mut self.raw_node.raft;
        let (me, term, commit) = (raft.id, raft.term, raft.raft_log.committed);
        let followers = raft.prs().iter().filter(|(id, _)| **id != me);
        let mut followers: Vec<(u64, u64)> = followers.map(|(id, progress)| (*id, progress.matched)).collect();
        followers.sort_unstable();
        for (to, matched) in followers {
            let commit = commit.min(matched); // as in every heartbeat
            let mut last = Message { from: me, to, term, commit, context: SLEEP.into(), ..Message::default() };
            last.set_msg_type(MessageType::MsgHeartbeat);
            raft.msgs.push(last);
        }
        self.sleep.asleep = true;
    }

    /// Something happened that concerns this replica: it ticks again. Does nothing to one that is awake.
    pub fn wake(&mut self) {
        self.sleep.idle_ticks = 0;
        if std::mem::take(&mut self.sleep.asleep) {
            reached!("sleeper woken");
            // While it slept nobody was to be heard; that is nobody's silence.
            self.heard.values_mut().for_each(|heard| *heard = self.ticks);
        }
    }

    /// A tick of a replica that is awake passed.
    pub(super) fn tick_idle(&mut self) {
        self.sleep.idle_ticks = if self.is_idle() { self.sleep.idle_ticks + 1 } else { 0 };
    }

    /// Whether a message finds the replica asleep and should not wake it: the answer to the heartbeat that sent the group to sleep.
    pub(super) fn sleeps_through(&self, message: &Message) -> bool {
        let kind = message.msg_type();
        let late_append = planted!("group-asleep-with-unmatched-voter") && kind == MessageType::MsgAppendResponse;
        self.sleep.asleep
            && (kind == MessageType::MsgHeartbeatResponse || late_append)
            && message.term <= self.raw_node.raft.term
    }

    /// The leader of `term` sleeps behind index `commit`, and so does this follower, unless something is left to do here.
    pub(super) fn follow_to_sleep(&mut self, leader: u64, term: u64, commit: u64) {
        let raft = &self.raw_node.raft;
        let follows = raft.state == StateRole::Follower && raft.leader_id == leader && raft.term == term;
        let has_all = raft.raft_log.last_index() == commit;
        if follows && (planted!("group-asleep-with-unmatched-voter") || (has_all && self.is_at_rest())) {
            reached!("follower sleeps");
            self.sleep.asleep = true;
        } else {
            reached!("follower stays awake");
        }
    }

    /// Whether all there is is committed, applied and durable, and nobody waits for this replica.
    fn is_at_rest(&self) -> bool {
        let log = &self.raw_node.raft.raft_log;
        log.last_index() == log.committed
            && self.applied.index.0 == log.committed
            && self.unsynced_log.is_none()
            && self.identity.unsynced.is_none()
            && self.installing.is_none()
            && !self.left
            && self.proposals.count() == 0
            && self.reads.count() == 0
    }
}

/// Whether a message asks its receiver to sleep.
#[must_use]
pub fn asks_to_sleep(message: &Message) -> bool {
    message.msg_type() == MessageType::MsgHeartbeat && message.context == SLEEP
}

/// Takes that request out of a message, which is an ordinary heartbeat then; whether there was one.
pub fn take_sleep(message: &mut Message) -> bool {
    let asks = asks_to_sleep(message);
    if asks {
        message.context = Default::default();
    }
    asks
}
