//! A model of one group's committed log, and a check of segments against it: every read, by offset, by time and by index.

use balsa::batch::{self, BatchBuilder, RecordRef};
use balsa::ids::{Digest, GroupId, LogIndex, NodeId, Offset, ReplicaId, Term, TimestampMs};
use balsa::journal::base::Base;
use balsa::segments::verdict::{Refusal, Verdict};
use balsa::segments::{
    BaseLocated, EntryKind, Frame, Item, Located, LocatedEntries, ReadBatch, Segments, SegmentsError, SegmentsOptions,
    TimeLocated,
};
use bytes::{BufMut, Bytes, BytesMut};
use futures::FutureExt;
use raft::eraftpb::{ConfState, Entry, EntryType};
use rand::rngs::StdRng;
use rand::Rng;
use std::collections::BTreeMap;
use std::future::Future;

/// The group under test.
pub const GROUP: GroupId = GroupId(7);

/// Runs a job; the simulated disk answers at once.
pub fn now<T>(job: impl Future<Output = T>) -> T {
    job.now_or_never().expect("the simulated disk answers at once")
}

/// Segments small enough that a short history has many.
pub fn small(rng: &mut StdRng) -> SegmentsOptions {
    SegmentsOptions {
        group: GROUP,
        segment_bytes: rng.gen_range(600..4_000),
        // Half of them so short that even a small active segment has an index.
        index_stride_bytes: if rng.gen() { rng.gen_range(1..16) } else { rng.gen_range(1..1_000) },
        tail_cache_bytes: rng.gen_range(0..3_000),
    }
}

/// One committed entry and what surrounds it.
#[derive(Clone)]
struct Committed {
    frame: Frame,
    tail_before: Offset,
    batches: Vec<ReadBatch>,
}

/// The log as it was committed.
#[derive(Clone)]
pub struct Model {
    /// The founding base, or the last snapshot that was installed.
    pub origin: Base,
    entries: BTreeMap<LogIndex, Committed>,
    pub tail: Offset,
}

impl Model {
    /// A log that starts with `origin`.
    pub fn new(origin: Base) -> Model {
        Model { tail: origin.tail, origin, entries: BTreeMap::new() }
    }

    /// A group's founding base.
    pub fn founding() -> Base {
        Base { index: LogIndex(1), term: Term(1), ..base_of(LogIndex(1), Term(1), Offset(0), TimestampMs(0)) }
    }

    pub fn last_index(&self) -> LogIndex {
        self.entries.last_key_value().map_or(self.origin.index, |(index, _)| *index)
    }

    fn last(&self) -> (Term, TimestampMs) {
        let last = self.entries.last_key_value();
        last.map_or((self.origin.term, self.origin.timestamp), |(_, last)| (last.frame.term, last.frame.timestamp))
    }

    /// The base captured right after `index`.
    pub fn base_at(&self, index: LogIndex) -> Base {
        if index == self.origin.index {
            return self.origin.clone();
        }
        let at = &self.entries[&index];
        let tail = self.entries.get(&index.next()).map_or(self.tail, |next| next.tail_before);
        base_of(index, at.frame.term, tail, at.frame.timestamp)
    }

    /// Draws the next committed entry.
    pub fn commit(&mut self, rng: &mut StdRng) -> Frame {
        let (term, timestamp) = self.last();
        let term = Term(term.0 + u64::from(rng.gen_ratio(1, 8)));
        let timestamp = TimestampMs(timestamp.0 + rng.gen_range(0..3) * 10);
        let index = self.last_index().next();
        let kind = match rng.gen_range(0..10) {
            0 => EntryKind::Empty,
            1 => EntryKind::ConfChange,
            _ => EntryKind::Commands,
        };
        let tail_before = self.tail;
        let (mut items, mut batches, mut data) = (Vec::new(), Vec::new(), BytesMut::new());
        match kind {
            EntryKind::Empty => {}
            EntryKind::ConfChange => data.put_slice(b"a change of configuration"),
            EntryKind::Commands => {
                for _ in 0..rng.gen_range(1..4) {
                    data.put_slice(&[9; 5]);
                    items.push(self.command(rng, term, timestamp, &mut data, &mut batches));
                }
            }
        }
        let chain = Digest([index.0 as u8; 32]);
        let frame = Frame { index, term, kind, timestamp, chain, items, data: data.freeze() };
        self.entries.insert(index, Committed { frame: frame.clone(), tail_before, batches });
        frame
    }

    fn command(
        &mut self,
        rng: &mut StdRng,
        term: Term,
        timestamp: TimestampMs,
        data: &mut BytesMut,
        batches: &mut Vec<ReadBatch>,
    ) -> Item {
        let at = data.len() as u32;
        let count = rng.gen_range(1..4);
        let sent = a_batch(rng, count);
        match rng.gen_range(0..6) {
            0 => Item { verdict: Verdict::Done { value: 4, extra: 5 }, batch_at: None },
            1 => {
                data.put_slice(&sent);
                Item { verdict: Verdict::Refused(Refusal::SessionUnknown { producer: 3 }), batch_at: Some(at) }
            }
            _ => {
                data.put_slice(&sent);
                let mut stamped = BytesMut::from(&sent[..]);
                batch::stamp(&mut stamped, self.tail, term);
                let (batch, base_offset) = (stamped.freeze(), self.tail);
                batches.push(ReadBatch { batch, base_offset, count, timestamp });
                self.tail = self.tail.plus(u64::from(count));
                Item { verdict: Verdict::Appended { offset: base_offset, count }, batch_at: Some(at) }
            }
        }
    }

    /// The frames behind `index`, as the journal would give them again.
    pub fn frames_after(&self, index: LogIndex) -> impl Iterator<Item = &Frame> {
        self.entries.range(index.next()..).map(|(_, committed)| &committed.frame)
    }

    /// The log cut to what a base covers.
    pub fn through(&self, base: &Base) -> Model {
        let entries = self.entries.range(..=base.index).map(|(index, entry)| (*index, entry.clone())).collect();
        Model { origin: self.origin.clone(), entries, tail: base.tail }
    }

    /// Holds everything that the segments answer against the model.
    pub fn check(&self, segments: &Segments, rng: &mut StdRng) -> Result<(), SegmentsError> {
        assert_eq!((segments.last_index(), segments.tail()), (self.last_index(), self.tail));
        assert!(segments.first_index() > self.origin.index, "nothing from before the snapshot is left");
        self.check_entries(segments, rng)?;
        self.check_offsets(segments, rng)?;
        self.check_times(segments, rng)?;
        let before_first = LogIndex(segments.first_index().0 - 1);
        let oldest = match segments.oldest_base() {
            BaseLocated::Known(base) => *base,
            BaseLocated::Cold(job) => now(job.run())?,
        };
        assert_eq!(oldest, self.base_at(before_first));
        Ok(())
    }

    fn check_entries(&self, segments: &Segments, rng: &mut StdRng) -> Result<(), SegmentsError> {
        let (first, end) = (segments.first_index(), self.last_index().next());
        assert_eq!(segments.term_of(LogIndex(first.0 - 1)), Some(self.base_at(LogIndex(first.0 - 1)).term));
        assert_eq!(segments.term_of(end), None);
        if first.0 >= 2 {
            assert_eq!(segments.term_of(LogIndex(first.0 - 2)), None);
            let below = segments.entries(LogIndex(first.0 - 1), end, 10);
            assert!(matches!(below, LocatedEntries::Compacted { first: at } if at == first));
        }
        let mut next = first;
        while next < end {
            let hi = LogIndex(rng.gen_range(next.0 + 1..=end.0 + 1));
            let got = match segments.entries(next, hi, rng.gen_range(0..3_000)) {
                LocatedEntries::Cached(entries) => entries,
                LocatedEntries::Cold(job) => now(job.run())?,
                LocatedEntries::Compacted { first } => panic!("{next} is said to be before {first}"),
            };
            assert!(!got.is_empty() && next.plus(got.len() as u64) <= hi.min(end));
            for entry in got {
                assert_eq!(entry, entry_of(&self.entries[&next].frame));
                assert_eq!(segments.term_of(next), Some(self.entries[&next].frame.term));
                next = next.next();
            }
        }
        Ok(())
    }

    fn check_offsets(&self, segments: &Segments, rng: &mut StdRng) -> Result<(), SegmentsError> {
        let start = segments.start_offset();
        if start.0 > 0 {
            assert!(matches!(segments.locate(Offset(start.0 - 1), 10), Located::Trimmed { start: at } if at == start));
        }
        assert!(matches!(segments.locate(self.tail, 10), Located::AtTail));
        let wanted: Vec<&ReadBatch> = self.entries.values().flat_map(|entry| &entry.batches).collect();
        let mut next = start;
        while next < self.tail {
            let bytes_max = rng.gen_range(0..2_000);
            let got = match segments.locate(next, bytes_max) {
                Located::Cached(batches) => batches,
                Located::Cold(job) => now(job.run())?,
                _ => panic!("{next} is in the log"),
            };
            let at = wanted.partition_point(|batch| batch.base_offset.plus(u64::from(batch.count)) <= next);
            assert!(!got.is_empty(), "a located read gives at least one batch");
            assert_eq!(got.iter().collect::<Vec<_>>(), wanted[at..at + got.len()]);
            let bytes: usize = got.iter().map(|batch| batch.batch.len()).sum();
            assert!(got.len() == 1 || bytes <= bytes_max);
            let last = got.last().expect("it is not empty");
            let end = last.base_offset.plus(u64::from(last.count));
            // Mostly on from the end; sometimes into the middle of what was just read.
            next = if rng.gen_bool(0.8) { end } else { next.next().min(end) };
        }
        Ok(())
    }

    fn check_times(&self, segments: &Segments, rng: &mut StdRng) -> Result<(), SegmentsError> {
        let (start, first) = (segments.start_offset(), segments.first_index());
        for _ in 0..6 {
            let time = TimestampMs(rng.gen_range(0..self.last().1 .0 + 20));
            let found = self.entries.range(first..).find(|(_, entry)| entry.frame.timestamp >= time);
            let wanted = found.map_or(self.tail, |(_, entry)| entry.tail_before).max(start);
            let got = match segments.offset_for_time(time) {
                TimeLocated::Known(offset) => offset,
                TimeLocated::Cold(job) => now(job.run())?,
            };
            assert_eq!(got, wanted, "first offset at {time:?}");
        }
        Ok(())
    }
}

fn base_of(index: LogIndex, term: Term, tail: Offset, timestamp: TimestampMs) -> Base {
    let voter = ReplicaId::founding(NodeId(1)).0;
    let conf_state = ConfState { voters: vec![voter], ..ConfState::default() };
    let state = Bytes::from(format!("the state at {index}").repeat(1 + index.0 as usize % 4));
    Base { index, term, tail, timestamp, chain: Digest([index.0 as u8; 32]), conf_state, state }
}

/// A snapshot's base, some entries and records ahead of `model`.
pub fn snapshot_ahead(model: &Model, rng: &mut StdRng) -> Base {
    let (term, timestamp) = model.last();
    let index = model.last_index().plus(rng.gen_range(1..9));
    let tail = model.tail.plus(rng.gen_range(0..9));
    base_of(index, Term(term.0 + rng.gen_range(0..2)), tail, TimestampMs(timestamp.0 + rng.gen_range(0..50)))
}

fn entry_of(frame: &Frame) -> Entry {
    let mut entry = Entry { term: frame.term.0, index: frame.index.0, data: frame.data.clone(), ..Entry::default() };
    if frame.kind == EntryKind::ConfChange {
        entry.set_entry_type(EntryType::EntryConfChangeV2);
    }
    entry
}

fn a_batch(rng: &mut StdRng, count: u32) -> Bytes {
    let mut builder = BatchBuilder::new();
    for _ in 0..count {
        let value = vec![rng.gen::<u8>(); rng.gen_range(0..120)];
        let record =
            RecordRef { value: Some(&value), timestamp: TimestampMs(rng.gen_range(0..9)), ..RecordRef::default() };
        builder.push(record).expect("the record is within the limits");
    }
    builder.build()
}
