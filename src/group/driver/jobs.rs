//! What touches a disk: started here, performed elsewhere, and reported back to the loop.

use super::handle::{CommandError, ReadOutcome};
use crate::disk::Disk;
use crate::group::effects::Fetch;
use crate::group::untold::COMMIT_UNTOLD;
use crate::ids::{GroupId, Offset, ReplicaId, TimestampMs};
use crate::journal::base::Base;
use crate::segments::{
    BaseLocated, FlushDone, Located, LocatedEntries, ResetDone, Segments, SegmentsError, TimeLocated,
};
use raft::eraftpb::Entry;
use std::future::Future;
use std::io;
use std::path::Path;
use tokio::sync::{mpsc, oneshot};

/// A job that came back.
pub(super) enum JobDone {
    /// A new group's segments are open.
    Opened { group: GroupId, id: ReplicaId, base: Box<Base>, opened: Result<Box<Segments>, SegmentsError> },
    /// Frames were written, and synced if that was asked for.
    Flushed { group: GroupId, done: FlushDone },
    /// The segments start anew behind an installed snapshot.
    Reset { group: GroupId, done: Result<ResetDone, SegmentsError> },
    /// Files that are no longer part of the log are gone.
    Dropped { group: GroupId, done: Result<(), SegmentsError> },
    /// Entries for a follower that is far behind.
    FetchedEntries { group: GroupId, fetch: Fetch, entries: Result<Vec<Entry>, SegmentsError> },
    /// The oldest base, for a follower that is behind the log's start.
    FetchedBase { group: GroupId, base: Result<Base, SegmentsError> },
    /// Free space was looked at.
    Space { free_bytes: io::Result<u64> },
    /// Commits have waited long enough for an append that tells of them.
    CommitsDue,
    /// A removed group's files are gone.
    DirRemoved { result: io::Result<()> },
}

/// Runs a job and reports it.
pub(super) fn spawn(jobs: mpsc::UnboundedSender<JobDone>, job: impl Future<Output = JobDone> + Send + 'static) {
    tokio::spawn(async move {
        let _ = jobs.send(job.await);
    });
}

/// Looks at free space.
pub(super) fn check_space(disk: &dyn Disk, dir: &Path, jobs: mpsc::UnboundedSender<JobDone>) {
    let free_bytes = disk.free_bytes(dir);
    spawn(jobs, async move { JobDone::Space { free_bytes: free_bytes.await } });
}

/// Lets commits wait for an append that tells of them.
pub(super) fn commits_due(jobs: mpsc::UnboundedSender<JobDone>) {
    spawn(jobs, async move {
        tokio::time::sleep(COMMIT_UNTOLD).await;
        JobDone::CommitsDue
    });
}

/// Removes a group's directory.
pub(super) fn remove_dir(disk: &dyn Disk, dir: &Path, jobs: mpsc::UnboundedSender<JobDone>) {
    let removed = disk.remove_dir_all(dir);
    spawn(jobs, async move { JobDone::DirRemoved { result: removed.await } });
}

/// Answers a reader: at once from memory, else after a read of the file.
pub(super) fn read(
    segments: &Segments,
    start: Offset,
    from: Offset,
    bytes_max: usize,
    reply: oneshot::Sender<Result<ReadOutcome, CommandError>>,
) {
    let tail = segments.tail();
    if from < start {
        let _ = reply.send(Ok(ReadOutcome::Trimmed { start }));
        return;
    }
    let outcome = match segments.locate(from, bytes_max) {
        Located::Cached(batches) => ReadOutcome::Batches(batches),
        Located::AtTail if from > tail => ReadOutcome::PastTail { tail },
        Located::AtTail => ReadOutcome::AtTail(tail),
        Located::Trimmed { start } => ReadOutcome::Trimmed { start },
        Located::Cold(read) => {
            tokio::spawn(async move {
                let outcome = match read.run().await {
                    Ok(batches) => ReadOutcome::Batches(batches),
                    Err(SegmentsError::Removed { .. }) => ReadOutcome::Moved,
                    Err(error) => ReadOutcome::Failed(error),
                };
                let _ = reply.send(Ok(outcome));
            });
            return;
        }
    };
    let _ = reply.send(Ok(outcome));
}

/// Answers a question for an offset by time.
pub(super) fn offset_for_time(
    segments: &Segments,
    time: TimestampMs,
    reply: oneshot::Sender<Result<Result<Offset, SegmentsError>, CommandError>>,
) {
    match segments.offset_for_time(time) {
        TimeLocated::Known(offset) => drop(reply.send(Ok(Ok(offset)))),
        TimeLocated::Cold(read) => {
            tokio::spawn(async move {
                let _ = reply.send(Ok(read.run().await));
            });
        }
    }
}

/// Gets what a replica asked for out of its group's segments.
pub(super) fn fetch(group: GroupId, segments: &Segments, fetch: Fetch, jobs: mpsc::UnboundedSender<JobDone>) {
    match fetch {
        Fetch::Base => match segments.oldest_base() {
            BaseLocated::Known(base) => drop(jobs.send(JobDone::FetchedBase { group, base: Ok(*base) })),
            BaseLocated::Cold(read) => {
                spawn(jobs, async move { JobDone::FetchedBase { group, base: read.run().await } });
            }
        },
        Fetch::Entries { lo, hi, bytes_max, .. } => match segments.entries(lo, hi, bytes_max) {
            LocatedEntries::Cached(entries) => {
                let _ = jobs.send(JobDone::FetchedEntries { group, fetch, entries: Ok(entries) });
            }
            LocatedEntries::Compacted { .. } => {
                let _ = jobs.send(JobDone::FetchedEntries { group, fetch, entries: Ok(Vec::new()) });
            }
            LocatedEntries::Cold(read) => {
                spawn(jobs, async move { JobDone::FetchedEntries { group, fetch, entries: read.run().await } });
            }
        },
    }
}
