//! One committed entry in a segment: the codec of frames.
//!
//! A frame carries what the log and the state machine agreed on: index, term, kind, time, chain, one verdict per command,
//! and the entry's bytes. Batches that were appended lie in it stamped, as readers get them; [`FrameView::entry`] takes the
//! stamps off again for Raft. The header (with the items) and the data have a checksum each, so that a frame with rotten
//! data can still be stepped over, and named.
//!
//! Pure. Refuses to believe a length or a count before its bound is checked, and a byte before its checksum is.

use super::verdict::Verdict;
use super::{EntryKind, Frame, Item, ReadBatch};
use crate::batch;
use crate::ids::{Digest, LogIndex, Offset, Term, TimestampMs};
use crate::limits::{ENTRY_BYTES_MAX, ENTRY_COMMANDS_MAX};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use raft::eraftpb::{Entry, EntryType};

/// First bytes of every frame; zeros, which follow the last one, are none.
pub(super) const MARK: u32 = u32::from_le_bytes(*b"bfrm");
/// Bytes of a frame before its items.
pub(super) const FIXED_LEN: usize = 80;
/// Bytes of one item: a verdict and the batch's position.
const ITEM_LEN: usize = Verdict::ENCODED_LEN + 4;
/// The header's checksum counts from here: behind mark and checksum.
const HEADER_CRC_COUNTS_FROM: usize = 8;
/// Stands for "no batch" in an item.
const NO_BATCH: u32 = u32::MAX;

/// Largest frame there is, in bytes.
pub(super) const FRAME_BYTES_MAX: usize = FIXED_LEN + ENTRY_COMMANDS_MAX * ITEM_LEN + ENTRY_BYTES_MAX;

/// What bytes at a frame's place amount to.
pub(super) enum Parsed {
    /// A whole, good frame.
    Frame(FrameView),
    /// The bytes may be the start of a good frame of this many bytes.
    NeedsBytes(usize),
    /// No frame; says why.
    Broken(&'static str),
}

/// A frame whose checksums held (or that was encoded here); items and data are slices of its bytes.
#[derive(Clone, Debug)]
pub(super) struct FrameView {
    pub index: LogIndex,
    pub term: Term,
    pub kind: EntryKind,
    pub timestamp: TimestampMs,
    pub chain: Digest,
    items: Bytes,
    pub data: Bytes,
}

/// Encodes a frame with its appended batches stamped: the one copy on a batch's way to disk and readers.
///
/// # Panics
/// If the frame breaks a bound that the entry was held to when it was proposed, or an item names a batch that is not there.
pub(super) fn encode(frame: &Frame) -> (Bytes, FrameView) {
    let (count, data_len) = (frame.items.len(), frame.data.len());
    assert!(count <= ENTRY_COMMANDS_MAX, "entry {} has {count} commands", frame.index);
    assert!(data_len <= ENTRY_BYTES_MAX, "entry {} is {data_len} bytes", frame.index);
    let items_end = FIXED_LEN + count * ITEM_LEN;
    let mut bytes = BytesMut::with_capacity(items_end + data_len);
    bytes.put_u32_le(MARK);
    bytes.put_u32_le(0); // the header's checksum
    bytes.put_u8(frame.kind as u8);
    bytes.put_bytes(0, 3);
    bytes.put_u32_le(count as u32);
    bytes.put_u32_le(data_len as u32);
    bytes.put_u32_le(0); // the data's checksum
    bytes.put_u64_le(frame.index.0);
    bytes.put_u64_le(frame.term.0);
    bytes.put_u64_le(frame.timestamp.0);
    bytes.put_slice(&frame.chain.0);
    for item in &frame.items {
        item.verdict.encode(&mut bytes);
        bytes.put_u32_le(item.batch_at.unwrap_or(NO_BATCH));
    }
    bytes.put_slice(&frame.data);
    for item in &frame.items {
        if let (Verdict::Appended { offset, .. }, Some(at)) = (item.verdict, item.batch_at) {
            let range =
                batch_range(&frame.data, at).unwrap_or_else(|| panic!("entry {} has no batch at {at}", frame.index));
            let data = &mut bytes[items_end..];
            batch::stamp(&mut data[range], offset, frame.term);
        }
    }
    let data_crc = crc32c::crc32c(&bytes[items_end..]);
    bytes[20..24].copy_from_slice(&data_crc.to_le_bytes());
    let header_crc = crc32c::crc32c(&bytes[HEADER_CRC_COUNTS_FROM..items_end]);
    bytes[4..8].copy_from_slice(&header_crc.to_le_bytes());
    let bytes = bytes.freeze();
    let view = FrameView {
        index: frame.index,
        term: frame.term,
        kind: frame.kind,
        timestamp: frame.timestamp,
        chain: frame.chain,
        items: bytes.slice(FIXED_LEN..items_end),
        data: bytes.slice(items_end..),
    };
    (bytes, view)
}

/// Reads the frame that starts at the first of `bytes`.
pub(super) fn parse(bytes: &Bytes) -> Parsed {
    if bytes.len() < FIXED_LEN {
        return Parsed::NeedsBytes(FIXED_LEN);
    }
    let mut from = &bytes[..FIXED_LEN];
    if from.get_u32_le() != MARK {
        return Parsed::Broken("no frame starts here");
    }
    let header_crc = from.get_u32_le();
    let kind = from.get_u8();
    from.advance(3);
    let (count, data_len) = (from.get_u32_le() as usize, from.get_u32_le() as usize);
    let data_crc = from.get_u32_le();
    if count > ENTRY_COMMANDS_MAX || data_len > ENTRY_BYTES_MAX {
        return Parsed::Broken("the frame's lengths are beyond their bounds");
    }
    let items_end = FIXED_LEN + count * ITEM_LEN;
    if bytes.len() < items_end {
        return Parsed::NeedsBytes(items_end);
    }
    if crc32c::crc32c(&bytes[HEADER_CRC_COUNTS_FROM..items_end]) != header_crc {
        return Parsed::Broken("the frame header's checksum differs");
    }
    if bytes.len() < items_end + data_len {
        return Parsed::NeedsBytes(items_end + data_len);
    }
    let data = bytes.slice(items_end..items_end + data_len);
    if crc32c::crc32c(&data) != data_crc {
        return Parsed::Broken("the frame data's checksum differs");
    }
    let Some(kind) = EntryKind::from_byte(kind) else { return Parsed::Broken("the frame's kind is unknown") };
    let (index, term, timestamp) = (from.get_u64_le(), from.get_u64_le(), from.get_u64_le());
    let mut chain = [0; 32];
    from.copy_to_slice(&mut chain);
    let view = FrameView {
        index: LogIndex(index),
        term: Term(term),
        kind,
        timestamp: TimestampMs(timestamp),
        chain: Digest(chain),
        items: bytes.slice(FIXED_LEN..items_end),
        data,
    };
    match view.items_are_whole() {
        true => Parsed::Frame(view),
        false => Parsed::Broken("the frame's items can't be decoded"),
    }
}

impl FrameView {
    /// Bytes of the frame in its file.
    pub fn len(&self) -> usize {
        FIXED_LEN + self.items.len() + self.data.len()
    }

    /// The verdicts, in the commands' order.
    pub fn items(&self) -> impl Iterator<Item = Item> + '_ {
        self.items.chunks_exact(ITEM_LEN).filter_map(decode_item)
    }

    /// The tail after this frame, if it was `tail` before.
    pub fn tail_after(&self, tail: Offset) -> Offset {
        self.appended().fold(tail, |tail, (offset, count, _)| tail.max(offset.plus(u64::from(count))))
    }

    /// Adds the batches that hold offsets at or after `from`, up to `bytes_max` bytes but at least one in all. Says whether
    /// there is room for more.
    pub fn read_into(&self, from: Offset, bytes_max: usize, bytes: &mut usize, out: &mut Vec<ReadBatch>) -> bool {
        for (offset, count, at) in self.appended() {
            if offset.plus(u64::from(count)) <= from {
                continue;
            }
            let Some(range) = at.and_then(|at| batch_range(&self.data, at)) else { continue };
            if !out.is_empty() && *bytes + range.len() > bytes_max {
                return false;
            }
            *bytes += range.len();
            out.push(ReadBatch {
                batch: self.data.slice(range),
                base_offset: offset,
                count,
                timestamp: self.timestamp,
            });
        }
        out.is_empty() || *bytes < bytes_max
    }

    /// The entry as it was proposed. Its data is copied only if batches in it are stamped.
    pub fn entry(&self) -> Entry {
        let stamped: Vec<u32> = self.appended().filter_map(|(_, _, at)| at).collect();
        let data = if stamped.is_empty() { self.data.clone() } else { self.unstamped(&stamped) };
        let mut entry = Entry { term: self.term.0, index: self.index.0, data, ..Entry::default() };
        if self.kind == EntryKind::ConfChange {
            entry.set_entry_type(EntryType::EntryConfChangeV2);
        }
        entry
    }

    fn unstamped(&self, stamped: &[u32]) -> Bytes {
        let mut data = BytesMut::from(&self.data[..]);
        for at in stamped {
            if let Some(range) = batch_range(&self.data, *at) {
                batch::unstamp(&mut data[range]);
            }
        }
        data.freeze()
    }

    fn appended(&self) -> impl Iterator<Item = (Offset, u32, Option<u32>)> + '_ {
        self.items().filter_map(|item| match item.verdict {
            Verdict::Appended { offset, count } => Some((offset, count, item.batch_at)),
            _ => None,
        })
    }

    fn items_are_whole(&self) -> bool {
        self.items.chunks_exact(ITEM_LEN).all(|item| match decode_item(item) {
            Some(Item { verdict: Verdict::Appended { .. }, batch_at: Some(at) }) => {
                batch_range(&self.data, at).is_some()
            }
            item => item.is_some(),
        })
    }
}

fn decode_item(mut bytes: &[u8]) -> Option<Item> {
    let verdict = Verdict::decode(&mut bytes)?;
    let batch_at = bytes.get_u32_le();
    Some(Item { verdict, batch_at: (batch_at != NO_BATCH).then_some(batch_at) })
}

/// Where the batch that starts at `at` lies in `data`, by its own length field; `None` if it does not fit.
fn batch_range(data: &[u8], at: u32) -> Option<std::ops::Range<usize>> {
    let at = at as usize;
    let len = batch::BatchHeader::decode(data.get(at..)?)?.batch_length;
    let end = at.checked_add(12)?.checked_add(usize::try_from(len).ok()?)?;
    (end <= data.len() && end - at >= batch::HEADER_LEN).then_some(at..end)
}
