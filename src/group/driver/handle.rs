//! What the rest of the node holds of the driver: commands go in, views come out.
//!
//! Refuses to know how anything is done. Groups are divided among loops; whoever holds a handle need not know. Appends
//! have a queue of their own, so that they can wait (the journal is over its cap) while reads and everything else go on.
//! Both queues of a loop are bounded; a full one makes the sender wait.

use crate::group::effects::{Answer, ProposeError};
use crate::group::machine::StateMachine;
use crate::group::replica::{ReplicaStatus, Role};
use crate::ids::{Digest, GroupId, LogIndex, NodeId, Offset, ReplicaId, Term, TimestampMs};
use crate::journal::base::Base;
use crate::segments::verdict::Verdict;
use crate::segments::{ReadBatch, SegmentsError};
use crate::watch;
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use tokio::sync::{mpsc, oneshot};

/// Commands that wait in one queue of the driver before senders wait.
const QUEUE_LEN: usize = 4_096;

/// A command that was agreed on, applied here, and durable on a majority.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Committed {
    /// Index of the entry that holds the command.
    pub index: LogIndex,
    /// The entry's term.
    pub term: Term,
    /// The log's time at the entry.
    pub timestamp: TimestampMs,
    /// What the state machine decided.
    pub verdict: Verdict,
    /// The chain after the entry.
    pub chain: Digest,
}

/// Why a command has no verdict.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    /// The replica refused it or lost it; says itself whether it may have happened.
    #[error(transparent)]
    Propose(#[from] ProposeError),
    /// This node hosts no replica of the group. It did not happen.
    #[error("this node hosts no replica of group {0}")]
    NotHosted(GroupId),
    /// No majority of the group's nodes keeps its reserve of disk space. It did not happen.
    #[error("the disks of nodes {full:?} are full: no majority of group {group} keeps its reserve free")]
    DiskFull {
        /// The group.
        group: GroupId,
        /// Nodes whose reserve is reached.
        full: Vec<NodeId>,
    },
    /// The journal holds as much as it may until segments are synced. It did not happen.
    #[error("the journal holds as much as it may; the disk does not keep up")]
    JournalFull,
    /// The node is stopping. If the command was handed over before, it may have happened.
    #[error("the node is shutting down")]
    ShuttingDown {
        /// Whether the command had been handed to the replica already.
        handed_over: bool,
    },
}

impl CommandError {
    /// Whether the command may take effect all the same.
    #[must_use]
    pub fn may_have_happened(&self) -> bool {
        match self {
            CommandError::Propose(error) => error.may_have_happened(),
            CommandError::ShuttingDown { handed_over } => *handed_over,
            CommandError::NotHosted(_) | CommandError::DiskFull { .. } | CommandError::JournalFull => false,
        }
    }
}

impl CommandError {
    /// Whether another node, or this one a little later, may do it.
    #[must_use]
    pub fn is_not_leader(&self) -> bool {
        match self {
            CommandError::Propose(error) => error.is_not_leader(),
            CommandError::NotHosted(_) => true,
            CommandError::DiskFull { .. } | CommandError::JournalFull | CommandError::ShuttingDown { .. } => false,
        }
    }
}

/// How a command ended.
pub type Outcome = Result<Committed, CommandError>;

/// Where the outcome of a command goes. Whoever hands over many shares one channel and tells them apart by number.
pub enum Waiter {
    /// One answer.
    Once(oneshot::Sender<Outcome>),
    /// One of many; the receiver bounds how many it has under way.
    Numbered {
        /// The asker's number.
        number: u64,
        /// Where its outcomes go.
        to: mpsc::UnboundedSender<(u64, Outcome)>,
    },
    /// Another node passed it on.
    Forwarded(crate::peers::Responder),
}

impl Waiter {
    /// Hands the outcome over; a receiver that is gone is fine.
    pub fn answer(self, outcome: Outcome) {
        match self {
            Waiter::Once(to) => drop(to.send(outcome)),
            Waiter::Numbered { number, to } => drop(to.send((number, outcome))),
            Waiter::Forwarded(responder) => super::forwarded::answer(responder, outcome),
        }
    }
}

/// What others on this node may see of a group.
#[derive(Clone, Debug)]
pub struct GroupView<V> {
    /// This replica's role.
    pub role: Role,
    /// This replica.
    pub id: ReplicaId,
    /// Who leads, as far as this replica knows.
    pub leader: Option<ReplicaId>,
    /// This replica's term.
    pub term: Term,
    /// The first offset that can be read here.
    pub start: Offset,
    /// The first absent offset, as applied here.
    pub tail: Offset,
    /// The chain as of the tail.
    pub chain: Digest,
    /// The replicas that vote.
    pub voters: Vec<ReplicaId>,
    /// The state machine's own view.
    pub machine: V,
}

/// The groups hosted here, each with its view.
pub type Directory<V> = BTreeMap<GroupId, watch::Receiver<GroupView<V>>>;

/// What a reader got.
#[derive(Debug)]
pub enum ReadOutcome {
    /// Batches from the wanted offset on.
    Batches(Vec<ReadBatch>),
    /// Nothing is there yet.
    AtTail(Offset),
    /// It was trimmed.
    Trimmed {
        /// The first offset that can be read.
        start: Offset,
    },
    /// It is not committed.
    PastTail {
        /// The first absent offset.
        tail: Offset,
    },
    /// The file went while it was about to be read: ask again.
    Moved,
    /// The segment is damaged or the disk failed.
    Failed(SegmentsError),
}

/// A linearizable point of a group's log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TailPoint {
    /// The first offset that can be read.
    pub start: Offset,
    /// The first absent offset.
    pub tail: Offset,
    /// The chain as of the tail.
    pub chain: Digest,
}

/// How this node and its replicas stand.
#[derive(Clone, Debug, Default)]
pub struct DriverStatus {
    /// All replicas here.
    pub replicas: BTreeMap<GroupId, ReplicaStatus>,
    /// Nodes whose free space is below their reserve, as far as they told.
    pub full: Vec<NodeId>,
}

/// One append on its way to the driver.
pub struct Append {
    /// The group it is for.
    pub group: GroupId,
    /// The state machine's command.
    pub command: Bytes,
    /// Who waits.
    pub waiter: Waiter,
}

/// Everything else the driver is asked.
pub enum Command {
    /// A tail that is at least as new as every append acknowledged before the call.
    Tail {
        /// The group.
        group: GroupId,
        /// Who waits.
        reply: oneshot::Sender<Result<TailPoint, CommandError>>,
    },
    /// Batches from an offset on.
    Read {
        /// The group.
        group: GroupId,
        /// The first wanted offset.
        from: Offset,
        /// About how many bytes to return; one batch is always returned whole.
        bytes_max: usize,
        /// Who waits.
        reply: oneshot::Sender<Result<ReadOutcome, CommandError>>,
    },
    /// The first offset whose log time is at or after a time.
    OffsetForTime {
        /// The group.
        group: GroupId,
        /// The time.
        time: TimestampMs,
        /// Who waits.
        reply: oneshot::Sender<Result<Result<Offset, SegmentsError>, CommandError>>,
    },
    /// Start hosting a group, by the catalog's word. One that is hosted already is fine.
    Host {
        /// The group.
        group: GroupId,
        /// This node's replica.
        id: ReplicaId,
        /// Where it starts.
        base: Base,
    },
    /// Stop hosting a group for good, by the catalog's word.
    Remove {
        /// The group.
        group: GroupId,
    },
    /// Hand leadership to another replica.
    Transfer {
        /// The group.
        group: GroupId,
        /// The node that shall lead.
        to: NodeId,
        /// Who waits: answered once asked, not once done.
        reply: oneshot::Sender<Result<(), CommandError>>,
    },
    /// State of all replicas here, and which nodes' disks are full.
    Status {
        /// Who waits.
        reply: oneshot::Sender<DriverStatus>,
    },
    /// Hand over all leadership, then stop. Answered when no group is led here any more, or the time is up.
    HandOver {
        /// Who waits.
        reply: oneshot::Sender<()>,
    },
}

/// A replica here became the leader and has committed in its term.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Led {
    /// The group it leads.
    pub group: GroupId,
    /// Its term.
    pub term: Term,
}

/// Which of so many loops owns the group.
#[must_use]
pub fn loop_of(group: GroupId, loops: usize) -> usize {
    (group.0 % loops as u64) as usize
}

/// Cheap to clone; every part of the node that needs groups holds one.
pub struct DriverHandle<S: StateMachine> {
    loops: Arc<[LoopHandle<S>]>,
}

impl<S: StateMachine> Clone for DriverHandle<S> {
    fn clone(&self) -> Self {
        DriverHandle { loops: self.loops.clone() }
    }
}

/// The way to one loop.
pub(super) struct LoopHandle<S: StateMachine> {
    appends: mpsc::Sender<Append>,
    commands: mpsc::Sender<Command>,
    directory: watch::Receiver<Arc<Directory<S::View>>>,
}

/// A loop's ends of the queues.
pub(super) struct Queues<V> {
    pub appends: mpsc::Receiver<Append>,
    pub commands: mpsc::Receiver<Command>,
    pub directory: watch::Sender<Arc<Directory<V>>>,
}

/// The way to a loop, and the ends it leads to.
pub(super) fn queues<S: StateMachine>() -> (LoopHandle<S>, Queues<S::View>) {
    let (appends, appends_end) = mpsc::channel(QUEUE_LEN);
    let (commands, commands_end) = mpsc::channel(QUEUE_LEN);
    let (directory_end, directory) = watch::channel(Arc::new(BTreeMap::new()));
    let ends = Queues { appends: appends_end, commands: commands_end, directory: directory_end };
    (LoopHandle { appends, commands, directory }, ends)
}

impl<S: StateMachine> LoopHandle<S> {
    async fn command(&self, command: Command) -> Result<(), CommandError> {
        self.commands.send(command).await.map_err(|_| CommandError::ShuttingDown { handed_over: false })
    }

    async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Result<T, CommandError> {
        let (reply, answer) = oneshot::channel();
        self.command(command(reply)).await?;
        answer.await.map_err(|_| CommandError::ShuttingDown { handed_over: true })
    }

    /// See [`DriverHandle::append_all`].
    async fn append_all(&self, appends: &mut Vec<Append>) -> Result<(), CommandError> {
        while !appends.is_empty() {
            let count = appends.len().min(QUEUE_LEN);
            let places = self.appends.reserve_many(count).await;
            let places = places.map_err(|_| CommandError::ShuttingDown { handed_over: false })?;
            for (place, append) in places.zip(appends.drain(..count)) {
                place.send(append);
            }
        }
        Ok(())
    }
}

impl<S: StateMachine> DriverHandle<S> {
    pub(super) fn new(loops: Vec<LoopHandle<S>>) -> DriverHandle<S> {
        DriverHandle { loops: loops.into() }
    }

    fn of(&self, group: GroupId) -> &LoopHandle<S> {
        &self.loops[loop_of(group, self.loops.len())]
    }

    /// Proposes a command and waits for its verdict.
    ///
    /// # Errors
    /// See [`CommandError`], which says whether the command may have happened.
    pub async fn propose(&self, group: GroupId, command: Bytes) -> Outcome {
        let (reply, outcome) = oneshot::channel();
        self.append(Append { group, command, waiter: Waiter::Once(reply) }).await?;
        outcome.await.unwrap_or(Err(CommandError::ShuttingDown { handed_over: true }))
    }

    /// Hands an append over; its outcome goes to its waiter. Waits while the queue is full. Appends to a group are proposed in the order in
    /// which they are handed over.
    ///
    /// # Errors
    /// If the node is shutting down; the append did not happen.
    pub async fn append(&self, append: Append) -> Result<(), CommandError> {
        self.of(append.group).appends.send(append).await.map_err(|_| CommandError::ShuttingDown { handed_over: false })
    }

    /// Hands several over, each group's in their order, and empties `appends`. Waits while a queue is full.
    ///
    /// # Errors
    /// If the node is shutting down; what is left in `appends` did not happen. Not to be dropped half way: what is on its way to a loop would go
    /// unanswered.
    pub async fn append_all(&self, appends: &mut Vec<Append>) -> Result<(), CommandError> {
        if let [only] = &self.loops[..] {
            return only.append_all(appends).await;
        }
        for (place, taker) in self.loops.iter().enumerate() {
            let is_its = |append: &mut Append| loop_of(append.group, self.loops.len()) == place;
            let mut part: Vec<Append> = appends.extract_if(.., is_its).collect();
            let handed = taker.append_all(&mut part).await;
            appends.append(&mut part); // what it did not take
            handed?;
        }
        Ok(())
    }

    /// The view of a group hosted here.
    #[must_use]
    pub fn view(&self, group: GroupId) -> Option<watch::Receiver<GroupView<S::View>>> {
        self.of(group).directory.borrow().get(&group).cloned()
    }

    /// The view of a group, once it is hosted here. None if the node ends first.
    pub async fn view_once_hosted(&self, group: GroupId) -> Option<watch::Receiver<GroupView<S::View>>> {
        let mut directory = self.of(group).directory.clone();
        let hosting = directory.wait_for(|groups| groups.contains_key(&group)).await;
        hosting.ok().and_then(|groups| groups.get(&group).cloned())
    }

    /// The groups hosted here.
    #[must_use]
    pub fn hosted(&self) -> BTreeSet<GroupId> {
        let keys = |taker: &LoopHandle<S>| taker.directory.borrow().keys().copied().collect::<Vec<_>>();
        self.loops.iter().flat_map(keys).collect()
    }

    /// A linearizable tail.
    ///
    /// # Errors
    /// If no majority answers in time, or the group isn't hosted here.
    pub async fn tail(&self, group: GroupId) -> Result<TailPoint, CommandError> {
        self.of(group).ask(|reply| Command::Tail { group, reply }).await?
    }

    /// Batches from `from` on, about `bytes_max` of them, at least one if there is one.
    ///
    /// # Errors
    /// If the group isn't hosted here.
    pub async fn read(&self, group: GroupId, from: Offset, bytes_max: usize) -> Result<ReadOutcome, CommandError> {
        self.of(group).ask(|reply| Command::Read { group, from, bytes_max, reply }).await?
    }

    /// The first offset whose log time is at or after `time`; the tail if nothing is that young.
    ///
    /// # Errors
    /// If the group isn't hosted here; the inner one if the segment can't be read.
    pub async fn offset_for_time(
        &self,
        group: GroupId,
        time: TimestampMs,
    ) -> Result<Result<Offset, SegmentsError>, CommandError> {
        self.of(group).ask(|reply| Command::OffsetForTime { group, time, reply }).await?
    }

    /// Starts hosting a group.
    ///
    /// # Errors
    /// If the node is shutting down.
    pub async fn host(&self, group: GroupId, id: ReplicaId, base: Base) -> Result<(), CommandError> {
        self.of(group).command(Command::Host { group, id, base }).await
    }

    /// Stops hosting a group, for good.
    ///
    /// # Errors
    /// If the node is shutting down.
    pub async fn remove(&self, group: GroupId) -> Result<(), CommandError> {
        self.of(group).command(Command::Remove { group }).await
    }

    /// Asks the leader, if it is here, to hand over to the replica on `to`.
    ///
    /// # Errors
    /// If the leader isn't here.
    pub async fn transfer(&self, group: GroupId, to: NodeId) -> Result<(), CommandError> {
        self.of(group).ask(|reply| Command::Transfer { group, to, reply }).await?
    }

    /// State of all replicas here, and which nodes' disks are full.
    ///
    /// # Errors
    /// If the node is shutting down.
    pub async fn status(&self) -> Result<DriverStatus, CommandError> {
        let asked = self.loops.iter().map(|one| one.ask(|reply| Command::Status { reply }));
        let statuses = futures::future::try_join_all(asked).await?;
        let mut whole = DriverStatus::default();
        for DriverStatus { replicas, full } in statuses {
            whole.replicas.extend(replicas);
            whole.full.extend(full);
        }
        whole.full.sort_unstable();
        whole.full.dedup();
        Ok(whole)
    }

    /// Hands over all leadership; returns once none is left here or the time is up.
    ///
    /// # Errors
    /// If the driver is gone already.
    pub async fn hand_over(&self) -> Result<(), CommandError> {
        let asked = self.loops.iter().map(|one| one.ask(|reply| Command::HandOver { reply }));
        futures::future::join_all(asked).await.into_iter().collect()
    }
}

/// What an answer of the replica means to whoever proposed.
pub(super) fn outcome_of(answer: Answer) -> Outcome {
    match answer {
        Answer::Applied { index, term, timestamp, verdict, chain } => {
            Ok(Committed { index, term, timestamp, verdict, chain })
        }
        Answer::Failed(error) => Err(error.into()),
        Answer::ReadAt { .. } => unreachable!("a read's answer never goes to a proposal"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metadata::Machine;

    #[tokio::test]
    async fn each_append_goes_to_the_loop_that_owns_its_group_in_order_and_what_is_not_taken_stays() {
        let (loops, mut ends): (Vec<_>, Vec<_>) = (0..3).map(|_| queues::<Machine>()).unzip();
        let handle = DriverHandle::new(loops);
        let append = |(number, group): (u64, &u64)| {
            let (to, _) = mpsc::unbounded_channel();
            Append { group: GroupId(*group), command: Bytes::new(), waiter: Waiter::Numbered { number, to } }
        };
        let groups = [4, 0, 1, 3, 1, 7];
        let mut appends: Vec<Append> = (0..).zip(&groups).map(append).collect();
        handle.append_all(&mut appends).await.expect("all are there");
        assert!(appends.is_empty());
        let taken = |ends: &mut Queues<_>| {
            let appends = std::iter::from_fn(|| ends.appends.try_recv().ok());
            let told = |append: Append| match append.waiter {
                Waiter::Numbered { number, .. } => (append.group.0, number),
                _ => panic!("all are numbered"),
            };
            appends.map(told).collect::<Vec<_>>()
        };
        assert_eq!(taken(&mut ends[0]), [(0, 1), (3, 3)]);
        assert_eq!(taken(&mut ends[1]), [(4, 0), (1, 2), (1, 4), (7, 5)]);
        assert_eq!(taken(&mut ends[2]), []);
        ends.remove(1);
        let mut appends: Vec<Append> = (0..).zip(&groups).map(append).collect();
        assert_eq!(handle.append_all(&mut appends).await, Err(CommandError::ShuttingDown { handed_over: false }));
        let left: Vec<u64> = appends.iter().map(|append| append.group.0).collect();
        assert_eq!(left, [4, 1, 1, 7], "of the others two went out");
    }
}
