//! One life of a node: its replicas, its journal, and the jobs on its disk. The world's stand-in for the driver: it performs effects in the
//! order that they ask for, and decides as little.
//!
//! What is awaited in the real driver stands before gates here (`disk`), so that a crash finds everything half done. A turn handles one
//! event; its writes go out as one round, and rounds queue up while one is being synced.
//!
//! The file is long because a life has one owner of its state, and every step from event to answer needs most of it.

use super::disk::{Gate, GatedDisk, Seen, GROUPS_DIR, JOURNAL_DIR};
use super::hosted::Hosted;
use super::shared::{End, Event, Reply, Shared};
use crate::faults::Trigger;
use balsa::disk::sim::SimDisk;
use balsa::disk::Disk;
use balsa::group::effects::{Fetch, Token};
use balsa::group::inbound;
use balsa::group::log_time::ClockTrust;
use balsa::group::observe::Observed;
use balsa::group::replica::{Replica, ReplicaOptions};
use balsa::group::sleep;
use balsa::group::untold::Untold;
use balsa::ids::{GroupId, Incarnation, NodeId, ReplicaId, TimestampMs};
use balsa::journal::base::Base;
use balsa::journal::{GroupWrite, IdleProgress, Journal, JournalError, JournalIdentity, Recovered, RecoveredGroup};
use balsa::metadata::Machine;
use balsa::segments::{FlushDone, ResetDone, Segments, SegmentsError, SegmentsOptions};
use futures::FutureExt;
use raft::eraftpb::{Entry, Message};
use slog::{o, Discard, Logger};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

/// The journal's task; jobs count up from there.
const JOURNAL_TASK: u64 = 0;
/// How long nothing comes before the journal counts as idle.
const IDLE_US: u64 = 20_000;
/// A group that was idle for so many election timeouts sleeps.
const SLEEP_AFTER_ELECTIONS: u64 = 3;
/// Ticks between two looks at free space.
const SPACE_CHECK_TICKS: u64 = 3;
/// Room that a snapshot needs beside its own bytes.
const SNAPSHOT_ROOM_BYTES: u64 = 4 << 10;
/// Free bytes below which a disk counts as full.
pub const RESERVE_BYTES: u64 = 768 << 10;

/// A job that came back.
pub enum JobDone {
    Opened { group: GroupId, id: ReplicaId, base: Box<Base>, opened: Result<Box<Segments>, SegmentsError> },
    Flushed { group: GroupId, done: FlushDone },
    Reset { group: GroupId, done: Result<ResetDone, SegmentsError> },
    Dropped { group: GroupId, done: Result<(), SegmentsError> },
    FetchedEntries { group: GroupId, fetch: Fetch, entries: Result<Vec<Entry>, SegmentsError> },
    FetchedBase { group: GroupId, base: Result<Base, SegmentsError> },
    Read { group: GroupId, from: u64, read: Result<Vec<balsa::segments::ReadBatch>, SegmentsError> },
    Done,
}

pub type Job = Pin<Box<dyn Future<Output = JobDone> + Send>>;
type JournalWork<T> = Pin<Box<dyn Future<Output = (Box<Journal>, Result<T, JournalError>)> + Send>>;

/// What the journal is doing.
enum Writing {
    Nothing,
    Round(u64, JournalWork<()>),
    IdleStep(JournalWork<IdleProgress>),
}

/// Why a process ended by itself.
#[derive(Debug)]
pub enum Failure {
    Journal(JournalError),
    Segments(GroupId, SegmentsError),
    SyncHung,
    Replica(GroupId, String),
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let cause =
            |error: &dyn std::error::Error| error.source().map(|source| format!(": {source}")).unwrap_or_default();
        match self {
            Failure::Journal(error) => write!(f, "journal: {error}{}", cause(error)),
            Failure::Segments(group, error) => write!(f, "segments of group {group}: {error}{}", cause(error)),
            Failure::SyncHung => write!(f, "a sync hangs"),
            Failure::Replica(group, reason) => write!(f, "group {group} can't be recovered: {reason}"),
        }
    }
}

impl Failure {
    /// Whether stored data is damaged or gone.
    pub fn is_corruption(&self) -> bool {
        match self {
            Failure::Journal(error) => error.is_corruption(),
            Failure::Segments(_, error) => error.is_corruption() || matches!(error, SegmentsError::Missing { .. }),
            Failure::SyncHung => false,
            Failure::Replica(..) => true,
        }
    }
}

/// See the module's text.
pub struct Process {
    pub node: u32,
    pub life: u64,
    pub gate: Gate,
    pub disk: Arc<dyn Disk>,
    pub groups: BTreeMap<GroupId, Hosted>,
    pub dirty: BTreeSet<GroupId>,
    pub untold: Untold,
    pub round: Vec<GroupWrite>,
    pub round_number: u64,
    pub awaiting_sync: BTreeMap<u64, Vec<GroupId>>,
    removing: BTreeMap<u64, Vec<GroupId>>,
    pub tombstones: BTreeSet<GroupId>,
    opening: BTreeSet<GroupId>,
    /// Groups that there was no room for yet.
    unhosted: Vec<(GroupId, ReplicaId, Base)>,
    /// In a box: it is handed over and back with every round.
    journal: Option<Box<Journal>>,
    writing: Writing,
    submitted: VecDeque<(u64, Vec<GroupWrite>)>,
    /// A preparation of the journal goes on by itself.
    background: bool,
    /// Rounds not synced, with the tick of their submission.
    unsynced_since: VecDeque<(u64, u64)>,
    /// Nothing was written since the journal had nothing more to do.
    pub is_marked: bool,
    idle_since: u64,
    jobs: BTreeMap<u64, Job>,
    job_next: u64,
    done: VecDeque<JobDone>,
    pub tick: u64,
    over_cap: bool,
    pub retired: bool,
    pub reserve_reached: bool,
    pub leaves_rest_to_journal: bool,
    free_bytes: u64,
    pub failure: Option<Failure>,
    /// Segments that were found damaged.
    pub rotten: bool,
    pub trust: bool,
    /// Nodes whose links stand: only these are watched over while groups sleep.
    connected: BTreeSet<u32>,
}

/// What a node is, through all its lives.
#[derive(Clone)]
pub struct Home {
    pub node: u32,
    pub disk: SimDisk,
    /// Counts the wipes.
    pub generation: u32,
    /// Which replica it hosts of a group.
    pub ids: BTreeMap<GroupId, ReplicaId>,
    /// Its journal was founded: from here on it must be there.
    pub is_founded: bool,
}

impl Home {
    fn owner(&self) -> JournalIdentity {
        let mut incarnation = [0; 16];
        incarnation[..4].copy_from_slice(&self.node.to_le_bytes());
        incarnation[4..8].copy_from_slice(&self.generation.to_le_bytes());
        JournalIdentity { node_id: NodeId(self.node), incarnation: Incarnation(incarnation) }
    }
}

/// A future that has to be done at once: all gates are open.
fn now<T>(future: impl Future<Output = T>) -> T {
    future.now_or_never().expect("no operation waits while a node starts")
}

impl Process {
    /// Starts a node from its disk. `found` is what the world gives groups to begin with.
    pub fn start(
        home: &Home,
        life: u64,
        shared: &mut Shared,
        found: &BTreeMap<GroupId, Base>,
    ) -> Result<(Process, bool), Failure> {
        let gate = Gate::new(shared.chance.fork(u64::from(home.node)), shared.options.sync_us);
        let disk: Arc<dyn Disk> = Arc::new(GatedDisk { disk: home.disk.clone(), gate: gate.clone() });
        let dir = PathBuf::from(JOURNAL_DIR);
        let exists = now(Journal::exists(&*disk, &dir)).map_err(Failure::Journal)?;
        let options = shared.options.journal;
        let (journal, recovered) = if exists || home.is_founded {
            now(Journal::open(disk.clone(), dir, options)).map_err(Failure::Journal)?
        } else {
            let journal = now(Journal::create(disk.clone(), dir, options, home.owner())).map_err(Failure::Journal)?;
            (journal, Recovered::default())
        };
        let cut = recovered.cut.is_some();
        let mut process = Process {
            node: home.node,
            life,
            gate,
            disk,
            groups: BTreeMap::new(),
            dirty: BTreeSet::new(),
            untold: Untold::default(),
            round: Vec::new(),
            round_number: 0,
            awaiting_sync: BTreeMap::new(),
            removing: BTreeMap::new(),
            tombstones: recovered.removed,
            opening: BTreeSet::new(),
            unhosted: Vec::new(),
            journal: Some(Box::new(journal)),
            writing: Writing::Nothing,
            submitted: VecDeque::new(),
            background: false,
            unsynced_since: VecDeque::new(),
            is_marked: false,
            idle_since: 0,
            jobs: BTreeMap::new(),
            job_next: JOURNAL_TASK + 1,
            done: VecDeque::new(),
            tick: 0,
            over_cap: false,
            retired: false,
            reserve_reached: false,
            leaves_rest_to_journal: false,
            free_bytes: u64::MAX,
            failure: None,
            rotten: false,
            trust: true,
            connected: BTreeSet::new(),
        };
        process.check_space();
        for (group, state) in recovered.groups {
            match home.ids.get(&group).copied() {
                Some(id) => process.recover(group, id, state, shared)?,
                // Its tombstone was not durable: the catalog has dropped it all the same, so it goes again.
                None => process.bury(group, shared),
            }
        }
        process.gate.set_open(false);
        for (group, id) in &home.ids {
            if !process.groups.contains_key(group) {
                let options = SegmentsOptions { group: *group, ..shared.options.segments };
                process.host(*group, *id, found[group].clone(), options);
            }
        }
        process.turn(shared);
        Ok((process, cut))
    }

    fn recover(
        &mut self,
        group: GroupId,
        id: ReplicaId,
        state: RecoveredGroup,
        shared: &mut Shared,
    ) -> Result<(), Failure> {
        let options = SegmentsOptions { group, ..shared.options.segments };
        let opened = now(Segments::open(self.disk.clone(), Self::dir(group), options, &state.base));
        let segments = opened.map_err(|error| Failure::Segments(group, error))?;
        self.bring_up(group, id, state, segments, false, shared)
    }

    fn dir(group: GroupId) -> PathBuf {
        PathBuf::from(format!("{GROUPS_DIR}/{}", group.0))
    }

    fn bring_up(
        &mut self,
        group: GroupId,
        id: ReplicaId,
        state: RecoveredGroup,
        segments: Segments,
        created: bool,
        shared: &mut Shared,
    ) -> Result<(), Failure> {
        let options = replica_options(group, id, self.life, shared);
        shared.observe(self.node, group, &Observed::Opened { replica: id, recovered: &state, created });
        let (index, last) = (state.base.index.0, state.entries.last().map_or(0, |entry| entry.index));
        shared.event(
            self.node,
            "opened",
            &[group.0, id.0, index, last, state.hard_state.term, state.hard_state.vote],
            || {
                format!(
                    "g{group} replica {id} base {index} log to {last}, {:?}{}",
                    state.hard_state,
                    if created { ", new" } else { "" }
                )
            },
        );
        let log = Logger::root(Discard, o!());
        let replica = Replica::<Machine>::new(options, state, segments.term_runs(), log)
            .map_err(|reason| Failure::Replica(group, reason.to_string()))?;
        let (start, agreed) =
            (segments.start_offset(), balsa::group::machine::StateMachine::log_start(replica.machine()));
        if !segments.starts_log() && start > agreed {
            return Err(Failure::Replica(group, format!("its segments start at {start}, the log at {agreed}")));
        }
        let mut hosted = Hosted::new(id, replica, segments);
        if self.retired {
            hosted.replica.set_may_lead(false);
        }
        self.groups.insert(group, hosted);
        self.dirty.insert(group);
        Ok(())
    }

    /// Starts hosting a group.
    pub fn host(&mut self, group: GroupId, id: ReplicaId, base: Base, options: SegmentsOptions) {
        if self.groups.contains_key(&group) || self.tombstones.contains(&group) || !self.opening.insert(group) {
            return;
        }
        let (disk, dir) = (self.disk.clone(), Self::dir(group));
        self.spawn(Box::pin(async move {
            let opened = match disk.remove_dir_all(&dir).await {
                Ok(()) => Segments::create(disk, dir, options, &base).await.map(Box::new),
                Err(source) => Err(SegmentsError::WriteFailed { file: dir, source }),
            };
            JobDone::Opened { group, id, base: Box::new(base), opened }
        }));
    }

    /// The segments of a new group are there.
    pub fn hosted_opened(
        &mut self,
        group: GroupId,
        id: ReplicaId,
        base: Base,
        opened: Result<Box<Segments>, SegmentsError>,
        shared: &mut Shared,
    ) {
        self.opening.remove(&group);
        let segments = match opened {
            Ok(segments) => *segments,
            Err(error) if error.is_no_space() => return self.unhosted.push((group, id, base)),
            Err(error) => return self.fail(Failure::Segments(group, error)),
        };
        let hard_state = raft::eraftpb::HardState { term: base.term.0, vote: 0, commit: base.index.0 };
        self.round.push(GroupWrite { hard_state: Some(hard_state), ..GroupWrite::of_base(group, base.clone()) });
        let place = base.conf_state.voters.iter().position(|voter| *voter == id.0);
        let state = RecoveredGroup { base, hard_state, entries: Vec::new() };
        shared.moment(Trigger::GroupCreated, self.node);
        match self.bring_up(group, id, state, segments, true, shared) {
            Ok(()) => {
                if let (Some(hosted), Some(place)) = (self.groups.get_mut(&group), place) {
                    hosted.replica.campaign_soon(place as u64);
                }
            }
            Err(failure) => self.fail(failure),
        }
    }

    /// Stops hosting a group for good: the tombstone first, then its files.
    pub fn remove(&mut self, group: GroupId, shared: &mut Shared) {
        let Some(mut hosted) = self.groups.remove(&group) else { return };
        let held = hosted.held.take().map(|effects| effects.answers).unwrap_or_default();
        for (token, answer) in held.into_iter().chain(hosted.replica.abandon()) {
            self.answer(token, Reply::Told(answer), shared);
        }
        self.bury(group, shared);
    }

    /// Writes a tombstone.
    fn bury(&mut self, group: GroupId, shared: &mut Shared) {
        shared.observe(self.node, group, &Observed::Removed);
        shared.event(self.node, "removed", &[group.0], || format!("g{group}"));
        self.tombstones.insert(group);
        self.round.push(GroupWrite { group, removed: true, ..GroupWrite::default() });
        self.removing.entry(self.round_number).or_default().push(group);
    }

    pub fn fail(&mut self, failure: Failure) {
        self.failure.get_or_insert(failure);
    }

    pub fn answer(&mut self, token: Token, reply: Reply, shared: &mut Shared) {
        if shared.network.clients_cut[self.node as usize] == 0 {
            let delay_us = shared.client_latency();
            shared.after(delay_us, Event::Answer { token, answer: Box::new(reply) });
        }
    }

    // What happens to it.

    pub fn on_tick(&mut self, now_ms: TimestampMs, others_full: &[NodeId], shared: &mut Shared) {
        self.tick += 1;
        let election = shared.options.election_ticks as u64;
        let waited = self.unsynced_since.front().map_or(0, |(_, since)| self.tick - since);
        if waited >= 6 * election {
            return self.fail(Failure::SyncHung);
        }
        self.set_retired(waited >= 2 * election);
        let trust = if self.trust { ClockTrust::Trusted } else { ClockTrust::Untrusted };
        // Caches shrink when groups join a node and grow when they leave.
        let tight = self.tick % 16 >= 8;
        let cache_bytes = |most: usize| if tight { 0 } else { most };
        for (group, hosted) in &mut self.groups {
            hosted.replica.set_log_cache_bytes(cache_bytes(shared.options.log_cache_bytes_max));
            hosted.segments.set_tail_cache_bytes(cache_bytes(shared.options.segments.tail_cache_bytes));
            hosted.replica.tick(now_ms, trust);
            if hosted.replica.is_asleep() {
                continue;
            }
            if hosted.replica.is_drowsy(SLEEP_AFTER_ELECTIONS * election) && hosted.members_within(&self.connected) {
                shared.coverage.hit("branch.group-sent-to-sleep");
                hosted.replica.fall_asleep();
            }
            self.dirty.insert(*group);
        }
        if self.tick % SPACE_CHECK_TICKS == 1 {
            self.check_space();
            let retried = if self.reserve_reached { Vec::new() } else { std::mem::take(&mut self.unhosted) };
            for (group, id, base) in retried {
                self.host(group, id, base, SegmentsOptions { group, ..shared.options.segments });
            }
            self.leave_full_leadership(others_full);
        }
        self.turn(shared);
    }

    pub fn on_commits_due(&mut self, shared: &mut Shared) {
        for (group, told) in self.untold.due() {
            if let Some(hosted) = self.groups.get_mut(&group) {
                hosted.replica.tell_commits(told);
                self.dirty.insert(group);
            }
        }
        self.turn(shared);
    }

    fn set_retired(&mut self, retired: bool) {
        if self.retired == retired {
            return;
        }
        self.retired = retired;
        for (group, hosted) in &mut self.groups {
            hosted.replica.set_may_lead(!retired);
            self.dirty.insert(*group);
        }
    }

    fn leave_full_leadership(&mut self, others_full: &[NodeId]) {
        if !self.reserve_reached {
            return;
        }
        for (group, hosted) in &mut self.groups {
            let voters = hosted.replica.voters();
            let is_full = |node: &NodeId| node.0 == self.node || others_full.contains(node);
            let outside = voters.iter().filter(|voter| !is_full(&voter.node())).count();
            let room = voters.iter().find(|voter| !is_full(&voter.node()));
            if let (true, Some(to)) = (hosted.replica.is_leader() && outside > voters.len() / 2, room) {
                let _ = hosted.replica.transfer_leader(to.node());
                self.dirty.insert(*group);
            }
        }
    }

    fn check_space(&mut self) {
        let Some(Ok(free)) = self.disk.free_bytes(&PathBuf::from(GROUPS_DIR)).now_or_never() else { return };
        let reached = free < RESERVE_BYTES;
        self.reserve_reached = reached;
        self.leaves_rest_to_journal = free < RESERVE_BYTES / 2;
        self.free_bytes = free;
        let mut retried = Vec::new();
        for (group, hosted) in &mut self.groups {
            if hosted.no_space && (!self.leaves_rest_to_journal || hosted.trim_makes_room()) {
                hosted.no_space = false;
                self.dirty.insert(*group);
                retried.extend(hosted.begin_reset(*group));
            }
        }
        retried.into_iter().for_each(|job| self.spawn(job));
    }

    pub fn on_message(&mut self, from: u32, group: GroupId, mut message: Message, shared: &mut Shared) {
        if self.over_cap && self.reserve_reached && !message.entries.is_empty() && group != GroupId::METADATA {
            return;
        }
        if inbound::lacks_room(&message, self.free_bytes, SNAPSHOT_ROOM_BYTES) {
            return;
        }
        let Some(hosted) = self.groups.get_mut(&group) else { return };
        if sleep::asks_to_sleep(&message) && !self.connected.contains(&from) {
            sleep::take_sleep(&mut message); // nobody would wake this replica if that node were gone
        }
        shared.observe(self.node, group, &Observed::Received { from: NodeId(from), message: &message });
        let kind = message.msg_type();
        if let Err(refusal) = hosted.replica.step(message) {
            shared.coverage.hit("branch.message-refused");
            let ordinary = refusal.is_ordinary();
            shared.event(self.node, "refuses", &[group.0, kind as u64, u64::from(ordinary)], || {
                format!("g{group}: {refusal}")
            });
        }
        self.dirty.insert(group);
        if shared.chance.ratio(3, 4) {
            self.turn(shared); // else with what comes next: a turn has several messages at times
        }
    }

    /// A link stands, or was made anew.
    pub fn on_connected(&mut self, peer: u32, shared: &mut Shared) {
        self.connected.insert(peer);
        for (group, hosted) in self.groups.iter_mut().filter(|(_, hosted)| hosted.has_member_on(peer)) {
            hosted.replica.wake();
            self.dirty.insert(*group);
        }
        self.turn(shared);
    }

    pub fn on_lost(&mut self, peer: u32, shared: &mut Shared) {
        self.connected.remove(&peer);
        for (group, hosted) in &mut self.groups {
            // A replica that has not applied the change which brought its leader in does not know it as a member yet.
            let leads = hosted.replica.leader().is_some_and(|leader| leader.node().0 == peer);
            if !leads && !hosted.has_member_on(peer) {
                continue;
            }
            hosted.replica.wake();
            hosted.replica.leader_lost(NodeId(peer));
            for member in hosted.replica.voters().into_iter().filter(|member| member.node().0 == peer) {
                hosted.replica.report_unreachable(member);
            }
            self.dirty.insert(*group);
        }
        self.turn(shared);
    }

    /// A command of a client. False if it was refused at the door.
    pub fn on_append(
        &mut self,
        group: GroupId,
        command: bytes::Bytes,
        token: Token,
        full: &[NodeId],
        shared: &mut Shared,
    ) -> bool {
        use balsa::group::machine::StateMachine;
        let Some(hosted) = self.groups.get_mut(&group) else { return false };
        let room = {
            let voters = hosted.replica.voters();
            let outside = voters.iter().filter(|voter| !full.contains(&voter.node())).count();
            full.is_empty() || outside > voters.len() / 2 || !Machine::adds_data(&command)
        };
        if !room || (self.over_cap && Machine::adds_data(&command)) {
            return false;
        }
        hosted.replica.propose(command, token);
        self.dirty.insert(group);
        self.turn(shared);
        true
    }

    /// Does something to a replica, and what follows.
    pub fn act(&mut self, group: GroupId, shared: &mut Shared, act: impl FnOnce(&mut Replica<Machine>)) {
        let Some(hosted) = self.groups.get_mut(&group) else { return };
        act(&mut hosted.replica);
        self.dirty.insert(group);
        self.turn(shared);
    }

    /// Performs all that there is to do, and hands the turn's writes to the journal.
    pub fn turn(&mut self, shared: &mut Shared) {
        loop {
            if let Some(group) = self.dirty.pop_first() {
                self.perform_effects(group, shared);
            } else if let Some(done) = self.done.pop_front() {
                self.on_job(done, shared);
            } else if !self.round.is_empty() {
                self.submit(shared);
            } else {
                break;
            }
        }
        self.look_at_gates(shared);
    }

    // The journal.

    fn submit(&mut self, shared: &mut Shared) {
        let writes = std::mem::take(&mut self.round);
        self.unsynced_since.push_back((self.round_number, self.tick));
        self.submitted.push_back((self.round_number, writes));
        self.round_number += 1;
        self.is_marked = false;
        if matches!(self.writing, Writing::Nothing) {
            self.begin_round(shared);
        }
    }

    /// All that was submitted goes out as one round.
    fn begin_round(&mut self, shared: &mut Shared) {
        let Some(mut journal) = self.journal.take() else { return };
        self.background = false;
        let (mut through, mut writes) = (0, Vec::new());
        for (number, more) in self.submitted.drain(..) {
            through = number;
            writes.extend(more);
        }
        shared.event(self.node, "round", &[through, writes.len() as u64], || {
            format!("{through}: {} writes", writes.len())
        });
        let work = async move {
            let result = journal.write_round(writes).await;
            (journal, result)
        };
        self.writing = Writing::Round(through, Box::pin(work));
        self.poll_journal(shared);
    }

    fn poll_journal(&mut self, shared: &mut Shared) {
        self.gate.set_task(JOURNAL_TASK);
        let mut context = Context::from_waker(Waker::noop());
        match std::mem::replace(&mut self.writing, Writing::Nothing) {
            Writing::Nothing if self.background => self.poll_background(shared),
            Writing::Nothing => {}
            Writing::Round(through, mut work) => match work.as_mut().poll(&mut context) {
                Poll::Pending => self.writing = Writing::Round(through, work),
                Poll::Ready((journal, result)) => {
                    self.journal = Some(journal);
                    match result {
                        Ok(()) => self.on_written(through, shared),
                        Err(error) => self.fail(Failure::Journal(error)),
                    }
                }
            },
            Writing::IdleStep(mut work) => match work.as_mut().poll(&mut context) {
                Poll::Pending => self.writing = Writing::IdleStep(work),
                Poll::Ready((journal, result)) => {
                    self.journal = Some(journal);
                    match result {
                        Ok(progress) => self.on_idle_progress(progress, shared),
                        Err(error) => self.fail(Failure::Journal(error)),
                    }
                }
            },
        }
    }

    fn on_written(&mut self, through: u64, shared: &mut Shared) {
        shared.moment(Trigger::AfterSyncBeforeAnswer, self.node);
        let delay_us = 5 + shared.chance.below(40);
        shared.after(delay_us, Event::Synced { node: self.node, life: self.life, through });
        if !self.submitted.is_empty() {
            return self.begin_round(shared);
        }
        self.idle_since = shared.now;
        shared.after(IDLE_US, Event::Idle { node: self.node, life: self.life, since: shared.now });
    }

    pub fn on_idle(&mut self, since: u64, shared: &mut Shared) {
        if since == self.idle_since && matches!(self.writing, Writing::Nothing) && self.submitted.is_empty() {
            self.begin_idle_step(shared);
            self.turn(shared);
        }
    }

    /// Bytes in the journal that wait for bases to move; unknown while it writes.
    pub fn journal_bytes(&self) -> Option<u64> {
        self.journal.as_ref().map(|journal| journal.pressure().bytes)
    }

    fn begin_idle_step(&mut self, shared: &mut Shared) {
        let Some(mut journal) = self.journal.take() else { return };
        let work = async move {
            let result = journal.idle_step().await;
            (journal, result)
        };
        self.writing = Writing::IdleStep(Box::pin(work));
        self.poll_journal(shared);
    }

    fn on_idle_progress(&mut self, progress: IdleProgress, shared: &mut Shared) {
        if !self.submitted.is_empty() {
            return self.begin_round(shared);
        }
        match progress {
            IdleProgress::More => self.begin_idle_step(shared),
            IdleProgress::Background => {
                self.background = true;
                self.poll_background(shared);
            }
            IdleProgress::Done => {
                self.is_marked = true;
                shared.moment(Trigger::JournalIdle, self.node);
            }
        }
    }

    fn poll_background(&mut self, shared: &mut Shared) {
        let Some(journal) = &mut self.journal else { return };
        match journal.background().now_or_never() {
            None => {}
            Some(Ok(())) => {
                self.background = false;
                self.begin_idle_step(shared);
            }
            Some(Err(error)) => self.fail(Failure::Journal(error)),
        }
    }

    pub fn on_synced(&mut self, through: u64, shared: &mut Shared) {
        shared.event(self.node, "synced", &[through], || format!("through {through}"));
        while self.unsynced_since.pop_front_if(|(number, _)| *number <= through).is_some() {}
        let later = self.awaiting_sync.split_off(&(through + 1));
        for group in std::mem::replace(&mut self.awaiting_sync, later).into_values().flatten() {
            self.group_synced(group, through, shared);
        }
        let later = self.removing.split_off(&(through + 1));
        for group in std::mem::replace(&mut self.removing, later).into_values().flatten() {
            let (disk, dir) = (self.disk.clone(), Self::dir(group));
            self.spawn(Box::pin(async move {
                let _ = disk.remove_dir_all(&dir).await;
                JobDone::Done
            }));
        }
        if let Some((groups, over_cap)) = self.journal.as_mut().and_then(|journal| journal.wanted_bases()) {
            self.over_cap = over_cap;
            groups.into_iter().for_each(|group| self.start_base_move(group, shared));
        }
        self.turn(shared);
    }

    // Jobs.

    /// Runs a job as far as it goes at once.
    pub fn spawn(&mut self, mut job: Job) {
        let task = self.job_next;
        self.job_next += 1;
        self.gate.set_task(task);
        match job.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(done) => self.done.push_back(done),
            Poll::Pending => drop(self.jobs.insert(task, job)),
        }
    }

    /// An operation has passed its gate.
    pub fn on_gate(&mut self, task: u64, ticket: u64, shared: &mut Shared) {
        if !self.gate.open(ticket) {
            // The disk hangs.
            return shared.after(50_000, Event::Gate { node: self.node, life: self.life, task, ticket });
        }
        if task == JOURNAL_TASK {
            self.poll_journal(shared);
        } else if let Some(mut job) = self.jobs.remove(&task) {
            self.gate.set_task(task);
            match job.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                Poll::Ready(done) => self.done.push_back(done),
                Poll::Pending => drop(self.jobs.insert(task, job)),
            }
        }
        self.turn(shared);
    }

    fn look_at_gates(&mut self, shared: &mut Shared) {
        for waiting in self.gate.take_waiting() {
            let event = Event::Gate { node: self.node, life: self.life, task: waiting.task, ticket: waiting.ticket };
            shared.after(waiting.delay_us, event);
        }
        for seen in self.gate.take_seen() {
            shared.event(self.node, "disk", &[seen as u64], || format!("{seen:?}"));
            let trigger = match seen {
                Seen::RoundWritten => Trigger::BetweenWriteAndSync,
                Seen::JournalFiles => Trigger::FileRecycling,
                Seen::Seal => Trigger::SegmentSeal,
                Seen::Rename => Trigger::Rename,
            };
            shared.moment(trigger, self.node);
        }
    }

    /// Ends the process; what is under way is dropped where it is.
    pub fn end(self, how: End, disk: &SimDisk, seed: u64) -> SimDisk {
        match how {
            End::Kill => disk.restart(),
            End::PowerLoss => disk.crash(seed),
        }
    }
}

fn replica_options(group: GroupId, id: ReplicaId, life: u64, shared: &mut Shared) -> ReplicaOptions {
    let drawn = &shared.options;
    let mut options = ReplicaOptions::new(group, id, life);
    options.tick_ms = drawn.tick_us / 1_000;
    options.election_ticks = drawn.election_ticks;
    options.heartbeat_ticks = drawn.heartbeat_ticks;
    options.log_cache_bytes_max = drawn.log_cache_bytes_max;
    options.message_bytes_max = drawn.message_bytes_max;
    options.inflight_messages_max = drawn.inflight_messages_max;
    options.pipeline_bytes = drawn.pipeline_bytes;
    options.uncommitted_bytes_max = drawn.uncommitted_bytes_max;
    options.seed = shared.chance.next();
    options
}
