//! The fixed part of a record batch, and the two fields of it that a server may write.
//!
//! Decoding checks nothing but the length: what the numbers may be is `validate`'s to say.

use crate::ids::{Offset, ProducerId, Term, TimestampMs};
use bytes::{Buf, BufMut, BytesMut};

/// Bytes before the first record.
pub const HEADER_LEN: usize = 61;
/// Bytes before those that the batch length counts: the base offset and the length itself.
pub(super) const LENGTH_COUNTS_FROM: usize = 12;
/// Where the checksum lies.
pub(super) const CRC_AT: usize = 17;
/// Where the checksummed bytes start: right behind the checksum.
pub(super) const CRC_COUNTS_FROM: usize = 21;
/// The only version of the layout that is taken.
pub(super) const MAGIC: i8 = 2;

const EPOCH_AT: usize = 12;

/// The fixed part of a batch, as it lies in its bytes (big-endian there).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BatchHeader {
    /// Offset of the first record; zero until stamped.
    pub base_offset: i64,
    /// Bytes that follow this field.
    pub batch_length: i32,
    /// Term of the leader that appended it; zero until stamped.
    pub leader_epoch: i32,
    /// Version of the layout.
    pub magic: i8,
    /// CRC-32C over everything behind it.
    pub crc: u32,
    /// Compression in bits 0 to 2, then timestamp type, transactional, control, delete horizon.
    pub attributes: i16,
    /// Offset of the last record less that of the first.
    pub last_offset_delta: i32,
    /// Milliseconds since the Unix epoch; the records' timestamps count from here.
    pub base_timestamp: i64,
    /// The youngest record's timestamp, in the same measure.
    pub max_timestamp: i64,
    /// The producer's session; -1 for none.
    pub producer_id: i64,
    /// The session's epoch; -1 for none.
    pub producer_epoch: i16,
    /// Sequence of the first record in its session; -1 for none.
    pub base_sequence: i32,
    /// How many records follow.
    pub records_count: i32,
}

impl BatchHeader {
    /// Reads the fixed part; `None` if there are too few bytes for one.
    #[must_use]
    pub fn decode(batch: &[u8]) -> Option<BatchHeader> {
        let mut from = batch.get(..HEADER_LEN)?;
        Some(BatchHeader {
            base_offset: from.get_i64(),
            batch_length: from.get_i32(),
            leader_epoch: from.get_i32(),
            magic: from.get_i8(),
            crc: from.get_u32(),
            attributes: from.get_i16(),
            last_offset_delta: from.get_i32(),
            base_timestamp: from.get_i64(),
            max_timestamp: from.get_i64(),
            producer_id: from.get_i64(),
            producer_epoch: from.get_i16(),
            base_sequence: from.get_i32(),
            records_count: from.get_i32(),
        })
    }

    /// Appends the fixed part.
    pub fn encode(&self, into: &mut BytesMut) {
        into.reserve(HEADER_LEN);
        into.put_i64(self.base_offset);
        into.put_i32(self.batch_length);
        into.put_i32(self.leader_epoch);
        into.put_i8(self.magic);
        into.put_u32(self.crc);
        into.put_i16(self.attributes);
        into.put_i32(self.last_offset_delta);
        into.put_i64(self.base_timestamp);
        into.put_i64(self.max_timestamp);
        into.put_i64(self.producer_id);
        into.put_i16(self.producer_epoch);
        into.put_i32(self.base_sequence);
        into.put_i32(self.records_count);
    }

    /// What the rest of the server wants to know of a batch.
    #[must_use]
    pub fn summary(&self) -> BatchSummary {
        BatchSummary {
            base_offset: Offset(self.base_offset.max(0) as u64),
            count: self.records_count.max(0) as u32,
            producer_id: self.producer_id,
            producer_epoch: self.producer_epoch,
            base_sequence: self.base_sequence,
            base_timestamp: TimestampMs(self.base_timestamp.max(0) as u64),
            max_timestamp: TimestampMs(self.max_timestamp.max(0) as u64),
        }
    }
}

/// What the server wants to know of a batch without looking at its records.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BatchSummary {
    /// Offset of the first record; zero until stamped.
    pub base_offset: Offset,
    /// How many records it holds.
    pub count: u32,
    /// The producer's session; -1 for none.
    pub producer_id: i64,
    /// The session's epoch; -1 for none.
    pub producer_epoch: i16,
    /// Sequence of the first record in its session; -1 for none.
    pub base_sequence: i32,
    /// The timestamp that the records' own count from.
    pub base_timestamp: TimestampMs,
    /// The youngest record's timestamp, as the client says.
    pub max_timestamp: TimestampMs,
}

/// The session that a batch belongs to, and its place in it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BatchProducer {
    /// The session.
    pub id: ProducerId,
    /// Its epoch: raised when the session is opened again.
    pub epoch: u16,
    /// Sequence of the batch's first record.
    pub base_sequence: u32,
}

impl BatchSummary {
    /// The session that the batch belongs to, if it belongs to one.
    #[must_use]
    pub fn producer(&self) -> Option<BatchProducer> {
        Some(BatchProducer {
            id: ProducerId(u64::try_from(self.producer_id).ok()?),
            epoch: u16::try_from(self.producer_epoch).ok()?,
            base_sequence: u32::try_from(self.base_sequence).ok()?,
        })
    }
}

/// The summary of a batch that was validated before; `None` if the bytes are too few for one or of another layout.
#[must_use]
pub fn peek(batch: &[u8]) -> Option<BatchSummary> {
    let header = BatchHeader::decode(batch)?;
    (header.magic == MAGIC).then(|| header.summary())
}

/// Writes base offset and leader epoch into a validated batch, for readers. Both lie outside the checksum.
///
/// The epoch field has 31 bits; a term beyond them (none lives so long) is written as the largest.
///
/// # Panics
/// If `batch` is shorter than a batch's fixed part.
pub fn stamp(batch: &mut [u8], offset: Offset, term: Term) {
    assert!(batch.len() >= HEADER_LEN, "a batch of {} bytes can't be stamped", batch.len());
    let epoch = i32::try_from(term.0).unwrap_or(i32::MAX);
    batch[..8].copy_from_slice(&offset.0.to_be_bytes());
    batch[EPOCH_AT..EPOCH_AT + 4].copy_from_slice(&epoch.to_be_bytes());
}

/// Zeroes base offset and leader epoch again, as they were proposed.
///
/// # Panics
/// If `batch` is shorter than a batch's fixed part.
pub fn unstamp(batch: &mut [u8]) {
    stamp(batch, Offset::ZERO, Term::ZERO);
}
