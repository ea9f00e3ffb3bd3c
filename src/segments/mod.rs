//! The committed log of each group on disk: what every entry was, and what became of it.
//!
//! A [`Segments`] belongs to its group's driver and never waits: frames are appended to memory, and everything that touches
//! a file goes out as a job that the driver runs and whose result it hands back. Two jobs never write the same group at a
//! time.
//!
//! ```text
//!   append ──> tail cache ──begin_flush──> FlushJob ──> 00000000000000000002.seg   header with base, frames
//!                  │                                    00000000000000000002.idx   summary, sparse index; of the first part while active
//!   locate, entries├── near the tail: slices, at once
//!                  └── older: a job that reads by position, verifies, slices
//! ```
//!
//! Invariants: indexes are consecutive over all kept segments; a segment's name is its first index; a sealed segment never
//! changes; what lies at or below the journal's base was synced here before the base was recorded, so damage there is
//! damage, and is reported, never cut. What lies above it is cut when opening, and appended again.
//!
//! Refuses to decide: when to flush, to sync, to roll, to trim is the driver's to say. Offsets come from the state machine,
//! in the verdicts.

mod cache;
mod error;
mod flush;
mod frame;
mod header;
mod index;
pub mod inspect;
mod open;
mod read;
mod reset;
mod scan;
mod trim;
pub mod verdict;

pub use error::SegmentsError;
pub use flush::{FlushDone, FlushJob};
pub use open::OpenReport;
pub use read::{BaseLocated, ColdBase, ColdEntries, ColdRead, ColdTime, Located, LocatedEntries, TimeLocated};
pub use reset::{ResetDone, ResetJob};
pub use trim::DropJob;

use crate::disk::{Disk, DiskFile};
use crate::ids::{Digest, GroupId, LogIndex, Offset, Term, TimestampMs};
use crate::journal::base::Base;
use crate::limits::{SEGMENT_BYTES, SEGMENT_INDEX_STRIDE_BYTES, TAIL_CACHE_BYTES};
use bytes::Bytes;
use cache::{CachedFrame, TailCache};
use index::{SparseIndex, Summary};
use read::IndexShelf;
use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;
use verdict::Verdict;

/// What kind of entry a frame holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum EntryKind {
    /// A new leader's first entry: no data.
    Empty = 0,
    /// Commands for the state machine.
    Commands = 1,
    /// A change of configuration.
    ConfChange = 2,
}

impl EntryKind {
    fn from_byte(byte: u8) -> Option<EntryKind> {
        [EntryKind::Empty, EntryKind::Commands, EntryKind::ConfChange].into_iter().find(|kind| *kind as u8 == byte)
    }
}

/// One command's outcome.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Item {
    /// What the state machine decided.
    pub verdict: Verdict,
    /// Position in the entry's data where the command's record batch starts, if it holds one.
    pub batch_at: Option<u32>,
}

/// A committed and applied entry.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Frame {
    /// Its index in the group's log.
    pub index: LogIndex,
    /// Its term.
    pub term: Term,
    /// What it holds.
    pub kind: EntryKind,
    /// The log's time at it; never smaller than at any entry before.
    pub timestamp: TimestampMs,
    /// The chain after it.
    pub chain: Digest,
    /// One per command, in order.
    pub items: Vec<Item>,
    /// The entry's data as it was proposed.
    pub data: Bytes,
}

/// A batch as readers get it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ReadBatch {
    /// The stamped batch, whole.
    pub batch: Bytes,
    /// Offset of its first record.
    pub base_offset: Offset,
    /// How many records it holds.
    pub count: u32,
    /// The log's time at its entry.
    pub timestamp: TimestampMs,
}

/// Whose segments, and how large things get.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SegmentsOptions {
    /// The group; each file names it.
    pub group: GroupId,
    /// Size at which a segment wants to be sealed, in bytes.
    pub segment_bytes: u64,
    /// Bytes of a segment between two entries of its sparse index.
    pub index_stride_bytes: u64,
    /// Bytes of written frames kept in memory. What is not written is kept in any case.
    pub tail_cache_bytes: usize,
}

impl SegmentsOptions {
    /// The bounds of `limits`.
    #[must_use]
    pub fn of(group: GroupId) -> SegmentsOptions {
        SegmentsOptions {
            group,
            segment_bytes: SEGMENT_BYTES,
            index_stride_bytes: SEGMENT_INDEX_STRIDE_BYTES,
            tail_cache_bytes: TAIL_CACHE_BYTES,
        }
    }
}

/// One file, and what is known of it and still to be done to it.
struct Segment {
    path: Arc<Path>,
    summary: Summary,
    /// The whole index while this segment is active or its seal is not yet on disk; `None` afterwards, when it is loaded
    /// from beside the segment as reads need it.
    index: Option<SparseIndex>,
    /// The header, until it is written.
    header: Option<Bytes>,
    /// For writing; opened by the first flush that needs it.
    handle: Option<Arc<dyn DiskFile>>,
    /// Everything before this position was handed to the disk successfully.
    written: u64,
    /// The file is at least this long; zeros follow what was written.
    allocated: u64,
    /// The file beside the active segment tells of what lies before this position.
    indexed: u64,
    /// No more frames are added.
    sealed: bool,
    /// The seal (exact length, sync, index file) is on disk.
    seal_written: bool,
}

/// One group's committed log.
pub struct Segments {
    disk: Arc<dyn Disk>,
    dir: Arc<Path>,
    options: SegmentsOptions,
    /// Invariant: never empty, consecutive, the last one is active.
    segments: VecDeque<Segment>,
    cache: TailCache,
    shelf: Arc<IndexShelf>,
    /// The log start that was agreed upon; the oldest segment may still hold older offsets.
    agreed_start: Offset,
    /// Handed to the disk through here.
    written_through: LogIndex,
    /// Durable through here.
    synced_through: LogIndex,
    /// The journal's base, as far as we were told: what it needs is never dropped.
    recorded_base: LogIndex,
    /// Bytes of frames appended, and of those synced, since opening.
    appended_bytes: u64,
    synced_bytes: u64,
    /// Names in the directory changed and it was not synced since.
    names_unsynced: bool,
    flushing: bool,
    /// The snapshot's header while its segment is not yet in place.
    resetting: Option<reset::Resetting>,
    /// Files that are no longer part of the log.
    drops: Arc<trim::DropQueue>,
    /// Counts resets, so that a flush that began before one is not taken for one of after it.
    life: u64,
    /// Something failed for which the node must stop.
    failed: bool,
    report: OpenReport,
}

impl Segments {
    /// Appends the next committed entry, to memory: it is visible to reads at once and written by a later flush.
    ///
    /// # Panics
    /// If its index is not the next one, or its term or time goes back.
    pub fn append(&mut self, frame: Frame) {
        let stride = self.options.index_stride_bytes;
        let active = self.segments.back_mut().expect("there is an active segment");
        let summary = &mut active.summary;
        assert_eq!(frame.index, summary.last_index.next(), "frames are appended without gaps");
        assert!(frame.term >= summary.last_term(), "terms never go back: {:?}", frame.term);
        assert!(frame.timestamp >= summary.timestamp, "log time never goes back: {:?}", frame.timestamp);
        let (bytes, view) = frame::encode(&frame);
        let (tail_before, timestamp_before) = (summary.tail, summary.timestamp);
        let index = active.index.as_mut().expect("the active segment's index is in memory");
        scan::add_frame(summary, index, stride, &view);
        self.appended_bytes += bytes.len() as u64;
        let tail_after = summary.tail;
        self.cache.push(CachedFrame { bytes, view, tail_before, tail_after, timestamp_before });
        self.cache.shrink(self.options.tail_cache_bytes, self.written_through);
    }

    /// Bounds the newest frames in memory anew.
    pub fn set_tail_cache_bytes(&mut self, bytes: usize) {
        self.options.tail_cache_bytes = bytes;
        self.cache.shrink(bytes, self.written_through);
    }

    /// Whether the active segment is full: the caller captures the state machine's state and calls [`Segments::roll`].
    #[must_use]
    pub fn wants_roll(&self) -> bool {
        let summary = &self.active().summary;
        summary.end >= self.options.segment_bytes && summary.last_index > summary.base_index
    }

    /// Seals the active segment and starts the next with `base`.
    ///
    /// # Panics
    /// If `base` is not of the last appended index, or the active segment is empty.
    pub fn roll(&mut self, base: Base) {
        let active = self.segments.back_mut().expect("there is an active segment");
        let last = &active.summary;
        assert_eq!(
            (base.index, base.term),
            (last.last_index, last.last_term()),
            "a segment's base is where the last ended"
        );
        assert!(last.last_index > last.base_index, "an empty segment is not sealed");
        active.sealed = true;
        let segment = Segment::new(&self.dir, self.options.group, base, false);
        self.segments.push_back(segment);
        self.names_unsynced = true;
    }

    /// Bytes of frames that are appended and not yet synced.
    #[must_use]
    pub fn unsynced_bytes(&self) -> u64 {
        self.appended_bytes - self.synced_bytes
    }

    /// The journal recorded a base at this index: what lies only below it may be dropped from now on.
    pub fn base_moved(&mut self, index: LogIndex) {
        self.recorded_base = self.recorded_base.max(index);
    }

    /// The term of an entry that is kept, or of the base before the oldest.
    #[must_use]
    pub fn term_of(&self, index: LogIndex) -> Option<Term> {
        let after = self.segments.partition_point(|segment| segment.summary.base_index <= index);
        self.segments[after.checked_sub(1)?].summary.term_of(index)
    }

    /// The terms of all kept entries as runs of first index and term; the first run starts at the base right before the
    /// oldest kept entry.
    #[must_use]
    pub fn term_runs(&self) -> Vec<(LogIndex, Term)> {
        let mut runs: Vec<(LogIndex, Term)> = Vec::new();
        for run in self.segments.iter().flat_map(|segment| &segment.summary.runs) {
            if runs.last().is_none_or(|(_, term)| *term != run.term) {
                runs.push((run.first, run.term));
            }
        }
        runs
    }

    /// The index of the oldest kept entry (the next one to come if none is kept).
    #[must_use]
    pub fn first_index(&self) -> LogIndex {
        self.oldest().summary.first_index()
    }

    /// The index of the newest entry, or of the base if none is kept.
    #[must_use]
    pub fn last_index(&self) -> LogIndex {
        self.active().summary.last_index
    }

    /// Everything through this index is durable.
    #[must_use]
    pub fn synced_through(&self) -> LogIndex {
        self.synced_through
    }

    /// The first offset that can be read: the later of the agreed start and the oldest segment's base.
    #[must_use]
    pub fn start_offset(&self) -> Offset {
        self.agreed_start.max(self.oldest().summary.base_tail)
    }

    /// Whether the oldest kept segment is where this replica's log began: created with the group, or with a snapshot. If
    /// not, older ones were there, and only an agreed trim may have dropped them.
    #[must_use]
    pub fn starts_log(&self) -> bool {
        self.oldest().summary.starts_log
    }

    /// The first absent offset.
    #[must_use]
    pub fn tail(&self) -> Offset {
        self.active().summary.tail
    }

    /// Bytes of all kept segments.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.segments.iter().map(|segment| segment.summary.end).sum()
    }

    fn active(&self) -> &Segment {
        self.segments.back().expect("there is an active segment")
    }

    fn oldest(&self) -> &Segment {
        self.segments.front().expect("there is an active segment")
    }
}

impl Segment {
    /// A segment that is not on disk yet.
    fn new(dir: &Path, group: GroupId, base: Base, starts_log: bool) -> Segment {
        let header = header::SegmentHeader { group, starts_log, base };
        let bytes = header.encode();
        Segment {
            path: header::segment_path(dir, header.base.index.next()).into(),
            summary: Summary::empty(&header.base, starts_log, bytes.len() as u64),
            index: Some(SparseIndex::default()),
            header: Some(bytes),
            handle: None,
            written: 0,
            allocated: 0,
            indexed: 0,
            sealed: false,
            seal_written: false,
        }
    }

    /// A segment whose header, and whatever the summary says, is on disk.
    fn written(path: Arc<Path>, summary: Summary, index: Option<SparseIndex>) -> Segment {
        let (written, sealed) = (summary.end, index.is_none());
        Segment {
            path,
            summary,
            index,
            header: None,
            handle: None,
            written,
            allocated: written,
            indexed: written,
            sealed,
            seal_written: sealed,
        }
    }
}

#[cfg(test)]
mod tests;
