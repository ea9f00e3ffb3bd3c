//! Raft's window on the log: `raft::Storage` over the newest entries in memory and the older ones in segments.
//!
//! Keeps in memory every entry that is not applied, a tail of applied ones within a bound of bytes, and the terms of
//! all. Reads no file: what lies below the cache becomes a [`Fetch`], and Raft is told to wait. It refuses with nothing but "compacted" and
//! "temporarily unavailable": Raft 0.7 aborts on any other error.
//!
//! Entries are held from the moment a `Ready` shows them, before they are durable: Raft drops its own copy
//! in `advance_append_async` and asks here from then on.

use super::effects::Fetch;
use super::terms::TermRuns;
use crate::ids::{LogIndex, Term};
use crate::journal::base::Base;
use crate::limits::{RAFT_MESSAGE_BYTES_MAX, REPLICAS_MAX};
use crate::{planted, reached};
use bytes::BytesMut;
use prost::Message as _;
use raft::eraftpb::{ConfState, Entry, EntryType, HardState, Snapshot, SnapshotMetadata};
use raft::{GetEntriesContext, RaftState, Storage, StorageError};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// The log as Raft sees it.
pub struct LogView {
    initial: RaftState,
    terms: TermRuns,
    /// Invariant: contiguous, through the last entry; holds every entry above `applied`.
    cached: VecDeque<Entry>,
    cached_bytes: usize,
    cached_bytes_max: usize,
    applied: LogIndex,
    /// Where changes of membership lie whose commit is not on disk yet.
    changes: BTreeSet<u64>,
    /// What a replica gets that must start at the log's oldest base.
    oldest: Option<Snapshot>,
    /// Raft asks through a shared reference; what it lacks is noted behind it.
    wanted: RefCell<Wanted>,
}

/// What Raft asked for that is not in memory.
#[derive(Default)]
struct Wanted {
    next_number: u64,
    /// Asked for, not yet handed to the driver.
    fresh: Vec<Fetch>,
    /// Under way, by number.
    open: BTreeMap<u64, OpenFetch>,
    base_open: bool,
    /// Fetched, by first index; lives for the one call that uses it.
    arrived: BTreeMap<u64, Vec<Entry>>,
}

struct OpenFetch {
    lo: u64,
    hi: u64,
    /// Whom Raft wanted them for: one for each time it asked, within a bound.
    contexts: Vec<GetEntriesContext>,
}

impl LogView {
    /// A log whose entries through `terms.last_index()` lie in segments, followed by `entries`.
    ///
    /// # Panics
    /// If `entries` do not follow; the caller has checked.
    pub(super) fn new(
        hard_state: HardState,
        conf_state: ConfState,
        terms: TermRuns,
        entries: Vec<Entry>,
        cached_bytes_max: usize,
    ) -> LogView {
        let applied = terms.last_index();
        let mut log = LogView {
            initial: RaftState::new(hard_state, conf_state),
            terms,
            cached: VecDeque::new(),
            cached_bytes: 0,
            cached_bytes_max,
            applied,
            changes: BTreeSet::new(),
            oldest: None,
            wanted: RefCell::default(),
        };
        log.hold(&entries);
        log
    }

    /// Takes in new entries. The first may lie at or below the last held one: it replaces the suffix.
    ///
    /// # Panics
    /// If an applied entry would be replaced, or a gap arise.
    pub(super) fn hold(&mut self, entries: &[Entry]) {
        let Some(first) = entries.first() else { return };
        let first = LogIndex(first.index);
        assert!(first > self.applied, "entry {first} would replace an applied one; applied is {}", self.applied);
        assert!(
            first <= self.terms.last_index().next(),
            "entry {first} leaves a gap after {}",
            self.terms.last_index()
        );
        self.terms.truncate_from(first);
        let kept = |entry: &Entry| entry.index < first.0 || planted!("overwritten-suffix-kept-in-cache");
        while self.cached.back().is_some_and(|entry| !kept(entry)) {
            let dropped = self.cached.pop_back();
            self.cached_bytes -= dropped.map_or(0, |entry| entry.encoded_len());
        }
        self.changes.split_off(&first.0);
        for entry in entries {
            if entry.entry_type() != EntryType::EntryNormal {
                self.changes.insert(entry.index);
            }
            self.terms.push_through(LogIndex(entry.index), Term(entry.term));
            self.cached_bytes += entry.encoded_len();
            self.cached.push_back(entry.clone()); // shares the payload
        }
    }

    /// Bounds the applied entries in memory anew.
    pub(super) fn set_cache_bytes(&mut self, bytes: usize) {
        self.cached_bytes_max = bytes;
        self.applied_to(self.applied);
    }

    /// Starts anew behind an installed snapshot.
    pub(super) fn install(&mut self, index: LogIndex, term: Term) {
        self.terms = TermRuns::empty(index, term);
        if !planted!("snapshot-installed-and-log-kept") {
            self.cached.clear();
            self.cached_bytes = 0;
        }
        self.applied = index;
        self.changes.clear();
        self.oldest = None;
        *self.wanted.get_mut() = Wanted { next_number: self.wanted.get_mut().next_number, ..Wanted::default() };
    }

    /// Entries through `index` are applied and on their way into segments: the oldest may leave the cache.
    pub(super) fn applied_to(&mut self, index: LogIndex) {
        self.applied = index;
        while self.cached_bytes > self.cached_bytes_max {
            match self.cached.front() {
                Some(oldest) if oldest.index <= index.0 => self.cached_bytes -= oldest.encoded_len(),
                _ => break,
            }
            self.cached.pop_front();
        }
    }

    /// Whether a change of membership lies in `(written, commit]`. Those at or below `written` are forgotten.
    pub(super) fn has_change_within(&mut self, written: u64, commit: u64) -> bool {
        self.changes = self.changes.split_off(&(written + 1));
        self.changes.first().is_some_and(|change| *change <= commit)
    }

    /// Segments no longer hold entries before `first`.
    ///
    /// # Panics
    /// If an entry that is not applied would go.
    pub(super) fn trim_to(&mut self, first: LogIndex) {
        assert!(first <= self.applied.next(), "trim to {first}, but applied is {}", self.applied);
        self.terms.trim_to(first);
        while self.cached.front().is_some_and(|entry| entry.index < first.0) {
            let dropped = self.cached.pop_front();
            self.cached_bytes -= dropped.map_or(0, |entry| entry.encoded_len());
        }
        if self.oldest.as_ref().is_some_and(|snapshot| snapshot.get_metadata().index + 1 < first.0) {
            self.oldest = None;
        }
    }

    /// What Raft has asked for since the last call.
    pub(super) fn take_wanted(&mut self) -> Vec<Fetch> {
        std::mem::take(&mut self.wanted.get_mut().fresh)
    }

    /// Whether Raft asked for something since the last call of [`Self::take_wanted`].
    pub(super) fn wants(&self) -> bool {
        !self.wanted.borrow().fresh.is_empty()
    }

    /// Entries that were asked for. Returns for whom; [`Self::forget_fetched`] must follow once Raft was told. Entries that are
    /// not what the log held there by now are dropped: Raft asks again with its next heartbeat.
    pub(super) fn fetched(&mut self, number: u64, entries: Vec<Entry>) -> Vec<GetEntriesContext> {
        let wanted = self.wanted.get_mut();
        let Some(open) = wanted.open.remove(&number) else { return Vec::new() };
        let fits = !entries.is_empty()
            && entries.len() as u64 <= open.hi - open.lo
            && entries.iter().zip(open.lo..).all(|(entry, index)| {
                entry.index == index && self.terms.term_of(LogIndex(index)) == Some(Term(entry.term))
            });
        if !fits {
            reached!("fetched entries not wanted any more");
            return Vec::new();
        }
        reached!("entries for a follower fetched from segments");
        wanted.arrived.insert(open.lo, entries);
        open.contexts
    }

    /// Forgets fetched entries: Raft has sent them, or no longer wants them.
    pub(super) fn forget_fetched(&mut self) {
        self.wanted.get_mut().arrived.clear();
    }

    /// The base for replicas that must start at the log's oldest point. Ignored if the log starts later by now.
    pub(super) fn hold_base(&mut self, base: &Base) {
        self.wanted.get_mut().base_open = false;
        if base.index.next() < self.terms.first_index() || base.index > self.applied {
            reached!("base fetched too late");
            return;
        }
        let mut data = BytesMut::with_capacity(base.encoded_len());
        base.encode(&mut data);
        let metadata =
            SnapshotMetadata { conf_state: Some(base.conf_state.clone()), index: base.index.0, term: base.term.0 };
        self.oldest = Some(Snapshot { data: data.freeze(), metadata: Some(metadata) });
    }

    /// No base can be had now.
    pub(super) fn base_unavailable(&mut self) {
        self.wanted.get_mut().base_open = false;
    }

    /// Bytes of applied entries in memory, and reads under way.
    pub(super) fn held(&self) -> (usize, usize) {
        let unapplied = self.cached.iter().rev().take_while(|entry| entry.index > self.applied.0);
        let unapplied_bytes: usize = unapplied.map(|entry| entry.encoded_len()).sum();
        (self.cached_bytes - unapplied_bytes, self.wanted.borrow().open.len())
    }

    fn cached_first(&self) -> u64 {
        self.cached.front().map_or(self.terms.last_index().0 + 1, |entry| entry.index)
    }

    fn want_entries(&self, lo: u64, hi: u64, bytes_max: u64, context: GetEntriesContext) {
        let wanted = &mut *self.wanted.borrow_mut();
        if let Some(open) = wanted.open.values_mut().find(|open| open.lo == lo) {
            if open.contexts.len() < REPLICAS_MAX {
                open.contexts.push(context);
            }
            return;
        }
        if wanted.open.len() >= REPLICAS_MAX {
            return; // the disk hangs: Raft asks again with its next heartbeat
        }
        wanted.next_number += 1;
        let number = wanted.next_number;
        let fetch = Fetch::Entries { number, lo: LogIndex(lo), hi: LogIndex(hi), bytes_max };
        wanted.fresh.push(fetch);
        wanted.open.insert(number, OpenFetch { lo, hi, contexts: vec![context] });
    }
}

/// The first of `entries` that fit into `bytes_max`, at least one.
fn take_within<'a>(entries: impl Iterator<Item = &'a Entry>, bytes_max: u64) -> Vec<Entry> {
    let mut bytes = 0;
    let mut taken = Vec::new();
    for entry in entries {
        bytes += entry.encoded_len() as u64;
        if bytes > bytes_max && !taken.is_empty() {
            break;
        }
        taken.push(entry.clone());
    }
    taken
}

impl Storage for LogView {
    fn initial_state(&self) -> raft::Result<RaftState> {
        Ok(self.initial.clone())
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        context: GetEntriesContext,
    ) -> raft::Result<Vec<Entry>> {
        let bytes_max = max_size.into();
        if low < self.terms.first_index().0 {
            return Err(StorageError::Compacted.into());
        }
        let cached_first = self.cached_first();
        if low >= cached_first {
            let (from, to) = ((low - cached_first) as usize, (high - cached_first) as usize);
            return Ok(take_within(self.cached.range(from..to), bytes_max.unwrap_or(u64::MAX)));
        }
        let bytes_max = bytes_max.unwrap_or(RAFT_MESSAGE_BYTES_MAX);
        if let Some(arrived) = self.wanted.borrow().arrived.get(&low) {
            let count = (high - low).min(arrived.len() as u64) as usize;
            return Ok(take_within(arrived[..count].iter(), bytes_max));
        }
        assert!(context.can_async(), "raft wants entries from {low} at once, which are applied and left the cache");
        reached!("entries not in memory, raft waits");
        self.want_entries(low, high.min(cached_first), bytes_max, context);
        Err(StorageError::LogTemporarilyUnavailable.into())
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        match self.terms.term_of(LogIndex(index)) {
            Some(term) => Ok(term.0),
            None if index < self.terms.first_index().0 => Err(StorageError::Compacted.into()),
            None => Err(StorageError::Unavailable.into()),
        }
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.terms.first_index().0)
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.terms.last_index().0)
    }

    fn snapshot(&self, request_index: u64, _to: u64) -> raft::Result<Snapshot> {
        match &self.oldest {
            Some(snapshot) if snapshot.get_metadata().index >= request_index => {
                reached!("snapshot sent");
                Ok(snapshot.clone())
            }
            _ => {
                reached!("snapshot not at hand, raft waits");
                let wanted = &mut *self.wanted.borrow_mut();
                if !wanted.base_open {
                    wanted.base_open = true;
                    wanted.fresh.push(Fetch::Base);
                }
                Err(StorageError::SnapshotTemporarilyUnavailable.into())
            }
        }
    }
}
