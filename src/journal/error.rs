//! What can go wrong with a journal, and what is known about it.

use crate::ids::GroupId;
use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;

/// A failed operation of the journal.
///
/// After a failed write or sync, what was being written *may have happened*: nobody may be told either way before the
/// next start has read what the disk really holds. Every error of an open journal but `Refused` is of that kind, and
/// every later call fails as `Stopped`.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The disk failed. Never retried.
    #[error("cannot {action} {path}")]
    Io {
        /// What was being done.
        action: &'static str,
        /// To which file or directory.
        path: PathBuf,
        /// What the disk said.
        source: io::Error,
    },
    /// Something that was synced is damaged or gone.
    #[error(transparent)]
    Corrupt(#[from] Corruption),
    /// There is no journal where one must be. That is damage too, never an empty journal.
    #[error("there is no journal in {dir}; a node that was founded must have one")]
    Missing {
        /// Where it was looked for.
        dir: PathBuf,
    },
    /// There is a journal already, or what is left of one.
    #[error("{dir} already holds a journal; it is not overwritten")]
    Exists {
        /// Where.
        dir: PathBuf,
    },
    /// A write breaks the contract: a bug of the caller. The journal stops, since part of the round may be in memory.
    #[error("group {group}: {reason}")]
    Refused {
        /// Whose write.
        group: GroupId,
        /// What is wrong with it.
        reason: String,
    },
    /// An earlier write or sync failed, or was abandoned; nothing is written since.
    #[error("the journal has stopped: {reason}")]
    Stopped {
        /// The failure, in words.
        reason: String,
    },
}

impl JournalError {
    /// Whether stored data is damaged or gone.
    #[must_use]
    pub fn is_corruption(&self) -> bool {
        matches!(self, JournalError::Corrupt(_) | JournalError::Missing { .. })
    }

    pub(super) fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> JournalError {
        let path = path.into();
        move |source| JournalError::Io { action, path, source }
    }
}

/// Damage at or below the recorded boundary: what was promised as durable can't be read back.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{} is damaged at position {position}: {reason}{}", file.display(), GroupList(groups))]
pub struct Corruption {
    /// The damaged file.
    pub file: PathBuf,
    /// Where the damage was noticed.
    pub position: u64,
    /// What is wrong there.
    pub reason: String,
    /// The groups it concerns, as far as known; empty if any of them may be.
    pub groups: BTreeSet<GroupId>,
}

struct GroupList<'a>(&'a BTreeSet<GroupId>);

impl std::fmt::Display for GroupList<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.0.is_empty() {
            return Ok(());
        }
        write!(f, "; groups concerned:")?;
        self.0.iter().try_for_each(|group| write!(f, " {group}"))
    }
}
