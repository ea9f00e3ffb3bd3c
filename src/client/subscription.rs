//! Reading a topic from anywhere in it, to its end or for ever, across reconnects without a gap or a double.
//!
//! Each partition has one reader, which resolves where to start to an offset once, counts offsets from there, and resumes
//! at the next one it wants, whatever breaks. Offsets are dense, so a gap in an answer is a server's fault, and reported as
//! such instead of being passed over. What was read ahead is bounded: readers wait while [`ANSWERS_AHEAD`] answers wait.

use super::retry::{Backoff, Deadline};
use super::{log_client, wire, Client, ClientError, Outcome, Reason};
use crate::batch::{self, Record};
use crate::ids::{Offset, TimestampMs};
use crate::reached;
use bytes::Bytes;
use std::collections::VecDeque;
use std::time::Duration;
use tokio::sync::mpsc;
use tonic::Streaming;

/// Answers read ahead over all partitions; each holds at most `limits::READ_RESPONSE_BYTES_MAX` bytes of batches, or one batch.
const ANSWERS_AHEAD: usize = 8;

/// Where a subscription starts in each of its partitions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadFrom {
    /// The first record there is.
    Earliest,
    /// The first record appended from now on.
    Latest,
    /// This offset.
    Offset(Offset),
    /// The first record whose log time is at or after this.
    Time(TimestampMs),
}

/// What to read.
#[derive(Clone, Debug)]
pub struct SubscriptionOptions {
    /// These partitions; `None`: all there are now.
    pub partitions: Option<Vec<u32>>,
    /// Where to start.
    pub from: ReadFrom,
    /// Go on with what is appended after the tail was reached.
    pub follow: bool,
    /// End after so many records, over all partitions.
    pub count_max: Option<u64>,
    /// Take the tail as the answering node knows it, without asking a majority.
    pub stale: bool,
    /// Open the stream again when nothing came for so long.
    pub silence: Duration,
}

impl Default for SubscriptionOptions {
    fn default() -> SubscriptionOptions {
        SubscriptionOptions {
            partitions: None,
            from: ReadFrom::Earliest,
            follow: false,
            count_max: None,
            stale: false,
            silence: Duration::from_secs(10),
        }
    }
}

/// A batch, or what was asked for of it.
#[derive(Clone, Debug)]
pub struct Chunk {
    /// The partition it comes from.
    pub partition: u32,
    /// Offset of the first record wanted.
    pub first: Offset,
    /// How many records are wanted from there.
    pub count: u64,
    /// The log's time, the same for the whole batch.
    pub timestamp: TimestampMs,
    /// The batch as it lies in the log, which may begin before `first` and end after the last one wanted.
    pub batch: Bytes,
}

impl Chunk {
    /// The records wanted, as slices of the batch.
    pub fn records(&self) -> impl Iterator<Item = Record> {
        let first = self.first;
        batch::records(&self.batch).skip_while(move |record| record.offset < first).take(self.count as usize)
    }
}

/// Committed records of a topic, partition by partition in order, partitions merged as they come.
#[derive(Debug)]
pub struct Subscription {
    answers: mpsc::Receiver<Result<Vec<Chunk>, ClientError>>,
    ready: VecDeque<Chunk>,
    left: Option<u64>,
}

impl Subscription {
    /// Starts to read.
    ///
    /// # Errors
    /// If there is no such topic or partition, or no server answers.
    pub async fn open(client: &Client, topic: &str, options: SubscriptionOptions) -> Result<Subscription, ClientError> {
        let count = client.describe_topic(topic).await?.partitions.len() as u32;
        let partitions = options.partitions.clone().unwrap_or_else(|| (0..count).collect());
        if let Some(partition) = partitions.iter().copied().find(|partition| *partition >= count) {
            return Err(ClientError::NoSuchPartition { topic: topic.to_string(), partition, count });
        }
        let (out, answers) = mpsc::channel(ANSWERS_AHEAD);
        for partition in partitions {
            let reader = Reader {
                client: client.clone(),
                topic: topic.to_string(),
                partition,
                options: options.clone(),
                next: Offset::ZERO,
                left: options.count_max,
                out: out.clone(),
            };
            tokio::spawn(reader.run());
        }
        Ok(Subscription { answers, ready: VecDeque::new(), left: options.count_max })
    }

    /// The next records of some partition; `None` at the end, which a following subscription reaches only by its count.
    ///
    /// # Errors
    /// What one partition's reader could not get over; the others go on.
    pub async fn next(&mut self) -> Option<Result<Chunk, ClientError>> {
        if self.left == Some(0) {
            return None;
        }
        while self.ready.is_empty() {
            match self.answers.recv().await? {
                Ok(chunks) => self.ready.extend(chunks),
                Err(error) => return Some(Err(error)),
            }
        }
        let mut chunk = self.ready.pop_front()?;
        if let Some(left) = &mut self.left {
            chunk.count = chunk.count.min(*left);
            *left -= chunk.count;
        }
        Some(Ok(chunk))
    }

    /// Whether more is at hand without waiting for the network. Says when output is worth flushing.
    #[must_use]
    pub fn has_ready(&self) -> bool {
        !self.ready.is_empty() || !self.answers.is_empty()
    }
}

/// Reads one partition.
struct Reader {
    client: Client,
    topic: String,
    partition: u32,
    options: SubscriptionOptions,
    /// The first offset not yet handed on.
    next: Offset,
    /// How many more records of this partition can be wanted at all.
    left: Option<u64>,
    out: mpsc::Sender<Result<Vec<Chunk>, ClientError>>,
}

/// How one stream ended, when not by an error.
enum Ended {
    /// There is nothing more to read.
    AtEnd,
    /// Nobody listens any more.
    Unheard,
}

impl Reader {
    async fn run(mut self) {
        if let Err(error) = self.read_to_end().await {
            let _ = self.out.send(Err(error.of_nothing_sent())).await;
        }
    }

    async fn read_to_end(&mut self) -> Result<(), ClientError> {
        self.next = self.start().await?;
        let mut handed_on = self.next;
        let mut backoff = Backoff::default();
        let mut deadline = Deadline::after(self.client.options().timeout);
        let mut hint = None;
        loop {
            let connections = &self.client.shared.connections;
            let address = hint.take().unwrap_or_else(|| connections.any_server(None));
            let error = match self.read_from(&address).await {
                Ok(Ended::AtEnd | Ended::Unheard) => return Ok(()),
                Err(error) => error,
            };
            if self.next > handed_on {
                handed_on = self.next;
                backoff.reset();
                deadline = Deadline::after(self.client.options().timeout);
            }
            let trimmed = error.reason() == Some(Reason::OffsetTrimmed);
            if trimmed && self.options.from == ReadFrom::Earliest && handed_on == self.next && backoff.tries() < 8 {
                // The start moved between asking for it and reading from it; nothing was skipped that was asked for by number.
                self.next = self.start().await?;
                handed_on = self.next;
            } else if !error.is_passing() || (!self.options.follow && deadline.passed()) {
                return Err(error);
            }
            reached!("stream of records resumed");
            let connections = &self.client.shared.connections;
            connections.next_turn(&address);
            hint = error.leader().map(|leader| leader.address.clone());
            if !matches!(error, ClientError::Refused { .. }) {
                connections.shun(&address);
            }
            tokio::time::sleep(backoff.next(&self.client.shared.jitter)).await;
            if self.out.is_closed() {
                return Ok(());
            }
        }
    }

    /// Where to start, as an offset: from then on a reconnect can't change its meaning.
    async fn start(&self) -> Result<Offset, ClientError> {
        let (topic, partition) = (self.topic.as_str(), self.partition);
        match self.options.from {
            ReadFrom::Offset(offset) => Ok(offset),
            ReadFrom::Earliest => Ok(self.client.tail(topic, partition, self.options.stale).await?.start),
            ReadFrom::Latest => Ok(self.client.tail(topic, partition, self.options.stale).await?.tail),
            ReadFrom::Time(time) => self.client.offset_for_time(topic, partition, time).await,
        }
    }

    /// Reads one stream until it ends or breaks.
    async fn read_from(&mut self, address: &str) -> Result<Ended, ClientError> {
        let mut stream = self.open(address).await?;
        loop {
            let silence = self.options.silence;
            let answer = match tokio::time::timeout(silence, stream.message()).await {
                Ok(answer) => answer.map_err(|status| ClientError::from_status(address, &status))?,
                Err(_) => {
                    let cause = format!("silent for {} ms", silence.as_millis());
                    let outcome = Outcome::DidNotHappen;
                    return Err(ClientError::Broken { address: address.to_string(), cause, outcome });
                }
            };
            let Some(answer) = answer else {
                if self.options.follow && self.left != Some(0) {
                    let cause = "the server ended the stream".to_string();
                    let outcome = Outcome::DidNotHappen;
                    return Err(ClientError::Broken { address: address.to_string(), cause, outcome });
                }
                return Ok(Ended::AtEnd);
            };
            self.client.learn(&self.topic, self.partition, answer.leader.as_ref());
            let mut chunks = Vec::with_capacity(answer.batches.len());
            for batch in answer.batches {
                chunks.extend(self.take(address, batch)?);
            }
            if !chunks.is_empty() && self.out.send(Ok(chunks)).await.is_err() {
                return Ok(Ended::Unheard);
            }
            if self.left == Some(0) {
                return Ok(Ended::AtEnd);
            }
        }
    }

    async fn open(&self, address: &str) -> Result<Streaming<wire::ReadResponse>, ClientError> {
        let patience = self.client.options().attempt_timeout * 3;
        let channel = self.client.shared.connections.channel(address).await?;
        let request = wire::ReadRequest {
            topic: self.topic.clone(),
            partition: self.partition,
            from: Some(wire::read_request::From::Offset(self.next.0)),
            follow: self.options.follow,
            count_max: self.left,
            stale: self.options.stale,
            bytes_max: 0,
        };
        match tokio::time::timeout(patience, log_client(channel).read(request)).await {
            Ok(answer) => Ok(answer.map_err(|status| ClientError::from_status(address, &status))?.into_inner()),
            Err(_) => {
                let cause = format!("silent for {} ms", patience.as_millis());
                let outcome = Outcome::DidNotHappen;
                Err(ClientError::Broken { address: address.to_string(), cause, outcome })
            }
        }
    }

    /// What is wanted of a batch; checks that it continues what came before.
    fn take(&mut self, address: &str, batch: wire::ReadBatch) -> Result<Option<Chunk>, ClientError> {
        let bad = |what: String| ClientError::BadAnswer {
            address: address.to_string(),
            what,
            outcome: Outcome::DidNotHappen,
        };
        let Some(summary) = batch::peek(&batch.batch) else {
            return Err(bad(format!("{} bytes that are no batch", batch.batch.len())));
        };
        let end = summary.base_offset.plus(u64::from(summary.count));
        if summary.base_offset > self.next {
            let place = format!("{}/{}", self.topic, self.partition);
            return Err(bad(format!("{place} goes on at offset {}; {} was next", summary.base_offset, self.next)));
        }
        if end <= self.next || self.left == Some(0) {
            return Ok(None);
        }
        let first = self.next;
        let count = (end.0 - first.0).min(self.left.unwrap_or(u64::MAX));
        self.next = first.plus(count);
        self.left = self.left.map(|left| left - count);
        let timestamp = TimestampMs(batch.timestamp_ms);
        Ok(Some(Chunk { partition: self.partition, first, count, timestamp, batch: batch.batch }))
    }
}
