//! The newest frames of a group, encoded, in memory: all that is not yet written, and what else fits.
//!
//! Readers and followers near the tail are served from here with slices. What is older is dropped from the front, never
//! before it was written.

use super::frame::FrameView;
use super::ReadBatch;
use crate::ids::{LogIndex, Offset, TimestampMs};
use bytes::Bytes;
use raft::eraftpb::Entry;
use std::collections::VecDeque;

/// A frame with what lay before it.
#[derive(Debug)]
pub(super) struct CachedFrame {
    /// The frame as it lies in its file.
    pub bytes: Bytes,
    pub view: FrameView,
    pub tail_before: Offset,
    pub tail_after: Offset,
    pub timestamp_before: TimestampMs,
}

impl CachedFrame {
    /// What it takes in memory: of small frames much is not their bytes.
    fn held_bytes(&self) -> usize {
        size_of::<CachedFrame>() + self.bytes.len()
    }
}

/// Consecutive frames, newest last.
#[derive(Debug, Default)]
pub(super) struct TailCache {
    frames: VecDeque<CachedFrame>,
    bytes: usize,
}

impl TailCache {
    pub fn push(&mut self, frame: CachedFrame) {
        self.bytes += frame.held_bytes();
        self.frames.push_back(frame);
    }

    /// Drops frames from the front while more than `bytes_max` are held, none of them beyond `written`.
    pub fn shrink(&mut self, bytes_max: usize, written: LogIndex) {
        while self.bytes > bytes_max && self.first().is_some_and(|first| first.view.index <= written) {
            self.bytes -= self.frames.pop_front().map_or(0, |frame| frame.held_bytes());
        }
    }

    pub fn clear(&mut self) {
        *self = TailCache::default();
    }

    pub fn first(&self) -> Option<&CachedFrame> {
        self.frames.front()
    }

    /// The frames behind `written`, for a flush.
    pub fn after(&self, written: LogIndex) -> impl Iterator<Item = &CachedFrame> {
        self.frames.range(self.frames.partition_point(|frame| frame.view.index <= written)..)
    }

    /// The batches from the one that holds `from` on; `None` if the cache starts behind it.
    pub fn batches(&self, from: Offset, bytes_max: usize) -> Option<Vec<ReadBatch>> {
        if self.first()?.tail_before > from {
            return None;
        }
        let (mut out, mut bytes) = (Vec::new(), 0);
        for frame in self.frames.range(self.frames.partition_point(|frame| frame.tail_after <= from)..) {
            if !frame.view.read_into(from, bytes_max, &mut bytes, &mut out) {
                break;
            }
        }
        Some(out)
    }

    /// The entries in `[lo, hi)`, as many as `bytes_max` allows but at least one; `None` if the cache starts behind `lo`.
    pub fn entries(&self, lo: LogIndex, hi: LogIndex, bytes_max: u64) -> Option<Vec<Entry>> {
        let skip = lo.0.checked_sub(self.first()?.view.index.0)? as usize;
        let mut out = EntriesWithin::new(bytes_max);
        for frame in self.frames.range(skip.min(self.frames.len())..) {
            if frame.view.index >= hi || !out.push(&frame.view) {
                break;
            }
        }
        Some(out.entries)
    }

    /// The tail before the first frame of that time or a later one; `None` if it may lie before the cache. `Some(None)` if
    /// there is no such frame.
    pub fn offset_for_time(&self, time: TimestampMs) -> Option<Option<Offset>> {
        if self.first()?.timestamp_before >= time {
            return None;
        }
        let at = self.frames.partition_point(|frame| frame.view.timestamp < time);
        Some(self.frames.get(at).map(|frame| frame.tail_before))
    }
}

/// Entries up to a number of bytes, at least one.
pub(super) struct EntriesWithin {
    pub entries: Vec<Entry>,
    bytes: u64,
    bytes_max: u64,
}

impl EntriesWithin {
    pub fn new(bytes_max: u64) -> EntriesWithin {
        EntriesWithin { entries: Vec::new(), bytes: 0, bytes_max }
    }

    /// Adds a frame's entry if there is room for it; says whether it was added.
    pub fn push(&mut self, view: &FrameView) -> bool {
        // Raft counts an entry's encoded size; index, term and tags take no more than this.
        let len = view.data.len() as u64 + 32;
        if !self.entries.is_empty() && self.bytes + len > self.bytes_max {
            return false;
        }
        self.bytes += len;
        self.entries.push(view.entry());
        true
    }
}
