//! Walks a segment file's frames from a position on, a chunk of the file at a time, and rebuilds what a scan can rebuild.
//!
//! Every frame that comes out had its checksums verified. What does not parse before the given end is damage, and named by
//! file and position; nothing is skipped here.

use super::frame::{self, FrameView, Parsed, FIXED_LEN, FRAME_BYTES_MAX};
use super::index::{self, IndexEntry, SparseIndex, Summary};
use super::SegmentsError;
use crate::disk::{Disk, DiskFile, Lane, OpenMode};
use crate::ids::LogIndex;
use crate::reached;
use bytes::Bytes;
use std::path::Path;
use std::sync::Arc;

/// Bytes that a scan of a whole file reads at a time.
pub(super) const SCAN_CHUNK_BYTES: usize = 1 << 20;

/// Reads frames one after another.
pub(super) struct FrameReader<'a> {
    file: &'a dyn DiskFile,
    path: &'a Path,
    /// Position of the next frame.
    position: u64,
    /// Where the frames end.
    end: u64,
    /// Bytes of the file from `position` on.
    buffer: Bytes,
    chunk_bytes: usize,
}

impl<'a> FrameReader<'a> {
    /// A reader of the frames in `[position, end)`.
    pub fn new(file: &'a dyn DiskFile, path: &'a Path, position: u64, end: u64, chunk_bytes: usize) -> FrameReader<'a> {
        let chunk_bytes = chunk_bytes.clamp(FIXED_LEN, 4 * FRAME_BYTES_MAX);
        FrameReader { file, path, position, end, buffer: Bytes::new(), chunk_bytes }
    }

    /// Position of the next frame.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// The next frame; `None` at the end.
    ///
    /// # Errors
    /// `Corrupt` where bytes before the end are no good frame; `ReadFailed` or `Removed` by the disk's word.
    pub async fn next(&mut self) -> Result<Option<FrameView>, SegmentsError> {
        if self.position >= self.end {
            return Ok(None);
        }
        loop {
            match frame::parse(&self.buffer) {
                Parsed::Frame(view) => {
                    let len = view.len();
                    self.buffer = self.buffer.slice(len..);
                    self.position += len as u64;
                    return Ok(Some(view));
                }
                Parsed::NeedsBytes(wanted) => self.fill(wanted).await?,
                Parsed::Broken(what) => return Err(self.corrupt(what)),
            }
        }
    }

    /// Reads at least `wanted` bytes from the present position into the buffer.
    async fn fill(&mut self, wanted: usize) -> Result<(), SegmentsError> {
        let left = self.end - self.position;
        if wanted as u64 > left {
            return Err(self.corrupt("the frame runs past the end of what was written"));
        }
        let len = (wanted.max(self.chunk_bytes) as u64).min(left) as usize;
        let read = self.file.read_at(self.position, len).await;
        self.buffer = read.map_err(|error| SegmentsError::read(self.path, error))?;
        match self.buffer.len() < wanted {
            true => Err(self.corrupt("the file ends before the frame does")),
            false => Ok(()),
        }
    }

    fn corrupt(&self, what: &'static str) -> SegmentsError {
        SegmentsError::corrupt(self.path, self.position, what)
    }
}

/// Continues `summary` and `index` over the frames of a file until `last` was read.
///
/// # Errors
/// As [`FrameReader::next`]; `Corrupt` also where indexes are not consecutive, `Missing` where the file ends before `last`.
pub(super) async fn scan_through(
    file: &dyn DiskFile,
    path: &Path,
    summary: &mut Summary,
    index: &mut SparseIndex,
    stride: u64,
    last: LogIndex,
) -> Result<(), SegmentsError> {
    let file_len = file.len().await.map_err(|error| SegmentsError::read(path, error))?;
    let mut reader = FrameReader::new(file, path, summary.end, file_len, SCAN_CHUNK_BYTES);
    while summary.last_index < last {
        let position = reader.position();
        let frame = reader.next().await?;
        let frame = frame.ok_or_else(|| SegmentsError::ends_early(path, summary.last_index.next(), last))?;
        if frame.index != summary.last_index.next() || frame.term < summary.last_term() {
            return Err(SegmentsError::corrupt(path, position, "the frame does not follow the one before it"));
        }
        add_frame(summary, index, stride, &frame);
    }
    Ok(())
}

/// Takes note, in both, of a frame that lies at the summary's end.
pub(super) fn add_frame(summary: &mut Summary, index: &mut SparseIndex, stride: u64, frame: &FrameView) {
    let (offset, position) = (summary.tail, summary.end);
    index.add(stride, IndexEntry { index: frame.index, offset, timestamp: frame.timestamp, position });
    summary.add(frame);
}

/// Reads the summary beside a sealed segment; `None` if it is lost or damaged.
///
/// # Errors
/// Only those of the disk, a missing file aside.
pub(super) async fn read_summary(disk: &dyn Disk, path: &Path) -> Result<Option<Summary>, SegmentsError> {
    let Some((file, len)) = open_if_there(disk, path).await? else { return Ok(None) };
    let read = |len: usize| file.read_at(0, len);
    let mut bytes = read(index::SUMMARY_READ_BYTES).await.map_err(|error| SegmentsError::read(path, error))?;
    match index::summary_len(&bytes, len) {
        None => return Ok(None),
        Some(len) if len > bytes.len() => {
            bytes = read(len).await.map_err(|error| SegmentsError::read(path, error))?;
        }
        Some(_) => {}
    }
    Ok(index::decode_summary(&bytes).map(|(summary, _)| summary))
}

/// The sparse index of a sealed segment: from the file beside it, or by scanning if that is lost, damaged or of another
/// segment.
///
/// # Errors
/// Those of reading; `Corrupt` if a scan meets damage.
pub(super) async fn load_index(
    disk: &dyn Disk,
    path: &Path,
    summary: &Summary,
    stride: u64,
) -> Result<Arc<SparseIndex>, SegmentsError> {
    match read_index(disk, &path.with_extension("idx")).await? {
        Some((found, index)) if found == *summary => return Ok(Arc::new(index)),
        _ => {}
    }
    reached!("segment index rebuilt for a read");
    let file =
        disk.open(path, OpenMode::ReadOnly, Lane::Bulk).await.map_err(|error| SegmentsError::read(path, error))?;
    let mut again = Summary { end: summary.frames_at, last_index: summary.base_index, ..summary.clone() };
    (again.tail, again.timestamp) = (summary.base_tail, summary.base_timestamp);
    again.runs.truncate(1);
    let mut index = SparseIndex::default();
    scan_through(&*file, path, &mut again, &mut index, stride, summary.last_index).await?;
    Ok(Arc::new(index))
}

/// What an index file holds; `None` if it is lost or damaged.
///
/// # Errors
/// Only those of the disk, a missing file aside.
pub(super) async fn read_index(disk: &dyn Disk, path: &Path) -> Result<Option<(Summary, SparseIndex)>, SegmentsError> {
    let Some((file, len)) = open_if_there(disk, path).await? else { return Ok(None) };
    let bytes = file.read_at(0, len as usize).await.map_err(|error| SegmentsError::read(path, error))?;
    let Some((summary, at)) = index::decode_summary(&bytes) else { return Ok(None) };
    let entries = bytes.get(at.position as usize..).and_then(|bytes| bytes.get(..at.len));
    let index = entries.and_then(|entries| index::decode_entries(at, entries));
    Ok(index.map(|index| (summary, index)))
}

/// An index file and its length; `None` if it is not there, or longer than any is.
async fn open_if_there(disk: &dyn Disk, path: &Path) -> Result<Option<(Arc<dyn DiskFile>, u64)>, SegmentsError> {
    const INDEX_FILE_BYTES_MAX: u64 = 256 << 20;
    let file = match disk.open(path, OpenMode::ReadOnly, Lane::Bulk).await {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        file => file.map_err(|error| SegmentsError::read(path, error))?,
    };
    let len = file.len().await.map_err(|error| SegmentsError::read(path, error))?;
    Ok((len <= INDEX_FILE_BYTES_MAX).then_some((file, len)))
}
