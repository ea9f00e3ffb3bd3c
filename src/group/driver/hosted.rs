//! One hosted group: its replica, its segments, and what of its effects is still under way.

use super::handle::GroupView;
use super::jobs::{self, JobDone};
use super::{Driver, DriverError, Led, TailPoint, OPENED_AT_ONCE};
use crate::group::effects::{Effects, Fetch};
use crate::group::machine::StateMachine;
use crate::group::observe::Observed;
use crate::group::replica::Replica;
use crate::ids::{GroupId, LogIndex, NodeId, Offset, ReplicaId, Term};
use crate::journal::base::Base;
use crate::journal::{GroupWrite, RecoveredGroup};
use crate::limits::BASE_MOVE_BYTES;
use crate::peers::wire::GroupMessage;
use crate::segments::{DropJob, FlushDone, ResetDone, Segments, SegmentsError, SegmentsOptions};
use crate::watch;
use crate::{planted, reached};
use futures::StreamExt;
use raft::eraftpb::{HardState, Message};
use slog::{info, warn};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use tokio::sync::mpsc::UnboundedSender;

/// A `Ready` whose writes are not reported durable yet, or that stands behind such a one.
struct Pending {
    number: u64,
    /// The last round that holds a write of this group, as of this `Ready`; nothing to wait for if there was none.
    round: Option<u64>,
    after_sync: Vec<Message>,
}

/// One hosted group. See the module's text.
pub(super) struct Hosted<S: StateMachine> {
    pub id: ReplicaId,
    pub replica: Replica<S>,
    pub segments: Segments,
    pub published: watch::Sender<GroupView<S::View>>,
    /// Invariant: numbers ascend, rounds never descend.
    pending: VecDeque<Pending>,
    /// The last round that holds a write of this group and is not reported synced.
    unsynced_round: Option<u64>,
    /// Effects that wait until the segments start anew behind an installed snapshot.
    held: Option<Box<Effects>>,
    /// The base to record once the flush under way is synced.
    moving_base: Option<Base>,
    /// The log's agreed start as of it.
    moving_start: Offset,
    flushing: bool,
    /// A base move was asked for while a flush was under way.
    base_wanted: bool,
    /// Index of the last base handed to the journal.
    recorded_base: LogIndex,
    /// Bases handed to the journal: round, index, and the log's agreed start as of it.
    unsynced_bases: VecDeque<(u64, LogIndex, Offset)>,
    /// The log's agreed start as of the last durable base. Files are dropped by this one: after a crash the log starts there.
    durable_start: Offset,
    /// The job that starts the segments anew is under way.
    reset_running: bool,
    /// The segments start anew; the older ones go once this round is durable.
    resetting: Option<(Option<u64>, ResetDone)>,
    /// The file system had no room at the last flush.
    no_space: bool,
    led_told: Term,
}

impl<S: StateMachine> Hosted<S> {
    fn new(id: ReplicaId, replica: Replica<S>, segments: Segments) -> Hosted<S> {
        let published = watch::Sender::new(view_of(id, &replica, &segments));
        Hosted {
            id,
            published,
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
            led_told: Term::ZERO,
            replica,
            segments,
        }
    }

    /// Puts an installed snapshot's first segment in place, if one waits for that and nothing stands in its way.
    fn begin_reset(&mut self, group: GroupId, jobs: &UnboundedSender<JobDone>) {
        if self.held.is_none() || self.reset_running {
            return;
        }
        let Some(reset) = self.segments.begin_reset() else { return };
        self.reset_running = true;
        jobs::spawn(jobs.clone(), async move { JobDone::Reset { group, done: reset.run().await } });
    }

    /// The first offset that can be read: what was agreed to go is gone, even while its file is still there.
    pub fn start(&self) -> Offset {
        self.segments.start_offset().max(self.replica.machine().log_start())
    }

    /// Whether a majority of this group's voters lies on other nodes than these.
    pub fn majority_outside(&self, nodes: &[NodeId]) -> bool {
        let voters = self.replica.voters();
        let outside = voters.iter().filter(|voter| !nodes.contains(&voter.node())).count();
        outside > voters.len() / 2
    }

    /// Whether a member of this group lives on that node.
    pub fn has_member_on(&self, node: NodeId) -> bool {
        self.members().any(|member| member.node() == node)
    }

    /// Whether all other members of this group live on these nodes.
    pub fn members_within(&self, nodes: &BTreeSet<NodeId>) -> bool {
        self.members().all(|member| member == self.id || nodes.contains(&member.node()))
    }

    /// Whether files would go if the newest state were the durable base.
    fn trims(&self) -> bool {
        self.trimmed_bytes() > 0
    }

    /// The same, and whether that makes more room than the flush before it takes.
    fn trim_makes_room(&self) -> bool {
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

    /// Where the log ends, as applied here.
    pub fn tail_point(&self) -> TailPoint {
        TailPoint { start: self.start(), tail: self.segments.tail(), chain: self.replica.chain() }
    }

    fn publish(&self) {
        self.published.send_replace(view_of(self.id, &self.replica, &self.segments));
    }
}

fn view_of<S: StateMachine>(id: ReplicaId, replica: &Replica<S>, segments: &Segments) -> GroupView<S::View> {
    GroupView {
        role: replica.role(),
        id,
        leader: replica.leader(),
        term: replica.term(),
        start: segments.start_offset().max(replica.machine().log_start()),
        tail: segments.tail(),
        chain: replica.chain(),
        voters: replica.voters(),
        machine: replica.machine().view(),
    }
}

impl<S: StateMachine> Driver<S> {
    /// Brings up groups as the journal recovered them.
    pub(super) async fn recover(&mut self, groups: BTreeMap<GroupId, RecoveredGroup>) -> Result<(), DriverError> {
        let opening = groups.into_iter().map(|(group, state)| {
            let (disk, dir, options) = (self.disk.clone(), self.group_dir(group), self.segments_options(group));
            async move {
                let opened = Segments::open(disk, dir, options, &state.base).await;
                (group, state, opened)
            }
        });
        let opening: Vec<_> = opening.collect();
        let mut opened = futures::stream::iter(opening).buffered(OPENED_AT_ONCE);
        while let Some((group, state, segments)) = opened.next().await {
            let segments = segments.map_err(|source| DriverError::Segments { group, source })?;
            let report = segments.open_report();
            if !report.removed.is_empty() || report.cut.is_some() || !report.rebuilt.is_empty() {
                info!(self.log, "segments opened"; "group" => %group, "report" => ?report);
            }
            self.bring_up(group, ReplicaId::founding(self.options.node), state, segments, false)?;
        }
        Ok(())
    }

    fn segments_options(&self, group: GroupId) -> SegmentsOptions {
        SegmentsOptions { group, ..self.options.segments }
    }

    fn bring_up(
        &mut self,
        group: GroupId,
        id: ReplicaId,
        state: RecoveredGroup,
        segments: Segments,
        created: bool,
    ) -> Result<(), DriverError> {
        let options = self.replica_options(group, id);
        let base_index = state.base.index;
        self.options.tell(group, Observed::Opened { replica: id, recovered: &state, created });
        let replica = Replica::<S>::new(options, state, segments.term_runs(), self.group_log(group))
            .map_err(|reason| DriverError::Recovery { group, reason: reason.to_string() })?;
        let (start, agreed) = (segments.start_offset(), replica.machine().log_start());
        if !segments.starts_log() && start > agreed {
            // A file that is gone looks like a trim; but what was not agreed on was not trimmed.
            let reason = format!(
                "its segments start at offset {start}, but the log starts at {agreed} as of index {base_index}: older segment \
                 files are missing; put them back"
            );
            return Err(DriverError::Recovery { group, reason });
        }
        let mut hosted = Hosted::new(id, replica, segments);
        if self.retired || self.stopping {
            hosted.replica.set_may_lead(false);
        }
        self.groups.insert(group, Box::new(hosted));
        self.dirty.insert(group);
        Ok(())
    }

    /// Starts hosting a group, unless it is hosted or on its way.
    pub(super) fn host(&mut self, group: GroupId, id: ReplicaId, base: Base) {
        let removed = self.tombstones.contains(&group) && !planted!("removed-replica-returning");
        if removed {
            reached!("group not hosted, it was removed");
        }
        if self.groups.contains_key(&group) || removed || !self.opening.insert(group) {
            return;
        }
        let (disk, dir, options) = (self.disk.clone(), self.group_dir(group), self.segments_options(group));
        jobs::spawn(self.jobs.clone(), async move {
            // Whatever lies there is an attempt that a crash cut short: the journal knows nothing of the group.
            let opened = match disk.remove_dir_all(&dir).await {
                Ok(()) => Segments::create(disk, dir, options, &base).await.map(Box::new),
                Err(source) => Err(SegmentsError::WriteFailed { file: dir, source }),
            };
            JobDone::Opened { group, id, base: Box::new(base), opened }
        });
    }

    fn on_opened(&mut self, group: GroupId, id: ReplicaId, base: Base, opened: Result<Box<Segments>, SegmentsError>) {
        if !self.opening.remove(&group) {
            reached!("group removed while it was opened");
            return jobs::remove_dir(&*self.disk, &self.group_dir(group), self.jobs.clone());
        }
        let segments = match opened {
            Ok(segments) => *segments,
            Err(SegmentsError::NoSpace { .. }) => {
                // The catalog goes on wanting the group; the node's reconciliation asks again.
                reached!("no room for a new group");
                return warn!(self.log, "no room for a new group"; "group" => %group);
            }
            Err(source) => return self.fail(DriverError::Segments { group, source }),
        };
        let hard_state = HardState { term: base.term.0, vote: 0, commit: base.index.0 };
        // Base and hard state share a round: a group whose hard state is lost at creation could vote twice in a term.
        self.round.push(GroupWrite { hard_state: Some(hard_state), ..GroupWrite::of_base(group, base.clone()) });
        // Its place among the founders: the first one campaigns at once, so that a new group is led at once.
        let place = base.conf_state.voters.iter().position(|voter| *voter == id.0);
        let state = RecoveredGroup { base, hard_state, entries: Vec::new() };
        match self.bring_up(group, id, state, segments, true) {
            Ok(()) => {
                if let (Some(hosted), Some(place)) = (self.groups.get_mut(&group), place) {
                    hosted.replica.campaign_soon(place as u64);
                }
                self.directory_changed = true;
            }
            Err(error) => self.fail(error),
        }
    }

    /// Stops hosting a group for good: tombstone first, then its files.
    pub(super) fn remove(&mut self, group: GroupId) {
        if self.opening.remove(&group) {
            return;
        }
        let Some(mut hosted) = self.groups.remove(&group) else { return };
        info!(self.log, "group is removed"; "group" => %group);
        self.options.tell(group, Observed::Removed);
        reached!("group removed");
        self.tombstones.insert(group);
        let held = hosted.held.take().map(|effects| effects.answers).unwrap_or_default();
        for (token, answer) in held.into_iter().chain(hosted.replica.abandon()) {
            self.answer(token, answer);
        }
        self.round.push(GroupWrite { group, removed: true, ..GroupWrite::default() });
        self.removing.entry(self.round_number).or_default().push(group);
        self.directory_changed = true;
    }

    /// Takes a group's effects until it has no more, and starts what they ask for.
    pub(super) fn perform_effects(&mut self, group: GroupId) {
        let mut applied_or_moved = false;
        loop {
            let Some(hosted) = self.groups.get_mut(&group) else { return };
            if hosted.held.is_some() {
                break;
            }
            let Some(effects) = hosted.replica.take_effects() else { break };
            applied_or_moved |= effects.view_changed;
            self.options.tell(
                group,
                Observed::Taken {
                    effects: &effects,
                    term: hosted.replica.term(),
                    leads: hosted.replica.is_leader(),
                    digest: &|| hosted.replica.machine().digest(),
                },
            );
            if let Some(base) = effects.installed_base() {
                hosted.segments.reset(base.clone());
                hosted.held = Some(Box::new(effects));
                hosted.moving_base = None;
                hosted.begin_reset(group, &self.jobs);
                break;
            }
            self.perform(group, effects);
        }
        let Some(hosted) = self.groups.get_mut(&group) else { return };
        let told = hosted.replica.commits_told();
        if told.is_some_and(|told| self.untold.note(group, told)) {
            jobs::commits_due(self.jobs.clone());
        }
        if applied_or_moved {
            hosted.publish();
            self.tell_led(group);
        }
        self.flush_if_worth_it(group);
    }

    fn perform(&mut self, group: GroupId, effects: Effects) {
        let Some(hosted) = self.groups.get_mut(&group) else { return };
        if !is_empty(&effects.write) {
            hosted.unsynced_round = Some(self.round_number);
            self.awaiting_sync.entry(self.round_number).or_default().push(group);
            self.round.push(effects.write);
        }
        for message in effects.send_now {
            self.options.tell(group, Observed::Sent { message: &message });
            post(&mut self.outboxes, group, message);
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
        if effects.left {
            // It stays and votes until the catalog drops it: the group may need its vote to settle the change.
            info!(self.log, "replica is no longer a member"; "group" => %group);
        }
        for fetch in effects.fetch {
            self.fetch(group, fetch);
        }
        for (token, answer) in effects.answers {
            self.answer(token, answer);
        }
        self.release(group, None);
    }

    /// All rounds through `through` are durable.
    pub(super) fn group_synced(&mut self, group: GroupId, through: u64) {
        self.release(group, Some(through));
        self.dirty.insert(group);
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

    /// Sends what waited for rounds that are durable now, and tells the replica, in order of number.
    fn release(&mut self, group: GroupId, through: Option<u64>) {
        let Some(hosted) = self.groups.get_mut(&group) else { return };
        if hosted.unsynced_round <= through {
            hosted.unsynced_round = None;
        }
        while let Some(pending) = hosted.pending.pop_front_if(|pending| pending.round <= through) {
            self.options.tell(group, Observed::Persisted { number: pending.number });
            for message in pending.after_sync {
                self.options.tell(group, Observed::Sent { message: &message });
                post(&mut self.outboxes, group, message);
            }
            hosted.replica.persisted(pending.number);
        }
    }

    /// Drops whole segments below the agreed start of the log.
    fn trim(&mut self, group: GroupId) {
        let Some(hosted) = self.groups.get_mut(&group) else { return };
        let start = match planted!("segments-dropped-before-base-moved") {
            true => hosted.replica.machine().log_start(),
            false => hosted.durable_start,
        };
        let dropped = hosted.segments.drop_before(start);
        if dropped.is_some() {
            hosted.replica.log_trimmed(hosted.segments.first_index());
        }
        self.drop_files(group, dropped);
    }

    fn drop_files(&mut self, group: GroupId, dropped: Option<DropJob>) {
        if let Some(job) = dropped {
            jobs::spawn(self.jobs.clone(), async move { JobDone::Dropped { group, done: job.run().await } });
        }
    }

    fn fetch(&mut self, group: GroupId, fetch: Fetch) {
        let Some(hosted) = self.groups.get(&group) else { return };
        jobs::fetch(group, &hosted.segments, fetch, self.jobs.clone());
    }

    fn tell_led(&mut self, group: GroupId) {
        let Some(hosted) = self.groups.get_mut(&group) else { return };
        let Some(term) = hosted.replica.serving_term().filter(|term| hosted.led_told < *term) else { return };
        hosted.led_told = term;
        let _ = self.led.send(Led { group, term });
    }

    fn flush_if_worth_it(&mut self, group: GroupId) {
        let Some(hosted) = self.groups.get(&group) else { return };
        // A trim waits for no more appends: on a full disk there are none, and it is there to make room.
        let trims = hosted.unsynced_bases.is_empty() && hosted.trims();
        let worth_it = hosted.base_wanted || trims || hosted.segments.unsynced_bytes() >= BASE_MOVE_BYTES;
        if worth_it && !hosted.flushing && !hosted.no_space && hosted.replica.applied_index() > hosted.recorded_base {
            self.start_base_move(group);
        }
    }

    /// Captures the group's state as of now; once the segments are synced through it, it becomes the group's base, and the
    /// journal may forget the entries before it.
    pub(super) fn start_base_move(&mut self, group: GroupId) {
        let Some(hosted) = self.groups.get_mut(&group) else { return };
        let nothing_new = hosted.replica.applied_index() <= hosted.recorded_base;
        if hosted.flushing || hosted.held.is_some() || hosted.resetting.is_some() || nothing_new {
            reached!("base asked for while it can't move");
            hosted.base_wanted = true;
            return;
        }
        if self.free_bytes < self.options.reserve_bytes / 2 && !hosted.trim_makes_room() {
            // Or a follower that a majority leaves behind would fill its disk to the last byte, and its journal, which can't do without
            // another file now and then, would end the node. What stays in the journal instead is capped.
            reached!("rest of the disk left to the journal");
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
                jobs::spawn(self.jobs.clone(), async move { JobDone::Flushed { group, done: job.run().await } });
            }
            None => self.record_base(group),
        }
    }

    fn record_base(&mut self, group: GroupId) {
        let Some(hosted) = self.groups.get_mut(&group) else { return };
        let Some(base) = hosted.moving_base.take() else { return };
        hosted.recorded_base = base.index;
        let start = hosted.moving_start;
        hosted.unsynced_bases.push_back((self.round_number, base.index, start));
        self.awaiting_sync.entry(self.round_number).or_default().push(group);
        self.round.push(GroupWrite::of_base(group, base));
    }

    /// A job of a group or of the node came back.
    pub(super) fn on_job(&mut self, done: JobDone) {
        match done {
            JobDone::Opened { group, id, base, opened } => self.on_opened(group, id, *base, opened),
            JobDone::Flushed { group, done } => self.on_flushed(group, done),
            JobDone::Dropped { group, done } => {
                if let (Err(source), true) = (done, self.groups.contains_key(&group)) {
                    self.fail(DriverError::Segments { group, source });
                }
            }
            JobDone::Reset { group, done } => self.on_reset(group, done),
            JobDone::FetchedEntries { group, fetch, entries } => self.on_fetched(group, fetch, entries),
            JobDone::FetchedBase { group, base } => match base {
                Ok(base) => self.with_group(group, |hosted| hosted.replica.base_fetched(base)),
                Err(error) => {
                    warn!(self.log, "snapshot unavailable"; "group" => %group, "reason" => %error);
                    self.with_group(group, |hosted| hosted.replica.base_unavailable());
                }
            },
            JobDone::CommitsDue => self.on_commits_due(),
            JobDone::Space { free_bytes } => self.on_space(free_bytes),
            JobDone::DirRemoved { result } => {
                if let Err(error) = result {
                    warn!(self.log, "files of a removed group stay behind"; "reason" => %error);
                }
            }
        }
    }

    fn on_fetched(&mut self, group: GroupId, fetch: Fetch, entries: Result<Vec<raft::eraftpb::Entry>, SegmentsError>) {
        match entries {
            Ok(entries) => self.with_group(group, |hosted| hosted.replica.entries_fetched(fetch, entries)),
            Err(error) => {
                warn!(self.log, "entries for a follower can't be read"; "group" => %group, "reason" => %error);
                self.with_group(group, |hosted| hosted.replica.entries_unavailable(fetch));
            }
        }
    }

    fn on_flushed(&mut self, group: GroupId, done: FlushDone) {
        let Some(hosted) = self.groups.get_mut(&group) else { return };
        hosted.flushing = false;
        match hosted.segments.finish_flush(done) {
            Ok(_) => {
                hosted.begin_reset(group, &self.jobs);
                self.record_base(group);
                if self.groups.get(&group).is_some_and(|hosted| hosted.base_wanted) {
                    self.start_base_move(group);
                }
            }
            Err(SegmentsError::NoSpace { .. }) => self.on_no_space(group),
            Err(source) => self.fail(DriverError::Segments { group, source }),
        }
    }

    /// The segments start anew behind an installed snapshot: what the replica wanted done goes on from here.
    fn on_reset(&mut self, group: GroupId, done: Result<ResetDone, SegmentsError>) {
        let Some(hosted) = self.groups.get_mut(&group) else { return };
        match done {
            Ok(done) => {
                hosted.reset_running = false;
                let Some(effects) = hosted.held.take() else { return };
                hosted.resetting = Some((Some(self.round_number), done));
                hosted.recorded_base = hosted.replica.applied_index();
                hosted.durable_start = hosted.segments.start_offset();
                self.perform(group, *effects);
                self.with_group(group, |hosted| hosted.publish());
            }
            Err(SegmentsError::NoSpace { .. }) => self.on_no_space(group),
            Err(source) => self.fail(DriverError::Segments { group, source }),
        }
    }

    fn on_no_space(&mut self, group: GroupId) {
        reached!("no room for segments");
        if !self.health.reserve_reached {
            warn!(self.log, "the disk is full; appends are refused until there is room"; "group" => %group);
        }
        self.health.reserve_reached = true;
        self.with_group(group, |hosted| {
            hosted.no_space = true;
            hosted.reset_running = false;
            hosted.moving_base = None;
            hosted.base_wanted = true;
        });
    }

    fn on_space(&mut self, free_bytes: std::io::Result<u64>) {
        let Ok(free_bytes) = free_bytes else { return };
        let reached = free_bytes < self.options.reserve_bytes;
        if reached != self.health.reserve_reached {
            if reached {
                warn!(self.log, "the disk's reserve is reached; appends are refused"; "free_bytes" => free_bytes);
            } else {
                reached!("room on the disk again");
                info!(self.log, "there is room on the disk again"; "free_bytes" => free_bytes);
            }
        }
        self.health.reserve_reached = reached;
        self.free_bytes = free_bytes;
        for (group, hosted) in &mut self.groups {
            // A trim makes room, if there is any for its flush: it is tried again with each look.
            if hosted.no_space && (free_bytes >= self.options.reserve_bytes / 2 || hosted.trim_makes_room()) {
                hosted.no_space = false;
                self.dirty.insert(*group);
                hosted.begin_reset(*group, &self.jobs);
            }
        }
    }

    fn with_group(&mut self, group: GroupId, act: impl FnOnce(&mut Hosted<S>)) {
        if let Some(hosted) = self.groups.get_mut(&group) {
            act(hosted);
            self.dirty.insert(group);
        }
    }

    fn fail(&mut self, error: DriverError) {
        self.failure.get_or_insert(error);
    }
}

/// Whether a write has nothing to be synced.
fn is_empty(write: &GroupWrite) -> bool {
    write.hard_state.is_none() && write.entries.is_empty() && write.base.is_none() && !write.removed
}

/// Puts a message into the outbox of the node that hosts its receiver.
fn post(outboxes: &mut BTreeMap<NodeId, Vec<GroupMessage>>, group: GroupId, message: Message) {
    let node = ReplicaId(message.to).node();
    outboxes.entry(node).or_default().push(GroupMessage { group: group.0, message: Some(Box::new(message)) });
}
