//! What a group asks of its state machine, and the frame of commands inside a Raft entry.
//!
//! A state machine is pure: its next state follows from its present one, the command, and where in the log the command
//! lies. It sees no clock, no randomness and no hash map order, so that all replicas stay identical.

use crate::ids::{Digest, LogIndex, Offset, Term, TimestampMs};
use crate::segments::verdict::Verdict;
use bytes::Bytes;

/// Where in the log a command lies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Place {
    /// Index of the entry that holds the command.
    pub index: LogIndex,
    /// The entry's term.
    pub term: Term,
    /// The log's time at the entry: stamped by the leader, never smaller than at any entry before.
    pub timestamp: TimestampMs,
}

/// What became of one command.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Applied {
    /// The decision, kept in the segment and sent to whoever waits.
    pub verdict: Verdict,
    /// Where in the command a record batch starts, if it holds one. The segment stamps it there when the verdict is
    /// `Appended`.
    pub batch_at: Option<u32>,
}

/// A deterministic state machine, replicated by a group.
pub trait StateMachine: Sized + Send + 'static {
    /// What others on this node may see of the state; published after each turn in which something was applied. Cheap to
    /// clone.
    type View: Clone + Send + Sync + 'static;

    /// Applies one command. Never panics, whatever the bytes: what can't be decoded is refused as `Malformed`.
    fn apply(&mut self, place: Place, command: &Bytes) -> Applied;

    /// Whether the command adds data, and so is refused while the disks are full; what deletes or trims goes on.
    fn adds_data(command: &Bytes) -> bool;

    /// The first absent offset (a partition), or the revision (the catalog).
    fn tail(&self) -> Offset;

    /// The first offset that must be kept, as agreed through the log. Never goes back.
    fn log_start(&self) -> Offset;

    /// The whole state in bytes; equal states give equal bytes. At most `SNAPSHOT_BYTES_MAX`.
    fn snapshot(&self) -> Bytes;

    /// The state that `snapshot` had.
    ///
    /// # Errors
    /// If the bytes are not a snapshot of a version this code knows; the text says what is wrong with them.
    fn restore(snapshot: &Bytes) -> Result<Self, String>;

    /// A digest of the state; equal on all replicas at equal index.
    fn digest(&self) -> Digest {
        Digest(*blake3::hash(&self.snapshot()).as_bytes())
    }

    /// What others may see now.
    fn view(&self) -> Self::View;
}
