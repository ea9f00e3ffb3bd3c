//! What a journal's frames amount to, in order. Pure.
//!
//! Replay begins in a file that holds a complete checkpoint, and there a group becomes known by its restated base (or,
//! if it is new, by its first live one); what lies before that is about entries that the restatement holds again. In
//! later files every group is known, and restating frames, which say nothing new, are passed over.
//!
//! While a group's restatement is under way, its entries may have holes: live frames put newer ones above those that
//! are still to be restated. All it holds is true at any time, and when the checkpoint is complete there are no holes
//! left.

use super::format::{FrameKind, BASE_VOIDS_ENTRIES};
use super::frames::{base_of, entry_of, hard_state_of};
use super::groups::{Group, Groups, StoredBase};
use super::scan::{Frame, Round};
use crate::ids::GroupId;
use crate::planted;
use bytes::Buf;
use raft::eraftpb::{Entry, HardState};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Frames that were whole and yet can't be understood: a program of another version wrote them, or a bug.
#[derive(Debug)]
pub(super) struct Nonsense {
    pub(super) position: u64,
    pub(super) group: GroupId,
    pub(super) reason: String,
}

struct Known {
    base: StoredBase,
    hard_state: HardState,
    entries: BTreeMap<u64, Entry>,
}

/// Takes rounds, keeps what they amount to.
#[derive(Default)]
pub(super) struct Replay {
    groups: BTreeMap<GroupId, Known>,
    removed: BTreeSet<GroupId>,
    /// Each state file that a frame referred to, with the epoch of the last file that does.
    state_files: BTreeMap<u64, u64>,
    rounds: u64,
    /// The first file held a frame that says its checkpoint is complete.
    complete: bool,
}

/// What a replay amounts to.
pub(super) struct Replayed {
    pub(super) groups: Groups,
    pub(super) ids: Vec<GroupId>,
    pub(super) removed: BTreeSet<GroupId>,
    pub(super) state_files: BTreeMap<u64, u64>,
    pub(super) rounds: u64,
}

impl Replay {
    /// Replays one round. `first_file`: it lies in the file that replay began with.
    ///
    /// # Errors
    /// If a frame makes no sense.
    pub(super) fn apply(&mut self, round: &Round, first_file: bool) -> Result<(), Nonsense> {
        self.rounds += 1;
        for frame in &round.frames {
            self.apply_frame(frame, round.header.epoch, first_file).map_err(|reason| Nonsense {
                position: frame.position,
                group: frame.header.group,
                reason: reason.to_owned(),
            })?;
        }
        Ok(())
    }

    fn apply_frame(&mut self, frame: &Frame, epoch: u64, first_file: bool) -> Result<(), &'static str> {
        let (header, group) = (&frame.header, frame.header.group);
        if matches!(header.kind, FrameKind::Base | FrameKind::RestatedBase) {
            let base = base_of(header, &frame.payload).ok_or("the frame's base can't be decoded")?;
            if let Some(file) = base.file {
                self.state_files.insert(file.id, epoch);
            }
            if self.removed.contains(&group) {
                return Ok(());
            }
            match header.kind {
                FrameKind::Base => self.move_base(group, base, header.detail & BASE_VOIDS_ENTRIES != 0),
                _ if first_file => self.restate(group, base),
                _ => {}
            }
            return Ok(());
        }
        let known = self.groups.get_mut(&group);
        match header.kind {
            FrameKind::Entry | FrameKind::RestatedEntry => {
                let live = header.kind == FrameKind::Entry;
                let Some(known) = known.filter(|_| live || first_file) else { return Ok(()) };
                let entry = entry_of(header, &frame.payload).ok_or("the frame's entry can't be decoded")?;
                if entry.index <= known.base.base.index.0 {
                    return Err("the entry lies at or below its group's base");
                }
                if live {
                    known.entries.split_off(&entry.index);
                }
                known.entries.insert(entry.index, entry);
            }
            FrameKind::HardState => {
                let lost = |known: &Known| planted!("hard-state-lost-at-creation") && known.base.base.index.0 <= 1;
                if let Some(known) = known.filter(|known| !lost(known)) {
                    known.hard_state = hard_state_of(header);
                }
            }
            FrameKind::RestatedHardState => {
                if let Some(known) = known.filter(|_| first_file) {
                    known.hard_state = hard_state_of(header);
                }
            }
            FrameKind::Removed => {
                self.groups.remove(&group);
                self.removed.insert(group);
            }
            FrameKind::RestatedTombstones => {
                let mut list = frame.payload.clone();
                while list.remaining() >= 8 {
                    self.removed.insert(GroupId(list.get_u64_le()));
                }
            }
            FrameKind::CheckpointComplete => self.complete |= first_file,
            FrameKind::HardStateCopy | FrameKind::Base | FrameKind::RestatedBase => {}
        }
        Ok(())
    }

    fn move_base(&mut self, group: GroupId, base: StoredBase, voids: bool) {
        match self.groups.get_mut(&group) {
            Some(known) => {
                known.entries = if voids { BTreeMap::new() } else { known.entries.split_off(&(base.base.index.0 + 1)) };
                known.base = base;
            }
            None => self.restate(group, base),
        }
    }

    fn restate(&mut self, group: GroupId, base: StoredBase) {
        self.groups.insert(group, Known { base, hard_state: HardState::default(), entries: BTreeMap::new() });
    }

    /// Whether the first file's checkpoint is complete.
    pub(super) fn is_complete(&self) -> bool {
        self.complete
    }

    /// What it all amounts to.
    ///
    /// # Errors
    /// If a group's entries have a hole.
    pub(super) fn finish(self) -> Result<Replayed, Nonsense> {
        let mut groups = BTreeMap::new();
        for (id, known) in self.groups {
            let first = known.base.base.index.0 + 1;
            let entries: VecDeque<Entry> = known.entries.into_values().collect();
            if let Some((entry, index)) = entries.iter().zip(first..).find(|(entry, index)| entry.index != *index) {
                let reason = format!("entry {index} of group {id} is missing before entry {}", entry.index);
                return Err(Nonsense { position: 0, group: id, reason });
            }
            groups.insert(id, Group::new(known.base, known.hard_state, entries));
        }
        let ids = groups.keys().copied().collect();
        let (removed, state_files, rounds) = (self.removed, self.state_files, self.rounds);
        Ok(Replayed { groups: Groups::new(groups, removed.clone()), ids, removed, state_files, rounds })
    }
}
