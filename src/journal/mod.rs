//! The node's write-ahead log: one per node, for all its groups, one `fdatasync` per round.
//!
//! Duty: hold every group's base, hard state and the entries after the base, so that what was reported durable is there
//! after any crash, and so that damage is told from a torn tail. It refuses to know what an entry means, to retry a
//! failed write or sync, to append behind a cut, and to start empty because a file is damaged or gone. Repair from
//! peers is not its business: it says what is damaged, where, and which groups it concerns.
//!
//! ```text
//!  submissions ─> task ─> core: round ─────────> format ─> disk       a write and its sync
//!                          │  groups: what each group holds now
//!                          │  restating: the checkpoint that a new file carries
//!                          │  states: bases too large to lie inline
//!                          └─ upkeep: rolls, preparing, recycling ─> files: identity, marks
//!  open: files ─> scan (what is whole, what is proven) ─> replay (what it amounts to) ─> core, in a new file
//! ```
//!
//! Invariants:
//! - One write is in flight at a time and is synced before the next begins. So a valid round header proves that all
//!   before it in its file was synced; recovery searches for such proof behind every bad spot.
//! - A round is whole or it is not there. Rounds are numbered without gaps, across files.
//! - Restating frames repeat a group *as of the moment they are written*, behind the live frames of the same round. So
//!   replay in order is always right: a reader that knows the group already learns nothing from them and skips them;
//!   one that does not starts from them.
//! - The first file that the identity names holds a complete checkpoint. A file leaves the identity, and is recycled,
//!   only after a later one is complete, synced, and named as the first in both copies of the identity.

pub mod base;
mod core;
mod error;
mod files;
pub mod format;
mod frames;
#[cfg(test)]
mod golden;
mod groups;
pub mod inspect;
mod open;
mod replay;
mod restating;
pub mod scan;
mod split;
mod states;
mod task;
#[cfg(all(test, not(madsim)))]
mod tests;
mod upkeep;

pub use self::core::{IdleProgress, Journal};
pub use error::{Corruption, JournalError};
pub use files::{FileEntry, Identity, JournalIdentity};
pub use groups::Pressure;
pub use task::{spawn, JournalEnds, JournalHandle, JournalReport};

use crate::ids::GroupId;
use crate::limits;
use base::Base;
use raft::eraftpb::{Entry, HardState};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

/// One group's part of a round. Its effects take place in this order: base, entries, hard state; or the removal, alone.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct GroupWrite {
    /// Whose.
    pub group: GroupId,
    /// The new hard state, if it changed.
    pub hard_state: Option<HardState>,
    /// Contiguous entries, all above the base. The first may lie at or below the last known index: it replaces what is
    /// there and all after it.
    pub entries: Vec<Entry>,
    /// Moves the base: entries at or below it are forgotten, and all of them if it lies beyond the last one or
    /// contradicts the term of the one it covers (a snapshot was installed). A group's first write must carry one.
    pub base: Option<Box<Base>>,
    /// The group is gone for good. Nothing may be written to it any more.
    pub removed: bool,
}

impl GroupWrite {
    /// One that moves the group's base, or founds the group.
    #[must_use]
    pub fn of_base(group: GroupId, base: Base) -> GroupWrite {
        GroupWrite { group, base: Some(Box::new(base)), ..GroupWrite::default() }
    }
}

/// How a journal uses its files.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct JournalOptions {
    /// Files that are prepared are multiples of this.
    pub file_bytes: u64,
    /// Size of the first file; the least of one made while a write waits.
    pub first_file_bytes: u64,
    /// Bytes of entries that may wait for their bases; from half of it on groups are asked to move theirs.
    pub restated_bytes_max: u64,
    /// Bytes of one group's entries from which on it is asked to move its base.
    pub base_move_bytes: u64,
    /// Largest state that a base holds inline; a larger one gets a file of its own.
    pub base_inline_bytes_max: usize,
    /// Bytes of one round, unless a single entry is larger; what is more goes into further rounds.
    pub round_bytes_max: u64,
    /// Bytes of restatement that ride on a live round at least, while a checkpoint is not complete.
    pub portion_bytes_min: u64,
    /// Bytes of restatement in one idle step; a step of preparing a file is several times as long.
    pub step_bytes: u64,
    /// Files from which on opening completes a checkpoint before it returns, so that a node that crashes over and over
    /// does not pile them up.
    pub files_max: usize,
}

impl Default for JournalOptions {
    fn default() -> JournalOptions {
        JournalOptions {
            file_bytes: limits::JOURNAL_FILE_BYTES,
            first_file_bytes: limits::JOURNAL_FIRST_FILE_BYTES,
            restated_bytes_max: limits::JOURNAL_RESTATED_BYTES_MAX,
            base_move_bytes: limits::BASE_MOVE_BYTES,
            base_inline_bytes_max: limits::BASE_INLINE_BYTES_MAX,
            round_bytes_max: 2 << 20,
            portion_bytes_min: 64 << 10,
            step_bytes: 512 << 10,
            files_max: 8,
        }
    }
}

/// What the journal held for one group.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct RecoveredGroup {
    /// Its base, state included.
    pub base: Base,
    /// Its hard state; the default one if none was ever written.
    pub hard_state: HardState,
    /// The entries after the base, contiguous.
    pub entries: Vec<Entry>,
}

/// What a journal held when it was opened.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Recovered {
    /// Every group that is not removed.
    pub groups: BTreeMap<GroupId, RecoveredGroup>,
    /// The tombstones.
    pub removed: BTreeSet<GroupId>,
    /// The round that was cut off the end, if there are traces of one.
    pub cut: Option<Cut>,
    /// Bytes of journal that were read.
    pub bytes_read: u64,
    /// Rounds that were replayed.
    pub rounds: u64,
}

/// A round that a crash left incomplete behind everything that was synced; nobody was told that it is durable.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Cut {
    /// The file.
    pub file: PathBuf,
    /// Where the round begins.
    pub position: u64,
    /// Its number.
    pub sequence: u64,
    /// What is wrong with it.
    pub reason: String,
}
