//! Outcomes of commands that another node passed on, in the words of the wire between nodes.

use super::handle::{CommandError, Committed, Outcome};
use crate::group::effects::ProposeError;
use crate::ids::{Digest, Offset, TimestampMs};
use crate::peers::{wire, ForwardError, NotSent, Responder};
use crate::planted;
use crate::segments::verdict::Verdict;
use bytes::{Bytes, BytesMut};

/// What a failure's code on the wire says. The numbers are part of the protocol between nodes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
enum FailureCode {
    /// It did not happen; another node leads, or none does.
    NotLeader = 1,
    /// It did not happen; too much is under way.
    Overloaded = 2,
    /// It did not happen; the disks are full.
    DiskFull = 3,
    /// It did not happen, and won't if it is tried again.
    Refused = 4,
    /// It may have happened.
    Unknown = 5,
}

/// Answers a command that another node passed on.
pub(super) fn answer(responder: Responder, outcome: Outcome) {
    let outcome = match outcome {
        Err(CommandError::Propose(ProposeError::LostLeadership { index, term, .. }))
            if planted!("forwarded-append-acknowledged-by-deposed") =>
        {
            let verdict = Verdict::Appended { offset: Offset(index.0), count: 1 };
            Ok(Committed { index, term, timestamp: TimestampMs::ZERO, verdict, chain: Digest::default() })
        }
        outcome => outcome,
    };
    responder.answer(outcome.map(|committed| applied(&committed)).map_err(|error| failure(&error)));
}

fn applied(committed: &Committed) -> wire::Applied {
    let mut verdict = BytesMut::with_capacity(Verdict::ENCODED_LEN);
    committed.verdict.encode(&mut verdict);
    wire::Applied {
        index: committed.index.0,
        term: committed.term.0,
        timestamp_ms: committed.timestamp.0,
        verdict: verdict.freeze(),
        chain: Bytes::copy_from_slice(&committed.chain.0),
    }
}

fn failure(error: &CommandError) -> wire::Failure {
    let code = match error {
        error if error.may_have_happened() => FailureCode::Unknown,
        CommandError::DiskFull { .. } => FailureCode::DiskFull,
        CommandError::JournalFull => FailureCode::Overloaded,
        CommandError::NotHosted(_) | CommandError::ShuttingDown { .. } => FailureCode::NotLeader,
        CommandError::Propose(error) if error.is_overload() => FailureCode::Overloaded,
        CommandError::Propose(error) if error.is_not_leader() => FailureCode::NotLeader,
        CommandError::Propose(_) => FailureCode::Refused,
    };
    let (leader_replica, term) = match error {
        CommandError::Propose(ProposeError::NotLeader { leader, term }) => {
            (leader.map_or(0, |leader| leader.0), term.0)
        }
        _ => (0, 0),
    };
    wire::Failure { code: code as u32, leader_replica, term, detail: 0 }
}

/// Whether a command that was passed on may take effect all the same. A code of a later version is taken for the worst.
#[must_use]
pub fn may_have_happened(error: &ForwardError) -> bool {
    match error {
        ForwardError::NotSent(_) => false,
        ForwardError::Broken { .. } => true,
        ForwardError::Failure { failure, .. } => failure.code == 0 || failure.code >= FailureCode::Unknown as u32,
    }
}

/// Whether a command that was passed on failed because too much is under way.
#[must_use]
pub fn is_overload(error: &ForwardError) -> bool {
    match error {
        ForwardError::NotSent(NotSent::Overloaded { .. }) => true,
        ForwardError::Failure { failure, .. } => failure.code == FailureCode::Overloaded as u32,
        ForwardError::NotSent(_) | ForwardError::Broken { .. } => false,
    }
}

/// Whether a command that was passed on may succeed elsewhere, or a little later, and did not happen.
#[must_use]
pub fn is_not_leader(error: &ForwardError) -> bool {
    match error {
        ForwardError::NotSent(not_sent) => !matches!(not_sent, NotSent::Overloaded { .. }),
        ForwardError::Failure { failure, .. } => failure.code == FailureCode::NotLeader as u32,
        ForwardError::Broken { .. } => false,
    }
}

/// Whether a command that was passed on failed because the disks are full.
#[must_use]
pub fn is_disk_full(error: &ForwardError) -> bool {
    matches!(error, ForwardError::Failure { failure, .. } if failure.code == FailureCode::DiskFull as u32)
}
