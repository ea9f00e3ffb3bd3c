//! One producer session: what makes a retried append safe.
//!
//! A session numbers its records from zero; a batch carries the number (*sequence*) of its first record, modulo 2^31 as
//! the batch's header holds it. Inside, a session counts in 64 bits and never wraps, so that "behind" and "ahead" are
//! exact: the one number a sequence can mean is the one at most 2^30 behind what is expected.
//!
//! The session admits exactly the expected sequence, and remembers the last `SESSION_WINDOW_BATCHES` batches with the
//! offsets they got. It never admits past a gap, and never admits a sequence again: what it can't tell from memory is refused
//! in words that say whether it may have happened. It decides nothing about fences or expected offsets.

use crate::batch::BatchProducer;
use crate::ids::{Offset, ProducerId, TimestampMs};
use crate::limits::{BATCH_RECORDS_MAX, SESSION_WINDOW_BATCHES};
use crate::segments::verdict::Refusal;
use crate::{planted, reached};
use std::collections::VecDeque;
use std::sync::Arc;

/// Sequences run from zero up to this, and start over.
pub const SEQUENCE_MODULUS: u64 = 1 << 31;

/// A sequence further behind the expected one than this is taken to be ahead of it.
const BEHIND_MAX: u64 = SEQUENCE_MODULUS / 2;

/// The highest epoch that a batch's header holds.
pub(crate) const EPOCH_MAX: u16 = i16::MAX as u16;

// Every remembered sequence can be told from one that is ahead.
const _: () = assert!((SESSION_WINDOW_BATCHES * BATCH_RECORDS_MAX) as u64 <= BEHIND_MAX);

/// A batch that the session appended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Remembered {
    /// Number of its first record, counted from the session's first, never wrapping.
    pub(crate) first: u64,
    /// Offset of its first record.
    pub(crate) offset: Offset,
    /// Records in it.
    pub(crate) count: u32,
    /// The session's epoch then.
    pub(crate) epoch: u16,
}

/// An open producer session.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Session {
    pub(crate) name: Option<Arc<str>>,
    /// At most [`EPOCH_MAX`].
    pub(crate) epoch: u16,
    /// Records appended in its whole life. The next sequence is this, modulo 2^31.
    pub(crate) records: u64,
    /// The log's time when it was last opened, appended to, or retried successfully.
    pub(crate) used: TimestampMs,
    /// The tail after its last append; zero if there was none.
    pub(crate) tail: Offset,
    /// Invariant: ascending, without gaps in `first`, and, unless empty, ends at `records`.
    pub(crate) window: VecDeque<Remembered>,
}

/// Where a session stands.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SessionStanding {
    /// Its id.
    pub producer: ProducerId,
    /// Its name, if it was opened under one.
    pub name: Option<Arc<str>>,
    /// Its present epoch.
    pub epoch: u16,
    /// Sequence of its next record.
    pub next_sequence: u32,
    /// Records appended in its whole life.
    pub records: u64,
    /// The tail after its last append; zero if there was none.
    pub tail: Offset,
    /// The log's time when it was last used.
    pub used: TimestampMs,
}

/// What a session says to a batch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Judgement {
    /// It is the expected one.
    Next,
    /// It was appended before, there.
    Repeated(Offset),
    /// It must not be appended.
    Refused(Refusal),
}

impl Session {
    pub(crate) fn new(name: Option<Arc<str>>, now: TimestampMs) -> Session {
        Session { name, epoch: 0, records: 0, used: now, tail: Offset::ZERO, window: VecDeque::new() }
    }

    /// Sequence of the next record.
    pub(crate) fn next_sequence(&self) -> u32 {
        wrapped(self.records)
    }

    /// Judges a batch of `count` records; changes nothing.
    ///
    /// An older epoch is refused, but for one case: a batch that was appended under that very epoch keeps its first
    /// offset, for the promise to its producer outlives the epoch, and answering *did not happen* would be a lie. What the
    /// present holder retries from an earlier epoch is the same work carried on, so that matches too.
    pub(crate) fn judge(&self, batch: BatchProducer, count: u32) -> Judgement {
        let BatchProducer { id, epoch, base_sequence: sequence } = batch;
        if epoch > self.epoch {
            return Judgement::Refused(Refusal::SessionUnknown { producer: id.0 });
        }
        let outdated = Refusal::SessionEpochOld { epoch: epoch.into(), current: self.epoch.into() };
        let held = epoch == self.epoch;
        let behind = (u64::from(self.next_sequence()) + SEQUENCE_MODULUS - u64::from(sequence)) % SEQUENCE_MODULUS;
        if behind == 0 || behind > self.records.min(BEHIND_MAX) {
            return match (held, behind) {
                (false, _) => Judgement::Refused(outdated),
                (true, 0) => Judgement::Next,
                (true, _) if planted!("sequence-gap-admitted") => Judgement::Next,
                (true, _) => Judgement::Refused(Refusal::SequenceGap {
                    sequence: sequence.into(),
                    expected: self.next_sequence().into(),
                }),
            };
        }
        let first = self.records - behind;
        let oldest = self.window.front().map_or(self.records, |oldest| oldest.first);
        if first < oldest {
            reached!("retry older than the session's window");
            let oldest = wrapped(oldest).into();
            return Judgement::Refused(Refusal::SequenceOld { sequence: sequence.into(), oldest });
        }
        match self.window.binary_search_by_key(&first, |remembered| remembered.first) {
            Ok(at) if !held && self.window[at].epoch != epoch => Judgement::Refused(outdated),
            Ok(at) if self.window[at].count == count => Judgement::Repeated(self.window[at].offset),
            _ => Judgement::Refused(Refusal::RetryDiffers { sequence: sequence.into() }),
        }
    }

    /// Remembers a batch that was judged `Next` and is appended now.
    pub(crate) fn remember(&mut self, offset: Offset, count: u32, now: TimestampMs) {
        if self.window.len() == SESSION_WINDOW_BATCHES {
            self.window.pop_front();
        }
        self.window.push_back(Remembered { first: self.records, offset, count, epoch: self.epoch });
        self.records += u64::from(count);
        self.tail = offset.plus(count.into());
        self.used = now;
    }

    pub(crate) fn standing(&self, producer: ProducerId) -> SessionStanding {
        SessionStanding {
            producer,
            name: self.name.clone(),
            epoch: self.epoch,
            next_sequence: self.next_sequence(),
            records: self.records,
            tail: self.tail,
            used: self.used,
        }
    }
}

fn wrapped(record: u64) -> u32 {
    (record % SEQUENCE_MODULUS) as u32
}
