//! A producer: many records to one topic, batched per partition, pipelined to the leaders, in order, none doubled.
//!
//! `send` encodes a record straight into the open batch of its partition; a driver task (in `driver`) seals batches when they
//! are full or have lingered, numbers them in the partition's session, keeps them until they are acknowledged, and goes back
//! to the first unacknowledged one when a leader changes. Batches keep their boundaries and sequences, so a repetition is
//! recognised by the log.
//!
//! Invariants: memory is bounded by `buffer_bytes`; `send` waits while they are in use. A producer that failed in one
//! partition takes no more records: whatever follows would stand behind a gap. It never opens a forgotten session again to
//! send something a second time.

mod driver;
mod lane;
mod link;

use super::partitioner::partition_of_key;
use super::types::Receipt;
use super::{Client, ClientError, Session};
use crate::batch::{BatchBuilder, RecordRef};
use crate::limits::{BATCH_BYTES_MAX, BATCH_RECORDS_MAX};
use driver::{Command, Driver};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, Semaphore};
use tokio::time::Instant;

/// What holding one record costs besides its bytes.
const RECORD_OVERHEAD_BYTES: usize = 32;

/// Which sessions a producer appends in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SessionChoice {
    /// A new session in each partition: retries never double a record.
    Anonymous,
    /// The session of this name in each partition: a later producer of the same name learns how far this one got.
    Named(String),
    /// None: one batch in flight per partition, and what may have happened is reported instead of retried.
    Off,
}

/// How a producer behaves.
#[derive(Clone, Debug)]
pub struct ProducerOptions {
    /// How long a batch that is not full waits for more records.
    pub linger: Duration,
    /// A batch is full at so many bytes. A larger record travels alone, up to what its topic allows.
    pub batch_bytes: usize,
    /// A batch is full at so many records.
    pub batch_records: usize,
    /// Bytes of records that may wait for their acknowledgement, or for their delivery to be taken.
    pub buffer_bytes: usize,
    /// Batches in flight per partition; the session's window bounds it too.
    pub in_flight_batches: usize,
    /// Sessions.
    pub session: SessionChoice,
    /// A batch that is not acknowledged after so long fails.
    pub timeout: Duration,
}

impl Default for ProducerOptions {
    fn default() -> ProducerOptions {
        ProducerOptions {
            linger: Duration::from_millis(2),
            batch_bytes: 256 << 10,
            batch_records: BATCH_RECORDS_MAX,
            buffer_bytes: 32 << 20,
            in_flight_batches: 16,
            session: SessionChoice::Anonymous,
            timeout: Duration::from_secs(30),
        }
    }
}

/// A record to be appended.
#[derive(Clone, Copy, Debug, Default)]
pub struct Outgoing<'a> {
    /// Where to; `None`: where the key belongs, or in turn if there is none.
    pub partition: Option<u32>,
    /// The record.
    pub record: RecordRef<'a>,
}

/// What became of one batch of records. Batches of one partition are delivered in the order of their records.
#[derive(Clone, Debug)]
pub struct Delivery {
    /// The partition.
    pub partition: u32,
    /// How many records.
    pub count: u32,
    /// When the first of them was given to the producer.
    pub since: Instant,
    /// Where they are, or why not.
    pub result: Result<Receipt, ClientError>,
}

/// Deliveries of a producer. Take them from another task than the one that sends: untaken ones hold on to the
/// producer's memory. Drop it if nobody wants them.
#[derive(Debug)]
pub struct Deliveries {
    queue: mpsc::UnboundedReceiver<(Delivery, usize)>,
    shared: Arc<Shared>,
}

impl Deliveries {
    /// The next delivery; `None` once the producer has ended.
    pub async fn next(&mut self) -> Option<Delivery> {
        let (delivery, charge) = self.queue.recv().await?;
        self.shared.room.add_permits(charge);
        Some(delivery)
    }
}

impl Drop for Deliveries {
    fn drop(&mut self) {
        self.queue.close();
        while let Ok((_, charge)) = self.queue.try_recv() {
            self.shared.room.add_permits(charge);
        }
    }
}

/// Appends records to one topic. Clones share everything; the last one dropped lets what is under way finish.
#[derive(Clone, Debug)]
pub struct Producer {
    shared: Arc<Shared>,
    commands: mpsc::UnboundedSender<Command>,
}

/// What senders and the driver share.
#[derive(Debug)]
struct Shared {
    topic: String,
    options: ProducerOptions,
    /// The topic's own bound of one batch.
    batch_bytes_max: usize,
    lanes: Vec<Mutex<Filling>>,
    room: Semaphore,
    /// Records taken and not yet resolved.
    unresolved: AtomicU64,
    /// The partition that records without a key go to until its batch is sealed.
    sticky: AtomicU32,
    failed: OnceLock<ClientError>,
}

/// The batches of one partition that the driver has not taken yet.
#[derive(Debug, Default)]
struct Filling {
    open: Option<Sealed>,
    full: VecDeque<Sealed>,
}

/// A batch whose records are known, but not yet its place in the session.
#[derive(Debug)]
struct Sealed {
    builder: BatchBuilder,
    charge: usize,
    since: Instant,
}

impl Producer {
    /// A producer for `topic`. Sessions are opened when a partition gets its first record.
    ///
    /// # Errors
    /// If there is no such topic, or no server answers.
    pub async fn open(
        client: &Client,
        topic: &str,
        options: ProducerOptions,
    ) -> Result<(Producer, Deliveries), ClientError> {
        let described = client.describe_topic(topic).await?;
        let allowed = described.batch_bytes_max as usize;
        let batch_bytes_max = if allowed == 0 { BATCH_BYTES_MAX } else { allowed.min(BATCH_BYTES_MAX) };
        let buffer_bytes = options.buffer_bytes.max(2 * batch_bytes_max).min(Semaphore::MAX_PERMITS >> 1);
        let shared = Arc::new(Shared {
            topic: topic.to_string(),
            batch_bytes_max,
            lanes: described.partitions.iter().map(|_| Mutex::default()).collect(),
            room: Semaphore::new(buffer_bytes),
            unresolved: AtomicU64::new(0),
            sticky: AtomicU32::new((client.shared.jitter.next() >> 33) as u32),
            failed: OnceLock::new(),
            options,
        });
        let (commands, inbox) = mpsc::unbounded_channel();
        let (outbox, queue) = mpsc::unbounded_channel();
        let driver = Driver::new(client.clone(), shared.clone(), inbox, outbox);
        tokio::spawn(driver.run());
        Ok((Producer { shared: shared.clone(), commands }, Deliveries { queue, shared }))
    }

    /// How many partitions the topic had when this producer was opened.
    #[must_use]
    pub fn partitions(&self) -> u32 {
        self.shared.lanes.len() as u32
    }

    /// Records taken and neither acknowledged nor failed yet.
    #[must_use]
    pub fn unresolved(&self) -> u64 {
        self.shared.unresolved.load(Ordering::Acquire)
    }

    /// Opens the session of one partition now, if it is not open, and tells its first free sequence: how many records the
    /// session has appended there.
    ///
    /// # Errors
    /// If the partition does not exist or the session cannot be opened.
    pub async fn session(&self, partition: u32) -> Result<Session, ClientError> {
        self.check_partition(partition)?;
        let (answer, session) = oneshot::channel();
        self.commands.send(Command::OpenSession { partition, answer }).map_err(|_| ClientError::Closed)?;
        session.await.map_err(|_| self.failure())?
    }

    /// Takes a record. Waits while the producer's memory is in use. The acknowledgement comes as a delivery.
    ///
    /// # Errors
    /// If the record is over a limit or its partition does not exist (nothing else is affected), or the producer has failed.
    pub async fn send(&self, outgoing: Outgoing<'_>) -> Result<(), ClientError> {
        let shared = &*self.shared;
        if let Some(failure) = shared.failed.get() {
            return Err(failure.clone());
        }
        let partition = match outgoing.partition {
            Some(partition) => {
                self.check_partition(partition)?;
                partition
            }
            None => shared.partition_for(outgoing.record.key),
        };
        let charge = shared.charge_of(&outgoing.record)?;
        match shared.room.try_acquire_many(charge) {
            Ok(room) => room.forget(),
            Err(_) => shared.room.acquire_many(charge).await.map_err(|_| self.failure())?.forget(),
        }
        match shared.put(partition, outgoing.record, charge as usize) {
            Ok(false) => Ok(()),
            Ok(true) => self.commands.send(Command::Look { partition }).map_err(|_| self.failure()),
            Err(error) => {
                shared.room.add_permits(charge as usize);
                Err(error)
            }
        }
    }

    /// Waits until every record taken so far is acknowledged or has failed; nothing lingers meanwhile.
    ///
    /// # Errors
    /// The producer's first failure.
    pub async fn flush(&self) -> Result<(), ClientError> {
        let (done, flushed) = oneshot::channel();
        self.commands.send(Command::Flush { done }).map_err(|_| self.failure())?;
        flushed.await.map_err(|_| self.failure())?;
        self.shared.failed.get().map_or(Ok(()), |failure| Err(failure.clone()))
    }

    fn check_partition(&self, partition: u32) -> Result<(), ClientError> {
        let count = self.partitions();
        if partition < count {
            return Ok(());
        }
        Err(ClientError::NoSuchPartition { topic: self.shared.topic.clone(), partition, count })
    }

    fn failure(&self) -> ClientError {
        self.shared.failed.get().cloned().unwrap_or(ClientError::Closed)
    }
}

impl Shared {
    fn filling(&self, partition: u32) -> MutexGuard<'_, Filling> {
        self.lanes[partition as usize].lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn partition_for(&self, key: Option<&[u8]>) -> u32 {
        let count = self.lanes.len() as u32;
        match key {
            Some(key) => partition_of_key(key, count),
            None => self.sticky.load(Ordering::Relaxed) % count.max(1),
        }
    }

    fn charge_of(&self, record: &RecordRef<'_>) -> Result<u32, ClientError> {
        let headers = record.headers.iter().map(|(key, value)| key.len() + value.map_or(0, <[u8]>::len) + 10);
        let body = record.key.map_or(0, <[u8]>::len) + record.value.map_or(0, <[u8]>::len) + headers.sum::<usize>();
        let bytes = body + RECORD_OVERHEAD_BYTES;
        if body > self.batch_bytes_max {
            let (topic, max) = (self.topic.clone(), self.batch_bytes_max);
            return Err(ClientError::RecordTooLarge { topic, bytes, max });
        }
        Ok(bytes as u32)
    }

    /// Adds a record to the open batch of its partition. Says whether the driver has something new to look at.
    fn put(&self, partition: u32, record: RecordRef<'_>, charge: usize) -> Result<bool, ClientError> {
        let mut filling = self.filling(partition);
        let mut look = false;
        if let Some(open) = &filling.open {
            if open.builder.bytes_with(&record) > self.options.batch_bytes.min(self.batch_bytes_max) {
                let sealed = filling.open.take();
                filling.full.extend(sealed);
                self.turn(partition);
                look = true;
            }
        }
        let (builder, charged, since) = match filling.open.take() {
            Some(open) => (open.builder, open.charge, open.since),
            None => {
                look = true;
                (BatchBuilder::new(), 0, Instant::now())
            }
        };
        let mut open = Sealed { builder, charge: charged, since };
        let bytes = open.builder.bytes_with(&record);
        let pushed = if bytes > self.batch_bytes_max {
            let (topic, max) = (self.topic.clone(), self.batch_bytes_max);
            Err(ClientError::RecordTooLarge { topic, bytes, max })
        } else {
            open.builder.push(record).map_err(ClientError::Record)
        };
        if pushed.is_ok() {
            open.charge += charge;
            self.unresolved.fetch_add(1, Ordering::AcqRel);
        }
        if open.builder.len() >= self.options.batch_records.clamp(1, BATCH_RECORDS_MAX) {
            filling.full.push_back(open);
            self.turn(partition);
            look = true;
        } else if !open.builder.is_empty() {
            filling.open = Some(open);
        }
        pushed.map(|()| look)
    }

    /// Records without a key go to the next partition from here on.
    fn turn(&self, partition: u32) {
        let sticky = self.sticky.load(Ordering::Relaxed);
        if sticky % (self.lanes.len() as u32).max(1) == partition {
            self.sticky.store(sticky.wrapping_add(1), Ordering::Relaxed);
        }
    }

    /// A batch to send next: one that is full, or the open one if it was begun at `ripe` or before. No time: any.
    fn take(&self, partition: u32, ripe: Option<Instant>) -> Option<Sealed> {
        let mut filling = self.filling(partition);
        if let Some(full) = filling.full.pop_front() {
            return Some(full);
        }
        let taken = filling.open.take_if(|open| ripe.is_none_or(|ripe| open.since <= ripe));
        if taken.is_some() {
            self.turn(partition);
        }
        taken
    }

    /// When the open batch of a partition was begun, if there is one; now, if a full one waits.
    fn waiting_since(&self, partition: u32) -> Option<Instant> {
        let filling = self.filling(partition);
        filling.full.front().or(filling.open.as_ref()).map(|sealed| sealed.since)
    }
}
