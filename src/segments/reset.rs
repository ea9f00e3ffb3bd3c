//! A snapshot replaces the log: a new first segment with the snapshot as its base, and the old ones go.
//!
//! The order that a crash at any point survives: (0) a flush that is under way ends; (1) the new segment is written and synced under
//! its name; (2) the caller journals the base; (3) the old files are dropped. Opening with the old base finds the old segments and
//! drops the new one; opening with the new base, or any later one, finds that the new segment starts the log and drops what is older.
//!
//! Without (0) the flush could make an old file anew behind (3): unsynced, never dropped again, and taken for a damaged part of the log
//! once the segment that started it was trimmed (seen in the simulator).

use super::header::SegmentHeader;
use super::trim::DropJob;
use super::{Segment, Segments, SegmentsError};
use crate::disk::{self, Disk};
use crate::journal::base::Base;
use crate::{planted, reached};
use bytes::Bytes;
use std::path::Path;
use std::sync::Arc;

/// A reset that is not finished.
pub(super) struct Resetting {
    path: Arc<Path>,
    pub header: Bytes,
    /// The old segments' files, to be dropped at the end.
    old: Vec<Arc<Path>>,
    tried: bool,
}

/// Writes and syncs the new first segment.
#[must_use = "nothing is flushed until the reset is finished"]
pub struct ResetJob {
    disk: Arc<dyn Disk>,
    path: Arc<Path>,
    header: Bytes,
}

/// The new first segment is in place and durable: the base may be journaled, then [`Segments::finish_reset`] called.
#[derive(Debug)]
#[must_use = "nothing is flushed until the reset is finished"]
pub struct ResetDone {
    path: Arc<Path>,
}

impl Segments {
    /// Replaces everything by `base`. Appends go on right behind it, in memory; reads see only what follows it. Nothing is
    /// flushed before [`Segments::finish_reset`]; the files follow with [`Segments::begin_reset`].
    pub fn reset(&mut self, base: Base) {
        let unfinished = self.resetting.take().map(|reset| reset.old).unwrap_or_default();
        let old = self.segments.iter().map(|segment| segment.path.clone());
        let segment = Segment::new(&self.dir, self.options.group, base.clone(), true);
        let old = unfinished.into_iter().chain(old).filter(|path| *path != segment.path).collect();
        let header = SegmentHeader { group: self.options.group, starts_log: true, base: base.clone() }.encode();
        let path = segment.path.clone();
        let summary = segment.summary.clone();
        self.segments.clear();
        self.segments.push_back(Segment::written(path.clone(), summary, segment.index));
        self.cache.clear();
        self.shelf.clear();
        self.agreed_start = base.tail;
        (self.written_through, self.synced_through) = (base.index, base.index);
        if planted!("off-by-one-after-install") {
            self.written_through = base.index.next();
        }
        self.synced_bytes = self.appended_bytes;
        self.life += 1;
        self.resetting = Some(Resetting { path, header, old, tried: false });
    }

    /// The job that puts the new first segment in place. To be asked for after [`Segments::reset`], and again when a flush has ended
    /// or when there is room after the job found none. `None` while a flush is under way, or if no reset is.
    pub fn begin_reset(&mut self) -> Option<ResetJob> {
        let reset = self.resetting.as_mut()?;
        if self.flushing && !planted!("snapshot-overtakes-a-flush") {
            reached!("snapshot waits for the end of a flush");
            return None;
        }
        if std::mem::replace(&mut reset.tried, true) {
            reached!("snapshot's first segment tried again after want of room");
        }
        Some(ResetJob { disk: self.disk.clone(), path: reset.path.clone(), header: reset.header.clone() })
    }

    /// The base is journaled: flushes begin again, and the job that comes back drops the old segments' files. `None` if a
    /// later reset has taken this one's place.
    pub fn finish_reset(&mut self, done: ResetDone) -> Option<DropJob> {
        if self.resetting.as_ref()?.path != done.path {
            return None;
        }
        let reset = self.resetting.take()?;
        reached!("segments start anew behind a snapshot");
        self.base_moved(self.oldest().summary.base_index);
        Some(self.drop_files(reset.old))
    }
}

impl ResetJob {
    /// Writes the new first segment.
    ///
    /// # Errors
    /// `NoSpace`: repeat it later with [`Segments::begin_reset`]. Any other: the node stops.
    pub async fn run(self) -> Result<ResetDone, SegmentsError> {
        let written = disk::replace_file(&*self.disk, &self.path, self.header).await;
        written.map_err(|error| SegmentsError::write(&self.path, error))?;
        Ok(ResetDone { path: self.path })
    }
}
