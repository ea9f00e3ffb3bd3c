//! Exit codes, and the one place where failures become one of them. The table in [`HELP`] is the documented contract.

use crate::client::{ClientError, Outcome, Reason};
use std::io;
use std::process::ExitCode;

/// Everything asked for was done.
pub(super) const DONE: u8 = 0;
/// It failed, for a reason without a code of its own.
pub(super) const FAILED: u8 = 1;
/// The command line or an argument is wrong.
pub(super) const USAGE: u8 = 2;
/// The topic, partition or offset is not there.
pub(super) const NOT_FOUND: u8 = 3;
/// Something that had to hold did not.
pub(super) const PRECONDITION: u8 = 4;
/// Nobody could do it, and nothing was done.
pub(super) const UNAVAILABLE: u8 = 5;
/// It was done or not; nobody can say.
pub(super) const UNKNOWN: u8 = 6;
/// Damaged data was found.
pub(super) const CORRUPTION: u8 = 7;

/// Shown below the help of `balsa`.
pub(super) const HELP: &str = "\
Try it:
  balsa up                                    three nodes on this machine, in the foreground
  balsa topic create access --partitions 4    then, in another terminal
  balsa append access < access.log            one record per line
  balsa read access --follow
  balsa status --watch

Exit codes:
  0  done
  1  failed
  2  wrong usage, or an argument that is not allowed
  3  not found: topic, partition or offset
  4  precondition failed: it exists already, the log does not end at the expected offset, ...
  5  unavailable, and nothing was done: safe to run again
  6  outcome unknown: it may have been done
  7  corruption found";

/// Why a command ends without having done everything.
#[derive(Debug)]
pub(super) struct Failure {
    code: u8,
    message: String,
}

impl Failure {
    fn new(code: u8, message: impl Into<String>) -> Failure {
        Failure { code, message: message.into() }
    }

    pub(super) fn failed(message: impl Into<String>) -> Failure {
        Failure::new(FAILED, message)
    }

    pub(super) fn usage(message: impl Into<String>) -> Failure {
        Failure::new(USAGE, message)
    }

    pub(super) fn not_found(message: impl Into<String>) -> Failure {
        Failure::new(NOT_FOUND, message)
    }

    pub(super) fn precondition(message: impl Into<String>) -> Failure {
        Failure::new(PRECONDITION, message)
    }

    pub(super) fn unknown(message: impl Into<String>) -> Failure {
        Failure::new(UNKNOWN, message)
    }

    pub(super) fn corruption(message: impl Into<String>) -> Failure {
        Failure::new(CORRUPTION, message)
    }

    /// The reader of our output went away: done, as far as it cares.
    fn pipe() -> Failure {
        Failure::new(DONE, "")
    }

    pub(super) fn is_pipe(&self) -> bool {
        self.code == DONE
    }

    /// The same with where it happened before it, and what to do behind it.
    pub(super) fn context(self, before: &str, advice: &str) -> Failure {
        Failure { code: self.code, message: format!("{before}: {}\n  {advice}", self.message) }
    }

    /// The same, as something that may have been done all the same.
    pub(super) fn turned_unknown(self) -> Failure {
        Failure { code: UNKNOWN, ..self }
    }

    /// What the user is told.
    pub(super) fn message(&self) -> &str {
        &self.message
    }

    /// Tells the user, and gives the code.
    pub(super) fn report(&self) -> ExitCode {
        if !self.is_pipe() {
            eprintln!("balsa: {}", self.message);
        }
        ExitCode::from(self.code)
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Failure {
        let code = code_of(&error);
        match advice(&error) {
            Some(advice) => Failure::new(code, format!("{error}\n  {advice}")),
            None => Failure::new(code, error.to_string()),
        }
    }
}

/// Failures to write to standard output.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        if error.kind() == io::ErrorKind::BrokenPipe {
            return Failure::pipe();
        }
        Failure::failed(format!("cannot write to standard output: {error}"))
    }
}

fn code_of(error: &ClientError) -> u8 {
    let reason = error.reason();
    if reason == Some(Reason::Corruption) {
        return CORRUPTION;
    }
    if error.outcome() == Outcome::MayHaveHappened {
        return UNKNOWN;
    }
    match error {
        ClientError::Refused { reason, .. } => code_of_reason(*reason),
        ClientError::Unreachable { .. } | ClientError::Broken { .. } | ClientError::TimedOut { .. } => UNAVAILABLE,
        ClientError::BadAddress { .. } => USAGE,
        ClientError::NoSuchPartition { .. } => NOT_FOUND,
        // An argument over its limit; a line of the input over it is reported as a failure of its own.
        ClientError::Record(_) | ClientError::RecordTooLarge { .. } => USAGE,
        ClientError::BadAnswer { .. } | ClientError::AfterFailure { .. } | ClientError::Closed => FAILED,
    }
}

fn code_of_reason(reason: Reason) -> u8 {
    match reason {
        Reason::InvalidArgument | Reason::TooLarge => USAGE,
        Reason::UnknownTopic | Reason::UnknownPartition | Reason::OffsetTrimmed | Reason::OffsetPastTail => NOT_FOUND,
        Reason::TopicExists
        | Reason::WrongExpectedOffset
        | Reason::Fenced
        | Reason::SessionUnknown
        | Reason::SessionEpochOld
        | Reason::SequenceGap
        | Reason::SequenceOld => PRECONDITION,
        Reason::NoLeader
        | Reason::NoQuorum
        | Reason::Overloaded
        | Reason::DiskFull
        | Reason::TimedOut
        | Reason::ShuttingDown => UNAVAILABLE,
        Reason::Corruption => CORRUPTION,
        Reason::Unspecified | Reason::BadChecksum | Reason::RevisionCompacted | Reason::LimitReached => FAILED,
    }
}

/// What to do next, where we know better than the message.
fn advice(error: &ClientError) -> Option<&'static str> {
    match error {
        ClientError::Unreachable { .. } => {
            Some("start a cluster with `balsa up`, or name its servers with --servers or BALSA_SERVERS")
        }
        ClientError::Refused { reason: Reason::UnknownTopic, .. } => Some("`balsa topic list` shows those there are"),
        ClientError::Refused { reason: Reason::UnknownPartition, .. } | ClientError::NoSuchPartition { .. } => {
            Some("`balsa topic describe NAME` shows those there are")
        }
        ClientError::Refused { reason: Reason::NoLeader | Reason::NoQuorum, .. } => {
            Some("`balsa status` shows which nodes are missing")
        }
        ClientError::Refused { reason: Reason::OffsetTrimmed | Reason::OffsetPastTail, .. } => {
            Some("`balsa topic describe NAME` shows where its partitions start and end")
        }
        ClientError::Refused { reason: Reason::SessionUnknown, .. } => {
            Some("compare what the log holds with what you sent before you send it again")
        }
        ClientError::Refused { reason: Reason::SessionEpochOld, .. } => {
            Some("somebody else opened the session since; only the latest holder appends")
        }
        ClientError::Refused { reason: Reason::Corruption, .. } => Some(
            "other nodes hold the same records: name one of them with --servers, or read behind the damage with --from",
        ),
        ClientError::RecordTooLarge { .. } => {
            Some("`balsa topic alter NAME --batch-bytes-max N` raises a topic's own bound")
        }
        _ if error.outcome() == Outcome::MayHaveHappened => {
            Some("it may have been done; `--session NAME` makes an append safe to run again")
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(reason: Reason, outcome: Outcome) -> ClientError {
        ClientError::Refused { reason, outcome, message: "no".to_string(), leader: None, wanted: 0, limit: 0 }
    }

    #[test]
    fn what_may_have_happened_exits_turned_unknown_whatever_the_reason() {
        for reason in [Reason::NoLeader, Reason::SessionUnknown, Reason::TimedOut, Reason::Unspecified] {
            assert_eq!(code_of(&refused(reason, Outcome::MayHaveHappened)), UNKNOWN);
        }
    }

    #[test]
    fn each_documented_code_is_reached() {
        let definite = |reason| code_of(&refused(reason, Outcome::DidNotHappen));
        assert_eq!(definite(Reason::LimitReached), FAILED);
        assert_eq!(definite(Reason::InvalidArgument), USAGE);
        assert_eq!(definite(Reason::UnknownTopic), NOT_FOUND);
        assert_eq!(definite(Reason::WrongExpectedOffset), PRECONDITION);
        assert_eq!(definite(Reason::NoQuorum), UNAVAILABLE);
        assert_eq!(definite(Reason::Corruption), CORRUPTION);
        assert_eq!(code_of(&ClientError::Unreachable { tried: vec![] }), UNAVAILABLE);
    }

    #[test]
    fn a_broken_pipe_is_no_error() {
        assert!(Failure::from(io::Error::from(io::ErrorKind::BrokenPipe)).is_pipe());
        assert!(!Failure::from(io::Error::from(io::ErrorKind::StorageFull)).is_pipe());
    }
}
