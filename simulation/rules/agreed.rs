//! What a group has agreed on: the committed prefix, the configurations, the leaders; and a state machine that applies the
//! prefix once, from the beginning, without a restart or a snapshot ever.

use super::kept::{digest_of, EntryMark};
use balsa::group::entry;
use balsa::group::machine::{Place, StateMachine};
use balsa::ids::{Digest, LogIndex, ReplicaId, Term, TimestampMs};
use balsa::journal::base::Base;
use balsa::metadata::Machine;
use balsa::segments::{EntryKind, Frame};
use prost::Message as _;
use raft::eraftpb::{ConfChangeType, ConfChangeV2, ConfState, EntryType};
use std::collections::BTreeMap;

/// A committed entry.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Committed {
    pub term: u64,
    pub digest: u64,
    pub chain: Digest,
    /// The term of whoever was first seen to apply it: it was committed in this one or before.
    pub seen_in: u64,
}

/// See the module's text.
pub struct Agreed {
    /// The founding base's index, and all after it.
    first: u64,
    committed: Vec<Committed>,
    /// The configuration after an index, ascending.
    configurations: Vec<(u64, ConfState)>,
    pub leaders: BTreeMap<u64, ReplicaId>,
    /// Digest and previous term of every entry that ever was written or sent, by (index, term).
    entries: BTreeMap<(u64, u64), (u64, u64)>,
    /// Whom each replica voted for in a term.
    pub votes: BTreeMap<(ReplicaId, u64), ReplicaId>,
    /// Digests of the state machine that replicas had at an index.
    digests: BTreeMap<u64, Digest>,
    reference: Option<Machine>,
    timestamp: TimestampMs,
    /// A leader was seen to send this commit, and it was found on a majority.
    pub commit_checked: u64,
}

impl Agreed {
    pub fn new(base: &Base) -> Agreed {
        let genesis = Committed { term: base.term.0, digest: 0, chain: base.chain, seen_in: base.term.0 };
        Agreed {
            first: base.index.0,
            committed: vec![genesis],
            configurations: vec![(base.index.0, base.conf_state.clone())],
            leaders: BTreeMap::new(),
            entries: BTreeMap::new(),
            votes: BTreeMap::new(),
            digests: BTreeMap::new(),
            reference: Machine::restore(&base.state).ok(),
            timestamp: base.timestamp,
            commit_checked: base.index.0,
        }
    }

    pub fn last(&self) -> u64 {
        self.first + self.committed.len() as u64 - 1
    }

    pub fn at(&self, index: u64) -> Option<&Committed> {
        self.committed.get(index.checked_sub(self.first)? as usize)
    }

    /// The committed entries after `index`, with their indexes.
    pub fn after(&self, index: u64) -> impl Iterator<Item = (u64, &Committed)> {
        let from = index.max(self.first) + 1;
        (from..).zip(&self.committed[((from - self.first) as usize).min(self.committed.len())..])
    }

    /// The configurations that may have counted for an entry: the one before it, and, since its leader may not have applied that one yet, the
    /// one before that.
    pub fn configurations_for(&self, index: u64) -> &[(u64, ConfState)] {
        let end = self.configurations.partition_point(|(after, _)| *after < index).max(1);
        &self.configurations[end.saturating_sub(2)..end]
    }

    pub fn configuration(&self) -> &ConfState {
        &self.configurations.last().expect("the founding one is there").1
    }

    /// One entry, and one before it, for each (index, term).
    ///
    /// # Errors
    /// What differs.
    pub fn exists(&mut self, index: u64, mark: EntryMark, previous: Option<u64>) -> Result<(), String> {
        let (term, digest) = mark;
        let known = self.entries.entry((index, term)).or_insert((digest, previous.unwrap_or(0)));
        if known.0 != digest {
            return Err(format!("there are two entries {index}/{term}"));
        }
        match previous {
            Some(previous) if known.1 == 0 => known.1 = previous,
            Some(previous) if known.1 != previous => {
                return Err(format!("entry {index}/{term} follows one of term {} and one of {previous}", known.1));
            }
            _ => {}
        }
        Ok(())
    }

    /// Nobody has, or ever saw, an entry of this term.
    pub fn forget(&mut self, term: u64) {
        self.entries.retain(|(_, of), _| *of != term);
    }

    /// Takes an applied entry up; true if nobody had applied it before.
    ///
    /// # Errors
    /// If another one stands there.
    pub fn apply(&mut self, frame: &Frame, seen_in: u64) -> Result<bool, String> {
        let index = frame.index.0;
        let kind = match frame.kind {
            EntryKind::Empty | EntryKind::Commands => EntryType::EntryNormal,
            EntryKind::ConfChange => EntryType::EntryConfChangeV2,
        };
        let digest = digest_of(kind.into(), &frame.data);
        let now = Committed { term: frame.term.0, digest, chain: frame.chain, seen_in };
        if let Some(known) = self.at(index) {
            if (known.term, known.digest) != (now.term, now.digest) {
                return Err(format!(
                    "entry {index} of term {} was committed; one of term {} is applied",
                    known.term, now.term
                ));
            }
            if known.chain != now.chain {
                return Err(format!("the chain at {index} is {:?}, and {:?} elsewhere", now.chain, known.chain));
            }
            return Ok(false);
        }
        if index != self.last() + 1 {
            return Err(format!("entry {index} is applied, but {} is the last that anybody applied", self.last()));
        }
        self.committed.push(now);
        self.advance(frame);
        Ok(true)
    }

    /// The reference applies an entry, and the configuration changes by it.
    fn advance(&mut self, frame: &Frame) {
        match frame.kind {
            EntryKind::Empty => {}
            EntryKind::ConfChange => {
                if let Ok(change) = ConfChangeV2::decode(frame.data.clone()) {
                    if let Ok(stamp) = <[u8; 8]>::try_from(&change.context[..]) {
                        self.timestamp = self.timestamp.max(TimestampMs(u64::from_le_bytes(stamp)));
                    }
                    if let Some(next) = changed(self.configuration(), &change) {
                        self.configurations.push((frame.index.0, next));
                    }
                }
            }
            EntryKind::Commands => {
                let (Some(machine), Some(payload)) = (&mut self.reference, entry::decode(&frame.data)) else { return };
                self.timestamp = self.timestamp.max(payload.timestamp);
                let place =
                    Place { index: LogIndex(frame.index.0), term: Term(frame.term.0), timestamp: self.timestamp };
                for command in payload.commands {
                    machine.apply(place, &command.bytes);
                }
            }
        }
    }

    /// The digest of the reference, if it stands at this index.
    pub fn reference_digest(&self, index: u64) -> Option<Digest> {
        if index != self.last() {
            return None;
        }
        self.reference.as_ref().map(StateMachine::digest)
    }

    pub fn knows_digest(&self, index: u64) -> bool {
        self.digests.contains_key(&index)
    }

    /// One state for each index.
    ///
    /// # Errors
    /// If it differs from what another replica had there.
    pub fn state(&mut self, index: u64, digest: Digest) -> Result<(), String> {
        let known = *self.digests.entry(index).or_insert(digest);
        if known != digest {
            return Err(format!("the state at {index} is {digest:?}, and {known:?} elsewhere"));
        }
        Ok(())
    }
}

/// The configuration that follows; `None` if the change is impossible and hence passed over (Ongaro 2014, 4.3, with learners).
fn changed(conf: &ConfState, change: &ConfChangeV2) -> Option<ConfState> {
    let mut next = conf.clone();
    let joint = !conf.voters_outgoing.is_empty();
    if change.changes.is_empty() {
        if !joint {
            return None;
        }
        next.voters_outgoing.clear();
        next.auto_leave = false;
        let learners = std::mem::take(&mut next.learners_next);
        next.learners.extend(learners);
        next.learners.sort_unstable();
        return Some(next);
    }
    if joint {
        return None;
    }
    if change.changes.len() > 1 {
        next.voters_outgoing = conf.voters.clone();
        next.auto_leave = true;
    }
    for step in &change.changes {
        let id = step.node_id;
        let outgoing = next.voters_outgoing.contains(&id);
        for ids in [&mut next.voters, &mut next.learners, &mut next.learners_next] {
            ids.retain(|other| *other != id);
        }
        match step.change_type() {
            ConfChangeType::AddNode => next.voters.push(id),
            ConfChangeType::AddLearnerNode if outgoing => next.learners_next.push(id),
            ConfChangeType::AddLearnerNode => next.learners.push(id),
            ConfChangeType::RemoveNode => {}
        }
    }
    for ids in [&mut next.voters, &mut next.learners, &mut next.learners_next] {
        ids.sort_unstable();
    }
    (!next.voters.is_empty()).then_some(next)
}
