//! Clients that append by hand: one batch after the other, on a stream, or in a session that they keep themselves.

use super::super::stage::now_us;
use super::{doors, Client, Log};
use crate::history::{Append, Outcome, Receipt, SessionPlace};
use balsa::client::wire;
use bytes::Bytes;
use madsim::time::{sleep, timeout};
use rand::Rng;
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use wire::append_stream_response::Outcome as Answer;

/// A batch that is on its way.
struct Sent {
    log: Log,
    payload: u64,
    count: u32,
    batch: Bytes,
    expected_offset: Option<u64>,
    session: Option<SessionPlace>,
    invoked_us: u64,
}

impl Client {
    /// A batch of records that nobody sent before.
    fn new_batch(&mut self, log: &Log, session: Option<SessionPlace>) -> Sent {
        let count = if self.rng.gen_bool(0.05) { 20 } else { self.rng.gen_range(1..=3) };
        let bytes = self.rng.gen_range(8..=self.shared.options.record_bytes_max);
        let payload = self.shared.payloads(count);
        let place = session.map(|place| (place.producer, place.epoch as u16, place.sequence as u32));
        let batch = doors::batch(payload, count, bytes, place);
        Sent { log: log.clone(), payload, count, batch, expected_offset: None, session, invoked_us: now_us() }
    }

    fn record(&self, sent: &Sent, outcome: Outcome<Receipt>) {
        self.told(&[sent.payload, outcome_number(&outcome)], || format!("{}: {outcome:?}", sent.payload));
        self.shared.stage.lock().history.append(Append {
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

    /// Sends a batch through a node and records what came of it; also the reason, if it was refused.
    async fn send(&mut self, sent: &mut Sent, node: u32) -> (Outcome<Receipt>, Option<wire::Reason>) {
        let (operation, patience) = (operation_of(sent), self.patience());
        sent.invoked_us = self.began(operation, &[sent.log.group, sent.payload, u64::from(node)]);
        let answer = timeout(patience, doors::log(node).append(request(sent))).await;
        let (outcome, reason) = match answer {
            Ok(Ok(answer)) => {
                let receipt = answer.into_inner();
                let term = if receipt.repeated_append { 0 } else { receipt.term };
                (Outcome::Ok(Receipt { offset: receipt.offset, term }), None)
            }
            Ok(Err(status)) => {
                let reason = doors::detail(&status).map(|detail| detail.reason());
                if reason == Some(wire::Reason::DiskFull) {
                    self.shared.stage.hit("answer.disk-full");
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
    match (sent.session, sent.expected_offset) {
        (Some(_), _) => "operation.append-in-session",
        (None, Some(_)) => "operation.append-at",
        (None, None) => "operation.append",
    }
}

fn request(sent: &Sent) -> wire::AppendRequest {
    wire::AppendRequest {
        topic: sent.log.topic.clone(),
        partition: sent.log.partition,
        batch: sent.batch.clone(),
        expected_offset: sent.expected_offset,
        fence: None,
    }
}

/// Single batches through any node, some of them with the offset they expect.
pub async fn unary(mut client: Client) {
    while !client.stopped() {
        client.think().await;
        let (log, node) = (client.log(), client.node());
        let mut sent = client.new_batch(&log, None);
        if client.rng.gen_bool(0.25) {
            let tail = wire::TailRequest { topic: log.topic.clone(), partition: log.partition, stale: true };
            if let Ok(Ok(answer)) = timeout(client.patience(), doors::log(node).tail(tail)).await {
                sent.expected_offset = Some(answer.into_inner().tail);
            }
        }
        client.send(&mut sent, node).await;
    }
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
        in_session(&mut client, &log, place).await;
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
                (_, Some(wire::Reason::SessionUnknown | wire::Reason::SessionEpochOld | wire::Reason::SequenceOld)) => {
                    return
                }
                _ if tries == 0 => return,
                _ => sleep(Duration::from_millis(client.rng.gen_range(10..400))).await,
            }
        }
        place.sequence += u64::from(sent.count);
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
                let outcome = match answer.outcome {
                    Some(Answer::Receipt(receipt)) => {
                        let term = if receipt.repeated_append { 0 } else { receipt.term };
                        Outcome::Ok(Receipt { offset: receipt.offset, term })
                    }
                    Some(Answer::Failure(failure)) => match failure.detail.map(|detail| detail.outcome()) {
                        Some(wire::Outcome::DidNotHappen) => Outcome::Failed,
                        _ => Outcome::Unknown,
                    },
                    None => Outcome::Unknown,
                };
                client.record(&sent, outcome);
            }
        })
        .await;
        for sent in open.into_values() {
            client.record(&sent, Outcome::Unknown);
        }
    }
}
