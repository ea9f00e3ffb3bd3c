//! One replica of one group: events go in, effects come out, nothing is awaited.
//!
//! Owns the Raft state, the log's newest entries, the state machine, and whoever waits for an outcome. Reads no file, no clock
//! and no socket: time comes as ticks, what lies on disk is asked for through effects. How a turn's effects come about
//! stands in `turn`.
//!
//! Invariants: an answer follows commit and apply; a message that promises durability leaves after [`Replica::persisted`];
//! while a term or vote of ours is unsynced no message leaves at all; nothing is applied twice or out of order.

use super::effects::{Answer, ProposeError, Token};
use super::elections::{Elections, Standing};
use super::inbound::{self, StepRefusal};
use super::log_time::{ClockTrust, LogTime};
use super::log_view::LogView;
use super::machine::StateMachine;
use super::membership;
pub use super::options::{ReplicaError, ReplicaOptions};
use super::proposals::Proposals;
use super::reads::Reads;
use super::sleep::{self, Sleep};
pub use super::status::{MemberStatus, ReplicaStatus, Role};
use super::terms::TermRuns;
use crate::ids::{Digest, LogIndex, ReplicaId, Term, TimestampMs};
use crate::journal::base::Base;
use crate::journal::RecoveredGroup;
use crate::limits::{COMMAND_BYTES_MAX, PROPOSALS_WAITING_MAX, READS_WAITING_MAX};
use crate::{planted, reached};
use bytes::Bytes;
use raft::eraftpb::{ConfState, Entry, Message, MessageType, Snapshot};
use raft::{RawNode, SnapshotStatus, StateRole, INVALID_ID};
use slog::{Drain, Logger};
use std::collections::{BTreeMap, VecDeque};

/// A snapshot on its way through Raft, with its state machine restored already: it must not fail once Raft took it.
pub(super) struct Incoming<S> {
    pub(super) base: Base,
    pub(super) machine: S,
}

/// What of our identity is on disk. Invariant: messages are held while `unsynced` is set.
pub(super) struct Identity {
    pub(super) term: u64,
    pub(super) vote: u64,
    /// The `Ready` that carries the newest term or vote, until it is persisted.
    pub(super) unsynced: Option<u64>,
}

/// See the module's text.
pub struct Replica<S: StateMachine> {
    pub(super) options: ReplicaOptions,
    pub(super) raw_node: RawNode<LogView>,
    pub(super) machine: S,
    /// What the log through the applied index amounts to; `state` is left empty.
    pub(super) applied: Base,
    pub(super) proposals: Proposals,
    /// Why a command of this turn was refused, if there was too much under way: so are all that follow in it.
    pub(super) full: Option<ProposeError>,
    pub(super) reads: Reads,
    pub(super) time: LogTime,
    pub(super) elections: Elections,
    pub(super) ticks: u64,
    pub(super) sleep: Sleep,
    pub(super) identity: Identity,
    /// The last `Ready` with entries or a snapshot, until it is persisted.
    pub(super) unsynced_log: Option<u64>,
    pub(super) incoming: Option<Incoming<S>>,
    /// `Ready` and index of a snapshot that was installed and is not persisted.
    pub(super) installing: Option<(u64, LogIndex)>,
    persisted: u64,
    pub(super) answers: Vec<(Token, Answer)>,
    pub(super) view_changed: bool,
    /// Its removal was applied. It goes on voting, see [`ReplicaStatus::settled`].
    pub(super) left: bool,
    pub(super) left_told: bool,
    /// Index of the last change of membership that was applied; the base if there was none since the start.
    pub(super) last_change: LogIndex,
    /// Commits in hard states that were written: effects and commit, until they are persisted.
    pub(super) commits_written: VecDeque<(u64, u64)>,
    /// The commit that a restart would find on disk.
    durable_commit: u64,
    /// The highest commit that an append has told of.
    pub(super) told_commit: u64,
    /// When an append last went to each member, in ticks; only while leading.
    pub(super) appended: BTreeMap<u64, u64>,
    pub(super) may_lead: bool,
    /// Still leading at this tick, a leader that should hand over just stops.
    pub(super) step_down_at: Option<u64>,
    /// The term led, and the leader known, when last looked.
    pub(super) led: Option<Term>,
    pub(super) leader: u64,
    /// When members were last heard; of followers only while leading.
    pub(super) heard: BTreeMap<u64, u64>,
    /// Since when a snapshot is on its way to a member.
    pub(super) snapshots_since: BTreeMap<u64, u64>,
    pub(super) log: Logger,
}

/// Where Raft itself logs: what it calls information is of interest to whoever debugs it, and to nobody else.
fn raft_log(log: &Logger) -> Logger {
    if log.is_debug_enabled() {
        return log.clone();
    }
    Logger::root(slog::LevelFilter::new(log.clone(), slog::Level::Warning).ignore_res(), slog::o!())
}

impl<S: StateMachine> Replica<S> {
    /// Brings a replica up from what the journal recovered and the terms of what the segments keep: runs of first index
    /// and term that end at the base, the first one starting right before the first kept entry.
    ///
    /// # Errors
    /// If what was recovered contradicts itself.
    pub fn new(
        options: ReplicaOptions,
        recovered: RecoveredGroup,
        kept_terms: Vec<(LogIndex, Term)>,
        log: Logger,
    ) -> Result<Replica<S>, ReplicaError> {
        let RecoveredGroup { base, mut hard_state, entries, .. } = recovered;
        let machine = S::restore(&base.state).map_err(|reason| ReplicaError::State { index: base.index, reason })?;
        let terms = TermRuns::kept(&kept_terms, base.index).ok_or(ReplicaError::Unusable("terms of kept entries"))?;
        if terms.term_of(base.index) != Some(base.term) || base.index == LogIndex::ZERO {
            return Err(ReplicaError::Unusable("base"));
        }
        if !membership::is_sound(&base.conf_state) {
            return Err(ReplicaError::Unusable("configuration"));
        }
        let last = check_entries(&base, &entries)?;
        // A base moves without the hard state: its index was committed, whatever that says.
        if !planted!("commit-index-regressing") {
            hard_state.commit = hard_state.commit.max(base.index.0);
        }
        if hard_state.commit > last.0 {
            return Err(ReplicaError::CommitBeyondLog { commit: LogIndex(hard_state.commit), last });
        }
        // A base is journaled together with the hard state of its term, or after it: no sound journal gives this.
        if hard_state.term < base.term.0 {
            (hard_state.term, hard_state.vote) = (base.term.0, INVALID_ID); // never voted in the base's term
        }
        if entries.last().is_some_and(|entry| entry.term > hard_state.term) {
            return Err(ReplicaError::Unusable("term: a vote may be lost"));
        }
        let identity = Identity { term: hard_state.term, vote: hard_state.vote, unsynced: None };
        let view = LogView::new(hard_state, base.conf_state.clone(), terms, entries, options.log_cache_bytes_max);
        let raw_node = RawNode::new(&options.raft_config(base.index), view, &raft_log(&log))
            .map_err(|error| ReplicaError::Raft(error.to_string()))?;
        let slack_ms = options.election_ticks as u64 * options.tick_ms;
        let mut elections = Elections::new(options.seed, options.election_ticks);
        if base.conf_state.voters == [options.id.0] && base.conf_state.voters_outgoing.is_empty() {
            elections.hurry(0, raw_node.raft.term); // there is nobody to wait for
        }
        Ok(Replica {
            reads: Reads::new(options.id, options.boot),
            time: LogTime::new(options.tick_ms, slack_ms, base.timestamp),
            elections,
            options,
            raw_node,
            machine,
            applied: Base { state: Bytes::new(), ..base },
            proposals: Proposals::default(),
            full: None,
            ticks: 0,
            sleep: Sleep::default(),
            identity,
            unsynced_log: None,
            incoming: None,
            installing: None,
            persisted: 0,
            answers: Vec::new(),
            view_changed: true,
            left: false,
            left_told: false,
            last_change: base.index,
            commits_written: VecDeque::new(),
            durable_commit: hard_state.commit,
            told_commit: hard_state.commit,
            appended: BTreeMap::new(),
            may_lead: true,
            step_down_at: None,
            led: None,
            leader: INVALID_ID,
            heard: BTreeMap::new(),
            snapshots_since: BTreeMap::new(),
            log,
        })
    }

    /// A tick has passed. `now` is the wall clock, used for stamping alone, and only if it can be trusted.
    pub fn tick(&mut self, now: TimestampMs, trust: impl Into<ClockTrust>) {
        self.ticks += 1;
        self.time.tick(now, trust.into());
        if self.is_asleep() {
            return;
        }
        let timer = self.elections.before_tick(self.standing());
        let raft = &mut self.raw_node.raft;
        raft.set_randomized_election_timeout(timer.timeout);
        raft.election_elapsed = timer.elapsed;
        match planted!("campaign-with-unapplied-change") {
            true => self.overlooking_unapplied(|node| node.tick()),
            false => self.raw_node.tick(),
        };
        if self.raw_node.raft.state != StateRole::Leader && self.raw_node.raft.election_elapsed == 0 {
            self.elections.campaigned();
        }
        self.note_role();
        if self.is_leader() {
            self.tick_leader();
        }
        self.tick_waiting();
        self.note_role();
        self.tick_idle();
    }

    /// Whether the wall clock can be trusted changed since the last tick; `now` is what it says.
    pub fn look_at_clock(&mut self, now: TimestampMs, trust: impl Into<ClockTrust>) {
        self.time.look(now, trust.into());
    }

    /// A message of a peer. Its sender was authenticated: `from` is a replica of the node at the other end.
    ///
    /// # Errors
    /// If no sound peer would send it to this replica now. Nothing happened then.
    pub fn step(&mut self, mut message: Message) -> Result<(), StepRefusal> {
        let kind = inbound::check(&self.raw_node.raft, &message)?;
        if self.sleeps_through(&message) {
            return Ok(());
        }
        if kind != MessageType::MsgHeartbeatResponse {
            self.wake();
        }
        let (leader, term, commit) = (message.from, message.term, message.commit);
        let sleeps = sleep::take_sleep(&mut message);
        if self.raw_node.raft.prs().get(message.from).is_some() {
            self.heard.insert(message.from, self.ticks);
        }
        match kind {
            MessageType::MsgSnapshot => self.step_snapshot(message)?,
            MessageType::MsgTimeoutNow if !self.may_campaign() => {
                reached!("transfer refused by one who may not campaign");
                return Err(StepRefusal::MayNotCampaign);
            }
            _ => {
                let Some(message) = inbound::mend(&self.raw_node.raft, message) else { return Ok(()) };
                if planted!("truncation-into-the-committed") {
                    self.truncate_behind(&message);
                }
                self.step_raft(message)?;
                let asked = matches!(kind, MessageType::MsgRequestVote | MessageType::MsgRequestPreVote);
                if planted!("timer-reset-by-refused-vote") && asked {
                    self.raw_node.raft.election_elapsed = 0;
                }
            }
        }
        self.note_role();
        if sleeps {
            self.follow_to_sleep(leader, term, commit);
        }
        Ok(())
    }

    /// A command for the state machine. Answered under `token`, in a later turn's effects.
    pub fn propose(&mut self, command: Bytes, token: Token) {
        self.wake();
        match self.refuse_proposal(&command) {
            Some(error) => {
                if error.is_overload() {
                    self.full.get_or_insert(error.clone());
                }
                self.answers.push((token, Answer::Failed(error)));
            }
            None => self.proposals.enqueue(command, token),
        }
    }

    /// A linearizable read: answered once all that was committed by now is applied here, on any replica.
    pub fn read_index(&mut self, token: Token) {
        self.wake();
        let waiting = self.reads.count();
        if self.left {
            self.answers.push((token, Answer::Failed(ProposeError::Removed)));
        } else if waiting >= READS_WAITING_MAX {
            let error = ProposeError::TooManyWaiting { waiting: waiting as u64, limit: READS_WAITING_MAX as u64 };
            self.answers.push((token, Answer::Failed(error)));
        } else {
            self.reads.enqueue(token, self.ticks);
        }
    }

    /// The write of the effects numbered `number`, and of all before them, is durable.
    ///
    /// # Panics
    /// If numbers come out of order: promises would be made too early.
    pub fn persisted(&mut self, number: u64) {
        assert!(number > self.persisted, "effects {number} persisted after {}", self.persisted);
        self.persisted = number;
        self.raw_node.on_persist_ready(number);
        let is_synced = |unsynced: &mut u64| *unsynced <= number;
        let _ = self.identity.unsynced.take_if(is_synced);
        let _ = self.unsynced_log.take_if(is_synced);
        while self.commits_written.front().is_some_and(|(written, _)| *written <= number) {
            self.durable_commit = self.commits_written.pop_front().map_or(self.durable_commit, |(_, commit)| commit);
        }
        if let Some((_, index)) = self.installing.take_if(|(ready, _)| *ready <= number) {
            self.raw_node.advance_apply_to(index.0);
        }
    }

    /// The log before `first` is gone from the segments.
    ///
    /// # Panics
    /// If an entry that is not applied would be gone.
    pub fn log_trimmed(&mut self, first: LogIndex) {
        self.raw_node.mut_store().trim_to(first);
    }

    /// Bounds the applied entries in memory anew.
    pub fn set_log_cache_bytes(&mut self, bytes: usize) {
        self.raw_node.mut_store().set_cache_bytes(bytes);
    }

    /// Entries that were asked for; none if they can't be had now.
    pub fn entries_fetched(&mut self, fetch: super::effects::Fetch, entries: Vec<Entry>) {
        let super::effects::Fetch::Entries { number, .. } = fetch else { return };
        for context in self.raw_node.mut_store().fetched(number, entries) {
            self.raw_node.on_entries_fetched(context);
        }
        self.raw_node.mut_store().forget_fetched();
    }

    /// Entries that were asked for can't be read. Whoever needs them stays behind until they can; everybody else is served.
    pub fn entries_unavailable(&mut self, fetch: super::effects::Fetch) {
        reached!("entries for a follower can't be read");
        self.entries_fetched(fetch, Vec::new());
    }

    /// The log's oldest base, which was asked for.
    pub fn base_fetched(&mut self, base: Base) {
        self.raw_node.mut_store().hold_base(&base);
    }

    /// The log's oldest base, which was asked for, can't be had now.
    pub fn base_unavailable(&mut self) {
        self.raw_node.mut_store().base_unavailable();
    }

    /// Messages to replica `to` could not be sent.
    pub fn report_unreachable(&mut self, to: ReplicaId) {
        self.raw_node.report_unreachable(to.0);
    }

    /// A snapshot to replica `to` was sent, or could not be.
    pub fn report_snapshot(&mut self, to: ReplicaId, sent: bool) {
        let status = if sent { SnapshotStatus::Finish } else { SnapshotStatus::Failure };
        self.raw_node.report_snapshot(to.0, status);
    }

    /// This node stops hosting the replica: what waits is answered now. The replica is to be dropped after it.
    pub fn abandon(&mut self) -> Vec<(Token, Answer)> {
        self.left = true;
        let mut answers = std::mem::take(&mut self.answers);
        self.proposals.abandon(&mut answers);
        self.reads.abandon(&mut answers);
        answers
    }

    /// What the log through the applied index amounts to, captured now.
    #[must_use]
    pub fn base(&self) -> Base {
        let mut base = Base { state: self.machine.snapshot(), ..self.applied.clone() };
        let in_term = |index| self.raw_node.raft.raft_log.match_term(index, self.applied.term.0);
        if planted!("applied-index-ahead-of-data") && in_term(base.index.0 + 1) {
            base.index.0 += 1;
        }
        if planted!("applied-index-behind-data") && in_term(base.index.0 - 1) {
            base.index.0 -= 1;
        }
        base
    }

    /// The state machine.
    #[must_use]
    pub fn machine(&self) -> &S {
        &self.machine
    }

    /// The chain after the applied index.
    #[must_use]
    pub fn chain(&self) -> Digest {
        self.applied.chain
    }

    /// Applied through this index.
    #[must_use]
    pub fn applied_index(&self) -> LogIndex {
        self.applied.index
    }

    /// The log's time at the applied index.
    #[must_use]
    pub fn timestamp(&self) -> TimestampMs {
        self.applied.timestamp
    }

    /// The configuration as applied.
    #[must_use]
    pub fn conf_state(&self) -> &ConfState {
        &self.applied.conf_state
    }

    /// The voters, in ascending order; of a joint configuration the incoming ones.
    #[must_use]
    pub fn voters(&self) -> Vec<ReplicaId> {
        let mut voters: Vec<ReplicaId> = self.applied.conf_state.voters.iter().map(|id| ReplicaId(*id)).collect();
        voters.sort_unstable();
        voters
    }

    /// Whether this replica leads.
    #[must_use]
    pub fn is_leader(&self) -> bool {
        self.raw_node.raft.state == StateRole::Leader
    }

    /// The newest commit written, durable or not.
    pub(super) fn written_commit(&self) -> u64 {
        self.commits_written.back().map_or(self.durable_commit, |(_, commit)| *commit)
    }

    /// The commit that a restart would find on disk.
    pub(super) fn durable_commit(&self) -> u64 {
        self.durable_commit
    }

    /// When a member was last heard, in ticks before now.
    pub(super) fn silent_ticks(&self, id: u64) -> Option<u64> {
        self.heard.get(&id).map(|heard| if self.is_asleep() { 0 } else { self.ticks - heard })
    }

    /// Whether a member was heard within an election timeout.
    pub(super) fn is_heard(&self, id: ReplicaId) -> bool {
        self.silent_ticks(id.0).is_some_and(|ticks| ticks <= self.options.election_ticks as u64)
    }

    pub(super) fn may_lead(&self) -> bool {
        self.may_lead
    }

    pub(super) fn leader_id(&self) -> Option<ReplicaId> {
        Some(ReplicaId(self.raw_node.raft.leader_id)).filter(|id| id.0 != INVALID_ID)
    }

    pub(super) fn not_leader(&self) -> ProposeError {
        ProposeError::NotLeader { leader: self.leader_id(), term: Term(self.raw_node.raft.term) }
    }

    /// Whether a campaign is allowed and can't harm: Raft aborts if a replica wins whose log is not durable, or looks for
    /// entries that an installed snapshot has replaced.
    fn may_campaign(&self) -> bool {
        let synced = self.unsynced_log.is_none() || planted!("campaign-with-unapplied-change");
        self.may_lead && synced && self.installing.is_none() && self.raw_node.snap().is_none()
    }

    fn standing(&self) -> Standing {
        let raft = &self.raw_node.raft;
        Standing {
            term: raft.term,
            role: raft.state,
            knows_leader: raft.leader_id != INVALID_ID,
            elapsed: raft.election_elapsed,
            may_campaign: self.may_campaign() && raft.raft_log.unstable_entries().is_empty(),
        }
    }

    fn refuse_proposal(&self, command: &Bytes) -> Option<ProposeError> {
        if self.left {
            return Some(ProposeError::Removed);
        }
        if command.len() > COMMAND_BYTES_MAX {
            let (bytes, limit) = (command.len() as u64, COMMAND_BYTES_MAX as u64);
            return Some(ProposeError::CommandTooLarge { bytes, limit });
        }
        if self.full.is_some() {
            return self.full.clone(); // in order or not at all
        }
        let waiting = self.proposals.count();
        if waiting >= PROPOSALS_WAITING_MAX {
            let (waiting, limit) = (waiting as u64, PROPOSALS_WAITING_MAX as u64);
            return Some(ProposeError::TooManyWaiting { waiting, limit });
        }
        if let Some(error) = self.refuse_leading() {
            return Some(error);
        }
        let bytes = self.raw_node.raft.uncommitted_size() as u64 + self.proposals.queued_bytes();
        let limit = self.options.uncommitted_bytes_max;
        let is_full = bytes > 0 && bytes + command.len() as u64 > limit;
        is_full.then(|| {
            reached!("too much uncommitted");
            ProposeError::UncommittedFull { bytes, limit }
        })
    }

    /// Why nothing can be proposed now, if so.
    pub(super) fn refuse_leading(&self) -> Option<ProposeError> {
        if !self.is_leader() {
            return Some(self.not_leader());
        }
        let to = self.raw_node.raft.lead_transferee?;
        Some(ProposeError::TransferUnderWay { to: ReplicaId(to) })
    }

    fn step_raft(&mut self, message: Message) -> Result<(), StepRefusal> {
        let from = ReplicaId(message.from);
        let stepped = match planted!("campaign-with-unapplied-change") {
            true => self.overlooking_unapplied(|node| node.step(message)),
            false => self.raw_node.step(message),
        };
        match stepped {
            Ok(()) | Err(raft::Error::ProposalDropped) => Ok(()),
            Err(raft::Error::StepPeerNotFound) => Err(StepRefusal::NotMember { from }),
            Err(_) => Err(StepRefusal::Malformed("raft refuses it")),
        }
    }

    /// A snapshot: decoded and restored before Raft takes it, since it can't be refused afterwards.
    fn step_snapshot(&mut self, mut message: Message) -> Result<(), StepRefusal> {
        let raft = &self.raw_node.raft;
        let snapshot = message.get_snapshot();
        let (index, term) = (snapshot.get_metadata().index, snapshot.get_metadata().term);
        let refuse = |reason: &str| StepRefusal::Snapshot { index, reason: reason.to_owned() };
        if message.term < raft.term || index <= raft.raft_log.committed {
            // Late: Raft answers it without looking inside, unless it contradicts what is committed.
            if index > 0 && index == raft.raft_log.committed && !raft.raft_log.match_term(index, term) {
                return Err(refuse("it contradicts what is committed"));
            }
            reached!("late snapshot");
            return self.step_raft(message);
        }
        let base = decode_snapshot(snapshot, self.options.id).map_err(refuse)?;
        if term > message.term {
            return Err(refuse("its term is beyond its sender's"));
        }
        let machine = S::restore(&base.state).map_err(|reason| StepRefusal::Snapshot { index, reason })?;
        message.mut_snapshot().mut_metadata().set_conf_state(base.conf_state.clone());
        self.step_raft(message)?;
        let taken = self.raw_node.snap().map(|snapshot| (snapshot.get_metadata().index, snapshot.get_metadata().term));
        if taken == Some((index, term)) {
            self.incoming = Some(Incoming { base, machine });
        }
        Ok(())
    }

    fn tick_waiting(&mut self) {
        let election_ticks = self.options.election_ticks as u64;
        let leader = self.leader_id();
        self.proposals.expire(self.ticks, 2 * election_ticks, self.led, leader, &mut self.answers);
        let (me, ticks, heard) = (self.options.id.0, self.ticks, &self.heard);
        let is_silent = |(id, heard): &(&u64, &u64)| **id != me && ticks - **heard >= election_ticks;
        let silent = || heard.iter().filter(is_silent).map(|(id, _)| ReplicaId(*id)).collect();
        let error = || ProposeError::NoQuorum { leader, silent: silent() };
        self.reads.expire(ticks, 2 * election_ticks, error, &mut self.answers);
    }
}

/// Entries must follow the base and each other; returns the last index.
fn check_entries(base: &Base, entries: &[Entry]) -> Result<LogIndex, ReplicaError> {
    let mut last = (base.index, base.term.0);
    for entry in entries {
        if entry.index != last.0 .0 + 1 {
            return Err(ReplicaError::Gap { after: last.0, found: LogIndex(entry.index) });
        }
        if entry.term < last.1 {
            return Err(ReplicaError::Unusable("terms of entries"));
        }
        last = (LogIndex(entry.index), entry.term);
    }
    Ok(last.0)
}

/// The base inside a snapshot, as replica `me` takes it up.
///
/// A snapshot is the log's oldest base, which may be older than the entry that made `me` a member; Raft ignores a snapshot
/// whose configuration lacks its receiver. So `me` takes itself for a learner meanwhile: it neither votes by its own
/// will nor counts, and the entry that really adds it follows.
fn decode_snapshot(snapshot: &Snapshot, me: ReplicaId) -> Result<Base, &'static str> {
    let mut base = Base::decode(snapshot.data.clone()).ok_or("it does not decode")?;
    let metadata = snapshot.get_metadata();
    if base.index.0 != metadata.index || base.term.0 != metadata.term || base.term == Term::ZERO {
        return Err("its inside and outside differ");
    }
    if base.conf_state != *metadata.get_conf_state() || !membership::is_sound(&base.conf_state) {
        return Err("configuration");
    }
    if !membership::is_member(&base.conf_state, me) {
        base.conf_state.learners.push(me.0);
    }
    Ok(base)
}
