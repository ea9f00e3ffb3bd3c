//! What some planted bugs do to Raft from outside, where its own code is not ours to spoil.
//!
//! Called behind `planted!` alone, so nothing of this runs in any build but the simulator's. Each is what an implementation with that bug
//! would have done by itself; the incidents are told in `docs/simulation.md`.

use super::effects::Effects;
use super::log_view::LogView;
use super::machine::StateMachine;
use super::replica::Replica;
use raft::eraftpb::{Message, MessageType};
use raft::{RawNode, StateRole};

impl Effects {
    /// Messages of a kind leave at once instead of after the sync.
    pub(super) fn hurry(&mut self, kind: MessageType) {
        self.send_now.extend(self.send_after_sync.extract_if(.., |message| message.msg_type() == kind));
    }
}

impl<S: StateMachine> Replica<S> {
    /// A leader commits whatever a majority holds, of whichever term.
    pub(super) fn commit_by_counting(&mut self) {
        let raft = &mut self.raw_node.raft;
        if raft.state == StateRole::Leader {
            let held = raft.mut_prs().maximal_committed_index().0;
            raft.raft_log.commit_to(held);
        }
    }

    /// A leader commits what its own disk holds.
    pub(super) fn commit_alone(&mut self) {
        let raft = &mut self.raw_node.raft;
        if raft.state == StateRole::Leader {
            let persisted = raft.raft_log.persisted;
            raft.raft_log.commit_to(persisted);
        }
    }

    /// Heartbeats tell the leader's commit, however far their receiver is.
    pub(super) fn unclamp_commits(&self, messages: &mut [Message]) {
        let commit = self.raw_node.raft.raft_log.committed;
        let heartbeats = messages.iter_mut().filter(|message| message.msg_type() == MessageType::MsgHeartbeat);
        heartbeats.for_each(|message| message.commit = commit);
    }

    /// All that is committed counts as applied while Raft decides whether it may campaign.
    pub(super) fn overlooking_unapplied<T>(&mut self, act: impl FnOnce(&mut RawNode<LogView>) -> T) -> T {
        let applied = self.raw_node.raft.raft_log.applied;
        self.raw_node.raft.raft_log.applied = self.raw_node.raft.raft_log.committed;
        let done = act(&mut self.raw_node);
        self.raw_node.raft.raft_log.applied = applied;
        done
    }

    /// An append cuts off all that the log holds behind its entries, whether they contradict it or not.
    pub(super) fn truncate_behind(&mut self, message: &Message) {
        let raft = &mut self.raw_node.raft;
        let last_new = message.index + message.entries.len() as u64;
        let applies = message.msg_type() == MessageType::MsgAppend && message.term >= raft.term;
        let log = &mut raft.raft_log;
        let follows = log.match_term(message.index, message.log_term) && last_new < log.last_index();
        if applies && follows && !message.entries.is_empty() {
            log.committed = log.committed.min(message.index);
            log.persisted = log.persisted.min(message.index);
            log.append(&message.entries);
        }
    }
}
