//! Linearizable reads: asks the leader how far the log was committed when the read came, and waits until that is applied here.
//!
//! Three rules, each against a failure seen with `raft` 0.7. A context is never used twice (replica, boot, counter): a reused one got a stale
//! answer from a deposed leader. A read asked for before the first commit of the leader's term is dropped without a word,
//! so it stays queued here. And any message may be lost, so an unanswered read is asked again under a new context, while
//! the old contexts stay good: whatever index was read after the read came serves it.

use super::effects::{Answer, ProposeError, Token};
use crate::ids::{LogIndex, Offset, ReplicaId};
use crate::{planted, reached};
use std::collections::BTreeMap;

/// Length of a read's context in bytes.
pub(super) const CONTEXT_LEN: usize = 24;

/// Reads of one turn, asked for together.
struct Asked {
    tokens: Vec<Token>,
    /// Contexts under which they were asked for.
    contexts: Vec<u64>,
    since_tick: u64,
    asked_tick: u64,
}

/// Reads whose index is known.
struct Confirmed {
    tokens: Vec<Token>,
    since_tick: u64,
}

/// All reads under way in one replica.
pub(super) struct Reads {
    replica: ReplicaId,
    boot: u64,
    counter: u64,
    /// Came since reads were last asked for.
    queue: Vec<(Token, u64)>,
    /// By the counter of their first context.
    asked: BTreeMap<u64, Asked>,
    /// Which `asked` a context belongs to.
    contexts: BTreeMap<u64, u64>,
    /// Wait for this index to be applied.
    confirmed: BTreeMap<LogIndex, Vec<Confirmed>>,
    count: usize,
}

impl Reads {
    pub(super) fn new(replica: ReplicaId, boot: u64) -> Reads {
        let (queue, asked, contexts, confirmed) = Default::default();
        Reads { replica, boot, counter: 0, queue, asked, contexts, confirmed, count: 0 }
    }

    /// Reads queued, asked for, or waiting for an index to be applied.
    pub(super) fn count(&self) -> usize {
        self.count
    }

    pub(super) fn enqueue(&mut self, token: Token, tick: u64) {
        self.queue.push((token, tick));
        self.count += 1;
    }

    /// The context under which all queued reads are to be asked for now, if there are any.
    pub(super) fn ask_queued(&mut self, tick: u64) -> Option<Vec<u8>> {
        let since_tick = self.queue.iter().map(|(_, since)| *since).min()?;
        let tokens = self.queue.drain(..).map(|(token, _)| token).collect();
        let (counter, context) = self.next_context();
        self.contexts.insert(counter, counter);
        self.asked.insert(counter, Asked { tokens, contexts: vec![counter], since_tick, asked_tick: tick });
        Some(context)
    }

    /// New contexts for reads that have waited for an answer for `retry_ticks`.
    pub(super) fn ask_again(&mut self, tick: u64, retry_ticks: u64) -> Vec<Vec<u8>> {
        let overdue = self.asked.iter().filter(|(_, asked)| tick >= asked.asked_tick + retry_ticks);
        let overdue: Vec<u64> = overdue.map(|(first, _)| *first).collect();
        let mut contexts = Vec::with_capacity(overdue.len());
        for first in overdue {
            let (counter, context) = self.next_context();
            if let Some(asked) = self.asked.get_mut(&first) {
                reached!("read asked for again");
                asked.asked_tick = tick;
                asked.contexts.push(counter);
                self.contexts.insert(counter, first);
                contexts.push(context);
            }
        }
        contexts
    }

    /// The leader confirmed what was asked for under `context`. Unknown ones are late or not ours.
    pub(super) fn confirmed(&mut self, context: &[u8], index: LogIndex) {
        let Some(counter) = self.counter_of(context) else { return };
        let Some(first) = self.contexts.get(&counter) else { return };
        let Some(asked) = self.asked.remove(first) else { return };
        for counter in asked.contexts {
            self.contexts.remove(&counter);
        }
        let confirmed = Confirmed { tokens: asked.tokens, since_tick: asked.since_tick };
        self.confirmed.entry(index).or_default().push(confirmed);
    }

    /// Everything through `index` is applied, and the tail there is `tail`.
    pub(super) fn applied(&mut self, index: LogIndex, tail: Offset, answers: &mut Vec<(Token, Answer)>) {
        while let Some(first) = self.confirmed.first_entry() {
            if *first.key() > index && !planted!("read-answered-before-applied") {
                break;
            }
            for Confirmed { tokens, .. } in first.remove() {
                self.count -= tokens.len();
                answers.extend(tokens.into_iter().map(|token| (token, Answer::ReadAt { index, tail })));
            }
        }
    }

    /// Fails the reads that have waited for `patience_ticks`: nobody confirmed them, or this replica does not get as far as the index that
    /// was confirmed, because its disk hangs or nothing reaches it. Another replica may serve them.
    pub(super) fn expire(
        &mut self,
        tick: u64,
        patience_ticks: u64,
        error: impl Fn() -> ProposeError,
        answers: &mut Vec<(Token, Answer)>,
    ) {
        let overdue = |since: u64| tick >= since + patience_ticks;
        let mut failed: Vec<Token> = Vec::new();
        self.queue.retain(|(token, since)| {
            if overdue(*since) {
                failed.push(*token);
            }
            !overdue(*since)
        });
        self.asked.retain(|_, asked| {
            if overdue(asked.since_tick) {
                failed.append(&mut asked.tokens);
                for counter in &asked.contexts {
                    self.contexts.remove(counter);
                }
            }
            !overdue(asked.since_tick)
        });
        self.confirmed.retain(|_, waiting| {
            waiting.retain_mut(|confirmed| {
                if overdue(confirmed.since_tick) {
                    failed.append(&mut confirmed.tokens);
                }
                !overdue(confirmed.since_tick)
            });
            !waiting.is_empty()
        });
        if !failed.is_empty() {
            reached!("read not confirmed in time");
        }
        self.fail(failed, error, answers);
    }

    /// This replica stops.
    pub(super) fn abandon(&mut self, answers: &mut Vec<(Token, Answer)>) {
        let mut failed: Vec<Token> = self.queue.drain(..).map(|(token, _)| token).collect();
        failed.extend(std::mem::take(&mut self.asked).into_values().flat_map(|asked| asked.tokens));
        let confirmed = std::mem::take(&mut self.confirmed).into_values().flatten();
        failed.extend(confirmed.flat_map(|confirmed| confirmed.tokens));
        self.contexts.clear();
        self.fail(failed, || ProposeError::Removed, answers);
    }

    fn fail(&mut self, tokens: Vec<Token>, error: impl Fn() -> ProposeError, answers: &mut Vec<(Token, Answer)>) {
        self.count -= tokens.len();
        answers.extend(tokens.into_iter().map(|token| (token, Answer::Failed(error()))));
    }

    fn next_context(&mut self) -> (u64, Vec<u8>) {
        self.counter += 1;
        if planted!("read-index-context-reused") {
            self.counter %= 2;
        }
        let context = [self.replica.0, self.boot, self.counter].map(u64::to_le_bytes).concat();
        (self.counter, context)
    }

    fn counter_of(&self, context: &[u8]) -> Option<u64> {
        let context: &[u8; CONTEXT_LEN] = context.try_into().ok()?;
        let ours = context[..8] == self.replica.0.to_le_bytes() && context[8..16] == self.boot.to_le_bytes();
        let counter = context[16..].try_into().ok()?;
        ours.then(|| u64::from_le_bytes(counter))
    }
}
