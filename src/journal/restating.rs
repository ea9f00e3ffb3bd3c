//! The checkpoint that a new file carries: every group restated, in portions that ride on live rounds or fill idle
//! moments. Pure.
//!
//! Invariant: what is restated is the group's state as of that moment, behind all live frames of the same round. A
//! group whose entries do not fit one portion goes on in the next: live writes in between need no care, since replay
//! puts live entries in their place and truncates above them, and restated ones never truncate.

use super::format::{FrameDraft, FrameKind, RoundBuilder, FRAME_HEADER_LEN, SECTOR};
use super::frames::{base_draft, entry_draft, hard_state_draft};
use super::groups::{Group, Groups};
use super::states::StateFiles;
use crate::ids::GroupId;
use crate::{planted, reached};
use bytes::{BufMut, BytesMut};

/// Tombstones in one frame.
const TOMBSTONES_PER_FRAME: usize = 64;

/// How a file's checkpoint stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Progress {
    /// Groups are still to be restated.
    Running,
    /// The file says so in its last restating frame.
    Complete,
    /// The file has no room for it; the next one will be larger.
    Abandoned,
}

/// The checkpoint of the newest file.
#[derive(Clone, Debug)]
pub(super) struct Checkpoint {
    pub(super) progress: Progress,
    /// The last group whose base was restated.
    group_at: Option<GroupId>,
    /// The group whose entries are being restated.
    part: Option<Part>,
    /// The last tombstone that was restated.
    tombstone_at: Option<GroupId>,
}

/// What is left of one group.
#[derive(Clone, Copy, Debug)]
struct Part {
    group: GroupId,
    /// The index to go on from.
    from: u64,
    /// The last index when the base was restated. What came later lies in this file as it was written; a group that is
    /// written to faster than it is restated would otherwise never be done.
    through: u64,
}

/// What one portion may take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Allowance {
    /// Bytes it should not pass; its first frame may.
    pub(super) budget: u64,
    /// Bytes that the whole round must not pass.
    pub(super) round_max: u64,
}

impl Checkpoint {
    /// That of a file in which nothing was restated yet.
    pub(super) fn new(progress: Progress) -> Checkpoint {
        Checkpoint { progress, group_at: None, part: None, tombstone_at: None }
    }

    /// How many bytes are still to be restated, at most.
    pub(super) fn remaining(&self, groups: &Groups) -> u64 {
        let part = self.part.and_then(|part| groups.get(part.group)).map_or(0, Group::bytes);
        part + groups.bytes_after(self.group_at) + FRAME_HEADER_LEN as u64
    }

    /// Appends the next portion to a round.
    pub(super) fn restate(
        &mut self,
        groups: &Groups,
        states: &mut StateFiles,
        epoch: u64,
        round: &mut RoundBuilder,
        allowance: Allowance,
    ) {
        let mut portion = Portion { round, allowance, spent: 0 };
        while self.progress == Progress::Running {
            let went_on = match self.part {
                Some(part) => self.restate_entries(groups, part, &mut portion),
                None => match groups.next_after(self.group_at) {
                    Some(group) => self.restate_base(groups, states, epoch, group, &mut portion),
                    None => self.restate_tombstones(groups, &mut portion),
                },
            };
            if !went_on {
                break;
            }
        }
    }

    fn restate_base(
        &mut self,
        groups: &Groups,
        states: &mut StateFiles,
        epoch: u64,
        id: GroupId,
        portion: &mut Portion<'_>,
    ) -> bool {
        let Some(group) = groups.get(id) else { return false };
        let base = base_draft(FrameKind::RestatedBase, id, &group.base, 0);
        let mut promised = group.hard_state;
        if planted!("restatement-older-than-vote") {
            promised.vote = 0;
        }
        let hard_state = hard_state_draft(FrameKind::RestatedHardState, id, &promised);
        let copy = hard_state_draft(FrameKind::HardStateCopy, id, &promised);
        if !portion.takes(base.encoded_len() + 2 * hard_state.encoded_len()) {
            return false;
        }
        portion.round.push(&base);
        portion.round.push(&hard_state);
        portion.round.push_copy(copy);
        if let Some(file) = &group.base.file {
            states.refer(file.id, epoch);
        }
        self.group_at = Some(id);
        let from = group.base.base.index.0 + 1;
        self.part = Some(Part { group: id, from, through: group.last_index().0 });
        true
    }

    fn restate_entries(&mut self, groups: &Groups, part: Part, portion: &mut Portion<'_>) -> bool {
        let entries = groups.get(part.group).into_iter().flat_map(|group| group.entries_from(part.from));
        for entry in entries.take_while(|entry| entry.index <= part.through) {
            let draft = entry_draft(FrameKind::RestatedEntry, part.group, entry);
            if !portion.takes(draft.encoded_len()) {
                reached!("group restated in several portions");
                self.part = Some(Part { from: entry.index, ..part });
                return false;
            }
            portion.round.push(&draft);
        }
        self.part = None;
        true
    }

    fn restate_tombstones(&mut self, groups: &Groups, portion: &mut Portion<'_>) -> bool {
        let list = groups.tombstones_after(self.tombstone_at, TOMBSTONES_PER_FRAME);
        let Some(last) = list.last().copied() else {
            let draft = FrameDraft::bare(FrameKind::CheckpointComplete, GroupId::default());
            if portion.takes(draft.encoded_len()) {
                portion.round.push(&draft);
                self.progress = Progress::Complete;
            }
            return false;
        };
        let mut payload = BytesMut::with_capacity(list.len() * 8);
        list.iter().for_each(|group| payload.put_u64_le(group.0));
        let draft = FrameDraft {
            payload: payload.freeze(),
            ..FrameDraft::bare(FrameKind::RestatedTombstones, GroupId::default())
        };
        if !portion.takes(draft.encoded_len()) {
            return false;
        }
        portion.round.push(&draft);
        self.tombstone_at = Some(last);
        true
    }
}

struct Portion<'a> {
    round: &'a mut RoundBuilder,
    allowance: Allowance,
    spent: u64,
}

impl Portion<'_> {
    /// Whether `len` more bytes are allowed; then they count as spent.
    fn takes(&mut self, len: u64) -> bool {
        let fits_round = self.round.span() + len + 2 * SECTOR <= self.allowance.round_max;
        let within_budget = self.spent == 0 || self.spent + len <= self.allowance.budget;
        let takes = fits_round && within_budget;
        if takes {
            self.spent += len;
        }
        takes
    }
}
