//! The task that owns the journal: group commit.
//!
//! While a round is on its way to the disk, everything that the groups submit queues up; the next round takes all of
//! it, with one write and one sync. A lone submission waits for nobody. When nothing came for a moment the task records
//! that all is synced and catches up on preparations, then it sleeps until something comes; it never wakes up by
//! itself.
//!
//! The queues are unbounded on purpose: the driver submits one round at a time and bounds what it has in flight by
//! bytes (`WantBases { over_cap }` tells it to hold appends back), so a bound here could only be reached by a bug, and
//! a writer that blocks would stall votes and heartbeats. When the handle is dropped, the task writes what is queued,
//! and a mark, and ends.

use super::core::{IdleProgress, Journal};
use super::error::JournalError;
use super::GroupWrite;
use crate::ids::GroupId;
use slog::{error, Logger};
use std::time::Duration;
use tokio::sync::mpsc;

/// How long nothing comes before the journal counts as idle.
const IDLE_AFTER: Duration = Duration::from_millis(20);

struct Submission {
    number: u64,
    writes: Vec<GroupWrite>,
}

/// Submits rounds to the journal's task.
#[derive(Clone)]
pub struct JournalHandle {
    submissions: mpsc::UnboundedSender<Submission>,
}

impl JournalHandle {
    /// Queues a round; never waits. Numbers ascend. If the task has stopped the round is dropped: the failure was
    /// reported.
    pub fn submit(&self, number: u64, writes: Vec<GroupWrite>) {
        let _ = self.submissions.send(Submission { number, writes });
    }
}

/// What the task reports. A channel that closes without `Failed`, while the handle lives, is a failure too.
#[derive(Debug)]
pub enum JournalReport {
    /// All submissions up to this number are durable.
    Synced {
        /// The highest of them.
        through: u64,
    },
    /// These groups hold much that a new base would let the journal forget. Sent when there is something new to say:
    /// what was asked for stands until the group's base has moved.
    WantBases {
        /// Whom to ask, now.
        groups: Vec<GroupId>,
        /// The cap is passed: appends must wait until a report says that it no longer is.
        over_cap: bool,
    },
    /// The journal has stopped; the node must, too. What was submitted and not reported as synced *may have happened*.
    Failed(JournalError),
}

/// Starts the task that writes rounds.
pub fn spawn(journal: Journal, log: Logger) -> (JournalHandle, mpsc::UnboundedReceiver<JournalReport>) {
    let (submissions, queue) = mpsc::unbounded_channel();
    let (reports, reported) = mpsc::unbounded_channel();
    let writer = Writer { journal, queue, reports };
    tokio::spawn(async move {
        let reports = writer.reports.clone();
        if let Err(failure) = writer.run().await {
            error!(log, "the journal has stopped"; "error" => %failure);
            let _ = reports.send(JournalReport::Failed(failure));
        }
    });
    (JournalHandle { submissions }, reported)
}

struct Writer {
    journal: Journal,
    queue: mpsc::UnboundedReceiver<Submission>,
    reports: mpsc::UnboundedSender<JournalReport>,
}

impl Writer {
    async fn run(mut self) -> Result<(), JournalError> {
        let mut more = true;
        loop {
            let first = if more { self.next_or_idle().await? } else { self.queue.recv().await.map(Next::Submitted) };
            match first {
                Some(Next::Submitted(first)) => {
                    self.write(first).await?;
                    more = true;
                }
                Some(Next::NothingToDo) => more = false,
                None => break,
            }
        }
        self.journal.idle_step().await.map(drop) // a clean stop leaves it on record that all is synced
    }

    /// Writes everything that is queued, as one round.
    async fn write(&mut self, first: Submission) -> Result<(), JournalError> {
        let Submission { number: mut through, mut writes } = first;
        while let Ok(next) = self.queue.try_recv() {
            through = next.number;
            writes.extend(next.writes);
        }
        if !writes.is_empty() {
            self.journal.write_round(writes).await?;
        }
        let _ = self.reports.send(JournalReport::Synced { through });
        if let Some((groups, over_cap)) = self.journal.wanted_bases() {
            let _ = self.reports.send(JournalReport::WantBases { groups, over_cap });
        }
        Ok(())
    }

    /// The next submission; or, when none comes for a moment, one idle step after the other until one does or all is
    /// done.
    async fn next_or_idle(&mut self) -> Result<Option<Next>, JournalError> {
        if let Ok(next) = tokio::time::timeout(IDLE_AFTER, self.queue.recv()).await {
            return Ok(next.map(Next::Submitted));
        }
        loop {
            match self.journal.idle_step().await? {
                IdleProgress::More => {}
                IdleProgress::Done => return Ok(Some(Next::NothingToDo)),
                IdleProgress::Background => {
                    tokio::select! {
                        biased;
                        next = self.queue.recv() => return Ok(next.map(Next::Submitted)),
                        done = self.journal.background() => done?,
                    }
                }
            }
            match self.queue.try_recv() {
                Ok(next) => return Ok(Some(Next::Submitted(next))),
                Err(mpsc::error::TryRecvError::Disconnected) => return Ok(None),
                Err(mpsc::error::TryRecvError::Empty) => {}
            }
        }
    }
}

enum Next {
    Submitted(Submission),
    NothingToDo,
}
