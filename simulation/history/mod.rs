//! What clients saw of a run, and whether a replicated log that keeps its promises could have shown them that.
//!
//! Worlds record every operation with the moments it was invoked and returned, and, when all is healed, each node's whole
//! log. [`History::check`] then holds all of it against the rules in [`rules`]. It looks at nothing but what was recorded, knows
//! nothing of nodes or Raft, and takes n log n for n recorded records. Liveness is not judged here: worlds do that.
//!
//! Invariant: a record's payload number names it for good. An append of `count` records carries the numbers `payload`,
//! `payload + 1`, ... in its records; no two appends share one, unless they are attempts at the same batch of the same session.
//!
//! Part of the simulator and, for its own tests, of `tests/simulation.rs`; it therefore imports from nothing but itself.

mod by_time;
mod check;
mod fences;
mod leaders;
pub mod model;
pub mod mutations;
mod placed;
pub mod proof;
pub mod rules;
mod sweep;
#[cfg(test)]
mod tests;
mod watches;

use std::fmt;

/// A log: a partition of a topic, or a bare group.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct PartitionKey {
    /// The topic's UUID; zero for a bare group.
    pub topic: u128,
    /// The partition's number, or the group's.
    pub partition: u64,
}

impl fmt::Display for PartitionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.topic {
            0 => write!(f, "group {}", self.partition),
            topic => write!(f, "partition {} of {:08x}", self.partition, topic >> 96),
        }
    }
}

/// How an operation ended, as its client was told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome<T> {
    /// It happened.
    Ok(T),
    /// It definitely did not happen.
    Failed,
    /// It may have happened, or may still happen.
    Unknown,
}

/// What an acknowledged append was told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Receipt {
    /// Of its first record.
    pub offset: u64,
    /// Of the entry that holds it; 0 if the answer did not tell, or tells of a repeated append.
    pub term: u64,
}

/// A batch's place in its producer's session.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct SessionPlace {
    pub producer: u64,
    pub epoch: u32,
    /// Of the batch's first record; counts on over epochs.
    pub sequence: u64,
}

/// An append, or one attempt at it.
#[derive(Clone, PartialEq, Debug)]
pub struct Append {
    pub client: u32,
    pub partition: PartitionKey,
    /// The number that its first record carries; the next ones carry the following.
    pub payload: u64,
    pub count: u32,
    pub invoked_us: u64,
    pub returned_us: u64,
    pub outcome: Outcome<Receipt>,
    pub expected_offset: Option<u64>,
    pub session: Option<SessionPlace>,
}

/// A read, stale or not: the records it gave.
#[derive(Clone, PartialEq, Debug)]
pub struct Read {
    pub client: u32,
    pub partition: PartitionKey,
    pub invoked_us: u64,
    pub returned_us: u64,
    /// The first offset asked for.
    pub from: u64,
    /// Offsets and payload numbers, as they came.
    pub records: Vec<(u64, u64)>,
    pub through_node: u32,
}

/// A linearizable tail. A read that is not stale and ran to the tail is one too: record both.
#[derive(Clone, PartialEq, Debug)]
pub struct Tail {
    pub client: u32,
    pub partition: PartitionKey,
    pub invoked_us: u64,
    pub returned_us: u64,
    /// The first absent offset.
    pub tail: u64,
}

/// A node's whole log, read after everything was healed.
#[derive(Clone, PartialEq, Debug)]
pub struct FinalLog {
    pub node: u32,
    pub partition: PartitionKey,
    /// Its first offset; above zero if it was trimmed.
    pub start: u64,
    /// Offsets and payload numbers.
    pub records: Vec<(u64, u64)>,
}

/// What a watcher was told, over all its resumptions.
#[derive(Clone, PartialEq, Debug)]
pub struct Watch {
    pub client: u32,
    /// What is watched: watchers of the same subject must be told the same.
    pub subject: u64,
    /// Everything after this revision was to be told.
    pub after: u64,
    /// Revisions, and a number for what changed. Only of changes that every watcher must be told.
    pub changes: Vec<(u64, u64)>,
}

/// A group's leader, as the catalog had it at a revision.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LeaderTold {
    /// Who was told.
    pub client: u32,
    pub revision: u64,
    pub group: u64,
    pub term: u64,
    pub node: u32,
}

/// A fence and the token that its holder shows. A name is a number here.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fence {
    pub name: u64,
    pub token: u64,
}

/// An append that stands behind a fence, known by its payload number.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Fenced {
    pub partition: PartitionKey,
    pub payload: u64,
    pub fence: Fence,
}

/// A fence that was raised, as its holder was told.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Raise {
    pub client: u32,
    pub partition: PartitionKey,
    pub fence: Fence,
    pub returned_us: u64,
}

/// A record, and the log's time of it: from a receipt or a read.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Stamp {
    pub partition: PartitionKey,
    pub offset: u64,
    pub timestamp_ms: u64,
    pub returned_us: u64,
}

/// A question for the first offset at or after a time, and its answer.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct ByTime {
    pub client: u32,
    pub partition: PartitionKey,
    pub invoked_us: u64,
    pub time_ms: u64,
    pub offset: u64,
}

/// A rule that does not hold.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Broken {
    /// One of [`rules::ALL`].
    pub rule: &'static str,
    pub what: String,
}

/// See the module's text.
#[derive(Clone, Default, PartialEq, Debug)]
pub struct History {
    pub appends: Vec<Append>,
    pub reads: Vec<Read>,
    pub tails: Vec<Tail>,
    pub final_logs: Vec<FinalLog>,
    pub watches: Vec<Watch>,
    pub leaders: Vec<LeaderTold>,
    pub fenced: Vec<Fenced>,
    pub raises: Vec<Raise>,
    pub stamps: Vec<Stamp>,
    pub by_time: Vec<ByTime>,
}

impl History {
    pub fn append(&mut self, append: Append) {
        self.appends.push(append);
    }

    pub fn read(&mut self, read: Read) {
        self.reads.push(read);
    }

    pub fn tail(&mut self, tail: Tail) {
        self.tails.push(tail);
    }

    pub fn final_log(&mut self, log: FinalLog) {
        self.final_logs.push(log);
    }

    pub fn watch(&mut self, watch: Watch) {
        self.watches.push(watch);
    }

    /// Whether every rule holds.
    ///
    /// # Errors
    /// The first rule found broken, and what was seen.
    pub fn check(&self) -> Result<(), Broken> {
        check::check(self)
    }
}
