//! What can go wrong for a client, and what each failure says about the thing that was asked for.
//!
//! Invariant: [`ClientError::outcome`] never says *did not happen* of something that may have happened. Where a connection
//! broke with a request on it, the answer is *may have happened*; where it could not be made at all, *did not happen*.

use super::types::Leader;
use super::wire;
use crate::batch::BatchError;
use crate::limits::ADDRESS_BYTES_MAX;
use prost::Message;
use std::time::Duration;
use tonic::{Code, Status};

/// What a failure says about the thing that was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was not done and never will be by this request; asking again is safe.
    DidNotHappen,
    /// It was done or not; only a producer's session makes asking again safe.
    MayHaveHappened,
}

/// Why a server refused, as its answer's details say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// The answer does not say.
    Unspecified,
    /// Something in the request is malformed.
    InvalidArgument,
    /// A record, batch, key or request is over its limit.
    TooLarge,
    /// A batch's bytes do not match its checksum.
    BadChecksum,
    /// There is no such topic.
    UnknownTopic,
    /// The topic has no such partition.
    UnknownPartition,
    /// There is a topic of that name.
    TopicExists,
    /// The offset lies below the partition's start.
    OffsetTrimmed,
    /// The offset lies past the partition's tail.
    OffsetPastTail,
    /// The log does not end at the offset that was expected.
    WrongExpectedOffset,
    /// A higher token of the fence was seen.
    Fenced,
    /// The session was never opened in this partition, or has expired.
    SessionUnknown,
    /// The session was opened again by somebody else.
    SessionEpochOld,
    /// A batch before this one is missing.
    SequenceGap,
    /// The batch is older than the session's window remembers.
    SequenceOld,
    /// The partition has no leader at the moment.
    NoLeader,
    /// Too few of the partition's replicas can be reached.
    NoQuorum,
    /// Too much is waiting already.
    Overloaded,
    /// The disks' reserve is reached.
    DiskFull,
    /// The server gave up waiting.
    TimedOut,
    /// The server is stopping.
    ShuttingDown,
    /// The revision lies too far back to resume from.
    RevisionCompacted,
    /// A bound on the number of things is reached.
    LimitReached,
    /// Data on disk is damaged.
    Corruption,
}

/// Why an operation of the client failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ClientError {
    /// A server answered, and the answer is no.
    #[error("{message}")]
    Refused {
        /// Why, for programs.
        reason: Reason,
        /// What it says about the request.
        outcome: Outcome,
        /// Why, in the server's words.
        message: String,
        /// Who leads the partition, if the server knows.
        leader: Option<Leader>,
        /// The offending number, where there is one.
        wanted: u64,
        /// The bound or actual number it was held against.
        limit: u64,
    },
    /// No connection could be made, so nothing was sent.
    #[error("cannot reach {}", list(tried))]
    Unreachable {
        /// Addresses and what happened there.
        tried: Vec<(String, String)>,
    },
    /// The connection broke with the request on it.
    #[error("connection to {address} broke before its answer: {cause}")]
    Broken {
        /// The server's address.
        address: String,
        /// What the transport said.
        cause: String,
        /// What it says about the request: harmless for reads.
        outcome: Outcome,
    },
    /// The deadline passed.
    #[error("no answer within {after_ms} ms{}", because(last))]
    TimedOut {
        /// The time given, in milliseconds.
        after_ms: u64,
        /// What it says about the request.
        outcome: Outcome,
        /// The last failure before it, if any.
        last: String,
    },
    /// A server's address cannot be used.
    #[error("{address:?} is no server address: {cause}; give host:port, as in 127.0.0.1:7400")]
    BadAddress {
        /// As given.
        address: String,
        /// What is wrong with it.
        cause: String,
    },
    /// A record cannot be put into a batch.
    #[error("{0}")]
    Record(BatchError),
    /// A record alone is larger than a batch of its topic may be.
    #[error("record makes a batch of {bytes} bytes; topic {topic} allows {max}")]
    RecordTooLarge {
        /// The topic.
        topic: String,
        /// Bytes of a batch that holds only this record.
        bytes: usize,
        /// The topic's bound in bytes.
        max: usize,
    },
    /// The topic has no such partition, as the client knows it.
    #[error("topic {topic} has no partition {partition}; it has {count}, from 0")]
    NoSuchPartition {
        /// The topic.
        topic: String,
        /// The partition asked for.
        partition: u32,
        /// How many there are.
        count: u32,
    },
    /// A server's answer contradicts the protocol.
    #[error("bad answer from {address}: {what}")]
    BadAnswer {
        /// The server's address.
        address: String,
        /// What is wrong with it.
        what: String,
        /// What it says about the request.
        outcome: Outcome,
    },
    /// An earlier record of the same producer failed, so this one was not sent, or could not be admitted past the gap.
    #[error("not appended, because an earlier record of its partition failed: {first}")]
    AfterFailure {
        /// The earlier failure.
        first: String,
        /// What it says about this record.
        outcome: Outcome,
    },
    /// The producer or subscription has ended.
    #[error("it is closed")]
    Closed,
}

impl ClientError {
    /// A server that was asked did not answer.
    pub(super) fn silent(address: &str, after: Duration) -> ClientError {
        let last = format!("{address} was silent");
        ClientError::TimedOut { after_ms: after.as_millis() as u64, outcome: Outcome::MayHaveHappened, last }
    }

    /// Whether the thing asked for did not happen, or may have.
    #[must_use]
    pub fn outcome(&self) -> Outcome {
        match self {
            ClientError::Refused { outcome, .. }
            | ClientError::Broken { outcome, .. }
            | ClientError::TimedOut { outcome, .. }
            | ClientError::BadAnswer { outcome, .. }
            | ClientError::AfterFailure { outcome, .. } => *outcome,
            ClientError::Unreachable { .. }
            | ClientError::BadAddress { .. }
            | ClientError::Record(_)
            | ClientError::RecordTooLarge { .. }
            | ClientError::NoSuchPartition { .. }
            | ClientError::Closed => Outcome::DidNotHappen,
        }
    }

    /// Why a server refused, if one did.
    #[must_use]
    pub fn reason(&self) -> Option<Reason> {
        match self {
            ClientError::Refused { reason, .. } => Some(*reason),
            _ => None,
        }
    }

    /// Whether another try, here or elsewhere, could go better. Says nothing about whether one is safe.
    #[must_use]
    pub fn is_passing(&self) -> bool {
        match self {
            ClientError::Refused { reason, .. } => matches!(
                reason,
                Reason::NoLeader
                    | Reason::NoQuorum
                    | Reason::Overloaded
                    | Reason::DiskFull
                    | Reason::TimedOut
                    | Reason::ShuttingDown
            ),
            ClientError::Unreachable { .. } | ClientError::Broken { .. } | ClientError::TimedOut { .. } => true,
            _ => false,
        }
    }

    /// Who leads the partition, if the refusal says.
    #[must_use]
    pub fn leader(&self) -> Option<&Leader> {
        match self {
            ClientError::Refused { leader, .. } => leader.as_ref(),
            _ => None,
        }
    }

    /// The same failure of something that left nothing behind, such as a read, or a session that nothing was sent in: whatever
    /// was meant to follow did not happen.
    #[must_use]
    pub fn of_nothing_sent(mut self) -> ClientError {
        match &mut self {
            ClientError::Refused { outcome, .. }
            | ClientError::Broken { outcome, .. }
            | ClientError::TimedOut { outcome, .. }
            | ClientError::BadAnswer { outcome, .. } => *outcome = Outcome::DidNotHappen,
            _ => {}
        }
        self
    }

    /// Reads a status that came from `address`.
    pub(super) fn from_status(address: &str, status: &Status) -> ClientError {
        if never_connected(status) {
            return ClientError::Unreachable { tried: vec![(address.to_string(), innermost(status))] };
        }
        if let Some(detail) = detail_of(status) {
            return ClientError::refused(status.message(), &detail);
        }
        // Without a detail it did not come from a Balsa door: the transport or something in between made it up.
        let refused_with = match status.code() {
            // Only an answer's own status carries these: tonic makes no broken or damaged connection into one of them.
            Code::InvalidArgument | Code::NotFound | Code::AlreadyExists | Code::FailedPrecondition => {
                Some(Outcome::DidNotHappen)
            }
            // An answer that is too large or packed in a way we can't undo ends as OutOfRange or Unimplemented after the request was
            // served, and HTTP's 401 and 404 are taken for answers, too. Another try would fare no better.
            Code::OutOfRange | Code::Unimplemented | Code::Unauthenticated => Some(Outcome::MayHaveHappened),
            // All else is how a connection breaks, among it ResourceExhausted (a GOAWAY with ENHANCE_YOUR_CALM) and
            // PermissionDenied (one with INADEQUATE_SECURITY).
            _ => None,
        };
        if let Some(outcome) = refused_with {
            let message = format!("{address} refused: {}", status.message());
            let reason = Reason::Unspecified;
            return ClientError::Refused { reason, outcome, message, leader: None, wanted: 0, limit: 0 };
        }
        let (cause, outcome) = (innermost(status), Outcome::MayHaveHappened);
        ClientError::Broken { address: address.to_string(), cause, outcome }
    }

    /// A refusal as the server's detail describes it.
    pub(super) fn refused(message: &str, detail: &wire::ErrorDetail) -> ClientError {
        ClientError::Refused {
            reason: reason_of(detail.reason()),
            outcome: match detail.outcome() {
                wire::Outcome::DidNotHappen => Outcome::DidNotHappen,
                // A server that does not say leaves it open.
                wire::Outcome::MayHaveHappened | wire::Outcome::Unspecified => Outcome::MayHaveHappened,
            },
            message: message.to_string(),
            leader: detail.leader.as_ref().and_then(Leader::from_wire),
            wanted: detail.wanted,
            limit: detail.limit,
        }
    }
}

/// Checks what a user gave as a server's address, before any connection is tried.
pub(super) fn check_address(address: &str) -> Result<(), ClientError> {
    let bad = |cause: &str| Err(ClientError::BadAddress { address: address.to_string(), cause: cause.to_string() });
    if address.len() > ADDRESS_BYTES_MAX {
        return bad(&format!("it is {} bytes long; {ADDRESS_BYTES_MAX} are allowed", address.len()));
    }
    let Some((host, port)) = address.rsplit_once(':') else { return bad("it has no port") };
    if host.is_empty() {
        return bad("it has no host");
    }
    match port.parse::<u16>() {
        Ok(0) | Err(_) => bad(&format!("{port:?} is no port from 1 to 65535")),
        Ok(_) => Ok(()),
    }
}

fn list(tried: &[(String, String)]) -> String {
    if tried.is_empty() {
        return "any server: none is known".to_string();
    }
    let each: Vec<String> = tried.iter().map(|(address, cause)| format!("{address} ({cause})")).collect();
    each.join(", ")
}

fn because(last: &str) -> String {
    if last.is_empty() {
        String::new()
    } else {
        format!("; the last failure was: {last}")
    }
}

/// The detail that Balsa's servers attach to every refusal.
fn detail_of(status: &Status) -> Option<wire::ErrorDetail> {
    if status.details().is_empty() {
        return None;
    }
    let rpc_status = wire::RpcStatus::decode(status.details()).ok()?;
    let detail = rpc_status.details.iter().find(|detail| detail.type_url.ends_with("ErrorDetail"))?;
    wire::ErrorDetail::decode(detail.value.clone()).ok()
}

/// Whether the failure came before the connection stood. A channel reconnects by itself, so a request can meet this too.
#[cfg(not(madsim))]
fn never_connected(status: &Status) -> bool {
    chain(status).any(|error| error.downcast_ref::<tonic::ConnectError>().is_some())
}

/// In the simulation a refused connection and a lost first packet look alike, so neither proves anything.
#[cfg(madsim)]
fn never_connected(_status: &Status) -> bool {
    false
}

fn chain(status: &Status) -> impl Iterator<Item = &(dyn std::error::Error + 'static)> {
    std::iter::successors(std::error::Error::source(status), |error| error.source())
}

/// The innermost cause: the outer ones only repeat "transport error".
fn innermost(status: &Status) -> String {
    match chain(status).last() {
        Some(error) => error.to_string(),
        None if status.message().is_empty() => status.code().description().to_string(),
        None => status.message().to_string(),
    }
}

/// The cause that says most about a connection that could not be made.
pub(super) fn innermost_of(error: &dyn std::error::Error) -> String {
    let mut last = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        last = error.to_string();
        source = error.source();
    }
    last
}

fn reason_of(reason: wire::Reason) -> Reason {
    match reason {
        wire::Reason::Unspecified => Reason::Unspecified,
        wire::Reason::InvalidArgument => Reason::InvalidArgument,
        wire::Reason::TooLarge => Reason::TooLarge,
        wire::Reason::BadChecksum => Reason::BadChecksum,
        wire::Reason::UnknownTopic => Reason::UnknownTopic,
        wire::Reason::UnknownPartition => Reason::UnknownPartition,
        wire::Reason::TopicExists => Reason::TopicExists,
        wire::Reason::OffsetTrimmed => Reason::OffsetTrimmed,
        wire::Reason::OffsetPastTail => Reason::OffsetPastTail,
        wire::Reason::WrongExpectedOffset => Reason::WrongExpectedOffset,
        wire::Reason::Fenced => Reason::Fenced,
        wire::Reason::SessionUnknown => Reason::SessionUnknown,
        wire::Reason::SessionEpochOld => Reason::SessionEpochOld,
        wire::Reason::SequenceGap => Reason::SequenceGap,
        wire::Reason::SequenceOld => Reason::SequenceOld,
        wire::Reason::NoLeader => Reason::NoLeader,
        wire::Reason::NoQuorum => Reason::NoQuorum,
        wire::Reason::Overloaded => Reason::Overloaded,
        wire::Reason::DiskFull => Reason::DiskFull,
        wire::Reason::TimedOut => Reason::TimedOut,
        wire::Reason::ShuttingDown => Reason::ShuttingDown,
        wire::Reason::RevisionCompacted => Reason::RevisionCompacted,
        wire::Reason::LimitReached => Reason::LimitReached,
        wire::Reason::Corruption => Reason::Corruption,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_detail_no_code_that_a_broken_connection_can_give_is_definite() {
        let definite = [Code::InvalidArgument, Code::NotFound, Code::AlreadyExists, Code::FailedPrecondition];
        for code in (1..=16).map(Code::from_i32) {
            let error = ClientError::from_status("here:1", &Status::new(code, "no"));
            let expected = if definite.contains(&code) { Outcome::DidNotHappen } else { Outcome::MayHaveHappened };
            assert_eq!(error.outcome(), expected, "{code:?}");
        }
    }

    #[test]
    fn a_connection_that_was_told_to_go_away_is_broken_and_worth_another_try() {
        for code in [Code::ResourceExhausted, Code::PermissionDenied, Code::Unavailable] {
            let error = ClientError::from_status("here:1", &Status::new(code, "h2 protocol error: go away"));
            assert!(matches!(error, ClientError::Broken { .. }) && error.is_passing(), "{code:?}: {error}");
        }
    }

    #[test]
    fn a_detail_decides_whatever_the_code() {
        let detail = wire::ErrorDetail {
            outcome: wire::Outcome::DidNotHappen as i32,
            reason: wire::Reason::Overloaded as i32,
            ..Default::default()
        };
        let any = wire::AnyDetail { type_url: "balsa.v1.ErrorDetail".into(), value: detail.encode_to_vec().into() };
        let rpc = wire::RpcStatus { code: 8, message: "full".into(), details: vec![any] };
        let status = Status::with_details(Code::ResourceExhausted, "full", rpc.encode_to_vec().into());
        let error = ClientError::from_status("here:1", &status);
        assert_eq!((error.reason(), error.outcome()), (Some(Reason::Overloaded), Outcome::DidNotHappen));
    }
}
