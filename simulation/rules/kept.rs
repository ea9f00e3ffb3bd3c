//! What one replica's journal must hold, rebuilt from what the replica wanted written and what it was told of it.
//!
//! Nothing here looks into the journal: it is the other side of the comparison. Entries are remembered as term and digest. Bases that
//! the driver records by itself are not seen, and need not be: they cover what was applied.

use balsa::ids::LogIndex;
use balsa::journal::{GroupWrite, RecoveredGroup};
use raft::eraftpb::{Entry, HardState};
use std::collections::VecDeque;

/// An entry: its term, and a digest of its kind and data.
pub type EntryMark = (u64, u64);

/// A digest that need not withstand an adversary.
pub fn digest_of(kind: i32, data: &[u8]) -> u64 {
    const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;
    let mut hash = (kind as u64 ^ ((data.len() as u64) << 8)).wrapping_mul(FACTOR);
    let (words, rest) = data.as_chunks::<8>();
    let mut last = [0; 8];
    last[..rest.len()].copy_from_slice(rest);
    for word in words.iter().chain([&last]) {
        let mixed = u128::from(hash ^ u64::from_le_bytes(*word)).wrapping_mul(u128::from(FACTOR));
        hash = (mixed as u64) ^ ((mixed >> 64) as u64);
    }
    hash
}

pub fn mark_of(entry: &Entry) -> EntryMark {
    (entry.term, digest_of(entry.entry_type, &entry.data))
}

/// A group's part of a journal.
#[derive(Clone, Default)]
pub struct Kept {
    /// Index and term of the base.
    pub base: (u64, u64),
    pub hard_state: HardState,
    /// The entries after the base.
    entries: VecDeque<EntryMark>,
}

/// One write, as far as it is compared.
pub struct Written {
    pub number: u64,
    pub base: Option<(u64, u64)>,
    pub hard_state: Option<HardState>,
    /// Index of the first entry.
    pub first: u64,
    pub entries: Vec<EntryMark>,
    /// More or less what it takes in the journal.
    pub bytes: u64,
    /// Messages that wait for it.
    pub messages: usize,
}

impl Written {
    pub fn of(number: u64, write: &GroupWrite, messages: usize) -> Written {
        Written {
            number,
            base: write.base.as_ref().map(|base| (base.index.0, base.term.0)),
            hard_state: write.hard_state,
            first: write.entries.first().map_or(0, |entry| entry.index),
            entries: write.entries.iter().map(mark_of).collect(),
            bytes: write.entries.iter().map(|entry| 64 + entry.data.len() as u64).sum(),
            messages,
        }
    }

    pub fn is_empty(&self) -> bool {
        self.base.is_none() && self.hard_state.is_none() && self.entries.is_empty()
    }
}

impl Kept {
    pub fn of(recovered: &RecoveredGroup) -> Kept {
        Kept {
            base: (recovered.base.index.0, recovered.base.term.0),
            hard_state: recovered.hard_state,
            entries: recovered.entries.iter().map(mark_of).collect(),
        }
    }

    pub fn last(&self) -> u64 {
        self.base.0 + self.entries.len() as u64
    }

    pub fn last_term(&self) -> u64 {
        self.entries.back().map_or(self.base.1, |entry| entry.0)
    }

    pub fn entry(&self, index: u64) -> Option<EntryMark> {
        let at = index.checked_sub(self.base.0 + 1)?;
        self.entries.get(at as usize).copied()
    }

    pub fn term_of(&self, index: u64) -> Option<u64> {
        if index == self.base.0 {
            return Some(self.base.1);
        }
        self.entry(index).map(|entry| entry.0)
    }

    /// Whether it has this entry; what its base covers was agreed on.
    pub fn holds(&self, index: u64, term: u64) -> bool {
        index <= self.base.0 || self.term_of(index) == Some(term)
    }

    /// # Errors
    /// If the write leaves a gap.
    pub fn apply(&mut self, written: &Written) -> Result<(), String> {
        self.apply_first(written, written.entries.len())
    }

    /// Applies a write with its first `count` entries alone.
    fn apply_first(&mut self, written: &Written, count: usize) -> Result<(), String> {
        if let Some(base) = written.base {
            self.move_base(base);
        }
        if !written.entries.is_empty() {
            let (first, last) = (written.first, self.last());
            if first <= self.base.0 || first > last + 1 {
                return Err(format!("entries from {first} are written to a log that holds ({}, {last}]", self.base.0));
            }
            self.entries.truncate((first - self.base.0 - 1) as usize);
            self.entries.extend(&written.entries[..count]);
        }
        if let Some(hard_state) = written.hard_state {
            self.hard_state = hard_state;
        }
        Ok(())
    }

    fn move_base(&mut self, base: (u64, u64)) {
        if self.term_of(base.0) == Some(base.1) {
            self.entries.drain(..(base.0 - self.base.0) as usize);
        } else {
            self.entries.clear();
        }
        self.base = base;
    }

    /// Whether this is what was found; a base within may have moved meanwhile, up to `applied`.
    fn is(&self, found: &Kept, applied: u64) -> bool {
        let moved = found.base.0 > self.base.0;
        let base = if moved {
            found.base.0 <= applied && self.term_of(found.base.0) == Some(found.base.1)
        } else {
            found.base == self.base
        };
        let skipped = found.base.0.saturating_sub(self.base.0) as usize;
        base && self.hard_state == found.hard_state
            && self.entries.len() == skipped + found.entries.len()
            && self.entries.range(skipped..).eq(&found.entries)
    }

    /// Whether `found` is this, with some of the writes that were under way: all of the first ones, and of the next one the first
    /// entries if it was too large for one round.
    pub fn may_become(
        &self,
        under_way: &VecDeque<Written>,
        found: &RecoveredGroup,
        applied: LogIndex,
        round_bytes_max: u64,
    ) -> bool {
        let found = Kept::of(found);
        let mut at = self.clone();
        for written in under_way {
            if at.is(&found, applied.0) {
                return true;
            }
            if written.bytes > round_bytes_max / 2 && at.is_in_part(written, &found, applied.0) {
                return true;
            }
            if at.apply(written).is_err() {
                return false;
            }
        }
        at.is(&found, applied.0)
    }

    fn is_in_part(&self, written: &Written, found: &Kept, applied: u64) -> bool {
        (1..written.entries.len()).any(|count| {
            let mut at = self.clone();
            if at.apply_first(written, count).is_err() {
                return false;
            }
            // The commit of a part never runs ahead of its entries.
            at.hard_state.commit = found.hard_state.commit.min(at.hard_state.commit);
            at.is(found, applied)
        })
    }

    /// In words, for who reads the broken rule.
    pub fn describe(&self) -> String {
        let HardState { term, vote, commit } = self.hard_state;
        format!(
            "base {}/{}, log through {}/{}, term {term}, vote {vote:#x}, commit {commit}",
            self.base.0,
            self.base.1,
            self.last(),
            self.last_term(),
        )
    }
}
