//! Commands on their way through the log: queued for this turn, then waiting for their entry to be applied.
//!
//! Raft never proposes an entry a second time, so an entry is named by (index, term) for good. Once *another* entry is applied at
//! that index, the command did not happen and never will; until then, a leader that lost its leadership can't tell. It does not guess: it waits a
//! bounded time and then answers "may have happened". Coalescing changes no outcome: each command has its own verdict.

use super::effects::{Answer, ProposeError, Token};
use super::entry::{COMMAND_HEADER_LEN, HEADER_LEN};
use crate::ids::{Digest, LogIndex, ReplicaId, Term, TimestampMs};
use crate::limits::{ENTRY_COALESCED_BYTES_MAX, ENTRY_COMMANDS_MAX};
use crate::segments::verdict::Verdict;
use crate::{planted, reached};
use bytes::Bytes;
use std::collections::{BTreeMap, VecDeque};

/// Commands of one turn that go into one entry, with whoever waits for each.
pub(super) struct Batch {
    pub(super) commands: Vec<Bytes>,
    pub(super) tokens: Vec<Token>,
}

/// Whoever waits for one entry.
struct Waiting {
    /// One for each command of the entry, in order.
    tokens: Vec<Token>,
    proposed_tick: u64,
}

/// What applying an entry came to, for those who wait for it.
#[derive(Clone, Copy)]
pub(super) struct AppliedEntry<'a> {
    pub(super) index: LogIndex,
    pub(super) term: Term,
    pub(super) timestamp: TimestampMs,
    pub(super) chain: Digest,
    /// One for each command.
    pub(super) verdicts: &'a [Verdict],
}

/// All commands under way in one replica.
#[derive(Default)]
pub(super) struct Proposals {
    queue: VecDeque<(Bytes, Token)>,
    queued_bytes: u64,
    waiting: BTreeMap<(LogIndex, Term), Waiting>,
    /// Tokens in `waiting`.
    waiting_count: usize,
    /// When the leadership ended under which the waiting ones were proposed, if it did.
    lost_at_tick: Option<u64>,
}

impl Proposals {
    /// Commands queued or waiting.
    pub(super) fn count(&self) -> usize {
        self.queue.len() + self.waiting_count
    }

    pub(super) fn has_queued(&self) -> bool {
        !self.queue.is_empty()
    }

    /// Bytes of the queued commands.
    pub(super) fn queued_bytes(&self) -> u64 {
        self.queued_bytes
    }

    pub(super) fn enqueue(&mut self, command: Bytes, token: Token) {
        self.queued_bytes += command.len() as u64;
        self.queue.push_back((command, token));
    }

    /// The next commands that share an entry: as many as its bounds allow, at least one.
    pub(super) fn next_batch(&mut self) -> Option<Batch> {
        let mut batch = Batch { commands: Vec::new(), tokens: Vec::new() };
        let mut bytes = HEADER_LEN;
        while let Some((command, _)) = self.queue.front() {
            bytes += COMMAND_HEADER_LEN + command.len();
            let full = bytes > ENTRY_COALESCED_BYTES_MAX || batch.commands.len() == ENTRY_COMMANDS_MAX;
            if full && !batch.commands.is_empty() {
                break;
            }
            let (command, token) = self.queue.pop_front()?;
            self.queued_bytes -= command.len() as u64;
            batch.commands.push(command);
            batch.tokens.push(token);
        }
        if batch.commands.len() > 1 {
            reached!("commands coalesced into one entry");
        }
        (!batch.commands.is_empty()).then_some(batch)
    }

    /// Refuses all that is still queued: it was never proposed.
    pub(super) fn refuse_queued(&mut self, error: &ProposeError, answers: &mut Vec<(Token, Answer)>) {
        self.queued_bytes = 0;
        answers.extend(self.queue.drain(..).map(|(_, token)| (token, Answer::Failed(error.clone()))));
    }

    /// An entry was proposed for these.
    pub(super) fn wait(&mut self, index: LogIndex, term: Term, tokens: Vec<Token>, tick: u64) {
        self.waiting_count += tokens.len();
        self.waiting.insert((index, term), Waiting { tokens, proposed_tick: tick });
    }

    /// An entry was applied: those who wait for it have their verdicts, those who wait for another one at its place learn that
    /// theirs did not happen.
    pub(super) fn applied(&mut self, entry: AppliedEntry<'_>, answers: &mut Vec<(Token, Answer)>) {
        let AppliedEntry { index, term: by, timestamp, chain, verdicts } = entry;
        while let Some(first) = self.waiting.first_entry() {
            let (at, term) = *first.key();
            if at > index {
                break;
            }
            assert!(at == index, "entry {at} was applied without an answer for those who wait for it");
            let waiting = first.remove();
            self.waiting_count -= waiting.tokens.len();
            if term == by || planted!("superseded-acknowledged") {
                assert_eq!(waiting.tokens.len(), verdicts.len(), "a verdict for each command of entry {index}");
                let applied = |verdict: &Verdict| Answer::Applied { index, term, timestamp, verdict: *verdict, chain };
                answers.extend(waiting.tokens.into_iter().zip(verdicts.iter().map(applied)));
            } else {
                reached!("proposal superseded");
                fail(waiting, &ProposeError::Superseded { index, term, by }, answers);
            }
        }
    }

    /// A snapshot covers everything through `index`: what became of those entries can't be told from it.
    pub(super) fn covered(&mut self, index: LogIndex, leader: Option<ReplicaId>, answers: &mut Vec<(Token, Answer)>) {
        let lost: Vec<_> = self.waiting.range(..=(index, Term(u64::MAX))).map(|(key, _)| *key).collect();
        self.lose(lost, leader, answers);
    }

    /// This replica no longer leads the term in which the waiting ones were proposed.
    pub(super) fn leadership_lost(&mut self, tick: u64) {
        self.lost_at_tick = Some(tick);
    }

    /// Gives up on those of lost leaderships that have waited long enough. `term` is the one led now, if any.
    pub(super) fn expire(
        &mut self,
        tick: u64,
        patience_ticks: u64,
        led: Option<Term>,
        leader: Option<ReplicaId>,
        answers: &mut Vec<(Token, Answer)>,
    ) {
        let Some(lost_at) = self.lost_at_tick else { return };
        let overdue = |waiting: &Waiting| tick > lost_at.max(waiting.proposed_tick + patience_ticks);
        let of_lost = self.waiting.iter().filter(|((_, term), _)| Some(*term) != led);
        let lost: Vec<_> = of_lost.filter(|(_, waiting)| overdue(waiting)).map(|(key, _)| *key).collect();
        self.lose(lost, leader, answers);
        if self.waiting.keys().all(|(_, term)| Some(*term) == led) {
            self.lost_at_tick = None;
        }
    }

    /// This replica stops: what was queued did not happen, what waits may have.
    pub(super) fn abandon(&mut self, answers: &mut Vec<(Token, Answer)>) {
        self.refuse_queued(&ProposeError::Removed, answers);
        let all: Vec<_> = self.waiting.keys().copied().collect();
        self.lose(all, None, answers);
    }

    fn lose(&mut self, keys: Vec<(LogIndex, Term)>, leader: Option<ReplicaId>, answers: &mut Vec<(Token, Answer)>) {
        for (index, term) in keys {
            let Some(waiting) = self.waiting.remove(&(index, term)) else { continue };
            self.waiting_count -= waiting.tokens.len();
            reached!("leadership lost, outcome unknown");
            fail(waiting, &ProposeError::LostLeadership { index, term, leader }, answers);
        }
    }
}

fn fail(waiting: Waiting, error: &ProposeError, answers: &mut Vec<(Token, Answer)>) {
    answers.extend(waiting.tokens.into_iter().map(|token| (token, Answer::Failed(error.clone()))));
}
