//! Clients that append by hand: one batch after the other, on a stream, or in a session that they keep themselves.

use super::super::stage::now_us;
use super::super::trials::REFUSED_FULL;
use super::{doors, Client, Log};
use crate::history::{Append, Fence, Fenced, Outcome, Raise, Receipt, SessionPlace, Stamp};
use balsa::client::wire;
use balsa::limits::SESSION_WINDOW_BATCHES;
use bytes::Bytes;
use madsim::time::{sleep, timeout};
use rand::Rng;
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;
use wire::append_stream_response::Outcome as Answer;

/// A batch that is on its way.
#[derive(Clone)]
struct Sent {
    log: Log,
    payload: u64,
    count: u32,
    batch: Bytes,
    expected_offset: Option<u64>,
    session: Option<SessionPlace>,
    fence: Option<Fence>,
    invoked_us: u64,
}

/// Fences of each partition that holders compete for.
const FENCES: u64 = 2;

impl Client {
    /// A batch of records that nobody sent before.
    fn new_batch(&mut self, log: &Log, session: Option<SessionPlace>) -> Sent {
        let count = if self.rng.gen_bool(0.05) { 20 } else { self.rng.gen_range(1..=3) };
        let bytes = self.rng.gen_range(8..=self.shared.options.record_bytes_max);
        let payload = self.shared.payloads(count);
        let place = session.map(|place| (place.producer, place.epoch as u16, place.sequence as u32));
        let batch = doors::batch(payload, count, bytes, place);
        let log = log.clone();
        Sent { log, payload, count, batch, expected_offset: None, session, fence: None, invoked_us: now_us() }
    }

    fn record(&self, sent: &Sent, outcome: Outcome<Receipt>) {
        self.told(&[sent.payload, outcome_number(&outcome)], || format!("{}: {outcome:?}", sent.payload));
        let mut kept = self.shared.stage.lock();
        if let Some(fence) = sent.fence {
            kept.history.fenced.push(Fenced { partition: sent.log.key, payload: sent.payload, fence });
        }
        kept.history.append(Append {
            client: self.id,
            partition: sent.log.key,
            payload: sent.payload,
            count: sent.count,
            invoked_us: sent.invoked_us,
            returned_us: now_us(),
            outcome,
            expected_offset: sent.expected_offset,
            session: sent.session,
        });
    }

    /// A receipt tells the log's time.
    fn stamped(&self, log: &Log, offset: u64, timestamp_ms: u64) {
        let stamp = Stamp { partition: log.key, offset, timestamp_ms, returned_us: now_us() };
        self.shared.stage.lock().history.stamps.push(stamp);
    }

    /// Sends a batch through a node and records what came of it; also the reason, if it was refused.
    async fn send(&mut self, sent: &mut Sent, node: u32) -> (Outcome<Receipt>, Option<wire::Reason>) {
        let (operation, patience) = (operation_of(sent), self.patience());
        sent.invoked_us = self.began(operation, &[sent.log.group, sent.payload, u64::from(node)]);
        let answer = timeout(patience, doors::log(node).append(request(sent))).await;
        let (outcome, reason) = match answer {
            Ok(Ok(answer)) => {
                let receipt = answer.into_inner();
                let term = if receipt.repeated_append { 0 } else { receipt.term };
                if !receipt.repeated_append {
                    self.stamped(&sent.log, receipt.offset, receipt.timestamp_ms);
                }
                (Outcome::Ok(Receipt { offset: receipt.offset, term }), None)
            }
            Ok(Err(status)) => {
                let reason = doors::detail(&status).map(|detail| detail.reason());
                if reason == Some(wire::Reason::DiskFull) {
                    self.shared.stage.hit("answer.disk-full");
                    if status.code() != Code::ResourceExhausted || doors::outcome::<()>(&status) != Outcome::Failed {
                        self.shared.stage.broke(REFUSED_FULL, format!("a full disk was told as {status:?}"), &[node]);
                    }
                }
                self.told(&[sent.payload, status.code() as u64], || format!("{}: {}", sent.payload, status.message()));
                (doors::outcome(&status), reason)
            }
            Err(_) => (Outcome::Unknown, None),
        };
        self.record(sent, outcome);
        (outcome, reason)
    }
}

fn outcome_number(outcome: &Outcome<Receipt>) -> u64 {
    match outcome {
        Outcome::Ok(receipt) => receipt.offset + 2,
        Outcome::Failed => 0,
        Outcome::Unknown => 1,
    }
}

fn operation_of(sent: &Sent) -> &'static str {
    match (sent.session, sent.fence, sent.expected_offset) {
        (Some(_), _, _) => "operation.append-in-session",
        (None, Some(_), _) => "operation.append-fenced",
        (None, None, Some(_)) => "operation.append-at",
        (None, None, None) => "operation.append",
    }
}

fn request(sent: &Sent) -> wire::AppendRequest {
    wire::AppendRequest {
        topic: sent.log.topic.clone(),
        partition: sent.log.partition,
        batch: sent.batch.clone(),
        expected_offset: sent.expected_offset,
        fence: sent.fence.map(on_the_wire),
    }
}

fn on_the_wire(fence: Fence) -> wire::Fence {
    wire::Fence { name: format!("fence {}", fence.name), token: fence.token }
}

/// Single batches through any node, some of them with the offset they expect, some behind a fence that others raise.
pub async fn unary(mut client: Client) {
    let mut tokens: BTreeMap<(u64, u64), u64> = BTreeMap::new();
    while !client.stopped() {
        client.think().await;
        let (log, node) = (client.log(), client.node());
        let mut sent = client.new_batch(&log, None);
        if client.rng.gen_bool(0.3) {
            let name = client.rng.gen_range(0..FENCES);
            let token = tokens.entry((log.group, name)).or_default();
            // Tokens are drawn from the time: each holder takes a higher one than those before it, and keeps it for a while.
            if *token == 0 || client.rng.gen_bool(0.3) {
                *token = now_us() / 1_000;
                let fence = Fence { name, token: *token };
                if client.rng.gen_bool(0.7) {
                    raise(&mut client, &log, node, fence).await;
                }
            }
            sent.fence = Some(Fence { name, token: *token });
        }
        if client.rng.gen_bool(0.25) {
            let tail = wire::TailRequest { topic: log.topic.clone(), partition: log.partition, stale: true };
            if let Ok(Ok(answer)) = timeout(client.patience(), doors::log(node).tail(tail)).await {
                sent.expected_offset = Some(answer.into_inner().tail);
            }
        }
        client.send(&mut sent, node).await;
    }
}

async fn raise(client: &mut Client, log: &Log, node: u32, fence: Fence) {
    let patience = client.patience();
    client.began("operation.raise-fence", &[log.group, fence.name, fence.token]);
    let (topic, partition) = (log.topic.clone(), log.partition);
    let request = wire::RaiseFenceRequest { topic, partition, fence: Some(on_the_wire(fence)) };
    let Ok(Ok(_)) = timeout(patience, doors::log(node).raise_fence(request)).await else { return };
    client.told(&[fence.name, fence.token], || format!("{} {fence:?} is raised", log.key));
    let raise = Raise { client: client.id, partition: log.key, fence, returned_us: now_us() };
    client.shared.stage.lock().history.raises.push(raise);
}

/// Sessions kept by hand: what is not known to have happened is sent again, through any node, as it was.
pub async fn in_sessions(mut client: Client) {
    while !client.stopped() {
        client.think().await;
        let (log, node, patience) = (client.log(), client.node(), client.patience());
        let name = if client.rng.gen_bool(0.3) { format!("client {}", client.id) } else { String::new() };
        client.began("operation.open-session", &[log.group, u64::from(node)]);
        let open = wire::OpenSessionRequest { topic: log.topic.clone(), partition: log.partition, name };
        let Ok(Ok(session)) = timeout(patience, doors::producers(node).open_session(open)).await else { continue };
        let session = session.into_inner();
        client.told(&[session.producer_id], || format!("{session:?}"));
        let next = u64::from(session.next_sequence);
        let place = SessionPlace { producer: session.producer_id, epoch: session.epoch, sequence: next };
        match client.rng.gen_range(0..20) {
            0 => beyond_the_window(&mut client, &log, place).await,
            1..10 => ahead_in_session(&mut client, &log, place).await,
            _ => in_session(&mut client, &log, place).await,
        }
        if client.rng.gen_bool(0.3) {
            let (topic, partition) = (log.topic.clone(), log.partition);
            let epoch = session.epoch;
            let close = wire::CloseSessionRequest { topic, partition, producer_id: session.producer_id, epoch };
            let _ = timeout(patience, doors::producers(node).close_session(close)).await;
        }
    }
}

async fn in_session(client: &mut Client, log: &Log, mut place: SessionPlace) {
    for _ in 0..client.rng.gen_range(3..20) {
        if client.stopped() {
            return;
        }
        client.think().await;
        let mut sent = client.new_batch(log, Some(place));
        let mut tries = client.rng.gen_range(3..10);
        loop {
            let node = client.node();
            let (outcome, reason) = client.send(&mut sent, node).await;
            tries -= 1;
            match (outcome, reason) {
                (Outcome::Ok(_), _) => break,
                _ if over(reason) => return,
                _ if tries == 0 => return,
                _ => sleep(Duration::from_millis(client.rng.gen_range(10..400))).await,
            }
        }
        place.sequence += u64::from(sent.count);
    }
}

/// Several batches of a session on their way at once, on one stream. Some never leave, as if they had been lost on the way, so that those behind them
/// arrive without them; what was not acknowledged is sent again, from the first on, as it was.
async fn ahead_in_session(client: &mut Client, log: &Log, mut place: SessionPlace) {
    for _ in 0..client.rng.gen_range(2..8) {
        client.think().await;
        let mut batches = Vec::new();
        for _ in 0..client.rng.gen_range(2..6) {
            batches.push(client.new_batch(log, Some(place)));
            place.sequence += u64::from(batches.last().map_or(0, |sent: &Sent| sent.count));
        }
        for _ in 0..client.rng.gen_range(3..8) {
            if client.stopped() {
                return;
            }
            let node = client.node();
            let lost = client.rng.gen_bool(0.4).then(|| client.rng.gen_range(0..batches.len()));
            if !on_one_stream(client, node, &mut batches, lost).await {
                return;
            }
            if batches.is_empty() {
                break;
            }
            sleep(Duration::from_millis(client.rng.gen_range(10..400))).await;
        }
        if !batches.is_empty() {
            return; // what follows would be refused for ever
        }
    }
}

/// More batches than a session remembers, and then the first of them again: nobody can tell any more that it is there.
async fn beyond_the_window(client: &mut Client, log: &Log, mut place: SessionPlace) {
    let mut batches = Vec::new();
    for _ in 0..=SESSION_WINDOW_BATCHES {
        let payload = client.shared.payloads(1);
        let batch = doors::batch(payload, 1, 8, Some((place.producer, place.epoch as u16, place.sequence as u32)));
        let (log, session) = (log.clone(), Some(place));
        batches.push(Sent {
            log,
            payload,
            count: 1,
            batch,
            expected_offset: None,
            session,
            fence: None,
            invoked_us: 0,
        });
        place.sequence += 1;
    }
    let mut first = batches[0].clone();
    for _ in 0..6 {
        let node = client.node();
        if client.stopped() || !on_one_stream(client, node, &mut batches, None).await {
            return;
        }
        if batches.is_empty() {
            break;
        }
    }
    let node = client.node();
    client.send(&mut first, node).await;
}

/// Sends all of these but one, and keeps those that were not acknowledged. False if the session is over.
async fn on_one_stream(client: &mut Client, node: u32, batches: &mut Vec<Sent>, lost: Option<usize>) -> bool {
    let patience = client.patience();
    let (requests, stream) = mpsc::channel(batches.len());
    for (number, sent) in (0..).zip(batches.iter_mut()) {
        if lost != Some(number as usize) {
            let numbers = [sent.log.group, sent.payload, u64::from(node)];
            sent.invoked_us = client.began("operation.append-ahead-in-session", &numbers);
            let request = wire::AppendStreamRequest { number, append: Some(request(sent)) };
            requests.try_send(request).expect("there is room for all of them");
        }
    }
    drop(requests);
    let mut told: BTreeMap<u64, (Outcome<Receipt>, Option<wire::Reason>)> = BTreeMap::new();
    let _ = timeout(patience, async {
        let opened = doors::log(node).append_stream(ReceiverStream::new(stream)).await;
        let Ok(mut answers) = opened.map(tonic::Response::into_inner) else { return };
        while let Ok(Some(answer)) = answers.message().await {
            told.insert(answer.number, answered(&answer));
        }
    })
    .await;
    let mut goes_on = true;
    let mut left = Vec::new();
    for (number, sent) in (0..).zip(batches.drain(..)) {
        let (outcome, reason) = told.remove(&number).unwrap_or((Outcome::Unknown, None));
        if lost != Some(number as usize) {
            client.record(&sent, outcome);
        }
        goes_on &= !over(reason);
        if reason == Some(wire::Reason::SequenceGap) {
            client.shared.stage.hit("answer.sequence-gap");
        }
        if !matches!(outcome, Outcome::Ok(_)) {
            left.push(sent);
        }
    }
    *batches = left;
    goes_on
}

/// Whether the reason ends a session.
fn over(reason: Option<wire::Reason>) -> bool {
    matches!(reason, Some(wire::Reason::SessionUnknown | wire::Reason::SessionEpochOld | wire::Reason::SequenceOld))
}

/// What a stream says of a batch.
fn answered(answer: &wire::AppendStreamResponse) -> (Outcome<Receipt>, Option<wire::Reason>) {
    match &answer.outcome {
        Some(Answer::Receipt(receipt)) => {
            let term = if receipt.repeated_append { 0 } else { receipt.term };
            (Outcome::Ok(Receipt { offset: receipt.offset, term }), None)
        }
        Some(Answer::Failure(failure)) => {
            let detail = failure.detail.as_ref();
            match detail.map(|detail| detail.outcome()) {
                Some(wire::Outcome::DidNotHappen) => (Outcome::Failed, detail.map(|detail| detail.reason())),
                _ => (Outcome::Unknown, detail.map(|detail| detail.reason())),
            }
        }
        None => (Outcome::Unknown, None),
    }
}

/// Streams of batches to any node, answered by number.
pub async fn on_streams(mut client: Client) {
    while !client.stopped() {
        client.think().await;
        let (node, patience) = (client.node(), client.patience());
        let (requests, stream) = mpsc::channel(32);
        client.began("operation.append-stream", &[u64::from(node)]);
        let opened = timeout(patience, doors::log(node).append_stream(ReceiverStream::new(stream))).await;
        let Ok(Ok(answers)) = opened else { continue };
        let mut answers = answers.into_inner();
        let mut open: BTreeMap<u64, Sent> = BTreeMap::new();
        for number in 0..client.rng.gen_range(1..12) {
            let log = client.log();
            let sent = client.new_batch(&log, None);
            client.began("operation.append-on-stream", &[log.group, sent.payload, u64::from(node)]);
            let request = wire::AppendStreamRequest { number, append: Some(request(&sent)) };
            open.insert(number, sent);
            if requests.send(request).await.is_err() {
                break;
            }
            if client.rng.gen_bool(0.4) {
                sleep(Duration::from_millis(client.rng.gen_range(1..200))).await;
            }
        }
        drop(requests);
        let _ = timeout(patience, async {
            while let Ok(Some(answer)) = answers.message().await {
                let Some(sent) = open.remove(&answer.number) else { continue };
                let (outcome, _) = answered(&answer);
                client.record(&sent, outcome);
            }
        })
        .await;
        for sent in open.into_values() {
            client.record(&sent, Outcome::Unknown);
        }
    }
}
