//! The records inside a batch: one walker over their bytes, used by the full check and by the reader's iterator alike.
//!
//! Walking takes no memory. Keys, values and headers come out as slices of the batch.

use super::header::{BatchHeader, HEADER_LEN};
use super::validate::BatchError;
use super::varint;
use crate::ids::{Offset, TimestampMs};
use crate::limits::{RECORD_HEADERS_MAX, RECORD_KEY_BYTES_MAX};
use bytes::Bytes;
use std::ops::Range;

/// Where the parts of one record lie in its batch. `None` is a null, which is not the same as an empty one.
pub(super) struct RecordSpan {
    pub timestamp_delta: i64,
    pub offset_delta: i32,
    pub key: Option<Range<usize>>,
    pub value: Option<Range<usize>>,
    pub headers_count: u32,
    /// From the first header to the record's end.
    pub headers: Range<usize>,
}

/// Reads the record that starts at `*at` and moves `*at` behind it. `number` is for the error's text. The headers are
/// counted against their bound here and walked by [`walk_headers`].
#[inline]
pub(super) fn read_record(batch: &[u8], at: &mut usize, number: u32) -> Result<RecordSpan, BatchError> {
    let broken = |what| BatchError::RecordBroken { number, what };
    let len = varint::read_i32(batch, at).ok_or(broken("length"))?;
    let len = usize::try_from(len).map_err(|_| broken("length"))?;
    let end = at.checked_add(len).filter(|end| *end <= batch.len()).ok_or(broken("length"))?;
    let record = &batch[..end];
    let attributes = *record.get(*at).ok_or(broken("attributes"))?;
    if attributes != 0 {
        return Err(BatchError::RecordAttributes { number, attributes });
    }
    *at += 1;
    let timestamp_delta = varint::read_i64(record, at).ok_or(broken("timestamp delta"))?;
    let offset_delta = varint::read_i32(record, at).ok_or(broken("offset delta"))?;
    let key = read_sized(record, at).ok_or(broken("key"))?;
    let key_len = key.as_ref().map_or(0, Range::len);
    if key_len > RECORD_KEY_BYTES_MAX {
        return Err(BatchError::KeyTooLong { number, len: key_len, max: RECORD_KEY_BYTES_MAX });
    }
    let value = read_sized(record, at).ok_or(broken("value"))?;
    let headers_count = varint::read_i32(record, at).ok_or(broken("headers count"))?;
    let headers_count = u32::try_from(headers_count).map_err(|_| broken("headers count"))?;
    if headers_count as usize > RECORD_HEADERS_MAX {
        return Err(BatchError::HeadersTooMany { number, count: headers_count as usize, max: RECORD_HEADERS_MAX });
    }
    let headers = *at..end;
    *at = end;
    Ok(RecordSpan { timestamp_delta, offset_delta, key, value, headers_count, headers })
}

/// Walks a record's headers; they must fill what is left of the record exactly.
#[inline]
pub(super) fn walk_headers(batch: &[u8], span: &RecordSpan, number: u32) -> Result<(), BatchError> {
    let mut at = span.headers.start;
    for _ in 0..span.headers_count {
        let (key, _) = read_header(&batch[..span.headers.end], &mut at)
            .ok_or(BatchError::RecordBroken { number, what: "header" })?;
        if std::str::from_utf8(&batch[key]).is_err() {
            return Err(BatchError::RecordBroken { number, what: "header key, which is not UTF-8," });
        }
    }
    if at != span.headers.end {
        return Err(BatchError::RecordBroken { number, what: "length, which exceeds its content," });
    }
    Ok(())
}

fn read_header(record: &[u8], at: &mut usize) -> Option<(Range<usize>, Option<Range<usize>>)> {
    let key = read_sized(record, at)??;
    let value = read_sized(record, at)?;
    Some((key, value))
}

/// Reads a length and as many bytes: `Some(None)` for a null (length -1), `None` if they are not there.
#[inline]
fn read_sized(record: &[u8], at: &mut usize) -> Option<Option<Range<usize>>> {
    let len = varint::read_i32(record, at)?;
    if len == -1 {
        return Some(None);
    }
    let start = *at;
    let end = start.checked_add(usize::try_from(len).ok()?).filter(|end| *end <= record.len())?;
    *at = end;
    Some(Some(start..end))
}

/// One record; key, value and headers are slices of its batch.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Record {
    /// Its position in the partition; counts from zero while the batch is not stamped.
    pub offset: Offset,
    /// When the client made it, by the client's clock.
    pub timestamp: TimestampMs,
    /// The key; `None` is not the same as an empty one.
    pub key: Option<Bytes>,
    /// The value; `None` is not the same as an empty one.
    pub value: Option<Bytes>,
    /// The headers, in the client's order.
    pub headers: Headers,
}

/// One header of a record.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RecordHeader {
    /// Its name, valid UTF-8 in a validated batch.
    pub key: Bytes,
    /// Its value; `None` is not the same as an empty one.
    pub value: Option<Bytes>,
}

impl RecordHeader {
    /// The name as text.
    #[must_use]
    pub fn key_text(&self) -> &str {
        std::str::from_utf8(&self.key).unwrap_or_default()
    }
}

/// The headers of one record: an iterator that decodes as it goes.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Headers {
    rest: Bytes,
    left: u32,
}

impl Iterator for Headers {
    type Item = RecordHeader;

    fn next(&mut self) -> Option<RecordHeader> {
        self.left = self.left.checked_sub(1)?;
        let mut at = 0;
        let (key, value) = read_header(&self.rest, &mut at)?;
        let header = RecordHeader { key: self.rest.slice(key), value: value.map(|range| self.rest.slice(range)) };
        self.rest = self.rest.slice(at..);
        Some(header)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (0, Some(self.left as usize))
    }
}

/// The records of a validated batch, in order. On bytes that were never validated it ends at the first that makes no sense.
#[must_use]
pub fn records(batch: &Bytes) -> Records {
    let header = BatchHeader::decode(batch);
    Records {
        batch: batch.clone(),
        at: HEADER_LEN,
        number: 0,
        count: header.map_or(0, |header| header.summary().count),
        base_offset: header.map_or(0, |header| header.base_offset),
        base_timestamp: header.map_or(0, |header| header.base_timestamp),
    }
}

/// Iterator over the records of a batch; see [`records`].
#[derive(Clone, Debug)]
pub struct Records {
    batch: Bytes,
    at: usize,
    number: u32,
    count: u32,
    base_offset: i64,
    base_timestamp: i64,
}

impl Iterator for Records {
    type Item = Record;

    fn next(&mut self) -> Option<Record> {
        if self.number == self.count {
            return None;
        }
        let Ok(span) = read_record(&self.batch, &mut self.at, self.number) else {
            self.count = self.number;
            return None;
        };
        self.number += 1;
        let timestamp = self.base_timestamp.saturating_add(span.timestamp_delta).max(0) as u64;
        Some(Record {
            offset: Offset(self.base_offset.saturating_add(i64::from(span.offset_delta)).max(0) as u64),
            timestamp: TimestampMs(timestamp),
            key: span.key.map(|range| self.batch.slice(range)),
            value: span.value.map(|range| self.batch.slice(range)),
            headers: Headers { rest: self.batch.slice(span.headers), left: span.headers_count },
        })
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (0, Some((self.count - self.number) as usize))
    }
}
