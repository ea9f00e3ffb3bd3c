//! When a replica may stand for election, judged the moment it asks for votes.
//!
//! It asks a majority first whether they would vote for it (Ongaro 2014, 9.6), unless its leader told it to campaign at once; and it has
//! applied every change of membership that it knows to be committed, or it would count by a configuration that is over (etcd #7280, #12133).

use super::Breach;
use balsa::group::effects::Effects;
use balsa::ids::ReplicaId;
use raft::eraftpb::{ConfState, Entry, EntryType, Message, MessageType};
use std::collections::{BTreeMap, BTreeSet};

/// What a replica was told that lets it campaign, and the changes of membership in its log.
#[derive(Default)]
pub struct Campaigns {
    /// Who said that it would vote for this replica, by term.
    promised: BTreeMap<u64, BTreeSet<u64>>,
    /// The term in which its leader told it to campaign at once.
    called: u64,
    /// Where changes of membership lie in its log.
    changes: BTreeSet<u64>,
}

impl Campaigns {
    /// A life begins with these entries.
    pub fn begin(entries: &[Entry]) -> Campaigns {
        let mut campaigns = Campaigns::default();
        campaigns.wrote(entries);
        campaigns
    }

    /// Entries became part of the log; the first one replaces all from there on.
    pub fn wrote(&mut self, entries: &[Entry]) {
        let Some(first) = entries.first() else { return };
        self.changes.split_off(&first.index);
        let changes = entries.iter().filter(|entry| entry.entry_type() != EntryType::EntryNormal);
        self.changes.extend(changes.map(|entry| entry.index));
    }

    pub fn received(&mut self, message: &Message) {
        match message.msg_type() {
            MessageType::MsgRequestPreVoteResponse if !message.reject => {
                self.promised.entry(message.term).or_default().insert(message.from);
            }
            MessageType::MsgTimeoutNow => self.called = self.called.max(message.term + 1),
            _ => {}
        }
    }

    /// The requests for votes among what is about to leave. `configurations` are those that the replica may count by, `applied` is where it
    /// stood when it asked, `is_durable` whether all that it held before was on its disk.
    pub fn check(
        &mut self,
        id: ReplicaId,
        effects: &Effects,
        configurations: &[(u64, ConfState)],
        applied: u64,
        is_durable: bool,
    ) -> Result<(), Breach> {
        let messages = effects.send_now.iter().chain(&effects.send_after_sync);
        let asks = |message: &&Message| {
            matches!(message.msg_type(), MessageType::MsgRequestVote | MessageType::MsgRequestPreVote)
        };
        let Some(request) = messages.into_iter().find(asks) else { return Ok(()) };
        let (term, commit) = (request.term, request.commit);
        if !is_durable {
            let what = format!("replica {id} campaigns for term {term} while its log is not durable");
            return Err(("campaign-unready", what));
        }
        if let Some(change) = self.changes.range(applied + 1..(commit + 1).max(applied + 1)).next() {
            let what = format!(
                "replica {id} campaigns for term {term}; {commit} is committed, with a change of membership at {change}, and it \
                 has applied {applied}"
            );
            return Err(("campaign-unready", what));
        }
        if request.msg_type() == MessageType::MsgRequestPreVote || self.called == term {
            return Ok(());
        }
        // Raft 0.7 counts late answers too, to what it asked before it last raised its term.
        self.promised = self.promised.split_off(&term.saturating_sub(1));
        let promised: BTreeSet<u64> = self.promised.values().flatten().copied().collect();
        let majority = |ids: &[u64]| {
            ids.is_empty() || ids.iter().filter(|one| **one == id.0 || promised.contains(one)).count() > ids.len() / 2
        };
        if configurations.iter().any(|(_, conf)| majority(&conf.voters) && majority(&conf.voters_outgoing)) {
            return Ok(());
        }
        let what =
            format!("replica {id} asks for votes in term {term}; {promised:x?} said that they would give theirs");
        Err(("vote-unannounced", what))
    }
}
