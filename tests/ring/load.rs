//! The steady load: several producers, each with a session in every partition, append numbered records until they are told to stop.
//! Nothing they send may fail for good, whatever happens to the cluster.

use crate::support::Cluster;
use balsa::batch::RecordRef;
use balsa::client::{Client, Outgoing, Producer, ProducerOptions};
use balsa::ids::TimestampMs;
use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::task::JoinHandle;

pub const TOPIC: &str = "ring";
pub const PARTITIONS: u32 = 2;
const PRODUCERS: u32 = 6;
/// Names of so many bytes, so many in each partition, belong to sessions that nobody uses.
const IDLE_SESSIONS: u32 = 160;
const IDLE_NAME_BYTES: usize = 120;
/// Longer than any trouble lasts.
const APPEND_TIMEOUT: Duration = Duration::from_secs(600);
const PACE: Duration = Duration::from_millis(30);
/// Bytes of most records, and of every so many one.
const SMALL_BYTES: usize = 80;
const LARGE_BYTES: usize = 4_000;
const LARGE_EVERY: u64 = 32;
/// Bytes of each record while there is a burst.
const BURST_BYTES: usize = 12 << 10;
/// Records that each producer sends at once, before any trouble, so that there are sealed segments and bases that moved.
const PREFILL: u64 = 110;
const PREFILL_BYTES: usize = 32 << 10;

/// Which record it is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Id {
    pub producer: u32,
    pub number: u64,
    /// Sent in a burst, and so a larger one.
    pub burst: bool,
}

impl Id {
    /// The record's bytes: they follow from what it is.
    pub fn value(self) -> Vec<u8> {
        let len = match self.number {
            number if number < PREFILL => PREFILL_BYTES,
            _ if self.burst => BURST_BYTES,
            number if number % LARGE_EVERY == 0 => LARGE_BYTES,
            _ => SMALL_BYTES,
        };
        let mut value = format!("{}:{}:{}:", self.producer, self.number, u8::from(self.burst)).into_bytes();
        let mut state = u64::from(self.producer) << 32 ^ self.number;
        value.resize_with(len, || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 56) as u8
        });
        value
    }

    /// The record that has these bytes.
    pub fn of_value(value: &[u8]) -> Option<Id> {
        let mut words = value.splitn(4, |byte| *byte == b':');
        let mut number = || std::str::from_utf8(words.next()?).ok()?.parse::<u64>().ok();
        let id = Id { producer: u32::try_from(number()?).ok()?, number: number()?, burst: number()? == 1 };
        (id.value() == value).then_some(id)
    }
}

/// A record and where it was acknowledged.
#[derive(Clone, Copy, Debug)]
pub struct Acknowledged {
    pub partition: u32,
    pub offset: u64,
    pub id: Id,
}

/// What the producers are told.
#[derive(Default)]
struct Orders {
    stop: AtomicBool,
    burst: AtomicBool,
}

/// The load under way.
pub struct Load {
    acknowledged: Arc<Mutex<Vec<Acknowledged>>>,
    orders: Arc<Orders>,
    producers: Vec<JoinHandle<u64>>,
}

impl Load {
    /// Starts it.
    pub async fn start(cluster: &Cluster) -> Load {
        let (acknowledged, orders) = (Arc::<Mutex<Vec<Acknowledged>>>::default(), Arc::<Orders>::default());
        let client = cluster.client();
        open_idle_sessions(&client).await;
        let mut producers = Vec::new();
        for producer in 0..PRODUCERS {
            producers.push(tokio::spawn(produce(client.clone(), producer, acknowledged.clone(), orders.clone())));
        }
        Load { acknowledged, orders, producers }
    }

    /// What was acknowledged so far, from the `from`th on.
    pub fn acknowledged(&self, from: usize) -> Vec<Acknowledged> {
        let all = self.acknowledged.lock().unwrap_or_else(PoisonError::into_inner);
        all[from..].to_vec()
    }

    pub fn acknowledged_count(&self) -> usize {
        self.acknowledged.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Has the producers send larger records, until told otherwise: segments fill up, bases move, journal files change.
    pub fn burst(&self, burst: bool) {
        self.orders.burst.store(burst, Ordering::Relaxed);
    }

    /// Panics if a producer gave up.
    pub fn goes_on(&self) {
        assert!(self.producers.iter().all(|producer| !producer.is_finished()), "a producer ended");
    }

    /// Ends it once everything that was sent is acknowledged. Gives how many records that are.
    pub async fn finish(&mut self) -> u64 {
        self.orders.stop.store(true, Ordering::Relaxed);
        let mut sent = 0;
        for producer in self.producers.drain(..) {
            sent += producer.await.expect("the producer ends well");
        }
        sent
    }
}

/// Sessions make the state of a partition too large to lie inline in the journal's bases: it gets a file of its own.
async fn open_idle_sessions(client: &Client) {
    let mut opening = tokio::task::JoinSet::new();
    for (partition, number) in
        (0..PARTITIONS).flat_map(|partition| (0..IDLE_SESSIONS).map(move |number| (partition, number)))
    {
        let (client, name) = (client.clone(), format!("{number:0IDLE_NAME_BYTES$}"));
        opening.spawn(async move { client.open_session(TOPIC, partition, &name).await });
    }
    while let Some(opened) = opening.join_next().await {
        opened.expect("it ends").expect("the session is opened");
    }
}

/// One producer's life. Gives how many records it sent.
async fn produce(
    client: Client,
    producer: u32,
    acknowledged: Arc<Mutex<Vec<Acknowledged>>>,
    orders: Arc<Orders>,
) -> u64 {
    let options = ProducerOptions { timeout: APPEND_TIMEOUT, ..ProducerOptions::default() };
    let (appending, mut deliveries) = Producer::open(&client, TOPIC, options).await.expect("a producer");
    let sent: Arc<Mutex<BTreeMap<u32, VecDeque<Id>>>> = Arc::default();
    let queued = sent.clone();
    let taking = tokio::spawn(async move {
        while let Some(delivery) = deliveries.next().await {
            let receipt = delivery.result.unwrap_or_else(|error| panic!("an append failed for good: {error}"));
            let ids: Vec<Id> = {
                let mut sent = sent.lock().unwrap_or_else(PoisonError::into_inner);
                sent.entry(delivery.partition).or_default().drain(..delivery.count as usize).collect()
            };
            let places = ids.into_iter().zip(receipt.offset.0..);
            let places = places.map(|(id, offset)| Acknowledged { partition: delivery.partition, offset, id });
            acknowledged.lock().unwrap_or_else(PoisonError::into_inner).extend(places);
        }
    });
    let mut pace = tokio::time::interval(PACE);
    let mut number = 0;
    while !orders.stop.load(Ordering::Relaxed) {
        if number >= PREFILL {
            pace.tick().await;
        }
        let id = Id { producer, number, burst: orders.burst.load(Ordering::Relaxed) };
        let partition = (u64::from(producer) + number) as u32 % PARTITIONS;
        queued.lock().unwrap_or_else(PoisonError::into_inner).entry(partition).or_default().push_back(id);
        let value = id.value();
        let record = RecordRef { key: None, value: Some(&value), headers: &[], timestamp: TimestampMs(1) };
        appending.send(Outgoing { partition: Some(partition), record }).await.expect("the record is taken");
        number += 1;
    }
    appending.flush().await.expect("all is acknowledged");
    drop(appending);
    taking.await.expect("all deliveries are taken");
    number
}
