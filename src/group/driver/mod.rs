//! Performs what the replicas of this node ask for; decides nothing.
//!
//! Groups are divided among loops, each a task that owns its replicas; on a machine with few cores one loop owns all. They share
//! the disk, the journal and the links, and nothing of a group. A turn of a loop takes what arrived (client commands, peer messages, sync reports, finished
//! disk jobs, a tick), feeds the replicas concerned, collects their effects, and sends them out in bulk: one round for
//! the journal with every group's writes, one batch of messages per peer. Nothing is awaited inside a turn; whatever
//! touches a disk goes out as a job and comes back as an event.
//!
//! Invariants: messages that promise durability leave after the round that holds their group's write was reported synced;
//! a round that fails ends the loop, and with it the node; an answer to a client follows commit and apply.

pub mod forwarded;
mod handle;
mod health;
mod hosted;
mod jobs;
mod leadership;
mod siblings;

pub use handle::{
    loop_of, Append, Command, CommandError, Committed, Directory, DriverHandle, DriverStatus, GroupView, Led, Outcome,
    ReadOutcome, TailPoint, Waiter,
};

use crate::clock::Clock;
use crate::disk::Disk;
use crate::group::effects::Answer;
use crate::group::inbound;
use crate::group::machine::StateMachine;
use crate::group::observe::{Observed, Observer};
use crate::group::replica::ReplicaOptions;
use crate::group::sleep;
use crate::group::untold::Untold;
use crate::ids::{GroupId, NodeId, ReplicaId};
use crate::journal::{GroupWrite, JournalError, JournalHandle, JournalReport, Recovered, RecoveredGroup};
use crate::limits::TAIL_CACHES_BYTES;
use crate::peers::{PeerEvent, Peers};
use crate::reached;
use crate::segments::{SegmentsError, SegmentsOptions};
use futures::future::{select_all, BoxFuture};
use futures::FutureExt;
use handle::{outcome_of, queues, LoopHandle, Queues};
use health::{Health, SyncState};
use hosted::Hosted;
use jobs::JobDone;
use siblings::{siblings, Siblings};
use slog::{error, info, o, warn, Logger};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

/// Most events of one kind taken in one turn, so that no kind starves the others.
const EVENTS_PER_TURN: usize = 1_024;
/// A tick has passed so often before free space is looked at again.
const SPACE_CHECK_TICKS: u64 = 3;
/// Room that a snapshot needs beside its own bytes: the header of the segment that it becomes, a round of the journal.
const SNAPSHOT_ROOM_BYTES: u64 = 64 << 10;
/// Groups whose segments are opened side by side at a start: most of the time is the disk's.
const OPENED_AT_ONCE: usize = 16;
/// A group that was idle for so many election timeouts sleeps.
const SLEEP_AFTER_ELECTIONS: u64 = 3;
/// A tick is also the time between two heartbeats, so that those of all groups of a loop leave in one message.
const HEARTBEAT_TICKS: usize = 1;

/// What a driver needs to know of its node.
#[derive(Clone)]
pub struct DriverOptions {
    /// This node.
    pub node: NodeId,
    /// Random, one per start of the process; no read-index context is ever used twice.
    pub boot: u64,
    /// Seed of the election timeouts.
    pub seed: u64,
    /// Length of a tick.
    pub tick_ms: u64,
    /// Each group has a directory of its own below this one.
    pub groups_dir: PathBuf,
    /// A follower campaigns after one to two times so many ticks without a leader.
    pub election_ticks: usize,
    /// How segments are laid out; the group is filled in.
    pub segments: SegmentsOptions,
    /// A sync that takes longer than this many ticks costs this node its leadership.
    pub sync_slow_ticks: u64,
    /// A sync that takes longer than this many ticks ends the node.
    pub sync_hung_ticks: u64,
    /// Free bytes below which the node counts as full.
    pub reserve_bytes: u64,
    /// Whoever looks on.
    pub observer: Option<Observer>,
}

impl DriverOptions {
    fn tell(&self, group: GroupId, observed: Observed<'_>) {
        if let Some(observer) = &self.observer {
            observer(group, observed);
        }
    }
}

/// Why a driver ended. Each ends the node.
#[derive(Debug, thiserror::Error)]
pub enum DriverError {
    /// The journal could not be written or synced; nothing was promised since.
    #[error("the journal failed; the node stops so that it promises nothing it can't keep")]
    Journal(#[source] Arc<JournalError>),
    /// The journal's writer is gone.
    #[error("the journal's writer ended")]
    JournalGone,
    /// The driver is gone without a word: a bug, told in the log.
    #[error("the driver ended without a reason; what went wrong stands in the log")]
    Gone,
    /// A sync of the journal did not return.
    #[error("a sync of the journal has not returned for {waited_ms} ms; the disk hangs")]
    SyncHung {
        /// How long it was waited for.
        waited_ms: u64,
    },
    /// A group's segments failed in a way that leaves its state unknown.
    #[error("segments of group {group} failed")]
    Segments {
        /// The group.
        group: GroupId,
        /// What failed.
        #[source]
        source: SegmentsError,
    },
    /// A recovered group can't be brought up.
    #[error("group {group} can't be recovered: {reason}")]
    Recovery {
        /// The group.
        group: GroupId,
        /// Why.
        reason: String,
    },
}

/// One loop, with the replicas that it owns. See the module's text.
struct Driver<S: StateMachine> {
    siblings: Siblings,
    options: DriverOptions,
    disk: Arc<dyn Disk>,
    clock: Clock,
    log: Logger,
    peers: Peers,
    journal: JournalHandle,
    queues: Queues<S::View>,
    /// Boxed, so that the map is small: each turn looks many of a thousand groups up, several times.
    groups: BTreeMap<GroupId, Box<Hosted<S>>>,
    /// Groups being opened; one that is removed meanwhile leaves the set.
    opening: BTreeSet<GroupId>,
    /// Groups that something happened to in this turn.
    dirty: BTreeSet<GroupId>,
    /// Groups waiting for a round to be synced, by round.
    awaiting_sync: BTreeMap<u64, Vec<GroupId>>,
    /// Writes of this turn.
    round: Vec<GroupWrite>,
    round_number: u64,
    outboxes: BTreeMap<NodeId, Vec<crate::peers::wire::GroupMessage>>,
    untold: Untold,
    /// Who waits for which token.
    waiters: slab::Slab<Waiting>,
    /// Removed groups whose files go once the round that holds the tombstone is durable.
    removing: BTreeMap<u64, Vec<GroupId>>,
    /// Groups removed from this node for good; a catalog that has not caught up after a restart may still name them.
    tombstones: BTreeSet<GroupId>,
    /// A group came or went in this turn.
    directory_changed: bool,
    free_bytes: u64,
    /// Nodes whose reserve is reached, as of the last tick.
    full: Vec<NodeId>,
    jobs: mpsc::UnboundedSender<JobDone>,
    led: mpsc::UnboundedSender<Led>,
    health: Health,
    /// Nodes whose links stand: only these are watched over, see [`sleep`].
    connected: BTreeSet<NodeId>,
    tick: u64,
    /// The journal holds more than its cap: appends wait.
    over_cap: bool,
    /// The tick at which it went over.
    over_cap_since: u64,
    /// Whether the clock agrees with the majority's, as the replicas were told.
    clock_trusted: bool,
    /// Leadership has been given up because the disk is slow.
    retired: bool,
    handing_over: Option<(u64, Vec<oneshot::Sender<()>>)>,
    /// The node stops: nothing is led here any more.
    stopping: bool,
    failure: Option<DriverError>,
}

/// Who waits for a token.
enum Waiting {
    Proposal(Waiter),
    Tail { group: GroupId, reply: oneshot::Sender<Result<TailPoint, CommandError>> },
}

/// What the driver's loop listens to.
struct Sources {
    reports: mpsc::UnboundedReceiver<JournalReport>,
    peer_events: mpsc::Receiver<PeerEvent>,
    jobs: mpsc::UnboundedReceiver<JobDone>,
}

/// Everything that a driver is connected to.
pub struct Connections {
    /// The node's disk.
    pub disk: Arc<dyn Disk>,
    /// The node's clock.
    pub clock: Clock,
    /// Links to the other nodes.
    pub peers: Peers,
    /// What each loop is connected to, in the order of [`loop_of`].
    pub loops: Vec<LoopConnections>,
    /// Told of each leadership won here.
    pub led: mpsc::UnboundedSender<Led>,
}

/// What one loop is connected to.
pub struct LoopConnections {
    /// What arrives from the other nodes for its groups.
    pub peer_events: mpsc::Receiver<PeerEvent>,
    /// The journal's writer.
    pub journal: JournalHandle,
    /// Its reports.
    pub reports: mpsc::UnboundedReceiver<JournalReport>,
}

/// Why the driver ended by itself: the first of its loops to do so says it.
pub type Ended = BoxFuture<'static, DriverError>;

/// Brings up all recovered groups and starts the loops.
///
/// # Errors
/// If a group's segments are damaged or its state can't be restored.
pub async fn start<S: StateMachine>(
    options: DriverOptions,
    connections: Connections,
    recovered: Recovered,
    log: Logger,
) -> Result<(DriverHandle<S>, Ended), DriverError> {
    let Connections { disk, clock, peers, loops, led } = connections;
    let Recovered { groups, removed: tombstones, .. } = recovered;
    let known: BTreeSet<GroupId> = groups.keys().copied().collect();
    let count = loops.len();
    // As long as nothing is known of it, bases would move on a full disk. Of a directory that is not there yet nothing can be known.
    let free_bytes = disk.free_bytes(&options.groups_dir).await.unwrap_or(u64::MAX);
    let mut shares: Vec<BTreeMap<GroupId, RecoveredGroup>> = loops.iter().map(|_| BTreeMap::new()).collect();
    for (group, recovered) in groups {
        shares[loop_of(group, count)].insert(group, recovered);
    }
    let mut drivers = Vec::with_capacity(count);
    for ((siblings, share), connections) in siblings(count).into_iter().zip(shares).zip(loops) {
        let LoopConnections { peer_events, journal, reports } = connections;
        let (to_it, queues) = queues::<S>();
        let (jobs, jobs_end) = mpsc::unbounded_channel();
        let mut driver: Driver<S> = Driver {
            siblings,
            options: options.clone(),
            disk: disk.clone(),
            clock: clock.clone(),
            log: log.clone(),
            peers: peers.clone(),
            journal,
            queues,
            groups: BTreeMap::new(),
            opening: BTreeSet::new(),
            dirty: BTreeSet::new(),
            awaiting_sync: BTreeMap::new(),
            round: Vec::new(),
            round_number: 0,
            outboxes: BTreeMap::new(),
            untold: Untold::default(),
            waiters: slab::Slab::new(),
            removing: BTreeMap::new(),
            tombstones: tombstones.clone(),
            directory_changed: false,
            free_bytes,
            full: Vec::new(),
            jobs,
            led: led.clone(),
            health: Health::default(),
            connected: BTreeSet::new(),
            tick: 0,
            over_cap: false,
            over_cap_since: 0,
            clock_trusted: false,
            retired: false,
            handing_over: None,
            stopping: false,
            failure: None,
        };
        driver.recover(share).await?;
        driver.publish_directory();
        driver.share_caches();
        drivers.push((driver, Sources { reports, peer_events, jobs: jobs_end }, to_it));
    }
    remove_leftovers(&*disk, &options.groups_dir, &known, &log).await;
    let (to_loops, reasons): (Vec<LoopHandle<S>>, Vec<_>) = drivers.into_iter().map(Driver::spawn).unzip();
    let ended = select_all(reasons).map(|(reason, ..)| reason.unwrap_or(DriverError::Gone));
    Ok((DriverHandle::new(to_loops), ended.boxed()))
}

/// Removes the directories of groups that a crash left behind: their tombstone was durable, or their creation was not.
async fn remove_leftovers(disk: &dyn Disk, groups_dir: &Path, known: &BTreeSet<GroupId>, log: &Logger) {
    let Ok(paths) = disk.list(groups_dir).await else { return };
    for path in paths {
        let group = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse().ok());
        if group.is_some_and(|group| !known.contains(&GroupId(group))) {
            reached!("files of an unknown group removed at the start");
            if let Err(error) = disk.remove_dir_all(&path).await {
                warn!(log, "files of a removed group stay behind"; "reason" => %error);
            }
        }
    }
}

impl<S: StateMachine> Driver<S> {
    /// Starts the loop. The receiver gets the reason when it ends by itself.
    fn spawn(
        (mut driver, sources, to_it): (Driver<S>, Sources, LoopHandle<S>),
    ) -> (LoopHandle<S>, oneshot::Receiver<DriverError>) {
        let (ended, reason) = oneshot::channel();
        tokio::spawn(async move {
            if let Some(error) = driver.run(sources).await {
                error!(driver.log, "the driver ended"; "reason" => crate::telemetry::chain(&error));
                let _ = ended.send(error);
            }
        });
        (to_it, reason)
    }

    async fn run(&mut self, mut sources: Sources) -> Option<DriverError> {
        let mut ticks = tokio::time::interval(Duration::from_millis(self.options.tick_ms));
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            self.finish_turn();
            if let Some(failure) = self.failure.take() {
                return Some(failure);
            }
            tokio::select! {
                biased;
                // First, or a node that is never idle would notice no lost quorum and no hung disk.
                _ = ticks.tick() => self.on_tick(),
                report = sources.reports.recv() => match report {
                    Some(report) => self.on_report(report),
                    None => return Some(DriverError::JournalGone),
                },
                Some(event) = sources.peer_events.recv() => self.on_peer_event(event),
                Some(done) = sources.jobs.recv() => self.on_job(done),
                command = self.queues.commands.recv() => match command {
                    Some(command) => self.on_command(command),
                    None => return None,
                },
                Some(append) = self.queues.appends.recv(), if !self.appends_wait() => self.on_append(append),
            }
            self.take_what_waits(&mut sources);
        }
    }

    /// Takes what else is there, so that one turn's effects go out together.
    fn take_what_waits(&mut self, sources: &mut Sources) {
        for _ in 0..EVENTS_PER_TURN {
            let Ok(report) = sources.reports.try_recv() else { break };
            self.on_report(report);
        }
        for _ in 0..EVENTS_PER_TURN {
            let Ok(event) = sources.peer_events.try_recv() else { break };
            self.on_peer_event(event);
        }
        for _ in 0..EVENTS_PER_TURN {
            let Ok(done) = sources.jobs.try_recv() else { break };
            self.on_job(done);
        }
        for _ in 0..EVENTS_PER_TURN {
            let Ok(command) = self.queues.commands.try_recv() else { break };
            self.on_command(command);
        }
        for _ in 0..EVENTS_PER_TURN {
            if self.appends_wait() {
                reached!("appends wait, the journal is over its cap");
                break;
            }
            let Ok(append) = self.queues.appends.try_recv() else { break };
            self.on_append(append);
        }
    }

    /// Collects the effects of every group that something happened to and sends them out in bulk.
    fn finish_turn(&mut self) {
        while let Some(group) = self.dirty.pop_first() {
            self.perform_effects(group);
        }
        if std::mem::take(&mut self.directory_changed) {
            self.publish_directory();
            self.share_caches();
        }
        if !self.round.is_empty() {
            self.health.submitted(self.round_number);
            self.journal.submit(self.round_number, std::mem::take(&mut self.round));
            self.round_number += 1;
        }
        for (node, messages) in std::mem::take(&mut self.outboxes) {
            self.peers.send(node, messages);
        }
    }

    fn on_report(&mut self, report: JournalReport) {
        match report {
            JournalReport::Synced { through } => self.on_synced(through),
            JournalReport::WantBases { groups, over_cap } => {
                if over_cap && !self.over_cap {
                    self.over_cap_since = self.tick;
                }
                self.over_cap = over_cap;
                for group in groups {
                    self.start_base_move(group);
                }
            }
            JournalReport::Failed(error) => self.failure = Some(DriverError::Journal(error)),
        }
    }

    fn on_synced(&mut self, through: u64) {
        self.health.synced(through);
        let later = self.awaiting_sync.split_off(&(through + 1));
        for group in std::mem::replace(&mut self.awaiting_sync, later).into_values().flatten() {
            self.group_synced(group, through);
        }
        let later = self.removing.split_off(&(through + 1));
        for group in std::mem::replace(&mut self.removing, later).into_values().flatten() {
            jobs::remove_dir(&*self.disk, &self.group_dir(group), self.jobs.clone());
        }
    }

    fn on_commits_due(&mut self) {
        for (group, told) in self.untold.due() {
            if let Some(hosted) = self.groups.get_mut(&group) {
                hosted.replica.tell_commits(told);
                self.dirty.insert(group);
            }
        }
    }

    fn on_peer_event(&mut self, event: PeerEvent) {
        match event {
            PeerEvent::Messages { from, messages, clock, reserve_reached, .. } => {
                self.health.heard(from, clock, self.clock.now(), reserve_reached);
                self.look_at_clock();
                for message in messages {
                    self.on_message(from, message);
                }
            }
            PeerEvent::Up(node) => self.on_peer_up(node),
            PeerEvent::Lost(node) => self.on_peer_lost(node),
            PeerEvent::Forwarded(commands) => {
                for forwarded in commands {
                    let waiter = Waiter::Forwarded(forwarded.respond);
                    self.on_append(Append { group: forwarded.group, command: forwarded.command, waiter });
                }
            }
        }
    }

    /// Tells the replicas whether this node's clock agrees with the majority's, if that has changed. Not with the next tick alone: a leader that was
    /// elected by those who contradict its clock stamps its first entry before that.
    fn look_at_clock(&mut self) {
        let trusted = self.health.clock_agrees();
        if std::mem::replace(&mut self.clock_trusted, trusted) != trusted {
            reached!("clock contradicted or confirmed between two ticks");
            let now = self.clock.now();
            self.groups.values_mut().for_each(|hosted| hosted.replica.look_at_clock(now, trusted));
        }
    }

    fn on_message(&mut self, from: NodeId, message: crate::peers::wire::GroupMessage) {
        let group = GroupId(message.group);
        if self.over_cap && self.health.reserve_reached && carries_entries(&message) && group != GroupId::METADATA {
            // They would pile up in memory: nothing moves to the segments of a full disk. Raft sends them again. What the catalog is told of is
            // little, and may make room.
            reached!("entries of a peer dropped, the disk is full");
            return;
        }
        // No peer message creates a group: only the catalog does.
        let (Some(hosted), Some(mut message)) = (self.groups.get_mut(&group), message.message) else { return };
        if inbound::lacks_room(&message, self.free_bytes, SNAPSHOT_ROOM_BYTES) {
            return;
        }
        if sleep::asks_to_sleep(&message) && !self.connected.contains(&from) {
            reached!("asked to sleep by a node that is not linked");
            sleep::take_sleep(&mut message); // nobody would wake this replica if that node were gone
        }
        self.options.tell(group, Observed::Received { from, message: &message });
        if let Err(refusal) = hosted.replica.step(*message) {
            warn!(self.log, "message refused"; "from" => %from, "group" => %group, "reason" => %refusal);
        }
        self.dirty.insert(group);
    }

    fn on_peer_up(&mut self, node: NodeId) {
        if self.siblings.is_first() {
            info!(self.log, "node is connected"; "peer" => %node);
        }
        self.connected.insert(node);
        for (group, hosted) in &mut self.groups {
            if hosted.has_member_on(node) {
                hosted.replica.wake(); // a node that starts anew needs to hear who leads
                self.dirty.insert(*group);
            }
        }
    }

    fn on_peer_lost(&mut self, node: NodeId) {
        if self.siblings.is_first() {
            warn!(self.log, "node is lost"; "peer" => %node);
        }
        self.connected.remove(&node);
        for (group, hosted) in &mut self.groups {
            // A replica that has not applied the change which brought its leader in does not know it as a member yet.
            let leads = hosted.replica.leader().is_some_and(|leader| leader.node() == node);
            if !leads && !hosted.has_member_on(node) {
                continue;
            }
            hosted.replica.wake();
            hosted.replica.leader_lost(node);
            for member in hosted.replica.voters().into_iter().filter(|member| member.node() == node) {
                hosted.replica.report_unreachable(member);
            }
            self.dirty.insert(*group);
        }
    }

    fn on_tick(&mut self) {
        self.tick += 1;
        self.health.tick();
        match self.health.sync_state(self.options.sync_slow_ticks, self.options.sync_hung_ticks) {
            SyncState::Hung => {
                reached!("sync hung, the node ends");
                let waited_ms = self.options.sync_hung_ticks * self.options.tick_ms;
                self.failure = Some(DriverError::SyncHung { waited_ms });
                return;
            }
            state => self.set_retired(self.siblings.any_slow(state == SyncState::Slow)),
        }
        self.full = self.health.full_nodes(self.options.node);
        let now = self.clock.now();
        self.clock_trusted = self.health.clock_agrees();
        if self.siblings.is_first() {
            self.peers.set_local_report(now, self.free_bytes, self.health.reserve_reached);
        }
        let sleep_after = SLEEP_AFTER_ELECTIONS * self.options.election_ticks as u64;
        for (group, hosted) in &mut self.groups {
            hosted.replica.tick(now, self.clock_trusted);
            if hosted.replica.is_asleep() {
                continue;
            }
            if hosted.replica.is_drowsy(sleep_after) && hosted.members_within(&self.connected) {
                hosted.replica.fall_asleep();
            }
            self.dirty.insert(*group);
        }
        if self.siblings.is_first() {
            self.peers.beat();
        }
        if self.tick % SPACE_CHECK_TICKS == 1 {
            jobs::check_space(&*self.disk, &self.options.groups_dir, self.jobs.clone());
            self.leave_full_leadership();
        }
        self.check_hand_over();
    }

    /// Whether appends stay in their queue: the journal is over its cap, and has not been for long.
    fn appends_wait(&self) -> bool {
        self.over_cap && self.tick - self.over_cap_since < self.options.election_ticks as u64
    }

    fn on_append(&mut self, append: Append) {
        let Append { group, command, waiter } = append;
        if self.over_cap && S::adds_data(&command) {
            reached!("append refused, the journal is over its cap");
            let full = if self.health.reserve_reached { vec![self.options.node] } else { Vec::new() };
            return waiter.answer(Err(match full.is_empty() {
                true => CommandError::JournalFull,
                false => CommandError::DiskFull { group, full },
            }));
        }
        let Some(hosted) = self.groups.get_mut(&group) else {
            return waiter.answer(Err(CommandError::NotHosted(group)));
        };
        if !self.full.is_empty() && !hosted.majority_outside(&self.full) && S::adds_data(&command) {
            reached!("append refused, disks are full");
            return waiter.answer(Err(CommandError::DiskFull { group, full: self.full.clone() }));
        }
        let token = self.waiters.insert(Waiting::Proposal(waiter)) as u64;
        hosted.replica.propose(command, token);
        self.dirty.insert(group);
    }

    fn on_command(&mut self, command: Command) {
        match command {
            Command::Tail { group, reply } => match self.groups.get_mut(&group) {
                Some(hosted) => {
                    let token = self.waiters.insert(Waiting::Tail { group, reply }) as u64;
                    hosted.replica.read_index(token);
                    self.dirty.insert(group);
                }
                None => drop(reply.send(Err(CommandError::NotHosted(group)))),
            },
            Command::Read { group, from, bytes_max, reply } => match self.groups.get(&group) {
                Some(hosted) => jobs::read(&hosted.segments, hosted.start(), from, bytes_max, reply),
                None => drop(reply.send(Err(CommandError::NotHosted(group)))),
            },
            Command::OffsetForTime { group, time, reply } => match self.groups.get(&group) {
                Some(hosted) => jobs::offset_for_time(&hosted.segments, time, reply),
                None => drop(reply.send(Err(CommandError::NotHosted(group)))),
            },
            Command::Host { group, id, base } => self.host(group, id, base),
            Command::Remove { group } => self.remove(group),
            Command::Transfer { group, to, reply } => drop(reply.send(self.transfer(group, to))),
            Command::Status { reply } => {
                let replicas = self.groups.iter().map(|(group, hosted)| (*group, hosted.replica.status())).collect();
                let _ = reply.send(DriverStatus { replicas, full: self.full.clone() });
            }
            Command::HandOver { reply } => self.start_hand_over(reply),
        }
    }

    /// Answers whoever waits for a token.
    fn answer(&mut self, token: u64, answer: Answer) {
        match self.waiters.remove(token as usize) {
            Waiting::Proposal(waiter) => waiter.answer(outcome_of(answer)),
            Waiting::Tail { group, reply } => {
                let point = match (answer, self.groups.get(&group)) {
                    (Answer::ReadAt { .. }, Some(hosted)) => Ok(hosted.tail_point()),
                    (Answer::Failed(error), _) => Err(error.into()),
                    (_, _) => Err(CommandError::NotHosted(group)),
                };
                let _ = reply.send(point);
            }
        }
    }

    fn publish_directory(&mut self) {
        let directory = self.groups.iter().map(|(group, hosted)| (*group, hosted.published.subscribe())).collect();
        self.queues.directory.send_replace(Arc::new(directory));
    }

    /// Divides what a node keeps in memory of its logs among the groups: an equal share for each loop.
    fn share_caches(&mut self) {
        let ours = TAIL_CACHES_BYTES / self.siblings.count();
        let share = self.options.segments.tail_cache_bytes.min(ours / self.groups.len().max(1));
        for hosted in self.groups.values_mut() {
            hosted.segments.set_tail_cache_bytes(share);
            hosted.replica.set_log_cache_bytes(share);
        }
    }

    fn replica_options(&self, group: GroupId, id: ReplicaId) -> ReplicaOptions {
        let mut options = ReplicaOptions::new(group, id, self.options.boot);
        options.seed = self.options.seed ^ group.0.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ u64::from(id.node().0) << 48;
        options.tick_ms = self.options.tick_ms;
        options.election_ticks = self.options.election_ticks;
        options.heartbeat_ticks = HEARTBEAT_TICKS;
        options.log_cache_bytes_max = self.options.segments.tail_cache_bytes;
        options
    }

    fn group_dir(&self, group: GroupId) -> PathBuf {
        self.options.groups_dir.join(group.0.to_string())
    }

    fn group_log(&self, group: GroupId) -> Logger {
        self.log.new(o!("group" => group.0))
    }
}

fn carries_entries(message: &crate::peers::wire::GroupMessage) -> bool {
    message.message.as_ref().is_some_and(|message| !message.entries.is_empty())
}
