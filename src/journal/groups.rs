//! What each group holds now: base, hard state, entries after the base. Pure.
//!
//! The journal keeps this in memory so that it can restate it; payloads are shared with whoever else holds them.
//! Applies writes, refuses those that break the contract, and tells whose bases should move. Invariant: a group's
//! entries are contiguous and begin right after its base.

use super::base::Base;
use super::format::FRAME_HEADER_LEN;
use super::{GroupWrite, JournalOptions};
use crate::ids::{Digest, GroupId, LogIndex};
use crate::planted;
use raft::eraftpb::{Entry, HardState};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// A state that is too large to lie inline.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct StateFile {
    pub(super) id: u64,
    pub(super) len: u64,
    pub(super) digest: Digest,
}

/// A base as the journal holds it: with its state, or with the name of the file that has it.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct StoredBase {
    /// Its `state` is empty when `file` has it.
    pub(super) base: Base,
    pub(super) file: Option<StateFile>,
}

/// What the journal holds of one group.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Group {
    pub(super) base: StoredBase,
    pub(super) hard_state: HardState,
    pub(super) entries: VecDeque<Entry>,
    /// What a restatement of base and hard state takes.
    fixed_bytes: u64,
    /// What a restatement of the entries takes.
    entry_bytes: u64,
    /// `entry_bytes` when the group was last asked to move its base.
    asked_at: Option<u64>,
}

impl Group {
    pub(super) fn new(base: StoredBase, hard_state: HardState, entries: VecDeque<Entry>) -> Group {
        let fixed_bytes = fixed_bytes(&base);
        let entry_bytes = entries.iter().map(entry_bytes).sum();
        Group { base, hard_state, entries, fixed_bytes, entry_bytes, asked_at: None }
    }

    pub(super) fn last_index(&self) -> LogIndex {
        LogIndex(self.base.base.index.0 + self.entries.len() as u64)
    }

    /// The entries from `index` on.
    pub(super) fn entries_from(&self, index: u64) -> impl Iterator<Item = &Entry> {
        let skip = index.saturating_sub(self.base.base.index.0 + 1) as usize;
        self.entries.range(skip.min(self.entries.len())..)
    }

    /// What a restatement of it takes.
    pub(super) fn bytes(&self) -> u64 {
        self.fixed_bytes + self.entry_bytes
    }

    /// Whether a base voids all entries: it lies beyond them, or another term stands where it stands.
    fn voided_by(&self, base: &Base) -> bool {
        let held = base.index.0.checked_sub(self.base.base.index.0 + 1);
        match held.map(|at| self.entries.get(at as usize)) {
            None => false,
            Some(None) => true,
            Some(Some(entry)) => entry.term != base.term.0 && !planted!("snapshot-installed-and-log-kept"),
        }
    }

    fn move_base(&mut self, base: StoredBase, voids: bool) {
        let forgotten = if voids { self.entries.len() } else { (base.base.index.0 - self.base.base.index.0) as usize };
        for entry in self.entries.drain(..forgotten) {
            self.entry_bytes -= entry_bytes(&entry);
        }
        self.fixed_bytes = fixed_bytes(&base);
        self.base = base;
        self.asked_at = None;
    }

    fn append(&mut self, entries: &[Entry]) -> Result<(), String> {
        let Some(first) = entries.first() else { return Ok(()) };
        let (base, last) = (self.base.base.index, self.last_index());
        if first.index <= base.0 || first.index > last.0 + 1 {
            return Err(format!("entry {} does not continue a log that holds ({base}, {last}]", first.index));
        }
        for entry in self.entries.drain((first.index - base.0 - 1) as usize..) {
            self.entry_bytes -= entry_bytes(&entry);
        }
        for (entry, index) in entries.iter().zip(first.index..) {
            if entry.index != index {
                return Err(format!("entry {} stands where {index} should", entry.index));
            }
            self.entry_bytes += entry_bytes(entry);
            self.entries.push_back(entry.clone());
        }
        Ok(())
    }
}

fn entry_bytes(entry: &Entry) -> u64 {
    (FRAME_HEADER_LEN + entry.data.len() + entry.context.len()) as u64
}

/// Base and hard state, with the latter's copy in sectors of its own.
fn fixed_bytes(base: &StoredBase) -> u64 {
    (FRAME_HEADER_LEN * 3 + base.base.encoded_len() + STATE_REFERENCE_LEN) as u64
}

/// Bytes of the reference to a state file.
pub(super) const STATE_REFERENCE_LEN: usize = 48;

/// How much waits for bases to move.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Pressure {
    /// Bytes of entries after their bases, over all groups.
    pub bytes: u64,
    /// The same per group, largest first; groups without entries are left out.
    pub groups: Vec<(GroupId, u64)>,
}

/// All groups of the node.
#[derive(Clone, PartialEq, Debug, Default)]
pub(super) struct Groups {
    groups: BTreeMap<GroupId, Group>,
    removed: BTreeSet<GroupId>,
    entry_bytes: u64,
    fixed_bytes: u64,
    over_cap: bool,
    /// Groups that received entries since bases were last asked for.
    grown: BTreeSet<GroupId>,
}

/// What a write did, as far as the frames must tell it.
pub(super) struct Outcome {
    /// The base that the write carried voids all entries.
    pub(super) base_voids_entries: bool,
    /// Term or vote changed: the hard state is written twice.
    pub(super) promise_changed: bool,
    /// The state file that nobody needs from here on.
    pub(super) superseded: Option<u64>,
}

impl Groups {
    pub(super) fn new(groups: BTreeMap<GroupId, Group>, removed: BTreeSet<GroupId>) -> Groups {
        let entry_bytes = groups.values().map(|group| group.entry_bytes).sum();
        let fixed_bytes = groups.values().map(|group| group.fixed_bytes).sum();
        let grown = groups.keys().copied().collect();
        Groups { groups, removed, entry_bytes, fixed_bytes, over_cap: false, grown }
    }

    pub(super) fn get(&self, group: GroupId) -> Option<&Group> {
        self.groups.get(&group)
    }

    /// The first group after `after`.
    pub(super) fn next_after(&self, after: Option<GroupId>) -> Option<GroupId> {
        next_above(after).and_then(|from| self.groups.range(from..).next()).map(|(id, _)| *id)
    }

    /// The first tombstones after `after`, at most `count`.
    pub(super) fn tombstones_after(&self, after: Option<GroupId>, count: usize) -> Vec<GroupId> {
        next_above(after).map_or(Vec::new(), |from| self.removed.range(from..).take(count).copied().collect())
    }

    /// What a restatement of all groups after `after`, and of the tombstones, takes.
    pub(super) fn bytes_after(&self, after: Option<GroupId>) -> u64 {
        let groups = next_above(after).map(|from| self.groups.range(from..));
        groups.into_iter().flatten().map(|(_, group)| group.bytes()).sum::<u64>() + 8 * self.removed.len() as u64
    }

    /// What a restatement of everything takes.
    pub(super) fn restated_bytes(&self) -> u64 {
        self.entry_bytes + self.fixed_bytes + 8 * self.removed.len() as u64
    }

    /// Applies a write; `base` is its base as it is to be stored.
    ///
    /// # Errors
    /// Why the write breaks the contract; part of it may have been applied.
    pub(super) fn apply(&mut self, write: &GroupWrite, base: Option<StoredBase>) -> Result<Outcome, String> {
        let id = write.group;
        if self.removed.contains(&id) && !planted!("removed-replica-returning") {
            return Err("the group was removed for good".to_owned());
        }
        if write.removed {
            self.removed.insert(id);
            self.grown.remove(&id);
            let gone = self.groups.remove(&id);
            let superseded = gone.as_ref().and_then(|group| group.base.file).map(|file| file.id);
            if let Some(gone) = gone {
                self.entry_bytes -= gone.entry_bytes;
                self.fixed_bytes -= gone.fixed_bytes;
            }
            return Ok(Outcome { base_voids_entries: false, promise_changed: false, superseded });
        }
        let (mut voids, mut superseded) = (false, None);
        if !self.groups.contains_key(&id) {
            let base = base.ok_or("the first write carries no base")?;
            self.fixed_bytes += fixed_bytes(&base);
            self.groups.insert(id, Group::new(base, HardState::default(), VecDeque::new()));
            voids = true;
        } else if let (Some(base), Some(group)) = (base, self.groups.get_mut(&id)) {
            let (from, to) = (group.base.base.index, base.base.index);
            if to < from {
                return Err(format!("base {to} lies below the present one, {from}"));
            }
            let (entries, fixed) = (group.entry_bytes, group.fixed_bytes);
            superseded = group.base.file.map(|file| file.id);
            voids = group.voided_by(&base.base);
            group.move_base(base, voids);
            self.entry_bytes -= entries - group.entry_bytes;
            self.fixed_bytes = self.fixed_bytes - fixed + group.fixed_bytes;
        }
        let group = self.groups.get_mut(&id).ok_or("the group is not there")?;
        let before = group.entry_bytes;
        group.append(&write.entries)?;
        self.entry_bytes = self.entry_bytes - before + group.entry_bytes;
        if !write.entries.is_empty() {
            self.grown.insert(id);
        }
        let mut promise_changed = false;
        if let Some(hard_state) = &write.hard_state {
            promise_changed = (group.hard_state.term, group.hard_state.vote) != (hard_state.term, hard_state.vote);
            group.hard_state = *hard_state;
        }
        Ok(Outcome { base_voids_entries: voids, promise_changed, superseded })
    }

    pub(super) fn pressure(&self) -> Pressure {
        let mut groups: Vec<_> =
            self.groups.iter().map(|(id, group)| (*id, group.entry_bytes)).filter(|(_, bytes)| *bytes > 0).collect();
        groups.sort_by_key(|(id, bytes)| (std::cmp::Reverse(*bytes), *id));
        Pressure { bytes: self.entry_bytes, groups }
    }

    /// Whom to ask for a new base now, and whether the cap is passed; `None` when there is nothing new to say.
    ///
    /// A group is asked when its own entries pass the bound, or when it is one of the largest while all together pass
    /// half the cap; and again only after it grew by the bound once more, or moved its base meanwhile.
    pub(super) fn wanted_bases(&mut self, options: &JournalOptions) -> Option<(Vec<GroupId>, bool)> {
        let over_cap = self.entry_bytes > options.restated_bytes_max;
        let crossed = std::mem::replace(&mut self.over_cap, over_cap) != over_cap;
        let grown = std::mem::take(&mut self.grown);
        let mut asked = Vec::new();
        for id in grown {
            let Some(group) = self.groups.get_mut(&id) else { continue };
            if group.entry_bytes >= group.asked_at.unwrap_or(0) + options.base_move_bytes {
                group.asked_at = Some(group.entry_bytes);
                asked.push(id);
            }
        }
        if self.entry_bytes > options.restated_bytes_max / 2 {
            self.ask_largest(self.entry_bytes - options.restated_bytes_max / 4, &mut asked);
        }
        (crossed || !asked.is_empty()).then_some((asked, over_cap))
    }

    /// Asks the largest groups until those that were asked hold `wanted` bytes together.
    fn ask_largest(&mut self, wanted: u64, asked: &mut Vec<GroupId>) {
        let pending: u64 =
            self.groups.values().filter(|group| group.asked_at.is_some()).map(|group| group.entry_bytes).sum();
        let mut missing = wanted.saturating_sub(pending);
        if missing == 0 {
            return;
        }
        for (id, bytes) in self.pressure().groups {
            let Some(group) = self.groups.get_mut(&id).filter(|group| group.asked_at.is_none()) else { continue };
            group.asked_at = Some(bytes);
            asked.push(id);
            missing = missing.saturating_sub(bytes);
            if missing == 0 {
                break;
            }
        }
    }
}

fn next_above(after: Option<GroupId>) -> Option<GroupId> {
    match after {
        None => Some(GroupId(0)),
        Some(id) => id.0.checked_add(1).map(GroupId),
    }
}
