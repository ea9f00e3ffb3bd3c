//! What all parts of the world share: time and the queue of what is to happen, the network, the rules, the trace.

use super::chance::Chance;
use super::ledger::Ledger;
use super::options::{Options, FAULTS_MIN, OPERATIONS_MIN, STORM_MAX_US, STORM_US};
use crate::coverage::Coverage;
use crate::faults::{FaultClass, Trigger};
use crate::rules::{Broken, Rules};
use crate::trace::Trace;
use balsa::group::effects::{Answer, Token};
use balsa::group::observe::Observed;
use balsa::ids::{GroupId, ReplicaId};
use raft::eraftpb::{Message, MessageType};
use std::cmp::Ordering;
use std::collections::{BTreeMap, BinaryHeap};

/// How a process ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// What was written survives, synced or not.
    Kill,
    /// What was not synced is lost, kept or torn.
    PowerLoss,
}

/// Something that happens at its time.
pub enum Event {
    Tick {
        node: u32,
        life: u64,
    },
    Message {
        from: u32,
        to: u32,
        group: GroupId,
        message: Box<Message>,
    },
    /// An operation of a disk may pass its gate.
    Gate {
        node: u32,
        life: u64,
        task: u64,
        ticket: u64,
    },
    /// The journal's report reaches the driver.
    Synced {
        node: u32,
        life: u64,
        through: u64,
    },
    /// Nothing was submitted to the journal for a moment.
    Idle {
        node: u32,
        life: u64,
        since: u64,
    },
    /// Commits have waited long enough for an append that tells of them.
    CommitsDue {
        node: u32,
        life: u64,
    },
    Start {
        node: u32,
    },
    /// A node notices that the connection to another broke.
    Lost {
        node: u32,
        peer: u32,
    },
    /// A client's request reaches a node.
    Request {
        node: u32,
        client: usize,
        token: Token,
    },
    /// An answer reaches its client.
    Answer {
        token: Token,
        answer: Box<Reply>,
    },
    /// A client does the next thing.
    Client {
        client: usize,
    },
    /// A client has waited long enough.
    Impatient {
        client: usize,
        token: Token,
    },
    Operator,
    /// Members of a group are changed at once, by whoever was just elected.
    Hasty {
        node: u32,
        group: GroupId,
    },
    /// A log is trimmed to its end, while somebody reads it.
    Trim {
        node: u32,
        group: GroupId,
    },
    /// A group's base moves, whether it is worth it or not.
    MoveBase {
        node: u32,
        group: GroupId,
    },
    /// An aimed fault strikes a node.
    Aimed {
        node: u32,
        life: u64,
        strike: Strike,
    },
    /// A leader is struck a moment after another node was.
    Follow {
        node: u32,
    },
    Fault,
    /// The fault of this number is over.
    Over {
        fault: u64,
    },
    /// A pause may be over.
    Resume {
        node: u32,
    },
    /// Liveness is looked at.
    Watch,
}

impl Event {
    /// The node whose process handles it; while it stands still, so does the event.
    pub fn handled_by(&self) -> Option<u32> {
        match self {
            Event::Tick { node, .. }
            | Event::Gate { node, .. }
            | Event::Synced { node, .. }
            | Event::Idle { node, .. }
            | Event::CommitsDue { node, .. }
            | Event::Lost { node, .. }
            | Event::Request { node, .. }
            | Event::Hasty { node, .. }
            | Event::Trim { node, .. }
            | Event::MoveBase { node, .. } => Some(*node),
            Event::Message { to, .. } => Some(*to),
            _ => None,
        }
    }
}

/// What a client is told.
#[derive(Clone, Debug)]
pub enum Reply {
    Told(Answer),
    /// It was not taken; nothing happened.
    Refused,
}

struct Queued {
    at: u64,
    number: u64,
    event: Event,
}

impl PartialEq for Queued {
    fn eq(&self, other: &Queued) -> bool {
        (self.at, self.number) == (other.at, other.number)
    }
}

impl Eq for Queued {}

impl PartialOrd for Queued {
    fn partial_cmp(&self, other: &Queued) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Queued {
    fn cmp(&self, other: &Queued) -> Ordering {
        (other.at, other.number).cmp(&(self.at, self.number))
    }
}

/// The links between nodes: one ordered stream for each pair and direction, as in the shipped node.
///
/// While messages are reordered or doubled, any single one may come late or twice, further than what a link that reconnects can
/// do. Raft 0.7 has a known weakness there (next falls below match after a delayed reject), but `group::inbound` claims to mend
/// it; holding back here would leave that claim untested.
pub struct Network {
    nodes: usize,
    /// By how many faults a direction is cut.
    cuts: Vec<u32>,
    /// Whether the pair was whole at some time since the last look.
    whole: Vec<bool>,
    /// By how many faults a direction is slow.
    slow: Vec<u32>,
    /// When the last message of a direction arrives.
    last: Vec<u64>,
    /// Out of a thousand.
    pub loss: u64,
    pub delays: bool,
    pub reorders: bool,
    pub doubles: bool,
    pub clients_cut: Vec<u32>,
}

impl Network {
    pub fn new(nodes: u32) -> Network {
        let nodes = nodes as usize + 1;
        Network {
            nodes,
            cuts: vec![0; nodes * nodes],
            whole: vec![true; nodes * nodes],
            slow: vec![0; nodes * nodes],
            last: vec![0; nodes * nodes],
            loss: 0,
            delays: false,
            reorders: false,
            doubles: false,
            clients_cut: vec![0; nodes],
        }
    }

    fn pair(&self, from: u32, to: u32) -> usize {
        from as usize * self.nodes + to as usize
    }

    pub fn cut(&mut self, from: u32, to: u32) {
        let pair = self.pair(from, to);
        self.cuts[pair] += 1;
    }

    pub fn mend(&mut self, from: u32, to: u32) {
        let pair = self.pair(from, to);
        self.cuts[pair] -= 1;
        self.whole[pair] |= self.cuts[pair] == 0;
    }

    pub fn slow(&mut self, from: u32, to: u32) {
        let pair = self.pair(from, to);
        self.slow[pair] += 1;
    }

    pub fn quicken(&mut self, from: u32, to: u32) {
        let pair = self.pair(from, to);
        self.slow[pair] -= 1;
    }

    pub fn is_cut(&self, from: u32, to: u32) -> bool {
        self.cuts[self.pair(from, to)] > 0
    }

    /// Whether nothing came through since [`Network::looked_at`]. A link that flaps is not cut, though each look may find it so.
    pub fn was_cut(&self, from: u32, to: u32) -> bool {
        !self.whole[self.pair(from, to)]
    }

    /// Somebody who looks again and again has looked.
    pub fn looked_at(&mut self) {
        self.whole = self.cuts.iter().map(|cuts| *cuts == 0).collect();
    }

    /// Whether two nodes talk to each other without hindrance.
    pub fn is_well(&self, one: u32, other: u32) -> bool {
        let well = |pair: usize| self.cuts[pair] == 0 && self.slow[pair] == 0;
        well(self.pair(one, other)) && well(self.pair(other, one))
    }

    pub fn is_calm(&self) -> bool {
        self.loss == 0 && !self.delays && !self.reorders && !self.doubles
    }
}

/// What an aimed fault does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Strike {
    End(End),
    /// The disk answers no more for a while.
    Hang,
    /// The node stands still for a while.
    Pause,
    /// It is cut off from all others for a while.
    CutOff,
    /// Hardly any room is left on its disk for a while.
    Fill,
}

/// A fault that waits for its moment.
#[derive(Clone, Copy, Debug)]
pub struct Armed {
    pub trigger: Trigger,
    /// How many such moments pass before.
    pub skip: u64,
    pub strike: Strike,
    /// A leader is struck soon after.
    pub follows: bool,
}

/// See the module's text.
pub struct Shared {
    pub now: u64,
    queue: BinaryHeap<Queued>,
    number: u64,
    pub options: Options,
    pub chance: Chance,
    pub rules: Rules,
    pub trace: Trace,
    pub coverage: Coverage,
    pub network: Network,
    pub ledgers: BTreeMap<GroupId, Ledger>,
    pub armed: Vec<Armed>,
    pub faults: u64,
    pub operations: u64,
    pub lives: Vec<u64>,
    pub broken: Option<Broken>,
}

impl Shared {
    pub fn new(options: Options, chance: Chance, trace: Trace) -> Shared {
        let nodes = options.nodes;
        Shared {
            now: 0,
            queue: BinaryHeap::new(),
            number: 0,
            rules: Rules::new(options.journal.round_bytes_max),
            network: Network::new(nodes),
            options,
            chance,
            trace,
            coverage: Coverage::default(),
            ledgers: BTreeMap::new(),
            armed: Vec::new(),
            faults: 0,
            operations: 0,
            lives: vec![0; nodes as usize + 1],
            broken: None,
        }
    }

    pub fn after(&mut self, delay_us: u64, event: Event) {
        self.number += 1;
        self.queue.push(Queued { at: self.now + delay_us, number: self.number, event });
    }

    /// Between a client and a node.
    pub fn client_latency(&mut self) -> u64 {
        let (from, to) = self.options.latency_us;
        self.chance.within(from..to.max(from + 1))
    }

    /// The next event, with time moved on to it.
    pub fn next(&mut self) -> Option<Event> {
        let next = self.queue.pop()?;
        self.now = next.at;
        Some(next.event)
    }

    pub fn observe(&mut self, node: u32, group: GroupId, observed: &Observed<'_>) {
        self.rules.observe(self.now, node, group, observed);
        if let Observed::Taken { effects, .. } = observed {
            let ledger = self.ledgers.entry(group).or_default();
            for frame in &effects.frames {
                if let Err((rule, what)) = ledger.applied(frame) {
                    self.broken.get_or_insert(Broken { rule, what, nodes: vec![node] });
                }
            }
        }
    }

    pub fn broke(&mut self, rule: &'static str, nodes: &[u32], what: String) {
        let (seconds, micros) = (self.now / 1_000_000, self.now % 1_000_000);
        let what = format!("at {seconds}.{micros:06}: {what}");
        self.broken.get_or_insert(Broken { rule, what, nodes: nodes.to_vec() });
    }

    pub fn violation(&self) -> Option<&Broken> {
        self.rules.violation().or(self.broken.as_ref())
    }

    pub fn event(&mut self, node: u32, kind: &'static str, numbers: &[u64], text: impl FnOnce() -> String) {
        self.trace.event(self.now, node, kind, numbers, text);
    }

    /// Whether faults strike: for a minute, or until there was enough of everything.
    pub fn is_stormy(&self) -> bool {
        let is_poor = self.faults < FAULTS_MIN || self.operations < OPERATIONS_MIN;
        self.now < STORM_US || (is_poor && self.now < STORM_MAX_US && !self.options.faults.0.is_empty())
    }

    /// A fault of this class struck.
    pub fn struck(&mut self, class: FaultClass) {
        self.faults += 1;
        self.coverage.hit(&format!("fault.{class}"));
    }

    /// A moment came that crashes are aimed at; one may be waiting for it.
    pub fn moment(&mut self, trigger: Trigger, node: u32) {
        self.coverage.hit(TRIGGER_NAMES[trigger as usize]);
        let Some(at) = self.armed.iter().position(|armed| armed.trigger == trigger) else { return };
        let armed = &mut self.armed[at];
        if armed.skip > 0 {
            armed.skip -= 1;
            return;
        }
        let Armed { strike, follows, .. } = self.armed.swap_remove(at);
        let at_once = matches!(trigger, Trigger::JointEntered | Trigger::JointInherited)
            || strike == Strike::Fill
            || self.chance.ratio(1, 2);
        let delay_us = if at_once { 0 } else { self.chance.within(0..400) };
        let life = self.lives[node as usize];
        self.event(node, "aimed", &[trigger as u64, life], || format!("{strike:?} at {trigger}"));
        self.after(delay_us, Event::Aimed { node, life, strike });
        if follows {
            let delay_us = self.chance.within(5_000..900_000);
            self.after(delay_us, Event::Follow { node });
        }
    }

    /// A node was elected: now and then it is asked at once to change the members of its group.
    pub fn hasten(&mut self, node: u32, group: GroupId) {
        if self.options.faults.has(FaultClass::Membership) && self.is_stormy() && self.chance.ratio(1, 4) {
            let delay_us = self.chance.within(0..8_000);
            self.after(delay_us, Event::Hasty { node, group });
        }
    }

    /// A leader reads in its segments for a follower: now and then the log is trimmed at once, and what it reads goes.
    pub fn trim_meanwhile(&mut self, node: u32, group: GroupId, out_of: u64) {
        if group != GroupId(0) && self.is_stormy() && self.chance.ratio(1, out_of) {
            self.after(0, Event::Trim { node, group });
            let delay_us = self.chance.within(2_000..200_000);
            self.after(delay_us, Event::MoveBase { node, group });
        }
    }

    /// Hands a message to the network.
    pub fn send(&mut self, from: u32, group: GroupId, message: Message) {
        let to = ReplicaId(message.to).node().0;
        let kind = message.msg_type();
        if kind == MessageType::MsgTimeoutNow {
            self.moment(Trigger::MidTransfer, from);
        }
        let numbers = [u64::from(to), group.0, message.msg_type as u64, message.term, message.index, message.commit];
        let lost = self.network.is_cut(from, to) || self.chance.ratio(self.network.loss, 1_000);
        self.trace.event(self.now, from, "send", &numbers, || {
            let lost = if lost { " (lost)" } else { "" };
            format!("g{group} to n{to}: {}{lost}", describe(&message))
        });
        if lost || to == 0 || to > self.options.nodes {
            return;
        }
        let latency = self.options.latency_us;
        let pair = self.network.pair(from, to);
        let mut delay_us = self.chance.within(latency.0..latency.1.max(latency.0 + 1));
        if self.network.slow[pair] > 0 {
            delay_us += self.chance.within(50_000..400_000);
        }
        if self.network.delays && self.chance.ratio(1, 20) {
            delay_us += self.chance.within(10_000..600_000);
        }
        if self.network.doubles && self.chance.ratio(1, 20) {
            let late_us = delay_us + self.chance.within(0..800_000);
            self.after(late_us, Event::Message { from, to, group, message: Box::new(message.clone()) });
        }
        if self.network.reorders && self.chance.ratio(1, 20) {
            let late_us = delay_us + self.chance.within(0..400_000);
            self.after(late_us, Event::Message { from, to, group, message: Box::new(message) });
            return;
        }
        let arrives = (self.now + delay_us).max(self.network.last[pair]);
        self.network.last[pair] = arrives;
        self.after(arrives - self.now, Event::Message { from, to, group, message: Box::new(message) });
    }
}

/// A message in a few words.
pub fn describe(message: &Message) -> String {
    let kind = format!("{:?}", message.msg_type());
    let kind = kind.trim_start_matches("Msg");
    let rejects = if message.reject { " rejects" } else { "" };
    let entries = match message.entries.len() {
        0 => String::new(),
        count => format!(" +{count}"),
    };
    format!(
        "{kind}{rejects} term {} at {}/{}{entries} commit {}",
        message.term, message.index, message.log_term, message.commit
    )
}

/// The coverage counters of the triggers, made once: moments come often.
const TRIGGER_NAMES: [&str; Trigger::ALL.len()] = [
    "trigger.after-vote",
    "trigger.between-write-and-sync",
    "trigger.after-sync-before-answer",
    "trigger.segment-seal",
    "trigger.file-recycling",
    "trigger.rename",
    "trigger.first-entry-of-term",
    "trigger.mid-transfer",
    "trigger.configuration-appended",
    "trigger.snapshot-install",
    "trigger.base-moved",
    "trigger.group-created",
    "trigger.journal-idle",
    "trigger.joint-entered",
    "trigger.joint-inherited",
];
