//! A partition's state as bytes: equal states give equal bytes.
//!
//! ```text
//! version u8 = 1 | group u64 | session expiry u64 | named session expiry u64
//! start u64 | tail u64 | log time u64 | last producer u64
//! fences u32 x   { name | token u64 }                                        ascending by name
//! sessions u32 x { id u64 | name, empty if none | epoch u16 | records u64    ascending by id
//!                  used u64 | tail u64
//!                  batches u32 x { count u32 | offset u64 | epoch u16 } }    ascending, the last one ends at `records`
//! ```
//!
//! Numbers are little-endian, a name is a `u16` length and UTF-8. Reading checks every bound and every invariant of the state,
//! and says which one does not hold: a replica must not go on from a state that it could not have reached.

use super::codec::{put_text, text_len, DecodeError, Reader};
use super::session::{Remembered, Session, EPOCH_MAX};
use super::state::{Partition, PartitionSettings};
use crate::ids::{GroupId, Offset, ProducerId, TimestampMs};
use crate::limits::{FENCES_MAX, NAME_BYTES_MAX, SESSIONS_MAX, SESSION_WINDOW_BATCHES, SNAPSHOT_BYTES_MAX};
use crate::planted;
use bytes::{BufMut, Bytes, BytesMut};
use std::collections::VecDeque;
use std::sync::Arc;

const VERSION: u8 = 1;

const HEADER_LEN: usize = 1 + 7 * 8;
const FENCE_LEN_MIN: usize = text_len(0) + 8;
const SESSION_LEN_MIN: usize = 8 + text_len(0) + 2 + 3 * 8 + 4;
const BATCH_LEN: usize = 4 + 8 + 2;
const LEN_MAX: usize = HEADER_LEN
    + (4 + FENCES_MAX * (FENCE_LEN_MIN + NAME_BYTES_MAX))
    + (4 + SESSIONS_MAX * (SESSION_LEN_MIN + NAME_BYTES_MAX + SESSION_WINDOW_BATCHES * BATCH_LEN));
// One byte stays for the tag that tells a partition's snapshot from the catalog's.
const _: () = assert!(LEN_MAX < SNAPSHOT_BYTES_MAX);

impl Partition {
    /// Appends the snapshot.
    pub(crate) fn encode(&self, into: &mut BytesMut) {
        into.put_u8(VERSION);
        into.put_u64_le(self.settings.group.0);
        into.put_u64_le(self.settings.session_expiry_ms);
        into.put_u64_le(self.settings.named_session_expiry_ms);
        into.put_u64_le(self.start.0);
        into.put_u64_le(self.tail.0);
        into.put_u64_le(self.timestamp.0);
        into.put_u64_le(self.last_producer.0);
        into.put_u32_le(self.fences.len() as u32);
        for (name, token) in &self.fences {
            put_text(into, name);
            into.put_u64_le(*token);
        }
        if planted!("dedup-table-left-out-of-snapshot") {
            return into.put_u32_le(0);
        }
        into.put_u32_le(self.sessions.len() as u32);
        for (producer, session) in &self.sessions {
            into.put_u64_le(producer.0);
            encode_session(session, into);
        }
    }

    /// Reads a snapshot.
    pub(crate) fn decode(snapshot: &Bytes) -> Result<Partition, DecodeError> {
        let mut reader = Reader::new(snapshot);
        match reader.u8("version")? {
            VERSION => {}
            version => {
                return Err(DecodeError::Contradiction(format!(
                    "version {version} is not known here; version {VERSION} is"
                )))
            }
        }
        let mut partition = Partition::new(PartitionSettings {
            group: GroupId(reader.u64("group")?),
            session_expiry_ms: reader.u64("session expiry")?,
            named_session_expiry_ms: reader.u64("named session expiry")?,
        });
        partition.start = Offset(reader.u64("start")?);
        partition.tail = Offset(reader.u64("tail")?);
        partition.timestamp = TimestampMs(reader.u64("log time")?);
        partition.last_producer = ProducerId(reader.u64("last producer")?);
        ensure(partition.start <= partition.tail, || {
            format!("the log starts at {} and ends at {}", partition.start, partition.tail)
        })?;
        ensure(partition.tail.0 <= i64::MAX as u64, || format!("tail {} is past all offsets", partition.tail))?;
        ensure(partition.last_producer.0 <= i64::MAX as u64, || {
            format!("last producer {} is past all producer ids", partition.last_producer)
        })?;
        partition.decode_fences(&mut reader)?;
        partition.decode_sessions(&mut reader)?;
        reader.finish()?;
        Ok(partition)
    }

    fn decode_fences(&mut self, reader: &mut Reader<'_>) -> Result<(), DecodeError> {
        for _ in 0..reader.count("fences", FENCES_MAX, FENCE_LEN_MIN)? {
            let name = reader.text("fence name", NAME_BYTES_MAX)?;
            ensure(!name.is_empty(), || "a fence has no name".into())?;
            let last = self.fences.last_key_value().map(|(last, _)| last);
            ensure(last.is_none_or(|last| *last < name), || format!("fence {name:?} is out of order"))?;
            self.fences.insert(name, reader.u64("fence token")?);
        }
        Ok(())
    }

    fn decode_sessions(&mut self, reader: &mut Reader<'_>) -> Result<(), DecodeError> {
        for _ in 0..reader.count("sessions", SESSIONS_MAX, SESSION_LEN_MIN)? {
            let producer = ProducerId(reader.u64("producer id")?);
            let last = self.sessions.last_key_value().map(|(last, _)| *last);
            ensure(last < Some(producer), || format!("session {producer} is out of order"))?;
            ensure(producer <= self.last_producer, || {
                format!("session {producer} is above the last one, {}", self.last_producer)
            })?;
            let session = decode_session(reader)?;
            self.check_session(producer, &session)?;
            if let Some(name) = &session.name {
                let twice = self.names.insert(name.clone(), producer).is_some();
                ensure(!twice, || format!("session name {name:?} is there twice"))?;
            }
            self.sessions.insert(producer, session);
        }
        Ok(())
    }

    fn check_session(&self, producer: ProducerId, session: &Session) -> Result<(), DecodeError> {
        ensure(session.epoch <= EPOCH_MAX, || format!("session {producer} has epoch {}", session.epoch))?;
        ensure(session.used <= self.timestamp, || format!("session {producer} was used after the log's time"))?;
        ensure(session.tail <= self.tail, || {
            format!("session {producer} ends at {}, past the tail {}", session.tail, self.tail)
        })?;
        ensure(session.records <= session.tail.0, || {
            format!("session {producer} counts {} records below offset {}", session.records, session.tail)
        })?;
        let mut before: Option<&Remembered> = None;
        for batch in &session.window {
            let follows = before.is_none_or(|before| {
                before.offset.0.checked_add(before.count.into()).is_some_and(|end| end <= batch.offset.0)
                    && before.epoch <= batch.epoch
            });
            ensure(batch.count > 0 && follows && batch.epoch <= session.epoch, || {
                format!("session {producer} remembers a batch at offset {} that can't be there", batch.offset)
            })?;
            before = Some(batch);
        }
        let end = before.map(|last| last.offset.0.checked_add(last.count.into()));
        ensure(end.is_none_or(|end| end == Some(session.tail.0)), || {
            format!("session {producer} ends at {}, and its last batch elsewhere", session.tail)
        })
    }
}

fn encode_session(session: &Session, into: &mut BytesMut) {
    put_text(into, session.name.as_deref().unwrap_or(""));
    into.put_u16_le(session.epoch);
    into.put_u64_le(session.records);
    into.put_u64_le(session.used.0);
    into.put_u64_le(session.tail.0);
    into.put_u32_le(session.window.len() as u32);
    for batch in &session.window {
        into.put_u32_le(batch.count);
        into.put_u64_le(batch.offset.0);
        into.put_u16_le(batch.epoch);
    }
}

fn decode_session(reader: &mut Reader<'_>) -> Result<Session, DecodeError> {
    let name = Some(reader.text("session name", NAME_BYTES_MAX)?).filter(|name: &Arc<str>| !name.is_empty());
    let epoch = reader.u16("epoch")?;
    let records = reader.u64("records")?;
    let used = TimestampMs(reader.u64("last use")?);
    let tail = Offset(reader.u64("session tail")?);
    let count = reader.count("remembered batches", SESSION_WINDOW_BATCHES, BATCH_LEN)?;
    let mut window = VecDeque::with_capacity(count);
    for _ in 0..count {
        let count = reader.u32("records of a batch")?;
        let offset = Offset(reader.u64("offset of a batch")?);
        window.push_back(Remembered { first: 0, offset, count, epoch: reader.u16("epoch of a batch")? });
    }
    // Only the counts are written: numbers of first records follow from them, backwards from the end.
    let mut first = records;
    for batch in window.iter_mut().rev() {
        let records = u64::from(batch.count);
        first = first.checked_sub(records).ok_or(DecodeError::TooLarge {
            field: "records of a batch",
            value: records,
            limit: first,
        })?;
        batch.first = first;
    }
    Ok(Session { name, epoch, records, used, tail, window })
}

fn ensure(holds: bool, or: impl FnOnce() -> String) -> Result<(), DecodeError> {
    if holds {
        Ok(())
    } else {
        Err(DecodeError::Contradiction(or()))
    }
}
