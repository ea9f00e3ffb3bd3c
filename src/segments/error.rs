//! What can go wrong with segments, told apart by what the caller must do about it.

use crate::ids::LogIndex;
use std::io;
use std::path::{Path, PathBuf};

/// Why segments could not be opened, written or read.
#[derive(Debug, thiserror::Error)]
pub enum SegmentsError {
    /// There is no room. Nothing was lost: what was to be written stays in memory and goes out with a later flush. The
    /// caller refuses appends meanwhile.
    #[error("no room to write {}", file.display())]
    NoSpace {
        /// What was being written.
        file: PathBuf,
        /// The disk's word.
        source: io::Error,
    },
    /// A sync failed: what the disk holds is unknown from here on. Never retried, the node stops.
    #[error("sync of {} failed; the node must stop", file.display())]
    SyncFailed {
        /// What was being synced.
        file: PathBuf,
        /// The disk's word.
        source: io::Error,
    },
    /// A write, creation or removal failed for another reason than a full disk. The node stops.
    #[error("write of {} failed; the node must stop", file.display())]
    WriteFailed {
        /// What was being written.
        file: PathBuf,
        /// The disk's word.
        source: io::Error,
    },
    /// A read failed. Nothing changed.
    #[error("read of {} failed", file.display())]
    ReadFailed {
        /// What was being read.
        file: PathBuf,
        /// The disk's word.
        source: io::Error,
    },
    /// The file was removed (trimmed, or replaced by a snapshot) after the read was located. Locate again.
    #[error("{} was removed before it could be read", file.display())]
    Removed {
        /// What was to be read.
        file: PathBuf,
    },
    /// Bytes that were synced are not what was written. Nothing of them was served or dropped.
    #[error("{} is damaged at position {position}: {what}", file.display())]
    Corrupt {
        /// The damaged file.
        file: PathBuf,
        /// Where in it the damage was met.
        position: u64,
        /// What does not fit.
        what: &'static str,
    },
    /// Files that must exist are gone, or end too early between two frames, which looks the same.
    #[error("{} lacks the log from index {from} on; it was synced there through {base}", dir.display())]
    Missing {
        /// The group's directory.
        dir: PathBuf,
        /// First index that is not there.
        from: LogIndex,
        /// Through which index the log must be there at least.
        base: LogIndex,
    },
    /// A file of another group lies in the directory.
    #[error("{} belongs to group {found}, not to group {wanted}", file.display())]
    OtherGroup {
        /// The file.
        file: PathBuf,
        /// The group it names.
        found: crate::ids::GroupId,
        /// The group that was opened.
        wanted: crate::ids::GroupId,
    },
}

impl SegmentsError {
    /// Whether the node must stop: what lies on the disk is unknown.
    #[must_use]
    pub fn must_stop(&self) -> bool {
        matches!(self, SegmentsError::SyncFailed { .. } | SegmentsError::WriteFailed { .. })
    }

    /// Whether stored data is damaged or gone.
    #[must_use]
    pub fn is_corruption(&self) -> bool {
        matches!(self, SegmentsError::Corrupt { .. } | SegmentsError::Missing { .. } | SegmentsError::OtherGroup { .. })
    }

    /// Whether there is just no room, which passes.
    #[must_use]
    pub fn is_no_space(&self) -> bool {
        matches!(self, SegmentsError::NoSpace { .. })
    }

    pub(super) fn write(file: &Path, source: io::Error) -> SegmentsError {
        let file = file.to_path_buf();
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => SegmentsError::NoSpace { file, source },
            _ => SegmentsError::WriteFailed { file, source },
        }
    }

    pub(super) fn sync(file: &Path, source: io::Error) -> SegmentsError {
        SegmentsError::SyncFailed { file: file.to_path_buf(), source }
    }

    pub(super) fn read(file: &Path, source: io::Error) -> SegmentsError {
        let file = file.to_path_buf();
        match source.kind() {
            io::ErrorKind::NotFound => SegmentsError::Removed { file },
            _ => SegmentsError::ReadFailed { file, source },
        }
    }

    /// The file ends cleanly before an entry that must be there: what follows it lay in another file, or was cut off.
    pub(super) fn ends_early(file: &Path, from: LogIndex, through: LogIndex) -> SegmentsError {
        let dir = file.parent().unwrap_or_else(|| Path::new(".")).to_path_buf();
        SegmentsError::Missing { dir, from, base: through }
    }

    pub(super) fn corrupt(file: &Path, position: u64, what: &'static str) -> SegmentsError {
        SegmentsError::Corrupt { file: file.to_path_buf(), position, what }
    }
}
