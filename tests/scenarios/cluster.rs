//! Replicas, their disks in memory, and the network between them. Nothing happens by itself: every delivery, sync and
//! tick is a step that a command asked for.

use super::checks::Checks;
use super::machine::Records;
use super::words;
use balsa::group::effects::{Answer, Effects, Fetch, Token};
use balsa::group::entry;
use balsa::group::log_time::ClockTrust;
use balsa::group::replica::{Replica, ReplicaOptions, Role};
use balsa::ids::{GroupId, LogIndex, NodeId, ReplicaId, Term, TimestampMs};
use balsa::journal::base::Base;
use balsa::journal::{GroupWrite, RecoveredGroup};
use balsa::segments::{EntryKind, Frame};
use raft::eraftpb::{Entry, EntryType, HardState, Message};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// What a replica's journal holds for certain.
#[derive(Clone, Default)]
pub struct Durable {
    pub base: Base,
    pub hard_state: HardState,
    pub entries: Vec<Entry>,
}

impl Durable {
    pub fn last(&self) -> u64 {
        self.entries.last().map_or(self.base.index.0, |entry| entry.index)
    }

    pub fn term_of(&self, index: u64) -> Option<u64> {
        if index == self.base.index.0 {
            return Some(self.base.term.0);
        }
        self.entries.iter().find(|entry| entry.index == index).map(|entry| entry.term)
    }

    fn write(&mut self, write: GroupWrite) {
        if let Some(base) = write.base {
            let beyond = base.index.0 > self.last();
            self.entries.retain(|entry| !beyond && entry.index > base.index.0);
            self.base = *base;
        }
        if let Some(first) = write.entries.first() {
            assert!(first.index > self.base.index.0 && first.index <= self.last() + 1, "a gap in the journal");
            self.entries.retain(|entry| entry.index < first.index);
            self.entries.extend(write.entries);
        }
        if let Some(hard_state) = write.hard_state {
            self.hard_state = hard_state;
        }
    }
}

/// The applied entries that a replica keeps, as its segments would.
#[derive(Clone, Default)]
struct Segments {
    /// Bases of the segments, oldest first.
    bases: Vec<Base>,
    entries: Vec<Entry>,
}

impl Segments {
    /// Runs of terms from the oldest base on.
    fn terms(&self) -> Vec<(LogIndex, Term)> {
        let oldest = &self.bases[0];
        let mut runs = vec![(oldest.index, oldest.term)];
        for entry in &self.entries {
            if runs.last().is_some_and(|run| run.1 .0 != entry.term) {
                runs.push((LogIndex(entry.index), Term(entry.term)));
            }
        }
        runs
    }
}

struct Pending {
    number: u64,
    write: GroupWrite,
    after_sync: Vec<Message>,
    /// The segments before a snapshot replaced them: a crash before the sync brings them back.
    replaced: Option<Segments>,
}

/// One replica with its disk.
pub struct Node {
    pub options: ReplicaOptions,
    pub replica: Option<Replica<Records>>,
    pub durable: Durable,
    segments: Segments,
    pending: VecDeque<Pending>,
    /// Syncs complete only when told.
    pub slow: bool,
    pub fetches: VecDeque<Fetch>,
    pub clock: TimestampMs,
    pub trust: ClockTrust,
    shown: Option<(Role, Term, Option<ReplicaId>)>,
    pub removed: bool,
}

/// The whole.
#[derive(Default)]
pub struct Cluster {
    pub nodes: BTreeMap<u64, Node>,
    pub links: BTreeMap<(u64, u64), VecDeque<Message>>,
    pub cut: BTreeSet<(u64, u64)>,
    pub labels: BTreeMap<Token, String>,
    pub checks: Checks,
    /// Options of nodes to come, set by `cluster`.
    pub tune: BTreeMap<String, u64>,
    /// What happened in the present command.
    pub told: Vec<String>,
    /// Tell messages, writes and applied entries, too.
    pub wordy: bool,
}

/// The base every replica of a new group starts from.
pub fn genesis(voters: &[u64], learners: &[u64]) -> Base {
    let ids = |nodes: &[u64]| nodes.iter().map(|node| id_of(*node).0).collect::<Vec<_>>();
    let conf_state = (ids(voters), ids(learners)).into();
    Base { index: LogIndex(1), term: Term(1), conf_state, ..Base::default() }
}

pub fn id_of(node: u64) -> ReplicaId {
    ReplicaId::founding(NodeId(node as u32))
}

fn node_of(id: u64) -> u64 {
    u64::from(ReplicaId(id).node().0)
}

impl Cluster {
    pub fn add(&mut self, node: u64, base: Base) {
        let mut options = ReplicaOptions::new(GroupId(0), id_of(node), 0);
        options.seed = node;
        for (name, value) in &self.tune {
            match name.as_str() {
                "seed" => options.seed += *value * 1_000,
                "cache" => options.log_cache_bytes_max = *value as usize,
                "pipeline" => options.pipeline_bytes = *value,
                "uncommitted" => options.uncommitted_bytes_max = *value,
                "message" => options.message_bytes_max = *value,
                other => panic!("no option {other}"),
            }
        }
        let durable = Durable { base: base.clone(), ..Durable::default() };
        self.checks.genesis(&durable);
        let segments = Segments { bases: vec![base], entries: Vec::new() };
        let added = Node {
            options,
            replica: None,
            durable,
            segments,
            pending: VecDeque::new(),
            slow: false,
            fetches: VecDeque::new(),
            clock: TimestampMs(1_000_000),
            trust: ClockTrust::Trusted,
            shown: None,
            removed: false,
        };
        self.nodes.insert(node, added);
        self.start(node);
    }

    /// Brings a replica up from its disk.
    pub fn start(&mut self, number: u64) {
        let node = self.nodes.get_mut(&number).expect("a node of the cluster");
        assert!(node.replica.is_none(), "{number} is up");
        node.options.boot += 1;
        node.segments.entries.retain(|entry| entry.index <= node.durable.base.index.0);
        let Durable { base, hard_state, entries } = node.durable.clone();
        let recovered = RecoveredGroup { base, hard_state, entries };
        let log = slog::Logger::root(slog::Discard, slog::o!());
        let replica = Replica::new(node.options.clone(), recovered, node.segments.terms(), log);
        node.replica = Some(replica.expect("a disk that holds together"));
        self.checks.started(number, &node.durable);
        self.turn(number);
    }

    /// Everything not on disk is lost.
    pub fn crash(&mut self, number: u64) {
        let node = self.nodes.get_mut(&number).expect("a node of the cluster");
        node.replica = None;
        node.shown = None;
        node.fetches.clear();
        if let Some(replaced) = node.pending.iter_mut().find_map(|pending| pending.replaced.take()) {
            node.segments = replaced;
        }
        node.pending.clear();
        self.labels.retain(|token, _| token >> 32 != number);
    }

    /// The catalog drops a replica: allowed once a leader knows the change without it to be settled.
    pub fn destroy(&mut self, number: u64) {
        assert!(self.may_destroy(number), "{number} may still be needed");
        self.crash(number);
        self.nodes.get_mut(&number).expect("a node of the cluster").removed = true;
    }

    pub fn may_destroy(&self, number: u64) -> bool {
        let id = id_of(number);
        let replicas = self.nodes.values().filter_map(|node| node.replica.as_ref());
        let settled = replicas.map(Replica::status).filter(|status| status.settled && status.committed_in_term);
        let newest = settled.max_by_key(|status| status.term);
        newest.is_some_and(|status| status.members.iter().all(|member| member.id != id))
    }

    /// Does something to a replica and takes the effects. A replica that is down does nothing.
    pub fn act(&mut self, number: u64, act: impl FnOnce(&mut Replica<Records>)) {
        let node = self.nodes.get_mut(&number).expect("a node of the cluster");
        if let Some(replica) = node.replica.as_mut() {
            act(replica);
            self.turn(number);
        }
    }

    pub fn replica(&self, number: u64) -> &Replica<Records> {
        self.nodes[&number].replica.as_ref().expect("the node is up")
    }

    /// Takes effects until there are no more.
    fn turn(&mut self, number: u64) {
        loop {
            self.show_role(number);
            let node = self.nodes.get_mut(&number).expect("a node of the cluster");
            let Some(replica) = node.replica.as_mut() else { break };
            if let Some(told) = replica.commits_told() {
                replica.tell_commits(told);
            }
            let Some(effects) = replica.take_effects() else { break };
            self.perform(number, effects);
        }
        self.show_role(number);
    }

    fn perform(&mut self, number: u64, mut effects: Effects) {
        for message in std::mem::take(&mut effects.send_now) {
            self.leave(number, message);
        }
        let node = self.nodes.get_mut(&number).expect("a node of the cluster");
        let mut replaced = None;
        if let Some(base) = effects.installed_base() {
            self.told.push(format!("{number} installs a snapshot {}/{}", base.index, base.term));
            self.checks.installed(number, base.index, base.chain, base.term.0);
            replaced = Some(std::mem::take(&mut node.segments));
            node.segments.bases.push(base.clone());
        }
        self.checks.held(number, &effects.write.entries);
        let write = effects.write;
        if self.wordy {
            self.told.extend(told_write(number, &write));
        }
        for frame in &effects.frames {
            self.append(number, frame);
        }
        let node = self.nodes.get_mut(&number).expect("a node of the cluster");
        node.fetches.extend(&effects.fetch);
        for fetch in &effects.fetch {
            self.told.push(format!("{number} {}", words::fetch(fetch)));
        }
        let pending = Pending { number: effects.number, write, after_sync: effects.send_after_sync, replaced };
        node.pending.push_back(pending);
        for (token, answer) in effects.answers {
            self.answer(token, &answer);
        }
        if effects.left {
            self.told.push(format!("{number} is no member any more"));
        }
        self.sync_ready(number);
    }

    /// Syncs that need not be waited for: all of a fast disk, and empty writes with nothing before them.
    fn sync_ready(&mut self, number: u64) {
        loop {
            let node = self.nodes.get_mut(&number).expect("a node of the cluster");
            match node.pending.front() {
                Some(pending) if !node.slow || is_empty(&pending.write) => self.sync_one(number),
                _ => break,
            }
        }
    }

    /// Completes the next sync of a slow disk, and what stood behind it without a write.
    pub fn sync(&mut self, number: u64) -> bool {
        if self.nodes[&number].pending.is_empty() {
            return false;
        }
        self.sync_one(number);
        self.sync_ready(number);
        self.turn(number);
        true
    }

    fn sync_one(&mut self, number: u64) {
        let node = self.nodes.get_mut(&number).expect("a node of the cluster");
        let Some(pending) = node.pending.pop_front() else { return };
        self.checks.exist(&pending.write.entries);
        node.durable.write(pending.write);
        for message in pending.after_sync {
            self.leave(number, message);
        }
        let node = self.nodes.get_mut(&number).expect("a node of the cluster");
        if let Some(replica) = node.replica.as_mut() {
            replica.persisted(pending.number);
        }
    }

    fn append(&mut self, number: u64, frame: &Frame) {
        let node = self.nodes.get_mut(&number).expect("a node of the cluster");
        let commands = commands_of(frame);
        self.checks.applied(number, frame, &node.durable, &commands);
        let kind = match frame.kind {
            EntryKind::Empty | EntryKind::Commands => EntryType::EntryNormal,
            EntryKind::ConfChange => EntryType::EntryConfChangeV2,
        };
        let entry = Entry {
            entry_type: kind.into(),
            index: frame.index.0,
            term: frame.term.0,
            data: frame.data.clone(),
            ..Entry::default()
        };
        if self.wordy {
            self.told.push(format!("{number} applies {}", words::entry(&entry)));
        }
        node.segments.entries.push(entry);
    }

    fn leave(&mut self, number: u64, message: Message) {
        self.checks.leaves(&message, &self.nodes[&number].durable);
        let to = node_of(message.to);
        let lost = self.cut.contains(&(number, to));
        if self.wordy {
            let lost = if lost { " (lost)" } else { "" };
            self.told.push(format!("{}{lost}", words::message(&message)));
        }
        if !lost {
            self.links.entry((number, to)).or_default().push_back(message);
        }
    }

    /// Whether a disk has syncs to complete.
    pub fn has_unsynced(&self, number: u64) -> bool {
        !self.nodes[&number].pending.is_empty()
    }

    /// Hands a message to its receiver.
    pub fn hand_over(&mut self, to: u64, message: Message) {
        let Some(replica) = self.nodes.get_mut(&to).and_then(|node| node.replica.as_mut()) else { return };
        if let Err(refusal) = replica.step(message) {
            self.told.push(format!("{to} refuses: {}", words::plain(&refusal)));
        }
        self.turn(to);
    }

    /// Delivers the next message of a link.
    pub fn deliver(&mut self, from: u64, to: u64) -> bool {
        let message = self.links.get_mut(&(from, to)).and_then(VecDeque::pop_front);
        message.map(|message| self.hand_over(to, message)).is_some()
    }

    /// Reads what a replica asked its segments for.
    pub fn fetch(&mut self, number: u64) -> bool {
        let node = self.nodes.get_mut(&number).expect("a node of the cluster");
        let Some(fetch) = node.fetches.pop_front() else { return false };
        let Some(replica) = node.replica.as_mut() else { return false };
        match fetch {
            Fetch::Base => replica.base_fetched(node.segments.bases[0].clone()),
            Fetch::Entries { lo, hi, .. } => {
                let wanted = node.segments.entries.iter().filter(|entry| (lo.0..hi.0).contains(&entry.index));
                replica.entries_fetched(fetch, wanted.cloned().collect());
            }
        }
        self.turn(number);
        true
    }

    /// The state as of now becomes the base, and a new segment starts with it.
    pub fn roll(&mut self, number: u64) {
        let node = self.nodes.get_mut(&number).expect("a node of the cluster");
        let base = node.replica.as_ref().expect("the node is up").base();
        node.segments.bases.push(base.clone());
        node.durable.write(GroupWrite::of_base(GroupId::default(), base.clone()));
        self.told.push(format!("{number} has its base at {}/{}", base.index, base.term));
    }

    /// Drops all segments before the newest one.
    pub fn trim(&mut self, number: u64) {
        let node = self.nodes.get_mut(&number).expect("a node of the cluster");
        let newest = node.segments.bases.pop().expect("a segment has a base");
        node.segments.entries.retain(|entry| entry.index > newest.index.0);
        node.replica.as_mut().expect("the node is up").log_trimmed(newest.index.next());
        self.told.push(format!("{number} keeps its log from {}", newest.index.next()));
        node.segments.bases = vec![newest];
    }

    pub fn tick(&mut self, number: u64) {
        let node = self.nodes.get_mut(&number).expect("a node of the cluster");
        node.clock.0 += node.options.tick_ms;
        let (clock, trust) = (node.clock, node.trust);
        self.act(number, |replica| replica.tick(clock, trust));
    }

    /// Delivers, syncs and fetches until nothing is left to do.
    pub fn settle(&mut self) {
        for _ in 0..10_000 {
            let links: Vec<(u64, u64)> =
                self.links.iter().filter(|(_, link)| !link.is_empty()).map(|(pair, _)| *pair).collect();
            let nodes: Vec<u64> = self.nodes.keys().copied().collect();
            let mut moved = false;
            for (from, to) in links {
                moved |= self.deliver(from, to);
            }
            for node in nodes {
                moved |= self.fetch(node);
            }
            if !moved {
                return;
            }
        }
        panic!("the cluster does not come to rest");
    }

    fn answer(&mut self, token: Token, answer: &Answer) {
        let label = self.labels.get(&token).expect("a token that was given out").clone();
        self.checks.answered(token, answer, &label);
        self.told.push(format!("answer {}: {}", words::short(&label), words::answer(answer)));
    }

    fn show_role(&mut self, number: u64) {
        let node = self.nodes.get_mut(&number).expect("a node of the cluster");
        let Some(replica) = &node.replica else { return };
        let status = replica.status();
        self.checks.role(number, status.term.0, status.role == Role::Leader);
        self.checks.progress(&status.members);
        let now = (status.role, status.term, status.leader);
        let before = node.shown.replace(now);
        // Who follows whom follows from the rest; told are roles and terms.
        if before.map(|(role, term, _)| (role, term)) != Some((now.0, now.1)) && before.is_some() {
            self.told.push(format!("{number} is {} in term {}", words::role(now.0), now.1));
        }
    }
}

fn is_empty(write: &GroupWrite) -> bool {
    write.hard_state.is_none() && write.entries.is_empty() && write.base.is_none()
}

fn told_write(number: u64, write: &GroupWrite) -> Option<String> {
    let mut parts = Vec::new();
    if let Some(base) = &write.base {
        parts.push(format!("base {}/{}", base.index, base.term));
    }
    if let Some(hard_state) = &write.hard_state {
        let vote = if hard_state.vote == 0 { "nobody".to_owned() } else { words::replica(hard_state.vote) };
        parts.push(format!("term {} vote {vote}", hard_state.term));
    }
    parts.extend(write.entries.iter().map(words::entry));
    (!parts.is_empty()).then(|| format!("{number} writes {}", parts.join(", ")))
}

fn commands_of(frame: &Frame) -> Vec<String> {
    let payload = if frame.kind == EntryKind::Commands { entry::decode(&frame.data) } else { None };
    let commands = payload.map_or_else(Vec::new, |payload| payload.commands);
    commands.iter().map(|command| String::from_utf8_lossy(&command.bytes).into_owned()).collect()
}
