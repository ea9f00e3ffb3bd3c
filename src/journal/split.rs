//! Cuts what the groups want written into rounds. Pure.

use super::format::FRAME_HEADER_LEN;
use super::groups::STATE_REFERENCE_LEN;
use super::GroupWrite;
use crate::ids::LogIndex;
use crate::reached;
use raft::eraftpb::HardState;

/// Bytes that a write takes in a round, at most: its hard state counts twice.
pub(super) fn encoded_len_max(write: &GroupWrite) -> u64 {
    let base = write.base.as_ref().map_or(0, |base| FRAME_HEADER_LEN + base.encoded_len() + STATE_REFERENCE_LEN);
    let entries = write.entries.iter().map(|entry| FRAME_HEADER_LEN + entry.data.len() + entry.context.len());
    (base + 3 * FRAME_HEADER_LEN + entries.sum::<usize>()) as u64
}

/// Cuts what is to be written into rounds of `bytes_max` each, unless a single entry or base is larger.
pub(super) fn split(writes: Vec<GroupWrite>, bytes_max: u64) -> Vec<Vec<GroupWrite>> {
    let mut rounds: Vec<Vec<GroupWrite>> = Vec::new();
    let mut room = 0;
    for write in writes.into_iter().flat_map(|write| split_write(write, bytes_max)) {
        let len = encoded_len_max(&write);
        match rounds.last_mut() {
            Some(round) if len <= room => {
                room -= len;
                round.push(write);
            }
            _ => {
                room = bytes_max.saturating_sub(len);
                rounds.push(vec![write]);
            }
        }
    }
    rounds
}

/// Cuts one write into pieces that fit a round each. Every piece leaves the group as raft may have left it: the term
/// and the vote come with the first entries of that term, the commit never runs ahead of the entries.
fn split_write(mut write: GroupWrite, bytes_max: u64) -> Vec<GroupWrite> {
    let mut pieces = Vec::new();
    while encoded_len_max(&write) > bytes_max && write.entries.len() > 1 {
        let mut len = encoded_len_max(&GroupWrite { entries: Vec::new(), ..write.clone() });
        let fits = write.entries.iter().take_while(|entry| {
            len += (FRAME_HEADER_LEN + entry.data.len() + entry.context.len()) as u64;
            len <= bytes_max
        });
        reached!("write split over several rounds");
        let count = fits.count().clamp(1, write.entries.len() - 1);
        let rest = write.entries.split_off(count);
        let before = LogIndex(write.entries[0].index - 1);
        let hard_state = write.hard_state;
        let clamped = hard_state.map(|full| HardState { commit: full.commit.min(before.0), ..full });
        let (group, base) = (write.group, write.base.take());
        pieces.push(GroupWrite { group, hard_state: clamped, entries: write.entries, base, removed: false });
        write = GroupWrite { group, hard_state, entries: rest, base: None, removed: false };
    }
    pieces.push(write);
    pieces
}
