//! Builds a batch, for clients. The size after one more record is known before it is added, so that a batch can be cut at a
//! byte limit without encoding anything twice.
//!
//! Refuses records beyond the limits, as the server would.

use super::header::{BatchHeader, BatchProducer, CRC_AT, CRC_COUNTS_FROM, HEADER_LEN, LENGTH_COUNTS_FROM, MAGIC};
use super::validate::BatchError;
use super::varint;
use crate::ids::{ProducerId, TimestampMs};
use crate::limits::{BATCH_RECORDS_MAX, RECORD_HEADERS_MAX, RECORD_KEY_BYTES_MAX};
use bytes::{BufMut, Bytes, BytesMut};

/// A record to be added to a batch.
#[derive(Clone, Copy, Debug, Default)]
pub struct RecordRef<'a> {
    /// The key; `None` is not the same as an empty one.
    pub key: Option<&'a [u8]>,
    /// The value; `None` is not the same as an empty one.
    pub value: Option<&'a [u8]>,
    /// Names and values of the headers, in order.
    pub headers: &'a [(&'a str, Option<&'a [u8]>)],
    /// When it was made, by the client's clock.
    pub timestamp: TimestampMs,
}

/// A batch under construction.
#[derive(Debug)]
pub struct BatchBuilder {
    /// The batch so far; its fixed part is filled in at the end.
    batch: BytesMut,
    count: usize,
    base_timestamp: i64,
    max_timestamp: i64,
    producer: Option<BatchProducer>,
}

impl Default for BatchBuilder {
    fn default() -> Self {
        Self::new()
    }
}

impl BatchBuilder {
    /// A batch without records.
    #[must_use]
    pub fn new() -> BatchBuilder {
        let batch = BytesMut::zeroed(HEADER_LEN);
        BatchBuilder { batch, count: 0, base_timestamp: 0, max_timestamp: 0, producer: None }
    }

    /// Puts the batch into a producer's session. The field for the epoch has 15 bits, that for the sequence 31, as in
    /// Kafka; larger numbers wrap to zero there.
    pub fn producer(&mut self, id: ProducerId, epoch: u16, base_sequence: u32) {
        let (epoch, base_sequence) = (epoch & i16::MAX as u16, base_sequence & i32::MAX as u32);
        self.producer = Some(BatchProducer { id, epoch, base_sequence });
    }

    /// How many records it holds.
    #[must_use]
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether it holds none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Bytes of the batch if it were built now.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.batch.len()
    }

    /// Bytes of the batch if `record` were added and it were built then.
    #[must_use]
    pub fn bytes_with(&self, record: &RecordRef<'_>) -> usize {
        let body = self.body_len(record);
        self.batch.len() + varint::len(body as i64) + body
    }

    /// Adds a record.
    ///
    /// # Errors
    /// If the record or the batch would exceed a limit other than the batch's bytes, which the caller holds with
    /// [`BatchBuilder::bytes_with`]. Nothing was added then.
    pub fn push(&mut self, record: RecordRef<'_>) -> Result<(), BatchError> {
        self.check(&record)?;
        let timestamp = record.timestamp.0 as i64;
        if self.count == 0 {
            self.base_timestamp = timestamp;
        }
        let body = self.body_len(&record);
        self.batch.reserve(body + varint::VARLONG_LEN_MAX);
        varint::write(body as i64, &mut self.batch);
        self.batch.put_u8(0);
        varint::write(timestamp - self.base_timestamp, &mut self.batch);
        varint::write(self.count as i64, &mut self.batch);
        write_sized(record.key, &mut self.batch);
        write_sized(record.value, &mut self.batch);
        varint::write(record.headers.len() as i64, &mut self.batch);
        for (key, value) in record.headers {
            write_sized(Some(key.as_bytes()), &mut self.batch);
            write_sized(*value, &mut self.batch);
        }
        self.count += 1;
        self.max_timestamp = self.max_timestamp.max(timestamp);
        Ok(())
    }

    /// The batch's bytes, as they are appended.
    ///
    /// # Panics
    /// If it holds no records: there is no such batch.
    #[must_use]
    pub fn build(mut self) -> Bytes {
        assert!(self.count > 0, "a batch holds at least one record");
        let mut header = BytesMut::with_capacity(HEADER_LEN);
        self.header().encode(&mut header);
        self.batch[..HEADER_LEN].copy_from_slice(&header);
        let crc = crc32c::crc32c(&self.batch[CRC_COUNTS_FROM..]);
        self.batch[CRC_AT..CRC_COUNTS_FROM].copy_from_slice(&crc.to_be_bytes());
        self.batch.freeze()
    }

    fn header(&self) -> BatchHeader {
        BatchHeader {
            base_offset: 0,
            batch_length: (self.batch.len() - LENGTH_COUNTS_FROM) as i32,
            leader_epoch: 0,
            magic: MAGIC,
            crc: 0,
            attributes: 0,
            last_offset_delta: self.count as i32 - 1,
            base_timestamp: self.base_timestamp,
            max_timestamp: self.max_timestamp,
            producer_id: self.producer.map_or(-1, |producer| producer.id.0 as i64),
            producer_epoch: self.producer.map_or(-1, |producer| producer.epoch as i16),
            base_sequence: self.producer.map_or(-1, |producer| producer.base_sequence as i32),
            records_count: self.count as i32,
        }
    }

    fn check(&self, record: &RecordRef<'_>) -> Result<(), BatchError> {
        let number = self.count as u32;
        if self.count == BATCH_RECORDS_MAX {
            return Err(BatchError::RecordsCount { count: self.count as i64 + 1, max: BATCH_RECORDS_MAX });
        }
        let key_len = record.key.map_or(0, <[u8]>::len);
        if key_len > RECORD_KEY_BYTES_MAX {
            return Err(BatchError::KeyTooLong { number, len: key_len, max: RECORD_KEY_BYTES_MAX });
        }
        let count = record.headers.len();
        if count > RECORD_HEADERS_MAX {
            return Err(BatchError::HeadersTooMany { number, count, max: RECORD_HEADERS_MAX });
        }
        if record.timestamp.0 > i64::MAX as u64 {
            return Err(BatchError::RecordTimestamp { number, base: record.timestamp.0 as i64, delta: 0 });
        }
        // The fixed part's length field holds 31 bits. The caller's own limit lies far below; this one keeps it honest.
        let len = self.bytes_with(record);
        let max = i32::MAX as usize;
        if len > max {
            return Err(BatchError::TooLong { len, max });
        }
        Ok(())
    }

    fn body_len(&self, record: &RecordRef<'_>) -> usize {
        let base_timestamp = if self.count == 0 { record.timestamp.0 as i64 } else { self.base_timestamp };
        let delta = (record.timestamp.0 as i64).wrapping_sub(base_timestamp);
        let headers = record.headers.iter().map(|(key, value)| sized_len(Some(key.as_bytes())) + sized_len(*value));
        1 + varint::len(delta)
            + varint::len(self.count as i64)
            + sized_len(record.key)
            + sized_len(record.value)
            + varint::len(record.headers.len() as i64)
            + headers.sum::<usize>()
    }
}

fn sized_len(part: Option<&[u8]>) -> usize {
    part.map_or(varint::len(-1), |part| varint::len(part.len() as i64) + part.len())
}

fn write_sized(part: Option<&[u8]>, into: &mut BytesMut) {
    let Some(part) = part else { return varint::write(-1, into) };
    varint::write(part.len() as i64, into);
    into.put_slice(part);
}
