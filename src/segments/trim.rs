//! Drops whole segments that lie below the agreed start of the log.
//!
//! Files go one by one, oldest first, each removal synced before the next: what a crash leaves is always the newest part of
//! the log without a hole, so a hole is damage and can be told from a trim. All that is to go waits in one queue, and every
//! job works it off from its front: a trim never overtakes the removal of what a snapshot replaced.

use super::{Segments, SegmentsError};
use crate::disk::Disk;
use crate::ids::{LogIndex, Offset};
use crate::{planted, reached};
use std::collections::VecDeque;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The segments whose files are to go, oldest first. Locked for a look only, never across a wait.
#[derive(Default)]
pub(super) struct DropQueue {
    waiting: Mutex<VecDeque<Arc<Path>>>,
}

impl DropQueue {
    pub fn extend(&self, segments: impl IntoIterator<Item = Arc<Path>>) {
        self.lock().extend(segments);
    }

    fn front(&self) -> Option<Arc<Path>> {
        self.lock().front().cloned()
    }

    /// The oldest one is gone; another job may have said so before.
    fn gone(&self, path: &Arc<Path>) {
        let mut waiting = self.lock();
        if waiting.front().is_some_and(|front| Arc::ptr_eq(front, path)) {
            waiting.pop_front();
        }
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Arc<Path>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Removes the files of segments that are no longer part of the log: all that wait by then. Two at a time do no harm.
#[must_use = "the files stay on disk until this or a later one is run"]
pub struct DropJob {
    disk: Arc<dyn Disk>,
    dir: Arc<Path>,
    queue: Arc<DropQueue>,
}

impl Segments {
    /// Raises the agreed start of the log to `offset`, and lets go of the segments that lie wholly below it. The active one
    /// stays, and so do those that a flush or the journal's base (see [`Segments::base_moved`]) still needs: a base at the
    /// very end of a segment needs it too, because the next one, not yet synced, may not survive a crash. `None` if no file
    /// can go.
    pub fn drop_before(&mut self, offset: Offset) -> Option<DropJob> {
        self.agreed_start = self.agreed_start.max(offset);
        let mut dropped = Vec::new();
        while let [first, second, ..] = self.segments.make_contiguous() {
            let needed = second.summary.base_tail > self.agreed_start
                || first.summary.last_index >= self.recorded_base
                || !first.seal_written;
            if needed {
                break;
            }
            reached!("segment trimmed");
            dropped.extend(self.segments.pop_front().map(|segment| segment.path));
        }
        (!dropped.is_empty()).then(|| self.drop_files(dropped))
    }

    /// The last index of the oldest segment, and where its offsets end, if it is not the active one.
    #[must_use]
    pub fn oldest_sealed(&self) -> Option<(LogIndex, Offset)> {
        self.segments.get(1).map(|second| (second.summary.base_index, second.summary.base_tail))
    }

    /// Bytes of the segments that lie wholly below `offset` and would go if the journal's base were that of the newest entry.
    #[must_use]
    pub fn could_drop_before(&self, offset: Offset) -> u64 {
        if planted!("trim-waits-for-appends") {
            return 0;
        }
        let neighbours = self.segments.iter().zip(self.segments.iter().skip(1));
        let below = neighbours.take_while(|(segment, next)| {
            next.summary.base_tail <= offset && segment.summary.last_index < self.last_index()
        });
        below.map(|(segment, _)| segment.summary.end).sum()
    }

    /// A job that removes these segments' files, after those that wait already.
    pub(super) fn drop_files(&self, segments: Vec<Arc<Path>>) -> DropJob {
        self.drops.extend(segments);
        DropJob { disk: self.disk.clone(), dir: self.dir.clone(), queue: self.drops.clone() }
    }
}

impl DropJob {
    /// Removes the files.
    ///
    /// # Errors
    /// `WriteFailed` or `SyncFailed`: the node stops. What was not removed is looked at again when opening.
    pub async fn run(self) -> Result<(), SegmentsError> {
        while let Some(path) = self.queue.front() {
            remove(&*self.disk, &path).await?;
            self.disk.sync_dir(&self.dir).await.map_err(|error| SegmentsError::sync(&self.dir, error))?;
            remove(&*self.disk, &path.with_extension("idx")).await?;
            self.queue.gone(&path);
        }
        Ok(())
    }
}

/// Removes a file; one that is not there is fine.
pub(super) async fn remove(disk: &dyn Disk, path: &Path) -> Result<(), SegmentsError> {
    match disk.remove(path).await {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(SegmentsError::write(path, error)),
        _ => Ok(()),
    }
}
