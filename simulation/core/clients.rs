//! Clients of the groups: producers with and without a session, readers, users of the catalog. They time out, retry what may be retried, and
//! go through any node.
//!
//! What they are told is held against the ledger at once: an acknowledged record lies where it was said to lie, a denied one nowhere, and no
//! tail is behind what was acknowledged before it was asked for.

use super::chance::Chance;
use super::ledger::Ledger;
use super::shared::{Event, Reply, Shared};
use balsa::batch::{BatchBuilder, RecordRef};
use balsa::group::effects::{Answer, Token};
use balsa::ids::{ClusterId, GroupId, Incarnation, NodeId, Offset, ProducerId, Term, TimestampMs, TopicId};
use balsa::metadata::command::{Bootstrap, MetadataCommand, NodeRegistration};
use balsa::partition::command::{opened, AppendCommand, Fence, PartitionCommand};
use balsa::segments::verdict::{Refusal, Verdict};
use bytes::Bytes;
use std::sync::Arc;

/// What a client is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Purpose {
    /// Appends in a session; retries until it knows.
    Producer,
    /// Appends without a session; never retries what may have happened.
    Plain,
    /// Asks for tails, one right after the other, so that a replica has several reads under way.
    Reader,
    Catalog,
}

/// What is asked of a node.
#[derive(Clone, Debug)]
pub enum Ask {
    Command(Bytes),
    Tail,
    Read { from: u64, bytes_max: usize },
}

/// An operation under way.
struct Operation {
    ask: Ask,
    payloads: Vec<u64>,
    in_session: bool,
    opens: bool,
    token: Token,
    /// What was acknowledged when it began.
    floor: u64,
    /// An attempt may have happened, or may still.
    is_unknown: bool,
    attempts: u32,
}

struct Client {
    group: GroupId,
    purpose: Purpose,
    node: u32,
    session: Option<(ProducerId, u16)>,
    sequence: u32,
    name: Option<Arc<str>>,
    operation: Option<Operation>,
    made: u64,
}

/// All clients.
pub struct Clients {
    clients: Vec<Client>,
    chance: Chance,
    token: Token,
    /// Which client waits for which token.
    waiting: std::collections::BTreeMap<Token, usize>,
    /// No new operations begin.
    pub closing: bool,
    log_start: std::collections::BTreeMap<GroupId, u64>,
    /// Until when nobody begins anything in a group.
    quiet_until: std::collections::BTreeMap<GroupId, u64>,
}

impl Clients {
    pub fn new(shared: &mut Shared) -> Clients {
        let mut chance = shared.chance.fork(7);
        let mut clients = Vec::new();
        for group in 0..=shared.options.groups {
            let appenders = shared.options.clients_per_group;
            let count = if group == 0 { 2 } else { appenders + shared.options.readers_per_group };
            for number in 0..count {
                let purpose = match (group, number) {
                    (0, _) => Purpose::Catalog,
                    (_, 0) => Purpose::Plain,
                    (_, number) if number < appenders => Purpose::Producer,
                    _ => Purpose::Reader,
                };
                clients.push(Client {
                    group: GroupId(group),
                    purpose,
                    node: 1 + chance.below(shared.options.nodes.into()) as u32,
                    session: None,
                    sequence: 0,
                    name: (number == 1).then(|| format!("producer {number}").into()),
                    operation: None,
                    made: 0,
                });
            }
        }
        for client in 0..clients.len() {
            let delay_us = chance.within(200_000..2_000_000);
            shared.after(delay_us, Event::Client { client });
        }
        Clients {
            clients,
            chance,
            token: 0,
            waiting: Default::default(),
            closing: false,
            log_start: Default::default(),
            quiet_until: Default::default(),
        }
    }

    /// Whether nobody waits for anything.
    pub fn are_done(&self) -> bool {
        self.clients.iter().all(|client| client.operation.is_none())
    }

    /// What token `token` asks for, and of which group; nothing if nobody waits for it any more.
    pub fn asked(&self, client: usize, token: Token) -> Option<(GroupId, Ask)> {
        let client = &self.clients[client];
        let operation = client.operation.as_ref().filter(|operation| operation.token == token)?;
        Some((client.group, operation.ask.clone()))
    }

    /// Nobody begins anything in a group for so long: it may fall asleep.
    pub fn keep_quiet(&mut self, group: GroupId, until: u64) {
        self.quiet_until.insert(group, until);
    }

    /// Until when, or since when not any more, nobody begins anything in a group.
    pub fn quiet_until(&self, group: GroupId) -> u64 {
        self.quiet_until.get(&group).copied().unwrap_or(0)
    }

    /// The client's next operation begins.
    pub fn begin(&mut self, number: usize, shared: &mut Shared) {
        if self.closing || self.clients[number].operation.is_some() {
            return;
        }
        let floor = shared.ledgers.entry(self.clients[number].group).or_default().acknowledged;
        let mut operation = self.draw(number, shared);
        operation.floor = floor;
        shared.operations += 1;
        self.clients[number].operation = Some(operation);
        self.attempt(number, shared);
    }

    fn draw(&mut self, number: usize, shared: &mut Shared) -> Operation {
        let (chance, client) = (&mut self.chance, &mut self.clients[number]);
        client.made += 1;
        if client.purpose == Purpose::Catalog {
            shared.coverage.hit("operation.catalog");
            return command(catalog_command(client.made, shared.options.nodes, chance));
        }
        let ledger = shared.ledgers.entry(client.group).or_default();
        let drawn = if client.purpose == Purpose::Reader { 0 } else { chance.below(20) };
        match drawn {
            0 | 1 => {
                shared.coverage.hit("operation.tail");
                return Operation { ask: Ask::Tail, ..command(Bytes::new()) };
            }
            2..5 => {
                shared.coverage.hit("operation.read");
                let start = self.log_start.get(&client.group).copied().unwrap_or(0);
                let end = (ledger.log.len() as u64).max(start + 1);
                let ask = Ask::Read { from: chance.within(start..end), bytes_max: chance.within(1..20_000) as usize };
                return Operation { ask, ..command(Bytes::new()) };
            }
            5 if chance.ratio(1, 3) && ledger.acknowledged > 20 => {
                shared.coverage.hit("operation.trim");
                // Often near the end: a replica that was away meanwhile can catch up by a snapshot alone then.
                let near = if chance.ratio(1, 2) { ledger.acknowledged.saturating_sub(10) } else { 0 };
                let offset = chance.within(near..ledger.acknowledged);
                let start = self.log_start.entry(client.group).or_default();
                *start = (*start).max(offset);
                return command(PartitionCommand::TrimTo { offset: Offset(offset) }.encode());
            }
            6 => {
                shared.coverage.hit("operation.fence");
                let token = chance.below(1 + client.made);
                return command(PartitionCommand::RaiseFence(Fence { name: "fence".into(), token }).encode());
            }
            7 if client.session.is_some() => {
                shared.coverage.hit("operation.query-session");
                let producer = client.session.map_or(ProducerId(0), |session| session.0);
                return command(PartitionCommand::QuerySession { producer }.encode());
            }
            _ => {}
        }
        if client.purpose == Purpose::Producer && client.session.is_none() {
            shared.coverage.hit("operation.open-session");
            let open = PartitionCommand::OpenSession { name: client.name.clone() };
            return Operation { opens: true, ..command(open.encode()) };
        }
        shared.coverage.hit("operation.append");
        append(number as u64, client, ledger, shared.options.record_bytes_max, chance)
    }

    /// A trim of all that was acknowledged.
    pub fn trim_to_end(&mut self, group: GroupId, shared: &mut Shared) -> Bytes {
        shared.coverage.hit("operation.trim");
        let offset = shared.ledgers.entry(group).or_default().acknowledged;
        let start = self.log_start.entry(group).or_default();
        *start = (*start).max(offset);
        PartitionCommand::TrimTo { offset: Offset(offset) }.encode()
    }

    fn attempt(&mut self, number: usize, shared: &mut Shared) {
        self.token += 1;
        let (token, node) = (self.token, self.clients[number].node);
        let Some(operation) = &mut self.clients[number].operation else { return };
        operation.token = token;
        operation.attempts += 1;
        let attempts = operation.attempts;
        self.waiting.insert(token, number);
        shared.event(0, "asks", &[number as u64, token, u64::from(node)], || {
            format!("client {number} asks n{node}, token {token}, attempt {attempts}")
        });
        let delay_us = shared.client_latency();
        shared.after(delay_us, Event::Request { node, client: number, token });
        let patience_us = self.chance.within(500_000..2_000_000);
        shared.after(patience_us, Event::Impatient { client: number, token });
    }

    /// An attempt has had its time.
    pub fn impatient(&mut self, number: usize, token: Token, shared: &mut Shared) {
        if self.waiting.remove(&token).is_none() {
            return;
        }
        let Some(operation) = self.clients[number].operation.as_mut().filter(|operation| operation.token == token)
        else {
            return;
        };
        operation.is_unknown = true;
        self.again_or_give_up(number, None, shared);
    }

    /// Goes on to another node, if the operation may be repeated.
    fn again_or_give_up(&mut self, number: usize, hint: Option<u32>, shared: &mut Shared) {
        let nodes = u64::from(shared.options.nodes);
        let client = &mut self.clients[number];
        let Some(operation) = &client.operation else { return };
        client.node = hint.unwrap_or(1 + self.chance.below(nodes) as u32);
        let is_append = !operation.payloads.is_empty();
        let may_repeat = !operation.is_unknown || operation.in_session || !is_append;
        if may_repeat && (operation.in_session || operation.attempts < 20) {
            let wait_us = self.chance.within(5_000..200_000);
            shared.after(wait_us, Event::Client { client: number });
            return self.wait_for_again(number);
        }
        self.finish(number, shared);
    }

    /// The operation's next attempt follows with the client's next event.
    fn wait_for_again(&mut self, number: usize) {
        if let Some(operation) = &mut self.clients[number].operation {
            operation.token = 0;
        }
    }

    /// The client's moment: an operation that waits for its next attempt, or the next one.
    pub fn go_on(&mut self, number: usize, shared: &mut Shared) {
        match &self.clients[number].operation {
            Some(operation) if operation.token == 0 => self.attempt(number, shared),
            Some(_) => {}
            None if self.quiet_until(self.clients[number].group) > shared.now => {
                let wait_us = self.quiet_until(self.clients[number].group) - shared.now;
                let wait_us = wait_us + self.chance.within(0..shared.options.think_us);
                shared.after(wait_us, Event::Client { client: number });
            }
            None => self.begin(number, shared),
        }
    }

    fn finish(&mut self, number: usize, shared: &mut Shared) {
        let client = &mut self.clients[number];
        let Some(operation) = client.operation.take() else { return };
        if operation.in_session {
            client.sequence += operation.payloads.len() as u32;
        }
        let longest = shared.options.think_us / if client.purpose == Purpose::Reader { 4 } else { 1 };
        let think_us = self.chance.within(10_000..longest);
        shared.after(think_us, Event::Client { client: number });
    }

    /// An answer arrived.
    pub fn answered(&mut self, token: Token, reply: &Reply, shared: &mut Shared) {
        let Some(number) = self.waiting.remove(&token) else { return };
        let client = &mut self.clients[number];
        let Some(operation) = client.operation.as_mut().filter(|operation| operation.token == token) else { return };
        shared
            .trace
            .event(shared.now, 0, "answer", &[number as u64, token], || format!("client {number} is told {reply:?}"));
        let group = client.group;
        let ledger = shared.ledgers.entry(group).or_default();
        let breach = match reply {
            Reply::Told(Answer::Applied { verdict, .. }) => {
                let breach = on_verdict(client, *verdict, ledger);
                self.finish(number, shared);
                breach
            }
            Reply::Told(Answer::ReadAt { tail, .. }) => {
                let floor = operation.floor;
                self.finish(number, shared);
                match tail.0 < floor {
                    true => Err((
                        "tail-stale",
                        format!("a tail of {tail} is told; {floor} was acknowledged before it was asked for"),
                    )),
                    false => Ok(()),
                }
            }
            Reply::Told(Answer::Failed(error)) => {
                use balsa::group::effects::ProposeError;
                operation.is_unknown |= error.may_have_happened();
                let hint = match error {
                    ProposeError::NotLeader { leader, .. } | ProposeError::LostLeadership { leader, .. } => {
                        leader.map(|leader| leader.node().0)
                    }
                    _ => None,
                };
                self.denied_or_again(number, hint, shared)
            }
            Reply::Refused => self.denied_or_again(number, None, shared),
        };
        if let Err((rule, what)) = breach {
            shared.broke(rule, &[], format!("client {number} of group {group}: {what}"));
        }
    }

    /// What certainly did not happen may be tried again, or be given up for good.
    fn denied_or_again(
        &mut self,
        number: usize,
        hint: Option<u32>,
        shared: &mut Shared,
    ) -> Result<(), (&'static str, String)> {
        let client = &self.clients[number];
        let Some(operation) = &client.operation else { return Ok(()) };
        if operation.is_unknown || operation.in_session || !self.chance.ratio(1, 4) {
            self.again_or_give_up(number, hint, shared);
            return Ok(());
        }
        let ledger = shared.ledgers.entry(client.group).or_default();
        let result = ledger.denied(&operation.payloads);
        self.finish(number, shared);
        result
    }
}

fn command(command: Bytes) -> Operation {
    Operation {
        ask: Ask::Command(command),
        payloads: Vec::new(),
        in_session: false,
        opens: false,
        token: 0,
        floor: 0,
        is_unknown: false,
        attempts: 0,
    }
}

fn append(number: u64, client: &Client, ledger: &Ledger, record_bytes_max: u64, chance: &mut Chance) -> Operation {
    let session = client.session.filter(|_| client.purpose == Purpose::Producer);
    let mut batch = BatchBuilder::new();
    if let Some((id, epoch)) = session {
        batch.producer(id, epoch, client.sequence);
    }
    let count = 1 + chance.below(4) * u64::from(chance.ratio(1, 2));
    let mut payloads = Vec::new();
    for record in 0..count {
        let payload = (number + 1) << 40 | client.made << 8 | record;
        let mut value = payload.to_le_bytes().to_vec();
        value.resize(8 + chance.below(record_bytes_max) as usize, number as u8);
        let record = RecordRef { value: Some(&value), timestamp: TimestampMs(client.made), ..RecordRef::default() };
        batch.push(record).expect("a small record fits");
        payloads.push(payload);
    }
    let fence = chance.ratio(1, 12).then(|| Fence { name: "fence".into(), token: chance.below(2 + client.made) });
    let expected_offset = chance.ratio(1, 12).then(|| Offset(ledger.log.len() as u64));
    let append = AppendCommand { expected_offset, fence, batch: batch.build() };
    Operation { payloads, in_session: session.is_some(), ..command(PartitionCommand::Append(append).encode()) }
}

/// What an applied command came to.
fn on_verdict(client: &mut Client, verdict: Verdict, ledger: &mut Ledger) -> Result<(), (&'static str, String)> {
    let Some(operation) = &mut client.operation else { return Ok(()) };
    match verdict {
        Verdict::Appended { offset, count } | Verdict::Repeated { offset, count } => {
            if count as usize != operation.payloads.len() {
                return Err((
                    "acknowledged-lost",
                    format!("{count} records are acknowledged of {}", operation.payloads.len()),
                ));
            }
            ledger.acknowledged(offset.0, &operation.payloads)
        }
        Verdict::Done { value, extra } => {
            if operation.opens {
                let (epoch, sequence) = opened(extra);
                client.session = Some((ProducerId(value), epoch));
                client.sequence = sequence;
            }
            Ok(())
        }
        Verdict::Refused(refusal) => {
            let tells = matches!(refusal, Refusal::SessionUnknown { .. } | Refusal::SequenceOld { .. });
            let result = match operation.is_unknown || tells {
                true => Ok(()),
                false => ledger.denied(&operation.payloads),
            };
            if operation.in_session {
                // Its sequence was not used up, whatever becomes of it.
                operation.in_session = false;
                client.session = None;
            }
            result
        }
    }
}

fn registration(node: u32, made: u64) -> NodeRegistration {
    let address: Arc<str> = format!("10.0.0.{node}:{}", 7_400 + made % 3).into();
    NodeRegistration {
        id: NodeId(node),
        incarnation: Incarnation([node as u8; 16]),
        client_address: address.clone(),
        peer_address: address,
        version: "1".into(),
    }
}

fn catalog_command(made: u64, nodes: u32, chance: &mut Chance) -> Bytes {
    let number = chance.below(6);
    let name: Arc<str> = format!("topic-{number}").into();
    let founders = (1..=nodes).map(|node| registration(node, 0)).collect();
    let command = match chance.below(8) {
        _ if made == 1 => MetadataCommand::Bootstrap(Bootstrap { cluster_id: ClusterId([7; 16]), founders }),
        0 | 1 => MetadataCommand::RegisterNode(registration(1 + chance.below(nodes.into()) as u32, made)),
        2 | 3 => MetadataCommand::CreateTopic {
            topic: TopicId([number as u8; 16]),
            name,
            partitions: 1 + chance.below(3) as u32,
            replication: 0,
            batch_bytes_max: 0,
        },
        4 => MetadataCommand::AlterTopic { name, partitions: Some(2 + chance.below(4) as u32), batch_bytes_max: None },
        5 => MetadataCommand::DeleteTopic { name },
        _ => MetadataCommand::ReportLeader {
            group: GroupId(chance.below(4)),
            node: NodeId(1 + chance.below(nodes.into()) as u32),
            term: Term(made),
        },
    };
    command.encode()
}
