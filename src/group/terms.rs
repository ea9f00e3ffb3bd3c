//! The terms of a log's entries, as runs: what Raft may ask for any kept entry, in memory at all times.
//!
//! A log of a million entries under five leaders is five runs. Raft aborts when a term it may ask for is not there
//! at once, so these are never on disk alone.

use crate::ids::{LogIndex, Term};
use std::collections::VecDeque;

/// Runs of equal terms over the half-open range of entries after `before`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TermRuns {
    /// The entry before the first kept one: its term is known, its content is not.
    before: (LogIndex, Term),
    /// First index and term of each run. Invariant: both strictly ascend, the first index is `before`'s next.
    runs: VecDeque<(LogIndex, Term)>,
    last: LogIndex,
}

impl TermRuns {
    /// A log that holds nothing after the entry `before`.
    #[must_use]
    pub fn empty(before: LogIndex, term: Term) -> TermRuns {
        TermRuns { before: (before, term), runs: VecDeque::new(), last: before }
    }

    /// The terms of a log that is kept from the entry after `runs`' first index through `last`. Each run is its first
    /// index and its term; the first one starts right before the first kept entry. `None` if that is not so.
    #[must_use]
    pub fn kept(runs: &[(LogIndex, Term)], last: LogIndex) -> Option<TermRuns> {
        let (&(before, term), rest) = runs.split_first()?;
        let ascend = runs.windows(2).all(|pair| pair[0].0 < pair[1].0 && pair[0].1 <= pair[1].1);
        let end = runs.last()?.0;
        if !ascend || end > last {
            return None;
        }
        let mut terms = TermRuns::empty(before, term);
        let starts = rest.iter().map(|run| run.0).chain([last.next()]);
        for (&(_, term), next) in runs.iter().zip(starts) {
            let through = LogIndex(next.0 - 1);
            if through > terms.last {
                terms.push_through(through, term);
            }
        }
        Some(terms)
    }

    /// The first kept entry; absent if it lies beyond [`Self::last_index`].
    #[must_use]
    pub fn first_index(&self) -> LogIndex {
        self.before.0.next()
    }

    /// The last entry.
    #[must_use]
    pub fn last_index(&self) -> LogIndex {
        self.last
    }

    /// The term at `index`, if it lies between the entry before the first kept one and the last.
    #[must_use]
    pub fn term_of(&self, index: LogIndex) -> Option<Term> {
        if index == self.before.0 {
            return Some(self.before.1);
        }
        if index < self.before.0 || index > self.last {
            return None;
        }
        let after = self.runs.partition_point(|run| run.0 <= index);
        Some(self.runs[after - 1].1)
    }

    /// Adds the next entry, or as many as reach through `last`, of one term.
    ///
    /// # Panics
    /// If `last` is not beyond the present end, or the term is below the last one: terms only ascend along a log.
    pub fn push_through(&mut self, last: LogIndex, term: Term) {
        assert!(last > self.last, "entry {last} does not follow {}", self.last);
        let newest = self.runs.back().map_or(self.before.1, |run| run.1);
        assert!(term >= newest, "entry {last} of term {term} follows one of term {newest}");
        if self.runs.back().is_none_or(|run| run.1 < term) {
            self.runs.push_back((self.last.next(), term));
        }
        self.last = last;
    }

    /// Forgets all entries from `index` on.
    ///
    /// # Panics
    /// If `index` lies before the first kept entry.
    pub fn truncate_from(&mut self, index: LogIndex) {
        assert!(index > self.before.0, "entry {index} lies before the log, which starts at {}", self.first_index());
        if index > self.last {
            return;
        }
        while self.runs.back().is_some_and(|run| run.0 >= index) {
            self.runs.pop_back();
        }
        self.last = LogIndex(index.0 - 1);
    }

    /// Forgets all entries before `first`, except the term of the one right before it.
    ///
    /// # Panics
    /// If `first` lies beyond the entry after the last.
    pub fn trim_to(&mut self, first: LogIndex) {
        if first <= self.first_index() {
            return;
        }
        let before = LogIndex(first.0 - 1);
        let term = self.term_of(before).unwrap_or_else(|| panic!("trim to {first}, but the log ends at {}", self.last));
        self.before = (before, term);
        while self.runs.get(1).is_some_and(|run| run.0 <= first) {
            self.runs.pop_front();
        }
        if before == self.last {
            self.runs.clear();
        } else if let Some(run) = self.runs.front_mut() {
            run.0 = first;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn terms(runs: &TermRuns) -> Vec<u64> {
        (0..=runs.last.0 + 1).map(|index| runs.term_of(LogIndex(index)).map_or(0, |term| term.0)).collect()
    }

    fn sample() -> TermRuns {
        let mut runs = TermRuns::empty(LogIndex(2), Term(1));
        runs.push_through(LogIndex(4), Term(2));
        runs.push_through(LogIndex(5), Term(2));
        runs.push_through(LogIndex(7), Term(5));
        runs
    }

    #[test]
    fn every_kept_entry_has_its_term_and_no_other() {
        assert_eq!(terms(&sample()), [0, 0, 1, 2, 2, 2, 5, 5, 0]);
        assert_eq!(sample().runs.len(), 2);
    }

    #[test]
    fn runs_as_the_segments_keep_them_give_the_same_terms() {
        let whole = [(LogIndex(2), Term(1)), (LogIndex(3), Term(2)), (LogIndex(6), Term(5))];
        assert_eq!(TermRuns::kept(&whole, LogIndex(7)), Some(sample()));
        assert_eq!(TermRuns::kept(&whole[..1], LogIndex(2)), Some(TermRuns::empty(LogIndex(2), Term(1))));
        assert_eq!(TermRuns::kept(&whole, LogIndex(5)), None, "a run beyond the end");
        assert_eq!(TermRuns::kept(&[whole[1], whole[0]], LogIndex(7)), None, "runs that descend");
        assert_eq!(TermRuns::kept(&[], LogIndex(7)), None);
    }

    #[test]
    fn truncation_and_trimming_keep_the_terms_of_the_rest() {
        for first in 3..=8 {
            for end in first..=8 {
                let mut runs = sample();
                runs.truncate_from(LogIndex(end));
                runs.trim_to(LogIndex(first));
                let all = [0, 0, 1, 2, 2, 2, 5, 5];
                for index in 0..=8 {
                    let kept = index + 1 >= first && index < end;
                    let expected = kept.then(|| Term(all[index as usize]));
                    assert_eq!(runs.term_of(LogIndex(index)), expected, "{index} of {first}..{end}");
                }
                runs.push_through(LogIndex(end), Term(9));
                assert_eq!(runs.term_of(LogIndex(end)), Some(Term(9)));
            }
        }
    }
}
