//! What a segment file holds, for those who look at it offline. Read-only; works on damaged files, and says what is wrong
//! where.
//!
//! Frames go to the caller one by one, so that a large segment takes no memory. Behind damage it looks for the next good
//! frame; between the two nothing is reported but the damage.

use super::header::{read_header, SegmentHeader};
use super::index::Summary;
use super::scan::{add_frame, read_summary, FrameReader, SCAN_CHUNK_BYTES};
use super::{frame, EntryKind, Item, SegmentsError, SparseIndex};
use crate::disk::{Disk, DiskFile, Lane, OpenMode};
use crate::ids::{Digest, GroupId, LogIndex, Offset, Term, TimestampMs};
use crate::journal::base::Base;
use bytes::Bytes;
use std::path::Path;

/// A segment file as a whole.
#[derive(Clone, PartialEq, Debug)]
pub struct SegmentReport {
    /// Bytes of the file.
    pub file_bytes: u64,
    /// Whose it is and what it starts with; or why that can't be told.
    pub header: Result<HeaderReport, String>,
    /// Good frames.
    pub frames: u64,
    /// The last good one's index, if there is one.
    pub last_index: Option<LogIndex>,
    /// The tail behind the last good frame.
    pub tail: Offset,
    /// What is wrong, in the file's order.
    pub damage: Vec<Damage>,
    /// How the file ends.
    pub ending: Ending,
    /// The file beside it.
    pub index: IndexStatus,
}

/// What a segment starts with.
#[derive(Clone, PartialEq, Debug)]
pub struct HeaderReport {
    /// The group.
    pub group: GroupId,
    /// Whether the log starts here: created, or replaced by a snapshot.
    pub starts_log: bool,
    /// What came before the first frame.
    pub base: Base,
    /// Position of the first frame.
    pub frames_at: u64,
}

/// One good frame.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FrameReport {
    /// Where it lies.
    pub position: u64,
    /// Bytes it takes.
    pub bytes: u64,
    /// The entry's index.
    pub index: LogIndex,
    /// The entry's term.
    pub term: Term,
    /// What it holds.
    pub kind: EntryKind,
    /// The log's time.
    pub timestamp: TimestampMs,
    /// The chain after it.
    pub chain: Digest,
    /// What became of its commands.
    pub items: Vec<Item>,
    /// Bytes of the entry.
    pub data_bytes: u64,
}

/// Bytes that are not what they must be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Damage {
    /// Where it was met.
    pub position: u64,
    /// What is wrong.
    pub what: String,
}

/// What follows the last good frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ending {
    /// Nothing: a sealed segment.
    Exact,
    /// Zeros, as in an active one: space that was allocated ahead.
    Zeros {
        /// From here on.
        position: u64,
    },
    /// Something else: a torn write above the journal's base, or damage below it. The segment alone can't tell.
    Torn {
        /// From here on.
        position: u64,
    },
}

/// The index file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum IndexStatus {
    /// It describes this segment.
    Good,
    /// It describes the first part of this segment, as beside an active one.
    SoFar,
    /// There is none, as beside a segment that was just begun; or it can't be read. It is rebuilt when it is needed.
    Absent,
    /// It describes something else than this segment holds. It is rebuilt when it is needed.
    Differs,
}

/// Looks at a segment file and gives each good frame to `on_frame`.
///
/// # Errors
/// Only those of the disk: what is wrong with the file is in the report.
pub async fn inspect(
    disk: &dyn Disk,
    path: &Path,
    mut on_frame: impl FnMut(&FrameReport),
) -> Result<SegmentReport, SegmentsError> {
    let read_error = |error| SegmentsError::read(path, error);
    let file = disk.open(path, OpenMode::ReadOnly, Lane::Bulk).await.map_err(read_error)?;
    let file_bytes = file.len().await.map_err(read_error)?;
    let mut damage = Vec::new();
    let (header, mut summary) = match read_header(&*file, path).await {
        Ok((header, frames_at)) => {
            let summary = Summary::empty(&header.base, header.starts_log, frames_at);
            (Ok(report_of(header, frames_at)), summary)
        }
        Err(SegmentsError::Corrupt { what, .. }) => {
            damage.push(Damage { position: 0, what: what.to_owned() });
            (Err(what.to_owned()), Summary::empty(&Base::default(), false, 0))
        }
        Err(error) => return Err(error),
    };
    let (mut frames, mut at) = (0, summary.frames_at);
    if header.is_err() {
        at = next_frame(&*file, path, 0, file_bytes).await?.unwrap_or(file_bytes);
    }
    let mut torn = None;
    while at < file_bytes {
        let mut reader = FrameReader::new(&*file, path, at, file_bytes, SCAN_CHUNK_BYTES);
        let broken = walk(&mut reader, &mut summary, &mut frames, &mut damage, &mut on_frame).await?;
        at = reader.position();
        let Some(what) = broken else { break };
        match next_frame(&*file, path, at + 1, file_bytes).await? {
            Some(next) => {
                damage.push(Damage { position: at, what: what.to_owned() });
                at = next;
            }
            None => {
                torn = Some(at);
                break;
            }
        }
    }
    let ending = match torn {
        None => Ending::Exact,
        Some(position) if only_zeros(&*file, path, position, file_bytes).await? => Ending::Zeros { position },
        Some(position) => Ending::Torn { position },
    };
    let index = match read_summary(disk, &path.with_extension("idx")).await? {
        None => IndexStatus::Absent,
        Some(found) if found == summary => IndexStatus::Good,
        Some(found) if found.starts_as(&summary) && found.end < summary.end => IndexStatus::SoFar,
        Some(_) => IndexStatus::Differs,
    };
    let last_index = (frames > 0).then_some(summary.last_index);
    Ok(SegmentReport { file_bytes, header, frames, last_index, tail: summary.tail, damage, ending, index })
}

/// Walks good frames; says what ended it, if not the end of the file.
async fn walk(
    reader: &mut FrameReader<'_>,
    summary: &mut Summary,
    frames: &mut u64,
    damage: &mut Vec<Damage>,
    on_frame: &mut impl FnMut(&FrameReport),
) -> Result<Option<&'static str>, SegmentsError> {
    loop {
        let position = reader.position();
        let view = match reader.next().await {
            Ok(Some(view)) => view,
            Ok(None) => return Ok(None),
            Err(SegmentsError::Corrupt { what, .. }) => return Ok(Some(what)),
            Err(error) => return Err(error),
        };
        if view.index != summary.last_index.next() || view.term < summary.last_term() {
            let what =
                format!("entry {} of term {} does not follow entry {}", view.index, view.term, summary.last_index);
            damage.push(Damage { position, what });
        }
        *frames += 1;
        summary.end = position;
        add_frame(summary, &mut SparseIndex::default(), u64::MAX, &view);
        on_frame(&FrameReport {
            position,
            bytes: view.len() as u64,
            index: view.index,
            term: view.term,
            kind: view.kind,
            timestamp: view.timestamp,
            chain: view.chain,
            items: view.items().collect(),
            data_bytes: view.data.len() as u64,
        });
    }
}

fn report_of(header: SegmentHeader, frames_at: u64) -> HeaderReport {
    HeaderReport { group: header.group, starts_log: header.starts_log, base: header.base, frames_at }
}

/// Where the next good frame starts, at or behind `from`.
async fn next_frame(file: &dyn DiskFile, path: &Path, from: u64, end: u64) -> Result<Option<u64>, SegmentsError> {
    let mark = frame::MARK.to_le_bytes();
    let mut at = from;
    while at + (frame::FIXED_LEN as u64) <= end {
        let chunk = read(file, path, at, SCAN_CHUNK_BYTES).await?;
        for start in chunk.windows(mark.len()).enumerate().filter(|(_, bytes)| *bytes == mark).map(|(start, _)| start) {
            let position = at + start as u64;
            if FrameReader::new(file, path, position, end, frame::FIXED_LEN).next().await.is_ok() {
                return Ok(Some(position));
            }
        }
        // The mark may lie across two chunks.
        at += chunk.len().saturating_sub(mark.len() - 1).max(1) as u64;
    }
    Ok(None)
}

async fn only_zeros(file: &dyn DiskFile, path: &Path, mut at: u64, end: u64) -> Result<bool, SegmentsError> {
    while at < end {
        let chunk = read(file, path, at, SCAN_CHUNK_BYTES).await?;
        if chunk.is_empty() || chunk.iter().any(|byte| *byte != 0) {
            return Ok(false);
        }
        at += chunk.len() as u64;
    }
    Ok(true)
}

async fn read(file: &dyn DiskFile, path: &Path, position: u64, len: usize) -> Result<Bytes, SegmentsError> {
    file.read_at(position, len).await.map_err(|error| SegmentsError::read(path, error))
}
