//! The full check of a batch: once, at the door, before anything else looks at it.
//!
//! Bounded by the batch's own length: counts are held against the bytes there before they are believed, and no memory is
//! taken at all. Every refusal means that nothing happened.

use super::header::{BatchHeader, BatchSummary, CRC_COUNTS_FROM, HEADER_LEN, LENGTH_COUNTS_FROM, MAGIC};
use super::records::{read_record, walk_headers};
use crate::limits::BATCH_RECORDS_MAX;
use bytes::Bytes;

/// Why a batch is refused. Nothing happened.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[allow(missing_docs)] // the texts say it all
pub enum BatchError {
    #[error("batch is {len} bytes; the shortest has {min}")]
    TooShort { len: usize, min: usize },
    #[error("batch is {len} bytes; at most {max} are allowed")]
    TooLong { len: usize, max: usize },
    #[error("batch says it is {said} bytes; it is {len}")]
    LengthWrong { said: i64, len: usize },
    #[error("batch has layout version {magic}; only 2 is known")]
    MagicUnknown { magic: i8 },
    #[error("batch has checksum {said:08x}; its bytes give {actual:08x}")]
    ChecksumWrong { said: u32, actual: u32 },
    #[error("batch has base offset {offset}; it must be 0 as sent")]
    OffsetNotZero { offset: i64 },
    #[error("batch has leader epoch {epoch}; it must be 0 as sent")]
    EpochNotZero { epoch: i32 },
    #[error("batch is compressed (codec {codec}); only uncompressed batches (codec 0) are taken")]
    Compressed { codec: u8 },
    #[error("batch is transactional; transactions are not supported")]
    Transactional,
    #[error("batch is a control batch; only a server may write one")]
    Control,
    #[error("batch has attributes {attributes:#06x}; none may be set")]
    AttributesUnknown { attributes: i16 },
    #[error("batch says it holds {count} records; at least 1 and at most {max} are allowed")]
    RecordsCount { count: i64, max: usize },
    #[error("batch says it holds {count} records; its last offset delta {last_offset_delta} makes that {expected}")]
    CountDiffersFromDelta { count: i32, last_offset_delta: i32, expected: i64 },
    #[error("batch has timestamp {timestamp}; it must be 0 or more")]
    TimestampNegative { timestamp: i64 },
    #[error("batch has producer id {id} with epoch {epoch} and base sequence {sequence}; all must be 0 or more, or the id -1")]
    ProducerIncomplete { id: i64, epoch: i16, sequence: i32 },
    #[error("record {number} of the batch has a broken {what} field")]
    RecordBroken { number: u32, what: &'static str },
    #[error("record {number} of the batch has attributes {attributes:#04x}; none may be set")]
    RecordAttributes { number: u32, attributes: u8 },
    #[error("record {number} of the batch has offset delta {delta}; it must be {number}")]
    OffsetDeltaWrong { number: u32, delta: i32 },
    #[error("record {number} of the batch has timestamp {base} + {delta}; it must be 0 or more, in 63 bits")]
    RecordTimestamp { number: u32, base: i64, delta: i64 },
    #[error("record {number} of the batch has a key of {len} bytes; at most {max} are allowed")]
    KeyTooLong { number: u32, len: usize, max: usize },
    #[error("record {number} of the batch has {count} headers; at most {max} are allowed")]
    HeadersTooMany { number: u32, count: usize, max: usize },
    #[error("batch has {len} bytes behind its last record")]
    BytesLeft { len: usize },
}

impl BatchError {
    /// Whether the bytes were damaged on their way.
    #[must_use]
    pub fn is_checksum(&self) -> bool {
        matches!(self, BatchError::ChecksumWrong { .. })
    }

    /// Whether something is over its bound.
    #[must_use]
    pub fn is_size(&self) -> bool {
        matches!(self, BatchError::TooLong { .. } | BatchError::KeyTooLong { .. } | BatchError::HeadersTooMany { .. })
    }
}

/// Checks a batch as a client sent it: everything about it, in one pass.
///
/// # Errors
/// Whatever is wrong with it first. Nothing happened.
pub fn validate(batch: &Bytes, bytes_max: usize) -> Result<BatchSummary, BatchError> {
    let header = BatchHeader::decode(batch).ok_or(BatchError::TooShort { len: batch.len(), min: HEADER_LEN })?;
    if header.base_offset != 0 {
        return Err(BatchError::OffsetNotZero { offset: header.base_offset });
    }
    if header.leader_epoch != 0 {
        return Err(BatchError::EpochNotZero { epoch: header.leader_epoch });
    }
    validate_stamped(batch, bytes_max)
}

/// Checks a batch that a server stamped, as a reader gets it: everything but the two stamped fields, of which only the
/// offset's range is held.
///
/// # Errors
/// Whatever is wrong with it first.
pub fn validate_stamped(batch: &Bytes, bytes_max: usize) -> Result<BatchSummary, BatchError> {
    let header = BatchHeader::decode(batch).ok_or(BatchError::TooShort { len: batch.len(), min: HEADER_LEN })?;
    check_header(&header, batch, bytes_max)?;
    check_records(&header, batch)?;
    Ok(header.summary())
}

fn check_header(header: &BatchHeader, batch: &[u8], bytes_max: usize) -> Result<(), BatchError> {
    if batch.len() > bytes_max {
        return Err(BatchError::TooLong { len: batch.len(), max: bytes_max });
    }
    let said = i64::from(header.batch_length) + LENGTH_COUNTS_FROM as i64;
    if said != batch.len() as i64 {
        return Err(BatchError::LengthWrong { said, len: batch.len() });
    }
    if header.magic != MAGIC {
        return Err(BatchError::MagicUnknown { magic: header.magic });
    }
    let actual = crc32c::crc32c(&batch[CRC_COUNTS_FROM..]);
    if actual != header.crc {
        return Err(BatchError::ChecksumWrong { said: header.crc, actual });
    }
    if header.base_offset < 0 {
        return Err(BatchError::OffsetNotZero { offset: header.base_offset });
    }
    check_attributes(header.attributes)?;
    let count = header.records_count;
    if count < 1 || count as usize > BATCH_RECORDS_MAX {
        return Err(BatchError::RecordsCount { count: i64::from(count), max: BATCH_RECORDS_MAX });
    }
    let expected = i64::from(header.last_offset_delta) + 1;
    if i64::from(count) != expected {
        let last_offset_delta = header.last_offset_delta;
        return Err(BatchError::CountDiffersFromDelta { count, last_offset_delta, expected });
    }
    if let Some(timestamp) = [header.base_timestamp, header.max_timestamp].into_iter().find(|t| *t < 0) {
        return Err(BatchError::TimestampNegative { timestamp });
    }
    let (id, epoch, sequence) = (header.producer_id, header.producer_epoch, header.base_sequence);
    if id < -1 || id >= 0 && (epoch < 0 || sequence < 0) {
        return Err(BatchError::ProducerIncomplete { id, epoch, sequence });
    }
    Ok(())
}

fn check_attributes(attributes: i16) -> Result<(), BatchError> {
    match attributes {
        0 => Ok(()),
        a if a & 0x07 != 0 => Err(BatchError::Compressed { codec: (a & 0x07) as u8 }),
        a if a & 0x20 != 0 => Err(BatchError::Control),
        a if a & 0x10 != 0 => Err(BatchError::Transactional),
        attributes => Err(BatchError::AttributesUnknown { attributes }),
    }
}

fn check_records(header: &BatchHeader, batch: &[u8]) -> Result<(), BatchError> {
    let mut at = HEADER_LEN;
    for number in 0..header.records_count as u32 {
        let span = read_record(batch, &mut at, number)?;
        if i64::from(span.offset_delta) != i64::from(number) {
            return Err(BatchError::OffsetDeltaWrong { number, delta: span.offset_delta });
        }
        let (base, delta) = (header.base_timestamp, span.timestamp_delta);
        if base.checked_add(delta).is_none_or(|timestamp| timestamp < 0) {
            return Err(BatchError::RecordTimestamp { number, base, delta });
        }
        walk_headers(batch, &span, number)?;
    }
    if at != batch.len() {
        return Err(BatchError::BytesLeft { len: batch.len() - at });
    }
    Ok(())
}
