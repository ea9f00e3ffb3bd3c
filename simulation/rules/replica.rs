//! One replica under the rules, and each kind of step held against them.

use super::campaigns::Campaigns;
use super::kept::{mark_of, Kept, Written};
use super::{Breach, Down, GroupModel};
use balsa::group::effects::Effects;
use balsa::group::sleep::asks_to_sleep;
use balsa::ids::{Digest, LogIndex, ReplicaId};
use balsa::journal::base::Base;
use balsa::journal::RecoveredGroup;
use bytes::Bytes;
use raft::eraftpb::{ConfState, EntryType, Message, MessageType};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// The state is looked at when the last applied index is a multiple of this, and wherever somebody else's is known.
const DIGEST_EVERY: u64 = 16;

/// A replica's past and present.
pub struct ReplicaModel {
    id: ReplicaId,
    /// What is certainly on disk.
    durable: Kept,
    /// What it holds, durable or not.
    live: Kept,
    under_way: VecDeque<Written>,
    /// Number of the last effects of this life.
    number: u64,
    applied: u64,
    /// The most it ever applied, in any life.
    applied_most: u64,
    /// Messages that may leave by now and did not.
    may_leave: usize,
    /// Something of it was reported durable since it was created.
    is_established: bool,
    is_damaged: bool,
    /// What it held is gone for good.
    pub is_lost: bool,
    /// The term it leads, with the commit it was elected with.
    leads: Option<(u64, u64)>,
    /// The last term that it led in this life.
    led: u64,
    /// Requests for a vote, by term and candidate: how far the candidate's log was, and its own.
    asked: BTreeMap<(u64, u64), (LogEnd, LogEnd)>,
    /// The highest commit that it told each follower as the leader of a term.
    commit_told: BTreeMap<u64, (u64, u64)>,
    /// The same as of the turn before.
    commit_told_before: BTreeMap<u64, (u64, u64)>,
    campaigns: Campaigns,
    /// Contexts under which it asked its leaders for reads, in any life.
    read_contexts: BTreeSet<Bytes>,
}

/// Last term and index of a log.
type LogEnd = (u64, u64);

impl ReplicaModel {
    fn new(id: ReplicaId, recovered: &RecoveredGroup) -> ReplicaModel {
        let kept = Kept::of(recovered);
        ReplicaModel {
            id,
            applied: kept.base.0,
            applied_most: kept.base.0,
            durable: kept.clone(),
            live: kept,
            under_way: VecDeque::new(),
            number: 0,
            may_leave: 0,
            is_established: false,
            is_damaged: false,
            is_lost: false,
            leads: None,
            led: 0,
            asked: BTreeMap::new(),
            commit_told: BTreeMap::new(),
            commit_told_before: BTreeMap::new(),
            campaigns: Campaigns::begin(&recovered.entries),
            read_contexts: BTreeSet::new(),
        }
    }

    /// Gives the term that it led, if its vote for that was not durable: whoever votes alone leads at once, and appends, though nothing of the
    /// term has left it. What it appended is forgotten with the vote, and it may lead that term again.
    pub fn went_down(&mut self, how: Down) -> Option<u64> {
        self.is_damaged |= how == Down::Damaged;
        self.leads = None;
        let led = std::mem::take(&mut self.led);
        let promised = (self.durable.hard_state.term, self.durable.hard_state.vote);
        (promised < (led, self.id.0)).then_some(led)
    }

    pub fn received(&mut self, message: &Message) {
        self.campaigns.received(message);
        if message.msg_type() == MessageType::MsgRequestVote {
            let (mine, theirs) = (self.log_end(), (message.log_term, message.index));
            self.asked.insert((message.term, message.from), (theirs, mine));
        }
    }

    fn log_end(&self) -> LogEnd {
        (self.live.last_term(), self.live.last())
    }

    /// A life begins with what is on disk.
    fn begin(&mut self, recovered: &RecoveredGroup) {
        let kept = Kept::of(recovered);
        self.applied = kept.base.0;
        self.durable = kept.clone();
        self.live = kept;
        self.under_way.clear();
        self.number = 0;
        self.may_leave = 0;
        self.leads = None;
        self.asked.clear();
        self.campaigns = Campaigns::begin(&recovered.entries);
        self.is_damaged = false;
    }

    fn promises_unsynced(&self) -> bool {
        let promise = |kept: &Kept| (kept.hard_state.term, kept.hard_state.vote);
        promise(&self.live) != promise(&self.durable)
    }

    /// Term, vote and commit go forward; what is written continues the log.
    fn write(&mut self, effects: &Effects) -> Result<(), Breach> {
        let written = Written::of(effects.number, &effects.write, effects.send_after_sync.len());
        if self.number != 0 && effects.number != self.number + 1 {
            return Err(("applied-gap", format!("effects {} follow {}", effects.number, self.number)));
        }
        self.number = effects.number;
        let applied = if effects.installed { 0 } else { self.applied };
        if !written.entries.is_empty() && written.first <= applied {
            return Err((
                "committed-changed",
                format!("entries from {} are written, {applied} is applied", written.first),
            ));
        }
        if self.leads.is_some() && !written.entries.is_empty() && written.first <= self.live.last() {
            let (first, last) = (written.first, self.live.last());
            return Err(("committed-changed", format!("a leader writes {first} again; its log ends at {last}")));
        }
        let before = self.live.hard_state;
        self.live.apply(&written).map_err(|what| ("applied-gap", what))?;
        let now = self.live.hard_state;
        let back = now.term < before.term || now.commit < before.commit;
        if back || (now.term == before.term && before.vote != 0 && now.vote != before.vote) {
            return Err(("promise-regressed", format!("hard state went from {before:?} to {now:?}")));
        }
        if now.commit > self.live.last() {
            return Err((
                "commit-unsafe",
                format!("commit {} is beyond the log's end {}", now.commit, self.live.last()),
            ));
        }
        self.under_way.push_back(written);
        Ok(())
    }

    fn persisted(&mut self, number: u64) -> Result<(), Breach> {
        while let Some(written) = self.under_way.pop_front_if(|written| written.number <= number) {
            self.may_leave += written.messages;
            self.is_established |= !written.is_empty();
            self.durable.apply(&written).map_err(|what| ("applied-gap", what))?;
        }
        Ok(())
    }

    /// What a message promises is on disk.
    fn check_promise(&self, message: &Message) -> Result<(), Breach> {
        let breach = |what: String| Err(("promise-before-sync", what));
        let (durable, kind) = (&self.durable, message.msg_type());
        let asks_only = matches!(
            kind,
            MessageType::MsgRequestPreVote | MessageType::MsgRequestPreVoteResponse | MessageType::MsgReadIndex
        );
        if !asks_only && message.term > durable.hard_state.term {
            let term = durable.hard_state.term;
            return breach(format!("{kind:?} of term {} leaves; term {term} is durable", message.term));
        }
        match kind {
            MessageType::MsgAppendResponse if !message.reject && message.index > durable.last() => {
                breach(format!("append through {} is acknowledged; {} is durable", message.index, durable.last()))
            }
            MessageType::MsgRequestVoteResponse if !message.reject => {
                let (term, vote) = (durable.hard_state.term, durable.hard_state.vote);
                if term > message.term || (term, vote) == (message.term, message.to) {
                    return Ok(());
                }
                breach(format!("vote for {} in term {} leaves; durable is {vote} in {term}", message.to, message.term))
            }
            MessageType::MsgRequestVote => {
                let (term, vote) = (durable.hard_state.term, durable.hard_state.vote);
                if term > message.term || (term, vote) == (message.term, self.id.0) {
                    return Ok(());
                }
                breach(format!("a candidate of term {} asks for votes; durable is {vote} in {term}", message.term))
            }
            _ => Ok(()),
        }
    }

    /// A vote goes to a log that is as far as the voter's (Raft, 3.6.1).
    fn check_candidate(&self, message: &Message) -> Result<(), Breach> {
        let Some((theirs, mine)) = self.asked.get(&(message.term, message.to)) else { return Ok(()) };
        // What came since then from the winner itself is not held against it.
        let still = self.log_end().min(*mine);
        if *theirs < still && self.live.last_term() < message.term {
            let what =
                format!("vote in term {} for a log through {theirs:?}; the voter's ends at {still:?}", message.term);
            return Err(("vote-for-outdated", what));
        }
        Ok(())
    }
}

impl GroupModel {
    pub(super) fn opened(
        &mut self,
        id: ReplicaId,
        recovered: &RecoveredGroup,
        created: bool,
        round_bytes_max: u64,
    ) -> Result<(), Breach> {
        self.agrees(&recovered.base, id)?;
        let Some(model) = self.replicas.get_mut(&id) else {
            self.replicas.insert(id, Box::new(ReplicaModel::new(id, recovered)));
            return Ok(());
        };
        if created && model.is_established {
            return Err((
                "durability-lost",
                format!("replica {id} starts as new; it held {}", model.durable.describe()),
            ));
        }
        let applied = LogIndex(model.applied_most);
        let intact = created
            || model.is_damaged
            || model.durable.may_become(&model.under_way, recovered, applied, round_bytes_max);
        if !intact {
            let found = Kept::of(recovered).describe();
            let what = format!(
                "replica {id} finds {found}; durable was {}, with {} writes under way, and it applied through {applied}",
                model.durable.describe(),
                model.under_way.len(),
            );
            return Err(("durability-lost", what));
        }
        model.begin(recovered);
        Ok(())
    }

    /// A base is where all have been, or will be.
    fn agrees(&mut self, base: &Base, id: ReplicaId) -> Result<(), Breach> {
        let index = base.index.0;
        let Some(committed) = self.agreed.at(index) else {
            return Err(("committed-changed", format!("replica {id} has a base at {index}; nobody applied that far")));
        };
        if (committed.term, committed.chain) != (base.term.0, base.chain) {
            let (term, chain) = (committed.term, committed.chain);
            let what = format!(
                "replica {id} has a base at {index} of term {} with chain {:?}; agreed are {term} and {chain:?}",
                base.term, base.chain
            );
            return Err(("committed-changed", what));
        }
        let digest = Digest(*blake3::hash(&base.state).as_bytes());
        self.agreed.state(index, digest).map_err(|what| ("state-differs", format!("base: {what}")))
    }

    pub(super) fn taken(
        &mut self,
        id: ReplicaId,
        effects: &Effects,
        term: u64,
        leads: bool,
        digest: &dyn Fn() -> Digest,
    ) -> Result<(), Breach> {
        let Some(mut model) = self.replicas.remove(&id) else { return Ok(()) };
        let result = self.taken_by(&mut model, effects, term, leads, digest);
        self.replicas.insert(id, model);
        result?;
        self.check_own_term(id)
    }

    fn taken_by(
        &mut self,
        model: &mut ReplicaModel,
        effects: &Effects,
        term: u64,
        leads: bool,
        digest: &dyn Fn() -> Digest,
    ) -> Result<(), Breach> {
        if model.leads.is_some_and(|(led, _)| !leads || led != term) {
            model.leads = None;
        }
        if model.commit_told_before != model.commit_told {
            model.commit_told_before.clone_from(&model.commit_told);
        }
        let is_durable = model.under_way.iter().all(|written| written.base.is_none() && written.entries.is_empty());
        model.campaigns.wrote(&effects.write.entries);
        let configurations = self.agreed.configurations_for(model.applied + 1);
        model.campaigns.check(model.id, effects, configurations, model.applied, is_durable)?;
        if effects.send_now.iter().any(asks_to_sleep) {
            self.check_sleep(model)?;
        }
        model.write(effects)?;
        if leads {
            self.check_change(model, effects, term)?;
        }
        if model.promises_unsynced() && !effects.send_now.is_empty() {
            let what = format!("{} messages leave at once; term or vote is not durable", effects.send_now.len());
            return Err(("promise-before-sync", what));
        }
        model.may_leave += effects.send_now.len();
        if term < model.live.hard_state.term {
            let what = format!("replica is in term {term}; it wrote {}", model.live.hard_state.term);
            return Err(("promise-regressed", what));
        }
        if let Some(base) = effects.installed_base() {
            self.agrees(base, model.id)?;
            model.applied = base.index.0;
        }
        self.check_entries(model, effects)?;
        if leads && model.leads.is_none() {
            self.elected(model, term)?;
        }
        self.apply(model, effects, term, digest)
    }

    fn check_entries(&mut self, model: &ReplicaModel, effects: &Effects) -> Result<(), Breach> {
        for entry in &effects.write.entries {
            let previous = model.live.term_of(entry.index - 1);
            self.agreed.exists(entry.index, mark_of(entry), previous).map_err(|what| ("log-matching", what))?;
        }
        Ok(())
    }

    /// Election safety (Raft, 3.2) and leader completeness (3.6.3).
    fn elected(&mut self, model: &mut ReplicaModel, term: u64) -> Result<(), Breach> {
        model.leads = Some((term, model.live.hard_state.commit));
        model.led = term;
        let leader = *self.agreed.leaders.entry(term).or_insert(model.id);
        if leader != model.id {
            return Err(("election-safety", format!("replica {} leads term {term}; so does {leader}", model.id)));
        }
        for (index, committed) in self.agreed.after(model.live.base.0) {
            if committed.seen_in < term && model.live.term_of(index) != Some(committed.term) {
                let held = model.live.term_of(index);
                let what = format!(
                    "leader {} of term {term} has {held:?} at {index}, where term {} is committed since term {}",
                    model.id, committed.term, committed.seen_in
                );
                return Err(("leader-incomplete", what));
            }
        }
        Ok(())
    }

    fn apply(
        &mut self,
        model: &mut ReplicaModel,
        effects: &Effects,
        term: u64,
        digest: &dyn Fn() -> Digest,
    ) -> Result<(), Breach> {
        for frame in &effects.frames {
            let index = frame.index.0;
            if index != model.applied + 1 {
                return Err(("applied-gap", format!("{index} is applied after {}", model.applied)));
            }
            if !model.durable.holds(index, frame.term.0) {
                let what =
                    format!("{index}/{} is applied; durable here is {:?}", frame.term, model.durable.term_of(index));
                return Err(("applied-gap", what));
            }
            model.applied = index;
            let is_new = self.agreed.apply(frame, term).map_err(|what| ("committed-changed", what))?;
            if is_new {
                self.check_majority(Some(model), index, frame.term.0)?;
                if index.is_multiple_of(DIGEST_EVERY) {
                    let reference = self.agreed.reference_digest(index);
                    reference
                        .map_or(Ok(()), |digest| self.agreed.state(index, digest))
                        .map_err(|what| ("state-differs", what))?;
                }
            }
        }
        model.applied_most = model.applied_most.max(model.applied);
        let last = model.applied;
        let worth_it = last.is_multiple_of(DIGEST_EVERY) || self.agreed.knows_digest(last);
        if !effects.frames.is_empty() && worth_it {
            self.agreed.state(last, digest()).map_err(|what| ("state-differs", what))?;
        }
        Ok(())
    }

    pub(super) fn can_spare(&self, node: u32) -> bool {
        let last = self.agreed.last();
        let Some(term) = self.agreed.at(last).map(|committed| committed.term) else { return false };
        let holds = |id: &&u64| {
            let replica = self.replicas.get(&ReplicaId(**id));
            let intact = replica.filter(|replica| !replica.is_lost && !replica.is_damaged);
            ReplicaId(**id).node().0 != node && intact.is_some_and(|replica| replica.durable.holds(last, term))
        };
        let majority = |ids: &[u64]| ids.iter().filter(holds).count() > ids.len() / 2;
        let conf = self.agreed.configuration();
        majority(&conf.voters) && (conf.voters_outgoing.is_empty() || majority(&conf.voters_outgoing))
    }

    /// What is applied lies on a majority's disks. `model` is the replica that is looked at, if it is not in its place now.
    fn check_majority(&self, model: Option<&ReplicaModel>, index: u64, term: u64) -> Result<(), Breach> {
        let holds = |id: &u64| {
            let id = ReplicaId(*id);
            let known = || self.replicas.get(&id).map(|known| &**known);
            let replica = model.filter(|model| model.id == id).or_else(known);
            replica.is_some_and(|replica| replica.durable.holds(index, term))
        };
        let majority = |ids: &[u64]| ids.iter().filter(|id| holds(id)).count() > ids.len() / 2;
        let enough = |conf: &ConfState| {
            majority(&conf.voters) && (conf.voters_outgoing.is_empty() || majority(&conf.voters_outgoing))
        };
        let configurations = self.agreed.configurations_for(index);
        if configurations.iter().any(|(_, conf)| enough(conf)) {
            return Ok(());
        }
        let conf = &configurations[configurations.len() - 1].1;
        let holders: Vec<String> = self
            .replicas
            .values()
            .map(|replica| &**replica)
            .chain(model)
            .filter(|replica| replica.durable.holds(index, term))
            .map(|replica| replica.id.to_string())
            .collect();
        let ids = |ids: &[u64]| ids.iter().map(|id| ReplicaId(*id).to_string()).collect::<Vec<_>>().join(" ");
        Err((
            "commit-unsafe",
            format!(
                "entry {index}/{term} is taken for committed; of voters [{}] and outgoing [{}] these have it on disk: {}",
                ids(&conf.voters),
                ids(&conf.voters_outgoing),
                holders.join(" ")
            ),
        ))
    }

    /// A leader that commits more than it was elected with has an entry of its own term on a majority's disks (Raft, 5.4.2).
    fn check_own_term(&mut self, id: ReplicaId) -> Result<(), Breach> {
        let Some(model) = self.replicas.get(&id) else { return Ok(()) };
        let Some((term, elected_with)) = model.leads else { return Ok(()) };
        if model.applied <= elected_with || elected_with == u64::MAX {
            return Ok(());
        }
        let own = (model.live.base.0 + 1..=model.live.last())
            .rev()
            .take_while(|index| model.live.term_of(*index) == Some(term));
        let Some(first) = own.last() else {
            let what = format!("leader of term {term} commits {}, and has no entry of its own", model.applied);
            return Err(("commit-unsafe", what));
        };
        self.check_majority(None, first.max(model.applied.min(model.live.last())), term)
            .or_else(|_| self.check_majority(None, first, term))?;
        if let Some(model) = self.replicas.get_mut(&id) {
            model.leads = Some((term, u64::MAX)); // once is enough
        }
        Ok(())
    }

    pub(super) fn persisted(&mut self, id: ReplicaId, number: u64) -> Result<(), Breach> {
        self.replicas.get_mut(&id).map_or(Ok(()), |model| model.persisted(number))
    }

    pub(super) fn sent(&mut self, id: ReplicaId, message: &Message) -> Result<(), Breach> {
        let Some(model) = self.replicas.get_mut(&id) else { return Ok(()) };
        if model.may_leave == 0 {
            return Err(("promise-before-sync", format!("{:?} leaves; none may by now", message.msg_type())));
        }
        model.may_leave -= 1;
        model.check_promise(message)?;
        let kind = message.msg_type();
        if kind == MessageType::MsgRequestVoteResponse && !message.reject {
            model.check_candidate(message)?;
            return self.votes(id, message.term, ReplicaId(message.to));
        }
        if kind == MessageType::MsgRequestVote {
            return self.votes(id, message.term, id);
        }
        if kind == MessageType::MsgAppend {
            return self.sent_append(id, message);
        }
        if kind == MessageType::MsgReadIndex {
            let context = message.entries.first().map(|entry| entry.data.clone()).unwrap_or_default();
            if !model.read_contexts.insert(context.clone()) {
                return Err(("context-reused", format!("a read is asked for as {context:x}, as an earlier one was")));
            }
        }
        Ok(())
    }

    /// A leader changes the membership only after it has committed an entry of its own term (Ongaro, raft-dev, July 2015): such an entry lies
    /// durably on a majority by then.
    fn check_change(&self, model: &ReplicaModel, effects: &Effects, term: u64) -> Result<(), Breach> {
        let is_change = |entry: &&raft::eraftpb::Entry| entry.entry_type() != EntryType::EntryNormal;
        let Some(change) = effects.write.entries.iter().find(is_change).filter(|change| change.term == term) else {
            return Ok(());
        };
        let own = (model.live.base.0 + 1..change.index).rev();
        let first = own.take_while(|index| model.live.term_of(*index) == Some(term)).last();
        let committed = first.is_some_and(|first| self.check_majority(Some(model), first, term).is_ok());
        if committed || model.live.base.1 == term {
            return Ok(());
        }
        let what = format!(
            "leader of term {term} changes the membership at {}; nothing of its term is committed",
            change.index
        );
        Err(("change-before-commit", what))
    }

    /// A group is sent to sleep only when all of its members have all there is: nobody would bring the others the rest. `model` is the
    /// leader as it was before this turn's writes, which may come of what woke it again.
    fn check_sleep(&self, model: &ReplicaModel) -> Result<(), Breach> {
        let (last, term) = (model.live.last(), model.live.last_term());
        let conf = self.agreed.configuration();
        let lacks = |id: &&u64| {
            let replica = self.replicas.get(&ReplicaId(**id));
            let counts = |replica: &&Box<ReplicaModel>| !replica.is_lost && !replica.is_damaged;
            replica.filter(counts).is_some_and(|replica| !replica.durable.holds(last, term))
        };
        let Some(lacking) = conf.voters.iter().chain(&conf.learners).find(lacks) else { return Ok(()) };
        let what = format!("the group is sent to sleep behind {last}/{term}, which {} lacks", ReplicaId(*lacking));
        Err(("sleep-unmatched", what))
    }

    fn votes(&mut self, id: ReplicaId, term: u64, candidate: ReplicaId) -> Result<(), Breach> {
        let first = *self.agreed.votes.entry((id, term)).or_insert(candidate);
        if first != candidate {
            let what = format!("replica {id} votes for {candidate} in term {term}; it voted for {first}");
            return Err(("promise-regressed", what));
        }
        Ok(())
    }

    fn sent_append(&mut self, id: ReplicaId, message: &Message) -> Result<(), Breach> {
        let mut previous = message.log_term;
        for (entry, index) in message.entries.iter().zip(message.index + 1..) {
            if entry.index != index {
                let what = format!("replica {id} sends entry {} in the place of {index}", entry.index);
                return Err(("log-matching", what));
            }
            let known = Some(previous).filter(|term| *term > 0);
            self.agreed.exists(entry.index, mark_of(entry), known).map_err(|what| ("log-matching", what))?;
            previous = entry.term;
        }
        let Some(model) = self.replicas.get_mut(&id) else { return Ok(()) };
        let (term, commit) = (message.term, message.commit);
        // To each follower by itself, and from turn to turn: within one, Raft adds to messages that it has put together already, and
        // what it adds brings the first of them the newest commit.
        let told = model.commit_told_before.get(&message.to).copied().unwrap_or_default();
        if told.0 == term && commit < told.1 && model.leads.is_some() {
            let what = format!("leader of term {term} tells {:x} commit {commit} after {}", message.to, told.1);
            return Err(("promise-regressed", what));
        }
        let highest = model.commit_told.entry(message.to).or_default();
        *highest = (*highest).max((term, commit));
        if commit <= self.agreed.last() || commit <= self.agreed.commit_checked {
            return Ok(());
        }
        let Some(held) = model.live.term_of(commit) else {
            let what = format!("commit {commit} is told; the leader's log ends at {}", model.live.last());
            return Err(("commit-unsafe", what));
        };
        self.check_majority(None, commit, held)?;
        self.agreed.commit_checked = commit;
        Ok(())
    }
}
