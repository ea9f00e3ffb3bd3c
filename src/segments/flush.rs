//! Writes what was appended: frames, seals, new segments.
//!
//! [`Segments::begin_flush`] collects all that is pending into a job that knows every position, so that a job which failed
//! for want of room is simply repeated later: the same bytes go to the same places. A failed sync is never repeated.
//!
//! A seal (exact length, sync, index file) is always synced; the rest only when asked for.

use super::index;
use super::{Segment, Segments, SegmentsError};
use crate::disk::{self, Disk, DiskFile, Lane, OpenMode};
use crate::ids::LogIndex;
use crate::{planted, reached};
use bytes::Bytes;
use std::path::Path;
use std::sync::Arc;

/// A segment file grows by as much as it holds, within these bounds: ahead of the frames, which can't fail for want of room then.
const ALLOCATE_BYTES: std::ops::RangeInclusive<u64> = (64 << 10)..=(1 << 20);

/// The index beside the active segment is written anew when it has grown by so many of its entries.
const INDEX_EVERY_STRIDES: u64 = 64;

/// What is to be written to one file.
struct Part {
    first_index: LogIndex,
    path: Arc<Path>,
    handle: Option<Arc<dyn DiskFile>>,
    /// The file does not exist yet: its header has not been written.
    create: bool,
    position: u64,
    bytes: Vec<Bytes>,
    /// Behind the last of `bytes`.
    end: u64,
    allocated: u64,
    /// The index file's content, if the segment is to be sealed.
    seal: Option<Bytes>,
    /// The same of a segment that goes on, once what it tells of is synced. Not synced itself: it only spares a scan.
    index_so_far: Option<Bytes>,
    /// That was written.
    indexed: bool,
}

/// Writes what was pending when it was made. One per group at a time.
#[must_use = "a flush that is not run blocks all later ones"]
pub struct FlushJob {
    disk: Arc<dyn Disk>,
    dir: Arc<Path>,
    parts: Vec<Part>,
    sync: bool,
    sync_dir: bool,
    through: LogIndex,
    appended_bytes: u64,
    life: u64,
}

/// What became of a flush; goes to [`Segments::finish_flush`].
pub struct FlushDone {
    parts: Vec<Part>,
    sync: bool,
    sync_dir: bool,
    through: LogIndex,
    appended_bytes: u64,
    life: u64,
    result: Result<(), SegmentsError>,
}

impl Segments {
    /// Collects everything appended so far into a job; with `sync`, all of it is durable once the job is done. `None` if
    /// there is nothing to do, or a flush or reset is under way, or one failed for good.
    pub fn begin_flush(&mut self, sync: bool) -> Option<FlushJob> {
        if self.flushing || self.resetting.is_some() || self.failed {
            return None;
        }
        let sync = sync && !planted!("base-recorded-before-segments-synced");
        let through = self.last_index();
        let mut parts = self.pending_parts();
        if parts.is_empty() && !(sync && self.synced_through < through) {
            return None;
        }
        if sync && parts.last().is_none_or(|part| part.first_index != self.active().summary.first_index()) {
            parts.push(self.active().part(Vec::new()));
        }
        if let (true, Some(last)) = (sync, parts.last_mut()) {
            last.index_so_far = self.active().index_so_far(self.options.index_stride_bytes);
        }
        self.flushing = true;
        Some(FlushJob {
            disk: self.disk.clone(),
            dir: self.dir.clone(),
            parts,
            sync,
            sync_dir: sync && self.names_unsynced && !planted!("new-segment-name-not-synced"),
            through,
            appended_bytes: self.appended_bytes,
            life: self.life,
        })
    }

    fn pending_parts(&self) -> Vec<Part> {
        let mut frames = self.cache.after(self.written_through).peekable();
        let mut parts = Vec::new();
        for segment in self.segments.iter().filter(|segment| segment.is_pending()) {
            let last = segment.summary.last_index;
            let mut bytes: Vec<Bytes> = segment.header.iter().cloned().collect();
            while let Some(frame) = frames.next_if(|frame| frame.view.index <= last) {
                bytes.push(frame.bytes.clone());
            }
            parts.push(segment.part(bytes));
        }
        parts
    }

    /// Takes a job's result. Gives the index through which everything is now durable (if the job was to sync) or written.
    ///
    /// # Errors
    /// `NoSpace`: nothing is lost, flush again later, refuse appends meanwhile. `SyncFailed`, `WriteFailed`: the node stops;
    /// no further flush begins.
    pub fn finish_flush(&mut self, done: FlushDone) -> Result<LogIndex, SegmentsError> {
        self.flushing = false;
        self.failed |= done.result.as_ref().is_err_and(SegmentsError::must_stop);
        if done.life != self.life {
            // A snapshot replaces these segments. What matters of it is only whether the disk failed for good.
            reached!("flush overtaken by a snapshot");
            return match done.result {
                Err(error) if error.must_stop() => Err(error),
                _ => Ok(self.synced_through),
            };
        }
        let succeeded = done.result.is_ok();
        for part in done.parts {
            let Ok(at) = self.segments.binary_search_by_key(&part.first_index, |s| s.summary.first_index()) else {
                continue; // trimmed meanwhile
            };
            if let Some(index) = self.segments[at].take_outcome(part, succeeded) {
                self.shelf.put(self.segments[at].summary.first_index(), Arc::new(index));
            }
        }
        done.result?;
        self.written_through = self.written_through.max(done.through);
        if done.sync {
            self.synced_through = self.synced_through.max(done.through);
            self.synced_bytes = self.synced_bytes.max(done.appended_bytes);
        }
        if done.sync_dir && self.segments.iter().all(|segment| segment.header.is_none()) {
            self.names_unsynced = false;
        }
        self.cache.shrink(self.options.tail_cache_bytes, self.written_through);
        Ok(done.through)
    }
}

impl Segment {
    fn is_pending(&self) -> bool {
        self.written < self.summary.end || self.sealed && !self.seal_written
    }

    /// What a flush has to do here, given the bytes from the first one that is not written.
    fn part(&self, bytes: Vec<Bytes>) -> Part {
        let seal = (self.sealed && !self.seal_written).then(|| {
            let index = self.index.as_ref().expect("the index is kept until the seal is written");
            index::encode(&self.summary, index)
        });
        Part {
            first_index: self.summary.first_index(),
            path: self.path.clone(),
            handle: self.handle.clone(),
            create: self.header.is_some(),
            position: self.written,
            bytes,
            end: self.summary.end,
            allocated: self.allocated,
            seal,
            index_so_far: None,
            indexed: false,
        }
    }

    /// The active segment's index as it stands, if much was added since it was last written.
    fn index_so_far(&self, stride: u64) -> Option<Bytes> {
        let due = !self.sealed && self.summary.end - self.indexed >= INDEX_EVERY_STRIDES * stride;
        self.index.as_ref().filter(|_| due).map(|index| index::encode(&self.summary, index))
    }

    /// Takes note of what a flush did here. Gives the index away once the seal that holds it is on disk.
    fn take_outcome(&mut self, part: Part, succeeded: bool) -> Option<super::SparseIndex> {
        self.handle = part.handle;
        self.allocated = self.allocated.max(part.allocated);
        if !succeeded {
            return None;
        }
        self.written = part.end;
        self.header = None;
        if part.indexed {
            self.indexed = part.end;
        }
        part.seal?;
        self.seal_written = true;
        self.handle = None;
        self.index.take()
    }
}

impl FlushJob {
    /// Writes, and syncs if it was to. Never fails by itself: the result goes to [`Segments::finish_flush`].
    pub async fn run(mut self) -> FlushDone {
        let result = self.write_all().await;
        FlushDone {
            parts: self.parts,
            sync: self.sync,
            sync_dir: self.sync_dir,
            through: self.through,
            appended_bytes: self.appended_bytes,
            life: self.life,
            result,
        }
    }

    async fn write_all(&mut self) -> Result<(), SegmentsError> {
        for part in &mut self.parts {
            part.write(&*self.disk, self.sync).await?;
        }
        if self.sync_dir {
            self.disk.sync_dir(&self.dir).await.map_err(|error| SegmentsError::sync(&self.dir, error))?;
        }
        Ok(())
    }
}

impl Part {
    async fn write(&mut self, disk: &dyn Disk, sync: bool) -> Result<(), SegmentsError> {
        let path = self.path.clone();
        let file = self.open(disk).await?;
        if self.seal.is_none() && self.end > self.allocated {
            let ahead = self.end.clamp(*ALLOCATE_BYTES.start(), *ALLOCATE_BYTES.end());
            let len = self.end + ahead - self.allocated;
            file.allocate(self.allocated, len).await.map_err(|error| SegmentsError::write(&path, error))?;
            self.allocated += len;
        }
        let bytes = std::mem::take(&mut self.bytes);
        if !bytes.is_empty() {
            file.write_at(self.position, bytes).await.map_err(|error| SegmentsError::write(&path, error))?;
        }
        if let Some(index) = self.seal.clone() {
            file.set_len(self.end).await.map_err(|error| SegmentsError::write(&path, error))?;
            if !planted!("sealed-segment-not-synced") {
                file.sync().await.map_err(|error| SegmentsError::sync(&path, error))?;
            }
            reached!("segment sealed");
            let index_path = path.with_extension("idx");
            disk::replace_file(disk, &index_path, index)
                .await
                .map_err(|error| SegmentsError::write(&index_path, error))?;
        } else if sync {
            file.sync().await.map_err(|error| SegmentsError::sync(&path, error))?;
            if let Some(index) = self.index_so_far.take() {
                self.indexed = write_index_so_far(disk, &path.with_extension("idx"), index).await?;
            }
        }
        Ok(())
    }

    async fn open(&mut self, disk: &dyn Disk) -> Result<Arc<dyn DiskFile>, SegmentsError> {
        if let Some(file) = &self.handle {
            return Ok(file.clone());
        }
        let mode = if self.create { OpenMode::CreateNew } else { OpenMode::Existing };
        let opened = match disk.open(&self.path, mode, Lane::Bulk).await {
            // What an open created and then failed at, or a crash left behind, is a name without a meaning: its bytes are written anew. No
            // simulated disk fails half way through an open, and opening segments removes what crashes leave.
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                disk.open(&self.path, OpenMode::Existing, Lane::Bulk).await
            }
            opened => opened,
        };
        let file = opened.map_err(|error| SegmentsError::write(&self.path, error))?;
        self.handle = Some(file.clone());
        Ok(file)
    }
}

/// Writes over what is there: torn, its checksums tell. False without room: it is left for the next time.
async fn write_index_so_far(disk: &dyn Disk, path: &Path, index: Bytes) -> Result<bool, SegmentsError> {
    let file = match disk.open(path, OpenMode::Existing, Lane::Bulk).await {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            disk.open(path, OpenMode::CreateNew, Lane::Bulk).await
        }
        file => file,
    };
    let written = match file {
        Ok(file) => file.write_at(0, vec![index]).await,
        Err(error) => Err(error),
    };
    match written.map_err(|error| SegmentsError::write(path, error)) {
        Err(error) if error.is_no_space() => {
            reached!("no room for the index of the active segment");
            Ok(false)
        }
        written => written.map(|()| true),
    }
}
