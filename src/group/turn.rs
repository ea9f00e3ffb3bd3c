//! One turn of a replica: everything that happened since the last becomes one set of effects.
//!
//! The order inside a turn is the one `raft` 0.7 needs under asynchronous persistence. New entries are held by the log view before
//! `advance_append_async`, where Raft drops its own copy; a snapshot is installed before that, too. Entries are applied
//! only when they are committed *and* durable here (Raft sees to it), so that no base ever covers what this disk does not hold.

use super::effects::{Answer, Effects, ProposeError, Token};
use super::entry;
use super::machine::{Place, StateMachine};
use super::membership::{self, ChangeRefusal, MemberChange, Situation};
use super::proposals::{AppliedEntry, Batch};
use super::replica::Replica;
use crate::batch;
use crate::ids::{LogIndex, ReplicaId, Term, TimestampMs};
use crate::journal::GroupWrite;
use crate::segments::verdict::{Refusal, Verdict};
use crate::segments::{EntryKind, Frame, Item};
use crate::{planted, reached};
use bytes::Bytes;
use prost::Message as _;
use raft::eraftpb::{ConfChangeType, ConfChangeV2, Entry, EntryType, Message, MessageType};
use raft::{ProgressState, Ready, StateRole, Storage, INVALID_ID};
use slog::{info, warn};

/// Ticks after which an unanswered read is asked for again.
const READ_RETRY_TICKS: u64 = 4;

impl<S: StateMachine> Replica<S> {
    /// Turns all that happened since the last call into effects; performs none of them. To be called until there are no more.
    pub fn take_effects(&mut self) -> Option<Effects> {
        if planted!("prior-term-committed-by-counting") {
            self.commit_by_counting();
        }
        if planted!("uncommitted-records-visible") {
            self.commit_alone();
        }
        self.propose_queued();
        self.full = None;
        self.ask_reads();
        let told = self.view_changed || !self.answers.is_empty() || self.raw_node.store().wants();
        if !told && !self.raw_node.has_ready() {
            return None;
        }
        let mut ready = self.raw_node.ready();
        let mut effects = Effects { number: ready.number(), ..Effects::default() };
        for read in ready.take_read_states() {
            self.reads.confirmed(&read.request_ctx, LogIndex(read.index));
        }
        self.hold(&mut ready, &mut effects);
        self.sort_messages(&mut ready, &mut effects);
        let committed = ready.take_committed_entries();
        self.raw_node.advance_append_async(ready);
        self.apply(committed, &mut effects);
        self.note_role();
        self.answer(&mut effects);
        Some(effects)
    }

    /// Proposes a change of membership, answered under `token` once it is applied; one of several voters is then half way
    /// and completes by itself.
    pub fn change_members(&mut self, changes: &[MemberChange], token: Token) {
        self.wake();
        if let Err(error) = self.propose_change(changes, token) {
            self.answers.push((token, Answer::Failed(error)));
        }
    }

    fn propose_change(&mut self, changes: &[MemberChange], token: Token) -> Result<(), ProposeError> {
        if let Some(error) = self.refuse_leading() {
            return Err(error);
        }
        let raft = &self.raw_node.raft;
        let last = raft.raft_log.last_index();
        let is_heard = |id: ReplicaId| id == self.options.id || self.is_heard(id);
        let lag_of = |id: ReplicaId| {
            let progress = raft.prs().get(id.0).filter(|_| is_heard(id))?;
            // Raft leaves a member alone that could not be reached for a moment and has all there is: it goes on being probed until something is
            // appended, which may take for ever.
            let follows = progress.state == ProgressState::Replicate || progress.matched == last;
            follows.then(|| last - progress.matched.min(last))
        };
        let situation = Situation {
            conf: &self.applied.conf_state,
            term_committed: raft.commit_to_current_term(),
            change_pending: raft.has_pending_conf(),
            members_max: self.options.members_max,
            is_heard: &is_heard,
            lag_of: &lag_of,
        };
        membership::check(changes, &situation)?;
        let me = self.options.id;
        if changes.contains(&MemberChange::Remove(me)) || changes.contains(&MemberChange::Demote(me)) {
            // A leader that is removed goes on leading (seen); so it hands over first, to one that stays.
            let leaves = |id: &ReplicaId| changes.iter().any(|change| change.replica() == *id);
            let to = self.best_successor_but(leaves).ok_or(ChangeRefusal::NoVoter)?;
            reached!("leader moves before its own removal");
            self.raw_node.transfer_leader(to.0);
            return Err(ChangeRefusal::LeaderMovesFirst { to }.into());
        }
        let stamp = self.time.stamp().0.to_le_bytes().to_vec();
        let change = membership::to_raft(changes, stamp);
        self.propose_entry(EntryType::EntryConfChangeV2, change.encode_to_vec().into())?;
        self.wait_for_last(vec![token]);
        Ok(())
    }

    /// A leader that finds itself in a joint configuration nobody leaves (its predecessor lost leadership between the two entries) leaves it.
    pub(super) fn leave_joint(&mut self) {
        let raft = &self.raw_node.raft;
        let stuck = membership::is_joint(&self.applied.conf_state) && !raft.has_pending_conf();
        if stuck && raft.commit_to_current_term() && raft.lead_transferee.is_none() {
            reached!("joint configuration left by a later leader");
            let _ = self.propose_entry(EntryType::EntryConfChangeV2, Bytes::new());
            // tried again with the next tick
        }
    }

    fn propose_queued(&mut self) {
        while self.proposals.has_queued() {
            if self.is_leader() && self.raw_node.raft.uncommitted_size() as u64 >= self.options.pipeline_bytes {
                reached!("commands wait for their turn");
                return; // the next commit makes room, or the loss of leadership refuses them
            }
            let refusal = self.refuse_leading().or_else(|| self.propose_batch().err());
            if let Some(error) = refusal {
                // All that follows too: a producer's commands are admitted in order or not at all.
                self.proposals.refuse_queued(&error, &mut self.answers);
            }
        }
    }

    fn propose_batch(&mut self) -> Result<(), ProposeError> {
        let Some(Batch { commands, tokens }) = self.proposals.next_batch() else { return Ok(()) };
        let data = entry::encode(self.time.stamp(), commands.iter());
        match self.propose_entry(EntryType::EntryNormal, data) {
            Ok(()) => self.wait_for_last(tokens),
            Err(error) => {
                self.answers.extend(tokens.into_iter().map(|token| (token, Answer::Failed(error.clone()))));
                return Err(error);
            }
        }
        Ok(())
    }

    /// Appends an entry at this leader.
    fn propose_entry(&mut self, kind: EntryType, data: Bytes) -> Result<(), ProposeError> {
        let entry = Entry { entry_type: kind.into(), data, ..Entry::default() };
        let mut message = Message { from: self.options.id.0, entries: vec![entry], ..Message::default() };
        message.set_msg_type(MessageType::MsgPropose);
        let pending = self.raw_node.raft.pending_conf_index;
        if self.raw_node.raft.step(message).is_err() {
            // Raft 0.7 takes a change for pending before it finds that there is no room for it, until something else is appended.
            self.raw_node.raft.pending_conf_index = pending;
            let bytes = self.raw_node.raft.uncommitted_size() as u64;
            let limit = self.options.uncommitted_bytes_max;
            return Err(self.refuse_leading().unwrap_or(ProposeError::UncommittedFull { bytes, limit }));
        }
        let appended = self.raw_node.raft.raft_log.unstable_entries().last();
        if appended.is_none_or(|entry| entry.entry_type() != kind) {
            return Err(ChangeRefusal::UnderWay.into()); // Raft put an empty entry in its place
        }
        Ok(())
    }

    fn wait_for_last(&mut self, tokens: Vec<Token>) {
        let raft = &self.raw_node.raft;
        let (index, term) = (LogIndex(raft.raft_log.last_index()), Term(raft.term));
        self.proposals.wait(index, term, tokens, self.ticks);
    }

    /// Asks the leader for the index of the reads that came, and again for those that got no answer.
    fn ask_reads(&mut self) {
        let raft = &self.raw_node.raft;
        let hasty = planted!("read-index-before-term-commit") && !raft.commit_to_current_term();
        let alone = raft.state == StateRole::Leader && (hasty || planted!("deposed-leader-answers-locally"));
        let heard = match raft.state {
            StateRole::Leader => raft.commit_to_current_term() || alone,
            StateRole::Follower => raft.leader_id != raft::INVALID_ID,
            StateRole::Candidate | StateRole::PreCandidate => false,
        };
        if !heard {
            return;
        }
        let mut contexts = self.reads.ask_again(self.ticks, READ_RETRY_TICKS);
        contexts.extend(self.reads.ask_queued(self.ticks));
        for context in contexts {
            match alone {
                true => self.reads.confirmed(&context, LogIndex(self.raw_node.raft.raft_log.committed)),
                false => self.raw_node.read_index(context),
            }
        }
    }

    /// What is to become durable: a snapshot, entries, term and vote. The log view holds the entries from here on.
    fn hold(&mut self, ready: &mut Ready, effects: &mut Effects) {
        effects.write = GroupWrite { group: self.options.group, ..GroupWrite::default() };
        if !ready.snapshot().is_empty() {
            self.install(ready, effects);
        }
        effects.write.entries = ready.take_entries();
        self.raw_node.mut_store().hold(&effects.write.entries);
        if !effects.write.entries.is_empty() || effects.installed {
            self.unsynced_log = Some(effects.number);
        }
        let mut hard_state = self.raw_node.raft.hard_state();
        let vote_follows = planted!("term-and-vote-in-two-writes") && hard_state.term != self.identity.term;
        if vote_follows {
            hard_state.vote = INVALID_ID;
        }
        if hard_state.term != self.identity.term || hard_state.vote != self.identity.vote {
            self.identity.term = hard_state.term;
            self.identity.vote = hard_state.vote;
            self.identity.unsynced = Some(effects.number);
            self.view_changed = true;
        }
        // A commit that moved alone is not worth a write, it is found out again after a restart; except past a change of
        // membership, where nobody may be left to find it out from (see `ReplicaStatus::settled`).
        let (written, commit) = (self.written_commit(), hard_state.commit);
        let past_change = commit > written && self.raw_node.mut_store().has_change_within(written, commit);
        if past_change {
            reached!("commit written because of a change of membership");
        }
        if planted!("vote-not-persisted") {
            hard_state.vote = INVALID_ID;
        }
        if ready.must_sync() || past_change || planted!("term-and-vote-in-two-writes") {
            self.commits_written.push_back((effects.number, commit));
            effects.write.hard_state = Some(hard_state);
        }
    }

    fn install(&mut self, ready: &Ready, effects: &mut Effects) {
        let incoming = self.incoming.take();
        let Some(incoming) = incoming.filter(|incoming| incoming.base.index.0 == ready.snapshot().get_metadata().index)
        else {
            panic!("raft took a snapshot that was not restored first");
        };
        let base = incoming.base;
        reached!("snapshot installed");
        info!(self.log, "snapshot installed"; "index" => base.index.0, "applied" => self.applied.index.0);
        self.machine = incoming.machine;
        self.raw_node.mut_store().install(base.index, base.term);
        self.time.saw(base.timestamp);
        self.installing = Some((effects.number, base.index));
        self.last_change = base.index;
        self.proposals.covered(base.index, self.leader_id(), &mut self.answers);
        self.applied = crate::journal::base::Base { state: Bytes::new(), ..base.clone() };
        self.view_changed = true;
        effects.write.base = Some(Box::new(base));
        effects.installed = true;
    }

    /// Votes and append responses promise durability, so they wait for the sync; a leader's own appends may overlap its disk write
    /// (Ongaro 2014, 10.2.1). While our term or vote is itself unsynced nothing leaves: a crash could let us live the same
    /// term twice.
    fn sort_messages(&mut self, ready: &mut Ready, effects: &mut Effects) {
        let bytes_max = self.options.message_bytes_max;
        let (mut promises, mut messages) = (ready.take_persisted_messages(), ready.take_messages());
        if !planted!("append-merged-behind-a-rejection") {
            // Of a leader that stepped down in this turn Raft counts its last appends among the promises.
            promises.retain_mut(|message| self.mend_append(message));
            messages.retain_mut(|message| self.mend_append(message));
        }
        effects.send_after_sync = sendable(promises, bytes_max);
        messages.retain(|message| self.is_due(message));
        let mut messages = sendable(messages, bytes_max);
        let appends = messages.iter().filter(|message| message.msg_type() == MessageType::MsgAppend);
        self.told_commit = appends.map(|append| append.commit).fold(self.told_commit, u64::max);
        if [planted!("commit-beyond-last-index"), planted!("commit-beyond-the-matched")].contains(&true) {
            self.unclamp_commits(&mut messages);
        }
        match self.identity.unsynced {
            Some(_) => effects.send_after_sync.extend(messages),
            None => effects.send_now = messages,
        }
        if planted!("vote-before-sync") {
            effects.hurry(MessageType::MsgRequestVoteResponse);
        }
        if planted!("append-response-before-sync") {
            effects.hurry(MessageType::MsgAppendResponse);
        }
        if planted!("message-before-vote-synced") {
            effects.hurry(MessageType::MsgRequestVote);
        }
    }

    /// Raft 0.7 adds entries to an append to the same follower that waits to be sent, and looks only at the entries in it: to an empty one it
    /// adds any. If the follower's rejection came between the two, the append names an entry before it that is not the one before
    /// its entries. Sound followers refuse such a one, and would wait for the next. False if it can't be sent at all.
    fn mend_append(&self, message: &mut Message) -> bool {
        let Some(first) = message.entries.first().map(|entry| entry.index) else { return true };
        if message.msg_type() != MessageType::MsgAppend || first == message.index + 1 {
            return true;
        }
        reached!("append merged behind a rejection mended");
        let Ok(term) = self.raw_node.store().term(first - 1) else { return false };
        (message.index, message.log_term) = (first - 1, term);
        true
    }

    /// A heartbeat to a member that was sent an append since the tick before, and was heard since, says nothing new: that the leader lives, the append
    /// said. With many busy groups half of all messages would be heartbeats and their answers. One that is silent may not get its appends: it is full,
    /// or they are dropped on the way.
    fn is_due(&mut self, message: &Message) -> bool {
        match message.msg_type() {
            MessageType::MsgAppend => {
                self.appended.insert(message.to, self.ticks);
                true
            }
            MessageType::MsgHeartbeat if message.context.is_empty() => {
                let appended = self.appended.get(&message.to).copied().filter(|since| since + 1 >= self.ticks);
                let is_due = appended.is_none() || self.heard.get(&message.to).copied() < appended;
                if !is_due {
                    reached!("heartbeat left out behind an append");
                }
                is_due
            }
            _ => true,
        }
    }

    fn apply(&mut self, committed: Vec<Entry>, effects: &mut Effects) {
        let Some(last) = committed.last().map(|entry| entry.index) else { return };
        effects.frames.reserve(committed.len());
        for entry in committed {
            self.apply_entry(entry, effects);
        }
        self.view_changed = true;
        self.raw_node.advance_apply_to(last);
        self.raw_node.mut_store().applied_to(LogIndex(last));
    }

    fn apply_entry(&mut self, entry: Entry, effects: &mut Effects) {
        let (index, term) = (LogIndex(entry.index), Term(entry.term));
        assert!(index == self.applied.index.next(), "entry {index} is to be applied after {}", self.applied.index);
        let first_offset = self.machine.tail();
        let (mut items, mut verdicts) = (Vec::new(), Vec::new());
        let kind = match entry.entry_type() {
            EntryType::EntryNormal if entry.data.is_empty() => EntryKind::Empty,
            EntryType::EntryNormal => {
                items = self.apply_commands(index, term, &entry.data);
                verdicts.extend(items.iter().map(|item: &Item| item.verdict));
                EntryKind::Commands
            }
            EntryType::EntryConfChange | EntryType::EntryConfChangeV2 => {
                verdicts.push(self.apply_change(index, &entry.data));
                EntryKind::ConfChange
            }
        };
        self.time.saw(self.applied.timestamp);
        self.applied.index = index;
        self.applied.term = term;
        self.applied.tail = self.machine.tail();
        self.applied.chain =
            batch::chain_next(self.applied.chain, index, term, first_offset, batch::digest(&entry.data));
        let (timestamp, chain) = (self.applied.timestamp, self.applied.chain);
        let applied = AppliedEntry { index, term, timestamp, chain, verdicts: &verdicts };
        self.proposals.applied(applied, &mut self.answers);
        effects.frames.push(Frame { index, term, kind, timestamp, chain, items, data: entry.data });
    }

    fn apply_commands(&mut self, index: LogIndex, term: Term, data: &Bytes) -> Vec<Item> {
        let Some(payload) = entry::decode(data) else {
            // No leader proposes such; should one lie in the log all the same, every replica passes over it alike.
            warn!(self.log, "entry is no payload, passed over"; "index" => index.0);
            return Vec::new();
        };
        self.applied.timestamp = self.applied.timestamp.max(payload.timestamp);
        let mut place = Place { index, term, timestamp: self.applied.timestamp };
        if planted!("session-expiry-by-local-clock") {
            place.timestamp = self.time.local();
        }
        if planted!("dedup-table-only-in-leaders-memory") && !self.is_leader() {
            place.term = Term::ZERO;
        }
        let mut items = Vec::with_capacity(payload.commands.len());
        for command in payload.commands {
            let applied = self.machine.apply(place, &command.bytes);
            items.push(Item { verdict: applied.verdict, batch_at: applied.batch_at.map(|at| command.at + at) });
        }
        items
    }

    /// A change that Raft finds impossible is refused alike on every replica: the configuration it starts from is agreed.
    fn apply_change(&mut self, index: LogIndex, data: &Bytes) -> Verdict {
        let refused = Verdict::Refused(Refusal::Conflict { wanted: index.0, actual: 0 });
        let Ok(change) = ConfChangeV2::decode(data.clone()) else { return refused };
        if let Ok(stamp) = <[u8; 8]>::try_from(&change.context[..]) {
            let stamp = TimestampMs(u64::from_le_bytes(stamp));
            self.applied.timestamp = self.applied.timestamp.max(stamp);
        }
        let me = self.options.id;
        let was_member = membership::is_member(&self.applied.conf_state, me);
        let removes = change.changes.iter().any(|step| step.change_type() == ConfChangeType::RemoveNode);
        match self.raw_node.apply_conf_change(&change) {
            Ok(_) if planted!("removal-left-out-of-base") && removes => {}
            Ok(conf_state) => self.applied.conf_state = sorted(conf_state),
            Err(error) => {
                // Leaders propose what is possible alone, one change at a time: no sound leader gets here.
                warn!(self.log, "change of membership refused"; "index" => index.0, "reason" => %error);
                return refused;
            }
        }
        if membership::is_joint(&self.applied.conf_state) {
            reached!("joint configuration entered");
        }
        self.last_change = index;
        let is_member = membership::is_member(&self.applied.conf_state, me);
        if was_member && !is_member {
            reached!("replica learns of its own removal");
            info!(self.log, "removed from the group"; "index" => index.0);
        }
        self.left = (self.left || was_member) && !is_member;
        self.stop_leading_unless_voter();
        Verdict::Done { value: index.0, extra: 0 }
    }

    /// A leader whose removal or demotion was proposed by the leader before it stops at once: Raft 0.7 lets it go on leading, and
    /// aborts when the next of its entries becomes durable. Its best successor need not wait for a timeout.
    fn stop_leading_unless_voter(&mut self) {
        let conf = &self.applied.conf_state;
        let votes = |ids: &[u64]| ids.contains(&self.options.id.0);
        if !self.is_leader() || votes(&conf.voters) || votes(&conf.voters_outgoing) {
            return;
        }
        reached!("leader removed by its predecessor's change");
        if let Some(successor) = self.best_successor() {
            self.raw_node.raft.send_timeout_now(successor.0);
        }
        self.step_down();
    }

    fn answer(&mut self, effects: &mut Effects) {
        self.reads.applied(self.applied.index, self.machine.tail(), &mut self.answers);
        effects.fetch = self.raw_node.mut_store().take_wanted();
        effects.view_changed = std::mem::take(&mut self.view_changed);
        effects.left = self.left && !self.left_told;
        self.left_told = self.left;
        effects.answers = if self.left { self.abandon() } else { std::mem::take(&mut self.answers) };
    }
}

/// Raft gives its sets in the order of hash maps; equal configurations should be equal bytes.
fn sorted(mut conf: raft::eraftpb::ConfState) -> raft::eraftpb::ConfState {
    for ids in [&mut conf.voters, &mut conf.learners, &mut conf.voters_outgoing, &mut conf.learners_next] {
        ids.sort_unstable();
    }
    conf
}

/// Raft merges appends to one follower without regard to size; this splits them again. Most turns have nothing to split: their
/// messages go out as they came.
fn sendable(messages: Vec<Message>, bytes_max: u64) -> Vec<Message> {
    if !messages.iter().any(|message| is_oversized(message, bytes_max)) {
        return messages;
    }
    reached!("append split for its size");
    let mut parts = Vec::with_capacity(messages.len() + 1);
    for message in messages {
        if is_oversized(&message, bytes_max) {
            split_append(message, bytes_max, &mut parts);
        } else {
            parts.push(message);
        }
    }
    parts
}

fn is_oversized(message: &Message, bytes_max: u64) -> bool {
    let bytes = || message.entries.iter().map(|entry| entry.data.len() as u64).sum::<u64>();
    message.msg_type() == MessageType::MsgAppend && bytes() > bytes_max
}

/// Splits an append into appends that follow each other; each holds at least one entry and, if it holds several, at most `bytes_max`.
fn split_append(mut message: Message, bytes_max: u64, parts: &mut Vec<Message>) {
    let entries = std::mem::take(&mut message.entries);
    let (mut part, mut part_bytes) = (message.clone(), 0);
    for entry in entries {
        part_bytes += entry.data.len() as u64;
        if let Some(before) = part.entries.last().filter(|_| part_bytes > bytes_max) {
            part_bytes = entry.data.len() as u64;
            let next = Message { index: before.index, log_term: before.term, ..message.clone() };
            parts.push(std::mem::replace(&mut part, next));
        }
        part.entries.push(entry);
    }
    parts.push(part);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn append(entries_bytes: &[usize]) -> Message {
        let entry =
            |(index, bytes): (u64, &usize)| Entry { index, term: 2, data: vec![0; *bytes].into(), ..Entry::default() };
        let entries = (8..).zip(entries_bytes).map(entry).collect();
        let mut message = Message { index: 7, log_term: 1, commit: 5, entries, ..Message::default() };
        message.set_msg_type(MessageType::MsgAppend);
        message
    }

    #[test]
    fn messages_within_the_bound_go_out_as_they_came() {
        let messages = vec![append(&[60, 40]), append(&[]), append(&[100])];
        let (place, expected) = (messages.as_ptr(), messages.clone());
        let sent = sendable(messages, 100);
        assert_eq!((sent.as_ptr(), &sent), (place, &expected), "nothing was copied");
    }

    #[test]
    fn an_oversized_append_leaves_in_parts_that_follow_each_other_between_its_neighbours() {
        let sent = sendable(vec![append(&[1]), append(&[60, 60, 40, 300, 1]), append(&[2])], 100);
        let told = |message: &Message| {
            let indexes: Vec<u64> = message.entries.iter().map(|entry| entry.index).collect();
            (message.index, message.log_term, message.commit, indexes)
        };
        let told: Vec<_> = sent.iter().map(told).collect();
        let expected = [
            (7, 1, 5, vec![8]),
            (7, 1, 5, vec![8]),
            (8, 2, 5, vec![9, 10]),
            (10, 2, 5, vec![11]),
            (11, 2, 5, vec![12]),
            (7, 1, 5, vec![8]),
        ];
        assert_eq!(told, expected);
    }
}
