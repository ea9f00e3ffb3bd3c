//! What can be asked of a partition, and how that lies in an entry.
//!
//! ```text
//! append         1 | flags u8 | [expected offset u64] | [token u64 | name] | record batch to the end
//! open session   2 | flags u8 | [name]
//! close session  3 | producer u64 | epoch u16
//! query session  4 | producer u64
//! raise fence    5 | token u64 | name
//! trim to        6 | offset u64
//! ```
//!
//! Numbers are little-endian, a name is a `u16` length and UTF-8. Flags: 1 = expected offset follows (append) or a name
//! follows (open session), 2 = a fence follows. The batch comes last, so that it is a slice of the entry. Refuses unknown kinds and
//! flags, names that are empty or too long, and bytes behind the last field; the batch itself is checked at the door.

use super::codec::{put_text, text_len, DecodeError, Reader};
use crate::ids::{Offset, ProducerId};
use crate::limits::NAME_BYTES_MAX;
use bytes::{BufMut, Bytes, BytesMut};
use std::sync::Arc;

const KIND_APPEND: u8 = 1;
const KIND_OPEN_SESSION: u8 = 2;
const KIND_CLOSE_SESSION: u8 = 3;
const KIND_QUERY_SESSION: u8 = 4;
const KIND_RAISE_FENCE: u8 = 5;
const KIND_TRIM_TO: u8 = 6;

const FLAG_EXPECTED_OFFSET: u8 = 1;
const FLAG_FENCE: u8 = 2;
const FLAG_NAME: u8 = 1;

/// A named fence and the token its holder presents.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fence {
    /// Whose exclusivity it guards; 1 to `NAME_BYTES_MAX` bytes.
    pub name: Arc<str>,
    /// Presented by the holder; a lower one than was seen is refused.
    pub token: u64,
}

/// An append of one record batch.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AppendCommand {
    /// Append only if the log ends there.
    pub expected_offset: Option<Offset>,
    /// Append only if no higher token of that fence was seen. A higher one than was seen raises the fence.
    pub fence: Option<Fence>,
    /// The batch as the client encoded it. Its header names the producer session, if any.
    pub batch: Bytes,
}

/// A command to a partition. The verdict of one that succeeds is `Appended`, `Repeated`, or `Done` as said here.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum PartitionCommand {
    /// Appends a batch: `Appended`, or `Repeated` if the session remembers it.
    Append(AppendCommand),
    /// Opens a producer session. Under a name that is open already its epoch is raised, and its sequences go on.
    /// `Done { value: producer id, extra: epoch << 32 | next sequence }`, see [`opened`].
    OpenSession {
        /// 1 to `NAME_BYTES_MAX` bytes.
        name: Option<Arc<str>>,
    },
    /// Forgets a session, so that its place is free at once. A late retry of one of its batches is then refused as
    /// unknown, never appended twice. `Done { value: producer id, extra: tail after its last append }`.
    CloseSession {
        /// The session.
        producer: ProducerId,
        /// Its present epoch: an older holder must not close what a newer one uses.
        epoch: u16,
    },
    /// Asks where a session stands, through the log, hence linearizably and wherever the leader is.
    /// `Done { value: tail after its last append, 0 if there was none, extra: records appended in its whole life }`.
    QuerySession {
        /// The session.
        producer: ProducerId,
    },
    /// Raises a fence, so that appends under lower tokens are refused from here on.
    /// `Done { value: token, extra: tail }`: what lies below that tail is all that lower tokens ever appended.
    RaiseFence(Fence),
    /// Moves the agreed start of the log forward; a lower offset than the present start leaves it.
    /// `Done { value: the log's start now, extra: 0 }`.
    TrimTo {
        /// At most the tail.
        offset: Offset,
    },
}

/// Takes the verdict of an opened session apart: epoch, and sequence of its next record.
#[must_use]
pub const fn opened(extra: u64) -> (u16, u32) {
    ((extra >> 32) as u16, extra as u32)
}

impl PartitionCommand {
    /// Whether an encoded command adds to what the partition holds.
    pub(super) fn adds_data(command: &[u8]) -> bool {
        matches!(command.first(), Some(&(KIND_APPEND | KIND_OPEN_SESSION)))
    }

    /// The command as it lies in an entry.
    ///
    /// # Panics
    /// If a name is longer than 65,535 bytes; doors hold names against `NAME_BYTES_MAX`.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut into = BytesMut::new();
        match self {
            PartitionCommand::Append(append) => append.encode(&mut into),
            PartitionCommand::OpenSession { name } => {
                into.put_u8(KIND_OPEN_SESSION);
                into.put_u8(if name.is_some() { FLAG_NAME } else { 0 });
                if let Some(name) = name {
                    put_text(&mut into, name);
                }
            }
            PartitionCommand::CloseSession { producer, epoch } => {
                into.put_u8(KIND_CLOSE_SESSION);
                into.put_u64_le(producer.0);
                into.put_u16_le(*epoch);
            }
            PartitionCommand::QuerySession { producer } => {
                into.put_u8(KIND_QUERY_SESSION);
                into.put_u64_le(producer.0);
            }
            PartitionCommand::RaiseFence(fence) => {
                into.put_u8(KIND_RAISE_FENCE);
                fence.encode(&mut into);
            }
            PartitionCommand::TrimTo { offset } => {
                into.put_u8(KIND_TRIM_TO);
                into.put_u64_le(offset.0);
            }
        }
        into.freeze()
    }

    /// Reads a command; the batch of an append shares its memory.
    ///
    /// # Errors
    /// If the bytes are no command: see [`DecodeError`].
    pub fn decode(command: &Bytes) -> Result<PartitionCommand, DecodeError> {
        let mut reader = Reader::new(command);
        let decoded = match reader.u8("kind")? {
            KIND_APPEND => PartitionCommand::Append(AppendCommand::decode(&mut reader)?),
            KIND_OPEN_SESSION => {
                let named = flags(&mut reader, FLAG_NAME)? != 0;
                PartitionCommand::OpenSession { name: named.then(|| name("session name", &mut reader)).transpose()? }
            }
            KIND_CLOSE_SESSION => PartitionCommand::CloseSession {
                producer: ProducerId(reader.u64("producer id")?),
                epoch: reader.u16("epoch")?,
            },
            KIND_QUERY_SESSION => PartitionCommand::QuerySession { producer: ProducerId(reader.u64("producer id")?) },
            KIND_RAISE_FENCE => PartitionCommand::RaiseFence(Fence::decode(&mut reader)?),
            KIND_TRIM_TO => PartitionCommand::TrimTo { offset: Offset(reader.u64("offset")?) },
            kind => return Err(DecodeError::Forbidden { field: "kind of a partition's command", value: kind.into() }),
        };
        reader.finish()?;
        Ok(decoded)
    }
}

impl AppendCommand {
    /// Where in the encoded command the batch starts.
    #[must_use]
    pub fn batch_at(&self) -> usize {
        let expected = if self.expected_offset.is_some() { 8 } else { 0 };
        let fence = self.fence.as_ref().map_or(0, |fence| 8 + text_len(fence.name.len()));
        2 + expected + fence
    }

    fn encode(&self, into: &mut BytesMut) {
        into.reserve(self.batch_at() + self.batch.len());
        into.put_u8(KIND_APPEND);
        let expected = if self.expected_offset.is_some() { FLAG_EXPECTED_OFFSET } else { 0 };
        let fenced = if self.fence.is_some() { FLAG_FENCE } else { 0 };
        into.put_u8(expected | fenced);
        if let Some(offset) = self.expected_offset {
            into.put_u64_le(offset.0);
        }
        if let Some(fence) = &self.fence {
            fence.encode(into);
        }
        into.put_slice(&self.batch);
    }

    fn decode(reader: &mut Reader<'_>) -> Result<AppendCommand, DecodeError> {
        let flags = flags(reader, FLAG_EXPECTED_OFFSET | FLAG_FENCE)?;
        let expected = flags & FLAG_EXPECTED_OFFSET != 0;
        let expected_offset = expected.then(|| reader.u64("expected offset").map(Offset)).transpose()?;
        let fenced = flags & FLAG_FENCE != 0;
        let fence = fenced.then(|| Fence::decode(reader)).transpose()?;
        Ok(AppendCommand { expected_offset, fence, batch: reader.rest() })
    }
}

impl Fence {
    fn encode(&self, into: &mut BytesMut) {
        into.put_u64_le(self.token);
        put_text(into, &self.name);
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Fence, DecodeError> {
        Ok(Fence { token: reader.u64("fence token")?, name: name("fence name", reader)? })
    }
}

fn flags(reader: &mut Reader<'_>, known: u8) -> Result<u8, DecodeError> {
    match reader.u8("flags")? {
        flags if flags & !known != 0 => Err(DecodeError::Forbidden { field: "flags", value: flags.into() }),
        flags => Ok(flags),
    }
}

fn name(field: &'static str, reader: &mut Reader<'_>) -> Result<Arc<str>, DecodeError> {
    let name = reader.text(field, NAME_BYTES_MAX)?;
    if name.is_empty() {
        return Err(DecodeError::Forbidden { field: "length of a name", value: 0 });
    }
    Ok(name)
}
