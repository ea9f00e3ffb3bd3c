//! One hosted group, and the order in which its effects are performed: that of the driver.

use super::process::{Failure, Job, JobDone, Process};
use super::shared::{Event, Reply, Shared};
use crate::faults::Trigger;
use balsa::group::effects::{Effects, Fetch};
use balsa::group::machine::StateMachine;
use balsa::group::observe::Observed;
use balsa::group::replica::Replica;
use balsa::group::untold::COMMIT_UNTOLD;
use balsa::ids::{GroupId, LogIndex, Offset, ReplicaId};
use balsa::journal::base::Base;
use balsa::journal::GroupWrite;
use balsa::metadata::Machine;
use balsa::segments::{
    BaseLocated, DropJob, EntryKind, FlushDone, Located, LocatedEntries, ResetDone, Segments, SegmentsError,
};
use raft::eraftpb::{EntryType, Message};
use std::collections::{BTreeSet, VecDeque};

/// A `Ready` whose writes are not reported durable yet, or that stands behind such a one.
struct Pending {
    number: u64,
    round: Option<u64>,
    after_sync: Vec<Message>,
}

/// See the driver's own, field by field.
pub struct Hosted {
    pub id: ReplicaId,
    pub replica: Replica<Machine>,
    pub segments: Segments,
    pending: VecDeque<Pending>,
    unsynced_round: Option<u64>,
    pub held: Option<Box<Effects>>,
    moving_base: Option<Base>,
    moving_start: Offset,
    flushing: bool,
    base_wanted: bool,
    recorded_base: LogIndex,
    unsynced_bases: VecDeque<(u64, LogIndex, Offset)>,
    durable_start: Offset,
    reset_running: bool,
    resetting: Option<(Option<u64>, ResetDone)>,
    pub no_space: bool,
    /// The last term that it was seen to lead.
    led: u64,
    voted: (u64, u64),
}

impl Hosted {
    pub fn new(id: ReplicaId, replica: Replica<Machine>, segments: Segments) -> Hosted {
        Hosted {
            id,
            pending: VecDeque::new(),
            unsynced_round: None,
            held: None,
            moving_base: None,
            moving_start: Offset::ZERO,
            flushing: false,
            base_wanted: false,
            recorded_base: replica.applied_index(),
            unsynced_bases: VecDeque::new(),
            durable_start: replica.machine().log_start(),
            reset_running: false,
            resetting: None,
            no_space: false,
            led: 0,
            voted: (0, 0),
            replica,
            segments,
        }
    }

    /// The first offset that can be read.
    pub fn start(&self) -> Offset {
        self.segments.start_offset().max(self.replica.machine().log_start())
    }

    pub fn has_member_on(&self, node: u32) -> bool {
        self.members().any(|member| member.node().0 == node)
    }

    /// Whether all other members of this group live on these nodes.
    pub fn members_within(&self, nodes: &BTreeSet<u32>) -> bool {
        self.members().all(|member| member == self.id || nodes.contains(&member.node().0))
    }

    /// Whether files would go if the newest state were the durable base.
    pub fn trims(&self) -> bool {
        self.trimmed_bytes() > 0
    }

    /// The same, and whether that makes more room than the flush before it takes.
    pub fn trim_makes_room(&self) -> bool {
        self.trims() && self.trimmed_bytes() >= self.segments.unsynced_bytes()
    }

    fn trimmed_bytes(&self) -> u64 {
        self.segments.could_drop_before(self.replica.machine().log_start())
    }

    fn members(&self) -> impl Iterator<Item = ReplicaId> + '_ {
        let conf = self.replica.conf_state();
        let ids = [&conf.voters, &conf.voters_outgoing, &conf.learners, &conf.learners_next];
        ids.into_iter().flatten().map(|id| ReplicaId(*id))
    }

    pub fn begin_reset(&mut self, group: GroupId) -> Option<Job> {
        if self.held.is_none() || self.reset_running {
            return None;
        }
        let reset = self.segments.begin_reset()?;
        self.reset_running = true;
        Some(Box::pin(async move { JobDone::Reset { group, done: reset.run().await } }))
    }
}

/// Whether a write has nothing to be synced.
fn is_empty(write: &GroupWrite) -> bool {
    write.hard_state.is_none() && write.entries.is_empty() && write.base.is_none() && !write.removed
}

impl Process {
    pub fn perform_effects(&mut self, group: GroupId, shared: &mut Shared) {
        loop {
            let Some(hosted) = self.groups.get_mut(&group) else { return };
            if hosted.held.is_some() {
                break;
            }
            let Some(effects) = hosted.replica.take_effects() else { break };
            self.note(group, &effects, shared);
            let Some(hosted) = self.groups.get_mut(&group) else { return };
            if let Some(base) = effects.installed_base() {
                hosted.segments.reset(base.clone());
                hosted.held = Some(Box::new(effects));
                hosted.moving_base = None;
                let reset = hosted.begin_reset(group);
                reset.into_iter().for_each(|job| self.spawn(job));
                break;
            }
            let changed = effects.frames.iter().any(|frame| frame.kind == EntryKind::ConfChange);
            self.perform(group, effects, shared);
            let enters = |hosted: &Hosted| hosted.replica.is_leader() && hosted.replica.status().joint;
            if changed && self.groups.get(&group).is_some_and(enters) {
                shared.moment(Trigger::JointEntered, self.node);
            }
        }
        let told = self.groups.get(&group).and_then(|hosted| hosted.replica.commits_told());
        if told.is_some_and(|told| self.untold.note(group, told)) {
            let due = Event::CommitsDue { node: self.node, life: self.life };
            shared.after(COMMIT_UNTOLD.as_micros() as u64, due);
        }
        self.flush_if_worth_it(group, shared);
    }

    /// Tells the rules, and the moments that crashes are aimed at.
    fn note(&mut self, group: GroupId, effects: &Effects, shared: &mut Shared) {
        let Some(hosted) = self.groups.get_mut(&group) else { return };
        let (term, leads) = (hosted.replica.term(), hosted.replica.is_leader());
        let replica = &hosted.replica;
        shared.observe(
            self.node,
            group,
            &Observed::Taken { effects, term, leads, digest: &|| replica.machine().digest() },
        );
        let write = &effects.write;
        let last = write.entries.last().map_or(0, |entry| entry.index);
        let applied = effects.frames.last().map_or(0, |frame| frame.index.0);
        let hard_state = write.hard_state.unwrap_or_default();
        let numbers =
            [group.0, effects.number, term.0, u64::from(leads), last, applied, hard_state.term, hard_state.vote];
        shared.event(self.node, "effects", &numbers, || {
            let first = write.entries.first().map_or(0, |entry| entry.index);
            let state = write.hard_state.map(|state| format!(" {state:?}")).unwrap_or_default();
            let installed =
                effects.installed_base().map(|base| format!(" installs {}", base.index)).unwrap_or_default();
            let role = if leads { "leader" } else { "follower" };
            format!(
                "g{group} #{} {role} of term {term}: writes {first}..={last}{state}{installed}, applies to {applied}",
                effects.number
            )
        });
        if hard_state.vote != 0 && hosted.voted != (hard_state.term, hard_state.vote) {
            hosted.voted = (hard_state.term, hard_state.vote);
            shared.moment(Trigger::AfterVote, self.node);
        }
        if leads && hosted.led != term.0 && !write.entries.is_empty() {
            hosted.led = term.0;
            shared.moment(Trigger::FirstEntryOfTerm, self.node);
            shared.hasten(self.node, group);
            if hosted.replica.status().joint {
                shared.moment(Trigger::JointInherited, self.node);
            }
        }
        if write.entries.iter().any(|entry| entry.entry_type() != EntryType::EntryNormal) {
            shared.moment(Trigger::ConfigurationAppended, self.node);
        }
        if effects.installed {
            shared.moment(Trigger::SnapshotInstall, self.node);
        }
    }

    fn perform(&mut self, group: GroupId, effects: Effects, shared: &mut Shared) {
        let Some(hosted) = self.groups.get_mut(&group) else { return };
        if !is_empty(&effects.write) {
            hosted.unsynced_round = Some(self.round_number);
            self.awaiting_sync.entry(self.round_number).or_default().push(group);
            self.round.push(effects.write);
        }
        for message in effects.send_now {
            shared.observe(self.node, group, &Observed::Sent { message: &message });
            shared.send(self.node, group, message);
        }
        for frame in effects.frames {
            hosted.segments.append(frame);
        }
        if hosted.segments.wants_roll() {
            hosted.segments.roll(hosted.replica.base());
        }
        let pending =
            Pending { number: effects.number, round: hosted.unsynced_round, after_sync: effects.send_after_sync };
        hosted.pending.push_back(pending);
        for fetch in effects.fetch {
            self.fetch(group, fetch, shared);
        }
        for (token, answer) in effects.answers {
            self.answer(token, Reply::Told(answer), shared);
        }
        self.release(group, None, shared);
    }

    pub fn group_synced(&mut self, group: GroupId, through: u64, shared: &mut Shared) {
        self.release(group, Some(through), shared);
        let Some(hosted) = self.groups.get_mut(&group) else { return };
        while let Some((_, index, start)) = hosted.unsynced_bases.pop_front_if(|(round, ..)| *round <= through) {
            hosted.segments.base_moved(index);
            hosted.durable_start = start;
        }
        if hosted.resetting.as_ref().is_some_and(|(round, _)| *round <= Some(through)) {
            let done = hosted.resetting.take().map(|(_, done)| done);
            let dropped = done.and_then(|done| hosted.segments.finish_reset(done));
            self.drop_files(group, dropped);
        }
        self.trim(group);
    }

    fn release(&mut self, group: GroupId, through: Option<u64>, shared: &mut Shared) {
        let Some(hosted) = self.groups.get_mut(&group) else { return };
        if hosted.unsynced_round <= through {
            hosted.unsynced_round = None;
        }
        while let Some(pending) = hosted.pending.pop_front_if(|pending| pending.round <= through) {
            shared.observe(self.node, group, &Observed::Persisted { number: pending.number });
            for message in pending.after_sync {
                shared.observe(self.node, group, &Observed::Sent { message: &message });
                shared.send(self.node, group, message);
            }
            hosted.replica.persisted(pending.number);
            self.dirty.insert(group);
        }
    }

    fn trim(&mut self, group: GroupId) {
        let Some(hosted) = self.groups.get_mut(&group) else { return };
        let dropped = hosted.segments.drop_before(hosted.durable_start);
        if dropped.is_some() {
            hosted.replica.log_trimmed(hosted.segments.first_index());
        }
        self.drop_files(group, dropped);
    }

    fn drop_files(&mut self, group: GroupId, dropped: Option<DropJob>) {
        if let Some(job) = dropped {
            self.spawn(Box::pin(async move { JobDone::Dropped { group, done: job.run().await } }));
        }
    }

    fn fetch(&mut self, group: GroupId, fetch: Fetch, shared: &mut Shared) {
        let Some(hosted) = self.groups.get(&group) else { return };
        let job: Job = match fetch {
            Fetch::Base => match hosted.segments.oldest_base() {
                BaseLocated::Known(base) => Box::pin(async move { JobDone::FetchedBase { group, base: Ok(*base) } }),
                BaseLocated::Cold(read) => {
                    shared.trim_meanwhile(self.node, group, 2);
                    Box::pin(async move { JobDone::FetchedBase { group, base: read.run().await } })
                }
            },
            Fetch::Entries { lo, hi, bytes_max, .. } => match hosted.segments.entries(lo, hi, bytes_max) {
                LocatedEntries::Cached(entries) => {
                    Box::pin(async move { JobDone::FetchedEntries { group, fetch, entries: Ok(entries) } })
                }
                LocatedEntries::Compacted { .. } => {
                    Box::pin(async move { JobDone::FetchedEntries { group, fetch, entries: Ok(Vec::new()) } })
                }
                LocatedEntries::Cold(read) => {
                    shared.trim_meanwhile(self.node, group, 100);
                    Box::pin(async move { JobDone::FetchedEntries { group, fetch, entries: read.run().await } })
                }
            },
        };
        self.spawn(job);
    }

    /// Reads records, as a client would; held against the ledger when they are there.
    pub fn read(&mut self, group: GroupId, from: u64, bytes_max: usize, shared: &mut Shared) {
        let Some(hosted) = self.groups.get(&group) else { return };
        if Offset(from) < hosted.start() {
            return;
        }
        match hosted.segments.locate(Offset(from), bytes_max) {
            Located::Cached(batches) => self.was_read(group, from, Ok(batches), shared),
            Located::AtTail | Located::Trimmed { .. } => {}
            Located::Cold(read) => {
                self.spawn(Box::pin(async move { JobDone::Read { group, from, read: read.run().await } }));
                self.turn(shared);
            }
        }
    }

    fn was_read(
        &mut self,
        group: GroupId,
        from: u64,
        read: Result<Vec<balsa::segments::ReadBatch>, SegmentsError>,
        shared: &mut Shared,
    ) {
        match read {
            Ok(batches) => {
                if let Err((rule, what)) = shared.ledgers.entry(group).or_default().read(from, &batches) {
                    shared.broke(rule, &[self.node], format!("group {group} on node {}: {what}", self.node));
                }
            }
            Err(SegmentsError::Removed { .. }) => {}
            Err(error) if error.is_corruption() => self.rotten = true,
            Err(_) => {}
        }
    }

    fn flush_if_worth_it(&mut self, group: GroupId, shared: &mut Shared) {
        let Some(hosted) = self.groups.get(&group) else { return };
        let grown = hosted.segments.unsynced_bytes() >= shared.options.base_move_bytes;
        let trims = hosted.unsynced_bases.is_empty() && hosted.trims();
        let worth_it = hosted.base_wanted || trims || grown;
        if worth_it && !hosted.flushing && !hosted.no_space && hosted.replica.applied_index() > hosted.recorded_base {
            self.start_base_move(group, shared);
        }
    }

    pub fn start_base_move(&mut self, group: GroupId, shared: &mut Shared) {
        let Some(hosted) = self.groups.get_mut(&group) else { return };
        let nothing_new = hosted.replica.applied_index() <= hosted.recorded_base;
        if hosted.flushing || hosted.held.is_some() || hosted.resetting.is_some() || nothing_new {
            hosted.base_wanted = true;
            return;
        }
        if self.leaves_rest_to_journal && !hosted.trim_makes_room() {
            hosted.base_wanted = true;
            hosted.no_space = true;
            return;
        }
        hosted.base_wanted = false;
        hosted.moving_base = Some(hosted.replica.base());
        hosted.moving_start = hosted.replica.machine().log_start();
        match hosted.segments.begin_flush(true) {
            Some(job) => {
                hosted.flushing = true;
                self.spawn(Box::pin(async move { JobDone::Flushed { group, done: job.run().await } }));
            }
            None => self.record_base(group, shared),
        }
    }

    fn record_base(&mut self, group: GroupId, shared: &mut Shared) {
        let Some(hosted) = self.groups.get_mut(&group) else { return };
        let Some(base) = hosted.moving_base.take() else { return };
        hosted.recorded_base = base.index;
        let start = hosted.moving_start;
        hosted.unsynced_bases.push_back((self.round_number, base.index, start));
        self.awaiting_sync.entry(self.round_number).or_default().push(group);
        shared.event(self.node, "base", &[group.0, base.index.0], || format!("g{group} moves to {}", base.index));
        self.round.push(GroupWrite::of_base(group, base));
        shared.moment(Trigger::BaseMoved, self.node);
    }

    pub fn on_job(&mut self, done: JobDone, shared: &mut Shared) {
        match done {
            JobDone::Opened { group, id, base, opened } => self.hosted_opened(group, id, *base, opened, shared),
            JobDone::Flushed { group, done } => self.on_flushed(group, done, shared),
            JobDone::Dropped { group, done } => {
                if let (Err(error), true) = (done, self.groups.contains_key(&group)) {
                    self.fail(Failure::Segments(group, error));
                }
            }
            JobDone::Reset { group, done } => self.on_reset(group, done, shared),
            JobDone::FetchedEntries { group, fetch, entries } => {
                self.rotten |= entries.as_ref().is_err_and(SegmentsError::is_corruption);
                self.with_group(group, |hosted| match entries {
                    Ok(entries) => hosted.replica.entries_fetched(fetch, entries),
                    Err(_) => hosted.replica.entries_unavailable(fetch),
                });
            }
            JobDone::FetchedBase { group, base } => match base {
                Ok(base) => self.with_group(group, |hosted| hosted.replica.base_fetched(base)),
                Err(error) => {
                    self.rotten |= error.is_corruption();
                    self.with_group(group, |hosted| hosted.replica.base_unavailable());
                }
            },
            JobDone::Read { group, from, read } => self.was_read(group, from, read, shared),
            JobDone::Done => {}
        }
    }

    fn on_flushed(&mut self, group: GroupId, done: FlushDone, shared: &mut Shared) {
        let Some(hosted) = self.groups.get_mut(&group) else { return };
        hosted.flushing = false;
        match hosted.segments.finish_flush(done) {
            Ok(_) => {
                let reset = hosted.begin_reset(group);
                reset.into_iter().for_each(|job| self.spawn(job));
                self.record_base(group, shared);
                if self.groups.get(&group).is_some_and(|hosted| hosted.base_wanted) {
                    self.start_base_move(group, shared);
                }
            }
            Err(error) if error.is_no_space() => self.on_no_space(group),
            Err(error) => self.fail(Failure::Segments(group, error)),
        }
    }

    fn on_reset(&mut self, group: GroupId, done: Result<ResetDone, SegmentsError>, shared: &mut Shared) {
        let Some(hosted) = self.groups.get_mut(&group) else { return };
        match done {
            Ok(done) => {
                hosted.reset_running = false;
                let Some(effects) = hosted.held.take() else { return };
                hosted.resetting = Some((Some(self.round_number), done));
                hosted.recorded_base = hosted.replica.applied_index();
                hosted.durable_start = hosted.segments.start_offset();
                self.perform(group, *effects, shared);
                self.dirty.insert(group);
            }
            Err(error) if error.is_no_space() => self.on_no_space(group),
            Err(error) => self.fail(Failure::Segments(group, error)),
        }
    }

    fn on_no_space(&mut self, group: GroupId) {
        self.reserve_reached = true;
        self.with_group(group, |hosted| {
            hosted.no_space = true;
            hosted.reset_running = false;
            hosted.moving_base = None;
            hosted.base_wanted = true;
        });
    }

    fn with_group(&mut self, group: GroupId, act: impl FnOnce(&mut Hosted)) {
        if let Some(hosted) = self.groups.get_mut(&group) {
            act(hosted);
            self.dirty.insert(group);
        }
    }
}
