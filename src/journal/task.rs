//! The task that owns the journal: group commit.
//!
//! While a round is on its way to the disk, everything that the groups submit queues up; the next round takes all of
//! it, with one write and one sync. A lone submission waits for nobody. When nothing came for a moment the task records
//! that all is synced and catches up on preparations, then it sleeps until something comes; it never wakes up by
//! itself.
//!
//! Several loops of a driver may share it: each has a handle with numbers and reports of its own, and what they submit shares
//! rounds.
//!
//! The queues are unbounded on purpose: the driver submits one round at a time and bounds what it has in flight by
//! bytes (`WantBases { over_cap }` tells it to hold appends back), so a bound here could only be reached by a bug, and
//! a writer that blocks would stall votes and heartbeats. When the last handle is dropped, the task writes what is queued,
//! and a mark, and ends.

use super::core::{IdleProgress, Journal};
use super::error::JournalError;
use super::GroupWrite;
use crate::ids::GroupId;
use crate::planted;
use slog::{error, Logger};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

/// How long nothing comes before the journal counts as idle.
const IDLE_AFTER: Duration = Duration::from_millis(20);

struct Submission {
    /// Which of the handles it came by.
    by: usize,
    number: u64,
    writes: Vec<GroupWrite>,
}

/// What the task is asked for.
enum Order {
    Round(Submission),
    Close(oneshot::Sender<()>),
}

/// Submits rounds to the journal's task. Each handle numbers its own, and has its own reports.
#[derive(Clone)]
pub struct JournalHandle {
    me: usize,
    orders: mpsc::UnboundedSender<Order>,
}

impl JournalHandle {
    /// Queues a round; never waits. Numbers ascend. If the task has stopped the round is dropped: the failure was
    /// reported.
    pub fn submit(&self, number: u64, writes: Vec<GroupWrite>) {
        let _ = self.orders.send(Order::Round(Submission { by: self.me, number, writes }));
    }

    /// For a clean stop: waits until what was submitted is written, and recorded as synced, or that has failed. What is
    /// submitted later is dropped, and never reported as synced. The end of a process waits for no task: without this the
    /// last rounds would look like those of a crash, whose rot can't be told from a torn write.
    pub async fn close(&self) {
        let (closed, done) = oneshot::channel();
        let _ = self.orders.send(Order::Close(closed));
        let _ = done.await; // an error: the task is gone, there is nothing to wait for
    }
}

/// What the task reports. A channel that closes without `Failed`, while the handle lives, is a failure too.
#[derive(Clone, Debug)]
pub enum JournalReport {
    /// All submissions of this handle up to this number are durable.
    Synced {
        /// The highest of them.
        through: u64,
    },
    /// These groups hold much that a new base would let the journal forget. Sent to all when there is something new to say:
    /// what was asked for stands until the group's base has moved.
    WantBases {
        /// Whom to ask, now.
        groups: Vec<GroupId>,
        /// The cap is passed: appends must wait until a report says that it no longer is.
        over_cap: bool,
    },
    /// The journal has stopped; the node must, too. What was submitted and not reported as synced *may have happened*. Sent to all.
    Failed(Arc<JournalError>),
}

/// A handle, and where its reports come.
pub type JournalEnds = (JournalHandle, mpsc::UnboundedReceiver<JournalReport>);

/// Starts the task that writes rounds, with so many handles on it.
#[must_use]
pub fn spawn(journal: Journal, handles: usize, log: Logger) -> Vec<JournalEnds> {
    let (orders, queue) = mpsc::unbounded_channel();
    let (reports, reported): (Vec<_>, Vec<_>) = (0..handles).map(|_| mpsc::unbounded_channel()).unzip();
    let writer = Writer { journal, queue, reports: Reports(reports) };
    tokio::spawn(async move {
        let reports = writer.reports.clone();
        if let Err(failure) = writer.run().await {
            error!(log, "the journal has stopped"; "error" => %failure);
            reports.to_all(&JournalReport::Failed(Arc::new(failure)));
        }
    });
    let handle = |me| JournalHandle { me, orders: orders.clone() };
    reported.into_iter().enumerate().map(|(me, reported)| (handle(me), reported)).collect()
}

/// Where the reports of each handle go.
#[derive(Clone)]
struct Reports(Vec<mpsc::UnboundedSender<JournalReport>>);

impl Reports {
    fn to_all(&self, report: &JournalReport) {
        for reports in &self.0 {
            let _ = reports.send(report.clone());
        }
    }

    /// Tells each handle through which of its own submissions all is durable.
    fn synced(&self, through: &[Option<u64>]) {
        let highest = through.iter().copied().max().flatten();
        for (reports, through) in self.0.iter().zip(through) {
            let taken_for_own = planted!("sync-of-another-loop-taken-for-own");
            if let Some(through) = if taken_for_own { highest } else { *through } {
                let _ = reports.send(JournalReport::Synced { through });
            }
        }
    }
}

struct Writer {
    journal: Journal,
    queue: mpsc::UnboundedReceiver<Order>,
    reports: Reports,
}

impl Writer {
    async fn run(mut self) -> Result<(), JournalError> {
        let mut more = true;
        loop {
            let first = if more { self.next_or_idle().await? } else { self.queue.recv().await.map(Next::Ordered) };
            match first {
                Some(Next::Ordered(Order::Round(first))) => {
                    if let Some(closed) = self.write(first).await? {
                        return self.close(closed).await;
                    }
                    more = true;
                }
                Some(Next::Ordered(Order::Close(closed))) => return self.close(closed).await,
                Some(Next::NothingToDo) => more = false,
                None => break,
            }
        }
        self.journal.idle_step().await.map(drop) // a clean stop leaves it on record that all is synced
    }

    /// Writes everything that is queued, as one round. Gives who asked meanwhile for the journal to be closed.
    async fn write(&mut self, first: Submission) -> Result<Option<oneshot::Sender<()>>, JournalError> {
        let Submission { by, number, mut writes } = first;
        let mut through = vec![None; self.reports.0.len()];
        through[by] = Some(number);
        let mut closing = None;
        while let Ok(next) = self.queue.try_recv() {
            match next {
                Order::Round(next) => {
                    through[next.by] = Some(next.number);
                    writes.extend(next.writes);
                }
                Order::Close(closed) => {
                    closing = Some(closed);
                    break;
                }
            }
        }
        if !writes.is_empty() {
            self.journal.write_round(writes).await?;
        }
        self.reports.synced(&through);
        if let Some((groups, over_cap)) = self.journal.wanted_bases() {
            self.reports.to_all(&JournalReport::WantBases { groups, over_cap });
        }
        Ok(closing)
    }

    /// Records that all is synced, and writes nothing more.
    async fn close(&mut self, closed: oneshot::Sender<()>) -> Result<(), JournalError> {
        self.journal.idle_step().await?;
        let _ = closed.send(());
        while let Some(order) = self.queue.recv().await {
            drop(order);
        }
        Ok(())
    }

    /// The next submission; or, when none comes for a moment, one idle step after the other until one does or all is
    /// done.
    async fn next_or_idle(&mut self) -> Result<Option<Next>, JournalError> {
        if let Ok(next) = tokio::time::timeout(IDLE_AFTER, self.queue.recv()).await {
            return Ok(next.map(Next::Ordered));
        }
        loop {
            match self.journal.idle_step().await? {
                IdleProgress::More => {}
                IdleProgress::Done => return Ok(Some(Next::NothingToDo)),
                IdleProgress::Background => {
                    tokio::select! {
                        biased;
                        next = self.queue.recv() => return Ok(next.map(Next::Ordered)),
                        done = self.journal.background() => done?,
                    }
                }
            }
            match self.queue.try_recv() {
                Ok(next) => return Ok(Some(Next::Ordered(next))),
                Err(mpsc::error::TryRecvError::Disconnected) => return Ok(None),
                Err(mpsc::error::TryRecvError::Empty) => {}
            }
        }
    }
}

enum Next {
    Ordered(Order),
    NothingToDo,
}
