//! Good histories, from a model: one log per partition that every operation takes effect in at one moment between its
//! invocation and its return. What such a log shows is right by construction, so that the checker must accept it.
//!
//! Unknown outcomes take effect or not, some long after their client gave up; sessions retry; reads are stale at times, as reads
//! may be; tails never are.

use super::{
    Append, ByTime, Fence, Fenced, FinalLog, History, LeaderTold, Outcome, PartitionKey, Raise, Read, Receipt,
    SessionPlace, Stamp, Tail, Watch,
};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::BTreeMap;

const PARTITIONS: u64 = 2;
const CLIENTS: u32 = 5;
const REPLICAS: u32 = 3;
const OPERATIONS_PER_CLIENT: u32 = 60;
const WATCHERS: u32 = 3;
const REVISIONS: u64 = 40;
const FENCES: u64 = 2;
/// Partitions whose leaders the catalog tells, and their nodes.
const GROUPS: u64 = 3;

/// One attempt's or read's way through time.
#[derive(Clone, Copy)]
struct Span {
    invoked_us: u64,
    effect_us: u64,
    returned_us: u64,
}

#[derive(Default)]
struct Log {
    records: Vec<u64>,
    /// The log's time of each.
    stamps: Vec<u64>,
    fences: BTreeMap<u64, u64>,
    term: u64,
}

impl Log {
    /// The first record at or after a time.
    fn at_time(&self, time_ms: u64) -> u64 {
        self.stamps.partition_point(|stamp| *stamp < time_ms) as u64
    }

    /// A fence, and the highest token seen under it or the next one, which is seen from here on.
    fn fence(&mut self, rng: &mut StdRng) -> Fence {
        let name = rng.gen_range(0..FENCES);
        let token = self.fences.entry(name).or_insert(1);
        *token += rng.gen_range(0..2);
        Fence { name, token: *token }
    }
}

/// What waits for its moment.
enum Intent {
    Append { append: Append, takes_effect: bool, expects_tail: bool },
    Read { read: Read, stale: bool, count_max: usize },
    Tail(Tail),
    Election(PartitionKey),
}

/// A history that keeps every rule.
pub fn good_history(seed: u64) -> History {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut intents: BTreeMap<(u64, u64), Intent> = BTreeMap::new();
    let mut payload = 1;
    for client in 1..=CLIENTS {
        Client { client, now_us: 0, sequences: BTreeMap::new() }.plan(&mut rng, &mut payload, &mut intents);
    }
    for at in 0..rng.gen_range(3..9) {
        let partition = partition(&mut rng);
        intents.insert((rng.gen_range(0..4_000_000), u64::MAX - at), Intent::Election(partition));
    }
    let mut history = History::default();
    let mut logs: BTreeMap<PartitionKey, Log> = BTreeMap::new();
    let mut remembered: BTreeMap<u64, u64> = BTreeMap::new();
    for ((effect_us, _), intent) in intents {
        take_effect(&mut rng, effect_us, intent, &mut logs, &mut remembered, &mut history);
    }
    for (partition, log) in &logs {
        for node in 1..=REPLICAS {
            let records = (0..).zip(log.records.iter().copied()).collect();
            history.final_log(FinalLog { node, partition: *partition, start: 0, records });
        }
    }
    watch(&mut rng, &mut history);
    lead(&mut rng, &mut history);
    history
}

fn partition(rng: &mut StdRng) -> PartitionKey {
    PartitionKey { topic: 0x5eed << 96, partition: rng.gen_range(0..PARTITIONS) }
}

/// A client does one thing after the other, but for what it gave up on.
struct Client {
    client: u32,
    now_us: u64,
    sequences: BTreeMap<PartitionKey, (u32, u64)>,
}

impl Client {
    fn plan(mut self, rng: &mut StdRng, payload: &mut u64, intents: &mut BTreeMap<(u64, u64), Intent>) {
        for _ in 0..OPERATIONS_PER_CLIENT {
            let at = partition(rng);
            match rng.gen_range(0..10) {
                0..=3 => self.append(rng, at, payload, intents),
                4..=5 => self.session_append(rng, at, payload, intents),
                6..=7 => self.read(rng, at, intents),
                _ => self.tail(rng, at, intents),
            }
        }
    }

    fn span(&mut self, rng: &mut StdRng) -> Span {
        let invoked_us = self.now_us + rng.gen_range(1..20_000);
        let effect_us = invoked_us + rng.gen_range(1..30_000);
        let returned_us = effect_us + rng.gen_range(1..30_000);
        self.now_us = returned_us;
        Span { invoked_us, effect_us, returned_us }
    }

    fn insert(&self, intents: &mut BTreeMap<(u64, u64), Intent>, effect_us: u64, intent: Intent) {
        let number = intents.len() as u64;
        intents.insert((effect_us, number), intent);
    }

    fn append(
        &mut self,
        rng: &mut StdRng,
        partition: PartitionKey,
        payload: &mut u64,
        intents: &mut BTreeMap<(u64, u64), Intent>,
    ) {
        let span = self.span(rng);
        let append = attempt(self.client, partition, next_batch(rng, payload), span, None);
        let (outcome, takes_effect) = match rng.gen_range(0..20) {
            0..=12 => (Outcome::Ok(Receipt { offset: 0, term: 0 }), true),
            13..=15 => (Outcome::Failed, false),
            16..=17 => (Outcome::Unknown, true),
            _ => (Outcome::Unknown, false),
        };
        // What nobody waits for any longer may take effect late.
        let late = outcome == Outcome::Unknown && rng.gen_bool(0.5);
        let effect_us = span.effect_us + if late { rng.gen_range(0..500_000) } else { 0 };
        let expects_tail = rng.gen_bool(0.2);
        let append = Append { outcome, ..append };
        self.insert(intents, effect_us, Intent::Append { append, takes_effect, expects_tail });
    }

    /// Attempts until one is acknowledged; those before are unknown.
    fn session_append(
        &mut self,
        rng: &mut StdRng,
        partition: PartitionKey,
        payload: &mut u64,
        intents: &mut BTreeMap<(u64, u64), Intent>,
    ) {
        let batch = next_batch(rng, payload);
        let (mut epoch, sequence) = self.sequences.get(&partition).copied().unwrap_or_default();
        epoch += u32::from(rng.gen_bool(0.1));
        self.sequences.insert(partition, (epoch, sequence + u64::from(batch.1)));
        let producer = u64::from(self.client) * 100 + partition.partition;
        let place = SessionPlace { producer, epoch, sequence };
        loop {
            let span = self.span(rng);
            let append = attempt(self.client, partition, batch, span, Some(place));
            let acknowledged = rng.gen_bool(0.7);
            let (outcome, takes_effect) = match acknowledged {
                true => (Outcome::Ok(Receipt { offset: 0, term: 0 }), true),
                false if rng.gen_bool(0.2) => (Outcome::Failed, false),
                false => (Outcome::Unknown, rng.gen_bool(0.5)),
            };
            let append = Append { outcome, ..append };
            self.insert(intents, span.effect_us, Intent::Append { append, takes_effect, expects_tail: false });
            if acknowledged {
                return;
            }
        }
    }

    fn read(&mut self, rng: &mut StdRng, partition: PartitionKey, intents: &mut BTreeMap<(u64, u64), Intent>) {
        let Span { invoked_us, effect_us, returned_us } = self.span(rng);
        let through_node = rng.gen_range(1..=REPLICAS);
        // Where it begins is drawn when it takes effect.
        let read = Read {
            client: self.client,
            partition,
            invoked_us,
            returned_us,
            from: 0,
            records: Vec::new(),
            through_node,
        };
        let (stale, count_max) = (rng.gen_bool(0.4), rng.gen_range(1..40));
        self.insert(intents, effect_us, Intent::Read { read, stale, count_max });
    }

    fn tail(&mut self, rng: &mut StdRng, partition: PartitionKey, intents: &mut BTreeMap<(u64, u64), Intent>) {
        let Span { invoked_us, effect_us, returned_us } = self.span(rng);
        let tail = Tail { client: self.client, partition, invoked_us, returned_us, tail: 0 };
        self.insert(intents, effect_us, Intent::Tail(tail));
    }
}

/// Payload number and count of a batch that nobody sent yet.
fn next_batch(rng: &mut StdRng, payload: &mut u64) -> (u64, u32) {
    let (first, count) = (*payload, rng.gen_range(1..4));
    *payload += u64::from(count);
    (first, count)
}

fn attempt(
    client: u32,
    partition: PartitionKey,
    (payload, count): (u64, u32),
    span: Span,
    session: Option<SessionPlace>,
) -> Append {
    let Span { invoked_us, returned_us, .. } = span;
    let outcome = Outcome::Unknown;
    Append { client, partition, payload, count, invoked_us, returned_us, outcome, expected_offset: None, session }
}

fn take_effect(
    rng: &mut StdRng,
    effect_us: u64,
    intent: Intent,
    logs: &mut BTreeMap<PartitionKey, Log>,
    remembered: &mut BTreeMap<u64, u64>,
    history: &mut History,
) {
    match intent {
        Intent::Election(partition) => logs.entry(partition).or_default().term += 1,
        Intent::Append { mut append, takes_effect, expects_tail } => {
            let log = logs.entry(append.partition).or_default();
            let tail = log.records.len() as u64;
            if expects_tail {
                let right = append.outcome != Outcome::Failed;
                append.expected_offset = Some(if right { tail } else { tail + rng.gen_range(1..5) });
            }
            if takes_effect {
                let offset = *remembered.entry(append.payload).or_insert(tail);
                if offset == tail {
                    log.records.extend((0..u64::from(append.count)).map(|at| append.payload + at));
                    // Coarse, so that several batches are of one time.
                    log.stamps.resize(log.records.len(), effect_us / 100_000);
                    if append.session.is_none() && rng.gen_bool(0.3) {
                        let (partition, payload, fence) = (append.partition, append.payload, log.fence(rng));
                        history.fenced.push(Fenced { partition, payload, fence });
                    }
                }
                let term = if offset == tail { log.term + 1 } else { 0 };
                if let Outcome::Ok(receipt) = &mut append.outcome {
                    *receipt = Receipt { offset, term };
                }
            }
            history.append(append);
        }
        Intent::Read { mut read, stale, count_max } => {
            let log = logs.entry(read.partition).or_default();
            let seen = if stale { rng.gen_range(0..=log.records.len()) } else { log.records.len() };
            let from = rng.gen_range(0..=seen);
            read.from = from as u64;
            let records = (read.from..).zip(log.records[from..seen].iter().copied());
            read.records = records.take(count_max).collect();
            let (partition, returned_us) = (read.partition, read.returned_us);
            let stamp = |&(offset, _): &(u64, u64)| {
                let timestamp_ms = log.stamps[offset as usize];
                Stamp { partition, offset, timestamp_ms, returned_us }
            };
            history.stamps.extend(read.records.iter().map(stamp));
            history.read(read);
        }
        Intent::Tail(mut tail) => {
            let log = logs.entry(tail.partition).or_default();
            tail.tail = log.records.len() as u64;
            let (client, partition, invoked_us) = (tail.client, tail.partition, tail.invoked_us);
            let time_ms = rng.gen_range(0..=effect_us / 80_000);
            let offset = log.at_time(time_ms);
            history.by_time.push(ByTime { client, partition, invoked_us, time_ms, offset });
            if rng.gen_bool(0.3) {
                let fence = log.fence(rng);
                history.raises.push(Raise { client, partition, fence, returned_us: tail.returned_us });
            }
            history.tail(tail);
        }
    }
}

/// Some revisions are about what nobody watches: they are skipped by all.
fn watch(rng: &mut StdRng, history: &mut History) {
    let watched: Vec<u64> = (1..=REVISIONS).filter(|_| rng.gen_bool(0.8)).collect();
    let changes: Vec<(u64, u64)> = watched.into_iter().map(|revision| (revision, rng.gen_range(1..1_000))).collect();
    for client in 1..=WATCHERS {
        let after = rng.gen_range(0..REVISIONS / 4);
        let until = rng.gen_range(REVISIONS / 2..=REVISIONS);
        let told = changes.iter().copied().filter(|(revision, _)| *revision > after && *revision <= until);
        history.watch(Watch { client, subject: 1, after, changes: told.collect() });
    }
}

/// Each watcher is told of most leaders that the catalog ever had.
fn lead(rng: &mut StdRng, history: &mut History) {
    let mut terms: BTreeMap<u64, u64> = BTreeMap::new();
    for revision in 1..=REVISIONS {
        let (group, node) = (rng.gen_range(0..GROUPS), rng.gen_range(1..=REPLICAS));
        let term = terms.entry(group).or_default();
        *term += rng.gen_range(1..4);
        let told = (1..=WATCHERS).filter(|_| rng.gen_bool(0.8));
        let told = told.map(|client| LeaderTold { client, revision, group, term: *term, node });
        history.leaders.extend(told.collect::<Vec<_>>());
    }
}
