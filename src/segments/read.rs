//! Finds batches, entries and times: in the tail cache at once, in files as jobs.
//!
//! A job knows its file, where to start in it and where what was written ends; it reads by position, a chunk at a time,
//! verifies every frame, and hands out slices of the chunk. It touches nothing of its group, so any number may run at a
//! time. If its segment is trimmed before it starts, it answers `Removed` and the caller locates again.

use super::cache::EntriesWithin;
use super::header::{self, read_header, SegmentHeader};
use super::index::{SparseIndex, Start, Summary, Wanted};
use super::scan::{load_index, FrameReader, SCAN_CHUNK_BYTES};
use super::{ReadBatch, Segment, Segments, SegmentsError};
use crate::disk::{Disk, DiskFile, Lane, OpenMode};
use crate::ids::{LogIndex, Offset, TimestampMs};
use crate::journal::base::Base;
use raft::eraftpb::Entry;
use std::collections::VecDeque;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

/// Where batches are.
pub enum Located {
    /// Here, at least one.
    Cached(Vec<ReadBatch>),
    /// In a file; the job gives at least one.
    Cold(ColdRead),
    /// The offset is the tail or lies beyond it.
    AtTail,
    /// The offset lies before the log's start.
    Trimmed {
        /// The first offset that can be read.
        start: Offset,
    },
}

/// Where entries are.
pub enum LocatedEntries {
    /// Here; none if the range is empty or lies beyond the last index.
    Cached(Vec<Entry>),
    /// In a file; the job gives at least one.
    Cold(ColdEntries),
    /// The first wanted one is not kept any more.
    Compacted {
        /// The oldest kept index.
        first: LogIndex,
    },
}

/// Where the offset for a time is.
pub enum TimeLocated {
    /// Here.
    Known(Offset),
    /// In a file.
    Cold(ColdTime),
}

/// Where the oldest base is.
pub enum BaseLocated {
    /// Here.
    Known(Box<Base>),
    /// In a file.
    Cold(ColdBase),
}

/// Indexes of sealed segments that were used lately. Locked for a look-up only, never across a wait.
#[derive(Default)]
pub(super) struct IndexShelf {
    loaded: Mutex<VecDeque<(LogIndex, Arc<SparseIndex>)>>,
}

/// Segments whose index stays in memory: a few readers far apart, at 32 bytes for each stride of a segment.
const SHELF_INDEXES_MAX: usize = 8;

impl IndexShelf {
    pub fn get(&self, first_index: LogIndex) -> Option<Arc<SparseIndex>> {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        let at = loaded.iter().position(|(first, _)| *first == first_index)?;
        let found = loaded.remove(at)?;
        let index = found.1.clone();
        loaded.push_front(found);
        Some(index)
    }

    pub fn put(&self, first_index: LogIndex, index: Arc<SparseIndex>) {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        loaded.retain(|(first, _)| *first != first_index);
        loaded.push_front((first_index, index));
        loaded.truncate(SHELF_INDEXES_MAX);
    }

    pub fn clear(&self) {
        self.loaded.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

impl Segments {
    /// Finds the batch that holds offset `from` and those behind it, as many as `bytes_max` allows but at least one.
    #[must_use]
    pub fn locate(&self, from: Offset, bytes_max: usize) -> Located {
        if from >= self.tail() {
            return Located::AtTail;
        }
        let start = self.start_offset();
        if from < start {
            return Located::Trimmed { start };
        }
        if let Some(batches) = self.cache.batches(from, bytes_max) {
            return Located::Cached(batches);
        }
        let after = self.segments.partition_point(|segment| segment.summary.base_tail <= from);
        let place = self.place(&self.segments[after.saturating_sub(1)], Wanted::Offset(from));
        Located::Cold(ColdRead { place, from, bytes_max })
    }

    /// Finds the entries in `[lo, hi)`, as many as `bytes_max` allows but at least one, as they were proposed.
    #[must_use]
    pub fn entries(&self, lo: LogIndex, hi: LogIndex, bytes_max: u64) -> LocatedEntries {
        let hi = hi.min(self.last_index().next());
        let first = self.first_index();
        if lo < first {
            return LocatedEntries::Compacted { first };
        }
        if lo >= hi {
            return LocatedEntries::Cached(Vec::new());
        }
        if let Some(entries) = self.cache.entries(lo, hi, bytes_max) {
            return LocatedEntries::Cached(entries);
        }
        let after = self.segments.partition_point(|segment| segment.summary.base_index < lo);
        let place = self.place(&self.segments[after.saturating_sub(1)], Wanted::Index(lo));
        LocatedEntries::Cold(ColdEntries { place, lo, hi, bytes_max })
    }

    /// Finds the first offset whose entry has log time `time` or a later one; the tail if there is none.
    #[must_use]
    pub fn offset_for_time(&self, time: TimestampMs) -> TimeLocated {
        let (start, tail) = (self.start_offset(), self.tail());
        if time > self.active().summary.timestamp {
            return TimeLocated::Known(tail);
        }
        if let Some(found) = self.cache.offset_for_time(time) {
            return TimeLocated::Known(found.unwrap_or(tail).max(start));
        }
        // The newest segment's time is not older: there is one.
        let at = self.segments.partition_point(|segment| segment.summary.timestamp < time);
        let segment = &self.segments[at];
        if segment.summary.base_timestamp >= time {
            return TimeLocated::Known(segment.summary.base_tail.max(start));
        }
        TimeLocated::Cold(ColdTime { place: self.place(segment, Wanted::Time(time)), time, start })
    }

    /// Finds the base that the oldest kept segment starts with: the snapshot for a replica that must start there.
    #[must_use]
    pub fn oldest_base(&self) -> BaseLocated {
        let oldest = self.oldest();
        let pending = oldest.header.as_ref().or(self.resetting.as_ref().map(|reset| &reset.header));
        match pending.and_then(SegmentHeader::decode) {
            Some(header) => BaseLocated::Known(Box::new(header.base)),
            None => BaseLocated::Cold(ColdBase { disk: self.disk.clone(), path: oldest.path.clone() }),
        }
    }

    fn place(&self, segment: &Segment, wanted: Wanted) -> Place {
        let first_index = segment.summary.first_index();
        let seek = |index: &SparseIndex| index.seek(wanted).unwrap_or(segment.summary.start());
        let start = match &segment.index {
            Some(index) => StartAt::Known(seek(index)),
            None => match self.shelf.get(first_index) {
                Some(index) => StartAt::Known(seek(&index)),
                None => StartAt::ByIndex { summary: Box::new(segment.summary.clone()), shelf: self.shelf.clone() },
            },
        };
        let stride = self.options.index_stride_bytes;
        Place { disk: self.disk.clone(), path: segment.path.clone(), start, wanted, end: segment.written, stride }
    }
}

/// Where in a file a search starts, or how to find out.
enum StartAt {
    Known(Start),
    ByIndex { summary: Box<Summary>, shelf: Arc<IndexShelf> },
}

/// A place in a segment's file.
struct Place {
    disk: Arc<dyn Disk>,
    path: Arc<Path>,
    start: StartAt,
    wanted: Wanted,
    /// What lies behind is not written yet.
    end: u64,
    stride: u64,
}

impl Place {
    async fn open(&self) -> Result<(Arc<dyn DiskFile>, Start), SegmentsError> {
        let start = match &self.start {
            StartAt::Known(start) => *start,
            StartAt::ByIndex { summary, shelf } => {
                let index = load_index(&*self.disk, &self.path, summary, self.stride).await?;
                let start = index.seek(self.wanted).unwrap_or(summary.start());
                shelf.put(summary.first_index(), index);
                start
            }
        };
        let file = self.disk.open(&self.path, OpenMode::ReadOnly, Lane::Bulk).await;
        Ok((file.map_err(|error| SegmentsError::read(&self.path, error))?, start))
    }

    /// A chunk that most reads of `bytes_max` are served from.
    fn chunk_bytes(&self, bytes_max: u64) -> usize {
        bytes_max.saturating_add(2 * self.stride).min(SCAN_CHUNK_BYTES as u64) as usize
    }

    fn not_found(&self, what: &'static str) -> SegmentsError {
        SegmentsError::corrupt(&self.path, self.end, what)
    }
}

/// Reads batches from a file.
#[must_use = "a located read does nothing until it is run"]
pub struct ColdRead {
    place: Place,
    from: Offset,
    bytes_max: usize,
}

impl ColdRead {
    /// The batches from the wanted offset on, at least one.
    ///
    /// # Errors
    /// `Corrupt`, `ReadFailed`, or `Removed` (locate again).
    pub async fn run(self) -> Result<Vec<ReadBatch>, SegmentsError> {
        let (file, start) = self.place.open().await?;
        let chunk = self.place.chunk_bytes(self.bytes_max as u64);
        let mut frames = FrameReader::new(&*file, &self.place.path, start.position, self.place.end, chunk);
        let (mut out, mut bytes) = (Vec::new(), 0);
        while let Some(frame) = frames.next().await? {
            if !frame.read_into(self.from, self.bytes_max, &mut bytes, &mut out) {
                break;
            }
        }
        match out.is_empty() {
            true => Err(self.place.not_found("no batch holds an offset that was written here")),
            false => Ok(out),
        }
    }
}

/// Reads entries from a file.
#[must_use = "a located read does nothing until it is run"]
pub struct ColdEntries {
    place: Place,
    lo: LogIndex,
    hi: LogIndex,
    bytes_max: u64,
}

impl ColdEntries {
    /// The entries from the first wanted one on, at least one, as they were proposed.
    ///
    /// # Errors
    /// `Corrupt`, `ReadFailed`, or `Removed` (locate again).
    pub async fn run(self) -> Result<Vec<Entry>, SegmentsError> {
        let (file, start) = self.place.open().await?;
        let chunk = self.place.chunk_bytes(self.bytes_max);
        let mut frames = FrameReader::new(&*file, &self.place.path, start.position, self.place.end, chunk);
        let mut out = EntriesWithin::new(self.bytes_max);
        while let Some(frame) = frames.next().await? {
            if frame.index >= self.hi || frame.index >= self.lo && !out.push(&frame) {
                break;
            }
        }
        match out.entries.first().is_some_and(|entry| entry.index == self.lo.0) {
            true => Ok(out.entries),
            false => Err(self.place.not_found("an index that was written here is not there")),
        }
    }
}

/// Reads which offset belongs to a time.
#[must_use = "a located read does nothing until it is run"]
pub struct ColdTime {
    place: Place,
    time: TimestampMs,
    start: Offset,
}

impl ColdTime {
    /// The first offset of that time or a later one.
    ///
    /// # Errors
    /// `Corrupt`, `ReadFailed`, or `Removed` (locate again).
    pub async fn run(self) -> Result<Offset, SegmentsError> {
        let (file, start) = self.place.open().await?;
        let chunk = self.place.chunk_bytes(self.place.stride);
        let mut frames = FrameReader::new(&*file, &self.place.path, start.position, self.place.end, chunk);
        let mut tail = start.tail;
        while let Some(frame) = frames.next().await? {
            if frame.timestamp >= self.time {
                return Ok(tail.max(self.start));
            }
            tail = frame.tail_after(tail);
        }
        Err(self.place.not_found("a time that was written here is not there"))
    }
}

/// Reads the base of the oldest segment.
#[must_use = "a located read does nothing until it is run"]
pub struct ColdBase {
    disk: Arc<dyn Disk>,
    path: Arc<Path>,
}

impl ColdBase {
    /// The base.
    ///
    /// # Errors
    /// `Corrupt`, `ReadFailed`, or `Removed` (locate again).
    pub async fn run(self) -> Result<Base, SegmentsError> {
        let file = self.disk.open(&self.path, OpenMode::ReadOnly, Lane::Bulk).await;
        let file = file.map_err(|error| SegmentsError::read(&self.path, error))?;
        let (header, _) = read_header(&*file, &self.path).await?;
        match header::first_index_of(&self.path) == Some(header.base.index.next()) {
            true => Ok(header.base),
            false => Err(SegmentsError::corrupt(&self.path, 0, "the base is not the one before the name's index")),
        }
    }
}
