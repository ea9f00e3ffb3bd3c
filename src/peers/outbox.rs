//! What waits for one peer: a queue bounded by bytes, merged into batches when the link can take one.
//!
//! Pure. Whoever sends asks the [`Allowance`] first, without a lock; the link alone owns the [`Outbox`] behind it.
//! Refuses to block anybody: **when the allowance is used up the newest messages are dropped and counted.** Raft sends
//! again what matters; keeping the oldest keeps the order whole, which a follower's log can use, where the newest alone
//! would only be rejected.
//!
//! Invariant: the bytes held by the allowance are those of the messages queued and not yet taken.

use super::wire::GroupMessage;
use prost::Message;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// Bytes that a message costs beside its own length: tags, lengths and its place in the queue.
const MESSAGE_OVERHEAD_BYTES: usize = 16;

/// Bytes held against a bound, shared by those who queue and the one who takes.
#[derive(Debug)]
pub struct Allowance {
    bytes_max: usize,
    held_bytes: AtomicUsize,
    dropped_messages: AtomicU64,
    dropped_bytes: AtomicU64,
}

impl Allowance {
    /// An allowance of `bytes_max`, unused.
    #[must_use]
    pub fn new(bytes_max: usize) -> Allowance {
        let (held_bytes, dropped_messages, dropped_bytes) = Default::default();
        Allowance { bytes_max, held_bytes, dropped_messages, dropped_bytes }
    }

    /// Takes `bytes` if they fit; says whether they did.
    #[must_use]
    pub fn try_hold(&self, bytes: usize) -> bool {
        let held = self.held_bytes.fetch_add(bytes, Ordering::Relaxed);
        let fits = held.saturating_add(bytes) <= self.bytes_max;
        if !fits {
            self.held_bytes.fetch_sub(bytes, Ordering::Relaxed);
        }
        fits
    }

    /// Gives back what [`Allowance::try_hold`] took.
    pub fn release(&self, bytes: usize) {
        let held = self.held_bytes.fetch_sub(bytes, Ordering::Relaxed);
        assert!(held >= bytes, "{bytes} bytes given back, {held} held");
    }

    /// Counts messages that were not sent.
    pub fn count_dropped(&self, messages: usize, bytes: usize) {
        self.dropped_messages.fetch_add(messages as u64, Ordering::Relaxed);
        self.dropped_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Bytes held now.
    #[must_use]
    pub fn held_bytes(&self) -> usize {
        self.held_bytes.load(Ordering::Relaxed)
    }

    /// The bound.
    #[must_use]
    pub fn bytes_max(&self) -> usize {
        self.bytes_max
    }

    /// Messages dropped so far.
    #[must_use]
    pub fn dropped_messages(&self) -> u64 {
        self.dropped_messages.load(Ordering::Relaxed)
    }

    /// Bytes of the messages dropped so far.
    #[must_use]
    pub fn dropped_bytes(&self) -> u64 {
        self.dropped_bytes.load(Ordering::Relaxed)
    }
}

/// Messages of one turn, with the bytes they hold of the allowance.
#[derive(Debug, Default, PartialEq)]
pub struct Queued {
    /// In the order in which they must arrive.
    pub messages: Vec<GroupMessage>,
    /// Bytes they hold.
    pub bytes: usize,
}

impl Queued {
    /// Weighs messages.
    #[must_use]
    pub fn new(messages: Vec<GroupMessage>) -> Queued {
        let bytes = messages.iter().map(weight).sum();
        Queued { messages, bytes }
    }
}

/// The link's end of the queue.
#[derive(Debug, Default)]
pub struct Outbox {
    queue: VecDeque<Queued>,
}

impl Outbox {
    /// Queues messages that the allowance holds already. None at all are a sign of life, of use only if nothing else waits.
    pub fn push(&mut self, queued: Queued) {
        if !queued.messages.is_empty() || self.queue.is_empty() {
            self.queue.push_back(queued);
        }
    }

    /// Whether nothing waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// The next batch: as many of the oldest messages as fit into `bytes_max`, at least one if any waits. The caller
    /// gives their bytes back to the allowance.
    pub fn take(&mut self, bytes_max: usize) -> Option<Queued> {
        let mut batch = self.take_first(bytes_max)?;
        while let Some(next) = self.queue.pop_front() {
            if batch.bytes + next.bytes > bytes_max {
                self.queue.push_front(next);
                break;
            }
            batch.bytes += next.bytes;
            batch.messages.extend(next.messages);
        }
        Some(batch)
    }

    /// All that waits: the peer can't be reached, and what waited for it would be stale.
    pub fn take_all(&mut self) -> Option<Queued> {
        self.take(usize::MAX)
    }

    /// The oldest turn, or as much of it as fits.
    fn take_first(&mut self, bytes_max: usize) -> Option<Queued> {
        let mut first = self.queue.pop_front()?;
        if first.bytes <= bytes_max {
            return Some(first);
        }
        let mut bytes = 0;
        let fitting = first.messages.iter().take_while(|message| {
            bytes += weight(message);
            bytes <= bytes_max
        });
        let count = fitting.count().max(1);
        let rest = Queued::new(first.messages.split_off(count));
        first.bytes -= rest.bytes;
        self.push_front(rest);
        Some(first)
    }

    fn push_front(&mut self, queued: Queued) {
        if !queued.messages.is_empty() {
            self.queue.push_front(queued);
        }
    }
}

fn weight(message: &GroupMessage) -> usize {
    message.encoded_len() + MESSAGE_OVERHEAD_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;
    use raft::eraftpb;

    fn turn(groups: &[u64], payload: usize) -> Queued {
        let message = eraftpb::Message { context: vec![7u8; payload].into(), ..Default::default() };
        Queued::new(
            groups.iter().map(|&group| GroupMessage { group, message: Some(Box::new(message.clone())) }).collect(),
        )
    }

    fn groups(batch: &Queued) -> Vec<u64> {
        batch.messages.iter().map(|message| message.group).collect()
    }

    #[test]
    fn turns_merge_in_order_up_to_the_bound() {
        let mut outbox = Outbox::default();
        for group in [1, 3, 5] {
            outbox.push(turn(&[group, group + 1], 100));
        }
        let two_turns = 2 * turn(&[1, 2], 100).bytes;
        let batch = outbox.take(two_turns).unwrap();
        assert_eq!((groups(&batch), batch.bytes), (vec![1, 2, 3, 4], two_turns));
        assert_eq!(groups(&outbox.take(two_turns).unwrap()), [5, 6]);
        assert!(outbox.is_empty() && outbox.take(two_turns).is_none());
    }

    #[test]
    fn a_turn_that_is_too_large_is_split_and_a_message_that_is_goes_alone() {
        let mut outbox = Outbox::default();
        let whole = turn(&[1, 2, 3], 100);
        let total = whole.bytes;
        outbox.push(whole);
        let first = outbox.take(total - 1).unwrap();
        assert_eq!(groups(&first), [1, 2]);
        let second = outbox.take(1).unwrap();
        assert_eq!((groups(&second), first.bytes + second.bytes), (vec![3], total));
        assert!(outbox.is_empty());
    }

    #[test]
    fn the_allowance_refuses_the_newest_and_remembers_nothing_of_it() {
        let allowance = Allowance::new(100);
        assert!(allowance.try_hold(60) && !allowance.try_hold(41) && allowance.try_hold(40));
        assert_eq!(allowance.held_bytes(), 100);
        allowance.release(100);
        assert!(!allowance.try_hold(usize::MAX), "no overflow lets a giant through");
        assert_eq!(allowance.held_bytes(), 0);
        allowance.count_dropped(2, 41);
        assert_eq!((allowance.dropped_messages(), allowance.dropped_bytes()), (2, 41));
    }
}
