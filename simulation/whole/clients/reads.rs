//! Clients that read: single reads, linearizable tails, offsets by time, trims at times, and the shipped subscription that follows.

use super::super::stage::now_us;
use super::{doors, servers, Client, Log};
use crate::history::{ByTime, Read, Stamp, Tail};
use balsa::client::{self, wire, ClientOptions, ReadFrom, Subscription, SubscriptionOptions};
use balsa::ids::Offset;
use madsim::time::{sleep, timeout};
use rand::Rng;
use std::collections::BTreeMap;
use std::time::Duration;
use tonic::Status;
use wire::read_request::From;

/// A read that starts further on than the beginning starts so far from the tail, at most.
const LAST: u64 = 60;

/// Reads and tails through any node, in turn.
pub async fn unary(mut client: Client) {
    let mut tails: BTreeMap<u64, u64> = BTreeMap::new();
    while !client.stopped() {
        client.think().await;
        let (log, node, patience) = (client.log(), client.node(), client.patience());
        match client.rng.gen_range(0..100) {
            0..40 => {
                if let Some(tail) = tail(&client, &log, node, patience).await {
                    tails.insert(log.group, tail);
                }
            }
            40..86 => {
                let stale = client.rng.gen_bool(0.3);
                let known = tails.get(&log.group).copied().filter(|_| client.rng.gen_bool(0.8));
                let from = match known {
                    Some(tail) => From::Offset(client.rng.gen_range(tail.saturating_sub(LAST)..=tail)),
                    None if client.rng.gen_bool(0.3) => From::TimeMs(some_time(&mut client)),
                    None => From::Earliest(true),
                };
                let read = read(&client, &log, node, from, stale, patience).await;
                if let Some((last, _)) = read.records.last() {
                    tails.insert(log.group, last + 1);
                }
            }
            86..94 => offset_for_time(&mut client, &log, node, patience).await,
            _ => trim(&mut client, &log, node, patience).await,
        }
    }
}

async fn tail(client: &Client, log: &Log, node: u32, patience: Duration) -> Option<u64> {
    let request = wire::TailRequest { topic: log.topic.clone(), partition: log.partition, stale: false };
    let invoked_us = client.began("operation.tail", &[log.group, u64::from(node)]);
    let answer = timeout(patience, doors::log(node).tail(request)).await.ok()?.ok()?;
    let tail = answer.into_inner().tail;
    client.told(&[tail], || format!("{} tail {tail}", log.key));
    let told = Tail { client: client.id, partition: log.key, invoked_us, returned_us: now_us(), tail };
    client.shared.stage.lock().history.tail(told);
    Some(tail)
}

/// A time that the log may have been written at, and at times one that it was not.
fn some_time(client: &mut Client) -> u64 {
    // The true present, or a while before it: no clock of a node has any say in what is asked.
    client.shared.stage.true_ms() - client.rng.gen_range(0..60_000)
}

async fn offset_for_time(client: &mut Client, log: &Log, node: u32, patience: Duration) {
    let time_ms = some_time(client);
    let request = wire::OffsetForTimeRequest { topic: log.topic.clone(), partition: log.partition, time_ms };
    let invoked_us = client.began("operation.offset-for-time", &[log.group, u64::from(node)]);
    if let Ok(Ok(answer)) = timeout(patience, doors::log(node).offset_for_time(request)).await {
        let offset = answer.into_inner().offset;
        client.told(&[offset], || format!("{} offset {offset} by time", log.key));
        let asked = ByTime { client: client.id, partition: log.key, invoked_us, time_ms, offset };
        client.shared.stage.lock().history.by_time.push(asked);
    }
}

async fn trim(client: &mut Client, log: &Log, node: u32, patience: Duration) {
    let Some(tail) = tail(client, log, node, patience).await else { return };
    // Often near the tail: a replica that was away meanwhile can catch up by a snapshot alone then.
    let offset = if client.rng.gen_bool(0.5) { tail } else { client.rng.gen_range(0..=tail) };
    let request = wire::TrimRequest { topic: log.topic.clone(), partition: log.partition, offset };
    // Somebody may be at the records that go.
    let reader = Some(client.node()).filter(|_| client.rng.gen_bool(0.5));
    let late = Duration::from_millis(client.rng.gen_range(0..100));
    let client = &*client;
    let reading = async {
        if let Some(reader) = reader {
            read(client, log, reader, From::Earliest(true), true, patience).await;
        }
    };
    let trimming = async {
        if reader.is_some() {
            sleep(late).await;
        }
        client.began("operation.trim", &[log.group, u64::from(node), offset]);
        if let Ok(Ok(answer)) = timeout(patience, doors::log(node).trim(request)).await {
            let start = answer.into_inner().start;
            client.told(&[start], || format!("{} starts at {start}", log.key));
        }
    };
    futures::join!(reading, trimming);
}

/// What a read gave.
pub struct Got {
    pub records: Vec<(u64, u64)>,
    /// The log's time of some of them, by offset: of the first of each batch.
    pub stamps: Vec<(u64, u64)>,
    pub ended: Result<(), Status>,
}

/// Reads to the tail, and records what it got; also what came before it broke.
pub async fn read(client: &Client, log: &Log, node: u32, from: From, stale: bool, patience: Duration) -> Got {
    let invoked_us = client.began("operation.read", &[log.group, u64::from(node)]);
    let got = doors::read(log, node, from.clone(), stale, patience).await;
    let returned_us = now_us();
    client.told(&[got.records.len() as u64, u64::from(got.ended.is_ok())], || {
        let (first, ended) = (got.records.first(), got.ended.as_ref().err().map(Status::message));
        format!("{} {} records from {first:?}, {ended:?}", log.key, got.records.len())
    });
    let mut kept = client.shared.stage.lock();
    if let (Ok(()), false, Some((last, _))) = (&got.ended, stale, got.records.last()) {
        let tail = last + 1;
        kept.history.tail(Tail { client: client.id, partition: log.key, invoked_us, returned_us, tail });
    }
    let first = got.records.first().map(|(offset, _)| *offset);
    if let (From::TimeMs(time_ms), Some(offset), false) = (&from, first, stale) {
        let (client, partition, time_ms) = (client.id, log.key, *time_ms);
        kept.history.by_time.push(ByTime { client, partition, invoked_us, time_ms, offset });
    }
    kept.history.stamps.extend(got.stamps.iter().map(|&(offset, timestamp_ms)| Stamp {
        partition: log.key,
        offset,
        timestamp_ms,
        returned_us,
    }));
    let from = match from {
        From::Offset(offset) => Some(offset),
        _ => first,
    };
    if let Some(from) = from {
        let (client, partition, records) = (client.id, log.key, got.records.clone());
        kept.history.read(Read { client, partition, invoked_us, returned_us, from, records, through_node: node });
    }
    drop(kept);
    got
}

/// Follows a topic with the shipped subscription, from one to the next.
pub async fn follow(mut client: Client) {
    let options = ClientOptions {
        timeout: Duration::from_secs(6),
        attempt_timeout: Duration::from_millis(700),
        connect_timeout: Duration::from_secs(1),
        seed: client.rng.gen(),
        ..ClientOptions::default()
    };
    let shipped = client::Client::connect(servers(&client.shared.options), options).expect("addresses are addresses");
    while !client.stopped() {
        client.think().await;
        let topic = client.log().topic;
        let from = match client.rng.gen_range(0..3) {
            0 => ReadFrom::Earliest,
            1 => ReadFrom::Latest,
            _ => ReadFrom::Offset(Offset(0)),
        };
        let follow = client.rng.gen_bool(0.7);
        let options =
            SubscriptionOptions { from, follow, silence: Duration::from_secs(3), ..SubscriptionOptions::default() };
        let mut invoked_us = client.began("operation.subscription", &[]);
        let Ok(mut subscription) = Subscription::open(&shipped, &topic, options).await else { continue };
        let chunks = client.rng.gen_range(5..100);
        for _ in 0..chunks {
            if client.stopped() {
                break;
            }
            let Ok(Some(Ok(chunk))) = timeout(Duration::from_secs(5), subscription.next()).await else { break };
            let log = client.shared.logs.iter().find(|log| log.topic == topic && log.partition == chunk.partition);
            let Some(log) = log else { break };
            let wanted = chunk.first.0..chunk.first.0 + chunk.count;
            let records: Vec<_> =
                doors::payloads(&chunk.batch).into_iter().filter(|(offset, _)| wanted.contains(offset)).collect();
            let (partition, returned_us) = (log.key, now_us());
            client.told(&[chunk.first.0, chunk.count], || format!("{} {} from {}", log.key, chunk.count, chunk.first));
            let (client_id, from) = (client.id, chunk.first.0);
            let mut kept = client.shared.stage.lock();
            kept.history.read(Read {
                client: client_id,
                partition,
                invoked_us,
                returned_us,
                from,
                records,
                through_node: 0,
            });
            kept.operations += 1;
            drop(kept);
            invoked_us = returned_us;
        }
    }
}
