//! The one table from domain errors to what goes over the wire.
//!
//! Every error says whether the thing did not happen or may have happened. An unknown outcome is `DEADLINE_EXCEEDED`, the one
//! standard code defined as "may have completed all the same", and never `UNAVAILABLE`, which generic clients send again by
//! themselves.

use crate::batch::BatchError;
use crate::client::wire;
use crate::group::driver::CommandError;
use crate::ids::{NodeId, Offset};
use crate::segments::verdict::Refusal;
use crate::segments::SegmentsError;
use prost::Message;
use tonic::{Code, Status};
use wire::{Outcome, Reason};

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// A field of the request is missing or senseless.
    #[error("{0}")]
    Invalid(String),
    /// A size, count or length over its bound.
    #[error("{what} is {actual}; at most {limit} is allowed")]
    TooLarge {
        /// What is too large, with its unit.
        what: &'static str,
        /// Its value.
        actual: u64,
        /// Its bound.
        limit: u64,
    },
    /// The request is larger than any may be; it was not read.
    #[error("the request is {actual} bytes; at most {limit} are allowed, and nothing was done: send less at a time")]
    RequestTooLarge {
        /// Bytes it says it has.
        actual: u64,
        /// The bound.
        limit: u64,
    },
    /// The record batch is refused.
    #[error("the record batch is refused: {0}")]
    Batch(#[from] BatchError),
    /// There is no such topic.
    #[error("there is no topic {0:?}; create it with: balsa topic create {0}")]
    UnknownTopic(String),
    /// The topic has fewer partitions.
    #[error("topic {topic:?} has partitions 0 to {}; there is no partition {partition}", partitions.saturating_sub(1))]
    UnknownPartition {
        /// The topic.
        topic: String,
        /// The partition that was asked for.
        partition: u32,
        /// How many there are.
        partitions: u32,
    },
    /// There is a topic of that name.
    #[error("topic {0:?} exists already")]
    TopicExists(String),
    /// The cluster has fewer nodes than the topic wants replicas.
    #[error(
        "topic {topic:?} wants {wanted} replicas of each partition, the cluster has {nodes} nodes; ask for {nodes} at most, \
         or add nodes"
    )]
    TooFewNodes {
        /// The topic.
        topic: String,
        /// Replicas wanted.
        wanted: u64,
        /// Nodes there are.
        nodes: u64,
    },
    /// Partitions are never taken away.
    #[error("topic {topic:?} has {present} partitions, and none is ever taken away; ask for more than {present}, not {wanted}")]
    FewerPartitions {
        /// The topic.
        topic: String,
        /// Partitions wanted.
        wanted: u64,
        /// Partitions there are.
        present: u64,
    },
    /// The state machine refused.
    #[error("{what}: {}", refusal_text(refusal))]
    Refused {
        /// The partition or topic it is about.
        what: String,
        /// Why.
        refusal: Refusal,
    },
    /// The records were trimmed.
    #[error("{what} starts at offset {start}; {wanted} was trimmed")]
    Trimmed {
        /// The partition.
        what: String,
        /// What was asked for.
        wanted: Offset,
        /// The first offset that can be read.
        start: Offset,
    },
    /// The offset is not committed.
    #[error("{what} ends at offset {tail}; {wanted} is not committed")]
    PastTail {
        /// The partition.
        what: String,
        /// What was asked for.
        wanted: Offset,
        /// The first absent offset.
        tail: Offset,
    },
    /// Nobody leads; nothing was handed over.
    #[error("{what} has no leader; {}", missing_text(missing))]
    NoLeader {
        /// The partition.
        what: String,
        /// Replicas' nodes that this node can't reach.
        missing: Vec<NodeId>,
    },
    /// Nobody leads, and nobody can: too many nodes can't be reached. Nothing was handed over.
    #[error("{what} has no leader: without {} there is no majority", nodes_text(missing))]
    NoQuorum {
        /// The partition.
        what: String,
        /// Replicas' nodes that this node can't reach.
        missing: Vec<NodeId>,
    },
    /// The command was handed over and its end is not known.
    #[error("{what}: the outcome is unknown ({reason}); it may have happened{}", also_missing_text(missing))]
    Unknown {
        /// The partition.
        what: String,
        /// What is known.
        reason: String,
        /// Replicas' nodes that this node can't reach.
        missing: Vec<NodeId>,
    },
    /// The driver refused or lost it.
    #[error("{what}: {source}")]
    Command {
        /// The partition.
        what: String,
        /// Why.
        source: CommandError,
    },
    /// Too much is under way.
    #[error("{0}; try again shortly")]
    Overloaded(String),
    /// Stored records are damaged or can't be read.
    #[error("{what}: {source}")]
    Storage {
        /// The partition.
        what: String,
        /// What is wrong.
        source: SegmentsError,
    },
    /// A file that must be there is not.
    #[error("{what}: the file that holds offset {offset} is gone from this node's disk")]
    Gone {
        /// The partition.
        what: String,
        /// The first offset that can't be read.
        offset: Offset,
    },
    /// A watcher is too far behind.
    #[error("changes after revision {wanted} are no longer kept (the oldest is {oldest}); watch again from 0")]
    Compacted {
        /// The revision asked for.
        wanted: u64,
        /// The oldest kept.
        oldest: u64,
    },
    /// The node is stopping.
    #[error("the node is shutting down; ask another")]
    ShuttingDown,
}

/// What the wire is told of an error.
struct Told {
    code: Code,
    reason: Reason,
    outcome: Outcome,
    wanted: u64,
    limit: u64,
}

impl ApiError {
    /// The status for this error, naming the leader if one is known.
    #[must_use]
    pub fn status(&self, leader: Option<wire::Leader>) -> Status {
        let told = self.told();
        let detail = self.detail(leader);
        let message = self.to_string();
        let any = wire::AnyDetail {
            type_url: "type.googleapis.com/balsa.v1.ErrorDetail".into(),
            value: detail.encode_to_vec().into(),
        };
        let status = wire::RpcStatus { code: told.code as i32, message: message.clone(), details: vec![any] };
        Status::with_details(told.code, message, status.encode_to_vec().into())
    }

    /// The same for one append of a stream.
    #[must_use]
    pub fn stream_failure(&self, leader: Option<wire::Leader>) -> wire::StreamFailure {
        wire::StreamFailure {
            code: self.told().code as i32,
            message: self.to_string(),
            detail: Some(self.detail(leader)),
        }
    }

    fn detail(&self, leader: Option<wire::Leader>) -> wire::ErrorDetail {
        let told = self.told();
        wire::ErrorDetail {
            outcome: told.outcome as i32,
            reason: told.reason as i32,
            leader,
            wanted: told.wanted,
            limit: told.limit,
        }
    }

    fn told(&self) -> Told {
        let did_not =
            |code, reason, wanted, limit| Told { code, reason, outcome: Outcome::DidNotHappen, wanted, limit };
        match self {
            ApiError::Invalid(_) => did_not(Code::InvalidArgument, Reason::InvalidArgument, 0, 0),
            ApiError::TooLarge { actual, limit, .. } | ApiError::RequestTooLarge { actual, limit } => {
                did_not(Code::InvalidArgument, Reason::TooLarge, *actual, *limit)
            }
            ApiError::Batch(error) => {
                let reason = if error.is_checksum() { Reason::BadChecksum } else { batch_reason(error) };
                did_not(Code::InvalidArgument, reason, 0, 0)
            }
            ApiError::UnknownTopic(_) => did_not(Code::NotFound, Reason::UnknownTopic, 0, 0),
            ApiError::UnknownPartition { partition, partitions, .. } => {
                did_not(Code::NotFound, Reason::UnknownPartition, u64::from(*partition), u64::from(*partitions))
            }
            ApiError::TopicExists(_) => did_not(Code::AlreadyExists, Reason::TopicExists, 0, 0),
            ApiError::TooFewNodes { wanted, nodes: limit, .. }
            | ApiError::FewerPartitions { wanted, present: limit, .. } => {
                did_not(Code::FailedPrecondition, Reason::InvalidArgument, *wanted, *limit)
            }
            ApiError::Refused { refusal, .. } => refusal_told(refusal),
            ApiError::Trimmed { wanted, start, .. } => {
                did_not(Code::OutOfRange, Reason::OffsetTrimmed, wanted.0, start.0)
            }
            ApiError::PastTail { wanted, tail, .. } => {
                did_not(Code::OutOfRange, Reason::OffsetPastTail, wanted.0, tail.0)
            }
            ApiError::NoLeader { .. } => did_not(Code::Unavailable, Reason::NoLeader, 0, 0),
            ApiError::NoQuorum { .. } => did_not(Code::Unavailable, Reason::NoQuorum, 0, 0),
            ApiError::Unknown { .. } => unknown(Reason::TimedOut),
            ApiError::Command { source, .. } => command_told(source),
            ApiError::Overloaded(_) => did_not(Code::ResourceExhausted, Reason::Overloaded, 0, 0),
            ApiError::Storage { .. } => did_not(Code::DataLoss, Reason::Corruption, 0, 0),
            ApiError::Gone { offset, .. } => did_not(Code::DataLoss, Reason::Corruption, offset.0, 0),
            ApiError::Compacted { wanted, oldest } => {
                did_not(Code::OutOfRange, Reason::RevisionCompacted, *wanted, *oldest)
            }
            ApiError::ShuttingDown => did_not(Code::Unavailable, Reason::ShuttingDown, 0, 0),
        }
    }
}

fn unknown(reason: Reason) -> Told {
    Told { code: Code::DeadlineExceeded, reason, outcome: Outcome::MayHaveHappened, wanted: 0, limit: 0 }
}

fn batch_reason(error: &BatchError) -> Reason {
    if error.is_size() {
        Reason::TooLarge
    } else {
        Reason::InvalidArgument
    }
}

fn command_told(error: &CommandError) -> Told {
    if error.may_have_happened() {
        return unknown(Reason::TimedOut);
    }
    let (code, reason) = match error {
        CommandError::NotHosted(_) => (Code::Unavailable, Reason::NoLeader),
        CommandError::DiskFull { .. } => (Code::ResourceExhausted, Reason::DiskFull),
        CommandError::JournalFull => (Code::ResourceExhausted, Reason::Overloaded),
        CommandError::ShuttingDown { .. } => (Code::Unavailable, Reason::ShuttingDown),
        CommandError::Propose(error) if error.is_overload() => (Code::ResourceExhausted, Reason::Overloaded),
        CommandError::Propose(_) => (Code::Unavailable, Reason::NoQuorum),
    };
    Told { code, reason, outcome: Outcome::DidNotHappen, wanted: 0, limit: 0 }
}

fn refusal_told(refusal: &Refusal) -> Told {
    let (code, reason, outcome, wanted, limit) = match *refusal {
        Refusal::Malformed => (Code::InvalidArgument, Reason::InvalidArgument, Outcome::DidNotHappen, 0, 0),
        Refusal::WrongExpectedOffset { expected, tail } => {
            (Code::FailedPrecondition, Reason::WrongExpectedOffset, Outcome::DidNotHappen, expected.0, tail.0)
        }
        Refusal::Fenced { token, highest } => {
            (Code::FailedPrecondition, Reason::Fenced, Outcome::DidNotHappen, token, highest)
        }
        Refusal::SessionUnknown { producer } => {
            (Code::FailedPrecondition, Reason::SessionUnknown, Outcome::MayHaveHappened, producer, 0)
        }
        Refusal::SessionEpochOld { epoch, current } => {
            (Code::FailedPrecondition, Reason::SessionEpochOld, Outcome::DidNotHappen, epoch, current)
        }
        Refusal::SequenceGap { sequence, expected } => {
            (Code::Aborted, Reason::SequenceGap, Outcome::DidNotHappen, sequence, expected)
        }
        Refusal::SequenceOld { sequence, oldest } => {
            (Code::FailedPrecondition, Reason::SequenceOld, Outcome::MayHaveHappened, sequence, oldest)
        }
        Refusal::RetryDiffers { sequence } => {
            // Its records are in the log, between other boundaries.
            (Code::FailedPrecondition, Reason::InvalidArgument, Outcome::MayHaveHappened, sequence, 0)
        }
        Refusal::LimitReached { which, limit } => {
            (Code::ResourceExhausted, Reason::LimitReached, Outcome::DidNotHappen, which, limit)
        }
        Refusal::Exists => (Code::AlreadyExists, Reason::TopicExists, Outcome::DidNotHappen, 0, 0),
        Refusal::NotFound => (Code::NotFound, Reason::UnknownTopic, Outcome::DidNotHappen, 0, 0),
        Refusal::Conflict { wanted, actual } => {
            (Code::FailedPrecondition, Reason::InvalidArgument, Outcome::DidNotHappen, wanted, actual)
        }
    };
    Told { code, reason, outcome, wanted, limit }
}

fn refusal_text(refusal: &Refusal) -> String {
    match *refusal {
        Refusal::Malformed => "the command is malformed".into(),
        Refusal::WrongExpectedOffset { expected, tail } => {
            format!("the append expected offset {expected}, the log ends at {tail}; nothing was appended")
        }
        Refusal::Fenced { token, highest } => {
            format!("token {token} is fenced off by {highest}; nothing was appended")
        }
        Refusal::SessionUnknown { producer } => {
            format!("producer session {producer} is not open (never opened, or expired); nothing is appended now, but an earlier attempt may have been: read back before sending again under a new session")
        }
        Refusal::SessionEpochOld { epoch, current } => {
            format!("the producer session was opened again under epoch {current}; epoch {epoch} appends no more")
        }
        Refusal::SequenceGap { sequence, expected } => {
            format!("sequence {sequence} came while {expected} is awaited; send what lies between first")
        }
        Refusal::SequenceOld { sequence, oldest } => {
            format!("sequence {sequence} is older than what the session remembers (from {oldest}); it may have been appended")
        }
        Refusal::RetryDiffers { sequence } => {
            format!(
                "the batch at sequence {sequence} was appended with other boundaries; a retry must send the same batch"
            )
        }
        Refusal::LimitReached { which, limit } => format!("the limit of {limit} {} is reached", bound_text(which)),
        Refusal::Exists => "it exists already".into(),
        Refusal::NotFound => "there is none of that name".into(),
        Refusal::Conflict { wanted, actual } => format!("{wanted} conflicts with the present {actual}"),
    }
}

/// What a bound of the state machines counts.
fn bound_text(which: u64) -> &'static str {
    use crate::{metadata, partition};
    if let Some(bound) = partition::Bound::from_code(which) {
        return match bound {
            partition::Bound::Sessions => "producer sessions in a partition",
            partition::Bound::Fences => "fences in a partition",
            partition::Bound::Offsets | partition::Bound::Producers => "appends to a partition",
        };
    }
    match metadata::Bound::from_code(which) {
        Some(metadata::Bound::Topics) => "topics",
        Some(metadata::Bound::Partitions) => "partitions in the cluster",
        Some(metadata::Bound::TopicPartitions) => "partitions in a topic",
        Some(metadata::Bound::Replicas) => "replicas of a partition",
        Some(metadata::Bound::Nodes) => "nodes",
        Some(metadata::Bound::BatchBytes) => "bytes in a batch",
        None => "of its kind",
    }
}

fn missing_text(missing: &[NodeId]) -> String {
    match missing {
        [] => "an election may be under way; try again shortly".into(),
        nodes => format!("{} can't be reached", nodes_text(nodes)),
    }
}

fn also_missing_text(missing: &[NodeId]) -> String {
    match missing {
        [] => String::new(),
        nodes => format!("; {} can't be reached", nodes_text(nodes)),
    }
}

/// "node 2", "nodes 2, 3".
fn nodes_text(nodes: &[NodeId]) -> String {
    let names: Vec<String> = nodes.iter().map(NodeId::to_string).collect();
    format!("node{} {}", if names.len() == 1 { "" } else { "s" }, names.join(", "))
}
