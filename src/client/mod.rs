//! The Rust client: finds leaders, retries what is safe to retry, and says of everything else whether it may have happened.
//!
//! A [`Client`] is a cheap handle. It goes straight to the leader of a partition where it knows one, learns from each
//! answer, and falls back to the other servers. Every operation ends at its deadline. What *did not happen* is tried again
//! until then; what *may have happened* is tried again only where that is harmless: in reads, and inside a producer's
//! session, where the log tells a repetition from a new record. A [`Producer`] appends many records through pipelined
//! streams, a [`Subscription`] reads and follows across reconnects without a gap or a double.
//!
//! Refuses to decode more than it must: batches reach readers as slices of what the network brought.

mod catalog;
mod connections;
mod error;
mod partitioner;
mod producer;
mod retry;
mod silence;
mod subscription;
#[cfg(all(test, not(madsim)))]
mod tests;
mod types;

/// Messages of the client's door, generated from `proto/balsa/v1/balsa.proto`.
#[allow(missing_docs, clippy::all)]
pub mod wire {
    tonic::include_proto!("balsa.v1");
    /// The descriptors of all services, for reflection.
    pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/balsa_descriptor.bin"));
}

pub use catalog::{CatalogChange, CatalogWatch};
pub use error::{ClientError, Outcome, Reason};
pub use partitioner::partition_of_key;
pub use producer::{Deliveries, Delivery, Outgoing, Producer, ProducerOptions, SessionChoice};
pub use subscription::{Chunk, ReadFrom, Subscription, SubscriptionOptions};
pub use types::{
    AppendConditions, ClusterStatus, Leader, NewTopic, NodeState, NodeStatus, Partition, PartitionStatus, Receipt,
    Session, Tail, Topic,
};

use crate::batch;
use crate::ids::{Digest, Offset, Term, TimestampMs};
use crate::limits::REQUEST_BYTES_MAX;
use bytes::Bytes;
use connections::Connections;
use retry::{Backoff, Deadline, Jitter};
use std::collections::BTreeSet;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;
use tonic::transport::Channel;
use tonic::{Response, Status};
use wire::cluster_client::ClusterClient;
use wire::log_client::LogClient;
use wire::producers_client::ProducersClient;

/// How a client behaves.
#[derive(Clone, Debug)]
pub struct ClientOptions {
    /// Each operation ends after so long.
    pub timeout: Duration,
    /// Making one connection ends after so long.
    pub connect_timeout: Duration,
    /// While no server can be reached, or none of those that can sees a majority, a single operation gives up after so long, if
    /// that is sooner.
    pub unreachable_timeout: Duration,
    /// A request that may be repeated and has no answer for so long is asked of another server; after each silence, twice
    /// as long. One that must not be repeated goes on waiting, while the others are asked who leads.
    pub attempt_timeout: Duration,
    /// Seed of the jitter in retries.
    pub seed: u64,
}

impl Default for ClientOptions {
    fn default() -> ClientOptions {
        ClientOptions {
            timeout: Duration::from_secs(30),
            connect_timeout: Duration::from_secs(2),
            unreachable_timeout: Duration::from_secs(3),
            attempt_timeout: Duration::from_secs(1),
            seed: rand::random(),
        }
    }
}

/// A handle to a cluster. Clones share connections and what was learned.
#[derive(Clone, Debug)]
pub struct Client {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    connections: Connections,
    options: ClientOptions,
    jitter: Jitter,
}

/// Whether repeating a request that may have been done is harmless.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Repeat {
    /// It changes nothing, or doing it twice is doing it once.
    Harmless,
    /// It would be done twice.
    Harmful,
}

impl Client {
    /// A client of the cluster that `servers` (host:port each) belong to. Connections are made when first needed.
    ///
    /// # Errors
    /// If no server is given or an address cannot be used.
    pub fn connect(servers: Vec<String>, options: ClientOptions) -> Result<Client, ClientError> {
        let connections = Connections::new(servers, options.connect_timeout)?;
        let jitter = Jitter::new(options.seed);
        Ok(Client { shared: Arc::new(Shared { connections, options, jitter }) })
    }

    /// What this client was told to do.
    #[must_use]
    pub fn options(&self) -> &ClientOptions {
        &self.shared.options
    }

    /// Appends one batch, as [`batch::BatchBuilder`] makes it. If the batch belongs to a session it is tried again whatever
    /// happens; otherwise only while it is known not to have happened.
    ///
    /// # Errors
    /// Whatever the server refuses; an outcome of *may have happened* if the answer was lost.
    pub async fn append(
        &self,
        topic: &str,
        partition: u32,
        batch: Bytes,
        conditions: &AppendConditions,
    ) -> Result<Receipt, ClientError> {
        let in_session = batch::peek(&batch).is_some_and(|summary| summary.producer().is_some());
        let unconditional = conditions.expected_offset.is_none();
        let repeat = if in_session && unconditional { Repeat::Harmless } else { Repeat::Harmful };
        let request = wire::AppendRequest {
            topic: topic.to_string(),
            partition,
            batch,
            expected_offset: conditions.expected_offset.map(|offset| offset.0),
            fence: conditions.fence.clone().map(|(name, token)| wire::Fence { name, token }),
        };
        let answer = self
            .at_leader(topic, partition, repeat, |channel| {
                let request = request.clone();
                async move { log_client(channel).append(request).await }
            })
            .await;
        // Repeating it was harmless; whether it was done at all still matters to the caller.
        let receipt = answer?;
        self.learn(topic, partition, receipt.leader.as_ref());
        Receipt::from_wire(receipt, topic, partition)
    }

    /// Start and tail of a partition. Linearizable, unless `stale` asks for what the answering node knows by itself.
    ///
    /// # Errors
    /// Whatever the server refuses; never *may have happened*.
    pub async fn tail(&self, topic: &str, partition: u32, stale: bool) -> Result<Tail, ClientError> {
        let request = wire::TailRequest { topic: topic.to_string(), partition, stale };
        let answer = self
            .at_leader(topic, partition, Repeat::Harmless, |channel| {
                let request = request.clone();
                async move { log_client(channel).tail(request).await }
            })
            .await
            .map_err(ClientError::of_nothing_sent)?;
        self.learn(topic, partition, answer.leader.as_ref());
        let hash = Digest::from_slice(&answer.hash).unwrap_or_default();
        Ok(Tail { start: Offset(answer.start), tail: Offset(answer.tail), hash })
    }

    /// The first offset whose log timestamp is at or after `time`; the tail if nothing is that young.
    ///
    /// # Errors
    /// Whatever the server refuses; never *may have happened*.
    pub async fn offset_for_time(&self, topic: &str, partition: u32, time: TimestampMs) -> Result<Offset, ClientError> {
        let request = wire::OffsetForTimeRequest { topic: topic.to_string(), partition, time_ms: time.0 };
        let answer = self
            .at_leader(topic, partition, Repeat::Harmless, |channel| {
                let request = request.clone();
                async move { log_client(channel).offset_for_time(request).await }
            })
            .await
            .map_err(ClientError::of_nothing_sent)?;
        Ok(Offset(answer.offset))
    }

    /// Raises a fence of a partition: appends under lower tokens are refused from here on.
    ///
    /// # Errors
    /// Whatever the server refuses: above all, a higher token was seen.
    pub async fn raise_fence(&self, topic: &str, partition: u32, name: &str, token: u64) -> Result<(), ClientError> {
        let fence = Some(wire::Fence { name: name.to_string(), token });
        let request = wire::RaiseFenceRequest { topic: topic.to_string(), partition, fence };
        let call = |channel| {
            let request = request.clone();
            async move { log_client(channel).raise_fence(request).await }
        };
        self.at_leader(topic, partition, Repeat::Harmless, call).await.map(|_| ())
    }

    /// Opens a producer's session in one partition. Opening a name again raises its epoch, which shuts out whoever held
    /// it before, and keeps its sequences. An empty name opens a new session each time.
    ///
    /// # Errors
    /// Whatever the server refuses. An open that may have happened leaves at most a session that expires unused.
    pub async fn open_session(&self, topic: &str, partition: u32, name: &str) -> Result<Session, ClientError> {
        let request = wire::OpenSessionRequest { topic: topic.to_string(), partition, name: name.to_string() };
        let answer = self
            .at_leader(topic, partition, Repeat::Harmless, |channel| {
                let request = request.clone();
                async move { ProducersClient::new(channel).open_session(request).await }
            })
            .await?;
        let epoch = u16::try_from(answer.epoch).ok().filter(|epoch| *epoch <= i16::MAX as u16);
        let Some(epoch) = epoch else {
            let what = format!("session {name:?} has epoch {}; a batch can name at most {}", answer.epoch, i16::MAX);
            return Err(ClientError::BadAnswer { address: topic.to_string(), what, outcome: Outcome::MayHaveHappened });
        };
        Ok(Session {
            producer_id: answer.producer_id,
            epoch,
            next_sequence: answer.next_sequence,
            records: answer.records,
            window_batches: answer.window_batches.max(1),
            expires_after_ms: answer.expires_after_ms,
        })
    }

    /// Forgets a session, so that its place in the partition is free at once. Late repetitions of its batches are refused.
    ///
    /// # Errors
    /// Whatever the server refuses. A session that stays open expires by itself.
    pub async fn close_session(&self, topic: &str, partition: u32, session: &Session) -> Result<(), ClientError> {
        let request = wire::CloseSessionRequest {
            topic: topic.to_string(),
            partition,
            producer_id: session.producer_id,
            epoch: u32::from(session.epoch),
        };
        let call = |channel| {
            let request = request.clone();
            async move { ProducersClient::new(channel).close_session(request).await }
        };
        self.at_leader(topic, partition, Repeat::Harmless, call).await.map(|_| ())
    }

    /// Nodes, partitions, leaders and tails, as any node that answers sees them.
    ///
    /// # Errors
    /// If no server answers.
    pub async fn status(&self, local_only: bool) -> Result<ClusterStatus, ClientError> {
        let answer = self
            .call(None, Repeat::Harmless, |channel| async move {
                ClusterClient::new(channel)
                    .max_decoding_message_size(STATUS_BYTES_MAX)
                    .status(wire::StatusRequest { local_only })
                    .await
            })
            .await
            .map_err(ClientError::of_nothing_sent)?;
        let status = ClusterStatus::from(answer);
        for node in &status.nodes {
            self.shared.connections.learn_server(&node.address);
        }
        Ok(status)
    }

    /// Asks a partition's leader to hand over to the replica on another node.
    ///
    /// # Errors
    /// Whatever the server refuses.
    pub async fn transfer_leader(&self, topic: &str, partition: u32, to_node: u32) -> Result<(), ClientError> {
        let request = wire::TransferLeaderRequest { topic: topic.to_string(), partition, to_node };
        let call = |channel| {
            let request = request.clone();
            async move { ClusterClient::new(channel).transfer_leader(request).await }
        };
        self.at_leader(topic, partition, Repeat::Harmless, call).await.map(|_| ())
    }

    fn learn(&self, topic: &str, partition: u32, leader: Option<&wire::Leader>) {
        if let Some(leader) = leader.and_then(Leader::from_wire) {
            self.shared.connections.learn_leader(topic, partition, &leader);
        }
    }

    /// Calls the leader of a partition if it is known, and learns who it is from refusals.
    async fn at_leader<T, F, Fut>(&self, topic: &str, partition: u32, repeat: Repeat, call: F) -> Result<T, ClientError>
    where
        F: Fn(Channel) -> Fut,
        Fut: Future<Output = Result<Response<T>, Status>>,
    {
        self.call(Some((topic, partition)), repeat, call).await
    }

    /// Calls one server after another until one answers for good, or the deadline passes.
    async fn call<T, F, Fut>(&self, route: Option<(&str, u32)>, repeat: Repeat, call: F) -> Result<T, ClientError>
    where
        F: Fn(Channel) -> Fut,
        Fut: Future<Output = Result<Response<T>, Status>>,
    {
        let Shared { connections, options, jitter } = &*self.shared;
        let deadline = Deadline::after(options.timeout);
        let mut tries = Tries::default();
        loop {
            let leader = route.and_then(|(topic, partition)| connections.leader_of(topic, partition));
            let address = leader.clone().unwrap_or_else(|| connections.any_server(None));
            let patience = match repeat {
                Repeat::Harmless => {
                    (options.attempt_timeout * 3_u32.pow(tries.silences.min(5))).min(deadline.remaining())
                }
                Repeat::Harmful => deadline.remaining(),
            };
            let superseded = async {
                match (route, repeat) {
                    (Some((topic, partition)), Repeat::Harmful) if leader.is_some() => {
                        self.superseded(&address, topic, partition).await;
                    }
                    _ => std::future::pending().await,
                }
            };
            let error = match self.attempt(&address, patience, &call, superseded).await {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            if !matches!(error, ClientError::Refused { .. }) {
                connections.shun(&address);
            }
            let open = error.outcome() == Outcome::MayHaveHappened;
            if !error.is_passing() || (open && repeat == Repeat::Harmful) {
                return Err(tries.settle(error));
            }
            if let (Some((topic, partition)), Some(leader)) = (route, error.leader()) {
                connections.learn_leader(topic, partition, leader);
            }
            connections.next_turn(&address);
            tries.note(&address, error);
            let hopeless = tries.none_reached() || tries.without_quorum(connections.servers().len());
            if deadline.passed() || (hopeless && deadline.elapsed() >= options.unreachable_timeout) {
                return Err(tries.give_up(deadline.elapsed()));
            }
            if tries.in_round >= connections.servers().len() {
                tries.in_round = 0;
                tokio::time::sleep(tries.backoff.next(jitter).min(deadline.remaining())).await;
            }
        }
    }

    /// One call to one server. It is given up once `superseded` completes, which is asked only when the call has begun: what was not
    /// sent did not happen.
    async fn attempt<T, F, Fut>(
        &self,
        address: &str,
        patience: Duration,
        call: &F,
        superseded: impl Future<Output = ()>,
    ) -> Result<T, ClientError>
    where
        F: Fn(Channel) -> Fut,
        Fut: Future<Output = Result<Response<T>, Status>>,
    {
        let channel = match tokio::time::timeout(patience, self.shared.connections.channel(address)).await {
            Ok(channel) => channel?,
            Err(_) => {
                let cause = format!("no connection within {} ms", patience.as_millis());
                return Err(ClientError::Unreachable { tried: vec![(address.to_string(), cause)] });
            }
        };
        let begun = Deadline::after(patience);
        tokio::select! {
            biased;
            answer = tokio::time::timeout(patience, call(channel)) => match answer {
                Ok(Ok(answer)) => Ok(answer.into_inner()),
                Ok(Err(status)) => Err(ClientError::from_status(address, &status)),
                Err(_) => Err(ClientError::silent(address, patience)),
            },
            () = superseded => Err(ClientError::silent(address, begun.elapsed())),
        }
    }
}

/// Room for the status of a cluster with as many partitions as there may be.
const STATUS_BYTES_MAX: usize = 64 << 20;

/// What became of the tries of one operation so far.
#[derive(Debug, Default)]
struct Tries {
    backoff: Backoff,
    in_round: usize,
    /// Tries that were not answered in their time.
    silences: u32,
    /// A try may have done it.
    open: bool,
    unreachable: Vec<(String, String)>,
    count: usize,
    /// Servers that said last that too few others are left.
    cut_off: BTreeSet<String>,
    /// Servers that failed last in another way than that or than being unreachable.
    in_doubt: BTreeSet<String>,
    last: Option<ClientError>,
}

impl Tries {
    fn note(&mut self, address: &str, error: ClientError) {
        self.in_round += 1;
        self.open |= error.outcome() == Outcome::MayHaveHappened;
        self.silences += u32::from(matches!(error, ClientError::TimedOut { .. }));
        self.count += 1;
        self.unreachable.retain(|(known, _)| known != address);
        self.cut_off.remove(address);
        self.in_doubt.remove(address);
        if error.reason() == Some(Reason::NoQuorum) {
            self.cut_off.insert(address.to_string());
        } else if !matches!(error, ClientError::Unreachable { .. }) {
            self.in_doubt.insert(address.to_string());
        }
        match (error, &self.last) {
            (ClientError::Unreachable { tried }, _) => self.unreachable.extend(tried),
            // A server's word says more than a silence after it, which may only be our deadline.
            (ClientError::TimedOut { .. }, Some(ClientError::Refused { .. })) => {}
            (other, _) => self.last = Some(other),
        }
    }

    /// As many were asked as there are, and each either cannot be reached or says that too few others can.
    fn without_quorum(&self, servers: usize) -> bool {
        !self.cut_off.is_empty() && self.in_doubt.is_empty() && self.count >= servers
    }

    fn none_reached(&self) -> bool {
        self.last.is_none()
    }

    /// A definite answer to the last try settles the operation only if no earlier try may have done it.
    fn settle(&self, error: ClientError) -> ClientError {
        if !self.open || error.outcome() == Outcome::MayHaveHappened {
            return error;
        }
        match error {
            ClientError::Refused { reason, message, leader, wanted, limit, .. } => {
                ClientError::Refused { reason, outcome: Outcome::MayHaveHappened, message, leader, wanted, limit }
            }
            other => other,
        }
    }

    fn give_up(self, elapsed: Duration) -> ClientError {
        let outcome = if self.open { Outcome::MayHaveHappened } else { Outcome::DidNotHappen };
        match self.last {
            None => ClientError::Unreachable { tried: self.unreachable },
            Some(ClientError::Refused { reason, message, leader, wanted, limit, .. }) => {
                ClientError::Refused { reason, outcome, message, leader, wanted, limit }
            }
            Some(last) => {
                let after_ms = elapsed.as_millis() as u64;
                let last = match last {
                    ClientError::TimedOut { last, .. } => last,
                    other => other.to_string(),
                };
                ClientError::TimedOut { after_ms, outcome, last }
            }
        }
    }
}

impl Receipt {
    fn from_wire(receipt: wire::Receipt, topic: &str, partition: u32) -> Result<Receipt, ClientError> {
        let Some(hash) = Digest::from_slice(&receipt.hash) else {
            let what = format!("receipt for {topic}/{partition} has a hash of {} bytes, not 32", receipt.hash.len());
            let (address, outcome) = (topic.to_string(), Outcome::MayHaveHappened);
            return Err(ClientError::BadAnswer { address, what, outcome });
        };
        Ok(Receipt {
            partition,
            offset: Offset(receipt.offset),
            count: receipt.count,
            term: Term(receipt.term),
            hash,
            timestamp: TimestampMs(receipt.timestamp_ms),
            repeated: receipt.repeated_append,
        })
    }
}

/// The client of the service that holds records, with room for its batches.
fn log_client(channel: Channel) -> LogClient<Channel> {
    LogClient::new(channel).max_decoding_message_size(REQUEST_BYTES_MAX).max_encoding_message_size(REQUEST_BYTES_MAX)
}
