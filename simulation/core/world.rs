//! The world: nodes with their disks and clocks, and the loop that lets one event happen after the other.

use super::chance::Chance;
use super::clients::{Ask, Clients};
use super::disk::{Gate, GROUPS_DIR, JOURNAL_DIR};
use super::mischief::Mischief;
use super::operator::{Operator, NOBODY};
use super::options::Options;
use super::process::{Failure, Home, Process};
use super::shared::{End, Event, Reply, Shared};
use super::watch::Watch;
use crate::faults::FaultClass;
use crate::rules::Down;
use crate::trace::Trace;
use balsa::disk::sim::SimDisk;
use balsa::disk::Disk;
use balsa::group::effects::Token;
use balsa::group::machine::StateMachine;
use balsa::ids::{GroupId, LogIndex, NodeId, ReplicaId, Term, TimestampMs};
use balsa::journal::base::Base;
use balsa::metadata::Machine;
use balsa::partition::{Partition, PartitionSettings};
use bytes::Bytes;
use futures::FutureExt;
use raft::eraftpb::ConfState;
use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};

/// What every clock shows at the beginning.
const EPOCH_MS: u64 = 1_700_000_000_000;
/// Operations that no life gets through.
const NEVER: u64 = 1 << 60;
/// How long a link is silent until it counts as lost.
const SILENCE_US: u64 = 1_000_000;
/// A clock further off than this disagrees.
const CLOCK_SKEW_MAX_MS: u64 = 5_000;

/// One node, through all its lives.
pub struct Node {
    pub home: Home,
    pub process: Option<Process>,
    pub life: u64,
    pub paused_until: u64,
    /// What came while it was paused, in order.
    held: Vec<Event>,
    pub clock_offset_ms: i64,
    pub drift_ppm: i64,
    /// The disk was told to fail, hang or be full in this life.
    pub disk_is_ill: bool,
    /// Files rotted while it was down.
    pub rotted: bool,
    pub rotted_at: u64,
    /// How often they did, since it was whole.
    pub rots: u32,
    /// A cut of the journal's end would be the rot's doing, not noticed as such: nothing on disk proves otherwise.
    pub rotted_unmarked: bool,
    /// The rot is in one of its last rounds: of one that fills a sector, and is zeroed, nothing is left to be cut.
    pub last_rounds_struck: bool,
    /// At its last end all was on record as synced.
    pub was_marked: bool,
    /// How many operations that change its disk its last start took.
    start_operations: u64,
    /// The last rounds of its last life: file, position and length.
    pub last_rounds: VecDeque<(PathBuf, u64, u64)>,
    pub start_due: bool,
    /// Faults that keep the disk slow or hung.
    pub slow_disks: u32,
    /// It is reads alone that they slow down.
    pub reads_slow: bool,
    pub hung_disks: u32,
    pub full_disks: u32,
    /// Its links, by the node at the other end.
    links: Vec<Link>,
}

/// One end of a link, as the node there sees it.
#[derive(Clone, Copy, Default)]
struct Link {
    /// The life of the other node that it is connected to; none if zero.
    life: u64,
    silent_ticks: u64,
}

/// See the module's text.
pub struct World {
    pub shared: Shared,
    /// By number; the one at zero is nobody.
    pub nodes: Vec<Node>,
    pub clients: Clients,
    pub operator: Operator,
    pub mischief: Mischief,
    pub watch: Watch,
    /// What a new replica of a group begins with.
    pub found: BTreeMap<GroupId, Base>,
}

impl World {
    pub fn new(options: Options, mut chance: Chance, trace: Trace) -> World {
        let mut draws = chance.fork(1);
        let mut shared = Shared::new(options.clone(), chance.fork(2), trace);
        let (mut found, mut members) = (BTreeMap::new(), BTreeMap::new());
        for group in 0..=options.groups {
            let nodes = draw_members(group, &options, &mut draws);
            let state = match group {
                0 => Machine::initial_metadata(),
                group => partition_state(GroupId(group), &mut draws),
            };
            let voters: Vec<u64> = nodes.iter().map(|node| ReplicaId::founding(NodeId(*node)).0).collect();
            let conf_state = ConfState::from((voters, Vec::new()));
            let base = Base { index: LogIndex(1), term: Term(1), conf_state, state, ..Base::default() };
            found.insert(GroupId(group), base);
            members.insert(GroupId(group), nodes);
        }
        let nodes = (0..=options.nodes).map(|node| Node::new(node, options.nodes, &members)).collect();
        let clients = Clients::new(&mut shared);
        let mischief = Mischief::new(chance.fork(3), &mut shared);
        for node in 1..=options.nodes {
            let delay_us = draws.below(200_000);
            shared.after(delay_us, Event::Start { node });
        }
        shared.after(1_000_000, Event::Operator);
        shared.after(1_000_000, Event::Watch);
        let operator = Operator::new(chance.fork(4), members);
        let watch = Watch::default();
        World { shared, nodes, clients, operator, mischief, watch, found }
    }

    /// Lets the next event happen. False when none is left, or a rule is broken.
    pub fn step(&mut self) -> bool {
        let Some(event) = self.shared.next() else { return false };
        if let Some((node, until)) = event.handled_by().map(|node| (node, self.nodes[node as usize].paused_until)) {
            if until > self.shared.now {
                self.nodes[node as usize].held.push(event);
                return true;
            }
        }
        self.happen(event);
        self.shared.violation().is_none()
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Tick { node, life } => self.on_tick(node, life),
            Event::Message { from, to, group, message } => {
                if self.shared.network.is_cut(from, to) {
                    return;
                }
                self.with(to, None, |process, shared| process.on_message(from, group, *message, shared));
            }
            Event::Gate { node, life, task, ticket } => {
                self.with(node, Some(life), |process, shared| process.on_gate(task, ticket, shared));
            }
            Event::Synced { node, life, through } => {
                self.with(node, Some(life), |process, shared| process.on_synced(through, shared));
            }
            Event::Idle { node, life, since } => {
                self.with(node, Some(life), |process, shared| process.on_idle(since, shared));
            }
            Event::CommitsDue { node, life } => {
                self.with(node, Some(life), |process, shared| process.on_commits_due(shared));
            }
            Event::Lost { node, peer } => self.lose_link(node, peer),
            Event::Start { node } => self.start(node),
            Event::Request { node, client, token } => self.on_request(node, client, token),
            Event::Answer { token, answer } => self.clients.answered(token, &answer, &mut self.shared),
            Event::Client { client } => self.clients.go_on(client, &mut self.shared),
            Event::Impatient { client, token } => self.clients.impatient(client, token, &mut self.shared),
            Event::Resume { node } if self.nodes[node as usize].paused_until <= self.shared.now => self.resume(node),
            Event::Resume { .. } => {} // a longer pause began meanwhile
            Event::Operator => self.operate(),
            Event::Hasty { node, group } => self.change_hastily(node, group),
            Event::Trim { node, group } => {
                let command = self.clients.trim_to_end(group, &mut self.shared);
                self.with(node, None, |process, shared| {
                    process.act(group, shared, |replica| replica.propose(command, NOBODY));
                });
            }
            Event::MoveBase { node, group } => self.with(node, None, |process, shared| {
                process.start_base_move(group, shared);
                process.turn(shared);
            }),
            Event::Aimed { node, life, strike } => self.strike_aimed(node, life, strike),
            Event::Follow { node } => self.strike_leader(node),
            Event::Fault => self.make_mischief(),
            Event::Over { fault } => self.end_mischief(fault),
            Event::Watch => self.look(),
        }
    }

    /// Does something with a node's process, if it is up and still the same; ends it if it failed.
    pub fn with(&mut self, node: u32, life: Option<u64>, act: impl FnOnce(&mut Process, &mut Shared)) {
        let at = &mut self.nodes[node as usize];
        let Some(process) = at.process.as_mut().filter(|process| life.is_none_or(|life| process.life == life)) else {
            return;
        };
        act(process, &mut self.shared);
        if process.failure.is_some() {
            self.failed(node);
        }
    }

    fn failed(&mut self, node: u32) {
        let at = &mut self.nodes[node as usize];
        let Some(failure) = at.process.as_mut().and_then(|process| process.failure.take()) else { return };
        self.shared.event(node, "failed", &[], || failure.to_string());
        let excused = at.disk_is_ill || (at.rotted && failure.is_corruption());
        if !excused {
            self.shared.broke("failed-unharmed", &[node], format!("node {node} ends by itself: {failure}"));
        }
        self.shared.coverage.hit("branch.node-ended-itself");
        let (rotted, corrupt) = (at.rotted, failure.is_corruption());
        self.end(node, End::Kill);
        if rotted && corrupt {
            self.wipe(node);
        }
    }

    pub fn is_up(&self, node: u32) -> bool {
        self.nodes[node as usize].process.is_some()
    }

    fn start(&mut self, node: u32) {
        let at = &mut self.nodes[node as usize];
        at.start_due = false;
        if at.process.is_some() {
            return;
        }
        at.life += 1;
        at.disk_is_ill = at.slow_disks + at.hung_disks + at.full_disks > 0;
        self.shared.lives[node as usize] = at.life;
        let crash = self.crash_while_starting(node);
        let at = &mut self.nodes[node as usize];
        let began = at.home.disk.operations();
        let started = Process::start(&at.home, at.life, &mut self.shared, &self.found);
        if let Some(how) = crash {
            if at.home.disk.operations() >= began + self.mischief.start_crash_after {
                drop(started);
                return self.crashed_while_starting(node, how);
            }
            at.home.disk.freeze_after(NEVER);
        }
        at.start_operations = at.home.disk.operations() - began;
        match started {
            Ok((process, cut)) => {
                at.home.is_founded = true;
                process.gate.set_hung(at.hung_disks > 0);
                at.set_pace(&process.gate);
                let life = at.life;
                at.process = Some(process);
                self.shared.event(node, "up", &[life], || format!("life {life}"));
                let delay_us = self.shared.chance.below(self.shared.options.tick_us);
                self.shared.after(delay_us, Event::Tick { node, life });
                if cut && at.was_marked && at.rots < 2 && !self.shared.options.over_budget {
                    let what = format!("node {node} cuts its journal, though all of it was on record as synced");
                    self.shared.broke("durability-lost", &[node], what);
                }
                let at = &self.nodes[node as usize];
                if at.rotted_unmarked && (cut || at.last_rounds_struck) {
                    // Its last round may be gone, and nobody can tell.
                    self.end(node, End::Kill);
                    self.wipe(node);
                }
            }
            Err(failure) => self.start_failed(node, failure),
        }
    }

    /// Now and then a node crashes while it starts, between any two operations that change its disk.
    fn crash_while_starting(&mut self, node: u32) -> Option<End> {
        let how = self.crash_of_start()?;
        let at = &self.nodes[node as usize];
        self.mischief.start_crash_after = self.shared.chance.below(at.start_operations + 2);
        at.home.disk.freeze_after(self.mischief.start_crash_after);
        Some(how)
    }

    fn crashed_while_starting(&mut self, node: u32, how: End) {
        let after = self.mischief.start_crash_after;
        self.shared
            .event(node, "down", &[how as u64, after], || format!("{how:?} while starting, after {after} operations"));
        self.struck(if how == End::Kill { FaultClass::Kill } else { FaultClass::PowerLoss });
        self.shared.coverage.hit("operation.crash-while-starting");
        let seed = self.shared.chance.next();
        let at = &mut self.nodes[node as usize];
        at.home.disk = match how {
            End::Kill => at.home.disk.restart(),
            End::PowerLoss => at.home.disk.crash(seed),
        };
        at.was_marked = false;
        self.shared.rules.node_down(node, Down::Intact);
        let delay_us = self.shared.chance.within(20_000..500_000);
        self.start_later(node, delay_us);
    }

    fn start_failed(&mut self, node: u32, failure: Failure) {
        self.shared.event(node, "refuses", &[], || format!("to start: {failure}"));
        let at = &mut self.nodes[node as usize];
        at.was_marked = false;
        at.home.disk = at.home.disk.restart();
        if failure.is_corruption() && at.rotted {
            self.shared.coverage.hit("branch.rot-noticed-at-start");
            self.wipe(node);
            self.start_later(node, 100_000);
        } else if at.disk_is_ill {
            self.start_later(node, 500_000);
        } else {
            let files = self.files_of(node);
            self.shared.broke(
                "refused-unharmed",
                &[node],
                format!("node {node} does not start: {failure}; it has {files:?}"),
            );
        }
    }

    /// All files of a node.
    pub fn files_of(&self, node: u32) -> Vec<PathBuf> {
        let groups = self.found.keys().map(|group| Path::new(GROUPS_DIR).join(group.0.to_string()));
        let dirs = groups.chain([PathBuf::from(JOURNAL_DIR)]);
        let disk = &self.nodes[node as usize].home.disk;
        dirs.flat_map(|dir| disk.list(&dir).now_or_never().and_then(Result::ok).unwrap_or_default()).collect()
    }

    pub fn journal_files(&self, node: u32) -> usize {
        let disk = &self.nodes[node as usize].home.disk;
        let files = disk.list(Path::new(JOURNAL_DIR)).now_or_never().and_then(Result::ok).unwrap_or_default();
        let is_log = |path: &PathBuf| {
            path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with("journal-"))
        };
        files.iter().filter(|path| is_log(path)).count()
    }

    pub fn start_later(&mut self, node: u32, delay_us: u64) {
        let at = &mut self.nodes[node as usize];
        if !at.start_due {
            at.start_due = true;
            self.shared.after(delay_us, Event::Start { node });
        }
    }

    /// A node's pause is over: what came meanwhile happens now, in order.
    pub fn resume(&mut self, node: u32) {
        let at = &mut self.nodes[node as usize];
        at.paused_until = 0;
        for event in std::mem::take(&mut at.held) {
            self.shared.after(0, event);
        }
    }

    /// A process ends. It starts again by itself, a little later.
    pub fn end(&mut self, node: u32, how: End) {
        let seed = self.shared.chance.next();
        let at = &mut self.nodes[node as usize];
        let Some(process) = at.process.take() else { return };
        at.was_marked = process.is_marked;
        at.last_rounds = process.gate.last_rounds();
        at.links.fill(Link::default());
        at.home.disk = process.end(how, &at.home.disk, seed);
        if at.full_disks == 0 {
            at.home.disk.set_capacity(None);
        }
        self.resume(node);
        self.shared.event(node, "down", &[how as u64], || format!("{how:?}"));
        self.shared.rules.node_down(node, Down::Intact);
        let down_us = match self.shared.chance.below(4) {
            0 => self.shared.chance.within(20_000..200_000),
            1 => self.shared.chance.within(1_000_000..6_000_000),
            _ => self.shared.chance.within(200_000..2_000_000),
        };
        let down_us = if self.watch.is_healed { 100_000 } else { down_us };
        self.start_later(node, down_us);
        for other in 1..=self.shared.options.nodes {
            if other != node && self.shared.chance.ratio(3, 4) {
                let delay_us = self.shared.chance.within(20_000..300_000);
                self.shared.after(delay_us, Event::Lost { node: other, peer: node });
            }
        }
    }

    /// What a node held is gone; it comes back as another one, which the operator has replace it.
    pub fn wipe(&mut self, node: u32) {
        self.shared.rules.node_lost(node);
        self.shared.event(node, "wiped", &[], String::new);
        let at = &mut self.nodes[node as usize];
        at.rotted = false;
        at.rotted_unmarked = false;
        at.last_rounds_struck = false;
        at.rots = 0;
        at.home.generation += 1;
        at.home.is_founded = false;
        at.home.disk = SimDisk::new();
        for id in at.home.ids.values_mut() {
            *id = ReplicaId::new(NodeId(node), id.generation() + 1);
        }
    }

    fn on_tick(&mut self, node: u32, life: u64) {
        if self.nodes[node as usize].life != life || !self.is_up(node) {
            return;
        }
        let at = &self.nodes[node as usize];
        let tick_us = self.shared.options.tick_us as i64;
        let next_us = (tick_us + tick_us * at.drift_ppm / 1_000_000).max(1_000) as u64;
        self.shared.after(next_us, Event::Tick { node, life });
        let now_ms = self.clock_ms(node);
        let full = self.full_nodes(node);
        let trust = self.clock_agrees(node);
        self.look_at_links(node);
        self.with(node, Some(life), |process, shared| {
            process.trust = trust;
            process.on_tick(TimestampMs(now_ms), &full, shared);
        });
    }

    /// Links beat both ways: one that stands wakes groups as it is made, and is lost after some silence.
    fn look_at_links(&mut self, node: u32) {
        let patience = SILENCE_US / self.shared.options.tick_us;
        for other in 1..=self.shared.options.nodes {
            let at = &self.nodes[other as usize];
            let is_there = other != node && at.process.is_some() && at.paused_until <= self.shared.now;
            let network = &self.shared.network;
            let beats = is_there && !network.is_cut(node, other) && !network.is_cut(other, node);
            let life = at.life;
            let link = &mut self.nodes[node as usize].links[other as usize];
            if beats {
                let is_new = link.life != life;
                *link = Link { life, silent_ticks: 0 };
                if is_new {
                    self.with(node, None, |process, shared| process.on_connected(other, shared));
                }
            } else if link.life != 0 {
                link.silent_ticks += 1;
                if link.silent_ticks > patience {
                    self.lose_link(node, other);
                }
            }
        }
    }

    fn lose_link(&mut self, node: u32, peer: u32) {
        self.nodes[node as usize].links[peer as usize] = Link::default();
        self.with(node, None, |process, shared| process.on_lost(peer, shared));
    }

    fn clock_ms(&self, node: u32) -> u64 {
        let at = &self.nodes[node as usize];
        let passed_ms = (self.shared.now / 1_000) as i64;
        let shown = passed_ms + passed_ms * at.drift_ppm / 1_000_000 + at.clock_offset_ms;
        (EPOCH_MS as i64 + shown).max(0) as u64
    }

    fn clock_agrees(&self, node: u32) -> bool {
        let mine = self.clock_ms(node);
        let others: Vec<u32> = self.heard(node).collect();
        let agreeing = others.iter().filter(|other| self.clock_ms(**other).abs_diff(mine) <= CLOCK_SKEW_MAX_MS).count();
        agreeing + 1 > others.len().div_ceil(2)
    }

    /// The nodes that a node hears now.
    fn heard(&self, node: u32) -> impl Iterator<Item = u32> + '_ {
        (1..=self.shared.options.nodes)
            .filter(move |other| *other != node && self.is_up(*other) && !self.shared.network.is_cut(*other, node))
    }

    fn is_full(&self, node: u32) -> bool {
        self.nodes[node as usize].process.as_ref().is_some_and(|process| process.reserve_reached)
    }

    fn full_nodes(&self, node: u32) -> Vec<NodeId> {
        self.heard(node).chain([node]).filter(|other| self.is_full(*other)).map(NodeId).collect()
    }

    fn on_request(&mut self, node: u32, client: usize, token: Token) {
        if self.shared.network.clients_cut[node as usize] > 0 {
            return;
        }
        let Some((group, ask)) = self.clients.asked(client, token) else { return };
        if !self.is_up(node) {
            let delay_us = self.shared.client_latency();
            return self.shared.after(delay_us, Event::Answer { token, answer: Box::new(Reply::Refused) });
        }
        let full = self.full_nodes(node);
        self.with(node, None, |process, shared| {
            let taken = match ask {
                Ask::Command(command) => process.on_append(group, command, token, &full, shared),
                Ask::Tail => {
                    let hosts = process.groups.contains_key(&group);
                    process.act(group, shared, |replica| replica.read_index(token));
                    hosts
                }
                Ask::Read { from, bytes_max } => {
                    process.read(group, from, bytes_max, shared);
                    false
                }
            };
            if !taken {
                process.answer(token, Reply::Refused, shared);
            }
        });
    }

    /// How fast a node's disk is.
    pub fn set_pace(&mut self, node: u32) {
        let at = &self.nodes[node as usize];
        if let Some(process) = &at.process {
            at.set_pace(&process.gate);
        }
    }

    /// From here on a node's disk has so much room left.
    pub fn leave_space(&mut self, node: u32, rest: u64) {
        let at = &mut self.nodes[node as usize];
        let path = PathBuf::from("/");
        at.home.disk.set_capacity(Some(1 << 40));
        let free = at.home.disk.free_bytes(&path).now_or_never().and_then(Result::ok).unwrap_or(1 << 40);
        let used = (1 << 40) - free;
        at.home.disk.set_capacity(Some(used + rest));
    }

    pub fn struck(&mut self, class: FaultClass) {
        self.shared.struck(class);
    }
}

impl Node {
    fn set_pace(&self, gate: &Gate) {
        let is_slow = self.slow_disks > 0;
        gate.set_slowness(if is_slow && !self.reads_slow { 20 } else { 1 });
        gate.set_reads_slow(is_slow && self.reads_slow);
    }

    fn new(node: u32, nodes: u32, members: &BTreeMap<GroupId, Vec<u32>>) -> Node {
        let hosts = members.iter().filter(|(_, nodes)| nodes.contains(&node));
        let ids = hosts.map(|(group, _)| (*group, ReplicaId::founding(NodeId(node)))).collect();
        Node {
            home: Home { node, disk: SimDisk::new(), generation: 0, ids, is_founded: false },
            process: None,
            life: 0,
            paused_until: 0,
            held: Vec::new(),
            clock_offset_ms: 0,
            drift_ppm: 0,
            disk_is_ill: false,
            rotted: false,
            rotted_at: 0,
            rots: 0,
            rotted_unmarked: false,
            last_rounds_struck: false,
            was_marked: false,
            start_operations: 20,
            last_rounds: VecDeque::new(),
            links: vec![Link::default(); nodes as usize + 1],
            start_due: false,
            slow_disks: 0,
            reads_slow: false,
            hung_disks: 0,
            full_disks: 0,
        }
    }
}

/// The state of a new partition. Its sessions are forgotten soon, so that a run sees it happen.
fn partition_state(group: GroupId, chance: &mut Chance) -> Bytes {
    let session_expiry_ms = chance.within(4_000..40_000);
    let named_session_expiry_ms = session_expiry_ms * 2;
    let settings = PartitionSettings { group, session_expiry_ms, named_session_expiry_ms };
    Machine::Partition(Partition::new(settings)).snapshot()
}

/// All nodes vote in group 0; a partition has some of them.
fn draw_members(group: u64, options: &Options, chance: &mut Chance) -> Vec<u32> {
    let mut nodes: Vec<u32> = (1..=options.nodes).collect();
    let is_lone = options.has_lone && group == options.groups;
    let replicas = if is_lone { 1 } else { options.replication };
    while group > 0 && nodes.len() > replicas as usize {
        let at = chance.below(nodes.len() as u64) as usize;
        nodes.remove(at);
    }
    nodes
}
