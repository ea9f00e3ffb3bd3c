//! The rules that hold after every step of every scenario. A scenario can't write them away.

use super::cluster::Durable;
use super::words;
use balsa::group::effects::{Answer, Token};
use balsa::group::replica::MemberStatus;
use balsa::ids::{Digest, LogIndex};
use balsa::segments::Frame;
use raft::eraftpb::{Entry, Message, MessageType};
use std::collections::{BTreeMap, BTreeSet};

/// What all replicas of a cluster together have done so far.
#[derive(Default)]
pub struct Checks {
    leader_of_term: BTreeMap<u64, u64>,
    /// Content by (index, term).
    entries: BTreeMap<(u64, u64), Entry>,
    /// Term and chain by index: what was applied anywhere.
    applied: BTreeMap<u64, (u64, Digest)>,
    /// The last index each replica applied, since its last start.
    applied_by: BTreeMap<u64, u64>,
    term_of: BTreeMap<u64, u64>,
    /// What each replica's log holds, durable or not.
    logs: BTreeMap<u64, BTreeMap<u64, u64>>,
    answered: BTreeSet<Token>,
    acknowledged: u64,
    /// Reads under way: nothing acknowledged before them may be missing.
    reads: BTreeMap<Token, u64>,
    /// Commands that certainly did not happen.
    never: BTreeSet<String>,
    applied_commands: BTreeMap<String, u64>,
}

impl Checks {
    /// Election safety (Raft, 3.2), leader completeness (3.6.3), and terms that only ascend.
    pub fn role(&mut self, id: u64, term: u64, leads: bool) {
        let last = self.term_of.insert(id, term).unwrap_or(0);
        assert!(last <= term, "term of {id} went from {last} back to {term}");
        if !leads || self.leader_of_term.get(&term) == Some(&id) {
            return;
        }
        let other = self.leader_of_term.insert(term, id);
        assert_eq!(other, None, "two leaders in term {term}: {id} and {other:?}");
        let log = self.logs.entry(id).or_default();
        for (index, (committed, _)) in &self.applied {
            let held = log.get(index);
            assert!(
                held == Some(committed) || log.keys().next().is_none_or(|first| index < first),
                "leader {id} of term {term} has {held:?} at {index}, where term {committed} is committed"
            );
        }
    }

    /// Nothing that a follower acknowledged is sent to it again.
    pub fn progress(&self, members: &[MemberStatus]) {
        for member in members {
            assert!(member.next.is_none() || member.next > member.matched, "next is not beyond match: {member:?}");
        }
    }

    /// Where the group's log starts.
    pub fn genesis(&mut self, durable: &Durable) {
        self.applied.insert(durable.base.index.0, (durable.base.term.0, durable.base.chain));
    }

    /// A replica starts: it has what its disk has.
    pub fn started(&mut self, id: u64, durable: &Durable) {
        let log = durable.entries.iter().map(|entry| (entry.index, entry.term));
        self.logs.insert(id, log.chain([(durable.base.index.0, durable.base.term.0)]).collect());
        self.applied_by.insert(id, durable.base.index.0);
        self.term_of.insert(id, durable.hard_state.term); // a term that was not on disk was told to nobody
    }

    /// A replica holds entries, which replace those behind them.
    pub fn held(&mut self, id: u64, entries: &[Entry]) {
        let log = self.logs.entry(id).or_default();
        for entry in entries {
            log.split_off(&entry.index);
            log.insert(entry.index, entry.term);
        }
    }

    /// Log matching (Raft, 3.5): one content for each (index, term) that ever was on a disk or left a replica.
    pub fn exist(&mut self, entries: &[Entry]) {
        for entry in entries {
            let known = self.entries.entry((entry.index, entry.term)).or_insert_with(|| entry.clone());
            assert_eq!(known, entry, "two contents for entry {}/{}", entry.index, entry.term);
        }
    }

    /// A snapshot replaces the log.
    pub fn installed(&mut self, id: u64, index: LogIndex, chain: Digest, term: u64) {
        let (known_term, known_chain) = self.applied[&index.0];
        assert_eq!((known_term, known_chain), (term, chain), "snapshot at {index} on {id}");
        self.logs.insert(id, BTreeMap::from([(index.0, term)]));
        self.applied_by.insert(id, index.0);
    }

    /// State machine safety (Raft, 3.6.3): one entry for each applied index, applied without gaps, only once durable.
    pub fn applied(&mut self, id: u64, frame: &Frame, durable: &Durable, commands: &[String]) {
        let last = self.applied_by.insert(id, frame.index.0);
        assert_eq!(last.map(|last| last + 1), Some(frame.index.0), "{id} applied with a gap");
        let now = (frame.term.0, frame.chain);
        let known = *self.applied.entry(frame.index.0).or_insert(now);
        assert_eq!(known, now, "{id} applied something else at {}", frame.index);
        let held = durable.term_of(frame.index.0);
        assert_eq!(held, Some(frame.term.0), "{id} applied {} before it was durable there", frame.index);
        for command in commands {
            let first = *self.applied_commands.entry(command.clone()).or_insert(frame.index.0);
            assert_eq!(first, frame.index.0, "{command} was applied at two indexes");
            assert!(!self.never.contains(command), "{command} happened after \"did not happen\"");
        }
    }

    /// Promises leave only once they are durable, and nothing at all under a term that is not.
    pub fn leaves(&mut self, message: &Message, durable: &Durable) {
        if message.msg_type() == MessageType::MsgAppend {
            self.exist(&message.entries);
        }
        let pre_vote = matches!(
            message.msg_type(),
            MessageType::MsgRequestPreVote | MessageType::MsgRequestPreVoteResponse | MessageType::MsgReadIndex
        );
        let text = words::message(message);
        assert!(pre_vote || message.term <= durable.hard_state.term, "left under an unsynced term: {text}");
        match message.msg_type() {
            MessageType::MsgRequestVoteResponse if !message.reject => {
                let vote = (durable.hard_state.term, durable.hard_state.vote);
                assert!(vote.0 > message.term || vote == (message.term, message.to), "left before its vote: {text}");
            }
            MessageType::MsgAppendResponse if !message.reject => {
                assert!(message.index <= durable.last(), "left before its entries: {text}");
            }
            _ => {}
        }
    }

    /// A linearizable read was asked for.
    pub fn read_asked(&mut self, token: Token) {
        self.reads.insert(token, self.acknowledged);
    }

    /// One answer for each token; definite failures never happen; reads see all that was acknowledged before them.
    pub fn answered(&mut self, token: Token, answer: &Answer, label: &str) {
        assert!(self.answered.insert(token), "{label} was answered twice");
        match answer {
            Answer::Applied { index, .. } => self.acknowledged = self.acknowledged.max(index.0),
            Answer::ReadAt { index, .. } => {
                let floor = self.reads[&token];
                assert!(index.0 >= floor, "stale read: at {index}, but {floor} was acknowledged before");
            }
            Answer::Failed(error) if !error.may_have_happened() => {
                assert!(!self.applied_commands.contains_key(label), "{label} happened, but was denied");
                self.never.insert(label.to_owned());
            }
            Answer::Failed(_) => {}
        }
    }
}
