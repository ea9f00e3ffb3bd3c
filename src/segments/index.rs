//! What is known of a segment beyond its bytes: its summary, and a sparse index of its frames.
//!
//! For sealed segments both lie in a small file beside it, so that opening a node reads a page per segment instead of the
//! segment. The file holds nothing that a scan would not find again; lost or damaged, it is rebuilt. Summary and entries
//! carry a checksum each: opening reads only the former. Beside the active segment lies the same, of as much as was synced when it
//! was written last, so that opening scans only what came after.
//!
//! Pure: the codec and the lookups. `scan` fetches and rebuilds.

use super::frame::FrameView;
use crate::ids::{LogIndex, Offset, Term, TimestampMs};
use bytes::{Buf, BufMut, Bytes, BytesMut};

const MAGIC: &[u8; 8] = b"balsaidx";
const VERSION: u32 = 1;
/// Bytes before the term runs.
const FIXED_LEN: usize = 120;
const CRC_AT: usize = 12;
const CRC_COUNTS_FROM: usize = 16;
const RUN_LEN: usize = 16;
const ENTRY_LEN: usize = 32;
/// What opening reads at first: room for the summary and more term runs than most segments have.
pub(super) const SUMMARY_READ_BYTES: usize = 1024;

/// A stretch of a log in one term.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct TermRun {
    pub first: LogIndex,
    pub term: Term,
}

/// A segment in numbers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Summary {
    /// Index, term, tail and time before the first frame.
    pub base_index: LogIndex,
    pub base_term: Term,
    pub base_tail: Offset,
    pub base_timestamp: TimestampMs,
    pub starts_log: bool,
    /// Position of the first frame.
    pub frames_at: u64,
    /// Position behind the last frame.
    pub end: u64,
    /// The last frame's, or the base's if there is none.
    pub last_index: LogIndex,
    pub tail: Offset,
    pub timestamp: TimestampMs,
    /// Invariant: ascending in both; the first run covers the base's index.
    pub runs: Vec<TermRun>,
}

/// One frame that the sparse index knows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct IndexEntry {
    pub index: LogIndex,
    /// The tail before the frame.
    pub offset: Offset,
    pub timestamp: TimestampMs,
    pub position: u64,
}

/// Where to start looking for something in a segment: a frame at or before it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Start {
    pub position: u64,
    /// The tail before the frame at `position`.
    pub tail: Offset,
}

/// What a read looks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Wanted {
    Index(LogIndex),
    Offset(Offset),
    /// The first frame at or after that time.
    Time(TimestampMs),
}

/// Ascending entries, at least a stride of bytes apart.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct SparseIndex {
    entries: Vec<IndexEntry>,
}

impl Summary {
    /// A segment without frames.
    pub fn empty(base: &crate::journal::base::Base, starts_log: bool, frames_at: u64) -> Summary {
        Summary {
            base_index: base.index,
            base_term: base.term,
            base_tail: base.tail,
            base_timestamp: base.timestamp,
            starts_log,
            frames_at,
            end: frames_at,
            last_index: base.index,
            tail: base.tail,
            timestamp: base.timestamp,
            runs: vec![TermRun { first: base.index, term: base.term }],
        }
    }

    /// Whether it is of the same segment as `empty`, which knows no frames.
    pub fn starts_as(&self, empty: &Summary) -> bool {
        let begins = |summary: &Summary| {
            let base = (summary.base_index, summary.base_term, summary.base_tail, summary.base_timestamp);
            (base, summary.starts_log, summary.frames_at, summary.runs.first().copied())
        };
        begins(self) == begins(empty)
    }

    /// Takes note of the frame that lies at `self.end`.
    pub fn add(&mut self, frame: &FrameView) {
        self.end += frame.len() as u64;
        self.last_index = frame.index;
        self.tail = frame.tail_after(self.tail);
        self.timestamp = frame.timestamp;
        if self.last_term() != frame.term {
            self.runs.push(TermRun { first: frame.index, term: frame.term });
        }
    }

    /// The index of the first frame, were there one; the segment's name.
    pub fn first_index(&self) -> LogIndex {
        self.base_index.next()
    }

    /// The term at `last_index`.
    pub fn last_term(&self) -> Term {
        self.runs.last().map_or(self.base_term, |run| run.term)
    }

    /// The term at an index of this segment or its base.
    pub fn term_of(&self, index: LogIndex) -> Option<Term> {
        if index > self.last_index {
            return None;
        }
        let after = self.runs.partition_point(|run| run.first <= index);
        Some(self.runs[after.checked_sub(1)?].term)
    }

    /// Where its first frame lies.
    pub fn start(&self) -> Start {
        Start { position: self.frames_at, tail: self.base_tail }
    }
}

impl SparseIndex {
    /// Takes note of a frame if the last one noted lies at least `stride` bytes before it.
    pub fn add(&mut self, stride: u64, entry: IndexEntry) {
        if self.entries.last().is_none_or(|last| entry.position - last.position >= stride) {
            self.entries.push(entry);
        }
    }

    /// The last known frame at or before what is wanted; `None` if the search starts with the segment.
    pub fn seek(&self, wanted: Wanted) -> Option<Start> {
        let after = self.entries.partition_point(|entry| match wanted {
            Wanted::Index(index) => entry.index <= index,
            Wanted::Offset(offset) => entry.offset <= offset,
            Wanted::Time(time) => entry.timestamp < time,
        });
        let entry = self.entries.get(after.checked_sub(1)?)?;
        Some(Start { position: entry.position, tail: entry.offset })
    }
}

/// The index file's content.
pub(super) fn encode(summary: &Summary, index: &SparseIndex) -> Bytes {
    let summary_len = FIXED_LEN + summary.runs.len() * RUN_LEN;
    let mut entries = BytesMut::with_capacity(index.entries.len() * ENTRY_LEN);
    for entry in &index.entries {
        entries.put_u64_le(entry.index.0);
        entries.put_u64_le(entry.offset.0);
        entries.put_u64_le(entry.timestamp.0);
        entries.put_u64_le(entry.position);
    }
    let mut bytes = BytesMut::with_capacity(summary_len + entries.len());
    bytes.put_slice(MAGIC);
    bytes.put_u32_le(VERSION);
    bytes.put_u32_le(0);
    bytes.put_u64_le(summary.base_index.0);
    bytes.put_u64_le(summary.base_term.0);
    bytes.put_u64_le(summary.base_tail.0);
    bytes.put_u64_le(summary.base_timestamp.0);
    bytes.put_u64_le(u64::from(summary.starts_log));
    bytes.put_u64_le(summary.frames_at);
    bytes.put_u64_le(summary.end);
    bytes.put_u64_le(summary.last_index.0);
    bytes.put_u64_le(summary.tail.0);
    bytes.put_u64_le(summary.timestamp.0);
    bytes.put_u64_le(index.entries.len() as u64);
    bytes.put_u32_le(crc32c::crc32c(&entries));
    bytes.put_u32_le(summary.runs.len() as u32);
    bytes.put_u64_le(0);
    debug_assert_eq!(bytes.len(), FIXED_LEN);
    for run in &summary.runs {
        bytes.put_u64_le(run.first.0);
        bytes.put_u64_le(run.term.0);
    }
    let crc = crc32c::crc32c(&bytes[CRC_COUNTS_FROM..]);
    bytes[CRC_AT..CRC_COUNTS_FROM].copy_from_slice(&crc.to_le_bytes());
    bytes.put_slice(&entries);
    bytes.freeze()
}

/// Where the entries lie in the index file, and their checksum.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct EntriesAt {
    pub position: u64,
    pub len: usize,
    crc: u32,
}

/// How much of the file the summary takes; `None` if no index file starts with these bytes. A file of `file_len` bytes holds
/// no larger one.
pub(super) fn summary_len(bytes: &[u8], file_len: u64) -> Option<usize> {
    if bytes.len() < FIXED_LEN || bytes[..8] != MAGIC[..] || (&bytes[8..12]).get_u32_le() != VERSION {
        return None;
    }
    let runs = (&bytes[108..112]).get_u32_le() as usize;
    let len = FIXED_LEN + runs.checked_mul(RUN_LEN)?;
    (len as u64 <= file_len).then_some(len)
}

/// Reads the summary from the start of an index file; `None` if it is damaged.
pub(super) fn decode_summary(bytes: &[u8]) -> Option<(Summary, EntriesAt)> {
    let len = summary_len(bytes, bytes.len() as u64)?;
    let crc = (&bytes[CRC_AT..]).get_u32_le();
    if crc32c::crc32c(&bytes[CRC_COUNTS_FROM..len]) != crc {
        return None;
    }
    let mut from = &bytes[CRC_COUNTS_FROM..len];
    let mut summary = Summary {
        base_index: LogIndex(from.get_u64_le()),
        base_term: Term(from.get_u64_le()),
        base_tail: Offset(from.get_u64_le()),
        base_timestamp: TimestampMs(from.get_u64_le()),
        starts_log: from.get_u64_le() != 0,
        frames_at: from.get_u64_le(),
        end: from.get_u64_le(),
        last_index: LogIndex(from.get_u64_le()),
        tail: Offset(from.get_u64_le()),
        timestamp: TimestampMs(from.get_u64_le()),
        runs: Vec::new(),
    };
    let entries = usize::try_from(from.get_u64_le()).ok()?;
    let entries_crc = from.get_u32_le();
    from.advance(12);
    while from.has_remaining() {
        summary.runs.push(TermRun { first: LogIndex(from.get_u64_le()), term: Term(from.get_u64_le()) });
    }
    let entries = EntriesAt { position: len as u64, len: entries.checked_mul(ENTRY_LEN)?, crc: entries_crc };
    Some((summary, entries))
}

/// Reads the entries; `None` if they are damaged.
pub(super) fn decode_entries(at: EntriesAt, mut bytes: &[u8]) -> Option<SparseIndex> {
    if bytes.len() != at.len || crc32c::crc32c(bytes) != at.crc {
        return None;
    }
    let mut index = SparseIndex { entries: Vec::with_capacity(bytes.len() / ENTRY_LEN) };
    while bytes.has_remaining() {
        index.entries.push(IndexEntry {
            index: LogIndex(bytes.get_u64_le()),
            offset: Offset(bytes.get_u64_le()),
            timestamp: TimestampMs(bytes.get_u64_le()),
            position: bytes.get_u64_le(),
        });
    }
    Some(index)
}
