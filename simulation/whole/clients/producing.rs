//! Clients that append with the shipped producer: batches, pipelines, sessions and retries are its affair.

use super::super::stage::now_us;
use super::{doors, servers, Client, Log};
use crate::history::{Append, Outcome, Receipt};
use balsa::batch::RecordRef;
use balsa::client::{self, ClientOptions, Delivery, Outgoing, Producer, ProducerOptions, SessionChoice};
use madsim::time::timeout;
use rand::Rng;
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

/// How long the producer tries, and how long its last deliveries are waited for.
const TIMEOUT: Duration = Duration::from_secs(6);

/// Records given to a producer and not delivered yet, by partition: their number, and when they were given.
type Waiting = BTreeMap<u32, VecDeque<(u64, u64)>>;

/// One producer after the other.
pub async fn run(mut client: Client) {
    let options = ClientOptions {
        timeout: TIMEOUT,
        unreachable_timeout: TIMEOUT / 2,
        connect_timeout: Duration::from_secs(1),
        attempt_timeout: Duration::from_millis(700),
        seed: client.rng.gen(),
    };
    let shipped = client::Client::connect(servers(&client.shared.options), options).expect("addresses are addresses");
    while !client.stopped() {
        client.think().await;
        let topic = client.log().topic;
        let session = match client.rng.gen_range(0..4) {
            0 => SessionChoice::Off,
            1 => SessionChoice::Named(format!("producer {}", client.id)),
            _ => SessionChoice::Anonymous,
        };
        client.began("operation.producer", &[]);
        let options = ProducerOptions { timeout: TIMEOUT, session, batch_records: 8, ..ProducerOptions::default() };
        let Ok((producer, mut deliveries)) = Producer::open(&shipped, &topic, options).await else { continue };
        let mut waiting = Waiting::new();
        for _ in 0..client.rng.gen_range(3..20) {
            if client.stopped() || !burst(&mut client, &producer, &mut waiting).await {
                break;
            }
            client.think().await;
            while let Ok(Some(delivery)) = timeout(Duration::from_millis(1), deliveries.next()).await {
                delivered(&client, &topic, &mut waiting, &delivery);
            }
        }
        drop(producer);
        while let Ok(Some(delivery)) = timeout(2 * TIMEOUT, deliveries.next()).await {
            delivered(&client, &topic, &mut waiting, &delivery);
        }
        for (partition, rest) in std::mem::take(&mut waiting) {
            for (payload, invoked_us) in rest {
                record(&client, &topic, partition, payload, invoked_us, Outcome::Unknown);
            }
        }
    }
}

/// A few records at once. False if the producer takes no more.
async fn burst(client: &mut Client, producer: &Producer, waiting: &mut Waiting) -> bool {
    for _ in 0..client.rng.gen_range(1..6) {
        let partition = client.rng.gen_range(0..producer.partitions());
        let bytes = client.rng.gen_range(8..=client.shared.options.record_bytes_max);
        let payload = client.shared.payloads(1);
        let value = doors::value(payload, bytes);
        let invoked_us = client.began("operation.produce", &[u64::from(partition), payload]);
        let record = RecordRef { value: Some(&value), ..RecordRef::default() };
        if producer.send(Outgoing { partition: Some(partition), record }).await.is_err() {
            return false;
        }
        waiting.entry(partition).or_default().push_back((payload, invoked_us));
    }
    true
}

/// Deliveries of a partition come in the order of its records.
fn delivered(client: &Client, topic: &str, waiting: &mut Waiting, delivery: &Delivery) {
    let Some(queue) = waiting.get_mut(&delivery.partition) else { return };
    for (at, (payload, invoked_us)) in queue.drain(..(delivery.count as usize).min(queue.len())).enumerate() {
        let outcome = match &delivery.result {
            Ok(receipt) => {
                let term = if receipt.repeated { 0 } else { receipt.term.0 };
                Outcome::Ok(Receipt { offset: receipt.offset.0 + at as u64, term })
            }
            Err(error) if error.outcome() == client::Outcome::DidNotHappen => Outcome::Failed,
            Err(_) => Outcome::Unknown,
        };
        record(client, topic, delivery.partition, payload, invoked_us, outcome);
    }
}

fn record(client: &Client, topic: &str, partition: u32, payload: u64, invoked_us: u64, outcome: Outcome<Receipt>) {
    let found = client.shared.logs.iter().find(|log: &&Log| log.topic == topic && log.partition == partition);
    let Some(log) = found else { return };
    client.told(&[payload], || format!("{payload}: {outcome:?}"));
    client.shared.stage.lock().history.append(Append {
        client: client.id,
        partition: log.key,
        payload,
        count: 1,
        invoked_us,
        returned_us: now_us(),
        outcome,
        expected_offset: None,
        session: None,
    });
}
